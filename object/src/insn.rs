//! eBPF instructions (RFC 9669, section 3), as far as linking needs them.

/// `ld_imm64`, the one instruction that takes two slots.
const LD_IMM64: u8 = 0x18;
const CALL: u8 = 0x85;

/// What `src_reg` of a `ld_imm64` or call means to the verifier (include/uapi/linux/bpf.h).
pub mod pseudo {
    pub const MAP_FD: u8 = 1;
    pub const MAP_VALUE: u8 = 2;
    /// A variable or function of the kernel, by its BTF id.
    pub const BTF_ID: u8 = 3;
    pub const FUNC: u8 = 4;
    /// On a call: pc-relative, into the program itself.
    pub const CALL: u8 = 1;
    /// On a call: a kernel function, by its BTF id.
    pub const KFUNC_CALL: u8 = 2;
}

/// One eight-byte slot, laid out as the kernel's `struct bpf_insn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Insn {
    pub code: u8,
    /// Destination in the low, source in the high four bits.
    pub regs: u8,
    pub off: i16,
    pub imm: i32,
}

impl Insn {
    /// Reads all slots; a tail of less than eight bytes is not there after validation.
    pub fn read_all(bytes: &[u8]) -> Vec<Insn> {
        bytes
            .chunks_exact(8)
            .map(|c| Insn {
                code: c[0],
                regs: c[1],
                off: i16::from_le_bytes([c[2], c[3]]),
                imm: i32::from_le_bytes([c[4], c[5], c[6], c[7]]),
            })
            .collect()
    }
    /// The slot's bytes.
    pub fn to_bytes(self) -> [u8; 8] {
        let (o, i) = (self.off.to_le_bytes(), self.imm.to_le_bytes());
        [self.code, self.regs, o[0], o[1], i[0], i[1], i[2], i[3]]
    }
    pub fn is_ld_imm64(self) -> bool {
        self.code == LD_IMM64
    }
    pub fn is_call(self) -> bool {
        self.code == CALL
    }
    /// A helper's call, or whatever was called before.
    pub fn call(imm: i32) -> Insn {
        Insn { code: CALL, regs: 0, off: 0, imm }
    }
    pub fn src(self) -> u8 {
        self.regs >> 4
    }
    pub fn set_src(&mut self, src: u8) {
        self.regs = self.regs & 0x0f | src << 4;
    }
    /// A call into the same program that carries its distance itself.
    pub fn is_local_call(self) -> bool {
        self.is_call() && self.src() == pseudo::CALL
    }
}
