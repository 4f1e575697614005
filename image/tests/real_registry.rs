//! Against a real registry: Debian's `docker-registry`, a process of its own on a loopback port.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use skep_image::{Auth, Digest, Format, Image, ImageError, Registry, RegistryConfig, build};
use tempfile::TempDir;

/// A registry, until dropped.
struct Running {
    child: Child,
    dir: TempDir,
    host: String,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the registry asks of its clients.
struct Wants {
    password: bool,
    tls: Option<(String, String)>,
}

fn start(wants: &Wants) -> Option<Running> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runs = |program: &str| Command::new(program).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    for (program, package) in [("docker-registry", "docker-registry"), ("htpasswd", "apache2-utils")] {
        if !runs(program) {
            eprintln!("SKIPPED: no {program} here: apt-get install {package}");
            return None;
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let mut config = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp:\n  addr: 127.0.0.1:{port}\n",
        path("data")
    );
    if let Some((certificate, key)) = &wants.tls {
        std::fs::write(path("cert.pem"), certificate).unwrap();
        std::fs::write(path("key.pem"), key).unwrap();
        config += &format!("  tls: {{certificate: {}, key: {}}}\n", path("cert.pem"), path("key.pem"));
    }
    if wants.password {
        let made = Command::new("htpasswd").args(["-Bbn", "skep", "honey"]).output().unwrap();
        std::fs::write(path("htpasswd"), made.stdout).unwrap();
        config += &format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", path("htpasswd"));
    }
    std::fs::write(path("config.yml"), config).unwrap();
    let mut command = Command::new("docker-registry");
    command.args(["serve", &path("config.yml")]).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().unwrap();
    let running = Running { child, dir, host: format!("127.0.0.1:{port}") };
    let deadline = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(&running.host).is_err() {
        assert!(Instant::now() < deadline, "docker-registry does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    Some(running)
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn plain(host: &str) -> Registry {
    let plain_http = vec![host.to_string()];
    Registry::new(&RegistryConfig { plain_http, timeout: Duration::from_secs(20), ..RegistryConfig::default() })
        .unwrap()
}

fn bee() -> Auth {
    Auth::Basic { user: "skep".into(), password: "honey".into() }
}

fn object(filling: u8) -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(18, 0);
    bytes.extend([247, 0]);
    bytes.resize(200_000, filling);
    bytes
}

fn image(filling: u8) -> Image {
    build(&object(filling), &BTreeMap::from([("org.opencontainers.image.title".into(), "flows".into())]))
}

/// The file of a blob in the registry's storage.
fn blob(dir: &Path, digest: &Digest) -> PathBuf {
    let hex = digest.hex();
    dir.join(format!("data/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]))
}

fn is(error: &ImageError, reason: &str, reference: &str) {
    assert_eq!(error.reason(), reason, "{error}");
    assert!(error.to_string().contains(reference), "{error}");
}

#[tokio::test]
async fn push_resolve_pull_and_everything_that_goes_wrong() {
    let Some(running) = start(&Wants { password: true, tls: None }) else { return };
    let (registry, reference) = (plain(&running.host), format!("{}/ebpf/flows:v1", running.host));
    let (one, two) = (image(1), image(2));

    // Pushed, resolved and pulled, the digest is the one that was built.
    assert_eq!(registry.push(&reference, &one, &bee()).await.unwrap(), one.digest());
    assert_eq!(registry.resolve(&reference, &bee()).await.unwrap(), one.digest());
    let pulled = registry.pull(&reference, &one.digest(), &bee()).await.unwrap();
    assert_eq!((pulled.digest, pulled.object, pulled.format), (one.digest(), object(1), Format::Skep));

    // A reference by digest resolves to itself.
    let by_digest = format!("{}/ebpf/flows@{}", running.host, one.digest());
    assert_eq!(registry.resolve(&by_digest, &bee()).await.unwrap(), one.digest());

    // A tag that moves: the digest still gives the old bytes.
    registry.push(&reference, &two, &bee()).await.unwrap();
    assert_eq!(registry.resolve(&reference, &bee()).await.unwrap(), two.digest());
    assert_eq!(registry.pull(&reference, &one.digest(), &bee()).await.unwrap().object, object(1));

    // No such tag, repository, digest.
    for missing in ["ebpf/flows:v9", "ebpf/none:v1"] {
        let missing = format!("{}/{missing}", running.host);
        is(&registry.resolve(&missing, &bee()).await.unwrap_err(), "ImageNotFound", &missing);
    }
    let error = registry.pull(&reference, &Digest::of(b"other"), &bee()).await.unwrap_err();
    is(&error, "ImageNotFound", &reference);

    // Wrong credentials and none; right ones before do not help.
    let wrong = Auth::Basic { user: "skep".into(), password: "wax".into() };
    for auth in [&wrong, &Auth::Anonymous] {
        is(&registry.resolve(&reference, auth).await.unwrap_err(), "ImageUnauthorized", &reference);
        is(&registry.pull(&reference, &one.digest(), auth).await.unwrap_err(), "ImageUnauthorized", &reference);
        is(&registry.push(&reference, &one, auth).await.unwrap_err(), "ImageUnauthorized", &reference);
    }
    let error = registry.resolve(&reference, &wrong).await.unwrap_err().to_string();
    assert!(!error.contains("wax"), "{error}");

    // Asked whether it is still there and open: by digest, whatever the tag says now.
    registry.check(&reference, &one.digest(), &bee()).await.unwrap();
    is(&registry.check(&reference, &one.digest(), &wrong).await.unwrap_err(), "ImageUnauthorized", &reference);
    let error = registry.check(&reference, &Digest::of(b"other"), &bee()).await.unwrap_err();
    is(&error, "ImageNotFound", &reference);

    // A layer that is cut short in the registry's storage, and one of other bytes.
    let layer = blob(running.dir.path(), &Digest::of(&object(1)));
    std::fs::write(&layer, &object(1)[..1000]).unwrap();
    is(&registry.pull(&reference, &one.digest(), &bee()).await.unwrap_err(), "ImageInvalid", &reference);
    std::fs::write(&layer, object(3)).unwrap();
    let error = registry.pull(&reference, &one.digest(), &bee()).await.unwrap_err();
    is(&error, "ImageInvalid", &reference);
    assert!(error.to_string().contains(Digest::of(&object(1)).as_str()), "{error}");

    // A layer that is larger than the manifest says.
    std::fs::write(&layer, [object(1), object(1)].concat()).unwrap();
    is(&registry.pull(&reference, &one.digest(), &bee()).await.unwrap_err(), "ImageInvalid", &reference);

    // A manifest that is damaged in the registry's storage: this registry notices it itself and answers 500.
    std::fs::write(blob(running.dir.path(), &two.digest()), b"{}").unwrap();
    let error = registry.pull(&reference, &two.digest(), &bee()).await.unwrap_err();
    is(&error, "RegistryUnreachable", &reference);
    assert!(error.to_string().contains("it answers 500"), "{error}");
}

#[tokio::test]
async fn a_registry_that_does_not_run_is_said_fast() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let host = format!("127.0.0.1:{}", free_port());
    let reference = format!("{host}/ebpf/flows:v1");
    let before = Instant::now();
    let error = plain(&host).resolve(&reference, &Auth::Anonymous).await.unwrap_err();
    is(&error, "RegistryUnreachable", &reference);
    assert!(error.to_string().contains("Connection refused"), "{error}");
    assert!(before.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_registry_that_accepts_and_says_nothing_times_out() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = silent.local_addr().unwrap().to_string();
    let reference = format!("{host}/ebpf/flows:v1");
    let timeout = Duration::from_millis(300);
    let config = RegistryConfig { plain_http: vec![host], timeout, ..RegistryConfig::default() };
    let error = Registry::new(&config).unwrap().resolve(&reference, &Auth::Anonymous).await.unwrap_err();
    is(&error, "RegistryUnreachable", &reference);
}

#[tokio::test]
async fn an_empty_file_is_refused_before_anybody_is_asked() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let host = format!("127.0.0.1:{}", free_port());
    let reference = format!("{host}/ebpf/flows:v1");
    let empty = build(b"", &BTreeMap::new());
    let error = plain(&host).push(&reference, &empty, &Auth::Anonymous).await.unwrap_err();
    is(&error, "ImageInvalid", &reference);
    assert!(error.to_string().contains("the file is empty"), "{error}");
}

#[tokio::test]
async fn a_private_authority_is_trusted_when_it_is_given() {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(vec![]).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    ca.distinguished_name.push(rcgen::DnType::CommonName, "test authority");
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_string()]).unwrap();
    let certificate = params.signed_by(&key, &rcgen::Issuer::new(ca, ca_key)).unwrap();

    let tls = Some((certificate.pem(), key.serialize_pem()));
    let Some(running) = start(&Wants { password: true, tls }) else { return };
    let reference = format!("{}/ebpf/flows:v1", running.host);
    let trusting = RegistryConfig { ca_pem: vec![ca_pem.into_bytes()], ..RegistryConfig::default() };
    let registry = Registry::new(&trusting).unwrap();
    registry.push(&reference, &image(1), &bee()).await.unwrap();
    assert_eq!(registry.resolve(&reference, &bee()).await.unwrap(), image(1).digest());
    assert_eq!(registry.pull(&reference, &image(1).digest(), &bee()).await.unwrap().object, object(1));

    let stranger = Registry::new(&RegistryConfig::default()).unwrap();
    let error = stranger.resolve(&reference, &bee()).await.unwrap_err();
    is(&error, "RegistryUnreachable", &reference);
    assert!(error.to_string().contains("UnknownIssuer"), "{error}");

    let broken = RegistryConfig {
        ca_pem: vec![b"-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----".to_vec()],
        ..trusting
    };
    assert_eq!(Registry::new(&broken).unwrap_err().reason(), "Internal");
}

/// A manifest or an index as others push them, by oci-client itself.
struct Others<'a> {
    client: oci_client::Client,
    host: &'a str,
}

impl Others<'_> {
    async fn push(&self, reference: &str, blobs: &[&[u8]], media_type: &str, manifest: &serde_json::Value) -> Digest {
        let reference: oci_client::Reference = format!("{}/{reference}", self.host).parse().unwrap();
        for bytes in blobs {
            self.client.push_blob(&reference, bytes.to_vec(), Digest::of(bytes).as_str()).await.unwrap();
        }
        let bytes = manifest.to_string().into_bytes();
        let digest = Digest::of(&bytes);
        self.client.push_manifest_raw(&reference, bytes, media_type.parse().unwrap()).await.unwrap();
        digest
    }
}

fn descriptor(media_type: &str, bytes: &[u8]) -> serde_json::Value {
    serde_json::json!({"mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len()})
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

#[tokio::test]
async fn images_of_others_are_read_also_by_an_index() {
    use serde_json::json;
    let Some(running) = start(&Wants { password: false, tls: None }) else { return };
    let protocol = oci_client::client::ClientProtocol::Http;
    let config = oci_client::client::ClientConfig { protocol, ..Default::default() };
    let others = Others { client: oci_client::Client::new(config), host: &running.host };

    // bpfman: a container image whose one layer is a packed tar with one object.
    let mut archive = tar::Builder::new(flate2::write::GzEncoder::new(vec![], flate2::Compression::fast()));
    let mut header = tar::Header::new_gnu();
    header.set_size(object(5).len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, "flows.o", &object(5)[..]).unwrap();
    let layer = archive.into_inner().unwrap().finish().unwrap();
    let bpfman = json!({"schemaVersion": 2, "mediaType": MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", b"{}"),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &layer)]});
    let bpfman_digest = others.push("ebpf/bpfman:v1", &[b"{}", &layer], MANIFEST, &bpfman).await;

    // Inspektor Gadget: an index over architectures, and a layer of its own type among others.
    let gadget = json!({"schemaVersion": 2, "mediaType": MANIFEST,
        "config": descriptor("application/vnd.gadget.config.v1+yaml", b"{}"),
        "layers": [descriptor("application/vnd.gadget.wasm.program.v1+binary", b"wasm"),
            descriptor("application/vnd.gadget.ebpf.program.v1+binary", &object(6))]});
    let gadget_digest = others.push("ebpf/gadget:one", &[b"{}", b"wasm", &object(6)], MANIFEST, &gadget).await;
    let size = gadget.to_string().len();
    let entry = |architecture: &str| {
        json!({"mediaType": MANIFEST, "digest": gadget_digest, "size": size,
            "platform": {"os": "linux", "architecture": architecture}})
    };
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry("amd64"), entry("arm64")]});
    let index_digest = others.push("ebpf/gadget:v1", &[], INDEX, &index).await;
    let foreign = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry("s390x")]});
    let foreign_digest = others.push("ebpf/gadget:s390x", &[], INDEX, &foreign).await;

    let registry = plain(&running.host);
    let expected = [
        ("ebpf/bpfman:v1", bpfman_digest, 5, Format::Bpfman),
        ("ebpf/gadget:one", gadget_digest.clone(), 6, Format::InspektorGadget),
        ("ebpf/gadget:v1", index_digest, 6, Format::InspektorGadget),
    ];
    for (name, digest, filling, format) in expected {
        let reference = format!("{}/{name}", running.host);
        assert_eq!(registry.resolve(&reference, &Auth::Anonymous).await.unwrap(), digest);
        let pulled = registry.pull(&reference, &digest, &Auth::Anonymous).await.unwrap();
        assert_eq!((pulled.digest, pulled.object, pulled.format), (digest, object(filling), format));
    }
    let reference = format!("{}/ebpf/gadget:s390x", running.host);
    let error = registry.pull(&reference, &foreign_digest, &Auth::Anonymous).await.unwrap_err();
    is(&error, "ImageInvalid", "images for linux/s390x, and none for");
}
