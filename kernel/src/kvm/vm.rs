//! One virtual machine, and its ioctls.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use umbra_abort::Poison;
use umbra_arm64::idreg::IdRegs;
use umbra_arm64::{Hva, Ipa, Pa};
use umbra_hw::MAX_CPUS;
use umbra_hw::sabotage::{Safeguard, left_out};
use umbra_hw::sync::SpinLock;
use umbra_kvm_abi::cap;
use umbra_kvm_abi::device::{CreateDevice, DeviceAttr};
use umbra_kvm_abi::ioctl;
use umbra_kvm_abi::irq::{CoalescedMmioZone, IoEventFd, IrqFd, IrqLevel, KVM_MSI_VALID_DEVID, Msi};
use umbra_kvm_abi::memory::{
    ClearDirtyLog, DirtyLog as GetDirtyLog, KVM_DIRTY_LOG_INITIALLY_SET, KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_MAX_NR_PAGES, KVM_MEM_READONLY, KVM_USER_MEM_SLOTS, UserspaceMemoryRegion,
    UserspaceMemoryRegion2,
};
use umbra_kvm_abi::reg::RegMaskRange;
use umbra_kvm_abi::smccc::Services;
use umbra_kvm_abi::smccc_filter::SmcccFilter;
use umbra_kvm_abi::vcpu::{
    CounterOffset, EnableCap, KVM_ARM_TARGET_GENERIC_V8, KVM_ARM_VCPU_HAS_EL2, VcpuFeatures,
    VcpuInit,
};
use umbra_linux::Errno;
use umbra_linux::vma::{Span, USER_END};
use umbra_stage2::dirty::DirtyLog;

use super::gic::Gic;
use super::ioeventfd::IoEvents;
use super::its::Itses;
use super::memory::{Machine, Memory};
use super::routing::Routes;
use super::slots::{Slot, SlotError};
use super::time::VmTime;
use super::vcpu::{Vcpu, VcpuFile};
use super::{dirty, errno, loaded, read_struct, system, write_struct};
use crate::file::{Call, File};
use crate::mm::{Breakage, Mm, Notifier};
use crate::sched::Mutex;

/// What the VMM asked of the whole VM.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Options {
    /// KVM_CAP_ARM_NISV_TO_USER.
    pub(super) nisv_to_user: bool,
    /// KVM_CAP_ARM_SEA_TO_USER.
    pub(super) sea_to_user: bool,
    /// KVM_CAP_ARM_SYSTEM_SUSPEND.
    pub(super) system_suspend: bool,
    /// KVM_CAP_ARM_WRITABLE_IMP_ID_REGS.
    pub(super) writable_imp_ids: bool,
    /// KVM_CAP_ARM_EAGER_SPLIT_CHUNK_SIZE: remembered; blocks are split when they are written.
    pub(super) split_chunk: u64,
    /// KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: `KVM_DIRTY_LOG_*`, 0 while it is not enabled.
    pub(super) manual_dirty_log: u64,
    /// The features of the first vCPU that was initialised: the others must have the same.
    pub(super) features: Option<VcpuFeatures>,
}

/// A virtual machine.
pub(super) struct Vm {
    pub(super) mm: Arc<Mm>,
    pub(super) ipa_bits: u8,
    pub(super) machine: Machine,
    pub(super) memory: SpinLock<Memory>,
    /// VTTBR_EL2 of the canonical table.
    vttbr: Arc<AtomicU64>,
    /// Every vCPU that was made, until the last file of the VM is closed ([`Open`]).
    vcpus: SpinLock<Vec<Arc<Vcpu>>>,
    /// Held while the number of vCPUs changes, or something is made that has as many parts.
    pub(super) settling: Mutex<()>,
    pub(super) gic: Gic,
    pub(super) io_events: IoEvents,
    pub(super) coalesced: super::coalesced::Coalesced,
    pub(super) options: SpinLock<Options>,
    pub(super) services: SpinLock<Services>,
    pub(super) filter: SpinLock<SmcccFilter>,
    /// Whether the filter has anything in it.
    pub(super) filters: AtomicBool,
    pub(super) routes: Routes,
    pub(super) itses: Itses,
    /// The ID registers, once the VMM set one: then all vCPUs have these (`onereg::adopt_id_regs`).
    pub(super) id_regs: SpinLock<Option<IdRegs>>,
    /// Its counters and its timers' interrupts.
    pub(super) time: VmTime,
    /// The performance counters that its vCPUs may have.
    pub(super) pmu: SpinLock<super::pmu::VmPmu>,
    /// Index + 1 of the vCPU that ran last on each CPU.
    pub(super) last_ran: [AtomicUsize; MAX_CPUS],
}

impl Notifier for Vm {
    fn invalidate(&self, span: Span) {
        self.memory.lock().invalidate(span);
    }

    fn take_page(&self, span: Span) {
        if !left_out(Safeguard::PoisonStage2) {
            self.memory.lock().take_page(span);
        }
    }

    fn heal(&self) {
        self.memory.lock().heal();
    }

    fn break_on_purpose(&self, what: Breakage) {
        let nowhere = crate::poison::NOWHERE;
        match what {
            Breakage::Table | Breakage::Shadow => {
                let shadows = what == Breakage::Shadow;
                if umbra_hw::mem::pretend_table(nowhere) {
                    self.memory.lock().misdirect(nowhere, shadows);
                }
            }
            Breakage::RootPage => {
                let root = self.vttbr() & 0x0000_ffff_ffff_f000;
                if let Err(errno) = crate::poison::report(Pa::new(root), Poison::Known) {
                    log::error!("a root is not taken: {errno}");
                }
            }
            Breakage::Root | Breakage::Vncr => {
                for vcpu in self.all_vcpus() {
                    super::loaded::put(&vcpu);
                    let mut hw = vcpu.hw.lock();
                    if what == Breakage::Root {
                        hw.vttbr = hw.vttbr & 0xffff << 48 | nowhere.raw();
                    } else {
                        hw.vncr_at = umbra_hw::nowhere(nowhere);
                    }
                }
            }
        }
    }
}

impl Vm {
    /// A VM of the calling process; `ENOMEM`.
    pub(super) fn new(mm: Arc<Mm>, ipa_bits: u8) -> Result<Arc<Self>, Errno> {
        let machine = Machine::read();
        super::ghost::prepare();
        // Before the tables, which only a whole VM gives back.
        let coalesced = super::coalesced::Coalesced::new().ok_or(Errno::ENOMEM)?;
        let memory = Memory::new(&machine, ipa_bits).ok_or(Errno::ENOMEM)?;
        let vm = Arc::new(Self {
            ipa_bits,
            machine,
            vttbr: memory.shown_vttbr(),
            memory: SpinLock::new("vm memory", 160, memory),
            vcpus: SpinLock::new("vcpus", 100, Vec::new()),
            settling: Mutex::new(()),
            gic: Gic::new(),
            io_events: IoEvents::new(),
            coalesced,
            options: SpinLock::new("vm options", 101, Options::default()),
            services: SpinLock::new("vm services", 103, Services::default()),
            filter: SpinLock::new("smccc filter", 107, SmcccFilter::default()),
            filters: AtomicBool::new(false),
            routes: Routes::new(),
            itses: Itses::new(),
            id_regs: SpinLock::new("vm id registers", 106, None),
            time: VmTime::new(),
            pmu: SpinLock::new("vm pmu", 111, super::pmu::VmPmu::default()),
            last_ran: [const { AtomicUsize::new(0) }; MAX_CPUS],
            mm: mm.clone(),
        });
        let weak: Weak<dyn Notifier> = Arc::downgrade(&vm) as Weak<dyn Notifier>;
        mm.add_notifier(weak)?;
        Ok(vm)
    }

    /// VTTBR_EL2 of the canonical table: its root changes if it goes bad, its VMID does not.
    pub(super) fn vttbr(&self) -> u64 {
        self.vttbr.load(Ordering::Acquire)
    }

    /// Whether its vCPUs have a virtual EL2.
    pub(super) fn is_nested(&self) -> bool {
        self.options
            .lock()
            .features
            .is_some_and(|features| features.has(KVM_ARM_VCPU_HAS_EL2))
    }

    /// vCPU by index.
    pub(super) fn vcpu(&self, index: usize) -> Option<Arc<Vcpu>> {
        self.vcpus.lock().get(index).cloned()
    }

    /// Every vCPU, in the order of their indices.
    pub(super) fn all_vcpus(&self) -> Vec<Arc<Vcpu>> {
        self.vcpus.lock().clone()
    }

    /// Whether a vCPU has run: much of what a VM is made of is settled then.
    pub(super) fn has_run(&self) -> bool {
        self.last_ran
            .iter()
            .any(|vcpu| vcpu.load(Ordering::Acquire) != 0)
    }

    fn set_memory(&self, region: &UserspaceMemoryRegion) -> Result<u64, Errno> {
        let page = 4096;
        let known = region.flags & !(KVM_MEM_READONLY | KVM_MEM_LOG_DIRTY_PAGES) == 0;
        let aligned = (region.memory_size | region.guest_phys_addr | region.userspace_addr)
            .is_multiple_of(page);
        let end = region.guest_phys_addr.checked_add(region.memory_size);
        let user_end = region.userspace_addr.checked_add(region.memory_size);
        let (Some(end), Some(user_end)) = (end, user_end) else {
            return Err(Errno::EINVAL);
        };
        if !known || !aligned || region.slot >= KVM_USER_MEM_SLOTS || user_end > USER_END {
            return Err(Errno::EINVAL);
        }
        if region.memory_size / page > KVM_MEM_MAX_NR_PAGES {
            return Err(Errno::EINVAL);
        }
        let slot = (region.memory_size != 0).then(|| Slot {
            base: Ipa::new(region.guest_phys_addr),
            bytes: region.memory_size,
            hva: Hva::new(region.userspace_addr),
            read_only: region.flags & KVM_MEM_READONLY != 0,
            logging: region.flags & KVM_MEM_LOG_DIRTY_PAGES != 0,
        });
        let bounded = !left_out(Safeguard::SlotBeyond);
        if bounded && slot.is_some() && end > 1 << self.ipa_bits {
            // Row N25: refused where it is made. Linux answers EFAULT.
            return Err(Errno::EINVAL);
        }
        let log = match slot {
            Some(slot) if slot.logging => {
                let set = self.options.lock().manual_dirty_log & KVM_DIRTY_LOG_INITIALLY_SET != 0;
                crate::mem::top_up();
                Some(DirtyLog::new(slot.pages(), set).map_err(|_| Errno::ENOMEM)?)
            }
            _ => None,
        };
        match self.memory.lock().set_slot(region.slot, slot, log) {
            Ok(()) => Ok(0),
            Err(SlotError::Overlap) => Err(Errno::EEXIST),
            Err(SlotError::Invalid | SlotError::Missing) => Err(Errno::EINVAL),
        }
    }

    fn create_vcpu(open: &Arc<Open>, call: &Call<'_>, id: u64) -> Result<u64, Errno> {
        let vm = open.vm();
        let id = u32::try_from(id).map_err(|_| Errno::EINVAL)?;
        if id as usize >= system::MAX_VCPUS {
            return Err(Errno::EINVAL);
        }
        let _settling = vm.settling.lock();
        if vm.gic.is_initialised() {
            return Err(Errno::EBUSY);
        }
        let index = {
            let mut vcpus = vm.vcpus.lock();
            // An id is used once in a VM's life, as on Linux.
            if vcpus.iter().any(|vcpu| vcpu.id == id) {
                return Err(Errno::EEXIST);
            }
            vcpus.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
            vcpus.len()
        };
        let vcpu = Vcpu::new(vm, id, index)?;
        let file = Arc::new(VcpuFile::new(vcpu.clone(), open.clone()));
        // Last what can fail: a vCPU that the VMM was refused is none of the VM's.
        let fd = call.process.install(file, true)?;
        vm.vcpus.lock().push(vcpu);
        Ok(fd.into())
    }

    fn enable_cap(&self, cap: &EnableCap) -> Result<u64, Errno> {
        if cap.flags != 0 {
            return Err(Errno::EINVAL);
        }
        let has_vcpus = !self.vcpus.lock().is_empty();
        let has_slots = self.memory.lock().has_slots();
        let mut options = self.options.lock();
        match cap.cap {
            cap::KVM_CAP_ARM_WRITABLE_IMP_ID_REGS if !has_vcpus => options.writable_imp_ids = true,
            cap::KVM_CAP_ARM_EAGER_SPLIT_CHUNK_SIZE
                if !has_slots && system::is_chunk(cap.args[0]) =>
            {
                options.split_chunk = cap.args[0];
            }
            // WFI gives the CPU up at once, whatever the VMM allows.
            cap::KVM_CAP_HALT_POLL if u32::try_from(cap.args[0]).is_ok() => {}
            cap::KVM_CAP_ARM_NISV_TO_USER => options.nisv_to_user = true,
            cap::KVM_CAP_ARM_SEA_TO_USER => options.sea_to_user = true,
            cap::KVM_CAP_ARM_SYSTEM_SUSPEND => options.system_suspend = true,
            cap::KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 if dirty::is_valid_option(cap.args[0]) => {
                options.manual_dirty_log = cap.args[0];
            }
            _ => return Err(Errno::EINVAL),
        }
        Ok(0)
    }
}

/// A VM as its files hold it: the VM's own, its vCPUs' and its devices'.
///
/// A vCPU holds its VM and the VM its vCPUs, so that one whose file is closed keeps its place, as on Linux:
/// its index, its redistributor, its answer to PSCI. When the last file is closed, that circle is broken.
pub(super) struct Open(Arc<Vm>);

impl Open {
    /// The first file's hold on a new VM.
    pub(super) fn new(vm: Arc<Vm>) -> Arc<Self> {
        Arc::new(Self(vm))
    }

    /// The VM.
    pub(super) fn vm(&self) -> &Arc<Vm> {
        &self.0
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let vcpus = core::mem::take(&mut *self.0.vcpus.lock());
        for vcpu in &vcpus {
            // A CPU may hold the registers still; it holds the vCPU alive with them, and so does an alarm.
            loaded::put(vcpu);
            vcpu.set_alarm(None);
        }
    }
}

/// What a process holds: a descriptor for a VM.
pub(super) struct VmFile {
    pub(super) open: Arc<Open>,
}

impl File for VmFile {
    fn ioctl(&self, call: &Call<'_>, request: u32, arg: u64) -> Result<u64, Errno> {
        let vm = self.open.vm();
        let mm = call.process.mm();
        // A VM belongs to the address space it was made in, as on Linux.
        if !Arc::ptr_eq(&mm, &vm.mm) {
            return Err(Errno::EIO);
        }
        let raw = |ioctl: umbra_kvm_abi::ioc::Ioctl| ioctl.raw();
        match request {
            r if r == raw(ioctl::KVM_CHECK_EXTENSION) => Ok(system::extension(arg, Some(vm))),
            r if r == raw(ioctl::KVM_GET_STATS_FD) => {
                let file = super::stats::StatsFile::of_vm(vm, call.process.pid);
                call.process.install(Arc::new(file), true).map(u64::from)
            }
            r if r == raw(ioctl::KVM_CREATE_VCPU) => Vm::create_vcpu(&self.open, call, arg),
            r if r == raw(ioctl::KVM_SET_USER_MEMORY_REGION) => {
                vm.set_memory(&read_struct::<UserspaceMemoryRegion>(&mm, arg)?)
            }
            r if r == raw(ioctl::KVM_SET_USER_MEMORY_REGION2) => {
                vm.set_memory(&read_struct::<UserspaceMemoryRegion2>(&mm, arg)?.region)
            }
            r if r == raw(ioctl::KVM_GET_DIRTY_LOG) => {
                dirty::get(vm, &read_struct::<GetDirtyLog>(&mm, arg)?)
            }
            r if r == raw(ioctl::KVM_CLEAR_DIRTY_LOG) => {
                dirty::clear(vm, &read_struct::<ClearDirtyLog>(&mm, arg)?)
            }
            r if r == raw(ioctl::KVM_ARM_PREFERRED_TARGET) => {
                let init = VcpuInit {
                    target: KVM_ARM_TARGET_GENERIC_V8,
                    features: [0; 7],
                };
                write_struct(&mm, arg, &init)?;
                Ok(0)
            }
            r if r == raw(ioctl::KVM_CREATE_DEVICE) => {
                let mut create = read_struct::<CreateDevice>(&mm, arg)?;
                super::device::create(&self.open, call, &mut create)?;
                write_struct(&mm, arg, &create)?;
                Ok(0)
            }
            // A GICv2, which this machine cannot virtualise.
            r if r == raw(ioctl::KVM_CREATE_IRQCHIP) => Err(Errno::ENODEV),
            r if r == raw(ioctl::KVM_IRQ_LINE) => {
                let line = read_struct::<IrqLevel>(&mm, arg)?;
                vm.gic.irq_line(vm, &line).map(|()| 0)
            }
            r if r == raw(ioctl::KVM_IRQ_LINE_STATUS) => {
                let line = read_struct::<IrqLevel>(&mm, arg)?;
                vm.gic.irq_line(vm, &line)?;
                // As on Linux for arm64 there is no status: what came in goes out.
                write_struct(&mm, arg, &line)?;
                Ok(0)
            }
            r if r == raw(ioctl::KVM_REGISTER_COALESCED_MMIO) => {
                let zone = read_struct::<CoalescedMmioZone>(&mm, arg)?;
                vm.coalesced.register(&zone).map(|()| 0)
            }
            r if r == raw(ioctl::KVM_UNREGISTER_COALESCED_MMIO) => {
                let zone = read_struct::<CoalescedMmioZone>(&mm, arg)?;
                vm.coalesced.unregister(&zone).map(|()| 0)
            }
            r if r == raw(ioctl::KVM_SIGNAL_MSI) => {
                let msi = read_struct::<Msi>(&mm, arg)?;
                if !vm.gic.layout.lock().created || msi.flags & !KVM_MSI_VALID_DEVID != 0 {
                    return Err(Errno::EINVAL);
                }
                vm.itses.message(vm, &msi).map(u64::from)
            }
            r if r == raw(ioctl::KVM_SET_GSI_ROUTING) => vm.routes.set(&mm, arg),
            r if r == raw(ioctl::KVM_ARM_GET_REG_WRITABLE_MASKS) => {
                super::onereg::writable_masks(&mm, &read_struct::<RegMaskRange>(&mm, arg)?)
            }
            r if r == raw(ioctl::KVM_ARM_SET_COUNTER_OFFSET) => {
                super::time::set_offset(vm, &read_struct::<CounterOffset>(&mm, arg)?)
            }
            r if r == raw(ioctl::KVM_IRQFD) => {
                super::gic::irqfd(vm, call, &read_struct::<IrqFd>(&mm, arg)?).map(|()| 0)
            }
            r if r == raw(ioctl::KVM_IOEVENTFD) => vm
                .io_events
                .configure(call, &read_struct::<IoEventFd>(&mm, arg)?)
                .map(|()| 0),
            r if r == raw(ioctl::KVM_SET_DEVICE_ATTR) || r == raw(ioctl::KVM_HAS_DEVICE_ATTR) => {
                super::device::vm_attr(vm, &mm, request, &read_struct::<DeviceAttr>(&mm, arg)?)
            }
            r if r == raw(ioctl::KVM_ENABLE_CAP) => {
                vm.enable_cap(&read_struct::<EnableCap>(&mm, arg)?)
            }
            // As Linux answers on arm64, what it knows elsewhere included.
            _ => Err(Errno::EINVAL),
        }
    }
}

/// Names what the ABI crate calls a success or an error.
pub(super) fn abi<T>(result: Result<T, umbra_kvm_abi::Errno>) -> Result<T, Errno> {
    result.map_err(errno)
}
