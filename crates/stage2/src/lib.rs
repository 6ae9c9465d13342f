//! Translation tables umbra owns.
#![no_std]
#![forbid(unsafe_code)]
