//! The writer: the only place that builds a batch. It takes jobs in order, gathers puts into groups
//! while the group before is being synced, and answers each caller when its rows are durable. Where
//! that takes long, several groups are on their way, in order.

mod delete;
mod flight;
mod known;
mod mend;
mod plan;
mod restore;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub(super) use self::flight::ON_THEIR_WAY_MAX;
use self::flight::{Caller, Flight, Flights, Waiting, Written, answer};
pub(super) use self::mend::stored_snapshot;
use self::plan::Plan;
use super::backup::{ArchiveId, RestoreStep};
use super::digests::Digests;
use super::job::{Job, Prepared, Put, PutJob, PutOutcome};
use super::limits::Limits;
use super::reader::Reader;
use crate::article::ContentHash;
use crate::error::{Error, Reason, Result};
use crate::key::{NearCopies, Sequence, meta};
use crate::metrics::Metrics;
use crate::record::{self, Dictionaries, EntryState, SourceStats, Totals};
use crate::store::{Batch, Poison, Store};

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

/// After what time it is worth while to send what an archive refused that was moved: a server of the
/// new place may answer then.
const MOVED_RETRY_AFTER: Duration = Duration::from_secs(1);

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
    /// Where the archive was moved to while it is open: it takes no more writes.
    moved: Option<String>,
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
            moved: None,
        }
    }

    /// Fails if nothing may be written any more.
    fn check_writable(&self) -> Result<()> {
        self.poison.check()?;
        self.check_not_moved()
    }

    fn check_not_moved(&self) -> Result<()> {
        self.moved.as_deref().map_or(Ok(()), |to| Err(moved(to)))
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
            if let Some(Job::Restore(RestoreStep::Records(records), done)) = job {
                self.copy_records(records, done, &mut flights).await;
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
            Job::Restore(step, done) => drop(done.send(self.mark(step).await)),
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
                record_count: callers.len(),
                waiting: Waiting::Puts(puts, callers),
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
        match (flight.waiting, published) {
            (Waiting::Puts(puts, callers), Ok(())) => {
                self.count(&puts);
                answer(callers, puts.into_iter().map(Ok));
            }
            (Waiting::Puts(_, callers), Err(error)) => {
                answer(callers, std::iter::repeat(Err(error)));
            }
            // Who copies may have gone, as who puts may.
            (Waiting::Copy(done), result) => drop(done.map(|done| done.send(result))),
        }
    }

    /// Writes a group. Returns its answers, which hold once what was written is durable.
    async fn submit_puts(
        &mut self,
        articles: Vec<Prepared>,
    ) -> Result<(Vec<Put>, Option<Written>)> {
        self.check_writable()?;
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
}

/// The answer to a write into an archive that was moved.
pub(super) fn moved(to: &str) -> Error {
    let what = format!("the archive was moved to {to} and takes no more writes here");
    Error::new(Reason::ArchiveMoved, what).with_retry_after(MOVED_RETRY_AFTER)
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
