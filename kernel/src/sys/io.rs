//! Bytes in and out: read, write and their relatives.
//!
//! Bytes go through a buffer of the kernel's, a piece at a time; between pieces the CPU is free for
//! others. What was done before an error or a signal counts.

use alloc::vec::Vec;

use umbra_arm64::Hva;
use umbra_linux::Errno;
use umbra_linux::fs::MAX_FILE;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Args, descriptor, user};
use crate::file::{Call, Description, block_on};
use crate::files::tree::TreeFile;
use crate::{irq, mem, sched};

/// Bytes in one piece.
const PIECE: usize = 64 << 10;
/// The most bytes in one call (Linux's MAX_RW_COUNT).
const MAX_COUNT: u64 = 0x7fff_f000;
/// The most parts of a vector (UIO_MAXIOV).
const MAX_PARTS: u64 = 1024;

/// `struct iovec`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Part {
    pub(super) base: u64,
    pub(super) len: u64,
}

/// Where in the file.
#[derive(Clone, Copy)]
enum At {
    /// The file's own position.
    Position,
    /// This offset.
    Offset(u64),
}

impl At {
    fn from_offset(offset: u64) -> Result<Self, Errno> {
        if offset > i64::MAX as u64 {
            return Err(Errno::EINVAL);
        }
        Ok(Self::Offset(offset.min(MAX_FILE)))
    }

    fn advanced(self, done: u64) -> Self {
        match self {
            Self::Position => Self::Position,
            Self::Offset(offset) => Self::Offset(offset.saturating_add(done)),
        }
    }
}

/// Between two pieces of a long transfer: others may run, and the thread may have to stop, or memory be out.
fn pause(call: &Call<'_>) -> bool {
    irq::poll();
    sched::preempt_point();
    !call.thread.signal_pending() && mem::admit().is_ok()
}

/// Whether what is written to a file stays with umbra.
fn keeps(file: &Description) -> bool {
    file.downcast::<TreeFile>().is_some() || file.file.is_memory()
}

fn read_piece(
    call: &Call<'_>,
    file: &Description,
    at: At,
    buffer: &mut [u8],
) -> Result<usize, Errno> {
    match at {
        At::Position => block_on(call, file, || file.file.read(call, buffer)),
        At::Offset(offset) => file.file.read_at(call, offset, buffer),
    }
}

fn write_piece(call: &Call<'_>, file: &Description, at: At, bytes: &[u8]) -> Result<usize, Errno> {
    match at {
        At::Position => block_on(call, file, || file.file.write(call, bytes)),
        At::Offset(offset) => file.file.write_at(call, offset, bytes),
    }
}

/// Reads into one range of the process's memory.
fn read_range(call: &Call<'_>, file: &Description, at: At, part: Part) -> Result<u64, Errno> {
    let len = part.len.min(MAX_COUNT);
    let mm = call.process.mm();
    let mut buffer = user::buffer((len as usize).min(PIECE))?;
    let mut done = 0;
    loop {
        let want = ((len - done) as usize).min(PIECE);
        let count = match read_piece(call, file, at.advanced(done), &mut buffer[..want]) {
            Ok(count) => count.min(want),
            Err(_) if done > 0 => return Ok(done),
            Err(errno) => return Err(errno),
        };
        mm.write_bytes(Hva::new(part.base.wrapping_add(done)), &buffer[..count])?;
        done += count as u64;
        // Only a file gives the rest without waiting; others give what they have.
        let more = count == want && done < len && file.downcast::<TreeFile>().is_some();
        if !more || !pause(call) {
            return Ok(done);
        }
    }
}

/// Writes from one range of the process's memory.
fn write_range(call: &Call<'_>, file: &Description, at: At, part: Part) -> Result<u64, Errno> {
    if keeps(file) {
        mem::admit()?;
    }
    let len = part.len.min(MAX_COUNT);
    let mm = call.process.mm();
    let mut buffer = user::buffer((len as usize).min(PIECE))?;
    let mut done = 0;
    let mut starved = false;
    loop {
        let want = ((len - done) as usize).min(PIECE);
        let piece = &mut buffer[..want];
        let step = mm
            .read_bytes(Hva::new(part.base.wrapping_add(done)), piece)
            .and_then(|()| write_piece(call, file, at.advanced(done), piece));
        match step {
            Ok(count) => {
                done += count as u64;
                starved = false;
            }
            // The heap had no room in one place; it is fed before the second attempt.
            Err(Errno::ENOSPC | Errno::ENOMEM) if !starved => {
                starved = true;
                mem::top_up();
                continue;
            }
            Err(_) if done > 0 => return Ok(done),
            Err(errno) => return Err(errno),
        }
        if done >= len || (file.is_nonblocking() && step != Ok(want)) || !pause(call) {
            return Ok(done);
        }
    }
}

type Range = fn(&Call<'_>, &Description, At, Part) -> Result<u64, Errno>;

/// A vector's parts. `EINVAL`: too many, or too long together.
pub(super) fn parts(call: &Call<'_>, vector: u64, count: u64) -> Result<Vec<Part>, Errno> {
    if count > MAX_PARTS {
        return Err(Errno::EINVAL);
    }
    let mut parts = Vec::new();
    let mut total = 0u64;
    for index in 0..count {
        let from = vector.wrapping_add(index * size_of::<Part>() as u64);
        let part: Part = user::read(call, from)?;
        total = total
            .checked_add(part.len)
            .filter(|total| *total <= i64::MAX as u64)
            .ok_or(Errno::EINVAL)?;
        parts.push(part);
    }
    Ok(parts)
}

/// Does a vector's parts in turn until one is not done whole.
fn each(call: &Call<'_>, a: Args, at: At, one: Range) -> Result<u64, Errno> {
    let [fd, vector, count, ..] = a;
    let file = call.process.description(descriptor(fd)?)?;
    let parts = parts(call, vector, count)?;
    let mut done = 0;
    for part in parts.into_iter().filter(|part| part.len > 0) {
        match one(call, &file, at.advanced(done), part) {
            Ok(count) => {
                done += count;
                // A part is a piece, however small: what a file keeps of it comes from the heap too.
                if count < part.len || !pause(call) {
                    break;
                }
            }
            Err(_) if done > 0 => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(done)
}

/// The bytes of a vector, as far as `limit`.
pub(super) fn gather(
    call: &Call<'_>,
    vector: u64,
    count: u64,
    limit: usize,
) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::new();
    for part in parts(call, vector, count)? {
        let start = bytes.len();
        let len = usize::try_from(part.len)
            .unwrap_or(usize::MAX)
            .min(limit - start);
        bytes.try_reserve(len).map_err(|_| Errno::ENOMEM)?;
        bytes.resize(start + len, 0);
        call.process
            .mm()
            .read_bytes(Hva::new(part.base), &mut bytes[start..])?;
    }
    Ok(bytes)
}

pub(super) fn read(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let [fd, base, len, ..] = a;
    let file = call.process.description(descriptor(fd)?)?;
    read_range(call, &file, At::Position, Part { base, len })
}

pub(super) fn write(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let [fd, base, len, ..] = a;
    let file = call.process.description(descriptor(fd)?)?;
    write_range(call, &file, At::Position, Part { base, len })
}

pub(super) fn readv(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    each(call, a, At::Position, read_range)
}

pub(super) fn writev(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let file = call.process.description(descriptor(a[0])?)?;
    let all = parts(call, a[1], a[2])?;
    let total = all
        .iter()
        .fold(0u64, |sum, part| sum.saturating_add(part.len));
    if total > PIECE as u64 {
        return each(call, a, At::Position, write_range);
    }
    // Small vectors go out as one piece, so that a line made of several parts stays whole.
    let bytes = gather(call, a[1], a[2], PIECE)?;
    let count = write_piece(call, &file, At::Position, &bytes)?;
    Ok(count as u64)
}

pub(super) fn pread64(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let [fd, base, len, offset, ..] = a;
    let at = At::from_offset(offset)?;
    let file = call.process.description(descriptor(fd)?)?;
    read_range(call, &file, at, Part { base, len })
}

pub(super) fn pwrite64(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let [fd, base, len, offset, ..] = a;
    let at = At::from_offset(offset)?;
    let file = call.process.description(descriptor(fd)?)?;
    write_range(call, &file, at, Part { base, len })
}

pub(super) fn preadv(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    each(call, a, At::from_offset(a[3])?, read_range)
}

pub(super) fn pwritev(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    each(call, a, At::from_offset(a[3])?, write_range)
}

/// sendfile: from one open file to another, through the kernel's buffer.
pub(super) fn sendfile(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let [to, from, offset, len, ..] = a;
    let to = call.process.description(descriptor(to)?)?;
    let from = call.process.description(descriptor(from)?)?;
    let mut at = match user::read_optional::<u64>(call, offset)? {
        Some(offset) => At::from_offset(offset)?,
        None => At::Position,
    };
    let len = len.min(MAX_COUNT);
    let mut buffer = user::buffer((len as usize).min(PIECE))?;
    let mut done = 0;
    while done < len {
        let want = ((len - done) as usize).min(PIECE);
        let count = match read_piece(call, &from, at, &mut buffer[..want]) {
            Ok(0) => break,
            Ok(count) => count.min(want),
            Err(_) if done > 0 => break,
            Err(errno) => return Err(errno),
        };
        let mut sent = 0;
        while sent < count {
            match write_piece(call, &to, At::Position, &buffer[sent..count]) {
                Ok(more) => sent += more,
                Err(_) if done + sent as u64 > 0 => break,
                Err(errno) => return Err(errno),
            }
        }
        at = at.advanced(sent as u64);
        done += sent as u64;
        if sent < count || !pause(call) {
            break;
        }
    }
    if let At::Offset(offset) = at {
        user::write(call, a[2], &offset)?;
    }
    Ok(done)
}
