//! What programs print: bpf_printk, and the streams that programs have of their own since Linux 6.17.
//!
//! **Guarantees.** bpf_printk is read from a trace instance of the client's own, which nobody else misses anything by. A
//! stream is taken by whoever reads it.

use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use skep_crds::Reason;
use skep_kernel::printk::Printk;
use skep_kernel::sys::program::{self, Stream as Text};
use skep_proto::v1::tail_output_request::Source;
use skep_proto::v1::{OutputFrame, ProgramReport, TailOutputRequest};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use super::dump::STALLED;
use super::programs::open;
use super::trial::no_function;
use super::{InspectorService, QUEUE, failed};
use crate::grpc::auth::GET_EVENTS;
use crate::grpc::refuse;
use crate::images::blocking;

/// How long a reader waits for more before it looks whether somebody still wants it.
const PATIENCE: Duration = Duration::from_millis(200);
/// Bytes taken of a stream at once: the kernel keeps 100,000 of each.
const MOST: usize = 128 << 10;

/// A stream of lines.
pub type Output = Pin<Box<dyn Stream<Item = Result<OutputFrame, Status>> + Send>>;
type Sender = mpsc::Sender<Result<OutputFrame, Status>>;

impl InspectorService {
    pub(super) async fn output(&self, request: Request<TailOutputRequest>) -> Result<Response<Output>, Status> {
        // What is printed by bpf_printk may be any program's.
        let namespace = match request.get_ref().source() {
            Source::Printk => String::new(),
            _ => request.get_ref().program.as_ref().map(|p| p.namespace.clone()).unwrap_or_default(),
        };
        self.authorizer.check(&request, &namespace, GET_EVENTS).await?;
        let request = request.into_inner();
        let (sender, receiver) = mpsc::channel(QUEUE);
        match request.source() {
            Source::Unspecified => return Err(Status::invalid_argument("source is missing: printk, stdout or stderr")),
            Source::Printk => self.printk(sender).await?,
            Source::Stdout => self.streams(request, Text::Stdout, sender).await?,
            Source::Stderr => self.streams(request, Text::Stderr, sender).await?,
        }
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn printk(&self, sender: Sender) -> Result<(), Status> {
        let Ok(place) = Arc::clone(&self.printing).try_acquire_owned() else {
            let message = "as many clients as may follow bpf_printk do so already: each has trace buffers of its own";
            return Err(refuse(Code::ResourceExhausted, Reason::LimitReached, message));
        };
        let printk = blocking(Printk::open).await.map_err(failed)?.map_err(|e| {
            let message = format!(
                "a trace instance for bpf_printk cannot be made: {e} (tracefs at /sys/kernel/tracing, writable, Linux 5.9)"
            );
            refuse(Code::FailedPrecondition, Reason::KernelUnsupported, message)
        })?;
        tokio::task::spawn_blocking(move || {
            follow(&sender, printk);
            drop(place);
        });
        Ok(())
    }

    async fn streams(&self, request: TailOutputRequest, text: Text, sender: Sender) -> Result<(), Status> {
        let (host, report) = (self.host.clone(), self.report(request.program.as_ref())?);
        let (service, function) = (self.clone(), request.function);
        let (of, wanted) = (report.clone(), function.clone());
        let first = blocking(move || {
            let loaded = open(&host, &of);
            let names: Vec<String> = loaded.iter().map(|one| one.function.clone()).collect();
            let found = loaded.iter().find(|one| wanted.is_empty() || one.function == wanted);
            let found = found.ok_or_else(|| no_function(&wanted, &names))?;
            // With no room nothing is taken: it tells whether the kernel knows streams.
            program::take_stream(found.fd.as_fd(), text, 0).map_err(|e| unsupported(&e))
        });
        first.await.map_err(failed)??;
        // No thread waits for it: whoever follows may be many, and read slowly.
        let of = report.clone();
        tokio::spawn(async move {
            while !sender.is_closed() {
                let (service, report, function) = (service.clone(), report.clone(), function.clone());
                let frames = blocking(move || taken(&service, &report, &function, text)).await;
                let Ok(Some(frames)) = frames else {
                    let message = format!("{}/{} runs here no more", of.namespace, of.name);
                    let _gone = sender.send(Err(refuse(Code::Aborted, Reason::TargetNotFound, message))).await;
                    return;
                };
                for frame in frames {
                    if sender.send(Ok(frame)).await.is_err() {
                        return;
                    }
                }
                tokio::time::sleep(PATIENCE).await;
            }
        });
        Ok(())
    }
}

fn unsupported(error: &std::io::Error) -> Status {
    let message = format!("the kernel has no streams of programs: {error} (Linux 6.17 and later have them)");
    refuse(Code::FailedPrecondition, Reason::KernelUnsupported, message)
}

/// As long as the client is there. Blocks.
fn follow(sender: &Sender, mut printk: Printk) {
    while !sender.is_closed() {
        let frame = match printk.take() {
            Ok(printed) if printed.lines.is_empty() && printed.lost == 0 => {
                if printk.wait(PATIENCE).is_err() {
                    std::thread::sleep(PATIENCE);
                }
                continue;
            }
            Ok(printed) => Ok(OutputFrame { lines: printed.lines, lost: printed.lost, ..OutputFrame::default() }),
            Err(e) => Err(failed(format!("reading the trace pipe: {e}"))),
        };
        let last = frame.is_err();
        // A place that somebody does not use is another's.
        let sent = Handle::current().block_on(timeout(STALLED, sender.send(frame)));
        if last || !sent.is_ok_and(|sent| sent.is_ok()) {
            return;
        }
    }
}

/// What the functions that run now have printed; `None`: the program is gone. Blocks.
fn taken(service: &InspectorService, report: &ProgramReport, function: &str, text: Text) -> Option<Vec<OutputFrame>> {
    let report = service.shared.reports.get(&report.uid)?;
    let mut frames = Vec::new();
    for loaded in open(&service.host, &report) {
        if !function.is_empty() && loaded.function != function {
            continue;
        }
        // One that was replaced just now has nothing more to say.
        let bytes = program::take_stream(loaded.fd.as_fd(), text, MOST).unwrap_or_default();
        if !bytes.is_empty() {
            let lines = String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect();
            frames.push(OutputFrame { lines, function: loaded.function, lost: 0 });
        }
    }
    Some(frames)
}
