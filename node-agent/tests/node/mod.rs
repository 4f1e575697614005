//! A node of the test's own: a network namespace, a cgroup, an agent, a registry, all gone when it ends, even by panic.

mod another;
mod limits;

use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use skep_image::{Auth, Registry, RegistryConfig};
use skep_kernel::{bpffs, netns};
use skep_proto::v1::agent_client::AgentClient;
use skep_proto::v1::inspector_client::InspectorClient;
use skep_proto::v1::{
    ListProgramsRequest, LookupMapRequest, Pod, ProgramRef, ProgramReport, UpdatePodsRequest, lookup_map_request::Key,
};
use tonic::transport::Channel;

static NEXT: AtomicU32 = AtomicU32::new(0);

pub struct Node {
    dir: tempfile::TempDir,
    name: String,
    agent: Option<Child>,
    registry: Option<Child>,
    port: u16,
    client: Option<InspectorClient<Channel>>,
}

impl Node {
    pub async fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let name = format!("skep-node-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("manifests")).unwrap();
        run("ip", &["netns", "add", &name]);
        let mut node = Node { dir, name, agent: None, registry: None, port: free_port(), client: None };
        node.ip(&["link", "set", "lo", "up"]);
        node.make_cgroup();
        node.start_registry();
        node.start_agent().await;
        node
    }

    pub fn ip(&self, args: &[&str]) {
        let mut all = vec!["-n", self.name.as_str()];
        all.extend(args);
        run("ip", &all);
    }

    /// Several commands in one process.
    pub fn ip_batch(&self, commands: &str) {
        let file = self.dir.path().join("batch");
        std::fs::write(&file, commands).unwrap();
        self.ip(&["-batch", &file.to_string_lossy()]);
    }

    pub fn tc(&self, args: &[&str]) {
        let mut all = vec!["-n", self.name.as_str()];
        all.extend(args);
        run("tc", &all);
    }

    /// How many bpf filters lo has.
    pub fn filters(&self) -> usize {
        let shown = ["ingress", "egress"].map(|way| {
            let args = ["-n", self.name.as_str(), "filter", "show", "dev", "lo", way];
            let output = Command::new("tc").args(args).output().unwrap();
            String::from_utf8_lossy(&output.stdout).matches("direct-action").count()
        });
        shown.iter().sum()
    }

    pub fn hang_up(&self) {
        run("kill", &["-HUP", &self.pid().to_string()]);
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn pid(&self) -> u32 {
        self.agent.as_ref().unwrap().id()
    }

    /// A cgroup of the node's own, as a manifest names it.
    pub fn cgroup(&self) -> String {
        format!("/{}", self.name)
    }

    pub fn cgroup_dir(&self) -> PathBuf {
        skep_kernel::probe::cgroup2_mount().unwrap().join(&self.name)
    }

    pub fn make_cgroup(&self) {
        std::fs::create_dir(self.cgroup_dir()).unwrap();
    }

    pub fn remove_cgroup(&self) {
        std::fs::remove_dir(self.cgroup_dir()).unwrap();
    }

    /// What a reboot leaves of a node: its disk. Everything of the kernel is gone or new, and nothing is up yet.
    pub fn reboot(&mut self) {
        self.kill();
        self.stop_registry();
        bpffs::remove_tree(&self.root()).unwrap();
        self.remove_cgroup();
        self.make_cgroup();
        run("ip", &["netns", "del", &self.name]);
        run("ip", &["netns", "add", &self.name]);
    }

    /// Nobody can read the manifests any more, or again.
    pub fn hide_manifests(&self, hide: bool) {
        let (shown, hidden) = (self.dir.path().join("manifests"), self.dir.path().join("hidden"));
        let (from, to) = if hide { (shown, hidden) } else { (hidden, shown) };
        std::fs::rename(from, to).unwrap();
    }

    /// An empty directory where manifests are looked for.
    pub fn make_manifests(&self) {
        std::fs::create_dir(self.dir.path().join("manifests")).unwrap();
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    pub async fn until_logged(&self, text: &str) {
        let start = Instant::now();
        while !self.log().contains(text) {
            assert!(start.elapsed() < Duration::from_secs(20), "{text} is not said: {}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn start_registry(&mut self) {
        let config = self.dir.path().join("registry.yml");
        let storage = self.dir.path().join("registry");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:{}'}}\n",
            storage.display(),
            self.port
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.registry = Some(child.expect("docker-registry is installed by `cargo xtask setup`"));
        let start = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(start.elapsed() < Duration::from_secs(20), "the registry does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn stop_registry(&mut self) {
        end(&mut self.registry);
    }

    pub fn registry(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Pushes the object made from `kernel/tests/c/<source>.bpf.c`; its reference.
    pub async fn push(&self, source: &str, name: &str) -> String {
        self.push_object(&object(source, &[]), name).await
    }

    pub async fn push_object(&self, object: &[u8], name: &str) -> String {
        let config = RegistryConfig { plain_http: vec![self.registry()], ..RegistryConfig::default() };
        let image = skep_image::build(object, &Default::default());
        let reference = format!("{}/{name}", self.registry());
        Registry::new(&config).unwrap().push(&reference, &image, &Auth::Anonymous).await.unwrap();
        reference
    }

    pub fn netns(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    pub fn interface_index(&self, name: &str) -> u32 {
        let view = netns::view(&self.netns()).unwrap();
        view.interfaces.iter().find(|interface| interface.name == name).unwrap().index
    }

    pub fn root(&self) -> PathBuf {
        Path::new("/sys/fs/bpf").join(&self.name)
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub async fn start_agent(&mut self) {
        self.spawn_agent();
        self.connect().await;
    }

    /// Started, and perhaps not there yet.
    pub fn spawn_agent(&mut self) {
        self.spawn(&mut Command::new(agent()));
    }

    /// As `spawn_agent`, but it does nothing before it is told to.
    pub fn spawn_agent_stopped(&mut self) {
        let script = "kill -STOP $$; exec \"$0\" \"$@\"";
        self.spawn(Command::new("sh").args(["-c", script]).arg(agent()));
        let (status, start) = (format!("/proc/{}/status", self.pid()), Instant::now());
        while !std::fs::read_to_string(&status).unwrap().contains("State:\tT") {
            assert!(start.elapsed() < Duration::from_secs(5), "the shell does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn go_on(&self) {
        run("kill", &["-CONT", &self.pid().to_string()]);
    }

    fn spawn(&mut self, command: &mut Command) {
        let path = |name: &str| self.dir.path().join(name);
        let log = std::fs::File::options().create(true).append(true).open(path("agent.log")).unwrap();
        let child = command
            .arg("run")
            .args([Path::new("--manifests"), &path("manifests")])
            .args([Path::new("--state-dir"), &path("state")])
            .args([Path::new("--bpffs"), &self.root()])
            .args([Path::new("--socket"), &path("agent.sock")])
            .args([Path::new("--host-netns"), &Path::new("/run/netns").join(&self.name)])
            .args(["--plain-http-registry", &self.registry()])
            .stderr(log)
            .spawn()
            .unwrap();
        self.agent = Some(child);
    }

    /// Connects; `false` if it died before that.
    pub async fn try_connect(&mut self) -> bool {
        let socket = self.dir.path().join("agent.sock");
        loop {
            if self.is_dead() {
                return false;
            }
            // What an earlier one left refuses.
            if let Ok(channel) = skep_proto::client::unix(&socket).await {
                self.client = Some(InspectorClient::new(channel));
                return true;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn connect(&mut self) {
        let (socket, start) = (self.dir.path().join("agent.sock"), Instant::now());
        loop {
            if let Ok(channel) = skep_proto::client::unix(&socket).await {
                self.client = Some(InspectorClient::new(channel));
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "the agent does not start: {}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The agent's Inspector.
    pub fn inspector(&self) -> InspectorClient<Channel> {
        self.client.clone().unwrap()
    }

    /// The agent's Inspector, by a connection of its own.
    pub async fn another_inspector(&self) -> InspectorClient<Channel> {
        InspectorClient::new(skep_proto::client::unix(&self.socket()).await.unwrap())
    }

    /// All pods of the node, as the operator tells of them.
    pub async fn tell_pods(&self, pods: Vec<Pod>) {
        let channel = skep_proto::client::unix(&self.dir.path().join("agent.sock")).await.unwrap();
        let request = UpdatePodsRequest { epoch: 1, snapshot: true, pods, gone: vec![] };
        AgentClient::new(channel).update_pods(request).await.unwrap();
    }

    pub fn kill(&mut self) {
        end(&mut self.agent);
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("agent.log")).unwrap_or_default()
    }

    pub fn write(&self, file: &str, text: &str) {
        // As an editor does it: aside, then renamed.
        let staged = self.dir.path().join("staged");
        std::fs::write(&staged, text).unwrap();
        std::fs::rename(&staged, self.dir.path().join("manifests").join(file)).unwrap();
    }

    pub fn delete(&self, file: &str) {
        std::fs::remove_file(self.dir.path().join("manifests").join(file)).unwrap();
    }

    /// The agent's process ended by itself.
    pub fn is_dead(&mut self) -> bool {
        self.agent.as_mut().is_none_or(|agent| agent.try_wait().unwrap().is_some())
    }

    /// As `report`, of an agent that may have died.
    pub async fn try_report(&mut self, name: &str) -> Option<ProgramReport> {
        let answer = self.client.as_mut()?.list_programs(ListProgramsRequest::default()).await.ok()?;
        answer.into_inner().programs.into_iter().find(|p| p.name == name)
    }

    pub async fn report(&mut self, name: &str) -> Option<ProgramReport> {
        let client = self.client.as_mut().unwrap();
        let all = client.list_programs(ListProgramsRequest::default()).await.unwrap().into_inner();
        all.programs.into_iter().find(|p| p.name == name)
    }

    /// Waits for a report that satisfies; prints the last one and the log if none comes.
    pub async fn until(&mut self, name: &str, satisfied: impl Fn(&ProgramReport) -> bool) -> ProgramReport {
        let start = Instant::now();
        loop {
            let report = self.report(name).await;
            match report {
                Some(report) if satisfied(&report) => return report,
                other => assert!(
                    start.elapsed() < Duration::from_secs(20),
                    "{name} does not come to what is expected: {other:#?}\n{}",
                    self.log()
                ),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn until_gone(&mut self, name: &str) {
        let start = Instant::now();
        while self.report(name).await.is_some() {
            assert!(start.elapsed() < Duration::from_secs(20), "{name} does not go: {}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Sends packets to lo of the node.
    pub fn packets(&self, count: u32) {
        packets(&self.netns(), count);
    }

    /// Slot 0 of the map `hits`, through the Inspector.
    pub async fn hits(&self, name: &str) -> u64 {
        self.slot(name, 0).await
    }

    /// A slot of the map `hits`, through the Inspector.
    pub async fn slot(&self, name: &str, slot: u32) -> u64 {
        let request = LookupMapRequest {
            program: Some(ProgramRef { namespace: "test".into(), name: name.into() }),
            map: "hits".into(),
            key: Some(Key::Json(skep_proto::value::from_json(&serde_json::json!(slot)))),
            schema: false,
        };
        let answer = self.inspector().lookup_map(request).await.unwrap().into_inner();
        u64::from_ne_bytes(answer.raw_value[..].try_into().unwrap())
    }

    /// Loads, whole or half done, of all programs.
    pub fn loads_in_bpffs(&self) -> usize {
        let uids = bpffs::list(&self.root()).unwrap();
        let names = uids.iter().flat_map(|uid| bpffs::list(&self.root().join(uid)).unwrap());
        names.filter(|name| name != "links" && name != "maps").count()
    }

    pub fn programs_in_bpffs(&self) -> usize {
        bpffs::list(&self.root()).unwrap().len()
    }

    pub fn desired_files(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("state/desired")).unwrap().count()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        end(&mut self.agent);
        end(&mut self.registry);
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        for mount in mounts.lines().filter(|line| line.starts_with(&format!("{} ", self.name))) {
            let _ = Command::new("umount").args(mount.split(' ').nth(1)).status();
        }
        let _ = bpffs::remove_tree(&self.root());
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
        let _ = std::fs::remove_dir(self.cgroup_dir().join("kubepods"));
        let _ = std::fs::remove_dir(self.cgroup_dir());
        let _ = std::fs::remove_dir(self.memory_cgroup().0);
        let _ = std::fs::remove_dir(self.pids_cgroup());
    }
}

fn end(child: &mut Option<Child>) {
    if let Some(mut child) = child.take() {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Sends packets to lo of a network namespace.
pub fn packets(netns: &Path, count: u32) {
    netns::within(Some(netns), || {
        let ear = UdpSocket::bind("127.0.0.1:0")?;
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        (0..count).try_for_each(|_| socket.send_to(b"hello", ear.local_addr()?).map(drop))
    })
    .unwrap();
}

/// An EbpfProgram that counts on lo.
pub fn manifest(name: &str, image: &str, globals: serde_json::Value) -> String {
    let globals = if globals.as_object().is_some_and(|g| g.is_empty()) {
        String::new()
    } else {
        format!("  globals: {globals}\n")
    };
    format!(
        "apiVersion: skep.dev/v1alpha1\nkind: EbpfProgram\nmetadata: {{name: {name}, namespace: test}}\nspec:\n  image: {{reference: \"{image}\"}}\n{globals}  programs:\n  - name: count_xdp\n    attach:\n    - xdp: {{interfaces: {{names: [lo]}}}}\n"
    )
}

/// An EbpfProgram with one function on one hook.
pub fn tracing_manifest(name: &str, image: &str, function: &str, attach: &str) -> String {
    format!(
        "apiVersion: skep.dev/v1alpha1\nkind: EbpfProgram\nmetadata: {{name: {name}, namespace: test}}\nspec:\n  image: {{reference: {image}}}\n  programs:\n  - name: {function}\n    attach:\n    - {attach}\n"
    )
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn run(program: &str, args: &[&str]) {
    let status = Command::new(program).args(args).status().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(status.success(), "{program} {args:?}: {status}");
}

/// The agent; another machine than that of the compiler has it elsewhere.
fn agent() -> PathBuf {
    std::env::var_os("SKEP_TEST_AGENT").map_or_else(|| env!("CARGO_BIN_EXE_skep-agent").into(), PathBuf::from)
}

/// The object made from `kernel/tests/c/<name>.bpf.c`; without flags, ready-made from SKEP_TEST_OBJECTS if it is there.
pub fn object(name: &str, flags: &[String]) -> Vec<u8> {
    if let (Ok(dir), true) = (std::env::var("SKEP_TEST_OBJECTS"), flags.is_empty()) {
        return std::fs::read(Path::new(&dir).join(format!("{name}.o"))).unwrap();
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernel/tests/c").join(format!("{name}.bpf.c"));
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.o");
    let (source, target) = (source.to_string_lossy().into_owned(), out.to_string_lossy().into_owned());
    let mut args = vec!["-g", "-O2", "-target", "bpf", "-I/usr/include/x86_64-linux-gnu", "-c", &source, "-o", &target];
    args.extend(flags.iter().map(String::as_str));
    run("clang", &args);
    std::fs::read(&out).unwrap()
}
