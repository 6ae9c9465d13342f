//! What the loader hands over: the command line against a second reading of its quotes, and a device tree
//! of any content.

#[path = "../../../kernel/src/boot/args.rs"]
mod args;
#[path = "../../../kernel/src/boot/tree.rs"]
mod tree;

use args::BootArgs;

/// As `umbra_hw::MAX_CPUS`: how many CPUs are taken from the tree.
const MAX_CPUS: usize = 8;

/// The words of a line: blanks outside quotes part them, and quotes go.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut any) = (Vec::new(), String::new(), false, false);
    for c in line.chars() {
        match c {
            '"' => (quoted, any) = (!quoted, true),
            ' ' if !quoted => {
                if any {
                    words.push(core::mem::take(&mut word));
                }
                any = false;
            }
            c => {
                word.push(c);
                any = true;
            }
        }
    }
    if any {
        words.push(word);
    }
    words
}

fn line(text: &str) {
    let arguments = BootArgs(text);
    let program = arguments.first_program();
    assert!(program.iter().all(|word| !word.contains('"')));
    // Quotes round the parting word make it another word, in the kernel alone.
    if !text.contains("\"") {
        let words = words(text);
        let at = words.iter().position(|word| word == "--");
        let behind = at.map_or(&[][..], |at| &words[at + 1..]);
        assert_eq!(&program[1..], behind);
        let options = &words[..at.unwrap_or(words.len())];
        let value = |key: &str| options.iter().find_map(|word| word.strip_prefix(key));
        assert_eq!(program[0], value("init=").unwrap_or("/init"));
        assert_eq!(arguments.stdin().as_deref(), value("umbra.stdin="));
        assert_eq!(
            arguments.trace_file().as_deref(),
            value("umbra.trace.file=")
        );
        assert_eq!(arguments.live_file().as_deref(), value("umbra.live="));
        assert_eq!(arguments.sabotage(), value("umbra.sabotage="));
        let hest = arguments.hest();
        assert_eq!(hest.is_some(), value("umbra.hest=").is_some());
        if let Some(Err(word)) = hest {
            assert_eq!(Some(word), value("umbra.hest="));
        }
        let quiet = options.iter().any(|word| word == "umbra.quiet");
        assert_eq!(arguments.quiet(), quiet);
    } else if !text.contains("--") {
        assert_eq!(program.len(), 1);
    } else if let Some((_, behind)) = text.split_once(" -- ")
        && !text.starts_with("-- ")
        && !text[..text.len() - behind.len()].contains('"')
    {
        assert_eq!(program[1..], words(behind));
    }
    let _ = (arguments.semihosting(), arguments.trace());
}

fn device_tree(blob: &[u8]) {
    let machine = tree::Machine::read(blob);
    assert!(machine.cpus.len() <= MAX_CPUS);
    assert!(machine.initrd.is_none_or(|(_, bytes)| bytes > 0));
    let counts = (
        machine.ram.len(),
        machine.reserved.len(),
        machine.rng_seed.len(),
    );
    assert!(counts.0 <= 16 && counts.1 <= tree::RESERVED && counts.2 <= 64);
    assert!(!machine.too_much || counts.0 == 16 || counts.1 == tree::RESERVED);
    assert!(machine.cpus_left == 0 || machine.cpus.len() == MAX_CPUS);
    let _ = (machine.clock, machine.console, machine.gic);
    line(machine.bootargs.0);
}

pub(crate) fn run(bytes: &[u8]) {
    match core::str::from_utf8(bytes) {
        Ok(text) => line(text),
        Err(_) => device_tree(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::tree;
    use umbra_arm64::Pa;

    /// A device tree in the making: the structure block, and the names of properties.
    #[derive(Default)]
    struct Writer {
        nodes: Vec<u8>,
        names: Vec<u8>,
    }

    impl Writer {
        fn words(&mut self, words: &[u32]) {
            self.nodes
                .extend(words.iter().flat_map(|word| word.to_be_bytes()));
        }

        fn padded(&mut self, bytes: &[u8]) {
            self.nodes.extend(bytes);
            self.nodes.resize(self.nodes.len().next_multiple_of(4), 0);
        }

        fn node(&mut self, name: &str, inside: impl FnOnce(&mut Self)) {
            self.words(&[1]);
            self.padded(format!("{name}\0").as_bytes());
            inside(self);
            self.words(&[2]);
        }

        fn property(&mut self, name: &str, value: &[u8]) {
            self.words(&[3, value.len() as u32, self.names.len() as u32]);
            self.names.extend(format!("{name}\0").bytes());
            self.padded(value);
        }

        fn reg(&mut self, base: u64, bytes: u64) {
            let value = [base.to_be_bytes(), bytes.to_be_bytes()].concat();
            self.property("reg", &value);
        }

        fn cells(&mut self) {
            self.property("#address-cells", &[0, 0, 0, 2]);
            self.property("#size-cells", &[0, 0, 0, 2]);
        }

        /// The blob, with one range that its header reserves.
        fn blob(mut self, reserved: (u64, u64)) -> Vec<u8> {
            self.words(&[9]);
            let (head, reservations) = (40, 32);
            let strings = head + reservations + self.nodes.len();
            let total = strings + self.names.len();
            let header = [
                0xd00d_feed,
                total as u32,
                (head + reservations) as u32,
                strings as u32,
                head as u32,
                17,
                16,
                0,
                self.names.len() as u32,
                self.nodes.len() as u32,
            ];
            let mut blob: Vec<u8> = header
                .iter()
                .flat_map(|word: &u32| word.to_be_bytes())
                .collect();
            for number in [reserved.0, reserved.1, 0, 0] {
                blob.extend(number.to_be_bytes());
            }
            blob.extend(self.nodes);
            blob.extend(self.names);
            blob
        }
    }

    /// A machine with two consoles, of which /chosen names one, and more or less of everything.
    fn blob(stdout: Option<&str>, reserved: u64) -> Vec<u8> {
        let mut tree = Writer::default();
        tree.node("", |root| {
            root.cells();
            root.node("memory@40000000", |node| {
                node.property("device_type", b"memory\0");
                node.reg(0x4000_0000, 0x1000_0000);
            });
            root.node("memory@80000000", |node| {
                node.property("device_type", b"memory\0");
                node.property("status", b"disabled\0");
                node.reg(0x8000_0000, 0x1000_0000);
            });
            root.node("reserved-memory", |node| {
                node.cells();
                for n in 0..reserved {
                    node.node(&format!("held@{n}"), |held| {
                        held.reg(0x4100_0000 + n * 0x1000, 0x1000);
                    });
                }
                // A pool that has no place yet.
                node.node("pool", |pool| {
                    pool.property("size", &[0, 0, 0, 0, 0, 16, 0, 0])
                });
            });
            for (at, status) in [(0x900_0000, "okay\0"), (0x904_0000, "okay\0")] {
                root.node(&format!("pl011@{at:x}"), |uart| {
                    uart.property("compatible", b"arm,pl011\0arm,primecell\0");
                    uart.property("status", status.as_bytes());
                    uart.reg(at, 0x1000);
                });
            }
            root.node("aliases", |node| {
                node.property("serial1", b"/pl011@9040000\0")
            });
            root.node("chosen", |node| {
                if let Some(path) = stdout {
                    node.property("stdout-path", format!("{path}\0").as_bytes());
                }
            });
        });
        tree.blob((0x4f00_0000, 0x2000))
    }

    #[test]
    fn what_is_reserved_is_kept_from_whoever_says_so() {
        let blob = blob(None, 2);
        let machine = tree::Machine::read(&blob);
        assert_eq!(machine.ram[..], [(Pa::new(0x4000_0000), 0x1000_0000)]);
        let expected = [
            (0x4f00_0000, 0x2000),
            (0x4100_0000, 0x1000),
            (0x4100_1000, 0x1000),
        ];
        assert_eq!(
            machine.reserved[..],
            expected.map(|(at, bytes)| (Pa::new(at), bytes))
        );
        assert!(!machine.too_much);
        // What does not fit is told, and not given away.
        let blob = self::blob(None, 70);
        assert!(tree::Machine::read(&blob).too_much);
    }

    #[test]
    fn the_console_is_the_one_that_chosen_names() {
        for (stdout, base) in [
            (None, 0x900_0000),
            (Some("/pl011@9040000"), 0x904_0000),
            (Some("/pl011@9000000:115200n8"), 0x900_0000),
            (Some("serial1:115200"), 0x904_0000),
            (Some("serial7"), 0x900_0000),
            (Some("/memory@40000000"), 0x900_0000),
        ] {
            let blob = blob(stdout, 0);
            let machine = tree::Machine::read(&blob);
            assert_eq!(machine.console, Some((base, None)), "{stdout:?}");
        }
    }
}
