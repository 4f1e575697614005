//! The kept corpus, replayed. An entry's name says where it comes from: `seed-` of clang's objects, `found-` of what the
//! fuzzer once did harm with and what that was, a hash of what reached code that nothing else did.

use std::alloc::System;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use cap::Cap;

use crate::{btf, parse, relocate};

/// Of all tests at once, beyond which an allocation fails.
const LIMIT: usize = 512 << 20;
/// Many times what an entry takes, of a build that is not optimised, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(30);

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, LIMIT);

fn replay(target: &str, run: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(target);
    let mut entries: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    assert!(!entries.is_empty(), "{} is empty", dir.display());
    for path in entries {
        let bytes = std::fs::read(&path).unwrap();
        let (done, wait) = mpsc::channel();
        // A thread of its own: what never ends must not stop the tests from saying which it was.
        let work = std::thread::spawn(move || {
            run(&bytes);
            let _nobody_waits_any_more = done.send(());
        });
        match wait.recv_timeout(PATIENCE) {
            Ok(()) => work.join().unwrap(),
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("{} takes more than {PATIENCE:?}", path.display()),
            Err(mpsc::RecvTimeoutError::Disconnected) => panic!("{} panics", path.display()),
        }
    }
}

#[test]
fn objects_do_no_harm() {
    replay("parse", parse::run);
}

#[test]
fn relocations_do_no_harm() {
    replay("relocate", relocate::run);
}

#[test]
fn types_do_no_harm() {
    replay("btf", btf::run);
}
