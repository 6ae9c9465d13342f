//! KVM_GET_DIRTY_LOG and KVM_CLEAR_DIRTY_LOG (api.rst 4.8, 4.117).
//!
//! The bitmap goes out in pieces, because the VMM's memory is written without the VM's lock held: a
//! piece is read, its pages are protected and hardware has forgotten them before the lock is dropped,
//! and only then is it told. A write that falls in between is in what is told.

use umbra_arm64::Hva;
use umbra_kvm_abi::memory::{
    ClearDirtyLog, DirtyLog, KVM_DIRTY_LOG_INITIALLY_SET, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
    KVM_USER_MEM_SLOTS,
};
use umbra_linux::Errno;
use umbra_stage2::dirty::{PAGES_PER_WORD, is_clearable};

use super::vm::Vm;
use zerocopy::IntoBytes;

/// Words of the bitmap that are handled at once.
const PIECE: usize = 64;

/// What KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 offers.
pub(super) const MANUAL: u64 = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET;

/// Whether the options of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 make sense: pages can start dirty only
/// where somebody clears them.
pub(super) fn is_valid_option(options: u64) -> bool {
    let allowed = if options & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE != 0 {
        MANUAL
    } else {
        KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE
    };
    options & !allowed == 0
}

fn logged_pages(vm: &Vm, slot: u32) -> Result<u64, Errno> {
    if slot >= KVM_USER_MEM_SLOTS {
        return Err(Errno::EINVAL);
    }
    vm.memory.lock().logged_pages(slot).ok_or(Errno::ENOENT)
}

/// Where word `index` of a bitmap at `base` lies.
fn place(base: u64, index: u64) -> Result<Hva, Errno> {
    base.checked_add(index.saturating_mul(8))
        .map(Hva::new)
        .ok_or(Errno::EFAULT)
}

/// KVM_GET_DIRTY_LOG. `EINVAL`: no such number; `ENOENT`: that slot does not log; `EFAULT`.
pub(super) fn get(vm: &Vm, request: &DirtyLog) -> Result<u64, Errno> {
    let words = logged_pages(vm, request.slot)?.div_ceil(PAGES_PER_WORD);
    let clear = vm.options.lock().manual_dirty_log == 0;
    let mut first = 0;
    while first < words {
        let mut piece = [0; PIECE];
        let piece = &mut piece[..(words - first).min(PIECE as u64) as usize];
        if !vm.memory.lock().read_log(request.slot, first, piece, clear) {
            return Err(Errno::ENOENT);
        }
        let told = place(request.dirty_bitmap, first)
            .and_then(|at| vm.mm.write_bytes(at, piece.as_bytes()));
        if let Err(errno) = told {
            if clear {
                vm.memory.lock().restore_log(request.slot, first, piece);
            }
            return Err(errno);
        }
        first += piece.len() as u64;
    }
    Ok(0)
}

/// KVM_CLEAR_DIRTY_LOG. `EINVAL`: no such number, or not whole words of the slot; `ENOENT`: that
/// slot does not log; `EFAULT`.
pub(super) fn clear(vm: &Vm, request: &ClearDirtyLog) -> Result<u64, Errno> {
    if !request.first_page.is_multiple_of(PAGES_PER_WORD) {
        return Err(Errno::EINVAL);
    }
    let pages = logged_pages(vm, request.slot)?;
    let count = u64::from(request.num_pages);
    if !is_clearable(pages, request.first_page, count) {
        return Err(Errno::EINVAL);
    }
    let first = request.first_page / PAGES_PER_WORD;
    let words = count.div_ceil(PAGES_PER_WORD);
    let mut done = 0;
    while done < words {
        let mut piece = [0; PIECE];
        let piece = &mut piece[..(words - done).min(PIECE as u64) as usize];
        let at = place(request.dirty_bitmap, done)?;
        vm.mm.read_bytes(at, piece.as_mut_bytes())?;
        if !vm
            .memory
            .lock()
            .clear_log(request.slot, first + done, piece)
        {
            return Err(Errno::ENOENT);
        }
        done += piece.len() as u64;
    }
    Ok(0)
}
