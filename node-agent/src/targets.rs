//! From `attach` entries to hooks: selectors applied to a view of the node. Pure, but for what a [`Lookup`] looks into.

mod lookup;
mod options;
mod probes;

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use skep_crds::attach::Attach;
use skep_crds::cgroup::{Cgroups, OnCgroups};
use skep_crds::netns::NetworkNamespaces;
use skep_crds::network::{Direction, Interfaces, XdpMode as CrdXdpMode};
use skep_crds::selector::PodSelector;
use skep_crds::tracing::{PerfEvent, TracedFunction};
use skep_crds::{EbpfProgramSpec, Reason};
use skep_kernel::hook::{Hook, Options, Target, XdpMode};
use skep_object::kind::{Kind, attach as types};
use wildmatch::WildMatch;

pub use self::lookup::{Binaries, Functions, Lookup, NotOpened, Opened};
use self::options::{
    cpu_event, every, function_set, netfilter, netkit_type, order, security_hook, sk_skb_type, sock_addr_type,
    sock_type, sockopt_type, tc_type,
};
use self::probes::{ManySymbols, OneSymbol};
use crate::view::{Cgroup, Netns, NodeView, PodView};

/// A function on a hook.
#[derive(Clone, Debug)]
pub struct HookOf {
    pub function: String,
    pub hook: Hook,
    /// Keeps the path of a binary's target valid.
    pub file: Option<Arc<OwnedFd>>,
    /// Index of the attach entry among all of the spec, for reports.
    pub entry: usize,
}

/// A selector that names something that is not there, or cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    pub function: String,
    pub entry: usize,
    pub target: String,
    pub reason: Reason,
    pub message: String,
    /// By its own name, on the node: not by what it is like, nor in what comes and goes.
    pub named: bool,
}

/// What a spec selects on a node.
#[derive(Clone, Debug, Default)]
pub struct Targets {
    pub hooks: Vec<HookOf>,
    pub missing: Vec<Missing>,
    /// Every attach entry in words: function and hook.
    pub entries: Vec<(String, String)>,
    /// Directories of the cgroups that are named, whether they are there or not.
    pub cgroups: BTreeSet<PathBuf>,
    /// Functions whose programs go with their targets, since they hold them: those on functions of other programs.
    pub follows: BTreeSet<String>,
    /// Some entry selects pods, and pods are not known yet.
    pub waits_for_pods: bool,
}

/// Applies a spec's selectors. Duplicate targets (two names of one interface, two containers of one image) are merged.
pub fn targets(spec: &EbpfProgramSpec, namespace: &str, view: &NodeView, lookup: Lookup<'_>) -> Targets {
    let mut found = Targets::default();
    for program in &spec.programs {
        for attach in &program.attach {
            let entry = found.entries.len();
            let mut at = Entry { function: &program.name, entry, namespace, view, found: &mut found };
            at.apply(attach, lookup);
        }
    }
    let mut seen = BTreeSet::new();
    found.hooks.retain(|h| seen.insert(h.hook.link_name(&h.function)));
    found
}

struct Entry<'a> {
    function: &'a str,
    entry: usize,
    namespace: &'a str,
    view: &'a NodeView,
    found: &'a mut Targets,
}

impl Entry<'_> {
    /// The one place that knows the shape of every attach entry.
    fn apply(&mut self, attach: &Attach, lookup: Lookup<'_>) {
        let Lookup { binaries, functions } = lookup;
        let function = |name: &str, offset: u64| Target::Function { name: name.into(), offset };
        match attach {
            Attach::Xdp(a) => {
                let xdp_mode = match a.mode.unwrap_or_default() {
                    CrdXdpMode::Auto => XdpMode::Auto,
                    CrdXdpMode::Native => XdpMode::Native,
                    CrdXdpMode::Generic => XdpMode::Generic,
                };
                self.name(Kind::Xdp, None);
                self.interfaces(Kind::Xdp, types::XDP, Options { xdp_mode, ..Options::default() }, &a.interfaces);
            }
            Attach::Tcx(a) => {
                self.name(Kind::Tcx, Some(&format!("{:?}", a.direction)));
                let options = Options { order: order(a.position.as_ref()), ..Options::default() };
                self.interfaces(Kind::Tcx, tc_type(a.direction), options, &a.interfaces);
            }
            Attach::Tc(a) => {
                self.name(Kind::Tc, Some(&format!("{:?}", a.direction)));
                let options = Options { tc_priority: a.priority.unwrap_or_default(), ..Options::default() };
                self.interfaces(Kind::Tc, tc_type(a.direction), options, &a.interfaces);
            }
            Attach::Netkit(a) => {
                self.name(Kind::Netkit, Some(&format!("{:?}", a.sender)));
                let options = Options { order: order(a.position.as_ref()), ..Options::default() };
                self.interfaces(Kind::Netkit, netkit_type(a.sender), options, &a.interfaces);
            }
            Attach::CgroupSkb(a) => {
                self.name(Kind::CgroupSkb, Some(&format!("{:?}", a.direction)));
                let attach_type = match a.direction {
                    Direction::Ingress => types::CGROUP_INET_INGRESS,
                    Direction::Egress => types::CGROUP_INET_EGRESS,
                };
                self.cgroups(Kind::CgroupSkb, attach_type, Options::default(), &a.cgroups);
            }
            Attach::CgroupSockAddr(a) => {
                self.name(Kind::CgroupSockAddr, Some(&format!("{:?}", a.hook)));
                self.cgroups(Kind::CgroupSockAddr, sock_addr_type(a.hook), Options::default(), &a.cgroups);
            }
            Attach::CgroupSock(a) => {
                self.name(Kind::CgroupSock, Some(&format!("{:?}", a.hook)));
                self.cgroups(Kind::CgroupSock, sock_type(a.hook), Options::default(), &a.cgroups);
            }
            Attach::CgroupSockopt(a) => {
                self.name(Kind::CgroupSockopt, Some(&format!("{:?}", a.hook)));
                self.cgroups(Kind::CgroupSockopt, sockopt_type(a.hook), Options::default(), &a.cgroups);
            }
            Attach::CgroupSysctl(a) => self.on_cgroups(Kind::CgroupSysctl, a),
            Attach::CgroupDevice(a) => self.on_cgroups(Kind::CgroupDevice, a),
            Attach::SockOps(a) => self.on_cgroups(Kind::SockOps, a),
            Attach::LsmCgroup(a) => {
                self.name(Kind::LsmCgroup, Some(&a.hook));
                let options = Options { security_hook: Some(security_hook(&a.hook)), ..Options::default() };
                self.cgroups(Kind::LsmCgroup, types::LSM_CGROUP, options, &a.cgroups);
            }
            Attach::SkLookup(a) => {
                self.name(Kind::SkLookup, None);
                self.network_namespaces(Kind::SkLookup, Options::default(), &a.network_namespaces);
            }
            Attach::FlowDissector(a) => {
                self.name(Kind::FlowDissector, None);
                self.network_namespaces(Kind::FlowDissector, Options::default(), &a.network_namespaces);
            }
            Attach::SkMsg(a) => self.fixed(Kind::SkMsg, Target::SocketMap(a.map.clone())),
            Attach::SkSkb(a) => {
                self.name(Kind::SkSkb, Some(&format!("{:?}", a.hook)));
                let target = Target::SocketMap(a.map.clone());
                self.hook(Kind::SkSkb, sk_skb_type(a.hook), Options::default(), None, target);
            }
            Attach::Iter(a) => {
                let target = Target::Objects { function: format!("bpf_iter_{}", a.target), map: a.map.clone() };
                self.name(Kind::Iter, Some(&a.target));
                self.hook(Kind::Iter, types::TRACE_ITER, Options::default(), None, target);
            }
            Attach::Netfilter(a) => {
                self.name(Kind::Netfilter, Some(&format!("{:?} {:?}", a.family, a.hook)));
                let options = Options { netfilter: Some(netfilter(a)), ..Options::default() };
                self.network_namespaces(Kind::Netfilter, options, &a.network_namespaces);
            }
            Attach::Tracepoint(a) => self.fixed(Kind::Tracepoint, Target::Event(format!("{}/{}", a.category, a.name))),
            Attach::RawTracepoint(a) => self.fixed(Kind::RawTracepoint, Target::Event(a.name.clone())),
            Attach::BtfTracepoint(a) => self.fixed(Kind::BtfTracepoint, Target::Event(a.name.clone())),
            Attach::Kprobe(a) => self.fixed(Kind::Kprobe, function(&a.function, a.offset.unwrap_or_default() as u64)),
            Attach::Kretprobe(a) => self.fixed(Kind::Kretprobe, function(&a.function, 0)),
            Attach::Fentry(a) => self.traced(Kind::Fentry, a, functions),
            Attach::Fexit(a) => self.traced(Kind::Fexit, a, functions),
            Attach::FmodRet(a) => self.fixed(Kind::FmodRet, function(&a.function, 0)),
            Attach::Lsm(a) => self.fixed(Kind::Lsm, function(&security_hook(&a.hook), 0)),
            Attach::Freplace(a) => self.program_function(Kind::Freplace, &a.ebpf_program, &a.function, functions),
            Attach::KprobeMulti(a) => {
                let attach_type =
                    if a.session == Some(true) { types::TRACE_KPROBE_SESSION } else { types::TRACE_KPROBE_MULTI };
                self.name(Kind::KprobeMulti, None);
                let target = Target::Functions(function_set(&a.functions));
                self.hook(Kind::KprobeMulti, attach_type, Options::default(), None, target);
            }
            Attach::KretprobeMulti(a) => {
                self.fixed(Kind::KretprobeMulti, Target::Functions(function_set(&a.functions)));
            }
            Attach::Ksyscall(a) => self.fixed(Kind::Ksyscall, Target::Syscall(a.syscall.clone())),
            Attach::Kretsyscall(a) => self.fixed(Kind::Kretsyscall, Target::Syscall(a.syscall.clone())),
            Attach::PerfEvent(a) => self.counters(a),
            Attach::Uprobe(a) => self.binary(Kind::Uprobe, &OneSymbol(a), binaries),
            Attach::Uretprobe(a) => self.binary(Kind::Uretprobe, &OneSymbol(a), binaries),
            Attach::UprobeMulti(a) => self.binary(Kind::UprobeMulti, &ManySymbols::entries(a), binaries),
            Attach::UretprobeMulti(a) => self.binary(Kind::UretprobeMulti, &ManySymbols::returns(a), binaries),
        }
    }

    fn name(&mut self, kind: Kind, detail: Option<&str>) {
        let hook = detail.map_or_else(|| kind.to_string(), |d| format!("{kind} {d}"));
        self.found.entries.push((self.function.to_owned(), hook));
    }

    fn hook(&mut self, kind: Kind, attach_type: u32, options: Options, gate: Option<String>, target: Target) {
        let hook = Hook { kind, attach_type, target, options, gate };
        let (function, entry) = (self.function.to_owned(), self.entry);
        self.found.hooks.push(HookOf { function, hook, file: None, entry });
    }

    fn missing(&mut self, target: impl Into<String>, message: impl Into<String>) {
        self.found.missing.push(Missing {
            function: self.function.to_owned(),
            entry: self.entry,
            target: target.into(),
            reason: Reason::TargetNotFound,
            message: message.into(),
            named: false,
        });
    }

    /// The same of what the spec names, and may name wrongly.
    fn misnamed(&mut self, target: impl Into<String>, message: impl Into<String>) {
        self.missing(target, message);
        self.found.missing.iter_mut().next_back().into_iter().for_each(|missing| missing.named = true);
    }

    fn fixed(&mut self, kind: Kind, target: Target) {
        self.name(kind, None);
        self.hook(kind, kind.row().attach_type, Options::default(), None, target);
    }

    /// On each CPU.
    fn counters(&mut self, a: &PerfEvent) {
        let (event, every) = (cpu_event(a.event), every(a));
        self.name(Kind::PerfEvent, Some(event.name));
        if a.pods.is_some() && !self.view.pods_known {
            self.found.waits_for_pods = true;
        }
        for cpu in &self.view.cpus {
            let gate = a.pods.as_ref().map(gate_name);
            let target = Target::CpuEvent { event, every, cpu: *cpu };
            self.hook(Kind::PerfEvent, types::PERF_EVENT, Options::default(), gate, target);
        }
    }

    fn traced(&mut self, kind: Kind, traced: &TracedFunction, functions: &dyn Functions) {
        match &traced.ebpf_program {
            None => self.fixed(kind, Target::Function { name: traced.function.clone(), offset: 0 }),
            Some(of) => self.program_function(kind, of, &traced.function, functions),
        }
    }

    /// In every loaded program that has it: while its EbpfProgram is updated, in the old revision and in the new.
    fn program_function(&mut self, kind: Kind, of: &str, function: &str, functions: &dyn Functions) {
        self.name(kind, None);
        self.found.follows.insert(self.function.to_owned());
        match functions.programs_with(self.namespace, of, function) {
            Err(why) => {
                let target = format!("{function} of EbpfProgram {of}");
                self.missing(target.clone(), format!("{target} not found: {why}"));
            }
            Ok(programs) => {
                for program in programs {
                    let target = Target::ProgramFunction { program, of: of.into(), function: function.into() };
                    self.hook(kind, kind.row().attach_type, Options::default(), None, target);
                }
            }
        }
    }

    fn interfaces(&mut self, kind: Kind, attach_type: u32, options: Options, selector: &Interfaces) {
        let spaces: Vec<Netns> = match &selector.pods {
            None => match &self.view.host {
                Some(host) => vec![host.clone()],
                None => return self.missing("the node's network namespace", "it cannot be looked into"),
            },
            Some(pods) => {
                self.pods(pods).into_iter().filter(|p| !p.host_network).filter_map(|p| p.netns.clone()).collect()
            }
        };
        for space in spaces {
            for name in selector.names.iter().flatten() {
                // In a pod, as with a pattern, a name that is not there selects nothing; on the node it is a mistake.
                if selector.pods.is_none() && !space.interfaces.iter().any(|i| i.name == *name) {
                    self.misnamed(format!("interface {name}"), format!("this node has no interface {name}"));
                }
            }
            for interface in space.interfaces.iter().filter(|i| selects(selector, &i.name, i.primary)) {
                let target = Target::Interface {
                    netns: space.path.clone(),
                    cookie: space.cookie,
                    ifindex: interface.index,
                    name: interface.name.clone(),
                };
                self.hook(kind, attach_type, options.clone(), None, target);
            }
        }
    }

    fn network_namespaces(&mut self, kind: Kind, options: Options, selector: &NetworkNamespaces) {
        let mut spaces: Vec<(Netns, String)> = Vec::new();
        if selector.host == Some(true) {
            match &self.view.host {
                Some(host) => spaces.push((host.clone(), "the node".into())),
                None => return self.missing("the node's network namespace", "it cannot be looked into"),
            }
        }
        if let Some(pods) = &selector.pods {
            let own = self.pods(pods).into_iter().filter(|p| !p.host_network);
            let named = |pod: PodView| Some((pod.netns?, format!("pod {}/{}", pod.namespace, pod.name)));
            spaces.extend(own.filter_map(named));
        }
        for (Netns { path, cookie, .. }, name) in spaces {
            self.hook(kind, kind.row().attach_type, options.clone(), None, Target::Netns { path, cookie, name });
        }
    }

    fn on_cgroups(&mut self, kind: Kind, a: &OnCgroups) {
        self.name(kind, None);
        self.cgroups(kind, kind.row().attach_type, Options::default(), &a.cgroups);
    }

    fn cgroups(&mut self, kind: Kind, attach_type: u32, options: Options, cgroups: &Cgroups) {
        let selected: Vec<Cgroup> = match cgroups {
            Cgroups::Path(path) => {
                let Some(root) = &self.view.cgroup_root else {
                    self.found.missing.push(Missing {
                        function: self.function.to_owned(),
                        entry: self.entry,
                        target: format!("cgroup {}", path.0),
                        reason: Reason::KernelUnsupported,
                        message: "this node has no cgroup v2 hierarchy mounted".into(),
                        named: false,
                    });
                    return;
                };
                let dir = root.join(path.0.trim_start_matches('/'));
                self.found.cgroups.insert(dir.clone());
                match crate::discover::cgroup(&dir) {
                    Some(cgroup) => vec![cgroup],
                    None => {
                        return self.misnamed(
                            format!("cgroup {}", path.0),
                            format!("no directory {} below {}", path.0, root.display()),
                        );
                    }
                }
            }
            Cgroups::Pods(pods) => self.pod_cgroups(pods),
        };
        for Cgroup { path, id } in selected {
            self.hook(kind, attach_type, options.clone(), None, Target::Cgroup { path, id });
        }
    }

    /// The pod's own cgroup, or those of the containers that are named.
    fn pod_cgroups(&mut self, pods: &PodSelector) -> Vec<Cgroup> {
        let mut selected = Vec::new();
        for pod in self.pods(pods) {
            match &pods.containers {
                None => selected.extend(pod.cgroup.clone()),
                Some(names) => {
                    selected
                        .extend(pod.containers.iter().filter(|c| names.contains(&c.name)).map(|c| c.cgroup.clone()));
                }
            }
        }
        selected
    }

    fn pods(&mut self, selector: &PodSelector) -> Vec<PodView> {
        if !self.view.pods_known {
            self.found.waits_for_pods = true;
        }
        let own = self.view.pods.iter().filter(|p| p.namespace == self.namespace);
        own.filter(|p| selector.selector.matches(&p.labels)).cloned().collect()
    }
}

/// A gate lets a probe count for the processes of selected containers only: containers of one image share the file.
pub fn gate_name(pods: &PodSelector) -> String {
    let text = serde_json::to_string(pods).unwrap_or_default();
    uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, text.as_bytes()).simple().to_string()[..12].to_owned()
}

/// The cgroups behind every gate of a spec.
pub fn gates(spec: &EbpfProgramSpec, namespace: &str, view: &NodeView) -> std::collections::BTreeMap<String, Vec<u64>> {
    let probes = spec.programs.iter().flat_map(|p| &p.attach).filter_map(|a| match a {
        Attach::Uprobe(probe) | Attach::Uretprobe(probe) => probe.pods.as_ref(),
        Attach::UprobeMulti(probe) => probe.pods.as_ref(),
        Attach::UretprobeMulti(probe) => probe.pods.as_ref(),
        Attach::PerfEvent(event) => event.pods.as_ref(),
        _ => None,
    });
    probes
        .map(|pods| {
            let own = view.pods.iter().filter(|p| p.namespace == namespace && pods.selector.matches(&p.labels));
            let wanted = |name: &String| pods.containers.as_ref().is_none_or(|names| names.contains(name));
            let ids = own.flat_map(|p| &p.containers).filter(|c| wanted(&c.name)).map(|c| c.cgroup.id).collect();
            (gate_name(pods), ids)
        })
        .collect()
}

fn selects(selector: &Interfaces, name: &str, primary: bool) -> bool {
    let matches = |patterns: &Option<Vec<String>>| patterns.iter().flatten().any(|p| WildMatch::new(p).matches(name));
    let named = selector.names.iter().flatten().any(|n| n == name);
    let wanted = named || matches(&selector.matching) || selector.primary == Some(true) && primary;
    wanted && !matches(&selector.exclude)
}

#[cfg(test)]
mod tests;
