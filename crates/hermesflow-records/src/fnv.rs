//! FNV-1a, a hash that is the same on every machine and in every version.

use std::io;

/// The 64-bit FNV-1a hash of the bytes that are written into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fnv1a(u64);

impl Default for Fnv1a {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv1a {
    /// The hash of some bytes.
    pub fn of(bytes: &[u8]) -> u64 {
        Self::default().and(bytes).0
    }

    /// The hash of everything written so far.
    pub fn number(self) -> u64 {
        self.0
    }

    fn and(self, bytes: &[u8]) -> Self {
        Self(bytes.iter().fold(self.0, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)))
    }
}

impl io::Write for Fnv1a {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        *self = self.and(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_published_vectors() {
        assert_eq!(Fnv1a::of(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(Fnv1a::of(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(Fnv1a::of(b"foobar"), 0x8594_4171_f739_67e8);
        let mut parts = Fnv1a::default();
        io::copy(&mut &b"foobar"[..], &mut parts).unwrap();
        assert_eq!(parts.number(), Fnv1a::of(b"foobar"));
    }
}
