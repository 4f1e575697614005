//! The EbpfPrograms of this node by name, and which of them ask to stand beside which.
//!
//! **Guarantees.** A program hears of every change of those that it names: that one came, went, or moved its links.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use skep_crds::EbpfProgramSpec;
use skep_crds::attach::Attach;
use skep_crds::network::Position;
use skep_kernel::KernelError;
use skep_kernel::hook::Order;
use skep_kernel::seam::{Kernel, Observed, Standing};
use tokio::sync::watch;

use crate::error::ProgramError;
use crate::plan::Wanted;

/// All of a node.
#[derive(Debug, Default)]
pub struct Neighbours {
    /// By uid.
    programs: Mutex<BTreeMap<String, Program>>,
    changes: watch::Sender<()>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Program {
    namespace: String,
    name: String,
    /// Names of programs of the namespace that it is positioned by.
    beside: BTreeSet<String>,
}

impl Neighbours {
    /// A program of the node, with what its spec asks for. Refused if it can never have it: programs that stand in a
    /// circle have no order.
    pub fn put(&self, uid: &str, namespace: &str, name: &str, spec: &EbpfProgramSpec) -> Result<(), ProgramError> {
        let program = Program { namespace: namespace.into(), name: name.into(), beside: beside(spec) };
        let mut programs = self.lock();
        let changed = programs.insert(uid.into(), program.clone()).as_ref() != Some(&program);
        let circle = circle(&programs, &program);
        drop(programs);
        if changed {
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

    /// Whether a program is positioned by others.
    pub fn names_others(&self, uid: &str) -> bool {
        self.lock().get(uid).is_some_and(|program| !program.beside.is_empty())
    }

    /// Some program's links are others than before.
    pub fn changed(&self) {
        self.changes.send_replace(());
    }

    /// Sees every change from now on.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Program>> {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner)
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

/// The programs that a spec names.
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
    let mut ways: Vec<Vec<String>> = start.beside.iter().map(|name| vec![name.clone()]).collect();
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
        let next = found.into_iter().flat_map(|program| &program.beside);
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
            "position: c, a, b, c: each asks to stand beside the next, so none can be first; take one position out"
        );
        assert!(node.put("1", "net", "a", &spec(&["b"])).is_err(), "and whoever else is in it, when it looks again");
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
