//! `cargo xtask cluster status`.

use anyhow::Result;
use serde_json::json;

use super::{layout, state::State};

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Format {
    Table,
    Json,
    Yaml,
}

pub fn show(format: Format) -> Result<()> {
    let state = State::load()?;
    let processes: Vec<_> = state.iter().flat_map(|state| &state.processes).collect();
    let up = !processes.is_empty() && processes.iter().all(|process| process.runs());
    let value = json!({
        "up": up,
        "since": state.as_ref().map(|state| state.since),
        "kubeconfig": layout::kubeconfig(),
        "apiServer": layout::api_url(),
        "registry": {"address": layout::REGISTRY, "ca": layout::pki("ca.crt")},
        "processes": processes.iter().map(|process| json!({
            "name": process.name, "pid": process.pid, "running": process.runs(),
            "residentMiB": process.resident_mib().filter(|_| process.runs()), "log": layout::log(&process.name),
        })).collect::<Vec<_>>(),
    });
    match format {
        Format::Json => println!("{}", serde_json::to_string_pretty(&value)?),
        Format::Yaml => print!("{}", serde_yaml_ng::to_string(&value)?),
        Format::Table if state.is_none() => println!("no cluster runs here; start one with `cargo xtask cluster up`"),
        Format::Table => {
            println!("{:<20} {:>8} {:<8} {:>7} LOG", "NAME", "PID", "STATE", "RSS");
            for process in processes {
                let state = if process.runs() { "running" } else { "ended" };
                let memory = process.resident_mib().map_or_else(|| "-".to_owned(), |mib| format!("{mib} MiB"));
                println!(
                    "{:<20} {:>8} {state:<8} {memory:>7} {}",
                    process.name,
                    process.pid,
                    layout::log(&process.name).display()
                );
            }
        }
    }
    Ok(())
}
