//! The redistributors' own registers. Without LPIs that is GICR_TYPER alone (with them, see `lpi`): GICR_CTLR has nothing to
//! enable, and GICR_WAKER says that the redistributor is awake whatever is asked, which KVM's guests are used to.

use crate::vgic::Vgic;

const TYPER_PLPIS: u64 = 1 << 0;
const TYPER_LAST: u64 = 1 << 4;

impl Vgic {
    /// GICR_TYPER: affinity in bits 63:32, processor number in bits 23:8.
    pub(crate) fn gicr_typer(&self, vcpu: usize) -> u64 {
        let Some(gic) = self.vcpus.get(vcpu) else {
            return 0;
        };
        let last = if gic.last_in_region { TYPER_LAST } else { 0 };
        let lpis = if self.lpis.present { TYPER_PLPIS } else { 0 };
        u64::from(gic.affinity.0) << 32 | gic.affinity.number() << 8 | last | lpis
    }

    /// The vCPU whose redistributor has this number (GICR_TYPER.Processor_Number).
    #[must_use]
    pub fn vcpu_by_number(&self, number: u64) -> Option<usize> {
        self.vcpus
            .iter()
            .position(|vcpu| vcpu.affinity.number() == number)
    }

    /// The number of a vCPU's redistributor.
    #[must_use]
    pub fn number_of(&self, vcpu: usize) -> u64 {
        self.vcpus
            .get(vcpu)
            .map_or(0, |vcpu| vcpu.affinity.number())
    }
}
