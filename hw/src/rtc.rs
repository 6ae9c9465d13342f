//! The PL031 real-time clock, read once at boot: seconds since 1970.
//!
//! It is not set, and its alarm is not used (Arm PrimeCell DDI 0224).

use crate::mmu::{self, Kind, NoTablePages};

/// Reads the clock at `pa`: RTCDR, in seconds.
///
/// # Errors
/// [`NoTablePages`].
pub fn read(pa: u64) -> Result<u32, NoTablePages> {
    let base = mmu::map_device(pa, 0x1000, Kind::Device)?;
    // SAFETY: the data register, at offset 0 of the device that was mapped just now; reading it has
    // no side effect. That there is a PL031 at `pa` is what the device tree says.
    Ok(unsafe { (base as *const u32).read_volatile() })
}
