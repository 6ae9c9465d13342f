//! KVM_GET_ONE_REG, KVM_SET_ONE_REG and KVM_GET_REG_LIST.
//!
//! An id becomes a [`Place`] or Linux's error; what is left here is to go there. The caller holds the
//! vCPU's state and has put its registers in memory, so no value is the hardware's alone. What Linux
//! keeps once a VM (ID registers, firmware registers, the counter's offset) is kept once a VM here.

use alloc::sync::Arc;

use umbra_abort::World;
use umbra_arm64::Hva;
use umbra_arm64::idreg::{cache, writable_mask};
use umbra_arm64::sysreg::{Reg, SysReg};
use umbra_hw::guest::HwPstate;
use umbra_kvm_abi::reg::{
    CoreReg, KVM_ARM_FEATURE_ID_RANGE_SIZE, OneReg, RegId, RegList, RegMaskRange, TimerId,
    feature_id_index,
};
use umbra_kvm_abi::reg_list::{Place, places, resolve};
use umbra_kvm_abi::vcpu::{KVM_ARM_VCPU_PSCI_0_2, VcpuFeatures};
use umbra_linux::Errno;
use zerocopy::IntoBytes;

use super::sysreg::shown_id_regs;
use super::vcpu::{State, Vcpu};
use super::vm::abi;
use super::{nested, pmu, time, timer};
use super::{read_struct, write_struct};
use crate::mm::Mm;

/// OSLSR_EL1.OSLK, all of the register that is not fixed.
const OSLK: u64 = 1 << 1;
const TIMER_ENABLE: u64 = 1;
const TIMER_IMASK: u64 = 1 << 1;
const TIMER_ISTATUS: u64 = 1 << 2;

/// Reads or writes one register. `ENOENT`: no such register on this vCPU; `EINVAL`: another
/// architecture, a core register of the wrong size, or a value it cannot have; `EBUSY`: settled since
/// the VM ran; `EFAULT`.
pub(super) fn access(
    vcpu: &Arc<Vcpu>,
    state: &mut State,
    mm: &Mm,
    reg: &OneReg,
    set: bool,
) -> Result<u64, Errno> {
    adopt_id_regs(vcpu, state);
    // A start that PSCI asked for shows at once, though the vCPU has not run since.
    let start = vcpu.power.lock().start.take();
    if let Some(start) = start {
        vcpu.start_at(state, start);
    }
    let id = RegId(reg.id);
    let place = abi(resolve(id, &state.features, &state.id_regs))?;
    let mut bytes = [0; size_of::<u128>()];
    let at = Hva::new(reg.addr);
    if set {
        let used = bytes.get_mut(..id.size()).ok_or(Errno::EINVAL)?;
        mm.read_bytes(at, used)?;
        write(vcpu, state, place, u128::from_le_bytes(bytes))?;
    } else {
        bytes = read(vcpu, state, place).to_le_bytes();
        mm.write_bytes(at, bytes.get(..id.size()).ok_or(Errno::EINVAL)?)?;
    }
    Ok(0)
}

/// Writes the number of registers and, if the VMM's list has room for them, their ids. `E2BIG`
/// otherwise; `EFAULT`.
pub(super) fn list(vcpu: &Vcpu, state: &mut State, mm: &Mm, arg: u64) -> Result<u64, Errno> {
    adopt_id_regs(vcpu, state);
    let room = read_struct::<RegList>(mm, arg)?.n;
    let n = places(&state.features, &state.id_regs).count() as u64;
    write_struct(mm, arg, &RegList { n })?;
    if room < n {
        return Err(Errno::E2BIG);
    }
    let mut at = Hva::new(arg)
        .checked_add(size_of::<RegList>() as u64)
        .ok_or(Errno::EFAULT)?;
    for place in places(&state.features, &state.id_regs) {
        let id = RegId::from(place).0.to_le_bytes();
        mm.write_bytes(at, &id)?;
        at = at.checked_add(id.len() as u64).ok_or(Errno::EFAULT)?;
    }
    Ok(0)
}

/// Takes over the ID registers that a VMM set through another vCPU. Before a vCPU's registers are
/// asked for, and before its first run.
pub(super) fn adopt_id_regs(vcpu: &Vcpu, state: &mut State) {
    let set = *vcpu.vm.id_regs.lock();
    if let Some(set) = set {
        state.id_regs = set;
        state.features = set.features();
    }
}

/// Whether the VMM asked for PSCI 0.2 or later.
fn has_psci_0_2(state: &State) -> bool {
    state
        .init
        .is_some_and(|features: VcpuFeatures| features.has(KVM_ARM_VCPU_PSCI_0_2))
}

fn read(vcpu: &Vcpu, state: &mut State, place: Place) -> u128 {
    let value = match place {
        Place::Core(CoreReg::V(n)) => {
            return state.fp.regs().v.get(usize::from(n)).copied().unwrap_or(0);
        }
        Place::Core(reg) => read_core(vcpu, state, reg),
        Place::State(reg) => vcpu.hw.lock().regs.get_any(reg),
        Place::Id(enc) => state.id_regs.get(enc),
        Place::Timer(timer) => read_timer(vcpu, timer),
        Place::Pmu(enc) => pmu::save(state, enc),
        Place::Ccsidr(select) => ccsidr(state, select),
        Place::Fw(reg) => vcpu.vm.services.lock().fw_reg(reg, has_psci_0_2(state)),
        Place::FwFeatBmap(bitmap) => vcpu.vm.services.lock().bitmap(bitmap),
    };
    value.into()
}

fn write(vcpu: &Vcpu, state: &mut State, place: Place, wide: u128) -> Result<(), Errno> {
    let value = wide as u64;
    match place {
        Place::Core(CoreReg::V(n)) => {
            if let Some(v) = state.fp.regs().v.get_mut(usize::from(n)) {
                *v = wide;
            }
            Ok(())
        }
        Place::Core(reg) => write_core(vcpu, state, reg, value),
        Place::State(reg) => {
            write_state(vcpu, reg, value)?;
            if reg == Reg::MdcrEl2 {
                pmu::divide(vcpu, state);
            }
            Ok(())
        }
        Place::Id(enc) => write_id(vcpu, state, enc, value),
        Place::Timer(timer) => {
            write_timer(vcpu, timer, value);
            Ok(())
        }
        Place::Pmu(enc) => {
            pmu::restore(vcpu, state, enc, value);
            Ok(())
        }
        // Made up from CTR_EL0, and of no use but to be consistent.
        Place::Ccsidr(select) if value == ccsidr(state, select) => Ok(()),
        Place::Ccsidr(_) => Err(Errno::EINVAL),
        Place::Fw(reg) => abi(vcpu
            .vm
            .services
            .lock()
            .set_fw_reg(reg, has_psci_0_2(state), value)),
        Place::FwFeatBmap(bitmap) => {
            let has_run = vcpu.vm.has_run();
            abi(vcpu.vm.services.lock().set_bitmap(bitmap, value, has_run))
        }
    }
}

/// Core registers that are system registers under another name.
fn core_state(reg: CoreReg) -> Option<Reg> {
    match reg {
        CoreReg::Sp => Some(Reg::SpEl0),
        CoreReg::SpEl1 => Some(Reg::SpEl1),
        CoreReg::ElrEl1 => Some(Reg::ElrEl1),
        CoreReg::Spsr(0) => Some(Reg::SpsrEl1),
        _ => None,
    }
}

fn read_core(vcpu: &Vcpu, state: &mut State, reg: CoreReg) -> u64 {
    if let Some(reg) = core_state(reg) {
        return vcpu.hw.lock().regs.get_any(reg);
    }
    match reg {
        CoreReg::X(n) => state.frame.x.get(usize::from(n)).copied().unwrap_or(0),
        CoreReg::Pc => state.frame.pc,
        CoreReg::Pstate => state.arrival.unwrap_or_else(|| nested::shown_pstate(state)),
        CoreReg::Fpsr => state.fp.regs().fpsr,
        CoreReg::Fpcr => state.fp.regs().fpcr,
        // No AArch32, so nothing is ever banked there; the others were answered above.
        CoreReg::Spsr(_) | CoreReg::Sp | CoreReg::SpEl1 | CoreReg::ElrEl1 | CoreReg::V(_) => 0,
    }
}

fn write_core(vcpu: &Vcpu, state: &mut State, reg: CoreReg, value: u64) -> Result<(), Errno> {
    if let Some(reg) = core_state(reg) {
        vcpu.hw.lock().regs.set_any(reg, value);
        return Ok(());
    }
    match reg {
        CoreReg::X(n) => {
            if let Some(x) = state.frame.x.get_mut(usize::from(n)) {
                *x = value;
            }
        }
        CoreReg::Pc => state.frame.pc = value,
        CoreReg::Pstate => {
            if state.world == World::Plain {
                let pstate = HwPstate::new(value).ok_or(Errno::EINVAL)?;
                state.frame.set_pstate(pstate);
            } else {
                state.arrival = Some(nested::arrival(value).ok_or(Errno::EINVAL)?);
            }
        }
        CoreReg::Fpsr => state.fp.regs().fpsr = value,
        CoreReg::Fpcr => state.fp.regs().fpcr = value,
        CoreReg::Spsr(_) | CoreReg::Sp | CoreReg::SpEl1 | CoreReg::ElrEl1 | CoreReg::V(_) => {}
    }
    Ok(())
}

/// Registers of the register file take any value, as the guest could write it, but for those whose
/// value others rely on.
fn write_state(vcpu: &Vcpu, reg: Reg, value: u64) -> Result<(), Errno> {
    if reg == Reg::MpidrEl1 {
        vcpu.set_mpidr(value)?;
    }
    let mut hw = vcpu.hw.lock();
    let fixed = match reg {
        Reg::OslsrEl1 => !OSLK,
        _ => 0,
    };
    if (value ^ hw.regs.get_any(reg)) & fixed != 0 {
        return Err(Errno::EINVAL);
    }
    hw.regs.set_any(reg, value);
    Ok(())
}

/// Whether `enc` describes AArch32, which no VM has: such registers read as zero. All but those that
/// Linux does not know take any value and stay zero.
fn is_aarch32_id(enc: SysReg) -> bool {
    let unknown = matches!((enc.crm(), enc.op2()), (1, 3) | (3, 3) | (3, 5) | (3, 7));
    (enc.op0(), enc.op1(), enc.crn()) == (3, 0, 0) && (1..=3).contains(&enc.crm()) && !unknown
}

/// KVM_ARM_GET_REG_WRITABLE_MASKS. `EINVAL`: another range than that of the feature ids, or something
/// where zeros should be; `EFAULT`.
pub(super) fn writable_masks(mm: &Mm, request: &RegMaskRange) -> Result<u64, Errno> {
    if request.range != 0 || request.reserved.iter().any(|&word| word != 0) {
        return Err(Errno::EINVAL);
    }
    let mut masks = [0u64; KVM_ARM_FEATURE_ID_RANGE_SIZE];
    for op1 in [0, 1, 3] {
        for (crm, op2) in (0..8).flat_map(|crm| (0..8).map(move |op2| (crm, op2))) {
            let enc = SysReg::new(3, op1, 0, crm, op2);
            if let Some(mask) = feature_id_index(enc).and_then(|at| masks.get_mut(at)) {
                *mask = writable_mask(enc);
            }
        }
    }
    mm.write_bytes(Hva::new(request.addr), masks.as_bytes())?;
    Ok(0)
}

/// ID registers are the VM's: whichever vCPU they are set through, all have them.
fn write_id(vcpu: &Vcpu, state: &mut State, enc: SysReg, value: u64) -> Result<(), Errno> {
    if is_aarch32_id(enc) {
        return Ok(());
    }
    let named = matches!(
        enc,
        SysReg::MIDR_EL1 | SysReg::REVIDR_EL1 | SysReg::AIDR_EL1
    );
    if named {
        return write_implementation(vcpu, state, enc, value);
    }
    if vcpu.vm.has_run() {
        return if value == state.id_regs.get(enc) {
            Ok(())
        } else {
            Err(Errno::EBUSY)
        };
    }
    let features = state.init.ok_or(Errno::ENOEXEC)?;
    // Against what was shown at first, not what is now: a lowered field may be raised again.
    if !shown_id_regs(features).accept(enc, value) {
        return Err(Errno::EINVAL);
    }
    vcpu.vm
        .id_regs
        .lock()
        .get_or_insert(state.id_regs)
        .set(enc, value);
    adopt_id_regs(vcpu, state);
    Ok(())
}

/// Whose processor it is: the machine's, unless the VMM has KVM_CAP_ARM_WRITABLE_IMP_ID_REGS.
fn write_implementation(
    vcpu: &Vcpu,
    state: &mut State,
    enc: SysReg,
    value: u64,
) -> Result<(), Errno> {
    if value == state.id_regs.get(enc) {
        return Ok(());
    }
    if !vcpu.vm.options.lock().writable_imp_ids {
        return Err(Errno::EINVAL);
    }
    if vcpu.vm.has_run() {
        return Err(Errno::EBUSY);
    }
    if enc == SysReg::MIDR_EL1 && value >> 32 != 0 {
        return Err(Errno::EINVAL);
    }
    let mut set = vcpu.vm.id_regs.lock();
    set.get_or_insert(state.id_regs).set(enc, value);
    drop(set);
    adopt_id_regs(vcpu, state);
    Ok(())
}

fn ccsidr(state: &State, select: u8) -> u64 {
    let (clidr, ctr) = (
        state.id_regs.get(SysReg::CLIDR_EL1),
        state.id_regs.get(SysReg::CTR_EL0),
    );
    cache::ccsidr(clidr, ctr, select.into()).unwrap_or(0)
}

/// The control register of the timer that `timer` is a part of, and whether it is the virtual one.
fn timer_parts(timer: TimerId) -> (Reg, bool) {
    match timer {
        TimerId::VirtCtl | TimerId::VirtCval | TimerId::VirtCount => (Reg::CntvCtlEl0, true),
        TimerId::PhysCtl | TimerId::PhysCval | TimerId::PhysCount => (Reg::CntpCtlEl0, false),
    }
}

fn read_timer(vcpu: &Vcpu, timer: TimerId) -> u64 {
    let (ctl, is_virtual) = timer_parts(timer);
    let now = umbra_hw::timer::ticks();
    let mut hw = vcpu.hw.lock();
    timer::adopt_offsets(vcpu, &mut hw);
    let (count, cval) = if is_virtual {
        let count = now.wrapping_sub(vcpu.vm.time.virt());
        (count, hw.regs.get_any(Reg::CntvCvalEl0))
    } else {
        (timer::physical_count(&hw, now), timer::physical_cval(&hw))
    };
    match timer {
        TimerId::VirtCtl | TimerId::PhysCtl => {
            // ISTATUS of a disabled timer is UNKNOWN; like Linux, say whether its time has come.
            let due = if cval <= count { TIMER_ISTATUS } else { 0 };
            hw.regs.get_any(ctl) & (TIMER_ENABLE | TIMER_IMASK) | due
        }
        TimerId::VirtCval | TimerId::PhysCval => cval,
        TimerId::VirtCount | TimerId::PhysCount => count,
    }
}

fn write_timer(vcpu: &Vcpu, timer: TimerId, value: u64) {
    let (ctl, is_virtual) = timer_parts(timer);
    match timer {
        TimerId::VirtCtl | TimerId::PhysCtl => {
            vcpu.hw
                .lock()
                .regs
                .set(ctl, value & (TIMER_ENABLE | TIMER_IMASK));
        }
        TimerId::VirtCval => vcpu.hw.lock().regs.set_any(Reg::CntvCvalEl0, value),
        TimerId::PhysCval => {
            let mut hw = vcpu.hw.lock();
            timer::adopt_offsets(vcpu, &mut hw);
            timer::set_physical_cval(&mut hw, value);
        }
        TimerId::VirtCount | TimerId::PhysCount => time::set_counter(&vcpu.vm, is_virtual, value),
    }
}
