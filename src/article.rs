//! The article: its six fields, their rules, and the canonical text that its id is the hash of.
//!
//! An [`Article`] cannot be wrong: every value of the type was validated, so nothing behind it
//! checks again. Rendering is injective: two different articles never have one text, which is what
//! lets the hash of the text name the article. This module does no I/O and reads no clock.
//!
//! The canonical text, byte for byte (`\n` line ends, one empty line first, nothing after the body):
//!
//! ```text
//!
//! # {title}
//!
//! Published at: **{published_at}**
//!
//! Author: **{author}**
//!
//! Original: [{source}]({url})
//!
//! {body}
//! ```
//!
//! A missing date and a missing author are both empty, so their lines end in `****`.

mod hash;
mod sketch;
mod time;
mod url;
mod words;

pub use self::hash::{ContentHash, HASH_BYTES, HASH_HEX_DIGITS, hex_value};
pub use self::sketch::{SKETCH_BYTES, Shingles, Sketch, equal_bits_min};
pub use self::time::{SECONDS_MAX, SECONDS_MIN, Timestamp};
pub use self::url::canonical_url;
pub use self::words::{Words, words};

use crate::error::{Error, Reason, Result, excerpt};

/// The longest title.
pub const TITLE_BYTES_MAX: usize = 4096;

/// The longest author.
pub const AUTHOR_BYTES_MAX: usize = 1024;

/// The longest source.
pub const SOURCE_BYTES_MAX: usize = 256;

/// The longest URL.
pub const URL_BYTES_MAX: usize = 8192;

/// The longest canonical text: any article fits the 4 MiB message limit that gRPC clients have.
pub const TEXT_BYTES_MAX: usize = 3 * 1024 * 1024;

/// What stands before and after the value on each line of the layout; a line end follows.
const TITLE_LINE: [&str; 2] = ["\n# ", ""];
const DATE_LINE: [&str; 2] = ["\nPublished at: **", "**"];
const AUTHOR_LINE: [&str; 2] = ["\nAuthor: **", "**"];
const ORIGINAL_LINE: [&str; 2] = ["\nOriginal: [", ")"];
const BEFORE_URL: &str = "](";
const BEFORE_BODY: &str = "\n";
const LINE_END: &str = "\n";

/// Bytes of the canonical text that belong to no field.
const LAYOUT_BYTES: usize = line_bytes(TITLE_LINE)
    + line_bytes(DATE_LINE)
    + line_bytes(AUTHOR_LINE)
    + line_bytes(ORIGINAL_LINE)
    + BEFORE_URL.len()
    + BEFORE_BODY.len();

const fn line_bytes([before, after]: [&str; 2]) -> usize {
    before.len() + after.len() + LINE_END.len()
}

/// The six fields as somebody sent them, not yet checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArticleFields {
    /// The headline: one line, 1..=4096 bytes.
    pub title: String,
    /// When it was published, if that is known.
    pub published_at: Option<Timestamp>,
    /// Who wrote it: one line, up to 1024 bytes, empty if unknown.
    pub author: String,
    /// The outlet: one line, 1..=256 bytes.
    pub source: String,
    /// Where it was found: an absolute URL of up to 8192 bytes, or empty.
    pub url: String,
    /// The text, kept byte for byte: anything but NUL.
    pub body: String,
}

/// A valid article.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Article {
    fields: ArticleFields,
}

impl Article {
    /// Validates the six fields.
    ///
    /// # Errors
    /// `ArticleInvalid`, naming the first field that breaks its rule, the value and the limit.
    pub fn new(fields: ArticleFields) -> Result<Self> {
        check_line("title", &fields.title, 1, TITLE_BYTES_MAX)?;
        check_line("author", &fields.author, 0, AUTHOR_BYTES_MAX)?;
        check_line("source", &fields.source, 1, SOURCE_BYTES_MAX)?;
        if fields.source.contains(BEFORE_URL) {
            return Err(invalid(
                "source",
                format!("{} contains \"](\"", excerpt(&fields.source)),
            ));
        }
        check_url(&fields.url)?;
        if let Some(position) = fields.body.bytes().position(|byte| byte == 0) {
            return Err(invalid(
                "body",
                format!("has a NUL byte at byte {position}"),
            ));
        }
        let article = Self { fields };
        let text_bytes = article.text_bytes();
        if text_bytes > TEXT_BYTES_MAX {
            let body_bytes = article.fields.body.len();
            return Err(invalid(
                "body",
                format!(
                    "{body_bytes} bytes make a canonical text of {text_bytes} bytes, \
                     the limit is {TEXT_BYTES_MAX}"
                ),
            ));
        }
        Ok(article)
    }

    /// Reads a canonical text: the exact inverse of [`render`](Self::render).
    ///
    /// # Errors
    /// `ArticleInvalid`, naming the field whose line is missing, not canonical or breaks its rule.
    pub fn parse(text: &str) -> Result<Self> {
        Self::new(split(text)?)
    }

    /// Reads a canonical text that was validated before and is known by its hash to be unchanged.
    ///
    /// # Errors
    /// `ArticleInvalid` if the text has not the canonical layout after all.
    pub fn parse_trusted(text: &str) -> Result<Self> {
        split(text).map(|fields| Self { fields })
    }

    /// Writes the canonical text.
    #[must_use]
    pub fn render(&self) -> String {
        let fields = &self.fields;
        let date = fields
            .published_at
            .map(|time| time.to_string())
            .unwrap_or_default();
        let mut text = String::with_capacity(self.text_bytes());
        let mut line = |[before, after]: [&str; 2], value: &[&str]| {
            text.push_str(before);
            text.push_str(&value.concat());
            text.push_str(after);
            text.push_str(LINE_END);
        };
        line(TITLE_LINE, &[&fields.title]);
        line(DATE_LINE, &[&date]);
        line(AUTHOR_LINE, &[&fields.author]);
        line(ORIGINAL_LINE, &[&fields.source, BEFORE_URL, &fields.url]);
        text.push_str(BEFORE_BODY);
        text.push_str(&fields.body);
        text
    }

    /// The length of the canonical text.
    #[must_use]
    pub fn text_bytes(&self) -> usize {
        let fields = &self.fields;
        let date_bytes = fields.published_at.map_or(0, |time| time.to_string().len());
        LAYOUT_BYTES
            + date_bytes
            + fields.title.len()
            + fields.author.len()
            + fields.source.len()
            + fields.url.len()
            + fields.body.len()
    }

    /// The id: the BLAKE3 hash of the canonical text.
    #[must_use]
    pub fn id(&self) -> ContentHash {
        ContentHash::of(self.render().as_bytes())
    }

    /// The BLAKE3 hash of the body: equal for copies of one text printed by several sources.
    #[must_use]
    pub fn body_hash(&self) -> ContentHash {
        ContentHash::of(self.fields.body.as_bytes())
    }

    /// The headline.
    #[must_use]
    pub fn title(&self) -> &str {
        &self.fields.title
    }

    /// When it was published.
    #[must_use]
    pub fn published_at(&self) -> Option<Timestamp> {
        self.fields.published_at
    }

    /// Who wrote it, or empty.
    #[must_use]
    pub fn author(&self) -> &str {
        &self.fields.author
    }

    /// The outlet.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.fields.source
    }

    /// Where it was found, or empty.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.fields.url
    }

    /// The text.
    #[must_use]
    pub fn body(&self) -> &str {
        &self.fields.body
    }

    /// Gives the fields away.
    #[must_use]
    pub fn into_fields(self) -> ArticleFields {
        self.fields
    }
}

fn invalid(field: &str, message: impl std::fmt::Display) -> Error {
    Error::field(Reason::ArticleInvalid, field, message)
}

/// Checks a field that is one line: the rule that lets the layout be told from the fields.
fn check_line(field: &str, value: &str, bytes_min: usize, bytes_max: usize) -> Result<()> {
    if value.len() < bytes_min {
        return Err(invalid(
            field,
            format!("is empty, it needs 1 to {bytes_max} bytes"),
        ));
    }
    check_length(field, value, bytes_max)?;
    match value
        .char_indices()
        .find(|(_, character)| character.is_control())
    {
        Some((position, control)) => Err(invalid(
            field,
            format!(
                "{} has the control character U+{:04X} at byte {position}, it must be one line",
                excerpt(value),
                u32::from(control)
            ),
        )),
        None => Ok(()),
    }
}

fn check_length(field: &str, value: &str, bytes_max: usize) -> Result<()> {
    if value.len() <= bytes_max {
        return Ok(());
    }
    Err(invalid(
        field,
        format!(
            "{} has {} bytes, the limit is {bytes_max}",
            excerpt(value),
            value.len()
        ),
    ))
}

fn check_url(value: &str) -> Result<()> {
    if value.is_empty() {
        return Ok(());
    }
    check_length("url", value, URL_BYTES_MAX)?;
    let shown = excerpt(value);
    let blank = |character: char| character.is_whitespace() || character.is_control();
    if let Some(position) = value.find(blank) {
        return Err(invalid(
            "url",
            format!("{shown} has white space at byte {position}"),
        ));
    }
    if value.contains(BEFORE_URL) {
        return Err(invalid("url", format!("{shown} contains \"](\"")));
    }
    match ::url::Url::parse(value) {
        Ok(_) => Ok(()),
        Err(error) => Err(invalid(
            "url",
            format!("{shown} is not an absolute URL: {error}"),
        )),
    }
}

/// Takes the layout apart. A one-line field cannot contain a line end, and neither source nor URL
/// can contain `](`, so there is one way to do it.
fn split(text: &str) -> Result<ArticleFields> {
    let (title, rest) = take_line("title", TITLE_LINE, text)?;
    let (date, rest) = take_line("published_at", DATE_LINE, rest)?;
    let (author, rest) = take_line("author", AUTHOR_LINE, rest)?;
    let (original, rest) = take_line("source", ORIGINAL_LINE, rest)?;
    let (source, url) = original
        .split_once(BEFORE_URL)
        .ok_or_else(|| invalid("url", "no \"](\" stands between source and url"))?;
    let body = rest
        .strip_prefix(BEFORE_BODY)
        .ok_or_else(|| invalid("body", "no empty line stands before it"))?;
    let published_at = match date {
        "" => None,
        date => Some(Timestamp::parse("published_at", date)?),
    };
    Ok(ArticleFields {
        title: title.to_owned(),
        published_at,
        author: author.to_owned(),
        source: source.to_owned(),
        url: url.to_owned(),
        body: body.to_owned(),
    })
}

/// Takes one line of the layout from the front: its value, and the text behind its line end.
fn take_line<'a>(
    field: &str,
    [before, after]: [&str; 2],
    text: &'a str,
) -> Result<(&'a str, &'a str)> {
    let missing = |what: &str| {
        invalid(
            field,
            format!("its line is not {before:?}..{after:?}: {what}"),
        )
    };
    let rest = text.strip_prefix(before).ok_or_else(|| {
        missing(&format!(
            "found {}",
            excerpt(text.get(..before.len()).unwrap_or(text))
        ))
    })?;
    let (line, rest) = rest
        .split_once(LINE_END)
        .ok_or_else(|| missing("it has no end"))?;
    let value = line
        .strip_suffix(after)
        .ok_or_else(|| missing(&format!("found {}", excerpt(line))))?;
    Ok((value, rest))
}

#[cfg(test)]
mod tests;
