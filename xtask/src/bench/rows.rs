//! What is measured: one table of rows.

use super::measure::{Measure, What};
use super::record::Cause;
use super::session::Session;
use serde::{Deserialize, Serialize};

/// A row of the table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    /// What it is called.
    pub(crate) name: &'static str,
    /// Of what the values are.
    pub(crate) unit: &'static str,
    /// Where it comes from.
    pub(crate) session: Session,
    /// How.
    pub(crate) measure: Measure,
    /// The highest ratio allowed.
    pub(crate) target: Option<f64>,
}

/// Measurements of the payload `bench`, by their places between its marks.
mod at {
    pub(super) const HYPERCALL: usize = 1;
    pub(super) const ID_REGISTER: usize = 2;
    pub(super) const DISTRIBUTOR: usize = 3;
    pub(super) const VMM: usize = 4;
    pub(super) const NOTIFY: usize = 5;
    pub(super) const FIRST_TOUCH: usize = 6;
    pub(super) const FIRST_TOUCH_BLOCK: usize = 7;
    pub(super) const TIMER: usize = 8;
    pub(super) const SGI: usize = 9;
    pub(super) const READ_FIRST: usize = 10;
    pub(super) const WRITE_AFTER_READ: usize = 11;
    pub(super) const RUNNING_TIMER: usize = 12;
    /// Of two vCPUs, in a run of their own.
    pub(super) const PAIR: usize = 0;
}

/// Measurements of `kvm-probe --measure vmm`.
mod vmm {
    pub(super) const RETURN: usize = 0;
    pub(super) const DIRTY_LOG: usize = 1;
    pub(super) const SLOT_CHANGE: usize = 2;
    /// Pages that are touched after the slot's changes, in all rounds.
    pub(super) const TOUCHES: u64 = 16 * 64;
}

/// Measurements of `kvm-probe --measure take-back`, and of `take-back-more`.
mod taken {
    pub(super) const OF_16: usize = 0;
    pub(super) const OF_64: usize = 1;
    pub(super) const OF_256: usize = 0;
    pub(super) const OF_1024: usize = 1;
}

/// Measurements of the payload `l1_bench`.
mod l1 {
    pub(super) const HYPERCALL: usize = 0;
    pub(super) const DEVICE: usize = 1;
    pub(super) const READ: usize = 2;
    pub(super) const WRITE: usize = 3;
    pub(super) const TLBI_OWN: usize = 4;
    pub(super) const FILL: usize = 5;
    pub(super) const AT: usize = 6;
    pub(super) const TLBI_PAGE: usize = 7;
    /// The next three are the costly ones', in a run of their own.
    pub(super) const TLBI_ALL: usize = 0;
    pub(super) const CONTEXTS_2: usize = 1;
    pub(super) const CONTEXTS_16: usize = 2;
    /// Of a run of its own, too.
    pub(super) const CONTEXTS_64: usize = 0;
    /// Pages that FILL touches.
    pub(super) const PAGES: u64 = 512;
}

const fn row(
    name: &'static str,
    unit: &'static str,
    session: Session,
    measure: Measure,
    target: Option<f64>,
) -> Row {
    Row {
        name,
        unit,
        session,
        measure,
        target,
    }
}

/// A row of instructions.
const fn insn(name: &'static str, session: Session, measure: Measure, target: Option<f64>) -> Row {
    row(name, "instructions", session, measure, target)
}

/// A row of memory accesses.
const fn access(
    name: &'static str,
    session: Session,
    measure: Measure,
    target: Option<f64>,
) -> Row {
    row(name, "accesses", session, measure, target)
}

use Cause::{Data, Device, Fetch, Fp, Hypercall, Interrupt, Register, Return, Wait};
use Measure::{
    Below, BelowTotal, Each, EachOf, Exit as One, Exits, Guest, Said, Spans, Storeys, StoreysTraps,
    Taken, Total, Traps, UntilGuest, Wall,
};
use Session::{
    Blocks, DebianBlocks, DebianPages, L1Blocks, L1Costly, L1Many, L1Pages, NestedBlocks,
    NestedMixed, NestedPages, Pages, Pair, TakeBack, TakeBackMore, Vmm,
};
use What::{Accesses, Instructions, User};

/// The row of what does not exit on umbra: memory that is read first is the VM's own from then on.
pub(crate) const WRITE_AFTER_READ: &str = "first write of a page that was read, permission fault";

/// All rows. A target is umbra's limit over what KVM takes by the reference measurement.
pub(crate) const ROWS: &[Row] = &[
    insn(
        "hypercall that nobody owns",
        Pages,
        One(at::HYPERCALL, Hypercall, Instructions),
        Some(250.0 / 1773.0),
    ),
    access(
        "hypercall that nobody owns",
        Pages,
        One(at::HYPERCALL, Hypercall, Accesses),
        Some(70.0 / 514.0),
    ),
    insn(
        "read of ID_AA64PFR0_EL1",
        Pages,
        One(at::ID_REGISTER, Register, Instructions),
        None,
    ),
    insn(
        "read of GICD_TYPER",
        Pages,
        One(at::DISTRIBUTOR, Device, Instructions),
        Some(400.0 / 2743.0),
    ),
    access(
        "read of GICD_TYPER",
        Pages,
        One(at::DISTRIBUTOR, Device, Accesses),
        None,
    ),
    insn(
        "read of a UART register, answered by the VMM",
        Pages,
        One(at::VMM, Device, Instructions),
        Some(0.5),
    ),
    access(
        "read of a UART register, answered by the VMM",
        Pages,
        One(at::VMM, Device, Accesses),
        None,
    ),
    insn(
        "… of which the VMM itself, at EL0",
        Pages,
        One(at::VMM, Device, User),
        None,
    ),
    insn(
        "exit to kvm-probe and back",
        Vmm,
        One(vmm::RETURN, Device, Instructions),
        None,
    ),
    insn(
        "… of which kvm-probe itself, at EL0",
        Vmm,
        One(vmm::RETURN, Device, User),
        None,
    ),
    insn(
        "write that an ioeventfd takes",
        Pages,
        One(at::NOTIFY, Device, Instructions),
        None,
    ),
    insn(
        "first touch of a 4 KiB page, zeroing included",
        Pages,
        One(at::FIRST_TOUCH, Data, Instructions),
        Some(800.0 / 8654.0),
    ),
    access(
        "first touch of a 4 KiB page, zeroing included",
        Pages,
        One(at::FIRST_TOUCH, Data, Accesses),
        None,
    ),
    insn(
        "first touch of a 2 MiB block, zeroing included",
        Blocks,
        One(at::FIRST_TOUCH_BLOCK, Data, Instructions),
        None,
    ),
    insn(
        "first read of a 4 KiB page",
        Pages,
        One(at::READ_FIRST, Data, Instructions),
        None,
    ),
    insn(
        WRITE_AFTER_READ,
        Pages,
        One(at::WRITE_AFTER_READ, Data, Instructions),
        None,
    ),
    insn(
        "first touch of 64 pages that the VMM has, for each",
        Vmm,
        EachOf(vmm::SLOT_CHANGE, Data, vmm::TOUCHES, Instructions),
        None,
    ),
    insn(
        "write while writes are logged, permission fault",
        Vmm,
        One(vmm::DIRTY_LOG, Data, Instructions),
        None,
    ),
    insn(
        "KVM_GET_DIRTY_LOG of 64 MiB, 64 pages written, exit included",
        Vmm,
        One(vmm::DIRTY_LOG, Device, Instructions),
        None,
    ),
    insn(
        "slot of 64 MiB deleted and made, 64 pages mapped, exit included",
        Vmm,
        One(vmm::SLOT_CHANGE, Device, Instructions),
        None,
    ),
    insn(
        "WFI until the virtual timer",
        Pages,
        One(at::TIMER, Wait, Instructions),
        None,
    ),
    insn(
        "virtual timer's interrupt, the guest running",
        Pages,
        One(at::RUNNING_TIMER, Interrupt, Instructions),
        None,
    ),
    insn(
        "SGI to a sleeping vCPU of the same CPU, till it runs",
        Pair,
        Spans(at::PAIR, Register, Instructions),
        None,
    ),
    insn(
        "SGI to the own vCPU",
        Pages,
        One(at::SGI, Register, Instructions),
        None,
    ),
    insn(
        "power-on to the guest's first instruction",
        Pages,
        UntilGuest,
        None,
    ),
    insn(
        "L2 hypercall handled by a small L1, all of L0's part",
        L1Pages,
        Storeys(l1::HYPERCALL, Instructions),
        Some(10_000.0 / 57_780.0),
    ),
    access(
        "L2 hypercall handled by a small L1, all of L0's part",
        L1Pages,
        Storeys(l1::HYPERCALL, Accesses),
        None,
    ),
    row(
        "L2 hypercall handled by a small L1",
        "exits",
        L1Pages,
        StoreysTraps(l1::HYPERCALL),
        Some(5.0 / 8.1),
    ),
    insn(
        "L2 load handled by a small L1, all of L0's part",
        L1Pages,
        Storeys(l1::DEVICE, Instructions),
        None,
    ),
    row(
        "L2 load handled by a small L1",
        "exits",
        L1Pages,
        StoreysTraps(l1::DEVICE),
        None,
    ),
    insn(
        "ERET of L1 to L2",
        L1Pages,
        One(l1::HYPERCALL, Return, Instructions),
        None,
    ),
    insn(
        "L1's read of ICH_MISR_EL2",
        L1Pages,
        One(l1::READ, Register, Instructions),
        Some(250.0 / 5_100.0),
    ),
    insn(
        "L1's write of CPACR_EL1",
        L1Pages,
        One(l1::WRITE, Register, Instructions),
        Some(250.0 / 681.0),
    ),
    insn(
        "L1's TLBI VAALE1IS",
        L1Pages,
        One(l1::TLBI_OWN, Register, Instructions),
        Some(250.0 / 683.0),
    ),
    insn(
        "L1's TLBI IPAS2E1IS, one mapped page",
        L1Pages,
        One(l1::TLBI_PAGE, Register, Instructions),
        Some(1_000.0 / 71_800.0),
    ),
    insn(
        "L1's TLBI VMALLS12E1IS, 513 mapped pages",
        L1Costly,
        Each(l1::TLBI_ALL, 1, Instructions),
        None,
    ),
    insn(
        "L1's AT S12E1R",
        L1Pages,
        One(l1::AT, Register, Instructions),
        None,
    ),
    insn(
        "shadow fill, one exit",
        L1Pages,
        One(l1::FILL, Data, Instructions),
        None,
    ),
    insn(
        "shadow fill, for each page touched",
        L1Pages,
        Each(l1::FILL, l1::PAGES, Instructions),
        Some(600.0 / 9_301.0),
    ),
    row(
        "shadow fill, for each page touched",
        "exits",
        L1Pages,
        Traps(l1::FILL, l1::PAGES),
        None,
    ),
    insn(
        "shadow fill, one exit (2 MiB backing)",
        L1Blocks,
        One(l1::FILL, Data, Instructions),
        None,
    ),
    insn(
        "shadow fill, for each page touched (2 MiB backing)",
        L1Blocks,
        Each(l1::FILL, l1::PAGES, Instructions),
        None,
    ),
    insn(
        "L2 hypercall, 2 contexts in turn, all of L0's part",
        L1Costly,
        Storeys(l1::CONTEXTS_2, Instructions),
        None,
    ),
    insn(
        "L2 hypercall, 16 contexts in turn, all of L0's part",
        L1Costly,
        Storeys(l1::CONTEXTS_16, Instructions),
        None,
    ),
    insn(
        "L2 hypercall, 64 contexts in turn, all of L0's part",
        L1Many,
        Storeys(l1::CONTEXTS_64, Instructions),
        None,
    ),
    insn(
        "VMM takes back a page, 16 MiB mapped in the shadow",
        TakeBack,
        One(taken::OF_16, Device, Instructions),
        None,
    ),
    insn(
        "VMM takes back a page, 64 MiB mapped in the shadow",
        TakeBack,
        One(taken::OF_64, Device, Instructions),
        None,
    ),
    insn(
        "VMM takes back a page, 256 MiB mapped in the shadow",
        TakeBackMore,
        One(taken::OF_256, Device, Instructions),
        None,
    ),
    insn(
        "VMM takes back a page, 1 GiB mapped in the shadow",
        TakeBackMore,
        One(taken::OF_1024, Device, Instructions),
        None,
    ),
    row(
        "Debian boot, 2 MiB backing",
        "exits",
        DebianBlocks,
        Exits(None),
        Some(1.0),
    ),
    row(
        "… device accesses",
        "exits",
        DebianBlocks,
        Exits(Some(Device)),
        None,
    ),
    row(
        "… interrupts",
        "exits",
        DebianBlocks,
        Exits(Some(Interrupt)),
        None,
    ),
    row(
        "… system registers",
        "exits",
        DebianBlocks,
        Exits(Some(Register)),
        None,
    ),
    row(
        "… data aborts on memory",
        "exits",
        DebianBlocks,
        Exits(Some(Data)),
        None,
    ),
    row(
        "… instruction aborts on memory",
        "exits",
        DebianBlocks,
        Exits(Some(Fetch)),
        None,
    ),
    row(
        "… hypercalls",
        "exits",
        DebianBlocks,
        Exits(Some(Hypercall)),
        None,
    ),
    row(
        "… WFI and WFE",
        "exits",
        DebianBlocks,
        Exits(Some(Wait)),
        None,
    ),
    row(
        "… FP accesses",
        "exits",
        DebianBlocks,
        Exits(Some(Fp)),
        None,
    ),
    insn("… hypervisor and VMM", DebianBlocks, Total, None),
    insn("… the guest itself", DebianBlocks, Guest, None),
    row(
        "Debian boot, 4 KiB backing",
        "exits",
        DebianPages,
        Exits(None),
        None,
    ),
    insn("… hypervisor and VMM (4 KiB)", DebianPages, Total, None),
    row(
        "Debian guest of a Debian guest, 2 MiB at both storeys",
        "exits",
        NestedBlocks,
        Below(None),
        Some(21_500.0 / 25_350.0),
    ),
    row(
        "… L1's ERETs (nested)",
        "exits",
        NestedBlocks,
        Below(Some(Return)),
        None,
    ),
    row(
        "… system registers (nested)",
        "exits",
        NestedBlocks,
        Below(Some(Register)),
        None,
    ),
    row(
        "… data aborts on memory (nested)",
        "exits",
        NestedBlocks,
        Below(Some(Data)),
        None,
    ),
    insn(
        "… L0, L1's VMM included (nested)",
        NestedBlocks,
        BelowTotal,
        Some(15.0 / 150.6),
    ),
    row(
        "Debian, then Debian as its guest, 2 MiB at both storeys",
        "exits",
        NestedBlocks,
        Exits(None),
        None,
    ),
    row(
        "… wall time from the first guest's begin (nested)",
        "seconds",
        NestedBlocks,
        Wall,
        Some(0.2),
    ),
    row(
        "Debian guest of a Debian guest, 4 KiB below 2 MiB",
        "exits",
        NestedMixed,
        Below(None),
        Some(25_000.0 / 43_000.0),
    ),
    row(
        "… L1's ERETs (nested, mixed)",
        "exits",
        NestedMixed,
        Below(Some(Return)),
        None,
    ),
    row(
        "… system registers (nested, mixed)",
        "exits",
        NestedMixed,
        Below(Some(Register)),
        None,
    ),
    row(
        "… data aborts on memory (nested, mixed)",
        "exits",
        NestedMixed,
        Below(Some(Data)),
        None,
    ),
    insn(
        "… L0, L1's VMM included (nested, mixed)",
        NestedMixed,
        BelowTotal,
        None,
    ),
    row(
        "Debian, then Debian as its guest, 4 KiB below 2 MiB",
        "exits",
        NestedMixed,
        Exits(None),
        None,
    ),
    row(
        "… wall time from the first guest's begin (nested, mixed)",
        "seconds",
        NestedMixed,
        Wall,
        Some(0.2),
    ),
    row(
        "Debian guest of a Debian guest, 4 KiB at both storeys",
        "exits",
        NestedPages,
        Below(None),
        Some(120_000.0 / 230_509.0),
    ),
    row(
        "… L1's ERETs (nested, 4 KiB)",
        "exits",
        NestedPages,
        Below(Some(Return)),
        None,
    ),
    row(
        "… system registers (nested, 4 KiB)",
        "exits",
        NestedPages,
        Below(Some(Register)),
        None,
    ),
    row(
        "… data aborts on memory (nested, 4 KiB)",
        "exits",
        NestedPages,
        Below(Some(Data)),
        None,
    ),
    insn(
        "… L0, L1's VMM included (nested, 4 KiB)",
        NestedPages,
        BelowTotal,
        None,
    ),
    row(
        "Debian, then Debian as its guest, 4 KiB at both storeys",
        "exits",
        NestedPages,
        Exits(None),
        None,
    ),
    row(
        "… wall time from the first guest's begin (nested, 4 KiB)",
        "seconds",
        NestedPages,
        Wall,
        Some(0.2),
    ),
    row(
        "memory of 4 GiB taken before the first VM, VMM included",
        "KiB",
        Vmm,
        Taken("MemFree, KiB"),
        // 8 MiB and 8 bytes for each frame, over what was taken when this row was made.
        Some(16_384.0 / 256_667.0),
    ),
    row(
        "memory of a VM",
        "KiB",
        Vmm,
        Said("memory of a VM, KiB"),
        None,
    ),
    row(
        "memory of a vCPU",
        "KiB",
        Vmm,
        Said("memory of a vCPU, KiB"),
        None,
    ),
    row(
        "memory for a GiB mapped by 4 KiB pages",
        "KiB",
        Vmm,
        Said("tables of a GiB by pages, KiB"),
        None,
    ),
];

/// A row with its values, as `bench.json` has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Value {
    /// The row's name.
    pub(crate) name: String,
    /// Of what the values are.
    pub(crate) unit: String,
    /// Linux/KVM's.
    pub(crate) kvm: Option<f64>,
    /// umbra's.
    pub(crate) umbra: Option<f64>,
    /// umbra's over KVM's.
    pub(crate) ratio: Option<f64>,
    /// The highest ratio allowed.
    pub(crate) target: Option<f64>,
}

impl Value {
    /// Puts two measurements side by side.
    pub(crate) fn new(row: &Row, kvm: Option<f64>, umbra: Option<f64>) -> Self {
        let ratio = kvm.zip(umbra).filter(|(kvm, _)| *kvm > 0.0);
        Self {
            name: row.name.to_owned(),
            unit: row.unit.to_owned(),
            kvm,
            umbra,
            ratio: ratio.map(|(kvm, umbra)| umbra / kvm),
            target: row.target,
        }
    }

    /// Whether the target is met; `None` where there is none, or nothing to compare.
    pub(crate) fn met(&self) -> Option<bool> {
        self.ratio
            .zip(self.target)
            .map(|(ratio, target)| ratio <= target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn rows_are_told_apart_and_ratios_compare() {
        let names: BTreeSet<_> = ROWS.iter().map(|r| (r.name, r.unit)).collect();
        assert_eq!(names.len(), ROWS.len());
        let value = |kvm, umbra| Value::new(&ROWS[0], kvm, umbra).met();
        assert_eq!(value(Some(1773.0), Some(250.0)), Some(true));
        assert_eq!(value(Some(1773.0), Some(251.0)), Some(false));
        assert_eq!(value(None, Some(251.0)), None);
        assert_eq!(value(Some(0.0), Some(251.0)), None);
    }
}
