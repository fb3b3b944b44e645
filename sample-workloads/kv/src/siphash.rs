//! SipHash-1-3 with a key of the process: clients choose the keys of the store, and could else choose ones of equal hashes.

/// The key.
pub type Seed = (u64, u64);

/// The hash of some bytes.
pub fn hash(seed: Seed, bytes: &[u8]) -> u64 {
    let mut state = [
        seed.0 ^ 0x736f_6d65_7073_6575,
        seed.1 ^ 0x646f_7261_6e64_6f6d,
        seed.0 ^ 0x6c79_6765_6e65_7261,
        seed.1 ^ 0x7465_6462_7974_6573,
    ];
    let mut words = bytes.chunks_exact(8);
    for word in &mut words {
        absorb(&mut state, word.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte)));
    }
    let last = words.remainder().iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte));
    absorb(&mut state, (bytes.len() as u64) << 56 | last);
    state[2] ^= 0xff;
    (0..3).for_each(|_| round(&mut state));
    state[0] ^ state[1] ^ state[2] ^ state[3]
}

fn absorb(state: &mut [u64; 4], word: u64) {
    state[3] ^= word;
    round(state);
    state[0] ^= word;
}

fn round([a, b, c, d]: &mut [u64; 4]) {
    *a = a.wrapping_add(*b);
    *b = b.rotate_left(13) ^ *a;
    *a = a.rotate_left(32);
    *c = c.wrapping_add(*d);
    *d = d.rotate_left(16) ^ *c;
    *a = a.wrapping_add(*d);
    *d = d.rotate_left(21) ^ *a;
    *c = c.wrapping_add(*b);
    *b = b.rotate_left(17) ^ *c;
    *c = c.rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hash::Hasher;

    /// The standard library's hasher is the same function, with the key 0.
    #[test]
    fn hashes_are_those_of_the_standard_library() {
        let text: Vec<u8> = (0..100).collect();
        for length in 0..text.len() {
            let mut other = std::collections::hash_map::DefaultHasher::new();
            other.write(&text[..length]);
            assert_eq!(hash((0, 0), &text[..length]), other.finish(), "{length}");
        }
        assert_ne!(hash((0, 1), b"a"), hash((0, 0), b"a"));
    }
}
