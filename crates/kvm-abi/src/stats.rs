//! The file that KVM_GET_STATS_FD answers (api.rst 4.134): a header, an id, descriptors, data.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `struct kvm_stats_header`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct StatsHeader {
    /// Zero.
    pub flags: u32,
    /// Size of a name in bytes, the final zero included.
    pub name_size: u32,
    /// Number of descriptors.
    pub num_desc: u32,
    /// Byte offset of the id string.
    pub id_offset: u32,
    /// Byte offset of the descriptors.
    pub desc_offset: u32,
    /// Byte offset of the data.
    pub data_offset: u32,
}

/// `struct kvm_stats_desc`, followed by `name_size` bytes of name.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct StatsDesc {
    /// Type in \[3:0\], unit in \[7:4\], base in \[11:8\].
    pub flags: u32,
    /// Scale as a power of the base.
    pub exponent: i16,
    /// Number of 64-bit values.
    pub size: u16,
    /// Byte offset in the data.
    pub offset: u32,
    /// Width of a bucket of a linear histogram.
    pub bucket_size: u32,
}

/// Type: only grows.
pub const KVM_STATS_TYPE_CUMULATIVE: u32 = 0;
/// Type: goes up and down.
pub const KVM_STATS_TYPE_INSTANT: u32 = 1;
/// Type: the largest so far.
pub const KVM_STATS_TYPE_PEAK: u32 = 2;
/// Unit: a count.
pub const KVM_STATS_UNIT_NONE: u32 = 0 << 4;
/// Unit: bytes.
pub const KVM_STATS_UNIT_BYTES: u32 = 1 << 4;
/// Unit: seconds.
pub const KVM_STATS_UNIT_SECONDS: u32 = 2 << 4;
/// Base: powers of ten.
pub const KVM_STATS_BASE_POW10: u32 = 0 << 8;
/// Base: powers of two.
pub const KVM_STATS_BASE_POW2: u32 = 1 << 8;
