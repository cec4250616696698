//! Page tokens: opaque, URL-safe, bound to the query that they belong to, valid for ever.
//!
//! ```text
//!  0  1  version 1
//!  1  8  fingerprint of the query
//!  9  .  position, as its owner writes it
//!  .  4  first bytes of BLAKE3 over all before
//! ```

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::error::{Error, Reason, Result, excerpt};

const VERSION: u8 = 1;
const CHECKSUM_BYTES: usize = 4;

/// The longest token that is looked at: the longest position is the name of a source.
const TOKEN_CHARS_MAX: usize = 1024;

/// What tells the tokens of one query from those of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint([u8; 8]);

impl Fingerprint {
    /// Hashes a description of the query.
    #[must_use]
    pub fn of(query: &[u8]) -> Self {
        Self(short(query))
    }
}

/// Writes a token.
#[must_use]
pub fn encode(fingerprint: Fingerprint, position: &[u8]) -> String {
    let mut bytes = vec![VERSION];
    bytes.extend_from_slice(&fingerprint.0);
    bytes.extend_from_slice(position);
    bytes.extend_from_slice(&short::<CHECKSUM_BYTES>(&bytes));
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Reads the position from a token of the same query; an error names the field `page_token`.
///
/// # Errors
/// `PageTokenInvalid`, `PageTokenMismatch`.
pub fn decode(token: &str, fingerprint: Fingerprint) -> Result<Vec<u8>> {
    let field = "page_token";
    let (found, position) = parse(token).ok_or_else(|| {
        let what = format!("{} is not a token that this service made", excerpt(token));
        Error::field(Reason::PageTokenInvalid, field, what)
    })?;
    if found != fingerprint {
        let what = "belongs to another selector or order; send the ones that it was made with";
        return Err(Error::field(Reason::PageTokenMismatch, field, what));
    }
    Ok(position)
}

fn parse(token: &str) -> Option<(Fingerprint, Vec<u8>)> {
    if token.len() > TOKEN_CHARS_MAX {
        return None;
    }
    let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
    let (content, checksum) = bytes.split_last_chunk::<CHECKSUM_BYTES>()?;
    let (version, rest) = content.split_first()?;
    let (fingerprint, position) = rest.split_first_chunk()?;
    let intact = *version == VERSION && *checksum == short(content);
    intact.then(|| (Fingerprint(*fingerprint), position.to_vec()))
}

fn short<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut short = [0; N];
    blake3::Hasher::new()
        .update(bytes)
        .finalize_xof()
        .fill(&mut short);
    short
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_token_belongs_to_its_query() {
        let query = Fingerprint::of(b"query");
        let token = encode(query, b"position");
        assert!(
            token
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_')
        );
        assert_eq!(decode(&token, query).unwrap(), b"position");
        let error = decode(&token, Fingerprint::of(b"other")).unwrap_err();
        assert_eq!(error.reason(), Reason::PageTokenMismatch);
    }

    #[test]
    fn a_changed_token_is_refused() {
        let query = Fingerprint::of(b"query");
        let token = encode(query, b"position");
        for at in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            let error = decode(&changed, query).unwrap_err();
            assert_eq!(error.reason(), Reason::PageTokenInvalid, "{changed}");
            assert!(decode(&token[..at], query).is_err());
        }
    }

    proptest! {
        #[test]
        fn any_text_is_refused(text in "\\PC{0,60}") {
            prop_assert!(decode(&text, Fingerprint::of(b"query")).is_err());
        }
    }
}
