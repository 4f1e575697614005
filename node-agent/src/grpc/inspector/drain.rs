//! Maps that are emptied: what is taken out is shown to whoever takes it, and an Event says who did.

use std::time::Instant;

use skep_crds::Reason;
use skep_kernel::dump::{MapReader, drain};
use skep_kernel::sys::map::a_type;
use skep_proto::v1::{DrainMapRequest, DumpMapRequest, End, ProgramReport, map_frame::Frame};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use super::dump::{Client, Dump, schema};
use super::{InspectorService, QUEUE, failed};
use crate::apart::apart;
use crate::grpc::auth::DELETE_MAPS;
use crate::grpc::caller::caller;
use crate::grpc::refuse;

impl InspectorService {
    pub(super) async fn drain(&self, request: Request<DrainMapRequest>) -> Result<Response<super::Frames>, Status> {
        let namespace = request.get_ref().program.as_ref().map(|p| p.namespace.clone()).unwrap_or_default();
        self.authorizer.check(&request, &namespace, DELETE_MAPS).await?;
        let who = caller(&request).to_string();
        let request = request.into_inner();
        let report = self.report(request.program.as_ref())?;
        let reader = self.open(&report, &request.map).await?;
        if let Some(why) = drain::refusal(reader.info()) {
            let kind = a_type(reader.info().map_type);
            let message = format!("map {}, {kind}, cannot be drained: {why}", request.map);
            return Err(refuse(Code::FailedPrecondition, Reason::KernelUnsupported, message));
        }
        let (sender, receiver) = mpsc::channel(QUEUE);
        let client = Client::new(sender);
        let shown = DumpMapRequest { decode: request.decode, ..DumpMapRequest::default() };
        let dump = Dump::new(&shown, &report, &reader, client.clone())?;
        let service = self.clone();
        tokio::spawn(async move {
            let Some(place) = client.wait(&service.line).await else { return };
            let drained = apart(service.line.has_several(), move || {
                let taken = take(dump, &request, &report, &reader);
                drop(place);
                if taken > 0 {
                    service.say(&report, format!("{who} took {taken} entries out of map {}", request.map));
                }
            });
            if let Err(error) = drained.await {
                client.tell(Err(failed(error))).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// How many were taken out. Blocks.
fn take(mut dump: Dump, request: &DrainMapRequest, report: &ProgramReport, reader: &MapReader) -> u64 {
    let (start, client, mut taken) = (Instant::now(), dump.client(), 0);
    if !client.put(Frame::Schema(schema(report, &request.map, reader))) {
        return 0;
    }
    let drained = drain::drain(reader, request.limit, |keys, values| {
        taken += values.len().checked_div(reader.entry_len()).unwrap_or(0) as u64;
        dump.send_entries(reader, keys, values)
    });
    match drained {
        Ok(()) => {
            let elapsed_us = start.elapsed().as_micros() as u64;
            client.put(Frame::End(End { count: taken, elapsed_us, read: taken, ..End::default() }))
        }
        Err(e) => client.end(Err(failed(format!("map {}: {e}; what was shown is taken out", request.map)))),
    };
    taken
}
