//! From a linked ELF to a flat arm64 Linux `Image` (Linux `Documentation/arch/arm64/booting.rst`).
//!
//! QEMU hands the device tree in x0 and loads an initrd only for an `Image`, not for an ELF. The
//! 64-byte header is the program's own first bytes; here it is checked, never made. Zero bytes at the
//! end (bss) are left out of the file: the header's `image_size` reserves the memory.

use anyhow::{Context, Result, bail};
use object::elf::{FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, read::elf::ElfFile64};
use std::path::Path;

const HEADER: usize = 64;
const MAGIC_AT: usize = 0x38;
const MAGIC: &[u8; 4] = b"ARM\x64";
const IMAGE_SIZE_AT: usize = 0x10;
/// A gap between two segments that is larger than this is a linker script gone wrong.
const LIMIT: u64 = 256 << 20;

/// One loadable part: physical address and the bytes in the file.
type Segment<'a> = (u64, &'a [u8]);

/// Writes the flat image of the ELF file `elf` to `out`.
pub(crate) fn write(elf: &Path, out: &Path) -> Result<()> {
    let bytes = std::fs::read(elf).with_context(|| format!("cannot read {}", elf.display()))?;
    let image = from_elf(&bytes).with_context(|| format!("no Image from {}", elf.display()))?;
    std::fs::write(out, image).with_context(|| format!("cannot write {}", out.display()))
}

/// The flat image of an ELF file.
fn from_elf(elf: &[u8]) -> Result<Vec<u8>> {
    let header = FileHeader64::<Endianness>::parse(elf).context("no 64-bit ELF file")?;
    let endian = header.endian().context("ELF byte order")?;
    let mut segments = Vec::new();
    for part in header
        .program_headers(endian, elf)
        .context("program headers")?
    {
        if part.p_type(endian) != PT_LOAD || part.p_filesz(endian) == 0 {
            continue;
        }
        let Ok(data) = part.data(endian, elf) else {
            bail!("a segment reaches beyond the file");
        };
        segments.push((part.p_paddr(endian), data));
    }
    let image = flatten(segments)?;
    check(&image)?;
    Ok(image)
}

/// Lays the segments out by physical address, the lowest one first.
fn flatten(mut segments: Vec<Segment<'_>>) -> Result<Vec<u8>> {
    segments.sort_by_key(|(at, _)| *at);
    let Some(&(base, _)) = segments.first() else {
        bail!("nothing to load");
    };
    let mut image = Vec::new();
    for (at, data) in segments {
        let offset = at - base;
        if offset > LIMIT {
            bail!("the segment at {at:#x} is {offset:#x} bytes behind the first at {base:#x}");
        }
        let offset = usize::try_from(offset)?;
        if offset < image.len() {
            bail!("the segment at {at:#x} overlaps the one before it");
        }
        image.resize(offset, 0);
        image.extend_from_slice(data);
    }
    Ok(image)
}

/// The header must be there, and must reserve at least what the file has.
fn check(image: &[u8]) -> Result<()> {
    if image.len() < HEADER || &image[MAGIC_AT..MAGIC_AT + 4] != MAGIC {
        bail!("no arm64 Image header (\"ARM\\x64\" at offset {MAGIC_AT:#x}) at the lowest address");
    }
    let mut field = [0; 8];
    field.copy_from_slice(&image[IMAGE_SIZE_AT..IMAGE_SIZE_AT + 8]);
    let reserved = u64::from_le_bytes(field);
    if reserved < image.len() as u64 {
        bail!(
            "the header's image_size is {reserved:#x}, the file has {:#x} bytes",
            image.len()
        );
    }
    Ok(())
}

/// A symbol as a path: Rust's legacy mangling undone (`_ZN`, each part behind its length, a hash, `E`);
/// any other name as it is.
fn path(symbol: &str) -> String {
    let parts = || {
        let mut rest = symbol.strip_prefix("_ZN")?;
        let mut parts = Vec::new();
        while !rest.starts_with('E') {
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let (length, tail) = rest.split_at_checked(digits)?;
            let (part, tail) = tail.split_at_checked(length.parse().ok()?)?;
            parts.push(part);
            rest = tail;
        }
        let hash = parts.pop()?;
        (hash.len() == 17 && hash.starts_with('h')).then_some(parts)
    };
    parts().map_or_else(|| symbol.to_owned(), |parts| parts.join("::"))
}

/// Symbols of an ELF file: functions, for naming a program counter, and data, for finding it.
#[derive(Debug, Default)]
pub(crate) struct Symbols {
    /// Address, size, name; sorted by address.
    functions: Vec<(u64, u64, String)>,
    /// The same of data.
    data: Vec<(u64, u64, String)>,
}

impl Symbols {
    /// Reads the symbols of a linked file.
    pub(crate) fn read(elf: &Path) -> Result<Self> {
        use object::{Object, ObjectSymbol, SymbolKind};
        let bytes = std::fs::read(elf).with_context(|| format!("cannot read {}", elf.display()))?;
        let file: ElfFile64<'_, Endianness> = ElfFile64::parse(&*bytes)?;
        let of = |kinds: &[SymbolKind]| -> Vec<(u64, u64, String)> {
            let mut found: Vec<_> = file
                .symbols()
                .filter(|s| s.is_definition() && kinds.contains(&s.kind()))
                .filter_map(|s| Some((s.address(), s.size(), path(s.name().ok()?))))
                .filter(|(_, _, name)| !name.starts_with('$'))
                .collect();
            found.sort();
            found
        };
        Ok(Self {
            functions: of(&[SymbolKind::Text, SymbolKind::Label]),
            data: of(&[SymbolKind::Data]),
        })
    }

    /// Address and size of the one piece of data with this name.
    pub(crate) fn data(&self, name: &str) -> Option<(u64, u64)> {
        let mut found = self.data.iter().filter(|(_, _, other)| other == name);
        let (at, size, _) = found.next()?;
        found.next().is_none().then_some((*at, *size))
    }

    /// The text with the function named behind every address of one that stands in it.
    pub(crate) fn annotate(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        for line in text.split_inclusive('\n') {
            let (line, end) = line.strip_suffix('\n').map_or((line, ""), |l| (l, "\n"));
            out.push_str(line);
            let words = line.split(|c: char| !c.is_ascii_alphanumeric());
            let addresses =
                words.filter_map(|w| u64::from_str_radix(w.strip_prefix("0x")?, 16).ok());
            let names = addresses.filter_map(|pc| self.name(pc));
            for name in names.filter(|name| !line.contains(name.as_str())) {
                out.push_str("  ");
                out.push_str(&name);
            }
            out.push_str(end);
        }
        out
    }

    /// The function that holds `pc`, with the distance from its start.
    pub(crate) fn name(&self, pc: u64) -> Option<String> {
        let at = self.functions.partition_point(|(start, _, _)| *start <= pc);
        let (start, size, name) = self.functions[..at].last()?;
        // Assembly labels have no size: accept them over one page.
        let reach = if *size == 0 { 4096 } else { *size };
        (pc - start < reach).then(|| format!("{name}+{:#x}", pc - start))
    }
}

#[cfg(test)]
mod tests {
    use super::{HEADER, Symbols, check, flatten, from_elf, path};

    fn header(image_size: u64) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        bytes[0x10..0x18].copy_from_slice(&image_size.to_le_bytes());
        bytes[0x38..0x3c].copy_from_slice(b"ARM\x64");
        bytes
    }

    /// The smallest ELF with these segments: (paddr, vaddr, bytes, extra zero bytes in memory).
    fn elf(segments: &[(u64, u64, &[u8], u64)]) -> Vec<u8> {
        let mut file = Vec::new();
        file.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        file.extend_from_slice(&2u16.to_le_bytes()); // ET_EXEC
        file.extend_from_slice(&183u16.to_le_bytes()); // EM_AARCH64
        file.extend_from_slice(&1u32.to_le_bytes());
        for word in [0u64, 64, 0] {
            file.extend_from_slice(&word.to_le_bytes()); // entry, phoff, shoff
        }
        file.extend_from_slice(&0u32.to_le_bytes());
        for half in [64u16, 56, segments.len() as u16, 64, 0, 0] {
            file.extend_from_slice(&half.to_le_bytes());
        }
        let mut offset = 64 + 56 * segments.len() as u64;
        for (paddr, vaddr, data, zeros) in segments {
            file.extend_from_slice(&1u32.to_le_bytes()); // PT_LOAD
            file.extend_from_slice(&7u32.to_le_bytes());
            let size = data.len() as u64;
            for word in [offset, *vaddr, *paddr, size, size + zeros, 1] {
                file.extend_from_slice(&word.to_le_bytes());
            }
            offset += size;
        }
        for (_, _, data, _) in segments {
            file.extend_from_slice(data);
        }
        file
    }

    #[test]
    fn segments_lie_by_physical_address_and_bss_is_left_out() {
        let head = header(0x10_0000);
        let file = elf(&[
            (0x4020_1000, 0xffff_0000_4020_1000, b"data", 0x5000),
            (0x4020_0000, 0xffff_0000_4020_0000, &head, 0),
            (0x4020_9000, 0xffff_0000_4020_9000, b"", 0x1000),
        ]);
        let image = from_elf(&file).unwrap();
        assert_eq!(image.len(), 0x1004);
        assert_eq!(&image[..HEADER], &head[..]);
        assert!(image[HEADER..0x1000].iter().all(|b| *b == 0));
        assert_eq!(&image[0x1000..], b"data");
    }

    #[test]
    fn what_cannot_boot_is_refused() {
        assert!(from_elf(b"no ELF").is_err());
        assert!(from_elf(&elf(&[])).is_err(), "nothing to load");
        assert!(from_elf(&elf(&[(0, 0, &[0; 64], 0)])).is_err(), "no magic");
        assert!(
            check(&header(63)).is_err(),
            "image_size below the file's size"
        );
        assert!(check(&header(64)).is_ok());
        assert!(flatten(vec![(0, b"1234"), (2, b"5")]).is_err(), "overlap");
        assert!(
            flatten(vec![(0, b"1"), (1 << 32, b"2")]).is_err(),
            "a hole of 4 GiB"
        );
    }

    #[test]
    fn symbols_become_paths() {
        let mangled = "_ZN12umbra_kernel5trace5RINGS17h8dd996d59a46df7eE";
        assert_eq!(path(mangled), "umbra_kernel::trace::RINGS");
        for other in ["primary_rust", "_ZN3abc", "_ZN9abcE", "_ZN", "_ZN1aE"] {
            assert_eq!(path(other), other);
        }
    }

    #[test]
    fn a_pc_is_named_by_the_function_around_it() {
        let f = |at, size, name: &str| (at, size, name.to_owned());
        let symbols = Symbols {
            functions: vec![f(0x100, 0x10, "a"), f(0x200, 0, "label")],
            data: vec![f(0x1000, 0x20, "a::RINGS"), f(0x2000, 8, "b")],
        };
        assert_eq!(symbols.data("a::RINGS"), Some((0x1000, 0x20)));
        assert_eq!(symbols.data("c"), None);
        assert_eq!(
            symbols.annotate("at: 0x104,\nx = 0x1\n"),
            "at: 0x104,  a+0x4\nx = 0x1\n"
        );
        assert_eq!(symbols.name(0x104).as_deref(), Some("a+0x4"));
        assert_eq!(symbols.name(0x110), None);
        assert_eq!(symbols.name(0xff), None);
        assert_eq!(symbols.name(0x204).as_deref(), Some("label+0x4"));
    }
}
