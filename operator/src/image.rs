//! From the image that a program names to the bytes that every node runs, and the credentials to fetch them.
//!
//! Guarantees: Secrets are read by name, in the program's own namespace; a digest that is known is not asked for again.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use skep_crds::{ImageSource, Reason};
use skep_image::{Auth, Registry, RegistryConfig, auth_from_docker_config, registry_of};
use skep_proto::v1::RegistryCredential;

const DOCKER_CONFIG: &str = ".dockerconfigjson";
const DOCKER_CONFIG_TYPE: &str = "kubernetes.io/dockerconfigjson";
const SECRET_DEADLINE: Duration = Duration::from_secs(4);
/// How long a registry may take at the first attempt, and at later ones.
const FIRST_ATTEMPT: Duration = Duration::from_secs(4);
const LATER_ATTEMPTS: Duration = Duration::from_secs(20);
/// The longest wait before a transient failure is tried again, and the wait after another.
const TRANSIENT: Duration = Duration::from_secs(60);
const LASTING: Duration = Duration::from_secs(120);

/// An image as every node should run it.
#[derive(Clone, PartialEq)]
pub struct Resolution {
    /// The reference that was resolved.
    pub reference: String,
    /// `sha256:...`
    pub digest: String,
    /// For its registry.
    pub credentials: Vec<RegistryCredential>,
    /// What is wrong with Secrets that could not be used. It was resolved without them; a node may not get it so.
    pub missing: Vec<String>,
}

impl std::fmt::Debug for Resolution {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (reference, digest, credentials) = (&self.reference, &self.digest, self.credentials.len());
        write!(f, "Resolution {{ {reference}, {digest}, {credentials} credentials }}")
    }
}

/// Why there is no digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The word.
    pub reason: Reason,
    /// The text.
    pub message: String,
}

/// A question.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The program.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its `metadata.generation`.
    pub generation: i64,
    /// What it names.
    pub image: ImageSource,
    /// The digest, if it was resolved before: only credentials are needed.
    pub known: Option<String>,
    /// How often it failed before.
    pub failures: u32,
}

/// How long to wait before the question is asked again.
pub fn backoff(problem: &Problem, failures: u32, random: f32) -> Duration {
    let wait = match problem.reason.is_transient() {
        true => Duration::from_secs(1).saturating_mul(1 << failures.min(10)).min(TRANSIENT),
        // The image may have been pushed meanwhile; nothing but asking tells.
        false => Duration::from_secs(5).saturating_mul(1 << failures.min(10)).min(LASTING),
    };
    wait.mul_f32(1.0 - random.clamp(0.0, 1.0) / 4.0)
}

/// Asks Secrets and registries.
#[derive(Clone)]
pub struct Resolver {
    client: kube::Client,
    config: RegistryConfig,
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Resolver {
    pub fn new(client: kube::Client, config: RegistryConfig) -> Self {
        Self { client, config }
    }

    /// The answer. Always ends in time.
    pub async fn resolve(&self, request: &Request) -> Result<Resolution, Problem> {
        let reference = &request.image.reference;
        let problem = |error: skep_image::ImageError| Problem {
            reason: error.reason().parse().unwrap_or(Reason::Internal),
            message: error.to_string(),
        };
        let registry = registry_of(reference).map_err(problem)?;
        let (credentials, missing) = self.credentials(request, &registry).await;
        let known = request.known.clone().or_else(|| digest_in(reference).map(Into::into));
        let digest = match known {
            Some(digest) => digest,
            None => {
                let timeout = if request.failures == 0 { FIRST_ATTEMPT } else { LATER_ATTEMPTS };
                let config = RegistryConfig { timeout, ..self.config.clone() };
                let auth = credentials.first().map_or(Auth::Anonymous, |credential| Auth::Basic {
                    user: credential.username.clone(),
                    password: credential.password.clone(),
                });
                let resolved = Registry::new(&config).map_err(problem)?.resolve(reference, &auth).await;
                let explain = |error| {
                    let problem = problem(error);
                    let message = missing.iter().fold(problem.message, |text, missing| format!("{text}; {missing}"));
                    Problem { message, ..problem }
                };
                resolved.map_err(explain)?.to_string()
            }
        };
        Ok(Resolution { reference: reference.clone(), digest, credentials, missing })
    }

    /// The first entry for the registry in the named Secrets, and what is wrong with those that cannot be used.
    async fn credentials(&self, request: &Request, registry: &str) -> (Vec<RegistryCredential>, Vec<String>) {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &request.namespace);
        let mut missing = vec![];
        for named in request.image.pull_secrets.iter().flatten() {
            let got = tokio::time::timeout(SECRET_DEADLINE, api.get(&named.name)).await;
            let found = match got {
                Ok(Ok(secret)) => credential(&secret, registry),
                Ok(Err(kube::Error::Api(status))) if status.is_not_found() => Err("there is none of that name".into()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err("the API server does not answer".into()),
            };
            match found {
                Ok(Some(credential)) => return (vec![credential], missing),
                Ok(None) => {}
                Err(detail) => missing.push(format!("pull secret {}: {detail}", named.name)),
            }
        }
        (vec![], missing)
    }
}

/// The digest that a reference names itself.
fn digest_in(reference: &str) -> Option<&str> {
    reference.split_once('@').map(|(_, digest)| digest)
}

fn credential(secret: &Secret, registry: &str) -> Result<Option<RegistryCredential>, String> {
    if secret.type_.as_deref() != Some(DOCKER_CONFIG_TYPE) {
        return Err(format!(
            "it is not of type {DOCKER_CONFIG_TYPE}: make it with kubectl create secret docker-registry"
        ));
    }
    let bytes = secret.data.as_ref().and_then(|data| data.get(DOCKER_CONFIG));
    let bytes = bytes.ok_or_else(|| format!("it has no {DOCKER_CONFIG}"))?;
    match auth_from_docker_config(&bytes.0, registry).map_err(|error| error.to_string())? {
        Auth::Anonymous => Ok(None),
        Auth::Basic { user, password } => {
            Ok(Some(RegistryCredential { registry: registry.into(), username: user, password }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    #[test]
    fn a_secret_gives_the_entry_for_the_registry() {
        let json = br#"{"auths": {"registry.example.com": {"username": "me", "password": "pw"}}}"#;
        let mut secret = Secret {
            type_: Some(DOCKER_CONFIG_TYPE.into()),
            data: Some([(DOCKER_CONFIG.to_string(), ByteString(json.to_vec()))].into()),
            ..Secret::default()
        };
        let wanted = RegistryCredential {
            registry: "registry.example.com".into(),
            username: "me".into(),
            password: "pw".into(),
        };
        assert_eq!(credential(&secret, "registry.example.com"), Ok(Some(wanted)));
        assert_eq!(credential(&secret, "other.example.com"), Ok(None));
        secret.type_ = Some("Opaque".into());
        assert!(credential(&secret, "registry.example.com").is_err());
    }

    #[test]
    fn a_reference_by_digest_needs_no_registry() {
        assert_eq!(digest_in("r.example.com/a@sha256:ab"), Some("sha256:ab"));
        assert_eq!(digest_in("r.example.com:5000/a:v1"), None);
    }

    #[test]
    fn both_kinds_of_failure_are_tried_again_within_bounds() {
        let problem = |reason| Problem { reason, message: String::new() };
        assert_eq!(backoff(&problem(Reason::RegistryUnreachable), 0, 0.0), Duration::from_secs(1));
        assert_eq!(backoff(&problem(Reason::RegistryUnreachable), 30, 0.0), TRANSIENT);
        assert_eq!(backoff(&problem(Reason::ImageNotFound), 30, 0.0), LASTING);
    }
}
