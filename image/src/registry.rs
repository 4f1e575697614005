//! A client of OCI registries.
//!
//! Guarantees: every call ends within the timeout; every byte is checked against the digest that names it; a client is
//! made for each call, so credentials and tokens of one namespace are never used for another; a layer is fetched from the
//! image's own registry only, whatever URLs its descriptor names.
//!
//! Caveat: a manifest's size is checked after it has arrived.

use std::error::Error;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use oci_client::client::{Certificate, CertificateEncoding, Client, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use oci_client::{Reference, RegistryOperation};
use tokio::io::AsyncWrite;

use crate::artifact::{Image, MANIFEST_TYPE};
use crate::auth::Auth;
use crate::digest::Digest;
use crate::error::{Fault, ImageError};
use crate::format::{Bytecode, Layer, Next, architecture, read_layer, read_manifest};
use crate::reference::parse;

/// How registries are reached.
#[derive(Clone)]
pub struct RegistryConfig {
    /// Certificates of private authorities to trust beside the system's, each PEM.
    pub ca_pem: Vec<Vec<u8>>,
    /// Registries to talk to without TLS, `host:port`.
    pub plain_http: Vec<String>,
    /// How long one call may take.
    pub timeout: Duration,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self { ca_pem: vec![], plain_http: vec![], timeout: Duration::from_secs(60) }
    }
}

impl fmt::Debug for RegistryConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = (self.ca_pem.len(), &self.plain_http, self.timeout);
        write!(f, "RegistryConfig {{ {} authorities, plain_http: {:?}, timeout: {:?} }}", shown.0, shown.1, shown.2)
    }
}

/// A client of any registry.
#[derive(Clone, Debug)]
pub struct Registry {
    config: RegistryConfig,
}

/// How long a connection may take to be made, at most.
const CONNECT: Duration = Duration::from_secs(10);

const ACCEPTED: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// The registry that `reference` names, `host` or `host:port`; `docker.io` if it names none.
pub fn registry_of(reference: &str) -> Result<String, ImageError> {
    parse(reference).map(|image| image.registry().to_string())
}

impl Registry {
    /// A client; fails if a certificate cannot be read.
    pub fn new(config: &RegistryConfig) -> Result<Self, ImageError> {
        let registry = Self { config: config.clone() };
        registry.client()?;
        Ok(registry)
    }

    /// The digest that `reference` has now; nothing is downloaded.
    pub async fn resolve(&self, reference: &str, auth: &Auth) -> Result<Digest, ImageError> {
        let (client, image) = (self.client()?, parse(reference)?);
        let answer = self.within(reference, client.fetch_manifest_digest(&image, &credentials(auth))).await?;
        answer.parse().map_err(|_| Fault::NotAnImage(format!("the registry names its digest {answer:?}")).of(reference))
    }

    /// Whether the registry still has the image `digest` in the repository of `reference`, and these credentials still
    /// open it; nothing is downloaded.
    pub async fn check(&self, reference: &str, digest: &Digest, auth: &Auth) -> Result<(), ImageError> {
        let (client, image) = (self.client()?, parse(reference)?.clone_with_digest(digest.to_string()));
        self.within(reference, client.fetch_manifest_digest(&image, &credentials(auth))).await.map(drop)
    }

    /// The object of the image `digest` in the repository of `reference`, whose tag does not matter. Of an index over
    /// architectures: the object for the architecture of this process.
    pub async fn pull(&self, reference: &str, digest: &Digest, auth: &Auth) -> Result<Bytecode, ImageError> {
        let (client, image, auth) = (self.client()?, parse(reference)?, credentials(auth));
        let mut next = self.manifest(&client, &image, reference, digest, &auth).await?;
        if let Next::Manifest(chosen) = next {
            next = self.manifest(&client, &image, reference, &chosen, &auth).await?;
        }
        let Next::Layer(layer) = next else {
            return Err(Fault::NotAnImage("its index names another index".into()).of(reference));
        };
        let bytes = self.layer(&client, &image, reference, &layer).await?;
        let (format, packing) = (layer.format, layer.packing);
        let object = read_layer(bytes, packing).map_err(|fault| fault.of(reference))?;
        Ok(Bytecode { digest: digest.clone(), object, format })
    }

    /// Puts the image under `reference`, a tag, and returns its digest.
    pub async fn push(&self, reference: &str, image: &Image, auth: &Auth) -> Result<Digest, ImageError> {
        let (client, target, auth) = (self.client()?, parse(reference)?, credentials(auth));
        if image.object().is_empty() {
            return Err(Fault::NotBpf("the file is empty".into()).of(reference));
        }
        // A constant that is a header's value: this cannot fail.
        let media_type = MANIFEST_TYPE.parse().map_err(|_| ImageError::Client { detail: MANIFEST_TYPE.into() })?;
        self.within(reference, async {
            client.auth(&target, &auth, RegistryOperation::Push).await?;
            for blob in [&image.config, &image.object] {
                client.push_blob(&target, blob.clone(), Digest::of(blob).as_str()).await?;
            }
            client.push_manifest_raw(&target, image.manifest.clone(), media_type).await
        })
        .await?;
        Ok(image.digest())
    }

    async fn manifest(
        &self,
        client: &Client,
        image: &Reference,
        reference: &str,
        digest: &Digest,
        auth: &RegistryAuth,
    ) -> Result<Next, ImageError> {
        let named = image.clone_with_digest(digest.to_string());
        let (bytes, _) = self.within(reference, client.pull_manifest_raw(&named, auth, &ACCEPTED)).await?;
        Fault::unless_named(&bytes, digest)
            .and_then(|()| read_manifest(&bytes, architecture()))
            .map_err(|fault| fault.of(reference))
    }

    async fn layer(
        &self,
        client: &Client,
        image: &Reference,
        reference: &str,
        layer: &Layer,
    ) -> Result<Vec<u8>, ImageError> {
        // Without the `urls` of the manifest: only the image's own registry is asked.
        let descriptor = OciDescriptor { digest: layer.digest.to_string(), ..OciDescriptor::default() };
        let mut bytes = Bounded { bytes: vec![], limit: layer.size };
        self.within(reference, client.pull_blob(image, &descriptor, &mut bytes)).await?;
        Fault::unless_named(&bytes.bytes, &layer.digest).map_err(|fault| fault.of(reference))?;
        Ok(bytes.bytes)
    }

    /// A client of its own for each call: oci-client remembers credentials and tokens by registry, not by who calls.
    fn client(&self) -> Result<Client, ImageError> {
        let certificate = |pem: &Vec<u8>| Certificate { encoding: CertificateEncoding::Pem, data: pem.clone() };
        let config = ClientConfig {
            protocol: ClientProtocol::HttpsExcept(self.config.plain_http.clone()),
            extra_root_certificates: self.config.ca_pem.iter().map(certificate).collect(),
            connect_timeout: Some(CONNECT.min(self.config.timeout)),
            read_timeout: Some(self.config.timeout),
            use_monolithic_push: true,
            user_agent: concat!("skep/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        Client::try_from(config).map_err(|error| ImageError::Client { detail: causes(&error) })
    }

    async fn within<T>(
        &self,
        reference: &str,
        call: impl Future<Output = Result<T, OciDistributionError>>,
    ) -> Result<T, ImageError> {
        match tokio::time::timeout(self.config.timeout, call).await {
            Ok(answer) => answer.map_err(|error| classify(reference, self.config.timeout, error)),
            Err(_) => Err(ImageError::Timeout { reference: reference.into(), after: self.config.timeout }),
        }
    }
}

fn credentials(auth: &Auth) -> RegistryAuth {
    match auth {
        Auth::Anonymous => RegistryAuth::Anonymous,
        Auth::Basic { user, password } => RegistryAuth::Basic(user.clone(), password.clone()),
    }
}

/// What the registry's answer, or its silence, means.
fn classify(reference: &str, after: Duration, error: OciDistributionError) -> ImageError {
    use OciDistributionError as E;
    use OciErrorCode as Code;
    let reference = reference.to_string();
    let not_found = |detail: &str| ImageError::NotFound { reference: reference.clone(), detail: detail.into() };
    let unauthorized = |detail: &str| ImageError::Unauthorized { reference: reference.clone(), detail: detail.into() };
    let unreachable = |detail: String| ImageError::Unreachable { reference: reference.clone(), detail };
    let fault = |fault: Fault| fault.of(&reference);
    match error {
        E::UnauthorizedError { .. } => unauthorized("401 Unauthorized"),
        E::AuthenticationFailure(_) => unauthorized("its token service refuses the credentials"),
        E::ImageManifestNotFoundError(detail) => not_found(&detail),
        E::RegistryError { envelope, .. } => {
            let code = envelope.errors.first().map(|error| &error.code);
            match code {
                Some(Code::Unauthorized | Code::Denied) => unauthorized(&envelope.to_string()),
                Some(Code::Toomanyrequests) => unreachable(envelope.to_string()),
                Some(Code::ManifestUnknown | Code::NameUnknown | Code::NotFound) => not_found(&envelope.to_string()),
                Some(Code::BlobUnknown | Code::ManifestBlobUnknown) => not_found(&envelope.to_string()),
                _ => fault(Fault::NotAnImage(envelope.to_string())),
            }
        }
        E::ServerError { code: 401 | 403, .. } => unauthorized("401 or 403"),
        E::ServerError { code: 404, .. } => not_found("404 Not Found"),
        E::ServerError { code, message, .. } => {
            let message: String = message.chars().take(200).collect();
            unreachable(format!("it answers {code} {}", message.trim()))
        }
        E::RequestError(error) if error.is_timeout() && !error.is_connect() => ImageError::Timeout { reference, after },
        E::RequestError(error) => match error.status().map(|status| status.as_u16()) {
            Some(401 | 403) => unauthorized("401 or 403"),
            Some(404) => not_found("404 Not Found"),
            _ => unreachable(causes(&error)),
        },
        E::IoError(error) if error.kind() == io::ErrorKind::FileTooLarge => {
            fault(Fault::NotAnImage("its layer is larger than its manifest says".into()))
        }
        E::DigestError(oci_client::errors::DigestError::VerificationError { expected, actual }) => {
            fault(Fault::Digest { wanted: expected, found: actual })
        }
        E::DigestError(error) => fault(Fault::NotAnImage(error.to_string())),
        error @ (E::JsonError(_)
        | E::ManifestEncodingError(_)
        | E::ManifestParsingError(_)
        | E::VersionedParsingError(_)
        | E::UnsupportedMediaTypeError(_)
        | E::UnsupportedSchemaVersionError(_)) => fault(Fault::NotAnImage(error.to_string())),
        error => unreachable(causes(&error)),
    }
}

/// An error and what caused it, outermost first: reqwest's own text leaves the causes out.
fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

/// Bytes, up to a limit.
struct Bounded {
    bytes: Vec<u8>,
    limit: u64,
}

impl AsyncWrite for Bounded {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, chunk: &[u8]) -> Poll<io::Result<usize>> {
        if (self.bytes.len() + chunk.len()) as u64 > self.limit {
            return Poll::Ready(Err(io::ErrorKind::FileTooLarge.into()));
        }
        self.bytes.extend_from_slice(chunk);
        Poll::Ready(Ok(chunk.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
