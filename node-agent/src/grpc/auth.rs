//! What a bearer token allows: TokenReview for who it is, SubjectAccessReview for what they may. These are the only two
//! things that the agent asks of the cluster.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::{Api, PostParams};
use sha2::{Digest, Sha256};
use skep_crds::{GROUP, Reason};
use skep_proto::AGENT_AUDIENCE;
use tokio::sync::Semaphore;
use tonic::{Code, Request, Status};

use super::caller::{Caller, User, caller};
use super::refuse;

/// How long what the API server said of a token, or granted, is not asked for again.
const REMEMBER: Duration = Duration::from_secs(20);
/// Tokens, and grants, remembered at most.
const MAX_REMEMBERED: usize = 1024;
/// How long the API server may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// Questions that may be open at once.
const ASKING: usize = 32;

/// A right on what belongs to the programs of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Right {
    pub verb: &'static str,
    /// The virtual resource below `ebpfprograms`, e.g. `maps`.
    pub subresource: &'static str,
}

/// Seeing programs and their maps.
pub const GET_MAPS: Right = Right { verb: "get", subresource: "maps" };

/// Writing entries of maps, and deleting them.
pub const UPDATE_MAPS: Right = Right { verb: "update", subresource: "maps" };
pub const DELETE_MAPS: Right = Right { verb: "delete", subresource: "maps" };

/// Reading records of ring buffers and perf event arrays.
pub const GET_EVENTS: Right = Right { verb: "get", subresource: "events" };

/// Asks the API server. Without one (standalone) tokens are refused.
pub struct Authorizer {
    client: Option<kube::Client>,
    /// By the token's hash.
    users: Remembered<[u8; 32], Arc<User>>,
    grants: Remembered<([u8; 32], String, Right), ()>,
    asking: Semaphore,
}

impl std::fmt::Debug for Authorizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authorizer").finish_non_exhaustive()
    }
}

/// The refusal of a caller who shows no token.
pub fn no_token() -> Status {
    let how =
        format!("send a bearer token of audience {AGENT_AUDIENCE} (kubectl create token --audience={AGENT_AUDIENCE})");
    refuse(Code::Unauthenticated, Reason::PermissionDenied, how)
}

impl Authorizer {
    pub fn new(client: Option<kube::Client>) -> Self {
        let (users, grants) = (Remembered::default(), Remembered::default());
        Authorizer { client, users, grants, asking: Semaphore::new(ASKING) }
    }

    /// Whose a token is.
    pub async fn user(&self, token: &str) -> Result<Arc<User>, Status> {
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(user) = self.users.get(&key) {
            return Ok(user);
        }
        let info = self.ask(|client| review(client, token)).await?;
        let user = Arc::new(User { info, token: key });
        self.users.put(key, user.clone());
        Ok(user)
    }

    /// Root may all; a token's owner what the cluster lets them in `namespace`, or, if that is empty, in all namespaces;
    /// everybody else nothing.
    pub async fn check<T>(&self, request: &Request<T>, namespace: &str, right: Right) -> Result<(), Status> {
        let user = match caller(request) {
            Caller::Root => return Ok(()),
            Caller::User(user) => user,
            Caller::Operator | Caller::Nobody => return Err(no_token()),
        };
        let key = (user.token, namespace.to_owned(), right);
        if self.grants.get(&key).is_some() {
            return Ok(());
        }
        self.ask(|client| access(client, &user.info, namespace, right)).await?;
        self.grants.put(key, ());
        Ok(())
    }

    /// A question to the API server, of which few go on at once: strangers with made-up tokens must not flood it.
    async fn ask<'a, T, F>(&'a self, question: impl FnOnce(&'a kube::Client) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let Some(client) = &self.client else {
            let message = "this agent runs without Kubernetes: use its socket";
            return Err(refuse(Code::Unauthenticated, Reason::PermissionDenied, message));
        };
        let asked = tokio::time::timeout(DEADLINE, async {
            let _turn = self.asking.acquire().await;
            question(client).await
        });
        asked.await.map_err(|_| refuse(Code::Unavailable, Reason::Timeout, "the API server does not answer"))?
    }
}

/// Answers that are not asked for again for a while.
#[derive(Debug)]
struct Remembered<K, V>(Mutex<HashMap<K, (Instant, V)>>);

impl<K, V> Default for Remembered<K, V> {
    fn default() -> Self {
        Remembered(Mutex::default())
    }
}

impl<K: Eq + Hash, V: Clone> Remembered<K, V> {
    fn get(&self, key: &K) -> Option<V> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(key).filter(|(since, _)| since.elapsed() < REMEMBER).map(|(_, value)| value.clone())
    }

    fn put(&self, key: K, value: V) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, (since, _)| since.elapsed() < REMEMBER);
        if known.len() < MAX_REMEMBERED {
            known.insert(key, (Instant::now(), value));
        }
    }
}

fn unavailable(error: kube::Error) -> Status {
    refuse(Code::Unavailable, Reason::Internal, format!("asking the API server: {error}"))
}

async fn review(client: &kube::Client, token: &str) -> Result<UserInfo, Status> {
    let review = TokenReview {
        spec: TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![AGENT_AUDIENCE.to_owned()]) },
        ..TokenReview::default()
    };
    let api: Api<TokenReview> = Api::all(client.clone());
    let status = api.create(&PostParams::default(), &review).await.map_err(unavailable)?.status.unwrap_or_default();
    let for_us = status.audiences.iter().flatten().any(|a| a == AGENT_AUDIENCE);
    status.user.filter(|_| status.authenticated == Some(true) && for_us).ok_or_else(|| {
        let why = status.error.unwrap_or_else(|| "not valid, or of another audience".into());
        refuse(Code::Unauthenticated, Reason::PermissionDenied, format!("the bearer token is refused: {why}"))
    })
}

async fn access(client: &kube::Client, user: &UserInfo, namespace: &str, right: Right) -> Result<(), Status> {
    let user = user.clone();
    let who = user.username.clone().unwrap_or_default();
    let access = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: user.username,
            uid: user.uid,
            groups: user.groups,
            extra: user.extra,
            resource_attributes: Some(ResourceAttributes {
                group: Some(GROUP.to_owned()),
                resource: Some("ebpfprograms".to_owned()),
                subresource: Some(right.subresource.to_owned()),
                verb: Some(right.verb.to_owned()),
                namespace: Some(namespace.to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let api: Api<SubjectAccessReview> = Api::all(client.clone());
    let allowed =
        api.create(&PostParams::default(), &access).await.map_err(unavailable)?.status.is_some_and(|s| s.allowed);
    if allowed {
        return Ok(());
    }
    let Right { verb, subresource } = right;
    let (place, role) = match namespace {
        "" => ("in all namespaces".to_owned(), "ClusterRole, by a ClusterRoleBinding,"),
        one => (format!("in namespace {one}"), "Role"),
    };
    let message = format!("{who} may not {verb} ebpfprograms/{subresource} {place}; bind a {role} that allows it");
    Err(refuse(Code::PermissionDenied, Reason::PermissionDenied, message))
}
