//! How interrupts are handled, one sentence of the manual or one duty of a hypervisor each.

use umbra_vgic::{Affinity, Config, Frame, LrState, SgiRegister, VcpuSet, Vgic, Vmcr, Vtr};

/// GICD_IGROUPR0, GICR_IGROUPR0.
pub(crate) const IGROUPR: u32 = 0x80;

use crate::machine::*;

fn enabled(nr_vcpus: u32, nr_lrs: u8, eoi_mode: bool) -> Machine {
    let mut machine = Machine::new(nr_vcpus, nr_lrs, eoi_mode);
    for offset in [4, 8] {
        machine.write(Frame::Dist, ISENABLER + offset, u32::MAX);
    }
    for vcpu in 0..nr_vcpus as usize {
        machine.write(Frame::Sgi(vcpu), ISENABLER, u32::MAX);
    }
    machine
}

#[test]
fn an_edge_is_taken_once() {
    let mut machine = enabled(1, 4, false);
    machine.set_edge(40, true);
    machine.inject_edge(40);
    assert_eq!(machine.cpus[0].iar(), 40);
    assert_eq!(machine.cpus[0].iar(), SPURIOUS);
    machine.cpus[0].eoir(40);
    machine.leave(0);
    machine.enter(0);
    assert_eq!(machine.cpus[0].iar(), SPURIOUS);
}

#[test]
fn an_edge_during_the_handler_is_taken_again_without_an_exit_of_its_own() {
    let mut machine = enabled(1, 4, false);
    machine.set_edge(40, true);
    machine.inject_edge(40);
    assert_eq!(machine.cpus[0].iar(), 40);
    machine.inject_edge(40);
    assert_eq!(machine.cpus[0].lrs.lr[0].state(), LrState::PendingActive);
    let exits = machine.cpus[0].exits;
    machine.cpus[0].eoir(40);
    machine.settle();
    assert_eq!(machine.cpus[0].iar(), 40);
    machine.cpus[0].eoir(40);
    machine.settle();
    assert_eq!(
        (machine.cpus[0].iar(), machine.cpus[0].exits),
        (SPURIOUS, exits)
    );
}

#[test]
fn a_level_interrupt_comes_back_until_its_line_drops() {
    let mut machine = enabled(1, 4, false);
    machine.set_level(0, 40, true);
    for _ in 0..3 {
        assert_eq!(machine.cpus[0].iar(), 40);
        machine.cpus[0].eoir(40);
        assert_eq!(machine.cpus[0].iar(), SPURIOUS, "the register is used up");
        assert!(
            machine.cpus[0].maintenance(),
            "so the line is sampled again"
        );
        machine.settle();
    }
    machine.set_level(0, 40, false);
    assert_eq!(
        machine.cpus[0].iar(),
        SPURIOUS,
        "withdrawn before it was acknowledged"
    );
}

#[test]
fn a_device_served_in_the_handler_costs_no_maintenance_interrupt() {
    let mut machine = enabled(1, 4, false);
    machine.set_level(0, 40, true);
    assert_eq!(machine.cpus[0].iar(), 40);
    machine.set_level(0, 40, false);
    machine.cpus[0].eoir(40);
    assert!(!machine.cpus[0].maintenance());
}

#[test]
fn a_line_that_drops_while_active_kicks_no_one() {
    let mut machine = enabled(1, 4, false);
    machine.set_level(0, 40, true);
    assert_eq!(machine.cpus[0].iar(), 40);
    machine.leave(0);
    machine.enter(0);
    assert_eq!(machine.vgic.set_level(0, 40, false), Ok(VcpuSet::NONE));
    assert!(!machine.vgic.needs_flush(0));
}

#[test]
fn a_call_that_changes_nothing_kicks_no_one() {
    let mut machine = enabled(2, 4, false);
    machine.set_level(0, 40, true);
    assert_eq!(machine.vgic.set_level(0, 40, true), Ok(VcpuSet::NONE));
    machine.leave(0);
    machine.set_edge(41, true);
    assert_eq!(machine.vgic.inject_edge(0, 41), Ok(VcpuSet::one(0)));
    assert_eq!(machine.vgic.inject_edge(0, 41), Ok(VcpuSet::NONE));
    machine.write(Frame::Dist, ICENABLER + 8, u32::MAX);
    assert_eq!(
        machine.vgic.set_level(0, 70, true),
        Ok(VcpuSet::NONE),
        "disabled"
    );
    machine.write(Frame::Dist, 0, 0);
    assert_eq!(
        machine.vgic.set_level(0, 42, true),
        Ok(VcpuSet::NONE),
        "its group is disabled"
    );
    assert!(!machine.vgic.needs_flush(1));
}

#[test]
fn a_set_pending_level_interrupt_is_taken_once_and_its_line_does_not_matter() {
    let mut machine = enabled(1, 4, false);
    machine.write_bit(0, ISPENDR, 40);
    assert_eq!(machine.cpus[0].iar(), 40);
    assert!(!machine.read_bit(0, ISPENDR, 40));
    machine.cpus[0].eoir(40);
    machine.settle();
    assert_eq!(machine.cpus[0].iar(), SPURIOUS);
    machine.set_level(0, 41, true);
    machine.write_bit(0, ICPENDR, 41);
    assert_eq!(machine.cpus[0].iar(), 41, "ICPENDR does not lower a line");
}

#[test]
fn clear_pending_withdraws_what_is_in_a_list_register() {
    let mut machine = enabled(1, 4, false);
    machine.set_edge(40, true);
    machine.inject_edge(40);
    machine.write_bit(0, ICPENDR, 40);
    assert_eq!(machine.cpus[0].iar(), SPURIOUS);
    assert_eq!(machine.cpus[0].lrs.used, 0);
}

#[test]
fn groups_are_let_through_one_by_one() {
    let mut machine = enabled(1, 4, false);
    machine.write(Frame::Dist, IGROUPR + 4, 1 << 9);
    machine.write(Frame::Dist, 0, 0b10);
    machine.inject_edge(40);
    machine.inject_edge(41);
    assert_eq!(machine.cpus[0].iar(), 41);
    machine.cpus[0].eoir(41);
    assert_eq!(machine.cpus[0].iar(), SPURIOUS);
    machine.write(Frame::Dist, 0, 0b01);
    assert_eq!(machine.cpus[0].iar(), 40);
    assert!(!machine.cpus[0].lrs.lr[0].group1());
}

#[test]
fn a_wfi_ends_for_what_would_be_signalled() {
    let mut machine = enabled(2, 4, false);
    machine.leave(0);
    machine.set_priority(0, 40, 0x80);
    let all = Vmcr::new().with_group1(true).with_pmr(0xf0);
    let waits = |machine: &Machine, vmcr| !machine.vgic.has_pending(0, vmcr);
    assert!(waits(&machine, all));
    machine.set_level(0, 40, true);
    assert!(!waits(&machine, all));
    assert!(
        waits(&machine, all.with_pmr(0x80)),
        "masked: the priority must be below the mask"
    );
    assert!(!waits(&machine, all.with_pmr(0x81)));
    assert!(
        waits(&machine, all.with_group1(false).with_group0(true)),
        "ICC_IGRPEN1"
    );
    assert!(!machine.vgic.has_pending(1, all), "routed elsewhere");
    machine.write_bit(0, ISACTIVER, 40);
    assert!(waits(&machine, all), "active");
    assert!(!machine.vgic.has_pending(9, all), "no such vCPU");
}

#[test]
fn an_active_interrupt_stays_where_it_was_taken_and_the_next_goes_where_it_is_routed() {
    let mut machine = enabled(2, 4, false);
    machine.set_edge(40, true);
    machine.inject_edge(40);
    assert_eq!(machine.cpus[0].iar(), 40);
    machine.write(Frame::Dist, IROUTER + 8 * 40, 1);
    machine.inject_edge(40);
    assert_eq!(
        (machine.cpus[0].iar(), machine.cpus[1].iar()),
        (SPURIOUS, SPURIOUS)
    );
    machine.cpus[0].eoir(40);
    machine.settle();
    assert_eq!(
        (machine.cpus[0].iar(), machine.cpus[1].iar()),
        (SPURIOUS, 40)
    );
}

#[test]
fn an_spi_routed_to_no_one_waits() {
    let mut machine = enabled(2, 4, false);
    machine.write(Frame::Dist, IROUTER + 8 * 40, 7);
    machine.inject_edge(40);
    assert_eq!(
        (machine.cpus[0].iar(), machine.cpus[1].iar()),
        (SPURIOUS, SPURIOUS)
    );
    machine.write(Frame::Dist, IROUTER + 8 * 40, 1);
    assert_eq!(machine.cpus[1].iar(), 40);
}

#[test]
fn sgis_go_to_the_target_list_or_to_everyone_else() {
    let affinities = [0, 1, 0x100, 0x0203_0411, 15].map(Affinity);
    let mut vgic = Vgic::new(&Config {
        nr_irqs: 64,
        affinities: &affinities,
        vtr: Vtr::new(),
    })
    .unwrap();
    let _ = vgic
        .mmio_write(umbra_vgic::Access::Guest, Frame::Dist, 0, 4, 3)
        .unwrap();
    let mut sgi = |intid: u64, value: u64| {
        vgic.sgi(1, SgiRegister::Sgi1r, value | intid << 24)
            .iter()
            .collect::<Vec<_>>()
    };
    assert_eq!(sgi(0, 0b11), [0, 1], "Aff0 0 and 1");
    assert_eq!(sgi(1, 1 << 15), [4]);
    assert_eq!(sgi(2, 1 << 16 | 1), [2], "Aff1 = 1");
    assert_eq!(
        sgi(3, 2 << 48 | 3 << 32 | 4 << 16 | 1 << 44 | 0b10),
        [3],
        "all levels, range 1"
    );
    assert_eq!(
        sgi(4, 2 << 48 | 3 << 32 | 4 << 16 | 0b10),
        [] as [usize; 0],
        "range 0"
    );
    assert_eq!(sgi(5, 1 << 40), [0, 2, 3, 4], "IRM");
    assert_eq!(sgi(5, 1 << 40), [] as [usize; 0], "pending already");
}

#[test]
fn an_sgi_of_group_1_is_out_of_reach_for_the_other_registers() {
    let mut machine = enabled(1, 4, false);
    machine.write(Frame::Sgi(0), IGROUPR, 0b10);
    for (register, intid, arrives) in [
        (SgiRegister::Sgi0r, 0, true),
        (SgiRegister::Sgi0r, 1, false),
        (SgiRegister::Asgi1r, 0, true),
        (SgiRegister::Asgi1r, 1, false),
        (SgiRegister::Sgi1r, 0, true),
        (SgiRegister::Sgi1r, 1, true),
    ] {
        let kicks = machine.vgic.sgi(0, register, u64::from(intid) << 24 | 1);
        machine.kick(kicks);
        assert_eq!(
            machine.cpus[0].iar(),
            if arrives { intid } else { SPURIOUS },
            "{register:?} {intid}"
        );
        if arrives {
            machine.cpus[0].eoir(intid);
        }
    }
}

#[test]
fn a_linked_timer_is_deactivated_by_the_guest_and_fires_again_while_its_line_is_high() {
    let mut machine = enabled(1, 4, false);
    let kicks = machine
        .vgic
        .link_physical(0, 27, Some(PHYSICAL + 27))
        .unwrap();
    machine.kick(kicks);
    machine.set_level(0, 27, true);
    let lr = machine.cpus[0].lrs.lr[0];
    assert!(lr.hw() && !lr.eoi() && u32::from(lr.pintid()) == PHYSICAL + 27);
    assert_eq!(
        machine.cpus[0].physical_active,
        1 << 27,
        "it does not fire while the guest has it in hand"
    );
    assert_eq!(machine.cpus[0].iar(), 27);
    machine.cpus[0].eoir(27);
    assert_eq!(machine.cpus[0].physical_active, 0);
    assert!(
        !machine.cpus[0].maintenance() && machine.interrupted(0),
        "the physical interrupt comes instead"
    );
    machine.settle();
    assert_eq!(machine.cpus[0].iar(), 27);
    machine.set_level(0, 27, false);
    machine.cpus[0].eoir(27);
    assert!(!machine.interrupted(0));
}

#[test]
fn a_linked_interrupt_that_software_made_pending_has_no_physical_one_behind_it() {
    let mut machine = enabled(1, 4, false);
    let _ = machine
        .vgic
        .link_physical(0, 27, Some(PHYSICAL + 27))
        .unwrap();
    machine.write_bit(0, ISPENDR, 27);
    assert!(!machine.cpus[0].lrs.lr[0].hw());
    assert_eq!(
        (machine.cpus[0].iar(), machine.cpus[0].physical_active),
        (27, 0)
    );
    // The guest, or a restoring VMM, writes the active state of a timer: the physical one follows.
    machine.cpus[0].eoir(27);
    machine.write_bit(0, ISACTIVER, 27);
    assert_eq!(machine.cpus[0].physical_active, 1 << 27);
    machine.write_bit(0, ICACTIVER, 27);
    assert_eq!(machine.cpus[0].physical_active, 0);
}

#[test]
fn the_end_of_a_watched_interrupt_is_reported_once() {
    let mut machine = enabled(1, 1, false);
    let _ = machine.vgic.set_notify_eoi(40, true).unwrap();
    machine.set_level(0, 40, true);
    assert_eq!(machine.cpus[0].iar(), 40);
    machine.set_level(0, 40, false);
    assert!(machine.vgic.take_eois().is_empty());
    machine.cpus[0].eoir(40);
    machine.settle();
    let eois = machine.vgic.take_eois();
    assert_eq!(eois.iter().collect::<Vec<_>>(), [40]);
    assert!(machine.vgic.take_eois().is_empty());
    // Unwatched.
    machine.set_level(0, 41, true);
    assert_eq!(machine.cpus[0].iar(), 41);
    machine.cpus[0].eoir(41);
    machine.settle();
    assert!(machine.vgic.take_eois().is_empty());
}

#[test]
fn more_pending_than_registers_asks_for_an_interrupt_when_none_is_left() {
    let mut machine = enabled(1, 4, false);
    for intid in 40..44 {
        machine.set_priority(0, intid, 0x80);
        machine.inject_edge(intid);
    }
    assert!(!machine.cpus[0].hcr.npie());
    machine.set_priority(0, 50, 0x40);
    machine.inject_edge(50);
    assert!(machine.cpus[0].hcr.npie() && !machine.cpus[0].hcr.lrenpie());
    let loaded: Vec<_> = machine.cpus[0]
        .lrs
        .loaded()
        .iter()
        .map(|lr| lr.vintid())
        .collect();
    assert_eq!(loaded, [50, 40, 41, 42], "the most urgent first");
}

#[test]
fn active_interrupts_outside_the_registers_are_found_by_their_count() {
    let mut machine = enabled(1, 2, false);
    for (intid, priority) in [(40, 0x80), (41, 0x60), (42, 0x40)] {
        machine.set_priority(0, intid, priority);
        machine.inject_edge(intid);
        assert_eq!(machine.cpus[0].iar(), intid);
    }
    assert!(machine.cpus[0].hcr.lrenpie(), "40 is in no register");
    for intid in [42, 41, 40] {
        machine.cpus[0].eoir(intid);
        machine.settle();
        assert!(!machine.read_bit(0, ISACTIVER, intid), "{intid}");
    }
    assert_eq!(machine.cpus[0].hcr.eoi_count(), 0);
}

#[test]
fn deactivation_traps_while_it_may_name_what_is_in_no_register() {
    let mut machine = enabled(2, 4, true);
    assert!(!machine.cpus[0].hcr.tdir());
    // An SPI in flight elsewhere may be ended here.
    machine.inject_edge(40);
    assert!(!machine.cpus[0].hcr.tdir() && machine.cpus[1].hcr.tdir());
    assert_eq!(machine.cpus[0].iar(), 40);
    machine.cpus[0].eoir(40);
    // What another vCPU's register holds ends when that is taken back, and not before.
    assert_eq!(machine.vgic.deactivate(1, 40), Ok(VcpuSet::one(0)));
    assert!(machine.vgic.needs_flush(0));
    machine.leave(0);
    machine.enter(0);
    assert!(!machine.read_bit(0, ISACTIVER, 40));
    // With nothing in flight the trap goes at the next occasion.
    machine.leave(1);
    machine.enter(1);
    assert!(!machine.cpus[1].hcr.tdir());
    for intid in [0, 96, 1023, u32::MAX] {
        assert_eq!(
            machine.vgic.deactivate(0, intid),
            Ok(VcpuSet::NONE),
            "{intid} is not active"
        );
    }
}

#[test]
fn an_spi_made_active_by_a_write_can_be_ended_from_anywhere() {
    // In no register, as the only one has SGI 0; then not loaded, as its vCPU is out; then routed to no one.
    for case in 0..3 {
        let mut machine = enabled(2, 1, true);
        match case {
            0 => machine.write_bit(0, ISACTIVER, 0),
            1 => machine.leave(0),
            _ => machine.write(Frame::Dist, IROUTER + 8 * 40, 7),
        }
        machine.write_bit(0, ISACTIVER, 40);
        machine.settle();
        machine.dir(1, 40);
        assert!(!machine.read_bit(0, ISACTIVER, 40), "case {case}");
    }
}

#[test]
fn a_level_interrupt_taken_here_and_due_elsewhere_is_seen_when_it_ends() {
    let mut machine = enabled(2, 2, false);
    machine.inject_edge(40);
    assert_eq!(machine.cpus[0].iar(), 40);
    machine.inject_edge(40);
    machine.write(Frame::Dist, IROUTER + 8 * 40, 1);
    machine.cpus[0].eoir(40);
    machine.settle();
    assert_eq!(
        (machine.cpus[0].iar(), machine.cpus[1].iar()),
        (SPURIOUS, 40)
    );
}

#[test]
fn a_change_of_group_reaches_the_list_register() {
    let mut machine = enabled(1, 4, false);
    machine.inject_edge(40);
    assert!(machine.cpus[0].lrs.lr[0].group1());
    machine.write(Frame::Dist, IGROUPR + 4, 0);
    assert!(!machine.cpus[0].lrs.lr[0].group1());
    machine.set_priority(0, 40, 0x48);
    assert_eq!(machine.cpus[0].lrs.lr[0].priority(), 0x48);
}

#[test]
fn a_pulsing_edge_latches_at_each_high() {
    let mut machine = enabled(1, 4, false);
    machine.set_edge(40, true);
    for _ in 0..2 {
        // KVM_IRQ_LINE with level 1, never lowered.
        machine.set_level(0, 40, true);
        assert_eq!(machine.cpus[0].iar(), 40);
        machine.cpus[0].eoir(40);
        machine.settle();
        assert_eq!(machine.cpus[0].iar(), SPURIOUS);
    }
}

#[test]
fn a_change_to_two_step_eois_that_nobody_saw_loses_no_deactivation() {
    let mut machine = enabled(2, 4, false);
    // Without an exit since.
    machine.cpus[1].vmcr.set_eoi_mode(true);
    machine.inject_edge(40);
    assert!(machine.cpus[1].hcr.tdir());
}

#[test]
fn without_a_trap_of_its_own_deactivation_takes_the_common_one() {
    let affinities = [Affinity(0), Affinity(1)];
    let vtr = Vtr::new().with_list_regs(3).with_pri_bits(4);
    let mut vgic = Vgic::new(&Config {
        nr_irqs: 64,
        affinities: &affinities,
        vtr,
    })
    .unwrap();
    for (offset, value) in [(0, 3), (ISENABLER + 4, 1)] {
        let _ = vgic
            .mmio_write(umbra_vgic::Access::Guest, Frame::Dist, offset, 4, value)
            .unwrap();
    }
    let _ = vgic.inject_edge(0, 32).unwrap();
    let flushed = vgic.flush(1, &mut umbra_vgic::LrFile::EMPTY.clone());
    assert!(flushed.hcr.tc() && !flushed.hcr.tdir());
}

#[test]
#[should_panic(expected = "without a sync between")]
fn a_second_flush_would_lose_states() {
    let mut machine = Machine::new(1, 4, false);
    let _ = machine
        .vgic
        .flush(0, &mut umbra_vgic::LrFile::EMPTY.clone());
}

/// KVM's selftest vgic_irq, test_preemption: each interrupt pre-empts the one before, then all end.
#[test]
fn thirty_one_nested_interrupts_end_in_order_on_any_number_of_registers() {
    for (nr_lrs, eoi_mode) in [
        (1, false),
        (1, true),
        (4, false),
        (4, true),
        (16, false),
        (16, true),
    ] {
        let mut machine = enabled(1, nr_lrs, eoi_mode);
        for n in 0..31 {
            machine.set_priority(0, 32 + n, (30 - n) as u8 * 8);
        }
        for n in 0..31 {
            machine.set_level(0, 32 + n, true);
            assert_eq!(machine.cpus[0].iar(), 32 + n, "{nr_lrs} {eoi_mode}");
            machine.set_level(0, 32 + n, false);
            machine.settle();
        }
        for n in (0..31).rev() {
            machine.cpus[0].eoir(32 + n);
            machine.settle();
        }
        assert!(machine.cpus[0].aprs.is_empty());
        if eoi_mode {
            for n in 0..31 {
                assert!(machine.read_bit(0, ISACTIVER, 32 + n));
                machine.dir(0, 32 + n);
                machine.settle();
            }
        }
        assert_eq!(
            machine.read(Frame::Dist, ISACTIVER + 4),
            0,
            "{nr_lrs} {eoi_mode}"
        );
        assert_eq!(machine.cpus[0].iar(), SPURIOUS);
    }
}

/// KVM's selftest vgic_irq, test_restore_active: active state written, as a restoring VMM does, then ended by the guest.
#[test]
fn restored_active_interrupts_end_in_order() {
    for (nr_lrs, eoi_mode) in [(1, false), (4, false), (4, true)] {
        let mut machine = enabled(1, nr_lrs, eoi_mode);
        for n in 0..31 {
            let priority = (30 - n) as u8 * 8;
            machine.set_priority(0, 32 + n, priority);
            machine.write_bit(0, ISACTIVER, 32 + n);
            machine.cpus[0].aprs.push(priority);
        }
        for n in (0..31).rev() {
            machine.cpus[0].eoir(32 + n);
            if eoi_mode {
                machine.dir(0, 32 + n);
            }
            machine.settle();
        }
        assert_eq!(
            machine.read(Frame::Dist, ISACTIVER + 4),
            0,
            "{nr_lrs} {eoi_mode}"
        );
        assert!(machine.cpus[0].aprs.is_empty());
    }
}

/// KVM's selftest vgic_irq, test_injection: every SPI at once, cycling through the priorities.
#[test]
fn all_spis_at_once_are_each_taken_once_by_priority() {
    for level in [false, true] {
        let mut machine = enabled(1, 4, false);
        for intid in 32..96 {
            machine.set_edge(intid, !level);
            machine.set_priority(0, intid, (intid % 31) as u8 * 8);
            machine.set_level(0, intid, true);
        }
        let mut last = 0;
        for _ in 32..96 {
            let intid = machine.cpus[0].iar();
            assert_ne!(intid, SPURIOUS);
            assert!(intid % 31 >= last, "{intid} out of order");
            last = intid % 31;
            machine.set_level(0, intid, false);
            machine.cpus[0].eoir(intid);
            machine.settle();
        }
        assert_eq!(machine.cpus[0].iar(), SPURIOUS);
    }
}
