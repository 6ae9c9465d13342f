//! The table engine against its model and a TLB that forgets nothing by itself.

/// Operations, four bytes each.
pub(crate) fn run(bytes: &[u8]) {
    if let Err(why) = umbra_stage2::model::replay(bytes) {
        panic!("{why}");
    }
}
