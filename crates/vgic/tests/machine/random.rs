//! Random histories of a VM's interrupts, held against the model.

use crate::model::{Op, SGIS, VCPUS, World};
use proptest::prelude::*;

fn op() -> impl Strategy<Value = Op> {
    use Op::*;
    let irq = 0..64usize;
    let vcpu = 0..VCPUS;
    prop_oneof![
        6 => (irq.clone(), any::<bool>()).prop_map(|(irq, level)| Level(irq, level)),
        6 => irq.clone().prop_map(Edge),
        3 => (vcpu.clone(), 0..SGIS.len(), vcpu.clone()).prop_map(|(from, sgi, to)| Sgi { from, sgi, to }),
        12 => vcpu.clone().prop_map(Acknowledge),
        8 => vcpu.clone().prop_map(End),
        4 => (vcpu.clone(), irq.clone()).prop_map(|(vcpu, irq)| Deactivate(vcpu, irq)),
        2 => irq.clone().prop_map(Enable),
        1 => irq.clone().prop_map(Disable),
        2 => irq.clone().prop_map(SetPending),
        1 => irq.clone().prop_map(ClearPending),
        1 => irq.clone().prop_map(SetActive),
        1 => irq.clone().prop_map(ClearActive),
        3 => (irq.clone(), 0..6u8).prop_map(|(irq, priority)| Priority(irq, priority * 8)),
        2 => (irq.clone(), 0..3u32).prop_map(|(irq, affinity)| Route(irq, affinity)),
        2 => (irq.clone(), any::<bool>()).prop_map(|(irq, edge)| Trigger(irq, edge)),
        1 => any::<bool>().prop_map(GroupEnable),
        1 => (vcpu.clone(), 0..7u8).prop_map(|(vcpu, mask)| PriorityMask(vcpu, mask * 8)),
        1 => vcpu.clone().prop_map(Leave),
        2 => vcpu.clone().prop_map(Enter),
        2 => irq.prop_map(Read),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_acknowledge_is_what_a_gic_would_answer(
        nr_lrs in prop_oneof![Just(1u8), Just(2), Just(3), Just(4), Just(16)],
        eoi_mode in any::<bool>(),
        ops in proptest::collection::vec(op(), 1..150),
    ) {
        let mut world = World::new(nr_lrs, eoi_mode);
        for op in &ops {
            world.step(op);
        }
        world.drain();
    }
}
