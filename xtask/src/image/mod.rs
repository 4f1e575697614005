//! `cargo xtask image`: container images of the operator and the agent, without a daemon.

mod bytecode;
pub mod layout;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{build, repo, step};
use layout::{Binary, write_archive};

#[derive(Debug, clap::Subcommand)]
#[command(after_help = "Example: cargo xtask image push --registry 10.98.0.1:5000/skep --ca target/cluster/pki/ca.crt")]
pub enum Image {
    /// Build the images of the operator and the agent, and two shells for tests, under target/images
    Build {
        /// Images to build; all when absent
        #[arg(long, value_parser = ["skep-operator", "skep-agent", "busybox", "libc"])]
        only: Vec<String>,
    },
    /// Build, then push to a registry
    Push {
        /// Images to push; all when absent
        #[arg(long, value_parser = ["skep-operator", "skep-agent", "busybox", "libc"])]
        only: Vec<String>,
        /// Host, port and path in front of the image's name
        #[arg(long)]
        registry: String,
        #[arg(long, default_value = "dev")]
        tag: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// Push an eBPF object as a bytecode image, and print its reference by digest
    Bytecode {
        /// As `cargo xtask build --only ebpf` makes it
        object: PathBuf,
        /// Where to: host:port/path:tag
        reference: String,
        #[command(flatten)]
        connection: Connection,
    },
}

#[derive(Debug, clap::Args)]
pub struct Connection {
    /// Certificate authority of the registry
    #[arg(long)]
    pub ca: Option<PathBuf>,
    /// Speak HTTP to the registry
    #[arg(long, conflicts_with = "ca")]
    pub plain_http: bool,
}

struct Part {
    name: &'static str,
    /// What cargo calls the binary.
    binary: Option<&'static str>,
    path: &'static str,
    user: &'static str,
    links: &'static [&'static str],
}

/// The agent is root: it talks to the kernel. Its capabilities are the chart's matter.
const PARTS: [Part; 4] = [
    Part {
        name: "skep-operator",
        binary: Some("skep-operator"),
        path: "/skep-operator",
        user: "65532:65532",
        links: &[],
    },
    Part { name: "skep-agent", binary: Some("skep-agent"), path: "/skep-agent", user: "0:0", links: &[] },
    Part {
        name: "busybox",
        binary: None,
        path: "/bin/busybox",
        user: "0:0",
        links: &[
            "/bin/sh",
            "/bin/sleep",
            "/bin/wget",
            "/bin/nc",
            "/bin/httpd",
            "/bin/ip",
            "/bin/ls",
            "/bin/cat",
            "/bin/mount",
        ],
    },
    // For probes on libc: a shell that is not static, with busybox beside it for the rest.
    Part { name: "libc", binary: None, path: "/bin/sh", user: "0:0", links: &[] },
];

impl Image {
    pub fn run(&self) -> Result<()> {
        match self {
            Self::Build { only } => build_all(&chosen(only)),
            Self::Bytecode { object, reference, connection } => bytecode::push(object, reference, connection),
            Self::Push { only, registry, tag, connection } => {
                let parts = chosen(only);
                // First: an authority that cannot be read is said before minutes of building.
                let certificates = Certificates::of(connection.ca.as_deref())?;
                build_all(&parts)?;
                parts.iter().try_for_each(|part| {
                    push(part, &format!("{registry}/{}:{tag}", part.name), certificates.as_ref(), connection.plain_http)
                })
            }
        }
    }
}

fn chosen(only: &[String]) -> Vec<&'static Part> {
    PARTS.iter().filter(|part| only.is_empty() || only.iter().any(|name| name == part.name)).collect()
}

fn push(part: &Part, reference: &str, certificates: Option<&Certificates>, plain_http: bool) -> Result<()> {
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["copy", "--insecure-policy"]);
    if let Some(certificates) = certificates {
        skopeo.arg("--dest-cert-dir").arg(certificates.0.path());
    } else if plain_http {
        skopeo.arg("--dest-tls-verify=false");
    }
    skopeo.arg(format!("oci-archive:{}", archive(part).display())).arg(format!("docker://{reference}"));
    step::run(&format!("push {}", part.name), &mut skopeo).map_err(|e| {
        let private = certificates.is_none() && format!("{e:#}").contains("unknown authority");
        if private { e.context("the registry's certificate is of a private authority: add --ca ca.crt") } else { e }
    })?;
    println!("{reference}");
    Ok(())
}

/// skopeo reads authorities from a directory.
struct Certificates(tempfile::TempDir);

impl Certificates {
    fn of(ca: Option<&Path>) -> Result<Option<Self>> {
        let Some(ca) = ca else { return Ok(None) };
        let dir = tempfile::tempdir()?;
        std::fs::copy(ca, dir.path().join("ca.crt")).with_context(|| format!("cannot read {}", ca.display()))?;
        Ok(Some(Self(dir)))
    }
}

fn archive(part: &Part) -> PathBuf {
    repo::root().join("target/images").join(format!("{}.tar", part.name))
}

fn build_all(parts: &[&Part]) -> Result<()> {
    if parts.iter().any(|part| part.binary.is_some()) {
        build::binaries()?;
    }
    let busybox = || repo::find("busybox").context("busybox is missing: run `cargo xtask setup --only cluster`");
    for part in parts {
        let (file, files) = match (part.binary, part.name) {
            (Some(name), _) => (build::binary(name), authorities()?),
            (None, "libc") => with_libraries(&busybox()?)?,
            (None, _) => (busybox()?, Vec::new()),
        };
        if part.name != "libc" && !is_static(&file)? {
            bail!("{} is not static, and its image has no libraries", file.display());
        }
        let binary = Binary { file: &file, path: part.path, user: part.user, links: part.links, files };
        write_archive(&binary, &format!("skep.dev/{}:dev", part.name), &archive(part))?;
        println!("{}", archive(part).display());
    }
    Ok(())
}

/// The public certificate authorities, for registries that have no private one.
fn authorities() -> Result<Vec<(PathBuf, String)>> {
    const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
    if !Path::new(BUNDLE).is_file() {
        bail!("{BUNDLE} is missing: install the package ca-certificates");
    }
    Ok(vec![(PathBuf::from(BUNDLE), BUNDLE.to_owned())])
}

/// This host's shell and what `ldd` says that it needs, and busybox as `sleep`.
fn with_libraries(busybox: &Path) -> Result<(PathBuf, Vec<(PathBuf, String)>)> {
    let shell = std::fs::canonicalize("/bin/sh")?;
    let needed = step::ask(Command::new("ldd").arg(&shell))?;
    let libraries = needed.split_whitespace().filter(|word| word.starts_with('/'));
    let mut files: Vec<(PathBuf, String)> = libraries.map(|path| (PathBuf::from(path), path.to_owned())).collect();
    files.push((busybox.to_owned(), "/bin/sleep".to_owned()));
    Ok((shell, files))
}

/// No program interpreter: `PT_INTERP` names ld.so.
fn is_static(file: &Path) -> Result<bool> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(!bytes.windows(9).take(4096).any(|window| window == b"/ld-linux"))
}
