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
    assert!(counts.0 <= 8 && counts.1 <= 16 && counts.2 <= 64);
    let _ = (machine.clock, machine.console, machine.gic);
    line(machine.bootargs.0);
}

pub(crate) fn run(bytes: &[u8]) {
    match core::str::from_utf8(bytes) {
        Ok(text) => line(text),
        Err(_) => device_tree(bytes),
    }
}
