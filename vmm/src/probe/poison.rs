//! Memory errors: injected as users know it (EINJ's files, MADV_HWPOISON, /proc/self/pagemap), met by a
//! guest, told to the VMM, and put back into the guest.
//!
//! The 32 cells of a plain guest (those of its guest are in `below`) (EL × access × backing × clean or dirty) are held against the contract:
//! the host goes on, another VM keeps its memory, there is one exit with the right syndrome and
//! addresses, the pages round the bad one stay mapped, the access fails again as often as it is made, and
//! with a fresh page the guest goes on.

use std::os::unix::fs::FileExt;
use std::{fs, thread};

use kvm_bindings::{kvm_enable_cap, kvm_vcpu_events};
use umbra_vmm::kvm::{PAGE, Region, catch_bus_errors, expecting, ioctl, replacing};

use super::asm::{Asm, MAIR_EL1, SCTLR_EL1, TCR_EL1, TTBR0_EL1};
use super::guest::{Exit, Machine, RAM, Sea, Vcpu};
use super::{Check, Env, Outcome, abi, errno_name, granted, holds, refused, same};

const CAP_ARM_SEA_TO_USER: u32 = 245;
pub(super) const EINJ: &str = "/sys/kernel/debug/apei/einj";
pub(super) const HWPOISON: &str = "/sys/kernel/debug/hwpoison";
const UNCORRECTABLE: u64 = 0x10;
/// SErrors unmasked at both levels, as Linux runs: one that comes instead of an exit shows at once.
pub(super) const EL0: u64 = 0x2c0;
pub(super) const EL1: u64 = 0x2c5;
/// A second piece of the guest's memory, 2 MiB of its own.
pub(super) const DATA: u64 = 0x5000_0000;
pub(super) const DATA_BYTES: usize = 2 << 20;
/// The page of it that goes bad.
pub(super) const BAD: usize = 0x14_5000;
pub(super) const GPA_VALID: u64 = 1;

pub(super) fn write(dir: &str, file: &str, value: u64) -> Outcome {
    let path = format!("{dir}/{file}");
    fs::write(&path, format!("{value:#x}\n")).map_err(|e| format!("{path}: {e}"))
}

/// The frame of a page of this process (/proc/self/pagemap); `None` if it is not present.
pub(super) fn frame(address: u64) -> Check<Option<u64>> {
    let path = "/proc/self/pagemap";
    let mut entry = [0; 8];
    fs::File::open(path)
        .and_then(|file| file.read_exact_at(&mut entry, address / 4096 * 8))
        .map_err(|e| format!("{path}: {e}"))?;
    let entry = u64::from_le_bytes(entry);
    Ok((entry >> 63 == 1).then_some(entry & ((1 << 55) - 1)))
}

pub(super) fn present(address: u64) -> Check<u64> {
    frame(address)?.ok_or_else(|| format!("{address:#x} is not present"))
}

/// Plants an error at a physical address. With `no_trigger` nobody knows of it.
fn plant_at(at: u64, no_trigger: bool) -> Outcome {
    for (file, value) in [
        ("error_type", UNCORRECTABLE),
        ("flags", 2),
        ("param1", at),
        ("param2", u64::MAX),
        ("notrigger", no_trigger.into()),
        ("error_inject", 1),
    ] {
        write(EINJ, file, value)?;
    }
    Ok(())
}

/// Plants an error that nobody knows of. Answers its frame.
pub(super) fn plant(address: u64) -> Check<u64> {
    plant_page(address, true)
}

/// Plants an error that firmware claims when somebody meets it.
pub(super) fn plant_claimed(address: u64) -> Check<u64> {
    plant_page(address, false)
}

fn plant_page(address: u64, no_trigger: bool) -> Check<u64> {
    let frame = present(address)?;
    plant_at(frame * 4096 + address % 4096, no_trigger)?;
    same(self::frame(address)?, None, "the bad page in pagemap")?;
    Ok(frame)
}

pub(super) fn opt_in(machine: &Machine) -> Outcome {
    let mut cap = kvm_enable_cap {
        cap: CAP_ARM_SEA_TO_USER,
        ..Default::default()
    };
    let answer = ioctl(&machine.vm, abi::ENABLE_CAP, &mut cap);
    granted(answer, "KVM_CAP_ARM_SEA_TO_USER").map(drop)
}

pub(super) fn inject(vcpu: &Vcpu) -> Outcome {
    let mut events = kvm_vcpu_events::default();
    events.exception.ext_dabt_pending = 1;
    let answer = ioctl(&vcpu.fd, abi::SET_VCPU_EVENTS, &mut events);
    granted(answer, "ext_dabt_pending").map(drop)
}

pub(super) fn sea(vcpu: &Vcpu) -> Check<Sea> {
    match vcpu.exits()? {
        Exit::Sea(sea) => Ok(sea),
        other => Err(format!("{other:x?} instead of KVM_EXIT_ARM_SEA")),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Load,
    Store,
    Fetch,
    Walk,
}

impl Access {
    /// The syndrome of its abort: class from below, IL, WnR and status.
    pub(super) fn esr(self) -> u64 {
        match self {
            Access::Load => 0x9200_0010,
            Access::Store => 0x9200_0050,
            Access::Fetch => 0x8200_0010,
            // The descriptor of level 2 lies in the bad page.
            Access::Walk => 0x9200_0016,
        }
    }

    /// The program with the access at x1 behind it; reports what it read, or the number 7, and stops.
    pub(super) fn made_by(self, mut program: Asm) -> Asm {
        match self {
            Access::Load | Access::Walk => program.ldr(0, 1),
            Access::Store => program.mov(0, 7).str(0, 1),
            // x1 holds the address of a function that answers 7.
            Access::Fetch => program.call(1),
        };
        program.report(0).stop();
        program
    }
}

pub(super) fn memory(huge: bool) -> Check<Region> {
    let data = granted(Region::new(DATA_BYTES), "mmap")?;
    if huge {
        // A host without huge pages says so, and has small ones.
        let _ = data.prefer_huge(0, DATA_BYTES);
    } else {
        for at in (0..DATA_BYTES).step_by(PAGE) {
            granted(data.map_again(at, PAGE), "a page of its own")?;
            data.u8(at);
        }
    }
    Ok(data)
}

/// A program that makes the access at x1 and reports what it read, or the number 7.
fn program(access: Access) -> Asm {
    access.made_by(Asm::new())
}

/// What DATA holds for an access.
fn furnish(data: &Region, access: Access) {
    furnish_at(data, access, 0, 0);
}

/// The same where DATA lies `above` its place in the VM's space; a walk's first level is at `table` in it.
pub(super) fn furnish_at(data: &Region, access: Access, table: usize, above: u64) {
    match access {
        Access::Load | Access::Store => data.set_u64(BAD, 7),
        // mov x0, #7; ret
        Access::Fetch => data.set_code(BAD, &[0xd280_00e0, 0xd65f_03c0]),
        Access::Walk => {
            // Level 1 of a 39-bit space: devices, RAM for EL1, RAM for EL0 at 0xc000_0000; the GiB of the
            // access has its level 2 in the bad page.
            let (block, el0) = (0x701, 1 << 6);
            data.set_u64(table, 0x401 | 1 << 54 | 1 << 53 | 1 << 2 | el0);
            data.set_u64(table + 8, RAM | block);
            data.set_u64(table + 16, (DATA + above + BAD as u64) | 3);
            data.set_u64(table + 24, RAM | block | el0);
            data.set_u64(BAD, RAM | block | el0);
        }
    }
}

/// Makes the vCPU begin the access at `entry`.
fn begin(vcpu: &Vcpu, access: Access, pstate: u64, entry: u64) -> Outcome {
    let mut pc = entry;
    if access == Access::Walk {
        pc = translate(vcpu, DATA, pstate, entry)?;
    }
    vcpu.set(abi::PC, pc)?;
    vcpu.set(abi::PSTATE, pstate)?;
    vcpu.set(abi::x(1), target(access))
}

/// Turns on the vCPU's own translation at EL1 and EL0, by a table of 39 bits at `table`. Answers where
/// `entry` is for a program that begins at `pstate`.
pub(super) fn translate(vcpu: &Vcpu, table: u64, pstate: u64, entry: u64) -> Check<u64> {
    vcpu.set(abi::sys(MAIR_EL1), 0xff)?;
    let tcr = 25 | 3 << 12 | 1 << 8 | 1 << 10 | 1 << 23 | 2 << 32;
    vcpu.set(abi::sys(TCR_EL1), tcr)?;
    vcpu.set(abi::sys(TTBR0_EL1), table)?;
    let sctlr = vcpu.get(abi::sys(SCTLR_EL1))?;
    vcpu.set(abi::sys(SCTLR_EL1), sctlr | 1)?;
    Ok(if pstate == EL0 {
        entry - RAM + 0xc000_0000
    } else {
        entry
    })
}

/// Where the access goes: the address in x1, and what FAR must be.
fn target(access: Access) -> u64 {
    match access {
        Access::Walk => 0x8000_0010,
        Access::Load | Access::Store | Access::Fetch => DATA + BAD as u64,
    }
}

/// Every cell in turn.
pub(super) fn cells(_: &Env) -> Outcome {
    granted(catch_bus_errors().map_err(|_| 0), "SIGBUS")?;
    each(cell)
}

/// Tries a contract in its 32 cells: exception level, access, backing, clean or dirty.
pub(super) fn each(cell: fn(u64, Access, bool, bool) -> Outcome) -> Outcome {
    let mut failed = Vec::new();
    for pstate in [EL1, EL0] {
        for access in [Access::Load, Access::Store, Access::Fetch, Access::Walk] {
            for (huge, dirty) in [(false, false), (false, true), (true, false), (true, true)] {
                if let Err(why) = cell(pstate, access, huge, dirty) {
                    failed.push(format!(
                        "EL{} {access:?} huge={huge} dirty={dirty}: {why}",
                        pstate >> 2 & 1
                    ));
                }
            }
        }
    }
    holds(failed.is_empty(), || failed.join("; "))
}

pub(super) fn cell(pstate: u64, access: Access, huge: bool, dirty: bool) -> Outcome {
    let bystander = Machine::new()?;
    bystander.ram.set_u64(0, 0x5afe);
    let machine = Machine::new()?;
    let data = memory(huge)?;
    granted(machine.add(&data, DATA, 0), "a slot")?;
    opt_in(&machine)?;
    furnish(&data, access);
    machine.ram.set_u64(0x10, 7);
    let entry = machine.place(&program(access));
    let neighbours = machine.place(&{
        let mut asm = Asm::new();
        asm.ldr(0, 1).str(0, 1).ldr(0, 2).report(0);
        asm
    });
    let vcpu = machine.vcpu(0, entry)?;
    // Both neighbours are mapped, and the page itself if it is to be dirty.
    for at in [BAD - PAGE, BAD + PAGE] {
        data.set_u64(at, 9);
    }
    vcpu.set(abi::PC, neighbours)?;
    let first = if dirty { BAD } else { BAD - PAGE };
    vcpu.set(abi::x(1), DATA + first as u64)?;
    vcpu.set(abi::x(2), DATA + (BAD + PAGE) as u64)?;
    same(vcpu.report()?, 9, "a neighbour before")?;
    vcpu.complete()?;

    plant(data.address(BAD))?;
    for at in [BAD - PAGE, BAD + PAGE] {
        present(data.address(at))?;
    }
    begin(&vcpu, access, pstate, entry)?;
    let wanted = Sea {
        flags: GPA_VALID,
        esr: access.esr(),
        gva: target(access),
        gpa: DATA + BAD as u64,
    };
    // As often as it is made.
    for _ in 0..3 {
        same(sea(&vcpu)?, wanted, "the exit")?;
    }
    let pc = vcpu.get(abi::PC)?;
    inject(&vcpu)?;
    let seen = vcpu.exception()?;
    let lower = pstate == EL0;
    let class = wanted.esr >> 26 | u64::from(!lower);
    let esr = class << 26 | wanted.esr & 0x3ff_ffff;
    same(
        (seen.vector, seen.esr, seen.far, seen.elr),
        (if lower { 8 } else { 4 }, esr, wanted.gva, pc),
        "the abort in the guest",
    )?;
    vcpu.complete()?;
    same(bystander.ram.u64(0), 0x5afe, "the other VM's memory")?;

    // Round the bad page everything is there; with a fresh page the access succeeds.
    granted(data.map_again(BAD, PAGE), "a fresh page")?;
    same(data.u64(BAD), 0, "the fresh page")?;
    for at in [BAD - PAGE, BAD + PAGE] {
        same(data.u64(at), 9, "a neighbour after")?;
    }
    furnish(&data, access);
    begin(&vcpu, access, pstate, entry)?;
    same(vcpu.report()?, 7, "the access to the fresh page")
}

/// A guest in its own VM with a page that was planted.
pub(super) fn planted(opted_in: bool) -> Check<(Machine, Region, Vcpu)> {
    let made = about_to_load(opted_in)?;
    plant(made.1.address(BAD))?;
    Ok(made)
}

/// A guest in its own VM that is about to load from what will be the bad page.
pub(super) fn about_to_load(opted_in: bool) -> Check<(Machine, Region, Vcpu)> {
    let machine = Machine::new()?;
    let data = memory(true)?;
    granted(machine.add(&data, DATA, 0), "a slot")?;
    if opted_in {
        opt_in(&machine)?;
    }
    data.set_u64(BAD, 7);
    let vcpu = machine.vcpu_with(0, &program(Access::Load))?;
    vcpu.set(abi::x(1), target(Access::Load))?;
    Ok((machine, data, vcpu))
}

/// Without the capability the guest gets an SError.
pub(super) fn not_asked_for(_: &Env) -> Outcome {
    let (machine, _data, vcpu) = planted(false)?;
    let entry = machine.place(&{
        let mut asm = Asm::new();
        // Linux runs with SErrors unmasked.
        asm.unmask(4).ldr(0, 1).report(0);
        asm
    });
    vcpu.set(abi::PC, entry)?;
    let seen = vcpu.exception()?;
    same((seen.vector, seen.esr >> 26), (7, 0x2f), "the SError")
}

/// The abort of a fetch comes back as one although the ABI's field speaks of data.
pub(super) fn instruction_abort(_: &Env) -> Outcome {
    let (_machine, _data, vcpu) = planted(true)?;
    vcpu.set(abi::PC, target(Access::Fetch))?;
    same(sea(&vcpu)?.esr, Access::Fetch.esr(), "the exit")?;
    inject(&vcpu)?;
    let seen = vcpu.get(abi::PC)?;
    same(seen, target(Access::Fetch), "PC before it runs")?;
    let seen = vcpu.exception()?;
    same(
        (seen.esr, seen.far),
        (0x8600_0010, target(Access::Fetch)),
        "the abort",
    )
}

/// What was told is forgotten when the guest has run on: a later request is a plain data abort.
pub(super) fn injected_later(_: &Env) -> Outcome {
    let (machine, data, vcpu) = planted(true)?;
    vcpu.set(abi::PC, target(Access::Fetch))?;
    sea(&vcpu)?;
    granted(data.map_again(BAD, PAGE), "a fresh page")?;
    let entry = machine.place(&{
        let mut asm = Asm::new();
        asm.mov(0, 3).report(0).report(0);
        asm
    });
    vcpu.set(abi::PC, entry)?;
    same(vcpu.report()?, 3, "the guest goes on")?;
    inject(&vcpu)?;
    same(vcpu.exception()?.esr, 0x9600_0010, "a data abort")
}

/// A page that is known to be bad is a bus error of the VMM, whatever it opted in to.
pub(super) fn known(_: &Env) -> Outcome {
    granted(catch_bus_errors().map_err(|_| 0), "SIGBUS")?;
    let (_machine, data, vcpu) = planted(true)?;
    let (done, told) = expecting(|| data.poison(BAD, PAGE));
    granted(done, "MADV_HWPOISON")?;
    let told = told.ok_or("MADV_HWPOISON told nobody")?;
    let wanted = (data.address(BAD), libc::BUS_MCEERR_AR, 12);
    same(
        (told.addr, told.code, told.lsb),
        wanted,
        "MADV_HWPOISON's SIGBUS",
    )?;
    for _ in 0..3 {
        let (answer, told) = expecting(|| vcpu.run());
        refused(answer, libc::EINTR, "KVM_RUN")?;
        let told = told.ok_or("no SIGBUS for the guest's access")?;
        same((told.addr, told.code, told.lsb), wanted, "SIGBUS")?;
    }
    granted(data.map_again(BAD, PAGE), "a fresh page")?;
    same(vcpu.report()?, 0, "the fresh page")
}

/// The kernel copying from a bad page for this process fails; it does not fall.
pub(super) fn signal_of_the_vmm(_: &Env) -> Outcome {
    let data = granted(Region::new(DATA_BYTES), "mmap")?;
    data.set_u64(BAD, 7);
    plant(data.address(BAD))?;
    let machine = Machine::new()?;
    // KVM_SET_MP_STATE and KVM_GET_MP_STATE by way of the bad page.
    let vcpu = machine.vcpu_with(0, &program(Access::Load))?;
    for request in [abi::SET_MP_STATE, abi::GET_MP_STATE] {
        refused(data.ioctl(&vcpu.fd, request, BAD), libc::EFAULT, "an ioctl")?;
    }
    granted(data.map_again(BAD, PAGE), "a fresh page")?;
    granted(data.ioctl(&vcpu.fd, abi::GET_MP_STATE, BAD), "an ioctl").map(drop)
}

pub(super) fn bad_frames() -> Check<String> {
    let path = format!("{HWPOISON}/bad-frames");
    fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))
}

pub(super) fn retired() -> Check<u64> {
    let text = bad_frames()?;
    let last = text.lines().last().unwrap_or_default();
    let number = last
        .strip_prefix("retired=")
        .and_then(|rest| rest.split(' ').next());
    number
        .and_then(|n| n.parse().ok())
        .ok_or_else(|| format!("bad-frames ends with {last:?}"))
}

/// A frame that went bad is listed, survives its VM, and is never seen again.
pub(super) fn unmapped_for_good(env: &Env) -> Outcome {
    let before = retired()?;
    let (machine, data, vcpu) = planted(true)?;
    let frame = data.address(BAD);
    sea(&vcpu)?;
    let text = bad_frames()?;
    holds(text.contains("Latent consumed="), || text.clone())?;
    drop((vcpu, machine, data));
    holds(self::frame(frame)?.is_none(), || {
        "a page of an unmapped region".into()
    })?;
    same(retired()?, before + 1, "retired frames")?;
    // Frames known to be bad in all this memory: none.
    let listed: Vec<u64> = bad_frames()?
        .lines()
        .filter_map(|line| {
            u64::from_str_radix(line.split(' ').next()?.strip_prefix("0x")?, 16).ok()
        })
        .collect();
    for _ in 0..env.rounds(8) {
        let all = granted(Region::new(16 << 20), "mmap")?;
        for at in (0..16 << 20).step_by(PAGE) {
            all.set_u8(at, 1);
            let frame = present(all.address(at))? * 4096;
            holds(!listed.contains(&frame), || format!("{frame:#x} came back"))?;
        }
    }
    Ok(())
}

/// Sums the first word of every page of DATA, which lies at `data`, and reports it, again and again.
pub(super) fn sum(data: u64) -> Asm {
    let mut asm = Asm::new();
    let start = asm.here();
    asm.mov(1, data).mov(2, data + DATA_BYTES as u64).mov(0, 0);
    let next = asm.here();
    asm.ldr(3, 1).word(0x8b03_0000).add(1, 1, 4095).add(1, 1, 1);
    asm.cmp(1, 2);
    // b.ne
    let back = (next as i64 - asm.here() as i64) as u32 & 0x7ffff;
    asm.word(0x5400_0001 | back << 5);
    asm.report(0).back(start);
    asm
}

/// Three VMs; one of them keeps meeting errors, the others' sums stay right.
pub(super) fn other_vms_live_on(env: &Env) -> Outcome {
    let rounds = env.rounds(20);
    let summing = || -> Check<u64> {
        let machine = Machine::new()?;
        let data = memory(true)?;
        granted(machine.add(&data, DATA, 0), "a slot")?;
        for at in (0..DATA_BYTES).step_by(PAGE) {
            data.set_u64(at, at as u64);
        }
        let vcpu = machine.vcpu_with(0, &sum(DATA))?;
        let mut sum = 0;
        for _ in 0..rounds {
            sum = vcpu.report()?;
        }
        Ok(sum)
    };
    let wanted = (0..DATA_BYTES as u64).step_by(PAGE).sum();
    thread::scope(|scope| {
        let workers = [scope.spawn(summing), scope.spawn(summing)];
        for _ in 0..rounds {
            let (_machine, _data, vcpu) = planted(true)?;
            sea(&vcpu)?;
            inject(&vcpu)?;
            vcpu.exception()?;
        }
        for worker in workers {
            let sum = worker.join().map_err(|_| "a thread panicked")??;
            same(sum, wanted, "another VM's sum")?;
        }
        Ok(())
    })
}

/// Requests that make no sense change nothing.
pub(super) fn bad_requests(_: &Env) -> Outcome {
    let refusal = |dir: &str, file: &str, text: &str, errno: i32| -> Outcome {
        let path = format!("{dir}/{file}");
        let answer = fs::write(&path, text).map_err(|e| e.raw_os_error().unwrap_or(0));
        refused(answer, errno, &format!("{text:?} to {path}"))
    };
    let before = bad_frames()?;
    for text in ["0x20", "0", "-1", "memory", "\n", "0x10 0x10"] {
        refusal(EINJ, "error_type", text, libc::EINVAL)?;
    }
    write(EINJ, "error_type", UNCORRECTABLE)?;
    write(EINJ, "flags", 2)?;
    write(EINJ, "notrigger", 1)?;
    for (address, mask) in [
        // The unassigned place of QEMU's virt, a device, beyond the machine, half a page.
        (0x0c80_0000, u64::MAX),
        (0x0900_0000, u64::MAX),
        (u64::MAX, u64::MAX),
        (0x4000_0000, 0xfff),
        (0x4000_0000, 0),
    ] {
        write(EINJ, "param1", address)?;
        write(EINJ, "param2", mask)?;
        refusal(EINJ, "error_inject", "1", libc::EINVAL)?;
    }
    refusal(EINJ, "available_error_type", "1", libc::EACCES)?;
    for text in ["0xc800", "0xffffffffffffffff", "0x10000000000000"] {
        refusal(HWPOISON, "corrupt-pfn", text, libc::ENXIO)?;
    }
    refusal(HWPOISON, "corrupt-pfn", "page", libc::EINVAL)?;
    same(bad_frames()?, before, "the list of bad frames")
}

/// Real bus errors: a page of this process, and tables and registers of umbra's for its VM, name a physical
/// address where nothing answers.
pub(super) fn bus_errors(_: &Env) -> Outcome {
    granted(catch_bus_errors().map_err(|_| 0), "SIGBUS")?;
    // EL0's own load, and umbra's load for it.
    let data = granted(Region::new(DATA_BYTES), "mmap")?;
    let machine = Machine::new()?;
    let vcpu = machine.vcpu_with(0, &program(Access::Load))?;
    data.set_u64(BAD, 7);
    break_on_purpose(&format!("page {:#x}", data.address(BAD)))?;
    refused(
        data.ioctl(&vcpu.fd, abi::SET_MP_STATE, BAD),
        libc::EFAULT,
        "umbra's load",
    )?;
    let (seen, told) = replacing(|| data.u64(BAD));
    let told = told.ok_or("no SIGBUS for the load at EL0")?;
    let wanted = (data.address(BAD), libc::BUS_MCEERR_AR, 12);
    same((told.addr, told.code, told.lsb), wanted, "SIGBUS")?;
    same(seen, 0, "the page that the handler put there")?;

    // The guest's own tables, which it never hears of.
    for what in ["stage2-table", "stage2-root"] {
        broken(what)?;
    }
    Ok(())
}

/// Tables of umbra's for a guest are broken in a way, and hardware meets it.
pub(super) fn broken(what: &str) -> Outcome {
    {
        let machine = Machine::new()?;
        let bystander = Machine::new()?;
        let other = bystander.vcpu_with(0, &program(Access::Load))?;
        let data = memory(true)?;
        granted(machine.add(&data, DATA, 0), "a slot")?;
        // What is not healed would be told at once.
        opt_in(&machine)?;
        data.set_u64(BAD, 7);
        let vcpu = machine.vcpu_with(0, &program(Access::Load))?;
        let entry = vcpu.get(abi::PC)?;
        for round in 0..3 {
            vcpu.set(abi::PC, entry)?;
            vcpu.set(abi::x(1), DATA + BAD as u64)?;
            let seen = vcpu.report().map_err(|e| format!("{what}: {e}"))?;
            same(seen, 7, &format!("a load, {what}, round {round}"))?;
            vcpu.complete()?;
            break_on_purpose(what)?;
        }
        bystander.ram.set_u64(0, 9);
        other.set(abi::x(1), RAM)?;
        same(other.report()?, 9, "another VM")?;
    }
    Ok(())
}

/// Makes something name an address where nothing answers.
pub(super) fn break_on_purpose(what: &str) -> Outcome {
    let path = format!("{HWPOISON}/break");
    fs::write(&path, what).map_err(|e| format!("{what:?} to {path}: {e}"))
}

/// More errors than the list has places for, in one VM: bounded, and the VM can be ended.
pub(super) fn storm(env: &Env) -> Outcome {
    let machine = Machine::new()?;
    let data = memory(true)?;
    granted(machine.add(&data, DATA, 0), "a slot")?;
    opt_in(&machine)?;
    let vcpu = machine.vcpu_with(0, &program(Access::Load))?;
    let entry = vcpu.get(abi::PC)?;
    for page in 0..env.rounds(200) as usize {
        let at = page * 2 * PAGE;
        if at >= DATA_BYTES {
            break;
        }
        data.set_u64(at, 7);
        plant(data.address(at))?;
        vcpu.set(abi::PC, entry)?;
        vcpu.set(abi::x(1), DATA + at as u64)?;
        let seen = sea(&vcpu)?;
        same(
            (seen.gva, seen.gpa),
            (DATA + at as u64, DATA + at as u64),
            "the exit",
        )?;
        // Known from here on, by another way of saying so.
        let (known, _) = expecting(|| data.poison(at, PAGE));
        known.map_err(|e| format!("MADV_HWPOISON: {}", errno_name(e)))?;
    }
    Ok(())
}
