//! `restart`, `suspend` and `resume`: the few changes of an EbpfProgram that are worth a command.
//!
//! Guarantees: one patch of one field; what was so already is not written again; another owner of the field, who may set
//! it back, is named.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::ResourceExt;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::ApiResource;
use serde_json::{Value, json};
use skep_crds::{EbpfProgram, RESTARTED_AT};

use crate::args::{Change, Global};
use crate::cluster::Cluster;
use crate::deadline::within;
use crate::error::Error;
use crate::output::{self, note};

const FIELD_MANAGER: &str = "kubectl-skep";

/// What is to be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Restart,
    Suspend,
    Resume,
}

impl What {
    fn done(self) -> &'static str {
        match self {
            What::Restart => "restarted",
            What::Suspend => "suspended",
            What::Resume => "resumed",
        }
    }

    fn patch(self, now: Timestamp) -> Value {
        match self {
            What::Restart => json!({"metadata": {"annotations": {RESTARTED_AT: now.to_string()}}}),
            What::Suspend => json!({"spec": {"suspend": true}}),
            // Absent is the same, and leaves the field to nobody.
            What::Resume => json!({"spec": {"suspend": null}}),
        }
    }

    fn is_so(self, object: &DynamicObject) -> bool {
        let suspended = object.data.pointer("/spec/suspend") == Some(&Value::Bool(true));
        match self {
            What::Restart => false,
            What::Suspend => suspended,
            What::Resume => !suspended,
        }
    }

    /// The way to the field in `managedFields`.
    fn field(self) -> String {
        match self {
            What::Restart => format!("/f:metadata/f:annotations/f:{}", RESTARTED_AT.replace('/', "~1")),
            What::Suspend | What::Resume => "/f:spec/f:suspend".into(),
        }
    }
}

/// Runs the command.
pub async fn run(global: &Global, change: &Change, what: What) -> Result<(), Error> {
    if global.socket.is_some() {
        return Err(Error::NoChangeBySocket);
    }
    let cluster = Cluster::connect(global).await?;
    // Untyped: an object that this version cannot decode can be suspended as well.
    let resource = ApiResource::erase::<EbpfProgram>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), &cluster.namespace, &resource);
    let name = &change.name;
    let missing = |error: kube::Error| match error {
        kube::Error::Api(status)
            if status.code == 404 && status.details.as_ref().is_some_and(|d| !d.name.is_empty()) =>
        {
            Error::NoProgram(format!("{}/{name}", cluster.namespace))
        }
        other => Error::kubernetes("changing the EbpfProgram", &cluster.server)(other),
    };
    let before = within(cluster.timeout, "reading the EbpfProgram", async { api.get(name).await.map_err(missing) });
    let before = before.await?;
    if what.is_so(&before) {
        return output::print(&format!("ebpfprogram/{name} is {} already\n", what.done()));
    }
    for owner in owners(before.managed_fields(), &what.field()) {
        note(format!("{owner} manages this field too, and may set it back; change it there as well"));
    }
    let patch = what.patch(Timestamp::now());
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
    let write = async { api.patch(name, &params, &Patch::Merge(&patch)).await.map_err(missing) };
    let after = within(cluster.timeout, "changing the EbpfProgram", write).await?;
    // An API server with an older definition drops what it does not know.
    if what != What::Restart && !what.is_so(&after) {
        return Err(Error::FieldDropped("spec.suspend"));
    }
    output::print(&format!("ebpfprogram/{name} {}\n", what.done()))
}

/// Who else has a say in a field, by name and way of writing.
fn owners(managed: &[ManagedFieldsEntry], field: &str) -> Vec<String> {
    let has = |entry: &&ManagedFieldsEntry| entry.fields_v1.as_ref().is_some_and(|f| f.0.pointer(field).is_some());
    let others = managed.iter().filter(|entry| entry.manager.as_deref() != Some(FIELD_MANAGER)).filter(has);
    let name = |entry: &ManagedFieldsEntry| {
        format!("{} ({})", entry.manager.as_deref().unwrap_or("somebody"), entry.operation.as_deref().unwrap_or("?"))
    };
    others.map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_that_own_the_field_are_named() {
        let entry = |manager: &str, fields: Value| -> ManagedFieldsEntry {
            serde_json::from_value(json!({"manager": manager, "operation": "Apply", "fieldsV1": fields})).unwrap()
        };
        let managed = [
            entry("argocd-controller", json!({"f:spec": {"f:suspend": {}, "f:image": {}}})),
            entry(FIELD_MANAGER, json!({"f:spec": {"f:suspend": {}}})),
            entry(
                "helm",
                json!({"f:spec": {"f:image": {}}, "f:metadata": {"f:annotations": {"f:skep.dev/restartedAt": {}}}}),
            ),
        ];
        assert_eq!(owners(&managed, &What::Suspend.field()), ["argocd-controller (Apply)"]);
        assert_eq!(owners(&managed, &What::Restart.field()), ["helm (Apply)"]);
    }
}
