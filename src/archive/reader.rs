//! Reads records of the log by sequence and proves them; the errors of what is not there.

use std::ops::Range;

use bytes::Bytes;

use crate::article::ContentHash;
use crate::error::{Error, Kind, Reason, Result};
use crate::key::{self, Sequence};
use crate::metrics::Metrics;
use crate::record::{self, Dictionaries, HashEntry, Record};
use crate::store::{Chunk, Scan, Store};

/// How many records are fetched at a time: of each at first one row of up to 64 KiB.
pub(super) const FETCH_RECORDS: usize = 64;

/// What to do about a damaged record.
const SET_ASIDE: &str = "set it aside with `pressmark verify --repair`, then heal it from a backup";

/// What to do about a lost dictionary.
pub(super) const RESTORE: &str = "restore the archive from a backup into a new folder";

/// The first key behind a key.
pub(super) fn behind(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

/// Moves the start of a range behind the rows of an ascending chunk of it. Returns whether there are
/// rows left.
pub(super) fn advance(range: &mut Range<Vec<u8>>, chunk: &Chunk) -> bool {
    match chunk.rows.last() {
        Some(last) if !chunk.exhausted => {
            range.start = behind(&last.key);
            true
        }
        _ => false,
    }
}

/// Reads records of the log and proves them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    store: &'a dyn Store,
    metrics: &'a Metrics,
    dictionaries: &'a Dictionaries,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        store: &'a dyn Store,
        metrics: &'a Metrics,
        dictionaries: &'a Dictionaries,
    ) -> Self {
        Self {
            store,
            metrics,
            dictionaries,
        }
    }

    pub(super) fn dictionaries(&self) -> &'a Dictionaries {
        self.dictionaries
    }

    pub(super) fn store(&self) -> &'a dyn Store {
        self.store
    }

    /// Reads the values of keys; damage to the engine's files does not go unnoticed.
    pub(super) async fn get_many(&self, keys: Vec<Vec<u8>>) -> Result<Vec<Option<Bytes>>> {
        self.noticed(self.store.get_many(keys).await)
    }

    /// Reads one chunk per scan, with the same care.
    pub(super) async fn scan_many(&self, scans: Vec<Scan>) -> Result<Vec<Chunk>> {
        self.noticed(self.store.scan_many(scans).await)
    }

    fn noticed<T>(&self, result: Result<T>) -> Result<T> {
        result.inspect_err(|error| {
            if error.kind() == Kind::DataLoss {
                self.damaged(error);
            }
        })
    }

    /// The value of one row.
    pub(super) async fn value(&self, key: Vec<u8>) -> Result<Option<Bytes>> {
        let values = self.get_many(vec![key]).await?;
        values.into_iter().next().ok_or_else(short_answer)
    }

    /// What table `h` says of an id.
    pub(super) async fn entry(&self, id: &ContentHash) -> Result<Option<HashEntry>> {
        let value = self.value(key::hash(id)).await?;
        let entry = value.map(|value| HashEntry::decode(&value)).transpose();
        entry.inspect_err(|error| self.damaged(error))
    }

    pub(super) async fn record(&self, sequence: Sequence) -> Result<Record> {
        let head = self.head(sequence).await?;
        self.complete(sequence, head).await
    }

    pub(super) async fn head(&self, sequence: Sequence) -> Result<Bytes> {
        let heads = self.heads(&[sequence]).await?;
        heads.into_iter().next().ok_or_else(short_answer)
    }

    /// The first rows of records that must be there.
    pub(super) async fn heads(&self, sequences: &[Sequence]) -> Result<Vec<Bytes>> {
        let keys = sequences
            .iter()
            .map(|sequence| key::log(*sequence))
            .collect();
        let values = self.get_many(keys).await?;
        let pairs = sequences.iter().zip(values);
        pairs
            .map(|(sequence, value)| value.ok_or_else(|| self.lost(*sequence)))
            .collect()
    }

    /// The first `row_count` rows of a record.
    async fn rows(&self, sequence: Sequence, row_count: u16) -> Result<Vec<Bytes>> {
        let keys = (0..row_count)
            .map(|row| key::log_row(sequence, row))
            .collect();
        let values = self.get_many(keys).await?;
        values
            .into_iter()
            .map(|value| value.ok_or_else(|| no_record(sequence)))
            .collect()
    }

    /// Reads what is behind the first row of a record, and decodes it.
    pub(super) async fn complete(&self, sequence: Sequence, head: Bytes) -> Result<Record> {
        let mut record = self.decode(sequence, head.clone()).await;
        if record.is_err() {
            // A delete may have come between the reads of a large record's rows. It changes the
            // first row, and no record changes twice.
            let now = self.head(sequence).await?;
            if now != head {
                record = self.decode(sequence, now).await;
            }
        }
        let record = record.map_err(|error| {
            if error.kind() == Kind::Unavailable {
                return error;
            }
            self.damaged(&error);
            let is_lost = error.reason() == Reason::DictionaryLost;
            error.with_advice(if is_lost { RESTORE } else { SET_ASIDE })
        })?;
        self.metrics.read.inc();
        Ok(record)
    }

    async fn decode(&self, sequence: Sequence, head: Bytes) -> Result<Record> {
        let row_count = record::extent(sequence, &head)?.row_count;
        let rows = if row_count <= 1 {
            vec![head]
        } else {
            self.rows(sequence, row_count).await?
        };
        record::decode(sequence, &rows, self.dictionaries)
    }

    fn lost(&self, sequence: Sequence) -> Error {
        let error = no_record(sequence);
        self.damaged(&error);
        error.with_advice(SET_ASIDE)
    }

    /// Counts damage and tells the operator.
    pub(super) fn damaged(&self, error: &Error) {
        self.metrics.damaged.inc();
        tracing::error!(%error, "damage found while reading");
    }
}

/// No article has this id, or prefix of one.
pub(super) fn not_found(id: impl std::fmt::Display) -> Error {
    let id = id.to_string();
    Error::new(
        Reason::ArticleNotFound,
        format!("no article has the id {id}"),
    )
    .with_resource(id)
}

/// An index row names a record that is not there.
pub(super) fn no_record(sequence: Sequence) -> Error {
    Error::new(
        Reason::RecordDamaged,
        format!("log record {sequence} has lost rows"),
    )
    .with_resource(format!("sequence {sequence}"))
}

/// Table `h` names a record of another article.
pub(super) fn wrong_record(id: &ContentHash, sequence: Sequence) -> Error {
    Error::new(
        Reason::IndexDamaged,
        format!("article {id}: the index names log record {sequence}, which is another's"),
    )
    .with_resource(id.to_string())
}

pub(super) fn short_answer() -> Error {
    Error::new(
        Reason::Internal,
        "the store answered with fewer rows than asked",
    )
}
