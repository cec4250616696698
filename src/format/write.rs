//! Writes articles into files that other programs read, and that are imported again to the same ids:
//! all but RSS, which is for readers of feeds.

mod parquet;
mod rss;
mod table;
mod warc;

use std::io::{self, Write};
use std::str::FromStr;

use flate2::write::GzEncoder;
use serde_json::{Map, Value};
use zstd::stream::write::Encoder;

use super::{Format, one_of};
use crate::article::Article;
use crate::error::{Error, Reason, Result};

/// Where a file goes.
pub type Output<'a> = Box<dyn Write + Send + 'a>;

/// How a file is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

/// Every compression, its name, and the endings of its files, first the one that is written.
const COMPRESSIONS: [(Compression, &str, &[&str]); 3] = [
    (Compression::None, "none", &[]),
    (Compression::Gzip, "gzip", &["gz", "gzip"]),
    (Compression::Zstd, "zstd", &["zst", "zstd"]),
];

/// The level of Zstandard: the library's default.
const ZSTD_LEVEL: i32 = 3;

impl Compression {
    /// A file's name without the ending of its compression, and the compression.
    #[must_use]
    pub fn of_name(name: &str) -> (&str, Self) {
        if let Some((stem, ending)) = name.rsplit_once('.') {
            for (compression, _, endings) in COMPRESSIONS {
                if endings
                    .iter()
                    .any(|known| ending.eq_ignore_ascii_case(known))
                {
                    return (stem, compression);
                }
            }
        }
        (name, Self::None)
    }

    /// The ending of its files, with the dot.
    #[must_use]
    pub fn ending(self) -> String {
        let known = COMPRESSIONS
            .iter()
            .find(|(compression, _, _)| *compression == self);
        let ending = known.and_then(|(_, _, endings)| endings.first());
        ending.map_or_else(String::new, |ending| format!(".{ending}"))
    }

    /// Compresses some bytes.
    ///
    /// # Errors
    /// Those of the library, of which none is known.
    pub fn compressed(self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::None => Ok(bytes.to_vec()),
            Self::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
                encoder.write_all(bytes)?;
                encoder.finish()
            }
            Self::Zstd => zstd::encode_all(bytes, ZSTD_LEVEL),
        }
    }
}

impl FromStr for Compression {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let named = COMPRESSIONS.map(|(compression, name, _)| (name, compression));
        one_of("compress", text, &named)
    }
}

/// Writes one file.
pub struct Writer<'a>(Box<dyn WriteArticle + 'a>);

impl std::fmt::Debug for Writer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").finish_non_exhaustive()
    }
}

impl<'a> Writer<'a> {
    /// Begins a file.
    ///
    /// # Errors
    /// `ArgumentInvalid` if the format is not written into one file; `FileFailed`.
    pub fn new(format: Format, compression: Compression, output: Output<'a>) -> Result<Self> {
        let sink = |output| Sink::new(compression, output).map_err(cannot_begin);
        let writer: Box<dyn WriteArticle + 'a> = match format {
            Format::JsonLines => Box::new(JsonLines(sink(output)?)),
            Format::Csv => Box::new(table::Table::new(sink(output)?, b',').map_err(cannot_begin)?),
            Format::Tsv => Box::new(table::Table::new(sink(output)?, b'\t').map_err(cannot_begin)?),
            Format::Parquet => Box::new(parquet::Rows::new(sink(output)?).map_err(cannot_begin)?),
            // Each record is compressed by itself, so that readers can go to it.
            Format::Warc => Box::new(warc::Records::new(output, compression)),
            Format::Feed => Box::new(rss::Items::new(sink(output)?).map_err(cannot_begin)?),
            Format::Markdown | Format::Json | Format::JsonFeed | Format::Html => {
                let what = format!(
                    "{} is not written into a file; jsonl, csv, tsv, parquet, warc and rss are",
                    format.name()
                );
                return Err(Error::field(Reason::ArgumentInvalid, "format", what));
            }
        };
        Ok(Self(writer))
    }

    /// Writes an article. `fields` are all that is known of it, under the names of the protos.
    ///
    /// # Errors
    /// Those of the file.
    pub fn write(&mut self, article: &Article, fields: &Map<String, Value>) -> io::Result<()> {
        self.0.write(article, fields)
    }

    /// Ends the file.
    ///
    /// # Errors
    /// Those of the file.
    pub fn finish(self) -> io::Result<()> {
        self.0.finish()
    }
}

fn cannot_begin(error: io::Error) -> Error {
    Error::new(Reason::FileFailed, "cannot be written").with_source(error)
}

/// Writes articles in one format.
trait WriteArticle: Send {
    fn write(&mut self, article: &Article, fields: &Map<String, Value>) -> io::Result<()>;
    fn finish(self: Box<Self>) -> io::Result<()>;
}

/// What compresses a file.
enum Sink<'a> {
    Plain(Output<'a>),
    Gzip(GzEncoder<Output<'a>>),
    Zstd(Encoder<'static, Output<'a>>),
}

impl<'a> Sink<'a> {
    fn new(compression: Compression, output: Output<'a>) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::Plain(output),
            Compression::Gzip => Self::Gzip(GzEncoder::new(output, flate2::Compression::default())),
            Compression::Zstd => {
                let mut encoder = Encoder::new(output, ZSTD_LEVEL)?;
                encoder.include_checksum(true)?;
                Self::Zstd(encoder)
            }
        })
    }

    /// Writes the end.
    fn finish(self) -> io::Result<()> {
        let mut output = match self {
            Self::Plain(output) => output,
            Self::Gzip(encoder) => encoder.finish()?,
            Self::Zstd(encoder) => encoder.finish()?,
        };
        output.flush()
    }
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(output) => output.write(bytes),
            Self::Gzip(encoder) => encoder.write(bytes),
            Self::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(output) => output.flush(),
            Self::Gzip(encoder) => encoder.flush(),
            Self::Zstd(encoder) => encoder.flush(),
        }
    }
}

/// A JSON object a line.
struct JsonLines<'a>(Sink<'a>);

impl WriteArticle for JsonLines<'_> {
    fn write(&mut self, _: &Article, fields: &Map<String, Value>) -> io::Result<()> {
        serde_json::to_writer(&mut self.0, fields)?;
        self.0.write_all(b"\n")
    }

    fn finish(self: Box<Self>) -> io::Result<()> {
        self.0.finish()
    }
}
