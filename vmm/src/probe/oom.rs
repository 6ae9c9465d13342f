//! No memory: each allocation that the kernel makes for a VM fails in turn (`/proc/self/fail-nth`, where
//! the kernel has it). The call answers ENOMEM, nothing panics, and nothing is lost.

use std::cell::Cell;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;

use kvm_bindings as kvm;
use umbra_vmm::kvm::{Region, ioctl, ioctl_value, owned};

use super::asm::{self, Asm};
use super::gic::{DIST, REDIST};
use super::guest::{
    Answer, CODE, Exit, RAM, RAM_BYTES, VECTORS_AT, Vcpu, memory_of_kernel, open, set_slot, vm_type,
};
use super::{Check, Env, Outcome, abi, errno_name, holds, same};

pub(super) use super::scarce::{each_call, each_ioctl, limits};

const FILE: &str = "/proc/self/fail-nth";

/// Whether the kernel can be asked to let an allocation fail: umbra with checks can, Debian's Linux is
/// built without.
pub(super) fn can_fail(env: &Env) -> bool {
    env.umbra || fs::metadata(FILE).is_ok()
}

/// Which allocation of the armed calls is still to fail.
pub(super) struct Fault {
    /// Opened before anything fails.
    file: File,
    left: Cell<u64>,
}

/// How a step ended: with a value, or with the failure that was asked for.
pub(super) enum Step<T> {
    Done(T),
    NoMemory,
}

impl Fault {
    pub(super) fn new(n: u64) -> Check<Self> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).open(FILE);
        Ok(Self {
            file: file.map_err(|e| format!("{FILE}: {e}"))?,
            left: Cell::new(n),
        })
    }

    fn set(&self, n: u64) -> Check<()> {
        let done = self.file.write_all_at(n.to_string().as_bytes(), 0);
        done.map_err(|e| format!("{FILE}: {e}"))
    }

    fn read(&self) -> Check<u64> {
        let mut text = [0; 32];
        let count = self.file.read_at(&mut text, 0);
        let count = count.map_err(|e| format!("{FILE}: {e}"))?;
        let text = String::from_utf8_lossy(&text[..count]);
        text.trim()
            .parse()
            .map_err(|e| format!("{FILE}: {text:?}: {e}"))
    }

    /// Makes a call with each of its allocations failing in turn, until none is left that could. Answers what
    /// it was granted in the end, and how many failed before.
    pub(super) fn each<T>(
        &self,
        what: &str,
        mut call: impl FnMut() -> Answer<T>,
    ) -> Check<(T, u64)> {
        for n in 1..1000 {
            self.left.set(n);
            let end = self.armed(what, &mut call);
            let end = end.map_err(|why| format!("allocation {n} failed: {why}"))?;
            match end {
                Step::Done(value) if self.left.get() > 0 => return Ok((value, n - 1)),
                // Granted all the same: what failed was something that can be done without.
                Step::Done(value) => drop(value),
                Step::NoMemory => {}
            }
        }
        Err(format!("{what}: a thousand allocations were not enough"))
    }

    /// Makes a call while the fault is armed: it is granted, or ENOMEM because an allocation failed.
    pub(super) fn armed<T>(&self, what: &str, call: impl FnOnce() -> Answer<T>) -> Check<Step<T>> {
        let before = self.left.get();
        self.set(before)?;
        let answer = call();
        let left = self.read()?;
        self.set(0)?;
        self.left.set(left);
        match answer {
            Ok(value) => Ok(Step::Done(value)),
            Err(libc::ENOMEM) if left == 0 && before > 0 => Ok(Step::NoMemory),
            Err(errno) => Err(format!("{what}: {}", errno_name(errno))),
        }
    }
}

/// The life of a VM with two vCPUs and a GIC, as far as memory lasts.
fn life(fault: &Fault, ram: &Region) -> Check<Step<()>> {
    macro_rules! step {
        ($what:literal, $call:expr) => {
            match fault.armed($what, || $call)? {
                Step::Done(value) => value,
                Step::NoMemory => return Ok(Step::NoMemory),
            }
        };
    }
    let system = open()?;
    let kind = vm_type(&system)?;
    let vm = owned(step!(
        "KVM_CREATE_VM",
        ioctl_value(&system, abi::CREATE_VM, kind)
    ));
    let bytes = ram.bytes() as u64;
    step!(
        "KVM_SET_USER_MEMORY_REGION",
        set_slot(&vm, 0, 0, RAM, bytes, ram.address(0))
    );
    let mut device = kvm::kvm_create_device {
        type_: kvm::kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
        ..Default::default()
    };
    step!(
        "KVM_CREATE_DEVICE",
        ioctl(&vm, abi::CREATE_DEVICE, &mut device)
    );
    let gic = super::gic::Gic::of(owned(device.fd));
    let mut vcpus = Vec::new();
    for id in 0..2 {
        let fd = owned(step!(
            "KVM_CREATE_VCPU",
            ioctl_value(&vm, abi::CREATE_VCPU, id)
        ));
        let vcpu = Vcpu::of(fd)?;
        step!("KVM_ARM_VCPU_INIT", vcpu.init(0));
        vcpu.start(RAM + CODE as u64)?;
        vcpus.push(vcpu);
    }
    step!("the GIC's frames", gic.place(DIST, REDIST));
    step!("KVM_DEV_ARM_VGIC_CTRL_INIT", gic.init());
    for vcpu in &vcpus {
        match step!("KVM_RUN", vcpu.run()) {
            Exit::Write { data: 7, .. } => {}
            other => return Err(format!("{other:x?} instead of a report")),
        }
    }
    Ok(Step::Done(()))
}

/// Lets the first allocation fail, then the second and so on, until a life needs no more of them.
/// Answers how many there were.
fn sweep(ram: &Region) -> Check<u64> {
    for n in 1..1000 {
        let fault = Fault::new(n)?;
        let end = life(&fault, ram).map_err(|why| format!("allocation {n} failed: {why}"))?;
        if matches!(end, Step::Done(())) && fault.left.get() > 0 {
            return Ok(n - 1);
        }
    }
    Err("a thousand allocations were not enough".into())
}

pub(super) fn each_allocation(env: &Env) -> Outcome {
    if !can_fail(env) {
        return Ok(());
    }
    let ram = super::granted(Region::new(RAM_BYTES), "mmap")?;
    ram.set_code(VECTORS_AT, &asm::vectors());
    let mut program = Asm::new();
    program.mov(0, 7).report(0);
    ram.set_code(CODE, program.words());
    // The first time fills what is kept for ever: the heap's chunks, umbra's own tables.
    let first = sweep(&ram)?;
    holds(first >= 4, || format!("only {first} allocations were met"))?;
    // The second lets this program touch whatever of its own memory it needs for all this, the question
    // of free memory included: what is lost after that is the kernel's.
    memory_of_kernel()?;
    sweep(&ram)?;
    let before = memory_of_kernel()?;
    sweep(&ram)?;
    same(memory_of_kernel()?, before, "what is free after that")
}
