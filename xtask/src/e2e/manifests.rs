//! Bad manifests get the same verdict everywhere: from a real API server by `kubectl create --validate=strict` and `=warn`
//! and by server-side apply, and from `skep_crds::validate`, which a standalone agent uses. Whole messages are compared;
//! where a mode differs by nature, the row of the table says how.
//!
//! Guarantees: every request is a dry run, nothing is stored.
//!
//! Assumptions: the CRDs are installed, and the namespace `default` has no program called `flows`.

use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use kube::Client;
use kube::api::{Patch, PatchParams, PostParams, Request, ValidationDirective};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use skep_crds::validate;

use super::Cluster;
use table::{Row, table};

#[path = "../../../crds/tests/table/mod.rs"]
mod table;

/// The server's own note beside structural mistakes; it is about no field.
const RULES_SKIPPED: &str = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
const STRICT: &str = "EbpfProgram in version \"v1alpha1\" cannot be handled as a EbpfProgram: strict decoding error: ";

#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    Strict,
    Warn,
    Apply,
}

/// What an API server answers, or should.
#[derive(Debug, PartialEq)]
struct Answer {
    verdict: Verdict,
    warnings: Vec<String>,
}

#[derive(Debug, PartialEq)]
enum Verdict {
    /// With the spec that is stored.
    Accepted(Value),
    Refused(Vec<String>),
}

pub fn same_verdict(c: &Cluster) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let wrong = runtime.block_on(disagreements(&c.place.kubeconfig))?;
    ensure!(wrong.is_empty(), "{} verdicts differ:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

async fn disagreements(kubeconfig: &Path) -> Result<Vec<String>> {
    let config = Kubeconfig::read_from(kubeconfig)?;
    let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
    let client = Client::try_from(config)?;
    let table = table();
    let mut wrong = vec![];
    for row in &table.rows {
        let (refused, accepted) = (row.refused(&table.base), row.accepted(&table.base));
        wrong.extend(offline(row, &refused, &accepted));
        for mode in [Mode::Strict, Mode::Warn, Mode::Apply] {
            for (manifest, wanted) in
                [(&refused, to_refused(row, mode, &refused)), (&accepted, to_accepted(row, mode, &accepted))]
            {
                let got = ask(&client, mode, manifest).await?.sorted();
                let wanted = wanted.with_context(|| format!("{:?} {mode:?}", row.constraints))?.sorted();
                if got != wanted {
                    wrong.push(format!("{:?} {mode:?}\n  got:    {got:?}\n  wanted: {wanted:?}", row.constraints));
                }
            }
        }
    }
    Ok(wrong)
}

impl Answer {
    fn refused(messages: &[String]) -> Self {
        Self { verdict: Verdict::Refused(messages.to_vec()), warnings: vec![] }
    }

    /// What is stored is what the validator reads.
    fn accepted(manifest: &Value) -> Result<Self> {
        let program = validate::manifest(manifest).map_err(|found| anyhow!("the validator refuses it: {found:?}"))?;
        Ok(Self { verdict: Verdict::Accepted(json!(program)["spec"].take()), warnings: vec![] })
    }

    /// The API server finds mistakes in no order.
    fn sorted(mut self) -> Self {
        self.warnings.sort();
        if let Verdict::Refused(messages) = &mut self.verdict {
            messages.sort();
        }
        self
    }
}

/// The answer to the row's mistake.
fn to_refused(row: &Row, mode: Mode, manifest: &Value) -> Result<Answer> {
    let differs = &row.differs;
    let answer = match mode {
        Mode::Warn if row.prunes => {
            let answer = match &differs.warn {
                Some(messages) => Answer::refused(messages),
                None => Answer::accepted(&pruned(manifest, &row.says)?)?,
            };
            Answer { warnings: row.says.clone(), ..answer }
        }
        Mode::Strict | Mode::Warn => Answer::refused(differs.create.as_ref().unwrap_or(&row.says)),
        Mode::Apply => Answer::refused(differs.apply.as_ref().unwrap_or(&row.says)),
    };
    Ok(answer)
}

/// The answer to the manifest without the mistake.
fn to_accepted(row: &Row, mode: Mode, manifest: &Value) -> Result<Answer> {
    match &row.differs.apply_of_accepted {
        Some(messages) if mode == Mode::Apply => Ok(Answer::refused(messages)),
        _ => Answer::accepted(manifest),
    }
}

/// The manifest without the fields that `unknown` names. None of its objects may be left empty and accepted: an empty
/// selector would select more than was asked for.
fn pruned(manifest: &Value, unknown: &[String]) -> Result<Value> {
    let mut manifest = manifest.clone();
    for message in unknown {
        let path = message.trim_start_matches("unknown field ").trim_matches('"');
        let pointer = format!("/{}", path.replace("].", "/").replace(['.', '['], "/"));
        let (parent, name) = pointer.rsplit_once('/').unwrap_or_default();
        let members = manifest.pointer_mut(parent).and_then(Value::as_object_mut);
        let members = members.with_context(|| format!("{path} is not in the manifest"))?;
        members.remove(name).with_context(|| format!("{path} is not in the manifest"))?;
        ensure!(!members.is_empty(), "{path} is dropped and leaves an empty object, which is accepted");
    }
    Ok(manifest)
}

/// What the validator says otherwise than the row.
fn offline(row: &Row, refused: &Value, accepted: &Value) -> Vec<String> {
    let said = |manifest| -> Vec<String> {
        let found = validate::manifest(manifest).err().unwrap_or_default();
        found.iter().map(ToString::to_string).collect()
    };
    let mut wrong = vec![];
    if said(refused) != row.says {
        wrong.push(format!("{:?} offline: refuses {}, not {}", row.constraints, json!(said(refused)), json!(row.says)));
    }
    if !said(accepted).is_empty() {
        wrong.push(format!("{:?} offline: refuses {}", row.constraints, json!(said(accepted))));
    }
    wrong
}

/// The API server's answer to a manifest.
async fn ask(client: &Client, mode: Mode, manifest: &Value) -> Result<Answer> {
    let version = manifest["apiVersion"].as_str().unwrap_or_default();
    let metadata = &manifest["metadata"];
    let namespace = metadata["namespace"].as_str().unwrap_or("default");
    let name = metadata["name"].as_str().unwrap_or("unnamed");
    let request = Request::new(format!("/apis/{version}/namespaces/{namespace}/ebpfprograms"));
    let request = if mode == Mode::Apply {
        let mut params = PatchParams::apply("skep-e2e");
        params.dry_run = true;
        params.field_validation = Some(ValidationDirective::Strict);
        request.patch(name, &params, &Patch::Apply(manifest))?
    } else {
        let params = PostParams { dry_run: true, field_manager: None };
        let mut request = request.create(&params, serde_json::to_vec(manifest)?)?;
        *request.uri_mut() = format!("{}&fieldValidation={mode:?}", request.uri()).parse()?;
        request
    };
    let response = client.send(request.map(Body::from)).await.context("no answer from the API server")?;
    let warnings = response.headers().get_all("warning").iter();
    let warnings = warnings.map(|header| warning(header.to_str().unwrap_or_default())).collect();
    let accepted = response.status().is_success();
    let body = response.into_body().collect_bytes().await?;
    let verdict = if accepted {
        Verdict::Accepted(serde_json::from_slice::<Value>(&body)?["spec"].take())
    } else {
        Verdict::Refused(said(&body))
    };
    Ok(Answer { verdict, warnings })
}

/// The text of `299 - "text"`.
fn warning(header: &str) -> String {
    let text = header.strip_prefix("299 - ").unwrap_or(header);
    serde_json::from_str(text).unwrap_or_else(|_| text.to_owned())
}

/// The messages of a refusal: one for each cause, else the only one. What the server puts around them goes.
fn said(body: &[u8]) -> Vec<String> {
    let Ok(status) = serde_json::from_slice::<Value>(body) else {
        return vec![String::from_utf8_lossy(body).trim().to_owned()];
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if let Some(causes) = status["details"]["causes"].as_array() {
        let messages = causes.iter().map(|cause| (text(&cause["field"]), text(&cause["message"])));
        let about_fields = messages.filter(|(field, message)| !(field == "<nil>" && message.ends_with(RULES_SKIPPED)));
        return about_fields
            .map(|(field, message)| if field == "<nil>" { message } else { format!("{field}: {message}") })
            .collect();
    }
    let message = text(&status["message"]);
    if let Some(unknown) = message.strip_prefix(STRICT) {
        return unknown.split(", ").map(str::to_owned).collect();
    }
    let patch = message.strip_prefix("failed to create typed patch object (").and_then(|rest| rest.split_once("): "));
    let why = patch.map_or(message.as_str(), |(_, why)| why);
    why.trim_start_matches("errors:\n").lines().map(|line| line.trim().to_owned()).collect()
}
