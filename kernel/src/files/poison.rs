//! The files by which memory errors and failing allocations are injected and listed, and the one that
//! says which frame a page has: Linux's paths and formats.

use alloc::string::String;

use umbra_abort::Poison;
use umbra_arm64::{Hva, Pa};
use umbra_hw::sync::SpinLock;
use umbra_linux::einj::{Einj, Injection, number};
use umbra_linux::fs::ProcFile;
use umbra_linux::{Errno, Stop};

use crate::file::{Call, File};
use crate::{ghes, poison};

/// What was written to EINJ's files; they are one set for the machine.
static EINJ: SpinLock<Einj> = SpinLock::new("einj", 67, Einj::new());

/// An open file of error injection.
pub(super) struct Control {
    which: ProcFile,
    position: SpinLock<u64>,
}

impl Control {
    /// `None`: not one of these files.
    pub(super) fn new(which: ProcFile) -> Option<Self> {
        matches!(
            which,
            ProcFile::Einj(_)
                | ProcFile::CorruptPfn
                | ProcFile::Break
                | ProcFile::FailNth
                | ProcFile::ErrorSources
        )
        .then(|| Self {
            which,
            position: SpinLock::new("control", 66, 0),
        })
    }

    fn text(&self) -> Result<String, Errno> {
        match self.which {
            ProcFile::Einj(file) => EINJ.lock().read(file),
            ProcFile::ErrorSources => Ok(ghes::list()),
            ProcFile::FailNth => Ok(alloc::format!("{}\n", umbra_hw::scarce::left())),
            _ => Err(Errno::EACCES),
        }
    }
}

impl File for Control {
    fn read(&self, call: &Call<'_>, buf: &mut [u8]) -> Result<usize, Stop> {
        let mut position = self.position.lock();
        let count = self.read_at(call, *position, buf)?;
        *position += count as u64;
        Ok(count)
    }

    fn read_at(&self, _call: &Call<'_>, offset: u64, buf: &mut [u8]) -> Result<usize, Errno> {
        let text = self.text()?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = text.as_bytes().get(start..).unwrap_or_default();
        let count = rest.len().min(buf.len());
        buf[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write_at(&self, _call: &Call<'_>, _offset: u64, bytes: &[u8]) -> Result<usize, Errno> {
        match self.which {
            // One that is open already is written so: opening it could be what fails.
            ProcFile::FailNth if umbra_hw::scarce::fail_nth(number(bytes)?) => Ok(bytes.len()),
            ProcFile::FailNth => Err(Errno::EOPNOTSUPP),
            _ => Err(Errno::ESPIPE),
        }
    }

    fn write(&self, call: &Call<'_>, bytes: &[u8]) -> Result<usize, Stop> {
        match self.which {
            ProcFile::Einj(file) => {
                let injection = EINJ.lock().write(file, bytes)?;
                if let Some(injection) = injection {
                    inject(injection)?;
                }
            }
            ProcFile::Break => poison::break_on_purpose(&call.process.mm(), bytes)?,
            ProcFile::ErrorSources => ghes::write(bytes)?,
            ProcFile::FailNth => return Ok(self.write_at(call, 0, bytes)?),
            _ => {
                let frame = number(bytes)?;
                let at = frame.checked_mul(4096).ok_or(Errno::ENXIO)?;
                poison::report(Pa::new(at), Poison::Known)?;
            }
        }
        Ok(bytes.len())
    }
}

/// `EINVAL` for what is not memory, as Linux.
fn inject(injection: Injection) -> Result<(), Errno> {
    let done = match injection {
        Injection::Corrected(at) => {
            poison::corrected(at);
            Ok(())
        }
        Injection::Plant(at) => poison::report(at, Poison::Latent),
        Injection::Report(at) => {
            ghes::raise(at).unwrap_or_else(|| poison::report(at, Poison::Known))
        }
    };
    done.map_err(|errno| match errno {
        Errno::ENXIO => Errno::EINVAL,
        other => other,
    })
}

/// /proc/self/pagemap (Documentation/admin-guide/mm/pagemap.rst): eight bytes a page.
pub(super) struct PageMap;

/// The page is present.
const PRESENT: u64 = 1 << 63;

impl File for PageMap {
    fn read_at(&self, call: &Call<'_>, offset: u64, buf: &mut [u8]) -> Result<usize, Errno> {
        // Whole entries only.
        if !offset.is_multiple_of(8) || !buf.len().is_multiple_of(8) {
            return Err(Errno::EINVAL);
        }
        let mm = call.process.mm();
        let mut page = offset / 8;
        let mut done = 0;
        while let Some(entry) = buf.get_mut(done..done + 8) {
            let Some(at) = page
                .checked_mul(4096)
                .filter(|&at| at < umbra_linux::vma::USER_END)
            else {
                break;
            };
            let frame = mm.frame_at(Hva::new(at));
            let value = frame.map_or(0, |pa| PRESENT | pa.raw() >> 12);
            entry.copy_from_slice(&value.to_le_bytes());
            page += 1;
            done += 8;
        }
        Ok(done)
    }
}

/// The text of a file that is only read, if it is one of these.
pub(super) fn text(which: ProcFile) -> Option<String> {
    match which {
        ProcFile::BadFrames => Some(poison::list()),
        ProcFile::Ranges => Some(poison::ranges()),
        // Its presence is what testers look for; there is no ACPI that could read more.
        ProcFile::EinjTable => Some(String::from("EINJ")),
        _ => None,
    }
}
