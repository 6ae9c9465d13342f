//! The 16550 UART: the model is vm-superio's, this is its window, its interrupt and its rule
//! for input.
//!
//! Input waits until the guest has its receive interrupt on. Linux empties the receive
//! register when it opens the port and would throw away whatever came before.

use std::sync::Arc;

use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::MmioDevice;
use crate::console::{Input, Output, signal};

const IER: u8 = 1;
const IER_RECEIVE: u8 = 1;
const LCR: u8 = 3;
const LCR_DLAB: u8 = 0x80;
const FIFO: usize = 64;

/// The interrupt line, an irqfd that pulses.
pub struct Line(Arc<EventFd>);

impl Trigger for Line {
    type E = std::io::Error;

    fn trigger(&self) -> std::io::Result<()> {
        self.0.write(1)
    }
}

/// The UART.
pub struct SerialPort {
    uart: Serial<Line, NoEvents, Output>,
    ready: Arc<EventFd>,
}

impl SerialPort {
    /// A UART that pulses `interrupt`, writes to `output` and signals `ready` when it can take
    /// input again.
    pub fn new(interrupt: Arc<EventFd>, output: Output, ready: Arc<EventFd>) -> Self {
        SerialPort {
            uart: Serial::new(Line(interrupt), output),
            ready,
        }
    }

    /// Whether the guest listens. With the divisor latch open, register 1 is not IER.
    fn listening(&mut self) -> bool {
        self.uart.read(LCR) & LCR_DLAB == 0 && self.uart.read(IER) & IER_RECEIVE != 0
    }

    fn starved(&mut self) -> bool {
        self.uart.fifo_capacity() == FIFO && self.listening()
    }

    /// Runs a register access and tells the event loop when it made room for input.
    fn access(&mut self, access: impl FnOnce(&mut Serial<Line, NoEvents, Output>)) {
        let before = self.starved();
        access(&mut self.uart);
        if !before && self.starved() {
            signal(&self.ready);
        }
    }
}

impl MmioDevice for SerialPort {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // Registers are bytes; the window beyond the eighth is empty.
        if let (Ok(register @ 0..=7), Some(byte)) = (u8::try_from(offset), data.first_mut()) {
            self.access(|uart| *byte = uart.read(register));
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (Ok(register @ 0..=7), Some(byte)) = (u8::try_from(offset), data.first()) {
            self.access(|uart| {
                if let Err(e) = uart.write(register, *byte) {
                    log::debug!("serial: {e:?}");
                }
            });
        }
    }
}

impl Input for SerialPort {
    fn room(&mut self) -> usize {
        if self.listening() {
            self.uart.fifo_capacity()
        } else {
            0
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        if let Err(e) = self.uart.enqueue_raw_bytes(bytes) {
            log::debug!("serial input lost: {e:?}");
        }
    }

    fn drain(&mut self) {
        self.uart.writer_mut().drain();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::Idle;
    use crate::console::tests::{Log, event};

    struct Rig {
        port: SerialPort,
        log: Log,
        irq: Arc<EventFd>,
        ready: Arc<EventFd>,
    }

    fn rig() -> Rig {
        let (log, irq, ready) = (Log::default(), event(), event());
        let output = Output::new(Box::new(log.clone()), Some(Idle::new(event())));
        let port = SerialPort::new(irq.clone(), output, ready.clone());
        Rig {
            port,
            log,
            irq,
            ready,
        }
    }

    fn read(port: &mut SerialPort, offset: u64) -> u8 {
        let mut data = [0];
        port.read(offset, &mut data);
        data[0]
    }

    #[test]
    fn output_leaves_by_lines() {
        let mut rig = rig();
        for byte in b"ok\n" {
            rig.port.write(0, &[*byte]);
        }
        assert_eq!(*rig.log.0.lock().unwrap(), [b"ok\n"]);
    }

    #[test]
    fn input_waits_for_the_receive_interrupt() {
        let mut rig = rig();
        assert_eq!(rig.port.room(), 0);
        rig.port.write(3, &[LCR_DLAB]);
        rig.port.write(1, &[1]); // the divisor's high byte, not IER
        assert_eq!(rig.port.room(), 0);
        rig.port.write(3, &[3]);
        assert!(rig.ready.read().is_err());
        rig.port.write(1, &[IER_RECEIVE]);
        assert_eq!(rig.ready.read().unwrap(), 1);
        assert_eq!(rig.port.room(), FIFO);

        rig.irq.read().ok();
        rig.port.push(b"hi");
        assert_eq!(rig.irq.read().unwrap(), 1, "the guest is interrupted");
        assert_eq!(rig.port.room(), FIFO - 2);
        assert_eq!(
            (read(&mut rig.port, 0), read(&mut rig.port, 0)),
            (b'h', b'i')
        );
        assert_eq!(rig.ready.read().unwrap(), 1, "empty again");
    }

    #[test]
    fn the_window_beyond_the_registers_is_empty() {
        let mut rig = rig();
        for offset in [8, 0x100, 0x101, 0xfff] {
            rig.port.write(offset, b"x");
            assert_eq!(read(&mut rig.port, offset), 0);
        }
        rig.port.drain();
        assert!(rig.log.0.lock().unwrap().is_empty());
    }
}
