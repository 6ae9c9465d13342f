//! What a signal tells: `siginfo_t`.

use super::Signal;
use crate::Errno;
use umbra_arm64::Hva;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Values of si_code (`include/uapi/asm-generic/siginfo.h`).
pub mod code {
    /// kill(2).
    pub const SI_USER: i32 = 0;
    /// The kernel, without more to say.
    pub const SI_KERNEL: i32 = 0x80;
    /// tkill(2), tgkill(2).
    pub const SI_TKILL: i32 = -6;
    /// SIGILL: an undefined instruction.
    pub const ILL_ILLOPC: i32 = 1;
    /// SIGTRAP: a breakpoint instruction.
    pub const TRAP_BRKPT: i32 = 1;
    /// SIGSEGV: no mapping.
    pub const SEGV_MAPERR: i32 = 1;
    /// SIGSEGV: a mapping that does not allow it.
    pub const SEGV_ACCERR: i32 = 2;
    /// SIGBUS: misaligned.
    pub const BUS_ADRALN: i32 = 1;
    /// SIGBUS: beyond the object.
    pub const BUS_ADRERR: i32 = 2;
    /// SIGBUS: the thread consumed a memory error.
    pub const BUS_MCEERR_AR: i32 = 4;
    /// SIGBUS: a memory error was found elsewhere.
    pub const BUS_MCEERR_AO: i32 = 5;
    /// SIGSYS: a filter of system calls.
    pub const SYS_SECCOMP: i32 = 1;
    /// SIGCHLD: the child called exit.
    pub const CLD_EXITED: i32 = 1;
    /// SIGCHLD: a signal killed the child.
    pub const CLD_KILLED: i32 = 2;
    /// SIGCHLD: a signal killed the child, and its default is a core image.
    pub const CLD_DUMPED: i32 = 3;
}

/// `siginfo_t`: 128 bytes.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Siginfo {
    /// The signal's number.
    pub signo: i32,
    /// An error number; zero.
    pub errno: i32,
    /// Why it was sent: see [`code`].
    pub code: i32,
    pad: u32,
    fields: [u64; 14],
}

impl Siginfo {
    /// Nothing to tell but the signal and why.
    pub fn plain(signal: Signal, code: i32) -> Self {
        Self {
            signo: i32::from(signal.number()),
            code,
            ..Self::default()
        }
    }

    /// Sent by process `pid` of user `uid`.
    pub fn from_process(signal: Signal, code: i32, pid: i32, uid: u32) -> Self {
        let mut info = Self::plain(signal, code);
        info.fields[0] = u64::from(pid.cast_unsigned()) | u64::from(uid) << 32;
        info
    }

    /// Caused by an access to `addr`.
    pub fn fault(signal: Signal, code: i32, addr: Hva) -> Self {
        let mut info = Self::plain(signal, code);
        info.fields[0] = addr.raw();
        info
    }

    /// SIGBUS for a memory error: `2^lsb` bytes around `addr` are bad. `code` is
    /// [`code::BUS_MCEERR_AR`] or [`code::BUS_MCEERR_AO`].
    pub fn memory_error(code: i32, addr: Hva, lsb: u8) -> Self {
        let mut info = Self::fault(Signal::BUS, code, addr);
        info.fields[1] = u64::from(lsb);
        info
    }

    /// SIGSYS: the call of this number, behind which is `pc`, was not allowed; `reason` is the filter's word.
    pub fn bad_call(pc: Hva, number: u32, arch: u32, reason: u16) -> Self {
        let mut info = Self::fault(Signal::SYS, code::SYS_SECCOMP, pc);
        info.errno = i32::from(reason);
        info.fields[1] = u64::from(number) | u64::from(arch) << 32;
        info
    }

    /// SIGCHLD: the child `pid` has ended, with an exit code or by a signal of number `status`.
    pub fn child(code: i32, pid: i32, uid: u32, status: i32) -> Self {
        let mut info = Self::from_process(Signal::CHLD, code, pid, uid);
        info.fields[1] = u64::from(status.cast_unsigned());
        info
    }

    /// The signal, if the number is one: a process may fill this in itself (rt_sigqueueinfo).
    pub fn signal(&self) -> Result<Signal, Errno> {
        u32::try_from(self.signo)
            .map_err(|_| Errno::EINVAL)
            .and_then(Signal::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_the_kernels() {
        assert_eq!(size_of::<Siginfo>(), 128);
        let bytes = Siginfo::memory_error(code::BUS_MCEERR_AR, Hva::new(0x1234_5000), 12);
        let bytes = bytes.as_bytes();
        assert_eq!((bytes[0], bytes[8], bytes[17], bytes[24]), (7, 4, 0x50, 12));
        let bad = Siginfo::bad_call(Hva::new(0x40), 98, 0xc000_00b7, 5);
        let bad = bad.as_bytes();
        assert_eq!((bad[0], bad[4], bad[8], bad[16]), (31, 5, 1, 0x40));
        assert_eq!((bad[24], bad[28], bad[31]), (98, 0xb7, 0xc0));
        let child = Siginfo::child(code::CLD_EXITED, 5, 6, 7);
        let child = child.as_bytes();
        assert_eq!((child[16], child[20], child[24]), (5, 6, 7));
    }
}
