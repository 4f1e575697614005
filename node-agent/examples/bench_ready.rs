//! Waits until an agent has so many programs Ready, connecting again until it answers: for `cargo xtask bench`. Arguments:
//! the agent's socket, and how many. Prints one JSON object: the kernel's ids of their programs, summed up, by which a
//! load that was made again is told from one that was adopted.
#![allow(clippy::unwrap_used)] // a benchmark may end by panic

use std::path::PathBuf;
use std::time::{Duration, Instant};

use skep_proto::v1::inspector_client::InspectorClient;
use skep_proto::v1::{ListProgramsRequest, ProgramReport, State};

const POLL: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut arguments = std::env::args_os().skip(1);
    let socket = PathBuf::from(arguments.next().unwrap());
    let count: usize = arguments.next().unwrap().to_str().unwrap().parse().unwrap();
    let start = Instant::now();
    loop {
        let programs = programs(&socket).await.unwrap_or_default();
        let ready = programs.iter().filter(|program| program.state() == State::Ready).count();
        if ready >= count {
            let ids = programs.iter().flat_map(|program| &program.functions).map(|function| u64::from(function.id));
            println!("{{\"ids\": {}}}", ids.sum::<u64>());
            return;
        }
        let failed = programs.iter().find(|program| program.state() == State::Failed);
        assert!(start.elapsed() < PATIENCE, "{ready} of {count} are Ready; {failed:?}");
        tokio::time::sleep(POLL).await;
    }
}

async fn programs(socket: &std::path::Path) -> Option<Vec<ProgramReport>> {
    let mut client = InspectorClient::new(skep_proto::client::unix(socket).await.ok()?);
    Some(client.list_programs(ListProgramsRequest::default()).await.ok()?.into_inner().programs)
}
