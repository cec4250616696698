//! Markdown in the canonical layout: one article a file, whose id is the hash of the file.

use crate::article::{Article, ContentHash, Timestamp};
use crate::error::{Error, Reason, Result};

/// The ending of files that are written, and the endings of those that are read in folders.
pub const ENDING: &str = "md";
/// The endings that are read in folders.
pub const ENDINGS: [&str; 3] = [ENDING, "markdown", "txt"];

/// Reads a file in the canonical layout.
///
/// # Errors
/// `ArticleInvalid`, naming the field, or `text` if the file is not UTF-8.
pub fn read(file: &[u8]) -> Result<Article> {
    let text = std::str::from_utf8(file).map_err(|error| {
        let what = format!("is not UTF-8 from byte {} on", error.valid_up_to());
        Error::field(Reason::ArticleInvalid, "text", what)
    })?;
    Article::parse(text)
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
        let error = read(b"\n# a\xff").unwrap_err();
        assert_eq!(error.field_name(), Some("text"));
        assert!(error.message().contains("from byte 4 on"), "{error}");
    }

    #[test]
    fn paths_lead_to_days() {
        let id = ContentHash::of(b"");
        let time = Timestamp::parse("t", "0987-01-02T03:04:05+00:00").unwrap();
        assert_eq!(path(&id, Some(time)), format!("0987/01/02/{id}.md"));
        assert_eq!(path(&id, None), format!("undated/{id}.md"));
    }
}
