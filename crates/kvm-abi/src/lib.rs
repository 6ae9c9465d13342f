//! The KVM ABI as types.
#![no_std]
#![forbid(unsafe_code)]
