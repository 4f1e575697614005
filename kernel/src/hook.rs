//! One function on one hook: what a link is made of, and the name it is pinned under.

use std::path::PathBuf;

use sha2::{Digest, Sha256};
use skep_object::kind::{AttachTo, Kind, LoadAttributes};

use crate::sys::perf;

/// A hook, with its target found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    pub kind: Kind,
    /// The link's attach type where the kind has several (a direction, a socket call); else the row's.
    pub attach_type: u32,
    pub target: Target,
    pub options: Options,
    /// For probes that select pods: the set of cgroups whose tasks count. See [`crate::gate`].
    pub gate: Option<String>,
}

/// Options that a link update cannot change: they are part of the link's identity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub xdp_mode: XdpMode,
    /// tc only: the filter's priority; 0: Skep's default.
    pub tc_priority: u16,
    /// netfilter only: where in the path of packets.
    pub netfilter: Option<Netfilter>,
    /// tcx and netkit: where among the programs of the interface and direction.
    pub order: Order,
    /// lsmCgroup only: the function that stands for the security hook in the kernel's BTF.
    pub security_hook: Option<String>,
}

/// Where among the programs of a hook a link goes when it is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// After those that are there.
    #[default]
    Last,
    /// Before those that are there.
    First,
    Before(Neighbour),
    After(Neighbour),
}

/// A function of another program of Skep's on the same hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// `None`: this node has no such program.
    pub uid: Option<String>,
    /// The EbpfProgram's name.
    pub name: String,
    pub function: String,
}

impl std::fmt::Display for Neighbour {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of EbpfProgram {}", self.function, self.name)
    }
}

impl Order {
    /// A text that two equal orders share and two different ones do not; `None` for the one that asks for nothing. The
    /// neighbour's uid is not in it: one that is made again is still the neighbour.
    fn canonical(&self) -> Option<String> {
        match self {
            Order::Last => None,
            Order::First => Some("first".into()),
            Order::Before(other) => Some(format!("before {}/{}", other.name, other.function)),
            Order::After(other) => Some(format!("after {}/{}", other.name, other.function)),
        }
    }
}

/// A place in the path of packets through a network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Netfilter {
    pub family: Family,
    pub hook: NetfilterHook,
    /// The lower of the two priorities that a link may have: see [`crate::attach`].
    pub priority: i32,
    /// The program sees whole packets, not their fragments.
    pub defragment: bool,
}

/// NFPROTO_* (include/uapi/linux/netfilter.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Family {
    Ipv4 = 2,
    Ipv6 = 10,
}

/// NF_INET_* (include/uapi/linux/netfilter.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum NetfilterHook {
    PreRouting = 0,
    LocalIn = 1,
    Forward = 2,
    LocalOut = 3,
    PostRouting = 4,
}

/// How an XDP program is run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver where it can, else generic.
    #[default]
    Auto,
    Native,
    Generic,
}

/// What a hook is on. Numbers that the kernel uses again are paired with one that it does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Interface {
        /// A path to the network namespace, e.g. /proc/1/ns/net.
        netns: PathBuf,
        /// SO_NETNS_COOKIE: never used again, unlike the inode.
        cookie: u64,
        ifindex: u32,
        name: String,
    },
    Cgroup {
        path: PathBuf,
        /// The cgroup's id, never used again.
        id: u64,
    },
    Netns {
        /// A path to the network namespace, e.g. /proc/1/ns/net.
        path: PathBuf,
        /// SO_NETNS_COOKIE: never used again, unlike the inode.
        cookie: u64,
        /// For people: whose it is.
        name: String,
    },
    /// `category/name` of a tracepoint, or the name of a raw one.
    Event(String),
    Function {
        name: String,
        offset: u64,
    },
    /// A function of another program of Skep's.
    ProgramFunction {
        /// The kernel's id of the program, which it does not use again.
        program: u32,
        /// The name of its EbpfProgram.
        of: String,
        function: String,
    },
    Binary {
        /// Where to open the file: for a container's below /proc/PID/root.
        path: PathBuf,
        /// What the file is, whatever its path: see [`crate::attach::file_identity`].
        identity: String,
        offset: u64,
        /// For people: library and symbol.
        name: String,
    },
    /// Several places of one file, by one link.
    Symbols {
        /// As of a `Binary`.
        path: PathBuf,
        /// As of a `Binary`.
        identity: String,
        /// In ascending order.
        offsets: Vec<u64>,
        /// For people: library and symbols.
        name: String,
    },
    /// Many functions of the kernel, by one link.
    Functions(FunctionSet),
    /// The function of a system call, by the call's name.
    Syscall(String),
    /// A counter of one CPU.
    CpuEvent {
        event: perf::Event,
        every: perf::Every,
        cpu: u32,
    },
    /// A map of sockets, by its name in the program's own load.
    SocketMap(String),
    /// All objects of a kind.
    Objects {
        /// The function that stands for the kind in the kernel's BTF, e.g. `bpf_iter_task`.
        function: String,
        /// The map whose elements they are, by its name in the program's own load.
        map: Option<String>,
    },
}

/// Functions of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FunctionSet {
    Names(Vec<String>),
    /// `*` stands for any characters, `?` for one.
    Pattern(String),
}

impl FunctionSet {
    fn identity(&self) -> String {
        match self {
            FunctionSet::Names(names) => format!("names:{}", names.join(",")),
            FunctionSet::Pattern(pattern) => format!("pattern:{pattern}"),
        }
    }
}

/// The first of the names, and how many more there are.
fn some_of(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one] => one.clone(),
        [first, more @ ..] => format!("{first} and {} more", more.len()),
    }
}

impl Target {
    /// For people: an interface's name, a cgroup's path, the owner of a network namespace, a function.
    pub fn display(&self) -> String {
        match self {
            Target::Interface { name, .. } => name.clone(),
            Target::Cgroup { path, .. } => path.display().to_string(),
            Target::Netns { name, .. } => name.clone(),
            Target::Event(name) => name.clone(),
            Target::Function { name, offset: 0 } => name.clone(),
            Target::Function { name, offset } => format!("{name}+{offset:#x}"),
            Target::ProgramFunction { of, function, .. } => format!("{function} of EbpfProgram {of}"),
            Target::Binary { name, .. } | Target::Symbols { name, .. } => name.clone(),
            Target::Functions(FunctionSet::Pattern(pattern)) => pattern.clone(),
            Target::Functions(FunctionSet::Names(names)) => some_of(names),
            Target::Syscall(name) => name.clone(),
            Target::CpuEvent { event, cpu, .. } => format!("{event} on CPU {cpu}"),
            Target::SocketMap(name) => format!("map {name}"),
            Target::Objects { map: Some(map), .. } => format!("map {map}"),
            Target::Objects { function, .. } => function.trim_start_matches("bpf_iter_").to_owned(),
        }
    }
    /// The map of the program's own load that it is on.
    pub fn map(&self) -> Option<&str> {
        match self {
            Target::SocketMap(name) | Target::Objects { map: Some(name), .. } => Some(name),
            _ => None,
        }
    }

    /// What tells this target from all others, for good.
    fn identity(&self) -> String {
        match self {
            Target::Interface { cookie, ifindex, .. } => format!("if:{cookie}:{ifindex}"),
            Target::Cgroup { id, .. } => format!("cgroup:{id}"),
            Target::Netns { cookie, .. } => format!("netns:{cookie}"),
            Target::Event(name) => format!("event:{name}"),
            Target::Function { name, offset } => format!("func:{name}:{offset}"),
            Target::ProgramFunction { program, function, .. } => format!("prog:{program}:{function}"),
            Target::Binary { identity, offset, .. } => format!("file:{identity}:{offset}"),
            Target::Symbols { identity, offsets, .. } => format!("file:{identity}:{offsets:?}"),
            Target::Functions(set) => set.identity(),
            Target::Syscall(name) => format!("syscall:{name}"),
            Target::CpuEvent { event, every, cpu } => format!("event:{}:{}:{every:?}:{cpu}", event.kind, event.config),
            Target::SocketMap(name) => format!("map:{name}"),
            Target::Objects { function, map } => format!("iter:{function}:{}", map.as_deref().unwrap_or("")),
        }
    }
    /// The name that load-time attributes may hold on to.
    fn name(&self) -> &str {
        match self {
            Target::Event(name) | Target::Function { name, .. } | Target::Objects { function: name, .. } => name,
            _ => "",
        }
    }
}

impl Hook {
    /// What must be fixed when a function from `section` is loaded for this hook.
    pub fn load_attributes(&self, section: &str) -> LoadAttributes {
        let name = self.options.security_hook.as_deref().unwrap_or(self.target.name());
        let mut attributes = LoadAttributes::new(self.kind, self.attach_type, name, section);
        if let Target::ProgramFunction { program, function, .. } = &self.target {
            attributes.attach_to = AttachTo::ProgramFunction { program: *program, function: function.clone() };
        }
        // The kernel takes a program once on such a hook: one that changes its place is there twice for a moment.
        LoadAttributes { gate: self.gate.clone(), copy: self.options.order.canonical(), ..attributes }
    }

    /// The kernel attaches a program for this hook once in its life: of a program that traces another's function it
    /// forgets the target with the first link (and before Linux 6.8 it crashed at the second).
    pub fn attaches_once(&self) -> bool {
        matches!(self.target, Target::ProgramFunction { .. }) && self.kind != Kind::Freplace
    }

    /// The name of the link's pin: a hash of the function, the hook, the target and every option that a link update
    /// cannot change. It says what should be there; whether it lives is the kernel's to say.
    pub fn link_name(&self, function: &str) -> String {
        let Options { xdp_mode, tc_priority, netfilter, order, security_hook } = &self.options;
        let mut text = format!(
            "{function}\n{}\n{}\n{}\n{xdp_mode:?}\n{tc_priority}\n{}",
            self.kind,
            self.attach_type,
            self.target.identity(),
            self.gate.as_deref().unwrap_or("")
        );
        // Nothing is added for the other kinds: an agent of another version knows the links that are there.
        if let Some(Netfilter { family, hook, priority, defragment }) = netfilter {
            text.push_str(&format!("\n{family:?} {hook:?} {priority} {defragment}"));
        }
        text.extend(order.canonical().map(|order| format!("\n{order}")));
        text.extend(security_hook.as_ref().map(|hook| format!("\n{hook}")));
        hex_prefix(text.as_bytes())
    }
}

/// The name of a program's pin: its function, and a hash of what the kernel fixes at load.
pub fn program_pin(function: &str, attributes: &LoadAttributes) -> String {
    format!("{function}+{}", &hex_prefix(attributes.canonical().as_bytes())[..10])
}

fn hex_prefix(data: &[u8]) -> String {
    Sha256::digest(data).iter().take(10).map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn xdp(cookie: u64, name: &str) -> Hook {
        let netns = PathBuf::from("/proc/1/ns/net");
        let target = Target::Interface { netns, cookie, ifindex: 3, name: name.into() };
        Hook { kind: Kind::Xdp, attach_type: 37, target, options: Options::default(), gate: None }
    }

    #[test]
    fn a_renamed_device_keeps_its_link_and_a_reused_index_does_not() {
        assert_eq!(xdp(1, "eth0").link_name("f"), xdp(1, "lan0").link_name("f"));
        assert_ne!(xdp(1, "eth0").link_name("f"), xdp(2, "eth0").link_name("f"));
        assert_ne!(xdp(1, "eth0").link_name("f"), xdp(1, "eth0").link_name("g"));
        let mut generic = xdp(1, "eth0");
        generic.options.xdp_mode = XdpMode::Generic;
        assert_ne!(generic.link_name("f"), xdp(1, "eth0").link_name("f"));
    }

    #[test]
    fn names_stay_over_versions() {
        assert_eq!(xdp(1, "eth0").link_name("f"), "691e0f193d11508ed5fd");
    }

    #[test]
    fn what_a_netfilter_link_cannot_change_is_in_its_name() {
        let (family, hook) = (Family::Ipv4, NetfilterHook::LocalIn);
        let place = Netfilter { family, hook, priority: 10, defragment: false };
        let name = |place: Netfilter| {
            let target = Target::Netns { path: "/n".into(), cookie: 1, name: "the node".into() };
            let options = Options { netfilter: Some(place), ..Options::default() };
            Hook { kind: Kind::Netfilter, attach_type: 45, target, options, gate: None }.link_name("f")
        };
        for other in [
            Netfilter { family: Family::Ipv6, ..place },
            Netfilter { hook: NetfilterHook::Forward, ..place },
            Netfilter { priority: 12, ..place },
            Netfilter { defragment: true, ..place },
        ] {
            assert_ne!(name(other), name(place));
        }
    }
}
