//! What others do to a fake kernel, without telling the agent.

use super::State;

/// Somebody's doing that nobody told the agent of.
#[derive(Clone, Copy, Debug)]
pub enum Drift {
    /// The target of a link goes away.
    Sever,
    /// Somebody detaches a link.
    DetachLink,
    /// Somebody deletes a link's pin.
    DeleteLink,
    /// Somebody puts his program on a link.
    Usurp,
    /// Somebody deletes the pin of a program, a load's map, or a kept map.
    DeleteProgram,
    DeleteMap,
    DeleteKept,
}

impl Drift {
    pub const ALL: [Drift; 7] = [
        Drift::Sever,
        Drift::DetachLink,
        Drift::DeleteLink,
        Drift::Usurp,
        Drift::DeleteProgram,
        Drift::DeleteMap,
        Drift::DeleteKept,
    ];

    pub(super) fn befall(self, state: &mut State, random: &mut fastrand::Rng) {
        let links: Vec<String> = state.observed.links.keys().cloned().collect();
        let loads: Vec<String> = state.observed.loads.keys().cloned().collect();
        let (link, load) = (random.choice(&links).cloned(), random.choice(&loads).cloned());
        match (self, link, load) {
            (Drift::Sever | Drift::DetachLink, Some(link), _) => {
                state.guarded.remove(&link);
                state.hooks.remove(&link);
                state.observed.links.entry(link).and_modify(|l| l.alive = false);
            }
            (Drift::DeleteLink, Some(link), _) => {
                state.guarded.remove(&link);
                state.observed.links.remove(&link);
                if let Some(hook) = state.hooks.remove(&link) {
                    state.leaving.push((hook, random.u32(..3)));
                }
            }
            (Drift::Usurp, Some(link), _) => {
                state.guarded.remove(&link);
                let id = state.id();
                state.observed.links.entry(link).and_modify(|l| l.program_id = id);
            }
            (Drift::DeleteProgram, _, Some(load)) => {
                // What runs it runs on, and cannot be found by name any more.
                let gone = state.observed.loads.get_mut(&load).and_then(|l| l.programs.pop_first());
                let ran: Vec<String> = state
                    .observed
                    .links
                    .iter()
                    .filter(|(_, l)| Some(l.program_id) == gone.as_ref().map(|(_, p)| p.id))
                    .map(|(n, _)| n.clone())
                    .collect();
                state.guarded.retain(|link| !ran.contains(link));
            }
            // Between a copy and its settling, the pins of the maps are the only way to what was counted: who deletes
            // them in that moment loses it.
            (Drift::DeleteMap | Drift::DeleteKept, ..) if !state.bases.is_empty() => {}
            // The last pin of a map is the map: one pin at a time is deleted, until it is repaired.
            (Drift::DeleteMap | Drift::DeleteKept, ..)
                if state.observed.kept.is_empty()
                    || loads.is_empty()
                    || loads.iter().any(|load| state.map_of(load).is_none()) => {}
            (Drift::DeleteMap, _, Some(load)) => {
                if let Some(load) = state.observed.loads.get_mut(&load) {
                    load.maps.clear();
                }
            }
            (Drift::DeleteKept, ..) => state.observed.kept.clear(),
            _ => {}
        }
    }
}
