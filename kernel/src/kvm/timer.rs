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
    ctl: Reg,
    cval: Reg,
    offset: u64,
}

/// The timers of a vCPU. At virtual EL2 the hardware's are EL2's own, whose counters have no offset;
/// those of EL1 are only state then, and umbra watches their deadlines.
fn timers(vcpu: &Vcpu, hw: &Hw) -> [Option<Timer>; 4] {
    let of_vm = vcpu.vm.counter_offset.load(Ordering::Acquire);
    let offset = if hw.nested {
        hw.regs.get(Reg::CntvoffEl2)
    } else {
        of_vm
    };
    let virt = Timer {
        ppi: VIRT_TIMER_PPI,
        ctl: Reg::CntvCtlEl0,
        cval: Reg::CntvCvalEl0,
        offset,
    };
    let phys = Timer {
        ppi: PHYS_TIMER_PPI,
        ctl: Reg::CntpCtlEl0,
        cval: Reg::CntpCvalEl0,
        offset: 0,
    };
    let hyp = |ppi, ctl, cval| {
        hw.nested.then_some(Timer {
            ppi,
            ctl,
            cval,
            offset: 0,
        })
    };
    [
        Some(virt),
        Some(phys),
        hyp(HYP_VIRT_TIMER_PPI, Reg::CnthvCtlEl2, Reg::CnthvCvalEl2),
        hyp(HYP_TIMER_PPI, Reg::CnthpCtlEl2, Reg::CnthpCvalEl2),
    ]
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

impl Timer {
    /// When it fires, in ticks of the machine's counter; `None` if it does not.
    fn due(&self, hw: &Hw) -> Option<u64> {
        let ctl = hw.regs.get(self.ctl);
        (ctl & (ENABLE | IMASK) == ENABLE)
            .then(|| hw.regs.get(self.cval).saturating_add(self.offset))
    }
}

/// The lines of the timers: (PPI, level).
///
/// Of a timer that is in hardware, what hardware says: a guest that takes the interrupt asks the same
/// bit whose it is, and a machine whose timer fires later than its counter says (an emulator's does)
/// would have it take one that is nobody's, again and again. The machine's interrupt comes with the bit.
pub(super) fn lines(vcpu: &Vcpu, hw: &Hw) -> [Option<(u32, bool)>; 4] {
    const ASKED: u64 = ENABLE | IMASK | ISTATUS;
    let now = umbra_hw::timer::ticks();
    let driven = links(hw.virtual_el2).map(|(ppi, _)| ppi);
    let loaded = hw.regs.hw.is_loaded_here();
    timers(vcpu, hw).map(|timer| {
        let timer = timer?;
        let level = if loaded && driven.contains(&timer.ppi) {
            hw.regs.get(timer.ctl) & ASKED == ENABLE | ISTATUS
        } else {
            timer.due(hw).is_some_and(|due| due <= now)
        };
        Some((timer.ppi, level))
    })
}

/// The lines as a bit per PPI.
pub(super) fn high(lines: &[Option<(u32, bool)>; 4]) -> u32 {
    lines
        .iter()
        .flatten()
        .fold(0, |bits, &(ppi, level)| bits | u32::from(level) << ppi)
}

/// After an exit: the guest may have put off or masked a timer whose interrupt lies pending in a list
/// register, which it has to lose then.
pub(super) fn resample(vcpu: &Vcpu) {
    let before = vcpu.timers_high.load(Ordering::Relaxed);
    if before == 0 {
        return;
    }
    let now = high(&lines(vcpu, &vcpu.hw.lock()));
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
    let due = timers(vcpu, hw)
        .iter()
        .flatten()
        .filter_map(|timer| timer.due(hw))
        .min()?;
    Some(umbra_hw::timer::ticks_to_ns(due).saturating_add(1))
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
    let set = hw.regs.get(reg) & (ENABLE | IMASK);
    let met = set & ENABLE != 0 && counter(hw, is_virtual) >= hw.regs.get(cval);
    Some(set | if met { ISTATUS } else { 0 })
}

/// At virtual EL2 no hardware timer watches EL1's: sets an alarm for the earlier of the two, and
/// elsewhere for virtual EL2's. One that is due since the lines were looked at fires at once.
pub(super) fn watch(vcpu: &Vcpu) {
    let due = {
        let hw = vcpu.hw.lock();
        if !hw.nested {
            return;
        }
        let driven = links(hw.virtual_el2).map(|(ppi, _)| ppi);
        let told = vcpu.timers_high.load(Ordering::Relaxed);
        timers(vcpu, &hw)
            .iter()
            .flatten()
            .filter(|timer| !driven.contains(&timer.ppi) && told & 1 << timer.ppi == 0)
            .filter_map(|timer| timer.due(&hw))
            .min()
    };
    vcpu.set_alarm(due.map(|due| umbra_hw::timer::ticks_to_ns(due).saturating_add(1)));
}
