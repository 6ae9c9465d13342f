//! Firmware first: what firmware knows of a memory error is asked before anybody else is told of it.
//!
//! ```text
//!   umbra.hest=ADDRESS ─ HEST ─► sources ─┬─ SEA: looked at when somebody consumed an error ─► claim
//!                                         └─ polled: a thread looks every so often
//!   status block ─ copied, cleared, acknowledged ─ crates/apei ─► records ─► the frame is retired (poison.rs)
//! ```
//!
//! What always holds: whoever looks holds no lock, and takes interrupts before each source and each
//! record, so that firmware's bookkeeping delays nobody (row S12). A block is copied before it is
//! believed and acknowledged whatever it says. An error is *claimed* only if a record made a frame bad
//! that was not known to be: so claiming one abort again and again ends, and goes the way of all others.
//!
//! Where a block lies is read from its register once, at boot: that memory must be kept from the allocator.

use alloc::string::String;
use alloc::sync::Arc;
use core::fmt::Write;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use heapless::Vec;
use umbra_abort::{Poison, Reported};
use umbra_apei::{
    Acknowledge, Block, HEADER_BYTES, Hest, Malformed, Notification, Record, Severity, Source,
    memory_error, table_bytes,
};
use umbra_arm64::Pa;
use umbra_hw::mem::{CHUNK, boot_data, firmware_words};
use umbra_hw::sabotage::{Safeguard, left_out};
use umbra_hw::sync::{SpinLock, assert_none_held};
use umbra_linux::Errno;

use crate::mm::Mm;
use crate::sched::{self, Waited};
use crate::{irq, mem, poison};

/// Sources that are used; more are named at boot.
const SOURCES: usize = 16;
/// Bytes of a status block that are looked at.
const BLOCK_BYTES: usize = 4096;
/// Entries that fit into them.
const RECORDS: usize = BLOCK_BYTES / 64;
/// A HEST that is longer is none.
const TABLE_BYTES: u64 = 64 << 10;
/// Chunks of memory that firmware's data may lie in.
const CHUNKS: usize = 8;
/// Polled no more often than this.
const SHORTEST_POLL_NS: u64 = 10_000_000;

/// A source and its memory.
struct Place {
    source: Source,
    block: &'static [AtomicU64],
    acknowledge: Option<(Acknowledge, &'static AtomicU64)>,
    /// Blocks that made a frame bad, that said nothing new, that contradicted themselves.
    claimed: u64,
    ignored: u64,
    malformed: u64,
}

struct Sources {
    places: Vec<Place, SOURCES>,
    /// The copy of a block that is being read.
    copy: [u8; BLOCK_BYTES],
}

static ALL: SpinLock<Sources> = SpinLock::new(
    "error sources",
    194,
    Sources {
        places: Vec::new(),
        copy: [0; BLOCK_BYTES],
    },
);
/// Whether there is any source that an abort notifies of.
static NOTIFIED: AtomicBool = AtomicBool::new(false);
/// Where the thread that looks at sources waits, and whether it is to look at all of them.
static POLLER: sched::WaitQueue = sched::WaitQueue::new();
static WANTED: AtomicBool = AtomicBool::new(false);

/// What firmware's table names, before memory is given to the allocator.
#[derive(Default)]
pub(crate) struct Found {
    sources: Vec<(Source, Pa), SOURCES>,
    chunks: Vec<Pa, CHUNKS>,
}

impl Found {
    /// Memory that must be kept from the allocator.
    pub(crate) fn reserved(&self) -> impl Iterator<Item = (Pa, u64)> {
        self.chunks.iter().map(|&chunk| (chunk, CHUNK))
    }

    /// Keeps the memory at `pa`. False: there is no room to remember that.
    fn keep(&mut self, pa: Pa, bytes: u64) -> bool {
        let first = pa.align_down(CHUNK).raw();
        (first..pa.raw() + bytes)
            .step_by(CHUNK as usize)
            .all(|chunk| {
                let chunk = Pa::new(chunk);
                self.chunks.contains(&chunk) || self.chunks.push(chunk).is_ok()
            })
    }
}

/// Reads the HEST at `at`. `usable` says whether a range is RAM of the machine that is nobody's yet; what
/// firmware names elsewhere is not touched.
pub(crate) fn find(at: Pa, usable: impl Fn(Pa, u64) -> bool) -> Found {
    let mut found = Found::default();
    let read = |pa: Pa, bytes: u64| {
        let fits = pa.raw().checked_add(bytes).is_some() && usable(pa, bytes);
        fits.then(|| boot_data(pa, bytes).ok()).flatten()
    };
    let header = read(at, HEADER_BYTES as u64).and_then(|bytes| bytes.first_chunk());
    let length = header.map(|header| u64::from(table_bytes(header)));
    let table = length
        .filter(|length| (HEADER_BYTES as u64..=TABLE_BYTES).contains(length))
        .and_then(|length| read(at, length));
    let hest = match table.map(Hest::read) {
        Some(Ok(hest)) => hest,
        Some(Err(why)) => {
            log::error!("no hardware error source table at {at}: {why:?}");
            return found;
        }
        None => {
            log::error!(
                "no hardware error source table at {at}: no free memory, or a wrong length"
            );
            return found;
        }
    };
    let length = length.unwrap_or_default();
    if !found.keep(at, length) {
        return found;
    }
    for source in hest.sources() {
        let source = match source {
            Ok(source) => source,
            Err(why) => {
                log::warn!("an error source is not used: {why:?}");
                continue;
            }
        };
        let block = read(source.status_address, 8)
            .and_then(|bytes| bytes.first_chunk())
            .map(|bytes| Pa::new(u64::from_le_bytes(*bytes)));
        if let Err(why) = add(&mut found, source, block, &usable) {
            log::warn!("error source {} is not used: {why}", source.id);
        }
    }
    found
}

fn add(
    found: &mut Found,
    source: Source,
    block: Option<Pa>,
    usable: impl Fn(Pa, u64) -> bool,
) -> Result<(), &'static str> {
    if let Notification::Other(_) = source.notification {
        return Err("it notifies neither by an abort nor by being polled");
    }
    let block = block.ok_or("its status address is not in free memory")?;
    let bytes = block_bytes(&source);
    if bytes < 24 || !block.is_aligned(8) || !usable(block, bytes) {
        return Err("its status block is not in free memory, or too short");
    }
    if let Some(acknowledge) = source.acknowledge
        && !usable(acknowledge.register, 8)
    {
        return Err("its acknowledgement is not in free memory");
    }
    let kept = found.keep(block, bytes)
        && found.keep(source.status_address, 8)
        && source
            .acknowledge
            .is_none_or(|acknowledge| found.keep(acknowledge.register, 8));
    if !kept {
        return Err("firmware's data is too scattered");
    }
    found
        .sources
        .push((source, block))
        .map_err(|_| "there are too many")
}

/// Bytes of its block that are looked at.
fn block_bytes(source: &Source) -> u64 {
    u64::from(source.block_bytes).min(BLOCK_BYTES as u64) & !7
}

/// Maps what was found, and starts to look at it. Once, when threads can be started.
pub(crate) fn start(found: Found) {
    let words = |pa, bytes| firmware_words(pa, bytes).ok().flatten();
    let mut interval = None;
    for (source, block) in found.sources {
        let acknowledge = match source.acknowledge {
            Some(how) => words(how.register, 8)
                .and_then(|words| words.first())
                .map(|word| Some((how, word))),
            None => Some(None),
        };
        let (Some(block), Some(acknowledge)) = (words(block, block_bytes(&source)), acknowledge)
        else {
            log::warn!("error source {} cannot be mapped", source.id);
            continue;
        };
        log::info!(
            "firmware's error source {}: {:?}",
            source.id,
            source.notification
        );
        match source.notification {
            Notification::Sea => NOTIFIED.store(true, Ordering::Relaxed),
            Notification::Polled { interval: ms } => {
                let ns = (u64::from(ms) * 1_000_000).max(SHORTEST_POLL_NS);
                interval = Some(interval.map_or(ns, |least: u64| least.min(ns)));
            }
            Notification::Other(_) => {}
        }
        // There are as many places as there are sources to be found.
        let _ = ALL.lock().places.push(Place {
            source,
            block,
            acknowledge,
            claimed: 0,
            ignored: 0,
            malformed: 0,
        });
    }
    if ALL.lock().places.is_empty() {
        return;
    }
    if sched::spawn(None, move || poll(interval)).is_none() {
        log::error!("no memory for the thread that polls firmware's errors");
    }
}

/// The life of the thread that looks when no abort makes anybody look.
fn poll(interval: Option<u64>) {
    loop {
        let deadline = interval.map(|interval| sched::now() + interval);
        let wanted = || WANTED.swap(false, Ordering::Relaxed).then_some(());
        match POLLER.wait(deadline, || false, wanted) {
            Waited::Ready(()) => look(|_| true, None),
            Waited::TimedOut | Waited::Interrupted => {
                look(|source| source.notification != Notification::Sea, None)
            }
        };
    }
}

/// Somebody consumed an error: whether firmware knew, and the frame is bad from now on for everybody. The
/// access is then made again, and ends at a page that is known to be bad, or at a good one. No lock
/// may be held; interrupts are taken. `consumer` is not told in advance what it is about to be told.
pub(crate) fn claim(consumer: &Arc<Mm>) -> bool {
    if !NOTIFIED.load(Ordering::Relaxed) || left_out(Safeguard::FirmwareFirst) {
        return false;
    }
    look(
        |source| source.notification == Notification::Sea,
        Some(consumer),
    )
}

/// Somebody consumed an error who holds locks: firmware's word is heard soon.
pub(crate) fn later() {
    if NOTIFIED.load(Ordering::Relaxed) {
        WANTED.store(true, Ordering::Relaxed);
        POLLER.wake_one();
    }
}

/// Looks at the sources that `which` wants, and does what their records say. True if that made any frame bad.
fn look(which: impl Fn(&Source) -> bool, consumer: Option<&Arc<Mm>>) -> bool {
    assert_none_held();
    mem::top_up();
    let mut claimed = false;
    for index in 0..SOURCES {
        irq::poll();
        let Some(records) = take(index, &which) else {
            continue;
        };
        let mut news = false;
        for record in &records {
            irq::poll();
            news |= act(record, consumer);
        }
        let first = ALL.lock().count(index, news);
        if first && !news {
            // Once a source, as firmware may say so for ever.
            log::warn!("firmware's records change nothing: {records:?}");
        }
        claimed |= news;
    }
    claimed
}

/// The records of a source that has any; its block is empty and acknowledged from here on.
fn take(index: usize, which: impl Fn(&Source) -> bool) -> Option<Vec<Record, RECORDS>> {
    let mut all = ALL.lock();
    let Sources { places, copy } = &mut *all;
    let place = places.get_mut(index).filter(|place| which(&place.source))?;
    if place.status() == 0 {
        return None;
    }
    let bytes = 8 * place.block.len();
    for (to, from) in copy.as_chunks_mut().0.iter_mut().zip(place.block) {
        *to = from.load(Ordering::Relaxed).to_le_bytes();
    }
    place.release();
    match Block::read(copy.get(..bytes)?) {
        Ok(Some(block)) if block.severity() == Severity::Fatal => {
            panic!(
                "firmware reports an error that nobody survives: {:?}",
                block.records().next()
            )
        }
        Ok(Some(block)) => Some(block.records().collect()),
        Ok(None) => None,
        Err(Malformed) => {
            place.malformed += 1;
            if place.malformed == 1 {
                log::warn!(
                    "error source {}: its block contradicts itself",
                    place.source.id
                );
            }
            None
        }
    }
}

/// Does what a record says. True if it made a frame bad that was not known to be.
fn act(record: &Record, consumer: Option<&Arc<Mm>>) -> bool {
    let Record {
        severity,
        is_memory: true,
        address: Some(at),
    } = *record
    else {
        return false;
    };
    match severity {
        Severity::Corrected => {
            poison::corrected(at);
            false
        }
        Severity::Informational => false,
        Severity::Recoverable | Severity::Fatal => {
            match poison::report_but(at, Poison::Known, consumer) {
                Ok(Reported::New | Reported::Spread | Reported::Full) => true,
                Ok(Reported::Before) => false,
                // No memory of anybody's, or what cannot be given up.
                Err(_) => false,
            }
        }
    }
}

impl Sources {
    /// A block of a source was heard. True if it is the first that came to this.
    fn count(&mut self, index: usize, claimed: bool) -> bool {
        let Some(place) = self.places.get_mut(index) else {
            return false;
        };
        let count = if claimed {
            &mut place.claimed
        } else {
            &mut place.ignored
        };
        *count += 1;
        *count == 1
    }
}

impl Place {
    /// Block status: 0 as long as it holds nothing.
    fn status(&self) -> u32 {
        self.block
            .first()
            .map_or(0, |word| word.load(Ordering::Acquire) as u32)
    }

    /// Gives the block back to firmware.
    fn release(&self) {
        const STATUS: u64 = 0xffff_ffff;
        if let Some(word) = self.block.first() {
            word.fetch_and(!STATUS, Ordering::Release);
        }
        if let Some((how, register)) = self.acknowledge
            && !left_out(Safeguard::FirmwareAcknowledge)
        {
            let kept = register.load(Ordering::Relaxed) & how.preserve;
            register.store(kept | how.write, Ordering::Release);
        }
    }

    /// What firmware does: fills the block, the status last. `EBUSY`: the last one was not acknowledged;
    /// `EINVAL`: too long.
    fn fill(&self, text: &[u8]) -> Result<(), Errno> {
        if self.status() != 0 {
            return Err(Errno::EBUSY);
        }
        if text.len() > 8 * self.block.len() {
            return Err(Errno::EINVAL);
        }
        if let Some((how, register)) = self.acknowledge {
            if register.load(Ordering::Acquire) & how.write != how.write {
                return Err(Errno::EBUSY);
            }
            register.fetch_and(!how.write, Ordering::Relaxed);
        }
        for (to, from) in self.block.iter().zip(text.chunks(8)).rev() {
            let mut word = [0; 8];
            word[..from.len()].copy_from_slice(from);
            to.store(u64::from_le_bytes(word), Ordering::Release);
        }
        Ok(())
    }
}

/// Error injection on a machine whose firmware claims errors: an uncorrected one at `at`, whose record waits
/// for whoever consumes it. `None`: no such firmware; `ENXIO`: no memory of anybody's, `EBUSY`: the
/// last error was not acknowledged yet.
pub(crate) fn raise(at: Pa) -> Option<Result<(), Errno>> {
    {
        let all = ALL.lock();
        let is_sea = |place: &&Place| place.source.notification == Notification::Sea;
        let place = all.places.iter().find(is_sea)?;
        if !mem::is_ram(at) {
            return Some(Err(Errno::ENXIO));
        }
        if let Err(errno) = place.fill(&memory_error(at)) {
            return Some(Err(errno));
        }
    }
    Some(poison::report(at, Poison::Latent))
}

/// Writes a status block as firmware would, whatever it says: two bytes that name a source, then the block.
/// For testing: `EOPNOTSUPP` outside a build with checks; `ENODEV`: no such source.
pub(crate) fn write(text: &[u8]) -> Result<(), Errno> {
    if !cfg!(debug_assertions) {
        return Err(Errno::EOPNOTSUPP);
    }
    let (id, block) = text.split_first_chunk().ok_or(Errno::EINVAL)?;
    let id = u16::from_le_bytes(*id);
    let all = ALL.lock();
    let place = all.places.iter().find(|place| place.source.id == id);
    place.ok_or(Errno::ENODEV)?.fill(block)
}

/// The sources, as a text: a line each.
pub(crate) fn list() -> String {
    let mut text = String::new();
    for place in &ALL.lock().places {
        let Place {
            source,
            claimed,
            ignored,
            malformed,
            ..
        } = place;
        let (id, how) = (source.id, source.notification);
        let status = place.status();
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{id} {how:?} status={status:#x} claimed={claimed} ignored={ignored} malformed={malformed}"
        );
    }
    text
}
