//! Stage 1.

use umbra_nested::GuestMemory;
use umbra_nested::stage1::Regime;

use super::attributes::{MemAttrs, s1_decode};
use super::stage2::s2_translate;
use super::walk::{
    DescriptorType, FINAL_LEVEL, Place, contiguous_bit, contiguous_size, have_ds, ia_size,
    max_txsz, slt_entry_address, stage_oa, support, translation_size, tt_entry_address,
};
use super::{AccDesc, Fault, Machine, Output, Status, bit, choice, is_ones, is_zero, slice};

const PLACE: Place = Place {
    secondstage: false,
    s2fs1walk: false,
};

/// `S1TTWParams`.
struct Params {
    granule: u32,
    txsz: u32,
    sh: u64,
    tbi: bool,
    tbid: bool,
    e0pd: bool,
    hpd: bool,
    epd: bool,
    mair: u64,
    wxn: bool,
    ps: u64,
    ee: bool,
    dc: bool,
    ha: bool,
    hd: bool,
    ds: bool,
    epan: bool,
    cache: bool,
    ttbr: u64,
}

fn has_unprivileged(regime: Regime) -> bool {
    regime != Regime::El2
}

fn upper(regime: Regime, va: u64) -> bool {
    has_unprivileged(regime) && bit(va, 55)
}

fn registers<M: GuestMemory>(machine: &Machine<'_, M>, regime: Regime) -> [u64; 5] {
    match regime {
        Regime::El10 => machine.regs.el1,
        Regime::El20 | Regime::El2 => machine.regs.el2,
    }
}

/// `AArch64.S1DecodeTG0` and `AArch64.S1DecodeTG1`, in bits.
pub(crate) fn s1_granule<M: GuestMemory>(machine: &Machine<'_, M>, regime: Regime, va: u64) -> u32 {
    let tcr = registers(machine, regime)[1];
    let asked = if upper(regime, va) {
        match slice(tcr, 31, 30) {
            0b10 => Some(12),
            0b11 => Some(16),
            0b01 => Some(14),
            _ => None,
        }
    } else {
        match slice(tcr, 15, 14) {
            0b00 => Some(12),
            0b01 => Some(16),
            0b10 => Some(14),
            _ => None,
        }
    };
    choice::granule(asked, support(&machine.features, false))
}

/// `AArch64.S1TTWParamsEL10`, `…EL20` and `…EL2`.
fn params<M: GuestMemory>(machine: &Machine<'_, M>, regime: Regime, va: u64) -> Params {
    let [sctlr, tcr, ttbr0, ttbr1, mair] = registers(machine, regime);
    let features = &machine.features;
    let granule = s1_granule(machine, regime, va);
    let lpa2 = have_ds(features, false, granule);
    let common = Params {
        granule,
        txsz: slice(tcr, 5, 0) as u32,
        sh: slice(tcr, 13, 12),
        tbi: false,
        tbid: false,
        e0pd: false,
        hpd: false,
        epd: false,
        mair,
        wxn: bit(sctlr, 19),
        ps: slice(tcr, 34, 32),
        ee: bit(sctlr, 25),
        dc: regime == Regime::El10 && bit(machine.regs.hcr, 12),
        ha: features.access_flag && bit(tcr, 39),
        hd: features.dirty_state && bit(tcr, 40),
        ds: lpa2 && bit(tcr, 59),
        epan: features.epan && bit(sctlr, 57),
        cache: bit(sctlr, 2),
        ttbr: ttbr0,
    };
    if regime == Regime::El2 {
        Params {
            tbi: bit(tcr, 20),
            tbid: features.tbid && bit(tcr, 29),
            hpd: features.hpds && bit(tcr, 24),
            ps: slice(tcr, 18, 16),
            ha: features.access_flag && bit(tcr, 21),
            hd: features.dirty_state && bit(tcr, 22),
            ds: lpa2 && bit(tcr, 32),
            ..common
        }
    } else if upper(regime, va) {
        Params {
            txsz: slice(tcr, 21, 16) as u32,
            sh: slice(tcr, 29, 28),
            tbi: bit(tcr, 38),
            tbid: features.tbid && bit(tcr, 52),
            e0pd: features.e0pd && bit(tcr, 56),
            hpd: features.hpds && bit(tcr, 42),
            epd: bit(tcr, 23),
            ttbr: ttbr1,
            ..common
        }
    } else {
        Params {
            tbi: bit(tcr, 37),
            tbid: features.tbid && bit(tcr, 51),
            e0pd: features.e0pd && bit(tcr, 55),
            hpd: features.hpds && bit(tcr, 41),
            epd: bit(tcr, 7),
            ..common
        }
    }
}

/// `AArch64.AddrTop`.
fn addr_top(p: &Params, accdesc: AccDesc) -> u32 {
    if p.tbid && accdesc.ifetch {
        63
    } else if p.tbi {
        55
    } else {
        63
    }
}

/// `AArch64.S1Enabled`.
fn enabled<M: GuestMemory>(machine: &Machine<'_, M>, regime: Regime) -> bool {
    let hcr = machine.regs.hcr;
    let m = bit(registers(machine, regime)[0], 0);
    match regime {
        Regime::El10 => !bit(hcr, 12) && !bit(hcr, 27) && m,
        Regime::El20 | Regime::El2 => m,
    }
}

/// `AArch64.S1DisabledOutput`.
fn disabled_output<M: GuestMemory>(
    machine: &Machine<'_, M>,
    p: &Params,
    va: u64,
    accdesc: AccDesc,
    icache: bool,
) -> Result<Output, Fault> {
    let memattrs = if p.dc {
        MemAttrs::write_back_nsh()
    } else if accdesc.ifetch {
        if icache {
            MemAttrs::write_through_osh()
        } else {
            MemAttrs::normal_nc(true)
        }
    } else {
        MemAttrs::device_ngnrne()
    };
    let top = addr_top(p, accdesc);
    if !is_zero(va, top, machine.pa_max()) {
        return Err(PLACE.fault(Status::AddressSize, 0));
    }
    Ok(Output {
        address: slice(va, 51, 0),
        level: None,
        size: (0, 0),
        memattrs,
    })
}

/// `AArch64.VAIsOutOfRange`.
fn va_is_out_of_range(p: &Params, regime: Regime, va: u64, accdesc: AccDesc) -> bool {
    let top = addr_top(p, accdesc);
    let iasize = ia_size(p.txsz);
    if top < iasize {
        return false;
    }
    if upper(regime, va) {
        !is_ones(va, top, iasize)
    } else {
        !is_zero(va, top, iasize)
    }
}

#[derive(Clone, Copy, Default)]
struct TablePerms {
    ap_table: u64,
    uxn_table: bool,
    pxn_table: bool,
    xn_table: bool,
}

struct Leaf {
    descriptor: u64,
    address: u64,
    level: i32,
    base: u64,
    contiguous: bool,
    tables: TablePerms,
}

/// `AArch64.S1Translate`. Stage 2 is in between if `regime` is EL1&0.
pub(crate) fn s1_translate<M: GuestMemory>(
    machine: &mut Machine<'_, M>,
    regime: Regime,
    va: u64,
    accdesc: AccDesc,
) -> Result<Output, Fault> {
    let p = params(machine, regime, va);
    let icache = bit(registers(machine, regime)[0], 12);
    if !enabled(machine, regime) {
        return disabled_output(machine, &p, va, accdesc, icache);
    }
    // AArch64.S1MinTxSZ
    let mintxsz = if machine.features.lva && p.granule == 16 || p.ds {
        12
    } else {
        16
    };
    let out_of_range = p.txsz < mintxsz || p.txsz > max_txsz(&machine.features, p.granule);
    if out_of_range && choice::FAULT_ON_TXSZ_OUT_OF_RANGE {
        return Err(PLACE.fault(Status::Translation, 0));
    }
    if va_is_out_of_range(&p, regime, va, accdesc) {
        return Err(PLACE.fault(Status::Translation, 0));
    }
    if accdesc.el0 && p.e0pd {
        return Err(PLACE.fault(Status::Translation, 0));
    }
    let leaf = s1_walk(machine, &p, regime, va)?;
    let permitted = check_permissions(machine, &p, regime, &leaf, accdesc);
    let mut new_desc = leaf.descriptor;
    // AArch64.SettingAccessFlagPermitted, AArch64.SettingDirtyStatePermitted
    if p.ha && (permitted.is_ok() || choice::AF_ON_PERMISSION_FAULT) {
        new_desc |= 1 << 10;
    }
    if permitted.is_ok() && p.ha && p.hd && bit(leaf.descriptor, 51) && accdesc.write && !accdesc.at
    {
        new_desc &= !(1 << 7);
    }
    if new_desc != leaf.descriptor {
        let mut descpaddr = leaf.address;
        if regime == Regime::El10 {
            let walk_attrs = MemAttrs::walk();
            descpaddr =
                s2_translate(machine, leaf.address, walk_attrs, AccDesc::TTE_UPDATE)?.address;
        }
        let change = (leaf.descriptor, new_desc);
        machine.mem_swap_table_desc(p.ee, descpaddr, change, PLACE, leaf.level)?;
    }
    permitted.map_err(|status| PLACE.fault(status, leaf.level))?;
    let iasize = ia_size(p.txsz);
    let (address, size) = stage_oa(
        va,
        p.granule,
        leaf.level,
        leaf.base,
        leaf.contiguous,
        iasize,
    );
    let attrindx = slice(leaf.descriptor, 4, 2) as u32;
    let sh = if p.ds {
        p.sh
    } else {
        slice(leaf.descriptor, 9, 8)
    };
    let byte = slice(p.mair, 8 * attrindx + 7, 8 * attrindx);
    let walkstate = s1_decode(byte, sh, machine.features.xs);
    let memattrs = if accdesc.ifetch && (walkstate.is_device() || !icache)
        || !accdesc.ifetch && !p.cache && !walkstate.is_device()
    {
        MemAttrs::normal_nc(walkstate.xs)
    } else {
        walkstate
    };
    Ok(Output {
        address,
        level: Some(leaf.level),
        size,
        memattrs,
    })
}

/// `AArch64.S1Walk`.
fn s1_walk<M: GuestMemory>(
    machine: &mut Machine<'_, M>,
    p: &Params,
    regime: Regime,
    va: u64,
) -> Result<Leaf, Fault> {
    // AArch64.S1EPD
    if has_unprivileged(regime) && p.epd {
        return Err(PLACE.fault(Status::Translation, 0));
    }
    let iasize = ia_size(p.txsz);
    // AArch64.S1StartLevel
    let mut level = FINAL_LEVEL - ((iasize - 1 - p.granule) / (p.granule - 3)) as i32;
    let mut tables = TablePerms::default();
    let base = machine.tt_base_address(p.ttbr, p.ps, p.ds, p.granule, iasize, level);
    let mut descaddress = slt_entry_address(level, p.granule, iasize, va, base);
    if machine.oa_out_of_range(descaddress, p.ps, p.granule, p.ds) {
        return Err(PLACE.fault(Status::AddressSize, 0));
    }
    let leaf = loop {
        let mut place = descaddress;
        if regime == Regime::El10 {
            place = s2_translate(machine, descaddress, MemAttrs::walk(), AccDesc::S1TTW)?.address;
        }
        let descriptor = machine.fetch_descriptor(p.ee, place, PLACE, level)?;
        match machine.decode_descriptor_type(descriptor, p.ds, p.granule, level) {
            DescriptorType::Table => {
                let base = machine.next_table_base(descriptor, p.ds, p.granule);
                descaddress = tt_entry_address(level + 1, p.granule, va, base);
                if machine.oa_out_of_range(descaddress, p.ps, p.granule, p.ds) {
                    return Err(PLACE.fault(Status::AddressSize, level));
                }
                if !p.hpd {
                    apply_table_perms(&mut tables, regime, descriptor);
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
                    tables,
                };
            }
            DescriptorType::Invalid => return Err(PLACE.fault(Status::Translation, level)),
        }
    };
    let group = translation_size(p.granule, level) + contiguous_size(p.granule, level);
    if leaf.contiguous && group > iasize && choice::FAULT_ON_CONTIGUOUS {
        return Err(PLACE.fault(Status::Translation, level));
    }
    let (oa, _) = stage_oa(va, p.granule, level, leaf.base, leaf.contiguous, iasize);
    if machine.oa_out_of_range(oa, p.ps, p.granule, p.ds) {
        return Err(PLACE.fault(Status::AddressSize, level));
    }
    if !bit(leaf.descriptor, 10) && !p.ha {
        return Err(PLACE.fault(Status::AccessFlag, level));
    }
    Ok(leaf)
}

/// `AArch64.S1ApplyTablePerms`.
fn apply_table_perms(tables: &mut TablePerms, regime: Regime, descriptor: u64) {
    if has_unprivileged(regime) {
        tables.ap_table |= slice(descriptor, 62, 61);
        tables.uxn_table |= bit(descriptor, 60);
        tables.pxn_table |= bit(descriptor, 59);
    } else {
        tables.ap_table |= slice(descriptor, 62, 62) << 1;
        tables.xn_table |= bit(descriptor, 60);
    }
}

/// `AArch64.S1ApplyOutputPerms`, `AArch64.S1DirectBasePermissions` and `AArch64.S1CheckPermissions`.
fn check_permissions<M: GuestMemory>(
    machine: &Machine<'_, M>,
    p: &Params,
    regime: Regime,
    leaf: &Leaf,
    accdesc: AccDesc,
) -> Result<(), Status> {
    let descriptor = leaf.descriptor;
    let dirty = p.ha && p.hd && bit(descriptor, 51);
    let ap2 = bit(descriptor, 7) && !dirty;
    let tables = leaf.tables;
    let (r, w, x);
    if has_unprivileged(regime) {
        let (mut pr, mut pw, mut ur, mut uw) = match (ap2, bit(descriptor, 6)) {
            (false, false) => (true, true, false, false),
            (false, true) => (true, true, true, true),
            (true, false) => (true, false, false, false),
            (true, true) => (true, false, true, false),
        };
        match tables.ap_table {
            0b00 => {}
            0b01 => (ur, uw) = (false, false),
            0b10 => (pw, uw) = (false, false),
            _ => (pw, ur, uw) = (false, false, false),
        }
        let px = !(bit(descriptor, 53) || tables.pxn_table || uw);
        let ux = !(bit(descriptor, 54) || tables.uxn_table);
        if machine.features.pan && accdesc.pan {
            let pan = ur || uw || p.epan && ux;
            pr &= !pan;
            pw &= !pan;
        }
        (r, w, x) = if accdesc.el0 {
            (ur, uw, ux)
        } else {
            (pr, pw, px)
        };
    } else {
        r = true;
        w = !ap2 && !bit(tables.ap_table, 1);
        x = !(bit(descriptor, 54) || tables.xn_table);
    }
    let x = x && !(p.wxn && w);
    let fails = if accdesc.ifetch {
        !x
    } else {
        accdesc.read && !r || accdesc.write && !w
    };
    if fails {
        Err(Status::Permission)
    } else {
        Ok(())
    }
}
