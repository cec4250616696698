//! [`ContentHash`]: the BLAKE3 hash that names an article or its body.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Reason, Result, excerpt};

/// The width of a hash in bytes.
pub const HASH_BYTES: usize = 32;

/// The width of a printed hash.
pub const HASH_HEX_DIGITS: usize = HASH_BYTES * 2;

/// A 256-bit BLAKE3 hash, printed as 64 lower-case hex digits.
///
/// Its order is the order of its bytes, which is the order of its printed form.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash([u8; HASH_BYTES]);

impl ContentHash {
    /// Hashes bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Takes a hash that was computed before.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; HASH_BYTES]) -> Self {
        Self(bytes)
    }

    /// The raw hash.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; HASH_BYTES] {
        &self.0
    }

    /// Reads 64 lower-case hex digits; the error names `field`.
    ///
    /// # Errors
    /// `ArgumentInvalid` if the length or a digit is wrong.
    pub fn parse(field: &str, text: &str) -> Result<Self> {
        let invalid = |what: String| Error::field(Reason::ArgumentInvalid, field, what);
        if text.len() != HASH_HEX_DIGITS {
            return Err(invalid(format!(
                "{} has {} characters, a hash has {HASH_HEX_DIGITS} lower-case hex digits",
                excerpt(text),
                text.len()
            )));
        }
        let mut bytes = [0; HASH_BYTES];
        let (pairs, _) = text.as_bytes().as_chunks();
        let mut all = 0;
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            let (high, low) = (digit_value(*high), digit_value(*low));
            all |= high | low;
            *byte = high << 4 | low;
        }
        if all > 0xf {
            let wrong = text.bytes().position(|digit| hex_value(digit).is_none());
            return Err(invalid(format!(
                "{} has no lower-case hex digit at position {}",
                excerpt(text),
                wrong.unwrap_or_default()
            )));
        }
        Ok(Self(bytes))
    }
}

/// The value of a digit, without a branch: a call can bring ten thousand hashes.
fn digit_value(digit: u8) -> u8 {
    let decimal = digit.wrapping_sub(b'0');
    let letter = digit.wrapping_sub(b'a');
    let is_decimal = 0_u8.wrapping_sub(u8::from(decimal < 10));
    let is_letter = 0_u8.wrapping_sub(u8::from(letter < 6));
    decimal & is_decimal | letter.wrapping_add(10) & is_letter | !(is_decimal | is_letter)
}

/// The value of one lower-case hex digit.
#[must_use]
pub const fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = blake3::Hash::from_bytes(self.0).to_hex();
        write!(f, "ContentHash({:.10})", hex.as_str())
    }
}

impl FromStr for ContentHash {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse("id", text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Vectors of the BLAKE3 test suite: inputs are the bytes 0, 1, .. 250, 0, ...
    #[test]
    fn published_vectors_hold() {
        let input: Vec<u8> = (0..=250).cycle().take(1025).collect();
        let cases = [
            (
                0,
                "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
            ),
            (
                1,
                "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213",
            ),
            (
                1024,
                "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7",
            ),
            (
                1025,
                "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444",
            ),
        ];
        for (length, expected) in cases {
            assert_eq!(ContentHash::of(&input[..length]).to_string(), expected);
        }
    }

    #[test]
    fn text_and_bytes_agree() {
        let hash = ContentHash::of(b"news");
        assert_eq!(hash.to_string().parse::<ContentHash>().unwrap(), hash);
        assert_eq!(ContentHash::from_bytes(*hash.as_bytes()), hash);
        assert_eq!(format!("{hash:?}").len(), "ContentHash()".len() + 10);
    }

    #[test]
    fn only_lower_case_hex_of_the_right_length_is_a_hash() {
        let good = ContentHash::of(b"").to_string();
        let cases = [
            (String::new(), "has 0 characters"),
            (good[1..].to_owned(), "has 63 characters"),
            (good.to_uppercase(), "at position 0"),
            (format!("{}g", &good[..63]), "at position 63"),
        ];
        for (text, expected) in cases {
            let error = text.parse::<ContentHash>().unwrap_err();
            assert!(error.message().contains(expected), "{error}");
            assert_eq!(error.field_name(), Some("id"));
        }
    }
}
