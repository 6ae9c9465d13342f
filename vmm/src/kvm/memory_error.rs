//! Memory errors: what the kernel tells of them, and what a VMM can do with the page.

use std::cell::Cell;
use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr::{self, NonNull};

use kvm_bindings::{kvm_enable_cap, kvm_vcpu_events};

use super::{Region, Vcpu, Vm, answer};
use crate::error::{Context, Result};

/// `KVM_CAP_ARM_SEA_TO_USER`, younger than the bindings.
const KVM_CAP_ARM_SEA_TO_USER: u32 = 245;

/// `KVM_EXIT_ARM_SEA`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sea {
    /// The syndrome, as far as a VMM may see it.
    pub esr: u64,
    /// The guest's virtual address; `None` if the hardware had none (FnV).
    pub gva: Option<u64>,
    /// The page in guest physical memory, if it is known.
    pub gpa: Option<u64>,
    /// The page in the space of the guest's own guest, if that made the access (umbra alone tells).
    pub l2_ipa: Option<u64>,
}

impl Vm {
    /// Asks to hear of memory errors that the guest meets. False: the host cannot tell.
    pub fn hear_of_memory_errors(&self) -> Result<bool> {
        let cap = u64::from(KVM_CAP_ARM_SEA_TO_USER);
        if self.fd.check_extension_raw(cap) <= 0 {
            return Ok(false);
        }
        let cap = kvm_enable_cap {
            cap: KVM_CAP_ARM_SEA_TO_USER,
            ..Default::default()
        };
        self.fd
            .enable_cap(&cap)
            .context("KVM_CAP_ARM_SEA_TO_USER")?;
        Ok(true)
    }
}

impl Vcpu {
    /// What the run page says, if the last exit was `KVM_EXIT_ARM_SEA`.
    pub fn sea(&mut self) -> Sea {
        const FNV: u64 = 1 << 10;
        let run = self.fd.get_kvm_run();
        // SAFETY: every member of the union is plain data of at most this size.
        let bytes = unsafe { run.__bindgen_anon_1.padding };
        let word = |at: usize| {
            let word: [u8; 8] = std::array::from_fn(|n| bytes[8 * at + n]);
            u64::from_le_bytes(word)
        };
        let (flags, esr) = (word(0), word(1));
        Sea {
            esr,
            gva: (esr & FNV == 0).then(|| word(2)),
            gpa: (flags & 1 != 0).then(|| word(3)),
            l2_ipa: (flags >> 63 != 0).then(|| word(4)),
        }
    }

    /// Makes the guest meet the abort that the last exit told of.
    pub fn inject_abort(&self) -> Result<()> {
        self.set_events(|events| events.exception.ext_dabt_pending = 1)
    }

    /// Makes an SError pending in the guest.
    pub fn inject_serror(&self) -> Result<()> {
        self.set_events(|events| events.exception.serror_pending = 1)
    }

    fn set_events(&self, change: impl FnOnce(&mut kvm_vcpu_events)) -> Result<()> {
        let mut events = kvm_vcpu_events::default();
        change(&mut events);
        self.fd
            .set_vcpu_events(&events)
            .context("KVM_SET_VCPU_EVENTS")
    }
}

/// Size of the host's pages in bytes.
fn page_size() -> usize {
    // SAFETY: it only answers a number.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).unwrap_or(4096)
}

/// Maps fresh zeros over the page of guest RAM at `hva`. Answers its size in bytes.
pub fn replace_pages(hva: *mut u8) -> Result<usize> {
    let bytes = page_size();
    let start = hva.map_addr(|at| at & !(bytes - 1));
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: callers pass an address of guest RAM, whose mapping is this program's for ever and whose
    // content is the guest's to lose; the page stays mapped with the same rights.
    let mapped = unsafe { libc::mmap(start.cast(), bytes, rights, flags, -1, 0) };
    if mapped == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error()).context("a fresh page");
    }
    Ok(bytes)
}

/// Tells the kernel that the page of guest RAM at `hva` is bad for good. Answers its size in bytes.
pub fn retire_pages(hva: *mut u8) -> Result<usize> {
    let bytes = page_size();
    let start = hva.map_addr(|at| at & !(bytes - 1));
    let (done, _) = expecting(|| poison_pages(start.cast(), bytes));
    done.map_err(std::io::Error::from_raw_os_error)
        .context("MADV_HWPOISON")?;
    Ok(bytes)
}

/// Writes 64 bits to a register of a device in this machine's own physical address space, through
/// /dev/mem.
pub fn poke(memory: &Path, addr: u64, value: u64) -> Result<()> {
    let name = memory.display();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_SYNC)
        .open(memory)
        .context(&name)?;
    let bytes = page_size();
    let offset = addr as usize & (bytes - 1);
    let start = (addr as usize & !(bytes - 1)) as libc::off_t;
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
    let mapped = unsafe {
        libc::mmap(
            ptr::null_mut(),
            bytes,
            rights,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            start,
        )
    };
    if mapped == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error()).context(name);
    }
    let register = mapped.cast::<u8>().wrapping_add(offset).cast::<u64>();
    // SAFETY: the register lies in the page just mapped, at a multiple of eight; one store is what the
    // device answers to, and no memory of this program lies there.
    unsafe {
        std::arch::asm!("str {value}, [{register}]", value = in(reg) value,
            register = in(reg) register, options(nostack, preserves_flags));
        libc::munmap(mapped, bytes);
    }
    Ok(())
}

/// SIGBUS for a memory error (sigaction(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusError {
    /// si_addr.
    pub addr: u64,
    /// si_code: `BUS_MCEERR_AR`, `BUS_MCEERR_AO`.
    pub code: i32,
    /// si_addr_lsb: log2 of the bytes that are lost.
    pub lsb: i16,
}

thread_local! {
    /// Whether this thread is where a bus error is none of its own accesses: in a system call.
    static EXPECTING: Cell<bool> = const { Cell::new(false) };
    /// Whether this thread wants a fresh page wherever its own access fails.
    static REPLACING: Cell<bool> = const { Cell::new(false) };
    static SEEN: Cell<Option<BusError>> = const { Cell::new(None) };
}

/// From now on a bus error that comes during [`expecting`] is kept for it; any other still ends the
/// process.
pub fn catch_bus_errors() -> Result<()> {
    extern "C" fn on_bus(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        let error = match NonNull::new(info) {
            // SAFETY: the kernel passes the handler a valid siginfo_t (SA_SIGINFO). si_addr_lsb
            // follows si_addr, which follows the three integers at the start and their padding.
            Some(info) => unsafe {
                let bytes = info.as_ptr().cast::<u8>();
                BusError {
                    addr: bytes.add(16).cast::<u64>().read_unaligned(),
                    code: (*info.as_ptr()).si_code,
                    lsb: bytes.add(24).cast::<i16>().read_unaligned(),
                }
            },
            None => return,
        };
        if REPLACING.get() {
            // One's own access is made again, and finds a page of zeros.
            SEEN.set(Some(error));
            let page = ptr::without_provenance_mut(error.addr as usize);
            if replace_pages(page).is_ok() {
                return;
            }
        }
        if EXPECTING.get() || error.code == libc::BUS_MCEERR_AO {
            SEEN.set(Some(error));
            return;
        }
        // The access would only be made again: let it end the process this time.
        // SAFETY: signal(2) is async-signal-safe, and SIG_DFL is no function of ours.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
    }
    // SAFETY: an all-zero sigaction is one: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_bus as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the handler touches its own thread's cells alone, which need no initialisation.
    let result = unsafe { libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()) };
    match result {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()).context("SIGBUS handler"),
    }
}

/// Asks for word of memory errors that somebody else found, in this process's memory (prctl(2), PR_MCE_KILL): at
/// once, or when this process meets them. It comes to this thread.
pub fn hear_early(early: bool) -> std::result::Result<(), i32> {
    let (set, when) = (libc::PR_MCE_KILL_SET, libc::PR_MCE_KILL_EARLY);
    let when = if early { when } else { libc::PR_MCE_KILL_LATE };
    // SAFETY: it changes nothing but when a signal comes.
    answer(unsafe { libc::prctl(libc::PR_MCE_KILL, set, when, 0, 0) }).map(drop)
}

/// Whether this thread asked to hear early; `None`: nobody has said.
pub fn hears_early() -> std::result::Result<Option<bool>, i32> {
    // SAFETY: it only answers a number.
    let word = answer(unsafe { libc::prctl(libc::PR_MCE_KILL_GET, 0, 0, 0, 0) })?;
    Ok(match word as i32 {
        libc::PR_MCE_KILL_EARLY => Some(true),
        libc::PR_MCE_KILL_LATE => Some(false),
        _ => None,
    })
}

/// Runs a system call that may end in a bus error of somebody else's access (a guest's), and answers
/// that too.
pub fn expecting<R>(call: impl FnOnce() -> R) -> (R, Option<BusError>) {
    SEEN.set(None);
    EXPECTING.set(true);
    let result = call();
    EXPECTING.set(false);
    (result, SEEN.take())
}

/// Runs accesses of this thread's own to a [`Region`] that may fail: a page of zeros comes where one does, and
/// the bus error is answered.
pub fn replacing<R>(access: impl FnOnce() -> R) -> (R, Option<BusError>) {
    SEEN.set(None);
    REPLACING.set(true);
    let result = access();
    REPLACING.set(false);
    (result, SEEN.take())
}

/// `MADV_HWPOISON`: from now on the pages are known to be bad. The kernel tells the caller as if it had
/// met the error, so the call belongs into [`expecting`].
fn poison_pages(start: *mut libc::c_void, bytes: usize) -> std::result::Result<(), i32> {
    // SAFETY: the content is lost, which callers say they want; nothing else changes.
    answer(unsafe { libc::madvise(start, bytes, libc::MADV_HWPOISON) }).map(drop)
}

impl Region {
    /// Makes pages known to be bad (MADV_HWPOISON).
    pub fn poison(&self, offset: usize, bytes: usize) -> std::result::Result<(), i32> {
        poison_pages(self.range(offset, bytes), bytes)
    }
}
