//! How long a whole map takes through the Inspector of a node, entries packed and not decoded: for `cargo xtask bench`.
//! Prints one JSON object; `raw_ms` is what the kernel's batches alone take, in this process and without an agent.
//! Arguments: the agent's socket, namespace, program, map, and how many entries the map is to hold: when it holds fewer
//! keys than that, u64 keys from 0 on are written first, in the kernel and not through Skep.
#![allow(clippy::unwrap_used)] // a benchmark may end by panic

use std::path::Path;
use std::time::Instant;

use skep_kernel::sys::map::{self, Map};
use skep_proto::v1::inspector_client::InspectorClient;
use skep_proto::v1::map_frame::Frame;
use skep_proto::v1::{DumpMapRequest, ListMapsRequest, ProgramRef};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, namespace, name, map, entries] = &arguments[..] else { usage() };
    let (socket, entries) = (Path::new(socket), entries.parse::<u64>().unwrap());
    let id = map_id(socket, namespace, name, map).await;
    fill(id, entries);

    let start = Instant::now();
    let mut client = InspectorClient::new(skep_proto::client::unix(socket).await.unwrap());
    let program = Some(ProgramRef { namespace: namespace.clone(), name: name.clone() });
    let request = DumpMapRequest { program, map: map.clone(), ..DumpMapRequest::default() };
    let mut stream = client.dump_map(request).await.unwrap().into_inner();
    let (mut bytes, mut seen, mut end) = (0, 0, None);
    while let Some(frame) = stream.message().await.unwrap() {
        match frame.frame {
            Some(Frame::Raw(raw)) => {
                seen += u64::from(raw.count);
                bytes += raw.keys.len() + raw.values.len();
            }
            Some(Frame::End(last)) => end = Some(last),
            _ => {}
        }
    }
    let ms = start.elapsed().as_secs_f64() * 1e3;
    assert_eq!(end.unwrap().count, seen, "the agent sent more entries than arrived");
    let raw = raw(id);
    println!("{{\"map_id\": {id}, \"ms\": {ms:.1}, \"raw_ms\": {raw:.1}, \"entries\": {seen}, \"bytes\": {bytes}}}");
}

/// One batch after the other, and nothing done with them: milliseconds.
fn raw(id: u32) -> f64 {
    const BATCH: u32 = 100_000;
    let map = Map::new(map::by_id(id).unwrap()).unwrap();
    let (mut cursor, mut keys, mut values) = (None, Vec::new(), Vec::new());
    let start = Instant::now();
    while !map.lookup_batch(&mut cursor, BATCH, &mut keys, &mut values).unwrap() {}
    start.elapsed().as_secs_f64() * 1e3
}

fn usage() -> ! {
    eprintln!("usage: bench_dump SOCKET NAMESPACE PROGRAM MAP ENTRIES");
    std::process::exit(2)
}

async fn map_id(socket: &Path, namespace: &str, name: &str, map: &str) -> u32 {
    let mut client = InspectorClient::new(skep_proto::client::unix(socket).await.unwrap());
    let request = ListMapsRequest { namespace: namespace.into(), name: name.into() };
    let maps = client.list_maps(request).await.unwrap().into_inner().maps;
    maps.iter().find(|info| info.name == map).unwrap().id
}

fn fill(id: u32, entries: u64) {
    let map = Map::new(map::by_id(id).unwrap()).unwrap();
    let last = entries.saturating_sub(1).to_ne_bytes();
    // An array has all its entries.
    if map.info().key_size < 8 || map.lookup(&last).unwrap().is_some() {
        return;
    }
    for key in 0..entries {
        let value: Vec<u8> = (key * 3).to_ne_bytes().repeat(map.value_len() / 8);
        map.update(&key.to_ne_bytes(), &value, 0).unwrap();
    }
}
