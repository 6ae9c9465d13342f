//! The guest's accesses outside RAM, given to the device that answers there.
//!
//! Windows never overlap. An access that no window holds whole reads as zero and writes
//! nothing: a guest may probe holes as it likes, and only the debug log hears of it.

use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Result};

/// A device behind one window. Offsets are relative to the window; `data` is 1 to 8 bytes,
/// little-endian, and lies inside the window.
pub trait MmioDevice: Send {
    /// The guest reads; `data` comes zeroed.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// The guest writes.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device that vCPU threads and the event loop share.
pub type Shared<T> = Arc<Mutex<T>>;

struct Window {
    base: u64,
    size: u64,
    device: Shared<dyn MmioDevice>,
}

/// All windows of a machine, ordered by address.
#[derive(Default)]
pub struct Bus {
    windows: Vec<Window>,
}

impl Bus {
    /// Adds a device at guest physical `base`. Fails when its window overlaps another.
    pub fn attach(&mut self, base: u64, size: u64, device: Shared<dyn MmioDevice>) -> Result<()> {
        let at = self.windows.partition_point(|w| w.base < base);
        let end = base.checked_add(size);
        let free_below = at == 0 || {
            let below = &self.windows[at - 1];
            below.base + below.size <= base
        };
        let free_above = end.is_some_and(|end| self.windows.get(at).is_none_or(|w| end <= w.base));
        if size == 0 || !free_below || !free_above {
            return Err(Error::Failed(format!(
                "device window {base:#x}+{size:#x} is not free"
            )));
        }
        self.windows.insert(at, Window { base, size, device });
        Ok(())
    }

    /// Answers a read of guest physical `addr`.
    pub fn read(&self, addr: u64, data: &mut [u8]) {
        data.fill(0);
        match self.find(addr, data.len()) {
            Some((window, offset)) => lock(&window.device).read(offset, data),
            None => log::debug!("read of {} bytes at {addr:#x}: nothing there", data.len()),
        }
    }

    /// Performs a write to guest physical `addr`.
    pub fn write(&self, addr: u64, data: &[u8]) {
        match self.find(addr, data.len()) {
            Some((window, offset)) => lock(&window.device).write(offset, data),
            None => log::debug!("write of {data:02x?} at {addr:#x}: nothing there"),
        }
    }

    fn find(&self, addr: u64, len: usize) -> Option<(&Window, u64)> {
        let at = self.windows.partition_point(|w| w.base <= addr);
        let window = &self.windows[at.checked_sub(1)?];
        let offset = addr - window.base;
        let end = offset.checked_add(len as u64)?;
        (end <= window.size).then_some((window, offset))
    }
}

/// Locks a device. One whose user panicked is still consistent enough to drain and stop.
pub fn lock<T: ?Sized>(device: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Probe {
        writes: Vec<(u64, Vec<u8>)>,
    }

    impl MmioDevice for Probe {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data[0] = offset as u8;
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            self.writes.push((offset, data.to_vec()));
        }
    }

    fn two() -> (Bus, Shared<Probe>) {
        let (a, b) = (Shared::<Probe>::default(), Shared::<Probe>::default());
        let mut bus = Bus::default();
        bus.attach(0x2000, 0x100, b).unwrap();
        bus.attach(0x1000, 0x100, a.clone()).unwrap();
        (bus, a)
    }

    #[test]
    fn finds_the_window_and_its_offset() {
        let (bus, a) = two();
        let mut data = [0xff; 4];
        bus.read(0x2008, &mut data);
        assert_eq!(data, [8, 0, 0, 0]);
        bus.write(0x10fc, &[1, 2, 3, 4]);
        assert_eq!(lock(&a).writes, [(0xfc, vec![1, 2, 3, 4])]);
    }

    #[test]
    fn holes_and_straddling_accesses_are_nobodys() {
        let (bus, a) = two();
        for addr in [0, 0xfff, 0x10fd, 0x1100, 0x20fd, u64::MAX] {
            let mut data = [0xff; 4];
            bus.read(addr, &mut data);
            assert_eq!(data, [0; 4], "{addr:#x}");
            bus.write(addr, &[1; 4]);
        }
        assert!(lock(&a).writes.is_empty());
    }

    #[test]
    fn overlapping_windows_are_refused() {
        let (mut bus, a) = two();
        for (base, size) in [
            (0x1000, 1),
            (0xfff, 2),
            (0x10ff, 1),
            (0x1f00, 0x101),
            (u64::MAX, 2),
            (0x3000, 0),
        ] {
            assert!(bus.attach(base, size, a.clone()).is_err(), "{base:#x}");
        }
        bus.attach(0x1100, 0xf00, a).unwrap();
    }
}
