//! `features`: what the kernels of the nodes can do, and which of them can run something.

mod needs;

use std::collections::BTreeMap;
use std::path::Path;

use kube::ResourceExt;
use serde::Serialize;
use skep_crds::EbpfNode;
use skep_crds::ebpfnode::Support;
use skep_object::Object;
use skep_object::kind::KINDS;
use skep_proto::v1::Node;

pub use self::needs::{Missing, Needs};
use crate::args::{self, Global, PageFormat};
use crate::cluster::Cluster;
use crate::error::Error;
use crate::table::Table;
use crate::{output, registry, socket};

/// How many nodes are named where a kind is missing.
const NAMED: usize = 4;

/// What a node's kernel can do.
#[derive(Clone, Debug, Default, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NodeFeatures {
    pub node: String,
    pub kernel: String,
    pub architecture: String,
    /// The agent told what it found; else nothing of the rest is known.
    pub known: bool,
    pub btf: bool,
    pub jit: bool,
    pub bpffs: bool,
    pub cgroup_v2: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lockdown: Option<String>,
    pub kinds: BTreeMap<String, Support>,
}

/// Whether a node can run what was asked about.
#[derive(Clone, Debug, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    pub node: String,
    pub kernel: String,
    /// Absent: nothing is known of the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runs: Option<bool>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<Missing>,
}

/// Runs the command.
pub async fn run(global: &Global, features: &args::Features) -> Result<(), Error> {
    let needs = match &features.of {
        Some(of) => Some(needs_of(global, features, of).await?),
        None => None,
    };
    let mut nodes = match &global.socket {
        Some(path) => vec![of_agent(&socket::node(path, global.request_timeout).await?)],
        None => Cluster::connect(global).await?.nodes().await?.iter().map(of_node).collect(),
    };
    if let Some(node) = &features.node {
        nodes.retain(|known| known.node == *node);
        if nodes.is_empty() {
            let text = format!("node {node}: no EbpfNode is called that; kubectl get ebpfnodes lists them");
            return Err(Error::Absent(text));
        }
    }
    nodes.sort_by(|a, b| a.node.cmp(&b.node));
    match needs {
        Some(needs) => {
            needs.remarks.iter().for_each(output::note);
            let verdicts = verdicts(&nodes, &needs);
            show(features.output, &verdicts, render_verdicts)
        }
        None => show(features.output, &nodes, render),
    }
}

fn show<T: Serialize>(format: PageFormat, all: &Vec<T>, text: impl Fn(&[T]) -> String) -> Result<(), Error> {
    output::print(&match format {
        PageFormat::Text => text(all),
        PageFormat::Json => output::json(all),
        PageFormat::Yaml => output::yaml(all),
    })
}

async fn needs_of(global: &Global, features: &args::Features, of: &str) -> Result<Needs, Error> {
    if Path::new(of).is_file() {
        let path = Path::new(of);
        return object(registry::read(path)?, path).map(|object| Needs::of_object(&object));
    }
    // Names of objects in a cluster have neither.
    if of.contains(['/', ':']) {
        return Ok(Needs::of_object(&pulled(features, of, None).await?));
    }
    if global.socket.is_some() {
        let text = format!("--for {of}: there is no such file; programs are known to the cluster, leave --socket out");
        return Err(Error::Usage(text));
    }
    let (spec, digest) = Cluster::connect(global).await?.spec(of).await?;
    if !spec.programs.is_empty() && spec.programs.iter().all(|program| !program.attach.is_empty()) {
        return Ok(Needs::of_spec(&spec, None));
    }
    let object = pulled(features, &spec.image.reference, digest.as_deref()).await?;
    Ok(Needs::of_spec(&spec, Some(&object)))
}

async fn pulled(features: &args::Features, reference: &str, digest: Option<&str>) -> Result<Object, Error> {
    let (registry, auth) = registry::open(reference, features.ca.as_deref(), features.plain_http)?;
    let digest = match digest.and_then(|digest| digest.parse().ok()) {
        Some(digest) => digest,
        None => registry.resolve(reference, &auth).await?,
    };
    let bytes = registry.pull(reference, &digest, &auth).await?.object;
    object(bytes, Path::new(reference))
}

fn object(bytes: Vec<u8>, path: &Path) -> Result<Object, Error> {
    Object::parse(bytes).map_err(|e| Error::Object { path: path.to_owned(), problem: e.to_string() })
}

/// As the operator wrote it.
pub fn of_node(node: &EbpfNode) -> NodeFeatures {
    let status = node.status.clone().unwrap_or_default();
    let kernel = status.kernel.unwrap_or_default();
    let known = status.features.is_some();
    let features = status.features.unwrap_or_default();
    NodeFeatures {
        node: node.name_any(),
        kernel: kernel.release,
        architecture: kernel.architecture,
        known,
        btf: features.btf,
        jit: features.jit,
        bpffs: features.bpffs,
        cgroup_v2: features.cgroup_v2,
        lockdown: features.lockdown,
        kinds: features.program_kinds,
    }
}

/// As the agent itself says it.
fn of_agent(node: &Node) -> NodeFeatures {
    let named = |name: &str| node.features.iter().find(|feature| feature.name == name);
    let has = |name: &str| named(name).is_some_and(|feature| feature.supported);
    let kinds = node.features.iter().filter_map(|feature| {
        let reason = (!feature.supported).then(|| feature.reason.clone());
        Some((feature.name.strip_prefix("kind/")?.to_owned(), Support { supported: feature.supported, reason }))
    });
    NodeFeatures {
        node: node.node_name.clone(),
        kernel: node.kernel_release.clone(),
        architecture: node.architecture.clone(),
        known: !node.features.is_empty(),
        btf: has("btf"),
        jit: has("jit"),
        bpffs: has("bpffs"),
        cgroup_v2: has("cgroup2"),
        lockdown: named("lockdown").map(|feature| feature.reason.clone()),
        kinds: kinds.collect(),
    }
}

/// What each node lacks.
pub fn verdicts(nodes: &[NodeFeatures], needs: &Needs) -> Vec<Verdict> {
    let verdict = |node: &NodeFeatures| {
        let missing = if node.known { needs.missing(node) } else { Vec::new() };
        let runs = node.known.then_some(missing.is_empty());
        Verdict { node: node.node.clone(), kernel: node.kernel.clone(), runs, missing }
    };
    nodes.iter().map(verdict).collect()
}

/// The nodes, and below them each kind with the nodes that lack it.
pub fn render(nodes: &[NodeFeatures]) -> String {
    let yes = |is: bool| if is { "yes" } else { "no" };
    let mut hosts = Table::new(["NODE", "KERNEL", "ARCH", "BTF", "JIT", "BPFFS", "CGROUPV2", "LOCKDOWN", "KINDS"], 0);
    for node in nodes {
        let own = [node.node.as_str(), &node.kernel, &node.architecture];
        if !node.known {
            hosts.row(own.into_iter().chain(["?"; 6]));
            continue;
        }
        let can = node.kinds.values().filter(|support| support.supported).count();
        let kinds = format!("{can}/{}", node.kinds.len());
        let found = [yes(node.btf), yes(node.jit), yes(node.bpffs), yes(node.cgroup_v2)];
        let lockdown = node.lockdown.as_deref().unwrap_or_default();
        hosts.row(own.into_iter().chain(found).chain([lockdown, kinds.as_str()]));
    }
    let known: Vec<&NodeFeatures> = nodes.iter().filter(|node| node.known).collect();
    let mut kinds = Table::new(["KIND", "NODES", "NOT ON", "WHY NOT"], 0);
    for row in KINDS.iter() {
        // Nodes that lack it for the same reason are one row.
        let mut lacking: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for node in &known {
            if let Err(why) = node.support(row.name) {
                lacking.entry(why).or_default().push(&node.node);
            }
        }
        let can = known.len() - lacking.values().map(Vec::len).sum::<usize>();
        let count = format!("{can}/{}", known.len());
        if lacking.is_empty() {
            kinds.row([row.name, &count, "", ""]);
        }
        for (i, (why, nodes)) in lacking.into_iter().enumerate() {
            let (name, count) = if i == 0 { (row.name, count.as_str()) } else { (" ", " ") };
            kinds.row([name, count, &several(&nodes), &why]);
        }
    }
    format!("{}\n{}", hosts.render(), kinds.render())
}

impl NodeFeatures {
    /// Whether the node can use a kind, or why not.
    fn support(&self, kind: &str) -> Result<(), String> {
        match self.kinds.get(kind) {
            Some(Support { supported: true, .. }) => Ok(()),
            Some(Support { reason, .. }) => Err(reason.clone().unwrap_or_default()),
            None => Err("the node's agent does not know this kind; upgrade it".into()),
        }
    }
}

/// A row for each node that can, and one for each thing that another lacks.
pub fn render_verdicts(verdicts: &[Verdict]) -> String {
    let mut table = Table::new(["NODE", "KERNEL", "RUNS", "FUNCTION", "NEEDS", "WHY NOT"], 0);
    for verdict in verdicts {
        let own = [verdict.node.as_str(), &verdict.kernel];
        match verdict.runs {
            None => table.row(own.into_iter().chain(["?", "", "", "its agent has not said what its kernel can do"])),
            Some(true) => table.row(own.into_iter().chain(["yes", "", "", ""])),
            Some(false) => {
                for missing in &verdict.missing {
                    table.row(own.into_iter().chain(["no", &missing.function, &missing.needs, &missing.reason]));
                }
            }
        }
    }
    table.render()
}

fn several(nodes: &[&str]) -> String {
    match nodes.len().checked_sub(NAMED) {
        Some(more @ 1..) => format!("{} and {more} more", nodes[..NAMED].join(", ")),
        _ => nodes.join(", "),
    }
}
