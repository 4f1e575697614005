//! `prog read`: what iterators write.

use skep_proto::v1::{IteratorText, OutputFrame, ReadIteratorRequest};

use crate::args::{Global, ProgRead};
use crate::deadline::within;
use crate::error::Error;
use crate::output;
use crate::printed::render;
use crate::source::{self, Access};

/// Runs the command.
pub async fn run(global: &Global, read: &ProgRead) -> Result<(), Error> {
    let node = read.node.as_deref();
    let several = global.socket.is_none() && node.is_none();
    let answers = source::ask(global, Access::Read, node, Some(&read.name), |agent, namespace| async move {
        let program = Some(agent.program(&namespace, &read.name).await?);
        let function = read.function.clone().unwrap_or_default();
        let mut stream = agent.iterators(ReadIteratorRequest { program, function }).await?;
        let mut lines = Lines::default();
        loop {
            let text = within(agent.timeout, "reading the iterator", stream.next()).await?;
            let last = text.is_none();
            let frames = match &text {
                Some(text) => lines.add(text),
                None => lines.end(),
            };
            for frame in frames {
                output::print(&render(&agent.node, &frame, read.output, several))?;
            }
            if last {
                return Ok(());
            }
        }
    })
    .await?;
    answers.complete()
}

/// Whole lines, out of pieces.
#[derive(Debug, Default)]
struct Lines {
    function: String,
    rest: Vec<u8>,
}

impl Lines {
    /// Another function's text begins a line of its own.
    fn add(&mut self, text: &IteratorText) -> Vec<OutputFrame> {
        let mut frames = if text.function == self.function { Vec::new() } else { self.end() };
        self.function.clone_from(&text.function);
        self.rest.extend_from_slice(&text.data);
        if let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') {
            let rest = self.rest.split_off(end + 1);
            let whole = std::mem::replace(&mut self.rest, rest);
            frames.push(self.frame(&whole[..end]));
        }
        frames
    }

    /// What is left without an end.
    fn end(&mut self) -> Vec<OutputFrame> {
        let rest = std::mem::take(&mut self.rest);
        if rest.is_empty() { Vec::new() } else { vec![self.frame(&rest)] }
    }

    fn frame(&self, bytes: &[u8]) -> OutputFrame {
        let lines = String::from_utf8_lossy(bytes).split('\n').map(str::to_owned).collect();
        OutputFrame { lines, function: self.function.clone(), lost: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_whatever_the_pieces() {
        let mut lines = Lines::default();
        let mut all = Vec::new();
        for (function, data) in [("a", "one\ntw"), ("a", "o\n\nthree"), ("b", "four\n")] {
            let text = IteratorText { data: data.as_bytes().to_vec().into(), function: function.into() };
            all.extend(lines.add(&text));
        }
        all.extend(lines.end());
        let seen: Vec<(&str, Vec<&str>)> =
            all.iter().map(|f| (f.function.as_str(), f.lines.iter().map(String::as_str).collect())).collect();
        assert_eq!(seen, [("a", vec!["one"]), ("a", vec!["two", ""]), ("a", vec!["three"]), ("b", vec!["four"])]);
    }
}
