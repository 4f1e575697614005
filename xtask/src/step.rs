//! A step of a long command: its name and elapsed time are shown while it runs, its output goes to
//! `target/logs/<name>.log`, and a failure prints the end of that log and its path.

use std::fs::File;
use std::io::IsTerminal;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::repo;

const TAIL: usize = 30;

/// Runs `work` as a step. It may replace the text beside the clock through the [`Progress`].
pub fn step<T>(name: &str, work: impl FnOnce(&Progress) -> Result<T>) -> Result<T> {
    let progress = Progress::start(name);
    let result = work(&progress);
    progress.end(result.is_ok());
    result
}

/// Runs `command` to its end as a step.
pub fn run(name: &str, command: &mut Command) -> Result<()> {
    step(name, |_| logged(name, command))
}

/// What a command printed; for questions that take milliseconds. A failure has its standard error in the text.
pub fn ask(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?} does not start"))?;
    if !output.status.success() {
        bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Runs `command` with its output in the log of `name`.
pub fn logged(name: &str, command: &mut Command) -> Result<()> {
    let path = log_path(name);
    std::fs::create_dir_all(repo::logs())?;
    let log = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let status = command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .status()
        .with_context(|| format!("{} does not start", command.get_program().to_string_lossy()))?;
    if status.success() {
        return Ok(());
    }
    bail!("`{}` ended with {status}\n{}", shown(command), tail(&path))
}

fn log_path(name: &str) -> std::path::PathBuf {
    let file: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    repo::logs().join(format!("{file}.log"))
}

/// The last lines of a log, indented, and where the rest is.
pub fn tail(path: &std::path::Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(TAIL)..];
    let mut out: String = last.iter().map(|line| format!("  | {line}\n")).collect();
    out.push_str(&format!("  the whole log: {}", path.display()));
    out
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// The line that shows a running step.
#[derive(Debug)]
pub struct Progress {
    name: String,
    start: Instant,
    bar: ProgressBar,
}

impl Progress {
    fn start(name: &str) -> Self {
        let bar = if std::io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} {elapsed} {msg}") {
            bar.set_style(style);
        }
        bar.set_prefix(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        if bar.is_hidden() {
            eprintln!("  .. {name}");
        }
        Self { name: name.to_owned(), start: Instant::now(), bar }
    }

    /// What the step waits for just now.
    pub fn note(&self, text: &str) {
        self.bar.set_message(text.to_owned());
    }

    fn end(self, well: bool) {
        let mark = if well { "ok" } else { "!!" };
        self.bar.finish_and_clear();
        eprintln!("  {mark} {} ({:.1} s)", self.name, self.start.elapsed().as_secs_f64());
    }
}
