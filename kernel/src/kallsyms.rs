//! Names of kernel functions by their addresses, and which there are (/proc/kallsyms). Without CAP_SYSLOG all addresses are
//! zero, and nothing is found.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader};

/// What the immediates of helper calls are counted from.
const CALL_BASE: &str = "__bpf_call_base";

/// The functions that calls of these immediates go to, after the verifier made distances of them.
pub fn callees(immediates: &BTreeSet<i32>) -> io::Result<BTreeMap<i32, String>> {
    let mut found = BTreeMap::new();
    if immediates.is_empty() {
        return Ok(found);
    }
    let Some(base) = scan(|address, name| (name == CALL_BASE).then_some(address))? else { return Ok(found) };
    let wanted: BTreeMap<u64, i32> =
        immediates.iter().map(|imm| (base.wrapping_add_signed(i64::from(*imm)), *imm)).collect();
    scan(|address, name| {
        if let Some(imm) = wanted.get(&address) {
            // Of aliases the first, as bpftool has it.
            found.entry(*imm).or_insert_with(|| name.to_owned());
        }
        None::<()>
    })?;
    Ok(found)
}

/// Those of the names that the kernel has.
pub fn present(names: &[String]) -> io::Result<BTreeSet<String>> {
    let wanted: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    let mut found = BTreeSet::new();
    scan(|_, name| {
        if wanted.contains(name) {
            found.insert(name.to_owned());
        }
        (found.len() == wanted.len()).then_some(())
    })?;
    Ok(found)
}

/// A symbol of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    pub address: u64,
    /// The module that it is of.
    pub module: Option<String>,
    /// There are others of its name.
    pub ambiguous: bool,
}

/// The symbols of these names that there are.
pub fn symbols<'n>(names: &BTreeSet<&'n str>) -> io::Result<BTreeMap<&'n str, Symbol>> {
    let mut found: BTreeMap<&'n str, Symbol> = BTreeMap::new();
    if names.is_empty() {
        return Ok(found);
    }
    scan_lines(|address, name, module| {
        if let Some(name) = names.get(name) {
            let module = module.map(|module| module.trim_matches(['[', ']']).to_owned());
            let other = |first: &mut Symbol| first.ambiguous |= first.address != address;
            found.entry(name).and_modify(other).or_insert(Symbol { address, module, ambiguous: false });
        }
        None::<()>
    })?;
    Ok(found)
}

/// Until something is found. The file is larger than anybody wants to keep.
fn scan<T>(mut found: impl FnMut(u64, &str) -> Option<T>) -> io::Result<Option<T>> {
    scan_lines(|address, name, _| found(address, name))
}

fn scan_lines<T>(mut found: impl FnMut(u64, &str, Option<&str>) -> Option<T>) -> io::Result<Option<T>> {
    let mut lines = BufReader::with_capacity(64 << 10, File::open("/proc/kallsyms")?);
    let mut line = String::new();
    while lines.read_line(&mut line)? > 0 {
        let mut words = line.split_ascii_whitespace();
        if let (Some(address), Some(_), Some(name)) = (words.next(), words.next(), words.next())
            && let Ok(address) = u64::from_str_radix(address, 16)
            && address != 0
            && let Some(found) = found(address, name, words.next())
        {
            return Ok(Some(found));
        }
        line.clear();
    }
    Ok(None)
}
