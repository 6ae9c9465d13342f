//! The header of an arm64 Linux `Image` (Linux, Documentation/arch/arm64/booting.rst).
//!
//! Read here rather than by a loader crate because the loader's result lacks `image_size`,
//! the memory that the kernel claims beyond its file, and the initrd must lie after that.

use crate::error::{Error, Result};

/// Bytes of the header.
pub const HEADER_SIZE: usize = 64;

const MAGIC: &[u8; 4] = b"ARM\x64";
const GZIP: &[u8] = &[0x1f, 0x8b];
const ELF: &[u8] = b"\x7fELF";
const ZBOOT: &[u8] = b"MZ\0\0zimg";

/// What the header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Offset of the image from a 2 MiB aligned base, in bytes.
    pub text_offset: u64,
    /// Memory that the kernel uses from its first byte on, in bytes.
    pub image_size: u64,
}

impl Header {
    /// Reads the header from a file's first bytes; `file_size` is the whole file's.
    pub fn parse(start: &[u8], file_size: u64) -> Result<Self> {
        let refuse = |why: &str| {
            Err(Error::Failed(format!(
                "the kernel is no arm64 Linux Image: {why}"
            )))
        };
        if start.starts_with(GZIP) {
            return refuse("it is compressed with gzip, unpack it first");
        }
        if start.starts_with(ELF) {
            return refuse("it is an ELF file, use arch/arm64/boot/Image");
        }
        if start.starts_with(ZBOOT) {
            return refuse("it is a self-decompressing EFI image, unpack it first");
        }
        if start.len() < HEADER_SIZE {
            return refuse("it is shorter than the header");
        }
        if &start[56..60] != MAGIC {
            return refuse("the magic number is missing");
        }
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&start[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let (text_offset, image_size, flags) = (word(8), word(16), word(24));
        if flags & 1 != 0 {
            return refuse("it is big-endian");
        }
        // Kernels before 3.17 say 0 and mean an offset of 512 KiB and an unknown size.
        if image_size == 0 {
            return Ok(Header {
                text_offset: 0x8_0000,
                image_size: file_size,
            });
        }
        Ok(Header {
            text_offset,
            image_size: image_size.max(file_size),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(text_offset: u64, image_size: u64, flags: u64) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_SIZE];
        bytes[8..16].copy_from_slice(&text_offset.to_le_bytes());
        bytes[16..24].copy_from_slice(&image_size.to_le_bytes());
        bytes[24..32].copy_from_slice(&flags.to_le_bytes());
        bytes[56..60].copy_from_slice(&0x644d_5241u32.to_le_bytes());
        bytes
    }

    #[test]
    fn reads_the_sizes() {
        let header = Header::parse(&image(0, 0x300_0000, 0xa), 0x200_0000).unwrap();
        assert_eq!((header.text_offset, header.image_size), (0, 0x300_0000));
    }

    #[test]
    fn a_file_larger_than_it_says_keeps_its_room() {
        assert_eq!(
            Header::parse(&image(0, 1, 0), 4096).unwrap().image_size,
            4096
        );
    }

    #[test]
    fn old_kernels_have_a_fixed_offset() {
        let header = Header::parse(&image(0, 0, 0), 4096).unwrap();
        assert_eq!((header.text_offset, header.image_size), (0x8_0000, 4096));
    }

    #[test]
    fn says_what_else_it_is() {
        for (start, word) in [
            (vec![0; 64], "magic"),
            (vec![0; 10], "shorter"),
            ([0x1f, 0x8b, 8, 0].to_vec(), "gzip"),
            (b"\x7fELF\x02".to_vec(), "ELF"),
            (b"MZ\0\0zimg".to_vec(), "EFI"),
            (image(0, 1, 1), "big-endian"),
        ] {
            let error = Header::parse(&start, 4096).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
