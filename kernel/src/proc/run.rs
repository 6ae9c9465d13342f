//! The loop that a thread of a process spends its life in.

use alloc::sync::Arc;

use umbra_arm64::Hva;
use umbra_hw::fp::FpState;
use umbra_hw::user::{self, UserExit, UserFrame};
use umbra_linux::Errno;
use umbra_trace::Event;

use super::signal::Interrupted;
use super::{UserThread, fault};
use crate::file::Call;
use crate::trace::{self, Who};
use crate::{irq, mem, sched, sys};

/// A system call's view of the thread that makes it.
pub(crate) struct Context<'a> {
    pub(crate) call: Call<'a>,
    pub(crate) frame: &'a mut UserFrame,
    pub(crate) fp: &'a mut FpState,
}

/// What the way back to EL0 has to know of the way in.
#[derive(Default)]
struct Left {
    interrupted: Option<Interrupted>,
    fault: Option<(Hva, u64)>,
}

/// Runs a thread until it ends.
pub(super) fn thread(thread: Arc<UserThread>, mut frame: UserFrame, mut fp: FpState) {
    let mut left = Left::default();
    loop {
        mem::top_up();
        let Left { interrupted, fault } = core::mem::take(&mut left);
        if !thread.deliver(&mut frame, &mut fp, interrupted, fault) {
            break;
        }
        if sched::preempt_point() {
            continue;
        }
        let me = &thread;
        trace::record(Who::PROCESS, move || Event::UserEnter {
            thread: me.tid as u64,
            pc: frame.pc,
        });
        let exit = user::run(&mut frame, &mut fp);
        trace::record(Who::PROCESS, move || Event::UserExit {
            thread: me.tid as u64,
            esr: match exit {
                UserExit::Irq => 0,
                UserExit::Sync { esr, .. } | UserExit::SError { esr } => esr,
            },
        });
        match exit {
            UserExit::Irq => irq::poll(),
            UserExit::Sync { esr, far } => {
                left = enter(&thread, &mut frame, &mut fp, esr, far);
            }
            UserExit::SError { esr } => {
                log::error!("SError {esr:#x} while process {} ran", thread.process.pid);
                thread.memory_error(Hva::new(frame.pc));
            }
        }
    }
    thread.leave();
}

/// EC of an SVC from AArch64.
const EC_SVC64: u64 = 0x15;

fn enter(
    thread: &Arc<UserThread>,
    frame: &mut UserFrame,
    fp: &mut FpState,
    esr: u64,
    far: u64,
) -> Left {
    if esr >> 26 != EC_SVC64 {
        return Left {
            interrupted: None,
            fault: fault::handle(thread, frame, esr, far),
        };
    }
    let x0 = frame.x[0];
    // The mark of an earlier call must not restart this one.
    thread.take_restartable();
    let mut context = Context {
        call: Call {
            process: &thread.process,
            thread,
        },
        frame,
        fp,
    };
    let restart = match sys::dispatch(&mut context) {
        sys::Done::Value(value) => {
            frame.x[0] = value;
            false
        }
        sys::Done::Failed(errno) => {
            frame.x[0] = errno.as_return_value();
            errno == Errno::EINTR && thread.take_restartable()
        }
        // The call replaced the registers.
        sys::Done::Elsewhere => false,
    };
    Left {
        interrupted: restart.then_some(Interrupted { x0 }),
        fault: None,
    }
}
