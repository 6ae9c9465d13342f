//! The on-target cases: one table, so that it is plain to see what is tested on a booted umbra.

use super::case::{Case, File, Guests, HELLO, Leave, Work};
use super::network;
use crate::build;
use crate::hash;
use crate::nested::Storeys;
use crate::run::report;
use crate::setup::Flavour;
use crate::workspace::Workspace;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

/// The exit status of umbra-vmm when its guest asks for a reset.
const RESET: i32 = 32;

/// All cases, for a run with this nonce.
pub(crate) fn all(ws: &Workspace, nonce: &str) -> Result<Vec<Case>> {
    let mut cases = fixed(nonce);
    for (name, source) in build::payload_sources(ws)? {
        cases.push(from_payload(name, &source)?);
    }
    let suites = cases.iter().filter(|c| c.is_suite()).cloned();
    let (nested, plain): (Vec<Case>, Vec<Case>) = suites.partition(Case::is_nested);
    cases.push(reference_suites("reference/suites-linux-kvm", plain));
    let agreed = |case: &Case| AGREED.contains(&case.name.as_str());
    let nested = nested.into_iter().filter(agreed).collect();
    cases.push(reference_suites("reference/l1-linux-kvm", nested));
    for (name, payload, events) in TRACED {
        let plain = cases.iter().find(|c| c.name == payload);
        let plain = plain.with_context(|| format!("{name} traces no case: {payload}"))?;
        cases.push(plain.traced(name, events));
    }
    Ok(cases)
}

fn fixed(nonce: &str) -> Vec<Case> {
    use File::{Busybox, Linked, Probe, Threads};
    use Work::{First, Linux, Program, Reference};
    let up = |cpus: u32| {
        let banner = format!("(?m)^umbra: {cpus} CPUs? up$");
        let work = Program(Busybox, vec!["true"]);
        Case::new(&format!("boot/{cpus}cpu"), cpus, work, 30, &[&banner])
    };
    // EX_UNAVAILABLE of sysexits.h.
    let refused = |name: &str, words, why: &str| {
        let why = format!("(?m)^umbra: .*{why}");
        Case::new(name, 1, Work::Refused(words), 30, &[&why]).status(69)
    };
    let digest = format!("(?m)^{}  /hello.txt$", hash::of_bytes(HELLO.as_bytes()));
    let hello = format!("(?m)^{}$", HELLO.trim_end());
    let busybox = |name: &str, args: Vec<&'static str>, expect: &str| {
        Case::new(name, 2, Program(Busybox, args), 30, &[expect])
    };
    let linux = |name: &str, cpus: u32, flavour: Flavour, more: &[&str]| {
        let mut expect = vec![report(cpus, nonce)];
        expect.extend(more.iter().map(|e| (*e).to_owned()));
        let expect: Vec<&str> = expect.iter().map(String::as_str).collect();
        let guests = Guests::usual(flavour, cpus);
        Case::new(name, cpus, Linux(guests), 240, &expect)
    };
    // On a machine of two CPUs; `mem` is what the guest must say of its memory, in MiB.
    let sized = |name: &str, guests: Guests, mem: &str| {
        let reports = guests.nonces(nonce).into_iter();
        let expect: Vec<String> = reports
            .map(|nonce| report(guests.cpus, &nonce).replace("\\d+MiB", &format!("{mem}MiB")))
            .collect();
        let expect: Vec<&str> = expect.iter().map(String::as_str).collect();
        Case::new(name, 2, Linux(guests), 300, &expect)
    };
    let network = |name: &str, flavour: Flavour| {
        let expect = network::expectations(nonce);
        let expect: Vec<&str> = expect.iter().map(String::as_str).collect();
        Case::new(name, 2, Work::Network(flavour), 300, &expect)
    };
    let eight = |flavour: Flavour| Guests::usual(flavour, 8);
    let large = |flavour: Flavour| Guests {
        memory: "2G",
        ..Guests::usual(flavour, 1)
    };
    let three = |flavour: Flavour| Guests {
        side_by_side: 3,
        ..Guests::usual(flavour, 1)
    };
    let giant = Guests {
        memory: "1G,hugepages=1G",
        ..Guests::usual(Flavour::Newest, 2)
    };
    // Only the smallest of the kernels leaves room for anything.
    let small = Guests {
        memory: "64M",
        ..Guests::usual(Flavour::V6_12, 1)
    };
    let storeys = |l1: Flavour, cpus: u32, l2: Flavour, l2_cpus: u32| Storeys {
        l1,
        cpus,
        l2,
        l2_cpus,
        side_by_side: 1,
    };
    let two_storeys = |name: &str, storeys: Storeys| {
        let expect: Vec<String> = storeys.expectations(nonce);
        let expect: Vec<&str> = expect.iter().map(String::as_str).collect();
        let limit = 300 * u64::from(storeys.side_by_side);
        Case::new(name, storeys.cpus, Work::Nested(storeys), limit, &expect)
    };
    let reference = |name: &str, flavour: Flavour| {
        let outer = format!("(?m)^umbra: storey=L0 cpus=2 mem=\\d+MiB nonce={nonce}$");
        let inner = report(2, nonce);
        let expect = [outer.as_str(), &inner, "(?m)^umbra: umbra-vmm exited 0$"];
        Case::new(name, 2, Reference(flavour), 300, &expect)
    };
    let oracle = |name: &str, tables: u32, limit: u64| {
        let tables_told = format!("(?m)^{tables} tables, [1-9]\\d+ questions$");
        let expect = [
            &tables_told,
            "(?m)^ok oracle/differences: 0$",
            "(?m)^done oracle$",
        ];
        Case::new(name, 1, Work::Oracle(tables), limit, &expect)
    };
    let terminal = |how: Leave| {
        // It builds umbra as users have it first.
        let name = format!("run/{}", how.name());
        Case::new(&name, 2, Work::Terminal(how), 300, &[])
    };
    let mut cases = vec![
        up(1),
        up(2),
        up(4),
        refused(
            "boot/at-el1",
            &["-M", "virtualization=off"],
            "starts its kernel at EL1",
        ),
        refused(
            "boot/without-vhe",
            &["-cpu", "cortex-a72"],
            "lacks FEAT_VHE",
        ),
        refused("boot/gicv2", &["-M", "gic-version=2"], "names no GICv3"),
        Case::new(
            "program/hello",
            2,
            Program(Threads, vec![]),
            60,
            &["(?m)^el0-threads: ok$"],
        ),
        busybox("program/busybox-cat", vec!["cat", "/hello.txt"], &hello),
        busybox(
            "program/busybox-sha256sum",
            vec!["sha256sum", "/hello.txt"],
            &digest,
        ),
        busybox(
            "program/busybox-uname",
            vec!["uname", "-m"],
            "(?m)^aarch64$",
        ),
        // The year of the machine's clock, not of its start.
        busybox(
            "program/busybox-date",
            vec!["date", "+%Y"],
            "(?m)^20[2-9]\\d$",
        ),
        busybox(
            "program/busybox-missing-file",
            vec!["cat", "/missing"],
            "No such file or directory",
        )
        .status(1),
        Case::new(
            "program/first-output",
            2,
            First(Busybox, vec!["cat", "hello.txt"], HELLO),
            30,
            &[],
        ),
        Case::new(
            "program/first-input",
            1,
            First(Busybox, vec!["cat"], HELLO),
            30,
            &[],
        ),
        Case::new(
            "program/first-status",
            1,
            First(Busybox, vec!["sh", "-c", "exit 42"], ""),
            30,
            &[],
        )
        .status(42),
        Case::new("program/linked", 1, First(Linked, vec![], ""), 30, &[])
            .status(super::linked::STATUS),
        terminal(Leave::PowerOff),
        terminal(Leave::CtrlAX),
        terminal(Leave::Terminated),
        linux("linux/1cpu", 1, Flavour::Newest, &[]),
        // Armv8.2: no FEAT_NV2, FEAT_S2FWB, FEAT_FGT, FEAT_ECV, FEAT_MOPS.
        linux("linux/neoverse-n1", 2, Flavour::Newest, &[]).on("neoverse-n1"),
        linux(
            "linux/2cpu",
            2,
            Flavour::Newest,
            &["(?m)^umbra: page=4KiB "],
        ),
        linux(
            "linux/6.12",
            2,
            Flavour::V6_12,
            &["(?m)^Linux version 6\\.12\\."],
        ),
        linux(
            "linux/16k",
            2,
            Flavour::Pages16k,
            &["(?m)^umbra: page=16KiB "],
        ),
        linux("linux/4cpu", 4, Flavour::Newest, &[]).full_only("four CPUs on two cores are slow"),
        sized("linux/8-vcpus-on-2", eight(Flavour::Newest), r"4\d\d"),
        sized("linux/64M", small, r"[1-5]\d"),
        sized("linux/2G", large(Flavour::Newest), r"(19|20)\d\d"),
        sized("linux/three", three(Flavour::V6_12), r"4\d\d"),
        sized("linux/1G-page", giant, r"9\d\d")
            .full_only("kvm/huge asks the same of a small guest"),
        network("linux/two-on-a-switch", Flavour::V6_12),
        Case::new("linux/disk", 2, Work::Disk(Flavour::V6_12), 120, &[]),
        network("linux/two-on-a-switch-16k", Flavour::Pages16k).full_only(SIZED),
        sized("linux/8-vcpus-on-2-16k", eight(Flavour::Pages16k), r"4\d\d").full_only(SIZED),
        sized("linux/2G-16k", large(Flavour::Pages16k), r"(19|20)\d\d").full_only(SIZED),
        sized("linux/three-16k", three(Flavour::Pages16k), r"4\d\d").full_only(SIZED),
        two_storeys(
            "nested/1cpu",
            storeys(Flavour::Newest, 1, Flavour::Newest, 1),
        ),
        two_storeys(
            "nested/smp",
            storeys(Flavour::Newest, 2, Flavour::Newest, 2),
        ),
        two_storeys(
            "nested/16k-4k",
            storeys(Flavour::Pages16k, 2, Flavour::Newest, 1),
        ),
        oracle("oracle/at", 20_000, 120),
        oracle("oracle/at-million", 1_000_000, 1800)
            .full_only("fifty times the tables of oracle/at"),
        Case::new(
            "nested/memory-error",
            2,
            Work::MemoryError,
            420,
            &["(?m)^umbra: worker l2victim exited 135$"],
        ),
        reference("reference/linux-kvm", Flavour::Newest),
        reference("reference/linux-kvm-16k", Flavour::Pages16k)
            .full_only("a second look at the reference"),
    ];
    const LONG: &str = "a mix of kernels that the shorter run has the halves of";
    for (name, l1, l2) in [
        ("nested/4k-16k", Flavour::Newest, Flavour::Pages16k),
        ("nested/16k-16k", Flavour::Pages16k, Flavour::Pages16k),
        ("nested/6.12-6.12", Flavour::V6_12, Flavour::V6_12),
        ("nested/6.12-newest", Flavour::V6_12, Flavour::Newest),
        ("nested/6.12-16k", Flavour::V6_12, Flavour::Pages16k),
        ("nested/newest-6.12", Flavour::Newest, Flavour::V6_12),
        ("nested/16k-6.12", Flavour::Pages16k, Flavour::V6_12),
    ] {
        cases.push(two_storeys(name, storeys(l1, 2, l2, 2)).full_only(LONG));
    }
    let pair = Storeys {
        side_by_side: 2,
        ..storeys(Flavour::Newest, 2, Flavour::Newest, 1)
    };
    cases.push(
        two_storeys("nested/side-by-side", pair).full_only("twice the machine, and twice the time"),
    );
    let done = suite("kvm-probe");
    let done = done.each_ref().map(String::as_str);
    let words = [
        "--umbra",
        "noise/everything",
        "--calls",
        "10000000",
        "--limit",
        "2400",
    ];
    let many = Case::new(
        "kvm/noise-10-million",
        2,
        Program(Probe, words.to_vec()),
        2500,
        &done,
    );
    cases.push(many.full_only("a hundred times the calls of kvm/noise"));
    cases.extend(PROBES.iter().map(|group| {
        let name = format!("kvm/{}", group.trim_end_matches('/'));
        Case::new(&name, 2, Program(Probe, vec!["--umbra", group]), 60, &done)
    }));
    cases.extend(policies());
    cases
}

/// The policies of umbra-vmm, each tried on a guest that meets an error which nobody knew of: a name, the end's
/// status, what the VMM tells of each event and, where the guest goes on, of the second.
const POLICIES: [(&str, i32, &[&str]); 4] = [
    (
        "inject",
        0,
        &[
            r#""by":"exit","vcpu":0,"esr":"0x92000010","gva":"0x[0-9a-f]+","gpa":"0x[0-9a-f]+","l2_ipa":null,"action":"inject""#,
            r#""by":"signal","vcpu":0,"hva":"0x[0-9a-f]+","gpa":"0x[0-9a-f]+","lsb":12,"action":"inject""#,
        ],
    ),
    (
        "replace",
        0,
        &[r#""by":"exit",.*"action":"replace","lost_bytes":4096"#],
    ),
    (
        "stop",
        1,
        &[
            r#""by":"exit",.*"action":"stop""#,
            "(?m)^umbra-vmm: vcpu0: the guest met a memory error, at 0x[0-9a-f]+ ",
        ],
    ),
    ("report", 0, &[r#""by":"exit",.*"action":"report""#]),
];

fn policies() -> impl Iterator<Item = Case> {
    POLICIES.into_iter().map(|(policy, status, told)| {
        let options = "--memory 64M --error-injection --on-memory-error";
        let options = options.split(' ').chain([policy, "--cmdline"]);
        let mut options: Vec<String> = options.map(str::to_owned).collect();
        options.push(format!("latent {policy}"));
        let work = Work::Payload("memory_error".to_owned(), options);
        let mut expect: Vec<String> = told.iter().map(|&told| told.to_owned()).collect();
        if status == 0 {
            expect.push(format!("(?m)^ok memory_error/{policy}$"));
            expect.push("(?m)^ok memory_error/neighbours$".to_owned());
        }
        let expect: Vec<&str> = expect.iter().map(String::as_str).collect();
        Case::new(&format!("policy/{policy}"), 2, work, 60, &expect).status(status)
    })
}

/// Why a guest's size is tried once in the shorter run.
const SIZED: &str = "a size that the shorter run has with pages of 4 KiB";

/// Cases that run once more with a trace: name, what runs, events that must be in it.
const TRACED: [(&str, &str, &[&str]); 3] = [
    (
        "trace/guest",
        "payload/basics",
        &[
            "kvm:kvm_entry",
            "kvm:kvm_exit",
            "kvm:kvm_guest_fault",
            "kvm:kvm_mmio",
            "kvm:kvm_hvc_arm64",
            "kvm:kvm_sys_access",
            "kvm:kvm_userspace_exit",
            "umbra:map",
            "raw_syscalls:sys_enter",
            "context_tracking:user_enter",
            "sched:sched_switch",
            "power:cpu_idle",
        ],
    ),
    (
        "trace/lines",
        "payload/timer",
        &["kvm:vgic_update_irq_pending", "kvm:kvm_vcpu_wakeup"],
    ),
    (
        "trace/nested",
        "payload/l1_enter",
        &[
            "kvm:kvm_nested_eret",
            "kvm:kvm_inject_nested_exception",
            "umbra:walk",
            "umbra:shadow",
            "umbra:map",
            "umbra:tlbi",
        ],
    ),
];

/// The groups of kvm-probe's questions, as its filter takes them.
const PROBES: &[&str] = &[
    "system/",
    "vcpus/",
    "slots/",
    "huge/",
    "dirty/",
    "mmio/",
    "run/",
    "firmware/",
    "regs/",
    "events/",
    "debug/",
    "time/",
    "timers/",
    "pmu/",
    "gic/",
    "interface/",
    "irq/",
    "its/",
    "follow/",
    "oom/",
    "isolation/",
    "poison/",
    "below/",
    "shadows/",
    "el2/",
    "ghes/",
    "heal/",
    "campaign/",
    "hostile/",
    "sweep/",
    "noise/",
];

/// The hypervisors that Linux runs to their ends in good time: it takes half a minute to give one a third
/// space for its guests, so those that make many are umbra's alone.
const AGREED: [&str; 3] = ["payload/l1_enter", "payload/l1_mmio", "payload/l1_at"];

/// All suites in one boot of Linux with KVM.
fn reference_suites(name: &str, suites: Vec<Case>) -> Case {
    let expect: Vec<String> = suites
        .iter()
        .map(|c| {
            let line = regex::escape(&c.epilogue(&c.status.to_string()));
            format!("(?m)^{line}$")
        })
        .collect();
    let expect: Vec<&str> = expect.iter().map(String::as_str).collect();
    Case::new(name, 2, Work::ReferenceSuites(suites), 600, &expect)
        .full_only("what Linux answers to the suites changes with the suites alone")
}

/// What a suite of checks says: at least one passed, and it came to its end.
fn suite(name: &str) -> [String; 2] {
    let end = format!("(?m)^done {}$", regex::escape(name));
    [r"(?m)^ok \S".to_owned(), end]
}

/// A payload's case. Its source may say in its head, each on a line of its own:
/// `//! umbra-vmm: OPTIONS…` (further options for the VMM) and `//! ends: reset`.
fn from_payload(payload: String, source: &Path) -> Result<Case> {
    let text =
        fs::read_to_string(source).with_context(|| format!("cannot read {}", source.display()))?;
    let name = format!("payload/{payload}");
    let directive = |key: &str| {
        let head = text.lines().take_while(|l| l.starts_with("//!"));
        head.filter_map(|l| l.trim_start_matches("//!").trim().strip_prefix(key))
            .next()
    };
    let options = directive("umbra-vmm:").unwrap_or("--cpus 1 --memory 64M");
    let options = options.split_whitespace().map(str::to_owned).collect();
    let status = if directive("ends:").is_some_and(|d| d.trim() == "reset") {
        RESET
    } else {
        0
    };
    let expect = suite(&payload);
    let expect = expect.each_ref().map(String::as_str);
    let case = Case::new(&name, 2, Work::Payload(payload, options), 60, &expect);
    Ok(case.status(status))
}

#[cfg(test)]
mod tests {
    use super::{Case, PROBES, Work, fixed, from_payload};
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_patterns_are_regular() {
        let cases = fixed("0123");
        let names: BTreeSet<&str> = cases.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names.len(), cases.len());
        for Case {
            name, expect, work, ..
        } in &cases
        {
            assert!(name.contains('/'), "{name}");
            assert!(
                !expect.is_empty()
                    || matches!(work, Work::First(..) | Work::Terminal(_) | Work::Disk(_)),
                "{name} expects nothing"
            );
            for pattern in expect {
                assert!(regex::Regex::new(pattern).is_ok(), "{name}: {pattern}");
            }
        }
    }

    #[test]
    fn every_question_of_the_probe_is_asked() {
        let source = include_str!("../../../vmm/src/probe/mod.rs");
        let rows = source.split("rows! {").nth(1).unwrap();
        let rows = rows.split('}').next().unwrap();
        let groups: Vec<String> = rows
            .split(';')
            .filter_map(|row| Some(format!("{}/", row.split_once(':')?.0.trim())))
            .collect();
        assert_eq!(groups, PROBES);
    }

    #[test]
    fn a_payloads_head_directs_its_run() {
        let source = std::env::temp_dir().join(format!("umbra-payload-{}.rs", std::process::id()));
        let case = |text: &str| {
            std::fs::write(&source, text).unwrap();
            from_payload("p".into(), &source).unwrap()
        };
        let plain = case("//! A question.\n\n//! umbra-vmm: --cpus 9\n");
        assert!(
            matches!(&plain.work, Work::Payload(_, o) if o.join(" ") == "--cpus 1 --memory 64M")
        );
        assert_eq!(plain.status, 0);
        let directed = case("//! A question.\n//! umbra-vmm: --cpus 2\n//! ends: reset\n");
        assert!(matches!(&directed.work, Work::Payload(_, o) if o.join(" ") == "--cpus 2"));
        assert_eq!(directed.status, 32);
        std::fs::remove_file(&source).unwrap();
    }
}
