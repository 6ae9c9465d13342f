//! Processes as a family: who is whose child, who has ended, who may collect the remains.
//!
//! ```text
//!   add ──► Running ──exit──► Zombie ──wait──► gone
//!                       └───────────────────► gone   (the parent ignores SIGCHLD)
//! ```
//!
//! What always holds: every process but the first has a living parent; the children of one that ends
//! go to the first process.

use crate::Errno;
use crate::signal::Signal;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// A process, by number. Positive, and below [`PID_MAX`].
pub type Pid = i32;

/// One more than the largest number.
pub const PID_MAX: Pid = 32768;

/// How a process ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// By exit or exit_group, with this code.
    Exited(u8),
    /// By a signal.
    Killed {
        /// Which one.
        signal: Signal,
        /// The signal's default action would write a core image.
        core: bool,
    },
}

impl Ending {
    /// The status word of wait4 (`WIFEXITED` and so on of wait(2)). The core bit says that a core
    /// *was* written; umbra writes none, so it stays clear.
    pub const fn status(self) -> i32 {
        match self {
            Self::Exited(code) => (code as i32) << 8,
            Self::Killed { signal, .. } => signal.number() as i32,
        }
    }
}

/// Which children a wait is for: the first argument of wait4.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Which {
    /// Any child.
    Any,
    /// The child of this number.
    Child(Pid),
    /// Any child in this process group.
    Group(Pid),
}

impl Which {
    /// Reads wait4's first argument for a caller in `own_group`. `ESRCH` for the one number that has
    /// no negation, as in Linux.
    pub fn from_wait4(pid: i32, own_group: Pid) -> Result<Self, Errno> {
        match pid {
            -1 => Ok(Self::Any),
            0 => Ok(Self::Group(own_group)),
            pid if pid > 0 => Ok(Self::Child(pid)),
            pid => Ok(Self::Group(pid.checked_neg().ok_or(Errno::ESRCH)?)),
        }
    }
}

/// WNOHANG: do not wait.
pub const WNOHANG: u32 = 1;
/// WUNTRACED, WCONTINUED, __WNOTHREAD, __WALL, __WCLONE: accepted; children do not stop here, and
/// every child is in reach.
const WAIT_OTHER: u32 = 2 | 8 | 0x2000_0000 | 0x4000_0000 | 0x8000_0000;

/// Checks wait4's options and says whether the call may wait. `EINVAL` for unknown bits.
pub fn may_wait(options: u32) -> Result<bool, Errno> {
    if options & !(WNOHANG | WAIT_OTHER) != 0 {
        return Err(Errno::EINVAL);
    }
    Ok(options & WNOHANG == 0)
}

/// What a wait found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// This child had ended, and is now forgotten.
    Reaped(Pid, Ending),
    /// There are such children, but none has ended.
    NoneYet,
}

/// What the end of a process asks of the caller.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[must_use = "the parent sleeps until it is told"]
pub struct Farewell {
    /// Who is to be sent SIGCHLD (if asked for at clone) and woken from a wait.
    pub notify: Vec<Pid>,
}

#[derive(Debug)]
struct Process {
    parent: Pid,
    group: Pid,
    ended: Option<Ending>,
}

/// All processes of the machine, the zombies included.
#[derive(Debug, Default)]
pub struct Family {
    processes: BTreeMap<Pid, Process>,
    /// The last number given, so that numbers are reused as late as possible.
    last: Pid,
}

/// The number of the first process, which inherits orphans.
pub const INIT: Pid = 1;

impl Family {
    /// No processes.
    pub const fn new() -> Self {
        Self {
            processes: BTreeMap::new(),
            last: 0,
        }
    }

    /// A new child of `parent`, in its group; the first call makes [`INIT`] and ignores `parent`.
    /// `ESRCH` if the parent is gone, `EAGAIN` if there is no free number. `taken` says which numbers
    /// are in use by threads.
    pub fn add(&mut self, parent: Pid, taken: impl Fn(Pid) -> bool) -> Result<Pid, Errno> {
        let group = if self.processes.is_empty() {
            INIT
        } else {
            let parent = self.processes.get(&parent).filter(|p| p.ended.is_none());
            parent.ok_or(Errno::ESRCH)?.group
        };
        let pid = self.number(taken)?;
        self.processes.insert(
            pid,
            Process {
                parent,
                group,
                ended: None,
            },
        );
        Ok(pid)
    }

    /// A free number for a process or a thread, which share one space. `EAGAIN` if there is none.
    pub fn number(&mut self, taken: impl Fn(Pid) -> bool) -> Result<Pid, Errno> {
        let last = self.last;
        let pid = (last + 1..PID_MAX)
            .chain(INIT + 1..=last)
            .find(|&pid| !self.processes.contains_key(&pid) && !taken(pid))
            .ok_or(Errno::EAGAIN)?;
        self.last = pid;
        Ok(pid)
    }

    /// The living or ended process `pid`'s parent; 0 for the first process.
    pub fn parent(&self, pid: Pid) -> Option<Pid> {
        let process = self.processes.get(&pid)?;
        Some(if pid == INIT { 0 } else { process.parent })
    }

    /// The process group of `pid`.
    pub fn group(&self, pid: Pid) -> Option<Pid> {
        Some(self.processes.get(&pid)?.group)
    }

    /// setpgid: `caller` puts `pid`, itself or its child, into `group`, its own number or an existing
    /// group. `ESRCH` if it is neither, `EPERM` if there is no such group.
    pub fn set_group(&mut self, caller: Pid, pid: Pid, group: Pid) -> Result<(), Errno> {
        let pid = if pid == 0 { caller } else { pid };
        let group = if group == 0 { pid } else { group };
        if group < 0 {
            return Err(Errno::EINVAL);
        }
        let exists = self.processes.values().any(|p| p.group == group);
        let process = self
            .processes
            .get_mut(&pid)
            .filter(|p| pid == caller || p.parent == caller);
        let process = process.ok_or(Errno::ESRCH)?;
        if group != pid && !exists {
            return Err(Errno::EPERM);
        }
        process.group = group;
        Ok(())
    }

    /// The living processes of `group`.
    pub fn members(&self, group: Pid) -> impl Iterator<Item = Pid> {
        self.processes
            .iter()
            .filter(move |(_, p)| p.group == group && p.ended.is_none())
            .map(|(pid, _)| *pid)
    }

    /// Whether `pid` exists and has not ended.
    pub fn is_alive(&self, pid: Pid) -> bool {
        self.processes.get(&pid).is_some_and(|p| p.ended.is_none())
    }

    /// `pid` has ended. `unwanted(parent)` says that the parent ignores its children (SIGCHLD ignored,
    /// or SA_NOCLDWAIT): the process is then forgotten at once. A second end is ignored.
    pub fn exit(&mut self, pid: Pid, ending: Ending, unwanted: impl Fn(Pid) -> bool) -> Farewell {
        let mut farewell = Farewell::default();
        let Some(process) = self.processes.get_mut(&pid).filter(|p| p.ended.is_none()) else {
            return farewell;
        };
        process.ended = Some(ending);
        let parent = process.parent;
        for (_, child) in self.processes.iter_mut().filter(|(_, p)| p.parent == pid) {
            child.parent = INIT;
            if child.ended.is_some() && pid != INIT && !farewell.notify.contains(&INIT) {
                farewell.notify.push(INIT);
            }
        }
        if unwanted(INIT) {
            self.processes
                .retain(|&other, p| other == INIT || p.parent != INIT || p.ended.is_none());
        }
        if pid == INIT {
            return farewell;
        }
        if unwanted(parent) {
            self.processes.remove(&pid);
        }
        // Told even if it ignores its children: a wait has to find out that none is left.
        if !farewell.notify.contains(&parent) {
            farewell.notify.push(parent);
        }
        farewell
    }

    /// wait4: collects an ended child. `ECHILD` if there is no child that could end.
    pub fn wait(&mut self, parent: Pid, which: Which) -> Result<Found, Errno> {
        let mut any = false;
        let mut found = None;
        for (&pid, process) in &self.processes {
            let wanted = match which {
                Which::Any => true,
                Which::Child(child) => child == pid,
                Which::Group(group) => group == process.group,
            };
            if pid != INIT && process.parent == parent && wanted {
                any = true;
                found = found.or(process.ended.map(|ending| (pid, ending)));
            }
        }
        match found {
            Some((pid, ending)) => {
                self.processes.remove(&pid);
                Ok(Found::Reaped(pid, ending))
            }
            None if any => Ok(Found::NoneYet),
            None => Err(Errno::ECHILD),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    fn no(_: Pid) -> bool {
        false
    }

    fn family(children: usize) -> Family {
        let mut f = Family::new();
        assert_eq!(f.add(0, no), Ok(INIT));
        for _ in 0..children {
            f.add(INIT, no).unwrap();
        }
        f
    }

    #[test]
    fn a_child_is_reaped_once() {
        let mut f = family(2);
        assert_eq!(f.wait(INIT, Which::Any), Ok(Found::NoneYet));
        assert_eq!(f.exit(2, Ending::Exited(7), no).notify, vec![INIT]);
        assert!(!f.is_alive(2));
        assert_eq!(f.wait(INIT, Which::Child(3)), Ok(Found::NoneYet));
        assert_eq!(
            f.wait(INIT, Which::Any),
            Ok(Found::Reaped(2, Ending::Exited(7)))
        );
        assert_eq!(f.wait(INIT, Which::Child(2)), Err(Errno::ECHILD));
        assert_eq!(f.wait(3, Which::Any), Err(Errno::ECHILD));
    }

    #[test]
    fn orphans_go_to_the_first_process_dead_ones_too() {
        let mut f = family(1);
        let (a, b) = (f.add(2, no).unwrap(), f.add(2, no).unwrap());
        assert_eq!(f.exit(a, Ending::Exited(1), no).notify, vec![2]);
        assert_eq!(f.exit(2, Ending::Exited(0), no).notify, vec![INIT]);
        assert_eq!(f.parent(b), Some(INIT));
        assert_eq!(
            f.wait(INIT, Which::Child(a)),
            Ok(Found::Reaped(a, Ending::Exited(1)))
        );
    }

    #[test]
    fn an_ignoring_parent_keeps_no_zombies_but_is_woken() {
        let mut f = family(1);
        assert_eq!(
            f.exit(2, Ending::Exited(0), |p| p == INIT).notify,
            vec![INIT]
        );
        assert_eq!(f.wait(INIT, Which::Any), Err(Errno::ECHILD));
    }

    #[test]
    fn groups_select() {
        let mut f = family(2);
        f.set_group(INIT, 3, 0).unwrap();
        assert_eq!(f.set_group(INIT, 2, 77), Err(Errno::EPERM));
        assert_eq!(f.set_group(2, 3, 0), Err(Errno::ESRCH));
        let _ = f.exit(2, Ending::Exited(0), no);
        assert_eq!(f.wait(INIT, Which::Group(3)), Ok(Found::NoneYet));
        assert_eq!(f.members(INIT).collect::<Vec<_>>(), vec![INIT]);
        assert!(matches!(
            f.wait(INIT, Which::Group(INIT)),
            Ok(Found::Reaped(2, _))
        ));
        assert_eq!(Which::from_wait4(0, 5), Ok(Which::Group(5)));
        assert_eq!(Which::from_wait4(-3, 5), Ok(Which::Group(3)));
        assert_eq!(Which::from_wait4(i32::MIN, 5), Err(Errno::ESRCH));
    }

    #[test]
    fn numbers_are_not_reused_early_and_run_out_cleanly() {
        let mut f = family(1);
        let _ = f.exit(2, Ending::Exited(0), no);
        f.wait(INIT, Which::Any).unwrap();
        assert_eq!(f.add(INIT, no), Ok(3));
        f.last = PID_MAX - 1;
        assert_eq!(f.add(INIT, no), Ok(2));
        assert_eq!(f.add(INIT, |_| true), Err(Errno::EAGAIN));
        assert_eq!(f.add(99, no), Err(Errno::ESRCH));
    }

    #[test]
    fn status_words_are_those_of_wait() {
        assert_eq!(Ending::Exited(3).status(), 0x300);
        assert_eq!(
            Ending::Killed {
                signal: Signal::SEGV,
                core: true
            }
            .status(),
            11
        );
        assert_eq!(
            (may_wait(0), may_wait(WNOHANG), may_wait(0x40)),
            (Ok(true), Ok(false), Err(Errno::EINVAL))
        );
    }
}
