//! Memory errors of a guest's guest: a VM at virtual EL2 whose program runs another, with a stage 2 of its
//! own, and that one meets them. The other 32 cells of the contract at the head of `poison`.
//!
//! ```text
//!  L2's space                    L1's space
//!  0x0000_0000  devices    ───►  0x0000_0000
//!  0x4000_0000  code       ───►  0x4000_0000
//!  0x1_4000_0000           ───►  0x4000_0000   so that no address is the same in both
//! ```

use kvm_bindings::{KVM_ARM_VCPU_HAS_EL2, KVM_MEM_READONLY};
use umbra_vmm::kvm::{PAGE, Region, ioctl_value};

use super::asm::{Asm, CPACR_EL1, Sys, VBAR_EL1};
use super::guest::{Exit, Machine, RAM, Sea, VECTORS, Vcpu, open};
use super::poison::{
    Access, BAD, DATA, EL1, GPA_VALID, break_on_purpose, each, furnish_at, inject, memory, opt_in,
    plant, sea, translate,
};
use super::{Check, Env, Outcome, abi, granted, refused, same};

pub(super) const HCR_EL2: Sys = (3, 4, 1, 1, 0);
pub(super) const VTTBR_EL2: Sys = (3, 4, 2, 1, 0);
pub(super) const VTCR_EL2: Sys = (3, 4, 2, 1, 2);
pub(super) const SPSR_EL2: Sys = (3, 4, 4, 0, 0);
pub(super) const ELR_EL2: Sys = (3, 4, 4, 0, 1);
const HPFAR_EL2: Sys = (3, 4, 6, 0, 4);
const VBAR_EL2: Sys = (3, 4, 12, 0, 0);

/// What lies at `at` in L1's space lies here above it in L2's.
pub(super) const ABOVE: u64 = 0x1_0000_0000;
const NESTED: u64 = 1 << 63;
const EL2H: u64 = 0x3c9;
/// VM, RW, TEA; E2H is fixed.
pub(super) const HCR: u64 = 1 | 1 << 31 | 1 << 34;
const TEA: u64 = 1 << 37;
/// VTCR_EL2 of one table of 39 bits.
pub(super) const VTCR: u64 = 25 | 1 << 6 | 1 << 8 | 1 << 10 | 3 << 12 | 2 << 16 | 1 << 31;
/// Where in DATA L1 keeps its stage 2.
pub(super) const STAGE2: usize = 0x10_0000;
/// Where in DATA L2 keeps its stage 1, in the bad page its second level.
const STAGE1: usize = 0x18_0000;

pub(super) fn has_el2() -> Check<bool> {
    const CAP_ARM_EL2: u64 = 240;
    let answer = ioctl_value(&open()?, abi::CHECK_EXTENSION, CAP_ARM_EL2);
    Ok(granted(answer, "KVM_CAP_ARM_EL2")? > 0)
}

/// Begins at virtual EL2, with the vectors in place for both levels.
pub(super) fn start(vcpu: &Vcpu, entry: u64) -> Outcome {
    for register in [VBAR_EL1, VBAR_EL2] {
        vcpu.set(abi::sys(register), VECTORS)?;
    }
    vcpu.set(abi::sys(CPACR_EL1), 3 << 20)?;
    vcpu.set(abi::PSTATE, EL2H)?;
    vcpu.set(abi::PC, entry)
}

/// L1 with its stage 2 in `data`, about to run L2 at `entry` of L1's space.
pub(super) fn nested(machine: &Machine, data: &Region, id: u64, hcr: u64) -> Check<Vcpu> {
    let vcpu = machine.bare_vcpu(id)?;
    granted(vcpu.init(1 << KVM_ARM_VCPU_HAS_EL2), "a vCPU with EL2")?;
    // One table of 39 bits: devices, RAM, and RAM once more above.
    let (device, ram) = (0x4c5, 0x7fd);
    data.set_u64(STAGE2, device | 1 << 54);
    data.set_u64(STAGE2 + 8, RAM | ram);
    data.set_u64(STAGE2 + 40, RAM | ram);
    start(&vcpu, machine.place(Asm::new().eret()))?;
    vcpu.set(abi::sys(HCR_EL2), hcr)?;
    vcpu.set(abi::sys(VTTBR_EL2), (DATA + STAGE2 as u64) | 1 << 48)?;
    vcpu.set(abi::sys(VTCR_EL2), VTCR)?;
    Ok(vcpu)
}

/// L1 will begin L2 at `entry`, at EL1.
pub(super) fn begin_at(vcpu: &Vcpu, entry: u64) -> Outcome {
    vcpu.set(abi::sys(ELR_EL2), entry)?;
    vcpu.set(abi::sys(SPSR_EL2), EL1)
}

/// Loads both neighbours and reports them, waits for the VMM, makes the access and reports 7.
fn program(access: Access) -> Asm {
    let mut asm = Asm::new();
    // An address in L2's space for both, without L2's own translation.
    asm.ldr(0, 2).report(0).ldr(0, 3).report(0);
    access.made_by(asm)
}

pub(super) fn furnish(data: &Region, access: Access) {
    furnish_at(data, access, STAGE1, ABOVE);
    if access == Access::Walk {
        // Where the neighbours are: 0x1_4000_0000 is its own address.
        data.set_u64(STAGE1 + 40, (RAM + ABOVE) | 0x701 | 1 << 6);
    }
}

/// A VM that hears of memory errors, with DATA furnished for an access.
fn stage(access: Access, huge: bool) -> Check<(Machine, Region)> {
    let machine = Machine::new()?;
    let data = memory(huge)?;
    granted(machine.add(&data, DATA, 0), "a slot")?;
    opt_in(&machine)?;
    furnish(&data, access);
    Ok((machine, data))
}

fn target(access: Access) -> u64 {
    match access {
        Access::Walk => 0x8000_0010,
        Access::Load | Access::Store | Access::Fetch => DATA + ABOVE + BAD as u64,
    }
}

/// A vCPU that will begin `program` as L2 at `pstate`.
pub(super) fn begin(
    machine: &Machine,
    data: &Region,
    id: u64,
    access: Access,
    pstate: u64,
) -> Check<Vcpu> {
    let vcpu = nested(machine, data, id, HCR | TEA)?;
    let mut entry = machine.place(&program(access));
    if access == Access::Walk {
        entry = translate(&vcpu, DATA + ABOVE + STAGE1 as u64, pstate, entry)?;
    }
    vcpu.set(abi::sys(ELR_EL2), entry)?;
    vcpu.set(abi::sys(SPSR_EL2), pstate)?;
    vcpu.set(abi::x(1), target(access))?;
    for (x, at) in [(2, BAD - PAGE), (3, BAD + PAGE)] {
        vcpu.set(abi::x(x), DATA + ABOVE + at as u64)?;
    }
    Ok(vcpu)
}

/// Every cell in turn.
pub(super) fn cells(_: &Env) -> Outcome {
    if !has_el2()? {
        return Ok(());
    }
    each(cell)
}

pub(super) fn cell(pstate: u64, access: Access, huge: bool, dirty: bool) -> Outcome {
    let bystander = Machine::new()?;
    bystander.ram.set_u64(0, 0x5afe);
    let (machine, data) = stage(access, huge)?;
    // Where a walk's loads end: at 0x10 of RAM.
    machine.ram.set_u64(0x10, 7);
    for at in [BAD - PAGE, BAD + PAGE] {
        data.set_u64(at, 9);
    }
    let vcpu = begin(&machine, &data, 0, access, pstate)?;
    if dirty && access == Access::Load {
        // The page itself is mapped in the shadow too.
        vcpu.set(abi::x(2), target(access))?;
        data.set_u64(BAD, 9);
    }
    for which in ["first", "second"] {
        same(vcpu.report()?, 9, &format!("the {which} neighbour before"))?;
    }
    vcpu.complete()?;
    plant(data.address(BAD))?;

    let wanted = Sea {
        flags: GPA_VALID | NESTED,
        esr: access.esr(),
        gva: target(access),
        gpa: DATA + BAD as u64,
    };
    for _ in 0..3 {
        same(sea(&vcpu)?, wanted, "the exit")?;
    }
    let pc = vcpu.get(abi::PC)?;
    inject(&vcpu)?;
    let seen = vcpu.exception()?;
    same(
        (seen.vector, seen.esr, seen.far, seen.elr),
        (8, wanted.esr, wanted.gva, pc),
        "the abort at virtual EL2",
    )?;
    let hpfar = (DATA + ABOVE + BAD as u64) >> 12 << 4;
    same(vcpu.get(abi::sys(HPFAR_EL2))?, hpfar, "HPFAR_EL2")?;
    same(bystander.ram.u64(0), 0x5afe, "the other VM's memory")?;

    // With a fresh page L1 runs the same again.
    granted(data.map_again(BAD, PAGE), "a fresh page")?;
    furnish(&data, access);
    let again = begin(&machine, &data, 1, access, pstate)?;
    for which in ["first", "second"] {
        same(again.report()?, 9, &format!("the {which} neighbour after"))?;
        again.complete()?;
    }
    same(again.report()?, 7, "the access to the fresh page")
}

/// L1 did not ask for external aborts of its guest: L2 takes its own.
pub(super) fn not_routed(_: &Env) -> Outcome {
    if !has_el2()? {
        return Ok(());
    }
    let (machine, data) = stage(Access::Load, true)?;
    let vcpu = begin(&machine, &data, 0, Access::Load, EL1)?;
    vcpu.set(abi::sys(HCR_EL2), HCR)?;
    for _ in 0..2 {
        vcpu.report()?;
        vcpu.complete()?;
    }
    plant(data.address(BAD))?;
    sea(&vcpu)?;
    inject(&vcpu)?;
    let seen = vcpu.exception()?;
    same((seen.vector, seen.esr), (4, 0x9600_0010), "the abort in L2")
}

/// L1's own stage 2 goes bad: an error of the walk, which L1's VMM hears of in L1's space.
pub(super) fn table(_: &Env) -> Outcome {
    if !has_el2()? {
        return Ok(());
    }
    let (machine, data) = stage(Access::Load, true)?;
    let vcpu = begin(&machine, &data, 0, Access::Load, EL1)?;
    plant(data.address(STAGE2))?;
    let seen = sea(&vcpu)?;
    // The fetch of L2's first instruction; the descriptor of level 1.
    same(
        (seen.flags & GPA_VALID, seen.gpa, seen.esr),
        (GPA_VALID, DATA + STAGE2 as u64, 0x8200_0015),
        "the exit",
    )?;
    inject(&vcpu)?;
    let seen = vcpu.exception()?;
    same(
        (seen.vector, seen.esr),
        (8, 0x8200_0015),
        "the abort at virtual EL2",
    )
}

/// A table of the shadow names an address where nothing answers: nobody hears of it.
pub(super) fn shadow_table(_: &Env) -> Outcome {
    if !has_el2()? {
        return Ok(());
    }
    let (machine, data) = stage(Access::Load, true)?;
    let vcpu = begin(&machine, &data, 0, Access::Load, EL1)?;
    for _ in 0..2 {
        vcpu.report()?;
        vcpu.complete()?;
        break_on_purpose("shadow-table")?;
    }
    same(vcpu.report()?, 7, "a load by way of the healed shadow")
}

/// A slot of the VM that may only be read, behind the guest hypervisor's stage 2, which allows all: what
/// its guest writes there goes to the VMM, by its address in the VM (row N18).
pub(super) fn read_only_slot(_: &Env) -> Outcome {
    const SLOT: u64 = 0x7000_0000;
    if !has_el2()? {
        return Ok(());
    }
    let machine = Machine::new()?;
    let data = memory(true)?;
    granted(machine.add(&data, DATA, 0), "a slot")?;
    let memory = memory(true)?;
    granted(
        machine.add(&memory, SLOT, KVM_MEM_READONLY),
        "a read-only slot",
    )?;
    memory.set_u64(0x100, 79);
    let vcpu = nested(&machine, &data, 0, HCR)?;
    let mut asm = Asm::new();
    asm.mov(1, SLOT + ABOVE + 0x100).mov(2, 0x55aa);
    asm.str(2, 1); // before any read has mapped it
    asm.ldr(0, 1).report(0);
    asm.str(2, 1); // and after
    asm.ldr(0, 1).report(0);
    begin_at(&vcpu, machine.place(&asm))?;
    for when in ["before a read", "after a read"] {
        let told = Exit::Write {
            at: SLOT + 0x100,
            bytes: 8,
            data: 0x55aa,
        };
        same(vcpu.exits()?, told, &format!("a write {when}"))?;
        same(vcpu.report()?, 79, "what L2 reads then")?;
    }
    same(memory.u64(0x100), 79, "the memory")
}

/// The registers of a VM at virtual EL2 are lost: it alone stops.
pub(super) fn vncr(_: &Env) -> Outcome {
    if !has_el2()? {
        return Ok(());
    }
    let machine = Machine::new()?;
    let vcpu = machine.bare_vcpu(0)?;
    granted(vcpu.init(1 << KVM_ARM_VCPU_HAS_EL2), "a vCPU with EL2")?;
    let mut asm = Asm::new();
    asm.mov(0, 3).report(0).mrs(0, VTTBR_EL2).report(0);
    start(&vcpu, machine.place(&asm))?;
    same(vcpu.report()?, 3, "before")?;
    vcpu.complete()?;
    break_on_purpose("vncr")?;
    for _ in 0..2 {
        refused(vcpu.run(), libc::EHWPOISON, "KVM_RUN")?;
    }
    let other = Machine::new()?;
    let mut asm = Asm::new();
    asm.mov(0, 5).report(0);
    same(other.vcpu_with(0, &asm)?.report()?, 5, "another VM")
}
