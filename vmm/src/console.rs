//! What the two kinds of console share: buffered output to stdout and a way to take input.
//!
//! A UART hands over one byte at a time, and one `write` for each would dominate a boot. So
//! output gathers until a newline, until a KiB has gathered, or until the event loop, told once by
//! an event, finds it a few milliseconds old.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::EventFd;

const LINE: usize = 1024;

/// A console that takes bytes typed by the user.
pub trait Input: Send {
    /// Bytes that the guest can take now. When it is zero, the console's ready event tells
    /// when it no longer is.
    fn room(&mut self) -> usize;
    /// Gives the guest bytes, at most [`Input::room`] of them.
    fn push(&mut self, bytes: &[u8]);
    /// Writes out what has gathered.
    fn drain(&mut self);
}

/// Whether somebody will drain the output soon, and how to ask for it.
#[derive(Clone)]
pub struct Idle {
    armed: Arc<AtomicBool>,
    event: Arc<EventFd>,
}

impl Idle {
    /// Asks by `event`, at most once until [`Idle::rearm`].
    pub fn new(event: Arc<EventFd>) -> Self {
        Idle {
            armed: Arc::default(),
            event,
        }
    }

    fn ask(&self) {
        if !self.armed.swap(true, Ordering::AcqRel) {
            signal(&self.event);
        }
    }

    /// Called before draining, so that later output asks again.
    pub fn rearm(&self) {
        self.armed.store(false, Ordering::Release);
    }
}

/// Buffered output. The sink's errors are dropped: nobody reading is no fault of the guest.
pub struct Output {
    sink: Box<dyn Write + Send>,
    line: Vec<u8>,
    /// Who looks after the part of a line; nobody where lines are to stay whole.
    idle: Option<Idle>,
}

impl Output {
    /// Output to `sink`. Without `idle`, the part of a line waits for its end.
    pub fn new(sink: Box<dyn Write + Send>, idle: Option<Idle>) -> Self {
        Output {
            sink,
            line: Vec::with_capacity(LINE),
            idle,
        }
    }

    /// Takes bytes from the guest.
    pub fn put(&mut self, bytes: &[u8]) {
        self.line.extend_from_slice(bytes);
        if bytes.contains(&b'\n') || self.line.len() >= LINE {
            self.drain();
        } else if let Some(idle) = &self.idle
            && !self.line.is_empty()
        {
            idle.ask();
        }
    }

    /// Writes out what has gathered.
    pub fn drain(&mut self) {
        if self.line.is_empty() {
            return;
        }
        let result = self
            .sink
            .write_all(&self.line)
            .and_then(|()| self.sink.flush());
        if let Err(e) = result {
            log::debug!("console output lost: {e}");
        }
        self.line.clear();
    }
}

/// The UART model flushes after each byte, which is just what is to be avoided.
impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.put(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Adds one to an event. It can only fail when the counter is full, and then the event is
/// pending anyway.
pub fn signal(event: &EventFd) {
    if let Err(e) = event.write(1) {
        log::debug!("event: {e}");
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::Mutex;

    /// A sink that remembers each write.
    #[derive(Clone, Default)]
    pub(crate) struct Log(pub(crate) Arc<Mutex<Vec<Vec<u8>>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().push(bytes.to_vec());
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    pub(crate) fn event() -> Arc<EventFd> {
        Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap())
    }

    #[test]
    fn a_line_is_one_write() {
        let (log, event) = (Log::default(), event());
        let mut out = Output::new(Box::new(log.clone()), Some(Idle::new(event.clone())));
        for byte in b"hello\nwor" {
            out.put(&[*byte]);
        }
        assert_eq!(*log.0.lock().unwrap(), [b"hello\n"]);
        assert_eq!(event.read().unwrap(), 1, "asked once for all of it");
        out.drain();
        out.drain();
        assert_eq!(*log.0.lock().unwrap(), [&b"hello\n"[..], b"wor"]);
    }

    #[test]
    fn without_idle_a_line_waits_for_its_end() {
        let log = Log::default();
        let mut out = Output::new(Box::new(log.clone()), None);
        out.put(b"one ");
        assert!(log.0.lock().unwrap().is_empty());
        out.put(b"line\n");
        assert_eq!(*log.0.lock().unwrap(), [b"one line\n"]);
    }

    #[test]
    fn rearming_lets_it_ask_again() {
        let event = event();
        let idle = Idle::new(event.clone());
        let mut out = Output::new(Box::new(std::io::sink()), Some(idle.clone()));
        out.put(b"a");
        assert_eq!(event.read().unwrap(), 1);
        out.put(b"b");
        assert!(event.read().is_err());
        idle.rearm();
        out.put(b"c");
        assert_eq!(event.read().unwrap(), 1);
    }

    #[test]
    fn an_endless_line_is_cut() {
        let log = Log::default();
        let mut out = Output::new(Box::new(log.clone()), Some(Idle::new(event())));
        for _ in 0..LINE {
            out.put(b"x");
        }
        assert_eq!(log.0.lock().unwrap().len(), 1);
    }
}
