use std::path::Path;

use skep_kernel::hook::{Family, Netfilter, NetfilterHook};
use skep_object::kind::AttachTo;

use super::*;
use crate::view::ContainerView;
use serde_json::{Value, json};

struct NoBinaries;

impl Binaries for NoBinaries {
    fn open(&self, _: &Path, binary: &str) -> Result<Opened, NotOpened> {
        Err(NotOpened::NoFile(format!("no {binary}")))
    }
    fn symbol(&self, _: &Opened, symbol: &str) -> Result<u64, String> {
        Err(format!("no symbol {symbol}"))
    }
    fn functions(&self, _: &Opened, pattern: &str) -> Result<Vec<u64>, String> {
        Err(format!("no function {pattern}"))
    }
}

/// Containers that have every binary (process 10, and 11 with the same files), none (20), or that ended (30).
struct Some10;

impl Binaries for Some10 {
    fn open(&self, root: &Path, binary: &str) -> Result<Opened, NotOpened> {
        match root.to_str() {
            Some("/proc/10/root" | "/proc/11/root") => {
                let file = Arc::new(std::fs::File::open("/dev/null").unwrap().into());
                Ok(Opened { file, identity: "the file".into() })
            }
            Some("/proc/30/root") => Err(NotOpened::NoRoot),
            _ => Err(NotOpened::NoFile(format!("no file {binary}"))),
        }
    }
    fn symbol(&self, _: &Opened, symbol: &str) -> Result<u64, String> {
        if symbol == "main" { Ok(8) } else { Err(format!("no symbol {symbol}")) }
    }
    fn functions(&self, _: &Opened, _: &str) -> Result<Vec<u64>, String> {
        Ok(vec![24, 8, 16, 8])
    }
}

fn netns(cookie: u64) -> Netns {
    Netns { path: format!("/proc/{cookie}/ns/net").into(), cookie, interfaces: vec![] }
}

fn pod(namespace: &str, name: &str, app: &str, cookie: u64) -> PodView {
    PodView {
        namespace: namespace.into(),
        name: name.into(),
        labels: [("app".to_owned(), app.to_owned())].into(),
        netns: Some(netns(cookie)),
        ..PodView::default()
    }
}

/// A node with four pods: one that is selected below, and three that are not.
fn node() -> NodeView {
    let on_host = PodView { host_network: true, ..pod("default", "web-host", "web", 1) };
    let pods = vec![
        pod("default", "web-1", "web", 2),
        pod("default", "db-1", "db", 3),
        pod("other", "web-1", "web", 4),
        on_host,
    ];
    NodeView { host: Some(netns(1)), pods, pods_known: true, ..NodeView::default() }
}

fn found(attach: Value, view: &NodeView) -> Targets {
    let spec = json!({"image": {"reference": "x"}, "programs": [{"name": "f", "attach": [attach]}]});
    targets(
        &serde_json::from_value(spec).unwrap(),
        "default",
        view,
        Lookup { binaries: &NoBinaries, functions: &Guard },
    )
}

fn names(targets: &Targets) -> Vec<String> {
    targets.hooks.iter().map(|h| h.hook.target.display()).collect()
}

fn web() -> Value {
    json!({"pods": {"selector": {"matchLabels": {"app": "web"}}}})
}

#[test]
fn the_node_or_the_selected_pods_of_the_own_namespace() {
    let host = found(json!({"skLookup": {"networkNamespaces": {"host": true}}}), &node());
    assert_eq!(names(&host), ["the node"]);
    assert_eq!(host.hooks[0].hook.attach_type, types::SK_LOOKUP);
    let pods = found(json!({"skLookup": {"networkNamespaces": web()}}), &node());
    assert_eq!(names(&pods), ["pod default/web-1"]);
    assert_eq!(pods.entries, [("f".to_owned(), "skLookup".to_owned())]);
    assert!(host.missing.is_empty() && pods.missing.is_empty());
}

/// The API refuses these; a hole in that refusal must not widen.
#[test]
fn a_selector_of_nothing_selects_nothing() {
    for nothing in [json!({}), json!({"host": false}), json!({"pods": {"selector": {}}})] {
        let found = found(json!({"skLookup": {"networkNamespaces": nothing}}), &node());
        assert!(found.hooks.is_empty() && found.missing.is_empty(), "{found:?}");
    }
}

#[test]
fn what_is_not_known_is_waited_for_and_what_cannot_be_seen_is_said() {
    let blind = NodeView { host: None, pods: vec![], pods_known: false, ..node() };
    let pods = found(json!({"skLookup": {"networkNamespaces": web()}}), &blind);
    assert!(pods.waits_for_pods && pods.hooks.is_empty() && pods.missing.is_empty());
    let host = found(json!({"skLookup": {"networkNamespaces": {"host": true}}}), &blind);
    assert_eq!(host.missing[0].reason, Reason::TargetNotFound);
    // A pod of which no process runs has no target yet.
    let mut starting = node();
    starting.pods[0].netns = None;
    assert!(found(json!({"skLookup": {"networkNamespaces": web()}}), &starting).hooks.is_empty());
}

#[test]
fn netfilter_says_where_in_the_path_of_packets() {
    let entry = json!({"netfilter": {
        "networkNamespaces": {"host": true}, "family": "Ipv6", "hook": "PostRouting", "priority": -199, "defragment": true,
    }});
    let found = found(entry, &node());
    assert_eq!(found.entries, [("f".to_owned(), "netfilter Ipv6 PostRouting".to_owned())]);
    let hook = &found.hooks[0].hook;
    assert_eq!(hook.attach_type, types::NETFILTER);
    let (family, at) = (Family::Ipv6, NetfilterHook::PostRouting);
    assert_eq!(hook.options.netfilter, Some(Netfilter { family, hook: at, priority: -199, defragment: true }));
}

fn probed(symbol: &str, pids: &[u32]) -> Targets {
    in_containers(
        json!({"uprobe": {"binary": "/bin/app", "symbol": symbol, "pods": {"selector": {"matchLabels": {"app": "web"}}}}}),
        pids,
    )
}

/// In pods of which each has one container, with that process.
fn in_containers(attach: Value, pids: &[u32]) -> Targets {
    let container =
        |pid: u32| ContainerView { name: "app".into(), cgroup: Cgroup { path: "/c".into(), id: pid.into() }, pid };
    let pods = pids.iter().map(|pid| PodView {
        containers: vec![container(*pid)],
        ..pod("default", &format!("web-{pid}"), "web", u64::from(*pid))
    });
    let view = NodeView { pods: pods.collect(), ..node() };
    let spec = json!({"image": {"reference": "x"}, "programs": [{"name": "f", "attach": [attach]}]});
    targets(&serde_json::from_value(spec).unwrap(), "default", &view, Lookup { binaries: &Some10, functions: &Guard })
}

#[test]
fn a_binary_that_no_selected_container_has_is_missing() {
    let some = probed("main", &[10, 11, 20, 30]);
    assert_eq!((some.hooks.len(), some.missing.len()), (1, 0));
    assert!(matches!(&some.hooks[0].hook.target, Target::Binary { offset: 8, .. }));
    assert!(some.hooks[0].file.is_some());
    let none = probed("main", &[20, 21, 22, 23, 30]);
    assert!(none.hooks.is_empty());
    assert_eq!((none.missing.len(), none.missing[0].target.as_str()), (1, "/bin/app:main"));
    let text = "no file /bin/app in pod default/web-20, pod default/web-21, pod default/web-22 and 1 more";
    assert_eq!(none.missing[0].message, text);
    assert!(probed("main", &[30]).missing.is_empty(), "a container that ended has nothing to miss");
    assert!(probed("main", &[]).missing.is_empty());
}

#[test]
fn a_symbol_that_is_missing_is_said_once_for_a_file_and_without_process_ids() {
    let found = probed("mian", &[10, 11]);
    assert_eq!(found.missing.len(), 1);
    assert_eq!(found.missing[0].message, "/bin/app: no symbol mian in pod default/web-10");
}

#[test]
fn many_symbols_are_one_hook_for_a_file() {
    let entry = |kind: &str, symbols: Value| {
        let mut entry = json!({});
        entry[kind] =
            json!({"binary": "/bin/app", "symbols": symbols, "pods": {"selector": {"matchLabels": {"app": "web"}}}});
        in_containers(entry, &[10, 11])
    };
    let pattern = entry("uprobeMulti", json!({"pattern": "ma*"}));
    assert_eq!(pattern.hooks.len(), 1, "containers of one image share the file");
    let hook = &pattern.hooks[0].hook;
    assert_eq!((hook.attach_type, hook.gate.is_some()), (types::TRACE_UPROBE_MULTI, true));
    // In order, and a place with two names once.
    assert!(matches!(&hook.target, Target::Symbols { offsets, .. } if *offsets == [8, 16, 24]));
    assert_eq!(hook.target.display(), "/bin/app:ma*");
    let named = entry("uretprobeMulti", json!({"names": ["main", "mian"]}));
    assert!(named.hooks.is_empty(), "all that are named, or none");
    assert_eq!(named.missing[0].message, "/bin/app: no symbol mian in pod default/web-10");
    assert_eq!(named.missing[0].target, "/bin/app:main and 1 more");
    let both = json!({"uprobeMulti": {"binary": "/bin/app", "symbols": {"names": ["main"]}, "session": true}});
    let view = NodeView { root: Some("/proc/10/root".into()), ..node() };
    let spec = json!({"image": {"reference": "x"}, "programs": [{"name": "f", "attach": [both]}]});
    let lookup = Lookup { binaries: &Some10, functions: &Guard };
    let session = targets(&serde_json::from_value(spec).unwrap(), "default", &view, lookup);
    assert_eq!(session.hooks[0].hook.attach_type, types::TRACE_UPROBE_SESSION);
}

#[test]
fn a_counter_is_on_each_cpu() {
    let view = NodeView { cpus: vec![0, 2], ..node() };
    let all = found(json!({"perfEvent": {"event": "CpuClock", "frequency": 99}}), &view);
    assert_eq!(names(&all), ["CpuClock on CPU 0", "CpuClock on CPU 2"]);
    assert_eq!(all.entries, [("f".to_owned(), "perfEvent CpuClock".to_owned())]);
    assert!(all.hooks.iter().all(|found| found.hook.gate.is_none()));
    let often = found(json!({"perfEvent": {"event": "CpuClock", "period": 99}}), &view);
    let name = |targets: &Targets| targets.hooks[0].hook.link_name("f");
    assert_ne!(name(&all), name(&often), "how often is a matter of the link");
    let of_pods = json!({"perfEvent": {"event": "CpuClock", "frequency": 99, "pods": {"selector": {"matchLabels": {"app": "web"}}}}});
    assert!(found(of_pods.clone(), &view).hooks.iter().all(|found| found.hook.gate.is_some()));
    assert!(found(of_pods, &NodeView { pods_known: false, ..view }).waits_for_pods);
}

#[test]
fn kernel_functions_and_calls_are_found_when_they_are_attached() {
    let set = found(json!({"kprobeMulti": {"functions": {"names": ["a", "b", "c"]}, "session": true}}), &node());
    assert_eq!(names(&set), ["a and 2 more"]);
    assert_eq!(set.hooks[0].hook.attach_type, types::TRACE_KPROBE_SESSION);
    let pattern = found(json!({"kretprobeMulti": {"functions": {"pattern": "tcp_*"}}}), &node());
    assert_eq!((names(&pattern), pattern.hooks[0].hook.attach_type), (vec!["tcp_*".into()], types::TRACE_KPROBE_MULTI));
    assert_eq!(names(&found(json!({"ksyscall": {"syscall": "openat"}}), &node())), ["openat"]);
}

/// Two hooks on one cgroup are two links, and two kernel programs.
#[test]
fn security_hooks_of_a_cgroup_are_told_apart() {
    let on = |hook: &str| {
        let view = NodeView { cgroup_root: Some("/".into()), ..node() };
        let found = found(json!({"lsmCgroup": {"hook": hook, "cgroups": {"path": "/"}}}), &view);
        assert_eq!(found.entries, [("f".to_owned(), format!("lsmCgroup {hook}"))]);
        found.hooks[0].hook.clone()
    };
    let (bind, connect) = (on("socket_bind"), on("socket_connect"));
    assert_ne!(bind.link_name("f"), connect.link_name("f"));
    let to = |hook: &Hook| hook.load_attributes("lsm_cgroup").attach_to;
    assert_eq!(to(&bind), AttachTo::Function("bpf_lsm_socket_bind".into()));
    assert_ne!(to(&bind), to(&connect));
}

#[test]
fn a_probe_of_the_nodes_own_files_needs_the_nodes_root() {
    let entry = json!({"uprobe": {"binary": "/bin/app", "symbol": "main"}});
    assert_eq!(found(entry.clone(), &node()).missing[0].message, "the node's root cannot be looked into");
    let seen = NodeView { root: Some("/proc/1/root".into()), ..node() };
    assert_eq!(found(entry, &seen).missing[0].message, "no /bin/app");
}

/// The EbpfProgram `guard` of the namespace `default` has the function `check` in two programs.
struct Guard;

impl Functions for Guard {
    fn programs_with(&self, namespace: &str, ebpf_program: &str, function: &str) -> Result<Vec<u32>, String> {
        match (namespace, ebpf_program, function) {
            ("default", "guard", "check") => Ok(vec![7, 9]),
            _ => Err("nobody has it".into()),
        }
    }
}

#[test]
fn a_function_of_another_program_is_a_target_in_each_of_its_programs() {
    for attach in [
        json!({"fentry": {"ebpfProgram": "guard", "function": "check"}}),
        json!({"fexit": {"ebpfProgram": "guard", "function": "check"}}),
        json!({"freplace": {"ebpfProgram": "guard", "function": "check"}}),
    ] {
        let found = found(attach, &node());
        assert_eq!(names(&found), ["check of EbpfProgram guard", "check of EbpfProgram guard"]);
        let attributes = |at: usize| found.hooks[at].hook.load_attributes("fentry/check");
        assert_ne!(attributes(0), attributes(1), "each needs a program of its own");
        assert_ne!(found.hooks[0].hook.link_name("f"), found.hooks[1].hook.link_name("f"));
        assert!(found.follows.contains("f"));
    }
    let none = found(json!({"freplace": {"ebpfProgram": "guard", "function": "chekc"}}), &node());
    assert_eq!(none.missing[0].message, "chekc of EbpfProgram guard not found: nobody has it");
    assert!(found(json!({"fentry": {"function": "tcp_connect"}}), &node()).follows.is_empty());
}

#[test]
fn a_node_without_cgroup_v2_says_so() {
    let entry = json!({"cgroupSkb": {"cgroups": {"path": "/a"}, "direction": "Egress"}});
    let found = found(entry, &NodeView { cgroup_root: None, ..node() });
    assert!(found.hooks.is_empty());
    assert_eq!(found.missing[0].reason, skep_crds::Reason::KernelUnsupported);
    assert_eq!(found.missing[0].message, "this node has no cgroup v2 hierarchy mounted");
}
