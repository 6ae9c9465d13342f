//! AT and PAR_EL1.

use umbra_nested::GuestMemory;
use umbra_nested::stage1::Regime;

use super::attributes::{encode_par_attrs, par_encode_shareability};
use super::{AccDesc, Fault, Machine, bit, encode_ldfsc, s1_translate, s2_translate};

/// The operands of `AArch64.AT`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At {
    /// Exception level, 0 to 2.
    pub(crate) el: u8,
    /// TranslationStage_12.
    pub(crate) stage12: bool,
    /// ATAccess_Write or ATAccess_WritePAN.
    pub(crate) write: bool,
    /// ATAccess_ReadPAN or ATAccess_WritePAN.
    pub(crate) pan: bool,
}

/// `TranslationRegime`. Under {E2H,TGE} = {1,1} the two-stage forms ask about EL2&0 as well: so say the
/// pages of AT S12E1R and S12E0R, and so do QEMU (`ats_write64`) and KVM; the pseudocode has EL1&0.
fn regime(at: At, hcr: u64) -> Regime {
    let (e2h, tge) = (bit(hcr, 34), bit(hcr, 27));
    match at.el {
        2 if e2h => Regime::El20,
        2 => Regime::El2,
        _ if e2h && tge => Regime::El20,
        _ => Regime::El10,
    }
}

/// `AArch64.AT` with `AArch64.EncodePAR`: the value of PAR_EL1, or the address of a word that is not
/// there at the moment. An external abort on the walk, which is an exception, is given as the fault
/// that `EncodePAR` would make of it.
pub(crate) fn aarch64_at<M: GuestMemory>(
    machine: &mut Machine<'_, M>,
    va: u64,
    at: At,
    pstate_pan: bool,
) -> Result<u64, u64> {
    let regime = regime(at, machine.regs.hcr);
    let accdesc = AccDesc {
        el0: at.el == 0,
        read: !at.write,
        write: at.write,
        at: true,
        pan: at.pan && pstate_pan,
        ..AccDesc::READ
    };
    let mut outcome = s1_translate(machine, regime, va, accdesc);
    if let (Ok(first), true, Regime::El10) = (outcome, at.stage12, regime) {
        outcome = s2_translate(machine, first.address, first.memattrs, accdesc);
    }
    // Bit 11 is RES1 without FEAT_RME; NS is UNKNOWN in a success, here 1 as in QEMU.
    match outcome {
        Ok(output) => {
            let attr = encode_par_attrs(&output.memattrs, machine.features.xs);
            let sh = par_encode_shareability(&output.memattrs);
            Ok(attr << 56 | output.address >> 12 << 12 | 1 << 11 | 1 << 9 | sh << 7)
        }
        Err(Fault::Architected {
            statuscode,
            level,
            secondstage,
            s2fs1walk,
        }) => {
            let fst = u64::from(encode_ldfsc(statuscode, level));
            let (s, ptw) = (u64::from(secondstage), u64::from(s2fs1walk));
            Ok(1 << 11 | s << 9 | ptw << 8 | fst << 1 | 1)
        }
        Err(Fault::Retry(at)) => Err(at),
    }
}
