//! What programs print by bpf_printk, read from a trace instance of one's own.
//!
//! **Guarantees.** Nobody else misses a line: neither the global trace pipe nor another instance is read. The instance goes
//! with its reader; one that a killed process left goes by [`remove_left`].

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::sys::wait_readable;

/// Documentation/trace/ftrace.rst, "Instances".
const INSTANCES: &str = "/sys/kernel/tracing/instances";
const PREFIX: &str = "skep-";
/// The event behind bpf_printk (since Linux 5.9).
const EVENT: &str = "events/bpf_trace/bpf_trace_printk/enable";

/// Lines, and how many were lost before them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Printed {
    pub lines: Vec<String>,
    pub lost: u64,
}

/// A trace instance that has bpf_printk alone.
#[derive(Debug)]
pub struct Printk {
    dir: PathBuf,
    /// Closed before the instance is removed.
    pipe: Option<File>,
    /// The beginning of a line whose end has not been read yet.
    rest: Vec<u8>,
}

impl Printk {
    /// From now on all that programs print is read here.
    pub fn open() -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let instances = Path::new(INSTANCES);
        remove_left();
        let name = format!("{PREFIX}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = instances.join(name);
        std::fs::create_dir(&dir)?;
        let mut printk = Printk { dir, pipe: None, rest: Vec::new() };
        std::fs::write(printk.dir.join(EVENT), "1")?;
        let pipe = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(printk.dir.join("trace_pipe"))?;
        printk.pipe = Some(pipe);
        Ok(printk)
    }

    /// Takes the lines that are there, a few thousand at most.
    pub fn take(&mut self) -> io::Result<Printed> {
        const MOST: usize = 256 << 10;
        let (mut printed, mut buffer, mut read) = (Printed::default(), vec![0; 16 << 10], 0);
        while let Some(pipe) = self.pipe.as_mut().filter(|_| read < MOST) {
            match pipe.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    read += count;
                    self.rest.extend_from_slice(&buffer[..count]);
                }
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => break,
                Err(e) => return Err(e),
            }
        }
        let end = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let whole: Vec<u8> = self.rest.drain(..end).collect();
        for line in String::from_utf8_lossy(&whole).lines() {
            match lost(line) {
                Some(count) => printed.lost += count,
                None => printed.lines.push(line.to_owned()),
            }
        }
        Ok(printed)
    }

    /// Waits until something is printed, at most for that time.
    pub fn wait(&self, patience: Duration) -> io::Result<()> {
        self.pipe.as_ref().map_or(Ok(()), |pipe| wait_readable(&[pipe.as_fd()], patience))
    }
}

impl Drop for Printk {
    fn drop(&mut self) {
        self.pipe = None;
        // What is left is removed when the next one is made.
        let _ = std::fs::remove_dir(&self.dir);
    }
}

/// `CPU:1 [LOST 52 EVENTS]`, as kernel/trace/trace.c says it.
fn lost(line: &str) -> Option<u64> {
    let (cpu, rest) = line.trim().split_once(" [LOST ")?;
    cpu.strip_prefix("CPU:")?;
    // Where it does not know how many, at least one.
    Some(rest.strip_suffix(" EVENTS]").and_then(|count| count.trim().parse().ok()).unwrap_or(1))
}

/// Removes instances of processes that are not there any more.
pub fn remove_left() {
    for entry in std::fs::read_dir(INSTANCES).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some((pid, _)) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split_once('-')) else {
            continue;
        };
        if pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists() {
            let _ = std::fs::remove_dir(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_lines_are_counted() {
        assert_eq!(lost("CPU:1 [LOST 52 EVENTS]"), Some(52));
        assert_eq!(lost("CPU:0 [LOST EVENTS]"), Some(1));
        assert_eq!(lost("  curl-12 [001] ...11 1.5: bpf_trace_printk: CPU:1 [LOST 52 EVENTS]"), None);
    }
}
