//! A host of the test's own: a network namespace, a registry and a real standalone agent, all gone when it ends, even by
//! panic.

use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use skep_kernel::{bpffs, netns};

/// How long anything may take to come about.
const PATIENCE: Duration = Duration::from_secs(60);

static NEXT: AtomicU32 = AtomicU32::new(0);

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub struct Host {
    dir: tempfile::TempDir,
    name: String,
    port: u16,
    children: Vec<Child>,
}

impl Host {
    pub fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let agent = agent_binary();
        let name = format!("skep-cli-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let port = free_port();
        let mut host = Host { dir: tempfile::tempdir().unwrap(), name, port, children: Vec::new() };
        std::fs::create_dir(host.path("manifests")).unwrap();
        run("ip", &["netns", "add", &host.name]);
        run("ip", &["-n", &host.name, "link", "set", "lo", "up"]);
        host.start_registry();
        host.start_agent(&agent);
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("agent.sock")
    }

    fn netns(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    fn bpffs(&self) -> PathBuf {
        Path::new("/sys/fs/bpf").join(&self.name)
    }

    fn start_registry(&mut self) {
        let (config, storage) = (self.path("registry.yml"), self.path("registry"));
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:{}'}}\n",
            storage.display(),
            self.port
        );
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new("docker-registry");
        let child = command.arg("serve").arg(&config).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        self.children.push(child.expect("docker-registry is installed by `cargo xtask setup`"));
        let port = self.port;
        self.wait("the registry", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    }

    fn start_agent(&mut self, binary: &Path) {
        let log = std::fs::File::create(self.path("agent.log")).unwrap();
        let child = Command::new(binary)
            .arg("run")
            .args([Path::new("--manifests"), &self.path("manifests")])
            .args([Path::new("--state-dir"), &self.path("state")])
            .args([Path::new("--bpffs"), &self.bpffs()])
            .args([Path::new("--socket"), &self.socket()])
            .args([Path::new("--host-netns"), &self.netns()])
            .args(["--plain-http-registry", &format!("127.0.0.1:{}", self.port)])
            .stderr(log)
            .spawn()
            .unwrap();
        self.children.push(child);
        let socket = self.socket();
        self.wait("the agent", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    }

    /// Until it is so; the agent's log says why it is not.
    pub fn wait(&self, what: &str, mut so: impl FnMut() -> bool) {
        let start = Instant::now();
        while !so() {
            let log = || std::fs::read_to_string(self.path("agent.log")).unwrap_or_default();
            assert!(start.elapsed() < PATIENCE, "{what} does not come about: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Compiles `source` (below the repository), pushes it, and writes a manifest with its `programs`.
    pub fn apply(&self, name: &str, source: &str, programs: &str) {
        let tag = Path::new(source).file_name().unwrap().to_string_lossy();
        self.apply_object(name, &tag, &compiled(source), programs);
    }

    /// The same with an object.
    pub fn apply_object(&self, name: &str, tag: &str, object: &[u8], programs: &str) {
        let reference = format!("127.0.0.1:{}/{name}:{tag}", self.port);
        let output = self.push(object, &reference);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let printed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(printed["pinned"].as_str().unwrap().starts_with(&format!("127.0.0.1:{}/{name}@sha256:", self.port)));
        let text = format!(
            "apiVersion: skep.dev/v1alpha1\nkind: EbpfProgram\nmetadata: {{name: {name}, namespace: test}}\nspec:\n  image: {{reference: \"{reference}\"}}\n  programs:\n{programs}"
        );
        let staged = self.path("staged");
        std::fs::write(&staged, text).unwrap();
        std::fs::rename(staged, self.path("manifests").join(format!("{name}.yaml"))).unwrap();
    }

    /// Takes a manifest away.
    pub fn withdraw(&self, name: &str) {
        std::fs::remove_file(self.path("manifests").join(format!("{name}.yaml"))).unwrap();
    }

    /// The agent ends in the middle of whatever it does.
    pub fn kill_agent(&mut self) {
        // It was started last.
        let mut agent = self.children.pop().unwrap();
        agent.kill().unwrap();
        agent.wait().unwrap();
        // What it had no time to take away, and the next agent would.
        let own = format!("skep-{}-", agent.id());
        for instance in std::fs::read_dir("/sys/kernel/tracing/instances").into_iter().flatten().flatten() {
            if instance.file_name().to_string_lossy().starts_with(&own) {
                std::fs::remove_dir(instance.path()).unwrap();
            }
        }
    }

    /// Pushes an object by the plugin.
    pub fn push(&self, object: &[u8], reference: &str) -> Output {
        let file = self.path("object.o");
        std::fs::write(&file, object).unwrap();
        let mut command = Command::new(plugin());
        // Nobody's login is this registry's business.
        command.env("DOCKER_CONFIG", self.dir.path()).env_remove("REGISTRY_AUTH_FILE");
        command.arg("push").arg(file).args([reference, "--plain-http", "-o", "json"]).output().unwrap()
    }

    /// Where nothing listens.
    pub fn nowhere(&self) -> String {
        format!("127.0.0.1:{}/nothing:v1", free_port())
    }

    /// Sends packets to lo of the host.
    pub fn packets(&self, count: u32) {
        netns::within(Some(&self.netns()), || {
            let ear = UdpSocket::bind("127.0.0.1:0")?;
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            (0..count).try_for_each(|_| socket.send_to(b"hello", ear.local_addr()?).map(drop))
        })
        .unwrap();
    }

    /// The real plugin, told of the socket.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(plugin());
        command.args(args).arg("--socket").arg(self.socket());
        command
    }

    pub fn skep(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// What it prints when all is well.
    pub fn out(&self, args: &[&str]) -> String {
        let output = self.skep(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The agent before what it hangs on.
        for child in self.children.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = bpffs::remove_tree(&self.bpffs());
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// The plugin; another machine than that of the compiler has it elsewhere.
fn plugin() -> PathBuf {
    std::env::var_os("SKEP_TEST_PLUGIN").map_or_else(|| env!("CARGO_BIN_EXE_kubectl-skep").into(), PathBuf::from)
}

/// Beside this test's own directory, and built if it is not there; another machine has it elsewhere.
fn agent_binary() -> PathBuf {
    if let Some(agent) = std::env::var_os("SKEP_TEST_AGENT") {
        return agent.into();
    }
    let test = std::env::current_exe().unwrap();
    let binary = test.ancestors().nth(2).unwrap().join("skep-agent");
    if !binary.exists() {
        run(env!("CARGO"), &["build", "-p", "skep-node-agent", "--bin", "skep-agent"]);
    }
    binary
}

fn run(program: &str, args: &[&str]) {
    let status = Command::new(program).args(args).status().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(status.success(), "{program} {args:?}: {status}");
}

/// Where there is no clang it is ready-made in SKEP_TEST_OBJECTS.
pub fn compiled(source: &str) -> Vec<u8> {
    if let Some(dir) = std::env::var_os("SKEP_TEST_OBJECTS") {
        let name = Path::new(source).file_name().unwrap().to_string_lossy().replace(".bpf.c", ".o");
        return std::fs::read(Path::new(&dir).join(name)).unwrap();
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(source);
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.o");
    let (source, target) = (source.to_string_lossy().into_owned(), out.to_string_lossy().into_owned());
    run(
        "clang",
        &[
            "-g",
            "-O2",
            "-Wno-visibility",
            "-target",
            "bpf",
            "-I/usr/include/x86_64-linux-gnu",
            "-c",
            &source,
            "-o",
            &target,
        ],
    );
    std::fs::read(&out).unwrap()
}
