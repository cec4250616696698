//! The article in a web page: what the page says of itself as schema.org JSON-LD
//! (<https://schema.org/NewsArticle>), and for the rest what readability finds.

mod limits;
mod text;

use std::borrow::Cow;

use dom_query::Document;
use dom_smoothie::{Config, Metadata, Readability};
use encoding_rs::{Encoding, UTF_8, WINDOWS_1252};
use serde_json::{Map, Value};
use url::Url;

pub(super) use self::text::{looks_marked_up, text_of};
use super::pieces::position;
use crate::error::{Error, Reason, Result};

/// The longest page.
pub(super) const PAGE_BYTES_MAX: usize = super::PIECE_BYTES_MAX;

/// Elements of a page in which readability looks for an article.
const ELEMENTS_MAX: usize = 100_000;

/// Bytes of a page in which its encoding is looked for, as in browsers.
const CHARSET_BYTES: usize = 1024;

/// How deep JSON-LD is looked into for the article.
const JSON_LD_DEPTH_MAX: usize = 8;

/// What pages name as their generator that an export wrote: their texts are taken byte for byte.
pub(super) const GENERATOR: &str = "pressmark";

/// A page that was fetched.
#[derive(Debug)]
pub struct Page {
    /// From where.
    pub url: String,
    /// The whole response: its HTTP head, and what came with it. If there is no head, the page.
    pub bytes: Vec<u8>,
    /// Whether there is a head.
    pub has_head: bool,
}

fn invalid(what: impl std::fmt::Display) -> Error {
    Error::field(Reason::ArticleInvalid, "page", what)
}

/// The fields of the article in a page. `charset` is what the page was sent with.
pub(super) fn article(
    bytes: &[u8],
    charset: Option<&str>,
    fetched: &str,
) -> Result<Map<String, Value>> {
    if bytes.len() > PAGE_BYTES_MAX {
        let what = format!("has more than {PAGE_BYTES_MAX} bytes, the limit of a page");
        return Err(invalid(what));
    }
    let html = decode(bytes, charset);
    limits::check(&html).map_err(invalid)?;
    let document = Document::from(html.as_ref());
    let is_ours = document
        .select("meta[name=generator]")
        .attr("content")
        .is_some_and(|generator| *generator == *GENERATOR);
    let found = json_ld(&document);
    let mut fields = Map::new();
    if let Some(found) = &found {
        said(found, is_ours, &mut fields);
    }
    let canonical = document.select("link[rel=canonical]").attr("href");
    let canonical =
        canonical.or_else(|| document.select("meta[property='og:url']").attr("content"));
    let urls = [
        fields.get("url").and_then(Value::as_str).map(str::to_owned),
        canonical.map(|url| url.to_string()),
        Some(fetched.to_owned()),
    ];
    if !is_ours {
        let base = Url::parse(fetched).ok();
        let mut absolute = urls
            .into_iter()
            .flatten()
            .filter_map(|url| absolute(&url, base.as_ref()));
        fields.insert("url".into(), absolute.next().into());
        complete(document, &mut fields)?;
    }
    Ok(fields)
}

/// A URL of the web, if it is or can be made one.
pub(super) fn absolute(url: &str, base: Option<&Url>) -> Option<String> {
    let is_web = |url: &Url| matches!(url.scheme(), "http" | "https");
    let url = url.trim();
    match Url::parse(url) {
        Ok(parsed) => is_web(&parsed).then(|| url.to_owned()),
        Err(_) if url.is_empty() => None,
        Err(_) => base?.join(url).ok().filter(is_web).map(String::from),
    }
}

/// A page as text: in the encoding that its start names, or it was sent with, or that it itself
/// names. One that names none is UTF-8, or if it cannot be, Windows-1252. Bytes that are wrong in
/// the encoding become U+FFFD, as in browsers.
fn decode<'a>(bytes: &'a [u8], charset: Option<&str>) -> Cow<'a, str> {
    let start = bytes.get(..CHARSET_BYTES).unwrap_or(bytes);
    let named = charset.and_then(|label| Encoding::for_label(label.as_bytes()));
    let encoding = named.or_else(|| Encoding::for_label(meta_charset(start)?));
    let guessed = || match std::str::from_utf8(bytes) {
        Ok(_) => UTF_8,
        Err(_) => WINDOWS_1252,
    };
    let encoding = encoding.unwrap_or_else(guessed);
    encoding.decode(bytes).0
}

/// The encoding that a page names: `<meta charset=x>`, or `content="text/html; charset=x"`.
fn meta_charset(start: &[u8]) -> Option<&[u8]> {
    let lower = start.to_ascii_lowercase();
    let at = position(&lower, b"charset=")? + b"charset=".len();
    let rest = start.get(at..)?;
    let rest = rest
        .strip_prefix(b"\"")
        .or_else(|| rest.strip_prefix(b"'"))
        .unwrap_or(rest);
    let is_end = |byte: &u8| byte.is_ascii_whitespace() || b"\"'>;/".contains(byte);
    rest.split(is_end).next()
}

/// The article that the JSON-LD of a page describes, the surest first: one that has a body, then one of
/// news.
fn json_ld(document: &Document) -> Option<Map<String, Value>> {
    let mut found: Vec<Map<String, Value>> = Vec::new();
    for script in document
        .select("script[type='application/ld+json']")
        .nodes()
    {
        let text = script.text();
        let text = text.trim();
        let text = text.strip_prefix("<!--").unwrap_or(text);
        let text = text.strip_suffix("-->").unwrap_or(text);
        if let Ok(value) = serde_json::from_str::<Value>(text) {
            collect_articles(value, JSON_LD_DEPTH_MAX, &mut found);
        }
    }
    let has_body = |article: &Map<String, Value>| article.contains_key("articleBody");
    let is_news = |article: &Map<String, Value>| types(article).any(|name| name.contains("News"));
    found
        .into_iter()
        .max_by_key(|article| (has_body(article), is_news(article)))
}

/// The types of a thing in JSON-LD.
fn types(thing: &Map<String, Value>) -> impl Iterator<Item = &str> {
    let named = thing.get("@type");
    let one = named.and_then(Value::as_str).into_iter();
    let many = named.and_then(Value::as_array).into_iter().flatten();
    one.chain(many.filter_map(Value::as_str))
}

fn collect_articles(value: Value, depth: usize, found: &mut Vec<Map<String, Value>>) {
    let Some(depth) = depth.checked_sub(1) else {
        return;
    };
    match value {
        Value::Array(values) => {
            for value in values {
                collect_articles(value, depth, found);
            }
        }
        Value::Object(mut thing) => {
            let is_article = types(&thing).any(|name| {
                ["Article", "BlogPosting", "Report"]
                    .iter()
                    .any(|ending| name.ends_with(ending))
            });
            if is_article {
                found.insert(0, thing);
                return;
            }
            for inner in ["@graph", "mainEntity", "hasPart", "itemListElement", "item"] {
                if let Some(value) = thing.remove(inner) {
                    collect_articles(value, depth, found);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Takes the fields that JSON-LD says. Sites write HTML into them, which becomes plain text.
fn said(thing: &Map<String, Value>, is_ours: bool, fields: &mut Map<String, Value>) {
    for (field, names) in [
        ("title", &["headline", "name"][..]),
        ("published_at", &["datePublished", "dateCreated"]),
        ("author", &["author", "creator"]),
        ("source", &["publisher", "sourceOrganization"]),
        ("url", &["url", "mainEntityOfPage", "@id"]),
        ("body", &["articleBody"]),
    ] {
        let texts = names.iter().filter_map(|name| {
            let text = super::fields::text_of(thing.get(*name)?)?;
            let is_text = is_ours || field == "url" || !looks_marked_up(&text);
            Some(if is_text { text } else { text_of(&text) })
        });
        if let Some(text) = texts
            .into_iter()
            .find(|text| is_ours || !text.trim().is_empty())
        {
            fields.insert(field.into(), text.into());
        }
    }
    // An id beside a body hash is compared with the text.
    if let (true, Some(id)) = (is_ours, thing.get("identifier")) {
        fields.insert("id".into(), id.clone());
        fields.insert("body_hash".into(), Value::Null);
    }
}

/// Finds the fields that the page does not say: what they are in other metadata, and the body by the
/// looks of the page.
fn complete(document: Document, fields: &mut Map<String, Value>) -> Result<()> {
    let config = Config {
        max_elements_to_parse: ELEMENTS_MAX,
        disable_json_ld: true,
        ..Config::default()
    };
    let mut page = Readability::with_document(document, None, Some(config))
        .map_err(|error| invalid(format!("cannot be read: {error}")))?;
    let Metadata {
        title,
        byline,
        site_name,
        published_time,
        ..
    } = page.get_article_metadata(None);
    for (field, text) in [
        ("title", Some(title)),
        ("author", byline),
        ("source", site_name),
        ("published_at", published_time),
    ] {
        let text = text.filter(|text| !text.trim().is_empty());
        if let (Some(text), false) = (text, fields.contains_key(field)) {
            fields.insert(field.into(), text.into());
        }
    }
    if !fields.contains_key("body") {
        let article = page
            .parse()
            .map_err(|error| invalid(format!("has no article that can be found: {error}")))?;
        fields.insert("body".into(), text_of(&article.content).into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(html: impl AsRef<[u8]>, charset: Option<&str>) -> Value {
        let url = "https://www.a.example/fetched";
        Value::Object(article(html.as_ref(), charset, url).unwrap())
    }

    const BODY: &str = "<article><h1>T</h1><p>The first paragraph of an article that is long enough, \
        with commas, to be found by its looks, and by nothing else.</p><p>The second one, which is \
        as long, or longer, and has no other purpose than to be found, as the first has.</p></article>";

    #[test]
    fn json_ld_is_taken_and_completed() {
        let ld = json!({"@context": "https://schema.org", "@graph": [
            {"@type": "WebPage", "name": "no"},
            {"@type": ["NewsArticle"], "headline": "T &amp; t", "datePublished": "2020-01-02",
             "author": [{"@type": "Person", "name": "A"}, {"name": "B"}],
             "publisher": {"name": "Site"}, "mainEntityOfPage": {"@id": "/x"},
             "articleBody": "One.\n\nTwo <b>."}]});
        let page = format!(
            "<html><head><title>no</title><script type=\"application/ld+json\">{ld}</script>
            </head><body>{BODY}</body></html>"
        );
        let expected = json!({"title": "T & t", "published_at": "2020-01-02", "author": "A, B",
            "source": "Site", "url": "https://www.a.example/x", "body": "One. Two ."});
        assert_eq!(read(page, None), expected);
    }

    #[test]
    fn a_page_without_json_ld_is_read_by_its_looks() {
        let page = format!(
            "<html><head><title>The title of the page</title>
            <meta property=\"article:published_time\" content=\"2020-01-02T03:04:05Z\">
            <meta property=\"og:site_name\" content=\"Site\"><meta name=\"author\" content=\"A\">
            <link rel=\"canonical\" href=\"https://a.example/c\">
            <script type=\"application/ld+json\">{{ broken</script></head>
            <body><nav><a href=\"/\">Home</a></nav>{BODY}<footer>Imprint</footer></body></html>"
        );
        let read = read(page, None);
        let body = read["body"].as_str().unwrap();
        assert!(
            body.contains("looks, and by nothing else.\n\nThe second one"),
            "{body:?}"
        );
        assert!(
            !body.contains("Imprint") && !body.contains("Home"),
            "{body:?}"
        );
        for (field, expected) in [
            ("title", "The title of the page"),
            ("published_at", "2020-01-02T03:04:05Z"),
            ("source", "Site"),
            ("author", "A"),
            ("url", "https://a.example/c"),
        ] {
            assert_eq!(read[field], expected, "{field}");
        }
        assert!(article(b"<html><body></body></html>", None, "").is_err());
    }

    #[test]
    fn encodings_are_found() {
        let page = |head: &str| {
            format!("<html><head>{head}<title>x\u{e9}y</title></head><body>{BODY}</body>")
        };
        let latin = |text: String| {
            text.chars()
                .map(|c| u8::try_from(u32::from(c)).unwrap())
                .collect::<Vec<u8>>()
        };
        for (bytes, charset) in [
            (page("").into_bytes(), None),
            (latin(page("")), None),
            (latin(page("")), Some("ISO-8859-1")),
            (latin(page("<meta charset='latin1'>")), None),
            (
                latin(page("<meta content=\"text/html; charset=windows-1252\">")),
                None,
            ),
        ] {
            assert_eq!(read(bytes, charset)["title"], "x\u{e9}y", "{charset:?}");
        }
    }
}
