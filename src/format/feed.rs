//! RSS (0.9x, 1.0, 2.0) and Atom. Every item is parsed in a feed of its own, made of it and of what
//! stands before the first one, so that damage costs the item that has it, and a feed may be of
//! any length.

use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Utc};
use feed_rs::model::{Entry, Feed, Text};
use quick_xml::Reader;
use quick_xml::events::Event;
use serde_json::{Map, Value};
use url::Url;

use super::date::{self, DayOrder};
use super::html;
use super::input::{Input, goes_on};
use super::pieces::{
    Held, PIECE_BYTES_MAX, Piece, Place, broken_off, bytes_piece, invalid, position, too_long,
};
use crate::error::{Error, Reason, Result};

/// What an article is called, in RSS and in Atom.
const NAMES: [&[u8]; 3] = [b"item", b"entry", b"atom:entry"];

/// The longest start of a feed, before its first item.
const HEAD_BYTES_MAX: usize = 1024 * 1024;

/// The longest end tag, which may have white space behind its name.
const END_TAG_BYTES_MAX: usize = 1024;

/// What encloses character data.
const CDATA: &[u8] = b"<![CDATA[";
const CDATA_END: &[u8] = b"]]>";

/// The bytes of a tag that tell what it is.
const TAG_BYTES: usize = CDATA.len();

/// Whether a file that begins so is a feed.
pub(super) fn is_feed(start: &[u8]) -> bool {
    let roots: [&[u8]; 4] = [b"<rss", b"<feed", b"<atom:feed", b"<rdf:RDF"];
    start.trim_ascii_start().starts_with(b"<")
        && roots.iter().any(|root| position(start, root).is_some())
}

/// What stands around the items of a feed.
#[derive(Debug)]
pub(super) struct Frame {
    head: Vec<u8>,
    /// Closes what is open behind the head.
    tail: String,
}

/// Which article a tag begins, if it does. The tag is what is behind its `<`.
fn item_name(tag: &[u8]) -> Option<&'static [u8]> {
    NAMES.into_iter().find(|name| {
        let behind = tag.strip_prefix(*name).and_then(|rest| rest.first());
        behind.is_some_and(|byte| byte.is_ascii_whitespace() || b">/".contains(byte))
    })
}

/// What ends the comment or the character data that a tag begins, if it does.
fn end_of_hidden(tag: &[u8]) -> Option<&'static [u8]> {
    if CDATA.get(1..).is_some_and(|cdata| tag.starts_with(cdata)) {
        Some(CDATA_END)
    } else if tag.starts_with(b"!--") {
        Some(b"-->")
    } else {
        None
    }
}

/// Where the first article begins, and its name; or how many of the last bytes have to be looked at
/// again with what follows them.
/// Where `hides`, what is hidden in comments and character data is none.
fn item_start(bytes: &[u8], hides: bool) -> Result<(usize, &'static [u8]), usize> {
    let mut from = 0;
    // Whether something hidden has no end: then nothing behind it has, and nobody looks again.
    let mut is_endless = false;
    while let Some(found) = position(bytes.get(from..).unwrap_or_default(), b"<") {
        let at = from + found;
        let tag = bytes.get(at + 1..).unwrap_or_default();
        let left = bytes.len() - at;
        if let Some(name) = item_name(tag) {
            return Ok((at, name));
        }
        if left <= TAG_BYTES {
            return Err(left);
        }
        from = at + 1;
        if let (true, false, Some(end)) = (hides, is_endless, end_of_hidden(tag)) {
            match position(tag, end) {
                Some(found) => from += found,
                None if left < HEAD_BYTES_MAX => return Err(left),
                // What hides so much is damage.
                None => is_endless = true,
            }
        }
    }
    Err(0)
}

/// The items of a feed.
pub(super) struct Items {
    held: Held,
    name: &'static [u8],
    /// Whether it is not known what is hidden, behind an item that is damaged.
    is_lost: bool,
    is_done: bool,
}

impl Items {
    /// Reads what is before the first item and gives the items.
    pub(super) fn new(input: Input) -> Result<(Self, Frame)> {
        let mut items = Self {
            held: Held::new(input),
            name: NAMES[0],
            is_lost: false,
            is_done: false,
        };
        let unreadable = super::markdown::unreadable;
        let head = loop {
            if let Ok((at, name)) = item_start(items.held.rest(), true) {
                items.name = name;
                break items.held.take_start(at);
            }
            let held = items.held.rest().len();
            if held > HEAD_BYTES_MAX {
                let what = format!("has no item within {HEAD_BYTES_MAX} bytes, so it is no feed");
                return Err(Error::new(Reason::FileFailed, what));
            }
            if !items.held.more().map_err(unreadable)? {
                if !is_feed(items.held.rest()) {
                    let what = "is no feed: it has neither an item nor the start of RSS or Atom";
                    return Err(Error::new(Reason::FileFailed, what));
                }
                items.is_done = true;
                break items.held.take_start(held);
            }
        };
        let tail = closing_tags(&head).map_err(|error| {
            let what = format!("is no feed that can be read: {error}");
            Error::new(Reason::FileFailed, what)
        })?;
        Ok((items, Frame { head, tail }))
    }

    /// Goes to the next item. Returns whether there is one.
    fn skip_to_item(&mut self) -> std::io::Result<bool> {
        let hides = !std::mem::take(&mut self.is_lost);
        self.held.skip_to(|bytes| Ok(item_start(bytes, hides)?.0))
    }
}

impl Iterator for Items {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        if self.is_done {
            return None;
        }
        let is_there = self.skip_to_item();
        let place = Place::Byte(self.held.offset);
        let lost = |items: &mut Self, error| {
            items.held.drop_all();
            items.is_done = !goes_on(&error);
            Some(broken_off(place, error))
        };
        match is_there {
            Ok(true) => {}
            Ok(false) => {
                self.is_done = true;
                return None;
            }
            Err(error) => return lost(self, error),
        }
        let mut scan = Scan::new(self.name);
        let bytes = loop {
            match scan.step(self.held.rest()) {
                Step::End => break Ok(self.held.take_start(scan.at)),
                Step::Next => break Err(invalid("has no end")),
                Step::Broken(what) => break Err(invalid(what)),
                Step::More if self.held.rest().len() > PIECE_BYTES_MAX => break Err(too_long()),
                Step::More => match self.held.more() {
                    Ok(true) => {}
                    Ok(false) => break Err(invalid("ends in the middle")),
                    Err(error) => return lost(self, error),
                },
            }
        };
        if bytes.is_err() {
            self.held.go_back(1, scan.at.max(1));
            self.is_lost = true;
        }
        Some(bytes_piece(place, bytes))
    }
}

/// How far the end of an item was looked for.
struct Scan {
    at: usize,
    name: &'static [u8],
    /// Ends the comment or the character data in which the scan is.
    inside: Option<&'static [u8]>,
}

enum Step {
    /// The item ends here.
    End,
    /// It does not end before the next begins, which is here.
    Next,
    Broken(&'static str),
    More,
}

impl Scan {
    fn new(name: &'static [u8]) -> Self {
        Self {
            at: 0,
            name,
            inside: None,
        }
    }

    fn step(&mut self, held: &[u8]) -> Step {
        loop {
            let rest = held.get(self.at..).unwrap_or_default();
            let wanted = self.inside.unwrap_or(b"<");
            let end = position(rest, wanted);
            if wanted == CDATA_END
                && position(rest.get(..end.unwrap_or(rest.len())).unwrap_or(rest), CDATA).is_some()
            {
                return Step::Broken("has character data that does not end");
            }
            let Some(found) = end else {
                let keep = rest.len().min(TAG_BYTES - 1);
                self.at += rest.len() - keep;
                return Step::More;
            };
            self.at += found;
            if let Some(end) = self.inside.take() {
                self.at += end.len();
                continue;
            }
            let tag = rest.get(found + 1..).unwrap_or_default();
            let behind = tag.strip_prefix(b"/");
            let behind = behind.and_then(|tag| tag.strip_prefix(self.name));
            if let Some(behind) = behind
                && let Some(first) = behind.first()
                && (*first == b'>' || first.is_ascii_whitespace())
            {
                return match position(behind, b">") {
                    Some(end) => {
                        self.at += 1 + 1 + self.name.len() + end + 1;
                        Step::End
                    }
                    None if behind.len() > END_TAG_BYTES_MAX => {
                        Step::Broken("has an end tag that does not end")
                    }
                    None => Step::More,
                };
            }
            // Enough to tell them apart.
            if tag.len() < TAG_BYTES.max(self.name.len() + 2) {
                return Step::More;
            }
            if let Some(end) = end_of_hidden(tag) {
                self.inside = Some(end);
            } else if self.at > 0 && item_name(tag).is_some() {
                return Step::Next;
            }
            self.at += 1;
        }
    }
}

/// What closes the elements that are open at the end of a text.
fn closing_tags(head: &[u8]) -> Result<String, quick_xml::Error> {
    let mut reader = Reader::from_reader(head);
    reader.config_mut().check_end_names = false;
    let mut open = Vec::new();
    loop {
        match reader.read_event()? {
            Event::Start(tag) => {
                open.push(tag.name().as_ref().to_owned());
            }
            Event::End(_) => {
                open.pop();
            }
            Event::Eof => break,
            Event::Empty(_)
            | Event::Text(_)
            | Event::CData(_)
            | Event::Comment(_)
            | Event::Decl(_)
            | Event::PI(_)
            | Event::DocType(_)
            | Event::GeneralRef(_) => {}
        }
    }
    let tags = open.iter().rev().map(|name| format!("</{name}>"));
    Ok(tags.collect())
}

/// A date as it is written, and what it is read as.
type ReadDate = (String, Option<DateTime<Utc>>);

/// The fields of an item.
pub(super) fn item(frame: &Frame, bytes: &[u8]) -> Result<Map<String, Value>> {
    // The dates of the feed are read as those of every other format are, so that what is wrong with
    // one is told.
    let dates: Arc<Mutex<Vec<ReadDate>>> = Arc::default();
    let seen = Arc::clone(&dates);
    let read_date = move |text: &str| {
        let read = date::read(&text.into(), DayOrder::Unknown);
        let at = read.and_then(|read| DateTime::from_timestamp(read.at.seconds(), read.at.nanos()));
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.push((text.to_owned(), at));
        at
    };
    let parser = feed_rs::parser::Builder::new()
        .timestamp_parser(read_date)
        .build();
    let whole = [&frame.head, bytes, frame.tail.as_bytes()].concat();
    let mut feed = parser
        .parse(whole.as_slice())
        .map_err(|error| invalid(format!("is no item that can be read: {error}")))?;
    let entry = feed.entries.pop().ok_or_else(|| invalid("is empty"))?;
    let dates = dates.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(fields(&feed, entry, &dates))
}

fn fields(feed: &Feed, entry: Entry, dates: &[ReadDate]) -> Map<String, Value> {
    let mut fields = Map::new();
    let mut insert = |name: &str, text: Option<String>| {
        if let Some(text) = text {
            fields.insert(name.into(), text.into());
        }
    };
    let at = entry.published.or(entry.updated);
    // Of an item whose dates cannot be read, the last one: those of the feed come before.
    let date = match at {
        Some(_) => dates.iter().find(|(_, read)| *read == at),
        None => dates.last().filter(|(_, read)| read.is_none()),
    };
    insert("published_at", date.map(|(text, _)| text.clone()));
    insert("title", entry.title.as_ref().map(plain));
    let content = entry.content.and_then(|content| {
        let is_plain = content.content_type.essence().to_string() == "text/plain";
        let body = content.body?;
        Some(if is_plain { body } else { html::text_of(&body) })
    });
    let summary = entry.summary.map(|summary| html::text_of(&summary.content));
    insert("body", content.or(summary));
    let names: Vec<String> = entry
        .authors
        .into_iter()
        .filter_map(|author| author.name)
        .collect();
    insert(
        "author",
        Some(names.join(", ")).filter(|names| !names.is_empty()),
    );
    insert("source", feed.title.as_ref().map(plain));
    let is_page = |rel: &Option<String>| rel.as_deref().is_none_or(|rel| rel == "alternate");
    // A link that is relative is so to the site, which the feed links to.
    let site = feed.links.iter().find(|link| is_page(&link.rel));
    let site = site.and_then(|link| Url::parse(&link.href).ok());
    let link = entry.links.into_iter().find(|link| is_page(&link.rel));
    let link = link.map(|link| html::absolute(&link.href, site.as_ref()).unwrap_or(link.href));
    let is_url = entry.id.starts_with("http://") || entry.id.starts_with("https://");
    let id = is_url.then_some(entry.id);
    insert("url", link.or(id));
    fields
}

/// A title as plain text: as HTML if it says so, or if it has what only HTML has.
fn plain(text: &Text) -> String {
    if text.content_type.essence().to_string() == "text/html"
        || html::looks_marked_up(&text.content)
    {
        html::text_of(&text.content)
    } else {
        text.content.trim().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::super::pieces::Content;
    use super::super::pieces::tests::{endless, input};
    use super::*;

    /// The items of a feed as objects, or `!` and what is wrong.
    fn read(feed: Input) -> Vec<String> {
        let (items, frame) = Items::new(feed).unwrap();
        let read = items.map(|piece| match piece.content {
            Ok(Content::Bytes(bytes)) => match item(&frame, &bytes) {
                Ok(fields) => Value::Object(fields).to_string(),
                Err(error) => format!("!{} {error}", piece.place),
            },
            content => format!("!{} {}", piece.place, content.unwrap_err()),
        });
        read.collect()
    }

    const RSS: &str = r#"<?xml version="1.0"?>
        <rss version="2.0" xmlns:dc="http://purl.org/dc/elements/1.1/"
            xmlns:content="http://purl.org/rss/1.0/modules/content/"><channel>
        <title>The &amp; Site</title><link>https://a.example/</link><description>d</description>
        <pubDate>Thu, 02 Jan 2020 00:00:00 GMT</pubDate>"#;

    fn rss_item(number: u32) -> String {
        format!(
            "<item><title>T {number} &lt;b&gt;x&lt;/b&gt;</title><link>https://a.example/{number}</link>
            <guid>x</guid><dc:creator>A</dc:creator><pubDate>Thu, 02 Jan 2020 03:04:05 GMT</pubDate>
            <description>short</description><content:encoded><![CDATA[<p>B</p><p>C </item> &amp; D</p>]]>
            </content:encoded></item>"
        )
    }

    fn rss_fields(number: u32) -> String {
        serde_json::json!({"published_at": "Thu, 02 Jan 2020 03:04:05 GMT", "source": "The & Site",
            "title": format!("T {number} x"), "author": "A", "body": "B\n\nC & D",
            "url": format!("https://a.example/{number}")})
        .to_string()
    }

    #[test]
    fn rss_is_read_and_damage_costs_an_item() {
        assert!(is_feed(RSS.as_bytes()));
        let expected = [1, 2, 3].map(rss_fields);
        let [first, second, third] = [1, 2, 3].map(rss_item);
        let tail = "</channel></rss>";
        let whole = format!("{RSS}{first}<!-- <item> -->{second}{third}{tail}");
        assert_eq!(read(input(whole)), expected);
        for broken in [
            "<item><title>no end</title>",
            "<item><title>T</b></item>",
            "<item><title>T</title><content:encoded><![CDATA[no end</content:encoded></item>",
        ] {
            let read = read(input(format!("{RSS}{first}{broken}{second}{third}{tail}")));
            let good: Vec<&String> = read.iter().filter(|item| !item.starts_with('!')).collect();
            assert_eq!(read.len() - good.len(), 1, "{broken}: {read:?}");
            assert!(good.ends_with(&[&expected[2]]), "{broken}: {read:?}");
        }
        let cut = read(input(format!("{RSS}{first}{}", second.get(..100).unwrap())));
        assert_eq!(cut.len(), 2);
        assert!(cut[1].contains("ends in the middle"), "{cut:?}");
    }

    #[test]
    fn atom_and_rss_1_are_read() {
        let atom = r#"<feed xmlns="http://www.w3.org/2005/Atom"><title>Site</title><id>f</id>
            <entry><title type="html">T &amp;amp; t</title><id>https://a.example/1</id>
            <updated>2020-01-02T03:04:05Z</updated><author><name>A</name></author>
            <content type="text">plain
 text &lt;b&gt;</content></entry></feed>"#;
        let fields = serde_json::json!({"published_at": "2020-01-02T03:04:05Z", "title": "T & t",
            "body": "plain\n text <b>", "author": "A", "source": "Site",
            "url": "https://a.example/1"});
        assert_eq!(read(input(atom)), [fields.to_string()]);
        let rdf = r#"<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"
            xmlns="http://purl.org/rss/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/">
            <channel rdf:about="x"><title>Site</title>
            <link>https://a.example/</link><items><rdf:Seq/></items></channel>
            <item rdf:about="x"><title>T</title><link>/1</link>
            <description>B</description><dc:date>soon</dc:date></item></rdf:RDF>"#;
        assert!(is_feed(rdf.as_bytes()));
        let fields = serde_json::json!({"published_at": "soon", "title": "T", "body": "B",
            "source": "Site", "url": "https://a.example/1"});
        assert_eq!(read(input(rdf)), [fields.to_string()]);
    }

    #[test]
    fn a_feed_may_be_empty_but_has_to_be_one() {
        assert!(read(input(format!("{RSS}</channel></rss>"))).is_empty());
        for wrong in ["", "text", "<html></html>"] {
            assert!(Items::new(input(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn entities_do_not_multiply_and_length_has_a_limit() {
        let mut laughs = String::from("<!DOCTYPE rss [<!ENTITY a0 \"ha\">");
        for number in 1..30 {
            let before = format!("&a{};", number - 1);
            let after = before.repeat(10);
            laughs = format!("{laughs}<!ENTITY a{number} \"{after}\">");
        }
        let feed = format!(
            "{laughs}]><rss version=\"2.0\"><channel><title>S</title><item><title>T</title>\
             <description>&a29;</description></item></channel></rss>"
        );
        let read_laughs = read(input(feed));
        assert_eq!(read_laughs.len(), 1);
        assert!(read_laughs[0].len() < 1000, "{read_laughs:?}");
        let long = endless(
            &format!("{RSS}{}<item><title>", rss_item(1)),
            &format!("</title></item>{}</channel></rss>", rss_item(2)),
        );
        let long = read(long);
        assert_eq!((&long[0], &long[2]), (&rss_fields(1), &rss_fields(2)));
        assert!(
            long[1].contains("33554432") && long.len() == 3,
            "{}",
            long[1]
        );
        let tag = endless(&format!("{RSS}<item></item "), &rss_item(2));
        let tag = read(tag);
        assert!(
            tag[0].contains("does not end") && tag[1..] == [rss_fields(2)],
            "{tag:?}"
        );
    }
}
