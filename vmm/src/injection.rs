//! Registers by which the guest asks for a memory error in a page of its own: for testing
//! (`--error-injection`).
//!
//! ```text
//!   +0  an error that nobody knows of     +8  a page that is known to be bad (MADV_HWPOISON, on Linux too)
//!
//!   guest: 64-bit store of a guest physical address to +0 ──► this device ──► pagemap: where is that?
//!        host with EINJ ──► planted there: the next access consumes it
//!        host that is a guest itself ──► the same store, to the same register one storey below (/dev/mem)
//! ```
//!
//! So a program in a guest's guest can make a page of its own bad on the machine at the bottom, and
//! every storey on the way only says where it keeps that page.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::bus::MmioDevice;
use crate::error::{Context, Error, Result};
use crate::json::Line;
use crate::kvm;
use crate::layout::{self, Memory};

const EINJ: &str = "/sys/kernel/debug/apei/einj";
/// Memory, uncorrectable, not fatal.
const UNCORRECTABLE: u64 = 0x10;

/// The device.
pub struct Injection {
    memory: Memory,
    /// 0: nothing asked; 1: done; 2: failed.
    status: u64,
}

impl Injection {
    /// For pages of this RAM.
    pub fn new(memory: Memory) -> Self {
        Injection { memory, status: 0 }
    }

    fn retire(&self, gpa: u64) -> Result<()> {
        let page = self
            .memory
            .get_host_address(GuestAddress(gpa))
            .context(format!("{gpa:#x} is no RAM"))?;
        let line = Line::new("plant").address("gpa", gpa);
        line.address("hva", page as u64).text("by", "madvise").say();
        kvm::retire_pages(page).map(drop)
    }

    fn plant(&self, gpa: u64) -> Result<()> {
        let hva = self
            .memory
            .get_host_address(GuestAddress(gpa))
            .context(format!("{gpa:#x} is no RAM"))? as u64;
        let pa = frame_of(hva)? + hva % 4096;
        let line = Line::new("plant").address("gpa", gpa).address("hva", hva);
        let einj = Path::new(EINJ).exists();
        let by = if einj { "einj" } else { "the storey below" };
        line.address("pa", pa).text("by", by).say();
        if !einj {
            return kvm::poke(Path::new("/dev/mem"), layout::INJECTION, pa);
        }
        for (file, value) in [
            ("error_type", UNCORRECTABLE),
            ("flags", 2),
            ("param1", pa),
            ("param2", u64::MAX),
            ("notrigger", 1),
            ("error_inject", 1),
        ] {
            let path = format!("{EINJ}/{file}");
            fs::write(&path, format!("{value:#x}\n")).context(path)?;
        }
        Ok(())
    }
}

/// Physical address of the page at `hva`, on the host that this process sees.
fn frame_of(hva: u64) -> Result<u64> {
    let path = "/proc/self/pagemap";
    let mut entry = [0; 8];
    File::open(path)
        .and_then(|file| file.read_exact_at(&mut entry, hva / 4096 * 8))
        .context(path)?;
    let entry = u64::from_le_bytes(entry);
    let frame = entry & ((1 << 55) - 1);
    if entry >> 63 == 0 || frame == 0 {
        return Err(Error::Failed(format!(
            "{path}: {hva:#x} is not present, or its frame is not told"
        )));
    }
    Ok(frame << 12)
}

impl MmioDevice for Injection {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        let count = data.len().min(8);
        data[..count].copy_from_slice(&self.status.to_le_bytes()[..count]);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Ok(value) = <[u8; 8]>::try_from(data) else {
            log::warn!("error injection takes stores of 64 bits");
            return;
        };
        let gpa = u64::from_le_bytes(value);
        let done = match offset {
            0 => self.plant(gpa),
            8 => self.retire(gpa),
            _ => return,
        };
        self.status = match done {
            Ok(()) => 1,
            Err(e) => {
                log::warn!("error injection: {e}");
                2
            }
        };
    }
}
