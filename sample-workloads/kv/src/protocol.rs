//! Requests (RESP arrays of bulk strings, or a line of words) and replies (RESP2 and RESP3) as bytes.
use crate::failure::Failure;
use crate::number;
use alloc::borrow::Cow;
use alloc::format;
use alloc::vec::Vec;

/// Maximum bytes of a line: an inline request, or a length (Redis' `PROTO_INLINE_MAX_SIZE`).
const LINE_BYTES_MAX: usize = 64 * 1024;
/// Maximum words of a request.
const WORDS_MAX: i64 = 64 * 1024;
/// Maximum bytes of a word (`proto-max-bulk-len`).
pub const WORD_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of the shortest word of a request: `$0`, and two ends of line.
const WORD_BYTES_MIN: usize = 6;

/// A word of a request.
pub type Word<'a> = Cow<'a, [u8]>;

/// The begin of some received bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// A request of so many bytes. An empty one has no words and no reply.
    Request(Vec<Word<'a>>, usize),
    /// No whole request; there can be one with so many bytes.
    Incomplete(usize),
}

/// Parses the first request.
///
/// # Errors
/// Bytes that are none: the connection can't be read any further.
pub fn parse(input: &[u8]) -> Result<Parsed<'_>, Failure> {
    match input.first() {
        None => Ok(Parsed::Incomplete(1)),
        Some(b'*') => array(input),
        Some(_) => inline(input),
    }
}

/// The end of the line from `at`, without its `\r\n`, and the begin of the next.
fn line(input: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let rest = &input[at..];
    let end = rest.iter().position(|byte| *byte == b'\r')?;
    (rest.len() > end + 1).then(|| (&rest[..end], at + end + 2))
}

fn array(input: &[u8]) -> Result<Parsed<'_>, Failure> {
    let Some((count, mut at)) = line(input, 1) else {
        return incomplete_line(input, 1, "ERR Protocol error: too big mbulk count string");
    };
    let count = number::parse(count).filter(|count| *count <= WORDS_MAX);
    let count = count.ok_or("ERR Protocol error: invalid multibulk length")?;
    let mut words = Vec::new();
    for left in (1..=count).rev() {
        let least = at + left as usize * WORD_BYTES_MIN;
        if input.len() <= at {
            return Ok(Parsed::Incomplete(least));
        }
        if input[at] != b'$' {
            let got = char::from(input[at]);
            return Err(format!("ERR Protocol error: expected '$', got '{got}'").into());
        }
        let Some((length, begin)) = line(input, at + 1) else {
            return incomplete_line(input, at + 1, "ERR Protocol error: too big bulk count string")
                .map(|_| Parsed::Incomplete(least.max(input.len() + 1)));
        };
        let length = number::parse(length).and_then(|length| usize::try_from(length).ok());
        let length = length.filter(|length| *length <= WORD_BYTES_MAX);
        let length = length.ok_or("ERR Protocol error: invalid bulk length")?;
        let after = begin + length + 2;
        if input.len() < after {
            return Ok(Parsed::Incomplete(after + (left as usize - 1) * WORD_BYTES_MIN));
        }
        words.push(Cow::Borrowed(&input[begin..begin + length]));
        at = after;
    }
    Ok(Parsed::Request(words, at))
}

fn incomplete_line<'a>(input: &[u8], at: usize, too_long: &'static str) -> Result<Parsed<'a>, Failure> {
    if input.len() - at > LINE_BYTES_MAX {
        return Err(too_long.into());
    }
    Ok(Parsed::Incomplete(input.len() + 1))
}

fn inline(input: &[u8]) -> Result<Parsed<'_>, Failure> {
    let Some(end) = input.iter().position(|byte| *byte == b'\n') else {
        return incomplete_line(input, 0, "ERR Protocol error: too big inline request");
    };
    let text = input[..end].strip_suffix(b"\r").unwrap_or(&input[..end]);
    let words = split(text).ok_or("ERR Protocol error: unbalanced quotes in request")?;
    Ok(Parsed::Request(words, end + 1))
}

/// The words of a line, which may be in quotes; `None` if a quote has no end, or text follows it.
pub fn split(text: &[u8]) -> Option<Vec<Word<'_>>> {
    let mut words = Vec::new();
    let mut at = 0;
    loop {
        at += text[at..].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        let Some(first) = text.get(at) else { return Some(words) };
        let begin = at;
        at += text[at..].iter().take_while(|byte| !byte.is_ascii_whitespace() && !b"\"'".contains(byte)).count();
        match text.get(at) {
            None => words.push(Cow::Borrowed(&text[begin..at])),
            Some(space) if space.is_ascii_whitespace() => words.push(Cow::Borrowed(&text[begin..at])),
            Some(quote) if begin == at => {
                debug_assert_eq!(quote, first);
                let (word, end) = quoted(text, at + 1, *quote)?;
                if text.get(end).is_some_and(|byte| !byte.is_ascii_whitespace()) {
                    return None;
                }
                words.push(Cow::Owned(word));
                at = end;
            }
            // Redis takes a quote within a word as the begin of a quoted part of it.
            Some(quote) => {
                let (part, end) = quoted(text, at + 1, *quote)?;
                if text.get(end).is_some_and(|byte| !byte.is_ascii_whitespace()) {
                    return None;
                }
                words.push(Cow::Owned([&text[begin..at], part.as_slice()].concat()));
                at = end;
            }
        }
    }
}

/// A quoted text from after its quote, and the index after its end.
fn quoted(text: &[u8], mut at: usize, quote: u8) -> Option<(Vec<u8>, usize)> {
    let mut out = Vec::new();
    loop {
        match &text[at..] {
            [] => return None,
            [end, ..] if *end == quote => return Some((out, at + 1)),
            [b'\\', b'x', high, low, ..] if quote == b'"' && high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                let digit = |of: u8| char::from(of).to_digit(16).unwrap_or(0) as u8;
                out.push(digit(*high) << 4 | digit(*low));
                at += 4;
            }
            [b'\\', escaped, ..] if quote == b'"' => {
                out.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'a' => 7,
                    other => *other,
                });
                at += 2;
            }
            [b'\\', b'\'', ..] if quote == b'\'' => {
                out.push(b'\'');
                at += 2;
            }
            [byte, ..] => {
                out.push(*byte);
                at += 1;
            }
        }
    }
}

/// Appends a request: also the form of the append-only file.
pub fn write_request(out: &mut Vec<u8>, words: &[&[u8]]) {
    header(out, b'*', words.len());
    for word in words {
        bulk(out, word);
    }
}

fn header(out: &mut Vec<u8>, kind: u8, count: usize) {
    out.push(kind);
    number::write(out, count as i64);
    out.extend_from_slice(b"\r\n");
}

fn bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    header(out, b'$', bytes.len());
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

/// Appends replies in the protocol's version of a connection.
pub struct Reply<'a> {
    pub out: &'a mut Vec<u8>,
    /// 2 or 3.
    pub version: u8,
}

impl Reply<'_> {
    fn line(&mut self, kind: u8, text: &[u8]) {
        self.out.push(kind);
        self.out.extend_from_slice(text);
        self.out.extend_from_slice(b"\r\n");
    }

    pub fn simple(&mut self, text: &str) {
        self.line(b'+', text.as_bytes());
    }

    pub fn ok(&mut self) {
        self.simple("OK");
    }

    /// An error; what would end its line becomes spaces.
    pub fn error(&mut self, Failure(text): &Failure) {
        let line: Vec<u8> = text.bytes().map(|byte| if byte == b'\r' || byte == b'\n' { b' ' } else { byte }).collect();
        self.line(b'-', &line);
    }

    pub fn integer(&mut self, number: i64) {
        self.out.push(b':');
        number::write(self.out, number);
        self.out.extend_from_slice(b"\r\n");
    }

    pub fn count(&mut self, number: usize) {
        self.integer(number as i64);
    }

    pub fn bulk(&mut self, bytes: &[u8]) {
        bulk(self.out, bytes);
    }

    pub fn null(&mut self) {
        self.out.extend_from_slice(if self.version == 3 { b"_\r\n" } else { b"$-1\r\n" });
    }

    /// The null of replies that are arrays.
    pub fn null_array(&mut self) {
        self.out.extend_from_slice(if self.version == 3 { b"_\r\n" } else { b"*-1\r\n" });
    }

    pub fn bulk_or_null(&mut self, bytes: Option<&[u8]>) {
        match bytes {
            Some(bytes) => self.bulk(bytes),
            None => self.null(),
        }
    }

    pub fn array(&mut self, count: usize) {
        header(self.out, b'*', count);
    }

    /// A map of so many pairs: in RESP2 an array.
    pub fn map(&mut self, pairs: usize) {
        match self.version {
            3 => header(self.out, b'%', pairs),
            _ => header(self.out, b'*', pairs * 2),
        }
    }

    /// In RESP2 an array.
    pub fn set(&mut self, count: usize) {
        header(self.out, if self.version == 3 { b'~' } else { b'*' }, count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(input: &[u8]) -> Vec<String> {
        match parse(input) {
            Ok(Parsed::Request(words, used)) => {
                assert_eq!(used, input.len());
                words.iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn requests_have_two_forms() {
        assert_eq!(words(b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n"), ["GET", "a"]);
        assert_eq!(words(b"*1\r\n$0\r\n\r\n"), [""]);
        assert!(words(b"*0\r\n").is_empty());
        assert!(words(b"*-1\r\n").is_empty());
        assert!(words(b"\r\n").is_empty());
        assert_eq!(words(b"set a  \"x y\\n\\x41\"\r\n"), ["set", "a", "x y\nA"]);
        assert_eq!(words(b"set 'it\\'s' \"\"\n"), ["set", "it's", ""]);
    }

    /// Each prefix asks for more, and for no more than the whole has.
    #[test]
    fn a_prefix_is_incomplete() {
        for whole in
            [&b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$12\r\nhello, world\r\n"[..], b"*1\r\n$4\r\nPING\r\n", b"PING a\r\n"]
        {
            for length in 0..whole.len() {
                match parse(&whole[..length]) {
                    Ok(Parsed::Incomplete(least)) => {
                        assert!((length + 1..=whole.len()).contains(&least), "{length}: {least}")
                    }
                    other => panic!("{length}: {other:?}"),
                }
            }
        }
    }

    #[test]
    fn errors_are_those_of_redis() {
        let long = [b"*".as_slice(), &vec![b'1'; LINE_BYTES_MAX + 1]].concat();
        let long_word = [b"*1\r\n$".as_slice(), &vec![b'1'; LINE_BYTES_MAX + 1]].concat();
        let long_line = vec![b'a'; LINE_BYTES_MAX + 1];
        for (input, expected) in [
            (&b"*x\r\n"[..], "ERR Protocol error: invalid multibulk length"),
            (b"*99999999\r\n", "ERR Protocol error: invalid multibulk length"),
            (b"*1\r\n+1\r\n", "ERR Protocol error: expected '$', got '+'"),
            (b"*1\r\n$x\r\n", "ERR Protocol error: invalid bulk length"),
            (b"*1\r\n$-1\r\n", "ERR Protocol error: invalid bulk length"),
            (b"*1\r\n$99999999\r\n", "ERR Protocol error: invalid bulk length"),
            (b"get \"a\r\n", "ERR Protocol error: unbalanced quotes in request"),
            (b"get \"a\"b\r\n", "ERR Protocol error: unbalanced quotes in request"),
            (&long, "ERR Protocol error: too big mbulk count string"),
            (&long_word, "ERR Protocol error: too big bulk count string"),
            (&long_line, "ERR Protocol error: too big inline request"),
        ] {
            assert_eq!(parse(input), Err(Failure(expected.into())));
        }
    }

    #[test]
    fn replies_have_two_versions() {
        let reply = |version, write: fn(&mut Reply<'_>)| {
            let mut out = Vec::new();
            write(&mut Reply { out: &mut out, version });
            String::from_utf8(out).unwrap()
        };
        assert_eq!((reply(2, |to| to.null()), reply(3, |to| to.null())), ("$-1\r\n".into(), "_\r\n".into()));
        assert_eq!((reply(2, |to| to.map(2)), reply(3, |to| to.map(2))), ("*4\r\n".into(), "%2\r\n".into()));
        assert_eq!((reply(2, |to| to.set(2)), reply(3, |to| to.set(2))), ("*2\r\n".into(), "~2\r\n".into()));
        assert_eq!(reply(2, |to| to.error(&"ERR a\r\nb".into())), "-ERR a  b\r\n");
        assert_eq!(reply(2, |to| to.bulk(b"a b")), "$3\r\na b\r\n");
    }
}
