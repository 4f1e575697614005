//! What one pass leaves for the next: so that a repair is told from a change, and what became of maps is said as long as
//! the revision runs.

use std::collections::{BTreeMap, BTreeSet};

use skep_crds::Reason;
use skep_kernel::seam::Observed;
use skep_proto::v1::Notice;

use crate::execute::Outcome;
use crate::plan::Action;

/// What a pass left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Left {
    revision: String,
    /// Links that were alive.
    links: BTreeSet<String>,
    /// Pins of programs and maps.
    pins: BTreeSet<String>,
    /// Ids of kept maps.
    kept: BTreeMap<String, u32>,
    /// What became of maps.
    pub remarks: Vec<String>,
}

impl Left {
    /// After a pass for a revision.
    pub fn new(before: Option<&Left>, revision: &str, observed: &Observed, outcome: &Outcome) -> Self {
        let alive = observed.links.iter().filter(|(_, link)| link.alive).map(|(name, _)| name.clone());
        let mut remarks = before.filter(|b| b.revision == revision).map(|b| b.remarks.clone()).unwrap_or_default();
        remarks.extend(of_maps(outcome));
        remarks.extend(of_gaps(outcome));
        let (revision, links, pins) = (revision.to_owned(), alive.collect(), pins(observed));
        Left { revision, links, pins, kept: observed.kept.clone(), remarks }
    }
}

fn pins(observed: &Observed) -> BTreeSet<String> {
    let of_loads = observed
        .loads
        .iter()
        .flat_map(|(load, seen)| seen.programs.keys().chain(seen.maps.keys()).map(move |pin| format!("{load}/{pin}")));
    of_loads.chain(observed.kept.keys().cloned()).collect()
}

/// What is to be said of a pass.
pub fn notices(
    uid: &str,
    before: Option<&Left>,
    after: &Left,
    seen: &Observed,
    plan: &[Action],
    outcome: &Outcome,
) -> Vec<Notice> {
    let of =
        |warning, reason: Reason, message| Notice { uid: uid.to_owned(), warning, reason: reason.to_string(), message };
    let maps = of_maps(outcome).into_iter().map(|text| of(true, Reason::MapIncompatible, text));
    let Some(before) = before.filter(|before| before.revision == after.revision) else { return maps.collect() };
    let failed = |link: &String| outcome.targets.iter().any(|(name, _)| name == link);
    let lost = before.pins.difference(&pins(seen)).next().is_some();
    let repaired = plan.iter().take(outcome.done).filter_map(|action| match action {
        Action::Attach { link, hook, .. } if before.links.contains(link) && !failed(link) => {
            Some(format!("{} on {} was gone, and is attached again", hook.kind, hook.target.display()))
        }
        // One whose pin went cannot be told from somebody else's: what is said of pins says enough.
        Action::Replace { hook, undo: None, .. } if !lost => {
            Some(format!("another program was on {} of {}, and gave way", hook.kind, hook.target.display()))
        }
        _ => None,
    });
    let lost = (lost && outcome.failure.is_none())
        .then(|| "pins of programs or maps were gone, and are there again".to_owned());
    let another = |(map, id): &(&String, &u32)| after.kept.get(*map).is_some_and(|now| now != *id);
    let anew = before.kept.iter().filter(another);
    let anew =
        anew.map(|(map, _)| format!("map {map} started anew: its pins were deleted, and what it held with them"));
    let anew: Vec<Notice> = anew.map(|text| of(true, Reason::MapIncompatible, text)).collect();
    repaired.chain(lost).map(|text| of(false, Reason::Ready, text)).chain(maps).chain(anew).collect()
}

fn of_gaps(outcome: &Outcome) -> impl Iterator<Item = String> {
    outcome.gaps.iter().map(|(hook, gap)| {
        format!("{hook} was empty for {:.1} ms while its program was replaced", gap.as_secs_f64() * 1e3)
    })
}

fn of_maps(outcome: &Outcome) -> Vec<String> {
    let reset = outcome.load.reset.iter().map(|(map, why)| format!("map {map} started anew: {why}"));
    let dropped = outcome.load.resized.iter().filter(|(_, dropped)| **dropped > 0);
    let dropped = dropped
        .map(|(map, dropped)| format!("map {map}: {dropped} of its oldest entries did not fit into its new size"));
    let raced = outcome.settled.iter().filter(|(_, settled)| settled.raced > 0).map(|(map, settled)| {
        format!(
            "map {map}: {} values changed in the old map while it moved to another size, and were not brought over; merge: Sum adds them",
            settled.raced
        )
    });
    reset.chain(dropped).chain(raced).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::interface;
    use skep_kernel::hook::{Hook, Options};
    use skep_kernel::seam::{ObservedLink, ProgramAt};
    use skep_object::kind::Kind;

    fn attach(link: &str) -> Action {
        let hook =
            Hook { kind: Kind::Xdp, attach_type: 37, target: interface(2, 1), options: Options::default(), gate: None };
        Action::Attach {
            link: link.into(),
            hook,
            instead_of: None,
            program: ProgramAt { load: "l".into(), pin: "f".into() },
        }
    }

    #[test]
    fn a_link_that_was_there_is_a_repair_and_a_new_one_is_not() {
        let mut observed = Observed::default();
        observed.links.insert("a".into(), ObservedLink { id: 1, program_id: 2, alive: true, interface: None });
        let left = Left::new(None, "r1", &observed, &Outcome::default());
        let plan = [attach("a"), attach("b")];
        let outcome = Outcome { done: 2, ..Outcome::default() };
        let after = |revision| Left::new(None, revision, &observed, &Outcome::default());
        let said = notices("u", Some(&left), &after("r1"), &observed, &plan, &outcome);
        assert_eq!(said.len(), 1);
        assert_eq!(said[0].message, "xdp on eth2 was gone, and is attached again");
        assert!(notices("u", Some(&left), &after("r2"), &observed, &plan, &outcome).is_empty(), "a change");
        assert!(notices("u", None, &after("r1"), &observed, &plan, &outcome).is_empty(), "the first pass");
    }

    #[test]
    fn contents_that_went_with_their_pins_are_not_said_to_be_there_again() {
        let with = |id| Observed { kept: [("hits".to_owned(), id)].into(), ..Observed::default() };
        let left = |revision, id| Left::new(None, revision, &with(id), &Outcome::default());
        let said = |before: &Left, after: &Left| notices("u", Some(before), after, &with(1), &[], &Outcome::default());
        let lost = said(&left("r1", 1), &left("r1", 2));
        assert_eq!(lost.len(), 1);
        assert!(lost[0].warning && lost[0].message.starts_with("map hits started anew: its pins were deleted"));
        assert!(said(&left("r1", 1), &left("r1", 1)).is_empty());
        assert!(said(&left("r1", 1), &left("r2", 2)).is_empty(), "a change");
    }

    #[test]
    fn what_became_of_maps_is_said_once_and_shown_as_long_as_the_revision_runs() {
        let mut outcome = Outcome::default();
        outcome.load.reset.insert("flows".into(), "value size was 8 and is now 16".into());
        let said = notices("u", None, &Left::default(), &Observed::default(), &[], &outcome);
        assert_eq!(said[0].message, "map flows started anew: value size was 8 and is now 16");
        let left = Left::new(None, "r1", &Observed::default(), &outcome);
        let next = Left::new(Some(&left), "r1", &Observed::default(), &Outcome::default());
        assert_eq!(next.remarks, left.remarks);
        assert!(Left::new(Some(&left), "r2", &Observed::default(), &Outcome::default()).remarks.is_empty());
    }
}
