//! Which nodes should run a program, and what exactly. Pure.

use std::collections::{BTreeMap, BTreeSet};

use skep_crds::{EbpfProgram, RESTARTED_AT, load_hash, revision_hash};

use crate::fleet::Order;
use crate::image::Resolution;

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
    /// How: `None` while the image is not resolved.
    pub order: Option<Order>,
}

/// Decides. A program that is being deleted is meant for no node.
pub fn assign(program: &EbpfProgram, image: Option<&Resolution>, nodes: &BTreeMap<String, NodeFacts>) -> Assignment {
    if program.metadata.deletion_timestamp.is_some() {
        return Assignment::default();
    }
    let nodes = nodes.iter().filter(|(_, facts)| selects(program, facts)).map(|(name, _)| name.clone()).collect();
    let order = image.filter(|image| image.reference == program.spec.image.reference).and_then(|i| order(program, i));
    Assignment { nodes, order }
}

/// Whether a program is meant for a node.
pub fn selects(program: &EbpfProgram, facts: &NodeFacts) -> bool {
    let selector = program.spec.node_selector.as_ref();
    let alive = program.metadata.deletion_timestamp.is_none();
    alive && facts.agent && selector.is_none_or(|selector| selector.matches(&facts.labels))
}

/// The request that all of its nodes get.
fn order(program: &EbpfProgram, image: &Resolution) -> Option<Order> {
    let (meta, spec) = (&program.metadata, &program.spec);
    let restart = meta.annotations.as_ref().and_then(|annotations| annotations.get(RESTARTED_AT)).map(String::as_str);
    Some(Order {
        epoch: 0,
        uid: meta.uid.clone()?,
        namespace: meta.namespace.clone()?,
        name: meta.name.clone()?,
        generation: meta.generation.unwrap_or_default(),
        revision: revision_hash(spec, &image.digest, restart),
        load: load_hash(spec, &image.digest, restart),
        digest: image.digest.clone(),
        api_version: skep_crds::API_VERSION.into(),
        spec_json: serde_json::to_vec(spec).ok()?.into(),
        credentials: image.credentials.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::program;
    use serde_json::json;

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
        assert_eq!(names(&assign(&program, None, &nodes())), ["a", "b"]);
        program.spec.node_selector = serde_json::from_value(json!({"matchLabels": {"disk": "ssd"}})).unwrap();
        assert_eq!(names(&assign(&program, None, &nodes())), ["a"]);
        program.spec.node_selector = Some(Default::default());
        assert_eq!(names(&assign(&program, None, &nodes())), [""; 0], "a hole in a selector does not widen");
    }

    #[test]
    fn the_revision_follows_digest_and_restart() {
        let mut program = program("flows");
        let reference = program.spec.image.reference.clone();
        let revision =
            |program: &EbpfProgram, image: &Resolution| assign(program, Some(image), &nodes()).order.unwrap();
        let first = revision(&program, &image(&reference));
        assert_eq!((first.generation, first.name.as_str(), first.uid.as_str()), (1, "flows", "uid-flows"));
        program.metadata.annotations = Some([(RESTARTED_AT.to_string(), "now".to_string())].into());
        let restarted = revision(&program, &image(&reference));
        assert!(restarted.revision != first.revision && restarted.load != first.load);
        assert_eq!(assign(&program, Some(&image("other:v1")), &nodes()).order, None, "an image of before");
    }

    #[test]
    fn a_program_that_is_deleted_is_meant_for_no_node() {
        let mut program = program("flows");
        program.metadata.deletion_timestamp = serde_json::from_value(json!("2024-01-01T00:00:00Z")).unwrap();
        let reference = program.spec.image.reference.clone();
        assert_eq!(assign(&program, Some(&image(&reference)), &nodes()), Assignment::default());
    }
}
