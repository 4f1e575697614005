//! Whether who answers on a node is the agent's pod on that node: TokenReview of its pod-bound token.

use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::{Api, PostParams};
use skep_proto::OPERATOR_AUDIENCE;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::fleet::AgentPod;

const DEADLINE: Duration = Duration::from_secs(5);
const NODE: &str = "authentication.kubernetes.io/node-name";
const POD: &str = "authentication.kubernetes.io/pod-uid";
/// Reviews that run at the same time.
const PARALLEL: usize = 16;

/// Why a token does not prove that its owner is the agent.
#[derive(thiserror::Error, Clone, Debug, PartialEq, Eq)]
pub enum TokenError {
    #[error("the API server does not know the agent's token: {0}")]
    Unauthenticated(String),
    #[error("the agent's token is not for {OPERATOR_AUDIENCE}: mount a projected token of that audience")]
    Audience,
    #[error("the agent's token is of {found}, not of {wanted}")]
    Account { wanted: String, found: String },
    #[error("the agent's token is bound to node {found:?}, not to {wanted:?}")]
    Node { wanted: String, found: String },
    #[error("the agent's token is bound to another pod ({found:?}, not {wanted:?})")]
    Pod { wanted: String, found: String },
    #[error("the agent's token could not be reviewed: {0}")]
    Unavailable(String),
}

/// A question to who reviews tokens.
#[derive(Debug)]
pub struct Review {
    /// The token.
    pub token: String,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Result<TokenReviewStatus, TokenError>>,
}

/// Asks, and checks the answer against the pod that should be talking.
pub async fn review(reviews: &mpsc::Sender<Review>, token: String, pod: &AgentPod) -> Result<(), TokenError> {
    let (answer, answered) = oneshot::channel();
    let gone = |_| TokenError::Unavailable("shutting down".into());
    reviews.send(Review { token, answer }).await.map_err(|_| TokenError::Unavailable("shutting down".into()))?;
    check(&answered.await.map_err(gone)??, pod)
}

/// Whether the review says that the token is of this pod, on its node, and meant for us.
pub fn check(status: &TokenReviewStatus, pod: &AgentPod) -> Result<(), TokenError> {
    if status.authenticated != Some(true) {
        return Err(TokenError::Unauthenticated(status.error.clone().unwrap_or_else(|| "not valid".into())));
    }
    if !status.audiences.iter().flatten().any(|audience| audience == OPERATOR_AUDIENCE) {
        return Err(TokenError::Audience);
    }
    let user = status.user.clone().unwrap_or_default();
    let found = user.username.unwrap_or_default();
    let wanted = format!("system:serviceaccount:{}:{}", pod.namespace, pod.service_account);
    if found != wanted {
        return Err(TokenError::Account { wanted, found });
    }
    let extra = user.extra.unwrap_or_default();
    let first = |key: &str| extra.get(key).and_then(|values| values.first()).cloned().unwrap_or_default();
    let (node, uid) = (first(NODE), first(POD));
    if node != pod.node {
        return Err(TokenError::Node { wanted: pod.node.clone(), found: node });
    }
    if uid != pod.uid {
        return Err(TokenError::Pod { wanted: pod.uid.clone(), found: uid });
    }
    Ok(())
}

/// Answers questions by asking the API server, until nobody asks any more.
pub async fn serve(client: kube::Client, mut reviews: mpsc::Receiver<Review>) {
    let mut running = JoinSet::new();
    loop {
        tokio::select! {
            review = reviews.recv(), if running.len() < PARALLEL => match review {
                Some(Review { token, answer }) => {
                    let client = client.clone();
                    running.spawn(async move { drop(answer.send(ask(client, token).await)) });
                }
                None => return,
            },
            Some(_) = running.join_next() => {}
        }
    }
}

async fn ask(client: kube::Client, token: String) -> Result<TokenReviewStatus, TokenError> {
    let spec = TokenReviewSpec { token: Some(token), audiences: Some(vec![OPERATOR_AUDIENCE.into()]) };
    let (api, params) = (Api::<TokenReview>::all(client), PostParams::default());
    let review = TokenReview { spec, ..TokenReview::default() };
    match tokio::time::timeout(DEADLINE, api.create(&params, &review)).await {
        Ok(Ok(review)) => Ok(review.status.unwrap_or_default()),
        Ok(Err(error)) => Err(TokenError::Unavailable(error.to_string())),
        Err(_) => Err(TokenError::Unavailable("the API server does not answer".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> AgentPod {
        AgentPod {
            node: "n1".into(),
            namespace: "skep-system".into(),
            service_account: "skep-agent".into(),
            uid: "u1".into(),
            address: std::net::Ipv4Addr::LOCALHOST.into(),
        }
    }

    fn status(username: &str, node: &str, uid: &str) -> TokenReviewStatus {
        serde_json::from_value(json!({
            "authenticated": true, "audiences": ["skep-operator"],
            "user": {"username": username, "extra": {NODE: [node], POD: [uid]}},
        }))
        .unwrap()
    }

    #[test]
    fn only_the_pod_itself_passes() {
        let account = "system:serviceaccount:skep-system:skep-agent";
        assert_eq!(check(&status(account, "n1", "u1"), &pod()), Ok(()));
        let other = "system:serviceaccount:default:skep-agent";
        assert!(matches!(check(&status(other, "n1", "u1"), &pod()), Err(TokenError::Account { .. })));
        assert!(matches!(check(&status(account, "n2", "u1"), &pod()), Err(TokenError::Node { .. })));
        assert!(matches!(check(&status(account, "n1", "u2"), &pod()), Err(TokenError::Pod { .. })));
        let mut none = status(account, "n1", "u1");
        none.audiences = None;
        assert_eq!(check(&none, &pod()), Err(TokenError::Audience));
        none.authenticated = None;
        assert!(matches!(check(&none, &pod()), Err(TokenError::Unauthenticated(_))));
    }
}
