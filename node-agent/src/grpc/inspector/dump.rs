//! A map's contents as a stream: schema, entries, end. What a client does not want is left out on the node.

use std::cmp::{self, Reverse};
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use prost::bytes::Bytes;
use skep_crds::Reason;
use skep_kernel::dump::{MapReader, PORTION, Place, Portion};
use skep_kernel::sys::map::{self, types};
use skep_object::btf::filter::{Filter, Member};
use skep_object::btf::percpu::{self, Reduce};
use skep_proto::v1::{
    DecodedEntries, DecodedEntry, DumpMapRequest, End, Inner, MapFrame, MapSchema, ProgramReport, Queued, RawEntries,
    Reduce as Asked, map_frame::Frame,
};
use skep_proto::value::from_json;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tonic::{Code, Status};

use super::{Line, failed, map_info};
use crate::apart::apart;
use crate::grpc::frames::type_message;
use crate::grpc::refuse;

/// Decoded entries a frame.
const DECODED: usize = 256;
/// How long a client may leave its stream unread.
pub const STALLED: Duration = Duration::from_secs(60);
/// Bytes of the largest entries that are kept until all are read.
const TOP: usize = 8 << 20;

/// What is wanted of a map.
pub struct Dump {
    client: Client,
    decode: bool,
    limit: u64,
    filter: Option<Filter>,
    top: Option<Top>,
    reduce: Option<Reduce>,
    /// Whose map it is, where what is in inner maps is wanted.
    nested: Option<ProgramReport>,
    /// An inner map's entries were the last that were sent.
    inside: bool,
    /// Where it begins, and where it stopped before the end.
    from: Option<Place>,
    stopped: Option<Place>,
    sent: u64,
    seen: u64,
}

impl Dump {
    /// Checks what is asked for against the map's types.
    pub fn new(
        request: &DumpMapRequest,
        report: &ProgramReport,
        reader: &MapReader,
        client: Client,
    ) -> Result<Self, Status> {
        let filter = filter(&request.filter, reader)?;
        let top = match request.top.as_str() {
            "" => None,
            path => Some(Top::new(path, request.limit, reader)?),
        };
        if top.is_some() && !request.page.is_empty() {
            return Err(Status::invalid_argument("page: the largest entries of a map are on one page"));
        }
        let foreign = || Status::invalid_argument("page: it is of another map, or none; begin anew without it");
        let from = match request.page.is_empty() {
            true => None,
            false => Some(place(&request.page, reader).ok_or_else(foreign)?),
        };
        let reduce = match request.reduce() {
            Asked::Unspecified => None,
            _ if !request.decode => {
                return Err(Status::invalid_argument(
                    "reduce: with decode only; packed entries have the values of all CPUs",
                ));
            }
            Asked::Sum => Some(Reduce::Sum),
            Asked::Max => Some(Reduce::Max),
            Asked::Min => Some(Reduce::Min),
        };
        let of_maps = matches!(reader.info().map_type, types::ARRAY_OF_MAPS | types::HASH_OF_MAPS);
        let nested = (request.nested && of_maps).then(|| report.clone());
        let (decode, limit, stopped) = (request.decode, request.limit, None);
        Ok(Dump { client, decode, limit, filter, top, reduce, nested, inside: false, from, stopped, sent: 0, seen: 0 })
    }

    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Waits for its turn, and reads. Ends when all is read, when the client is gone, or when it does not read any more.
    pub async fn run(mut self, line: Arc<Line>, report: ProgramReport, map: String, reader: MapReader) {
        let client = self.client.clone();
        let Some(place) = client.wait(&line).await else { return };
        let read = apart(line.has_several(), move || {
            self.read(&report, &map, &reader);
            drop(place);
        });
        if let Err(error) = read.await {
            client.tell(Err(failed(error))).await;
        }
    }

    /// Blocks.
    fn read(&mut self, report: &ProgramReport, map: &str, reader: &MapReader) {
        let start = Instant::now();
        if !self.client.put(Frame::Schema(schema(report, map, reader))) {
            return;
        }
        // Whoever stops before the end goes on from there.
        let result = match (self.from.take(), self.limit > 0 && self.top.is_none()) {
            (None, false) => reader.read_by(threads(), |portion| self.portion(reader, portion)),
            (from, _) => reader.read_from(from, |portion| self.portion(reader, portion)),
        };
        if let Err(e) = result {
            self.client.end(Err(failed(format!("map {map}: {e}"))));
            return;
        }
        if let Some(top) = self.top.take() {
            let (keys, values) = top.packed();
            if !self.send_entries(reader, &keys, &values) {
                return;
            }
        }
        let elapsed_us = start.elapsed().as_micros() as u64;
        let next_page = self.stopped.as_ref().map(|place| page(place, reader)).unwrap_or_default().into();
        self.client.put(Frame::End(End { count: self.sent, elapsed_us, read: self.seen, next_page, ..End::default() }));
    }

    /// Packed entries as the kernel gave them; false when there is no more to do.
    fn portion(&mut self, reader: &MapReader, portion: &Portion<'_>) -> bool {
        let (key_len, value_len) = (reader.key_len(), reader.entry_len());
        let count = portion.values.len().checked_div(value_len).unwrap_or(0);
        let room = if self.limit == 0 || self.top.is_some() { usize::MAX } else { (self.limit - self.sent) as usize };
        if self.filter.is_none() && self.top.is_none() {
            let some = count.min(room);
            self.seen += some as u64;
            let sent = self.send_entries(reader, &portion.keys[..some * key_len], &portion.values[..some * value_len]);
            return sent && !self.stops(portion, some, room - some);
        }
        let (mut keys, mut values, mut chosen, mut looked) = (Vec::new(), Vec::new(), 0, 0);
        let mut each = Vec::with_capacity(reader.values_per_entry as usize);
        for (key, value) in entries(reader, portion.keys, portion.values) {
            if chosen == room {
                break;
            }
            looked += 1;
            each.clear();
            each.extend(reader.values_of(value));
            if self.filter.as_ref().is_some_and(|filter| !filter.matches(&[&[key], &each])) {
                continue;
            }
            match &mut self.top {
                Some(top) => top.offer(key, value, &each),
                None => {
                    chosen += 1;
                    keys.extend_from_slice(key);
                    values.extend_from_slice(value);
                }
            }
        }
        self.seen += looked as u64;
        let sent = chosen == 0 || self.send_entries(reader, &keys, &values);
        sent && !self.stops(portion, looked, room - chosen)
    }

    /// Whether the limit is reached; then the place is remembered.
    fn stops(&mut self, portion: &Portion<'_>, looked: usize, room: usize) -> bool {
        if room == 0 {
            self.stopped = Some(portion.after(looked));
        }
        room == 0
    }

    /// And what is in the maps that are their values, where that is wanted.
    pub fn send_entries(&mut self, reader: &MapReader, keys: &[u8], values: &[u8]) -> bool {
        if self.inside && !self.client.put(Frame::Inner(Inner::default())) {
            return false;
        }
        self.inside = false;
        self.sent += values.len().checked_div(reader.entry_len()).unwrap_or(0) as u64;
        if !self.put_entries(reader, keys, values) {
            return false;
        }
        let Some(report) = self.nested.take() else { return true };
        let sent = entries(reader, keys, values).all(|(key, id)| self.send_inner(&report, reader, key, id));
        self.nested = Some(report);
        sent
    }

    fn send_inner(&mut self, report: &ProgramReport, outer: &MapReader, key: &[u8], id: &[u8]) -> bool {
        self.inside = true;
        let decoded_key = self.decode.then(|| from_json(&outer.key.decode(key)));
        let inner = Inner { key: Bytes::copy_from_slice(key), decoded_key, ..Inner::default() };
        let id = u32::from_ne_bytes(id.try_into().unwrap_or_default());
        let reader = match map::by_id(id).and_then(MapReader::new) {
            Ok(reader) => reader,
            Err(e) => return self.client.put(Frame::Inner(Inner { reason: e.to_string(), ..inner })),
        };
        let schema = Some(schema(report, &reader.info().name, &reader));
        let reason = reader.refusal().unwrap_or_default().to_owned();
        let refused = !reason.is_empty();
        if !self.client.put(Frame::Inner(Inner { schema, reason, ..inner })) {
            return false;
        }
        if refused {
            return true;
        }
        let mut sent = true;
        let read = reader.read(|keys, values| {
            sent = self.put_entries(&reader, keys, values);
            sent
        });
        if let Err(e) = read {
            self.client.end(Err(failed(format!("inner map {id}: {e}"))));
            return false;
        }
        sent
    }

    fn put_entries(&self, reader: &MapReader, keys: &[u8], values: &[u8]) -> bool {
        let (key_len, value_len) = (reader.key_len(), reader.entry_len());
        let at_once = if self.decode { DECODED } else { (PORTION / (key_len + value_len).max(1)).max(1) };
        values.chunks(at_once * value_len.max(1)).enumerate().all(|(index, values)| {
            let count = values.len().checked_div(value_len).unwrap_or(0);
            let first = index * at_once;
            let keys = &keys[first * key_len..(first + count) * key_len];
            self.client.put(self.frame(reader, count, keys, values))
        })
    }

    fn frame(&self, reader: &MapReader, count: usize, keys: &[u8], values: &[u8]) -> Frame {
        if !self.decode {
            let (keys, values) = (Bytes::copy_from_slice(keys), Bytes::copy_from_slice(values));
            return Frame::Raw(RawEntries { count: count as u32, keys, values });
        }
        let value = |value: &[u8]| match self.reduce {
            Some(how) if reader.info().is_per_cpu() => percpu::reduce(&reader.value, how, reader.values_of(value)),
            _ => reader.decode_values(value),
        };
        let decoded = entries(reader, keys, values).map(|(key, entry)| DecodedEntry {
            key: Some(from_json(&reader.key.decode(key))),
            value: Some(from_json(&value(entry))),
        });
        Frame::Decoded(DecodedEntries { entries: decoded.collect() })
    }
}

/// Half of the processors, and not more than the memory for their batches: others have work too.
fn threads() -> u32 {
    std::thread::available_parallelism().map_or(1, |all| (all.get() as u32 / 2).clamp(1, 4))
}

/// A place, and the map that it is of.
fn page(place: &Place, reader: &MapReader) -> Vec<u8> {
    [&reader.info().id.to_le_bytes()[..], &place.to_bytes()].concat()
}

fn place(page: &[u8], reader: &MapReader) -> Option<Place> {
    let place = page.strip_prefix(&reader.info().id.to_le_bytes())?;
    Place::from_bytes(place, reader.key_len())
}

/// Who reads a stream of a map. One that leaves it unread for too long is cut off: it is told so when it reads again, and
/// nothing else any more.
#[derive(Clone, Debug)]
pub struct Client {
    sender: mpsc::Sender<Result<MapFrame, Status>>,
    patience: Duration,
    cut: Arc<AtomicBool>,
}

impl Client {
    pub fn new(sender: mpsc::Sender<Result<MapFrame, Status>>) -> Self {
        Client { sender, patience: STALLED, cut: Arc::default() }
    }

    /// A place among those who read, when it is its turn; `None` when the client is gone.
    pub async fn wait(&self, line: &Line) -> Option<OwnedSemaphorePermit> {
        let tell = |before| self.tell(Ok(MapFrame { frame: Some(Frame::Queued(Queued { before })) }));
        line.enter(tell).await
    }

    /// False when it is gone, or did not read for a while: its place is somebody else's.
    pub async fn tell(&self, frame: Result<MapFrame, Status>) -> bool {
        if self.cut.load(Ordering::Relaxed) {
            return false;
        }
        let told = tokio::time::timeout(self.patience, self.sender.send(frame)).await;
        if told.is_err() {
            self.cut.store(true, Ordering::Relaxed);
            // Takes neither a thread nor a place, and ends with the client.
            let (sender, patience) = (self.sender.clone(), self.patience);
            tokio::spawn(async move {
                let message = format!(
                    "the stream was left unread for {} s and is cut off here: others waited for its place; read faster, or ask for less",
                    patience.as_secs()
                );
                let _gone = sender.send(Err(refuse(Code::Aborted, Reason::Timeout, message))).await;
            });
        }
        matches!(told, Ok(Ok(())))
    }

    /// Returns when it is gone.
    pub async fn gone(&self) {
        self.sender.closed().await;
    }

    /// The same as `tell`. Blocks.
    pub fn put(&self, frame: Frame) -> bool {
        self.end(Ok(MapFrame { frame: Some(frame) }))
    }

    /// A last word. Blocks.
    pub fn end(&self, frame: Result<MapFrame, Status>) -> bool {
        Handle::current().block_on(self.tell(frame))
    }
}

/// A condition on a map's entries; `None` where there is none.
pub fn filter(text: &str, reader: &MapReader) -> Result<Option<Filter>, Status> {
    let roots = [("key", &*reader.key), ("value", &*reader.value)];
    match text {
        "" => Ok(None),
        text => Filter::parse(text, &roots).map(Some).map_err(|e| Status::invalid_argument(e.to_string())),
    }
}

/// A member of a map's entries that has numbers.
pub fn member(path: &str, reader: &MapReader) -> Result<Member, Status> {
    let roots = [("key", &*reader.key), ("value", &*reader.value)];
    let invalid = |why: String| Status::invalid_argument(format!("top: {why}"));
    let member = Member::parse(path, &roots).map_err(|e| invalid(e.to_string()))?;
    if member.is_number() { Ok(member) } else { Err(invalid(format!("{path} is no number"))) }
}

/// What the bytes of a map mean.
pub fn schema(report: &ProgramReport, map: &str, reader: &MapReader) -> MapSchema {
    MapSchema {
        map: Some(map_info(report, map, reader)),
        key: Some(type_message(&reader.key)),
        value: Some(type_message(&reader.value)),
        values_per_entry: reader.values_per_entry,
        value_stride: reader.value_stride,
        head_only: reader.is_head_only(),
    }
}

/// Keys and values of packed entries. Queues and stacks have no keys.
pub fn entries<'a>(reader: &MapReader, keys: &'a [u8], values: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
    let key_len = reader.key_len();
    let keyed = values.chunks_exact(reader.entry_len().max(1)).enumerate();
    keyed.map(move |(i, value)| (keys.get(i * key_len..(i + 1) * key_len).unwrap_or(&[]), value))
}

/// The entries with the largest numbers in a member.
struct Top {
    member: Member,
    most: usize,
    /// The smallest of them on top, to go first.
    heap: BinaryHeap<Reverse<Ranked>>,
}

struct Ranked {
    number: f64,
    key: Vec<u8>,
    value: Vec<u8>,
}

impl Top {
    fn new(path: &str, most: u64, reader: &MapReader) -> Result<Self, Status> {
        let invalid = |why: String| Status::invalid_argument(format!("top: {why}"));
        let member = member(path, reader)?;
        let room = (TOP / (reader.key_len() + reader.entry_len()).max(1)) as u64;
        match most {
            0 => Err(invalid("how many is said by limit".into())),
            most if most > room => {
                Err(invalid(format!("limit {most}: of this map at most the {room} largest are found")))
            }
            most => Ok(Top { member, most: most as usize, heap: BinaryHeap::new() }),
        }
    }

    /// `each`: the value, or those of all CPUs, which are added up.
    fn offer(&mut self, key: &[u8], value: &[u8], each: &[&[u8]]) {
        let numbers = each.iter().filter_map(|value| self.member.number(&[key, value]));
        // A key is the same for all CPUs.
        let number: f64 = if self.member.root() == 0 { numbers.take(1).sum() } else { numbers.sum() };
        if self.heap.len() == self.most {
            if self.heap.peek().is_some_and(|Reverse(least)| number.total_cmp(&least.number).is_le()) {
                return;
            }
            self.heap.pop();
        }
        self.heap.push(Reverse(Ranked { number, key: key.to_vec(), value: value.to_vec() }));
    }

    /// The largest first.
    fn packed(self) -> (Vec<u8>, Vec<u8>) {
        let sorted = self.heap.into_sorted_vec();
        let (keys, values): (Vec<_>, Vec<_>) = sorted.into_iter().map(|Reverse(one)| (one.key, one.value)).unzip();
        (keys.concat(), values.concat())
    }
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> cmp::Ordering {
        self.number.total_cmp(&other.number).then_with(|| other.key.cmp(&self.key))
    }
}
impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Ranked {}

#[cfg(test)]
mod tests {
    use super::*;

    /// What it missed has no end that could be taken for that of the map.
    #[tokio::test]
    async fn who_leaves_a_stream_unread_is_cut_off_and_told() {
        let (sender, mut receiver) = mpsc::channel(1);
        let client = Client { patience: Duration::from_millis(30), ..Client::new(sender) };
        let end = || Ok(MapFrame { frame: Some(Frame::End(End::default())) });
        assert!(client.tell(end()).await);
        assert!(!client.tell(end()).await, "there is no room");
        receiver.recv().await.unwrap().unwrap();
        assert!(!client.tell(end()).await, "there is room, but what was between is missing");
        let told = receiver.recv().await.unwrap().unwrap_err();
        assert!(told.message().starts_with("Timeout: the stream was left unread"), "{told}");
        drop(client);
        assert!(receiver.recv().await.is_none());
    }
}
