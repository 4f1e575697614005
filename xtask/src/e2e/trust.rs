//! Who may not, cannot.

use std::process::Command;

use anyhow::{Result, ensure};

use super::Cluster;
use crate::install::NAMESPACE;

/// An HTTP/2 call of the Inspector by curl: the grpc-status and message that came back, or the handshake's error.
fn call(token: Option<&str>) -> Result<String> {
    let dir = tempfile::tempdir()?;
    let body = dir.path().join("body");
    // ListPrograms{namespace: "default"}
    std::fs::write(&body, [&[0u8, 0, 0, 0, 9, 0x0a, 7][..], b"default"].concat())?;
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--insecure", "--http2-prior-knowledge", "--http2", "--max-time", "10"]);
    curl.args(["--dump-header", "-", "--output", "/dev/null", "--header", "content-type: application/grpc"]);
    curl.args(["--header", "te: trailers"]);
    if let Some(token) = token {
        curl.arg("--header").arg(format!("authorization: Bearer {token}"));
    }
    curl.arg("--data-binary").arg(format!("@{}", body.display()));
    let output = curl.arg("https://10.98.0.1:7443/skep.agent.v1.Inspector/ListPrograms").output()?;
    Ok(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}

/// gRPC codes: 7 permission denied, 16 unauthenticated.
fn expect(what: &str, answer: &str, code: u32) -> Result<()> {
    ensure!(answer.contains(&format!("grpc-status: {code}")), "{what} was not refused with {code}: {answer}");
    Ok(())
}

pub fn refused(c: &Cluster) -> Result<()> {
    let token = |account: &str, audience: &str| {
        c.kubectl(&["create", "token", account, "-n", NAMESPACE, "--audience", audience, "--duration", "10m"])
    };
    expect("a call without a token", &call(None)?, 16)?;
    expect("a token that is none", &call(Some("nonsense"))?, 16)?;
    expect("a token of another audience", &call(Some(&token("skep-viewer", "somebody-else")?))?, 16)?;
    expect("a token of the API server's audience", &call(Some(&c.kubectl(&["create", "token", "default"])?))?, 16)?;
    expect("a token without the right", &call(Some(&token("skep-agent", "skep-agent")?))?, 7)?;
    let good = call(Some(&token("skep-viewer", "skep-agent")?))?;
    // That the agent answered at all: a handshake that failed has no status either.
    ensure!(good.contains("HTTP/2 200"), "the viewer got no answer: {good}");
    ensure!(!good.contains("grpc-status: 16") && !good.contains("grpc-status: 7"), "the viewer was refused: {good}");
    Ok(())
}
