//! sendmsg and recvmsg: bytes in parts, with open files beside them (SCM_RIGHTS).
//!
//! Of control messages there is that one. A socket of AF_UNIX cannot be sent itself: two that lie in
//! each other's lines would keep each other for ever, and nothing here looks for such rings.

use alloc::sync::Arc;
use alloc::vec::Vec;

use umbra_arm64::Hva;
use umbra_linux::{Errno, Events, uapi};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::io::{Part, gather, parts};
use super::socket::socket_of;
use super::{Args, user};
use crate::file::{Call, Description, File, block_on};
use crate::files::socket::{Parcel, Socket};

const SOL_SOCKET: i32 = 1;
const SCM_RIGHTS: i32 = 1;
/// The most files in one message (SCM_MAX_FD).
const MOST_FILES: usize = 253;
/// The most bytes of one call; the rest is for the next.
const LARGEST: usize = 64 << 10;

/// recvmsg: the control messages did not fit (in `flags` of the answer).
const MSG_CTRUNC: u32 = 8;
/// recvmsg: files are closed on exec.
const MSG_CMSG_CLOEXEC: u32 = 0x4000_0000;

/// `struct msghdr` of 64-bit Linux.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    name: u64,
    name_len: u32,
    pad: u32,
    vector: u64,
    count: u64,
    control: u64,
    control_len: u64,
    flags: u32,
    pad2: u32,
}

/// `struct cmsghdr`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Control {
    len: u64,
    level: i32,
    kind: i32,
}

const CONTROL: u64 = size_of::<Control>() as u64;

/// The files that a message's control names. `EINVAL`: another kind, too many, or a length that cannot be;
/// `EBADF`; `ETOOMANYREFS`: a socket.
fn files_of(call: &Call<'_>, header: &Header) -> Result<Option<Parcel>, Errno> {
    if header.control_len > LARGEST as u64 {
        return Err(Errno::EINVAL);
    }
    let mut parcel = Parcel::new();
    let mut at = 0u64;
    while header.control_len.saturating_sub(at) >= CONTROL {
        let control: Control = user::read(call, header.control.wrapping_add(at))?;
        let left = header.control_len - at;
        if control.len < CONTROL || control.len > left {
            return Err(Errno::EINVAL);
        }
        if (control.level, control.kind) != (SOL_SOCKET, SCM_RIGHTS) {
            return Err(Errno::EINVAL);
        }
        let count = ((control.len - CONTROL) / 4) as usize;
        if parcel.len() + count > MOST_FILES {
            return Err(Errno::EINVAL);
        }
        for n in 0..count as u64 {
            let from = header.control.wrapping_add(at + CONTROL + 4 * n);
            let fd: i32 = user::read(call, from)?;
            let fd = u32::try_from(fd).map_err(|_| Errno::EBADF)?;
            let file = call.process.description(fd)?;
            if file.downcast::<Socket>().is_some() {
                return Err(Errno::ETOOMANYREFS);
            }
            parcel.push(file);
        }
        at = at.saturating_add(control.len.next_multiple_of(8));
    }
    Ok((!parcel.is_empty()).then_some(parcel))
}

pub(super) fn sendmsg(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let (description, socket) = socket_of(call, a[0])?;
    let flags = a[2] as u32;
    if flags & !(uapi::MSG_DONTWAIT | uapi::MSG_NOSIGNAL) != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let header: Header = user::read(call, a[1])?;
    if header.name != 0 && header.name_len != 0 {
        return Err(Errno::EISCONN);
    }
    let mut parcel = files_of(call, &header)?;
    let bytes = gather(call, header.vector, header.count, LARGEST)?;
    if bytes.is_empty() {
        return Ok(0);
    }
    if flags & uapi::MSG_NOSIGNAL != 0 && socket.readiness().events.contains(Events::HUP) {
        return Err(Errno::EPIPE);
    }
    let mut send = || socket.send(call, &bytes, &mut parcel);
    let done = match flags & uapi::MSG_DONTWAIT {
        0 => block_on(call, &description, send)?,
        _ => send().map_err(umbra_linux::Stop::without_waiting)?,
    };
    Ok(done as u64)
}

pub(super) fn recvmsg(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let (description, socket) = socket_of(call, a[0])?;
    let flags = a[2] as u32;
    if flags & !(uapi::MSG_DONTWAIT | MSG_CMSG_CLOEXEC) != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let mut header: Header = user::read(call, a[1])?;
    let into = parts(call, header.vector, header.count)?;
    let room = into
        .iter()
        .fold(0u64, |sum, part| sum.saturating_add(part.len));
    let mut buffer = user::buffer(room.min(LARGEST as u64) as usize)?;
    let mut receive = || socket.receive(&mut buffer);
    let (count, parcel) = match flags & uapi::MSG_DONTWAIT {
        0 => block_on(call, &description, receive)?,
        _ => receive().map_err(umbra_linux::Stop::without_waiting)?,
    };
    scatter(call, &into, &buffer[..count])?;
    header.flags = 0;
    header.name_len = 0;
    let files = parcel.unwrap_or_default();
    header.control_len = give(call, &mut header, &files, flags & MSG_CMSG_CLOEXEC != 0)?;
    user::write(call, a[1], &header)?;
    Ok(count as u64)
}

fn scatter(call: &Call<'_>, into: &[Part], mut bytes: &[u8]) -> Result<(), Errno> {
    for part in into {
        let len = usize::try_from(part.len)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        let (now, later) = bytes.split_at(len);
        call.process.mm().write_bytes(Hva::new(part.base), now)?;
        bytes = later;
    }
    Ok(())
}

/// Makes files the process's and writes their numbers where the message wants them; as many as there is
/// room for. Returns the bytes of control written.
fn give(
    call: &Call<'_>,
    header: &mut Header,
    files: &[Arc<Description>],
    cloexec: bool,
) -> Result<u64, Errno> {
    if files.is_empty() {
        return Ok(0);
    }
    let room = (header.control_len.saturating_sub(CONTROL) / 4) as usize;
    let mut numbers: Vec<u32> = Vec::new();
    for file in files.iter().take(room) {
        match call.process.install_description(file.clone(), cloexec) {
            Ok(fd) => numbers.push(fd),
            Err(_) => break,
        }
    }
    if numbers.len() < files.len() {
        header.flags |= MSG_CTRUNC;
    }
    if numbers.is_empty() {
        return Ok(0);
    }
    let len = CONTROL + 4 * numbers.len() as u64;
    let control = Control {
        len,
        level: SOL_SOCKET,
        kind: SCM_RIGHTS,
    };
    user::write(call, header.control, &control)?;
    user::write(
        call,
        header.control.wrapping_add(CONTROL),
        numbers.as_slice(),
    )?;
    // The padding behind counts where there is room for it.
    Ok(len.next_multiple_of(8).min(header.control_len))
}
