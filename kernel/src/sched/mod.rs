//! Threads on CPUs.
//!
//! The kernel is not preempted: a thread gives its CPU up by [`park`] or, on the way back to EL0 or
//! a guest, in [`preempt_point`]. There is no tick; the timer is set for the earliest deadline, and
//! for the end of a slice only while another thread waits for this CPU.

mod cpu;
mod mutex;
mod thread;
mod timer;
mod wait;

pub(crate) use cpu::{
    asked, bring_up, cpus, current, idle, kick, park, preempt_due, preempt_point, request_resched,
    set_affinity, start, yield_now,
};
pub(crate) use mutex::Mutex;
pub(crate) use thread::{Task, Thread, spawn};
pub(crate) use timer::{Alarm, Due, alarm, cancel, expire, now};
pub(crate) use wait::{WaitQueue, Waited};
