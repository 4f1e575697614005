//! The table `bad_manifests.yaml`, read and expanded. The cluster level includes this file too, to ask a real API server.
#![allow(clippy::unwrap_used, reason = "a table that does not read is a broken test")]

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Deserialize)]
pub struct Table {
    pub base: Value,
    pub rows: Vec<Row>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    #[serde(rename = "for")]
    pub constraints: Vec<String>,
    refused: BTreeMap<String, Value>,
    pub says: Vec<String>,
    #[serde(default)]
    pub prunes: bool,
    #[serde(default)]
    pub differs: Differs,
    accepted: BTreeMap<String, Value>,
}

/// What an API server says by nature in other words than `says`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Differs {
    pub create: Option<Vec<String>>,
    pub warn: Option<Vec<String>>,
    pub apply: Option<Vec<String>>,
    pub apply_of_accepted: Option<Vec<String>>,
}

pub fn table() -> Table {
    serde_yaml_ng::from_str(include_str!("../bad_manifests.yaml")).unwrap()
}

impl Row {
    /// The manifest with the mistake.
    pub fn refused(&self, base: &Value) -> Value {
        patched(base, &self.refused)
    }

    /// The manifest without the mistake.
    pub fn accepted(&self, base: &Value) -> Value {
        patched(base, &self.accepted)
    }
}

/// `base` with `value` put at each path such as `spec.programs[0].attach[0]`; null removes.
fn patched(base: &Value, patch: &BTreeMap<String, Value>) -> Value {
    let mut manifest = base.clone();
    for (path, value) in patch {
        let parts: Vec<&str> = path.split(['.', '[']).map(|part| part.trim_end_matches(']')).collect();
        let (last, parents) = parts.split_last().unwrap();
        let mut place = &mut manifest;
        for part in parents {
            place = child(place, part);
        }
        match (expanded(value), place) {
            (Value::Null, Value::Object(members)) => drop(members.remove(*last)),
            (value, place) => *child(place, last) = value,
        }
    }
    manifest
}

fn child<'v>(place: &'v mut Value, part: &str) -> &'v mut Value {
    match part.parse::<usize>() {
        Ok(index) => {
            let items = place.as_array_mut().unwrap();
            if index == items.len() {
                items.push(Value::Null);
            }
            &mut items[index]
        }
        Err(_) => &mut place[part],
    }
}

/// `{$times: 3, $text: ab}` is `ababab`; with `$list` a list, with `$map` a map; `#` in an item counts.
fn expanded(value: &Value) -> Value {
    let counted = |value: &Value, n: u64| -> Value {
        serde_json::from_str(&expanded(value).to_string().replace('#', &n.to_string())).unwrap()
    };
    match value {
        Value::Object(members) if members.contains_key("$times") => {
            let times = members["$times"].as_u64().unwrap();
            if let Some(text) = members.get("$text") {
                return text.as_str().unwrap().repeat(times as usize).into();
            }
            if let Some(item) = members.get("$list") {
                return (0..times).map(|n| counted(item, n)).collect();
            }
            let item = &members["$map"];
            (0..times).map(|n| (format!("k{n}"), counted(item, n))).collect()
        }
        Value::Object(members) => members.iter().map(|(name, member)| (name.clone(), expanded(member))).collect(),
        Value::Array(items) => items.iter().map(expanded).collect(),
        scalar => scalar.clone(),
    }
}
