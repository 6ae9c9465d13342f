//! The main thread: input, idle output, virtio queues, and the end.
//!
//! Input flows only into room the guest has. While there is none, stdin is not even watched,
//! so an impatient writer waits in its pipe and nothing gathers here.

use std::fs::File;
use std::io::{IsTerminal, Read, Stdin, StdinLock};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::terminal::Terminal;

use crate::bus::{Shared, lock};
use crate::console::{Idle, Input};
use crate::error::{Context, Result};
use crate::escape::Escape;

/// How long output without a newline may wait, in milliseconds.
const IDLE_MS: i32 = 5;

const STOP: u64 = 0;
const STDIN: u64 = 1;
const READY: u64 = 2;
const IDLE: u64 = 3;
const NOTIFY: u64 = 4;

/// A device queue that the event loop serves.
pub trait Notified: Send {
    /// The guest has put something into `queue`.
    fn notified(&mut self, queue: usize);
}

/// One event and the queue that it is for.
pub struct Notify {
    /// Signalled by the guest's write.
    pub event: Arc<EventFd>,
    /// The device to tell.
    pub device: Shared<dyn Notified>,
    /// Its queue.
    pub queue: usize,
}

/// The console's end in the event loop.
pub struct ConsoleEnd {
    /// Where input goes.
    pub input: Shared<dyn Input>,
    /// Signalled when there is room for input again.
    pub ready: Arc<EventFd>,
    /// Signalled when output waits for somebody to drain it.
    pub idle_event: Arc<EventFd>,
    /// To be rearmed before draining.
    pub idle: Idle,
}

/// Why the loop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The stop event.
    Stopped,
    /// Ctrl-A x.
    Left,
}

/// Restores the terminal when it goes.
struct RawTerminal(StdinLock<'static>);

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Err(e) = self.0.set_canon_mode() {
            log::warn!("terminal: {e}");
        }
    }
}

/// How stdin is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// epoll tells when it is readable.
    Watched,
    /// Readable, but the guest has no room.
    Held,
    /// A file, which epoll refuses; always readable.
    File,
    /// At its end.
    Ended,
}

/// Serves events until `stop` is signalled or the user leaves.
pub fn run(stop: &EventFd, console: Option<&ConsoleEnd>, notifies: &[Notify]) -> Result<Ended> {
    let epoll = Epoll::new().context("epoll")?;
    let watch = |fd: RawFd, token: u64| {
        let event = EpollEvent::new(EventSet::IN, token);
        epoll.ctl(ControlOperation::Add, fd, event)
    };
    watch(stop.as_raw_fd(), STOP).context("epoll")?;
    for (token, notify) in (NOTIFY..).zip(notifies) {
        watch(notify.event.as_raw_fd(), token).context("epoll")?;
    }

    let stdin = std::io::stdin();
    // std's own stdin reads ahead into a buffer that epoll knows nothing of.
    let mut bytes = File::from(stdin.as_fd().try_clone_to_owned().context("stdin")?);
    let mut source = Source::Ended;
    let mut escape = None;
    let mut _raw = None;
    if let Some(console) = console {
        watch(console.ready.as_raw_fd(), READY).context("epoll")?;
        watch(console.idle_event.as_raw_fd(), IDLE).context("epoll")?;
        source = match watch(stdin.as_raw_fd(), STDIN) {
            Ok(()) => Source::Watched,
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => Source::File,
            Err(e) => {
                log::info!("stdin: {e}; the guest gets no input");
                Source::Ended
            }
        };
        if stdin.is_terminal() {
            let terminal = stdin.lock();
            terminal.set_raw_mode().context("terminal")?;
            _raw = Some(RawTerminal(terminal));
            escape = Some(Escape::default());
        }
    }

    let mut events = vec![EpollEvent::default(); 16];
    let mut timeout = -1;
    loop {
        let count = match epoll.wait(timeout, &mut events) {
            Ok(count) => count,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e).context("epoll"),
        };
        // A busy device must not starve the console, so old output leaves on any wake-up.
        if timeout >= 0
            && let Some(console) = console
        {
            timeout = -1;
            console.idle.rearm();
            lock(&console.input).drain();
        }
        let mut readable = source == Source::File;
        for event in &events[..count] {
            match event.data() {
                STOP => return Ok(Ended::Stopped),
                STDIN => readable = true,
                READY => {
                    clear(console.map(|c| &c.ready));
                    if source == Source::Held {
                        watch(stdin.as_raw_fd(), STDIN).context("epoll")?;
                        source = Source::Watched;
                    }
                }
                IDLE => {
                    clear(console.map(|c| &c.idle_event));
                    timeout = IDLE_MS;
                }
                token => {
                    let index = usize::try_from(token.saturating_sub(NOTIFY)).unwrap_or(usize::MAX);
                    if let Some(notify) = notifies.get(index) {
                        clear(Some(&notify.event));
                        lock(&notify.device).notified(notify.queue);
                    }
                }
            }
        }
        let Some(console) = console.filter(|_| readable) else {
            continue;
        };
        match feed(&mut bytes, console, &mut escape)? {
            Fed::Some => {}
            Fed::Full if source == Source::File => {}
            Fed::Full => {
                unwatch(&epoll, &stdin)?;
                source = Source::Held;
            }
            Fed::End => {
                if source == Source::Watched {
                    unwatch(&epoll, &stdin)?;
                }
                source = Source::Ended;
            }
            Fed::Left => return Ok(Ended::Left),
        }
        // A file has no readiness to wait for: come back at once while the guest has room.
        if source == Source::File && lock(&console.input).room() > 0 {
            crate::console::signal(&console.ready);
        }
    }
}

enum Fed {
    Some,
    Full,
    End,
    Left,
}

/// Moves input from stdin to the guest, as much as it has room for.
fn feed(stdin: &mut File, console: &ConsoleEnd, escape: &mut Option<Escape>) -> Result<Fed> {
    // An escape may hand back a byte that it held, so one place stays free for it.
    let room = lock(&console.input).room().saturating_sub(1);
    if room == 0 {
        return Ok(Fed::Full);
    }
    let mut buffer = [0; 256];
    let limit = room.min(buffer.len());
    let count = match stdin.read(&mut buffer[..limit]) {
        Ok(0) => return Ok(Fed::End),
        Ok(count) => count,
        Err(e) if e.kind() == std::io::ErrorKind::Interrupted => return Ok(Fed::Some),
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(Fed::Some),
        Err(e) => {
            log::info!("stdin: {e}; no more input");
            return Ok(Fed::End);
        }
    };
    match escape {
        None => lock(&console.input).push(&buffer[..count]),
        Some(escape) => match escape.filter(&buffer[..count]) {
            Some(bytes) => lock(&console.input).push(&bytes),
            None => return Ok(Fed::Left),
        },
    }
    Ok(Fed::Some)
}

fn clear(event: Option<&Arc<EventFd>>) {
    if let Some(event) = event {
        // Nonblocking; a spurious wake-up finds it empty.
        let _ = event.read();
    }
}

fn unwatch(epoll: &Epoll, stdin: &Stdin) -> Result<()> {
    epoll
        .ctl(
            ControlOperation::Delete,
            stdin.as_raw_fd(),
            EpollEvent::default(),
        )
        .context("epoll")
}
