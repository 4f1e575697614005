//! What a machine prints, line by line as it comes.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Tests that take longer are shown with their time.
const LONG: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Console {
    file: File,
    text: Vec<u8>,
    /// How much of the text has been shown.
    shown: usize,
    last: Instant,
}

impl Console {
    pub fn open(log: &Path) -> Result<Self> {
        let file = File::open(log).with_context(|| format!("cannot read {}", log.display()))?;
        Ok(Self { file, text: Vec::new(), shown: 0, last: Instant::now() })
    }

    /// Hands on the lines that are new; those of tests that took long with their time.
    pub fn lines(&mut self, said: &impl Fn(&str)) -> Result<()> {
        self.file.read_to_end(&mut self.text)?;
        while let Some(length) = self.text[self.shown..].iter().position(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(&self.text[self.shown..self.shown + length]);
            let took = self.last.elapsed();
            match line.trim_end() {
                test if test.starts_with("test ") && took > LONG => {
                    said(&format!("{test} ({:.0} s)", took.as_secs_f64()))
                }
                line => said(line),
            }
            self.shown += length + 1;
            self.last = Instant::now();
        }
        Ok(())
    }

    /// All that was printed.
    pub fn all(&self) -> String {
        String::from_utf8_lossy(&self.text).replace('\r', "")
    }
}
