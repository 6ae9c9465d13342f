//! The console: umbra's log on it, and its input for whoever reads the terminal.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use log::{Level, LevelFilter, Log, Metadata, Record};
use umbra_hw::gic::IntId;

static QUIET: AtomicBool = AtomicBool::new(false);
static INTERRUPT: AtomicU32 = AtomicU32::new(0);

struct Console;

impl Log for Console {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Error || !QUIET.load(Ordering::Relaxed)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        match record.level() {
            Level::Info => umbra_hw::uart::print(format_args!("umbra: {}\n", record.args())),
            level => umbra_hw::uart::print(format_args!("umbra: {level}: {}\n", record.args())),
        }
    }

    fn flush(&self) {}
}

/// Makes the PL011 at `base` with this interrupt the console and sends the log there.
pub(crate) fn init(base: u64, interrupt: Option<u32>) {
    umbra_hw::uart::init(base).expect("the early tables cover the console");
    INTERRUPT.store(interrupt.unwrap_or(0), Ordering::Relaxed);
    // The only logger: the call fails only if there is one already.
    let _ = log::set_logger(&Console);
    log::set_max_level(LevelFilter::Info);
}

/// Leaves the console to the first program: errors only.
pub(crate) fn set_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

/// The console's interrupt, if it has one.
pub(crate) fn interrupt() -> Option<IntId> {
    match INTERRUPT.load(Ordering::Relaxed) {
        0 => None,
        id => Some(IntId(id)),
    }
}

/// Lets input interrupt this CPU from now on.
pub(crate) fn enable_input() {
    if let Some(IntId(id)) = interrupt() {
        umbra_hw::uart::enable_input_interrupt();
        umbra_hw::gic::enable_shared(id);
    }
}

/// Input has arrived. Called with no lock held.
pub(crate) fn input() {
    let mut bytes = heapless::Vec::<u8, 64>::new();
    while let Some(byte) = umbra_hw::uart::read_byte() {
        // Cannot be full: it is emptied just below.
        let _ = bytes.push(byte);
        if bytes.is_full() {
            crate::files::tty::input(&bytes);
            bytes.clear();
        }
    }
    crate::files::tty::input(&bytes);
}
