//! The VM's virtual GIC joined to vCPUs, list registers and event descriptors.
//!
//! The lock (rank 165) lies inside a vCPU's `hw` lock. Kicks are sent after it is dropped.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use umbra_arm64::Ipa;
use umbra_hw::sync::SpinLock;
use umbra_kvm_abi::irq::{
    IrqFd, IrqLevel, IrqLine, KVM_IRQFD_FLAG_DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE, Route,
};
use umbra_linux::Errno;
use umbra_vgic::{
    Access, Affinity, Config, Frame, Kicks, LrFile, Placement, Refusal, SgiRegister, Vgic, Vtr,
};

use super::timer::Lines;
use super::vcpu::{Hw, Vcpu, request};
use super::vm::{Vm, abi};
use super::{events, loaded, nested, timer};
use crate::file::Call;
use crate::files::{EventFd, EventSink};

/// Where the guest finds the GIC, as the VMM set it up.
#[derive(Clone, Debug, Default)]
pub(super) struct Layout {
    /// The frames.
    pub(super) placement: Placement,
    /// KVM_DEV_ARM_VGIC_GRP_NR_IRQS.
    pub(super) nr_irqs: Option<u32>,
    /// KVM_DEV_ARM_VGIC_GRP_MAINT_IRQ: of a guest hypervisor.
    pub(super) maint_irq: Option<u32>,
    /// A device was created.
    pub(super) created: bool,
}

impl Layout {
    /// The maintenance interrupt of a guest hypervisor.
    pub(super) fn maintenance(&self) -> u32 {
        self.maint_irq.unwrap_or(MAINTENANCE_PPI)
    }
}

/// The GIC of a VM, from "none" to running.
pub(super) struct Gic {
    pub(super) layout: SpinLock<Layout>,
    vgic: SpinLock<Option<Vgic>>,
    ready: AtomicBool,
    irqfds: SpinLock<Vec<Arc<IrqSink>>>,
    /// Whether an irqfd wants to know of ends.
    resamples: AtomicBool,
}

/// What an access names of the GIC's registers.
#[derive(Clone, Copy)]
struct Place {
    frame: Frame,
    offset: u32,
    len: u8,
}

/// A guest hypervisor's GIC maintenance interrupt, unless the VMM says another.
pub(super) const MAINTENANCE_PPI: u32 = 25;

/// The guest hypervisor's maintenance interrupt joins the timers' lines.
fn maintenance(lines: &mut Lines, hw: &mut Hw) {
    hw.maintenance = nested::maintenance_line(hw);
    lines.which |= 1 << hw.maintenance_ppi;
    lines.high |= u32::from(hw.maintenance) << hw.maintenance_ppi;
}

/// Interrupts where the VMM names no number.
pub(super) const DEFAULT_IRQS: u32 = 256;

impl Gic {
    pub(super) fn new() -> Self {
        Self {
            layout: SpinLock::new("gic layout", 104, Layout::default()),
            vgic: SpinLock::new("vgic", 165, None),
            ready: AtomicBool::new(false),
            irqfds: SpinLock::new("irqfds", 105, Vec::new()),
            resamples: AtomicBool::new(false),
        }
    }

    /// Whether KVM_DEV_ARM_VGIC_CTRL_INIT was done.
    pub(super) fn is_initialised(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// KVM_DEV_ARM_VGIC_CTRL_INIT.
    pub(super) fn init(&self, vm: &Vm) -> Result<(), Errno> {
        // No vCPU comes meanwhile, and nobody else initialises.
        let _settling = vm.settling.lock();
        if self.is_initialised() {
            return Ok(());
        }
        let nr_irqs = self.layout.lock().nr_irqs.unwrap_or(DEFAULT_IRQS);
        let affinities: Vec<_> = vm
            .all_vcpus()
            .iter()
            .map(|vcpu| Affinity::from_mpidr(vcpu.mpidr()))
            .collect();
        // Linux grants a GIC to a VM without vCPUs, which can then get none.
        if affinities.is_empty() {
            self.ready.store(true, Ordering::Release);
            return Ok(());
        }
        let vtr = Vtr::from_bits(umbra_hw::vgic::vtr());
        let mut vgic = Vgic::new(&Config {
            nr_irqs,
            affinities: &affinities,
            vtr,
        })
        .map_err(|error| match error {
            umbra_vgic::ConfigError::NoVcpus => Errno::ENODEV,
            umbra_vgic::ConfigError::NoMemory => Errno::ENOMEM,
            umbra_vgic::ConfigError::TooManyVcpus => Errno::E2BIG,
            umbra_vgic::ConfigError::NrIrqs | umbra_vgic::ConfigError::SameAffinity => {
                Errno::EINVAL
            }
        })?;
        if vm.itses.are_there() {
            vgic.allow_lpis();
        }
        *self.vgic.lock() = Some(vgic);
        self.ready.store(true, Ordering::Release);
        // Irqfds may have come before.
        let sinks = self.irqfds.lock().clone();
        for sink in sinks.iter().filter(|sink| sink.resample.is_some()) {
            self.notify_ends(vm, sink.gsi);
        }
        Ok(())
    }

    /// A vCPU that has not run has another MPIDR_EL1. `false`: another vCPU has that.
    pub(super) fn set_affinity(&self, vm: &Vm, vcpu: usize, mpidr: u64) -> bool {
        let affinity = Affinity::from_mpidr(mpidr);
        self.with(vm, |vgic| (vgic.set_affinity(vcpu, affinity), Kicks::NONE))
            .unwrap_or(true)
    }

    /// Runs `f` on the GIC, if there is one, and delivers its kicks.
    pub(super) fn with<R>(&self, vm: &Vm, f: impl FnOnce(&mut Vgic) -> (R, Kicks)) -> Option<R> {
        let (result, kicks) = {
            let mut vgic = self.vgic.lock();
            f(vgic.as_mut()?)
        };
        deliver(vm, kicks);
        Some(result)
    }

    /// GICR_TYPER.Last. The layout may be locked.
    pub(super) fn set_last_in_region(&self, lasts: impl Iterator<Item = usize>) {
        if let Some(vgic) = self.vgic.lock().as_mut() {
            vgic.set_last_in_region(lasts);
        }
    }

    /// Before the first run, and after a change between virtual EL2 and its guest: which timers hardware drives.
    pub(super) fn relink_timers(&self, vcpu: &Vcpu) {
        let (index, virtual_el2, ppis) = {
            let hw = vcpu.hw.lock();
            (vcpu.index(), hw.virtual_el2, hw.ppis)
        };
        if let Some(vgic) = self.vgic.lock().as_mut() {
            // Nothing is in a list register now: nobody is to be kicked.
            for (ppi, _) in timer::links(&ppis, !virtual_el2) {
                let _ = vgic.link_physical(index, ppi, None);
            }
            for (ppi, physical) in timer::links(&ppis, virtual_el2) {
                let _ = vgic.link_physical(index, ppi, Some(physical));
            }
        }
    }

    /// Takes list registers back (see `loaded::sync_interface`). Called with the vCPU's `hw` locked.
    /// The kicks are the caller's to [`deliver`] once that is unlocked.
    pub(super) fn sync(&self, vcpu: &Vcpu, lrs: &LrFile, eois: u8) -> Kicks {
        match self.vgic.lock().as_mut() {
            Some(vgic) => vgic.sync(vcpu.index(), lrs, eois),
            None => Kicks::NONE,
        }
    }

    /// Brings the timers' lines up to date and loads fresh list registers. The vCPU is loaded here.
    /// Returns whether a guest hypervisor has an interrupt to take from what it runs.
    pub(super) fn refresh(&self, vcpu: &Vcpu) -> bool {
        if !self.is_initialised() {
            return false;
        }
        let index = vcpu.index();
        let mut hw = vcpu.hw.lock();
        timer::remind_hardware(&mut hw);
        let mut lines = timer::lines(vcpu, &hw);
        vcpu.timers_high.store(lines.high, Ordering::Relaxed);
        if nested::routes_interrupts(&hw) {
            drop(hw);
            return self.refresh_above(vcpu, lines);
        }
        if hw.nested {
            maintenance(&mut lines, &mut hw);
        }
        let mut kicks = loaded::sync_interface(vcpu, &mut hw);
        let flushed = {
            let mut vgic = self.vgic.lock();
            let Some(vgic) = vgic.as_mut() else {
                return false;
            };
            events::timer_lines(vcpu, vgic, lines.which, lines.high);
            // Our own vCPU: what it changes is in the flush below.
            let _ = vgic.set_levels(index, lines.which, lines.high);
            let flushed = vgic.flush(index, &mut hw.lrs);
            kicks |= flushed.kicks;
            flushed
        };
        loaded::load_lrs(&mut hw, flushed.hcr.with_en(true).into_bits());
        for (ppi, physical) in timer::links(&hw.ppis, hw.virtual_el2) {
            if flushed.linked.linked & 1 << ppi != 0 {
                umbra_hw::gic::set_private_active(physical, flushed.linked.active & 1 << ppi != 0);
            }
        }
        let is_watched = hw.nested || lines.alarm.is_some();
        drop(hw);
        deliver(&vcpu.vm, kicks.without(index));
        if is_watched {
            timer::watch(vcpu, &lines);
        }
        false
    }

    /// Sees to the line of a guest hypervisor's maintenance interrupt, which may have moved without a word:
    /// its list registers are words in memory. Called where it could find out.
    pub(super) fn settle_maintenance(&self, vcpu: &Vcpu) {
        let moved = {
            let hw = vcpu.hw.lock();
            nested::maintenance_line(&hw) != hw.maintenance
        };
        if moved {
            self.refresh(vcpu);
        }
    }

    /// The same while a guest hypervisor's own list registers are in hardware: only whether one of
    /// its interrupts waits matters.
    fn refresh_above(&self, vcpu: &Vcpu, mut lines: Lines) -> bool {
        let index = vcpu.index();
        let (vmcr, ended, ppis) = {
            let mut hw = vcpu.hw.lock();
            let ended = nested::collect(&mut hw);
            maintenance(&mut lines, &mut hw);
            (hw.cpuif.vmcr, ended, hw.ppis)
        };
        // Before the lines: an interrupt that is still active would not be pending.
        ended.deliver(vcpu);
        let answer = self.with(&vcpu.vm, |vgic| {
            events::timer_lines(vcpu, vgic, lines.which, lines.high);
            let _ = vgic.set_levels(index, lines.which, lines.high);
            (
                (vgic.has_pending(index, vmcr), vgic.linked_ppis(index)),
                Kicks::NONE,
            )
        });
        let Some((pending, linked)) = answer else {
            return false;
        };
        for (ppi, physical) in timer::links(&ppis, false) {
            if linked.linked & (1 << ppi) != 0 {
                umbra_hw::gic::set_private_active(physical, linked.active & (1 << ppi) != 0);
            }
        }
        if !pending {
            // A maintenance interrupt of hardware took the list registers out, and the guest
            // hypervisor does not want its own: they go back, and ask no more.
            let mut hw = vcpu.hw.lock();
            if !hw.below.loaded {
                hw.ich_hcr = nested::load_interface(&mut hw) & 1;
                umbra_hw::vgic::write_hcr(hw.ich_hcr);
            }
        }
        timer::watch(vcpu, &lines);
        pending
    }

    /// Whether an interrupt waits for the vCPU, timers included: what ends a WFI. Loaded here.
    pub(super) fn has_pending(&self, vcpu: &Vcpu) -> bool {
        if !self.is_initialised() {
            let hw = vcpu.hw.lock();
            return timer::lines(vcpu, &hw).high != 0 || vcpu.lines.load(Ordering::SeqCst) != 0;
        }
        self.refresh(vcpu);
        let vmcr = vcpu.hw.lock().cpuif.vmcr;
        self.vgic
            .lock()
            .as_ref()
            .is_some_and(|vgic| vgic.has_pending(vcpu.index(), vmcr))
    }

    /// A guest's access to an address: `None` if it is none of the GIC's. A read gives its value.
    pub(super) fn mmio(
        &self,
        vcpu: &Vcpu,
        address: u64,
        len: u8,
        write: Option<u64>,
    ) -> Option<u64> {
        if !self.is_initialised() {
            return None;
        }
        let (frame, offset) = self.frame(address)?;
        let at = Place { frame, offset, len };
        match self.attempt(&vcpu.vm, Access::Guest, at, write)? {
            Ok(value) => Some(value),
            Err(refusal) => self.insist(vcpu, at, write, refusal),
        }
    }

    #[inline(always)]
    fn attempt(
        &self,
        vm: &Vm,
        access: Access,
        at: Place,
        write: Option<u64>,
    ) -> Option<Result<u64, Refusal>> {
        let Place { frame, offset, len } = at;
        match write {
            Some(value) => self.write(vm, access, at, value),
            // It moves nothing: there is nobody to tell.
            None => {
                let vgic = self.vgic.lock();
                Some(vgic.as_ref()?.mmio_read(access, frame, offset, len))
            }
        }
    }

    #[inline(never)]
    fn write(
        &self,
        vm: &Vm,
        access: Access,
        at: Place,
        value: u64,
    ) -> Option<Result<u64, Refusal>> {
        let Place { frame, offset, len } = at;
        let written = self.with(vm, |vgic| {
            match vgic.mmio_write(access, frame, offset, len, value) {
                Ok(kicks) => (Ok(0), kicks),
                Err(refusal) => (Err(refusal), Kicks::NONE),
            }
        })?;
        if written.is_ok() {
            super::its::begin_lpis(vm, frame);
        }
        Some(written)
    }

    /// An access that was refused: again, once the vCPUs that are in its way were asked. After some
    /// attempts, what the books say is the answer.
    #[cold]
    #[inline(never)]
    fn insist(
        &self,
        vcpu: &Vcpu,
        at: Place,
        write: Option<u64>,
        mut refusal: Refusal,
    ) -> Option<u64> {
        for attempt in 1..=16 {
            let Refusal::NeedsSync(vcpus) = refusal else {
                break;
            };
            self.sync_vcpus(vcpu, vcpus);
            let access = if attempt < 8 {
                Access::Guest
            } else {
                Access::GuestStale
            };
            match self.attempt(&vcpu.vm, access, at, write)? {
                Ok(value) => return Some(value),
                Err(again) => refusal = again,
            }
        }
        Some(0)
    }

    /// Takes back the list registers of some vCPUs: this one here, others by putting them.
    fn sync_vcpus(&self, me: &Vcpu, vcpus: umbra_vgic::VcpuSet) {
        for index in vcpus.iter() {
            if index == me.index() {
                let kicks = loaded::sync_interface(me, &mut me.hw.lock());
                deliver(&me.vm, kicks);
                me.kick(request::GIC);
            } else if let Some(other) = me.vm.vcpu(index) {
                loaded::put(&other);
            }
        }
    }

    /// The GIC frame that `address` lies in, and the offset.
    fn frame(&self, address: u64) -> Option<(Frame, u32)> {
        self.layout.lock().placement.frame(Ipa::new(address))
    }

    /// A write to ICC_SGI1R_EL1 and its kin.
    pub(super) fn sgi(&self, vcpu: &Vcpu, register: SgiRegister, value: u64) {
        self.with(&vcpu.vm, |vgic| {
            ((), vgic.sgi(vcpu.index(), register, value))
        });
    }

    /// A trapped write to ICC_DIR_EL1.
    pub(super) fn deactivate(&self, vcpu: &Vcpu, intid: u32) {
        for _ in 0..16 {
            let result = self.with(&vcpu.vm, |vgic| {
                match vgic.deactivate(vcpu.index(), intid) {
                    Ok(kicks) => (Ok(()), kicks),
                    Err(refusal) => (Err(refusal), Kicks::NONE),
                }
            });
            match result {
                Some(Err(Refusal::NeedsSync(vcpus))) => self.sync_vcpus(vcpu, vcpus),
                _ => return,
            }
        }
    }

    /// KVM_IRQ_LINE. `ENXIO`: the GIC is the VMM's, or the pin of a vCPU is the GIC's; `EBUSY`: it is not initialised;
    /// `EINVAL`: no such line, or no such vCPU.
    pub(super) fn irq_line(&self, vm: &Vm, line: &IrqLevel) -> Result<(), Errno> {
        let level = line.level != 0;
        // In Linux's order: whose GIC it is, then whether there is such a line.
        let of_cpu = IrqLine::is_of_cpu(line.irq).ok_or(Errno::EINVAL)?;
        if of_cpu == self.layout.lock().created {
            return Err(Errno::ENXIO);
        }
        if !of_cpu && !self.is_initialised() {
            return Err(Errno::EBUSY);
        }
        match abi(IrqLine::parse(line.irq))? {
            IrqLine::Cpu { vcpu, pin } => self.cpu_line(vm, vcpu, pin == 1, level),
            IrqLine::Spi { intid } => self.set_level(vm, 0, intid.into(), level),
            IrqLine::Ppi { vcpu, intid } => {
                let vcpus = vm.all_vcpus();
                let vcpu = vcpus.iter().find(|one| one.id == vcpu);
                let vcpu = vcpu.ok_or(Errno::EINVAL)?;
                self.set_level(vm, vcpu.index(), intid.into(), level)
            }
        }
    }

    /// The line of a device of umbra's own. No lock of the ladder from `vgic` on may be held.
    pub(super) fn set_line(&self, vm: &Vm, vcpu: usize, intid: u32, level: bool) {
        // A line that is not there is nobody's to hear of.
        let _ = self.set_level(vm, vcpu, intid, level);
    }

    /// The IRQ or FIQ pin of a vCPU, which a GIC of the VMM's drives. `EINVAL`: no such vCPU.
    fn cpu_line(&self, vm: &Vm, id: u32, is_fiq: bool, level: bool) -> Result<(), Errno> {
        let vcpus = vm.all_vcpus();
        let vcpu = vcpus.iter().find(|vcpu| vcpu.id == id);
        let vcpu = vcpu.ok_or(Errno::EINVAL)?;
        let bit = if is_fiq { 1 << 6 } else { 1 << 7 };
        if level {
            vcpu.lines.fetch_or(bit, Ordering::SeqCst);
        } else {
            vcpu.lines.fetch_and(!bit, Ordering::SeqCst);
        }
        vcpu.kick(request::GIC);
        Ok(())
    }

    fn set_level(&self, vm: &Vm, vcpu: usize, intid: u32, level: bool) -> Result<(), Errno> {
        events::line(vm, vcpu, intid, level);
        self.with(vm, |vgic| match vgic.set_level(vcpu, intid, level) {
            Ok(kicks) => (Ok(()), kicks),
            Err(_) => (Err(Errno::EINVAL), Kicks::NONE),
        })
        .unwrap_or(Err(Errno::ENXIO))
    }
}

/// Makes vCPUs look at their interrupts. No lock may be held.
pub(super) fn deliver(vm: &Vm, kicks: Kicks) {
    if vm.gic.resamples.load(Ordering::Acquire) {
        vm.gic.resample(vm);
    }
    for index in kicks.iter() {
        if let Some(vcpu) = vm.vcpu(index) {
            vcpu.kick(request::GIC);
        }
    }
}

/// An irqfd: an event descriptor that raises an SPI.
struct IrqSink {
    vm: Weak<Vm>,
    gsi: u32,
    event: Arc<EventFd>,
    /// The SPI is a level: it stays high until the guest has ended it, which is told here.
    resample: Option<Arc<EventFd>>,
}

impl EventSink for IrqSink {
    fn signalled(&self) {
        let Some(vm) = self.vm.upgrade() else { return };
        self.event.take();
        match vm.routes.of(self.gsi) {
            Some(Route::Pin { pin }) => {
                let intid = pin + umbra_vgic::FIRST_SPI;
                if self.resample.is_some() {
                    let _ = vm.gic.set_level(&vm, 0, intid, true);
                    return;
                }
                events::line(&vm, 0, intid, true);
                vm.gic.with(&vm, |vgic| {
                    ((), vgic.inject_edge(0, intid).unwrap_or(Kicks::NONE))
                });
            }
            Some(Route::Msi(msi)) => {
                // What the guest does not take is lost, as a device's message is.
                let _ = vm.itses.message(&vm, &msi);
            }
            None => {}
        }
    }
}

impl Gic {
    /// Levels of irqfds that the guest has ended: they fall, and whoever raised them is told.
    fn resample(&self, vm: &Vm) {
        let ended = match self.vgic.lock().as_mut() {
            Some(vgic) => vgic.take_eois(),
            None => return,
        };
        if ended.is_empty() {
            return;
        }
        let sinks = self.irqfds.lock().clone();
        for sink in sinks {
            let (Some(told), Some(Route::Pin { pin })) = (&sink.resample, vm.routes.of(sink.gsi))
            else {
                continue;
            };
            let intid = pin + umbra_vgic::FIRST_SPI;
            if ended.contains(intid) {
                let _ = self.set_level(vm, 0, intid, false);
                told.signal(1);
            }
        }
    }

    /// Whether a sink wants to be told of the ends of its SPI.
    fn notify_ends(&self, vm: &Vm, gsi: u32) {
        if let Some(Route::Pin { pin }) = vm.routes.of(gsi) {
            self.resamples.store(true, Ordering::Release);
            self.with(vm, |vgic| {
                let kicks = vgic.set_notify_eoi(pin + umbra_vgic::FIRST_SPI, true);
                ((), kicks.unwrap_or(Kicks::NONE))
            });
        }
    }
}

/// Irqfds that a VM may have: as many as it may have GSIs.
const MOST_IRQFDS: usize = super::routing::MAX_ROUTES as usize;

/// KVM_IRQFD. `ENOMEM`: too many.
pub(super) fn irqfd(vm: &Arc<Vm>, call: &Call<'_>, request: &IrqFd) -> Result<(), Errno> {
    const DEASSIGN: u32 = KVM_IRQFD_FLAG_DEASSIGN;
    if request.flags & !(DEASSIGN | KVM_IRQFD_FLAG_RESAMPLE) != 0 {
        return Err(Errno::EINVAL);
    }
    let eventfd = |fd| {
        let file: Arc<dyn core::any::Any + Send + Sync> = call.process.file(fd)?;
        file.downcast::<EventFd>().map_err(|_| Errno::EINVAL)
    };
    let event = eventfd(request.fd)?;
    if request.flags & DEASSIGN != 0 {
        let mut sinks = vm.gic.irqfds.lock();
        sinks.retain(|sink| !(sink.gsi == request.gsi && Arc::ptr_eq(&sink.event, &event)));
        return Ok(());
    }
    if !vm.gic.layout.lock().created {
        return Err(Errno::EAGAIN);
    }
    let resamples = request.flags & KVM_IRQFD_FLAG_RESAMPLE != 0;
    let resample = resamples.then(|| eventfd(request.resamplefd)).transpose()?;
    let sink = Arc::new(IrqSink {
        vm: Arc::downgrade(vm),
        gsi: request.gsi,
        event: event.clone(),
        resample,
    });
    let listener: Arc<dyn EventSink> = sink.clone();
    {
        let mut sinks = vm.gic.irqfds.lock();
        let room = sinks.try_reserve(1);
        if sinks.len() >= MOST_IRQFDS || room.is_err() {
            return Err(Errno::ENOMEM);
        }
    }
    event.watch(&listener)?;
    // There is room, or little is missing: others may have taken it meanwhile.
    vm.gic.irqfds.lock().push(sink);
    if resamples {
        vm.gic.notify_ends(vm, request.gsi);
    }
    Ok(())
}
