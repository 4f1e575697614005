//! A node that is never left alone: edits, new images, pods and interfaces that come and go, drift, and an agent that is
//! killed, over 100 programs. Twenty seconds, or SKEP_SOAK_MINUTES (`cargo xtask soak`). Real binary, real kernel. Needs root.
//!
//! Killed is the agent in the first half only: in the second one process lives long enough to show what it leaks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code, reason = "each test binary uses its part of it")]
mod node;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use fastrand::Rng;
use node::Node;
use skep_crds::revision_hash;
use skep_kernel::bpffs;
use skep_kernel::sys::{map, program};
use skep_node_agent::manifests::{self, Document};
use skep_proto::v1::{Container, Pod, State};

const PROGRAMS: usize = 100;
const INTERFACES: usize = 10;
const PODS: usize = 4;
/// Parts after each of which everything settles, is compared and measured.
const PARTS: u32 = 10;

/// A pod as kubelet and containerd leave it to be found: a cgroup with a process, which has a network namespace.
struct RunningPod {
    uid: String,
    cgroup: PathBuf,
    process: Child,
}

impl RunningPod {
    fn start(top: &Path, number: u64) -> Self {
        let uid = format!("{number:08x}-0000-4000-8000-000000000000");
        let cgroup = top.join(format!("pod{uid}")).join(format!("{number:064x}"));
        std::fs::create_dir_all(&cgroup).unwrap();
        let procs = cgroup.join("cgroup.procs");
        // It goes there before it becomes the pod's process.
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("echo $$ > {} && exec unshare --net -- sleep 3600", procs.display()));
        let process = shell.spawn().unwrap();
        let start = Instant::now();
        while std::fs::read_to_string(&procs).unwrap().trim().is_empty() {
            assert!(start.elapsed() < Duration::from_secs(5), "the pod does not start");
            std::thread::sleep(Duration::from_millis(2));
        }
        Self { uid, cgroup, process }
    }

    fn record(&self) -> Pod {
        let id = self.cgroup.file_name().unwrap().to_string_lossy().into_owned();
        Pod {
            uid: self.uid.clone(),
            namespace: "test".into(),
            name: format!("pod-{}", &self.uid[..8]),
            labels: [("app".to_owned(), "web".to_owned())].into(),
            containers: vec![Container { name: "app".into(), id }],
            ..Pod::default()
        }
    }
}

impl Drop for RunningPod {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        for _ in 0..100 {
            // Its process may still be leaving.
            if std::fs::remove_dir(&self.cgroup).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = std::fs::remove_dir(self.cgroup.parent().unwrap());
    }
}

/// What is wanted now, beside the manifests.
struct Soak {
    /// Before the node, whose cgroup they are in.
    pods: Vec<RunningPod>,
    node: Node,
    random: Rng,
    tag: String,
    images: [String; 2],
    digests: [String; 2],
    texts: BTreeMap<String, (String, String)>,
    pods_started: u64,
    interfaces: BTreeSet<usize>,
    counts: BTreeMap<&'static str, u32>,
}

impl Soak {
    async fn start(seed: u64) -> Self {
        let node = Node::start().await;
        // Names that no other object of this machine has.
        let tag = format!("{:x}", std::process::id());
        let renamed =
            [("count_xdp", "x"), ("count_tc", "t"), ("count_cgroup", "c"), ("count_netfilter", "n"), ("hits", "h")];
        let flags: Vec<String> = renamed.iter().map(|(name, short)| format!("-D{name}={short}{tag}")).collect();
        let (mut images, mut digests) = (vec![], vec![]);
        for level in ["-O2", "-O1"] {
            let object = node::object("net", &[flags.clone(), vec![level.into()]].concat());
            digests.push(skep_image::build(&object, &BTreeMap::new()).digest().to_string());
            images.push(node.push_object(&object, &format!("soak:{}", &level[1..])).await);
        }
        let mut soak = Self {
            pods: vec![],
            node,
            random: Rng::with_seed(seed),
            tag,
            images: images.try_into().unwrap(),
            digests: digests.try_into().unwrap(),
            texts: BTreeMap::new(),
            pods_started: 0,
            interfaces: BTreeSet::new(),
            counts: BTreeMap::new(),
        };
        (0..INTERFACES).for_each(|i| soak.add_interface(i));
        (0..PODS).for_each(|_| soak.start_pod());
        soak.tell_pods().await;
        (0..PROGRAMS).for_each(|i| soak.edit(i));
        soak
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn add_interface(&mut self, i: usize) {
        self.node.ip(&["link", "add", &format!("v{i}"), "type", "veth", "peer", "name", &format!("w{i}")]);
        self.interfaces.insert(i);
    }

    fn start_pod(&mut self) {
        self.pods_started += 1;
        let number = (u64::from(std::process::id()) << 24) + self.pods_started;
        self.pods.push(RunningPod::start(&self.node.cgroup_dir().join("kubepods"), number));
    }

    async fn tell_pods(&mut self) {
        let pods = self.pods.iter().map(RunningPod::record).collect();
        self.node.tell_pods(pods).await;
    }

    /// A manifest that differs from the one before, or the first.
    fn edit(&mut self, i: usize) {
        let random = &mut self.random;
        let version = random.usize(..2);
        let lo = "interfaces: {names: [lo]}";
        let pods = "pods: {selector: {matchLabels: {app: web}}}";
        let (function, hook) = match (i, i % 6) {
            _ if i < INTERFACES => ("x", format!("xdp: {{interfaces: {{names: [v{i}]}}}}")),
            (_, 0) => ("t", format!("tcx: {{{lo}, direction: {}}}", ["Ingress", "Egress"][random.usize(..2)])),
            (_, 1) => ("t", format!("tc: {{{lo}, direction: Egress, priority: {i}}}")),
            (_, 2) => ("c", format!("cgroupSkb: {{cgroups: {{path: {}}}, direction: Egress}}", self.node.cgroup())),
            (_, 3) => ("c", format!("cgroupSkb: {{cgroups: {{{pods}}}, direction: Ingress}}")),
            (_, 4) => ("t", format!("tcx: {{interfaces: {{names: [lo], {pods}}}, direction: Ingress}}")),
            _ => {
                let at = 1000 + 10 * i + random.usize(..2);
                let place = format!("family: Ipv4, hook: LocalIn, priority: {at}");
                ("n", format!("netfilter: {{networkNamespaces: {{host: true}}, {place}}}"))
            }
        };
        let (step, entries) = (random.u32(1..1000), [256, 1024, 4096][random.usize(..3)]);
        let suspend = random.u8(..8) == 0;
        let (image, tag) = (&self.images[version], &self.tag);
        let text = format!(
            "apiVersion: skep.dev/v1alpha1\nkind: EbpfProgram\nmetadata: {{name: p{i}, namespace: test}}\nspec:\n  image: {{reference: \"{image}\"}}\n  suspend: {suspend}\n  globals: {{step: {step}}}\n  maps: {{flows: {{maxEntries: {entries}}}}}\n  programs:\n  - name: {function}{tag}\n    attach:\n    - {hook}\n"
        );
        self.node.write(&format!("p{i}.yaml"), &text);
        self.texts.insert(format!("p{i}"), (text, self.digests[version].clone()));
        self.count("edits");
    }

    fn remove(&mut self, i: usize) {
        if self.texts.remove(&format!("p{i}")).is_some() {
            self.node.delete(&format!("p{i}.yaml"));
            self.count("removals");
        }
    }

    async fn step(&mut self, kills: bool) {
        let index = self.random.usize(..PROGRAMS);
        match self.random.u8(..40) {
            0..24 => self.edit(index),
            24..28 => self.remove(index),
            28..32 => {
                let gone = self.random.usize(..self.pods.len());
                drop(self.pods.swap_remove(gone));
                self.start_pod();
                self.tell_pods().await;
                self.count("pods");
            }
            32..36 => {
                let i = self.random.usize(..INTERFACES);
                if self.interfaces.remove(&i) {
                    self.node.ip(&["link", "del", &format!("v{i}")]);
                } else {
                    self.add_interface(i);
                }
                self.count("interfaces");
            }
            36..39 => self.drift(),
            _ if kills => self.kill().await,
            _ => {}
        }
        tokio::time::sleep(Duration::from_millis(self.random.u64(..60))).await;
    }

    async fn kill(&mut self) {
        self.node.kill();
        self.node.start_agent().await;
        self.tell_pods().await;
        self.count("kills");
    }

    /// Somebody takes a link's pin away.
    fn drift(&mut self) {
        let index = self.random.usize(..PROGRAMS);
        let uid = manifests::uid("test", &format!("p{index}"));
        let links = self.node.root().join(bpffs::escape(&uid)).join("links");
        if let Some(link) = std::fs::read_dir(links).into_iter().flatten().flatten().next() {
            let _ = std::fs::remove_file(link.path());
            self.count("drift");
        }
    }

    /// Everything that is wanted runs, and nothing else.
    async fn settle(&mut self) {
        for i in 0..INTERFACES {
            if !self.interfaces.contains(&i) {
                self.add_interface(i);
            }
        }
        for (name, (text, digest)) in self.texts.clone() {
            let [Document { program: Ok(program), .. }] = &manifests::parse("x", &text)[..] else { panic!("{text}") };
            let revision = revision_hash(&program.spec, &digest, None);
            let settled = |r: &skep_proto::v1::ProgramReport| {
                r.state() == State::Ready && r.desired_revision == revision && r.running_revision == revision
            };
            self.node.until(&name, settled).await;
        }
        for i in (0..PROGRAMS).filter(|i| !self.texts.contains_key(&format!("p{i}"))) {
            self.node.until_gone(&format!("p{i}")).await;
        }
        // What was Ready when it was asked for may be in another pass by now.
        let wanted: BTreeSet<String> = self.texts.keys().map(|name| manifests::uid("test", name)).collect();
        let start = Instant::now();
        loop {
            let pinned: BTreeSet<String> = bpffs::list(&self.node.root()).unwrap().into_iter().collect();
            if pinned == wanted && self.node.desired_files() == wanted.len() {
                return;
            }
            assert!(
                start.elapsed() < Duration::from_secs(15),
                "not pinned: {:?}; pinned: {:?}; {} records of {}\n{}",
                wanted.difference(&pinned).collect::<Vec<_>>(),
                pinned.difference(&wanted).collect::<Vec<_>>(),
                self.node.desired_files(),
                wanted.len(),
                self.node.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Programs and maps that the kernel has of ours.
    fn in_kernel(&self) -> (usize, usize) {
        let functions = ["x", "t", "c", "n"].map(|short| format!("{short}{}", self.tag));
        let hits = format!("h{}", self.tag);
        let named = |id: &u32| {
            let info = program::by_id(*id).and_then(|fd| program::info(std::os::fd::AsFd::as_fd(&fd)));
            info.is_ok_and(|info| functions.contains(&info.name))
        };
        let is_hits = |id: &u32| {
            let info = map::by_id(*id).and_then(|fd| map::info(std::os::fd::AsFd::as_fd(&fd)));
            info.is_ok_and(|info| info.name == hits)
        };
        let programs = program::all_ids().unwrap().into_iter().filter(named).count();
        (programs, map::all_ids().unwrap().into_iter().filter(is_hits).count())
    }
}

/// Resident memory in KiB, and descriptors, of the agent.
fn weigh(pid: u32) -> (u64, usize) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let rss = rss.trim().trim_end_matches(" kB").parse().unwrap();
    (rss, std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count())
}

#[tokio::test]
async fn a_node_that_is_never_left_alone_stays_right_and_does_not_grow() {
    let seed = std::env::var("SKEP_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    let minutes = std::env::var("SKEP_SOAK_MINUTES").map_or(1.0 / 3.0, |minutes| minutes.parse::<f64>().unwrap());
    println!("SKEP_SEED={seed}, {minutes} minutes");
    let mut soak = Soak::start(seed).await;
    soak.settle().await;
    let mut weights = vec![];
    for part in 0..PARTS {
        if part < PARTS / 2 {
            soak.kill().await;
        }
        let start = Instant::now();
        while start.elapsed().as_secs_f64() < minutes * 60.0 / f64::from(PARTS) {
            soak.step(part < PARTS / 2).await;
        }
        soak.settle().await;
        // What was just freed is given back a moment later.
        tokio::time::sleep(Duration::from_millis(500)).await;
        weights.push(weigh(soak.node.pid()));
        println!("part {part}: {:?}, KiB and descriptors {:?}", soak.counts, weights.last().unwrap());
    }
    let (first, last) = (weights[0], weights[weights.len() - 1]);
    assert!(last.1 as f64 <= first.1 as f64 * 1.1, "descriptors grew: {weights:?}");
    // In less than that a tenth is too short for an agent to have warmed up.
    if minutes >= 10.0 {
        assert!(last.0 as f64 <= first.0 as f64 * 1.1, "memory grew: {weights:?}");
    }

    (0..PROGRAMS).for_each(|i| soak.remove(i));
    soak.settle().await;
    assert_eq!((soak.node.programs_in_bpffs(), soak.node.desired_files(), soak.node.filters()), (0, 0, 0));
    let start = Instant::now();
    while soak.in_kernel() != (0, 0) {
        assert!(start.elapsed() < Duration::from_secs(15), "programs and maps are left: {:?}", soak.in_kernel());
        std::thread::sleep(Duration::from_millis(50));
    }
    for what in ["edits", "removals", "pods", "interfaces", "drift", "kills"] {
        assert!(soak.counts.get(what).is_some_and(|count| *count > 0), "no {what}: {:?}", soak.counts);
    }
}
