//! Pages and counts of the articles of a query.
//!
//! A page is found in two steps. The index table that has the order of the query, or the log, gives
//! candidates behind the place where the last page ended. Their records are read, proved, and kept
//! if the selector means them. A cursor holds the place and the sequence up to which the first page
//! could see, so that pages never shift under writes; nothing is held between calls.

use std::ops::Range;

use bytes::Bytes;

use super::Archive;
use super::candidates::{
    Candidate, INDEX_ROWS, Plan, Position, index_scan, time_prefixes, time_range,
};
use super::read::StoredArticle;
use super::reader::advance;
use super::selector::{Order, Query, Selector};
use super::token;
use crate::article::Article;
use crate::error::{Error, Kind, Reason, Result};
use crate::key::{self, Sequence, SortTime};
use crate::record::Record;
use crate::store::Direction;

/// What an article takes in a message besides its text: hashes, times, tags and lengths.
const ARTICLE_OVERHEAD_BYTES: usize = 256;

/// What a deletion takes in a message: its id, its reason of at most 1024 bytes, and numbers.
const SMALL_BYTES: usize = 1280;

/// Records that a page reads at once. Few requests to far storage make a page then, and not much is
/// read that has no room.
const FETCH_RECORDS_MIN: usize = 8;
const FETCH_RECORDS_MAX: usize = 256;

/// What an article takes in a message, until some of the page are known.
const ARTICLE_BYTES: usize = 4096;

/// How much of each article is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// All but the body.
    Head,
    /// Everything.
    Full,
}

/// What one page may hold and cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageBudget {
    /// Whether bodies count.
    pub view: View,
    /// At most so many articles.
    pub articles_max: usize,
    /// At most so many bytes of message, one article aside.
    pub bytes_max: usize,
}

/// Some articles of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The articles. A page can hold fewer than asked for, or none, and yet not be the last.
    pub articles: Vec<StoredArticle>,
    /// Leads to the next page; none after the last.
    pub next_token: Option<String>,
    /// The pages of the query hold no article behind this sequence.
    pub as_of: Sequence,
}

/// What is left of a budget.
#[derive(Debug)]
pub struct Room {
    budget: PageBudget,
    is_empty: bool,
    /// What the articles took that were let in.
    taken_count: usize,
    taken_bytes: usize,
}

impl Room {
    /// All of a budget.
    #[must_use]
    pub fn new(budget: &PageBudget) -> Self {
        Self {
            budget: *budget,
            is_empty: true,
            taken_count: 0,
            taken_bytes: 0,
        }
    }

    /// How many records to read next: as many as have room if they are like those before, and one that
    /// tells that there are more.
    pub(super) fn fetch_count(&self) -> usize {
        let mean = self.taken_bytes.checked_div(self.taken_count);
        let by_bytes = self.budget.bytes_max / mean.unwrap_or(ARTICLE_BYTES).max(1);
        let count = by_bytes.min(self.budget.articles_max).saturating_add(1);
        count.clamp(FETCH_RECORDS_MIN, FETCH_RECORDS_MAX)
    }

    /// Makes room for an article, or says that there is none. The first one always fits.
    pub fn take(&mut self, article: &Article) -> bool {
        let body_bytes = match self.budget.view {
            View::Head => article.body().len(),
            View::Full => 0,
        };
        let bytes = article.text_bytes() - body_bytes + ARTICLE_OVERHEAD_BYTES;
        if self.is_full() || (bytes > self.budget.bytes_max && !self.is_empty) {
            return false;
        }
        self.is_empty = false;
        self.taken_count += 1;
        self.taken_bytes += bytes;
        self.budget.articles_max -= 1;
        self.budget.bytes_max = self.budget.bytes_max.saturating_sub(bytes);
        true
    }

    /// Makes room for what an article has beside it; that may be a little more than there is.
    pub fn take_bytes(&mut self, bytes: usize) {
        self.budget.bytes_max = self.budget.bytes_max.saturating_sub(bytes);
    }

    /// Makes room for something that is no article.
    pub(super) fn take_small(&mut self) {
        self.is_empty = false;
        self.budget.articles_max = self.budget.articles_max.saturating_sub(1);
        self.budget.bytes_max = self.budget.bytes_max.saturating_sub(SMALL_BYTES);
    }

    pub(super) fn is_full(&self) -> bool {
        self.budget.articles_max == 0 || self.budget.bytes_max == 0
    }
}

/// Where a page begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor {
    pub(super) as_of: Sequence,
    pub(super) after: Option<Position>,
}

impl Cursor {
    fn encode(self) -> Vec<u8> {
        let mut bytes = self.as_of.to_be_bytes().to_vec();
        if let Some((time, sequence)) = self.after {
            bytes.extend_from_slice(time.as_bytes());
            bytes.extend_from_slice(&sequence.to_be_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (as_of, position) = bytes.split_first_chunk()?;
        let as_of = Sequence::from_be_bytes(*as_of);
        match position.split_first_chunk() {
            None if position.is_empty() => Some(Self { as_of, after: None }),
            None => None,
            Some((time, sequence)) => {
                let sequence = Sequence::from_be_bytes(sequence.try_into().ok()?);
                Some(Self {
                    as_of,
                    after: Some((SortTime::from_bytes(*time), sequence)),
                })
            }
        }
    }
}

impl Archive {
    /// Reads the articles of a query from the place that a token of the same query leads to, or
    /// from its beginning if the token is empty.
    ///
    /// # Errors
    /// `PageTokenInvalid`, `PageTokenMismatch`; `TooManyToSort` if more articles than the limit
    /// share the URL or body and are wanted by date; `RecordDamaged`.
    pub async fn page(&self, query: &Query, token: &str, budget: &PageBudget) -> Result<Page> {
        let fingerprint = query.fingerprint();
        let mut cursor = self.cursor(query, token)?;
        let plan = Plan::of(query);
        let mut room = Room::new(budget);
        let mut articles = Vec::new();
        let mut examined = 0;
        let next = 'page: loop {
            let count = room.fetch_count();
            let candidates = self.candidates(&plan, query, &cursor, count).await?;
            let heads = self.heads(&candidates.list).await?;
            for (candidate, head) in candidates.list.iter().zip(heads) {
                if room.is_full() || examined == self.inner.limits.page_examined_max {
                    break 'page Some(cursor);
                }
                let sequence = candidate.position.1;
                let record = self.reader().complete(sequence, head).await?;
                examined += 1;
                if let Some(article) = selected(&query.selector, sequence, record) {
                    if !room.take(&article.article) {
                        break 'page Some(cursor);
                    }
                    articles.push(article);
                }
                cursor.after = Some(candidate.position);
            }
            if candidates.exhausted {
                break None;
            }
            cursor.after = candidates.seen.or(cursor.after);
        };
        let next_token = next.map(|cursor| token::encode(fingerprint, &cursor.encode()));
        Ok(Page {
            articles,
            next_token,
            as_of: cursor.as_of,
        })
    }

    /// Counts the articles of a selector: from the index alone, unless a URL or body is combined
    /// with a source or date. Also returns the sequence up to which it counted.
    ///
    /// # Errors
    /// `StoreFailed`; `RecordDamaged` if records had to be read.
    pub async fn count(&self, selector: &Selector) -> Result<(u64, Sequence)> {
        let as_of = self.committed();
        let by_time = selector.bounds_dates() || !selector.sources().is_empty();
        let prefix = match (selector.url_key(), selector.body_key()) {
            (None, None) => return Ok((self.count_by_time(selector, as_of).await?, as_of)),
            (Some(url), None) if !by_time => Some(key::url_prefix(url)),
            (None, Some(body)) if !by_time => Some(key::body_prefix(body)),
            _ => None,
        };
        let count = match prefix {
            Some(prefix) => {
                let range = key::prefix_range(&prefix);
                self.count_rows(range, selector, as_of).await?
            }
            None => self.count_records(selector, as_of).await?,
        };
        Ok((count, as_of))
    }

    async fn count_by_time(&self, selector: &Selector, as_of: Sequence) -> Result<u64> {
        if !selector.bounds_dates() && !selector.bounds_sequences() {
            return self.count_from_figures(selector).await;
        }
        let mut count = 0;
        for prefix in time_prefixes(selector) {
            let range = time_range(&prefix, selector, Direction::Ascending, None);
            count += self.count_rows(range, selector, as_of).await?;
        }
        Ok(count)
    }

    async fn count_from_figures(&self, selector: &Selector) -> Result<u64> {
        if selector.sources().is_empty() {
            return Ok(self.figures().await?.1.article_count);
        }
        let keys = selector
            .sources()
            .iter()
            .map(|source| key::meta::source(source))
            .collect();
        let mut count = 0;
        for value in self.reader().get_many(keys).await?.into_iter().flatten() {
            count += crate::record::SourceStats::decode(&value)?.article_count;
        }
        Ok(count)
    }

    /// Counts index rows that end in a sequence within the bounds.
    async fn count_rows(
        &self,
        mut range: Range<Vec<u8>>,
        selector: &Selector,
        as_of: Sequence,
    ) -> Result<u64> {
        let mut count = 0;
        loop {
            let chunk = self
                .scan_one(index_scan(range.clone(), Direction::Ascending, INDEX_ROWS))
                .await?;
            let sequences = chunk
                .rows
                .iter()
                .filter_map(|row| key::parse_sequence(&row.key));
            let meant =
                sequences.filter(|sequence| *sequence <= as_of && selector.includes(*sequence));
            count += u64::try_from(meant.count()).unwrap_or(u64::MAX);
            if !advance(&mut range, &chunk) {
                return Ok(count);
            }
        }
    }

    /// Counts what pages hold, as of a sequence.
    async fn count_records(&self, selector: &Selector, as_of: Sequence) -> Result<u64> {
        let mut count = 0;
        let counting = |_| {
            count += 1;
            Ok(())
        };
        self.each_selected(selector, as_of, counting).await?;
        Ok(count)
    }

    /// Reads all articles of a selector, as of a sequence, in the order of their arrival.
    pub(super) async fn each_selected(
        &self,
        selector: &Selector,
        as_of: Sequence,
        mut take: impl FnMut(StoredArticle) -> Result<()>,
    ) -> Result<()> {
        let query = Query {
            selector: selector.clone(),
            order: Order::Arrival(Direction::Ascending),
        };
        let budget = PageBudget {
            view: View::Head,
            articles_max: usize::MAX,
            bytes_max: self.inner.limits.scan_chunk_bytes,
        };
        let start = Cursor { as_of, after: None };
        let mut token = token::encode(query.fingerprint(), &start.encode());
        loop {
            let page = self.page(&query, &token, &budget).await?;
            page.articles.into_iter().try_for_each(&mut take)?;
            match page.next_token {
                Some(next) => token = next,
                None => return Ok(()),
            }
        }
    }

    /// Reads the articles at some sequences, in their order; none where there is none any more, or
    /// none that can be read.
    ///
    /// # Errors
    /// `StoreFailed`.
    pub async fn articles_at(&self, sequences: &[Sequence]) -> Result<Vec<Option<StoredArticle>>> {
        let mut articles = Vec::with_capacity(sequences.len());
        for sequence in sequences {
            articles.push(match self.reader().record(*sequence).await {
                Ok(record) => StoredArticle::of(*sequence, record),
                Err(error) if error.kind() == Kind::DataLoss => None,
                Err(error) => return Err(error),
            });
        }
        Ok(articles)
    }

    fn cursor(&self, query: &Query, token: &str) -> Result<Cursor> {
        if token.is_empty() {
            return Ok(Cursor {
                as_of: self.committed(),
                after: None,
            });
        }
        let position = token::decode(token, query.fingerprint())?;
        Cursor::decode(&position).ok_or_else(|| {
            Error::field(Reason::PageTokenInvalid, "page_token", "holds no position")
        })
    }

    pub(super) async fn heads(&self, candidates: &[Candidate]) -> Result<Vec<Bytes>> {
        let unknown: Vec<Sequence> = candidates
            .iter()
            .filter(|c| c.head.is_none())
            .map(|c| c.position.1)
            .collect();
        let mut read = self.reader().heads(&unknown).await?.into_iter();
        let heads = candidates
            .iter()
            .map(|candidate| candidate.head.clone().or_else(|| read.next()));
        heads
            .map(|head| head.ok_or_else(|| Error::new(Reason::Internal, "a record was not read")))
            .collect()
    }
}

/// The article of a record, if the selector means it.
fn selected(selector: &Selector, sequence: Sequence, record: Record) -> Option<StoredArticle> {
    StoredArticle::of(sequence, record).filter(|stored| selector.matches(sequence, &stored.article))
}
