//! Parquet. Dates are texts, for no timestamp of Parquet holds every year to the nanosecond; beside them
//! stands one to the microsecond, for queries.

use std::io;
use std::sync::Arc;

use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use serde_json::{Map, Value};

use super::{Sink, WriteArticle};
use crate::article::{Article, Timestamp};

/// The columns, in their order.
const SCHEMA: &str = "
message article {
    REQUIRED BYTE_ARRAY id (STRING);
    REQUIRED BYTE_ARRAY title (STRING);
    REQUIRED BYTE_ARRAY published_at (STRING);
    OPTIONAL INT64 published (TIMESTAMP(MICROS,true));
    REQUIRED BYTE_ARRAY author (STRING);
    REQUIRED BYTE_ARRAY source (STRING);
    REQUIRED BYTE_ARRAY url (STRING);
    REQUIRED BYTE_ARRAY body (STRING);
    REQUIRED BYTE_ARRAY body_hash (STRING);
    REQUIRED INT64 sequence;
    REQUIRED BYTE_ARRAY archived_at (STRING);
}";

/// The most rows of a group, and about the most bytes, which are in memory until it is written.
const GROUP_ROWS_MAX: usize = 16 * 1024;
const GROUP_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The columns of texts before the timestamp, between it and the sequence, and behind that.
const TEXTS: [&[&str]; 3] = [
    &["id", "title", "published_at"],
    &["author", "source", "url", "body", "body_hash"],
    &["archived_at"],
];

/// The rows of a group, column by column.
#[derive(Default)]
struct Group {
    texts: [Vec<Vec<ByteArray>>; 3],
    published: Vec<i64>,
    /// For each row 1 if it has a date.
    is_dated: Vec<i16>,
    sequences: Vec<i64>,
    bytes: usize,
}

pub(super) struct Rows<'a> {
    writer: SerializedFileWriter<Sink<'a>>,
    group: Group,
}

fn failed(error: ParquetError) -> io::Error {
    if let ParquetError::External(error) = error {
        return match error.downcast::<io::Error>() {
            Ok(error) => *error,
            Err(error) => io::Error::other(error),
        };
    }
    io::Error::other(error)
}

impl Group {
    fn add(&mut self, article: &Article, fields: &Map<String, Value>) {
        for (columns, names) in self.texts.iter_mut().zip(TEXTS) {
            columns.resize(names.len(), Vec::new());
            for (column, name) in columns.iter_mut().zip(names) {
                let text = fields
                    .get(*name)
                    .and_then(Value::as_str)
                    .unwrap_or_default();
                self.bytes += text.len();
                column.push(text.into());
            }
        }
        let micros = |time: Timestamp| time.seconds() * 1_000_000 + i64::from(time.nanos() / 1000);
        self.published.extend(article.published_at().map(micros));
        self.is_dated
            .push(i16::from(article.published_at().is_some()));
        let sequence = fields.get("sequence").and_then(Value::as_i64);
        self.sequences.push(sequence.unwrap_or_default());
    }

    fn write(self, mut writer: SerializedRowGroupWriter<'_, Sink<'_>>) -> Result<(), ParquetError> {
        let [before, between, behind] = self.texts;
        write_texts(&mut writer, before)?;
        if let Some(mut column) = writer.next_column()? {
            let typed = column.typed::<Int64Type>();
            typed.write_batch(&self.published, Some(&self.is_dated), None)?;
            column.close()?;
        }
        write_texts(&mut writer, between)?;
        if let Some(mut column) = writer.next_column()? {
            column
                .typed::<Int64Type>()
                .write_batch(&self.sequences, None, None)?;
            column.close()?;
        }
        write_texts(&mut writer, behind)?;
        writer.close()?;
        Ok(())
    }
}

fn write_texts(
    writer: &mut SerializedRowGroupWriter<'_, Sink<'_>>,
    columns: Vec<Vec<ByteArray>>,
) -> Result<(), ParquetError> {
    for texts in columns {
        if let Some(mut column) = writer.next_column()? {
            column
                .typed::<ByteArrayType>()
                .write_batch(&texts, None, None)?;
            column.close()?;
        }
    }
    Ok(())
}

impl<'a> Rows<'a> {
    pub(super) fn new(sink: Sink<'a>) -> io::Result<Self> {
        let schema = parse_message_type(SCHEMA).map_err(failed)?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_created_by(concat!("pressmark ", env!("CARGO_PKG_VERSION")).to_owned())
            // No text repeats but sources and authors, which compress well without.
            .set_dictionary_enabled(false)
            .build();
        let writer = SerializedFileWriter::new(sink, Arc::new(schema), Arc::new(properties));
        Ok(Self {
            writer: writer.map_err(failed)?,
            group: Group::default(),
        })
    }

    fn end_group(&mut self) -> io::Result<()> {
        let group = std::mem::take(&mut self.group);
        if group.sequences.is_empty() {
            return Ok(());
        }
        let writer = self.writer.next_row_group().map_err(failed)?;
        group.write(writer).map_err(failed)
    }
}

impl WriteArticle for Rows<'_> {
    fn write(&mut self, article: &Article, fields: &Map<String, Value>) -> io::Result<()> {
        self.group.add(article, fields);
        if self.group.sequences.len() >= GROUP_ROWS_MAX || self.group.bytes >= GROUP_BYTES_MAX {
            self.end_group()?;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        self.end_group()?;
        self.writer.into_inner().map_err(failed)?.finish()
    }
}
