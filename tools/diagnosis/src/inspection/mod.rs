//! What `coracle status` and `coracle doctor` read: the API server, each request with a deadline, and the data folder,
//! without changing it or taking its lock.
//!
//! - [`certificates`]: the certificates of a data folder and their ends.
//! - [`disk`]: the bytes of a data folder by part.
//! - [`lock`]: the process that holds a data folder's lock.
//! - [`amounts`]: sizes and times for people.

pub(crate) mod amounts;
pub(crate) mod certificates;
pub(crate) mod disk;
pub(crate) mod lock;

/// A word of a shell's command line.
pub(crate) fn shell_quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,=".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::shell_quoted;

    #[test]
    fn words_are_quoted_where_a_shell_would_change_them() {
        let quoted = ["/a/b-c_1.d", "", "a b", "it's", "$HOME"].map(shell_quoted);
        assert_eq!(quoted, ["/a/b-c_1.d", "''", "'a b'", r"'it'\''s'", "'$HOME'"]);
    }
}
