//! Entries of a map, packed as they came.
//!
//! Guarantees: an entry takes its own bytes, and 16 more where entries are sorted. What is sorted keeps the order in which it
//! came where keys are equal.

use std::cmp::Ordering;
use std::ops::Range;

use serde_json::Value;
use skep_object::btf::decode::hex;
use skep_object::btf::desc::TypeDesc;
use skep_object::btf::percpu::{self, Reduce};
use skep_proto::v1::RawEntries;

use crate::error::Error;
use crate::order::{Ranks, compare};
use crate::schema::Schema;

/// One entry, as it lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    pub key: &'a [u8],
    /// One value, or one per CPU, each padded to the stride.
    pub values: &'a [u8],
}

/// Entries of one map, all of the same size.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Entries {
    /// Each key with its values.
    bytes: Vec<u8>,
    len: usize,
    key_len: usize,
    size: usize,
    /// Of the first entries, where each is, in the order of their keys; the others are as they came.
    places: Vec<(u64, usize)>,
    /// Where parts of `places` begin that are sorted, each more than twice as long as the next.
    runs: Vec<usize>,
}

/// Takes a frame apart.
pub fn unpack<'a>(
    schema: &Schema,
    frame: &'a RawEntries,
) -> Result<impl ExactSizeIterator<Item = Entry<'a>> + use<'a>, Error> {
    pieces(schema, frame.count, &frame.keys, &frame.values)
}

/// So many entries out of their keys and values.
pub fn pieces<'a>(
    schema: &Schema,
    count: u32,
    keys: &'a [u8],
    values: &'a [u8],
) -> Result<impl ExactSizeIterator<Item = Entry<'a>> + use<'a>, Error> {
    let (key_len, value_len) = (schema.key.size as usize, schema.stride.saturating_mul(schema.values_per_entry));
    let count = count as usize;
    let fits = |of: &[u8], each: usize| count.checked_mul(each) == Some(of.len());
    // Queues and stacks have no keys.
    if count > 0 && (value_len == 0 || !fits(keys, key_len) || !fits(values, value_len)) {
        return Err(Error::Schema("its entries have another size than it says"));
    }
    Ok((0..count).map(move |index| Entry { key: piece(keys, index, key_len), values: piece(values, index, value_len) }))
}

fn piece(of: &[u8], index: usize, len: usize) -> &[u8] {
    &of[index * len..(index + 1) * len]
}

impl<'a> Extend<Entry<'a>> for Entries {
    fn extend<T: IntoIterator<Item = Entry<'a>>>(&mut self, entries: T) {
        for entry in entries {
            (self.key_len, self.size) = (entry.key.len(), entry.key.len() + entry.values.len());
            self.bytes.extend(entry.key);
            self.bytes.extend(entry.values);
            self.len += 1;
        }
    }
}

impl<'a> FromIterator<Entry<'a>> for Entries {
    fn from_iter<T: IntoIterator<Item = Entry<'a>>>(entries: T) -> Self {
        let mut all = Entries::default();
        all.extend(entries);
        all
    }
}

impl Entries {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn iter(&self) -> impl Iterator<Item = Entry<'_>> {
        self.range(0..self.len)
    }

    /// Some of them, side by side in their order. Who looks at one here and one there waits for the memory of each; who
    /// copies waits for that of several at once.
    pub fn part(&self, range: Range<usize>) -> Self {
        let bytes = Vec::with_capacity(range.len() * self.size);
        let mut part = Entries { bytes, ..Entries::default() };
        part.extend(self.range(range));
        part
    }

    fn range(&self, range: Range<usize>) -> impl Iterator<Item = Entry<'_>> {
        range.map(|index| self.came(self.places.get(index).map_or(index, |(_, at)| *at)))
    }

    /// The one that came so late.
    fn came(&self, at: usize) -> Entry<'_> {
        let (key, values) = piece(&self.bytes, at, self.size).split_at(self.key_len);
        Entry { key, values }
    }

    /// Sorts what came since the last time, while more is on its way: little is left to be done in the end.
    pub fn presort(&mut self, key: &TypeDesc) {
        let (ranks, begin) = (Ranks::of(key), self.places.len());
        if begin == self.len {
            return;
        }
        for at in begin..self.len {
            let rank = ranks.rank(self.came(at).key);
            self.places.push(((rank >> 64) as u64, at));
        }
        self.runs.push(begin);
        self.sort_from(begin, key, &ranks);
        // An entry is moved a few times, however many frames there are.
        while let [.., first, second] = self.runs[..]
            && (self.len - second) * 2 > second - first
        {
            self.runs.pop();
            self.sort_from(first, key, &ranks);
        }
    }

    /// By key: a hash has no order of its own, and the same map should look the same twice.
    pub fn sort(&mut self, key: &TypeDesc) {
        self.presort(key);
        if self.runs.len() > 1 {
            self.runs.truncate(1);
            self.sort_from(0, key, &Ranks::of(key));
        }
    }

    /// What is sorted in parts is merged.
    fn sort_from(&mut self, first: usize, key: &TypeDesc, ranks: &Ranks) {
        let mut places = std::mem::take(&mut self.places);
        let places_from = &mut places[first..];
        if ranks.fits_in(8) {
            places_from.sort_by_key(|(rank, _)| *rank);
        } else {
            let whole = |at: usize| ranks.rank(self.came(at).key);
            let decoded = |at: usize| key.decode(self.came(at).key);
            places_from.sort_by(|(a, a_at), (b, b_at)| {
                let more = || whole(*a_at).cmp(&whole(*b_at));
                let all =
                    || if ranks.fits_in(16) { Ordering::Equal } else { compare(&decoded(*a_at), &decoded(*b_at)) };
                a.cmp(b).then_with(more).then_with(all)
            });
        }
        self.places = places;
    }
}

impl Entry<'_> {
    /// The values without padding.
    pub fn each<'a>(&'a self, schema: &'a Schema) -> impl Iterator<Item = &'a [u8]> {
        // The kernel knows no size of an arena's pages.
        let size = if schema.map.value_size == 0 { schema.stride } else { schema.map.value_size as usize };
        self.values.chunks(schema.stride.max(1)).map(move |value| value.get(..size).unwrap_or(value))
    }

    /// The key, decoded.
    pub fn key(&self, schema: &Schema) -> Value {
        schema.key.decode(self.key)
    }

    /// The values, decoded: one, or one per CPU.
    pub fn values(&self, schema: &Schema) -> Vec<Value> {
        self.each(schema).map(|value| schema.value.decode(value)).collect()
    }

    /// One value, decoded: of a per-CPU map the sum.
    pub fn one(&self, schema: &Schema) -> Value {
        match schema.is_per_cpu() {
            true => percpu::reduce(&schema.value, Reduce::Sum, self.each(schema)),
            false => self.values(schema).pop().unwrap_or_default(),
        }
    }

    /// Key and values in hexadecimal.
    pub fn raw(&self, schema: &Schema) -> String {
        let mut line = hex(self.key);
        for value in self.each(schema) {
            line.push(' ');
            line.push_str(&hex(value));
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_object::btf::desc::TypeKind;

    /// Frames of any size; as all of it, decoded and sorted, would be.
    #[test]
    fn what_is_sorted_while_it_comes_is_sorted_in_the_end() {
        let desc = |kind, size| TypeDesc { kind, name: "".into(), size };
        let text = TypeKind::Array { element: Box::new(desc(TypeKind::Char, 1)), count: 4 };
        let wide = TypeKind::Array { element: Box::new(desc(TypeKind::Int, 4)), count: 3 };
        for (seed, key) in [desc(TypeKind::Uint, 2), desc(text, 4), desc(wide, 12)].iter().enumerate() {
            let mut random = fastrand::Rng::with_seed(seed as u64);
            let (mut entries, mut all) = (Entries::default(), Vec::new());
            for number in 0..2000u32 {
                let key_bytes: Vec<u8> = (0..key.size).map(|_| random.u8(b'0'..b'3')).collect();
                entries.extend([Entry { key: &key_bytes, values: &number.to_le_bytes() }]);
                all.push((key.decode(&key_bytes), number.to_le_bytes()));
                if random.u32(0..30) == 0 {
                    entries.presort(key);
                }
            }
            entries.sort(key);
            // Stable, as this is.
            all.sort_by(|(a, _), (b, _)| compare(a, b));
            let sorted = entries.part(0..2000);
            let sorted: Vec<(Value, &[u8])> =
                sorted.iter().map(|entry| (key.decode(entry.key), entry.values)).collect();
            let all: Vec<(Value, &[u8])> = all.iter().map(|(key, number)| (key.clone(), &number[..])).collect();
            assert_eq!(sorted, all, "{key:?}");
        }
    }
}
