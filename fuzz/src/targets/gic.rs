//! The virtual GIC: histories of interrupts against the model that knows no list registers.

use crate::model::{Op, SGIS, VCPUS, World};
use crate::tape::Tape;

/// More than this is another history.
const MOST: usize = 200;

fn op(what: u8, irq: usize, how: u8) -> Op {
    use Op::*;
    let flag = how & 1 != 0;
    let vcpu = usize::from(how >> 1) % VCPUS;
    let few = how >> 2;
    match what % 20 {
        0 => Level(irq, flag),
        1 => Edge(irq),
        2 => Sgi {
            from: irq % VCPUS,
            sgi: usize::from(few) % SGIS.len(),
            to: vcpu,
        },
        3 => Acknowledge(vcpu),
        4 => End(vcpu),
        5 => Deactivate(vcpu, irq),
        6 => Enable(irq),
        7 => Disable(irq),
        8 => SetPending(irq),
        9 => ClearPending(irq),
        10 => SetActive(irq),
        11 => ClearActive(irq),
        12 => Priority(irq, few % 6 * 8),
        13 => Route(irq, u32::from(few % 3)),
        14 => Trigger(irq, flag),
        15 => GroupEnable(flag),
        16 => PriorityMask(vcpu, few % 7 * 8),
        17 => Leave(vcpu),
        18 => Enter(vcpu),
        _ => Read(irq),
    }
}

pub(crate) fn run(bytes: &[u8]) {
    let mut tape = Tape(bytes);
    let config = tape.u8();
    let nr_lrs = [1, 2, 3, 4, 16][usize::from(config >> 1) % 5];
    let mut world = World::new(nr_lrs, config & 1 != 0);
    for _ in 0..MOST {
        if tape.is_empty() {
            break;
        }
        let (first, second) = (tape.u8(), tape.u8());
        world.step(&op(
            first,
            usize::from(second >> 4),
            second & 0xf | (first / 20) << 4,
        ));
    }
    world.drain();
}
