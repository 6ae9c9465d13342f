//! No checks, but work for `xtask bench` to count: what a VMM asks of a VM's memory, what VMs take of the host's,
//! and pages that it takes back while a guest's guest has much mapped.
//!
//! What lies between two marks (`orr xzr, xzr, x30` in the guest's program, which does nothing) is measured from
//! outside; what only this program can know it says in lines `measured NAME = NUMBER`. The order of the marks is
//! known to `xtask/src/bench/rows.rs`.
//!
//! ```text
//!  L2's space                     L1's space
//!  0x1_8000_0000 + n pages ───►   0x8000_0000 + n pages    each by a descriptor of its own
//! ```

use kvm_bindings::KVM_MEM_LOG_DIRTY_PAGES;
use umbra_vmm::kvm::{PAGE, Region, ioctl};

use super::asm::{Asm, REPORT};
use super::below::{ABOVE, HCR, STAGE2, begin_at, nested};
use super::guest::{
    Exit, Machine, Vcpu, create_vm, free_memory, meminfo, meminfo_text, memory_of_kernel, set_slot,
};
use super::poison::DATA;
use super::{Check, Outcome, abi, granted, same};

/// Where the VM has the memory that is used.
const AT: u64 = 0x8000_0000;
const SLOT: u32 = 1;
/// Measured rounds of each kind.
const ROUNDS: u64 = 16;
/// Pages that the guest writes in a round.
const PAGES: usize = 64;
/// orr xzr, xzr, x30.
const MARK: u32 = 0xaa1e_03ff;

/// Does what `what` names.
pub(crate) fn run(what: &str) -> Outcome {
    match what {
        "vmm" => {
            memory()?;
            returns()?;
            dirty_log()?;
            slot_change()
        }
        "take-back" => take_back([16, 64]),
        "take-back-more" => take_back([256, 1024]),
        other => Err(format!(
            "nothing to measure is called {other:?}: vmm, take-back, take-back-more"
        )),
    }
}

fn say(name: &str, value: f64) {
    println!("measured {name} = {value:.3}");
}

/// Memory that is in use, in KiB: by Linux's own count, and by umbra's, which knows what of its heap is.
fn used() -> Check<f64> {
    match memory_of_kernel() {
        Ok(umbra) => Ok(umbra.heap as f64 / 1024.0 - umbra.frames as f64),
        Err(_) => Ok(-free_memory()? as f64),
    }
}

/// What VMs' tables take, in KiB. Linux counts them by themselves: what is free there is also what each CPU has
/// put aside, and too coarse for so little.
fn tables() -> Check<f64> {
    let own = meminfo(&meminfo_text()?, "SecPageTables");
    own.map_or_else(|_| used(), |kib| Ok(kib as f64))
}

/// Small pages of this host, each there already.
fn small_pages(bytes: usize) -> Check<Region> {
    let region = granted(Region::new(bytes), "mmap")?;
    // A host without huge pages says so, and has small ones.
    let _ = region.avoid_huge(0, bytes);
    for at in (0..bytes).step_by(PAGE) {
        region.set_u8(at, 1);
    }
    Ok(region)
}

/// A program that touches pages from `at` on, storing if `stores`, and reports: with `marks` twice, the first
/// time between two of them. Then it begins again.
fn touching(stores: bool, at: u64, pages: usize, marks: bool) -> Asm {
    let mut asm = Asm::new();
    let top = asm.here();
    asm.mov(1, at).mov(2, pages as u64);
    let next = asm.here();
    if stores {
        asm.str(2, 1);
    } else {
        asm.ldr(3, 1);
    }
    asm.add(1, 1, 2048).add(1, 1, 2048);
    asm.sub(2, 2, 1).back_unless_zero(2, next);
    if marks {
        asm.word(MARK).report(2).word(MARK);
    }
    asm.report(2);
    asm.back(top);
    asm
}

/// Runs to a report. KVM_RUN may answer EAGAIN where memory changes below a guest's guest: again, then.
fn report(vcpu: &Vcpu) -> Outcome {
    loop {
        match vcpu.run() {
            Err(libc::EAGAIN) => {}
            Ok(Exit::Write { at: REPORT, .. }) => return Ok(()),
            other => return Err(format!("{other:x?} instead of a report")),
        }
    }
}

/// Executes a mark in a guest of its own.
fn mark(machine: &Machine, id: u64) -> Outcome {
    let mut asm = Asm::new();
    asm.word(MARK).report(0).stop();
    machine.vcpu_with(id, &asm)?.report().map(drop)
}

/// What a VM, a vCPU, and a GiB mapped by pages take, from many or much of each.
fn memory() -> Outcome {
    const VMS: usize = 200;
    const VCPUS: u64 = 500;
    const MAPPED: usize = 256 << 20;
    say("MemFree, KiB", free_memory()? as f64);
    let machine = Machine::new()?;
    let region = small_pages(MAPPED)?;
    granted(machine.add(&region, AT, 0), "a slot")?;
    let vcpu = machine.vcpu_with(0, &touching(true, AT, 1, false))?;
    vcpu.report()?;
    let before = tables()?;
    vcpu.go_to(machine.place(&touching(true, AT, MAPPED / PAGE, false)))?;
    vcpu.report()?;
    let share = (1 << 30) as f64 / MAPPED as f64;
    say(
        "tables of a GiB by pages, KiB",
        (tables()? - before) * share,
    );
    drop((vcpu, machine, region));

    let before = used()?;
    let vms = (0..VMS).map(|_| create_vm()).collect::<Check<Vec<_>>>()?;
    say("memory of a VM, KiB", (used()? - before) / VMS as f64);
    drop(vms);

    let machine = Machine::new()?;
    let before = used()?;
    let vcpus = (0..VCPUS).map(|id| {
        let vcpu = machine.bare_vcpu(id)?;
        granted(vcpu.init(0), "KVM_ARM_VCPU_INIT")?;
        Ok(vcpu)
    });
    let vcpus = vcpus.collect::<Check<Vec<Vcpu>>>()?;
    say("memory of a vCPU, KiB", (used()? - before) / VCPUS as f64);
    drop(vcpus);
    Ok(())
}

/// Exits to this program that it does nothing about.
fn returns() -> Outcome {
    let machine = Machine::new()?;
    let mut asm = Asm::new();
    let top = asm.here();
    asm.report(0).back(top);
    let vcpu = machine.vcpu_with(0, &asm)?;
    vcpu.report()?;
    mark(&machine, 1)?;
    for _ in 0..ROUNDS {
        vcpu.report()?;
    }
    mark(&machine, 2)
}

/// Rounds of writing, with a log of what was written, that is fetched after each.
fn dirty_log() -> Outcome {
    const BYTES: usize = 64 << 20;
    let machine = Machine::new()?;
    let region = small_pages(BYTES)?;
    granted(machine.add(&region, AT, KVM_MEM_LOG_DIRTY_PAGES), "a slot")?;
    let bitmap = granted(Region::new(BYTES / PAGE / 8), "mmap")?;
    let vcpu = machine.vcpu_with(0, &touching(true, AT, PAGES, false))?;
    let round = || -> Outcome {
        vcpu.report()?;
        let mut log = [SLOT.into(), bitmap.address(0), 0, 0];
        granted(
            ioctl(&machine.vm, abi::GET_DIRTY_LOG, &mut log),
            "KVM_GET_DIRTY_LOG",
        )?;
        same(bitmap.u64(0), u64::MAX, "what was written")
    };
    // What is written for the first time has no descriptor yet.
    round()?;
    round()?;
    mark(&machine, 1)?;
    for _ in 0..ROUNDS {
        round()?;
    }
    mark(&machine, 2)
}

/// A slot that is deleted and made again, with pages of it in use.
fn slot_change() -> Outcome {
    const BYTES: usize = 64 << 20;
    let machine = Machine::new()?;
    let region = small_pages(BYTES)?;
    granted(machine.add(&region, AT, 0), "a slot")?;
    let vcpu = machine.vcpu_with(0, &touching(true, AT, PAGES, false))?;
    let round = || -> Outcome {
        vcpu.report()?;
        granted(set_slot(&machine.vm, SLOT, 0, 0, 0, 0), "deleting it")?;
        let (bytes, hva) = (BYTES as u64, region.address(0));
        granted(
            set_slot(&machine.vm, SLOT, 0, AT, bytes, hva),
            "making it again",
        )
        .map(drop)
    };
    round()?;
    mark(&machine, 1)?;
    for _ in 0..ROUNDS {
        round()?;
    }
    mark(&machine, 2)
}

/// One page of many MiB is taken from a guest's guest, with each of these mapped, the larger number last.
fn take_back(sizes: [usize; 2]) -> Outcome {
    let most = sizes[1] << 20;
    // L1's: two above, and one for each 2 MiB.
    let tables = STAGE2 + (2 + (most >> 21)) * PAGE;
    let machine = Machine::new()?;
    let data = granted(Region::new(tables.next_multiple_of(2 << 20)), "mmap")?;
    granted(machine.add(&data, DATA, 0), "a slot for L1")?;
    let region = small_pages(most)?;
    granted(machine.add(&region, AT, 0), "a slot for L2")?;
    let vcpu = nested(&machine, &data, 0, HCR)?;
    let at = |n: usize| STAGE2 + n * PAGE;
    let table = |n: usize| (DATA + at(n) as u64) | 3;
    data.set_u64(at(0) + 8 * ((AT + ABOVE) >> 30) as usize, table(1));
    for page in 0..most / PAGE {
        data.set_u64(at(1) + 8 * (page / 512), table(2 + page / 512));
        data.set_u64(at(2) + 8 * page, (AT + (page * PAGE) as u64) | 0x7ff);
    }
    for (number, mib) in sizes.into_iter().enumerate() {
        let pages = (mib << 20) / PAGE;
        let program = machine.place(&touching(false, AT + ABOVE, pages, true));
        if number == 0 {
            begin_at(&vcpu, program)?;
        } else {
            vcpu.go_to(program)?;
        }
        report(&vcpu)?;
        let middle = pages / 2 * PAGE;
        granted(region.discard(middle, PAGE), "MADV_DONTNEED")?;
        report(&vcpu)?;
        same(region.u8(middle), 0, "what was thrown away")?;
    }
    Ok(())
}
