//! A vCPU's two EL1 timers. While it is loaded they are the hardware's own; their interrupts stay
//! active until the guest deactivates them through a list register with the HW bit. While it is
//! not, their deadlines matter only to a vCPU that waits.

use core::sync::atomic::Ordering;

use umbra_arm64::sysreg::Reg;
use umbra_hw::sabotage::{Safeguard, left_out};
use umbra_hw::timer::{PHYS_TIMER_PPI, VIRT_TIMER_PPI};

use super::gic::deliver;
use super::time::Ppis;
use super::vcpu::{Hw, Vcpu, request};
use super::{loaded, nested};

const ENABLE: u64 = 1;
const IMASK: u64 = 1 << 1;
const ISTATUS: u64 = 1 << 2;

/// A timer: its interrupt, its registers, and how far its counter lies behind the machine's.
struct Timer {
    ppi: u32,
    ctl: u64,
    cval: u64,
    offset: u64,
}

impl Timer {
    /// A timer's registers; of one that is off the second does not matter.
    #[inline(always)]
    fn read(hw: &Hw, ppi: u32, (ctl, cval): (Reg, Reg), offset: u64) -> Self {
        let ctl = hw.regs.get(ctl);
        let cval = if ctl & ENABLE != 0 {
            hw.regs.get(cval)
        } else {
            u64::MAX
        };
        Self {
            ppi,
            ctl,
            cval,
            offset,
        }
    }

    /// When it fires, in ticks of the machine's counter, which shows `now`; `None` if it does not.
    fn due(&self, now: u64) -> Option<u64> {
        (self.ctl & (ENABLE | IMASK) == ENABLE).then(|| machine_time(self.cval, self.offset, now))
    }
}

/// When a counter that lags `offset` ticks behind the machine's, which shows `now`, reaches `cval`: at once
/// if it has passed it. A counter may be ahead (the offset wraps), and it may be set to any value.
fn machine_time(cval: u64, offset: u64, now: u64) -> u64 {
    let left = cval.saturating_sub(now.wrapping_sub(offset));
    now.saturating_add(left)
}

/// The physical timer of a vCPU whose physical counter lags behind the machine's. Hardware still drives it,
/// by a compare value of the machine's counter; the guest's accesses trap (CNTHCTL_EL2), as it has another one.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Shifted {
    /// In ticks; 0: hardware's registers are the guest's.
    offset: u64,
    /// CNTP_CVAL_EL0 as the guest sees it, unless the offset is 0.
    cval: u64,
}

/// Takes the offsets of what runs over. The vCPU's registers are in memory, or are about to be loaded.
pub(super) fn adopt_offsets(vcpu: &Vcpu, hw: &mut Hw) {
    hw.cntvoff = hardware_offset(vcpu, hw);
    let offset = vcpu.vm.time.phys();
    if offset == hw.shifted.offset {
        return;
    }
    let cval = physical_cval(hw);
    hw.shifted.offset = offset;
    set_physical_cval(hw, cval);
}

/// Whether a new offset waits to be taken over.
pub(super) fn has_new_offset(vcpu: &Vcpu, hw: &Hw) -> bool {
    vcpu.vm.time.phys() != hw.shifted.offset || hardware_offset(vcpu, hw) != hw.cntvoff
}

/// Whether the guest must not reach hardware's physical counter and timer.
pub(super) fn is_shifted(hw: &Hw) -> bool {
    hw.shifted.offset != 0
}

/// What the physical counter says to the guest, when the machine's shows `now`.
pub(super) fn physical_count(hw: &Hw, now: u64) -> u64 {
    now.wrapping_sub(hw.shifted.offset)
}

/// CNTP_CVAL_EL0 as the guest sees it.
pub(super) fn physical_cval(hw: &Hw) -> u64 {
    if is_shifted(hw) {
        hw.shifted.cval
    } else {
        hw.regs.get_any(Reg::CntpCvalEl0)
    }
}

/// Sets it.
pub(super) fn set_physical_cval(hw: &mut Hw, cval: u64) {
    let offset = hw.shifted.offset;
    hw.shifted.cval = cval;
    let machines = if offset == 0 {
        cval
    } else {
        machine_time(cval, offset, umbra_hw::timer::ticks())
    };
    hw.regs.set_any(Reg::CntpCvalEl0, machines);
}

/// Calls `each` for the timers of a vCPU. At virtual EL2 the hardware's are EL2's own, whose counters
/// have no offset; those of EL1 are only state then, and umbra watches their deadlines.
#[inline(always)]
fn for_each(vcpu: &Vcpu, hw: &Hw, mut each: impl FnMut(Timer)) {
    let offset = if hw.nested {
        hw.regs.get(Reg::CntvoffEl2)
    } else {
        vcpu.vm.time.virt()
    };
    let virt = (Reg::CntvCtlEl0, Reg::CntvCvalEl0);
    let phys = (Reg::CntpCtlEl0, Reg::CntpCvalEl0);
    each(Timer::read(hw, hw.ppis.virt, virt, offset));
    each(Timer::read(hw, hw.ppis.phys, phys, 0));
    if hw.nested {
        let virt = (Reg::CnthvCtlEl2, Reg::CnthvCvalEl2);
        let phys = (Reg::CnthpCtlEl2, Reg::CnthpCvalEl2);
        each(Timer::read(hw, hw.ppis.hyp_virt, virt, 0));
        each(Timer::read(hw, hw.ppis.hyp, phys, 0));
    }
}

/// CNTVOFF_EL2 for what runs: the VM's, nothing at virtual EL2, its choice for what it runs.
pub(super) fn hardware_offset(vcpu: &Vcpu, hw: &Hw) -> u64 {
    match (hw.nested, hw.virtual_el2) {
        (false, _) => vcpu.vm.time.virt(),
        (true, true) => 0,
        (true, false) => hw.regs.get(Reg::CntvoffEl2),
    }
}

/// The virtual interrupts that hardware timers drive, and the physical ones behind them.
pub(super) const fn links(ppis: &Ppis, virtual_el2: bool) -> [(u32, u32); 2] {
    let (virt, phys) = if virtual_el2 {
        (ppis.hyp_virt, ppis.hyp)
    } else {
        (ppis.virt, ppis.phys)
    };
    [(virt, VIRT_TIMER_PPI), (phys, PHYS_TIMER_PPI)]
}

/// The PPIs that hardware's own timers drive, by bit.
const fn driven(hw: &Hw) -> u32 {
    let [(one, _), (other, _)] = links(&hw.ppis, hw.virtual_el2);
    1 << one | 1 << other
}

/// The lines of the timers, by bit of their PPI.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lines {
    /// The timers that there are.
    pub(super) which: u32,
    /// Those whose line is high.
    pub(super) high: u32,
    /// When the first of those fires that hardware does not watch, in ticks of the machine's counter.
    pub(super) alarm: Option<u64>,
}

/// The lines of the timers.
///
/// Of a timer that is in hardware, what hardware says: a guest that takes the interrupt asks the same
/// bit whose it is, and a machine whose timer fires later than its counter says (an emulator's does)
/// would have it take one that is nobody's, again and again. The machine's interrupt comes with the bit.
pub(super) fn lines(vcpu: &Vcpu, hw: &Hw) -> Lines {
    const ASKED: u64 = ENABLE | IMASK | ISTATUS;
    let now = umbra_hw::timer::ticks();
    let driven = driven(hw);
    let in_hardware = if hw.regs.hw.is_loaded_here() {
        driven
    } else {
        0
    };
    let mut lines = Lines::default();
    for_each(vcpu, hw, |timer| {
        let bit = 1 << timer.ppi;
        lines.which |= bit;
        let due = timer.due(now);
        let level = if in_hardware & bit != 0 {
            timer.ctl & ASKED == ENABLE | ISTATUS
        } else {
            due.is_some_and(|due| due <= now)
        };
        if level {
            lines.high |= bit;
        } else if driven & bit == 0 || is_ahead(timer.offset) {
            lines.alarm = [lines.alarm, due].into_iter().flatten().min();
        }
    });
    lines
}

/// Whether a counter is ahead of the machine's: a VMM restored a guest that is older than the machine, or a
/// guest hypervisor did. Its timer traps where it can, and umbra watches it too ([`remind_hardware`]).
pub(super) fn is_ahead(offset: u64) -> bool {
    offset >> 63 != 0 && !left_out(Safeguard::CounterAhead)
}

/// QEMU adds compare value and offset, and takes a sum that wraps for "never". Written again when its time has
/// come, the compare value is compared, and the timer fires as it should.
pub(super) fn remind_hardware(hw: &mut Hw) {
    let offset = hw.cntvoff;
    if !is_ahead(offset) || hw.virtual_el2 || !hw.regs.hw.is_loaded_here() {
        return;
    }
    let now = umbra_hw::timer::ticks();
    let ctl = hw.regs.get(Reg::CntvCtlEl0);
    let cval = hw.regs.get(Reg::CntvCvalEl0);
    if ctl & (ENABLE | ISTATUS) == ENABLE && machine_time(cval, offset, now) <= now {
        hw.regs.set(Reg::CntvCvalEl0, cval);
    }
}

/// After an exit: the guest may have put off or masked a timer whose interrupt lies pending in a list
/// register, which it has to lose then.
pub(super) fn resample(vcpu: &Vcpu) {
    let before = vcpu.timers_high.load(Ordering::Relaxed);
    if before == 0 {
        return;
    }
    let now = lines(vcpu, &vcpu.hw.lock()).high;
    if before & !now != 0 {
        vcpu.timers_high.store(now, Ordering::Relaxed);
        if vcpu.vm.gic.refresh(vcpu) {
            vcpu.kick(request::GIC);
        }
    }
}

/// When the earliest fires, in nanoseconds of the scheduler's clock.
pub(super) fn deadline(vcpu: &Vcpu, hw: &Hw) -> Option<u64> {
    if left_out(Safeguard::WaitDeadline) {
        return None;
    }
    let now = umbra_hw::timer::ticks();
    let mut first: Option<u64> = None;
    for_each(vcpu, hw, |timer| {
        first = [first, timer.due(now)].into_iter().flatten().min();
    });
    Some(umbra_hw::timer::ticks_to_ns(first?).saturating_add(1))
}

/// A physical timer interrupt of a guest: it stays active, and the vCPU that is loaded here looks.
pub(crate) fn fired() {
    if let Some(vcpu) = loaded::here() {
        vcpu.kick(request::GIC);
    }
}

/// The GIC's maintenance interrupt: the condition is level, so it is removed at once by taking the
/// list registers back; the vCPU gets fresh ones before it runs on.
pub(crate) fn maintenance() {
    if let Some(vcpu) = loaded::here() {
        let (ended, kicks) = {
            let mut hw = vcpu.hw.lock();
            (
                nested::save_interface(&mut hw),
                loaded::sync_interface(&vcpu, &mut hw),
            )
        };
        deliver(&vcpu.vm, kicks);
        ended.deliver(&vcpu);
        umbra_hw::vgic::write_hcr(0);
        vcpu.kick(request::GIC);
    }
}

/// What a counter says to a guest hypervisor: the virtual one of EL1, or one without an offset.
pub(super) fn counter(hw: &Hw, is_virtual: bool) -> u64 {
    let offset = if is_virtual {
        hw.regs.get(Reg::CntvoffEl2)
    } else {
        0
    };
    umbra_hw::timer::ticks().wrapping_sub(offset)
}

/// CTL of a timer of EL1 as a guest hypervisor reads it by its EL02 name, status included; `None` for
/// any other register.
pub(super) fn control(hw: &Hw, reg: Reg) -> Option<u64> {
    let (cval, is_virtual) = match reg {
        Reg::CntvCtlEl0 => (Reg::CntvCvalEl0, true),
        Reg::CntpCtlEl0 => (Reg::CntpCvalEl0, false),
        _ => return None,
    };
    let set = hw.regs.get_any(reg) & (ENABLE | IMASK);
    let met = set & ENABLE != 0 && counter(hw, is_virtual) >= hw.regs.get_any(cval);
    Some(set | if met { ISTATUS } else { 0 })
}

/// At virtual EL2 no hardware timer watches EL1's, and elsewhere none virtual EL2's, nor surely one whose counter
/// is ahead: sets an alarm for the first of them. One that is due since the lines were looked at fires at once.
pub(super) fn watch(vcpu: &Vcpu, lines: &Lines) {
    let at = |due| umbra_hw::timer::ticks_to_ns(due).saturating_add(1);
    vcpu.set_alarm(lines.alarm.map(at));
}
