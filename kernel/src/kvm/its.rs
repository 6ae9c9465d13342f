//! A VM's interrupt translation services: devices of the VMM, frames to the guest, and where messages
//! go in (`Documentation/virt/kvm/devices/arm-vgic-its.rst`).
//!
//! The lock of an ITS (rank 109) is held while one command is done, which reads the guest's memory
//! (`mm`, 150) and changes the GIC (`vgic`, 165); never for a whole queue.

use alloc::sync::Arc;
use alloc::vec::Vec;

use umbra_arm64::Ipa;
use umbra_hw::sync::SpinLock;
use umbra_kvm_abi::irq::{KVM_MSI_VALID_DEVID, Msi};
use umbra_linux::Errno;
use umbra_vgic::{Frame, Host, ITS_FRAME_BYTES, Its, ItsWrite, Kicks, LpiConfig, Vgic};

use super::vm::Vm;

/// GITS_TRANSLATER: where devices write their messages.
const DOORBELL: u64 = 0x1_0040;

/// One ITS and its place.
struct Unit {
    its: Its,
    base: Option<u64>,
}

/// An ITS of a VM.
pub(super) struct ItsUnit {
    unit: SpinLock<Unit>,
}

/// The ITSes of a VM.
pub(super) struct Itses {
    list: SpinLock<Vec<Arc<ItsUnit>>>,
}

/// The VM as its ITS sees it.
struct VmHost<'a>(&'a Vm);

impl VmHost<'_> {
    /// Runs `f` on the VMM's address of `bytes` at `at`, if they are a slot's.
    fn place(&self, at: u64, bytes: usize) -> Option<(umbra_arm64::Hva, bool)> {
        let (first, last) = (Ipa::new(at), at.checked_add(bytes.checked_sub(1)? as u64)?);
        let mut memory = self.0.memory.lock();
        let slot = memory.slot_at(first)?;
        let same = memory.slot_at(Ipa::new(last)) == Some(slot);
        slot.hva_of(first)
            .filter(|_| same)
            .map(|hva| (hva, slot.read_only))
    }

    fn vgic<R>(&self, f: impl FnOnce(&mut Vgic) -> (R, Kicks)) -> Option<R> {
        self.0.gic.with(self.0, f)
    }

    fn config(&mut self, intid: u32) -> LpiConfig {
        let at = self.vgic(|vgic| (vgic.lpi_config_at(intid), Kicks::NONE));
        let mut byte = [0];
        let read = at.flatten().is_some_and(|at| self.read(at, &mut byte));
        LpiConfig(if read { byte[0] } else { 0 })
    }
}

impl Host for VmHost<'_> {
    fn vcpu_by_number(&self, number: u64) -> Option<usize> {
        self.vgic(|vgic| (vgic.vcpu_by_number(number), Kicks::NONE))?
    }

    fn number_of(&self, vcpu: usize) -> u64 {
        self.vgic(|vgic| (vgic.number_of(vcpu), Kicks::NONE))
            .unwrap_or(0)
    }

    fn lpi_end(&self) -> u32 {
        self.vgic(|vgic| (vgic.lpi_end(), Kicks::NONE)).unwrap_or(0)
    }

    fn read(&mut self, at: u64, into: &mut [u8]) -> bool {
        self.place(at, into.len())
            .is_some_and(|(hva, _)| self.0.mm.read_bytes(hva, into).is_ok())
    }

    fn write(&mut self, at: u64, from: &[u8]) -> bool {
        let written = self
            .place(at, from.len())
            .is_some_and(|(hva, read_only)| !read_only && self.0.mm.write_bytes(hva, from).is_ok());
        if written {
            // Entries are small and aligned: all in one page.
            self.0.memory.lock().mark_dirty(Ipa::new(at));
        }
        written
    }

    fn map(&mut self, intid: u32, vcpu: Option<usize>) -> bool {
        crate::mem::top_up();
        let config = self.config(intid);
        self.vgic(|vgic| match vgic.map_lpi(intid, vcpu, config) {
            Ok(kicks) => (true, kicks),
            Err(_) => (false, Kicks::NONE),
        })
        .unwrap_or(false)
    }

    fn unmap(&mut self, intid: u32) {
        self.vgic(|vgic| ((), vgic.unmap_lpi(intid)));
    }

    fn target(&mut self, intid: u32, vcpu: Option<usize>) {
        self.vgic(|vgic| ((), vgic.target_lpi(intid, vcpu)));
    }

    fn set_pending(&mut self, intid: u32, pending: bool) {
        self.vgic(|vgic| ((), vgic.set_lpi_pending(intid, pending)));
    }

    fn reload(&mut self, intid: u32) {
        let config = self.config(intid);
        self.vgic(|vgic| ((), vgic.configure_lpi(intid, config)));
    }
}

/// ITSes of a VM. One lasts as long as the VM, whether its file is closed or not.
const MOST_ITSES: usize = 64;

impl Itses {
    /// Takes back one that nobody was told of.
    pub(super) fn forget(&self, its: &Arc<ItsUnit>) {
        self.list.lock().retain(|other| !Arc::ptr_eq(other, its));
    }
    pub(super) fn new() -> Self {
        Self {
            list: SpinLock::new("its list", 108, Vec::new()),
        }
    }

    /// Whether the VM has LPIs.
    pub(super) fn are_there(&self) -> bool {
        !self.list.lock().is_empty()
    }

    /// A new ITS. `ENOMEM`: or there are too many.
    pub(super) fn create(&self, vm: &Vm) -> Result<Arc<ItsUnit>, Errno> {
        let its = Arc::new(ItsUnit {
            unit: SpinLock::new(
                "its",
                109,
                Unit {
                    its: Its::new(),
                    base: None,
                },
            ),
        });
        {
            let mut list = self.list.lock();
            if list.len() >= MOST_ITSES {
                return Err(Errno::ENOMEM);
            }
            list.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
            list.push(its.clone());
        }
        vm.gic.with(vm, |vgic| (vgic.allow_lpis(), Kicks::NONE));
        Ok(its)
    }

    /// The ITS whose frames `address` lies in, and the offset.
    fn at(&self, address: u64) -> Option<(Arc<ItsUnit>, u64)> {
        let list = self.list.lock();
        list.iter().find_map(|its| {
            let offset = address.checked_sub(its.unit.lock().base?)?;
            (offset < ITS_FRAME_BYTES).then(|| (its.clone(), offset))
        })
    }

    /// A guest's access to an address: `None` if it is no ITS's. A read gives its value.
    pub(super) fn mmio(&self, vm: &Vm, address: u64, len: u8, write: Option<u64>) -> Option<u64> {
        let (its, offset) = self.at(address)?;
        let Some(offset) = u32::try_from(offset).ok().filter(|&at| at < 0x1_0000) else {
            // A CPU has no DeviceID: its messages go nowhere.
            return Some(0);
        };
        let Some(value) = write else {
            return Some(its.unit.lock().its.read(offset, len));
        };
        let mut host = VmHost(vm);
        let next = its
            .unit
            .lock()
            .its
            .write(offset, len, value, false, &mut host);
        if next == ItsWrite::Commands {
            its.run(vm);
        }
        Some(0)
    }

    /// KVM_SIGNAL_MSI, and what a route of messages leads to. Answers whether the guest takes it.
    /// `ENODEV`: no ITS; `EINVAL`: no DeviceID, or no ITS there; `EBUSY`: it is off.
    pub(super) fn message(&self, vm: &Vm, msi: &Msi) -> Result<bool, Errno> {
        if !self.are_there() {
            return Err(Errno::ENODEV);
        }
        if msi.flags & KVM_MSI_VALID_DEVID == 0 {
            return Err(Errno::EINVAL);
        }
        let address = u64::from(msi.address_lo) | u64::from(msi.address_hi) << 32;
        let (its, offset) = self.at(address).ok_or(Errno::EINVAL)?;
        if offset != DOORBELL {
            return Err(Errno::EINVAL);
        }
        let found = {
            let unit = its.unit.lock();
            if !unit.its.is_enabled() {
                return Err(Errno::EBUSY);
            }
            unit.its.translate(msi.devid, msi.data)
        };
        let Ok(intid) = found else {
            return Ok(false);
        };
        VmHost(vm).set_pending(intid, true);
        Ok(true)
    }
}

impl ItsUnit {
    /// Does the guest's commands until there are none.
    fn run(&self, vm: &Vm) {
        // A guest that gives commands while they are done has its queue's length of them at most
        // twice: others may be waiting for this CPU.
        for _ in 0..2 * (1 << 15) {
            if !self.unit.lock().its.step(&mut VmHost(vm)) {
                return;
            }
            crate::irq::poll();
        }
    }

    /// Its place.
    pub(super) fn base(&self) -> Option<u64> {
        self.unit.lock().base
    }

    /// Gives it a place. `EEXIST`: it has one; `EINVAL`: not a multiple of 64 KiB; `E2BIG`: beyond
    /// the VM.
    pub(super) fn set_base(&self, base: u64, ipa_bits: u8) -> Result<(), Errno> {
        let mut unit = self.unit.lock();
        if unit.base.is_some() {
            return Err(Errno::EEXIST);
        }
        if !base.is_multiple_of(0x1_0000) {
            return Err(Errno::EINVAL);
        }
        let end = base.checked_add(ITS_FRAME_BYTES).ok_or(Errno::EINVAL)?;
        if end > 1 << ipa_bits {
            return Err(Errno::E2BIG);
        }
        unit.base = Some(base);
        Ok(())
    }

    /// A register, for the VMM. `ENXIO`: it has no place yet.
    pub(super) fn register(&self, offset: u32) -> Result<u64, Errno> {
        let unit = self.unit.lock();
        unit.base.ok_or(Errno::ENXIO)?;
        Ok(unit.its.read(offset, 8))
    }

    /// The same, to write. `EBUSY`, `EINVAL`: it may not be written now, or not to that.
    pub(super) fn set_register(&self, vm: &Vm, offset: u32, value: u64) -> Result<(), Errno> {
        let mut unit = self.unit.lock();
        unit.base.ok_or(Errno::ENXIO)?;
        let len = if offset < 8 { 4 } else { 8 };
        match unit.its.write(offset, len, value, true, &mut VmHost(vm)) {
            ItsWrite::Refused if offset == 4 => Err(Errno::EINVAL),
            ItsWrite::Refused => Err(Errno::EBUSY),
            ItsWrite::Done | ItsWrite::Commands => Ok(()),
        }
    }

    /// Saves the maps to the guest's tables, or restores them. `EFAULT`, `EINVAL`.
    pub(super) fn tables(&self, vm: &Vm, save: bool) -> Result<(), Errno> {
        let mut unit = self.unit.lock();
        let mut host = VmHost(vm);
        let done = if save {
            unit.its.save_tables(&mut host)
        } else {
            unit.its.restore_tables(&mut host)
        };
        done.map_err(|error| match error {
            umbra_vgic::TableError::Memory => Errno::EFAULT,
            umbra_vgic::TableError::Invalid => Errno::EINVAL,
        })
    }

    /// As after KVM_CREATE_DEVICE, its place apart.
    pub(super) fn reset(&self, vm: &Vm) {
        self.unit.lock().its.reset(&mut VmHost(vm));
    }
}

/// After a write to `frame`: if a redistributor began to take LPIs by it, reads what the guest's tables say
/// of those that go there.
pub(super) fn begin_lpis(vm: &Vm, frame: Frame) {
    let Frame::Rd(vcpu) = frame else {
        return;
    };
    let mut host = VmHost(vm);
    let starts = host.vgic(|vgic| (vgic.take_lpi_start(vcpu), Kicks::NONE));
    if starts != Some(true) {
        return;
    }
    let table = host
        .vgic(|vgic| {
            let zero = vgic.is_pending_table_zero(vcpu);
            (vgic.pending_table(vcpu).filter(|_| !zero), Kicks::NONE)
        })
        .flatten();
    let mut from = 0;
    while let Some((intid, target)) = host
        .vgic(|vgic| (vgic.next_lpi(from), Kicks::NONE))
        .flatten()
    {
        from = intid + 1;
        if target != Some(vcpu) {
            continue;
        }
        host.reload(intid);
        let mut byte = [0];
        if table.is_some_and(|table| host.read(table + u64::from(intid / 8), &mut byte))
            && byte[0] >> (intid % 8) & 1 == 1
        {
            host.set_pending(intid, true);
        }
    }
}

/// KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES. `EFAULT`: a table is not in memory.
pub(super) fn save_pending(vm: &Vm) -> Result<(), Errno> {
    let mut host = VmHost(vm);
    let mut from = 0;
    while let Some((intid, target)) = host
        .vgic(|vgic| (vgic.next_lpi(from), Kicks::NONE))
        .flatten()
    {
        from = intid + 1;
        let Some(vcpu) = target else {
            continue;
        };
        let (table, pending) = host
            .vgic(|vgic| {
                let pending = vgic.is_lpi_pending(intid);
                ((vgic.pending_table(vcpu), pending), Kicks::NONE)
            })
            .unwrap_or((None, false));
        let Some(at) = table.map(|table| table + u64::from(intid / 8)) else {
            continue;
        };
        let mut byte = [0];
        if !host.read(at, &mut byte) {
            return Err(Errno::EFAULT);
        }
        let bit = 1 << (intid % 8);
        let new = if pending {
            byte[0] | bit
        } else {
            byte[0] & !bit
        };
        if new != byte[0] && !host.write(at, &[new]) {
            return Err(Errno::EFAULT);
        }
    }
    Ok(())
}
