//! What the host counted for this machine (`--stats`), as a table for people.
//!
//! The host's file describes itself: a header, names and units, numbers (KVM API, 4.134). Whatever a
//! host has is printed by the name it gives; nothing here knows a name.

use std::fmt::Write;

/// One statistic of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// The host's name for it.
    pub name: String,
    /// Its first value; histograms have more.
    pub value: u64,
    /// How many values it has.
    pub values: usize,
    /// The unit, as text to follow the number.
    pub unit: String,
}

/// Reads a statistics file. `None` for one that is not what it says.
pub fn parse(file: &[u8]) -> Option<Vec<Stat>> {
    let word = |at: usize| -> Option<usize> {
        let bytes = file.get(at..at.checked_add(4)?)?;
        usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok()
    };
    let (name_size, count) = (word(4)?, word(8)?);
    let (descs, data) = (word(16)?, word(20)?);
    let desc_size = name_size.checked_add(16)?;
    // A host that means more than the file has is caught below; this bounds the loop.
    let count = count.min(file.len() / desc_size.max(1));
    (0..count)
        .map(|index| {
            let at = descs.checked_add(index.checked_mul(desc_size)?)?;
            let (flags, scale, offset) = (word(at)?, word(at + 4)?, word(at + 8)?);
            let exponent = scale as u16 as i16;
            let name = file.get(at + 16..at.checked_add(desc_size)?)?;
            let name = name.split(|&byte| byte == 0).next()?;
            let at = data.checked_add(offset)?;
            let value = file.get(at..at.checked_add(8)?)?;
            Some(Stat {
                name: String::from_utf8_lossy(name).into_owned(),
                value: u64::from_le_bytes(value.try_into().ok()?),
                values: scale >> 16 & 0xffff,
                unit: unit(flags, exponent),
            })
        })
        .collect()
}

/// Unit in bits 7:4 of the flags, base of the exponent in 11:8.
fn unit(flags: usize, exponent: i16) -> String {
    let name = match flags >> 4 & 0xf {
        1 => "B",
        2 => "s",
        3 => "cycles",
        _ => "",
    };
    match (flags >> 8 & 0xf, exponent) {
        (_, 0) => name.to_owned(),
        (0, -9) => format!("n{name}"),
        (0, -6) => format!("u{name}"),
        (0, -3) => format!("m{name}"),
        (0, exponent) => format!("10^{exponent} {name}"),
        (_, exponent) => format!("2^{exponent} {name}"),
    }
}

/// The table: what the VM counted, and what its vCPUs did, as sums and one by one. What is zero
/// everywhere is left out, and so are histograms.
pub fn table(vm: &[Stat], vcpus: &[Vec<Stat>]) -> String {
    let mut text = String::from("statistics of the VM\n");
    for stat in vm.iter().filter(|stat| stat.values == 1 && stat.value != 0) {
        row(&mut text, stat, stat.value, &[]);
    }
    let what = if vcpus.len() == 1 { "vCPU" } else { "vCPUs" };
    let _ = writeln!(text, "statistics of {} {what}", vcpus.len());
    let Some(first) = vcpus.first() else {
        return text;
    };
    for (index, stat) in first.iter().enumerate() {
        let of = |vcpu: &Vec<Stat>| vcpu.get(index).map_or(0, |stat| stat.value);
        let each: Vec<u64> = vcpus.iter().map(of).collect();
        let sum = each
            .iter()
            .fold(0u64, |sum, value| sum.wrapping_add(*value));
        if stat.values == 1 && sum != 0 {
            row(
                &mut text,
                stat,
                sum,
                if each.len() > 1 { &each } else { &[] },
            );
        }
    }
    text
}

fn row(text: &mut String, stat: &Stat, sum: u64, each: &[u64]) {
    let _ = write!(text, "  {:<34} {sum:>16}", stat.name);
    for value in each {
        let _ = write!(text, " {value:>14}");
    }
    if !stat.unit.is_empty() {
        let _ = write!(text, " {}", stat.unit);
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file as Linux makes it: (name, flags, exponent, values).
    fn file(stats: &[(&str, u32, i16, &[u64])]) -> Vec<u8> {
        let (id, descs) = (24, 24 + 48);
        let data = descs + stats.len() * 64;
        let mut bytes = Vec::new();
        for word in [0, 48, stats.len(), id, descs, data] {
            bytes.extend_from_slice(&(word as u32).to_le_bytes());
        }
        bytes.resize(descs, b'x');
        let mut offset = 0u32;
        for (name, flags, exponent, values) in stats {
            bytes.extend_from_slice(&flags.to_le_bytes());
            bytes.extend_from_slice(&exponent.to_le_bytes());
            bytes.extend_from_slice(&(values.len() as u16).to_le_bytes());
            bytes.extend_from_slice(&offset.to_le_bytes());
            bytes.extend_from_slice(&[0; 4]);
            let mut padded = name.as_bytes().to_vec();
            padded.resize(48, 0);
            bytes.extend_from_slice(&padded);
            offset += values.len() as u32 * 8;
        }
        for (.., values) in stats {
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        bytes
    }

    #[test]
    fn names_values_and_units_are_the_host_s() {
        let bytes = file(&[
            ("exits", 0, 0, &[7]),
            ("halt_wait_ns", 2 << 4, -9, &[1 << 40]),
            ("hist", 4, 0, &[1, 2, 3]),
            ("pages", 1 | 1 << 4 | 1 << 8, 12, &[5]),
        ]);
        let stats = parse(&bytes).unwrap();
        let shown: Vec<_> = stats
            .iter()
            .map(|s| (s.name.as_str(), s.value, s.values, s.unit.as_str()))
            .collect();
        assert_eq!(
            shown,
            [
                ("exits", 7, 1, ""),
                ("halt_wait_ns", 1 << 40, 1, "ns"),
                ("hist", 1, 3, ""),
                ("pages", 5, 1, "2^12 B"),
            ]
        );
    }

    #[test]
    fn a_file_that_is_cut_or_lies_is_refused() {
        let bytes = file(&[("exits", 0, 0, &[7]), ("more", 0, 0, &[8])]);
        assert!(parse(&bytes).is_some());
        for end in 0..bytes.len() {
            let cut = parse(&bytes[..end]);
            assert!(cut.is_none_or(|stats| stats.len() < 2), "{end}");
        }
        for at in (0..24).step_by(4) {
            let mut wild = bytes.clone();
            wild[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
            // Refused or not, it does not panic.
            let _ = parse(&wild);
        }
    }

    #[test]
    fn the_table_has_sums_and_leaves_zeros_out() {
        let of = |exits, waits| {
            let stats = [
                ("exits", 0, 0, &[exits][..]),
                ("zero", 0, 0, &[0]),
                ("wait", 2 << 4, -9, &[waits]),
            ];
            parse(&file(&stats)).unwrap()
        };
        let text = table(&of(1, 0), &[of(3, 4), of(5, 6)]);
        let lines: Vec<String> = text
            .lines()
            .map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            lines,
            [
                "statistics of the VM",
                "exits 1",
                "statistics of 2 vCPUs",
                "exits 8 3 5",
                "wait 10 4 6 ns",
            ]
        );
    }
}
