//! Pages of 1 GiB: one fault brings a gigabyte in, pieces of it can go, and all of it comes back.

use std::fs::File;
use std::os::unix::fs::FileExt;

use umbra_vmm::kvm::{Region, ioctl_value, owned};
use umbra_vmm::stats;

use super::asm::Asm;
use super::below::{HCR, STAGE2, begin_at, has_el2, nested};
use super::guest::{Machine, Vcpu};
use super::poison::{DATA, memory};
use super::{Check, Env, Outcome, abi, granted, holds, same};

/// A multiple of 1 GiB, as the addresses on both sides of a block have to be.
const AT: u64 = 0x8000_0000;
const GIB: usize = 1 << 30;
const STEP: usize = 2 << 20;

/// How many pages of 1 GiB the host has to give; `None` where it has no such pages.
fn free_pages() -> Option<u64> {
    let path = "/sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages";
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Reads a word in each 2 MiB of the gigabyte, and reports their sum.
fn reader() -> Asm {
    let mut asm = Asm::new();
    let top = asm.here();
    asm.mov(1, AT)
        .mov(2, (GIB / STEP) as u64)
        .mov(5, STEP as u64)
        .mov(0, 0);
    let next = asm.here();
    asm.ldr(4, 1)
        .word(0x8b04_0000) // add x0, x0, x4
        .word(0x8b05_0021) // add x1, x1, x5
        .sub(2, 2, 1)
        .back_unless_zero(2, next)
        .report(0)
        .back(top);
    asm
}

/// Exits of a vCPU so far.
fn exits(vcpu: &Vcpu) -> Check<u64> {
    let file = granted(ioctl_value(&vcpu.fd, abi::GET_STATS_FD, 0), "statistics");
    let mut bytes = [0; 16384];
    let count = File::from(owned(file?)).read_at(&mut bytes, 0);
    let count = count.map_err(|e| e.to_string())?;
    let stats = stats::parse(&bytes[..count]).ok_or("not a statistics file")?;
    let exits = stats.iter().find(|stat| stat.name == "exits");
    Ok(exits.ok_or("no count of exits")?.value)
}

pub(super) fn gigabyte(env: &Env) -> Outcome {
    let before = free_pages();
    if !env.umbra && before.is_none_or(|free| free == 0) {
        // Nobody has set pages aside.
        return Ok(());
    }
    holds(before.is_some_and(|free| free > 0), || {
        format!("the machine has {before:?} pages of 1 GiB")
    })?;
    let memory = granted(Region::of_huge_pages(GIB, 30), "a page of 1 GiB")?;
    holds(memory.address(0).is_multiple_of(GIB as u64), || {
        format!("it lies at {:#x}", memory.address(0))
    })?;
    holds(free_pages() < before, || {
        "it was not taken from the pool".into()
    })?;
    let places = (0..GIB / STEP).map(|n| n * STEP);
    for (n, at) in (0..).zip(places.clone()) {
        same(memory.u64(at), 0, "what nobody wrote")?;
        memory.set_u64(at, 1 << 20 | n);
    }
    let sum: u64 = (0..(GIB / STEP) as u64).map(|n| 1 << 20 | n).sum();
    let machine = Machine::new()?;
    granted(machine.add(&memory, AT, 0), "a slot")?;
    let vcpu = machine.vcpu_with(0, &reader())?;
    let start = exits(&vcpu)?;
    same(vcpu.report()?, sum, "the sum")?;
    let cost = exits(&vcpu)? - start;
    // With pages of 2 MiB it would be one for each of 512, or of 16 with neighbours; the clock may add a few.
    holds(cost < 20, || format!("{cost} exits for one block"))?;
    if env.umbra {
        // One page of it goes, and nothing beside it.
        let gone = 17 * STEP;
        granted(memory.discard(gone, 0x1000), "madvise")?;
        same(vcpu.report()?, sum - (1 << 20 | 17), "the sum without one")?;
        same(memory.u64(gone), 0, "the page that went")?;
        memory.set_u64(gone, 5);
        granted(
            memory.protect(0, GIB / 2, umbra_vmm::kvm::Rights::Read),
            "mprotect",
        )?;
        same(vcpu.report()?, sum - (1 << 20 | 17) + 5, "the sum at last")?;
    }
    drop((vcpu, machine));
    drop(memory);
    same(free_pages(), before, "free pages in the end")
}

/// A block of a guest hypervisor's stage 2 on such a page is one in the shadow: its guest finds all of it at
/// the cost of a few faults, loses a page of it that goes, and no more.
pub(super) fn below(env: &Env) -> Outcome {
    if !has_el2()? || free_pages().is_none_or(|free| free == 0) {
        return Ok(());
    }
    let before = free_pages();
    let gigabyte = granted(Region::of_huge_pages(GIB, 30), "a page of 1 GiB")?;
    let machine = Machine::new()?;
    let data = memory(true)?;
    granted(machine.add(&data, DATA, 0), "a slot")?;
    granted(machine.add(&gigabyte, AT, 0), "a slot of a gigabyte")?;
    let vcpu = nested(&machine, &data, 0, HCR)?;
    data.set_u64(STAGE2 + 16, AT | 0x7fd);
    for at in (0..GIB).step_by(STEP) {
        gigabyte.set_u64(at, 3);
    }
    let sum = 3 * (GIB / STEP) as u64;
    begin_at(&vcpu, machine.place(&reader()))?;
    let start = exits(&vcpu)?;
    same(vcpu.report()?, sum, "the sum")?;
    let cost = exits(&vcpu)? - start;
    holds(!env.umbra || cost < 20, || {
        format!("{cost} exits for one block")
    })?;
    if env.umbra {
        let gone = 17 * STEP;
        granted(gigabyte.discard(gone, 0x1000), "madvise")?;
        same(vcpu.report()?, sum - 3, "the sum without one")?;
        gigabyte.set_u64(gone, 5);
        same(vcpu.report()?, sum + 2, "the sum with another")?;
    }
    drop((vcpu, machine));
    drop(gigabyte);
    same(free_pages(), before, "free pages in the end")
}

/// What there is not is refused at once, and costs nothing.
pub(super) fn too_many(env: &Env) -> Outcome {
    let before = free_pages();
    let answer = Region::of_huge_pages(1 << 40, 30).map(drop);
    let refused = match env.umbra {
        true => answer == Err(libc::ENOMEM),
        // Or EINVAL, where the kernel knows no such pages.
        false => answer.is_err(),
    };
    holds(refused, || format!("a thousand pages of 1 GiB: {answer:?}"))?;
    let answer = Region::of_huge_pages(1 << 40, 16).map(drop);
    holds(!env.umbra || answer == Err(libc::EINVAL), || {
        format!("pages of 64 KiB: {answer:?}")
    })?;
    same(free_pages(), before, "free pages")
}
