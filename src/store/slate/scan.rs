//! How rows are read: what is fetched ahead, and which tables need not be looked into.
//!
//! A put asks for keys that are mostly not there: the article itself, and others of its URL, whose keys
//! share their first bytes. Without help that would be a request for each table, so tables have filters.
//! They know the first bytes of every key and no more: of a hash those are as good as all of it, and one
//! entry answers both questions.
//!
//! Many keys of one call may stand side by side, such as the records of a page. Each on its own would be
//! a request, and those in one block would all fetch the same; so runs of them are read as a chunk is.

use std::ops::{Bound, Range};
use std::sync::Arc;

use bytes::Bytes;
use slatedb::config::{ReadOptions, ScanOptions};
use slatedb::{
    BloomFilterPolicy, DbIterator, DbReadOps, FilterPolicy, IterationOrder, PrefixExtractor,
    PrefixTarget,
};

use super::super::{Chunk, Direction, Filling, Row, Scan};
use super::{read_failed, settings};
use crate::error::Result;

/// Bytes at the beginning of keys that the filters know: a table's tag and 16 bytes of a hash.
const PREFIX_BYTES: usize = 17;

/// Bits of a filter for each beginning. A put asks two questions of every table; with 10 bits one look
/// in a hundred is for nothing, and an import made nine requests for each group because of that. With
/// 20 it is one in ten thousand.
const FILTER_BITS: u32 = 20;

/// What a scan reads ahead in one request at most, and how many requests it has open.
const READ_AHEAD_BYTES_MAX: usize = 1024 * 1024;
const FETCHES_MAX: usize = 4;

/// What a row of a scan takes, roughly, for those that say how many they want.
const ROW_BYTES: usize = 2 * 1024;

/// Keys that count up by no more than this are read in one run.
const RUN_GAP_MAX: u16 = 8;

/// Keys from which on a run is read as one.
const RUN_KEYS_MIN: usize = 3;

/// Bytes of rows that a run passes by for one that it wants. Behind more it is given up.
const PASSED_BYTES_MAX: usize = 128 * 1024;

/// The filters of all tables.
pub(super) fn filters() -> Vec<Arc<dyn FilterPolicy>> {
    let filter = BloomFilterPolicy::new(FILTER_BITS)
        .with_prefix_extractor(Arc::new(FirstBytes))
        .with_whole_key_filtering(false);
    vec![Arc::new(filter)]
}

/// The first bytes of keys, and all of shorter ones.
struct FirstBytes;

impl PrefixExtractor for FirstBytes {
    /// Stands in every table; another rule needs another name.
    fn name(&self) -> &'static str {
        const { assert!(PREFIX_BYTES == 17) };
        "first-17-at-most"
    }

    fn prefix_len(&self, target: &PrefixTarget) -> Option<usize> {
        match target {
            PrefixTarget::Point(key) => Some(key.len().min(PREFIX_BYTES)),
            // Keys with a shorter beginning have other bytes behind it, which nobody knows.
            PrefixTarget::Prefix(bytes) => (bytes.len() >= PREFIX_BYTES).then_some(PREFIX_BYTES),
        }
    }
}

/// Reads one chunk.
pub(super) async fn chunk<R: DbReadOps + Sync>(reader: &R, scan: &Scan) -> Result<Chunk> {
    let mut filling = Filling::of(scan);
    if scan.range.is_empty() {
        return Ok(filling.exhausted());
    }
    let mut rows = rows(reader, scan).await?;
    while let Some(row) = rows.next().await.map_err(read_failed)? {
        let (key, value) = (row.key, row.value);
        if !filling.takes(Row { key, value }) {
            return Ok(filling.chunk);
        }
    }
    Ok(filling.exhausted())
}

/// The rows of a range, which are fetched as far ahead as the scan will take them.
async fn rows<R: DbReadOps + Sync>(reader: &R, scan: &Scan) -> Result<DbIterator> {
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
    rows.map_err(read_failed)
}

/// Keys of one call that are read together, in their order.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Together {
    /// One by one.
    Apart(Vec<u8>),
    /// As a range.
    Run(Vec<Vec<u8>>),
}

/// Sorts the keys of a call into what is read together. Each key comes once.
pub(super) fn together(mut keys: Vec<Vec<u8>>) -> Vec<Together> {
    keys.sort_unstable();
    keys.dedup();
    let runs = keys.chunk_by(|before, key| follows(before, key));
    let mut parts = Vec::new();
    for run in runs {
        if run.len() < RUN_KEYS_MIN {
            parts.extend(run.iter().cloned().map(Together::Apart));
        } else {
            parts.push(Together::Run(run.to_vec()));
        }
    }
    parts
}

/// Whether a key is a number that follows closely on another.
fn follows(before: &[u8], key: &[u8]) -> bool {
    let (Some((start, number)), Some((same, next))) =
        (before.split_last_chunk(), key.split_last_chunk())
    else {
        return false;
    };
    let gap = u16::from_be_bytes(*next).checked_sub(u16::from_be_bytes(*number));
    start == same && gap.is_some_and(|gap| gap <= RUN_GAP_MAX)
}

/// Keys that are stored, and their values.
type Values = Vec<(Vec<u8>, Bytes)>;

/// Reads keys that are read together. What is not stored is not in the answer.
pub(super) async fn values<R: DbReadOps + Sync>(reader: &R, keys: Together) -> Result<Values> {
    let mut found = Vec::new();
    let apart = match keys {
        Together::Apart(key) => vec![key],
        Together::Run(keys) => run(reader, keys, &mut found).await?,
    };
    let options = &ReadOptions::default();
    for key in apart {
        let value = reader.get_with_options(&key, options).await;
        if let Some(value) = value.map_err(read_failed)? {
            found.push((key, value));
        }
    }
    Ok(found)
}

/// Reads a run. Returns the keys that are too far behind others.
async fn run<R: DbReadOps + Sync>(
    reader: &R,
    keys: Vec<Vec<u8>>,
    found: &mut Values,
) -> Result<Vec<Vec<u8>>> {
    let (Some(first), Some(last)) = (keys.first(), keys.last()) else {
        return Ok(keys);
    };
    let scan = Scan {
        range: first.clone()..[last.as_slice(), &[0]].concat(),
        direction: Direction::Ascending,
        rows_max: keys.len(),
        bytes_max: usize::MAX,
    };
    let mut rows = rows(reader, &scan).await?;
    let mut wanted = keys.into_iter().peekable();
    let mut passed_bytes = 0;
    while wanted.peek().is_some() && passed_bytes <= PASSED_BYTES_MAX {
        let Some(row) = rows.next().await.map_err(read_failed)? else {
            return Ok(Vec::new());
        };
        while wanted
            .next_if(|key| key.as_slice() < row.key.as_ref())
            .is_some()
        {}
        match wanted.next_if(|key| key.as_slice() == row.key.as_ref()) {
            Some(key) => {
                passed_bytes = 0;
                found.push((key, row.value));
            }
            None => passed_bytes += row.key.len() + row.value.len(),
        }
    }
    Ok(wanted.collect())
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

/// What a chunk reads ahead is what it asked for, so that little is fetched that it will not take. The
/// cache keeps what is: it prefers what is read often to what was read last.
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
        .with_cache_blocks(true)
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
    fn keys_that_count_up_are_read_together() {
        let log = |sequence: u64| [b"l".as_slice(), &sequence.to_be_bytes()].concat();
        let apart = |key: &[u8]| Together::Apart(key.to_vec());
        let keys = [9, 1, 2, 10, 1000, 4, 9, 70_000].map(log);
        let expected = vec![
            Together::Run([1, 2, 4, 9, 10].map(log).to_vec()),
            apart(&log(1000)),
            apart(&log(70_000)),
        ];
        assert_eq!(together(keys.to_vec()), expected);
        let few = vec![apart(&log(1)), apart(&log(2))];
        assert_eq!(together(vec![log(2), log(1)]), few);
        let others = vec![b"".to_vec(), b"a".to_vec(), b"la".to_vec(), b"lb".to_vec()];
        let each = others.iter().map(|key| apart(key)).collect::<Vec<_>>();
        assert_eq!(together(others), each);
    }

    #[test]
    fn what_is_behind_a_beginning() {
        assert_eq!(first_behind(&[1, 2]), [1, 3]);
        assert_eq!(first_behind(&[1, 255, 255]), [2]);
        assert_eq!(first_behind(&[255, 255]), Vec::<u8>::new());
    }
}
