use super::*;
use serde_json::{Value, json};

struct NoBinaries;

impl Binaries for NoBinaries {
    fn locate(&self, _: &Path, binary: &str) -> Result<Located, String> {
        Err(format!("no {binary}"))
    }
    fn symbol(&self, _: &Path, symbol: &str) -> Result<u64, String> {
        Err(format!("no {symbol}"))
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
    targets(&serde_json::from_value(spec).unwrap(), "default", view, &NoBinaries)
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
