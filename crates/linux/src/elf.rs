//! Programs: ELF executables for arm64, fixed (ET_EXEC) or position independent (ET_DYN), static or with a
//! dynamic linker, which is a program itself and loaded beside the one that names it.
//!
//! [`Image::read`] checks everything, [`Image::plan`] says what to map; nothing is loaded here. What
//! always holds of a plan: its segments' pages ascend, do not overlap, lie in user space, and their
//! file parts lie in the file. Two segments that share a page are refused: linkers for arm64 keep them
//! apart by the largest page size, and whose rights win would be a guess.

use crate::Errno;
use crate::vma::{PAGE, Prot, USER_END, USER_MIN};
use alloc::vec::Vec;
use core::fmt;
use umbra_arm64::Hva;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// The most program headers that are read.
const MAX_HEADERS: u16 = 64;
/// The longest path, with its zero.
pub const MAX_PATH: u64 = 4096;
const EM_AARCH64: u16 = 183;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_PHDR: u32 = 6;
const PT_GNU_STACK: u32 = 0x6474_e551;
const PF_X: u32 = 1;
const PF_W: u32 = 2;
const PF_R: u32 = 4;

/// Bytes in a program header: AT_PHENT.
pub const PHENT: u64 = size_of::<ProgramHeader>() as u64;

/// `Elf64_Ehdr`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct FileHeader {
    ident: [u8; 16],
    kind: U16,
    machine: U16,
    version: U32,
    entry: U64,
    phoff: U64,
    shoff: U64,
    flags: U32,
    ehsize: U16,
    phentsize: U16,
    phnum: U16,
    shentsize: U16,
    shnum: U16,
    shstrndx: U16,
}

/// `Elf64_Phdr`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct ProgramHeader {
    kind: U32,
    flags: U32,
    offset: U64,
    vaddr: U64,
    paddr: U64,
    filesz: U64,
    memsz: U64,
    align: U64,
}

/// Why a file cannot be run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExecError {
    /// Not an ELF file at all; a script, perhaps.
    NotElf,
    /// An ELF file, but not a 64-bit little-endian arm64 executable.
    WrongMachine,
    /// Its headers contradict themselves or the file's size.
    Malformed(&'static str),
    /// The file could not be read.
    Read(Errno),
}

impl ExecError {
    /// What execve answers.
    pub const fn errno(self) -> Errno {
        match self {
            Self::NotElf | Self::WrongMachine | Self::Malformed(_) => Errno::ENOEXEC,
            Self::Read(errno) => errno,
        }
    }
}

impl fmt::Display for ExecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotElf => f.write_str("not an ELF file"),
            Self::WrongMachine => f.write_str("not a 64-bit arm64 executable"),
            Self::Malformed(what) => write!(f, "malformed ELF file: {what}"),
            Self::Read(errno) => write!(f, "cannot read: {errno}"),
        }
    }
}

impl core::error::Error for ExecError {}

/// A checked executable. Addresses are the file's own, before relocation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Image {
    pie: bool,
    entry: u64,
    phdr: Option<u64>,
    phnum: u16,
    exec_stack: bool,
    align: u64,
    interpreter: Option<Part>,
    segments: Vec<RawSegment>,
}

/// Bytes of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    /// Where they begin.
    pub offset: u64,
    /// How many.
    pub len: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct RawSegment {
    vaddr: u64,
    offset: u64,
    filesz: u64,
    memsz: u64,
    prot: Prot,
}

/// A part of the file to map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FilePart {
    /// Where the first page goes.
    pub addr: Hva,
    /// Bytes into the file of the first page; a multiple of [`PAGE`].
    pub offset: u64,
    /// Bytes to map; a multiple of [`PAGE`]. The last page may reach beyond the file's end.
    pub len: u64,
}

/// One segment, as private mappings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Rights of all its pages.
    pub prot: Prot,
    /// The pages that come from the file.
    pub file: Option<FilePart>,
    /// Bytes at the end of the last of these pages that must read as zero, whatever the file holds
    /// there: address and length.
    pub zero: Option<(Hva, u64)>,
    /// Pages of zeros after them: address and length, multiples of [`PAGE`].
    pub anon: Option<(Hva, u64)>,
}

/// What to map, and what the program is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoadPlan {
    /// Segments, from the lowest.
    pub segments: Vec<Segment>,
    /// The first instruction.
    pub entry: Hva,
    /// AT_PHDR, if the headers are in a segment.
    pub phdr: Option<Hva>,
    /// AT_PHNUM.
    pub phnum: u16,
    /// Where the heap may begin: the first page above all segments.
    pub brk: Hva,
    /// The program asks for an executable stack.
    pub exec_stack: bool,
    /// What was added to the file's own addresses.
    pub bias: u64,
}

impl Image {
    /// Reads and checks the headers of a file of `file_len` bytes. `read_at` fills its buffer from an
    /// offset; it is only asked for bytes inside the file.
    pub fn read(
        file_len: u64,
        mut read_at: impl FnMut(u64, &mut [u8]) -> Result<(), Errno>,
    ) -> Result<Self, ExecError> {
        let mut header = FileHeader::new_zeroed();
        if file_len < size_of::<FileHeader>() as u64 {
            return Err(ExecError::NotElf);
        }
        read_at(0, header.as_mut_bytes()).map_err(ExecError::Read)?;
        let pie = header.check()?;

        let phnum = header.phnum.get();
        let size = u64::from(phnum) * PHENT;
        let phoff = header.phoff.get();
        if phoff.checked_add(size).is_none_or(|end| end > file_len) {
            return Err(ExecError::Malformed("program headers beyond the end"));
        }
        let mut headers = [ProgramHeader::new_zeroed(); MAX_HEADERS as usize];
        let headers = headers.get_mut(..usize::from(phnum)).unwrap_or_default();
        read_at(phoff, headers.as_mut_bytes()).map_err(ExecError::Read)?;

        let mut image = Self {
            pie,
            entry: header.entry.get(),
            phdr: None,
            phnum,
            exec_stack: false,
            align: PAGE,
            interpreter: None,
            segments: Vec::new(),
        };
        for header in headers.iter() {
            image.take(header, file_len)?;
        }
        if image.segments.is_empty() {
            return Err(ExecError::Malformed("no segment to load"));
        }
        if image.phdr.is_none() {
            image.phdr = image.address_of_file_range(phoff, size);
        }
        Ok(image)
    }

    /// Whether it can run anywhere.
    pub const fn is_pie(&self) -> bool {
        self.pie
    }

    /// Where the file names its dynamic linker: a path of less than [`MAX_PATH`] bytes and a zero.
    pub const fn interpreter(&self) -> Option<Part> {
        self.interpreter
    }

    /// What to map if a position-independent program starts at `base` or just above; a fixed program ignores it. Fails
    /// if that is not in user space.
    pub fn plan(&self, base: Hva) -> Result<LoadPlan, ExecError> {
        const RANGE: ExecError = ExecError::Malformed("segments outside user space");
        let lowest = self.segments.first().ok_or(RANGE)?.page_start();
        let bias = if self.pie {
            let base = base.align_up(self.align).ok_or(RANGE)?;
            base.raw().wrapping_sub(lowest & !(self.align - 1))
        } else {
            0
        };
        let at = |vaddr: u64| Hva::new(vaddr.wrapping_add(bias));
        let mut end = at(lowest).raw();
        if end < USER_MIN {
            return Err(RANGE);
        }
        let mut segments = Vec::new();
        for segment in &self.segments {
            let start = at(segment.page_start()).raw();
            let size = segment.page_end() - segment.page_start();
            if start < end || start.checked_add(size).is_none_or(|end| end > USER_END) {
                return Err(RANGE);
            }
            end = start + size;
            segments.push(segment.plan(at));
        }
        Ok(LoadPlan {
            segments,
            entry: at(self.entry),
            phdr: self.phdr.map(at),
            phnum: self.phnum,
            brk: Hva::new(end),
            exec_stack: self.exec_stack,
            bias,
        })
    }

    fn take(&mut self, header: &ProgramHeader, file_len: u64) -> Result<(), ExecError> {
        match header.kind.get() {
            PT_INTERP => {
                let part = Part {
                    offset: header.offset.get(),
                    len: header.filesz.get(),
                };
                let end = part.offset.checked_add(part.len);
                if part.len < 2 || part.len > MAX_PATH || end.is_none_or(|end| end > file_len) {
                    return Err(ExecError::Malformed("the dynamic linker's name"));
                }
                self.interpreter = Some(part);
            }
            PT_PHDR => self.phdr = Some(header.vaddr.get()),
            PT_GNU_STACK => self.exec_stack = header.flags.get() & PF_X != 0,
            PT_LOAD if header.memsz.get() > 0 || header.filesz.get() > 0 => {
                let segment = RawSegment::new(header, file_len)?;
                let below = self.segments.last().map_or(0, |last| last.page_end());
                if segment.page_start() < below {
                    return Err(ExecError::Malformed("segments overlap or descend"));
                }
                let align = header.align.get();
                // Above 2 MiB an alignment is a wish; it must not eat up the address space.
                if align.is_power_of_two() && align <= crate::vma::BLOCK {
                    self.align = self.align.max(align);
                }
                self.segments.push(segment);
            }
            _ => {}
        }
        Ok(())
    }

    fn address_of_file_range(&self, offset: u64, len: u64) -> Option<u64> {
        self.segments.iter().find_map(|segment| {
            let into = offset.checked_sub(segment.offset)?;
            (into.checked_add(len)? <= segment.filesz).then(|| segment.vaddr + into)
        })
    }
}

impl FileHeader {
    /// Whether it is position independent, if it can be run at all.
    fn check(&self) -> Result<bool, ExecError> {
        const CLASS64_LITTLE_V1: [u8; 3] = [2, 1, 1];
        let Some(class) = self.ident.strip_prefix(b"\x7fELF") else {
            return Err(ExecError::NotElf);
        };
        if !class.starts_with(&CLASS64_LITTLE_V1) || self.machine.get() != EM_AARCH64 {
            return Err(ExecError::WrongMachine);
        }
        if u64::from(self.phentsize.get()) != PHENT {
            return Err(ExecError::Malformed("size of a program header"));
        }
        if self.phnum.get() > MAX_HEADERS {
            return Err(ExecError::Malformed("too many program headers"));
        }
        match self.kind.get() {
            ET_EXEC => Ok(false),
            ET_DYN => Ok(true),
            _ => Err(ExecError::WrongMachine),
        }
    }
}

impl RawSegment {
    fn new(header: &ProgramHeader, file_len: u64) -> Result<Self, ExecError> {
        let segment = Self {
            vaddr: header.vaddr.get(),
            offset: header.offset.get(),
            filesz: header.filesz.get(),
            memsz: header.memsz.get(),
            prot: prot(header.flags.get()),
        };
        if segment.filesz > segment.memsz {
            return Err(ExecError::Malformed(
                "segment larger in the file than in memory",
            ));
        }
        if segment
            .offset
            .checked_add(segment.filesz)
            .is_none_or(|end| end > file_len)
        {
            return Err(ExecError::Malformed("segment beyond the end of the file"));
        }
        if segment.vaddr % PAGE != segment.offset % PAGE {
            return Err(ExecError::Malformed("segment at odds with the page size"));
        }
        if segment
            .vaddr
            .checked_add(segment.memsz)
            .is_none_or(|end| end > USER_END)
        {
            return Err(ExecError::Malformed("segments outside user space"));
        }
        Ok(segment)
    }

    const fn page_start(&self) -> u64 {
        self.vaddr & !(PAGE - 1)
    }

    // The end is at most USER_END, so rounding up cannot overflow.
    const fn page_end(&self) -> u64 {
        (self.vaddr + self.memsz).next_multiple_of(PAGE)
    }

    fn plan(&self, at: impl Fn(u64) -> Hva) -> Segment {
        let file_end = self.vaddr + self.filesz;
        let (file, file_pages_end) = if self.filesz == 0 {
            (None, self.page_start())
        } else {
            let end = file_end.next_multiple_of(PAGE);
            let offset = self.offset - (self.vaddr - self.page_start());
            let len = end - self.page_start();
            (
                Some(FilePart {
                    addr: at(self.page_start()),
                    offset,
                    len,
                }),
                end,
            )
        };
        let tail = file_pages_end.saturating_sub(file_end);
        let zero =
            (file.is_some() && self.memsz > self.filesz && tail > 0).then(|| (at(file_end), tail));
        let anon = self.page_end() - file_pages_end;
        let anon = (anon > 0).then(|| (at(file_pages_end), anon));
        Segment {
            prot: self.prot,
            file,
            zero,
            anon,
        }
    }
}

fn prot(flags: u32) -> Prot {
    let mut prot = Prot::empty();
    prot.set(Prot::READ, flags & PF_R != 0);
    prot.set(Prot::WRITE, flags & PF_W != 0);
    prot.set(Prot::EXEC, flags & PF_X != 0);
    prot
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;

    const RX: u32 = PF_R | PF_X;
    const RW: u32 = PF_R | PF_W;

    fn header(
        kind: u32,
        flags: u32,
        offset: u64,
        vaddr: u64,
        filesz: u64,
        memsz: u64,
    ) -> ProgramHeader {
        ProgramHeader {
            kind: kind.into(),
            flags: flags.into(),
            offset: offset.into(),
            vaddr: vaddr.into(),
            paddr: vaddr.into(),
            filesz: filesz.into(),
            memsz: memsz.into(),
            align: 0x1_0000.into(),
        }
    }

    fn file(kind: u16, headers: &[ProgramHeader], len: usize) -> Vec<u8> {
        let mut h = FileHeader::new_zeroed();
        h.ident[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        h.kind = kind.into();
        h.machine = EM_AARCH64.into();
        h.entry = 0x40_0680.into();
        h.phoff = 64.into();
        h.phentsize = 56.into();
        h.phnum = (headers.len() as u16).into();
        let mut bytes = h.as_bytes().to_vec();
        bytes.extend(headers.as_bytes());
        bytes.resize(len.max(bytes.len()), 0);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Image, ExecError> {
        Image::read(bytes.len() as u64, |at, buf| {
            let at = at as usize;
            buf.copy_from_slice(&bytes[at..at + buf.len()]);
            Ok(())
        })
    }

    /// The segments of a real static busybox, linked for 64 KiB pages.
    fn busybox() -> Vec<ProgramHeader> {
        vec![
            header(PT_LOAD, RX, 0, 0x40_0000, 0x1c_b1ac, 0x1c_b1ac),
            header(PT_LOAD, RW, 0x1d_8a90, 0x5d_8a90, 0x9201, 0x1_02d0),
            header(PT_GNU_STACK, RW, 0, 0, 0, 0),
        ]
    }

    #[test]
    fn a_fixed_program_linked_for_64k_pages() {
        let plan = read(&file(ET_EXEC, &busybox(), 0x1e_2000))
            .unwrap()
            .plan(Hva::new(0))
            .unwrap();
        let text = FilePart {
            addr: Hva::new(0x40_0000),
            offset: 0,
            len: 0x1c_c000,
        };
        let data = FilePart {
            addr: Hva::new(0x5d_8000),
            offset: 0x1d_8000,
            len: 0xa000,
        };
        let rx = Prot::READ | Prot::EXEC;
        assert_eq!(
            plan,
            LoadPlan {
                segments: vec![
                    Segment {
                        prot: rx,
                        file: Some(text),
                        zero: None,
                        anon: None
                    },
                    Segment {
                        prot: Prot::RW,
                        file: Some(data),
                        zero: Some((Hva::new(0x5e_1c91), 0x36f)),
                        anon: Some((Hva::new(0x5e_2000), 0x7000)),
                    },
                ],
                entry: Hva::new(0x40_0680),
                phdr: Some(Hva::new(0x40_0040)),
                phnum: 3,
                brk: Hva::new(0x5e_9000),
                exec_stack: false,
                bias: 0,
            }
        );
    }

    #[test]
    fn a_static_pie_moves_as_a_whole() {
        let headers = [
            header(PT_PHDR, PF_R, 64, 64, 0, 0),
            header(PT_LOAD, RX, 0, 0, 0x800, 0x800),
            header(PT_LOAD, RW, 0x1000, 0x1_1000, 0, 0x2000),
        ];
        let plan = read(&file(ET_DYN, &headers, 0x1000))
            .unwrap()
            .plan(Hva::new(0x5555_0001_2345))
            .unwrap();
        assert_eq!(plan.bias, 0x5555_0002_0000);
        assert_eq!(plan.phdr, Some(Hva::new(0x5555_0002_0040)));
        assert_eq!(plan.entry, Hva::new(0x5555_0002_0000 + 0x40_0680));
        let bss = plan.segments[1];
        assert_eq!((bss.file, bss.zero), (None, None));
        assert_eq!(bss.anon, Some((Hva::new(0x5555_0003_1000), 0x2000)));
        assert_eq!(plan.brk, Hva::new(0x5555_0003_3000));
    }

    #[test]
    fn a_dynamic_program_says_where_its_linker_is_named() {
        let mut headers = busybox();
        assert_eq!(
            read(&file(ET_EXEC, &headers, 0x1e_2000))
                .unwrap()
                .interpreter(),
            None
        );
        headers.insert(0, header(PT_INTERP, PF_R, 0x238, 0x40_0238, 27, 27));
        let image = read(&file(ET_EXEC, &headers, 0x1e_2000)).unwrap();
        let named = Part {
            offset: 0x238,
            len: 27,
        };
        assert_eq!(image.interpreter(), Some(named));
    }

    #[test]
    fn every_refusal_has_its_reason() {
        let with = |h: ProgramHeader| read(&file(ET_EXEC, &[h], 0x2000)).map(drop).unwrap_err();
        let load =
            |offset, vaddr, filesz, memsz| with(header(PT_LOAD, RX, offset, vaddr, filesz, memsz));
        let malformed = |e: ExecError| match e {
            ExecError::Malformed(what) => what,
            other => panic!("{other}"),
        };
        for (offset, len) in [(0, 1), (0x1fff, 2), (0, MAX_PATH + 1), (u64::MAX, 2)] {
            let named = header(PT_INTERP, 0, offset, 0, len, len);
            assert!(malformed(with(named)).contains("linker"));
        }
        assert!(malformed(load(0, 0x40_0000, 2, 1)).contains("larger"));
        assert!(malformed(load(0x1fff, 0x40_0fff, 2, 2)).contains("end of the file"));
        assert!(malformed(load(u64::MAX, 0x40_0fff, 2, 2)).contains("end of the file"));
        assert!(malformed(load(1, 0x40_0000, 2, 2)).contains("odds"));
        assert!(malformed(load(0, 0x40_0000, 2, u64::MAX)).contains("user space"));
        assert!(malformed(with(header(PT_GNU_STACK, 0, 0, 0, 0, 0))).contains("no segment"));
        let mut two = busybox();
        two[1].vaddr = 0x5c_ba90.into();
        assert!(malformed(read(&file(ET_EXEC, &two, 0x1e_2000)).unwrap_err()).contains("overlap"));
        let low = read(&file(ET_EXEC, &[header(PT_LOAD, RX, 0, 0, 1, 1)], 0x2000)).unwrap();
        assert!(malformed(low.plan(Hva::new(0)).unwrap_err()).contains("user space"));

        assert_eq!(read(b"#!/bin/sh\n"), Err(ExecError::NotElf));
        let mut other = file(ET_EXEC, &busybox(), 0x1e_2000);
        other[18] = 62;
        assert_eq!(read(&other), Err(ExecError::WrongMachine));
        other[0] = b'#';
        assert_eq!(read(&other).unwrap_err().errno(), Errno::ENOEXEC);
        assert_eq!(
            Image::read(64, |_, _| Err(Errno::EIO)),
            Err(ExecError::Read(Errno::EIO))
        );
    }

    #[test]
    fn a_pie_that_would_leave_user_space_is_refused() {
        let image = read(&file(ET_DYN, &[header(PT_LOAD, RX, 0, 0, 1, 1)], 0x1000)).unwrap();
        assert!(image.plan(Hva::new(USER_END - 0x1_0000)).is_ok());
        assert!(image.plan(Hva::new(USER_END - 1)).is_err());
        assert!(image.plan(Hva::new(u64::MAX)).is_err());
    }

    fn arbitrary_header() -> impl Strategy<Value = ProgramHeader> {
        let kind = prop_oneof![4 => Just(PT_LOAD), 1 => Just(PT_PHDR), 1 => any::<u32>()];
        let number = || prop_oneof![3 => 0u64..0x1_0000, 1 => any::<u64>(), 1 => Just(USER_END)];
        (
            kind,
            any::<u32>(),
            number(),
            number(),
            number(),
            number(),
            any::<bool>(),
        )
            .prop_map(|(kind, flags, offset, vaddr, filesz, memsz, congruent)| {
                let vaddr = if congruent {
                    (vaddr & !(PAGE - 1)) | (offset % PAGE)
                } else {
                    vaddr
                };
                header(kind, flags, offset, vaddr, filesz, memsz)
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn any_headers_give_a_sound_plan_or_an_error(
            headers in prop::collection::vec(arbitrary_header(), 0..5), pie: bool, base: u64
        ) {
            let bytes = file(if pie { ET_DYN } else { ET_EXEC }, &headers, 0x4000);
            let Ok(image) = read(&bytes) else { return Ok(()) };
            let Ok(plan) = image.plan(Hva::new(base)) else { return Ok(()) };
            let mut end = USER_MIN;
            for segment in &plan.segments {
                let file = segment.file.map(|f| (f.addr, f.len));
                for (addr, len) in file.into_iter().chain(segment.anon) {
                    prop_assert!(addr.is_aligned(PAGE) && len % PAGE == 0 && len > 0);
                    prop_assert!(addr.raw() >= end);
                    end = addr.raw() + len;
                }
                if let Some(f) = segment.file {
                    prop_assert!(f.offset % PAGE == 0 && f.offset + f.len < 0x4000 + PAGE);
                    if let Some((addr, len)) = segment.zero {
                        prop_assert!(addr >= f.addr && addr.raw() + len == f.addr.raw() + f.len);
                    }
                }
            }
            prop_assert!(end <= USER_END);
            prop_assert_eq!(plan.brk.raw(), end);
        }

        #[test]
        fn noise_never_panics(at in prop::collection::vec((0usize..300, any::<u8>()), 0..12)) {
            let mut bytes = file(ET_DYN, &busybox(), 0x1000);
            for (at, byte) in at {
                if let Some(b) = bytes.get_mut(at) {
                    *b = byte;
                }
            }
            if let Ok(image) = read(&bytes) {
                let _ = image.plan(Hva::new(0x10_0000));
            }
        }
    }
}
