//! How chunks of rows are read: what is fetched ahead, and which tables need not be looked into.
//!
//! Rows that belong to one thing, such as the articles of one URL, share the first bytes of their keys.
//! Before a put there is the question whether there are any, and mostly there are none; without help
//! that would be a request for each table. So the filters that tables have for whole keys also know
//! the beginnings of that length.

use std::ops::{Bound, Range};
use std::sync::Arc;

use slatedb::config::ScanOptions;
use slatedb::{
    BloomFilterPolicy, DbReadOps, FilterPolicy, IterationOrder, PrefixExtractor, PrefixTarget,
};

use super::super::{Chunk, Direction, Filling, Row, Scan};
use super::{read_failed, settings};
use crate::error::Result;

/// Bytes at the beginning of keys that the filters know: a table's tag and 16 bytes of a hash.
const PREFIX_BYTES: usize = 17;

/// Bits of a filter for each key and each beginning: one look in a hundred is for nothing.
const FILTER_BITS: u32 = 10;

/// What a scan reads ahead in one request at most, and how many requests it has open.
const READ_AHEAD_BYTES_MAX: usize = 1024 * 1024;
const FETCHES_MAX: usize = 4;

/// What a row of a scan takes, roughly, for those that say how many they want.
const ROW_BYTES: usize = 2 * 1024;

/// The filters of all tables.
pub(super) fn filters() -> Vec<Arc<dyn FilterPolicy>> {
    let filter = BloomFilterPolicy::new(FILTER_BITS).with_prefix_extractor(Arc::new(FirstBytes));
    vec![Arc::new(filter)]
}

/// The first bytes of keys that have as many.
struct FirstBytes;

impl PrefixExtractor for FirstBytes {
    /// Stands in every table; another length needs another name.
    fn name(&self) -> &'static str {
        const { assert!(PREFIX_BYTES == 17) };
        "first-17"
    }

    fn prefix_len(&self, target: &PrefixTarget) -> Option<usize> {
        let (PrefixTarget::Point(bytes) | PrefixTarget::Prefix(bytes)) = target;
        (bytes.len() >= PREFIX_BYTES).then_some(PREFIX_BYTES)
    }
}

/// Reads one chunk.
pub(super) async fn chunk<R: DbReadOps + Sync>(reader: &R, scan: &Scan) -> Result<Chunk> {
    let mut filling = Filling::of(scan);
    if scan.range.is_empty() {
        return Ok(filling.exhausted());
    }
    let options = options(scan);
    let rows = if let Some((prefix, rest)) = shared_prefix(&scan.range) {
        reader
            .scan_prefix_with_options(prefix, rest, &options)
            .await
    } else {
        let start = Bound::Included(scan.range.start.as_slice());
        let end = Bound::Excluded(scan.range.end.as_slice());
        reader.scan_with_options((start, end), &options).await
    };
    let mut rows = rows.map_err(read_failed)?;
    while let Some(row) = rows.next().await.map_err(read_failed)? {
        let (key, value) = (row.key, row.value);
        if !filling.takes(Row { key, value }) {
            return Ok(filling.chunk);
        }
    }
    Ok(filling.exhausted())
}

/// The end of a range behind a prefix that all its keys share.
type Rest<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// The beginning that all keys of a range share, if the filters know it, and the range behind it.
fn shared_prefix(range: &Range<Vec<u8>>) -> Option<(&[u8], Rest<'_>)> {
    let (prefix, start) = range.start.split_at_checked(PREFIX_BYTES)?;
    let start = Bound::Included(start);
    if let Some(end) = range.end.strip_prefix(prefix) {
        return Some((prefix, (start, Bound::Excluded(end))));
    }
    let is_all = range.end == first_behind(prefix);
    is_all.then_some((prefix, (start, Bound::Unbounded)))
}

/// The first key behind all that begin with a prefix; nothing if there is none.
fn first_behind(prefix: &[u8]) -> Vec<u8> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX);
    let kept = last.map_or(0, |last| last + 1);
    let mut behind: Vec<u8> = prefix.iter().copied().take(kept).collect();
    if let Some(last) = behind.last_mut() {
        *last += 1;
    }
    behind
}

/// What a chunk reads ahead is what it asked for, so that nothing is fetched that it will not take; a
/// long one leaves the cache to those who read the same again.
fn options(scan: &Scan) -> ScanOptions {
    let wanted = scan.rows_max.saturating_mul(ROW_BYTES).min(scan.bytes_max);
    let is_long = wanted > settings::BLOCK.as_bytes() * FETCHES_MAX;
    let (fetches, read_ahead) = if is_long {
        (
            FETCHES_MAX,
            (wanted / FETCHES_MAX).min(READ_AHEAD_BYTES_MAX),
        )
    } else {
        (1, 1)
    };
    let order = match scan.direction {
        Direction::Ascending => IterationOrder::Ascending,
        Direction::Descending => IterationOrder::Descending,
    };
    ScanOptions::default()
        .with_order(order)
        .with_cache_blocks(!is_long)
        .with_max_fetch_tasks(fetches)
        .with_read_ahead_bytes(read_ahead)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_one_beginning_are_found() {
        let prefix = [7; PREFIX_BYTES];
        let key = |rest: &[u8]| [prefix.as_slice(), rest].concat();
        let behind = first_behind(&prefix);
        let (all, some) = (key(b"")..behind.clone(), key(b"a")..key(b"b"));
        let everything = (Bound::Included([].as_slice()), Bound::Unbounded);
        assert_eq!(shared_prefix(&all), Some((prefix.as_slice(), everything)));
        let (start, end) = (b"a".as_slice(), b"b".as_slice());
        let part = (Bound::Included(start), Bound::Excluded(end));
        assert_eq!(shared_prefix(&some), Some((prefix.as_slice(), part)));
        let others = [
            key(b"a")..vec![9],                            // goes on behind the beginning
            vec![7; PREFIX_BYTES - 1]..behind.clone(),     // begins with less
            key(b"a")..[behind.as_slice(), b"a"].concat(), // ends a little behind it
        ];
        for other in others {
            assert_eq!(shared_prefix(&other), None, "{other:?}");
        }
    }

    #[test]
    fn what_is_behind_a_beginning() {
        assert_eq!(first_behind(&[1, 2]), [1, 3]);
        assert_eq!(first_behind(&[1, 255, 255]), [2]);
        assert_eq!(first_behind(&[255, 255]), Vec::<u8>::new());
    }
}
