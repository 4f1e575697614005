//! A standalone release agent with a registry, in a network namespace of their own; all gone when it ends.

use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use super::compile;
use crate::image::{Connection, Image};
use crate::install::until;
use crate::{build, step};

pub struct Node {
    dir: tempfile::TempDir,
    /// Of the network namespace and of the directory in bpffs.
    name: String,
    port: u16,
    registry: Option<Child>,
    agent: Option<Child>,
}

impl Node {
    pub fn start() -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let name = format!("skep-bench-{}", std::process::id());
        let mut node = Self { dir: tempfile::tempdir()?, name, port, registry: None, agent: None };
        std::fs::create_dir(node.manifests())?;
        step::ask(Command::new("ip").args(["netns", "add", &node.name]))?;
        node.ip(&["link", "set", "lo", "up"])?;
        node.start_registry()?;
        node.start_agent()?;
        Ok(node)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn manifests(&self) -> PathBuf {
        self.path("manifests")
    }

    pub fn socket(&self) -> PathBuf {
        self.path("agent.sock")
    }

    pub fn agent_pid(&self) -> Result<u32> {
        Ok(self.agent.as_ref().context("no agent runs")?.id())
    }

    pub fn ip(&self, args: &[&str]) -> Result<()> {
        step::ask(Command::new("ip").args(["-n", &self.name]).args(args)).map(drop)
    }

    /// Runs a command in the node's network namespace; what it prints.
    pub fn within(&self, command: &Command) -> Result<String> {
        let mut inside = Command::new("ip");
        inside.args(["netns", "exec", &self.name]).arg(command.get_program()).args(command.get_args());
        step::ask(&mut inside)
    }

    /// Compiles a C source of the repository and pushes it; its reference.
    pub fn push(&self, source: &str, name: &str) -> Result<String> {
        let object = self.path(name).with_extension("o");
        compile(source, &object)?;
        let reference = format!("127.0.0.1:{}/{name}:v1", self.port);
        let connection = Connection { ca: None, plain_http: true };
        Image::Bytecode { object, reference: reference.clone(), connection }.run()?;
        Ok(reference)
    }

    /// Adds a manifest and waits for it to be Ready.
    pub fn run(&self, program: &str, manifest: &str) -> Result<()> {
        std::fs::write(self.manifests().join(format!("{program}.yaml")), manifest)?;
        until(&format!("{program} is Ready"), Duration::from_secs(30), || {
            let mut plugin = Command::new(build::binary("kubectl-skep"));
            // One that the agent has not heard of yet is an error.
            let told = step::ask(plugin.args(["get", program]).arg("--socket").arg(self.socket()));
            Ok(told.is_ok_and(|told| told.contains("Ready")))
        })
    }

    /// Ends the agent as a crash does.
    pub fn kill_agent(&mut self) -> Result<()> {
        end(&mut self.agent);
        // What it served is not to be taken for what the next one serves.
        std::fs::remove_file(self.socket()).context("removing the agent's socket")
    }

    pub fn stop_registry(&mut self) {
        end(&mut self.registry);
    }

    /// As a reboot does.
    pub fn empty_bpffs(&self) -> Result<()> {
        std::fs::remove_dir_all(self.bpffs()).context("emptying the agent's directory in bpffs")
    }

    fn bpffs(&self) -> PathBuf {
        Path::new("/sys/fs/bpf").join(&self.name)
    }

    fn start_registry(&mut self) -> Result<()> {
        let (config, storage, port) = (self.path("registry.yml"), self.path("registry"), self.port);
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n",
            storage.display()
        );
        std::fs::write(&config, text)?;
        self.registry = Some(self.spawn("registry", Command::new("docker-registry").arg("serve").arg(&config))?);
        until("the registry answers", Duration::from_secs(20), || Ok(TcpStream::connect(("127.0.0.1", port)).is_ok()))
    }

    pub fn start_agent(&mut self) -> Result<()> {
        let mut agent = Command::new(build::binary("skep-agent"));
        agent.arg("run").args(["--health", "127.0.0.1:0"]);
        for (flag, value) in [
            ("--manifests", self.manifests()),
            ("--state-dir", self.path("state")),
            ("--socket", self.socket()),
            ("--bpffs", self.bpffs()),
            ("--host-netns", Path::new("/run/netns").join(&self.name)),
        ] {
            agent.arg(flag).arg(value);
        }
        agent.arg("--plain-http-registry").arg(format!("127.0.0.1:{}", self.port));
        self.agent = Some(self.spawn("agent", &mut agent)?);
        let socket = self.socket();
        until("the agent answers", Duration::from_secs(20), || Ok(UnixStream::connect(&socket).is_ok()))
    }

    fn spawn(&self, name: &str, command: &mut Command) -> Result<Child> {
        let log = std::fs::File::create(self.path(&format!("{name}.log")))?;
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        child.with_context(|| format!("{name} does not start"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        end(&mut self.agent);
        end(&mut self.registry);
        // Pins hold programs and links: without them, both are gone.
        let _unpinned = std::fs::remove_dir_all(self.bpffs());
        let _removed = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn end(child: &mut Option<Child>) {
    if let Some(mut child) = child.take() {
        let _ended = child.kill();
        let _reaped = child.wait();
    }
}

/// An EbpfProgram that runs `count_xdp` on one interface.
pub fn manifest(name: &str, reference: &str, interface: &str) -> String {
    format!(
        "apiVersion: skep.dev/v1alpha1\nkind: EbpfProgram\nmetadata: {{name: {name}, namespace: bench}}\nspec:\n  image: {{reference: \"{reference}\"}}\n  programs:\n  - name: count_xdp\n    attach:\n    - xdp: {{interfaces: {{names: [{interface}]}}}}\n"
    )
}
