//! A case held against the transcription: the same registers, memory and access for the walker and for
//! the manual's pseudocode, and every part of the answer compared.
//!
//! A cell is a regime, a granule, an outcome and a level; `Coverage` counts which were met. The fuzz targets
//! (`fuzz/`) use this file too, with the bytes of their input as the dice.

use std::collections::BTreeMap;

use umbra_arm64::{Address, FaultKind, GuestFault, Gva, L2Ipa, Rights, Translation};
use umbra_nested::at::{Op, translate};
use umbra_nested::attributes::{Attributes, Shareability};
use umbra_nested::stage1::{self, BehindStage2, Kind, Regime, Untranslated};
use umbra_nested::stage2;
use umbra_nested::{Again, Features, Purpose, Stop, Stop1};

use crate::generate::{self, Case, Rng, World};
use crate::manual::{
    self, AccDesc, At, Fault, Machine, MemAttrs, Output, Regs, Status, aarch64_at,
    encode_par_attrs, par_encode_shareability, s1_decode, s1_translate, s2_translate,
};
use crate::registers;

/// An outcome in the words of neither side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Success {
        address: u64,
        level: Option<i32>,
        size: (u32, u32),
        attr: u64,
        sh: u64,
    },
    Fault {
        status: Status,
        level: i32,
        second: bool,
        walk: bool,
    },
    Retry(u64),
}

fn of_manual(outcome: &Result<Output, Fault>, features: &Features) -> Outcome {
    match outcome {
        Ok(output) => Outcome::Success {
            address: output.address,
            level: output.level,
            size: output.size,
            attr: encode_par_attrs(&output.memattrs, features.xs),
            sh: par_encode_shareability(&output.memattrs),
        },
        Err(Fault::Architected {
            statuscode,
            level,
            secondstage,
            s2fs1walk,
        }) => Outcome::Fault {
            status: *statuscode,
            level: *level,
            second: *secondstage,
            walk: *s2fs1walk,
        },
        Err(Fault::Retry(at)) => Outcome::Retry(*at),
    }
}

fn success<A: Address>(
    translation: &Translation<A>,
    attributes: Attributes,
    features: &Features,
) -> Outcome {
    // A flat mapping is bigger than any leaf.
    let flat = translation.leaf_bytes == 1 << 52;
    let size = (
        translation.leaf_bytes.trailing_zeros(),
        translation.bytes.trailing_zeros(),
    );
    let (attr, sh) = attributes.encode_par(features.xs);
    Outcome::Success {
        address: translation.output.to_raw(),
        level: (!flat).then(|| translation.level.number().into()),
        size: if flat { (0, 0) } else { size },
        attr: attr.into(),
        sh: sh.into(),
    }
}

fn stopped(stop: Stop, second: bool, walk: bool) -> Outcome {
    match stop.fault() {
        Ok(GuestFault { kind, level }) => Outcome::Fault {
            status: match kind {
                FaultKind::Translation => Status::Translation,
                FaultKind::AccessFlag => Status::AccessFlag,
                FaultKind::Permission => Status::Permission,
                FaultKind::AddressSize => Status::AddressSize,
                FaultKind::ExternalOnWalk => Status::SyncExternalOnWalk,
            },
            level: level.number().into(),
            second,
            walk,
        },
        Err(Again::Memory(at)) => Outcome::Retry(at.raw()),
        Err(Again::Contended) => panic!("nobody else writes"),
    }
}

fn stopped1(stop: Stop1) -> Outcome {
    match stop {
        Stop1::Stage1(stop) => stopped(stop, false, false),
        Stop1::Stage2 { stop, .. } => stopped(stop, true, true),
    }
}

/// How often each cell was hit: (regime, granule bits, outcome, level).
#[derive(Default)]
pub(crate) struct Coverage(pub(crate) BTreeMap<(&'static str, u32, &'static str, i32), u64>);

/// Whether the architecture has such a cell. Level 0 is also the level of bad configurations.
pub(crate) fn exists(granule: u32, outcome: &str, level: i32) -> bool {
    let start = match granule {
        12 => -1,
        14 => 0,
        _ => 1,
    };
    let biggest_leaf = match granule {
        12 => 0,
        _ => 1,
    };
    match outcome {
        "translation" | "address size" => level == 0 || level >= start,
        "external" => level >= start,
        _ => level >= biggest_leaf,
    }
}

impl Coverage {
    fn count(&mut self, regime: &'static str, granule: u32, outcome: &Outcome) {
        let (name, level) = match outcome {
            Outcome::Success {
                level: Some(level), ..
            } => ("success", *level),
            Outcome::Success { level: None, .. } | Outcome::Retry(_) => return,
            Outcome::Fault { status, level, .. } => {
                let name = match status {
                    Status::Translation => "translation",
                    Status::AccessFlag => "access flag",
                    Status::Permission => "permission",
                    Status::AddressSize => "address size",
                    Status::SyncExternalOnWalk => "external",
                };
                (name, *level)
            }
        };
        assert!(
            exists(granule, name, level),
            "no such cell: {granule} {name} {level}"
        );
        *self.0.entry((regime, granule, name, level)).or_default() += 1;
    }
}

/// Runs the transcription on its own copy of the world, which it leaves behind.
fn run<T>(
    features: &Features,
    regs: &Regs,
    world: &World,
    body: impl FnOnce(&mut Machine<'_, World>) -> T,
) -> (T, World) {
    let mut world = world.clone();
    let mut machine = Machine {
        regs: *regs,
        features: *features,
        memory: &mut world,
    };
    let outcome = body(&mut machine);
    (outcome, world)
}

/// Holds the rights that a walk reported against the transcription: which accesses meet no permission
/// fault right after it, and change no descriptor. A fetch does not change dirty state, so it is asked
/// with hardware's management of it. (Another fault, of E0PD or TBID, says nothing about rights.)
fn check_rights(
    seed: u64,
    rights: Rights,
    features: &Features,
    ask: impl Fn(&Features, AccDesc, Option<bool>) -> Result<Output, Fault>,
) {
    let clean = Features {
        dirty_state: false,
        ..*features
    };
    for (name, right, outcome) in [
        ("read", rights.read, ask(features, AccDesc::READ, None)),
        ("write", rights.write, ask(&clean, AccDesc::WRITE, None)),
        (
            "exec_el0",
            rights.exec_el0,
            ask(features, AccDesc::FETCH, Some(true)),
        ),
        (
            "exec_el1",
            rights.exec_el1,
            ask(features, AccDesc::FETCH, Some(false)),
        ),
    ] {
        let expected = match outcome {
            Ok(_) => true,
            Err(Fault::Architected {
                statuscode: Status::Permission,
                ..
            }) => false,
            Err(_) => continue,
        };
        assert_eq!(right, expected, "seed {seed}: {name}");
    }
}

const STAGE2_ACCESSES: [(stage2::Access, AccDesc); 9] = [
    (stage2::Access::Read, AccDesc::READ),
    (stage2::Access::Write, AccDesc::WRITE),
    (stage2::Access::FetchEl1, AccDesc::FETCH),
    (
        stage2::Access::FetchEl0,
        AccDesc {
            el0: true,
            ..AccDesc::FETCH
        },
    ),
    (stage2::Access::WalkRead, AccDesc::S1TTW),
    (stage2::Access::AtWalkRead, AccDesc::S1TTW),
    (stage2::Access::WalkUpdate, AccDesc::TTE_UPDATE),
    (
        stage2::Access::AtRead,
        AccDesc {
            at: true,
            ..AccDesc::READ
        },
    ),
    (
        stage2::Access::AtWrite,
        AccDesc {
            at: true,
            ..AccDesc::WRITE
        },
    ),
];

/// Attributes of a stage 1, for both sides.
fn first_attributes(rng: &mut Rng, features: &Features) -> (Attributes, MemAttrs) {
    let byte = rng.below(256);
    let sh = rng.below(4);
    (
        Attributes::from_mair(byte, Shareability::decode(sh), features.xs),
        s1_decode(byte, sh, features.xs),
    )
}

/// A walk of stage 2.
pub(crate) fn stage2_case(mut rng: Rng, coverage: &mut Coverage) {
    let seed = rng.seed;
    let case = generate::case(&mut rng, false);
    let Case {
        features,
        regs,
        world,
    } = &case;
    let ipa = generate::ipa(&mut rng, regs.vtcr);
    let (access, accdesc) = rng.pick(&STAGE2_ACCESSES);
    let (first, first_manual) = if accdesc.ttw {
        (Attributes::DEFAULT_CACHEABLE, MemAttrs::walk())
    } else {
        first_attributes(&mut rng, features)
    };

    let (expected, after) = run(features, regs, world, |machine| {
        coverage_granule(machine, |machine| {
            s2_translate(machine, ipa, first_manual, accdesc)
        })
    });
    let (granule, expected) = expected;
    let expected = of_manual(&expected, features);
    coverage.count("stage 2", granule, &expected);

    let config = registers::stage2(regs, features);
    let mut memory = world.clone();
    let actual = stage2::walk(&config, L2Ipa::new(ipa), access, &mut memory);
    let (mut actual_outcome, rights) = match &actual {
        Ok(mapping) => {
            let attributes = mapping
                .attributes
                .map_or(first, |second| second.combine(first));
            (
                success(&mapping.translation, attributes, features),
                Some(mapping.translation.rights),
            )
        }
        Err(stop) => (stopped(*stop, true, accdesc.ttw), None),
    };
    let mut expected = expected;
    if accdesc.ttw || accdesc.ifetch {
        // The type of memory that a walk sees leaves no trace but a fault, and attributes are reported
        // for data accesses (HCR_EL2.ID is not looked at).
        for outcome in [&mut expected, &mut actual_outcome] {
            if let Outcome::Success { attr, sh, .. } = outcome {
                (*attr, *sh) = (0, 0);
            }
        }
    }
    assert_eq!(
        actual_outcome, expected,
        "seed {seed}: {access:?} {ipa:#x} {regs:x?} {features:?}"
    );
    assert_eq!(memory.written, after.written, "seed {seed}");
    let Some(rights) = rights else { return };
    check_rights(seed, rights, features, |features, accdesc, el0| {
        let accdesc = AccDesc {
            el0: el0.unwrap_or(false),
            ..accdesc
        };
        let (outcome, _) = run(features, regs, &memory, |machine| {
            s2_translate(machine, ipa, first_manual, accdesc)
        });
        outcome
    });
}

fn coverage_granule<T>(
    machine: &mut Machine<'_, World>,
    body: impl FnOnce(&mut Machine<'_, World>) -> T,
) -> (u32, T) {
    let granule = manual::s2_granule(machine);
    (granule, body(machine))
}

/// A walk of stage 1 of `regime`.
pub(crate) fn stage1_case(mut rng: Rng, regime: Regime, coverage: &mut Coverage) {
    let seed = rng.seed;
    let one_half = regime == Regime::El2;
    let Case {
        features,
        mut regs,
        world,
    } = generate::case(&mut rng, one_half);
    if regime == Regime::El10 && rng.percent(60) {
        // Stage 1 by itself.
        regs.hcr &= !(1 | 1 << 12);
    }
    let tcr = if regime == Regime::El10 {
        regs.el1[1]
    } else {
        regs.el2[1]
    };
    let va = generate::va(&mut rng, tcr, one_half);
    let kind = rng.pick(&[Kind::Read, Kind::Write, Kind::Fetch]);
    let access = stage1::Access {
        kind,
        el0: !one_half && rng.percent(40),
        pan: rng.percent(40),
        purpose: if kind != Kind::Fetch && rng.percent(30) {
            Purpose::At
        } else {
            Purpose::Access
        },
    };
    let accdesc = AccDesc {
        el0: access.el0,
        pan: access.pan,
        at: access.purpose == Purpose::At,
        ..match kind {
            Kind::Read => AccDesc::READ,
            Kind::Write => AccDesc::WRITE,
            Kind::Fetch => AccDesc::FETCH,
        }
    };

    let (result, after) = run(&features, &regs, &world, |machine| {
        let granules = (
            manual::s1_granule(machine, regime, va),
            manual::s2_granule(machine),
        );
        (granules, s1_translate(machine, regime, va, accdesc))
    });
    let ((granule1, granule2), expected) = result;
    let expected = of_manual(&expected, &features);
    if let Outcome::Fault { second: true, .. } = expected {
        coverage.count("stage 2 on a walk", granule2, &expected);
    } else {
        let name = match regime {
            Regime::El10 => "EL1&0",
            Regime::El20 => "EL2&0",
            Regime::El2 => "EL2",
        };
        coverage.count(name, granule1, &expected);
    }

    let config = registers::stage1(&regs, regime, &features);
    let stage2 = registers::stage2(&regs, &features);
    let mut memory = world.clone();
    let va_typed = Gva::new(va);
    let (actual, rights) = if regime == Regime::El10 {
        let mut tables = BehindStage2 {
            config: &stage2,
            memory: &mut memory,
        };
        outcome1(
            stage1::walk(&config, va_typed, access, &mut tables),
            &features,
        )
    } else {
        let mut tables = Untranslated {
            memory: &mut memory,
        };
        outcome1(
            stage1::walk(&config, va_typed, access, &mut tables),
            &features,
        )
    };
    assert_eq!(
        actual, expected,
        "seed {seed}: {regime:?} {access:?} {va:#x} {regs:x?} {features:?}"
    );
    assert_eq!(memory.written, after.written, "seed {seed}");
    let Some(rights) = rights else { return };
    if let (true, Outcome::Success { level: Some(_), .. }) = (one_half, actual) {
        assert!(!rights.exec_el0, "seed {seed}: a regime without EL0");
    }
    check_rights(seed, rights, &features, |features, accdesc, el0| {
        if one_half && el0 == Some(true) {
            return Err(Fault::Retry(0));
        }
        let accdesc = AccDesc {
            el0: el0.unwrap_or(access.el0),
            // The rights to read and write are those of the access; the other level has its own.
            pan: access.pan,
            ..accdesc
        };
        let (outcome, _) = run(features, &regs, &memory, |machine| {
            s1_translate(machine, regime, va, accdesc)
        });
        outcome
    });
}

fn outcome1<A: Address>(
    outcome: Result<stage1::Mapping<A>, Stop1>,
    features: &Features,
) -> (Outcome, Option<Rights>) {
    match outcome {
        Ok(mapping) => (
            success(&mapping.translation, mapping.attributes, features),
            Some(mapping.translation.rights),
        ),
        Err(stop) => (stopped1(stop), None),
    }
}

/// The operands of the pseudocode for an instruction.
pub(crate) fn operands(op: Op) -> At {
    let (el, stage12, write, pan) = match op {
        Op::S1E1 { write, pan } => (1, false, write, pan),
        Op::S1E0 { write } => (0, false, write, false),
        Op::S1E2 { write } => (2, false, write, false),
        Op::S12E1 { write } => (1, true, write, false),
        Op::S12E0 { write } => (0, true, write, false),
    };
    At {
        el,
        stage12,
        write,
        pan,
    }
}

/// An AT. Answers PAR_EL1, and whether the instruction completed.
pub(crate) fn at_case(op: Op, va: u64, pan: bool, case: &Case) -> (u64, bool) {
    let Case {
        features,
        regs,
        world,
    } = case;
    let (expected, after) = run(features, regs, world, |machine| {
        aarch64_at(machine, va, operands(op), pan)
    });
    let mut memory = world.clone();
    let context = registers::context(regs, features, pan);
    let actual = match translate(op, Gva::new(va), &context, &mut memory) {
        Ok(par) => Ok(par.raw()),
        Err(Again::Memory(at)) => Err(at.raw()),
        Err(Again::Contended) => panic!("an AT completes"),
    };
    assert_eq!(actual, expected, "{op:?} {va:#x} {regs:x?} {features:?}");
    assert_eq!(
        memory.written, after.written,
        "{op:?} {va:#x} {regs:x?} {features:?}"
    );
    (expected.unwrap_or(0), expected.is_ok())
}
