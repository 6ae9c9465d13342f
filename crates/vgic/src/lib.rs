//! A virtual GICv3.
#![no_std]
#![forbid(unsafe_code)]
