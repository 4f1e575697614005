//! Writing to standard output. A reader that went away (`| head`) is no error.

use std::io::{ErrorKind, Write};

use serde::Serialize;

use crate::error::Error;

/// Prints a whole text.
pub fn print(text: &str) -> Result<(), Error> {
    print_all(&[text])
}

/// Prints texts, one after the other.
pub fn print_all(texts: &[impl AsRef<str>]) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    let mut all = texts.iter();
    match all.try_for_each(|text| out.write_all(text.as_ref().as_bytes())).and_then(|()| out.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(Error::Output),
    }
}

/// A warning or remark, to standard error: what is printed stays what was asked for.
pub fn note(text: impl std::fmt::Display) {
    // Nobody to tell that telling failed.
    let _ = writeln!(std::io::stderr(), "note: {text}");
}

/// As indented JSON, with a newline at the end.
pub fn json(value: &impl Serialize) -> String {
    match serde_json::to_string_pretty(value) {
        Ok(text) => text + "\n",
        Err(e) => format!("{{\"error\": \"{e}\"}}\n"),
    }
}

/// As YAML.
pub fn yaml(value: &impl Serialize) -> String {
    serde_yaml_ng::to_string(value).unwrap_or_else(|e| format!("error: {e}\n"))
}
