//! `maps ls`: the maps of programs.

use serde::Serialize;
use skep_proto::v1::MapInfo;

use crate::args::{Global, MapsFormat, MapsLs};
use crate::error::Error;
use crate::output::{self, note};
use crate::source::{self, Access, Of};
use crate::table::Table;

/// A map on a node; also the shape of `-o json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MapRow {
    pub node: String,
    pub namespace: String,
    pub program: String,
    pub name: String,
    /// The kernel's id, as in `bpftool map show id`.
    pub id: u32,
    /// The kernel's name of the type: `percpu_hash`.
    #[serde(rename = "type")]
    pub type_: String,
    /// Bytes.
    pub key_size: u32,
    /// Bytes.
    pub value_size: u32,
    pub max_entries: u32,
    pub flags: u32,
    /// Bytes charged.
    pub memlock: u64,
    /// User space cannot write it any more.
    pub frozen: bool,
}

impl MapRow {
    pub fn new(node: &str, map: MapInfo) -> Self {
        let program = map.program.unwrap_or_default();
        MapRow {
            node: node.to_owned(),
            namespace: program.namespace,
            program: program.name,
            name: map.name,
            id: map.id,
            type_: map.r#type,
            key_size: map.key_size,
            value_size: map.value_size,
            max_entries: map.max_entries,
            flags: map.flags,
            memlock: map.memlock,
            frozen: map.frozen,
        }
    }
}

/// Runs the command.
pub async fn run(global: &Global, ls: &MapsLs) -> Result<(), Error> {
    let name = ls.name.clone().unwrap_or_default();
    let of = if ls.all_namespaces { Of::Everything } else { ls.name.as_ref().into() };
    let answers = source::ask(global, Access::Read, ls.node.as_deref(), of, |agent, namespace| {
        let name = name.clone();
        async move {
            let maps = agent.maps(&namespace, &name).await?;
            Ok(maps.into_iter().map(|map| MapRow::new(&agent.node, map)).collect::<Vec<_>>())
        }
    })
    .await?;
    let mut rows: Vec<&MapRow> = answers.answers.iter().flatten().collect();
    rows.sort_by(|a, b| {
        (&a.namespace, &a.program, &a.name, &a.node).cmp(&(&b.namespace, &b.program, &b.name, &b.node))
    });
    if rows.is_empty() && ls.name.is_some() {
        return Err(Error::Absent(format!("EbpfProgram {name} does not run there, or has no maps")));
    }
    let namespaces = ls.all_namespaces || global.socket.is_some() && global.namespace.is_none();
    match ls.output {
        MapsFormat::Json => output::print(&output::json(&rows))?,
        MapsFormat::Yaml => output::print(&output::yaml(&rows))?,
        MapsFormat::Table | MapsFormat::Wide if rows.is_empty() => note("no maps found"),
        format => output::print(&render(&rows, namespaces, answers.several, format == MapsFormat::Wide))?,
    }
    answers.complete()
}

/// The table, with columns for namespace and node where rows may differ in them.
pub fn render(rows: &[&MapRow], namespaces: bool, nodes: bool, wide: bool) -> String {
    let header = ["PROGRAM", "MAP", "TYPE", "KEY", "VALUE", "MAX ENTRIES", "MEMORY", "ID", "FLAGS", "FROZEN"];
    let shown = if wide { header.len() } else { header.len() - 2 };
    let header = header.into_iter().take(shown);
    let mut table = Table::new(leading((namespaces, "NAMESPACE"), (nodes, "NODE")).chain(header), 0);
    for row in rows {
        let numbers = [row.key_size, row.value_size, row.max_entries, row.id].map(|n| n.to_string());
        let [key, value, max, id] = numbers.each_ref().map(String::as_str);
        let memory = bytes(row.memlock);
        let (flags, frozen) = (format!("{:#x}", row.flags), row.frozen.to_string());
        let own = [row.program.as_str(), &row.name, &row.type_, key, value, max, &memory, id, &flags, &frozen];
        let own = own.into_iter().take(shown);
        table.row(leading((namespaces, row.namespace.as_str()), (nodes, row.node.as_str())).chain(own));
    }
    table.render()
}

/// The cells that are wanted.
fn leading<'a>(namespace: (bool, &'a str), node: (bool, &'a str)) -> impl Iterator<Item = &'a str> {
    [namespace, node].into_iter().filter(|(wanted, _)| *wanted).map(|(_, cell)| cell)
}

/// In the largest unit that leaves a whole part.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["B", "KiB", "MiB", "GiB"];
    let (mut amount, mut unit) = (count as f64, 0);
    while amount >= 1024.0 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{amount:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_in_readable_units() {
        assert_eq!([0, 1023, 1536, 4 << 20].map(bytes), ["0 B", "1023 B", "1.5 KiB", "4.0 MiB"]);
    }
}
