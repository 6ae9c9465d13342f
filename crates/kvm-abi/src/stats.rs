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

/// Bytes of a name, the final zero included (KVM_STATS_NAME_SIZE).
pub const KVM_STATS_NAME_SIZE: usize = 48;

/// One statistic with its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat<'a> {
    /// Its name, cut at 47 bytes.
    pub name: &'a str,
    /// Type, unit and base.
    pub flags: u32,
    /// Scale as a power of the base.
    pub exponent: i16,
    /// How much.
    pub value: u64,
}

impl<'a> Stat<'a> {
    /// A count that only grows.
    pub const fn count(name: &'a str, value: u64) -> Stat<'a> {
        Stat {
            name,
            flags: KVM_STATS_TYPE_CUMULATIVE | KVM_STATS_UNIT_NONE | KVM_STATS_BASE_POW10,
            exponent: 0,
            value,
        }
    }

    /// A number that goes up and down.
    pub const fn level(name: &'a str, value: u64) -> Stat<'a> {
        Stat {
            flags: KVM_STATS_TYPE_INSTANT | KVM_STATS_UNIT_NONE | KVM_STATS_BASE_POW10,
            ..Stat::count(name, value)
        }
    }

    /// A time that only grows, in nanoseconds.
    pub const fn nanoseconds(name: &'a str, value: u64) -> Stat<'a> {
        Stat {
            flags: KVM_STATS_TYPE_CUMULATIVE | KVM_STATS_UNIT_SECONDS | KVM_STATS_BASE_POW10,
            exponent: -9,
            ..Stat::count(name, value)
        }
    }
}

/// The file for `stats`, in pieces: the header, the id, the descriptors, the values. The pieces come
/// one after the other without gaps.
pub fn render(id: &str, stats: &[Stat<'_>], mut put: impl FnMut(&[u8])) {
    let desc = size_of::<StatsDesc>() + KVM_STATS_NAME_SIZE;
    let head = size_of::<StatsHeader>();
    let ids = head + KVM_STATS_NAME_SIZE;
    let header = StatsHeader {
        flags: 0,
        name_size: KVM_STATS_NAME_SIZE as u32,
        num_desc: stats.len() as u32,
        id_offset: head as u32,
        desc_offset: ids as u32,
        data_offset: (ids + stats.len() * desc) as u32,
    };
    put(header.as_bytes());
    put(&name(id));
    for (index, stat) in stats.iter().enumerate() {
        let desc = StatsDesc {
            flags: stat.flags,
            exponent: stat.exponent,
            size: 1,
            offset: (index * 8) as u32,
            bucket_size: 0,
        };
        put(desc.as_bytes());
        put(&name(stat.name));
    }
    for stat in stats {
        put(&stat.value.to_le_bytes());
    }
}

fn name(text: &str) -> [u8; KVM_STATS_NAME_SIZE] {
    let mut bytes = [0; KVM_STATS_NAME_SIZE];
    let room = &mut bytes[..KVM_STATS_NAME_SIZE - 1];
    for (to, from) in room.iter_mut().zip(text.bytes()) {
        *to = from;
    }
    bytes
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::vec::Vec;

    #[test]
    fn the_file_says_where_everything_is() {
        let long: std::string::String = (0..60).map(|_| 'a').collect();
        let stats = [
            Stat::count("exits", 7),
            Stat::nanoseconds("time_l2", 1 << 40),
            Stat::level(&long, u64::MAX),
        ];
        let mut file = Vec::new();
        render("kvm-1/vcpu-0", &stats, |piece| {
            file.extend_from_slice(piece)
        });
        let (header, _) = StatsHeader::read_from_prefix(&file).unwrap();
        assert_eq!((header.num_desc, header.name_size), (3, 48));
        assert_eq!(&file[header.id_offset as usize..][..13], b"kvm-1/vcpu-0\0");
        for (index, stat) in stats.iter().enumerate() {
            let at = header.desc_offset as usize + index * (16 + 48);
            let (desc, rest) = StatsDesc::read_from_prefix(&file[at..]).unwrap();
            assert_eq!((desc.flags, desc.exponent), (stat.flags, stat.exponent));
            let shown = stat.name.as_bytes();
            let shown = &shown[..shown.len().min(47)];
            assert_eq!(&rest[..shown.len()], shown);
            assert_eq!(rest[47], 0);
            let data = header.data_offset as usize + desc.offset as usize;
            assert_eq!(file[data..data + 8], stat.value.to_le_bytes());
        }
        assert_eq!(file.len(), header.data_offset as usize + 3 * 8);
    }
}
