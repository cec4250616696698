//! Parquet (<https://parquet.apache.org/docs/file-format/>): a table whose columns have the names of fields.
//! Row groups are read one by one, so that memory stays within one, and damage costs what is
//! behind it in its group.

use std::fs::File;
use std::io::{self, BufReader, Seek, SeekFrom};
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{LogicalType, TimeUnit};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::{ChunkReader, FileReader, Length, SerializedFileReader};
use parquet::file::serialized_reader::ReadOptionsBuilder;
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use serde_json::{Map, Value};

use super::input::{Counted, Counter, Input};
use super::markdown::unreadable;
use super::pieces::{Content, Piece, Place};
use crate::article::Timestamp;
use crate::error::{Error, Reason, Result, panic};

/// How a file begins, and ends.
pub(super) const MAGIC: &[u8] = b"PAR1";

const DAY_SECONDS: i64 = 86_400;

/// A file that is read in pieces, whose bytes are counted.
#[derive(Clone)]
struct Chunks {
    file: Arc<File>,
    counter: Counter,
}

impl Length for Chunks {
    fn len(&self) -> u64 {
        self.file.len()
    }
}

impl ChunkReader for Chunks {
    type T = Counted<BufReader<File>>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        Ok(self.counter.counting(self.file.get_read(start)?))
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        let bytes = self.file.get_bytes(start, length)?;
        self.counter.add(bytes.len());
        Ok(bytes)
    }
}

/// The rows of a file.
pub(super) struct Rows {
    file: Chunks,
    metadata: Arc<ParquetMetaData>,
    /// Columns of nanoseconds, which come as numbers.
    nanos: Vec<String>,
    /// The row group that is read, and how many of its rows were.
    group: usize,
    read: u64,
    /// The rows of the groups before it.
    before: u64,
    iter: Option<RowIter<'static>>,
}

fn damaged(what: impl std::fmt::Display) -> Error {
    let what = format!("is no Parquet file that can be read: {what}");
    Error::new(Reason::FileFailed, what)
}

/// Copies a file that cannot be sought in into one that can.
pub(super) fn seekable(mut input: Input) -> Result<File> {
    let mut file = tempfile::tempfile().map_err(unreadable)?;
    io::copy(&mut input, &mut file).map_err(unreadable)?;
    Ok(file)
}

impl Rows {
    pub(super) fn new(mut file: File, counter: Counter) -> Result<Self> {
        file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
        let file = Chunks {
            file: Arc::new(file),
            counter,
        };
        let reader = caught(|| SerializedFileReader::new(file.clone()))?.map_err(damaged)?;
        let metadata = Arc::new(reader.metadata().clone());
        let columns = metadata.file_metadata().schema_descr().columns();
        let is_nanos = |kind: Option<&LogicalType>| matches!(kind, Some(LogicalType::Timestamp(kind)) if kind.unit == TimeUnit::NANOS);
        let nanos = columns
            .iter()
            .filter(|column| is_nanos(column.logical_type_ref()));
        let nanos = nanos.map(|column| column.name().to_owned()).collect();
        Ok(Self {
            file,
            metadata,
            nanos,
            group: 0,
            read: 0,
            before: 0,
            iter: None,
        })
    }

    /// The rows of the group that is read.
    fn open_group(&self) -> Result<RowIter<'static>> {
        let wanted = self.group;
        let options = ReadOptionsBuilder::new()
            .with_predicate(Box::new(move |_, number| number == wanted))
            .build();
        let reader =
            SerializedFileReader::new_with_options(self.file.clone(), options).map_err(damaged)?;
        Ok(RowIter::from_file_into(Box::new(reader)))
    }

    /// Goes to the next group. Returns how many rows of this one were not read.
    fn end_group(&mut self) -> u64 {
        let group = self.metadata.row_groups().get(self.group);
        let rows = group.and_then(|group| u64::try_from(group.num_rows()).ok());
        let rows = rows.unwrap_or_default();
        let lost = rows.saturating_sub(self.read);
        self.before += rows;
        self.group += 1;
        self.read = 0;
        self.iter = None;
        lost
    }

    fn fields(&self, row: Row) -> Map<String, Value> {
        let fields = row.into_columns().into_iter().map(|(name, field)| {
            let value = if let (Field::Long(nanos), true) = (&field, self.nanos.contains(&name)) {
                time(*nanos, 1_000_000_000)
            } else {
                value(&field)
            };
            (name, value)
        });
        fields.collect()
    }
}

/// What a library's panic is: the file is damaged in a way that it does not look for.
fn caught<T>(work: impl FnOnce() -> T) -> Result<T> {
    panic::caught(work).map_err(|_| damaged("its reader panicked"))
}

impl Iterator for Rows {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        loop {
            if self.group >= self.metadata.num_row_groups() {
                return None;
            }
            let rows = match self.iter.take() {
                Some(rows) => Ok(rows),
                None => caught(|| self.open_group()).and_then(|rows| rows),
            };
            let row = rows.and_then(|mut rows| {
                let row = caught(|| rows.next())?;
                Ok((row.transpose().map_err(damaged)?, rows))
            });
            match row {
                Ok((Some(row), rows)) => {
                    self.iter = Some(rows);
                    self.read += 1;
                    let place = Place::Row(self.before + self.read);
                    let content = Ok(Content::Fields(self.fields(row)));
                    return Some(Piece { place, content });
                }
                Ok((None, _)) => {
                    self.end_group();
                }
                Err(error) => {
                    let place = Place::Row(self.before + self.read + 1);
                    let lost = self.end_group();
                    let what = format!("{}; {lost} rows of its group are lost", error.message());
                    let content = Err(Error::new(Reason::FileFailed, what));
                    return Some(Piece { place, content });
                }
            }
        }
    }
}

/// A number of units since 1970 as RFC 3339.
fn time(number: i64, units_per_second: i64) -> Value {
    let seconds = number.div_euclid(units_per_second);
    let rest = number.rem_euclid(units_per_second);
    let nanos = rest.saturating_mul(1_000_000_000 / units_per_second);
    match Timestamp::new("date", seconds, nanos) {
        Ok(time) => time.to_string().into(),
        Err(_) => number.into(),
    }
}

fn value(field: &Field) -> Value {
    match field {
        Field::Str(text) => text.as_str().into(),
        // Texts of writers that do not say that they are UTF-8.
        Field::Bytes(bytes) => String::from_utf8_lossy(bytes.data()).into_owned().into(),
        Field::TimestampMillis(millis) => time(*millis, 1000),
        Field::TimestampMicros(micros) => time(*micros, 1_000_000),
        Field::Date(days) => {
            let midnight = time(i64::from(*days) * DAY_SECONDS, 1);
            let day = midnight
                .as_str()
                .and_then(|text| text.get(.."YYYY-MM-DD".len()));
            day.map_or(Value::Null, Value::from)
        }
        Field::Group(row) => {
            let fields = row.get_column_iter();
            Value::Object(
                fields
                    .map(|(name, field)| (name.clone(), value(field)))
                    .collect(),
            )
        }
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        Field::Null => Value::Null,
        Field::Bool(is_true) => (*is_true).into(),
        Field::Byte(number) => (*number).into(),
        Field::Short(number) => (*number).into(),
        Field::Int(number) => (*number).into(),
        Field::Long(number) => (*number).into(),
        Field::UByte(number) => (*number).into(),
        Field::UShort(number) => (*number).into(),
        Field::UInt(number) => (*number).into(),
        Field::ULong(number) => (*number).into(),
        Field::Float(number) => (*number).into(),
        Field::Double(number) => (*number).into(),
        Field::Float16(_)
        | Field::Decimal(_)
        | Field::TimeMillis(_)
        | Field::TimeMicros(_)
        | Field::MapInternal(_) => field.to_string().into(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::super::Format;
    use super::super::write::{Compression, Writer};
    use super::*;
    use crate::article::{Article, ArticleFields};

    const ROWS: u64 = 40_000;

    fn written() -> Vec<u8> {
        let mut file = tempfile::tempfile().unwrap();
        let output = Box::new(file.try_clone().unwrap());
        let mut writer = Writer::new(Format::Parquet, Compression::None, output).unwrap();
        for number in 0..ROWS {
            let article = Article::new(ArticleFields {
                title: format!("Title {number}"),
                source: "Source".into(),
                body: format!("Body {}", number * 7919),
                ..ArticleFields::default()
            });
            let article = article.unwrap();
            let fields = serde_json::json!({"title": article.title(), "body": article.body(),
                "source": "Source"});
            writer.write(&article, fields.as_object().unwrap()).unwrap();
        }
        writer.finish().unwrap();
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    /// The titles of the rows that can be read, and what is wrong with the others.
    fn read(bytes: &[u8]) -> (Vec<String>, Vec<String>) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let (mut titles, mut wrong) = (Vec::new(), Vec::new());
        for piece in Rows::new(file, Counter::default()).unwrap() {
            match piece.content {
                Ok(Content::Fields(fields)) => {
                    titles.push(fields["title"].as_str().unwrap().to_owned());
                }
                content => wrong.push(format!("{} {}", piece.place, content.unwrap_err())),
            }
        }
        (titles, wrong)
    }

    #[test]
    fn damage_costs_what_is_behind_it_in_its_group() {
        let mut bytes = written();
        let (titles, wrong) = read(&bytes);
        let expected: Vec<String> = (0..ROWS).map(|number| format!("Title {number}")).collect();
        assert!(titles == expected && wrong.is_empty(), "{wrong:?}");
        // The second of three groups.
        let middle = bytes.len() / 2;
        bytes[middle..middle + 100].fill(0xa5);
        let (titles, wrong) = read(&bytes);
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        assert!(wrong[0].contains("rows of its group are lost"), "{wrong:?}");
        assert!(titles.len() >= 20_000, "{}", titles.len());
        assert_eq!((&titles[0], titles.last()), (&expected[0], expected.last()));
        let lost = expected.len() - titles.len();
        assert!(wrong[0].contains(&format!("{lost} rows")), "{wrong:?}");
    }

    #[test]
    fn values_become_what_json_has() {
        for (field, expected) in [
            (
                Field::TimestampMillis(-1),
                serde_json::json!("1969-12-31T23:59:59.999+00:00"),
            ),
            (
                Field::TimestampMicros(1_500_000),
                "1970-01-01T00:00:01.5+00:00".into(),
            ),
            (Field::Date(-1), "1969-12-31".into()),
            (Field::Bytes(vec![b'a'].into()), "a".into()),
            (Field::Long(7), 7.into()),
            (Field::Null, Value::Null),
        ] {
            assert_eq!(value(&field), expected, "{field:?}");
        }
    }
}
