//! The agent dies after every single call to the kernel that changes something, in the middle of an update, once more
//! while it mends that, and while it starts: files of the desired store and of the image cache, pins, links, maps. Which calls there are is counted while they are made, so a new
//! one is covered. Real binary, real kernel. Needs root, on x86-64.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code, reason = "each test binary uses its part of it")]
mod node;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use node::Node;
use skep_kernel::hook::{Hook, Options, Target};
use skep_kernel::seam::{Kernel, LoadRequest, ProgramAt, Variant};
use skep_kernel::sys::map::Map;
use skep_kernel::{Host, bpffs};
use skep_node_agent::manifests;
use skep_object::Object;
use skep_object::kind::Kind;
use skep_proto::v1::State;

/// How long an update may take that nothing interrupts.
const PATIENCE: Duration = Duration::from_secs(20);

/// Counts the calls of a process, and kills it at one of them.
struct Reaper {
    host: Host,
    root: PathBuf,
    _state: tempfile::TempDir,
}

impl Reaper {
    fn start() -> Self {
        let root = Path::new("/sys/fs/bpf").join(format!("skep-reaper-{}", std::process::id()));
        let state = tempfile::tempdir().unwrap();
        let reaper = Self { host: Host::open(&root, state.path()).unwrap(), root, _state: state };
        let object = Arc::new(Object::parse(node::object("reaper", &[])).unwrap());
        let target = Target::Event("sys_enter".into());
        let hook = Hook { kind: Kind::RawTracepoint, attach_type: 0, target, options: Options::default(), gate: None };
        let variant = Variant { function: "reap".into(), attributes: hook.load_attributes("raw_tp/sys_enter") };
        let program = ProgramAt { load: "l".into(), pin: variant.pin() };
        let (maps, variants) = (object.maps().to_vec(), [variant].into());
        let request = LoadRequest { object, maps, variants, keep: [].into(), share: [].into() };
        reaper.host.load("u", "l", &request).unwrap();
        reaper.host.attach("u", "reap", &hook, &program).unwrap();
        reaper
    }

    fn control(&self) -> Map {
        Map::new(self.host.open_map("u", "l", "control").unwrap()).unwrap()
    }

    /// From now on; `after` 0: it lives.
    fn watch(&self, process: u32, after: u64) {
        let control = self.control();
        for (slot, value) in [(0u32, 0), (1, after), (2, 0), (0, u64::from(process))] {
            control.update(&slot.to_ne_bytes(), &value.to_ne_bytes(), 0).unwrap();
        }
    }

    fn calls(&self) -> u64 {
        let value = self.control().lookup(&2u32.to_ne_bytes()).unwrap().unwrap();
        u64::from_ne_bytes(value.try_into().unwrap())
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        let _ = self.host.remove_program("u");
        let _ = bpffs::remove_tree(&self.root);
    }
}

/// Two manifests that differ in image, globals, map size, and in a hook that the second has not.
fn manifest(images: &[String; 2], cgroup: &str, second: bool) -> String {
    let lo = "interfaces: {names: [lo]}";
    let image = &images[usize::from(second)];
    let (step, entries) = if second { (1, 2048) } else { (1, 1024) };
    let more = if second { String::new() } else { format!("    - tc: {{{lo}, direction: Egress}}\n") };
    format!(
        "apiVersion: skep.dev/v1alpha1\nkind: EbpfProgram\nmetadata: {{name: p, namespace: test}}\nspec:\n  image: {{reference: \"{image}\"}}\n  globals: {{step: {step}}}\n  maps: {{flows: {{maxEntries: {entries}, merge: Sum}}}}\n  programs:\n  - name: count_xdp\n    attach:\n    - xdp: {{{lo}}}\n  - name: count_tc\n    attach:\n    - tcx: {{{lo}, direction: Ingress}}\n{more}  - name: count_cgroup\n    attach:\n    - cgroupSkb: {{cgroups: {{path: {cgroup}}}, direction: Egress}}\n"
    )
}

fn half_done(dir: &Path) -> Vec<PathBuf> {
    let mut found = vec![];
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with('~') || name.ends_with(".tmp") || ["base", "sums"].contains(&name.as_str()) {
            found.push(entry.path());
        }
        found.extend(half_done(&entry.path()));
    }
    found
}

#[tokio::test]
async fn an_agent_that_dies_after_any_call_goes_on_where_it_was() {
    if !cfg!(target_arch = "x86_64") {
        println!("SKIPPED: calls are told by their x86-64 numbers");
        return;
    }
    let reaper = Reaper::start();
    let mut node = Node::start().await;
    let images = [("-O2", "a:v1"), ("-O1", "b:v1")];
    let mut references = vec![];
    for (level, name) in images {
        references.push(node.push_object(&node::object("net", &[level.to_owned()]), name).await);
    }
    let references: [String; 2] = references.try_into().unwrap();
    let texts = [false, true].map(|second| manifest(&references, &node.cgroup(), second));
    node.write("p.yaml", &texts[0]);
    let mut running = node.until("p", |r| r.state() == State::Ready).await.running_revision;
    let (mut second, mut packets, mut deaths, mut again) = (false, 0, 0, 0);
    let mut after = 1;
    loop {
        // What is counted so far may never be lost.
        node.packets(1);
        packets += 1;
        second = !second;
        reaper.watch(node.pid(), after);
        node.write("p.yaml", &texts[usize::from(second)]);
        let died = died_or_settled(&mut node, &running).await;
        let calls = reaper.calls();
        reaper.watch(0, 0);
        if died {
            deaths += 1;
            node.kill();
            // And once more, where it goes on.
            again += usize::from(dies_at_start(&mut node, &reaper, 1 + after % 17, &running).await);
            node.kill();
            node.start_agent().await;
        }
        let ready = |r: &skep_proto::v1::ProgramReport| {
            r.state() == State::Ready && r.running_revision == r.desired_revision && r.running_revision != running
        };
        running = node.until("p", ready).await.running_revision.clone();
        let uid = manifests::uid("test", "p");
        let seen = Host::open(&node.root(), &node.state()).unwrap().observe(&uid).unwrap();
        let links = if second { 3 } else { 4 };
        assert_eq!(seen.loads.len(), 1, "after {after} calls: {seen:?}");
        assert_eq!(seen.links.len(), links, "after {after} calls: {seen:?}");
        let load = seen.loads.values().next().unwrap();
        let own = |id: u32| load.programs.values().any(|program| program.id == id);
        assert!(seen.links.values().all(|link| link.alive && own(link.program_id)), "after {after} calls: {seen:?}");
        assert!(!load.pending && seen.kept.iter().all(|(map, id)| load.maps[map].id == *id), "{after}: {seen:?}");
        let left = [half_done(&node.root()), half_done(&node.state())].concat();
        assert_eq!(left, [] as [PathBuf; 0], "after {after} calls");
        assert_eq!(node.desired_files(), 1);
        assert_eq!(node.hits("p").await, packets, "after {after} calls");
        if !died {
            println!("died after each of {deaths} calls, and {again} times while it went on; an update makes {calls}");
            break;
        }
        after += 1;
    }
    assert!(deaths > 30, "only {deaths} calls change something");
    assert!(again > 15, "only {again} deaths while it went on");

    // While it starts and finds everything as it should be.
    let observe = |node: &Node| {
        let seen = Host::open(&node.root(), &node.state()).unwrap().observe(&manifests::uid("test", "p")).unwrap();
        (seen.loads, seen.links, seen.kept)
    };
    let before = observe(&node);
    let mut after = 1;
    loop {
        node.kill();
        let died = dies_at_start(&mut node, &reaper, after, "").await;
        node.kill();
        node.start_agent().await;
        node.until("p", |r| r.state() == State::Ready).await;
        assert_eq!(observe(&node), before, "after {after} calls");
        assert_eq!(node.desired_files(), 1);
        if !died {
            println!("a start makes {} calls that change something", after - 1);
            break;
        }
        after += 1;
    }
    assert!(after > 1, "a start changes nothing, not even its lock");
}

/// Starts the agent and lets it die at a call; `false` if it lived on until the program runs another revision.
async fn dies_at_start(node: &mut Node, reaper: &Reaper, after: u64, before: &str) -> bool {
    node.spawn_agent_stopped();
    reaper.watch(node.pid(), after);
    node.go_on();
    let died = !node.try_connect().await || died_or_settled(node, before).await;
    reaper.watch(0, 0);
    died
}

/// Whether the agent died before the update was through.
async fn died_or_settled(node: &mut Node, before: &str) -> bool {
    let start = Instant::now();
    loop {
        if node.is_dead() {
            return true;
        }
        let report = node.try_report("p").await;
        let through = report.is_some_and(|r| r.state() == State::Ready && r.running_revision != before);
        if through && !node.is_dead() {
            // What it does last, after its report, may still be to come.
            tokio::time::sleep(Duration::from_millis(300)).await;
            return node.is_dead();
        }
        assert!(start.elapsed() < PATIENCE, "neither dead nor settled: {}", node.log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
