//! A migration: all records of one archive are copied to another place, in the order of the log and at
//! the sequences that they have, until the one can be left and the other used in its stead.
//!
//! Two marks keep anybody from using the wrong one. An archive that is being filled is refused to all
//! but a migration until it holds everything. One that was left says where it was moved to, takes no
//! more writes from then on, and is refused once it was closed. The old one is left first, so that at
//! no time both take writes.

use std::sync::Arc;

use super::backup::{ArchiveId, Entry, Header, RestoreStep, may_be_same};
use super::open::Purpose;
use super::{Archive, Guard, Limits, commit};
use crate::error::{Error, Reason, Result};
use crate::key::{self, NearCopies, Sequence, meta};
use crate::record::Content;
use crate::store::Store;

/// The longest name of a place.
const PLACE_BYTES_MAX: usize = 4096;

/// What two archives have to agree upon that hold the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holdings {
    /// The last sequence.
    pub last_sequence: Sequence,
    /// Articles.
    pub article_count: u64,
    /// Articles that were deleted.
    pub deleted_count: u64,
    /// Bytes of the canonical texts of all articles.
    pub text_bytes: u64,
}

/// A record that is not the same in two archives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Where it stands.
    pub sequence: Sequence,
    /// What it is in the other archive and what it is here.
    pub what: String,
    /// Whether nothing is lacking here: the other archive has set the record aside, and this one has
    /// its article.
    pub is_better: bool,
}

impl Archive {
    /// Opens an archive to move it to another place, or to find out whether that was done.
    ///
    /// # Errors
    /// Those of [`open`](Self::open), `ArchiveMoved` aside; `FileFailed` if there is none.
    pub async fn open_to_leave(store: Arc<dyn Store>, limits: Limits) -> Result<(Self, Guard)> {
        Self::open_for(Purpose::Leave, store, limits, None).await
    }

    /// Opens an archive to copy all records of another one into it, which can be asked for near copies
    /// or cannot. It is begun in an empty store.
    ///
    /// # Errors
    /// Those of [`open`](Self::open), `MigrationUnfinished` and `ArchiveMoved` aside.
    pub async fn open_to_receive(
        store: Arc<dyn Store>,
        limits: Limits,
        near: NearCopies,
    ) -> Result<(Self, Guard)> {
        Self::open_for(Purpose::Receive, store, limits, Some(near)).await
    }

    /// Opens an archive to [`release`](Self::release) it.
    ///
    /// # Errors
    /// Those of [`open`](Self::open), but for those of marks; `FileFailed` if there is none.
    pub async fn open_to_release(store: Arc<dyn Store>, limits: Limits) -> Result<(Self, Guard)> {
        Self::open_for(Purpose::Release, store, limits, None).await
    }

    /// Checks that the records of another archive, a backup of which begins as told and which ends at
    /// `last`, go on behind those that are here.
    ///
    /// # Errors
    /// `BackupMismatch` if they do not.
    pub async fn check_origin(&self, origin: &Header, last: Sequence) -> Result<()> {
        let mismatch = |what: String| Err(Error::new(Reason::BackupMismatch, what));
        let committed = self.committed();
        if origin.archive_id != self.archive_id().await? {
            if committed == 0 {
                return Ok(());
            }
            return mismatch(format!(
                "another archive is there, of {committed} records; name an empty place"
            ));
        }
        if committed > last {
            return mismatch(format!(
                "the same archive is there, and goes on to sequence {committed}, behind {last}: it was \
                 written to since"
            ));
        }
        let found = self.id_at(committed).await?;
        if origin.first == committed + 1 && may_be_same(found, origin.before) {
            return Ok(());
        }
        mismatch(format!(
            "the same archive is there, and record {committed} of it is of article {found}, not of {}: \
             the two have gone different ways",
            origin.before
        ))
    }

    /// Begins to take the records of another archive, and its name. Until
    /// [`end_migration`](Self::end_migration), this one is refused to all but a migration.
    ///
    /// # Errors
    /// `WritesStopped`.
    pub async fn begin_migration(
        &self,
        archive_id: ArchiveId,
        last: Sequence,
        from: &str,
    ) -> Result<()> {
        self.step(RestoreStep::Begin {
            archive_id,
            last,
            from: Some(checked_place(from)?),
        })
        .await
    }

    /// Lets the archive be used.
    ///
    /// # Errors
    /// `WritesStopped`.
    pub async fn end_migration(&self) -> Result<()> {
        self.step(RestoreStep::End).await
    }

    /// Leaves the archive for a place that it was copied to: what is queued is written, and nothing
    /// after it. Returns the last sequence.
    ///
    /// # Errors
    /// `ArchiveMoved` if it was moved to another place; `ArgumentInvalid` if the place has no name, or
    /// too long a one; `WritesStopped`.
    pub async fn move_to(&self, place: &str) -> Result<Sequence> {
        let place = checked_place(place)?;
        self.check_not_elsewhere(&place).await?;
        self.step(RestoreStep::Move(place)).await?;
        Ok(self.committed())
    }

    /// Checks that the archive was not moved to another place than this one.
    ///
    /// # Errors
    /// `ArchiveMoved` if it was.
    pub async fn check_not_elsewhere(&self, place: &str) -> Result<()> {
        let moved = self.reader().value(meta::moved()).await?;
        let moved = moved.map(|moved| String::from_utf8_lossy(&moved).into_owned());
        match moved.filter(|moved| moved != place) {
            Some(moved) => Err(commit::moved(&moved)),
            None => Ok(()),
        }
    }

    /// Takes all marks of migrations and restores away, so that the archive is used with what it has.
    ///
    /// # Errors
    /// `WritesStopped`.
    pub async fn release(&self) -> Result<()> {
        self.step(RestoreStep::Release).await
    }

    /// What the archive has to hold where it is copied to.
    ///
    /// # Errors
    /// `StoreFailed`.
    pub async fn holdings(&self) -> Result<Holdings> {
        let stats = self.stats().await?;
        Ok(Holdings {
            last_sequence: stats.last_sequence,
            article_count: stats.totals.article_count,
            deleted_count: stats.totals.deleted_count,
            text_bytes: stats.totals.text_bytes,
        })
    }

    /// Compares records of another archive with those that are here, each of which is proved.
    ///
    /// # Errors
    /// `StoreFailed`.
    pub async fn differences(&self, entries: &[Entry]) -> Result<Vec<Difference>> {
        let keys = entries.iter().map(|entry| key::log(entry.sequence));
        let heads = self.reader().get_many(keys.collect()).await?;
        let mut differences = Vec::new();
        for (entry, head) in entries.iter().zip(heads) {
            let sequence = entry.sequence;
            let mut told = |here: &str, is_better: bool| {
                let there = kind_of(&entry.record.content);
                let what = format!("{there} of {} there, {here} here", entry.record.id);
                differences.push(Difference {
                    sequence,
                    what,
                    is_better,
                });
            };
            let Some(head) = head else {
                told("nothing", false);
                continue;
            };
            let record = match self.reader().complete(sequence, head).await {
                Ok(record) => record,
                Err(error) if error.reason() == Reason::StoreFailed => return Err(error),
                Err(error) => {
                    told(&format!("a damaged record ({error})"), false);
                    continue;
                }
            };
            let here = format!("{} of {}", kind_of(&record.content), record.id);
            let is_better = matches!(entry.record.content, Content::Quarantine { .. })
                && matches!(record.content, Content::Article(_))
                && may_be_same(entry.record.id, record.id);
            let is_same = record == entry.record
                || is_set_aside(&record.content) && is_set_aside(&entry.record.content);
            if !is_same {
                told(&here, is_better);
            }
        }
        Ok(differences)
    }
}

/// Of two records that were set aside, both lack the text, whatever they say of it.
fn is_set_aside(content: &Content) -> bool {
    matches!(content, Content::Quarantine { .. })
}

fn kind_of(content: &Content) -> &'static str {
    match content {
        Content::Article(_) => "the article",
        Content::Deletion { .. } => "the deletion",
        Content::Tombstone { .. } => "the tombstone",
        Content::Quarantine { .. } => "a record that was set aside",
    }
}

fn checked_place(place: &str) -> Result<String> {
    if (1..=PLACE_BYTES_MAX).contains(&place.len()) && !place.chars().any(char::is_control) {
        return Ok(place.to_owned());
    }
    let what = format!(
        "{} is not one line of 1 to {PLACE_BYTES_MAX} bytes",
        crate::error::excerpt(place)
    );
    Err(Error::field(Reason::ArgumentInvalid, "to", what))
}
