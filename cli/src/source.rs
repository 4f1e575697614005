//! Which agents to ask about maps, and asking them all at once.

use std::future::Future;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use kube::ResourceExt;
use skep_crds::EbpfNode;

use crate::agent::Agent;
use crate::args::Global;
use crate::cluster::Cluster;
use crate::connect::Gate;
use crate::error::Error;
use crate::output::{self, note};
use crate::screen::failure;
use crate::socket;

/// Connections at a time.
const AT_ONCE: usize = 16;

/// How often nodes are looked at that have nothing of a program that runs somewhere, and the time between.
const LOOKS: u32 = 8;
const LOOK: Duration = Duration::from_millis(500);

/// Whether some node runs it: `11/12`.
fn is_somewhere(ready: &str) -> bool {
    ready.split_once('/').is_some_and(|(ready, _)| ready.parse::<u32>().is_ok_and(|ready| ready > 0))
}

/// What the agents of the chosen nodes answered, by node name.
#[derive(Debug)]
pub struct Answers<T> {
    pub answers: Vec<T>,
    /// Nodes that did not answer, and why; said already.
    failures: Vec<(String, Error)>,
    /// Whether rows need the node's name: they may be of several.
    pub several: bool,
}

impl<T> Answers<T> {
    /// An error if a node did not answer; called after the answers of the others are shown.
    pub fn complete(&self) -> Result<(), Error> {
        match self.failures.len() {
            0 => Ok(()),
            failed => Err(Error::Incomplete { failed, of: failed + self.answers.len() }),
        }
    }
}

/// What agents are asked for: whose token is shown depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    /// Read what does not end by itself: all nodes at once.
    Follow,
    Write,
}

/// Whose nodes are asked.
#[derive(Clone, Copy, Debug)]
pub enum Of<'a> {
    /// Those that run a program of the namespace.
    Program(&'a str),
    /// Those that run any of the namespace.
    Namespace,
    /// Those that run any; the namespace is empty then.
    Everything,
}

impl<'a, T: AsRef<str> + ?Sized> From<Option<&'a T>> for Of<'a> {
    fn from(program: Option<&'a T>) -> Self {
        program.map_or(Of::Namespace, |name| Of::Program(name.as_ref()))
    }
}

/// Asks the socket's agent, or that of `node`, or those of all nodes that are meant. `ask` gets the agent and the
/// namespace.
pub async fn ask<'a, T, F, Fut>(
    global: &Global,
    access: Access,
    node: Option<&str>,
    of: impl Into<Of<'a>>,
    ask: F,
) -> Result<Answers<T>, Error>
where
    F: Fn(Agent, String) -> Fut,
    Fut: Future<Output = Result<T, Error>>,
{
    let answers = asked(global, access, node, of.into(), ask, |_, _| ()).await?;
    for (node, error) in &answers.failures {
        note(failure(node, &error.to_string()));
    }
    Ok(answers)
}

/// Reads as [`ask`] does what does not end by itself; `failed` is told at once of a node that fails, and nobody else is.
pub async fn follow<'a, T, F, Fut>(
    global: &Global,
    node: Option<&str>,
    of: impl Into<Of<'a>>,
    ask: F,
    failed: impl Fn(&str, &Error),
) -> Result<Answers<T>, Error>
where
    F: Fn(Agent, String) -> Fut,
    Fut: Future<Output = Result<T, Error>>,
{
    asked(global, Access::Follow, node, of.into(), ask, failed).await
}

async fn asked<T, F, Fut>(
    global: &Global,
    access: Access,
    node: Option<&str>,
    of: Of<'_>,
    ask: F,
    failed: impl Fn(&str, &Error),
) -> Result<Answers<T>, Error>
where
    F: Fn(Agent, String) -> Fut,
    Fut: Future<Output = Result<T, Error>>,
{
    let asked = each(global, access, node, of, ask, failed);
    // Who writes does so whoever reads what is said of it.
    if access == Access::Write { asked.await } else { output::while_read(asked).await }
}

async fn each<T, F, Fut>(
    global: &Global,
    access: Access,
    node: Option<&str>,
    of: Of<'_>,
    ask: F,
    failed: impl Fn(&str, &Error),
) -> Result<Answers<T>, Error>
where
    F: Fn(Agent, String) -> Fut,
    Fut: Future<Output = Result<T, Error>>,
{
    if let Some(path) = &global.socket {
        let agent = socket::connect(path, global.request_timeout).await?;
        if let Some(asked) = node.filter(|asked| *asked != agent.node) {
            let (asked, node) = (asked.to_owned(), agent.node.clone());
            return Err(Error::OtherNode { asked, node, socket: path.clone() });
        }
        let answer = ask(agent, global.namespace.clone().unwrap_or_default()).await?;
        return Ok(Answers { answers: vec![answer], failures: Vec::new(), several: false });
    }
    let cluster = Cluster::connect(global).await?;
    let namespace = if matches!(of, Of::Everything) { "" } else { cluster.namespace.as_str() };
    let nodes = match (node, of) {
        (Some(node), _) => vec![node.to_owned()],
        (None, Of::Program(name)) => {
            // Says whether it exists at all.
            let (program, _) = cluster.program(name).await?;
            let mut looks = 0;
            loop {
                let nodes = running(&nodes(&cluster).await?, &cluster.namespace, Some(name));
                // Which nodes it runs on is written a moment after that it runs.
                looks += 1;
                match nodes.is_empty() {
                    false => break nodes,
                    true if is_somewhere(&program.ready) && looks < LOOKS => tokio::time::sleep(LOOK).await,
                    true => return Err(Error::NowhereRunning { program: format!("{name} -n {}", cluster.namespace) }),
                }
            }
        }
        (None, Of::Namespace | Of::Everything) => running(&nodes(&cluster).await?, namespace, None),
    };
    if nodes.is_empty() {
        return Ok(Answers { answers: Vec::new(), failures: Vec::new(), several: true });
    }
    let gate = Gate::open(&cluster, global, access).await?;
    let at_once = if access == Access::Follow { usize::MAX } else { AT_ONCE };
    let (gate, ask, failed, nodes_asked) = (&gate, &ask, &failed, nodes.len());
    let asked = stream::iter(nodes).map(|node| async move {
        let answer = match gate.agent(&node).await {
            Ok(agent) => ask(agent, namespace.to_owned()).await,
            Err(e) => Err(e),
        };
        if let Err(error) = &answer {
            failed(&node, error);
        }
        (node, answer)
    });
    sorted(asked.buffered(at_once.min(nodes_asked)).collect().await, node.is_none())
}

/// Nodes are not of a namespace: who may see one namespace may not see them.
async fn nodes(cluster: &Cluster) -> Result<Vec<EbpfNode>, Error> {
    cluster.nodes().await.map_err(|e| match e {
        Error::MayNotView { message, .. } => Error::NodesHidden(message),
        other => other,
    })
}

/// Nodes on which a program (absent: any) of the namespace (empty: of any) has a revision.
fn running(nodes: &[EbpfNode], namespace: &str, name: Option<&str>) -> Vec<String> {
    let runs = |node: &&EbpfNode| {
        let Some(status) = &node.status else { return false };
        let of_it = |p: &&skep_crds::ebpfnode::NodeProgram| {
            (namespace.is_empty() || p.namespace == namespace) && name.is_none_or(|n| p.name == n)
        };
        // A status that was too long has names only.
        status.programs.iter().filter(of_it).any(|p| p.revision.is_some() || status.truncated)
    };
    let mut names: Vec<String> = nodes.iter().filter(runs).map(|n| n.name_any()).collect();
    names.sort();
    names
}

/// One node's failure hides no other's answer; if none answered, the first failure is the command's.
fn sorted<T>(all: Vec<(String, Result<T, Error>)>, several: bool) -> Result<Answers<T>, Error> {
    let mut answers = Vec::new();
    let mut failures = Vec::new();
    for (node, result) in all {
        match result {
            Ok(answer) => answers.push(answer),
            Err(error) => failures.push((node, error)),
        }
    }
    // Nobody sees the others' answers either.
    if let Some(gone) = failures.iter().position(|(_, error)| matches!(error, Error::ReaderGone)) {
        return Err(failures.swap_remove(gone).1);
    }
    if answers.is_empty() && !failures.is_empty() {
        return Err(failures.remove(0).1);
    }
    Ok(Answers { answers, failures, several })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_nodes_that_run_it_are_asked() {
        let node = |name: &str, status: serde_json::Value| -> EbpfNode {
            serde_json::from_value(serde_json::json!({
                "apiVersion": "skep.dev/v1alpha1", "kind": "EbpfNode",
                "metadata": {"name": name}, "spec": {}, "status": status,
            }))
            .unwrap()
        };
        let entry = |name: &str, revision: Option<&str>| serde_json::json!({"namespace": "a", "name": name, "revision": revision});
        let nodes = [
            node("n3", serde_json::json!({"programs": [entry("x", Some("1"))]})),
            node("n1", serde_json::json!({"programs": [entry("x", None)], "truncated": true})),
            node("n2", serde_json::json!({"programs": [entry("x", None), entry("y", Some("1"))]})),
        ];
        assert_eq!(running(&nodes, "a", Some("x")), ["n1", "n3"]);
        assert_eq!(running(&nodes, "a", None), ["n1", "n2", "n3"]);
        assert!(running(&nodes, "b", None).is_empty());
        assert_eq!(running(&nodes, "", None), ["n1", "n2", "n3"]);
    }

    #[test]
    fn one_nodes_failure_hides_no_others_answer() {
        let some = sorted(vec![("a".into(), Ok(1)), ("b".into(), Err(Error::Absent("gone".into())))], true).unwrap();
        assert_eq!(some.answers, [1]);
        assert!(some.complete().is_err());
        let none = sorted::<u8>(vec![("b".into(), Err(Error::Absent("gone".into())))], true);
        assert_eq!(none.unwrap_err().exit_code(), 3);
    }
}
