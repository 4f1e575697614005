//! Clients that dump a map of a node over and over, all at once, and do nothing with it: for `cargo xtask bench`. Says
//! `ready` when each has had an answer; when standard input ends, prints one JSON object: how many dumps were whole.
//! Arguments: the agent's socket, namespace, program, map, how many clients.
#![allow(clippy::unwrap_used)] // a benchmark may end by panic

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use skep_proto::v1::inspector_client::InspectorClient;
use skep_proto::v1::map_frame::Frame;
use skep_proto::v1::{DumpMapRequest, ProgramRef};
use tokio::sync::{Semaphore, oneshot};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, namespace, name, map, clients] = <[String; 5]>::try_from(arguments).unwrap();
    let clients: u32 = clients.parse().unwrap();
    let (answered, whole) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let channel = skep_proto::client::unix(Path::new(&socket)).await.unwrap();
    for _ in 0..clients {
        let (mut client, answered, whole) = (InspectorClient::new(channel.clone()), answered.clone(), whole.clone());
        let program = Some(ProgramRef { namespace: namespace.clone(), name: name.clone() });
        let request = DumpMapRequest { program, map: map.clone(), ..DumpMapRequest::default() };
        tokio::spawn(async move {
            let mut first = true;
            loop {
                let mut stream = client.dump_map(request.clone()).await.unwrap().into_inner();
                while let Some(frame) = stream.message().await.unwrap() {
                    if std::mem::take(&mut first) {
                        answered.add_permits(1);
                    }
                    if matches!(frame.frame, Some(Frame::End(_))) {
                        whole.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
    }
    let _all = answered.acquire_many(clients).await.unwrap();
    println!("ready");
    let (sender, ended) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = sender.send(());
    });
    let _ = ended.await;
    println!("{{\"whole\": {}}}", whole.load(Ordering::Relaxed));
    std::process::exit(0);
}
