//! The pieces that a file is cut into, and what all cutters share. A cutter does not trust its file: a
//! piece that is damaged or too long is told, and the next one is found again.

use std::fmt;
use std::io::{self, BufRead, Read};

use serde_json::{Map, Value};

use super::html::Page;
use super::input::{Input, goes_on};
use super::markdown::read_bytes;
use crate::error::{Error, Reason, Result};

/// The longest record of a file. JSON may write each byte of an article as six.
pub const PIECE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Bytes that are looked at a second time, if the file has not more.
const AGAIN_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// Where a record begins in its file, compression taken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It is the file.
    File,
    /// A line, counted from 1.
    Line(u64),
    /// A row of a table, counted from 1.
    Row(u64),
    /// A byte, counted from 0.
    Byte(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File => Ok(()),
            Self::Line(line) => write!(f, ":{line}"),
            Self::Row(row) => write!(f, ": row {row}"),
            Self::Byte(byte) => write!(f, ": byte {byte}"),
        }
    }
}

/// A record as it is in its file, or why it cannot be had.
#[derive(Debug)]
pub struct Piece {
    /// Where it begins.
    pub place: Place,
    /// What it is.
    pub content: Result<Content>,
}

/// What a record is before it is parsed.
#[derive(Debug)]
pub enum Content {
    /// Its bytes.
    Bytes(Vec<u8>),
    /// Its fields, in a format that is not read by bytes.
    Fields(Map<String, Value>),
    /// A page that was fetched.
    Page(Page),
}

impl Content {
    /// About how much memory it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Fields(fields) => fields.values().map(value_bytes).sum(),
            Self::Page(page) => page.bytes.len(),
        }
    }
}

fn value_bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(value_bytes).sum(),
        Value::Object(fields) => fields.values().map(value_bytes).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => size_of::<Value>(),
    }
}

/// The pieces of one file, in its order.
pub type Pieces = Box<dyn Iterator<Item = Piece> + Send>;

pub(super) fn limit(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

pub(super) fn invalid(what: impl fmt::Display) -> Error {
    Error::field(Reason::ArticleInvalid, "record", what)
}

pub(super) fn too_long() -> Error {
    invalid(format!("has more than {PIECE_BYTES_MAX} bytes, the limit"))
}

pub(super) fn bytes_piece(place: Place, bytes: Result<Vec<u8>>) -> Piece {
    let content = bytes.map(Content::Bytes);
    Piece { place, content }
}

/// A file that is one piece.
pub(super) fn whole(input: Input, bytes_max: usize) -> Pieces {
    let piece = bytes_piece(Place::File, read_bytes(input, bytes_max));
    Box::new(std::iter::once(piece))
}

/// What tells of a part of a file that cannot be read.
pub(super) fn broken_off(place: Place, error: io::Error) -> Piece {
    let what = if goes_on(&error) {
        "the file is damaged here"
    } else {
        "the file cannot be read from here on"
    };
    let error = Error::new(Reason::FileFailed, what).with_source(error);
    bytes_piece(place, Err(error))
}

/// The lines of a file that are not blank.
pub(super) struct Lines {
    input: Input,
    line: u64,
    is_done: bool,
}

impl Lines {
    pub(super) fn new(input: Input) -> Self {
        Self {
            input,
            line: 0,
            is_done: false,
        }
    }
}

impl Iterator for Lines {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        loop {
            if self.is_done {
                return None;
            }
            let mut bytes = Vec::new();
            let mut start = self.input.by_ref().take(limit(PIECE_BYTES_MAX) + 1);
            let read = start.read_until(b'\n', &mut bytes);
            self.line += 1;
            let place = Place::Line(self.line);
            let is_too_long = bytes.len() > PIECE_BYTES_MAX;
            let rest = match read {
                Ok(0) => {
                    self.is_done = true;
                    continue;
                }
                Ok(_) if is_too_long && !bytes.ends_with(b"\n") => self.input.skip_until(b'\n'),
                read => read,
            };
            if let Err(error) = rest {
                self.is_done = !goes_on(&error);
                return Some(broken_off(place, error));
            }
            if is_too_long {
                return Some(bytes_piece(place, Err(too_long())));
            }
            if !bytes.trim_ascii().is_empty() {
                return Some(bytes_piece(place, Ok(bytes)));
            }
        }
    }
}

/// The part of a file that is held while a cutter looks for the end of a record in it.
pub(super) struct Held {
    input: Input,
    /// What is read; from `start` on it is not yet given, and that byte is at `offset`.
    bytes: Vec<u8>,
    start: usize,
    pub(super) offset: u64,
    /// The line breaks before it.
    pub(super) lines: u64,
    /// The bytes that were looked at in vain and are looked at again.
    again: u64,
}

impl Held {
    pub(super) fn new(input: Input) -> Self {
        Self {
            input,
            bytes: Vec::new(),
            start: 0,
            offset: 0,
            lines: 0,
            again: 0,
        }
    }

    /// Reads on. Returns whether there was more.
    pub(super) fn more(&mut self) -> io::Result<bool> {
        let read = loop {
            match self.input.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        let count = read.len();
        // Not for every read, for a record may be long.
        if self.start > self.bytes.len() / 2 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(read);
        self.input.consume(count);
        Ok(count > 0)
    }

    pub(super) fn rest(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    /// Leaves what is given or skipped behind.
    pub(super) fn drop_start(&mut self, count: usize) {
        let dropped = self.rest().get(..count).unwrap_or_default();
        self.lines += limit(memchr::memchr_iter(b'\n', dropped).count());
        self.start += count;
        self.offset += limit(count);
    }

    /// Drops the start of a record without end, to look for the next inside of what was looked at. A
    /// file with too many of these is made to be slow: of it, all that was looked at is dropped.
    pub(super) fn go_back(&mut self, start: usize, looked_at: usize) {
        self.again += limit(looked_at);
        if self.again <= AGAIN_BYTES_MAX.max(self.offset) {
            self.drop_start(start);
        } else {
            self.drop_start(looked_at);
        }
    }

    /// Gives the first bytes away.
    pub(super) fn take_start(&mut self, count: usize) -> Vec<u8> {
        let bytes = self.rest().get(..count).unwrap_or_default().to_vec();
        self.drop_start(count);
        bytes
    }

    /// Drops everything that is held: it is damaged.
    pub(super) fn drop_all(&mut self) {
        let count = self.rest().len();
        self.drop_start(count);
    }

    /// Drops bytes until one is wanted, which stays. Returns whether there is one.
    pub(super) fn skip_until(&mut self, mut is_wanted: impl FnMut(u8) -> bool) -> io::Result<bool> {
        loop {
            let rest = self.rest();
            if let Some(at) = rest.iter().position(|byte| is_wanted(*byte)) {
                self.drop_start(at);
                return Ok(true);
            }
            self.drop_all();
            if !self.more()? {
                return Ok(false);
            }
        }
    }

    /// Drops bytes until they begin with something that is found in them. `find` tells where it
    /// is, or how many of the last bytes could be the beginning of it. Returns whether it is there.
    pub(super) fn skip_to(
        &mut self,
        find: impl Fn(&[u8]) -> Result<usize, usize>,
    ) -> io::Result<bool> {
        loop {
            match find(self.rest()) {
                Ok(at) => {
                    self.drop_start(at);
                    return Ok(true);
                }
                Err(keep) => {
                    let count = self.rest().len().saturating_sub(keep);
                    self.drop_start(count);
                    if !self.more()? {
                        self.drop_all();
                        return Ok(false);
                    }
                }
            }
        }
    }
}

/// Where a text first is.
pub(super) fn position(bytes: &[u8], text: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, text)
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Cursor;

    use super::*;

    /// The pieces of a text, each as it is or `!` and what is wrong.
    pub(in super::super) fn shown(pieces: impl Iterator<Item = Piece>) -> Vec<String> {
        let shown = pieces.map(|piece| match piece.content {
            Ok(Content::Bytes(bytes)) => String::from_utf8(bytes).unwrap().trim().to_owned(),
            Ok(content) => format!("{content:?}"),
            Err(error) => format!("!{} {error}", piece.place),
        });
        shown.collect()
    }

    /// A text that is read in small pieces, so that every byte is the last of one somewhere.
    pub(in super::super) fn input(text: impl Into<Vec<u8>>) -> Input {
        Box::new(io::BufReader::with_capacity(3, Cursor::new(text.into())))
    }

    /// A record between others whose end does not come within the limit.
    pub(in super::super) fn endless(before: &str, after: &str) -> Input {
        let middle = io::BufReader::new(io::repeat(b'x').take(40 << 20));
        let before = Cursor::new(before.to_owned().into_bytes());
        Box::new(
            before
                .chain(middle)
                .chain(Cursor::new(after.to_owned().into_bytes())),
        )
    }

    #[test]
    fn lines_are_cut_and_counted() {
        let lines = Lines::new(input("a\n\n b\r\nc"));
        assert_eq!(shown(lines), ["a", "b", "c"]);
        let lines = shown(Lines::new(endless("a\n", "\nb\n")));
        let [a, long, b] = lines.as_slice() else {
            panic!("{lines:?}");
        };
        assert!(
            long.starts_with("!:2 ") && long.contains("33554432"),
            "{long}"
        );
        assert_eq!([a, b], ["a", "b"]);
    }
}
