//! Markdown in the canonical layout: one article a file, whose id is the hash of the file.

use std::io::{self, Read};

use crate::article::{Article, ContentHash, TEXT_BYTES_MAX, Timestamp};
use crate::error::{Error, Reason, Result};

/// The ending of files that are written, and the endings of those that are read in folders.
pub const ENDING: &str = "md";
/// The endings that are read in folders.
pub const ENDINGS: [&str; 3] = [ENDING, "markdown", "txt"];

/// Reads a file in the canonical layout, and never more of it than an article can have.
///
/// # Errors
/// `FileFailed` if it cannot be read; `ArticleInvalid`, naming the field, or `text` if the file is
/// too long or not UTF-8.
pub fn read(file: impl Read) -> Result<Article> {
    parse(&read_bytes(file)?)
}

/// Reads the bytes of a file, and of one that is too long to be an article one byte more than fits.
pub(super) fn read_bytes(file: impl Read) -> Result<Vec<u8>> {
    let limit = u64::try_from(TEXT_BYTES_MAX).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    let mut start = file.take(limit.saturating_add(1));
    start.read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}

/// Reads the bytes of a file in the canonical layout.
pub(super) fn parse(bytes: &[u8]) -> Result<Article> {
    if bytes.len() > TEXT_BYTES_MAX {
        let what = format!("has more than {TEXT_BYTES_MAX} bytes, the limit of a canonical text");
        return Err(Error::field(Reason::ArticleInvalid, "text", what));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let what = format!("is not UTF-8 from byte {} on", error.valid_up_to());
        Error::field(Reason::ArticleInvalid, "text", what)
    })?;
    Article::parse(text)
}

/// The error of a file that cannot be opened or read.
#[must_use]
pub fn unreadable(error: io::Error) -> Error {
    Error::new(Reason::FileFailed, "cannot be read").with_source(error)
}

/// Where an article is exported to: a folder per day, and its id as the name.
#[must_use]
pub fn path(id: &ContentHash, published_at: Option<Timestamp>) -> String {
    let folder = published_at.map_or_else(
        || "undated".to_owned(),
        |time| {
            time.to_string()
                .chars()
                .take("YYYY-MM-DD".len())
                .collect::<String>()
                .replace('-', "/")
        },
    );
    format!("{folder}/{id}.{ENDING}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_utf_8_says_where() {
        let error = read(&b"\n# a\xff"[..]).unwrap_err();
        assert_eq!(error.field_name(), Some("text"));
        assert!(error.message().contains("from byte 4 on"), "{error}");
    }

    #[test]
    fn an_endless_file_is_refused_without_reading_it_all() {
        let error = read(io::repeat(b'x')).unwrap_err();
        assert_eq!(error.field_name(), Some("text"));
        assert!(
            error.message().contains("more than 3145728 bytes"),
            "{error}"
        );
    }

    #[test]
    fn paths_lead_to_days() {
        let id = ContentHash::of(b"");
        let time = Timestamp::parse("t", "0987-01-02T03:04:05+00:00").unwrap();
        assert_eq!(path(&id, Some(time)), format!("0987/01/02/{id}.md"));
        assert_eq!(path(&id, None), format!("undated/{id}.md"));
    }
}
