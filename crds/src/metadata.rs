//! What an API server checks of the metadata of every object, in its words.
//!
//! Caveat: owner references, finalizers and generateName are not looked at; a name is required.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use crate::structural;
use crate::validate::Violation;

const ANNOTATION_BYTES: usize = 256 << 10;

const NO_SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const NO_LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const NO_LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const NO_KEY: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const NO_PREFIX: &str = " with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')";

/// Makes metadata that is absent empty, and labels and annotations without a value the empty text, as decoding does there.
pub fn fill(manifest: &mut Value) {
    let Some(members) = manifest.as_object_mut() else { return };
    let metadata = members.entry("metadata").or_insert(Value::Null);
    if metadata.is_null() {
        *metadata = json!({});
    }
    for texts in ["labels", "annotations"] {
        let texts = metadata.get_mut(texts).and_then(Value::as_object_mut).into_iter().flatten();
        texts.filter(|(_, text)| text.is_null()).for_each(|(_, text)| *text = json!(""));
    }
}

/// Everything that is wrong with names, labels and annotations.
pub fn check(metadata: &ObjectMeta) -> Vec<Violation> {
    let mut found = vec![];
    match metadata.name.as_deref() {
        None | Some("") => {
            found.push(Violation::new("metadata.name", "Required value: name or generateName is required"));
        }
        Some(name) => found.extend(subdomain(name).into_iter().map(|why| invalid("metadata.name", name, &why))),
    }
    if let Some(namespace) = metadata.namespace.as_deref() {
        found.extend(too_long(namespace, 63).map(|why| invalid("metadata.namespace", namespace, &why)));
        if !is_label(namespace) {
            found.push(invalid("metadata.namespace", namespace, NO_LABEL));
        }
    }
    let none = BTreeMap::new();
    for (key, value) in metadata.labels.as_ref().unwrap_or(&none) {
        found.extend(qualified_name(key).into_iter().map(|why| invalid("metadata.labels", key, &why)));
        found.extend(too_long(value, 63).map(|why| invalid("metadata.labels", value, &why)));
        if !value.is_empty() && !is_word(value) {
            found.push(invalid("metadata.labels", value, NO_LABEL_VALUE));
        }
    }
    let annotations = metadata.annotations.as_ref().unwrap_or(&none);
    for key in annotations.keys() {
        let why = qualified_name(&key.to_lowercase());
        found.extend(why.into_iter().map(|why| invalid("metadata.annotations", key, &why)));
    }
    if annotations.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() > ANNOTATION_BYTES {
        let text = format!("Too long: may not be more than {ANNOTATION_BYTES} bytes");
        found.push(Violation::new("metadata.annotations", text));
    }
    found
}

fn invalid(path: &str, given: &str, why: &str) -> Violation {
    Violation::new(path, format!("Invalid value: {given:?}: {why}"))
}

fn too_long(text: &str, most: usize) -> Option<String> {
    (text.len() > most).then(|| format!("must be no more than {most} characters"))
}

fn subdomain(name: &str) -> Vec<String> {
    let shape = (!name.split('.').all(is_label)).then(|| NO_SUBDOMAIN.to_owned());
    too_long(name, 253).into_iter().chain(shape).collect()
}

/// What is wrong with the key of a label or an annotation.
fn qualified_name(key: &str) -> Vec<String> {
    let (prefix, name) = match key.split_once('/') {
        Some((_, rest)) if rest.contains('/') => return vec![format!("a qualified name {NO_KEY}{NO_PREFIX}")],
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let prefix = match prefix {
        Some("") => vec!["must be non-empty".to_owned()],
        Some(prefix) => subdomain(prefix),
        None => vec![],
    };
    let length = if name.is_empty() { Some("must be non-empty".to_owned()) } else { too_long(name, 63) };
    let shape = (!is_word(name)).then(|| NO_KEY.to_owned());
    let prefix = prefix.into_iter().map(|why| format!("prefix part {why}"));
    prefix.chain(length.into_iter().chain(shape).map(|why| format!("name part {why}"))).collect()
}

/// An RFC 1123 label, whatever its length.
fn is_label(text: &str) -> bool {
    let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.starts_with(letter) && text.ends_with(letter) && text.chars().all(|c| letter(c) || c == '-')
}

fn is_word(text: &str) -> bool {
    let letter = |c: char| c.is_ascii_alphanumeric();
    text.starts_with(letter) && text.ends_with(letter) && text.chars().all(|c| letter(c) || "-_.".contains(c))
}

/// The fields that are none of metadata's.
pub fn unknown_fields(metadata: &Value) -> impl Iterator<Item = Violation> {
    const KNOWN: [&str; 15] = [
        "annotations",
        "creationTimestamp",
        "deletionGracePeriodSeconds",
        "deletionTimestamp",
        "finalizers",
        "generateName",
        "generation",
        "labels",
        "managedFields",
        "name",
        "namespace",
        "ownerReferences",
        "resourceVersion",
        "selfLink",
        "uid",
    ];
    let members = metadata.as_object().into_iter().flatten();
    members.filter(|(name, _)| !KNOWN.contains(&name.as_str())).map(|(name, _)| {
        let at = structural::join("metadata", name);
        Violation::new(&at, format!("unknown field {at:?}"))
    })
}
