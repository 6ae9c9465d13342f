//! Questions to /dev/kvm itself, and to every kind of file at once.

use std::fs::File;
use std::os::unix::fs::FileExt;

use kvm_bindings as kvm;
use umbra_vmm::kvm::{Ground, Region, ioctl_value, owned, playground};
use umbra_vmm::stats::{self, Stat};

use super::asm::Asm;
use super::guest::{Answer, Machine, create_vm, open};
use super::{Check, Env, Outcome, abi, granted, holds, refused, same};

pub(super) fn api_version(_: &Env) -> Outcome {
    let kvm = open()?;
    let version = granted(
        ioctl_value(&kvm, abi::GET_API_VERSION, 0),
        "KVM_GET_API_VERSION",
    )?;
    same(version, 12, "the version")?;
    refused(
        ioctl_value(&kvm, abi::GET_API_VERSION, 1),
        libc::EINVAL,
        "with an argument",
    )
}

pub(super) fn extensions(_: &Env) -> Outcome {
    let (kvm, vm) = (open()?, create_vm()?);
    for cap in [
        kvm::KVM_CAP_USER_MEMORY,
        kvm::KVM_CAP_ONE_REG,
        kvm::KVM_CAP_IMMEDIATE_EXIT,
        kvm::KVM_CAP_READONLY_MEM,
        kvm::KVM_CAP_ARM_PSCI_0_2,
        kvm::KVM_CAP_DEVICE_CTRL,
        kvm::KVM_CAP_IRQFD,
        kvm::KVM_CAP_IOEVENTFD,
        kvm::KVM_CAP_VCPU_EVENTS,
        kvm::KVM_CAP_ARM_INJECT_EXT_DABT,
        kvm::KVM_CAP_ARM_NISV_TO_USER,
        kvm::KVM_CAP_MP_STATE,
        kvm::KVM_CAP_SYNC_MMU,
        kvm::KVM_CAP_USER_MEMORY2,
        kvm::KVM_CAP_ENABLE_CAP_VM,
    ] {
        for (fd, what) in [(&kvm, "system"), (&vm, "VM")] {
            let answer = granted(ioctl_value(fd, abi::CHECK_EXTENSION, cap.into()), "check")?;
            holds(answer > 0, || {
                format!("capability {cap} is {answer} on the {what} file")
            })?;
        }
    }
    refused(
        ioctl_value(&kvm, abi::CHECK_EXTENSION, kvm::KVM_CAP_MSI_DEVID.into()),
        libc::EINVAL,
        "KVM_CAP_MSI_DEVID of no VM",
    )?;
    let bits = ioctl_value(
        &kvm,
        abi::CHECK_EXTENSION,
        kvm::KVM_CAP_ARM_VM_IPA_SIZE.into(),
    );
    let bits = granted(bits, "KVM_CAP_ARM_VM_IPA_SIZE")?;
    holds((32..=52).contains(&bits), || {
        format!("{bits} bits of guest address")
    })?;
    let slots = ioctl_value(&kvm, abi::CHECK_EXTENSION, kvm::KVM_CAP_NR_MEMSLOTS.into());
    let slots = granted(slots, "KVM_CAP_NR_MEMSLOTS")?;
    holds(slots >= 512, || format!("only {slots} memory slots"))?;
    for unknown in [99_999, u64::from(u32::MAX), u64::MAX] {
        for fd in [&kvm, &vm] {
            same(
                granted(ioctl_value(fd, abi::CHECK_EXTENSION, unknown), "check")?,
                0,
                "unknown",
            )?;
        }
    }
    Ok(())
}

pub(super) fn run_page_size(_: &Env) -> Outcome {
    let kvm = open()?;
    let size = granted(
        ioctl_value(&kvm, abi::GET_VCPU_MMAP_SIZE, 0),
        "KVM_GET_VCPU_MMAP_SIZE",
    )?;
    holds(size >= 2352 && size % 4096 == 0, || format!("{size} bytes"))?;
    refused(
        ioctl_value(&kvm, abi::GET_VCPU_MMAP_SIZE, 1),
        libc::EINVAL,
        "with an argument",
    )
}

pub(super) fn ipa_sizes(_: &Env) -> Outcome {
    let kvm = open()?;
    let limit = ioctl_value(
        &kvm,
        abi::CHECK_EXTENSION,
        kvm::KVM_CAP_ARM_VM_IPA_SIZE.into(),
    );
    let limit = u64::from(granted(limit, "KVM_CAP_ARM_VM_IPA_SIZE")?);
    for bits in 1..=64 {
        let answer = ioctl_value(&kvm, abi::CREATE_VM, bits).map(owned);
        let what = format!("a VM of {bits} bits, where the limit is {limit}");
        match (32..=limit).contains(&bits) {
            true => drop(granted(answer, &what)?),
            false => refused(answer, libc::EINVAL, &what)?,
        }
    }
    for kind in [0x100, 0x200 | 40, 1 << 40, u64::MAX] {
        let answer = ioctl_value(&kvm, abi::CREATE_VM, kind).map(owned);
        refused(answer, libc::EINVAL, &format!("a VM of type {kind:#x}"))?;
    }
    Ok(())
}

/// What no file knows, and what only another kind of file does.
pub(super) fn unknown_ioctls(_: &Env) -> Outcome {
    let kvm = open()?;
    let machine = Machine::new()?;
    let vcpu = machine.bare_vcpu(0)?;
    // Linux's KVM for arm64 answers EINVAL for a number that it does not know, in all three files.
    let unknown = libc::EINVAL;
    for (fd, name) in [(&kvm, "system"), (&machine.vm, "VM"), (&vcpu.fd, "vCPU")] {
        for request in [0x0000_aefe, 0xc010_aeff, 0x4008_ae3f] {
            let what = format!("ioctl {request:#x} on the {name} file");
            refused(ioctl_value(fd, request, 0), unknown, &what)?;
        }
    }
    for (fd, request, what) in [
        (&kvm, abi::CREATE_VCPU, "KVM_CREATE_VCPU on the system file"),
        (&kvm, abi::RUN, "KVM_RUN on the system file"),
        (&machine.vm, abi::RUN, "KVM_RUN on the VM file"),
        (&machine.vm, abi::CREATE_VM, "KVM_CREATE_VM on the VM file"),
        (&vcpu.fd, abi::CREATE_VM, "KVM_CREATE_VM on the vCPU file"),
        (
            &vcpu.fd,
            abi::CREATE_VCPU,
            "KVM_CREATE_VCPU on the vCPU file",
        ),
    ] {
        refused(ioctl_value(fd, request, 0), unknown, what)?;
    }
    Ok(())
}

/// Each call with an address where nothing is.
pub(super) fn bad_pointers(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let vcpu = machine.bare_vcpu(0)?;
    granted(vcpu.init(0), "KVM_ARM_VCPU_INIT")?;
    let of_vm = [
        (abi::SET_USER_MEMORY_REGION, "KVM_SET_USER_MEMORY_REGION"),
        (abi::SET_USER_MEMORY_REGION2, "KVM_SET_USER_MEMORY_REGION2"),
        (abi::IRQFD, "KVM_IRQFD"),
        (abi::IOEVENTFD, "KVM_IOEVENTFD"),
        (abi::ENABLE_CAP, "KVM_ENABLE_CAP"),
        (abi::PREFERRED_TARGET, "KVM_ARM_PREFERRED_TARGET"),
        (abi::CREATE_DEVICE, "KVM_CREATE_DEVICE"),
        (abi::IRQ_LINE, "KVM_IRQ_LINE"),
    ];
    let of_vcpu = [
        (abi::GET_ONE_REG, "KVM_GET_ONE_REG"),
        (abi::SET_ONE_REG, "KVM_SET_ONE_REG"),
        (abi::GET_REG_LIST, "KVM_GET_REG_LIST"),
        (abi::VCPU_INIT, "KVM_ARM_VCPU_INIT"),
        (abi::GET_MP_STATE, "KVM_GET_MP_STATE"),
        (abi::SET_MP_STATE, "KVM_SET_MP_STATE"),
        (abi::GET_VCPU_EVENTS, "KVM_GET_VCPU_EVENTS"),
        (abi::SET_VCPU_EVENTS, "KVM_SET_VCPU_EVENTS"),
    ];
    let vm = of_vm.map(|(request, name)| (&machine.vm, request, name));
    let vcpu = of_vcpu.map(|(request, name)| (&vcpu.fd, request, name));
    for (fd, request, name) in vm.into_iter().chain(vcpu) {
        for address in [0, 8, 0xffff, 1 << 55, u64::MAX - 15, 0xffff_0000_0000_0000] {
            let what = format!("{name} at {address:#x}");
            refused(ioctl_value(fd, request, address), libc::EFAULT, &what)?;
        }
    }
    Ok(())
}

/// The statistics files: what they say of themselves, and that they count. (Linux's names.)
pub(super) fn statistics(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let mut asm = Asm::new();
    asm.mov(0, 0x8400_0000).hvc().report(0).report(0);
    let vcpu = machine.vcpu_with(0, &asm)?;
    for fd in [&machine.vm, &vcpu.fd] {
        // The argument is not looked at.
        granted(ioctl_value(fd, abi::GET_STATS_FD, 7), "KVM_GET_STATS_FD").map(owned)?;
    }
    let file = granted(ioctl_value(&vcpu.fd, abi::GET_STATS_FD, 0), "of a vCPU").map(owned)?;
    let file = File::from(file);
    let read = || -> Check<Vec<Stat>> {
        let mut bytes = [0; 16384];
        let count = file.read_at(&mut bytes, 0).map_err(|e| e.to_string())?;
        // Piece by piece it is the same file.
        let mut piece = [0; 100];
        let more = file.read_at(&mut piece, 24).map_err(|e| e.to_string())?;
        same(&piece[..more], &bytes[24..24 + more], "a piece of the file")?;
        stats::parse(&bytes[..count]).ok_or_else(|| "not a statistics file".to_owned())
    };
    let get = |stats: &[Stat], name: &str| {
        let found = stats.iter().find(|stat| stat.name == name);
        found.map(|stat| stat.value).ok_or(format!("no {name}"))
    };
    let before = read()?;
    for name in ["exits", "mmio_exit_user", "hvc_exit_stat"] {
        same(get(&before, name)?, 0, name)?;
    }
    vcpu.report()?;
    vcpu.report()?;
    let after = read()?;
    same(get(&after, "hvc_exit_stat")?, 1, "hypercalls")?;
    same(get(&after, "mmio_exit_user")?, 2, "device accesses")?;
    holds(get(&after, "exits")? >= 3, || {
        "exits are not counted".to_owned()
    })?;
    for name in [
        "wfi_exit_stat",
        "wfe_exit_stat",
        "mmio_exit_kernel",
        "signal_exits",
    ] {
        get(&after, name)?;
    }
    // At the end there is nothing more.
    let mut rest = [0; 8];
    let end = file
        .read_at(&mut rest, 1 << 20)
        .map_err(|e| e.to_string())?;
    same(end, 0, "bytes beyond the end")
}

const PRCTL: u64 = 167;
const GETPPID: u64 = 173;

/// Makes a system call of three arguments; what they point to is in `scratch`.
fn call(scratch: &Region, number: u64, args: [u64; 3]) -> Check<Answer<u64>> {
    let ground = Ground {
        play: granted(playground(0x1000), "mmap")?,
        play_bytes: 0x1000,
        scratch,
    };
    let [a, b, c] = args;
    Ok(ground.call(number, [a, b, c, 0, 0, 0]))
}

fn getppid() -> Check<Answer<u64>> {
    let scratch = granted(Region::new(0x2_0000), "mmap")?;
    call(&scratch, GETPPID, [0; 3])
}

/// Gives this thread a filter, and starts another.
fn filtered() -> Outcome {
    const PR_GET_SECCOMP: u64 = 21;
    const PR_SET_SECCOMP: u64 = 22;
    const PR_SET_NO_NEW_PRIVS: u64 = 38;
    const FILTER: u64 = 2;
    const PROGRAM: usize = 0x100;
    const CODE: usize = 0x200;
    /// Load the number; is it GETPPID? then E2BIG; else go on.
    const WORDS: [u64; 4] = [
        0x20,
        GETPPID << 32 | 1 << 24 | 0x15,
        0x0005_0007 << 32 | 0x06,
        0x7fff_0000 << 32 | 0x06,
    ];
    let scratch = granted(Region::new(0x2_0000), "mmap")?;
    for (at, word) in WORDS.into_iter().enumerate() {
        scratch.set_u64(CODE + 8 * at, word);
    }
    scratch.set_u64(PROGRAM + 8, scratch.address(CODE));
    let filter = |instructions| {
        scratch.set_u64(PROGRAM, instructions);
        let args = [PR_SET_SECCOMP, FILTER, scratch.address(PROGRAM)];
        call(&scratch, PRCTL, args)
    };
    let promise = call(&scratch, PRCTL, [PR_SET_NO_NEW_PRIVS, 1, 0])?;
    granted(promise, "PR_SET_NO_NEW_PRIVS")?;
    refused(filter(0)?, libc::EINVAL, "an empty filter")?;
    refused(
        filter(2)?,
        libc::EINVAL,
        "a filter that leads out of itself",
    )?;
    granted(getppid()?, "getppid before")?;
    granted(filter(4)?, "PR_SET_SECCOMP")?;
    refused(getppid()?, libc::E2BIG, "getppid")?;
    let mode = call(&scratch, PRCTL, [PR_GET_SECCOMP, 0, 0])?;
    same(granted(mode, "PR_GET_SECCOMP")?, FILTER, "the mode")?;
    let below = std::thread::spawn(|| refused(getppid()?, libc::E2BIG, "getppid of its child"));
    below.join().map_err(|_| "the child panicked")?
}

/// A thread's filter of its system calls (seccomp): what it names fails as it says, for this thread and those that
/// it starts.
pub(super) fn filtered_calls(_: &Env) -> Outcome {
    let thread = std::thread::spawn(filtered);
    thread.join().map_err(|_| "the thread panicked")??;
    granted(getppid()?, "getppid of another thread").map(drop)
}
