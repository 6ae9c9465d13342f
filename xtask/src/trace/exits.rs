//! Exits by kind: what to call one, how often it came, what it cost.

use std::collections::BTreeMap;
use umbra_arm64::esr::WfxKind;
use umbra_arm64::sysreg::SysReg;
use umbra_arm64::{Esr, Syndrome};
use umbra_trace::{ExitKind, MmioBy, Resolution, Storey};

/// The kind of an exit, by what hardware said.
pub(crate) fn reason(kind: ExitKind, esr: u64) -> String {
    match kind {
        ExitKind::Irq => return "interrupt".to_owned(),
        ExitKind::SError => return "SError".to_owned(),
        ExitKind::Trap => {}
    }
    let esr = Esr::new(esr);
    match esr.syndrome() {
        Syndrome::Wfx(wfx) => match wfx.kind {
            WfxKind::Wfi => "WFI",
            WfxKind::Wfe => "WFE",
            WfxKind::Wfit => "WFIT",
            WfxKind::Wfet => "WFET",
        }
        .to_owned(),
        Syndrome::FpAccess => "FP access".to_owned(),
        Syndrome::SveAccess => "SVE access".to_owned(),
        Syndrome::SmeAccess => "SME access".to_owned(),
        Syndrome::PointerAuth => "pointer authentication".to_owned(),
        Syndrome::IllegalState => "illegal state".to_owned(),
        Syndrome::Svc(_) => "SVC".to_owned(),
        Syndrome::Hvc(_) => "HVC".to_owned(),
        Syndrome::Smc(_) => "SMC".to_owned(),
        Syndrome::SysReg(trap) => register_access(trap.reg, trap.read),
        Syndrome::Eret(_) => "ERET".to_owned(),
        Syndrome::InstructionAbort { .. } => "fetch".to_owned(),
        Syndrome::DataAbort { abort, .. } if abort.write => "store".to_owned(),
        Syndrome::DataAbort { .. } => "load".to_owned(),
        Syndrome::SError(_) => "SError".to_owned(),
        Syndrome::Other(_) => format!("class {:#04x}", esr.raw() >> 26 & 0x3f),
    }
}

/// What an access to a register or a system instruction is called.
fn register_access(register: SysReg, read: bool) -> String {
    let name = register_name(register);
    let verb = match (register.op0(), read) {
        (1, _) => return name,
        (_, true) => "read",
        (_, false) => "write",
    };
    format!("{verb} {name}")
}

/// A register's name, or its encoding as assemblers write it.
pub(crate) fn register_name(register: SysReg) -> String {
    match (register.name(), tlbi_name(register)) {
        (Some(name), _) => name.to_owned(),
        (None, Some(name)) => name,
        (None, None) => format!(
            "S{}_{}_C{}_C{}_{}",
            register.op0(),
            register.op1(),
            register.crn(),
            register.crm(),
            register.op2()
        ),
    }
}

/// The name of a TLB maintenance instruction (Arm ARM C5.5: op0 1, CRn 8, or 9 with nXS).
fn tlbi_name(op: SysReg) -> Option<String> {
    let xs = match (op.op0(), op.crn()) {
        (1, 8) => "",
        (1, 9) => "nXS",
        _ => return None,
    };
    let (base, shared) = match (op.op1(), op.crm(), op.op2()) {
        (4, crm @ (0 | 4), op2) => {
            let base = match op2 {
                0 | 1 => "IPAS2E1",
                2 | 3 => "RIPAS2E1",
                4 | 5 => "IPAS2LE1",
                _ => "RIPAS2LE1",
            };
            let shared = match (crm, op2) {
                (0, _) => "IS",
                (_, 0 | 3 | 4 | 7) => "OS",
                _ => "",
            };
            (base, shared)
        }
        (op1 @ (0 | 4), crm @ 1..=7, op2) => {
            let range = matches!(crm, 2 | 5 | 6);
            let base = match (op1, range, op2) {
                (0, false, 0) => "VMALLE1",
                (0, false, 1) => "VAE1",
                (0, false, 2) => "ASIDE1",
                (0, false, 3) => "VAAE1",
                (0, false, 5) => "VALE1",
                (0, false, 7) => "VAALE1",
                (0, true, 1) => "RVAE1",
                (0, true, 3) => "RVAAE1",
                (0, true, 5) => "RVALE1",
                (0, true, 7) => "RVAALE1",
                (4, false, 0) => "ALLE2",
                (4, false, 1) => "VAE2",
                (4, false, 4) => "ALLE1",
                (4, false, 5) => "VALE2",
                (4, false, 6) => "VMALLS12E1",
                (4, true, 1) => "RVAE2",
                (4, true, 5) => "RVALE2",
                _ => return None,
            };
            let shared = match crm {
                2 | 3 => "IS",
                1 | 5 => "OS",
                _ => "",
            };
            (base, shared)
        }
        _ => return None,
    };
    Some(format!("TLBI {base}{shared}{xs}"))
}

/// What the handling of an abort adds to its name.
pub(crate) fn refined(reason: &str, resolution: Option<Resolution>, by: Option<MmioBy>) -> String {
    match (resolution, by) {
        (_, Some(MmioBy::Gic)) => format!("{reason}: device, by the vGIC"),
        (_, Some(MmioBy::EventFd)) => format!("{reason}: device, by ioeventfd"),
        (_, Some(MmioBy::Vmm)) => format!("{reason}: device, by the VMM"),
        (Some(Resolution::Mapped), None) => format!("{reason}: memory mapped"),
        (Some(Resolution::Reflected), None) => format!("{reason}: for L1"),
        (Some(other), None) => format!("{reason}: {}", other.name()),
        (None, None) => reason.to_owned(),
    }
}

/// Exits of one kind.
#[derive(Debug, Default, Clone)]
pub(crate) struct Costs {
    /// umbra's ticks for each, in the order that they came.
    ticks: Vec<u64>,
    /// Ticks that the VMM took for all of them.
    pub(crate) vmm: u64,
}

/// A row of the table.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    /// What ran.
    pub(crate) storey: Storey,
    /// What it was.
    pub(crate) reason: String,
    /// How many.
    pub(crate) count: u64,
    /// umbra's ticks for all.
    pub(crate) total: u64,
    /// The least, the middle, the 99th percentile and the most of one.
    pub(crate) quantiles: [u64; 4],
    /// The VMM's ticks for all.
    pub(crate) vmm: u64,
}

/// All exits.
#[derive(Debug, Default)]
pub(crate) struct Exits {
    kinds: BTreeMap<(Storey, String), Costs>,
}

impl Exits {
    /// Counts one.
    pub(crate) fn add(&mut self, storey: Storey, reason: String, umbra: u64, vmm: u64) {
        let costs = self.kinds.entry((storey, reason)).or_default();
        costs.ticks.push(umbra);
        costs.vmm += vmm;
    }

    /// A row a kind, the dearest first.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let mut rows: Vec<Row> = self.kinds.iter().map(Row::of).collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.total));
        rows
    }
}

impl Row {
    fn of(((storey, reason), costs): (&(Storey, String), &Costs)) -> Self {
        let mut sorted = costs.ticks.clone();
        sorted.sort_unstable();
        let at = |share: f64| {
            let last = sorted.len().saturating_sub(1);
            let index = (last as f64 * share).round() as usize;
            sorted.get(index).copied().unwrap_or(0)
        };
        Self {
            storey: *storey,
            reason: reason.clone(),
            count: sorted.len() as u64,
            total: sorted.iter().sum(),
            quantiles: [at(0.0), at(0.5), at(0.99), at(1.0)],
            vmm: costs.vmm,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Exits, reason, refined, register_name};
    use umbra_arm64::sysreg::SysReg;
    use umbra_trace::{ExitKind, MmioBy, Resolution, Storey};

    #[test]
    fn exits_have_names() {
        for (kind, esr, name) in [
            (ExitKind::Irq, 0, "interrupt"),
            (ExitKind::Trap, 0x5a00_0000, "HVC"),
            (ExitKind::Trap, 0x0600_0000, "WFI"),
            (ExitKind::Trap, 0x9200_0046, "store"),
            (ExitKind::Trap, 0x9200_0006, "load"),
            (ExitKind::Trap, 0x8200_0006, "fetch"),
            (ExitKind::Trap, 0x6a00_0000, "ERET"),
            (ExitKind::Trap, 0x6230_0001 | 0x18_0000, "read"),
        ] {
            let said = reason(kind, esr);
            assert!(said.starts_with(name), "{esr:#x} is {said}");
        }
        assert_eq!(
            refined("load", Some(Resolution::Mmio), Some(MmioBy::Gic)),
            "load: device, by the vGIC"
        );
        assert_eq!(
            refined("load", Some(Resolution::Reflected), None),
            "load: for L1"
        );
        assert_eq!(refined("HVC", None, None), "HVC");
    }

    #[test]
    fn registers_have_names() {
        for (op0, op1, crn, crm, op2, name) in [
            (1, 0, 8, 3, 7, "TLBI VAALE1IS"),
            (1, 0, 8, 7, 0, "TLBI VMALLE1"),
            (1, 0, 8, 6, 1, "TLBI RVAE1"),
            (1, 4, 8, 0, 1, "TLBI IPAS2E1IS"),
            (1, 4, 8, 4, 6, "TLBI RIPAS2LE1"),
            (1, 4, 8, 4, 4, "TLBI IPAS2LE1OS"),
            (1, 4, 9, 3, 6, "TLBI VMALLS12E1ISnXS"),
            (1, 4, 8, 3, 2, "S1_4_C8_C3_2"),
            (3, 7, 15, 15, 7, "S3_7_C15_C15_7"),
        ] {
            assert_eq!(register_name(SysReg::new(op0, op1, crn, crm, op2)), name);
        }
        assert!(register_name(SysReg::ICC_SRE_EL2).contains("ICC_SRE"));
    }

    #[test]
    fn costs_are_ranked_and_divided() {
        let mut exits = Exits::default();
        for cost in [40, 10, 20, 30, 1000] {
            exits.add(Storey::Guest, "HVC".into(), cost, 7);
        }
        exits.add(Storey::Guest, "WFI".into(), 5000, 0);
        let rows = exits.rows();
        assert_eq!(rows[0].reason, "WFI");
        assert_eq!((rows[1].count, rows[1].total, rows[1].vmm), (5, 1100, 35));
        assert_eq!(rows[1].quantiles, [10, 30, 1000, 1000]);
    }
}
