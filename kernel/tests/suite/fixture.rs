//! A network namespace, a cgroup and a uid of the test's own, gone when it ends, even by panic.

use std::collections::{BTreeMap, BTreeSet};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use skep_kernel::hook::{Family, Hook, Netfilter, NetfilterHook, Options, Target};
use skep_kernel::netns::NetnsView;
use skep_kernel::seam::{Kernel, LoadRequest, Merge, ProgramAt, Variant};
use skep_kernel::{Host, KernelError, bpffs, netns, probe};
use skep_object::Object;
use skep_object::kind::Kind;

static NEXT: AtomicU32 = AtomicU32::new(0);

pub struct Fixture {
    pub host: Host,
    pub uid: String,
    root: PathBuf,
    state: tempfile::TempDir,
    netns: Option<String>,
    cgroup: Option<PathBuf>,
}

impl Fixture {
    pub fn new() -> Self {
        let unique = format!("skep-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let root = Path::new("/sys/fs/bpf").join(&unique);
        let state = tempfile::tempdir().unwrap();
        let host = Host::open(&root, state.path()).unwrap();
        Fixture { host, uid: "0a1b-uid".into(), root, state, netns: None, cgroup: None }
    }

    /// An interface `lo` that is up, in a namespace of its own.
    pub fn lo(&mut self) -> Target {
        let name = self.root.file_name().unwrap().to_string_lossy().into_owned();
        run("ip", &["netns", "add", &name]);
        run("ip", &["-n", &name, "link", "set", "lo", "up"]);
        self.netns = Some(name);
        self.interface("lo")
    }

    /// A network namespace of its own, with `lo` up.
    pub fn netns(&mut self) -> Target {
        self.lo();
        let path = self.netns_path();
        let cookie = seen(&path).cookie;
        Target::Netns { path, cookie, name: "the test".into() }
    }

    /// Another process: everything is read back.
    pub fn restart(&mut self) {
        self.host = Host::open(&self.root, self.state.path()).unwrap();
    }

    pub fn netns_path(&self) -> PathBuf {
        Path::new("/run/netns").join(self.netns.as_ref().unwrap())
    }

    pub fn interface(&self, name: &str) -> Target {
        let netns = self.netns_path();
        let view = seen(&netns);
        let interface = view.interfaces.iter().find(|i| i.name == name).unwrap();
        Target::Interface { netns, cookie: view.cookie, ifindex: interface.index, name: name.into() }
    }

    /// A cgroup v2 directory, and how to run something in it.
    pub fn cgroup(&mut self) -> Target {
        let path = probe::cgroup2_mount().unwrap().join(self.root.file_name().unwrap());
        std::fs::create_dir(&path).unwrap();
        self.cgroup = Some(path.clone());
        use std::os::unix::fs::MetadataExt;
        let id = std::fs::metadata(&path).unwrap().ino();
        Target::Cgroup { path, id }
    }

    /// Moves this process into the cgroup, until the guard goes.
    pub fn enter_cgroup(&self) -> Inside {
        let text = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let path = text.lines().find_map(|line| line.strip_prefix("0::")).unwrap();
        let before = probe::cgroup2_mount().unwrap().join(path.trim_start_matches('/'));
        move_to(self.cgroup.as_ref().unwrap());
        Inside { before }
    }

    /// Runs a shell command inside the cgroup.
    pub fn in_cgroup(&self, command: &str) {
        let procs = self.cgroup.as_ref().unwrap().join("cgroup.procs");
        let script = format!("echo $$ > {} && {command}", procs.display());
        run("sh", &["-c", &script]);
    }

    /// Sends packets to lo of the namespace.
    pub fn packets(&self, count: u32) {
        netns::within(Some(&self.netns_path()), || {
            // Somebody listens: an unheard packet would be answered, and the answer counted.
            let ear = UdpSocket::bind("127.0.0.1:0")?;
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            for _ in 0..count {
                socket.send_to(b"hello", ear.local_addr()?)?;
            }
            Ok(())
        })
        .unwrap();
    }

    /// Makes a pair of interfaces in the namespace of which the first has 10.77.0.1/24; `false` if the kernel has no such
    /// kind.
    pub fn link_of_kind(&self, name: &str, kind: &str) -> bool {
        let netns = self.netns.as_ref().unwrap();
        let made = Command::new("ip").args(["-n", netns, "link", "add", name, "type", kind]).output().unwrap();
        if !made.status.success() {
            println!("{kind}: {}", String::from_utf8_lossy(&made.stderr));
            return false;
        }
        run("ip", &["-n", netns, "addr", "add", "10.77.0.1/24", "dev", name]);
        let all = Command::new("ip").args(["-n", netns, "-o", "link"]).output().unwrap();
        for line in String::from_utf8_lossy(&all.stdout).lines() {
            let device = line.split(": ").nth(1).unwrap().split('@').next().unwrap();
            run("ip", &["-n", netns, "link", "set", device, "up"]);
        }
        true
    }

    /// Sends packets out of the namespace's interface that is nearest to an address.
    pub fn packets_to(&self, address: &str, count: u32) {
        netns::within(Some(&self.netns_path()), || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            for _ in 0..count {
                socket.send_to(b"hello", (address, 9))?;
            }
            Ok(())
        })
        .unwrap();
    }

    pub fn load(&self, load: &str, request: &LoadRequest) {
        self.host.load(&self.uid, load, request).unwrap();
    }

    pub fn attach(&self, load: &str, function: &str, request: &LoadRequest, hook: &Hook) -> String {
        self.try_attach(load, function, request, hook).unwrap()
    }

    pub fn try_attach(
        &self,
        load: &str,
        function: &str,
        request: &LoadRequest,
        hook: &Hook,
    ) -> Result<String, KernelError> {
        let link = hook.link_name(function);
        self.host.attach(&self.uid, &link, hook, &at(load, function, request))?;
        self.host.settle(&self.uid, load, &request.keep.keys().cloned().collect()).unwrap();
        Ok(link)
    }

    /// A counter of the array `hits`.
    pub fn hits(&self, load: &str, slot: u32) -> u64 {
        let fd = self.host.open_map(&self.uid, load, "hits").unwrap();
        let map = skep_kernel::sys::map::Map::new(fd).unwrap();
        u64::from_ne_bytes(map.lookup(&slot.to_ne_bytes()).unwrap().unwrap().try_into().unwrap())
    }
}

/// Without it there is nothing to attach to: where the kernel is to blame, that is the verdict on the test's kind.
fn seen(netns: &Path) -> NetnsView {
    netns::view(netns).unwrap_or_else(|error| {
        if super::verdict::refused(&error) { super::verdict::end(&error) } else { panic!("{error}") }
    })
}

/// This process is in a test's cgroup.
pub struct Inside {
    before: PathBuf,
}

impl Drop for Inside {
    fn drop(&mut self) {
        move_to(&self.before);
    }
}

fn move_to(cgroup: &Path) {
    std::fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string()).unwrap();
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = self.host.remove_program(&self.uid);
        let _ = bpffs::remove_tree(&self.root);
        if let Some(netns) = &self.netns {
            let _ = Command::new("ip").args(["netns", "del", netns]).status();
        }
        if let Some(cgroup) = &self.cgroup {
            // Its last process may still be leaving.
            for _ in 0..50 {
                if std::fs::remove_dir(cgroup).is_ok() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
    }
}

pub fn run(program: &str, args: &[&str]) {
    let status = Command::new(program).args(args).status().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(status.success(), "{program} {args:?}: {status}");
}

/// The program of a load, by the function's first variant.
pub fn at(load: &str, function: &str, request: &LoadRequest) -> ProgramAt {
    let variant = request.variants.iter().find(|v| v.function == function).unwrap();
    ProgramAt { load: load.into(), pin: variant.pin() }
}

/// The object made from `kernel/tests/c/<name>.bpf.c`, once a process.
pub fn object(name: &str) -> Arc<Object> {
    static MADE: Mutex<BTreeMap<String, Arc<Object>>> = Mutex::new(BTreeMap::new());
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    made.entry(name.to_owned()).or_insert_with(|| Arc::new(Object::parse(build(name, &[])).unwrap())).clone()
}

/// Compiles `kernel/tests/c/<name>.bpf.c`, or reads it ready-made from SKEP_TEST_OBJECTS.
pub fn build(name: &str, defines: &[&str]) -> Vec<u8> {
    if let Ok(dir) = std::env::var("SKEP_TEST_OBJECTS") {
        return std::fs::read(Path::new(&dir).join(format!("{name}.o"))).unwrap();
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c").join(format!("{name}.bpf.c"));
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.o");
    let mut args = vec!["-g", "-O2", "-target", "bpf", "-I/usr/include/x86_64-linux-gnu"];
    args.extend(defines);
    let (source, out_text) = (source.to_string_lossy().into_owned(), out.to_string_lossy().into_owned());
    args.extend(["-c", &source, "-o", &out_text]);
    run("clang", &args);
    std::fs::read(&out).unwrap()
}

/// A request for functions, each on a hook.
pub fn request(object: &Arc<Object>, hooks: &[(&str, &Hook)], globals: &[(&str, Value)]) -> LoadRequest {
    let globals: Vec<(String, Value)> = globals.iter().map(|(n, v)| ((*n).to_owned(), v.clone())).collect();
    let maps = object.with_globals(globals.iter().map(|(n, v)| (n, v))).unwrap();
    let variants: BTreeSet<Variant> = hooks
        .iter()
        .map(|(function, hook)| {
            let section = object.section_of(object.program(function).unwrap());
            Variant { function: (*function).into(), attributes: hook.load_attributes(section) }
        })
        .collect();
    let keep = maps.iter().filter(|m| m.data.is_none()).map(|m| (m.name.clone(), Merge::Untouched)).collect();
    LoadRequest { object: object.clone(), maps, variants, keep, share: BTreeMap::new() }
}

pub fn hook(kind: Kind, attach_type: u32, target: Target) -> Hook {
    let attach_type = if attach_type == 0 { kind.row().attach_type } else { attach_type };
    Hook { kind, attach_type, target, options: Options::default(), gate: None }
}

/// IPv4 packets to this host.
pub fn local_in(target: Target, priority: i32) -> Hook {
    let mut hook = hook(Kind::Netfilter, 0, target);
    let (family, at) = (Family::Ipv4, NetfilterHook::LocalIn);
    hook.options.netfilter = Some(Netfilter { family, hook: at, priority, defragment: false });
    hook
}
