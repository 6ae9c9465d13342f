//! Tables and registers a guest hypervisor owns.
#![no_std]
#![forbid(unsafe_code)]
