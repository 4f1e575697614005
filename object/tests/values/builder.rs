//! BTF, type by type, for what clang does not make.

/// BTF under construction. Ids count from 1.
#[derive(Default)]
pub struct Builder {
    types: Vec<u8>,
    strings: Vec<u8>,
    count: u32,
}

impl Builder {
    /// A type of raw parts: what is in its header, and what follows it.
    pub fn raw(&mut self, name: &str, info: u32, size: u32, trailer: &[u32]) -> u32 {
        let name = self.string(name);
        for word in [name, info, size].iter().chain(trailer) {
            self.types.extend_from_slice(&word.to_le_bytes());
        }
        self.count += 1;
        self.count
    }

    pub fn string(&mut self, text: &str) -> u32 {
        if text.is_empty() {
            return 0;
        }
        let at = 1 + self.strings.len() as u32;
        self.strings.extend_from_slice(text.as_bytes());
        self.strings.push(0);
        at
    }

    /// `encoding`: 1 signed, 2 char, 4 bool.
    pub fn int(&mut self, name: &str, size: u32, encoding: u32) -> u32 {
        self.raw(name, 1 << 24, size, &[encoding << 24 | (size * 8)])
    }

    pub fn array(&mut self, element: u32, count: u32) -> u32 {
        self.raw("", 3 << 24, 0, &[element, element, count])
    }

    /// Members are (name, type, bit offset).
    pub fn record(&mut self, kind: u32, name: &str, size: u32, members: &[(&str, u32, u32)]) -> u32 {
        let members: Vec<u32> = members.iter().flat_map(|(name, id, at)| [self.string(name), *id, *at]).collect();
        self.raw(name, kind << 24 | (members.len() / 3) as u32, size, &members)
    }

    pub fn build(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32 + 1);
        for word in [0x0001_eb9f, 24, 0, types, types, strings] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&self.types);
        out.push(0);
        out.extend_from_slice(&self.strings);
        out
    }
}
