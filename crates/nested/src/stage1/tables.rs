//! Where the tables of a stage 1 lie.

use umbra_arm64::{Ipa, L2Ipa, Level};

use crate::descend::{Purpose, Tables};
use crate::memory::GuestMemory;
use crate::stage2::{self, Stage2Config};
use crate::stop::{Stop, Stop1};

/// In the VM's own space: the tables of a guest hypervisor.
#[derive(Debug)]
pub struct Untranslated<'a, M> {
    /// The VM's memory.
    pub memory: &'a mut M,
}

impl<M: GuestMemory> Tables for Untranslated<'_, M> {
    type Space = Ipa;
    type Stop = Stop1;

    fn read(&mut self, at: Ipa, level: Level, _: Purpose) -> Result<u64, Stop1> {
        read(self.memory, at, level)
    }

    fn replace(
        &mut self,
        at: Ipa,
        level: Level,
        _: Purpose,
        change: (u64, u64),
    ) -> Result<bool, Stop1> {
        replace(self.memory, at, level, change)
    }
}

/// Behind the stage 2 of a guest hypervisor: the tables of its guest. Each access to a descriptor is
/// translated first, as a data access, and may fault there (ESR_ELx.S1PTW).
#[derive(Debug)]
pub struct BehindStage2<'a, M> {
    /// That stage 2.
    pub config: &'a Stage2Config,
    /// The VM's memory.
    pub memory: &'a mut M,
}

impl<M: GuestMemory> BehindStage2<'_, M> {
    fn translate(
        &mut self,
        at: L2Ipa,
        level: Level,
        access: stage2::Access,
    ) -> Result<Ipa, (Stop, Stop1)> {
        match stage2::walk(self.config, at, access, self.memory) {
            Ok(mapping) => Ok(mapping.translation.output),
            Err(stop) => {
                let ipa = at;
                Err((stop, Stop1::Stage2 { stop, ipa, level }))
            }
        }
    }
}

impl<M: GuestMemory> Tables for BehindStage2<'_, M> {
    type Space = L2Ipa;
    type Stop = Stop1;

    fn read(&mut self, at: L2Ipa, level: Level, purpose: Purpose) -> Result<u64, Stop1> {
        let access = match purpose {
            Purpose::Access => stage2::Access::WalkRead,
            Purpose::At => stage2::Access::AtWalkRead,
            Purpose::Probe => stage2::Access::Probe,
        };
        let place = self
            .translate(at, level, access)
            .map_err(|(_, stop)| stop)?;
        read(self.memory, place, level)
    }

    fn replace(
        &mut self,
        at: L2Ipa,
        level: Level,
        purpose: Purpose,
        change: (u64, u64),
    ) -> Result<bool, Stop1> {
        match self.translate(at, level, stage2::Access::WalkUpdate) {
            Ok(place) => replace(self.memory, place, level, change),
            // An AT goes on where marking does not succeed.
            Err((Stop::Contended, _)) if purpose == Purpose::At => Ok(false),
            Err((_, stop)) => Err(stop),
        }
    }
}

fn read(memory: &mut impl GuestMemory, at: Ipa, level: Level) -> Result<u64, Stop1> {
    memory
        .read_u64(at)
        .map_err(|error| Stop::Memory { at, level, error }.into())
}

fn replace(
    memory: &mut impl GuestMemory,
    at: Ipa,
    level: Level,
    (old, new): (u64, u64),
) -> Result<bool, Stop1> {
    memory
        .compare_exchange_u64(at, old, new)
        .map(|outcome| outcome.is_ok())
        .map_err(|error| Stop::Memory { at, level, error }.into())
}
