//! How long a manifest takes to run on a standalone node, from its write to Ready in the Inspector: for `cargo xtask
//! bench`. Prints one JSON object, milliseconds in the order of the manifests. Arguments: the agent's socket, the
//! directory of manifests, and the files to put there, one after the other. Each is named `<program>.yaml`.
#![allow(clippy::unwrap_used)] // a benchmark may end by panic

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use skep_proto::v1::inspector_client::InspectorClient;
use skep_proto::v1::{ListProgramsRequest, State};
use tonic::transport::Channel;

const POLL: Duration = Duration::from_millis(1);
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (socket, manifests) = (arguments.next().unwrap(), arguments.next().unwrap());
    let mut client = InspectorClient::new(skep_proto::client::unix(&socket).await.unwrap());
    let mut times = Vec::new();
    for file in arguments {
        times.push(one(&mut client, &file, &manifests).await.as_secs_f64() * 1e3);
    }
    println!("{{\"ms\": {times:?}}}");
}

async fn one(client: &mut InspectorClient<Channel>, file: &Path, manifests: &Path) -> Duration {
    let program = file.file_stem().unwrap().to_str().unwrap();
    let start = Instant::now();
    // As an editor does it: written aside, then renamed.
    std::fs::rename(file, manifests.join(file.file_name().unwrap())).unwrap();
    loop {
        let all = client.list_programs(ListProgramsRequest::default()).await.unwrap().into_inner().programs;
        let report = all.iter().find(|report| report.name == program);
        if report.is_some_and(|report| report.state() == State::Ready) {
            return start.elapsed();
        }
        assert!(start.elapsed() < PATIENCE, "{program} does not become Ready: {report:?}");
        tokio::time::sleep(POLL).await;
    }
}
