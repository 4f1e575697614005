//! What Skep asks of the kernel: load, attach, pin, observe, dump, probe.
//!
//! **Guarantees.** This is the only crate with `unsafe`, all of it in [`sys`] and [`netns`]. Every change is one that
//! [`Host`] can find again from bpffs after a crash: nothing that should last hangs on a descriptor of this process.
//!
//! **Assumptions.** Root, or CAP_BPF, PERFMON, NET_ADMIN, SYS_ADMIN and SYS_PTRACE; a bpffs mount; Linux 5.15 or later.
//!
//! **Caveats.** All calls block, some for tens of milliseconds (RCU): keep them off async threads.
#![allow(unsafe_code)]

mod age;
pub mod attach;
pub mod bpffs;
pub mod changed;
pub mod cpus;
pub mod dump;
pub mod error;
pub mod events;
pub mod externs;
pub mod features;
pub mod functions;
pub mod gate;
pub mod hook;
pub mod host;
pub mod kallsyms;
pub mod kconfig;
pub mod kept;
pub mod load;
pub mod memory;
pub mod migrate;
pub mod modules;
pub mod netns;
pub mod observe;
pub mod order;
pub mod printk;
pub mod probe;
pub mod records;
pub mod remains;
pub mod seam;
pub mod shared;
pub mod sys;
pub mod tc;
pub mod write;

pub use error::KernelError;
pub use hook::{Hook, Target};
pub use host::Host;
pub use seam::Kernel;
