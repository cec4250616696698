//! How many articles were published when, from the digests alone.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Datelike, Days, NaiveDate, NaiveTime, Timelike};

use super::Archive;
use super::read::StoredArticle;
use super::selector::Selector;
use crate::article::Timestamp;
use crate::error::{Error, Reason, Result};
use crate::key::{Sequence, SortTime};
use crate::record::SourceMark;

/// Articles that are counted before other tasks have their turn.
const YIELD_ARTICLES: usize = 1 << 16;

/// What a series and a number take in a message: a time, a count, tags and lengths.
const SERIES_BYTES: usize = 24;
const COUNT_BYTES: usize = 32;

/// What one number of a timeline counts. All are of UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bucket {
    /// An hour.
    Hour,
    /// A day.
    Day,
    /// A week, from Monday on, as ISO 8601 has it.
    Week,
    /// A month.
    Month,
    /// A year.
    Year,
}

/// What a timeline shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineQuery {
    /// Of which articles.
    pub selector: Selector,
    /// How fine.
    pub bucket: Bucket,
    /// Whether each source has numbers of its own.
    pub by_source: bool,
}

/// The numbers of one source, or of all of them together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineSeries {
    /// The source; empty for all of them.
    pub source: String,
    /// The start of each bucket that has articles, in order, and how many.
    pub counts: Vec<(Timestamp, u64)>,
    /// Articles without a date.
    pub undated_count: u64,
}

/// How many articles were published when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeline {
    /// One, or one per source that has articles, by name.
    pub series: Vec<TimelineSeries>,
    /// Articles behind this sequence are not counted.
    pub as_of: Sequence,
}

/// Counts in the making.
#[derive(Default)]
struct Counts {
    by_bucket: BTreeMap<i64, u64>,
    undated: u64,
}

/// Finds the bucket of a time. Articles in a row are often of one bucket, so the last one found is
/// remembered.
struct Buckets {
    bucket: Bucket,
    last: std::ops::Range<i64>,
}

impl Buckets {
    fn new(bucket: Bucket) -> Self {
        Self { bucket, last: 0..0 }
    }

    /// The start of the bucket that a second since 1970 is in.
    fn start(&mut self, seconds: i64) -> Result<i64> {
        if !self.last.contains(&seconds) {
            let out_of_range = || {
                let what = format!("second {seconds} of an index row is no date");
                Error::new(Reason::IndexDamaged, what)
            };
            self.last = range(self.bucket, seconds).ok_or_else(out_of_range)?;
        }
        Ok(self.last.start)
    }
}

/// The bucket that a second is in, as seconds.
fn range(bucket: Bucket, seconds: i64) -> Option<std::ops::Range<i64>> {
    let time = DateTime::from_timestamp(seconds, 0)?.naive_utc();
    let date = time.date();
    let first_of = |year, month| NaiveDate::from_ymd_opt(year, month, 1);
    let (start, end) = match bucket {
        Bucket::Hour => {
            let start = seconds - i64::from(time.minute() * 60 + time.second());
            return Some(start..start + 3600);
        }
        Bucket::Day => (date, date.checked_add_days(Days::new(1))?),
        Bucket::Week => {
            let days = Days::new(date.weekday().num_days_from_monday().into());
            let start = date.checked_sub_days(days)?;
            (start, start.checked_add_days(Days::new(7))?)
        }
        Bucket::Month if date.month() == 12 => {
            (first_of(date.year(), 12)?, first_of(date.year() + 1, 1)?)
        }
        Bucket::Month => {
            let (year, month) = (date.year(), date.month());
            (first_of(year, month)?, first_of(year, month + 1)?)
        }
        Bucket::Year => (first_of(date.year(), 1)?, first_of(date.year() + 1, 1)?),
    };
    let midnight = |date: NaiveDate| date.and_time(NaiveTime::MIN).and_utc().timestamp();
    Some(midnight(start)..midnight(end))
}

impl Archive {
    /// Counts articles by date: from the digests alone, unless a URL or body is named.
    ///
    /// # Errors
    /// `TooManyBuckets` above the limit of numbers; `StoreFailed`, `IndexDamaged`.
    pub async fn timeline(&self, query: &TimelineQuery) -> Result<Timeline> {
        let limit = self.inner.limits.timeline_buckets_max;
        let mut counting = Counting {
            buckets: Buckets::new(query.bucket),
            by_source: query.by_source,
            counts: BTreeMap::new(),
            bucket_count: 0,
            bucket_count_max: limit,
        };
        let selector = &query.selector;
        if selector.url_key().is_some() || selector.body_key().is_some() {
            // The few articles of a URL or body are read.
            let as_of = self.committed();
            let count = |stored: StoredArticle| {
                let time = SortTime::of(stored.article.published_at());
                counting.add(Of::Name(stored.article.source().to_owned()), time)
            };
            self.each_selected(selector, as_of, count).await?;
            return self.fitting(counting.timeline(as_of, &HashMap::new())?);
        }
        let view = self.digests().await?;
        let marks: HashMap<SourceMark, &str> = selector
            .sources()
            .iter()
            .map(|source| (SourceMark::of(source), source.as_str()))
            .collect();
        let (start, end) = (selector.time_start(), selector.time_end());
        let mut counted = 0_usize;
        for known in view.articles() {
            counted += 1;
            if counted.is_multiple_of(YIELD_ARTICLES) {
                tokio::task::yield_now().await;
            }
            let is_meant = known.sequence <= view.as_of
                && selector.includes(known.sequence)
                && known.time >= start
                && end.is_none_or(|end| known.time < end)
                && (marks.is_empty() || marks.contains_key(&known.source));
            if is_meant {
                counting.add(Of::Mark(known.source), known.time)?;
            }
        }
        let names = if query.by_source {
            self.source_names().await?
        } else {
            HashMap::new()
        };
        self.fitting(counting.timeline(view.as_of, &names)?)
    }

    /// A timeline, if it fits into a response.
    fn fitting(&self, timeline: Timeline) -> Result<Timeline> {
        let limit = self.inner.limits.response_bytes_max;
        let bytes = timeline
            .series
            .iter()
            .map(|series| series.source.len() + SERIES_BYTES + series.counts.len() * COUNT_BYTES);
        let bytes: usize = bytes.sum();
        if bytes <= limit {
            return Ok(timeline);
        }
        let what = format!(
            "the timeline has about {bytes} bytes, the limit is {limit}; ask for larger buckets, or \
             for fewer dates or sources"
        );
        Err(Error::field(Reason::TooManyBuckets, "bucket", what))
    }

    /// The names of all sources by their marks.
    async fn source_names(&self) -> Result<HashMap<SourceMark, String>> {
        let mut names = HashMap::new();
        let mut token = String::new();
        loop {
            let page = self
                .list_sources(self.inner.limits.page_articles_max, &token)
                .await?;
            let sources = page.sources.into_iter();
            names.extend(sources.map(|source| (SourceMark::of(&source.name), source.name)));
            match page.next_token {
                Some(next) => token = next,
                None => return Ok(names),
            }
        }
    }
}

/// Whose article it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Of {
    All,
    Mark(SourceMark),
    Name(String),
}

struct Counting {
    buckets: Buckets,
    by_source: bool,
    counts: BTreeMap<Of, Counts>,
    bucket_count: usize,
    bucket_count_max: usize,
}

impl Counting {
    fn add(&mut self, of: Of, time: SortTime) -> Result<()> {
        let of = if self.by_source { of } else { Of::All };
        let counts = self.counts.entry(of).or_default();
        let Some(time) = time.timestamp() else {
            counts.undated += 1;
            return Ok(());
        };
        let start = self.buckets.start(time.seconds())?;
        let count = counts.by_bucket.entry(start).or_default();
        if *count == 0 {
            self.bucket_count += 1;
            if self.bucket_count > self.bucket_count_max {
                let what = format!(
                    "the timeline has more than {} numbers; ask for larger buckets, or for fewer \
                     dates or sources",
                    self.bucket_count_max
                );
                return Err(Error::field(Reason::TooManyBuckets, "bucket", what));
            }
        }
        *count += 1;
        Ok(())
    }

    fn timeline(self, as_of: Sequence, names: &HashMap<SourceMark, String>) -> Result<Timeline> {
        let name = |of: Of| match of {
            Of::All => String::new(),
            Of::Name(name) => name,
            // A source whose last article was deleted in between has no name any more.
            Of::Mark(mark) => names.get(&mark).cloned().unwrap_or_default(),
        };
        let series = self.counts.into_iter().map(|(of, counts)| {
            let buckets = counts.by_bucket.into_iter();
            let time = |(start, count)| Ok((Timestamp::new("start", start, 0)?, count));
            Ok(TimelineSeries {
                source: name(of),
                counts: buckets.map(time).collect::<Result<_>>()?,
                undated_count: counts.undated,
            })
        });
        let mut series = series.collect::<Result<Vec<TimelineSeries>>>()?;
        series.sort_by(|a, b| a.source.cmp(&b.source));
        Ok(Timeline { series, as_of })
    }
}
