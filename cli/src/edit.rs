//! `maps get`, `maps set`, `maps del`, `maps put`: single entries and records.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use skep_proto::v1::lookup_map_request::Key;
use skep_proto::v1::update_map_request::Mode;
use skep_proto::v1::{
    Datum, DeleteMapEntriesRequest, LookupMapRequest, MapEntry, UpdateMapRequest, WriteRecordsRequest, datum,
};
use skep_proto::value::from_json;

use crate::args::{Global, MapsDel, MapsGet, MapsPut, MapsSet, Nodes, PushFormat, hex};
use crate::dump::{Contents, render};
use crate::entries::Entry;
use crate::error::Error;
use crate::output;
use crate::schema::Schema;
use crate::source::{self, Access};
use crate::table::printable;

/// An entry of a file, as `maps dump -o json` prints it. Whose node's it was does not matter.
#[derive(Debug, Deserialize)]
struct Row {
    #[serde(default)]
    key: Option<Value>,
    value: Value,
}

/// What was done on a node; the shape of `-o json`.
#[derive(Debug, Serialize)]
struct Done {
    node: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    written: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deleted: Option<u64>,
    /// Keys that were not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    absent: Option<u64>,
}

/// JSON, or a text that is none.
fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::from(text))
}

fn datum(json: &Value) -> Datum {
    Datum { datum: Some(datum::Datum::Json(from_json(json))) }
}

/// A key as it is given: JSON, a text, or its bytes.
fn key(text: &str, raw: bool) -> Result<datum::Datum, Error> {
    if !raw {
        return Ok(datum::Datum::Json(from_json(&json(text))));
    }
    let bytes = hex(text.strip_prefix("0x").unwrap_or(text));
    let wrong = || Error::Usage(format!("{}: hexadecimal digits are expected, two a byte", printable(text)));
    bytes.map(|hex| datum::Datum::Raw(hex.0.into())).ok_or_else(wrong)
}

/// `maps get`.
pub async fn get(global: &Global, get: &MapsGet) -> Result<(), Error> {
    let key = match key(&get.key, get.raw)? {
        datum::Datum::Json(json) => Key::Json(json),
        datum::Datum::Raw(bytes) => Key::Raw(bytes),
    };
    let answers = source::ask(global, Access::Read, get.node.as_deref(), Some(&get.name), |agent, namespace| {
        let key = key.clone();
        async move {
            let request = LookupMapRequest {
                program: Some(agent.program(&namespace, &get.name).await?),
                map: get.map.clone(),
                key: Some(key),
                schema: true,
            };
            let answer = agent.lookup(request).await.map_err(|error| explained(error, [get.key.as_str()]))?;
            let schema = Schema::new(answer.schema.ok_or(Error::Schema("it has no description"))?)?;
            let entry = Entry { key: &answer.raw_key, values: &answer.raw_value };
            let entries = answer.found.then_some(entry).into_iter().collect();
            Ok(Contents::new(agent.node.clone(), schema, entries, None))
        }
    })
    .await?;
    if answers.answers.iter().all(|contents| contents.entries.is_empty()) {
        answers.complete()?;
        let (map, key) = (printable(&get.map), printable(&get.key));
        return Err(Error::Absent(format!("map {map} has no entry with the key {key}")));
    }
    if answers.answers.iter().any(|contents| contents.schema.map.r#type == "lpm_trie") {
        let (map, key) = (&get.map, &get.key);
        output::note(format_args!(
            "map {map} answers for {key} by the longest prefix: what is printed is the question and its value, and the entry may have a shorter prefix; maps dump shows it"
        ));
    }
    output::print(&render(&answers.answers, get.output, answers.several))?;
    answers.complete()
}

/// `maps set`.
pub async fn set(global: &Global, set: &MapsSet) -> Result<(), Error> {
    let rows = match (&set.file, &set.key, &set.value) {
        (Some(file), ..) => read(file)?,
        (None, Some(key), Some(value)) => vec![Row { key: Some(json(key)), value: json(value) }],
        (None, Some(value), None) => vec![Row { key: None, value: json(value) }],
        (None, None, _) => return Err(Error::Usage("give KEY and VALUE, or -f FILE".into())),
    };
    let words = || set.key.iter().chain(&set.value).map(String::as_str);
    let entry = |row: &Row| MapEntry { key: row.key.as_ref().map(datum), value: Some(datum(&row.value)) };
    let entries: Vec<MapEntry> = rows.iter().map(entry).collect();
    let mode = match (set.create, set.replace) {
        (true, _) => Mode::Create,
        (_, true) => Mode::Replace,
        _ => Mode::Unspecified,
    };
    let node = chosen(global, &set.nodes)?;
    let answers = source::ask(global, Access::Write, node, Some(&set.name), |agent, namespace| {
        let entries = entries.clone();
        async move {
            let program = Some(agent.program(&namespace, &set.name).await?);
            let request = UpdateMapRequest { program, map: set.map.clone(), entries, mode: mode.into() };
            let written = agent.update(request).await.map_err(|error| explained(error, words()));
            let written = Some(written?);
            Ok(Done { node: agent.node.clone(), written, deleted: None, absent: None })
        }
    })
    .await?;
    output::print(&said(&answers.answers, set.output))?;
    answers.complete()
}

/// `maps del`.
pub async fn del(global: &Global, del: &MapsDel) -> Result<(), Error> {
    let given = del.keys.iter().map(|text| Ok(Datum { datum: Some(key(text, del.raw)?) }));
    let keys = given.collect::<Result<Vec<Datum>, Error>>()?;
    let node = chosen(global, &del.nodes)?;
    let answers = source::ask(global, Access::Write, node, Some(&del.name), |agent, namespace| {
        let keys = keys.clone();
        async move {
            let program = Some(agent.program(&namespace, &del.name).await?);
            let request = DeleteMapEntriesRequest { program, map: del.map.clone(), keys };
            let words = del.keys.iter().map(String::as_str);
            let answer = agent.delete(request).await.map_err(|error| explained(error, words))?;
            let (deleted, absent) = (Some(answer.deleted), Some(answer.absent));
            Ok(Done { node: agent.node.clone(), written: None, deleted, absent })
        }
    })
    .await?;
    output::print(&said(&answers.answers, del.output))?;
    let deleted: u64 = answers.answers.iter().filter_map(|done| done.deleted).sum();
    answers.complete()?;
    match deleted {
        0 => Err(Error::Absent(format!("map {} has no entry with such a key", del.map))),
        _ => Ok(()),
    }
}

/// `maps put`.
pub async fn put(global: &Global, put: &MapsPut) -> Result<(), Error> {
    let given: Vec<Value> = match &put.file {
        Some(file) => from_file(file, "a list of records")?,
        None => put.records.iter().map(|text| json(text)).collect(),
    };
    let record = |value: &Value| match (&put.type_, value) {
        (Some(_), value) => Ok(datum(value)),
        (None, Value::String(text)) => {
            let bytes = hex(text.strip_prefix("0x").unwrap_or(text)).map(|hex| hex.0);
            let bytes =
                bytes.ok_or_else(|| Error::Usage(format!("record {text:?} is not hexadecimal; JSON needs --type")))?;
            Ok(Datum { datum: Some(datum::Datum::Raw(bytes.into())) })
        }
        (None, other) => Err(Error::Usage(format!("record {other} is JSON: say its struct by --type"))),
    };
    let records = given.iter().map(record).collect::<Result<Vec<_>, Error>>()?;
    let node = chosen(global, &put.nodes)?;
    let answers = source::ask(global, Access::Write, node, Some(&put.name), |agent, namespace| {
        let records = records.clone();
        async move {
            let program = Some(agent.program(&namespace, &put.name).await?);
            let (map, r#type) = (put.map.clone(), put.type_.clone().unwrap_or_default());
            let request = WriteRecordsRequest { program, map, r#type, records, share: put.share };
            let written = Some(agent.put(request).await?);
            Ok(Done { node: agent.node.clone(), written, deleted: None, absent: None })
        }
    })
    .await?;
    output::print(&said(&answers.answers, put.output))?;
    answers.complete()
}

/// What an agent that refuses a key or value does not know: how it was written on the command line.
fn explained<'a>(error: Error, words: impl IntoIterator<Item = &'a str>) -> Error {
    let Error::Agent(mut message) = error else { return error };
    let is_scalar = |word: &&str| !matches!(json(word), Value::String(_) | Value::Array(_) | Value::Object(_));
    if message.contains("is not a list of")
        && let Some(word) = words.into_iter().find(is_scalar)
    {
        message.push_str(&format!("\n{word} is JSON that is no text; if a text is meant, write '\"{word}\"'"));
    }
    if message.contains("it has no key") {
        message.push_str("\nOf a map with keys, give KEY and VALUE");
    }
    Error::Agent(message)
}

/// Whoever writes says where: one node by mistake is a different thing from all of them.
pub fn chosen<'a>(global: &Global, nodes: &'a Nodes) -> Result<Option<&'a str>, Error> {
    match (&nodes.node, nodes.all_nodes, &global.socket) {
        (Some(node), ..) => Ok(Some(node)),
        (None, true, Some(socket)) => {
            let socket = socket.display();
            Err(Error::Usage(format!(
                "--all-nodes: {socket} is the socket of one node alone; leave one of the two out"
            )))
        }
        (None, true, None) | (None, false, Some(_)) => Ok(None),
        (None, false, None) => Err(Error::Usage("say where: --node NODE, or --all-nodes".into())),
    }
}

fn read(file: &Path) -> Result<Vec<Row>, Error> {
    from_file(file, "a list of {\"key\": ..., \"value\": ...}")
}

fn from_file<T: DeserializeOwned>(file: &Path, expected: &str) -> Result<T, Error> {
    let shown = file.display();
    let text = match file.to_str() {
        Some("-") => std::io::read_to_string(std::io::stdin()),
        _ => std::fs::read_to_string(file),
    };
    let text = text.map_err(|e| Error::Usage(format!("{shown}: {e}")))?;
    serde_json::from_str(&text).map_err(|e| Error::Usage(format!("{shown}: {e}; {expected} is expected")))
}

fn said(all: &[Done], format: PushFormat) -> String {
    if format == PushFormat::Json {
        return output::json(&all);
    }
    let count = |number: u64| if number == 1 { "1 entry".to_owned() } else { format!("{number} entries") };
    let mut text = String::new();
    for Done { node, written, deleted, absent } in all {
        let mut words = Vec::new();
        words.extend(written.map(|n| format!("{} written", count(n))));
        words.extend(deleted.map(|n| format!("{} deleted", count(n))));
        words.extend(absent.filter(|n| *n > 0).map(|n| format!("{n} not there")));
        text.push_str(&format!("{node}: {}\n", words.join(", ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_json_is_a_text() {
        assert_eq!(json("17"), Value::from(17));
        assert_eq!(json("10.0.0.1"), Value::from("10.0.0.1"));
        assert_eq!(json("true"), Value::Bool(true));
        assert_eq!(json("{\"a\": 1}"), serde_json::json!({"a": 1}));
        assert_eq!(json("\"7\""), Value::from("7"));
    }

    #[test]
    fn a_text_that_looks_like_json_is_explained() {
        let refused = |why: &str| Error::Agent(format!("map m: entry 0: {why}; nothing was written"));
        let said = |why: &str, words: &[&str]| explained(refused(why), words.iter().copied()).to_string();
        let list = "key: true is not a list of 16 elements";
        assert!(
            said(list, &["true", "7"])
                .ends_with("\ntrue is JSON that is no text; if a text is meant, write '\"true\"'")
        );
        assert!(said(list, &["nginx", "[1]"]).ends_with("nothing was written"));
        assert!(said("key: 300 is outside", &["300"]).ends_with("nothing was written"));
        assert!(said("it has no key", &["300"]).ends_with("give KEY and VALUE"));
    }

    #[test]
    fn what_a_dump_prints_can_be_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("rows.json");
        std::fs::write(&file, r#"[{"node": "n1", "key": {"port": 1}, "value": [1, 2]}, {"value": 3}]"#).unwrap();
        let rows = read(&file).unwrap();
        assert_eq!(rows[0].key, Some(serde_json::json!({"port": 1})));
        assert_eq!((rows[1].key.clone(), rows[1].value.clone()), (None, Value::from(3)));
        std::fs::write(&file, "{}").unwrap();
        assert!(read(&file).unwrap_err().to_string().contains("a list of {\"key\""));
    }

    #[test]
    fn what_was_done_is_said_of_each_node() {
        let done = |node: &str, written, deleted, absent| Done { node: node.into(), written, deleted, absent };
        let all =
            [done("a", Some(1), None, None), done("b", None, Some(2), Some(1)), done("c", None, Some(0), Some(0))];
        assert_eq!(
            said(&all, PushFormat::Text),
            "a: 1 entry written\nb: 2 entries deleted, 1 not there\nc: 0 entries deleted\n"
        );
        assert!(said(&all[..1], PushFormat::Json).contains("\"written\": 1"));
    }
}
