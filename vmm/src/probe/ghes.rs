//! Firmware first: an error that firmware's tables tell of is nobody's exit. Its page is taken from everybody, and
//! whoever met it gets SIGBUS; whoever asked for early word hears of what nobody has met yet.
//!
//! The machine's tables have two sources (`xtask/src/test/firmware.rs`): 0 is notified by the abort of whoever
//! consumed the error, 1 is polled. EINJ without `notrigger` fills the block of 0; `apei/sources` takes any
//! block, also one without sense, and says what became of them.

use std::fs::{self, File};
use std::io::Write;
use std::time::{Duration, Instant};

use umbra_vmm::kvm::{
    BusError, PAGE, Region, catch_bus_errors, expecting, hear_early, hears_early, replacing,
};

use super::guest::{Machine, Vcpu};
use super::poison::{
    Access, BAD, DATA, DATA_BYTES, EL1, HWPOISON, about_to_load, bad_frames, frame, memory, opt_in,
    plant_claimed, planted, present, sea, write,
};
use super::{Check, Env, Outcome, abi, below, granted, holds, refused, same};

const SOURCES: &str = "/sys/kernel/debug/apei/sources";
const NOTIFIED: u16 = 0;
const POLLED: u16 = 1;
/// Bytes of a status block.
const BLOCK: usize = 0x400;
/// Where nothing is: no memory of anybody's.
const NOWHERE: u64 = 0x0c80_0000;
/// A5BC1114-6F64-4EDE-B863-3E83ED7C83B1.
const MEMORY: [u8; 16] = [
    0x14, 0x11, 0xbc, 0xa5, 0x64, 0x6f, 0xde, 0x4e, 0xb8, 0x63, 0x3e, 0x83, 0xed, 0x7c, 0x83, 0xb1,
];
const RECOVERABLE: u32 = 0;
const CORRECTED: u32 = 2;
/// Fields of a block and its first entry, by their offsets (ACPI 6.5, 18.3.2.7; UEFI 2.10, N.2.5).
const RAW_LENGTH: usize = 8;
const LENGTH: usize = 12;
const SEVERITY: usize = 16;
const SECTION: usize = 20;
const SECTION_SEVERITY: usize = 36;
const SECTION_LENGTH: usize = 44;
const VALID: usize = 20 + 72;
const ADDRESS: usize = VALID + 16;

/// What became of a source's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counts {
    claimed: u64,
    ignored: u64,
    malformed: u64,
}

fn counts(id: u16) -> Check<Counts> {
    let text = fs::read_to_string(SOURCES).map_err(|e| format!("{SOURCES}: {e}"))?;
    let head = format!("{id} ");
    let line = text.lines().find(|line| line.starts_with(&head));
    let line = line.ok_or_else(|| format!("no source {id}: {text:?}"))?;
    let count = |key: &str| {
        let words = line.split(' ').filter_map(|word| word.split_once('='));
        let found = words.into_iter().find(|(name, _)| *name == key);
        found
            .and_then(|(_, value)| value.parse().ok())
            .ok_or_else(|| format!("no {key} in {line:?}"))
    };
    Ok(Counts {
        claimed: count("claimed")?,
        ignored: count("ignored")?,
        malformed: count("malformed")?,
    })
}

/// Writes a status block, as firmware does.
fn report(id: u16, block: &[u8]) -> Result<(), i32> {
    let text = [&id.to_le_bytes(), block].concat();
    let written = File::options()
        .write(true)
        .open(SOURCES)
        .and_then(|mut file| file.write_all(&text));
    written.map_err(|e| e.raw_os_error().unwrap_or(0))
}

/// A block that tells of an error in memory.
fn record(address: u64, severity: u32) -> Vec<u8> {
    let mut block = vec![0; 20 + 72 + 80];
    let mut put = |at: usize, value: &[u8]| block[at..at + value.len()].copy_from_slice(value);
    put(0, &0x11u32.to_le_bytes());
    put(LENGTH, &(72 + 80u32).to_le_bytes());
    put(SEVERITY, &severity.to_le_bytes());
    put(SECTION, &MEMORY);
    put(SECTION_SEVERITY, &severity.to_le_bytes());
    put(SECTION + 20, &0x300u16.to_le_bytes());
    put(SECTION_LENGTH, &80u32.to_le_bytes());
    put(VALID, &2u64.to_le_bytes());
    put(ADDRESS, &address.to_le_bytes());
    block
}

/// The guest runs into a page that is known to be bad, at `hva`.
fn meets_known(vcpu: &Vcpu, hva: u64) -> Outcome {
    let (answer, told) = expecting(|| vcpu.run());
    refused(answer, libc::EINTR, "KVM_RUN")?;
    told_of(told, libc::BUS_MCEERR_AR, hva)
}

fn told_of(told: Option<BusError>, code: i32, hva: u64) -> Outcome {
    let told = told.ok_or("no SIGBUS")?;
    same((told.addr, told.code, told.lsb), (hva, code, 12), "SIGBUS")
}

fn is_known(frame: u64) -> Outcome {
    let text = bad_frames()?;
    let line = format!("{:#x} Known", frame * 4096);
    holds(text.lines().any(|l| l.starts_with(&line)), || {
        format!("no {line:?} in {text:?}")
    })
}

fn catch() -> Outcome {
    granted(catch_bus_errors().map_err(|_| 0), "SIGBUS")
}

/// An error that firmware claims: SIGBUS for the VMM, whatever it opted in to, and no exit.
pub(super) fn claimed(_: &Env) -> Outcome {
    catch()?;
    for opted_in in [true, false] {
        let before = counts(NOTIFIED)?;
        let (_machine, data, vcpu) = about_to_load(opted_in)?;
        let frame = plant_claimed(data.address(BAD))?;
        // The second time everybody knows.
        for _ in 0..2 {
            meets_known(&vcpu, data.address(BAD))?;
        }
        is_known(frame)?;
        let claimed = before.claimed + 1;
        same(counts(NOTIFIED)?, Counts { claimed, ..before }, "sources")?;
        granted(data.map_again(BAD, PAGE), "a fresh page")?;
        same(vcpu.report()?, 0, "the fresh page")?;
    }
    Ok(())
}

/// The same when a guest's guest meets it, or umbra for it in its hypervisor's tables.
pub(super) fn claimed_below(_: &Env) -> Outcome {
    catch()?;
    if !below::has_el2()? {
        return Ok(());
    }
    for bad in [BAD, below::STAGE2] {
        let machine = Machine::new()?;
        let data = memory(true)?;
        granted(machine.add(&data, DATA, 0), "a slot")?;
        opt_in(&machine)?;
        below::furnish(&data, Access::Load);
        let vcpu = below::begin(&machine, &data, 0, Access::Load, EL1)?;
        let frame = plant_claimed(data.address(bad))?;
        // The neighbours come first, unless nothing can be found any more.
        if bad == BAD {
            for _ in 0..2 {
                vcpu.report()?;
            }
        }
        meets_known(&vcpu, data.address(bad)).map_err(|e| format!("{bad:#x}: {e}"))?;
        is_known(frame)?;
    }
    Ok(())
}

/// Firmware tells of one page, and another is met: that one is taken, this one goes its usual way.
pub(super) fn about_another_page(_: &Env) -> Outcome {
    catch()?;
    let (_machine, data, vcpu) = planted(true)?;
    let other = data.address(BAD + PAGE);
    data.set_u64(BAD + PAGE, 7);
    let frame = present(other)?;
    let block = record(frame * 4096 + 0x10, RECOVERABLE);
    granted(report(NOTIFIED, &block), "a record")?;
    same(sea(&vcpu)?.gpa, DATA + BAD as u64, "the exit")?;
    is_known(frame)?;
    vcpu.set(abi::x(1), DATA + (BAD + PAGE) as u64)?;
    meets_known(&vcpu, other)
}

/// The VMM meets such an error itself, and umbra does for it.
pub(super) fn met_by_the_vmm(_: &Env) -> Outcome {
    catch()?;
    let data = granted(Region::new(DATA_BYTES), "mmap")?;
    data.set_u64(BAD, 7);
    let frame = plant_claimed(data.address(BAD))?;
    let (_, told) = replacing(|| data.u64(BAD));
    told_of(told, libc::BUS_MCEERR_AR, data.address(BAD))?;
    is_known(frame)?;

    let machine = Machine::new()?;
    let vcpu = machine.bare_vcpu(0)?;
    data.set_u64(0, 7);
    let frame = plant_claimed(data.address(0))?;
    let answer = data.ioctl(&vcpu.fd, abi::SET_MP_STATE, 0);
    refused(answer, libc::EFAULT, "umbra's load")?;
    soon(|| Ok(is_known(frame).is_ok()), "firmware's record")
}

/// Waits until something is so that another thread does.
fn soon(mut ready: impl FnMut() -> Check<bool>, what: &str) -> Outcome {
    let start = Instant::now();
    while !ready()? {
        if start.elapsed() > Duration::from_secs(20) {
            return Err(format!("{what}: not within 20 s"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// What a polled source tells of, and corrupt-pfn: those who asked hear of it at once, the others when
/// they meet it.
pub(super) fn found_early(_: &Env) -> Outcome {
    catch()?;
    same(granted(hears_early(), "PR_MCE_KILL_GET")?, None, "at first")?;
    for early in [true, false] {
        granted(hear_early(early), "PR_MCE_KILL")?;
        same(hears_early(), Ok(Some(early)), "PR_MCE_KILL_GET")?;
        let result = both_ways(early);
        granted(hear_early(false), "PR_MCE_KILL")?;
        result?;
    }
    Ok(())
}

fn both_ways(early: bool) -> Outcome {
    let told = |told: Option<BusError>, hva: u64| match early {
        true => told_of(told, libc::BUS_MCEERR_AO, hva),
        false => same(told, None, "a SIGBUS that nobody asked for"),
    };
    let (_machine, data, vcpu) = about_to_load(true)?;
    let hva = data.address(BAD);
    let frame = present(hva)?;
    let before = counts(POLLED)?.claimed;
    let block = record(frame * 4096, RECOVERABLE);
    let (found, heard) = expecting(|| -> Outcome {
        granted(report(POLLED, &block), "a record")?;
        soon(|| Ok(counts(POLLED)?.claimed > before), "the record")
    });
    found?;
    told(heard, hva)?;
    is_known(frame)?;
    meets_known(&vcpu, hva)?;

    let other = data.address(BAD + PAGE);
    data.set_u64(BAD + PAGE, 7);
    let frame = present(other)?;
    let (done, heard) = expecting(|| write(HWPOISON, "corrupt-pfn", frame));
    done?;
    told(heard, other)?;
    same(self::frame(other)?, None, "the bad page in pagemap")?;
    // One's own doing is met, not heard of.
    let last = BAD + 2 * PAGE;
    data.set_u64(last, 7);
    let (done, heard) = expecting(|| data.poison(last, PAGE));
    granted(done, "MADV_HWPOISON")?;
    told_of(heard, libc::BUS_MCEERR_AR, data.address(last))
}

/// Records that say nothing of what was met: the exit comes as if there were none.
pub(super) fn nothing_to_claim(_: &Env) -> Outcome {
    let corrected = |text: &str| -> Option<u64> {
        let (_, count) = text.trim_end().rsplit_once("corrected=")?;
        count.parse().ok()
    };
    let at = corrected(&bad_frames()?).ok_or("bad-frames does not say corrected=")?;
    let data = granted(Region::new(DATA_BYTES), "mmap")?;
    data.set_u64(0, 7);
    let good = present(data.address(0))? * 4096;
    let mut no_address = record(good, RECOVERABLE);
    no_address[VALID] = 1;
    let mut other_section = record(good, RECOVERABLE);
    other_section[SECTION] += 1;
    let mut status_alone = record(good, RECOVERABLE);
    status_alone[LENGTH] = 0;
    let records = [
        record(good, CORRECTED),
        record(NOWHERE, RECOVERABLE),
        record(0x0900_0000, RECOVERABLE),
        record(u64::MAX, RECOVERABLE),
        no_address,
        other_section,
        status_alone,
    ];
    for (n, block) in records.iter().enumerate() {
        let before = counts(NOTIFIED)?;
        let (_machine, _data, vcpu) = planted(true)?;
        granted(report(NOTIFIED, block), "a record")?;
        same(sea(&vcpu)?.gpa, DATA + BAD as u64, &format!("record {n}"))?;
        let ignored = before.ignored + 1;
        let wanted = Counts { ignored, ..before };
        same(counts(NOTIFIED)?, wanted, &format!("record {n}"))?;
    }
    same(corrected(&bad_frames()?), Some(at + 1), "corrected errors")?;
    same(data.u64(0), 7, "the page that was only corrected")
}

/// Blocks of nonsense lengths, too long ones, ones for nobody: each is acknowledged, and none claims
/// anything.
pub(super) fn nonsense(env: &Env) -> Outcome {
    let refusals: [(u16, &[u8], i32); 3] = [
        (77, &[1, 0, 0, 0], libc::ENODEV),
        (NOTIFIED, &[1; BLOCK + 1], libc::EINVAL),
        (u16::MAX, &[], libc::ENODEV),
    ];
    for (id, block, errno) in refusals {
        refused(report(id, block), errno, &format!("{} bytes", block.len()))?;
    }
    let (_machine, _data, vcpu) = planted(true)?;
    let before = counts(NOTIFIED)?;
    let mut seed = env.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut dice = |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 11) % below
    };
    let rounds = env.rounds(300);
    for round in 0..rounds {
        let mut block = record(NOWHERE, RECOVERABLE);
        let more = dice(BLOCK as u64 - block.len() as u64) as usize;
        block.extend((0..more).map(|_| [0, 0xff, dice(256) as u8][dice(3) as usize]));
        for _ in 0..=dice(3) {
            let field = [4, RAW_LENGTH, LENGTH, SECTION_LENGTH, SECTION + 20][dice(5) as usize];
            let value = match dice(4) {
                0 => dice(200) as u32,
                1 => u32::MAX - dice(200) as u32,
                2 => dice(2 * BLOCK as u64) as u32,
                _ => 1 << dice(32),
            };
            block[field..field + 4].copy_from_slice(&value.to_le_bytes());
        }
        // The length of an entry that is no memory error's may be anything.
        if dice(2) == 0 {
            block[SECTION..SECTION + 16].fill(dice(256) as u8);
        }
        granted(report(NOTIFIED, &block), &format!("block {round}"))?;
        same(
            sea(&vcpu)?.gpa,
            DATA + BAD as u64,
            &format!("block {round}"),
        )?;
    }
    let after = counts(NOTIFIED)?;
    same(after.claimed, before.claimed, "claims")?;
    let heard = after.ignored + after.malformed - before.ignored - before.malformed;
    same(heard, rounds, "blocks that were looked at")?;
    holds(after.malformed > before.malformed, || {
        "no block contradicted itself".into()
    })
}
