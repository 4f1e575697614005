//! Who may not, cannot.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose};

use super::Cluster;
use super::samples::NODE;
use crate::install::NAMESPACE;

/// How a caller shows who it is.
enum Proof {
    Nothing,
    Token(String),
    /// PEM files: certificate and key.
    Certificate(PathBuf, PathBuf),
}

fn call(method: &str, message: &[u8], proof: &Proof) -> Result<String> {
    ask(&format!("skep.agent.v1.{method}"), message, proof)
}

/// An HTTP/2 call by curl: the grpc-status and message that came back, or the handshake's error.
fn ask(method: &str, message: &[u8], proof: &Proof) -> Result<String> {
    let dir = tempfile::tempdir()?;
    let body = dir.path().join("body");
    // A gRPC frame: no compression, and the length. Without a message no frame: who is refused at the door is not read,
    // and curl takes the end of a stream whose body it still sends for an error.
    let length = u32::try_from(message.len())?.to_be_bytes();
    let frame = if message.is_empty() { Vec::new() } else { [&[0u8][..], &length, message].concat() };
    std::fs::write(&body, frame)?;
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--insecure", "--http2-prior-knowledge", "--http2", "--max-time", "10"]);
    curl.args(["--dump-header", "-", "--output", "/dev/null", "--header", "content-type: application/grpc"]);
    curl.args(["--header", "te: trailers"]);
    match proof {
        Proof::Nothing => {}
        Proof::Token(token) => {
            curl.arg("--header").arg(format!("authorization: Bearer {token}"));
        }
        Proof::Certificate(certificate, key) => {
            curl.arg("--cert").arg(certificate).arg("--key").arg(key);
        }
    }
    curl.arg("--data-binary").arg(format!("@{}", body.display()));
    let output = curl.arg(format!("https://{NODE}:7443/{method}")).output()?;
    Ok(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}

/// ListPrograms{namespace: "default"}
fn list(proof: &Proof) -> Result<String> {
    call("Inspector/ListPrograms", b"\x0a\x07default", proof)
}

/// At the door of orders: nobody but the operator gets through.
fn sync(proof: &Proof) -> Result<String> {
    call("Agent/Sync", b"", proof)
}

/// At the door of people's calls.
fn knock(proof: &Proof) -> Result<String> {
    call("Inspector/ListPrograms", b"", proof)
}

/// gRPC codes: 7 permission denied, 16 unauthenticated.
fn expect(what: &str, answer: &str, code: u32) -> Result<()> {
    ensure!(answer.contains(&format!("grpc-status: {code}")), "{what} was not refused with {code}: {answer}");
    Ok(())
}

pub fn refused(c: &Cluster) -> Result<()> {
    let token = |account: &str, audience: &str| {
        c.kubectl(&["create", "token", account, "-n", NAMESPACE, "--audience", audience, "--duration", "10m"])
            .map(Proof::Token)
    };
    expect("a call without a token", &knock(&Proof::Nothing)?, 16)?;
    expect("a token that is none", &knock(&Proof::Token("nonsense".into()))?, 16)?;
    expect("a token of another audience", &knock(&token("skep-viewer", "somebody-else")?)?, 16)?;
    let of_api_server = Proof::Token(c.kubectl(&["create", "token", "default"])?);
    expect("a token of the API server's audience", &knock(&of_api_server)?, 16)?;
    expect("a token without the right", &list(&token("skep-agent", "skep-agent")?)?, 7)?;
    let viewer = token("skep-viewer", "skep-agent")?;
    let good = list(&viewer)?;
    // That the agent answered at all: a handshake that failed has no status either.
    ensure!(good.contains("HTTP/2 200"), "the viewer got no answer: {good}");
    ensure!(!good.contains("grpc-status: 16") && !good.contains("grpc-status: 7"), "the viewer was refused: {good}");
    expect("an order from somebody who may look", &sync(&viewer)?, 7)?;
    for service in ["grpc.health.v1.Health/Check", "grpc.reflection.v1.ServerReflection/ServerReflectionInfo"] {
        expect(service, &ask(service, b"", &Proof::Nothing)?, 16)?;
    }
    Ok(())
}

/// Certificates of the right authority that are not the operator's, and the operator's name by a wrong authority.
pub fn other_certificates(c: &Cluster) -> Result<()> {
    let secret = c.json(&["get", "secret", "skep-ca", "-n", NAMESPACE])?;
    let part = |name: &str| -> Result<String> {
        let text = secret["data"][name].as_str().with_context(|| format!("the authority's Secret has no {name}"))?;
        Ok(String::from_utf8(base64::engine::general_purpose::STANDARD.decode(text)?)?)
    };
    let authority = Issuer::from_ca_cert_pem(&part("tls.crt")?, KeyPair::from_pem(&part("tls.key")?)?)?;
    let dir = tempfile::tempdir()?;
    let client = ExtendedKeyUsagePurpose::ClientAuth;
    let signed = |name: &str, usage, issuer: &Issuer<'_, KeyPair>| certificate(dir.path(), name, usage, issuer);

    // What an agent has: good for serving only, so that the handshake ends there.
    let agents = signed("other-node.node.skep", ExtendedKeyUsagePurpose::ServerAuth, &authority)?;
    let answer = sync(&agents)?;
    ensure!(!answer.contains("HTTP/2 200"), "another node's certificate: {answer}");
    expect(
        "another node's name in a client's certificate",
        &sync(&signed("other-node", client.clone(), &authority)?)?,
        7,
    )?;
    let stranger = Issuer::new(CertificateParams::default(), KeyPair::generate()?);
    let answer = sync(&signed("skep-operator", client.clone(), &stranger)?)?;
    ensure!(!answer.contains("HTTP/2 200"), "another authority's certificate: {answer}");
    // That the same call with the operator's name gets through the door: GetNode changes nothing.
    let operator = signed("skep-operator", client, &authority)?;
    let answer = call("Agent/GetNode", b"", &operator)?;
    ensure!(
        answer.contains("HTTP/2 200") && !answer.contains("grpc-status: 7"),
        "the operator's certificate: {answer}"
    );
    Ok(())
}

fn certificate(dir: &Path, name: &str, usage: ExtendedKeyUsagePurpose, issuer: &Issuer<'_, KeyPair>) -> Result<Proof> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![usage];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let number = std::fs::read_dir(dir)?.count();
    let files = (dir.join(format!("{number}.crt")), dir.join(format!("{number}.key")));
    std::fs::write(&files.0, params.signed_by(&key, issuer)?.pem())?;
    std::fs::write(&files.1, key.serialize_pem())?;
    Ok(Proof::Certificate(files.0, files.1))
}
