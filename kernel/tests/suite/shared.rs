//! Maps of groups: one map for the programs of several uids, refused when it differs, gone with the last of them.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Barrier};

use serde_json::json;
use skep_kernel::seam::{Group, Kernel, LoadRequest, Observed};
use skep_kernel::{Host, KernelError, bpffs};
use skep_object::kind::Kind;

use super::fixture::{Fixture, at, hook, object, request};

const OTHER: &str = "0a1b-other";

fn group(namespace: &str, name: &str) -> Group {
    Group { namespace: namespace.into(), name: name.into() }
}

/// The counting program, whose map `hash` is that of a group.
fn sharing(f: &mut Fixture, namespace: &str, name: &str) -> LoadRequest {
    let hook = hook(Kind::Xdp, 0, f.lo());
    share(request(&object("kept"), &[("count_all", &hook)], &[]), namespace, name)
}

fn share(mut request: LoadRequest, namespace: &str, name: &str) -> LoadRequest {
    request.keep.remove("hash");
    request.share = [("hash".to_owned(), group(namespace, name))].into();
    request
}

fn hash(observed: &Observed) -> u32 {
    observed.loads["l1"].maps["hash"].id
}

fn shared_pins(host: &Host) -> Vec<PathBuf> {
    let mut found = vec![];
    let mut left = vec![host.bpffs().shared()];
    while let Some(path) = left.pop() {
        match std::fs::read_dir(&path) {
            Ok(entries) => left.extend(entries.map(|entry| entry.unwrap().path())),
            Err(_) if path.exists() => found.push(path),
            Err(_) => {}
        }
    }
    found
}

#[test]
fn a_group_has_one_map_until_its_last_member_goes() {
    let mut f = Fixture::new();
    let hook = hook(Kind::Xdp, 0, f.lo());
    let first = share(request(&object("kept"), &[("count_all", &hook)], &[]), "net", "flows");
    f.load("l1", &first);
    f.attach("l1", "count_all", &first, &hook);
    f.host.load(OTHER, "l1", &first).unwrap();
    let [one, other] = [&f.uid, OTHER].map(|uid| f.host.observe(uid).unwrap());
    assert_eq!(hash(&one), hash(&other), "one map");
    assert_ne!(one.loads["l1"].maps["array"].id, other.loads["l1"].maps["array"].id, "and only the one that is shared");
    assert_eq!(shared_pins(&f.host), [f.host.bpffs().shared().join("net/flows/hash")]);
    f.packets(8);
    let map = skep_kernel::sys::map::Map::new(f.host.open_map(OTHER, "l1", "hash").unwrap()).unwrap();
    assert!(map.lookup(&0u32.to_ne_bytes()).unwrap().is_some(), "what one counts, the other sees");
    drop(map);

    f.host.remove_program(&f.uid).unwrap();
    assert_eq!(hash(&f.host.observe(OTHER).unwrap()), hash(&one), "the other still has it");
    assert_eq!(shared_pins(&f.host).len(), 1);
    f.host.remove_load(OTHER, "l1").unwrap();
    assert!(!f.host.bpffs().shared().exists(), "nothing is left, no directory either");
}

#[test]
fn another_namespace_or_group_has_another_map() {
    let mut f = Fixture::new();
    let first = sharing(&mut f, "net", "flows");
    f.load("l1", &first);
    for (uid, namespace, name) in [("a", "net", "others"), ("b", "ops", "flows")] {
        f.host.load(uid, "l1", &share(first.clone(), namespace, name)).unwrap();
    }
    let ids: BTreeSet<u32> = [&f.uid, "a", "b"].map(|uid| hash(&f.host.observe(uid).unwrap())).into();
    assert_eq!(ids.len(), 3);
    ["a", "b"].iter().for_each(|uid| f.host.remove_program(uid).unwrap());
}

#[test]
fn a_definition_that_differs_is_refused_and_nothing_is_left() {
    let mut f = Fixture::new();
    let first = sharing(&mut f, "net", "flows");
    f.load("l1", &first);
    let mut larger = first.clone();
    let map = larger.maps.iter_mut().find(|map| map.name == "hash").unwrap();
    let before = std::mem::replace(&mut map.max_entries, 7777);
    let refused = f.host.load(OTHER, "l1", &larger).unwrap_err();
    assert_eq!(
        refused.to_string(),
        format!(
            "map hash: share: group flows of namespace net has this map already, and maxEntries was {before} and is now 7777; declare it alike in all programs of the group, this one's earlier revisions included, or name another group, whose map starts empty"
        )
    );
    assert!(matches!(refused, KernelError::MapIncompatible { .. }));
    assert!(f.host.observe(OTHER).unwrap().loads.is_empty());
    assert_eq!(f.host.programs().unwrap(), [f.uid.clone()]);
}

#[test]
fn a_load_that_fails_leaves_no_map_in_its_group() {
    let mut f = Fixture::new();
    let hook = hook(Kind::Xdp, 0, f.lo());
    // The verifier refuses the function: it is loaded for a hook of another type.
    let mut request = share(request(&object("kept"), &[("count_all", &hook)], &[]), "net", "flows");
    let mut variant = request.variants.pop_first().unwrap();
    variant.attributes.program_type = 9999;
    request.variants.insert(variant);
    f.host.load(&f.uid, "l1", &request).unwrap_err();
    assert!(!f.host.bpffs().shared().exists());
}

#[test]
fn a_lost_pin_comes_back_with_the_same_map() {
    let mut f = Fixture::new();
    let first = sharing(&mut f, "net", "flows");
    f.load("l1", &first);
    let [pin] = shared_pins(&f.host).try_into().unwrap();
    bpffs::unpin(&pin).unwrap();
    let observed = f.host.observe(&f.uid).unwrap();
    assert_eq!(observed.loads["l1"].shares, [("hash".to_owned(), false)].into());
    f.host.load(OTHER, "l1", &first).unwrap();
    assert_eq!(hash(&f.host.observe(OTHER).unwrap()), hash(&observed), "who comes next finds it in a load");
    bpffs::unpin(&pin).unwrap();
    f.load("l1", &first);
    assert!(pin.exists() && f.host.observe(&f.uid).unwrap().loads["l1"].shares["hash"], "and loading again pins it");
    f.host.remove_program(OTHER).unwrap();
}

#[test]
fn loads_that_begin_together_get_one_map() {
    let mut f = Fixture::new();
    let first = sharing(&mut f, "net", "flows");
    let start = Barrier::new(8);
    let uids: Vec<String> = (0..8).map(|n| format!("u{n}")).collect();
    std::thread::scope(|scope| {
        for uid in &uids {
            scope.spawn(|| {
                start.wait();
                f.host.load(uid, "l1", &first).unwrap();
            });
        }
    });
    let ids: BTreeSet<u32> = uids.iter().map(|uid| hash(&f.host.observe(uid).unwrap())).collect();
    assert_eq!(ids.len(), 1);
    uids.iter().for_each(|uid| f.host.remove_program(uid).unwrap());
    assert!(!f.host.bpffs().shared().exists());
}

#[test]
fn what_a_crash_left_in_a_group_goes_when_the_agent_is_back() {
    let mut f = Fixture::new();
    let first = sharing(&mut f, "net", "flows");
    f.load("l1", &first);
    // As if it had died before the load was complete.
    bpffs::remove_tree(&f.host.bpffs().program(&f.uid)).unwrap();
    assert_eq!(shared_pins(&f.host).len(), 1);
    f.restart();
    assert!(!f.host.bpffs().shared().exists());
}

#[test]
fn a_map_that_becomes_shared_says_that_it_starts_anew() {
    let mut f = Fixture::new();
    let hook = hook(Kind::Xdp, 0, f.lo());
    let own = request(&object("kept"), &[("count_all", &hook)], &[]);
    f.load("l1", &own);
    f.attach("l1", "count_all", &own, &hook);
    // As the agent does it: nothing of the map is kept any more before the new load is made.
    f.host.settle(&f.uid, "l1", &own.keep.keys().filter(|map| *map != "hash").cloned().collect()).unwrap();
    let shared = share(request(&Arc::clone(&own.object), &[("count_all", &hook)], &[]), "net", "flows");
    let outcome = f.host.load(&f.uid, "l2", &shared).unwrap();
    assert_eq!(json!(outcome.reset), json!({"hash": "it is that of group flows now"}));
    let old = f.host.observe(&f.uid).unwrap().loads["l1"].programs[&at("l1", "count_all", &own).pin].id;
    f.host.replace(&f.uid, &hook.link_name("count_all"), &hook, old, &at("l2", "count_all", &shared)).unwrap();
    f.host.settle(&f.uid, "l2", &shared.keep.keys().cloned().collect()).unwrap();
    assert!(!f.host.observe(&f.uid).unwrap().kept.contains_key("hash"), "the lasting path is for one's own");
}
