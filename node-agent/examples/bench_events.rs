//! How many records of a ring buffer reach a client in a second while a program writes them: for `cargo xtask bench`.
//! Prints one JSON object. Arguments: the agent's socket, namespace, program, the ring buffer, the function that writes a
//! record each time it runs, how often it runs.
#![allow(clippy::unwrap_used)] // a benchmark may end by panic

use std::path::Path;
use std::time::{Duration, Instant};

use skep_proto::v1::event_frame::Frame;
use skep_proto::v1::inspector_client::InspectorClient;
use skep_proto::v1::{ProgramRef, TailEventsRequest, TestProgramRequest};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, namespace, name, map, function, runs] = <[String; 6]>::try_from(arguments).unwrap();
    let connect = || async { InspectorClient::new(skep_proto::client::unix(Path::new(&socket)).await.unwrap()) };
    let program = Some(ProgramRef { namespace, name });
    let runs: u32 = runs.parse().unwrap();
    let mut client = connect().await.max_decoding_message_size(usize::MAX);
    let request = TailEventsRequest { program: program.clone(), map, consume: true, ..TailEventsRequest::default() };
    let mut stream = client.tail_events(request).await.unwrap().into_inner();
    assert!(matches!(stream.message().await.unwrap().unwrap().frame, Some(Frame::Schema(_))));
    let mut writer = connect().await;
    let packets = vec![vec![0u8; 64].into()];
    let request = TestProgramRequest { program, function, packets, live: true, repeat: runs, contexts: Vec::new() };
    let writing = tokio::spawn(async move { writer.test_program(request).await.unwrap() });
    let start = Instant::now();
    let (mut received, mut client_lost, mut map_lost, mut last) = (0u64, 0u64, 0u64, start);
    while received + client_lost + map_lost < u64::from(runs) {
        // What is counted as dropped is told once a second.
        let Ok(frame) = tokio::time::timeout(Duration::from_secs(5), stream.message()).await else { break };
        let Some(Frame::Raw(batch)) = frame.unwrap().unwrap().frame else { continue };
        received += batch.lengths.len() as u64;
        if !batch.lengths.is_empty() {
            last = Instant::now();
        }
        let lost = batch.lost.unwrap_or_default();
        client_lost += lost.client;
        map_lost += lost.kernel;
    }
    writing.await.unwrap();
    let seconds = (last - start).as_secs_f64();
    println!(
        "{{\"received\": {received}, \"client_lost\": {client_lost}, \"map_lost\": {map_lost}, \"seconds\": {seconds}}}"
    );
}
