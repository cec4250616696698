//! Cuts a file into the pieces that hold a record each, without trusting it: a piece that is damaged or
//! too long is told, and the next one is found again.

use std::fmt;
use std::io::{self, BufRead, Read};

use super::Format;
use super::markdown::read_bytes;
use crate::error::{Error, Reason, Result};

/// The longest record of a file. JSON may write each byte of an article as six.
pub const PIECE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// How deep a JSON record may be nested; the parser has the same limit.
const DEPTH_MAX: usize = 127;

/// Where a record begins in its file, compression taken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It is the file.
    File,
    /// A line, counted from 1.
    Line(u64),
    /// A byte, counted from 0.
    Byte(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File => Ok(()),
            Self::Line(line) => write!(f, ":{line}"),
            Self::Byte(byte) => write!(f, ": byte {byte}"),
        }
    }
}

/// A record as it is in its file, or why it cannot be had.
#[derive(Debug)]
pub struct Piece {
    /// Where it begins.
    pub place: Place,
    /// Its bytes.
    pub bytes: Result<Vec<u8>>,
}

/// The pieces of one file, in its order.
pub struct Pieces {
    input: Box<dyn BufRead + Send>,
    format: Format,
    is_done: bool,
    line: u64,
    /// What is read; from `start` on it is not yet given, and that byte is at `offset`.
    held: Vec<u8>,
    start: usize,
    offset: u64,
}

impl fmt::Debug for Pieces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pieces")
            .field("format", &self.format)
            .field("line", &self.line)
            .field("offset", &self.offset)
            .finish_non_exhaustive()
    }
}

impl Iterator for Pieces {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        if self.is_done {
            return None;
        }
        match self.format {
            Format::Markdown => {
                self.is_done = true;
                Some(Piece {
                    place: Place::File,
                    bytes: read_bytes(&mut self.input),
                })
            }
            Format::JsonLines => self.line(),
            Format::Json => self.value(),
        }
    }
}

fn limit(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

fn invalid(what: impl fmt::Display) -> Error {
    Error::field(Reason::ArticleInvalid, "record", what)
}

fn too_long() -> Error {
    invalid(format!("has more than {PIECE_BYTES_MAX} bytes, the limit"))
}

impl Pieces {
    pub(super) fn new(input: Box<dyn BufRead + Send>, format: Format) -> Self {
        Self {
            input,
            format,
            is_done: false,
            line: 0,
            held: Vec::new(),
            start: 0,
            offset: 0,
        }
    }

    fn line(&mut self) -> Option<Piece> {
        loop {
            let mut bytes = Vec::new();
            let mut start = self.input.by_ref().take(limit(PIECE_BYTES_MAX) + 1);
            let read = start.read_until(b'\n', &mut bytes);
            self.line += 1;
            let place = Place::Line(self.line);
            let is_too_long = bytes.len() > PIECE_BYTES_MAX;
            let rest = match read {
                Ok(0) => {
                    self.is_done = true;
                    return None;
                }
                Ok(_) if is_too_long && !bytes.ends_with(b"\n") => self.input.skip_until(b'\n'),
                read => read,
            };
            if let Err(error) = rest {
                return Some(self.broken_off(place, error));
            }
            if is_too_long {
                let bytes = Err(too_long());
                return Some(Piece { place, bytes });
            }
            if !bytes.trim_ascii().is_empty() {
                let bytes = Ok(bytes);
                return Some(Piece { place, bytes });
            }
        }
    }

    /// The last piece of a file that cannot be read to its end.
    fn broken_off(&mut self, place: Place, error: io::Error) -> Piece {
        self.is_done = true;
        let what = "the file cannot be read from here on";
        let error = Error::new(Reason::FileFailed, what).with_source(error);
        Piece {
            place,
            bytes: Err(error),
        }
    }

    /// Reads on. Returns whether there was more.
    fn more(&mut self) -> io::Result<bool> {
        let read = loop {
            match self.input.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        let count = read.len();
        self.held.drain(..self.start);
        self.start = 0;
        self.held.extend_from_slice(read);
        self.input.consume(count);
        Ok(count > 0)
    }

    fn rest(&self) -> &[u8] {
        self.held.get(self.start..).unwrap_or_default()
    }

    /// Leaves what is given or skipped behind.
    fn drop_start(&mut self, count: usize) {
        self.start += count;
        self.offset += limit(count);
    }

    /// Drops bytes until one is wanted, which stays. Returns whether there is one.
    fn skip_until(&mut self, mut is_wanted: impl FnMut(u8) -> bool) -> io::Result<bool> {
        loop {
            let rest = self.rest();
            if let Some(at) = rest.iter().position(|byte| is_wanted(*byte)) {
                self.drop_start(at);
                return Ok(true);
            }
            let count = rest.len();
            self.drop_start(count);
            if !self.more()? {
                return Ok(false);
            }
        }
    }

    fn value(&mut self) -> Option<Piece> {
        let between = |byte: u8| byte.is_ascii_whitespace() || b"[],".contains(&byte);
        match self.skip_until(|byte| !between(byte)) {
            Ok(true) => {}
            Ok(false) => {
                self.is_done = true;
                return None;
            }
            Err(error) => return Some(self.broken_off(Place::Byte(self.offset), error)),
        }
        let place = Place::Byte(self.offset);
        let mut scan = ValueScan::default();
        let end = loop {
            match scan.step(self.rest()) {
                Step::End(end) => break Ok(end),
                Step::Next(next) => break Err((Some(next), invalid("has no end"))),
                Step::Broken(what) => break Err((None, invalid(what))),
                Step::More if scan.at > PIECE_BYTES_MAX => break Err((None, too_long())),
                Step::More => match self.more() {
                    Ok(true) => {}
                    Ok(false) => break Err((None, invalid("ends in the middle"))),
                    Err(error) => return Some(self.broken_off(place, error)),
                },
            }
        };
        let bytes = match end {
            Ok(end) => {
                let bytes = self.rest().get(..end).unwrap_or_default().to_vec();
                self.drop_start(end);
                Ok(bytes)
            }
            Err((Some(next), error)) => {
                self.drop_start(next);
                Err(error)
            }
            Err((None, error)) => {
                if let Err(error) = self.skip_broken() {
                    return Some(self.broken_off(place, error));
                }
                Err(error)
            }
        };
        Some(Piece { place, bytes })
    }

    /// Goes from the start of a broken value to what looks like the start of the next: an object
    /// right behind the end of another.
    fn skip_broken(&mut self) -> io::Result<()> {
        let mut is_behind_end = false;
        let mut is_first = true;
        self.skip_until(|byte| {
            let is_start = byte == b'{' && is_behind_end && !is_first;
            is_first = false;
            is_behind_end =
                byte == b'}' || is_behind_end && (byte == b',' || byte.is_ascii_whitespace());
            is_start
        })?;
        Ok(())
    }
}

/// How far the end of a JSON object was looked for.
#[derive(Debug, Default)]
struct ValueScan {
    at: usize,
    /// What closes the objects and arrays that are open.
    open: Vec<u8>,
    is_in_string: bool,
    is_escaped: bool,
    is_behind_comma: bool,
}

enum Step {
    /// The object ends before this byte.
    End(usize),
    /// It does not end, and another begins at this byte.
    Next(usize),
    Broken(&'static str),
    More,
}

impl ValueScan {
    /// Goes on in bytes that begin with the object. Only what could not be JSON is noticed, as
    /// early as it can be: behind a lost quotation mark, text is where numbers should be.
    fn step(&mut self, held: &[u8]) -> Step {
        for byte in held.get(self.at..).unwrap_or_default() {
            self.at += 1;
            if self.is_in_string {
                match byte {
                    _ if self.is_escaped => self.is_escaped = false,
                    b'\\' => self.is_escaped = true,
                    b'"' => self.is_in_string = false,
                    b'\n' => return Step::Broken("has a line break in a string"),
                    _ => {}
                }
                continue;
            }
            if byte.is_ascii_whitespace() {
                continue;
            }
            let is_behind_comma = std::mem::replace(&mut self.is_behind_comma, *byte == b',');
            match byte {
                b'{' if is_behind_comma && self.open.last() == Some(&b'}') => {
                    return Step::Next(self.at - 1);
                }
                b'{' | b'[' if self.open.len() >= DEPTH_MAX => {
                    return Step::Broken("is nested deeper than 127 levels");
                }
                b'{' => self.open.push(b'}'),
                _ if self.open.is_empty() => return Step::Broken("is not a JSON object"),
                b'[' => self.open.push(b']'),
                b'}' | b']' => {
                    if self.open.pop() != Some(*byte) {
                        return Step::Broken("has brackets that do not match");
                    }
                    if self.open.is_empty() {
                        return Step::End(self.at);
                    }
                }
                b'"' => self.is_in_string = true,
                // Numbers, and the letters of true, false, null, and of NaN and Infinity, which are
                // no JSON, but leave the rest of the file in order.
                b':'
                | b','
                | b'+'
                | b'-'
                | b'.'
                | b'0'..=b'9'
                | b't'
                | b'r'
                | b'u'
                | b'e'
                | b'f'
                | b'a'
                | b'l'
                | b's'
                | b'n'
                | b'E'
                | b'N'
                | b'I'
                | b'i'
                | b'y' => {}
                _ => return Step::Broken("has text outside of quotation marks"),
            }
        }
        Step::More
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// The pieces of a text, each as it is or `!` and what is wrong.
    fn cut(format: Format, text: &str) -> Vec<String> {
        let input = Box::new(Cursor::new(text.to_owned().into_bytes()));
        // Small reads, so that every byte is the last of one somewhere.
        let pieces = Pieces::new(Box::new(io::BufReader::with_capacity(3, input)), format);
        let shown = pieces.map(|piece| match piece.bytes {
            Ok(bytes) => String::from_utf8(bytes).unwrap().trim().to_owned(),
            Err(error) => format!("!{} {error}", piece.place),
        });
        shown.collect()
    }

    #[test]
    fn lines_are_cut_and_counted() {
        assert_eq!(cut(Format::JsonLines, "a\n\n b\r\nc"), ["a", "b", "c"]);
    }

    #[test]
    fn arrays_and_rows_of_objects_are_cut() {
        for text in [
            r#"[{"a":"}{"},{"b":[1,{"c":"\"]"}]}]"#,
            "{\"a\":\"}{\"}\n{\"b\":[1,{\"c\":\"\\\"]\"}]}\n",
            " [\n{\"a\":\"}{\"} ,\n {\"b\":[1,{\"c\":\"\\\"]\"}]}",
        ] {
            let pieces = cut(Format::Json, text);
            assert_eq!(pieces, [r#"{"a":"}{"}"#, r#"{"b":[1,{"c":"\"]"}]}"#]);
        }
    }

    #[test]
    fn a_broken_object_costs_only_itself() {
        for (broken, what) in [
            (r#"{"a":"lost quote,"b":"x y"}"#, "text outside"),
            ("{\"a\":\"lost\n\"}", "line break"),
            (r#"{"a":1"#, "has no end"),
            (r#"{"a":[1}"#, "brackets"),
            (r#"{"a" 1 } x }"#, "not a JSON object"),
            (r#"x{"a":1}"#, "not a JSON object"),
        ] {
            let good = [r#"{"n":1}"#, r#"{"n":2}"#, r#"{"n":3}"#];
            let text = format!("[{}, {broken}, {},\n{}]", good[0], good[1], good[2]);
            let pieces = cut(Format::Json, &text);
            let whole: Vec<&String> = pieces.iter().filter(|p| p.starts_with("{\"n\"")).collect();
            assert_eq!(whole, good, "{broken}: {pieces:?}");
            let told: Vec<&String> = pieces.iter().filter(|p| p.starts_with('!')).collect();
            assert_eq!(told.len(), 1, "{broken}: {pieces:?}");
            assert!(told[0].contains(what), "{broken}: {told:?}");
        }
    }

    #[test]
    fn nesting_and_length_have_limits() {
        let deep = format!("{}1", r#"{"a":"#.repeat(200));
        assert_eq!(cut(Format::Json, &deep).len(), 1);
        let endless = || Box::new(io::BufReader::new(io::repeat(b'x').take(40 << 20)));
        for format in [Format::Json, Format::JsonLines] {
            let input = Box::new(io::Cursor::new(b"{\"a\":\"").chain(endless()));
            let input = Box::new(input.chain(io::Cursor::new(b"\"}\n{\"n\":1}\n")));
            let pieces: Vec<Piece> = Pieces::new(input, format).collect();
            let [refused, good] = pieces.as_slice() else {
                panic!("{pieces:?}");
            };
            let error = refused.bytes.as_ref().unwrap_err();
            assert!(error.message().contains("33554432"), "{error}");
            assert_eq!(good.bytes.as_ref().unwrap().trim_ascii(), b"{\"n\":1}");
        }
    }
}
