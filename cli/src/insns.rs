//! `prog insns`: the instructions of functions, with the lines of source that they come from.

use iced_x86::{Decoder, DecoderOptions, Formatter, GasFormatter, Instruction as X86};
use serde::Serialize;
use skep_object::btf::decode::hex;
use skep_proto::v1::{DumpInstructionsRequest, Instruction, Instructions, JitedLine, SourceLine};

use crate::agent::Agent;
use crate::args::{Global, ProgInsns, PushFormat};
use crate::deadline::within;
use crate::error::Error;
use crate::output;
use crate::source::{self, Access};
use crate::table::printable;

/// A function on a node; the shape of `-o json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Listing {
    node: String,
    /// The function that is loaded, and that of its functions which this is.
    function: String,
    name: String,
    signature: String,
    instructions: Vec<Row>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    jited: Vec<Row>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    /// Slots of eight bytes from the loaded function's first; of machine code, the address.
    at: u64,
    bytes: String,
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<Source>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Source {
    file: String,
    line: u32,
    column: u32,
    text: String,
}

impl From<SourceLine> for Source {
    fn from(line: SourceLine) -> Self {
        let SourceLine { file, line, column, text } = line;
        Source { file, line, column, text }
    }
}

/// Runs the command.
pub async fn run(global: &Global, insns: &ProgInsns) -> Result<(), Error> {
    let answers =
        source::ask(global, Access::Read, insns.node.as_deref(), Some(&insns.name), |agent, namespace| async move {
            listings(&agent, &namespace, insns).await
        })
        .await?;
    let all: Vec<&Listing> = answers.answers.iter().flatten().collect();
    output::print(&match insns.output {
        PushFormat::Json => output::json(&all),
        PushFormat::Text => {
            let text = |listing: &&Listing| listing.text(insns.jited, !insns.no_source);
            all.iter().map(text).collect::<Vec<_>>().join("\n")
        }
    })?;
    answers.complete()
}

async fn listings(agent: &Agent, namespace: &str, insns: &ProgInsns) -> Result<Vec<Listing>, Error> {
    let request = DumpInstructionsRequest {
        program: Some(agent.program(namespace, &insns.name).await?),
        function: insns.function.clone().unwrap_or_default(),
        no_jited: !insns.jited && insns.output == PushFormat::Text,
    };
    let mut stream = agent.instructions(request).await?;
    let (mut all, mut more): (Vec<Listing>, bool) = (Vec::new(), false);
    while let Some(frame) = within(agent.timeout, "reading the instructions", stream.next()).await? {
        if !more {
            let part = frame.subprogram.clone().unwrap_or_default();
            all.push(Listing {
                node: agent.node.clone(),
                function: frame.function.clone(),
                name: part.name,
                signature: part.signature,
                instructions: Vec::new(),
                jited: Vec::new(),
            });
        }
        more = frame.more;
        if let Some(listing) = all.last_mut() {
            listing.jited.extend(machine_code(&frame));
            listing.instructions.extend(frame.instructions.into_iter().map(Row::from));
        }
    }
    Ok(all)
}

impl From<Instruction> for Row {
    fn from(insn: Instruction) -> Self {
        let Instruction { index, raw, text, line } = insn;
        Row { at: index.into(), bytes: hex(&raw), text, source: line.map(Source::from) }
    }
}

/// The machine code as text; that of processors which are not known here in hexadecimal.
fn machine_code(frame: &Instructions) -> Vec<Row> {
    let (code, begin) = (&frame.jited, frame.jited_address);
    let line_at = |offset: u64| -> Option<Source> {
        let is_it = |line: &&JitedLine| u64::from(line.offset) == offset;
        frame.jited_lines.iter().find(is_it)?.line.clone().map(Source::from)
    };
    if frame.machine != "x86_64" {
        let rows = code.chunks(16).enumerate();
        let row = |(index, bytes): (usize, &[u8])| {
            let offset = index as u64 * 16;
            Row { at: begin + offset, bytes: hex(bytes), text: String::new(), source: line_at(offset) }
        };
        return rows.map(row).collect();
    }
    let (mut formatter, mut insn, mut rows) = (GasFormatter::new(), X86::default(), Vec::new());
    let mut decoder = Decoder::with_ip(64, code, begin, DecoderOptions::NONE);
    while decoder.can_decode() {
        let from = decoder.position();
        decoder.decode_out(&mut insn);
        let mut text = String::new();
        formatter.format(&insn, &mut text);
        let bytes = hex(code.get(from..decoder.position()).unwrap_or_default());
        rows.push(Row { at: insn.ip(), bytes, text, source: line_at(from as u64) });
    }
    rows
}

impl Listing {
    fn text(&self, jited: bool, sources: bool) -> String {
        let title = if self.signature.is_empty() { &self.name } else { &self.signature };
        let mut text = format!("# {} on {}: {}\n", printable(&self.function), self.node, printable(title));
        let rows = if jited { &self.jited } else { &self.instructions };
        if jited && rows.is_empty() {
            text.push_str("the kernel does not show its machine code, or interprets it (kernel.kptr_restrict, net.core.bpf_jit_enable)\n");
        }
        for row in rows {
            if let Some(source) = row.source.as_ref().filter(|source| sources && !source.text.is_empty()) {
                let Source { file, line, text: code, .. } = source;
                let file = file.rsplit('/').next().unwrap_or(file);
                text.push_str(&printable(&format!("; {code}  {file}:{line}")));
                text.push('\n');
            }
            let at = if jited { format!("{:#x}", row.at) } else { format!("{:>5}", row.at) };
            let code = if row.text.is_empty() { &row.bytes } else { &row.text };
            text.push_str(&format!("{at}: {}\n", printable(code)));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_proto::v1::Subprogram;

    fn line(text: &str, line: u32) -> Option<SourceLine> {
        Some(SourceLine { file: "/src/a.bpf.c".into(), line, column: 2, text: text.into() })
    }

    #[test]
    fn code_is_below_its_lines() {
        let jited_lines = vec![JitedLine { offset: 4, line: line("return 2;", 9) }];
        let frame = Instructions {
            // endbr64, leave, ret.
            jited: vec![0xf3, 0x0f, 0x1e, 0xfa, 0xc9, 0xc3].into(),
            jited_address: 0x1000,
            machine: "x86_64".into(),
            jited_lines,
            subprogram: Some(Subprogram::default()),
            ..Instructions::default()
        };
        let raw = vec![0xb7, 0, 0, 0, 2, 0, 0, 0].into();
        let insn = Instruction { index: 3, raw, text: "r0 = 2".into(), line: line("return 2;", 9) };
        let listing = Listing {
            node: "n1".into(),
            function: "f".into(),
            name: "f".into(),
            signature: "int f(void)".into(),
            instructions: vec![insn.into()],
            jited: machine_code(&frame),
        };
        assert_eq!(listing.text(false, true), "# f on n1: int f(void)\n; return 2;  a.bpf.c:9\n    3: r0 = 2\n");
        assert_eq!(listing.text(false, false), "# f on n1: int f(void)\n    3: r0 = 2\n");
        let jited = "# f on n1: int f(void)\n0x1000: endbr64\n; return 2;  a.bpf.c:9\n0x1004: leave\n0x1005: ret\n";
        assert_eq!(listing.text(true, true), jited);
        let other = Instructions { machine: "aarch64".into(), ..frame };
        assert_eq!(machine_code(&other)[0].bytes, "0xf30f1efac9c3");
        assert!(machine_code(&Instructions::default()).is_empty());
    }
}
