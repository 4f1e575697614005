//! The operator's service.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use skep_crds::Reason;
use skep_image::Auth;
use skep_proto::v1::agent_server::Agent;
use skep_proto::v1::{
    ApplyRequest, ApplyResponse, EnrollRequest, EnrollResponse, GetNodeRequest, Node, NodeEvent, RegistryCredential,
    RemoveRequest, RemoveResponse, SyncRequest, SyncResponse, UpdatePodsRequest, UpdatePodsResponse, WatchRequest,
    enroll_request::Step,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

use super::admit::operator_only;
use super::caller::{Caller, caller};
use super::refuse;
use super::tls::Identity;
use crate::actor::Shared;
use crate::desired::{DesiredProgram, Unresolved};
use crate::discover::PodRecord;
use crate::epoch::Epoch;
use crate::nodeview::Pods;
use crate::supervisor::Handle;

const HEARTBEAT: Duration = Duration::from_secs(10);
/// Events that wait for a slow watcher before it is cut off.
const WATCH_QUEUE: usize = 256;

/// Implements the service.
#[derive(Debug)]
pub struct AgentService {
    pub node_name: String,
    pub identity: Option<Arc<Identity>>,
    /// Where the projected token for enrolling is.
    pub token_file: std::path::PathBuf,
    pub shared: Arc<Shared>,
    pub supervisor: Handle,
    pub pods: watch::Sender<Pods>,
    pub epoch: Mutex<Epoch>,
    /// Ends the streams when the agent stops.
    pub cancel: CancellationToken,
}

impl AgentService {
    /// The operator, or root.
    fn operator_only<T>(&self, request: &Request<T>) -> Result<(), Status> {
        match caller(request) {
            Caller::Root | Caller::Operator => Ok(()),
            Caller::User(_) | Caller::Nobody => Err(operator_only()),
        }
    }

    /// A deposed leader changes nothing.
    fn in_epoch(&self, epoch: u64) -> Result<(), Status> {
        let mut known = self.epoch.lock().unwrap_or_else(PoisonError::into_inner);
        known.admit(epoch).map_err(|e| refuse(Code::FailedPrecondition, Reason::Internal, e))
    }
}

fn internal(error: impl std::fmt::Display) -> Status {
    refuse(Code::Internal, Reason::Internal, error)
}

#[tonic::async_trait]
impl Agent for AgentService {
    async fn enroll(&self, request: Request<EnrollRequest>) -> Result<Response<EnrollResponse>, Status> {
        self.operator_only(&request)?;
        let Some(identity) = &self.identity else {
            return Err(Status::failed_precondition("this agent serves no TLS and needs no certificate"));
        };
        let mut response = EnrollResponse::default();
        match request.into_inner().step {
            Some(Step::Begin(begin)) => {
                if begin.node_name != self.node_name {
                    let message = format!("this is node {}, not {}", self.node_name, begin.node_name);
                    return Err(refuse(Code::FailedPrecondition, Reason::Internal, message));
                }
                response.csr_pem = identity.request().map_err(internal)?;
                response.token = tokio::fs::read_to_string(&self.token_file)
                    .await
                    .map_err(|e| internal(format!("{}: {e}", self.token_file.display())))?
                    .trim()
                    .to_owned();
            }
            Some(Step::Install(install)) => {
                identity.install(&install.certificate_pem).map_err(|e| Status::invalid_argument(e.to_string()))?;
                tracing::info!("a certificate was installed");
            }
            None => return Err(Status::invalid_argument("step is missing: begin or install")),
        }
        if let Some(end) = identity.not_after().and_then(|t| jiff::Timestamp::try_from(t).ok()) {
            response.not_after = end.to_string();
        }
        Ok(Response::new(response))
    }

    async fn get_node(&self, request: Request<GetNodeRequest>) -> Result<Response<Node>, Status> {
        self.operator_only(&request)?;
        Ok(Response::new(Node {
            node_name: self.node_name.clone(),
            instance: self.shared.reports.instance().to_owned(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel_release: skep_kernel::probe::kernel_release(),
            architecture: std::env::consts::ARCH.to_owned(),
            api_versions: vec![skep_crds::API_VERSION.to_owned()],
            features: self.shared.features.all().to_vec(),
            boot_id: skep_kernel::probe::boot_id(),
        }))
    }

    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        self.operator_only(&request)?;
        let request = request.into_inner();
        self.in_epoch(request.epoch)?;
        let spec: serde_json::Value = serde_json::from_slice(&request.spec_json)
            .map_err(|e| refuse(Code::InvalidArgument, Reason::ObjectUnreadable, format!("spec_json: {e}")))?;
        if request.uid.is_empty() || (request.digest.is_empty() && request.unresolved.is_none()) {
            return Err(Status::invalid_argument("uid must be given, and digest or why there is none"));
        }
        let auth = credentials(&spec, &request.credentials);
        let program = DesiredProgram {
            uid: request.uid,
            namespace: request.namespace,
            name: request.name,
            generation: request.generation,
            revision: request.revision,
            load: request.load,
            digest: request.digest,
            api_version: request.api_version,
            spec,
            unresolved: request
                .unresolved
                .map(|why| Unresolved { reason: why.reason.parse().unwrap_or(Reason::Internal), message: why.message }),
            ..DesiredProgram::default()
        };
        self.supervisor.apply(program, auth).await.map_err(internal)?;
        Ok(Response::new(ApplyResponse {}))
    }

    async fn remove(&self, request: Request<RemoveRequest>) -> Result<Response<RemoveResponse>, Status> {
        self.operator_only(&request)?;
        let request = request.into_inner();
        self.in_epoch(request.epoch)?;
        let gone = self.supervisor.remove(request.uid).await.map_err(internal)?;
        Ok(Response::new(RemoveResponse { gone }))
    }

    async fn sync(&self, request: Request<SyncRequest>) -> Result<Response<SyncResponse>, Status> {
        self.operator_only(&request)?;
        let request = request.into_inner();
        self.in_epoch(request.epoch)?;
        let keep: BTreeSet<String> = request.uids.into_iter().chain(request.unreadable).collect();
        let removed = self.supervisor.sync(keep).await.map_err(internal)?;
        Ok(Response::new(SyncResponse { removed }))
    }

    async fn update_pods(&self, request: Request<UpdatePodsRequest>) -> Result<Response<UpdatePodsResponse>, Status> {
        self.operator_only(&request)?;
        let request = request.into_inner();
        self.in_epoch(request.epoch)?;
        let known = self.pods.borrow().clone();
        if known.is_none() && !request.snapshot {
            return Err(Status::failed_precondition("changes before a snapshot: send one first"));
        }
        let mut pods = if request.snapshot { BTreeMap::new() } else { known.map(|p| (*p).clone()).unwrap_or_default() };
        for uid in &request.gone {
            pods.remove(uid);
        }
        for pod in request.pods {
            let uid = if pod.config_hash.is_empty() { pod.uid.clone() } else { pod.config_hash };
            let record = PodRecord {
                uid,
                namespace: pod.namespace,
                name: pod.name,
                labels: pod.labels.into_iter().collect(),
                host_network: pod.host_network,
                containers: pod.containers.into_iter().filter(|c| !c.id.is_empty()).map(|c| (c.name, c.id)).collect(),
            };
            pods.insert(pod.uid, record);
        }
        self.pods.send_replace(Some(Arc::new(pods)));
        Ok(Response::new(UpdatePodsResponse {}))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<NodeEvent, Status>> + Send>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.operator_only(&request)?;
        let (sender, receiver) = mpsc::channel(WATCH_QUEUE);
        // Ends with the client, whose receiver is then gone (at the latest with the next heartbeat), or with the agent.
        let (shared, cancel) = (self.shared.clone(), self.cancel.clone());
        tokio::spawn(async move { cancel.run_until_cancelled(forward(shared, sender)).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// A snapshot, then changes; a watcher that fell behind gets a snapshot again.
async fn forward(shared: Arc<Shared>, sender: mpsc::Sender<Result<NodeEvent, Status>>) {
    loop {
        let (snapshot, mut events) = shared.reports.watch();
        if sender.send(Ok(snapshot)).await.is_err() {
            return;
        }
        loop {
            let event = match tokio::time::timeout(HEARTBEAT, events.recv()).await {
                Ok(Ok(event)) => event,
                Ok(Err(tokio::sync::broadcast::error::RecvError::Lagged(_))) => break,
                Ok(Err(tokio::sync::broadcast::error::RecvError::Closed)) => return,
                Err(_) => shared.reports.heartbeat(),
            };
            if sender.send(Ok(event)).await.is_err() {
                return;
            }
        }
    }
}

/// The credential for the registry that the spec names.
fn credentials(spec: &serde_json::Value, credentials: &[RegistryCredential]) -> Auth {
    let reference = spec.pointer("/image/reference").and_then(|r| r.as_str()).unwrap_or_default();
    let registry = skep_image::registry_of(reference).unwrap_or_default();
    match credentials.iter().find(|c| c.registry == registry) {
        Some(c) => Auth::Basic { user: c.username.clone(), password: c.password.clone() },
        None => Auth::Anonymous,
    }
}
