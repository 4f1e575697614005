//! Bringing the cluster up.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::state::State;
use super::{config, down, host, layout, pki};
use crate::image::layout::{Binary, write_archive};
use crate::repo;
use crate::step::{Progress, ask, step};

const PATIENCE: Duration = Duration::from_secs(90);

pub fn up() -> Result<()> {
    refuse()?;
    let cluster = required(repo::tool("skep-cluster"))?;
    let programs: Vec<PathBuf> = ["etcd", "containerd", "docker-registry", "nft", "runc", "ctr"]
        .into_iter()
        .map(on_path)
        .collect::<Result<_>>()?;
    let [etcd, containerd, registry, ..] = programs.as_slice() else { bail!("no programs") };
    step("keys and configuration", |_| prepare())?;
    let mut state = State {
        since: jiff::Timestamp::now(),
        before: host::Before::observe(),
        processes: Vec::new(),
        complete: false,
    };
    state.save()?;
    let result = start(&mut state, &cluster, etcd, containerd, registry);
    if let Err(error) = result {
        step("take down what was started", |progress| {
            down::take_down(&state, |name| progress.note(name));
            State::forget()
        })?;
        return Err(error.context(format!("the cluster did not come up; logs: {}", layout::log("*").display())));
    }
    state.complete = true;
    state.save()?;
    println!("\nThe cluster is up. Next:\n");
    println!("  export KUBECONFIG={}", layout::kubeconfig().display());
    println!("  kubectl get node");
    println!(
        "  cargo xtask cluster status    # processes and logs; registry https://{}, CA {}",
        layout::REGISTRY,
        layout::pki("ca.crt").display()
    );
    println!("  cargo xtask cluster down");
    Ok(())
}

/// One cluster per machine, and never on a machine that is a node of another.
fn refuse() -> Result<()> {
    if ask(Command::new("id").arg("-u"))? != "0" {
        bail!("a kubelet needs root: run it as root");
    }
    if let Some(state) = State::load()? {
        if !state.complete {
            bail!(
                "`cluster up` was interrupted here at {}, or still runs; clear what it left by `cargo xtask cluster down`",
                state.since
            );
        }
        if state.processes.iter().all(super::process::Process::runs) && !state.processes.is_empty() {
            bail!("a cluster runs here since {}; use it, or end it by `cargo xtask cluster down`", state.since);
        }
        bail!("a cluster was left here that does not run; clear it by `cargo xtask cluster down`");
    }
    if host::link_exists() {
        bail!("the link {} exists: another checkout runs a cluster on this machine; end that one first", layout::NODE);
    }
    if let Some(path) = host::foreign_pods() {
        bail!("{} exists: this machine is a node of another cluster; use a machine of your own", path.display());
    }
    Ok(())
}

fn required(program: PathBuf) -> Result<PathBuf> {
    if program.is_file() {
        return Ok(program);
    }
    bail!("{} is missing: run `cargo xtask setup --only cluster`", program.display())
}

fn on_path(name: &str) -> Result<PathBuf> {
    repo::find(name).with_context(|| format!("{name} is missing: run `cargo xtask setup --only cluster`"))
}

fn prepare() -> Result<()> {
    let _absent = std::fs::remove_dir_all(layout::dir());
    for dir in [layout::dir(), layout::run_dir(), layout::dir().join("etcd")] {
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    pki::write()?;
    config::write()?;
    pause_image()
}

fn start(state: &mut State, cluster: &Path, etcd: &Path, containerd: &Path, registry: &Path) -> Result<()> {
    host::share_bpffs()?;
    host::add_link()?;
    let part = |name: &str, mut args: Vec<String>| {
        args.insert(0, name.to_owned());
        args
    };
    step("etcd, containerd, registry", |progress| {
        state.start("etcd", etcd, &config::etcd_args())?;
        let toml = layout::config("containerd.toml").display().to_string();
        state.start("containerd", containerd, &[format!("--config={toml}")])?;
        let yaml = layout::config("registry.yaml").display().to_string();
        state.start("registry", registry, &["serve".to_owned(), yaml])?;
        wait(state, progress, "containerd", || ctr(&["version"]).is_ok())?;
        ctr(&["images", "import", &layout::dir().join("pause.tar").display().to_string()]).map(drop)
    })?;
    step("API server", |progress| {
        state.start("kube-apiserver", cluster, &part("kube-apiserver", config::apiserver_args()))?;
        wait(state, progress, "readyz", || kubectl(&["get", "--raw", "/readyz"]).is_ok())
    })?;
    step("controllers, scheduler, proxy, kubelet", |progress| {
        state.start(
            "kube-controller-manager",
            cluster,
            &part("kube-controller-manager", config::controller_manager_args()),
        )?;
        state.start("kube-scheduler", cluster, &part("kube-scheduler", config::scheduler_args()))?;
        state.start("kubelet", cluster, &part("kubelet", config::kubelet_args()))?;
        state.start("kube-proxy", cluster, &part("kube-proxy", config::proxy_args()))?;
        let ready =
            r#"jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}/{.items[*].spec.taints[*].key}"#;
        wait(state, progress, "the node to be ready", || {
            kubectl(&["get", "node", "-o", ready]).is_ok_and(|text| text == "True/")
        })?;
        wait(state, progress, "the default service account", || kubectl(&["get", "serviceaccount", "default"]).is_ok())
    })
}

/// Polls: none of the parts tells that it is ready.
fn wait(state: &State, progress: &Progress, what: &str, ready: impl Fn() -> bool) -> Result<()> {
    progress.note(&format!("waits for {what}"));
    let end = Instant::now() + PATIENCE;
    while !ready() {
        state.check()?;
        if Instant::now() > end {
            bail!("waited {} s for {what} in vain", PATIENCE.as_secs());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// `kubectl` as the administrator.
fn kubectl(args: &[&str]) -> Result<String> {
    let program = repo::find("kubectl").unwrap_or_else(|| repo::tool("kubectl"));
    ask(Command::new(program).env("KUBECONFIG", layout::kubeconfig()).arg("--request-timeout=5s").args(args))
}

fn ctr(args: &[&str]) -> Result<String> {
    let socket = layout::containerd_socket();
    ask(Command::new("ctr").arg("--address").arg(socket).args(["--connect-timeout", "2s", "-n", "k8s.io"]).args(args))
}

/// The sandbox image, built here: nothing is pulled from anywhere.
fn pause_image() -> Result<()> {
    let binary = layout::dir().join("pause");
    let source = repo::root().join("xtask/cluster/pause.c");
    ask(Command::new("cc").args(["-static", "-Os", "-s", "-o"]).arg(&binary).arg(source))?;
    let image = Binary { file: &binary, path: "/pause", user: "65535", links: &[], files: Vec::new() };
    write_archive(&image, layout::PAUSE, &layout::dir().join("pause.tar"))
}

pub fn import(archive: &Path) -> Result<()> {
    let path = std::path::absolute(archive)?;
    println!("{}", ctr(&["images", "import", &path.display().to_string()])?);
    Ok(())
}
