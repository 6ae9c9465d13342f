//! Dirty logging: what is written shows, once; what is not does not; and no write is lost.
//!
//! The checks are asked of whoever writes ([`Writer`]): here of a plain guest, in `shadows` of a guest's guest.

use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_MEM_LOG_DIRTY_PAGES, kvm_enable_cap};
use umbra_vmm::kvm::{PAGE, Region, ioctl, ioctl_value};

use super::asm::{Asm, MAIR_EL1, SCTLR_EL1, TCR_EL1, TTBR0_EL1};
use super::guest::{Answer, Machine, RAM, Vcpu, create_vm, set_slot};
use super::{Check, Env, Outcome, abi, granted, holds, refused, same};

/// Where the VM has the slot.
pub(super) const AT: u64 = 0x8000_0000;
/// Two blocks, so that blocks are made where nothing is logged.
pub(super) const BYTES: usize = 4 << 20;
const PAGES: usize = BYTES / PAGE;
const SLOT: u32 = 1;
const MANUAL: u64 = 1;
const INITIALLY_SET: u64 = 2;

fn get(vm: &OwnedFd, slot: u32, bitmap: u64) -> Answer<u32> {
    ioctl(vm, abi::GET_DIRTY_LOG, &mut [slot.into(), bitmap, 0, 0])
}

fn clear(vm: &OwnedFd, slot: u32, first: u64, count: u32, bitmap: u64) -> Answer<u32> {
    let words = u64::from(slot) | u64::from(count) << 32;
    ioctl(vm, abi::CLEAR_DIRTY_LOG, &mut [words, first, bitmap, 0])
}

fn manual(vm: &OwnedFd, options: u64) -> Answer<u32> {
    let mut cap = kvm_enable_cap {
        cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
        args: [options, 0, 0, 0],
        ..Default::default()
    };
    ioctl(vm, abi::ENABLE_CAP, &mut cap)
}

/// The pages that a bitmap names, of `count`.
fn pages(bitmap: &Region, count: usize) -> Vec<usize> {
    (0..count)
        .filter(|page| bitmap.u64(page / 64 * 8) >> (page % 64) & 1 == 1)
        .collect()
}

/// The pages of slot `slot`, of `count`, that were written since this was last asked.
pub(super) fn log_of(vm: &OwnedFd, slot: u32, count: usize) -> Check<Vec<usize>> {
    let bitmap = granted(Region::new(count.div_ceil(64) * 8), "mmap")?;
    granted(get(vm, slot, bitmap.address(0)), "KVM_GET_DIRTY_LOG")?;
    Ok(pages(&bitmap, count))
}

/// Who writes into the slot.
pub(super) struct Writer<'a> {
    /// Where the slot is to its program.
    pub(super) at: u64,
    /// How many vCPUs write at once where that matters.
    pub(super) count: usize,
    /// Makes vCPU number n, about to begin a program.
    pub(super) vcpu: &'a dyn Fn(&Machine, u64, &Asm) -> Check<Vcpu>,
}

const GUEST: Writer<'static> = Writer {
    at: AT,
    count: 1,
    vcpu: &|machine, id, program| machine.vcpu_with(id, program),
};

/// A machine with a slot of two blocks that somebody writes into.
struct Logged {
    machine: Machine,
    memory: Region,
    bitmap: Region,
    /// Where the slot is to who writes.
    at: u64,
}

/// Stores x6 at x1, again and again.
fn storing() -> Asm {
    let mut asm = Asm::new();
    let top = asm.here();
    asm.str(6, 1).report(6).back(top);
    asm
}

impl Logged {
    fn new(flags: u32, options: u64, at: u64) -> Check<Self> {
        let machine = Machine::new()?;
        if options != 0 {
            granted(manual(&machine.vm, options), "manual protection")?;
        }
        let memory = granted(Region::new(BYTES), "mmap")?;
        same(
            granted(machine.add(&memory, AT, flags), "a slot")?,
            SLOT,
            "its number",
        )?;
        let bitmap = granted(Region::new(PAGES / 8), "mmap")?;
        Ok(Self {
            machine,
            memory,
            bitmap,
            at,
        })
    }

    /// With a vCPU for [`Logged::write`].
    fn written_by(who: &Writer<'_>, flags: u32, options: u64) -> Check<(Self, Vcpu)> {
        let logged = Self::new(flags, options, who.at)?;
        let vcpu = (who.vcpu)(&logged.machine, 0, &storing())?;
        Ok((logged, vcpu))
    }

    fn write(&self, vcpu: &Vcpu, page: usize, value: u64) -> Outcome {
        vcpu.set(abi::x(1), self.at + (page * PAGE) as u64)?;
        vcpu.set(abi::x(6), value)?;
        vcpu.report()?;
        same(self.memory.u64(page * PAGE), value, "what the guest wrote")
    }

    fn flags(&self, flags: u32) -> Outcome {
        let (bytes, hva) = (BYTES as u64, self.memory.address(0));
        granted(
            set_slot(&self.machine.vm, SLOT, flags, AT, bytes, hva),
            &format!("flags {flags:#x}"),
        )
        .map(drop)
    }

    fn log(&self) -> Check<Vec<usize>> {
        granted(
            get(&self.machine.vm, SLOT, self.bitmap.address(0)),
            "KVM_GET_DIRTY_LOG",
        )?;
        Ok(pages(&self.bitmap, PAGES))
    }

    fn clear(&self, page: usize) -> Outcome {
        let mask = granted(Region::new(8), "mmap")?;
        mask.set_u64(0, 1 << (page % 64));
        let first = page as u64 & !63;
        granted(
            clear(&self.machine.vm, SLOT, first, 64, mask.address(0)),
            "KVM_CLEAR_DIRTY_LOG",
        )
        .map(drop)
    }
}

pub(super) fn errors(_: &Env) -> Outcome {
    let vm = create_vm()?;
    let (memory, bitmap) = (
        granted(Region::new(100 * PAGE), "mmap")?,
        granted(Region::new(PAGE), "mmap")?,
    );
    let bits = bitmap.address(0);
    refused(get(&vm, 0, bits), libc::ENOENT, "no slot")?;
    refused(get(&vm, 0x7fff, bits), libc::EINVAL, "slot 0x7fff")?;
    refused(get(&vm, 1 << 16, bits), libc::EINVAL, "address space 1")?;
    let set = |flags| set_slot(&vm, 0, flags, AT, 100 * PAGE as u64, memory.address(0));
    granted(set(0), "a slot")?;
    refused(get(&vm, 0, bits), libc::ENOENT, "a slot without a log")?;
    refused(clear(&vm, 0, 0, 64, bits), libc::ENOENT, "clearing none")?;
    granted(set(KVM_MEM_LOG_DIRTY_PAGES), "a log")?;
    granted(get(&vm, 0, bits), "it")?;
    for (first, count, what) in [
        (1, 64, "from page 1"),
        (0, 63, "63 pages"),
        (128, 0, "beyond the slot"),
        (0, 128, "more than the slot"),
        (64, 37, "a page too many"),
    ] {
        refused(clear(&vm, 0, first, count, bits), libc::EINVAL, what)?;
    }
    granted(clear(&vm, 0, 0, 64, bits), "64 pages")?;
    granted(clear(&vm, 0, 64, 36, bits), "to the end")?;
    refused(clear(&vm, 0, 0, 64, 8), libc::EFAULT, "a bad pointer")?;
    refused(get(&vm, 0, 8), libc::EFAULT, "a bitmap at address 8")?;
    granted(set(0), "no log any more")?;
    refused(get(&vm, 0, bits), libc::ENOENT, "after that")?;
    let offer = ioctl_value(
        &vm,
        abi::CHECK_EXTENSION,
        KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.into(),
    );
    same(granted(offer, "check")?, 3, "what manual protection offers")?;
    for bad in [INITIALLY_SET, 4, 7, u64::MAX] {
        refused(manual(&vm, bad), libc::EINVAL, &format!("options {bad:#x}"))?;
    }
    granted(manual(&vm, MANUAL | INITIALLY_SET), "both").map(drop)
}

pub(super) fn writes_show_once(_: &Env) -> Outcome {
    writes_show_once_of(&GUEST)
}

pub(super) fn writes_show_once_of(who: &Writer<'_>) -> Outcome {
    let (all, vcpu) = Logged::written_by(who, 0, 0)?;
    // In blocks at first.
    all.write(&vcpu, 3, 1)?;
    all.write(&vcpu, 700, 1)?;
    all.flags(KVM_MEM_LOG_DIRTY_PAGES)?;
    same(all.log()?, vec![], "what was written before the log")?;
    all.write(&vcpu, 3, 2)?;
    all.write(&vcpu, 1023, 2)?;
    all.write(&vcpu, 64, 2)?;
    same(all.log()?, vec![3, 64, 1023], "what was written")?;
    same(all.log()?, vec![], "again")?;
    all.write(&vcpu, 64, 3)?;
    all.write(&vcpu, 64, 4)?;
    same(all.log()?, vec![64], "what was written again")?;
    // The VMM's own writes are its own business.
    all.memory.set_u64(9 * PAGE, 1);
    same(all.log()?, vec![], "what the VMM wrote")?;
    all.flags(0)?;
    all.write(&vcpu, 5, 5)?;
    all.flags(KVM_MEM_LOG_DIRTY_PAGES)?;
    same(all.log()?, vec![], "what was written without a log")?;
    all.write(&vcpu, 5, 6)?;
    same(all.log()?, vec![5], "what is written with one again")
}

pub(super) fn reads_do_not(_: &Env) -> Outcome {
    let (all, vcpu) = Logged::written_by(&GUEST, KVM_MEM_LOG_DIRTY_PAGES, 0)?;
    let mut asm = Asm::new();
    let top = asm.here();
    asm.ldr(6, 1).report(6).back(top);
    vcpu.set(abi::PC, all.machine.place(&asm))?;
    for page in [0, 511, 512] {
        vcpu.set(abi::x(1), AT + (page * PAGE) as u64)?;
        vcpu.report()?;
    }
    same(all.log()?, vec![], "what was read")
}

pub(super) fn by_hand(_: &Env) -> Outcome {
    by_hand_of(&GUEST)
}

pub(super) fn by_hand_of(who: &Writer<'_>) -> Outcome {
    let (all, vcpu) = Logged::written_by(who, KVM_MEM_LOG_DIRTY_PAGES, MANUAL)?;
    all.write(&vcpu, 7, 1)?;
    all.write(&vcpu, 8, 1)?;
    same(all.log()?, vec![7, 8], "what was written")?;
    same(all.log()?, vec![7, 8], "before it is cleared")?;
    all.clear(7)?;
    same(all.log()?, vec![8], "after one was")?;
    all.write(&vcpu, 7, 2)?;
    all.write(&vcpu, 8, 2)?;
    same(all.log()?, vec![7, 8], "after both were written")
}

pub(super) fn initially_set(_: &Env) -> Outcome {
    initially_set_of(&GUEST)
}

pub(super) fn initially_set_of(who: &Writer<'_>) -> Outcome {
    let (all, vcpu) = Logged::written_by(who, 0, MANUAL | INITIALLY_SET)?;
    all.write(&vcpu, 1, 1)?;
    all.flags(KVM_MEM_LOG_DIRTY_PAGES)?;
    same(all.log()?, (0..PAGES).collect(), "at first")?;
    all.clear(1)?;
    all.clear(600)?;
    let left: Vec<usize> = (0..PAGES).filter(|page| ![1, 600].contains(page)).collect();
    same(all.log()?, left, "after two were cleared")?;
    // The block round page 1 was writable; that its neighbour is written must not hide page 1.
    all.write(&vcpu, 2, 2)?;
    all.write(&vcpu, 1, 2)?;
    let left: Vec<usize> = (0..PAGES).filter(|page| *page != 600).collect();
    same(all.log()?, left, "after one was written")
}

pub(super) fn walks_show(_: &Env) -> Outcome {
    walks_show_of(&GUEST)
}

/// A page table that hardware writes into (the access flag) is written.
pub(super) fn walks_show_of(who: &Writer<'_>) -> Outcome {
    /// Identity with 1 GiB blocks and TCR_EL1.HA, tables in the logged slot.
    const TABLE: usize = 10;
    let all = Logged::new(KVM_MEM_LOG_DIRTY_PAGES, 0, who.at)?;
    let entry = |address: u64| TABLE * PAGE + (address >> 30) as usize * 8;
    let block = |address: u64, flag: u64| address >> 30 << 30 | flag | 0x301;
    for address in [0, RAM] {
        all.memory.set_u64(entry(address), block(address, 1 << 10));
    }
    all.memory.set_u64(entry(who.at), block(who.at, 0));
    let mut asm = Asm::new();
    asm.msr(MAIR_EL1, 10)
        .msr(TCR_EL1, 11)
        .msr(TTBR0_EL1, 12)
        .isb()
        .msr(SCTLR_EL1, 13)
        .isb()
        .ldr(6, 1)
        .report(6)
        .stop();
    let vcpu = (who.vcpu)(&all.machine, 0, &asm)?;
    vcpu.set(abi::x(1), who.at + 4096)?;
    vcpu.set(abi::x(10), 0xff)?;
    // 39 bits of address, inner and outer write-back, HA, no TTBR1.
    vcpu.set(
        abi::x(11),
        25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 2 << 32 | 1 << 39,
    )?;
    vcpu.set(abi::x(12), who.at + (TABLE * PAGE) as u64)?;
    vcpu.set(abi::x(13), 0x30d0_0801 | 1 << 2 | 1 << 12)?;
    vcpu.report()?;
    holds(all.memory.u64(entry(who.at)) >> 10 & 1 == 1, || {
        "hardware sets no access flag here".into()
    })?;
    same(all.log()?, vec![TABLE], "what the walk wrote")
}

pub(super) fn no_write_is_lost(env: &Env) -> Outcome {
    no_write_is_lost_of(&GUEST, env.rounds(60))
}

/// Each vCPU counts in a word of every page in turn while the VMM copies what is logged: in the end the
/// copy is the memory.
pub(super) fn no_write_is_lost_of(who: &Writer<'_>, rounds: u64) -> Outcome {
    const STOP: usize = 64;
    for options in [0, MANUAL, MANUAL | INITIALLY_SET] {
        let all = Logged::new(0, options, who.at)?;
        let mut asm = Asm::new();
        let again = asm.here();
        asm.mov_reg(1, 4);
        let next = asm.here();
        asm.ldr(6, 1)
            .add(6, 6, 1)
            .str(6, 1)
            .add(1, 1, 2048)
            .add(1, 1, 2048);
        asm.sub(5, 5, 1).back_unless_zero(5, next);
        asm.mov_reg(5, 9)
            .ldr(7, 3)
            .back_if_zero(7, again)
            .report(6)
            .stop();
        let mut vcpus = Vec::new();
        for id in 0..who.count as u64 {
            let vcpu = (who.vcpu)(&all.machine, id, &asm)?;
            vcpu.set(abi::x(3), RAM + STOP as u64)?;
            vcpu.set(abi::x(4), who.at + 8 * id)?;
            for n in [5, 9] {
                vcpu.set(abi::x(n), PAGES as u64)?;
            }
            vcpus.push(vcpu);
        }
        let words = |page: usize| (0..who.count).map(move |id| page * PAGE + 8 * id);
        let mut copy: Vec<u64> = vec![0; PAGES * PAGE / 8];
        let all = &all;
        thread::scope(|scope| -> Outcome {
            let runners: Vec<_> = vcpus
                .into_iter()
                .map(|vcpu| scope.spawn(move || vcpu.report()))
                .collect();
            let start = Instant::now();
            let watched = (|| {
                while words(PAGES - 1).any(|at| all.memory.u64(at) == 0) {
                    holds(start.elapsed() < Duration::from_secs(20), || {
                        "the guest makes no progress".into()
                    })?;
                    thread::yield_now();
                }
                all.flags(KVM_MEM_LOG_DIRTY_PAGES)?;
                for at in (0..PAGES).flat_map(words) {
                    copy[at / 8] = all.memory.u64(at);
                }
                let mut fetch = || -> Outcome {
                    let dirty = all.log()?;
                    if options != 0 {
                        let count = PAGES as u32;
                        granted(
                            clear(&all.machine.vm, SLOT, 0, count, all.bitmap.address(0)),
                            "KVM_CLEAR_DIRTY_LOG",
                        )?;
                    }
                    for at in dirty.into_iter().flat_map(words) {
                        copy[at / 8] = all.memory.u64(at);
                    }
                    Ok(())
                };
                for _ in 0..rounds {
                    fetch()?;
                    thread::yield_now();
                }
                all.machine.ram.set_u64(STOP, 1);
                while !runners.iter().all(|runner| runner.is_finished()) {
                    thread::yield_now();
                }
                fetch()
            })();
            all.machine.ram.set_u64(STOP, 1);
            for runner in runners {
                runner.join().map_err(|_| "a vCPU's thread panicked")??;
            }
            watched
        })?;
        for at in (0..PAGES).flat_map(words) {
            let what = format!("{at:#x} of the copy, options {options}");
            same(copy[at / 8], all.memory.u64(at), &what)?;
        }
    }
    Ok(())
}
