//! Records of ring buffers and perf event arrays: each is handed out once, whole, in order.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use skep_kernel::bpffs::escape;
use skep_kernel::events::{EventReader, Records};
use skep_kernel::hook::Target;
use skep_kernel::sys::{self, program};
use skep_object::kind::Kind;

use super::fixture::{Fixture, hook, object, request};

/// The program, which runs when it is told to, and its map.
fn load(f: &Fixture, function: &str, map: &str) -> (OwnedFd, OwnedFd) {
    let hook = hook(Kind::RawTracepoint, 0, Target::Event("sys_enter".into()));
    let request = request(&object("events"), &[(function, &hook)], &[]);
    f.load("l1", &request);
    let pin = request.variants.iter().next().unwrap().pin();
    let path = f.host.bpffs().load(&f.uid, "l1").join("progs").join(escape(&pin));
    (sys::open_pin(&path).unwrap(), f.host.open_map(&f.uid, "l1", map).unwrap())
}

/// The numbers in records, which are checked.
fn numbers(records: &Records, name: &[u8]) -> Vec<u32> {
    let number = |record: &[u8]| {
        let number = u32::from_ne_bytes(record[..4].try_into().unwrap());
        assert_eq!(&record[4..8], name);
        assert_eq!(u64::from_ne_bytes(record[16..24].try_into().unwrap()), 2 * u64::from(number));
        number
    };
    records.iter().map(number).collect()
}

#[test]
fn a_ring_buffer_hands_out_each_record_once_and_goes_round() {
    let f = Fixture::new();
    let (program, map) = load(&f, "to_ring", "ring");
    let mut reader = EventReader::open(map.try_clone().unwrap()).unwrap();
    assert!(reader.take(1 << 20).unwrap().is_empty());
    // 32 bytes each: the buffer of 4096 goes round several times.
    for round in 0..10u32 {
        (0..100).for_each(|_| assert_eq!(program::run(program.as_fd(), None).unwrap(), 0));
        let wanted: Vec<u32> = (100 * round..100 * (round + 1)).filter(|n| n % 5 != 4).collect();
        assert_eq!(numbers(&reader.take(1 << 20).unwrap(), b"ring"), wanted);
    }
    // A reader that comes later goes on where the last one was, and a bound is kept.
    (0..10).for_each(|_| assert_eq!(program::run(program.as_fd(), None).unwrap(), 0));
    let first = numbers(&reader.take(3 * 24).unwrap(), b"ring");
    drop(reader);
    let mut reader = EventReader::open(map).unwrap();
    let rest = numbers(&reader.take(1 << 20).unwrap(), b"ring");
    assert_eq!((first, rest), (vec![1000, 1001, 1002], vec![1003, 1005, 1006, 1007, 1008]));
    // What does not fit is refused to the program, and nothing of it is seen.
    let refused = (0..200).filter(|_| program::run(program.as_fd(), None).unwrap() == 1).count();
    assert_eq!((refused, reader.take(1 << 20).unwrap().lost), (73, 0));
}

#[test]
fn a_perf_event_array_hands_out_records_of_every_cpu_and_what_it_lost() {
    let f = Fixture::new();
    let (program, map) = load(&f, "to_perf", "perf");
    assert_eq!(program::run(program.as_fd(), None).unwrap(), 1, "nobody reads");
    let mut reader = EventReader::open(map).unwrap();
    for cpu in skep_kernel::cpus::online().unwrap() {
        (0..100).for_each(|_| assert_eq!(program::run(program.as_fd(), Some(cpu)).unwrap(), 0));
    }
    let cpus = skep_kernel::cpus::online().unwrap().len() as u32;
    let mut seen = Vec::new();
    while let records @ Records { lost: 0, .. } = reader.take(1000).unwrap()
        && !records.is_empty()
    {
        seen.extend(numbers(&records, b"perf"));
    }
    seen.sort_unstable();
    assert_eq!(seen, (1..=100 * cpus).collect::<Vec<u32>>());

    // 256 KiB for each CPU, 40 bytes a record.
    let cpu = skep_kernel::cpus::online().unwrap()[0];
    let lost = (0..8000).filter(|_| program::run(program.as_fd(), Some(cpu)).unwrap() == 1).count() as u64;
    assert!(lost > 0);
    let all = reader.take(1 << 20).unwrap();
    assert_eq!(numbers(&all, b"perf").len() as u64 + lost, 8000);
    // The kernel tells of a loss with the next record that fits.
    assert_eq!(program::run(program.as_fd(), Some(cpu)).unwrap(), 0);
    assert_eq!(all.lost + reader.take(1 << 20).unwrap().lost, lost);
}

#[test]
fn who_waits_wakes_when_something_is_written() {
    let f = Fixture::new();
    for (function, map) in [("to_ring", "ring"), ("to_perf", "perf")] {
        let f = if map == "ring" { &f } else { &Fixture::new() };
        let (program, map) = load(f, function, map);
        let mut reader = EventReader::open(map).unwrap();
        let start = Instant::now();
        reader.wait(Duration::from_millis(20)).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(20), "{function}: nothing was written");
        let writer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            program::run(program.as_fd(), None).unwrap()
        });
        reader.wait(Duration::from_secs(20)).unwrap();
        assert_eq!(writer.join().unwrap(), 0);
        assert_eq!(reader.take(1 << 20).unwrap().lengths.len(), 1);
        assert!(start.elapsed() < Duration::from_secs(10), "{function}: it slept until its patience was over");
    }
}

#[test]
fn other_maps_have_no_records() {
    let f = Fixture::new();
    let (_, map) = load(&f, "to_ring", ".bss");
    assert_eq!(EventReader::open(map).unwrap_err().to_string(), "it holds no records");
}
