//! The seam between deciding and doing: what the agent's executor may ask of a kernel.
//!
//! There are two: [`crate::Host`], and the agent's fake, which models only what a test against the real one has shown.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use skep_object::Object;
use skep_object::kind::LoadAttributes;
use skep_object::map::MapDef;

pub use crate::changed::DirectoryStamp;
use crate::error::KernelError;
use crate::hook::{Hook, program_pin};
pub use crate::migrate::Settled;
pub use crate::order::Standing;
pub use crate::remains::Remain;
use crate::sys::link::LinkInfo;

/// A function as it is to be loaded.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Variant {
    pub function: String,
    pub attributes: LoadAttributes,
}

impl Variant {
    /// The name of its pin.
    pub fn pin(&self) -> String {
        program_pin(&self.function, &self.attributes)
    }
}

/// What to load, besides the names.
#[derive(Clone, Debug)]
pub struct LoadRequest {
    pub object: Arc<Object>,
    /// The object's maps, with globals set.
    pub maps: Vec<MapDef>,
    pub variants: BTreeSet<Variant>,
    /// Maps whose contents outlive a load, and how what an old load's programs still count is brought over when a map
    /// changes its size.
    pub keep: BTreeMap<String, Merge>,
    /// Maps that are those of a group; none of them is in `keep`.
    pub share: BTreeMap<String, Group>,
}

/// Programs of one namespace that use a map together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    pub namespace: String,
    pub name: String,
}

/// What becomes of a value that changed in an old map after it was copied to a new one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Merge {
    /// It is taken over if the new programs did not change theirs.
    #[default]
    Untouched,
    /// The difference is added.
    Sum,
}

/// What a load did besides loading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadOutcome {
    /// Kept maps that started anew because their definition changed, with what changed.
    pub reset: BTreeMap<String, String>,
    /// Kept maps that changed their size, with how many entries did not fit (the kernel dropped the oldest).
    pub resized: BTreeMap<String, u64>,
}

/// A program of a load, by its pin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramAt {
    pub load: String,
    pub pin: String,
}

/// What bpffs and the kernel show of one uid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    pub loads: BTreeMap<String, ObservedLoad>,
    /// By pin name.
    pub links: BTreeMap<String, ObservedLink>,
    /// Kept maps, under the path that survives loads: name to kernel id.
    pub kept: BTreeMap<String, u32>,
    /// Names of half-done work.
    pub staged: BTreeSet<String>,
    /// The directories of its pins, as they were before they were read.
    pub directories: BTreeMap<PathBuf, Option<DirectoryStamp>>,
}

/// A complete load.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedLoad {
    /// By pin name.
    pub programs: BTreeMap<String, ObservedProgram>,
    /// Map name to kernel id and type.
    pub maps: BTreeMap<String, ObservedMap>,
    /// It has maps that are to take the place of kept ones, and was not settled yet.
    pub pending: bool,
    /// Maps of groups, and whether they are pinned there.
    pub shares: BTreeMap<String, bool>,
}

/// A loaded program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedProgram {
    pub id: u32,
    pub tag: String,
}

/// A map of a load.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedMap {
    pub id: u32,
    pub map_type: u32,
}

/// A pinned link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedLink {
    pub id: u32,
    pub program_id: u32,
    /// Its target is still there.
    pub alive: bool,
    /// XDP only: the index of its interface, which takes no other.
    pub interface: Option<u32>,
}

impl From<&LinkInfo> for ObservedLink {
    fn from(info: &LinkInfo) -> Self {
        let (alive, interface) = (info.is_alive(), info.xdp_interface());
        ObservedLink { id: info.id, program_id: info.program_id, alive, interface }
    }
}

/// What can be asked. Every call is idempotent or says what is in its way; all of them block.
pub trait Kernel: Send + Sync {
    /// uids of which anything is left.
    fn programs(&self) -> Result<Vec<String>, KernelError>;
    /// The state of one uid.
    fn observe(&self, uid: &str) -> Result<Observed, KernelError>;
    /// Whether anything differs from what was observed: cheaper than observing again.
    fn has_changed(&self, uid: &str, seen: &Observed) -> Result<bool, KernelError>;
    /// Loads what is missing of `request` under `load`: all of it or nothing when the load is new.
    fn load(&self, uid: &str, load: &str, request: &LoadRequest) -> Result<LoadOutcome, KernelError>;
    /// Makes a gate of a load let exactly these cgroups pass.
    fn set_gate(&self, uid: &str, load: &str, gate: &str, cgroups: &[u64]) -> Result<(), KernelError>;
    /// Attaches and pins.
    fn attach(&self, uid: &str, link: &str, hook: &Hook, program: &ProgramAt) -> Result<(), KernelError>;
    /// Puts a program in the place of the one with the id `old`, in the way of the hook's kind; for how long nothing was
    /// there, if the way has a gap.
    fn replace(
        &self,
        uid: &str,
        link: &str,
        hook: &Hook,
        old: u32,
        program: &ProgramAt,
    ) -> Result<Option<Duration>, KernelError>;
    /// Ids of the loaded programs of a uid that have a function, which other programs can attach to.
    fn programs_with(&self, uid: &str, function: &str) -> Result<Vec<u32>, KernelError>;
    /// How a link stands to the neighbour that its hook names.
    fn standing(&self, hook: &Hook, link_id: u32) -> Result<Standing, KernelError>;
    /// Takes a link away; one that is not there is fine.
    fn detach(&self, uid: &str, link: &str) -> Result<(), KernelError>;
    /// Makes a load the one whose maps are kept, when links run it: what an older load's programs counted in maps of
    /// another size is brought over, then the lasting path of kept maps shows this load's. What is not named in `keep`
    /// is kept no longer. Run again after a crash, it goes on where it was.
    fn settle(&self, uid: &str, load: &str, keep: &BTreeSet<String>) -> Result<BTreeMap<String, Settled>, KernelError>;
    /// Takes a load away: its programs and the maps that no other load keeps. If it was never settled, what its programs
    /// counted in copied maps goes back to the kept ones first. Programs that still run are waited for.
    fn remove_load(&self, uid: &str, load: &str) -> Result<(), KernelError>;
    /// Takes a single program of a load away; one that is not there is fine.
    fn unload(&self, uid: &str, program: &ProgramAt) -> Result<(), KernelError>;
    /// Takes away half-done work of that name.
    fn discard(&self, uid: &str, staged: &str) -> Result<(), KernelError>;
    /// Takes away all that is left of a uid, links first, and the sockets out of its maps.
    fn remove_program(&self, uid: &str) -> Result<(), KernelError>;
    /// Of what a uid had, what the kernel still has: somebody holds it, or it takes a moment.
    fn remains(&self, before: &Observed) -> Vec<Remain>;
}
