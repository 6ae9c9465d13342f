//! The reverse map: from a page of the VM to every shadow entry that maps it.

use std::hint::black_box;

use umbra_arm64::{Ipa, L2Ipa};
use umbra_nested::shadow::{ContextId, ContextKey, Insert, Place, Places, Pool, Size};

use crate::Work;
use crate::engine::PAGE;

/// Operations of one run.
const TIMES: u64 = 1000;

/// Books with so many pages, each mapped once, not in the same order on either side.
struct Books {
    places: Places,
    context: ContextId,
    pages: u64,
}

impl Books {
    fn new(pages: u64) -> Self {
        let key = ContextKey::new(1 << 48 | 0x8000_0000, 0x8000_3559, 1);
        let context = Pool::new().insert(key, ()).expect("a context");
        let mut books = Self {
            places: Places::new(),
            context,
            pages: 0,
        };
        for page in 0..pages {
            books.note(page);
        }
        books.pages = pages;
        books
    }

    /// The VM's page behind a page of the guest's guest.
    fn behind(page: u64) -> Ipa {
        // Neighbours stay so in runs of 512, as Linux backs its guests; the runs lie crosswise.
        Ipa::new((page ^ (page >> 9 & 0x7f) << 9 << 7) * PAGE)
    }

    fn note(&mut self, page: u64) {
        let noted = self.places.insert(Place {
            context: self.context,
            at: L2Ipa::new(page * PAGE),
            ipa: Self::behind(page),
            size: Size::Page,
            leaf_shift: 12,
        });
        assert!(matches!(noted, Ok(Insert::Done)), "{noted:?}");
    }
}

/// Notes pages beyond those that are there.
pub(crate) struct Note(Books);

impl Note {
    pub(crate) fn new(pages: u64) -> Self {
        Self(Books::new(pages))
    }
}

impl Work for Note {
    fn operations(&self) -> u64 {
        TIMES
    }

    fn run(&mut self) {
        for page in self.0.pages..self.0.pages + TIMES {
            self.0.note(black_box(page));
        }
    }
}

/// Takes pages of the VM back, spread over all of it: every entry that maps one is found and goes.
pub(crate) struct TakeBack(Books);

impl TakeBack {
    pub(crate) fn new(pages: u64) -> Self {
        Self(Books::new(pages))
    }
}

impl Work for TakeBack {
    fn operations(&self) -> u64 {
        TIMES
    }

    fn run(&mut self) {
        let step = self.0.pages / TIMES;
        for page in 0..TIMES {
            let at = Books::behind(black_box(page * step));
            let gone = self.0.places.pop_mapping(at, PAGE);
            assert!(gone.is_some());
            assert!(self.0.places.pop_mapping(at, PAGE).is_none());
        }
    }
}
