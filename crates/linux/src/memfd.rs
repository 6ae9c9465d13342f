//! What a memory file (memfd_create) allows: its seals, and the rules that they make
//! (mm/memfd.c, mm/shmem.c).
//!
//! A seal takes a right away for good. What holds the file's pages is the kernel's; this says yes or no.

use crate::Errno;

/// memfd_create: close on exec.
pub const MFD_CLOEXEC: u32 = 1;
/// memfd_create: seals may be added.
pub const MFD_ALLOW_SEALING: u32 = 2;
/// memfd_create: huge pages, which memory files do not have here.
pub const MFD_HUGETLB: u32 = 4;
/// memfd_create: may never be executed; seals may be added.
pub const MFD_NOEXEC_SEAL: u32 = 8;
/// memfd_create: may be executed.
pub const MFD_EXEC: u32 = 0x10;

/// No further seals.
pub const F_SEAL_SEAL: u32 = 1;
/// The file does not become shorter.
pub const F_SEAL_SHRINK: u32 = 2;
/// The file does not become longer.
pub const F_SEAL_GROW: u32 = 4;
/// Nobody writes.
pub const F_SEAL_WRITE: u32 = 8;
/// Nobody begins to write.
pub const F_SEAL_FUTURE_WRITE: u32 = 0x10;
/// Whether it may be executed does not change.
pub const F_SEAL_EXEC: u32 = 0x20;

const ALL: u32 =
    F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_FUTURE_WRITE | F_SEAL_EXEC;

/// Longest name, without the "memfd:" before it and the NUL behind.
pub const NAME_MAX: usize = 249;

/// The seals of a memory file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seals(u32);

impl Seals {
    /// Of a file made with these flags. `EINVAL`: flags that are none, exclude each other, or ask for
    /// huge pages.
    pub const fn new(flags: u32) -> Result<Self, Errno> {
        let known = MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL | MFD_EXEC;
        let both = MFD_NOEXEC_SEAL | MFD_EXEC;
        if flags & !known != 0 || flags & both == both {
            return Err(Errno::EINVAL);
        }
        Ok(match flags & (MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL) {
            0 => Self(F_SEAL_SEAL),
            MFD_ALLOW_SEALING => Self(0),
            _ => Self(F_SEAL_EXEC),
        })
    }

    /// F_GET_SEALS.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// F_ADD_SEALS. `EINVAL`: no seals; `EPERM`: sealed against it; `EBUSY`: it is mapped for writing.
    pub fn add(&mut self, more: u32, mapped_for_writing: bool) -> Result<(), Errno> {
        if more & !ALL != 0 {
            return Err(Errno::EINVAL);
        }
        if self.0 & F_SEAL_SEAL != 0 {
            return Err(Errno::EPERM);
        }
        if more & !self.0 & F_SEAL_WRITE != 0 && mapped_for_writing {
            return Err(Errno::EBUSY);
        }
        self.0 |= more;
        Ok(())
    }

    /// Whether the file may change its size. `EPERM`.
    pub const fn resize(self, from: u64, to: u64) -> Result<(), Errno> {
        let shrinks = to < from && self.0 & F_SEAL_SHRINK != 0;
        let grows = to > from && self.0 & F_SEAL_GROW != 0;
        if shrinks || grows {
            return Err(Errno::EPERM);
        }
        Ok(())
    }

    /// Whether bytes up to `end` of a file of `size` may be written. `EPERM`.
    pub const fn write(self, size: u64, end: u64) -> Result<(), Errno> {
        if self.0 & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE) != 0 {
            return Err(Errno::EPERM);
        }
        if end > size {
            return self.resize(size, end);
        }
        Ok(())
    }

    /// Whether it may be mapped, shared and for writing. `EPERM`.
    pub const fn map_for_writing(self) -> Result<(), Errno> {
        self.write(0, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags() {
        assert_eq!(Seals::new(0).unwrap().bits(), F_SEAL_SEAL);
        assert_eq!(
            Seals::new(MFD_CLOEXEC | MFD_ALLOW_SEALING).unwrap().bits(),
            0
        );
        assert_eq!(Seals::new(MFD_NOEXEC_SEAL).unwrap().bits(), F_SEAL_EXEC);
        for bad in [MFD_HUGETLB, 0x20, MFD_NOEXEC_SEAL | MFD_EXEC, 21 << 26] {
            assert_eq!(Seals::new(bad), Err(Errno::EINVAL), "{bad:#x}");
        }
    }

    #[test]
    fn each_seal_takes_its_right_and_no_other() {
        for (seal, shrink, grow, write) in [
            (F_SEAL_SHRINK, false, true, true),
            (F_SEAL_GROW, true, false, true),
            (F_SEAL_WRITE, true, true, false),
            (F_SEAL_FUTURE_WRITE, true, true, false),
            (F_SEAL_SEAL, true, true, true),
            (F_SEAL_EXEC, true, true, true),
        ] {
            let mut seals = Seals::new(MFD_ALLOW_SEALING).unwrap();
            seals.add(seal, false).unwrap();
            assert_eq!(seals.resize(8, 7).is_ok(), shrink, "{seal}");
            assert_eq!(seals.resize(8, 9).is_ok(), grow, "{seal}");
            assert!(seals.resize(8, 8).is_ok());
            assert_eq!(seals.write(8, 8).is_ok(), write, "{seal}");
            assert_eq!(seals.write(8, 9).is_ok(), write && grow, "{seal}");
            assert_eq!(seals.map_for_writing().is_ok(), write, "{seal}");
        }
    }

    #[test]
    fn what_cannot_be_added() {
        let mut seals = Seals::new(MFD_ALLOW_SEALING).unwrap();
        assert_eq!(seals.add(0x40, false), Err(Errno::EINVAL));
        assert_eq!(seals.add(F_SEAL_WRITE, true), Err(Errno::EBUSY));
        assert_eq!(seals.add(F_SEAL_FUTURE_WRITE, true), Ok(()));
        assert_eq!(seals.add(F_SEAL_WRITE | F_SEAL_SEAL, false), Ok(()));
        // What is sealed anyway may be asked for while it is mapped, but not once seals are sealed.
        assert_eq!(seals.add(F_SEAL_WRITE, true), Err(Errno::EPERM));
        assert_eq!(
            Seals::new(0).unwrap().add(F_SEAL_GROW, false),
            Err(Errno::EPERM)
        );
    }
}
