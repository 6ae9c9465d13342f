//! Memory slots: what is refused, and what the guest sees after each change.

use std::time::Duration;

use kvm_bindings::{KVM_CAP_NR_MEMSLOTS, KVM_MEM_READONLY, kvm_userspace_memory_region2};
use umbra_vmm::kvm::{Region, ioctl, ioctl_value};

use super::asm::{Access, Asm, MAIR_EL1, SCTLR_EL1, TCR_EL1, TTBR0_EL1};
use super::guest::{Exit, Machine, RAM, Vcpu, create_vm, set_slot};
use super::{Check, Env, Outcome, abi, granted, holds, refused, same};

/// Where the slots of these checks go.
const AT: u64 = 0x8000_0000;
const MIB: usize = 1 << 20;

fn region(bytes: usize) -> Check<Region> {
    granted(Region::new(bytes), "mmap")
}

/// Reads what is at x1 and reports it, for ever.
pub(super) fn reader() -> Asm {
    let mut asm = Asm::new();
    let top = asm.here();
    asm.ldr(0, 1).report(0).back(top);
    asm
}

pub(super) fn alignment(_: &Env) -> Outcome {
    let (vm, memory) = (create_vm()?, region(MIB)?);
    let hva = memory.address(0);
    for (at, bytes, hva, what) in [
        (AT + 1, 0x1000, hva, "guest address + 1"),
        (AT + 0x800, 0x1000, hva, "guest address + 2 KiB"),
        (AT, 0x800, hva, "2 KiB"),
        (AT, 0x1001, hva, "4097 bytes"),
        (AT, 0x1000, hva + 8, "address + 8"),
        (AT, 0x1000, !0xfff, "an address of the kernel's"),
        (AT, 0x1000, 1 << 60, "no address at all"),
        (!0xfff, 0x2000, hva, "a guest address that wraps"),
    ] {
        refused(set_slot(&vm, 0, 0, at, bytes, hva), libc::EINVAL, what)?;
    }
    refused(
        set_slot(&vm, 0x7fff, 0, AT, 0x1000, hva),
        libc::EINVAL,
        "slot 0x7fff",
    )?;
    refused(
        set_slot(&vm, 1 << 16, 0, AT, 0x1000, hva),
        libc::EINVAL,
        "address space 1",
    )?;
    granted(set_slot(&vm, 0, 0, AT, 0x1000, hva), "a good one").map(drop)
}

pub(super) fn bad_flags(_: &Env) -> Outcome {
    let (vm, memory) = (create_vm()?, region(MIB)?);
    for flags in [1 << 2, 1 << 3, 1 << 31, u32::MAX] {
        let answer = set_slot(&vm, 0, flags, AT, 0x1000, memory.address(0));
        refused(answer, libc::EINVAL, &format!("flags {flags:#x}"))?;
    }
    Ok(())
}

pub(super) fn overlap(_: &Env) -> Outcome {
    let (vm, memory) = (create_vm()?, region(MIB)?);
    let set = |slot, at, bytes| set_slot(&vm, slot, 0, at, bytes, memory.address(0));
    granted(set(0, AT, 0x4000), "slot 0")?;
    for (at, bytes) in [
        (AT, 0x4000),
        (AT + 0x3000, 0x1000),
        (AT + 0x1000, 0x1000),
        (AT - 0x1000, 0x2000),
        (AT - 0x1000, 0x8000),
    ] {
        refused(
            set(1, at, bytes),
            libc::EEXIST,
            &format!("{bytes:#x} at {at:#x}"),
        )?;
    }
    granted(set(1, AT + 0x4000, 0x1000), "right behind it")?;
    granted(set(2, AT - 0x1000, 0x1000), "right before it")?;
    refused(set(2, AT, 0x1000), libc::EEXIST, "a move onto another")?;
    // The same host memory twice in a guest is nobody's business.
    granted(set(3, AT + 0x10_0000, 0x4000), "the same memory elsewhere").map(drop)
}

pub(super) fn beyond_the_vm(env: &Env) -> Outcome {
    // Row N25: umbra refuses with the error of any other bad argument.
    let errno = if env.umbra {
        libc::EINVAL
    } else {
        libc::EFAULT
    };
    let kvm = super::guest::open()?;
    let memory = region(MIB)?;
    let vm = umbra_vmm::kvm::ioctl_value(&kvm, abi::CREATE_VM, 36).map(umbra_vmm::kvm::owned);
    let vm = granted(vm, "a VM of 36 bits")?;
    let hva = memory.address(0);
    let end = 1 << 36;
    for (at, bytes) in [(end, 0x1000), (end - 0x2000, 0x4000), (1 << 47, 0x1000)] {
        refused(
            set_slot(&vm, 1, 0, at, bytes, hva),
            errno,
            &format!("{bytes:#x} at {at:#x}"),
        )?;
    }
    granted(
        set_slot(&vm, 0, 0, end - 0x1000, 0x1000, hva),
        "the last page",
    )
    .map(drop)
}

pub(super) fn delete(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let memory = region(MIB)?;
    memory.set_u64(0, 77);
    refused(
        set_slot(&machine.vm, 9, 0, AT, 0, 0),
        libc::EINVAL,
        "deleting what is not there",
    )?;
    let slot = granted(machine.add(&memory, AT, 0), "a slot")?;
    let vcpu = machine.vcpu_with(0, &reader())?;
    vcpu.set(abi::x(1), AT)?;
    same(vcpu.report()?, 77, "what the guest reads")?;
    granted(set_slot(&machine.vm, slot, 0, 0, 0, 0), "deleting it")?;
    same(
        vcpu.exits()?,
        Exit::Read { at: AT, bytes: 8 },
        "a read after that",
    )?;
    vcpu.answer(5);
    same(vcpu.report()?, 5, "the VMM's answer")?;
    refused(
        set_slot(&machine.vm, slot, 0, 0, 0, 0),
        libc::EINVAL,
        "deleting it again",
    )?;
    granted(
        set_slot(&machine.vm, slot, 0, AT, MIB as u64, memory.address(0)),
        "it again",
    )?;
    same(vcpu.report()?, 77, "what the guest reads in the end")
}

pub(super) fn move_slot(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let memory = region(MIB)?;
    memory.set_u64(0, 78);
    let slot = granted(machine.add(&memory, AT, 0), "a slot")?;
    let vcpu = machine.vcpu_with(0, &reader())?;
    vcpu.set(abi::x(1), AT)?;
    same(vcpu.report()?, 78, "what the guest reads")?;
    let to = AT + 0x100_0000;
    let moved = set_slot(&machine.vm, slot, 0, to, MIB as u64, memory.address(0));
    granted(moved, "moving it")?;
    same(
        vcpu.exits()?,
        Exit::Read { at: AT, bytes: 8 },
        "a read of the old place",
    )?;
    vcpu.set(abi::x(1), to)?;
    // The answer goes to x0; the loop reports it and comes round.
    vcpu.answer(1);
    same(vcpu.report()?, 1, "the VMM's answer")?;
    same(vcpu.report()?, 78, "a read of the new place")
}

pub(super) fn change(_: &Env) -> Outcome {
    let (vm, memory) = (create_vm()?, region(MIB)?);
    let hva = memory.address(0);
    let set = |flags, bytes, hva| set_slot(&vm, 0, flags, AT, bytes, hva);
    granted(set(0, 0x4000, hva), "a slot")?;
    granted(set(0, 0x4000, hva), "the same again")?;
    refused(set(0, 0x8000, hva), libc::EINVAL, "growing it")?;
    refused(set(0, 0x2000, hva), libc::EINVAL, "shrinking it")?;
    refused(set(0, 0x4000, hva + 0x1000), libc::EINVAL, "other memory")?;
    refused(
        set(KVM_MEM_READONLY, 0x4000, hva),
        libc::EINVAL,
        "read-only from now on",
    )
}

/// A slot goes and comes while a guest writes to it as fast as it can.
pub(super) fn delete_under_use(env: &Env) -> Outcome {
    let machine = Machine::new()?;
    let memory = region(2 * MIB)?;
    let slot = granted(machine.add(&memory, AT, 0), "a slot")?;
    let vcpu = machine.vcpu_with(0, &under_use::program())?;
    under_use::aim(&vcpu, AT, 0)?;
    let nothing = || Ok(());
    under_use::goes_and_comes(
        &machine,
        (slot, &memory),
        vec![vcpu],
        env.rounds(200),
        &nothing,
    )
}

/// Guests that write to a slot as fast as they can, each a word of its own, while it goes and comes.
pub(super) mod under_use {
    use super::*;

    /// Counts at x1 until the machine's first word says stop.
    pub(in crate::probe) fn program() -> Asm {
        let mut asm = Asm::new();
        asm.mov(2, RAM);
        let top = asm.here();
        asm.add(0, 0, 1)
            .str(0, 1)
            .ldr(3, 2)
            .back_if_zero(3, top)
            .report(0);
        asm
    }

    /// The word of guest `id` in the slot, which is at `base` to it.
    pub(in crate::probe) fn aim(vcpu: &Vcpu, base: u64, id: usize) -> Outcome {
        vcpu.set(abi::x(1), base + 8 * id as u64)
    }

    /// Until its report: how often it wrote to the VMM instead.
    fn write(vcpu: &Vcpu) -> Check<u64> {
        let mut outside = 0;
        loop {
            match vcpu.exits()? {
                Exit::Write { at, .. } if at & !0xfff == AT => outside += 1,
                Exit::Write {
                    at: super::super::asm::REPORT,
                    ..
                } => return Ok(outside),
                other => return Err(format!("{other:x?}")),
            }
        }
    }

    /// The slot goes and comes; `meanwhile` is done while it is not there.
    pub(in crate::probe) fn goes_and_comes(
        machine: &Machine,
        (slot, memory): (u32, &Region),
        vcpus: Vec<Vcpu>,
        rounds: u64,
        meanwhile: &dyn Fn() -> Outcome,
    ) -> Outcome {
        let words = |count: usize| (0..count).map(|id| memory.u64(8 * id)).collect::<Vec<_>>();
        let count = vcpus.len();
        std::thread::scope(|scope| {
            let runners: Vec<_> = vcpus
                .into_iter()
                .map(|vcpu| scope.spawn(move || write(&vcpu)))
                .collect();
            let change = || -> Outcome {
                for round in 0..rounds {
                    granted(set_slot(&machine.vm, slot, 0, 0, 0, 0), "deleting")?;
                    // Deleted means deleted: the guest's writes no longer land here.
                    let before = words(count);
                    meanwhile()?;
                    std::thread::sleep(Duration::from_micros(50));
                    let what = format!("memory after deleting, round {round}");
                    same(words(count), before, &what)?;
                    let bytes = memory.bytes() as u64;
                    let again = set_slot(&machine.vm, slot, 0, AT, bytes, memory.address(0));
                    granted(again, "making it again")?;
                }
                Ok(())
            };
            let changed = change();
            machine.ram.set_u64(0, 1);
            let mut seen = 0;
            for runner in runners {
                seen += runner.join().map_err(|_| "the vCPU's thread panicked")??;
            }
            changed?;
            holds(seen > 0, || "the guest never found the slot gone".into())
        })
    }
}

pub(super) fn read_only(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let memory = region(MIB)?;
    memory.set_u64(0x100, 79);
    let mut code = Asm::new();
    code.add(0, 0, 1).ret();
    memory.set_code(0x1000, code.words());
    granted(
        machine.add(&memory, AT, KVM_MEM_READONLY),
        "a read-only slot",
    )?;
    let mut asm = Asm::new();
    asm.mov(1, AT + 0x100).mov(2, 0x55aa).mov(3, AT + 0x1000);
    asm.access(Access::StrH, 2, 1); // before any read has mapped it
    asm.ldr(0, 1).report(0);
    asm.str(2, 1); // and after
    asm.ldr(0, 1).report(0);
    asm.mov(0, 4).call(3).report(0);
    let vcpu = machine.vcpu_with(0, &asm)?;
    let at = AT + 0x100;
    same(
        vcpu.exits()?,
        Exit::Write {
            at,
            bytes: 2,
            data: 0x55aa,
        },
        "the first write",
    )?;
    same(vcpu.report()?, 79, "a read")?;
    same(
        vcpu.exits()?,
        Exit::Write {
            at,
            bytes: 8,
            data: 0x55aa,
        },
        "the second write",
    )?;
    same(vcpu.report()?, 79, "a read after the write")?;
    same(vcpu.report()?, 5, "a call of code in it")?;
    same(memory.u64(0x100), 79, "the memory")
}

/// The guest's own page tables in a read-only slot: walks read them; a walk that would have to write
/// (hardware's access flag) is an external abort.
pub(super) fn read_only_walk(_: &Env) -> Outcome {
    for hardware_flag in [false, true] {
        let machine = Machine::new()?;
        let tables = region(MIB)?;
        // One level-1 table: 1 GiB blocks; the first GiB device, the second memory.
        let access_flag = if hardware_flag { 0 } else { 1 << 10 };
        tables.set_u64(0, 0x401 | 1 << 54 | 1 << 2);
        tables.set_u64(8, RAM | 0x701);
        tables.set_u64(16, RAM | 0x301 | access_flag);
        granted(
            machine.add(&tables, AT, KVM_MEM_READONLY),
            "a read-only slot",
        )?;
        machine.ram.set_u64(0, 80);
        let mut asm = Asm::new();
        // T0SZ 25: 39 bits, walks begin at level 1. EPD1, 40 bits of output, HA if asked for.
        let ha = u64::from(hardware_flag) << 39;
        asm.mov(1, 0xff).msr(MAIR_EL1, 1); // 0: memory, 1: device
        asm.mov(1, 25 | 3 << 12 | 1 << 8 | 1 << 10 | 1 << 23 | 2 << 32 | ha)
            .msr(TCR_EL1, 1);
        asm.mov(1, AT).msr(TTBR0_EL1, 1).isb();
        asm.mrs(1, SCTLR_EL1)
            .mov(2, 1)
            .word(0xaa02_0021)
            .msr(SCTLR_EL1, 1)
            .isb();
        asm.mov(1, 0x8000_0000).ldr(0, 1).report(0);
        let vcpu = machine.vcpu_with(0, &asm)?;
        if hardware_flag {
            let seen = vcpu.exception()?;
            same(seen.vector, 4, "the vector")?;
            // Data abort, same level; external abort on a walk of level 1.
            same(
                (seen.esr >> 26, seen.esr & 0x3f),
                (0x25, 0x15),
                "its syndrome",
            )?;
            same(seen.far, 0x8000_0000, "FAR_EL1")?;
        } else {
            same(vcpu.report()?, 80, "a read through these tables")?;
        }
    }
    Ok(())
}

pub(super) fn many(_: &Env) -> Outcome {
    const SLOTS: u64 = 100;
    let machine = Machine::new()?;
    let memory = region(2 * MIB)?;
    // Scattered, and not in the order of their addresses.
    let place = |n: u64| AT + (n * 37 % SLOTS) * 0x30_0000;
    for n in 0..SLOTS {
        memory.set_u64(n as usize * 0x2000, 1000 + n);
        let address = memory.address(n as usize * 0x2000);
        let set = set_slot(&machine.vm, 10 + n as u32, 0, place(n), 0x2000, address);
        granted(set, &format!("slot {n}"))?;
    }
    let vcpu = machine.vcpu_with(0, &reader())?;
    for n in 0..SLOTS {
        vcpu.set(abi::x(1), place(n))?;
        same(vcpu.report()?, 1000 + n, &format!("slot {n}"))?;
    }
    for n in (0..SLOTS).step_by(2) {
        granted(
            set_slot(&machine.vm, 10 + n as u32, 0, 0, 0, 0),
            &format!("deleting {n}"),
        )?;
    }
    for n in 0..SLOTS {
        vcpu.set(abi::x(1), place(n))?;
        if n % 2 == 0 {
            same(
                vcpu.exits()?,
                Exit::Read {
                    at: place(n),
                    bytes: 8,
                },
                "a deleted slot",
            )?;
            vcpu.answer(n);
            same(vcpu.report()?, n, "the VMM's answer")?;
        } else {
            same(
                vcpu.report()?,
                1000 + n,
                &format!("slot {n} between deleted ones"),
            )?;
        }
    }
    Ok(())
}

/// As many as there may be, a page each: pages that the VMM takes back are found among them.
pub(super) fn most(env: &Env) -> Outcome {
    let kvm = super::guest::open()?;
    let limit = u64::from(granted(
        ioctl_value(&kvm, abi::CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS.into()),
        "KVM_CAP_NR_MEMSLOTS",
    )?);
    // The machine's own slot is one of them; Linux keeps some to itself.
    let count = match env.umbra {
        true => limit.min(32_767) - 16,
        // It waits for all vCPUs of the machine after each.
        false => 2_000,
    };
    // The machine goes first: nobody is to be told of all these pages then.
    let memory = region(count as usize * 0x1000)?;
    let machine = Machine::new()?;
    let page = |n: u64| memory.address(n as usize * 0x1000);
    for n in 0..count {
        // Neighbours in the VM are far apart in the VMM.
        let set = set_slot(
            &machine.vm,
            8 + n as u32,
            0,
            AT + n * 0x1000,
            0x1000,
            page(n * 7 % count),
        );
        granted(set, &format!("slot {n}"))?;
    }
    let vcpu = machine.vcpu_with(0, &reader())?;
    for n in (0..count).step_by(count as usize / 50) {
        let at = n * 7 % count;
        memory.set_u64(at as usize * 0x1000, 1000 + n);
        vcpu.set(abi::x(1), AT + n * 0x1000)?;
        same(vcpu.report()?, 1000 + n, &format!("slot {n}"))?;
        granted(memory.discard(at as usize * 0x1000, 0x1000), "madvise")?;
        vcpu.set(abi::x(1), AT + n * 0x1000)?;
        same(vcpu.report()?, 0, &format!("slot {n} after its page went"))?;
    }
    Ok(())
}

/// A guest's memory in a file that is mapped elsewhere too: guest and both views see the same words, and
/// what one view gives back the other keeps.
pub(super) fn shared_file(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let (memory, other) = granted(Region::twice(MIB), "a file in memory, mapped twice")?;
    granted(machine.add(&memory, AT, 0), "a slot")?;
    let mut asm = Asm::new();
    let top = asm.here();
    asm.ldr(0, 1)
        .report(0)
        .add(0, 0, 1)
        .str(0, 2)
        .report(0)
        .back(top);
    let vcpu = machine.vcpu_with(0, &asm)?;
    for (n, at) in (0..MIB).step_by(0x8000).enumerate() {
        other.set_u64(at, 70 + n as u64);
        vcpu.set(abi::x(1), AT + at as u64)?;
        vcpu.set(abi::x(2), AT + at as u64 + 8)?;
        same(vcpu.report()?, 70 + n as u64, "what the guest reads")?;
        same(vcpu.report()?, 71 + n as u64, "what it writes")?;
        same(other.u64(at + 8), 71 + n as u64, "the other view")?;
        same(memory.u64(at + 8), 71 + n as u64, "the slot's view")?;
    }
    // The slot's view drops its page: the file has it still.
    granted(memory.discard(0, 0x1000), "madvise")?;
    same(other.u64(8), 71, "the other view after madvise")?;
    vcpu.set(abi::x(1), AT + 8)?;
    same(vcpu.report()?, 71, "the guest after madvise")?;
    same(vcpu.report()?, 72, "the guest's own write")?;
    drop(memory);
    same(
        other.u64(MIB - 0x8000),
        70 + 31,
        "the other view in the end",
    )
}

pub(super) fn region2(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let memory = region(MIB)?;
    memory.set_u64(0, 81);
    let mut slot = kvm_userspace_memory_region2 {
        slot: 7,
        flags: 0,
        guest_phys_addr: AT,
        memory_size: MIB as u64,
        userspace_addr: memory.address(0),
        ..Default::default()
    };
    granted(
        ioctl(&machine.vm, abi::SET_USER_MEMORY_REGION2, &mut slot),
        "the call",
    )?;
    let vcpu = machine.vcpu_with(0, &reader())?;
    vcpu.set(abi::x(1), AT)?;
    same(vcpu.report()?, 81, "what the guest reads")?;
    slot.flags = 4; // KVM_MEM_GUEST_MEMFD, without a file
    slot.slot = 8;
    slot.guest_phys_addr = AT + 0x1000_0000;
    slot.guest_memfd = u32::MAX;
    let answer = ioctl(&machine.vm, abi::SET_USER_MEMORY_REGION2, &mut slot);
    holds(answer.is_err(), || {
        "guest memory of no file was granted".into()
    })
}
