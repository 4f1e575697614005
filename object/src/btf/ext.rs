//! `.BTF.ext`: function and line information, and CO-RE relocations, by code section.

use std::collections::{BTreeMap, HashSet};

use super::Btf;
use crate::bytes::Reader;
use crate::elf::INSN;
use crate::error::ObjectError;
use crate::function::Function;

/// Where a function starts and which `Func` it is.
#[derive(Clone, Copy, Debug)]
pub struct FuncInfo {
    /// Bytes from the start of the section.
    pub offset: u32,
    pub type_id: u32,
}

/// Which source line an instruction came from; names are offsets into the BTF strings.
#[derive(Clone, Copy, Debug)]
pub struct LineInfo {
    /// Bytes from the start of the section.
    pub offset: u32,
    pub file: u32,
    pub line: u32,
    /// Line number << 10 | column.
    pub line_col: u32,
}

/// A CO-RE relocation.
#[derive(Clone, Copy, Debug)]
pub struct CoreRelocation {
    /// Bytes from the start of the section.
    pub offset: u32,
    pub type_id: u32,
    pub access: u32,
    pub kind: u32,
}

/// Most relocations of an object, and types that they begin at: a look for each goes through all types of the kernel.
const MAX_RELOCATIONS: usize = 1 << 16;
const MAX_ROOTS: usize = 1024;

/// What `.BTF.ext` says about one code section, each by offset.
#[derive(Clone, Debug, Default)]
pub struct SectionInfo {
    pub functions: Vec<FuncInfo>,
    pub lines: Vec<LineInfo>,
    pub relocations: Vec<CoreRelocation>,
}

impl SectionInfo {
    /// What is known of the function that starts there.
    pub fn function_at(&self, offset: u64) -> Option<&FuncInfo> {
        let at = self.functions.partition_point(|f| u64::from(f.offset) < offset);
        self.functions.get(at).filter(|f| u64::from(f.offset) == offset)
    }
    /// The lines of a function.
    pub fn lines_of(&self, function: &Function) -> &[LineInfo] {
        within(&self.lines, function, |line| line.offset)
    }
    /// The CO-RE relocations of a function.
    pub fn relocations_of(&self, function: &Function) -> &[CoreRelocation] {
        within(&self.relocations, function, |relocation| relocation.offset)
    }
}

fn within<'r, T>(records: &'r [T], function: &Function, offset: fn(&T) -> u32) -> &'r [T] {
    let (start, end) = (function.key.1, function.key.1 + function.size as u64);
    let from = |at: u64| records.partition_point(|record| u64::from(offset(record)) < at);
    &records[from(start)..from(end)]
}

/// By section name.
pub type BtfExt = BTreeMap<String, SectionInfo>;

/// Parses `.BTF.ext`; every type id and string offset in the result is valid in `btf`.
pub fn parse(data: &[u8], btf: &Btf) -> Result<BtfExt, ObjectError> {
    let r = Reader::new(data);
    let bad = |reason: &str| ObjectError::BadBtf { reason: format!(".BTF.ext: {reason}") };
    if r.u16(0)? != 0xeb9f || data.get(2) != Some(&1) {
        return Err(bad("the magic or version is wrong"));
    }
    let header = r.u32(4)? as usize;
    let mut ext = BtfExt::new();
    let tables = if header >= 32 { 3 } else { 2 };
    for table in 0..tables {
        let (offset, len) = (r.u32(8 + 8 * table)? as usize, r.u32(12 + 8 * table)? as usize);
        let start = header.checked_add(offset).ok_or_else(|| bad("a table lies outside"))?;
        let end = start.checked_add(len).filter(|e| *e <= data.len()).ok_or_else(|| bad("a table lies outside"))?;
        if len > 0 {
            parse_table(&r, table, start, end, btf, &mut ext)?;
        }
    }
    for info in ext.values_mut() {
        // Compilers write them so; who asks for those of a function counts on it.
        info.functions.sort_by_key(|record| record.offset);
        info.lines.sort_by_key(|record| record.offset);
        info.relocations.sort_by_key(|record| record.offset);
        // The kernel takes one of an instruction, and each program that calls a function has a copy of its lines.
        info.lines.dedup_by_key(|record| record.offset / INSN as u32);
    }
    let relocations = || ext.values().flat_map(|info| &info.relocations);
    if relocations().count() > MAX_RELOCATIONS {
        return Err(bad("it has more than 65,536 CO-RE relocations"));
    }
    if relocations().map(|relocation| relocation.type_id).collect::<HashSet<_>>().len() > MAX_ROOTS {
        return Err(bad("its CO-RE relocations begin at more than 1,024 types"));
    }
    Ok(ext)
}

fn parse_table(
    r: &Reader<'_>,
    table: usize,
    start: usize,
    end: usize,
    btf: &Btf,
    ext: &mut BtfExt,
) -> Result<(), ObjectError> {
    let bad = |reason: String| ObjectError::BadBtf { reason: format!(".BTF.ext: {reason}") };
    let record = r.u32(start)? as usize;
    let needed = if table == 0 { 8 } else { 16 };
    if record < needed || record > 256 || !record.is_multiple_of(4) {
        return Err(bad(format!("records of {record} bytes")));
    }
    let mut at = start + 4;
    while at < end {
        let name = btf.string(r.u32(at)?).to_owned();
        let count = r.u32(at + 4)? as usize;
        let next = count.checked_mul(record).and_then(|n| n.checked_add(at + 8)).filter(|n| *n <= end);
        let Some(next) = next.filter(|_| count > 0) else {
            return Err(bad(format!("the records of section {name} lie outside")));
        };
        let info = ext.entry(name).or_default();
        for i in 0..count {
            let p = at + 8 + i * record;
            let (offset, second) = (r.u32(p)?, r.u32(p + 4)?);
            match table {
                0 if btf.kind(second) != super::Kind::Func => return Err(bad(format!("[{second}] is not a function"))),
                0 => info.functions.push(FuncInfo { offset, type_id: second }),
                1 => info.lines.push(LineInfo { offset, file: second, line: r.u32(p + 8)?, line_col: r.u32(p + 12)? }),
                _ => {
                    let relocation =
                        CoreRelocation { offset, type_id: second, access: r.u32(p + 8)?, kind: r.u32(p + 12)? };
                    check_relocation(&relocation, btf)?;
                    info.relocations.push(relocation);
                }
            }
        }
        at = next;
    }
    Ok(())
}

/// What the relocation library behind us takes on trust.
fn check_relocation(relocation: &CoreRelocation, btf: &Btf) -> Result<(), ObjectError> {
    use super::Kind;
    let bad = |reason: String| Err(ObjectError::BadBtf { reason: format!(".BTF.ext: {reason}") });
    let root = btf.resolve(relocation.type_id);
    if relocation.type_id >= btf.len()
        || matches!(btf.kind(root), Kind::Void | Kind::Func | Kind::Var | Kind::Datasec | Kind::DeclTag)
    {
        return bad(format!("a CO-RE relocation starts at [{}], which is no type", relocation.type_id));
    }
    let access = btf.string(relocation.access);
    let ok = !access.is_empty()
        && access.len() < 256
        && access.split(':').all(|v| v.parse::<u32>().is_ok_and(|v| v < 1 << 20));
    if ok { Ok(()) } else { bad(format!("the CO-RE access string {access:?} is malformed")) }
}
