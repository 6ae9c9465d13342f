//! Interrupts from the VMM: lines, event descriptors; and event descriptors from the guest.

use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use kvm_bindings::{kvm_ioeventfd, kvm_irqfd};
use umbra_vmm::kvm::{Region, ioctl};
use vmm_sys_util::eventfd::EventFd;

use super::asm::{
    Access, Asm, Cond, ICC_EOIR1_EL1, ICC_IAR1_EL1, ICC_IGRPEN1_EL1, ICC_PMR_EL1, ICC_SRE_EL1,
    REPORT,
};
use super::gic::{DIST, REDIST, machine};
use super::guest::{Answer, Exit, Machine, Runner, Vcpu};
use super::{Check, Env, Outcome, abi, granted, refused, same};

const DOORBELL: u64 = 0x3000_0000;
const PPI: u64 = 20;
const SPI: u64 = 40;

fn store(asm: &mut Asm, at: u64, value: u64) {
    asm.mov(0, value).mov(1, at).access(Access::StrW, 0, 1);
}

/// Sets the GIC up for the interrupts of these checks; then reports each that WFI ends with. The
/// interrupts stay masked in PSTATE: WFI wakes all the same, and no vector is needed.
fn listener() -> Asm {
    listening_to(Listening::Asleep, |_| ())
}

/// The same, with these tables for LPIs.
pub(super) fn lpi_listener(properties: u64, pending: u64) -> Asm {
    listening_to(Listening::Asleep, |asm| {
        store(asm, REDIST + 0x70, properties | 15); // GICR_PROPBASER: 16 bits of INTID
        store(asm, REDIST + 0x74, 0);
        store(asm, REDIST + 0x78, pending); // GICR_PENDBASER
        store(asm, REDIST + 0x7c, 0);
        store(asm, REDIST, 1); // GICR_CTLR.EnableLPIs
    })
}

/// How a listener waits for its interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listening {
    /// WFI.
    Asleep,
    /// It looks again and again, without an exit.
    Awake,
    /// Not at all: it stops.
    Not,
}

/// Enables a private interrupt of the first vCPU.
pub(super) fn enable_ppi(asm: &mut Asm, ppi: u32) {
    store(asm, REDIST + 0x1_0100, 1 << ppi);
}

/// Sets the GIC up, does `more`, and waits for interrupts.
pub(super) fn listening_to(listening: Listening, more: impl FnOnce(&mut Asm)) -> Asm {
    let mut asm = Asm::new();
    asm.mov(0, 7)
        .msr(ICC_SRE_EL1, 0)
        .isb()
        .mov(0, 0xf0)
        .msr(ICC_PMR_EL1, 0);
    asm.mov(0, 1).msr(ICC_IGRPEN1_EL1, 0).isb();
    store(&mut asm, DIST, 0x12); // GICD_CTLR: ARE, group 1
    store(&mut asm, REDIST + 0x14, 0); // GICR_WAKER
    let sgi = REDIST + 0x1_0000;
    store(&mut asm, sgi + 0x80, 0xffff_ffff); // GICR_IGROUPR0
    store(&mut asm, sgi + 0x100, 1 << PPI);
    store(&mut asm, DIST + 0x84, 0xffff_ffff); // GICD_IGROUPR1
    store(&mut asm, DIST + 0xc08, 2 << (2 * (SPI - 32))); // GICD_ICFGR2: edge
    store(&mut asm, DIST + 0x6000 + 8 * SPI, 0); // GICD_IROUTER
    store(&mut asm, DIST + 0x104, 1 << (SPI - 32));
    if listening == Listening::Not {
        more(&mut asm);
        asm.stop();
        return asm;
    }
    // Awake, there is no exit between what comes and the interrupt.
    if listening == Listening::Awake {
        asm.dsb().mov(0, 0x1000).report(0);
        more(&mut asm);
    } else {
        more(&mut asm);
        asm.dsb().mov(0, 0x1000).report(0);
    }
    let top = asm.here();
    if listening == Listening::Asleep {
        asm.wfi();
    }
    // WFI may end for nothing: the spurious INTID.
    let real = asm
        .mrs(0, ICC_IAR1_EL1)
        .dsb()
        .mov(2, 1023)
        .cmp(0, 2)
        .if_cond(Cond::NotEqual);
    asm.back(top)
        .land(real)
        .report(0)
        .msr(ICC_EOIR1_EL1, 0)
        .isb()
        .back(top);
    asm
}

fn line(machine: &Machine, irq: u64, level: u64) -> Answer<u32> {
    ioctl(&machine.vm, abi::IRQ_LINE, &mut (level << 32 | irq))
}

/// Runs `vcpu` on a thread of its own until it has reported `wanted`, one report after another, while
/// `cause` is called for each from here, some time later: long enough for the guest to sleep.
pub(super) fn each_wakes(
    vcpu: Vcpu,
    wanted: &[u64],
    mut cause: impl FnMut(usize) -> Outcome,
) -> Outcome {
    thread::scope(|scope| {
        let (seen, reports) = std::sync::mpsc::channel();
        let count = wanted.len();
        let runner = Runner::spawn(scope, move || -> Outcome {
            for _ in 0..count {
                let report = vcpu.report()?;
                if seen.send(report).is_err() {
                    break;
                }
            }
            Ok(())
        });
        let mut go = || -> Outcome {
            for (at, wanted) in wanted.iter().enumerate() {
                thread::sleep(Duration::from_millis(5));
                cause(at)?;
                let report = reports.recv_timeout(Duration::from_secs(10));
                let report =
                    report.map_err(|_| format!("{wanted} was not delivered (number {at})"))?;
                same(report, *wanted, "the interrupt")?;
            }
            Ok(())
        };
        let done = go();
        drop(reports);
        let ran = runner.finish()?;
        done.and(ran)
    })
}

fn listening() -> Check<(Machine, super::gic::Gic, Vcpu)> {
    let (machine, gic, mut vcpus) = machine(&[listener()])?;
    let vcpu = vcpus.pop().ok_or("no vCPU")?;
    same(vcpu.report()?, 0x1000, "the guest's first word")?;
    Ok((machine, gic, vcpu))
}

/// A level: it comes again until the line falls.
pub(super) fn wfi_and_ppi(_: &Env) -> Outcome {
    let (machine, _gic, vcpu) = listening()?;
    let irq = abi::ppi(0, PPI);
    each_wakes(vcpu, &[PPI, PPI, PPI], |round| match round {
        0 | 2 => granted(line(&machine, irq, 1), "raising the line").map(drop),
        _ => Ok(()),
    })
}

/// An edge: each raise is one interrupt.
pub(super) fn spi(_: &Env) -> Outcome {
    let (machine, _gic, vcpu) = listening()?;
    each_wakes(vcpu, &[SPI; 20], |_| {
        granted(line(&machine, abi::spi(SPI), 1), "raising the line")?;
        granted(line(&machine, abi::spi(SPI), 0), "lowering it").map(drop)
    })
}

/// The vCPU of a private interrupt is named by its id, which need not be its place among the VM's.
pub(super) fn lines_by_id(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let gic = granted(super::gic::Gic::new(&machine), "KVM_CREATE_DEVICE")?;
    let vcpu = machine.vcpu_with(3, &listener())?;
    let _other = machine.vcpu_with(0, &Asm::new())?;
    granted(gic.place(DIST, REDIST), "the frames")?;
    granted(gic.init(), "KVM_DEV_ARM_VGIC_CTRL_INIT")?;
    same(vcpu.report()?, 0x1000, "the guest's first word")?;
    let raise = |id, level| line(&machine, abi::ppi(id, PPI), level);
    refused(raise(1, 1), libc::EINVAL, "a place that is no id")?;
    granted(raise(0, 1), "the other's line")?;
    each_wakes(vcpu, &[PPI], |_| granted(raise(3, 1), "its line").map(drop))
}

pub(super) fn line_errors(_: &Env) -> Outcome {
    let bare = Machine::new()?;
    let _vcpu = bare.vcpu_with(0, Asm::new().stop())?;
    refused(
        line(&bare, abi::spi(SPI), 1),
        libc::ENXIO,
        "an SPI without a GIC",
    )?;
    refused(
        line(&bare, abi::ppi(0, PPI), 1),
        libc::ENXIO,
        "a PPI without a GIC",
    )?;
    let _gic = granted(super::gic::Gic::new(&bare), "KVM_CREATE_DEVICE")?;
    for irq in [abi::spi(SPI), abi::ppi(0, PPI), abi::spi(31)] {
        refused(line(&bare, irq, 1), libc::EBUSY, "before it is initialised")?;
    }
    refused(line(&bare, 7, 1), libc::ENXIO, "a pin that no vCPU has")?;
    let (machine, _gic, _vcpus) = machine(&[Asm::new()])?;
    for (irq, what) in [
        (abi::spi(31), "SPI 31"),
        (abi::spi(96), "an SPI beyond the last"),
        (abi::ppi(0, 15), "PPI 15"),
        (abi::ppi(0, 32), "PPI 32"),
        (abi::ppi(5, PPI), "a PPI of no vCPU"),
        (7 << 24, "an interrupt of no kind"),
    ] {
        refused(line(&machine, irq, 1), libc::EINVAL, what)?;
    }
    Ok(())
}

pub(super) fn irqfd_call(machine: &Machine, fd: u32, gsi: u32, flags: u32) -> Answer<u32> {
    let mut request = kvm_irqfd {
        fd,
        gsi,
        flags,
        ..Default::default()
    };
    ioctl(&machine.vm, abi::IRQFD, &mut request)
}

pub(super) fn event() -> Check<EventFd> {
    EventFd::new(libc::EFD_NONBLOCK).map_err(|e| format!("eventfd: {e}"))
}

pub(super) fn irqfd(_: &Env) -> Outcome {
    let (machine, _gic, vcpu) = listening()?;
    let event = event()?;
    let gsi = SPI as u32 - 32;
    let fd = event.as_raw_fd() as u32;
    granted(irqfd_call(&machine, fd, gsi, 0), "KVM_IRQFD")?;
    each_wakes(vcpu, &[SPI; 20], |_| {
        event.write(1).map_err(|e| format!("eventfd: {e}"))
    })?;
    granted(irqfd_call(&machine, fd, gsi, 1), "unbinding it")?;
    let _ = event.read();
    event.write(1).map_err(|e| format!("eventfd: {e}"))?;
    same(
        event.read().ok(),
        Some(1),
        "the event stays after unbinding",
    )
}

pub(super) fn irqfd_errors(_: &Env) -> Outcome {
    let (machine, _gic, _vcpus) = machine(&[Asm::new()])?;
    let event = event()?;
    let fd = event.as_raw_fd() as u32;
    refused(irqfd_call(&machine, 9999, 8, 0), libc::EBADF, "no file")?;
    let other = machine.vm.as_raw_fd() as u32;
    refused(
        irqfd_call(&machine, other, 8, 0),
        libc::EINVAL,
        "no event descriptor",
    )?;
    refused(
        irqfd_call(&machine, fd, 8, 1 << 7),
        libc::EINVAL,
        "a flag of no meaning",
    )?;
    granted(irqfd_call(&machine, fd, 8, 0), "KVM_IRQFD")?;
    refused(
        irqfd_call(&machine, fd, 8, 0),
        libc::EBUSY,
        "the same again",
    )?;
    granted(irqfd_call(&machine, fd, 8, 1), "unbinding it")?;
    granted(irqfd_call(&machine, fd, 8, 1), "unbinding it again")?;
    granted(irqfd_call(&machine, fd, 8, 0), "binding it again").map(drop)
}

fn ioeventfd_call(machine: &Machine, request: kvm_ioeventfd) -> Answer<u32> {
    let mut request = request;
    ioctl(&machine.vm, abi::IOEVENTFD, &mut request)
}

pub(super) fn ioeventfd(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let mut asm = Asm::new();
    asm.mov(1, DOORBELL);
    for value in [5, 6, 5] {
        asm.mov(0, value).access(Access::StrW, 0, 1);
    }
    asm.add(1, 1, 8).access(Access::StrB, 0, 1).str(0, 1); // any length there
    asm.report(0);
    asm.mov(1, DOORBELL)
        .mov(0, 5)
        .access(Access::StrW, 0, 1)
        .report(0);
    let vcpu = machine.vcpu_with(0, &asm)?;
    let (five, any) = (event()?, event()?);
    let request = kvm_ioeventfd {
        datamatch: 5,
        addr: DOORBELL,
        len: 4,
        fd: five.as_raw_fd(),
        flags: 1,
        ..Default::default()
    };
    granted(
        ioeventfd_call(&machine, request),
        "KVM_IOEVENTFD with a value",
    )?;
    let of_any = kvm_ioeventfd {
        addr: DOORBELL + 8,
        fd: any.as_raw_fd(),
        ..Default::default()
    };
    granted(
        ioeventfd_call(&machine, of_any),
        "KVM_IOEVENTFD of any length",
    )?;
    let six = Exit::Write {
        at: DOORBELL,
        bytes: 4,
        data: 6,
    };
    same(vcpu.exits()?, six, "another value")?;
    same(vcpu.report()?, 5, "the others do not exit")?;
    same(
        (five.read().ok(), any.read().ok()),
        (Some(2), Some(2)),
        "the counts",
    )?;
    let remove = kvm_ioeventfd {
        flags: 1 | 4,
        ..request
    };
    granted(ioeventfd_call(&machine, remove), "removing it")?;
    let exit = Exit::Write {
        at: DOORBELL,
        bytes: 4,
        data: 5,
    };
    same(vcpu.exits()?, exit, "a write after that")?;
    let end = Exit::Write {
        at: REPORT,
        bytes: 8,
        data: 5,
    };
    same(vcpu.exits()?, end, "the end")
}

pub(super) fn ioeventfd_errors(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let event = event()?;
    let good = kvm_ioeventfd {
        addr: DOORBELL,
        len: 4,
        fd: event.as_raw_fd(),
        ..Default::default()
    };
    let call = |request| ioeventfd_call(&machine, request);
    refused(
        call(kvm_ioeventfd { len: 3, ..good }),
        libc::EINVAL,
        "3 bytes",
    )?;
    refused(
        call(kvm_ioeventfd { len: 16, ..good }),
        libc::EINVAL,
        "16 bytes",
    )?;
    refused(
        call(kvm_ioeventfd {
            addr: u64::MAX - 1,
            ..good
        }),
        libc::EINVAL,
        "a wrap",
    )?;
    refused(
        call(kvm_ioeventfd {
            flags: 1 << 9,
            ..good
        }),
        libc::EINVAL,
        "a flag of no meaning",
    )?;
    refused(
        call(kvm_ioeventfd {
            len: 0,
            flags: 1,
            ..good
        }),
        libc::EINVAL,
        "a value of no length",
    )?;
    refused(
        call(kvm_ioeventfd { fd: 9999, ..good }),
        libc::EBADF,
        "no file",
    )?;
    let vm = machine.vm.as_raw_fd();
    refused(
        call(kvm_ioeventfd { fd: vm, ..good }),
        libc::EINVAL,
        "no event descriptor",
    )?;
    refused(
        call(kvm_ioeventfd { flags: 4, ..good }),
        libc::ENOENT,
        "removing what is not there",
    )?;
    granted(call(good), "a good one")?;
    refused(call(good), libc::EEXIST, "the same again")?;
    const MATCH: u32 = 1;
    const PORT: u32 = 2;
    const REMOVE: u32 = 4;
    for (len, flags, what) in [
        (0, 0, "any length where there is one"),
        (4, MATCH, "one value where there is any"),
    ] {
        let other = kvm_ioeventfd { len, flags, ..good };
        refused(call(other), libc::EEXIST, what)?;
    }
    for (len, flags, what) in [(8, 0, "another length"), (4, PORT, "a port")] {
        let other = kvm_ioeventfd { len, flags, ..good };
        granted(call(other), what)?;
        let flags = flags | REMOVE;
        granted(call(kvm_ioeventfd { flags, ..other }), what)?;
        refused(call(kvm_ioeventfd { flags, ..other }), libc::ENOENT, what)?;
    }
    // A value that is not compared is of no consequence.
    let removed = kvm_ioeventfd {
        flags: REMOVE,
        datamatch: 77,
        ..good
    };
    granted(call(removed), "removing it")?;
    for datamatch in [1, 2] {
        let one = kvm_ioeventfd {
            flags: MATCH,
            datamatch,
            ..good
        };
        granted(call(one), "two values at one place")?;
        refused(call(one), libc::EEXIST, "the same value")?;
    }
    refused(call(good), libc::EEXIST, "any value beside them").map(drop)
}

/// KVM_SET_GSI_ROUTING with entries (gsi, kind, chip, pin).
fn route(machine: &Machine, entries: &[[u32; 4]]) -> Answer<()> {
    let room = Region::new(0x2_0000)?;
    room.set_u32(0, entries.len() as u32);
    for (at, [gsi, kind, chip, pin]) in entries.iter().enumerate() {
        let at = 8 + 48 * at;
        room.set_u32(at, *gsi);
        room.set_u32(at + 4, *kind);
        room.set_u32(at + 16, *chip);
        room.set_u32(at + 20, *pin);
    }
    room.ioctl(&machine.vm, abi::SET_GSI_ROUTING, 0).map(drop)
}

pub(super) fn routing(_: &Env) -> Outcome {
    let (machine, _gic, vcpu) = listening()?;
    let (near, far) = (event()?, event()?);
    let own = SPI as u32 - 32;
    for (event, gsi) in [(&near, own), (&far, 777)] {
        let fd = event.as_raw_fd() as u32;
        granted(irqfd_call(&machine, fd, gsi, 0), "KVM_IRQFD")?;
    }
    granted(route(&machine, &[[777, 1, 0, own]]), "GSI 777")?;
    each_wakes(vcpu, &[SPI; 4], |_| {
        // Its own pin leads nowhere any more.
        near.write(1).map_err(|e| format!("eventfd: {e}"))?;
        far.write(1).map_err(|e| format!("eventfd: {e}"))
    })
}

pub(super) fn routing_errors(_: &Env) -> Outcome {
    let (machine, _gic, _vcpus) = machine(&[Asm::new()])?;
    granted(route(&machine, &[]), "no entries")?;
    granted(route(&machine, &[[0, 1, 0, 0], [4095, 1, 0, 987]]), "two")?;
    for (entries, what) in [
        (&[[0, 1, 0, 0], [0, 1, 0, 1]][..], "one GSI twice"),
        (&[[4096, 1, 0, 0]], "GSI 4096"),
        (&[[0, 1, 1, 0]], "another chip"),
        (&[[0, 1, 0, 988]], "pin 988"),
        (&[[0, 0, 0, 0]], "an entry of no kind"),
        (&[[0, 3, 0, 0]], "an entry of another architecture"),
    ] {
        refused(route(&machine, entries), libc::EINVAL, what)?;
    }
    let room = granted(Region::new(0x2_0000), "mmap")?;
    room.set_u32(0, 4097);
    refused(
        room.ioctl(&machine.vm, abi::SET_GSI_ROUTING, 0),
        libc::EINVAL,
        "4097 entries",
    )
}

/// One listener an eventfd, whichever VM it is in.
pub(super) fn irqfd_of_two_vms(_: &Env) -> Outcome {
    let (one, _gic, _vcpus) = machine(&[Asm::new()])?;
    let (two, _gic2, _vcpus2) = machine(&[Asm::new()])?;
    let event = event()?;
    let fd = event.as_raw_fd() as u32;
    granted(irqfd_call(&one, fd, 8, 0), "KVM_IRQFD")?;
    refused(irqfd_call(&one, fd, 9, 0), libc::EBUSY, "another GSI")?;
    refused(irqfd_call(&two, fd, 8, 0), libc::EBUSY, "another VM")?;
    granted(irqfd_call(&one, fd, 8, 1), "unbinding it")?;
    granted(irqfd_call(&two, fd, 8, 0), "the other VM then").map(drop)
}

/// A level that an event raises stays until the guest has ended it; then another event says so.
pub(super) fn irqfd_resampled(_: &Env) -> Outcome {
    let (machine, _gic, vcpu) = listening()?;
    let (event, ended) = (event()?, event()?);
    let mut request = kvm_irqfd {
        fd: event.as_raw_fd() as u32,
        gsi: SPI as u32 - 32,
        flags: 2,
        resamplefd: u32::MAX,
        ..Default::default()
    };
    refused(
        ioctl(&machine.vm, abi::IRQFD, &mut request),
        libc::EBADF,
        "no file to tell",
    )?;
    request.resamplefd = ended.as_raw_fd() as u32;
    granted(ioctl(&machine.vm, abi::IRQFD, &mut request), "KVM_IRQFD")?;
    let mut ends = 0;
    each_wakes(vcpu, &[SPI; 8], |round| {
        for _ in 0..200 {
            ends += ended.read().unwrap_or(0);
            if ends >= round as u64 {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
        same(ends, round as u64, "ends that were told")?;
        event.write(1).map_err(|e| format!("eventfd: {e}"))
    })
}

/// A VM whose GIC is the VMM's: the run page tells of its timer, and it has an IRQ pin.
pub(super) fn of_the_vmm(_: &Env) -> Outcome {
    const CNTV_CTL_EL0: super::asm::Sys = (3, 3, 14, 3, 1);
    const CNTV_TVAL_EL0: super::asm::Sys = (3, 3, 14, 3, 0);
    const DEVICE_IRQ_LEVEL: usize = 304;
    let machine = Machine::new()?;
    let mut asm = Asm::new();
    asm.mov(0, 1)
        .msr(CNTV_TVAL_EL0, 0)
        .msr(CNTV_CTL_EL0, 0)
        .isb();
    let top = asm.here();
    // x5 is the VMM's: it goes on when it is not zero.
    asm.back_if_zero(5, top);
    asm.mov(0, 0).msr(CNTV_CTL_EL0, 0).isb().report(0);
    asm.unmask(2).isb().stop();
    let vcpu = machine.vcpu_with(0, &asm)?;
    vcpu.set(abi::x(5), 0)?;
    let level = |vcpu: &Vcpu| vcpu.page.u64(DEVICE_IRQ_LEVEL);
    same(level(&vcpu), 0, "the timer at first")?;
    refused(vcpu.run(), libc::EINTR, "KVM_RUN when the timer fires")?;
    same(level(&vcpu), 1, "the timer")?;
    vcpu.set(abi::x(5), 1)?;
    same(vcpu.report()?, 0, "the guest stops it")?;
    same(level(&vcpu), 0, "the timer then")?;
    granted(line(&machine, 0, 1), "the IRQ pin")?;
    same(vcpu.exception()?.vector, 5, "an IRQ at EL1")?;
    granted(line(&machine, 0, 0), "lowering it")?;
    for (irq, what) in [(2, "a third pin"), (1 << 16, "a pin of no vCPU")] {
        refused(line(&machine, irq, 1), libc::EINVAL, what)?;
    }
    let (with_gic, _gic, _vcpus) = machine_with_gic()?;
    refused(line(&with_gic, 0, 1), libc::ENXIO, "beside a GIC")
}

fn machine_with_gic() -> Check<(Machine, super::gic::Gic, Vec<Vcpu>)> {
    machine(&[Asm::new()])
}

/// KVM_IRQ_LINE_STATUS does what KVM_IRQ_LINE does.
pub(super) fn line_status(_: &Env) -> Outcome {
    let (machine, _gic, vcpu) = listening()?;
    let irq = abi::ppi(0, PPI);
    each_wakes(vcpu, &[PPI], |_| {
        let mut words = 1 << 32 | irq;
        granted(
            ioctl(&machine.vm, abi::IRQ_LINE_STATUS, &mut words),
            "KVM_IRQ_LINE_STATUS",
        )
        .map(drop)
    })
}
