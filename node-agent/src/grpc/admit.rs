//! Who may have a request read, on TCP: decided by the connection's certificate and the request's headers.
//!
//! **Guarantees.** No byte of a message is read for a caller who is not known: the operator by its certificate, everybody
//! else by a bearer token that the API server has reviewed. What they may do is the services' business, which find the
//! [`Caller`] with the request.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::FutureExt;
use futures::future::BoxFuture;
use skep_crds::Reason;
use skep_proto::v1::{agent_server, inspector_server};
use tonic::codegen::http::request::Parts;
use tonic::codegen::http::{Request, header};
use tonic::{Code, Status};
use tower::filter::AsyncFilterLayer;

use super::auth::{Authorizer, no_token};
use super::caller::{Caller, is_operator};
use super::places::Connection;
use super::refuse;

/// Stands in front of all services of a listener.
pub fn layer<B: Send + 'static>(authorizer: Arc<Authorizer>) -> AsyncFilterLayer<impl Predicate<B>> {
    AsyncFilterLayer::new(move |request| {
        let authorizer = authorizer.clone();
        async move { admit(&authorizer, request).await }.boxed()
    })
}

/// The shape of [`layer`]'s question.
pub trait Predicate<B>: Fn(Request<B>) -> BoxFuture<'static, Result<Request<B>, Status>> + Clone {}
impl<B, F> Predicate<B> for F where F: Fn(Request<B>) -> BoxFuture<'static, Result<Request<B>, Status>> + Clone {}

/// Lets a request through together with its [`Caller`], or says what is missing. It works for every kind of body: none
/// can be read here.
pub async fn admit<B>(authorizer: &Authorizer, request: Request<B>) -> Result<Request<B>, Status> {
    let (mut head, body) = request.into_parts();
    let caller = who(authorizer, &head).await?;
    head.extensions.insert(caller);
    if let Some(connection) = head.extensions.get::<Connection>() {
        connection.admitted.store(true, Ordering::Relaxed);
    }
    Ok(Request::from_parts(head, body))
}

async fn who(authorizer: &Authorizer, head: &Parts) -> Result<Caller, Status> {
    let operator = head.extensions.get().is_some_and(is_operator);
    match service(head.uri.path()) {
        agent_server::SERVICE_NAME if !operator => Err(operator_only()),
        // Looking into programs is for people: the operator has no rights there.
        inspector_server::SERVICE_NAME => user(authorizer, head).await,
        _ if operator => Ok(Caller::Operator),
        _ => user(authorizer, head).await,
    }
}

/// The refusal of everybody else.
pub fn operator_only() -> Status {
    refuse(
        Code::PermissionDenied,
        Reason::PermissionDenied,
        "this service is the operator's: it needs its client certificate",
    )
}

/// `package.Service` of `/package.Service/Method`.
fn service(path: &str) -> &str {
    path.trim_start_matches('/').split('/').next().unwrap_or_default()
}

async fn user(authorizer: &Authorizer, head: &Parts) -> Result<Caller, Status> {
    let header = head.headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let token = header.and_then(|v| v.strip_prefix("Bearer ")).ok_or_else(no_token)?;
    authorizer.user(token.trim()).await.map(Caller::User)
}
