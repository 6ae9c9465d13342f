//! The distributor's own registers: GICD_CTLR, GICD_TYPER, `GICD_IROUTER<n>`.

use crate::FIRST_SPI;
use crate::lpi::INTID_BITS;
use crate::vcpus::{Kicks, VcpuNumber};
use crate::vgic::{Affinity, Vgic};

const CTLR_GROUP0: u32 = 1 << 0;
const CTLR_GROUP1: u32 = 1 << 1;
/// Affinity routing is on for good.
const CTLR_ARE: u32 = 1 << 4;
/// One security state.
const CTLR_DS: u32 = 1 << 6;

/// INTIDs are 10 bits wide while there are no LPIs: GICD_TYPER.IDbits is one less.
const TYPER_IDBITS: u32 = 9 << 19;
/// With LPIs, as many bits as they have.
const TYPER_LPIS: u32 = 1 << 17 | (INTID_BITS - 1) << 19;
const TYPER_A3V: u32 = 1 << 24;
/// No 1-of-N routing: IROUTER.Interrupt_Routing_Mode is RES0.
const TYPER_NO1N: u32 = 1 << 25;
/// SGIs reach Aff0 above 15.
const TYPER_RSS: u32 = 1 << 26;

impl Vgic {
    pub(crate) const fn gicd_ctlr(&self) -> u32 {
        let group0 = if self.group0 { CTLR_GROUP0 } else { 0 };
        let group1 = if self.group1 { CTLR_GROUP1 } else { 0 };
        group0 | group1 | CTLR_ARE | CTLR_DS
    }

    pub(crate) fn set_gicd_ctlr(&mut self, value: u32) -> Kicks {
        let before = self.gicd_ctlr();
        self.group0 = value & CTLR_GROUP0 != 0;
        self.group1 = value & CTLR_GROUP1 != 0;
        if self.gicd_ctlr() == before {
            return Kicks::NONE;
        }
        let mut kicks = Kicks::NONE;
        for (index, vcpu) in self.vcpus.iter_mut().enumerate() {
            if !vcpu.candidates.is_empty() || !vcpu.lpi_candidates.is_empty() {
                vcpu.dirty = true;
                kicks |= Kicks::one(index);
            }
        }
        kicks
    }

    pub(crate) fn gicd_typer(&self) -> u32 {
        let lines = self.intid_end().div_ceil(32) - 1;
        let a3v = if self.vtr.a3v() { TYPER_A3V } else { 0 };
        let rss = if self.far_aff0 { TYPER_RSS } else { 0 };
        let ids = if self.lpis.present {
            TYPER_LPIS
        } else {
            TYPER_IDBITS
        };
        lines | ids | a3v | TYPER_NO1N | rss
    }

    /// `GICD_IROUTER<n>`; zero for what is no SPI of this VM.
    pub(crate) fn irouter(&self, intid: u32) -> u64 {
        match self.irq(0, intid) {
            Some(irq) if intid >= FIRST_SPI => irq.route.to_irouter(),
            _ => 0,
        }
    }

    pub(crate) fn set_irouter(&mut self, intid: u32, value: u64) -> Kicks {
        let mask = if self.vtr.a3v() {
            u32::MAX
        } else {
            0x00ff_ffff
        };
        let route = Affinity(Affinity::from_mpidr(value).0 & mask);
        let target = self.vcpu_by_affinity(route).map(|vcpu| vcpu as VcpuNumber);
        let Some(irq) = self
            .irq_mut(0, intid)
            .filter(|irq| intid >= FIRST_SPI && irq.route != route)
        else {
            return Kicks::NONE;
        };
        irq.route = route;
        irq.target = target;
        self.settle(0, intid)
    }
}
