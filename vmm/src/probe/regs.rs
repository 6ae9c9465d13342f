//! Registers by KVM_GET_ONE_REG and KVM_SET_ONE_REG.

use kvm_bindings::{kvm_enable_cap, kvm_one_reg};
use umbra_vmm::kvm::{Region, ioctl};

use super::abi::{self, bytes_of};
use super::asm::{self, Asm, Sys};
use super::guest::{Machine, RAM, Vcpu};
use super::{Check, Env, Outcome, granted, holds, refused, same};

/// A machine with a vCPU that will never run.
fn idle() -> Check<(Machine, Vcpu)> {
    let machine = Machine::new()?;
    let vcpu = machine.vcpu(0, RAM)?;
    Ok((machine, vcpu))
}

fn round_trip(vcpu: &Vcpu, id: u64, value: u64) -> Outcome {
    vcpu.set(id, value)?;
    same(vcpu.get(id)?, value, &format!("register {id:#x}"))
}

/// Every member of `struct kvm_regs`, all with different values at once; then the guest's view.
pub(super) fn core(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let mut asm = Asm::new();
    asm.report(0)
        .report(27)
        .report(30)
        .mrs(0, asm::SP_EL0)
        .report(0);
    asm.mrs(0, asm::ELR_EL1)
        .report(0)
        .mrs(0, asm::SPSR_EL1)
        .report(0);
    asm.add(0, 31, 0).report(0);
    let entry = machine.place(&asm);
    let vcpu = machine.vcpu(0, entry)?;
    let value = |n: u64| 0xabcd_0000_1111_0000 + n * 0x10;
    let ids: Vec<u64> = (0..31)
        .map(abi::x)
        .chain([abi::SP_EL0, abi::SP_EL1, abi::ELR_EL1])
        .collect();
    for (n, id) in (0..).zip(&ids) {
        vcpu.set(*id, value(n))?;
    }
    vcpu.set(abi::SPSR_EL1, 0x6000_03c5)?;
    for (n, id) in (0..).zip(&ids) {
        same(vcpu.get(*id)?, value(n), &format!("register {id:#x}"))?;
    }
    same(vcpu.get(abi::SPSR_EL1)?, 0x6000_03c5, "SPSR_EL1")?;
    same(vcpu.get(abi::PC)?, entry, "PC")?;
    for (wanted, what) in [
        (value(0), "x0"),
        (value(27), "x27"),
        (value(30), "x30"),
        (value(31), "SP_EL0"),
        (value(33), "ELR_EL1"),
        (0x6000_03c5, "SPSR_EL1"),
        (value(32), "SP_EL1"),
    ] {
        same(vcpu.report()?, wanted, &format!("{what} in the guest"))?;
    }
    // PSTATE: flags and EL are the VMM's to set, another exception level is not.
    round_trip(&vcpu, abi::PSTATE, 0xf000_03c5)?;
    round_trip(&vcpu, abi::PSTATE, 0x0000_0000)?;
    for bad in [0x3c9, 0x3cd, 0x1d3] {
        refused(
            vcpu.try_set(abi::PSTATE, bad),
            libc::EINVAL,
            &format!("PSTATE {bad:#x}"),
        )?;
    }
    Ok(())
}

fn v(n: u64) -> u64 {
    abi::core(84 + 4 * n, 4)
}

fn get_v(vcpu: &Vcpu, n: u64) -> Check<[u64; 2]> {
    let mut value = [0u64; 8];
    let addr = value.as_mut_ptr() as u64;
    let answer = ioctl(
        &vcpu.fd,
        abi::GET_ONE_REG,
        &mut kvm_one_reg { id: v(n), addr },
    );
    granted(answer, "KVM_GET_ONE_REG of a V register")?;
    let [low, high, ..] = std::hint::black_box(value);
    Ok([low, high])
}

fn set_v(vcpu: &Vcpu, n: u64, value: [u64; 2]) -> Outcome {
    let addr = std::hint::black_box(&value).as_ptr() as u64;
    let answer = ioctl(
        &vcpu.fd,
        abi::SET_ONE_REG,
        &mut kvm_one_reg { id: v(n), addr },
    );
    granted(answer, "KVM_SET_ONE_REG of a V register").map(drop)
}

pub(super) fn floating(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let mut asm = Asm::new();
    for n in 0..32 {
        asm.lane(0, n, 0)
            .report(0)
            .lane(0, n, 1)
            .report(0)
            .mov(1, u64::from(n) << 32 | 7);
        asm.dup(n, 1);
    }
    asm.mrs(0, (3, 3, 4, 4, 0))
        .report(0)
        .mrs(0, (3, 3, 4, 4, 1))
        .report(0); // FPCR, FPSR
    let vcpu = machine.vcpu_with(0, &asm)?;
    let value = |n: u64| [0x1111_2222_3333_0000 + n, 0x9999_8888_7777_0000 + n];
    for n in 0..32 {
        set_v(&vcpu, n, value(n))?;
    }
    let (fpsr, fpcr) = (abi::core(212, 2), abi::core(213, 2));
    round_trip(&vcpu, fpsr, 0x0800_001f)?;
    round_trip(&vcpu, fpcr, 0x00c0_0000)?;
    for n in 0..32 {
        same(get_v(&vcpu, n)?, value(n), &format!("v{n}"))?;
    }
    for n in 0..32 {
        for half in value(n) {
            same(vcpu.report()?, half, &format!("v{n} in the guest"))?;
        }
    }
    same(vcpu.report()?, 0x00c0_0000, "FPCR in the guest")?;
    same(vcpu.report()?, 0x0800_001f, "FPSR in the guest")?;
    for n in 0..32 {
        same(
            get_v(&vcpu, n)?,
            [n << 32 | 7; 2],
            &format!("v{n} after the guest"),
        )?;
    }
    Ok(())
}

pub(super) fn system(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let values: [(Sys, u64); 12] = [
        (asm::TTBR0_EL1, 0x0042_0000_4567_8000),
        ((3, 0, 2, 0, 1), 0x0043_0000_4567_9000), // TTBR1_EL1
        (asm::TCR_EL1, 0x2_0080_3519),
        (asm::MAIR_EL1, 0xff44_0400),
        (asm::ESR_EL1, 0x5600_0001),
        (asm::FAR_EL1, 0xffff_8000_1234_5678),
        ((3, 0, 7, 4, 0), 0x0000_0000_1234_5000), // PAR_EL1
        (asm::CONTEXTIDR_EL1, 0x1234_5678),
        (asm::TPIDR_EL1, 0x1122_3344_5566_7788),
        (asm::TPIDR_EL0, 0x2122_3344_5566_7788),
        (asm::TPIDRRO_EL0, 0x3122_3344_5566_7788),
        ((3, 0, 14, 1, 0), 0x3), // CNTKCTL_EL1
    ];
    let mut asm = Asm::new();
    for (reg, _) in values {
        asm.mrs(0, reg).report(0);
    }
    asm.mov(0, 0x99)
        .msr(asm::TPIDR_EL1, 0)
        .msr(asm::CONTEXTIDR_EL1, 0)
        .report(0);
    let vcpu = machine.vcpu_with(0, &asm)?;
    for (reg, value) in values {
        round_trip(&vcpu, abi::sys(reg), value)?;
    }
    for (reg, value) in values {
        same(vcpu.report()?, value, &format!("{reg:?} in the guest"))?;
    }
    vcpu.report()?;
    for reg in [asm::TPIDR_EL1, asm::CONTEXTIDR_EL1] {
        same(
            vcpu.get(abi::sys(reg))?,
            0x99,
            &format!("{reg:?} after the guest"),
        )?;
    }
    Ok(())
}

const CNTV_CTL: u64 = 0x6030_0000_0013_df19;
const CNTV_CVAL: u64 = 0x6030_0000_0013_df02;
const CNTVCT: u64 = 0x6030_0000_0013_df1a;

/// The virtual timer's ids, two of them exchanged for ever.
pub(super) fn timers(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let mut asm = Asm::new();
    asm.mrs(0, (3, 3, 14, 3, 2))
        .report(0)
        .mrs(0, (3, 3, 14, 3, 1))
        .report(0)
        .isb();
    asm.mrs(0, (3, 3, 14, 0, 2)).report(0);
    let vcpu = machine.vcpu_with(0, &asm)?;
    round_trip(&vcpu, CNTV_CVAL, 0x7fff_0000_0000_1234)?;
    vcpu.set(CNTV_CTL, 3)?;
    same(vcpu.get(CNTV_CTL)? & 3, 3, "CNTV_CTL_EL0")?;
    same(
        vcpu.report()?,
        0x7fff_0000_0000_1234,
        "CNTV_CVAL_EL0 in the guest",
    )?;
    same(vcpu.report()? & 3, 3, "CNTV_CTL_EL0 in the guest")?;
    let now = 0x1_0000_0000_0000;
    vcpu.set(CNTVCT, now)?;
    let read = vcpu.get(CNTVCT)?;
    let seen = vcpu.report()?;
    let later = vcpu.get(CNTVCT)?;
    holds(
        now <= read && read <= seen && seen <= later && later < now + (1 << 40),
        || format!("CNTVCT_EL0: set to {now:#x}, {read:#x}, {seen:#x} in the guest, {later:#x}"),
    )
}

/// ID registers: the guest sees what the VMM reads; the VMM may write that back, but not claim more.
pub(super) fn id_registers(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let mut asm = Asm::new();
    let ids: Vec<Sys> = (4..8)
        .flat_map(|crm| (0..8).map(move |op2| (3, 0, 0, crm, op2)))
        .collect();
    for id in &ids {
        asm.mrs(0, *id).report(0);
    }
    asm.mrs(0, (3, 0, 0, 0, 5)).report(0); // MPIDR_EL1
    let vcpu = machine.vcpu_with(0, &asm)?;
    let mut shown = Vec::new();
    for id in &ids {
        let value = vcpu.get(abi::sys(*id))?;
        vcpu.set(abi::sys(*id), value)
            .map_err(|e| format!("writing back: {e}"))?;
        shown.push(value);
    }
    // SVE in PFR0, MTE in PFR1, a later debug architecture, wider addresses: none of them is had.
    for (id, field) in [
        ((3, 0, 0, 4, 0), 32),
        ((3, 0, 0, 7, 0), 0),
        ((3, 0, 0, 6, 0), 4),
    ] {
        let value = vcpu.get(abi::sys(id))?;
        let claimed = value | 0xf << field;
        if claimed != value {
            let what = format!("{id:?} with field {field} raised from {value:#x}");
            refused(vcpu.try_set(abi::sys(id), claimed), libc::EINVAL, &what)?;
        }
        same(
            vcpu.get(abi::sys(id))?,
            value,
            "the register after the refusal",
        )?;
    }
    // ISAR0.RNDR, or AES where there is none: a VMM may hide it.
    let isar0 = (3, 0, 0, 6, 0);
    let hidden = vcpu.get(abi::sys(isar0))? & !(0xf << 4);
    vcpu.set(abi::sys(isar0), hidden)?;
    for (id, value) in ids.iter().zip(shown) {
        // Without a GIC the field that tells of one is clear once the VM runs.
        let gic = if *id == (3, 0, 0, 4, 0) { 0xf << 24 } else { 0 };
        let wanted = if *id == isar0 { hidden } else { value & !gic };
        same(
            vcpu.report()? & !gic,
            wanted,
            &format!("{id:?} in the guest"),
        )?;
    }
    same(
        vcpu.report()?,
        vcpu.get(abi::sys((3, 0, 0, 0, 5)))?,
        "MPIDR_EL1 in the guest",
    )?;
    let after = vcpu.try_set(abi::sys(isar0), hidden & !(0xf << 8));
    refused(after, libc::EBUSY, "a change after the VM has run")
}

pub(super) fn unknown(_: &Env) -> Outcome {
    let (_machine, vcpu) = idle()?;
    for (id, errno) in [
        (0, libc::EINVAL),
        (0x4030_0000_0010_0000, libc::EINVAL), // another architecture
        (0x6030_0000_0010_00d8, libc::ENOENT), // behind kvm_regs
        (0x6030_0000_0013_4001, libc::ENOENT), // op0 1
        (0x6030_0000_0013_ffff, libc::ENOENT),
        (0x6030_0000_0012_0000, libc::ENOENT), // no such kind
        (0x6030_0000_0014_0777, libc::ENOENT),
        (0x6080_0000_0015_0000, libc::ENOENT), // SVE, which the vCPU does not have
    ] {
        refused(vcpu.try_get_wide(id), errno, &format!("reading {id:#x}"))?;
    }
    Ok(())
}

/// A register under an id of another size.
pub(super) fn sizes(_: &Env) -> Outcome {
    let (_machine, vcpu) = idle()?;
    for (id, errno) in [
        (0x6020_0000_0010_0000, libc::EINVAL), // x0, 4 bytes
        (0x6040_0000_0010_0000, libc::EINVAL),
        (0x6030_0000_0010_0001, libc::EINVAL), // the middle of x0
        (0x6030_0000_0010_0054, libc::EINVAL), // v0, 8 bytes
        (0x6020_0000_0013_c005, libc::ENOENT), // MPIDR_EL1, 4 bytes
        (0x6040_0000_0013_c005, libc::ENOENT),
    ] {
        refused(vcpu.try_get_wide(id), errno, &format!("reading {id:#x}"))?;
        refused(vcpu.try_set_wide(id), errno, &format!("writing {id:#x}"))?;
    }
    Ok(())
}

/// KVM_GET_REG_LIST, and each register on it read and written back.
pub(super) fn list(_: &Env) -> Outcome {
    let (_machine, vcpu) = idle()?;
    let mut count = 0u64;
    refused(
        ioctl(&vcpu.fd, abi::GET_REG_LIST, &mut count),
        libc::E2BIG,
        "a list of none",
    )?;
    holds((150..2000).contains(&count), || {
        format!("{count} registers")
    })?;
    let room = granted(Region::new(1 << 20), "mmap")?;
    room.set_u64(0, count - 1);
    refused(
        room.ioctl(&vcpu.fd, abi::GET_REG_LIST, 0),
        libc::E2BIG,
        "one too few",
    )?;
    room.set_u64(0, count);
    granted(
        room.ioctl(&vcpu.fd, abi::GET_REG_LIST, 0),
        "KVM_GET_REG_LIST",
    )?;
    same(room.u64(0), count, "the count")?;
    let ids: Vec<u64> = (1..=count as usize).map(|n| room.u64(8 * n)).collect();
    let mut sorted = ids.clone();
    sorted.sort_unstable();
    sorted.dedup();
    same(sorted.len(), ids.len(), "the number of different ids")?;
    for must in [
        abi::x(0),
        abi::PC,
        abi::sys(asm::SCTLR_EL1),
        CNTV_CVAL,
        abi::firmware(0),
    ] {
        holds(sorted.contains(&must), || {
            format!("{must:#x} is not on the list")
        })?;
    }
    for id in ids {
        vcpu.try_get_wide(id)
            .map_err(|e| format!("reading {id:#x}: {}", super::errno_name(e)))?;
        vcpu.try_set_wide(id)
            .map_err(|e| format!("writing {id:#x} back: {}", super::errno_name(e)))?;
    }
    Ok(())
}

pub(super) fn bad_pointer(_: &Env) -> Outcome {
    let (_machine, vcpu) = idle()?;
    for addr in [8, 1 << 55, u64::MAX - 7] {
        for id in [
            abi::x(0),
            v(0),
            abi::sys(asm::TPIDR_EL1),
            CNTV_CVAL,
            abi::firmware(0),
        ] {
            for request in [abi::GET_ONE_REG, abi::SET_ONE_REG] {
                let answer = ioctl(&vcpu.fd, request, &mut kvm_one_reg { id, addr });
                refused(answer, libc::EFAULT, &format!("{id:#x} at {addr:#x}"))?;
            }
        }
    }
    // Writing what cannot be written is refused whatever the address.
    holds(bytes_of(v(0)) == 16, || "a V register has 16 bytes".into())
}

impl Vcpu {
    /// Reads any register that has at most 256 bytes, and keeps nothing of it.
    fn try_get_wide(&self, id: u64) -> Result<u32, i32> {
        self.wide(abi::GET_ONE_REG, id)
    }

    /// Writes a register with what it holds, or zeros where it cannot be read.
    fn try_set_wide(&self, id: u64) -> Result<u32, i32> {
        let mut value = [0u64; 32];
        let addr = value.as_mut_ptr() as u64;
        let _ = ioctl(&self.fd, abi::GET_ONE_REG, &mut kvm_one_reg { id, addr });
        let answer = ioctl(&self.fd, abi::SET_ONE_REG, &mut kvm_one_reg { id, addr });
        std::hint::black_box(value);
        answer
    }

    fn wide(&self, request: u32, id: u64) -> Result<u32, i32> {
        let mut value = [0u64; 32];
        let addr = value.as_mut_ptr() as u64;
        let answer = ioctl(&self.fd, request, &mut kvm_one_reg { id, addr });
        std::hint::black_box(value);
        answer
    }
}

/// KVM_ARM_GET_REG_WRITABLE_MASKS: what it names can be written, and what it does not cannot.
pub(super) fn writable_masks(_: &Env) -> Outcome {
    /// ID_AA64ISAR0_EL1, ID_AA64PFR0_EL1 and their places in the list.
    const ISAR0: (asm::Sys, usize) = ((3, 0, 0, 6, 0), 6 * 8);
    const PFR0: (asm::Sys, usize) = ((3, 0, 0, 4, 0), 4 * 8);
    let machine = Machine::new()?;
    let room = granted(Region::new(0x2_0000), "mmap")?;
    let ask = |range: u32, reserved: u32| {
        room.set_u64(0, room.address(0x1000));
        room.set_u32(8, range);
        room.set_u32(60, reserved);
        room.ioctl(&machine.vm, abi::GET_REG_WRITABLE_MASKS, 0)
    };
    refused(ask(1, 0), libc::EINVAL, "range 1")?;
    refused(ask(0, 1), libc::EINVAL, "something reserved")?;
    granted(ask(0, 0), "KVM_ARM_GET_REG_WRITABLE_MASKS")?;
    let vcpu = machine.bare_vcpu(0)?;
    granted(vcpu.init(0), "KVM_ARM_VCPU_INIT")?;
    for (register, place) in [ISAR0, PFR0] {
        let mask = room.u64(0x1000 + 8 * place);
        let shown = vcpu.get(abi::sys(register))?;
        for shift in (0..64).step_by(4).filter(|shift| shown >> shift & 15 != 0) {
            let none = shown & !(15 << shift);
            let answer = vcpu.try_set(abi::sys(register), none);
            let what = format!("field {shift} of {register:?} to 0");
            if mask >> shift & 15 == 0 {
                refused(answer, libc::EINVAL, &what)?;
            } else if register == ISAR0.0 {
                granted(answer, &what)?;
            }
        }
    }
    // Fields with a rule of their own: an exact value, one that may be raised, one that has a least.
    for (register, shift, taken, not_taken) in [
        ((3, 0, 0, 7, 0), 40, 1, 3), // MMFR0.TGran4_2: a stage 2 without the granule
        ((3, 0, 0, 7, 1), 24, 1, 2), // MMFR1.SpecSEI
        ((3, 0, 0, 5, 0), 0, 6, 5),  // DFR0.DebugVer
        ((3, 0, 0, 4, 0), 24, 0, 15), // PFR0.GIC
    ] {
        let id = abi::sys(register);
        let with = |shown: u64, field| shown & !(15 << shift) | field << shift;
        let shown = vcpu.get(id)?;
        let what = format!("field {shift} of {register:?}");
        refused(
            vcpu.try_set(id, with(shown, not_taken)),
            libc::EINVAL,
            &what,
        )?;
        granted(vcpu.try_set(id, with(shown, taken)), &what)?;
        same(vcpu.get(id)? >> shift & 15, taken, &what)?;
    }
    // CLIDR_EL1 with a level more; CTR_EL0 whose instruction caches need care.
    let clidr = abi::sys((3, 1, 0, 0, 1));
    let more = vcpu.get(clidr)? | 4 << 9;
    vcpu.set(clidr, more)?;
    same(vcpu.get(clidr)?, more, "CLIDR_EL1")?;
    refused(
        vcpu.try_set(clidr, more | 1 << 60),
        libc::EINVAL,
        "a reserved bit of CLIDR_EL1",
    )?;
    let ctr = abi::sys((3, 3, 0, 0, 1));
    let careful = vcpu.get(ctr)? & !(1 << 29);
    vcpu.set(ctr, careful)?;
    same(vcpu.get(ctr)?, careful, "CTR_EL0")?;
    // What describes AArch32 takes anything and stays zero, where there is no AArch32.
    let pfr0 = abi::sys((3, 0, 0, 1, 0));
    if vcpu.get(pfr0)? != 0 {
        return Ok(());
    }
    vcpu.set(pfr0, 0x1bad_1bad)?;
    same(vcpu.get(pfr0)?, 0, "ID_PFR0_EL1")
}

/// KVM_CAP_ARM_WRITABLE_IMP_ID_REGS, and MPIDR_EL1.
pub(super) fn identity(_: &Env) -> Outcome {
    const MIDR: Sys = (3, 0, 0, 0, 0);
    const MPIDR: Sys = (3, 0, 0, 0, 5);
    const REVIDR: Sys = (3, 0, 0, 0, 6);
    let machine = Machine::new()?;
    let enable = || {
        let mut cap = kvm_enable_cap {
            cap: 239,
            ..Default::default()
        };
        ioctl(&machine.vm, abi::ENABLE_CAP, &mut cap)
    };
    let mut asm = Asm::new();
    for reg in [MIDR, REVIDR, MPIDR] {
        asm.mrs(0, reg).report(0);
    }
    granted(enable(), "KVM_CAP_ARM_WRITABLE_IMP_ID_REGS")?;
    let vcpu = machine.vcpu_with(0, &asm)?;
    refused(enable(), libc::EINVAL, "once there is a vCPU")?;
    let values = [(MIDR, 0x413f_d0c1), (REVIDR, 0x77), (MPIDR, 0x8000_0102)];
    for (reg, value) in values {
        vcpu.set(abi::sys(reg), value)?;
    }
    refused(
        vcpu.try_set(abi::sys(MIDR), 1 << 32),
        libc::EINVAL,
        "the upper half of MIDR_EL1",
    )?;
    for (reg, value) in values {
        same(vcpu.report()?, value, &format!("{reg:?} in the guest"))?;
    }
    refused(
        vcpu.try_set(abi::sys(MIDR), 1),
        libc::EBUSY,
        "MIDR_EL1 after it has run",
    )
}
