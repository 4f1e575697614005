//! The instructions of functions that run, with the lines of source that they come from.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::pin::Pin;

use skep_kernel::sys::instructions::{self, Instructions as Dumped, Line};
use skep_kernel::{kallsyms, sys};
use skep_object::btf::Btf;
use skep_object::btf::signature::signature;
use skep_object::disasm::{self, Names};
use skep_object::insn::{Insn, pseudo};
use skep_proto::v1::{
    DumpInstructionsRequest, Instruction, Instructions, JitedLine, ProgramReport, SourceLine, Subprogram,
};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::dump::STALLED;
use super::programs::{Loaded, open};
use super::trial::no_function;
use super::{InspectorService, QUEUE, failed};
use crate::images::blocking;

/// Instructions a frame.
const AT_ONCE: usize = 4096;
/// BPF_FUNC_tail_call, which is no distance: the verifier makes an instruction of it, and the kernel shows the call again.
const TAIL_CALL: i32 = 12;

/// A stream of instructions.
pub type Listing = Pin<Box<dyn Stream<Item = Result<Instructions, Status>> + Send>>;

impl InspectorService {
    pub(super) async fn instructions(&self, request: DumpInstructionsRequest) -> Result<Listing, Status> {
        let (host, report) = (self.host.clone(), self.report(request.program.as_ref())?);
        let function = request.function.clone();
        let of = report.clone();
        let found = blocking(move || {
            let mut loaded = open(&host, &of);
            let names: Vec<String> = loaded.iter().map(|one| one.function.clone()).collect();
            loaded.retain(|one| function.is_empty() || one.function == function);
            if loaded.is_empty() { Err(no_function(&function, &names)) } else { Ok(loaded) }
        });
        let loaded = found.await.map_err(failed)??;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let turns = self.listing.clone();
        tokio::spawn(async move {
            // A thread waits as long as its client reads slowly: not more than a few, and none for ever.
            let Ok(turn) = turns.acquire_owned().await else { return };
            let listed = blocking(move || {
                let put =
                    |frame| Handle::current().block_on(timeout(STALLED, sender.send(frame))).is_ok_and(|r| r.is_ok());
                for one in loaded {
                    match list(&report, &one, !request.no_jited, |frame| put(Ok(frame))) {
                        Ok(true) => {}
                        Ok(false) => return,
                        Err(e) => {
                            put(Err(failed(format!("reading the instructions of {}: {e}", one.function))));
                            return;
                        }
                    }
                }
            });
            if let Err(error) = listed.await {
                tracing::warn!(%error, "listing instructions");
            }
            drop(turn);
        });
        Ok(Box::pin(ReceiverStream::new(receiver)))
    }
}

/// It and the functions that it calls.
pub fn subprograms(btf_id: u32, functions: &[(u32, u32)]) -> std::io::Result<(Option<Btf>, Vec<Subprogram>)> {
    let btf = match btf_id {
        0 => None,
        id => Btf::parse(&sys::btf_by_id(id)?).ok(),
    };
    let Some(types) = &btf else { return Ok((None, Vec::new())) };
    let all = functions.iter().map(|(slot, id)| Subprogram {
        name: types.name(*id).to_owned(),
        signature: signature(types, *id).unwrap_or_default(),
        offset: *slot,
    });
    let all = all.collect();
    Ok((btf, all))
}

/// False when the client is gone.
fn list(
    report: &ProgramReport,
    loaded: &Loaded,
    jited: bool,
    send: impl Fn(Instructions) -> bool,
) -> std::io::Result<bool> {
    let dumped = instructions::instructions(loaded.fd.as_fd())?;
    let (btf, mut parts) = subprograms(dumped.btf_id, &dumped.functions)?;
    if parts.is_empty() {
        parts.push(Subprogram { name: loaded.function.clone(), ..Subprogram::default() });
    }
    let insns = written(&dumped);
    let is_helper = |insn: &&Insn| insn.is_call() && insn.src() != pseudo::CALL;
    let immediates: BTreeSet<i32> = insns.iter().filter(is_helper).map(|insn| insn.imm).collect();
    let known = Known {
        callees: kallsyms::callees(&immediates)?,
        maps: report.maps.iter().map(|map| (map.id, map.name.clone())).collect(),
        functions: parts.iter().map(|part| (part.offset as usize, part.name.clone())).collect(),
    };
    let source = |line: &Line| {
        let (line, btf) = (*line, btf.as_ref()?);
        let text = btf.string(line.text).trim().to_owned();
        let file = btf.string(line.file).to_owned();
        Some(SourceLine { file, line: line.place >> 10, column: line.place & 0x3ff, text })
    };
    let lines: BTreeMap<u32, &Line> = dumped.lines.iter().map(|line| (line.slot, line)).collect();
    for (index, part) in parts.iter().enumerate() {
        let begin = part.offset as usize;
        let end = parts.get(index + 1).map_or(insns.len(), |next| next.offset as usize).min(insns.len());
        let frame = Instructions {
            function: loaded.function.clone(),
            subprogram: Some(part.clone()),
            ..Instructions::default()
        };
        let (mut at, mut listed) = (begin, Vec::new());
        while at < end {
            let slots = if insns[at].is_ld_imm64() { 2 } else { 1 };
            let raw = insns[at..(at + slots).min(end)].iter().flat_map(|insn| insn.to_bytes()).collect::<Vec<u8>>();
            let text = disasm::text(insns[at], insns.get(at + 1).copied(), at, &known);
            let line = lines.get(&(at as u32)).and_then(|line| source(line));
            listed.push(Instruction { index: at as u32, raw: raw.into(), text, line });
            at += slots;
            if listed.len() == AT_ONCE && at < end {
                let instructions = std::mem::take(&mut listed);
                if !send(Instructions { instructions, more: true, ..frame.clone() }) {
                    return Ok(false);
                }
            }
        }
        let machine = if jited { machine_code(&dumped, index, source) } else { None };
        let last = machine.unwrap_or_default();
        if !send(Instructions { function: frame.function, subprogram: frame.subprogram, instructions: listed, ..last })
        {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The instructions with calls of the program's own functions as they were written: once compiled, the kernel keeps the
/// distance where the offset is.
fn written(dumped: &Dumped) -> Vec<Insn> {
    let mut insns = Insn::read_all(&dumped.translated);
    if !dumped.jited.is_empty() || !dumped.jited_functions.is_empty() {
        for insn in insns.iter_mut().filter(|insn| insn.is_local_call()) {
            (insn.imm, insn.off) = (insn.off.into(), 0);
        }
    }
    insns
}

/// How the CPU runs a function: its code, and its lines.
fn machine_code(dumped: &Dumped, index: usize, source: impl Fn(&Line) -> Option<SourceLine>) -> Option<Instructions> {
    let (address, len) = *dumped.jited_functions.get(index)?;
    let before: usize = dumped.jited_functions[..index].iter().map(|(_, len)| *len as usize).sum();
    let code = dumped.jited.get(before..before + len as usize)?;
    let lines = dumped.jited_lines.iter().zip(&dumped.lines);
    let own = lines.filter(|(at, _)| (address..address + u64::from(len)).contains(at));
    let jited_lines = own.map(|(at, line)| JitedLine { offset: (at - address) as u32, line: source(line) }).collect();
    Some(Instructions {
        jited: code.to_vec().into(),
        jited_address: address,
        machine: std::env::consts::ARCH.to_owned(),
        jited_lines,
        ..Instructions::default()
    })
}

struct Known {
    callees: BTreeMap<i32, String>,
    maps: BTreeMap<u32, String>,
    functions: BTreeMap<usize, String>,
}

impl Names for Known {
    fn call(&self, imm: i32) -> Option<String> {
        let known = self.callees.get(&imm).cloned();
        known.or_else(|| (imm == TAIL_CALL).then(|| "bpf_tail_call".to_owned()))
    }

    fn map(&self, id: u32) -> Option<String> {
        self.maps.get(&id).cloned()
    }

    fn function(&self, slot: usize) -> Option<String> {
        self.functions.get(&slot).cloned()
    }
}
