//! The agent ends and comes back: after a reboot, and killed again and again. Real binary, real kernel. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code, reason = "each test binary uses its part of it")]
mod node;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use node::Node;
use skep_crds::{EbpfProgramSpec, load_hash, revision_hash};
use skep_kernel::Host;
use skep_kernel::seam::Kernel;
use skep_kernel::sys::{link, map, program};
use skep_node_agent::manifests::{self, Document};
use skep_proto::v1::State;

/// Hooks that take any number of programs.
fn shared_hooks(name: &str, image: &str, cgroup: &str, step: u32) -> String {
    format!(
        "apiVersion: skep.dev/v1alpha1\nkind: EbpfProgram\nmetadata: {{name: {name}, namespace: test}}\nspec:\n  image: {{reference: \"{image}\"}}\n  globals: {{step: {step}}}\n  programs:\n  - name: count_tc\n    attach:\n    - tcx: {{interfaces: {{names: [lo]}}, direction: Ingress}}\n    - tc: {{interfaces: {{names: [lo]}}, direction: Egress}}\n  - name: count_cgroup\n    attach:\n    - cgroupSkb: {{cgroups: {{path: {cgroup}}}, direction: Egress}}\n"
    )
}

/// No operator, no manifests, no registry, no link up: the desired store and the image cache are enough.
#[tokio::test]
async fn after_a_reboot_everything_is_back_from_the_nodes_own_disk() {
    const PROGRAMS: usize = 12;
    let mut node = Node::start().await;
    let image = node.push("net", "counter:v1").await;
    let name = |i: usize| format!("p{i}");
    for i in 0..PROGRAMS {
        let text = shared_hooks(&name(i), &image, &node.cgroup(), i as u32 + 1);
        // Whom the registry let have it before need not ask again.
        let policy = if i == 0 { "Always" } else { "IfNotPresent" };
        node.write(&format!("{i}.yaml"), &text.replace("{reference:", &format!("{{pullPolicy: {policy}, reference:")));
    }
    let mut before = Vec::new();
    for i in 0..PROGRAMS {
        before.push(node.until(&name(i), |r| r.state() == State::Ready).await);
    }

    node.reboot();
    node.hide_manifests(true);
    node.start_agent().await;
    for (i, before) in before.iter().enumerate() {
        let after = node.until(&name(i), |r| r.state() == State::Ready).await;
        assert_eq!(after.running_revision, before.running_revision);
        assert_ne!(after.functions, before.functions, "nothing of the old boot is left, so these are new");
        let hooks = |report: &skep_proto::v1::ProgramReport| -> Vec<_> {
            report.hooks.iter().map(|h| (h.hook.clone(), h.names.clone())).collect()
        };
        assert_eq!(hooks(&after), hooks(before));
    }
    // And they work, each with its own globals.
    node.ip(&["link", "set", "lo", "up"]);
    node.packets(1);
    for i in 0..PROGRAMS {
        // Received and sent: one packet, two hooks.
        assert_eq!(node.slot(&name(i), 1).await, 2 * (i as u64 + 1));
    }

    // The manifests come late, say the same, and change nothing.
    let loaded = node.report("p0").await.unwrap();
    node.hide_manifests(false);
    node.delete("1.yaml");
    node.until_gone("p1").await;
    assert_eq!(node.report("p0").await.unwrap(), loaded);
}

/// What a manifest says at a moment.
#[derive(Clone, Debug)]
struct Wish {
    step: u32,
    entries: u32,
    suspend: bool,
    /// One XDP program fits on an interface: only one of the programs may ask for it.
    xdp: bool,
    tcx: Vec<&'static str>,
    tc: bool,
    cgroup: bool,
}

impl Wish {
    fn random(random: &mut fastrand::Rng, first: bool) -> Self {
        let mut tcx = vec!["Ingress", "Egress"];
        tcx.retain(|_| random.bool());
        Wish {
            step: random.u32(1..4),
            entries: [256, 1024, 4096][random.usize(..3)],
            suspend: random.u8(..6) == 0,
            xdp: first && random.bool(),
            tcx,
            tc: random.bool(),
            cgroup: random.bool(),
        }
    }

    fn manifest(&self, name: &str, image: &str, cgroup: &str, tag: &str) -> String {
        let lo = "interfaces: {names: [lo]}";
        let mut tc: Vec<String> =
            self.tcx.iter().map(|way| format!("    - tcx: {{{lo}, direction: {way}}}\n")).collect();
        tc.extend(self.tc.then(|| format!("    - tc: {{{lo}, direction: Egress}}\n")));
        let mut programs = String::new();
        if self.xdp {
            programs += &format!("  - name: x{tag}\n    attach:\n    - xdp: {{{lo}}}\n");
        }
        if !tc.is_empty() {
            programs += &format!("  - name: t{tag}\n    attach:\n{}", tc.concat());
        }
        if self.cgroup || programs.is_empty() {
            let hook = format!("cgroupSkb: {{cgroups: {{path: {cgroup}}}, direction: Egress}}");
            programs += &format!("  - name: c{tag}\n    attach:\n    - {hook}\n");
        }
        let Wish { step, entries, suspend, .. } = self;
        format!(
            "apiVersion: skep.dev/v1alpha1\nkind: EbpfProgram\nmetadata: {{name: {name}, namespace: test}}\nspec:\n  image: {{reference: \"{image}\"}}\n  suspend: {suspend}\n  globals: {{step: {step}}}\n  maps: {{flows: {{maxEntries: {entries}}}}}\n  programs:\n{programs}"
        )
    }

    /// Hooks with a link, and those with a filter.
    fn hooks(&self) -> (usize, usize) {
        if self.suspend {
            return (0, 0);
        }
        let others = usize::from(self.xdp) + self.tcx.len();
        let cgroup = usize::from(self.cgroup || others + usize::from(self.tc) == 0);
        (others + cgroup, usize::from(self.tc))
    }
}

/// Programs and links that the kernel has of an object whose functions have names of their own.
fn in_kernel(names: &[String; 3]) -> (BTreeSet<u32>, BTreeSet<u32>) {
    let ours = |id: &u32| {
        let info = program::by_id(*id).and_then(|fd| program::info(fd.as_fd()));
        info.is_ok_and(|info| names.contains(&info.name))
    };
    let programs: BTreeSet<u32> = program::all_ids().unwrap().into_iter().filter(ours).collect();
    let of_ours = |id: &u32| {
        let info = link::by_id(*id).and_then(|fd| link::info(fd.as_fd()));
        info.is_ok_and(|info| programs.contains(&info.program_id))
    };
    let links = link::all_ids().unwrap().into_iter().filter(of_ours).collect();
    (programs, links)
}

fn maps_in_kernel(name: &str) -> BTreeSet<u32> {
    let named = |id: &u32| map::by_id(*id).and_then(|fd| map::info(fd.as_fd())).is_ok_and(|info| info.name == name);
    map::all_ids().unwrap().into_iter().filter(named).collect()
}

fn tree(dir: &Path) -> Vec<PathBuf> {
    let children: Vec<PathBuf> = std::fs::read_dir(dir).into_iter().flatten().map(|e| e.unwrap().path()).collect();
    let below: Vec<PathBuf> = children.iter().filter(|p| p.is_dir()).flat_map(|dir| tree(dir)).collect();
    [children, below].concat()
}

/// What is left must be what the wishes say, to the last pin and kernel object.
fn compare(node: &Node, wishes: &BTreeMap<String, Wish>, digest: &str, texts: &BTreeMap<String, String>, tag: &str) {
    let host = Host::open(&node.root(), &node.state()).unwrap();
    let uids: BTreeSet<String> = wishes.keys().map(|name| manifests::uid("test", name)).collect();
    assert_eq!(host.programs().unwrap().into_iter().collect::<BTreeSet<_>>(), uids);
    let half_done = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.ends_with('~') || name.ends_with(".tmp") || ["base", "sums"].contains(&name.as_str())
    };
    let left: Vec<PathBuf> = [tree(&node.root()), tree(&node.state())].concat().into_iter().filter(half_done).collect();
    assert_eq!(left, [] as [PathBuf; 0]);
    assert_eq!(node.desired_files(), wishes.len());

    let (mut programs, mut links, mut hits, mut filters) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new(), 0);
    for (name, wish) in wishes {
        let seen = host.observe(&manifests::uid("test", name)).unwrap();
        let spec = spec_of(&texts[name]);
        assert_eq!(seen.loads.keys().collect::<Vec<_>>(), [&load_hash(&spec, digest, None)], "{name}: {wish:?}");
        let load = seen.loads.values().next().unwrap();
        let ids: BTreeSet<u32> = load.programs.values().map(|p| p.id).collect();
        let (with_link, with_filter) = wish.hooks();
        assert_eq!(seen.links.len(), with_link + with_filter, "{name}: {wish:?}: {seen:?}");
        assert!(seen.links.values().all(|l| l.alive && ids.contains(&l.program_id)), "{name}: {wish:?}: {seen:?}");
        assert!(!load.pending && seen.kept.iter().all(|(map, id)| load.maps.get(map).is_none_or(|m| m.id == *id)));
        filters += with_filter;
        programs.extend(ids);
        links.extend(seen.links.values().map(|l| l.id));
        hits.insert(load.maps[&format!("h{tag}")].id);
    }
    let names = ["x", "t", "c"].map(|kind| format!("{kind}{tag}"));
    let start = Instant::now();
    loop {
        // The kernel frees a moment later.
        let (now, seen_links) = in_kernel(&names);
        let maps = maps_in_kernel(&format!("h{tag}"));
        let as_wanted = now == programs && seen_links.is_subset(&links) && maps == hits;
        if as_wanted && seen_links.len() + filters == links.len() && node.filters() == filters {
            println!("{} programs, {} links, {filters} filters, {} maps", now.len(), seen_links.len(), maps.len());
            return;
        }
        assert!(
            start.elapsed() < Duration::from_secs(15),
            "kernel has programs {now:?}, links {seen_links:?}, maps {maps:?}, {} filters; wanted {programs:?}, {links:?}, {hits:?}, {filters}",
            node.filters()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn spec_of(text: &str) -> EbpfProgramSpec {
    match &manifests::parse("x", text)[..] {
        [Document { program: Ok(program), .. }] => program.spec.clone(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn killed_at_any_moment_it_ends_where_the_manifests_say() {
    let seed = std::env::var("SKEP_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("SKEP_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut node = Node::start().await;
    // Names that no other object of this machine has.
    let tag = format!("{:x}", std::process::id());
    let renamed = [("count_xdp", "x"), ("count_tc", "t"), ("count_cgroup", "c"), ("hits", "h")];
    let flags: Vec<String> = renamed.iter().map(|(name, short)| format!("-D{name}={short}{tag}")).collect();
    let object = node::object("net", &flags);
    let image = node.push_object(&object, "random:v1").await;
    let digest = skep_image::build(&object, &BTreeMap::new()).digest().to_string();
    let names: Vec<String> = (0..5).map(|i| format!("p{i}")).collect();
    let (mut wishes, mut texts) = (BTreeMap::new(), BTreeMap::new());
    let mut edit = |node: &Node, random: &mut fastrand::Rng| {
        let index = random.usize(..names.len());
        let (name, file) = (&names[index], format!("{index}.yaml"));
        if wishes.contains_key(name) && random.u8(..5) == 0 {
            node.delete(&file);
            wishes.remove(name);
            texts.remove(name);
            return (wishes.clone(), texts.clone());
        }
        let wish = Wish::random(random, index == 0);
        let text = wish.manifest(name, &image, &node.cgroup(), &tag);
        node.write(&file, &text);
        wishes.insert(name.clone(), wish);
        texts.insert(name.clone(), text);
        (wishes.clone(), texts.clone())
    };
    let (start, mut kills, mut edits) = (Instant::now(), 0, 1);
    let mut last = edit(&node, &mut random);
    while start.elapsed() < Duration::from_secs(30) {
        for _ in 0..random.u32(1..4) {
            last = edit(&node, &mut random);
            edits += 1;
        }
        tokio::time::sleep(Duration::from_millis(random.u64(..500))).await;
        if random.u8(..4) > 0 {
            node.kill();
            kills += 1;
            last = edit(&node, &mut random);
            edits += 1;
            node.spawn_agent();
        }
    }
    println!("{edits} edits, {kills} kills");
    node.connect().await;
    let (wishes, texts) = last;
    for (name, text) in &texts {
        let revision = revision_hash(&spec_of(text), &digest, None);
        let settled = |r: &skep_proto::v1::ProgramReport| {
            r.state() == State::Ready && r.desired_revision == revision && r.running_revision == revision
        };
        node.until(name, settled).await;
    }
    for name in (0..5).map(|i| format!("p{i}")).filter(|name| !wishes.contains_key(name)) {
        node.until_gone(&name).await;
    }
    node.kill();
    compare(&node, &wishes, &digest, &texts, &tag);
    assert!(kills >= 20, "only {kills} kills");
}

/// Whoever tells the agent what it knows already (manifests after its restart, an operator after its own) costs it nothing.
#[tokio::test]
async fn what_is_told_again_is_neither_written_nor_done_again() {
    let mut node = Node::start().await;
    let image = node.push("net", "counter:v1").await;
    node.write("1.yaml", &shared_hooks("first", &image, &node.cgroup(), 1));
    let first = node.until("first", |r| r.state() == State::Ready).await;
    let record = node.state().join("desired").join(format!("{}.json", first.uid));
    let written = || std::fs::metadata(&record).unwrap().modified().unwrap();
    let before = written();
    node.kill();
    // One that is new is done when the manifests have been read.
    node.write("2.yaml", &shared_hooks("second", &image, &node.cgroup(), 2));
    node.start_agent().await;
    node.until("second", |r| r.state() == State::Ready).await;
    assert_eq!(node.until("first", |r| r.state() == State::Ready).await, first);
    assert_eq!(written(), before, "the record was written again");
    // And what is another is.
    node.write("1.yaml", &shared_hooks("first", &image, &node.cgroup(), 3));
    node.until("first", |r| r.running_revision != first.running_revision).await;
    assert_ne!(written(), before);
}
