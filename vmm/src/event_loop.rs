//! The main thread: input, idle output, virtio queues, and the end.
//!
//! Input flows only into room the guest has. While there is none, stdin is not even watched,
//! so an impatient writer waits in its pipe and nothing gathers here.

use std::fs::File;
use std::io::{ErrorKind, IsTerminal, Read};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::{Shared, lock};
use crate::console::{Idle, Input, signal};
use crate::error::{Context, Result};
use crate::escape::Escape;
use crate::logger;

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

/// The terminal of stdin, raw in both directions: what the guest's terminal made of lines must not be
/// made of them again. Restores it when it goes.
struct RawTerminal {
    terminal: std::io::Stdin,
    before: Termios,
}

impl RawTerminal {
    fn new(terminal: std::io::Stdin) -> std::io::Result<Self> {
        let before = tcgetattr(&terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&terminal, OptionalActions::Now, &raw)?;
        logger::raw(true);
        Ok(RawTerminal { terminal, before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        logger::raw(false);
        if let Err(e) = tcsetattr(&self.terminal, OptionalActions::Now, &self.before) {
            log::warn!("terminal: {e}");
        }
    }
}

/// Waits for descriptors.
struct Poller(Epoll);

impl Poller {
    fn watch(&self, fd: RawFd, token: u64) -> std::io::Result<()> {
        let event = EpollEvent::new(EventSet::IN, token);
        self.0.ctl(ControlOperation::Add, fd, event)
    }

    fn unwatch(&self, fd: RawFd) -> std::io::Result<()> {
        self.0
            .ctl(ControlOperation::Delete, fd, EpollEvent::default())
    }

    /// Waits for at most `timeout` milliseconds, or forever when that is negative.
    fn wait(&self, timeout: i32, events: &mut [EpollEvent]) -> Result<usize> {
        loop {
            match self.0.wait(timeout, events) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                other => return other.context("epoll"),
            }
        }
    }
}

/// Whether a machine's console has this process's standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stdin {
    /// It has.
    Open,
    /// It is another's.
    Closed,
}

/// Serves events until `stop` is signalled or the user leaves.
pub fn run(
    stop: &EventFd,
    console: Option<&ConsoleEnd>,
    stdin: Stdin,
    notifies: &[Notify],
) -> Result<Ended> {
    let poller = Poller(Epoll::new().context("epoll")?);
    poller.watch(stop.as_raw_fd(), STOP).context("epoll")?;
    for (token, notify) in (NOTIFY..).zip(notifies) {
        let fd = notify.event.as_raw_fd();
        poller.watch(fd, token).context("epoll")?;
    }
    let mut typed = console
        .map(|console| Typed::open(&poller, console, stdin))
        .transpose()?;

    let mut events = vec![EpollEvent::default(); 16];
    let mut timeout = -1;
    loop {
        let count = poller.wait(timeout, &mut events)?;
        // A busy device must not starve the console, so old output leaves on any wake-up.
        if timeout >= 0 {
            timeout = -1;
            if let Some(console) = console {
                console.idle.rearm();
                lock(&console.input).drain();
            }
        }
        for event in &events[..count] {
            match event.data() {
                STOP => return Ok(Ended::Stopped),
                IDLE => {
                    console.iter().for_each(|c| clear(&c.idle_event));
                    timeout = IDLE_MS;
                }
                token @ (STDIN | READY) => {
                    if let Some(typed) = &mut typed
                        && typed.event(&poller, token)? == Fed::Left
                    {
                        return Ok(Ended::Left);
                    }
                }
                token => {
                    let index = usize::try_from(token - NOTIFY).context("epoll")?;
                    if let Some(notify) = notifies.get(index) {
                        clear(&notify.event);
                        lock(&notify.device).notified(notify.queue);
                    }
                }
            }
        }
    }
}

/// An event is nonblocking; a spurious wake-up finds it empty, which is no error.
fn clear(event: &EventFd) {
    let _ = event.read();
}

/// How stdin is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// epoll tells when it is readable.
    Watched,
    /// Readable, but the guest has no room.
    Held,
    /// A file, which epoll refuses: always readable.
    File,
    /// At its end, or never there.
    Ended,
}

/// What an attempt to feed the guest came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fed {
    /// It went on, or there was nothing.
    On,
    /// The guest has no room.
    Full,
    /// No more input will come.
    End,
    /// The user typed Ctrl-A x.
    Left,
}

/// stdin on its way to a console.
struct Typed<'a> {
    console: &'a ConsoleEnd,
    /// std's own stdin reads ahead into a buffer that epoll knows nothing of, hence a file.
    stdin: Option<File>,
    source: Source,
    escape: Option<Escape>,
    _raw: Option<RawTerminal>,
}

impl<'a> Typed<'a> {
    fn open(poller: &Poller, console: &'a ConsoleEnd, stdin: Stdin) -> Result<Self> {
        for (event, token) in [(&console.ready, READY), (&console.idle_event, IDLE)] {
            poller.watch(event.as_raw_fd(), token).context("epoll")?;
        }
        if stdin == Stdin::Closed {
            return Ok(Typed {
                console,
                stdin: None,
                source: Source::Ended,
                escape: None,
                _raw: None,
            });
        }
        let terminal = std::io::stdin();
        let stdin = terminal.as_fd().try_clone_to_owned().map(File::from);
        let watched = stdin
            .as_ref()
            .map(|stdin| poller.watch(stdin.as_raw_fd(), STDIN));
        let source = match watched {
            Ok(Ok(())) => Source::Watched,
            Ok(Err(e)) if e.raw_os_error() == Some(libc::EPERM) => Source::File,
            Ok(Err(_)) | Err(_) => {
                log::info!("stdin cannot be read; the guest gets no input");
                Source::Ended
            }
        };
        let (mut escape, mut raw) = (None, None);
        if terminal.is_terminal() {
            raw = Some(RawTerminal::new(terminal).context("terminal")?);
            escape = Some(Escape::default());
        }
        Ok(Typed {
            console,
            stdin: stdin.ok(),
            source,
            escape,
            _raw: raw,
        })
    }

    /// stdin is readable or the guest has room.
    fn event(&mut self, poller: &Poller, token: u64) -> Result<Fed> {
        let Some(fd) = self.stdin.as_ref().map(AsRawFd::as_raw_fd) else {
            clear(&self.console.ready);
            return Ok(Fed::End);
        };
        if token == READY {
            clear(&self.console.ready);
            match self.source {
                Source::Held => {
                    poller.watch(fd, STDIN).context("epoll")?;
                    self.source = Source::Watched;
                    return Ok(Fed::On);
                }
                // epoll will tell, or nothing will ever come.
                Source::Watched | Source::Ended => return Ok(Fed::On),
                Source::File => {}
            }
        }
        let fed = self.feed();
        match (fed, self.source) {
            (Fed::Full, Source::Watched) => {
                poller.unwatch(fd).context("epoll")?;
                self.source = Source::Held;
            }
            (Fed::End, Source::Watched) => {
                poller.unwatch(fd).context("epoll")?;
                self.source = Source::Ended;
            }
            (Fed::End, _) => self.source = Source::Ended,
            // Nobody tells that a file has more, so come back while the guest has room.
            (Fed::On, Source::File) => signal(&self.console.ready),
            (Fed::On | Fed::Full | Fed::Left, _) => {}
        }
        Ok(fed)
    }

    /// Moves input to the guest, as much as it has room for.
    fn feed(&mut self) -> Fed {
        // An escape may hand back a byte that it held, so one place stays free for it.
        let room = lock(&self.console.input).room().saturating_sub(1);
        if room == 0 {
            return Fed::Full;
        }
        let mut buffer = [0; 256];
        let limit = room.min(buffer.len());
        let Some(stdin) = &mut self.stdin else {
            return Fed::End;
        };
        let count = match stdin.read(&mut buffer[..limit]) {
            Ok(0) => return Fed::End,
            Ok(count) => count,
            Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {
                return Fed::On;
            }
            Err(e) => {
                log::info!("stdin: {e}; no more input");
                return Fed::End;
            }
        };
        match &mut self.escape {
            None => lock(&self.console.input).push(&buffer[..count]),
            Some(escape) => match escape.filter(&buffer[..count]) {
                Some(bytes) => lock(&self.console.input).push(&bytes),
                None => return Fed::Left,
            },
        }
        Fed::On
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::tests::event;
    use std::io::Write;
    use std::sync::Mutex;
    use vmm_sys_util::tempfile::TempFile;

    /// A guest with room for a few bytes at a time.
    struct Guest {
        taken: Vec<u8>,
        room: usize,
    }

    impl Input for Guest {
        fn room(&mut self) -> usize {
            self.room
        }
        fn push(&mut self, bytes: &[u8]) {
            self.taken.extend_from_slice(bytes);
            self.room -= bytes.len();
        }
        fn drain(&mut self) {}
    }

    struct Rig {
        poller: Poller,
        end: ConsoleEnd,
        guest: Shared<Guest>,
    }

    fn rig() -> Rig {
        let guest = Arc::new(Mutex::new(Guest {
            taken: vec![],
            room: 0,
        }));
        let idle_event = event();
        let end = ConsoleEnd {
            input: guest.clone(),
            ready: event(),
            idle: Idle::new(idle_event.clone()),
            idle_event,
        };
        let poller = Poller(Epoll::new().unwrap());
        poller.watch(end.ready.as_raw_fd(), READY).unwrap();
        Rig { poller, end, guest }
    }

    impl Rig {
        fn typed(&self, stdin: File, source: Source) -> Typed<'_> {
            if source == Source::Watched {
                self.poller.watch(stdin.as_raw_fd(), STDIN).unwrap();
            }
            Typed {
                console: &self.end,
                stdin: Some(stdin),
                source,
                escape: None,
                _raw: None,
            }
        }

        /// Serves all that is pending.
        fn settle(&self, typed: &mut Typed<'_>) {
            let mut events = [EpollEvent::default(); 4];
            loop {
                let count = self.poller.wait(0, &mut events).unwrap();
                if count == 0 {
                    return;
                }
                for event in &events[..count] {
                    typed.event(&self.poller, event.data()).unwrap();
                }
            }
        }

        fn make_room(&self, room: usize) {
            lock(&self.guest).room = room;
            signal(&self.end.ready);
        }
    }

    #[test]
    fn a_pipe_waits_while_the_guest_has_no_room() {
        let rig = rig();
        let (read, mut write) = std::io::pipe().unwrap();
        let mut typed = rig.typed(
            File::from(std::os::fd::OwnedFd::from(read)),
            Source::Watched,
        );
        write.write_all(b"abcdefgh").unwrap();
        rig.settle(&mut typed);
        assert_eq!(
            (typed.source, lock(&rig.guest).taken.len()),
            (Source::Held, 0)
        );
        rig.make_room(6);
        rig.settle(&mut typed);
        assert_eq!(lock(&rig.guest).taken, b"abcde");
        rig.make_room(64);
        rig.settle(&mut typed);
        assert_eq!(lock(&rig.guest).taken, b"abcdefgh");
        assert_eq!(typed.source, Source::Watched);
        drop(write);
        rig.settle(&mut typed);
        assert_eq!(typed.source, Source::Ended);
        rig.make_room(64);
        rig.settle(&mut typed);
    }

    #[test]
    fn a_file_is_read_to_its_end_without_readiness() {
        let rig = rig();
        let file = TempFile::new().unwrap();
        let content: Vec<u8> = (0..1000u32).map(|n| n as u8).collect();
        file.as_file().write_all(&content).unwrap();
        let stdin = File::open(file.as_path()).unwrap();
        assert_eq!(
            rig.poller
                .watch(stdin.as_raw_fd(), STDIN)
                .unwrap_err()
                .raw_os_error(),
            Some(libc::EPERM)
        );
        let mut typed = rig.typed(stdin, Source::File);
        rig.make_room(300);
        rig.settle(&mut typed);
        assert_eq!(lock(&rig.guest).taken, content[..299]);
        rig.make_room(5000);
        rig.settle(&mut typed);
        assert_eq!(lock(&rig.guest).taken, content);
        assert_eq!(typed.source, Source::Ended);
    }
}
