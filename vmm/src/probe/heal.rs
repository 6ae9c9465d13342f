//! Memory errors in what umbra keeps for a process and its VMs: tables, roots, the run page, files, and the
//! memory that the process itself runs on.
//!
//! What a guest cannot see, it never hears of. What a process loses, it hears of by SIGBUS; a process that
//! cannot handle that ends ([`victim`], started as a child), and nobody else does.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::{env, fs, hint};

use umbra_vmm::kvm::{PAGE, Region, catch_bus_errors, expecting, replacing};

use super::asm::Asm;
use super::guest::{Machine, RAM, Vcpu};
use super::poison::{BAD, DATA, DATA_BYTES, break_on_purpose, memory, opt_in, plant, retired, sum};
use super::{Check, Env, Outcome, abi, granted, holds, refused, same};

/// A VM whose guest loads from x1 and reports it, and its memory.
fn reader() -> Check<(Machine, Region, Vcpu, u64)> {
    let machine = Machine::new()?;
    let data = memory(false)?;
    granted(machine.add(&data, DATA, 0), "a slot")?;
    opt_in(&machine)?;
    for at in (0..DATA_BYTES).step_by(PAGE) {
        data.set_u64(at, at as u64 + 7);
    }
    let mut asm = Asm::new();
    asm.ldr(0, 1).report(0);
    let vcpu = machine.vcpu_with(0, &asm)?;
    let entry = vcpu.get(abi::PC)?;
    Ok((machine, data, vcpu, entry))
}

fn read(vcpu: &Vcpu, entry: u64, at: usize) -> Outcome {
    vcpu.go_to(entry)?;
    vcpu.set(abi::x(1), DATA + at as u64)?;
    same(vcpu.report()?, at as u64 + 7, "a load of the guest's")
}

/// umbra walks a table before hardware does, to take pages from it, and finds it broken.
pub(super) fn own_walk(_: &Env) -> Outcome {
    let (_machine, data, vcpu, entry) = reader()?;
    for round in 1..4 {
        for page in 0..8 {
            read(&vcpu, entry, page * round * PAGE)?;
        }
        break_on_purpose("stage2-table")?;
        let gone = round * PAGE;
        granted(data.map_again(gone, PAGE), "a fresh page")?;
        data.set_u64(gone, gone as u64 + 7);
        // The page that was taken is not the one that the guest reads.
        for page in 0..8 {
            read(&vcpu, entry, page * round * PAGE)?;
        }
    }
    Ok(())
}

/// The page of a root goes bad: another takes its place, and is used.
pub(super) fn root_page(_: &Env) -> Outcome {
    let (_machine, data, vcpu, entry) = reader()?;
    let (_other, _memory, second, second_entry) = reader()?;
    let before = retired()?;
    for round in 0..3 {
        read(&vcpu, entry, round * PAGE)?;
        read(&second, second_entry, round * PAGE)?;
        break_on_purpose("stage2-root-page")?;
        read(&vcpu, entry, round * PAGE)?;
        read(&vcpu, entry, (round + 100) * PAGE)?;
        read(&second, second_entry, (round + 7) * PAGE)?;
        granted(data.map_again(BAD, PAGE), "a fresh page")?;
    }
    drop((vcpu, _machine, second, _other));
    // Both of them, three times: their frames are out of use once the VMs are gone.
    holds(retired()? >= before + 6, || "roots came back".into())
}

fn free_kib() -> Check<u64> {
    let text = fs::read_to_string("/proc/meminfo").map_err(|e| format!("/proc/meminfo: {e}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemFree:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.ok_or_else(|| "no MemFree in /proc/meminfo".into())
}

/// What hangs below a table that is lost is found and given back.
pub(super) fn nothing_is_leaked(env: &Env) -> Outcome {
    let rounds = env.rounds(50);
    let (machine, data, vcpu, entry) = reader()?;
    let tables = granted(Region::new(4 << 20), "mmap")?;
    let once = |round: u64| -> Outcome {
        for at in (0..DATA_BYTES).step_by(64 * PAGE) {
            read(&vcpu, entry, at)?;
        }
        break_on_purpose("stage2-table")?;
        read(&vcpu, entry, BAD)?;
        // Pages of this process below a table that is lost.
        let at = (tables.address(0).next_multiple_of(2 << 20) - tables.address(0)) as usize;
        for page in 0..64 {
            granted(tables.map_again(at + page * PAGE, PAGE), "a page")?;
            tables.set_u64(at + page * PAGE, round);
        }
        break_on_purpose(&format!("process-table {:#x}", tables.address(at)))?;
        granted(tables.map_again(at, 64 * PAGE), "pages")
    };
    once(0)?;
    let before = free_kib()?;
    for round in 1..=rounds {
        once(round)?;
    }
    let after = free_kib()?;
    drop((vcpu, machine, data));
    // A round that lost tables or pages would cost 8 KiB at least. umbra's heap may have taken chunks meanwhile.
    let gone = before.saturating_sub(after) % 2048;
    holds(gone < 4 * rounds, || {
        format!("{gone} KiB are gone after {rounds} rounds")
    })
}

/// A table of the process's own is lost: it is told where it had something, and what lies beside it stays.
pub(super) fn process_table(_: &Env) -> Outcome {
    catch_bus_errors().map_err(|e| e.to_string())?;
    let region = granted(Region::new(8 << 20), "mmap")?;
    let at = (region.address(0).next_multiple_of(2 << 20) - region.address(0)) as usize;
    let beside = at + (2 << 20);
    for page in 0..8 {
        for from in [at, beside] {
            granted(region.map_again(from + page * PAGE, PAGE), "a page")?;
            region.set_u64(from + page * PAGE, page as u64 + 1);
        }
    }
    break_on_purpose(&format!("process-table {:#x}", region.address(at)))?;
    let machine = Machine::new()?;
    let vcpu = machine.vcpu_with(0, &sum(DATA))?;
    refused(
        region.ioctl(&vcpu.fd, abi::SET_MP_STATE, at),
        libc::EFAULT,
        "umbra's load",
    )?;
    for page in 0..8 {
        let (seen, told) = replacing(|| region.u64(at + page * PAGE));
        let told = told.ok_or("no SIGBUS")?;
        let lost = region.address(at + page * PAGE);
        same(
            (told.addr, told.code, told.lsb, seen),
            (lost, libc::BUS_MCEERR_AR, 12, 0),
            "SIGBUS",
        )?;
        let kept = region.u64(beside + page * PAGE);
        same(kept, page as u64 + 1, "a page below another table")?;
    }
    // A fresh mapping owes nothing to what was lost.
    granted(region.map_again(at, 2 << 20), "a fresh mapping")?;
    same(region.u64(at + 100 * PAGE), 0, "a fresh page")
}

/// The same under a guest's memory: its VMM is told by a signal.
pub(super) fn process_table_of_a_vm(_: &Env) -> Outcome {
    catch_bus_errors().map_err(|e| e.to_string())?;
    let machine = Machine::new()?;
    let region = granted(Region::new(4 << 20), "mmap")?;
    let at = (region.address(0).next_multiple_of(2 << 20) - region.address(0)) as usize;
    for page in 0..8 {
        granted(region.map_again(at + page * PAGE, PAGE), "a page")?;
        region.set_u64(at + page * PAGE, 9);
    }
    let start = DATA - at as u64;
    granted(machine.add(&region, start, 0), "a slot")?;
    let mut asm = Asm::new();
    asm.ldr(0, 1).report(0);
    let vcpu = machine.vcpu_with(0, &asm)?;
    let entry = vcpu.get(abi::PC)?;
    vcpu.set(abi::x(1), DATA)?;
    same(vcpu.report()?, 9, "a load before")?;
    vcpu.go_to(entry)?;
    break_on_purpose(&format!("process-table {:#x}", region.address(at)))?;
    // umbra looks at the tables when it meets the broken one: here, for the process.
    let (_, told) = replacing(|| region.u64(at + 7 * PAGE));
    told.ok_or("no SIGBUS for the process's own load")?;
    let (answer, told) = expecting(|| vcpu.run());
    refused(answer, libc::EINTR, "KVM_RUN")?;
    let told = told.ok_or("no SIGBUS for the guest's load")?;
    same(
        (told.addr, told.code, told.lsb),
        (region.address(at), libc::BUS_MCEERR_AR, 12),
        "SIGBUS",
    )?;
    granted(region.map_again(at, PAGE), "a fresh page")?;
    same(vcpu.report()?, 0, "a load of the fresh page")
}

/// A vCPU's run page goes bad: that vCPU cannot be run any more, another of the VM can.
pub(super) fn run_page(_: &Env) -> Outcome {
    catch_bus_errors().map_err(|e| e.to_string())?;
    let machine = Machine::new()?;
    let mut asm = Asm::new();
    asm.mov(0, 3).report(0);
    let vcpu = machine.vcpu_with(0, &asm)?;
    let other = machine.vcpu_with(1, &asm)?;
    same(vcpu.report()?, 3, "before")?;
    plant(vcpu.page.address(0))?;
    for _ in 0..2 {
        refused(vcpu.run(), libc::EHWPOISON, "KVM_RUN")?;
    }
    let (_, told) = replacing(|| vcpu.page.u32(8));
    let told = told.ok_or("no SIGBUS for the VMM's own load")?;
    same(told.code, libc::BUS_MCEERR_AR, "SIGBUS")?;
    same(other.report()?, 3, "the VM's other vCPU")
}

/// How many files there are to lose: /lib/victim-0 and so on, of three pages each.
pub(super) const FILES: usize = 64;

/// Where the initrd holds a file, memory is bad: reads of it fail, and of nothing else.
pub(super) fn file(_: &Env) -> Outcome {
    one_file(0)
}

pub(super) fn one_file(number: usize) -> Outcome {
    let path = format!("/lib/victim-{number}");
    let read = || fs::read(&path).map_err(|e| e.raw_os_error().unwrap_or(0));
    let own = env::args().next().unwrap_or_default();
    let program = fs::read(&own).map_err(|e| format!("{own}: {e}"))?;
    same(granted(read(), &path)?.len(), 3 * PAGE, "bytes before")?;
    break_on_purpose(&format!("file {path}"))?;
    for _ in 0..2 {
        refused(read(), libc::EIO, "a read of the file")?;
    }
    let again = fs::read(&own).map_err(|e| format!("{own}: {e}"))?;
    holds(again == program, || format!("{own} has changed"))
}

/// What a child of this program loses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    Stack,
    Heap,
    Table,
}

pub(super) const LOSSES: [(Loss, &str); 3] = [
    (Loss::Stack, "stack"),
    (Loss::Heap, "heap"),
    (Loss::Table, "table"),
];

/// Loses what `name` says, and uses it: it ends by SIGBUS, or answers why not.
pub(crate) fn victim(name: &str) -> Check<()> {
    let found = LOSSES.iter().find(|(_, other)| *other == name);
    let (loss, _) = found.ok_or("a victim of what?")?;
    let stack = hint::black_box([7u8; 16 * PAGE]);
    let heap = hint::black_box(vec![7u8; 64 * PAGE]);
    let at = match loss {
        Loss::Stack | Loss::Table => stack.as_ptr().addr() + 8 * PAGE,
        Loss::Heap => heap.as_ptr().addr() + 32 * PAGE,
    };
    if *loss == Loss::Table {
        break_on_purpose(&format!("process-table {at:#x}"))?;
    } else {
        plant(at as u64)?;
    }
    let sum = |bytes: &[u8]| bytes.iter().map(|&byte| u64::from(byte)).sum::<u64>();
    Err(format!("it lives, and reads {}", sum(&stack) + sum(&heap)))
}

/// A child of this program loses what it runs on, and ends by SIGBUS.
pub(super) fn child(loss: Loss) -> Outcome {
    let own = env::args().next().unwrap_or_default();
    let (_, name) = LOSSES
        .iter()
        .find(|(other, _)| *other == loss)
        .ok_or("a loss")?;
    let ended = Command::new(&own)
        .args(["--victim", name])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .map_err(|e| format!("{own}: {e}"))?;
    same(
        ended.signal(),
        Some(libc::SIGBUS),
        &format!("how a child that lost its {name} ended"),
    )
}

/// Each of them.
pub(super) fn children(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    machine.ram.set_u64(0, 0x5afe);
    for (loss, _) in LOSSES {
        child(loss)?;
    }
    let mut asm = Asm::new();
    asm.mov(1, RAM).ldr(0, 1).report(0);
    same(
        machine.vcpu_with(0, &asm)?.report()?,
        0x5afe,
        "a VM of the parent's",
    )
}
