//! The full check of an archive, and the repair of what it finds.
//!
//! The check walks the log once and proves every record. From each it works out the index rows that
//! the record asks for, and adds their hashes up per table; then it adds up the rows that are there.
//! Two equal sums are two equal sets, so a whole archive is checked by sequential reads alone. Only
//! for a table whose sums differ it looks row by row for what is missing and what is stray.
//!
//! It runs beside readers and writers: it looks at what was committed when it began, and whatever
//! seems wrong is read again before it is a finding, because a delete may have come in between.
//!
//! The repair runs in the writer, so that nothing is written meanwhile; puts and deletes wait for it.

mod check;
mod locate;
mod repair;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use self::check::Check;
pub(super) use self::repair::{Apply, Mend, Repair};
use super::job::Job;
use super::{Archive, Role, writer_ended};
use crate::article::{ContentHash, Timestamp};
use crate::error::Result;
use crate::key::{self, IndexFacts, NearCopies, Sequence};
use crate::record::{
    self, Content, EntryState, HashEntry, Record, SourceStats, Totals, UNKNOWN_ID,
};

/// What is wrong with an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FindingKind {
    /// A record of the log cannot prove itself, or lost rows.
    RecordDamaged,
    /// The log has no record at a sequence that was given.
    RecordMissing,
    /// A record was damaged and set aside, and the article was not stored again since.
    RecordQuarantined,
    /// An article has two records.
    ArticleRepeated,
    /// Of the two records of a delete, one does not name the other.
    DeleteBroken,
    /// An index lacks a row that a record asks for.
    RowMissing,
    /// A table has a row that no record asks for.
    RowStray,
    /// The figures differ from what the log adds up to.
    FiguresWrong,
    /// A copy of a dictionary is damaged or missing, and the other one is intact.
    DictionaryDamaged,
    /// Both copies of a dictionary are damaged or missing: records that name it cannot be read.
    DictionaryLost,
    /// The engine cannot read its own files, so the check could not come to its end.
    StoreDamaged,
}

impl FindingKind {
    /// What to do about it.
    #[must_use]
    pub const fn advice(self) -> &'static str {
        match self {
            Self::RecordDamaged | Self::RecordMissing => {
                "run verify --repair, which sets the record aside, then heal the article from a backup"
            }
            Self::StoreDamaged | Self::DictionaryLost => {
                "export what can still be read, and restore a backup into a new folder"
            }
            Self::RecordQuarantined => "heal the article from a backup, or store it again",
            Self::ArticleRepeated
            | Self::DeleteBroken
            | Self::RowMissing
            | Self::RowStray
            | Self::FiguresWrong
            | Self::DictionaryDamaged => "run verify --repair",
        }
    }
}

/// Something wrong with the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What kind of damage it is.
    pub kind: FindingKind,
    /// The sequence of the record concerned, if one is.
    pub sequence: Option<Sequence>,
    /// The id of the article concerned, if it is known.
    pub id: Option<ContentHash>,
    /// What is wrong, in words.
    pub message: String,
}

/// The outcome of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// The last sequence that was looked at.
    pub as_of: Sequence,
    /// Articles found intact.
    pub article_count: u64,
    /// Deletions found intact.
    pub deletion_count: u64,
    /// Index rows looked at.
    pub index_row_count: u64,
    /// Bytes read.
    pub bytes: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// Whether the figures were compared: not if records are damaged or missing, if articles were
    /// deleted while the check ran, or if an earlier write failed.
    pub figures_checked: bool,
    /// All findings counted.
    pub finding_count: u64,
    /// The first of them.
    pub findings: Vec<Finding>,
}

/// What a repair did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RepairCounts {
    /// Records that were set aside.
    pub quarantined_count: u64,
    /// Halves of deletes, and copies of dictionaries, that were written again from their other half.
    pub rebuilt_count: u64,
    /// Index rows that were added.
    pub added_count: u64,
    /// Rows that were removed.
    pub removed_count: u64,
}

/// The outcome of a repair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepairReport {
    /// What the check found before.
    pub before: VerifyReport,
    /// What was done about it; nothing if there was nothing to do.
    pub counts: Option<RepairCounts>,
    /// What the check finds now.
    pub after: VerifyReport,
}

/// What a check is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// It proves the records of the log.
    #[default]
    Log,
    /// It compares the index tables.
    Index,
    /// It looks row by row for what differs.
    Locate,
}

/// How far a check is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerifyProgress {
    /// What it is at.
    pub stage: Stage,
    /// The last sequence that it looks at.
    pub as_of: Sequence,
    /// Articles found intact so far.
    pub article_count: u64,
    /// Index rows looked at so far.
    pub index_row_count: u64,
    /// Bytes read so far.
    pub bytes: u64,
    /// How long it has taken.
    pub elapsed: Duration,
    /// Findings so far.
    pub finding_count: u64,
}

/// Follows a check while it runs. Never holds it up.
#[derive(Debug)]
pub struct Observer {
    /// Where it is.
    pub progress: watch::Sender<VerifyProgress>,
    /// What it finds. A full channel loses findings; one that holds the limit of findings loses
    /// none.
    pub findings: mpsc::Sender<Finding>,
}

/// How to check.
#[derive(Debug, Default)]
pub struct VerifyOptions {
    /// Bytes read in a second; 0 is as fast as possible.
    pub bytes_per_second_max: u64,
    /// Who follows it.
    pub observer: Option<Observer>,
}

/// The figures at one moment, read by the writer so that they fit each other.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) as_of: Sequence,
    /// The next sequence and the totals as they are stored, and the sources; none if they cannot be
    /// trusted to belong to `as_of`.
    pub(super) figures: Option<StoredFigures>,
    /// Keys in the log behind the last sequence that was given, where none should be.
    pub(super) beyond: Vec<Bytes>,
}

/// The figures as they are stored.
#[derive(Debug)]
pub(super) struct StoredFigures {
    pub(super) next: Sequence,
    pub(super) totals: Totals,
    /// What cannot be read has no value.
    pub(super) sources: BTreeMap<String, Option<SourceStats>>,
}

impl Archive {
    /// Checks the whole archive.
    ///
    /// # Errors
    /// `StoreFailed` if the store cannot be read; damage is no error but a finding.
    pub async fn verify(&self) -> Result<VerifyReport> {
        self.verify_with(&VerifyOptions::default()).await
    }

    /// Checks the whole archive, at a pace and before the eyes of an observer.
    ///
    /// # Errors
    /// `StoreFailed` if the store cannot be read; `ShuttingDown` after close.
    pub async fn verify_with(&self, options: &VerifyOptions) -> Result<VerifyReport> {
        let deleted_before = self.deleted_count().await?;
        let mut snapshot = self.snapshot().await?;
        let mut check = Check::new(
            self.reader(),
            &self.inner.limits,
            (snapshot.as_of, self.near_copies()),
            options,
        );
        let walked = match check.log(&snapshot.beyond).await {
            Ok(()) => match check.dictionaries().await {
                Ok(()) => check.indexes().await,
                damaged => damaged,
            },
            damaged => damaged,
        };
        if let Err(error) = walked {
            check.unreadable(error)?;
        }
        // The tombstone of a delete can be read a moment before the delete is durable and counted.
        // Once the writer has answered again, none is in between.
        self.snapshot().await?;
        if self.deleted_count().await? != deleted_before {
            // The log no longer adds up to what it did.
            snapshot.figures = None;
        }
        Ok(check.finish(snapshot.figures.as_ref()))
    }

    /// What goes up with each delete.
    async fn deleted_count(&self) -> Result<u64> {
        match self.role() {
            Role::Writer => Ok(self.inner.metrics.deleted.get()),
            Role::Replica => Ok(self.figures().await?.1.deleted_count),
        }
    }

    /// The figures between two writes.
    async fn snapshot(&self) -> Result<Snapshot> {
        if self.role() == Role::Replica {
            return self.followed_snapshot().await;
        }
        let (done, snapshot) = oneshot::channel();
        self.send(Job::Snapshot(done)).await?;
        snapshot.await.map_err(|_| writer_ended())?
    }

    /// Checks the whole archive, mends what it finds, and checks again.
    ///
    /// # Errors
    /// Those of [`verify_with`](Self::verify_with) and [`mend`](Self::mend).
    pub async fn repair(&self, now: Timestamp) -> Result<RepairReport> {
        let before = self.verify().await?;
        let mut report = RepairReport {
            after: before.clone(),
            before,
            counts: None,
        };
        if report.before.finding_count > 0 {
            report.counts = Some(self.mend(now).await?);
            report.after = self.verify().await?;
        }
        Ok(report)
    }

    /// Sets damaged records aside, and brings index rows and figures into line with the log. Puts
    /// and deletes wait meanwhile.
    ///
    /// # Errors
    /// `StoreFailed`, `WritesStopped`, `ShuttingDown`; `ArchiveDamaged` if so much is damaged that a
    /// backup should be restored instead, or both copies of a dictionary that records need are.
    pub async fn mend(&self, now: Timestamp) -> Result<RepairCounts> {
        let (done, counts) = oneshot::channel();
        self.send(Job::Repair(now, done)).await?;
        counts.await.map_err(|_| writer_ended())?
    }
}

/// A row of an index table.
struct IndexRow {
    key: Vec<u8>,
    value: Vec<u8>,
}

impl IndexRow {
    fn table(&self) -> u8 {
        self.key.first().copied().unwrap_or_default()
    }

    fn of_id(id: &ContentHash, sequence: Sequence, state: EntryState) -> Self {
        Self {
            key: key::hash(id),
            value: HashEntry { sequence, state }.encode(),
        }
    }
}

/// The index rows that a record asks for. A quarantine needs its row only as long as no other record
/// has the article.
fn asked_rows(sequence: Sequence, record: &Record, near: NearCopies) -> Vec<IndexRow> {
    let entry = |state| IndexRow::of_id(&record.id, sequence, state);
    match &record.content {
        Content::Article(article) => {
            let facts = IndexFacts::of(article, record.id, near);
            let rows = record::index_rows(&facts, sequence).into_iter();
            let rows = rows.map(|(key, value)| IndexRow { key, value });
            rows.chain([entry(EntryState::Stored)]).collect()
        }
        Content::Tombstone { .. } => vec![entry(EntryState::Deleted)],
        Content::Quarantine { state, .. } if record.id != UNKNOWN_ID => vec![entry(*state)],
        Content::Deletion { .. } | Content::Quarantine { .. } => Vec::new(),
    }
}
