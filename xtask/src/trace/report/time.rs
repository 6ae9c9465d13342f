//! Where the time went: by storey, along the run, by CPU and by vCPU.

use super::html::{Cell, Table, duration, escape, share};
use crate::trace::log::Log;
use crate::trace::story::{Class, PIECES, Story, Times};
use std::fmt::Write as _;

/// The colour's name of a class.
pub(super) fn class_name(class: Class) -> &'static str {
    match class {
        Class::Umbra => "c-umbra",
        Class::Process => "c-process",
        Class::Guest => "c-guest",
        Class::VirtualEl2 => "c-vel2",
        Class::Nested => "c-nested",
        Class::Idle => "c-idle",
    }
}

/// The section.
pub(super) fn section(log: &Log, story: &Story) -> String {
    let times = story.times();
    let whole = times.iter().sum::<u64>() as f64;
    let mut out = String::from("<section id=\"time\"><h2>Time by storey</h2>");
    out.push_str(&legend(log, &times, whole));
    let present: Vec<Class> = Class::ALL
        .into_iter()
        .filter(|class| times[*class as usize] > 0)
        .collect();
    out.push_str(&line(log, story, &present));
    let mut table = Table::new("Time by CPU and by vCPU", &head(&present));
    for (cpu, times) in &story.cpus {
        table.row(row(log, &format!("CPU {cpu}"), times, &present));
    }
    for (id, times) in &story.vcpus {
        let name = format!("VM {} vCPU {}", id.vm, id.vcpu);
        table.row(row(log, &name, times, &present));
    }
    out.push_str(&table.html());
    out.push_str(
        "<p class=\"note\">A vCPU’s umbra time is what its exits took, its VMM time what its thread did between KVM_RUNs.</p></section>",
    );
    out
}

/// One bar of all time, and each part's name and size beside its colour.
fn legend(log: &Log, times: &Times, whole: f64) -> String {
    let mut bar = String::new();
    let mut list = String::new();
    for class in Class::ALL {
        let ticks = times[class as usize];
        if ticks == 0 {
            continue;
        }
        let (color, name) = (class_name(class), escape(class.name()));
        let (time, part) = (duration(log.ns(ticks)), share(ticks as f64, whole));
        let grow = ticks as f64 / whole;
        // Writing to a String cannot fail.
        let _ = write!(
            bar,
            "<div class=\"{color}\" style=\"flex-grow:{grow:.5}\" title=\"{name}: {time}, {part}\"></div>"
        );
        let _ = write!(
            list,
            "<li><i class=\"mark {color}\"></i>{name}<b>{part}</b><span>{time}</span></li>"
        );
    }
    format!(
        "<div class=\"stack\" role=\"img\" aria-label=\"Shares of all CPUs’ time; the list below has the numbers\">{bar}</div><ul class=\"legend\">{list}</ul>"
    )
}

/// The shares along the run: a column each piece, umbra at the bottom.
fn line(log: &Log, story: &Story, present: &[Class]) -> String {
    let mut shapes = String::new();
    let mut floor = vec![0.0f64; PIECES];
    for class in present {
        let mut path = String::new();
        for (at, piece) in story.pieces.iter().enumerate() {
            let whole = piece.iter().sum::<u64>().max(1) as f64;
            let height = piece[*class as usize] as f64 * 100.0 / whole;
            if height > 0.05 {
                let top = 100.0 - floor[at] - height;
                // Writing to a String cannot fail.
                let _ = write!(path, "M{at} {top:.1}h1v{height:.1}h-1z");
            }
            floor[at] += height;
        }
        let _ = write!(
            shapes,
            "<path class=\"{}\" d=\"{path}\"><title>{}</title></path>",
            class_name(*class),
            escape(class.name())
        );
    }
    let end = duration(log.ns(story.ticks()));
    format!(
        "<figure><figcaption>Share of all CPUs along the run, 0 to 100 %</figcaption><svg class=\"line\" viewBox=\"0 0 {PIECES} 100\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"Shares of time along the run\">{shapes}</svg><div class=\"axis\"><span>0 s</span><span>{end}</span></div></figure>"
    )
}

fn head(present: &[Class]) -> Vec<&'static str> {
    let classes = present.iter().map(|class| class.name());
    std::iter::once("Where").chain(classes).collect()
}

fn row(log: &Log, name: &str, times: &Times, present: &[Class]) -> Vec<Cell> {
    let whole = times.iter().sum::<u64>().max(1) as f64;
    let cells = present.iter().map(|class| {
        let ticks = times[*class as usize];
        let text = duration(log.ns(ticks));
        Cell::number(ticks as f64, &text).bar(ticks as f64 / whole)
    });
    std::iter::once(Cell::text(name)).chain(cells).collect()
}
