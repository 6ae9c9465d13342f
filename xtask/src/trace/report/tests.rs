//! The page of an empty, a crashed and a huge trace. (`cargo xtask test report/` opens them in a browser.)

use super::date;
use crate::trace::sample::{self, File, at};
use crate::trace::{About, page_of};
use std::time::{Duration, UNIX_EPOCH};
use umbra_trace::{Event, Storey};

fn about(end: &str, well: bool) -> About<'static> {
    About {
        name: "a run <b>",
        end: (end.to_owned(), well),
        qemu: "QEMU 10",
    }
}

fn page(bytes: &[u8], well: bool) -> String {
    let page = page_of(bytes, &about("ended", well)).unwrap();
    for elsewhere in ["http:", "https:", "src=", "href=", "url(", "@import"] {
        assert!(!page.contains(elsewhere), "the page refers to {elsewhere}");
    }
    assert!(!page.contains("a run <b>"), "a name got out of its text");
    for tag in ["section", "table", "figure", "svg", "ul", "main", "header"] {
        let opened =
            page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
        let closed = page.matches(&format!("</{tag}>")).count();
        assert_eq!(opened, closed, "{tag}");
    }
    page
}

#[test]
fn an_empty_run_says_so() {
    let page = page(&sample::empty(), false);
    assert!(page.contains("Nothing was recorded."));
    // Descriptions, and rings that nothing was written to.
    let rings = File::described().ring(0, 64, &[]).ring(1, 64, &[]);
    assert!(self::page(&rings.0, true).contains("Nothing was recorded."));
}

#[test]
fn a_crashed_run_shows_its_last_events_first() {
    let page = page(&sample::crashed(), false);
    assert!(page.contains("The file ends early"));
    let last = page.find("The last events").expect("the last events");
    assert!(last < page.find("Time by storey").expect("the times"));
    assert!(page.contains("class=\"end bad\""));
    assert!(!self::page(&sample::crashed(), true).contains("The last events"));
}

#[test]
fn a_huge_run_makes_a_page_of_bounded_size_that_says_what_it_left_out() {
    let page = page(&sample::huge(), true);
    assert!(page.len() < 1 << 20, "{} bytes", page.len());
    for said in [
        "The rings were full: the oldest 524\u{202f}288 events are lost",
        "Sampled: the 400 largest runs",
        "cheapest of",
        "Sampled: the 40 that were entered most",
        "The first 100 of",
        "The 50 largest of",
    ] {
        assert!(page.contains(said), "{said}");
    }
}

#[test]
fn an_event_of_another_version_is_named_not_understood() {
    let mut foreign = at(5, Storey::Guest, Event::Entry { pc: 0 });
    foreign.head.kind = 700;
    let text = "700 umbra:from_the_future a=x\n";
    let page = page(&File::with_schema(text).ring(0, 8, &[foreign]).0, true);
    assert!(page.contains("umbra:from_the_future"));
    assert!(page.contains("1 events are of another version"));
}

#[test]
fn days_are_days() {
    for (days, text) in [
        (0, "1970-01-01"),
        (19_782, "2024-02-29"),
        (20_778, "2026-11-21"),
    ] {
        assert_eq!(
            date(UNIX_EPOCH + Duration::from_secs(days * 86_400 + 7)),
            text
        );
    }
}
