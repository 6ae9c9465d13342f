//! The end: our own invariant is broken, so say so and stop the machine with a failing status.

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::boot;
use crate::irq::{self, Sgi};

static PANICKED: AtomicBool = AtomicBool::new(false);

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    if PANICKED.swap(true, Ordering::AcqRel) {
        umbra_hw::psci::stop();
    }
    for cpu in 0..crate::sched::cpus() {
        if cpu != umbra_hw::cpu() {
            irq::send(cpu, Sgi::Stop);
        }
    }
    umbra_hw::uart::print_unlocked(format_args!(
        "umbra: PANIC on CPU {}: {info}\n",
        umbra_hw::cpu()
    ));
    umbra_hw::backtrace(umbra_hw::frame_pointer(), 0);
    crate::trace::dump();
    boot::end(boot::STATUS_PANIC)
}
