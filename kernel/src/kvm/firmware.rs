//! HVC and SMC: PSCI, SMCCC and the few services behind them.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::OnceCell;
use core::sync::atomic::Ordering;

use umbra_arm64::sysreg::Reg;
use umbra_kvm_abi::exit::{
    Exit as VmmExit, KVM_HYPERCALL_EXIT_SMC, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN,
    KVM_SYSTEM_EVENT_SUSPEND,
};
use umbra_kvm_abi::psci::{self, INTERNAL_FAILURE, PsciAction, SUCCESS, VcpuView};
use umbra_kvm_abi::smccc::{self, SmcccAction};
use umbra_kvm_abi::smccc_filter::Handler;
use umbra_kvm_abi::vcpu::Power;

use super::pvtime;
use super::run::Next;
use super::vcpu::{PowerState, Start, State, Vcpu, request};
use super::vm::Vm;

/// The VM's vCPUs, listed when a call first asks for one: most never do.
struct View<'a> {
    vm: &'a Vm,
    vcpus: OnceCell<Vec<Arc<Vcpu>>>,
}

impl View<'_> {
    fn vcpus(&self) -> &[Arc<Vcpu>] {
        self.vcpus.get_or_init(|| self.vm.all_vcpus())
    }
}

impl VcpuView for View<'_> {
    fn count(&self) -> usize {
        self.vcpus().len()
    }
    fn mpidr(&self, index: usize) -> u64 {
        self.vcpus().get(index).map_or(0, |vcpu| vcpu.mpidr())
    }
    fn is_off(&self, index: usize) -> bool {
        self.vcpus()
            .get(index)
            .is_some_and(|vcpu| vcpu.power.lock().power == Power::Stopped)
    }
}

/// Whether a call is one that nobody answers and the VMM has no say in; then that is its answer.
#[inline(always)]
pub(super) fn is_nobodys(vcpu: &Vcpu, state: &mut State) -> bool {
    let function = state.frame.x[0] as u32;
    let nobodys = !smccc::has_owner(function) && !vcpu.vm.filters.load(Ordering::Acquire);
    if nobodys {
        state.frame.x[0] = smccc::NOT_SUPPORTED;
    }
    nobodys
}

/// A call with its function in x0. PC is past the instruction.
pub(super) fn call(vcpu: &Arc<Vcpu>, state: &mut State, smc: bool) -> Next {
    let [x0, x1, x2, x3, ..] = state.frame.x;
    if vcpu.vm.filters.load(Ordering::Acquire) {
        let handler = vcpu.vm.filter.lock().handler(x0 as u32);
        match handler {
            Handler::Kernel => {}
            Handler::Nobody => {
                state.frame.x[0] = smccc::NOT_SUPPORTED;
                return Next::Guest;
            }
            Handler::Vmm => {
                return Next::Vmm(VmmExit::Hypercall {
                    nr: x0 & 0xffff_ffff,
                    flags: if smc { KVM_HYPERCALL_EXIT_SMC } else { 0 },
                });
            }
        }
    }
    let view = View {
        vm: &vcpu.vm,
        vcpus: OnceCell::new(),
    };
    let mut services = *vcpu.vm.services.lock();
    if psci::is_psci(x0 as u32) {
        services.psci.system_suspend = vcpu.vm.options.lock().system_suspend;
    }
    match smccc::call([x0, x1, x2, x3], &services, vcpu.index(), &view) {
        SmcccAction::Return(value) => {
            state.frame.x[0] = value;
            Next::Guest
        }
        SmcccAction::Return4(values) => {
            state.frame.x[..4].copy_from_slice(&values);
            Next::Guest
        }
        SmcccAction::Random { bits, wide } => {
            let mut random = [0; 24];
            crate::files::random::fill(&mut random);
            let word = |n: usize| u64::from_le_bytes(core::array::from_fn(|at| random[8 * n + at]));
            let random = [word(0), word(1), word(2)];
            state.frame.x[..4].copy_from_slice(&smccc::entropy(bits, wide, random));
            Next::Guest
        }
        SmcccAction::StolenTimeIsThere => {
            state.frame.x[0] = match state.stolen {
                Some(_) => 0,
                None => smccc::NOT_SUPPORTED,
            };
            Next::Guest
        }
        SmcccAction::StolenTime => {
            let at = pvtime::begin(vcpu, state);
            state.frame.x[0] = at.map_or(smccc::NOT_SUPPORTED, |at| at.raw());
            Next::Guest
        }
        SmcccAction::Clock { physical } => {
            let ticks = umbra_hw::timer::ticks();
            let time = &vcpu.vm.time;
            let offset = if physical { time.phys() } else { time.virt() };
            let count = ticks.wrapping_sub(offset);
            let clock = smccc::clock(crate::sys::time::realtime_at(ticks), count);
            state.frame.x[..4].copy_from_slice(&clock);
            Next::Guest
        }
        SmcccAction::Psci(action) => psci(vcpu, state, &view, action),
    }
}

fn psci(vcpu: &Arc<Vcpu>, state: &mut State, view: &View<'_>, action: PsciAction) -> Next {
    match action {
        PsciAction::Return(value) => {
            state.frame.x[0] = value as u64;
            Next::Guest
        }
        PsciAction::Suspend => {
            state.frame.x[0] = SUCCESS as u64;
            Next::Wait
        }
        PsciAction::CpuOff => {
            *vcpu.power.lock() = PowerState {
                power: Power::Stopped,
                start: None,
            };
            vcpu.kick(request::POWER);
            Next::Interrupt
        }
        PsciAction::CpuOn {
            target,
            entry,
            context,
        } => {
            // The new vCPU begins with the caller's endianness, as Linux does.
            let big_endian = vcpu.hw.lock().regs.get(Reg::SctlrEl1) >> 25 & 1 == 1;
            if let Some(target) = view.vcpus().get(target) {
                let start = Start {
                    entry,
                    context,
                    big_endian,
                };
                *target.power.lock() = PowerState {
                    power: Power::Runnable,
                    start: Some(start),
                };
                target.kick(request::POWER);
            }
            state.frame.x[0] = SUCCESS as u64;
            Next::Guest
        }
        PsciAction::SystemOff { flags } => {
            system_event(&vcpu.vm, state, KVM_SYSTEM_EVENT_SHUTDOWN, flags)
        }
        PsciAction::SystemReset { flags } => {
            system_event(&vcpu.vm, state, KVM_SYSTEM_EVENT_RESET, flags)
        }
        PsciAction::SystemSuspend { entry, context } => {
            let start = Start {
                entry,
                context,
                big_endian: false,
            };
            *vcpu.power.lock() = PowerState {
                power: Power::Suspended,
                start: Some(start),
            };
            Next::Vmm(VmmExit::SystemEvent {
                kind: KVM_SYSTEM_EVENT_SUSPEND,
                flags: 0,
            })
        }
    }
}

/// The whole VM stops; the VMM decides what that means. A VMM that runs the vCPU all the same finds
/// the call failed.
fn system_event(vm: &Vm, state: &mut State, kind: u32, flags: u64) -> Next {
    for vcpu in vm.all_vcpus() {
        vcpu.power.lock().power = Power::Stopped;
        vcpu.kick(request::POWER);
    }
    state.frame.x[0] = INTERNAL_FAILURE as u64;
    Next::Vmm(VmmExit::SystemEvent { kind, flags })
}
