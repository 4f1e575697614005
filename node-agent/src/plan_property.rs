//! Properties of planning and executing together: from any start, through refusals, crashes and other people's doings at
//! any call, the wanted state is reached; hooks shared by the old and the new revision never stand empty; nothing that was
//! counted is lost; a second run has nothing to do. And the same tests find seeded defects, so that they can be trusted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use skep_kernel::KernelError;
use skep_kernel::hook::{Family, Hook, Netfilter, NetfilterHook, Options, Target, XdpMode};
use skep_kernel::seam::{Kernel, LoadRequest, Merge, Variant};
use skep_object::Object;
use skep_object::kind::{Kind, attach};
use skep_object::map::MapDef;

use crate::execute::{Outcome, execute};
use crate::fake::{Drift, Fake, Fault, MAP, interface};
use crate::plan::{Action, Wanted, WantedLink, function_of, plan};

const UID: &str = "uid";
/// Runs until everything that only had to be waited for has happened.
const PATIENCE: usize = 8;

/// The smallest object there is: a symbol table and nothing else. The fake looks at names only.
fn object() -> Arc<Object> {
    let mut elf =
        object::write::Object::new(object::BinaryFormat::Elf, object::Architecture::Bpf, object::Endianness::Little);
    elf.add_file_symbol(b"x".to_vec());
    Arc::new(Object::parse(elf.write().unwrap()).unwrap())
}

/// Every hook that a history may want.
fn all_hooks(random: &mut fastrand::Rng) -> Vec<(&'static str, Hook)> {
    let hook = |kind, attach_type, target, options| Hook { kind, attach_type, target, options, gate: None };
    let mut all = Vec::new();
    for index in 1..=2 {
        let device = interface(index, random.u64(1..=2));
        let xdp_mode = [XdpMode::Auto, XdpMode::Generic][random.usize(..2)];
        all.push(("on_xdp", hook(Kind::Xdp, attach::XDP, device.clone(), Options { xdp_mode, ..Options::default() })));
        all.push(("on_tcx", hook(Kind::Tcx, attach::TCX_INGRESS, device, Options::default())));
        let cgroup = Target::Cgroup { path: format!("/c{index}").into(), id: u64::from(index) };
        for function in ["on_skb", "on_skb_too"] {
            all.push((
                function,
                hook(Kind::CgroupSkb, attach::CGROUP_INET_INGRESS, cgroup.clone(), Options::default()),
            ));
        }
        let function = Target::Function { name: format!("f{index}"), offset: 0 };
        all.push(("on_fentry", hook(Kind::Fentry, attach::TRACE_FENTRY, function, Options::default())));
    }
    let netns = Target::Netns { path: "/n".into(), cookie: 1, name: "n".into() };
    let at = Netfilter { family: Family::Ipv4, hook: NetfilterHook::LocalIn, priority: 0, defragment: false };
    let options = Options { netfilter: Some(at), ..Options::default() };
    all.push(("on_netfilter", hook(Kind::Netfilter, attach::NETFILTER, netns, options)));
    all
}

/// What is wanted, and how many entries its map has room for.
fn wanted(random: &mut fastrand::Rng) -> (Wanted, u32) {
    let mut links = BTreeMap::new();
    for (function, hook) in all_hooks(random) {
        if random.u8(..3) > 0 {
            let pin = Variant { function: function.into(), attributes: hook.load_attributes("s") }.pin();
            links.insert(hook.link_name(function), WantedLink { function: function.into(), hook, pin });
        }
    }
    let variant = |l: &WantedLink| Variant { function: l.function.clone(), attributes: l.hook.load_attributes("s") };
    let variants = links.values().map(variant).collect();
    let number = random.u32(1..=4);
    let one = || BTreeSet::from([MAP.to_owned()]);
    // A load has one map of one size.
    let wanted = Wanted {
        load: format!("l{number}"),
        variants,
        links,
        keep: one(),
        maps: one(),
        follows: BTreeSet::new(),
        begun: false,
        spare: random.u8(..8) == 0,
        stay: BTreeSet::new(),
    };
    (wanted, 1 + number % 2)
}

/// What a plan is turned into before it is run: the truth, or a seeded defect.
type Defect = fn(Vec<Action>) -> Vec<Action>;

struct History<'a> {
    fake: Fake,
    object: Arc<Object>,
    defect: &'a Defect,
}

impl History<'_> {
    fn run(&self, (wanted, entries): &(Wanted, u32)) -> Option<Outcome> {
        let observed = self.fake.observe(UID).ok()?;
        let plan = (self.defect)(plan(wanted, &observed));
        let request = LoadRequest {
            object: self.object.clone(),
            maps: vec![MapDef { name: MAP.into(), max_entries: *entries, ..MapDef::default() }],
            variants: wanted.variants.clone(),
            keep: [(MAP.to_owned(), Merge::Sum)].into(),
            share: BTreeMap::new(),
        };
        Some(execute(&self.fake, UID, &request, &BTreeMap::new(), &plan, None))
    }

    /// Live links that stay wanted.
    fn shared(&self, wanted: &Wanted) -> BTreeSet<String> {
        let observed = self.fake.observe(UID).unwrap_or_default();
        let stays = |name: &String| wanted.spare || wanted.links.contains_key(name);
        let runs = |name: &String| self.fake.load_of(name).is_some();
        observed.links.into_iter().filter(|(_, l)| l.alive).map(|(name, _)| name).filter(stays).filter(runs).collect()
    }

    /// Functions that are on a hook.
    fn running(&self) -> BTreeSet<String> {
        let observed = self.fake.observe(UID).unwrap_or_default();
        let programs = observed.loads.values().flat_map(|load| &load.programs);
        let on_a_hook = |id| observed.links.values().any(|link| link.alive && link.program_id == id);
        programs.filter(|(_, program)| on_a_hook(program.id)).filter_map(|(pin, _)| function_of(pin)).collect()
    }

    /// One change of what is wanted, with faults on the way to it. Sometimes the next one comes before it is reached.
    fn step(&mut self, now: &(Wanted, u32), last: bool, random: &mut fastrand::Rng) -> Result<(), String> {
        let guarded = self.shared(&now.0);
        let old: BTreeMap<String, Option<String>> = guarded.iter().map(|l| (l.clone(), self.fake.load_of(l))).collect();
        let mut one_load = old.values().collect::<BTreeSet<_>>().len() <= 1;
        self.fake.guard(guarded);
        for _ in 0..random.u8(..3) {
            if random.bool() {
                let drift = Drift::ALL[random.usize(..Drift::ALL.len())];
                self.fake.drift(drift, random);
                // What somebody deleted in the middle of a swap cannot be gone back to.
                one_load &= !matches!(drift, Drift::DeleteProgram);
            }
            if random.u8(..4) == 0 {
                self.fake.foreign(random.choice(all_hooks(&mut random.clone())).map(|(_, hook)| hook));
            }
            let fault = [Fault::Refuse, Fault::CrashBefore, Fault::CrashAfter][random.usize(..3)];
            if random.u8(..3) == 0 {
                self.fake.litter();
            }
            // Some calls are rare: every second fault waits for one of a kind.
            match random.bool() {
                true => self.fake.strike(Some(RARE[random.usize(..RARE.len())]), 0, fault),
                false => self.fake.strike(None, random.u32(..14), fault),
            }
            let ran = self.running();
            let unguessed = |action: &Action| matches!(action, Action::Attach { instead_of: Some(former), .. } if former.again.is_none());
            let planned = plan(&now.0, &self.fake.observe(UID).unwrap_or_default());
            let unguessed = planned.iter().any(unguessed);
            let outcome = self.run(now);
            let left: BTreeSet<String> = ran.difference(&self.running()).cloned().collect();
            let lost = now.0.links.values().map(|link| &link.function).find(|function| left.contains(*function));
            // What is refused after links went is made good by the pass for the older revision, which knows where they were;
            // so are links that left for another one, and cannot be told from their names.
            let late = |outcome: &Outcome| {
                let failure = outcome.failure.as_ref().map(ToString::to_string).unwrap_or_default();
                ["settle", "detach"].iter().any(|call| failure.starts_with(call))
            };
            let late = outcome.as_ref().is_some_and(late) || unguessed;
            if fault == Fault::Refuse
                && !late
                && let Some(function) = lost
            {
                return Err(format!("{function} ran, is wanted elsewhere, and runs nowhere after a refusal"));
            }
            // One that is full or taken is no fault: that may strike on the way back.
            let struck = |outcome: &Outcome| matches!(outcome.failure, Some(KernelError::Io { .. }));
            if fault == Fault::Refuse && one_load && outcome.as_ref().is_some_and(struck) {
                // All or nothing: all moved, or all where they were.
                let wanted = self.fake.guarded().into_iter().filter(|link| now.0.links.contains_key(link));
                let loads = wanted.map(|l| (self.fake.load_of(&l), l)).map(|(load, l)| (l, load)).collect::<Vec<_>>();
                let back = loads.iter().all(|(link, load)| old[link] == *load);
                let forth = loads.iter().all(|(_, load)| load.as_ref() == Some(&now.0.load));
                if !back && !forth {
                    return Err(format!("after a refusal links run {loads:?}"));
                }
            }
            self.fake.restart();
            self.fake.broken().map_or(Ok(()), Err)?;
        }
        if !last && random.u8(..3) == 0 {
            return Ok(());
        }
        self.fake.foreign(None);
        for _ in 0..PATIENCE {
            if self.run(now).ok_or("not run")?.done == 0 {
                break;
            }
        }
        self.fake.broken().map_or(Ok(()), Err)?;
        if now.0.spare { Ok(()) } else { self.converged(&now.0) }
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
        if seen.kept.get(MAP) != load.maps.get(MAP).map(|map| &map.id) {
            return Err("the kept map is not the load's".into());
        }
        match self.fake.counts() {
            (Some(kept), all) if kept == all => Ok(()),
            (kept, all) => Err(format!("{all} were counted, and the map has {kept:?}")),
        }
    }
}

type Struck = BTreeMap<(&'static str, Fault), u32>;

/// Random histories; the first that breaks a property is told with its seed.
fn histories(seeds: std::ops::Range<u64>, defect: Defect) -> Result<Struck, String> {
    let object = object();
    let mut struck = Struck::new();
    for seed in seeds {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut history = History { fake: Fake::default(), object: object.clone(), defect: &defect };
        for step in 0..4 {
            let mut now = wanted(&mut random);
            now.0.spare &= step < 3;
            history.step(&now, step == 3, &mut random).map_err(|e| format!("seed {seed}, step {step}: {e}"))?;
        }
        for (fault, n) in history.fake.struck() {
            *struck.entry(fault).or_default() += n;
        }
    }
    Ok(struck)
}

/// Calls that change something, which are those that can be struck.
const CALLS: [&str; 8] = ["load", "attach", "replace", "detach", "settle", "unload", "remove_load", "discard"];

/// Those that few plans have.
const RARE: [&str; 2] = ["unload", "discard"];

#[test]
fn every_history_ends_in_the_wanted_state_without_a_gap() {
    const HISTORIES: u64 = 100_000;
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let part = HISTORIES.div_ceil(threads);
    let mut struck = Struck::new();
    std::thread::scope(|scope| {
        let parts: Vec<_> = (0..threads)
            .map(|n| scope.spawn(move || histories(n * part..((n + 1) * part).min(HISTORIES), |plan| plan)))
            .collect();
        for part in parts {
            for (fault, n) in part.join().unwrap().unwrap() {
                *struck.entry(fault).or_default() += n;
            }
        }
    });
    println!("{HISTORIES} histories, struck on the way:");
    for call in CALLS {
        let of = |fault| struck.get(&(call, fault)).copied().unwrap_or_default();
        let (refused, crashed) = (of(Fault::Refuse), of(Fault::CrashBefore) + of(Fault::CrashAfter));
        println!("  {call:12} refused {refused:6}, crashed {crashed:6}");
        assert!(refused >= 1000 && crashed >= 1000, "{call}: {refused} {crashed}");
    }
}

/// Each takes away or moves one thing that the guarantees rest on.
const DEFECTS: [(&str, Defect); 14] = [
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
                    vec![
                        Action::Detach { link: link.clone(), last: None },
                        Action::Attach { link, hook, program: to, instead_of: None },
                    ]
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
    ("the last links of a function go whatever comes instead", |plan| {
        let without = |action| match action {
            Action::Detach { link, .. } => Action::Detach { link, last: None },
            other => other,
        };
        plan.into_iter().map(without).collect()
    }),
    ("stale variants stay", |plan| plan.into_iter().filter(|a| !matches!(a, Action::Unload { .. })).collect()),
    ("kept maps are not settled", |plan| plan.into_iter().filter(|a| !matches!(a, Action::Settle { .. })).collect()),
    ("kept maps are settled before the links move", |mut plan| {
        let at = plan.iter().rposition(|a| matches!(a, Action::Settle { .. }));
        let moves = plan.iter().position(|a| matches!(a, Action::Replace { .. }));
        if let (Some(at), Some(moves)) = (at, moves)
            && moves < at
        {
            let settle = plan.remove(at);
            plan.insert(moves, settle);
        }
        plan
    }),
    ("links that an earlier run moved are not taken back", |plan| {
        plan.into_iter().filter(|a| !matches!(a, Action::Moved { .. })).collect()
    }),
    ("new targets are forgotten", |plan| plan.into_iter().filter(|a| !matches!(a, Action::Attach { .. })).collect()),
];

#[test]
fn seeded_defects_are_each_found() {
    for (name, defect) in DEFECTS {
        let found = histories(0..4_000, defect).expect_err(name);
        println!("{name}: {found}");
    }
}
