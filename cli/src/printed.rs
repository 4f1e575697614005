//! `output`: what programs print, as it comes.

use serde::Serialize;
use skep_proto::v1::tail_output_request::Source;
use skep_proto::v1::{OutputFrame, TailOutputRequest};

use crate::args::{Global, Printed, WatchFormat};
use crate::error::Error;
use crate::output::{self, counted, note};
use crate::source::{self, Access, Of};
use crate::table::printable;

/// A line; the shape of `-o json`.
#[derive(Debug, Serialize)]
struct Row<'a> {
    node: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    function: &'a str,
    line: &'a str,
}

/// Runs the command.
pub async fn run(global: &Global, printed: &Printed) -> Result<(), Error> {
    let (node, name) = (printed.node.as_deref(), printed.name.as_deref());
    let several = global.socket.is_none() && node.is_none();
    let source = match (name, printed.stderr) {
        (None, _) => Source::Printk,
        (Some(_), false) => Source::Stdout,
        (Some(_), true) => Source::Stderr,
    };
    // bpf_printk is no one program's, nor one namespace's.
    let of = name.map_or(Of::Everything, Of::Program);
    let answers = source::ask(global, Access::Follow, node, of, |agent, namespace| async move {
        let program = match name {
            Some(name) => Some(agent.program(&namespace, name).await?),
            None => None,
        };
        let function = printed.function.clone().unwrap_or_default();
        let request = TailOutputRequest { source: source.into(), program, function };
        let mut stream = agent.output(request).await?;
        // A line may come in a year.
        while let Some(frame) = stream.next().await? {
            if frame.lost > 0 {
                let lost = counted(frame.lost, "line is", "lines are");
                note(format_args!("{}: {lost} lost: the kernel had no room", agent.node));
            }
            output::print(&render(&agent.node, &frame, printed.output, several))?;
        }
        Err::<(), _>(stream.cut())
    })
    .await?;
    answers.complete()
}

/// A frame's lines.
pub fn render(node: &str, frame: &OutputFrame, format: WatchFormat, several: bool) -> String {
    let mut text = String::new();
    for line in &frame.lines {
        let row = Row { node, function: &frame.function, line };
        match format {
            WatchFormat::Json => text.push_str(&serde_json::to_string(&row).unwrap_or_default()),
            WatchFormat::Text => {
                let lead = [(several, node), (!frame.function.is_empty(), frame.function.as_str())];
                lead.into_iter().filter(|(shown, _)| *shown).for_each(|(_, word)| text.extend([word, " "]));
                text.push_str(&printable(line));
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_where_they_come_from_and_steer_no_terminal() {
        let frame = OutputFrame { lines: vec!["a\u{1b}[2J".into(), "b".into()], function: "f".into(), lost: 0 };
        assert_eq!(render("n1", &frame, WatchFormat::Text, true), "n1 f a\\u{1b}[2J\nn1 f b\n");
        let printk = OutputFrame { lines: vec!["x".into()], ..OutputFrame::default() };
        assert_eq!(render("n1", &printk, WatchFormat::Text, false), "x\n");
        assert_eq!(render("n1", &printk, WatchFormat::Json, false), "{\"node\":\"n1\",\"line\":\"x\"}\n");
    }
}
