//! The machine's disks: virtio-blk over virtio-mmio, by the `virtio-drivers` crate (Virtual I/O
//! Device 1.2, 4.2 and 5.2).
//!
//! One request at a time, started and asked after; nothing here waits. What the device reads and
//! writes lies on umbra's heap, which is mapped at one distance from its physical addresses, and only
//! devices that the device tree calls coherent are taken. So there is no cache to clean and no memory
//! to copy through.
//!
//! What always holds: while a request is under way nobody looks at its buffers, and they are never
//! given back, because a device that does not answer may still write them: it is given up for good.

use alloc::boxed::Box;
use alloc::vec;
use core::alloc::Layout;
use core::ptr::NonNull;

use umbra_arm64::Pa;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::mmio::{MmioTransport, VirtIOHeader};
use virtio_drivers::transport::{DeviceStatus, DeviceType, Transport};
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

use crate::mem;
use crate::mmu::{self, Kind};

/// Bytes of a sector.
pub const SECTOR: usize = 512;
/// Most bytes of one request: 64 KiB, and a sector that it begins or ends in.
pub const LARGEST: usize = (64 << 10) + 2 * SECTOR;

const QUEUE: u16 = 0;
const QUEUE_SIZE: usize = 8;

const F_RO: u64 = 1 << 5;
const F_FLUSH: u64 = 1 << 9;
const F_VERSION_1: u64 = 1 << 32;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// The device says so, or its answer makes no sense.
    Device,
    /// The device was given up before.
    GivenUp,
}

/// What is asked of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// So many bytes from this sector on into the disk's buffer.
    Read(u64, usize),
    /// So many bytes of the disk's buffer to this sector on.
    Write(u64, usize),
    /// What was written is to outlive the machine.
    Flush,
}

/// How the driver gets memory that the device reaches.
struct Coherent;

// SAFETY: memory comes from the global allocator, zeroed, page aligned and nobody else's; heap
// memory is linear-mapped for good, so its physical address is a constant away and a range is as
// contiguous there as here. Devices are coherent (see the head), so sharing needs no copy.
unsafe impl Hal for Coherent {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let none = (0, NonNull::dangling());
        let Some(layout) = pages_layout(pages) else {
            return none;
        };
        // SAFETY: the layout is not empty.
        let Some(at) = NonNull::new(unsafe { alloc::alloc::alloc_zeroed(layout) }) else {
            return none;
        };
        match mem::heap_pa(at.as_ptr() as u64) {
            Some(pa) => (pa, at),
            None => none,
        }
    }

    unsafe fn dma_dealloc(_: PhysAddr, at: NonNull<u8>, pages: usize) -> i32 {
        if let Some(layout) = pages_layout(pages) {
            // SAFETY: the caller passes what `dma_alloc` gave, with its layout.
            unsafe { alloc::alloc::dealloc(at.as_ptr(), layout) };
        }
        0
    }

    unsafe fn mmio_phys_to_virt(_: PhysAddr, _: usize) -> NonNull<u8> {
        unreachable!("only the PCI transport asks for it")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        let at = buffer.cast::<u8>().as_ptr() as u64;
        mem::heap_pa(at).expect("a disk's buffers lie on the heap")
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

fn pages_layout(pages: usize) -> Option<Layout> {
    let bytes = pages.checked_mul(virtio_drivers::PAGE_SIZE)?;
    Layout::from_size_align(bytes, virtio_drivers::PAGE_SIZE)
        .ok()
        .filter(|layout| layout.size() != 0)
}

/// What the device reaches. Leaked, see the head.
struct Buffers {
    header: [u8; 16],
    status: [u8; 1],
    data: Box<[u8]>,
}

/// A request under way.
#[derive(Clone, Copy)]
struct Flight {
    token: u16,
    request: Request,
}

/// A disk.
pub struct Disk {
    transport: MmioTransport<'static>,
    queue: VirtQueue<Coherent, QUEUE_SIZE>,
    buffers: &'static mut Buffers,
    sectors: u64,
    read_only: bool,
    flush: bool,
    flight: Option<Flight>,
    given_up: bool,
}

impl Disk {
    /// The disk whose registers are at `registers`, if there is one; it lasts as long as the machine.
    ///
    /// The caller vouches that the device tree names the registers, and calls the device coherent.
    pub fn open(registers: Pa, bytes: u64) -> Option<&'static mut Self> {
        let at = mmu::map_device(registers.raw(), bytes, Kind::Device).ok()?;
        let header = NonNull::new(at as *mut VirtIOHeader)?;
        // SAFETY: mapped just now as device memory, for good, and nobody else has these registers:
        // the device tree names them once.
        let transport = unsafe { MmioTransport::new(header, usize::try_from(bytes).ok()?) };
        let mut transport = transport
            .ok()
            .filter(|transport| transport.device_type() == DeviceType::Block)?;

        let mut status = DeviceStatus::empty();
        let mut advance = |transport: &mut MmioTransport<'static>, more: DeviceStatus| {
            status |= more;
            transport.set_status(status);
        };
        transport.set_status(DeviceStatus::empty());
        advance(
            &mut transport,
            DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER,
        );
        let features = transport.read_device_features() & (F_RO | F_FLUSH | F_VERSION_1);
        transport.write_driver_features(features);
        advance(&mut transport, DeviceStatus::FEATURES_OK);
        if features & F_VERSION_1 != 0
            && !transport.get_status().contains(DeviceStatus::FEATURES_OK)
        {
            return None;
        }
        transport.set_guest_page_size(virtio_drivers::PAGE_SIZE as u32);
        let low: u32 = transport.read_config_space(0).ok()?;
        let high: u32 = transport.read_config_space(4).ok()?;
        let mut queue = VirtQueue::new(&mut transport, QUEUE, false, false).ok()?;
        // It is asked after, and interrupts nobody.
        queue.set_dev_notify(false);
        advance(&mut transport, DeviceStatus::DRIVER_OK);
        let buffers = Box::leak(Box::new(Buffers {
            header: [0; 16],
            status: [0],
            data: vec![0; LARGEST].into_boxed_slice(),
        }));
        Some(Box::leak(Box::new(Self {
            transport,
            queue,
            buffers,
            sectors: u64::from(low) | u64::from(high) << 32,
            read_only: features & F_RO != 0,
            flush: features & F_FLUSH != 0,
            flight: None,
            given_up: false,
        })))
    }

    /// Sectors.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Whether it refuses writes.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The buffer, while no request is under way; empty otherwise.
    pub fn buffer(&mut self) -> &mut [u8] {
        match self.flight {
            None => &mut self.buffers.data,
            Some(_) => &mut [],
        }
    }

    /// Starts a request.
    ///
    /// # Errors
    /// [`Failed`]: also if one is under way, or for a length that is no multiple of a sector.
    pub fn start(&mut self, request: Request) -> Result<(), Failed> {
        if self.given_up {
            return Err(Failed::GivenUp);
        }
        let (kind, sector, bytes) = match request {
            Request::Read(sector, bytes) => (T_IN, sector, bytes),
            Request::Write(sector, bytes) => (T_OUT, sector, bytes),
            Request::Flush => (T_FLUSH, 0, 0),
        };
        let whole = bytes.is_multiple_of(SECTOR) && bytes <= LARGEST;
        if self.flight.is_some() || !whole || (bytes == 0) != (request == Request::Flush) {
            return Err(Failed::Device);
        }
        let Buffers {
            header,
            status,
            data,
        } = &mut *self.buffers;
        *header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        // What no device answers.
        *status = [0xff];
        let data = &mut data[..bytes];
        // SAFETY: the buffers are never freed, and nobody touches them until `finish` has popped the
        // request: `flight` is set below, and `buffer` and `start` look at it.
        let token = unsafe {
            match request {
                Request::Read(..) => self.queue.add(&[&*header], &mut [data, &mut *status]),
                Request::Write(..) => self.queue.add(&[&*header, &*data], &mut [&mut *status]),
                Request::Flush => self.queue.add(&[&*header], &mut [&mut *status]),
            }
        };
        let token = token.map_err(|_| Failed::Device)?;
        self.flight = Some(Flight { token, request });
        if self.queue.should_notify() {
            self.transport.notify(QUEUE);
        }
        Ok(())
    }

    /// How the request under way ended; `None`: not yet.
    pub fn finish(&mut self) -> Option<Result<(), Failed>> {
        if self.given_up {
            return Some(Err(Failed::GivenUp));
        }
        let Some(Flight { token, request }) = self.flight else {
            return Some(Err(Failed::Device));
        };
        self.queue.peek_used()?;
        let Buffers {
            header,
            status,
            data,
        } = &mut *self.buffers;
        // SAFETY: the very buffers that `start` added for this request.
        let popped = unsafe {
            match request {
                Request::Read(_, bytes) => {
                    let outputs = &mut [&mut data[..bytes], &mut *status];
                    self.queue.pop_used(token, &[&*header], outputs)
                }
                Request::Write(_, bytes) => {
                    let inputs = [&*header, &data[..bytes]];
                    self.queue.pop_used(token, &inputs, &mut [&mut *status])
                }
                Request::Flush => self.queue.pop_used(token, &[&*header], &mut [&mut *status]),
            }
        };
        if popped.is_err() {
            // It answered something else than it was asked: nothing it does can be relied on.
            self.given_up = true;
            return Some(Err(Failed::GivenUp));
        }
        self.flight = None;
        match *status {
            [0] => Some(Ok(())),
            _ => Some(Err(Failed::Device)),
        }
    }

    /// Whether [`Request::Flush`] means something to it; without, whatever it says is written is.
    pub fn can_flush(&self) -> bool {
        self.flush
    }

    /// No answer is waited for any more, now or later.
    pub fn give_up(&mut self) {
        self.given_up = true;
    }
}
