//! CSV (RFC 4180) and the same with tabs: a table whose first record names the columns.
//!
//! A quotation mark that is never closed would make the rest of a file one field. So what stands behind a
//! closing mark has to be the end of the field; where it is not, the record is refused, and the
//! next one is looked for in the line behind the one in which it began.

use csv::{ByteRecord, ReaderBuilder};
use serde_json::{Map, Value};

use super::input::{Input, goes_on};
use super::pieces::{
    Held, PIECE_BYTES_MAX, Piece, Place, broken_off, bytes_piece, invalid, too_long,
};
use crate::error::{Error, Reason, Result};

/// What can separate the fields, the most likely first.
const DELIMITERS: [u8; 4] = *b",;\t|";

/// The columns of a table.
#[derive(Debug)]
pub(super) struct Columns {
    names: Vec<String>,
    delimiter: u8,
}

/// The delimiter of a header: the one that it has most of.
pub(super) fn delimiter_of(header: &[u8]) -> u8 {
    let count = |delimiter: u8| header.split(|byte| *byte == delimiter).count();
    let mut best = DELIMITERS[0];
    for delimiter in DELIMITERS {
        if count(delimiter) > count(best) {
            best = delimiter;
        }
    }
    best
}

/// The fields of a record, as they are.
fn fields(bytes: &[u8], delimiter: u8) -> Result<ByteRecord> {
    let mut reader = ReaderBuilder::new()
        .has_headers(false)
        .delimiter(delimiter)
        .buffer_capacity(bytes.len().max(1))
        .from_reader(bytes);
    let mut record = ByteRecord::new();
    reader
        .read_byte_record(&mut record)
        .map_err(|error| invalid(format!("is not valid CSV: {error}")))?;
    Ok(record)
}

impl Columns {
    fn of_header(header: &[u8]) -> Result<Self> {
        let delimiter = delimiter_of(
            header
                .split(|byte| *byte == b'\n')
                .next()
                .unwrap_or_default(),
        );
        let names = fields(header, delimiter)?;
        let names: Vec<String> = names
            .iter()
            .map(|name| String::from_utf8_lossy(name).trim().to_owned())
            .collect();
        Ok(Self { names, delimiter })
    }

    /// Reads a record.
    pub(super) fn record(&self, bytes: &[u8]) -> Result<Map<String, Value>> {
        let fields = fields(bytes, self.delimiter)?;
        if fields.len() != self.names.len() {
            let (has, wanted) = (fields.len(), self.names.len());
            return Err(invalid(format!(
                "has {has} fields, the header has {wanted}"
            )));
        }
        let mut record = Map::new();
        for (name, field) in self.names.iter().zip(&fields) {
            let text = std::str::from_utf8(field).map_err(|error| {
                let what = format!(
                    "column {name:?} is not UTF-8 from byte {} on",
                    error.valid_up_to()
                );
                invalid(what)
            })?;
            // Of columns with one name the first counts.
            record.entry(name.as_str()).or_insert_with(|| text.into());
        }
        Ok(record)
    }
}

/// The records of a table.
pub(super) struct Records {
    held: Held,
    delimiter: u8,
    is_done: bool,
}

impl Records {
    /// Reads the header and gives the records behind it.
    pub(super) fn new(input: Input) -> Result<(Self, Columns)> {
        let mut records = Self {
            held: Held::new(input),
            delimiter: 0,
            is_done: false,
        };
        // The delimiter is not known yet, but matters only behind a quotation mark: there every one
        // ends the field.
        let header = records.next().map(|piece| piece.content).transpose()?;
        let Some(super::pieces::Content::Bytes(header)) = header else {
            return Err(Error::new(
                Reason::FileFailed,
                "is empty, where a header with the names of the columns should be",
            ));
        };
        let columns = Columns::of_header(&header)?;
        records.delimiter = columns.delimiter;
        Ok((records, columns))
    }

    /// Finds the end of the record at the start of what is held.
    fn end(&mut self) -> std::io::Result<Result<usize>> {
        let mut scan = Scan::default();
        let broken = loop {
            match scan.step(self.held.rest(), self.delimiter) {
                Step::Broken => break invalid("has text behind a closing quotation mark"),
                Step::More if scan.at > PIECE_BYTES_MAX => break too_long(),
                Step::More if self.held.more()? => {}
                Step::More if scan.state == State::Quoted => {
                    break invalid("has a quotation mark that is never closed");
                }
                Step::End | Step::More => return Ok(Ok(scan.at)),
            }
        };
        // The next record may begin in the line behind the one in which this one began.
        self.held.go_back(0, scan.at);
        let is_found = self.held.skip_until(|byte| byte == b'\n')?;
        self.held.drop_start(usize::from(is_found));
        Ok(Err(broken))
    }
}

impl Iterator for Records {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        while !self.is_done {
            let place = Place::Line(self.held.lines + 1);
            match self.end() {
                Err(error) => {
                    self.held.drop_all();
                    self.is_done = !goes_on(&error);
                    return Some(broken_off(place, error));
                }
                Ok(Err(error)) => return Some(bytes_piece(place, Err(error))),
                Ok(Ok(0)) => self.is_done = true,
                Ok(Ok(end)) => {
                    let bytes = self.held.take_start(end);
                    let is_blank = bytes.iter().all(|byte| b"\r\n".contains(byte));
                    if !is_blank {
                        return Some(bytes_piece(place, Ok(bytes)));
                    }
                }
            }
        }
        None
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    FieldStart,
    Bare,
    Quoted,
    /// Behind a mark in a quoted field: the end of it, or a doubled mark.
    Closed,
}

/// How far the end of a record was looked for.
#[derive(Debug, Default)]
struct Scan {
    at: usize,
    state: State,
}

enum Step {
    /// The record ends here.
    End,
    Broken,
    More,
}

impl Scan {
    fn step(&mut self, held: &[u8], delimiter: u8) -> Step {
        let is_delimiter =
            |byte: u8| byte == delimiter || delimiter == 0 && DELIMITERS.contains(&byte);
        for byte in held.get(self.at..).unwrap_or_default() {
            self.at += 1;
            self.state = match (self.state, byte) {
                (State::Quoted, b'"') => State::Closed,
                (State::Quoted, _) | (State::Closed | State::FieldStart, b'"') => State::Quoted,
                // Behind a return, a line break is a blank record.
                (State::Closed | State::Bare | State::FieldStart, b'\n' | b'\r') => {
                    return Step::End;
                }
                (_, byte) if is_delimiter(*byte) => State::FieldStart,
                (State::Closed, _) => return Step::Broken,
                (State::Bare | State::FieldStart, _) => State::Bare,
            };
        }
        Step::More
    }
}

#[cfg(test)]
mod tests {
    use super::super::pieces::tests::{endless, input, shown};
    use super::*;

    /// The records of a table as objects, or `!` and what is wrong.
    fn read(text: impl Into<Vec<u8>>) -> Vec<String> {
        let (records, columns) = Records::new(input(text)).unwrap();
        let parsed = records.map(|piece| match piece.content {
            Ok(super::super::pieces::Content::Bytes(bytes)) => match columns.record(&bytes) {
                Ok(record) => Value::Object(record).to_string(),
                Err(error) => format!("!{} {error}", piece.place),
            },
            content => format!("!{} {}", piece.place, content.unwrap_err()),
        });
        parsed.collect()
    }

    #[test]
    fn tables_are_read_with_every_delimiter() {
        for delimiter in [",", ";", "\t", "|"] {
            let text = "a,\"b\"\r\n1,\"x,\n\"\"y\"\"\r\n\"\n\n,\n\"\",2".replace(',', delimiter);
            let quoted = format!("x{delimiter}\n\"y\"\r\n");
            let first = serde_json::json!({"a": "1", "b": quoted}).to_string();
            let expected = [
                first,
                r#"{"a":"","b":""}"#.into(),
                r#"{"a":"","b":"2"}"#.into(),
            ];
            assert_eq!(read(text), expected, "{delimiter:?}");
        }
        assert!(Records::new(input("")).is_err());
        let lines = read("a,b\r1,2\r\r3,4");
        assert_eq!(lines, [r#"{"a":"1","b":"2"}"#, r#"{"a":"3","b":"4"}"#]);
    }

    #[test]
    fn a_broken_record_costs_only_itself() {
        for (broken, what) in [
            ("\"lost,2", "behind a closing quotation mark"),
            ("1,\"lost", "behind a closing quotation mark"),
            ("1", "has 1 fields, the header has 2"),
            ("1,2,3", "has 3 fields"),
        ] {
            let read = read(format!("a,b\n1,2\n{broken}\n\"3\",\"4\n\"\n5,6\n"));
            let good: Vec<&String> = read
                .iter()
                .filter(|record| record.starts_with('{'))
                .collect();
            let expected = [
                r#"{"a":"1","b":"2"}"#,
                r#"{"a":"3","b":"4\n"}"#,
                r#"{"a":"5","b":"6"}"#,
            ];
            assert_eq!(good, expected, "{broken}: {read:?}");
            assert_eq!(read.len(), 4, "{read:?}");
            assert!(
                read[1].starts_with("!:3 ") && read[1].contains(what),
                "{read:?}"
            );
        }
        let wrong = read(b"a,b\n1,\xff\n\"never closed,3\n4,5\n".to_vec());
        assert!(
            wrong[0].contains("column \"b\" is not UTF-8 from byte 0"),
            "{wrong:?}"
        );
        assert!(
            wrong[1].starts_with("!:3 ") && wrong[1].contains("never closed"),
            "{wrong:?}"
        );
        assert_eq!(wrong[2], r#"{"a":"4","b":"5"}"#);
    }

    #[test]
    fn a_record_without_end_is_skipped() {
        let (records, _) = Records::new(endless("a,b\n1,\"", "\"\n3,4\n")).unwrap();
        let read = shown(records);
        assert!(
            read[0].starts_with("!:2 ") && read[0].contains("33554432"),
            "{}",
            read[0]
        );
        assert_eq!(read[1..], ["3,4"]);
    }
}
