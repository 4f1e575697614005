//! libbpf's side, through bpftool.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use super::verdict::Outcome;

/// All that is pinned goes with the mount namespace, also what the object itself wants pinned under a name that all share.
const SCRIPT: &str = r#"
set -e
mount -t bpf bpf /sys/fs/bpf
bpftool prog loadall "$1" /sys/fs/bpf/it
for pin in /sys/fs/bpf/it/*; do
    echo "${pin##*/}"
    bpftool --json prog show pinned "$pin"
done
"#;

/// Why it cannot be asked here.
pub fn obstacle() -> Option<String> {
    let missing = |program: &&str| Command::new(program).arg("--version").output().is_err();
    ["bpftool", "unshare"].iter().find(|program| missing(program)).map(|program| format!("{program} is not installed"))
}

/// The tags of all programs: all are loaded, or none.
pub fn load(object: &Path) -> Outcome {
    let run = Command::new("unshare").args(["--mount", "sh", "-c", SCRIPT, "sh"]).arg(object).output().unwrap();
    if !run.status.success() {
        return Err(reason(&String::from_utf8_lossy(&run.stderr)));
    }
    let shown = String::from_utf8(run.stdout).unwrap();
    let lines: Vec<&str> = shown.lines().collect();
    let programs = lines.chunks(2).map(|pair| {
        let program: serde_json::Value = serde_json::from_str(pair[1]).unwrap();
        (pair[0].to_owned(), Ok(program["tag"].as_str().unwrap().to_owned()))
    });
    Ok(programs.collect::<BTreeMap<_, _>>())
}

/// The first that went wrong; what comes after it says that therefore something else did.
fn reason(said: &str) -> String {
    let wrong = |line: &&str| {
        !line.contains("Retrying") && ["fail", "rror", "nvalid", "not ", "n't"].iter().any(|word| line.contains(word))
    };
    let line = said.lines().find(wrong).or_else(|| said.lines().last()).unwrap_or("without a word");
    line.trim_start_matches("libbpf: ").to_owned()
}
