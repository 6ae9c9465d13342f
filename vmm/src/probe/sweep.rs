//! Every ioctl of KVM on arm64, wrong in every way that needs no knowledge of it: the pointer, the file, the
//! size in its number, the time. The table is complete: a test of `umbra-kvm-abi` compares it with that
//! crate's own.

use std::os::fd::{AsRawFd, OwnedFd};

use umbra_vmm::kvm::{Ground, Region, owned, playground};
use vmm_sys_util::eventfd::EventFd;

use super::guest::{Machine, Vcpu, memory_of_kernel, open};
use super::{Check, Env, Outcome, abi, errno_name, granted, holds, same};

/// A bad pointer is EFAULT before anything else is looked at.
const FAULTS: bool = true;
/// It is an error, whichever: the call is absent, or looks at something else first.
const REFUSES: bool = false;

/// Name, number, files it is for (system, machine, vCPU, device), and what a bad pointer is.
const ALL: &[(&str, u32, &str, bool)] = &[
    ("KVM_GET_API_VERSION", 0x0000ae00, "s", REFUSES),
    ("KVM_CREATE_VM", 0x0000ae01, "s", REFUSES),
    ("KVM_CHECK_EXTENSION", 0x0000ae03, "sm", REFUSES),
    ("KVM_GET_VCPU_MMAP_SIZE", 0x0000ae04, "s", REFUSES),
    ("KVM_CREATE_VCPU", 0x0000ae41, "m", REFUSES),
    ("KVM_GET_DIRTY_LOG", 0x4010ae42, "m", FAULTS),
    ("KVM_SET_USER_MEMORY_REGION", 0x4020ae46, "m", FAULTS),
    ("KVM_SET_USER_MEMORY_REGION2", 0x40a0ae49, "m", FAULTS),
    ("KVM_CREATE_IRQCHIP", 0x0000ae60, "m", REFUSES),
    ("KVM_IRQ_LINE", 0x4008ae61, "m", FAULTS),
    ("KVM_IRQ_LINE_STATUS", 0xc008ae67, "m", FAULTS),
    ("KVM_REGISTER_COALESCED_MMIO", 0x4010ae67, "m", FAULTS),
    ("KVM_UNREGISTER_COALESCED_MMIO", 0x4010ae68, "m", FAULTS),
    ("KVM_SET_GSI_ROUTING", 0x4008ae6a, "m", FAULTS),
    ("KVM_IRQFD", 0x4020ae76, "m", FAULTS),
    ("KVM_IOEVENTFD", 0x4040ae79, "m", FAULTS),
    ("KVM_RUN", 0x0000ae80, "c", REFUSES),
    ("KVM_GET_REGS", 0x8360ae81, "c", REFUSES),
    ("KVM_SET_REGS", 0x4360ae82, "c", REFUSES),
    ("KVM_GET_SREGS", 0x8000ae83, "c", REFUSES),
    ("KVM_SET_SREGS", 0x4000ae84, "c", REFUSES),
    ("KVM_TRANSLATE", 0xc018ae85, "c", REFUSES),
    ("KVM_SET_SIGNAL_MASK", 0x4004ae8b, "c", REFUSES),
    ("KVM_GET_FPU", 0x8000ae8c, "c", REFUSES),
    ("KVM_SET_FPU", 0x4000ae8d, "c", REFUSES),
    ("KVM_GET_MP_STATE", 0x8004ae98, "c", FAULTS),
    ("KVM_SET_MP_STATE", 0x4004ae99, "c", FAULTS),
    ("KVM_SET_GUEST_DEBUG", 0x4208ae9b, "c", FAULTS),
    ("KVM_GET_VCPU_EVENTS", 0x8040ae9f, "c", FAULTS),
    ("KVM_SET_VCPU_EVENTS", 0x4040aea0, "c", FAULTS),
    ("KVM_ENABLE_CAP", 0x4068aea3, "mc", FAULTS),
    ("KVM_SIGNAL_MSI", 0x4020aea5, "m", FAULTS),
    ("KVM_GET_ONE_REG", 0x4010aeab, "c", FAULTS),
    ("KVM_ARM_SET_DEVICE_ADDR", 0x4010aeab, "m", REFUSES),
    ("KVM_SET_ONE_REG", 0x4010aeac, "c", FAULTS),
    ("KVM_ARM_VCPU_INIT", 0x4020aeae, "c", FAULTS),
    ("KVM_ARM_PREFERRED_TARGET", 0x8020aeaf, "m", FAULTS),
    ("KVM_GET_REG_LIST", 0xc008aeb0, "c", FAULTS),
    ("KVM_ARM_MTE_COPY_TAGS", 0x8030aeb4, "m", REFUSES),
    ("KVM_ARM_SET_COUNTER_OFFSET", 0x4010aeb5, "m", REFUSES),
    ("KVM_ARM_GET_REG_WRITABLE_MASKS", 0x8040aeb6, "m", FAULTS),
    ("KVM_CLEAR_DIRTY_LOG", 0xc018aec0, "m", FAULTS),
    ("KVM_ARM_VCPU_FINALIZE", 0x4004aec2, "c", REFUSES),
    ("KVM_RESET_DIRTY_RINGS", 0x0000aec7, "m", REFUSES),
    ("KVM_GET_STATS_FD", 0x0000aece, "mc", REFUSES),
    ("KVM_SET_MEMORY_ATTRIBUTES", 0x4020aed2, "m", REFUSES),
    ("KVM_CREATE_GUEST_MEMFD", 0xc040aed4, "m", REFUSES),
    ("KVM_PRE_FAULT_MEMORY", 0xc040aed5, "c", REFUSES),
    ("KVM_CREATE_DEVICE", 0xc00caee0, "m", FAULTS),
    ("KVM_SET_DEVICE_ATTR", 0x4018aee1, "mcd", FAULTS),
    ("KVM_GET_DEVICE_ATTR", 0x4018aee2, "mcd", REFUSES),
    ("KVM_HAS_DEVICE_ATTR", 0x4018aee3, "mcd", FAULTS),
];

const IOCTL: u64 = 29;
const MUNMAP: u64 = 215;
const MPROTECT: u64 = 226;
const PAGE: u64 = 4096;

/// One file of each kind, by its letter.
struct Files {
    kvm: OwnedFd,
    machine: Machine,
    vcpu: Vcpu,
    device: super::gic::Gic,
}

impl Files {
    fn new() -> Check<Self> {
        let machine = Machine::new()?;
        let device = granted(super::gic::Gic::new(&machine), "a GIC")?;
        let vcpu = machine.bare_vcpu(0)?;
        granted(vcpu.init(0), "KVM_ARM_VCPU_INIT")?;
        Ok(Self {
            kvm: open()?,
            machine,
            vcpu,
            device,
        })
    }

    fn of(&self, letter: char) -> u64 {
        let fd = match letter {
            's' => &self.kvm,
            'm' => &self.machine.vm,
            'c' => &self.vcpu.fd,
            _ => self.device.file(),
        };
        fd.as_raw_fd() as u64
    }
}

/// Bytes of the argument that a number speaks of; 0: it is no pointer.
const fn size(number: u32) -> u64 {
    (number >> 16 & 0x3fff) as u64
}

fn is_known(number: u32, letter: char) -> bool {
    let mut all = ALL.iter();
    all.any(|(_, of, files, _)| *of == number && files.contains(letter))
}

/// Room for the sweep: scratch memory, and a playground of eight pages.
fn ground(scratch: &Region) -> Check<Ground<'_>> {
    Ok(Ground {
        scratch,
        play: granted(playground(8 * PAGE as usize), "mmap")?,
        play_bytes: 8 * PAGE,
    })
}

fn call(ground: &Ground<'_>, fd: u64, number: u32, argument: u64) -> Result<u64, i32> {
    ground.call(IOCTL, [fd, number.into(), argument, 0, 0, 0])
}

/// Each argument at an address where it cannot be read or written.
fn wrong_pointers(ground: &Ground<'_>, files: &Files) -> Outcome {
    // The fourth page is gone, the sixth may not be touched.
    let gone = ground.play + 3 * PAGE;
    let closed = ground.play + 5 * PAGE;
    granted(ground.call(MUNMAP, [gone, PAGE, 0, 0, 0, 0]), "munmap")?;
    granted(
        ground.call(MPROTECT, [closed, PAGE, 0, 0, 0, 0]),
        "mprotect",
    )?;
    for (name, number, letters, faults) in ALL.iter().filter(|row| size(row.1) != 0) {
        for letter in letters.chars() {
            let straddling = gone - size(*number) / 2;
            for address in [
                0,
                8,
                0xfff8,
                gone,
                straddling,
                closed,
                1 << 52,
                0xffff_0000_0000_0000,
                u64::MAX - 15,
            ] {
                // No mask at all takes the mask away.
                if *name == "KVM_SET_SIGNAL_MASK" && address == 0 {
                    continue;
                }
                let answer = call(ground, files.of(letter), *number, address);
                let right = match answer {
                    Err(libc::EFAULT) => true,
                    // Of its other files a vCPU refuses capabilities, whatever they are.
                    Err(_) => !faults || !letters.starts_with(letter),
                    Ok(_) => false,
                };
                holds(right, || {
                    let seen = answer.map_or_else(errno_name, |value| value.to_string());
                    format!("{name} on a {letter} file at {address:#x}: {seen}")
                })?;
            }
        }
    }
    // What only writes needs the right to write.
    let fixed = ground.play + 6 * PAGE;
    granted(ground.call(MPROTECT, [fixed, PAGE, 1, 0, 0, 0]), "mprotect")?;
    for (name, number, letters, faults) in ALL.iter().filter(|row| row.1 >> 30 == 2 && row.3) {
        for letter in letters.chars() {
            let answer = call(ground, files.of(letter), *number, fixed);
            // The masks have the address of what they write in their structure.
            let own = *name == "KVM_ARM_GET_REG_WRITABLE_MASKS";
            let wanted = Err(libc::EFAULT);
            holds(own || (*faults && answer == wanted), || {
                format!("{name} into a page that is read-only: {answer:?}")
            })?;
        }
    }
    Ok(())
}

pub(super) fn pointers(_: &Env) -> Outcome {
    let scratch = granted(Region::new(1 << 20), "mmap")?;
    wrong_pointers(&ground(&scratch)?, &Files::new()?)
}

/// Each call on each file that it is not for, and each with another size in its number.
pub(super) fn files_and_sizes(_: &Env) -> Outcome {
    let scratch = granted(Region::new(1 << 20), "mmap")?;
    let (ground, files) = (ground(&scratch)?, Files::new()?);
    let strange = EventFd::new(0).map_err(|e| format!("eventfd: {e}"))?;
    let argument = scratch.address(0);
    let refused = |fd: u64, number: u32, errno: i32, what: String| {
        let answer = call(&ground, fd, number, argument);
        holds(answer == Err(errno), || {
            format!("{what}: {answer:?}, not {}", errno_name(errno))
        })
    };
    for (name, number, letters, _) in ALL {
        for letter in "smcd".chars() {
            let errno = match letter {
                'd' => libc::ENOTTY,
                _ => libc::EINVAL,
            };
            let resized = number ^ 8 << 16;
            let fd = files.of(letter);
            if !is_known(*number, letter) {
                refused(fd, *number, errno, format!("{name} on a {letter} file"))?;
            }
            if letters.contains(letter) && !is_known(resized, letter) {
                refused(fd, resized, errno, format!("{name} of another size"))?;
            }
        }
        let strange = strange.as_raw_fd() as u64;
        refused(
            strange,
            *number,
            libc::ENOTTY,
            format!("{name} on an eventfd"),
        )?;
        refused(
            1000,
            *number,
            libc::EBADF,
            format!("{name} on a closed file"),
        )?;
    }
    Ok(())
}

/// Each call before KVM_ARM_VCPU_INIT, with an argument of zeros, and once more after the vCPU ran, and after
/// the VM's own file was closed: whatever they answer, the VM ends, and takes all with it.
pub(super) fn orders(env: &Env) -> Outcome {
    let once = || -> Outcome {
        let scratch = granted(Region::new(1 << 20), "mmap")?;
        let ground = Ground {
            scratch: &scratch,
            play: scratch.address(0x8_0000),
            play_bytes: PAGE,
        };
        let sweep = |fd: u64, letter: char| {
            for (name, number, letters, _) in ALL {
                // A vCPU without a program would run for ever; a mask would block what ends it.
                let never = ["KVM_RUN", "KVM_SET_SIGNAL_MASK"].contains(name);
                if !letters.contains(letter) || never {
                    continue;
                }
                for word in 0..32 {
                    scratch.set_u64(8 * word, 0);
                }
                let argument = if size(*number) == 0 {
                    0
                } else {
                    scratch.address(0)
                };
                let answer = call(&ground, fd, *number, argument);
                let makes_a_file = ["KVM_CREATE_VM", "KVM_CREATE_VCPU", "KVM_GET_STATS_FD"];
                if let Ok(fd) = answer
                    && makes_a_file.contains(name)
                {
                    drop(owned(fd as u32));
                }
            }
        };
        let machine = Machine::new()?;
        let vcpu = machine.bare_vcpu(5)?;
        sweep(vcpu.fd.as_raw_fd() as u64, 'c');
        sweep(machine.vm.as_raw_fd() as u64, 'm');
        sweep(open()?.as_raw_fd() as u64, 's');
        // Another, that runs first.
        let machine = Machine::new()?;
        let mut asm = super::asm::Asm::new();
        asm.mov(0, 7).report(0).report(0);
        let vcpu = machine.vcpu_with(0, &asm)?;
        same(vcpu.report()?, 7, "a report")?;
        sweep(machine.vm.as_raw_fd() as u64, 'm');
        sweep(vcpu.fd.as_raw_fd() as u64, 'c');
        let Machine { vm, ram, .. } = machine;
        drop(vm);
        sweep(vcpu.fd.as_raw_fd() as u64, 'c');
        drop((vcpu, ram));
        Ok(())
    };
    once()?;
    if !env.umbra {
        return Ok(());
    }
    // Tables of this process grow to what they need; what is lost is lost each time.
    let mut seen = vec![memory_of_kernel()?];
    for _ in 0..8 {
        once()?;
        seen.push(memory_of_kernel()?);
        if seen.ends_with(&[seen[seen.len() - 2]]) {
            return Ok(());
        }
    }
    Err(format!("something is lost each time: {seen:x?}"))
}

/// One field wrong in an argument that is right otherwise: what it is, on which file, which call, the argument's
/// words, and what Linux answers.
const FIELDS: &[(&str, char, u32, &[u64], i32)] = &[
    (
        "KVM_CREATE_VM of a type with other bits",
        's',
        0xae01,
        &[0x100],
        libc::EINVAL,
    ),
    ("KVM_RUN with an argument", 'c', 0xae80, &[1], libc::EINVAL),
    (
        "a slot with unknown flags",
        'm',
        abi::SET_USER_MEMORY_REGION,
        &[1 | 8 << 32, 0, 0x1000, 0x1000_0000],
        libc::EINVAL,
    ),
    (
        "a slot of guest_memfd by the old call",
        'm',
        abi::SET_USER_MEMORY_REGION,
        &[1 | 4 << 32, 0, 0x1000, 0x1000_0000],
        libc::EINVAL,
    ),
    (
        "a slot of half a page",
        'm',
        abi::SET_USER_MEMORY_REGION,
        &[1, 0, 0x800, 0x1000_0000],
        libc::EINVAL,
    ),
    (
        "slot 32,767",
        'm',
        abi::SET_USER_MEMORY_REGION,
        &[32_767, 0, 0x1000, 0x1000_0000],
        libc::EINVAL,
    ),
    (
        "a slot of another address space",
        'm',
        abi::SET_USER_MEMORY_REGION,
        &[1 << 16, 0, 0x1000, 0x1000_0000],
        libc::EINVAL,
    ),
    (
        "the log of a slot that is not logged",
        'm',
        abi::GET_DIRTY_LOG,
        &[0, 0],
        libc::ENOENT,
    ),
    (
        "the log of no slot",
        'm',
        abi::GET_DIRTY_LOG,
        &[9, 0],
        libc::ENOENT,
    ),
    (
        "a log cleared from page 1",
        'm',
        abi::CLEAR_DIRTY_LOG,
        &[64 << 32, 1, 0],
        libc::EINVAL,
    ),
    (
        "KVM_ENABLE_CAP with flags",
        'm',
        abi::ENABLE_CAP,
        &[227 | 1 << 32, 0],
        libc::EINVAL,
    ),
    (
        "KVM_ENABLE_CAP of what is unknown",
        'm',
        abi::ENABLE_CAP,
        &[0xffff, 0],
        libc::EINVAL,
    ),
    (
        "KVM_ENABLE_CAP of a vCPU",
        'c',
        abi::ENABLE_CAP,
        &[227, 0],
        libc::EINVAL,
    ),
    (
        "KVM_IRQ_LINE of an unknown type",
        'm',
        abi::IRQ_LINE,
        &[7 << 24 | 1 << 32],
        libc::EINVAL,
    ),
    (
        "KVM_IRQFD with unknown flags",
        'm',
        abi::IRQFD,
        &[0, 4, 0, 0],
        libc::EINVAL,
    ),
    (
        "KVM_IOEVENTFD with unknown flags",
        'm',
        abi::IOEVENTFD,
        &[0, 0, 4, 16, 0, 0, 0, 0],
        libc::EINVAL,
    ),
    (
        "KVM_IOEVENTFD of three bytes",
        'm',
        abi::IOEVENTFD,
        &[0, 0, 3, 0, 0, 0, 0, 0],
        libc::EINVAL,
    ),
    (
        "KVM_SET_GSI_ROUTING with flags",
        'm',
        abi::SET_GSI_ROUTING,
        &[1 << 32],
        libc::EINVAL,
    ),
    (
        "KVM_SET_GSI_ROUTING of too many",
        'm',
        abi::SET_GSI_ROUTING,
        &[4097],
        libc::EINVAL,
    ),
    (
        "a route with flags",
        'm',
        abi::SET_GSI_ROUTING,
        &[1, 40 | 1 << 32, 1, 0, 0, 0, 0],
        libc::EINVAL,
    ),
    (
        "a route of an unknown type",
        'm',
        abi::SET_GSI_ROUTING,
        &[1, 40 | 9 << 32, 0, 0, 0, 0, 0],
        libc::EINVAL,
    ),
    (
        "KVM_SIGNAL_MSI with unknown flags",
        'm',
        abi::SIGNAL_MSI,
        &[0, 2 << 32, 0, 0],
        libc::EINVAL,
    ),
    (
        "a zone of neither memory nor ports",
        'm',
        abi::REGISTER_COALESCED_MMIO,
        &[0, 8 | 2 << 32],
        libc::EINVAL,
    ),
    (
        "KVM_CREATE_DEVICE of an unknown type",
        'm',
        abi::CREATE_DEVICE,
        &[99, 0],
        libc::ENODEV,
    ),
    (
        "a second GIC",
        'm',
        abi::CREATE_DEVICE,
        &[7, 0],
        libc::EEXIST,
    ),
    (
        "KVM_ARM_SET_COUNTER_OFFSET with what is reserved",
        'm',
        abi::SET_COUNTER_OFFSET,
        &[0, 1],
        libc::EINVAL,
    ),
    (
        "writable masks of another range",
        'm',
        abi::GET_REG_WRITABLE_MASKS,
        &[0, 1, 0, 0, 0, 0, 0, 0],
        libc::EINVAL,
    ),
    (
        "writable masks with what is reserved",
        'm',
        abi::GET_REG_WRITABLE_MASKS,
        &[0, 0, 0, 0, 0, 0, 0, 1],
        libc::EINVAL,
    ),
    (
        "KVM_ARM_VCPU_INIT of another target",
        'c',
        abi::VCPU_INIT,
        &[3 | 4 << 32, 0, 0, 0],
        libc::EINVAL,
    ),
    (
        "KVM_ARM_VCPU_INIT with an unknown feature",
        'c',
        abi::VCPU_INIT,
        &[5 | (4 | 1 << 30) << 32, 0, 0, 0],
        libc::ENOENT,
    ),
    (
        "KVM_ARM_VCPU_INIT with one of the last word",
        'c',
        abi::VCPU_INIT,
        &[5 | 4 << 32, 0, 0, 1 << 32],
        libc::ENOENT,
    ),
    (
        "KVM_SET_MP_STATE to what arm64 has not",
        'c',
        abi::SET_MP_STATE,
        &[1],
        libc::EINVAL,
    ),
    (
        "KVM_SET_GUEST_DEBUG with unknown bits",
        'c',
        abi::SET_GUEST_DEBUG,
        &[1 << 2],
        libc::EINVAL,
    ),
    (
        "KVM_SET_SIGNAL_MASK of another size",
        'c',
        0x4004_ae8b,
        &[4],
        libc::EINVAL,
    ),
    (
        "a register of another machine",
        'c',
        abi::GET_ONE_REG,
        &[0x2030_0000_0010_0000, 0],
        libc::EINVAL,
    ),
    (
        "a register that there is not",
        'c',
        abi::GET_ONE_REG,
        &[0x6030_0000_0013_ffff, 0],
        libc::ENOENT,
    ),
    (
        "an attribute of no group of a vCPU",
        'c',
        abi::HAS_DEVICE_ATTR,
        &[99 << 32, 0, 0],
        libc::ENXIO,
    ),
    (
        "an attribute of no group of a VM",
        'm',
        abi::HAS_DEVICE_ATTR,
        &[99 << 32, 0, 0],
        libc::ENXIO,
    ),
    (
        "an attribute of no group of a device",
        'd',
        abi::HAS_DEVICE_ATTR,
        &[99 << 32, 0, 0],
        libc::ENXIO,
    ),
];

pub(super) fn fields(_: &Env) -> Outcome {
    let scratch = granted(Region::new(1 << 20), "mmap")?;
    let (ground, files) = (ground(&scratch)?, Files::new()?);
    let mut wrong = Vec::new();
    for (what, letter, number, words, errno) in FIELDS {
        for word in 0..72 {
            let value = words.get(word).copied().unwrap_or(0);
            scratch.set_u64(8 * word, value);
        }
        let argument = if size(*number) == 0 {
            words[0]
        } else {
            scratch.address(0)
        };
        let answer = call(&ground, files.of(*letter), *number, argument);
        if answer != Err(*errno) {
            let seen = answer.map_or_else(errno_name, |value| value.to_string());
            wrong.push(format!("{what}: {seen}, not {}", errno_name(*errno)));
        }
    }
    holds(wrong.is_empty(), || wrong.join("; "))
}
