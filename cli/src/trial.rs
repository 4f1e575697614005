//! `prog test`: what functions make of packets, or of contexts.

use std::fs::File;
use std::path::Path;

use pcap_file::pcap::PcapReader;
use serde::Serialize;
use skep_object::btf::decode::hex;
use skep_proto::v1::TestProgramRequest;

use crate::args::{Global, ProgTest, TopFormat};
use crate::error::Error;
use crate::output;
use crate::source::{self, Access};
use crate::table::Table;

/// Packets of one test: what agents take.
const PACKETS: usize = 1024;

/// What became of a packet on a node; the shape of `-o json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    node: String,
    /// Which of those that were given.
    packet: usize,
    return_value: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    verdict: String,
    ns: u32,
    /// In hexadecimal.
    before: String,
    after: String,
}

/// Runs the command.
pub async fn run(global: &Global, test: &ProgTest) -> Result<(), Error> {
    let packets = match &test.pcap {
        Some(file) => read(file)?,
        None => test.packet.iter().chain(&test.ctx).map(|bytes| bytes.0.clone()).collect(),
    };
    let on_contexts = !test.ctx.is_empty();
    let access = if test.live { Access::Write } else { Access::Read };
    let answers = source::ask(global, access, test.node.as_deref(), Some(&test.name), |agent, namespace| {
        let packets = packets.clone();
        async move {
            let bytes = |wanted| match wanted {
                true => packets.iter().cloned().map(Into::into).collect(),
                false => Vec::new(),
            };
            let request = TestProgramRequest {
                program: Some(agent.program(&namespace, &test.name).await?),
                function: test.function.clone(),
                packets: bytes(!on_contexts),
                contexts: bytes(on_contexts),
                live: test.live,
                repeat: test.repeat,
            };
            let runs = agent.test(request).await?.into_iter().zip(&packets).enumerate();
            let row = |(index, (run, before)): (usize, (skep_proto::v1::TestRun, &Vec<u8>))| Row {
                node: agent.node.clone(),
                packet: index + 1,
                return_value: run.return_value,
                verdict: run.verdict,
                ns: run.duration_ns,
                before: hex(before),
                after: hex(if on_contexts { &run.context } else { &run.packet }),
            };
            Ok(runs.map(row).collect::<Vec<_>>())
        }
    })
    .await?;
    let rows: Vec<&Row> = answers.answers.iter().flatten().collect();
    output::print(&match test.output {
        TopFormat::Json => output::json(&rows),
        TopFormat::Table => table(&rows, answers.several),
    })?;
    answers.complete()
}

fn table(rows: &[&Row], nodes: bool) -> String {
    let node = nodes.then_some("NODE");
    let mut table =
        Table::new(node.into_iter().chain(["PACKET", "BYTES", "VERDICT", "BYTES AFTER", "CHANGED", "NS"]), 0);
    for row in rows {
        // Two digits a byte, after 0x.
        let bytes = |text: &str| (text.len() / 2).saturating_sub(1).to_string();
        let verdict = if row.verdict.is_empty() { row.return_value.to_string() } else { row.verdict.clone() };
        let changed = if row.before == row.after { "no" } else { "yes" };
        let cells = [
            row.packet.to_string(),
            bytes(&row.before),
            verdict,
            bytes(&row.after),
            changed.into(),
            row.ns.to_string(),
        ];
        table.row(nodes.then(|| row.node.clone()).into_iter().chain(cells));
    }
    table.render()
}

fn read(path: &Path) -> Result<Vec<Vec<u8>>, Error> {
    let bad = |problem: String| Error::Usage(format!("{}: {problem}", path.display()));
    let file = File::open(path).map_err(|e| bad(e.to_string()))?;
    let mut reader = PcapReader::new(file).map_err(|e| bad(format!("no pcap file: {e}")))?;
    let mut packets = Vec::new();
    while let Some(packet) = reader.next_packet() {
        if packets.len() == PACKETS {
            return Err(bad(format!(
                "more than {PACKETS} packets: cut it, as by tcpdump -r FILE -w OTHER -c {PACKETS}"
            )));
        }
        packets.push(packet.map_err(|e| bad(format!("packet {}: {e}", packets.len() + 1)))?.data.into_owned());
    }
    if packets.is_empty() { Err(bad("no packets".into())) } else { Ok(packets) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_come_from_files_and_mistakes_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.pcap");
        assert_eq!(read(&file).unwrap_err().exit_code(), 2, "there is no such file");
        std::fs::write(&file, b"nonsense").unwrap();
        assert!(read(&file).unwrap_err().to_string().contains("no pcap file"));
        let mut writer = pcap_file::pcap::PcapWriter::new(File::create(&file).unwrap()).unwrap();
        for length in [14u32, 60] {
            let data = vec![7u8; length as usize];
            writer.write_packet(&pcap_file::pcap::PcapPacket::new(std::time::Duration::ZERO, length, &data)).unwrap();
        }
        drop(writer);
        assert_eq!(read(&file).unwrap(), [vec![7; 14], vec![7; 60]]);
    }

    #[test]
    fn verdicts_are_a_table() {
        let row = Row {
            node: "n1".into(),
            packet: 1,
            return_value: 1,
            verdict: "XDP_DROP".into(),
            ns: 34,
            before: "0x0000".into(),
            after: "0x0001".into(),
        };
        let wanted = "NODE   PACKET   BYTES   VERDICT    BYTES AFTER   CHANGED   NS\n\
                      n1     1        2       XDP_DROP   2             yes       34\n";
        assert_eq!(table(&[&row], true), wanted);
    }
}
