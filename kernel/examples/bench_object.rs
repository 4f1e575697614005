//! How long a large object takes from its bytes to loaded programs, for the first time and again, and how long the kernel
//! is asked what it can do: for `cargo xtask bench`. Prints one JSON object. Argument: an object of raw_tp programs.
#![allow(clippy::unwrap_used)] // a benchmark may end by panic

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use skep_kernel::hook::{Hook, Options, Target};
use skep_kernel::seam::{Kernel, LoadRequest, Variant};
use skep_kernel::{Host, bpffs, features};
use skep_object::Object;
use skep_object::kind::Kind;

fn main() {
    let bytes = std::fs::read(std::env::args().nth(1).unwrap()).unwrap();
    let name = format!("skep-bench-{}", std::process::id());
    let root = Path::new("/sys/fs/bpf").join(&name);
    let state = std::env::temp_dir().join(&name);

    let start = Instant::now();
    let kinds = features::kinds().len();
    let features_ms = ms(start);

    let host = Host::open(&root, &state).unwrap();
    // The agent does it once.
    let start = Instant::now();
    host.types().unwrap();
    let types_ms = ms(start);
    let start = Instant::now();
    let object = Arc::new(Object::parse(bytes).unwrap());
    let programs = load(&host, "u1", &object);
    let first_ms = ms(start);
    // Another program of the same image.
    let start = Instant::now();
    load(&host, "u2", &object);
    let again_ms = ms(start);
    for uid in ["u1", "u2"] {
        host.remove_program(uid).unwrap();
    }
    bpffs::remove_tree(&root).unwrap();
    println!(
        "{{\"programs\": {programs}, \"first_ms\": {first_ms}, \"again_ms\": {again_ms}, \"types_ms\": {types_ms}, \"kinds\": {kinds}, \"features_ms\": {features_ms}}}"
    );
}

fn ms(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

/// All of its programs; how many they are.
fn load(host: &Host, uid: &str, object: &Arc<Object>) -> usize {
    let hook = Hook {
        kind: Kind::RawTracepoint,
        attach_type: 0,
        target: Target::Event("sys_enter".into()),
        options: Options::default(),
        gate: None,
    };
    let variant = |function: &str| Variant {
        function: function.to_owned(),
        attributes: hook.load_attributes("raw_tp/sys_enter"),
    };
    let request = LoadRequest {
        object: object.clone(),
        maps: object.maps().to_vec(),
        variants: object.programs().map(|function| variant(&function.name)).collect(),
        keep: [].into(),
        share: [].into(),
    };
    host.load(uid, "l", &request).unwrap();
    request.variants.len()
}
