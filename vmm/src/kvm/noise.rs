//! System calls without sense, for a process that is made to be thrown away.

use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{ABOVE_MAPPED, LOWEST_MAPPED, PAGE, Region, answer};

/// Calls that end or replace the process or a thread, or that say where the kernel writes later or what may be
/// called: exit,
/// exit_group, set_tid_address, rt_sigaction, rt_sigprocmask, rt_sigreturn, rt_sigsuspend, clone,
/// execve, seccomp, clone3.
const NEVER: [u64; 12] = [93, 94, 96, 99, 133, 134, 135, 139, 220, 221, 277, 435];
/// munmap, mremap, mprotect, madvise: what they name is changed.
const CHANGES: [u64; 4] = [215, 216, 226, 233];
const MMAP: u64 = 222;
const MREMAP: u64 = 216;
const BRK: u64 = 214;
const IOCTL: u64 = 29;
/// Calls that take a signal mask for as long as they wait, and which argument it is.
const MASKS: [(u64, usize); 3] = [(22, 4), (72, 5), (73, 3)];

/// What the noise may touch.
pub struct Ground<'a> {
    /// Where arguments lie and results go: always mapped.
    pub scratch: &'a Region,
    /// Where mappings come and go, and nobody but the kernel and guests reads.
    pub play: u64,
    /// Bytes of it.
    pub play_bytes: u64,
}

/// A mapping where anything may happen: noise unmaps it, guests write to it. It is never given back, and lies
/// far from where kernels put what programs ask for: a hole in it stays one, whatever the program allocates.
pub fn playground(bytes: usize) -> std::result::Result<u64, i32> {
    const FIRST: usize = 0x1000_0000_0000;
    const APART: usize = 1 << 36;
    static NEXT: AtomicUsize = AtomicUsize::new(FIRST);
    let wish = ptr::without_provenance_mut(NEXT.fetch_add(APART, Ordering::Relaxed));
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at no address that is in use (the wish is no MAP_FIXED) touches nothing that exists.
    let start = unsafe { libc::mmap(wish, bytes, rights, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        answer(-1)?;
    }
    Ok(start as u64)
}

impl Ground<'_> {
    /// Whether `word` cannot be the address of what the process needs.
    fn is_harmless(&self, word: u64) -> bool {
        let scratch = self.scratch.address(0);
        // No call writes more than this behind an address.
        let scratch = scratch..scratch + (self.scratch.bytes() - (64 << 10)) as u64;
        !(LOWEST_MAPPED..ABOVE_MAPPED).contains(&word)
            || scratch.contains(&word)
            || (self.play..self.play + self.play_bytes).contains(&word)
    }

    /// Whether the call may be made: no argument can be the address of memory that is needed, and what
    /// changes mappings stays on the playground.
    pub fn allows(&self, number: u64, args: &[u64; 6]) -> bool {
        let [at, bytes, _, flags, to, _] = *args;
        let end = self.play + self.play_bytes;
        let plays = |at: u64, bytes: u64| {
            let inside = at.checked_add(bytes).is_some_and(|last| last <= end);
            at >= self.play && inside
        };
        let fixed = libc::MAP_FIXED as u64;
        let mapping = match number {
            MMAP => plays(at, bytes) || (flags & fixed == 0 && at == 0),
            BRK => false,
            MREMAP => {
                plays(at, bytes) && plays(at, args[2]) && (flags & 2 == 0 || plays(to, args[2]))
            }
            n if CHANGES.contains(&n) => plays(at, bytes) || !at.is_multiple_of(PAGE as u64),
            _ => true,
        };
        let unmasked = MASKS
            .iter()
            .all(|(n, mask)| *n != number || !(LOWEST_MAPPED..ABOVE_MAPPED).contains(&args[*mask]));
        mapping
            && unmasked
            && !NEVER.contains(&number)
            // The number of an ioctl is a number, and so are lengths of mappings, which were looked at.
            && (0..).zip(args).all(|(n, word)| {
                let length = (n == 1 && (number == MMAP || CHANGES.contains(&number)))
                    || (number, n) == (MREMAP, 2);
                self.is_harmless(*word) || (number, n) == (IOCTL, 1) || length
            })
    }

    /// Makes system call `number`. `Err` is the error number.
    ///
    /// What structures in the scratch memory name must be harmless in the same way; that cannot be
    /// checked here.
    ///
    /// # Panics
    /// If the call is not allowed ([`Ground::allows`]).
    pub fn call(&self, number: u64, args: [u64; 6]) -> std::result::Result<u64, i32> {
        assert!(self.allows(number, &args), "{number} {args:x?}");
        let [a, b, c, d, e, f] = args;
        // SAFETY: the kernel finds what it writes in the scratch memory, whose content is anybody's, on
        // the playground, or nowhere; what it unmaps or maps anew is on the playground.
        let value = unsafe { libc::syscall(number as libc::c_long, a, b, c, d, e, f) };
        if value == -1 {
            answer(-1)?;
        }
        Ok(value as u64)
    }
}
