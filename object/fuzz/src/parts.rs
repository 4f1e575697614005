//! Input of several parts. A separator stands between them, not lengths before them: a part that grows stays one, and
//! the headers around it, which would not survive any mutation, are written by the target.

/// Ends a part.
pub const SEPARATOR: &[u8] = b"\xfe\xedPART";

/// The first `N` parts; those that are not there are empty.
pub fn split<const N: usize>(data: &[u8]) -> [&[u8]; N] {
    let mut rest = data;
    std::array::from_fn(|_| {
        let end = rest.windows(SEPARATOR.len()).position(|window| window == SEPARATOR);
        let (part, after) = end.map_or((rest, &[][..]), |end| (&rest[..end], &rest[end + SEPARATOR.len()..]));
        rest = after;
        part
    })
}

/// The inverse of [`split`].
pub fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.join(SEPARATOR)
}

/// BTF of these types, and of strings after the empty one.
pub fn btf(types: &[u8], strings: &[u8]) -> Vec<u8> {
    let (types_len, strings_len) = (types.len() as u32, strings.len() as u32 + 2);
    let mut out = Vec::with_capacity(24 + types.len() + strings.len() + 2);
    for word in [0x0001_eb9f, 24, 0, types_len, types_len, strings_len] {
        out.extend_from_slice(&u32::to_le_bytes(word));
    }
    out.extend_from_slice(types);
    out.push(0);
    out.extend_from_slice(strings);
    out.push(0);
    out
}

/// The types and strings that [`btf`] makes the same BTF of.
pub fn of_btf(btf: &[u8]) -> Option<(&[u8], &[u8])> {
    let word = |at: usize| Some(u32::from_le_bytes(btf.get(at..at + 4)?.try_into().ok()?) as usize);
    let (header, types, types_len, strings, strings_len) = (word(4)?, word(8)?, word(12)?, word(16)?, word(20)?);
    let types = btf.get(header + types..)?.get(..types_len)?;
    let strings = btf.get(header + strings..)?.get(1..strings_len - 1)?;
    Some((types, strings))
}
