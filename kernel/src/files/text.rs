//! The texts of /proc, made when they are opened.

use alloc::string::String;
use core::fmt::Write;

use umbra_frames::{CHUNK_ORDER, MAX_ORDER};
use umbra_hw::sync::SpinLock;
use umbra_hw::thread::STACK_PAGES;
use umbra_linux::fs::{HugeCount, HugeSize, ProcFile};
use umbra_linux::{Errno, Stop, uapi};

use crate::file::{Call, File};
use crate::{mem, sched};

/// An open text: made once, so that its parts fit together.
pub(super) struct Text {
    text: String,
    position: SpinLock<u64>,
}

impl Text {
    pub(super) fn new(text: String) -> Self {
        Self {
            text,
            position: SpinLock::new("text", 66, 0),
        }
    }

    fn copy(&self, offset: u64, buf: &mut [u8]) -> usize {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = self.text.as_bytes().get(start..).unwrap_or_default();
        let count = rest.len().min(buf.len());
        buf[..count].copy_from_slice(&rest[..count]);
        count
    }
}

impl File for Text {
    fn read(&self, _call: &Call<'_>, buf: &mut [u8]) -> Result<usize, Stop> {
        let mut position = self.position.lock();
        let count = self.copy(*position, buf);
        *position += count as u64;
        Ok(count)
    }

    fn read_at(&self, _call: &Call<'_>, offset: u64, buf: &mut [u8]) -> Result<usize, Errno> {
        Ok(self.copy(offset, buf))
    }

    fn seek(&self, offset: i64, whence: u32) -> Result<u64, Errno> {
        let mut position = self.position.lock();
        let base = match whence {
            uapi::SEEK_SET => 0,
            uapi::SEEK_CUR => *position,
            _ => return Err(Errno::EINVAL),
        };
        *position = base.checked_add_signed(offset).ok_or(Errno::EINVAL)?;
        Ok(*position)
    }
}

/// A text that grows as far as there is memory; where there is none, writing fails.
struct Paper(String);

impl Write for Paper {
    fn write_str(&mut self, piece: &str) -> core::fmt::Result {
        self.0
            .try_reserve(piece.len())
            .map_err(|_| core::fmt::Error)?;
        self.0.push_str(piece);
        Ok(())
    }
}

/// The text of `which` at this moment. `ENOMEM`.
pub(super) fn make(call: &Call<'_>, which: ProcFile) -> Result<String, Errno> {
    let mut text = Paper(String::new());
    // Nothing else fails here.
    write(call, which, &mut text).map_err(|_| Errno::ENOMEM)?;
    Ok(text.0)
}

fn write(call: &Call<'_>, which: ProcFile, out: &mut Paper) -> core::fmt::Result {
    match which {
        ProcFile::CpuInfo => {
            let midr = umbra_hw::idregs::read(0, 0);
            for cpu in 0..sched::cpus() {
                writeln!(out, "processor\t: {cpu}")?;
                writeln!(out, "CPU implementer\t: {:#04x}", midr >> 24 & 0xff)?;
                writeln!(out, "CPU architecture: 8")?;
                writeln!(out, "CPU variant\t: {:#x}", midr >> 20 & 0xf)?;
                writeln!(out, "CPU part\t: {:#05x}", midr >> 4 & 0xfff)?;
                writeln!(out, "CPU revision\t: {}\n", midr & 0xf)?;
            }
            Ok(())
        }
        ProcFile::CpuRange => match sched::cpus() {
            1 => writeln!(out, "0"),
            cpus => writeln!(out, "0-{}", cpus - 1),
        },
        ProcFile::MemInfo => {
            let (free, total) = mem::frame_counts();
            let (heap, used) = (umbra_hw::heap::total_bytes(), umbra_hw::heap::used_bytes());
            for (name, kib) in [
                ("MemTotal", total * 4),
                ("MemFree", free * 4),
                ("MemAvailable", free * 4),
                ("Slab", heap as u64 >> 10),
                ("SUnreclaim", used as u64 >> 10),
                (
                    "KernelStack",
                    umbra_hw::thread::stacks() * STACK_PAGES as u64 * 4,
                ),
                // Tables of umbra's own half, which stay. Not in Linux, and so is the next.
                ("KernelTables", umbra_hw::donated_pages() as u64 * 4),
            ] {
                writeln!(out, "{name}:\t{kib} kB")?;
            }
            writeln!(out, "KernelHeap:\t{used} B")?;
            let huge = mem::free_blocks(CHUNK_ORDER);
            writeln!(out, "HugePages_Total:\t{huge}\nHugePages_Free:\t{huge}")?;
            writeln!(out, "HugePages_Rsvd:\t0\nHugePages_Surp:\t0")?;
            writeln!(out, "Hugepagesize:\t2048 kB")
        }
        ProcFile::HugePages(size, HugeCount::Free) => {
            let order = match size {
                HugeSize::Block => CHUNK_ORDER,
                HugeSize::Giant => MAX_ORDER,
            };
            writeln!(out, "{}", mem::free_blocks(order))
        }
        ProcFile::HugePages(_, HugeCount::None) => writeln!(out, "0"),
        ProcFile::Version => writeln!(out, "Linux version {}", crate::sys::info::RELEASE),
        ProcFile::Uptime => {
            let centis = sched::now() / 10_000_000;
            writeln!(out, "{}.{:02} 0.00", centis / 100, centis % 100)
        }
        ProcFile::Cmdline => writeln!(out),
        ProcFile::SelfMaps => {
            let areas = call.process.mm().areas().map_err(|_| core::fmt::Error)?;
            for (span, prot) in areas {
                use umbra_linux::vma::Prot;
                let flag = |bit, letter| if prot.contains(bit) { letter } else { '-' };
                writeln!(
                    out,
                    "{:08x}-{:08x} {}{}{}p 00000000 00:00 0",
                    span.start().raw(),
                    span.end().raw(),
                    flag(Prot::READ, 'r'),
                    flag(Prot::WRITE, 'w'),
                    flag(Prot::EXEC, 'x')
                )?;
            }
            Ok(())
        }
        ProcFile::SelfStatus => {
            let (process, mm) = (call.process, call.process.mm());
            let name = *call.thread.name.lock();
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            writeln!(out, "Name:\t{}", String::from_utf8_lossy(name))?;
            writeln!(out, "State:\tR (running)")?;
            writeln!(out, "Tgid:\t{}\nPid:\t{}", process.pid, call.thread.tid)?;
            // What it has mapped, pages that others have too included, and the tables for that.
            writeln!(out, "VmRSS:\t{} kB", mm.resident_bytes() >> 10)?;
            writeln!(out, "VmPTE:\t{} kB", mm.table_bytes() >> 10)?;
            writeln!(out, "Threads:\t{}", process.threads().len())
        }
        ProcFile::SchedStat => {
            let (ran, waited, turns) = sched::current().statistics();
            writeln!(out, "{ran} {waited} {turns}")
        }
        ProcFile::EinjTable
        | ProcFile::BadFrames
        | ProcFile::Ranges
        | ProcFile::PageMap
        | ProcFile::Einj(_)
        | ProcFile::CorruptPfn
        | ProcFile::Break
        | ProcFile::ErrorSources
        | ProcFile::FailNth => out.write_str(&super::poison::text(which).unwrap_or_default()),
    }
}
