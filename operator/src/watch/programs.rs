//! All EbpfPrograms.

use futures::StreamExt;
use kube::api::Api;
use kube::core::DeserializeGuard;
use kube::runtime::watcher::{Config, Event as Watch};
use skep_crds::EbpfProgram;
use tokio::sync::mpsc;

use super::follow;
use crate::index::Event;

/// Tells of each, and when the list is complete. One that does not decode is told of too.
pub async fn run(client: kube::Client, events: mpsc::Sender<Event>) {
    let api: Api<DeserializeGuard<EbpfProgram>> = Api::all(client);
    let mut stream = std::pin::pin!(follow(api, Config::default(), "EbpfPrograms"));
    while let Some(event) = stream.next().await {
        let event = match event {
            Watch::Init => Event::ProgramsBegin,
            Watch::InitApply(object) | Watch::Apply(object) => Event::Program(Box::new(object)),
            Watch::InitDone => Event::ProgramsEnd,
            Watch::Delete(DeserializeGuard(object)) => {
                let meta = object.map_or_else(|invalid| invalid.metadata, |object| object.metadata);
                Event::ProgramGone(meta.uid.unwrap_or_default())
            }
        };
        if events.send(event).await.is_err() {
            return;
        }
    }
}
