//! The KVM side of the machine, and the only `unsafe` code of this program.
//!
//! What always holds: guest RAM is mapped before the memory slot names it and stays mapped
//! until the process ends, and so does each vCPU's `kvm_run` page. Both are leaked on purpose:
//! one process runs one VM, and a vCPU may run until the very end.

use std::os::unix::thread::JoinHandleExt;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;

use kvm_bindings::{
    KVM_ARM_VCPU_HAS_EL2, KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2,
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_DEV_ARM_VGIC_GRP_MAINT_IRQ, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_REG_ARM_CORE, KVM_REG_ARM64,
    KVM_REG_SIZE_U64, KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION,
    kvm_create_device, kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
    kvm_userspace_memory_region, kvm_vcpu_init,
};
use kvm_ioctls::{Cap, DeviceFd, IoEventAddress, Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{GuestAddress, GuestRegionMmap, MmapRegion};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::error::{Context, Error, Result};
use crate::layout::{self, Memory};

/// `KVM_CAP_ARM_EL2`, younger than the bindings.
const KVM_CAP_ARM_EL2: u64 = 240;

/// Largest block that a guest mapping uses; RAM is aligned to it on both sides.
const HUGE_PAGE: usize = 2 << 20;

/// A guest address width of 40 bits is VM type 0 and every machine's default.
const DEFAULT_IPA_BITS: u64 = 40;

/// `struct kvm_regs` starts with x0 to x30, sp, pc; a core register's number counts words of
/// 4 bytes from there (KVM API, 4.68).
const REG_X0: u64 = core_reg(0);
const REG_PC: u64 = core_reg(32 * 8);

const fn core_reg(offset: u64) -> u64 {
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE as u64 | (offset / 4)
}

/// Maps `size` bytes of RAM at [`layout::RAM`], private and without a reservation: a page
/// costs memory once somebody touches it.
pub fn map_memory(size: u64, hugepages: bool) -> Result<Memory> {
    let size = usize::try_from(size).context("RAM")?;
    let span = size
        .checked_add(HUGE_PAGE)
        .ok_or_else(|| Error::Failed("RAM is too large".into()))?;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing
    // that exists.
    let start = unsafe { libc::mmap(ptr::null_mut(), span, protection, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error()).context(format!("{size} bytes of RAM"));
    }
    let skip = start.cast::<u8>().align_offset(HUGE_PAGE);
    let base = start.cast::<u8>().wrapping_add(skip);

    let advice = match hugepages {
        true => libc::MADV_HUGEPAGE,
        false => libc::MADV_NOHUGEPAGE,
    };
    // SAFETY: the range is part of the mapping made above (skip < HUGE_PAGE), and this advice
    // changes no content.
    if unsafe { libc::madvise(base.cast(), size, advice) } != 0 {
        let e = std::io::Error::last_os_error();
        log::info!("the host takes no advice on huge pages: {e}");
    }

    // SAFETY: base..base + size is mapped with these rights and is never unmapped.
    let region = unsafe { MmapRegion::build_raw(base, size, protection, flags) };
    let region = GuestRegionMmap::new(region.context("RAM")?, GuestAddress(layout::RAM))
        .ok_or_else(|| Error::Failed("RAM ends beyond the address space".into()))?;
    Memory::from_regions(vec![region]).context("RAM")
}

/// Fills `bytes` with the host's random numbers.
pub fn random(bytes: &mut [u8]) -> Result<()> {
    // SAFETY: the pointer and the length are those of one writable slice.
    let n = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    match usize::try_from(n) {
        Ok(n) if n == bytes.len() => Ok(()),
        Ok(n) => Err(Error::Failed(format!("getrandom: only {n} bytes"))),
        Err(_) => Err(std::io::Error::last_os_error()).context("getrandom"),
    }
}

/// A virtual machine with its memory and interrupt controller.
pub struct Vm {
    fd: VmFd,
    vgic: DeviceFd,
    features: u32,
}

impl Vm {
    /// Creates a VM whose RAM is `memory`.
    pub fn new(memory: &Memory, nested: bool) -> Result<Self> {
        let kvm = Kvm::new().context("/dev/kvm")?;
        let version = kvm.get_api_version();
        if version != 12 {
            return Err(Error::Failed(format!(
                "/dev/kvm speaks version {version} of its interface, not 12"
            )));
        }
        if nested && kvm.check_extension_raw(KVM_CAP_ARM_EL2) <= 0 {
            return Err(Error::Failed(
                "--nested: this host has no nested virtualization (KVM_CAP_ARM_EL2)".into(),
            ));
        }
        // A host with a smaller limit names it; one without the capability has the default.
        let limit = kvm.check_extension_int(Cap::ArmVmIPASize);
        let kind = u64::try_from(limit)
            .ok()
            .filter(|bits| (32..DEFAULT_IPA_BITS).contains(bits))
            .unwrap_or(0);
        let fd = kvm.create_vm_with_type(kind).context("KVM_CREATE_VM")?;
        add_memory(&fd, memory)?;
        let vgic = fd
            .create_device(&mut kvm_create_device {
                type_: kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
                fd: 0,
                flags: 0,
            })
            .context("KVM_CREATE_DEVICE (GICv3)")?;

        let mut features = 1 << KVM_ARM_VCPU_PSCI_0_2;
        if nested {
            features |= 1 << KVM_ARM_VCPU_HAS_EL2;
        }
        Ok(Vm { fd, vgic, features })
    }

    /// Creates all vCPUs and then the interrupt controller, which has to know their number.
    /// vCPU 0 starts at `entry` with the device tree's address in x0, the others wait for PSCI.
    pub fn create_vcpus(&self, count: u32, entry: u64, dtb: u64) -> Result<Vec<Vcpu>> {
        let mut target = kvm_vcpu_init::default();
        self.fd
            .get_preferred_target(&mut target)
            .context("KVM_ARM_PREFERRED_TARGET")?;
        let mut vcpus = Vec::new();
        for id in 0..count {
            let what = format!("KVM_CREATE_VCPU {id}");
            let fd = self.fd.create_vcpu(u64::from(id)).context(what)?;
            let mut init = target;
            init.features[0] |= self.features;
            if id != 0 {
                init.features[0] |= 1 << KVM_ARM_VCPU_POWER_OFF;
            }
            fd.vcpu_init(&init)
                .context(format!("KVM_ARM_VCPU_INIT {id}"))?;
            if id == 0 {
                set_reg(&fd, REG_X0, dtb)?;
                set_reg(&fd, REG_PC, entry)?;
            }
            vcpus.push(Vcpu::new(id, fd));
        }
        self.init_vgic(count)?;
        Ok(vcpus)
    }

    fn init_vgic(&self, vcpus: u32) -> Result<()> {
        // A redistributor region: count in bits 63:52, base in 51:16, index 0 (KVM API,
        // devices/arm-vgic-v3).
        let region = u64::from(vcpus) << 52 | layout::GIC_REDIST;
        let addr = KVM_DEV_ARM_VGIC_GRP_ADDR;
        self.set_vgic(
            addr,
            KVM_VGIC_V3_ADDR_TYPE_DIST,
            &layout::GIC_DIST,
            "distributor",
        )?;
        self.set_vgic(
            addr,
            KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION,
            &region,
            "redistributors",
        )?;
        self.set_vgic(
            KVM_DEV_ARM_VGIC_GRP_NR_IRQS,
            0,
            &layout::GIC_IRQS,
            "number of interrupts",
        )?;
        if self.features & 1 << KVM_ARM_VCPU_HAS_EL2 != 0 {
            let intid = layout::GIC_MAINTENANCE_PPI + 16;
            self.set_vgic(
                KVM_DEV_ARM_VGIC_GRP_MAINT_IRQ,
                0,
                &intid,
                "maintenance interrupt",
            )?;
        }
        self.set_vgic(
            KVM_DEV_ARM_VGIC_GRP_CTRL,
            KVM_DEV_ARM_VGIC_CTRL_INIT,
            &0u64,
            "initialization",
        )
    }

    /// Sets one attribute; the device reads as many bytes at `value` as the attribute has.
    fn set_vgic<T>(&self, group: u32, attr: u32, value: &T, what: &str) -> Result<()> {
        self.vgic
            .set_device_attr(&kvm_device_attr {
                group,
                attr: u64::from(attr),
                addr: ptr::from_ref(value) as u64,
                flags: 0,
            })
            .context(format!("GICv3 {what}"))
    }

    /// Makes each signal of `event` an edge on a shared peripheral interrupt.
    pub fn irqfd(&self, event: &EventFd, spi: u32) -> Result<()> {
        self.fd
            .register_irqfd(event, spi)
            .context(format!("KVM_IRQFD (SPI {spi})"))
    }

    /// Makes a guest's 32-bit write of `value` to `addr` a signal of `event`.
    pub fn ioeventfd(&self, event: &EventFd, addr: u64, value: u32) -> Result<()> {
        self.fd
            .register_ioevent(event, &IoEventAddress::Mmio(addr), value)
            .context(format!("KVM_IOEVENTFD ({addr:#x})"))
    }
}

fn add_memory(fd: &VmFd, memory: &Memory) -> Result<()> {
    use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
    for (slot, region) in (0..).zip(memory.iter()) {
        let slot = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: map_memory made this range and nothing unmaps it. Accesses of this process
        // to it go through vm-memory, which treats it as volatile.
        unsafe { fd.set_user_memory_region(slot) }.context("KVM_SET_USER_MEMORY_REGION")?;
    }
    Ok(())
}

fn set_reg(fd: &VcpuFd, reg: u64, value: u64) -> Result<()> {
    fd.set_one_reg(reg, &value.to_le_bytes())
        .map(|_| ())
        .context(format!("KVM_SET_ONE_REG {reg:#x}"))
}

/// One virtual CPU; belongs to the thread that runs it.
pub struct Vcpu {
    /// Its number, from 0.
    pub id: u32,
    fd: &'static mut VcpuFd,
    immediate_exit: &'static AtomicU8,
}

impl Vcpu {
    fn new(id: u32, fd: VcpuFd) -> Self {
        // Leaked, see the head of this file.
        let fd = Box::leak(Box::new(fd));
        let run = NonNull::from(fd.get_kvm_run()).as_ptr();
        // SAFETY: kvm_run is mapped as long as the descriptor's owner lives, which is forever.
        // The field is one byte, which is an AtomicU8's size and alignment; nothing in this
        // program or in kvm-ioctls touches it otherwise (set_kvm_immediate_exit is not used).
        let immediate_exit = unsafe { AtomicU8::from_ptr(&raw mut (*run).immediate_exit) };
        Vcpu {
            id,
            fd,
            immediate_exit,
        }
    }

    /// Enters the guest until it needs something (KVM_RUN).
    pub fn run(&mut self) -> std::result::Result<VcpuExit<'_>, kvm_ioctls::Error> {
        self.fd.run()
    }

    /// The guest's program counter, for messages.
    pub fn pc(&self) -> Option<u64> {
        let mut bytes = [0; 8];
        self.fd.get_one_reg(REG_PC, &mut bytes).ok()?;
        Some(u64::from_le_bytes(bytes))
    }

    /// What another thread needs to stop this vCPU.
    pub fn kicker(&self) -> Kicker {
        Kicker(self.immediate_exit)
    }
}

/// Stops a vCPU for good: KVM_RUN ends with EINTR, now or as soon as it is called.
pub struct Kicker(&'static AtomicU8);

impl Kicker {
    /// Kicks the vCPU that `thread` runs. First the flag, then the signal: one of them is seen,
    /// whether the thread is in the guest or on its way there.
    pub fn kick<T>(&self, thread: &JoinHandle<T>) {
        self.0.store(1, Ordering::SeqCst);
        // std and libc differ on musl: an integer there, a pointer here.
        let id = thread.as_pthread_t() as libc::pthread_t;
        // SAFETY: the handle has not been joined, so its pthread_t is valid, even if the
        // thread has ended.
        let error = unsafe { libc::pthread_kill(id, SIGRTMIN()) };
        if error != 0 && error != libc::ESRCH {
            log::warn!("kick: {}", std::io::Error::from_raw_os_error(error));
        }
    }
}

/// Makes the kick's signal interrupt system calls instead of killing the process.
pub fn catch_kicks() -> Result<()> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(SIGRTMIN(), nothing).context("signal handler")
}
