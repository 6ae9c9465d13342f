//! Error injection as Linux's ACPI EINJ driver offers it: the files of /sys/kernel/debug/apei/einj
//! (Documentation/firmware-guide/acpi/apei/einj.rst), without ACPI behind them.
//!
//! A tester writes the kind of error, its address and mask, and then anything to `error_inject`. What
//! umbra can make is an error in memory; `notrigger` leaves it to be found.

use crate::Errno;
use alloc::format;
use alloc::string::String;
use umbra_arm64::Pa;

/// The files, by what they hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EinjFile {
    /// What kinds there are.
    AvailableErrorType,
    /// The kind to inject.
    ErrorType,
    /// Which parameters count.
    Flags,
    /// Nonzero: plant the error, and do not trigger it.
    NoTrigger,
    /// `param1` to `param4`, from 0: the first two are address and mask.
    Param(usize),
    /// Written to inject.
    ErrorInject,
}

const MEMORY_CORRECTABLE: u64 = 1 << 3;
const MEMORY_UNCORRECTABLE: u64 = 1 << 4;
/// Address and mask are valid.
const FLAG_MEMORY: u64 = 1 << 1;

const KINDS: [(u64, &str); 2] = [
    (MEMORY_CORRECTABLE, "Memory Correctable"),
    (MEMORY_UNCORRECTABLE, "Memory Uncorrectable non-fatal"),
];

/// What to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Injection {
    /// Hardware corrects an error there.
    Corrected(Pa),
    /// The page is bad, and nobody knows: the next access consumes the error.
    Plant(Pa),
    /// The page is bad, and firmware says so.
    Report(Pa),
}

/// What was written so far.
#[derive(Debug, Default)]
pub struct Einj {
    kind: u64,
    flags: u64,
    no_trigger: u64,
    params: [u64; 4],
}

impl Einj {
    /// Nothing written yet.
    pub const fn new() -> Self {
        Self {
            kind: 0,
            flags: 0,
            no_trigger: 0,
            params: [0; 4],
        }
    }

    /// A file's text. `EACCES` for the one that is only written.
    pub fn read(&self, file: EinjFile) -> Result<String, Errno> {
        Ok(match file {
            EinjFile::AvailableErrorType => KINDS
                .iter()
                .map(|(kind, name)| format!("0x{kind:08x}\t{name}\n"))
                .collect(),
            EinjFile::ErrorType => format!("{:#x}\n", self.kind),
            EinjFile::Flags => format!("0x{:08x}\n", self.flags),
            EinjFile::NoTrigger => format!("0x{:08x}\n", self.no_trigger),
            EinjFile::Param(n) => {
                format!("0x{:016x}\n", self.params.get(n).copied().unwrap_or(0))
            }
            EinjFile::ErrorInject => return Err(Errno::EACCES),
        })
    }

    /// A write of `text`, a number; answers what is to be done. `EINVAL`: no number, a kind that there
    /// is not, flags or a mask that are not for a page of memory; `EACCES`: not to be written.
    pub fn write(&mut self, file: EinjFile, text: &[u8]) -> Result<Option<Injection>, Errno> {
        let value = number(text)?;
        match file {
            EinjFile::AvailableErrorType => return Err(Errno::EACCES),
            EinjFile::ErrorType => {
                if !KINDS.iter().any(|(kind, _)| *kind == value) {
                    return Err(Errno::EINVAL);
                }
                self.kind = value;
            }
            EinjFile::Flags => self.flags = value,
            EinjFile::NoTrigger => self.no_trigger = value,
            EinjFile::Param(n) => {
                *self.params.get_mut(n).ok_or(Errno::EINVAL)? = value;
            }
            EinjFile::ErrorInject => return self.inject().map(Some),
        }
        Ok(None)
    }

    fn inject(&self) -> Result<Injection, Errno> {
        const PAGE_MASK: u64 = !0xfff;
        let whole_page = self.params[1] & PAGE_MASK == PAGE_MASK;
        if self.flags & !FLAG_MEMORY != 0 || !whole_page {
            return Err(Errno::EINVAL);
        }
        let at = Pa::new(self.params[0] & self.params[1]);
        match (self.kind, self.no_trigger) {
            (MEMORY_CORRECTABLE, _) => Ok(Injection::Corrected(at)),
            (MEMORY_UNCORRECTABLE, 0) => Ok(Injection::Report(at)),
            (MEMORY_UNCORRECTABLE, _) => Ok(Injection::Plant(at)),
            _ => Err(Errno::EINVAL),
        }
    }
}

/// A number as Linux's simple attributes take it: decimal, 0x… or 0…, and a line end. `EINVAL`.
pub fn number(text: &[u8]) -> Result<u64, Errno> {
    let text = core::str::from_utf8(text).map_err(|_| Errno::EINVAL)?;
    let text = text.trim_end_matches(['\n', '\0']);
    let (digits, base) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if text.len() > 1 && text.starts_with('0') => (&text[1..], 8),
        None => (text, 10),
    };
    if digits.starts_with(['+', '-']) {
        return Err(Errno::EINVAL);
    }
    u64::from_str_radix(digits, base).map_err(|_| Errno::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn einj(kind: u64, flags: u64, no_trigger: u64, mask: u64) -> Einj {
        Einj {
            kind,
            flags,
            no_trigger,
            params: [0x4567_8900, mask, 0, 0],
        }
    }

    #[test]
    fn numbers_as_the_kernel_reads_them() {
        for (text, value) in [
            ("16", Ok(16)),
            ("0x10\n", Ok(16)),
            ("0XfF\n", Ok(255)),
            ("010", Ok(8)),
            ("0\n", Ok(0)),
            ("0xffffffffffffffff\n", Ok(u64::MAX)),
            ("0x10000000000000000", Err(Errno::EINVAL)),
            ("", Err(Errno::EINVAL)),
            ("0x", Err(Errno::EINVAL)),
            ("-1", Err(Errno::EINVAL)),
            ("0x+1", Err(Errno::EINVAL)),
            ("x", Err(Errno::EINVAL)),
        ] {
            assert_eq!(number(text.as_bytes()), value, "{text:?}");
        }
        assert_eq!(number(&[0xff]), Err(Errno::EINVAL));
    }

    #[test]
    fn the_files_work_together() {
        let mut einj = Einj::new();
        let mut write = |file, text: &str| einj.write(file, text.as_bytes());
        assert_eq!(write(EinjFile::ErrorInject, "1"), Err(Errno::EINVAL));
        assert_eq!(write(EinjFile::ErrorType, "0x20\n"), Err(Errno::EINVAL));
        assert_eq!(write(EinjFile::ErrorType, "0x10\n"), Ok(None));
        assert_eq!(write(EinjFile::Flags, "0x2\n"), Ok(None));
        assert_eq!(write(EinjFile::Param(0), "0x45678901\n"), Ok(None));
        assert_eq!(write(EinjFile::Param(1), "0xffffffffffffffff"), Ok(None));
        assert_eq!(write(EinjFile::Param(9), "1"), Err(Errno::EINVAL));
        assert_eq!(write(EinjFile::NoTrigger, "0x1\n"), Ok(None));
        assert_eq!(
            write(EinjFile::ErrorInject, "0x1\n"),
            Ok(Some(Injection::Plant(Pa::new(0x4567_8901))))
        );
        assert_eq!(einj.read(EinjFile::ErrorType).unwrap(), "0x10\n");
        assert!(
            einj.read(EinjFile::AvailableErrorType)
                .unwrap()
                .contains("0x00000010\tMemory Uncorrectable non-fatal\n")
        );
        assert_eq!(einj.read(EinjFile::ErrorInject), Err(Errno::EACCES));
    }

    #[test]
    fn kinds_and_parameters() {
        let at = Pa::new(0x4567_8900);
        let all = u64::MAX;
        assert_eq!(einj(8, 2, 0, all).inject(), Ok(Injection::Corrected(at)));
        assert_eq!(einj(16, 2, 0, all).inject(), Ok(Injection::Report(at)));
        assert_eq!(einj(16, 0, 1, all).inject(), Ok(Injection::Plant(at)));
        let page = Pa::new(0x4567_8000);
        assert_eq!(einj(16, 2, 1, !0xfff).inject(), Ok(Injection::Plant(page)));
        for bad in [
            einj(16, 1, 1, all),
            einj(16, 2, 1, 0),
            einj(16, 2, 1, !0xffff),
            einj(0, 2, 1, all),
        ] {
            assert_eq!(bad.inject(), Err(Errno::EINVAL));
        }
    }
}
