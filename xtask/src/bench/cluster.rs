//! On the test cluster, when Skep is installed there: from an object in the API server to Ready.
//!
//! One `kubectl get --watch` sees both ends: the object's first line and its Ready line come the same way, so neither
//! kubectl's start nor the watch's delay is in the time between them.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::figure::{Aim, Figure, skipped};
use super::{compile, example, median, memory_mib, percentile};
use crate::image::{Connection, Image};
use crate::install::{self, NAMESPACE, Place};
use crate::step;

pub const NAMES: &[&str] = &[
    "apply_to_ready_ms_p50",
    "apply_to_ready_ms_p99",
    "operator_rss_idle_mib",
    "dump_1m_hash_portforward_ms",
    "lookup_p50_us_portforward",
];
/// Entries of the map that is dumped through the API server, how often, and how often one is looked up.
const ENTRIES: u64 = 1_000_000;
const DUMPS: usize = 3;
const LOOKUPS: usize = 20;
const PROGRAMS: usize = 50;
const SAMPLES: usize = 5;
const PATIENCE: Duration = Duration::from_secs(30);
const COLUMNS: &str = "custom-columns=NAME:.metadata.name,READY:.status.conditions[?(@.type=='Ready')].status";

pub fn measure() -> Result<Vec<Figure>> {
    if let Some(reason) = obstacle() {
        return Ok(skipped(NAMES, &reason));
    }
    let place = Place::test_cluster();
    // Before the programs: idle.
    let operator = operator_rss()?;
    let mut bench = Bench::start(&place)?;
    let reference = bench.push()?;
    // Pulls the image: what is measured is Skep and the kernel, not the registry.
    let first = bench.interface(PROGRAMS)?;
    bench.apply("first", &first, &reference)?;
    let mut times = Vec::new();
    for i in 0..PROGRAMS {
        let interface = bench.interface(i)?;
        times.push(bench.apply(&format!("p{i}"), &interface, &reference)?.as_secs_f64() * 1e3);
    }
    let forwarded = forwarded(&mut bench)?;
    let note = format!(
        "{PROGRAMS} in turn, one node, xdp on a veth each, image cached; first line to Ready line of one watch"
    );
    let mut figures = vec![
        Figure::new(NAMES[0], percentile(&times, 50), "ms", Aim::AtMost(300.0), note),
        Figure::new(
            NAMES[1],
            percentile(&times, 99),
            "ms",
            Aim::AtMost(1000.0),
            format!("of {} the slowest", times.len()),
        ),
        Figure::new(NAMES[2], operator, "MiB", Aim::AtMost(35.0), "VmRSS of the process, before the programs above"),
    ];
    figures.extend(forwarded);
    Ok(figures)
}

/// What people feel: whole commands, from the token on, through the API server's port-forward and TLS.
fn forwarded(bench: &mut Bench<'_>) -> Result<Vec<Figure>> {
    let reference = bench.push_object("xtask/src/bench/flows.bpf.c", "bench-flows:v1")?;
    let interface = bench.interface(PROGRAMS + 1)?;
    bench.apply_function("flows", "count_all", &interface, &reference)?;
    // The test cluster's node is this host. Fills the map.
    let mut fill = example("bench_dump");
    fill.args([AGENT, &bench.name, "flows", "flows", &ENTRIES.to_string()]);
    let filled: serde_json::Value = serde_json::from_str(&step::ask(&mut fill)?)?;
    let file = bench.dir.path().join("dump");
    let (namespace, place) = (bench.name.clone(), bench.place);
    let timed = |args: &[&str]| -> Result<f64> {
        let mut plugin = place.kubectl_skep(args);
        plugin.args(["-n", &namespace]).stdin(Stdio::null());
        let start = Instant::now();
        let status = plugin.stdout(std::fs::File::create(&file)?).status()?;
        if status.success() { Ok(start.elapsed().as_secs_f64()) } else { bail!("{args:?} ended with {status}") }
    };
    let each = |times: usize, args: &[&str]| (0..times).map(|_| timed(args)).collect::<Result<Vec<f64>>>();
    let dumps = each(DUMPS, &["maps", "dump", "flows", "flows", "-o", "jsonl"])?;
    let lookups = each(LOOKUPS, &["maps", "get", "flows", "flows", "7"])?;
    let note = format!(
        "median of {DUMPS}; kubectl skep maps dump -o jsonl into a file; packed over the node's socket {} ms",
        filled["ms"]
    );
    Ok(vec![
        Figure::new(NAMES[3], median(&dumps) * 1e3, "ms", Aim::None, note),
        Figure::new(
            NAMES[4],
            percentile(&lookups, 50) * 1e6,
            "us",
            Aim::None,
            format!("of {LOOKUPS} kubectl skep maps get: kubeconfig, token, port-forward, TLS and the lookup"),
        ),
    ])
}

/// As the chart has it.
const AGENT: &str = "/run/skep/agent.sock";

fn obstacle() -> Option<String> {
    if !install::is_up() {
        return Some("no cluster runs here: start one with `cargo xtask cluster up`".into());
    }
    let wait = ["wait", "--for=condition=Available", "deployment/skep-operator", "-n", NAMESPACE, "--timeout=1s"];
    let available = step::ask(&mut Place::test_cluster().kubectl(&wait));
    available.err().map(|_| "Skep is not installed on the cluster: run `cargo xtask demo`".into())
}

/// A namespace for the programs, interfaces for them to attach to, and the watch.
struct Bench<'a> {
    place: &'a Place,
    name: String,
    /// One end of each pair of veths: both go with it.
    interfaces: Vec<String>,
    dir: tempfile::TempDir,
    watch: Option<Child>,
    lines: Receiver<(Instant, String)>,
}

impl<'a> Bench<'a> {
    fn start(place: &'a Place) -> Result<Self> {
        let name = format!("skep-bench-{}", std::process::id());
        let (sender, lines) = channel();
        let dir = tempfile::tempdir()?;
        let mut bench = Self { place, name, interfaces: Vec::new(), dir, watch: None, lines };
        step::ask(&mut place.kubectl(&["create", "namespace", &bench.name]))?;
        let mut watch = place.kubectl(&["get", "ebpf", "-n", &bench.name, "--watch", "--no-headers", "-o", COLUMNS]);
        let mut child = watch.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let output = child.stdout.take().context("kubectl has no output")?;
        bench.watch = Some(child);
        // Ends with the pipe, and that with the child.
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(std::io::Result::ok) {
                if sender.send((Instant::now(), line)).is_err() {
                    break;
                }
            }
        });
        Ok(bench)
    }

    fn push(&self) -> Result<String> {
        self.push_object("kernel/tests/c/net.bpf.c", "bench-net:v1")
    }

    fn push_object(&self, source: &str, name: &str) -> Result<String> {
        let object = self.dir.path().join("object.o");
        compile(source, &object)?;
        let reference = format!("{}/{name}", self.place.registry);
        let connection = Connection { ca: self.place.ca.clone(), plain_http: false };
        Image::Bytecode { object, reference: reference.clone(), connection }.run()?;
        Ok(reference)
    }

    /// One more pair of veths in the node's network namespace; nothing is sent over it. xdp takes one program each.
    fn interface(&mut self, i: usize) -> Result<String> {
        let (name, peer) = (format!("skb{i}"), format!("skbp{i}"));
        step::ask(Command::new("ip").args(["link", "add", &name, "type", "veth", "peer", "name", &peer]))?;
        self.interfaces.push(name.clone());
        Ok(name)
    }

    /// Applies a program; from its first line in the watch to the one that says Ready.
    fn apply(&self, program: &str, interface: &str, reference: &str) -> Result<Duration> {
        self.apply_function(program, "count_xdp", interface, reference)
    }

    fn apply_function(&self, program: &str, function: &str, interface: &str, reference: &str) -> Result<Duration> {
        let namespace = &self.name;
        self.place.apply(&format!(
            "{{apiVersion: skep.dev/v1alpha1, kind: EbpfProgram, metadata: {{name: {program}, namespace: {namespace}}}, spec: {{image: {{reference: '{reference}'}}, \
             programs: [{{name: {function}, attach: [{{xdp: {{interfaces: {{names: [{interface}]}}}}}}]}}]}}}}"
        ))?;
        let mut first: HashMap<String, Instant> = HashMap::new();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok((at, line)) = self.lines.recv_timeout(left) else {
                bail!("{program} is not Ready within {PATIENCE:?}: kubectl describe ebpf -n {namespace}")
            };
            let mut words = line.split_whitespace();
            let (Some(name), ready) = (words.next(), words.next()) else { continue };
            let start = *first.entry(name.to_owned()).or_insert(at);
            if name == program && ready == Some("True") {
                return Ok(at - start);
            }
        }
    }
}

impl Drop for Bench<'_> {
    fn drop(&mut self) {
        if let Some(watch) = &mut self.watch {
            let _ended = watch.kill();
            let _reaped = watch.wait();
        }
        let namespace = ["delete", "namespace", &self.name, "--timeout=120s"];
        let _deleted = step::ask(&mut self.place.kubectl(&namespace));
        for interface in &self.interfaces {
            let _removed = step::ask(Command::new("ip").args(["link", "del", interface]));
        }
    }
}

/// The test cluster's node is this host: the operator is one of its processes.
fn operator_rss() -> Result<f64> {
    let pids = step::ask(Command::new("pgrep").args(["--exact", "skep-operator"]))?;
    let pid: u32 = pids.lines().next().context("no skep-operator runs on this host")?.parse()?;
    let mut sizes = Vec::new();
    for _ in 0..SAMPLES {
        sizes.push(memory_mib(pid, "VmRSS")?);
        std::thread::sleep(Duration::from_secs(1));
    }
    Ok(median(&sizes))
}
