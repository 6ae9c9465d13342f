//! The virtio entropy source (Virtual I/O Device 1.2, 5.4): the host's random numbers.

use std::io::{Read, Write};

use super::{Chain, Device};

const KIND: u32 = 4;
const QUEUE_SIZES: &[u16] = &[16];
/// Most bytes for one request: a guest that wants more asks again, and others have their turn.
const LARGEST: usize = 4096;

/// The device.
pub struct Rng {
    source: Box<dyn Read + Send>,
}

impl Rng {
    /// Numbers from `source`, which must not wait.
    pub fn new(source: Box<dyn Read + Send>) -> Self {
        Rng { source }
    }
}

impl Device for Rng {
    fn kind(&self) -> u32 {
        KIND
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn serve(&mut self, _: usize, chain: Chain<'_>) -> u32 {
        let mut writer = match chain.descriptors.writer(chain.memory) {
            Ok(writer) => writer,
            Err(e) => {
                log::warn!("virtio rng: {e}");
                return 0;
            }
        };
        let mut bytes = vec![0; writer.available_bytes().min(LARGEST)];
        let written = self
            .source
            .read_exact(&mut bytes)
            .and_then(|()| writer.write_all(&bytes));
        match written {
            Ok(()) => bytes.len() as u32,
            Err(e) => {
                log::warn!("virtio rng: {e}");
                0
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::super::console::tests::{offer, start, used};
    use super::super::mmio::Transport;
    use super::*;
    use crate::console::tests::event;
    use crate::event_loop::Notified;
    use crate::layout::Memory;

    fn ask(source: &'static [u8], len: u32) -> (u32, Vec<u8>) {
        let memory = Memory::from_ranges(&[(GuestAddress(0x1000), 0x10000)]).unwrap();
        let rng = Rng::new(Box::new(source));
        let mut transport = Transport::new(rng, memory.clone(), event(), vec![event()]).unwrap();
        start(&mut transport, 1);
        offer(&memory, 0, &[(0xa000, len, true)]);
        transport.notified(0);
        let mut seen = vec![0; 8];
        memory.read_slice(&mut seen, GuestAddress(0xa000)).unwrap();
        (used(&memory, 0).1, seen)
    }

    #[test]
    fn as_many_as_were_asked_for() {
        assert_eq!(ask(b"abcdefgh", 4), (4, b"abcd\0\0\0\0".to_vec()));
        assert_eq!(ask(&[7; 0x5000], 0x5000).0, LARGEST as u32);
    }

    #[test]
    fn a_source_that_fails_gives_nothing() {
        assert_eq!(ask(b"", 4), (0, vec![0; 8]));
    }
}
