//! What iterators write, run as they are read.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::pin::Pin;

use skep_crds::Reason;
use skep_kernel::Host;
use skep_kernel::seam::Kernel;
use skep_kernel::sys::program;
use skep_object::kind::Kind;
use skep_proto::v1::{IteratorText, ProgramReport, ReadIteratorRequest};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::dump::STALLED;
use super::programs::open;
use super::{InspectorService, QUEUE, failed};
use crate::grpc::refuse;
use crate::images::blocking;

/// Bytes taken at once: the kernel hands out whole objects' texts of up to eight pages.
const AT_ONCE: usize = 32 << 10;

/// A stream of text.
pub type Texts = Pin<Box<dyn Stream<Item = Result<IteratorText, Status>> + Send>>;

impl InspectorService {
    pub(super) async fn iterators(&self, request: ReadIteratorRequest) -> Result<Texts, Status> {
        let (host, report) = (self.host.clone(), self.report(request.program.as_ref())?);
        let opened = blocking(move || opened(&host, &report, &request.function)).await.map_err(failed)??;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let turns = self.listing.clone();
        tokio::spawn(async move {
            // As with instructions: a thread waits as long as its client reads slowly.
            let Ok(turn) = turns.acquire_owned().await else { return };
            let read = blocking(move || {
                let put = |text| {
                    Handle::current().block_on(timeout(STALLED, sender.send(text))).is_ok_and(|sent| sent.is_ok())
                };
                opened.into_iter().all(|(function, file)| read(&function, file, put))
            });
            if let Err(error) = read.await {
                tracing::warn!(%error, "reading iterators");
            }
            drop(turn);
        });
        Ok(Box::pin(ReceiverStream::new(receiver)))
    }
}

/// The iterators that are attached, of one function or of all, in the order of their functions. Blocks.
fn opened(host: &Host, report: &ProgramReport, function: &str) -> Result<Vec<(String, File)>, Status> {
    let hooks = || report.hooks.iter().filter(|hook| hook.hook.split(' ').next() == Some(Kind::Iter.row().name));
    let names: Vec<&str> = hooks().map(|hook| hook.function.as_str()).collect();
    let wanted = |name: &str| names.contains(&name) && (function.is_empty() || name == function);
    let loaded = open(host, report).into_iter().filter(|one| wanted(&one.function));
    let of: BTreeMap<u32, String> =
        loaded.filter_map(|one| Some((program::info(one.fd.as_fd()).ok()?.id, one.function))).collect();
    let links = host.observe(&report.uid).map_err(failed)?.links;
    let mut opened = Vec::new();
    for (link, seen) in links {
        if let Some(function) = of.get(&seen.program_id) {
            opened.push((function.clone(), File::from(host.read_iterator(&report.uid, &link).map_err(failed)?)));
        }
    }
    opened.sort_by(|(a, _), (b, _)| a.cmp(b));
    if opened.is_empty() {
        let iterators = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        let what = if function.is_empty() { "iterator".to_owned() } else { format!("iterator {function}") };
        let message = format!(
            "{}/{} has no {what} attached; of its functions these are iterators: {iterators}",
            report.namespace, report.name
        );
        return Err(refuse(Code::NotFound, Reason::TargetNotFound, message));
    }
    Ok(opened)
}

/// To its end; `false` if the client is gone or something failed. Blocks.
fn read(function: &str, mut file: File, put: impl Fn(Result<IteratorText, Status>) -> bool) -> bool {
    let mut buffer = vec![0; AT_ONCE];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return true,
            Ok(taken) => {
                let data = buffer[..taken].to_vec().into();
                if !put(Ok(IteratorText { data, function: function.to_owned() })) {
                    return false;
                }
            }
            // The program had nothing to show for some objects in a row: the kernel wants to be asked again.
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(e) => {
                put(Err(failed(format!("reading {function}: {e}"))));
                return false;
            }
        }
    }
}
