//! The way to one node's agent: port-forward to its pod, TLS to the node's own name, a token that is good for agents only.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, ServiceAccount};
use kube::api::{Api, ListParams, PostParams};
use kube::{Client, ResourceExt};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use skep_proto::{AGENT_AUDIENCE, AGENT_PORT};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use crate::agent::{Agent, Bearer};
use crate::args::Global;
use crate::cluster::Cluster;
use crate::deadline::within;
use crate::error::Error;
use crate::source::Access;

/// Lifetime of the token; the least that the API server grants.
const TOKEN_SECONDS: i64 = 600;
const CA_CONFIGMAP: &str = "skep-ca-bundle";
const CA_KEY: &str = "ca.crt";
/// The agent's port in its pod's spec.
const PORT_NAME: &str = "grpc";

/// What every connection to an agent of this cluster needs; made once.
pub struct Gate {
    client: Client,
    server: String,
    namespace: String,
    tls: Arc<ClientConfig>,
    bearer: Bearer,
    timeout: Duration,
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl Gate {
    /// Reads the certificate authority and mints the token.
    pub async fn open(cluster: &Cluster, global: &Global, access: Access) -> Result<Self, Error> {
        let (client, server) = (cluster.client.clone(), cluster.server.clone());
        let namespace = global.skep_namespace.clone();
        let timeout = cluster.timeout;
        let account = global.service_account.as_deref().unwrap_or(match access {
            Access::Read | Access::Follow => "skep-viewer",
            Access::Write => "skep-editor",
        });
        // Both at once; of two failures the first is told, always the same.
        let (tls, bearer) = tokio::join!(
            within(timeout, "reading the CA bundle", authority(cluster, &namespace)),
            within(timeout, "minting a token", token(cluster, &namespace, account)),
        );
        let (tls, bearer) = (tls?, bearer?);
        Ok(Gate { client, server, namespace, tls: Arc::new(tls), bearer, timeout })
    }

    /// Connects to the agent of a node.
    pub async fn agent(&self, node: &str) -> Result<Agent, Error> {
        within(self.timeout, "connecting to an agent", self.reach(node)).await
    }

    async fn reach(&self, node: &str) -> Result<Agent, Error> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let (pod, port) = self.pod(&pods, node).await?;
        let refused = Error::connecting("forwarding a port to the agent's pod", &self.server, &self.namespace);
        let mut forward = pods.portforward(&pod, &[port]).await.map_err(refused)?;
        let broken =
            |problem: &dyn std::fmt::Display| Error::Connection { node: node.to_owned(), problem: problem.to_string() };
        let stream = forward.take_stream(port).ok_or_else(|| broken(&"no stream was forwarded"))?;
        let refusal = forward.take_error(port);
        let name = ServerName::try_from(server_name(node)).map_err(|e| broken(&e))?;
        let stream = match TlsConnector::from(self.tls.clone()).connect(name, stream).await {
            Ok(stream) => stream,
            Err(e) => {
                // If kubelet could not reach the port it says so beside the stream.
                let said = match refusal {
                    Some(refusal) => tokio::time::timeout(Duration::from_millis(200), refusal).await.ok().flatten(),
                    None => None,
                };
                return Err(broken(&said.unwrap_or_else(|| explained(&e))));
            }
        };
        let channel = over(stream).await.map_err(|e| broken(&e))?;
        Ok(Agent::new(node.to_owned(), channel, self.bearer.clone(), Some(forward), self.timeout))
    }

    /// The pod of the node's agent, and the port on which it serves.
    async fn pod(&self, pods: &Api<Pod>, node: &str) -> Result<(String, u16), Error> {
        let params = ListParams::default()
            .labels("app.kubernetes.io/name=skep,app.kubernetes.io/component=agent")
            .fields(&format!("spec.nodeName={node}"));
        let refused = Error::connecting("finding the agent's pod", &self.server, &self.namespace);
        let found = pods.list(&params).await.map_err(refused)?;
        choose(&found.items).map_err(|hint| Error::NoAgent {
            node: node.to_owned(),
            namespace: self.namespace.clone(),
            hint,
        })
    }
}

/// One that runs and is not about to end, and its port.
fn choose(pods: &[Pod]) -> Result<(String, u16), &'static str> {
    let phase = |pod: &Pod| pod.status.as_ref().and_then(|s| s.phase.clone()).unwrap_or_default();
    let running = |pod: &&Pod| phase(pod) == "Running" && pod.metadata.deletion_timestamp.is_none();
    match pods.iter().find(running) {
        Some(pod) => Ok((pod.name_any(), port(pod))),
        None if pods.is_empty() => Err("no pod of the DaemonSet is on it (is the node's name right?)"),
        None => Err("its pod does not run"),
    }
}

/// The chart's value agent.port as the pod tells it, so that nobody has to tell the plugin.
fn port(pod: &Pod) -> u16 {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let named = containers.flat_map(|c| c.ports.iter().flatten()).find(|p| p.name.as_deref() == Some(PORT_NAME));
    named.and_then(|port| u16::try_from(port.container_port).ok()).unwrap_or(AGENT_PORT)
}

/// The name in a node's certificate.
fn server_name(node: &str) -> String {
    format!("{node}.node.skep")
}

fn explained(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "closed during the TLS handshake; the agent may not yet be enrolled".to_owned(),
        _ => format!("{error}; the agent's certificate must be of Skep's CA and of this node's name"),
    }
}

async fn authority(cluster: &Cluster, namespace: &str) -> Result<ClientConfig, Error> {
    let api: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), namespace);
    let bad = |problem: String| Error::CaBundle { namespace: namespace.to_owned(), problem };
    let map = match api.get(CA_CONFIGMAP).await {
        Err(kube::Error::Api(status)) if status.code == 404 => return Err(bad("it does not exist".to_owned())),
        other => other.map_err(Error::connecting("reading the CA bundle", &cluster.server, namespace))?,
    };
    let pem = map.data.and_then(|mut data| data.remove(CA_KEY)).ok_or_else(|| bad(format!("it has no {CA_KEY}")))?;
    tls(&pem).map_err(bad)
}

/// Trusts the authorities of a PEM bundle, and no others.
fn tls(pem: &str) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let added = certificate.map_err(|e| e.to_string()).and_then(|c| roots.add(c).map_err(|e| e.to_string()));
        added.map_err(|e| format!("{CA_KEY}: {e}"))?;
    }
    if roots.is_empty() {
        return Err(format!("{CA_KEY} holds no certificate"));
    }
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

async fn token(cluster: &Cluster, namespace: &str, account: &str) -> Result<Bearer, Error> {
    let api: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), namespace);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: vec![AGENT_AUDIENCE.to_owned()],
            expiration_seconds: Some(TOKEN_SECONDS),
            bound_object_ref: None,
        },
        ..TokenRequest::default()
    };
    let minted = match api.create_token_request(account, &PostParams::default(), &request).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {
            return Err(Error::NoServiceAccount { name: account.to_owned(), namespace: namespace.to_owned() });
        }
        other => other.map_err(Error::connecting("minting a token", &cluster.server, namespace))?,
    };
    Bearer::token(&minted.status.map(|s| s.token).unwrap_or_default())
}

/// HTTP/2 over a stream that is connected already; when it ends the channel ends.
async fn over<S>(stream: S) -> Result<Channel, tonic::transport::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut stream = Some(stream);
    let connector = tower::service_fn(move |_| {
        let stream = stream.take().map(TokioIo::new);
        async move { stream.ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "the connection was lost")) }
    });
    // The address is for HTTP's sake; TLS is below.
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, phase: &str, ending: bool) -> Pod {
        let deletion = ending.then_some("2024-01-01T00:00:00Z");
        let json = serde_json::json!({
            "metadata": {"name": name, "deletionTimestamp": deletion}, "status": {"phase": phase},
        });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn the_pod_that_lives_is_chosen() {
        let pods = [pod("old", "Running", true), pod("new", "Running", false)];
        assert_eq!(choose(&pods), Ok(("new".into(), AGENT_PORT)));
        assert_eq!(choose(&[pod("x", "Pending", false)]), Err("its pod does not run"));
        assert!(choose(&[]).is_err());
    }

    #[test]
    fn a_bundle_without_certificates_is_refused() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        assert!(tls("").unwrap_err().contains("no certificate"));
        assert!(tls("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").is_err());
    }
}
