//! The few instructions that guests of this program are made of, as words (Arm ARM C6.2, C7.2).
//!
//! Registers are numbers; 31 is xzr or sp as the instruction has it. Places are word numbers: a
//! branch backwards names one from [`Asm::here`], a branch forwards is patched by [`Asm::land`].

/// Where the guest writes to report a value to the VMM.
pub(crate) const REPORT: u64 = 0x1000_0000;
/// Where its vectors write which of them was taken.
pub(crate) const EXCEPTION: u64 = 0x1000_1000;

/// An access to memory at the address in a register, offset 0: the instruction without registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Access {
    LdrX = 0xf940_0000,
    LdrW = 0xb940_0000,
    LdrH = 0x7940_0000,
    LdrB = 0x3940_0000,
    LdrswX = 0xb980_0000,
    LdrshX = 0x7980_0000,
    LdrshW = 0x79c0_0000,
    LdrsbX = 0x3980_0000,
    LdrsbW = 0x39c0_0000,
    StrX = 0xf900_0000,
    StrW = 0xb900_0000,
    StrH = 0x7900_0000,
    StrB = 0x3900_0000,
    /// ldp xt, x30, \[xn\]: no syndrome describes it.
    LdpX = 0xa940_7800,
    /// ldr qt, \[xn\].
    LdrQ = 0x3dc0_0000,
    /// str qt, \[xn\].
    StrQ = 0x3d80_0000,
}

/// A system register or instruction: op0, op1, CRn, CRm, op2.
pub(crate) type Sys = (u32, u32, u32, u32, u32);

pub(crate) const SCTLR_EL1: Sys = (3, 0, 1, 0, 0);
pub(crate) const TTBR0_EL1: Sys = (3, 0, 2, 0, 0);
pub(crate) const TCR_EL1: Sys = (3, 0, 2, 0, 2);
pub(crate) const SPSR_EL1: Sys = (3, 0, 4, 0, 0);
pub(crate) const ELR_EL1: Sys = (3, 0, 4, 0, 1);
pub(crate) const SP_EL0: Sys = (3, 0, 4, 1, 0);
pub(crate) const ESR_EL1: Sys = (3, 0, 5, 2, 0);
pub(crate) const FAR_EL1: Sys = (3, 0, 6, 0, 0);
pub(crate) const MAIR_EL1: Sys = (3, 0, 10, 2, 0);
pub(crate) const VBAR_EL1: Sys = (3, 0, 12, 0, 0);
pub(crate) const CPACR_EL1: Sys = (3, 0, 1, 0, 2);
pub(crate) const CONTEXTIDR_EL1: Sys = (3, 0, 13, 0, 1);
pub(crate) const TPIDR_EL1: Sys = (3, 0, 13, 0, 4);
pub(crate) const TPIDR_EL0: Sys = (3, 3, 13, 0, 2);
pub(crate) const TPIDRRO_EL0: Sys = (3, 3, 13, 0, 3);
pub(crate) const ICC_PMR_EL1: Sys = (3, 0, 4, 6, 0);
pub(crate) const ICC_IAR1_EL1: Sys = (3, 0, 12, 12, 0);
pub(crate) const ICC_EOIR1_EL1: Sys = (3, 0, 12, 12, 1);
pub(crate) const ICC_SRE_EL1: Sys = (3, 0, 12, 12, 5);
pub(crate) const ICC_IGRPEN1_EL1: Sys = (3, 0, 12, 12, 7);

/// A program under construction.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asm {
    words: Vec<u32>,
}

/// A branch that does not know its target yet.
#[must_use]
pub(crate) struct Forward {
    at: usize,
}

impl Asm {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn words(&self) -> &[u32] {
        &self.words
    }

    pub(crate) fn here(&self) -> usize {
        self.words.len()
    }

    pub(crate) fn word(&mut self, word: u32) -> &mut Self {
        self.words.push(word);
        self
    }

    /// mov xd, value.
    pub(crate) fn mov(&mut self, d: u32, value: u64) -> &mut Self {
        self.word(0xd280_0000 | ((value & 0xffff) as u32) << 5 | d);
        for part in 1..4 {
            let bits = (value >> (16 * part) & 0xffff) as u32;
            if bits != 0 {
                self.word(0xf280_0000 | part << 21 | bits << 5 | d);
            }
        }
        self
    }

    /// mov xd, xm.
    pub(crate) fn mov_reg(&mut self, d: u32, m: u32) -> &mut Self {
        self.word(0xaa00_03e0 | m << 16 | d)
    }

    /// add xd, xn, #value (below 4096).
    pub(crate) fn add(&mut self, d: u32, n: u32, value: u32) -> &mut Self {
        self.word(0x9100_0000 | value << 10 | n << 5 | d)
    }

    /// sub xd, xn, #value (below 4096).
    pub(crate) fn sub(&mut self, d: u32, n: u32, value: u32) -> &mut Self {
        self.word(0xd100_0000 | value << 10 | n << 5 | d)
    }

    /// cmp xn, xm.
    pub(crate) fn cmp(&mut self, n: u32, m: u32) -> &mut Self {
        self.word(0xeb00_001f | m << 16 | n << 5)
    }

    /// xt loaded from or stored to \[xn\].
    pub(crate) fn access(&mut self, what: Access, t: u32, n: u32) -> &mut Self {
        self.word(what as u32 | n << 5 | t)
    }

    pub(crate) fn ldr(&mut self, t: u32, n: u32) -> &mut Self {
        self.access(Access::LdrX, t, n)
    }

    pub(crate) fn str(&mut self, t: u32, n: u32) -> &mut Self {
        self.access(Access::StrX, t, n)
    }

    pub(crate) fn mrs(&mut self, t: u32, reg: Sys) -> &mut Self {
        self.word(0xd520_0000 | encoding(reg) | t)
    }

    pub(crate) fn msr(&mut self, reg: Sys, t: u32) -> &mut Self {
        self.word(0xd500_0000 | encoding(reg) | t)
    }

    /// dup vd.2d, xn.
    pub(crate) fn dup(&mut self, d: u32, n: u32) -> &mut Self {
        self.word(0x4e08_0c00 | n << 5 | d)
    }

    /// mov xd, vn.d\[index\].
    pub(crate) fn lane(&mut self, d: u32, n: u32, index: u32) -> &mut Self {
        self.word(0x4e08_3c00 | index << 20 | n << 5 | d)
    }

    pub(crate) fn hvc(&mut self) -> &mut Self {
        self.word(0xd400_0002)
    }

    pub(crate) fn wfi(&mut self) -> &mut Self {
        self.word(0xd503_207f)
    }

    pub(crate) fn isb(&mut self) -> &mut Self {
        self.word(0xd503_3fdf)
    }

    /// dsb sy.
    pub(crate) fn dsb(&mut self) -> &mut Self {
        self.word(0xd503_3f9f)
    }

    /// ic iallu.
    pub(crate) fn ic(&mut self) -> &mut Self {
        self.word(0xd508_751f)
    }

    /// msr daifclr, #mask: 2 is I, 4 is A.
    pub(crate) fn unmask(&mut self, mask: u32) -> &mut Self {
        self.word(0xd503_40ff | mask << 8)
    }

    /// blr xn.
    pub(crate) fn call(&mut self, n: u32) -> &mut Self {
        self.word(0xd63f_0000 | n << 5)
    }

    pub(crate) fn eret(&mut self) -> &mut Self {
        self.word(0xd69f_03e0)
    }

    pub(crate) fn ret(&mut self) -> &mut Self {
        self.word(0xd65f_03c0)
    }

    pub(crate) fn back(&mut self, to: usize) -> &mut Self {
        let from = self.here();
        self.word(0x1400_0000 | distance(from, to) & 0x3ff_ffff)
    }

    /// cbz xt, to.
    pub(crate) fn back_if_zero(&mut self, t: u32, to: usize) -> &mut Self {
        let from = self.here();
        self.word(0xb400_0000 | (distance(from, to) & 0x7_ffff) << 5 | t)
    }

    /// cbnz xt, to.
    pub(crate) fn back_unless_zero(&mut self, t: u32, to: usize) -> &mut Self {
        let from = self.here();
        self.word(0xb500_0000 | (distance(from, to) & 0x7_ffff) << 5 | t)
    }

    /// cbz xt, to where [`Asm::land`] says.
    pub(crate) fn if_zero(&mut self, t: u32) -> Forward {
        self.word(0xb400_0000 | t);
        Forward {
            at: self.here() - 1,
        }
    }

    /// b.cond, to where [`Asm::land`] says.
    pub(crate) fn if_cond(&mut self, cond: Cond) -> Forward {
        self.word(0x5400_0000 | cond as u32);
        Forward {
            at: self.here() - 1,
        }
    }

    pub(crate) fn land(&mut self, branch: Forward) -> &mut Self {
        let to = self.here();
        self.words[branch.at] |= (distance(branch.at, to) & 0x7_ffff) << 5;
        self
    }

    /// Reports xt to the VMM; x28 is lost.
    pub(crate) fn report(&mut self, t: u32) -> &mut Self {
        self.mov(28, REPORT).str(t, 28)
    }

    /// Waits for ever.
    pub(crate) fn stop(&mut self) -> &mut Self {
        let here = self.here();
        self.back(here)
    }
}

/// Conditions.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(crate) enum Cond {
    Equal = 0,
    NotEqual = 1,
    /// Unsigned, less.
    Below = 3,
}

const fn encoding((op0, op1, crn, crm, op2): Sys) -> u32 {
    // MRS has bit 21 set where MSR has it clear: bit 20 of the word is op0's upper bit.
    op0 << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5
}

fn distance(from: usize, to: usize) -> u32 {
    (to as i64 - from as i64) as u32
}

/// The vector table: each entry reports its number to [`EXCEPTION`], with ESR in x21, FAR in x22,
/// ELR in x23, and goes on behind the report at what x27 names.
pub(crate) fn vectors() -> Vec<u32> {
    let mut words = Vec::new();
    for number in 0..16 {
        let mut entry = Asm::new();
        entry.mov(20, number).mrs(21, ESR_EL1).mrs(22, FAR_EL1);
        entry.mrs(23, ELR_EL1).mov(24, EXCEPTION).str(20, 24);
        entry.word(0xd61f_0000 | 27 << 5); // br x27
        words.extend_from_slice(entry.words());
        words.resize((number as usize + 1) * 32, 0xd503_201f);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against an assembler (llvm-mc 14), instruction by instruction.
    #[test]
    fn words_are_those_of_an_assembler() {
        let mut asm = Asm::new();
        asm.mov(3, 0x1234_0000_5678); // movz, movk lsl 32
        asm.mov_reg(1, 2).add(4, 5, 16).sub(4, 5, 1).cmp(6, 7);
        asm.ldr(1, 2).str(31, 2);
        asm.access(Access::LdrswX, 1, 2)
            .access(Access::LdrsbW, 1, 2);
        asm.access(Access::LdpX, 1, 2).access(Access::StrQ, 3, 4);
        asm.mrs(9, ESR_EL1).msr(TPIDR_EL0, 9).msr(ICC_EOIR1_EL1, 1);
        asm.dup(5, 6).lane(1, 2, 1).lane(1, 2, 0);
        asm.hvc().wfi().isb().dsb().ic().unmask(2);
        asm.call(9).ret().eret();
        let expected = [
            0xd28a_cf03,
            0xf2c2_4683,
            0xaa02_03e1,
            0x9100_40a4,
            0xd100_04a4,
            0xeb07_00df,
            0xf940_0041,
            0xf900_005f,
            0xb980_0041,
            0x39c0_0041,
            0xa940_7841,
            0x3d80_0083,
            0xd538_5209,
            0xd51b_d049,
            0xd518_cc21,
            0x4e08_0cc5,
            0x4e18_3c41,
            0x4e08_3c41,
            0xd400_0002,
            0xd503_207f,
            0xd503_3fdf,
            0xd503_3f9f,
            0xd508_751f,
            0xd503_42ff,
            0xd63f_0120,
            0xd65f_03c0,
            0xd69f_03e0,
        ];
        for (at, (seen, wanted)) in asm.words().iter().zip(expected).enumerate() {
            assert_eq!(*seen, wanted, "word {at}: {seen:#010x}, not {wanted:#010x}");
        }
        assert_eq!(asm.here(), expected.len());
    }

    #[test]
    fn accesses_are_those_of_an_assembler() {
        for (access, wanted) in [
            (Access::LdrX, 0xf940_0041),
            (Access::LdrW, 0xb940_0041),
            (Access::LdrH, 0x7940_0041),
            (Access::LdrB, 0x3940_0041),
            (Access::LdrswX, 0xb980_0041),
            (Access::LdrshX, 0x7980_0041),
            (Access::LdrshW, 0x79c0_0041),
            (Access::LdrsbX, 0x3980_0041),
            (Access::LdrsbW, 0x39c0_0041),
            (Access::StrX, 0xf900_0041),
            (Access::StrW, 0xb900_0041),
            (Access::StrH, 0x7900_0041),
            (Access::StrB, 0x3900_0041),
            (Access::LdpX, 0xa940_7841),
            (Access::LdrQ, 0x3dc0_0041),
            (Access::StrQ, 0x3d80_0041),
        ] {
            assert_eq!(
                Asm::new().access(access, 1, 2).words(),
                [wanted],
                "{access:?}"
            );
        }
    }

    #[test]
    fn system_registers_are_those_of_an_assembler() {
        for (reg, wanted) in [
            (SCTLR_EL1, 0xd538_1000),
            (TTBR0_EL1, 0xd538_2000),
            (TCR_EL1, 0xd538_2040),
            (SPSR_EL1, 0xd538_4000),
            (ELR_EL1, 0xd538_4020),
            (SP_EL0, 0xd538_4100),
            (ESR_EL1, 0xd538_5200),
            (FAR_EL1, 0xd538_6000),
            (MAIR_EL1, 0xd538_a200),
            (VBAR_EL1, 0xd538_c000),
            (CPACR_EL1, 0xd538_1040),
            (CONTEXTIDR_EL1, 0xd538_d020),
            (TPIDR_EL1, 0xd538_d080),
            (TPIDR_EL0, 0xd53b_d040),
            (TPIDRRO_EL0, 0xd53b_d060),
            (ICC_PMR_EL1, 0xd538_4600),
            (ICC_IAR1_EL1, 0xd538_cc00),
            (ICC_SRE_EL1, 0xd538_cca0),
            (ICC_IGRPEN1_EL1, 0xd538_cce0),
        ] {
            assert_eq!(Asm::new().mrs(0, reg).words(), [wanted], "{reg:?}");
        }
    }

    #[test]
    fn a_report_is_a_store() {
        assert_eq!(
            Asm::new().report(0).words(),
            [0xd280_001c, 0xf2a2_001c, 0xf900_0380]
        );
        for (cond, wanted) in [
            (Cond::Equal, 0x5400_0020),
            (Cond::NotEqual, 0x5400_0021),
            (Cond::Below, 0x5400_0023),
        ] {
            let mut asm = Asm::new();
            let branch = asm.if_cond(cond);
            assert_eq!(asm.land(branch).words(), [wanted], "{cond:?}");
        }
    }

    #[test]
    fn branches_reach_their_targets() {
        let mut asm = Asm::new();
        let top = asm.here();
        let out = asm.if_zero(1);
        let below = asm.if_cond(Cond::Below);
        asm.back(top).back_if_zero(3, top).back_unless_zero(3, top);
        asm.land(out).land(below).stop();
        let expected = [
            0xb400_00a1,
            0x5400_0083,
            0x17ff_fffe,
            0xb4ff_ffa3,
            0xb5ff_ff83,
            0x1400_0000,
        ];
        assert_eq!(asm.words(), expected);
    }

    #[test]
    fn the_vector_table_has_its_size() {
        assert_eq!(vectors().len() * 4, 0x800);
    }
}
