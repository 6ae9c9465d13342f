//! The frame table.
#![no_std]
#![forbid(unsafe_code)]
