//! No memory: each allocation that the kernel makes for a VM fails in turn (`/proc/self/fail-nth`, where
//! the kernel has it). The call answers ENOMEM, nothing panics, and nothing is lost.

use std::cell::Cell;
use std::fs::{self, OpenOptions};

use kvm_bindings as kvm;
use umbra_vmm::kvm::{Region, ioctl, ioctl_value, owned};

use super::asm::{self, Asm};
use super::gic::{DIST, REDIST};
use super::guest::{
    Answer, CODE, Exit, RAM, RAM_BYTES, VECTORS_AT, Vcpu, free_memory, open, set_slot, vm_type,
};
use super::{Check, Env, Outcome, abi, errno_name, holds};

const FILE: &str = "/proc/self/fail-nth";

/// Which allocation of the armed calls is still to fail.
struct Fault {
    left: Cell<u64>,
}

/// How a step ended: with a value, or with the failure that was asked for.
enum Step<T> {
    Done(T),
    NoMemory,
}

impl Fault {
    fn set(&self, n: u64) -> Check<()> {
        let mut options = OpenOptions::new();
        let file = options.write(true).open(FILE);
        let text = n.to_string();
        let done = file.and_then(|mut f| std::io::Write::write_all(&mut f, text.as_bytes()));
        done.map_err(|e| format!("{FILE}: {e}"))
    }

    /// Makes a call while the fault is armed: it is granted, or ENOMEM because an allocation failed.
    fn armed<T>(&self, what: &str, call: impl FnOnce() -> Answer<T>) -> Check<Step<T>> {
        let before = self.left.get();
        self.set(before)?;
        let answer = call();
        let left = fs::read_to_string(FILE).map_err(|e| format!("{FILE}: {e}"))?;
        self.set(0)?;
        let left = left
            .trim()
            .parse()
            .map_err(|e| format!("{FILE}: {left:?}: {e}"))?;
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
        let fault = Fault { left: Cell::new(n) };
        let end = life(&fault, ram).map_err(|why| format!("allocation {n} failed: {why}"))?;
        if matches!(end, Step::Done(())) && fault.left.get() > 0 {
            return Ok(n - 1);
        }
    }
    Err("a thousand allocations were not enough".into())
}

pub(super) fn each_allocation(env: &Env) -> Outcome {
    // Debian's Linux is built without; there is then nothing to ask it.
    if !env.umbra && fs::metadata(FILE).is_err() {
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
    free_memory()?;
    sweep(&ram)?;
    let before = free_memory()?;
    sweep(&ram)?;
    let lost = before - free_memory()?;
    holds(lost <= 0, || {
        format!("{lost} KiB are gone after {first} failures")
    })
}
