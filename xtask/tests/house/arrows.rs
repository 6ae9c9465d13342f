//! Arrows point down only: `kernel → {hw, nested → stage2, abort, apei, vgic, kvm-abi, frames, sched, linux} → arm64`.
//! Logic never sees `hw`, `hw` never sees logic; the VMM knows the kernel by its ABI alone.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// Each package and all it may use of ours, by any kind of dependency.
const ALLOWED: [(&str, &[&str]); 21] = [
    ("umbra-arm64", &[]),
    ("umbra-abort", &["umbra-arm64"]),
    ("umbra-apei", &["umbra-arm64"]),
    ("umbra-frames", &["umbra-arm64"]),
    ("umbra-kvm-abi", &["umbra-arm64"]),
    ("umbra-linux", &["umbra-arm64"]),
    ("umbra-nested", &["umbra-arm64", "umbra-stage2"]),
    ("umbra-sched", &["umbra-arm64"]),
    ("umbra-stage2", &["umbra-arm64"]),
    ("umbra-trace", &["umbra-arm64"]),
    ("umbra-vgic", &["umbra-arm64"]),
    ("umbra-hw", &["umbra-arm64"]),
    (
        "umbra-kernel",
        &[
            "umbra-abort",
            "umbra-apei",
            "umbra-arm64",
            "umbra-frames",
            "umbra-hw",
            "umbra-kvm-abi",
            "umbra-linux",
            "umbra-nested",
            "umbra-sched",
            "umbra-stage2",
            "umbra-trace",
            "umbra-vgic",
        ],
    ),
    (
        "umbra-fuzz",
        &[
            "umbra-abort",
            "umbra-apei",
            "umbra-arm64",
            "umbra-kvm-abi",
            "umbra-linux",
            "umbra-nested",
            "umbra-stage2",
            "umbra-vgic",
        ],
    ),
    (
        "umbra-benches",
        &["umbra-abort", "umbra-arm64", "umbra-nested", "umbra-stage2"],
    ),
    ("umbra-guests", &["umbra-arm64"]),
    ("umbra-oracle", &["umbra-arm64", "umbra-nested"]),
    ("umbra-init", &[]),
    ("umbra-vmm", &["umbra-kvm-abi"]),
    ("xtask", &["umbra-arm64", "umbra-trace"]),
    ("umbra-qemu-plugin", &[]),
];

/// Each package of the workspace and the packages of ours that it names.
fn arrows() -> BTreeMap<String, BTreeSet<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let out = Command::new(cargo)
        .args([
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version",
            "1",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo metadata starts");
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let metadata: Value = serde_json::from_slice(&out.stdout).expect("cargo metadata says JSON");
    let packages = metadata["packages"].as_array().expect("a list of packages");
    let name = |value: &Value| value["name"].as_str().expect("a name").to_owned();
    let ours: BTreeSet<String> = packages.iter().map(name).collect();
    let used = |package: &Value| -> BTreeSet<String> {
        let dependencies = package["dependencies"]
            .as_array()
            .expect("a list of dependencies");
        dependencies
            .iter()
            .map(name)
            .filter(|n| ours.contains(n))
            .collect()
    };
    packages.iter().map(|p| (name(p), used(p))).collect()
}

/// What breaks the table, in words.
fn violations(arrows: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.into_iter().collect();
    let mut found = Vec::new();
    for (package, used) in arrows {
        let Some(may) = allowed.get(package.as_str()) else {
            found.push(format!("{package} is not in the table"));
            continue;
        };
        let bad = used.iter().filter(|u| !may.contains(&u.as_str()));
        found.extend(bad.map(|u| format!("{package} must not use {u}")));
    }
    let gone = allowed.keys().filter(|p| !arrows.contains_key(**p));
    found.extend(gone.map(|p| format!("{p} is in the table but not in the workspace")));
    found
}

#[test]
fn dependencies_point_down_only() {
    let found = violations(&arrows());
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_table_itself_has_no_circle() {
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.into_iter().collect();
    let mut placed: BTreeSet<&str> = BTreeSet::new();
    while placed.len() < allowed.len() {
        let ready: Vec<&str> = allowed
            .iter()
            .filter(|(p, used)| !placed.contains(**p) && used.iter().all(|u| placed.contains(u)))
            .map(|(p, _)| *p)
            .collect();
        assert!(
            !ready.is_empty(),
            "a circle among the packages that are not in {placed:?}"
        );
        placed.extend(ready);
    }
}

#[test]
fn an_arrow_that_points_up_is_found() {
    let mut arrows = arrows();
    let used = arrows.get_mut("umbra-stage2").expect("stage2 exists");
    used.insert("umbra-hw".to_owned());
    arrows.insert("umbra-new".to_owned(), BTreeSet::new());
    arrows.remove("umbra-vgic");
    let found = violations(&arrows);
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found.contains(&"umbra-stage2 must not use umbra-hw".to_owned()));
}
