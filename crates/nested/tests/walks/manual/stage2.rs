//! Stage 2.

use umbra_nested::GuestMemory;

use super::attributes::{MemAttrs, s2_apply_fwb, s2_combine_s1, s2_decode};
use super::walk::{
    DescriptorType, FINAL_LEVEL, Place, contiguous_bit, contiguous_size, have_ds, ia_size,
    max_txsz, slt_entry_address, stage_oa, support, translation_size, tt_entry_address,
};
use super::{AccDesc, Fault, Machine, Output, Status, bit, choice, is_zero, slice};

/// `S2TTWParams`.
struct Params {
    granule: u32,
    txsz: u32,
    ps: u64,
    sh: u64,
    ee: bool,
    sl0: u64,
    sl2: bool,
    ptw: bool,
    fwb: bool,
    ha: bool,
    hd: bool,
    ds: bool,
}

/// `AArch64.S2DecodeTG0`, in bits.
pub(crate) fn s2_granule<M: GuestMemory>(machine: &Machine<'_, M>) -> u32 {
    let asked = match slice(machine.regs.vtcr, 15, 14) {
        0b00 => Some(12),
        0b01 => Some(16),
        0b10 => Some(14),
        _ => None,
    };
    choice::granule(asked, support(&machine.features, true))
}

/// `AArch64.NSS2TTWParams`.
fn params<M: GuestMemory>(machine: &Machine<'_, M>) -> Params {
    let (vtcr, hcr) = (machine.regs.vtcr, machine.regs.hcr);
    let features = &machine.features;
    let granule = s2_granule(machine);
    let ds = have_ds(features, true, granule) && bit(vtcr, 32);
    Params {
        granule,
        txsz: slice(vtcr, 5, 0) as u32,
        ps: slice(vtcr, 18, 16),
        sh: slice(vtcr, 13, 12),
        ee: bit(machine.regs.el2[0], 25),
        sl0: slice(vtcr, 7, 6),
        sl2: granule == 12 && ds && bit(vtcr, 33),
        ptw: !bit(hcr, 27) && bit(hcr, 2),
        fwb: features.fwb && bit(hcr, 46),
        ha: features.access_flag && bit(vtcr, 21),
        hd: features.dirty_state && bit(vtcr, 22),
        ds,
    }
}

/// `AArch64.S2StartLevel`.
fn start_level(p: &Params) -> i32 {
    match p.granule {
        12 => match (p.sl2, p.sl0) {
            (false, 0b00) => 2,
            (false, 0b01) => 1,
            (false, 0b10) => 0,
            (false, _) => 3,
            (true, _) => -1,
        },
        _ => 3 - p.sl0 as i32,
    }
}

/// `AArch64.S2InconsistentSL`.
fn inconsistent_sl(p: &Params) -> bool {
    let levels = FINAL_LEVEL - start_level(p);
    let granule = p.granule as i32;
    let stride = granule - 3;
    let sl_min_iasize = levels * stride + granule + 1;
    let sl_max_iasize = sl_min_iasize + (stride - 1) + 4;
    let iasize = ia_size(p.txsz) as i32;
    iasize < sl_min_iasize || iasize > sl_max_iasize
}

/// `AArch64.S2InvalidSL`.
fn invalid_sl<M: GuestMemory>(machine: &Machine<'_, M>, p: &Params) -> bool {
    let pa_max = machine.pa_max();
    match (p.granule, p.sl2, p.sl0) {
        (12, true, 0b01..=0b11) => true,
        (12, false, 0b10) => pa_max < 44,
        (12, false, 0b11) => !machine.features.small_tables,
        (14, _, 0b11) => !p.ds,
        (14, _, 0b10) => pa_max < 42,
        (16, _, 0b11) => true,
        (16, _, 0b10) => pa_max < 44,
        _ => false,
    }
}

/// `AArch64.S2MinTxSZ`, of a guest whose EL1 is AArch64.
fn min_txsz<M: GuestMemory>(machine: &Machine<'_, M>, p: &Params) -> u32 {
    let ips = if machine.have_52bit_pa() && p.granule != 16 && !p.ds {
        machine.pa_max().min(48)
    } else {
        machine.pa_max().min(52)
    };
    64 - ips
}

struct Leaf {
    descriptor: u64,
    address: u64,
    level: i32,
    base: u64,
    contiguous: bool,
}

/// `AArch64.S2Translate`. `first` are the attributes of stage 1.
pub(crate) fn s2_translate<M: GuestMemory>(
    machine: &mut Machine<'_, M>,
    ipa: u64,
    first: MemAttrs,
    accdesc: AccDesc,
) -> Result<Output, Fault> {
    let hcr = machine.regs.hcr;
    let place = Place {
        secondstage: true,
        s2fs1walk: accdesc.ttw,
    };
    if !bit(hcr, 0) && !bit(hcr, 12) {
        return Ok(Output {
            address: ipa,
            level: None,
            size: (0, 0),
            memattrs: first,
        });
    }
    let p = params(machine);
    let out_of_range =
        p.txsz < min_txsz(machine, &p) || p.txsz > max_txsz(&machine.features, p.granule);
    let txsz_faults = out_of_range && choice::FAULT_ON_TXSZ_OUT_OF_RANGE;
    if txsz_faults || invalid_sl(machine, &p) || inconsistent_sl(&p) {
        return Err(place.fault(Status::Translation, 0));
    }
    let iasize = ia_size(p.txsz);
    // AArch64.IPAIsOutOfRange
    if !is_zero(ipa, 63, iasize) {
        return Err(place.fault(Status::Translation, 0));
    }
    let leaf = s2_walk(machine, &p, ipa, place)?;
    let permissions = output_perms(machine, &p, leaf.descriptor);
    let sh = if p.ds {
        p.sh
    } else {
        slice(leaf.descriptor, 9, 8)
    };
    let fnxs = machine.features.xs && bit(leaf.descriptor, 11);
    let attr = slice(leaf.descriptor, 5, 2);
    let walk_attrs = if p.fwb {
        s2_apply_fwb(first, attr, sh, fnxs)
    } else {
        s2_decode(attr, sh, fnxs)
    };
    let permitted = check_permissions(&p, permissions, walk_attrs, accdesc);
    let mut new_desc = leaf.descriptor;
    // AArch64.SettingAccessFlagPermitted, AArch64.SettingDirtyStatePermitted
    if p.ha && (permitted.is_ok() || choice::AF_ON_PERMISSION_FAULT) {
        new_desc |= 1 << 10;
    }
    if permitted.is_ok() && p.ha && p.hd && bit(leaf.descriptor, 51) && accdesc.write && !accdesc.at
    {
        new_desc |= 1 << 7;
    }
    if new_desc != leaf.descriptor {
        let change = (leaf.descriptor, new_desc);
        machine.mem_swap_table_desc(p.ee, leaf.address, change, place, leaf.level)?;
    }
    permitted.map_err(|status| place.fault(status, leaf.level))?;
    let (address, size) = stage_oa(
        ipa,
        p.granule,
        leaf.level,
        leaf.base,
        leaf.contiguous,
        iasize,
    );
    let cached_off = !accdesc.ifetch && !walk_attrs.is_device() && bit(hcr, 32);
    let walks_device = accdesc.ttw && walk_attrs.is_device() && !p.ptw;
    let second = if cached_off || walks_device {
        MemAttrs::normal_nc(walk_attrs.xs)
    } else {
        walk_attrs
    };
    let memattrs = if p.fwb {
        second
    } else {
        s2_combine_s1(first, second)
    };
    Ok(Output {
        address,
        level: Some(leaf.level),
        size,
        memattrs,
    })
}

/// `AArch64.S2Walk`.
fn s2_walk<M: GuestMemory>(
    machine: &mut Machine<'_, M>,
    p: &Params,
    ipa: u64,
    place: Place,
) -> Result<Leaf, Fault> {
    let iasize = ia_size(p.txsz);
    let mut level = start_level(p);
    let vttbr = machine.regs.vttbr;
    let base = machine.tt_base_address(vttbr, p.ps, p.ds, p.granule, iasize, level);
    let mut descaddress = slt_entry_address(level, p.granule, iasize, ipa, base);
    if machine.oa_out_of_range(descaddress, p.ps, p.granule, p.ds) {
        return Err(place.fault(Status::AddressSize, 0));
    }
    let leaf = loop {
        let descriptor = machine.fetch_descriptor(p.ee, descaddress, place, level)?;
        match machine.decode_descriptor_type(descriptor, p.ds, p.granule, level) {
            DescriptorType::Table => {
                let base = machine.next_table_base(descriptor, p.ds, p.granule);
                descaddress = tt_entry_address(level + 1, p.granule, ipa, base);
                if machine.oa_out_of_range(descaddress, p.ps, p.granule, p.ds) {
                    return Err(place.fault(Status::AddressSize, level));
                }
                level += 1;
            }
            DescriptorType::Leaf => {
                break Leaf {
                    descriptor,
                    address: descaddress,
                    level,
                    base: machine.leaf_base(descriptor, p.ds, p.granule, level),
                    contiguous: contiguous_bit(p.granule, level, descriptor),
                };
            }
            DescriptorType::Invalid => return Err(place.fault(Status::Translation, level)),
        }
    };
    let group = translation_size(p.granule, level) + contiguous_size(p.granule, level);
    if leaf.contiguous && group > iasize && choice::FAULT_ON_CONTIGUOUS {
        return Err(place.fault(Status::Translation, level));
    }
    let (oa, _) = stage_oa(ipa, p.granule, level, leaf.base, leaf.contiguous, iasize);
    if machine.oa_out_of_range(oa, p.ps, p.granule, p.ds) {
        return Err(place.fault(Status::AddressSize, level));
    }
    if !bit(leaf.descriptor, 10) && !p.ha {
        return Err(place.fault(Status::AccessFlag, level));
    }
    Ok(leaf)
}

struct Permissions {
    r: bool,
    w: bool,
    px: bool,
    ux: bool,
}

/// `AArch64.S2ApplyOutputPerms` and `AArch64.S2DirectBasePermissions`.
fn output_perms<M: GuestMemory>(
    machine: &Machine<'_, M>,
    p: &Params,
    descriptor: u64,
) -> Permissions {
    let mut s2ap = slice(descriptor, 7, 6);
    if p.ha && p.hd && bit(descriptor, 51) {
        s2ap |= 0b10;
    }
    let s2xn = bit(descriptor, 54);
    let s2xnx = machine.features.xnx && bit(descriptor, 53);
    let (px, ux) = match (s2xn, s2xnx) {
        (false, false) => (true, true),
        (false, true) => (false, true),
        (true, false) => (false, false),
        (true, true) => (true, false),
    };
    Permissions {
        r: bit(s2ap, 0),
        w: bit(s2ap, 1),
        px,
        ux,
    }
}

/// `AArch64.S2CheckPermissions`.
fn check_permissions(
    p: &Params,
    permissions: Permissions,
    memattrs: MemAttrs,
    accdesc: AccDesc,
) -> Result<(), Status> {
    let Permissions { r, w, px, ux } = permissions;
    let x = if accdesc.el0 { ux } else { px };
    let fails = if accdesc.ttw {
        p.ptw && memattrs.is_device() || !r || accdesc.write && !w
    } else if accdesc.ifetch {
        choice::FETCH_FROM_DEVICE_FAULTS && memattrs.is_device() || !x
    } else {
        accdesc.read && !r || accdesc.write && !w
    };
    if fails {
        Err(Status::Permission)
    } else {
        Ok(())
    }
}
