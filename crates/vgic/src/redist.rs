//! The redistributors' own registers. Without LPIs that is GICR_TYPER alone: GICR_CTLR has nothing to enable, and
//! GICR_WAKER says that the redistributor is awake whatever is asked, which KVM's guests are used to.

use crate::vgic::Vgic;

const TYPER_LAST: u64 = 1 << 4;

impl Vgic {
    /// GICR_TYPER: affinity in bits 63:32, processor number in bits 23:8.
    pub(crate) fn gicr_typer(&self, vcpu: usize) -> u64 {
        let Some(gic) = self.vcpus.get(vcpu) else {
            return 0;
        };
        let last = if gic.last_in_region { TYPER_LAST } else { 0 };
        u64::from(gic.affinity.0) << 32 | (vcpu as u64) << 8 | last
    }
}
