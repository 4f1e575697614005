//! What a map costs before it is made, and what there is for it.
//!
//! **Guarantees.** A map that cannot fit is refused before any of it is allocated. The kernel would refuse it too, but
//! only after it has filled the cgroup up to its limit; until then each small allocation of another thread of the agent
//! calls the OOM killer (seen on 6.18: an skb of 1 KiB ended an agent of 4 MiB beside a map that was too large), and
//! without a limit the same happens to the whole node. What [`needed`] tells is never more than what the kernel takes.

use std::io;
use std::path::{Path, PathBuf};

use skep_object::map::MapDef;

use crate::probe::read;
use crate::sys::map::types::*;

const BPF_F_NO_PREALLOC: u32 = 1;

/// What the agent itself may need while the map is made.
const RESERVE: u64 = 4 << 20;

/// The memory controller of the caller's cgroup and of those above it, as far as they can be seen.
struct Controller {
    /// From the caller's own to the hierarchy's root.
    cgroups: Vec<PathBuf>,
    limit: &'static str,
    usage: &'static str,
    /// How memory.stat begins the names of what counts the cgroups below, too.
    total: &'static str,
}

impl Controller {
    fn find() -> Option<Controller> {
        Self::in_hierarchy("memory", "cgroup", "memory")
            .map(|cgroups| Controller {
                cgroups,
                limit: "memory.limit_in_bytes",
                usage: "memory.usage_in_bytes",
                total: "total_",
            })
            .or_else(|| {
                let cgroups = Self::in_hierarchy("", "cgroup2", "")?;
                Some(Controller { cgroups, limit: "memory.max", usage: "memory.current", total: "" })
            })
    }

    fn in_hierarchy(controller: &str, kind: &str, option: &str) -> Option<Vec<PathBuf>> {
        let (groups, mounts) = (read("/proc/self/cgroup"), read("/proc/self/mounts"));
        let path = groups.lines().find_map(|line| {
            let mut columns = line.splitn(3, ':').skip(1);
            let names = columns.next()?;
            names.split(',').any(|name| name == controller).then(|| columns.next()).flatten()
        })?;
        let mount = mounts.lines().find_map(|line| {
            let columns: Vec<&str> = line.split(' ').collect();
            let options = columns.get(3)?;
            let found = columns.get(2) == Some(&kind) && (option.is_empty() || options.split(',').any(|o| o == option));
            found.then(|| columns[1])
        })?;
        let own = Path::new(mount).join(path.trim_matches('/'));
        Some(own.ancestors().take_while(|dir| dir.starts_with(mount)).map(Path::to_owned).collect())
    }

    fn limit_of(&self, cgroup: &Path) -> Option<u64> {
        let limit = read(&cgroup.join(self.limit).to_string_lossy());
        // A v1 hierarchy without a limit shows the largest number of whole pages.
        limit.parse().ok().filter(|limit| *limit < 1 << 62)
    }

    /// What is under the limit and not in use; what only caches files is given up when somebody needs it.
    fn left_of(&self, cgroup: &Path) -> Option<u64> {
        let limit = self.limit_of(cgroup)?;
        let used: u64 = read(&cgroup.join(self.usage).to_string_lossy()).parse().ok()?;
        let stat = read(&cgroup.join("memory.stat").to_string_lossy());
        let cached: u64 = ["inactive_file", "active_file"]
            .iter()
            .filter_map(|name| number(&stat, &format!("{}{name} ", self.total)))
            .sum();
        Some(limit.saturating_sub(used.saturating_sub(cached)))
    }
}

/// The number behind a name at the start of a line.
fn number(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

/// The memory limit of the caller's own cgroup, to which its maps are charged (v2 or v1); `None` without one.
pub fn limit() -> Option<u64> {
    let controller = Controller::find()?;
    controller.limit_of(controller.cgroups.first()?)
}

/// What the node and the caller's cgroups have for a new map, in bytes; `None` if nobody tells.
fn left() -> Option<u64> {
    let node = number(&read("/proc/meminfo"), "MemAvailable:").map(|kib| kib << 10);
    let controller = Controller::find();
    let groups = controller.iter().flat_map(|c| c.cgroups.iter().filter_map(|cgroup| c.left_of(cgroup)));
    groups.chain(node).min()
}

/// ENOMEM for a map that cannot be made. What is small is not looked into.
pub fn room_for(def: &MapDef) -> io::Result<()> {
    let needed = needed(def, crate::cpus::possible()?);
    if needed < RESERVE || left().is_none_or(|left| needed.saturating_add(RESERVE) <= left) {
        return Ok(());
    }
    Err(io::Error::from_raw_os_error(libc::ENOMEM))
}

/// Bytes that the kernel allocates as it makes a map: the large parts only, as the `map_mem_usage` of its types counts
/// them on 6.12 (kernel/bpf/hashtab.c, arraymap.c, ringbuf.c, queue_stack_maps.c, bloom_filter.c).
pub fn needed(def: &MapDef, cpus: u32) -> u64 {
    const BUCKET: u64 = 16;
    // struct htab_elem without its key.
    const ELEMENT: u64 = 48;
    let round = |bytes: u32| u64::from(bytes).next_multiple_of(8);
    let (entries, cpus) = (u64::from(def.max_entries), u64::from(cpus));
    let (key, value) = (round(def.key_size), round(def.value_size));
    let buckets = entries.checked_next_power_of_two().unwrap_or(entries) * BUCKET;
    let preallocated = def.flags & BPF_F_NO_PREALLOC == 0;
    let each = match def.map_type {
        HASH | LRU_HASH if preallocated => ELEMENT + key + value,
        PERCPU_HASH | LRU_PERCPU_HASH if preallocated => ELEMENT + key + 8 + value * cpus,
        HASH_OF_MAPS if preallocated => ELEMENT + key + 8,
        ARRAY => value,
        PERCPU_ARRAY => 8 + value * cpus,
        QUEUE | STACK => u64::from(def.value_size),
        RINGBUF | USER_RINGBUF => 1,
        // A pointer for each.
        PROG_ARRAY | PERF_EVENT_ARRAY | CGROUP_ARRAY | ARRAY_OF_MAPS | DEVMAP | SOCKMAP | REUSEPORT_SOCKARRAY
        | XSKMAP | CPUMAP => 8,
        _ => 0,
    };
    let hashes = matches!(def.map_type, HASH | LRU_HASH | PERCPU_HASH | LRU_PERCPU_HASH | HASH_OF_MAPS);
    let table = if hashes { buckets } else { 0 };
    each.saturating_mul(entries).saturating_add(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_hash_needs_is_more_than_its_keys_and_values() {
        let def = MapDef { map_type: HASH, key_size: 8, value_size: 16, max_entries: 8_000_000, ..MapDef::default() };
        assert_eq!(needed(&def, 2), 8_000_000 * 72 + (8 << 20) * 16);
        let lazy = MapDef { flags: BPF_F_NO_PREALLOC, ..def.clone() };
        assert_eq!(needed(&lazy, 2), (8 << 20) * 16);
        let largest = MapDef { map_type: ARRAY, value_size: u32::MAX, max_entries: u32::MAX, ..def };
        assert!(needed(&largest, 512) > 1 << 62);
    }

    #[test]
    fn numbers_of_memory_stat_are_found_by_their_whole_names() {
        let stat = "inactive_file 5\nactive_file 7\ntotal_inactive_file 9\n";
        assert_eq!(number(stat, "active_file "), Some(7));
        assert_eq!(number(stat, "total_inactive_file "), Some(9));
        assert_eq!(number("MemAvailable:   12 kB", "MemAvailable:"), Some(12));
        assert_eq!(number(stat, "shmem "), None);
    }
}
