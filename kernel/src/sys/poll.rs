//! Waiting for several files: ppoll, pselect6, epoll.

use alloc::sync::Arc;
use alloc::vec::Vec;

use umbra_linux::epoll::{EpollEvent, MAX_EVENTS};
use umbra_linux::signal::SigSet;
use umbra_linux::{Errno, Events, uapi};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Args, descriptor, int, user};
use crate::file::{Call, Description};
use crate::files::EpollFile;
use crate::files::epoll::Control;
use crate::sched;

/// The most descriptors in one poll: as many as a process can have open.
const MAX_FILES: u64 = 1024;
/// The most events that one epoll_wait brings; a program asks again for more.
const MAX_REPORTED: usize = 1024;
/// Bytes of a signal mask.
const MASK_BYTES: u64 = 8;

/// `struct pollfd`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct PollFd {
    fd: i32,
    events: u16,
    revents: u16,
}

/// Sleeps until `look` finds something, `until` passes (`Ok(None)`), or a signal comes (`EINTR`).
fn wait<T>(
    call: &Call<'_>,
    files: &[Arc<Description>],
    until: Option<u64>,
    mut look: impl FnMut() -> Option<T>,
) -> Result<Option<T>, Errno> {
    if let Some(found) = look() {
        return Ok(Some(found));
    }
    if until.is_some_and(|at| sched::now() >= at) {
        return Ok(None);
    }
    let me = sched::current();
    let result = loop {
        // Again each time: a wake empties a queue.
        for file in files {
            file.file.enter_queues(&me);
        }
        if let Some(found) = look() {
            break Ok(Some(found));
        }
        if call.thread.signal_pending() {
            break Err(Errno::EINTR);
        }
        if until.is_some_and(|at| sched::now() >= at) {
            break Ok(None);
        }
        let change = files
            .iter()
            .filter_map(|file| file.file.next_change())
            .min();
        sched::park(match (change, until) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        });
    };
    for file in files {
        file.file.leave_queues(&me);
    }
    result
}

/// Takes over the mask of a "p" call, until the way back to EL0.
fn take_mask(call: &Call<'_>, mask: u64, bytes: u64) -> Result<(), Errno> {
    if mask == 0 {
        return Ok(());
    }
    if bytes != MASK_BYTES {
        return Err(Errno::EINVAL);
    }
    let mask: SigSet = user::read(call, mask)?;
    call.thread.suspend_with(mask);
    Ok(())
}

pub(super) fn ppoll(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let [list, count, timeout, mask, mask_bytes, _] = a;
    if count > MAX_FILES {
        return Err(Errno::EINVAL);
    }
    let entry = |index: u64| list.wrapping_add(index * size_of::<PollFd>() as u64);
    let mut entries: Vec<(PollFd, Option<Arc<Description>>)> = Vec::new();
    for index in 0..count {
        let wanted: PollFd = user::read(call, entry(index))?;
        let file = u32::try_from(wanted.fd)
            .ok()
            .and_then(|fd| call.process.description(fd).ok());
        entries.push((wanted, file));
    }
    let until = super::time::timeout(call, timeout)?;
    take_mask(call, mask, mask_bytes)?;
    let files: Vec<_> = entries
        .iter()
        .filter_map(|(_, file)| file.clone())
        .collect();
    let found = wait(call, &files, until, || {
        let mut ready = 0;
        for (wanted, file) in &mut entries {
            let events = match file {
                Some(file) => {
                    let asked = Events::from_bits_truncate(wanted.events.into());
                    file.file.readiness().events.reported_to(asked)
                }
                None if wanted.fd < 0 => Events::empty(),
                None => Events::NVAL,
            };
            wanted.revents = events.bits() as u16;
            ready += u64::from(!events.is_empty());
        }
        (ready > 0).then_some(ready)
    })?;
    for (index, (wanted, _)) in entries.iter().enumerate() {
        user::write(call, entry(index as u64), wanted)?;
    }
    Ok(found.unwrap_or(0))
}

/// What the three sets of select ask about.
const SETS: [Events; 3] = [
    Events::READABLE.union(Events::ALWAYS),
    Events::WRITABLE.union(Events::ERR),
    Events::PRI,
];

pub(super) fn pselect6(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let [count, read, write, except, timeout, mask] = a;
    let count = usize::try_from(int(count)).map_err(|_| Errno::EINVAL)?;
    let count = count.min(MAX_FILES as usize);
    let bytes = count.div_ceil(64) * 8;
    let places = [read, write, except];
    let mut sets: [Vec<u8>; 3] = Default::default();
    for (set, at) in sets.iter_mut().zip(places) {
        set.resize(bytes, 0);
        if at != 0 {
            call.process
                .mm()
                .read_bytes(umbra_arm64::Hva::new(at), set)?;
        }
    }
    let mut entries = Vec::new();
    for fd in 0..count {
        let asked = |set: &Vec<u8>| {
            set.get(fd / 8)
                .is_some_and(|byte| byte >> (fd % 8) & 1 == 1)
        };
        let which = [asked(&sets[0]), asked(&sets[1]), asked(&sets[2])];
        if which.contains(&true) {
            entries.push((fd, which, call.process.description(fd as u32)?));
        }
    }
    let until = super::time::timeout(call, timeout)?;
    // The sixth argument: a pointer to (mask, its bytes).
    if let Some([mask, mask_bytes]) = user::read_optional::<[u64; 2]>(call, mask)? {
        take_mask(call, mask, mask_bytes)?;
    }
    let files: Vec<_> = entries.iter().map(|(.., file)| file.clone()).collect();
    let found = wait(call, &files, until, || {
        for set in &mut sets {
            set.fill(0);
        }
        let mut ready = 0;
        for (fd, which, file) in &entries {
            let events = file.file.readiness().events;
            for ((set, asked), wanted) in sets.iter_mut().zip(which).zip(SETS) {
                if *asked
                    && events.intersects(wanted)
                    && let Some(byte) = set.get_mut(fd / 8)
                {
                    *byte |= 1 << (fd % 8);
                    ready += 1;
                }
            }
        }
        (ready > 0).then_some(ready)
    })?;
    for (set, at) in sets.iter().zip(places).filter(|(_, at)| *at != 0) {
        call.process
            .mm()
            .write_bytes(umbra_arm64::Hva::new(at), set)?;
    }
    Ok(found.unwrap_or(0))
}

pub(super) fn epoll_create1(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let flags = a[0] as u32;
    if flags & !uapi::O_CLOEXEC != 0 {
        return Err(Errno::EINVAL);
    }
    let fd = call
        .process
        .install(EpollFile::new(), flags & uapi::O_CLOEXEC != 0)?;
    Ok(fd.into())
}

pub(super) fn epoll_ctl(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let [list, op, fd, event, ..] = a;
    let list = call.process.description(descriptor(list)?)?;
    let fd = descriptor(fd)?;
    let file = call.process.description(fd)?;
    let control = match op {
        1 => Control::Add(user::read(call, event)?),
        2 => Control::Remove,
        3 => Control::Modify(user::read(call, event)?),
        _ => return Err(Errno::EINVAL),
    };
    let epoll: &EpollFile = list.downcast().ok_or(Errno::EINVAL)?;
    epoll.control(fd, &file, control)?;
    Ok(0)
}

pub(super) fn epoll_pwait(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let [list, events, max, timeout, mask, mask_bytes] = a;
    let max = u32::try_from(int(max)).unwrap_or(0);
    if max == 0 || max > MAX_EVENTS {
        return Err(Errno::EINVAL);
    }
    let list = call.process.description(descriptor(list)?)?;
    let epoll: &EpollFile = list.downcast().ok_or(Errno::EINVAL)?;
    take_mask(call, mask, mask_bytes)?;
    let until = super::time::timeout_millis(int(timeout));
    let room = (max as usize).min(MAX_REPORTED);
    let files = [list.clone()];
    let found: Vec<EpollEvent> = wait(call, &files, until, || {
        let found = epoll.collect(room);
        (!found.is_empty()).then_some(found)
    })?
    .unwrap_or_default();
    user::write(call, events, found.as_slice())?;
    Ok(found.len() as u64)
}
