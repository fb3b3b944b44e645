//! The scripts on the server, their calls and their answers. An answer is a list whose first item names its kind.

use std::sync::LazyLock;

use redis::{Cmd, ErrorKind, RedisError, Script, ServerErrorKind};
use runtime_api::keyvalue::{StoreError, Value};

/// Digits of the revision in front of a stored value.
pub(super) const REVISION_BYTES: usize = 16;
/// Bytes of an answer beside its values and names.
const ANSWER_BYTES: usize = 1 << 10;

pub(super) static READ: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("read.lua")));
pub(super) static WRITE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("write.lua")));
pub(super) static OWNERS: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("owners.lua")));
pub(super) static REMOVE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("remove.lua")));

/// One call of a script.
pub(super) struct Call {
    pub(super) script: &'static Script,
    keys: Vec<String>,
    arguments: Vec<Vec<u8>>,
    answer_bytes: usize,
}

impl Call {
    /// `answer_bytes`: the largest answer, beside names of kinds.
    pub(super) fn new(script: &'static LazyLock<Script>, answer_bytes: usize) -> Self {
        Self { script, keys: Vec::new(), arguments: Vec::new(), answer_bytes: answer_bytes + ANSWER_BYTES }
    }

    pub(super) fn key(&mut self, key: &str) {
        self.keys.push(key.to_owned());
    }

    pub(super) fn arg(&mut self, argument: impl Into<Vec<u8>>) -> &mut Self {
        self.arguments.push(argument.into());
        self
    }

    /// Bytes of the request and of the largest answer.
    pub(super) fn bytes(&self) -> usize {
        self.arguments.iter().map(Vec::len).sum::<usize>() + self.answer_bytes
    }

    /// By the hash of the script, which the server may not know.
    pub(super) fn command(&self) -> Cmd {
        let mut command = redis::cmd("EVALSHA");
        command.arg(self.script.get_hash()).arg(self.keys.len()).arg(&self.keys).arg(&self.arguments);
        command
    }
}

/// The answer of a script.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ScriptReply(pub(super) redis::Value);

impl ScriptReply {
    /// The kind and the content.
    ///
    /// # Errors
    /// The error that the script names; an answer of another form is [`StoreError::Foreign`].
    pub(super) fn parts(self) -> Result<(String, Option<redis::Value>), StoreError> {
        let redis::Value::Array(items) = self.0 else { return Err(StoreError::Foreign) };
        let mut items = items.into_iter();
        let kind = items.next().and_then(|kind| text(kind).ok()).ok_or(StoreError::Foreign)?;
        match kind.as_str() {
            "removed" => Err(StoreError::Removed),
            "foreign" => Err(StoreError::Foreign),
            "batch" => Err(StoreError::BatchTooLarge),
            "nonumber" => Err(StoreError::NoNumber),
            "overflow" => Err(StoreError::Overflow),
            _ => Ok((kind, items.next())),
        }
    }

    /// A list of names alone.
    pub(super) fn names(self) -> Result<Vec<String>, StoreError> {
        names(self.0)
    }
}

pub(super) fn bytes(value: redis::Value) -> Result<Vec<u8>, StoreError> {
    match value {
        redis::Value::BulkString(bytes) => Ok(bytes),
        _ => Err(StoreError::Foreign),
    }
}

pub(super) fn text(value: redis::Value) -> Result<String, StoreError> {
    String::from_utf8(bytes(value)?).map_err(|_| StoreError::Foreign)
}

pub(super) fn names(value: redis::Value) -> Result<Vec<String>, StoreError> {
    match value {
        redis::Value::Array(items) => items.into_iter().map(text).collect(),
        _ => Err(StoreError::Foreign),
    }
}

/// A stored value: 16 digits of its revision, then its bytes. `None` for none.
pub(super) fn stored(value: redis::Value) -> Result<Option<Value>, StoreError> {
    if value == redis::Value::Nil {
        return Ok(None);
    }
    let mut bytes = bytes(value)?;
    let digits = bytes.get(..REVISION_BYTES).filter(|digits| digits.iter().all(u8::is_ascii_digit));
    let revision =
        digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok()).ok_or(StoreError::Foreign)?;
    bytes.drain(..REVISION_BYTES);
    Ok(Some(Value { revision, bytes }))
}

/// The error of a call that the server answered with one. The server's text stays in the node's log: it may contain what
/// guests must not see.
pub(super) fn refused(error: &RedisError) -> StoreError {
    let detail = error.detail().unwrap_or_default();
    let code = error.code().unwrap_or_default();
    // Before version 7 the code of a script's error is in its text.
    if code == "WRONGTYPE" || detail.contains("WRONGTYPE ") {
        return StoreError::Foreign;
    }
    if code == "OOM" || detail.contains("OOM command not allowed") {
        return StoreError::SharedFull;
    }
    let plain = !code.is_empty() && code.len() <= 32 && code.bytes().all(|letter| letter.is_ascii_alphanumeric());
    StoreError::SharedRefused(if plain { code.to_owned() } else { "an error".to_owned() })
}

/// Whether the server doesn't know the script.
pub(super) fn is_unknown_script(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

/// Whether another connection may lead to a server that takes the call: this one became a replica, or is shutting down.
pub(super) fn is_other_server_needed(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown))
}

/// Whether the connection failed, rather than the call.
pub(super) fn is_connection_lost(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Io | ErrorKind::Parse) || error.is_connection_dropped()
}
