//! Registers with one field an interrupt: IGROUPR to ICFGR, the same in the distributor and the SGI frame.

use crate::FIRST_SPI;
use crate::irq::Irq;
use crate::mmio::{Access, Refusal};
use crate::vcpus::{Kicks, VcpuSet};
use crate::vgic::Vgic;

/// Which field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bank {
    Group,
    SetEnable,
    ClearEnable,
    SetPending,
    ClearPending,
    SetActive,
    ClearActive,
    Priority,
    Config,
}

impl Bank {
    /// Bits of one interrupt's field.
    pub(crate) const fn width(self) -> u32 {
        match self {
            Self::Priority => 8,
            Self::Config => 2,
            Self::Group
            | Self::SetEnable
            | Self::ClearEnable
            | Self::SetPending
            | Self::ClearPending
            | Self::SetActive
            | Self::ClearActive => 1,
        }
    }
}

/// The interrupts an access covers: `count` from `first`; private ones are those of `vcpu`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) vcpu: usize,
    pub(crate) first: u32,
    pub(crate) count: u32,
}

impl Span {
    /// Each interrupt's INTID and where its field is in the value, for those a frame shows: private ones are the SGI frame's,
    /// shared ones the distributor's.
    fn fields(self, bank: Bank, shared: bool) -> impl Iterator<Item = (u32, u32)> {
        (0..self.count)
            .map(move |index| (self.first + index, index * bank.width()))
            .filter(move |&(intid, _)| (intid >= FIRST_SPI) == shared)
    }
}

impl Vgic {
    /// Reads the fields of `bank` for `span`; `shared` says that the frame is the distributor's. Away from
    /// the registers of one field, which are read most.
    #[inline(never)]
    pub(crate) fn read_bank(
        &self,
        access: Access,
        bank: Bank,
        span: Span,
        shared: bool,
    ) -> Result<u64, Refusal> {
        let mut value = 0;
        let mut unknown = VcpuSet::NONE;
        for (intid, shift) in span.fields(bank, shared) {
            let Some(irq) = self.irq(span.vcpu, intid) else {
                continue;
            };
            value |= field(irq, access, bank) << shift;
            if let Some(holder) = irq
                .resident
                .filter(|_| access == Access::Guest && only_hardware_knows(irq, bank))
            {
                unknown |= VcpuSet::one(usize::from(holder));
            }
        }
        if unknown.is_empty() {
            Ok(value)
        } else {
            Err(Refusal::NeedsSync(unknown))
        }
    }

    /// Writes the fields of `bank` for `span`.
    pub(crate) fn write_bank(
        &mut self,
        access: Access,
        bank: Bank,
        span: Span,
        shared: bool,
        value: u64,
    ) -> Result<Kicks, Refusal> {
        if matches!(bank, Bank::SetActive | Bank::ClearActive) {
            let set = span
                .fields(bank, shared)
                .filter(|&(_, shift)| value >> shift & 1 != 0);
            let holders = set.filter_map(|(intid, _)| self.irq(span.vcpu, intid)?.resident);
            let holders = holders.fold(VcpuSet::NONE, |all, holder| {
                all | VcpuSet::one(usize::from(holder))
            });
            if !holders.is_empty() {
                return Err(Refusal::NeedsSync(holders));
            }
        }
        let mut kicks = Kicks::NONE;
        for (intid, shift) in span.fields(bank, shared) {
            kicks |= self.write_field(access, bank, span.vcpu, intid, value >> shift);
        }
        Ok(kicks)
    }

    /// Writes one interrupt's field, in the low bits of `value`.
    fn write_field(
        &mut self,
        access: Access,
        bank: Bank,
        vcpu: usize,
        intid: u32,
        value: u64,
    ) -> Kicks {
        let priority_mask = self.vtr.priority_mask();
        let Some(irq) = self.irq_mut(vcpu, intid) else {
            return Kicks::NONE;
        };
        let bit = value & 1 != 0;
        let raw = access == Access::Uaccess;
        let changed = match bank {
            Bank::Group => replace(&mut irq.group1, bit),
            Bank::SetEnable => bit && replace(&mut irq.enabled, true),
            Bank::ClearEnable => bit && replace(&mut irq.enabled, false),
            // The VMM restores the latch as a whole, the guest sets it by ones and clears it through the other register.
            Bank::SetPending if raw && !bit => irq.clear_latch(),
            Bank::SetPending => bit && irq.set_latch(),
            Bank::ClearPending => bit && !raw && irq.clear_latch(),
            Bank::SetActive => bit && replace(&mut irq.active, true),
            Bank::ClearActive if bit && irq.active => return self.end(vcpu, intid, false),
            Bank::ClearActive => false,
            Bank::Priority => replace(&mut irq.priority, value as u8 & priority_mask),
            // SGIs are edge-triggered; PPIs are level-sensitive here, as timers and the PMU need them.
            Bank::Config => intid >= FIRST_SPI && replace(&mut irq.edge, value & 2 != 0),
        };
        if changed {
            self.settle(vcpu, intid)
        } else {
            Kicks::NONE
        }
    }
}

/// The field of `bank` as far as is known here.
fn field(irq: &Irq, access: Access, bank: Bank) -> u64 {
    let raw = access == Access::Uaccess;
    let latched = irq.latch || irq.handed;
    match bank {
        Bank::Group => u64::from(irq.group1),
        Bank::SetEnable | Bank::ClearEnable => u64::from(irq.enabled),
        Bank::SetPending if raw => u64::from(latched),
        Bank::ClearPending if raw => 0,
        Bank::SetPending | Bank::ClearPending => u64::from(irq.pending() || latched),
        Bank::SetActive | Bank::ClearActive => u64::from(irq.active),
        Bank::Priority => u64::from(irq.priority),
        Bank::Config => u64::from(irq.edge) << 1,
    }
}

/// Whether the list register of a resident interrupt may say otherwise than `field`.
const fn only_hardware_knows(irq: &Irq, bank: Bank) -> bool {
    match bank {
        Bank::SetPending | Bank::ClearPending => irq.handed && !irq.pending(),
        Bank::SetActive | Bank::ClearActive => true,
        Bank::Group | Bank::SetEnable | Bank::ClearEnable | Bank::Priority | Bank::Config => false,
    }
}

/// Stores `new`; whether that was a change.
fn replace<T: PartialEq>(place: &mut T, new: T) -> bool {
    let changed = *place != new;
    *place = new;
    changed
}
