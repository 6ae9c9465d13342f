//! What an abort was: one total function from the syndrome registers to a named outcome.
//!
//! The address type `A` says whose tables were in force: `Ipa` for a VM's canonical stage 2, `L2Ipa`
//! for a shadow. It is chosen by whoever entered the guest, so that the two can never be mixed up
//! afterwards.

use umbra_arm64::{
    Address, Ec, Esr, FaultStatus, Gva, Hpfar, Level, Syndrome,
    esr::{Access, DataAbort, InstructionAbort},
};

use crate::{
    rules::{fault_ipa, host_owns_sea, hpfar_is_valid, is_exec_fault, is_write_fault},
    sea::{Sea, SeaOwner},
    serror::SErrorEffect,
};

/// Which storey of the house was running.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum World {
    /// A guest without virtual EL2.
    Plain,
    /// A guest hypervisor at virtual EL2, or its own EL0.
    VirtualEl2,
    /// A guest of a guest hypervisor.
    Nested,
}

/// What `classify` must know besides the registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// The machine has FEAT_RAS.
    pub ras: bool,
    /// What was running.
    pub world: World,
}

/// What an abort was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort<A> {
    /// Memory is broken.
    Sea(Sea<A>),
    /// Stage 2 refused a guest's access.
    Stage2(Stage2Fault<A>),
    /// Our own translation of a VNCR page refused hardware's access to it.
    Vncr(VncrFault),
    /// SError, by what it means.
    SError(SErrorEffect),
    /// The guest ran into the Illegal Execution state; its registers are live (EC 0x0E).
    IllegalReturn,
    /// Two TLB entries matched: invalidate and run the guest again.
    TlbConflict,
    /// An exclusive or atomic access to memory that does not support it (FSC 0x35); `gva` is the
    /// address of the access.
    UnsupportedExclusive {
        /// The address.
        gva: Gva,
    },
    /// An abort from below with a status that stage 2 has no use for: alignment, tag check, granule
    /// protection, hardware update, reserved codes.
    Unexpected {
        /// The status.
        status: FaultStatus,
        /// A fetch, not a data access.
        instruction: bool,
        /// The address.
        gva: Gva,
    },
    /// An abort of EL2's own access (EC 0x21, or 0x25 without VNCR): no guest is to blame.
    AtEl2,
    /// No abort at all.
    NotAnAbort(Ec),
}

/// The kind of a stage-2 fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage2Kind {
    /// Not mapped.
    Translation,
    /// The access flag is clear.
    AccessFlag,
    /// Mapped, but not for this.
    Permission,
    /// The table names an output beyond the machine: the table is ours, and so is the mistake.
    AddressSize,
}

/// A stage-2 fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage2Fault<A> {
    /// What was wrong.
    pub kind: Stage2Kind,
    /// At which level of the tables.
    pub level: Level,
    /// It counts as a write (`rules::is_write_fault`).
    pub write: bool,
    /// It was reported as an instruction abort.
    pub instruction: bool,
    /// The access was to a stage-1 descriptor.
    pub s1ptw: bool,
    /// A cache maintenance instruction.
    pub cache_op: bool,
    /// The instruction, if hardware describes it and the access is its own.
    pub access: Option<Access>,
    /// The guest's virtual address.
    pub gva: Gva,
    /// The address that faulted, to the byte (to the page with S1PTW). `None`: hardware does not
    /// vouch for it; translate `gva` (AT) and use `at_page`.
    pub address: Option<A>,
}

impl<A: Address> Stage2Fault<A> {
    /// Whether it wanted to execute.
    pub const fn exec(&self) -> bool {
        is_exec_fault(self.instruction, self.s1ptw)
    }

    /// The same fault with the page that a translation of `gva` gave.
    pub fn at_page(self, page: A) -> Self {
        let offset = if self.s1ptw {
            0
        } else {
            self.gva.offset_in(4096)
        };
        Self {
            address: Some(A::from_raw(page.to_raw() & !0xfff | offset)),
            ..self
        }
    }
}

/// A fault, not an external abort, of hardware's access to a VNCR page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VncrFault {
    /// The stage-1 status in the EL2&0 regime.
    pub status: FaultStatus,
    /// A write.
    pub write: bool,
}

/// Classifies an exception taken to EL2. Total: every ESR value has an outcome.
///
/// `far` is FAR_EL2 and `hpfar` HPFAR_EL2 as read on entry; `hpfar` is not believed where the
/// architecture leaves it UNKNOWN, and may be `None` if it was not read.
pub fn classify<A: Address>(
    esr: Esr,
    far: Gva,
    hpfar: Option<Hpfar>,
    context: Context,
) -> Abort<A> {
    match esr.syndrome() {
        Syndrome::DataAbort { lower: true, abort } => data_abort(esr, abort, far, hpfar, context),
        // From EL1 by way of NV2: hardware's own access, at the privilege of EL2.
        Syndrome::DataAbort {
            lower: false,
            abort,
        } if abort.vncr => vncr_abort(esr, abort, context),
        Syndrome::DataAbort { lower: false, .. }
        | Syndrome::InstructionAbort { lower: false, .. } => Abort::AtEl2,
        Syndrome::InstructionAbort { lower: true, abort } => {
            instruction_abort(esr, abort, far, hpfar, context)
        }
        Syndrome::SError(error) => Abort::SError(SErrorEffect::of(error, context.ras)),
        Syndrome::IllegalState => Abort::IllegalReturn,
        Syndrome::Wfx(_)
        | Syndrome::FpAccess
        | Syndrome::SveAccess
        | Syndrome::SmeAccess
        | Syndrome::PointerAuth
        | Syndrome::Svc(_)
        | Syndrome::Hvc(_)
        | Syndrome::Smc(_)
        | Syndrome::SysReg(_)
        | Syndrome::Eret(_)
        | Syndrome::Other(_) => Abort::NotAnAbort(esr.ec()),
    }
}

fn owner(context: Context, status: FaultStatus, s1ptw: bool, vncr: bool) -> SeaOwner {
    if host_owns_sea(context.ras, context.world, status, s1ptw, vncr) {
        SeaOwner::Host
    } else {
        SeaOwner::Guest
    }
}

fn data_abort<A: Address>(
    esr: Esr,
    abort: DataAbort,
    far: Gva,
    hpfar: Option<Hpfar>,
    context: Context,
) -> Abort<A> {
    if abort.status.is_sea() {
        let owner = owner(context, abort.status, abort.s1ptw, abort.vncr);
        let gva = (!abort.far_not_valid && !abort.vncr).then_some(far);
        return Abort::Sea(Sea {
            gva,
            vncr: abort.vncr,
            ..Sea::new(esr, owner, abort.status)
        });
    }
    let parts = Parts {
        status: abort.status,
        s1ptw: abort.s1ptw,
        instruction: false,
        far,
        hpfar,
    };
    parts.classify(|fault| Stage2Fault {
        write: is_write_fault(abort.status, abort.s1ptw, abort.write),
        cache_op: abort.cache_op && !abort.s1ptw,
        access: abort.access.filter(|_| !abort.s1ptw),
        ..fault
    })
}

fn instruction_abort<A: Address>(
    esr: Esr,
    abort: InstructionAbort,
    far: Gva,
    hpfar: Option<Hpfar>,
    context: Context,
) -> Abort<A> {
    if abort.status.is_sea() {
        // Bit 13 means VNCR for data aborts only (row S6).
        let owner = owner(context, abort.status, abort.s1ptw, false);
        let gva = (!abort.far_not_valid).then_some(far);
        return Abort::Sea(Sea {
            gva,
            instruction: true,
            ..Sea::new(esr, owner, abort.status)
        });
    }
    let parts = Parts {
        status: abort.status,
        s1ptw: abort.s1ptw,
        instruction: true,
        far,
        hpfar,
    };
    parts.classify(|fault| Stage2Fault {
        write: is_write_fault(abort.status, abort.s1ptw, false),
        ..fault
    })
}

fn vncr_abort<A: Address>(esr: Esr, abort: DataAbort, context: Context) -> Abort<A> {
    if abort.status.is_sea() {
        let owner = owner(context, abort.status, abort.s1ptw, true);
        return Abort::Sea(Sea {
            vncr: true,
            ..Sea::new(esr, owner, abort.status)
        });
    }
    match abort.status {
        FaultStatus::TlbConflict => Abort::TlbConflict,
        status => Abort::Vncr(VncrFault {
            status,
            write: abort.write,
        }),
    }
}

/// What instruction and data aborts have in common.
struct Parts {
    status: FaultStatus,
    s1ptw: bool,
    instruction: bool,
    far: Gva,
    hpfar: Option<Hpfar>,
}

impl Parts {
    fn classify<A: Address>(
        self,
        complete: impl FnOnce(Stage2Fault<A>) -> Stage2Fault<A>,
    ) -> Abort<A> {
        let Parts {
            status,
            s1ptw,
            instruction,
            far,
            hpfar,
        } = self;
        let stage2 = |kind, level| {
            let address = hpfar
                .filter(|_| hpfar_is_valid(status, s1ptw))
                .map(|hpfar| fault_ipa(hpfar, far, s1ptw));
            Abort::Stage2(complete(Stage2Fault {
                kind,
                level,
                write: false,
                instruction,
                s1ptw,
                cache_op: false,
                access: None,
                gva: far,
                address,
            }))
        };
        match status {
            FaultStatus::Translation(level) => stage2(Stage2Kind::Translation, level),
            FaultStatus::AccessFlag(level) => stage2(Stage2Kind::AccessFlag, level),
            FaultStatus::Permission(level) => stage2(Stage2Kind::Permission, level),
            FaultStatus::AddressSize(level) => stage2(Stage2Kind::AddressSize, level),
            FaultStatus::TlbConflict => Abort::TlbConflict,
            FaultStatus::UnsupportedExclusive => Abort::UnsupportedExclusive { gva: far },
            FaultStatus::External
            | FaultStatus::ExternalOnWalk(_)
            | FaultStatus::Parity
            | FaultStatus::ParityOnWalk(_)
            | FaultStatus::TagCheck
            | FaultStatus::Alignment
            | FaultStatus::GranuleProtection
            | FaultStatus::GranuleProtectionOnWalk(_)
            | FaultStatus::UnsupportedUpdate
            | FaultStatus::Lockdown
            | FaultStatus::Reserved(_) => Abort::Unexpected {
                status,
                instruction,
                gva: far,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use umbra_arm64::{Ipa, L2Ipa};

    const FAR: Gva = Gva::new(0xffff_8000_0000_0abc);
    const HPFAR: Hpfar = Hpfar::new(0x4_0010);
    const RAS: Context = Context {
        ras: true,
        world: World::Plain,
    };

    fn esr(ec: u8, iss: u32) -> Esr {
        Esr::from_parts(Ec::from_number(ec), true, iss)
    }

    fn outcome(ec: u8, iss: u32) -> Abort<Ipa> {
        classify(esr(ec, iss), FAR, Some(HPFAR), RAS)
    }

    fn stage2(ec: u8, iss: u32) -> Stage2Fault<Ipa> {
        match outcome(ec, iss) {
            Abort::Stage2(fault) => fault,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_store_to_unmapped_memory() {
        let fault = stage2(
            0x24,
            1 << 24 | 0b11 << 22 | 5 << 16 | 1 << 15 | 1 << 6 | 0x07,
        );
        assert_eq!(
            (fault.kind, fault.level, fault.write, fault.exec()),
            (Stage2Kind::Translation, Level::L3, true, false)
        );
        assert_eq!(
            (fault.address, fault.gva),
            (Some(Ipa::new(0x400_1abc)), FAR)
        );
        assert_eq!(
            fault
                .access
                .map(|access| (access.size.bytes(), access.register)),
            Some((8, 5))
        );
    }

    #[test]
    fn a_permission_fault_names_its_page_only_with_s1ptw() {
        let plain = stage2(0x24, 1 << 6 | 0x0f);
        assert_eq!(
            (plain.kind, plain.write, plain.address),
            (Stage2Kind::Permission, true, None)
        );
        assert_eq!(
            plain.at_page(Ipa::new(0x7fff)).address,
            Some(Ipa::new(0x7abc))
        );
        let walk = stage2(0x20, 1 << 7 | 0x0f);
        assert_eq!(
            (walk.write, walk.exec(), walk.address),
            (true, false, Some(Ipa::new(0x400_1000)))
        );
        assert_eq!(
            walk.at_page(Ipa::new(0x7fff)).address,
            Some(Ipa::new(0x7000))
        );
    }

    #[test]
    fn a_walk_s_fault_is_not_the_instruction_s() {
        // ISV, CM and WnR describe an instruction, not the walker's access.
        let fault = stage2(0x24, 1 << 24 | 1 << 8 | 1 << 7 | 1 << 6 | 0x06);
        assert_eq!(
            (fault.access, fault.cache_op, fault.write),
            (None, false, false)
        );
        let own = stage2(0x24, 1 << 8 | 1 << 6 | 0x06);
        assert!(own.cache_op && own.write);
    }

    #[test]
    fn without_hpfar_there_is_no_address() {
        let fault = classify::<L2Ipa>(esr(0x24, 0x07), FAR, None, RAS);
        assert!(matches!(
            fault,
            Abort::Stage2(Stage2Fault { address: None, .. })
        ));
    }

    #[test]
    fn external_aborts_say_nothing_that_hardware_does_not_vouch_for() {
        for ec in [0x20, 0x24] {
            let Abort::Sea(sea) = outcome(ec, 0x10) else {
                panic!()
            };
            assert_eq!(
                (sea.owner, sea.gva, sea.address),
                (SeaOwner::Guest, Some(FAR), None)
            );
            assert_eq!(sea.instruction, ec == 0x20);
            let Abort::Sea(sea) = outcome(ec, 1 << 10 | 0x10) else {
                panic!()
            };
            assert_eq!(sea.gva, None);
            let Abort::Sea(sea) = outcome(ec, 1 << 7 | 0x15) else {
                panic!()
            };
            assert_eq!((sea.owner, sea.is_on_walk()), (SeaOwner::Host, true));
        }
    }

    #[test]
    fn bit_13_is_vncr_for_data_aborts_only() {
        let nested = Context {
            world: World::Nested,
            ..RAS
        };
        let abort =
            |ec, context| match classify::<L2Ipa>(esr(ec, 1 << 13 | 0x10), FAR, None, context) {
                Abort::Sea(sea) => (sea.owner, sea.vncr, sea.gva),
                other => panic!("{other:?}"),
            };
        assert_eq!(abort(0x20, RAS), (SeaOwner::Guest, false, Some(FAR)));
        for ec in [0x24, 0x25] {
            assert_eq!(abort(ec, RAS), (SeaOwner::Host, true, None));
            assert_eq!(abort(ec, nested), (SeaOwner::Guest, true, None));
        }
        let fault = outcome(0x25, 1 << 13 | 1 << 6 | 0x07);
        let status = FaultStatus::Translation(Level::L3);
        assert_eq!(
            fault,
            Abort::Vncr(VncrFault {
                status,
                write: true
            })
        );
        assert_eq!(outcome(0x25, 0x07), Abort::AtEl2);
        assert_eq!(outcome(0x21, 0x07), Abort::AtEl2);
    }

    #[test]
    fn the_named_rest() {
        assert_eq!(outcome(0x0e, 0), Abort::IllegalReturn);
        assert_eq!(outcome(0x24, 0x30), Abort::TlbConflict);
        assert_eq!(outcome(0x20, 0x30), Abort::TlbConflict);
        assert_eq!(outcome(0x25, 1 << 13 | 0x30), Abort::TlbConflict);
        assert_eq!(
            outcome(0x24, 0x35),
            Abort::UnsupportedExclusive { gva: FAR }
        );
        assert_eq!(
            outcome(0x2f, 6 << 10 | 0x11),
            Abort::SError(SErrorEffect::Resume)
        );
        assert_eq!(outcome(0x16, 0), Abort::NotAnAbort(Ec::Hvc));
        assert_eq!(stage2(0x24, 0x2b).level, Level::Minus1);
        assert_eq!(stage2(0x24, 0x00).kind, Stage2Kind::AddressSize);
    }

    /// Every EC with every status, S1PTW and VNCR: the outcome's family by the manual's numbers.
    #[test]
    fn every_class_and_status_has_its_family() {
        for ec in 0..64u8 {
            for code in 0..64u32 {
                for flags in [0, 1 << 7, 1 << 13, 1 << 7 | 1 << 13] {
                    let vncr = flags & 1 << 13 != 0;
                    let sea = matches!(code, 0x10 | 0x13..=0x18 | 0x1b..=0x1f);
                    let stage2 = matches!(code, 0x00..=0x0f | 0x29 | 0x2b);
                    let matched = match outcome(ec, flags | code) {
                        Abort::Sea(_) => sea && (matches!(ec, 0x20 | 0x24) || ec == 0x25 && vncr),
                        Abort::Stage2(_) => stage2 && matches!(ec, 0x20 | 0x24),
                        Abort::Vncr(_) => !sea && ec == 0x25 && vncr && code != 0x30,
                        Abort::TlbConflict => {
                            code == 0x30 && (matches!(ec, 0x20 | 0x24) || ec == 0x25 && vncr)
                        }
                        Abort::UnsupportedExclusive { .. } => {
                            code == 0x35 && matches!(ec, 0x20 | 0x24)
                        }
                        Abort::Unexpected { .. } => {
                            matches!(ec, 0x20 | 0x24)
                                && !sea
                                && !stage2
                                && !matches!(code, 0x30 | 0x35)
                        }
                        Abort::AtEl2 => ec == 0x21 || ec == 0x25 && !vncr,
                        Abort::SError(_) => ec == 0x2f,
                        Abort::IllegalReturn => ec == 0x0e,
                        Abort::NotAnAbort(class) => {
                            class.number() == ec
                                && !matches!(ec, 0x0e | 0x20 | 0x21 | 0x24 | 0x25 | 0x2f)
                        }
                    };
                    assert!(matched, "EC {ec:#x}, ISS {:#x}", flags | code);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn no_syndrome_panics_or_leaks(
            raw in any::<u64>(), abort in prop::option::of(prop::sample::select(&[0x20u64, 0x24, 0x25, 0x2f][..])),
            far in any::<u64>(), hpfar in prop::option::of(any::<u64>()), ras in any::<bool>(),
        ) {
            let raw = abort.map_or(raw, |ec| raw & !(0x3f << 26) | ec << 26);
            for world in [World::Plain, World::VirtualEl2, World::Nested] {
                let context = Context { ras, world };
                let hpfar = hpfar.map(Hpfar::new);
                match classify::<L2Ipa>(Esr::new(raw), Gva::new(far), hpfar, context) {
                    Abort::Sea(sea) => {
                        prop_assert_eq!(sea.address, None);
                        prop_assert!(ras || sea.owner == SeaOwner::Host);
                        prop_assert_eq!(sea.shown(true).raw() & !0xfe00_1f7f, 0);
                    }
                    Abort::Stage2(fault) => {
                        prop_assert!(hpfar.is_some() || fault.address.is_none());
                        prop_assert!(!(fault.exec() && fault.write));
                        if let Some(address) = fault.address {
                            prop_assert!(address.raw() >> 52 == 0);
                            let offset = if fault.s1ptw { 0 } else { far & 0xfff };
                            prop_assert_eq!(address.raw() & 0xfff, offset);
                        }
                    }
                    _ => {}
                }
            }
        }
    }
}
