//! Maps have whatever names their authors gave them.

use std::collections::BTreeMap;

use skep_kernel::Host;
use skep_kernel::bpffs::{self, escape};
use skep_kernel::hook::{Neighbour, Order};
use skep_kernel::seam::{Group, Kernel, Standing};
use skep_object::kind::{Kind, attach};

use super::fixture::{Fixture, hook, object, request};

#[test]
fn maps_with_the_names_of_our_directories_are_in_nobodys_way() {
    let mut f = Fixture::new();
    let lo = f.lo();
    let plain = hook(Kind::Tcx, attach::TCX_INGRESS, lo);
    let named = request(&object("names"), &[("count_names", &plain)], &[]);
    f.load("l1", &named);
    f.attach("l1", "count_names", &named, &plain);
    f.packets(3);

    // Another program: beside it, with a map of a group, and removed.
    let mut beside = plain.clone();
    let guard = Neighbour { uid: Some(f.uid.clone()), name: "guard".into(), function: "count_names".into() };
    beside.options.order = Order::Before(guard);
    let mut other = request(&object("net"), &[("count_tc", &beside)], &[]);
    let group = Group { namespace: "test".into(), name: "edge".into() };
    other.share = BTreeMap::from([("hits".into(), group)]);
    other.keep.remove("hits");
    f.host.load("other", "l1", &other).unwrap();
    let link = beside.link_name("count_tc");
    f.host.attach("other", &link, &beside, &super::fixture::at("l1", "count_tc", &other)).unwrap();
    let seen = f.host.observe("other").unwrap();
    assert_eq!(f.host.standing(&beside, seen.links[&link].id).unwrap(), Standing::Right);
    assert_eq!(f.host.programs_with(&f.uid, "count_names").unwrap().len(), 1);

    // The next agent, and the next load.
    let state = tempfile::tempdir().unwrap();
    let again = Host::open(f.host.bpffs().root(), state.path()).unwrap();
    f.load("l2", &named);
    assert_eq!(again.observe(&f.uid).unwrap().loads.len(), 2);
    again.remove_load(&f.uid, "l1").unwrap();
    again.remove_program("other").unwrap();
    again.remove_program(&f.uid).unwrap();
    assert_eq!(bpffs::list(f.host.bpffs().root()).unwrap(), [] as [&str; 0]);
}

#[test]
fn maps_that_the_kernel_calls_alike_are_not_mistaken_for_each_other() {
    let mut f = Fixture::new();
    let lo = f.lo();
    let tcx = hook(Kind::Tcx, attach::TCX_INGRESS, lo);
    let named = request(&object("names"), &[("count_names", &tcx)], &[]);
    f.load("l1", &named);
    f.attach("l1", "count_names", &named, &tcx);
    let before = f.host.observe(&f.uid).unwrap().loads["l1"].maps.clone();
    let forget = |name: &str| {
        bpffs::unpin(&f.host.bpffs().load(&f.uid, "l1").join("maps").join(escape(name))).unwrap();
        bpffs::unpin(&f.host.bpffs().kept_maps(&f.uid).join(escape(name))).unwrap();
    };
    // One of them is known, so that the other is.
    forget("connection_table_b");
    f.load("l1", &named);
    assert_eq!(f.host.observe(&f.uid).unwrap().loads["l1"].maps, before);
    forget("connection_table_a");
    forget("connection_table_b");
    let refused = f.host.load(&f.uid, "l1", &named).unwrap_err();
    assert_eq!(refused.reason(), "MapIncompatible");
    let text = "map connection_table_a or connection_table_b: their pins were deleted";
    assert!(refused.to_string().starts_with(text), "{refused}");
}
