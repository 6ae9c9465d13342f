//! Debian version order (Debian Policy 5.6.12), as far as names of kernel packages need it: no epoch.

use std::cmp::Ordering;

/// Compares two version strings without an epoch, by dpkg's rule: runs of non-digits compare by
/// character with `~` before everything (even the end) and letters before other characters; runs of
/// digits compare as numbers.
pub(crate) fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    while !a.is_empty() || !b.is_empty() {
        let order = compare_text(
            take(&mut a, |c| !c.is_ascii_digit()),
            take(&mut b, |c| !c.is_ascii_digit()),
        );
        if order.is_ne() {
            return order;
        }
        let order = compare_number(
            take(&mut a, |c| c.is_ascii_digit()),
            take(&mut b, |c| c.is_ascii_digit()),
        );
        if order.is_ne() {
            return order;
        }
    }
    Ordering::Equal
}

fn take<'a>(text: &mut &'a [u8], keep: impl Fn(u8) -> bool) -> &'a [u8] {
    let end = text.iter().position(|c| !keep(*c)).unwrap_or(text.len());
    let (head, tail) = text.split_at(end);
    *text = tail;
    head
}

fn weight(c: Option<&u8>) -> i32 {
    match c {
        Some(b'~') => -1,
        None => 0,
        Some(c) if c.is_ascii_alphabetic() => i32::from(*c),
        Some(c) => i32::from(*c) + 256,
    }
}

fn compare_text(a: &[u8], b: &[u8]) -> Ordering {
    (0..a.len().max(b.len()))
        .map(|i| weight(a.get(i)).cmp(&weight(b.get(i))))
        .find(|order| order.is_ne())
        .unwrap_or(Ordering::Equal)
}

fn compare_number(a: &[u8], b: &[u8]) -> Ordering {
    let strip = |n: &[u8]| {
        n.iter()
            .position(|c| *c != b'0')
            .map_or(0, |at| n.len() - at)
    };
    let (la, lb) = (strip(a), strip(b));
    la.cmp(&lb)
        .then_with(|| a[a.len() - la..].cmp(&b[b.len() - lb..]))
}

#[cfg(test)]
mod tests {
    use super::compare;
    use std::cmp::Ordering::{Equal, Greater, Less};

    #[test]
    fn order_is_dpkgs() {
        // Each line's answer is what `dpkg --compare-versions` gives.
        for (a, b, want) in [
            ("7.3.4+deb13", "7.2.12+deb13", Greater),
            ("7.2.9+deb13", "7.2.12+deb13", Less),
            ("6.12.90+deb12", "6.12.90+deb12.1", Less),
            ("6.12.95+deb12", "6.12.95+deb13", Less),
            ("6.1.0-47", "6.1.0-50", Less),
            ("7.2.12-1~bpo13+1", "7.2.12-1", Less),
            ("1.0~rc1", "1.0", Less),
            ("1.0~~", "1.0~", Less),
            ("1.0a", "1.0+", Less),
            ("1.007", "1.7", Equal),
            ("0", "", Equal),
            ("10", "9", Greater),
        ] {
            assert_eq!(compare(a, b), want, "{a} {b}");
            assert_eq!(compare(b, a), want.reverse(), "{b} {a}");
        }
    }
}
