//! TLS to an agent, with the operator's certificate.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use skep_proto::v1::agent_client::AgentClient;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::{AgentPod, Context};
use crate::certs::CertError;
use crate::certs::authority::node_dns_name;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// A snapshot of a thousand programs with logs.
const MAX_MESSAGE: usize = 64 << 20;

/// A client of an agent.
pub type Client = AgentClient<Channel>;

/// Why there is no connection.
#[derive(thiserror::Error, Debug)]
pub enum DialError {
    /// Something answers that is not the agent of this node, or not yet.
    #[error("the agent at {address} has no certificate of this cluster's authority ({detail})")]
    Untrusted { address: SocketAddr, detail: String },
    #[error("the agent at {address} does not answer: {detail}")]
    Unreachable { address: SocketAddr, detail: String },
    #[error(transparent)]
    Certificate(#[from] CertError),
}

/// Whom to accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The agent of that node, by a certificate of our authority.
    Node,
    /// Anyone: for enrolling only, where the token tells who it is.
    Anyone,
}

/// Connects.
pub async fn dial(context: &Context, pod: &AgentPod, trust: Trust) -> Result<Client, DialError> {
    let address = SocketAddr::new(pod.address, context.port);
    let credential = context.credential()?;
    let unreachable = |error: tonic::transport::Error| classify(address, &error);
    let tls = ClientTlsConfig::new()
        .identity(Identity::from_pem(credential.certificate, credential.key))
        .domain_name(node_dns_name(&pod.node));
    let endpoint = Endpoint::from_shared(format!("https://{address}")).map_err(unreachable)?.connect_timeout(CONNECT);
    let endpoint = match trust {
        Trust::Node => endpoint.tls_config(tls.ca_certificate(Certificate::from_pem(context.authority.certificate()))),
        Trust::Anyone => endpoint.tls_config_with_verifier(tls, Arc::new(Any::default())),
    }
    .map_err(unreachable)?;
    match tokio::time::timeout(CONNECT, endpoint.connect()).await {
        Ok(Ok(channel)) => Ok(AgentClient::new(channel).max_decoding_message_size(MAX_MESSAGE)),
        Ok(Err(error)) => Err(classify(address, &error)),
        Err(_) => Err(DialError::Unreachable { address, detail: format!("no answer within {} s", CONNECT.as_secs()) }),
    }
}

fn classify(address: SocketAddr, error: &tonic::transport::Error) -> DialError {
    let mut detail = error.to_string();
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(rustls::Error::InvalidCertificate(fault)) = rustls_error(error) {
            return DialError::Untrusted { address, detail: fault.to_string() };
        }
        detail = error.to_string();
        cause = error.source();
    }
    DialError::Unreachable { address, detail }
}

fn rustls_error<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e rustls::Error> {
    // An io::Error's source is the source of what it wraps, not what it wraps.
    let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    wrapped.and_then(|inner| inner.downcast_ref()).or_else(|| error.downcast_ref())
}

/// Accepts every certificate whose key the other side has.
#[derive(Debug)]
struct Any(CryptoProvider);

impl Default for Any {
    fn default() -> Self {
        Self(rustls::crypto::ring::default_provider())
    }
}

impl ServerCertVerifier for Any {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
