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
use super::reader::no_record;
use super::{Archive, Guard, Limits, commit};
use crate::error::{Error, Kind, Reason, Result};
use crate::key::{self, NearCopies, Sequence, meta};
use crate::record::{Content, Record};
use crate::store::Store;

/// The longest name of a place.
const PLACE_BYTES_MAX: usize = 4096;

/// Records that are compared before others are written behind them.
const COMPARED_RECORDS: u64 = 256;

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
    /// What it is in the other archive.
    pub there: String,
    /// What it is here.
    pub here: String,
    /// Whether nothing is lacking here: the other archive has set the record aside, and this one has
    /// it.
    pub is_better: bool,
    /// The deletion that took away, there, what is here.
    pub deletion: Option<Sequence>,
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

    /// Where a backup of another archive has to begin whose records, up to `last`, are to come behind
    /// those that are here. Of what is here already, some is compared first, and everything if no
    /// migration has begun yet: another one of the same name may have gone its own way since.
    ///
    /// # Errors
    /// `StoreFailed`.
    pub async fn first_to_compare(&self, last: Sequence) -> Result<Sequence> {
        let is_trusted = self.reader().value(meta::migrating()).await?.is_some();
        let first = if is_trusted {
            (self.committed() + 1).saturating_sub(COMPARED_RECORDS)
        } else {
            1
        };
        Ok(first.clamp(1, last + 1))
    }

    /// Checks that the records of another archive, a backup of which begins as told and which ends at
    /// `last`, may come behind those that are here.
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
        let before = origin.first - 1;
        let found = self.id_at(before).await?;
        if before <= committed && may_be_same(found, origin.before) {
            return Ok(());
        }
        let there = format!("article {}", origin.before);
        mismatch(different_ways(before, &there, &format!("article {found}")))
    }

    /// Checks that records which are here already are those of the other archive. A record that was
    /// deleted or set aside there since may be here yet.
    ///
    /// # Errors
    /// `BackupMismatch` if one is not.
    pub async fn check_present(&self, entries: &[Entry]) -> Result<()> {
        let committed = self.committed();
        let differences = self.differences(entries).await?;
        let different = differences.into_iter().find(|different| {
            !different.is_better
                && different
                    .deletion
                    .is_none_or(|deletion| deletion <= committed)
        });
        different.map_or(Ok(()), |different| {
            let Difference {
                sequence,
                there,
                here,
                ..
            } = different;
            let what = different_ways(sequence, &there, &here);
            Err(Error::new(Reason::BackupMismatch, what))
        })
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
            let record = match head {
                Some(head) => self.reader().complete(entry.sequence, head).await,
                None => Err(no_record(entry.sequence)),
            };
            match record {
                Err(error) if error.kind() != Kind::DataLoss => return Err(error),
                record => differences.extend(difference(entry, record)),
            }
        }
        Ok(differences)
    }
}

/// What is different between a record of another archive and the one that is here, if something is.
fn difference(entry: &Entry, record: Result<Record>) -> Option<Difference> {
    let there = &entry.record;
    let mut difference = Difference {
        sequence: entry.sequence,
        there: told(there),
        here: String::new(),
        is_better: false,
        deletion: None,
    };
    let here = match record {
        Ok(here) => here,
        Err(error) => {
            difference.here = format!("damaged ({error})");
            return Some(difference);
        }
    };
    if here == *there || is_set_aside(&here.content) && is_set_aside(&there.content) {
        return None;
    }
    difference.here = told(&here);
    let is_same_article = may_be_same(here.id, there.id);
    let is_live = matches!(
        here.content,
        Content::Article(_) | Content::Quarantine { .. }
    );
    match &there.content {
        Content::Quarantine { .. } => difference.is_better = is_same_article,
        Content::Tombstone { deletion, .. } if is_same_article && is_live => {
            difference.deletion = Some(*deletion);
        }
        Content::Article(_) | Content::Deletion { .. } | Content::Tombstone { .. } => {}
    }
    Some(difference)
}

/// Of two records that were set aside, both lack the text, whatever they say of it.
fn is_set_aside(content: &Content) -> bool {
    matches!(content, Content::Quarantine { .. })
}

fn told(record: &Record) -> String {
    let kind = match record.content {
        Content::Article(_) => "article",
        Content::Deletion { .. } => "the deletion of article",
        Content::Tombstone { .. } => "the tombstone of article",
        Content::Quarantine { .. } => "what was set aside of article",
    };
    format!("{kind} {}", record.id)
}

fn different_ways(sequence: Sequence, there: &str, here: &str) -> String {
    format!(
        "the same archive is there, and record {sequence} of it is {here}, not {there}: the two have gone \
         different ways; name an empty place"
    )
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
