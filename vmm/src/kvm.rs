//! The KVM side of the machine, and the only `unsafe` code of this program.
//!
//! What always holds: guest RAM is mapped before the memory slot names it and stays mapped
//! until the process ends, and so does each vCPU's `kvm_run` page. Both are leaked on purpose:
//! a process runs the machines that it was started for, and a vCPU may run until the very end.

mod memory_error;
mod noise;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::thread::JoinHandleExt;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
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
use crate::options::HugePages;

pub use memory_error::{
    BusError, Sea, catch_bus_errors, expecting, hear_early, hears_early, poke, replace_pages,
    replacing, retire_pages,
};
pub use noise::{Ground, playground};

/// `KVM_CAP_ARM_EL2`, younger than the bindings.
const KVM_CAP_ARM_EL2: u64 = 240;

/// `_IO(KVMIO, 0xce)`.
const KVM_GET_STATS_FD: u32 = 0xaece;

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
/// costs memory once somebody touches it. Huge pages of the host's pool are reserved instead: what
/// it cannot give fails here and not under the guest.
pub fn map_memory(size: u64, hugepages: HugePages) -> Result<Memory> {
    let size = usize::try_from(size).context("RAM")?;
    let align = match hugepages {
        HugePages::Pool(shift) => 1 << shift,
        HugePages::On | HugePages::Off => HUGE_PAGE,
    };
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let mut flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // The pool's mappings lie at multiples of their pages anyway.
    let (kind, more) = match hugepages {
        HugePages::Pool(shift) => (
            libc::MAP_HUGETLB | i32::from(shift) << libc::MAP_HUGE_SHIFT,
            0,
        ),
        HugePages::On | HugePages::Off => (libc::MAP_NORESERVE, align),
    };
    flags |= kind;
    let span = size
        .checked_add(more)
        .ok_or_else(|| Error::Failed("RAM is too large".into()))?;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing
    // that exists.
    let start = unsafe { libc::mmap(ptr::null_mut(), span, protection, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        let what = match hugepages {
            HugePages::Pool(shift) => format!("{} huge pages for RAM", size >> shift),
            HugePages::On | HugePages::Off => format!("{size} bytes of RAM"),
        };
        return Err(std::io::Error::last_os_error()).context(what);
    }
    let skip = start.cast::<u8>().align_offset(align);
    if skip > more {
        return Err(Error::Failed(
            "the host's huge pages are not aligned".into(),
        ));
    }
    let base = start.cast::<u8>().wrapping_add(skip);

    let advice = match hugepages {
        HugePages::On => Some(libc::MADV_HUGEPAGE),
        HugePages::Off => Some(libc::MADV_NOHUGEPAGE),
        HugePages::Pool(_) => None,
    };
    if let Some(advice) = advice {
        // SAFETY: the range is part of the mapping made above (skip <= more), and this advice
        // changes no content.
        if unsafe { libc::madvise(base.cast(), size, advice) } != 0 {
            let e = std::io::Error::last_os_error();
            log::info!("the host takes no advice on huge pages: {e}");
        }
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

    /// What the host counts of the VM, if it counts.
    pub fn stats(&self) -> Option<File> {
        stats_file(self.fd.as_raw_fd())
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

fn stats_file(fd: RawFd) -> Option<File> {
    // SAFETY: the call takes no argument and touches no memory of this process.
    let file = unsafe { libc::ioctl(fd, KVM_GET_STATS_FD as libc::c_int, 0) };
    // SAFETY: the descriptor is new and nobody else's.
    (file >= 0).then(|| unsafe { File::from_raw_fd(file) })
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

    /// What the host counts of the vCPU, if it counts.
    pub fn stats(&self) -> Option<File> {
        stats_file(self.fd.as_raw_fd())
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

// ── What kvm-probe asks with: calls as raw as the kernel sees them ──────────────────────────────

/// A type that a call may fill with any bytes: plain data without padding that matters.
///
/// # Safety
/// Every bit pattern is a valid value, and the type holds no reference.
pub unsafe trait Plain: Copy {}

macro_rules! plain {
    ($($name:ty),* $(,)?) => {
        // SAFETY: C structures of integers, as the kernel's headers have them.
        $(unsafe impl Plain for $name {})*
    };
}

plain!(
    u32,
    u64,
    [u64; 4],
    [u64; 8],
    kvm_vcpu_init,
    kvm_create_device,
    kvm_userspace_memory_region,
    kvm_bindings::kvm_userspace_memory_region2,
    kvm_bindings::kvm_guest_debug,
    kvm_bindings::kvm_one_reg,
    kvm_bindings::kvm_mp_state,
    kvm_bindings::kvm_vcpu_events,
    kvm_bindings::kvm_irqfd,
    kvm_bindings::kvm_ioeventfd,
    kvm_bindings::kvm_enable_cap,
);

fn answer(result: libc::c_int) -> std::result::Result<u32, i32> {
    u32::try_from(result).map_err(|_| std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
}

/// Number of bytes that the argument of an ioctl has by its number; 0 if it is no pointer.
const fn argument_bytes(request: u32) -> usize {
    (request >> 16 & 0x3fff) as usize
}

/// An ioctl with a structure as its argument. `Err` is the error number.
///
/// Addresses within the structure are [`Region::address`]es or lie where nothing is mapped; the
/// structure cannot be checked for that here.
///
/// # Panics
/// If the number speaks of more bytes than the structure has.
pub fn ioctl<T: Plain>(fd: &OwnedFd, request: u32, value: &mut T) -> std::result::Result<u32, i32> {
    assert!(argument_bytes(request) <= size_of::<T>(), "{request:#x}");
    // SAFETY: the kernel writes no more bytes than the number says, into a value that takes any.
    answer(unsafe { libc::ioctl(fd.as_raw_fd(), request as libc::c_int, ptr::from_mut(value)) })
}

/// Below this address nothing of a process is mapped (Linux: vm.mmap_min_addr; umbra: the same).
pub const LOWEST_MAPPED: u64 = 0x1_0000;
/// From this address on nothing of a process is mapped.
pub const ABOVE_MAPPED: u64 = 1 << 52;

/// An ioctl with a number as its argument. `Err` is the error number.
///
/// # Panics
/// If the ioctl takes a pointer and the number could be one.
pub fn ioctl_value(fd: &OwnedFd, request: u32, value: u64) -> std::result::Result<u32, i32> {
    let harmless = !(LOWEST_MAPPED..ABOVE_MAPPED).contains(&value);
    assert!(argument_bytes(request) == 0 || harmless, "{request:#x}");
    // SAFETY: the kernel takes the argument as a number or finds nothing mapped there.
    answer(unsafe { libc::ioctl(fd.as_raw_fd(), request as libc::c_int, value) })
}

/// The file that a call answered.
pub fn owned(fd: u32) -> OwnedFd {
    // SAFETY: callers pass what KVM_CREATE_… has just answered, once. Were it another's, a close too
    // many would be the worst of it: nothing in this program rests on a file for its memory.
    unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) }
}

/// What a page of a [`Region`] allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// PROT_NONE.
    None,
    /// PROT_READ.
    Read,
    /// PROT_READ and PROT_WRITE.
    ReadWrite,
}

impl Rights {
    fn bits(self) -> libc::c_int {
        match self {
            Rights::None => libc::PROT_NONE,
            Rights::Read => libc::PROT_READ,
            Rights::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        }
    }
}

/// A mapping of this process that a guest may share. It belongs to one thread; guests and the kernel
/// change its content at any time, so every access is a relaxed atomic.
///
/// What always holds: the addresses are this region's until it is dropped, or until [`Region::unmap`]
/// gave some back, and those are not touched again before [`Region::map_again`]. An access without
/// the right to it ends the process by SIGSEGV, which is no undefined behaviour.
pub struct Region {
    base: *mut u8,
    bytes: usize,
    /// The mapping that `base` lies in, for the end.
    whole: (*mut libc::c_void, usize),
    /// Pages that were given back.
    gone: RefCell<BTreeSet<usize>>,
}

// SAFETY: a region is an address range and a record of its holes; one thread has it at a time.
unsafe impl Send for Region {}

/// Size of the pages that a region is cut into.
pub const PAGE: usize = 4096;

impl Region {
    /// Maps `bytes` of zeros, private, at a multiple of 2 MiB. Nothing is reserved.
    pub fn new(bytes: usize) -> std::result::Result<Self, i32> {
        Self::map(None, bytes, HUGE_PAGE, 0)
    }

    /// Maps `bytes` of zeros, private, in huge pages of `1 << shift` bytes from the host's pool.
    pub fn of_huge_pages(bytes: usize, shift: u8) -> std::result::Result<Self, i32> {
        let flags = libc::MAP_HUGETLB | i32::from(shift) << libc::MAP_HUGE_SHIFT;
        Self::map(None, bytes, 0, flags)
    }

    /// Makes a file in memory of `bytes` zeros (memfd_create) and maps it twice, shared: two views of the
    /// same pages. The file itself is closed.
    pub fn twice(bytes: usize) -> std::result::Result<(Self, Self), i32> {
        // SAFETY: the name is a string that ends with NUL.
        let fd = answer(unsafe { libc::memfd_create(c"twice".as_ptr(), libc::MFD_CLOEXEC) })?;
        let file = File::from(owned(fd));
        let set = file.set_len(bytes as u64);
        set.map_err(|e| e.raw_os_error().unwrap_or(libc::EIO))?;
        let file = OwnedFd::from(file);
        Ok((Self::of_file(&file, bytes)?, Self::of_file(&file, bytes)?))
    }

    /// Maps the first `bytes` of a file, shared.
    pub fn of_file(fd: &OwnedFd, bytes: usize) -> std::result::Result<Self, i32> {
        Self::map(Some(fd.as_raw_fd()), bytes, 0, 0)
    }

    fn map(
        fd: Option<RawFd>,
        bytes: usize,
        align: usize,
        more: libc::c_int,
    ) -> std::result::Result<Self, i32> {
        let span = bytes + align;
        let rights = Rights::ReadWrite.bits();
        let flags = match fd {
            Some(_) => libc::MAP_SHARED,
            None if more != 0 => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | more,
            None => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
        };
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), span, rights, flags, fd.unwrap_or(-1), 0) };
        if start == libc::MAP_FAILED {
            answer(-1)?;
        }
        let base = start.cast::<u8>();
        let skip = if align == 0 {
            0
        } else {
            base.align_offset(align)
        };
        Ok(Region {
            base: base.wrapping_add(skip),
            bytes,
            whole: (start, span),
            gone: RefCell::default(),
        })
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The address of the byte at `offset`, for a memory slot or a call.
    pub fn address(&self, offset: usize) -> u64 {
        self.base.wrapping_add(offset) as u64
    }

    fn at(&self, offset: usize, bytes: usize) -> *mut u8 {
        let inside = offset
            .checked_add(bytes)
            .is_some_and(|end| end <= self.bytes);
        assert!(inside && offset.is_multiple_of(bytes), "{offset:#x}");
        assert!(!self.gone.borrow().contains(&(offset / PAGE)), "unmapped");
        self.base.wrapping_add(offset)
    }

    /// Reads a byte.
    pub fn u8(&self, offset: usize) -> u8 {
        // SAFETY: `at` has checked that the place is this region's and mapped; all accesses are
        // atomic, see the head of the type.
        unsafe { AtomicU8::from_ptr(self.at(offset, 1)) }.load(Ordering::SeqCst)
    }

    /// Writes a byte.
    pub fn set_u8(&self, offset: usize, value: u8) {
        // SAFETY: as in `u8`.
        unsafe { AtomicU8::from_ptr(self.at(offset, 1)) }.store(value, Ordering::SeqCst);
    }

    /// Reads four bytes, aligned.
    pub fn u32(&self, offset: usize) -> u32 {
        // SAFETY: as in `u8`; `at` checks the alignment too.
        unsafe { AtomicU32::from_ptr(self.at(offset, 4).cast()) }.load(Ordering::SeqCst)
    }

    /// Writes four bytes, aligned.
    pub fn set_u32(&self, offset: usize, value: u32) {
        // SAFETY: as in `u32`.
        unsafe { AtomicU32::from_ptr(self.at(offset, 4).cast()) }.store(value, Ordering::SeqCst);
    }

    /// Reads eight bytes, aligned.
    pub fn u64(&self, offset: usize) -> u64 {
        // SAFETY: as in `u32`.
        unsafe { AtomicU64::from_ptr(self.at(offset, 8).cast()) }.load(Ordering::SeqCst)
    }

    /// Writes eight bytes, aligned.
    pub fn set_u64(&self, offset: usize, value: u64) {
        // SAFETY: as in `u32`.
        unsafe { AtomicU64::from_ptr(self.at(offset, 8).cast()) }.store(value, Ordering::SeqCst);
    }

    /// Writes instructions, and makes fetches of other observers see them.
    pub fn set_code(&self, offset: usize, words: &[u32]) {
        for (at, word) in words.iter().enumerate() {
            self.set_u32(offset + 4 * at, *word);
            if (offset / 4 + at).is_multiple_of(4) || at + 1 == words.len() {
                let line = self.at(offset + 4 * at, 4);
                // SAFETY: cache maintenance by address of mapped memory; it changes no content.
                // Linux lets EL0 do it (SCTLR_EL1.UCI), and so does umbra.
                unsafe {
                    std::arch::asm!(
                        "dc cvau, {line}", "dsb ish", "ic ivau, {line}", "dsb ish", "isb",
                        line = in(reg) line, options(nostack, preserves_flags)
                    );
                }
            }
        }
    }

    fn range(&self, offset: usize, bytes: usize) -> *mut libc::c_void {
        let inside = offset
            .checked_add(bytes)
            .is_some_and(|end| end <= self.bytes);
        assert!(
            inside && (offset | bytes).is_multiple_of(PAGE),
            "{offset:#x}"
        );
        self.base.wrapping_add(offset).cast()
    }

    /// Gives pages back (munmap).
    pub fn unmap(&self, offset: usize, bytes: usize) -> std::result::Result<(), i32> {
        let start = self.range(offset, bytes);
        let mut gone = self.gone.borrow_mut();
        gone.extend(offset / PAGE..(offset + bytes) / PAGE);
        // SAFETY: the range is this region's, and from here on nothing here touches it.
        answer(unsafe { libc::munmap(start, bytes) }).map(drop)
    }

    /// Maps fresh zeros over pages of the region, given back or not (mmap with MAP_FIXED).
    ///
    /// The caller lets no other mapping be made between [`Region::unmap`] and this.
    pub fn map_again(&self, offset: usize, bytes: usize) -> std::result::Result<(), i32> {
        let start = self.range(offset, bytes);
        let rights = Rights::ReadWrite.bits();
        let mut flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let mut gone = self.gone.borrow_mut();
        let pages = offset / PAGE..(offset + bytes) / PAGE;
        // Where something was given back, another mapping may have come: never over that.
        flags |= match pages.clone().any(|page| gone.contains(&page)) {
            true => libc::MAP_FIXED_NOREPLACE,
            false => libc::MAP_FIXED,
        };
        // SAFETY: the pages are this region's, or free.
        if unsafe { libc::mmap(start, bytes, rights, flags, -1, 0) } != start {
            answer(-1)?;
            return Err(libc::EEXIST);
        }
        for page in pages {
            gone.remove(&page);
        }
        Ok(())
    }

    /// Changes what pages allow (mprotect).
    pub fn protect(&self, offset: usize, bytes: usize, to: Rights) -> std::result::Result<(), i32> {
        // SAFETY: the range is this region's; what it allows is no concern of Rust's.
        answer(unsafe { libc::mprotect(self.range(offset, bytes), bytes, to.bits()) }).map(drop)
    }

    /// Throws the content of pages away (MADV_DONTNEED): they read as zeros.
    pub fn discard(&self, offset: usize, bytes: usize) -> std::result::Result<(), i32> {
        self.advise(offset, bytes, libc::MADV_DONTNEED)
    }

    /// Asks for 2 MiB pages (MADV_HUGEPAGE). A host without them answers EINVAL.
    pub fn prefer_huge(&self, offset: usize, bytes: usize) -> std::result::Result<(), i32> {
        self.advise(offset, bytes, libc::MADV_HUGEPAGE)
    }

    /// Asks for pages of the host's own size alone (MADV_NOHUGEPAGE).
    pub fn avoid_huge(&self, offset: usize, bytes: usize) -> std::result::Result<(), i32> {
        self.advise(offset, bytes, libc::MADV_NOHUGEPAGE)
    }

    fn advise(&self, at: usize, bytes: usize, what: libc::c_int) -> std::result::Result<(), i32> {
        // SAFETY: the range is this region's; its content is anybody's to change, see the head.
        answer(unsafe { libc::madvise(self.range(at, bytes), bytes, what) }).map(drop)
    }

    /// An ioctl with the bytes at `offset` as its argument. `Err` is the error number.
    ///
    /// As for [`ioctl`], addresses therein must lie in a region or where nothing is mapped. The
    /// region must end at least 64 KiB behind `offset`: no call of KVM writes more.
    pub fn ioctl(
        &self,
        fd: &OwnedFd,
        request: u32,
        offset: usize,
    ) -> std::result::Result<u32, i32> {
        assert!(offset + 0x1_0000 <= self.bytes, "{offset:#x}");
        let argument = self.at(offset, 1);
        // SAFETY: what the kernel writes lands in this region, whose content is anybody's.
        answer(unsafe { libc::ioctl(fd.as_raw_fd(), request as libc::c_int, argument) })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let (start, span) = self.whole;
        let gone = self.gone.get_mut();
        if gone.is_empty() {
            // SAFETY: the mapping is this region's, and nobody can name it any more.
            unsafe { libc::munmap(start, span) };
        }
        // With holes in it, others may live there: then it stays until the process ends.
    }
}

/// A thread of this process, as signals name it.
#[derive(Clone, Copy, Debug)]
pub struct ThreadId(libc::c_long);

/// The calling thread.
pub fn this_thread() -> ThreadId {
    // SAFETY: it only answers a number.
    ThreadId(unsafe { libc::syscall(libc::SYS_gettid) })
}

/// Interrupts the system call of a thread with a signal that does nothing else. If the thread has
/// ended, nothing happens, or another of this process is interrupted once too often.
pub fn interrupt(thread: ThreadId) {
    // SAFETY: the process has a handler for the signal (`catch_kicks`), and it does nothing.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread.0, SIGRTMIN()) };
}
