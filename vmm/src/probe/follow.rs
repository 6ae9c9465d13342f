//! What the VMM does to its memory takes effect in the guest before the call returns.
//!
//! The guests here run on threads of their own, look at a page as fast as they can, and judge what
//! they see by words that the VMM publishes *after* its call: a translation that outlived the call
//! shows old content under a new word. Each round waits until every guest has used the page, so that
//! every round has a translation that could.

use std::thread;
use std::time::{Duration, Instant};

use umbra_vmm::kvm::{PAGE, Region, Rights};

use super::asm::{Asm, Cond, REPORT};
use super::guest::{Exit, Machine, RAM, Vcpu, free_memory};
use super::{Check, Env, Outcome, abi, granted, holds, refused, same};

const AT: u64 = 0x8000_0000;
const MIB: usize = 1 << 20;

// Words in the machine's first page.
const WORD: usize = 0;
const STOP: usize = 64;
const SEEN: usize = 128;

/// Registers: x1 the page, x2 the word, x3 stop, x4 what this vCPU saw, x10 a neighbour of the page.
fn set_up(vcpu: &Vcpu, id: usize) -> Outcome {
    vcpu.set(abi::x(1), AT)?;
    vcpu.set(abi::x(10), AT + 8 * PAGE as u64)?;
    vcpu.set(abi::x(2), RAM + WORD as u64)?;
    vcpu.set(abi::x(3), RAM + STOP as u64)?;
    vcpu.set(abi::x(4), RAM + (SEEN + 64 * id) as u64)
}

/// Runs a guest to its report; backing that is not there just now is no reason to stop.
fn run_on(vcpu: &Vcpu) -> Check<u64> {
    loop {
        match vcpu.run() {
            Ok(Exit::Write {
                at: REPORT, data, ..
            }) => return Ok(data),
            Ok(other) => return Err(format!("{other:x?}")),
            Err(libc::EFAULT | libc::EINTR) => thread::yield_now(),
            Err(e) => return Err(format!("KVM_RUN: {}", super::errno_name(e))),
        }
    }
}

/// Runs `program` on `count` vCPUs while `change` changes the memory; each guest must report 0.
fn with_guests(
    count: usize,
    machine: &Machine,
    program: &Asm,
    mut change: impl FnMut(&dyn Fn(&dyn Fn(usize) -> bool) -> Outcome) -> Outcome,
) -> Outcome {
    let entry = machine.place(program);
    let mut vcpus = Vec::new();
    for id in 0..count {
        let vcpu = machine.vcpu(id as u64, entry)?;
        set_up(&vcpu, id)?;
        vcpus.push(vcpu);
    }
    thread::scope(|scope| {
        let runners: Vec<_> = vcpus
            .into_iter()
            .map(|vcpu| scope.spawn(move || run_on(&vcpu)))
            .collect();
        let wait = |ready: &dyn Fn(usize) -> bool| -> Outcome {
            let start = Instant::now();
            for (id, runner) in runners.iter().enumerate() {
                while !ready(id) {
                    // Its report says why.
                    holds(!runner.is_finished(), || {
                        format!("the guest on vCPU {id} stopped")
                    })?;
                    let late = start.elapsed() > Duration::from_secs(20);
                    holds(!late, || {
                        format!("the guest on vCPU {id} makes no progress")
                    })?;
                    thread::yield_now();
                }
            }
            Ok(())
        };
        let changed = change(&wait);
        machine.ram.set_u64(STOP, 1);
        for (id, runner) in runners.into_iter().enumerate() {
            let report = runner.join().map_err(|_| "a vCPU's thread panicked")??;
            same(report, 0, &format!("what vCPU {id} saw though it was gone"))?;
        }
        changed
    })
}

/// Reads the word, then the page: what the page holds is never older than the word. Zero is what it
/// holds between the call and the VMM's store. The neighbour is read too: it keeps the table alive that
/// both are mapped by, so that one entry goes and not the table (the guests below have none).
fn generations() -> Asm {
    let mut asm = Asm::new();
    let top = asm.here();
    asm.ldr(9, 10);
    asm.ldr(5, 2).dsb().ldr(6, 1).dsb();
    let fresh = asm.if_zero(6);
    let old = asm.cmp(6, 5).if_cond(Cond::Below);
    asm.land(fresh)
        .str(6, 4)
        .ldr(7, 3)
        .back_if_zero(7, top)
        .report(31)
        .stop();
    asm.land(old).report(6).stop();
    asm
}

fn replace(
    count: usize,
    bytes: usize,
    rounds: u64,
    call: impl Fn(&Region, u64) -> Outcome,
) -> Outcome {
    let machine = Machine::new()?;
    let memory = granted(Region::new(bytes), "mmap")?;
    if bytes >= 2 * MIB {
        let _ = memory.prefer_huge(0, bytes);
    }
    memory.set_u64(0, 1);
    granted(machine.add(&memory, AT, 0), "a slot")?;
    with_guests(count, &machine, &generations(), |wait| {
        let mut taken = None;
        for round in 2..rounds + 2 {
            wait(&|id| machine.ram.u64(SEEN + 64 * id) == round - 1)?;
            call(&memory, round)?;
            // Takes the frame that just became free: were it the one the page gets again, a
            // translation that outlived the call would do no harm.
            let other = granted(Region::new(PAGE), "mmap")?;
            other.set_u64(0, 1);
            memory.set_u64(0, round);
            machine.ram.set_u64(WORD, round);
            taken = Some(other);
        }
        drop(taken);
        Ok(())
    })
}

/// munmap and mmap, or mmap over what is there.
fn map_anew(memory: &Region, bytes: usize, round: u64) -> Outcome {
    if round.is_multiple_of(2) {
        granted(memory.unmap(0, bytes), "munmap")?;
    }
    granted(memory.map_again(0, bytes), "mmap")
}

pub(super) fn remap(env: &Env) -> Outcome {
    replace(1, 16 * PAGE, env.rounds(1500), |memory, round| {
        map_anew(memory, PAGE, round)
    })
}

/// With more guests than a small machine has CPUs for, a round is long: there are fewer.
pub(super) fn remap_under_two(env: &Env) -> Outcome {
    replace(2, 16 * PAGE, env.rounds(200), |memory, round| {
        map_anew(memory, PAGE, round)
    })
}

pub(super) fn discard(env: &Env) -> Outcome {
    let rounds = env.rounds(1500);
    replace(1, 16 * PAGE, rounds, |memory, _| {
        granted(memory.discard(0, PAGE), "madvise")
    })
}

/// The same with blocks of 2 MiB where the host has them: all of a block, or one page of it.
pub(super) fn huge_remap(env: &Env) -> Outcome {
    replace(1, 4 * MIB, env.rounds(400), |memory, round| {
        let bytes = if round % 3 == 0 { PAGE } else { 2 * MIB };
        map_anew(memory, bytes, round)?;
        if bytes > PAGE {
            let _ = memory.prefer_huge(0, bytes);
        }
        Ok(())
    })
}

/// PROT_NONE. The word says from when on the page is closed; a read that begins and ends under the
/// same word other than 0 read a closed page.
pub(super) fn protect_none(env: &Env) -> Outcome {
    let machine = Machine::new()?;
    let memory = granted(Region::new(16 * PAGE), "mmap")?;
    memory.set_u64(0, 1);
    granted(machine.add(&memory, AT, 0), "a slot")?;
    let mut asm = Asm::new();
    let top = asm.here();
    asm.ldr(5, 2).dsb().ldr(6, 1).dsb().ldr(7, 2);
    let open = asm.if_zero(5);
    let closed = asm.cmp(5, 7).if_cond(Cond::Equal);
    asm.land(open)
        .ldr(8, 4)
        .add(8, 8, 1)
        .str(8, 4)
        .ldr(7, 3)
        .back_if_zero(7, top);
    asm.report(31).stop().land(closed).report(5).stop();
    with_guests(1, &machine, &asm, |wait| {
        for round in 1..=env.rounds(1000) {
            let before = machine.ram.u64(SEEN);
            wait(&|_| machine.ram.u64(SEEN) > before + 1)?;
            granted(memory.protect(0, PAGE, Rights::None), "mprotect")?;
            machine.ram.set_u64(WORD, round);
            thread::sleep(Duration::from_micros(20));
            machine.ram.set_u64(WORD, 0);
            granted(memory.protect(0, PAGE, Rights::ReadWrite), "mprotect")?;
        }
        Ok(())
    })
}

/// PROT_READ: the guests count in the page, and stop counting.
pub(super) fn protect_read(env: &Env) -> Outcome {
    let machine = Machine::new()?;
    let memory = granted(Region::new(16 * PAGE), "mmap")?;
    granted(machine.add(&memory, AT, 0), "a slot")?;
    let mut asm = Asm::new();
    // Each counts where its word of progress lies, 128 further.
    asm.mov(5, 0xfff).word(0x8a05_0084); // and x4, x4, x5
    asm.word(0x8b04_0024); // add x4, x1, x4
    let top = asm.here();
    asm.ldr(6, 4)
        .add(6, 6, 1)
        .str(6, 4)
        .ldr(7, 3)
        .back_if_zero(7, top)
        .report(31)
        .stop();
    with_guests(2, &machine, &asm, |wait| {
        for round in 0..env.rounds(200) {
            let count = |id: usize| memory.u64(SEEN + 64 * id);
            let before = [count(0), count(1)];
            wait(&|id| count(id) > before[id] + 1)?;
            granted(memory.protect(0, PAGE, Rights::Read), "mprotect")?;
            let closed = [count(0), count(1)];
            thread::sleep(Duration::from_micros(50));
            let after = [count(0), count(1)];
            granted(memory.protect(0, PAGE, Rights::ReadWrite), "mprotect")?;
            same(
                after,
                closed,
                &format!("the counts, read-only, round {round}"),
            )?;
        }
        Ok(())
    })
}

/// Backing that is not there: KVM_RUN says EFAULT, and once it is there the guest goes on.
pub(super) fn munmap_faults(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let memory = granted(Region::new(16 * PAGE), "mmap")?;
    granted(machine.add(&memory, AT, 0), "a slot")?;
    memory.set_u64(0, 5);
    let mut asm = Asm::new();
    let top = asm.here();
    asm.mov(1, AT).ldr(0, 1).report(0).back(top);
    let entry = machine.place(&asm);
    let vcpu = machine.vcpu(0, entry)?;
    same(vcpu.report()?, 5, "a read")?;
    granted(memory.unmap(0, PAGE), "munmap")?;
    refused(vcpu.run(), libc::EFAULT, "KVM_RUN")?;
    refused(vcpu.run(), libc::EFAULT, "KVM_RUN again")?;
    same(vcpu.get(abi::PC)?, entry + 8, "PC: on the load")?;
    granted(memory.map_again(0, PAGE), "mmap")?;
    memory.set_u64(0, 6);
    same(vcpu.report()?, 6, "a read after mmap")?;
    // The same for a fetch.
    let mut call = Asm::new();
    call.mov(1, AT + PAGE as u64).mov(0, 1).call(1).report(0);
    vcpu.go_to(machine.place(&call))?;
    granted(memory.protect(PAGE, PAGE, Rights::None), "mprotect")?;
    refused(vcpu.run(), libc::EFAULT, "KVM_RUN of a fetch")?;
    granted(memory.protect(PAGE, PAGE, Rights::ReadWrite), "mprotect")?;
    memory.set_code(PAGE, Asm::new().add(0, 0, 7).ret().words());
    same(vcpu.report()?, 8, "the call")
}

/// Two vCPUs touch the same pages for the first time, at the same time.
pub(super) fn two_vcpus_fault(env: &Env) -> Outcome {
    const BYTES: usize = 8 * MIB;
    let machine = Machine::new()?;
    let memory = granted(Region::new(BYTES), "mmap")?;
    granted(machine.add(&memory, AT, 0), "a slot")?;
    for round in 1..=env.rounds(6) {
        if round % 2 == 0 {
            let _ = memory.prefer_huge(0, BYTES);
        }
        let mut asm = Asm::new();
        asm.mov(2, BYTES as u64 / PAGE as u64);
        let top = asm.here();
        asm.str(0, 1).mov(3, PAGE as u64).word(0x8b03_0021); // add x1, x1, x3
        asm.sub(2, 2, 1).back_unless_zero(2, top).report(2);
        let entry = machine.place(&asm);
        let mut vcpus = Vec::new();
        for id in 0..2 {
            // Their ids stay taken when they are dropped.
            let vcpu = machine.vcpu(round * 2 + id, entry)?;
            vcpu.set(abi::x(0), round << 8 | (id + 1))?;
            vcpu.set(abi::x(1), AT + 8 * id)?;
            vcpus.push(vcpu);
        }
        thread::scope(|scope| {
            let runners: Vec<_> = vcpus
                .iter_mut()
                .map(|vcpu| scope.spawn(move || vcpu.report()))
                .collect();
            runners.into_iter().try_for_each(|runner| {
                runner
                    .join()
                    .map_err(|_| "a vCPU's thread panicked")?
                    .map(drop)
            })
        })?;
        for page in 0..BYTES / PAGE {
            let words = [0, 8].map(|offset| memory.u64(page * PAGE + offset));
            same(
                words,
                [round << 8 | 1, round << 8 | 2],
                &format!("page {page}, round {round}"),
            )?;
        }
        granted(memory.discard(0, BYTES), "madvise")?;
    }
    Ok(())
}

/// Memory that nobody touched costs nothing.
pub(super) fn big_slot(_: &Env) -> Outcome {
    const TOUCHED: u64 = 16 << 20;
    let machine = Machine::new()?;
    let memory = granted(Region::new(1 << 30), "mmap")?;
    granted(machine.add(&memory, AT, 0), "a slot of 1 GiB")?;
    let mut asm = Asm::new();
    asm.mov(1, AT + (512 << 20))
        .mov(2, TOUCHED / 4096)
        .mov(3, 4096);
    let top = asm.here();
    asm.str(2, 1)
        .word(0x8b03_0021)
        .sub(2, 2, 1)
        .back_unless_zero(2, top)
        .report(2);
    let vcpu = machine.vcpu_with(0, &asm)?;
    let before = free_memory()?;
    vcpu.report()?;
    let used = before - free_memory()?;
    holds(used < 32 << 10, || {
        format!("16 MiB touched took {used} KiB")
    })?;
    // What others give back meanwhile counts too.
    holds(used >= 8 << 10, || {
        format!("16 MiB touched took only {used} KiB: MemFree is not true")
    })?;
    drop((vcpu, machine, memory));
    let back = before - free_memory()?;
    holds(back < 4 << 10, || format!("{back} KiB did not come back"))
}

/// Code in a new frame, and code written over.
pub(super) fn rewritten_code(env: &Env) -> Outcome {
    let machine = Machine::new()?;
    let memory = granted(Region::new(16 * PAGE), "mmap")?;
    granted(machine.add(&memory, AT, 0), "a slot")?;
    let mut asm = Asm::new();
    let top = asm.here();
    asm.mov(1, AT + 0x40).isb().call(1).report(0).back(top);
    let vcpu = machine.vcpu_with(0, &asm)?;
    for round in 0..env.rounds(500) {
        if round % 2 == 0 {
            granted(memory.map_again(0, PAGE), "mmap")?;
        }
        memory.set_code(0x40, Asm::new().mov(0, round).ret().words());
        same(vcpu.report()?, round, "what the code answers")?;
    }
    // The guest's own: it stores an instruction, cleans, invalidates, calls.
    let mut own = Asm::new();
    own.mov(1, AT + 0x80).mov(2, 0xd65f_03c0_9100_0400); // add x0, x0, #1; ret
    own.str(2, 1).word(0xd50b_7b21).dsb().ic().dsb().isb(); // dc cvau, x1
    own.mov(0, 41).call(1).report(0);
    vcpu.go_to(machine.place(&own))?;
    same(vcpu.report()?, 42, "code that the guest wrote")
}
