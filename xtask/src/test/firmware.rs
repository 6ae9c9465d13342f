//! Firmware's error tables for a machine that has no firmware: a file that QEMU's loader puts into its
//! memory, and the word that tells umbra where (`umbra.hest`).
//!
//! ```text
//!   0x000 HEST: 0 SEA · 1 polled · a switched-off one, an AER port, one notified otherwise, one elsewhere
//!   0x400 status addresses   0x440 acknowledgements   0x800 block of source 0   0xc00 block of source 1
//! ```
//!
//! Written by hand from ACPI 6.5, 18.3.2, so that it is not the kernel's own reading that is tested.

use crate::workspace::Workspace;
use anyhow::{Context, Result};
use std::fs;

/// In the last 2 MiB of the machine's memory, where nobody else is at the start.
const AT: u64 = 0x1_3fe0_0000;
const BYTES: usize = 0x1000;
const STATUS_ADDRESSES: usize = 0x400;
const ACKNOWLEDGEMENTS: usize = 0x440;
const BLOCKS: usize = 0x800;
const BLOCK_BYTES: usize = 0x400;

const POLLED: u8 = 0;
const SEA: u8 = 8;
const SDEI: u8 = 11;
/// Milliseconds.
const INTERVAL: u32 = 20;

/// The word for umbra's command line.
pub(super) fn word() -> String {
    format!("umbra.hest={AT:#x}")
}

/// The words for QEMU.
pub(super) fn loader(ws: &Workspace) -> Result<[String; 2]> {
    let path = ws.folder("image")?.join("firmware.hest");
    fs::write(&path, tables()).with_context(|| format!("cannot write {}", path.display()))?;
    let file = path.display().to_string().replace(',', ",,");
    let device = format!("loader,file={file},addr={AT:#x},force-raw=on");
    Ok(["-device".to_owned(), device])
}

/// A generic source, version 2.
fn source(id: u16, notification: u8) -> Vec<u8> {
    let register = |offset: usize| {
        let mut gas = vec![0, 64, 0, 4];
        gas.extend((AT + (offset + 8 * usize::from(id)) as u64).to_le_bytes());
        gas
    };
    let mut source = Vec::new();
    source.extend(10u16.to_le_bytes());
    source.extend(id.to_le_bytes());
    // No other source, no flags, enabled, one record of one section.
    source.extend([0xff, 0xff, 0, 1]);
    source.extend(1u32.to_le_bytes());
    source.extend(1u32.to_le_bytes());
    source.extend((BLOCK_BYTES as u32).to_le_bytes());
    source.extend(register(STATUS_ADDRESSES));
    source.extend([notification, 28, 0, 0]);
    source.extend(INTERVAL.to_le_bytes());
    source.extend([0; 20]);
    source.extend((BLOCK_BYTES as u32).to_le_bytes());
    source.extend(register(ACKNOWLEDGEMENTS));
    source.extend((!1u64).to_le_bytes());
    source.extend(1u64.to_le_bytes());
    assert_eq!(source.len(), 92);
    source
}

fn tables() -> Vec<u8> {
    let mut off = source(2, SEA);
    off[7] = 0;
    let mut port = vec![0; 48];
    port[0] = 6;
    // Its status address names a device.
    let elsewhere = source(4, SEA);
    let sources = [
        source(0, SEA),
        port,
        source(1, POLLED),
        off,
        source(3, SDEI),
        elsewhere,
    ];
    let mut hest = b"HEST".to_vec();
    hest.resize(36, 0);
    hest[8] = 2;
    hest.extend((sources.len() as u32).to_le_bytes());
    hest.extend(sources.concat());
    let length = hest.len() as u32;
    hest[4..8].copy_from_slice(&length.to_le_bytes());
    let sum = hest.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    hest[9] = sum.wrapping_neg();
    assert!(hest.len() <= STATUS_ADDRESSES);
    let mut all = hest;
    all.resize(BYTES, 0);
    let mut put = |at: usize, value: u64| all[at..at + 8].copy_from_slice(&value.to_le_bytes());
    for id in 0..4 {
        let block = AT + (BLOCKS + id % 2 * BLOCK_BYTES) as u64;
        put(STATUS_ADDRESSES + 8 * id, block);
        put(ACKNOWLEDGEMENTS + 8 * id, 1);
    }
    put(STATUS_ADDRESSES + 8 * 4, 0x0900_0000);
    all
}
