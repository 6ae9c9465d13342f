//! Loading a program: a fresh address space with its segments, those of its dynamic linker, stack and start
//! values.
//!
//! Everything that can fail happens before anything of the old program is touched; [`Program`] is
//! then put in place by whoever asked (`start` for the first program, [`execute`] for the others).

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use umbra_arm64::Hva;
use umbra_hw::fp::FpState;
use umbra_hw::user::UserFrame;
use umbra_linux::elf::{ExecError, Image, LoadPlan, Segment};
use umbra_linux::fs::{Access, InodeId};
use umbra_linux::signal::MIN_SIGNAL_STACK;
use umbra_linux::stack::{self, Start};
use umbra_linux::vma::{Backing, PAGE, Placement, Prot, Request, Traits};
use umbra_linux::{Errno, signal::AltStack};

use super::process::Seat;
use super::{Process, UserThread, features};
use crate::file::Call;
use crate::files::{random, tree};
use crate::mm::{FilePages, Mm, Object};
use crate::sched::Task;

/// Where a position-independent program goes.
const PIE_BASE: u64 = 0x5555_0000_0000;
/// Where a dynamic linker goes.
const LINKER_BASE: u64 = 0x5000_0000_0000;
/// One above the stack.
const STACK_TOP: u64 = 0x7fff_ffff_0000;
/// Bytes of the stack area at first; it grows.
const STACK_BYTES: u64 = 128 << 10;
/// `#!` lines that may follow each other.
const MAX_SCRIPTS: usize = 4;

/// `mov x8, #139; svc #0`: rt_sigreturn, for handlers that bring no restorer.
const TRAMPOLINE: [u8; 8] = [0x68, 0x11, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4];

/// A program in memory, ready to run.
pub(crate) struct Program {
    pub(super) mm: Arc<Mm>,
    pub(super) exe: Vec<u8>,
    pub(super) frame: UserFrame,
    pub(super) trampoline: u64,
    pub(super) name: [u8; 16],
}

/// The first fifteen bytes of a path's last name: the name of a thread.
fn thread_name(path: &[u8]) -> [u8; 16] {
    let last = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    let mut name = [0; 16];
    for (to, from) in name.iter_mut().take(15).zip(last) {
        *to = *from;
    }
    name
}

/// A script's interpreter and the one argument for it.
type Interpreter = (Vec<u8>, Option<Vec<u8>>);

/// The interpreter that the file's `#!` line names, if it is a script.
fn script(id: InodeId) -> Result<Option<Interpreter>, Errno> {
    let mut head = [0u8; 256];
    let count = tree::read_at(id, 0, &mut head)?;
    let Some(line) = head[..count].strip_prefix(b"#!") else {
        return Ok(None);
    };
    let end = line.iter().position(|&byte| byte == b'\n');
    let line = line[..end.ok_or(Errno::ENOEXEC)?].trim_ascii();
    let (path, argument) = match line.iter().position(|byte| matches!(byte, b' ' | b'\t')) {
        Some(at) => (&line[..at], Some(line[at..].trim_ascii().to_vec())),
        None => (line, None),
    };
    if path.is_empty() {
        return Err(Errno::ENOEXEC);
    }
    Ok(Some((path.to_vec(), argument)))
}

/// A file that is an executable.
struct Elf {
    id: InodeId,
    pages: Arc<tree::Pages>,
    image: Image,
}

/// What execve answers for a file that is none; the log says why.
fn refused(exe: &[u8], error: ExecError) -> Errno {
    if error != ExecError::NotElf {
        log::warn!("{}: {error}", tree::Shown(exe));
    }
    error.errno()
}

impl Elf {
    fn open(id: InodeId, pages: Arc<tree::Pages>, exe: &[u8]) -> Result<Self, Errno> {
        let length = tree::with(|fs| fs.len(id))?;
        let image = Image::read(length, |offset, buffer| read_all(id, offset, buffer))
            .map_err(|error| refused(exe, error))?;
        Ok(Self { id, pages, image })
    }

    fn plan(&self, base: u64, exe: &[u8]) -> Result<LoadPlan, Errno> {
        self.image
            .plan(Hva::new(base))
            .map_err(|error| refused(exe, error))
    }

    /// The dynamic linker that it names, if it names one. That one's own is not asked for, as on Linux.
    fn linker(
        &self,
        find: impl Fn(&[u8]) -> Result<(InodeId, Vec<u8>), Errno>,
    ) -> Result<Option<Self>, Errno> {
        let Some(part) = self.image.interpreter() else {
            return Ok(None);
        };
        let mut path = alloc::vec![0; part.len as usize];
        read_all(self.id, part.offset, &mut path)?;
        if path.pop() != Some(0) || path.contains(&0) {
            return Err(Errno::ENOEXEC);
        }
        let (id, exe) = find(&path).inspect_err(|errno| {
            log::warn!("dynamic linker {}: {errno}", tree::Shown(&path));
        })?;
        let pages = tree::Pages::new(id)?;
        tree::with(|fs| fs.check_access(id, Access::EXEC))?;
        Self::open(id, pages, &exe).map(Some)
    }
}

fn read_all(id: InodeId, offset: u64, buffer: &mut [u8]) -> Result<(), Errno> {
    if tree::read_at(id, offset, buffer)? == buffer.len() {
        Ok(())
    } else {
        Err(Errno::EIO)
    }
}

/// A list of as many as there are. `ENOMEM`.
fn fallible<T>(items: impl Iterator<Item = T>) -> Result<Vec<T>, Errno> {
    let mut list = Vec::new();
    for item in items {
        list.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        list.push(item);
    }
    Ok(list)
}

impl Program {
    /// Loads the program at `path`, which is looked up by `find`. On success the new address space
    /// is this CPU's; on failure the caller restores its own.
    pub(crate) fn load(
        path: &[u8],
        mut args: Vec<Vec<u8>>,
        env: &[Vec<u8>],
        find: impl Fn(&[u8]) -> Result<(InodeId, Vec<u8>), Errno>,
    ) -> Result<Self, Errno> {
        let mut path = path.to_vec();
        let named = path.clone();
        for _ in 0..MAX_SCRIPTS {
            let (id, exe) = find(&path)?;
            let pages = tree::Pages::new(id)?;
            tree::with(|fs| fs.check_access(id, Access::EXEC))?;
            let Some((interpreter, argument)) = script(id)? else {
                let program = Elf::open(id, pages, &exe)?;
                let linker = program.linker(&find)?;
                return Self::load_elf(&program, linker.as_ref(), exe, &named, &args, env);
            };
            let rest = args.get_mut(1..).unwrap_or_default().iter_mut();
            args = fallible(
                core::iter::once(interpreter.clone())
                    .chain(argument)
                    .chain(core::iter::once(path))
                    .chain(rest.map(core::mem::take)),
            )?;
            path = interpreter;
        }
        Err(Errno::ELOOP)
    }

    fn load_elf(
        program: &Elf,
        linker: Option<&Elf>,
        exe: Vec<u8>,
        path: &[u8],
        args: &[Vec<u8>],
        env: &[Vec<u8>],
    ) -> Result<Self, Errno> {
        let image = program.plan(PIE_BASE, &exe)?;
        let linker = match linker {
            Some(elf) => Some((elf, elf.plan(LINKER_BASE, &exe)?)),
            None => None,
        };
        let mm = Mm::new().ok_or(Errno::ENOMEM)?;
        mm.load();
        for segment in &image.segments {
            map_segment(&mm, segment, &program.pages)?;
        }
        if let Some((elf, plan)) = &linker {
            for segment in &plan.segments {
                map_segment(&mm, segment, &elf.pages)?;
            }
        }
        mm.set_brk_start(image.brk);
        let stack_prot = if image.exec_stack {
            Prot::RW | Prot::EXEC
        } else {
            Prot::RW
        };
        mm.map(Request {
            place: Placement::Replace(Hva::new(STACK_TOP - STACK_BYTES)),
            len: STACK_BYTES,
            prot: stack_prot,
            backing: Backing::Anon,
            traits: Traits {
                grows_down: true,
                ..Traits::default()
            },
        })?;
        let mut random_bytes = [0; 16];
        random::fill(&mut random_bytes);
        let args = fallible(args.iter().map(Vec::as_slice))?;
        let env = fallible(env.iter().map(Vec::as_slice))?;
        let start = stack::build(
            &Start {
                args: &args,
                env: &env,
                path,
                plan: &image,
                linker: linker.as_ref().map_or(0, |(_, plan)| plan.bias),
                hwcap: features::hwcap(),
                hwcap2: 0,
                min_signal_stack: MIN_SIGNAL_STACK,
                random: random_bytes,
            },
            Hva::new(STACK_TOP),
        )?;
        write_fresh(&mm, start.sp, &start.bytes)?;
        let trampoline = map_trampoline(&mm)?;
        let entry = linker.as_ref().map_or(image.entry, |(_, plan)| plan.entry);
        Ok(Self {
            mm,
            name: thread_name(path),
            exe,
            frame: UserFrame::new(entry.raw(), start.sp.raw()),
            trampoline,
        })
    }
}

fn map_segment(mm: &Mm, segment: &Segment, pages: &Arc<tree::Pages>) -> Result<(), Errno> {
    if let Some(part) = segment.file {
        // A tail that has to be cleared is written before the rights are the segment's.
        let writable_first = segment.zero.is_some() && !segment.prot.contains(Prot::WRITE);
        let file: Arc<dyn FilePages> = pages.clone();
        mm.map(Request {
            place: Placement::Replace(part.addr),
            len: part.len,
            prot: if writable_first {
                Prot::RW
            } else {
                segment.prot
            },
            backing: Backing::Private {
                object: Object::File(file),
                offset: part.offset,
            },
            traits: Traits::default(),
        })?;
        if let Some((at, bytes)) = segment.zero {
            write_fresh(
                mm,
                at,
                &[0; PAGE as usize][..(bytes as usize).min(PAGE as usize)],
            )?;
        }
        if writable_first {
            mm.protect(part.addr, part.len, segment.prot)?;
        }
    }
    if let Some((at, bytes)) = segment.anon {
        mm.map(Request {
            place: Placement::Replace(at),
            len: bytes,
            prot: segment.prot,
            backing: Backing::Anon,
            traits: Traits::default(),
        })?;
    }
    Ok(())
}

/// Writes where the program may write for sure: what can fail is that there is no memory for the page.
fn write_fresh(mm: &Mm, at: Hva, bytes: &[u8]) -> Result<(), Errno> {
    mm.write_bytes(at, bytes).map_err(|_| Errno::ENOMEM)
}

fn map_trampoline(mm: &Mm) -> Result<u64, Errno> {
    let span = mm.map(Request {
        place: Placement::Hint(Hva::new(0)),
        len: PAGE,
        prot: Prot::RW,
        backing: Backing::Anon,
        traits: Traits::default(),
    })?;
    write_fresh(mm, span.start(), &TRAMPOLINE)?;
    mm.protect(span.start(), PAGE, Prot::READ | Prot::EXEC)?;
    Ok(span.start().raw())
}

/// execve, with the path and strings already read. Other threads of the process end first.
pub(crate) fn execute(
    call: &Call<'_>,
    frame: &mut UserFrame,
    fp: &mut FpState,
    path: &[u8],
    args: Vec<Vec<u8>>,
    env: &[Vec<u8>],
    find: impl Fn(&[u8]) -> Result<(InodeId, Vec<u8>), Errno>,
) -> Result<(), Errno> {
    let program = match Program::load(path, args, env, find) {
        Ok(program) => program,
        Err(errno) => {
            Seat(call.process.clone()).load_address_space();
            return Err(errno);
        }
    };
    // The others need the old address space until they are gone.
    call.process.mm().load();
    super::exit::leave_alone(call)?;
    take_place(call.process, call.thread, program, frame, fp);
    Ok(())
}

/// Puts a loaded program in the place of what the process was.
fn take_place(
    process: &Arc<Process>,
    thread: &Arc<UserThread>,
    program: Program,
    frame: &mut UserFrame,
    fp: &mut FpState,
) {
    program.mm.load();
    let old = process.mm.lock().replace(program.mm);
    drop(old);
    process.open_gate();
    // With CLONE_FILES the others keep the table as it is.
    let own = process.files().lock().clone();
    let own = Arc::new(super::process::Files::new("descriptors", 50, own));
    let swept = own.lock().sweep_cloexec();
    let old = core::mem::replace(&mut *process.files.lock(), own);
    drop((swept, old));
    let _ = process.with_paths(|paths| paths.exe = program.exe);
    process.signals.lock().actions.reset_for_exec();
    thread.signals.lock().alt_stack = AltStack::NONE;
    thread.clear_tid.store(0, Ordering::Relaxed);
    *thread.name.lock() = program.name;
    process
        .trampoline
        .store(program.trampoline, Ordering::Relaxed);
    *frame = program.frame;
    *fp = FpState::default();
}
