//! What Prometheus sees of the operator: few figures, with bounded labels.

use std::sync::atomic::AtomicI64;

use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Result_ {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    state: &'static str,
}

/// The figures.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    leader: Gauge<i64, AtomicI64>,
    programs: Family<State, Gauge<i64, AtomicI64>>,
    nodes: Family<State, Gauge<i64, AtomicI64>>,
    writes: Family<Result_, Counter>,
    resolves: Family<Result_, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("skep_operator");
        let (leader, programs, nodes) = (Gauge::default(), Family::default(), Family::default());
        let (writes, resolves) = (Family::default(), Family::default());
        registry.register("leader", "1 while this operator leads", leader.clone());
        registry.register("programs", "EbpfPrograms, by whether they are ready", programs.clone());
        registry.register("nodes", "Nodes with an agent, by whether it answers", nodes.clone());
        registry.register("writes", "Writes to the API server", writes.clone());
        registry.register("image_resolves", "Images looked up", resolves.clone());
        Self { registry, leader, programs, nodes, writes, resolves }
    }
}

impl Metrics {
    /// Whether this operator leads.
    pub fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// Programs, ready ones, nodes that answer, nodes that do not.
    pub fn figures(&self, [programs, ready, up, down]: [i64; 4]) {
        self.programs.get_or_create(&State { state: "ready" }).set(ready);
        self.programs.get_or_create(&State { state: "not_ready" }).set(programs - ready);
        self.nodes.get_or_create(&State { state: "connected" }).set(up);
        self.nodes.get_or_create(&State { state: "unreachable" }).set(down);
    }

    /// A write ended.
    pub fn written(&self, ok: bool) {
        self.writes.get_or_create(&result(ok)).inc();
    }

    /// An image was looked up.
    pub fn resolved(&self, ok: bool) {
        self.resolves.get_or_create(&result(ok)).inc();
    }

    /// In the text format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _infallible = encode(&mut text, &self.registry);
        text
    }
}

fn result(ok: bool) -> Result_ {
    Result_ { result: if ok { "ok" } else { "error" } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_the_figures() {
        let metrics = Metrics::default();
        metrics.leads(true);
        metrics.figures([3, 2, 5, 1]);
        metrics.written(false);
        let text = metrics.text();
        for line in [
            "skep_operator_leader 1",
            "skep_operator_programs{state=\"not_ready\"} 1",
            "skep_operator_nodes{state=\"connected\"} 5",
            "skep_operator_writes_total{result=\"error\"} 1",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
