//! What the kernel says of programs, beside what bpftool makes of it.

use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;

use serde_json::{Value, json};
use skep_kernel::seam::Kernel;
use skep_kernel::sys::{self, program};
use skep_object::kind::Kind;

use super::fixture::{Fixture, hook, object, request};

/// A program on `lo` that counts, by its descriptor.
fn counting(f: &mut Fixture) -> OwnedFd {
    let xdp = hook(Kind::Xdp, 0, f.lo());
    let request = request(&object("net"), &[("count_xdp", &xdp)], &[]);
    f.load("l1", &request);
    f.attach("l1", "count_xdp", &request, &xdp);
    let observed = f.host.observe(&f.uid).unwrap();
    let (pin, _) = observed.loads["l1"].programs.first_key_value().unwrap();
    f.host.open_program(&f.uid, "l1", pin).unwrap()
}

#[test]
fn facts_are_those_of_bpftool() {
    let mut f = Fixture::new();
    let fd = counting(&mut f);
    let facts = program::facts(fd.as_fd()).unwrap();
    let output =
        Command::new("bpftool").args(["-j", "prog", "show", "id", &facts.info.id.to_string()]).output().unwrap();
    let theirs: Value = serde_json::from_slice(&output.stdout).unwrap();
    let ours = json!({
        "id": facts.info.id, "type": program::type_name(facts.info.program_type), "name": facts.info.name,
        "tag": facts.info.tag, "gpl_compatible": facts.gpl_compatible, "uid": facts.uid,
        "bytes_xlated": facts.translated_len, "bytes_jited": facts.jited_len,
        "bytes_memlock": sys::fdinfo(fd.as_fd(), "memlock"), "map_ids": facts.maps, "btf_id": facts.btf_id,
    });
    for (key, value) in ours.as_object().unwrap() {
        assert_eq!(&theirs[key], value, "{key}: {theirs}");
    }
}

#[test]
fn runs_are_counted_while_somebody_asks() {
    let mut f = Fixture::new();
    let fd = counting(&mut f);
    let facts = program::facts(fd.as_fd()).unwrap();
    assert!(facts.verified_insns > 0 && facts.loaded_at > 0 && facts.translated_len > 0);
    assert_eq!((program::type_name(facts.info.program_type).as_str(), facts.maps.is_empty()), ("xdp", false));
    // Whether they are counted without the descriptor depends on who else has one.
    let runs = || program::stats(fd.as_fd()).unwrap();
    let before = runs();
    let counting = program::count_runs().unwrap();
    f.packets(5);
    let counted = runs();
    assert_eq!(counted.count, before.count + 5);
    assert!(counted.time_ns > before.time_ns);
    drop(counting);
}

/// On demand the verifier says all; of a map that is made for it one entry is enough.
#[test]
fn a_request_is_verified_and_nothing_is_left() {
    let mut f = Fixture::new();
    let xdp = hook(Kind::Xdp, 0, f.lo());
    let mut request = request(&object("net"), &[("count_xdp", &xdp)], &[]);
    let flows = request.maps.iter_mut().find(|map| map.name == "flows").unwrap();
    // More than there is memory for.
    flows.max_entries = 1 << 31;
    let verified = f.host.verify(&request).unwrap();
    let [one] = &verified[..] else { panic!("{verified:?}") };
    assert!(one.function == "count_xdp" && one.refused.is_none() && one.log.contains("processed "), "{one:?}");
    assert!(f.host.programs().unwrap().is_empty());
}
