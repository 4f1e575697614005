//! An agent in this process: TLS, enrolling and the order of calls as the real one has them; no kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use skep_proto::v1::agent_server::{Agent, AgentServer};
use skep_proto::v1::enroll_request::Step;
use skep_proto::v1::node_event::Event;
use skep_proto::v1::*;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{broadcast, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

/// The certificate in use.
#[derive(Debug)]
pub struct Identity {
    key: KeyPair,
    current: RwLock<Arc<CertifiedKey>>,
}

impl Identity {
    fn new(node: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let own = CertificateParams::new(vec![format!("{node}.node.skep")]).unwrap().self_signed(&key).unwrap();
        let current = RwLock::new(certified(vec![own.der().clone()], &key));
        Self { key, current }
    }

    /// The certificate that the next connection sees.
    pub fn serving(&self) -> CertificateDer<'static> {
        self.current.read().unwrap().cert[0].clone()
    }
}

fn certified(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Arc<CertifiedKey> {
    let der = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    Arc::new(CertifiedKey::new(chain, rustls::crypto::ring::sign::any_supported_type(&der).unwrap()))
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().unwrap().clone())
    }
}

/// What outlives a restart of the server.
#[derive(Debug)]
pub struct State {
    pub node: String,
    pub identity: Arc<Identity>,
    pub not_after: Mutex<String>,
    /// Every call, in order.
    pub calls: Mutex<Vec<String>>,
    pub programs: Mutex<BTreeMap<String, ProgramReport>>,
    pub lowest_epoch: Mutex<u64>,
    events: broadcast::Sender<NodeEvent>,
}

impl State {
    pub fn new(node: &str) -> Arc<Self> {
        Arc::new(Self {
            node: node.into(),
            identity: Arc::new(Identity::new(node)),
            not_after: Mutex::default(),
            calls: Mutex::default(),
            programs: Mutex::default(),
            lowest_epoch: Mutex::default(),
            events: broadcast::channel(64).0,
        })
    }

    pub fn put(&self, uid: &str, revision: &str) {
        let report = ProgramReport {
            uid: uid.into(),
            desired_revision: revision.into(),
            generation: 1,
            state: skep_proto::v1::State::Ready as i32,
            ..ProgramReport::default()
        };
        self.programs.lock().unwrap().insert(uid.into(), report.clone());
        self.send(Event::Program(report));
    }

    fn remove(&self, uid: &str) {
        self.programs.lock().unwrap().remove(uid);
        self.send(Event::Gone(uid.into()));
    }

    fn send(&self, event: Event) {
        let _nobody = self.events.send(NodeEvent { instance: "i1".into(), sequence: 1, event: Some(event) });
    }

    fn call(&self, text: String) {
        self.calls.lock().unwrap().push(text);
    }

    pub fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    fn admit(&self, epoch: u64) -> Result<(), Status> {
        let mut lowest = self.lowest_epoch.lock().unwrap();
        if epoch < *lowest {
            return Err(Status::failed_precondition(format!("Internal: epoch {epoch} is over")));
        }
        *lowest = epoch;
        Ok(())
    }
}

/// Serves until dropped; then all connections end at once, as when the process is killed.
#[derive(Debug)]
pub struct Server(Option<Runtime>);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.take().unwrap().shutdown_background();
    }
}

/// Serves on `address`.
pub async fn serve(state: Arc<State>, address: SocketAddr, ca: &str) -> (SocketAddr, Server) {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = loop {
        match std::net::TcpListener::bind(address) {
            Ok(listener) => break listener,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
    let mut config =
        ServerConfig::builder().with_client_cert_verifier(verifier).with_cert_resolver(state.identity.clone());
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    runtime.spawn(async move {
        let listener = TcpListener::from_std(listener).unwrap();
        let (sender, receiver) = mpsc::channel(4);
        let accept = async {
            while let Ok((stream, _)) = listener.accept().await {
                if let Ok(stream) = acceptor.accept(stream).await {
                    sender.send(Ok::<_, std::io::Error>(stream)).await.unwrap();
                }
            }
        };
        let server = tonic::transport::Server::builder()
            .add_service(AgentServer::new(Fake(state)))
            .serve_with_incoming(ReceiverStream::new(receiver));
        tokio::select! { () = accept => {}, _ = server => {} }
    });
    (address, Server(Some(runtime)))
}

struct Fake(Arc<State>);

fn sorted(uids: &[String]) -> String {
    uids.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(",")
}

#[tonic::async_trait]
impl Agent for Fake {
    async fn enroll(&self, request: Request<EnrollRequest>) -> Result<Response<EnrollResponse>, Status> {
        let (state, identity) = (&self.0, &self.0.identity);
        match request.into_inner().step.unwrap() {
            Step::Begin(begin) => {
                state.call(format!("begin {}", begin.node_name));
                // A request asks for a name that it shall not get.
                let params = CertificateParams::new(vec!["other.node.skep".into()]).unwrap();
                let csr_pem = params.serialize_request(&identity.key).unwrap().pem().unwrap();
                let not_after = state.not_after.lock().unwrap().clone();
                Ok(Response::new(EnrollResponse { csr_pem, token: "the token".into(), not_after }))
            }
            Step::Install(install) => {
                state.call("install".into());
                let chain = CertificateDer::pem_slice_iter(install.certificate_pem.as_bytes());
                let certified = certified(chain.map(Result::unwrap).collect(), &identity.key);
                certified.keys_match().unwrap();
                *identity.current.write().unwrap() = certified;
                *state.not_after.lock().unwrap() =
                    (jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24)).to_string();
                Ok(Response::new(EnrollResponse::default()))
            }
        }
    }

    async fn get_node(&self, _: Request<GetNodeRequest>) -> Result<Response<Node>, Status> {
        Ok(Response::new(Node { node_name: self.0.node.clone(), instance: "i1".into(), ..Node::default() }))
    }

    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        let request = request.into_inner();
        self.0.admit(request.epoch)?;
        self.0.call(format!("apply {} {} epoch {}", request.uid, request.revision, request.epoch));
        if request.uid == "refused" {
            return Err(Status::invalid_argument("AgentTooOld: this kind is not known"));
        }
        self.0.put(&request.uid, &request.revision);
        Ok(Response::new(ApplyResponse {}))
    }

    async fn remove(&self, request: Request<RemoveRequest>) -> Result<Response<RemoveResponse>, Status> {
        let request = request.into_inner();
        self.0.admit(request.epoch)?;
        self.0.call(format!("remove {} epoch {}", request.uid, request.epoch));
        self.0.remove(&request.uid);
        Ok(Response::new(RemoveResponse { gone: true }))
    }

    async fn sync(&self, request: Request<SyncRequest>) -> Result<Response<SyncResponse>, Status> {
        let request = request.into_inner();
        self.0.admit(request.epoch)?;
        let (uids, unreadable) = (sorted(&request.uids), sorted(&request.unreadable));
        self.0.call(format!("sync {uids} unreadable {unreadable} epoch {}", request.epoch));
        let keep: BTreeSet<String> = request.uids.into_iter().chain(request.unreadable).collect();
        let known: Vec<String> = self.0.programs.lock().unwrap().keys().cloned().collect();
        let removed: Vec<String> = known.into_iter().filter(|uid| !keep.contains(uid)).collect();
        removed.iter().for_each(|uid| self.0.remove(uid));
        Ok(Response::new(SyncResponse { removed }))
    }

    async fn update_pods(&self, request: Request<UpdatePodsRequest>) -> Result<Response<UpdatePodsResponse>, Status> {
        let request = request.into_inner();
        self.0.admit(request.epoch)?;
        let names: Vec<String> = request.pods.into_iter().map(|pod| pod.name).collect();
        self.0.call(format!("pods snapshot {} {} gone {}", request.snapshot, sorted(&names), sorted(&request.gone)));
        Ok(Response::new(UpdatePodsResponse {}))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<NodeEvent, Status>> + Send>>;

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let events = tokio_stream::wrappers::BroadcastStream::new(self.0.events.subscribe());
        let programs = self.0.programs.lock().unwrap().values().cloned().collect();
        let event = Some(Event::Snapshot(Snapshot { programs, notices: vec![] }));
        let first = NodeEvent { instance: "i1".into(), sequence: 1, event };
        let changes = events.filter_map(|event| event.ok().map(Ok));
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(first)).chain(changes))))
    }
}
