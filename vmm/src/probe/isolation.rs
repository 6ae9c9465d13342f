//! VMs side by side: none sees another's memory or registers, and none leaves anything behind.

use super::asm::{Asm, CONTEXTIDR_EL1, Cond, SP_EL0, TPIDR_EL0, TPIDR_EL1};
use super::gic;
use super::guest::{Machine, Vcpu, free_memory};
use super::{Env, Outcome, abi, granted, holds, same};
use umbra_vmm::kvm::Region;

const AT: u64 = 0x8000_0000;

/// Eight VMs with other words at the same address, one after another on one thread.
pub(super) fn same_address_many_vms(env: &Env) -> Outcome {
    let mut asm = Asm::new();
    let top = asm.here();
    asm.mov(1, AT).ldr(0, 1).report(0).back(top);
    let mut vms = Vec::new();
    for n in 0..8u64 {
        let machine = Machine::new()?;
        let memory = granted(Region::new(0x1_0000), "mmap")?;
        memory.set_u64(0, 0x1000 + n);
        granted(machine.add(&memory, AT, 0), "a slot")?;
        let vcpu = machine.vcpu_with(0, &asm)?;
        vms.push((machine, memory, vcpu));
    }
    for round in 0..env.rounds(200) {
        for (n, (_, _, vcpu)) in (0..).zip(&vms) {
            same(
                vcpu.report()?,
                0x1000 + n,
                &format!("what VM {n} reads, round {round}"),
            )?;
        }
    }
    Ok(())
}

/// What one VM wrote is not in the memory that the next one gets.
pub(super) fn fresh_memory(env: &Env) -> Outcome {
    const BYTES: u64 = 16 << 20;
    // ORs together what lies in each page, and writes a pattern there.
    let mut asm = Asm::new();
    asm.mov(1, AT)
        .mov(2, BYTES / 512)
        .mov(3, 0x5ec2_e7a5_5ec2_e7a5);
    let top = asm.here();
    asm.ldr(4, 1).word(0xaa04_0000).str(3, 1); // orr x0, x0, x4
    asm.add(1, 1, 512)
        .sub(2, 2, 1)
        .back_unless_zero(2, top)
        .report(0);
    for round in 0..env.rounds(8) {
        let machine = Machine::new()?;
        let memory = granted(Region::new(BYTES as usize), "mmap")?;
        if round % 2 == 0 {
            let _ = memory.prefer_huge(0, BYTES as usize);
        }
        granted(machine.add(&memory, AT, 0), "a slot")?;
        let vcpu = machine.vcpu_with(0, &asm)?;
        same(
            vcpu.report()?,
            0,
            &format!("what lay in new memory, round {round}"),
        )?;
    }
    Ok(())
}

pub(super) fn created_and_destroyed(env: &Env) -> Outcome {
    let once = |n: u64| -> Outcome {
        let mut asm = Asm::new();
        asm.mov(0, n).report(0);
        let (machine, gic, vcpus) = gic::machine(&[asm.clone(), asm])?;
        for vcpu in &vcpus {
            same(vcpu.report()?, n, "a report")?;
        }
        // Every order of letting go, in turn.
        match n % 3 {
            0 => drop((machine, gic, vcpus)),
            1 => drop((vcpus, gic, machine)),
            _ => drop((gic, machine, vcpus)),
        }
        Ok(())
    };
    for n in 0..20 {
        once(n)?;
    }
    let before = free_memory()?;
    let rounds = env.rounds(300);
    for n in 0..rounds {
        once(n).map_err(|e| format!("VM {n}: {e}"))?;
    }
    let lost = before - free_memory()?;
    holds(lost < 6 << 10, || {
        format!("{rounds} VMs later {lost} KiB are gone")
    })
}

/// Fills X, V and software's own system registers with a pattern; then reports 1 for ever, as long as
/// it finds all of it unchanged, and otherwise 1000 + the place.
fn keeper(pattern: u64) -> Asm {
    let sysregs = [TPIDR_EL1, TPIDR_EL0, SP_EL0, CONTEXTIDR_EL1];
    let mut asm = Asm::new();
    for (n, reg) in (0..).zip(sysregs) {
        asm.mov(0, (pattern + n) & 0xffff_ffff).msr(reg, 0);
    }
    for n in 0..32 {
        asm.mov(0, pattern + 0x1000 + u64::from(n)).dup(n, 0);
    }
    for n in 5..28 {
        asm.mov(n, pattern + 0x2000 + u64::from(n));
    }
    let top = asm.here();
    asm.mov(0, 1).report(0);
    let mut expect =
        |load: &dyn for<'a> Fn(&'a mut Asm) -> &'a mut Asm, wanted: u64, place: u64| {
            load(&mut asm);
            let good = asm.mov(2, wanted).cmp(1, 2).if_cond(Cond::Equal);
            asm.mov(0, 1000 + place).report(0).land(good);
        };
    for (n, reg) in (0..).zip(sysregs) {
        expect(&|asm| asm.mrs(1, reg), (pattern + n) & 0xffff_ffff, n);
    }
    for n in 0..32 {
        let wanted = pattern + 0x1000 + u64::from(n);
        expect(&|asm| asm.lane(1, n, 0), wanted, 100 + u64::from(n));
        expect(&|asm| asm.lane(1, n, 1), wanted, 200 + u64::from(n));
    }
    for n in 5..28 {
        let wanted = pattern + 0x2000 + u64::from(n);
        expect(&|asm| asm.mov_reg(1, n), wanted, 300 + u64::from(n));
    }
    asm.back(top);
    asm
}

/// Two VMs, and two vCPUs of one VM, in turn on one thread; then each pair on two.
pub(super) fn registers(env: &Env) -> Outcome {
    let (one, two) = (Machine::new()?, Machine::new()?);
    let vcpus = [
        one.vcpu_with(0, &keeper(0xaaaa_0000_1111_0000))?,
        two.vcpu_with(0, &keeper(0xbbbb_0000_2222_0000))?,
        one.vcpu_with(1, &keeper(0xcccc_0000_3333_0000))?,
        two.vcpu_with(1, &keeper(0xdddd_0000_4444_0000))?,
    ];
    let turns = |vcpus: &[Vcpu], rounds: u64| -> Outcome {
        for round in 0..rounds {
            for (n, vcpu) in vcpus.iter().enumerate() {
                same(
                    vcpu.report()?,
                    1,
                    &format!("what guest {n} finds, round {round}"),
                )?;
            }
        }
        Ok(())
    };
    turns(&vcpus, env.rounds(300))?;
    // x1 and x2 are not in the pattern: the VMM's view of them does not disturb it.
    same(
        vcpus[0].get(abi::x(7))?,
        0xaaaa_0000_1111_2007,
        "x7 of the first",
    )?;
    let [a, b, c, d] = vcpus;
    let rounds = env.rounds(300);
    std::thread::scope(|scope| {
        let left = scope.spawn(move || turns(&[a, b], rounds));
        let right = scope.spawn(move || turns(&[c, d], rounds));
        let left = left.join().map_err(|_| "a thread panicked")?;
        left.and(right.join().map_err(|_| "a thread panicked")?)
    })
}
