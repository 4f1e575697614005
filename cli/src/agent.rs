//! A connected agent's Inspector.

use std::time::Duration;

use kube::api::Portforwarder;
use skep_proto::v1::inspector_client::InspectorClient;
use skep_proto::v1::{
    DeleteMapEntriesRequest, DeleteMapEntriesResponse, DescribeProgramsRequest, DrainMapRequest,
    DumpInstructionsRequest, DumpMapRequest, EventFrame, FunctionFacts, FunctionVerdict, Instructions, ListMapsRequest,
    ListProgramsRequest, LookupMapRequest, LookupMapResponse, MapFrame, MapInfo, NameIdsRequest, NameIdsResponse,
    OutputFrame, ProgramRef, ProgramReport, StatsFrame, TailEventsRequest, TailOutputRequest, TestProgramRequest,
    TestRun, UpdateMapRequest, VerifyProgramRequest, WatchMapRequest, WatchStatsRequest, WriteRecordsRequest,
};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use crate::deadline::within;
use crate::error::Error;

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

    /// Asked over the node's own socket.
    pub fn is_local(&self) -> bool {
        self.forward.is_none()
    }

    /// The node's programs of a namespace; over the socket empty means all.
    pub async fn programs(&self, namespace: &str) -> Result<Vec<ProgramReport>, Error> {
        let mut client = self.inspector.clone();
        let request = ListProgramsRequest { namespace: namespace.to_owned() };
        let asked = async { Ok(client.list_programs(request).await?.into_inner().programs) };
        within(self.timeout, "asking for the node's programs", asked).await
    }

    /// The maps of a program, or of all of a namespace.
    pub async fn maps(&self, namespace: &str, name: &str) -> Result<Vec<MapInfo>, Error> {
        let mut client = self.inspector.clone();
        let request = ListMapsRequest { namespace: namespace.to_owned(), name: name.to_owned() };
        let asked = async { Ok(client.list_maps(request).await?.into_inner().maps) };
        within(self.timeout, "asking for the node's maps", asked).await
    }

    /// A map's schema and packed contents.
    pub async fn dump(&self, request: DumpMapRequest) -> Result<Streaming<MapFrame>, Error> {
        let mut client = self.inspector.clone();
        let asked = async { Ok(client.dump_map(request).await?.into_inner()) };
        within(self.timeout, "asking for the map", asked).await
    }

    /// What the kernel says of the functions of a program, or of all of a namespace.
    pub async fn functions(&self, namespace: &str, name: &str) -> Result<Vec<FunctionFacts>, Error> {
        let mut client = self.inspector.clone();
        let request = DescribeProgramsRequest { namespace: namespace.to_owned(), name: name.to_owned() };
        let asked = async { Ok(client.describe_programs(request).await?.into_inner().functions) };
        within(self.timeout, "asking for the node's functions", asked).await
    }

    /// What the verifier says of a program's functions.
    pub async fn verify(&self, request: VerifyProgramRequest) -> Result<Streaming<FunctionVerdict>, Error> {
        let mut client = self.inspector.clone();
        let asked = async { Ok(client.verify_program(request).await?.into_inner()) };
        within(self.timeout, "asking for the verifier's verdict", asked).await
    }

    /// What a function makes of packets.
    pub async fn test(&self, request: TestProgramRequest) -> Result<Vec<TestRun>, Error> {
        let mut client = self.inspector.clone();
        let asked = async { Ok(client.test_program(request).await?.into_inner().runs) };
        within(self.timeout, "running the function", asked).await
    }

    /// How often they run.
    pub async fn stats(&self, request: WatchStatsRequest) -> Result<Streaming<StatsFrame>, Error> {
        let mut client = self.inspector.clone();
        let asked = async { Ok(client.watch_stats(request).await?.into_inner()) };
        within(self.timeout, "asking for statistics", asked).await
    }

    /// What changes in a map.
    pub async fn watch(&self, request: WatchMapRequest) -> Result<Streaming<MapFrame>, Error> {
        let mut client = self.inspector.clone();
        let asked = async { Ok(client.watch_map(request).await?.into_inner()) };
        within(self.timeout, "asking for the map", asked).await
    }

    /// One entry of a map.
    pub async fn lookup(&self, request: LookupMapRequest) -> Result<LookupMapResponse, Error> {
        let mut client = self.inspector.clone();
        let asked = async { Ok(client.lookup_map(request).await?.into_inner()) };
        within(self.timeout, "asking for the entry", asked).await
    }

    /// Writes entries of a map; how many.
    pub async fn update(&self, request: UpdateMapRequest) -> Result<u64, Error> {
        let mut client = self.inspector.clone();
        let asked = async { Ok(client.update_map(request).await?.into_inner().written) };
        within(self.timeout, "writing the map", asked).await
    }

    /// Takes entries out of a map.
    pub async fn delete(&self, request: DeleteMapEntriesRequest) -> Result<DeleteMapEntriesResponse, Error> {
        let mut client = self.inspector.clone();
        let asked = async { Ok(client.delete_map_entries(request).await?.into_inner()) };
        within(self.timeout, "deleting the entries", asked).await
    }

    /// What the node calls numbers.
    pub async fn names(&self, request: NameIdsRequest) -> Result<NameIdsResponse, Error> {
        let mut client = self.inspector.clone();
        let asked = async { Ok(client.name_ids(request).await?.into_inner()) };
        within(self.timeout, "asking for names", asked).await
    }

    /// Takes a map's entries out.
    pub async fn drain(&self, request: DrainMapRequest) -> Result<Streaming<MapFrame>, Error> {
        let mut client = self.inspector.clone();
        let asked = async { Ok(client.drain_map(request).await?.into_inner()) };
        within(self.timeout, "asking for the map", asked).await
    }

    /// Puts records into a user ring buffer; how many.
    pub async fn put(&self, request: WriteRecordsRequest) -> Result<u64, Error> {
        let mut client = self.inspector.clone();
        let asked = async { Ok(client.write_records(request).await?.into_inner().written) };
        within(self.timeout, "writing the records", asked).await
    }

    /// The instructions of functions.
    pub async fn instructions(&self, request: DumpInstructionsRequest) -> Result<Streaming<Instructions>, Error> {
        let mut client = self.inspector.clone();
        let asked = async { Ok(client.dump_instructions(request).await?.into_inner()) };
        within(self.timeout, "asking for the instructions", asked).await
    }

    /// What programs print.
    pub async fn output(&self, request: TailOutputRequest) -> Result<Streaming<OutputFrame>, Error> {
        let mut client = self.inspector.clone();
        let asked = async { Ok(client.tail_output(request).await?.into_inner()) };
        within(self.timeout, "asking for what programs print", asked).await
    }

    /// The records of a ring buffer or perf event array.
    pub async fn events(&self, request: TailEventsRequest) -> Result<Streaming<EventFrame>, Error> {
        let mut client = self.inspector.clone();
        let asked = async { Ok(client.tail_events(request).await?.into_inner()) };
        within(self.timeout, "asking for the events", asked).await
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
            [] => Err(Error::Absent(format!("EbpfProgram {name} does not run on this host"))),
            _ => Err(Error::Ambiguous(name.to_owned())),
        }
    }
}
