//! Configuration files of the cluster's parts, and their command lines.

use std::path::Path;

use anyhow::Result;
use base64::Engine as _;
use serde_json::{Value, json};

use super::layout::{
    self, ADDRESS, API_PORT, CLUSTER_PODS, ETCD, ETCD_PEER, NODE, NODE_PODS, PAUSE, REGISTRY, SERVICES,
};

/// Writes every configuration file.
pub fn write() -> Result<()> {
    for dir in ["config/cni", "config/certs.d/10.98.0.1:5000", "logs"] {
        std::fs::create_dir_all(layout::dir().join(dir))?;
    }
    kubeconfig("admin", &layout::kubeconfig())?;
    for user in ["controller-manager", "scheduler", "proxy", "kubelet"] {
        kubeconfig(user, &layout::config(&format!("{user}.kubeconfig")))?;
    }
    std::fs::write(layout::config("containerd.toml"), containerd())?;
    std::fs::write(layout::config("certs.d/10.98.0.1:5000/hosts.toml"), registry_host())?;
    // JSON is YAML: one writer for all.
    std::fs::write(layout::config("cni/10-skep.conflist"), cni().to_string())?;
    std::fs::write(layout::config("registry.yaml"), registry().to_string())?;
    std::fs::write(layout::config("kubelet.yaml"), kubelet().to_string())?;
    Ok(())
}

fn kubeconfig(user: &str, path: &Path) -> Result<()> {
    let data = |file: &str| -> Result<String> {
        Ok(base64::engine::general_purpose::STANDARD.encode(std::fs::read(layout::pki(file))?))
    };
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "skep",
        "clusters": [{"name": "skep", "cluster": {"server": layout::api_url(), "certificate-authority-data": data("ca.crt")?}}],
        "users": [{"name": user, "user": {
            "client-certificate-data": data(&format!("{user}.crt"))?, "client-key-data": data(&format!("{user}.key"))?}}],
        "contexts": [{"name": "skep", "context": {"cluster": "skep", "user": user}}],
    });
    Ok(std::fs::write(path, serde_yaml_ng::to_string(&config)?)?)
}

/// `restrict_oom_score_adj`: without it runc fails where lowering the score is not permitted.
/// `netns_mounts_under_state_dir`: `down` then finds every mount under one directory.
fn containerd() -> String {
    let (dir, run) = (layout::dir(), layout::run_dir());
    let (dir, run) = (dir.display(), run.display());
    format!(
        r#"version = 2
root = "{dir}/containerd"
state = "{run}/containerd"
[grpc]
address = "{run}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "{dir}/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{dir}/config/cni"
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{dir}/config/certs.d"
"#
    )
}

fn registry_host() -> String {
    format!(
        "server = \"https://{REGISTRY}\"\n[host.\"https://{REGISTRY}\"]\nca = \"{}\"\n",
        layout::pki("ca.crt").display()
    )
}

/// Point-to-point links instead of a bridge: traffic between two pods is routed, so that services work on a kernel
/// without br_netfilter.
fn cni() -> Value {
    json!({"cniVersion": "0.4.0", "name": "skep", "plugins": [{
        "type": "ptp", "ipMasq": false, "mtu": 1400,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": NODE_PODS}]], "routes": [{"dst": "0.0.0.0/0"}],
                 "dataDir": layout::run_dir().join("ipam")},
    }]})
}

fn registry() -> Value {
    json!({
        "version": "0.1", "log": {"level": "info"},
        "storage": {"filesystem": {"rootdirectory": layout::dir().join("registry")}, "delete": {"enabled": true}},
        "http": {"addr": REGISTRY, "secret": "skep-test-cluster",
                 "tls": {"certificate": layout::pki("registry.crt"), "key": layout::pki("registry.key")}},
    })
}

/// The same files behind another address and a password.
pub fn private_registry(address: &str, htpasswd: &Path) -> Value {
    let mut config = registry();
    config["http"]["addr"] = address.into();
    config["auth"] = json!({"htpasswd": {"realm": "skep", "path": htpasswd}});
    config
}

fn kubelet() -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "address": ADDRESS, "readOnlyPort": 0, "healthzBindAddress": "127.0.0.1",
        "authentication": {"anonymous": {"enabled": false}, "webhook": {"enabled": true}, "x509": {"clientCAFile": layout::pki("ca.crt")}},
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": layout::pki("kubelet-server.crt"), "tlsPrivateKeyFile": layout::pki("kubelet-server.key"),
        "containerRuntimeEndpoint": format!("unix://{}", layout::containerd_socket().display()),
        "cgroupDriver": "cgroupfs", "failSwapOn": false, "makeIPTablesUtilChains": false, "serializeImagePulls": false,
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%", "nodefs.inodesFree": "1%"},
        "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
        "podLogsDir": layout::dir().join("pod-logs"), "volumePluginDir": layout::dir().join("volume-plugins"),
    })
}

fn pki(name: &str) -> String {
    layout::pki(name).display().to_string()
}

fn file(name: &str) -> String {
    layout::config(name).display().to_string()
}

fn dir(name: &str) -> String {
    layout::dir().join(name).display().to_string()
}

pub fn etcd_args() -> Vec<String> {
    vec![
        format!("--data-dir={}", dir("etcd")),
        format!("--listen-client-urls={ETCD}"),
        format!("--advertise-client-urls={ETCD}"),
        format!("--listen-peer-urls={ETCD_PEER}"),
        format!("--initial-advertise-peer-urls={ETCD_PEER}"),
        format!("--initial-cluster=default={ETCD_PEER}"),
        // A test cluster that is lost with the machine needs no durable writes.
        "--unsafe-no-fsync".into(),
    ]
}

pub fn apiserver_args() -> Vec<String> {
    vec![
        format!("--advertise-address={ADDRESS}"),
        format!("--bind-address={ADDRESS}"),
        format!("--secure-port={API_PORT}"),
        format!("--etcd-servers={ETCD}"),
        format!("--client-ca-file={}", pki("ca.crt")),
        format!("--tls-cert-file={}", pki("apiserver.crt")),
        format!("--tls-private-key-file={}", pki("apiserver.key")),
        format!("--service-account-key-file={}", pki("service-accounts.pub")),
        format!("--service-account-signing-key-file={}", pki("service-accounts.key")),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
        format!("--service-cluster-ip-range={SERVICES}"),
        format!("--kubelet-client-certificate={}", pki("kubelet-client.crt")),
        format!("--kubelet-client-key={}", pki("kubelet-client.key")),
        format!("--kubelet-certificate-authority={}", pki("ca.crt")),
        "--kubelet-preferred-address-types=InternalIP".into(),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        "--allow-privileged=true".into(),
    ]
}

pub fn controller_manager_args() -> Vec<String> {
    vec![
        format!("--kubeconfig={}", file("controller-manager.kubeconfig")),
        format!("--service-account-private-key-file={}", pki("service-accounts.key")),
        format!("--root-ca-file={}", pki("ca.crt")),
        format!("--cluster-signing-cert-file={}", pki("ca.crt")),
        format!("--cluster-signing-key-file={}", pki("ca.key")),
        format!("--cluster-cidr={CLUSTER_PODS}"),
        format!("--service-cluster-ip-range={SERVICES}"),
        "--allocate-node-cidrs=true".into(),
        "--use-service-account-credentials=true".into(),
        "--leader-elect=false".into(),
        "--bind-address=127.0.0.1".into(),
        format!("--cert-dir={}", dir("controller-manager")),
        format!("--flex-volume-plugin-dir={}", dir("volume-plugins")),
    ]
}

pub fn scheduler_args() -> Vec<String> {
    vec![
        format!("--kubeconfig={}", file("scheduler.kubeconfig")),
        "--leader-elect=false".into(),
        "--bind-address=127.0.0.1".into(),
        format!("--cert-dir={}", dir("scheduler")),
    ]
}

pub fn kubelet_args() -> Vec<String> {
    vec![
        format!("--config={}", file("kubelet.yaml")),
        format!("--kubeconfig={}", file("kubelet.kubeconfig")),
        format!("--root-dir={}", dir("kubelet")),
        format!("--cert-dir={}", dir("kubelet/pki")),
        format!("--hostname-override={NODE}"),
        format!("--node-ip={ADDRESS}"),
    ]
}

pub fn proxy_args() -> Vec<String> {
    vec![
        format!("--kubeconfig={}", file("proxy.kubeconfig")),
        format!("--hostname-override={NODE}"),
        "--proxy-mode=nftables".into(),
        format!("--cluster-cidr={CLUSTER_PODS}"),
        format!("--nodeport-addresses={ADDRESS}/32"),
        "--conntrack-max-per-core=0".into(),
        "--conntrack-tcp-timeout-established=0".into(),
        "--conntrack-tcp-timeout-close-wait=0".into(),
        "--healthz-bind-address=127.0.0.1:10256".into(),
        "--metrics-bind-address=127.0.0.1:10249".into(),
    ]
}
