//! Functions of loaded programs, as what others attach to.

use std::os::fd::AsFd;

use serde_json::json;
use skep_kernel::hook::{Hook, Target};
use skep_kernel::seam::Kernel;
use skep_kernel::sys::program;
use skep_object::kind::{Kind, attach};

use super::fixture::{Fixture, at, hook, object, request};
use super::verdict;

/// The kernel's ids of the programs of `callee`, one more for each load.
fn load_callee(f: &Fixture, load: &str, answer: u32) -> Vec<u32> {
    // It need not be on its hook.
    let hook = hook(Kind::Tc, attach::TCX_INGRESS, Target::Event("none".into()));
    f.load(load, &request(&object("callee"), &[("guard", &hook)], &[("answer", json!(answer))]));
    f.host.programs_with(&f.uid, "check").unwrap()
}

fn on(kind: Kind, program: u32) -> Hook {
    hook(kind, 0, Target::ProgramFunction { program, of: "callee".into(), function: "check".into() })
}

fn run(id: u32) -> u32 {
    program::test_run(program::by_id(id).unwrap().as_fd(), &[0; 64], 1).unwrap().value
}

/// This kernel lets functions be traced and replaced; the vendors' that do not say so with EPERM.
fn is_refused(f: &Fixture, function: &str, hook: &Hook) -> bool {
    match f.host.load(&f.uid, "probe", &request(&object("tracer"), &[(function, hook)], &[])) {
        Ok(_) => {
            f.host.remove_load(&f.uid, "probe").unwrap();
            false
        }
        Err(error) if verdict::refused(&error) => true,
        Err(error) => {
            assert_eq!(error.reason(), "PermissionDenied", "{error}");
            println!("{}: refused here as it should be: {error}", hook.kind);
            true
        }
    }
}

#[test]
fn are_found_in_each_load_of_a_program() {
    let f = Fixture::new();
    let first = load_callee(&f, "l1", 1);
    assert_eq!(first.len(), 1);
    let both = load_callee(&f, "l2", 2);
    assert_eq!(both.len(), 2);
    assert!(both.contains(&first[0]));
    assert_eq!(f.host.programs_with(&f.uid, "guard").unwrap(), both, "its main function too");
    assert!(f.host.programs_with(&f.uid, "chekc").unwrap().is_empty());
    assert!(f.host.programs_with("nobody", "check").unwrap().is_empty());
    f.host.remove_load(&f.uid, "l1").unwrap();
    assert_eq!(load_callee(&f, "l2", 2).len(), 1);
}

#[test]
fn are_traced_until_detached() {
    let (callee, f) = (Fixture::new(), Fixture::new());
    let id = load_callee(&callee, "l1", 3)[0];
    for (kind, function, slot) in [(Kind::Fentry, "on_entry", 0), (Kind::Fexit, "on_exit", 1)] {
        let hook = on(kind, id);
        if is_refused(&f, function, &hook) {
            return;
        }
        let load = format!("l{slot}");
        let request = request(&object("tracer"), &[(function, &hook)], &[]);
        f.load(&load, &request);
        assert_eq!(run(id), 3);
        assert_eq!(f.hits(&load, slot), 0);
        let link = f.attach(&load, function, &request, &hook);
        for _ in 0..5 {
            assert_eq!(run(id), 3);
        }
        assert_eq!(f.hits(&load, slot), 5);
        f.host.detach(&f.uid, &link).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(150));
        assert_eq!(run(id), 3);
        assert_eq!(f.hits(&load, slot), 5, "{kind} fired after it was detached");
        verdict::fires();
    }
}

#[test]
fn are_replaced_and_the_gap_of_an_update_is_measured() {
    let (callee, f) = (Fixture::new(), Fixture::new());
    let id = load_callee(&callee, "l1", 3)[0];
    let hook = on(Kind::Freplace, id);
    if is_refused(&f, "instead", &hook) {
        return;
    }
    let first = request(&object("tracer"), &[("instead", &hook)], &[]);
    f.load("l1", &first);
    assert_eq!(run(id), 3);
    let link = f.attach("l1", "instead", &first, &hook);
    assert_eq!(run(id), 7);
    let second = request(&object("tracer"), &[("instead", &hook)], &[("answer", json!(8))]);
    f.load("l2", &second);
    let before = f.host.observe(&f.uid).unwrap().links[&link].clone();
    let gap = f.host.replace(&f.uid, &link, &hook, before.program_id, &at("l2", "instead", &second)).unwrap();
    assert_eq!(run(id), 8);
    println!("freplace: nothing was in place for {:?}", gap.unwrap());
    assert_ne!(f.host.observe(&f.uid).unwrap().links[&link].id, before.id);

    // A link that went by accident is made again, with the program that was there.
    f.host.detach(&f.uid, &link).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(150));
    assert_eq!(run(id), 3);
    f.host.attach(&f.uid, &link, &hook, &at("l2", "instead", &second)).unwrap();
    assert_eq!(run(id), 8);

    // The kernel takes one; somebody else's is left alone.
    let other = Fixture::new();
    other.load("l1", &first);
    let busy = other.host.attach(&other.uid, "x", &hook, &at("l1", "instead", &first)).unwrap_err();
    assert_eq!(busy.reason(), "HookBusy", "{busy}");
    assert_eq!(run(id), 8);
    verdict::fires();
}
