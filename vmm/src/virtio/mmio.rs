//! The virtio-mmio transport, version 2 (Virtual I/O Device 1.2, 4.2.2).
//!
//! What always holds: a ring is touched only while its queue is ready, the driver has said
//! DRIVER_OK, and the device is not waiting for a reset. A guest that breaks the rules gets
//! DEVICE_NEEDS_RESET and nothing else happens.

use std::sync::Arc;

use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::{Device, run_queue};
use crate::bus::MmioDevice;
use crate::console::{Input, signal};
use crate::error::{Context, Result};
use crate::event_loop::Notified;
use crate::layout::Memory;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"umbr");

const F_VERSION_1: u64 = 1 << 32;

const STATUS_FEATURES_OK: u32 = 8;
const STATUS_DRIVER_OK: u32 = 4;
const STATUS_NEEDS_RESET: u32 = 64;
const STATUS_OF_DRIVER: u32 = 0x8f;

const INTERRUPT_USED: u32 = 1;
const INTERRUPT_CONFIG: u32 = 2;

/// Offset of the register that a driver writes a queue's number to.
pub const NOTIFY: u64 = 0x50;
const CONFIG: u64 = 0x100;

/// A device behind a window of registers.
pub struct Transport<D> {
    device: D,
    memory: Memory,
    queues: Vec<Queue>,
    kicks: Vec<Arc<EventFd>>,
    interrupt: Arc<EventFd>,
    status: u32,
    interrupt_status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
}

impl<D: Device> Transport<D> {
    /// A device that pulses `interrupt`. `kicks` has one event for each queue, which the event
    /// loop answers with [`Notified::notified`].
    pub fn new(
        device: D,
        memory: Memory,
        interrupt: Arc<EventFd>,
        kicks: Vec<Arc<EventFd>>,
    ) -> Result<Self> {
        let sizes = device.queue_sizes();
        let queues: std::result::Result<_, _> = sizes.iter().map(|n| Queue::new(*n)).collect();
        Ok(Transport {
            queues: queues.context("virtio queue")?,
            device,
            memory,
            kicks,
            interrupt,
            status: 0,
            interrupt_status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
        })
    }

    fn features(&self) -> u64 {
        F_VERSION_1 | self.device.features()
    }

    fn running(&self) -> bool {
        self.status & (STATUS_DRIVER_OK | STATUS_NEEDS_RESET) == STATUS_DRIVER_OK
    }

    fn raise(&mut self, cause: u32) {
        self.interrupt_status |= cause;
        signal(&self.interrupt);
    }

    fn needs_reset(&mut self, why: &dyn std::fmt::Display) {
        log::warn!("virtio device {}: {why}", self.device.kind());
        self.status |= STATUS_NEEDS_RESET;
        self.raise(INTERRUPT_CONFIG);
    }

    /// Serves what is in a queue.
    fn run(&mut self, index: usize) {
        if !self.running() {
            return;
        }
        let Some(queue) = self.queues.get_mut(index).filter(|queue| queue.ready()) else {
            return;
        };
        match run_queue(&mut self.device, index, queue, &self.memory) {
            Ok(run) => {
                if run.interrupt {
                    self.raise(INTERRUPT_USED);
                }
                if let Some(kick) = self.kicks.get(index).filter(|_| run.more) {
                    signal(kick);
                }
            }
            Err(e) => self.needs_reset(&e),
        }
    }

    fn register(&self, offset: u64) -> u32 {
        let queue = self.queues.get(self.queue_sel as usize);
        match offset {
            0x000 => MAGIC,
            0x004 => VERSION,
            0x008 => self.device.kind(),
            0x00c => VENDOR,
            0x010 => half(self.features(), self.device_features_sel),
            0x034 => queue.map_or(0, |queue| queue.max_size().into()),
            0x044 => queue.map_or(0, |queue| queue.ready().into()),
            0x060 => self.interrupt_status,
            0x070 => self.status,
            // No shared memory region: its length and base read as all ones.
            0x0b0..=0x0bc => u32::MAX,
            _ => 0,
        }
    }

    fn set_register(&mut self, offset: u64, value: u32) {
        match offset {
            0x014 => self.device_features_sel = value,
            0x020 if self.status & STATUS_FEATURES_OK == 0 => {
                let shift = match self.driver_features_sel {
                    0 => 0,
                    1 => 32,
                    _ => return,
                };
                let kept = self.driver_features & !(u64::from(u32::MAX) << shift);
                self.driver_features = kept | u64::from(value) << shift;
            }
            0x024 => self.driver_features_sel = value,
            0x030 => self.queue_sel = value,
            NOTIFY => self.run(value as usize),
            0x064 => self.interrupt_status &= !value,
            0x070 => self.set_status(value),
            0x038 | 0x044 | 0x080..=0x0a4 => self.set_queue_register(offset, value),
            _ => {}
        }
    }

    fn set_queue_register(&mut self, offset: u64, value: u32) {
        let Some(queue) = self.queues.get_mut(self.queue_sel as usize) else {
            return;
        };
        match (offset, queue.ready()) {
            (0x044, _) => {
                let ready = value & 1 != 0;
                queue.set_ready(ready);
                if ready && !queue.is_valid(&self.memory) {
                    queue.set_ready(false);
                    self.needs_reset(&"the driver gave a queue that is not in memory");
                }
            }
            // A queue in use keeps its place.
            (_, true) => {}
            // Sizes that are no power of two, or too large, leave the old one.
            (0x038, _) => queue.set_size(u16::try_from(value).unwrap_or(0)),
            (0x080, _) => queue.set_desc_table_address(Some(value), None),
            (0x084, _) => queue.set_desc_table_address(None, Some(value)),
            (0x090, _) => queue.set_avail_ring_address(Some(value), None),
            (0x094, _) => queue.set_avail_ring_address(None, Some(value)),
            (0x0a0, _) => queue.set_used_ring_address(Some(value), None),
            (0x0a4, _) => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let mut status = value & STATUS_OF_DRIVER | self.status & STATUS_NEEDS_RESET;
        let acceptable =
            self.driver_features & !self.features() == 0 && self.driver_features & F_VERSION_1 != 0;
        if !acceptable {
            status &= !STATUS_FEATURES_OK;
        }
        let started = !self.status & status & STATUS_DRIVER_OK != 0;
        self.status = status;
        if started && self.running() {
            self.device.started();
            // Notifications from before DRIVER_OK found the device asleep.
            (0..self.queues.len()).for_each(|index| self.run(index));
        }
    }

    fn reset(&mut self) {
        self.status = 0;
        self.interrupt_status = 0;
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.driver_features = 0;
        self.queue_sel = 0;
        self.queues.iter_mut().for_each(Queue::reset);
        self.device.reset();
    }
}

/// The low or the high half of a 64-bit set of features.
fn half(features: u64, sel: u32) -> u32 {
    match sel {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

impl<D: Device> MmioDevice for Transport<D> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some(at) = offset.checked_sub(CONFIG) {
            let config = self.device.config();
            let rest = usize::try_from(at).ok().and_then(|at| config.get(at..));
            let rest = rest.unwrap_or_default();
            let len = rest.len().min(data.len());
            data[..len].copy_from_slice(&rest[..len]);
        } else if data.len() == 4 {
            data.copy_from_slice(&self.register(offset).to_le_bytes());
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        // No device here has a configuration that the driver may write.
        if let Ok(bytes) = <[u8; 4]>::try_from(data) {
            self.set_register(offset, u32::from_le_bytes(bytes));
        }
    }
}

impl<D: Device> Notified for Transport<D> {
    fn notified(&mut self, queue: usize) {
        self.run(queue);
    }
}

impl Input for Transport<super::console::Console> {
    fn room(&mut self) -> usize {
        if self.running() {
            self.device.room()
        } else {
            0
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        self.device.push(bytes);
        self.run(super::console::RECEIVE);
    }

    fn drain(&mut self) {
        self.device.drain();
    }
}

#[cfg(test)]
mod tests {
    use super::super::console::tests::rig;
    use super::*;

    fn read<D: Device>(t: &mut Transport<D>, offset: u64) -> u32 {
        let mut data = [0; 4];
        t.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write<D: Device>(t: &mut Transport<D>, offset: u64, value: u32) {
        t.write(offset, &value.to_le_bytes());
    }

    #[test]
    fn identifies_itself() {
        let mut t = rig().transport;
        assert_eq!(read(&mut t, 0), 0x7472_6976);
        assert_eq!((read(&mut t, 4), read(&mut t, 8)), (2, 3));
        write(&mut t, 0x14, 1);
        assert_eq!(read(&mut t, 0x10), 1, "VERSION_1 is bit 32");
        write(&mut t, 0x14, 2);
        assert_eq!(read(&mut t, 0x10), 0);
        assert_eq!(read(&mut t, 0xb0), u32::MAX);
        write(&mut t, 0x30, 2);
        assert_eq!(read(&mut t, 0x34), 0, "there is no third queue");
    }

    #[test]
    fn features_must_be_offered_and_modern() {
        for (low, high, ok) in [(0, 1, true), (0, 0, false), (1 << 31, 1, false)] {
            let mut t = rig().transport;
            write(&mut t, 0x24, 0);
            write(&mut t, 0x20, low);
            write(&mut t, 0x24, 1);
            write(&mut t, 0x20, high);
            write(&mut t, 0x70, 1 | 2 | STATUS_FEATURES_OK);
            assert_eq!(read(&mut t, 0x70) & STATUS_FEATURES_OK != 0, ok);
        }
    }

    #[test]
    fn a_queue_outside_memory_needs_a_reset() {
        let mut t = rig().transport;
        write(&mut t, 0x84, 0xffff_ffff);
        write(&mut t, 0x44, 1);
        assert_eq!(read(&mut t, 0x44), 0);
        assert_eq!(read(&mut t, 0x70) & STATUS_NEEDS_RESET, STATUS_NEEDS_RESET);
        assert_eq!(read(&mut t, 0x60), INTERRUPT_CONFIG);
        write(&mut t, 0x64, INTERRUPT_CONFIG);
        assert_eq!(read(&mut t, 0x60), 0);
        write(&mut t, 0x70, 0);
        assert_eq!(read(&mut t, 0x70), 0, "and gets it");
    }

    #[test]
    fn odd_accesses_do_nothing() {
        let mut t = rig().transport;
        let mut two = [0xaa; 2];
        t.read(0, &mut two);
        assert_eq!(two, [0xaa; 2]);
        t.write(0x70, &[1]);
        t.write(0x1000, &[1; 8]);
        assert_eq!(read(&mut t, 0x70), 0);
        let mut past = [0; 8];
        t.read(0xffc, &mut past);
        assert_eq!(past, [0; 8]);
    }
}
