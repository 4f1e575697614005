//! A cluster of the test's own: an API server that answers what the test told it and forwards ports as the real one does
//! (WebSocket, `v4.channel.k8s.io`), and an agent behind it that speaks TLS.

mod agent;
mod api;

use std::path::PathBuf;
use std::process::{Command, Output};

pub use api::Api;
use serde_json::{Value, json};

/// What the user is known by; never to be seen by an agent.
pub const USER_TOKEN: &str = "the-users-own";
pub const MINTED: &str = "minted-for-agents";

pub struct Cluster {
    dir: tempfile::TempDir,
    pub api: Api,
    pub agent: agent::Agent,
}

impl Cluster {
    /// With one node, `node-1`, whose agent has a certificate in the name of `certified`.
    pub async fn start(certified: &str) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let agent = agent::Agent::start(certified).await;
        let api = Api::start().await;
        let system = "/api/v1/namespaces/skep-system";
        api.put("GET", &format!("{system}/configmaps/skep-ca-bundle"), 200, json!({"data": {"ca.crt": agent.ca}}));
        api.put(
            "POST",
            &format!("{system}/serviceaccounts/skep-viewer/token"),
            201,
            json!({"metadata": {}, "spec": {"audiences": ["skep-agent"]},
                   "status": {"token": MINTED, "expirationTimestamp": "2026-01-01T00:10:00Z"}}),
        );
        // Not the port that agents have by default.
        let ports = json!([{"name": "metrics", "containerPort": 1}, {"name": "grpc", "containerPort": agent.port}]);
        let pod = json!({"metadata": {"name": "skep-agent-abc"}, "status": {"phase": "Running"},
                         "spec": {"containers": [{"name": "agent", "ports": ports}]}});
        api.put("GET", &format!("{system}/pods"), 200, list("v1", "PodList", vec![pod]));
        let cluster = Cluster { dir: tempfile::tempdir().unwrap(), api, agent };
        cluster.configure(cluster.api.port);
        cluster
    }

    /// The user's kubeconfig names the API server at that port.
    pub fn configure(&self, port: u16) {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": format!("http://127.0.0.1:{port}")}}],
            "users": [{"name": "me", "user": {"token": USER_TOKEN}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "me", "namespace": "net"}}],
        });
        std::fs::write(self.kubeconfig(), config.to_string()).unwrap();
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kubeconfig")
    }

    /// The real plugin, as the user.
    pub fn skep(&self, args: &[&str]) -> Output {
        self.skep_within("10s", args)
    }

    /// The same with no more patience than that.
    pub fn skep_within(&self, time: &str, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-skep"));
        command.env_remove("KUBECONFIG").arg("--kubeconfig").arg(self.kubeconfig());
        command.args(["--request-timeout", time]).args(args).output().unwrap()
    }

    /// What it prints when all is well.
    pub fn out(&self, args: &[&str]) -> String {
        let output = self.skep(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Exit code and words of a failure.
    pub fn fails(&self, args: &[&str]) -> (i32, String) {
        let output = self.skep(args);
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

pub fn list(api_version: &str, kind: &str, items: Vec<Value>) -> Value {
    json!({"apiVersion": api_version, "kind": kind, "metadata": {}, "items": items})
}

/// How an API server refuses.
pub fn refusal(code: u16, reason: &str, message: &str, name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": reason,
           "message": message, "details": {"name": name}})
}
