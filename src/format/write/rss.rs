//! RSS 2.0 (<https://www.rssboard.org/rss-specification>), for readers of feeds. It does not hold every byte
//! of an article: a body becomes HTML, a date loses its fraction, and what XML cannot hold is U+FFFD.

use std::io;

use chrono::DateTime;
use quick_xml::Writer;
use quick_xml::events::{BytesEnd, BytesStart, BytesText, Event};
use serde_json::{Map, Value};

use super::warc::escaped;
use super::{Sink, WriteArticle};
use crate::article::{Article, Timestamp};

const SPACES: [(&str, &str); 2] = [
    ("version", "2.0"),
    ("xmlns:dc", "http://purl.org/dc/elements/1.1/"),
];

pub(super) struct Items<'a>(Writer<Sink<'a>>);

impl<'a> Items<'a> {
    pub(super) fn new(sink: Sink<'a>) -> io::Result<Self> {
        let mut writer = Writer::new_with_indent(sink, b' ', 1);
        let start = BytesStart::new("rss").with_attributes(SPACES);
        writer.write_event(Event::Start(start))?;
        writer.write_event(Event::Start(BytesStart::new("channel")))?;
        let mut items = Self(writer);
        items.text("title", "pressmark")?;
        items.text("link", "")?;
        items.text("description", "Articles of an archive")?;
        Ok(items)
    }

    fn text(&mut self, name: &str, text: &str) -> io::Result<()> {
        let text: String = text.chars().map(xml_char).collect();
        let element = self.0.create_element(name);
        element.write_text_content(BytesText::new(&text))?;
        Ok(())
    }
}

/// A character that XML 1.0 can hold.
fn xml_char(c: char) -> char {
    match c {
        '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'.. => c,
        _ => '\u{fffd}',
    }
}

/// A date as RFC 2822 has it.
fn date(time: Timestamp) -> Option<String> {
    Some(DateTime::from_timestamp(time.seconds(), 0)?.to_rfc2822())
}

/// A body as HTML: its paragraphs, and the lines in them.
fn html(body: &str) -> String {
    let paragraphs = escaped(body);
    let paragraphs = paragraphs.trim().split("\n\n").map(str::trim);
    let paragraphs = paragraphs.filter(|paragraph| !paragraph.is_empty());
    let shown = paragraphs.map(|paragraph| format!("<p>{}</p>", paragraph.replace('\n', "<br>")));
    shown.collect::<Vec<_>>().join("\n")
}

impl WriteArticle for Items<'_> {
    fn write(&mut self, article: &Article, fields: &Map<String, Value>) -> io::Result<()> {
        self.0.write_event(Event::Start(BytesStart::new("item")))?;
        self.text("title", article.title())?;
        if !article.url().is_empty() {
            self.text("link", article.url())?;
        }
        let id = fields.get("id").and_then(Value::as_str).unwrap_or_default();
        let guid = self
            .0
            .create_element("guid")
            .with_attribute(("isPermaLink", "false"));
        guid.write_text_content(BytesText::new(id))?;
        if let Some(date) = article.published_at().and_then(date) {
            self.text("pubDate", &date)?;
        }
        if !article.author().is_empty() {
            self.text("dc:creator", article.author())?;
        }
        self.text("dc:publisher", article.source())?;
        self.text("description", &html(article.body()))?;
        self.0.write_event(Event::End(BytesEnd::new("item")))
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        self.0.write_event(Event::End(BytesEnd::new("channel")))?;
        self.0.write_event(Event::End(BytesEnd::new("rss")))?;
        self.0.into_inner().finish()
    }
}
