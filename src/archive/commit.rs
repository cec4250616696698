//! The writer: the only place that builds a batch. It takes jobs in order, gathers puts into groups
//! while the group before is being synced, and answers each caller when its rows are durable. Where
//! that takes long, several groups are on their way, in order.

mod flight;
mod known;
mod mend;
mod plan;
mod restore;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub(super) use self::flight::ON_THEIR_WAY_MAX;
use self::flight::{Caller, Flight, Flights, Written, answer};
pub(super) use self::mend::stored_snapshot;
use self::plan::Plan;
use super::backup::ArchiveId;
use super::digests::Digests;
use super::job::{Delete, DeleteJob, DeleteOutcome, Job, Prepared, Put, PutJob, PutOutcome};
use super::limits::Limits;
use super::reader::{self, Reader};
use crate::article::{Article, ContentHash};
use crate::error::Result;
use crate::key::{self, IndexFacts, NearCopies, Sequence, SortTime, meta};
use crate::metrics::Metrics;
use crate::record::{self, Content, Dictionaries, EntryState, Extent, SourceStats, Totals};
use crate::store::{Batch, Direction, Poison, Scan, Store};

/// The batch that begins an archive, or a repair of one whose figures are lost, of which nobody knows
/// what table `d` holds.
pub(super) fn first_batch(
    archive_id: ArchiveId,
    figures: Figures,
    (format, near): (u8, Option<NearCopies>),
) -> Batch {
    let mut batch = near.map_or_else(unknown_digests_batch, |near| format_batch(format, near));
    batch.put(meta::format(), vec![format]);
    batch.put(meta::archive_id(), archive_id.to_vec());
    figures.put(&mut batch);
    batch
}

/// The batch that says what the rows of an archive are like.
pub(super) fn format_batch(format: u8, near: NearCopies) -> Batch {
    let mut batch = Batch::new();
    batch.put(meta::format(), vec![format]);
    batch.put(meta::near_copies(), record::encode_near_copies(near));
    batch
}

/// The batch that says that nobody knows what table `d` holds.
pub(super) fn unknown_digests_batch() -> Batch {
    let mut batch = Batch::new();
    batch.remove(meta::near_copies());
    batch
}

/// The batch that gives an id to an archive without one.
pub(super) fn id_batch(archive_id: ArchiveId) -> Batch {
    let mut batch = Batch::new();
    batch.put(meta::archive_id(), archive_id.to_vec());
    batch
}

/// A batch with the digests among the index rows of some articles.
pub(super) fn digests_batch(rows: Vec<(Vec<u8>, Vec<u8>)>) -> Batch {
    let mut batch = Batch::new();
    rows.into_iter()
        .filter(|(_, value)| !value.is_empty())
        .for_each(|(key, value)| batch.put(key, value));
    batch
}

/// The figures of the whole archive that the next group starts from. Changed only after its batch
/// is written; if it then does not become durable, there is no next group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Figures {
    pub(super) next: Sequence,
    pub(super) totals: Totals,
}

impl Figures {
    fn put(self, batch: &mut Batch) {
        batch.put(meta::next_sequence(), self.next.to_be_bytes().to_vec());
        batch.put(meta::totals(), self.totals.encode());
    }
}

/// The single writer.
#[derive(Debug)]
pub(super) struct Writer {
    store: Arc<dyn Store>,
    limits: Limits,
    metrics: Arc<Metrics>,
    committed: watch::Sender<Sequence>,
    digests: Arc<Digests>,
    dictionaries: Dictionaries,
    figures: Figures,
    near: NearCopies,
    /// Set by the first failed write. The store refuses later ones by itself, but what needs no
    /// write would still be answered from rows that may not be durable: an article whose sync
    /// failed is no duplicate when it is sent again.
    poison: Arc<Poison>,
}

impl Writer {
    /// A writer for an archive that was just opened; it tells `committed` and `digests` what it
    /// wrote.
    pub(super) fn new(
        store: Arc<dyn Store>,
        limits: Limits,
        metrics: Arc<Metrics>,
        (committed, digests, dictionaries): (watch::Sender<Sequence>, Arc<Digests>, Dictionaries),
        (figures, near): (Figures, NearCopies),
        poison: Arc<Poison>,
    ) -> Self {
        Self {
            store,
            limits,
            metrics,
            committed,
            digests,
            dictionaries,
            figures,
            near,
            poison,
        }
    }

    fn reader(&self) -> Reader<'_> {
        Reader::new(&*self.store, &self.metrics, &self.dictionaries)
    }

    /// The start of a batch.
    fn plan(&self, sources: HashMap<String, SourceStats>) -> Plan {
        Plan {
            batch: Batch::new(),
            figures: self.figures,
            near: self.near,
            sources,
            changed_sources: HashMap::new(),
            digests: Vec::new(),
        }
    }

    /// Works until `stop`, then finishes what is queued.
    pub(super) async fn run(mut self, mut jobs: mpsc::Receiver<Job>, stop: CancellationToken) {
        let mut next_job = None;
        let mut flights = Flights::default();
        loop {
            if !flights.has_room() {
                self.land_one(&mut flights).await;
                continue;
            }
            let job = if next_job.is_some() {
                next_job.take()
            } else {
                tokio::select! {
                    biased;
                    Some((flight, result)) = flights.next() => {
                        self.acknowledge(flight, result);
                        continue;
                    }
                    () = stop.cancelled(), if !jobs.is_closed() => {
                        jobs.close();
                        continue;
                    }
                    job = jobs.recv() => job,
                }
            };
            if let Some(Job::Put(first)) = job {
                let group;
                (group, next_job) = gather(*first, &mut jobs, &self.limits);
                self.put_group(group, &mut flights).await;
                continue;
            }
            // Everything else is done alone.
            while self.land_one(&mut flights).await {}
            match job {
                None => return,
                Some(job) => self.work_alone(job).await,
            }
        }
    }

    /// Waits for the first group on its way. Returns whether there was one.
    async fn land_one(&mut self, flights: &mut Flights) -> bool {
        let Some((flight, result)) = flights.next().await else {
            return false;
        };
        self.acknowledge(flight, result);
        true
    }

    async fn work_alone(&mut self, job: Job) {
        match job {
            Job::Put(job) => {
                let mut flights = Flights::default();
                self.put_group(vec![*job], &mut flights).await;
                self.land_one(&mut flights).await;
            }
            Job::Delete(job) => self.delete(*job).await,
            // Of these, who asked may have gone; what is done stays done.
            Job::Repair(now, done) => drop(done.send(self.repair(now).await)),
            Job::Snapshot(done) => drop(done.send(self.snapshot().await)),
            Job::Restore(work, done) => drop(done.send(self.restore(work).await)),
            Job::Scrubbed(result, done) => drop(done.send(self.note_scrub(result).await)),
            Job::Dictionary(dictionary, done) => {
                drop(done.send(self.keep_dictionary(dictionary).await));
            }
        }
    }

    async fn put_group(&mut self, group: Vec<PutJob>, flights: &mut Flights) {
        let split = |job: PutJob| (job.prepared, (job.done, job.room));
        let (articles, callers): (Vec<_>, Vec<Caller>) = group.into_iter().map(split).unzip();
        match self.submit_puts(articles).await {
            Ok((puts, written)) => flights.push(Flight {
                written,
                puts,
                callers,
            }),
            Err(error) => answer(callers, std::iter::repeat(Err(error))),
        }
    }

    /// Answers a group that is durable, or is not.
    fn acknowledge(&mut self, flight: Flight, result: Result<()>) {
        let published = match flight.written {
            Some(written) => self.publish(written, result),
            None => result,
        };
        match published {
            Ok(()) => {
                self.count(&flight.puts);
                answer(flight.callers, flight.puts.into_iter().map(Ok));
            }
            Err(error) => answer(flight.callers, std::iter::repeat(Err(error))),
        }
    }

    /// Writes a group. Returns its answers, which hold once what was written is durable.
    async fn submit_puts(
        &mut self,
        articles: Vec<Prepared>,
    ) -> Result<(Vec<Put>, Option<Written>)> {
        self.poison.check()?;
        let known = self.known(&articles).await?;
        let mut plan = self.plan(known.sources);
        let mut in_group: HashMap<ContentHash, Sequence> = HashMap::new();
        let mut latest = known.latest;
        let mut puts = Vec::with_capacity(articles.len());
        let mut healed = Vec::new();
        for (article, entry) in articles.into_iter().zip(known.entries) {
            let id = article.id();
            let stored = match entry.map(|entry| (entry.state, entry.sequence)) {
                Some((EntryState::Deleted, sequence)) => Some((sequence, PutOutcome::Deleted)),
                Some((EntryState::Stored, sequence)) => Some((sequence, PutOutcome::Duplicate)),
                // What is quarantined is healed by storing it anew.
                Some((EntryState::Quarantined, _)) | None => in_group
                    .get(&id)
                    .map(|sequence| (*sequence, PutOutcome::Duplicate)),
            };
            let (sequence, outcome) = if let Some(known) = stored {
                known
            } else {
                let url = article.facts.url;
                healed.extend(entry.map(|entry| entry.sequence));
                let sequence = plan.add(article)?;
                in_group.insert(id, sequence);
                let previous = url.and_then(|url| latest.insert(url, id));
                let outcome = previous.map_or(PutOutcome::Created, |previous| {
                    PutOutcome::Revision { previous }
                });
                (sequence, outcome)
            };
            puts.push(Put {
                id,
                sequence,
                outcome,
            });
        }
        for sequence in healed {
            self.drop_quarantined(&mut plan, sequence).await?;
        }
        Ok((puts, self.submit(plan).await?))
    }

    /// Writes a plan and waits until it is durable.
    async fn write(&mut self, plan: Plan) -> Result<()> {
        let Some(mut written) = self.submit(plan).await? else {
            return Ok(());
        };
        let result = (&mut written.commit).await;
        self.publish(written, result)
    }

    /// Writes a plan, and makes it the state to go on from. There is nothing to wait for if it
    /// changes nothing.
    async fn submit(&mut self, mut plan: Plan) -> Result<Option<Written>> {
        if plan.batch.changes().is_empty() {
            return Ok(None);
        }
        let figures = plan.figures;
        let digests = std::mem::take(&mut plan.digests);
        let started = Instant::now();
        let submitted = self.store.submit(plan.finish()).await;
        let commit = submitted.inspect_err(|error| self.poison.set(error))?;
        self.figures = figures;
        Ok(Some(Written {
            commit,
            started,
            last: figures.next - 1,
            digests,
        }))
    }

    /// Shows readers what is durable.
    fn publish(&mut self, written: Written, result: Result<()>) -> Result<()> {
        result.inspect_err(|error| self.poison.set(error))?;
        let elapsed = written.started.elapsed();
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        self.metrics.commit_seconds.observe(elapsed.as_secs_f64());
        self.metrics.commit_micros.inc_by(micros);
        self.metrics.commits.inc();
        self.digests.apply(written.digests);
        self.committed.send_replace(written.last);
        Ok(())
    }

    fn count(&self, puts: &[Put]) {
        let count = u32::try_from(puts.len()).unwrap_or(u32::MAX);
        self.metrics.group_articles.observe(count.into());
        for put in puts {
            let counter = match put.outcome {
                PutOutcome::Created => &self.metrics.created,
                PutOutcome::Duplicate => &self.metrics.duplicate,
                PutOutcome::Revision { .. } => &self.metrics.revised,
                PutOutcome::Deleted => &self.metrics.put_deleted,
            };
            counter.inc();
        }
    }

    async fn delete(&mut self, job: DeleteJob) {
        let result = self.commit_delete(&job).await;
        // The caller may have gone; the article is deleted all the same.
        let _ = job.done.send(result);
    }

    async fn commit_delete(&mut self, job: &DeleteJob) -> Result<Delete> {
        self.poison.check()?;
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
    async fn drop_quarantined(&self, plan: &mut Plan, sequence: Sequence) -> Result<()> {
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
    async fn unindex(
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

/// Takes further puts from the queue, without waiting, until the group is full or something else
/// comes, which is returned to be done next.
fn gather(
    first: PutJob,
    jobs: &mut mpsc::Receiver<Job>,
    limits: &Limits,
) -> (Vec<PutJob>, Option<Job>) {
    let mut bytes = first.prepared.stored_bytes();
    let mut group = vec![first];
    while group.len() < limits.group_articles_max && bytes < limits.group_bytes_max {
        match jobs.try_recv() {
            Ok(Job::Put(job)) => {
                bytes += job.prepared.stored_bytes();
                group.push(*job);
            }
            Ok(other) => return (group, Some(other)),
            Err(_) => break,
        }
    }
    (group, None)
}
