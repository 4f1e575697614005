//! The one vocabulary for why something is as it is: conditions, Events, metrics, gRPC details.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Declares the enum once: variant, doc and whether it is transient.
macro_rules! reasons {
    ($($(#[$meta:meta])* $name:ident: $transient:literal,)*) => {
        /// Why something is as it is. Closed: nothing else is ever written.
        #[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $($(#[$meta])* $name,)*
        }

        impl Reason {
            /// Every reason, in the order of the documentation.
            pub const ALL: &[Reason] = &[$(Reason::$name),*];

            /// The word itself.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Reason::$name => stringify!($name),)*
                }
            }

            /// Whether trying again may help. The others wait for a change of the spec, the image or the node.
            pub const fn is_transient(self) -> bool {
                match self {
                    $(Reason::$name => $transient,)*
                }
            }
        }
    };
}

reasons! {
    /// Every node that should and can runs the revision.
    Ready: false,
    /// Work is under way.
    Progressing: true,
    /// `spec.suspend` is true: loaded, not attached.
    Suspended: false,
    /// No node matches `nodeSelector`, or none has an agent.
    NoMatchingNode: false,
    /// Loaded, but the selectors match nothing on any node.
    NoTarget: false,
    /// A node has not yet said what became of the revision.
    WaitingForNode: true,
    /// The registry has no such image, tag or digest.
    ImageNotFound: false,
    /// The registry refuses the credentials, or there are none.
    ImageUnauthorized: false,
    /// The image holds no eBPF object, or not the bytes that its digest names.
    ImageInvalid: false,
    /// No signature that a policy asks for.
    SignatureRejected: false,
    /// An `EbpfPolicy` does not allow it.
    PolicyDenied: false,
    /// The EbpfProgram in the cluster cannot be decoded.
    ObjectUnreadable: false,
    /// The bytecode is no eBPF object that can be loaded.
    ObjectInvalid: false,
    /// The object has no function of that name.
    ProgramUnknown: false,
    /// A global variable is unknown, or the value does not fit its type.
    GlobalInvalid: false,
    /// A map that is kept has another definition in the new revision.
    MapIncompatible: false,
    /// Somebody wrote or deleted entries of a map through an agent; of Events only.
    MapWritten: false,
    /// The kernel's verifier refused a function; the log says why.
    VerifierRejected: false,
    /// The node's kernel cannot do what the program asks for.
    KernelUnsupported: false,
    /// The kernel refused the agent: capability, lockdown or LSM.
    PermissionDenied: false,
    /// A function, tracepoint, symbol, binary or cgroup that is named does not exist.
    TargetNotFound: false,
    /// Another program owns the hook and does not share it.
    HookBusy: true,
    /// A limit of the kernel or of Skep.
    LimitReached: false,
    /// The registry does not answer.
    RegistryUnreachable: true,
    /// The node's agent does not answer.
    NodeUnreachable: true,
    /// The node's memory limit for BPF maps is reached.
    NodeFull: true,
    /// The node's agent does not know this kind or field.
    AgentTooOld: false,
    /// A step took longer than its deadline.
    Timeout: true,
    /// A fault of Skep. Also how a word is read that this version does not know.
    #[serde(other)]
    Internal: true,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that is no reason.
#[derive(thiserror::Error, Debug, Clone, PartialEq, Eq)]
#[error("{0:?} is no reason that this version of Skep knows")]
pub struct UnknownReason(pub String);

impl FromStr for Reason {
    type Err = UnknownReason;
    fn from_str(word: &str) -> Result<Self, Self::Err> {
        Reason::ALL.iter().copied().find(|reason| reason.as_str() == word).ok_or_else(|| UnknownReason(word.into()))
    }
}

// A status is never refused for a word that a newer operator wrote: a plain string, no enum.
impl JsonSchema for Reason {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Reason".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_go_and_come_back() {
        for reason in Reason::ALL {
            assert_eq!(reason.to_string().parse(), Ok(*reason));
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
            assert_eq!(serde_json::from_value::<Reason>(reason.as_str().into()).unwrap(), *reason);
        }
        assert_eq!("ready".parse::<Reason>(), Err(UnknownReason("ready".into())));
    }

    #[test]
    fn a_newer_word_does_not_make_a_status_unreadable() {
        assert_eq!(serde_json::from_value::<Reason>("SomethingNew".into()).unwrap(), Reason::Internal);
    }
}
