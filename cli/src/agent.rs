//! A connected agent's Inspector.

use std::time::Duration;

use kube::api::Portforwarder;
use skep_proto::v1::inspector_client::InspectorClient;
use skep_proto::v1::{
    DeleteMapEntriesRequest, DeleteMapEntriesResponse, DescribeProgramsRequest, DrainMapRequest,
    DumpInstructionsRequest, DumpMapRequest, EventFrame, FunctionFacts, FunctionVerdict, Instructions, IteratorText,
    ListMapsRequest, ListProgramsRequest, LookupMapRequest, LookupMapResponse, MapFrame, MapInfo, NameIdsRequest,
    NameIdsResponse, OutputFrame, ProgramRef, ProgramReport, ReadIteratorRequest, StatsFrame, TailEventsRequest,
    TailOutputRequest, TestProgramRequest, TestRun, UpdateMapRequest, VerifyProgramRequest, WatchMapRequest,
    WatchStatsRequest, WriteRecordsRequest,
};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use crate::deadline::within;
use crate::error::Error;
use crate::table::printable;

/// Puts the token into every request; over the socket there is none.
#[derive(Clone, Debug, Default)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Bearer {
    pub fn token(token: &str) -> Result<Self, Error> {
        let mut value: MetadataValue<Ascii> = format!("Bearer {token}").parse().map_err(|_| Error::UnusableToken)?;
        // Never in a log.
        value.set_sensitive(true);
        Ok(Bearer(Some(value)))
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// What an agent sends, piece by piece.
pub struct Frames<T> {
    node: String,
    stream: Streaming<T>,
}

impl<T> std::fmt::Debug for Frames<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frames").field("node", &self.node).finish_non_exhaustive()
    }
}

impl<T> Frames<T> {
    /// The next one; none after the last. May be dropped and asked again.
    pub async fn next(&mut self) -> Result<Option<T>, Error> {
        self.stream.message().await.map_err(|status| Error::call(&self.node, status))
    }

    /// They ended, and the agent did not say why.
    pub fn cut(&self) -> Error {
        Error::Broken { node: self.node.clone(), problem: "the stream ended too early".into() }
    }
}

/// One node's agent.
pub struct Agent {
    pub node: String,
    inspector: InspectorClient<InterceptedService<Channel, Bearer>>,
    /// Carries the connection.
    forward: Option<Portforwarder>,
    pub timeout: Duration,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(forward) = &self.forward {
            forward.abort();
        }
    }
}

impl Agent {
    pub fn new(
        node: String,
        channel: Channel,
        bearer: Bearer,
        forward: Option<Portforwarder>,
        timeout: Duration,
    ) -> Self {
        // A frame holds a whole batch of a map, whose size the node decides.
        let inspector = InspectorClient::with_interceptor(channel, bearer).max_decoding_message_size(usize::MAX);
        Agent { node, inspector, forward, timeout }
    }

    /// Waits for an answer.
    async fn answer<T>(
        &self,
        what: &'static str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Error> {
        let answered = async { call.await.map_err(|status| Error::call(&self.node, status)) };
        Ok(within(self.timeout, what, answered).await?.into_inner())
    }

    /// Waits until a stream begins.
    async fn frames<T>(
        &self,
        what: &'static str,
        call: impl Future<Output = Result<Response<Streaming<T>>, Status>>,
    ) -> Result<Frames<T>, Error> {
        Ok(Frames { node: self.node.clone(), stream: self.answer(what, call).await? })
    }

    /// Asked over the node's own socket.
    pub fn is_local(&self) -> bool {
        self.forward.is_none()
    }

    /// The node's programs of a namespace; over the socket empty means all.
    pub async fn programs(&self, namespace: &str) -> Result<Vec<ProgramReport>, Error> {
        let mut client = self.inspector.clone();
        let request = ListProgramsRequest { namespace: namespace.to_owned() };
        Ok(self.answer("asking for the node's programs", client.list_programs(request)).await?.programs)
    }

    /// The maps of a program, or of all of a namespace.
    pub async fn maps(&self, namespace: &str, name: &str) -> Result<Vec<MapInfo>, Error> {
        let mut client = self.inspector.clone();
        let request = ListMapsRequest { namespace: namespace.to_owned(), name: name.to_owned() };
        Ok(self.answer("asking for the node's maps", client.list_maps(request)).await?.maps)
    }

    /// A map's schema and packed contents.
    pub async fn dump(&self, request: DumpMapRequest) -> Result<Frames<MapFrame>, Error> {
        let mut client = self.inspector.clone();
        self.frames("asking for the map", client.dump_map(request)).await
    }

    /// What the kernel says of the functions of a program, or of all of a namespace.
    pub async fn functions(&self, namespace: &str, name: &str) -> Result<Vec<FunctionFacts>, Error> {
        let mut client = self.inspector.clone();
        let request = DescribeProgramsRequest { namespace: namespace.to_owned(), name: name.to_owned() };
        Ok(self.answer("asking for the node's functions", client.describe_programs(request)).await?.functions)
    }

    /// What the verifier says of a program's functions.
    pub async fn verify(&self, request: VerifyProgramRequest) -> Result<Frames<FunctionVerdict>, Error> {
        let mut client = self.inspector.clone();
        self.frames("asking for the verifier's verdict", client.verify_program(request)).await
    }

    /// What a function makes of packets.
    pub async fn test(&self, request: TestProgramRequest) -> Result<Vec<TestRun>, Error> {
        let mut client = self.inspector.clone();
        Ok(self.answer("running the function", client.test_program(request)).await?.runs)
    }

    /// How often they run.
    pub async fn stats(&self, request: WatchStatsRequest) -> Result<Frames<StatsFrame>, Error> {
        let mut client = self.inspector.clone();
        self.frames("asking for statistics", client.watch_stats(request)).await
    }

    /// What changes in a map.
    pub async fn watch(&self, request: WatchMapRequest) -> Result<Frames<MapFrame>, Error> {
        let mut client = self.inspector.clone();
        self.frames("asking for the map", client.watch_map(request)).await
    }

    /// One entry of a map.
    pub async fn lookup(&self, request: LookupMapRequest) -> Result<LookupMapResponse, Error> {
        let mut client = self.inspector.clone();
        self.answer("asking for the entry", client.lookup_map(request)).await
    }

    /// Writes entries of a map; how many.
    pub async fn update(&self, request: UpdateMapRequest) -> Result<u64, Error> {
        let mut client = self.inspector.clone();
        Ok(self.answer("writing the map", client.update_map(request)).await?.written)
    }

    /// Takes entries out of a map.
    pub async fn delete(&self, request: DeleteMapEntriesRequest) -> Result<DeleteMapEntriesResponse, Error> {
        let mut client = self.inspector.clone();
        self.answer("deleting the entries", client.delete_map_entries(request)).await
    }

    /// What the node calls numbers.
    pub async fn names(&self, request: NameIdsRequest) -> Result<NameIdsResponse, Error> {
        let mut client = self.inspector.clone();
        self.answer("asking for names", client.name_ids(request)).await
    }

    /// Takes a map's entries out.
    pub async fn drain(&self, request: DrainMapRequest) -> Result<Frames<MapFrame>, Error> {
        let mut client = self.inspector.clone();
        self.frames("asking for the map", client.drain_map(request)).await
    }

    /// Puts records into a user ring buffer; how many.
    pub async fn put(&self, request: WriteRecordsRequest) -> Result<u64, Error> {
        let mut client = self.inspector.clone();
        Ok(self.answer("writing the records", client.write_records(request)).await?.written)
    }

    /// The instructions of functions.
    pub async fn instructions(&self, request: DumpInstructionsRequest) -> Result<Frames<Instructions>, Error> {
        let mut client = self.inspector.clone();
        self.frames("asking for the instructions", client.dump_instructions(request)).await
    }

    /// What iterators write.
    pub async fn iterators(&self, request: ReadIteratorRequest) -> Result<Frames<IteratorText>, Error> {
        let mut client = self.inspector.clone();
        self.frames("asking for what iterators write", client.read_iterator(request)).await
    }

    /// What programs print.
    pub async fn output(&self, request: TailOutputRequest) -> Result<Frames<OutputFrame>, Error> {
        let mut client = self.inspector.clone();
        self.frames("asking for what programs print", client.tail_output(request)).await
    }

    /// The records of a ring buffer or perf event array.
    pub async fn events(&self, request: TailEventsRequest) -> Result<Frames<EventFrame>, Error> {
        let mut client = self.inspector.clone();
        self.frames("asking for the events", client.tail_events(request)).await
    }

    /// A program by name; over the socket of a node the one of that name, whatever its namespace.
    pub async fn program(&self, namespace: &str, name: &str) -> Result<ProgramRef, Error> {
        let namespace = match namespace {
            "" => self.find(name).await?,
            given => given.to_owned(),
        };
        Ok(ProgramRef { namespace, name: name.to_owned() })
    }

    /// The namespace of the one program of that name.
    async fn find(&self, name: &str) -> Result<String, Error> {
        let mut programs = self.programs("").await?;
        programs.retain(|p| p.name == name);
        match programs.as_slice() {
            [one] => Ok(one.namespace.clone()),
            [] => Err(self.absent(name)),
            _ => Err(Error::Ambiguous(name.to_owned())),
        }
    }

    /// The node has no program of that name.
    pub fn absent(&self, name: &str) -> Error {
        let place = if self.is_local() { "this host".to_owned() } else { format!("node {}", self.node) };
        Error::Absent(format!("EbpfProgram {} does not run on {place}", printable(name)))
    }
}
