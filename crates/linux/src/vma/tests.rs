//! The map against a model that knows every page by itself, and the rules that the model does not see.

use super::change::Advised;
use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::format;
use std::vec;

type Space = AddressSpace<u64>;

const PAGES: u64 = 48;
const CEILING: u64 = USER_MIN + PAGES * PAGE;

fn at(page: u64) -> Hva {
    Hva::new(USER_MIN + page * PAGE)
}

fn span(first: u64, pages: u64) -> Span {
    Span::new(at(first), pages * PAGE).unwrap()
}

fn anon(place: Placement, pages: u64) -> Request<u64> {
    Request {
        place,
        len: pages * PAGE,
        prot: Prot::RW,
        backing: Backing::Anon,
        traits: Traits::default(),
    }
}

fn small() -> Space {
    Space::new(Hva::new(CEILING), 8 << 20)
}

fn large() -> Space {
    Space::new(Hva::new(USER_END), 8 << 20)
}

/// What one page is.
#[derive(Clone, PartialEq, Debug)]
struct Page {
    prot: Prot,
    backing: Backing<u64>,
    huge: HugeAdvice,
}

#[derive(Clone, Debug)]
enum Op {
    Map {
        place: u8,
        first: u64,
        pages: u64,
        prot: u8,
        backing: Backing<u64>,
    },
    Unmap(u64, u64),
    Protect(u64, u64, u8),
    Advise(u64, u64, bool),
    Discard(u64, u64),
    Remap {
        first: u64,
        old: u64,
        new: u64,
        flags: u32,
        to: u64,
    },
    Brk(u64),
}

fn backing() -> impl Strategy<Value = Backing<u64>> {
    prop_oneof![
        3 => Just(Backing::Anon),
        1 => (1u64..3, 0u64..4).prop_map(|(object, n)| Backing::Private { object, offset: n * PAGE }),
        1 => (1u64..3, 0u64..4).prop_map(|(object, n)| Backing::Shared { object, offset: n * PAGE }),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let first = 0..PAGES;
    let pages = 1u64..10;
    prop_oneof![
        4 => (0u8..3, first.clone(), pages.clone(), 0u8..8, backing()).prop_map(
            |(place, first, pages, prot, backing)| Op::Map { place, first, pages, prot, backing }
        ),
        2 => (first.clone(), pages.clone()).prop_map(|(a, b)| Op::Unmap(a, b)),
        2 => (first.clone(), pages.clone(), 0u8..8).prop_map(|(a, b, c)| Op::Protect(a, b, c)),
        1 => (first.clone(), pages.clone(), any::<bool>()).prop_map(|(a, b, c)| Op::Advise(a, b, c)),
        1 => (first.clone(), pages.clone()).prop_map(|(a, b)| Op::Discard(a, b)),
        3 => (first.clone(), pages.clone(), pages, 0u32..4, 0..PAGES).prop_map(
            |(first, old, new, flags, to)| Op::Remap { first, old, new, flags, to }
        ),
        1 => (20u64..34).prop_map(Op::Brk),
    ]
}

fn pages_of(space: &Space) -> BTreeMap<u64, Page> {
    let mut pages = BTreeMap::new();
    for area in space.iter() {
        for addr in (area.span.start..area.span.end).step_by(PAGE as usize) {
            let page = Page {
                prot: area.prot,
                backing: area.backing_at(Hva::new(addr)),
                huge: area.traits.huge,
            };
            assert!(pages.insert(addr, page).is_none(), "areas overlap");
        }
    }
    pages
}

fn addresses(spans: impl IntoIterator<Item = Span>) -> BTreeSet<u64> {
    let mut all = BTreeSet::new();
    for span in spans {
        for addr in (span.start..span.end).step_by(PAGE as usize) {
            assert!(all.insert(addr), "a page is named twice");
        }
    }
    all
}

fn check_shape(space: &Space) {
    let areas: Vec<_> = space.iter().collect();
    for pair in areas.windows(2) {
        assert!(pair[0].span.end <= pair[1].span.start);
        assert!(!pair[0].continues_as(pair[1]), "equal neighbours: {pair:?}");
    }
    for (start, area) in &space.areas {
        assert_eq!(*start, area.span.start);
        assert!(area.span.start < area.span.end && area.span.in_user_space());
    }
}

/// The model: pages by address, and the heap's end.
struct Model {
    pages: BTreeMap<u64, Page>,
    brk: u64,
}

impl Model {
    fn free(&self, span: Span) -> bool {
        self.pages.range(span.start..span.end).next().is_none()
    }

    fn full(&self, span: Span) -> bool {
        addresses([span])
            .iter()
            .all(|addr| self.pages.contains_key(addr))
    }

    fn highest_gap(&self, pages: u64) -> Option<Span> {
        (0..=PAGES.checked_sub(pages)?)
            .rev()
            .map(|first| span(first, pages))
            .find(|&s| self.free(s))
    }

    fn clear(&mut self, span: Span) {
        self.pages.retain(|addr, _| !span.contains(Hva::new(*addr)));
    }

    fn fill(&mut self, span: Span, page: &Page) {
        for addr in addresses([span]) {
            let backing = page.backing.advanced(addr - span.start);
            self.pages.insert(
                addr,
                Page {
                    backing,
                    ..page.clone()
                },
            );
        }
    }
}

/// Applies `op` to both; what the change list must say follows from the model before and after.
fn apply(space: &mut Space, model: &mut Model, op: Op) -> Result<(), TestCaseError> {
    let before = model.pages.clone();
    let mut replaced = BTreeSet::new();
    let changes = match op {
        Op::Map {
            place,
            first,
            pages,
            prot,
            backing,
        } => {
            let prot = Prot::from_bits_truncate(prot);
            let wanted = span(first, pages);
            let fits = wanted.end <= USER_END;
            let (place, expected) = match place {
                0 => {
                    let expected = if model.free(wanted) {
                        Some(wanted)
                    } else {
                        model.highest_gap(pages)
                    };
                    (Placement::Hint(at(first)), expected.ok_or(Errno::ENOMEM))
                }
                1 => (Placement::Replace(at(first)), Ok(wanted)),
                _ => {
                    let expected = if model.free(wanted) {
                        Ok(wanted)
                    } else {
                        Err(Errno::EEXIST)
                    };
                    (Placement::Exactly(at(first)), expected)
                }
            };
            prop_assert!(fits);
            let request = Request {
                place,
                len: pages * PAGE,
                prot,
                backing: backing.clone(),
                traits: Traits::default(),
            };
            let got = space.map(request);
            prop_assert_eq!(got.as_ref().map(|m| m.span).map_err(|e| *e), expected);
            let Ok(mapped) = got else { return Ok(()) };
            replaced = before
                .range(mapped.span.start..mapped.span.end)
                .map(|(a, _)| *a)
                .collect();
            model.fill(
                mapped.span,
                &Page {
                    prot,
                    backing,
                    huge: HugeAdvice::Default,
                },
            );
            mapped.changes
        }
        Op::Unmap(first, pages) => {
            model.clear(span(first, pages));
            space.unmap(at(first), pages * PAGE).unwrap()
        }
        Op::Protect(first, pages, prot) => {
            let prot = Prot::from_bits_truncate(prot);
            let got = space.protect(at(first), pages * PAGE, prot);
            if !model.full(span(first, pages)) {
                prop_assert_eq!(got, Err(Errno::ENOMEM));
                return Ok(());
            }
            for addr in addresses([span(first, pages)]) {
                model.pages.get_mut(&addr).unwrap().prot = prot;
            }
            got.unwrap()
        }
        Op::Advise(first, pages, prefer) => {
            let advice = if prefer {
                uapi::MADV_HUGEPAGE
            } else {
                uapi::MADV_NOHUGEPAGE
            };
            let got = space.advise(at(first), pages * PAGE, advice);
            if !model.full(span(first, pages)) {
                prop_assert_eq!(got, Err(Errno::ENOMEM));
                return Ok(());
            }
            for addr in addresses([span(first, pages)]) {
                model.pages.get_mut(&addr).unwrap().huge = if prefer {
                    HugeAdvice::Prefer
                } else {
                    HugeAdvice::Never
                };
            }
            prop_assert_eq!(got, Ok(Advised::Noted));
            Changes::default()
        }
        Op::Discard(first, pages) => {
            match space.advise(at(first), pages * PAGE, uapi::MADV_DONTNEED) {
                Ok(Advised::Discard(changes)) => {
                    replaced = addresses([span(first, pages)]);
                    prop_assert!(model.full(span(first, pages)));
                    changes
                }
                other => {
                    prop_assert_eq!(other, Err(Errno::ENOMEM));
                    return Ok(());
                }
            }
        }
        Op::Remap {
            first,
            old,
            new,
            flags,
            to,
        } => {
            let (from, target) = (span(first, old), span(to, new));
            let area = space.find(at(first)).cloned();
            let got = space.remap(at(first), old * PAGE, new * PAGE, flags, at(to));
            if flags == uapi::MREMAP_FIXED {
                prop_assert_eq!(got, Err(Errno::EINVAL));
                return Ok(());
            }
            if area.as_ref().is_none_or(|a| a.span.end < from.end) {
                prop_assert_eq!(got, Err(Errno::EFAULT));
                return Ok(());
            }
            let tail = span(first, new).end;
            let grown = Span {
                start: from.end,
                end: tail,
            };
            let expected = if flags & uapi::MREMAP_FIXED != 0 {
                if target.overlaps(from) {
                    Err(Errno::EINVAL)
                } else {
                    Ok(target)
                }
            } else if new <= old
                || (area.is_some_and(|a| a.span.end == from.end) && model.free(grown))
            {
                Ok(Span {
                    start: from.start,
                    end: tail,
                })
            } else if flags & uapi::MREMAP_MAYMOVE != 0 {
                model.highest_gap(new).ok_or(Errno::ENOMEM)
            } else {
                Err(Errno::ENOMEM)
            };
            prop_assert_eq!(got.as_ref().map(|m| m.span).map_err(|e| *e), expected);
            let Ok(mapped) = got else { return Ok(()) };
            let page = before[&from.start].clone();
            // Advice and rights are one area's, so the first page speaks for all.
            replaced = before
                .range(mapped.span.start..mapped.span.end)
                .map(|(a, _)| *a)
                .collect();
            if mapped.span.start == from.start {
                replaced.clear();
                prop_assert_eq!(mapped.changes.moved, None);
            } else {
                let kept = Span {
                    start: from.start,
                    end: from.start + old.min(new) * PAGE,
                };
                prop_assert_eq!(
                    mapped.changes.moved,
                    Some(Moved {
                        from: kept,
                        to: mapped.span.start()
                    })
                );
            }
            model.clear(from);
            model.fill(mapped.span, &page);
            mapped.changes
        }
        Op::Brk(page) => {
            let (heap, wanted) = (at(20).raw(), at(page).raw());
            let grows = wanted > model.brk;
            let possible = !grows
                || model.free(Span {
                    start: model.brk,
                    end: wanted,
                });
            let (end, changes) = space.brk(at(page));
            let expected = if possible { wanted } else { model.brk };
            prop_assert_eq!(end.raw(), expected);
            prop_assert!(end.raw() >= heap);
            if possible && grows {
                let zeros = Page {
                    prot: Prot::RW,
                    backing: Backing::Anon,
                    huge: HugeAdvice::Default,
                };
                model.fill(
                    Span {
                        start: model.brk,
                        end: wanted,
                    },
                    &zeros,
                );
            } else if wanted < model.brk {
                model.clear(Span {
                    start: wanted,
                    end: model.brk,
                });
            }
            model.brk = expected;
            changes
        }
    };

    prop_assert_eq!(&pages_of(space), &model.pages);
    let moved = addresses(changes.moved.map(|m| m.from));
    let gone = before
        .keys()
        .filter(|a| !model.pages.contains_key(a) || replaced.contains(a));
    let gone: BTreeSet<u64> = gone.filter(|a| !moved.contains(a)).copied().collect();
    prop_assert_eq!(addresses(changes.unmap.iter().copied()), gone);
    let kept = before.iter().filter(|(a, old)| {
        !replaced.contains(a) && model.pages.get(a).is_some_and(|new| new.prot != old.prot)
    });
    let reprotected: BTreeSet<u64> = kept.map(|(a, _)| *a).collect();
    prop_assert_eq!(addresses(changes.protect.iter().map(|p| p.0)), reprotected);
    for (span, prot) in &changes.protect {
        prop_assert!(
            addresses([*span])
                .iter()
                .all(|a| model.pages[a].prot == *prot)
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn behaves_like_a_page_by_page_map(ops in prop::collection::vec(op(), 1..60)) {
        let mut space = small();
        space.set_brk_start(at(20));
        let mut model = Model { pages: BTreeMap::new(), brk: at(20).raw() };
        for op in ops {
            let told = format!("{op:?}");
            apply(&mut space, &mut model, op).map_err(|e| TestCaseError::fail(format!("{told}: {e}")))?;
            check_shape(&space);
        }
    }

    #[test]
    fn wild_arguments_are_errors(addr: u64, len: u64, new: u64, flags: u32, to: u64, advice in 0u32..200) {
        let mut space = large();
        let _ = space.map(anon(Placement::Hint(Hva::new(addr)), 3)).unwrap();
        let wild = Request { len, ..anon(Placement::from_linux(Hva::new(addr), flags), 1) };
        let _ = space.map(wild);
        let _ = space.protect(Hva::new(addr), len, Prot::READ);
        let _ = space.advise(Hva::new(addr), len, advice);
        let _ = space.remap(Hva::new(addr), len, new, flags & 3, Hva::new(to));
        let _ = space.brk(Hva::new(addr));
        let _ = space.fault(Hva::new(addr), Prot::READ);
        let _ = space.unmap(Hva::new(addr), len);
        check_shape(&space);
    }
}

#[test]
fn large_areas_start_on_a_block() {
    let mut space = large();
    let one = space
        .map(anon(Placement::Hint(Hva::new(0)), 1))
        .unwrap()
        .span;
    assert_eq!(one.end, USER_END);
    let big = space
        .map(anon(Placement::Hint(Hva::new(0)), 513))
        .unwrap()
        .span;
    assert!(big.start().is_aligned(BLOCK));
    assert!(big.end <= one.start);
    // Where no block boundary fits, pages do.
    let mut tight = Space::new(Hva::new(BLOCK + USER_MIN), 0);
    let odd = tight
        .map(anon(Placement::Hint(Hva::new(0)), 512))
        .unwrap()
        .span;
    assert_eq!(odd.start, USER_MIN);
}

#[test]
fn limits_answer_as_linux_does() {
    let mut s = large();
    let mut try_at = |place, len| {
        s.map(Request {
            len,
            ..anon(place, 1)
        })
        .map(|m| m.span.start)
    };
    assert_eq!(
        try_at(Placement::Replace(Hva::new(0x1001)), PAGE),
        Err(Errno::EINVAL)
    );
    assert_eq!(
        try_at(Placement::Replace(Hva::new(0)), PAGE),
        Err(Errno::EPERM)
    );
    assert_eq!(
        try_at(Placement::Replace(Hva::new(USER_END)), PAGE),
        Err(Errno::ENOMEM)
    );
    assert_eq!(try_at(Placement::Hint(Hva::new(0)), 0), Err(Errno::EINVAL));
    assert_eq!(
        try_at(Placement::Hint(Hva::new(0)), u64::MAX),
        Err(Errno::ENOMEM)
    );
    assert_eq!(
        try_at(Placement::Hint(Hva::new(0)), USER_END),
        Err(Errno::ENOMEM)
    );
    assert_eq!(s.unmap(Hva::new(1), PAGE), Err(Errno::EINVAL));
    assert_eq!(s.unmap(Hva::new(PAGE), 0), Err(Errno::EINVAL));
    assert_eq!(s.protect(at(0), 0, Prot::READ), Ok(Changes::default()));
    assert_eq!(Prot::from_linux(3 | uapi::PROT_BTI), Ok(Prot::RW));
    assert_eq!(Prot::from_linux(0x100), Err(Errno::EINVAL));
    let past = Backing::Private {
        object: 1,
        offset: i64::MAX as u64 & !(PAGE - 1),
    };
    let far = Request {
        backing: past,
        ..anon(Placement::Hint(Hva::new(0)), 2)
    };
    assert_eq!(s.map(far).map(|m| m.span), Err(Errno::EOVERFLOW));
    let odd = Backing::Shared {
        object: 1,
        offset: 8,
    };
    let odd = Request {
        backing: odd,
        ..anon(Placement::Hint(Hva::new(0)), 2)
    };
    assert_eq!(s.map(odd).map(|m| m.span), Err(Errno::EINVAL));
}

#[test]
fn a_stack_grows_to_its_limit_and_keeps_its_guard() {
    let mut s = Space::new(Hva::new(USER_END), 64 * PAGE);
    let traits = Traits {
        grows_down: true,
        ..Traits::default()
    };
    let top = Hva::new(0x4000_0000);
    let place = Placement::Replace(Hva::new(top.raw() - PAGE));
    let stack = s
        .map(Request {
            traits,
            ..anon(place, 1)
        })
        .unwrap()
        .span;
    let grown = Hva::new(stack.start - 9 * PAGE + 8);
    assert_eq!(
        s.fault(grown, Prot::WRITE).unwrap().span.start,
        stack.start - 9 * PAGE
    );
    assert_eq!(
        s.fault(Hva::new(top.raw() - 65 * PAGE), Prot::WRITE),
        Err(Fault::NotMapped)
    );
    let low = s.find(grown).unwrap().span.start;
    // A hint in the guard is not taken, an exact address is; the stack then stops above it.
    let near = Hva::new(low - 2 * PAGE);
    assert_ne!(
        s.map(anon(Placement::Hint(near), 1)).unwrap().span.start(),
        near
    );
    assert_eq!(
        s.map(anon(Placement::Exactly(near), 1))
            .unwrap()
            .span
            .start(),
        near
    );
    assert_eq!(
        s.fault(Hva::new(low - 8), Prot::WRITE),
        Err(Fault::NotMapped)
    );
}

#[test]
fn a_fault_tells_missing_from_forbidden() {
    let mut s = small();
    let read = Request {
        prot: Prot::READ,
        ..anon(Placement::Replace(at(3)), 1)
    };
    let _ = s.map(read).unwrap();
    assert!(s.fault(at(3), Prot::READ).is_ok());
    assert_eq!(s.fault(at(3), Prot::WRITE), Err(Fault::NotAllowed));
    assert_eq!(s.fault(at(4), Prot::READ), Err(Fault::NotMapped));
    assert_eq!(s.fault(at(2), Prot::READ), Err(Fault::NotMapped));
}

#[test]
fn splitting_stops_at_the_limit_and_unmapping_whole_areas_does_not() {
    let mut s = large();
    let area = s
        .map(anon(Placement::Hint(Hva::new(0)), 2 * MAX_AREAS as u64))
        .unwrap()
        .span;
    let page = |n: u64| Hva::new(area.start + n * PAGE);
    let mut n = 1;
    while s.protect(page(n), PAGE, Prot::READ).is_ok() {
        n += 2;
    }
    assert!(s.areas.len() <= MAX_AREAS && s.areas.len() >= MAX_AREAS - 1);
    assert_eq!(s.unmap(page(n + 3), PAGE), Err(Errno::ENOMEM));
    assert_eq!(
        s.unmap(page(1), PAGE).unwrap().unmap,
        vec![Span::new(page(1), PAGE).unwrap()]
    );
}

#[test]
fn an_object_is_held_by_its_areas_alone() {
    use std::sync::Arc;
    let object = Arc::new(());
    let mut s: AddressSpace<Arc<()>> = AddressSpace::new(Hva::new(USER_END), 0);
    let mapped = s.map(Request {
        place: Placement::Hint(Hva::new(0)),
        len: 3 * PAGE,
        prot: Prot::RW,
        backing: Backing::Shared {
            object: object.clone(),
            offset: 0,
        },
        traits: Traits::default(),
    });
    let start = mapped.unwrap().span.start();
    let _ = s.unmap(Hva::new(start.raw() + PAGE), PAGE).unwrap();
    assert_eq!(Arc::strong_count(&object), 3);
    s.clear_all();
    assert_eq!(Arc::strong_count(&object), 1);
}
