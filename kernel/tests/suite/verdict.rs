//! What a kernel does with a kind, told to who runs these tests in a machine: the file that SKEP_TEST_VERDICTS names gets
//! a line for each attempt, `<test>: fires` or `<test>: refused: <reason>: <message>`. What is right there is not known
//! here: a golden file has it for each kernel. Where nobody asks, a refusal is for the test to judge.

use std::io::Write;

use skep_kernel::KernelError;
use skep_object::kind::Kind;

const FILE: &str = "SKEP_TEST_VERDICTS";

/// Somebody asks.
pub fn wanted() -> bool {
    std::env::var_os(FILE).is_some()
}

/// It fired, and stopped.
pub fn fires() {
    tell("fires");
}

/// The kernel, or Skep for it, refuses; whether somebody asked. An error that is no refusal of the kind fails the test.
pub fn refused(error: &KernelError) -> bool {
    if !wanted() {
        return false;
    }
    let reason = error.reason();
    assert!(["KernelUnsupported", "PermissionDenied"].contains(&reason), "{reason}: {error}");
    tell(&format!("refused: {reason}: {error}"));
    println!("refused: {error}");
    true
}

/// A test that cannot go on after a refusal ends here. It fails by the count of its harness, which knows no other way;
/// who asked for the verdict knows these words.
pub fn end(error: &KernelError) -> ! {
    panic!("ended by a refusal: {error}")
}

/// `skep-test` for `skep-test-97-17`.
fn without_numbers(text: &str) -> String {
    const MADE: &str = "skep-test";
    let mut parts = text.split(MADE);
    let mut kept = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        kept += MADE;
        kept += part.trim_start_matches(|c: char| c == '-' || c.is_ascii_digit());
    }
    kept
}

/// What probing says of a kind.
pub fn probed(kind: Kind, missing: Option<&KernelError>) {
    let verdict = missing.map_or("fires".to_owned(), |error| format!("refused: {}: {error}", error.reason()));
    write(&format!("probed {kind}: {verdict}\n"));
}

fn tell(verdict: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap().trim_start_matches("suite::");
    // The same in every run: what a fixture made has a number of its own.
    let verdict = without_numbers(verdict);
    write(&format!("{test}: {verdict}\n"));
}

fn write(line: &str) {
    let Some(path) = std::env::var_os(FILE) else { return };
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
    // One write: the file may be a terminal.
    file.write_all(line.as_bytes()).unwrap();
}
