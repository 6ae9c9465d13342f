//! A vCPU's two EL1 timers. While it is loaded they are the hardware's own; their interrupts stay
//! active until the guest deactivates them through a list register with the HW bit. While it is
//! not, their deadlines matter only to a vCPU that waits.

use core::sync::atomic::Ordering;

use umbra_arm64::sysreg::Reg;
use umbra_hw::sabotage::{Safeguard, left_out};
use umbra_hw::timer::{HYP_TIMER_PPI, HYP_VIRT_TIMER_PPI, PHYS_TIMER_PPI, VIRT_TIMER_PPI};

use super::gic::deliver;
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

    /// When it fires, in ticks of the machine's counter; `None` if it does not.
    fn due(&self) -> Option<u64> {
        (self.ctl & (ENABLE | IMASK) == ENABLE).then(|| self.cval.saturating_add(self.offset))
    }
}

/// Calls `each` for the timers of a vCPU. At virtual EL2 the hardware's are EL2's own, whose counters
/// have no offset; those of EL1 are only state then, and umbra watches their deadlines.
#[inline(always)]
fn for_each(vcpu: &Vcpu, hw: &Hw, mut each: impl FnMut(Timer)) {
    let offset = if hw.nested {
        hw.regs.get(Reg::CntvoffEl2)
    } else {
        vcpu.vm.counter_offset.load(Ordering::Acquire)
    };
    let virt = (Reg::CntvCtlEl0, Reg::CntvCvalEl0);
    let phys = (Reg::CntpCtlEl0, Reg::CntpCvalEl0);
    each(Timer::read(hw, VIRT_TIMER_PPI, virt, offset));
    each(Timer::read(hw, PHYS_TIMER_PPI, phys, 0));
    if hw.nested {
        let virt = (Reg::CnthvCtlEl2, Reg::CnthvCvalEl2);
        let phys = (Reg::CnthpCtlEl2, Reg::CnthpCvalEl2);
        each(Timer::read(hw, HYP_VIRT_TIMER_PPI, virt, 0));
        each(Timer::read(hw, HYP_TIMER_PPI, phys, 0));
    }
}

/// CNTVOFF_EL2 for what runs: the VM's, nothing at virtual EL2, its choice for what it runs.
pub(super) fn hardware_offset(vcpu: &Vcpu, hw: &Hw) -> u64 {
    match (hw.nested, hw.virtual_el2) {
        (false, _) => vcpu.vm.counter_offset.load(Ordering::Acquire),
        (true, true) => 0,
        (true, false) => hw.regs.get(Reg::CntvoffEl2),
    }
}

/// The virtual interrupts that hardware timers drive, and the physical ones behind them.
pub(super) const fn links(virtual_el2: bool) -> [(u32, u32); 2] {
    if virtual_el2 {
        [
            (HYP_VIRT_TIMER_PPI, VIRT_TIMER_PPI),
            (HYP_TIMER_PPI, PHYS_TIMER_PPI),
        ]
    } else {
        [
            (VIRT_TIMER_PPI, VIRT_TIMER_PPI),
            (PHYS_TIMER_PPI, PHYS_TIMER_PPI),
        ]
    }
}

/// The PPIs that hardware's own timers drive, by bit.
const fn driven(virtual_el2: bool) -> u32 {
    let [(one, _), (other, _)] = links(virtual_el2);
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
    let driven = driven(hw.virtual_el2);
    let in_hardware = if hw.regs.hw.is_loaded_here() {
        driven
    } else {
        0
    };
    let mut lines = Lines::default();
    for_each(vcpu, hw, |timer| {
        let bit = 1 << timer.ppi;
        lines.which |= bit;
        let due = timer.due();
        let level = if in_hardware & bit != 0 {
            timer.ctl & ASKED == ENABLE | ISTATUS
        } else {
            due.is_some_and(|due| due <= now)
        };
        if level {
            lines.high |= bit;
        } else if driven & bit == 0 {
            lines.alarm = [lines.alarm, due].into_iter().flatten().min();
        }
    });
    lines
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
    let mut first: Option<u64> = None;
    for_each(vcpu, hw, |timer| {
        first = [first, timer.due()].into_iter().flatten().min();
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

/// At virtual EL2 no hardware timer watches EL1's, and elsewhere none virtual EL2's: sets an alarm for
/// the first of them. One that is due since the lines were looked at fires at once.
pub(super) fn watch(vcpu: &Vcpu, lines: &Lines) {
    let at = |due| umbra_hw::timer::ticks_to_ns(due).saturating_add(1);
    vcpu.set_alarm(lines.alarm.map(at));
}
