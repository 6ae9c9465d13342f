//! Candidates for being mapped ahead, against the walk of each.

use umbra_arm64::L2Ipa;
use umbra_nested::stage2::{self, Access, WINDOW, around};

use crate::generate::{self, Case, Rng};
use crate::registers;

/// One random machine: every candidate is what its own walk gives, and every page of the window whose
/// walk ends in the same table is a candidate.
fn window(seed: u64) -> usize {
    let mut rng = Rng::new(seed);
    let case = generate::case(&mut rng, false);
    let Case {
        features,
        regs,
        world,
    } = &case;
    let ipa = L2Ipa::new(generate::ipa(&mut rng, regs.vtcr));
    let config = registers::stage2(regs, features);
    let mut memory = world.clone();
    let Ok(mapping) = stage2::walk(&config, ipa, Access::Read, &mut memory) else {
        return 0;
    };
    let before = memory.written.clone();
    let found = around(&config, ipa, &mapping, &mut memory);
    assert_eq!(memory.written, before, "seed {seed}: a look marks nothing");
    // What a stage-1 walk must not read although it may be read: device memory under HCR_EL2.PTW.
    let barred = |at| {
        let by = |access| stage2::walk(&config, at, access, &mut world.clone()).is_ok();
        by(Access::Read) && !by(Access::WalkRead)
    };
    let mut count = 0;
    for neighbour in found.iter() {
        count += 1;
        assert_eq!(neighbour.at.align_down(WINDOW), ipa.align_down(WINDOW));
        assert_ne!(neighbour.at, ipa.align_down(4096));
        let own = stage2::walk(&config, neighbour.at, Access::Probe, &mut memory)
            .unwrap_or_else(|stop| panic!("seed {seed}: {neighbour:x?} has {stop:?}"))
            .translation;
        assert!(own.accessed, "seed {seed}: {neighbour:x?}");
        assert!(
            !barred(neighbour.at),
            "seed {seed}: {neighbour:x?} bars walks"
        );
        assert_eq!(
            (own.output, own.rights, own.bytes),
            (neighbour.output, neighbour.rights, neighbour.bytes),
            "seed {seed}: {:x?}",
            neighbour.at
        );
    }
    for page in 0..WINDOW / 4096 {
        let at = L2Ipa::new(ipa.align_down(WINDOW).raw() + page * 4096);
        let Ok(own) = stage2::walk(&config, at, Access::Probe, &mut memory) else {
            continue;
        };
        let table = |at: Option<umbra_arm64::Ipa>| at.map(|at| at.align_down(4096));
        let expected = at != ipa.align_down(4096)
            && own.translation.accessed
            && own.translation.level == mapping.translation.level
            && table(own.descriptor) == table(mapping.descriptor)
            && own.descriptor.is_some()
            && own.attributes.is_none_or(|a| !a.is_device());
        let is_there = found.iter().any(|neighbour| neighbour.at == at);
        assert!(is_there || !expected, "seed {seed}: {at} is left out");
    }
    assert_eq!(memory.written, before, "seed {seed}");
    count
}

#[test]
fn candidates_are_what_their_own_walk_says() {
    let with_some = (0..20_000).filter(|seed| window(*seed) != 0).count();
    assert!(with_some > 200, "{with_some} of the cases had a candidate");
}
