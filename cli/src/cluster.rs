//! Programs and nodes as the API server has them.

use std::fmt::Debug;
use std::time::Duration;

use k8s_openapi::api::core::v1::Event as ApiEvent;
use kube::api::{Api, ListParams, ObjectMeta};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use kube::core::DeserializeGuard;
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use skep_crds::ebpfnode::{NodeHook, NodeProgram, NodeProgramState};
use skep_crds::{EbpfNode, EbpfProgram, EbpfProgramSpec, Reason};

use crate::args::Global;
use crate::deadline::within;
use crate::error::Error;
use crate::events;
use crate::view::{Deletion, Event, Hook, NodeState, Program};

/// Objects a page of a list.
const PAGE: u32 = 250;

/// A connection to the API server, as the user.
#[derive(Clone)]
pub struct Cluster {
    pub client: Client,
    /// The namespace that commands are about.
    pub namespace: String,
    /// The API server's address.
    pub server: String,
    pub timeout: Duration,
}

impl Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl Cluster {
    /// By kubeconfig, or in a pod by its ServiceAccount.
    pub async fn connect(global: &Global) -> Result<Self, Error> {
        let options = KubeConfigOptions { context: global.context.clone(), ..KubeConfigOptions::default() };
        let unreadable = |e: &dyn std::fmt::Display| Error::Kubeconfig(e.to_string());
        let config = match (&global.kubeconfig, &global.context) {
            (Some(path), _) => {
                let file = Kubeconfig::read_from(path).map_err(|e| unreadable(&e))?;
                Config::from_custom_kubeconfig(file, &options).await.map_err(|e| unreadable(&e))?
            }
            (None, Some(_)) => Config::from_kubeconfig(&options).await.map_err(|e| unreadable(&e))?,
            (None, None) => Config::infer().await.map_err(|e| unreadable(&e))?,
        };
        let namespace = global.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let server = config.cluster_url.to_string();
        let client = Client::try_from(config).map_err(|e| unreadable(&e))?;
        Ok(Cluster { client, namespace, server, timeout: global.request_timeout })
    }

    /// The programs of the namespace, or of all.
    pub async fn programs(&self, all_namespaces: bool) -> Result<Vec<Program>, Error> {
        let api: Api<DeserializeGuard<EbpfProgram>> = match all_namespaces {
            true => Api::all(self.client.clone()),
            false => Api::namespaced(self.client.clone(), &self.namespace),
        };
        let objects = self.list(&api, "listing EbpfPrograms").await?;
        Ok(objects.into_iter().map(guarded).collect())
    }

    /// One program of the namespace, and its uid.
    pub async fn program(&self, name: &str) -> Result<(Program, String), Error> {
        let object = self.object(name).await?;
        let uid = object.meta().uid.clone().unwrap_or_default();
        Ok((guarded(object), uid))
    }

    /// What one program of the namespace is to be, and the digest that its image has.
    pub async fn spec(&self, name: &str) -> Result<(EbpfProgramSpec, Option<String>), Error> {
        let object = self
            .object(name)
            .await?
            .0
            .map_err(|invalid| Error::Unreadable { program: name.to_owned(), problem: invalid.error })?;
        Ok((object.spec, object.status.and_then(|status| status.image).map(|image| image.digest)))
    }

    async fn object(&self, name: &str) -> Result<DeserializeGuard<EbpfProgram>, Error> {
        let api: Api<DeserializeGuard<EbpfProgram>> = Api::namespaced(self.client.clone(), &self.namespace);
        let what = "reading the EbpfProgram";
        let got = within(self.timeout, what, async {
            match api.get(name).await {
                Err(kube::Error::Api(status))
                    if status.code == 404 && status.details.as_ref().is_some_and(|d| !d.name.is_empty()) =>
                {
                    Err(Error::NoProgram(format!("{}/{name}", self.namespace)))
                }
                other => other.map_err(Error::viewing(what, &self.server)),
            }
        });
        got.await
    }

    /// Every EbpfNode that can be read.
    pub async fn nodes(&self) -> Result<Vec<EbpfNode>, Error> {
        let api: Api<DeserializeGuard<EbpfNode>> = Api::all(self.client.clone());
        let objects = self.list(&api, "listing EbpfNodes").await?;
        Ok(objects.into_iter().filter_map(|object| object.0.ok()).collect())
    }

    /// The last Events of an object of the namespace.
    pub async fn events(&self, uid: &str) -> Result<Vec<Event>, Error> {
        let api: Api<ApiEvent> = Api::namespaced(self.client.clone(), &self.namespace);
        let params = ListParams::default().fields(&format!("involvedObject.uid={uid}"));
        let what = "listing Events";
        let list = async { api.list(&params).await.map_err(Error::kubernetes(what, &self.server)) };
        Ok(events::last(within(self.timeout, what, list).await?.items))
    }

    async fn list<K>(&self, api: &Api<K>, what: &'static str) -> Result<Vec<K>, Error>
    where
        K: Clone + DeserializeOwned + Debug,
    {
        let mut all = Vec::new();
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let page = async { api.list(&params).await.map_err(Error::viewing(what, &self.server)) };
            let page = within(self.timeout, what, page).await?;
            all.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(all),
            }
        }
    }
}

/// One that cannot be decoded is shown as such, and hides no other.
fn guarded(object: DeserializeGuard<EbpfProgram>) -> Program {
    match object.0 {
        Ok(object) => program(&object),
        Err(invalid) => Program {
            deletion: deletion(&invalid.metadata),
            namespace: invalid.metadata.namespace.unwrap_or_default(),
            name: invalid.metadata.name.unwrap_or_default(),
            reason: Reason::ObjectUnreadable.to_string(),
            created: invalid.metadata.creation_timestamp.map(|t| t.0),
            generation: invalid.metadata.generation,
            ..Program::default()
        },
    }
}

/// The object as it is shown.
pub fn program(object: &EbpfProgram) -> Program {
    let status = object.status.clone().unwrap_or_default();
    let summary = status.summary;
    Program {
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
        ready: summary.as_ref().map(|s| s.ready.clone()).unwrap_or_default(),
        reason: summary.map(|s| s.reason.to_string()).unwrap_or_default(),
        revision: status.revision.unwrap_or_default(),
        created: object.creation_timestamp().map(|t| t.0),
        deletion: deletion(&object.metadata),
        image: object.spec.image.reference.clone(),
        digest: status.image.map(|i| i.digest).unwrap_or_default(),
        generation: object.metadata.generation,
        observed_generation: status.observed_generation,
        counts: status.nodes,
        conditions: status.conditions,
        failures: status.failures,
        ..Program::default()
    }
}

fn deletion(meta: &ObjectMeta) -> Option<Deletion> {
    let since = meta.deletion_timestamp.as_ref()?.0;
    Some(Deletion { since, finalizers: meta.finalizers.clone().unwrap_or_default() })
}

/// Gives each program its states on the nodes, by node name.
pub fn put_states(programs: &mut [Program], nodes: &[EbpfNode]) {
    for program in programs.iter_mut() {
        program.nodes = nodes.iter().filter_map(|node| state_on(node, &program.namespace, &program.name)).collect();
        program.nodes.sort_by(|a, b| a.node.cmp(&b.node));
    }
}

fn state_on(node: &EbpfNode, namespace: &str, name: &str) -> Option<NodeState> {
    let on_node = &node.status.as_ref()?.programs;
    let program = on_node.iter().find(|p| p.namespace == namespace && p.name == name)?;
    Some(node_state(&node.name_any(), program))
}

fn node_state(node: &str, program: &NodeProgram) -> NodeState {
    NodeState {
        node: node.to_owned(),
        state: program.state.map(state).unwrap_or_default().to_owned(),
        reason: program.reason.map(|r| r.to_string()).unwrap_or_default(),
        message: program.message.clone().unwrap_or_default(),
        revision: program.revision.clone().unwrap_or_default(),
        hooks: program.hooks.iter().map(hook).collect(),
    }
}

fn state(state: NodeProgramState) -> &'static str {
    match state {
        NodeProgramState::Updating => "Updating",
        NodeProgramState::Ready => "Ready",
        NodeProgramState::Degraded => "Degraded",
        NodeProgramState::Unsupported => "Unsupported",
        NodeProgramState::Removing => "Removing",
        NodeProgramState::Failed => "Failed",
    }
}

fn hook(hook: &NodeHook) -> Hook {
    Hook {
        function: hook.function.clone(),
        hook: hook.hook.clone(),
        targets: u32::try_from(hook.targets).unwrap_or(0),
        names: hook.first.clone(),
        failures: Vec::new(),
    }
}
