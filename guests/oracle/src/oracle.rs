//! The loop: case, question, both answers, verdict.

use umbra_arm64::idreg::IdRegs;
use umbra_arm64::sysreg::SysReg;
use umbra_arm64::{Granule, Gva};
use umbra_nested::at::{Context, Op, Par, translate};
use umbra_nested::stage1::Stage1Regs;
use umbra_nested::{Features, Support};

use crate::coverage::{Coverage, Stage};
use crate::difference::{ACCEPTED, Asked, F, PTW, S, Told, UNASKED, fault, is_dirtied};
use crate::generate::{Case, Query, stage1_granule, stage2_granule};
use crate::rt::{self, Answer, println};
use crate::world::World;

/// Questions for each table.
const QUESTIONS: u32 = 6;
/// Tables among which a broken rule must show.
const TABLES_UNTIL_CAUGHT: u64 = 4_000;
/// With so many tables every cell and every accepted difference must come.
const COMPLETE: u64 = 20_000;

/// A rule that is broken on purpose, in what the software walk alone is told.
struct Break {
    name: &'static str,
    features: fn(&mut Features),
    flipped: u64,
}

/// What the software walk is told rightly.
const SOUND: Break = Break {
    name: "nothing",
    features: |_| (),
    flipped: 0,
};

const BREAKS: [Break; 12] = [
    hidden("FEAT_HAFDBS", |f| f.access_flag = false),
    hidden("FEAT_S2FWB", |f| f.fwb = false),
    hidden("FEAT_PAN", |f| f.pan = false),
    hidden("FEAT_TTST", |f| f.small_tables = false),
    hidden("FEAT_HPDS", |f| f.hpds = false),
    hidden("FEAT_E0PD", |f| f.e0pd = false),
    hidden("FEAT_LPA2 at stage 1", |f| f.stage1.k4 = Support::Present),
    hidden("FEAT_LPA2 at stage 2", |f| f.stage2.k16 = Support::Present),
    hidden("the size of physical addresses", |f| f.pa_bits = 48),
    turned("the right to read", 1 << 6),
    turned("the right to write", 1 << 7),
    turned("the access flag", 1 << 10),
];

const fn hidden(name: &'static str, features: fn(&mut Features)) -> Break {
    Break {
        name,
        features,
        flipped: 0,
    }
}

const fn turned(name: &'static str, flipped: u64) -> Break {
    Break {
        name,
        features: |_| (),
        flipped,
    }
}

/// What the boot arguments ask for.
struct Args {
    seed: u64,
    first: u64,
    tables: u64,
    show: u32,
    trace: bool,
}

impl Args {
    fn parse(line: &str) -> Args {
        let value = |key: &str, default| {
            line.split_ascii_whitespace()
                .filter_map(|word| word.strip_prefix(key)?.strip_prefix('='))
                .find_map(|value| value.parse().ok())
                .unwrap_or(default)
        };
        Args {
            seed: value("seed", 1),
            first: value("first", 0),
            tables: value("tables", COMPLETE),
            show: value("show", 3) as u32,
            trace: value("trace", 0) != 0,
        }
    }
}

/// What the machine's ID registers say.
fn features() -> Features {
    let mut ids = IdRegs::default();
    for (register, isar, op2) in [
        (SysReg::ID_AA64MMFR0_EL1, false, 0),
        (SysReg::ID_AA64MMFR1_EL1, false, 1),
        (SysReg::ID_AA64MMFR2_EL1, false, 2),
        (SysReg::ID_AA64ISAR0_EL1, true, 0),
        (SysReg::ID_AA64ISAR1_EL1, true, 1),
        (SysReg::ID_AA64ISAR2_EL1, true, 2),
    ] {
        ids.set(register, rt::id_register(isar, op2));
    }
    Features::of(&ids)
}

/// What a batch found.
struct Found {
    coverage: Coverage,
    questions: u64,
    /// Those that QEMU cannot be asked.
    unasked: [u32; UNASKED.len()],
    differences: u32,
    strange: u32,
    accepted: [u32; ACCEPTED.len()],
    /// The table of the first difference.
    first: Option<u64>,
}

fn regs([sctlr, tcr, ttbr0, ttbr1, mair]: [u64; 5]) -> Stage1Regs {
    Stage1Regs {
        sctlr,
        tcr,
        ttbr0,
        ttbr1,
        mair,
    }
}

/// Whose outcome it is, and of which granule.
fn cell(asked: &Asked<'_>) -> (Stage, Granule) {
    let two = matches!(asked.op, Op::S12E1 { .. } | Op::S12E0 { .. });
    let first = stage1_granule(asked.features, asked.tcr(), asked.is_upper());
    let second = stage2_granule(asked.features, asked.question.vtcr);
    match asked.software & (F | S | PTW) {
        _ if asked.is_own() => (Stage::El20, first),
        par if par == F | S | PTW => (Stage::Walk, second),
        par if par & (F | S) == F | S || par & F == 0 && two => (Stage::Second, second),
        _ => (Stage::El10, first),
    }
}

/// Asks both sides about `tables` cases and compares. Ends with the first difference if `broken` is one.
fn batch(args: &Args, tables: u64, features: &Features, broken: &Break) -> Found {
    let mut found = Found {
        coverage: Coverage::new(),
        questions: 0,
        unasked: [0; UNASKED.len()],
        differences: 0,
        strange: 0,
        accepted: [0; ACCEPTED.len()],
        first: None,
    };
    let mut told = *features;
    (broken.features)(&mut told);
    for number in args.first..args.first + tables {
        let mut case = Case::new(args.seed, number);
        case.shape.flipped = broken.flipped;
        for index in 0..QUESTIONS {
            let query = case.query();
            let mut world = World::new(case.shape);
            let software = walk(&told, &query, &mut world);
            if args.trace {
                println!("table {number}, question {index}");
                tell(&query, &world, software, None);
            }
            let asked = Asked {
                op: Op::TABLE[query.number].1,
                question: &query.question,
                features,
                software: software.raw(),
                last: world.last(),
                words: world.words(),
            };
            if let Some(at) = UNASKED.iter().position(|u| (u.explains)(&asked)) {
                found.unasked[at] += 1;
                world.forget();
                continue;
            }
            let different = compare(&mut found, &asked, &query, software, &world);
            if let Some(cpu) = different {
                found.first.get_or_insert(number);
                found.differences += 1;
                if broken.name == SOUND.name && found.differences <= args.show {
                    println!(
                        "DIFFERENT seed={} first={number} tables=1, question {index}",
                        args.seed
                    );
                    tell(&query, &world, software, Some(cpu));
                }
            }
            world.forget();
        }
        if broken.name != SOUND.name && found.differences > 0 {
            break;
        }
    }
    found
}

/// The software walk. Memory is as before afterwards; the world remembers how the walk left it.
fn walk(told: &Features, query: &Query, world: &mut World) -> Par {
    let question = &query.question;
    let (_, op) = Op::TABLE[query.number];
    let context = Context {
        features: *told,
        hcr: question.hcr,
        el1: regs(question.el1),
        el2: regs(question.el2),
        vtcr: question.vtcr,
        vttbr: question.vttbr,
        pan: question.pan != 0,
    };
    let outcome = translate(op, Gva::new(question.va), &context, world);
    world.rewind();
    match outcome {
        Ok(par) => par,
        Err(again) => panic!("nobody else is there: {again:?}"),
    }
}

/// Asks the CPU. Its answer, if it differs from the software's and may not.
fn compare(
    found: &mut Found,
    asked: &Asked<'_>,
    query: &Query,
    software: Par,
    world: &World,
) -> Option<Answer> {
    let cpu = rt::ask(&query.question, query.number);
    found.questions += 1;
    let (stage, granule) = cell(asked);
    if !found.coverage.count(stage, granule, fault(asked.software)) {
        found.strange += 1;
    }
    let told = Told {
        cpu,
        dirty: world
            .differences()
            .any(|(word, bits)| is_dirtied(word, bits)),
        memory: world
            .differences()
            .any(|(word, bits)| !is_dirtied(word, bits)),
        answer: !agree(asked.software, software.is_external(), cpu),
    };
    if !(told.dirty || told.memory || told.answer) {
        return None;
    }
    match ACCEPTED.iter().position(|a| (a.explains)(asked, &told)) {
        Some(at) => {
            found.accepted[at] += 1;
            None
        }
        None => Some(cpu),
    }
}

/// Whether the answers are the same: PAR_EL1, or for a table that cannot be read the abort that says so.
fn agree(software: u64, external: bool, cpu: Answer) -> bool {
    match cpu {
        Answer::Par(par) => !external && par == software,
        Answer::Abort(esr) => {
            let ptw = software & PTW != 0;
            external
                && esr >> 26 == 0x25
                && esr & 0x3f == software >> 1 & 0x3f
                && (esr >> 7 & 1 != 0) == ptw
        }
    }
}

/// A question in words.
fn registers(query: &Query) {
    let question = &query.question;
    println!(
        "  {:?} va {:#018x} pan {}",
        Op::TABLE[query.number].1,
        question.va,
        question.pan >> 22
    );
    println!(
        "  hcr {:#x} vtcr {:#x} vttbr {:#018x}",
        question.hcr, question.vtcr, question.vttbr
    );
    for (name, [sctlr, tcr, ttbr0, ttbr1, mair]) in [("el1", question.el1), ("el2", question.el2)] {
        println!(
            "  {name} sctlr {sctlr:#x} tcr {tcr:#x} ttbr0 {ttbr0:#018x} ttbr1 {ttbr1:#018x} mair {mair:#018x}"
        );
    }
}

/// Everything there is to say about one question.
fn tell(query: &Query, world: &World, software: Par, cpu: Option<Answer>) {
    let software = software.raw();
    registers(query);
    for word in world.words() {
        let now = rt::read(word.at);
        println!(
            "  [{:#x}] {:#018x}, software left {:#018x}, CPU left {now:#018x}",
            word.at, word.before, word.after
        );
    }
    println!("  software PAR_EL1 {software:#018x} {:?}", fault(software));
    match cpu {
        Some(Answer::Par(par)) => println!("  CPU      PAR_EL1 {par:#018x} {:?}", fault(par)),
        Some(Answer::Abort(esr)) => println!("  CPU      abort, ESR_EL2 {esr:#x}"),
        None => (),
    }
}

/// The program: 0 if all is well.
pub(crate) fn main_at_el2() -> u8 {
    let mut buffer = [0; 512];
    let args = Args::parse(rt::command_line(&mut buffer));
    let features = features();
    println!("{features:?}");
    let found = batch(&args, args.tables, &features, &SOUND);
    let empty = found.coverage.report();
    let mut bad = 0;
    let mut check = |fine: bool, name: &str, number: u64| {
        if fine {
            println!("ok oracle/{name}: {number}");
        } else {
            println!("FAIL oracle/{name}: {number}");
            bad = 1;
        }
    };
    let complete = args.tables >= COMPLETE;
    for (unasked, count) in UNASKED.iter().zip(found.unasked) {
        println!("not asked {count:>8}: {}", unasked.why);
        check(
            count > 0 || !complete,
            "reason not to ask comes",
            count.into(),
        );
    }
    for (accepted, count) in ACCEPTED.iter().zip(found.accepted) {
        println!("accepted  {count:>8}: {}", accepted.why);
        check(
            count > 0 || !complete,
            "accepted difference comes",
            count.into(),
        );
    }
    check(
        found.differences == 0,
        "differences",
        found.differences.into(),
    );
    check(
        found.strange == 0,
        "outcomes that the architecture has not",
        found.strange.into(),
    );
    check(empty == 0 || !complete, "empty cells", empty.into());
    if complete {
        for broken in &BREAKS {
            let tables = TABLES_UNTIL_CAUGHT;
            let caught = batch(&args, tables, &features, broken).first;
            println!("without {}: noticed at table {caught:?}", broken.name);
            check(caught.is_some(), "broken rule noticed", caught.unwrap_or(0));
        }
    }
    println!("{} tables, {} questions", args.tables, found.questions);
    println!("done oracle");
    bad
}
