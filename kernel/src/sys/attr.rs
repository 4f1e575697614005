//! Parts of `union bpf_attr`, field for field (include/uapi/linux/bpf.h, Linux 6.18). None has bytes between or behind its
//! fields: those would be whatever was there before, and an older kernel refuses all that it does not know if it is not 0.

#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct MapCreate {
    pub map_type: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub flags: u32,
    pub inner_fd: u32,
    pub numa_node: u32,
    pub name: [u8; 16],
    pub ifindex: u32,
    pub btf_fd: u32,
    pub key_type: u32,
    pub value_type: u32,
    pub vmlinux_value_type: u32,
    pub extra: u64,
}

#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct MapElement {
    pub map_fd: u32,
    pub _pad: u32,
    pub key: u64,
    /// Or where the next key goes.
    pub value: u64,
    pub flags: u64,
}

#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct MapBatch {
    pub in_batch: u64,
    pub out_batch: u64,
    pub keys: u64,
    pub values: u64,
    pub count: u32,
    pub map_fd: u32,
    pub element_flags: u64,
    pub flags: u64,
}

#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct ProgLoad {
    pub program_type: u32,
    pub insn_count: u32,
    pub insns: u64,
    pub license: u64,
    pub log_level: u32,
    pub log_size: u32,
    pub log: u64,
    pub kernel_version: u32,
    pub flags: u32,
    pub name: [u8; 16],
    pub ifindex: u32,
    pub expected_attach_type: u32,
    pub btf_fd: u32,
    pub func_info_size: u32,
    pub func_info: u64,
    pub func_info_count: u32,
    pub line_info_size: u32,
    pub line_info: u64,
    pub line_info_count: u32,
    pub attach_btf_id: u32,
    pub attach_fd: u32,
    pub _core_count: u32,
    pub fds: u64,
}

#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct ObjectPath {
    pub path: u64,
    pub fd: u32,
    pub flags: u32,
}

#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct TestRun {
    pub prog_fd: u32,
    pub retval: u32,
    pub data_size_in: u32,
    pub data_size_out: u32,
    pub data_in: u64,
    pub data_out: u64,
    pub repeat: u32,
    pub duration: u32,
    pub ctx_size_in: u32,
    pub ctx_size_out: u32,
    pub ctx_in: u64,
    pub ctx_out: u64,
    pub flags: u32,
    pub cpu: u32,
}

#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct StreamRead {
    pub buffer: u64,
    pub len: u32,
    pub stream_id: u32,
    pub prog_fd: u32,
    pub _pad: u32,
}

#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct EnableStats {
    pub stats_type: u32,
}

#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct NextId {
    pub start: u32,
    pub next: u32,
    pub flags: u32,
}

#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct FdById {
    pub id: u32,
    pub next: u32,
    pub flags: u32,
}

#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct InfoByFd {
    pub fd: u32,
    pub size: u32,
    pub info: u64,
}

#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct RawTracepoint {
    pub name: u64,
    pub prog_fd: u32,
    pub _pad: u32,
    pub cookie: u64,
}

#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct BtfLoad {
    pub btf: u64,
    pub log: u64,
    pub size: u32,
    pub log_size: u32,
    pub log_level: u32,
    pub _true_size: u32,
}

#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct LinkCreate {
    pub prog_fd: u32,
    /// A descriptor, or an interface index.
    pub target: u32,
    pub attach_type: u32,
    pub flags: u32,
    /// netfilter: family, hook, priority, flags; tcx: the link beside which it goes, 0, expected revision (8 bytes);
    /// iterators: the address (8 bytes) and the length of what they go through; probes on many places: see `link`.
    pub extra: [u32; 12],
}

#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct IterCreate {
    pub link_fd: u32,
    pub flags: u32,
}

#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct ProgQuery {
    /// A descriptor, or an interface index.
    pub target: u32,
    pub attach_type: u32,
    pub query_flags: u32,
    pub attach_flags: u32,
    pub program_ids: u64,
    pub count: u32,
    pub _pad: u32,
    pub program_flags: u64,
    pub link_ids: u64,
    pub link_flags: u64,
    pub revision: u64,
}

#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct LinkUpdate {
    pub link_fd: u32,
    pub new_prog_fd: u32,
    pub flags: u32,
    pub old_prog_fd: u32,
}

#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct OneFd {
    pub fd: u32,
}
