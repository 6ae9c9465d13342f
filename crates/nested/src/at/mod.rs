//! AT instructions of a guest hypervisor: both walks in software, and PAR_EL1 as their outcome.
//!
//! ```text
//!   S1E1 S1E0   stage 1 of the guest's guest (its tables behind stage 2); under {E2H,TGE} = {1,1} EL2&0
//!   S1E2        EL2&0 (EL2 without E2H)
//!   S12E1 S12E0 both stages of the guest's guest; under {E2H,TGE} = {1,1} EL2&0
//! ```
//!
//! An AT always completes: whatever the registers and tables say, [`translate()`] yields a value for
//! PAR_EL1. The only other outcome is that a page of the VM is not there at the moment; the caller
//! brings it in and runs the same instruction again. (In particular a table in nowhere is a fault in
//! PAR_EL1 and never a reason to run the instruction for ever.)

mod op;
mod par;

pub use op::{Context, Op, translate};
pub use par::Par;
