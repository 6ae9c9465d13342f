//! The unsafe island: everything that touches the machine.
//!
//! Above this crate the kernel is `forbid(unsafe_code)`. What is exported here is safe to call with
//! any arguments; where the machine could be told to break umbra's own rules (which page a table
//! entry maps), `docs/unsafe.md` says who guarantees what. Logic lives elsewhere: nothing here knows
//! what a VM or a process is.
#![cfg_attr(target_os = "none", no_std)]
#![cfg(target_arch = "aarch64")]

extern crate alloc;

mod boot;
mod exception;
mod mmu;
mod percpu;
mod refused;
mod regs;
mod vectors;

pub mod aspace;
pub mod copy;
pub mod debug;
pub mod disk;
pub mod fp;
mod frame;
pub mod gic;
pub mod guest;
pub mod heap;
pub mod idregs;
pub mod lost;
pub mod mem;
pub mod pauth;
pub mod pmu;
pub mod psci;
pub mod rtc;
pub mod sabotage;
pub mod scarce;
pub mod semihosting;
pub mod sync;
pub mod thread;
pub mod timer;
pub mod tlb;
pub mod traps;
pub mod uart;
pub mod user;
pub mod vgic;

pub use boot::{HCR_AMO, HCR_API, HCR_APK, HCR_E2H, HCR_FMO, HCR_IMO, HCR_RW, HCR_TGE};
pub use exception::{backtrace, frame_pointer};
pub use mmu::{NoTablePages, donate, donated_pages, image, nowhere, table_pages_left};
pub use percpu::{MAX_CPUS, affinity, cpu};
pub use refused::Farewell;

use umbra_arm64::Pa;

unsafe extern "Rust" {
    fn umbra_primary(device_tree: Pa) -> !;
    fn umbra_secondary() -> !;
}

/// Names the kernel's entry points: the function the boot CPU runs with the device tree's physical
/// address, the one every further CPU runs, and the one that finds a console in the device tree where
/// umbra cannot run; that one may use no atomics and no log.
#[macro_export]
macro_rules! entry {
    ($primary:path, $secondary:path, $refused:path) => {
        #[unsafe(no_mangle)]
        fn umbra_primary(device_tree: $crate::PaForEntry) -> ! {
            $primary(device_tree)
        }
        #[unsafe(no_mangle)]
        fn umbra_secondary() -> ! {
            $secondary()
        }
        #[unsafe(no_mangle)]
        fn umbra_refused(device_tree: &[u8]) -> $crate::Farewell {
            $refused(device_tree)
        }
    };
}

#[doc(hidden)]
pub use umbra_arm64::Pa as PaForEntry;

#[unsafe(no_mangle)]
extern "C" fn primary_rust(device_tree: u64, image: u64) -> ! {
    percpu::install(0);
    mmu::init(image);
    for cpu in 0..MAX_CPUS.min(8) {
        mmu::prepare_window(cpu).expect("the early tables cover the windows");
    }
    mmu::drop_identity();
    init_cpu();
    // SAFETY: the kernel defines it by `entry!`.
    unsafe { umbra_primary(Pa::new(device_tree)) }
}

#[unsafe(no_mangle)]
extern "C" fn secondary_rust(slot: &percpu::PerCpu) -> ! {
    percpu::install(slot.index.load(core::sync::atomic::Ordering::Acquire) as usize);
    aspace::leave_identity();
    init_cpu();
    // SAFETY: as above.
    unsafe { umbra_secondary() }
}

/// The state every CPU starts from, whatever firmware left.
fn init_cpu() {
    user::set_vbar(vectors::user_vectors());
    fp::init_cpu();
    tlb::guests_local();
    traps::init_cpu();
    pmu::init_cpu();
}
