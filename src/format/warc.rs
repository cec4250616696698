//! WARC (ISO 28500, <https://iipc.github.io/warc-specifications/>): pages as they were fetched. Records
//! that hold no page, such as requests and pictures, are passed over.

use std::io::{self, Read};

use flate2::read::{MultiGzDecoder, ZlibDecoder};
use serde_json::{Map, Value};

use super::html::{self, PAGE_BYTES_MAX, Page};
use super::input::{Input, goes_on};
use super::markdown::read_bytes;
use super::pieces::{
    Content, Held, PIECE_BYTES_MAX, Piece, Place, broken_off, bytes_piece, invalid, limit,
    position, too_long,
};
use crate::error::Result;

/// How a record begins.
pub(super) const MAGIC: &[u8] = b"WARC/";

/// The longest head of a record, and of the response in it.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// The most header fields of a response.
const HEADERS_MAX: usize = 256;

/// Divides a head from what it is the head of, and a record from the next.
const GAP: &[u8] = b"\r\n\r\n";

/// The records of a file that hold a page.
pub(super) struct Records {
    held: Held,
    /// Whether what comes may be the rest of a record that is broken.
    is_lost: bool,
    is_done: bool,
}

/// The head of a record.
struct Head {
    /// With the empty line behind it.
    bytes: usize,
    content_bytes: u64,
    kind: String,
    url: String,
    content_type: String,
}

impl Head {
    fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let text = String::from_utf8_lossy(bytes);
        let mut head = Self {
            bytes: bytes.len() + GAP.len(),
            content_bytes: 0,
            kind: String::new(),
            url: String::new(),
            content_type: String::new(),
        };
        let mut has_length = false;
        for line in text.lines().skip(1) {
            let Some((name, value)) = line.split_once(':') else {
                continue;
            };
            let value = value.trim();
            match name.trim().to_ascii_lowercase().as_str() {
                "content-length" => {
                    head.content_bytes = value.parse().map_err(|_| "has a wrong Content-Length")?;
                    has_length = true;
                }
                "warc-type" => head.kind = value.to_ascii_lowercase(),
                "content-type" => head.content_type = value.to_ascii_lowercase(),
                // Some writers put it in brackets, which an older standard had.
                "warc-target-uri" => value.trim_matches(['<', '>']).clone_into(&mut head.url),
                _ => {}
            }
        }
        if has_length {
            Ok(head)
        } else {
            Err("has no Content-Length")
        }
    }

    /// Whether it can be a page, by its head alone: a response to a request for one, or a resource.
    fn can_be_page(&self) -> bool {
        match self.kind.as_str() {
            "response" => {
                self.content_type.starts_with("application/http") && self.url.starts_with("http")
            }
            "resource" | "conversion" => is_html(&self.content_type),
            _ => false,
        }
    }
}

fn is_html(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("text/html")
        || essence.eq_ignore_ascii_case("application/xhtml+xml")
}

/// What became of a record.
enum Found {
    Page(Page),
    /// It holds no page.
    Other,
    Broken(&'static str),
    TooLong,
}

impl Records {
    pub(super) fn new(input: Input) -> Self {
        Self {
            held: Held::new(input),
            is_lost: false,
            is_done: false,
        }
    }

    /// Goes to what looks like the head of a record. Returns whether there is one, and whether
    /// anything was passed over.
    fn skip_to_record(&mut self) -> io::Result<(bool, bool)> {
        let mut has_passed = false;
        loop {
            let rest = self.held.rest();
            let found = record_start(rest);
            let passed = found.unwrap_or(rest.len().saturating_sub(MAGIC.len()));
            let blank = rest.get(..passed).unwrap_or_default().trim_ascii();
            has_passed |= !blank.is_empty();
            self.held.drop_start(passed);
            if found.is_some() {
                return Ok((true, has_passed));
            }
            if !self.held.more()? {
                has_passed |= !self.held.rest().trim_ascii().is_empty();
                self.held.drop_all();
                return Ok((false, has_passed));
            }
        }
    }

    /// Reads until so many bytes are held. Returns whether there are.
    fn hold(&mut self, count: usize) -> io::Result<bool> {
        while self.held.rest().len() < count {
            if !self.held.more()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes the record at the start of what is held, or finds out that it is damaged. Of that, only
    /// the first bytes are dropped: the next record may begin inside.
    fn record(&mut self) -> io::Result<Found> {
        let head = loop {
            let rest = self.held.rest();
            match position(rest, GAP) {
                Some(end) => break Head::parse(rest.get(..end).unwrap_or_default()),
                None if rest.len() > HEAD_BYTES_MAX => break Err("has a head that does not end"),
                None if !self.held.more()? => break Err("ends in the middle"),
                None => {}
            }
        };
        let head = match head {
            Ok(head) => head,
            Err(what) => {
                self.held.drop_start(MAGIC.len());
                return Ok(Found::Broken(what));
            }
        };
        let whole = limit(head.bytes).saturating_add(head.content_bytes);
        let is_too_long = whole > limit(PIECE_BYTES_MAX);
        if is_too_long || !head.can_be_page() {
            self.held.drop_start(head.bytes);
            if !self.skip(head.content_bytes)? {
                return Ok(Found::Broken("ends in the middle"));
            }
            return Ok(if head.can_be_page() {
                Found::TooLong
            } else {
                Found::Other
            });
        }
        let whole = usize::try_from(whole).unwrap_or(PIECE_BYTES_MAX);
        let is_whole = self.hold(whole)?;
        // Behind a record is a gap and the next one, or the end. If not, its length is wrong.
        self.hold(whole + GAP.len() + MAGIC.len())?;
        let behind = self.held.rest().get(whole..).unwrap_or_default();
        let next = behind.trim_ascii_start();
        let is_end = behind.starts_with(GAP) || next.is_empty() || next.starts_with(MAGIC);
        if !is_whole || !is_end {
            self.held.drop_start(head.bytes);
            return Ok(Found::Broken(if is_whole {
                "does not end where its Content-Length says"
            } else {
                "ends in the middle"
            }));
        }
        self.held.drop_start(head.bytes);
        let page = Page {
            url: head.url,
            bytes: self.held.take_start(whole - head.bytes),
            has_head: head.kind == "response",
        };
        Ok(if is_page(&page) {
            Found::Page(page)
        } else {
            Found::Other
        })
    }

    /// Drops bytes without holding them. Returns whether there were as many.
    fn skip(&mut self, mut count: u64) -> io::Result<bool> {
        while count > 0 {
            let held = limit(self.held.rest().len());
            let now = held.min(count);
            self.held
                .drop_start(usize::try_from(now).unwrap_or(usize::MAX));
            count -= now;
            if count > 0 && !self.held.more()? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Iterator for Records {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        while !self.is_done {
            let before = Place::Byte(self.held.offset);
            let (place, found) = match self.skip_to_record() {
                Ok((is_there, has_passed)) => {
                    self.is_done = !is_there;
                    // Behind a record that is broken, what is passed over is the rest of it.
                    if has_passed && !std::mem::replace(&mut self.is_lost, true) {
                        let what = "has bytes that belong to no record";
                        return Some(bytes_piece(before, Err(invalid(what))));
                    }
                    if !is_there {
                        return None;
                    }
                    (Place::Byte(self.held.offset), self.record())
                }
                Err(error) => (before, Err(error)),
            };
            self.is_lost = !matches!(found, Ok(Found::Other | Found::Page(_) | Found::TooLong));
            match found {
                Ok(Found::Other) => {}
                Ok(Found::Page(page)) => {
                    let content = Ok(Content::Page(page));
                    return Some(Piece { place, content });
                }
                Ok(Found::Broken(what)) => return Some(bytes_piece(place, Err(invalid(what)))),
                Ok(Found::TooLong) => return Some(bytes_piece(place, Err(too_long()))),
                Err(error) => {
                    self.held.drop_all();
                    self.is_done = !goes_on(&error);
                    return Some(broken_off(place, error));
                }
            }
        }
        None
    }
}

/// Where what looks like the head of a record begins.
fn record_start(bytes: &[u8]) -> Option<usize> {
    memchr::memmem::find_iter(bytes, MAGIC).find(|at| {
        let version = bytes.get(at + MAGIC.len());
        version.is_some_and(u8::is_ascii_digit)
    })
}

/// The head of an HTTP response.
struct Response {
    bytes: usize,
    status: u16,
    content_type: String,
    encoding: String,
    is_chunked: bool,
}

impl Response {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let start = bytes.get(..HEAD_BYTES_MAX).unwrap_or(bytes);
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        let mut config = httparse::ParserConfig::default();
        config
            .allow_spaces_after_header_name_in_responses(true)
            .allow_obsolete_multiline_headers_in_responses(true)
            .ignore_invalid_headers_in_responses(true);
        let parsed = config.parse_response(&mut response, start).ok()?;
        let httparse::Status::Complete(bytes) = parsed else {
            return None;
        };
        let status = response.code?;
        let header = |wanted: &str| {
            let found = headers
                .iter()
                .find(|header| header.name.eq_ignore_ascii_case(wanted));
            let value = found.map(|header| String::from_utf8_lossy(header.value));
            value.unwrap_or_default().trim().to_ascii_lowercase()
        };
        Some(Self {
            bytes,
            status,
            content_type: header("content-type"),
            encoding: header("content-encoding"),
            is_chunked: header("transfer-encoding").contains("chunked"),
        })
    }
}

/// Whether a response is a page. One that cannot be read is taken for one, so that it is told.
fn is_page(page: &Page) -> bool {
    let response = page
        .has_head
        .then(|| Response::parse(&page.bytes))
        .flatten();
    response.is_none_or(|response| response.status == 200 && is_html(&response.content_type))
}

/// The fields of the article in a page.
pub(super) fn article(page: &Page) -> Result<Map<String, Value>> {
    if !page.has_head {
        return html::article(&page.bytes, None, &page.url);
    }
    let response = Response::parse(&page.bytes)
        .ok_or_else(|| invalid("has no head of an HTTP response that can be read"))?;
    let sent = page.bytes.get(response.bytes..).unwrap_or_default();
    let whole = if response.is_chunked {
        unchunked(sent)
    } else {
        None
    };
    let sent = whole.as_deref().unwrap_or(sent);
    let decoded = decoded(sent, &response.encoding)?;
    let html = decoded.as_deref().unwrap_or(sent);
    let charset = response.content_type.split_once("charset=");
    let charset = charset.map(|(_, label)| label.trim_matches(['"', '\'', ' ', ';']));
    html::article(html, charset, &page.url)
}

/// Takes the content encoding off, if there is one. Many writers have done it and left the header.
fn decoded(sent: &[u8], encoding: &str) -> Result<Option<Vec<u8>>> {
    let reader: Box<dyn Read + '_> = match encoding {
        "gzip" | "x-gzip" if sent.starts_with(&[0x1f, 0x8b]) => Box::new(MultiGzDecoder::new(sent)),
        "deflate" if sent.first().is_some_and(|byte| byte & 0x0f == 8) => {
            Box::new(ZlibDecoder::new(sent))
        }
        "br" if !html_starts(sent) => Box::new(brotli::Decompressor::new(sent, 4096)),
        "zstd" if !html_starts(sent) => {
            let decoder = zstd::stream::read::Decoder::with_buffer(sent);
            Box::new(decoder.map_err(super::markdown::unreadable)?)
        }
        _ => return Ok(None),
    };
    read_bytes(reader, PAGE_BYTES_MAX).map(Some)
}

fn html_starts(sent: &[u8]) -> bool {
    sent.trim_ascii_start().starts_with(b"<")
}

/// Takes the transfer encoding off. `None` if it is not there: many writers have done it.
fn unchunked(mut sent: &[u8]) -> Option<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let httparse::Status::Complete((start, size)) = httparse::parse_chunk_size(sent).ok()?
        else {
            return None;
        };
        let size = usize::try_from(size).ok()?;
        if size == 0 {
            return Some(whole);
        }
        let end = start.checked_add(size)?;
        whole.extend_from_slice(sent.get(start..end)?);
        sent = sent.get(end..)?.strip_prefix(b"\r\n")?;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::pieces::tests::input;
    use super::*;

    fn record(kind: &str, content_type: &str, content: &[u8]) -> Vec<u8> {
        let head = format!(
            "WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: https://a.example/1\r\n\
             Content-Type: {content_type}\r\nContent-Length: {}\r\n\r\n",
            content.len()
        );
        [head.as_bytes(), content, GAP].concat()
    }

    fn page(title: &str) -> Vec<u8> {
        let ld = serde_json::json!({"@type": "NewsArticle", "headline": title, "articleBody": "B"});
        format!("<html><script type=\"application/ld+json\">{ld}</script></html>").into_bytes()
    }

    fn response(headers: &str, body: &[u8]) -> Vec<u8> {
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n{headers}\r\n");
        let content = [head.as_bytes(), body].concat();
        record("response", "application/http; msgtype=response", &content)
    }

    /// The titles of the pages in a file, or `!` and what is wrong.
    fn titles(file: Vec<u8>) -> Vec<String> {
        let titles = Records::new(input(file)).map(|piece| match piece.content {
            Ok(Content::Page(page)) => article(&page).unwrap()["title"]
                .as_str()
                .unwrap()
                .to_owned(),
            Ok(content) => format!("{content:?}"),
            Err(error) => format!("!{} {error}", piece.place),
        });
        titles.collect()
    }

    #[test]
    fn pages_are_found_whatever_they_are_wrapped_in() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&page("gzip")).unwrap();
        let gzip = gzip.finish().unwrap();
        let mut brotli = Vec::new();
        brotli::CompressorWriter::new(&mut brotli, 4096, 5, 20)
            .write_all(&page("br"))
            .unwrap();
        let chunked = page("chunked");
        let (first, second) = chunked.split_at(10);
        let chunked = [
            format!("{:x}\r\n", first.len()).as_bytes(),
            first,
            format!("\r\n{:x}; a=b\r\n", second.len()).as_bytes(),
            second,
            b"\r\n0\r\n\r\n",
        ]
        .concat();
        let file = [
            record(
                "warcinfo",
                "application/warc-fields",
                b"software: x\r\n\r\nWARC/1.0\r\n",
            ),
            record(
                "request",
                "application/http; msgtype=request",
                b"GET / HTTP/1.1\r\n\r\n",
            ),
            response("", &page("plain")),
            response("Content-Encoding: gzip\r\n", &gzip),
            response("Content-Encoding: gzip\r\n", &page("not gzip")),
            response("Content-Encoding: br\r\n", &brotli),
            response("Transfer-Encoding: chunked\r\n", &chunked),
            response("Transfer-Encoding: chunked\r\n", &page("not chunked")),
            record("resource", "text/html", &page("resource")),
            record(
                "response",
                "application/http",
                b"HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\n\r\nx",
            ),
            record(
                "response",
                "application/http",
                b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\nx",
            ),
        ]
        .concat();
        let expected = [
            "plain",
            "gzip",
            "not gzip",
            "br",
            "chunked",
            "not chunked",
            "resource",
        ];
        assert_eq!(titles(file), expected);
    }

    #[test]
    fn a_damaged_record_costs_only_itself() {
        let [a, b, c] = ["a", "b", "c"].map(|title| response("", &page(title)));
        let text = String::from_utf8(b.clone()).unwrap();
        let length = text
            .split("Content-Length: ")
            .nth(1)
            .unwrap()
            .split('\r')
            .next()
            .unwrap();
        for (wrong, what) in [
            ("99", "Content-Length says"),
            ("99999999", "the limit"),
            ("x", "wrong"),
        ] {
            let wrong = text.replace(length, wrong).into_bytes();
            let titles = titles([a.clone(), wrong, c.clone()].concat());
            assert_eq!(titles.first().unwrap(), "a", "{titles:?}");
            assert!(
                titles[1].contains(what) || titles[1].contains("ends in the middle"),
                "{titles:?}"
            );
        }
        let short = text.replace(length, "99").into_bytes();
        assert_eq!(
            titles([a.clone(), short, c.clone()].concat())
                .last()
                .unwrap(),
            "c"
        );
        let cut = b.get(..b.len() - 20).unwrap().to_vec();
        let cut = titles([a.clone(), cut].concat());
        assert!(cut[1].contains("ends in the middle"), "{cut:?}");
        let garbage = titles([a, b"garbage WARC/ garbage".to_vec(), c].concat());
        assert_eq!((garbage[0].as_str(), garbage[2].as_str()), ("a", "c"));
        assert!(garbage[1].contains("belong to no record"), "{garbage:?}");
        assert_eq!(titles(b"no WARC at all".to_vec()).len(), 1);
        assert!(titles(b"\r\n".to_vec()).is_empty());
    }
}
