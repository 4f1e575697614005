//! Entries of a map, out of packed frames.

use prost::bytes::Bytes;
use serde_json::Value;
use skep_object::btf::decode::hex;
use skep_object::btf::percpu::{self, Reduce};
use skep_proto::v1::RawEntries;

use crate::error::Error;
use crate::schema::Schema;

/// One entry, as it lies in memory: a piece of the frame that it came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: Bytes,
    /// One value, or one per CPU, each padded to the stride.
    pub values: Bytes,
}

/// Takes a frame apart.
pub fn unpack(schema: &Schema, frame: &RawEntries) -> Result<Vec<Entry>, Error> {
    let (key_len, value_len) = (schema.key.size as usize, schema.stride.saturating_mul(schema.values_per_entry));
    let count = frame.count as usize;
    let fits = |len: usize, each: usize| count.checked_mul(each) == Some(len);
    if count == 0 {
        return Ok(Vec::new());
    }
    // Queues and stacks have no keys.
    if value_len == 0 || !fits(frame.keys.len(), key_len) || !fits(frame.values.len(), value_len) {
        return Err(Error::Schema("its entries have another size than it says"));
    }
    let piece = |of: &Bytes, index: usize, len: usize| of.slice(index * len..(index + 1) * len);
    let entry =
        |index| Entry { key: piece(&frame.keys, index, key_len), values: piece(&frame.values, index, value_len) };
    Ok((0..count).map(entry).collect())
}

impl Entry {
    /// The values without padding.
    pub fn each<'a>(&'a self, schema: &'a Schema) -> impl Iterator<Item = &'a [u8]> {
        // The kernel knows no size of an arena's pages.
        let size = if schema.map.value_size == 0 { schema.stride } else { schema.map.value_size as usize };
        self.values.chunks(schema.stride.max(1)).map(move |value| value.get(..size).unwrap_or(value))
    }

    /// The key, decoded.
    pub fn key(&self, schema: &Schema) -> Value {
        schema.key.decode(&self.key)
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
        let mut line = hex(&self.key);
        for value in self.each(schema) {
            line.push(' ');
            line.push_str(&hex(value));
        }
        line
    }
}
