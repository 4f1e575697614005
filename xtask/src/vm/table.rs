//! What a kernel does with each kind: a golden file for each kernel, compared after each run. A row is of a kind, by the
//! test in which it fires, or of any other test that says what it met.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use skep_object::kind::KINDS;

use super::Kernel;
use crate::codegen::FIRES;
use crate::repo;

pub const FIRED: &str = "fires";
const REFUSED: &str = "refused: ";

/// Of one kernel.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Table {
    pub release: String,
    /// By the kind's name, or the test's.
    pub rows: BTreeMap<String, String>,
    /// What the agent's probes say of a kind, by its name. It is in no file: it is to be what the tests say.
    probed: BTreeMap<String, String>,
}

/// Before a kind's name, where probes speak of it.
const PROBED: &str = "probed ";

impl Table {
    /// What the tests of a machine said, `<test>: <verdict>`: of several verdicts one that is not `fires` counts.
    pub fn told(release: &str, lines: &str) -> Self {
        let (mut rows, mut probed) = (BTreeMap::new(), BTreeMap::new());
        for (test, verdict) in lines.lines().filter_map(|line| line.trim().split_once(": ")) {
            if let Some(kind) = test.strip_prefix(PROBED) {
                probed.insert(kind.to_owned(), verdict.to_owned());
                continue;
            }
            let row: &mut String = rows.entry(row_of(test)).or_insert_with(|| FIRED.to_owned());
            if verdict != FIRED {
                *row = verdict.to_owned();
            }
        }
        Self { release: release.into(), rows, probed }
    }

    /// The golden one; empty if there is none yet.
    pub fn golden(kernel: &Kernel) -> Result<Self> {
        let path = file(kernel);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Self::parse(&text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    fn parse(text: &str) -> Self {
        let (release, rows) = text.split_once('\n').unwrap_or((text, ""));
        let rows = rows.lines().filter_map(|line| line.split_once(": "));
        let rows = rows.map(|(row, verdict)| (row.to_owned(), verdict.to_owned())).collect();
        let release = release.trim_start_matches("# Linux ").to_owned();
        Self { release, rows, probed: BTreeMap::new() }
    }

    /// Makes it the golden one. Of a run of some tests only their rows.
    pub fn bless(&self, kernel: &Kernel, whole: bool) -> Result<()> {
        let mut golden = if whole { Self::default() } else { Self::golden(kernel)? };
        golden.release.clone_from(&self.release);
        golden.rows.extend(self.rows.clone());
        let path = file(kernel);
        std::fs::create_dir_all(path.parent().context("a golden file without a directory")?)?;
        std::fs::write(&path, golden.text()).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Kinds in the order of their table, then tests.
    fn text(&self) -> String {
        let kinds = KINDS.iter().filter_map(|row| self.rows.get_key_value(row.name));
        let lines = kinds.chain(self.tests()).map(|(row, verdict)| format!("{row}: {verdict}\n"));
        std::iter::once(format!("# Linux {}\n", self.release)).chain(lines).collect()
    }

    /// Rows that are of no kind.
    pub fn tests(&self) -> impl Iterator<Item = (&String, &String)> {
        self.rows.iter().filter(|(row, _)| KINDS.iter().all(|kind| kind.name != row.as_str()))
    }

    /// What is not as the golden table has it; of a run of some tests only what they said.
    pub fn differences(&self, golden: &Self, whole: bool) -> Vec<String> {
        let mut found = Vec::new();
        for (row, verdict) in &self.rows {
            match golden.rows.get(row) {
                Some(known) if known == verdict => {}
                Some(known) => found.push(format!("{row}: {verdict}; the golden file has: {known}")),
                None => found.push(format!("{row}: {verdict}; the golden file has no such row")),
            }
        }
        for (kind, probed) in &self.probed {
            let verdict = self.rows.get(kind);
            if verdict.is_some_and(|verdict| (verdict == FIRED) != (probed == FIRED)) {
                found.push(format!("{kind}: its probe says {probed}; its test says {}", self.rows[kind]));
            }
        }
        if whole {
            let kinds = KINDS.iter().map(|kind| kind.name).filter(|name| !golden.rows.contains_key(*name));
            let silent =
                golden.rows.keys().map(String::as_str).chain(kinds).filter(|row| !self.rows.contains_key(*row));
            found.extend(silent.map(|row| format!("{row}: no test said what becomes of it (`verdict::fires`)")));
        }
        found
    }

    /// Whether the kernel refuses what the test is about: then it is no wonder that the test did not come to its end.
    pub fn refuses(&self, test: &str) -> bool {
        self.rows.get(&row_of(test)).is_some_and(|verdict| verdict.starts_with(REFUSED))
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kinds = || KINDS.iter().filter_map(|kind| self.rows.get(kind.name));
        let refused = kinds().filter(|verdict| refusal(verdict).is_some()).count();
        write!(f, "{} kinds fire, {refused} are refused", kinds().count() - refused)
    }
}

/// Why the kernel refuses; `None`: it does not.
pub fn refusal(verdict: &str) -> Option<&str> {
    verdict.strip_prefix(REFUSED)
}

fn file(kernel: &Kernel) -> PathBuf {
    repo::root().join("kernel/tests/golden").join(format!("{}.txt", kernel.series))
}

/// The kind that a test is the proof of, or the test's own name.
fn row_of(test: &str) -> String {
    let kind = FIRES.iter().find(|(_, proof)| *proof == test);
    kind.map_or_else(|| test.to_owned(), |(kind, _)| kind.row().name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told() -> Table {
        Table::told(
            "6.1",
            "fires::xdp: fires\r\nfires::tcx_both_ways: refused: X: no\r\nfires::tcx_both_ways: fires\nfires::a_gate: fires\n",
        )
    }

    #[test]
    fn a_refusal_of_one_attempt_is_the_kinds_and_survives_the_file() {
        let table = told();
        assert_eq!(table.text(), "# Linux 6.1\nxdp: fires\ntcx: refused: X: no\nfires::a_gate: fires\n");
        assert_eq!(Table::parse(&table.text()), table);
        assert!(table.refuses("fires::tcx_both_ways") && !table.refuses("fires::xdp"));
    }

    #[test]
    fn a_probe_that_says_other_than_the_test_is_a_difference() {
        let lines = "fires::xdp: fires\nprobed xdp: refused: X: no\nprobed tc: fires\n";
        let table = Table::told("6.1", lines);
        assert_eq!(table.rows.len(), 1, "probes are no rows");
        let differences = table.differences(&table, false);
        assert_eq!(differences, ["xdp: its probe says refused: X: no; its test says fires"]);
    }

    #[test]
    fn what_changed_and_what_nobody_spoke_of_is_a_difference() {
        let (golden, mut now) = (told(), told());
        assert!(now.differences(&golden, false).is_empty());
        now.rows.insert("xdp".into(), "refused: Y: no".into());
        now.rows.remove("fires::a_gate");
        assert_eq!(now.differences(&golden, false), ["xdp: refused: Y: no; the golden file has: fires"]);
        let whole = now.differences(&golden, true);
        assert!(whole.contains(&"fires::a_gate: no test said what becomes of it (`verdict::fires`)".to_owned()));
        assert!(
            whole.contains(&"lsm: no test said what becomes of it (`verdict::fires`)".to_owned()),
            "a kind that no file has"
        );
    }
}
