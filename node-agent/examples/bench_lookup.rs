//! How long single lookups take through the Inspector of a node: for `cargo xtask bench`. Prints one JSON object,
//! microseconds of each. Arguments: the agent's socket, namespace, program, a map with u64 keys from 0 on, how many lookups.
#![allow(clippy::unwrap_used)] // a benchmark may end by panic

use std::path::Path;
use std::time::Instant;

use skep_proto::v1::inspector_client::InspectorClient;
use skep_proto::v1::{LookupMapRequest, ProgramRef, lookup_map_request::Key};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, namespace, name, map, lookups] = <[String; 5]>::try_from(arguments).unwrap();
    let mut client = InspectorClient::new(skep_proto::client::unix(Path::new(&socket)).await.unwrap());
    let program = Some(ProgramRef { namespace: namespace.clone(), name: name.clone() });
    let mut times = Vec::new();
    for key in 0..lookups.parse::<u64>().unwrap() {
        let key = Some(Key::Raw(key.to_ne_bytes().to_vec().into()));
        let request = LookupMapRequest { program: program.clone(), map: map.clone(), key, schema: false };
        let start = Instant::now();
        assert!(client.lookup_map(request).await.unwrap().into_inner().found);
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    println!("{{\"us\": {times:?}}}");
}
