//! The virtio disk (Virtual I/O Device 1.2, 5.2): a raw file, or a block device of the host, in sectors
//! of 512 bytes.
//!
//! A request is served before the next is looked at, on the event loop's thread. Its last
//! writable byte is its status; whatever goes wrong with the data, the status says so.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, FileTypeExt};

use virtio_queue::{Reader, Writer};

use super::{Chain, Device};
use crate::error::{Context, Error, Result};
use crate::options::Disk;

const KIND: u32 = 2;
const QUEUE_SIZES: &[u16] = &[128];
/// A request's data may lie in as many pieces as a queue has descriptors, less header and
/// status.
const SEG_MAX: u32 = 126;
const SECTOR: u64 = 512;

const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_FLUSH: u64 = 1 << 9;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;

const S_OK: u8 = 0;
const S_IOERR: u8 = 1;
const S_UNSUPP: u8 = 2;

const ID: &[u8; 20] = b"umbra-vmm-disk\0\0\0\0\0\0";
const CHUNK: usize = 64 << 10;

/// The device.
pub struct Block {
    file: File,
    sectors: u64,
    read_only: bool,
}

impl Block {
    /// Opens the file of a disk. Bytes after the last whole sector are not part of it.
    pub fn open(disk: &Disk) -> Result<Self> {
        let name = format!("disk {}", disk.path.display());
        let mut file = OpenOptions::new()
            .read(true)
            .write(!disk.read_only)
            .open(&disk.path)
            .context(&name)?;
        let metadata = file.metadata().context(&name)?;
        if !metadata.is_file() && !metadata.file_type().is_block_device() {
            return Err(Error::Failed(format!(
                "{name}: is neither a file nor a block device"
            )));
        }
        // A block device's metadata has no length.
        let bytes = file.seek(SeekFrom::End(0)).context(&name)?;
        Ok(Block {
            file,
            sectors: bytes / SECTOR,
            read_only: disk.read_only,
        })
    }

    /// Serves a request up to its status; returns the bytes written into guest memory too.
    fn request(&self, reader: &mut Reader<'_>, writer: &mut Writer<'_>) -> (u8, usize) {
        let mut header = [0; 16];
        if reader.read_exact(&mut header).is_err() {
            return (S_IOERR, 0);
        }
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let mut sector = [0; 8];
        sector.copy_from_slice(&header[8..]);
        let sector = u64::from_le_bytes(sector);

        let result = match kind {
            T_IN => self.read(sector, writer),
            T_OUT if self.read_only => Err(io::ErrorKind::PermissionDenied.into()),
            T_OUT => self.write(sector, reader),
            T_FLUSH => self.flush(),
            T_GET_ID => writer.write_all(ID),
            _ => return (S_UNSUPP, 0),
        };
        match result {
            Ok(()) => (S_OK, writer.bytes_written()),
            Err(e) => {
                log::debug!("disk request {kind} at sector {sector}: {e}");
                (S_IOERR, writer.bytes_written())
            }
        }
    }

    /// Where in the file `len` bytes from `sector` on are, if they are.
    fn locate(&self, sector: u64, len: usize) -> io::Result<u64> {
        let len = len as u64;
        let end = sector.checked_add(len.div_ceil(SECTOR));
        match end {
            Some(end) if len.is_multiple_of(SECTOR) && end <= self.sectors => Ok(sector * SECTOR),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn read(&self, sector: u64, writer: &mut Writer<'_>) -> io::Result<()> {
        let mut left = writer.available_bytes();
        let mut at = self.locate(sector, left)?;
        let mut buffer = vec![0; left.min(CHUNK)];
        while left > 0 {
            let part = left.min(CHUNK);
            self.file.read_exact_at(&mut buffer[..part], at)?;
            writer.write_all(&buffer[..part])?;
            at += part as u64;
            left -= part;
        }
        Ok(())
    }

    fn write(&self, sector: u64, reader: &mut Reader<'_>) -> io::Result<()> {
        let mut left = reader.available_bytes();
        let mut at = self.locate(sector, left)?;
        let mut buffer = vec![0; left.min(CHUNK)];
        while left > 0 {
            let part = left.min(CHUNK);
            reader.read_exact(&mut buffer[..part])?;
            self.file.write_all_at(&buffer[..part], at)?;
            at += part as u64;
            left -= part;
        }
        Ok(())
    }

    /// A host without lasting storage has nothing to flush, and says so.
    fn flush(&self) -> io::Result<()> {
        match self.file.sync_data() {
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL)) => Ok(()),
            other => other,
        }
    }
}

impl Device for Block {
    fn kind(&self) -> u32 {
        KIND
    }

    fn features(&self) -> u64 {
        F_SEG_MAX | F_FLUSH | if self.read_only { F_RO } else { 0 }
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    /// Capacity in sectors, largest segment (not offered), number of segments.
    fn config(&self) -> Vec<u8> {
        let mut config = self.sectors.to_le_bytes().to_vec();
        config.extend([0; 4]);
        config.extend(SEG_MAX.to_le_bytes());
        config.resize(60, 0);
        config
    }

    fn serve(&mut self, _: usize, chain: Chain<'_>) -> u32 {
        let reader = chain.descriptors.clone().reader(chain.memory);
        let writer = chain.descriptors.writer(chain.memory);
        let (mut reader, mut writer) = match (reader, writer) {
            (Ok(reader), Ok(writer)) => (reader, writer),
            (Err(e), _) | (_, Err(e)) => {
                log::warn!("disk: {e}");
                return 0;
            }
        };
        // Without a byte for the status there is nowhere to say anything.
        let data = writer.available_bytes().checked_sub(1);
        let Some(Ok(mut status_byte)) = data.map(|data| writer.split_at(data)) else {
            log::warn!("disk: a request has no status byte");
            return 0;
        };
        let (status, written) = self.request(&mut reader, &mut writer);
        if let Err(e) = status_byte.write_all(&[status]) {
            log::warn!("disk: {e}");
        }
        u32::try_from(written + 1).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::super::console::tests::{offer, start, used};
    use super::super::mmio::Transport;
    use super::*;
    use crate::bus::MmioDevice;
    use crate::console::tests::event;
    use crate::layout::Memory;
    use vm_memory::{Bytes, GuestAddress};
    use vmm_sys_util::tempfile::TempFile;

    struct Rig {
        transport: Transport<Block>,
        memory: Memory,
        file: TempFile,
    }

    const HEADER: u64 = 0xa000;
    const DATA: u64 = 0xa200;
    const STATUS: u64 = 0xa100;

    /// A disk of two sectors, the first of ones and the second of twos, and a torn third.
    fn rig(read_only: bool) -> Rig {
        let file = TempFile::new().unwrap();
        let content = [vec![1; 512], vec![2; 512], vec![3; 100]].concat();
        file.as_file().write_all_at(&content, 0).unwrap();
        let path = file.as_path().into();
        let disk = Block::open(&Disk { path, read_only }).unwrap();
        let memory = Memory::from_ranges(&[(GuestAddress(0x1000), 0x10000)]).unwrap();
        let mut transport = Transport::new(disk, memory.clone(), event(), vec![event()]).unwrap();
        start(&mut transport, 1);
        Rig {
            transport,
            memory,
            file,
        }
    }

    impl Rig {
        /// Sends a request with `len` bytes of data; returns status and used length.
        fn request(&mut self, kind: u32, sector: u64, len: u32, to_guest: bool) -> (u8, u32) {
            let m = &self.memory;
            m.write_obj(kind, GuestAddress(HEADER)).unwrap();
            m.write_obj(sector, GuestAddress(HEADER + 8)).unwrap();
            m.write_obj(0xeeu8, GuestAddress(STATUS)).unwrap();
            let mut chain = vec![
                (HEADER, 16, false),
                (DATA, len, to_guest),
                (STATUS, 1, true),
            ];
            chain.retain(|(_, len, _)| *len != 0);
            offer(m, 0, &chain);
            self.transport.write(0x50, &[0; 4]);
            let status = m.read_obj(GuestAddress(STATUS)).unwrap();
            (status, used(m, 0).1)
        }

        fn data(&self) -> [u8; 512] {
            let mut data = [0; 512];
            self.memory
                .read_slice(&mut data, GuestAddress(DATA))
                .unwrap();
            data
        }
    }

    #[test]
    fn reads_and_writes_sectors() {
        let mut rig = rig(false);
        assert_eq!(rig.request(T_IN, 1, 512, true), (S_OK, 513));
        assert_eq!(rig.data(), [2; 512]);
        rig.memory
            .write_slice(&[9; 512], GuestAddress(DATA))
            .unwrap();
        assert_eq!(rig.request(T_OUT, 0, 512, false), (S_OK, 1));
        let mut file = [0; 1024];
        rig.file.as_file().read_exact_at(&mut file, 0).unwrap();
        assert_eq!((file[0], file[511], file[512]), (9, 9, 2));
        assert_eq!(rig.request(T_FLUSH, 0, 0, false), (S_OK, 1));
        assert_eq!(rig.request(T_GET_ID, 0, 20, true), (S_OK, 21));
        assert_eq!(&rig.data()[..14], b"umbra-vmm-disk");
    }

    #[test]
    fn nothing_beyond_the_end() {
        let mut rig = rig(false);
        for (kind, sector, len) in [
            (T_IN, 2, 512),
            (T_IN, 1, 1024),
            (T_IN, u64::MAX, 512),
            (T_IN, u64::MAX / 512, 512),
            (T_IN, 0, 100),
            (T_OUT, 2, 512),
            (T_OUT, 0, 511),
        ] {
            let (status, _) = rig.request(kind, sector, len, kind == T_IN);
            assert_eq!(status, S_IOERR, "{kind} {sector} {len}");
        }
        assert_eq!(rig.request(77, 0, 512, true).0, S_UNSUPP);
        assert_eq!(rig.file.as_file().metadata().unwrap().len(), 1124);
    }

    #[test]
    fn read_only_is_said_and_meant() {
        let mut rig = rig(true);
        assert_eq!(rig.request(T_OUT, 0, 512, false).0, S_IOERR);
        assert_eq!(rig.request(T_IN, 0, 512, true).0, S_OK);
        let mut features = [0; 4];
        rig.transport.read(0x10, &mut features);
        assert_eq!(u32::from_le_bytes(features) & 0x20, 0x20);
    }

    #[test]
    fn a_request_without_status_is_dropped() {
        let mut rig = rig(false);
        offer(&rig.memory, 0, &[(HEADER, 16, false)]);
        rig.transport.write(0x50, &[0; 4]);
        assert_eq!(used(&rig.memory, 0), (1, 0));
    }
}
