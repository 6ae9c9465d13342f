//! The alternate signal stack: sigaltstack.

use crate::Errno;
use umbra_arm64::Hva;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `stack_t`: sigaltstack.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct AltStack {
    /// The lowest address.
    pub sp: u64,
    /// `SS_…`.
    pub flags: i32,
    pad: u32,
    /// Bytes.
    pub size: u64,
}

const SS_ONSTACK: i32 = 1;
const SS_DISABLE: i32 = 2;
const SS_AUTODISARM: i32 = i32::MIN;
/// `arch/arm64/include/uapi/asm/signal.h`.
const MINSIGSTKSZ: u64 = 5120;

impl AltStack {
    /// No alternate stack.
    pub const NONE: Self = Self {
        sp: 0,
        flags: SS_DISABLE,
        pad: 0,
        size: 0,
    };

    /// A stack of `size` bytes at `sp`.
    pub const fn new(sp: Hva, size: u64) -> Self {
        Self {
            sp: sp.raw(),
            flags: 0,
            pad: 0,
            size,
        }
    }

    /// Whether `sp` lies on it.
    pub const fn holds(&self, sp: u64) -> bool {
        self.is_enabled() && !self.disarms() && sp > self.sp && sp - self.sp <= self.size
    }

    /// As sigaltstack reports it to a thread whose stack pointer is `sp`.
    pub const fn reported(&self, sp: u64) -> Self {
        let on = if self.holds(sp) { SS_ONSTACK } else { 0 };
        Self {
            flags: self.flags | on,
            ..*self
        }
    }

    /// The stack that a program asks for. `EINVAL`: unknown flags; `ENOMEM`: too small.
    pub fn requested(self) -> Result<Self, Errno> {
        match self.flags & !SS_AUTODISARM {
            SS_DISABLE => Ok(Self {
                flags: self.flags,
                ..Self::NONE
            }),
            0 | SS_ONSTACK if self.size < MINSIGSTKSZ => Err(Errno::ENOMEM),
            0 | SS_ONSTACK if self.sp.checked_add(self.size).is_none() => Err(Errno::ENOMEM),
            0 | SS_ONSTACK => Ok(Self {
                flags: self.flags & SS_AUTODISARM,
                pad: 0,
                ..self
            }),
            _ => Err(Errno::EINVAL),
        }
    }

    const fn is_enabled(&self) -> bool {
        self.flags & SS_DISABLE == 0 && self.size > 0
    }

    const fn disarms(&self) -> bool {
        self.flags & SS_AUTODISARM != 0
    }

    /// Where a frame goes that starts at `sp`, for a handler that wants the alternate stack.
    pub(super) const fn frame_top(&self, sp: u64, on_stack: bool) -> u64 {
        if on_stack && self.is_enabled() && !self.holds(sp) {
            self.sp + self.size
        } else {
            sp
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alternate_stacks_are_checked_and_reported() {
        assert_eq!(size_of::<AltStack>(), 24);
        let stack = AltStack::new(Hva::new(0x10_0000), 0x4000);
        assert_eq!(stack.requested(), Ok(stack));
        assert_eq!(
            AltStack {
                size: 5119,
                ..stack
            }
            .requested(),
            Err(Errno::ENOMEM)
        );
        assert_eq!(
            AltStack {
                sp: u64::MAX,
                ..stack
            }
            .requested(),
            Err(Errno::ENOMEM)
        );
        assert_eq!(
            AltStack { flags: 4, ..stack }.requested(),
            Err(Errno::EINVAL)
        );
        assert_eq!(
            AltStack {
                flags: SS_DISABLE,
                ..stack
            }
            .requested(),
            Ok(AltStack::NONE)
        );
        assert_eq!(stack.reported(0x10_4000).flags, SS_ONSTACK);
        assert_eq!(stack.reported(0x10_0000).flags, 0);
        assert_eq!(stack.frame_top(0x20_0000, true), 0x10_4000);
        assert_eq!(stack.frame_top(0x20_0000, false), 0x20_0000);
        assert_eq!(stack.frame_top(0x10_3000, true), 0x10_3000);
        assert_eq!(AltStack::NONE.frame_top(0x20_0000, true), 0x20_0000);
    }
}
