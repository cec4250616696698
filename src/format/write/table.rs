//! CSV (RFC 4180), and the same with tabs.

use std::io;

use csv::WriterBuilder;
use serde_json::{Map, Value};

use super::{Sink, WriteArticle};
use crate::article::Article;

/// The columns, in their order.
const COLUMNS: [&str; 11] = [
    "id",
    "title",
    "published_at",
    "author",
    "source",
    "url",
    "body",
    "body_hash",
    "sequence",
    "archived_at",
    "text_bytes",
];

pub(super) struct Table<'a>(csv::Writer<Sink<'a>>);

impl<'a> Table<'a> {
    pub(super) fn new(sink: Sink<'a>, delimiter: u8) -> io::Result<Self> {
        let mut writer = WriterBuilder::new().delimiter(delimiter).from_writer(sink);
        writer.write_record(COLUMNS)?;
        Ok(Self(writer))
    }
}

impl WriteArticle for Table<'_> {
    fn write(&mut self, _: &Article, fields: &Map<String, Value>) -> io::Result<()> {
        for column in COLUMNS {
            match fields.get(column) {
                Some(Value::String(text)) => self.0.write_field(text)?,
                None | Some(Value::Null) => self.0.write_field("")?,
                Some(value) => self.0.write_field(value.to_string())?,
            }
        }
        Ok(self.0.write_record(None::<&[u8]>)?)
    }

    fn finish(self: Box<Self>) -> io::Result<()> {
        let sink = self
            .0
            .into_inner()
            .map_err(csv::IntoInnerError::into_error)?;
        sink.finish()
    }
}
