//! Why a program does not run on this node: one category, whose name is the reason everywhere.

use std::io::ErrorKind;

use skep_crds::Reason;
use skep_image::ImageError;
use skep_kernel::KernelError;
use skep_object::ObjectError;

use crate::desired::{StoreError, Unresolved};

/// A failure of one program.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Object(#[from] ObjectError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("the desired state cannot be kept: {0}; check the agent's state directory")]
    Store(#[from] StoreError),
    #[error("{}", .0.message)]
    Unresolved(Unresolved),
    #[error("this agent does not understand {what}; upgrade the agent of this node")]
    AgentTooOld { what: String },
    #[error("the desired state does not decode: {why}")]
    Undecodable { why: String },
    #[error(
        "programs in a circle: {}: each names the next in position, fentry, fexit or freplace, so none can be first; take one of these out",
        circle(names)
    )]
    Circle { names: Vec<String> },
    #[error("{what} took longer than {seconds} s")]
    Timeout { what: String, seconds: u64 },
    #[error("internal: {0}")]
    Internal(String),
}

/// The last one first as well: the way is closed.
fn circle(names: &[String]) -> String {
    names.last().into_iter().chain(names).cloned().collect::<Vec<_>>().join(", ")
}

impl ProgramError {
    /// The reason out of the closed list.
    pub fn reason(&self) -> Reason {
        let word = match self {
            ProgramError::Image(e) => e.reason(),
            ProgramError::Object(e) => e.reason(),
            ProgramError::Unresolved(why) => return why.reason,
            ProgramError::Kernel(e) => e.reason(),
            ProgramError::Store(StoreError::Io { source, .. })
                if matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) =>
            {
                "NodeFull"
            }
            ProgramError::Store(_) => "Internal",
            ProgramError::AgentTooOld { .. } => "AgentTooOld",
            ProgramError::Undecodable { .. } => "ObjectUnreadable",
            ProgramError::Circle { .. } => "TargetNotFound",
            ProgramError::Timeout { .. } => "Timeout",
            ProgramError::Internal(_) => "Internal",
        };
        word.parse().unwrap_or(Reason::Internal)
    }

    /// The verifier's log; empty for everything else.
    pub fn log(&self) -> &str {
        if let ProgramError::Kernel(e) = self { e.log() } else { "" }
    }
}
