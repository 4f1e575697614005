//! Bringing the cluster's CustomResourceDefinitions to this version.

use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::{conditions, wait::await_condition};

use crate::FIELD_MANAGER;

const ESTABLISHED: Duration = Duration::from_secs(30);

/// Applies them and waits until the API server serves them.
pub async fn apply(client: &kube::Client) -> anyhow::Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let params = PatchParams::apply(FIELD_MANAGER).force();
    for crd in skep_crds::crds() {
        let name = crd.metadata.name.clone().unwrap_or_default();
        api.patch(&name, &params, &Patch::Apply(&crd)).await.with_context(|| format!("applying CRD {name}"))?;
        let served = await_condition(api.clone(), &name, conditions::is_crd_established());
        let served = tokio::time::timeout(ESTABLISHED, served).await;
        served.with_context(|| format!("CRD {name} is not served after {} s", ESTABLISHED.as_secs()))??;
        tracing::info!(%name, "CRD applied");
    }
    Ok(())
}
