//! Route netlink, as far as the kernel tells facts of eBPF there only (Documentation/userspace-api/netlink).
//!
//! All calls speak for the network namespace of the calling thread.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const RTM_GETLINK: u16 = 18;
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
    let reply = request(RTM_GETLINK, &body)?;
    let Some(xdp) = attribute(reply.get(IFINFO..).unwrap_or(&[]), IFLA_XDP) else { return Ok(None) };
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

/// Sends one request; the payload of the first answer.
fn request(kind: u16, body: &[u8]) -> io::Result<Vec<u8>> {
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
    message.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    message.extend_from_slice(&1u32.to_ne_bytes());
    message.extend_from_slice(&0u32.to_ne_bytes());
    message.extend_from_slice(body);
    // SAFETY: the buffer is live and its length is passed along.
    let sent = unsafe { libc::send(socket.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut answer = vec![0u8; 32 << 10];
    // SAFETY: the buffer is live and its length is passed along.
    let got = unsafe { libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    answer.truncate(got as usize);
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "netlink: short answer");
    let word = |at: usize| answer.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
    let len = word(0).ok_or_else(malformed)? as usize;
    let kind = (word(4).ok_or_else(malformed)? & 0xffff) as u16;
    match kind {
        NLMSG_ERROR => Err(io::Error::from_raw_os_error(-(word(HEADER).ok_or_else(malformed)? as i32))),
        NLMSG_DONE => Ok(Vec::new()),
        _ => answer.get(HEADER..len).map(<[u8]>::to_vec).ok_or_else(malformed),
    }
}
