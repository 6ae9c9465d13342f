//! The rings of last events that `kernel/src/trace.rs` keeps, read out of a machine that hangs.
//!
//! The kernel prints them itself when it panics; a machine that hangs is asked through QEMU's monitor,
//! and no code of it has to work any more for that.

use std::fmt::Write as _;

/// The rings' name.
pub(crate) const RING: &str = "umbra_kernel::trace::RINGS";

/// What the kernel calls its events, by number.
const NAMES: [&str; 8] = ["-", "exit", "fault", "irq", "switch", "call", "load", "put"];
const EVENTS: usize = 64;
const WORDS: usize = 4;
/// Events to show of each CPU.
const SHOWN: u64 = 16;

/// Where the kernel is linked, and where QEMU's `virt` machine puts the Image.
const LINKED: u64 = 0xffff_ffff_8000_0000;
const LOADED: u64 = 0x4020_0000;

/// The physical address of the kernel's data at `va`.
pub(crate) fn physical(va: u64) -> Option<u64> {
    va.checked_sub(LINKED)?.checked_add(LOADED)
}

/// The last events of every CPU, oldest first, a line each: CPU, counter, event, its two words.
pub(crate) fn decode(memory: &[u8]) -> String {
    let words: Vec<u64> = memory
        .chunks_exact(8)
        .map(|b| u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
        .collect();
    let mut text = String::new();
    for (cpu, ring) in words.chunks_exact(1 + EVENTS * WORDS).enumerate() {
        let next = ring[0];
        for at in next.saturating_sub(SHOWN)..next {
            let at = 1 + (at % EVENTS as u64) as usize * WORDS;
            let [time, event, a, b] = [ring[at], ring[at + 1], ring[at + 2], ring[at + 3]];
            let name = NAMES.get(event as usize).copied().unwrap_or("?");
            // Writing to a String cannot fail.
            let _ = writeln!(text, "event CPU {cpu}: {time} {name} {a:#x} {b:#x}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{EVENTS, LINKED, LOADED, NAMES, RING, WORDS, decode, physical};

    #[test]
    fn the_last_events_come_oldest_first() {
        let mut rings = vec![0u64; 2 * (1 + EVENTS * WORDS)];
        rings[0] = 65;
        rings[1..5].copy_from_slice(&[900, 3, 27, 0]);
        rings[1 + 63 * WORDS..][..WORDS].copy_from_slice(&[800, 1, 0x56, 0x4000]);
        let bytes: Vec<u8> = rings.iter().flat_map(|w| w.to_le_bytes()).collect();
        let text = decode(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 16, "{text}");
        assert_eq!(lines[14], "event CPU 0: 800 exit 0x56 0x4000");
        assert_eq!(lines[15], "event CPU 0: 900 irq 0x1b 0x0");
        assert_eq!(decode(&[]), "");
    }

    #[test]
    fn it_is_the_kernels_layout() {
        let source: String = include_str!("../../kernel/src/trace.rs")
            .split_whitespace()
            .collect();
        let names: Vec<String> = NAMES.iter().map(|n| format!("{n:?}")).collect();
        for part in [
            names.join(","),
            format!("EVENTS:usize={EVENTS};"),
            format!("WORDS:usize={WORDS};"),
            "#[repr(C)]structRing{next:AtomicU64,words:[AtomicU64;EVENTS*WORDS],}".to_owned(),
            "[umbra_hw::timer::ticks(),eventasu64,a,b]".to_owned(),
            "staticRINGS:".to_owned(),
        ] {
            assert!(source.contains(&part), "{part}");
        }
        assert!(RING.ends_with("RINGS"));
    }

    #[test]
    fn addresses() {
        assert_eq!(physical(LINKED + 0x1000), Some(LOADED + 0x1000));
        assert_eq!(physical(0x1000), None);
    }
}
