//! The device file of an ITS: KVM_DEV_TYPE_ARM_VGIC_ITS.

use alloc::sync::Arc;

use umbra_kvm_abi::device::DeviceAttr;
use umbra_linux::Errno;

use super::{Verb, with_all_stopped};
use crate::file::{Call, File};
use crate::kvm::its::ItsUnit;
use crate::kvm::vm::Open;
use crate::kvm::{read_struct, write_struct};
use crate::mm::Mm;

const GRP_ADDR: u32 = 0;
const GRP_CTRL: u32 = 4;
const GRP_ITS_REGS: u32 = 8;
const ADDR_TYPE: u64 = 4;
const CTRL_INIT: u64 = 0;
const CTRL_SAVE_TABLES: u64 = 1;
const CTRL_RESTORE_TABLES: u64 = 2;
const CTRL_RESET: u64 = 4;
/// What reads as the place of an ITS that has none.
const NOWHERE: u64 = u64::MAX;

/// What a process holds: a descriptor for an ITS.
pub(super) struct ItsFile {
    pub(super) open: Arc<Open>,
    pub(super) its: Arc<ItsUnit>,
}

impl File for ItsFile {
    fn ioctl(&self, call: &Call<'_>, request: u32, arg: u64) -> Result<u64, Errno> {
        let mm = call.process.mm();
        if !Arc::ptr_eq(&mm, &self.open.vm().mm) {
            return Err(Errno::EIO);
        }
        let verb = Verb::of(request).ok_or(Errno::ENOTTY)?;
        let attr = read_struct::<DeviceAttr>(&mm, arg)?;
        match verb {
            Verb::Has => has(&attr),
            Verb::Set => self.set(&mm, &attr),
            Verb::Get => self.get(&mm, &attr),
        }?;
        Ok(0)
    }
}

/// The offset of a register. `EINVAL`: between two of them; `ENXIO`: none there.
fn register(attr: &DeviceAttr) -> Result<u32, Errno> {
    let offset = u32::try_from(attr.attr).map_err(|_| Errno::ENXIO)?;
    let narrow = !(8..0xffd0).contains(&offset);
    if !offset.is_multiple_of(if narrow { 4 } else { 8 }) {
        return Err(Errno::EINVAL);
    }
    if umbra_vgic::has_its_register(offset) {
        Ok(offset)
    } else {
        Err(Errno::ENXIO)
    }
}

fn has(attr: &DeviceAttr) -> Result<(), Errno> {
    match (attr.group, attr.attr) {
        (GRP_ADDR, ADDR_TYPE) => Ok(()),
        (GRP_CTRL, CTRL_INIT | CTRL_SAVE_TABLES | CTRL_RESTORE_TABLES | CTRL_RESET) => Ok(()),
        (GRP_ITS_REGS, _) => register(attr).map(drop),
        _ => Err(Errno::ENXIO),
    }
}

impl ItsFile {
    fn set(&self, mm: &Mm, attr: &DeviceAttr) -> Result<(), Errno> {
        let vm = self.open.vm();
        match (attr.group, attr.attr) {
            (GRP_ADDR, ADDR_TYPE) => {
                let base = read_struct::<u64>(mm, attr.addr)?;
                self.its.set_base(base, vm.ipa_bits)
            }
            (GRP_CTRL, CTRL_INIT) => Ok(()),
            (GRP_CTRL, CTRL_SAVE_TABLES) => with_all_stopped(vm, || self.its.tables(vm, true)),
            (GRP_CTRL, CTRL_RESTORE_TABLES) => with_all_stopped(vm, || self.its.tables(vm, false)),
            (GRP_CTRL, CTRL_RESET) => with_all_stopped(vm, || {
                self.its.reset(vm);
                Ok(())
            }),
            (GRP_ITS_REGS, _) => {
                let offset = register(attr)?;
                let value = read_struct::<u64>(mm, attr.addr)?;
                with_all_stopped(vm, || self.its.set_register(vm, offset, value))
            }
            _ => Err(Errno::ENXIO),
        }
    }

    fn get(&self, mm: &Mm, attr: &DeviceAttr) -> Result<(), Errno> {
        let value = match (attr.group, attr.attr) {
            (GRP_ADDR, ADDR_TYPE) => self.its.base().unwrap_or(NOWHERE),
            (GRP_ITS_REGS, _) => {
                let offset = register(attr)?;
                with_all_stopped(self.open.vm(), || self.its.register(offset))?
            }
            _ => return Err(Errno::ENXIO),
        };
        write_struct(mm, attr.addr, &value)
    }
}
