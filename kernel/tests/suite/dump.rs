//! Reading maps of every type, without changing them.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use skep_kernel::dump::{MapReader, PORTION};
use skep_kernel::load::create_map;
use skep_kernel::sys::map::{MMAPABLE, Map, types};
use skep_object::map::MapDef;

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
    let reader = MapReader::new(fd).unwrap();
    let (key, value) = (reader.info().key_size as usize, reader.entry_len());
    let mut found = BTreeMap::new();
    reader
        .read(|keys, values| {
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
        let found = read(fd);
        assert_eq!(found.len(), put.len(), "type {map_type}, flags {flags}");
        assert!(found == put, "type {map_type}, flags {flags}: other values than were put in");
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
            for dump in 0..20 {
                let mut seen = vec![0u8; LASTING as usize];
                let read = reader.read(|keys, _| {
                    for key in keys.chunks_exact(4) {
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

#[test]
fn what_cannot_be_listed_says_why() {
    for (map_type, value_size, entries, says) in [
        (types::RINGBUF, 0, 4096, "read as events"),
        (types::PERF_EVENT_ARRAY, 4, 0, "read as events"),
        (types::BLOOM_FILTER, 8, 100, "cannot list them"),
    ] {
        let key_size = if map_type == types::PERF_EVENT_ARRAY { 4 } else { 0 };
        let reader = MapReader::new(map(map_type, key_size, value_size, entries, 0)).unwrap();
        assert!(reader.refusal().unwrap().contains(says), "{:?}", reader.refusal());
        assert!(reader.read(|_, _| true).unwrap_err().to_string().contains(says));
    }
}
