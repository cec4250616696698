//! The writer's part in a restore: records are written at the sequences that they had.

use std::collections::HashMap;

use super::super::backup::{RestoreStep, Restored, may_be_same};
use super::Writer;
use super::plan::{Plan, put_rows};
use crate::article::ContentHash;
use crate::error::{Error, Reason, Result};
use crate::key::{self, IndexFacts, NearCopies, Sequence, meta};
use crate::record::{self, Content, EntryState, HashEntry, Record, UNKNOWN_ID};
use crate::store::{Batch, Durability};

/// Why an article is not at the place that an older backup had it at.
const SET_ASIDE_SINCE: &str =
    "record was set aside after a backup was taken, and stored again later";

impl Writer {
    /// Does one step of a restore.
    pub(super) async fn restore(&mut self, step: RestoreStep) -> Result<()> {
        self.poison.check()?;
        match step {
            RestoreStep::Begin { archive_id, last } => {
                let mut batch = Batch::new();
                batch.put(meta::archive_id(), archive_id.to_vec());
                batch.put(meta::restoring(), last.to_be_bytes().to_vec());
                self.write_marks(batch).await
            }
            RestoreStep::End => {
                let mut batch = Batch::new();
                batch.remove(meta::restoring());
                self.write_marks(batch).await
            }
            RestoreStep::Records(records) => {
                let mut articles = Vec::new();
                for record in records {
                    match record {
                        Restored::Article(article) => articles.push(*article),
                        Restored::Other(record) => return self.restore_other(*record).await,
                    }
                }
                for article in &articles {
                    self.displace(article.id()).await?;
                }
                let known = self.known(&articles).await?;
                let mut plan = self.plan(known.sources);
                for article in articles {
                    plan.add(article)?;
                }
                self.write(plan).await
            }
        }
    }

    async fn write_marks(&self, batch: Batch) -> Result<()> {
        let written = self.store.write(batch, Durability::Synced).await;
        written.inspect_err(|error| self.poison.set(error))
    }

    /// Writes a record that is no article at the next sequence.
    async fn restore_other(&mut self, record: Record) -> Result<()> {
        if matches!(record.content, Content::Tombstone { .. }) {
            self.displace(record.id).await?;
        }
        let mut plan = self.plan(HashMap::new());
        let sequence = plan.take_sequence()?;
        let Record {
            id,
            archived_at,
            content,
        } = record;
        match content {
            Content::Deletion { article, reason } => {
                self.check_deleted(article, id).await?;
                let [deletion, tombstone] =
                    record::encode_delete(id, archived_at, &reason, article, sequence)?;
                put_rows(&mut plan.batch, sequence, deletion)?;
                if self.unwrite(&mut plan, article).await? {
                    put_rows(&mut plan.batch, article, tombstone)?;
                    put_entry(&mut plan, &id, article, EntryState::Deleted);
                    plan.figures.totals.deleted_count += 1;
                }
            }
            Content::Tombstone { deletion, reason } => {
                let [_, tombstone] =
                    record::encode_delete(id, archived_at, &reason, sequence, deletion)?;
                put_rows(&mut plan.batch, sequence, tombstone)?;
                put_entry(&mut plan, &id, sequence, EntryState::Deleted);
                plan.figures.totals.deleted_count += 1;
            }
            Content::Quarantine { state, reason } => {
                let rows = record::encode_quarantine(id, archived_at, state, &reason)?;
                put_rows(&mut plan.batch, sequence, rows)?;
                let reader = self.reader();
                if id != UNKNOWN_ID && reader.entry(&id).await?.is_none() {
                    put_entry(&mut plan, &id, sequence, state);
                }
                if state == EntryState::Deleted {
                    plan.figures.totals.deleted_count += 1;
                }
            }
            Content::Article(_) => {
                return Err(Error::new(
                    Reason::Internal,
                    "an article is no other record",
                ));
            }
        }
        self.write(plan).await
    }

    /// Sets aside what is stored of an article that comes again at a later sequence: in the archive
    /// that the backups are of, its record was damaged, set aside and healed between two of them.
    async fn displace(&mut self, id: ContentHash) -> Result<()> {
        let reader = self.reader();
        let Some(entry) = reader.entry(&id).await? else {
            return Ok(());
        };
        if entry.state != EntryState::Stored {
            return Ok(());
        }
        let stored = reader.record(entry.sequence).await?;
        let mut plan = self.plan(HashMap::new());
        self.unwrite(&mut plan, entry.sequence).await?;
        let rows = record::encode_quarantine(
            id,
            stored.archived_at,
            EntryState::Quarantined,
            SET_ASIDE_SINCE,
        )?;
        put_rows(&mut plan.batch, entry.sequence, rows)?;
        put_entry(&mut plan, &id, entry.sequence, EntryState::Quarantined);
        self.write(plan).await
    }

    /// Checks that a deletion means the article that is at its place.
    async fn check_deleted(&self, article: Sequence, id: ContentHash) -> Result<()> {
        let reader = self.reader();
        let found = record::peek_id(article, &reader.head(article).await?)?;
        if may_be_same(found, id) {
            return Ok(());
        }
        let what = format!(
            "the backup deletes article {id} at sequence {article}, where {found} is; the two have \
             gone different ways"
        );
        Err(Error::new(Reason::BackupMismatch, what))
    }

    /// Takes away what the article at a sequence has. Returns whether a tombstone has to take its
    /// place, which is there already if the backup was taken after the delete.
    async fn unwrite(&self, plan: &mut Plan, article: Sequence) -> Result<bool> {
        let reader = self.reader();
        let head = reader.head(article).await?;
        let extent = record::extent(article, &head)?;
        let stored = reader.complete(article, head).await?;
        match stored.content {
            Content::Article(text) => {
                let facts = IndexFacts::of(&text, stored.id, NearCopies::Off);
                self.unindex(plan, &facts, article, extent, &text).await?;
                Ok(true)
            }
            Content::Quarantine { state, .. } => {
                if state == EntryState::Deleted {
                    plan.uncount_deleted();
                }
                Ok(true)
            }
            Content::Tombstone { .. } | Content::Deletion { .. } => Ok(false),
        }
    }
}

fn put_entry(plan: &mut Plan, id: &ContentHash, sequence: Sequence, state: EntryState) {
    let entry = HashEntry { sequence, state };
    plan.batch.put(key::hash(id), entry.encode());
}
