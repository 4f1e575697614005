//! Hooks for tracing: tracepoints and functions, in the kernel and in user space.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::selector::PodSelector;

/// A static tracepoint: `/sys/kernel/tracing/events/<category>/<name>`.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct KernelTracepoint {
    /// The tracepoint's category: `sched`, `syscalls`.
    #[schemars(length(min = 1, max = 127), regex(pattern = r"^[A-Za-z0-9_-]+$"))]
    pub category: String,
    /// The tracepoint's name in its category: `sched_switch`, `sys_enter_openat`.
    #[schemars(length(min = 1, max = 127), regex(pattern = r"^[A-Za-z0-9_]+$"))]
    pub name: String,
}

/// A tracepoint with its raw arguments.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RawTracepoint {
    /// The tracepoint's name, without category: `sched_switch`.
    #[schemars(length(min = 1, max = 127), regex(pattern = r"^[A-Za-z0-9_]+$"))]
    pub name: String,
}

/// A tracepoint with arguments typed by the kernel's BTF.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct BtfTracepoint {
    /// The tracepoint's name, without category: `sched_switch`.
    #[schemars(length(min = 1, max = 127), regex(pattern = r"^[A-Za-z0-9_]+$"))]
    pub name: String,
}

/// A kernel function.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Function {
    /// The function's name in the kernel, or in a loaded module: `tcp_connect`.
    #[schemars(length(min = 1, max = 127), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_.]*$"))]
    pub function: String,
}

/// A security hook.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Lsm {
    /// The hook's name, as `include/linux/lsm_hook_defs.h` of the kernel has it: `file_open`, `bprm_check_security`.
    #[schemars(length(min = 1, max = 119), regex(pattern = r"^[a-z0-9_]+$"))]
    pub hook: String,
}

/// A function of the kernel, or of another EbpfProgram of the namespace.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct TracedFunction {
    /// The function's name in the kernel, or in a loaded module: `tcp_connect`. With `ebpfProgram`: in its object.
    #[schemars(length(min = 1, max = 127), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_.]*$"))]
    pub function: String,
    /// The name of another EbpfProgram, which has the function. One that is not on the node is reported as
    /// `TargetNotFound`, and waited for; its new revisions are followed before they run. Absent: a kernel function.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub ebpf_program: Option<String>,
}

/// A kernel function, or an instruction inside of it.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Kprobe {
    /// The function's name in the kernel, or in a loaded module: `tcp_connect`.
    #[schemars(length(min = 1, max = 127), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_.]*$"))]
    pub function: String,
    /// Bytes from the function's start, at an instruction's boundary. Absent: its entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1048575))]
    pub offset: Option<i64>,
}

/// A system call.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Syscall {
    /// Its name, as section 2 of the manual has it: `openat`. What the kernel calls it (`__x64_sys_openat`) is found on the
    /// node.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9_]+$"))]
    pub syscall: String,
}

/// Objects of the kernel.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Iter {
    /// Their kind, as in the section `iter/...`: `task`, `task_file`, `task_vma`, `tcp`, `udp`, `unix`, `bpf_map`, `bpf_prog`,
    /// `bpf_link`, `cgroup`, `ksym`, or `bpf_map_elem`, `bpf_sk_storage_map` and `sockmap`, which go through a map.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9_]+$"))]
    pub target: String,
    /// The name of a map of the object, whose elements are gone through. For targets that go through a map.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 127), regex(pattern = r"^[A-Za-z_.$][A-Za-z0-9_.$]*$"))]
    pub map: Option<String>,
}

/// An event that each CPU counts. Exactly one of `frequency` and `period` is given.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.frequency) != has(self.period)").message("how often? Give exactly one of frequency, in runs per second and CPU, and period, in events between two runs"))]
pub struct PerfEvent {
    /// What is counted.
    pub event: CpuEvent,
    /// Runs per second on each CPU, which the kernel tries to keep to: 1 to 100000; the node may have a lower limit
    /// (`kernel.perf_event_max_sample_rate`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100000))]
    pub frequency: Option<i64>,
    /// Events between two runs; of the clocks, nanoseconds (at least 10000).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 9007199254740991i64))]
    pub period: Option<i64>,
    /// Only while a process of the selected pods' containers runs. Absent: always.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<PodSelector>,
}

/// An event, as perf_event_open(2) has it. Of the kernel: `CpuClock` (time, also while a CPU is idle), `TaskClock`,
/// `PageFaults`, `MinorFaults`, `MajorFaults`, `ContextSwitches`, `CpuMigrations`, `AlignmentFaults`, `EmulationFaults`. Of
/// the hardware, which virtual machines often lack: `CpuCycles`, `Instructions`, `CacheReferences`, `CacheMisses`,
/// `BranchInstructions`, `BranchMisses`, `BusCycles`, `StalledCyclesFrontend`, `StalledCyclesBackend`, `RefCpuCycles`.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuEvent {
    CpuClock,
    TaskClock,
    PageFaults,
    ContextSwitches,
    CpuMigrations,
    MinorFaults,
    MajorFaults,
    AlignmentFaults,
    EmulationFaults,
    CpuCycles,
    Instructions,
    CacheReferences,
    CacheMisses,
    BranchInstructions,
    BranchMisses,
    BusCycles,
    StalledCyclesFrontend,
    StalledCyclesBackend,
    RefCpuCycles,
}

/// A place in a binary or library. At least one of `symbol` and `offset` is given.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.symbol) || has(self.offset)").message("where in the binary? Give symbol, such as malloc, or offset, in bytes, or both"))]
pub struct Uprobe {
    /// The binary: an absolute path (`/usr/bin/curl`), or a library's file name (`libc.so.6`), found as the dynamic
    /// linker finds it. With `pods`, looked up inside each selected container; otherwise on the node.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = Rule::new("self.startsWith('/') ? !self.matches('(^|/)[.][.](/|$)') : self.matches('^[A-Za-z0-9_+.-]+$')").message("binary is an absolute path without .., such as /usr/bin/curl, or a library's file name, such as libc.so.6"))]
    pub binary: String,
    /// A symbol of the binary: `malloc`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^\S+$"))]
    pub symbol: Option<String>,
    /// With `symbol`: bytes from the symbol's start. Without: the offset in the file, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 9007199254740991i64))]
    pub offset: Option<i64>,
    /// Only the processes of the selected pods' containers. Absent: every process of the node that runs the binary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<PodSelector>,
}
