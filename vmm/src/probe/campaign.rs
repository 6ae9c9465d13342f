//! Memory errors of every kind at random, beside VMs that compute: the others' sums stay right, every owner
//! gets the outcome that `docs/memory-errors.md` promises, and umbra goes on.
//!
//! The seed decides what is done and to whom, so that a failure can be had again: `--seed N --count M`. The moment
//! is another each time.
//!
//! An outcome is one of a few, each of which holds the contract for its class: the check that comes to
//! it looked at (a) to (f). Whatever else happens is a failure that names seed, number and class.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use std::{fs, thread};

use umbra_vmm::kvm::{PAGE, Region, catch_bus_errors, replacing};

use super::guest::{Exit, Machine, Runner, Sea, Vcpu};
use super::heal::{self, FILES, LOSSES};
use super::poison::{self, Access, DATA, DATA_BYTES, EL0, EL1, GPA_VALID, HWPOISON};
use super::{Check, Env, below, granted, holds, same};

/// What became of whose page went bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Came {
    /// Its VMM was told by an exit, injected it, and gave a fresh page.
    Exit,
    /// Its process was told by SIGBUS, and handled it.
    Signal,
    /// Its process ended by SIGBUS.
    Ended,
    /// A call of its failed.
    Refused,
    /// Nobody noticed.
    Healed,
    /// Its VM, or vCPU, stopped.
    Stopped,
    /// Nobody had it, and nobody gets it.
    Retired,
}

/// Makes one page bad, and checks what came of it.
type Inject = fn(&mut Random) -> Check<Came>;

/// Whose page goes bad, and how often of a hundred.
const CLASSES: [(&str, u64, Inject); 19] = [
    ("RAM of a VM, or its tables: 32 cells", 20, ram),
    ("RAM of a VM while it runs", 10, running),
    (
        "RAM of a guest's guest, or its tables: 32 cells",
        16,
        ram_below,
    ),
    ("a guest hypervisor's stage 2", 5, |_| {
        below::table(&ENV).map(|()| Came::Exit)
    }),
    ("a page that is known to be bad", 5, |_| {
        poison::known(&ENV).map(|()| Came::Signal)
    }),
    ("an instruction of a VM", 4, |_| {
        poison::instruction_abort(&ENV).map(|()| Came::Exit)
    }),
    ("nobody's", 3, free),
    ("the VMM's own memory", 4, own),
    ("the VMM's stack, heap or tables", 2, child),
    ("the VMM's memory, met by umbra", 3, |_| {
        poison::signal_of_the_vmm(&ENV).map(|()| Came::Refused)
    }),
    ("a table of the VMM's own", 4, |_| {
        heal::process_table(&ENV).map(|()| Came::Signal)
    }),
    ("a run page", 3, |_| {
        heal::run_page(&ENV).map(|()| Came::Stopped)
    }),
    ("a file of the initrd", 1, file),
    ("canonical tables, met by hardware", 4, |_| {
        poison::broken("stage2-table").map(|()| Came::Healed)
    }),
    ("a root, met by hardware", 3, |_| {
        poison::broken("stage2-root").map(|()| Came::Healed)
    }),
    ("canonical tables, met by umbra", 3, |_| {
        heal::own_walk(&ENV).map(|()| Came::Healed)
    }),
    ("any table of any VM, roots included", 5, any_table),
    ("tables of a shadow", 3, |_| {
        below::shadow_table(&ENV).map(|()| Came::Healed)
    }),
    ("a VNCR page", 2, |_| {
        below::vncr(&ENV).map(|()| Came::Stopped)
    }),
];

/// What the checks are made with here.
const ENV: Env = Env {
    umbra: true,
    seed: 0,
    effort: 1,
    count: 1,
    calls: 0,
    seconds: None,
};

/// xorshift64.
pub(super) struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % below
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.next(of.len() as u64) as usize]
    }

    fn class(&mut self) -> usize {
        let mut at = self.next(CLASSES.iter().map(|(_, weight, _)| weight).sum());
        let hit = |(_, weight, _): &(_, u64, _)| match at.checked_sub(*weight) {
            Some(rest) => {
                at = rest;
                false
            }
            None => true,
        };
        CLASSES.iter().position(hit).unwrap_or(0)
    }

    /// A page of DATA, by its offset.
    fn page(&mut self) -> usize {
        self.next((DATA_BYTES / PAGE) as u64) as usize * PAGE
    }
}

fn cell(random: &mut Random) -> (u64, Access, bool, bool) {
    let accesses = [Access::Load, Access::Store, Access::Fetch, Access::Walk];
    (
        random.pick(&[EL1, EL0]),
        random.pick(&accesses),
        random.pick(&[false, true]),
        random.pick(&[false, true]),
    )
}

fn ram(random: &mut Random) -> Check<Came> {
    let (pstate, access, huge, dirty) = cell(random);
    poison::cell(pstate, access, huge, dirty)
        .map_err(|why| format!("{pstate:#x} {access:?} {huge} {dirty}: {why}"))?;
    Ok(Came::Exit)
}

fn ram_below(random: &mut Random) -> Check<Came> {
    if !below::has_el2()? {
        return ram(random);
    }
    let (pstate, access, huge, dirty) = cell(random);
    below::cell(pstate, access, huge, dirty)
        .map_err(|why| format!("{pstate:#x} {access:?} {huge} {dirty}: {why}"))?;
    Ok(Came::Exit)
}

/// DATA with a number in each page, and their sum.
fn numbered(huge: bool) -> Check<(Region, u64)> {
    let data = poison::memory(huge)?;
    for at in (0..DATA_BYTES).step_by(PAGE) {
        data.set_u64(at, at as u64);
    }
    Ok((data, (0..DATA_BYTES as u64).step_by(PAGE).sum()))
}

fn sums_until_it_fails(vcpu: &Vcpu, wanted: u64) -> Check<Sea> {
    loop {
        match vcpu.exits()? {
            Exit::Sea(sea) => return Ok(sea),
            Exit::Write { data, .. } => same(data, wanted, "a sum before the error")?,
            other => return Err(format!("{other:x?} of a guest that sums")),
        }
    }
}

/// A guest sums its memory on another CPU, and a page of it goes bad at any moment.
fn running(random: &mut Random) -> Check<Came> {
    let machine = Machine::new()?;
    let (data, wanted) = numbered(random.pick(&[false, true]))?;
    granted(machine.add(&data, DATA, 0), "a slot")?;
    poison::opt_in(&machine)?;
    let vcpu = machine.vcpu_with(0, &poison::sum(DATA))?;
    let (bad, moment) = (random.page(), random.next(2000));
    let (vcpu, seen) = thread::scope(|scope| {
        let runner = Runner::spawn(scope, move || {
            let seen = sums_until_it_fails(&vcpu, wanted);
            (vcpu, seen)
        });
        thread::sleep(Duration::from_micros(moment));
        let planted = poison::plant(data.address(bad));
        let (vcpu, seen) = runner.join()?;
        Ok::<_, String>((vcpu, planted.and(seen)?))
    })?;
    let at = DATA + bad as u64;
    same(
        (seen.flags, seen.esr, seen.gva, seen.gpa),
        (GPA_VALID, Access::Load.esr(), at, at),
        "the exit",
    )?;
    granted(data.map_again(bad, PAGE), "a fresh page")?;
    same(
        vcpu.report()?,
        wanted - bad as u64,
        "the sum with a fresh page",
    )?;
    Ok(Came::Exit)
}

/// A frame that was given back a moment ago: retired, and never seen again.
fn free(random: &mut Random) -> Check<Came> {
    let region = granted(Region::new(DATA_BYTES), "mmap")?;
    let at = random.page();
    region.set_u8(at, 1);
    let frame = poison::present(region.address(at))?;
    drop(region);
    let path = format!("{HWPOISON}/corrupt-pfn");
    fs::write(&path, format!("{frame:#x}")).map_err(|e| format!("{path}: {e}"))?;
    let again = granted(Region::new(DATA_BYTES), "mmap")?;
    for at in (0..DATA_BYTES).step_by(PAGE) {
        again.set_u8(at, 1);
        let seen = poison::present(again.address(at))?;
        holds(seen != frame, || format!("frame {frame:#x} came back"))?;
    }
    Ok(Came::Retired)
}

/// A page of this program's own memory, read by itself.
fn own(random: &mut Random) -> Check<Came> {
    let region = granted(Region::new(DATA_BYTES), "mmap")?;
    let at = random.page();
    region.set_u64(at, 7);
    poison::plant(region.address(at))?;
    let (seen, told) = replacing(|| region.u64(at));
    let told = told.ok_or("no SIGBUS")?;
    same(
        (told.addr, told.code, told.lsb, seen),
        (region.address(at), libc::BUS_MCEERR_AR, 12, 0),
        "SIGBUS",
    )?;
    Ok(Came::Signal)
}

fn child(random: &mut Random) -> Check<Came> {
    let (loss, _) = random.pick(&LOSSES);
    heal::child(loss)?;
    Ok(Came::Ended)
}

/// The files of the initrd in turn; when each is lost, a page of umbra's own for this program instead.
fn file(random: &mut Random) -> Check<Came> {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    match NEXT.fetch_add(1, Ordering::Relaxed) {
        number if number < FILES => {
            heal::one_file(number)?;
            Ok(Came::Refused)
        }
        _ => own(random),
    }
}

/// A page of tables, whichever VM's it is: theirs who sum meanwhile, or one's made for it.
fn any_table(random: &mut Random) -> Check<Came> {
    let machine = Machine::new()?;
    let (data, wanted) = numbered(false)?;
    granted(machine.add(&data, DATA, 0), "a slot")?;
    let vcpu = machine.vcpu_with(0, &poison::sum(DATA))?;
    same(vcpu.report()?, wanted, "the sum before")?;
    poison::break_on_purpose(&format!("vm-table {}", random.next(1 << 20)))?;
    for _ in 0..2 {
        same(vcpu.report()?, wanted, "the sum after")?;
    }
    Ok(Came::Healed)
}

/// Who sums: a VM by itself, or what a guest hypervisor runs in one.
#[derive(Clone, Copy)]
enum Storey {
    Plain,
    Below,
}

/// A VM that sums its memory again and again; answers how often it did.
pub(super) fn worker(stop: &AtomicBool, rounds: &AtomicU64) -> Check<()> {
    bystander(Storey::Plain, stop, rounds)
}

fn bystander(storey: Storey, stop: &AtomicBool, rounds: &AtomicU64) -> Check<()> {
    let machine = Machine::new()?;
    let (data, _) = numbered(true)?;
    granted(machine.add(&data, DATA, 0), "a slot")?;
    let vcpu = match storey {
        Storey::Plain => machine.vcpu_with(0, &poison::sum(DATA))?,
        Storey::Below => {
            let vcpu = below::nested(&machine, &data, 0, below::HCR)?;
            let program = poison::sum(DATA + below::ABOVE);
            below::begin_at(&vcpu, machine.place(&program))?;
            vcpu
        }
    };
    // What the guest hypervisor keeps there belongs to it.
    let words = (0..DATA_BYTES).step_by(PAGE).map(|at| data.u64(at));
    let wanted = words.fold(0, u64::wrapping_add);
    while !stop.load(Ordering::Relaxed) {
        // The campaign breaks tables of all VMs of this process: they mend themselves.
        same(vcpu.report()?, wanted, "a bystander's sum")?;
        rounds.fetch_add(1, Ordering::Relaxed);
        // The other CPU is for what the campaign does.
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn ranges() -> Check<()> {
    let path = format!("{HWPOISON}/ranges");
    let text = fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
    for line in text.lines() {
        println!("campaign: {line}");
    }
    holds(text.contains("fail-stop image"), || {
        format!("{path} names no image")
    })
}

/// The campaign.
pub(super) fn memory_error(env: &Env) -> Check<()> {
    catch_bus_errors().map_err(|e| e.to_string())?;
    ranges()?;
    let stop = AtomicBool::new(false);
    let rounds = [const { AtomicU64::new(0) }; 3];
    let mut random = Random(env.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut told: BTreeMap<(usize, Came), u64> = BTreeMap::new();
    let below = if below::has_el2()? {
        Storey::Below
    } else {
        Storey::Plain
    };
    let result = thread::scope(|scope| {
        let storeys = [Storey::Plain, Storey::Plain, below];
        let stop = &stop;
        let workers = [0, 1, 2].map(|n| {
            let (storey, rounds) = (storeys[n], &rounds[n]);
            Runner::spawn(scope, move || bystander(storey, stop, rounds))
        });
        let mut injected = || -> Check<()> {
            for number in 0..env.count {
                let class = random.class();
                let (name, _, inject) = CLASSES[class];
                let came = inject(&mut random)
                    .map_err(|why| format!("seed {} number {number}, {name}: {why}", env.seed))?;
                *told.entry((class, came)).or_insert(0) += 1;
                if number % 500 == 499 {
                    println!("campaign: {} injections", number + 1);
                }
            }
            Ok(())
        };
        let mut result = injected();
        stop.store(true, Ordering::Relaxed);
        for worker in workers {
            let ended = worker.join()?;
            result = result.and(ended);
        }
        result
    });
    for ((class, came), count) in told {
        println!("campaign: | {} | {came:?} | {count} |", CLASSES[class].0);
    }
    let rounds = rounds.map(|rounds| rounds.load(Ordering::Relaxed));
    println!("campaign: right sums meanwhile: {rounds:?} of two VMs and of a guest's guest");
    result?;
    holds(rounds.iter().all(|&rounds| rounds > 0), || {
        "a bystander did not run".into()
    })
}
