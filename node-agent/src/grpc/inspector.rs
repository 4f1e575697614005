//! Looking into the node's programs and maps. Reading never changes what is read; memory per stream is bounded by the
//! frames in its queue.

mod drain;
mod drops;
mod dump;
mod events;
mod insns;
mod iterators;
mod line;
mod names;
mod output;
mod programs;
mod records;
mod trial;
mod types;
mod watch;
mod write;

use std::pin::Pin;
use std::sync::Arc;

use skep_crds::Reason;
use skep_kernel::Host;
use skep_kernel::dump::{MapReader, Types};
use skep_kernel::sys::map::{MapInfo as KernelMapInfo, a_type, type_name};
use skep_proto::v1::inspector_server::Inspector;
use skep_proto::v1::{
    DeleteMapEntriesRequest, DeleteMapEntriesResponse, DescribeProgramsRequest, DescribeProgramsResponse,
    DrainMapRequest, DumpInstructionsRequest, DumpMapRequest, ListMapsRequest, ListMapsResponse, ListProgramsRequest,
    ListProgramsResponse, LookupMapRequest, LookupMapResponse, MapFrame, MapInfo, NameIdsRequest, NameIdsResponse,
    ProgramRef, ProgramReport, ReadIteratorRequest, TailEventsRequest, TailOutputRequest, TestProgramRequest,
    TestProgramResponse, UpdateMapRequest, UpdateMapResponse, VerifyProgramRequest, WatchMapRequest, WatchStatsRequest,
    WriteRecordsRequest, WriteRecordsResponse, datum::Datum, lookup_map_request::Key,
};
use skep_proto::value::from_json;
use tokio::sync::{Mutex, Semaphore, mpsc};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use super::auth::{Authorizer, GET_MAPS, UPDATE_MAPS};
use super::caller::caller;
use super::refuse;
use crate::actor::Shared;
use crate::events::Readers;
use crate::images::blocking;
pub use line::Line;
pub use programs::Counting;

/// Frames that wait for a slow reader; then reading the map waits.
const QUEUE: usize = 4;

/// Maps that are read at once: each takes a thread that blocks as long as its client reads slowly.
pub const READ_AT_ONCE: usize = 8;

/// Clients for which instructions are listed at once.
pub const LISTED_AT_ONCE: usize = 2;

/// Clients that may follow bpf_printk at once: each has trace buffers of its own, of a megabyte and more for each CPU.
pub const PRINTING_AT_ONCE: usize = 4;

/// A stream of a map.
type Frames = Pin<Box<dyn Stream<Item = Result<MapFrame, Status>> + Send>>;

/// Implements the service.
#[derive(Clone, Debug)]
pub struct InspectorService {
    pub shared: Arc<Shared>,
    pub host: Arc<Host>,
    pub authorizer: Arc<Authorizer>,
    pub events: Arc<Readers>,
    /// Maps that are read at once.
    pub line: Arc<Line>,
    /// For trials, one at a time: the verifier and runs on packets take a core each, and programs need the others.
    pub trials: Arc<Semaphore>,
    /// What makes the kernel count runs, as long as somebody watches.
    pub counting: Arc<Counting>,
    /// For writing user ring buffers, one at a time.
    pub writing: Arc<Mutex<()>>,
    /// What the bytes of maps mean.
    pub types: Arc<Types>,
    /// For listing instructions.
    pub listing: Arc<Semaphore>,
    /// For following bpf_printk.
    pub printing: Arc<Semaphore>,
}

/// A program that is not on this node is no secret kept and no map found.
fn no_program(program: &ProgramRef) -> Status {
    let message = format!("EbpfProgram {}/{} does not run on this node", program.namespace, program.name);
    refuse(Code::NotFound, Reason::TargetNotFound, message)
}

fn failed(error: impl std::fmt::Display) -> Status {
    refuse(Code::Internal, Reason::Internal, error)
}

impl InspectorService {
    fn report(&self, program: Option<&ProgramRef>) -> Result<ProgramReport, Status> {
        let program = program.ok_or_else(|| Status::invalid_argument("program is missing"))?;
        self.shared.reports.find(&program.namespace, &program.name).ok_or_else(|| no_program(program))
    }

    /// Of a program, or of all of a namespace, or of all.
    fn reports(&self, namespace: &str, name: &str) -> Vec<ProgramReport> {
        let mut reports = self.shared.reports.all();
        let asked = |wanted: &str, is: &str| wanted.is_empty() || wanted == is;
        reports.retain(|report| asked(namespace, &report.namespace) && asked(name, &report.name));
        reports
    }

    /// Opens a map of what runs.
    async fn open(&self, report: &ProgramReport, map: &str) -> Result<MapReader, Status> {
        self.with_map(report, map, Ok).await
    }

    /// Opens a map of what runs, and does something with it.
    async fn with_map<T: Send + 'static>(
        &self,
        report: &ProgramReport,
        map: &str,
        work: impl FnOnce(MapReader) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let Some(known) = report.maps.iter().find(|m| m.name == map) else {
            let names: Vec<&str> = report.maps.iter().map(|m| m.name.as_str()).collect();
            let message = format!("{}/{} has no map {map}; it has {}", report.namespace, report.name, names.join(", "));
            return Err(refuse(Code::NotFound, Reason::TargetNotFound, message));
        };
        if !self.types.knows(known.id) {
            self.learn(report, map, known.id).await?;
        }
        let (host, types) = (self.host.clone(), self.types.clone());
        let (uid, map, id) = (report.uid.clone(), map.to_owned(), known.id);
        blocking(move || work(open_map(&host, &types, &uid, &map, id)?)).await.map_err(failed)?
    }

    /// Does something with a map that is one call of the kernel's, of some microseconds: on this thread, since handing it
    /// to another takes longer. What takes long of some maps goes to another all the same.
    async fn at_once<T: Send + 'static>(
        &self,
        report: &ProgramReport,
        map: &str,
        work: impl FnOnce(MapReader) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let known = report.maps.iter().find(|m| m.name == map).filter(|known| self.types.knows(known.id));
        let Some(known) = known else { return self.with_map(report, map, work).await };
        let reader = open_map(&self.host, &self.types, &report.uid, map, known.id)?;
        if reader.is_quick() { work(reader) } else { blocking(move || work(reader)).await.map_err(failed)? }
    }

    /// Opens a map whose entries can be listed.
    async fn open_entries(&self, report: &ProgramReport, map: &str) -> Result<MapReader, Status> {
        let reader = self.open(report, map).await?;
        let Some(why) = reader.refusal() else { return Ok(reader) };
        let message = format!("map {map}, {}, cannot be dumped: {why}", a_type(reader.info().map_type));
        Err(refuse(Code::FailedPrecondition, Reason::KernelUnsupported, message))
    }
}

fn open_map(host: &Host, types: &Types, uid: &str, map: &str, id: u32) -> Result<MapReader, Status> {
    let found = host.find_map(uid, map, id).map_err(failed)?;
    let fd =
        found.ok_or_else(|| refuse(Code::Aborted, Reason::TargetNotFound, "the map went away meanwhile; try again"))?;
    MapReader::known(fd, types).map_err(failed)
}

fn info(program: &ProgramReport, name: &str, info: &KernelMapInfo, memlock: u64, frozen: bool) -> MapInfo {
    MapInfo {
        program: Some(ProgramRef { namespace: program.namespace.clone(), name: program.name.clone() }),
        name: name.to_owned(),
        id: info.id,
        r#type: type_name(info.map_type),
        key_size: info.key_size,
        value_size: info.value_size,
        max_entries: info.max_entries,
        flags: info.flags,
        memlock,
        frozen,
    }
}

fn map_info(report: &ProgramReport, name: &str, reader: &MapReader) -> MapInfo {
    let facts = reader.facts();
    info(report, name, reader.info(), facts.memlock, facts.frozen)
}

#[tonic::async_trait]
impl Inspector for InspectorService {
    async fn list_programs(
        &self,
        request: Request<ListProgramsRequest>,
    ) -> Result<Response<ListProgramsResponse>, Status> {
        self.authorizer.check(&request, &request.get_ref().namespace, GET_MAPS).await?;
        let namespace = request.into_inner().namespace;
        let mut programs = self.shared.reports.all();
        programs.retain(|p| namespace.is_empty() || p.namespace == namespace);
        Ok(Response::new(ListProgramsResponse { programs }))
    }

    async fn describe_programs(
        &self,
        request: Request<DescribeProgramsRequest>,
    ) -> Result<Response<DescribeProgramsResponse>, Status> {
        self.authorizer.check(&request, &request.get_ref().namespace, GET_MAPS).await?;
        let DescribeProgramsRequest { namespace, name } = request.into_inner();
        let functions = self.functions(&namespace, &name).await?;
        Ok(Response::new(DescribeProgramsResponse { functions }))
    }

    type WatchStatsStream = programs::Stats;

    async fn watch_stats(&self, request: Request<WatchStatsRequest>) -> Result<Response<programs::Stats>, Status> {
        self.authorizer.check(&request, &request.get_ref().namespace, GET_MAPS).await?;
        self.stats(request.into_inner()).map(Response::new)
    }

    type VerifyProgramStream = trial::Verdicts;

    async fn verify_program(
        &self,
        request: Request<VerifyProgramRequest>,
    ) -> Result<Response<trial::Verdicts>, Status> {
        let namespace = request.get_ref().program.as_ref().map(|p| p.namespace.clone()).unwrap_or_default();
        self.authorizer.check(&request, &namespace, GET_MAPS).await?;
        self.verify(request.into_inner()).await.map(Response::new)
    }

    async fn test_program(
        &self,
        request: Request<TestProgramRequest>,
    ) -> Result<Response<TestProgramResponse>, Status> {
        let namespace = request.get_ref().program.as_ref().map(|p| p.namespace.clone()).unwrap_or_default();
        // It writes whatever maps it writes.
        let right = if request.get_ref().live { UPDATE_MAPS } else { GET_MAPS };
        self.authorizer.check(&request, &namespace, right).await?;
        let who = caller(&request).to_string();
        let runs = self.test(request.into_inner(), &who).await?;
        Ok(Response::new(TestProgramResponse { runs }))
    }

    async fn list_maps(&self, request: Request<ListMapsRequest>) -> Result<Response<ListMapsResponse>, Status> {
        self.authorizer.check(&request, &request.get_ref().namespace, GET_MAPS).await?;
        let ListMapsRequest { namespace, name } = request.into_inner();
        let mut maps = Vec::new();
        for report in self.reports(&namespace, &name) {
            for map in &report.maps {
                // One that went meanwhile is not there any more.
                if let Ok(reader) = self.open(&report, &map.name).await {
                    maps.push(map_info(&report, &map.name, &reader));
                }
            }
        }
        Ok(Response::new(ListMapsResponse { maps }))
    }

    type DumpMapStream = Frames;

    async fn dump_map(&self, request: Request<DumpMapRequest>) -> Result<Response<Self::DumpMapStream>, Status> {
        let namespace = request.get_ref().program.as_ref().map(|p| p.namespace.clone()).unwrap_or_default();
        self.authorizer.check(&request, &namespace, GET_MAPS).await?;
        let request = request.into_inner();
        let report = self.report(request.program.as_ref())?;
        let reader = self.open_entries(&report, &request.map).await?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let dump = dump::Dump::new(&request, &report, &reader, dump::Client::new(sender))?;
        tokio::spawn(dump.run(self.line.clone(), report, request.map, reader));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    type WatchMapStream = Frames;

    async fn watch_map(&self, request: Request<WatchMapRequest>) -> Result<Response<Self::WatchMapStream>, Status> {
        let program = request.get_ref().program.clone().unwrap_or_default();
        self.authorizer.check(&request, &program.namespace, GET_MAPS).await?;
        let request = request.into_inner();
        let report = self.report(request.program.as_ref())?;
        let reader = self.open_entries(&report, &request.map).await?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let watch = watch::Watch::new(request, &reader, dump::Client::new(sender))?;
        tokio::spawn(watch.run(self.clone(), program, reader));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn lookup_map(&self, request: Request<LookupMapRequest>) -> Result<Response<LookupMapResponse>, Status> {
        let namespace = request.get_ref().program.as_ref().map(|p| p.namespace.clone()).unwrap_or_default();
        self.authorizer.check(&request, &namespace, GET_MAPS).await?;
        let request = request.into_inner();
        let report = self.report(request.program.as_ref())?;
        let key = match request.key {
            Some(Key::Raw(bytes)) => Some(Datum::Raw(bytes)),
            Some(Key::Json(value)) => Some(Datum::Json(value)),
            None => return Err(Status::invalid_argument("key is missing: json or raw")),
        };
        let (of, map, schema) = (report.clone(), request.map.clone(), request.schema);
        let answer = self.at_once(&report, &request.map, move |reader| {
            let key = write::key(&reader, key).map_err(|why| Status::invalid_argument(format!("map {map}: {why}")))?;
            let schema = schema.then(|| dump::schema(&of, &map, &reader));
            let found = reader.lookup(&key).map_err(|e| failed(format!("map {map}: {e}")))?;
            let nothing = LookupMapResponse { raw_key: key.into(), schema, ..LookupMapResponse::default() };
            Ok(match found {
                Some(raw) => {
                    let value = Some(from_json(&reader.decode_values(&raw)));
                    LookupMapResponse { found: true, value, raw_value: raw.into(), ..nothing }
                }
                None => nothing,
            })
        });
        answer.await.map(Response::new)
    }

    async fn update_map(&self, request: Request<UpdateMapRequest>) -> Result<Response<UpdateMapResponse>, Status> {
        self.write(request).await
    }

    async fn delete_map_entries(
        &self,
        request: Request<DeleteMapEntriesRequest>,
    ) -> Result<Response<DeleteMapEntriesResponse>, Status> {
        self.delete(request).await
    }

    type TailEventsStream = events::Events;

    async fn tail_events(&self, request: Request<TailEventsRequest>) -> Result<Response<events::Events>, Status> {
        self.tail(request).await
    }

    async fn write_records(
        &self,
        request: Request<WriteRecordsRequest>,
    ) -> Result<Response<WriteRecordsResponse>, Status> {
        Ok(Response::new(WriteRecordsResponse { written: self.put_in(request).await? }))
    }

    type DrainMapStream = Frames;

    async fn drain_map(&self, request: Request<DrainMapRequest>) -> Result<Response<Frames>, Status> {
        self.drain(request).await
    }

    type DumpInstructionsStream = insns::Listing;

    async fn dump_instructions(
        &self,
        request: Request<DumpInstructionsRequest>,
    ) -> Result<Response<insns::Listing>, Status> {
        let namespace = request.get_ref().program.as_ref().map(|p| p.namespace.clone()).unwrap_or_default();
        self.authorizer.check(&request, &namespace, GET_MAPS).await?;
        self.instructions(request.into_inner()).await.map(Response::new)
    }

    type ReadIteratorStream = iterators::Texts;

    async fn read_iterator(&self, request: Request<ReadIteratorRequest>) -> Result<Response<iterators::Texts>, Status> {
        let namespace = request.get_ref().program.as_ref().map(|p| p.namespace.clone()).unwrap_or_default();
        self.authorizer.check(&request, &namespace, GET_MAPS).await?;
        self.iterators(request.into_inner()).await.map(Response::new)
    }

    type TailOutputStream = output::Output;

    async fn tail_output(&self, request: Request<TailOutputRequest>) -> Result<Response<output::Output>, Status> {
        self.output(request).await
    }

    async fn name_ids(&self, request: Request<NameIdsRequest>) -> Result<Response<NameIdsResponse>, Status> {
        self.authorizer.check(&request, "", GET_MAPS).await?;
        self.names(request.into_inner()).await.map(Response::new)
    }
}
