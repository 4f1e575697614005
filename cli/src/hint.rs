//! What to do next, for each reason.

use skep_crds::Reason;

/// One sentence; `said` are the messages that give the reason.
pub fn hint(reason: Reason, said: &[&str]) -> &'static str {
    match reason {
        Reason::HookBusy if said.iter().any(|message| message.contains("held by EbpfProgram ")) => {
            "Change or delete the EbpfProgram that the message names, or let the two select different targets: one program fits on this hook."
        }
        Reason::Ready => "Nothing: it runs everywhere it should.",
        Reason::Progressing => {
            "Wait; if it lasts longer than a few minutes, look at the nodes that are Updating below."
        }
        Reason::Suspended => {
            "Attach it again by kubectl skep resume NAME, or by taking spec.suspend out of its manifest."
        }
        Reason::NoMatchingNode => {
            "Compare spec.nodeSelector with `kubectl get nodes --show-labels`, and `kubectl get ebpfnodes` with the nodes that should have an agent."
        }
        Reason::NoTarget => {
            "Compare the selectors under spec.programs[].attach with what the nodes have; targets that appear later are attached by themselves."
        }
        Reason::WaitingForNode => {
            "Wait for the node's agent to report; if it does not, look at its log in Skep's namespace."
        }
        Reason::ImageNotFound => "Check spec.image.reference for a typo, and that the tag or digest was pushed.",
        Reason::ImageUnauthorized => {
            "Name a Secret of type kubernetes.io/dockerconfigjson with access to the registry in spec.image.pullSecrets."
        }
        Reason::ImageInvalid => {
            "Push the image again from a compiled eBPF object; the message says what is wrong with this one."
        }
        Reason::SignatureRejected => "Sign the image's digest with a key or identity that the EbpfPolicy names.",
        Reason::PolicyDenied => {
            "Ask whoever owns the EbpfPolicy, or use only the kinds, targets and images that it grants this namespace."
        }
        Reason::ObjectUnreadable => {
            "Apply the EbpfProgram anew: what is stored does not fit the schema of this version."
        }
        Reason::ObjectInvalid => {
            "Compile with clang -g -O2 -target bpf (or aya) and push again; the message names the section at fault."
        }
        Reason::ProgramUnknown => "Correct spec.programs[].name; the message lists the functions that the object has.",
        Reason::GlobalInvalid => {
            "Correct spec.globals; the message names the variable, its type and what the object has."
        }
        Reason::MapIncompatible => {
            "Set spec.maps.<name>.onUpdate to Reset (its contents are lost), or keep the map's old definition."
        }
        Reason::VerifierRejected => {
            "Read the verifier's log below: the last lines name the instruction and source line; correct it and push a new image."
        }
        Reason::KernelUnsupported => {
            "Keep such nodes out by spec.nodeSelector, use another kind of hook, or upgrade their kernel; `kubectl get ebpfnode NODE -o yaml` lists what it can."
        }
        Reason::PermissionDenied => {
            "See whether lockdown, an LSM or the agent's capabilities forbid it on that node (dmesg there says which)."
        }
        Reason::TargetNotFound => {
            "Correct the name of the interface, function, tracepoint, binary or cgroup; it must exist on every selected node."
        }
        Reason::HookBusy => {
            "Detach the program that holds the hook (bpftool net, bpftool link), or choose a kind that shares it, as tcx does."
        }
        Reason::LimitReached => "Split the program or make its maps smaller; the message names the limit.",
        Reason::RegistryUnreachable => {
            "Check from the node that the registry answers (name, proxy, firewall, certificate); it is tried again by itself."
        }
        Reason::NodeUnreachable => {
            "Check the node and the agent's pod on it; what is attached there keeps running meanwhile."
        }
        Reason::NodeFull => {
            "Lower maxEntries of the map that the message names, or raise the memory limit of the agents."
        }
        Reason::AgentTooOld => "Upgrade Skep's agents: this one does not know a kind or field that the spec uses.",
        Reason::Timeout => {
            "Wait, it is tried again by itself; if it stays, look at the load of the node and at the agent's log."
        }
        Reason::Internal => {
            "This is a fault of Skep: please report the message with the logs of the operator and of the agent."
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_the_hook_decides_what_to_do() {
        let ours = hint(Reason::HookBusy, &["xdp on interface eth0 is held by EbpfProgram net/other"]);
        assert!(ours.contains("delete the EbpfProgram") && !ours.contains("bpftool"), "{ours}");
        assert!(hint(Reason::HookBusy, &["xdp on interface eth0 is held by program 7"]).contains("bpftool"));
    }

    #[test]
    fn every_reason_has_one_sentence_of_its_own() {
        let mut seen = std::collections::BTreeSet::new();
        for reason in Reason::ALL {
            let text = hint(*reason, &[]);
            assert!(text.ends_with('.') && text.len() > 20 && !text.contains('\n'), "{reason}: {text}");
            assert!(seen.insert(text), "{reason} has the sentence of another");
        }
    }
}
