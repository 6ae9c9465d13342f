//! Traces that no machine wrote: for the tests of everything that reads one, on this machine and, with
//! a browser, in `cargo xtask test`.

use umbra_arm64::{Gva, Ipa, L2Ipa, Pa};
use umbra_trace::block::{Header, KIND_RING, KIND_SCHEMA};
use umbra_trace::{
    Bytes, Event, ExitKind, Head, How, Owner, Record, Resolution, SeaPath, Shadowed, Storey, schema,
};

/// A trace file in the making.
#[derive(Debug, Default)]
pub(crate) struct File(pub(crate) Vec<u8>);

/// An event at a time, about a storey of vCPU 0 of VM 1.
pub(crate) fn at(time: u64, storey: Storey, event: Event) -> Record {
    let (kind, words) = event.encode();
    let (vcpu, vm) = (0, u16::from(storey >= Storey::Guest));
    let head = Head {
        kind,
        storey: storey as u8,
        vcpu,
        vm,
    };
    Record { time, head, words }
}

impl File {
    /// With this version's descriptions.
    pub(crate) fn described() -> Self {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = schema::write(&mut text);
        Self::with_schema(&text)
    }

    /// With these descriptions.
    pub(crate) fn with_schema(text: &str) -> Self {
        Self::default().block(KIND_SCHEMA, (0, 0, 0), text.as_bytes())
    }

    /// A CPU's ring that never went round.
    pub(crate) fn ring(self, cpu: u64, capacity: u64, records: &[Record]) -> Self {
        self.ring_of(cpu, capacity, records.len() as u64, records)
    }

    /// A CPU's ring that was written to so often.
    pub(crate) fn ring_of(self, cpu: u64, capacity: u64, written: u64, records: &[Record]) -> Self {
        let content: Vec<u8> = records
            .iter()
            .flat_map(|record| record.to_words())
            .flat_map(u64::to_le_bytes)
            .collect();
        self.block(KIND_RING, (cpu, capacity, written), &content)
    }

    fn block(
        mut self,
        kind: u32,
        (cpu, capacity, written): (u64, u64, u64),
        content: &[u8],
    ) -> Self {
        let header = Header {
            kind,
            bytes: content.len() as u64,
            cpu,
            frequency: 1_000_000_000,
            capacity,
            written,
        };
        self.0.extend(header.to_bytes());
        self.0.extend(content);
        self
    }
}

/// Random enough, and the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % limit
    }
}

/// A run of two storeys: `turns` exits of its guests, faults, shadows, memory errors.
fn records(turns: u64) -> Vec<Record> {
    let mut dice = Dice(turns);
    let mut time = 1000;
    let mut records = Vec::new();
    let mut put = |time: u64, storey: Storey, event: Event| records.push(at(time, storey, event));
    for turn in 0..turns {
        let storey = match dice.below(4) {
            0 => Storey::Guest,
            1 => Storey::VirtualEl2,
            _ => Storey::Nested,
        };
        put(time, storey, Event::Entry { pc: turn });
        time += 100 + dice.below(5000);
        // WFI, HVC, a trapped register each of its own, a store.
        let esr = match dice.below(4) {
            0 => 0x0600_0000,
            1 => 0x5a00_0000,
            2 => 0x6200_0000 | dice.below(1 << 16) << 5,
            _ => 0x9200_0046,
        };
        let exit = Event::Exit {
            kind: ExitKind::Trap,
            ec: esr >> 26,
            pc: turn,
            esr,
        };
        put(time, storey, exit);
        time += 50 + dice.below(500);
        let context = 64 + turn / 500;
        if turn % 500 == 0 {
            let what = Shadowed::Created;
            let (vttbr, vtcr, hw_vttbr) = ((turn / 500) << 48, 0, 0);
            let event = Event::Shadow {
                context,
                what,
                vttbr,
                vtcr,
                hw_vttbr,
            };
            put(time, storey, event);
        }
        if esr == 0x9200_0046 {
            let (l2, ipa) = (dice.below(1 << 20) << 12, dice.below(1 << 20) << 12);
            let is_nested = storey == Storey::Nested;
            let (l2, ipa) = (is_nested.then_some(L2Ipa::new(l2)), Ipa::new(ipa));
            if dice.below(20) == 0 {
                let retry = Event::Resolved {
                    l2,
                    ipa: Some(ipa),
                    resolution: Resolution::Retry,
                };
                put(time, storey, retry);
            }
            let map = Event::Map {
                l2,
                ipa,
                pa: Pa::new(dice.below(1 << 20) << 12),
                bytes: Bytes(if dice.below(9) == 0 { 2 << 20 } else { 4096 }),
                how: How::ALL[dice.below(6) as usize],
                context: if is_nested { context } else { 0 },
            };
            put(time, storey, map);
        }
        if turn % 97 == 5 {
            let error = Event::Sea {
                esr: 0x9200_0010,
                gva: Some(Gva::new(turn << 12)),
                ipa: Some(Ipa::new(turn << 12)),
                l2: None,
                owner: Owner::Guest,
                path: SeaPath::ALL[dice.below(3) as usize],
            };
            put(time, storey, error);
        }
        time += 20;
    }
    records
}

/// Of a machine that ended before anything happened: no file at all.
pub(crate) fn empty() -> Vec<u8> {
    Vec::new()
}

/// Of a machine that died while it wrote.
pub(crate) fn crashed() -> Vec<u8> {
    let mut file = File::described().ring(0, 1 << 20, &records(2000)).0;
    file.truncate(file.len() - 1000);
    file
}

/// Of a long run: a full ring, and more of everything than a page can hold.
pub(crate) fn huge() -> Vec<u8> {
    let mut records = records(60_000);
    // The oldest lies where the next would be written: here first.
    let capacity = 1 << 17;
    records.truncate(capacity);
    let written = 5 * capacity as u64;
    File::described()
        .ring_of(0, capacity as u64, written, &records)
        .0
}
