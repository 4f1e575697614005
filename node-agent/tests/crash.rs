//! Death at any point: a process with the real kernel behind it is ended before and after every call that changes
//! something, and another one goes on. The points are counted by the wrapper around [`Kernel`], so that a new call has
//! its points as soon as it exists. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use skep_crds::{API_VERSION, EbpfProgramSpec, load_hash, revision_hash};
use skep_image::{Auth, Cache, Registry, RegistryConfig};
use skep_kernel::hook::Hook;
use skep_kernel::seam::{Kernel, LoadOutcome, LoadRequest, Observed, ProgramAt, Remain, Settled, Standing};
use skep_kernel::{Host, KernelError, bpffs, netns};
use skep_node_agent::actor::Shared;
use skep_node_agent::checks::Checks;
use skep_node_agent::desired::{DesiredProgram, Store};
use skep_node_agent::discover;
use skep_node_agent::images::Images;
use skep_node_agent::reports::Reports;
use skep_node_agent::supervisor::Supervisor;
use skep_node_agent::watches::Watches;
use skep_proto::v1::State;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

const UID: &str = "0c1a-crash";
/// Set for a process that is to die: what it is to do, as JSON.
const JOB: &str = "SKEP_CRASH_JOB";
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Place {
    root: PathBuf,
    state: PathBuf,
    netns: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
struct Job {
    place: Place,
    /// `None`: nothing is to be left.
    spec: Option<Value>,
    digest: String,
    /// The point at which the process ends.
    last: u32,
}

/// Counts the points before and after every call that changes something, and ends the process at one of them.
struct Mortal {
    host: Host,
    points: AtomicU32,
    last: u32,
}

impl Mortal {
    fn point(&self) {
        if self.points.fetch_add(1, Ordering::SeqCst) == self.last {
            std::process::abort();
        }
    }

    fn between<T>(&self, call: impl FnOnce(&Host) -> T) -> T {
        self.point();
        let result = call(&self.host);
        self.point();
        result
    }
}

impl Kernel for Mortal {
    fn programs(&self) -> Result<Vec<String>, KernelError> {
        self.host.programs()
    }
    fn observe(&self, uid: &str) -> Result<Observed, KernelError> {
        self.host.observe(uid)
    }
    fn load(&self, uid: &str, load: &str, request: &LoadRequest) -> Result<LoadOutcome, KernelError> {
        self.between(|host| host.load(uid, load, request))
    }
    fn set_gate(&self, uid: &str, load: &str, gate: &str, cgroups: &[u64]) -> Result<(), KernelError> {
        self.between(|host| host.set_gate(uid, load, gate, cgroups))
    }
    fn attach(&self, uid: &str, link: &str, hook: &Hook, program: &ProgramAt) -> Result<(), KernelError> {
        self.between(|host| host.attach(uid, link, hook, program))
    }
    fn replace(
        &self,
        uid: &str,
        link: &str,
        hook: &Hook,
        old: u32,
        program: &ProgramAt,
    ) -> Result<Option<Duration>, KernelError> {
        self.between(|host| host.replace(uid, link, hook, old, program))
    }
    fn has_changed(&self, uid: &str, seen: &Observed) -> Result<bool, KernelError> {
        self.host.has_changed(uid, seen)
    }
    fn programs_with(&self, uid: &str, function: &str) -> Result<Vec<u32>, KernelError> {
        self.host.programs_with(uid, function)
    }
    fn standing(&self, hook: &Hook, link_id: u32) -> Result<Standing, KernelError> {
        self.between(|host| host.standing(hook, link_id))
    }
    fn detach(&self, uid: &str, link: &str) -> Result<(), KernelError> {
        self.between(|host| host.detach(uid, link))
    }
    fn settle(&self, uid: &str, load: &str, keep: &BTreeSet<String>) -> Result<BTreeMap<String, Settled>, KernelError> {
        self.between(|host| host.settle(uid, load, keep))
    }
    fn remove_load(&self, uid: &str, load: &str) -> Result<(), KernelError> {
        self.between(|host| host.remove_load(uid, load))
    }
    fn unload(&self, uid: &str, program: &ProgramAt) -> Result<(), KernelError> {
        self.between(|host| host.unload(uid, program))
    }
    fn discard(&self, uid: &str, staged: &str) -> Result<(), KernelError> {
        self.between(|host| host.discard(uid, staged))
    }
    fn remains(&self, before: &Observed) -> Vec<Remain> {
        self.host.remains(before)
    }
    fn remove_program(&self, uid: &str) -> Result<(), KernelError> {
        self.between(|host| host.remove_program(uid))
    }
}

fn desired(spec: &Value, digest: &str) -> DesiredProgram {
    let typed: EbpfProgramSpec = serde_json::from_value(spec.clone()).unwrap();
    DesiredProgram {
        uid: UID.into(),
        namespace: "test".into(),
        name: "crash".into(),
        generation: 1,
        revision: revision_hash(&typed, digest, None),
        load: load_hash(&typed, digest, None),
        digest: digest.into(),
        api_version: API_VERSION.into(),
        spec: spec.clone(),
        ..DesiredProgram::default()
    }
}

/// What the agent does with an order, until it has come about; how many points there were.
fn bring_about(job: &Job) -> u32 {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let place = &job.place;
    let host = Host::open(&place.root, &place.state).unwrap();
    let mortal = Arc::new(Mortal { host, points: AtomicU32::new(0), last: job.last });
    let cache = Cache::open(&place.state.join("images")).unwrap();
    let view = Arc::new(discover::view(&place.netns, Some(&BTreeMap::new())));
    let (_kept, view) = watch::channel(view);
    let (_resyncing, resyncs) = watch::channel(0);
    let places = Arc::new(Semaphore::new(4));
    let shared = Arc::new(Shared {
        features: skep_node_agent::features::Features::default(),
        kernel: mortal.clone(),
        images: Images::new(Registry::new(&RegistryConfig::default()).unwrap(), cache, u64::MAX, places.clone()),
        reports: Reports::new("test".into()),
        neighbours: Default::default(),
        store: Store::open(&place.state).unwrap(),
        view,
        places,
        watches: Watches::default(),
        checks: Checks::default(),
        resyncs,
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        // Whatever the one before it had written down is taken up at once, as at every start.
        let (supervisor, handle) = Supervisor::new(shared.clone()).unwrap();
        let cancel = CancellationToken::new();
        let task = tokio::spawn(supervisor.run(cancel.clone()));
        match &job.spec {
            Some(spec) => handle.apply(desired(spec, &job.digest), Auth::Anonymous).await.unwrap(),
            None => drop(handle.remove(UID.into()).await.unwrap()),
        }
        let start = Instant::now();
        while !has_come_about(&shared, job) {
            assert!(start.elapsed() < PATIENCE, "{:?}", shared.reports.all());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        cancel.cancel();
        task.await.unwrap();
    });
    mortal.points.load(Ordering::SeqCst)
}

fn has_come_about(shared: &Shared, job: &Job) -> bool {
    let report = shared.reports.all().into_iter().find(|report| report.uid == UID);
    match (&job.spec, report) {
        (None, report) => report.is_none() && shared.kernel.programs().unwrap().is_empty(),
        (Some(spec), Some(report)) => {
            let revision = desired(spec, &job.digest).revision;
            report.state() == State::Ready && report.desired_revision == revision
        }
        (Some(_), None) => false,
    }
}

struct World {
    place: Place,
    digest: String,
    netns: String,
    _state: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let netns = format!("skep-crash-{}", std::process::id());
        let state = tempfile::tempdir().unwrap();
        run("ip", &["netns", "add", &netns]);
        run("ip", &["-n", &netns, "link", "set", "lo", "up"]);
        let place = Place {
            root: Path::new("/sys/fs/bpf").join(&netns),
            state: state.path().to_owned(),
            netns: Path::new("/run/netns").join(&netns),
        };
        let image = skep_image::build(&compiled(), &BTreeMap::new());
        let digest = image.digest();
        let bytecode =
            skep_image::Bytecode { digest: digest.clone(), object: compiled(), format: skep_image::Format::Skep };
        Cache::open(&state.path().join("images")).unwrap().put(&bytecode).unwrap();
        World { place, digest: digest.to_string(), netns, _state: state }
    }

    fn job(&self, spec: Option<&Value>, last: u32) -> Job {
        Job { place: self.place.clone(), spec: spec.cloned(), digest: self.digest.clone(), last }
    }

    fn bring_about(&self, spec: Option<&Value>) -> u32 {
        bring_about(&self.job(spec, u32::MAX))
    }

    /// In a process of its own, which dies at a point, if it comes so far; whether it died.
    fn die(&self, test: &str, spec: Option<&Value>, last: u32) -> bool {
        let job = serde_json::to_string(&self.job(spec, last)).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap());
        let output = child.args(["--exact", test, "--nocapture"]).env(JOB, job).output().unwrap();
        let died = output.status.signal() == Some(libc::SIGABRT);
        assert!(died || output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        died
    }

    fn observe(&self) -> Observed {
        let seen = Host::open(&self.place.root, &self.place.state).unwrap().observe(UID).unwrap();
        // When directories changed is nobody's wish.
        Observed { directories: BTreeMap::new(), ..seen }
    }

    /// Nothing but what a spec wants.
    fn check(&self, spec: Option<&Value>, at: &str) {
        let seen = self.observe();
        let Some(spec) = spec else {
            assert_eq!(seen, Observed::default(), "{at}");
            return;
        };
        let desired = desired(spec, &self.digest);
        assert_eq!(seen.loads.keys().collect::<Vec<_>>(), [&desired.load], "{at}");
        let load = &seen.loads[&desired.load];
        assert!(seen.staged.is_empty() && !load.pending, "{at}: {seen:?}");
        let ids: BTreeSet<u32> = load.programs.values().map(|program| program.id).collect();
        let suspended = spec["suspend"] == true;
        let hooks = spec["programs"].as_array().unwrap().len();
        assert_eq!(seen.links.len(), if suspended { 0 } else { hooks }, "{at}: {seen:?}");
        assert!(seen.links.values().all(|link| link.alive && ids.contains(&link.program_id)), "{at}: {seen:?}");
        assert!(seen.kept.iter().all(|(map, id)| load.maps[map].id == *id), "{at}: {seen:?}");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = bpffs::remove_tree(&self.place.root);
        let _ = Command::new("ip").args(["netns", "del", &self.netns]).status();
    }
}

fn run(program: &str, args: &[&str]) {
    assert!(Command::new(program).args(args).status().unwrap().success(), "{program} {args:?}");
}

fn compiled() -> Vec<u8> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernel/tests/c/net.bpf.c");
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("net.o");
    let flags = ["-g", "-O2", "-target", "bpf", "-I/usr/include/x86_64-linux-gnu", "-c"];
    let status = Command::new("clang").args(flags).arg(source).arg("-o").arg(&out).status().unwrap();
    assert!(status.success());
    std::fs::read(out).unwrap()
}

fn spec(step: u32, direction: &str, more: Value) -> Value {
    let mut spec = json!({
        "image": {"reference": "registry.example.com/net:v1"},
        "globals": {"step": step},
        "programs": [
            {"name": "count_xdp", "attach": [{"xdp": {"interfaces": {"names": ["lo"]}}}]},
            {"name": "count_tc", "attach": [{"tcx": {"interfaces": {"names": ["lo"]}, "direction": direction}}]},
        ],
    });
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    spec
}

/// Packets that the XDP program counted, from the map that survives loads.
fn counted(world: &World) -> u64 {
    let path = world.place.root.join(UID).join("maps").join("flows");
    let Ok(pin) = skep_kernel::sys::open_pin(&path) else { return 0 };
    let map = skep_kernel::sys::map::Map::new(pin).unwrap();
    let mut total = 0;
    let mut key = map.next_key(None).unwrap();
    while let Some(current) = key {
        let value = map.lookup(&current).unwrap().unwrap_or_default();
        total += u64::from_ne_bytes(value[..8].try_into().unwrap());
        key = map.next_key(Some(&current)).unwrap();
    }
    total
}

fn packet(world: &World) {
    netns::within(Some(&world.place.netns), || {
        let (ear, mouth) = (std::net::UdpSocket::bind("127.0.0.1:0")?, std::net::UdpSocket::bind("127.0.0.1:0")?);
        mouth.send_to(b"hello", ear.local_addr()?).map(drop)
    })
    .unwrap();
}

#[test]
fn every_call_can_be_the_last() {
    if let Ok(job) = std::env::var(JOB) {
        bring_about(&serde_json::from_str(&job).unwrap());
        return;
    }
    let world = World::new();
    let first = spec(1, "Ingress", json!({}));
    // Another load, another size of a kept map, another hook.
    let second = spec(2, "Egress", json!({"maps": {"flows": {"maxEntries": 4096, "merge": "Sum"}}}));
    let suspended = spec(1, "Ingress", json!({"suspend": true}));
    let ways = [
        ("install", None, Some(&first)),
        ("update", Some(&first), Some(&second)),
        ("another size back", Some(&second), Some(&first)),
        ("suspend", Some(&first), Some(&suspended)),
        ("resume", Some(&suspended), Some(&first)),
        ("remove", Some(&first), None),
    ];
    let mut deaths = 0;
    for (name, from, to) in ways {
        for last in 0.. {
            world.bring_about(None);
            world.bring_about(from);
            let (link, mut sent) = (xdp_link(&world), 0);
            let before = counted(&world);
            let stays = link.is_some() && to.is_some_and(|spec| spec["suspend"] != true);
            let send = |sent: &mut u64| {
                packet(&world);
                *sent += 1;
            };
            send(&mut sent);
            let died = world.die("every_call_can_be_the_last", to, last);
            let at = format!("{name}, dead at point {last}");
            if stays {
                assert_eq!(xdp_link(&world), link, "{at}: the link stays, whoever died");
            }
            // With nobody there.
            send(&mut sent);
            world.bring_about(to);
            send(&mut sent);
            world.check(to, &at);
            if stays {
                assert_eq!(xdp_link(&world), link, "{at}: the link stays");
                assert_eq!(counted(&world) - before, sent, "{at}: packets that were counted of {sent}");
            }
            if !died {
                println!("{name}: {last} points");
                break;
            }
            deaths += 1;
        }
    }
    println!("{deaths} deaths");
    assert!(deaths >= 40);
}

fn xdp_link(world: &World) -> Option<u32> {
    let seen = world.observe();
    let of_xdp = |id: u32| {
        let pins = seen.loads.values().flat_map(|load| &load.programs);
        pins.into_iter().any(|(pin, program)| pin.starts_with("count_xdp") && program.id == id)
    };
    seen.links.values().find(|link| link.alive && of_xdp(link.program_id)).map(|link| link.id)
}
