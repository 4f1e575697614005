//! What this node's kernel can do, probed once as the agent starts; and that what it cannot is not tried.

use std::collections::BTreeMap;
use std::path::Path;

use skep_crds::EbpfProgramSpec;
use skep_kernel::{KernelError, features, probe};
use skep_proto::v1::Feature;

/// What was found.
#[derive(Debug, Default)]
pub struct Features {
    all: Vec<Feature>,
    /// Kinds that this kernel does not have, and why not. Others may be refused to this agent, or by a part that goes and
    /// comes: those are tried.
    lacking: BTreeMap<&'static str, String>,
}

impl Features {
    /// Asks the kernel. Blocks for some tens of milliseconds.
    pub fn probe(bpffs: &Path) -> Self {
        let of_host = probe::host_features(bpffs).into_iter();
        let mut all: Vec<Feature> =
            of_host.map(|f| Feature { name: f.name, supported: f.missing.is_empty(), reason: f.missing }).collect();
        let mut lacking = BTreeMap::new();
        for support in features::kinds() {
            let kind = support.kind.row().name;
            let name = format!("kind/{kind}");
            // The name of the kind is said already.
            let words = |error: &KernelError| {
                let text = error.to_string();
                text.strip_prefix(&format!("{kind}: ")).map_or(text.clone(), ToOwned::to_owned)
            };
            let reason = support.missing.as_ref().map(words).unwrap_or_default();
            if let Some(KernelError::KernelUnsupported { .. }) = support.missing {
                lacking.insert(kind, reason.clone());
            }
            all.push(Feature { name, supported: support.missing.is_none(), reason });
        }
        Features { all, lacking }
    }

    /// All of them, for who asks.
    pub fn all(&self) -> &[Feature] {
        &self.all
    }

    /// Refuses a spec that names a kind which this kernel lacks.
    pub fn check(&self, spec: &EbpfProgramSpec) -> Result<(), KernelError> {
        for program in &spec.programs {
            for attach in &program.attach {
                let Some(why) = self.lacking.get(attach.kind()) else { continue };
                let what = format!("{} of {}", attach.kind(), program.name);
                return Err(KernelError::KernelUnsupported { what, why: why.clone() });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_that_the_kernel_lacks_is_named_with_its_function() {
        let lacking = [("netkit", "netkit needs Linux 6.7, and this is 6.1".to_owned())];
        let features = Features { lacking: lacking.into(), ..Features::default() };
        let spec = |attach| {
            let text = serde_json::json!({
                "image": {"reference": "registry.example/a@sha256:0"},
                "programs": [{"name": "count", "attach": [{"xdp": {"interfaces": {"primary": true}}}, attach]}],
            });
            serde_json::from_value::<EbpfProgramSpec>(text).unwrap()
        };
        let interfaces = serde_json::json!({"interfaces": {"names": ["nk0"]}, "direction": "Ingress"});
        assert!(features.check(&spec(serde_json::json!({"tcx": interfaces}))).is_ok());
        let netkit = serde_json::json!({"netkit": {"interfaces": {"names": ["nk0"]}, "sender": "Primary"}});
        let error = features.check(&spec(netkit)).unwrap_err();
        assert_eq!(error.reason(), "KernelUnsupported");
        assert_eq!(error.to_string(), "netkit of count: netkit needs Linux 6.7, and this is 6.1");
    }
}
