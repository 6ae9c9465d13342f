//! The way out of a raw terminal: Ctrl-A x ends the VM, Ctrl-A Ctrl-A is one Ctrl-A.

const CTRL_A: u8 = 1;

/// Remembers a Ctrl-A between two reads.
#[derive(Debug, Default)]
pub struct Escape {
    pending: bool,
}

impl Escape {
    /// What of `typed` is for the guest, or `None` when the user asked to leave.
    pub fn filter(&mut self, typed: &[u8]) -> Option<Vec<u8>> {
        let mut bytes = Vec::with_capacity(typed.len());
        for &byte in typed {
            match (self.pending, byte) {
                (true, b'x') => return None,
                (true, CTRL_A) => bytes.push(CTRL_A),
                (true, other) => bytes.extend([CTRL_A, other]),
                (false, CTRL_A) => {
                    self.pending = true;
                    continue;
                }
                (false, other) => bytes.push(other),
            }
            self.pending = false;
        }
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_also_across_two_reads() {
        assert_eq!(Escape::default().filter(b"ab\x01x"), None);
        let mut escape = Escape::default();
        assert_eq!(escape.filter(b"a\x01"), Some(b"a".to_vec()));
        assert_eq!(escape.filter(b"x"), None);
    }

    #[test]
    fn everything_else_passes() {
        let mut escape = Escape::default();
        assert_eq!(escape.filter(b"axb"), Some(b"axb".to_vec()));
        assert_eq!(escape.filter(b"\x01\x01x"), Some(b"\x01x".to_vec()));
        assert_eq!(escape.filter(b"\x01cx"), Some(b"\x01cx".to_vec()));
    }
}
