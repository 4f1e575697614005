//! The pods of a node as the agent should know them, and what it has to be told. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use skep_proto::v1::{Pod, UpdatePodsRequest};

/// Pods by uid.
pub type Pods = BTreeMap<String, Arc<Pod>>;

/// What leads from what the agent was told, if anything, to what is; `None` if nothing does.
pub fn update(told: Option<&Pods>, pods: &Pods, epoch: u64) -> Option<UpdatePodsRequest> {
    let message = |pod: &Arc<Pod>| (**pod).clone();
    let Some(told) = told else {
        return Some(UpdatePodsRequest {
            epoch,
            snapshot: true,
            pods: pods.values().map(message).collect(),
            gone: vec![],
        });
    };
    let changed = pods.iter().filter(|(uid, pod)| told.get(*uid) != Some(pod)).map(|(_, pod)| message(pod)).collect();
    let gone = told.keys().filter(|uid| !pods.contains_key(*uid)).cloned().collect();
    let update = UpdatePodsRequest { epoch, snapshot: false, pods: changed, gone };
    (!update.pods.is_empty() || !update.gone.is_empty()).then_some(update)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods(pods: &[(&str, &str)]) -> Pods {
        let pod = |(uid, name): &(&str, &str)| {
            let pod = Pod { uid: uid.to_string(), name: name.to_string(), ..Pod::default() };
            (pod.uid.clone(), Arc::new(pod))
        };
        pods.iter().map(pod).collect()
    }

    #[test]
    fn a_snapshot_first_then_changes_only() {
        let first = pods(&[("1", "a"), ("2", "b")]);
        let snapshot = update(None, &first, 7).unwrap();
        assert!(snapshot.snapshot && snapshot.pods.len() == 2 && snapshot.epoch == 7);
        assert!(update(None, &pods(&[]), 7).unwrap().snapshot, "no pods at all is news too");
        assert_eq!(update(Some(&first), &first, 7), None);
        let change = update(Some(&first), &pods(&[("2", "c"), ("3", "d")]), 7).unwrap();
        let names: Vec<&str> = change.pods.iter().map(|pod| pod.name.as_str()).collect();
        assert_eq!((names, change.gone), (vec!["c", "d"], vec!["1".to_string()]));
    }
}
