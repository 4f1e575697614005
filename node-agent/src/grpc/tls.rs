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
#[derive(Debug)]
pub struct Identity {
    node: String,
    key: KeyPair,
    current: RwLock<(Arc<CertifiedKey>, Option<SystemTime>)>,
}

impl Identity {
    /// Makes a key.
    pub fn new(node: &str) -> Result<Self, TlsError> {
        let key = KeyPair::generate()?;
        let own = CertificateParams::new(vec![format!("{node}.node.skep")])?.self_signed(&key)?;
        let certified = certified(vec![own.der().clone()], &key)?;
        Ok(Identity { node: node.to_owned(), key, current: RwLock::new((Arc::new(certified), None)) })
    }

    /// A certificate signing request for the key.
    pub fn request(&self) -> Result<String, TlsError> {
        let params = CertificateParams::new(vec![format!("{}.node.skep", self.node)])?;
        Ok(params.serialize_request(&self.key)?.pem()?)
    }

    /// Takes a signed certificate (PEM, with its chain) into use.
    pub fn install(&self, pem: &str) -> Result<(), TlsError> {
        let chain: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>()?;
        let certified = certified(chain, &self.key)?;
        match certified.keys_match() {
            Ok(()) => {}
            Err(_) => return Err(TlsError::WrongKey),
        }
        let end = certified.cert.first().and_then(|c| not_after(c));
        *self.current.write().unwrap_or_else(std::sync::PoisonError::into_inner) = (Arc::new(certified), end);
        Ok(())
    }

    /// The end of the validity of the signed certificate in use.
    pub fn not_after(&self) -> Option<SystemTime> {
        self.current.read().unwrap_or_else(std::sync::PoisonError::into_inner).1
    }
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
    use super::*;

    #[test]
    fn only_a_certificate_for_the_own_key_is_taken() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (one, other) = (Identity::new("a").unwrap(), Identity::new("a").unwrap());
        assert!(one.request().unwrap().starts_with("-----BEGIN CERTIFICATE REQUEST-----"));
        let signed =
            |of: &Identity| CertificateParams::new(vec!["a".into()]).unwrap().self_signed(&of.key).unwrap().pem();
        assert!(matches!(one.install(&signed(&other)), Err(TlsError::WrongKey)));
        assert_eq!(one.not_after(), None);
        one.install(&signed(&one)).unwrap();
        assert!(one.not_after().is_some());
    }
}
