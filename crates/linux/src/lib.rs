//! What a Linux process is made of.
#![no_std]
#![forbid(unsafe_code)]
