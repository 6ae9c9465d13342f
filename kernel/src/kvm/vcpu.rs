//! One virtual CPU: its state, who may touch it when, and its ioctls.
//!
//! Three parts with three owners. [`State`] belongs to whoever holds the mutex: a thread in an ioctl,
//! for as long as KVM_RUN lasts. [`Hw`] is what may be loaded in a CPU's registers; its lock is held
//! for moments, by the runner or by a CPU that puts it away (`loaded`). The rest is atomics that
//! anybody may set to make the vCPU look: a *kick*.

use alloc::sync::{Arc, Weak};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use umbra_abort::World;
use umbra_arm64::idreg::IdRegs;
use umbra_arm64::sysreg::{Features, Identity, SysReg};
use umbra_hw::fp::FpState;
use umbra_hw::guest::{Frame, HwPstate};
use umbra_hw::sabotage::{Safeguard, left_out};
use umbra_hw::sync::SpinLock;
use umbra_kvm_abi::Ioctl;
use umbra_kvm_abi::device::DeviceAttr;
use umbra_kvm_abi::ioctl;
use umbra_kvm_abi::reg::OneReg;
use umbra_kvm_abi::vcpu::{
    GuestDebug, KVM_ARM_VCPU_HAS_EL2, KVM_ARM_VCPU_PMU_V3, KVM_ARM_VCPU_POWER_OFF,
    KVM_ARM_VCPU_PSCI_0_2, KVM_ARM_VCPU_PTRAUTH_ADDRESS, KVM_ARM_VCPU_PTRAUTH_GENERIC, MpState,
    Power, SignalMask, VcpuEvents, VcpuFeatures, VcpuInit,
};
use umbra_linux::Errno;
use umbra_nested::route::{Masks, Own};
use umbra_nested::shadow::ContextId;
use umbra_vgic::{CpuIf, LrFile};

use super::mmio::PendingMmio;
use super::regs::Registers;
use super::stats::{StatsFile, VcpuStats};
use super::time::Ppis;
use super::timer::Shifted;
use super::vm::{Open, Vm, abi};
use super::{loaded, read_struct, run, system, write_struct};
use crate::file::{Call, File};
use crate::mm::{Mm, Object, SharedPages};
use crate::sched::{self, Alarm, Due, Mutex, Thread};

/// What a kick asks a vCPU to look at.
pub(super) mod request {
    /// Interrupts or timers changed: recompute the list registers.
    pub(in crate::kvm) const GIC: u32 = 1 << 0;
    /// The power state changed.
    pub(in crate::kvm) const POWER: u32 = 1 << 1;
}

/// Whether the machine has pointer authentication, of addresses and generic by the same algorithm.
pub(super) fn has_pauth() -> bool {
    umbra_hw::pauth::is_there()
}

/// Whether the machine has FEAT_NV2.
pub(super) fn has_nv2() -> bool {
    umbra_hw::idregs::read(7, 2) >> 24 & 0xf >= 2
}

/// Whether the machine has FEAT_RAS.
pub(super) fn has_ras() -> bool {
    umbra_hw::idregs::read(4, 0) >> 28 & 0xf != 0
}

/// MPIDR_EL1 of vCPU `id`: sixteen to a cluster, as Linux has it.
fn usual_mpidr(id: u32) -> u64 {
    let id = u64::from(id);
    1 << 31 | id & 0xf | (id >> 4 & 0xff) << 8 | (id >> 12 & 0xff) << 16
}

/// What belongs to the thread that runs the vCPU or changes it.
pub(super) struct State {
    pub(super) frame: Frame,
    pub(super) fp: FpState,
    /// What KVM_ARM_VCPU_INIT was last called with.
    pub(super) init: Option<VcpuFeatures>,
    pub(super) id_regs: IdRegs,
    pub(super) features: Features,
    /// An MMIO access that the VMM is answering.
    pub(super) pending_mmio: Option<PendingMmio>,
    /// KVM_SET_VCPU_EVENTS asked for an external abort, with the address of the last fault.
    pub(super) pending_abort: bool,
    pub(super) debug: super::debug::Debug,
    /// Its performance counters, if the VMM asked for them.
    pub(super) pmu: Option<alloc::boxed::Box<super::pmu::VcpuPmu>>,
    /// Where the guest finds how much time was stolen from it.
    pub(super) stolen: Option<super::pvtime::StolenTime>,
    /// PC when the tables were last dropped because hardware's walk of them failed.
    pub(super) dropped_at: Option<u64>,
    /// A PSTATE of the VMM's that is one of the other world's: the vCPU goes there when it is run next.
    pub(super) arrival: Option<u64>,
    /// How often a root of tables had been replaced when this vCPU last looked (`sea::follow`).
    pub(super) roots_replaced: u64,
    /// The abort that the last exit told the VMM of, until the guest runs on.
    pub(super) told: Option<super::sea::Told>,
    /// A pending virtual SError and its syndrome.
    pub(super) pending_serror: Option<Option<u32>>,
    /// FAR of the last abort that left to the VMM.
    pub(super) last_far: u64,
    /// HCR_EL2 while this vCPU runs.
    pub(super) hcr: u64,
    /// Which storey runs.
    pub(super) world: World,
    /// The VM has a GIC; else the VMM has one, and hears of the timers in the run page.
    pub(super) has_gic: bool,
    /// What only the first KVM_RUN looks at is in order.
    pub(super) started: bool,
    /// KVM_SET_SIGNAL_MASK: what is blocked during KVM_RUN, bit n - 1 for signal n.
    pub(super) signal_mask: Option<u64>,
}

/// What may be in a CPU's registers.
pub(super) struct Hw {
    pub(super) regs: Registers,
    pub(super) lrs: LrFile,
    pub(super) cpuif: CpuIf,
    /// ICH_HCR_EL2 as it should stand while the guest runs.
    pub(super) ich_hcr: u64,
    /// MIDR_EL1 as the guest sees it.
    pub(super) midr: u64,
    /// CNTVOFF_EL2 it was last loaded with.
    pub(super) cntvoff: u64,
    /// The physical timer, if its counter is not the machine's.
    pub(super) shifted: Shifted,
    /// The timers' interrupts.
    pub(super) ppis: Ppis,
    /// How often it was put away.
    pub(super) puts: u64,
    /// At virtual EL2, or at EL0 under its TGE: the EL1 registers in hardware are EL2's.
    pub(super) virtual_el2: bool,
    /// The vCPU has a virtual EL2.
    pub(super) nested: bool,
    /// The shadow context that is in use.
    pub(super) shadow: Option<ContextId>,
    /// The list registers of a guest hypervisor, if they are in hardware.
    pub(super) below: super::nested::Below,
    /// The line of a guest hypervisor's maintenance interrupt, as its GIC was last told.
    pub(super) maintenance: bool,
    /// That interrupt, 16 to 31.
    pub(super) maintenance_ppi: u32,
    /// Which controls a guest hypervisor has.
    pub(super) masks: Masks,
    /// What umbra traps: of a plain guest or what a guest hypervisor runs, and of virtual EL2.
    pub(super) own: [Own; 2],
    /// VTTBR_EL2 for what runs.
    pub(super) vttbr: u64,
    /// Where VNCR_EL2 points instead of at the registers, in a test of memory errors.
    pub(super) vncr_at: Option<u64>,
}

impl Hw {
    /// What a guest hypervisor runs is what runs.
    pub(super) fn is_below(&self) -> bool {
        self.nested && !self.virtual_el2
    }

    /// Works out what follows from the ID registers, which change no more once the vCPU runs.
    pub(super) fn settle_traps(&mut self, state: &mut State) {
        let ctr = state.id_regs.get(SysReg::CTR_EL0);
        self.masks = Masks::of(&state.id_regs);
        self.midr = state.id_regs.get(SysReg::MIDR_EL1);
        let has_mops = state.id_regs.field(SysReg::ID_AA64ISAR2_EL1, 16) != 0;
        self.own = super::nested::own(state.init.unwrap_or_default(), ctr, has_mops);
        state.hcr = super::nested::wishes(self).hcr;
    }
}

/// A start that PSCI or a reset asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Start {
    pub(super) entry: u64,
    pub(super) context: u64,
    pub(super) big_endian: bool,
}

/// Whether the vCPU is on, and where it begins.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PowerState {
    pub(super) power: Power,
    pub(super) start: Option<Start>,
}

/// A virtual CPU.
pub(super) struct Vcpu {
    pub(super) vm: Arc<Vm>,
    pub(super) id: u32,
    /// Its place in the VM's list.
    index: usize,
    mpidr: AtomicU64,
    pub(super) page: Arc<SharedPages>,
    pub(super) state: Mutex<State>,
    pub(super) hw: SpinLock<Hw>,
    pub(super) power: SpinLock<PowerState>,
    pub(super) stats: VcpuStats,
    requests: AtomicU32,
    /// CPU + 1 while the run loop is past its last look at the requests.
    pub(super) running_on: AtomicUsize,
    /// HCR_EL2.VI and VF: the lines of a GIC that the VMM has.
    pub(super) lines: AtomicU64,
    blocked: AtomicBool,
    runner: SpinLock<Option<Arc<Thread>>>,
    /// Timer lines that were high when the list registers were made: a bit per PPI.
    pub(super) timers_high: AtomicU32,
    /// The alarm for timers that no hardware watches, and when it goes off.
    alarm: SpinLock<Option<(u64, Alarm)>>,
    me: Weak<Vcpu>,
}

impl Due for Vcpu {
    fn due(self: Arc<Self>) {
        *self.alarm.lock() = None;
        self.kick(request::GIC);
    }
}

impl Vcpu {
    /// A vCPU that was not initialised. `ENOMEM`.
    pub(super) fn new(vm: &Arc<Vm>, id: u32, index: usize) -> Result<Arc<Self>, Errno> {
        crate::mem::top_up();
        let page = SharedPages::before(1, Some(vm.coalesced.ring.clone())).ok_or(Errno::ENOMEM)?;
        Ok(Arc::new_cyclic(|me| Self {
            me: me.clone(),
            timers_high: AtomicU32::new(0),
            alarm: SpinLock::new("vcpu alarm", 117, None),
            vm: vm.clone(),
            id,
            index,
            mpidr: AtomicU64::new(usual_mpidr(id)),
            page,
            state: Mutex::new(State {
                frame: Frame::default(),
                fp: FpState::default(),
                init: None,
                id_regs: IdRegs::default(),
                features: Features::default(),
                pending_mmio: None,
                pending_abort: false,
                told: None,
                debug: super::debug::Debug::default(),
                pmu: None,
                stolen: None,
                dropped_at: None,
                arrival: None,
                roots_replaced: 0,
                pending_serror: None,
                last_far: 0,
                hcr: 0,
                world: World::Plain,
                has_gic: false,
                started: false,
                signal_mask: None,
            }),
            hw: SpinLock::new(
                "vcpu hw",
                162,
                Hw {
                    regs: Registers::new(),
                    lrs: LrFile::EMPTY,
                    cpuif: CpuIf::default(),
                    ich_hcr: 0,
                    midr: umbra_hw::idregs::read(0, 0),
                    cntvoff: 0,
                    shifted: Shifted::default(),
                    ppis: Ppis::default(),
                    puts: 0,
                    virtual_el2: false,
                    nested: false,
                    shadow: None,
                    below: super::nested::Below::default(),
                    maintenance: false,
                    maintenance_ppi: super::gic::MAINTENANCE_PPI,
                    masks: Masks::default(),
                    own: <[Own; 2]>::default(),
                    vttbr: vm.vttbr(),
                    vncr_at: None,
                },
            ),
            power: SpinLock::new("vcpu power", 164, PowerState::default()),
            stats: VcpuStats::default(),
            requests: AtomicU32::new(0),
            running_on: AtomicUsize::new(0),
            lines: AtomicU64::new(0),
            blocked: AtomicBool::new(false),
            runner: SpinLock::new("vcpu runner", 118, None),
        }))
    }

    /// Its place in the VM's list.
    pub(super) fn index(&self) -> usize {
        self.index
    }

    /// MPIDR_EL1 as the guest sees it.
    pub(super) fn mpidr(&self) -> u64 {
        self.mpidr.load(Ordering::Acquire)
    }

    /// The VMM says what it is. `EINVAL` once the guest knows the vCPU by it, or if another of the GIC's has it.
    pub(super) fn set_mpidr(&self, mpidr: u64) -> Result<(), Errno> {
        if mpidr == self.mpidr() {
            return Ok(());
        }
        if self.vm.has_run() || !self.vm.gic.set_affinity(&self.vm, self.index, mpidr) {
            return Err(Errno::EINVAL);
        }
        self.mpidr.store(mpidr, Ordering::Release);
        Ok(())
    }

    /// Asks the vCPU to look at `what`, wherever it is.
    pub(super) fn kick(&self, what: u32) {
        self.requests.fetch_or(what, Ordering::SeqCst);
        if let Some(cpu) = self.running_on.load(Ordering::SeqCst).checked_sub(1)
            && !left_out(Safeguard::Kick)
        {
            sched::kick(cpu);
        }
        if self.blocked.load(Ordering::SeqCst) {
            let runner = self.runner.lock().clone();
            if let Some(runner) = runner {
                runner.unpark();
            }
        }
    }

    /// Lets the vCPU look at its timers at `at`, in nanoseconds, or at no special time.
    ///
    /// The alarm goes off on this CPU, which polls for interrupts: never between its making and the note of it.
    pub(super) fn set_alarm(&self, at: Option<u64>) {
        let old = {
            let mut alarm = self.alarm.lock();
            if alarm.as_ref().map(|(at, _)| *at) == at {
                return;
            }
            alarm.take()
        };
        if let Some((_, old)) = old {
            sched::cancel(old);
        }
        if let (Some(at), Some(me)) = (at, self.me.upgrade()) {
            let alarm = sched::alarm(at, me);
            *self.alarm.lock() = Some((at, alarm));
        }
    }

    /// Takes the requests.
    pub(super) fn take_requests(&self) -> u32 {
        self.requests.swap(0, Ordering::SeqCst)
    }

    /// Whether there is any.
    pub(super) fn has_requests(&self) -> bool {
        self.requests.load(Ordering::SeqCst) != 0
    }

    /// Declares that the runner is about to sleep, or awake again.
    pub(super) fn set_blocked(&self, blocked: bool) {
        if blocked {
            *self.runner.lock() = Some(sched::current());
        }
        self.blocked.store(blocked, Ordering::SeqCst);
        if !blocked {
            let runner = self.runner.lock().take();
            drop(runner);
        }
    }

    fn identity(&self, midr: u64) -> Identity {
        Identity {
            midr,
            mpidr: self.mpidr(),
        }
    }

    /// KVM_ARM_VCPU_INIT.
    fn init(self: &Arc<Self>, init: &VcpuInit) -> Result<u64, Errno> {
        let mut offer = VcpuFeatures::default()
            .with(KVM_ARM_VCPU_POWER_OFF)
            .with(KVM_ARM_VCPU_PSCI_0_2);
        if has_pauth() {
            offer = offer
                .with(KVM_ARM_VCPU_PTRAUTH_ADDRESS)
                .with(KVM_ARM_VCPU_PTRAUTH_GENERIC);
        }
        if umbra_hw::pmu::version() != 0 {
            offer = offer.with(KVM_ARM_VCPU_PMU_V3);
        }
        if has_nv2() {
            offer = offer.with(KVM_ARM_VCPU_HAS_EL2);
        }
        let features = abi(init.check(offer))?;
        if features.has(KVM_ARM_VCPU_HAS_EL2) && self.vm.time.is_set() {
            // EL2's counters have no offset (docs/abi.md).
            return Err(Errno::EINVAL);
        }
        let mut state = self.state.lock();
        {
            let mut options = self.vm.options.lock();
            let of_vm = *options.features.get_or_insert(features);
            if !of_vm.same_vcpu_as(features)
                || state
                    .init
                    .is_some_and(|before| !before.same_vcpu_as(features))
            {
                return Err(Errno::EINVAL);
            }
        }
        loaded::put(self);
        if state.init.is_none() {
            state.id_regs = super::sysreg::shown_id_regs(features);
            state.features = state.id_regs.features();
        }
        state.init = Some(features);
        self.reset(&mut state);
        let power = if features.has(KVM_ARM_VCPU_POWER_OFF) {
            Power::Stopped
        } else {
            Power::Runnable
        };
        *self.power.lock() = PowerState { power, start: None };
        Ok(0)
    }

    /// The architecture's warm reset of everything a guest can see.
    pub(super) fn reset(&self, state: &mut State) {
        state.frame = Frame::default();
        *state.fp.regs() = umbra_hw::fp::FpRegs::default();
        state.pending_mmio = None;
        state.pending_abort = false;
        state.told = None;
        state.pending_serror = None;
        state.arrival = None;
        let nested = state
            .init
            .is_some_and(|features| features.has(KVM_ARM_VCPU_HAS_EL2));
        state.world = if nested {
            World::VirtualEl2
        } else {
            World::Plain
        };
        let mut hw = self.hw.lock();
        hw.virtual_el2 = nested;
        hw.nested = nested;
        hw.settle_traps(state);
        hw.vttbr = self.vm.vttbr();
        hw.regs.reset(
            &self.identity(state.id_regs.get(SysReg::MIDR_EL1)),
            &state.features,
        );
        hw.shifted = Shifted::default();
        hw.cpuif = CpuIf::default();
        hw.maintenance = false;
        let left = hw.shadow.take();
        drop(hw);
        // What a guest hypervisor ran is no more.
        if let Some(left) = left {
            self.vm.memory.lock().shadows.release(left);
        }
        super::pmu::reset(self, state);
    }

    /// Begins at `start`, after a reset.
    pub(super) fn start_at(&self, state: &mut State, start: Start) {
        loaded::put(self);
        super::debug::around_reset(self, state, |state| {
            self.reset(state);
            state.frame.pc = start.entry;
            state.frame.x[0] = start.context;
            state.frame.set_pstate(HwPstate::EL1H_MASKED);
        });
        if start.big_endian {
            let mut hw = self.hw.lock();
            let sctlr = hw.regs.get(umbra_arm64::sysreg::Reg::SctlrEl1);
            hw.regs
                .set(umbra_arm64::sysreg::Reg::SctlrEl1, sctlr | 1 << 25);
        }
    }

    /// SP_EL0 and friends go back to memory: before EL0 or another thread runs here.
    pub(super) fn leave_el0(&self) {
        let mut hw = self.hw.lock();
        if hw.regs.hw.is_loaded_here() {
            hw.regs.hw.save_el0();
        }
    }
}

/// Reads a `struct kvm_signal_mask` and the set behind it. `EINVAL` for a set of another size.
fn read_signal_mask(mm: &Mm, arg: u64) -> Result<u64, Errno> {
    /// SIGKILL and SIGSTOP: nothing blocks them.
    const NEVER: u64 = 1 << 8 | 1 << 18;
    let head = read_struct::<SignalMask>(mm, arg)?;
    if head.len as usize != size_of::<u64>() {
        return Err(Errno::EINVAL);
    }
    let set = arg
        .checked_add(size_of::<SignalMask>() as u64)
        .ok_or(Errno::EFAULT)?;
    Ok(read_struct::<u64>(mm, set)? & !NEVER)
}

/// What Linux knows and refuses on arm64, where KVM_{GET,SET}_ONE_REG do all of it.
const REFUSED: [Ioctl; 7] = [
    ioctl::KVM_GET_REGS,
    ioctl::KVM_SET_REGS,
    ioctl::KVM_GET_SREGS,
    ioctl::KVM_SET_SREGS,
    ioctl::KVM_TRANSLATE,
    ioctl::KVM_GET_FPU,
    ioctl::KVM_SET_FPU,
];

/// What a process holds: a descriptor for a vCPU.
pub(super) struct VcpuFile {
    vcpu: Arc<Vcpu>,
    _open: Arc<Open>,
}

impl VcpuFile {
    pub(super) fn new(vcpu: Arc<Vcpu>, open: Arc<Open>) -> Self {
        Self { vcpu, _open: open }
    }
}

impl File for VcpuFile {
    fn mmap(&self, offset: u64, bytes: u64) -> Result<Object, Errno> {
        // Behind the run page, at its place in the object, is the VM's ring.
        let end = offset.checked_add(bytes);
        if end.is_none_or(|end| end > system::MAPPING_BYTES) {
            return Err(Errno::EINVAL);
        }
        Ok(Object::Shared(self.vcpu.page.clone()))
    }

    fn ioctl(&self, call: &Call<'_>, request: u32, arg: u64) -> Result<u64, Errno> {
        let vcpu = &self.vcpu;
        let mm = call.process.mm();
        if !Arc::ptr_eq(&mm, &vcpu.vm.mm) {
            return Err(Errno::EIO);
        }
        match request {
            r if r == ioctl::KVM_RUN.raw() => {
                if arg != 0 {
                    return Err(Errno::EINVAL);
                }
                run::run(vcpu, call)
            }
            r if r == ioctl::KVM_ARM_VCPU_INIT.raw() => {
                vcpu.init(&read_struct::<VcpuInit>(&mm, arg)?)
            }
            r if r == ioctl::KVM_GET_STATS_FD.raw() => {
                let file = StatsFile::of_vcpu(vcpu, call.process.pid);
                call.process.install(Arc::new(file), true).map(u64::from)
            }
            // As on Linux these wait for a KVM_RUN in progress.
            r if r == ioctl::KVM_GET_MP_STATE.raw() => {
                let _idle = vcpu.state.lock();
                let power = vcpu.power.lock().power;
                write_struct(
                    &mm,
                    arg,
                    &MpState {
                        mp_state: power as u32,
                    },
                )?;
                Ok(0)
            }
            r if r == ioctl::KVM_SET_MP_STATE.raw() => {
                let power = abi(Power::try_from(read_struct::<MpState>(&mm, arg)?))?;
                let _idle = vcpu.state.lock();
                vcpu.power.lock().power = power;
                vcpu.kick(self::request::POWER);
                Ok(0)
            }
            r if r == ioctl::KVM_GET_ONE_REG.raw() || r == ioctl::KVM_SET_ONE_REG.raw() => {
                let reg = read_struct::<OneReg>(&mm, arg)?;
                let mut state = vcpu.state.lock();
                if state.init.is_none() {
                    return Err(Errno::ENOEXEC);
                }
                loaded::put(vcpu);
                super::onereg::access(
                    vcpu,
                    &mut state,
                    &mm,
                    &reg,
                    r == ioctl::KVM_SET_ONE_REG.raw(),
                )
            }
            r if r == ioctl::KVM_GET_REG_LIST.raw() => {
                let mut state = vcpu.state.lock();
                if state.init.is_none() {
                    return Err(Errno::ENOEXEC);
                }
                super::onereg::list(vcpu, &mut state, &mm, arg)
            }
            r if r == ioctl::KVM_SET_DEVICE_ATTR.raw()
                || r == ioctl::KVM_GET_DEVICE_ATTR.raw()
                || r == ioctl::KVM_HAS_DEVICE_ATTR.raw() =>
            {
                super::device::vcpu_attr(vcpu, &mm, r, &read_struct::<DeviceAttr>(&mm, arg)?)
            }
            r if r == ioctl::KVM_ARM_VCPU_FINALIZE.raw() => {
                if vcpu.state.lock().init.is_none() {
                    return Err(Errno::ENOEXEC);
                }
                // Only SVE has something to finalize, and no vCPU has SVE.
                read_struct::<u32>(&mm, arg)?;
                Err(Errno::EINVAL)
            }
            r if r == ioctl::KVM_SET_GUEST_DEBUG.raw() => {
                let debug = read_struct::<GuestDebug>(&mm, arg)?;
                super::debug::set(vcpu, &mut vcpu.state.lock(), &debug)
            }
            r if r == ioctl::KVM_SET_SIGNAL_MASK.raw() => {
                let mask = if arg == 0 {
                    None
                } else {
                    Some(read_signal_mask(&mm, arg)?)
                };
                vcpu.state.lock().signal_mask = mask;
                Ok(0)
            }
            r if r == ioctl::KVM_GET_VCPU_EVENTS.raw() => {
                let state = vcpu.state.lock();
                if state.init.is_none() {
                    return Err(Errno::ENOEXEC);
                }
                let events = VcpuEvents {
                    serror_pending: state.pending_serror.is_some().into(),
                    serror_has_esr: matches!(state.pending_serror, Some(Some(_))).into(),
                    serror_esr: state.pending_serror.flatten().unwrap_or(0).into(),
                    ..VcpuEvents::default()
                };
                write_struct(&mm, arg, &events)?;
                Ok(0)
            }
            r if r == ioctl::KVM_SET_VCPU_EVENTS.raw() => {
                let events = read_struct::<VcpuEvents>(&mm, arg)?;
                let mut state = vcpu.state.lock();
                if state.init.is_none() {
                    return Err(Errno::ENOEXEC);
                }
                let asked = abi(events.request(state.features.ras))?;
                if let Some(serror) = asked.serror {
                    state.pending_serror = Some(serror);
                }
                state.pending_abort |= asked.external_abort;
                Ok(0)
            }
            r if REFUSED.iter().any(|refused| r == refused.raw()) => Err(Errno::EINVAL),
            // As Linux answers on arm64, what it knows elsewhere included.
            _ => Err(Errno::EINVAL),
        }
    }
}
