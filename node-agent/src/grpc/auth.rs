//! What a bearer token allows: TokenReview for who it is, SubjectAccessReview for what they may. These are the only two
//! things that the agent asks of the cluster.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::{Api, PostParams};
use sha2::{Digest, Sha256};
use skep_crds::{GROUP, Reason};
use skep_proto::AGENT_AUDIENCE;
use tonic::{Code, Request, Status};

use super::caller::{Caller, caller};
use super::refuse;

/// How long a granted right is not asked for again.
const REMEMBER: Duration = Duration::from_secs(20);
/// Grants remembered at most.
const MAX_REMEMBERED: usize = 1024;
/// How long the API server may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// A right on what belongs to the programs of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Right {
    pub verb: &'static str,
    /// The virtual resource below `ebpfprograms`, e.g. `maps`.
    pub subresource: &'static str,
}

/// Seeing programs and their maps.
pub const GET_MAPS: Right = Right { verb: "get", subresource: "maps" };

type Grants = HashMap<([u8; 32], String, Right), Instant>;

/// Asks the API server. Without one (standalone) tokens are refused.
#[derive(Default)]
pub struct Authorizer {
    client: Option<kube::Client>,
    grants: Mutex<Grants>,
}

impl std::fmt::Debug for Authorizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authorizer").finish_non_exhaustive()
    }
}

impl Authorizer {
    pub fn new(client: Option<kube::Client>) -> Self {
        Authorizer { client, grants: Mutex::default() }
    }

    /// Root may all; a token what its owner may in `namespace`; everybody else nothing.
    pub async fn check<T>(&self, request: &Request<T>, namespace: &str, right: Right) -> Result<(), Status> {
        let token = match caller(request) {
            Caller::Root => return Ok(()),
            Caller::Token(token) => token,
            Caller::Operator | Caller::Nobody => {
                let how = format!(
                    "send a bearer token of audience {AGENT_AUDIENCE} (kubectl create token --audience={AGENT_AUDIENCE})"
                );
                return Err(refuse(Code::Unauthenticated, Reason::PermissionDenied, how));
            }
        };
        if namespace.is_empty() {
            return Err(Status::invalid_argument("namespace is empty: rights are asked for per namespace"));
        }
        let key = (Sha256::digest(token.as_bytes()).into(), namespace.to_owned(), right);
        if self.is_remembered(&key) {
            return Ok(());
        }
        let Some(client) = &self.client else {
            return Err(refuse(
                Code::Unauthenticated,
                Reason::PermissionDenied,
                "this agent runs without Kubernetes: use its socket",
            ));
        };
        let asked = tokio::time::timeout(DEADLINE, ask(client, &token, namespace, right)).await;
        asked.map_err(|_| refuse(Code::Unavailable, Reason::Timeout, "the API server does not answer"))??;
        self.remember(key);
        Ok(())
    }

    fn is_remembered(&self, key: &([u8; 32], String, Right)) -> bool {
        let grants = self.grants.lock().unwrap_or_else(PoisonError::into_inner);
        grants.get(key).is_some_and(|since| since.elapsed() < REMEMBER)
    }

    fn remember(&self, key: ([u8; 32], String, Right)) {
        let mut grants = self.grants.lock().unwrap_or_else(PoisonError::into_inner);
        grants.retain(|_, since| since.elapsed() < REMEMBER);
        if grants.len() < MAX_REMEMBERED {
            grants.insert(key, Instant::now());
        }
    }
}

async fn ask(client: &kube::Client, token: &str, namespace: &str, right: Right) -> Result<(), Status> {
    let unavailable =
        |e: kube::Error| refuse(Code::Unavailable, Reason::Internal, format!("asking the API server: {e}"));
    let review = TokenReview {
        spec: TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![AGENT_AUDIENCE.to_owned()]) },
        ..TokenReview::default()
    };
    let api: Api<TokenReview> = Api::all(client.clone());
    let status = api.create(&PostParams::default(), &review).await.map_err(unavailable)?.status.unwrap_or_default();
    let for_us = status.audiences.iter().flatten().any(|a| a == AGENT_AUDIENCE);
    let Some(user) = status.user.filter(|_| status.authenticated == Some(true) && for_us) else {
        let why = status.error.unwrap_or_else(|| "not valid, or of another audience".into());
        return Err(refuse(
            Code::Unauthenticated,
            Reason::PermissionDenied,
            format!("the bearer token is refused: {why}"),
        ));
    };
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
    let message =
        format!("{who} may not {verb} ebpfprograms/{subresource} in namespace {namespace}; bind a Role that allows it");
    Err(refuse(Code::PermissionDenied, Reason::PermissionDenied, message))
}
