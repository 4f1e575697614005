//! Links.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use super::attr::{FdById, IterCreate, LinkCreate, LinkUpdate, OneFd, ProgQuery, RawTracepoint};
use super::{Command, bpf, bpf_fd, ids, info_by_fd, raw};

/// BPF_F_REPLACE: only if the old program is the one given.
const BPF_F_REPLACE: u32 = 1 << 2;

/// Where a link goes.
#[derive(Clone, Copy, Debug)]
pub enum LinkTarget<'a> {
    Fd(BorrowedFd<'a>),
    Interface(u32),
    /// Among the programs of an interface that have an order.
    Ordered(u32, Option<Beside<'a>>),
    /// The calling thread's network namespace.
    Netfilter(NetfilterAt),
    /// A function of a program, by its BTF id there.
    Function(BorrowedFd<'a>, u32),
    /// Functions of the kernel by name; at their return.
    Functions(&'a [CString], bool),
    /// Offsets in a file; at the return of the functions there.
    Offsets(&'a CStr, &'a [u64], bool),
    /// All elements of a map, for a program that is an iterator.
    Elements(BorrowedFd<'a>),
    /// The program was loaded for its target; nothing more to say.
    Loaded,
}

/// A place beside another link, or beside all.
#[derive(Clone, Copy, Debug)]
pub struct Beside<'a> {
    pub side: Side,
    pub link: Option<BorrowedFd<'a>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Before,
    After,
}

/// BPF_F_BEFORE, BPF_F_AFTER, BPF_F_LINK.
const BEFORE: u32 = 1 << 3;
const AFTER: u32 = 1 << 4;
const RELATIVE_IS_LINK: u32 = 1 << 13;

/// A place in the path of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetfilterAt {
    /// NFPROTO_*.
    pub family: u32,
    /// NF_INET_*.
    pub hook: u32,
    pub priority: i32,
    /// BPF_F_NETFILTER_IP_DEFRAG.
    pub defragment: bool,
}

/// BPF_F_NETFILTER_IP_DEFRAG.
const DEFRAGMENT: u32 = 1;

/// Creates a link.
pub fn create(program: BorrowedFd<'_>, target: LinkTarget<'_>, attach_type: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut attr = LinkCreate { prog_fd: raw(program), attach_type, flags, ..LinkCreate::default() };
    // union bpf_iter_link_info, of which a map's descriptor is the first word.
    let mut iterated = [0u32; 4];
    let mut symbols: Vec<u64> = Vec::new();
    match target {
        LinkTarget::Fd(fd) => attr.target = raw(fd),
        LinkTarget::Interface(index) => attr.target = index,
        LinkTarget::Ordered(index, beside) => {
            attr.target = index;
            if let Some(Beside { side, link }) = beside {
                attr.flags |= if side == Side::Before { BEFORE } else { AFTER };
                if let Some(link) = link {
                    attr.flags |= RELATIVE_IS_LINK;
                    attr.extra[0] = raw(link);
                }
            }
        }
        LinkTarget::Netfilter(at) => {
            let priority = at.priority.cast_unsigned();
            attr.extra[..4].copy_from_slice(&[
                at.family,
                at.hook,
                priority,
                if at.defragment { DEFRAGMENT } else { 0 },
            ]);
        }
        LinkTarget::Function(target, btf_id) => {
            attr.target = raw(target);
            attr.extra[0] = btf_id;
        }
        LinkTarget::Elements(map) => {
            iterated[0] = raw(map);
            attr.extra[..2].copy_from_slice(&halves(iterated.as_mut_ptr() as u64));
            attr.extra[2] = size_of_val(&iterated) as u32;
        }
        // link_create.kprobe_multi: flags, cnt, syms.
        LinkTarget::Functions(names, on_return) => {
            symbols.extend(names.iter().map(|name| name.as_ptr() as u64));
            attr.extra[0] = u32::from(on_return);
            attr.extra[1] = names.len() as u32;
            attr.extra[2..4].copy_from_slice(&halves(symbols.as_ptr() as u64));
        }
        // link_create.uprobe_multi: path, offsets, ref_ctr_offsets, cookies, cnt, flags, pid.
        LinkTarget::Offsets(path, offsets, on_return) => {
            attr.extra[..2].copy_from_slice(&halves(path.as_ptr() as u64));
            attr.extra[2..4].copy_from_slice(&halves(offsets.as_ptr() as u64));
            attr.extra[8] = offsets.len() as u32;
            attr.extra[9] = u32::from(on_return);
        }
        LinkTarget::Loaded => {}
    }
    bpf_fd(Command::LinkCreate, &mut attr)
}

/// An address as two words, the lower first.
fn halves(address: u64) -> [u32; 2] {
    [address as u32, (address >> 32) as u32]
}

/// What an iterator writes, to be read as a file.
pub fn iterate(link: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    bpf_fd(Command::IterCreate, &mut IterCreate { link_fd: raw(link), flags: 0 })
}

/// Attaches to a raw tracepoint; without a name to the one that the program was loaded for (also fentry and fexit).
pub fn raw_tracepoint(program: BorrowedFd<'_>, name: Option<&str>) -> io::Result<OwnedFd> {
    let name = name.map(CString::new).transpose().map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let mut attr = RawTracepoint {
        name: name.as_ref().map_or(0, |n| n.as_ptr() as u64),
        prog_fd: raw(program),
        ..RawTracepoint::default()
    };
    bpf_fd(Command::RawTracepointOpen, &mut attr)
}

/// Puts `new` in the place of `old`, in one step; EPERM when another program than `old` is there.
pub fn replace(link: BorrowedFd<'_>, new: BorrowedFd<'_>, old: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr =
        LinkUpdate { link_fd: raw(link), new_prog_fd: raw(new), flags: BPF_F_REPLACE, old_prog_fd: raw(old) };
    bpf(Command::LinkUpdate, &mut attr).map(drop)
}

/// Detaches while descriptors and pins stay. EOPNOTSUPP for kinds that live as long as they are held.
pub fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(Command::LinkDetach, &mut OneFd { fd: raw(link) }).map(drop)
}

/// What the kernel says of a link (struct bpf_link_info).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    pub id: u32,
    pub program_id: u32,
    pub kind: LinkKind,
}

/// The kind of link, and where it is. Zero means that the target is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    Xdp {
        ifindex: u32,
    },
    /// Or netkit.
    Tcx {
        ifindex: u32,
        attach_type: u32,
    },
    Cgroup {
        id: u64,
        attach_type: u32,
    },
    Netns {
        ino: u32,
    },
    Netfilter(NetfilterAt),
    /// On a map.
    Map {
        id: u32,
    },
    /// Kinds whose target cannot go away under them.
    Other {
        link_type: u32,
    },
}

impl LinkInfo {
    /// The interface of an XDP link that is on one.
    pub fn xdp_interface(&self) -> Option<u32> {
        match self.kind {
            LinkKind::Xdp { ifindex } if ifindex != 0 => Some(ifindex),
            _ => None,
        }
    }

    /// The map that it is on.
    pub fn map(&self) -> Option<u32> {
        match self.kind {
            LinkKind::Map { id } if id != 0 => Some(id),
            _ => None,
        }
    }

    /// The target is still there.
    pub fn is_alive(&self) -> bool {
        match self.kind {
            LinkKind::Xdp { ifindex } | LinkKind::Tcx { ifindex, .. } => ifindex != 0,
            LinkKind::Cgroup { id, .. } => id != 0,
            LinkKind::Netns { ino } => ino != 0,
            LinkKind::Map { id } => id != 0,
            // It holds its network namespace, which lives as long as the link. Of one that somebody else detached the
            // kernel says the same as before.
            LinkKind::Netfilter(_) => true,
            LinkKind::Other { .. } => true,
        }
    }
}

/// enum bpf_link_type.
mod link_type {
    pub const CGROUP: u32 = 3;
    pub const ITER: u32 = 4;
    pub const NETNS: u32 = 5;
    pub const XDP: u32 = 6;
    pub const NETFILTER: u32 = 10;
    pub const TCX: u32 = 11;
    pub const NETKIT: u32 = 13;
    pub const SOCKMAP: u32 = 14;
}

/// What the kernel says of the link.
pub fn info(fd: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    #[repr(C)]
    #[derive(Default)]
    struct Raw {
        link_type: u32,
        id: u32,
        program_id: u32,
        _pad: u32,
        /// A union; its first 16 bytes are enough for the kinds told apart here.
        words: [u32; 4],
    }
    let mut r = Raw::default();
    info_by_fd(fd, &mut r)?;
    let kind = match r.link_type {
        link_type::XDP => LinkKind::Xdp { ifindex: r.words[0] },
        link_type::TCX | link_type::NETKIT => LinkKind::Tcx { ifindex: r.words[0], attach_type: r.words[1] },
        link_type::CGROUP => {
            LinkKind::Cgroup { id: u64::from(r.words[0]) | u64::from(r.words[1]) << 32, attach_type: r.words[2] }
        }
        link_type::NETNS => LinkKind::Netns { ino: r.words[0] },
        link_type::NETFILTER => {
            let [family, hook, priority, flags] = r.words;
            let defragment = flags & DEFRAGMENT != 0;
            LinkKind::Netfilter(NetfilterAt { family, hook, priority: priority.cast_signed(), defragment })
        }
        link_type::SOCKMAP => LinkKind::Map { id: r.words[0] },
        // An address and a length of the kind's name, 0 without a buffer for it; then the map's id, of those that have one.
        link_type::ITER if r.words[3] != 0 => LinkKind::Map { id: r.words[3] },
        other => LinkKind::Other { link_type: other },
    };
    Ok(LinkInfo { id: r.id, program_id: r.program_id, kind })
}

/// A program on a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnHook {
    pub program_id: u32,
    /// 0 if it is there without one.
    pub link_id: u32,
}

/// The programs of an interface of the calling thread's network namespace, in the order in which they run.
pub fn on_interface(ifindex: u32, attach_type: u32) -> io::Result<Vec<OnHook>> {
    // The kernel takes 63.
    let (mut programs, mut links) = ([0u32; 64], [0u32; 64]);
    let mut attr = ProgQuery {
        target: ifindex,
        attach_type,
        program_ids: programs.as_mut_ptr() as u64,
        link_ids: links.as_mut_ptr() as u64,
        count: programs.len() as u32,
        ..ProgQuery::default()
    };
    match bpf(Command::ProgQuery, &mut attr) {
        // Nothing was ever attached there.
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(Vec::new()),
        other => other?,
    };
    let all = programs.into_iter().zip(links).take(attr.count as usize);
    Ok(all.map(|(program_id, link_id)| OnHook { program_id, link_id }).collect())
}

/// Opens a link by id.
pub fn by_id(id: u32) -> io::Result<OwnedFd> {
    bpf_fd(Command::LinkFdById, &mut FdById { id, next: 0, flags: 0 })
}

/// Ids of all links of the host.
pub fn all_ids() -> io::Result<Vec<u32>> {
    ids(Command::LinkNextId)
}
