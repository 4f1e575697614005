//! Writing to standard output. Nobody's error is a reader that went away (`| head`): it ends the command, quietly.

use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;

use serde::Serialize;
use tokio::io::Interest;
use tokio::net::unix::pipe::Sender;

use crate::error::Error;
use crate::table::printable;

/// Prints a whole text.
pub fn print(text: &str) -> Result<(), Error> {
    print_bytes(text.as_bytes())
}

/// Prints a piece of a text.
pub fn print_bytes(piece: &[u8]) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    out.write_all(piece).and_then(|()| out.flush()).map_err(|problem| match problem.kind() {
        ErrorKind::BrokenPipe => Error::ReaderGone,
        _ => Error::Output(problem),
    })
}

/// Does what is done for the reader of standard output alone. It ends when that reader goes away, also while there is
/// nothing to print.
pub async fn while_read<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::select! {
        done = work => done,
        () = reader_gone() => Err(Error::ReaderGone),
    }
}

/// The other end of a pipe is closed. Of files nobody is told, and nobody goes away from them.
async fn reader_gone() {
    // A descriptor of its own, whose flags are left as they are: others may write into the same pipe.
    let out = std::io::stdout().as_fd().try_clone_to_owned();
    let gone = match out.and_then(|out| Sender::from_file_unchecked(out.into())) {
        Ok(out) => out.ready(Interest::ERROR).await.is_ok(),
        Err(_) => false,
    };
    if !gone {
        std::future::pending().await
    }
}

/// A warning or remark, to standard error: what is printed stays what was asked for.
pub fn note(text: impl std::fmt::Display) {
    // Nobody to tell that telling failed.
    let _ = writeln!(std::io::stderr(), "note: {}", plain(&text.to_string()));
}

/// Why it failed, to standard error.
pub fn failure(error: &Error) {
    let _ = writeln!(std::io::stderr(), "error: {}", plain(&error.to_string()));
}

/// Lines of which none steers a terminal: arguments and names are in them.
fn plain(text: &str) -> String {
    text.lines().map(printable).collect::<Vec<_>>().join("\n")
}

/// A number of things, and the verb that goes with it.
pub fn counted(number: u64, one: &str, several: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { several })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_steers_no_terminal() {
        assert_eq!(plain("no entry with the key \u{1b}[2J\nDo this"), "no entry with the key \\u{1b}[2J\nDo this");
    }
}
