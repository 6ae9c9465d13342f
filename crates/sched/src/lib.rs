//! Threads, run queues, deadlines.
#![no_std]
#![forbid(unsafe_code)]
