//! `prog show`: all that the kernel says of functions, as a page.

use crate::args::{Global, PageFormat, ProgShow};
use crate::error::Error;
use crate::maps::bytes;
use crate::output;
use crate::prog::{Row, functions};
use crate::source::Of;
use crate::table::{Table, printable};

/// Runs the command.
pub async fn run(global: &Global, show: &ProgShow) -> Result<(), Error> {
    let answers = functions(global, Of::Program(&show.name), show.node.as_deref()).await?;
    let mut rows: Vec<&Row> = answers.answers.iter().flatten().collect();
    let all = rows.iter().map(|row| row.function.clone()).collect::<std::collections::BTreeSet<_>>();
    rows.retain(|row| show.function.as_ref().is_none_or(|function| row.function == *function));
    rows.sort_by_cached_key(|row| (row.function.clone(), row.node.clone(), row.id));
    if rows.is_empty() {
        return Err(Error::Absent(match (&show.function, all.is_empty()) {
            (Some(function), false) => {
                let all: Vec<String> = all.into_iter().collect();
                format!("no function {function} is loaded there; there are {}", all.join(", "))
            }
            _ => format!("EbpfProgram {} has nothing loaded there", show.name),
        }));
    }
    output::print(&match show.output {
        PageFormat::Json => output::json(&rows),
        PageFormat::Yaml => output::yaml(&rows),
        PageFormat::Text => rows.iter().map(|row| page(row)).collect::<Vec<_>>().join("\n"),
    })?;
    answers.complete()
}

fn page(row: &Row) -> String {
    let mean = row.run_time_ns.checked_div(row.run_count).unwrap_or(0);
    let runs = match row.run_count {
        0 => "none counted: the kernel counts while somebody looks (kubectl skep top)".to_owned(),
        count => format!("{count}, {mean} ns each; {} left out by recursion", row.recursion_misses),
    };
    let signature = row.subprograms.first().map(|first| first.signature.clone()).unwrap_or_default();
    let jited = match row.jited_bytes {
        0 => "interpreted".to_owned(),
        size => format!("{} of machine code", bytes(size.into())),
    };
    let facts = [
        ("Node", row.node.clone()),
        ("Program", format!("{}/{}", row.namespace, row.program)),
        ("Signature", signature),
        ("Type", row.type_.clone()),
        ("Id", row.id.to_string()),
        ("Tag", row.tag.clone()),
        ("Loaded", format!("{} by uid {}", row.loaded_at, row.uid)),
        ("License", if row.gpl_compatible { "GPL-compatible" } else { "not GPL-compatible" }.to_owned()),
        ("Memory", bytes(row.memlock)),
        ("Code", format!("{} instructions, {jited}", row.translated_bytes / 8)),
        ("Verified", format!("{} instructions", row.verified_insns)),
        ("Runs", runs),
    ];
    let mut text = printable(&row.function) + "\n";
    for (name, value) in facts.iter().filter(|(_, value)| !value.is_empty()) {
        text.push_str(&format!("  {name:<11}{}\n", printable(value)));
    }
    let mut section = |title: &str, header: [&str; 3], rows: Vec<[String; 3]>| {
        if rows.is_empty() {
            return;
        }
        let mut table = Table::new(header, 4);
        rows.into_iter().for_each(|row| table.row(row));
        text.push_str(&format!("  {title}\n{}", table.render()));
    };
    let links = row.links.iter().map(|link| [link.hook.clone(), link.target.clone(), link.id.to_string()]).collect();
    section("Links", ["HOOK", "TARGET", "ID"], links);
    let named = |name: &str| if name.is_empty() { "(Skep's own)".to_owned() } else { name.to_owned() };
    let maps = row.maps.iter().map(|map| [named(&map.name), map.id.to_string(), String::new()]).collect();
    section("Maps", ["NAME", "ID", ""], maps);
    let called = row.subprograms.iter().skip(1);
    let called = called.map(|part| [part.name.clone(), part.offset.to_string(), part.signature.clone()]).collect();
    section("Functions that it calls", ["NAME", "SLOT", "SIGNATURE"], called);
    text
}
