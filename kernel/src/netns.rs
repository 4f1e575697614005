//! Work inside another network namespace, on a thread made for it: a runtime's thread that changed its namespace would
//! take everything that later runs on it along.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use crate::error::KernelError;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub index: u32,
    pub name: String,
    /// Carries a default route of its namespace.
    pub primary: bool,
}

/// A network namespace as seen at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetnsView {
    /// SO_NETNS_COOKIE.
    pub cookie: u64,
    pub interfaces: Vec<Interface>,
}

/// Runs `f` inside the network namespace at `path`; without a path, in the caller's.
pub fn within<T: Send>(path: Option<&Path>, f: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let Some(path) = path else { return f() };
    let netns = File::open(path)?;
    std::thread::scope(|scope| {
        // It may be refused: the limit of processes counts threads.
        let worker = std::thread::Builder::new().spawn_scoped(scope, move || {
            // SAFETY: setns(2) on a live descriptor changes this thread only, which ends with the closure.
            if unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
                return Err(io::Error::last_os_error());
            }
            f()
        })?;
        worker.join().unwrap_or_else(|_| Err(io::Error::other("the namespace's thread panicked")))
    })
}

/// The interfaces of a network namespace.
pub fn view(path: &Path) -> Result<NetnsView, KernelError> {
    let what = || format!("looking into the network namespace {}", path.display());
    within(Some(path), || Ok(NetnsView { cookie: cookie()?, interfaces: interfaces()? })).map_err(|e| {
        if e.kind() == io::ErrorKind::NotFound {
            return KernelError::TargetNotFound {
                target: path.display().to_string(),
                why: "its process is gone".into(),
            };
        }
        if e.raw_os_error() == Some(libc::ENOPROTOOPT) {
            let why = "the cookies by which namespaces are told apart came with Linux 5.14".into();
            return KernelError::KernelUnsupported { what: what(), why };
        }
        KernelError::Io { what: what(), source: e }
    })
}

/// The cookie of the calling thread's network namespace (Linux 5.14).
pub fn cookie() -> io::Result<u64> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the option's value is a u64 and the buffer is one, with its length beside it.
    let ret = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if ret == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

fn interfaces() -> io::Result<Vec<Interface>> {
    let primary = default_route_interfaces();
    // SAFETY: no arguments; the list returned is NULL or ends with an entry of index 0, and is freed below.
    let list = unsafe { libc::if_nameindex() };
    if list.is_null() {
        return Err(io::Error::last_os_error());
    }
    let mut found = Vec::new();
    let mut entry = list;
    loop {
        // SAFETY: `entry` is inside the list: the loop ends at the entry with index 0.
        let (index, name) = unsafe { ((*entry).if_index, (*entry).if_name) };
        if index == 0 || name.is_null() {
            break;
        }
        // SAFETY: the name of an entry that is not the last is a NUL-terminated string.
        let name = unsafe { std::ffi::CStr::from_ptr(name) }.to_string_lossy().into_owned();
        found.push(Interface { index, primary: primary.contains(&name), name });
        // SAFETY: this was not the last entry, so there is a next one.
        entry = unsafe { entry.add(1) };
    }
    // SAFETY: the list came from if_nameindex and is not used any more.
    unsafe { libc::if_freenameindex(list) };
    found.sort_by_key(|i| i.index);
    Ok(found)
}

/// Names of the devices of the default route of the calling thread's namespace: IPv4's, else IPv6's; of several those
/// with the lowest metric.
fn default_route_interfaces() -> Vec<String> {
    let v4 = std::fs::read_to_string("/proc/thread-self/net/route").unwrap_or_default();
    let v6 = std::fs::read_to_string("/proc/thread-self/net/ipv6_route").unwrap_or_default();
    primary(&v4, &v6)
}

fn primary(v4: &str, v6: &str) -> Vec<String> {
    let mut routes: Vec<(u32, String)> = v4.lines().skip(1).filter_map(v4_default).collect();
    if routes.is_empty() {
        routes = v6.lines().filter_map(v6_default).collect();
    }
    let lowest = routes.iter().map(|(metric, _)| *metric).min();
    let mut names: Vec<String> =
        routes.into_iter().filter(|(metric, _)| Some(*metric) == lowest).map(|(_, name)| name).collect();
    names.sort();
    names.dedup();
    names
}

/// Columns: Iface Destination Gateway Flags RefCnt Use Metric Mask ...
fn v4_default(line: &str) -> Option<(u32, String)> {
    let columns: Vec<&str> = line.split_whitespace().collect();
    let default = columns.get(1) == Some(&"00000000") && columns.get(7) == Some(&"00000000");
    default.then(|| Some((columns[6].parse().ok()?, columns[0].to_owned()))).flatten()
}

/// Columns: destination, its prefix length, source, its prefix length, next hop, metric, ..., flags (RTF_UP is 1),
/// interface.
fn v6_default(line: &str) -> Option<(u32, String)> {
    let columns: Vec<&str> = line.split_whitespace().collect();
    let up = u32::from_str_radix(columns.get(8)?, 16).ok()? & 1 != 0;
    let reject = u32::from_str_radix(columns.get(8)?, 16).ok()? & 0x200 != 0;
    let name = columns.get(9)?;
    let default = columns[0].bytes().all(|b| b == b'0') && columns[1] == "00";
    let metric = u32::from_str_radix(columns[5], 16).ok()?;
    (default && up && !reject && *name != "lo").then(|| (metric, (*name).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_routes_are_told_from_others() {
        let v4 =
            |name: &str, metric: u32| format!("{name}\t00000000\t0101A8C0\t0003\t0\t0\t{metric}\t00000000\t0\t0\t0");
        assert_eq!(v4_default(&v4("eth0", 5)), Some((5, "eth0".into())));
        assert_eq!(v4_default("eth0\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0"), None);
        let zero = "0".repeat(32);
        let line = |flags: &str, dev: &str| format!("{zero} 00 {zero} 00 {zero} 00000400 1 0 {flags} {dev}");
        assert_eq!(v6_default(&line("00000003", "eth0")), Some((0x400, "eth0".into())));
        assert_eq!(v6_default(&line("00200200", "lo")), None);
        let table = |lines: &[String]| format!("Iface Destination\n{}", lines.join("\n"));
        let six = line("00000003", "six");
        assert_eq!(primary(&table(&[v4("slow", 600), v4("fast", 100), v4("also", 100)]), &six), ["also", "fast"]);
        assert_eq!(primary(&table(&[]), &six), ["six"], "only where there is none of IPv4");
    }
}
