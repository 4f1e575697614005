//! Who calls, as far as the connection tells.

use skep_proto::OPERATOR_NAME;
use tonic::Request;
use tonic::transport::server::UdsConnectInfo;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Root of this node, over the unix socket.
    Root,
    /// The operator, by a client certificate of our authority.
    Operator,
    /// Somebody with a bearer token, which nobody has looked at yet.
    Token(String),
    Nobody,
}

/// Reads the connection's facts, which no client can set, then the token.
pub fn caller<T>(request: &Request<T>) -> Caller {
    if let Some(uds) = request.extensions().get::<UdsConnectInfo>() {
        return match uds.peer_cred.map(|c| c.uid()) {
            Some(0) => Caller::Root,
            _ => Caller::Nobody,
        };
    }
    // The handshake has verified the chain and that it is a client's certificate.
    let certificates = request.peer_certs();
    if certificates
        .iter()
        .flat_map(|c| c.iter())
        .take(1)
        .any(|leaf| common_name(leaf).as_deref() == Some(OPERATOR_NAME))
    {
        return Caller::Operator;
    }
    let token =
        request.metadata().get("authorization").and_then(|v| v.to_str().ok()).and_then(|v| v.strip_prefix("Bearer "));
    token.map_or(Caller::Nobody, |t| Caller::Token(t.trim().to_owned()))
}

fn common_name(der: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    Some(name.to_owned())
}
