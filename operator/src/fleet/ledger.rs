//! What one node has been told and what it has shown, and what remains to be said. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use skep_proto::v1::{ProgramReport, State};

use super::board::{Order, Wanted};

/// One thing to say to a node.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Run this.
    Apply(Arc<Order>),
    /// Remove this uid.
    Remove(String),
}

impl Action {
    /// The program that it is about.
    pub fn uid(&self) -> &str {
        match self {
            Self::Apply(order) => &order.uid,
            Self::Remove(uid) => uid,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Seen {
    revision: String,
    generation: i64,
    removing: bool,
}

/// What is known of one node's programs.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// The start of the agent that all this is about.
    instance: String,
    seen: BTreeMap<String, Seen>,
    /// Orders that the agent has taken. Its memory of their credentials ends with its instance.
    told: BTreeMap<String, Arc<Order>>,
    /// Removals that the agent has taken and not finished.
    leaving: BTreeSet<String>,
}

impl Ledger {
    /// A connection to this start of the agent begins.
    pub fn begin(&mut self, instance: &str) {
        if self.instance != instance {
            self.instance = instance.into();
            self.told.clear();
        }
        self.seen.clear();
        self.leaving.clear();
    }

    /// All that the agent has.
    pub fn snapshot(&mut self, reports: &[ProgramReport]) {
        self.seen = reports.iter().map(|report| (report.uid.clone(), seen(report))).collect();
        // What it says counts more than what it was told.
        self.told.retain(|uid, order| self.seen.get(uid).is_some_and(|seen| agrees(seen, order)));
        self.leaving.clear();
    }

    /// How one program does.
    pub fn report(&mut self, report: &ProgramReport) {
        self.seen.insert(report.uid.clone(), seen(report));
    }

    /// The agent took the order.
    pub fn applied(&mut self, order: Arc<Order>) {
        self.leaving.remove(&order.uid);
        self.told.insert(order.uid.clone(), order);
    }

    /// The agent took the removal.
    pub fn removing(&mut self, uid: &str) {
        self.told.remove(uid);
        self.leaving.insert(uid.into());
    }

    /// Nothing is left of it.
    pub fn gone(&mut self, uid: &str) {
        self.seen.remove(uid);
        self.told.remove(uid);
        self.leaving.remove(uid);
    }

    /// What remains to be said about one program.
    pub fn next(&self, wanted: &Wanted, uid: &str) -> Option<Action> {
        if wanted.unreadable.contains(uid) && !wanted.removing.contains(uid) {
            return None;
        }
        let Some(order) = wanted.programs.get(uid) else {
            let there = self.seen.contains_key(uid) || self.told.contains_key(uid) || wanted.removing.contains(uid);
            return (there && !self.leaving.contains(uid)).then(|| Action::Remove(uid.into()));
        };
        let order = order.as_ref()?;
        let said = match (self.told.get(uid), self.seen.get(uid)) {
            (Some(told), _) => Arc::ptr_eq(told, order) || told == order,
            // Credentials are in its memory only, and it is not known whether it still has them.
            (None, Some(seen)) => agrees(seen, order) && order.credentials.is_empty(),
            (None, None) => false,
        };
        (!said).then(|| Action::Apply(order.clone()))
    }

    /// All that remains to be said: removals first.
    pub fn plan(&self, wanted: &Wanted) -> Vec<Action> {
        let known = self.seen.keys().chain(self.told.keys()).chain(&wanted.removing);
        let uids: BTreeSet<&String> = known.chain(wanted.programs.keys()).collect();
        let actions = uids.into_iter().filter_map(|uid| self.next(wanted, uid));
        let (removals, mut rest): (Vec<_>, Vec<_>) = actions.partition(|action| matches!(action, Action::Remove(_)));
        rest.splice(0..0, removals);
        rest
    }
}

fn seen(report: &ProgramReport) -> Seen {
    Seen {
        revision: report.desired_revision.clone(),
        generation: report.generation,
        removing: report.state() == State::Removing,
    }
}

fn agrees(seen: &Seen, order: &Order) -> bool {
    !seen.removing && seen.revision == order.revision && seen.generation == order.generation
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_proto::v1::RegistryCredential;

    fn order(uid: &str, revision: &str) -> Arc<Order> {
        Arc::new(Order { uid: uid.into(), revision: revision.into(), generation: 1, ..Order::default() })
    }

    fn report(uid: &str, revision: &str) -> ProgramReport {
        ProgramReport { uid: uid.into(), desired_revision: revision.into(), generation: 1, ..Default::default() }
    }

    fn wanted(orders: &[&Arc<Order>]) -> Wanted {
        let programs = orders.iter().map(|order| (order.uid.clone(), Some((*order).clone()))).collect();
        Wanted { complete: true, programs, ..Wanted::default() }
    }

    #[test]
    fn only_differences_are_said() {
        let mut ledger = Ledger::default();
        ledger.begin("i1");
        ledger.snapshot(&[report("same", "r1"), report("old", "r1"), report("extra", "r1"), report("odd", "r1")]);
        let (same, old, new) = (order("same", "r1"), order("old", "r2"), order("new", "r1"));
        let mut wanted = wanted(&[&same, &old, &new]);
        wanted.unreadable = Arc::new(["odd".to_string()].into());
        wanted.programs.insert("unknown".into(), None);
        let actions = ledger.plan(&wanted);
        assert_eq!(actions, [Action::Remove("extra".into()), Action::Apply(new.clone()), Action::Apply(old.clone())]);
        ledger.applied(old);
        ledger.applied(new);
        ledger.removing("extra");
        assert_eq!(ledger.plan(&wanted), []);
        ledger.gone("extra");
        wanted.removing.insert("extra".into());
        assert_eq!(ledger.plan(&wanted), [Action::Remove("extra".into())], "asked again, since it must say so");
    }

    #[test]
    fn credentials_are_said_once_to_each_start_of_the_agent() {
        let order = Arc::new(Order { credentials: vec![RegistryCredential::default()], ..(*order("a", "r1")).clone() });
        let wanted = wanted(&[&order]);
        let mut ledger = Ledger::default();
        for (instance, plan) in [("i1", 1), ("i1", 0), ("i2", 1)] {
            ledger.begin(instance);
            ledger.snapshot(&[report("a", "r1")]);
            assert_eq!(ledger.plan(&wanted).len(), plan, "{instance}");
            ledger.applied(order.clone());
        }
    }

    #[test]
    fn what_the_agent_forgot_is_said_again() {
        let order = order("a", "r1");
        let mut ledger = Ledger::default();
        ledger.begin("i1");
        ledger.applied(order.clone());
        ledger.snapshot(&[]);
        assert_eq!(ledger.plan(&wanted(&[&order])), [Action::Apply(order.clone())]);
        let removing = ProgramReport { state: State::Removing as i32, ..report("a", "r1") };
        ledger.snapshot(&[removing]);
        assert_eq!(ledger.plan(&wanted(&[&order])), [Action::Apply(order)]);
    }
}
