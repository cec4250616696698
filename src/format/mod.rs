//! Files that articles come from and go to. Reads and writes no archive.
//!
//! A file is read in two steps: it is cut into the pieces that hold a record each, and a piece is
//! made an article. What is wrong with one piece costs that piece only.

mod date;
mod fields;
mod input;
pub mod markdown;
mod pieces;

use std::io::{BufRead, Read};
use std::str::FromStr;

use serde_json::Value;

pub use self::fields::{DateNote, Field, FieldName, Found, Mapping, Profile};
pub use self::pieces::{PIECE_BYTES_MAX, Piece, Pieces, Place};
use crate::error::{Error, Reason, Result};

/// How the records of a file are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One article in the canonical layout.
    Markdown,
    /// A JSON object on each line.
    JsonLines,
    /// An array of JSON objects, or objects one behind the other.
    Json,
}

/// Every format, its name, and the endings of its files.
const FORMATS: [(Format, &str, &[&str]); 3] = [
    (Format::Markdown, "markdown", &markdown::ENDINGS),
    (Format::JsonLines, "jsonl", &["jsonl", "ndjson"]),
    (Format::Json, "json", &["json"]),
];

/// The endings of compressed files.
const COMPRESSED: [&str; 4] = ["gz", "gzip", "zst", "zstd"];

impl Format {
    /// The format of a file by its name, whose last ending may be that of a compressed file.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        let (stem, ending) = name.rsplit_once('.')?;
        let is_compressed = COMPRESSED
            .iter()
            .any(|known| ending.eq_ignore_ascii_case(known));
        let ending = if is_compressed {
            stem.rsplit_once('.')?.1
        } else {
            ending
        };
        FORMATS.into_iter().find_map(|(format, _, endings)| {
            let is_known = endings
                .iter()
                .any(|known| ending.eq_ignore_ascii_case(known));
            is_known.then_some(format)
        })
    }

    /// The format of a file by how it begins.
    fn of_start(start: &[u8]) -> Option<Self> {
        if start.starts_with(b"\n# ") {
            return Some(Self::Markdown);
        }
        let start = start.trim_ascii_start();
        if start.starts_with(b"[") {
            return Some(Self::Json);
        }
        let inside = start.strip_prefix(b"{")?;
        // An object that is broken over lines is no line of JSON Lines.
        Some(if inside.trim_ascii_start().len() + 1 < inside.len() {
            Self::Json
        } else {
            Self::JsonLines
        })
    }

    /// Makes an article of a piece of this format.
    ///
    /// # Errors
    /// `ArticleInvalid` or `IdMismatch`, naming the field.
    pub fn parse(self, piece: &[u8], mapping: &Mapping) -> Result<Found> {
        match self {
            Self::Markdown => {
                let article = markdown::parse(piece)?;
                let date = DateNote::Fine;
                Ok(Found { article, date })
            }
            Self::JsonLines | Self::Json => {
                let value: Value = serde_json::from_slice(piece).map_err(|error| {
                    let what = format!("is not valid JSON: {error}");
                    Error::field(Reason::ArticleInvalid, "record", what)
                })?;
                let Value::Object(record) = value else {
                    let what = "is JSON, but not an object";
                    return Err(Error::field(Reason::ArticleInvalid, "record", what));
                };
                mapping.article(&record)
            }
        }
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let named = FORMATS.map(|(format, name, _)| (name, format));
        one_of("format", text, &named)
    }
}

/// What a name stands for, of those that an argument can have.
fn one_of<T: Copy>(argument: &str, text: &str, values: &[(&str, T)]) -> Result<T> {
    let known = values.iter().find(|(name, _)| *name == text);
    known.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<&str> = values.iter().map(|(name, _)| *name).collect();
        let what = format!("{text:?} is none of {}", names.join(", "));
        Error::field(Reason::ArgumentInvalid, argument, what)
    })
}

/// Opens a file for its pieces: compressed or not, in the format that the caller names, or its name,
/// or its first bytes.
///
/// # Errors
/// `FileFailed` if it cannot be read or its format is not known.
pub fn open(
    file: impl Read + Send + 'static,
    name: &str,
    format: Option<Format>,
) -> Result<(Format, Pieces)> {
    let input = input::decompressed(file).and_then(input::with_start);
    let (start, mut input) = input.map_err(markdown::unreadable)?;
    if start.starts_with(b"\xff\xfe") || start.starts_with(b"\xfe\xff") {
        let what = "is UTF-16; convert it to UTF-8 first";
        return Err(Error::new(Reason::FileFailed, what));
    }
    let known = format.or_else(|| Format::of_name(name));
    let format = known.or_else(|| Format::of_start(&start)).ok_or_else(|| {
        Error::new(Reason::FileFailed, "is of no format that is known")
            .with_advice("name it with --format")
    })?;
    if format != Format::Markdown && start.starts_with(b"\xef\xbb\xbf") {
        input.consume(3);
    }
    Ok((format, Pieces::new(input, format)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_is_known_by_name() {
        for (name, format) in [
            ("a.md", Some(Format::Markdown)),
            ("a.b.JSONL.GZ", Some(Format::JsonLines)),
            ("a.ndjson.zst", Some(Format::JsonLines)),
            ("a.json", Some(Format::Json)),
            ("a.gz", None),
            ("json", None),
            ("a.exe", None),
        ] {
            assert_eq!(Format::of_name(name), format, "{name}");
        }
    }

    #[test]
    fn a_format_is_known_by_its_start() {
        for (start, format) in [
            ("\n# A", Some(Format::Markdown)),
            (" [{", Some(Format::Json)),
            ("{\"title\"", Some(Format::JsonLines)),
            ("{\n  \"title\"", Some(Format::Json)),
            ("# A", None),
            ("", None),
        ] {
            assert_eq!(Format::of_start(start.as_bytes()), format, "{start:?}");
        }
    }
}
