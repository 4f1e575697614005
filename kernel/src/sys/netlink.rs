//! Route netlink, as far as the kernel tells facts of eBPF there only (Documentation/userspace-api/netlink).
//!
//! All calls speak for the network namespace of the calling thread.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_MULTI: u16 = 2;
const RTM_GETLINK: u16 = 18;
const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_PROG_ID: u16 = 4;
const IFLA_XDP_DRV_PROG_ID: u16 = 5;
const IFLA_XDP_SKB_PROG_ID: u16 = 6;
/// Bytes of struct nlmsghdr.
const HEADER: usize = 16;
/// Bytes of struct ifinfomsg.
const IFINFO: usize = 16;

/// The id of the XDP program on an interface.
pub fn xdp_program(ifindex: u32) -> io::Result<Option<u32>> {
    let mut body = vec![0u8; IFINFO];
    body[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    let reply = request(RTM_GETLINK, 0, &body)?;
    let link = reply.first().and_then(|r| r.get(IFINFO..)).unwrap_or(&[]);
    let Some(xdp) = attribute(link, IFLA_XDP) else { return Ok(None) };
    Ok([IFLA_XDP_PROG_ID, IFLA_XDP_DRV_PROG_ID, IFLA_XDP_SKB_PROG_ID]
        .into_iter()
        .filter_map(|kind| attribute(xdp, kind))
        .filter_map(|value| value.try_into().ok().map(u32::from_ne_bytes))
        .find(|id| *id != 0))
}

/// The payload of the attribute of that kind.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    /// NLA_F_NESTED and NLA_F_NET_BYTEORDER are flags on the kind.
    const KIND: u16 = 0x3fff;
    while attributes.len() >= 4 {
        let len = usize::from(u16::from_ne_bytes([attributes[0], attributes[1]]));
        let kind = u16::from_ne_bytes([attributes[2], attributes[3]]) & KIND;
        let payload = attributes.get(4..len)?;
        if kind == wanted {
            return Some(payload);
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
    None
}

/// Where a tc filter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilterAt {
    pub ifindex: u32,
    /// Ingress or egress of the clsact qdisc: [`INGRESS`], [`EGRESS`].
    pub parent: u32,
    pub priority: u16,
    pub handle: u32,
}

/// A bpf filter that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    pub at: FilterAt,
    pub program_id: u32,
    pub name: String,
}

/// TC_H_CLSACT, and its two hooks (include/uapi/linux/pkt_sched.h).
const CLSACT: u32 = 0xffff_fff1;
pub const INGRESS: u32 = 0xffff_fff2;
pub const EGRESS: u32 = 0xffff_fff3;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const ETH_P_ALL: u16 = 3;
/// Bytes of struct tcmsg.
const TCMSG: usize = 20;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
/// The program's return value is the verdict.
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;

/// struct tcmsg: family, padding, interface, handle, parent, info.
fn tcmsg(ifindex: u32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    let mut body = vec![0u8; 4];
    for word in [ifindex, handle, parent, info] {
        body.extend_from_slice(&word.to_ne_bytes());
    }
    body
}

fn info(priority: u16) -> u32 {
    u32::from(priority) << 16 | u32::from(ETH_P_ALL.to_be())
}

fn put_attribute(body: &mut Vec<u8>, kind: u16, payload: &[u8]) {
    body.extend_from_slice(&((payload.len() + 4) as u16).to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(payload);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// Adds a clsact qdisc; false when one was there already.
pub fn add_clsact(ifindex: u32) -> io::Result<bool> {
    let mut body = tcmsg(ifindex, CLSACT_HANDLE, CLSACT, 0);
    put_attribute(&mut body, TCA_KIND, b"clsact\0");
    match request(RTM_NEWQDISC, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, &body) {
        Ok(_) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Removes the clsact qdisc, and with it every filter on it.
pub fn remove_clsact(ifindex: u32) -> io::Result<()> {
    let mut body = tcmsg(ifindex, CLSACT_HANDLE, CLSACT, 0);
    put_attribute(&mut body, TCA_KIND, b"clsact\0");
    request(RTM_DELQDISC, NLM_F_ACK, &body).map(drop)
}

/// Adds a bpf filter in direct-action mode, or with `replace` puts it in the place of the one with its handle.
pub fn add_filter(at: FilterAt, program: BorrowedFd<'_>, name: &str, replace: bool) -> io::Result<()> {
    let mut body = tcmsg(at.ifindex, at.handle, at.parent, info(at.priority));
    put_attribute(&mut body, TCA_KIND, b"bpf\0");
    let mut options = Vec::new();
    put_attribute(&mut options, TCA_BPF_FD, &program.as_raw_fd().to_ne_bytes());
    let mut text = name.as_bytes().to_vec();
    text.push(0);
    put_attribute(&mut options, TCA_BPF_NAME, &text);
    put_attribute(&mut options, TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes());
    put_attribute(&mut body, TCA_OPTIONS, &options);
    let mode = if replace { NLM_F_CREATE | NLM_F_REPLACE } else { NLM_F_CREATE | NLM_F_EXCL };
    request(RTM_NEWTFILTER, NLM_F_ACK | mode, &body).map(drop)
}

/// Removes a filter.
pub fn remove_filter(at: FilterAt) -> io::Result<()> {
    let mut body = tcmsg(at.ifindex, at.handle, at.parent, info(at.priority));
    put_attribute(&mut body, TCA_KIND, b"bpf\0");
    request(RTM_DELTFILTER, NLM_F_ACK, &body).map(drop)
}

/// The filters of a hook: bpf ones with their program, others (of whoever) with program 0.
pub fn filters(ifindex: u32, parent: u32) -> io::Result<Vec<Filter>> {
    let replies = match request(RTM_GETTFILTER, NLM_F_DUMP, &tcmsg(ifindex, 0, parent, 0)) {
        // No qdisc, no filters.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => return Ok(Vec::new()),
        replies => replies?,
    };
    let word =
        |reply: &[u8], at: usize| reply.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes);
    let filters = replies.iter().filter_map(|reply| {
        let options = attribute(reply.get(TCMSG..)?, TCA_OPTIONS).unwrap_or(&[]);
        let number = |kind: u16| attribute(options, kind).map_or(0, |v| word(v, 0));
        let handle = word(reply, 8);
        // A chain's head is told along with what it holds; it has no handle.
        (handle != 0).then(|| Filter {
            at: FilterAt { ifindex, parent, priority: (word(reply, 16) >> 16) as u16, handle },
            program_id: number(TCA_BPF_ID),
            name: attribute(options, TCA_BPF_NAME).map(super::field_text).unwrap_or_default(),
        })
    });
    Ok(filters.collect())
}

/// Sends one request; the payloads of its answers.
fn request(kind: u16, flags: u16, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    // SAFETY: socket(2) takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded and returned a new descriptor that nobody else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend_from_slice(&((HEADER + body.len()) as u32).to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
    message.extend_from_slice(&1u32.to_ne_bytes());
    message.extend_from_slice(&0u32.to_ne_bytes());
    message.extend_from_slice(body);
    // SAFETY: the buffer is live and its length is passed along.
    let sent = unsafe { libc::send(socket.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut answers = Vec::new();
    loop {
        let mut buffer = vec![0u8; 64 << 10];
        // SAFETY: the buffer is live and its length is passed along.
        let got = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        if got < 0 {
            return Err(io::Error::last_os_error());
        }
        buffer.truncate(got as usize);
        if !collect(&buffer, &mut answers)? {
            return Ok(answers);
        }
    }
}

/// Takes the messages of one datagram over; true when more datagrams follow.
fn collect(mut datagram: &[u8], answers: &mut Vec<Vec<u8>>) -> io::Result<bool> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "netlink: short answer");
    let mut more = false;
    while !datagram.is_empty() {
        let word = |at: usize| datagram.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
        let len = word(0).ok_or_else(malformed)? as usize;
        let kind = word(4).ok_or_else(malformed)?;
        let (kind, flags) = ((kind & 0xffff) as u16, (kind >> 16) as u16);
        let payload = datagram.get(HEADER..len).ok_or_else(malformed)?;
        match kind {
            NLMSG_ERROR => {
                let code = word(HEADER).ok_or_else(malformed)? as i32;
                // Zero acknowledges.
                return if code == 0 { Ok(false) } else { Err(io::Error::from_raw_os_error(-code)) };
            }
            NLMSG_DONE => return Ok(false),
            _ => answers.push(payload.to_vec()),
        }
        more = flags & NLM_F_MULTI != 0;
        datagram = datagram.get(len.next_multiple_of(4)..).unwrap_or(&[]);
    }
    Ok(more)
}
