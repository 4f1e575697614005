//! What was seen of a map, look by look, as lines.
//!
//! Guarantees: a line is a function of the frames alone; times are the nodes' own, so that rates are exact however late a
//! frame comes. Caveats: of several nodes the n-th looks are added up, which are as far apart in time as the answers to
//! the first were.

use std::collections::BTreeMap;
use std::ops::Add;

use serde::Serialize;
use serde_json::Value;
use skep_proto::v1::Changes;

use crate::error::Error;
use crate::follow::{Change, unpacked};
use crate::number::{Counter, Kept, Number};
use crate::order::compare;
use crate::schema::Schema;
use crate::table::printable;

/// Points of one line, at most.
pub const POINTS: usize = 600;
/// Entries of all nodes that are remembered, at most: some 200 MiB of numbers.
const ENTRIES: usize = 20_000;

/// One line; part of the shape of `-o json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Series {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    pub key: Value,
    /// What the number grew by, from the first look to the last.
    pub growth: Number,
    /// Seconds since the first look, and the number then. There is none of a look that did not find the key.
    pub points: Vec<(f64, Number)>,
}

impl Series {
    /// Node and key, in a line.
    pub fn label(&self) -> String {
        self.node.iter().map(|node| printable(node)).chain([label(&self.key)]).collect::<Vec<_>>().join(" ")
    }
}

/// A key in a line: `source=10.0.0.1 to.port=443`.
pub fn label(key: &Value) -> String {
    fn collect(path: &str, value: &Value, into: &mut Vec<String>) {
        match value {
            Value::Object(members) => members.iter().for_each(|(name, value)| {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                collect(&path, value, into);
            }),
            plain => {
                let text = plain.as_str().map_or_else(|| plain.to_string(), printable);
                into.push(if path.is_empty() { text } else { format!("{}={text}", printable(path)) });
            }
        }
    }
    let mut parts = Vec::new();
    collect("", key, &mut parts);
    parts.join(" ")
}

/// What all nodes told.
#[derive(Clone, Debug, Default)]
pub struct Looks {
    nodes: BTreeMap<String, Node>,
}

#[derive(Clone, Debug, Default)]
struct Node {
    /// The number of the first look that is remembered.
    first: u64,
    /// When each was, in seconds since the very first.
    times: Vec<f64>,
    /// By the key as it lies in memory.
    tracks: BTreeMap<Vec<u8>, Track>,
    /// More frames of the last look follow.
    open: bool,
}

#[derive(Clone, Debug)]
struct Track {
    key: Value,
    /// One for each look; none where the key is not there.
    values: Vec<Option<Kept>>,
}

impl Looks {
    /// A frame of a node. An error says that `field` is no number of the map, or that the map has too many entries.
    pub fn hear(&mut self, node: &str, field: &str, schema: &Schema, frame: &Changes) -> Result<(), Error> {
        let counter = Counter::parse("field", field, schema)?;
        let of = self.nodes.entry(node.to_owned()).or_default();
        of.begin(frame);
        let looks = of.times.len();
        for Change { entry, .. } in unpacked(schema, frame)? {
            // Of a per-CPU map the sum.
            let numbers = entry.each(schema).filter_map(|value| counter.number(entry.key, value));
            let number = numbers.reduce(Number::add).map(Kept::from);
            let track = of
                .tracks
                .entry(entry.key.to_vec())
                .or_insert_with(|| Track { key: entry.key(schema), values: vec![None; looks] });
            if let Some(last) = track.values.last_mut() {
                *last = number;
            }
        }
        for key in frame.gone.chunks(schema.key.size.max(1) as usize) {
            if let Some(last) = of.tracks.get_mut(key).and_then(|track| track.values.last_mut()) {
                *last = None;
            }
        }
        match self.nodes.values().map(|node| node.tracks.len()).sum::<usize>() {
            0..=ENTRIES => Ok(()),
            _ => {
                Err(Error::Usage(format!("more than {ENTRIES} entries: choose some by --filter, or a node by --node")))
            }
        }
    }

    /// A node that fails is left out.
    pub fn forget(&mut self, node: &str) {
        self.nodes.remove(node);
    }

    /// How many nodes told anything.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// The `limit` lines that grew most, and how many there are in all. `rate`: their growth per second.
    pub fn series(&self, rate: bool, per_node: bool, limit: usize) -> (Vec<Series>, usize) {
        let mut groups: BTreeMap<(Option<&str>, String), Group<'_>> = BTreeMap::new();
        for (name, node) in &self.nodes {
            for track in node.tracks.values() {
                let line = (per_node.then_some(name.as_str()), track.key.to_string());
                groups.entry(line).or_default().0.push((node, track));
            }
        }
        let of = groups.len();
        let mut groups: Vec<(Number, Option<&str>, Group<'_>)> =
            groups.into_iter().map(|((node, _), group)| (group.growth(), node, group)).collect();
        groups.sort_by(|a, b| {
            let by_key = || compare(a.2.key(), b.2.key()).then_with(|| a.1.cmp(&b.1));
            b.0.order(&a.0).then_with(by_key)
        });
        groups.truncate(limit);
        let series = groups.into_iter().map(|(growth, node, group)| Series {
            node: node.map(str::to_owned),
            key: group.key().clone(),
            growth,
            points: group.points(rate),
        });
        (series.collect(), of)
    }
}

impl Node {
    /// Makes room for a frame's numbers: until they are told otherwise, they are what they were.
    fn begin(&mut self, frame: &Changes) {
        let goes_on = std::mem::replace(&mut self.open, frame.more);
        if goes_on {
            return;
        }
        if frame.look == 0 {
            // The first of all, or of another map in its place.
            *self = Node { open: frame.more, ..Node::default() };
        }
        let elapsed = frame.elapsed_us as f64 / 1e6;
        self.times.push(self.times.last().map_or(0.0, |last| last + elapsed));
        for track in self.tracks.values_mut() {
            track.values.push(track.values.last().cloned().flatten());
        }
        // In large steps, so that few are moved.
        if self.times.len() >= 2 * POINTS {
            self.first += POINTS as u64;
            self.times.drain(..POINTS);
            self.tracks.values_mut().for_each(|track| drop(track.values.drain(..POINTS)));
            self.tracks.retain(|_, track| track.values.iter().any(Option::is_some));
        }
    }

    fn at(&self, look: u64) -> Option<usize> {
        usize::try_from(look.checked_sub(self.first)?).ok().filter(|index| *index < self.times.len())
    }
}

/// What is added up to one line.
#[derive(Default)]
struct Group<'a>(Vec<(&'a Node, &'a Track)>);

impl Group<'_> {
    fn key(&self) -> &Value {
        self.0.first().map_or(&Value::Null, |(_, track)| &track.key)
    }

    fn growth(&self) -> Number {
        let of = |track: &Track| {
            let last = track.values.iter().rev().flatten().next().map_or(Number::ZERO, Number::from);
            // What came later began at nothing.
            last - track.values.first().and_then(Option::as_ref).map_or(Number::ZERO, Number::from)
        };
        self.0.iter().map(|(_, track)| of(track)).sum()
    }

    /// Of the looks that all of its nodes told of.
    fn points(&self, rate: bool) -> Vec<(f64, Number)> {
        let begin = self.0.iter().map(|(node, _)| node.first).max().unwrap_or(0);
        let end = self.0.iter().map(|(node, _)| node.first + node.times.len() as u64).min().unwrap_or(0);
        let from = begin.max(end.saturating_sub(POINTS as u64));
        let point = |look: u64| {
            let (node, _) = self.0.first()?;
            let seconds = *node.times.get(node.at(look)?)?;
            let numbers = self.0.iter().filter_map(|(node, track)| track.number(node, node.at(look)?, rate));
            Some((seconds, numbers.reduce(Number::add)?))
        };
        (from..end).filter_map(point).collect()
    }
}

impl Track {
    fn number(&self, node: &Node, index: usize, rate: bool) -> Option<Number> {
        let now = Number::from(self.values.get(index)?.as_ref()?);
        if !rate {
            return Some(now);
        }
        let before = index.checked_sub(1)?;
        let elapsed = node.times.get(index)? - node.times.get(before)?;
        let was = self.values.get(before)?.as_ref().map_or(Number::ZERO, Number::from);
        Some(Number::Float((now - was).as_f64() / elapsed.max(1e-6)))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::json;
    use skep_object::btf::desc::{TypeDesc, TypeKind};
    use skep_proto::v1::{MapInfo, RawEntries};

    pub(crate) fn schema() -> Schema {
        let uint = |size| TypeDesc { kind: TypeKind::Uint, name: "".into(), size };
        let map = MapInfo { key_size: 1, value_size: 8, ..MapInfo::default() };
        Schema { map, key: uint(1), value: uint(8), values_per_entry: 1, stride: 8, head_only: false }
    }

    /// Half a second after the one before.
    pub(crate) fn look(look: u64, entries: &[(u8, u64)], gone: &[u8]) -> Changes {
        let keys: Vec<u8> = entries.iter().map(|(key, _)| *key).collect();
        let values: Vec<u8> = entries.iter().flat_map(|(_, value)| value.to_ne_bytes()).collect();
        Changes {
            look,
            elapsed_us: if look == 0 { 0 } else { 500_000 },
            before: vec![0; values.len()].into(),
            entries: Some(RawEntries { count: entries.len() as u32, keys: keys.into(), values: values.into() }),
            gone: gone.to_vec().into(),
            ..Changes::default()
        }
    }

    fn looks(frames: &[(&str, Changes)]) -> Looks {
        let mut looks = Looks::default();
        for (node, frame) in frames {
            looks.hear(node, "value", &schema(), frame).unwrap();
        }
        looks
    }

    fn shown(looks: &Looks, rate: bool, per_node: bool) -> Value {
        let (series, _) = looks.series(rate, per_node, 10);
        json!(series.iter().map(|s| json!([s.label(), s.growth, s.points])).collect::<Vec<_>>())
    }

    #[test]
    fn numbers_stay_until_they_change_and_end_when_the_key_is_gone() {
        let all = [look(0, &[(7, 5), (8, 1)], &[]), look(1, &[(7, 9)], &[]), look(2, &[(9, 2)], &[8])];
        let looks = looks(&all.map(|frame| ("n1", frame)));
        let wanted =
            json!([["7", 4, [[0.0, 5], [0.5, 9], [1.0, 9]]], ["9", 2, [[1.0, 2]]], ["8", 0, [[0.0, 1], [0.5, 1]]],]);
        assert_eq!(shown(&looks, false, false), wanted);
        let rates = json!([["7", 4, [[0.5, 8.0], [1.0, 0.0]]], ["9", 2, [[1.0, 4.0]]], ["8", 0, [[0.5, 0.0]]]]);
        assert_eq!(shown(&looks, true, false), rates);
        assert_eq!(looks.series(false, false, 1).0.len(), 1);
        assert_eq!(looks.series(false, false, 1).1, 3);
    }

    #[test]
    fn whole_numbers_are_exact() {
        let large = (1u64 << 53) + 1;
        let frames = [("n1", look(0, &[(7, 1)], &[])), ("n1", look(1, &[(7, large)], &[]))];
        let (series, _) = looks(&frames).series(false, false, 1);
        let text = serde_json::to_string(&series[0]).unwrap();
        assert_eq!(text, "{\"key\":7,\"growth\":9007199254740992,\"points\":[[0.0,1],[0.5,9007199254740993]]}");
    }

    #[test]
    fn nodes_are_added_up_unless_each_is_asked_for() {
        let frames =
            [("n1", look(0, &[(7, 5)], &[])), ("n2", look(0, &[(7, 1)], &[])), ("n1", look(1, &[(7, 6)], &[]))];
        let mut looks = looks(&frames);
        assert_eq!(shown(&looks, false, false), json!([["7", 1, [[0.0, 6]]]]), "n2's second look is not there yet");
        looks.hear("n2", "value", &schema(), &look(1, &[(7, 4)], &[])).unwrap();
        assert_eq!(shown(&looks, false, false), json!([["7", 4, [[0.0, 6], [0.5, 10]]]]));
        assert_eq!(shown(&looks, true, true)[0], json!(["n2 7", 3, [[0.5, 6.0]]]));
        looks.forget("n2");
        assert_eq!(shown(&looks, true, false), json!([["7", 1, [[0.5, 2.0]]]]));
    }

    #[test]
    fn another_map_begins_anew_and_a_look_may_take_two_frames() {
        let mut half = look(0, &[(7, 5)], &[]);
        half.more = true;
        let frames = [("n1", look(0, &[(1, 1)], &[])), ("n1", half), ("n1", look(0, &[(8, 6)], &[]))];
        assert_eq!(shown(&looks(&frames), false, false), json!([["7", 0, [[0.0, 5]]], ["8", 0, [[0.0, 6]]]]));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut looks = Looks::default();
        for number in 0..3 * POINTS as u64 {
            looks.hear("n1", "value", &schema(), &look(number, &[(7, number)], &[])).unwrap();
        }
        let (series, _) = looks.series(false, false, 1);
        assert_eq!(series[0].points.len(), POINTS);
        assert_eq!(series[0].points.last(), Some(&(899.5, Number::Whole(1799))));
        let error = looks.hear("n1", "value.nothing", &schema(), &look(0, &[], &[])).unwrap_err();
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn a_key_is_told_in_a_line() {
        let key = json!({"source": "10.0.0.1", "to": {"port": 443, "flags": [1, 2]}});
        assert_eq!(label(&key), "source=10.0.0.1 to.flags=[1,2] to.port=443");
        assert_eq!((label(&json!("a\u{1b}b")), label(&json!(7))), ("a\\u{1b}b".to_owned(), "7".to_owned()));
    }
}
