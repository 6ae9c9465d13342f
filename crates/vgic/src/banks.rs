//! Registers with one field an interrupt: IGROUPR to ICFGR, the same in the distributor and the SGI frame.

/// Which field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bank {
    Group,
    SetEnable,
    ClearEnable,
    SetPending,
    ClearPending,
    SetActive,
    ClearActive,
    Priority,
    Config,
}
