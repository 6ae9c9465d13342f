//! Noise: calls, register values and instructions without sense. Nothing particular has to happen;
//! afterwards the host is alive, an ordinary VM works, and no file was lost.
//!
//! The numbers come from a seed (`--seed`), so that what one run finds another can find again.

use std::os::fd::{AsRawFd, OwnedFd};

use umbra_vmm::kvm::{ABOVE_MAPPED, LOWEST_MAPPED, Region, ioctl_value, owned};
use vmm_sys_util::eventfd::EventFd;

use super::asm::Asm;
use super::gic::{DIST, REDIST};
use super::guest::{Exit, Machine, RAM, Vcpu, kicked, open};
use super::{Check, Env, Outcome, abi, granted, holds, same};

pub(super) use super::storm::everything;

/// splitmix64.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(super) fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// A word for a structure: never the address of something that the process needs.
    pub(super) fn word(&mut self, scratch: u64) -> u64 {
        match self.below(12) {
            0 | 1 => 0,
            2 => 1,
            3 => self.below(64),
            4 => self.below(LOWEST_MAPPED),
            5 => scratch,
            6 => scratch + (self.below(8) << 12),
            7 => u64::MAX,
            8 => self.one_of(&[0x8000_0000, DIST, REDIST, RAM]) | 1 << 60,
            // Two halves, each small: for structures of 32-bit words.
            9 => (self.below(16) + (1 << 20)) << 32 | self.below(16),
            10 => 0x6030_0000_0010_0000 | self.next() & 0x800f_ffff,
            _ => self.next() | 1 << 62,
        }
    }
}

/// An ordinary VM still works.
pub(super) fn alive() -> Outcome {
    let machine = Machine::new()?;
    let mut asm = Asm::new();
    asm.mov(1, RAM).mov(0, 0x600d).str(0, 1).ldr(0, 1).report(0);
    let vcpu = machine.vcpu_with(0, &asm)?;
    same(vcpu.report()?, 0x600d, "an ordinary VM afterwards")
}

/// The lowest free descriptor.
fn next_file() -> Check<i32> {
    EventFd::new(0)
        .map(|fd| fd.as_raw_fd())
        .map_err(|e| format!("eventfd: {e}"))
}

const KNOWN: &[u32] = &[
    abi::CREATE_VM,
    abi::CHECK_EXTENSION,
    abi::GET_VCPU_MMAP_SIZE,
    abi::CREATE_VCPU,
    abi::SET_USER_MEMORY_REGION,
    abi::SET_USER_MEMORY_REGION2,
    abi::IRQ_LINE,
    abi::IRQFD,
    abi::IOEVENTFD,
    abi::RUN,
    abi::GET_MP_STATE,
    abi::SET_MP_STATE,
    abi::GET_VCPU_EVENTS,
    abi::SET_VCPU_EVENTS,
    abi::ENABLE_CAP,
    abi::GET_ONE_REG,
    abi::SET_ONE_REG,
    abi::VCPU_INIT,
    abi::PREFERRED_TARGET,
    abi::GET_REG_LIST,
    abi::CREATE_DEVICE,
    abi::SET_DEVICE_ATTR,
    abi::GET_DEVICE_ATTR,
    abi::HAS_DEVICE_ATTR,
];

/// Room for the arguments, with as much again behind for what a call writes.
const SCRATCH: usize = 2 << 20;

/// What a call may have answered with: files are closed again.
fn close_answer(request: u32, answer: Result<u32, i32>, scratch: &Region, at: Option<usize>) {
    let Ok(value) = answer else { return };
    let answers_a_file = [
        abi::CREATE_VM,
        abi::CREATE_VCPU,
        abi::GET_STATS_FD,
        abi::CREATE_GUEST_MEMFD,
    ];
    if answers_a_file.contains(&request) && value > 2 {
        drop(owned(value));
    }
    if let (abi::CREATE_DEVICE, Some(at)) = (request, at)
        && scratch.u32(at + 8) & 1 == 0
    {
        drop(owned(scratch.u32(at + 4)));
    }
}

fn request(random: &mut Random) -> u32 {
    match random.below(10) {
        0 => random.next() as u32,
        1 | 2 => 0xae00 | (random.next() as u32 & 0x3fff_00ff) | (random.below(4) as u32) << 30,
        _ => random.one_of(KNOWN),
    }
}

fn noisy_call(random: &mut Random, fds: &[&OwnedFd], scratch: &Region) {
    let fd = random.one_of(fds);
    let request = request(random);
    if random.below(8) == 0 {
        let value = match random.below(3) {
            0 => random.below(LOWEST_MAPPED),
            1 => random.next() | ABOVE_MAPPED,
            _ => 0,
        };
        let answer = ioctl_value(fd, request, value);
        close_answer(request, answer, scratch, None);
        return;
    }
    let at = (random.below(16) * 0x100) as usize;
    for word in 0..16 {
        let value = random.word(scratch.address(0x8_0000));
        scratch.set_u64(at + 8 * word, value);
    }
    let answer = scratch.ioctl(fd, request, at);
    close_answer(request, answer, scratch, Some(at));
}

pub(super) fn ioctls(env: &Env) -> Outcome {
    const OF_ONE_VM: u64 = 1000;
    let mut random = Random(env.seed);
    let kvm = open()?;
    let scratch = granted(Region::new(SCRATCH), "mmap")?;
    let before = next_file()?;
    for _ in 0..env.rounds(100_000).div_ceil(OF_ONE_VM) {
        let machine = Machine::new()?;
        let gic = super::gic::Gic::new(&machine);
        let (one, two) = (machine.bare_vcpu(0)?, machine.bare_vcpu(1)?);
        if random.below(4) != 0 {
            granted(one.init(0), "KVM_ARM_VCPU_INIT")?;
        }
        // Whatever runs, runs no guest: the page is ours and says so.
        one.set_immediate_exit(1);
        two.set_immediate_exit(1);
        let mut fds = vec![&kvm, &machine.vm, &one.fd, &two.fd];
        if let Ok(gic) = &gic {
            fds.push(gic.file());
        }
        for _ in 0..OF_ONE_VM {
            noisy_call(&mut random, &fds, &scratch);
        }
    }
    same(next_file()?, before, "the next free file descriptor")?;
    alive()
}

/// Runs until a signal, an error, or enough exits, and counts those; MMIO reads are answered with noise.
fn run_some(vcpu: &Vcpu, random: &mut Random) -> u32 {
    for exits in 0..20 {
        match vcpu.run() {
            Ok(Exit::Read { .. }) => vcpu.answer(random.next()),
            Ok(Exit::Write { .. }) => {}
            Ok(_) | Err(_) => return exits,
        }
    }
    20
}

/// Every register of the list, with noise in it; what is refused is refused.
pub(super) fn vcpu_state(env: &Env) -> Outcome {
    let mut random = Random(env.seed ^ 0x5a5a);
    for _ in 0..env.rounds(150) {
        let machine = Machine::new()?;
        let mut asm = Asm::new();
        asm.mov(0, 1).report(0).stop();
        let entry = machine.place(&asm);
        let vcpu = machine.vcpu(0, entry)?;
        let room = granted(Region::new(1 << 20), "mmap")?;
        room.set_u64(0, 4000);
        granted(
            room.ioctl(&vcpu.fd, abi::GET_REG_LIST, 0),
            "KVM_GET_REG_LIST",
        )?;
        for n in 1..=room.u64(0) as usize {
            let id = room.u64(8 * n);
            if abi::bytes_of(id) <= 8 && random.below(3) != 0 {
                let value = match random.below(3) {
                    0 => random.next(),
                    1 => 1 << random.below(64),
                    _ => vcpu.try_get(id).unwrap_or(0) ^ 1 << random.below(64),
                };
                let _ = vcpu.try_set(id, value);
            }
        }
        if random.below(2) == 0 {
            let _ = vcpu.try_set(abi::PC, entry);
        }
        let random = &mut random;
        kicked(move || run_some(&vcpu, random))?;
    }
    alive()
}

/// Words that are no program: run from a page of them, with noise in the general registers.
pub(super) fn instructions(env: &Env) -> Outcome {
    let mut random = Random(env.seed ^ 0xa5a5);
    let mut exits = 0;
    for _ in 0..env.rounds(200) {
        let machine = Machine::new()?;
        let code: Vec<u32> = (0..1024).map(|_| instruction(&mut random)).collect();
        machine.ram.set_code(0x10_0000, &code);
        let vcpu = machine.vcpu(0, RAM + 0x10_0000 + random.below(1024) * 4)?;
        for n in 0..31 {
            let value = match random.below(3) {
                0 => random.next(),
                1 => RAM + random.below(0x20_0000),
                _ => 0x2000_0000 + random.below(0x1000),
            };
            vcpu.set(abi::x(n), value)?;
        }
        if random.below(2) == 0 {
            vcpu.set(abi::PSTATE, 0x3c0)?; // EL0
        }
        let random = &mut random;
        exits += kicked(move || run_some(&vcpu, random))?;
    }
    holds(exits > 0, || {
        "no guest did anything that could be seen".into()
    })?;
    alive()
}

/// Any word, or one of the system instructions, which a hypervisor has more to do with.
fn instruction(random: &mut Random) -> u32 {
    let word = random.next() as u32;
    match random.below(4) {
        0 => 0xd500_0000 | word & 0x003f_ffff, // MSR, MRS, SYS
        1 => 0xd508_7000 | word & 0x0007_0fff, // TLBI, IC, DC, AT
        _ => word,
    }
}
