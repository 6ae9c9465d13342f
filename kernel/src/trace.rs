//! The event ring: what each CPU did, as records of `umbra-trace`.
//!
//! Off unless the command line says `umbra.trace`, and then free: [`record`] tests one word that never
//! changes after boot, and builds nothing. Builds with debug assertions always keep a short ring, for
//! a panic to print.
//!
//! A CPU writes its own ring, with interrupts masked and without a lock; a full ring goes round, so it
//! loses the oldest and `written` tells how many. The rings are found from outside too, in the memory
//! of a machine that hangs (`RINGS`, read by xtask/src/trace/memory.rs).
//!
//! When the machine ends, by itself or by a panic, the rings go to a file of the emulator's host
//! (docs/design-notes/0008-events.md says why that way).

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use umbra_arm64::Pa;
use umbra_frames::Owner;
use umbra_hw::MAX_CPUS;
use umbra_hw::mem::CHUNK;
use umbra_hw::semihosting::HostFile;
use umbra_trace::block::{Header, KIND_RING, KIND_SCHEMA};
use umbra_trace::{Event, Head, RECORD_BYTES, RECORD_WORDS, Record, Storey, schema};

use crate::boot::BootArgs;
use crate::mem;

/// A traced CPU's ring unless the command line says otherwise, in MiB.
const USUAL_MIB: u64 = 16;
const MAX_MIB: u64 = 512;
/// The ring of a build with checks that is not traced: 256 records.
const SHORT_ORDER: u8 = 2;
/// What a panic prints of each CPU.
const SHOWN: u64 = 24;

/// One CPU's ring. The layout is read from outside too.
#[repr(C)]
struct Ring {
    /// Physical address, 0 for none.
    base: AtomicU64,
    /// Records that fit, a power of two.
    capacity: AtomicU64,
    /// Records that were ever written.
    written: AtomicU64,
}

static RINGS: [Ring; MAX_CPUS] = [const {
    Ring {
        base: AtomicU64::new(0),
        capacity: AtomicU64::new(0),
        written: AtomicU64::new(0),
    }
}; MAX_CPUS];

static ON: AtomicBool = AtomicBool::new(false);
/// The open file's number + 1.
static FILE: AtomicU64 = AtomicU64::new(0);

/// Whom an event is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Who {
    storey: Storey,
    vcpu: u16,
    vm: u16,
}

impl Who {
    /// umbra itself.
    pub(crate) const UMBRA: Who = Who::host(Storey::Umbra);
    /// A process.
    pub(crate) const PROCESS: Who = Who::host(Storey::Process);

    const fn host(storey: Storey) -> Self {
        Self {
            storey,
            vcpu: 0,
            vm: 0,
        }
    }

    /// What a vCPU runs.
    pub(crate) const fn guest(storey: Storey, vcpu: u16, vm: u16) -> Self {
        Self { storey, vcpu, vm }
    }
}

impl Ring {
    fn of(base: Pa, bytes: u64) -> (u64, u64) {
        (base.raw(), bytes / RECORD_BYTES as u64)
    }

    fn words(&self) -> &'static [AtomicU64] {
        let base = self.base.load(Ordering::Relaxed);
        let capacity = self.capacity.load(Ordering::Relaxed);
        match capacity {
            0 => &[],
            _ => umbra_hw::mem::words(Pa::new(base), capacity * RECORD_BYTES as u64),
        }
    }

    fn slot(&self, number: u64) -> Option<&'static [AtomicU64]> {
        let words = self.words();
        let mask = (words.len() / RECORD_WORDS).checked_sub(1)?;
        let at = (number as usize & mask) * RECORD_WORDS;
        words.get(at..at + RECORD_WORDS)
    }
}

/// Gives each CPU its ring, and opens the file. Once, when memory is there.
pub(crate) fn init(arguments: &BootArgs, cpus: usize) {
    let traced = arguments.trace();
    let order = match traced {
        Some(0) => order_of(USUAL_MIB),
        Some(mib) => order_of(mib.min(MAX_MIB)),
        None if cfg!(debug_assertions) => SHORT_ORDER,
        None => return,
    };
    for (cpu, ring) in RINGS.iter().enumerate().take(cpus) {
        let Some((base, capacity)) = allocate(order) else {
            log::warn!("no memory for the events of CPU {cpu}");
            continue;
        };
        ring.base.store(base, Ordering::Relaxed);
        ring.capacity.store(capacity, Ordering::Relaxed);
    }
    if traced.is_some()
        && let Some(name) = arguments.trace_file()
    {
        match HostFile::create(&name) {
            Some(file) => FILE.store(file.number() + 1, Ordering::Relaxed),
            None => log::error!("the file for events, {name}, cannot be made"),
        }
    }
    ON.store(true, Ordering::Release);
    if traced.is_some() {
        let kib = (RINGS[0].capacity.load(Ordering::Relaxed) * RECORD_BYTES as u64) >> 10;
        log::info!("events are recorded, {kib} KiB a CPU");
    }
}

fn order_of(mib: u64) -> u8 {
    ((mib << 20) / 4096).next_power_of_two().trailing_zeros() as u8
}

/// `2^order` pages, reached as words, and how many records fit.
fn allocate(order: u8) -> Option<(u64, u64)> {
    let bytes = 4096u64 << order;
    if bytes < CHUNK {
        return Some(Ring::of(mem::allocate_words(order, Owner::Kernel)?, bytes));
    }
    let base = mem::allocate_plain(order, Owner::Kernel)?;
    for chunk in (base.raw()..base.raw() + bytes).step_by(CHUNK as usize) {
        mem::top_up();
        // What was claimed stays so, and is lost: that is once, at boot.
        umbra_hw::mem::claim_words(Pa::new(chunk)).ok()?;
    }
    Some(Ring::of(base, bytes))
}

/// Whether anything is recorded. The same from the end of boot to the end of the machine.
#[inline(always)]
pub(crate) fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Records an event of this CPU. `event` is called only where events are recorded.
#[inline(always)]
pub(crate) fn record(who: Who, event: impl FnOnce() -> Event) {
    if is_on() {
        outlined(who, event);
    }
}

/// Away from the code that is not to notice it.
#[cold]
#[inline(never)]
fn outlined(who: Who, event: impl FnOnce() -> Event) {
    push(who, &event());
}

fn push(who: Who, event: &Event) {
    let ring = &RINGS[umbra_hw::cpu()];
    let number = ring.written.load(Ordering::Relaxed);
    let Some(slot) = ring.slot(number) else {
        return;
    };
    let (kind, words) = event.encode();
    let record = Record {
        time: umbra_hw::timer::ticks(),
        head: Head {
            kind,
            storey: who.storey as u8,
            vcpu: who.vcpu,
            vm: who.vm,
        },
        words,
    };
    for (slot, word) in slot.iter().zip(record.to_words()) {
        slot.store(word, Ordering::Relaxed);
    }
    ring.written.store(number + 1, Ordering::Release);
}

/// Prints the last events of every CPU, oldest first, for a panic.
pub(crate) fn dump() {
    for (cpu, ring) in RINGS.iter().enumerate() {
        let written = ring.written.load(Ordering::Acquire);
        for number in written.saturating_sub(SHOWN)..written {
            let Some(slot) = ring.slot(number) else { break };
            let words = core::array::from_fn(|n| slot[n].load(Ordering::Relaxed));
            let Record { time, head, words } = Record::from_words(words);
            let head = Shown(&head, &words);
            umbra_hw::uart::print_unlocked(format_args!("umbra: event CPU {cpu} {time} {head}\n"));
        }
    }
}

/// A record's event, and its vCPU where it has one.
struct Shown<'a>(&'a Head, &'a [u64; 6]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shown(head, words) = self;
        if head.storey >= Storey::Guest as u8 {
            write!(f, "vCPU {} storey {} ", head.vcpu, head.storey)?;
        }
        match Event::decode(head.kind, words) {
            Some(event) => write!(f, "{event}"),
            None => write!(f, "event-{} {words:x?}", head.kind),
        }
    }
}

/// Writes the rings to the file, if there is one. The machine ends; other CPUs may still write, and a
/// reader takes no record whose time does not rise.
pub(crate) fn save() {
    let Some(number) = FILE.swap(0, Ordering::Relaxed).checked_sub(1) else {
        return;
    };
    ON.store(false, Ordering::Relaxed);
    let file = HostFile::from_number(number);
    let mut good = write_schema(file);
    for (cpu, ring) in RINGS.iter().enumerate() {
        let words = ring.words();
        if words.is_empty() {
            continue;
        }
        let capacity = ring.capacity.load(Ordering::Relaxed);
        let written = ring.written.load(Ordering::Acquire);
        let records = written.min(capacity);
        let header = Header {
            kind: KIND_RING,
            bytes: records * RECORD_BYTES as u64,
            cpu: cpu as u64,
            frequency: umbra_hw::timer::frequency(),
            capacity,
            written,
        };
        good &= file.write(&header.to_bytes());
        let used = &words[..records as usize * RECORD_WORDS];
        // The emulator copies each piece.
        good &= used
            .chunks((CHUNK / 8) as usize)
            .all(|piece| file.write_words(piece));
    }
    file.close();
    if !good {
        umbra_hw::uart::print_unlocked(format_args!("umbra: the events could not all be saved\n"));
    }
}

fn write_schema(file: HostFile) -> bool {
    let mut length = Length(0);
    let mut text = ToFile(file);
    let bytes = match schema::write(&mut length) {
        Ok(()) => length.0.next_multiple_of(8),
        Err(fmt::Error) => 0,
    };
    let header = Header {
        kind: KIND_SCHEMA,
        bytes: bytes as u64,
        cpu: 0,
        frequency: 0,
        capacity: 0,
        written: 0,
    };
    file.write(&header.to_bytes())
        && schema::write(&mut text).is_ok()
        && file.write(&b"\n\n\n\n\n\n\n"[..bytes - length.0])
}

/// How long a text is.
struct Length(usize);

impl Write for Length {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 += text.len();
        Ok(())
    }
}

/// A text goes to the file in the pieces that it is made of: a panic may have no heap and little stack.
struct ToFile(HostFile);

impl Write for ToFile {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.write(text.as_bytes()) {
            Ok(())
        } else {
            Err(fmt::Error)
        }
    }
}
