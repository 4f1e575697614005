//! Which nodes should run a program, and what exactly. Pure.

use std::collections::{BTreeMap, BTreeSet};

use skep_crds::{EbpfProgram, RESTARTED_AT, load_hash, revision_hash};
use skep_proto::v1::Unresolved;

use crate::fleet::Order;
use crate::rollup::Image;

/// A node of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// `metadata.uid`.
    pub uid: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Whether an agent's pod is there.
    pub agent: bool,
}

/// What should be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Assignment {
    /// The nodes that should run the program.
    pub nodes: BTreeSet<String>,
    /// How: `None` while the image is being looked up.
    pub order: Option<Order>,
}

/// Decides. A program that is being deleted is meant for no node.
/// One whose image cannot be had is told to the nodes all the same: they keep what ran before, off its hooks if the spec
/// says so.
pub fn assign(program: &EbpfProgram, image: Image<'_>, nodes: &BTreeMap<String, NodeFacts>) -> Assignment {
    if program.metadata.deletion_timestamp.is_some() {
        return Assignment::default();
    }
    let nodes = nodes.iter().filter(|(_, facts)| selects(program, facts)).map(|(name, _)| name.clone()).collect();
    Assignment { nodes, order: order(program, image) }
}

/// Whether a program is meant for a node.
pub fn selects(program: &EbpfProgram, facts: &NodeFacts) -> bool {
    let selector = program.spec.node_selector.as_ref();
    let alive = program.metadata.deletion_timestamp.is_none();
    alive && facts.agent && selector.is_none_or(|selector| selector.matches(&facts.labels))
}

/// The request that all of its nodes get.
fn order(program: &EbpfProgram, image: Image<'_>) -> Option<Order> {
    let (meta, spec) = (&program.metadata, &program.spec);
    let (digest, credentials, unresolved) = match image {
        Image::Resolved(image) if image.reference == spec.image.reference => {
            (image.digest.clone(), image.credentials.clone(), None)
        }
        Image::Failed(problem) => {
            let unresolved = Unresolved { reason: problem.reason.to_string(), message: problem.message.clone() };
            (String::new(), Vec::new(), Some(unresolved))
        }
        Image::Resolved(_) | Image::Resolving => return None,
    };
    let restart = meta.annotations.as_ref().and_then(|annotations| annotations.get(RESTARTED_AT)).map(String::as_str);
    Some(Order {
        epoch: 0,
        uid: meta.uid.clone()?,
        namespace: meta.namespace.clone()?,
        name: meta.name.clone()?,
        generation: meta.generation.unwrap_or_default(),
        revision: revision_hash(spec, &digest, restart),
        load: load_hash(spec, &digest, restart),
        digest,
        api_version: skep_crds::API_VERSION.into(),
        spec_json: serde_json::to_vec(spec).ok()?.into(),
        credentials,
        unresolved,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Problem, Resolution};
    use crate::testing::program;
    use serde_json::json;
    use skep_crds::Reason;

    fn nodes() -> BTreeMap<String, NodeFacts> {
        let node = |name: &str, disk: &str, agent| {
            let labels = [("disk".to_string(), disk.to_string())].into();
            (name.to_string(), NodeFacts { uid: name.into(), labels, agent })
        };
        [node("a", "ssd", true), node("b", "hdd", true), node("c", "ssd", false)].into()
    }

    fn image(reference: &str) -> Resolution {
        Resolution {
            reference: reference.into(),
            digest: format!("sha256:{}", "0".repeat(64)),
            credentials: vec![],
            missing: vec![],
        }
    }

    fn names(assignment: &Assignment) -> Vec<&str> {
        assignment.nodes.iter().map(String::as_str).collect()
    }

    #[test]
    fn nodes_with_an_agent_that_the_selector_takes() {
        let mut program = program("flows");
        assert_eq!(names(&assign(&program, Image::Resolving, &nodes())), ["a", "b"]);
        program.spec.node_selector = serde_json::from_value(json!({"matchLabels": {"disk": "ssd"}})).unwrap();
        assert_eq!(names(&assign(&program, Image::Resolving, &nodes())), ["a"]);
        program.spec.node_selector = Some(Default::default());
        assert_eq!(
            names(&assign(&program, Image::Resolving, &nodes())),
            [""; 0],
            "a hole in a selector does not widen"
        );
    }

    #[test]
    fn the_revision_follows_digest_and_restart() {
        let mut program = program("flows");
        let reference = program.spec.image.reference.clone();
        let revision = |program: &EbpfProgram, image: &Resolution| {
            assign(program, Image::Resolved(image), &nodes()).order.unwrap()
        };
        let first = revision(&program, &image(&reference));
        assert_eq!((first.generation, first.name.as_str(), first.uid.as_str()), (1, "flows", "uid-flows"));
        program.metadata.annotations = Some([(RESTARTED_AT.to_string(), "now".to_string())].into());
        let restarted = revision(&program, &image(&reference));
        assert!(restarted.revision != first.revision && restarted.load != first.load);
        assert_eq!(assign(&program, Image::Resolved(&image("other:v1")), &nodes()).order, None, "an image of before");
    }

    #[test]
    fn an_image_that_cannot_be_had_is_told_to_the_nodes() {
        let program = program("flows");
        let problem = Problem { reason: Reason::ImageNotFound, message: "there is no tag v2".into() };
        let order = assign(&program, Image::Failed(&problem), &nodes()).order.unwrap();
        let unresolved = Unresolved { reason: "ImageNotFound".into(), message: problem.message };
        assert_eq!((order.digest.as_str(), order.unresolved), ("", Some(unresolved)));
        let reference = program.spec.image.reference.clone();
        let found = assign(&program, Image::Resolved(&image(&reference)), &nodes()).order.unwrap();
        assert!(order.revision != found.revision && found.unresolved.is_none());
    }

    #[test]
    fn a_program_that_is_deleted_is_meant_for_no_node() {
        let mut program = program("flows");
        program.metadata.deletion_timestamp = serde_json::from_value(json!("2024-01-01T00:00:00Z")).unwrap();
        let reference = program.spec.image.reference.clone();
        assert_eq!(assign(&program, Image::Resolved(&image(&reference)), &nodes()), Assignment::default());
    }
}
