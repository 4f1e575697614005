//! The one place that writes EbpfPrograms, EbpfNodes and Events.
//!
//! Guarantees: every write has a deadline; a status goes by server-side apply to the object with that uid only, never to
//! one of the same name made later.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, Patch, PatchParams};
use kube::core::DynamicObject;
use kube::discovery::ApiResource;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use serde_json::{Value, json};
use skep_crds::{API_VERSION, EbpfNode, EbpfNodeStatus, EbpfProgram};

use crate::FIELD_MANAGER;
use crate::index::{Chore, Note};

const DEADLINE: Duration = Duration::from_secs(10);
/// An Event's note is at most 1 kB.
const MAX_NOTE: usize = 1000;

/// Why nothing was written.
#[derive(thiserror::Error, Debug)]
pub enum WriteError {
    #[error(transparent)]
    Kube(#[from] kube::Error),
    #[error("the API server did not answer within {} s", DEADLINE.as_secs())]
    Timeout,
}

impl WriteError {
    /// Whether the object is gone or another by now: the watch tells more.
    pub fn is_stale(&self) -> bool {
        matches!(self, Self::Kube(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict())
    }
}

/// The recorder makes one Event of those that agree in type, reason and action, with the first one's note: another note
/// is another action.
fn action(note: &str) -> String {
    let mut hasher = DefaultHasher::new();
    note.hash(&mut hasher);
    format!("Reconcile-{:08x}", hasher.finish() as u32)
}

/// Writes.
#[derive(Clone)]
pub struct Writer {
    client: kube::Client,
    recorder: Recorder,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").finish_non_exhaustive()
    }
}

impl Writer {
    /// Events name `instance` as the one who writes them.
    pub fn new(client: kube::Client, instance: &str) -> Self {
        let reporter = Reporter { controller: FIELD_MANAGER.into(), instance: Some(instance.into()) };
        Self { recorder: Recorder::new(client.clone(), reporter), client }
    }

    /// Does a chore.
    pub async fn write(&self, chore: &Chore) -> Result<(), WriteError> {
        tokio::time::timeout(DEADLINE, self.carry_out(chore)).await.unwrap_or(Err(WriteError::Timeout))
    }

    async fn carry_out(&self, chore: &Chore) -> Result<(), WriteError> {
        match chore {
            Chore::Finalizers { meta, finalizers } => self.finalizers(meta, finalizers).await,
            Chore::Status { meta, status, note } => {
                let body = json!({
                    "apiVersion": API_VERSION, "kind": "EbpfProgram",
                    "metadata": {"name": meta.name, "namespace": meta.namespace, "uid": meta.uid},
                    "status": status,
                });
                self.programs(meta).patch_status(name(meta), &apply(), &Patch::Apply(body)).await?;
                self.note(meta, note.as_ref()).await;
                Ok(())
            }
            Chore::Unreadable { meta, condition, note } => {
                let body = json!({
                    "metadata": {"uid": meta.uid},
                    "status": {"conditions": [condition], "summary": {"ready": "", "reason": condition.reason}},
                });
                let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
                self.programs(meta).patch_status(name(meta), &params, &Patch::Merge(body)).await?;
                self.note(meta, Some(note)).await;
                Ok(())
            }
            Chore::Note { meta, note } => {
                self.note(meta, Some(note)).await;
                Ok(())
            }
            Chore::Node { name, uid, status } => self.node(name, uid, status).await,
        }
    }

    /// All finalizers, if nobody has changed the object meanwhile.
    pub async fn finalizers(&self, meta: &ObjectMeta, finalizers: &[String]) -> Result<(), WriteError> {
        let body = json!({
            "metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version, "finalizers": finalizers},
        });
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        self.programs(meta).patch(name(meta), &params, &Patch::Merge(body)).await?;
        Ok(())
    }

    async fn node(&self, name: &str, uid: &str, status: &EbpfNodeStatus) -> Result<(), WriteError> {
        let api: Api<EbpfNode> = Api::all(self.client.clone());
        let part = |members: Value| {
            let mut body = json!({"apiVersion": API_VERSION, "kind": "EbpfNode", "metadata": {"name": name}});
            if let (Value::Object(body), Value::Object(members)) = (&mut body, members) {
                body.extend(members);
            }
            Patch::Apply(body)
        };
        let status = part(json!({"status": status}));
        match api.patch_status(name, &apply(), &status).await {
            Err(kube::Error::Api(answer)) if answer.is_not_found() => {}
            written => return Ok(written.map(drop)?),
        }
        let owner = json!([{"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid}]);
        let object = part(json!({"metadata": {"name": name, "ownerReferences": owner}, "spec": {}}));
        api.patch(name, &apply(), &object).await?;
        api.patch_status(name, &apply(), &status).await?;
        Ok(())
    }

    /// An Event that cannot be written is not worth more than a line in the log.
    async fn note(&self, meta: &ObjectMeta, note: Option<&Note>) {
        let Some(note) = note else { return };
        let reference = ObjectReference {
            api_version: Some(API_VERSION.into()),
            kind: Some("EbpfProgram".into()),
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            uid: meta.uid.clone(),
            ..ObjectReference::default()
        };
        let event = Event {
            type_: if note.warning { EventType::Warning } else { EventType::Normal },
            reason: note.reason.to_string(),
            note: Some(shortened(&note.message)),
            action: action(&note.message),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, &reference).await {
            tracing::warn!(%error, reason = %note.reason, "an Event could not be written");
        }
    }

    /// Untyped: an object that does not decode is patched too.
    fn programs(&self, meta: &ObjectMeta) -> Api<DynamicObject> {
        let resource = ApiResource::erase::<EbpfProgram>(&());
        Api::namespaced_with(self.client.clone(), meta.namespace.as_deref().unwrap_or_default(), &resource)
    }
}

fn apply() -> PatchParams {
    PatchParams::apply(FIELD_MANAGER).force()
}

fn name(meta: &ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or_default()
}

fn shortened(text: &str) -> String {
    if text.len() <= MAX_NOTE {
        return text.into();
    }
    let end = (0..=MAX_NOTE).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}...", &text[..end])
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::Router;
    use axum::body::{Body, to_bytes};
    use axum::http::{Method, Request, header};
    use skep_crds::Reason;

    use super::*;

    /// (method, note, how often it was said) of each write.
    type Written = Arc<Mutex<Vec<(Method, String, Option<u64>)>>>;

    /// An API server that takes every Event.
    fn api(written: Written) -> kube::Client {
        let events = move |request: Request<Body>| async move {
            let (head, body) = request.into_parts();
            let body = to_bytes(body, usize::MAX).await.unwrap();
            let event: Value = serde_json::from_slice(&body).unwrap();
            let note = event["note"].as_str().unwrap().to_owned();
            written.lock().unwrap().push((head.method, note, event["series"]["count"].as_u64()));
            ([(header::CONTENT_TYPE, "application/json")], body)
        };
        kube::Client::new(Router::new().fallback(events), "default")
    }

    #[tokio::test]
    async fn an_event_of_the_same_text_is_counted_and_one_of_another_is_its_own() {
        let written = Written::default();
        let writer = Writer::new(api(written.clone()), "skep-operator-1");
        let meta = Box::new(crate::testing::program("flows").metadata);
        for message in ["node a: refused", "node b: refused", "node a: refused", "node a: refused"] {
            let note = Note { warning: true, reason: Reason::HookBusy, message: message.into() };
            writer.write(&Chore::Note { meta: meta.clone(), note }).await.unwrap();
        }
        let of = |method, node: &str, count| (method, format!("node {node}: refused"), count);
        let wanted = [
            of(Method::POST, "a", None),
            of(Method::POST, "b", None),
            of(Method::PATCH, "a", Some(2)),
            of(Method::PATCH, "a", Some(3)),
        ];
        assert_eq!(*written.lock().unwrap(), wanted);
    }
}
