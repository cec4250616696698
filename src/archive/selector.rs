//! Which articles a query means, and in what order: validated once, then used by every read.

use super::limits::Limits;
use super::token::Fingerprint;
use crate::article::{
    Article, ContentHash, SOURCE_BYTES_MAX, Timestamp, URL_BYTES_MAX, canonical_url,
};
use crate::error::{Error, Reason, Result, excerpt};
use crate::key::{Sequence, ShortHash, SortTime};
use crate::store::Direction;

/// A selector as somebody sent it. What is empty does not restrict.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SelectorFields {
    /// Articles of any of these sources.
    pub sources: Vec<String>,
    /// Articles published at this time or later; never undated ones.
    pub published_after: Option<Timestamp>,
    /// Articles published before this time; never undated ones.
    pub published_before: Option<Timestamp>,
    /// Articles at this URL, compared in canonical form.
    pub url: String,
    /// Articles with this body.
    pub body_hash: String,
    /// Articles with this sequence or a later one; 0 does not restrict.
    pub min_sequence: Sequence,
    /// Articles with this sequence or an earlier one; 0 does not restrict.
    pub max_sequence: Sequence,
}

/// A valid selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    sources: Vec<String>,
    published_after: Option<Timestamp>,
    published_before: Option<Timestamp>,
    url: Option<SelectedUrl>,
    body_hash: Option<ContentHash>,
    min_sequence: Sequence,
    max_sequence: Sequence,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct SelectedUrl {
    canonical: String,
    key: ShortHash,
}

impl Selector {
    /// Validates a selector.
    ///
    /// # Errors
    /// `ArgumentInvalid`, naming the field, the value and the limit.
    pub fn new(fields: SelectorFields, limits: &Limits) -> Result<Self> {
        let invalid = |field: &str, what: String| {
            Err(Error::field(
                Reason::ArgumentInvalid,
                format!("selector.{field}"),
                what,
            ))
        };
        let mut sources = fields.sources;
        if sources.len() > limits.selector_sources_max {
            let what = format!(
                "{} sources, the limit is {}",
                sources.len(),
                limits.selector_sources_max
            );
            return invalid("sources", what);
        }
        if let Some(wrong) = sources.iter().find(|source| !is_source(source)) {
            let what = format!(
                "{} is not one line of 1 to {SOURCE_BYTES_MAX} bytes",
                excerpt(wrong)
            );
            return invalid("sources", what);
        }
        sources.sort_unstable();
        sources.dedup();
        if let (Some(after), Some(before)) = (fields.published_after, fields.published_before)
            && after > before
        {
            return invalid(
                "published_after",
                format!("{after} is later than published_before {before}"),
            );
        }
        if fields.url.len() > URL_BYTES_MAX {
            let what = format!("{} bytes, the limit is {URL_BYTES_MAX}", fields.url.len());
            return invalid("url", what);
        }
        if fields.max_sequence != 0 && fields.min_sequence > fields.max_sequence {
            let what = format!(
                "{} is above max_sequence {}",
                fields.min_sequence, fields.max_sequence
            );
            return invalid("min_sequence", what);
        }
        let body_hash = match fields.body_hash.as_str() {
            "" => None,
            text => Some(ContentHash::parse("selector.body_hash", text)?),
        };
        Ok(Self {
            sources,
            published_after: fields.published_after,
            published_before: fields.published_before,
            url: ShortHash::of_url(&fields.url).map(|key| SelectedUrl {
                canonical: canonical_url(&fields.url),
                key,
            }),
            body_hash,
            min_sequence: fields.min_sequence.max(1),
            max_sequence: if fields.max_sequence == 0 {
                Sequence::MAX
            } else {
                fields.max_sequence
            },
        })
    }

    /// The selector of the articles at a URL, which has to be one.
    ///
    /// # Errors
    /// `ArgumentInvalid`, naming the field `url`.
    pub fn of_url(url: String, limits: &Limits) -> Result<Self> {
        url_key(&url)?;
        let fields = SelectorFields {
            url,
            ..SelectorFields::default()
        };
        Self::new(fields, limits)
    }

    /// The selector of all articles.
    #[must_use]
    pub fn everything() -> Self {
        Self {
            sources: Vec::new(),
            published_after: None,
            published_before: None,
            url: None,
            body_hash: None,
            min_sequence: 1,
            max_sequence: Sequence::MAX,
        }
    }

    /// Whether an article is meant.
    #[must_use]
    pub fn matches(&self, sequence: Sequence, article: &Article) -> bool {
        let time = SortTime::of(article.published_at());
        let of_source = self.sources.is_empty()
            || self
                .sources
                .binary_search_by(|source| source.as_str().cmp(article.source()))
                .is_ok();
        of_source
            && self.includes(sequence)
            && time >= self.time_start()
            && self.time_end().is_none_or(|end| time < end)
            && self
                .url
                .as_ref()
                .is_none_or(|url| canonical_url(article.url()) == url.canonical)
            && self
                .body_hash
                .is_none_or(|hash| article.body_hash() == hash)
    }

    /// Whether a sequence is within the bounds.
    #[must_use]
    pub fn includes(&self, sequence: Sequence) -> bool {
        (self.min_sequence..=self.max_sequence).contains(&sequence)
    }

    /// The sources, in byte order; none if all are meant.
    #[must_use]
    pub fn sources(&self) -> &[String] {
        &self.sources
    }

    pub(super) fn url_key(&self) -> Option<ShortHash> {
        self.url.as_ref().map(|url| url.key)
    }

    pub(super) fn body_key(&self) -> Option<ShortHash> {
        self.body_hash.as_ref().map(ShortHash::of)
    }

    /// The first sequence that is meant.
    #[must_use]
    pub fn min_sequence(&self) -> Sequence {
        self.min_sequence
    }

    /// The last sequence that is meant.
    #[must_use]
    pub fn max_sequence(&self) -> Sequence {
        self.max_sequence
    }

    /// The first time that is meant, inclusive.
    #[must_use]
    pub fn published_after(&self) -> Option<Timestamp> {
        self.published_after
    }

    /// The first time that is not meant any more.
    #[must_use]
    pub fn published_before(&self) -> Option<Timestamp> {
        self.published_before
    }

    pub(super) fn bounds_dates(&self) -> bool {
        self.published_after.is_some() || self.published_before.is_some()
    }

    pub(super) fn bounds_sequences(&self) -> bool {
        self.min_sequence > 1 || self.max_sequence < Sequence::MAX
    }

    /// The first time that is meant: undated articles are, unless a date is asked for.
    pub(super) fn time_start(&self) -> SortTime {
        match (self.published_after, self.published_before) {
            (None, None) => SortTime::UNDATED,
            (None, Some(_)) => SortTime::first_dated(),
            (Some(after), _) => SortTime::of(Some(after)),
        }
    }

    /// The first time that is not meant any more.
    pub(super) fn time_end(&self) -> Option<SortTime> {
        self.published_before
            .map(|before| SortTime::of(Some(before)))
    }
}

/// The key of a URL that is asked for by itself, and so cannot be left out.
pub(super) fn url_key(url: &str) -> Result<ShortHash> {
    let key = ShortHash::of_url(url).filter(|_| url.len() <= URL_BYTES_MAX);
    key.ok_or_else(|| {
        let what = format!("{} bytes, it needs 1 to {URL_BYTES_MAX}", url.len());
        Error::field(Reason::ArgumentInvalid, "url", what)
    })
}

fn is_source(source: &str) -> bool {
    (1..=SOURCE_BYTES_MAX).contains(&source.len()) && !source.chars().any(char::is_control)
}

/// The order of the articles of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// By date; those of one date by arrival; undated ones before all dates if ascending.
    Published(Direction),
    /// By sequence.
    Arrival(Direction),
}

impl Order {
    pub(super) fn direction(self) -> Direction {
        match self {
            Self::Published(direction) | Self::Arrival(direction) => direction,
        }
    }
}

/// A selector and an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Which articles.
    pub selector: Selector,
    /// In what order.
    pub order: Order,
}

impl Query {
    /// What the page tokens of this query carry. Tokens never expire, so these bytes are for ever.
    pub(super) fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.description(b"articles"))
    }

    /// What tells this query from all others, after what tells its kind from others.
    #[must_use]
    pub fn description(&self, kind: &[u8]) -> Vec<u8> {
        let selector = &self.selector;
        let mut bytes = kind.to_vec();
        let mut add = |part: &[u8]| {
            bytes.extend_from_slice(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            bytes.extend_from_slice(part);
        };
        add(match self.order {
            Order::Published(Direction::Ascending) => b"published asc",
            Order::Published(Direction::Descending) => b"published desc",
            Order::Arrival(Direction::Ascending) => b"arrival asc",
            Order::Arrival(Direction::Descending) => b"arrival desc",
        });
        add(&selector.time_start().as_bytes()[..]);
        add(selector
            .time_end()
            .as_ref()
            .map_or(&[][..], |end| end.as_bytes()));
        add(selector
            .url
            .as_ref()
            .map_or(&[][..], |url| url.canonical.as_bytes()));
        add(selector
            .body_hash
            .as_ref()
            .map_or(&[][..], |hash| hash.as_bytes()));
        add(&selector.min_sequence.to_be_bytes());
        add(&selector.max_sequence.to_be_bytes());
        selector
            .sources
            .iter()
            .for_each(|source| add(source.as_bytes()));
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_refused(field: &str, expected: &str, change: impl FnOnce(&mut SelectorFields)) {
        let mut fields = SelectorFields::default();
        change(&mut fields);
        let error = Selector::new(fields, &Limits::default()).unwrap_err();
        assert_eq!(
            error.field_name(),
            Some(format!("selector.{field}").as_str())
        );
        assert!(error.message().contains(expected), "{error}");
    }

    fn time(seconds: i64) -> Timestamp {
        Timestamp::new("t", seconds, 0).unwrap()
    }

    #[test]
    fn refusals_name_field_value_and_limit() {
        check_refused("sources", "101 sources, the limit is 100", |f| {
            f.sources = vec!["s".into(); 101];
        });
        check_refused("sources", "1 to 256 bytes", |f| {
            f.sources = vec![String::new()];
        });
        check_refused("sources", "a\\nb", |f| f.sources = vec!["a\nb".into()]);
        check_refused("url", "8193 bytes, the limit is 8192", |f| {
            f.url = "x".repeat(8193);
        });
        check_refused("body_hash", "64 lower-case hex digits", |f| {
            f.body_hash = "ab".into();
        });
        check_refused("min_sequence", "2 is above max_sequence 1", |f| {
            f.min_sequence = 2;
            f.max_sequence = 1;
        });
        check_refused(
            "published_after",
            "1970-01-01T00:00:01+00:00 is later than",
            |f| {
                f.published_after = Some(time(1));
                f.published_before = Some(time(0));
            },
        );
    }

    #[test]
    fn every_part_of_a_query_is_in_its_fingerprint() {
        let base = SelectorFields::default();
        let variants = [
            base.clone(),
            SelectorFields {
                sources: vec!["a".into()],
                ..base.clone()
            },
            SelectorFields {
                sources: vec!["a".into(), "b".into()],
                ..base.clone()
            },
            SelectorFields {
                published_after: Some(time(1)),
                ..base.clone()
            },
            SelectorFields {
                published_before: Some(time(1)),
                ..base.clone()
            },
            SelectorFields {
                url: "http://a".into(),
                ..base.clone()
            },
            SelectorFields {
                body_hash: ContentHash::of(b"").to_string(),
                ..base.clone()
            },
            SelectorFields {
                min_sequence: 5,
                ..base.clone()
            },
            SelectorFields {
                max_sequence: 5,
                ..base
            },
        ];
        let mut seen = Vec::new();
        for fields in variants {
            let selector = Selector::new(fields, &Limits::default()).unwrap();
            for order in [
                Order::Published(Direction::Ascending),
                Order::Published(Direction::Descending),
                Order::Arrival(Direction::Ascending),
                Order::Arrival(Direction::Descending),
            ] {
                let print = Query {
                    selector: selector.clone(),
                    order,
                }
                .fingerprint();
                assert!(!seen.contains(&print));
                seen.push(print);
            }
        }
    }
}
