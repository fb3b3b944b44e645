//! Free space and error advice common to all writes of this node to its disk.

use std::io;

/// Minimum free bytes after a compilation: the store's log must be able to continue.
pub const FREE_BYTES_MIN: u64 = 256 << 20;

/// Advice to append to a disk error; empty if the error says all.
#[must_use]
pub fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; free some space on the disk of the data folder",
        _ => "",
    }
}

/// Fails with less than [`FREE_BYTES_MIN`] free.
///
/// # Errors
/// Too little space, in the words of the registry's pushes and pulls.
pub fn check_space(free_bytes: u64) -> io::Result<()> {
    if free_bytes >= FREE_BYTES_MIN {
        return Ok(());
    }
    let text = format!(
        "no space left on device: {free_bytes} bytes are free, and {FREE_BYTES_MIN} must stay free for the cluster's store"
    );
    Err(io::Error::new(io::ErrorKind::StorageFull, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_error_has_advice() {
        assert!(check_space(FREE_BYTES_MIN).is_ok());
        let full = check_space(FREE_BYTES_MIN - 1).unwrap_err();
        assert_eq!(
            format!("{full}{}", advice(&full)),
            "no space left on device: 268435455 bytes are free, and 268435456 must stay free for the cluster's store; free some \
             space on the disk of the data folder"
        );
        assert_eq!(advice(&io::ErrorKind::NotFound.into()), "");
    }
}
