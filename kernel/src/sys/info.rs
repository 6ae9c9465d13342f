//! What the system says of itself.

use alloc::sync::Arc;

use umbra_linux::{Errno, fd};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Args, int, user};
use crate::file::Call;
use crate::files::random;
use crate::{mem, sched};

/// What uname and /proc/version say: the Linux whose calls these are.
pub(crate) const RELEASE: &str = "6.12.0-umbra";

pub(super) fn uname(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    const FIELD: usize = 65;
    let mut bytes = [0u8; 6 * FIELD];
    let version = concat!("umbra ", env!("CARGO_PKG_VERSION"));
    let fields = ["Linux", "umbra", RELEASE, version, "aarch64", "(none)"];
    for (place, text) in bytes.chunks_exact_mut(FIELD).zip(fields) {
        for (to, from) in place.iter_mut().take(FIELD - 1).zip(text.bytes()) {
            *to = from;
        }
    }
    user::write(call, a[0], &bytes)?;
    Ok(0)
}

/// `struct sysinfo` of 64-bit machines.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Sysinfo {
    uptime: u64,
    loads: [u64; 3],
    total: u64,
    free: u64,
    shared: u64,
    buffers: u64,
    swap: [u64; 2],
    processes: u16,
    pad: [u16; 3],
    high: [u64; 2],
    unit: u32,
    end: u32,
}

pub(super) fn sysinfo(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let (free, total) = mem::frame_counts();
    let info = Sysinfo {
        uptime: sched::now() / 1_000_000_000,
        total: total << 12,
        free: free << 12,
        processes: u16::try_from(crate::proc::processes().len()).unwrap_or(u16::MAX),
        unit: 1,
        ..Sysinfo::default()
    };
    user::write(call, a[0], &info)?;
    Ok(0)
}

/// `struct rlimit64`: now, at most.
fn limit(which: u64) -> Result<[u64; 2], Errno> {
    // include/uapi/asm-generic/resource.h
    const RLIMIT_STACK: u64 = 3;
    const RLIMIT_CORE: u64 = 4;
    const RLIMIT_NPROC: u64 = 6;
    const RLIMIT_NOFILE: u64 = 7;
    const RLIM_NLIMITS: u64 = 16;
    match which {
        RLIMIT_STACK => Ok([8 << 20; 2]),
        RLIMIT_CORE => Ok([0; 2]),
        RLIMIT_NPROC => Ok([4096; 2]),
        RLIMIT_NOFILE => Ok([fd::DEFAULT_LIMIT.into(); 2]),
        which if which < RLIM_NLIMITS => Ok([u64::MAX; 2]),
        _ => Err(Errno::EINVAL),
    }
}

pub(super) fn getrlimit(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    user::write(call, a[1], &limit(a[0])?)?;
    Ok(0)
}

/// prlimit64. Limits are fixed: one that is not above the fixed one is accepted without effect.
pub(super) fn prlimit64(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let [pid, which, new, old, ..] = a;
    let pid = int(pid);
    if pid != 0 && crate::proc::find(pid).is_none() {
        return Err(Errno::ESRCH);
    }
    let fixed = limit(which)?;
    if let Some([soft, hard]) = user::read_optional::<[u64; 2]>(call, new)? {
        if soft > hard {
            return Err(Errno::EINVAL);
        }
        if hard > fixed[1] {
            return Err(Errno::EPERM);
        }
    }
    user::write_optional(call, old, &fixed)?;
    Ok(0)
}

pub(super) fn getrandom(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    const FLAGS: u64 = 7;
    const PIECE: usize = 256;
    let [to, len, flags, ..] = a;
    if flags & !FLAGS != 0 {
        return Err(Errno::EINVAL);
    }
    let len = len.min(1 << 20);
    let mut done = 0;
    while done < len {
        let mut bytes = [0u8; PIECE];
        let count = (len - done).min(PIECE as u64) as usize;
        random::fill(&mut bytes[..count]);
        user::write(call, to.wrapping_add(done), &bytes[..count])?;
        done += count as u64;
    }
    Ok(done)
}

/// The CPUs that are up, by bit.
fn online() -> u64 {
    match sched::cpus() {
        cpus if cpus >= 64 => u64::MAX,
        cpus => (1u64 << cpus) - 1,
    }
}

/// The thread that a call about scheduling means; 0 is the caller.
fn scheduled(tid: u64) -> Result<Arc<sched::Thread>, Errno> {
    match int(tid) {
        0 => Ok(sched::current()),
        tid => {
            let thread = crate::proc::by_tid(tid).ok_or(Errno::ESRCH)?;
            Ok(thread.scheduled().clone())
        }
    }
}

pub(super) fn sched_getaffinity(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    if a[1] < 8 || !a[1].is_multiple_of(8) {
        return Err(Errno::EINVAL);
    }
    let mask = scheduled(a[0])?.affinity() & online();
    user::write(call, a[2], &mask)?;
    Ok(8)
}

/// sched_setaffinity: at once for the caller, for another thread when it wakes next.
pub(super) fn sched_setaffinity(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let mut mask = [0u8; 8];
    let count = (a[1] as usize).min(mask.len());
    call.process
        .mm()
        .read_bytes(umbra_arm64::Hva::new(a[2]), &mut mask[..count])?;
    let cpus = u64::from_le_bytes(mask) & online();
    if cpus == 0 {
        return Err(Errno::EINVAL);
    }
    let thread = scheduled(a[0])?;
    sched::set_affinity(&thread, cpus);
    Ok(0)
}

pub(super) fn getcpu(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    user::write_optional(call, a[0], &(umbra_hw::cpu() as u32))?;
    user::write_optional(call, a[1], &0u32)?;
    Ok(0)
}

/// setuid and so on: everybody is root, and may become root.
pub(super) fn set_ids(_a: Args) -> Result<u64, Errno> {
    Ok(0)
}
