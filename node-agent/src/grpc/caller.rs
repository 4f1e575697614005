//! Who calls. On TCP that is found out before a request is read: see [`super::admit`].

use std::sync::Arc;

use k8s_openapi::api::authentication::v1::UserInfo;
use skep_proto::OPERATOR_NAME;
use tonic::Request;
use tonic::transport::server::UdsConnectInfo;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::places::Connection;

/// Who calls.
#[derive(Clone, Debug, PartialEq)]
pub enum Caller {
    /// Root of this node, over the unix socket.
    Root,
    /// The operator, by a client certificate of our authority.
    Operator,
    /// Somebody whom the API server knows by their bearer token.
    User(Arc<User>),
    Nobody,
}

impl std::fmt::Display for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Caller::Root => f.write_str("root of the node"),
            Caller::Operator => f.write_str("the operator"),
            Caller::User(user) => f.write_str(user.info.username.as_deref().unwrap_or("somebody without a name")),
            Caller::Nobody => f.write_str("nobody"),
        }
    }
}

/// The owner of a token.
#[derive(Clone, Debug, PartialEq)]
pub struct User {
    pub info: UserInfo,
    /// SHA-256 of the token.
    pub token: [u8; 32],
}

/// What the unix socket tells, or what was found out when the request was admitted; nobody where neither is.
pub fn caller<T>(request: &Request<T>) -> Caller {
    if let Some(uds) = request.extensions().get::<UdsConnectInfo>() {
        return match uds.peer_cred.map(|c| c.uid()) {
            Some(0) => Caller::Root,
            _ => Caller::Nobody,
        };
    }
    request.extensions().get().cloned().unwrap_or(Caller::Nobody)
}

/// Whether the other side of a connection is the operator. The handshake has verified the chain, and that it is a
/// client's certificate.
pub fn is_operator(connection: &Connection) -> bool {
    let certificates = connection.tls.peer_certs();
    let leaf = certificates.iter().flat_map(|chain| chain.iter()).next();
    leaf.is_some_and(|leaf| common_name(leaf).as_deref() == Some(OPERATOR_NAME))
}

fn common_name(der: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    Some(name.to_owned())
}
