//! What is left of a removed program, and who holds it.

use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use skep_kernel::remains::{What, held_by};
use skep_kernel::seam::Kernel;
use skep_kernel::sys::map::Map;
use skep_kernel::sys::{self, program};
use skep_kernel::{bpffs, netns};
use skep_object::kind::{Kind, attach};

use super::fixture::{Fixture, hook, object, request};

/// Until nothing, or only what is held, remains: the kernel frees a moment later.
fn settled(f: &Fixture, before: &skep_kernel::seam::Observed, count: usize) -> Vec<skep_kernel::seam::Remain> {
    for _ in 0..500 {
        let remains = f.host.remains(before);
        if remains.len() == count {
            return remains;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    f.host.remains(before)
}

#[test]
fn what_somebody_holds_is_told_with_its_holder() {
    let mut f = Fixture::new();
    let hook = hook(Kind::Xdp, 0, f.lo());
    let request = request(&object("net"), &[("count_xdp", &hook)], &[]);
    f.load("l1", &request);
    f.attach("l1", "count_xdp", &request, &hook);
    let before = f.host.observe(&f.uid).unwrap();
    assert!(f.host.remains(&before).len() >= 3, "all of it is there");
    let held = f.host.open_map(&f.uid, "l1", "hits").unwrap();
    let id = before.loads["l1"].programs.values().next().unwrap().id;
    let program = program::by_id(id).unwrap();
    f.host.remove_program(&f.uid).unwrap();

    let remains = settled(&f, &before, 2 + before.loads["l1"].maps.len() - 1);
    let texts = held_by(&remains);
    let me = format!("(pid {})", std::process::id());
    assert_eq!((remains[0].what, remains[0].name.as_str(), remains[0].id), (What::Program, "count_xdp", id));
    assert!(
        texts[0].starts_with(&format!("program count_xdp (id {id}), held by ")) && texts[0].contains(&me),
        "{texts:?}"
    );
    let hits = texts.iter().find(|text| text.starts_with("map hits")).unwrap();
    assert!(hits.contains(&me) && hits.contains(&format!("program count_xdp (id {id})")), "{hits}");

    drop(program);
    assert_eq!(settled(&f, &before, 1).len(), 1, "the map, and it alone");
    drop(held);
    assert_eq!(settled(&f, &before, 0), []);
}

#[test]
fn a_pin_elsewhere_is_not_known_and_said_so() {
    let mut f = Fixture::new();
    let hook = hook(Kind::Xdp, 0, f.lo());
    let request = request(&object("net"), &[("count_xdp", &hook)], &[]);
    f.load("l1", &request);
    let before = f.host.observe(&f.uid).unwrap();
    let elsewhere = f.host.bpffs().root().join("elsewhere");
    sys::pin(std::os::fd::AsFd::as_fd(&f.host.open_map(&f.uid, "l1", "hits").unwrap()), &elsewhere).unwrap();
    f.host.remove_program(&f.uid).unwrap();
    let texts = held_by(&settled(&f, &before, 1));
    assert!(
        texts[0].ends_with("held by something that the kernel does not name, such as a pin elsewhere"),
        "{texts:?}"
    );
    bpffs::unpin(&elsewhere).unwrap();
}

#[test]
fn sockets_leave_the_maps_of_a_removed_program_although_somebody_holds_them() {
    let mut f = Fixture::new();
    let hook = hook(Kind::SkLookup, attach::SK_LOOKUP, f.netns());
    let request = request(&object("sock"), &[("look", &hook)], &[]);
    f.load("l1", &request);
    let maps = ["sockets", "by_key"].map(|name| Map::new(f.host.open_map(&f.uid, "l1", name).unwrap()).unwrap());
    let connection = netns::within(Some(&f.netns_path()), || {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let client = TcpStream::connect(listener.local_addr()?)?;
        Ok((client, listener.accept()?.0))
    })
    .unwrap();
    for (map, socket) in maps.iter().zip([connection.0.as_raw_fd(), connection.1.as_raw_fd()]) {
        map.update(&0u32.to_ne_bytes(), &(socket as u64).to_ne_bytes(), 0).unwrap();
        assert!(map.lookup(&0u32.to_ne_bytes()).unwrap().is_some());
    }
    f.host.remove_program(&f.uid).unwrap();
    for map in &maps {
        assert_eq!(map.lookup(&0u32.to_ne_bytes()).unwrap(), None);
    }
}
