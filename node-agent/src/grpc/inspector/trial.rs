//! Functions that are tried beside whatever runs: by the verifier, and on packets.
//!
//! **Guarantees.** What is loaded for a trial has maps of its own and goes with it. Nothing is fetched: the image is in the
//! node's cache.

use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;

use prost::bytes::Bytes;
use skep_crds::Reason;
use skep_image::Auth;
use skep_kernel::load::Verified;
use skep_kernel::seam::LoadRequest;
use skep_kernel::sys::program::{self, PacketRun, ProgramInfo};
use skep_kernel::{Host, KernelError, sys};
use skep_proto::v1::{FunctionVerdict, ProgramRef, TestProgramRequest, TestRun, VerifyProgramRequest};
use tokio_stream::Stream;
use tonic::{Code, Status};

use super::programs::open;
use super::{InspectorService, failed, no_program, refuse};
use crate::binaries::HostBinaries;
use crate::error::ProgramError;
use crate::images::blocking;
use crate::neighbours::NodeFunctions;
use crate::plan::function_of;
use crate::prepare::prepare;
use crate::spec;
use crate::targets::Lookup;

/// Packets of a test, and runs on all of them together.
const PACKETS: usize = 1024;
const RUNS: u64 = 10_000_000;
/// Bytes of a log in a frame.
const LOG: usize = 1 << 20;

/// A stream of verdicts.
pub type Verdicts = Pin<Box<dyn Stream<Item = Result<FunctionVerdict, Status>> + Send>>;

impl InspectorService {
    /// What the verifier says of the revision that is wanted.
    pub(super) async fn verify(&self, request: VerifyProgramRequest) -> Result<Verdicts, Status> {
        let function = request.function.clone();
        let verified = self.with_request(request.program, |host, request| host.verify(request)).await?;
        let mut verified = verified.map_err(refused)?;
        let names: Vec<String> = verified.iter().map(|one| one.function.clone()).collect();
        verified.retain(|one| function.is_empty() || one.function == function);
        if verified.is_empty() {
            return Err(no_function(&function, &names));
        }
        Ok(Box::pin(tokio_stream::iter(verified.into_iter().flat_map(verdict).map(Ok))))
    }

    /// Does something with what the wanted revision would load. Nothing is fetched: the image is in the node's cache.
    async fn with_request<T: Send + 'static>(
        &self,
        program: Option<ProgramRef>,
        work: impl FnOnce(&Host, &LoadRequest) -> Result<T, KernelError> + Send + 'static,
    ) -> Result<Result<T, ProgramError>, Status> {
        let report = self.report(program.as_ref())?;
        let (service, uid) = (self.clone(), report.uid.clone());
        let record = blocking(move || service.shared.store.get(&uid)).await.map_err(failed)?.map_err(failed)?;
        let Some(desired) = record else { return Err(no_program(&program.unwrap_or_default())) };
        if let Some(why) = desired.unresolved.clone() {
            return Err(refused(ProgramError::Unresolved(why)));
        }
        let spec = spec::decode(&desired.api_version, &desired.spec).map_err(refused)?;
        let object = self.shared.images.object(&spec.image.reference, &desired.digest, &Auth::Anonymous, false);
        let object = object.await.map_err(refused)?;
        let _turn = self.trials.acquire().await.map_err(failed)?;
        let (service, view) = (self.clone(), self.shared.view.borrow().clone());
        let done = blocking(move || {
            let functions = NodeFunctions { neighbours: &service.shared.neighbours, kernel: &*service.shared.kernel };
            let lookup = Lookup { binaries: &HostBinaries, functions: &functions };
            let prepared = prepare(&spec, &desired.namespace, &desired.load, object, &view, lookup)?;
            let done = work(&service.host, &prepared.request)?;
            sys::trim_heap();
            Ok(done)
        });
        done.await.map_err(failed)
    }

    /// Runs a function on packets; `who` asked for it.
    pub(super) async fn test(&self, request: TestProgramRequest, who: &str) -> Result<Vec<TestRun>, Status> {
        let TestProgramRequest { program, function, packets, live, repeat, contexts } = request;
        if !packets.is_empty() && !contexts.is_empty() {
            return Err(Status::invalid_argument("packets or contexts: a program takes one of them"));
        }
        let (count, what) = match contexts.len() {
            0 => (packets.len(), "packets"),
            some => (some, "contexts"),
        };
        if !(1..=PACKETS).contains(&count) {
            let message = format!("{count} {what}: one at least, and at most {PACKETS}");
            return Err(Status::invalid_argument(message));
        }
        if repeat > 1 && !contexts.is_empty() {
            return Err(Status::invalid_argument("repeat: with packets only; each context is run once"));
        }
        if let Some(long) = contexts.iter().find(|context| context.len() > program::MAX_CONTEXT) {
            let message = format!("a context of {} bytes: at most {}", long.len(), program::MAX_CONTEXT);
            return Err(Status::invalid_argument(message));
        }
        if u64::from(repeat) > RUNS / count as u64 {
            let message = format!("repeat {repeat}, {count} packets: at most {RUNS} runs in all");
            return Err(Status::invalid_argument(message));
        }
        let run = move |fd: OwnedFd| -> Result<Vec<TestRun>, Status> {
            let info = program::info(fd.as_fd()).map_err(failed)?;
            let on_context = |(index, context): (usize, &Bytes)| {
                let ran = program::run_on(fd.as_fd(), context).map_err(|e| takes_no(&info, index, context, &e))?;
                let (return_value, context) = (ran.0, ran.1.into());
                Ok(TestRun { return_value, context, ..TestRun::default() })
            };
            if !contexts.is_empty() {
                return contexts.iter().enumerate().map(on_context).collect();
            }
            let each = packets.iter().enumerate().map(|(index, packet)| {
                let run = program::test_run(fd.as_fd(), packet, repeat.max(1));
                run.map(|run| test_run_message(info.program_type, run))
                    .map_err(|e| cannot_run(&info, index, packet, &e))
            });
            each.collect()
        };
        if live {
            let (host, report) = (self.host.clone(), self.report(program.as_ref())?);
            let _turn = self.trials.acquire().await.map_err(failed)?;
            let (of, said) =
                (report.clone(), format!("{who} ran function {function}, with its maps, on packets of a test"));
            let ran = blocking(move || {
                let loaded = open(&host, &report);
                let names: Vec<String> = loaded.iter().map(|one| one.function.clone()).collect();
                let found = loaded.into_iter().find(|one| one.function == function);
                run(found.ok_or_else(|| no_function(&function, &names))?.fd)
            });
            let ran = ran.await.map_err(failed)?;
            if ran.is_ok() {
                self.say(&of, said);
            }
            return ran;
        }
        // Its maps live as long as it does.
        let ran = self.with_request(program, move |host, request| {
            let mut loaded = host.copy(request)?;
            let names: Vec<String> = loaded.programs.keys().filter_map(|pin| function_of(pin)).collect();
            let pin = loaded.programs.keys().find(|pin| function_of(pin).as_ref() == Some(&function)).cloned();
            let fd = pin.and_then(|pin| loaded.programs.remove(&pin));
            Ok(fd.ok_or_else(|| no_function(&function, &names)).and_then(run))
        });
        ran.await?.map_err(refused)?
    }
}

fn refused(error: ProgramError) -> Status {
    refuse(Code::FailedPrecondition, error.reason(), error)
}

pub fn no_function(function: &str, names: &[String]) -> Status {
    let message = match names {
        [] => "its selectors match nothing on this node: nothing is loaded".to_owned(),
        _ => format!("no function {function} is loaded; there are {}", names.join(", ")),
    };
    refuse(Code::NotFound, Reason::ProgramUnknown, message)
}

fn cannot_run(info: &ProgramInfo, index: usize, packet: &[u8], error: &std::io::Error) -> Status {
    let kind = program::type_name(info.program_type);
    match error.kind() {
        ErrorKind::Unsupported => {
            let message = format!("{}: the kernel runs no programs of type {kind} on packets", info.name);
            refuse(Code::FailedPrecondition, Reason::KernelUnsupported, message)
        }
        ErrorKind::InvalidInput => Status::invalid_argument(format!(
            "packet {index}: the kernel takes none of {} bytes for a program of type {kind}: it begins with the link layer, of 14 bytes at least",
            packet.len()
        )),
        _ => failed(format!("packet {index}: {error}")),
    }
}

fn takes_no(info: &ProgramInfo, index: usize, context: &[u8], error: &std::io::Error) -> Status {
    let (kind, len) = (program::type_name(info.program_type), context.len());
    match error.kind() {
        ErrorKind::Unsupported => {
            let message = format!("{}: the kernel runs no programs of type {kind} on a context", info.name);
            refuse(Code::FailedPrecondition, Reason::KernelUnsupported, message)
        }
        ErrorKind::InvalidInput => Status::invalid_argument(format!(
            "context {index}: the kernel takes none of {len} bytes for {}, of type {kind}: of a raw tracepoint eight for each argument that the program reads, of a syscall program as many as it reads",
            info.name
        )),
        _ => failed(format!("context {index}: {error}")),
    }
}

fn test_run_message(program_type: u32, run: PacketRun) -> TestRun {
    let PacketRun { value, data, duration_ns } = run;
    let (verdict, packet) = (verdict_of(program_type, value).into(), data.into());
    TestRun { return_value: value, verdict, packet, duration_ns, ..TestRun::default() }
}

/// enum xdp_action; TC_ACT_* of linux/pkt_cls.h, whose first are those of tcx too.
fn verdict_of(program_type: u32, value: u32) -> &'static str {
    const XDP: [&str; 5] = ["XDP_ABORTED", "XDP_DROP", "XDP_PASS", "XDP_TX", "XDP_REDIRECT"];
    const TC: [&str; 9] = [
        "TC_ACT_OK",
        "TC_ACT_RECLASSIFY",
        "TC_ACT_SHOT",
        "TC_ACT_PIPE",
        "TC_ACT_STOLEN",
        "TC_ACT_QUEUED",
        "TC_ACT_REPEAT",
        "TC_ACT_REDIRECT",
        "TC_ACT_TRAP",
    ];
    let named = |names: &[&'static str]| names.get(value as usize).copied().unwrap_or_default();
    match program::type_name(program_type).as_str() {
        "xdp" => named(&XDP),
        "sched_cls" | "sched_act" if value == u32::MAX => "TC_ACT_UNSPEC",
        "sched_cls" | "sched_act" => named(&TC),
        "cgroup_skb" => named(&["drop", "pass"]),
        _ => "",
    }
}

/// A verdict, in frames that every client takes.
fn verdict(verified: Verified) -> Vec<FunctionVerdict> {
    let Verified { function, refused, log } = verified;
    let (reason, message) = refused.map(|error| (error.reason().to_owned(), error.to_string())).unwrap_or_default();
    let whole =
        FunctionVerdict { function, accepted: reason.is_empty(), reason, message, ..FunctionVerdict::default() };
    let mut frames = Vec::new();
    let mut rest = log.as_str();
    loop {
        let end = (0..=rest.len().min(LOG)).rev().find(|at| rest.is_char_boundary(*at)).unwrap_or(rest.len());
        let (part, after) = rest.split_at(end);
        frames.push(FunctionVerdict { log: part.to_owned(), more: !after.is_empty(), ..whole.clone() });
        if after.is_empty() {
            return frames;
        }
        rest = after;
    }
}
