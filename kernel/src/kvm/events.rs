//! What a vCPU does, as events (`crate::trace`). Nothing is computed here unless events are recorded.

use umbra_abort::{Stage2Kind, World};
use umbra_arm64::esr::WfxKind;
use umbra_arm64::sysreg::{Reg, SysReg};
use umbra_arm64::{Esr, GuestFault, Gva, Hpfar, Ipa, L2Ipa, Syndrome, Translation};
use umbra_hw::guest::{Cause, Exit, Frame};
use umbra_kvm_abi::exit::Exit as VmmExit;
use umbra_linux::Errno;
use umbra_nested::shadow::{ContextId, ContextKey};
use umbra_trace::{
    Bytes, Event, ExitKind, How, Injected, MmioBy, MmioKind, NestedException, Owner, Resolution,
    Rights, SeaPath, Shadowed, Storey, UnmapReason,
};
use umbra_vgic::Vgic;

use super::memory::Memory;
use super::nested::{Exception, Fill};
use super::sea::Place;
use super::vcpu::{State, Vcpu};
use super::vm::Vm;
use crate::trace::{self, Who};

fn storey(world: World) -> Storey {
    match world {
        World::Plain => Storey::Guest,
        World::VirtualEl2 => Storey::VirtualEl2,
        World::Nested => Storey::Nested,
    }
}

/// The number of the VM whose own tables this VTTBR_EL2 names.
pub(super) fn vm_number(vttbr: u64) -> u16 {
    (vttbr >> 48) as u16
}

/// Records an event about what a vCPU runs. `event` is called only where events are recorded, and away
/// from the code around: what it needs is to be moved into it.
#[inline(always)]
fn record(vcpu: &Vcpu, world: World, event: impl FnOnce() -> Event) {
    if trace::is_on() {
        outlined(vcpu, world, event);
    }
}

#[cold]
#[inline(never)]
fn outlined(vcpu: &Vcpu, world: World, event: impl FnOnce() -> Event) {
    let who = Who::guest(storey(world), vcpu.id as u16, vm_number(vcpu.vm.vttbr()));
    trace::record(who, event);
}

/// Right before the guest runs (`None`) or right after: the exit, and what hardware says it is about.
/// Nothing that handles an exit has to look whether events are recorded for that.
#[cold]
#[inline(never)]
pub(super) fn edge(vcpu: &Vcpu, world: World, frame: &Frame, cause: Option<Cause>) {
    let pc = frame.pc;
    let record = |event| outlined(vcpu, world, move || event);
    let Some(cause) = cause else {
        return record(Event::Entry { pc });
    };
    let (kind, [esr, far, hpfar]) = match cause.read() {
        Exit::Irq => (ExitKind::Irq, [0; 3]),
        Exit::SError { esr } => (ExitKind::SError, [esr, 0, 0]),
        Exit::Sync { esr, far, hpfar } => (ExitKind::Trap, [esr, far, hpfar]),
    };
    record(Event::Exit {
        kind,
        ec: esr >> 26 & 0x3f,
        pc,
        esr,
    });
    if kind != ExitKind::Trap {
        return;
    }
    let x = &frame.x;
    match Esr::new(esr).syndrome() {
        Syndrome::Wfx(wfx) => record(Event::Wfx {
            pc,
            is_wfe: matches!(wfx.kind, WfxKind::Wfe | WfxKind::Wfet),
        }),
        Syndrome::Hvc(immediate) | Syndrome::Smc(immediate) => record(Event::Hvc {
            pc,
            function: x[0],
            immediate: immediate.into(),
        }),
        Syndrome::SysReg(trap) => {
            record(Event::SysAccess {
                pc,
                is_write: !trap.read,
                register: trap.reg.id().into(),
                value: x.get(usize::from(trap.rt)).copied().unwrap_or(0),
            });
        }
        Syndrome::DataAbort { .. } | Syndrome::InstructionAbort { .. } => {
            record(Event::GuestFault {
                pc,
                esr,
                gva: Gva::new(far),
                ipa: Hpfar::new(hpfar).page::<Ipa>().raw() | far & 0xfff,
            });
        }
        _ => {}
    }
}

/// What is done about a stage-2 fault, where no other event says so: a mapping and a device access have
/// events of their own.
pub(super) fn resolved(
    vcpu: &Vcpu,
    state: &State,
    l2: Option<L2Ipa>,
    ipa: Option<Ipa>,
    resolution: Resolution,
) {
    record(vcpu, state.world, move || Event::Resolved {
        l2,
        ipa,
        resolution,
    });
}

/// How an entry comes to be that a fault of this kind asks for.
pub(super) fn how(kind: Stage2Kind, write: bool, exec: bool, walk: bool) -> How {
    match (kind, walk, exec, write) {
        (Stage2Kind::Permission, ..) => How::Permission,
        (_, true, ..) => How::Walk,
        (_, _, true, _) => How::Fetch,
        (_, _, _, true) => How::Store,
        (_, _, _, false) => How::Load,
    }
}

/// The VM's own table now maps `ipa`.
pub(super) fn mapped(vcpu: &Vcpu, memory: &mut Memory, ipa: Ipa, how: How) {
    if !trace::is_on() {
        return;
    }
    if let Some((ipa, pa, bytes)) = memory.leaf_at(ipa) {
        record(vcpu, World::Plain, move || Event::Map {
            l2: None,
            ipa,
            pa,
            bytes: Bytes(bytes),
            how,
            context: 0,
        });
    }
}

/// A shadow now has the leaf.
#[inline(always)]
pub(super) fn shadow_mapped(vcpu: &Vcpu, context: ContextId, leaf: &Fill, how: How) {
    record(vcpu, World::Nested, move || Event::Map {
        l2: Some(leaf.at),
        ipa: leaf.ipa,
        pa: leaf.pa,
        bytes: Bytes(leaf.size.bytes()),
        how,
        context: context.number(),
    });
}

/// KVM_RUN returns.
#[inline(always)]
pub(super) fn leave(vcpu: &Vcpu, state: &State, thread: u64, exit: Result<&VmmExit, Errno>) {
    record(vcpu, state.world, move || Event::UserspaceExit {
        reason: exit.map_or(0, VmmExit::reason),
        errno: exit.err().map_or(0, |errno| errno.code().into()),
        thread,
    });
}

/// The vCPU waited since `since`, in ticks.
#[inline(always)]
pub(super) fn woken(vcpu: &Vcpu, since: u64) {
    record(vcpu, World::Plain, move || Event::Wakeup {
        ticks: umbra_hw::timer::ticks().saturating_sub(since),
    });
}

/// A device access; `None` for what the VMM has to answer.
#[inline(always)]
pub(super) fn mmio(vcpu: &Vcpu, state: &State, gpa: Ipa, len: u32, data: Option<u64>, by: MmioBy) {
    #[cold]
    #[inline(never)]
    fn told(vcpu: &Vcpu, world: World, gpa: Ipa, len: u32, data: Option<u64>, by: MmioBy) {
        outlined(vcpu, world, move || Event::Mmio {
            kind: match (data, by) {
                (Some(_), _) => MmioKind::Write,
                (None, MmioBy::Vmm) => MmioKind::ReadUnsatisfied,
                (None, _) => MmioKind::Read,
            },
            len,
            gpa,
            value: data.unwrap_or(0),
            by,
        });
    }
    if trace::is_on() {
        told(vcpu, state.world, gpa, len, data, by);
    }
}

/// An exception that umbra makes for a guest.
#[inline(always)]
pub(super) fn inject(vcpu: &Vcpu, state: &State, kind: Injected, esr: u64, far: Option<u64>) {
    record(vcpu, state.world, move || Event::Inject {
        kind,
        esr,
        far: far.unwrap_or(0),
    });
}

/// A memory error, and which way it goes.
#[inline(always)]
pub(super) fn sea(
    vcpu: &Vcpu,
    state: &State,
    esr: Esr,
    gva: Option<Gva>,
    place: &Place,
    owner: Owner,
    path: SeaPath,
) {
    record(vcpu, state.world, move || Event::Sea {
        esr: esr.raw(),
        gva,
        ipa: place.ipa,
        l2: place.below,
        owner,
        path,
    });
}

/// An interrupt line of a VM is driven; `vcpu` is the one whose a private interrupt is.
#[inline(always)]
pub(super) fn line(vm: &Vm, vcpu: usize, irq: u32, level: bool) {
    if trace::is_on() {
        driven(vm, vcpu, irq, level);
    }
}

#[cold]
#[inline(never)]
fn driven(vm: &Vm, vcpu: usize, irq: u32, level: bool) {
    let who = Who::guest(Storey::Guest, vcpu as u16, vm_number(vm.vttbr()));
    trace::record(who, || Event::VgicLine {
        vcpu: vcpu as u32,
        irq,
        level,
    });
}

/// The lines of private interrupts that umbra drives itself, a bit each, are about to be as `high` says:
/// those that move.
#[inline(always)]
pub(super) fn timer_lines(vcpu: &Vcpu, vgic: &Vgic, which: u32, high: u32) {
    if trace::is_on() {
        moved(vcpu, vgic, which, high);
    }
}

#[cold]
#[inline(never)]
fn moved(vcpu: &Vcpu, vgic: &Vgic, which: u32, high: u32) {
    let moved = (vgic.line_levels(vcpu.index(), 0) ^ high) & which;
    for irq in (0..32).filter(|irq| moved >> irq & 1 != 0) {
        driven(&vcpu.vm, vcpu.index(), irq, high >> irq & 1 != 0);
    }
}

/// The VM's own table no longer maps `bytes` at `base`, nor does any shadow.
pub(super) fn unmapped(vttbr: u64, base: Ipa, bytes: u64, reason: UnmapReason) {
    let who = Who::guest(Storey::Guest, 0, vm_number(vttbr));
    trace::record(who, || Event::Unmap {
        context: 0,
        start: base.raw(),
        bytes: Bytes(bytes),
        reason,
    });
}

/// A shadow of VM number `vm` begins or ends; its key is what the guest hypervisor says of it.
pub(super) fn shadow(
    vm: u16,
    context: ContextId,
    what: Shadowed,
    key: Option<&ContextKey>,
    hw_vttbr: u64,
) {
    let who = Who::guest(Storey::Nested, 0, vm);
    trace::record(who, || Event::Shadow {
        context: context.number(),
        what,
        vttbr: key.map_or(0, ContextKey::vttbr),
        vtcr: key.map_or(0, ContextKey::vtcr),
        hw_vttbr,
    });
}

/// The guest hypervisor's stage 2 was walked for `l2`.
#[inline(always)]
pub(super) fn walk(vcpu: &Vcpu, l2: L2Ipa, walked: Result<&Translation<Ipa>, &GuestFault>) {
    record(vcpu, World::Nested, move || match walked {
        Ok(found) => Event::Walk {
            l2,
            output: Some(found.output),
            level: i64::from(found.level.number()) as u64,
            bytes: Bytes(found.bytes),
            rights: found.rights.into(),
            status: 0,
        },
        Err(fault) => Event::Walk {
            l2,
            output: None,
            level: fault
                .status()
                .level()
                .map_or(0, |level| i64::from(level.number()) as u64),
            bytes: Bytes(0),
            rights: Rights(0),
            status: fault.status().encode().unwrap_or(0).into(),
        },
    });
}

/// Virtual EL2 returns to what it runs, on shadow `context`.
#[inline(always)]
pub(super) fn nested_entry(vcpu: &Vcpu, pc: u64, context: Option<ContextId>) {
    record(vcpu, World::VirtualEl2, move || {
        let hw = vcpu.hw.lock();
        Event::NestedEret {
            elr: pc,
            spsr: hw.regs.get(Reg::SpsrEl2),
            hcr: hw.regs.get(Reg::HcrEl2),
            context: context.map_or(0, ContextId::number),
        }
    });
}

/// Virtual EL2 takes an exception from what it runs, which was at `pc`.
#[inline(always)]
pub(super) fn nested_exception(vcpu: &Vcpu, pc: u64, exception: Exception) {
    record(vcpu, World::Nested, move || Event::NestedException {
        esr: match exception {
            Exception::Sync { esr, .. } | Exception::SError { esr } => esr,
            Exception::Irq => 0,
        },
        kind: match exception {
            Exception::Sync { .. } => NestedException::Sync,
            Exception::Irq => NestedException::Irq,
            Exception::SError { .. } => NestedException::SError,
        },
        pc,
    });
}

/// The guest hypervisor's TLB maintenance.
#[inline(always)]
pub(super) fn tlbi(vcpu: &Vcpu, op: SysReg, operand: u64) {
    #[cold]
    #[inline(never)]
    fn told(vcpu: &Vcpu, op: SysReg, operand: u64) {
        outlined(vcpu, World::VirtualEl2, move || Event::Tlbi {
            op: op.id().into(),
            operand,
            vmid: (vcpu.hw.lock().regs.get(Reg::VttbrEl2) >> 48) as u32,
        });
    }
    if trace::is_on() {
        told(vcpu, op, operand);
    }
}

/// A vCPU's registers were loaded, or put away. (Its storey is its thread's to know.)
#[inline(always)]
pub(super) fn load(vcpu: &Vcpu, vttbr: u64, loaded: bool) {
    record(vcpu, World::Plain, move || match loaded {
        true => Event::Load { vttbr },
        false => Event::Put { vttbr },
    });
}
