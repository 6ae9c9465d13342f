//! Every ioctl, and every system call that makes something, with each of its allocations failing in turn:
//! ENOMEM each time, until it is granted; after all of it the VM works, and when it is gone nothing is left.

use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, Stdio};

use kvm_bindings as kvm;
use umbra_vmm::kvm::{Ground, Region, ioctl_value, owned, playground};

use super::asm::{self, Asm};
use super::gic::{DIST, REDIST};
use super::guest::{
    Answer, CODE, Exit, KernelMemory, Machine, RAM, RAM_BYTES, VECTORS_AT, Vcpu, at_rest, open,
    vm_type,
};
use super::oom::{Fault, can_fail};
use super::storm::NODES;
use super::{Check, Env, Outcome, abi, granted, holds, refused, same};

const ITS: u64 = 0x0900_0000;
/// Where the structures of the calls lie in the scratch memory, and what those point to.
const AT: usize = 0;
const BEHIND: usize = 0x4000;
/// A slot that is logged, and far from the machine's memory.
const LOGGED: u64 = 0x1_0000_0000;
const LOGGED_BYTES: u64 = 1 << 34;

/// A sweep: what it has met so far.
struct Sweep {
    fault: Fault,
    room: Region,
    failures: u64,
}

impl Sweep {
    fn new() -> Check<Self> {
        let room = granted(Region::new(1 << 20), "mmap")?;
        // Whatever answers are written to is there before anything fails.
        for at in (0..1 << 20).step_by(4096) {
            room.set_u8(at, 0);
        }
        Ok(Self {
            fault: Fault::new(0)?,
            room,
            failures: 0,
        })
    }

    fn each<T>(&mut self, what: &str, call: impl FnMut() -> Answer<T>) -> Check<T> {
        let (value, failures) = self.fault.each(what, call)?;
        self.failures += failures;
        Ok(value)
    }

    /// An ioctl whose argument is these words.
    fn words(&mut self, what: &str, fd: &OwnedFd, request: u32, words: &[u64]) -> Check<u32> {
        let Self { fault, room, .. } = self;
        let (value, failures) = fault.each(what, || {
            for (n, word) in words.iter().enumerate() {
                room.set_u64(AT + 8 * n, *word);
            }
            room.ioctl(fd, request, AT)
        })?;
        self.failures += failures;
        Ok(value)
    }

    /// KVM_SET_DEVICE_ATTR with the value behind the pointer.
    fn attr(
        &mut self,
        what: &str,
        fd: &OwnedFd,
        (group, attr): (u64, u64),
        value: u64,
    ) -> Check<()> {
        self.room.set_u64(BEHIND, value);
        let words = [group << 32, attr, self.room.address(BEHIND)];
        self.words(what, fd, abi::HAS_DEVICE_ATTR, &words)?;
        self.words(what, fd, abi::SET_DEVICE_ATTR, &words).map(drop)
    }
}

/// A VM from its first call to its last.
fn a_vm(sweep: &mut Sweep, ram: &Region) -> Outcome {
    let behind = sweep.room.address(BEHIND);
    let system = open()?;
    let kind = vm_type(&system)?;
    let vm = sweep.each("KVM_CREATE_VM", || {
        ioctl_value(&system, abi::CREATE_VM, kind)
    })?;
    let vm = owned(vm);
    sweep.each("KVM_CHECK_EXTENSION", || {
        ioctl_value(&vm, abi::CHECK_EXTENSION, 1)
    })?;
    let manual = [kvm::KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.into(), 1, 0, 0];
    sweep.words("KVM_ENABLE_CAP", &vm, abi::ENABLE_CAP, &manual)?;
    let slot = [0, RAM, ram.bytes() as u64, ram.address(0)];
    sweep.words("the first slot", &vm, abi::SET_USER_MEMORY_REGION, &slot)?;
    // Its log takes half a megabyte.
    let logged = [1 | 1 << 32, LOGGED, LOGGED_BYTES, 1 << 40, 0, 0];
    sweep.words(
        "a slot with a log",
        &vm,
        abi::SET_USER_MEMORY_REGION2,
        &logged,
    )?;
    sweep.words("KVM_ARM_PREFERRED_TARGET", &vm, abi::PREFERRED_TARGET, &[])?;
    let mut vcpus = Vec::new();
    for id in 0..2 {
        let fd = sweep.each("KVM_CREATE_VCPU", || ioctl_value(&vm, abi::CREATE_VCPU, id))?;
        let vcpu = Vcpu::of(owned(fd))?;
        let features = 1 << kvm::KVM_ARM_VCPU_PSCI_0_2 | 1 << kvm::KVM_ARM_VCPU_PMU_V3;
        let init = [5 | features << 32, 0, 0, 0];
        sweep.words("KVM_ARM_VCPU_INIT", &vcpu.fd, abi::VCPU_INIT, &init)?;
        vcpu.start(RAM + CODE as u64)?;
        vcpus.push(vcpu);
    }
    let device = |sweep: &mut Sweep, kind| {
        sweep.words("KVM_CREATE_DEVICE", &vm, abi::CREATE_DEVICE, &[kind, 0])?;
        Ok::<_, String>(owned(sweep.room.u32(AT + 4)))
    };
    let gic = device(sweep, 7)?;
    let its = device(sweep, 8)?;
    sweep.attr("the distributor", &gic, (0, 2), DIST)?;
    sweep.attr("the redistributors", &gic, (0, 3), REDIST)?;
    sweep.attr("the ITS", &its, (0, 4), ITS)?;
    let route = [
        2,
        40 | 1 << 32,
        0,
        8 << 32,
        0,
        0,
        0,
        41 | 1 << 32,
        0,
        9 << 32,
        0,
        0,
        0,
    ];
    sweep.words("KVM_SET_GSI_ROUTING", &vm, abi::SET_GSI_ROUTING, &route)?;
    let events = [super::irq::event()?, super::irq::event()?];
    let [irq, io] = events.each_ref().map(|event| event.as_raw_fd() as u64);
    sweep.words("KVM_IRQFD", &vm, abi::IRQFD, &[irq | 40 << 32, 0, 0, 0])?;
    let doorbell = [0, 0x0a00_0000, 4 | io << 32, 0, 0, 0, 0, 0];
    sweep.words("KVM_IOEVENTFD", &vm, abi::IOEVENTFD, &doorbell)?;
    let zone = [0x0a00_1000, 0x1000];
    let (on, off) = (abi::REGISTER_COALESCED_MMIO, abi::UNREGISTER_COALESCED_MMIO);
    sweep.words("KVM_REGISTER_COALESCED_MMIO", &vm, on, &zone)?;
    sweep.attr(
        "KVM_ARM_VM_SMCCC_FILTER",
        &vm,
        (0, 0),
        0x8400_0050 | 1 << 32,
    )?;
    for vcpu in &vcpus {
        // Events 0 to 15 and no others.
        sweep.attr("the counters' filter", &vcpu.fd, (0, 2), 16 << 16)?;
    }
    sweep.attr("KVM_DEV_ARM_VGIC_CTRL_INIT", &gic, (4, 0), 0)?;
    sweep.attr("KVM_DEV_ARM_ITS_CTRL_INIT", &its, (4, 0), 0)?;
    for vcpu in &vcpus {
        sweep.attr("the counters' interrupt", &vcpu.fd, (0, 0), 23)?;
        sweep.words("the counters", &vcpu.fd, abi::SET_DEVICE_ATTR, &[0, 1, 0])?;
        state_of(sweep, vcpu, behind)?;
    }
    for vcpu in &vcpus {
        let exit = sweep.each("KVM_RUN", || vcpu.run())?;
        holds(matches!(exit, Exit::Write { data: 7, .. }), || {
            format!("{exit:x?} instead of a report")
        })?;
    }
    let log = sweep.room.address(BEHIND);
    sweep.words("KVM_GET_DIRTY_LOG", &vm, abi::GET_DIRTY_LOG, &[1, log])?;
    sweep.words(
        "KVM_CLEAR_DIRTY_LOG",
        &vm,
        abi::CLEAR_DIRTY_LOG,
        &[1 | 64 << 32, 0, log],
    )?;
    sweep.words(
        "KVM_IRQ_LINE",
        &vm,
        abi::IRQ_LINE,
        &[abi::spi(50) | 1 << 32],
    )?;
    sweep.words(
        "KVM_IRQ_LINE_STATUS",
        &vm,
        abi::IRQ_LINE_STATUS,
        &[abi::spi(50)],
    )?;
    sweep.words(
        "KVM_ARM_GET_REG_WRITABLE_MASKS",
        &vm,
        abi::GET_REG_WRITABLE_MASKS,
        &[behind, 0, 0, 0, 0, 0, 0, 0],
    )?;
    sweep.words("KVM_UNREGISTER_COALESCED_MMIO", &vm, off, &zone)?;
    sweep.attr("the ITS's tables saved", &its, (4, 1), 0)?;
    for fd in [&vm, &vcpus[0].fd] {
        let stats = sweep.each("KVM_GET_STATS_FD", || ioctl_value(fd, abi::GET_STATS_FD, 0))?;
        drop(owned(stats));
    }
    let gone = [1, LOGGED, 0, 1 << 40];
    sweep.words("deleting a slot", &vm, abi::SET_USER_MEMORY_REGION, &gone)?;
    // It works still, and as often as one likes.
    for vcpu in &vcpus {
        vcpu.go_to(RAM + CODE as u64)?;
        same(vcpu.report()?, 7, "a report after all that")?;
    }
    Ok(())
}

/// What is asked of one vCPU and what it is given.
fn state_of(sweep: &mut Sweep, vcpu: &Vcpu, behind: u64) -> Outcome {
    let fd = &vcpu.fd;
    for (what, request, words) in [
        ("KVM_GET_REG_LIST", abi::GET_REG_LIST, vec![4000]),
        ("KVM_GET_ONE_REG", abi::GET_ONE_REG, vec![abi::x(3), behind]),
        ("KVM_SET_ONE_REG", abi::SET_ONE_REG, vec![abi::x(3), behind]),
        ("KVM_GET_MP_STATE", abi::GET_MP_STATE, vec![]),
        ("KVM_SET_MP_STATE", abi::SET_MP_STATE, vec![0]),
        ("KVM_GET_VCPU_EVENTS", abi::GET_VCPU_EVENTS, vec![]),
        ("KVM_SET_VCPU_EVENTS", abi::SET_VCPU_EVENTS, vec![0; 8]),
        // The vCPU's own registers for breakpoints, then none.
        (
            "KVM_SET_GUEST_DEBUG",
            abi::SET_GUEST_DEBUG,
            [vec![1 | 1 << 49], vec![0; 64]].concat(),
        ),
        ("KVM_SET_GUEST_DEBUG off", abi::SET_GUEST_DEBUG, vec![0; 65]),
    ] {
        sweep.words(what, fd, request, &words)?;
    }
    Ok(())
}

/// Runs `once` until it grows nothing of this program's any more, and then for the books: frames to the last,
/// and the heap but for `nodes` bytes.
fn leaves_nothing(
    env: &Env,
    least: u64,
    nodes: i64,
    mut once: impl FnMut(&mut Sweep) -> Outcome,
) -> Outcome {
    if !can_fail(env) {
        return Ok(());
    }
    let mut failures = 0;
    let mut round = || -> Outcome {
        let mut sweep = Sweep::new()?;
        once(&mut sweep)?;
        failures = sweep.failures;
        Ok(())
    };
    // What is kept for ever: the heap's chunks, umbra's own tables, lists that never shrink.
    round()?;
    round()?;
    let before = at_rest()?;
    round()?;
    let now = at_rest()?;
    println!("oom: {failures} allocations failed, each in its turn");
    let heap = KernelMemory {
        heap: before.heap,
        ..now
    };
    let same = heap == before && (now.heap - before.heap).abs() <= nodes;
    holds(same, || format!("left behind: {before:?}, then {now:?}"))?;
    holds(failures >= least, || {
        format!("only {failures} allocations were met")
    })
}

pub(super) fn each_ioctl(env: &Env) -> Outcome {
    let ram = granted(Region::new(RAM_BYTES), "mmap")?;
    ram.set_code(VECTORS_AT, &asm::vectors());
    let mut program = Asm::new();
    program.mov(0, 7).report(0).mov(0, 7).report(0);
    ram.set_code(CODE, program.words());
    leaves_nothing(env, 60, 0, |sweep| a_vm(sweep, &ram))
}

const PAGE: u64 = 4096;
const BLOCK: u64 = 2 << 20;

/// Calls that make files: number, arguments, and whether they answer two in memory.
const FILES: &[(&str, u64, [u64; 4], bool)] = &[
    ("eventfd2", 19, [0; 4], false),
    ("epoll_create1", 20, [0; 4], false),
    ("dup", 23, [0; 4], false),
    ("pipe2", 59, [u64::MAX, 0, 0, 0], true),
    ("timerfd_create", 85, [1, 0, 0, 0], false),
    ("socket", 198, [1, 1, 0, 0], false),
    ("socketpair", 199, [1, 1, 0, u64::MAX], true),
];

fn files(sweep: &mut Sweep, ground: &Ground<'_>) -> Outcome {
    for (what, number, args, two) in FILES {
        let at = ground.scratch.address(BEHIND);
        let args = args.map(|arg| if arg == u64::MAX { at } else { arg });
        let [a, b, c, d] = args;
        let fd = sweep.each(what, || {
            let fd = ground.call(*number, [a, b, c, d, 0, 0])?;
            let made = [ground.scratch.u32(BEHIND), ground.scratch.u32(BEHIND + 4)];
            Ok(if *two { made } else { [fd as u32, 0] })
        })?;
        for fd in fd.into_iter().take(1 + usize::from(*two)) {
            drop(owned(fd));
        }
    }
    let name = ground.scratch.address(BEHIND);
    ground
        .scratch
        .set_u64(BEHIND, u64::from_le_bytes(*b"memory\0\0"));
    let memory = sweep.each("memfd_create", || ground.call(279, [name, 0, 0, 0, 0, 0]))?;
    let memory = owned(memory as u32);
    let fd = memory.as_raw_fd() as u64;
    sweep.each("ftruncate", || ground.call(46, [fd, 8 * PAGE, 0, 0, 0, 0]))?;
    Ok(())
}

fn mappings(sweep: &mut Sweep, ground: &Ground<'_>) -> Outcome {
    // The first whole block of the playground, and the one behind it.
    let block = ground.play.next_multiple_of(BLOCK);
    let fixed = |at: u64, bytes: u64| [at, bytes, 3, 0x32, u64::MAX, 0];
    let (mmap, munmap, mprotect, mremap, madvise) = (222, 215, 226, 216, 233);
    let touch = |ground: &Ground<'_>| ground.call(madvise, [block, BLOCK, 23, 0, 0, 0]);
    sweep.each("mmap", || ground.call(mmap, fixed(block, 2 * BLOCK)))?;
    sweep.each("MADV_HUGEPAGE", || {
        ground.call(madvise, [block, BLOCK, 14, 0, 0, 0])
    })?;
    sweep.each("MADV_POPULATE_WRITE", || touch(ground))?;
    // Each of them cuts the block.
    let inside = |n: u64| block + 16 * n * PAGE;
    sweep.each("munmap", || {
        ground.call(munmap, [inside(1), PAGE, 0, 0, 0, 0])
    })?;
    granted(
        ground.call(munmap, [block, 2 * BLOCK, 0, 0, 0, 0]),
        "munmap",
    )?;
    granted(ground.call(mmap, fixed(block, 2 * BLOCK)), "mmap")?;
    granted(touch(ground), "MADV_POPULATE_WRITE")?;
    sweep.each("mprotect", || {
        ground.call(mprotect, [inside(2), PAGE, 1, 0, 0, 0])
    })?;
    granted(
        ground.call(munmap, [block, 2 * BLOCK, 0, 0, 0, 0]),
        "munmap",
    )?;
    granted(ground.call(mmap, fixed(block, 2 * BLOCK)), "mmap")?;
    granted(touch(ground), "MADV_POPULATE_WRITE")?;
    sweep.each("MADV_DONTNEED", || {
        ground.call(madvise, [inside(3), PAGE, 4, 0, 0, 0])
    })?;
    sweep.each("mmap over it", || ground.call(mmap, fixed(inside(4), PAGE)))?;
    let to = block + BLOCK + PAGE;
    let moved = [inside(5), PAGE, PAGE, 3, to, 0];
    sweep.each("mremap", || ground.call(mremap, moved))?;
    granted(
        ground.call(munmap, [block, 2 * BLOCK, 0, 0, 0, 0]),
        "munmap",
    )?;
    Ok(())
}

/// What a process's start answers: out of memory, in the two words that there are for it.
fn started<T>(done: std::io::Result<T>) -> Answer<T> {
    done.map_err(|error| match error.raw_os_error() {
        Some(libc::EAGAIN | libc::ENOMEM) | None => libc::ENOMEM,
        Some(other) => other,
    })
}

pub(super) fn each_call(env: &Env) -> Outcome {
    const PLAY: usize = 6 << 20;
    let play = granted(playground(PLAY), "mmap")?;
    leaves_nothing(env, 20, NODES, |sweep| {
        let scratch = granted(Region::new(1 << 20), "mmap")?;
        scratch.set_u8(BEHIND, 0);
        let ground = Ground {
            scratch: &scratch,
            play,
            play_bytes: PLAY as u64,
        };
        files(sweep, &ground)?;
        mappings(sweep, &ground)?;
        let program = std::env::args().next().ok_or("no name of one's own")?;
        let mut child = sweep.each("clone and execve", || {
            let mut command = Command::new(&program);
            let command = command.arg("--list").stdin(Stdio::null());
            started(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn())
        })?;
        // It may meet the failure itself, if it is quick.
        child.wait().map(drop).map_err(|e| format!("wait4: {e}"))
    })
}

/// What a VM may have of umbra's memory ends, and another VM does not notice (docs/abi.md).
pub(super) fn limits(env: &Env) -> Outcome {
    // Linux charges them to the process instead.
    if !env.umbra {
        return Ok(());
    }
    let greedy = Machine::new()?;
    let event = super::irq::event()?;
    let fd = event.as_raw_fd() as u64;
    let room = granted(Region::new(1 << 20), "mmap")?;
    let call = |request: u32, words: &[u64]| {
        for (n, word) in words.iter().enumerate() {
            room.set_u64(8 * n, *word);
        }
        room.ioctl(&greedy.vm, request, 0)
    };
    // Ends with the error that the last answers; nothing is taken back.
    let most = |limit: u64, errno: i32, what: &str, one: &dyn Fn(u64) -> Answer<u32>| {
        for n in 0..limit {
            granted(one(n), what)?;
        }
        refused(one(limit), errno, what)
    };
    most(4096, libc::ENOMEM, "KVM_IOEVENTFD", &|n| {
        let words = [0, 0x0a00_0000 + 8 * n, 4 | fd << 32, 0, 0, 0, 0, 0];
        call(abi::IOEVENTFD, &words)
    })?;
    most(1000, libc::ENOSPC, "KVM_REGISTER_COALESCED_MMIO", &|n| {
        call(abi::REGISTER_COALESCED_MMIO, &[0x0b00_0000 + 8 * n, 8])
    })?;
    granted(call(abi::CREATE_DEVICE, &[7, 0]), "a GIC")?;
    let gic = owned(room.u32(4));
    most(64, libc::ENOMEM, "an ITS", &|_| {
        let made = call(abi::CREATE_DEVICE, &[8, 0])?;
        drop(owned(room.u32(4)));
        Ok(made)
    })?;
    super::noise::alive()?;
    drop(gic);
    Ok(())
}
