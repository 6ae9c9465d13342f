//! The VM's memory changes while a guest's guest uses it: slots that log what is written, that go, move
//! or may no longer be written. What the guest's guest has of them lies in a shadow of two tables, and
//! everything has to be true of it that `dirty` and `slots` ask of a plain guest.
//!
//! ```text
//!  L2's space                  L1's space (slots)
//!  0x1_8000_0000  ────────►    0x8000_0000    in 1 GiB, 2 MiB or 4 KiB of L1's own stage 2
//! ```

use std::cell::Cell;
use std::thread;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_ARM_VCPU_HAS_EL2, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY};
use umbra_vmm::kvm::{PAGE, Region};

use super::asm::{Asm, Sys};
use super::below::{ABOVE, HCR, STAGE2, VTCR, VTCR_EL2, begin_at, has_el2, nested};
use super::dirty::{self, AT, BYTES, Writer};
use super::guest::{Exit, Machine, RAM, Vcpu, set_slot};
use super::poison::{DATA, memory};
use super::slots::{reader, under_use};
use super::{Check, Env, Outcome, abi, granted, holds, same};

/// How L1 maps the slot for L2.
#[derive(Clone, Copy, Debug)]
enum Pieces {
    Gigabyte,
    Blocks,
    Pages,
}

const ALL: [Pieces; 3] = [Pieces::Gigabyte, Pieces::Blocks, Pieces::Pages];
/// S2AP, shareability, access flag, normal memory.
const ATTRIBUTES: u64 = 0x7fc;
/// VTCR_EL2.HA.
const HA: u64 = 1 << 21;

/// Adds the slot's place to L1's stage 2 in `data`.
fn map(data: &Region, pieces: Pieces) {
    let (block, page, table) = (ATTRIBUTES | 1, ATTRIBUTES | 3, 3);
    let at = |n: usize| STAGE2 + n * PAGE;
    let first = match pieces {
        Pieces::Gigabyte => AT | block,
        Pieces::Blocks | Pieces::Pages => (DATA + at(1) as u64) | table,
    };
    data.set_u64(at(0) + 8 * ((AT + ABOVE) >> 30) as usize, first);
    for n in 0..BYTES >> 21 {
        let mapped = AT + ((n as u64) << 21);
        let second = match pieces {
            Pieces::Pages => (DATA + at(2 + n) as u64) | table,
            _ => mapped | block,
        };
        data.set_u64(at(1) + 8 * n, second);
        for index in 0..512 {
            data.set_u64(
                at(2 + n) + 8 * index,
                (mapped + (index * PAGE) as u64) | page,
            );
        }
    }
}

/// L2 on a vCPU of `machine`, about to begin `program`; with the first comes L1's stage 2.
fn below(machine: &Machine, data: &Region, pieces: Pieces, id: u64, program: &Asm) -> Check<Vcpu> {
    if id == 0 {
        granted(machine.add(data, DATA, 0), "a slot for L1")?;
    }
    let vcpu = nested(machine, data, id, HCR)?;
    if id == 0 {
        map(data, pieces);
    }
    begin_at(&vcpu, machine.place(program))?;
    Ok(vcpu)
}

/// Asks `question` of a guest's guest, with each way for L1 to map the slot.
fn each(count: usize, question: impl Fn(&Writer<'_>) -> Outcome) -> Outcome {
    if !has_el2()? {
        return Ok(());
    }
    for pieces in ALL {
        let data = memory(true)?;
        let who = Writer {
            at: AT + ABOVE,
            count,
            vcpu: &|machine, id, program| below(machine, &data, pieces, id, program),
        };
        question(&who).map_err(|why| format!("{pieces:?}: {why}"))?;
    }
    Ok(())
}

pub(super) fn writes_show_once(_: &Env) -> Outcome {
    each(1, dirty::writes_show_once_of)
}

pub(super) fn by_hand(_: &Env) -> Outcome {
    each(1, dirty::by_hand_of)
}

pub(super) fn initially_set(_: &Env) -> Outcome {
    each(1, dirty::initially_set_of)
}

pub(super) fn walks_show(_: &Env) -> Outcome {
    each(1, dirty::walks_show_of)
}

/// Two vCPUs run the same L2.
pub(super) fn no_write_is_lost(env: &Env) -> Outcome {
    each(2, |who| dirty::no_write_is_lost_of(who, env.rounds(10)))
}

/// The access flag that a walk of L1's stage 2 sets is a write into L1's memory.
pub(super) fn flags_show(_: &Env) -> Outcome {
    if !has_el2()? {
        return Ok(());
    }
    let (machine, data) = (Machine::new()?, memory(true)?);
    let slot = granted(machine.add(&data, DATA, KVM_MEM_LOG_DIRTY_PAGES), "a slot")?;
    let target = granted(Region::new(BYTES), "mmap")?;
    granted(machine.add(&target, AT, 0), "another")?;
    let vcpu = nested(&machine, &data, 0, HCR)?;
    map(&data, Pieces::Pages);
    let descriptor = STAGE2 + 2 * PAGE + 8 * 5;
    data.set_u64(descriptor, data.u64(descriptor) & !(1 << 10));
    vcpu.set(abi::sys(VTCR_EL2), VTCR | HA)?;
    vcpu.set(abi::x(1), AT + ABOVE + 5 * PAGE as u64)?;
    target.set_u64(5 * PAGE, 71);
    begin_at(&vcpu, machine.place(&reader()))?;
    same(vcpu.report()?, 71, "what L2 reads")?;
    same(data.u64(descriptor) >> 10 & 1, 1, "the access flag")?;
    let dirty = dirty::log_of(&machine.vm, slot, data.bytes() / PAGE)?;
    same(dirty, vec![STAGE2 / PAGE + 2], "what was written")
}

/// A slot is deleted, made again, moved, may only be read, and is as it was in the end; each while L2
/// stands in the middle of using it.
pub(super) fn slots_change(_: &Env) -> Outcome {
    each(1, |who| {
        let machine = Machine::new()?;
        let target = granted(Region::new(BYTES), "mmap")?;
        target.set_u64(0, 77);
        let slot = granted(machine.add(&target, AT, 0), "a slot")?;
        let set = |flags: u32, at: u64, bytes: usize| {
            let hva = target.address(0);
            let answer = set_slot(&machine.vm, slot, flags, at, bytes as u64, hva);
            granted(answer, &format!("{bytes:#x} at {at:#x}, flags {flags:#x}")).map(drop)
        };
        let mut program = Asm::new();
        let top = program.here();
        program.ldr(0, 1).report(0).str(6, 1).back(top);
        let vcpu = (who.vcpu)(&machine, 0, &program)?;
        let aim = |offset: usize, value: u64| {
            vcpu.set(abi::x(1), who.at + offset as u64)?;
            vcpu.set(abi::x(6), value)
        };
        let stored_outside = |data: u64, what: &str| {
            let told = Exit::Write {
                at: AT,
                bytes: 8,
                data,
            };
            same(vcpu.exits()?, told, what)
        };
        let outside = |answer: u64, what: &str| {
            stored_outside(77, what)?;
            same(vcpu.exits()?, Exit::Read { at: AT, bytes: 8 }, what)?;
            vcpu.answer(answer);
            same(vcpu.report()?, answer, "the VMM's answer")
        };
        aim(0, 77)?;
        same(vcpu.report()?, 77, "what L2 reads")?;
        same(vcpu.report()?, 77, "what L2 reads after a store")?;
        set(0, 0, 0)?;
        outside(5, "what was deleted")?;
        set(0, AT, BYTES)?;
        same(vcpu.report()?, 77, "what L2 reads when it is there again")?;
        // By two pages, so that there is memory at every other place of it.
        set(0, AT + 2 * PAGE as u64, BYTES)?;
        outside(6, "the place that it was moved from")?;
        aim(8 * PAGE, 79)?;
        same(vcpu.report()?, 79, "what L2 reads at the new place")?;
        same(target.u64(6 * PAGE), 79, "what it stored there")?;
        set(0, 0, 0)?;
        set(KVM_MEM_READONLY, AT, BYTES)?;
        aim(0, 80)?;
        stored_outside(80, "a store to what may only be read")?;
        same(vcpu.report()?, 77, "a read of it")?;
        set(0, 0, 0)?;
        set(0, AT, BYTES)?;
        same(vcpu.report()?, 80, "what L2 stored in the end")
    })
}

/// A slot goes and comes while L2 writes to it on two vCPUs as fast as it can, and further vCPUs with
/// EL2 are made meanwhile (CVE-2026-46317).
pub(super) fn delete_under_use(env: &Env) -> Outcome {
    const MOST: u64 = 8;
    each(2, |who| {
        let (machine, target) = (Machine::new()?, granted(Region::new(BYTES), "mmap")?);
        let slot = granted(machine.add(&target, AT, 0), "a slot")?;
        let program = under_use::program();
        let mut vcpus = Vec::new();
        for id in 0..who.count {
            let vcpu = (who.vcpu)(&machine, id as u64, &program)?;
            under_use::aim(&vcpu, who.at, id)?;
            vcpus.push(vcpu);
        }
        let made = Cell::new(who.count as u64);
        under_use::goes_and_comes(&machine, (slot, &target), vcpus, env.rounds(40), &|| {
            if made.get() < MOST {
                let vcpu = machine.bare_vcpu(made.get())?;
                granted(
                    vcpu.init(1 << KVM_ARM_VCPU_HAS_EL2),
                    "another vCPU with EL2",
                )?;
                made.set(made.get() + 1);
            }
            Ok(())
        })
    })
}

/// L1 translates (AT S12E1R) again and again while the slot of its tables goes and comes: each answer is
/// that of the slots as they were (CVE-2026-53277).
pub(super) fn tables_go(env: &Env) -> Outcome {
    /// Where L1 leaves PAR_EL1, how often it asked, and where it is told to stop.
    const ANSWER: usize = 0x100;
    const COUNT: usize = 0x108;
    const STOP: usize = 0x110;
    const PAR_EL1: Sys = (3, 0, 7, 4, 0);
    const AT_S12E1R: u32 = 0xd50c_7880;
    if !has_el2()? {
        return Ok(());
    }
    let (machine, data) = (Machine::new()?, memory(true)?);
    let slot = granted(machine.add(&data, DATA, 0), "a slot")?;
    let vcpu = nested(&machine, &data, 0, HCR)?;
    map(&data, Pieces::Pages);
    let mut program = Asm::new();
    program.mov(1, AT + ABOVE + 5 * PAGE as u64);
    program
        .mov(2, RAM + ANSWER as u64)
        .mov(3, RAM + COUNT as u64);
    program.mov(4, RAM + STOP as u64).mov(5, 0);
    let top = program.here();
    program.word(AT_S12E1R | 1).isb().mrs(0, PAR_EL1).str(0, 2);
    program.dsb().add(5, 5, 1).str(5, 3);
    program.ldr(6, 4).back_if_zero(6, top).report(5).stop();
    vcpu.set(abi::PC, machine.place(&program))?;
    thread::scope(|scope| {
        let runner = scope.spawn(move || vcpu.report());
        let answer = || -> Check<u64> {
            // One that began after this call: the second from here on.
            let (since, start) = (machine.ram.u64(COUNT), Instant::now());
            while machine.ram.u64(COUNT) < since + 2 {
                holds(!runner.is_finished(), || "L1 stopped".into())?;
                holds(start.elapsed() < Duration::from_secs(20), || {
                    "L1 makes no progress".into()
                })?;
                thread::yield_now();
            }
            Ok(machine.ram.u64(ANSWER))
        };
        let change = || -> Outcome {
            for _ in 0..env.rounds(40) {
                let there = answer()?;
                let wanted = (AT + 5 * PAGE as u64) >> 12;
                same((there & 1, there << 16 >> 28), (0, wanted), "PAR_EL1")?;
                granted(set_slot(&machine.vm, slot, 0, 0, 0, 0), "deleting")?;
                same(answer()? & 1, 1, "PAR_EL1.F without tables")?;
                let bytes = data.bytes() as u64;
                let again = set_slot(&machine.vm, slot, 0, DATA, bytes, data.address(0));
                granted(again, "making it again")?;
            }
            Ok(())
        };
        let changed = change();
        machine.ram.set_u64(STOP, 1);
        runner.join().map_err(|_| "a vCPU's thread panicked")??;
        changed
    })
}
