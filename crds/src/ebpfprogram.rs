//! `EbpfProgram`: one revisioned unit of bytecode, kept on nodes.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::attach::Attach;
use crate::image::ImageSource;
use crate::selector::LabelSelector;
use crate::status::EbpfProgramStatus;

/// An eBPF object from an image, loaded and attached on nodes, and kept there until it is deleted.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "skep.dev",
    version = "v1alpha1",
    kind = "EbpfProgram",
    namespaced,
    shortname = "ebpf",
    category = "skep",
    status = "EbpfProgramStatus",
    derive = "PartialEq",
    doc = "An eBPF object from an image, loaded and attached on nodes, and kept there until it is deleted.",
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.summary.ready", description = "Nodes that run the revision, of the nodes that should."),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.summary.reason"),
    printcolumn(name = "Revision", type_ = "string", json_path = ".status.revision"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Image", type_ = "string", json_path = ".status.image.reference", priority = 1),
    printcolumn(name = "Digest", type_ = "string", json_path = ".status.image.digest", priority = 1),
    validation = Rule::new("self.metadata.name.size() <= 63").message("metadata.name: the name of an EbpfProgram has at most 63 characters: choose a shorter one")
)]
#[serde(rename_all = "camelCase")]
pub struct EbpfProgramSpec {
    /// The OCI image that holds the eBPF object.
    pub image: ImageSource,
    /// The nodes. Absent: every node that has an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<LabelSelector>,
    /// Values for the object's global variables, set before it is loaded, by name: `{sample_rate: 128, ports: [80, 443],
    /// mac: "00:11:22:33:44:55"}`. The object's BTF gives each its type. Integers beyond 2^63 are written as strings,
    /// decimal or 0x. At most 256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "globals")]
    pub globals: Option<BTreeMap<String, Value>>,
    /// Options of the object's maps, by name. At most 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "maps")]
    pub maps: Option<BTreeMap<String, MapOptions>>,
    /// The functions of the object to load, and where each is attached. 1 to 64. Absent: all that its ELF sections say where
    /// to attach, as libbpf has it (`SEC("tracepoint/sched/sched_switch")`); those of sections that begin with `?` are left
    /// out. A section that does not say where, such as `xdp`, is refused with the field to fill.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub programs: Vec<Program>,
    /// Whether the programs are off their hooks. They and their maps stay loaded, and are attached again when this is
    /// false or absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,
}

/// Options of one map. At least one is given.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.maxEntries) || has(self.onUpdate) || has(self.merge) || has(self.share) || has(self.dropCounter)").message("no option is given: write maxEntries, onUpdate, merge, share or dropCounter, or leave the map out"),
    validation = Rule::new("!has(self.merge) || !has(self.onUpdate) || self.onUpdate == 'Keep'").message("merge: nothing is brought over to a map that starts anew: leave merge out, or write onUpdate: Keep"),
    validation = Rule::new("!has(self.share) || !(has(self.onUpdate) || has(self.merge))").message("share: a map that others use too is not one program's to reset or to move: leave onUpdate and merge out")
)]
pub struct MapOptions {
    /// How many entries the map has room for; absent: as the object says. A kept map moves to one of the new size with
    /// its contents (hash, LRU, array, their per-CPU forms, LPM trie, devmap, cpumap); contents that do not fit are
    /// refused before anything changes. 1 to 4294967295.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4_294_967_295_i64))]
    pub max_entries: Option<i64>,
    /// What becomes of the map's contents when a new revision is loaded. Absent: `Keep`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_update: Option<OnUpdate>,
    /// How values are brought over that the old programs changed while a kept map moved to another size. Absent: those
    /// that the new programs have not changed as well; the others are counted as raced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merge: Option<Merge>,
    /// The group whose map of this name is used: all EbpfPrograms of the namespace that name the group have one map
    /// together. It is made by the first of them and goes with the last. All declare it alike, with the same maxEntries;
    /// one that differs is refused (`MapIncompatible`). For another definition, name another group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub share: Option<String>,
    /// Where the program counts the records for which this ring buffer had no room: a global variable of the object, or
    /// one of its maps, whose integers are added up. Whoever follows the events is told how many are missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 127), regex(pattern = r"^[A-Za-z_.][A-Za-z0-9_.]*$"))]
    pub drop_counter: Option<String>,
}

/// How changed values are brought over: `Sum` adds the difference, so that counters lose nothing. All fields of the value
/// must be integers of 4 or 8 bytes.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    Sum,
}

/// What becomes of a map's contents when a new revision is loaded: `Keep` (the default): the new programs use the same
/// map, which must have the same definition; `Reset`: they start with a new one.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnUpdate {
    #[default]
    Keep,
    Reset,
}

/// One function of the object and its hooks.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Program {
    /// The function's name in the object: `count_rx`.
    #[schemars(length(min = 1, max = 127), regex(pattern = r"^[A-Za-z_.$][A-Za-z0-9_.$]*$"))]
    pub name: String,
    /// The hooks; what several entries select is attached once. All suit the function's one program type. 1 to 32. Absent:
    /// the one that the function's ELF section names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "attach")]
    pub attach: Vec<Attach>,
}

fn globals(_: &mut SchemaGenerator) -> Schema {
    // Not `additionalProperties` of any type: rules would not see the field at all, not even whether it is there.
    json_schema!({ "type": "object", "minProperties": 1, "maxProperties": 256, "x-kubernetes-preserve-unknown-fields": true })
}

fn maps(generator: &mut SchemaGenerator) -> Schema {
    let options = generator.subschema_for::<MapOptions>();
    json_schema!({ "type": "object", "minProperties": 1, "maxProperties": 64, "additionalProperties": options })
}

fn attach(generator: &mut SchemaGenerator) -> Schema {
    // Atomic: server-side apply cannot merge a list of maps without keys, and refuses the whole object.
    let entry = generator.subschema_for::<Attach>();
    json_schema!({ "type": "array", "minItems": 1, "maxItems": 32, "x-kubernetes-list-type": "atomic", "items": entry })
}
