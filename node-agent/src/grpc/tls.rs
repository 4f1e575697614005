//! The agent's side of trust: a key of its own that never leaves it, a certificate that the operator signs, and the
//! authority's bundle that callers' certificates are checked against.
//!
//! **Guarantees.** A new certificate or bundle serves the next handshake; running streams go on. Without a bundle nobody
//! is the operator.

use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::SystemTime;

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};

/// What can go wrong between a PEM and a handshake.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("making a key or a request: {0}")]
    Key(#[from] rcgen::Error),
    #[error("{0}")]
    Tls(#[from] rustls::Error),
    #[error("a certificate is not PEM: {0}")]
    Pem(#[from] rustls::pki_types::pem::Error),
    #[error("the certificate is not for this agent's key")]
    WrongKey,
    #[error("{path}: {source}", path = .path.display())]
    Bundle { path: PathBuf, source: std::io::Error },
}

/// The agent's identity. Until the operator has signed one, the certificate is self-signed and good for enrolling only.
/// What it signed is kept with the key, so that an agent that starts while the operator is away can be trusted at once.
#[derive(Debug)]
pub struct Identity {
    node: String,
    key: KeyPair,
    /// Where key and certificate are kept.
    file: PathBuf,
    current: RwLock<(Arc<CertifiedKey>, Option<SystemTime>)>,
}

impl Identity {
    /// What is kept in `file`, if it is good for this node now, else a new key.
    pub fn open(node: &str, file: &Path, now: SystemTime) -> Result<Self, TlsError> {
        match Self::kept(node, file, now) {
            Ok(kept) => Ok(kept),
            Err(why) => {
                tracing::info!(why, "a new key is made; the operator signs a certificate for it");
                Self::new(node, file)
            }
        }
    }

    fn new(node: &str, file: &Path) -> Result<Self, TlsError> {
        let key = KeyPair::generate()?;
        let own = CertificateParams::new(vec![dns_name(node)])?.self_signed(&key)?;
        let certified = certified(vec![own.der().clone()], &key)?;
        let current = RwLock::new((Arc::new(certified), None));
        Ok(Identity { node: node.to_owned(), key, file: file.to_owned(), current })
    }

    fn kept(node: &str, file: &Path, now: SystemTime) -> Result<Self, String> {
        let pem = std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
        let key = KeyPair::from_pem(&pem).map_err(|e| e.to_string())?;
        let (certified, end) = signed(&pem, &key).map_err(|e| e.to_string())?;
        let named = certified.cert.first().is_some_and(|leaf| is_for(leaf, &dns_name(node)));
        if !named || end.is_none_or(|end| end <= now) {
            return Err("the certificate that was kept is over, or another node's".into());
        }
        let current = RwLock::new((Arc::new(certified), end));
        Ok(Identity { node: node.to_owned(), key, file: file.to_owned(), current })
    }

    /// A certificate signing request for the key.
    pub fn request(&self) -> Result<String, TlsError> {
        let params = CertificateParams::new(vec![dns_name(&self.node)])?;
        Ok(params.serialize_request(&self.key)?.pem()?)
    }

    /// Takes a signed certificate (PEM, with its chain) into use.
    pub fn install(&self, pem: &str) -> Result<(), TlsError> {
        let (certified, end) = signed(pem, &self.key)?;
        *self.current.write().unwrap_or_else(std::sync::PoisonError::into_inner) = (Arc::new(certified), end);
        // It serves all the same; only the next start would need the operator.
        if let Err(error) =
            crate::desired::write_secret(&self.file, format!("{}{pem}", self.key.serialize_pem()).as_bytes())
        {
            tracing::warn!(%error, file = %self.file.display(), "the certificate cannot be kept");
        }
        Ok(())
    }

    /// The end of the validity of the signed certificate in use.
    pub fn not_after(&self) -> Option<SystemTime> {
        self.current.read().unwrap_or_else(std::sync::PoisonError::into_inner).1
    }
}

fn dns_name(node: &str) -> String {
    format!("{node}.node.skep")
}

/// The chain in a PEM text, for this key, and its end.
fn signed(pem: &str, key: &KeyPair) -> Result<(CertifiedKey, Option<SystemTime>), TlsError> {
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>()?;
    let certified = certified(chain, key)?;
    certified.keys_match().map_err(|_| TlsError::WrongKey)?;
    let end = certified.cert.first().and_then(|c| not_after(c));
    Ok((certified, end))
}

fn is_for(der: &[u8], name: &str) -> bool {
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return false };
    let names = certificate.subject_alternative_name().ok().flatten();
    names.is_some_and(|names| names.value.general_names.contains(&GeneralName::DNSName(name)))
}

fn certified(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Result<CertifiedKey, TlsError> {
    let der = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let signing = rustls::crypto::ring::sign::any_supported_type(&der)?;
    Ok(CertifiedKey::new(chain, signing))
}

fn not_after(der: &[u8]) -> Option<SystemTime> {
    use x509_parser::prelude::FromDer;
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(der).ok()?;
    let seconds = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
    Some(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds))
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().unwrap_or_else(std::sync::PoisonError::into_inner).0.clone())
    }
}

/// Makes a configuration for a handshake, again when the bundle's file has changed.
#[derive(Debug)]
pub struct Acceptors {
    identity: Arc<Identity>,
    bundle: PathBuf,
    last: Option<(SystemTime, Arc<ServerConfig>)>,
}

impl Acceptors {
    pub fn new(identity: Arc<Identity>, bundle: PathBuf) -> Self {
        Acceptors { identity, bundle, last: None }
    }

    /// The configuration for now.
    pub fn current(&mut self) -> Result<Arc<ServerConfig>, TlsError> {
        let changed = std::fs::metadata(&self.bundle).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        if let Some((since, config)) = &self.last
            && *since == changed
        {
            return Ok(config.clone());
        }
        let config = Arc::new(self.build()?);
        self.last = Some((changed, config.clone()));
        Ok(config)
    }

    fn build(&self) -> Result<ServerConfig, TlsError> {
        let roots = bundle(&self.bundle)?;
        let builder = ServerConfig::builder();
        let builder = if roots.is_empty() {
            builder.with_no_client_auth()
        } else {
            let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).allow_unauthenticated().build();
            builder.with_client_cert_verifier(verifier.map_err(|e| rustls::Error::General(e.to_string()))?)
        };
        let mut config = builder.with_cert_resolver(self.identity.clone());
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

/// The authority's certificates; none while the file is not there yet.
fn bundle(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    let pem = match std::fs::read(path) {
        Ok(pem) => pem,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(roots),
        Err(source) => return Err(TlsError::Bundle { path: path.to_owned(), source }),
    };
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        roots.add(certificate?)?;
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_a_certificate_for_the_own_key_is_taken() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (new("a", &dir.path().join("1")), new("a", &dir.path().join("2")));
        assert!(one.request().unwrap().starts_with("-----BEGIN CERTIFICATE REQUEST-----"));
        assert!(matches!(one.install(&sign(&other)), Err(TlsError::WrongKey)));
        assert_eq!(one.not_after(), None);
        one.install(&sign(&one)).unwrap();
        assert!(one.not_after().is_some());
    }

    fn new(node: &str, file: &Path) -> Identity {
        Identity::open(node, file, SystemTime::now()).unwrap()
    }

    /// A certificate of an hour.
    fn sign(identity: &Identity) -> String {
        let mut params = CertificateParams::new(vec![dns_name(&identity.node)]).unwrap();
        params.not_after = (SystemTime::now() + Duration::from_secs(3600)).into();
        params.self_signed(&identity.key).unwrap().pem()
    }

    #[test]
    fn what_was_signed_serves_the_next_start_while_it_is_good() {
        use std::os::unix::fs::PermissionsExt;
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("identity.pem");
        let first = new("a", &file);
        assert!(!file.exists(), "a key that nobody vouched for is not kept");
        first.install(&sign(&first)).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

        let again = new("a", &file);
        assert_eq!(again.not_after(), first.not_after());
        assert_eq!(again.current.read().unwrap().0.cert, first.current.read().unwrap().0.cert);

        // Over, another node's, damaged: a new key.
        let later = SystemTime::now() + Duration::from_secs(3601);
        assert_eq!(Identity::open("a", &file, later).unwrap().not_after(), None);
        assert_eq!(new("b", &file).not_after(), None);
        std::fs::write(&file, "nonsense").unwrap();
        assert_eq!(new("a", &file).not_after(), None);
    }
}
