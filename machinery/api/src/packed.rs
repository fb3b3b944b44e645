//! Compresses texts in memory. Most objects of a kind are nearly equal (pods of a template, events of a start), so each
//! is compressed against a similar text as dictionary. Pure. A text is always read whole. Server-side apply compresses its
//! managers, the store its records and the kubelet its pods.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lz4_flex::block::{compress_with_dict, decompress_into_with_dict};

/// Shorter texts stay uncompressed: a compressed one has some bytes of overhead.
const TEXT_BYTES_MIN: usize = 128;
/// Longer ones too: they are few, and compressing one would delay others.
const TEXT_BYTES_MAX: usize = 64 * 1024;
/// Maximum size of a dictionary: longer texts share little, and the format looks back no further.
const DICTIONARY_BYTES_MAX: usize = 16 * 1024;
/// Maximum dictionaries of a packer: the shapes of one kind of text.
const DICTIONARIES_MAX: usize = 6;
/// Maximum total size of a packer's dictionaries, including those kept alive by compressed texts only.
const DICTIONARY_BYTES_TOTAL_MAX: usize = 1024 * 1024;

/// A dictionary: a text that others resemble. Its size is counted until it is dropped.
struct Dictionary {
    text: Box<[u8]>,
    total: Arc<AtomicUsize>,
}

impl Drop for Dictionary {
    fn drop(&mut self) {
        self.total.fetch_sub(self.text.len(), Ordering::Relaxed);
    }
}

/// A compressed text.
pub struct Packed {
    dictionary: Option<Arc<Dictionary>>,
    bytes: Box<[u8]>,
    text_len: u32,
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes in {}", self.text_len, self.bytes.len())
    }
}

impl Packed {
    /// Compresses a text of any length without a dictionary, however small the gain.
    ///
    /// # Panics
    /// If the text has more than 4 GiB.
    #[must_use]
    pub fn alone(text: &[u8]) -> Self {
        let text_len = u32::try_from(text.len()).expect("a text that was in a request's body");
        Self { dictionary: None, bytes: compress_with_dict(text, &[]).into(), text_len }
    }

    /// The compressed size, without a shared dictionary.
    #[must_use]
    pub fn packed_len(&self) -> usize {
        self.bytes.len()
    }

    /// Decompresses the text.
    #[must_use]
    pub fn text(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write_to(&mut out, (0, &[]));
        out
    }

    /// Appends the text with `piece` inserted before its byte `at`, without a temporary copy.
    ///
    /// # Panics
    /// If the text has no such byte, or if its memory was corrupted.
    pub fn write_to(&self, out: &mut Vec<u8>, (at, piece): (usize, &[u8])) {
        let dictionary = self.dictionary.as_ref().map_or(&[][..], |dictionary| &dictionary.text);
        let start = out.len();
        out.resize(start + piece.len() + self.len(), 0);
        decompress_into_with_dict(&self.bytes, &mut out[start + piece.len()..], dictionary)
            .expect("what was packed is read again");
        if !piece.is_empty() {
            let behind = piece.len();
            out.copy_within(start + behind..start + behind + at, start);
            out[start + at..start + at + behind].copy_from_slice(piece);
        }
    }

    /// The length of the text.
    #[must_use]
    pub fn len(&self) -> usize {
        self.text_len as usize
    }

    /// Whether the text is empty; no text that is worth compressing is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.text_len == 0
    }
}

/// Compresses texts of one kind. It learns its dictionaries from its input.
#[derive(Default)]
pub struct Packer {
    /// The most recently used first.
    dictionaries: VecDeque<Arc<Dictionary>>,
    /// A text without a similar dictionary. It becomes one when a later text resembles it.
    candidate: Option<Arc<Dictionary>>,
    total: Arc<AtomicUsize>,
}

impl fmt::Debug for Packer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dictionaries of {} bytes", self.dictionaries.len(), self.total.load(Ordering::Relaxed))
    }
}

impl Packer {
    /// Compresses a text; `None` if the gain is too small.
    pub fn pack(&mut self, text: &[u8]) -> Option<Packed> {
        let text_len =
            u32::try_from(text.len()).ok().filter(|_| (TEXT_BYTES_MIN..=TEXT_BYTES_MAX).contains(&text.len()))?;
        let mut best = None;
        if text.len() <= DICTIONARY_BYTES_MAX {
            best = self.compress_with_dictionary(text);
            if best.as_ref().is_none_or(|(bytes, _)| bytes.len() > text.len() / 4) {
                best = self.promote_candidate(text, best);
            }
        }
        let (bytes, dictionary) = match best {
            Some((bytes, dictionary)) => (bytes, Some(dictionary)),
            None => (compress_with_dict(text, &[]), None),
        };
        let pays = bytes.len() <= text.len() - text.len() / 4;
        pays.then(|| Packed { dictionary, bytes: bytes.into(), text_len })
    }

    /// Compresses with the best dictionary, or the first good one.
    fn compress_with_dictionary(&mut self, text: &[u8]) -> Option<(Vec<u8>, Arc<Dictionary>)> {
        let mut best: Option<(Vec<u8>, usize)> = None;
        for (at, dictionary) in self.dictionaries.iter().enumerate() {
            let bytes = compress_with_dict(text, &dictionary.text);
            let well = bytes.len() <= text.len() / 6;
            if best.as_ref().is_none_or(|(best, _)| bytes.len() < best.len()) {
                best = Some((bytes, at));
            }
            if well {
                break;
            }
        }
        let (bytes, at) = best?;
        let dictionary = self.dictionaries.remove(at)?;
        self.dictionaries.push_front(dictionary.clone());
        Some((bytes, dictionary))
    }

    /// Promotes the candidate to a dictionary if it clearly helps; else the text becomes the candidate.
    fn promote_candidate(
        &mut self,
        text: &[u8],
        best: Option<(Vec<u8>, Arc<Dictionary>)>,
    ) -> Option<(Vec<u8>, Arc<Dictionary>)> {
        if let Some(candidate) = &self.candidate {
            let bytes = compress_with_dict(text, &candidate.text);
            let known = best.as_ref().map_or(text.len(), |(bytes, _)| bytes.len());
            if bytes.len() < known - known / 5 {
                let dictionary = candidate.clone();
                self.candidate = None;
                self.dictionaries.truncate(DICTIONARIES_MAX - 1);
                self.dictionaries.push_front(dictionary.clone());
                return Some((bytes, dictionary));
            }
        }
        self.candidate = None;
        if self.total.fetch_add(text.len(), Ordering::Relaxed) + text.len() <= DICTIONARY_BYTES_TOTAL_MAX {
            self.candidate = Some(Arc::new(Dictionary { text: text.into(), total: self.total.clone() }));
        } else {
            self.total.fetch_sub(text.len(), Ordering::Relaxed);
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pod(n: usize) -> Vec<u8> {
        let uid = (0..32).map(|i| char::from(b'a' + u8::try_from((n * 31 + i * i * (n % 7 + 3)) % 26).unwrap()));
        let filler: String = (0..40).map(|i| format!("\"field{i}\":\"a value of field {}\",", i * 7 % 11)).collect();
        format!("{{\"name\":\"p{n}\",\"uid\":\"{}\",{filler}\"end\":{n}}}", uid.collect::<String>()).into_bytes()
    }

    fn event(n: usize) -> Vec<u8> {
        let filler: String = (0..20).map(|i| format!("\"of an event {i}\":\"{}\",", i * 13 % 17)).collect();
        format!("{{\"about\":\"p{n}\",{filler}\"count\":1}}").into_bytes()
    }

    #[test]
    fn similar_texts_compress_well() {
        let mut packer = Packer::default();
        let mut packed = Vec::new();
        for n in 0..100 {
            for text in [pod(n), event(n)] {
                packed.push((packer.pack(&text), text));
            }
        }
        for (packed, text) in &packed[20..] {
            let packed = packed.as_ref().unwrap();
            assert!(packed.bytes.len() * 5 < text.len(), "{packed:?}");
            assert_eq!((&packed.text(), packed.len()), (text, text.len()));
        }
        assert!(packer.dictionaries.len() <= 4, "{packer:?}");
    }

    #[test]
    fn models_are_bounded_and_given_back() {
        let mut packer = Packer::default();
        let mut state = 1u64;
        let mut noise = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            b'a' + (state >> 33) as u8 % 26
        };
        let mut held = Vec::new();
        for _ in 0..300 {
            // Twice the same, so that each becomes a dictionary.
            let text: Vec<u8> = (0..DICTIONARY_BYTES_MAX).map(|_| noise()).collect();
            held.extend([packer.pack(&text), packer.pack(&text)].into_iter().flatten());
            assert!(packer.total.load(Ordering::Relaxed) <= DICTIONARY_BYTES_TOTAL_MAX);
        }
        assert!(packer.total.load(Ordering::Relaxed) > DICTIONARY_BYTES_TOTAL_MAX / 2);
        held.clear();
        let left = packer.dictionaries.len() + usize::from(packer.candidate.is_some());
        assert_eq!(packer.total.load(Ordering::Relaxed), left * DICTIONARY_BYTES_MAX);
        assert!(left <= DICTIONARIES_MAX + 1);
    }

    #[test]
    fn incompressible_texts_stay_uncompressed() {
        let mut packer = Packer::default();
        assert!(packer.pack(b"short").is_none() && packer.pack(&[b'x'; TEXT_BYTES_MAX + 1]).is_none());
        let mut state = 7u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as u8
        })
        .take(4000)
        .collect();
        assert!(packer.pack(&noise).is_none());
    }

    proptest! {
        #[test]
        fn compressed_texts_are_read_back(
            texts in proptest::collection::vec((0..4usize, 0..3usize, proptest::collection::vec(any::<u8>(), 0..300)), 1..40),
            at in any::<proptest::sample::Index>(), piece in proptest::collection::vec(any::<u8>(), 0..50),
        ) {
            let mut packer = Packer::default();
            let bases = [pod(0), event(1), vec![b'x'; 40_000], Vec::new()];
            for (base, twice, own) in texts {
                let mut text = own.clone();
                for _ in 0..=twice {
                    text.extend_from_slice(&bases[base]);
                    text.extend_from_slice(&own);
                }
                if let Some(packed) = packer.pack(&text) {
                    prop_assert_eq!(&packed.text(), &text);
                    let (mut out, at) = (b"before".to_vec(), at.index(text.len()));
                    packed.write_to(&mut out, (at, &piece));
                    prop_assert_eq!(out, [b"before", &text[..at], &piece, &text[at..]].concat());
                }
            }
        }
    }
}
