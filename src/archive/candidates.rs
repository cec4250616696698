//! Candidates for a page: which table has the order of a query, and the next rows of it.

use std::cmp::Ordering;
use std::ops::Range;

use bytes::Bytes;

use super::Archive;
use super::reader::{FETCH_RECORDS, behind};
use super::scan::Cursor;
use super::selector::{Order, Query, Selector};
use crate::error::{Error, Reason, Result};
use crate::key::{self, Sequence, SortTime, TABLE_DATE};
use crate::record::Content;
use crate::store::{Direction, Scan};

/// Rows of an index that are read at a time.
pub(super) const INDEX_ROWS: usize = 4096;

/// What a row of an index takes, most of them. An engine that reads ahead takes it for its measure.
const INDEX_ROW_BYTES: usize = 96;

/// Rows of one source that are read at least when many are merged.
const MERGE_ROWS_MIN: usize = 8;

/// A place in the order of a query: time (in date order only) and sequence of an article.
pub(super) type Position = (SortTime, Sequence);

/// The table that gives the candidates of a query in its order.
#[derive(Debug)]
pub(super) enum Plan {
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
    pub(super) fn of(query: &Query) -> Self {
        let selector = &query.selector;
        match (query.order, few_prefix(selector)) {
            (Order::Arrival(_), Some(prefix)) => Self::BySequence(prefix),
            (Order::Arrival(_), None) => Self::Log,
            (Order::Published(_), Some(prefix)) => Self::Sorted(prefix),
            (Order::Published(_), None) => Self::ByTime(time_prefixes(selector)),
        }
    }
}

#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) position: Position,
    /// The first row of the record, if it is known already.
    pub(super) head: Option<Bytes>,
}

/// Candidates in the order of the query.
#[derive(Debug)]
pub(super) struct Candidates {
    pub(super) list: Vec<Candidate>,
    /// The place up to which rows were looked at, candidates or not.
    pub(super) seen: Option<Position>,
    /// Whether there are none behind these.
    pub(super) exhausted: bool,
}

impl Archive {
    pub(super) async fn candidates(
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
                let (first, last) = sequence_bounds(selector, cursor, direction);
                // A token may say more, of another archive or of nobody's: there is no end of windows
                // behind the log.
                let last = last.min(self.committed());
                self.log_candidates((first, last), direction, count).await
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

    /// Sequences are dense, so what is wanted is in a range of as many, and no engine looks beyond it.
    pub(super) async fn log_candidates(
        &self,
        (first, last): (Sequence, Sequence),
        direction: Direction,
        count: usize,
    ) -> Result<Candidates> {
        let others = u64::try_from(count.saturating_sub(1)).unwrap_or(u64::MAX);
        let (window, far_end) = match direction {
            Direction::Ascending => {
                let far_end = first.saturating_add(others).min(last);
                ((first, far_end), far_end)
            }
            Direction::Descending => {
                let far_end = last.saturating_sub(others).max(first);
                ((far_end, last), far_end)
            }
        };
        let scan = Scan {
            range: key::log_range(window.0, window.1),
            direction,
            rows_max: count,
            bytes_max: self.inner.limits.group_bytes_max,
        };
        let chunk = self.scan_one(scan).await?;
        let mut found: Vec<Candidate> = Vec::new();
        for row in chunk.rows {
            let Some((sequence, part)) = key::parse_log(&row.key) else {
                continue;
            };
            let position = (SortTime::UNDATED, sequence);
            if found
                .last()
                .is_none_or(|candidate| candidate.position != position)
            {
                found.push(Candidate {
                    position,
                    head: None,
                });
            }
            if let (0, Some(candidate)) = (part, found.last_mut()) {
                candidate.head = Some(row.value);
            }
        }
        let seen = if chunk.exhausted {
            Some((SortTime::UNDATED, far_end))
        } else {
            found.last().map(|candidate| candidate.position)
        };
        Ok(Candidates {
            list: found,
            seen,
            exhausted: chunk.exhausted && window == (first, last),
        })
    }

    async fn sequence_candidates(
        &self,
        range: Range<Vec<u8>>,
        direction: Direction,
        count: usize,
    ) -> Result<Candidates> {
        let scan = index_scan(range, direction, count);
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
            index_scan(range, direction, rows_max)
        };
        let scans = prefixes.iter().map(scan).collect();
        let chunks = self.reader().scan_many(scans).await?;
        let exhausted = chunks.iter().all(|chunk| chunk.exhausted);
        let open = chunks.iter().filter(|chunk| !chunk.exhausted);
        let ends = open.filter_map(|chunk| key::parse_dated(&chunk.rows.last()?.key));
        let rows = chunks.iter().flat_map(|chunk| &chunk.rows);
        let mut positions: Vec<Position> =
            rows.filter_map(|row| key::parse_dated(&row.key)).collect();
        let order = |a: &Position, b: &Position| compare(direction, a, b);
        if let Some(known) = ends.min_by(order) {
            positions.retain(|position| order(position, &known).is_le());
        }
        positions.sort_unstable_by(order);
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
        let sequences = self.sequences_under(prefix, "order").await?;
        let mut positions = Vec::with_capacity(sequences.len());
        for some in sequences.chunks(FETCH_RECORDS) {
            for (sequence, head) in some.iter().zip(self.reader().heads(some).await?) {
                let record = self.reader().complete(*sequence, head).await?;
                if let Content::Article(article) = record.content {
                    positions.push((SortTime::of(article.published_at()), *sequence));
                }
            }
        }
        let order = |a: &Position, b: &Position| compare(query.order.direction(), a, b);
        positions.sort_unstable_by(order);
        if let Some(after) = cursor.after {
            positions.retain(|position| order(position, &after).is_gt());
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

    /// The sequences of the articles of a selector's URL or body, if it names one.
    ///
    /// # Errors
    /// `TooManyToSort` if they are more than the limit; `StoreFailed`.
    pub async fn sequences_of(&self, selector: &Selector) -> Result<Option<Vec<Sequence>>> {
        let Some(prefix) = few_prefix(selector) else {
            return Ok(None);
        };
        let sequences = self.sequences_under(&prefix, "selector").await?;
        Ok(Some(sequences))
    }

    /// All sequences under a prefix.
    async fn sequences_under(&self, prefix: &[u8], field: &str) -> Result<Vec<Sequence>> {
        let limit = self.inner.limits.sorted_articles_max;
        let scan = Scan {
            range: key::prefix_range(prefix),
            direction: Direction::Ascending,
            rows_max: limit + 1,
            bytes_max: usize::MAX,
        };
        let chunk = self.scan_one(scan).await?;
        if chunk.rows.len() > limit {
            let what = format!(
                "more than {limit} articles share this url or body, too many to order; ask for an \
                 order by arrival"
            );
            return Err(Error::field(Reason::TooManyToSort, field, what));
        }
        let rows = chunk.rows.iter();
        Ok(rows
            .filter_map(|row| key::parse_sequence(&row.key))
            .collect())
    }
}

/// A scan of an index, of so many rows at most.
pub(super) fn index_scan(range: Range<Vec<u8>>, direction: Direction, rows_max: usize) -> Scan {
    Scan {
        range,
        direction,
        rows_max,
        bytes_max: rows_max.saturating_mul(INDEX_ROW_BYTES),
    }
}

/// The order of positions in a direction.
fn compare(direction: Direction, a: &Position, b: &Position) -> Ordering {
    match direction {
        Direction::Ascending => a.cmp(b),
        Direction::Descending => b.cmp(a),
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

/// The prefix under which the few articles of a selector's URL or body stand, if it names one.
fn few_prefix(selector: &Selector) -> Option<Vec<u8>> {
    let by_url = selector.url_key().map(key::url_prefix);
    by_url.or_else(|| selector.body_key().map(key::body_prefix))
}

/// The prefixes under which the articles of a selector stand in the order of their dates.
pub(super) fn time_prefixes(selector: &Selector) -> Vec<Vec<u8>> {
    match selector.sources() {
        [] => vec![vec![TABLE_DATE]],
        sources => sources
            .iter()
            .map(|source| key::source_prefix(source))
            .collect(),
    }
}

/// The rows under a prefix that are within the dates of a selector and behind a position.
pub(super) fn time_range(
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::archive::Limits;
    use crate::archive::selector::SelectorFields;
    use crate::store::MemoryStore;

    #[tokio::test]
    async fn a_place_far_behind_the_log_ends_a_query() -> Result<()> {
        let limits = Limits::default();
        let selector = Selector::new(SelectorFields::default(), &limits)?;
        let (archive, guard) = Archive::open(Arc::new(MemoryStore::new()), limits).await?;
        for direction in [Direction::Ascending, Direction::Descending] {
            let query = Query {
                selector: selector.clone(),
                order: Order::Arrival(direction),
            };
            let cursor = Cursor {
                as_of: Sequence::MAX,
                after: None,
            };
            let found = archive.candidates(&Plan::Log, &query, &cursor, 64).await?;
            assert!(found.list.is_empty() && found.exhausted, "{found:?}");
        }
        drop(archive);
        guard.close().await
    }
}
