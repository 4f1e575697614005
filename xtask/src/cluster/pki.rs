//! The cluster's certificate authority and the certificates of its parts, made anew by every `up`.

use std::path::Path;

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};

use super::layout;

/// Who a client certificate makes its bearer: (file, user, group).
const CLIENTS: [(&str, &str, &str); 6] = [
    ("admin", "skep-admin", "system:masters"),
    ("kubelet-client", "kube-apiserver-kubelet-client", "system:masters"),
    ("controller-manager", "system:kube-controller-manager", "system:kube-controller-manager"),
    ("scheduler", "system:kube-scheduler", "system:kube-scheduler"),
    ("proxy", "system:kube-proxy", "system:node-proxier"),
    ("kubelet", "system:node:skep-node", "system:nodes"),
];

/// Who listens under which names: (file, names, addresses).
const SERVERS: [(&str, &[&str], &[&str]); 3] = [
    (
        "apiserver",
        &["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"],
        &[layout::ADDRESS, layout::API_SERVICE, "127.0.0.1"],
    ),
    ("kubelet-server", &[layout::NODE], &[layout::ADDRESS]),
    ("registry", &["registry.skep.test"], &[layout::ADDRESS]),
];

/// Writes `<name>.crt` and `<name>.key` for every part, `ca.crt`, `ca.key`, and the key that signs service account tokens.
pub fn write() -> Result<()> {
    std::fs::create_dir_all(layout::pki(""))?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "skep test cluster");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    save("ca", &params.self_signed(&key)?.pem(), &key)?;
    let ca = Issuer::new(params, key);
    for (file, user, group) in CLIENTS {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, user);
        params.distinguished_name.push(DnType::OrganizationName, group);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        sign(file, params, &ca)?;
    }
    for (file, names, addresses) in SERVERS {
        let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())?;
        for address in addresses {
            params.subject_alt_names.push(SanType::IpAddress(address.parse()?));
        }
        params.distinguished_name.push(DnType::CommonName, file);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        sign(file, params, &ca)?;
    }
    let tokens = KeyPair::generate()?;
    std::fs::write(layout::pki("service-accounts.pub"), tokens.public_key_pem())?;
    write_private(&layout::pki("service-accounts.key"), &tokens.serialize_pem())
}

fn sign(file: &str, mut params: CertificateParams, ca: &Issuer<'_, KeyPair>) -> Result<()> {
    let key = KeyPair::generate()?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    save(file, &params.signed_by(&key, ca)?.pem(), &key)
}

fn save(file: &str, certificate: &str, key: &KeyPair) -> Result<()> {
    std::fs::write(layout::pki(&format!("{file}.crt")), certificate)?;
    write_private(&layout::pki(&format!("{file}.key")), &key.serialize_pem())
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::OpenOptions::new();
    Ok(options.write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(text.as_bytes())?)
}
