//! A terminal: the line discipline between a serial port and the processes that read it.
//!
//! ```text
//!   port ──input()──► line being edited ──newline──► ready ──read()──► process
//!            └─ echo, signals
//!   process ──output()──► port      (newline becomes carriage return and newline)
//! ```
//!
//! In canonical mode a read takes at most one line; in raw mode whatever is there. VTIME is not
//! observed, nor is flow control: a byte port that umbra drives itself has no use for either.

use crate::signal::Signal;
use crate::{Events, Readiness, Stop};
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The most bytes that wait to be read, and the longest line (Linux's N_TTY_BUF_SIZE).
const CAPACITY: usize = 4096;

// include/uapi/asm-generic/termbits.h and termbits-common.h
const VINTR: usize = 0;
const VQUIT: usize = 1;
const VERASE: usize = 2;
const VKILL: usize = 3;
const VEOF: usize = 4;
const VMIN: usize = 6;
const VSUSP: usize = 10;
const VEOL: usize = 11;
const VWERASE: usize = 14;
const INLCR: u32 = 0o100;
const IGNCR: u32 = 0o200;
const ICRNL: u32 = 0o400;
const IXON: u32 = 0o2000;
const IUTF8: u32 = 0o40000;
const OPOST: u32 = 0o1;
const ONLCR: u32 = 0o4;
const ISIG: u32 = 0o1;
const ICANON: u32 = 0o2;
const ECHO: u32 = 0o10;
const ECHOE: u32 = 0o20;
const ECHOK: u32 = 0o40;
const ECHONL: u32 = 0o100;
const NOFLSH: u32 = 0o200;
const ECHOCTL: u32 = 0o1000;
const ECHOKE: u32 = 0o4000;
const IEXTEN: u32 = 0o100000;
const CS8_CREAD_HUPCL: u32 = 0o60 | 0o200 | 0o2000;
const B38400: u32 = 0o17;

/// The kernel's `struct termios`, of TCGETS and TCSETS (not the C library's).
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Termios {
    /// Input modes.
    pub iflag: u32,
    /// Output modes.
    pub oflag: u32,
    /// Control modes; kept, without effect.
    pub cflag: u32,
    /// Local modes.
    pub lflag: u32,
    /// Line discipline; kept, without effect.
    pub line: u8,
    /// Control characters.
    pub cc: [u8; 19],
}

impl Termios {
    /// What Linux starts a terminal with.
    pub const STANDARD: Self = Self {
        iflag: ICRNL | IXON,
        oflag: OPOST | ONLCR,
        cflag: B38400 | CS8_CREAD_HUPCL,
        lflag: ISIG | ICANON | ECHO | ECHOE | ECHOK | ECHOCTL | ECHOKE | IEXTEN,
        line: 0,
        cc: [
            3, 28, 127, 21, 4, 0, 1, 0, 17, 19, 26, 0, 18, 15, 23, 22, 0, 0, 0,
        ],
    };

    const fn is_canonical(&self) -> bool {
        self.lflag & ICANON != 0
    }

    /// Whether `byte` is the control character `which`; zero switches a character off.
    fn is(&self, which: usize, byte: u8) -> bool {
        byte != 0 && self.cc.get(which) == Some(&byte)
    }
}

/// `struct winsize`, of TIOCGWINSZ and TIOCSWINSZ.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Winsize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub cols: u16,
    /// Unused.
    pub xpixel: u16,
    /// Unused.
    pub ypixel: u16,
}

/// One terminal.
#[derive(Debug)]
pub struct Tty {
    termios: Termios,
    /// The window's size, as it was last set.
    pub winsize: Winsize,
    /// The line being edited (canonical mode).
    line: Vec<u8>,
    /// Bytes that can be read.
    ready: VecDeque<u8>,
    /// The lengths of the lines in `ready`, in canonical mode; an end of file is a line of zero.
    lines: VecDeque<usize>,
    generation: u64,
}

impl Default for Tty {
    fn default() -> Self {
        Self::new()
    }
}

impl Tty {
    /// A terminal in canonical mode with echo.
    pub const fn new() -> Self {
        Self {
            termios: Termios::STANDARD,
            winsize: Winsize {
                rows: 24,
                cols: 80,
                xpixel: 0,
                ypixel: 0,
            },
            line: Vec::new(),
            ready: VecDeque::new(),
            lines: VecDeque::new(),
            generation: 0,
        }
    }

    /// TCGETS.
    pub const fn termios(&self) -> Termios {
        self.termios
    }

    /// TCSETS and TCSETSW (output never waits here).
    pub fn set_termios(&mut self, termios: Termios) {
        let was_canonical = self.termios.is_canonical();
        self.termios = termios;
        if was_canonical && !termios.is_canonical() {
            self.ready.extend(self.line.drain(..));
            self.lines.clear();
            self.touch();
        } else if !was_canonical && termios.is_canonical() && !self.ready.is_empty() {
            self.lines.push_back(self.ready.len());
        }
    }

    /// TCFLSH of the input, and the first half of TCSETSF: forgets what was not read.
    pub fn flush_input(&mut self) {
        self.line.clear();
        self.ready.clear();
        self.lines.clear();
    }

    /// A byte has come in. What the terminal shows is appended to `echo`; the signal, if any, is for
    /// the foreground process group.
    pub fn input(&mut self, byte: u8, echo: &mut Vec<u8>) -> Option<Signal> {
        let byte = match byte {
            b'\r' if self.termios.iflag & IGNCR != 0 => return None,
            b'\r' if self.termios.iflag & ICRNL != 0 => b'\n',
            b'\n' if self.termios.iflag & INLCR != 0 => b'\r',
            byte => byte,
        };
        if let Some(signal) = self.signal_for(byte) {
            if self.termios.lflag & NOFLSH == 0 {
                self.flush_input();
            }
            self.echo(byte, echo);
            return Some(signal);
        }
        if self.termios.is_canonical() {
            self.edit(byte, echo);
        } else if self.ready.len() < CAPACITY {
            self.ready.push_back(byte);
            self.echo(byte, echo);
            self.touch();
        }
        None
    }

    /// Takes bytes for a process; 0 is an end of file (canonical), or nothing there (raw, VMIN = 0).
    pub fn read(&mut self, buf: &mut [u8]) -> Result<usize, Stop> {
        if buf.is_empty() {
            return Ok(0);
        }
        let available = if self.termios.is_canonical() {
            *self.lines.front().ok_or(Stop::WouldBlock)?
        } else if self.ready.is_empty() && self.termios.cc.get(VMIN) != Some(&0) {
            return Err(Stop::WouldBlock);
        } else {
            self.ready.len()
        };
        let count = available.min(buf.len());
        for (to, from) in buf.iter_mut().zip(self.ready.drain(..count)) {
            *to = from;
        }
        if count == available {
            self.lines.pop_front();
        } else if let Some(rest) = self.lines.front_mut() {
            *rest -= count;
        }
        Ok(count)
    }

    /// Appends to `port` what `bytes`, written by a process, look like on the wire.
    pub fn output(&self, bytes: &[u8], port: &mut Vec<u8>) {
        let translate = self.termios.oflag & (OPOST | ONLCR) == OPOST | ONLCR;
        for &byte in bytes {
            if translate && byte == b'\n' {
                port.push(b'\r');
            }
            port.push(byte);
        }
    }

    /// Bytes that a read would find (FIONREAD).
    pub fn queued(&self) -> usize {
        if self.termios.is_canonical() {
            self.lines.iter().sum()
        } else {
            self.ready.len()
        }
    }

    /// The state for poll. Output never waits.
    pub fn readiness(&self) -> Readiness {
        let readable = if self.termios.is_canonical() {
            !self.lines.is_empty()
        } else {
            !self.ready.is_empty()
        };
        let mut events = Events::WRITABLE;
        events.set(Events::READABLE, readable);
        Readiness {
            events,
            generation: self.generation,
        }
    }

    fn signal_for(&self, byte: u8) -> Option<Signal> {
        if self.termios.lflag & ISIG == 0 {
            return None;
        }
        [
            (VINTR, Signal::INT),
            (VQUIT, Signal::QUIT),
            (VSUSP, Signal::TSTP),
        ]
        .into_iter()
        .find(|(which, _)| self.termios.is(*which, byte))
        .map(|(_, signal)| signal)
    }

    fn edit(&mut self, byte: u8, echo: &mut Vec<u8>) {
        if self.termios.is(VERASE, byte) {
            self.rub_out(1, echo);
        } else if self.termios.is(VKILL, byte) {
            self.rub_out(self.line.len(), echo);
        } else if self.termios.is(VWERASE, byte) && self.termios.lflag & IEXTEN != 0 {
            let word_end = self
                .line
                .iter()
                .rposition(|b| *b != b' ')
                .map_or(0, |at| at + 1);
            let before = self.line.iter().take(word_end).rposition(|b| *b == b' ');
            self.rub_out(self.line.len() - before.map_or(0, |at| at + 1), echo);
        } else if self.termios.is(VEOF, byte) {
            self.finish_line();
        } else if byte == b'\n' || self.termios.is(VEOL, byte) {
            self.line.push(byte);
            self.echo(byte, echo);
            self.finish_line();
        } else if self.line.len() + self.ready.len() < CAPACITY - 1 {
            self.line.push(byte);
            self.echo(byte, echo);
        }
    }

    fn finish_line(&mut self) {
        // Many empty lines must not take more memory than one full buffer.
        if self.lines.len() < CAPACITY {
            self.lines.push_back(self.line.len());
            self.ready.extend(self.line.drain(..));
            self.touch();
        } else {
            self.line.clear();
        }
    }

    /// Takes back the last `count` bytes, or a few more: with IUTF8 a character goes as a whole.
    fn rub_out(&mut self, count: usize, echo: &mut Vec<u8>) {
        let keep = self.line.len().saturating_sub(count);
        let utf8 = self.termios.iflag & IUTF8 != 0;
        while self.line.len() > keep {
            let mut last = self.line.pop();
            while utf8 && matches!(last, Some(0x80..0xc0)) {
                last = self.line.pop();
            }
            let Some(byte) = last else { return };
            if self.termios.lflag & (ECHO | ECHOE) == ECHO | ECHOE {
                let cells = if self.is_shown_as_caret(byte) { 2 } else { 1 };
                for _ in 0..cells {
                    echo.extend_from_slice(b"\x08 \x08");
                }
            }
        }
    }

    fn echo(&self, byte: u8, echo: &mut Vec<u8>) {
        let lflag = self.termios.lflag;
        if lflag & ECHO == 0 && !(byte == b'\n' && lflag & (ECHONL | ICANON) == ECHONL | ICANON) {
            return;
        }
        if self.is_shown_as_caret(byte) {
            echo.extend_from_slice(&[b'^', byte ^ 0x40]);
        } else {
            self.output(&[byte], echo);
        }
    }

    fn is_shown_as_caret(&self, byte: u8) -> bool {
        byte.is_ascii_control()
            && !matches!(byte, b'\n' | b'\t')
            && self.termios.lflag & ECHOCTL != 0
    }

    fn touch(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::string::String;

    fn typed(tty: &mut Tty, bytes: &[u8]) -> (String, Vec<Signal>) {
        let mut echo = Vec::new();
        let signals = bytes
            .iter()
            .filter_map(|b| tty.input(*b, &mut echo))
            .collect();
        (String::from_utf8_lossy(&echo).into_owned(), signals)
    }

    fn line(tty: &mut Tty) -> Result<String, Stop> {
        let mut buf = [0; 64];
        let count = tty.read(&mut buf)?;
        Ok(String::from_utf8_lossy(&buf[..count]).into_owned())
    }

    fn raw() -> Tty {
        let mut tty = Tty::new();
        tty.set_termios(Termios {
            iflag: 0,
            oflag: 0,
            lflag: 0,
            ..tty.termios()
        });
        tty
    }

    #[test]
    fn layouts_are_the_kernels() {
        assert_eq!((size_of::<Termios>(), size_of::<Winsize>()), (36, 8));
    }

    #[test]
    fn a_line_is_readable_when_it_ends() {
        let mut tty = Tty::new();
        assert_eq!(typed(&mut tty, b"ab").0, "ab");
        assert_eq!(line(&mut tty), Err(Stop::WouldBlock));
        assert_eq!(tty.readiness().events, Events::WRITABLE);
        assert_eq!(typed(&mut tty, b"\rcd\n").0, "\r\ncd\r\n");
        assert_eq!(tty.queued(), 6);
        assert_eq!(line(&mut tty).unwrap(), "ab\n");
        let mut small = [0; 2];
        assert_eq!(tty.read(&mut small), Ok(2));
        assert_eq!(line(&mut tty).unwrap(), "\n");
    }

    #[test]
    fn editing_keys_edit() {
        let mut tty = Tty::new();
        assert_eq!(typed(&mut tty, b"ax\x7fb\n").0, "ax\x08 \x08b\r\n");
        assert_eq!(line(&mut tty).unwrap(), "ab\n");
        typed(&mut tty, b"one two  \x17three\n");
        assert_eq!(line(&mut tty).unwrap(), "one three\n");
        typed(&mut tty, b"lost\x15kept\n");
        assert_eq!(line(&mut tty).unwrap(), "kept\n");
        assert_eq!(typed(&mut tty, b"\x01\x7f").0, "^A\x08 \x08\x08 \x08");
    }

    #[test]
    fn a_character_is_rubbed_out_whole_with_iutf8() {
        for (flag, left) in [(0, 1), (IUTF8, 0)] {
            let mut tty = Tty::new();
            let iflag = tty.termios().iflag | flag;
            tty.set_termios(Termios {
                iflag,
                ..tty.termios()
            });
            assert_eq!(typed(&mut tty, "é\x7f".as_bytes()).0, "é\x08 \x08");
            assert_eq!(tty.line.len(), left);
        }
    }

    #[test]
    fn end_of_file_ends_a_read() {
        let mut tty = Tty::new();
        typed(&mut tty, b"ab\x04");
        assert_eq!(line(&mut tty).unwrap(), "ab");
        typed(&mut tty, b"\x04");
        assert_eq!(tty.readiness().events, Events::WRITABLE | Events::READABLE);
        assert_eq!(line(&mut tty).unwrap(), "");
        assert_eq!(line(&mut tty), Err(Stop::WouldBlock));
    }

    #[test]
    fn control_characters_signal_only_with_isig() {
        let mut tty = Tty::new();
        let (shown, signals) = typed(&mut tty, b"lost\x03\x1c\x1akept\n");
        assert_eq!(shown, "lost^C^\\^Zkept\r\n");
        assert_eq!(signals, [Signal::INT, Signal::QUIT, Signal::TSTP]);
        assert_eq!(line(&mut tty).unwrap(), "kept\n");
        let mut tty = raw();
        assert_eq!(typed(&mut tty, b"\x03\r\n"), (String::new(), [].into()));
        assert_eq!(line(&mut tty).unwrap(), "\x03\r\n");
    }

    #[test]
    fn raw_reads_wait_by_vmin() {
        let mut tty = raw();
        assert_eq!(line(&mut tty), Err(Stop::WouldBlock));
        let mut termios = tty.termios();
        termios.cc[VMIN] = 0;
        tty.set_termios(termios);
        assert_eq!(line(&mut tty).unwrap(), "");
    }

    #[test]
    fn switching_modes_loses_nothing() {
        let mut tty = Tty::new();
        typed(&mut tty, b"one\ntwo");
        tty.set_termios(raw().termios());
        assert_eq!(tty.queued(), 7);
        tty.set_termios(Termios::STANDARD);
        assert_eq!(line(&mut tty).unwrap(), "one\ntwo");
    }

    #[test]
    fn output_is_translated_only_if_asked() {
        let mut port = Vec::new();
        Tty::new().output(b"a\n", &mut port);
        raw().output(b"b\n", &mut port);
        assert_eq!(port, b"a\r\nb\n");
    }

    proptest! {
        #[test]
        fn memory_is_bounded_and_nothing_panics(
            runs in prop::collection::vec(
                (prop_oneof![Just(b'a'), Just(b'\n'), Just(4), any::<u8>()], 1usize..3000),
                0..12,
            ),
            canonical: bool,
        ) {
            let mut tty = if canonical { Tty::new() } else { raw() };
            for (byte, count) in runs {
                typed(&mut tty, &std::vec![byte; count]);
            }
            prop_assert!(tty.ready.len() + tty.line.len() <= 2 * CAPACITY && tty.lines.len() <= CAPACITY);
            prop_assert_eq!(tty.lines.iter().sum::<usize>(), if canonical { tty.ready.len() } else { 0 });
        }
    }
}
