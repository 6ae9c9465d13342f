//! A VM with one page of vectors, room for code, and vCPUs: what nearly every check begins with.
//!
//! ```text
//! 0x4000_0000  data of the check's own, 4 KiB
//! 0x4000_1000  vectors (asm::vectors)
//! 0x4000_2000  code, each program behind the one before; never rewritten
//! ```

use std::cell::Cell;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::Duration;

use kvm_bindings::{
    KVM_ARM_VCPU_PSCI_0_2, KVM_CAP_ARM_VM_IPA_SIZE, KVM_EXIT_ARM_NISV, KVM_EXIT_INTR,
    KVM_EXIT_MMIO, KVM_EXIT_SYSTEM_EVENT, kvm_mp_state, kvm_one_reg, kvm_userspace_memory_region,
    kvm_vcpu_init,
};
use umbra_vmm::kvm::{Region, ThreadId, interrupt, ioctl, ioctl_value, owned, this_thread};

use super::abi::{self, run};
use super::asm::{self, Asm, EXCEPTION, REPORT};
use super::{Check, Outcome, errno_name, granted, refused};

/// Where a machine's memory begins.
pub(crate) const RAM: u64 = 0x4000_0000;
/// Its size.
pub(crate) const RAM_BYTES: usize = 2 << 20;
/// Where its exception vectors lie, from its beginning.
pub(crate) const VECTORS_AT: usize = 0x1000;
/// Where its vectors are.
pub(crate) const VECTORS: u64 = RAM + VECTORS_AT as u64;
/// Where its programs begin.
pub(crate) const CODE: usize = 0x2000;
/// EL1h, DAIF masked.
pub(crate) const EL1H: u64 = 0x3c5;

/// What a call to the kernel answers.
pub(crate) type Answer<T> = Result<T, i32>;

/// Opens /dev/kvm.
pub(crate) fn open() -> Check<OwnedFd> {
    let file = File::options().read(true).write(true).open("/dev/kvm");
    Ok(file.map_err(|e| format!("/dev/kvm: {e}"))?.into())
}

/// The type of an ordinary VM: 40 bits of address, or what the host has.
pub(crate) fn vm_type(kvm: &OwnedFd) -> Check<u64> {
    let bits = ioctl_value(kvm, abi::CHECK_EXTENSION, KVM_CAP_ARM_VM_IPA_SIZE.into());
    let bits = granted(bits, "KVM_CAP_ARM_VM_IPA_SIZE")?;
    Ok(if (32..40).contains(&bits) {
        bits.into()
    } else {
        0
    })
}

/// Creates a VM.
pub(crate) fn create_vm() -> Check<OwnedFd> {
    let kvm = open()?;
    let kind = vm_type(&kvm)?;
    granted(ioctl_value(&kvm, abi::CREATE_VM, kind), "KVM_CREATE_VM").map(owned)
}

/// Creates, changes or deletes a slot.
pub(crate) fn set_slot(
    vm: &OwnedFd,
    slot: u32,
    flags: u32,
    at: u64,
    bytes: u64,
    address: u64,
) -> Answer<u32> {
    let mut region = kvm_userspace_memory_region {
        slot,
        flags,
        guest_phys_addr: at,
        memory_size: bytes,
        userspace_addr: address,
    };
    ioctl(vm, abi::SET_USER_MEMORY_REGION, &mut region)
}

/// A VM with memory.
pub(crate) struct Machine {
    pub(crate) vm: OwnedFd,
    pub(crate) ram: Region,
    next_code: Cell<usize>,
    next_slot: Cell<u32>,
}

impl Machine {
    pub(crate) fn new() -> Check<Self> {
        let machine = Self {
            vm: create_vm()?,
            ram: granted(Region::new(RAM_BYTES), "mmap")?,
            next_code: Cell::new(CODE),
            next_slot: Cell::new(0),
        };
        machine.ram.set_code(VECTORS_AT, &asm::vectors());
        granted(machine.add(&machine.ram, RAM, 0), "the first slot")?;
        Ok(machine)
    }

    /// Makes `region` the VM's memory at `at`, in a new slot. Answers its number.
    pub(crate) fn add(&self, region: &Region, at: u64, flags: u32) -> Answer<u32> {
        let slot = self.next_slot.get();
        set_slot(
            &self.vm,
            slot,
            flags,
            at,
            region.bytes() as u64,
            region.address(0),
        )?;
        self.next_slot.set(slot + 1);
        Ok(slot)
    }

    /// Puts a program into the VM's memory and answers where it begins there.
    pub(crate) fn place(&self, program: &Asm) -> u64 {
        let at = self.next_code.get();
        self.ram.set_code(at, program.words());
        self.next_code
            .set((at + 4 * program.words().len() + 63) & !63);
        RAM + at as u64
    }

    /// A vCPU that was not initialised.
    pub(crate) fn bare_vcpu(&self, id: u64) -> Check<Vcpu> {
        Vcpu::new(&self.vm, id)
    }

    /// A vCPU, ready to run from `entry` at EL1 with the vectors in place.
    pub(crate) fn vcpu(&self, id: u64, entry: u64) -> Check<Vcpu> {
        let vcpu = self.bare_vcpu(id)?;
        granted(vcpu.init(0), "KVM_ARM_VCPU_INIT")?;
        vcpu.start(entry)?;
        Ok(vcpu)
    }

    /// A vCPU with this program.
    pub(crate) fn vcpu_with(&self, id: u64, program: &Asm) -> Check<Vcpu> {
        self.vcpu(id, self.place(program))
    }
}

/// Why KVM_RUN came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Read { at: u64, bytes: u32 },
    Write { at: u64, bytes: u32, data: u64 },
    SystemEvent { kind: u32 },
    Nisv { iss: u64, ipa: u64 },
    Sea(Sea),
    Other { reason: u32 },
}

/// KVM_EXIT_ARM_SEA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sea {
    pub(crate) flags: u64,
    pub(crate) esr: u64,
    pub(crate) gva: u64,
    pub(crate) gpa: u64,
}

const KVM_EXIT_ARM_SEA: u32 = 41;

/// A vCPU and its run page.
pub(crate) struct Vcpu {
    pub(crate) fd: OwnedFd,
    pub(crate) page: Region,
}

impl Vcpu {
    pub(crate) fn new(vm: &OwnedFd, id: u64) -> Check<Self> {
        let fd = granted(ioctl_value(vm, abi::CREATE_VCPU, id), "KVM_CREATE_VCPU").map(owned)?;
        Self::of(fd)
    }

    /// The vCPU of this file.
    pub(crate) fn of(fd: OwnedFd) -> Check<Self> {
        let page = granted(Region::of_file(&fd, 4096), "mmap of the run page")?;
        Ok(Self { fd, page })
    }

    /// KVM_ARM_VCPU_INIT with PSCI and `more` features of the first word.
    pub(crate) fn init(&self, more: u32) -> Answer<u32> {
        let mut init = kvm_vcpu_init {
            target: 5,
            ..Default::default()
        };
        init.features[0] = 1 << KVM_ARM_VCPU_PSCI_0_2 | more;
        self.init_with(&mut init)
    }

    pub(crate) fn init_with(&self, init: &mut kvm_vcpu_init) -> Answer<u32> {
        ioctl(&self.fd, abi::VCPU_INIT, init)
    }

    /// Sets the registers for a start at `entry`; the rest stays.
    pub(crate) fn start(&self, entry: u64) -> Outcome {
        self.set(abi::sys(asm::VBAR_EL1), VECTORS)?;
        self.set(abi::sys(asm::CPACR_EL1), 3 << 20)?;
        self.set(abi::PSTATE, EL1H)?;
        self.set(abi::PC, entry)
    }

    /// Completes the access that the last exit was about, without running the guest.
    pub(crate) fn complete(&self) -> Outcome {
        self.set_immediate_exit(1);
        refused(self.run(), libc::EINTR, "KVM_RUN with immediate_exit")?;
        self.set_immediate_exit(0);
        Ok(())
    }

    /// Goes on elsewhere.
    pub(crate) fn go_to(&self, entry: u64) -> Outcome {
        self.complete()?;
        self.set(abi::PC, entry)
    }

    pub(crate) fn try_get(&self, id: u64) -> Answer<u64> {
        let mut bytes = [0u64; 8];
        assert!(abi::bytes_of(id) <= 64);
        let addr = bytes.as_mut_ptr() as u64;
        ioctl(&self.fd, abi::GET_ONE_REG, &mut kvm_one_reg { id, addr })?;
        Ok(std::hint::black_box(bytes)[0])
    }

    pub(crate) fn try_set(&self, id: u64, value: u64) -> Answer<u32> {
        let bytes = [value, 0, 0, 0, 0, 0, 0, 0];
        let addr = std::hint::black_box(&bytes).as_ptr() as u64;
        ioctl(&self.fd, abi::SET_ONE_REG, &mut kvm_one_reg { id, addr })
    }

    pub(crate) fn get(&self, id: u64) -> Check<u64> {
        self.try_get(id)
            .map_err(|e| format!("KVM_GET_ONE_REG {id:#x}: {}", errno_name(e)))
    }

    pub(crate) fn set(&self, id: u64, value: u64) -> Outcome {
        self.try_set(id, value)
            .map(drop)
            .map_err(|e| format!("KVM_SET_ONE_REG {id:#x} to {value:#x}: {}", errno_name(e)))
    }

    pub(crate) fn x(&self, n: u64) -> Check<u64> {
        self.get(abi::x(n))
    }

    pub(crate) fn mp_state(&self) -> Check<u32> {
        let mut state = kvm_mp_state::default();
        granted(
            ioctl(&self.fd, abi::GET_MP_STATE, &mut state),
            "KVM_GET_MP_STATE",
        )?;
        Ok(state.mp_state)
    }

    pub(crate) fn set_mp_state(&self, mp_state: u32) -> Answer<u32> {
        ioctl(&self.fd, abi::SET_MP_STATE, &mut kvm_mp_state { mp_state })
    }

    /// KVM_RUN.
    pub(crate) fn run(&self) -> Answer<Exit> {
        ioctl_value(&self.fd, abi::RUN, 0)?;
        Ok(self.exit())
    }

    /// What the run page says.
    pub(crate) fn exit(&self) -> Exit {
        let page = &self.page;
        match page.u32(run::EXIT_REASON) {
            KVM_EXIT_MMIO => {
                let (at, bytes) = (page.u64(run::MMIO_ADDR), page.u32(run::MMIO_LEN));
                match page.u8(run::MMIO_IS_WRITE) {
                    0 => Exit::Read { at, bytes },
                    _ => Exit::Write {
                        at,
                        bytes,
                        data: page.u64(run::MMIO_DATA),
                    },
                }
            }
            KVM_EXIT_SYSTEM_EVENT => Exit::SystemEvent {
                kind: page.u32(run::EVENT_TYPE),
            },
            KVM_EXIT_ARM_NISV => Exit::Nisv {
                iss: page.u64(run::NISV_ISS),
                ipa: page.u64(run::NISV_IPA),
            },
            KVM_EXIT_ARM_SEA => Exit::Sea(Sea {
                flags: page.u64(run::SEA_FLAGS),
                esr: page.u64(run::SEA_ESR),
                gva: page.u64(run::SEA_GVA),
                gpa: page.u64(run::SEA_GPA),
            }),
            reason => Exit::Other { reason },
        }
    }

    pub(crate) fn reason_is_intr(&self) -> bool {
        self.page.u32(run::EXIT_REASON) == KVM_EXIT_INTR
    }

    /// Runs until an exit, which it must be.
    pub(crate) fn exits(&self) -> Check<Exit> {
        self.run()
            .map_err(|e| format!("KVM_RUN: {}", errno_name(e)))
    }

    /// Runs until the guest reports a value.
    pub(crate) fn report(&self) -> Check<u64> {
        match self.exits()? {
            Exit::Write {
                at: REPORT, data, ..
            } => Ok(data),
            Exit::Write {
                at: EXCEPTION,
                data,
                ..
            } => Err(format!(
                "the guest took exception {data}: ESR {:#x} FAR {:#x} ELR {:#x}",
                self.x(21)?,
                self.x(22)?,
                self.x(23)?
            )),
            other => Err(format!("{other:x?} instead of a report")),
        }
    }

    /// Runs until the guest takes an exception: (vector, ESR, FAR, ELR).
    pub(crate) fn exception(&self) -> Check<Exception> {
        match self.exits()? {
            Exit::Write {
                at: EXCEPTION,
                data: vector,
                ..
            } => Ok(Exception {
                vector,
                esr: self.x(21)?,
                far: self.x(22)?,
                elr: self.x(23)?,
            }),
            other => Err(format!("{other:x?} instead of an exception")),
        }
    }

    /// The next KVM_RUN ends at once.
    pub(crate) fn set_immediate_exit(&self, value: u8) {
        self.page.set_u8(run::IMMEDIATE_EXIT, value);
    }

    /// Answers an MMIO read.
    pub(crate) fn answer(&self, value: u64) {
        self.page.set_u64(run::MMIO_DATA, value);
    }
}

/// An exception that the guest took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exception {
    /// Number of the entry: 4 is synchronous from EL1h, 7 SError, 8 synchronous from EL0.
    pub(crate) vector: u64,
    pub(crate) esr: u64,
    pub(crate) far: u64,
    pub(crate) elr: u64,
}

/// A thread whose KVM_RUN can be ended.
pub(crate) struct Runner<'scope, T> {
    thread: ScopedJoinHandle<'scope, T>,
    id: Arc<OnceLock<ThreadId>>,
}

impl<'scope, T: Send + 'scope> Runner<'scope, T> {
    /// Does `work` on a new thread.
    pub(crate) fn spawn<'env>(
        scope: &'scope Scope<'scope, 'env>,
        work: impl FnOnce() -> T + Send + 'scope,
    ) -> Self {
        let id = Arc::new(OnceLock::new());
        let own = id.clone();
        let thread = scope.spawn(move || {
            own.get_or_init(this_thread);
            work()
        });
        Self { thread, id }
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for its end.
    pub(crate) fn join(self) -> Check<T> {
        self.thread
            .join()
            .map_err(|_| "a thread panicked".to_owned())
    }

    /// Ends its KVM_RUNs, again and again, until its work is done.
    pub(crate) fn finish(self) -> Check<T> {
        while !self.is_finished() {
            thread::sleep(Duration::from_millis(2));
            if let Some(id) = self.id.get() {
                interrupt(*id);
            }
        }
        self.thread
            .join()
            .map_err(|_| "a thread panicked".to_owned())
    }
}

/// Does `work` on a thread that is interrupted every few milliseconds, so that no KVM_RUN in it lasts.
pub(crate) fn kicked<T: Send>(work: impl FnOnce() -> T + Send) -> Check<T> {
    thread::scope(|scope| Runner::spawn(scope, work).finish())
}

const MEMINFO: &str = "/proc/meminfo";
/// How often memory may change while it is looked at.
const LOOKS: usize = 1000;

/// What `text`, which is of `file`, says of `what`: KiB, most often.
fn number_of(text: &str, what: &str, file: &str) -> Check<i64> {
    let line = text
        .lines()
        .find(|line| line.split(':').next() == Some(what));
    let number = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    number.ok_or_else(|| format!("no {what} in {file}"))
}

/// All that /proc/meminfo says.
pub(crate) fn meminfo_text() -> Check<String> {
    std::fs::read_to_string(MEMINFO).map_err(|e| format!("{MEMINFO}: {e}"))
}

/// What /proc/meminfo says of `what`, in KiB.
pub(crate) fn meminfo(text: &str, what: &str) -> Check<i64> {
    number_of(text, what, MEMINFO)
}

/// `MemFree` of /proc/meminfo, in KiB.
pub(crate) fn free_memory() -> Check<i64> {
    meminfo(&meminfo_text()?, "MemFree")
}

/// What everybody else has of the kernel's memory: this program's own pages and tables come and go as its
/// allocator likes, and are counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KernelMemory {
    /// Frames that are free, or the kernel's for good (its heap, its own tables), or this program's, in KiB.
    pub(crate) frames: i64,
    /// Kernel stacks, in KiB.
    pub(crate) stacks: i64,
    /// What of the heap is in use, in bytes.
    pub(crate) heap: i64,
}

/// What umbra's /proc/meminfo says, and its /proc/self/status of this program.
pub(crate) fn memory_of_kernel() -> Check<KernelMemory> {
    let own = || {
        let status = "/proc/self/status";
        let text = std::fs::read_to_string(status).map_err(|e| format!("{status}: {e}"))?;
        let of = |what| number_of(&text, what, status);
        Ok::<_, String>(of("VmRSS")? + of("VmPTE")?)
    };
    // Reading takes memory of one's own too: the three looks agree when nothing changed from one to the next.
    for _ in 0..LOOKS {
        let before = own()?;
        let text = meminfo_text()?;
        if own()? != before {
            continue;
        }
        let of = |what| meminfo(&text, what);
        return Ok(KernelMemory {
            frames: of("MemFree")? + of("Slab")? + of("KernelTables")? + before,
            stacks: of("KernelStack")?,
            heap: of("KernelHeap")?,
        });
    }
    Err(format!(
        "this program's memory changed {LOOKS} times while it was looked at"
    ))
}

/// What the kernel has when nothing is on its way any more: a child's last thread leaves its stack after it was
/// waited for.
pub(crate) fn at_rest() -> Check<KernelMemory> {
    let mut before = memory_of_kernel()?;
    for _ in 0..100 {
        thread::sleep(Duration::from_millis(20));
        let now = memory_of_kernel()?;
        if now == before {
            return Ok(now);
        }
        before = now;
    }
    Err("memory never comes to rest".into())
}
