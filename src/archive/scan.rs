//! Pages and counts of the articles of a query.
//!
//! A page is found in two steps. The index table that has the order of the query, or the log, gives
//! candidates behind the place where the last page ended. Their records are read, proved, and kept
//! if the selector means them. A cursor holds the place and the sequence up to which the first page
//! could see, so that pages never shift under writes; nothing is held between calls.

use std::ops::Range;

use bytes::Bytes;

use super::Archive;
use super::read::{FETCH_RECORDS, StoredArticle};
use super::selector::{Order, Query, Selector};
use super::token;
use crate::article::Article;
use crate::error::{Error, Reason, Result};
use crate::key::{self, Sequence, SortTime, TABLE_DATE};
use crate::record::{Content, Record};
use crate::store::{Direction, Scan};

/// Rows of an index that are read at a time.
const INDEX_ROWS: usize = 4096;

/// Rows of one source that are read at least when many are merged.
const MERGE_ROWS_MIN: usize = 8;

/// What an article takes in a message besides its text: hashes, times, tags and lengths.
const ARTICLE_OVERHEAD_BYTES: usize = 256;

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
pub(super) struct Room {
    budget: PageBudget,
    is_empty: bool,
}

impl Room {
    pub(super) fn new(budget: &PageBudget) -> Self {
        Self {
            budget: *budget,
            is_empty: true,
        }
    }

    /// Makes room for an article, or says that there is none. The first one always fits.
    pub(super) fn take(&mut self, article: &Article) -> bool {
        let body_bytes = match self.budget.view {
            View::Head => article.body().len(),
            View::Full => 0,
        };
        let bytes = article.text_bytes() - body_bytes + ARTICLE_OVERHEAD_BYTES;
        if self.is_full() || (bytes > self.budget.bytes_max && !self.is_empty) {
            return false;
        }
        self.is_empty = false;
        self.budget.articles_max -= 1;
        self.budget.bytes_max = self.budget.bytes_max.saturating_sub(bytes);
        true
    }

    pub(super) fn is_full(&self) -> bool {
        self.budget.articles_max == 0 || self.budget.bytes_max == 0
    }
}

/// A place in the order of a query: time (in date order only) and sequence of an article.
type Position = (SortTime, Sequence);

/// Where a page begins.
#[derive(Clone, Copy, Debug)]
struct Cursor {
    as_of: Sequence,
    after: Option<Position>,
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

/// The table that gives the candidates of a query in its order.
#[derive(Debug)]
enum Plan {
    /// The log itself.
    Log,
    /// Rows under one prefix that end in a sequence.
    BySequence(Vec<u8>),
    /// Rows under several prefixes that end in a time and a sequence, merged.
    ByTime(Vec<Vec<u8>>),
    /// The few rows under one prefix that ends in a sequence, brought into the order of their dates.
    Sorted(Vec<u8>),
}

impl Plan {
    fn of(query: &Query) -> Self {
        let selector = &query.selector;
        let by_url = selector.url_key().map(key::url_prefix);
        let prefix = by_url.or_else(|| selector.body_key().map(key::body_prefix));
        match (query.order, prefix) {
            (Order::Arrival(_), Some(prefix)) => Self::BySequence(prefix),
            (Order::Arrival(_), None) => Self::Log,
            (Order::Published(_), Some(prefix)) => Self::Sorted(prefix),
            (Order::Published(_), None) => Self::ByTime(time_prefixes(selector)),
        }
    }
}

#[derive(Debug)]
struct Candidate {
    position: Position,
    /// The first row of the record, if it is known already.
    head: Option<Bytes>,
}

/// Candidates in the order of the query.
#[derive(Debug)]
struct Candidates {
    list: Vec<Candidate>,
    /// The place up to which rows were looked at, candidates or not.
    seen: Option<Position>,
    /// Whether there are none behind these.
    exhausted: bool,
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
            let candidates = self
                .candidates(&plan, query, &cursor, FETCH_RECORDS)
                .await?;
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
        let by_prefix = selector.url_key().is_some() || selector.body_key().is_some();
        let by_two = selector.url_key().is_some() && selector.body_key().is_some();
        let by_time = selector.bounds_dates() || !selector.sources().is_empty();
        let order = Order::Arrival(Direction::Ascending);
        let query = Query {
            selector: selector.clone(),
            order,
        };
        let count = match Plan::of(&query) {
            Plan::BySequence(_) if by_two || by_time => self.count_records(&query, as_of).await?,
            Plan::BySequence(prefix) => {
                let range = key::prefix_range(&prefix);
                self.count_rows(range, selector, as_of).await?
            }
            Plan::Log | Plan::ByTime(_) | Plan::Sorted(_) => {
                debug_assert!(!by_prefix, "a URL or body is planned by its prefix");
                self.count_by_time(selector, as_of).await?
            }
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
            return Ok(self.stats().await?.totals.article_count);
        }
        let keys = selector
            .sources()
            .iter()
            .map(|source| key::meta::source(source))
            .collect();
        let mut count = 0;
        for value in self.inner.store.get_many(keys).await?.into_iter().flatten() {
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
                .scan_one(self.index_scan(range.clone(), Direction::Ascending))
                .await?;
            let sequences = chunk
                .rows
                .iter()
                .filter_map(|row| key::parse_sequence(&row.key));
            let meant =
                sequences.filter(|sequence| *sequence <= as_of && selector.includes(*sequence));
            count += u64::try_from(meant.count()).unwrap_or(u64::MAX);
            match chunk.rows.last() {
                Some(last) if !chunk.exhausted => range.start = behind(&last.key),
                _ => return Ok(count),
            }
        }
    }

    async fn count_records(&self, query: &Query, as_of: Sequence) -> Result<u64> {
        let plan = Plan::of(query);
        let mut cursor = Cursor { as_of, after: None };
        let mut count = 0;
        loop {
            let candidates = self
                .candidates(&plan, query, &cursor, FETCH_RECORDS)
                .await?;
            let heads = self.heads(&candidates.list).await?;
            for (candidate, head) in candidates.list.iter().zip(heads) {
                let sequence = candidate.position.1;
                let record = self.reader().complete(sequence, head).await?;
                count += u64::from(selected(&query.selector, sequence, record).is_some());
            }
            if candidates.exhausted {
                return Ok(count);
            }
            cursor.after = candidates.seen.or(cursor.after);
        }
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

    async fn heads(&self, candidates: &[Candidate]) -> Result<Vec<Bytes>> {
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

    async fn candidates(
        &self,
        plan: &Plan,
        query: &Query,
        cursor: &Cursor,
        count: usize,
    ) -> Result<Candidates> {
        let direction = query.order.direction();
        let selector = &query.selector;
        match plan {
            Plan::Log => {
                let sequences = sequence_bounds(selector, cursor, direction);
                self.log_candidates(sequences, direction, count).await
            }
            Plan::BySequence(prefix) => {
                let (first, last) = sequence_bounds(selector, cursor, direction);
                let key = |sequence: Sequence| [prefix, &sequence.to_be_bytes()[..]].concat();
                let range = key(first)
                    ..last
                        .checked_add(1)
                        .map_or_else(|| key::prefix_end(prefix), key);
                self.sequence_candidates(range, direction, count).await
            }
            Plan::ByTime(prefixes) => self.time_candidates(prefixes, query, cursor, count).await,
            Plan::Sorted(prefix) => self.sorted_candidates(prefix, query, cursor, count).await,
        }
    }

    async fn log_candidates(
        &self,
        (first, last): (Sequence, Sequence),
        direction: Direction,
        count: usize,
    ) -> Result<Candidates> {
        let scan = Scan {
            range: key::log_range(first, last),
            direction,
            rows_max: count,
            bytes_max: self.inner.limits.group_bytes_max,
        };
        let chunk = self.scan_one(scan).await?;
        let mut list: Vec<Candidate> = Vec::new();
        for row in chunk.rows {
            let Some((sequence, number)) = key::parse_log(&row.key) else {
                continue;
            };
            let position = (SortTime::UNDATED, sequence);
            if list
                .last()
                .is_none_or(|candidate| candidate.position != position)
            {
                list.push(Candidate {
                    position,
                    head: None,
                });
            }
            if let (0, Some(candidate)) = (number, list.last_mut()) {
                candidate.head = Some(row.value);
            }
        }
        let seen = list.last().map(|candidate| candidate.position);
        Ok(Candidates {
            list,
            seen,
            exhausted: chunk.exhausted,
        })
    }

    async fn sequence_candidates(
        &self,
        range: Range<Vec<u8>>,
        direction: Direction,
        count: usize,
    ) -> Result<Candidates> {
        let scan = Scan {
            rows_max: count,
            ..self.index_scan(range, direction)
        };
        let chunk = self.scan_one(scan).await?;
        let sequences = chunk
            .rows
            .iter()
            .filter_map(|row| key::parse_sequence(&row.key));
        let list: Vec<Candidate> = sequences
            .map(|sequence| Candidate {
                position: (SortTime::UNDATED, sequence),
                head: None,
            })
            .collect();
        let seen = list.last().map(|candidate| candidate.position);
        Ok(Candidates {
            list,
            seen,
            exhausted: chunk.exhausted,
        })
    }

    /// Merges the rows of several prefixes. Of a prefix that has further rows, nothing is known
    /// behind its last row read; so only rows before the nearest such place are candidates.
    async fn time_candidates(
        &self,
        prefixes: &[Vec<u8>],
        query: &Query,
        cursor: &Cursor,
        count: usize,
    ) -> Result<Candidates> {
        let direction = query.order.direction();
        let rows_max = (2 * count / prefixes.len().max(1)).clamp(MERGE_ROWS_MIN, count);
        let scan = |prefix: &Vec<u8>| {
            let range = time_range(prefix, &query.selector, direction, cursor.after);
            Scan {
                rows_max,
                ..self.index_scan(range, direction)
            }
        };
        let scans = prefixes.iter().map(scan).collect();
        let chunks = self.inner.store.scan_many(scans).await?;
        let exhausted = chunks.iter().all(|chunk| chunk.exhausted);
        let open = chunks.iter().filter(|chunk| !chunk.exhausted);
        let ends = open.filter_map(|chunk| key::parse_dated(&chunk.rows.last()?.key));
        let rows = chunks.iter().flat_map(|chunk| &chunk.rows);
        let mut positions: Vec<Position> =
            rows.filter_map(|row| key::parse_dated(&row.key)).collect();
        match direction {
            Direction::Ascending => {
                let known = ends.min();
                positions.retain(|position| known.is_none_or(|known| *position <= known));
                positions.sort_unstable();
            }
            Direction::Descending => {
                let known = ends.max();
                positions.retain(|position| known.is_none_or(|known| *position >= known));
                positions.sort_unstable_by(|a, b| b.cmp(a));
            }
        }
        let seen = positions.last().copied();
        Ok(Candidates {
            list: visible(positions, &query.selector, cursor),
            seen,
            exhausted,
        })
    }

    /// Reads all rows of a URL or body and sorts them. Articles that share one are few; where they
    /// are not, the caller is told to ask for another order.
    async fn sorted_candidates(
        &self,
        prefix: &[u8],
        query: &Query,
        cursor: &Cursor,
        count: usize,
    ) -> Result<Candidates> {
        let limit = self.inner.limits.sorted_articles_max;
        let range = key::prefix_range(prefix);
        let scan = Scan {
            rows_max: limit + 1,
            bytes_max: usize::MAX,
            ..self.index_scan(range, Direction::Ascending)
        };
        let chunk = self.scan_one(scan).await?;
        if chunk.rows.len() > limit {
            let what = format!(
                "more than {limit} articles share this url or body, too many to order by date; \
                 ask for an order by arrival"
            );
            return Err(Error::field(Reason::TooManyToSort, "order", what));
        }
        let sequences: Vec<Sequence> = chunk
            .rows
            .iter()
            .filter_map(|row| key::parse_sequence(&row.key))
            .collect();
        let mut positions = Vec::with_capacity(sequences.len());
        for some in sequences.chunks(FETCH_RECORDS) {
            for (sequence, head) in some.iter().zip(self.reader().heads(some).await?) {
                let record = self.reader().complete(*sequence, head).await?;
                if let Content::Article(article) = record.content {
                    positions.push((SortTime::of(article.published_at()), *sequence));
                }
            }
        }
        match query.order.direction() {
            Direction::Ascending => positions.sort_unstable(),
            Direction::Descending => positions.sort_unstable_by(|a, b| b.cmp(a)),
        }
        if let Some(after) = cursor.after {
            match query.order.direction() {
                Direction::Ascending => positions.retain(|position| *position > after),
                Direction::Descending => positions.retain(|position| *position < after),
            }
        }
        let exhausted = positions.len() <= count;
        positions.truncate(count);
        let seen = positions.last().copied();
        Ok(Candidates {
            list: visible(positions, &query.selector, cursor),
            seen,
            exhausted,
        })
    }

    fn index_scan(&self, range: Range<Vec<u8>>, direction: Direction) -> Scan {
        let bytes_max = self.inner.limits.group_bytes_max;
        Scan {
            range,
            direction,
            rows_max: INDEX_ROWS,
            bytes_max,
        }
    }
}

/// Drops the positions that the cursor may not see or the selector does not mean.
fn visible(positions: Vec<Position>, selector: &Selector, cursor: &Cursor) -> Vec<Candidate> {
    let meant = |sequence| sequence <= cursor.as_of && selector.includes(sequence);
    let positions = positions
        .into_iter()
        .filter(|(_, sequence)| meant(*sequence));
    positions
        .map(|position| Candidate {
            position,
            head: None,
        })
        .collect()
}

/// The article of a record, if the selector means it.
fn selected(selector: &Selector, sequence: Sequence, record: Record) -> Option<StoredArticle> {
    let Record {
        id,
        archived_at,
        content,
    } = record;
    match content {
        Content::Article(article) if selector.matches(sequence, &article) => Some(StoredArticle {
            id,
            sequence,
            archived_at,
            article,
        }),
        Content::Article(_) | Content::Deletion { .. } | Content::Tombstone { .. } => None,
    }
}

/// The first and last sequence that are left behind a cursor.
fn sequence_bounds(
    selector: &Selector,
    cursor: &Cursor,
    direction: Direction,
) -> (Sequence, Sequence) {
    let (first, last) = (
        selector.min_sequence(),
        selector.max_sequence().min(cursor.as_of),
    );
    match (cursor.after, direction) {
        (None, _) => (first, last),
        (Some((_, after)), Direction::Ascending) => (first.max(after.saturating_add(1)), last),
        (Some((_, after)), Direction::Descending) => (first, last.min(after.saturating_sub(1))),
    }
}

/// The prefixes under which the articles of a selector stand in the order of their dates.
fn time_prefixes(selector: &Selector) -> Vec<Vec<u8>> {
    match selector.sources() {
        [] => vec![vec![TABLE_DATE]],
        sources => sources
            .iter()
            .map(|source| key::source_prefix(source))
            .collect(),
    }
}

/// The rows under a prefix that are within the dates of a selector and behind a position.
fn time_range(
    prefix: &[u8],
    selector: &Selector,
    direction: Direction,
    after: Option<Position>,
) -> Range<Vec<u8>> {
    let key = |(time, sequence): Position| key::dated(prefix.to_vec(), time, sequence);
    let mut start = key((selector.time_start(), 0));
    let mut end = match selector.time_end() {
        Some(time) => key((time, 0)),
        None => key::prefix_end(prefix),
    };
    if let Some(after) = after.map(key) {
        match direction {
            Direction::Ascending => start = start.max(behind(&after)),
            Direction::Descending => end = end.min(after),
        }
    }
    start..end
}

/// The first key behind a key.
pub(super) fn behind(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}
