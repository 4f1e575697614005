//! `features`.

use std::path::PathBuf;

use clap::Args;

use super::PageFormat;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kubectl skep features                            What the kernels of all nodes can do
  kubectl skep features --node node-7
  kubectl skep features --for flows.bpf.o          Which nodes can run an object, and why others cannot
  kubectl skep features --for flows -n observability
  kubectl skep features --for registry.example.com/ebpf/flows:v1 -o json
  kubectl-skep features --socket /run/skep/agent.sock

An agent asks its kernel as it starts: each kind of program is loaded, and where loading is not all, attaching is asked for on
what cannot be there. Of an object each function outside of sections that begin with ? is looked at, and goes where its
section says; of a program what its spec says, or, where that leaves it to the object, the object of its image.")]
pub struct Features {
    /// Only this node.
    #[arg(long)]
    pub node: Option<String>,
    /// An object file, an image (registry/repository:tag), or an EbpfProgram of the namespace.
    #[arg(long = "for", value_name = "PROGRAM|FILE|IMAGE")]
    pub of: Option<String>,
    /// Certificates (PEM) of the registry's private authority.
    #[arg(long, value_name = "FILE", conflicts_with = "plain_http", requires = "of")]
    pub ca: Option<PathBuf>,
    /// Speak HTTP to the registry.
    #[arg(long, requires = "of")]
    pub plain_http: bool,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = PageFormat::Text)]
    pub output: PageFormat,
}
