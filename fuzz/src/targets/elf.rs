//! Programs: a plan that is accepted is laid out in a small memory and compared, byte by byte, with what
//! the program headers say.

use std::collections::BTreeMap;

use umbra_arm64::Hva;
use umbra_linux::elf::{Image, LoadPlan};
use umbra_linux::vma::{PAGE, USER_END, USER_MIN};

/// Bigger programs are planned, not laid out.
const MOST: u64 = 8 * PAGE;

fn number(file: &[u8], at: u64, bytes: usize) -> u64 {
    let at = at as usize;
    let part = file.get(at..at + bytes).unwrap_or_default();
    part.iter().rev().fold(0, |all, b| all << 8 | u64::from(*b))
}

/// Memory as the plan makes it: bytes and where each run of them begins.
fn memory(plan: &LoadPlan, file: &[u8]) -> BTreeMap<u64, Vec<u8>> {
    let mut memory = BTreeMap::new();
    for segment in &plan.segments {
        if let Some(part) = segment.file {
            let rest = file.get(part.offset as usize..).unwrap_or_default();
            let mut bytes = rest[..rest.len().min(part.len as usize)].to_vec();
            bytes.resize(part.len as usize, 0);
            if let Some((at, len)) = segment.zero {
                let from = (at.raw() - part.addr.raw()) as usize;
                bytes[from..from + len as usize].fill(0);
            }
            memory.insert(part.addr.raw(), bytes);
        }
        if let Some((at, len)) = segment.anon {
            memory.insert(at.raw(), vec![0; len as usize]);
        }
    }
    memory
}

fn check(plan: &LoadPlan, file: &[u8], bias: u64) {
    let mut end = USER_MIN;
    for segment in &plan.segments {
        let parts = segment.file.map(|part| (part.addr, part.len));
        for (at, len) in parts.into_iter().chain(segment.anon) {
            assert!(at.raw() >= end && at.is_aligned(PAGE) && len > 0 && len % PAGE == 0);
            end = at.raw() + len;
        }
        if let Some(part) = segment.file {
            assert!(part.offset % PAGE == 0 && part.offset < file.len() as u64);
        }
    }
    assert!(end <= USER_END && plan.brk.raw() == end);
    assert_eq!(plan.entry.raw(), number(file, 24, 8).wrapping_add(bias));
    let size: u64 = plan
        .segments
        .iter()
        .map(|s| s.file.map_or(0, |part| part.len) + s.anon.map_or(0, |anon| anon.1))
        .sum();
    if size > MOST {
        return;
    }
    let memory = memory(plan, file);
    for n in 0..u64::from(plan.phnum) {
        let header = number(file, 32, 8) + 56 * n;
        let field = |at: u64| number(file, header + at, 8);
        if number(file, header, 4) != 1 {
            continue;
        }
        let (offset, vaddr, filesz, memsz) = (field(8), field(16), field(32), field(40));
        for at in 0..memsz {
            let byte = if at < filesz {
                number(file, offset + at, 1) as u8
            } else {
                0
            };
            let place = vaddr.wrapping_add(bias).wrapping_add(at);
            let run = memory.range(..=place).next_back();
            let seen = run.and_then(|(start, run)| run.get((place - start) as usize));
            assert_eq!(seen, Some(&byte), "byte {at} of segment {n}");
        }
    }
}

pub(crate) fn run(bytes: &[u8]) {
    let image = Image::read(bytes.len() as u64, |at, buffer| {
        let at = usize::try_from(at).expect("inside the file");
        buffer.copy_from_slice(&bytes[at..at + buffer.len()]);
        Ok(())
    });
    let Ok(image) = image else { return };
    for base in [0, USER_MIN, 0x5555_5555_0000, USER_END - PAGE] {
        let Ok(plan) = image.plan(Hva::new(base)) else {
            continue;
        };
        let bias = plan.entry.raw().wrapping_sub(number(bytes, 24, 8));
        assert!(image.is_pie() || bias == 0);
        check(&plan, bytes, bias);
    }
}
