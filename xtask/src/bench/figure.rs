//! What is printed: a figure, its aim, and whether it was met.

use serde_json::{Map, Value, json};

/// All figures, in the order of the table.
pub const NAMES: [&str; 52] = [
    "load_attach_pin_per_s",
    "load_700k_object_ms",
    "load_700k_object_again_ms",
    "libbpf_load_700k_object_ms",
    "features_probe_ms",
    "bpftool_feature_probe_ms",
    "dump_1m_hash_ms",
    "bpftool_dump_1m_ms",
    "dump_1m_hash_stream_ms",
    "dump_1m_array_stream_ms",
    "dump_1m_plain_array_stream_ms",
    "dump_1m_percpu_hash_ms",
    "cli_dump_1m_json_s",
    "cli_dump_1m_jsonl_s",
    "bpftool_dump_1m_json_s",
    "lookup_p50_us",
    "watch_100k_map_cpu_percent",
    "agent_rss_during_8_dumps_mib",
    "events_per_s_to_client",
    "agent_rss_idle_mib",
    "agent_image_mib",
    "operator_image_mib",
    "standalone_apply_to_ready_ms_p50",
    "standalone_apply_to_ready_ms_p99",
    "quiet_lookup_p99_us",
    "beside_200_dumps_lookup_p99_us",
    "quiet_apply_to_ready_ms_p99",
    "beside_200_dumps_apply_to_ready_ms_p99",
    "update_swap_us_p50_xdp",
    "update_swap_us_p50_tcx",
    "update_swap_us_p50_tc",
    "update_swap_us_p50_cgroupSkb",
    "update_swap_us_p50_skLookup",
    "update_swap_us_p50_netfilter",
    "update_swap_us_p50_tracepoint",
    "update_swap_us_p50_rawTracepoint",
    "update_swap_us_p50_uprobe",
    "reload_small_program_us",
    "libbpf_reload_small_program_us",
    "restart_adopt_1000_ms",
    "reboot_restore_1000_ms",
    "drift_check_1000_ms",
    "agent_rss_1000_programs_mib",
    "agent_cpu_idle_1000_programs_percent",
    "reboot_restore_100_tcx_ms",
    "libbpf_load_attach_100_tcx_ms",
    "libbpf_attach_100_tcx_ms",
    "apply_to_ready_ms_p50",
    "apply_to_ready_ms_p99",
    "operator_rss_idle_mib",
    "dump_1m_hash_portforward_ms",
    "lookup_p50_us_portforward",
];

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Aim {
    None,
    AtLeast(f64),
    AtMost(f64),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    name: &'static str,
    /// None: not measured, the note says why.
    value: Option<f64>,
    unit: &'static str,
    aim: Aim,
    note: String,
}

impl Figure {
    pub fn new(name: &'static str, value: f64, unit: &'static str, aim: Aim, note: impl Into<String>) -> Self {
        Self { name, value: Some(value), unit, aim, note: note.into() }
    }

    fn verdict(&self) -> &'static str {
        let Some(value) = self.value else { return "SKIPPED" };
        match self.aim {
            Aim::None => "",
            Aim::AtLeast(aim) if value >= aim => "met",
            Aim::AtMost(aim) if value <= aim => "met",
            Aim::AtLeast(_) | Aim::AtMost(_) => "MISSED",
        }
    }

    fn aim(&self) -> String {
        match self.aim {
            Aim::None => "-".to_owned(),
            Aim::AtLeast(aim) => format!(">= {}", shown(aim)),
            Aim::AtMost(aim) => format!("<= {}", shown(aim)),
        }
    }
}

/// Figures that could not be measured.
pub fn skipped(names: &[&'static str], reason: &str) -> Vec<Figure> {
    let figure = |name: &&'static str| Figure { name, value: None, unit: "", aim: Aim::None, note: reason.to_owned() };
    names.iter().map(figure).collect()
}

pub fn table(figures: &[Figure]) -> String {
    let mut out = format!("{:<36} {:>9} {:<4} {:>9} {:<7} NOTE\n", "FIGURE", "VALUE", "UNIT", "AIM", "");
    for figure in figures {
        let value = figure.value.map_or_else(|| "-".to_owned(), shown);
        let (name, unit, aim, verdict) = (figure.name, figure.unit, figure.aim(), figure.verdict());
        out.push_str(&format!("{name:<36} {value:>9} {unit:<4} {aim:>9} {verdict:<7} {}\n", figure.note));
    }
    out
}

/// `{"name": {"value": 1.0, "unit": "ms", "note": "..."}}`; a figure that was not measured has the value null.
pub fn json(figures: &[Figure]) -> Value {
    let entry = |figure: &Figure| {
        let note = match figure.value {
            Some(_) => figure.note.clone(),
            None => format!("SKIPPED: {}", figure.note),
        };
        (figure.name.to_owned(), json!({"value": figure.value, "unit": figure.unit, "note": note}))
    };
    Value::Object(figures.iter().map(entry).collect::<Map<_, _>>())
}

/// Three digits are what the rounds agree on.
fn shown(value: f64) -> String {
    if value < 100.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misses_and_skips_are_said() {
        let figures = [
            Figure::new(NAMES[0], 3400.0, "/s", Aim::AtLeast(3500.0), ""),
            Figure::new(NAMES[13], 12.34, "MiB", Aim::AtMost(20.0), "idle"),
        ];
        let skipped = skipped(&NAMES[37..38], "no cluster");
        let table = table(&[&figures[..], &skipped[..]].concat());
        let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1][1..], ["3400", "/s", ">=", "3500", "MISSED"]);
        assert_eq!(lines[2][1..], ["12.3", "MiB", "<=", "20.0", "met", "idle"]);
        assert_eq!(lines[3][1..], ["-", "-", "SKIPPED", "no", "cluster"]);
        assert_eq!(json(&skipped)[NAMES[37]], json!({"value": null, "unit": "", "note": "SKIPPED: no cluster"}));
    }
}
