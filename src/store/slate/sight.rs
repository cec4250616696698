//! What a reader of a replica has seen for certain, and what it read.
//!
//! SlateDB's reader looks at intervals for newer tables and newer files of its log, and tells nobody
//! whether it could. So its reader of the log is wrapped: a look began when the last file was asked
//! for, and is complete once all files up to that one were read to their end. The rows are to be
//! read a moment later, and certainly when the next look begins, because one follows the other; so
//! that is when the look before is told of.
//!
//! Each look that finds rows adds a table in memory, until the writer makes a table of its own of them
//! all. With hundreds of them a read takes many times longer (measured: 0.06 ms from one, 3.5 ms from a
//! thousand). So a reader is renewed after some looks (see `replica.rs`): the next one gets the same rows
//! from here, in one table, without a request. Between the two nothing may move, or reads would go back
//! in time: the old one is held at the beginning of a look until the new one has looked.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use slatedb::RowEntry;
use slatedb::wal::{SlateDbWalReader, WalError, WalFileRange, WalIterator, WalReader, WalRows};
use tokio::sync::watch;

use super::super::Look;

/// Bytes of rows that are kept for the next reader: more than the writer mostly has in no table. The
/// next reader reads what is not here from the storage.
const KEPT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What a row takes besides its key and value.
const ROW_BYTES: usize = 128;

/// Whether a reader goes on looking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    On,
    /// Its next look is to be held.
    Due,
    /// Its look is held.
    Held,
    /// Another reader is there.
    Over,
}

/// A look in the making.
#[derive(Clone, Copy, Debug)]
struct Begun {
    at: Instant,
    is_complete: bool,
}

/// The looks of one reader.
#[derive(Debug)]
pub(super) struct Looks {
    /// Held for moments, and never across an await.
    begun: Mutex<Begun>,
    course: watch::Sender<Course>,
    /// Told by all readers of a replica, one after the other.
    told: watch::Sender<Look>,
}

impl Looks {
    /// The looks of a reader, which are told to whoever hears of those before.
    pub(super) fn new(told: watch::Sender<Look>) -> Self {
        Self {
            begun: Mutex::new(Begun {
                at: Instant::now(),
                is_complete: false,
            }),
            course: watch::Sender::new(Course::On),
            told,
        }
    }

    /// There may be more to read.
    pub(super) fn moved(&self) {
        self.told.send_modify(|look| look.number += 1);
    }

    fn begun(&self) -> MutexGuard<'_, Begun> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was looked at can be read, if it was complete.
    pub(super) fn ended(&self) {
        let begun = *self.begun();
        if begun.is_complete {
            self.told.send_modify(|look| {
                look.number += 1;
                look.complete_to = look.complete_to.max(begun.at);
            });
        }
    }

    fn begin(&self) {
        *self.begun() = Begun {
            at: Instant::now(),
            is_complete: false,
        };
    }

    fn complete(&self) {
        self.begun().is_complete = true;
    }

    /// Waits for the next look, and holds it. From then on the reader does not move.
    pub(super) async fn hold(&self) {
        self.course.send_replace(Course::Due);
        let mut course = self.course.subscribe();
        // This is who could drop the other end.
        let _ = course.wait_for(|course| *course == Course::Held).await;
    }

    /// Lets the reader look on.
    pub(super) fn go_on(&self) {
        self.course.send_replace(Course::On);
    }

    /// Ends its looks.
    pub(super) fn end(&self) {
        self.course.send_replace(Course::Over);
    }

    /// Returns whether to look, when that is known.
    async fn may_look(&self) -> bool {
        self.course.send_if_modified(|course| {
            let is_due = *course == Course::Due;
            if is_due {
                *course = Course::Held;
            }
            is_due
        });
        let mut course = self.course.subscribe();
        let known = course.wait_for(|course| *course != Course::Held).await;
        known.is_ok_and(|course| *course != Course::Over)
    }
}

/// The rows of some files of the log.
#[derive(Debug)]
struct Kept {
    first: u64,
    last: u64,
    rows: Vec<RowEntry>,
    bytes: usize,
}

/// The rows that were read of the end of the log, without a gap.
#[derive(Debug, Default)]
pub(super) struct Tail {
    /// Held for moments, and never across an await.
    files: Mutex<VecDeque<Kept>>,
}

impl Tail {
    fn files(&self) -> MutexGuard<'_, VecDeque<Kept>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what is before a file: it is in tables.
    fn begin_at(&self, first: u64) {
        self.files().retain(|kept| kept.last >= first);
    }

    /// The rows of the files from this one on that are kept together.
    fn at(&self, first: u64) -> Option<WalRows> {
        let files = self.files();
        let kept = files.iter().find(|kept| kept.first == first)?;
        Some(WalRows {
            rows: kept.rows.clone(),
            last_consumed_wal_file_id: kept.last,
        })
    }

    fn keep(&self, first: u64, rows: &WalRows) {
        let row_bytes = |row: &RowEntry| row.key.len() + row.value.len() + ROW_BYTES;
        let last = rows.last_consumed_wal_file_id;
        let mut files = self.files();
        let follows = files.back().is_none_or(|kept| kept.last + 1 == first);
        if last < first || files.back().is_some_and(|kept| kept.last >= last) {
            // A part of a file, or what is here already.
            return;
        }
        if !follows {
            files.clear();
        }
        files.push_back(Kept {
            first,
            last,
            rows: rows.rows.clone(),
            bytes: rows.rows.iter().map(row_bytes).sum(),
        });
        let mut bytes: usize = files.iter().map(|kept| kept.bytes).sum();
        while bytes > KEPT_BYTES_MAX {
            let Some(dropped) = files.pop_front() else {
                return;
            };
            bytes -= dropped.bytes;
        }
    }
}

/// The reader of the log.
pub(super) struct Sight {
    log: SlateDbWalReader,
    looks: Arc<Looks>,
    tail: Arc<Tail>,
    /// The last file of which everything is in tables, when the reader was opened.
    opened_at: OnceLock<u64>,
}

impl Sight {
    pub(super) fn new(log: SlateDbWalReader, looks: Arc<Looks>, tail: Arc<Tail>) -> Self {
        Self {
            log,
            looks,
            tail,
            opened_at: OnceLock::new(),
        }
    }
}

impl fmt::Debug for Sight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sight")
            .field("looks", &self.looks)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl WalReader for Sight {
    async fn iterator(&self, files: WalFileRange) -> Result<Box<dyn WalIterator>, WalError> {
        let mut kept = VecDeque::new();
        let WalFileRange(first, end) = files;
        let mut next = match first {
            Bound::Included(first) => first,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let is_wanted = |last: u64| match end {
            Bound::Included(end) => last <= end,
            Bound::Excluded(end) => last < end,
            Bound::Unbounded => true,
        };
        while let Some(rows) = self.tail.at(next) {
            if !is_wanted(rows.last_consumed_wal_file_id) {
                break;
            }
            next = rows.last_consumed_wal_file_id + 1;
            kept.push_back(rows);
        }
        let rest = if is_wanted(next) {
            let rest = WalFileRange(Bound::Included(next), end);
            Some(self.log.iterator(rest).await?)
        } else {
            None
        };
        Ok(Box::new(Reading {
            kept,
            rest,
            next,
            looks: Arc::clone(&self.looks),
            tail: Arc::clone(&self.tail),
        }))
    }

    async fn last_wal_file_id(&self, read_to: u64) -> Result<u64, WalError> {
        self.opened_at.get_or_init(|| {
            self.tail.begin_at(read_to.saturating_add(1));
            read_to
        });
        self.looks.ended();
        if !self.looks.may_look().await {
            return Ok(read_to);
        }
        self.looks.begin();
        let last = self.log.last_wal_file_id(read_to).await?;
        if last <= read_to {
            self.looks.complete();
        }
        Ok(last)
    }
}

/// Files of the log that are being read.
struct Reading {
    kept: VecDeque<WalRows>,
    /// What is not kept.
    rest: Option<Box<dyn WalIterator>>,
    /// The first file of the rest that was not read.
    next: u64,
    looks: Arc<Looks>,
    tail: Arc<Tail>,
}

#[async_trait]
impl WalIterator for Reading {
    async fn next(&mut self) -> Result<Option<WalRows>, WalError> {
        if let Some(rows) = self.kept.pop_front() {
            return Ok(Some(rows));
        }
        let rows = match &mut self.rest {
            Some(rest) => rest.next().await?,
            None => None,
        };
        match &rows {
            Some(rows) => {
                self.tail.keep(self.next, rows);
                self.next = self.next.max(rows.last_consumed_wal_file_id + 1);
            }
            None => self.looks.complete(),
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use slatedb::ValueDeletable;

    use super::*;

    fn looks() -> (Looks, watch::Receiver<Look>) {
        let (told, seen) = watch::channel(Look {
            number: 0,
            complete_to: Instant::now(),
        });
        (Looks::new(told), seen)
    }

    #[test]
    fn only_what_was_read_to_its_end_is_told() {
        let (looks, seen) = looks();
        let first = seen.borrow().complete_to;
        looks.begin();
        looks.ended();
        looks.begin();
        assert_eq!(seen.borrow().complete_to, first, "the first one failed");
        looks.complete();
        assert_eq!(seen.borrow().complete_to, first, "it may not be read yet");
        looks.moved();
        assert_eq!(seen.borrow().complete_to, first);
        looks.ended();
        let second = seen.borrow().complete_to;
        assert!(second > first);
        looks.begin();
        looks.ended();
        assert_eq!(seen.borrow().complete_to, second);
    }

    #[tokio::test]
    async fn a_look_is_held_until_it_is_known_what_becomes_of_it() {
        for (is_over, expected) in [(false, true), (true, false)] {
            let (looks, _seen) = looks();
            assert!(looks.may_look().await);
            let decide = async {
                looks.hold().await;
                if is_over { looks.end() } else { looks.go_on() }
            };
            // The first one begins before somebody asks.
            let look = async {
                tokio::task::yield_now().await;
                looks.may_look().await
            };
            let (may_look, ()) = tokio::join!(look, decide);
            assert_eq!(may_look, expected);
        }
    }

    fn rows(last: u64, bytes: usize) -> WalRows {
        let row = RowEntry {
            key: "key".into(),
            value: ValueDeletable::Value(vec![0; bytes].into()),
            seq: last,
            create_ts: None,
            expire_ts: None,
        };
        WalRows {
            rows: vec![row],
            last_consumed_wal_file_id: last,
        }
    }

    #[test]
    fn the_end_of_the_log_is_kept_without_gaps() {
        let tail = Tail::default();
        let last = |first| tail.at(first).map(|rows| rows.last_consumed_wal_file_id);
        tail.keep(5, &rows(5, 1));
        tail.keep(6, &rows(8, 1));
        assert_eq!((last(5), last(6), last(7)), (Some(5), Some(8), None));
        tail.keep(6, &rows(8, 1));
        tail.keep(9, &rows(8, 1));
        assert_eq!(last(9), None, "a part of a file");
        tail.begin_at(6);
        assert_eq!((last(5), last(6)), (None, Some(8)));
        tail.keep(11, &rows(11, 1));
        assert_eq!((last(6), last(11)), (None, Some(11)), "there was a gap");
        for file in 12..14 {
            tail.keep(file, &rows(file, KEPT_BYTES_MAX - 1000));
        }
        assert_eq!((last(11), last(12), last(13)), (None, None, Some(13)));
    }
}
