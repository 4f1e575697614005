//! What changes in a map: looks at an interval, each compared with the one before.
//!
//! **Guarantees.** An entry is told when its bytes differ from those of the look before, and only then. Two looks are
//! remembered at most, of [`LOOK`] bytes each; a map with more is refused with what to do about it. Every look waits in the
//! same line as dumps, and a client that does not read is cut off like theirs.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::bytes::Bytes;
use skep_crds::Reason;
use skep_kernel::dump::{MapReader, PORTION};
use skep_object::btf::filter::{Filter, Member};
use skep_object::btf::rate::rates;
use skep_proto::v1::{
    Changes, DecodedChange, End, MapFrame, ProgramRef, RawEntries, WatchMapRequest, map_frame::Frame,
};
use skep_proto::value::from_json;
use tonic::{Code, Status};

use super::dump::{Client, entries, filter, member, schema};
use super::{InspectorService, failed, refuse};
use crate::apart::apart;

/// Bytes of the entries of a look, and of the order among them.
const LOOK: usize = 4 << 20;
/// Between two looks, at least.
const SHORTEST: Duration = Duration::from_millis(100);
/// Between two looks while nothing changes, where changes drive them.
const LONGEST: Duration = Duration::from_secs(1);
/// Decoded changes a frame.
const DECODED: usize = 128;

/// What is wanted of a map, and what the last look saw.
pub struct Watch {
    request: WatchMapRequest,
    client: Client,
    filter: Option<Filter>,
    top: Option<Member>,
    before: Option<Look>,
    /// Looks beyond the first so far, at any map of the name, and at this one.
    looks: u64,
    number: u64,
    looked: Instant,
}

impl Watch {
    /// Checks what is asked for against the map's types.
    pub fn new(request: WatchMapRequest, reader: &MapReader, client: Client) -> Result<Self, Status> {
        let interval = Duration::from_millis(request.interval_ms.into());
        if !interval.is_zero() && interval < SHORTEST {
            let message =
                format!("interval_ms {}: at least {}, or 0 for changes", request.interval_ms, SHORTEST.as_millis());
            return Err(Status::invalid_argument(message));
        }
        let mut watch = Watch {
            request,
            client,
            filter: None,
            top: None,
            before: None,
            looks: 0,
            number: 0,
            looked: Instant::now(),
        };
        watch.understand(reader)?;
        Ok(watch)
    }

    /// What the conditions mean for this map.
    fn understand(&mut self, reader: &MapReader) -> Result<(), Status> {
        self.filter = filter(&self.request.filter, reader)?;
        self.top = match self.request.top.as_str() {
            "" => None,
            _ if self.request.limit == 0 => {
                return Err(Status::invalid_argument("top: how many is said by limit"));
            }
            path => Some(member(path, reader)?),
        };
        (self.before, self.number) = (None, 0);
        Ok(())
    }

    /// Looks until the client or the map is gone, or often enough.
    pub async fn run(mut self, service: InspectorService, program: ProgramRef, reader: MapReader) {
        let (client, start) = (self.client.clone(), Instant::now());
        let ended = match self.look_on(&service, &program, reader).await {
            Ok(Some(reason)) => Ok(reason),
            // Nobody is there to hear of it.
            Ok(None) => return,
            Err(status) => Err(status),
        };
        let end = ended.map(|reason| {
            let elapsed_us = start.elapsed().as_micros() as u64;
            MapFrame { frame: Some(Frame::End(End { count: self.looks, elapsed_us, reason, ..End::default() })) }
        });
        client.tell(end).await;
    }

    /// Why it ended; `None`: the client is gone.
    async fn look_on(
        &mut self,
        service: &InspectorService,
        program: &ProgramRef,
        reader: MapReader,
    ) -> Result<Option<String>, Status> {
        let map = self.request.map.clone();
        let (mut reader, mut known) = (Arc::new(reader), None);
        let mut pause = SHORTEST;
        loop {
            let report = service.shared.reports.find(&program.namespace, &program.name);
            let now = report.and_then(|report| Some((report.maps.iter().find(|m| m.name == map)?.id, report)));
            let Some((id, report)) = now else {
                return Ok(Some(format!("{}/{} has no map {map} here any more", program.namespace, program.name)));
            };
            if known.is_none_or(|known| known != id) {
                // Another took its place: nothing of the first is to be compared with it.
                if reader.info().id != id {
                    reader = Arc::new(service.open(&report, &map).await?);
                    self.understand(&reader)?;
                }
                known = Some(id);
                let schema = MapFrame { frame: Some(Frame::Schema(schema(&report, &map, &reader))) };
                if !self.client.tell(Ok(schema)).await {
                    return Ok(None);
                }
            }
            let Some(place) = self.client.wait(&service.line).await else { return Ok(None) };
            let start = Instant::now();
            let mut watch = std::mem::replace(self, self.empty());
            let reading = reader.clone();
            let (watch, looked) = apart(service.line.has_several(), move || {
                let looked = watch.look(&reading, start);
                drop(place);
                (watch, looked)
            })
            .await
            .map_err(failed)?;
            *self = watch;
            let Some(changed) = looked? else { return Ok(None) };
            if self.request.looks > 0 && self.looks == self.request.looks {
                return Ok(Some("looks".into()));
            }
            pause = match self.request.interval_ms {
                0 if changed => SHORTEST,
                0 => (pause * 2).min(LONGEST),
                millis => Duration::from_millis(millis.into()),
            };
            tokio::select! {
                () = self.client.gone() => return Ok(None),
                () = tokio::time::sleep(pause.saturating_sub(start.elapsed())) => {}
            }
        }
    }

    /// What stands in for it while a thread has it.
    fn empty(&self) -> Watch {
        let (request, client) = (WatchMapRequest::default(), self.client.clone());
        Watch { request, client, filter: None, top: None, before: None, looks: 0, number: 0, looked: self.looked }
    }

    /// One look, told. Whether something changed; `None`: the client is gone. Blocks.
    fn look(&mut self, reader: &MapReader, start: Instant) -> Result<Option<bool>, Status> {
        let map = &self.request.map;
        let now = Look::read(reader, self.filter.as_ref()).map_err(|error| match error {
            LookError::Read(error) => failed(format!("map {map}: {error}")),
            LookError::TooLarge => {
                let message = format!(
                    "map {map} holds more than the {} MiB of entries that a watch remembers; watch some of them, by a filter",
                    LOOK >> 20
                );
                refuse(Code::ResourceExhausted, Reason::LimitReached, message)
            }
        })?;
        let elapsed = start - self.looked;
        self.looked = start;
        let first = self.before.is_none();
        if !first {
            (self.looks, self.number) = (self.looks + 1, self.number + 1);
        }
        let before = self.before.take().unwrap_or_default();
        let compared = match first && !self.request.snapshot {
            true => Compared::default(),
            false => Compared::new(&before, &now),
        };
        let something = !compared.changed.is_empty() || !compared.gone.is_empty();
        let told = match first || something || self.request.interval_ms > 0 {
            true => self.tell(reader, &before, &now, compared, elapsed),
            false => true,
        };
        self.before = Some(now);
        Ok(told.then_some(something))
    }

    /// Sends what one look found; false when the client is gone.
    fn tell(&self, reader: &MapReader, before: &Look, now: &Look, mut compared: Compared, elapsed: Duration) -> bool {
        let frame = Changes {
            look: self.number,
            elapsed_us: elapsed.as_micros() as u64,
            total: now.order.len() as u64,
            changed: compared.changed.len() as u64,
            removed: compared.gone.len() as u64,
            more: true,
            ..Changes::default()
        };
        if let Some(member) = &self.top {
            compared.rank(member, reader, before, now);
            compared.gone.clear();
        }
        if self.request.limit > 0 {
            compared.changed.truncate(usize::try_from(self.request.limit).unwrap_or(usize::MAX));
        }
        let seconds = elapsed.as_secs_f64().max(1e-6);
        let (key_len, value_len) = (now.key_len, now.len - now.key_len);
        let at_once = if self.request.decode { DECODED } else { (PORTION / (now.len + value_len).max(1)).max(1) };
        let zeroes = vec![0; value_len];
        for changed in compared.changed.chunks(at_once) {
            let mut part = frame.clone();
            let (mut keys, mut values, mut old) = (Vec::new(), Vec::new(), Vec::new());
            for (index, (at, was)) in changed.iter().enumerate() {
                let (key, value) = now.record(*at).split_at(key_len);
                let was = was.map(|was| &before.record(was)[key_len..]);
                if self.request.decode {
                    part.decoded.push(decode(reader, key, value, was, &zeroes, seconds));
                    continue;
                }
                part.added.extend(was.is_none().then_some(index as u32));
                keys.extend_from_slice(key);
                values.extend_from_slice(value);
                old.extend_from_slice(was.unwrap_or(&zeroes));
            }
            if !self.request.decode {
                let count = changed.len() as u32;
                part.entries = Some(RawEntries { count, keys: keys.into(), values: values.into() });
                part.before = old.into();
            }
            if !self.client.put(Frame::Changes(part)) {
                return false;
            }
        }
        let at_once = if self.request.decode { DECODED } else { (PORTION / key_len.max(1)).max(1) };
        for gone in compared.gone.chunks(at_once) {
            let (mut part, mut keys) = (frame.clone(), Vec::new());
            for at in gone {
                let key = &before.record(*at)[..key_len];
                match self.request.decode {
                    true => part.decoded_gone.push(from_json(&reader.key.decode(key))),
                    false => keys.extend_from_slice(key),
                }
            }
            part.gone = Bytes::from(keys);
            if !self.client.put(Frame::Changes(part)) {
                return false;
            }
        }
        self.client.put(Frame::Changes(Changes { more: false, ..frame }))
    }
}

fn decode(
    reader: &MapReader,
    key: &[u8],
    value: &[u8],
    was: Option<&[u8]>,
    zeroes: &[u8],
    seconds: f64,
) -> DecodedChange {
    let each = |bytes| reader.values_of(bytes).map(|value| reader.value.decode(value));
    let grown = each(was.unwrap_or(zeroes)).zip(each(value));
    let mut grown: Vec<_> = grown.map(|(before, now)| rates(&reader.value, &before, &now, seconds)).collect();
    let grown = match reader.info().is_per_cpu() {
        true => serde_json::Value::Array(grown),
        false => grown.pop().unwrap_or_default(),
    };
    DecodedChange {
        key: Some(from_json(&reader.key.decode(key))),
        value: Some(from_json(&reader.decode_values(value))),
        added: was.is_none(),
        rates: Some(from_json(&grown)),
    }
}

/// What a map held at one moment: packed keys and values, and their order by key.
#[derive(Default)]
struct Look {
    key_len: usize,
    /// Bytes of a key and its values.
    len: usize,
    records: Vec<u8>,
    order: Vec<u32>,
}

enum LookError {
    Read(std::io::Error),
    TooLarge,
}

impl Look {
    fn read(reader: &MapReader, filter: Option<&Filter>) -> Result<Self, LookError> {
        let key_len = reader.key_len();
        let mut look = Look { key_len, len: key_len + reader.entry_len(), ..Look::default() };
        let mut large = false;
        let read = reader.read(|keys, values| {
            let mut each = Vec::with_capacity(reader.values_per_entry as usize);
            for (key, value) in entries(reader, keys, values) {
                if let Some(filter) = filter {
                    each.clear();
                    each.extend(reader.values_of(value));
                    if !filter.matches(&[&[key], &each]) {
                        continue;
                    }
                }
                large |= look.records.len() + look.len + 4 * (look.order.len() + 1) > LOOK;
                if large {
                    return false;
                }
                look.order.push(look.order.len() as u32);
                look.records.extend_from_slice(key);
                look.records.extend_from_slice(value);
            }
            true
        });
        read.map_err(LookError::Read)?;
        if large {
            return Err(LookError::TooLarge);
        }
        look.sort();
        Ok(look)
    }

    /// A key that was read twice, since the map changed under the walk, counts once.
    fn sort(&mut self) {
        let Look { key_len, len, records, order } = self;
        let key = |at: u32| &records[at as usize * *len..at as usize * *len + *key_len];
        order.sort_by(|a, b| key(*a).cmp(key(*b)));
        order.dedup_by(|a, b| key(*a) == key(*b));
    }

    fn record(&self, at: u32) -> &[u8] {
        &self.records[at as usize * self.len..(at as usize + 1) * self.len]
    }

    fn key(&self, at: u32) -> &[u8] {
        &self.record(at)[..self.key_len]
    }
}

/// What differs between two looks.
#[derive(Default)]
struct Compared {
    /// Records of the second, with those that they were in the first.
    changed: Vec<(u32, Option<u32>)>,
    /// Records of the first.
    gone: Vec<u32>,
}

impl Compared {
    fn new(before: &Look, now: &Look) -> Self {
        let mut compared = Compared::default();
        let (mut old, mut new) = (before.order.iter().copied().peekable(), now.order.iter().copied().peekable());
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => return compared,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(was), Some(is)) => before.key(*was).cmp(now.key(*is)),
            };
            match order {
                Ordering::Less => compared.gone.extend(old.next()),
                Ordering::Greater => compared.changed.extend(new.next().map(|is| (is, None))),
                Ordering::Equal => {
                    if let (Some(was), Some(is)) = (old.next(), new.next())
                        && before.record(was) != now.record(is)
                    {
                        compared.changed.push((is, Some(was)));
                    }
                }
            }
        }
    }

    /// Those whose member grew most first; those in which it did not grow are left out.
    fn rank(&mut self, member: &Member, reader: &MapReader, before: &Look, now: &Look) {
        let zeroes = vec![0; now.len - now.key_len];
        let grown = |(is, was): &(u32, Option<u32>)| -> f64 {
            let (key, value) = now.record(*is).split_at(now.key_len);
            let was = was.map_or(zeroes.as_slice(), |was| &before.record(was)[now.key_len..]);
            let each = reader.values_of(was).zip(reader.values_of(value));
            each.filter_map(|(was, is)| member.growth(&[key, was], &[key, is])).sum()
        };
        let mut ranked: Vec<_> = self.changed.iter().map(|changed| (grown(changed), *changed)).collect();
        ranked.retain(|(grown, _)| *grown > 0.0);
        // Equal ones stay in the order of their keys.
        ranked.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        self.changed = ranked.into_iter().map(|(_, changed)| changed).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(entries: &[(u8, u8)]) -> Look {
        let records = entries.iter().flat_map(|(key, value)| [*key, *value]).collect();
        let mut look = Look { key_len: 1, len: 2, records, order: (0..entries.len() as u32).collect() };
        look.sort();
        look
    }

    #[test]
    fn looks_are_compared_by_key_whatever_their_order() {
        let before = look(&[(9, 1), (3, 1), (5, 1), (7, 1)]);
        let now = look(&[(7, 2), (4, 1), (9, 1), (3, 1), (3, 8)]);
        let compared = Compared::new(&before, &now);
        let changed: Vec<_> =
            compared.changed.iter().map(|(is, was)| (now.record(*is), was.map(|w| before.record(w)))).collect();
        assert_eq!(
            changed,
            [(&[4u8, 1][..], None), (&[7, 2], Some(&[7u8, 1][..]))],
            "a key that came twice counts once"
        );
        assert_eq!(compared.gone.iter().map(|at| before.record(*at)).collect::<Vec<_>>(), [[5, 1]]);
        let same = Compared::new(&now, &now);
        assert!(same.changed.is_empty() && same.gone.is_empty());
        assert_eq!(Compared::new(&Look::default(), &now).changed.len(), 4);
    }
}
