//! The append-only file: effects as requests of the protocol, in the order of their commands.
use crate::protocol::{Parsed, Word, parse, write_request};
use crate::settings::Sync;
use crate::store::{Slot, Store, Value};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use guest::files;
use guest::wasip2::filesystem::types::{Descriptor, DescriptorFlags, ErrorCode, OpenFlags, PathFlags};

const NAME: &str = "appendonly.aof";
/// A rewrite becomes the file when it is complete.
const NEW_NAME: &str = "appendonly.aof.new";
const READ_BYTES: u64 = 64 * 1024;
/// Bytes of a rewrite that are written at once.
const WRITE_BYTES: usize = 256 * 1024;
/// Items of one effect in a rewrite.
const ITEMS_MAX: usize = 64;
/// A file below this isn't rewritten.
const REWRITE_BYTES_MIN: u64 = 1024 * 1024;
const SECOND_MS: u64 = 1000;

pub struct Log {
    folder: Descriptor,
    file: Descriptor,
    sync: Sync,
    /// Bytes in the file, all of them whole effects.
    bytes: u64,
    /// The same after the start or the last rewrite.
    base_bytes: u64,
    /// When the file was last synchronized or couldn't be written.
    last_ms: u64,
    is_synchronized: bool,
    is_failing: bool,
}

impl Log {
    /// Opens the file of a folder and repeats its effects. An effect without its end is cut off: no client has its reply.
    ///
    /// # Errors
    /// A folder that can't be written, or a file with something else than effects.
    pub fn open(
        folder: &str,
        sync: Sync,
        mut repeat: impl FnMut(&[Word<'_>]) -> Result<(), crate::failure::Failure>,
    ) -> Result<Self, String> {
        let failed = |code: ErrorCode| format!("{folder}/{NAME}: {code}");
        let open = files::open(folder, OpenFlags::DIRECTORY, DescriptorFlags::READ | DescriptorFlags::MUTATE_DIRECTORY);
        let folder_handle = open.map_err(|code| format!("{folder}: {code}"))?;
        let flags = DescriptorFlags::READ | DescriptorFlags::WRITE;
        let file = folder_handle.open_at(PathFlags::empty(), NAME, OpenFlags::CREATE, flags).map_err(failed)?;
        let (mut rest, mut bytes) = (Vec::new(), 0_u64);
        loop {
            let (more, is_end) = file.read(READ_BYTES, bytes + rest.len() as u64).map_err(failed)?;
            let is_end = is_end || more.is_empty();
            rest.extend_from_slice(&more);
            let mut used = 0;
            loop {
                let wrong = || format!("{folder}/{NAME}: no effect at byte {}", bytes + used as u64);
                if rest.get(used).is_some_and(|byte| *byte != b'*') {
                    // A machine that failed may leave zeros behind the last synchronized byte.
                    if rest[used..].iter().any(|byte| *byte != 0) {
                        return Err(wrong());
                    }
                    break;
                }
                match parse(&rest[used..]).map_err(|_| wrong())? {
                    Parsed::Incomplete(_) => break,
                    Parsed::Request(words, length) => {
                        repeat(&words).map_err(|_| wrong())?;
                        used += length;
                    }
                }
            }
            rest.drain(..used);
            bytes += used as u64;
            if is_end {
                break;
            }
        }
        if !rest.is_empty() {
            guest::log!("cut {} bytes without an end off {folder}/{NAME}", rest.len());
            file.set_size(bytes).map_err(failed)?;
        }
        Ok(Self {
            folder: folder_handle,
            file,
            sync,
            bytes,
            base_bytes: bytes,
            last_ms: 0,
            is_synchronized: true,
            is_failing: false,
        })
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn base_bytes(&self) -> u64 {
        self.base_bytes
    }

    /// Whether the file takes no more bytes.
    pub fn is_failing(&self) -> bool {
        self.is_failing
    }

    /// When [`Log::commit`] has something to do without new effects.
    pub fn next_ms(&self) -> Option<u64> {
        (self.is_failing || !self.is_synchronized).then_some(self.last_ms + SECOND_MS)
    }

    /// Writes effects, and synchronizes the file where the policy wants it. Effects that can't be written stay.
    ///
    /// # Errors
    /// If the file can't be synchronized: what it has is unknown then.
    pub fn commit(&mut self, effects: &mut Vec<u8>, now_ms: u64) -> Result<(), String> {
        if self.is_failing && now_ms < self.last_ms + SECOND_MS {
            return Ok(());
        }
        if !effects.is_empty() {
            let written = write_all(&self.file, self.bytes, effects);
            if let Err(code) = written {
                if !self.is_failing {
                    guest::process::print_error(&format!(
                        "kv: {NAME}: {code}; writes are refused until it takes bytes"
                    ));
                }
                let _ = self.file.set_size(self.bytes); // else the next try overwrites it
                (self.is_failing, self.last_ms) = (true, now_ms);
                return Ok(());
            }
            self.bytes += effects.len() as u64;
            effects.clear();
            self.is_synchronized = false;
        }
        self.is_failing = false;
        let is_due = match self.sync {
            Sync::Always => true,
            Sync::EverySecond => now_ms >= self.last_ms + SECOND_MS,
        };
        if !self.is_synchronized && is_due {
            self.file.sync_data().map_err(|code| format!("{NAME} can't be synchronized: {code}"))?;
            (self.is_synchronized, self.last_ms) = (true, now_ms);
        }
        Ok(())
    }

    /// Replaces the file by a shorter one with the same keys, if it has grown to twice its size. The old one stays if that fails.
    pub fn rewrite_if_large(&mut self, store: &Store) {
        if self.is_failing || self.bytes < REWRITE_BYTES_MIN || self.bytes < 2 * self.base_bytes {
            return;
        }
        let before = self.bytes;
        match self.rewrite(store) {
            Ok(()) => guest::log!("rewrote {NAME}: {before} bytes, now {}", self.bytes),
            Err(code) => {
                let _ = self.folder.unlink_file_at(NEW_NAME);
                guest::process::print_error(&format!("kv: {NAME} can't be rewritten: {code}"));
            }
        }
        self.base_bytes = self.bytes;
    }

    fn rewrite(&mut self, store: &Store) -> Result<(), ErrorCode> {
        let open = OpenFlags::CREATE | OpenFlags::TRUNCATE;
        let flags = DescriptorFlags::READ | DescriptorFlags::WRITE;
        let file = self.folder.open_at(PathFlags::empty(), NEW_NAME, open, flags)?;
        let (mut bytes, mut effects) = (0, Vec::new());
        for slot in store.iter() {
            write_slot(&mut effects, slot);
            if effects.len() >= WRITE_BYTES {
                write_all(&file, bytes, &effects)?;
                bytes += effects.len() as u64;
                effects.clear();
            }
        }
        write_all(&file, bytes, &effects)?;
        bytes += effects.len() as u64;
        file.sync_data()?;
        self.folder.rename_at(NEW_NAME, &self.folder, NAME)?;
        (self.file, self.bytes, self.is_synchronized) = (file, bytes, true);
        self.folder.sync()
    }
}

fn write_all(file: &Descriptor, at: u64, mut bytes: &[u8]) -> Result<(), ErrorCode> {
    let end = at + bytes.len() as u64;
    while !bytes.is_empty() {
        let written = file.write(bytes, end - bytes.len() as u64)? as usize;
        if written == 0 {
            return Err(ErrorCode::Io);
        }
        bytes = &bytes[written..];
    }
    Ok(())
}

/// The effects that make a key.
fn write_slot(effects: &mut Vec<u8>, slot: &Slot) {
    let key = &*slot.key;
    match &slot.value {
        Value::Text(text) => write_request(effects, &[b"SET", key, text]),
        Value::List(list) => write_items(effects, b"RPUSH", key, list.items.iter().map(Vec::as_slice)),
        Value::Set(set) => write_items(effects, b"SADD", key, set.items.iter().map(Vec::as_slice)),
        Value::Hash(hash) => {
            let pairs = hash.items.iter().flat_map(|(field, value)| [field.as_slice(), value.as_slice()]);
            write_items(effects, b"HSET", key, pairs);
        }
    }
    if let Some(deadline_ms) = slot.deadline_ms {
        write_request(effects, &[b"PEXPIREAT", key, &crate::number::text(deadline_ms as i64)]);
    }
}

/// `ITEMS_MAX` is even, so that a field and its value are in one effect.
fn write_items<'a>(effects: &mut Vec<u8>, name: &'a [u8], key: &'a [u8], items: impl Iterator<Item = &'a [u8]>) {
    let mut items = items.peekable();
    while items.peek().is_some() {
        let words: Vec<&[u8]> = [name, key].into_iter().chain(items.by_ref().take(ITEMS_MAX)).collect();
        write_request(effects, &words);
    }
}
