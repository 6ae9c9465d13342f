//! Permissions of stage 1: AP, UXN and PXN, their hierarchical limits, WXN and PAN (Arm ARM D8.4).

use umbra_arm64::{Descriptor, Rights};

use super::config::Stage1Config;
use super::walk::Access;

const AP1: u32 = 6;
const AP2: u32 = 7;
const PXN: u32 = 53;
const UXN: u32 = 54;
const PXN_TABLE: u32 = 59;
const UXN_TABLE: u32 = 60;
const AP_TABLE_NO_EL0: u32 = 61;
const AP_TABLE_READ_ONLY: u32 = 62;

/// AP\[2\] of a leaf: read-only.
pub(super) const READ_ONLY: u64 = 1 << AP2;

const fn flag(descriptor: Descriptor, at: u32) -> bool {
    descriptor.raw() >> at & 1 != 0
}

/// What the table descriptors on the way take from a leaf.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Limits {
    read_only: bool,
    no_el0: bool,
    pxn: bool,
    uxn: bool,
}

impl Limits {
    /// Adds those of one more table. A regime without EL0 looks only at the first and the last.
    pub(super) fn add(&mut self, table: Descriptor) {
        self.read_only |= flag(table, AP_TABLE_READ_ONLY);
        self.no_el0 |= flag(table, AP_TABLE_NO_EL0);
        self.pxn |= flag(table, PXN_TABLE);
        self.uxn |= flag(table, UXN_TABLE);
    }
}

/// What one exception level may do.
#[derive(Clone, Copy)]
struct Level {
    read: bool,
    write: bool,
    exec: bool,
}

impl Level {
    /// WXN: what is writable is not executable.
    const fn with_wxn(self, wxn: bool) -> Level {
        Level {
            exec: self.exec && !(wxn && self.write),
            ..self
        }
    }
}

/// What `access` may do through `leaf`: reading and writing at its own exception level, with PAN;
/// fetching at both.
pub(super) fn rights(
    config: &Stage1Config,
    leaf: Descriptor,
    limits: Limits,
    access: Access,
) -> Rights {
    let writable = !flag(leaf, AP2) && !limits.read_only;
    if !config.regime.has_el0() {
        let only = Level {
            read: true,
            write: writable,
            exec: !flag(leaf, UXN) && !limits.uxn,
        }
        .with_wxn(config.wxn);
        return Rights {
            read: only.read,
            write: only.write,
            exec_el0: false,
            exec_el1: only.exec,
        };
    }
    let user_access = flag(leaf, AP1) && !limits.no_el0;
    let user = Level {
        read: user_access,
        write: user_access && writable,
        exec: !flag(leaf, UXN) && !limits.uxn,
    };
    // PAN looks at what EL0 may do before WXN takes from it.
    let exec_counts = config.epan && user.exec;
    let kept_out = config.pan && access.pan && (user.read || user.write || exec_counts);
    let privileged = Level {
        read: !kept_out,
        write: writable && !kept_out,
        // Code that EL0 can write is never run by a higher level.
        exec: !(flag(leaf, PXN) || limits.pxn || user.write),
    };
    let (user, privileged) = (user.with_wxn(config.wxn), privileged.with_wxn(config.wxn));
    let own = if access.el0 { user } else { privileged };
    Rights {
        read: own.read,
        write: own.write,
        exec_el0: user.exec,
        exec_el1: privileged.exec,
    }
}
