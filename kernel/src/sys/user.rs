//! Reading and writing the caller's memory as types.

use alloc::vec::Vec;

use umbra_arm64::Hva;
use umbra_linux::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::file::Call;

/// Reads a value. `EFAULT`.
pub(crate) fn read<T: FromBytes + IntoBytes>(call: &Call<'_>, from: u64) -> Result<T, Errno> {
    let mut value = T::new_zeroed();
    call.process
        .mm()
        .read_bytes(Hva::new(from), value.as_mut_bytes())?;
    Ok(value)
}

/// Reads a value, unless the pointer is null.
pub(crate) fn read_optional<T: FromBytes + IntoBytes>(
    call: &Call<'_>,
    from: u64,
) -> Result<Option<T>, Errno> {
    if from == 0 {
        return Ok(None);
    }
    read(call, from).map(Some)
}

/// Writes a value. `EFAULT`.
pub(crate) fn write<T: IntoBytes + Immutable + ?Sized>(
    call: &Call<'_>,
    to: u64,
    value: &T,
) -> Result<(), Errno> {
    call.process
        .mm()
        .write_bytes(Hva::new(to), value.as_bytes())
}

/// Writes a value, unless the pointer is null.
pub(crate) fn write_optional<T: IntoBytes + Immutable + ?Sized>(
    call: &Call<'_>,
    to: u64,
    value: &T,
) -> Result<(), Errno> {
    if to == 0 {
        return Ok(());
    }
    write(call, to, value)
}

/// Reads a path. `ENAMETOOLONG` where it is longer than any path may be.
pub(crate) fn path(call: &Call<'_>, from: u64) -> Result<Vec<u8>, Errno> {
    let limit = umbra_linux::fs::PATH_MAX - 1;
    match call.process.mm().read_string(Hva::new(from), limit) {
        Err(Errno::E2BIG) => Err(Errno::ENAMETOOLONG),
        other => other,
    }
}

/// A buffer of the kernel's for `bytes` bytes.
pub(crate) fn buffer(bytes: usize) -> Result<Vec<u8>, Errno> {
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(bytes).map_err(|_| Errno::ENOMEM)?;
    buffer.resize(bytes, 0);
    Ok(buffer)
}
