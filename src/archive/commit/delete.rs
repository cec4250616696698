//! The writer's part in a delete: what an article has in the indexes and the figures goes.

use std::collections::HashMap;

use super::super::job::{Delete, DeleteJob, DeleteOutcome};
use super::super::reader;
use super::Writer;
use super::plan::Plan;
use crate::article::Article;
use crate::error::Result;
use crate::key::{self, IndexFacts, NearCopies, Sequence, SortTime, meta};
use crate::record::{self, Content, EntryState, Extent, SourceStats};
use crate::store::{Direction, Scan};

impl Writer {
    /// Deletes an article.
    pub(super) async fn delete(&mut self, job: DeleteJob) {
        let result = self.commit_delete(&job).await;
        // The caller may have gone; the article is deleted all the same.
        let _ = job.done.send(result);
    }

    async fn commit_delete(&mut self, job: &DeleteJob) -> Result<Delete> {
        self.check_writable()?;
        let reader = self.reader();
        let entry = reader
            .entry(&job.id)
            .await?
            .ok_or_else(|| reader::not_found(job.id))?;
        let head = reader.head(entry.sequence).await?;
        let extent = record::extent(entry.sequence, &head)?;
        let stored = reader.complete(entry.sequence, head).await?;
        let mut was_deleted = false;
        let article = match stored.content {
            Content::Article(article) if stored.id == job.id => Some(article),
            // There is no text left to delete, but the id is kept out from now on.
            Content::Quarantine { state, .. } if stored.id == job.id => {
                was_deleted = state == EntryState::Deleted;
                None
            }
            Content::Tombstone { deletion, reason } if stored.id == job.id => {
                return Ok(Delete {
                    id: job.id,
                    outcome: DeleteOutcome::AlreadyDeleted,
                    sequence: deletion,
                    deleted_at: stored.archived_at,
                    reason,
                });
            }
            Content::Article(_)
            | Content::Tombstone { .. }
            | Content::Deletion { .. }
            | Content::Quarantine { .. } => {
                return Err(reader::wrong_record(&job.id, entry.sequence));
            }
        };
        let mut plan = self.plan(HashMap::new());
        if let Some(article) = article {
            let facts = IndexFacts::of(&article, job.id, NearCopies::Off);
            self.unindex(&mut plan, &facts, entry.sequence, extent, &article)
                .await?;
        } else {
            self.drop_quarantined(&mut plan, entry.sequence).await?;
        }
        if was_deleted {
            // What is left of a delete that lost both its records was counted as one.
            plan.uncount_deleted();
        }
        let sequence = plan.delete(job, entry.sequence)?;
        self.write(plan).await?;
        self.metrics.deleted.inc();
        Ok(Delete {
            id: job.id,
            outcome: DeleteOutcome::Deleted,
            sequence,
            deleted_at: job.now,
            reason: job.reason.clone(),
        })
    }

    /// Drops what was kept of a damaged record: its article is stored anew, or deleted.
    pub(super) async fn drop_quarantined(&self, plan: &mut Plan, sequence: Sequence) -> Result<()> {
        let scan = Scan {
            range: key::quarantine_range(sequence),
            direction: Direction::Ascending,
            rows_max: usize::from(u16::MAX),
            bytes_max: usize::MAX,
        };
        let kept = self.store.scan_many(vec![scan]).await?;
        let rows = kept.into_iter().flat_map(|chunk| chunk.rows);
        rows.for_each(|row| plan.batch.remove(row.key.to_vec()));
        Ok(())
    }

    /// Takes an article out of indexes and figures.
    pub(super) async fn unindex(
        &self,
        plan: &mut Plan,
        facts: &IndexFacts,
        sequence: Sequence,
        extent: Extent,
        article: &Article,
    ) -> Result<()> {
        let stats = self.stats_without(facts, sequence).await?;
        plan.changed_sources.insert(facts.source.clone(), stats);
        let text_bytes = u64::try_from(article.text_bytes()).unwrap_or(u64::MAX);
        plan.remove(facts, sequence, extent, text_bytes);
        Ok(())
    }

    /// The figures of a source once the article at `sequence` is gone.
    async fn stats_without(&self, facts: &IndexFacts, sequence: Sequence) -> Result<SourceStats> {
        let key = meta::source(&facts.source);
        let value = self.store.get_many(vec![key]).await?.pop().flatten();
        let mut stats =
            value.map_or(Ok(SourceStats::EMPTY), |value| SourceStats::decode(&value))?;
        stats.article_count = stats.article_count.saturating_sub(1);
        let prefix = key::source_prefix(&facts.source);
        // Of two rows at each end, one is not the article's own.
        let end = |direction| Scan {
            range: key::dated(prefix.clone(), SortTime::first_dated(), 0)..key::prefix_end(&prefix),
            direction,
            rows_max: 2,
            bytes_max: self.limits.group_bytes_max,
        };
        let scans = vec![end(Direction::Ascending), end(Direction::Descending)];
        let mut times = self.store.scan_many(scans).await?.into_iter().map(|chunk| {
            let dates = chunk
                .rows
                .iter()
                .filter_map(|row| key::parse_dated(&row.key));
            let mut others = dates.filter(|(_, found)| *found != sequence);
            others.next().map_or(SortTime::UNDATED, |(time, _)| time)
        });
        stats.first = times.next().unwrap_or(SortTime::UNDATED);
        stats.last = times.next().unwrap_or(SortTime::UNDATED);
        Ok(stats)
    }
}
