#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says by panicking what is wrong")]
//! What the operator's log looks like where it is read: by `kubectl logs`, from a pipe.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

/// Nobody listens there: the operator says so, and tries again.
const NO_CLUSTER: &str = "
apiVersion: v1
kind: Config
current-context: none
contexts: [{name: none, context: {cluster: none, user: none}}]
clusters: [{name: none, cluster: {server: 'http://127.0.0.1:1'}}]
users: [{name: none, user: {}}]
";

#[test]
fn a_log_that_goes_to_a_pipe_has_no_colours() {
    let dir = tempfile::tempdir().unwrap();
    let kubeconfig = dir.path().join("kubeconfig");
    std::fs::write(&kubeconfig, NO_CLUSTER).unwrap();
    let mut operator = Command::new(env!("CARGO_BIN_EXE_skep-operator"))
        .args(["run", "--health-addr", "127.0.0.1:0"])
        .env("KUBECONFIG", &kubeconfig)
        // What else would decide about colours and lines.
        .env_remove("NO_COLOR")
        .env_remove("RUST_LOG")
        .env_remove("SKEP_LOG_FORMAT")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(operator.stderr.take().unwrap()).lines().map_while(Result::ok);
    let line = lines.into_iter().find(|line| line.contains("the Lease cannot be read"));
    operator.kill().unwrap();
    operator.wait().unwrap();
    let line = line.expect("the operator says that it does not reach the API server");
    assert!(line.contains(" WARN "), "{line:?}");
    assert!(!line.contains('\u{1b}'), "{line:?}");
}
