//! eBPF instructions as text, in the notation that the verifier and bpftool use (RFC 9669 names the operations; Linux 6.18).
//!
//! **Guarantees.** Any eight bytes have a text: what is no instruction says so with its opcode.

use crate::insn::{Insn, pseudo};

/// Instruction classes, of the low three bits.
mod class {
    pub const LD: u8 = 0;
    pub const LDX: u8 = 1;
    pub const ST: u8 = 2;
    pub const STX: u8 = 3;
    pub const ALU: u8 = 4;
    pub const JMP: u8 = 5;
    pub const JMP32: u8 = 6;
    pub const ALU64: u8 = 7;
}

/// Modes of loads and stores, of the high three bits.
mod mode {
    pub const IMM: u8 = 0x00;
    pub const ABS: u8 = 0x20;
    pub const IND: u8 = 0x40;
    pub const MEM: u8 = 0x60;
    pub const MEMSX: u8 = 0x80;
    pub const ATOMIC: u8 = 0xc0;
}

/// The second operand is a register.
const REGISTER: u8 = 0x08;
/// `nospec`, which the verifier puts in against speculation.
const NOSPEC: u8 = 0xc2;

/// What numbers in instructions stand for.
pub trait Names {
    /// A helper or a kernel function, by what a call's immediate is after the verifier.
    fn call(&self, imm: i32) -> Option<String>;
    /// The map with that id.
    fn map(&self, id: u32) -> Option<String>;
    /// The function of the program that begins at a slot.
    fn function(&self, slot: usize) -> Option<String>;
}

/// An instruction's text; `index` is its slot, and `next` the slot after it, the second half of one of sixteen bytes.
pub fn text(insn: Insn, next: Option<Insn>, index: usize, names: &dyn Names) -> String {
    let known = match insn.code & 7 {
        class::ALU | class::ALU64 => arithmetic(insn),
        class::LDX => load(insn),
        class::ST if insn.code == NOSPEC => Some("nospec".to_owned()),
        class::ST if insn.code & 0xe0 == mode::MEM => Some(format!("{} = {}", memory(insn, dst(insn), 'u'), insn.imm)),
        class::STX => store(insn),
        class::LD => immediate(insn, next, index, names),
        class::JMP | class::JMP32 => jump(insn, index, names),
        _ => None,
    };
    known.unwrap_or_else(|| format!("opcode {:#04x}, which is not known", insn.code))
}

fn dst(insn: Insn) -> u8 {
    insn.regs & 0x0f
}

/// Bits, of the size field of loads and stores.
fn bits(code: u8) -> u32 {
    match code & 0x18 {
        0x00 => 32,
        0x08 => 16,
        0x10 => 8,
        _ => 64,
    }
}

/// `*(u64 *)(r1 +8)`.
fn memory(insn: Insn, register: u8, sign: char) -> String {
    format!("*{}", pointer(insn, register, sign))
}

fn pointer(insn: Insn, register: u8, sign: char) -> String {
    format!("({sign}{} *)(r{register} {:+})", bits(insn.code), insn.off)
}

fn arithmetic(insn: Insn) -> Option<String> {
    let wide = insn.code & 7 == class::ALU64;
    let (dst, src) = (dst(insn), insn.src());
    let name = if wide { 'r' } else { 'w' };
    let by_register = insn.code & REGISTER != 0;
    let operator = match (insn.code & 0xf0, insn.off) {
        // The byte order's width is the immediate, and the register the whole one.
        (0xd0, _) => {
            let order = if wide { "bswap" } else { ["le", "be"][usize::from(by_register)] };
            return Some(format!("r{dst} = {order}{} r{dst}", insn.imm));
        }
        (0x80, _) => return Some(format!("{name}{dst} = -{name}{dst}")),
        (0xb0, _) if by_register => return copy(insn, name),
        (0x00, _) => "+=",
        (0x10, _) => "-=",
        (0x20, _) => "*=",
        (0x30, 1) => "s/=",
        (0x30, _) => "/=",
        (0x40, _) => "|=",
        (0x50, _) => "&=",
        (0x60, _) => "<<=",
        (0x70, _) => ">>=",
        (0x90, 1) => "s%=",
        (0x90, _) => "%=",
        (0xa0, _) => "^=",
        (0xb0, _) => "=",
        (0xc0, _) => "s>>=",
        _ => return None,
    };
    Some(match by_register {
        true => format!("{name}{dst} {operator} {name}{src}"),
        false => format!("{name}{dst} {operator} {}", insn.imm),
    })
}

/// Moves that extend a sign, cast into another address space, or make an address of this CPU's.
fn copy(insn: Insn, name: char) -> Option<String> {
    let (dst, src) = (dst(insn), insn.src());
    Some(match (insn.off, name) {
        (0, _) => format!("{name}{dst} = {name}{src}"),
        (8 | 16 | 32, _) => format!("{name}{dst} = (s{}){name}{src}", insn.off),
        (1, 'r') => {
            let (to, from) = (insn.imm.cast_unsigned() >> 16, insn.imm & 0xffff);
            format!("r{dst} = addr_space_cast(r{src}, {to}, {from})")
        }
        (-1, 'r') => format!("r{dst} = &(void __percpu *)(r{src})"),
        _ => return None,
    })
}

fn load(insn: Insn) -> Option<String> {
    let sign = match insn.code & 0xe0 {
        mode::MEM => 'u',
        mode::MEMSX => 's',
        _ => return None,
    };
    Some(format!("r{} = {}", dst(insn), memory(insn, insn.src(), sign)))
}

fn store(insn: Insn) -> Option<String> {
    let src = insn.src();
    let place = || pointer(insn, dst(insn), 'u');
    if insn.code & 0xe0 == mode::MEM {
        return Some(format!("*{} = r{src}", place()));
    }
    if insn.code & 0xe0 != mode::ATOMIC {
        return None;
    }
    let width = if bits(insn.code) == 64 { "64" } else { "" };
    let operator = |imm: i32| {
        Some(match imm {
            0x00 => ("+=", "add"),
            0x40 => ("|=", "or"),
            0x50 => ("&=", "and"),
            0xa0 => ("^=", "xor"),
            _ => return None,
        })
    };
    Some(match insn.imm {
        0xe1 => format!("r{src} = atomic{width}_xchg({}, r{src})", place()),
        0xf1 => format!("r0 = atomic{width}_cmpxchg({}, r0, r{src})", place()),
        0x100 => format!("r{} = load_acquire({})", dst(insn), pointer(insn, src, 'u')),
        0x110 => format!("store_release({}, r{src})", place()),
        imm if imm & 1 == 1 => format!("r{src} = atomic{width}_fetch_{}({}, r{src})", operator(imm & !1)?.1, place()),
        imm => format!("lock *{} {} r{src}", place(), operator(imm)?.0),
    })
}

/// Constants and addresses of 64 bits; packets, as socket filters read them.
fn immediate(insn: Insn, next: Option<Insn>, index: usize, names: &dyn Names) -> Option<String> {
    let dst = dst(insn);
    Some(match insn.code & 0xe0 {
        mode::ABS => format!("r0 = *(u{} *)skb[{}]", bits(insn.code), insn.imm),
        mode::IND => format!("r0 = *(u{} *)skb[r{} + {}]", bits(insn.code), insn.src(), insn.imm),
        mode::IMM if insn.is_ld_imm64() => {
            let (low, high) = (insn.imm.cast_unsigned(), next?.imm.cast_unsigned());
            let map =
                || names.map(low).map_or_else(|| format!("map[id:{low}]"), |name| format!("map {name} (id {low})"));
            match insn.src() {
                pseudo::MAP_FD => format!("r{dst} = {}", map()),
                pseudo::MAP_VALUE => format!("r{dst} = {}[0]+{high}", map()),
                pseudo::FUNC => {
                    let slot = index.wrapping_add_signed(insn.imm as isize).wrapping_add(1);
                    let name = names.function(slot).map_or_else(String::new, |name| format!(" <{name}>"));
                    format!("r{dst} = subprog[{:+}]{name}", insn.imm)
                }
                _ => format!("r{dst} = {:#x}", u64::from(high) << 32 | u64::from(low)),
            }
        }
        _ => return None,
    })
}

fn jump(insn: Insn, index: usize, names: &dyn Names) -> Option<String> {
    let short = insn.code & 7 == class::JMP32;
    let (dst, src) = (dst(insn), insn.src());
    let by_register = insn.code & REGISTER != 0;
    let operator = match insn.code & 0xf0 {
        0x00 if short => return Some(format!("gotol pc{:+}", insn.imm)),
        0x00 if by_register => return Some(format!("gotox r{dst}")),
        0x00 => return Some(format!("goto pc{:+}", insn.off)),
        0x80 => return Some(call(insn, index, names)),
        0x90 => return Some("exit".to_owned()),
        0xe0 => return Some(format!("may_goto pc{:+}", insn.off)),
        0x10 => "==",
        0x20 => ">",
        0x30 => ">=",
        0x40 => "&",
        0x50 => "!=",
        0x60 => "s>",
        0x70 => "s>=",
        0xa0 => "<",
        0xb0 => "<=",
        0xc0 => "s<",
        0xd0 => "s<=",
        _ => return None,
    };
    let name = if short { 'w' } else { 'r' };
    let other = if by_register { format!("{name}{src}") } else { format!("{:#x}", insn.imm) };
    Some(format!("if {name}{dst} {operator} {other} goto pc{:+}", insn.off))
}

fn call(insn: Insn, index: usize, names: &dyn Names) -> String {
    if insn.src() == pseudo::CALL {
        let slot = index.wrapping_add_signed(insn.imm as isize).wrapping_add(1);
        let name = names.function(slot).map_or_else(String::new, |name| format!(" <{name}>"));
        return format!("call pc{:+}{name}", insn.imm);
    }
    names.call(insn.imm).map_or_else(|| format!("call {:#x}", insn.imm), |name| format!("call {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Some7;
    impl Names for Some7 {
        fn call(&self, imm: i32) -> Option<String> {
            (imm == 7).then(|| "bpf_get_prandom_u32".into())
        }
        fn map(&self, id: u32) -> Option<String> {
            (id == 7).then(|| "counts".into())
        }
        fn function(&self, slot: usize) -> Option<String> {
            (slot == 7).then(|| "helper".into())
        }
    }

    fn shown(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> String {
        let next = Insn { code: 0, regs: 0, off: 0, imm: 0x12 };
        text(Insn { code, regs: dst | src << 4, off, imm }, Some(next), 3, &Some7)
    }

    #[test]
    fn instructions_have_the_verifiers_notation() {
        for (insn, expected) in [
            ((0xb7, 0, 0, 0, -1), "r0 = -1"),
            ((0xb4, 1, 0, 0, 5), "w1 = 5"),
            ((0xbf, 6, 1, 0, 0), "r6 = r1"),
            ((0xbf, 6, 1, 8, 0), "r6 = (s8)r1"),
            ((0xbc, 6, 1, 16, 0), "w6 = (s16)w1"),
            ((0xbf, 6, 1, 1, 0x10000), "r6 = addr_space_cast(r1, 1, 0)"),
            ((0x87, 2, 0, 0, 0), "r2 = -r2"),
            ((0xdc, 2, 0, 0, 16), "r2 = be16 r2"),
            ((0xd4, 2, 0, 0, 32), "r2 = le32 r2"),
            ((0xd7, 2, 0, 0, 64), "r2 = bswap64 r2"),
            ((0x37, 2, 0, 1, 3), "r2 s/= 3"),
            ((0x9f, 2, 3, 0, 0), "r2 %= r3"),
            ((0x79, 1, 6, 16, 0), "r1 = *(u64 *)(r6 +16)"),
            ((0x91, 1, 6, -1, 0), "r1 = *(s8 *)(r6 -1)"),
            ((0x62, 10, 0, -4, 7), "*(u32 *)(r10 -4) = 7"),
            ((0x6b, 10, 3, -8, 0), "*(u16 *)(r10 -8) = r3"),
            ((0xdb, 0, 1, 8, 0), "lock *(u64 *)(r0 +8) += r1"),
            ((0xc3, 0, 1, 8, 1), "r1 = atomic_fetch_add((u32 *)(r0 +8), r1)"),
            ((0xdb, 2, 1, 0, 0xf1), "r0 = atomic64_cmpxchg((u64 *)(r2 +0), r0, r1)"),
            ((0xdb, 2, 1, 0, 0xe1), "r1 = atomic64_xchg((u64 *)(r2 +0), r1)"),
            ((0xdb, 2, 1, 0, 0x100), "r2 = load_acquire((u64 *)(r1 +0))"),
            ((0x30, 0, 0, 0, 23), "r0 = *(u8 *)skb[23]"),
            ((0x48, 0, 3, 0, 2), "r0 = *(u16 *)skb[r3 + 2]"),
            ((0x18, 1, 0, 0, 0x34), "r1 = 0x1200000034"),
            ((0x18, 1, 1, 0, 7), "r1 = map counts (id 7)"),
            ((0x18, 1, 2, 0, 8), "r1 = map[id:8][0]+18"),
            ((0x18, 1, 4, 0, 3), "r1 = subprog[+3] <helper>"),
            ((0x05, 0, 0, -3, 0), "goto pc-3"),
            ((0x06, 0, 0, 0, 70_000), "gotol pc+70000"),
            ((0x15, 1, 0, 4, -1), "if r1 == 0xffffffff goto pc+4"),
            ((0xae, 1, 2, 4, 0), "if w1 < w2 goto pc+4"),
            ((0x85, 0, 0, 0, 7), "call bpf_get_prandom_u32"),
            ((0x85, 0, 0, 0, 16), "call 0x10"),
            ((0x85, 0, 1, 0, 3), "call pc+3 <helper>"),
            ((0x95, 0, 0, 0, 0), "exit"),
            ((0xff, 0, 0, 0, 0), "opcode 0xff, which is not known"),
        ] {
            let (code, dst, src, off, imm) = insn;
            assert_eq!(shown(code, dst, src, off, imm), expected);
        }
    }

    #[test]
    fn any_bytes_have_a_text() {
        for code in 0..=255 {
            for imm in [0, 1, 0x40, 0xe1, 0xf1, 0x110, i32::MIN, i32::MAX] {
                let insn = Insn { code, regs: 0xff, off: i16::MIN, imm };
                assert!(!text(insn, None, 0, &Some7).is_empty());
                assert!(!text(insn, Some(insn), usize::MAX, &Some7).is_empty());
            }
        }
    }
}
