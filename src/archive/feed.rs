//! The change feed: every article stored and every deletion, in the order of the log.
//!
//! A reader names the first sequence that it wants and gets all that follows, without gaps, then
//! waits for more. Nothing is held between two reads, so a slow reader costs nothing and holds up
//! nobody; the log is never cut, so a reader can be away for as long as it likes.

use super::Archive;
use super::read::StoredArticle;
use super::reader::no_record;
use super::scan::{PageBudget, Room};
use super::selector::Selector;
use crate::article::{ContentHash, Timestamp};
use crate::error::{Error, Kind, Reason, Result};
use crate::key::Sequence;
use crate::record::{Content, Record};
use crate::store::Direction;

/// Records that one read looks at, so that it takes a moment even if the selector means none of them.
const EXAMINED_MAX: usize = 1000;

/// Where a reader begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedStart {
    /// With what comes next.
    Now,
    /// With this sequence.
    At(Sequence),
}

/// One change of the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An article was stored. One that was deleted since is left out: its deletion comes later.
    Stored(StoredArticle),
    /// An article was deleted.
    Deleted {
        /// The deletion's own sequence.
        sequence: Sequence,
        /// The article's id.
        id: ContentHash,
        /// Where the article stood.
        article: Sequence,
        /// When.
        deleted_at: Timestamp,
        /// Why.
        reason: String,
    },
}

/// What to do about a record that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnDamage {
    Fail,
    Skip,
}

/// Some changes in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// The changes that the selector means, in the order of the log.
    pub changes: Vec<Change>,
    /// Everything up to here was looked at: the next read begins behind it.
    pub sequence: Sequence,
}

impl Archive {
    /// The sequence at which a reader begins.
    ///
    /// # Errors
    /// `ArgumentInvalid` if it is behind the next one: then this is not the archive, or not the
    /// state of it, that the reader has seen before.
    pub fn feed_start(&self, start: FeedStart) -> Result<Sequence> {
        let next = self.committed() + 1;
        match start {
            FeedStart::Now => Ok(next),
            FeedStart::At(sequence) if (1..=next).contains(&sequence) => Ok(sequence),
            FeedStart::At(sequence) => {
                let what = format!(
                    "{sequence} is not 1 to {next}, the next sequence of this archive; if you have \
                     seen later ones, it was restored from an older backup"
                );
                Err(Error::field(Reason::ArgumentInvalid, "from_sequence", what))
            }
        }
    }

    /// Waits until the log goes on to a sequence.
    ///
    /// # Errors
    /// `ShuttingDown` if the archive is closed before.
    pub async fn committed_to(&self, sequence: Sequence) -> Result<()> {
        let mut committed = self.inner.committed.clone();
        let reached = committed.wait_for(|last| *last >= sequence).await;
        reached.map(drop).map_err(|_| super::writer_ended())
    }

    /// Reads changes from a sequence on, up to the last durable one and the last that the selector
    /// means, a page of them at most. Of the deletions all are meant that are within the selector's
    /// sequences, because a deleted article cannot be told to have been of another source or date.
    ///
    /// # Errors
    /// `RecordDamaged`, `StoreFailed`.
    pub async fn changes(
        &self,
        first: Sequence,
        selector: &Selector,
        budget: &PageBudget,
    ) -> Result<Changes> {
        self.read_changes(first, selector, budget, OnDamage::Fail)
            .await
    }

    /// Reads changes like [`changes`](Self::changes), and leaves out records that cannot be read. Once
    /// they are healed, they come again.
    ///
    /// # Errors
    /// `StoreFailed`.
    pub async fn readable_changes(
        &self,
        first: Sequence,
        selector: &Selector,
        budget: &PageBudget,
    ) -> Result<Changes> {
        self.read_changes(first, selector, budget, OnDamage::Skip)
            .await
    }

    async fn read_changes(
        &self,
        first: Sequence,
        selector: &Selector,
        budget: &PageBudget,
        on_damage: OnDamage,
    ) -> Result<Changes> {
        let last = self.committed().min(selector.max_sequence());
        // What the selector leaves out at the start need not be read.
        let first = first.max(selector.min_sequence().min(last.saturating_add(1)));
        let mut changes = Changes {
            changes: Vec::new(),
            sequence: first.saturating_sub(1),
        };
        let mut room = Room::new(budget);
        let mut examined = 0;
        while changes.sequence < last {
            let bounds = (changes.sequence + 1, last);
            let count = room.fetch_count();
            let candidates = self
                .log_candidates(bounds, Direction::Ascending, count)
                .await?;
            let mut found = candidates.list.into_iter().peekable();
            // Sequences are dense, so one that is not there is a record that was lost.
            while changes.sequence < last {
                let sequence = changes.sequence + 1;
                let candidate = found.next_if(|candidate| candidate.position.1 == sequence);
                let is_read = candidate.is_none() && found.peek().is_none();
                if is_read && !candidates.exhausted && changes.sequence >= bounds.0 {
                    break;
                }
                if room.is_full() || examined == EXAMINED_MAX {
                    return Ok(changes);
                }
                let record = match candidate.and_then(|candidate| candidate.head) {
                    Some(head) => self.reader().complete(sequence, head).await,
                    None => Err(no_record(sequence)),
                };
                examined += 1;
                let change = match record {
                    Ok(record) => change_of(sequence, record, selector),
                    Err(error) if on_damage == OnDamage::Skip && error.kind() == Kind::DataLoss => {
                        None
                    }
                    // What is intact before it goes first.
                    Err(_) if changes.sequence >= first => return Ok(changes),
                    Err(error) => return Err(error),
                };
                match change {
                    Some(Change::Stored(stored)) => {
                        if !room.take(&stored.article) {
                            return Ok(changes);
                        }
                        changes.changes.push(Change::Stored(stored));
                    }
                    Some(deleted) => {
                        room.take_small();
                        changes.changes.push(deleted);
                    }
                    None => {}
                }
                changes.sequence = sequence;
            }
        }
        Ok(changes)
    }
}

/// The change that a record is, if the selector means it.
fn change_of(sequence: Sequence, record: Record, selector: &Selector) -> Option<Change> {
    match record.content {
        Content::Deletion { article, reason } => {
            selector.includes(sequence).then_some(Change::Deleted {
                sequence,
                id: record.id,
                article,
                deleted_at: record.archived_at,
                reason,
            })
        }
        Content::Article(_) | Content::Tombstone { .. } | Content::Quarantine { .. } => {
            let stored = StoredArticle::of(sequence, record)?;
            let is_meant = selector.matches(sequence, &stored.article);
            is_meant.then_some(Change::Stored(stored))
        }
    }
}
