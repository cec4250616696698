//! Files that articles come from and go to. Reads and writes no archive.
//!
//! A file is read in two steps: it is cut into the pieces that hold a record each, and a piece is
//! made an article. What is wrong with one piece costs that piece only. Pieces do not depend on
//! each other, so they can be parsed on several threads.

mod csv;
mod date;
mod feed;
mod fields;
mod html;
mod input;
mod json;
pub mod markdown;
mod parquet;
mod pieces;
mod profiles;
mod warc;
pub mod write;

use std::fs::File;
use std::io::{BufRead, Read};
use std::str::FromStr;
use std::sync::Arc;

pub use self::fields::{DateNote, Field, FieldName, Found, Mapping};
pub use self::html::Page;
pub use self::input::Counter;
pub use self::pieces::{Content, PIECE_BYTES_MAX, Piece, Pieces, Place};
pub use self::profiles::Profile;
use crate::error::{Error, Reason, Result, excerpt, panic};

/// How the records of a file are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One article, in the canonical layout or with front matter.
    Markdown,
    /// A JSON object on each line.
    JsonLines,
    /// An array of JSON objects, or objects one behind the other.
    Json,
    /// JSON Feed.
    JsonFeed,
    /// A table of texts, with the names of the columns in its first record.
    Csv,
    /// The same with tabs.
    Tsv,
    /// A table in columns.
    Parquet,
    /// RSS or Atom.
    Feed,
    /// A web page.
    Html,
    /// Web pages as they were fetched.
    Warc,
}

/// Every format, its name, and the endings of its files.
const FORMATS: [(Format, &str, &[&str]); 10] = [
    (Format::Markdown, "markdown", &markdown::ENDINGS),
    (Format::JsonLines, "jsonl", &["jsonl", "ndjson"]),
    (Format::Json, "json", &["json"]),
    (Format::JsonFeed, "json-feed", &[]),
    (Format::Csv, "csv", &["csv"]),
    (Format::Tsv, "tsv", &["tsv", "tab"]),
    (Format::Parquet, "parquet", &["parquet"]),
    (Format::Feed, "rss", &["rss", "atom", "xml"]),
    (Format::Html, "html", &["html", "htm", "xhtml"]),
    (Format::Warc, "warc", &["warc"]),
];

impl Format {
    /// The format of a file by its name, whose last ending may be that of a compressed file.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        let (stem, _) = write::Compression::of_name(name);
        let ending = stem.rsplit_once('.')?.1;
        FORMATS.into_iter().find_map(|(format, _, endings)| {
            let is_known = endings
                .iter()
                .any(|known| ending.eq_ignore_ascii_case(known));
            is_known.then_some(format)
        })
    }

    /// The format of a file by how it begins.
    fn of_start(start: &[u8]) -> Option<Self> {
        if start.starts_with(b"\n# ") || markdown::has_front_matter(start) {
            return Some(Self::Markdown);
        }
        if start.starts_with(warc::MAGIC) {
            return Some(Self::Warc);
        }
        if start.starts_with(parquet::MAGIC) {
            return Some(Self::Parquet);
        }
        let start = start
            .strip_prefix(b"\xef\xbb\xbf")
            .unwrap_or(start)
            .trim_ascii_start();
        if start.starts_with(b"[") {
            return Some(Self::Json);
        }
        if let Some(inside) = start.strip_prefix(b"{") {
            // An object that is broken over lines is no line of JSON Lines.
            return Some(if inside.trim_ascii_start().len() + 1 < inside.len() {
                Self::Json
            } else {
                Self::JsonLines
            });
        }
        if feed::is_feed(start) {
            return Some(Self::Feed);
        }
        let lower = start.to_ascii_lowercase();
        if lower.starts_with(b"<!doctype html") || lower.starts_with(b"<html") {
            return Some(Self::Html);
        }
        let header = start
            .split(|byte| *byte == b'\n')
            .next()
            .unwrap_or_default();
        Mapping::knows_columns(header).then_some(Self::Csv)
    }

    /// The name that it has on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        let known = FORMATS.into_iter().find(|(format, _, _)| *format == self);
        known.map_or("", |(_, name, _)| name)
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
        let what = format!("{} is none of {}", excerpt(text), names.join(", "));
        Error::field(Reason::ArgumentInvalid, argument, what)
    })
}

/// What all records of a file share, which it takes to read one.
#[derive(Debug)]
enum Shape {
    /// Nothing.
    Bare,
    Columns(csv::Columns),
    Frame(feed::Frame),
    /// The title of a feed.
    Title(Option<String>),
}

/// Makes articles of the pieces of one file.
#[derive(Clone, Debug)]
pub struct Parser {
    format: Format,
    shape: Arc<Shape>,
}

impl Parser {
    /// The format of the file.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Makes an article of a piece of its file.
    ///
    /// # Errors
    /// `ArticleInvalid` or `IdMismatch`, naming the field.
    pub fn parse(&self, content: &Content, mapping: &Mapping) -> Result<Found> {
        let read = || self.parse_trusted(content, mapping);
        panic::caught(read).unwrap_or_else(|_| {
            let what = "is damaged in a way that its reader does not look for";
            Err(Error::field(Reason::ArticleInvalid, "record", what))
        })
    }

    /// The same, but libraries that read it may panic.
    fn parse_trusted(&self, content: &Content, mapping: &Mapping) -> Result<Found> {
        let bytes = match content {
            Content::Bytes(bytes) => bytes,
            Content::Fields(fields) => return mapping.article(fields),
            Content::Page(page) => return mapping.own_article(&warc::article(page)?),
        };
        match (self.format, &*self.shape) {
            (Format::Csv | Format::Tsv, Shape::Columns(columns)) => {
                mapping.article(&columns.record(bytes)?)
            }
            (Format::Feed, Shape::Frame(frame)) => mapping.own_article(&feed::item(frame, bytes)?),
            (Format::JsonFeed, Shape::Title(title)) => {
                let mut item = json::object(bytes)?;
                if let Some(title) = title {
                    item.entry("source")
                        .or_insert_with(|| title.as_str().into());
                }
                mapping.article(&item)
            }
            (Format::Markdown, _) if markdown::has_front_matter(bytes) => {
                mapping.article(&markdown::front_matter(bytes)?)
            }
            (Format::Markdown, _) => {
                let article = markdown::parse(bytes)?;
                let date = DateNote::Fine;
                Ok(Found { article, date })
            }
            (Format::Html, _) => mapping.own_article(&html::article(bytes, None, "")?),
            _ => mapping.article(&json::object(bytes)?),
        }
    }
}

/// Where bytes come from.
pub enum Source {
    /// A file that can be sought in.
    File(File),
    /// Anything else.
    Stream(Box<dyn Read + Send>),
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").finish_non_exhaustive()
    }
}

/// Opens a file for its pieces: compressed or not, in the format that the caller names, or its name,
/// or its first bytes. `read` counts what is read of it.
///
/// # Errors
/// `FileFailed` if it cannot be read or its format is not known.
pub fn open(
    source: Source,
    read: &Counter,
    name: &str,
    format: Option<Format>,
) -> Result<(Parser, Pieces)> {
    let unreadable = markdown::unreadable;
    let (file, stream): (Option<File>, Box<dyn Read + Send>) = match source {
        Source::File(file) => {
            let clone = file.try_clone().map_err(unreadable)?;
            (Some(clone), Box::new(file))
        }
        Source::Stream(stream) => (None, stream),
    };
    let (input, is_compressed) = input::decompressed(read.counting(stream)).map_err(unreadable)?;
    let (start, mut input) = input::with_start(input).map_err(unreadable)?;
    let known = format.or_else(|| Format::of_name(name));
    let known = known.or_else(|| Format::of_start(&start)).ok_or_else(|| {
        Error::new(Reason::FileFailed, "is of no format that is known")
            .with_advice("name it with --format")
    })?;
    let is_text = known != Format::Parquet && known != Format::Html;
    if is_text && (start.starts_with(b"\xff\xfe") || start.starts_with(b"\xfe\xff")) {
        let what = "is UTF-16; convert it to UTF-8 first";
        return Err(Error::new(Reason::FileFailed, what));
    }
    if known != Format::Markdown && start.starts_with(b"\xef\xbb\xbf") {
        input.consume(3);
    }
    let is_json = matches!(known, Format::Json | Format::JsonLines);
    let format = if is_json && json::is_feed(&start) {
        Format::JsonFeed
    } else {
        known
    };
    let mut shape = Shape::Bare;
    let pieces: Pieces = match format {
        Format::Markdown => pieces::whole(input, markdown::FILE_BYTES_MAX),
        Format::Html => pieces::whole(input, html::PAGE_BYTES_MAX),
        Format::JsonLines => Box::new(pieces::Lines::new(input)),
        Format::Json => Box::new(json::Values::new(input)),
        Format::JsonFeed => {
            let (items, title) = json::Values::of_feed(input)?;
            shape = Shape::Title(title);
            Box::new(items)
        }
        Format::Csv | Format::Tsv => {
            let (records, columns) = csv::Records::new(input)?;
            shape = Shape::Columns(columns);
            Box::new(records)
        }
        Format::Feed => {
            let (items, frame) = feed::Items::new(input)?;
            shape = Shape::Frame(frame);
            Box::new(items)
        }
        Format::Warc => Box::new(warc::Records::new(input)),
        Format::Parquet => Box::new(match file {
            Some(file) if !is_compressed => parquet::Rows::new(file, read.clone())?,
            _ => parquet::Rows::new(parquet::seekable(input)?, Counter::default())?,
        }),
    };
    let shape = Arc::new(shape);
    Ok((Parser { format, shape }, pieces))
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
            ("CC-NEWS-20200102.warc.gz", Some(Format::Warc)),
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
            ("---\ntitle: A\n", Some(Format::Markdown)),
            (" [{", Some(Format::Json)),
            ("{\"title\"", Some(Format::JsonLines)),
            ("{\n  \"title\"", Some(Format::Json)),
            ("<?xml version=\"1.0\"?>\n<rss ", Some(Format::Feed)),
            ("<!DOCTYPE html>", Some(Format::Html)),
            ("WARC/1.0\r\n", Some(Format::Warc)),
            ("PAR1", Some(Format::Parquet)),
            ("id,\"title\",body\n", Some(Format::Csv)),
            ("\u{feff}url\theadline\ttext\r\n", Some(Format::Csv)),
            ("# A", None),
            ("title", None),
            ("a, b", None),
            ("", None),
        ] {
            assert_eq!(Format::of_start(start.as_bytes()), format, "{start:?}");
        }
    }
}
