//! The calls that a session has under way, each ending in a value.

use std::sync::Arc;
use std::time::Duration;

use skep_proto::v1::{ApplyRequest, ProgramReport, RemoveRequest, State, UpdatePodsRequest};
use tonic::Status;

use super::board::Order;
use super::call::{self, within};
use super::dial::Client;
use super::enroll::{When, enroll};
use super::pods::Pods;
use super::{AgentPod, Context};

/// When a renewal that failed is tried again.
const RENEW_AGAIN: Duration = Duration::from_secs(60);

/// The end of a call.
pub enum Done {
    Applied(Arc<Order>, Result<(), Status>),
    /// Whether nothing is left.
    Removed(String, Result<bool, Status>),
    /// What the agent was told.
    Pods(Pods, Result<(), Status>),
    /// In how long the certificate is due again.
    Renewed(Duration),
}

pub async fn apply(mut client: Client, epoch: u64, order: Arc<Order>) -> Done {
    let request = ApplyRequest { epoch, ..(*order).clone() };
    Done::Applied(order, within(client.apply(request)).await.map(drop))
}

pub async fn remove(mut client: Client, epoch: u64, uid: String) -> Done {
    let answer = within(client.remove(RemoveRequest { epoch, uid: uid.clone() })).await;
    Done::Removed(uid, answer.map(|answer| answer.gone))
}

pub async fn pods(mut client: Client, pods: Pods, request: UpdatePodsRequest) -> Done {
    Done::Pods(pods, within(client.update_pods(request)).await.map(drop))
}

pub async fn renew(mut client: Client, context: Arc<Context>, pod: AgentPod) -> Done {
    let due = enroll(&mut client, &context, &pod, When::Due).await;
    Done::Renewed(due.unwrap_or_else(|error| {
        tracing::warn!(node = %pod.node, %error, "the agent's certificate could not be renewed; trying again");
        RENEW_AGAIN
    }))
}

/// The report that an agent would make of an order that it did not take.
pub fn refused(order: &Order, status: &Status) -> ProgramReport {
    let (reason, message) = call::reason(status);
    ProgramReport {
        uid: order.uid.clone(),
        namespace: order.namespace.clone(),
        name: order.name.clone(),
        generation: order.generation,
        desired_revision: order.revision.clone(),
        digest: order.digest.clone(),
        state: State::Failed as i32,
        reason: reason.to_string(),
        message,
        ..ProgramReport::default()
    }
}
