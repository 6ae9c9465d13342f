//! A CPU that umbra cannot run on: said on the console, at EL1, before anything of umbra's own is set up.
//!
//! What runs here may use no atomics (there may be no FEAT_LSE), no lock, no log and no panic that is to be
//! heard. The image is where it always is, and below it everything by its physical address (`boot`).

/// What a CPU lacks. The numbers go from the first instructions to [`refused_rust`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Missing {
    /// The loader's jump was to EL1.
    El2 = 1,
    /// FEAT_VHE, which Armv8.1 brought.
    Vhe = 2,
    /// FEAT_LSE, of the same version.
    Lse = 3,
}

impl Missing {
    const fn text(self) -> &'static str {
        match self {
            Self::El2 => {
                "umbra: this machine starts its kernel at EL1, and umbra has to start at EL2 (QEMU: -M virt,virtualization=on)\r\n"
            }
            Self::Vhe => {
                "umbra: this CPU lacks FEAT_VHE, without which umbra cannot run (Armv8.1 or newer; QEMU: -cpu max)\r\n"
            }
            Self::Lse => {
                "umbra: this CPU lacks FEAT_LSE, without which umbra cannot run (Armv8.1 or newer; QEMU: -cpu max)\r\n"
            }
        }
    }
}

/// What the kernel finds in the device tree for last words.
#[derive(Clone, Copy, Debug, Default)]
pub struct Farewell {
    /// Physical address of a PL011.
    pub console: Option<u64>,
    /// Whether semihosting is there, and the status to end with.
    pub status: Option<u64>,
}

unsafe extern "Rust" {
    fn umbra_refused(device_tree: &[u8]) -> Farewell;
}

#[unsafe(no_mangle)]
extern "C" fn refused_rust(device_tree: u64, missing: u64) -> ! {
    let missing = match missing {
        1 => Missing::El2,
        2 => Missing::Vhe,
        _ => Missing::Lse,
    };
    let at = device_tree as *const u8;
    // SAFETY: `boot` mapped the GiB that the loader's tree lies in, at its own address, and nobody writes
    // there; the size is in its header, big-endian, and is not believed beyond the specification's 2 MiB.
    let tree = unsafe {
        let bytes = u32::from_be_bytes(at.add(4).cast::<[u8; 4]>().read());
        core::slice::from_raw_parts(at, (bytes as usize).min(2 << 20))
    };
    // SAFETY: the kernel defines it by `entry!`.
    let farewell = unsafe { umbra_refused(tree) };
    if let Some(base) = farewell.console {
        for byte in missing.text().bytes() {
            // SAFETY: the tree says that a PL011 is there, and `boot` mapped it as a device. A byte that
            // the device has no room for is lost; nobody else uses it.
            unsafe {
                while (base as *const u32)
                    .byte_add(crate::uart::FR)
                    .read_volatile()
                    & crate::uart::FR_TXFF
                    != 0
                {}
                (base as *mut u32).write_volatile(byte.into());
            }
        }
    }
    if let Some(status) = farewell.status {
        crate::semihosting::exit(status);
    }
    crate::psci::stop()
}
