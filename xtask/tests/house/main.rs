//! The rules of the house as tests: which way dependencies point, where `unsafe` may stand, and
//! what no source file may hold. A rule that is meant is checked; the rest is advice.

mod arrows;
mod book;
mod ledger;
mod lints;
mod source;
