//! SHA-256 of the files that a run uses, so that a transcript says exactly what ran.

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::path::Path;

/// SHA-256 of a file, in hexadecimal.
pub(crate) fn of_file(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(of_bytes(&bytes))
}

/// SHA-256 of some bytes, in hexadecimal.
pub(crate) fn of_bytes(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(64);
    for byte in Sha256::digest(bytes) {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::of_bytes;

    #[test]
    fn known_answers() {
        // FIPS 180-4 examples: the empty message and "abc".
        assert!(of_bytes(b"").starts_with("e3b0c44298fc1c14"));
        assert_eq!(
            of_bytes(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
