//! The virtio network card (Virtual I/O Device 1.2, 5.1): one pair of queues, no offloads, on a
//! switch of this process.

use std::io::{Read, Write};

use super::{Chain, Device};
use crate::switch::{LARGEST, Mac, Port};

/// Queue with buffers for frames to come.
pub const RECEIVE: usize = 0;

const KIND: u32 = 1;
const QUEUE_SIZES: &[u16] = &[256, 256];
const F_MAC: u64 = 1 << 5;

/// `struct virtio_net_hdr` with its number of buffers (5.1.6): all zero but that.
const HEADER: usize = 12;

/// The device.
pub struct Net {
    port: Port,
    mac: Mac,
}

impl Net {
    /// A card with this address at this port.
    pub fn new(port: Port, mac: Mac) -> Self {
        Net { port, mac }
    }

    fn transmit(&mut self, chain: Chain<'_>) -> u32 {
        let mut reader = match chain.descriptors.reader(chain.memory) {
            Ok(reader) => reader,
            Err(e) => {
                log::warn!("virtio net: {e}");
                return 0;
            }
        };
        // One more than the largest, so that the switch sees a frame that is too long.
        let mut frame = vec![0; reader.available_bytes().min(HEADER + LARGEST + 1)];
        match reader.read_exact(&mut frame) {
            Ok(()) => self.port.send(frame.get(HEADER..).unwrap_or_default()),
            Err(e) => log::warn!("virtio net: {e}"),
        }
        0
    }

    fn receive(&mut self, chain: Chain<'_>) -> u32 {
        let Some(frame) = self.port.receive() else {
            return 0;
        };
        let mut header = [0; HEADER];
        header[10] = 1;
        let written = chain
            .descriptors
            .writer(chain.memory)
            .map_err(|e| e.to_string())
            .and_then(|mut writer| {
                if writer.available_bytes() < HEADER + frame.len() {
                    return Err("a buffer is too small for a frame".into());
                }
                writer.write_all(&header).map_err(|e| e.to_string())?;
                writer.write_all(&frame).map_err(|e| e.to_string())?;
                Ok(writer.bytes_written())
            });
        match written {
            Ok(written) => u32::try_from(written).unwrap_or(0),
            Err(e) => {
                log::warn!("virtio net: {e}");
                0
            }
        }
    }
}

impl Device for Net {
    fn kind(&self) -> u32 {
        KIND
    }

    fn features(&self) -> u64 {
        F_MAC
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    /// The address, and a status word (not offered).
    fn config(&self) -> Vec<u8> {
        let mut config = self.mac.to_vec();
        config.resize(12, 0);
        config
    }

    fn wants(&self, queue: usize) -> bool {
        queue != RECEIVE || !self.port.is_empty()
    }

    fn serve(&mut self, queue: usize, chain: Chain<'_>) -> u32 {
        match queue {
            RECEIVE => self.receive(chain),
            _ => self.transmit(chain),
        }
    }

    fn reset(&mut self) {
        self.port.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vm_memory::{Bytes, GuestAddress};

    use super::super::console::tests::{offer, start, used};
    use super::super::mmio::Transport;
    use super::*;
    use crate::bus::MmioDevice;
    use crate::console::tests::event;
    use crate::event_loop::Notified;
    use crate::layout::Memory;
    use crate::switch::Switch;
    use crate::switch::tests::frame;

    const BUFFER: u64 = 0xa000;

    struct Rig {
        transport: Transport<Net>,
        memory: Memory,
        other: Port,
    }

    fn rig() -> Rig {
        let switch = Arc::new(Switch::default());
        let (port, other) = (switch.port(event()), switch.port(event()));
        let memory = Memory::from_ranges(&[(GuestAddress(0x1000), 0x10000)]).unwrap();
        let net = Net::new(port, [2, 0, 0, 0, 0, 9]);
        let kicks = vec![event(), event()];
        let mut transport = Transport::new(net, memory.clone(), event(), kicks).unwrap();
        start(&mut transport, 2);
        Rig {
            transport,
            memory,
            other,
        }
    }

    #[test]
    fn frames_go_out_without_the_header() {
        let mut rig = rig();
        let sent = frame(0xff, 9, b"hello");
        let packet = [&[0; HEADER][..], &sent].concat();
        rig.memory
            .write_slice(&packet, GuestAddress(BUFFER))
            .unwrap();
        offer(&rig.memory, 1, &[(BUFFER, packet.len() as u32, false)]);
        rig.transport.notified(1);
        assert_eq!(rig.other.receive().unwrap(), sent);
        assert_eq!(used(&rig.memory, 1), (1, 0));
        // Too short for a header of its own, and too long for a frame: nothing goes out.
        for len in [5, 0x4000] {
            offer(&rig.memory, 1, &[(BUFFER, len, false)]);
            rig.transport.notified(1);
            assert!(rig.other.is_empty(), "{len}");
        }
        assert_eq!(used(&rig.memory, 1).0, 3);
    }

    #[test]
    fn frames_wait_for_buffers_and_come_with_a_header() {
        let mut rig = rig();
        let sent = frame(0xff, 1, b"hello");
        rig.other.send(&sent);
        rig.transport.notified(RECEIVE);
        assert_eq!(used(&rig.memory, 0).0, 0, "no buffer yet");
        offer(&rig.memory, 0, &[(BUFFER, 2000, true)]);
        rig.transport.notified(RECEIVE);
        assert_eq!(used(&rig.memory, 0), (1, (HEADER + sent.len()) as u32));
        let mut seen = vec![0; HEADER + sent.len()];
        rig.memory
            .read_slice(&mut seen, GuestAddress(BUFFER))
            .unwrap();
        assert_eq!(seen, [&[0; 10][..], &[1, 0], &sent].concat());
        // One that does not fit is lost, and its buffer comes back.
        rig.other.send(&sent);
        offer(&rig.memory, 0, &[(BUFFER, 20, true)]);
        rig.transport.notified(RECEIVE);
        assert_eq!(used(&rig.memory, 0), (2, 0));
    }

    #[test]
    fn the_address_is_in_the_configuration() {
        let mut rig = rig();
        let mut config = [0; 8];
        rig.transport.read(0x100, &mut config);
        assert_eq!(config, [2, 0, 0, 0, 0, 9, 0, 0]);
        let mut features = [0; 4];
        rig.transport.read(0x10, &mut features);
        assert_eq!(u32::from_le_bytes(features), 0x20);
    }
}
