//! The demo without Kubernetes: registry, agent and traffic on this host, in a network namespace of their own.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::image::{Connection, Image};
use crate::install::until;
use crate::setup::{Level, Setup};
use crate::{bpf, build, repo, step};

/// With the process id: two demos do not meet, and what an interrupted one left is known by its owner.
const PREFIX: &str = "skep-demo-";

pub fn run() -> Result<()> {
    Setup::levels(&[Level::Bpf, Level::Registry]).run()?;
    bpf::build_all()?;
    build::binaries()?;
    let demo = Demo::start()?;
    let reference = format!("127.0.0.1:{}/skep/xdp-counter:v1", demo.port);
    let connection = Connection { ca: None, plain_http: true };
    Image::Bytecode { object: bpf::objects().join("xdp-counter.o"), reference, connection }.run()?;

    let example = std::fs::read_to_string(repo::root().join("examples/xdp-counter/ebpfprogram.yaml"))?;
    let manifest = example
        .replace("registry.example.com", &format!("127.0.0.1:{}", demo.port))
        .replace("primary: true", "names: [lo]");
    std::fs::write(demo.path("manifests/xdp-counter.yaml"), &manifest)?;
    println!("\n$ cat manifests/xdp-counter.yaml\n{manifest}");

    until("xdp-counter is Ready", Duration::from_secs(30), || Ok(demo.skep(&["get"])?.contains("Ready")))?;
    println!("$ kubectl-skep get --socket agent.sock\n{}", demo.skep(&["get"])?);
    demo.ping()?;
    let dump = ["maps", "dump", "xdp-counter", "counters"];
    println!("\n$ kubectl-skep maps dump xdp-counter counters --socket agent.sock\n{}", demo.skep(&dump)?);
    demo.ping()?;
    println!("\n... and after some more packets\n{}", demo.skep(&dump)?);

    std::fs::remove_file(demo.path("manifests/xdp-counter.yaml"))?;
    until("the program is gone", Duration::from_secs(30), || Ok(!demo.skep(&["get"])?.contains("xdp-counter")))?;
    println!("\nThe manifest was removed, and the program with it. On your own host:");
    println!("  {} run --manifests /etc/skep/manifests", build::binary("skep-agent").display());
    Ok(())
}

struct Demo {
    dir: tempfile::TempDir,
    netns: String,
    port: u16,
    children: Vec<Child>,
}

impl Demo {
    fn start() -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        sweep();
        let netns = format!("{PREFIX}{}", std::process::id());
        let mut demo = Self { dir: tempfile::tempdir()?, netns, port, children: Vec::new() };
        std::fs::create_dir(demo.path("manifests"))?;
        step::ask(Command::new("ip").args(["netns", "add", &demo.netns]))?;
        step::ask(Command::new("ip").args(["-n", &demo.netns, "link", "set", "lo", "up"]))?;
        demo.registry()?;
        demo.agent()?;
        Ok(demo)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn bpffs(&self) -> PathBuf {
        bpffs(&self.netns)
    }

    fn registry(&mut self) -> Result<()> {
        let config = self.path("registry.yml");
        let (storage, port) = (self.path("registry"), self.port);
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n",
            storage.display()
        );
        std::fs::write(&config, text)?;
        self.spawn("registry", Command::new("docker-registry").arg("serve").arg(&config))?;
        until("the registry answers", Duration::from_secs(20), || {
            Ok(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok())
        })
    }

    fn agent(&mut self) -> Result<()> {
        let mut agent = Command::new(build::binary("skep-agent"));
        agent.arg("run");
        for (flag, value) in [
            ("--manifests", self.path("manifests")),
            ("--state-dir", self.path("state")),
            ("--socket", self.path("agent.sock")),
            ("--bpffs", self.bpffs()),
            ("--host-netns", Path::new("/run/netns").join(&self.netns)),
        ] {
            agent.arg(flag).arg(value);
        }
        agent.arg("--plain-http-registry").arg(format!("127.0.0.1:{}", self.port));
        self.spawn("agent", &mut agent)?;
        let socket = self.path("agent.sock");
        until("the agent answers", Duration::from_secs(20), || {
            Ok(std::os::unix::net::UnixStream::connect(&socket).is_ok())
        })
    }

    fn spawn(&mut self, name: &str, command: &mut Command) -> Result<()> {
        let log = std::fs::File::create(self.path(&format!("{name}.log")))?;
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        self.children.push(child.with_context(|| format!("{name} does not start"))?);
        Ok(())
    }

    fn skep(&self, args: &[&str]) -> Result<String> {
        let mut plugin = Command::new(build::binary("kubectl-skep"));
        step::ask(plugin.args(args).arg("--socket").arg(self.path("agent.sock")))
    }

    fn ping(&self) -> Result<()> {
        let ping = ["netns", "exec", &self.netns, "ping", "-q", "-c", "5", "-i", "0.1", "127.0.0.1"];
        step::ask(Command::new("ip").args(ping)).map(drop)
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ended = child.kill();
            let _reaped = child.wait();
        }
        // Whatever the agent was not asked to take away, when the demo failed half way.
        remove(&self.netns);
    }
}

fn bpffs(netns: &str) -> PathBuf {
    Path::new("/sys/fs/bpf").join(netns)
}

fn remove(netns: &str) {
    let _unpinned = std::fs::remove_dir_all(bpffs(netns));
    let _removed = step::ask(Command::new("ip").args(["netns", "del", netns]));
}

/// What interrupted demos left.
fn sweep() {
    for entry in std::fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(pid) = name.strip_prefix(PREFIX)
            && !Path::new("/proc").join(pid).exists()
        {
            remove(&name);
        }
    }
}
