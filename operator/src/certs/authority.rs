//! The certificate authority: who is the operator, and which agent is which node's.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use skep_proto::OPERATOR_NAME;

/// How long the authority itself is valid.
const AUTHORITY: Duration = Duration::from_secs(10 * 365 * DAY);
/// How long a node's certificate and the operator's are valid.
pub const LEAF: Duration = Duration::from_secs(DAY);
/// Clocks may differ by this much.
const SKEW: Duration = Duration::from_secs(300);
const DAY: u64 = 24 * 3600;

/// Why a certificate cannot be made.
#[derive(thiserror::Error, Debug)]
pub enum CertError {
    #[error(
        "the Secret with the authority cannot be used: {0}: delete it to make a new authority; the agents then enrol anew"
    )]
    Authority(rcgen::Error),
    #[error("the agent's certificate request is refused: {0}")]
    Request(rcgen::Error),
    #[error("a certificate cannot be made: {0}")]
    Issue(#[from] rcgen::Error),
}

/// A certificate authority: its certificate and its key, both PEM.
#[derive(Clone)]
pub struct Authority {
    certificate: String,
    key: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

/// A certificate with its key, both PEM.
#[derive(Clone)]
pub struct Credential {
    /// The certificate.
    pub certificate: String,
    /// The private key.
    pub key: String,
    /// The end of its validity.
    pub not_after: SystemTime,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// The DNS name in the certificate of a node's agent.
pub fn node_dns_name(node: &str) -> String {
    format!("{node}.node.skep")
}

impl Authority {
    /// A new authority.
    pub fn generate(now: SystemTime) -> Result<Self, CertError> {
        let key = KeyPair::generate()?;
        let mut params = params("skep", now, AUTHORITY);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { certificate, key: key.serialize_pem() })
    }

    /// The authority with this certificate and key, both PEM.
    pub fn from_pem(certificate: String, key: String) -> Result<Self, CertError> {
        let authority = Self { certificate, key };
        authority.issuer().map_err(CertError::Authority)?;
        Ok(authority)
    }

    /// The authority's certificate, PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// The authority's private key, PEM.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The certificate by which agents know the operator, with a key of its own.
    pub fn operator(&self, now: SystemTime) -> Result<Credential, CertError> {
        let key = KeyPair::generate()?;
        let mut params = params(OPERATOR_NAME, now, LEAF);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let certificate = params.signed_by(&key, &self.issuer()?)?.pem();
        Ok(Credential { certificate, key: key.serialize_pem(), not_after: now + LEAF })
    }

    /// A certificate for the agent of `node`, with the key that signed the request (PEM). Nothing else is taken from the
    /// request.
    pub fn sign_node(&self, node: &str, request: &str, now: SystemTime) -> Result<String, CertError> {
        let request = CertificateSigningRequestParams::from_pem(request).map_err(CertError::Request)?;
        let name = node_dns_name(node);
        let mut params = params(&name, now, LEAF);
        params.subject_alt_names = CertificateParams::new(vec![name])?.subject_alt_names;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        Ok(params.signed_by(&request.public_key, &self.issuer()?)?.pem())
    }

    fn issuer(&self) -> Result<Issuer<'static, KeyPair>, rcgen::Error> {
        Issuer::from_ca_cert_pem(&self.certificate, KeyPair::from_pem(&self.key)?)
    }
}

fn params(common_name: &str, now: SystemTime, validity: Duration) -> CertificateParams {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    params.not_before = (now - SKEW).into();
    params.not_after = (now + validity).into();
    params.use_authority_key_identifier_extension = true;
    params
}

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::prelude::*;

    fn authority() -> Authority {
        Authority::generate(SystemTime::now()).unwrap()
    }

    fn read<T>(pem: &str, look: impl FnOnce(&X509Certificate<'_>) -> T) -> T {
        let (_, pem) = parse_x509_pem(pem.as_bytes()).unwrap();
        look(&pem.parse_x509().unwrap())
    }

    #[test]
    fn a_node_gets_its_own_name_whatever_it_asks_for() {
        let (authority, key) = (authority(), KeyPair::generate().unwrap());
        let asked = CertificateParams::new(vec!["other.node.skep".to_string()]).unwrap();
        let request = asked.serialize_request(&key).unwrap().pem().unwrap();
        let signed = authority.sign_node("worker-1", &request, SystemTime::now()).unwrap();
        read(&signed, |certificate| {
            let names = certificate.subject_alternative_name().unwrap().unwrap();
            assert_eq!(names.value.general_names, [GeneralName::DNSName("worker-1.node.skep")]);
            let usage = certificate.extended_key_usage().unwrap().unwrap().value;
            assert!(usage.server_auth && !usage.client_auth);
            assert_eq!(certificate.public_key().subject_public_key.data, key.public_key_raw());
            assert!(!certificate.is_ca());
            let validity = certificate.validity().time_to_expiration().unwrap();
            assert!(validity <= LEAF && validity > LEAF - Duration::from_secs(60));
        });
    }

    #[test]
    fn a_request_with_a_bad_signature_is_refused() {
        let key = KeyPair::generate().unwrap();
        let request = CertificateParams::new(vec![]).unwrap().serialize_request(&key).unwrap();
        let mut der = request.der().to_vec();
        *der.last_mut().unwrap() ^= 1;
        let pem = rcgen::CertificateSigningRequestParams::from_der(&der.as_slice().into());
        assert!(pem.is_err());
        assert!(matches!(authority().sign_node("a", "no pem", SystemTime::now()), Err(CertError::Request(_))));
    }

    #[test]
    fn the_operator_is_a_client_only() {
        let authority = authority();
        let same = Authority::from_pem(authority.certificate().into(), authority.key().into()).unwrap();
        let credential = same.operator(SystemTime::now()).unwrap();
        read(&credential.certificate, |certificate| {
            assert_eq!(certificate.subject().iter_common_name().next().unwrap().as_str().unwrap(), OPERATOR_NAME);
            let usage = certificate.extended_key_usage().unwrap().unwrap().value;
            assert!(usage.client_auth && !usage.server_auth);
        });
        assert!(Authority::from_pem("x".into(), "y".into()).is_err());
    }
}
