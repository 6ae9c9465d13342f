//! The registers as the guest and the VMM see them.

use umbra_vgic::{
    Access, Affinity, Config, ConfigError, Frame, HcrBits, NoSuchIrq, Refusal, VcpuSet, Vgic, Vtr,
    needs_all_stopped, redist_frame,
};

use crate::machine::*;
use crate::manual::IGROUPR;

const ALL: u32 = u32::MAX;

#[test]
fn a_gic_is_made_of_what_kvm_allows() {
    let make = |nr_irqs, affinities: &[Affinity]| {
        Vgic::new(&Config {
            nr_irqs,
            affinities,
            vtr: Vtr::new(),
        })
        .map(|_| ())
    };
    let many: Vec<_> = (0..513).map(Affinity).collect();
    for nr_irqs in [0, 32, 63, 65, 1056, u32::MAX] {
        assert_eq!(
            make(nr_irqs, &many[..1]),
            Err(ConfigError::NrIrqs),
            "{nr_irqs}"
        );
    }
    assert_eq!(make(64, &[]), Err(ConfigError::NoVcpus));
    assert_eq!(make(64, &many), Err(ConfigError::TooManyVcpus));
    assert_eq!(
        make(64, &[Affinity(1), Affinity(1)]),
        Err(ConfigError::SameAffinity)
    );
    assert_eq!(make(64, &many[..512]), Ok(()));
    assert_eq!(make(1024, &many[..1]), Ok(()));
}

#[test]
fn identification_says_gicv3_with_one_security_state_and_affinity_routing() {
    let mut machine = Machine::new(2, 4, false);
    machine.write(Frame::Dist, 0x0, 0);
    assert_eq!(machine.read(Frame::Dist, 0x0), 0x50, "GICD_CTLR: DS, ARE");
    machine.write(Frame::Dist, 0x0, ALL);
    assert_eq!(
        machine.read(Frame::Dist, 0x0),
        0x53,
        "both groups; DS and ARE cannot be cleared, nothing else set"
    );
    let typer = machine.read(Frame::Dist, 0x4);
    assert_eq!(typer & 0x1f, 2, "96 interrupts");
    assert_eq!(typer >> 19 & 0x1f, 9, "10 bits of INTID");
    assert_eq!(typer & 1 << 17, 0, "no LPIs");
    assert_ne!(typer & 1 << 25, 0, "no 1-of-N");
    for frame in [Frame::Dist, Frame::Rd(0), Frame::Rd(1)] {
        assert_eq!(machine.read(frame, 0xffe8), 0x3b, "PIDR2 of {frame:?}");
    }
    assert_eq!(machine.read(Frame::Dist, 0x8) & 0xfff, 0x43b);
    assert_eq!(
        machine.read(Frame::Dist, 0x8),
        machine.read(Frame::Rd(1), 0x4)
    );
}

#[test]
fn the_largest_gic_has_interrupts_up_to_1019() {
    let affinities = [Affinity(0)];
    let vgic = Vgic::new(&Config {
        nr_irqs: 1024,
        affinities: &affinities,
        vtr: Vtr::new(),
    })
    .unwrap();
    assert_eq!(
        vgic.mmio_read(Access::Guest, Frame::Dist, 4, 4).unwrap() & 0x1f,
        31
    );
    assert_eq!(vgic.intid_end(), 1020);
}

#[test]
fn gicr_typer_names_the_vcpu_and_the_last_of_a_region() {
    let affinities = [Affinity(0), Affinity(0x0102_0304)];
    let mut vgic = Vgic::new(&Config {
        nr_irqs: 64,
        affinities: &affinities,
        vtr: Vtr::new(),
    })
    .unwrap();
    let read = |vgic: &Vgic, vcpu, offset, len| {
        vgic.mmio_read(Access::Guest, Frame::Rd(vcpu), offset, len)
            .unwrap()
    };
    assert_eq!(read(&vgic, 0, 8, 8), 0);
    assert_eq!(read(&vgic, 1, 8, 8), 0x0102_0304_0020_3410);
    assert_eq!(read(&vgic, 1, 8, 4), 0x20_3410);
    assert_eq!(read(&vgic, 1, 12, 4), 0x0102_0304);
    vgic.set_last_in_region(core::iter::once(0));
    assert_eq!(
        (read(&vgic, 0, 8, 4), read(&vgic, 1, 8, 4)),
        (0x10, 0x20_3400)
    );
}

#[test]
fn an_offset_in_a_redistributor_region_is_a_vcpu_and_a_frame() {
    assert_eq!(redist_frame(0, 0x8), (Frame::Rd(0), 0x8));
    assert_eq!(redist_frame(0, 0x1_0100), (Frame::Sgi(0), 0x100));
    assert_eq!(redist_frame(3, 0x4_ffe8), (Frame::Rd(5), 0xffe8));
}

#[test]
fn the_distributor_shows_no_private_interrupts() {
    let mut machine = Machine::new(1, 4, false);
    for bank in [IGROUPR, ISENABLER, ISPENDR, ISACTIVER, IPRIORITYR, ICFGR] {
        machine.write(Frame::Dist, bank, ALL);
        assert_eq!(machine.read(Frame::Dist, bank), 0, "{bank:#x}");
    }
    for bank in [ISPENDR, ISACTIVER] {
        assert_eq!(machine.read(Frame::Sgi(0), bank), 0, "{bank:#x}");
    }
    machine.write(Frame::Dist, 0xd04, ALL);
    assert_eq!(machine.read(Frame::Dist, 0xd04), 0, "GICD_IGRPMODR");
}

#[test]
fn interrupts_that_do_not_exist_read_as_zero_and_ignore_writes() {
    let mut machine = Machine::new(1, 4, false);
    machine.write(Frame::Dist, ISENABLER + 12, ALL);
    assert_eq!(machine.read(Frame::Dist, ISENABLER + 12), 0);
    machine.write(Frame::Dist, IROUTER + 8 * 96, 1);
    machine.write(Frame::Dist, IROUTER + 8 * 31, 1);
    assert_eq!(
        machine.read(Frame::Dist, IROUTER + 8 * 96) | machine.read(Frame::Dist, IROUTER + 8 * 31),
        0
    );
    assert_eq!(machine.read(Frame::Sgi(7), ISENABLER), 0, "no such vCPU");
    for (frame, offset) in [
        (Frame::Dist, 0x40),
        (Frame::Rd(0), 0x8000),
        (Frame::Sgi(0), 0x84),
        (Frame::Dist, 0x2_0000),
    ] {
        assert_eq!(machine.read(frame, offset), 0);
    }
}

#[test]
fn enables_are_set_by_one_register_and_cleared_by_the_other() {
    let mut machine = Machine::new(1, 4, false);
    machine.write(Frame::Dist, ISENABLER + 4, 0xff);
    machine.write(Frame::Dist, ICENABLER + 4, 0x0f);
    assert_eq!(machine.read(Frame::Dist, ISENABLER + 4), 0xf0);
    assert_eq!(machine.read(Frame::Dist, ICENABLER + 4), 0xf0);
    machine.write_sized(Frame::Dist, ISENABLER + 4, 1, 0xff);
    machine.write_sized(Frame::Dist, ISENABLER, 8, u64::MAX);
    assert_eq!(machine.read(Frame::Dist, ISENABLER + 4), 0xf0, "words only");
}

#[test]
fn priorities_have_the_hardwares_bits_and_take_byte_accesses() {
    let mut machine = Machine::new(1, 4, false);
    machine.write(Frame::Dist, IPRIORITYR + 32, 0xffa7_1801);
    assert_eq!(machine.read(Frame::Dist, IPRIORITYR + 32), 0xf8a0_1800);
    machine.write_sized(Frame::Dist, IPRIORITYR + 33, 1, 0x48);
    assert_eq!(machine.read(Frame::Dist, IPRIORITYR + 32), 0xf8a0_4800);
    let byte = machine
        .vgic
        .mmio_read(Access::Guest, Frame::Dist, IPRIORITYR + 35, 1);
    assert_eq!(byte, Ok(0xf8));
    machine.write(Frame::Sgi(0), IPRIORITYR + 28, 0x0810_1820);
    assert_eq!(machine.read(Frame::Sgi(0), IPRIORITYR + 28), 0x0810_1820);
}

#[test]
fn sgis_are_edge_triggered_and_ppis_level_sensitive_for_good() {
    let mut machine = Machine::new(1, 4, false);
    for value in [0, ALL] {
        machine.write(Frame::Sgi(0), ICFGR, value);
        machine.write(Frame::Sgi(0), ICFGR + 4, value);
        assert_eq!(machine.read(Frame::Sgi(0), ICFGR), 0xaaaa_aaaa);
        assert_eq!(machine.read(Frame::Sgi(0), ICFGR + 4), 0);
    }
    machine.write(Frame::Dist, ICFGR + 8, ALL);
    assert_eq!(
        machine.read(Frame::Dist, ICFGR + 8),
        0xaaaa_aaaa,
        "the low bit of each field is RES0"
    );
}

#[test]
fn a_route_is_an_affinity_written_whole_or_by_halves() {
    let mut machine = Machine::new(2, 4, false);
    machine.write_sized(Frame::Dist, IROUTER + 8 * 40, 8, u64::MAX);
    let whole = machine
        .vgic
        .mmio_read(Access::Guest, Frame::Dist, IROUTER + 8 * 40, 8);
    assert_eq!(whole, Ok(0x00ff_ffff), "no Aff3 without A3V, no 1-of-N");
    machine.write(Frame::Dist, IROUTER + 8 * 40, 1);
    machine.write(Frame::Dist, IROUTER + 8 * 40 + 4, 0xff);
    assert_eq!(machine.read(Frame::Dist, IROUTER + 8 * 40), 1);
    assert_eq!(machine.read(Frame::Dist, IROUTER + 8 * 40 + 4), 0);

    let affinities = [Affinity::from_mpidr(0x7_8000_0001)];
    assert_eq!(affinities[0], Affinity(0x0700_0001));
    let vtr = Vtr::new().with_a3v(true);
    let mut vgic = Vgic::new(&Config {
        nr_irqs: 64,
        affinities: &affinities,
        vtr,
    })
    .unwrap();
    let _ = vgic
        .mmio_write(
            Access::Guest,
            Frame::Dist,
            IROUTER + 8 * 40 + 4,
            4,
            u64::from(ALL),
        )
        .unwrap();
    assert_eq!(
        vgic.mmio_read(Access::Guest, Frame::Dist, IROUTER + 8 * 40, 8),
        Ok(0xff_0000_0000)
    );
    assert_ne!(
        vgic.mmio_read(Access::Guest, Frame::Dist, 4, 4).unwrap() & 1 << 24,
        0,
        "GICD_TYPER.A3V"
    );
}

#[test]
fn the_vmm_sees_the_latch_and_the_line_apart() {
    let mut machine = Machine::new(1, 4, false);
    machine.leave(0);
    machine.set_level(0, 40, true);
    machine.inject_edge(41);
    let uaccess = |machine: &Machine, offset| {
        machine
            .vgic
            .mmio_read(Access::Uaccess, Frame::Dist, offset, 4)
    };
    assert_eq!(
        machine.read(Frame::Dist, ISPENDR + 4),
        0x300,
        "the guest: line or latch"
    );
    assert_eq!(
        uaccess(&machine, ISPENDR + 4),
        Ok(0x200),
        "the VMM: the latch"
    );
    assert_eq!(uaccess(&machine, ICPENDR + 4), Ok(0), "RAZ/WI");
    assert_eq!(machine.vgic.line_levels(0, 32), 0x100);

    let mut write = |offset, value| {
        machine
            .vgic
            .mmio_write(Access::Uaccess, Frame::Dist, offset, 4, value)
            .map(|_| ())
    };
    assert_eq!(write(ICPENDR + 4, 0x200), Ok(()));
    assert_eq!(uaccess(&machine, ISPENDR + 4), Ok(0x200), "RAZ/WI");
    let mut write = |offset, value| {
        machine
            .vgic
            .mmio_write(Access::Uaccess, Frame::Dist, offset, 4, value)
            .map(|_| ())
    };
    assert_eq!(write(ISPENDR + 4, 0x1), Ok(()));
    assert_eq!(
        uaccess(&machine, ISPENDR + 4),
        Ok(0x1),
        "written as a whole"
    );
}

#[test]
fn lines_are_those_of_ppis_and_spis() {
    let mut machine = Machine::new(1, 4, false);
    for intid in [0, 64, 96, 0x3e0] {
        let _ = machine.vgic.set_line_levels(0, intid, ALL);
    }
    let levels = [0, 32, 64, 96, 0x3e0].map(|intid| machine.vgic.line_levels(0, intid));
    assert_eq!(
        levels,
        [0xffff_0000, 0, ALL, 0, 0],
        "SGIs have none, nor what does not exist"
    );
}

#[test]
fn the_vmm_is_told_what_it_may_not_do() {
    let mut machine = Machine::new(1, 4, false);
    let vgic = &mut machine.vgic;
    let iidr = vgic.mmio_read(Access::Uaccess, Frame::Dist, 8, 4).unwrap();
    assert_eq!(
        vgic.mmio_write(Access::Uaccess, Frame::Dist, 8, 4, iidr),
        Ok(VcpuSet::NONE)
    );
    assert_eq!(
        vgic.mmio_write(Access::Uaccess, Frame::Dist, 8, 4, iidr ^ 1),
        Err(Refusal::Invalid)
    );
    assert_eq!(
        vgic.mmio_write(Access::Uaccess, Frame::Dist, 12, 4, 1),
        Err(Refusal::Settled),
        "GICD_TYPER2"
    );
    assert_eq!(
        vgic.mmio_write(Access::Uaccess, Frame::Dist, 4, 4, 0),
        Ok(VcpuSet::NONE),
        "read-only: ignored"
    );
    for (frame, offset) in [
        (Frame::Dist, 0x44),
        (Frame::Rd(0), 0x20),
        (Frame::Sgi(0), 0x84),
        (Frame::Sgi(1), 0x80),
    ] {
        assert_eq!(
            vgic.mmio_read(Access::Uaccess, frame, offset, 4),
            Err(Refusal::NoRegister),
            "{frame:?} {offset:#x}"
        );
        assert_eq!(
            vgic.mmio_write(Access::Uaccess, frame, offset, 4, 0),
            Err(Refusal::NoRegister)
        );
    }
}

#[test]
fn what_does_not_exist_cannot_be_injected() {
    let mut machine = Machine::new(1, 4, false);
    // As KVM's selftest vgic_irq: one beyond, the special INTIDs, LPIs, nonsense.
    for intid in [96, 1020, 1023, 1024, 1120, 5120, u32::MAX, 0, 15] {
        assert_eq!(
            machine.vgic.set_level(0, intid, true),
            Err(NoSuchIrq),
            "{intid}"
        );
        assert_eq!(
            machine.vgic.inject_edge(0, intid),
            Err(NoSuchIrq),
            "{intid}"
        );
    }
    assert_eq!(
        machine.vgic.set_level(1, 20, true),
        Err(NoSuchIrq),
        "no such vCPU"
    );
    assert_eq!(machine.vgic.link_physical(0, 32, Some(27)), Err(NoSuchIrq));
    assert_eq!(
        machine.vgic.link_physical(0, 27, Some(1 << 13)),
        Err(NoSuchIrq)
    );
    assert_eq!(machine.vgic.set_notify_eoi(20, true), Err(NoSuchIrq));
    assert_eq!(machine.cpus[0].iar(), SPURIOUS);
}

#[test]
fn what_only_a_list_register_knows_is_asked_for() {
    let mut machine = Machine::new(2, 4, false);
    machine.write(Frame::Dist, ISENABLER + 4, ALL);
    machine.inject_edge(40);
    let holder = Err(Refusal::NeedsSync(VcpuSet::one(0)));
    let vgic = &mut machine.vgic;
    assert_eq!(
        vgic.mmio_read(Access::Guest, Frame::Dist, ISPENDR + 4, 4),
        holder
    );
    assert_eq!(
        vgic.mmio_read(Access::Guest, Frame::Dist, ISACTIVER + 4, 4),
        holder
    );
    assert_eq!(
        vgic.mmio_read(Access::GuestStale, Frame::Dist, ISPENDR + 4, 4),
        Ok(0x100)
    );
    assert_eq!(
        vgic.mmio_read(Access::GuestStale, Frame::Dist, ISACTIVER + 4, 4),
        Ok(0)
    );
    assert_eq!(
        vgic.mmio_read(Access::Guest, Frame::Dist, ISPENDR + 8, 4),
        Ok(0),
        "others are known"
    );
    assert_eq!(
        vgic.mmio_write(Access::Guest, Frame::Dist, ICACTIVER + 4, 4, 1 << 8)
            .map(|_| 0),
        holder
    );
    assert_eq!(
        vgic.mmio_write(Access::Guest, Frame::Dist, ICACTIVER + 4, 4, 1 << 9),
        Ok(VcpuSet::NONE)
    );
    // A level interrupt is pending because its line is high, whatever the register says.
    machine.set_level(0, 70, true);
    assert_eq!(
        machine
            .vgic
            .mmio_read(Access::Guest, Frame::Dist, ISPENDR + 8, 4),
        Ok(1 << 6)
    );
}

#[test]
fn writes_to_the_active_state_want_the_vm_stopped() {
    for (frame, offset, write, stop) in [
        (Frame::Dist, ISACTIVER + 4, true, true),
        (Frame::Dist, ICACTIVER + 8, true, true),
        (Frame::Sgi(0), ICACTIVER, true, true),
        (Frame::Dist, ISACTIVER + 4, false, false),
        (Frame::Dist, ISPENDR + 4, true, false),
        (Frame::Rd(0), ISACTIVER, true, false),
    ] {
        assert_eq!(
            needs_all_stopped(frame, offset, write),
            stop,
            "{frame:?} {offset:#x} {write}"
        );
    }
}

/// Everything the VMM can read of a GIC, as it would save it.
fn saved(vgic: &Vgic, vcpus: usize) -> Vec<(Frame, u32, u64)> {
    let frames = (0..vcpus)
        .flat_map(|vcpu| [Frame::Rd(vcpu), Frame::Sgi(vcpu)])
        .chain([Frame::Dist]);
    let offsets = |frame| (0..0x1_0000).step_by(4).map(move |offset| (frame, offset));
    let read = |(frame, offset)| {
        Some((
            frame,
            offset,
            vgic.mmio_read(Access::Uaccess, frame, offset, 4).ok()?,
        ))
    };
    frames.flat_map(offsets).filter_map(read).collect()
}

#[test]
fn a_saved_gic_is_restored_in_any_order() {
    let mut machine = Machine::new(2, 4, false);
    machine.write(Frame::Dist, ISENABLER + 4, 0xffff);
    machine.write(Frame::Sgi(1), ISENABLER, 1 << 20);
    machine.set_edge(41, true);
    machine.set_priority(0, 41, 0x80);
    machine.write(Frame::Dist, IROUTER + 8 * 42, 1);
    machine.inject_edge(41);
    machine.set_level(0, 42, true);
    machine.set_level(1, 20, true);
    machine.inject_edge(43);
    assert_eq!(machine.cpus[0].iar(), 43);
    machine.leave(0);
    machine.leave(1);
    let state = saved(&machine.vgic, 2);

    for backwards in [false, true] {
        let affinities = [Affinity(0), Affinity(1)];
        let vtr = Vtr::new().with_list_regs(3).with_pri_bits(4);
        let mut copy = Vgic::new(&Config {
            nr_irqs: 96,
            affinities: &affinities,
            vtr,
        })
        .unwrap();
        assert_ne!(saved(&copy, 2), state, "there is something to restore");
        for vcpu in 0..2 {
            let _ = copy
                .mmio_write(
                    Access::Uaccess,
                    Frame::Sgi(vcpu),
                    ICENABLER,
                    4,
                    u64::from(ALL),
                )
                .unwrap();
        }
        // What the registers that clear would show is what those that set have restored.
        let clearing = |offset: u32| {
            (ICENABLER..ISPENDR).contains(&offset) || (ICACTIVER..IPRIORITYR).contains(&offset)
        };
        let mut set: Vec<_> = state
            .iter()
            .filter(|(_, offset, _)| !clearing(*offset))
            .collect();
        if backwards {
            set.reverse();
        }
        for &&(frame, offset, value) in &set {
            let _ = copy
                .mmio_write(Access::Uaccess, frame, offset, 4, value)
                .unwrap();
        }
        for vcpu in 0..2 {
            let _ = copy.set_line_levels(vcpu, 0, machine.vgic.line_levels(vcpu, 0));
        }
        for intid in [32, 64] {
            let _ = copy.set_line_levels(0, intid, machine.vgic.line_levels(0, intid));
        }
        assert_eq!(saved(&copy, 2), state, "backwards: {backwards}");
        let mut lrs = [umbra_vgic::LrFile::EMPTY; 2];
        for (vcpu, lrs) in lrs.iter_mut().enumerate() {
            let hcr = copy.flush(vcpu, lrs).hcr;
            // The other has SPIs, which may be ended here; the machine has no TDIR.
            assert_eq!(hcr, HcrBits::new().with_en(true).with_tc(true));
        }
        let loaded = |vcpu: usize| {
            lrs[vcpu]
                .loaded()
                .iter()
                .map(|lr| (lr.vintid(), lr.state() as u8))
                .collect::<Vec<_>>()
        };
        assert_eq!(loaded(0), [(43, 2), (41, 1)]);
        assert_eq!(loaded(1), [(20, 1), (42, 1)]);
    }
}
