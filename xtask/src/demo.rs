//! `cargo xtask demo`: a program from a registry counts real packets, and its map is read: on a real Kubernetes, or on
//! this host alone.

mod standalone;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use crate::install::{NAMESPACE, Place, TAG, until};
use crate::setup::{Level, Setup};
use crate::{bpf, build, cluster, install, step};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cargo xtask demo                 a real Kubernetes on this machine, made for it
  cargo xtask demo --standalone    no Kubernetes: the agent on this host
  cargo xtask demo --kubeconfig ~/.kube/config --registry registry.example.com/me")]
pub struct Demo {
    /// No Kubernetes: the agent on this host, with a directory of manifests
    #[arg(long, conflicts_with_all = ["kubeconfig", "registry"])]
    standalone: bool,
    /// Your own cluster
    #[arg(long, requires = "registry")]
    kubeconfig: Option<PathBuf>,
    /// Where your cluster pulls from: HOST/PATH, to which you may push
    #[arg(long, requires = "kubeconfig", value_name = "HOST/PATH")]
    registry: Option<String>,
    /// The registry's certificate authority, PEM, if it is a private one
    #[arg(long, requires = "registry")]
    ca: Option<PathBuf>,
}

impl Demo {
    pub fn run(&self) -> Result<()> {
        if self.standalone {
            return standalone::run();
        }
        let place = match (&self.kubeconfig, &self.registry) {
            (Some(kubeconfig), Some(registry)) => {
                let place = Place::theirs(kubeconfig, registry, self.ca.as_deref())?;
                Setup::levels(&[Level::Bpf]).run()?;
                place
            }
            _ => {
                Setup::levels(&[Level::Bpf, Level::Registry, Level::Cluster]).run()?;
                if !install::is_up() {
                    cluster::Cluster::Up.run()?;
                }
                Place::test_cluster()
            }
        };
        bpf::build_all()?;
        build::binaries()?;
        place.push()?;
        place.helm_install(&install::chart())?;
        show(&place)?;
        how_to_go_on(&place, self.kubeconfig.is_none());
        Ok(())
    }
}

/// Pods that talk to each other, a program that counts what they say, and its map, twice.
fn show(place: &Place) -> Result<()> {
    place.apply(&traffic(&place.registry))?;
    // Pods' own interfaces on the node: the demo touches no interface that anything else depends on.
    let manifest = place.example("xdp-counter")?.replace("primary: true", "match: [\"veth*\"]");
    place.apply(&manifest)?;
    step::step("xdp-counter is Ready", |_| {
        let wait = ["wait", "--for=condition=Ready", "ebpf/xdp-counter", "--timeout=150s"];
        step::ask(&mut place.kubectl(&wait)).map(drop)
    })?;
    println!("\n$ kubectl skep get xdp-counter");
    println!("{}", step::ask(&mut place.kubectl_skep(&["get", "xdp-counter", "-n", "default"]))?);
    let dump = || step::ask(&mut place.kubectl_skep(&["maps", "dump", "xdp-counter", "counters", "-n", "default"]));
    until("packets are counted", Duration::from_secs(60), || Ok(dump()?.lines().count() > 1))?;
    let first = dump()?;
    println!("\n$ kubectl skep maps dump xdp-counter counters\n{first}");
    until("the counters rise", Duration::from_secs(30), || Ok(dump()? != first))?;
    println!("\n$ kubectl skep maps dump xdp-counter counters      # a moment later\n{}", dump()?);
    Ok(())
}

fn traffic(registry: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: skep-demo-traffic, namespace: default, labels: {{app: web}}}}, spec: {{terminationGracePeriodSeconds: 0, \
         containers: [{{name: talk, image: '{registry}/busybox:{TAG}', \
         env: [{{name: NODE, valueFrom: {{fieldRef: {{fieldPath: status.hostIP}}}}}}], \
         command: [/bin/sh, -c, 'while true; do /bin/nc -w 1 $NODE 1 < /dev/null; /bin/sleep 1; done']}}]}}}}"
    )
}

fn how_to_go_on(place: &Place, ours: bool) {
    let kubeconfig = place.kubeconfig.display();
    println!(
        "\nSkep runs in namespace {NAMESPACE}. Go on with:
  export KUBECONFIG={kubeconfig}
  kubectl get ebpf -A;  kubectl get ebpfnodes
  kubectl apply -f examples/...        (put {} in place of registry.example.com/skep)
  {} why xdp-counter",
        place.registry,
        build::binary("kubectl-skep").display()
    );
    if ours {
        println!("and end it with:\n  cargo xtask cluster down");
    } else {
        println!("and end it with:\n  helm --namespace {NAMESPACE} uninstall skep");
    }
}
