//! How many programs a second are loaded, attached and pinned through this crate, in one process: for `cargo xtask
//! bench`. Prints one JSON object. Arguments: an object with a cgroup_skb function `count`, and how many programs.
#![allow(clippy::unwrap_used)] // a benchmark may end by panic

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use skep_kernel::hook::{Hook, Options, Target};
use skep_kernel::seam::{Kernel, LoadRequest, Merge, ProgramAt, Variant};
use skep_kernel::{Host, bpffs, probe};
use skep_object::Object;
use skep_object::kind::{Kind, attach};

/// The kernel takes 64 programs per cgroup and hook.
const PER_CGROUP: usize = 50;
const ROUNDS: usize = 3;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let bytes = std::fs::read(arguments.next().unwrap()).unwrap();
    let count: usize = arguments.next().unwrap().parse().unwrap();
    let name = format!("skep-bench-{}", std::process::id());
    let root = Path::new("/sys/fs/bpf").join(&name);
    let state = std::env::temp_dir().join(&name);
    let top = probe::cgroup2_mount().unwrap().join(&name);
    std::fs::create_dir(&top).unwrap();
    let mut rates: Vec<f64> = (0..ROUNDS).map(|_| round(&bytes, count, &root, &state, &top)).collect();
    rates.sort_by(f64::total_cmp);
    std::fs::remove_dir(&top).unwrap();
    println!("{{\"programs_per_s\": {:.0}}}", rates[ROUNDS / 2]);
}

fn round(bytes: &[u8], count: usize, root: &Path, state: &Path, top: &Path) -> f64 {
    let host = Host::open(root, state).unwrap();
    let hooks: Vec<Hook> = (0..count.div_ceil(PER_CGROUP)).map(|i| cgroup(&top.join(i.to_string()))).collect();
    let start = Instant::now();
    for i in 0..count {
        let hook = &hooks[i / PER_CGROUP];
        let object = Arc::new(Object::parse(bytes).unwrap());
        let variant = Variant { function: "count".into(), attributes: hook.load_attributes("cgroup_skb/egress") };
        let program = ProgramAt { load: "l".into(), pin: variant.pin() };
        let maps = object.maps().to_vec();
        let request = LoadRequest {
            object,
            maps,
            variants: [variant].into(),
            keep: [("counts".to_owned(), Merge::default())].into(),
            share: [].into(),
        };
        let uid = format!("u{i}");
        host.load(&uid, "l", &request).unwrap();
        host.attach(&uid, &hook.link_name("count"), hook, &program).unwrap();
    }
    let rate = count as f64 / start.elapsed().as_secs_f64();
    for i in 0..count {
        host.remove_program(&format!("u{i}")).unwrap();
    }
    for i in 0..hooks.len() {
        std::fs::remove_dir(top.join(i.to_string())).unwrap();
    }
    bpffs::remove_tree(root).unwrap();
    rate
}

fn cgroup(path: &Path) -> Hook {
    std::fs::create_dir(path).unwrap();
    let id = std::fs::metadata(path).unwrap().ino();
    let target = Target::Cgroup { path: path.to_owned(), id };
    Hook {
        kind: Kind::CgroupSkb,
        attach_type: attach::CGROUP_INET_EGRESS,
        target,
        options: Options::default(),
        gate: None,
    }
}
