//! Where the authority is kept: a Secret, and a ConfigMap with what others need of it.

use std::collections::BTreeMap;
use std::time::SystemTime;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, DeleteParams, ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::json;

use super::authority::{Authority, CertError};
use crate::FIELD_MANAGER;
use crate::config::Places;

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

/// Why there is no authority.
#[derive(thiserror::Error, Debug)]
pub enum StoreError {
    #[error("{what} {namespace}/{name}: {source}")]
    Kube { what: &'static str, namespace: String, name: String, source: Box<kube::Error> },
    #[error("Secret {namespace}/{name}: {source}")]
    Unusable { namespace: String, name: String, source: CertError },
}

/// The authority in the Secret; one is made if there is no Secret. Then the bundle says what the Secret says.
pub async fn authority(client: &kube::Client, places: &Places) -> Result<Authority, StoreError> {
    let authority = secret(client, places).await?;
    let (namespace, name) = (places.namespace.clone(), places.ca_configmap.clone());
    let bundle = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace},
        "data": {"ca.crt": authority.certificate()},
    });
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
    let params = PatchParams::apply(FIELD_MANAGER).force();
    match api.patch(&name, &params, &Patch::Apply(bundle)).await {
        Ok(_) => Ok(authority),
        Err(source) => Err(StoreError::Kube { what: "ConfigMap", namespace, name, source: Box::new(source) }),
    }
}

/// Takes the authority away. Nobody may lead meanwhile: a leader would make another.
pub async fn forget(client: &kube::Client, places: &Places) -> Result<(), StoreError> {
    let namespace = &places.namespace;
    let failed = |what, name: &str, source| StoreError::Kube {
        what,
        namespace: namespace.clone(),
        name: name.into(),
        source: Box::new(source),
    };
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    deleted(secrets.delete(&places.ca_secret, &DeleteParams::default()).await)
        .map_err(|error| failed("Secret", &places.ca_secret, error))?;
    let bundles: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    deleted(bundles.delete(&places.ca_configmap, &DeleteParams::default()).await)
        .map_err(|error| failed("ConfigMap", &places.ca_configmap, error))
}

/// What is not there is deleted.
fn deleted<T>(answer: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match answer {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        other => other.map(drop),
    }
}

async fn secret(client: &kube::Client, places: &Places) -> Result<Authority, StoreError> {
    let (namespace, name) = (&places.namespace, &places.ca_secret);
    let kube = |source| StoreError::Kube {
        what: "Secret",
        namespace: namespace.clone(),
        name: name.clone(),
        source: Box::new(source),
    };
    let unusable = |source| StoreError::Unusable { namespace: namespace.clone(), name: name.clone(), source };
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    if let Some(secret) = api.get_opt(name).await.map_err(kube)? {
        return parse(secret).map_err(unusable);
    }
    let authority = Authority::generate(SystemTime::now()).map_err(unusable)?;
    let made = api.create(&PostParams::default(), &render(&authority, namespace, name)).await;
    match made {
        Ok(_) => {
            tracing::info!(secret = %name, "made a certificate authority");
            Ok(authority)
        }
        // Another was quicker: its authority counts.
        Err(kube::Error::Api(status)) if status.is_already_exists() => {
            parse(api.get(name).await.map_err(kube)?).map_err(unusable)
        }
        Err(error) => Err(kube(error)),
    }
}

fn parse(secret: Secret) -> Result<Authority, CertError> {
    let data = secret.data.unwrap_or_default();
    let text =
        |key: &str| data.get(key).map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned()).unwrap_or_default();
    Authority::from_pem(text(CERTIFICATE), text(KEY))
}

fn render(authority: &Authority, namespace: &str, name: &str) -> Secret {
    let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
    let data = [(CERTIFICATE.to_string(), bytes(authority.certificate())), (KEY.to_string(), bytes(authority.key()))];
    let labels = [("app.kubernetes.io/name".to_string(), "skep".to_string())];
    Secret {
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: Some(namespace.into()),
            labels: Some(BTreeMap::from(labels)),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".into()),
        data: Some(BTreeMap::from(data)),
        ..Secret::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_again_and_damage_is_not_replaced() {
        let authority = Authority::generate(SystemTime::now()).unwrap();
        let again = parse(render(&authority, "skep-system", "skep-ca")).unwrap();
        assert_eq!((again.certificate(), again.key()), (authority.certificate(), authority.key()));
        assert!(matches!(parse(Secret::default()), Err(CertError::Authority(_))));
    }
}
