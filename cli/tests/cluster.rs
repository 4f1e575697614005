//! The plugin against an API server and an agent over TLS: the way to a node, and every refusal on it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fake;

use fake::{Cluster, MINTED, USER_TOKEN, list, refusal};
use serde_json::{Value, json};

const PROGRAMS: &str = "/apis/skep.dev/v1alpha1/namespaces/net/ebpfprograms";
const NODES: &str = "/apis/skep.dev/v1alpha1/ebpfnodes";
const SYSTEM: &str = "/api/v1/namespaces/skep-system";

fn program() -> Value {
    json!({
        "apiVersion": "skep.dev/v1alpha1", "kind": "EbpfProgram",
        "metadata": {"name": "flows", "namespace": "net", "uid": "u-1", "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"image": {"reference": "r.example/flows:v1"},
                 "programs": [{"name": "count_rx", "attach": [{"xdp": {"interfaces": {"primary": true}}}]}]},
        "status": {"observedGeneration": 1, "summary": {"ready": "0/1", "reason": "HookBusy"}, "revision": "7c9d5f0123"},
    })
}

fn node(program: Value) -> Value {
    json!({"apiVersion": "skep.dev/v1alpha1", "kind": "EbpfNode", "metadata": {"name": "node-1"}, "spec": {},
           "status": {"programs": [program]}})
}

/// With the program, degraded on node-1.
async fn start() -> Cluster {
    let cluster = Cluster::start("node-1").await;
    let unreadable = json!({"apiVersion": "skep.dev/v1alpha1", "kind": "EbpfProgram",
                            "metadata": {"name": "odd", "namespace": "net"}, "spec": {"programs": 7}});
    let programs = list("skep.dev/v1alpha1", "EbpfProgramList", vec![program(), unreadable]);
    cluster.api.put("GET", PROGRAMS, 200, programs);
    cluster.api.put("GET", &format!("{PROGRAMS}/flows"), 200, program());
    let degraded = json!({"namespace": "net", "name": "flows", "revision": "7c9d5f0123", "state": "Degraded", "reason": "HookBusy"});
    cluster.api.put("GET", NODES, 200, list("skep.dev/v1alpha1", "EbpfNodeList", vec![node(degraded)]));
    let event = json!({"metadata": {"name": "e"}, "involvedObject": {}, "type": "Warning", "reason": "HookBusy",
                       "message": "held by another", "eventTime": "2026-01-01T00:00:00.000000Z"});
    cluster.api.put("GET", "/api/v1/namespaces/net/events", 200, list("v1", "EventList", vec![event]));
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_and_maps_of_a_cluster() {
    let cluster = start().await;
    let table = cluster.out(&["get"]);
    let rows: Vec<Vec<&str>> = table.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(rows[1][..4], ["flows", "0/1", "HookBusy", "7c9d5f0123"]);
    assert_eq!(rows[2][..3], ["odd", "-", "ObjectUnreadable"]);
    assert!(cluster.out(&["get", "flows"]).contains("  node-1   Degraded   HookBusy"));

    // Which target fails only the agent knows.
    let page = cluster.out(&["why", "flows"]);
    assert!(page.contains("  node-1   count_rx   xdp    eth6     HookBusy   held\n"), "{page}");
    assert!(page.contains("held by another"), "{page}");

    let maps = cluster.out(&["maps", "ls", "flows"]);
    assert!(maps.starts_with("NODE     PROGRAM   MAP"), "{maps}");
    assert!(maps.contains("\nnode-1   flows     counts   hash"), "{maps}");
    let all = cluster.out(&["maps", "ls", "-A"]);
    assert!(all.starts_with("NAMESPACE   NODE     PROGRAM   MAP"), "{all}");
    let dump = cluster.out(&["maps", "dump", "flows", "counts"]);
    assert!(dump.starts_with("NODE     KEY      VALUE\nnode-1   0        0\nnode-1   1        2\n"), "{}", &dump[..99]);
    assert_eq!(dump.lines().count(), 1 + (1 << 19));
    let one = cluster.out(&["maps", "dump", "flows", "counts", "--node", "node-1"]);
    assert!(one.starts_with("KEY      VALUE\n0        0\n"), "{}", &one[..99]);

    let seen = cluster.agent.seen.lock().unwrap().clone();
    assert!(seen.len() >= 4 && seen.iter().all(|sent| *sent == format!("Bearer {MINTED}")), "{seen:?}");
    assert!(!seen.iter().any(|sent| sent.contains(USER_TOKEN)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_nodes_can_do_is_told_of_the_fleet_and_for_a_program() {
    let cluster = start().await;
    let mut able = node(json!({"namespace": "net", "name": "flows"}));
    able["status"]["features"] = json!({"btf": true, "jit": true, "bpffs": true, "cgroupV2": true, "programKinds": {
        "xdp": {"supported": false, "reason": "it is switched off"}, "tcx": {"supported": true}, "tc": {"supported": false, "reason": "no"},
    }});
    cluster.api.put("GET", NODES, 200, list("skep.dev/v1alpha1", "EbpfNodeList", vec![able]));
    let all = cluster.out(&["features"]);
    assert!(all.contains("\nxdp              0/1     node-1   it is switched off\n"), "{all}");
    assert!(
        all.contains("\nlsm              0/1     node-1   the node's agent does not know this kind; upgrade it\n"),
        "{all}"
    );

    let of_program = cluster.out(&["features", "--for", "flows"]);
    assert!(of_program.ends_with("no     count_rx   xdp     it is switched off\n"), "{of_program}");
    let (code, text) = cluster.fails(&["features", "--node", "node-9"]);
    assert_eq!((code, text.contains("no EbpfNode is called that")), (3, true), "{text}");
    let (code, text) = cluster.fails(&["features", "--for", "gone"]);
    assert_eq!((code, text.contains("EbpfProgram net/gone not found")), (3, true), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_in_a_line_is_told_so() {
    let cluster = start().await;
    let said = |args: &[&str]| {
        let output = cluster.skep_within("3s", args);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for verb in [&["maps", "dump"][..], &["hist"]] {
        let (code, text) = said(&[verb, &["flows", "busy"]].concat());
        assert_eq!(code, Some(1), "{text}");
        assert_eq!(
            text.matches("note: node-1: it waits in line to read, 3 before it\n").count(),
            1,
            "at once, and once: {text}"
        );
        assert!(text.contains("error: node node-1: reading the map took longer than the --request-timeout: it still waits in line, 2 before it\n"), "{text}");
        assert!(text.contains("--request-timeout 5m"), "{text}");
    }
    for verb in [&["maps", "watch", "flows", "busy", "--looks", "1"][..], &["graph", "flows", "busy", "--for", "1s"]] {
        let (code, text) = said(verb);
        assert_eq!(
            (code, text.contains("note: node-1: it waits in line to read, 1 before it\n")),
            (Some(0), true),
            "{text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_become_lines() {
    let cluster = start().await;
    let graph = ["graph", "flows", "counts", "--for", "3s"];
    let json: Value = serde_json::from_str(&cluster.out(&[&graph[..], &["-o", "json"]].concat())).unwrap();
    let points = json!([[0.0, 0], [1.0, 10], [2.0, 20], [3.0, 30]]);
    assert_eq!(json["series"][0], json!({"key": 1, "growth": 30, "points": points}));
    assert_eq!(json["series"][1]["points"][3], json!([3.0, 5]));
    let rates = cluster.out(&[&graph[..], &["--rate", "--per-node"]].concat());
    let row = "node-1   1     10        30       ███\n";
    assert!(rates.contains("NODE     KEY   VALUE/S   GROWTH   2 SECONDS\n") && rates.contains(row), "{rates}");
    let svg = cluster.out(&[&graph[..], &["-o", "svg"]].concat());
    let document = roxmltree::Document::parse(&svg).unwrap();
    assert_eq!(document.descendants().filter(|node| node.has_tag_name("polyline")).count(), 2);
    let (code, text) = cluster.fails(&[&graph[..], &["--field", "value.packets"]].concat());
    assert_eq!(code, 2, "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_refusal_says_what_to_do() {
    let cluster = start().await;
    let forbidden = |what: &str| refusal(403, "Forbidden", &format!("{what} is forbidden"), what);
    let dump = ["maps", "dump", "flows", "counts", "--node", "node-1"];

    let (code, text) = cluster.fails(&["get", "nosuch"]);
    assert_eq!((code, text.contains("EbpfProgram net/nosuch not found")), (3, true), "{text}");
    // The agent here is of before these were there.
    for newer in [&["maps", "get", "flows", "counts", "1"][..], &["prog", "log", "flows"], &["prog", "ls"]] {
        let (code, text) = cluster.fails(newer);
        assert_eq!((code, text.contains("does not know this call yet: upgrade Skep's agents")), (1, true), "{text}");
    }

    cluster.api.put("GET", &format!("{SYSTEM}/pods/skep-agent-abc/portforward"), 403, forbidden("pods/portforward"));
    let (code, text) = cluster.fails(&dump);
    assert_eq!(code, 1);
    assert!(
        text.contains("forwarding a port") && text.contains("The Role skep-connect in namespace skep-system"),
        "{text}"
    );

    cluster.api.put("GET", &format!("{SYSTEM}/pods"), 200, list("v1", "PodList", vec![]));
    let (code, text) = cluster.fails(&dump);
    assert_eq!((code, text.contains("node node-1: no agent of Skep runs there")), (3, true), "{text}");

    cluster.api.put("POST", &format!("{SYSTEM}/serviceaccounts/skep-viewer/token"), 403, forbidden("token"));
    let (code, text) = cluster.fails(&dump);
    assert_eq!(code, 1);
    assert!(text.contains("minting a token") && text.contains("--role=skep-connect"), "{text}");
    let (code, text) = cluster.fails(&[&dump[..], &["--service-account", "other"]].concat());
    assert_eq!(
        (code, text.contains("ServiceAccount other in namespace skep-system does not exist")),
        (1, true),
        "{text}"
    );
    // What can be said without the agent is said.
    let output = cluster.skep(&["why", "flows"]);
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("Degraded"));

    let (code, text) = cluster.fails(&[&dump[..], &["--skep-namespace", "elsewhere"]].concat());
    assert_eq!((code, text.contains("Give it by --skep-namespace")), (1, true), "{text}");

    let absent = json!({"namespace": "net", "name": "flows", "state": "Failed", "reason": "ImageNotFound"});
    cluster.api.put("GET", NODES, 200, list("skep.dev/v1alpha1", "EbpfNodeList", vec![node(absent)]));
    let (code, text) = cluster.fails(&["maps", "dump", "flows", "counts"]);
    assert_eq!((code, text.contains("flows -n net runs on no node")), (3, true), "{text}");

    cluster.api.put("GET", NODES, 403, forbidden("ebpfnodes"));
    let (code, text) = cluster.fails(&["maps", "dump", "flows", "counts"]);
    assert_eq!((code, text.contains("Name one by --node")), (1, true), "{text}");
    assert!(text.contains("kubectl create clusterrolebinding skep-view-you --clusterrole=skep-view"), "{text}");
    let output = cluster.skep(&["get", "flows"]);
    assert!(output.status.success() && String::from_utf8_lossy(&output.stderr).contains("nodes are not shown"));

    cluster.api.put("GET", PROGRAMS, 403, forbidden("ebpfprograms"));
    let (code, text) = cluster.fails(&["get"]);
    assert_eq!((code, text.contains("--clusterrole=skep-view")), (1, true), "{text}");

    cluster.api.put(
        "GET",
        PROGRAMS,
        404,
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404,
        "reason": "NotFound", "message": "the server could not find the requested resource", "details": {}}),
    );
    let (code, text) = cluster.fails(&["get"]);
    assert_eq!((code, text.contains("Skep is not installed")), (1, true), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_does_not_answer_is_named() {
    let cluster = start().await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    cluster.configure(closed);
    for args in [&["get"][..], &["maps", "dump", "ebpf/flows", "counts", "--node", "node-1"]] {
        let (code, text) = cluster.fails(args);
        assert_eq!(code, 1);
        assert!(text.contains(&format!("the API server at http://127.0.0.1:{closed}/ does not answer: ")), "{text}");
        assert!(text.contains("Connection refused") && text.contains("kubectl config view"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_says_what_it_waits_for() {
    let cluster = start().await;
    let mut gone = program();
    gone["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    gone["metadata"]["finalizers"] = json!(["skep.dev/cleanup"]);
    cluster.api.put("GET", &format!("{PROGRAMS}/flows"), 200, gone);
    let page = cluster.out(&["why", "flows"]);
    assert!(page.starts_with("EbpfProgram net/flows is being deleted, since "), "{page}");
    assert!(page.contains("  Wait: it is being taken off node-1 (skep.dev/cleanup).\n"), "{page}");
}

/// The value agent.port of the chart is any port: every agent of these tests has one of its own.
#[tokio::test(flavor = "multi_thread")]
async fn the_agents_port_is_found_in_its_pod() {
    let cluster = start().await;
    assert_ne!(cluster.agent.port, skep_proto::AGENT_PORT);
    assert!(cluster.out(&["maps", "ls", "flows", "--node", "node-1"]).contains("counts"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_in_another_nodes_name_gets_no_token() {
    let cluster = Cluster::start("node-2").await;
    let (code, text) = cluster.fails(&["maps", "dump", "flows", "counts", "--node", "node-1"]);
    assert_eq!(code, 1);
    assert!(text.contains("node node-1: the connection to its agent: invalid peer certificate"), "{text}");
    assert!(cluster.agent.seen.lock().unwrap().is_empty());
}
