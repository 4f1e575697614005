//! `hist`: maps of counters as bars.

use std::collections::BTreeMap;

use futures::FutureExt;
use serde::Serialize;
use serde_json::Value;
use skep_object::btf::filter::Member;

use crate::args::{DumpFormat, Global, Hist, MapsDump, Scale, TopFormat};
use crate::dump::{Contents, contents, progress};
use crate::error::Error;
use crate::live;
use crate::number::{Counter, Number};
use crate::order::compare;
use crate::output;
use crate::source::{self, Access};
use crate::table::printable;

/// Characters of the longest bar.
const BAR: f64 = 40.0;
/// Buckets of one histogram, at most: a member that is no bucket has millions of values.
const BUCKETS: u64 = 512;

/// One histogram.
#[derive(Debug, Serialize)]
struct Histogram {
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<Value>,
    buckets: Vec<Bucket>,
}

/// Values from `from` to `to`, both included, and how many there were.
#[derive(Debug, PartialEq, Serialize)]
struct Bucket {
    from: u64,
    to: u64,
    count: Number,
}

/// Runs the command.
pub async fn run(global: &Global, hist: &Hist) -> Result<(), Error> {
    let mut drawn = 0u64;
    loop {
        let histograms = look(global, hist).await?;
        match hist.output {
            TopFormat::Json => output::print(&(serde_json::to_string(&histograms).unwrap_or_default() + "\n"))?,
            TopFormat::Table if hist.live.is_some() => live::print(&text(hist, &histograms))?,
            TopFormat::Table => output::print(&text(hist, &histograms))?,
        }
        drawn += 1;
        match hist.live {
            Some(interval) if hist.looks.is_none_or(|looks| drawn < looks) => {
                output::while_read(tokio::time::sleep(interval).map(Ok)).await?;
            }
            _ => return Ok(()),
        }
    }
}

async fn look(global: &Global, hist: &Hist) -> Result<Vec<Histogram>, Error> {
    let dump = &MapsDump {
        name: hist.name.clone(),
        map: hist.map.clone(),
        node: hist.node.clone(),
        output: DumpFormat::Raw,
        limit: None,
        filter: hist.filter.clone(),
        top: None,
        page: None,
        per_cpu: None,
    };
    let progress = progress();
    let asked = source::ask(global, Access::Read, hist.node.as_deref(), Some(&hist.name), |agent, namespace| {
        let progress = progress.clone();
        async move { contents(&agent, &namespace, dump, &progress).await }
    })
    .await;
    progress.finish_and_clear();
    let answers = asked?;
    let histograms = histograms(hist, &answers.answers)?;
    answers.complete()?;
    Ok(histograms)
}

/// A map's contents as bars.
pub fn render(hist: &Hist, all: &[Contents]) -> Result<String, Error> {
    Ok(text(hist, &histograms(hist, all)?))
}

fn histograms(hist: &Hist, all: &[Contents]) -> Result<Vec<Histogram>, Error> {
    type Counts = BTreeMap<u64, Number>;
    let mut groups: Vec<(Option<String>, Option<Value>, Counts)> = Vec::new();
    for contents in all {
        let schema = &contents.schema;
        let roots = [("key", &schema.key), ("value", &schema.value)];
        let member = |path: &str| Member::parse(path, &roots).map_err(|e| Error::Usage(e.to_string()));
        let bucket = Counter::parse("bucket", &hist.bucket, schema)?;
        let count = Counter::parse("count", &hist.count, schema)?;
        let by = hist.by.as_deref().map(member).transpose()?;
        for entry in contents.entries.iter() {
            let each: Vec<&[u8]> = entry.each(schema).collect();
            let first = each.first().copied().unwrap_or_default();
            let which = bucket.number(entry.key, first).unwrap_or(Number::ZERO);
            let Some(slot) = slot(which) else {
                let message = format!(
                    "--bucket: {} is {which}, and buckets are 0 to {}: name the member that says which",
                    hist.bucket,
                    BUCKETS - 1
                );
                return Err(Error::Usage(message));
            };
            let sum: Number = each.iter().filter_map(|value| count.number(entry.key, value)).sum();
            let node = hist.per_node.then(|| contents.node.clone());
            let by = by.as_ref().map(|by| by.decode(&[entry.key, first]));
            let at = groups.iter().position(|(of, value, _)| *of == node && *value == by);
            let at = at.unwrap_or_else(|| {
                groups.push((node, by, Counts::new()));
                groups.len() - 1
            });
            let counted = groups[at].2.entry(slot).or_insert(Number::ZERO);
            *counted = *counted + sum;
        }
    }
    let null = Value::Null;
    groups.sort_by(|a, b| {
        let by = |value: &Option<Value>| value.clone().unwrap_or(null.clone());
        a.0.cmp(&b.0).then_with(|| compare(&by(&a.1), &by(&b.1)))
    });
    let histogram = |(node, by, counts): (Option<String>, Option<Value>, Counts)| {
        let mut counted = counts.iter().filter(|(_, count)| count.as_f64() > 0.0).map(|(slot, _)| *slot);
        let first = counted.next();
        let last = counted.next_back().or(first);
        // Empty ones between others are shown, those around them are not.
        let slots = first.zip(last).map(|(first, last)| first..=last).into_iter().flatten();
        let buckets = slots.map(|slot| {
            let (from, to) = range(hist.scale, hist.width, slot);
            Bucket { from, to, count: counts.get(&slot).copied().unwrap_or(Number::ZERO) }
        });
        Histogram { node, by, buckets: buckets.collect() }
    };
    Ok(groups.into_iter().map(histogram).collect())
}

/// Which bucket a number means; none is meant by one beyond them all.
fn slot(number: Number) -> Option<u64> {
    let slot = match number {
        Number::Whole(number) => u64::try_from(number).ok()?,
        Number::Float(number) if number >= 0.0 => number as u64,
        Number::Float(_) => return None,
    };
    (slot < BUCKETS).then_some(slot)
}

/// What a bucket stands for.
fn range(scale: Scale, width: u64, slot: u64) -> (u64, u64) {
    let power = |exponent: u64| u32::try_from(exponent).ok().and_then(|n| 1u64.checked_shl(n));
    let below = |exponent: u64| power(exponent).map_or(u64::MAX, |value| value - 1);
    match scale {
        Scale::Log2 if slot == 0 => (0, 1),
        Scale::Log2 => (power(slot).unwrap_or(u64::MAX), below(slot + 1)),
        Scale::Bits if slot == 0 => (0, 0),
        Scale::Bits => (power(slot - 1).unwrap_or(u64::MAX), below(slot)),
        Scale::Linear => (slot.saturating_mul(width), slot.saturating_add(1).saturating_mul(width).saturating_sub(1)),
    }
}

fn text(hist: &Hist, all: &[Histogram]) -> String {
    let mut text = String::new();
    for (index, histogram) in all.iter().enumerate() {
        let heads = [
            histogram.node.clone(),
            histogram.by.as_ref().map(|by| format!("{} {by}", hist.by.as_deref().unwrap_or_default())),
        ];
        let head: Vec<String> = heads.into_iter().flatten().map(|part| printable(&part)).collect();
        if index > 0 {
            text.push('\n');
        }
        if !head.is_empty() {
            text.push_str(&format!("{}\n", head.join(" ")));
        }
        text.push_str(&bars(&histogram.buckets));
    }
    if all.iter().all(|histogram| histogram.buckets.is_empty()) {
        text.push_str("nothing is counted yet\n");
    }
    text
}

fn bars(buckets: &[Bucket]) -> String {
    let most = buckets.iter().map(|bucket| bucket.count.as_f64()).fold(0.0, f64::max);
    let rows: Vec<(String, String, String)> = buckets
        .iter()
        .map(|bucket| {
            let range = match bucket.from == bucket.to {
                true => format!("{}", bucket.from),
                false => format!("{} .. {}", short(bucket.from), short(bucket.to.saturating_add(1))),
            };
            // Whatever is counted is seen.
            let count = bucket.count.as_f64();
            let length = if count > 0.0 { (count / most * BAR).ceil() as usize } else { 0 };
            (range, bucket.count.to_string(), "#".repeat(length))
        })
        .collect();
    let width = |of: fn(&(String, String, String)) -> usize| rows.iter().map(of).max().unwrap_or(0);
    let (ranges, counts) = (width(|row| row.0.len()), width(|row| row.1.len()));
    let line = |(range, count, bar): &(String, String, String)| {
        format!("{range:>ranges$}  {count:>counts$}  {bar}").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

/// In the largest binary unit that leaves it whole.
fn short(number: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(1 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")];
    let unit = UNITS.iter().find(|(unit, _)| number >= *unit && number.is_multiple_of(*unit));
    unit.map_or_else(|| number.to_string(), |(unit, name)| format!("{}{name}", number / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_stand_for_what_the_scale_says() {
        assert_eq!([0, 1, 5].map(|slot| range(Scale::Log2, 1, slot)), [(0, 1), (2, 3), (32, 63)]);
        assert_eq!(
            [0, 1, 5, 64].map(|slot| range(Scale::Bits, 1, slot)),
            [(0, 0), (1, 1), (16, 31), (1 << 63, u64::MAX)]
        );
        assert_eq!([0, 3].map(|slot| range(Scale::Linear, 64, slot)), [(0, 63), (192, 255)]);
        assert_eq!(range(Scale::Log2, 1, 63), (1 << 63, u64::MAX));
    }

    #[test]
    fn bars_are_as_long_as_counts_are_large() {
        let bucket = |from, to, count| Bucket { from, to, count: Number::Whole(count) };
        let shown = bars(&[bucket(0, 0, 1), bucket(512, 1023, 0), bucket(1024, 2047, 400), bucket(2048, 4095, 200)]);
        let (full, half) = ("#".repeat(40), "#".repeat(20));
        let wanted = format!("        0    1  #\n512 .. 1K    0\n 1K .. 2K  400  {full}\n 2K .. 4K  200  {half}\n");
        assert_eq!(shown, wanted);
    }
}
