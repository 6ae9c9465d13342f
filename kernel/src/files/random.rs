//! Random bytes: ChaCha20 (RFC 8439) in the fast-key-erasure arrangement.
//!
//! The key is mixed from the loader's seed (/chosen/rng-seed), the counter at boot, and the counter
//! at each request; every request replaces the key by the first output block, so that what was given
//! out cannot be recomputed from a later state. Without a seed from the loader the bytes are
//! unpredictable only as far as the counter is: there is no other source, and the log says so.

use umbra_hw::sync::SpinLock;
use umbra_linux::Stop;

use crate::file::{Call, File};

const ROUNDS: usize = 10;
const CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

type Key = [u32; 8];

static KEY: SpinLock<Key> = SpinLock::new("random", 105, [0; 8]);

fn quarter(state: &mut [u32; 16], a: usize, b: usize, c: usize, d: usize) {
    for (x, y, z, turn) in [(a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)] {
        state[x] = state[x].wrapping_add(state[y]);
        state[z] = (state[z] ^ state[x]).rotate_left(turn);
    }
}

/// One block of the key stream.
fn block(key: &Key, counter: u64, nonce: u64) -> [u32; 16] {
    let mut start = [0; 16];
    start[..4].copy_from_slice(&CONSTANTS);
    start[4..12].copy_from_slice(key);
    start[12] = counter as u32;
    start[13] = (counter >> 32) as u32;
    start[14] = nonce as u32;
    start[15] = (nonce >> 32) as u32;
    let mut state = start;
    for _ in 0..ROUNDS {
        for column in 0..4 {
            quarter(&mut state, column, 4 + column, 8 + column, 12 + column);
        }
        for row in 0..4 {
            let at = |line: usize| line * 4 + (row + line) % 4;
            quarter(&mut state, at(0), at(1), at(2), at(3));
        }
    }
    for (word, start) in state.iter_mut().zip(start) {
        *word = word.wrapping_add(start);
    }
    state
}

fn rekey(key: &mut Key, counter: u64, nonce: u64) {
    let fresh = block(key, counter, nonce);
    key.copy_from_slice(&fresh[..8]);
}

/// Mixes a seed into the key.
pub(crate) fn seed(bytes: &[u8]) {
    let mut key = KEY.lock();
    for (index, chunk) in bytes.chunks(32).enumerate() {
        for (word, part) in key.iter_mut().zip(chunk.chunks(4)) {
            let mut value = [0; 4];
            value[..part.len()].copy_from_slice(part);
            *word ^= u32::from_le_bytes(value);
        }
        rekey(&mut key, index as u64, umbra_hw::timer::ticks());
    }
}

/// Fills `out` with random bytes.
pub(crate) fn fill(out: &mut [u8]) {
    let key = {
        let mut key = KEY.lock();
        let nonce = umbra_hw::timer::ticks();
        rekey(&mut key, u64::MAX, nonce);
        let mine = *key;
        rekey(&mut key, u64::MAX - 1, nonce);
        mine
    };
    for (index, chunk) in out.chunks_mut(64).enumerate() {
        let words = block(&key, index as u64, 0);
        let bytes = words.iter().flat_map(|word| word.to_le_bytes());
        for (to, from) in chunk.iter_mut().zip(bytes) {
            *to = from;
        }
    }
}

/// /dev/random and /dev/urandom.
pub(crate) struct Random;

impl File for Random {
    fn read(&self, _call: &Call<'_>, buf: &mut [u8]) -> Result<usize, Stop> {
        fill(buf);
        Ok(buf.len())
    }

    fn write(&self, _call: &Call<'_>, bytes: &[u8]) -> Result<usize, Stop> {
        seed(bytes);
        Ok(bytes.len())
    }
}
