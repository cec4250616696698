//! Walks the whole log or a whole table in order, at a bounded pace and in bounded memory.

use std::ops::Range;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::candidates::index_scan;
use super::reader::{advance, short_answer};
use crate::error::{Error, Reason, Result};
use crate::key::{self, Sequence};
use crate::record::{self, Dictionaries, Record};
use crate::store::{Chunk, Direction, Row, Scan, Store};

/// Rows of an index that one step of a walk reads.
const STEP_INDEX_ROWS: usize = 1024;

/// Records, and bytes of them, that one step of a walk of the log reads.
const STEP_RECORDS: u64 = 256;
const STEP_BYTES_MAX: usize = 1024 * 1024;

/// What may be made up for after a stall.
const BURST: Duration = Duration::from_secs(1);

/// Holds a walk back, so that it can run beside load.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    bytes_per_second_max: u64,
    started: Instant,
    bytes: u64,
    /// Time that passed without being used.
    slack: Duration,
}

impl Pace {
    /// A pace of so many bytes a second; 0 is as fast as possible.
    pub(super) fn new(bytes_per_second_max: u64) -> Self {
        Self {
            bytes_per_second_max,
            started: Instant::now(),
            bytes: 0,
            slack: Duration::ZERO,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Counts what was read, and waits until as much may have been read.
    async fn take(&mut self, bytes: usize) {
        self.bytes += u64::try_from(bytes).unwrap_or(u64::MAX);
        let millis = self.bytes.saturating_mul(1000);
        let due = match millis.checked_div(self.bytes_per_second_max) {
            Some(millis) => Duration::from_millis(millis),
            None => Duration::ZERO,
        };
        let elapsed = self.started.elapsed();
        // What a stall held up is not made up for all at once.
        self.slack = self.slack.max(elapsed.saturating_sub(due + BURST));
        let ahead = (due + self.slack).saturating_sub(elapsed);
        if ahead > Duration::ZERO {
            tokio::time::sleep(ahead).await;
        } else {
            // Proving records takes time that others want too.
            tokio::task::yield_now().await;
        }
    }
}

/// A range of rows that is read step by step.
pub(super) struct TableWalk<'a> {
    store: &'a dyn Store,
    range: Range<Vec<u8>>,
    steps: Steps,
    done: bool,
}

/// How far a step goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Steps {
    /// Some rows of an index.
    Rows,
    /// Some sequences of the log. An engine that reads ahead in many tables at once is kept from
    /// looking into those that hold only what comes later.
    Sequences,
    /// The next rows of the log wherever they are: where a step was, there were none.
    Anywhere,
}

impl<'a> TableWalk<'a> {
    pub(super) fn new(store: &'a dyn Store, range: Range<Vec<u8>>) -> Self {
        Self {
            store,
            range,
            steps: Steps::Rows,
            done: false,
        }
    }

    /// The next chunk to read.
    fn scan(&self) -> Scan {
        if self.steps == Steps::Rows {
            return index_scan(self.range.clone(), Direction::Ascending, STEP_INDEX_ROWS);
        }
        let mut range = self.range.clone();
        if self.steps == Steps::Sequences {
            let first = key::log_position(&range.start);
            let last = first.saturating_add(STEP_RECORDS - 1);
            range.end = range.end.min(key::log_range(first, last).end);
        }
        Scan {
            range,
            direction: Direction::Ascending,
            rows_max: usize::try_from(STEP_RECORDS).unwrap_or(usize::MAX),
            bytes_max: STEP_BYTES_MAX,
        }
    }

    /// Goes on behind what was read.
    fn go_on(&mut self, read_to: Vec<u8>, chunk: &Chunk) {
        if !chunk.exhausted || read_to == self.range.end {
            self.done = !advance(&mut self.range, chunk);
        } else {
            self.range.start = read_to;
        }
        self.steps = match self.steps {
            Steps::Rows => Steps::Rows,
            Steps::Sequences | Steps::Anywhere if chunk.rows.is_empty() => Steps::Anywhere,
            Steps::Sequences | Steps::Anywhere => Steps::Sequences,
        };
    }

    /// The next rows in order; none at the end.
    pub(super) async fn next(&mut self, pace: &mut Pace) -> Result<Option<Vec<Row>>> {
        if self.done {
            return Ok(None);
        }
        let scan = self.scan();
        let read_to = scan.range.end.clone();
        let chunk = self.store.scan_many(vec![scan]).await?.pop();
        let chunk = chunk.ok_or_else(short_answer)?;
        self.go_on(read_to, &chunk);
        let bytes = chunk.rows.iter().map(|row| row.key.len() + row.value.len());
        pace.take(bytes.sum()).await;
        Ok(Some(chunk.rows))
    }
}

/// The rows of one record as they are, unproven.
pub(super) struct RawRecord {
    pub(super) sequence: Sequence,
    pub(super) rows: Vec<(u16, Bytes)>,
}

impl RawRecord {
    /// The first row, if it is there.
    pub(super) fn head(&self) -> Option<&Bytes> {
        match self.rows.first() {
            Some((0, head)) => Some(head),
            _ => None,
        }
    }

    pub(super) fn stored_bytes(&self) -> u64 {
        let bytes: usize = self.rows.iter().map(|(_, row)| row.len()).sum();
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    /// The rows as they stand in the log.
    pub(super) fn into_rows(self) -> impl Iterator<Item = Row> {
        let sequence = self.sequence;
        self.rows.into_iter().map(move |(row, value)| Row {
            key: key::log_row(sequence, row).into(),
            value,
        })
    }

    /// Proves the record.
    pub(super) fn decode(&self, dictionaries: &Dictionaries) -> Result<Record> {
        let mut rows = Vec::with_capacity(self.rows.len());
        for (expected, (row, value)) in (0_u16..).zip(&self.rows) {
            if *row != expected {
                let what = format!("row {expected} is missing in log record {}", self.sequence);
                return Err(Error::new(Reason::RecordDamaged, what));
            }
            rows.push(value.clone());
        }
        record::decode(self.sequence, &rows, dictionaries)
    }
}

/// What a step of a walk of the log came by.
#[derive(Default)]
pub(super) struct LogStep {
    /// Whole records, in order.
    pub(super) records: Vec<RawRecord>,
    /// Rows whose keys are none of the log's.
    pub(super) strays: Vec<Row>,
}

/// The log up to a sequence, read step by step.
pub(super) struct LogWalk<'a> {
    rows: TableWalk<'a>,
    open: Option<RawRecord>,
}

impl<'a> LogWalk<'a> {
    /// All of the log up to a sequence. From the first byte of the table on, so that no stray key
    /// hides before the first record.
    pub(super) fn to(store: &'a dyn Store, last: Sequence) -> Self {
        Self::over(store, vec![key::TABLE_LOG]..key::log_range(0, last).end)
    }

    /// The records `first..=last`.
    pub(super) fn between(store: &'a dyn Store, first: Sequence, last: Sequence) -> Self {
        Self::over(store, key::log_range(first, last))
    }

    fn over(store: &'a dyn Store, range: Range<Vec<u8>>) -> Self {
        let mut rows = TableWalk::new(store, range);
        rows.steps = Steps::Sequences;
        Self { rows, open: None }
    }

    /// The next records in order; none at the end.
    pub(super) async fn next(&mut self, pace: &mut Pace) -> Result<Option<LogStep>> {
        let mut step = LogStep::default();
        let Some(rows) = self.rows.next(pace).await? else {
            step.records.extend(self.open.take());
            return Ok((!step.records.is_empty()).then_some(step));
        };
        for row in rows {
            let Some((sequence, number)) = key::parse_log(&row.key) else {
                step.strays.push(row);
                continue;
            };
            match &mut self.open {
                Some(open) if open.sequence == sequence => open.rows.push((number, row.value)),
                open => {
                    let next = RawRecord {
                        sequence,
                        rows: vec![(number, row.value)],
                    };
                    step.records.extend(open.replace(next));
                }
            }
        }
        Ok(Some(step))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Batch, Durability, MemoryStore};

    #[tokio::test]
    async fn a_walk_of_the_log_passes_over_holes_and_meets_every_row() -> Result<()> {
        let far = Sequence::MAX - 1;
        let strays = [
            vec![key::TABLE_LOG, 0],
            [key::log(2), vec![0]].concat(),
            [key::log(5 * STEP_RECORDS), vec![9; 40]].concat(),
            [key::log(Sequence::MAX), vec![1]].concat(),
        ];
        let records = [1, 2, 300, 5 * STEP_RECORDS, 40 * STEP_RECORDS, far];
        let mut batch = Batch::new();
        for key in &strays {
            batch.put(key.clone(), vec![1]);
        }
        for sequence in records {
            for row in [0, 1] {
                batch.put(key::log_row(sequence, row), vec![0; 2]);
            }
        }
        batch.put(vec![key::TABLE_LOG + 1], vec![3]);
        let store = MemoryStore::new();
        store.write(batch, Durability::Synced).await?;

        let mut pace = Pace::new(0);
        let mut walk = LogWalk::to(&store, Sequence::MAX);
        let (mut found, mut met, mut steps) = (Vec::new(), Vec::new(), 0);
        while let Some(step) = walk.next(&mut pace).await? {
            found.extend(step.records.iter().map(|record| record.sequence));
            met.extend(step.strays.iter().map(|row| row.key.to_vec()));
            steps += 1;
        }
        assert_eq!(found, records);
        assert_eq!(met, strays);
        assert!(steps < 30, "{steps} steps, which is one for each hole");
        Ok(())
    }
}
