//! Memory errors of every kind at random, beside VMs that compute: the others' sums stay right, every owner
//! gets the outcome that `docs/memory-errors.md` promises, and umbra goes on.
//!
//! The seed decides everything, so that a failure can be had again: `--seed N --count M`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::{fs, thread};

use umbra_vmm::kvm::{PAGE, Region, catch_bus_errors, replacing};

use super::guest::{Machine, Runner};
use super::poison::{self, Access, DATA, DATA_BYTES, EL0, EL1, HWPOISON};
use super::{Check, Env, Outcome, below, granted, holds, same};

/// Makes one page bad, and checks what came of it.
type Inject = fn(&mut Random) -> Outcome;

/// Whose page goes bad.
const CLASSES: [(&str, Inject); 12] = [
    ("RAM of a VM, or its tables", ram),
    ("RAM of a VM, or its tables", ram),
    ("RAM of a guest's guest, or its tables", ram_below),
    ("RAM of a guest's guest, or its tables", ram_below),
    ("a guest hypervisor's stage 2", |_| below::table(&ENV)),
    ("a page that is known to be bad", |_| poison::known(&ENV)),
    ("nobody's", free),
    ("the VMM's own", own),
    ("canonical tables, and their root", |_| {
        poison::bus_errors(&ENV)
    }),
    ("tables of a shadow", |_| below::shadow_table(&ENV)),
    ("a VNCR page", |_| below::vncr(&ENV)),
    ("an instruction", |_| poison::instruction_abort(&ENV)),
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

fn ram(random: &mut Random) -> Outcome {
    let (pstate, access, huge, dirty) = cell(random);
    poison::cell(pstate, access, huge, dirty)
        .map_err(|why| format!("{pstate:#x} {access:?} {huge} {dirty}: {why}"))
}

fn ram_below(random: &mut Random) -> Outcome {
    if !below::has_el2()? {
        return ram(random);
    }
    let (pstate, access, huge, dirty) = cell(random);
    below::cell(pstate, access, huge, dirty)
        .map_err(|why| format!("{pstate:#x} {access:?} {huge} {dirty}: {why}"))
}

/// A frame that was given back a moment ago: retired, and never seen again.
fn free(random: &mut Random) -> Outcome {
    let region = granted(Region::new(DATA_BYTES), "mmap")?;
    let at = random.next((DATA_BYTES / PAGE) as u64) as usize * PAGE;
    region.set_u8(at, 1);
    let frame = poison::present(region.address(at))?;
    drop(region);
    let path = format!("{HWPOISON}/corrupt-pfn");
    fs::write(&path, format!("{frame:#x}")).map_err(|e| format!("{path}: {e}"))?;
    let again = granted(Region::new(DATA_BYTES), "mmap")?;
    for at in (0..DATA_BYTES).step_by(PAGE) {
        again.set_u8(at, 1);
        let seen = poison::present(again.address(at))?;
        if seen == frame {
            return Err(format!("frame {frame:#x} came back"));
        }
    }
    Ok(())
}

/// A page of this program's own memory, read by itself.
fn own(random: &mut Random) -> Outcome {
    let region = granted(Region::new(DATA_BYTES), "mmap")?;
    let at = random.next((DATA_BYTES / PAGE) as u64) as usize * PAGE;
    region.set_u64(at, 7);
    poison::plant(region.address(at))?;
    let (seen, told) = replacing(|| region.u64(at));
    let told = told.ok_or("no SIGBUS")?;
    same(
        (told.addr, told.code, told.lsb, seen),
        (region.address(at), libc::BUS_MCEERR_AR, 12, 0),
        "SIGBUS",
    )
}

/// A VM that sums its memory again and again; answers how often it did.
pub(super) fn worker(stop: &AtomicBool, rounds: &AtomicU64) -> Outcome {
    let machine = Machine::new()?;
    let data = poison::memory(true)?;
    granted(machine.add(&data, DATA, 0), "a slot")?;
    for at in (0..DATA_BYTES).step_by(PAGE) {
        data.set_u64(at, at as u64);
    }
    let wanted: u64 = (0..DATA_BYTES as u64).step_by(PAGE).sum();
    let vcpu = machine.vcpu_with(0, &poison::sum())?;
    let entry = vcpu.get(super::abi::PC)?;
    while !stop.load(Ordering::Relaxed) {
        // The campaign breaks roots of all VMs of this process: they mend themselves.
        same(vcpu.report()?, wanted, "a bystander's sum")?;
        vcpu.go_to(entry)?;
        rounds.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// The campaign.
pub(super) fn memory_error(env: &Env) -> Outcome {
    catch_bus_errors().map_err(|e| e.to_string())?;
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut random = Random(env.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut counts = [0u64; CLASSES.len()];
    let result = thread::scope(|scope| {
        let workers = [0, 1].map(|_| Runner::spawn(scope, || worker(&stop, &rounds)));
        let mut injected = || -> Check<()> {
            for number in 0..env.count {
                let class = random.next(CLASSES.len() as u64) as usize;
                let (name, inject) = CLASSES[class];
                counts[class] += 1;
                inject(&mut random)
                    .map_err(|why| format!("seed {} number {number}, {name}: {why}", env.seed))?;
            }
            Ok(())
        };
        let result = injected();
        stop.store(true, Ordering::Relaxed);
        let mut result = result;
        for worker in workers {
            let ended = worker.join()?;
            result = result.and(ended);
        }
        result
    });
    let mut told = BTreeMap::new();
    for ((name, _), count) in CLASSES.iter().zip(counts) {
        *told.entry(name).or_insert(0) += count;
    }
    for (name, count) in told {
        println!("campaign: {count:6} {name}");
    }
    let rounds = rounds.load(Ordering::Relaxed);
    println!("campaign: {rounds:6} right sums of two other VMs meanwhile");
    result?;
    holds(rounds > 0, || "no bystander ran".into())
}
