//! The few facts that a payload wants from its device tree (Devicetree Specification, chapter 5).
//!
//! A reader of one pass over untrusted bytes: whatever is malformed ends the walk, and what was not
//! found keeps its default.

const MAGIC: u32 = 0xd00d_feed;
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const NOP: u32 = 4;

/// What the tree says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Machine<'a> {
    /// Number of `/cpus/cpu@…` nodes.
    pub cpus: usize,
    /// Bytes of the first block of RAM.
    pub memory: u64,
    /// `/chosen/bootargs`.
    pub bootargs: &'a str,
}

/// The size that a blob claims, from its first 8 bytes; `None` if it is no device tree.
pub fn total_size(head: &[u8]) -> Option<usize> {
    (word(head, 0)? == MAGIC).then_some(word(head, 4)? as usize)
}

/// Reads the tree.
pub fn read(blob: &[u8]) -> Machine<'_> {
    let mut machine = Machine::default();
    // A walk that ends early has found what it has found.
    let _ = walk(blob, &mut machine);
    machine
}

fn walk<'a>(blob: &'a [u8], machine: &mut Machine<'a>) -> Option<()> {
    total_size(blob)?;
    let mut at = word(blob, 8)? as usize;
    let strings = word(blob, 12)? as usize;
    let mut depth = 0;
    let mut node = "";
    loop {
        let token = word(blob, at)?;
        at = at.checked_add(4)?;
        match token {
            BEGIN_NODE => {
                node = text(blob, at)?;
                depth += 1;
                if depth == 3 && node.starts_with("cpu@") {
                    machine.cpus += 1;
                }
                at = at
                    .checked_add(node.len() + 1)?
                    .checked_next_multiple_of(4)?;
            }
            END_NODE => {
                depth -= 1;
                // Properties precede subnodes, so what follows belongs to no node of interest.
                node = "";
            }
            PROP => {
                let length = word(blob, at)? as usize;
                let name = text(blob, strings.checked_add(word(blob, at + 4)? as usize)?)?;
                let value = blob.get(at + 8..)?.get(..length)?;
                if depth == 2 && node == "chosen" && name == "bootargs" {
                    machine.bootargs = text(value, 0)?;
                }
                if depth == 2 && node.starts_with("memory@") && name == "reg" {
                    // Two cells of address, two of size: this machine's root says so.
                    machine.memory = u64::from(word(value, 8)?) << 32 | u64::from(word(value, 12)?);
                }
                at = at.checked_add(8 + length)?.checked_next_multiple_of(4)?;
            }
            NOP => {}
            _ => return Some(()),
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_be_bytes(*bytes))
}

fn text(bytes: &[u8], at: usize) -> Option<&str> {
    let bytes = bytes.get(at..)?;
    let end = bytes.iter().position(|b| *b == 0)?;
    core::str::from_utf8(&bytes[..end]).ok()
}

#[cfg(test)]
mod tests {
    use super::{Machine, read, total_size};

    /// A tree of tokens, with a strings block of `bootargs` at 0 and `reg` at 9.
    fn blob(tokens: &[u8]) -> Vec<u8> {
        let strings = b"bootargs\0reg\0";
        let mut out = Vec::new();
        for word in [
            0xd00d_feedu32,
            (16 + tokens.len() + strings.len()) as u32,
            16,
        ] {
            out.extend(word.to_be_bytes());
        }
        out.extend((16 + tokens.len() as u32).to_be_bytes());
        out.extend(tokens);
        out.extend(strings);
        out
    }

    fn begin(out: &mut Vec<u8>, name: &str) {
        out.extend(1u32.to_be_bytes());
        out.extend(name.bytes());
        out.push(0);
        out.resize(out.len().next_multiple_of(4), 0);
    }

    fn end(out: &mut Vec<u8>) {
        out.extend(2u32.to_be_bytes());
    }

    fn prop(out: &mut Vec<u8>, name: u32, value: &[u8]) {
        for word in [3, value.len() as u32, name] {
            out.extend(word.to_be_bytes());
        }
        out.extend(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }

    fn tree() -> Vec<u8> {
        let mut t = Vec::new();
        begin(&mut t, "");
        begin(&mut t, "chosen");
        prop(&mut t, 0, b"umbra quick\0");
        end(&mut t);
        begin(&mut t, "memory@80000000");
        let reg: Vec<u8> = [0, 0x8000_0000u32, 1, 0x400_0000]
            .iter()
            .flat_map(|w| w.to_be_bytes())
            .collect();
        prop(&mut t, 9, &reg);
        end(&mut t);
        begin(&mut t, "cpus");
        for name in ["cpu@0", "cpu@1"] {
            begin(&mut t, name);
            prop(&mut t, 9, &[0; 8]);
            end(&mut t);
        }
        end(&mut t);
        end(&mut t);
        t.extend(9u32.to_be_bytes());
        blob(&t)
    }

    #[test]
    fn reads_what_payloads_ask_for() {
        let blob = tree();
        assert_eq!(total_size(&blob), Some(blob.len()));
        let want = Machine {
            cpus: 2,
            memory: 0x1_0400_0000,
            bootargs: "umbra quick",
        };
        assert_eq!(read(&blob), want);
    }

    #[test]
    fn a_tree_cut_short_gives_what_came_before() {
        let whole = tree();
        for length in 0..whole.len() {
            let cut = read(&whole[..length]);
            assert!(cut.cpus <= 2 && (cut.memory == 0 || cut.memory == 0x1_0400_0000));
        }
        assert_eq!(read(b"no device tree at all"), Machine::default());
    }
}
