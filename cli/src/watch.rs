//! `maps watch` and `maps top`: what changes in a map, and what grows fastest in it.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use skep_object::btf::filter::Member;
use skep_object::btf::rate::rates;
use skep_proto::v1::{Changes, WatchMapRequest};

use crate::args::{Global, MapsTop, MapsWatch, TopFormat, WatchFormat};
use crate::columns::{Side, columns};
use crate::error::Error;
use crate::follow::{Change, follow, millis, seconds, unpacked};
use crate::live::{self, Live};
use crate::output::{self, note};
use crate::schema::Schema;
use crate::source::{self, Access};
use crate::table::Table;

/// A change; the shape of `-o json`.
#[derive(Debug, Serialize)]
struct Row<'a> {
    node: &'a str,
    change: &'static str,
    key: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Value>,
    /// Per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    rates: Option<Value>,
}

/// `maps watch`.
pub async fn changes(global: &Global, watch: &MapsWatch) -> Result<(), Error> {
    let node = watch.node.as_deref();
    // One node is asked for no prefix.
    let several = global.socket.is_none() && node.is_none();
    let answers = source::ask(global, Access::Follow, node, Some(&watch.name), |agent, namespace| async move {
        let request = WatchMapRequest {
            program: Some(agent.program(&namespace, &watch.name).await?),
            map: watch.map.clone(),
            interval_ms: millis(watch.interval.unwrap_or_default()),
            filter: watch.filter.clone().unwrap_or_default(),
            limit: watch.limit.unwrap_or(0),
            snapshot: watch.snapshot,
            looks: watch.looks.unwrap_or(0),
            ..WatchMapRequest::default()
        };
        follow(&agent, request, note, |schema, frame| {
            if frame.look == 0 && !frame.more && !watch.snapshot {
                note(format_args!("{}: {} entries; changes follow", agent.node, frame.total));
            }
            output::print(&lines(&agent.node, schema, frame, watch.output, several)?)
        })
        .await
    })
    .await?;
    answers.complete()
}

/// `maps top`.
pub async fn top(global: &Global, top: &MapsTop) -> Result<(), Error> {
    let node = top.node.as_deref();
    let several = global.socket.is_none() && node.is_none();
    let live = Live::new(several, |seen: &BTreeMap<String, Look>| draw(seen, top, several));
    let asked = source::ask(global, Access::Follow, node, Some(&top.name), |agent, namespace| {
        let live = &live;
        async move {
            let request = WatchMapRequest {
                program: Some(agent.program(&namespace, &top.name).await?),
                map: top.map.clone(),
                interval_ms: millis(top.interval),
                filter: top.filter.clone().unwrap_or_default(),
                top: top.member.clone(),
                limit: top.limit,
                looks: top.looks.unwrap_or(0),
                ..WatchMapRequest::default()
            };
            let mut growing = Vec::new();
            let ended = follow(&agent, request, note, |schema, frame| {
                growing.extend(grown(&agent.node, schema, frame, &top.member)?);
                if frame.more || frame.look == 0 {
                    return Ok(());
                }
                live.tell(&agent.node, Look { rows: std::mem::take(&mut growing), total: frame.total })
            });
            live.ended(&agent.node, ended.await)
        }
    });
    live.run(top.interval, asked).await
}

fn lines(node: &str, schema: &Schema, frame: &Changes, format: WatchFormat, several: bool) -> Result<String, Error> {
    let mut text = String::new();
    let mut line = |row: Row<'_>| {
        if format == WatchFormat::Json {
            text.push_str(&serde_json::to_string(&row).unwrap_or_default());
        } else {
            let sign = match row.change {
                "added" => '+',
                "changed" => '~',
                _ => '-',
            };
            let shown = |value: &Value| match value {
                Value::String(text) => crate::table::printable(text),
                other => other.to_string(),
            };
            let parts = [several.then(|| node.to_owned()), Some(sign.to_string()), Some(shown(&row.key))];
            let rest = [row.value.as_ref().map(shown), row.rates.as_ref().map(per_second)];
            text.push_str(&parts.into_iter().chain(rest).flatten().collect::<Vec<_>>().join(" "));
        }
        text.push('\n');
    };
    for Change { entry, before, added } in unpacked(schema, frame)? {
        let (key, now) = (entry.key(schema), entry.one(schema));
        // Of what the first look found nobody knows since when it grew.
        let grown = (frame.look > 0).then(|| rates(&schema.value, &before.one(schema), &now, seconds(frame)));
        let (change, rates) = (if added { "added" } else { "changed" }, grown.filter(|rates| !rates.is_null()));
        line(Row { node, change, key, value: Some(now), rates });
    }
    for key in frame.gone.chunks(schema.key.size.max(1) as usize) {
        line(Row { node, change: "removed", key: schema.key.decode(key), value: None, rates: None });
    }
    Ok(text)
}

/// Rates as one text: `+3.0/s`, `packets +3.0/s bytes +180.0/s`.
fn per_second(rates: &Value) -> String {
    fn collect(path: &str, rates: &Value, into: &mut Vec<String>) {
        let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        match rates {
            Value::Object(members) => members.iter().for_each(|(name, rates)| collect(&below(name), rates, into)),
            Value::Array(items) => {
                items.iter().enumerate().for_each(|(i, rates)| collect(&format!("{path}[{i}]"), rates, into));
            }
            rate => {
                let rate = rate.as_f64().unwrap_or(0.0);
                if rate != 0.0 {
                    into.push(format!("{path} {rate:+.1}/s").trim_start().to_owned());
                }
            }
        }
    }
    let mut texts = Vec::new();
    collect("", rates, &mut texts);
    texts.join(" ")
}

/// A node's last look.
#[derive(Debug)]
struct Look {
    rows: Vec<Growing>,
    total: u64,
}

/// An entry that grows.
#[derive(Clone, Debug, Serialize)]
struct Growing {
    node: String,
    key: Value,
    value: Value,
    /// Of the member, per second.
    rate: f64,
    /// Titles and cells.
    #[serde(skip)]
    titles: Vec<String>,
    #[serde(skip)]
    cells: Vec<String>,
}

fn grown(node: &str, schema: &Schema, frame: &Changes, member: &str) -> Result<Vec<Growing>, Error> {
    let member = Member::parse(member, &[("key", &schema.key), ("value", &schema.value)])
        .map_err(|e| Error::Usage(e.to_string()))?;
    let columns = columns(&schema.key, &schema.value);
    let of = |Change { entry, before, .. }: Change<'_>| {
        let each = before.each(schema).zip(entry.each(schema));
        let grown: f64 = each.filter_map(|(was, is)| member.growth(&[entry.key, was], &[entry.key, is])).sum();
        let (key, value) = (entry.key(schema), entry.one(schema));
        let cells = columns.iter().map(|column| match column.side {
            Side::Key => column.cell(&key),
            Side::Value => column.cell(&value),
        });
        let (titles, cells) = (columns.iter().map(|column| column.title.clone()).collect(), cells.collect());
        Growing { node: node.to_owned(), rate: grown / seconds(frame), titles, cells, key, value }
    };
    Ok(unpacked(schema, frame)?.into_iter().map(of).collect())
}

fn draw(seen: &BTreeMap<String, Look>, top: &MapsTop, several: bool) -> Result<(), Error> {
    let mut rows: Vec<&Growing> = seen.values().flat_map(|look| &look.rows).collect();
    rows.sort_by(|a, b| b.rate.total_cmp(&a.rate));
    rows.truncate(usize::try_from(top.limit).unwrap_or(usize::MAX));
    if top.output == TopFormat::Json {
        return output::print(&(serde_json::to_string(&rows).unwrap_or_default() + "\n"));
    }
    let total: u64 = seen.values().map(|look| look.total).sum();
    let head = format!("{} of {}: {} of {total} entries by {}\n", top.map, top.name, rows.len(), top.member);
    live::print(&format!("{head}{}", table(&rows, &top.member, several)))
}

/// One table for all rows that have the same columns; during a rollout they may not, then one for each kind.
fn table(rows: &[&Growing], member: &str, nodes: bool) -> String {
    let mut rest = rows.to_vec();
    let mut tables = Vec::new();
    while let Some(first) = rest.first().copied() {
        let (alike, others): (Vec<_>, Vec<_>) = rest.into_iter().partition(|row| row.titles == first.titles);
        let rate = format!("{}/S", member.strip_prefix("value.").unwrap_or(member).to_uppercase());
        let node = nodes.then_some("NODE");
        let titles = first.titles.iter().map(String::as_str);
        let mut table = Table::new(node.into_iter().chain(titles).chain([rate.as_str()]), 0);
        for row in alike {
            let rate = format!("{:.1}", row.rate);
            let node = nodes.then_some(row.node.as_str());
            table.row(node.into_iter().chain(row.cells.iter().map(String::as_str)).chain([rate.as_str()]));
        }
        tables.push(table.render());
        rest = others;
    }
    tables.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use skep_object::btf::desc::{TypeDesc, TypeKind};
    use skep_proto::v1::{MapInfo, RawEntries};

    fn schema() -> Schema {
        let uint = |size| TypeDesc { kind: TypeKind::Uint, name: "".into(), size };
        let map = MapInfo { key_size: 1, value_size: 8, ..MapInfo::default() };
        Schema { map, key: uint(1), value: uint(8), values_per_entry: 1, stride: 8, head_only: false }
    }

    /// Key 7 grew from 3 to 5 in half a second, key 8 is new, key 9 is gone.
    fn frame() -> Changes {
        let values = |values: [u64; 2]| values.iter().flat_map(|v| v.to_ne_bytes()).collect::<Vec<u8>>();
        let entries = RawEntries { count: 2, keys: vec![7, 8].into(), values: values([5, 1]).into() };
        Changes {
            look: 1,
            elapsed_us: 500_000,
            entries: Some(entries),
            before: values([3, 0]).into(),
            added: vec![1],
            gone: vec![9].into(),
            ..Changes::default()
        }
    }

    #[test]
    fn changes_are_lines() {
        let shown = |format, several| lines("n1", &schema(), &frame(), format, several).unwrap();
        assert_eq!(shown(WatchFormat::Text, false), "~ 7 5 +4.0/s\n+ 8 1 +2.0/s\n- 9\n");
        assert!(shown(WatchFormat::Text, true).starts_with("n1 ~ 7 5 +4.0/s\n"));
        let first = "{\"node\":\"n1\",\"change\":\"changed\",\"key\":7,\"value\":5,\"rates\":4.0}\n";
        assert!(shown(WatchFormat::Json, false).starts_with(first), "{}", shown(WatchFormat::Json, false));
        let short = Changes { before: vec![1].into(), ..frame() };
        assert!(lines("n1", &schema(), &short, WatchFormat::Text, false).is_err());
        let rates = json!({"packets": 3.0, "in": {"bytes": -180.0}, "same": 0.0, "slots": [0.0, 1.5]});
        assert_eq!(per_second(&rates), "in.bytes -180.0/s packets +3.0/s slots[1] +1.5/s");
    }

    #[test]
    fn what_grows_fastest_is_a_table() {
        let rows = grown("n1", &schema(), &frame(), "value").unwrap();
        let shown = table(&rows.iter().collect::<Vec<_>>(), "value", true);
        assert_eq!(shown, "NODE   KEY   VALUE   VALUE/S\nn1     7     5       4.0\nn1     8     1       2.0\n");
        assert!(grown("n1", &schema(), &frame(), "value.nothing").is_err());
    }
}
