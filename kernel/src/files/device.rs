//! /dev/null, /dev/zero and /dev/full.

use umbra_linux::{Errno, Stop};

use crate::file::{Call, File};

/// Takes everything, gives nothing.
pub(crate) struct Null;

impl File for Null {
    fn read(&self, _call: &Call<'_>, _buf: &mut [u8]) -> Result<usize, Stop> {
        Ok(0)
    }

    fn write(&self, _call: &Call<'_>, bytes: &[u8]) -> Result<usize, Stop> {
        Ok(bytes.len())
    }
}

/// Takes everything, gives zeros.
pub(crate) struct Zero;

impl File for Zero {
    fn read(&self, _call: &Call<'_>, buf: &mut [u8]) -> Result<usize, Stop> {
        buf.fill(0);
        Ok(buf.len())
    }

    fn write(&self, _call: &Call<'_>, bytes: &[u8]) -> Result<usize, Stop> {
        Ok(bytes.len())
    }
}

/// Gives zeros, is always full.
pub(crate) struct Full;

impl File for Full {
    fn read(&self, _call: &Call<'_>, buf: &mut [u8]) -> Result<usize, Stop> {
        buf.fill(0);
        Ok(buf.len())
    }

    fn write(&self, _call: &Call<'_>, _bytes: &[u8]) -> Result<usize, Stop> {
        Err(Errno::ENOSPC.into())
    }
}
