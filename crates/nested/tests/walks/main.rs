//! The walkers and AT: what the manual says, told in examples, and a transcription of the manual's
//! pseudocode that random registers and random tables are held against.

mod around;
mod at;
mod attributes;
mod check;
mod fake;
mod generate;
mod manual;
mod random;
mod registers;
mod stage1;
mod stage2;
