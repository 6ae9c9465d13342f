//! A disk that outlives the machine: a Debian guest writes to it and the machine ends; the next machine
//! finds what was written, meets a sector that the disk cannot read, and writes beside it.
//!
//! The two machines share nothing but the file behind the disk, which is looked at in the end.

use super::boot::Bench;
use super::case::{Case, HELLO};
use super::report::tail;
use crate::bootargs::BootArgs;
use crate::guest::{self, Item};
use crate::image::Symbols;
use crate::qemu::{Disk, End, Machine};
use crate::run::vmm_command;
use crate::setup::{self, Flavour};
use crate::transcript::Transcript;
use anyhow::{Context, Result};
use regex::Regex;
use std::path::Path;
use std::time::Duration;

/// Bytes of the disk.
const BYTES: usize = 1 << 20;
/// Sector that the guest writes to.
const WRITTEN: usize = 3;
/// Sector that the second machine's disk cannot read.
const BAD: u64 = 8;
/// Where the second machine writes: across the bounds of two sectors.
const ACROSS: usize = 1000;

/// Runs both machines; an error says what was not as it should be.
pub(super) fn run(bench: &Bench<'_>, case: &Case, flavour: Flavour) -> Result<Result<(), String>> {
    let name = case.name.replace('/', "-");
    let file = bench.ws.folder("image")?.join(format!("test-{name}.img"));
    std::fs::write(&file, vec![0x5a; BYTES]).context("the disk")?;
    let result = both(bench, case, flavour, &name, &file);
    std::fs::remove_file(&file).context("the disk")?;
    result
}

fn both(
    bench: &Bench<'_>,
    case: &Case,
    flavour: Flavour,
    name: &str,
    file: &Path,
) -> Result<Result<(), String>> {
    let first = first(bench, flavour)?;
    let disk = |bad_sector| {
        Some(Disk {
            file: file.to_path_buf(),
            bad_sector,
        })
    };
    let said = boot(bench, case, &format!("{name}-1"), first, disk(None))?;
    let guest = format!(
        r"(?m)^umbra: storey=L1 cpus=1 mem=\d+MiB nonce={}$",
        bench.nonce
    );
    let wanted = [
        &guest,
        r"(?m)^umbra: guest disk 2048$",
        "(?m)^umbra: run exited 0$",
    ];
    if let Err(why) = said.and_then(|text| all(&text, &wanted)) {
        return Ok(Err(format!("the first machine: {why}")));
    }
    let second = second(bench)?;
    let said = boot(bench, case, &format!("{name}-2"), second, disk(Some(BAD)))?;
    let found = format!("(?m)^{}$", bench.nonce);
    let wanted = [
        &format!("(?m)^{BYTES}$"),
        &format!("{found}(?s:.*){found}"),
        "(?m)^dd: .*Input/output error$",
        "(?m)^umbra-init: 4 /bin/busybox exited 1$",
        "(?m)^umbra-init: 5 /bin/busybox exited 0$",
        "(?m)^umbra-init: 6 /bin/busybox exited 1$",
        "(?i)no space left on device",
    ];
    if let Err(why) = said.and_then(|text| all(&text, &wanted)) {
        return Ok(Err(format!("the second machine: {why}")));
    }
    // What is in the file: what was written, and nothing else changed.
    let mut expected = vec![0x5a; BYTES];
    let nonce = format!("{}\n", bench.nonce);
    for (at, text) in [
        (WRITTEN * 512, nonce.as_bytes()),
        (ACROSS, HELLO.as_bytes()),
    ] {
        expected[at..at + text.len()].copy_from_slice(text);
    }
    let bytes = std::fs::read(file).context("the disk")?;
    let same = bytes == expected;
    Ok(same.then_some(()).ok_or_else(|| {
        let at = bytes.iter().zip(&expected).position(|(a, b)| a != b);
        format!("the file is not what was written: it differs at {at:?}")
    }))
}

/// What a machine boots: the files of its initrd, and its boot arguments.
type Boot = (Vec<Item>, BootArgs);

/// A guest that writes to umbra's disk by way of umbra-vmm.
fn first(bench: &Bench<'_>, flavour: Flavour) -> Result<Boot> {
    let script = format!(
        "echo \"umbra: guest disk $(cat /sys/block/vda/size)\"\n\
         echo {} | dd of=/dev/vda bs=512 seek={WRITTEN} conv=notrunc,fsync\n",
        bench.nonce
    );
    let debian = setup::guest_files(bench.ws, flavour)?;
    let inside = [Item::text("/umbra-run", &script)];
    let initrd = guest::initramfs(bench.ws, &debian, &inside)?;
    let mut argv = vmm_command(
        "/guest/Image",
        Some("/guest/initrd"),
        &guest::cmdline("run", bench.nonce),
        1,
        "256M",
    );
    argv.extend(["--disk", "/dev/vda"].map(str::to_owned));
    let items = vec![
        Item::from_file("/init", &bench.programs.init)?,
        Item::from_file("/bin/umbra-vmm", &bench.programs.vmm)?,
        Item::from_file("/guest/Image", &debian.kernel)?,
        Item::bytes("/guest/initrd", initrd),
    ];
    Ok((items, BootArgs::new("/init", argv)))
}

/// Programs on umbra that read and write its disk.
fn second(bench: &Bench<'_>) -> Result<Boot> {
    let at = WRITTEN * 512;
    let len = bench.nonce.len() + 1;
    let commands = [
        "blockdev --getsize64 /dev/vda".to_owned(),
        format!("dd if=/dev/vda bs=512 skip={WRITTEN} count=1"),
        format!("dd if=/dev/vda bs=1 skip={at} count={len}"),
        format!("dd if=/dev/vda bs=512 skip={BAD} count=1"),
        format!(
            "dd if=/hello.txt of=/dev/vda bs=100 seek={} conv=notrunc,fsync",
            ACROSS / 100
        ),
        format!(
            "dd if=/hello.txt of=/dev/vda bs=512 seek={} conv=notrunc",
            BYTES / 512
        ),
    ];
    let words = commands.map(|command| format!("/bin/busybox {command}"));
    let argv = words.join(" --- ").split(' ').map(str::to_owned).collect();
    let items = vec![
        Item::from_file("/init", &bench.programs.init)?,
        Item::from_file("/bin/busybox", &setup::busybox(bench.ws)?)?,
        Item::text("/hello.txt", HELLO),
    ];
    Ok((items, BootArgs::new("/init", argv)))
}

/// One boot, to its end: what it said.
fn boot(
    bench: &Bench<'_>,
    case: &Case,
    name: &str,
    (items, arguments): Boot,
    disk: Option<Disk>,
) -> Result<Result<String, String>> {
    let kernel = bench.kernel.as_ref().context("umbra was not built")?;
    let machine = Machine {
        cpus: case.cpus,
        kernel: kernel.image.clone(),
        initrd: guest::save(
            bench.ws,
            &format!("test-{name}.cpio"),
            &guest::initrd(&items)?,
        )?,
        append: arguments.render()?,
        disk,
    };
    let mut log = Transcript::new(bench.ws, &format!("test-{name}"))?;
    let symbols = Symbols::read(&kernel.elf)?;
    let limit = Duration::from_secs(case.limit);
    let outcome = machine.run(bench.qemu, &mut log, limit, &symbols, |_| {})?;
    std::fs::remove_file(&machine.initrd).context("the initrd")?;
    Ok(match outcome.end {
        End::Exited(Some(0 | 1)) => Ok(outcome.console),
        other => Err(format!("ended: {other:?}\n{}", tail(&outcome.console, 40))),
    })
}

/// Whether each pattern is in a text.
fn all(text: &str, patterns: &[&str]) -> Result<(), String> {
    for pattern in patterns {
        let pattern = Regex::new(pattern).map_err(|e| e.to_string())?;
        if !pattern.is_match(text) {
            return Err(format!("nothing like {pattern}\n{}", tail(text, 40)));
        }
    }
    Ok(())
}
