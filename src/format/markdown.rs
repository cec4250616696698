//! Markdown: one article a file, in the canonical layout, whose id is the hash of the file, or with
//! front matter in YAML.

use std::io::{self, Read};

use serde_json::{Map, Value};

use super::pieces::limit;
use crate::article::{Article, ContentHash, TEXT_BYTES_MAX, Timestamp};
use crate::error::{Error, Reason, Result};

/// The ending of files that are written, and the endings of those that are read in folders.
pub const ENDING: &str = "md";
/// The endings that are read in folders.
pub const ENDINGS: [&str; 3] = [ENDING, "markdown", "txt"];

/// What encloses front matter.
const FENCE: &str = "---";

/// The longest front matter.
const FRONT_BYTES_MAX: usize = 64 * 1024;

/// The longest file.
pub(super) const FILE_BYTES_MAX: usize = FRONT_BYTES_MAX + TEXT_BYTES_MAX;

/// Reads a file in the canonical layout, and never more of it than an article can have.
///
/// # Errors
/// `FileFailed` if it cannot be read; `ArticleInvalid`, naming the field, or `text` if the file is
/// too long or not UTF-8.
pub fn read(file: impl Read) -> Result<Article> {
    parse(&read_bytes(file, TEXT_BYTES_MAX)?)
}

/// Reads the bytes of a file, and of one that is too long one byte more than fits.
pub(super) fn read_bytes(file: impl Read, bytes_max: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut start = file.take(limit(bytes_max).saturating_add(1));
    start.read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}

/// Reads the bytes of a file in the canonical layout.
pub(super) fn parse(bytes: &[u8]) -> Result<Article> {
    if bytes.len() > TEXT_BYTES_MAX {
        let what = format!("has more than {TEXT_BYTES_MAX} bytes, the limit of a canonical text");
        return Err(Error::field(Reason::ArticleInvalid, "text", what));
    }
    Article::parse(text_of(bytes)?)
}

fn text_of(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|error| {
        let what = format!("is not UTF-8 from byte {} on", error.valid_up_to());
        Error::field(Reason::ArticleInvalid, "text", what)
    })
}

/// Whether a file begins with front matter.
pub(super) fn has_front_matter(start: &[u8]) -> bool {
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start);
    let rest = start.strip_prefix(FENCE.as_bytes());
    rest.is_some_and(|rest| rest.starts_with(b"\n") || rest.starts_with(b"\r\n"))
}

/// The fields of a file with front matter. The blank lines behind it are not part of the body, and a
/// heading with which the body begins is the title if the front matter has none.
pub(super) fn front_matter(bytes: &[u8]) -> Result<Map<String, Value>> {
    let invalid = |what: String| Error::field(Reason::ArticleInvalid, "front matter", what);
    let text = text_of(bytes)?;
    let mut rest = text.trim_start_matches('\u{feff}');
    let mut front = String::new();
    rest = rest.split_once('\n').unwrap_or_default().1;
    let body = loop {
        let (line, behind) = rest.split_once('\n').unwrap_or((rest, ""));
        if rest.is_empty() {
            return Err(invalid(format!("has no end, a line with {FENCE}")));
        }
        if matches!(line.trim_end(), FENCE | "...") {
            break behind;
        }
        front.push_str(line.trim_end_matches('\r'));
        front.push('\n');
        if front.len() > FRONT_BYTES_MAX {
            let what = format!("has more than {FRONT_BYTES_MAX} bytes, the limit");
            return Err(invalid(what));
        }
        rest = behind;
    };
    // Aliases that multiply are refused by the limits that are the default.
    let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
    let value: Value = serde_saphyr::from_str_with_options(&front, options)
        .map_err(|error| invalid(format!("is not valid YAML: {error}")))?;
    let mut fields = match value {
        Value::Object(fields) => fields,
        Value::Null => Map::new(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            return Err(invalid("is YAML, but not a mapping".to_owned()));
        }
    };
    // Where YAML sees a number or a truth, a title or a source is what is written: 1.10 or no.
    for (name, value) in &mut fields {
        if value.is_number() || value.is_boolean() {
            let written = front.lines().find_map(|line| {
                let rest = line.strip_prefix(name.as_str())?.strip_prefix(':')?;
                Some(rest.split(" #").next().unwrap_or_default().trim())
            });
            if let Some(written) = written {
                *value = written.into();
            }
        }
    }
    let mut body = body.trim_start_matches(['\n', '\r']);
    if !fields.contains_key("title")
        && let Some(heading) = body.strip_prefix("# ")
    {
        let (title, behind) = heading.split_once('\n').unwrap_or((heading, ""));
        fields.insert("title".into(), title.trim().into());
        body = behind.trim_start_matches(['\n', '\r']);
    }
    fields.insert("body".into(), body.into());
    Ok(fields)
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
    fn front_matter_is_read() {
        let text = "---\r\ntitle: \"A: b\"\nauthors: [X, Y]\ndate: 2020-01-02\nn: 1.10 # x\n---\n\n\nBody \n---\n";
        assert!(has_front_matter(text.as_bytes()) && !has_front_matter(b"---- \n"));
        let expected = serde_json::json!({"title": "A: b", "authors": ["X", "Y"],
            "date": "2020-01-02", "n": "1.10", "body": "Body \n---\n"});
        assert_eq!(
            Value::Object(front_matter(text.as_bytes()).unwrap()),
            expected
        );
        let heading = front_matter(b"---\n...\n# T \n\nB").unwrap();
        assert_eq!(
            (&heading["title"], &heading["body"]),
            (&"T".into(), &"B".into())
        );
    }

    #[test]
    fn front_matter_that_is_wrong_or_grows_is_refused() {
        let mut laughs = "a0: &a0 [ha]\n".to_owned();
        for number in 1..40 {
            let before = number - 1;
            let after = format!("*a{before},").repeat(9);
            laughs = format!("{laughs}a{number}: &a{number} [{after}]\n");
        }
        for (front, what) in [
            (laughs.as_str(), "YAML"),
            ("- a\n", "not a mapping"),
            ("a: [\n", "YAML"),
            (&"a: b\n".repeat(20_000), "65536"),
        ] {
            let error = front_matter(format!("---\n{front}---\nB").as_bytes()).unwrap_err();
            assert!(error.to_string().contains(what), "{error}");
        }
        let error = front_matter(b"---\na: b\n").unwrap_err();
        assert!(error.to_string().contains("has no end"), "{error}");
    }

    #[test]
    fn paths_lead_to_days() {
        let id = ContentHash::of(b"");
        let time = Timestamp::parse("t", "0987-01-02T03:04:05+00:00").unwrap();
        assert_eq!(path(&id, Some(time)), format!("0987/01/02/{id}.md"));
        assert_eq!(path(&id, None), format!("undated/{id}.md"));
    }
}
