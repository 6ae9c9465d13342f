//! Memory errors: whose memory, where, and which way each went.

use super::html::{Cell, Table, count, duration};
use super::time::class_name;
use crate::trace::log::Log;
use crate::trace::story::{Class, MemoryError, Story};
use crate::trace::tracks::Lane;
use std::collections::BTreeMap;
use umbra_arm64::Esr;
use umbra_trace::{Event, Owner, SeaPath};

/// Errors that are listed.
const ROWS: usize = 100;

/// The section.
pub(super) fn section(log: &Log, story: &Story) -> String {
    let head = "<section id=\"errors\"><h2>Memory errors</h2>";
    if story.errors.is_empty() {
        return format!("{head}<p class=\"empty\">None.</p></section>");
    }
    let mut paths: BTreeMap<(Owner, SeaPath), u64> = BTreeMap::new();
    for error in &story.errors {
        if let Event::Sea { owner, path, .. } = error.event {
            *paths.entry((owner, path)).or_default() += 1;
        }
    }
    let items: String = paths
        .iter()
        .map(|((owner, path), number)| {
            let whose = match owner {
                Owner::Host => "umbra’s memory",
                Owner::Guest => "guest’s memory",
            };
            format!("<li><b>{}</b>{whose} → {}</li>", count(*number), way(*path))
        })
        .collect();
    let number = story.errors.len();
    let caption = match number {
        n if n > ROWS => format!("The first {ROWS} of {} memory errors", count(n as u64)),
        _ => "Memory errors".to_owned(),
    };
    let mut table = Table::new(
        &caption,
        &[
            "When", "Met by", "vCPU", "Access", "Virtual", "L2", "VM (L1)", "Whose", "Way",
        ],
    );
    for error in story.errors.iter().take(ROWS) {
        table.row(row(log, story, error));
    }
    format!(
        "{head}<ul class=\"ways\">{items}</ul>{}</section>",
        table.html()
    )
}

fn way(path: SeaPath) -> &'static str {
    match path {
        SeaPath::Vmm => "to the VMM (KVM_EXIT_ARM_SEA)",
        SeaPath::SError => "into the guest, as an SError",
        SeaPath::ExternalAbort => "into the guest, as an external abort",
        SeaPath::Healed => "healed",
        SeaPath::Firmware => "to firmware",
        SeaPath::Signal => "SIGBUS for the VMM",
        SeaPath::Fatal => "the machine stopped",
    }
}

fn row(log: &Log, story: &Story, error: &MemoryError) -> Vec<Cell> {
    let Event::Sea {
        esr,
        gva,
        ipa,
        l2,
        owner,
        path,
    } = error.event
    else {
        return Vec::new();
    };
    let ticks = error.time.saturating_sub(story.span.0);
    let esr = Esr::new(esr);
    let access = crate::trace::exits::reason(umbra_trace::ExitKind::Trap, esr.raw());
    vec![
        Cell::number(ticks as f64, &duration(log.ns(ticks))),
        Cell::text(Lane::of(error.storey).map_or("umbra", Lane::name))
            .marked(class_name(Class::of(error.storey))),
        Cell::text(&format!("VM {} vCPU {}", error.vcpu.vm, error.vcpu.vcpu)),
        Cell::text(&format!("{access}, {:#x}", esr.raw())),
        Cell::address(gva.map(|at| at.raw())),
        Cell::address(l2.map(|at| at.raw())),
        Cell::address(ipa.map(|at| at.raw())),
        Cell::text(owner.name()),
        Cell::text(way(path)),
    ]
}
