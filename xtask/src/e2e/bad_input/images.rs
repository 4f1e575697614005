//! Images that are not what they should be, and a registry that asks who calls.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use super::Cluster;
use crate::install::until;
use crate::{bpf, cluster, image, repo, step};

/// Reads where it must not, which only the verifier sees.
const REJECTED: &str = r#"#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

SEC("tracepoint/sched/sched_process_exec")
int trace(void *ctx)
{
	return *(volatile int *)(long)bpf_get_smp_processor_id();
}
"#;

const KPROBE: &str = r#"#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

SEC("kprobe")
int probe(void *ctx)
{
	return 0;
}
"#;

/// Pushes what is wrong in one way each, under `bad/`.
pub fn push(c: &Cluster) -> Result<()> {
    let good = std::fs::read(bpf::objects().join("xdp-counter.o")).context("the object of xdp-counter")?;
    push_object(c, "bad/text:v1", b"#!/bin/sh\necho this is no object\n")?;
    push_object(c, "bad/truncated:v1", &good[..good.len() / 2])?;
    push_object(c, "bad/big-endian:v1", &compile("bpfeb", "kprobe", KPROBE)?)?;
    push_object(c, "bad/rejected:v1", &compile("bpfel", "rejected", REJECTED)?)?;
    push_object(c, "bad/kprobe:v1", &compile("bpfel", "kprobe", KPROBE)?)?;
    push_empty_index(c)
}

pub fn push_object(c: &Cluster, name: &str, object: &[u8]) -> Result<()> {
    let reference = format!("{}/{name}", c.place.registry);
    push_to(c, &reference, object)
}

fn push_to(c: &Cluster, reference: &str, object: &[u8]) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("object.o");
    std::fs::write(&file, object)?;
    let connection = image::Connection { ca: c.place.ca.clone(), plain_http: false };
    image::Image::Bytecode { object: file, reference: reference.to_owned(), connection }.run()
}

fn compile(target: &str, name: &str, source: &str) -> Result<Vec<u8>> {
    let dir = tempfile::tempdir()?;
    let file = format!("{name}.bpf.c");
    std::fs::write(dir.path().join(&file), source)?;
    let headers = format!("-I/usr/include/{}-linux-gnu", std::env::consts::ARCH);
    let mut clang = Command::new("clang");
    clang.current_dir(dir.path()).args(["-g", "-O2", "-target", target, &headers, "-c", &file, "-o", "out.o"]);
    step::ask(&mut clang)?;
    Ok(std::fs::read(dir.path().join("out.o"))?)
}

/// What a registry takes, and nobody can run.
fn push_empty_index(c: &Cluster) -> Result<()> {
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    let (host, path) = c.place.registry.split_once('/').context("a registry without a path")?;
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--fail", "--request", "PUT"]);
    if let Some(ca) = &c.place.ca {
        curl.arg("--cacert").arg(ca);
    }
    curl.arg("--header").arg(format!("content-type: {INDEX}"));
    curl.arg("--data").arg(format!("{{\"schemaVersion\":2,\"mediaType\":\"{INDEX}\",\"manifests\":[]}}"));
    step::ask(curl.arg(format!("https://{host}/v2/{path}/bad/not-an-image/manifests/v1"))).map(drop)
}

/// Address of the registry that asks for a password.
pub const PRIVATE: &str = "10.98.0.1:5001";
/// Its only user.
pub const LOGIN: (&str, &str) = ("skep", "honey");

/// The cluster's registry once more, on its files, with a password.
pub struct PrivateRegistry {
    child: Child,
    _config: tempfile::TempDir,
    path: String,
}

impl PrivateRegistry {
    pub fn start(c: &Cluster) -> Result<Self> {
        let config = tempfile::tempdir()?;
        let file = |name: &str| config.path().join(name);
        let (user, password) = LOGIN;
        std::fs::write(file("htpasswd"), step::ask(Command::new("htpasswd").args(["-Bbn", user, password]))?)?;
        let text = cluster::private_registry(PRIVATE, &file("htpasswd"));
        std::fs::write(file("registry.json"), text)?;
        let program =
            repo::find("docker-registry").context("docker-registry is not installed: run `cargo xtask setup`")?;
        let mut command = Command::new(program);
        command.arg("serve").arg(file("registry.json")).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().context("the registry does not start")?;
        let (_, path) = c.place.registry.split_once('/').context("a registry without a path")?;
        let registry = Self { child, path: format!("{path}/xdp-counter:v1"), _config: config };
        until("the private registry listens", Duration::from_secs(10), || {
            Ok(std::net::TcpStream::connect(PRIVATE).is_ok())
        })?;
        Ok(registry)
    }

    /// An image in it.
    pub fn reference(&self) -> String {
        format!("{PRIVATE}/{}", self.path)
    }
}

impl Drop for PrivateRegistry {
    fn drop(&mut self) {
        // It is ours, and holds nothing that is not on disk.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}
