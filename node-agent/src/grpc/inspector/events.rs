//! Records of a ring buffer or a perf event array as a stream, filtered and sampled for each client on the node.

use std::sync::Arc;
use std::time::{Duration, Instant};

use skep_crds::Reason;
use skep_kernel::events::EventReader;
use skep_kernel::functions;
use skep_kernel::remains::holders_of_map;
use skep_kernel::sys::map::{a_type, types};
use skep_object::btf::desc::TypeDesc;
use skep_object::btf::filter::Filter;
use skep_object::btf::{Btf, Kind};
use skep_proto::v1::{
    DecodedEvents, EventBatch, EventEnd, EventFrame, EventSchema, Loss, ProgramReport, TailEventsRequest,
    event_frame::Frame,
};
use skep_proto::value::from_json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use super::drops::Drops;
use super::{InspectorService, QUEUE, failed, map_info};
use crate::events::{Batch, Subscription};
use crate::grpc::auth::GET_EVENTS;
use crate::grpc::frames::type_message;
use crate::grpc::refuse;
use crate::images::blocking;

/// How often a stream looks whether its map still is the program's.
const LOOK: Duration = Duration::from_secs(1);

/// The stream of frames.
pub type Events = ReceiverStream<Result<EventFrame, Status>>;

impl InspectorService {
    pub(super) async fn tail(&self, request: Request<TailEventsRequest>) -> Result<Response<Events>, Status> {
        let namespace = request.get_ref().program.as_ref().map(|p| p.namespace.clone()).unwrap_or_default();
        self.authorizer.check(&request, &namespace, GET_EVENTS).await?;
        let request = request.into_inner();
        let report = self.report(request.program.as_ref())?;
        let reader = self.open(&report, &request.map).await?;
        let map_type = reader.info().map_type;
        if !EventReader::reads(map_type) {
            let remedy = match map_type {
                types::USER_RINGBUF => "its records go to programs: put some in (kubectl skep maps put)",
                _ => "it holds no records, as ring buffers and perf event arrays do: dump it (kubectl skep maps dump)",
            };
            let message = format!("map {}, {}, has no events: {remedy}", request.map, a_type(map_type));
            return Err(refuse(Code::FailedPrecondition, Reason::KernelUnsupported, message));
        }
        let wish = Wish::new(&request, &report).await?;
        let drops = self.drops(&report, &request.map).await?.map(Arc::new);
        let schema = EventSchema {
            map: Some(map_info(&report, &request.map, &reader)),
            r#type: wish.desc.as_ref().map(type_message),
            loss_is_known: map_type == types::PERF_EVENT_ARRAY || drops.is_some(),
        };
        let (readers, host, types) = (self.events.clone(), self.host.clone(), self.types.clone());
        let id = reader.info().id;
        let (uid, map, consume) = (report.uid.clone(), request.map.clone(), request.consume);
        let subscription = blocking(move || {
            if !consume && !readers.reads(id) {
                unread(id, &map)?;
            }
            let fd = super::open_map(&host, &types, &uid, &map, id)?.into_fd();
            readers.subscribe(id, || EventReader::open(fd)).map_err(|e| failed(format!("map {map}: {e}")))
        })
        .await
        .map_err(failed)??;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let shared = self.shared.clone();
        let ours = move || shared.reports.get(&report.uid).is_some_and(|now| now.maps.iter().any(|m| m.id == id));
        let mut dropped = Dropped { drops, seen: 0 };
        // What is counted so far was missed by others.
        dropped.more().await;
        let tail = Tail { sender, pace: Pace::new(wish.rate), wish, seen: 0, sent: 0, lost: Loss::default(), dropped };
        tokio::spawn(tail.run(schema, subscription, ours));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Refuses a map that some process may read itself: each record goes to one reader.
fn unread(id: u32, map: &str) -> Result<(), Status> {
    let holders = holders_of_map(id);
    if holders.is_empty() {
        return Ok(());
    }
    let message = format!(
        "map {map} is open in {}, which would not get the records that are read here; ask with consume to take them",
        holders.join(", ")
    );
    Err(refuse(Code::FailedPrecondition, Reason::HookBusy, message))
}

/// What a client wants of the records.
#[derive(Debug)]
struct Wish {
    desc: Option<TypeDesc>,
    decode: bool,
    filter: Option<Filter>,
    one_in: u64,
    limit: u64,
    /// Records a second; 0: all.
    rate: u64,
}

impl Wish {
    async fn new(request: &TailEventsRequest, report: &ProgramReport) -> Result<Self, Status> {
        let desc = match request.r#type.as_str() {
            "" => None,
            name => Some(described(report, name).await?),
        };
        let filter = match (request.filter.as_str(), &desc) {
            ("", _) => None,
            (text, Some(desc)) => {
                Some(Filter::parse(text, &[("", desc)]).map_err(|e| Status::invalid_argument(e.to_string()))?)
            }
            (_, None) => return Err(untyped("a filter")),
        };
        if request.decode && desc.is_none() {
            return Err(untyped("decode"));
        }
        let one_in = u64::from(request.one_in.max(1));
        let rate = request.rate.into();
        Ok(Wish { desc, decode: request.decode, filter, one_in, limit: request.limit, rate })
    }
}

fn untyped(what: &str) -> Status {
    Status::invalid_argument(format!("{what} needs the records' type: name their struct in `type`"))
}

/// A struct of the program's types.
pub async fn described(report: &ProgramReport, name: &str) -> Result<TypeDesc, Status> {
    let ids: Vec<u32> = report.functions.iter().map(|function| function.id).collect();
    let btf = blocking(move || ids.into_iter().find_map(|id| functions::btf_of(id).ok().flatten())).await;
    let btf: Btf = btf.map_err(failed)?.ok_or_else(|| {
        let message = "its programs were loaded without types; build the object with -g (Rust: debuginfo=2, --btf)";
        refuse(Code::FailedPrecondition, Reason::ObjectInvalid, message)
    })?;
    let kinds = [Kind::Struct, Kind::Union, Kind::Typedef];
    let found = kinds.into_iter().find_map(|kind| btf.find(name, kind));
    found.map(|id| TypeDesc::of(&btf, id)).ok_or_else(|| {
        let message = format!("type {name}: the program's types have no such struct, union or typedef");
        refuse(Code::NotFound, Reason::TargetNotFound, message)
    })
}

/// One client's stream.
struct Tail {
    sender: mpsc::Sender<Result<EventFrame, Status>>,
    wish: Wish,
    /// Records that came, and that were sent.
    seen: u64,
    sent: u64,
    /// All that is known to be missing.
    lost: Loss,
    pace: Pace,
    dropped: Dropped,
}

/// So many records in each second, from the first on.
struct Pace {
    rate: u64,
    second: Instant,
    room: u64,
}

impl Pace {
    fn new(rate: u64) -> Self {
        Pace { rate, second: Instant::now(), room: rate }
    }

    /// Whether there is room for one more.
    fn takes(&mut self, now: Instant) -> bool {
        if self.rate == 0 {
            return true;
        }
        if now.duration_since(self.second) >= Duration::from_secs(1) {
            (self.second, self.room) = (now, self.rate);
        }
        let takes = self.room > 0;
        self.room = self.room.saturating_sub(1);
        takes
    }
}

/// What the program counts as dropped.
struct Dropped {
    drops: Option<Arc<Drops>>,
    seen: u64,
}

impl Dropped {
    /// Since it was asked last.
    async fn more(&mut self) -> u64 {
        let Some(drops) = self.drops.clone() else { return 0 };
        let Ok(Ok(now)) = blocking(move || drops.count()).await else { return 0 };
        let more = now.saturating_sub(self.seen);
        // A counter that begins anew counts from there.
        self.seen = now;
        more
    }
}

impl Tail {
    async fn run(mut self, schema: EventSchema, mut subscription: Subscription, ours: impl Fn() -> bool) {
        if !self.send(Frame::Schema(schema)).await {
            return;
        }
        let mut look = tokio::time::interval(LOOK);
        let reason = loop {
            let batch = tokio::select! {
                batch = subscription.next() => batch,
                _ = look.tick() => match ours() {
                    true => Some(Arc::new(Batch { lost: self.dropped.more().await, ..Batch::default() })),
                    false => break "the map is not the program's any more: it was removed, or updated with another map",
                },
                () = self.sender.closed() => return,
            };
            let Some(batch) = batch else { break "the map cannot be read any more" };
            if !self.batch(&batch, subscription.missed()).await {
                return;
            }
            if self.wish.limit > 0 && self.sent >= self.wish.limit {
                break "limit";
            }
        };
        self.lost.kernel += self.dropped.more().await;
        let end = EventEnd { count: self.sent, lost: Some(self.lost), reason: reason.to_owned() };
        self.send(Frame::End(end)).await;
    }

    /// False when the client is gone.
    async fn batch(&mut self, batch: &Batch, missed: u64) -> bool {
        let (lengths, data, limited) = self.chosen(batch);
        let lost = Loss { kernel: batch.lost, client: missed, limited };
        self.lost.kernel += lost.kernel;
        self.lost.client += lost.client;
        self.lost.limited += lost.limited;
        let is_loss = lost != Loss::default();
        if lengths.is_empty() && !is_loss {
            return true;
        }
        self.sent += lengths.len() as u64;
        let lost = is_loss.then_some(lost);
        let frame = match &self.wish.desc {
            Some(desc) if self.wish.decode => {
                let events = records(&lengths, &data).map(|record| from_json(&desc.decode_record(record))).collect();
                Frame::Decoded(DecodedEvents { events, lost })
            }
            _ => Frame::Raw(EventBatch { lengths, data, lost }),
        };
        self.send(frame).await
    }

    /// What the client wants of a batch, and how many of them are beyond its rate.
    fn chosen(&mut self, batch: &Batch) -> (Vec<u32>, prost::bytes::Bytes, u64) {
        let room = match self.wish.limit {
            0 => usize::MAX,
            limit => usize::try_from(limit - self.sent).unwrap_or(usize::MAX),
        };
        let all = self.wish.filter.is_none() && self.wish.one_in == 1 && self.wish.rate == 0;
        if all && batch.lengths.len() <= room {
            return (batch.lengths.clone(), batch.data.clone(), 0);
        }
        let (mut lengths, mut data, mut limited, now) = (Vec::new(), Vec::new(), 0, Instant::now());
        for record in records(&batch.lengths, &batch.data) {
            if lengths.len() == room {
                break;
            }
            if self.wish.filter.as_ref().is_some_and(|filter| !filter.matches(&[&[record]])) {
                continue;
            }
            self.seen += 1;
            if !(self.seen - 1).is_multiple_of(self.wish.one_in) {
                continue;
            }
            if self.pace.takes(now) {
                lengths.push(record.len() as u32);
                data.extend_from_slice(record);
            } else {
                limited += 1;
            }
        }
        (lengths, data.into(), limited)
    }

    async fn send(&self, frame: Frame) -> bool {
        self.sender.send(Ok(EventFrame { frame: Some(frame) })).await.is_ok()
    }
}

fn records<'a>(lengths: &'a [u32], data: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    lengths.iter().scan(0, |at, len| {
        let start = *at;
        *at += *len as usize;
        data.get(start..*at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_room_for_so_many() {
        let begin = Instant::now();
        let mut pace = Pace { rate: 2, second: begin, room: 2 };
        let after = |millis| begin + Duration::from_millis(millis);
        let taken = [0, 1, 2, 999, 1000, 1001, 1002, 5000].map(|millis| pace.takes(after(millis)));
        assert_eq!(taken, [true, true, false, false, true, true, false, true]);
        assert!((0..100).all(|_| Pace::new(0).takes(begin)), "no rate is no bound");
    }
}
