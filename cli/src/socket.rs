//! The agent of this host, by its unix socket.

use std::io;
use std::path::Path;
use std::time::Duration;

use skep_proto::v1::agent_client::AgentClient;
use skep_proto::v1::{GetNodeRequest, Node};
use tonic::transport::Channel;

use crate::agent::{Agent, Bearer};
use crate::deadline::within;
use crate::error::Error;

/// Connects, and learns the node's name.
pub async fn connect(path: &Path, timeout: Duration) -> Result<Agent, Error> {
    let (node, channel) = ask(path, timeout).await?;
    Ok(Agent::new(node.node_name, channel, Bearer::default(), None, timeout))
}

/// What the agent says of its node.
pub async fn node(path: &Path, timeout: Duration) -> Result<Node, Error> {
    ask(path, timeout).await.map(|(node, _)| node)
}

async fn ask(path: &Path, timeout: Duration) -> Result<(Node, Channel), Error> {
    within(timeout, "connecting to the agent's socket", async {
        // What is wrong with a socket only a plain connect tells.
        tokio::net::UnixStream::connect(path).await.map_err(|e| refused(path, &e))?;
        let dead = |e: &dyn std::fmt::Display| Error::DeadSocket { path: path.to_owned(), problem: e.to_string() };
        let channel = skep_proto::client::unix(path).await.map_err(|e| dead(&e))?;
        let node = AgentClient::new(channel.clone()).get_node(GetNodeRequest {}).await;
        let node = node.map_err(|status| match Error::call(&path.to_string_lossy(), status) {
            Error::Broken { problem, .. } => dead(&problem),
            other => other,
        })?;
        Ok((node.into_inner(), channel))
    })
    .await
}

fn refused(path: &Path, error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => Error::NoSocket(path.to_owned()),
        io::ErrorKind::PermissionDenied => Error::NotRoot(path.to_owned()),
        _ => Error::DeadSocket { path: path.to_owned(), problem: error.to_string() },
    }
}
