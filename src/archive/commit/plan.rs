//! A batch in the making: the rows of puts and deletes, and the figures that they lead to.

use std::collections::HashMap;

use super::super::digests::DigestChange;
use super::super::job::{DeleteJob, Prepared};
use super::Figures;
use crate::error::{Error, Reason, Result};
use crate::key::{self, IndexFacts, NearCopies, Sequence, meta};
use crate::record::{self, Digest, EntryState, Extent, HashEntry, Rows, SourceStats};
use crate::store::Batch;

/// A batch in the making, with the figures that it leads to.
pub(super) struct Plan {
    pub(super) batch: Batch,
    pub(super) figures: Figures,
    pub(super) near: NearCopies,
    /// The figures of sources before the batch.
    pub(super) sources: HashMap<String, SourceStats>,
    /// The figures of sources that the batch changes.
    pub(super) changed_sources: HashMap<String, SourceStats>,
    /// What becomes of table `d`, for those who remember it.
    pub(super) digests: Vec<DigestChange>,
}

impl Plan {
    pub(super) fn take_sequence(&mut self) -> Result<Sequence> {
        let sequence = self.figures.next;
        self.figures.next = sequence
            .checked_add(1)
            .ok_or_else(|| Error::new(Reason::Internal, "the archive has used up all sequences"))?;
        Ok(sequence)
    }

    pub(super) fn add(&mut self, article: Prepared) -> Result<Sequence> {
        let sequence = self.take_sequence()?;
        let Prepared {
            mut facts,
            rows,
            text_bytes,
        } = article;
        if self.near == NearCopies::Off {
            facts.sketch = None;
        }
        self.digests
            .push(DigestChange::Add(sequence, facts.time, Digest::of(&facts)));
        self.figures.totals.article_count += 1;
        self.figures.totals.text_bytes += text_bytes;
        self.figures.totals.stored_bytes += u64::try_from(rows.stored_bytes()).unwrap_or(u64::MAX);
        self.put_record(sequence, rows)?;
        let entry = HashEntry {
            sequence,
            state: EntryState::Stored,
        };
        self.batch.put(key::hash(&facts.id), entry.encode());
        for (key, value) in record::index_rows(&facts, sequence) {
            self.batch.put(key, value);
        }
        let before = self
            .sources
            .get(&facts.source)
            .copied()
            .unwrap_or(SourceStats::EMPTY);
        self.changed_sources
            .entry(facts.source)
            .or_insert(before)
            .add(facts.time);
        Ok(sequence)
    }

    /// Takes away what an article has besides its first row in the log and its row in table `h`.
    pub(super) fn remove(
        &mut self,
        facts: &IndexFacts,
        sequence: Sequence,
        extent: Extent,
        text_bytes: u64,
    ) {
        self.digests.push(DigestChange::Remove(sequence));
        for row in 1..extent.row_count {
            self.batch.remove(key::log_row(sequence, row));
        }
        facts
            .rows(sequence)
            .into_iter()
            .for_each(|row| self.batch.remove(row));
        let totals = &mut self.figures.totals;
        totals.article_count = totals.article_count.saturating_sub(1);
        totals.text_bytes = totals.text_bytes.saturating_sub(text_bytes);
        totals.stored_bytes = totals.stored_bytes.saturating_sub(extent.stored_bytes);
    }

    pub(super) fn uncount_deleted(&mut self) {
        let count = &mut self.figures.totals.deleted_count;
        *count = count.saturating_sub(1);
    }

    /// Adds the deletion of the article at `article`, and leaves a tombstone in its place.
    pub(super) fn delete(&mut self, job: &DeleteJob, article: Sequence) -> Result<Sequence> {
        let sequence = self.take_sequence()?;
        let [deletion, tombstone] =
            record::encode_delete(job.id, job.now, &job.reason, article, sequence)?;
        self.put_record(sequence, deletion)?;
        self.put_record(article, tombstone)?;
        let entry = HashEntry {
            sequence: article,
            state: EntryState::Deleted,
        };
        self.batch.put(key::hash(&job.id), entry.encode());
        self.figures.totals.deleted_count += 1;
        Ok(sequence)
    }

    fn put_record(&mut self, sequence: Sequence, rows: Rows) -> Result<()> {
        put_rows(&mut self.batch, sequence, rows)
    }

    /// The batch with the figures in it.
    pub(super) fn finish(mut self) -> Batch {
        for (name, stats) in self.changed_sources {
            if stats.article_count == 0 {
                self.batch.remove(meta::source(&name));
            } else {
                self.batch.put(meta::source(&name), stats.encode());
            }
        }
        self.figures.put(&mut self.batch);
        self.batch
    }
}

/// Adds the rows of a record to a batch.
pub(super) fn put_rows(batch: &mut Batch, sequence: Sequence, rows: Rows) -> Result<()> {
    for (row, value) in rows.into_values().into_iter().enumerate() {
        let row = u16::try_from(row)
            .map_err(|_| Error::new(Reason::Internal, format!("a record of {row} rows")))?;
        batch.put(key::log_row(sequence, row), value);
    }
    Ok(())
}
