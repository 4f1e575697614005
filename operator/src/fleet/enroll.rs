//! Giving an agent its certificate: its token proves pod and node, its request proves the key, we sign.

use std::time::{Duration, SystemTime};

use skep_proto::v1::enroll_request::Step;
use skep_proto::v1::{EnrollBegin, EnrollInstall, EnrollRequest};
use tonic::Status;

use super::call::within;
use super::dial::Client;
use super::{AgentPod, Context};
use crate::certs::CertError;
use crate::certs::authority::LEAF;
use crate::token::{TokenError, review};

/// Why an agent gets no certificate.
#[derive(thiserror::Error, Debug)]
pub enum EnrollError {
    #[error("the agent refuses to enrol: {}", .0.message())]
    Agent(#[from] Status),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    Certificate(#[from] CertError),
}

/// Whether a certificate that still has two thirds of its time is replaced too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Yes: the agent has none of ours.
    Always,
    /// No.
    Due,
}

/// Gives the agent a certificate if it needs one; returns in how long it needs the next.
pub async fn enroll(
    client: &mut Client,
    context: &Context,
    pod: &AgentPod,
    when: When,
) -> Result<Duration, EnrollError> {
    let begin = EnrollRequest { step: Some(Step::Begin(EnrollBegin { node_name: pod.node.clone() })) };
    let begun = within(client.enroll(begin)).await?;
    let now = SystemTime::now();
    let left = left(&begun.not_after, now);
    if when == When::Due && left > LEAF / 3 {
        return Ok(left - LEAF / 3);
    }
    review(&context.reviews, begun.token, pod).await?;
    let certificate_pem = context.authority.sign_node(&pod.node, &begun.csr_pem, now)?;
    let install = EnrollRequest { step: Some(Step::Install(EnrollInstall { certificate_pem })) };
    within(client.enroll(install)).await?;
    tracing::info!(node = %pod.node, "the agent has a certificate");
    Ok(LEAF - LEAF / 3)
}

/// How long until `not_after`, RFC 3339; nothing if there is none.
fn left(not_after: &str, now: SystemTime) -> Duration {
    let end = not_after.parse::<jiff::Timestamp>().map(SystemTime::from);
    end.ok().and_then(|end| end.duration_since(now).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_certificate() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        assert_eq!(left("1970-01-01T00:20:00Z", now), Duration::from_secs(200));
        assert_eq!(left("1970-01-01T00:10:00Z", now), Duration::ZERO);
        assert_eq!(left("", now), Duration::ZERO);
    }
}
