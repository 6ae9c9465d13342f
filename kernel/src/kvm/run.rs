//! KVM_RUN: the loop between the guest and everything that wants something of it.
//!
//! ```text
//!   signal, immediate_exit ──► return EINTR
//!   power off ──► sleep until on
//!   load ─ requests ─ refresh interrupts ─► guest ─► exit ─┬─ handled: again, nothing switched
//!                                                          ├─ interrupt: poll, perhaps another thread
//!                                                          └─ for the VMM: run page, return 0
//! ```

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use umbra_abort::World;
use umbra_arm64::Hva;
use umbra_arm64::sysreg::SysReg;
use umbra_hw::guest::{self, Exit};
use umbra_hw::{HCR_AMO, HCR_API, HCR_APK, HCR_E2H, HCR_FMO, HCR_IMO, HCR_RW};
use umbra_kvm_abi::exit::Exit as VmmExit;
use umbra_kvm_abi::run::{self as run_page, RunPage};
use umbra_kvm_abi::vcpu::{KVM_ARM_VCPU_PTRAUTH_ADDRESS, Power, VcpuFeatures};
use umbra_linux::Errno;

use super::vcpu::{State, Vcpu, request};
use super::{
    debug, device, events, exit, inject, loaded, mmio, nested, onereg, pmu, pvtime, timer,
    user_lines,
};
use crate::file::Call;
use crate::mm::SharedPages;
use crate::{irq, sched, trace};

/// What handling an exit came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Run the guest on.
    Guest,
    /// Take the physical interrupt.
    Interrupt,
    /// Wait for an interrupt (WFI).
    Wait,
    /// Leave to the VMM.
    Vmm(VmmExit),
    /// The page of the VMM that the guest wanted is known to be bad: SIGBUS, as on Linux.
    BusError(Hva),
    /// Leave to the VMM with an error.
    Fail(Errno),
}

/// HCR_EL2 of a guest: everything that is not the guest's own to decide traps or is fixed. At virtual
/// EL2, FEAT_NV2 and traps of what it says of translation come on top. `ctr` is the CTR_EL0 that the
/// guest sees.
pub(super) fn hcr(features: VcpuFeatures, world: World, ctr: u64) -> u64 {
    const VM: u64 = 1 << 0;
    const SWIO: u64 = 1 << 1;
    const PTW: u64 = 1 << 2;
    const FB: u64 = 1 << 9;
    const BSU_IS: u64 = 1 << 10;
    const TWI: u64 = 1 << 13;
    const TID1: u64 = 1 << 16;
    const TID3: u64 = 1 << 18;
    const TSC: u64 = 1 << 19;
    const TIDCP: u64 = 1 << 20;
    const TACR: u64 = 1 << 21;
    const TSW: u64 = 1 << 22;
    const TLOR: u64 = 1 << 35;
    const TERR: u64 = 1 << 36;
    const TEA: u64 = 1 << 37;
    const FWB: u64 = 1 << 46;
    const TID5: u64 = 1 << 58;
    let mut hcr = VM
        | SWIO
        | PTW
        | FB
        | BSU_IS
        | TWI
        | TID1
        | cache_traps(ctr)
        | TID3
        | TSC
        | TIDCP
        | TACR
        | TSW
        | TLOR
        | TID5;
    hcr |= FWB | HCR_E2H | HCR_RW | HCR_IMO | HCR_FMO | HCR_AMO;
    if super::vcpu::has_ras() {
        hcr |= TEA | TERR;
    }
    if world == World::VirtualEl2 {
        const TTLB: u64 = 1 << 25;
        const NV: u64 = 1 << 42;
        const AT: u64 = 1 << 44;
        const NV2: u64 = 1 << 45;
        hcr |= TTLB | NV | AT | NV2;
    }
    if features.has(KVM_ARM_VCPU_PTRAUTH_ADDRESS) {
        hcr |= HCR_API | HCR_APK;
    }
    hcr
}

/// Traps of the cache's description, which is made up. With FEAT_EVT CTR_EL0 itself need not trap as
/// long as it is the machine's: Linux reads it more than a hundred thousand times while it boots.
fn cache_traps(ctr: u64) -> u64 {
    const TID2: u64 = 1 << 17;
    const TID4: u64 = 1 << 49;
    let has_evt = umbra_hw::idregs::read(7, 2) >> 56 & 0xf != 0;
    if has_evt && ctr == umbra_hw::idregs::ctr() {
        TID4
    } else {
        TID2
    }
}

impl RunPage for SharedPages {
    fn load_u8(&self, offset: usize) -> u8 {
        let mut bytes = [0];
        self.read(offset, &mut bytes);
        bytes[0]
    }
    fn load_u32(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }
    fn load_u64(&self, offset: usize) -> u64 {
        let mut bytes = [0; 8];
        self.read(offset, &mut bytes);
        u64::from_le_bytes(bytes)
    }
    fn store_u8(&self, offset: usize, value: u8) {
        self.write(offset, &[value]);
    }
    fn store_u32(&self, offset: usize, value: u32) {
        self.write(offset, &value.to_le_bytes());
    }
    fn store_u64(&self, offset: usize, value: u64) {
        self.write(offset, &value.to_le_bytes());
    }
}

/// The ioctl. `ENOEXEC`: not initialised; the first time, `ENXIO`, `EINVAL`, `EBUSY`: the GIC is not ready; `EINTR`: a signal, or `immediate_exit`.
pub(super) fn run(vcpu: &Arc<Vcpu>, call: &Call<'_>) -> Result<u64, Errno> {
    let Some(mut state) = vcpu.state.lock_unless(|| call.thread.signal_pending()) else {
        return Err(Errno::EINTR);
    };
    if state.init.is_none() {
        return Err(Errno::ENOEXEC);
    }
    if !state.started {
        onereg::adopt_id_regs(vcpu, &mut state);
        state.has_gic = vcpu.vm.gic.layout.lock().created;
        tell_of_gic(vcpu, &mut state);
        device::check_before_run(&vcpu.vm)?;
        pmu::check(vcpu, &mut state)?;
        settle_timers(vcpu, &state)?;
        vcpu.hw.lock().settle_traps(&mut state);
        state.started = true;
    }
    let page = &*vcpu.page;
    if page.is_bad() {
        // Nothing can be told through it any more; the VM's other vCPUs go on.
        return Err(Errno::EHWPOISON);
    }
    loaded::load(vcpu);
    if !nested::arrive(vcpu, &mut state) {
        return Err(Errno::ENOMEM);
    }
    debug::arm(&vcpu.hw.lock(), &mut state);
    let State { debug, frame, .. } = &mut *state;
    debug.begin(frame);
    mmio::complete(&mut state, page);
    if run_page::immediate_exit(page) {
        let State { debug, frame, .. } = &mut *state;
        debug.end(frame);
        return Err(Errno::EINTR);
    }
    let outside = state.signal_mask.map(|mask| call.thread.replace_mask(mask));
    vcpu.stats.begin(state.world);
    let result = turns(vcpu, &mut state, call);
    vcpu.stats.end();
    if let Some(mask) = outside {
        call.thread.replace_mask(mask);
    }
    vcpu.leave_el0();
    let State { debug, frame, .. } = &mut *state;
    debug.end(frame);
    if !state.has_gic {
        user_lines::show(vcpu, &state);
    }
    let thread = call.thread.tid as u64;
    match result {
        Next::Vmm(exit) => {
            events::leave(vcpu, &state, thread, Ok(&exit));
            exit.write_to(page);
            match exit {
                VmmExit::Intr => Err(Errno::EINTR),
                // As on Linux: the exit says where, the error that it is one.
                VmmExit::MemoryFault { .. } => Err(Errno::EFAULT),
                _ => Ok(0),
            }
        }
        Next::Fail(errno) => {
            events::leave(vcpu, &state, thread, Err(errno));
            Err(errno)
        }
        Next::Guest | Next::Interrupt | Next::Wait | Next::BusError(_) => {
            unreachable!("the loop ends for the VMM only")
        }
    }
}

/// The interrupts of the timers become what they stay. `EINVAL`: two of a vCPU's devices share one.
fn settle_timers(vcpu: &Vcpu, state: &State) -> Result<(), Errno> {
    let vm = &vcpu.vm;
    if !state.has_gic {
        return Ok(());
    }
    let nested = vm.is_nested();
    let maintenance = vm.gic.layout.lock().maintenance();
    let pmu = state.pmu.as_ref().and_then(|pmu| pmu.irq());
    let ppis = vm
        .time
        .settle(nested, &[pmu, nested.then_some(maintenance)])?;
    {
        let mut hw = vcpu.hw.lock();
        hw.ppis = ppis;
        hw.maintenance_ppi = maintenance;
    }
    vm.gic.relink_timers(vcpu);
    Ok(())
}

/// The ID registers show a GIC where there is one, whatever the VMM wrote. In a VM without a GIC in the
/// kernel the CPU interface's registers trap and are undefined (ICH_HCR_EL2.TC, TALL0, TALL1).
fn tell_of_gic(vcpu: &Vcpu, state: &mut State) {
    const GIC: u64 = 0xf << 24;
    const GICV3: u64 = 1 << 24;
    let is_there = vcpu.vm.gic.is_initialised();
    let shown = state.id_regs.get(SysReg::ID_AA64PFR0_EL1) & !GIC;
    let told = if is_there { GICV3 } else { 0 };
    state.id_regs.set(SysReg::ID_AA64PFR0_EL1, shown | told);
    state.features = state.id_regs.features();
    if !is_there {
        vcpu.hw.lock().ich_hcr = 1 << 10 | 1 << 11 | 1 << 12;
    }
}

fn turns(vcpu: &Arc<Vcpu>, state: &mut State, call: &Call<'_>) -> Next {
    loop {
        if call.thread.signal_pending() {
            vcpu.stats.signals.count();
            return Next::Vmm(VmmExit::Intr);
        }
        match powered(vcpu, state, call) {
            Powered::On => {}
            Powered::Interrupted => return Next::Vmm(VmmExit::Intr),
        }
        loaded::load(vcpu);
        if !state.has_gic && user_lines::changed(vcpu, state) {
            return Next::Vmm(VmmExit::Intr);
        }
        inject::pending(vcpu, state);
        pvtime::update(vcpu, state);
        // An abort for virtual EL2 changes what has to be loaded.
        loaded::load(vcpu);
        match enter(vcpu, state, call) {
            Next::Guest => {}
            Next::Interrupt => {
                irq::poll();
                if sched::preempt_due() {
                    vcpu.leave_el0();
                    sched::yield_now();
                }
            }
            Next::Wait if has_virtual(vcpu, state) => {}
            Next::Wait => {
                vcpu.stats.end();
                let since = sched::now();
                wait(vcpu, call);
                vcpu.stats.waited(sched::now().saturating_sub(since));
                vcpu.stats.begin(state.world);
            }
            // The page's address, as on Linux.
            Next::BusError(at) => call.thread.memory_error(at.align_down(4096)),
            leave @ (Next::Vmm(_) | Next::Fail(_)) => return leave,
        }
    }
}

/// Whether something virtual ends a wait, masked or not: an SError, or an interrupt that a guest hypervisor
/// has for what it runs.
fn has_virtual(vcpu: &Vcpu, state: &State) -> bool {
    const VIRTUAL: u64 = guest::HCR_VSE | 0b11 << 6;
    state.hcr & VIRTUAL != 0 || state.world == World::Nested && nested::waits_below(&vcpu.hw.lock())
}

/// Runs the guest until something that is not its own to handle here in this loop.
fn enter(vcpu: &Arc<Vcpu>, state: &mut State, call: &Call<'_>) -> Next {
    vcpu.hw.lock().regs.hw.load_el0();
    loaded::interface_on(vcpu);
    let mark = umbra_hw::cpu() + 1;
    let mut saves = guest::saves();
    // The thread does not leave this CPU in here.
    let asked = sched::asked();
    let traced = trace::is_on();
    loop {
        // From here on a kick interrupts this CPU, and the interrupt is pending at ERET.
        vcpu.running_on.store(mark, Ordering::SeqCst);
        if vcpu.has_requests() {
            let requests = vcpu.take_requests();
            if requests & request::POWER != 0 {
                vcpu.running_on.store(0, Ordering::SeqCst);
                vcpu.kick(requests & !request::POWER);
                return Next::Guest;
            }
            if vcpu.vm.gic.refresh(vcpu) {
                vcpu.running_on.store(0, Ordering::SeqCst);
                nested::take(vcpu, state, nested::Exception::Irq);
                return Next::Guest;
            }
        }
        if call.thread.signal_pending() {
            vcpu.running_on.store(0, Ordering::SeqCst);
            return Next::Guest;
        }
        // Somebody was woken for this CPU while the kernel worked: no timer will say so.
        if asked.load(Ordering::Acquire) {
            vcpu.running_on.store(0, Ordering::SeqCst);
            return Next::Interrupt;
        }
        let world = state.world;
        let watch = |frame: &guest::Frame, cause: Option<guest::Cause>| {
            if traced {
                events::edge(vcpu, world, frame, cause);
            }
        };
        let hcr = state.hcr | vcpu.lines.load(Ordering::SeqCst);
        let exit = guest::run(
            &mut state.frame,
            hcr,
            &mut state.fp,
            state.debug.loaded(),
            pmu::for_entry(&mut state.pmu),
            watch,
        );
        vcpu.stats.exit(state.world, &exit);
        vcpu.running_on.store(0, Ordering::SeqCst);
        pmu::collect(vcpu, state);
        inject::collect_serror(vcpu, state);
        timer::resample(vcpu);
        let next = match exit {
            Exit::Irq => {
                if state.world == World::VirtualEl2 {
                    vcpu.vm.gic.settle_maintenance(vcpu);
                }
                Next::Interrupt
            }
            Exit::SError { esr } => exit::serror(vcpu, state, esr),
            Exit::Sync { esr, far, hpfar } => exit::sync(vcpu, state, esr, far, hpfar),
        };
        if next != Next::Guest {
            return next;
        }
        // Putting the registers away in between (another CPU asked) means loading them again. Only
        // this CPU does that, and the thread does not leave it in here.
        if guest::saves() != saves {
            saves = guest::saves();
            if !vcpu.hw.lock().regs.hw.is_loaded_here() {
                return next;
            }
        }
    }
}

enum Powered {
    On,
    Interrupted,
}

/// Sleeps while the vCPU is off; begins where PSCI said once it is on.
fn powered(vcpu: &Arc<Vcpu>, state: &mut State, call: &Call<'_>) -> Powered {
    let mut slept = false;
    loop {
        let (power, start) = {
            let mut power = vcpu.power.lock();
            (power.power, power.start.take())
        };
        if power == Power::Runnable {
            if let Some(start) = start {
                vcpu.start_at(state, start);
            }
            if slept {
                vcpu.kick(request::GIC);
            }
            return Powered::On;
        }
        if let Some(start) = start {
            vcpu.power.lock().start = Some(start);
        }
        if call.thread.signal_pending() {
            return Powered::Interrupted;
        }
        slept = true;
        vcpu.leave_el0();
        vcpu.set_blocked(true);
        if vcpu.take_requests() & request::POWER == 0 && !call.thread.signal_pending() {
            vcpu.stats.end();
            sched::park(None);
            vcpu.stats.begin(state.world);
        }
        vcpu.set_blocked(false);
        irq::poll();
    }
}

/// WFI: sleeps until an interrupt waits for the vCPU.
fn wait(vcpu: &Arc<Vcpu>, call: &Call<'_>) {
    loop {
        loaded::load(vcpu);
        vcpu.set_blocked(true);
        // Whatever is asked from here on either shows below or unparks.
        let requests = vcpu.take_requests();
        if requests & request::POWER != 0 {
            vcpu.kick(request::POWER);
        }
        let ready = requests & request::POWER != 0
            || call.thread.signal_pending()
            || vcpu.vm.gic.has_pending(vcpu);
        if ready {
            vcpu.set_blocked(false);
            vcpu.kick(request::GIC);
            return;
        }
        let deadline = timer::deadline(vcpu, &vcpu.hw.lock());
        vcpu.leave_el0();
        let since = umbra_hw::timer::ticks();
        sched::park(deadline);
        events::woken(vcpu, since);
        vcpu.set_blocked(false);
    }
}
