//! System registers that EL0 may read although the hardware traps it.

use umbra_hw::user::UserFrame;

use super::features;

/// Handles a trapped MRS (EC 0x18) as Linux would; false where it is an undefined instruction.
pub(super) fn system(frame: &mut UserFrame, esr: u64) -> bool {
    // ISS: Op0 [21:20], Op2 [19:17], Op1 [16:14], CRn [13:10], Rt [9:5], CRm [4:1], read [0].
    let field = |shift: u32, bits: u32| (esr >> shift & ((1 << bits) - 1)) as u8;
    let is_read = esr & 1 == 1;
    let name = (
        field(20, 2),
        field(14, 3),
        field(10, 4),
        field(1, 4),
        field(17, 3),
    );
    let value = match name {
        (3, 0, 0, crm, op2) if is_read => features::id_register(crm, op2),
        // CTR_EL0 and DCZID_EL0.
        (3, 3, 0, 0, 1) if is_read => umbra_hw::idregs::ctr(),
        (3, 3, 0, 0, 7) if is_read => umbra_hw::idregs::dczid(),
        _ => return false,
    };
    if let Some(register) = frame.x.get_mut(usize::from(field(5, 5))) {
        *register = value;
    }
    frame.pc = frame.pc.wrapping_add(4);
    true
}
