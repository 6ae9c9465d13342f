//! Accesses outside memory: how they reach the VMM, and what becomes of those that cannot.

use kvm_bindings::{KVM_CAP_ARM_NISV_TO_USER, KVM_EXIT_MMIO, kvm_enable_cap};
use umbra_vmm::kvm::{Region, ioctl};

use super::abi::run;
use super::asm::{Access, Asm};
use super::guest::{Exit, Machine};
use super::{Env, Outcome, abi, granted, holds, refused, same};

/// Nothing is here.
const HOLE: u64 = 0x2000_0000;

pub(super) fn loads(_: &Env) -> Outcome {
    let answer = 0x8182_8384_8586_8788;
    for (access, bytes, wanted) in [
        (Access::LdrX, 8, answer),
        (Access::LdrW, 4, 0x8586_8788),
        (Access::LdrH, 2, 0x8788),
        (Access::LdrB, 1, 0x88),
        (Access::LdrswX, 4, 0xffff_ffff_8586_8788),
        (Access::LdrshX, 2, 0xffff_ffff_ffff_8788),
        (Access::LdrshW, 2, 0xffff_8788),
        (Access::LdrsbX, 1, 0xffff_ffff_ffff_ff88),
        (Access::LdrsbW, 1, 0xffff_ff88),
    ] {
        let machine = Machine::new()?;
        let mut asm = Asm::new();
        asm.mov(0, u64::MAX)
            .mov(1, HOLE + 0x18)
            .access(access, 0, 1)
            .report(0);
        asm.access(access, 31, 1)
            .report(31)
            .access(access, 30, 1)
            .report(30);
        let vcpu = machine.vcpu_with(0, &asm)?;
        for (register, wanted) in [("x0", wanted), ("xzr", 0), ("x30", wanted)] {
            let what = format!("{access:?} of {register}");
            same(
                vcpu.exits()?,
                Exit::Read {
                    at: HOLE + 0x18,
                    bytes,
                },
                &what,
            )?;
            vcpu.answer(answer);
            same(vcpu.report()?, wanted, &what)?;
        }
    }
    Ok(())
}

pub(super) fn stores(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let mut asm = Asm::new();
    let value = 0x9192_9394_9596_9798;
    asm.mov(0, value).mov(1, HOLE + 0xff8);
    for access in [Access::StrX, Access::StrW, Access::StrH, Access::StrB] {
        asm.access(access, 0, 1).access(access, 31, 1);
    }
    let vcpu = machine.vcpu_with(0, &asm)?;
    for (bytes, data) in [(8, value), (4, 0x9596_9798), (2, 0x9798), (1, 0x98)] {
        let mask = u64::MAX >> (64 - 8 * bytes);
        for wanted in [data, 0] {
            match vcpu.exits()? {
                Exit::Write {
                    at,
                    bytes: seen,
                    data,
                } => {
                    same(
                        (at, seen, data & mask),
                        (HOLE + 0xff8, bytes, wanted),
                        "a store",
                    )?;
                }
                other => return Err(format!("{other:x?} instead of a store")),
            }
        }
    }
    Ok(())
}

/// ldp, stp, SIMD: the syndrome does not describe the access.
pub(super) fn no_syndrome(env: &Env) -> Outcome {
    for access in [Access::LdpX, Access::LdrQ, Access::StrQ] {
        let machine = Machine::new()?;
        let mut asm = Asm::new();
        asm.mov(1, HOLE + 0x20);
        let at = asm.here() as u64;
        asm.access(access, 0, 1);
        let entry = machine.place(&asm);
        let vcpu = machine.vcpu(0, entry)?;
        if env.umbra {
            let seen = vcpu.exception()?;
            same(
                (seen.vector, seen.esr >> 26, seen.esr & 0x3f),
                (4, 0x25, 0x10),
                "the abort",
            )?;
            same(
                (seen.far, seen.elr),
                (HOLE + 0x20, entry + 4 * at),
                "FAR and ELR",
            )?;
        } else {
            refused(vcpu.run(), libc::ENOSYS, &format!("{access:?}"))?;
        }
    }
    Ok(())
}

pub(super) fn no_syndrome_exit(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let mut cap = kvm_enable_cap {
        cap: KVM_CAP_ARM_NISV_TO_USER,
        ..Default::default()
    };
    granted(
        ioctl(&machine.vm, abi::ENABLE_CAP, &mut cap),
        "KVM_CAP_ARM_NISV_TO_USER",
    )?;
    let mut asm = Asm::new();
    asm.mov(1, HOLE + 0x20).access(Access::LdpX, 0, 1);
    asm.mov(1, HOLE + 0x30)
        .access(Access::StrQ, 0, 1)
        .mov(0, 3)
        .report(0);
    let entry = machine.place(&asm);
    let vcpu = machine.vcpu(0, entry)?;
    let mut pc = entry + 8;
    for (ipa, write) in [(HOLE + 0x20, 0), (HOLE + 0x30, 1)] {
        match vcpu.exits()? {
            Exit::Nisv { iss, ipa: seen } => {
                same((seen, iss >> 6 & 1), (ipa, write), "address and direction")?;
            }
            other => return Err(format!("{other:x?} instead of an exit without syndrome")),
        }
        same(vcpu.get(abi::PC)?, pc, "PC: on the instruction still")?;
        vcpu.set(abi::PC, pc + 4)?;
        pc += 12;
    }
    same(vcpu.report()?, 3, "the end")
}

/// A jump to where nothing is.
pub(super) fn fetch(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let mut asm = Asm::new();
    asm.mov(1, HOLE).call(1);
    let vcpu = machine.vcpu_with(0, &asm)?;
    let seen = vcpu.exception()?;
    // Instruction abort, same level; external abort.
    same(
        (seen.vector, seen.esr >> 26, seen.esr & 0x3f),
        (4, 0x21, 0x10),
        "the abort",
    )?;
    same((seen.far, seen.elr), (HOLE, HOLE), "FAR and ELR")
}

/// Cleaning a line that no memory stands behind does nothing.
pub(super) fn cache_operation(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let mut asm = Asm::new();
    asm.mov(1, HOLE);
    for op in [
        0xd50b_7e21,
        0xd50b_7a21,
        0xd508_7621,
        0xd50b_7b21,
        0xd50b_7521,
    ] {
        asm.word(op); // dc civac, cvac, ivac, cvau; ic ivau
    }
    asm.dsb().mov(0, 6).report(0);
    let vcpu = machine.vcpu_with(0, &asm)?;
    same(vcpu.report()?, 6, "the end")
}

/// An address that the VM does not have, though the machine may.
pub(super) fn beyond_the_vm(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    for at in [1 << 40, 1 << 43] {
        let mut asm = Asm::new();
        asm.mov(1, at).ldr(0, 1).report(0);
        let vcpu = machine.vcpu_with(at >> 40, &asm)?;
        let seen = vcpu.exception()?;
        same((seen.vector, seen.esr >> 26), (4, 0x25), "a data abort")?;
        // Address size fault, or the external abort of an address that nothing answers.
        let status = seen.esr & 0x3f;
        holds(status <= 3 || status == 0x10, || {
            format!("fault status {status:#x} at {at:#x}")
        })?;
        same(seen.far, at, "FAR")?;
    }
    Ok(())
}

/// The access is completed by the next KVM_RUN, even one that does not enter the guest.
pub(super) fn completion_at_immediate_exit(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let mut asm = Asm::new();
    asm.mov(1, HOLE).ldr(0, 1).report(0);
    let entry = machine.place(&asm);
    let vcpu = machine.vcpu(0, entry)?;
    same(vcpu.exits()?, Exit::Read { at: HOLE, bytes: 8 }, "a load")?;
    same(vcpu.get(abi::PC)?, entry + 8, "PC before the completion")?;
    vcpu.answer(0x1234);
    vcpu.complete()?;
    same(vcpu.x(0)?, 0x1234, "x0 after the completion")?;
    same(vcpu.get(abi::PC)?, entry + 12, "PC after the completion")?;
    // Once only: other words in the page change nothing any more.
    vcpu.page.set_u32(run::EXIT_REASON, KVM_EXIT_MMIO);
    vcpu.answer(0x5678);
    same(vcpu.report()?, 0x1234, "the report")?;
    // A store is complete only then, too: until then PC is on it.
    let store = vcpu.get(abi::PC)?;
    vcpu.complete()?;
    same(vcpu.get(abi::PC)?, store + 4, "PC after the store")
}

/// Writes to a zone wait in the ring behind the run page, until it is full.
pub(super) fn queued_writes(_: &Env) -> Outcome {
    const RING: usize = 4096;
    const MOST: u32 = (4096 - 8) / 24;
    let machine = Machine::new()?;
    let mut asm = Asm::new();
    asm.mov(1, HOLE);
    for value in 0..u64::from(MOST) + 1 {
        asm.mov(0, value).access(Access::StrW, 0, 1);
    }
    let vcpu = machine.bare_vcpu(0)?;
    granted(vcpu.init(0), "KVM_ARM_VCPU_INIT")?;
    vcpu.start(machine.place(&asm))?;
    let both = granted(Region::of_file(&vcpu.fd, 8192), "mmap of both pages")?;
    let zone = |request: u32, size: u64, pio: u64| {
        let room = Region::new(0x2_0000)?;
        room.set_u64(0, HOLE);
        room.set_u64(8, pio << 32 | size);
        room.ioctl(&machine.vm, request, 0)
    };
    refused(
        zone(abi::REGISTER_COALESCED_MMIO, 8, 2),
        libc::EINVAL,
        "neither memory nor ports",
    )?;
    granted(zone(abi::REGISTER_COALESCED_MMIO, 8, 0), "a zone")?;
    let full = vcpu.exits()?;
    let last = u64::from(MOST) - 1;
    let wanted = Exit::Write {
        at: HOLE,
        bytes: 4,
        data: last,
    };
    same(full, wanted, "the write that finds the ring full")?;
    same(
        (both.u32(RING), both.u32(RING + 4)),
        (0, MOST - 1),
        "the ring",
    )?;
    for n in 0..last as usize {
        let at = RING + 8 + 24 * n;
        let entry = (both.u64(at), both.u32(at + 8), both.u32(at + 16));
        same(entry, (HOLE, 4, n as u32), "an entry")?;
    }
    granted(zone(abi::UNREGISTER_COALESCED_MMIO, 8, 0), "taking it back")?;
    let after = vcpu.exits()?;
    let wanted = Exit::Write {
        at: HOLE,
        bytes: 4,
        data: last + 1,
    };
    same(after, wanted, "without a zone")
}
