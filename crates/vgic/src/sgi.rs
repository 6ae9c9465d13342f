//! Software-generated interrupts: the guest's writes to ICC_SGI1R_EL1, ICC_ASGI1R_EL1 and ICC_SGI0R_EL1.

use crate::vcpus::Kicks;
use crate::vgic::{Affinity, Vgic};

/// Which register was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SgiRegister {
    /// ICC_SGI1R_EL1: reaches SGIs of either group while GICD_CTLR.DS is set.
    Sgi1r,
    /// ICC_ASGI1R_EL1: reaches SGIs of group 0 only, there being one security state.
    Asgi1r,
    /// ICC_SGI0R_EL1: reaches SGIs of group 0 only.
    Sgi0r,
}

/// The fields the three registers share (IHI 0069, "ICC_SGI1R_EL1").
struct Request {
    intid: u32,
    everyone_else: bool,
    /// Aff3.Aff2.Aff1.0
    cluster: u32,
    /// Aff0 of bit 0 of the target list.
    first: u32,
    targets: u16,
}

impl Request {
    fn decode(value: u64) -> Self {
        let aff = |shift: u32| (value >> shift) as u32 & 0xff;
        Self {
            intid: (value >> 24) as u32 & 0xf,
            everyone_else: value & (1 << 40) != 0,
            cluster: aff(48) << 24 | aff(32) << 16 | aff(16) << 8,
            first: (value >> 44) as u32 & 0xf,
            targets: value as u16,
        }
    }

    const fn names(&self, affinity: Affinity) -> bool {
        let Affinity(affinity) = affinity;
        let (cluster, aff0) = (affinity & !0xff, affinity & 0xff);
        cluster == self.cluster && aff0 / 16 == self.first && self.targets & (1 << (aff0 % 16)) != 0
    }
}

impl Vgic {
    /// The vCPU `vcpu` wrote `value` to `register`.
    pub fn sgi(&mut self, vcpu: usize, register: SgiRegister, value: u64) -> Kicks {
        let request = Request::decode(value);
        let mut kicks = Kicks::NONE;
        for target in 0..self.nr_vcpus() {
            let Some(gic) = self.vcpus.get(target) else {
                continue;
            };
            let named = if request.everyone_else {
                target != vcpu
            } else {
                request.names(gic.affinity)
            };
            let Some(irq) = self.irq_mut(target, request.intid).filter(|_| named) else {
                continue;
            };
            let reachable = !irq.group1 || register == SgiRegister::Sgi1r;
            if reachable && irq.set_latch() {
                kicks |= self.settle(target, request.intid);
            }
        }
        kicks
    }
}
