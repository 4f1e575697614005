//! What this kernel can load **and attach**, kind by kind.
//!
//! **Guarantees.** Programs of two instructions are loaded and gone again; see [`crate::attach`] for how attaching is asked
//! for. Nothing is left, and nothing else is disturbed.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

use skep_object::btf::{Btf, Kind as BtfKind};
use skep_object::insn::Insn;
use skep_object::kind::{AttachTo, KINDS, Kind, LoadAttributes, attach as hook};

use crate::age;
use crate::attach;
use crate::error::KernelError;
use crate::sys::{self, program::Load};

/// A hook of a kind, such as every kernel has that has the kind: its attach type, and the function it is on.
struct Sample(Kind, u32, &'static str);

/// Of kinds that must be loaded for a hook.
const SAMPLES: [Sample; 16] = [
    Sample(Kind::Tcx, hook::TCX_INGRESS, ""),
    Sample(Kind::Netkit, hook::NETKIT_PRIMARY, ""),
    // connect4, sock_create, getsockopt.
    Sample(Kind::CgroupSockAddr, 10, ""),
    Sample(Kind::CgroupSock, 2, ""),
    Sample(Kind::CgroupSockopt, 21, ""),
    Sample(Kind::LsmCgroup, hook::LSM_CGROUP, "bpf_lsm_socket_bind"),
    Sample(Kind::SkSkb, hook::SK_SKB_VERDICT, ""),
    Sample(Kind::BtfTracepoint, hook::TRACE_RAW_TP, "sys_enter"),
    Sample(Kind::UprobeMulti, hook::TRACE_UPROBE_MULTI, ""),
    Sample(Kind::KprobeMulti, hook::TRACE_KPROBE_MULTI, ""),
    // The kernel's own, for tests of itself.
    Sample(Kind::Fentry, hook::TRACE_FENTRY, "bpf_fentry_test1"),
    Sample(Kind::Fexit, hook::TRACE_FEXIT, "bpf_fentry_test1"),
    // Functions of that prefix are, whatever the kernel is built with.
    Sample(Kind::FmodRet, hook::MODIFY_RETURN, "security_file_open"),
    Sample(Kind::Lsm, hook::LSM_MAC, "bpf_lsm_file_open"),
    Sample(Kind::Iter, hook::TRACE_ITER, "bpf_iter_task"),
    // It takes a function's place as fentry gets before it; there may be no program that has one.
    Sample(Kind::Freplace, hook::TRACE_FENTRY, "bpf_fentry_test1"),
];

/// Why a kind cannot be used on this kernel, for each.
#[derive(Debug)]
pub struct Support {
    pub kind: Kind,
    pub missing: Option<KernelError>,
}

/// Probes all kinds.
pub fn kinds() -> Vec<Support> {
    let types = std::fs::read(crate::host::VMLINUX).ok().and_then(|data| Btf::parse(&data).ok());
    let ids = types.as_ref().map(ids).unwrap_or_default();
    drop(types);
    // What was read is some megabytes, and is not needed again.
    sys::trim_heap();
    let mut loaded: HashMap<LoadAttributes, OwnedFd> = HashMap::new();
    let mut probe = |kind: Kind| {
        let Sample(_, attach_type, target) = *sample(kind).unwrap_or(&Sample(kind, kind.row().attach_type, ""));
        let like = if kind == Kind::Freplace { Kind::Fentry } else { kind };
        let attributes = LoadAttributes::new(like, attach_type, target, "");
        if !loaded.contains_key(&attributes) {
            loaded.insert(attributes.clone(), load(kind, &attributes, &ids)?);
        }
        attach::probe(kind, attach_type, loaded[&attributes].as_fd())
    };
    KINDS.iter().map(|row| Support { kind: row.kind, missing: probe(row.kind).err() }).collect()
}

fn sample(kind: Kind) -> Option<&'static Sample> {
    SAMPLES.iter().find(|Sample(of, ..)| *of == kind)
}

/// By name, in one walk over the types.
fn ids(types: &Btf) -> HashMap<String, u32> {
    let typedef = |name: &str| format!("btf_trace_{name}");
    let mut wanted: HashMap<String, BtfKind> = HashMap::new();
    for Sample(kind, _, target) in SAMPLES.iter().filter(|Sample(.., target)| !target.is_empty()) {
        match kind {
            Kind::BtfTracepoint => wanted.insert(typedef(target), BtfKind::Typedef),
            _ => wanted.insert((*target).to_owned(), BtfKind::Func),
        };
    }
    let mut found = HashMap::new();
    for id in 1..types.len() {
        if matches!(types.kind(id), BtfKind::Func | BtfKind::Typedef)
            && wanted.get(types.name(id)) == Some(&types.kind(id))
        {
            found.insert(types.name(id).to_owned(), id);
        }
    }
    found
}

fn load(kind: Kind, attributes: &LoadAttributes, ids: &HashMap<String, u32>) -> Result<OwnedFd, KernelError> {
    let id = |name: String| {
        ids.get(&name).copied().ok_or_else(|| KernelError::KernelUnsupported {
            what: kind.to_string(),
            why: "this kernel does not describe its types (CONFIG_DEBUG_INFO_BTF), or lacks that part".into(),
        })
    };
    let attach_btf_id = match &attributes.attach_to {
        AttachTo::Nothing | AttachTo::ProgramFunction { .. } => 0,
        AttachTo::Function(name) => id(name.clone())?,
        AttachTo::Tracepoint(name) => id(format!("btf_trace_{name}"))?,
    };
    // Of some kinds one is the answer that lets things go on, of others zero.
    let attempt = |answer: i32| {
        let returns = Insn { code: 0xb7, regs: 0, off: 0, imm: answer };
        let exit = Insn { code: 0x95, regs: 0, off: 0, imm: 0 };
        let load = Load {
            name: "probe",
            program_type: attributes.program_type,
            expected_attach_type: attributes.expected_attach_type,
            insns: &[returns, exit],
            license: "GPL",
            attach_btf_id,
            ..Load::default()
        };
        load.run()
    };
    attempt(0).or_else(|_| attempt(1)).map_err(|refused| {
        KernelError::refused_load(kind.row().name, refused, || age::of_kind(kind, attributes.expected_attach_type))
    })
}
