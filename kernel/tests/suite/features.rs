//! What a kernel is said to be able to do is what it does.

use std::collections::BTreeMap;

use skep_kernel::features;
use skep_kernel::hook::Target;
use skep_kernel::seam::Kernel;
use skep_object::kind::{KINDS, Kind};

use super::fixture::{Fixture, at, hook, object, request};
use super::verdict;

#[test]
fn kinds_are_probed_without_a_trace() {
    let f = Fixture::new();
    let before = skep_kernel::sys::program::all_ids().unwrap();
    let all = features::kinds();
    assert!(skep_kernel::sys::program::all_ids().unwrap().iter().all(|id| before.contains(id)), "a probe stays loaded");
    assert_eq!(all.len(), KINDS.len());
    let missing: BTreeMap<Kind, String> = all
        .iter()
        .filter_map(|support| Some((support.kind, support.missing.as_ref()?)))
        .map(|(kind, error)| (kind, format!("{}: {error}", error.reason())))
        .collect();
    println!("{missing:#?}");
    // Beside what the tests of the kinds say: see `verdict`.
    all.iter().for_each(|support| verdict::probed(support.kind, support.missing.as_ref()));

    // Without them this suite could not run.
    for kind in [Kind::Xdp, Kind::Tc, Kind::CgroupSkb, Kind::SockOps, Kind::Tracepoint, Kind::RawTracepoint] {
        assert_eq!(missing.get(&kind), None);
    }
    // What loading and attaching say of a real program.
    let openat = || Target::Function { name: "do_sys_openat2".into(), offset: 0 };
    for (kind, function) in [(Kind::Fentry, "on_fentry"), (Kind::Fexit, "on_fexit"), (Kind::Kprobe, "on_kprobe")] {
        let hook = hook(kind, 0, openat());
        let request = request(&object("trace"), &[(function, &hook)], &[]);
        let tried = f
            .host
            .load(&f.uid, function, &request)
            .and_then(|_| f.host.attach(&f.uid, &hook.link_name(function), &hook, &at(function, function, &request)));
        let refused = tried.err().map(|error| error.reason());
        let told = missing.get(&kind).and_then(|text| text.split(':').next());
        assert_eq!(told, refused, "{kind}");
    }
    let mut netns = Fixture::new();
    netns.lo();
    assert_eq!(missing.contains_key(&Kind::Netkit), !netns.link_of_kind("sk0", "netkit"));
}
