//! What a CPU is doing, by the instructions that change it, and the records that come of it.
//!
//! ```text
//!           ERET, TGE = 0, VM = 1 ─► guest ─► a vector of VBAR_EL2's lower half, at EL2
//!   host ──{                                                                        }──► host
//!           ERET to EL0, otherwise ─► user ─► the same
//! ```
//!
//! Nothing of the hypervisor is asked or told. A record is written at each entry to a guest, and says what
//! lay between the exit before it and this entry. `xtask/src/bench/record.rs` reads them.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::time::Instant;

/// What a CPU is doing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Doing {
    Host,
    User,
    Guest,
}

/// Instructions and memory accesses.
#[derive(Clone, Copy, Default)]
pub(crate) struct Cost {
    /// Instructions.
    pub(crate) instructions: u64,
    /// Accesses: a pair is one, DC ZVA none.
    pub(crate) accesses: u64,
}

impl Cost {
    fn since(self, before: Cost) -> Cost {
        Cost {
            instructions: self.instructions - before.instructions,
            accesses: self.accesses - before.accesses,
        }
    }

    fn add(&mut self, more: Cost) {
        self.instructions += more.instructions;
        self.accesses += more.accesses;
    }
}

/// How the guest was left.
#[derive(Clone, Copy, Default)]
struct Exit {
    /// 0 synchronous, 1 IRQ, 2 FIQ, 3 SError.
    vector: u64,
    esr: u64,
    hpfar: u64,
}

/// One CPU.
pub(crate) struct Cpu {
    doing: Doing,
    vectors: u64,
    /// Counters at the last change.
    mark: Cost,
    guest: Cost,
    host: Cost,
    user: Cost,
    /// None before the first entry.
    exit: Option<Exit>,
    /// HCR_EL2.NV of the last entry.
    virtual_el2: bool,
}

/// The registers that an ERET at EL2 is judged by.
pub(crate) struct Return {
    pub(crate) hcr: u64,
    pub(crate) spsr: u64,
    pub(crate) vbar: u64,
}

const HCR_VM: u64 = 1 << 0;
const HCR_TGE: u64 = 1 << 27;
const HCR_NV: u64 = 1 << 42;
const TABLE: u64 = 0x7ff;

const EXIT: u64 = 0;
const MARK: u64 = 1;
const FIRST: u64 = 2;

impl Cpu {
    /// A CPU that has just been switched on.
    pub(crate) const fn new() -> Cpu {
        const NONE: Cost = Cost {
            instructions: 0,
            accesses: 0,
        };
        Cpu {
            doing: Doing::Host,
            vectors: 0,
            mark: NONE,
            guest: NONE,
            host: NONE,
            user: NONE,
            exit: None,
            virtual_el2: false,
        }
    }

    fn turn(&mut self, now: Cost, to: Doing) {
        let spent = now.since(self.mark);
        match self.doing {
            Doing::Host => self.host.add(spent),
            Doing::User => self.user.add(spent),
            Doing::Guest => self.guest.add(spent),
        }
        self.mark = now;
        self.doing = to;
    }

    /// Whether an ERET means something: one of a guest does not.
    pub(crate) fn may_leave(&self) -> bool {
        self.doing == Doing::Host
    }

    /// EL2 executes ERET.
    pub(crate) fn leave(&mut self, number: u32, now: Cost, to: &Return, out: &mut Output) {
        let target = to.spsr >> 2 & 3;
        if target == 2 {
            return;
        }
        self.vectors = to.vbar & !TABLE;
        if to.hcr & HCR_TGE != 0 || to.hcr & HCR_VM == 0 {
            self.turn(now, Doing::User);
            return;
        }
        self.turn(now, Doing::Guest);
        let before = self.virtual_el2;
        self.virtual_el2 = to.hcr & HCR_NV != 0;
        let kind = if self.exit.is_some() { EXIT } else { FIRST };
        let exit = self.exit.unwrap_or_default();
        let flags = u64::from(before) << 24 | u64::from(self.virtual_el2) << 25;
        // Nothing was left before the first entry: its place tells when that was.
        let how = if kind == FIRST {
            out.microseconds()
        } else {
            exit.esr
        };
        out.record([
            kind | u64::from(number) << 8 | exit.vector << 16 | flags,
            how,
            exit.hpfar,
            self.guest.instructions,
            self.host.instructions,
            self.host.accesses,
            self.user.instructions,
            self.user.accesses,
        ]);
        (self.guest, self.host, self.user) = Default::default();
    }

    /// Whether a block at `address` may be the vector that ends what the CPU is doing.
    pub(crate) fn may_enter(&self, address: u64) -> bool {
        let lower = address & TABLE >= 0x400;
        self.doing != Doing::Host && address & !TABLE == self.vectors && lower
    }

    /// EL2 executes the first instruction of that vector.
    pub(crate) fn enter(&mut self, now: Cost, address: u64, esr: u64, hpfar: u64) {
        if self.doing == Doing::Guest {
            self.exit = Some(Exit {
                vector: address >> 7 & 3,
                esr,
                hpfar,
            });
        }
        self.turn(now, Doing::Host);
    }
}

/// Where records go.
pub(crate) struct Output {
    file: BufWriter<File>,
    start: Instant,
}

impl Output {
    /// Writes to `path` from now on.
    pub(crate) fn new(path: &str) -> std::io::Result<Output> {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
        file.write_all(b"umbexit2")?;
        let start = Instant::now();
        Ok(Output { file, start })
    }

    /// Wall time since QEMU loaded the plugin.
    fn microseconds(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn record(&mut self, words: [u64; 8]) {
        let mut bytes = [0; 64];
        for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        // A full disk shows in the reader: the file's length is wrong, or rows are missing.
        let _ = self.file.write_all(&bytes);
    }

    /// A guest executed the instruction that separates one thing from the next.
    pub(crate) fn mark(&mut self, number: u32) {
        self.record([MARK | u64::from(number) << 8, 0, 0, 0, 0, 0, 0, 0]);
    }

    /// Nothing comes any more.
    pub(crate) fn finish(&mut self) {
        let _ = self.file.flush();
    }
}
