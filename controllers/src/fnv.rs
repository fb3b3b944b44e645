//! Upstream's hash for the order of ports and subsets: FNV-1a, 128 bits, of a value in Go's printed form.

pub(crate) fn fnv128a(text: &str) -> u128 {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0100_0000_0000_0000_0000_013b;
    text.bytes().fold(OFFSET, |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::fnv128a;

    #[test]
    fn known_values() {
        assert_eq!(format!("{:032x}", fnv128a("")), "6c62272e07bb014262b821756295c58d");
        assert_eq!(format!("{:032x}", fnv128a("a")), "d228cb696f1a8caf78912b704e4a8964");
    }
}
