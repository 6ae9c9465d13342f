//! What an abort was, and what to do about it.
#![no_std]
#![forbid(unsafe_code)]
