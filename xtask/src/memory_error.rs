//! A memory error on the machine that one process of a guest's guest meets, and nobody else.
//!
//! ```text
//!  umbra ── umbra-vmm ── Debian (L1) ── umbra-vmm ── Debian (L2) ── workers a, b, victim
//!       │                     └ worker                                         │ makes a page of its own bad
//!       └── umbra-vmm ── Debian ── worker      (a second VM)                   └──► and meets the error
//! ```
//!
//! The error's way is read back from what each storey said of it: every address that one storey names
//! must be the one that the next storey names too.

use crate::guest::{self, Item};
use crate::run::vmm_command;
use crate::setup::GuestFiles;
use crate::workspace::Workspace;
use anyhow::Result;
use regex::Regex;
use std::path::{Path, PathBuf};

/// The register of `umbra-vmm --error-injection`, the same on every storey.
const REGISTER: &str = "0x9100000";
/// The policy of both VMMs: the one that keeps the guest's guest alive.
const POLICY: &str = "replace";
/// What a shell says of a program that died of SIGBUS.
const DIED_OF_SIGBUS: u8 = 128 + 7;

/// The programs inside the guests.
pub(crate) struct Inside<'a> {
    /// The VMM.
    pub(crate) vmm: &'a Path,
    /// The worker.
    pub(crate) worker: &'a Path,
}

fn vmm(cmdline: &str, cpus: u32, memory: &str) -> Vec<String> {
    let mut argv = vmm_command("/guest/Image", Some("/guest/initrd"), cmdline, cpus, memory);
    argv.extend(["--on-memory-error", POLICY, "--error-injection"].map(str::to_owned));
    argv.extend(["--console", "serial,lines=whole"].map(str::to_owned));
    argv
}

fn cmdline(storey: &str) -> String {
    format!("console=ttyS0 quiet panic=-1 umbra.do=run umbra.storey={storey} umbra.nonce=$nonce")
}

/// A shell line that starts a worker in the background.
fn start(name: &str, rounds: u32, register: &str) -> String {
    format!("/bin/memory-worker {name} 256 {rounds} {register} &\n{name}=$!\n")
}

/// A shell line that waits for it and tells its status.
fn wait(name: &str) -> String {
    format!("wait ${name}; echo \"umbra: worker {name} exited $?\"\n")
}

/// The initramfs of L1, with that of L2 in it, and that of the second VM.
pub(crate) fn initramfs(
    ws: &Workspace,
    debian: &GuestFiles,
    inside: &Inside<'_>,
) -> Result<(PathBuf, PathBuf)> {
    let worker = || Item::from_file("/bin/memory-worker", inside.worker);
    let script = |lines: &[String]| Item::text("/umbra-run", &lines.concat());

    let l2 = script(&[
        // Rust's runtime has a handler for SIGBUS that takes itself away and returns, so that the access is
        // made again; a page that was replaced meanwhile lets it pass. It stays away where the signal
        // is ignored, and an abort's signal cannot be.
        "trap '' BUS\n".to_owned(),
        start("l2a", 40, ""),
        start("l2b", 40, ""),
        start("l2victim", 20, REGISTER),
        wait("l2victim"),
        wait("l2a"),
        wait("l2b"),
        "dmesg | grep -iE 'synchronous external|hardware memory|SError' | tail -4\n".to_owned(),
    ]);
    let l2 = guest::initramfs(ws, debian, &[worker()?, l2])?;
    let l2 = guest::save(ws, "memory-error-l2.cpio", &l2)?;

    let command = vmm(&cmdline("L2"), 1, "256M");
    let words: Vec<String> = command.iter().map(|word| format!("\"{word}\"")).collect();
    let l1 = script(&[
        "nonce=$(value umbra.nonce none)\n".to_owned(),
        start("l1", 600, ""),
        format!("{} </dev/null\n", words.join(" ")),
        "echo \"umbra: the VMM of L2 exited $?\"\n".to_owned(),
        wait("l1"),
    ]);
    let items = [
        worker()?,
        Item::from_file("/bin/umbra-vmm", inside.vmm)?,
        Item::from_file("/guest/Image", &debian.kernel)?,
        Item::from_file("/guest/initrd", &l2)?,
        l1,
    ];
    let l1 = guest::save(
        ws,
        "memory-error-l1.cpio",
        &guest::initramfs(ws, debian, &items)?,
    )?;

    let second = script(&[start("other", 2000, ""), wait("other")]);
    let second = guest::initramfs(ws, debian, &[worker()?, second])?;
    let second = guest::save(ws, "memory-error-second.cpio", &second)?;
    Ok((l1, second))
}

/// The arguments of init: both VMs at once.
pub(crate) fn commands(cpus: u32, nonce: &str) -> Vec<String> {
    let mut words = vmm(&cmdline("L1").replace("$nonce", nonce), cpus, "1024M");
    words.push("--nested".to_owned());
    words.push("+++".to_owned());
    let second = vmm(&cmdline("second").replace("$nonce", nonce), 1, "256M");
    let second = second.into_iter().map(|word| match word.as_str() {
        "/guest/initrd" => "/guest/second".to_owned(),
        _ => word,
    });
    words.extend(second);
    words
}

/// What a storey said of the error.
struct Told<'a> {
    console: &'a str,
}

impl Told<'_> {
    /// The first line that matches, as its groups in numbers.
    fn find(&self, what: &str, pattern: &str) -> Result<Vec<u64>, String> {
        let regex = Regex::new(pattern).map_err(|e| e.to_string())?;
        let groups = regex
            .captures(self.console)
            .ok_or_else(|| format!("nobody said: {what} ({pattern})"))?;
        groups
            .iter()
            .skip(1)
            .flatten()
            .map(|group| {
                u64::from_str_radix(group.as_str(), 16).map_err(|e| format!("{what}: {e}"))
            })
            .collect()
    }

    fn count(&self, pattern: &str) -> usize {
        Regex::new(pattern).map_or(0, |regex| regex.find_iter(self.console).count())
    }

    fn has(&self, text: &str) -> bool {
        self.console.contains(text)
    }
}

/// Follows the error through what the machine said. `Ok`: its way storey by storey and the table of what
/// was lost; `Err`: what is wrong, with as much of that as there is.
pub(crate) fn follow(console: &str) -> Result<String, String> {
    let told = Told { console };
    let hex = "0x([0-9a-f]+)";
    let plant = |by: &str| {
        format!(r#""event":"plant","gpa":"{hex}","hva":"{hex}","pa":"{hex}","by":"{by}""#)
    };
    let met = |l2: &str| {
        format!(
            r#""event":"memory-error","by":"exit","vcpu":\d+,"esr":"{hex}","gva":"{hex}","gpa":"{hex}","l2_ipa":{l2}"#
        )
    };
    let victim = told.find(
        "the victim's page",
        &format!(r"l2victim makes its page at {hex} bad, physical {hex}"),
    )?;
    let above = told.find("L1's VMM passes it on", &plant("the storey below"))?;
    let below = told.find("umbra's VMM plants it", &plant("einj"))?;
    let frame = told.find(
        "umbra takes the frame",
        &format!(r"memory error at {hex}: Latent"),
    )?;
    let l0 = told.find("umbra's VMM hears of it", &met(&format!(r#""{hex}""#)))?;
    let l1 = told.find("L1's VMM hears of it", &met("null"))?;

    let page = |address: u64| address & !0xfff;
    let mut wrong = Vec::new();
    let mut same = |what: &str, a: u64, b: u64| {
        if page(a) != page(b) {
            wrong.push(format!("{what}: {a:#x} is not {b:#x}"));
        }
    };
    same("L2's page as L1's VMM knows it", above[0], victim[1]);
    same("L1's page as umbra's VMM knows it", below[0], above[2]);
    same("the frame", frame[0], below[2]);
    same("gpa of the exit, in L1's space", l0[2], below[0]);
    same("the address below, in L2's space", l0[3], victim[1]);
    same("gpa of L1's exit, in L2's space", l1[2], victim[1]);
    same("gva of umbra's exit", l0[1], victim[0]);
    same("gva of L1's exit", l1[1], victim[0]);
    // One word in the middle of the page may be the one that is met, but it is a load from below.
    for (who, esr) in [("umbra's", l0[0]), ("L1's", l1[0])] {
        if esr != 0x9200_0010 {
            wrong.push(format!("the syndrome of {who} exit is {esr:#x}"));
        }
    }
    for (what, pattern, wanted) in [
        ("exits to umbra's VMM", met(&format!(r#""{hex}""#)), 1),
        ("exits to L1's VMM", met("null"), 1),
    ] {
        let count = told.count(&pattern);
        if count != wanted {
            wrong.push(format!("{count} {what}, not {wanted}"));
        }
    }
    let way = format!(
        "the way of the error\n\
         \x20 L2    the victim's page {:#x} lies at {:#x} of L2\n\
         \x20 L1    its VMM has that at {:#x} of L1\n\
         \x20 L0    umbra's VMM has that in frame {:#x}: bad from here on\n\
         \x20 L2    the victim loads from {:#x}\n\
         \x20 umbra exit 41 to its VMM: esr {:#x}, gpa {:#x} of L1 ({:#x} of L2); aborts virtual EL2, fresh page\n\
         \x20 L1    KVM: exit 41 to its VMM: esr {:#x}, gpa {:#x} of L2; aborts L2, fresh page\n\
         \x20 L2    the kernel sends the victim SIGBUS\n",
        victim[0], victim[1], above[2], frame[0], l0[1], l0[0], l0[2], l0[3], l1[0], l1[2],
    );
    let mut table = String::from("what was lost\n");
    let mut ended = |who: &str, name: &str, status: u8| {
        let line = format!("umbra: worker {name} exited {status}");
        let right =
            told.has(&line) && (status != 0 || told.has(&format!("memory-worker: {name} ok")));
        let outcome = match (right, status) {
            (true, 0) => "nothing: every word right",
            (true, _) => "this process, by SIGBUS",
            (false, _) => "NOT AS IT SHOULD BE",
        };
        table.push_str(&format!("  {who:<28} {outcome}\n"));
        if !right {
            wrong.push(format!("{who}: {line:?} is not there"));
        }
    };
    ended("L2, the victim", "l2victim", DIED_OF_SIGBUS);
    ended("L2, a second process", "l2a", 0);
    ended("L2, a third process", "l2b", 0);
    ended("L1, a process", "l1", 0);
    ended("the second VM", "other", 0);
    for (who, line) in [
        ("L2", "umbra: the VMM of L2 exited 0"),
        ("L1 and the second VM", "umbra: run exited 0"),
    ] {
        if !told.has(line) {
            wrong.push(format!("{who}: {line:?} is not there"));
        }
    }
    let text = format!("{way}{table}  one page of 4 KiB; policy of both VMMs: {POLICY}\n");
    if wrong.is_empty() {
        Ok(text)
    } else {
        Err(format!("{}\n{text}", wrong.join("\n")))
    }
}

#[cfg(test)]
mod tests {
    use super::follow;

    const CONSOLE: &str = r#"memory-worker: l2victim makes its page at 0xffffaab55000 bad, physical 0x83259000
{"event":"plant","gpa":"0x83259000","hva":"0xffffa1459000","pa":"0x83c59000","by":"the storey below"}
{"event":"plant","gpa":"0x83c59000","hva":"0x7ffec3859000","pa":"0x54c59000","by":"einj"}
umbra: WARN: memory error at 0x0000000054c59000: Latent, Owned(Anonymous)
{"event":"memory-error","by":"exit","vcpu":1,"esr":"0x92000010","gva":"0xffffaab55000","gpa":"0x83c59000","l2_ipa":"0x83259000","action":"replace","lost_bytes":4096}
{"event":"memory-error","by":"exit","vcpu":0,"esr":"0x92000010","gva":"0xffffaab55000","gpa":"0x83259000","l2_ipa":null,"action":"replace","lost_bytes":4096}
memory-worker: l2b ok pages=256 rounds=40 sum=6b32de1a287de31f
memory-worker: l2a ok pages=256 rounds=40 sum=6b32de1a287de31f
umbra: worker l2victim exited 135
umbra: worker l2a exited 0
umbra: worker l2b exited 0
umbra: run exited 0
umbra: the VMM of L2 exited 0
memory-worker: l1 ok pages=256
umbra: worker l1 exited 0
memory-worker: other ok pages=256
umbra: worker other exited 0
"#;

    #[test]
    fn a_run_as_it_should_be() {
        let text = follow(CONSOLE).unwrap();
        assert!(text.contains("gpa 0x83c59000 of L1 (0x83259000 of L2)"));
        assert!(text.contains("this process, by SIGBUS"));
    }

    #[test]
    fn each_thing_that_is_not_as_it_should_be_is_named() {
        for (from, to, word) in [
            ("exited 135", "exited 0", "victim"),
            ("l2a ok pages", "l2a FAILED", "a second process"),
            (
                "worker other exited 0",
                "worker other exited 1",
                "second VM",
            ),
            ("the VMM of L2 exited 0", "the VMM of L2 exited 1", "L2"),
            (
                r#""gpa":"0x83c59000","l2_ipa""#,
                r#""gpa":"0x83259000","l2_ipa""#,
                "in L1's space",
            ),
            (
                r#""l2_ipa":"0x83259000""#,
                r#""l2_ipa":"0x83250000""#,
                "in L2's space",
            ),
            (
                "at 0x0000000054c59000: Latent",
                "at 0x0000000054c58000: Latent",
                "the frame",
            ),
            (
                r#""esr":"0x92000010","gva":"0xffffaab55000","gpa":"0x83259000""#,
                r#""esr":"0x92000050","gva":"0xffffaab55000","gpa":"0x83259000""#,
                "syndrome",
            ),
            (r#"by":"einj""#, r#"by":"nobody""#, "umbra's VMM plants it"),
        ] {
            assert!(CONSOLE.contains(from), "{from}");
            let why = follow(&CONSOLE.replace(from, to)).unwrap_err();
            assert!(why.contains(word), "{from}: {why}");
        }
        let twice = format!("{CONSOLE}{}", CONSOLE.lines().nth(4).unwrap());
        assert!(follow(&twice).unwrap_err().contains("2 exits"));
    }
}
