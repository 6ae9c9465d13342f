//! The virtio console (Virtual I/O Device 1.2, 5.3): one port, `hvc0` in the guest.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::{Chain, Device};
use crate::console::{Output, signal};

/// Queue with buffers for input.
pub const RECEIVE: usize = 0;
/// Queue with output.
pub const TRANSMIT: usize = 1;

const KIND: u32 = 3;
const QUEUE_SIZES: &[u16] = &[64, 64];
/// Input that may wait here for a buffer of the guest.
const PENDING: usize = 256;

/// The device.
pub struct Console {
    output: Output,
    pending: VecDeque<u8>,
    ready: Arc<EventFd>,
}

impl Console {
    /// A console that writes to `output` and signals `ready` when it can take input again.
    pub fn new(output: Output, ready: Arc<EventFd>) -> Self {
        Console {
            output,
            pending: VecDeque::with_capacity(PENDING),
            ready,
        }
    }

    /// Bytes of input that it can take.
    pub fn room(&self) -> usize {
        PENDING - self.pending.len().min(PENDING)
    }

    /// Takes input.
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.extend(bytes);
    }

    /// Writes out what has gathered.
    pub fn drain(&mut self) {
        self.output.drain();
    }

    fn transmit(&mut self, chain: Chain<'_>) -> u32 {
        let mut buffer = [0; 4096];
        match chain.descriptors.reader(chain.memory) {
            Ok(mut reader) => loop {
                match reader.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(n) => self.output.put(&buffer[..n]),
                    Err(e) => {
                        log::warn!("virtio console: {e}");
                        break;
                    }
                }
            },
            Err(e) => log::warn!("virtio console: {e}"),
        }
        0
    }

    fn receive(&mut self, chain: Chain<'_>) -> u32 {
        let mut writer = match chain.descriptors.writer(chain.memory) {
            Ok(writer) => writer,
            Err(e) => {
                log::warn!("virtio console: {e}");
                return 0;
            }
        };
        let mut written = 0;
        // Two rounds at most: the queue's two halves.
        while !self.pending.is_empty() {
            let (front, _) = self.pending.as_slices();
            match writer.write(front) {
                Ok(0) => break,
                Ok(n) => {
                    self.pending.drain(..n);
                    written += n as u32;
                }
                Err(e) => {
                    log::warn!("virtio console: {e}");
                    break;
                }
            }
        }
        written
    }
}

impl Device for Console {
    fn kind(&self) -> u32 {
        KIND
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    /// Columns, rows, ports, emergency write: none is offered, all read as zero.
    fn config(&self) -> Vec<u8> {
        vec![0; 12]
    }

    fn started(&mut self) {
        signal(&self.ready);
    }

    fn wants(&self, queue: usize) -> bool {
        queue != RECEIVE || !self.pending.is_empty()
    }

    fn serve(&mut self, queue: usize, chain: Chain<'_>) -> u32 {
        match queue {
            RECEIVE => self.receive(chain),
            _ => self.transmit(chain),
        }
    }

    fn served(&mut self, queue: usize) {
        if queue == RECEIVE && self.pending.is_empty() {
            signal(&self.ready);
        }
    }

    fn reset(&mut self) {
        self.pending.clear();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::mmio::Transport;
    use super::*;
    use crate::bus::MmioDevice;
    use crate::console::tests::{Log, event};
    use crate::console::{Idle, Input};
    use crate::layout::Memory;
    use vm_memory::{Bytes, GuestAddress};

    pub(crate) struct Rig {
        pub(crate) transport: Transport<Console>,
        pub(crate) log: Log,
        pub(crate) ready: Arc<EventFd>,
        pub(crate) memory: Memory,
    }

    pub(crate) fn rig() -> Rig {
        let (log, ready) = (Log::default(), event());
        let memory = Memory::from_ranges(&[(GuestAddress(0x1000), 0x10000)]).unwrap();
        let output = Output::new(Box::new(log.clone()), Some(Idle::new(event())));
        let console = Console::new(output, ready.clone());
        let kicks = vec![event(), event()];
        let transport = Transport::new(console, memory.clone(), event(), kicks).unwrap();
        Rig {
            transport,
            log,
            ready,
            memory,
        }
    }

    /// Brings a device up with queue n's three parts at 0x2000 + n * 0x3000.
    pub(crate) fn start<D: Device>(t: &mut Transport<D>, queues: u32) {
        let mut write = |offset, value: u32| t.write(offset, &value.to_le_bytes());
        write(0x24, 1);
        write(0x20, 1);
        write(0x70, 0xb);
        for n in 0..queues {
            let base = 0x2000 + n * 0x3000;
            for (offset, value) in [
                (0x30, n),
                (0x38, 4),
                (0x80, base),
                (0x90, base + 0x1000),
                (0xa0, base + 0x2000),
                (0x44, 1),
            ] {
                write(offset, value);
            }
        }
        write(0x70, 0xf);
    }

    /// Puts one chain into queue n: descriptors (address, length, device writes).
    pub(crate) fn offer(memory: &Memory, n: u64, chain: &[(u64, u32, bool)]) {
        let base = 0x2000 + n * 0x3000;
        for (i, (addr, len, writable)) in (0u16..).zip(chain) {
            let last = usize::from(i) + 1 == chain.len();
            let flags = u16::from(!last) | u16::from(*writable) << 1;
            let at = GuestAddress(base + u64::from(i) * 16);
            memory.write_obj(*addr, at).unwrap();
            memory.write_obj(*len, GuestAddress(at.0 + 8)).unwrap();
            memory.write_obj(flags, GuestAddress(at.0 + 12)).unwrap();
            memory.write_obj(i + 1, GuestAddress(at.0 + 14)).unwrap();
        }
        let idx = GuestAddress(base + 0x1002);
        let old: u16 = memory.read_obj(idx).unwrap();
        let slot = GuestAddress(base + 0x1004 + u64::from(old % 4) * 2);
        memory.write_obj(0u16, slot).unwrap();
        memory.write_obj(old.wrapping_add(1), idx).unwrap();
    }

    /// The used ring's index and the length in its latest entry.
    pub(crate) fn used(memory: &Memory, n: u64) -> (u16, u32) {
        let base = 0x2000 + n * 0x3000 + 0x2000;
        let idx: u16 = memory.read_obj(GuestAddress(base + 2)).unwrap();
        let slot = base + 4 + u64::from(idx.wrapping_sub(1) % 4) * 8;
        (idx, memory.read_obj(GuestAddress(slot + 4)).unwrap())
    }

    fn notify(t: &mut Transport<Console>, queue: usize) {
        t.write(0x50, &(queue as u32).to_le_bytes());
    }

    #[test]
    fn output_comes_from_the_ring() {
        let mut rig = rig();
        start(&mut rig.transport, 2);
        rig.memory
            .write_slice(b"hello\n", GuestAddress(0xa000))
            .unwrap();
        offer(&rig.memory, 1, &[(0xa000, 3, false), (0xa003, 3, false)]);
        notify(&mut rig.transport, TRANSMIT);
        assert_eq!(*rig.log.0.lock().unwrap().concat(), *b"hello\n");
        assert_eq!(used(&rig.memory, 1), (1, 0));
    }

    #[test]
    fn input_goes_to_the_buffers_there_are() {
        let mut rig = rig();
        assert_eq!(rig.transport.room(), 0, "no driver yet");
        start(&mut rig.transport, 2);
        assert!(rig.ready.read().is_ok());
        assert_eq!(rig.transport.room(), PENDING);

        rig.transport.push(b"abcdef");
        assert_eq!(used(&rig.memory, 0).0, 0, "no buffer yet");
        assert_eq!(rig.transport.room(), PENDING - 6);
        offer(&rig.memory, 0, &[(0xa000, 4, true)]);
        notify(&mut rig.transport, RECEIVE);
        assert_eq!(used(&rig.memory, 0), (1, 4));
        offer(&rig.memory, 0, &[(0xa100, 4, true)]);
        notify(&mut rig.transport, RECEIVE);
        assert_eq!(used(&rig.memory, 0), (2, 2));
        assert_eq!(
            rig.memory.read_obj::<u32>(GuestAddress(0xa000)).unwrap(),
            u32::from_le_bytes(*b"abcd")
        );
        assert_eq!(rig.transport.room(), PENDING);

        rig.transport.push(b"x");
        assert_eq!(used(&rig.memory, 0).0, 2, "an unused buffer is not taken");
    }

    #[test]
    fn buffers_outside_memory_harm_nobody() {
        let mut rig = rig();
        start(&mut rig.transport, 2);
        offer(&rig.memory, 1, &[(0xffff_ffff_f000, 64, false)]);
        notify(&mut rig.transport, TRANSMIT);
        assert!(rig.log.0.lock().unwrap().is_empty());
        assert_eq!(used(&rig.memory, 1).0, 1);
        notify(&mut rig.transport, 7);
    }
}
