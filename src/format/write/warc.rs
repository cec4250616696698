//! WARC 1.1 (ISO 28500): every article is a resource, a page that describes it as JSON-LD, so that
//! archives of the web can show it and an import finds every byte of it.

use std::fmt::Write as _;
use std::io;

use serde_json::{Map, Value, json};

use super::{Compression, Output, WriteArticle};
use crate::article::Article;
use crate::format::html::GENERATOR;

/// The longest page that shows the body as well as describing it.
const SHOWN_BYTES_MAX: usize = 8 * 1024 * 1024;

const INFO: &str = concat!(
    "software: pressmark/",
    env!("CARGO_PKG_VERSION"),
    "\r\nformat: WARC File Format 1.1\r\n"
);

pub(super) struct Records<'a> {
    output: Output<'a>,
    compression: Compression,
    has_info: bool,
}

impl<'a> Records<'a> {
    pub(super) fn new(output: Output<'a>, compression: Compression) -> Self {
        Self {
            output,
            compression,
            has_info: false,
        }
    }

    fn record(&mut self, head: &str, content: &str) -> io::Result<()> {
        let bytes = content.len();
        let record = format!("WARC/1.1\r\n{head}Content-Length: {bytes}\r\n\r\n{content}\r\n\r\n");
        self.output
            .write_all(&self.compression.compressed(record.as_bytes())?)
    }
}

impl WriteArticle for Records<'_> {
    fn write(&mut self, article: &Article, fields: &Map<String, Value>) -> io::Result<()> {
        let text = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default();
        let (id, date) = (text("id"), date(text("archived_at")));
        if !self.has_info {
            self.has_info = true;
            let head = format!(
                "WARC-Type: warcinfo\r\nWARC-Record-ID: <urn:uuid:{}>\r\nWARC-Date: {date}\r\n\
                 Content-Type: application/warc-fields\r\n",
                uuid(&id.chars().rev().collect::<String>())
            );
            self.record(&head, INFO)?;
        }
        // A URL may have characters that a header may not.
        let is_uri = !article.url().is_empty() && article.url().is_ascii();
        let uri = if is_uri {
            article.url().to_owned()
        } else {
            format!("urn:blake3:{id}")
        };
        let head = format!(
            "WARC-Type: resource\r\nWARC-Record-ID: <urn:uuid:{}>\r\nWARC-Date: {date}\r\n\
             WARC-Target-URI: {uri}\r\nContent-Type: text/html; charset=utf-8\r\n",
            uuid(id)
        );
        self.record(&head, &page(article, id))
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        self.output.flush()
    }
}

/// A time to the second in the zone that WARC has.
fn date(archived_at: &str) -> String {
    let seconds = archived_at.get(.."YYYY-MM-DDTHH:MM:SS".len());
    format!("{}Z", seconds.unwrap_or("1970-01-01T00:00:00"))
}

/// A UUID of version 8, which is free to be made of anything, of the start of an id.
fn uuid(id: &str) -> String {
    let part = |from: usize, to: usize| id.get(from..to).unwrap_or_default();
    let parts = [
        part(0, 8),
        part(8, 12),
        part(13, 16),
        part(17, 20),
        part(20, 32),
    ];
    format!(
        "{}-{}-8{}-8{}-{}",
        parts[0], parts[1], parts[2], parts[3], parts[4]
    )
}

/// The page of an article.
fn page(article: &Article, id: &str) -> String {
    let mut thing = json!({
        "@context": "https://schema.org",
        "@type": "NewsArticle",
        "identifier": id,
        "headline": article.title(),
        "publisher": {"@type": "Organization", "name": article.source()},
        "url": article.url(),
        "articleBody": article.body(),
    });
    if let Some(thing) = thing.as_object_mut() {
        if let Some(time) = article.published_at() {
            thing.insert("datePublished".into(), time.to_string().into());
        }
        if !article.author().is_empty() {
            thing.insert("author".into(), article.author().into());
        }
    }
    // So that nothing in it ends the element.
    let thing = thing.to_string().replace('<', "\\u003c");
    let title = escaped(article.title());
    let mut page = format!(
        "<!DOCTYPE html>\n<html>\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"generator\" content=\"{GENERATOR}\">\n<title>{title}</title>\n\
         <script type=\"application/ld+json\">{thing}</script>\n</head>\n<body>\n"
    );
    let body = escaped(article.body());
    if page.len() + body.len() <= SHOWN_BYTES_MAX {
        // Writing into a text does not fail.
        let _ = writeln!(
            page,
            "<article>\n<h1>{title}</h1>\n<pre style=\"white-space: pre-wrap\">\n{body}</pre>\n\
             </article>"
        );
    }
    page.push_str("</body>\n</html>\n");
    page
}

/// A text as it has to be in HTML.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
