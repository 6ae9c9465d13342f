//! A guest hypervisor that does anything: noise in its registers, its tables, its instructions and its
//! guest's, on two vCPUs at once. It may hurt itself. KVM_RUN never fails because of it, and what another VM
//! computes meanwhile is right.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use kvm_bindings::{
    KVM_ARM_VCPU_HAS_EL2, KVM_ARM_VCPU_PTRAUTH_ADDRESS, KVM_ARM_VCPU_PTRAUTH_GENERIC,
    KVM_CAP_ARM_NISV_TO_USER, KVM_EXIT_INTERNAL_ERROR, kvm_enable_cap,
};
use umbra_vmm::kvm::{PAGE, Region, ioctl};

use super::asm::Asm;
use super::below::{
    ABOVE, ELR_EL2, HCR, HCR_EL2, SPSR_EL2, STAGE2, VTCR, VTCR_EL2, VTTBR_EL2, has_el2,
};
use super::gic::{DIST, Gic, REDIST};
use super::guest::{Exit, Machine, RAM, Runner, VECTORS, Vcpu};
use super::noise::Random;
use super::poison::{DATA, memory};
use super::{Check, Env, Outcome, abi, errno_name, granted, holds, same};

const FEATURES: u32 = 1 << KVM_ARM_VCPU_HAS_EL2
    | 1 << KVM_ARM_VCPU_PTRAUTH_ADDRESS
    | 1 << KVM_ARM_VCPU_PTRAUTH_GENERIC;
const CODE: u64 = RAM + 0x10_0000;
const WORDS: u64 = 1024;
const VCPUS: u64 = 2;
/// Nothing is here.
const HOLE: u64 = 0x2000_0000;
const ERET: u32 = 0xd69f_03e0;
const HVC: u32 = 0xd400_0002;
/// ldr x1, [x0]; str x1, [x2]; br x3; the loads and stores with any registers.
const MEMORY: [u32; 3] = [0xf940_0001, 0xf900_0041, 0xd61f_0060];

/// An address that means something to L1 or to L2.
fn address(random: &mut Random) -> u64 {
    let base = random.one_of(&[RAM, CODE, DATA, DATA + STAGE2 as u64, HOLE, DIST, REDIST, 0]);
    let above = random.one_of(&[0, 0, ABOVE, 1 << 39, 1 << 55]);
    base + above + (random.below(0x20_0000) & !7)
}

/// A descriptor: of memory, of a table, or a word.
fn descriptor(random: &mut Random) -> u64 {
    match random.below(8) {
        0 => random.next(),
        1 => 0,
        2 | 3 => (DATA + STAGE2 as u64 + random.below(8) * PAGE as u64) | 3,
        4 | 5 => address(random) & 0xffff_ffff_f000 | 0x7fd | random.next() & 2,
        _ => address(random) & 0xffff_c000_0000 | random.next() & 0xfff0_0000_0000_0fff | 1,
    }
}

fn instruction(random: &mut Random) -> u32 {
    let word = random.next() as u32;
    match random.below(16) {
        // MSR and MRS of EL2's registers, of EL1's by their EL12 names, and of EL1's own.
        0..=4 => 0xd51c_0000 | word & 0x21_ffff,
        5 => 0xd518_0000 | word & 0x27_ffff,
        // TLBI and AT of both levels; DC and IC.
        6 | 7 => 0xd508_8000 | word & 0x4_0fff | word & 0x1000,
        8 => 0xd508_7800 | word & 0x4_01ff,
        9 => 0xd508_7000 | word & 0x7_0fff,
        10 => {
            ERET | word & 0x800
                | if word & 0x800 == 0 {
                    0
                } else {
                    0x1f | word & 0x400
                }
        }
        11 if word & 3 == 0 => HVC | word & 0x1f_ffe0,
        11..=13 => random.one_of(&MEMORY) & !0x3ff | word & 0x3ff,
        14 => 0xd503_201f | word & 0xfe0, // hints, WFI among them
        _ => word,
    }
}

/// Memory and registers of one round.
fn disturb(random: &mut Random, machine: &Machine, data: &Region) {
    let code: Vec<u32> = (0..WORDS).map(|_| instruction(random)).collect();
    machine.ram.set_code((CODE - RAM) as usize, &code);
    // L1's stage 2 as it should be, and noise in it.
    for page in 0..8 {
        for index in 0..16 {
            data.set_u64(STAGE2 + page * PAGE + 8 * index, descriptor(random));
        }
    }
    for (index, output) in [(0, 0x4c5 | 1 << 54), (1, RAM | 0x7fd), (5, RAM | 0x7fd)] {
        if random.below(4) != 0 {
            data.set_u64(STAGE2 + 8 * index, output);
        }
    }
}

/// A word of the noise to run.
fn code(random: &mut Random) -> u64 {
    CODE + random.below(WORDS) * 4
}

fn set_registers(random: &mut Random, vcpu: &Vcpu) -> Outcome {
    let list = granted(Region::new(1 << 16), "mmap")?;
    list.set_u64(0, 4000);
    granted(
        list.ioctl(&vcpu.fd, abi::GET_REG_LIST, 0),
        "KVM_GET_REG_LIST",
    )?;
    for n in 1..=list.u64(0) as usize {
        let id = list.u64(8 * n);
        // The timers are left alone: they end a wait.
        if abi::bytes_of(id) == 8 && random.below(8) == 0 {
            let _ = vcpu.try_set(id, random.next());
        }
    }
    for n in 0..31 {
        let value = match random.below(4) {
            0 => random.next(),
            1 => code(random),
            _ => address(random),
        };
        vcpu.set(abi::x(n), value)?;
    }
    // Where the vectors go on.
    vcpu.set(abi::x(27), code(random))?;
    let entry = code(random);
    for (register, value) in [
        (HCR_EL2, HCR | random.next() & 0b111 << 3),
        (VTTBR_EL2, (DATA + STAGE2 as u64) | random.below(4) << 48),
        (VTCR_EL2, VTCR),
        (
            SPSR_EL2,
            random.one_of(&[0x3c5, 0x3c0, 0x005, 0x000, 0x3c9]),
        ),
        (ELR_EL2, random.one_of(&[entry, entry + ABOVE])),
    ] {
        let noise = match random.below(3) {
            0 => random.next() & random.next(),
            _ => 0,
        };
        let _ = vcpu.try_set(abi::sys(register), value ^ noise);
    }
    for register in [(3, 0, 12, 0, 0), (3, 4, 12, 0, 0)] {
        vcpu.set(abi::sys(register), VECTORS)?;
    }
    vcpu.set(abi::PSTATE, 0x3c9)?;
    vcpu.set(abi::PC, code(random))
}

/// Runs until enough turns are over; answers how often L1 or L2 left to the VMM.
fn run_some(vcpu: &Vcpu, random: &mut Random) -> Check<u32> {
    let mut exits = 0;
    for _ in 0..30 {
        match vcpu.run() {
            Ok(Exit::Read { .. }) => vcpu.answer(random.next()),
            Ok(Exit::Other { reason }) if reason == KVM_EXIT_INTERNAL_ERROR => {
                return Err("KVM_EXIT_INTERNAL_ERROR".into());
            }
            // PSCI: off or reset.
            Ok(Exit::SystemEvent { .. }) => return Ok(exits),
            Ok(_) => {}
            // Kicked; enough if it does nothing else.
            Err(libc::EINTR) if exits > 0 => return Ok(exits),
            Err(libc::EINTR) => {}
            Err(errno) => return Err(format!("KVM_RUN: {}", errno_name(errno))),
        }
        exits += 1;
    }
    Ok(exits)
}

/// Sums up a table of its own, again and again.
fn neighbour(machine: &Machine) -> Check<Vcpu> {
    const TABLE: u64 = RAM + 0x8_0000;
    for n in 0..512usize {
        machine.ram.set_u64(0x8_0000 + 8 * n, n as u64);
    }
    let mut asm = Asm::new();
    let again = asm.here();
    asm.mov(1, TABLE).mov(2, 512).mov(0, 0);
    let next = asm.here();
    asm.ldr(3, 1).word(0x8b03_0000); // add x0, x0, x3
    asm.add(1, 1, 8).sub(2, 2, 1).back_unless_zero(2, next);
    asm.report(0).back(again);
    machine.vcpu_with(0, &asm)
}

fn round(random: &mut Random) -> Check<u32> {
    let (machine, data) = (Machine::new()?, memory(random.below(2) == 0)?);
    granted(machine.add(&data, DATA, 0), "a slot")?;
    let mut cap = kvm_enable_cap {
        cap: KVM_CAP_ARM_NISV_TO_USER,
        ..Default::default()
    };
    granted(
        ioctl(&machine.vm, abi::ENABLE_CAP, &mut cap),
        "NISV_TO_USER",
    )?;
    let mut vcpus = Vec::new();
    for id in 0..VCPUS {
        let vcpu = machine.bare_vcpu(id)?;
        let pauth = 1 << KVM_ARM_VCPU_PTRAUTH_ADDRESS | 1 << KVM_ARM_VCPU_PTRAUTH_GENERIC;
        granted(
            vcpu.init(1 << KVM_ARM_VCPU_HAS_EL2 | pauth),
            "a vCPU with EL2",
        )?;
        vcpus.push(vcpu);
    }
    let gic = granted(Gic::new(&machine), "a GIC")?;
    granted(gic.place(DIST, REDIST), "its addresses")?;
    granted(gic.init(), "its start")?;
    let mut exits = 0;
    for _ in 0..4 {
        disturb(random, &machine, &data);
        for vcpu in &vcpus {
            // From wherever the last round left it.
            granted(vcpu.init(FEATURES), "a vCPU with EL2 again")?;
            set_registers(random, vcpu)?;
        }
        let runs: Vec<_> = vcpus.drain(..).map(|vcpu| (vcpu, random.next())).collect();
        thread::scope(|scope| -> Outcome {
            let runners: Vec<_> = runs
                .into_iter()
                .map(|(vcpu, seed)| {
                    Runner::spawn(scope, move || {
                        let ran = run_some(&vcpu, &mut Random(seed));
                        (vcpu, ran)
                    })
                })
                .collect();
            for runner in runners {
                let (vcpu, ran) = runner.finish()?;
                vcpus.push(vcpu);
                exits += ran?;
            }
            Ok(())
        })?;
    }
    Ok(exits)
}

pub(super) fn hypervisor(env: &Env) -> Outcome {
    const SUM: u64 = 511 * 512 / 2;
    if !has_el2()? {
        return Ok(());
    }
    let other = Machine::new()?;
    let neighbour = neighbour(&other)?;
    let stop = AtomicBool::new(false);
    let mut random = Random(env.seed ^ 0x1e11);
    thread::scope(|scope| {
        let stop = &stop;
        let beside = scope.spawn(move || -> Check<u64> {
            let mut sums = 0;
            while !stop.load(Relaxed) {
                same(neighbour.report()?, SUM, "what the other VM computes")?;
                sums += 1;
                thread::yield_now();
            }
            Ok(sums)
        });
        let mut exits = 0;
        let mut rounds = || -> Outcome {
            for n in 0..env.rounds(25) {
                let one = round(&mut random).map_err(|why| format!("round {n}: {why}"))?;
                exits += one;
            }
            Ok(())
        };
        let done = rounds();
        stop.store(true, Relaxed);
        let sums = beside.join().map_err(|_| "a thread panicked")??;
        done?;
        holds(sums > 0 && exits > 0, || {
            format!("{sums} sums, {exits} exits")
        })
    })
}
