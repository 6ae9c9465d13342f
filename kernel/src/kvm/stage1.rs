//! The guest's own stage 1, as far as its faults need it: at which level the walk for an address meets a
//! given page. Of what a guest hypervisor runs, the tables lie behind that hypervisor's stage 2.

use umbra_arm64::sysreg::Reg;
use umbra_arm64::{Gva, Ipa, Level};

use super::nested;
use super::vcpu::{State, Vcpu};

/// A guest's translation table registers for one half of its address space.
struct Half {
    table: u64,
    input_bits: u32,
    page_shift: u32,
}

fn half(vcpu: &Vcpu, va: Gva) -> Option<Half> {
    let hw = vcpu.hw.lock();
    // With E2H, which is fixed, EL2's registers have the form of EL1's.
    let [tcr, lower, upper] = if hw.virtual_el2 {
        [Reg::TcrEl2, Reg::Ttbr0El2, Reg::Ttbr1El2]
    } else {
        [Reg::TcrEl1, Reg::Ttbr0El1, Reg::Ttbr1El1]
    };
    let tcr = hw.regs.get_any(tcr);
    let is_upper = va.raw() >> 55 & 1 == 1;
    let (table, size, granule) = if is_upper {
        (hw.regs.get_any(upper), tcr >> 16 & 0x3f, tcr >> 30 & 3)
    } else {
        (hw.regs.get_any(lower), tcr & 0x3f, tcr >> 14 & 3)
    };
    // TG0 and TG1 number the granules differently (Arm ARM D24.2.197).
    let page_shift = match (is_upper, granule) {
        (false, 0) | (true, 2) => 12,
        (false, 2) | (true, 1) => 14,
        (false, 1) | (true, 3) => 16,
        _ => return None,
    };
    let input_bits = 64u32
        .checked_sub(size as u32)
        .filter(|bits| (25..=48).contains(bits))?;
    Some(Half {
        table: table & 0x0000_ffff_ffff_fffe,
        input_bits,
        page_shift,
    })
}

/// The level whose descriptor lies in the page `ipa`, by the addresses that the tables have. `None` if
/// the walk does not come by, or its tables cannot be read.
pub(super) fn level_of(vcpu: &Vcpu, state: &State, va: Gva, ipa: Ipa) -> Option<Level> {
    let half = half(vcpu, va)?;
    let stride = half.page_shift - 3;
    let levels = (half.input_bits - half.page_shift).div_ceil(stride);
    let input = va.raw() & ((1 << half.input_bits) - 1);
    let mut table = half.table;
    for step in 0..levels {
        let remaining = levels - 1 - step;
        let shift = half.page_shift + remaining * stride;
        let width = (half.input_bits - shift).min(stride);
        let index = input >> shift & ((1 << width) - 1);
        let at = Ipa::new(table.checked_add(index * 8)?);
        if at.align_down(4096) == ipa.align_down(4096) {
            return Level::from_number(3 - i8::try_from(remaining).ok()?);
        }
        let descriptor = read(vcpu, state, at)?;
        if descriptor & 3 != 3 {
            return None;
        }
        table = descriptor & 0x0000_ffff_ffff_f000 & !((1 << half.page_shift) - 1);
    }
    None
}

fn read(vcpu: &Vcpu, state: &State, at: Ipa) -> Option<u64> {
    let at = nested::through_stage2(vcpu, state, at)?;
    let slot = vcpu.vm.memory.lock().slot_at(at)?;
    vcpu.vm.mm.read_word(slot.hva_of(at)?, 3).ok()
}
