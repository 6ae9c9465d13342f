//! Files that are not kept here: devices, generated text, and controls.

use crate::einj::EinjFile;
use crate::uapi;

/// A device, by its Linux number (Documentation/admin-guide/devices.txt).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Device {
    /// /dev/null: takes everything, gives nothing.
    Null,
    /// /dev/zero: gives zeros.
    Zero,
    /// /dev/full: gives zeros, is always full.
    Full,
    /// /dev/random.
    Random,
    /// /dev/urandom.
    Urandom,
    /// /dev/tty: the controlling terminal.
    Tty,
    /// /dev/console.
    Console,
    /// /dev/kvm.
    Kvm,
    /// /dev/vda and its neighbours: a disk of the machine, from 0. A block device.
    Disk(u8),
    /// A node that the initrd has and umbra does not know; opening it is `ENXIO`.
    Unknown {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

/// Major number of disks: the first that Linux gives out for block devices (virtblk usually has it).
const DISK_MAJOR: u32 = 254;
/// Minor numbers of a disk: itself and partitions, of which there are none here.
const DISK_MINORS: u32 = 16;

/// Name in /dev, device, major, minor, permissions.
pub(super) const DEVICES: &[(&str, Device, u32, u32, u32)] = &[
    ("null", Device::Null, 1, 3, 0o666),
    ("zero", Device::Zero, 1, 5, 0o666),
    ("full", Device::Full, 1, 7, 0o666),
    ("random", Device::Random, 1, 8, 0o666),
    ("urandom", Device::Urandom, 1, 9, 0o666),
    ("tty", Device::Tty, 5, 0, 0o666),
    ("console", Device::Console, 5, 1, 0o600),
    ("kvm", Device::Kvm, 10, 232, 0o660),
];

impl Device {
    /// The device of these numbers.
    pub fn from_numbers(major: u32, minor: u32) -> Self {
        let known = DEVICES.iter().find(|d| (d.2, d.3) == (major, minor));
        known.map_or(Self::Unknown { major, minor }, |d| d.1)
    }

    /// Its kind of node.
    pub(super) const fn kind(self) -> u32 {
        match self {
            Self::Disk(_) => uapi::S_IFBLK,
            _ => uapi::S_IFCHR,
        }
    }

    /// Major and minor number.
    pub fn numbers(self) -> (u32, u32) {
        match self {
            Self::Unknown { major, minor } => (major, minor),
            Self::Disk(number) => (DISK_MAJOR, u32::from(number) * DISK_MINORS),
            known => DEVICES
                .iter()
                .find(|d| d.1 == known)
                .map_or((0, 0), |d| (d.2, d.3)),
        }
    }

    /// Major and minor number in one, as stat shows them (`new_encode_dev`).
    pub fn encoded(self) -> u64 {
        let (major, minor) = self.numbers();
        u64::from(minor & 0xff) | u64::from(major & 0xfff) << 8 | u64::from(minor & 0xf_ff00) << 12
    }
}

/// Of which huge pages a file of /sys/kernel/mm/hugepages tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HugeSize {
    /// 2 MiB.
    Block,
    /// 1 GiB.
    Giant,
}

/// What a file of /sys/kernel/mm/hugepages counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HugeCount {
    /// nr_hugepages, free_hugepages: the pool is what is free.
    Free,
    /// resv_hugepages, surplus_hugepages, nr_overcommit_hugepages: none.
    None,
}

/// A file of /proc or /sys, which the kernel serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProcFile {
    /// /proc/cpuinfo.
    CpuInfo,
    /// /sys/devices/system/cpu/online and its neighbours: the range of the CPUs that are up.
    CpuRange,
    /// /proc/meminfo.
    MemInfo,
    /// /proc/version.
    Version,
    /// /proc/uptime.
    Uptime,
    /// /proc/cmdline.
    Cmdline,
    /// /proc/self/maps.
    SelfMaps,
    /// /proc/self/status: who the process is, and what memory it has.
    SelfStatus,
    /// /proc/self/pagemap.
    PageMap,
    /// /sys/kernel/mm/hugepages/hugepages-….
    HugePages(HugeSize, HugeCount),
    /// /proc/self/schedstat: of the thread that opens it, as /proc/TID/schedstat.
    SchedStat,
    /// /proc/self/fail-nth: which allocation of the kernel is to fail. Linux has it a task, here it
    /// is one for the machine.
    FailNth,
    /// /sys/firmware/acpi/tables/EINJ.
    EinjTable,
    /// /sys/kernel/debug/apei/einj/….
    Einj(EinjFile),
    /// /sys/kernel/debug/hwpoison/corrupt-pfn.
    CorruptPfn,
    /// /sys/kernel/debug/hwpoison/bad-frames: every frame known to be bad. Not in Linux.
    BadFrames,
    /// /sys/kernel/debug/apei/sources: what firmware's error sources came to; written, a status block. Not
    /// in Linux.
    ErrorSources,
    /// /sys/kernel/debug/hwpoison/ranges: what of memory umbra cannot be without, and where its files lie. Not
    /// in Linux.
    Ranges,
    /// /sys/kernel/debug/hwpoison/break: breaks what is not memory on purpose. Not in Linux.
    Break,
}

impl ProcFile {
    /// Whether it may be opened for writing.
    pub(super) const fn is_writable(self) -> bool {
        match self {
            Self::Einj(file) => !matches!(file, EinjFile::AvailableErrorType),
            Self::CorruptPfn | Self::Break | Self::FailNth | Self::ErrorSources => true,
            _ => false,
        }
    }
}

/// Path, file, permissions.
pub(super) const PROC_FILES: &[(&str, ProcFile, u32)] = &[
    ("proc/cpuinfo", ProcFile::CpuInfo, 0o444),
    ("sys/devices/system/cpu/online", ProcFile::CpuRange, 0o444),
    ("sys/devices/system/cpu/possible", ProcFile::CpuRange, 0o444),
    ("sys/devices/system/cpu/present", ProcFile::CpuRange, 0o444),
    ("proc/meminfo", ProcFile::MemInfo, 0o444),
    ("proc/version", ProcFile::Version, 0o444),
    ("proc/uptime", ProcFile::Uptime, 0o444),
    ("proc/cmdline", ProcFile::Cmdline, 0o444),
    ("proc/self/maps", ProcFile::SelfMaps, 0o444),
    ("proc/self/status", ProcFile::SelfStatus, 0o444),
    ("proc/self/pagemap", ProcFile::PageMap, 0o400),
    ("proc/self/schedstat", ProcFile::SchedStat, 0o444),
    ("proc/self/fail-nth", ProcFile::FailNth, 0o644),
    (
        "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
        ProcFile::HugePages(HugeSize::Block, HugeCount::Free),
        0o444,
    ),
    (
        "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages",
        ProcFile::HugePages(HugeSize::Block, HugeCount::Free),
        0o444,
    ),
    (
        "sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages",
        ProcFile::HugePages(HugeSize::Block, HugeCount::None),
        0o444,
    ),
    (
        "sys/kernel/mm/hugepages/hugepages-2048kB/surplus_hugepages",
        ProcFile::HugePages(HugeSize::Block, HugeCount::None),
        0o444,
    ),
    (
        "sys/kernel/mm/hugepages/hugepages-2048kB/nr_overcommit_hugepages",
        ProcFile::HugePages(HugeSize::Block, HugeCount::None),
        0o444,
    ),
    (
        "sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages",
        ProcFile::HugePages(HugeSize::Giant, HugeCount::Free),
        0o444,
    ),
    (
        "sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages",
        ProcFile::HugePages(HugeSize::Giant, HugeCount::Free),
        0o444,
    ),
    (
        "sys/kernel/mm/hugepages/hugepages-1048576kB/resv_hugepages",
        ProcFile::HugePages(HugeSize::Giant, HugeCount::None),
        0o444,
    ),
    (
        "sys/kernel/mm/hugepages/hugepages-1048576kB/surplus_hugepages",
        ProcFile::HugePages(HugeSize::Giant, HugeCount::None),
        0o444,
    ),
    (
        "sys/kernel/mm/hugepages/hugepages-1048576kB/nr_overcommit_hugepages",
        ProcFile::HugePages(HugeSize::Giant, HugeCount::None),
        0o444,
    ),
    ("sys/firmware/acpi/tables/EINJ", ProcFile::EinjTable, 0o400),
    (
        "sys/kernel/debug/apei/einj/available_error_type",
        ProcFile::Einj(EinjFile::AvailableErrorType),
        0o400,
    ),
    (
        "sys/kernel/debug/apei/einj/error_type",
        ProcFile::Einj(EinjFile::ErrorType),
        0o600,
    ),
    (
        "sys/kernel/debug/apei/einj/flags",
        ProcFile::Einj(EinjFile::Flags),
        0o600,
    ),
    (
        "sys/kernel/debug/apei/einj/notrigger",
        ProcFile::Einj(EinjFile::NoTrigger),
        0o200,
    ),
    (
        "sys/kernel/debug/apei/einj/param1",
        ProcFile::Einj(EinjFile::Param(0)),
        0o600,
    ),
    (
        "sys/kernel/debug/apei/einj/param2",
        ProcFile::Einj(EinjFile::Param(1)),
        0o600,
    ),
    (
        "sys/kernel/debug/apei/einj/param3",
        ProcFile::Einj(EinjFile::Param(2)),
        0o600,
    ),
    (
        "sys/kernel/debug/apei/einj/param4",
        ProcFile::Einj(EinjFile::Param(3)),
        0o600,
    ),
    (
        "sys/kernel/debug/apei/einj/error_inject",
        ProcFile::Einj(EinjFile::ErrorInject),
        0o200,
    ),
    (
        "sys/kernel/debug/hwpoison/corrupt-pfn",
        ProcFile::CorruptPfn,
        0o200,
    ),
    (
        "sys/kernel/debug/hwpoison/bad-frames",
        ProcFile::BadFrames,
        0o400,
    ),
    (
        "sys/kernel/debug/apei/sources",
        ProcFile::ErrorSources,
        0o600,
    ),
    ("sys/kernel/debug/hwpoison/ranges", ProcFile::Ranges, 0o400),
    ("sys/kernel/debug/hwpoison/break", ProcFile::Break, 0o200),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn numbers_and_names_are_unique_and_reversible() {
        let names: BTreeSet<_> = DEVICES.iter().map(|d| d.0).collect();
        assert_eq!(names.len(), DEVICES.len());
        for (_, device, major, minor, _) in DEVICES {
            assert_eq!(device.numbers(), (*major, *minor));
            assert_eq!(Device::from_numbers(*major, *minor), *device);
        }
        let other = Device::from_numbers(4, 64);
        assert_eq!(other.numbers(), (4, 64));
    }

    #[test]
    fn disks_are_block_devices() {
        assert_eq!(Device::Disk(0).numbers(), (254, 0));
        assert_eq!(Device::Disk(2).numbers(), (254, 32));
        assert_eq!(Device::Disk(0).kind(), uapi::S_IFBLK);
        assert_eq!(Device::Null.kind(), uapi::S_IFCHR);
    }

    #[test]
    fn the_encoding_is_linuxs() {
        assert_eq!(Device::Kvm.encoded(), 10 << 8 | 232);
        assert_eq!(Device::from_numbers(0x123, 0x45678).encoded(), 0x4561_2378);
    }
}
