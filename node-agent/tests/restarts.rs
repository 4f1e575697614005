//! The agent ends and comes back: after a reboot, and killed again and again. Real binary, real kernel. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod node;

use node::Node;
use skep_proto::v1::State;

/// Hooks that take any number of programs.
fn shared_hooks(name: &str, image: &str, cgroup: &str, step: u32) -> String {
    format!(
        "apiVersion: skep.dev/v1alpha1\nkind: EbpfProgram\nmetadata: {{name: {name}, namespace: test}}\nspec:\n  image: {{reference: \"{image}\"}}\n  globals: {{step: {step}}}\n  programs:\n  - name: count_tc\n    attach:\n    - tcx: {{interfaces: {{names: [lo]}}, direction: Ingress}}\n    - tc: {{interfaces: {{names: [lo]}}, direction: Egress}}\n  - name: count_cgroup\n    attach:\n    - cgroupSkb: {{cgroups: {{path: {cgroup}}}, direction: Egress}}\n"
    )
}

/// No operator, no manifests, no registry, no link up: the desired store and the image cache are enough.
#[tokio::test]
async fn after_a_reboot_everything_is_back_from_the_nodes_own_disk() {
    const PROGRAMS: usize = 12;
    let mut node = Node::start().await;
    let image = node.push("net", "counter:v1").await;
    let name = |i: usize| format!("p{i}");
    for i in 0..PROGRAMS {
        node.write(&format!("{i}.yaml"), &shared_hooks(&name(i), &image, &node.cgroup(), i as u32 + 1));
    }
    let mut before = Vec::new();
    for i in 0..PROGRAMS {
        before.push(node.until(&name(i), |r| r.state() == State::Ready).await);
    }

    node.reboot();
    node.hide_manifests(true);
    node.start_agent().await;
    for (i, before) in before.iter().enumerate() {
        let after = node.until(&name(i), |r| r.state() == State::Ready).await;
        assert_eq!(after.running_revision, before.running_revision);
        assert_ne!(after.functions, before.functions, "nothing of the old boot is left, so these are new");
        let hooks = |report: &skep_proto::v1::ProgramReport| -> Vec<_> {
            report.hooks.iter().map(|h| (h.hook.clone(), h.names.clone())).collect()
        };
        assert_eq!(hooks(&after), hooks(before));
    }
    // And they work, each with its own globals.
    node.ip(&["link", "set", "lo", "up"]);
    node.packets(1);
    for i in 0..PROGRAMS {
        // Received and sent: one packet, two hooks.
        assert_eq!(node.slot(&name(i), 1).await, 2 * (i as u64 + 1));
    }

    // The manifests come late, say the same, and change nothing.
    let loaded = node.report("p0").await.unwrap();
    node.hide_manifests(false);
    node.delete("1.yaml");
    node.until_gone("p1").await;
    assert_eq!(node.report("p0").await.unwrap(), loaded);
}
