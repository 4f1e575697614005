//! What to do next, for each reason.

use skep_crds::Reason;

/// One sentence; `said` are the messages that give the reason.
pub fn hint(reason: Reason, said: &[&str]) -> &'static str {
    let says = |words: &str| said.iter().any(|message| message.contains(words));
    match reason {
        Reason::MapIncompatible if says("share: group") => {
            "Declare the map as its group has it, or name another group in spec.maps.<name>.share, which begins with an empty map."
        }
        Reason::MapIncompatible if says("do not fit into maxEntries") => {
            "Raise spec.maps.<name>.maxEntries, remove entries, or set onUpdate to Reset (the map's contents are lost)."
        }
        Reason::MapIncompatible if says("no map ") => {
            "Correct the name under spec.maps; the message lists the maps that the object has."
        }
        Reason::ObjectInvalid if says("it is in section ") => {
            "Attach the function to a hook of the kind that its section is for, or change its section and push again."
        }
        Reason::ObjectInvalid if says("maxEntries is outside ") => {
            "Set spec.maps.<name>.maxEntries to a number from 1 to 4294967295, or leave it out: the map is then as large as the object says."
        }
        Reason::ObjectInvalid if says("take maxEntries out") => {
            "Take maxEntries of the map that the message names out of spec.maps: variables are in one entry always."
        }
        Reason::ObjectInvalid if says("it belongs to its revision") => {
            "Take the map that the message names out of spec.maps: every revision brings its own."
        }
        Reason::ObjectInvalid
            if says("the kernel refuses its definition") || says("are more than the kernel takes") =>
        {
            "Lower spec.maps.<name>.maxEntries, or use a type of map that this kernel knows."
        }
        Reason::TargetNotFound if says("programs in a circle: ") => {
            "Take one position, fentry, fexit or freplace out of one of them, so that the programs have an order."
        }
        Reason::TargetNotFound if says("is not a bpffs") => {
            "Mount the bpffs of that node again; if what was pinned there is gone with it, it is loaded anew."
        }
        Reason::LimitReached if says("Resource temporarily unavailable") => {
            "Raise the limit of processes (pids) of the agent, or of the node: threads count."
        }
        Reason::TargetNotFound if says(" of EbpfProgram ") => {
            "Correct the EbpfProgram's name or the function; it must be on the same node, for a position also on the same interface and direction, and is waited for."
        }
        Reason::HookBusy if says("held by EbpfProgram ") => {
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
            "Correct the manifest as the message says and apply it again; if nothing is wrong with it, update Skep, which does not know what it uses."
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
        Reason::NodeFull if says("the desired state cannot be kept") => {
            "Make room on the file system of the agent's state directory; what ran runs on, and the change is tried again."
        }
        Reason::NodeFull => {
            "Lower maxEntries of the map that the message names, or raise the memory limit of the agents."
        }
        Reason::MapWritten => "Nothing is wrong: somebody wrote a map, and an Event says who.",
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
    fn what_was_said_decides_what_to_do() {
        for (reason, said, wanted) in [
            (Reason::MapIncompatible, "map hits: share: group flows of namespace net has this map", "another group"),
            (Reason::MapIncompatible, "the object has no map hist; it has hits", "name under spec.maps"),
            (Reason::ObjectInvalid, "count: it is in section xdp, which is for xdp, not for tcx", "its section"),
            (Reason::TargetNotFound, "programs in a circle: a, b, a: each names the next", "Take one position"),
            (Reason::TargetNotFound, "/sys/fs/bpf is not a bpffs; mount one", "Mount the bpffs"),
            (Reason::LimitReached, "xdp on lo: Resource temporarily unavailable (os error 11)", "pids"),
            (Reason::TargetNotFound, "check of EbpfProgram guard not found", "waited for"),
        ] {
            assert!(hint(reason, &[said]).contains(wanted), "{reason}: {said}");
        }
        for (reason, said, wanted) in [
            (Reason::ObjectInvalid, "map hits: maxEntries is outside 1..=4294967295", "from 1 to 4294967295"),
            (
                Reason::ObjectInvalid,
                "map .data: it holds variables, always in one entry; take maxEntries out",
                "maxEntries of the map",
            ),
            (
                Reason::ObjectInvalid,
                "map jumps: it belongs to its revision; only maps that programs fill can be kept or reset",
                "Take the map",
            ),
            (
                Reason::MapIncompatible,
                "map hits: its contents do not fit into maxEntries: 4; give it more, remove entries, or write onUpdate: Reset",
                "Raise spec.maps.<name>.maxEntries",
            ),
        ] {
            // It is the manifest that is wrong: another object would be refused as well.
            let text = hint(reason, &[said]);
            assert!(text.contains(wanted) && !text.contains("push"), "{reason}: {said}: {text}");
        }
        assert!(hint(Reason::MapIncompatible, &["map hits: value size was 8 and is now 16"]).contains("onUpdate"));
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
