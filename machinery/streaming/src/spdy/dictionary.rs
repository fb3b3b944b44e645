//! The compression dictionary of header blocks (§2.6.10.1): frequent names and values of HTTP.

use std::sync::LazyLock;

/// Each word has its length in four bytes before it, as in a header block.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow \
authorization cache-control connection content-base content-encoding content-language content-length content-location content-md5 \
content-range content-type date etag expect expires from host if-match if-modified-since if-none-match if-range if-unmodified-since \
last-modified location max-forwards pragma proxy-authenticate proxy-authorization range referer retry-after server te trailer \
transfer-encoding upgrade user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie \
keep-alive origin";

/// The rest, without lengths.
const REST: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found\
500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 \
Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,\
text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

/// The dictionary's bytes.
pub(super) static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = Vec::with_capacity(1423);
    for word in WORDS.split(' ') {
        bytes.extend_from_slice(&u32::try_from(word.len()).unwrap_or(0).to_be_bytes());
        bytes.extend(word.bytes().map(|byte| if byte == b'_' { b' ' } else { byte }));
    }
    bytes.extend_from_slice(REST.as_bytes());
    bytes
});

#[cfg(test)]
mod tests {
    #[test]
    fn it_is_the_drafts() {
        // zlib identifies it by this checksum.
        let (mut a, mut b) = (1u32, 0u32);
        for byte in super::DICTIONARY.iter() {
            a = (a + u32::from(*byte)) % 65_521;
            b = (b + a) % 65_521;
        }
        assert_eq!((super::DICTIONARY.len(), b << 16 | a), (1423, 0xe3c6_a7c2));
    }
}
