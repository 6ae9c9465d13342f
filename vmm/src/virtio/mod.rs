//! Virtio devices over virtio-mmio (Virtual I/O Device, version 1.2).
//!
//! A [`Device`] knows its requests; [`mmio::Transport`] owns registers, queues and interrupt.
//! What a guest puts into a ring is an allegation: chains are walked by virtio-queue, which
//! bounds them, and every address goes through vm-memory, which checks it.

pub mod block;
pub mod console;
pub mod mmio;
pub mod net;
pub mod rng;

use virtio_queue::{Queue, QueueT};

use crate::layout::Memory;

/// What went wrong with a ring; the guest has to reset the device.
pub type RingError = virtio_queue::Error;

/// A kind of device.
pub trait Device: Send {
    /// The device's number (5).
    fn kind(&self) -> u32;
    /// Feature bits of its own; the transport adds its.
    fn features(&self) -> u64;
    /// Largest size of each queue.
    fn queue_sizes(&self) -> &'static [u16];
    /// The configuration space.
    fn config(&self) -> Vec<u8>;
    /// The guest is ready to use its queues.
    fn started(&mut self) {}
    /// Serves one chain and returns the bytes it wrote into guest memory.
    fn serve(&mut self, queue: usize, chain: Chain<'_>) -> u32;
    /// Whether `queue` is worth looking at now.
    fn wants(&self, queue: usize) -> bool {
        let _ = queue;
        true
    }
    /// A run over `queue` has ended.
    fn served(&mut self, queue: usize) {
        let _ = queue;
    }
    /// Forgets everything of the previous driver.
    fn reset(&mut self) {}
}

/// A chain of buffers and the memory that it lies in.
pub struct Chain<'a> {
    /// The descriptors.
    pub descriptors: virtio_queue::DescriptorChain<&'a Memory>,
    /// Guest memory.
    pub memory: &'a Memory,
}

/// What a run over a queue leaves.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The guest wants an interrupt.
    pub interrupt: bool,
    /// There may be more: as many chains as the ring holds were served.
    pub more: bool,
}

/// Serves chains of a queue, at most as many as it holds, so that a guest that never stops
/// adding cannot keep the event loop to itself.
pub fn run_queue(
    device: &mut dyn Device,
    index: usize,
    queue: &mut Queue,
    memory: &Memory,
) -> Result<Run, RingError> {
    let mut run = Run::default();
    let mut used = false;
    for n in 0..=queue.size() {
        if !device.wants(index) {
            break;
        }
        if n == queue.size() {
            run.more = true;
            break;
        }
        let Some(descriptors) = queue.pop_descriptor_chain(memory) else {
            break;
        };
        let head = descriptors.head_index();
        let chain = Chain {
            descriptors,
            memory,
        };
        let written = device.serve(index, chain);
        queue.add_used(memory, head, written)?;
        used = true;
    }
    device.served(index);
    if used {
        run.interrupt = queue.needs_notification(memory)?;
    }
    Ok(run)
}
