//! Reading maps of every type, without changing them.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use skep_kernel::dump::{MapReader, PORTION};
use skep_kernel::load::create_map;
use skep_kernel::sys::map::{self, MMAPABLE, Map, types};
use skep_kernel::sys::mapping::Mapping;
use skep_object::map::MapDef;

use super::fixture::build;

fn map(map_type: u32, key_size: u32, value_size: u32, max_entries: u32, flags: u32) -> OwnedFd {
    let definition = MapDef {
        name: "dumped".into(),
        section: 0,
        offset: 0,
        map_type,
        key_size,
        value_size,
        max_entries,
        flags,
        extra: 0,
        numa_node: None,
        key_type: 0,
        value_type: 0,
        inner: None,
        data: None,
        values_offset: None,
    };
    create_map(&definition, None).unwrap()
}

fn read(fd: OwnedFd) -> BTreeMap<Vec<u8>, Vec<u8>> {
    read_by(fd, 1)
}

fn read_by(fd: OwnedFd, threads: u32) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let reader = MapReader::new(fd).unwrap();
    let (key, value) = (reader.key_len(), reader.entry_len());
    let mut found = BTreeMap::new();
    reader
        .read_by(threads, |portion| {
            let (keys, values) = (portion.keys, portion.values);
            assert!(keys.len() + values.len() <= PORTION, "a portion of {} bytes", keys.len() + values.len());
            for (key, value) in keys.chunks_exact(key).zip(values.chunks_exact(value)) {
                assert!(found.insert(key.to_vec(), value.to_vec()).is_none(), "{key:?} comes twice");
            }
            true
        })
        .unwrap();
    found
}

fn key(number: u32, size: usize) -> Vec<u8> {
    // The prefix length of a trie comes first.
    if size == 8 { [32u32.to_ne_bytes(), number.to_be_bytes()].concat() } else { number.to_ne_bytes().to_vec() }
}

#[test]
fn every_type_with_keys_gives_what_was_put_in() {
    const NO_PREALLOC: u32 = 1;
    for (map_type, key_size, value_size, flags) in [
        (types::HASH, 4, 24, 0),
        (types::HASH, 4, 24, NO_PREALLOC),
        (types::LRU_HASH, 4, 8, 0),
        (types::LPM_TRIE, 8, 12, NO_PREALLOC),
        (types::ARRAY, 4, 12, 0),
        (types::ARRAY, 4, 12, MMAPABLE),
        (types::ARRAY, 4, 16, MMAPABLE),
        (types::ARRAY, 4, 300_000, MMAPABLE),
        (types::PERCPU_HASH, 4, 12, 0),
        (types::PERCPU_ARRAY, 4, 12, 0),
        (types::LRU_PERCPU_HASH, 4, 8, 0),
    ] {
        let entries: u32 = if value_size > 1000 { 7 } else { 10_000 };
        let is_array = matches!(map_type, types::ARRAY | types::PERCPU_ARRAY);
        // An array has all its entries always; of the others more fit than there are.
        let fd = map(map_type, key_size, value_size, if is_array { entries } else { entries * 4 }, flags);
        let writer = Map::new(fd.try_clone().unwrap()).unwrap();
        let mut put = BTreeMap::new();
        for number in 0..entries {
            let mut value = vec![0; writer.value_len()];
            // Padding between the values of CPUs stays as the kernel has it.
            let stride = if writer.info().is_per_cpu() { value_size.next_multiple_of(8) } else { value_size } as usize;
            for (cpu, value) in value.chunks_mut(stride).enumerate() {
                value[..4].copy_from_slice(&(number + 1 + cpu as u32).to_ne_bytes());
                value[value_size as usize - 1] = 7;
            }
            let key = key(number, key_size as usize);
            writer.update(&key, &value, 0).unwrap();
            put.insert(key, value);
        }
        // The number of threads changes nothing; nor do more of them than there are buckets for.
        for threads in [1, 3, 64] {
            let found = read_by(fd.try_clone().unwrap(), threads);
            assert_eq!(found.len(), put.len(), "type {map_type}, flags {flags}, {threads} threads");
            assert!(found == put, "type {map_type}, flags {flags}, {threads} threads: other values than were put in");
        }
    }
}

/// What is there throughout is seen exactly once, whatever happens around it.
#[test]
fn a_hash_that_changes_at_full_speed_shows_every_lasting_key_once() {
    const LASTING: u32 = 100_000;
    const NO_PREALLOC: u32 = 1;
    for flags in [0, NO_PREALLOC] {
        let fd = map(types::HASH, 4, 8, 2 * LASTING, flags);
        let writer = Map::new(fd.try_clone().unwrap()).unwrap();
        for key in 0..LASTING {
            writer.update(&key.to_ne_bytes(), &1u64.to_ne_bytes(), 0).unwrap();
        }
        let (stop, reader) = (AtomicBool::new(false), MapReader::new(fd).unwrap());
        let writes = std::thread::scope(|scope| {
            let writing = scope.spawn(|| {
                let (mut random, mut writes) = (fastrand::Rng::with_seed(7), 0u64);
                while !stop.load(Ordering::Relaxed) {
                    // A lasting one is updated; others come and go.
                    writer.update(&random.u32(..LASTING).to_ne_bytes(), &random.u64(..).to_ne_bytes(), 0).unwrap();
                    let passing = random.u32(LASTING..2 * LASTING - 100).to_ne_bytes();
                    if random.bool() {
                        writer.update(&passing, &0u64.to_ne_bytes(), 0).unwrap();
                    } else {
                        writer.delete(&passing).unwrap();
                    }
                    writes += 2;
                }
                writes
            });
            for dump in 0..20u32 {
                let mut seen = vec![0u8; LASTING as usize];
                // By one, and by several with their seams.
                let read = reader.read_by(1 + dump % 2 * 6, |portion| {
                    for key in portion.keys.chunks_exact(4) {
                        let key = u32::from_ne_bytes(key.try_into().unwrap());
                        if let Some(seen) = seen.get_mut(key as usize) {
                            *seen += 1;
                        }
                    }
                    true
                });
                read.unwrap();
                let wrong = seen.iter().position(|times| *times != 1);
                if let Some(key) = wrong {
                    stop.store(true, Ordering::Relaxed);
                    panic!("flags {flags}, dump {dump}: key {key} came {} times", seen[key]);
                }
            }
            stop.store(true, Ordering::Relaxed);
            writing.join().unwrap()
        });
        assert!(writes > 10_000, "nothing happened around it: {writes} writes");
    }
}

#[test]
fn a_queue_and_a_stack_show_their_head_and_keep_it() {
    for (map_type, head) in [(types::QUEUE, 1u64), (types::STACK, 3)] {
        let fd = map(map_type, 0, 8, 8, 0);
        let writer = Map::new(fd.try_clone().unwrap()).unwrap();
        let reader = MapReader::new(fd).unwrap();
        assert!(reader.is_head_only());
        let heads = || {
            let mut heads = Vec::new();
            reader.read(|keys, values| {
                assert!(keys.is_empty());
                heads.push(u64::from_ne_bytes(values.try_into().unwrap()));
                true
            })?;
            std::io::Result::Ok(heads)
        };
        assert!(heads().unwrap().is_empty(), "nothing is in it");
        for value in 1..=3u64 {
            writer.update(&[], &value.to_ne_bytes(), 0).unwrap();
        }
        assert_eq!(heads().unwrap(), [head]);
        assert_eq!(heads().unwrap(), [head], "looking took it out");
    }
}

/// Its pages are made by whoever touches them first: looking may not.
#[test]
fn an_arena_shows_the_pages_that_are_there() {
    const PAGE: usize = 4096;
    const PAGES: u32 = 1000;
    let fd = map(types::ARENA, 0, 0, PAGES, MMAPABLE);
    let again = || fd.try_clone().unwrap();
    let unmapped = MapReader::new(again()).unwrap().read(|_, _| true).unwrap_err();
    assert!(unmapped.to_string().contains("no address yet"), "{unmapped}");
    let memory = Mapping::new(fd.as_fd(), 0, PAGES as usize * PAGE, true).unwrap();
    assert!(read(again()).is_empty());
    let touched = [3usize, 4, 11, 700, 999];
    for page in touched {
        let bytes: Vec<u8> = (0..PAGE).map(|at| (at * page) as u8).collect();
        assert!(memory.write(page * PAGE, &bytes));
    }
    for _ in 0..2 {
        let found = read(again());
        let address = |key: &[u8]| u64::from_ne_bytes(key.try_into().unwrap());
        let mut pages: Vec<(u64, &Vec<u8>)> = found.iter().map(|(key, bytes)| (address(key), bytes)).collect();
        pages.sort();
        assert_eq!(pages.len(), touched.len(), "looking made pages, or missed some");
        for ((at, bytes), page) in pages.iter().zip(touched) {
            assert_eq!(at - pages[0].0, ((page - touched[0]) * PAGE) as u64);
            assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == (at * page) as u8), "page {page}");
        }
    }
    let reader = MapReader::new(again()).unwrap();
    let (mut keys, mut place) = (Vec::new(), None);
    // A place to go on at, and single pages.
    for _ in 0..touched.len() {
        let read = reader.read_from(place.take(), |portion| {
            keys.push(portion.keys[..8].to_vec());
            place = Some(portion.after(1));
            false
        });
        read.unwrap();
    }
    keys.dedup();
    assert_eq!(keys.len(), touched.len());
    assert_eq!(reader.lookup(&keys[2]).unwrap().unwrap()[1], 11);
    let absent = u64::from_ne_bytes(keys[2].clone().try_into().unwrap()) + PAGE as u64;
    assert_eq!(reader.lookup(&absent.to_ne_bytes()).unwrap(), None);
}

/// A set of operations, registered until this is dropped.
struct Registered {
    id: u32,
}

impl Registered {
    fn new(object: &[u8], name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("operations.o");
        std::fs::write(&file, object).unwrap();
        let output = Command::new("bpftool").args(["struct_ops", "register"]).arg(file).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let of_them = |id: &u32| {
            let info = map::by_id(*id).and_then(|fd| map::info(fd.as_fd()));
            info.is_ok_and(|info| info.map_type == types::STRUCT_OPS && info.name == name)
        };
        Registered { id: map::all_ids().unwrap().into_iter().rev().find(of_them).unwrap() }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let _status = Command::new("bpftool").args(["struct_ops", "unregister", "id", &self.id.to_string()]).status();
    }
}

/// The value's type is the kernel's, of which no object has a description.
#[test]
fn operations_that_are_registered_are_shown_by_name() {
    let operations = Registered::new(&build("congestion", &[]), "skep_reno");
    let reader = MapReader::new(map::by_id(operations.id).unwrap()).unwrap();
    let mut shown = Vec::new();
    let read = reader.read(|keys, values| {
        shown.push((reader.key.decode(keys), reader.value.decode(values)));
        true
    });
    read.unwrap();
    let [(key, value)] = &shown[..] else { panic!("{shown:?}") };
    assert_eq!(*key, 0);
    assert_eq!(value["data"]["name"], "skep_reno", "{value}");
    let output =
        Command::new("bpftool").args(["-j", "map", "dump", "id", &operations.id.to_string()]).output().unwrap();
    let theirs: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let theirs = &theirs[0]["formatted"]["value"]["data"];
    for function in ["ssthresh", "cong_avoid", "undo_cwnd", "release"] {
        let theirs = theirs[function].as_u64().unwrap_or_else(|| panic!("{theirs}"));
        assert_eq!(value["data"][function], format!("{theirs:#x}"), "{function}");
    }
}

#[test]
fn what_cannot_be_listed_says_why() {
    for (map_type, value_size, entries, says) in [
        (types::RINGBUF, 0, 4096, "follow them as events"),
        (types::PERF_EVENT_ARRAY, 4, 0, "follow them as events"),
        (types::BLOOM_FILTER, 8, 100, "cannot list them"),
    ] {
        let key_size = if map_type == types::PERF_EVENT_ARRAY { 4 } else { 0 };
        let reader = MapReader::new(map(map_type, key_size, value_size, entries, 0)).unwrap();
        assert!(reader.refusal().unwrap().contains(says), "{:?}", reader.refusal());
        assert!(reader.read(|_, _| true).unwrap_err().to_string().contains(says));
    }
}
