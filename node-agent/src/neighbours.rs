//! The EbpfPrograms of this node by name, and which of them name which: to stand beside them, or to attach to their
//! functions.
//!
//! **Guarantees.** A program hears of every change of those that it names: that one came, went, loaded, or moved its
//! links. Whoever loads a new revision can wait until those that attach to its functions have followed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use skep_crds::EbpfProgramSpec;
use skep_crds::attach::Attach;
use skep_crds::network::Position;
use skep_kernel::KernelError;
use skep_kernel::hook::Order;
use skep_kernel::seam::{Kernel, Observed, Standing};
use tokio::sync::watch;

use crate::error::ProgramError;
use crate::plan::Wanted;
use crate::targets::Functions;

/// All of a node.
#[derive(Debug, Default)]
pub struct Neighbours {
    /// By uid.
    programs: Mutex<BTreeMap<String, Program>>,
    /// How many there were.
    changes: watch::Sender<u64>,
    /// Told whenever a program has looked at those that it names.
    looks: watch::Sender<()>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Program {
    namespace: String,
    name: String,
    /// Names of programs of the namespace that it is positioned by, or attaches to.
    names: BTreeSet<String>,
    /// Those to whose functions it attaches.
    follows: BTreeSet<String>,
    /// Up to which change it has looked at them.
    looked: u64,
    /// What it asks for now would close a circle: it has the names that it had before.
    refused: bool,
}

impl Neighbours {
    /// A program of the node, with what its spec asks for. Refused if it can never have it: programs that stand in a
    /// circle have no order. Who closes it is refused; those that were there before have theirs.
    pub fn put(&self, uid: &str, namespace: &str, name: &str, spec: &EbpfProgramSpec) -> Result<(), ProgramError> {
        let follows = follows(spec);
        let names = beside(spec).union(&follows).cloned().collect();
        let mut programs = self.lock();
        let looked = programs.get(uid).map_or(0, |before| before.looked);
        let mut program =
            Program { namespace: namespace.into(), name: name.into(), names, follows, looked, refused: false };
        let before = programs.insert(uid.into(), program.clone());
        let circle = circle(&programs, &program);
        if circle.is_some() {
            let (names, follows) = before.clone().map(|before| (before.names, before.follows)).unwrap_or_default();
            program = Program { names, follows, refused: true, ..program };
            programs.insert(uid.into(), program.clone());
        }
        drop(programs);
        if before != Some(program) {
            self.changed();
        }
        match circle {
            Some(names) => Err(ProgramError::Circle { names }),
            None => Ok(()),
        }
    }

    /// Nothing is left of a program.
    pub fn remove(&self, uid: &str) {
        if self.lock().remove(uid).is_some() {
            self.changed();
        }
    }

    /// The uid of a program of the node.
    pub fn uid(&self, namespace: &str, name: &str) -> Option<String> {
        let programs = self.lock();
        let found = programs.iter().find(|(_, program)| program.namespace == namespace && program.name == name);
        found.map(|(uid, _)| uid.clone())
    }

    /// Whether a program is positioned by others, or attaches to them.
    pub fn names_others(&self, uid: &str) -> bool {
        self.lock().get(uid).is_some_and(|program| program.refused || !program.names.is_empty())
    }

    /// Some program's links or loads are others than before; the number of the change.
    pub fn changed(&self) -> u64 {
        let mut number = 0;
        self.changes.send_modify(|changes| {
            *changes += 1;
            number = *changes;
        });
        number
    }

    /// Whether a program's functions are what others attach to.
    pub fn is_followed(&self, namespace: &str, name: &str) -> bool {
        self.lock().values().any(|other| other.namespace == namespace && other.follows.contains(name))
    }

    /// A program has done what there was to do about those that it names, as they were at that change.
    pub fn looked(&self, uid: &str, change: u64) {
        if let Some(program) = self.lock().get_mut(uid) {
            program.looked = change;
        }
        self.looks.send_replace(());
    }

    /// Tells those that attach to a program's functions that it has loaded, and waits until each has done what it could,
    /// at most for that time; who has not, by name.
    pub async fn lead(&self, namespace: &str, name: &str, patience: Duration) -> Vec<String> {
        let mut looks = self.looks.subscribe();
        let change = self.changed();
        let behind = || -> Vec<String> {
            let programs = self.lock();
            let followers = programs.values().filter(|p| p.namespace == namespace && p.follows.contains(name));
            followers.filter(|p| p.looked < change).map(|p| p.name.clone()).collect()
        };
        let all = async { while !behind().is_empty() && looks.changed().await.is_ok() {} };
        let _ = tokio::time::timeout(patience, all).await;
        behind()
    }

    /// Sees every change from now on.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Program>> {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks for functions where this node's programs have them.
pub struct NodeFunctions<'a> {
    pub neighbours: &'a Neighbours,
    pub kernel: &'a dyn Kernel,
}

impl std::fmt::Debug for NodeFunctions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeFunctions").field("neighbours", &self.neighbours).finish_non_exhaustive()
    }
}

impl Functions for NodeFunctions<'_> {
    fn programs_with(&self, namespace: &str, ebpf_program: &str, function: &str) -> Result<Vec<u32>, String> {
        let Some(uid) = self.neighbours.uid(namespace, ebpf_program) else {
            return Err("this node has no such EbpfProgram in the namespace".into());
        };
        let programs = self.kernel.programs_with(&uid, function).map_err(|e| e.to_string())?;
        if programs.is_empty() {
            return Err("none of its loaded programs has this function (functions are known by BTF: clang -g)".into());
        }
        Ok(programs)
    }
}

/// Tells the hooks of a program who their neighbours are, by uid.
pub fn resolve(neighbours: &Neighbours, namespace: &str, wanted: &mut Wanted) {
    for link in wanted.links.values_mut() {
        if let Order::Before(other) | Order::After(other) = &mut link.hook.options.order {
            other.uid = neighbours.uid(namespace, &other.name);
        }
    }
}

/// Takes links for gone that are on the wrong side of their neighbour: they are made again on the right one. Links whose
/// neighbour is not there stay where they are, and are returned as failures.
pub fn look(
    kernel: &dyn Kernel,
    wanted: &Wanted,
    observed: &mut Observed,
) -> Result<Vec<(String, KernelError)>, KernelError> {
    let mut alone = Vec::new();
    for (name, link) in &wanted.links {
        let (Order::Before(other) | Order::After(other), Some(seen)) =
            (&link.hook.options.order, observed.links.get_mut(name).filter(|seen| seen.alive))
        else {
            continue;
        };
        match kernel.standing(&link.hook, seen.id)? {
            Standing::Right => {}
            Standing::Wrong => seen.alive = false,
            Standing::Alone(why) => {
                let why = format!("{why}; the program stays where it is");
                alone.push((name.clone(), KernelError::TargetNotFound { target: other.to_string(), why }));
            }
        }
    }
    Ok(alone)
}

/// The programs to whose functions a spec attaches.
fn follows(spec: &EbpfProgramSpec) -> BTreeSet<String> {
    let named = spec.programs.iter().flat_map(|program| &program.attach).filter_map(|attach| match attach {
        Attach::Fentry(traced) | Attach::Fexit(traced) => traced.ebpf_program.clone(),
        Attach::Freplace(replaced) => Some(replaced.ebpf_program.clone()),
        _ => None,
    });
    named.collect()
}

/// The programs that a spec is positioned by.
fn beside(spec: &EbpfProgramSpec) -> BTreeSet<String> {
    let positions = spec.programs.iter().flat_map(|program| &program.attach).filter_map(|attach| match attach {
        Attach::Tcx(tcx) => tcx.position.as_ref(),
        _ => None,
    });
    let named = positions.filter_map(|position| match position {
        Position::Before(other) | Position::After(other) => Some(other.ebpf_program.clone()),
        Position::Place(_) => None,
    });
    named.collect()
}

/// A way from a program over those that it names back to itself, as names in that order.
fn circle(programs: &BTreeMap<String, Program>, start: &Program) -> Option<Vec<String>> {
    let mut ways: Vec<Vec<String>> = start.names.iter().map(|name| vec![name.clone()]).collect();
    let mut seen = BTreeSet::new();
    while let Some(way) = ways.pop() {
        let last = way.last()?;
        if *last == start.name {
            return Some(way);
        }
        if !seen.insert(last.clone()) {
            continue;
        }
        let found = programs.values().find(|program| program.namespace == start.namespace && program.name == *last);
        let next = found.into_iter().flat_map(|program| &program.names);
        ways.extend(next.map(|name| way.iter().chain([name]).cloned().collect()));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(beside: &[&str]) -> EbpfProgramSpec {
        let attach = |name: &&str| {
            let position = json!({"after": {"ebpfProgram": name, "function": "check"}});
            json!({"tcx": {"interfaces": {"primary": true}, "direction": "Ingress", "position": position}})
        };
        let attach: Vec<_> = beside.iter().map(attach).collect();
        serde_json::from_value(json!({"image": {"reference": "a/b:c"}, "programs": [{"name": "f", "attach": attach}]}))
            .unwrap()
    }

    #[test]
    fn programs_in_a_circle_are_refused_and_the_way_is_named() {
        let node = Neighbours::default();
        node.put("1", "net", "a", &spec(&["b", "z"])).unwrap();
        node.put("2", "net", "b", &spec(&["c"])).unwrap();
        node.put("3", "ops", "c", &spec(&["a"])).unwrap();
        let refused = node.put("4", "net", "c", &spec(&["a"])).unwrap_err();
        assert_eq!(refused.reason(), skep_crds::Reason::TargetNotFound);
        assert_eq!(
            refused.to_string(),
            "programs in a circle: c, a, b, c: each names the next in position, fentry, fexit or freplace, so none can be first; take one of these out"
        );
        node.put("1", "net", "a", &spec(&["b"])).unwrap();
        assert!(node.names_others("4"), "it hears when the circle is open again");
        assert!(node.put("4", "net", "c", &spec(&["a"])).is_err());
        node.put("1", "net", "a", &spec(&[])).unwrap();
        node.put("4", "net", "c", &spec(&["a"])).unwrap();
        assert!(node.put("1", "net", "a", &spec(&["b"])).is_err(), "now it is this one that closes it");
        node.put("4", "net", "c", &spec(&[])).unwrap();
        node.put("1", "net", "a", &spec(&["b"])).unwrap();
        assert!(node.put("5", "net", "d", &spec(&["d"])).is_err(), "beside itself");
    }

    #[test]
    fn whoever_watches_hears_of_what_is_new_and_of_nothing_else() {
        let node = Neighbours::default();
        let mut watch = node.watch();
        node.put("1", "net", "a", &spec(&["b"])).unwrap();
        assert!(watch.has_changed().unwrap());
        watch.borrow_and_update();
        node.put("1", "net", "a", &spec(&["b"])).unwrap();
        assert!(!watch.has_changed().unwrap());
        node.remove("1");
        assert!(watch.has_changed().unwrap());
        assert_eq!(node.uid("net", "a"), None);
    }
}
