//! libbpf's side, through bpftool.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use skep_object::Object;
use skep_object::function::Function;

use super::verdict::Outcome;

/// All that is pinned goes with the mount namespace, also what the object itself wants pinned under a name that all share.
const SCRIPT: &str = r#"
set -e
mount -t bpf bpf /sys/fs/bpf
bpftool prog loadall "$1" /sys/fs/bpf/it
for pin in $(find /sys/fs/bpf/it -type f); do
    echo "${pin##*/}"
    bpftool --json prog show pinned "$pin"
done
"#;

/// Why it cannot be asked here.
pub fn obstacle() -> Option<String> {
    let missing = |program: &&str| Command::new(program).arg("--version").output().is_err();
    ["bpftool", "unshare"].iter().find(|program| missing(program)).map(|program| format!("{program} is not installed"))
}

/// Tag or reason of each program. bpftool loads all or nothing; where it names a program or section in its way, that
/// section is taken out, and the rest tried again.
pub fn load(path: &Path, object: Option<&Object>) -> Outcome {
    let mut elf = std::fs::read(path).unwrap();
    let mut refused = BTreeMap::new();
    loop {
        let said = match once(&elf) {
            Ok(programs) => return Ok(programs.into_iter().chain(refused).collect()),
            Err(said) => said,
        };
        let reason = reason(&said);
        let culprit = object.and_then(|object| culprit(object, &reason));
        match culprit {
            Some(function) if !refused.contains_key(&function.name) => {
                take_out(&mut elf, function.key.0);
                refused.insert(function.name.clone(), Err(reason));
            }
            _ => return Err(reason),
        }
    }
}

fn once(elf: &[u8]) -> Result<BTreeMap<String, Result<String, String>>, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), elf).unwrap();
    let run = Command::new("unshare").args(["--mount", "sh", "-c", SCRIPT, "sh"]).arg(file.path()).output().unwrap();
    if !run.status.success() {
        return Err(String::from_utf8_lossy(&run.stderr).into_owned());
    }
    let shown = String::from_utf8(run.stdout).unwrap();
    let lines: Vec<&str> = shown.lines().collect();
    let programs = lines.chunks(2).map(|pair| {
        let program: serde_json::Value = serde_json::from_str(pair[1]).unwrap();
        (pair[0].to_owned(), Ok(program["tag"].as_str().unwrap().to_owned()))
    });
    Ok(programs.collect())
}

/// A function of the section that libbpf does not come past.
fn culprit<'o>(object: &'o Object, reason: &str) -> Option<&'o Function> {
    let quoted = |before: &str| reason.split_once(before)?.1.split('\'').next();
    let program = quoted("prog '").and_then(|name| object.program(name).ok());
    let unknown = quoted("failed to guess program type from ELF section '");
    let of_section = |function: &&Function| Some(object.section_of(function).trim_start_matches('?')) == unknown;
    program.or_else(|| object.programs().find(of_section))
}

/// What is not executable is no program to libbpf.
fn take_out(elf: &mut [u8], section: usize) {
    // Elf64_Ehdr.e_shoff, Elf64_Shdr.sh_flags, SHF_EXECINSTR.
    let headers = u64::from_le_bytes(elf[40..48].try_into().unwrap()) as usize;
    elf[headers + 64 * section + 8] &= !4;
}

/// The first that went wrong; what comes after it says that therefore something else did.
fn reason(said: &str) -> String {
    let wrong = |line: &&str| {
        !line.contains("Retrying") && ["fail", "rror", "nvalid", "not ", "n't"].iter().any(|word| line.contains(word))
    };
    let line = said.lines().find(wrong).or_else(|| said.lines().last()).unwrap_or("without a word");
    line.trim_start_matches("libbpf: ").to_owned()
}
