//! One call to an agent, with a deadline.

use std::time::Duration;

use skep_crds::Reason;
use tonic::{Code, Response, Status};

/// How long an agent may take to answer.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Waits for the answer, at most until the deadline.
pub async fn within<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded(format!("the agent did not answer within {} s", DEADLINE.as_secs()))),
    }
}

/// What a refusal means for who goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The connection or the leadership is over.
    Session,
    /// This request is wrong and stays wrong.
    Final,
    /// It may work later.
    Later,
}

/// Sorts a status of a call that is about one program.
pub fn refusal(status: &Status) -> Refusal {
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unauthenticated => Refusal::Session,
        // An agent that has seen a later leader.
        Code::FailedPrecondition | Code::PermissionDenied => Refusal::Session,
        Code::InvalidArgument | Code::Unimplemented | Code::OutOfRange => Refusal::Final,
        _ => Refusal::Later,
    }
}

/// The reason and the text of a status: agents write `Reason: text`.
pub fn reason(status: &Status) -> (Reason, String) {
    let message = status.message();
    let said = message.split_once(": ").and_then(|(word, text)| Some((word.parse().ok()?, text.to_string())));
    said.unwrap_or_else(|| {
        let reason = match status.code() {
            Code::DeadlineExceeded => Reason::Timeout,
            Code::Unimplemented => Reason::AgentTooOld,
            _ => Reason::Internal,
        };
        (reason, message.to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_its_reason() {
        let status = Status::invalid_argument("ObjectUnreadable: spec_json: EOF");
        assert_eq!(reason(&status), (Reason::ObjectUnreadable, "spec_json: EOF".into()));
        assert_eq!(refusal(&status), Refusal::Final);
        assert_eq!(reason(&Status::internal("disk: full")), (Reason::Internal, "disk: full".into()));
        assert_eq!(refusal(&Status::failed_precondition("epoch 1 is over")), Refusal::Session);
    }
}
