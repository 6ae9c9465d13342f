//! SError interrupts taken while a guest ran, by severity (Arm RAS, ESR_EL2.AET).

use umbra_arm64::esr::{Aet, SError};

/// What an SError means for the guest and for the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SErrorEffect {
    /// Nothing that runs is affected: note it and go on.
    Resume,
    /// The guest's state cannot be trusted, everything else can: an SError for the guest.
    InjectIntoGuest,
    /// The error may have gone anywhere, umbra included: stop the machine.
    Fatal,
}

impl SErrorEffect {
    /// The effect of an SError with this syndrome on a machine with or without FEAT_RAS.
    ///
    /// Without severity information the error is as bad as it can be on a machine that would have
    /// given it, and the guest's own on one that never does (an old bus reports a guest's bad
    /// device access this way).
    pub const fn of(error: SError, ras: bool) -> SErrorEffect {
        match error {
            SError::Categorised { aet, .. } if ras => match aet {
                Aet::Corrected | Aet::Restartable => SErrorEffect::Resume,
                Aet::Recoverable | Aet::Unrecoverable => SErrorEffect::InjectIntoGuest,
                Aet::Uncontainable | Aet::Reserved(_) => SErrorEffect::Fatal,
            },
            SError::Uncategorised(_) if ras => SErrorEffect::Fatal,
            SError::ImplementationDefined(_)
            | SError::Categorised { .. }
            | SError::Uncategorised(_) => SErrorEffect::InjectIntoGuest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn severity_decides_where_it_is_known() {
        use SErrorEffect::*;
        let effects = [
            Fatal,
            InjectIntoGuest,
            Resume,
            InjectIntoGuest,
            Fatal,
            Fatal,
            Resume,
            Fatal,
        ];
        for (aet, effect) in effects.into_iter().enumerate() {
            let iss = (aet as u32) << 10 | 0x11;
            assert_eq!(
                SErrorEffect::of(SError::decode(iss), true),
                effect,
                "AET {aet}"
            );
            assert_eq!(
                SErrorEffect::of(SError::decode(iss), false),
                InjectIntoGuest
            );
            assert_eq!(
                SErrorEffect::of(SError::decode(iss | 1 << 24), true),
                InjectIntoGuest
            );
        }
        assert_eq!(SErrorEffect::of(SError::decode(0), true), Fatal);
        assert_eq!(SErrorEffect::of(SError::decode(0), false), InjectIntoGuest);
    }
}
