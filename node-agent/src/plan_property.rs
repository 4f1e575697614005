//! Properties of planning and executing together: from any start, through refusals and crashes at any call, the wanted
//! state is reached; hooks shared by the old and the new revision never stand empty; a second run has nothing to do.
//! And the same tests find seeded defects, so that they can be trusted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use skep_kernel::hook::{Hook, Options, Target, XdpMode};
use skep_kernel::seam::{Kernel, LoadRequest, Variant};
use skep_object::Object;
use skep_object::kind::{Kind, attach};

use crate::execute::{Outcome, execute};
use crate::fake::{Fake, Fault, interface};
use crate::plan::{Action, Wanted, WantedLink, plan};

const UID: &str = "uid";

/// The smallest object there is: a symbol table and nothing else. The fake looks at names only.
fn object() -> Arc<Object> {
    let mut elf =
        object::write::Object::new(object::BinaryFormat::Elf, object::Architecture::Bpf, object::Endianness::Little);
    elf.add_file_symbol(b"x".to_vec());
    Arc::new(Object::parse(elf.write().unwrap()).unwrap())
}

fn hooks(random: &mut fastrand::Rng) -> BTreeMap<String, WantedLink> {
    let mut links = BTreeMap::new();
    for index in 1..=3 {
        let mode = [XdpMode::Auto, XdpMode::Generic][random.usize(..2)];
        let all = [
            (Kind::Xdp, attach::XDP, interface(index), mode),
            (Kind::Tcx, attach::TCX_INGRESS, interface(index), XdpMode::Auto),
            (
                Kind::Fentry,
                attach::TRACE_FENTRY,
                Target::Function { name: format!("f{index}"), offset: 0 },
                XdpMode::Auto,
            ),
        ];
        for (kind, attach_type, target, xdp_mode) in all {
            if random.u8(..3) == 0 {
                continue;
            }
            let hook =
                Hook { kind, attach_type, target, options: Options { xdp_mode, ..Options::default() }, gate: None };
            let function = format!("on_{kind}");
            let pin = Variant { function: function.clone(), attributes: hook.load_attributes("s") }.pin();
            links.insert(hook.link_name(&function), WantedLink { function, hook, pin });
        }
    }
    links
}

fn wanted(random: &mut fastrand::Rng) -> Wanted {
    let links = hooks(random);
    let variants = links
        .values()
        .map(|l| Variant { function: l.function.clone(), attributes: l.hook.load_attributes("s") })
        .collect();
    let load = ["l1", "l2", "l3"][random.usize(..3)].to_owned();
    Wanted { load, variants, links, spare: false }
}

/// What a plan is turned into before it is run: the truth, or a seeded defect.
type Defect = fn(Vec<Action>) -> Vec<Action>;

struct History<'a> {
    fake: Fake,
    object: Arc<Object>,
    defect: &'a Defect,
    struck: BTreeMap<&'static str, u32>,
}

impl History<'_> {
    fn run(&self, wanted: &Wanted) -> Option<Outcome> {
        let observed = self.fake.observe(UID).ok()?;
        let plan = (self.defect)(plan(wanted, &observed));
        let request = LoadRequest {
            object: self.object.clone(),
            maps: Vec::new(),
            variants: wanted.variants.clone(),
            keep: BTreeSet::new(),
        };
        Some(execute(&self.fake, UID, &request, &BTreeMap::new(), &plan))
    }

    /// One change of what is wanted, with faults on the way to it.
    fn step(&mut self, before: Option<&Wanted>, now: &Wanted, random: &mut fastrand::Rng) -> Result<(), String> {
        let guarded: BTreeSet<String> = before
            .map(|b| now.links.keys().filter(|l| b.links.contains_key(*l)).cloned().collect())
            .unwrap_or_default();
        let old: BTreeMap<String, Option<String>> = guarded.iter().map(|l| (l.clone(), self.fake.load_of(l))).collect();
        self.fake.guard(guarded.clone());
        for _ in 0..random.u8(..3) {
            let fault = [Fault::Refuse, Fault::CrashBefore, Fault::CrashAfter][random.usize(..3)];
            *self
                .struck
                .entry(match fault {
                    Fault::Refuse => "refused",
                    _ => "crashed",
                })
                .or_default() += 1;
            self.fake.strike(random.u32(..12), fault);
            let outcome = self.run(now);
            if fault == Fault::Refuse && outcome.as_ref().is_some_and(|o| o.failure.is_some()) {
                // All or nothing: all moved, or all where they were.
                let loads: BTreeSet<Option<String>> = guarded.iter().map(|l| self.fake.load_of(l)).collect();
                let back = guarded.iter().all(|l| self.fake.load_of(l) == old[l]);
                if loads.len() > 1 && !back {
                    return Err(format!("after a refusal links run {loads:?}"));
                }
            }
            self.fake.restart();
            if let Some(broken) = self.fake.broken() {
                return Err(broken);
            }
        }
        if random.u8(..4) == 0
            && let Some(link) = now.links.keys().next()
        {
            self.fake.sever(link);
        }
        self.run(now).ok_or("not run")?;
        self.fake.broken().map_or(Ok(()), Err)?;
        self.converged(now)
    }

    fn converged(&self, wanted: &Wanted) -> Result<(), String> {
        let seen = self.fake.observe(UID).map_err(|e| e.to_string())?;
        let again = plan(wanted, &seen);
        if !again.is_empty() {
            return Err(format!("not converged, still to do: {again:?}"));
        }
        let loads: Vec<&String> = seen.loads.keys().collect();
        if loads != [&wanted.load] || !seen.staged.is_empty() {
            return Err(format!("residue: {loads:?} {:?}", seen.staged));
        }
        let pins: BTreeSet<String> = wanted.variants.iter().map(Variant::pin).collect();
        let load = &seen.loads[&wanted.load];
        let named: BTreeSet<&str> = wanted.variants.iter().map(|v| v.function.as_str()).collect();
        let stale = load.programs.keys().find(|p| !pins.contains(*p) && named.contains(p.rsplit_once('+').unwrap().0));
        if let Some(stale) = stale {
            return Err(format!("residue: program {stale}"));
        }
        if !seen.links.keys().eq(wanted.links.keys()) {
            return Err("links are not those that are wanted".into());
        }
        for (name, link) in &wanted.links {
            if seen.links[name].program_id != load.programs[&link.pin].id {
                return Err(format!("link {name} runs another program"));
            }
        }
        Ok(())
    }
}

/// Random histories; the first that breaks a property is told with its seed.
fn histories(count: u64, defect: Defect) -> Result<BTreeMap<&'static str, u32>, String> {
    let object = object();
    let mut struck = BTreeMap::new();
    for seed in 0..count {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut history =
            History { fake: Fake::default(), object: object.clone(), defect: &defect, struck: BTreeMap::new() };
        let mut before = None;
        for step in 0..4 {
            let now = wanted(&mut random);
            history.step(before.as_ref(), &now, &mut random).map_err(|e| format!("seed {seed}, step {step}: {e}"))?;
            before = Some(now);
        }
        for (fault, n) in history.struck {
            *struck.entry(fault).or_default() += n;
        }
    }
    Ok(struck)
}

#[test]
fn every_history_ends_in_the_wanted_state_without_a_gap() {
    let struck = histories(5_000, |plan| plan).unwrap();
    println!("faults on the way: {struck:?}");
    assert!(struck.values().all(|n| *n >= 1_000), "{struck:?}");
}

/// Each takes away or moves one thing that the guarantees rest on.
const DEFECTS: [(&str, Defect); 10] = [
    ("the undo of a replacement is missing", |plan| {
        plan.into_iter()
            .map(|a| match a {
                Action::Replace { link, hook, old, to, .. } => Action::Replace { link, hook, old, to, undo: None },
                other => other,
            })
            .collect()
    }),
    ("old loads are removed first", |mut plan| {
        plan.sort_by_key(|a| !matches!(a, Action::RemoveLoad { .. }));
        plan
    }),
    ("links are detached and attached instead of replaced", |plan| {
        plan.into_iter()
            .flat_map(|a| match a {
                Action::Replace { link, hook, to, .. } => {
                    vec![Action::Detach { link: link.clone() }, Action::Attach { link, hook, program: to }]
                }
                other => vec![other],
            })
            .collect()
    }),
    ("old loads stay", |plan| plan.into_iter().filter(|a| !matches!(a, Action::RemoveLoad { .. })).collect()),
    ("half-done work stays", |plan| plan.into_iter().filter(|a| !matches!(a, Action::Discard { .. })).collect()),
    ("links stay with the old load", |plan| {
        plan.into_iter().filter(|a| !matches!(a, Action::Replace { .. })).collect()
    }),
    ("unwanted links stay", |plan| plan.into_iter().filter(|a| !matches!(a, Action::Detach { .. })).collect()),
    ("loading comes last", |mut plan| {
        plan.sort_by_key(|a| matches!(a, Action::Load { .. }));
        plan
    }),
    ("stale variants stay", |plan| plan.into_iter().filter(|a| !matches!(a, Action::Unload { .. })).collect()),
    ("new targets are forgotten", |plan| plan.into_iter().filter(|a| !matches!(a, Action::Attach { .. })).collect()),
];

#[test]
fn seeded_defects_are_each_found() {
    for (name, defect) in DEFECTS {
        let found = histories(2_000, defect).expect_err(name);
        println!("{name}: {found}");
    }
}
