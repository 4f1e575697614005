//! Hooks on the sockets in a map of the program's own object.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the sockets in a map send.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SkMsg {
    /// The name of a sockmap or sockhash of the object: `sockets`. Sockets that are in it when a new revision comes keep the
    /// older one's program until they leave the map.
    #[schemars(length(min = 1, max = 127), regex(pattern = r"^[A-Za-z_.$][A-Za-z0-9_.$]*$"))]
    pub map: String,
}

/// What the sockets in a map receive.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SkSkb {
    /// The name of a sockmap or sockhash of the object: `sockets`. Sockets that are in it when a new revision comes keep the
    /// older one's program until they leave the map.
    #[schemars(length(min = 1, max = 127), regex(pattern = r"^[A-Za-z_.$][A-Za-z0-9_.$]*$"))]
    pub map: String,
    /// What the program does.
    pub hook: SkSkbHook,
}

/// What a program does with received data: `Verdict`: decides where each packet goes; `StreamVerdict`: the same of each
/// message of a stream, of which a `StreamParser` says how long it is.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum SkSkbHook {
    Verdict,
    StreamVerdict,
    StreamParser,
}
