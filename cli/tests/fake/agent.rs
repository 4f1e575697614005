//! The agent: one program on one degraded hook, one map, behind TLS and a token.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use skep_object::btf::desc::{TypeDesc, TypeKind};
use skep_proto::v1::inspector_server::{Inspector, InspectorServer};
use skep_proto::v1::{
    Changes, DeleteMapEntriesRequest, DeleteMapEntriesResponse, DescribeProgramsRequest, DescribeProgramsResponse,
    DrainMapRequest, DumpInstructionsRequest, DumpMapRequest, End, EventFrame, FunctionStats, FunctionVerdict,
    HookReport, Instructions, IteratorText, ListMapsRequest, ListMapsResponse, ListProgramsRequest,
    ListProgramsResponse, LookupMapRequest, LookupMapResponse, MapFrame, MapInfo, MapSchema, NameIdsRequest,
    NameIdsResponse, OutputFrame, ProgramRef, ProgramReport, Queued, RawEntries, ReadIteratorRequest, RunStats, State,
    StatsFrame, TailEventsRequest, TailOutputRequest, TargetFailure, TestProgramRequest, TestProgramResponse,
    UpdateMapRequest, UpdateMapResponse, VerifyProgramRequest, WatchMapRequest, WatchStatsRequest, WriteRecordsRequest,
    WriteRecordsResponse, map_frame::Frame,
};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{IntervalStream, ReceiverStream};
use tonic::{Request, Response, Status};

pub struct Agent {
    pub port: u16,
    /// PEM of the authority that signed its certificate.
    pub ca: String,
    /// Every `authorization` that it was sent.
    pub seen: Arc<Mutex<Vec<String>>>,
    /// Ends with the test.
    _tasks: JoinSet<()>,
}

impl Agent {
    pub async fn start(name: &str) -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![format!("{name}.node.skep")]).unwrap();
        let certificate = params.signed_by(&key, &authority).unwrap();
        let mut config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key.serialize_der().try_into().unwrap())
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let acceptor = TlsAcceptor::from(Arc::new(config));
            while let Ok((stream, _)) = listener.accept().await {
                if let Ok(stream) = acceptor.accept(stream).await {
                    let _ = sender.send(Ok::<_, std::io::Error>(stream)).await;
                }
            }
        });
        let service = Service { seen: seen.clone(), dumps: AtomicU64::new(0) };
        tasks.spawn(async move {
            let server = tonic::transport::Server::builder().add_service(InspectorServer::new(service));
            let _ = server.serve_with_incoming(ReceiverStream::new(receiver)).await;
        });
        Agent { port, ca: authority.pem(), seen, _tasks: tasks }
    }
}

struct Service {
    seen: Arc<Mutex<Vec<String>>>,
    /// How often the histogram was dumped.
    dumps: AtomicU64,
}

impl Service {
    #[allow(clippy::result_large_err, reason = "tonic's own type")]
    fn check<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let sent = request.metadata().get("authorization").map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default();
        self.seen.lock().unwrap().push(sent.clone());
        match sent == format!("Bearer {}", super::MINTED) {
            true => Ok(()),
            false => Err(Status::unauthenticated("PermissionDenied: the bearer token is refused")),
        }
    }
}

fn map() -> MapInfo {
    MapInfo {
        program: Some(ProgramRef { namespace: "net".into(), name: "flows".into() }),
        name: "counts".into(),
        id: 5,
        r#type: "hash".into(),
        key_size: 4,
        value_size: 8,
        max_entries: 64,
        memlock: 8192,
        ..MapInfo::default()
    }
}

fn schema() -> MapSchema {
    let uint = |size| {
        let desc = TypeDesc { kind: TypeKind::Uint, name: "".into(), size };
        Some(skep_node_agent::grpc::frames::type_message(&desc))
    };
    MapSchema { map: Some(map()), key: uint(4), value: uint(8), values_per_entry: 1, value_stride: 8, head_only: false }
}

/// One after the other, faster than anybody asks for, until the client goes.
fn looks<T>(mut look: impl FnMut(u64) -> T) -> impl tokio_stream::Stream<Item = Result<T, Status>> {
    let mut number = 0;
    let ticks = IntervalStream::new(tokio::time::interval(Duration::from_millis(20)));
    ticks.map(move |_| {
        number += 1;
        Ok(look(number - 1))
    })
}

#[tonic::async_trait]
impl Inspector for Service {
    async fn list_programs(
        &self,
        request: Request<ListProgramsRequest>,
    ) -> Result<Response<ListProgramsResponse>, Status> {
        self.check(&request)?;
        let failure = TargetFailure { target: "eth6".into(), reason: "HookBusy".into(), message: "held".into() };
        let hook = HookReport {
            function: "count_rx".into(),
            hook: "xdp".into(),
            targets: 1,
            names: vec!["eth0".into()],
            failures: vec![failure],
            ..HookReport::default()
        };
        let mut report = ProgramReport {
            namespace: "net".into(),
            name: "flows".into(),
            reason: "HookBusy".into(),
            message: "1 of 2 targets failed".into(),
            running_revision: "7c9d5f0123".into(),
            hooks: vec![hook],
            ..ProgramReport::default()
        };
        report.set_state(State::Degraded);
        Ok(Response::new(ListProgramsResponse { programs: vec![report] }))
    }

    async fn list_maps(&self, request: Request<ListMapsRequest>) -> Result<Response<ListMapsResponse>, Status> {
        self.check(&request)?;
        Ok(Response::new(ListMapsResponse { maps: vec![map()] }))
    }

    type DumpMapStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<MapFrame, Status>> + Send>>;

    async fn dump_map(&self, request: Request<DumpMapRequest>) -> Result<Response<Self::DumpMapStream>, Status> {
        self.check(&request)?;
        if request.get_ref().map == "busy" {
            // It waits in a line that does not end.
            let queued = |before| Ok(MapFrame { frame: Some(Frame::Queued(Queued { before })) });
            return Ok(Response::new(Box::pin(tokio_stream::iter([3, 2].map(queued)).chain(tokio_stream::pending()))));
        }
        // A frame of 6 MiB: more than gRPC clients take by themselves. Of the histogram few buckets, whose counts grow.
        let (count, dumps) = match request.get_ref().map.as_str() {
            "sizes" => (4, self.dumps.fetch_add(1, Ordering::Relaxed)),
            _ => (1u32 << 19, 0),
        };
        let keys: Vec<u8> = (0..count).rev().flat_map(|n| n.to_le_bytes()).collect();
        let values: Vec<u8> = (0..count).rev().flat_map(|n| (u64::from(n * 2) * (dumps + 1)).to_le_bytes()).collect();
        let raw = RawEntries { count, keys: keys.into(), values: values.into() };
        let end = End { count: u64::from(count), ..End::default() };
        let frames = [Frame::Schema(schema()), Frame::Raw(raw), Frame::End(end)];
        let frames = frames.map(|frame| Ok(MapFrame { frame: Some(frame) }));
        Ok(Response::new(Box::pin(tokio_stream::iter(frames))))
    }

    async fn describe_programs(
        &self,
        _: Request<DescribeProgramsRequest>,
    ) -> Result<Response<DescribeProgramsResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    type VerifyProgramStream = ReceiverStream<Result<FunctionVerdict, Status>>;

    async fn verify_program(
        &self,
        _: Request<VerifyProgramRequest>,
    ) -> Result<Response<Self::VerifyProgramStream>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn test_program(&self, _: Request<TestProgramRequest>) -> Result<Response<TestProgramResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    type WatchStatsStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<StatsFrame, Status>> + Send>>;

    /// In each second one function runs seldom and long, the other often and short.
    async fn watch_stats(
        &self,
        request: Request<WatchStatsRequest>,
    ) -> Result<Response<Self::WatchStatsStream>, Status> {
        self.check(&request)?;
        let function = |name: &str, id, runs, ns, second| FunctionStats {
            program: Some(ProgramRef { namespace: "net".into(), name: name.into() }),
            function: "count_rx".into(),
            id,
            stats: Some(RunStats { run_count: runs * second, run_time_ns: runs * ns * second, recursion_misses: 0 }),
        };
        let frame = move |second: u64| StatsFrame {
            elapsed_us: if second == 0 { 0 } else { 1_000_000 },
            functions: vec![function("flows", 7, 100, 90_000, second), function("dns", 8, 5_000, 10, second)],
        };
        Ok(Response::new(Box::pin(looks(frame))))
    }

    type WatchMapStream = Self::DumpMapStream;

    /// Key 1 grows by 10 in each look, key 2 stays.
    async fn watch_map(&self, request: Request<WatchMapRequest>) -> Result<Response<Self::WatchMapStream>, Status> {
        self.check(&request)?;
        let wanted = request.get_ref().looks;
        // It waits before it looks.
        let queued = (request.get_ref().map == "busy").then_some(Queued { before: 1 });
        let queued = tokio_stream::iter(queued.map(|queued| Ok(MapFrame { frame: Some(Frame::Queued(queued)) })));
        let entries = |pairs: &[(u32, u64)]| RawEntries {
            count: pairs.len() as u32,
            keys: pairs.iter().flat_map(|pair| pair.0.to_le_bytes()).collect::<Vec<u8>>().into(),
            values: pairs.iter().flat_map(|pair| pair.1.to_le_bytes()).collect::<Vec<u8>>().into(),
        };
        let frame = move |number: u64| match number.checked_sub(1) {
            None => Frame::Schema(schema()),
            Some(look) if wanted > 0 && look > wanted => Frame::End(End { reason: "looks".into(), ..End::default() }),
            Some(look) => {
                let now = if look == 0 { vec![(1, 0), (2, 5)] } else { vec![(1, look * 10)] };
                let before: Vec<(u32, u64)> = now.iter().map(|(key, value)| (*key, value.saturating_sub(10))).collect();
                let elapsed_us = if look == 0 { 0 } else { 1_000_000 };
                Frame::Changes(Changes {
                    look,
                    elapsed_us,
                    total: 2,
                    entries: Some(entries(&now)),
                    before: entries(&before).values,
                    ..Changes::default()
                })
            }
        };
        Ok(Response::new(Box::pin(queued.chain(looks(move |number| MapFrame { frame: Some(frame(number)) })))))
    }

    async fn lookup_map(&self, _: Request<LookupMapRequest>) -> Result<Response<LookupMapResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn update_map(&self, _: Request<UpdateMapRequest>) -> Result<Response<UpdateMapResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn delete_map_entries(
        &self,
        _: Request<DeleteMapEntriesRequest>,
    ) -> Result<Response<DeleteMapEntriesResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    type TailEventsStream = ReceiverStream<Result<EventFrame, Status>>;

    async fn tail_events(&self, _: Request<TailEventsRequest>) -> Result<Response<Self::TailEventsStream>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn write_records(&self, _: Request<WriteRecordsRequest>) -> Result<Response<WriteRecordsResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    type DrainMapStream = Self::DumpMapStream;

    async fn drain_map(&self, _: Request<DrainMapRequest>) -> Result<Response<Self::DrainMapStream>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    type DumpInstructionsStream = ReceiverStream<Result<Instructions, Status>>;

    async fn dump_instructions(
        &self,
        _: Request<DumpInstructionsRequest>,
    ) -> Result<Response<Self::DumpInstructionsStream>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    type ReadIteratorStream = ReceiverStream<Result<IteratorText, Status>>;

    async fn read_iterator(
        &self,
        _: Request<ReadIteratorRequest>,
    ) -> Result<Response<Self::ReadIteratorStream>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    type TailOutputStream = ReceiverStream<Result<OutputFrame, Status>>;

    async fn tail_output(&self, _: Request<TailOutputRequest>) -> Result<Response<Self::TailOutputStream>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn name_ids(&self, _: Request<NameIdsRequest>) -> Result<Response<NameIdsResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }
}
