//! Kept maps: contents that move to maps of another size, are settled, and go back when a load is given up.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::sync::Arc;

use serde_json::{Value, json};
use skep_kernel::KernelError;
use skep_kernel::hook::Hook;
use skep_kernel::seam::{Kernel, LoadOutcome, LoadRequest, Merge, Settled};
use skep_kernel::sys::map::Map;
use skep_kernel::sys::program;
use skep_object::Object;
use skep_object::kind::Kind;

use super::fixture::{Fixture, at, hook, object, request};

const MOVED: [&str; 7] = ["hash", "array", "percpu_hash", "percpu_array", "lru", "lru_percpu", "trie"];

struct Case {
    f: Fixture,
    hook: Hook,
    link: String,
    first: LoadRequest,
}

/// The first load on its hook, with `packets` counted in every map.
fn start(object: &Arc<Object>, packets: u32) -> Case {
    let mut f = Fixture::new();
    let hook = hook(Kind::Xdp, 0, f.lo());
    let first = request(object, &[("count_all", &hook)], &[]);
    f.load("l1", &first);
    let link = f.attach("l1", "count_all", &first, &hook);
    f.packets(packets);
    Case { f, hook, link, first }
}

fn names(request: &LoadRequest) -> BTreeSet<String> {
    request.keep.keys().cloned().collect()
}

/// The same program with all maps of another size.
fn sized(case: &Case, object: &Arc<Object>, entries: u32, merge: Merge, globals: &[(&str, Value)]) -> LoadRequest {
    let mut request = request(object, &[("count_all", &case.hook)], globals);
    for map in request.maps.iter_mut().filter(|m| m.data.is_none()) {
        // There are no more CPUs than the kernel was built for.
        map.max_entries = if map.name == "cpus" { entries.min(32) } else { entries };
    }
    for name in MOVED {
        request.keep.insert(name.into(), merge);
    }
    request
}

impl Case {
    fn load(&self, request: &LoadRequest) -> LoadOutcome {
        self.f.host.load(&self.f.uid, "l2", request).unwrap()
    }

    fn swap(&self, from: (&str, &LoadRequest), to: (&str, &LoadRequest)) {
        let old =
            self.f.host.observe(&self.f.uid).unwrap().loads[from.0].programs[&at(from.0, "count_all", from.1).pin].id;
        self.f.host.replace(&self.f.uid, &self.link, &self.hook, old, &at(to.0, "count_all", to.1)).unwrap();
    }

    fn settle(&self, request: &LoadRequest) -> BTreeMap<String, Settled> {
        self.f.host.settle(&self.f.uid, "l2", &names(request)).unwrap()
    }

    fn map(&self, load: &str, name: &str) -> Map {
        Map::new(self.f.host.open_map(&self.f.uid, load, name).unwrap()).unwrap()
    }

    /// Packets under a key, over all CPUs.
    fn packets(&self, load: &str, name: &str, key: u32) -> Option<u64> {
        let map = self.map(load, name);
        let key =
            if name == "trie" { [32u32.to_ne_bytes(), key.to_ne_bytes()].concat() } else { key.to_ne_bytes().into() };
        let value = map.lookup(&key).unwrap()?;
        let stride = map.info().value_size.next_multiple_of(8) as usize;
        Some(value.chunks(stride).map(|v| u64::from_ne_bytes(v[..8].try_into().unwrap())).sum())
    }

    fn total(&self, load: &str, name: &str) -> u64 {
        (0..64).filter_map(|key| self.packets(load, name, key)).sum()
    }
}

#[test]
fn contents_move_to_another_size_and_what_is_counted_meanwhile_is_added() {
    let object = object("kept");
    for entries in [32, 1024] {
        let case = start(&object, 160);
        let second = sized(&case, &object, entries, Merge::Sum, &[("first", json!(4))]);
        let outcome = case.load(&second);
        assert_eq!(outcome.resized["hash"], 0);
        // The kinds of maps whose values hold something of their own start anew, and it is said.
        assert!(outcome.reset["timers"].contains("bpf_timer"), "{outcome:?}");
        // Counted by the old program after the copy, by the new one before it is settled.
        case.f.packets(16);
        case.swap(("l1", &case.first), ("l2", &second));
        case.f.packets(16);
        let settled = case.settle(&second);
        for name in MOVED {
            assert_eq!(case.total("l2", name), 192, "{name} with room for {entries}");
            assert_eq!(case.packets("l2", name, 0), Some(11), "{name}");
            assert_eq!(case.packets("l2", name, 17), Some(1), "{name}");
            assert_eq!((settled[name].merged, settled[name].raced), (16, 0), "{name}");
        }
        // Settled is settled: nothing is added twice.
        assert!(case.settle(&second).is_empty());
        case.f.host.remove_load(&case.f.uid, "l1").unwrap();
        let seen = case.f.host.observe(&case.f.uid).unwrap();
        assert_eq!(seen.kept["hash"], seen.loads["l2"].maps["hash"].id);
        assert!(!seen.loads["l2"].pending);
        assert_eq!(case.total("l2", "hash"), 192);
    }
}

#[test]
fn settling_goes_on_after_a_crash_and_adds_nothing_twice() {
    let object = object("kept");
    let mut case = start(&object, 64);
    let second = sized(&case, &object, 128, Merge::Sum, &[]);
    case.load(&second);
    case.f.packets(32);
    case.swap(("l1", &case.first), ("l2", &second));
    case.f.restart();
    let seen = case.f.host.observe(&case.f.uid).unwrap();
    assert!(seen.loads["l2"].pending && !seen.loads["l1"].pending);
    // A crash between publishing and taking the base away leaves a base whose map is the kept one already.
    let base = case.f.host.bpffs().load(&case.f.uid, "l2").join("sums").join("hash");
    let pin = skep_kernel::sys::open_pin(&base).unwrap();
    case.settle(&second);
    std::fs::create_dir(base.parent().unwrap()).unwrap();
    skep_kernel::sys::pin(pin.as_fd(), &base).unwrap();
    case.f.restart();
    assert!(case.settle(&second).is_empty());
    for name in MOVED {
        assert_eq!(case.total("l2", name), 96, "{name}");
    }
}

#[test]
fn what_a_load_that_is_given_up_counted_goes_back() {
    let object = object("kept");
    let case = start(&object, 64);
    let second = sized(&case, &object, 128, Merge::Sum, &[]);
    case.load(&second);
    case.swap(("l1", &case.first), ("l2", &second));
    case.f.packets(32);
    case.swap(("l2", &second), ("l1", &case.first));
    let before = case.f.host.observe(&case.f.uid).unwrap();
    case.f.host.remove_load(&case.f.uid, "l2").unwrap();
    case.f.packets(16);
    for name in MOVED {
        assert_eq!(case.total("l1", name), 112, "{name}");
    }
    let after = case.f.host.observe(&case.f.uid).unwrap();
    assert_eq!(after.kept, before.kept);
    assert_eq!(after.kept["hash"], after.loads["l1"].maps["hash"].id, "the kept map is still the old load's");
}

#[test]
fn without_sums_what_the_new_programs_did_wins_and_is_counted_as_raced() {
    let object = object("kept");
    let case = start(&object, 16);
    let second = sized(&case, &object, 128, Merge::Untouched, &[("first", json!(8))]);
    case.load(&second);
    // The old program changes keys 0..16 and a user deletes one and makes one.
    case.f.packets(16);
    case.map("l1", "hash").delete(&3u32.to_ne_bytes()).unwrap();
    case.map("l1", "hash").update(&40u32.to_ne_bytes(), &[7u64.to_ne_bytes(), [0; 8]].concat(), 0).unwrap();
    case.swap(("l1", &case.first), ("l2", &second));
    // The new one changes keys 8..24.
    case.f.packets(16);
    let settled = case.settle(&second)["hash"];
    assert_eq!(settled, Settled { inserted: 1, merged: 7, raced: 8, deleted: 1 });
    let packets = |key| case.packets("l2", "hash", key);
    assert_eq!(
        (packets(0), packets(3), packets(8), packets(20), packets(40)),
        (Some(2), None, Some(2), Some(1), Some(7))
    );
}

#[test]
fn contents_that_do_not_fit_are_refused_before_anything_changes() {
    let object = object("kept");
    let case = start(&object, 16);
    for (small, told) in [("hash", "hash"), ("array", "array"), ("percpu_hash", "percpu_hash"), ("trie", "trie")] {
        let mut second = sized(&case, &object, 64, Merge::Sum, &[]);
        second.maps.iter_mut().find(|m| m.name == small).unwrap().max_entries = 4;
        let before = case.f.host.observe(&case.f.uid).unwrap();
        let error = case.f.host.load(&case.f.uid, "l2", &second).unwrap_err();
        assert!(matches!(&error, KernelError::MapIncompatible { map, .. } if map == told), "{error}");
        assert!(error.to_string().contains("do not fit into maxEntries: 4"), "{error}");
        assert_eq!(case.f.host.observe(&case.f.uid).unwrap(), before);
    }
    // The kernel keeps the newest of an LRU, and it is counted what it dropped.
    let mut second = sized(&case, &object, 64, Merge::Untouched, &[]);
    second.maps.iter_mut().find(|m| m.name == "lru").unwrap().max_entries = 4;
    let dropped = case.load(&second).resized["lru"];
    assert!((1..16).contains(&dropped), "{dropped} dropped");
}

#[test]
fn sums_of_what_cannot_be_added_are_refused() {
    let (mut f, object) = (Fixture::new(), object("kept"));
    let hook = hook(Kind::Xdp, 0, f.lo());
    let mut request = request(&object, &[("count_all", &hook)], &[]);
    request.keep.insert("timers".into(), Merge::Sum);
    let error = f.host.load(&f.uid, "l1", &request).unwrap_err();
    assert_eq!(error.reason(), "MapIncompatible");
    assert!(error.to_string().contains("map timers: merge: Sum: "), "{error}");
}

#[test]
fn a_changed_layout_starts_anew_and_a_load_given_up_leaves_the_kept_map() {
    let case = start(&object("kept"), 16);
    let second = request(&object("relaid"), &[("count_all", &case.hook)], &[]);
    let outcome = case.load(&second);
    assert_eq!(outcome.reset["hash"], "the layout of its keys or values changed");
    case.swap(("l1", &case.first), ("l2", &second));
    case.f.packets(16);
    assert_eq!((case.total("l2", "hash"), case.total("l1", "hash")), (16, 16));
    case.swap(("l2", &second), ("l1", &case.first));
    case.f.host.remove_load(&case.f.uid, "l2").unwrap();
    let seen = case.f.host.observe(&case.f.uid).unwrap();
    assert_eq!(seen.kept["hash"], seen.loads["l1"].maps["hash"].id);
}

#[test]
fn maps_of_devices_and_cpus_move_with_their_programs() {
    let object = object("kept");
    let case = start(&object, 0);
    let xdp = case.f.host.observe(&case.f.uid).unwrap().loads["l1"].programs.values().next().unwrap().id;
    // 192 packets may wait on CPU 0; interface 1 is the namespace's lo.
    let old = case.map("l1", "cpus");
    old.update(&0u32.to_ne_bytes(), &[192u32.to_ne_bytes(), [0; 4]].concat(), 0).unwrap();
    skep_kernel::netns::within(Some(&case.f.netns_path()), || {
        case.map("l1", "devices").update(&2u32.to_ne_bytes(), &[1u32.to_ne_bytes(), [0; 4]].concat(), 0)
    })
    .unwrap();
    let second = sized(&case, &object, 8, Merge::Untouched, &[]);
    let outcome = skep_kernel::netns::within(Some(&case.f.netns_path()), || Ok(case.load(&second))).unwrap();
    assert_eq!((outcome.resized["cpus"], outcome.resized["devices"]), (0, 0));
    let word = |map: &str, key: u32| {
        let value = case.map("l2", map).lookup(&key.to_ne_bytes()).unwrap().unwrap();
        u32::from_ne_bytes(value[..4].try_into().unwrap())
    };
    assert_eq!((word("cpus", 0), word("devices", 2)), (192, 1));
    assert!(program::by_id(xdp).is_ok());
}

/// Programs replace all keys of a full map while it moves, and fill the new one: what fits is brought over, the rest is
/// said, and nothing stands in the way of what comes next.
#[test]
fn a_full_map_whose_keys_all_change_moves_all_the_same() {
    use skep_kernel::load::create_map;
    use skep_kernel::migrate::Migration;
    use skep_kernel::sys::map::types;
    use skep_object::map::MapDef;
    const ENTRIES: u32 = 64;
    let make = |map_type, max_entries| {
        let (name, key_size, value_size) = ("moved".to_owned(), 4, 8);
        create_map(&MapDef { name, map_type, key_size, value_size, max_entries, ..MapDef::default() }, None).unwrap()
    };
    let open = |fd: &std::os::fd::OwnedFd| Map::new(fd.try_clone().unwrap()).unwrap();
    let put = |map: &Map, key: u32| map.update(&key.to_ne_bytes(), &u64::from(key).to_ne_bytes(), 0);
    for map_type in [types::HASH, types::LRU_HASH] {
        let (old, new) = (make(map_type, ENTRIES), make(map_type, 4 * ENTRIES));
        (0..ENTRIES).for_each(|key| put(&open(&old), key).unwrap());
        let (base, dropped) = Migration::copy("moved", old.try_clone().unwrap(), new.try_clone().unwrap()).unwrap();
        assert_eq!(dropped, 0);
        for key in 0..ENTRIES {
            open(&old).delete(&key.to_ne_bytes()).unwrap();
            put(&open(&old), 1000 + key).unwrap();
        }
        // The new map's own programs leave room for half of what is to come.
        let room = if map_type == types::HASH { ENTRIES / 2 } else { ENTRIES };
        (0..3 * ENTRIES - room).for_each(|key| put(&open(&new), 5000 + key).unwrap());
        let settle = || {
            let fds = [&old, &new, &base].map(|fd| fd.try_clone().unwrap());
            let [old, new, base] = fds;
            Migration::resume("moved", old, new, base).unwrap().settle(false).unwrap()
        };
        let settled = settle();
        assert_eq!(settled.inserted + settled.raced, u64::from(ENTRIES), "{map_type}: {settled:?}");
        if map_type == types::HASH {
            assert_eq!((settled.inserted, settled.deleted), (u64::from(room), u64::from(ENTRIES)));
        }
        // Cut short and run again it has nothing more to bring over, and comes to an end as well.
        let again = settle();
        assert!(again.inserted <= u64::from(ENTRIES - room), "{map_type}: {again:?}");
        settle();
    }
}
