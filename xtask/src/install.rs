//! Skep on a cluster: images pushed, chart installed, samples applied. What the demo shows and the cluster tests use.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{bpf, build, cluster, image, repo, step};

pub const NAMESPACE: &str = "skep-system";
/// Registry and path in the examples' manifests.
const EXAMPLE_REGISTRY: &str = "registry.example.com/skep";
/// Tag of pushed operator and agent images.
pub const TAG: &str = "dev";

/// A cluster, and a registry that it can pull from.
#[derive(Debug, Clone)]
pub struct Place {
    pub kubeconfig: PathBuf,
    /// host:port/path
    pub registry: String,
    /// The registry's certificate authority, if it is a private one.
    pub ca: Option<PathBuf>,
}

impl Place {
    /// The cluster that `cargo xtask cluster up` starts.
    pub fn test_cluster() -> Self {
        Self {
            kubeconfig: cluster::kubeconfig(),
            registry: format!("{}/skep", cluster::REGISTRY),
            ca: Some(cluster::registry_ca()),
        }
    }

    /// A user's cluster and registry. Files that cannot be read are said now, not after minutes of building.
    pub fn theirs(kubeconfig: &Path, registry: &str, ca: Option<&Path>) -> Result<Self> {
        for (flag, file) in [("--kubeconfig", Some(kubeconfig)), ("--ca", ca)] {
            let Some(file) = file else { continue };
            std::fs::read(file).with_context(|| format!("{flag} {} cannot be read", file.display()))?;
        }
        let (registry, ca) = (registry.trim_end_matches('/').to_owned(), ca.map(Path::to_owned));
        Ok(Self { kubeconfig: kubeconfig.to_owned(), registry, ca })
    }

    /// `kubectl` on this cluster.
    pub fn kubectl(&self, args: &[&str]) -> Command {
        let program = repo::find("kubectl").unwrap_or_else(|| repo::tool("kubectl"));
        let mut kubectl = Command::new(program);
        kubectl.env("KUBECONFIG", &self.kubeconfig).args(args);
        kubectl
    }

    /// `kubectl skep` on this cluster.
    pub fn kubectl_skep(&self, args: &[&str]) -> Command {
        let mut plugin = Command::new(build::binary("kubectl-skep"));
        plugin.env("KUBECONFIG", &self.kubeconfig).args(args);
        plugin
    }

    /// Applies a manifest from a text.
    pub fn apply(&self, text: &str) -> Result<()> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("manifest.yaml");
        // A first brace would be taken for JSON.
        std::fs::write(&file, format!("---\n{text}"))?;
        step::ask(&mut self.kubectl(&["apply", "--server-side", "-f", &file.to_string_lossy()])).map(drop)
    }

    /// Builds and pushes the images of operator and agent, and those of all samples.
    pub fn push(&self) -> Result<()> {
        let connection = image::Connection { ca: self.ca.clone(), plain_http: false };
        let only = ["skep-operator", "skep-agent", "busybox", "libc"].map(str::to_owned).to_vec();
        image::Image::Push { only, registry: self.registry.clone(), tag: TAG.into(), connection }.run()?;
        for object in samples()? {
            let name = object.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let connection = image::Connection { ca: self.ca.clone(), plain_http: false };
            let reference = format!("{}/{name}:v1", self.registry);
            image::Image::Bytecode { object, reference, connection }.run()?;
        }
        Ok(())
    }

    /// Installs or upgrades a chart, and waits for operator and agents.
    pub fn helm_install(&self, chart: &Path) -> Result<()> {
        self.apply(&format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: {NAMESPACE}, labels: {{pod-security.kubernetes.io/enforce: privileged}}}}}}"
        ))?;
        let upgrade = step::ask(&mut self.helm(&["status", "skep"])).is_ok();
        let mut helm = self.helm(&["upgrade", "--install", "skep"]);
        helm.arg(chart);
        helm.args(["--wait", "--timeout", "120s"]);
        helm.arg("--set").arg(format!("image.registry={},image.tag={TAG},image.pullPolicy=Always", self.registry));
        if let Some(ca) = &self.ca {
            helm.arg("--set-file").arg(format!("registries.ca={}", ca.display()));
        }
        step::run("helm install", &mut helm)?;
        if upgrade {
            // The images were built anew under the same tag.
            let restart = ["rollout", "restart", "daemonset/skep-agent", "deployment/skep-operator", "-n", NAMESPACE];
            step::ask(&mut self.kubectl(&restart))?;
        }
        let mut rollout =
            self.kubectl(&["rollout", "status", "daemonset/skep-agent", "--timeout=60s", "-n", NAMESPACE]);
        step::run("agents are ready", &mut rollout)
    }

    /// `helm` in Skep's namespace.
    pub fn helm(&self, args: &[&str]) -> Command {
        let mut helm = Command::new(repo::tool("helm"));
        helm.env("KUBECONFIG", &self.kubeconfig).args(["--namespace", NAMESPACE]).args(args);
        helm
    }

    /// The manifest of an example, with the images of this registry.
    pub fn example(&self, name: &str) -> Result<String> {
        let file = repo::root().join("examples").join(name).join("ebpfprogram.yaml");
        let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(text.replace(EXAMPLE_REGISTRY, &self.registry))
    }
}

/// This repository's chart.
pub fn chart() -> PathBuf {
    repo::root().join("helm/skep")
}

/// The built eBPF objects of the samples.
fn samples() -> Result<Vec<PathBuf>> {
    let dir = bpf::objects();
    let entries = std::fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut objects: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    objects.retain(|path| path.extension().is_some_and(|extension| extension == "o"));
    objects.sort();
    if objects.is_empty() {
        bail!("{} holds no objects: run `cargo xtask build --only ebpf`", dir.display())
    }
    Ok(objects)
}

/// Tries again until `check` is true.
pub fn until(what: &str, timeout: Duration, mut check: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    loop {
        match check() {
            Ok(true) => return Ok(()),
            Ok(false) if start.elapsed() > timeout => bail!("{what}: not within {timeout:?}"),
            Err(error) if start.elapsed() > timeout => {
                return Err(error.context(format!("{what}: not within {timeout:?}")));
            }
            _ => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

/// The test cluster was started and can be used.
pub fn is_up() -> bool {
    cluster::kubeconfig().exists() && cluster::is_up()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_read_is_named_with_its_flag() {
        let dir = tempfile::tempdir().unwrap();
        let (there, missing) = (dir.path().join("config"), dir.path().join("missing"));
        std::fs::write(&there, "").unwrap();
        let refused = |kubeconfig, ca| format!("{:#}", Place::theirs(kubeconfig, "localhost/me", ca).unwrap_err());
        let nowhere = format!("{} cannot be read: No such file or directory", missing.display());
        assert!(refused(&missing, None).starts_with(&format!("--kubeconfig {nowhere}")));
        assert!(refused(&there, Some(&missing)).starts_with(&format!("--ca {nowhere}")));
        assert!(refused(dir.path(), None).contains("cannot be read: Is a directory"));
        assert_eq!(Place::theirs(&there, "localhost/me/", Some(&there)).unwrap().registry, "localhost/me");
    }
}
