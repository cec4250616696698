//! Finds the six fields of an article in records that name them as they like.

use std::str::FromStr;

use serde_json::{Map, Value};
use url::Url;

use super::date::{self, DayOrder};
use super::profiles::Profile;
use super::{csv, html, one_of};
use crate::article::{Article, ArticleFields, ContentHash, Timestamp};
use crate::error::{Error, Reason, Result, excerpt};

/// A field of an article.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// The title.
    Title,
    /// The body.
    Body,
    /// The date of publication.
    PublishedAt,
    /// The author.
    Author,
    /// The source.
    Source,
    /// The URL.
    Url,
}

/// The name of a body that is HTML.
const CONTENT_HTML: &str = "content_html";

impl Field {
    const ALL: [Self; 6] = [
        Self::Title,
        Self::Body,
        Self::PublishedAt,
        Self::Author,
        Self::Source,
        Self::Url,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Title => "title",
            Self::Body => "body",
            Self::PublishedAt => "published_at",
            Self::Author => "author",
            Self::Source => "source",
            Self::Url => "url",
        }
    }

    /// The names that records have for it, the surest first. A dot leads into an object.
    const fn names(self) -> &'static [&'static str] {
        match self {
            Self::Title => &["title", "headline", "name"],
            Self::Body => &[
                "body",
                "text",
                "maintext",
                "content",
                "article",
                "articleBody",
                "content_text",
                CONTENT_HTML,
            ],
            Self::PublishedAt => &[
                "published_at",
                "date",
                "published",
                "publishedAt",
                "date_publish",
                "publish_date",
                "datePublished",
                "date_published",
                "published_utc",
                "pubDate",
                "timestamp",
            ],
            Self::Author => &["author", "authors", "creator", "byline"],
            Self::Source => &[
                "source",
                "source_domain",
                "domain",
                "publication",
                "site",
                "publisher",
                "sitename",
                "hostname",
                "thread.site",
                "source.name",
                "publisher.name",
            ],
            Self::Url => &["url", "link", "canonical_link", "mainEntityOfPage"],
        }
    }
}

/// What a record's field means: `title=headline`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldName {
    field: Field,
    name: String,
}

impl FromStr for FieldName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts = text.split_once('=').filter(|(_, name)| !name.is_empty());
        let (field, name) = parts.ok_or_else(|| {
            let what = format!("{text:?} is not FIELD=NAME");
            Error::field(Reason::ArgumentInvalid, "map", what)
        })?;
        let named = Field::ALL.map(|field| (field.name(), field));
        let field = one_of("map", field, &named)?;
        Ok(Self {
            field,
            name: name.to_owned(),
        })
    }
}

/// An article that was found in a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The article.
    pub article: Article,
    /// What became of its date.
    pub date: DateNote,
}

/// What became of the date of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DateNote {
    /// It is there, with a time zone, or there is none.
    Fine,
    /// It had no time zone and was taken as UTC.
    Naive,
    /// It could not be read, and the article is undated.
    Unreadable(String),
}

impl DateNote {
    /// What a person should be told of it.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        let Self::Unreadable(what) = self else {
            return None;
        };
        Some(format!("published_at: {what}; the article is undated"))
    }
}

/// Which names stand for which fields.
#[derive(Clone, Debug)]
pub struct Mapping {
    names: Vec<(Field, String)>,
    day_order: DayOrder,
    is_strict: bool,
    /// The source of records that have none.
    source: String,
    /// Whether the records are those of the other readers, and not a user's.
    is_own: bool,
}

impl Mapping {
    /// The names that the caller gives, else those of a profile, else those that corpora have. If it
    /// is strict, a date that cannot be read is an error.
    #[must_use]
    pub fn new(given: &[FieldName], profile: Option<Profile>, is_strict: bool) -> Self {
        let given = given.iter().map(|given| (given.field, given.name.as_str()));
        let profiled = profile.map_or(&[][..], |profile| profile.names);
        let usual = Field::ALL.into_iter();
        let usual = usual.flat_map(|field| field.names().iter().map(move |name| (field, *name)));
        let mut names: Vec<(Field, String)> = Vec::new();
        for level in [
            given.collect(),
            profiled.to_vec(),
            usual.collect::<Vec<_>>(),
        ] {
            let mut unnamed = level;
            unnamed.retain(|(field, _)| !names.iter().any(|(named, _)| named == field));
            names.extend(
                unnamed
                    .into_iter()
                    .map(|(field, name)| (field, name.to_owned())),
            );
        }
        Self {
            names,
            day_order: profile.map_or(DayOrder::Unknown, |profile| profile.day_order),
            is_strict,
            source: String::new(),
            is_own: false,
        }
    }

    /// The same, with a source for records that have none; else it is the host of their URL.
    #[must_use]
    pub fn with_source(mut self, source: String) -> Self {
        self.source = source;
        self
    }

    /// Whether the header of a table has columns for a title and a body.
    pub(super) fn knows_columns(header: &[u8]) -> bool {
        let delimiter = csv::delimiter_of(header);
        let columns: Vec<&[u8]> = header.split(|byte| *byte == delimiter).collect();
        let has = |field: Field| {
            let is_name = |column: &&[u8]| {
                let column = column.trim_ascii();
                let column = column.strip_prefix(b"\"").unwrap_or(column);
                let column = column.strip_suffix(b"\"").unwrap_or(column);
                field.names().iter().any(|name| name.as_bytes() == column)
            };
            columns.iter().any(is_name)
        };
        has(Field::Title) && has(Field::Body)
    }

    /// Makes an article of fields that a reader has found and named as an article's.
    pub(super) fn own_article(&self, record: &Map<String, Value>) -> Result<Found> {
        let own = Self {
            names: Field::ALL
                .map(|field| (field, field.name().to_owned()))
                .into(),
            day_order: DayOrder::Unknown,
            is_strict: self.is_strict,
            source: self.source.clone(),
            is_own: true,
        };
        own.article(record)
    }

    /// Makes an article of a record.
    ///
    /// Line breaks and other control characters in a title, an author or a source become spaces.
    /// Several authors are joined by commas. A record without a source has the host of its URL.
    /// The `id` of a record that pressmark wrote, which has a `body_hash` as well, is checked.
    ///
    /// # Errors
    /// `ArticleInvalid` or `IdMismatch`, naming the field.
    pub(super) fn article(&self, record: &Map<String, Value>) -> Result<Found> {
        let (published_at, date) = self.date(record)?;
        let url = self.text(record, Field::Url).unwrap_or_default();
        let source = self.text(record, Field::Source).map(one_line);
        let fields = ArticleFields {
            title: one_line(self.needed(record, Field::Title)?),
            published_at,
            author: one_line(self.text(record, Field::Author).unwrap_or_default()),
            source: source
                .or_else(|| (!self.source.is_empty()).then(|| self.source.clone()))
                .or_else(|| host(&url))
                .unwrap_or_default(),
            body: self.needed(record, Field::Body)?,
            url,
        };
        let article = Article::new(fields)?;
        if let (Some(Value::String(id)), true) =
            (record.get("id"), record.contains_key("body_hash"))
        {
            let (claimed, found) = (ContentHash::parse("id", id)?, article.id());
            if claimed != found {
                let what = format!("is {claimed}, but the hash of the text is {found}");
                return Err(Error::field(Reason::IdMismatch, "id", what));
            }
        }
        Ok(Found { article, date })
    }

    /// What a record has for a field, under each of its names.
    fn values<'a>(
        &'a self,
        record: &'a Map<String, Value>,
        field: Field,
    ) -> impl Iterator<Item = (&'a str, &'a Value)> {
        let names = self.names.iter().filter(move |(of, _)| *of == field);
        names.filter_map(|(_, name)| Some((name.as_str(), find(record, name)?)))
    }

    /// The text of a field: of several the first that is not blank.
    fn text(&self, record: &Map<String, Value>, field: Field) -> Option<String> {
        let texts = self.values(record, field).filter_map(|(name, value)| {
            let text = text_of(value)?;
            let is_html = name.rsplit('.').next() == Some(CONTENT_HTML);
            Some(if is_html { html::text_of(&text) } else { text })
        });
        let mut blank = None;
        for text in texts {
            if !text.trim().is_empty() {
                return Some(text);
            }
            blank.get_or_insert(text);
        }
        blank.filter(|text| !text.is_empty() || matches!(field, Field::Title | Field::Body))
    }

    fn needed(&self, record: &Map<String, Value>, field: Field) -> Result<String> {
        self.text(record, field).ok_or_else(|| {
            if self.is_own {
                let what = "was not found in it";
                return Error::field(Reason::ArticleInvalid, field.name(), what);
            }
            let names = self.names.iter().filter(|(of, _)| *of == field);
            let names: Vec<&str> = names.map(|(_, name)| name.as_str()).collect();
            let has: Vec<&str> = record.keys().map(String::as_str).collect();
            let what = format!(
                "none of {} is in the record, which has {}; name it with --map {}=NAME",
                names.join(", "),
                excerpt(&has.join(", ")),
                field.name(),
            );
            Error::field(Reason::ArticleInvalid, field.name(), what)
        })
    }

    fn date(&self, record: &Map<String, Value>) -> Result<(Option<Timestamp>, DateNote)> {
        let is_blank = |value: &Value| match value {
            Value::Null => true,
            Value::String(text) => text.trim().is_empty(),
            Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => false,
        };
        let mut values = self.values(record, Field::PublishedAt);
        let Some((_, value)) = values.find(|(_, value)| !is_blank(value)) else {
            return Ok((None, DateNote::Fine));
        };
        match date::read(value, self.day_order) {
            Some(date) if date.is_naive => Ok((Some(date.at), DateNote::Naive)),
            Some(date) => Ok((Some(date.at), DateNote::Fine)),
            None => {
                let text = value
                    .as_str()
                    .map_or_else(|| value.to_string(), str::to_owned);
                let shown = excerpt(&text);
                let what = format!("{shown} is no date that can be read");
                if self.is_strict {
                    let name = Field::PublishedAt.name();
                    return Err(Error::field(Reason::ArticleInvalid, name, what));
                }
                Ok((None, DateNote::Unreadable(what)))
            }
        }
    }
}

/// A value by its name, or by the names of the objects around it.
fn find<'a>(record: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    if let Some(value) = record.get(name) {
        return Some(value);
    }
    let (outer, inner) = name.split_once('.')?;
    find(record.get(outer)?.as_object()?, inner)
}

/// The text of a value, where it has one: of an object its name, or what it is in JSON-LD.
pub(super) fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Array(values) => {
            let texts: Vec<String> = values.iter().filter_map(text_of).collect();
            Some(texts.join(", "))
        }
        Value::Object(object) => text_of(object.get("name").or_else(|| object.get("@id"))?),
        Value::Null | Value::Bool(_) => None,
    }
}

/// A text with its control characters made spaces. Others stay as they are, byte for byte.
fn one_line(text: String) -> String {
    if !text.contains(char::is_control) {
        return text;
    }
    let words: Vec<&str> = text
        .split(char::is_control)
        .map(str::trim)
        .filter(|word| !word.is_empty())
        .collect();
    words.join(" ")
}

/// The host of a URL, as a name for its source.
fn host(url: &str) -> Option<String> {
    let url = Url::parse(url).ok()?;
    let host = url.host_str()?;
    Some(host.strip_prefix("www.").unwrap_or(host).to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(mapping: &Mapping, record: Value) -> Result<Found> {
        let Value::Object(record) = record else {
            panic!("{record} is an object");
        };
        mapping.article(&record)
    }

    fn profiled(name: &str, record: Value) -> Article {
        let mapping = Mapping::new(&[], Some(name.parse().unwrap()), true);
        read(&mapping, record).unwrap().article
    }

    /// Date, author, source, URL and body, as one text.
    fn shown(article: &Article) -> String {
        let date = article.published_at().map(|date| date.to_string());
        let date = date.unwrap_or_default();
        let date = date.get(..10).unwrap_or("undated").to_owned();
        let (author, source) = (article.author(), article.source());
        format!(
            "{date} {author}/{source}/{}/{}",
            article.url(),
            article.body()
        )
    }

    #[test]
    fn every_name_of_every_field_is_known() {
        let usual = Mapping::new(&[], None, true);
        for field in Field::ALL {
            let ours = field.name();
            for name in field.names() {
                let value = match field {
                    Field::Url => json!("https://a.example/x"),
                    Field::PublishedAt => json!("2020-01-02T00:00:00Z"),
                    Field::Title | Field::Body | Field::Author | Field::Source => json!("Word"),
                };
                let mut record = json!({"title": "T", "body": "B", "source": "S"});
                let fields = record.as_object_mut().unwrap();
                fields.remove(ours);
                match name.split_once('.') {
                    Some((outer, inner)) => fields.insert(outer.into(), json!({inner: value})),
                    None => fields.insert((*name).into(), value.clone()),
                };
                let article = read(&usual, record).unwrap().article.into_fields();
                let found = match field {
                    Field::Title => article.title,
                    Field::Body => article.body,
                    Field::PublishedAt => article
                        .published_at
                        .unwrap()
                        .to_string()
                        .replace("+00:00", "Z"),
                    Field::Author => article.author,
                    Field::Source => article.source,
                    Field::Url => article.url,
                };
                assert_eq!(json!(found), value, "{name}");
            }
        }
    }

    #[test]
    fn every_profile_reads_its_corpus() {
        let url = "https://www.a.example/x";
        let news_please = json!({"title": "T", "maintext": "B", "text": null, "url": url,
            "date_publish": "2020-01-02 03:04:05", "date_download": "2021-01-02 03:04:05",
            "authors": ["A", "C"], "source_domain": "a.example", "description": "D"});
        let trafilatura = json!({"title": "T", "text": "B", "source": url, "author": "A; C",
            "hostname": "a.example", "sitename": "Site", "date": "2020-01-02"});
        let newsapi = json!({"title": "T", "content": "B", "url": url, "author": "A",
            "source": {"id": null, "name": "Site"}, "publishedAt": "2020-01-02T03:04:05Z"});
        let nela = json!({"id": "x--1", "title": "T", "content": "B", "source": "site",
            "published": "on a day", "published_utc": 1_577_934_245, "date": "2020-01-02",
            "author": "A", "url": url});
        let realnews = json!({"title": "T", "text": "B", "domain": "a.example", "url": url,
            "publish_date": "01-02-2020", "authors": ["A"]});
        let all_the_news = json!({"title": "T", "article": "B", "publication": "Site",
            "date": "2020-01-02 03:04:05", "author": "A", "url": url});
        let cc_news = json!({"title": "T", "text": "B", "domain": "a.example",
            "date": "2020-01-02 03:04:05", "url": url, "description": "D"});
        let webhose = json!({"title": "T", "text": "B", "url": url, "author": "A",
            "thread": {"site": "a.example"}, "published": "2020-01-02T03:04:05.000+02:00"});
        let fake = json!({"title": "T", "content": "B", "domain": "a.example", "url": url,
            "scraped_at": "2020-01-02", "date": "2020-01-02", "authors": "A"});
        for (name, record, expected) in [
            ("news-please", news_please, "2020-01-02 A, C/a.example"),
            ("trafilatura", trafilatura, "2020-01-02 A; C/Site"),
            ("newsapi", newsapi, "2020-01-02 A/Site"),
            ("nela-gt", nela, "2020-01-02 A/site"),
            ("realnews", realnews, "2020-01-02 A/a.example"),
            ("all-the-news", all_the_news, "2020-01-02 A/Site"),
            ("cc_news", cc_news, "2020-01-02 /a.example"),
            ("webhose", webhose, "2020-01-02 A/a.example"),
            ("fakenewscorpus", fake, "undated A/a.example"),
        ] {
            let article = profiled(name, record);
            assert_eq!(shown(&article), format!("{expected}/{url}/B"), "{name}");
        }
    }

    #[test]
    fn given_names_win_and_texts_are_cleaned() {
        let given = ["title=kop", "body=a.b"].map(|name| name.parse().unwrap());
        let mapping = Mapping::new(&given, None, false);
        let record = json!({"title": "no", "kop": " a\r\n\tb ", "a": {"b": "x\ny "},
            "url": "https://www.a.example/", "date": "soon", "byline": [{"name": "A"}, "C"]});
        let found = read(&mapping, record.clone()).unwrap();
        assert_eq!(found.article.title(), "a b");
        assert_eq!(
            shown(&found.article),
            "undated A, C/a.example/https://www.a.example//x\ny "
        );
        let DateNote::Unreadable(what) = found.date else {
            panic!("{found:?}");
        };
        assert!(what.contains("\"soon\""), "{what}");
        let strict = Mapping::new(&given, None, true);
        let error = read(&strict, record).unwrap_err();
        assert_eq!(error.field_name(), Some("published_at"));
        for wrong in ["title", "title=", "headline=title"] {
            assert!(wrong.parse::<FieldName>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_missing_or_does_not_fit_is_told() {
        let mapping = Mapping::new(&[], None, false);
        let error = read(&mapping, json!({"kop": "T", "body": "B"})).unwrap_err();
        assert_eq!(error.field_name(), Some("title"));
        assert!(error.message().contains("kop"), "{error}");
        let wrong = json!({"id": "0".repeat(64), "body_hash": "", "title": "T", "body": "B",
            "source": "S"});
        let error = read(&mapping, wrong).unwrap_err();
        assert_eq!(error.reason(), Reason::IdMismatch);
        // The ids of other archives are theirs.
        let other = json!({"id": 7, "title": "T", "body": "", "source": "S"});
        assert_eq!(read(&mapping, other).unwrap().article.body(), "");
    }
}
