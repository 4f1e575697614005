//! What the kernel says of the functions that run, and how often they do.
//!
//! **Guarantees.** The kernel counts runs only while somebody watches them, by one descriptor for all who do.

use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use skep_crds::Reason;
use skep_kernel::sys::program::{self, ProgramFacts};
use skep_kernel::{Host, Kernel, sys};
use skep_proto::v1::{
    FunctionFacts, FunctionLink, FunctionMap, FunctionStats, ProgramRef, ProgramReport, RunStats, StatsFrame,
    WatchStatsRequest,
};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::insns::subprograms;
use super::{InspectorService, QUEUE, failed, refuse};
use crate::images::blocking;
use crate::plan::function_of;

/// Between two frames, at least, and where nothing is said.
const SHORTEST: Duration = Duration::from_millis(100);
const USUAL: Duration = Duration::from_secs(1);

/// A stream of statistics.
pub type Stats = Pin<Box<dyn Stream<Item = Result<StatsFrame, Status>> + Send>>;

/// What makes the kernel count runs.
#[derive(Debug, Default)]
pub struct Counting(Mutex<Weak<OwnedFd>>);

impl Counting {
    /// As long as the descriptor is held, runs are counted.
    fn begin(&self) -> std::io::Result<Arc<OwnedFd>> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counting) = held.upgrade() {
            return Ok(counting);
        }
        let counting = Arc::new(program::count_runs()?);
        *held = Arc::downgrade(&counting);
        Ok(counting)
    }
}

/// A function that is loaded.
pub struct Loaded {
    pub program: ProgramRef,
    pub function: String,
    pub fd: OwnedFd,
}

impl InspectorService {
    /// What is loaded of those programs.
    pub(super) async fn functions(&self, namespace: &str, name: &str) -> Result<Vec<FunctionFacts>, Status> {
        let (host, reports) = (self.host.clone(), self.reports(namespace, name));
        let described = move || {
            let mut all = Vec::new();
            for report in &reports {
                for loaded in open(&host, report) {
                    // One that went meanwhile is not there any more.
                    all.extend(describe(report, &loaded).ok());
                }
            }
            all
        };
        blocking(described).await.map_err(failed)
    }

    /// Frames at an interval.
    pub(super) fn stats(&self, request: WatchStatsRequest) -> Result<Stats, Status> {
        let interval = match Duration::from_millis(request.interval_ms.into()) {
            Duration::ZERO => USUAL,
            given if given < SHORTEST => {
                let message = format!("interval_ms {}: at least {}", request.interval_ms, SHORTEST.as_millis());
                return Err(Status::invalid_argument(message));
            }
            given => given,
        };
        let counting = self.counting.begin().map_err(|error| {
            let message = format!("the kernel does not count runs: {error} (Linux 5.8 and later do)");
            refuse(Code::FailedPrecondition, Reason::KernelUnsupported, message)
        })?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(watch(self.clone(), request, interval, counting, sender));
        Ok(Box::pin(ReceiverStream::new(receiver)))
    }
}

async fn watch(
    service: InspectorService,
    request: WatchStatsRequest,
    interval: Duration,
    _counting: Arc<OwnedFd>,
    sender: mpsc::Sender<Result<StatsFrame, Status>>,
) {
    let mut ticks = tokio::time::interval(interval);
    // A client that reads slowly gets fewer frames, not all of them late.
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut before, mut told) = (None, 0u64);
    while request.frames == 0 || told <= request.frames {
        tokio::select! {
            () = sender.closed() => return,
            _ = ticks.tick() => {}
        }
        let (host, reports) = (service.host.clone(), service.reports(&request.namespace, &request.name));
        let now = Instant::now();
        let counted =
            move || reports.iter().flat_map(|report| open(&host, report)).filter_map(|l| count(l).ok()).collect();
        let frame = match blocking(counted).await {
            Ok(functions) => {
                let elapsed = before.map_or(Duration::ZERO, |before| now - before);
                Ok(StatsFrame { elapsed_us: elapsed.as_micros() as u64, functions })
            }
            Err(error) => Err(failed(error)),
        };
        (before, told) = (Some(now), told + 1);
        if sender.send(frame).await.is_err() {
            return;
        }
    }
}

/// The programs of the load that runs. Blocks.
pub fn open(host: &Host, report: &ProgramReport) -> Vec<Loaded> {
    let Ok(observed) = host.observe(&report.uid) else { return Vec::new() };
    let runs = |id| report.functions.iter().any(|function| function.id == id);
    let load = observed.loads.iter().find(|(_, load)| load.programs.values().any(|program| runs(program.id)));
    let Some((load, programs)) = load.map(|(name, load)| (name, &load.programs)) else { return Vec::new() };
    let program = ProgramRef { namespace: report.namespace.clone(), name: report.name.clone() };
    let opened = programs.keys().filter_map(|pin| {
        let fd = host.open_program(&report.uid, load, pin).ok()?;
        Some(Loaded { program: program.clone(), function: function_of(pin)?, fd })
    });
    opened.collect()
}

fn count(loaded: Loaded) -> std::io::Result<FunctionStats> {
    let Loaded { program, function, fd } = loaded;
    let (info, stats) = (program::info(fd.as_fd())?, program::stats(fd.as_fd())?);
    Ok(FunctionStats { program: Some(program), function, id: info.id, stats: Some(stats_message(stats)) })
}

fn stats_message(stats: program::RunStats) -> RunStats {
    let program::RunStats { count, time_ns, recursion_misses } = stats;
    RunStats { run_count: count, run_time_ns: time_ns, recursion_misses }
}

fn describe(report: &ProgramReport, loaded: &Loaded) -> std::io::Result<FunctionFacts> {
    let facts = program::facts(loaded.fd.as_fd())?;
    let ProgramFacts {
        info,
        loaded_at,
        uid,
        gpl_compatible,
        translated_len,
        jited_len,
        maps,
        btf_id,
        verified_insns,
        stats,
    } = facts;
    let name = |id: u32| report.maps.iter().find(|map| map.id == id).map(|map| map.name.clone()).unwrap_or_default();
    // Links are of functions: of one that is loaded in variants each has all.
    let hooks = report.hooks.iter().filter(|hook| hook.function == loaded.function);
    let links = hooks.flat_map(|hook| {
        let each = hook.link_ids.iter().zip(&hook.names);
        each.map(|(id, target)| FunctionLink { id: *id, hook: hook.hook.clone(), target: target.clone() })
    });
    Ok(FunctionFacts {
        program: Some(loaded.program.clone()),
        function: loaded.function.clone(),
        id: info.id,
        tag: info.tag,
        r#type: program::type_name(info.program_type),
        loaded_at: wall_clock(loaded_at),
        uid,
        gpl_compatible,
        translated_bytes: translated_len,
        jited_bytes: jited_len,
        memlock: sys::fdinfo(loaded.fd.as_fd(), "memlock").unwrap_or(0),
        maps: maps.into_iter().map(|id| FunctionMap { name: name(id), id }).collect(),
        links: links.collect(),
        btf_id,
        verified_insns,
        stats: Some(stats_message(stats)),
        subprograms: subprograms(btf_id, &program::subprograms(loaded.fd.as_fd())?)?.1,
    })
}

/// From nanoseconds since boot. Empty where the clock cannot be read.
fn wall_clock(since_boot: u64) -> String {
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let uptime: Option<f64> = uptime.split(' ').next().and_then(|text| text.parse().ok());
    let age = uptime.map(|uptime| Duration::from_secs_f64((uptime - since_boot as f64 / 1e9).max(0.0)));
    let loaded = age.and_then(|age| SystemTime::now().checked_sub(age));
    loaded.and_then(|time| jiff::Timestamp::try_from(time).ok()).map(|time| time.to_string()).unwrap_or_default()
}
