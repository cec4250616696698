//! The writer: the only place that builds a batch. It takes jobs in order, gathers puts into groups
//! while the group before is being synced, and answers each caller when its rows are durable.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::job::{Delete, DeleteJob, DeleteOutcome, Job, Prepared, Put, PutJob, PutOutcome};
use super::limits::Limits;
use super::reader::{self, Reader};
use crate::article::{ContentHash, Timestamp};
use crate::error::{Error, Reason, Result};
use crate::key::{self, IndexFacts, Sequence, ShortHash, SortTime, meta};
use crate::metrics::Metrics;
use crate::record::{self, Content, Extent, HashEntry, Rows, SourceStats, Totals};
use crate::store::{Batch, Direction, Durability, Poison, Scan, Store};

/// Adds the figures of the whole archive to a batch.
pub(super) fn put_figures(batch: &mut Batch, next: Sequence, totals: Totals) {
    batch.put(meta::next_sequence(), next.to_be_bytes().to_vec());
    batch.put(meta::totals(), totals.encode());
}

/// The state that the next group starts from. Changed only after its batch is durable.
#[derive(Clone, Copy, Debug)]
struct Figures {
    next: Sequence,
    totals: Totals,
}

/// The single writer.
#[derive(Debug)]
pub(super) struct Writer {
    store: Arc<dyn Store>,
    limits: Limits,
    metrics: Arc<Metrics>,
    committed: watch::Sender<Sequence>,
    figures: Figures,
    /// Set by the first failed write. The store refuses later ones by itself, but what needs no
    /// write would still be answered from rows that may not be durable: an article whose sync
    /// failed is no duplicate when it is sent again.
    poison: Poison,
}

impl Writer {
    pub(super) fn new(
        store: Arc<dyn Store>,
        limits: Limits,
        metrics: Arc<Metrics>,
        committed: watch::Sender<Sequence>,
        next: Sequence,
        totals: Totals,
    ) -> Self {
        Self {
            store,
            limits,
            metrics,
            committed,
            figures: Figures { next, totals },
            poison: Poison::default(),
        }
    }

    /// Works until `stop`, then finishes what is queued.
    pub(super) async fn run(mut self, mut jobs: mpsc::Receiver<Job>, stop: CancellationToken) {
        let mut next_job = None;
        loop {
            let job = if next_job.is_some() {
                next_job.take()
            } else {
                tokio::select! {
                    job = jobs.recv() => job,
                    () = stop.cancelled(), if !jobs.is_closed() => {
                        jobs.close();
                        continue;
                    }
                }
            };
            match job {
                None => return,
                Some(Job::Delete(job)) => self.delete(*job).await,
                Some(Job::Put(first)) => {
                    let group;
                    (group, next_job) = gather(*first, &mut jobs, &self.limits);
                    self.put_group(group).await;
                }
            }
        }
    }

    async fn put_group(&mut self, group: Vec<PutJob>) {
        let split = |job: PutJob| (job.prepared, (job.done, job.room));
        let (articles, callers): (Vec<_>, Vec<_>) = group.into_iter().map(split).unzip();
        let answers = match self.commit_puts(articles).await {
            Ok(puts) => puts.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error); callers.len()],
        };
        for ((done, _room), answer) in callers.into_iter().zip(answers) {
            // The caller may have gone; the article is stored all the same.
            let _ = done.send(answer);
        }
    }

    async fn commit_puts(&mut self, articles: Vec<Prepared>) -> Result<Vec<Put>> {
        self.poison.check()?;
        let known = self.known(&articles).await?;
        let mut plan = Plan::new(self.figures, known.sources);
        let mut in_group: HashMap<ContentHash, Sequence> = HashMap::new();
        let mut latest = known.latest;
        let mut puts = Vec::with_capacity(articles.len());
        for (article, entry) in articles.into_iter().zip(known.entries) {
            let id = article.id();
            let stored = entry.map(|entry| (entry.sequence, entry.deleted));
            let stored = stored.or_else(|| in_group.get(&id).map(|sequence| (*sequence, false)));
            let (sequence, outcome) = match stored {
                Some((sequence, true)) => (sequence, PutOutcome::Deleted),
                Some((sequence, false)) => (sequence, PutOutcome::Duplicate),
                None => {
                    let url = article.facts.url;
                    let sequence = plan.add(article)?;
                    in_group.insert(id, sequence);
                    let previous = url.and_then(|url| latest.insert(url, id));
                    let outcome = previous.map_or(PutOutcome::Created, |previous| {
                        PutOutcome::Revision { previous }
                    });
                    (sequence, outcome)
                }
            };
            puts.push(Put {
                id,
                sequence,
                outcome,
            });
        }
        self.write(plan).await?;
        self.count(&puts);
        Ok(puts)
    }

    /// Reads, in two rounds for the whole group, all that decides what becomes of its articles.
    async fn known(&self, articles: &[Prepared]) -> Result<Known> {
        let mut keys: Vec<Vec<u8>> = articles.iter().map(|a| key::hash(&a.facts.id)).collect();
        let mut names: Vec<&str> = articles.iter().map(|a| a.facts.source.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        keys.extend(names.iter().map(|name| meta::source(name)));
        let mut values = self.store.get_many(keys).await?;
        let stats = values.split_off(articles.len());
        let decode_entry =
            |value: Option<bytes::Bytes>| value.map(|v| HashEntry::decode(&v)).transpose();
        let entries = values
            .into_iter()
            .map(decode_entry)
            .collect::<Result<Vec<_>>>()?;
        let mut sources = HashMap::new();
        for (name, value) in names.into_iter().zip(stats) {
            let stats =
                value.map_or(Ok(SourceStats::EMPTY), |value| SourceStats::decode(&value))?;
            sources.insert(name.to_owned(), stats);
        }
        let new = articles
            .iter()
            .zip(&entries)
            .filter(|(_, entry)| entry.is_none());
        let mut urls: Vec<ShortHash> = new.filter_map(|(article, _)| article.facts.url).collect();
        urls.sort_unstable();
        urls.dedup();
        let latest = self.latest_revisions(&urls).await?;
        Ok(Known {
            entries,
            sources,
            latest,
        })
    }

    /// The id of the latest article at each URL that has one.
    async fn latest_revisions(
        &self,
        urls: &[ShortHash],
    ) -> Result<HashMap<ShortHash, ContentHash>> {
        let last = |url: &ShortHash| Scan {
            range: key::prefix_range(&key::url_prefix(*url)),
            direction: Direction::Descending,
            rows_max: 1,
            bytes_max: self.limits.group_bytes_max,
        };
        let chunks = self
            .store
            .scan_many(urls.iter().map(last).collect())
            .await?;
        let mut found = Vec::new();
        for (url, chunk) in urls.iter().zip(chunks) {
            let sequence = chunk
                .rows
                .first()
                .and_then(|row| key::parse_sequence(&row.key));
            found.extend(sequence.map(|sequence| (*url, sequence)));
        }
        let keys = found
            .iter()
            .map(|(_, sequence)| key::log(*sequence))
            .collect();
        let heads = self.store.get_many(keys).await?;
        let mut latest = HashMap::new();
        for ((url, sequence), head) in found.into_iter().zip(heads) {
            // An old revision that is lost must not keep new ones out of the archive. Its reader
            // will be told; here only its id is missing from the answer.
            let head = head.ok_or_else(|| reader::no_record(sequence));
            match head.and_then(|head| record::peek_id(sequence, &head)) {
                Ok(id) => {
                    latest.insert(url, id);
                }
                Err(error) => tracing::error!(%error, "the latest revision of a URL is damaged"),
            }
        }
        Ok(latest)
    }

    /// Writes a plan, and only then makes it the state to go on from.
    async fn write(&mut self, plan: Plan) -> Result<()> {
        if plan.batch.changes().is_empty() {
            return Ok(());
        }
        let figures = plan.figures;
        let started = Instant::now();
        self.store
            .write(plan.finish(), Durability::Synced)
            .await
            .inspect_err(|error| self.poison.set(error))?;
        let micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.metrics.commit_micros.add(micros);
        self.metrics.commits.add(1);
        self.figures = figures;
        self.committed.send_replace(figures.next - 1);
        Ok(())
    }

    fn count(&self, puts: &[Put]) {
        for put in puts {
            let counter = match put.outcome {
                PutOutcome::Created => &self.metrics.created,
                PutOutcome::Duplicate => &self.metrics.duplicate,
                PutOutcome::Revision { .. } => &self.metrics.revised,
                PutOutcome::Deleted => &self.metrics.put_deleted,
            };
            counter.add(1);
        }
    }

    async fn delete(&mut self, job: DeleteJob) {
        let result = self.commit_delete(&job).await;
        // The caller may have gone; the article is deleted all the same.
        let _ = job.done.send(result);
    }

    async fn commit_delete(&mut self, job: &DeleteJob) -> Result<Delete> {
        self.poison.check()?;
        let reader = Reader::new(&*self.store, self.metrics.as_ref());
        let entry = reader
            .entry(&job.id)
            .await?
            .ok_or_else(|| reader::not_found(job.id))?;
        let head = reader.head(entry.sequence).await?;
        let extent = record::extent(entry.sequence, &head)?;
        let stored = reader.complete(entry.sequence, head).await?;
        let article = match stored.content {
            Content::Article(article) if stored.id == job.id => article,
            Content::Tombstone { deletion, reason } if entry.deleted && stored.id == job.id => {
                return Ok(Delete {
                    id: job.id,
                    outcome: DeleteOutcome::AlreadyDeleted,
                    sequence: deletion,
                    deleted_at: stored.archived_at,
                    reason,
                });
            }
            Content::Article(_) | Content::Tombstone { .. } | Content::Deletion { .. } => {
                return Err(reader::wrong_record(&job.id, entry.sequence));
            }
        };
        let facts = IndexFacts::of(&article, job.id);
        let stats = self.stats_without(&facts, entry.sequence).await?;
        let mut plan = Plan::new(self.figures, HashMap::new());
        plan.changed_sources.insert(facts.source.clone(), stats);
        let deleted = Deleted {
            facts: &facts,
            sequence: entry.sequence,
            extent,
            text_bytes: u64::try_from(article.text_bytes()).unwrap_or(u64::MAX),
        };
        let sequence = plan.delete(&deleted, &job.reason, job.now)?;
        self.write(plan).await?;
        self.metrics.deleted.add(1);
        Ok(Delete {
            id: job.id,
            outcome: DeleteOutcome::Deleted,
            sequence,
            deleted_at: job.now,
            reason: job.reason.clone(),
        })
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

/// What the archive already knows of a group of articles.
struct Known {
    entries: Vec<Option<HashEntry>>,
    sources: HashMap<String, SourceStats>,
    latest: HashMap<ShortHash, ContentHash>,
}

/// An article that goes.
struct Deleted<'a> {
    facts: &'a IndexFacts,
    sequence: Sequence,
    extent: Extent,
    text_bytes: u64,
}

/// A batch in the making, with the figures that it leads to.
struct Plan {
    batch: Batch,
    figures: Figures,
    /// The figures of sources before the batch.
    sources: HashMap<String, SourceStats>,
    /// The figures of sources that the batch changes.
    changed_sources: HashMap<String, SourceStats>,
}

impl Plan {
    fn new(figures: Figures, sources: HashMap<String, SourceStats>) -> Self {
        Self {
            batch: Batch::new(),
            figures,
            sources,
            changed_sources: HashMap::new(),
        }
    }

    fn take_sequence(&mut self) -> Result<Sequence> {
        let sequence = self.figures.next;
        self.figures.next = sequence
            .checked_add(1)
            .ok_or_else(|| Error::new(Reason::Internal, "the archive has used up all sequences"))?;
        Ok(sequence)
    }

    fn add(&mut self, article: Prepared) -> Result<Sequence> {
        let sequence = self.take_sequence()?;
        let Prepared {
            facts,
            rows,
            text_bytes,
        } = article;
        self.figures.totals.article_count += 1;
        self.figures.totals.text_bytes += text_bytes;
        self.figures.totals.stored_bytes += u64::try_from(rows.stored_bytes()).unwrap_or(u64::MAX);
        self.put_record(sequence, rows)?;
        let entry = HashEntry {
            sequence,
            deleted: false,
        };
        self.batch.put(key::hash(&facts.id), entry.encode());
        facts
            .rows(sequence)
            .into_iter()
            .for_each(|row| self.batch.put(row, Vec::new()));
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

    fn delete(&mut self, deleted: &Deleted<'_>, reason: &str, now: Timestamp) -> Result<Sequence> {
        let sequence = self.take_sequence()?;
        let id = deleted.facts.id;
        let [deletion, tombstone] =
            record::encode_delete(id, now, reason, deleted.sequence, sequence)?;
        self.put_record(sequence, deletion)?;
        self.put_record(deleted.sequence, tombstone)?;
        for row in 1..deleted.extent.row_count {
            self.batch.remove(key::log_row(deleted.sequence, row));
        }
        let entry = HashEntry {
            sequence: deleted.sequence,
            deleted: true,
        };
        self.batch.put(key::hash(&id), entry.encode());
        deleted
            .facts
            .rows(deleted.sequence)
            .into_iter()
            .for_each(|row| self.batch.remove(row));
        let totals = &mut self.figures.totals;
        totals.article_count = totals.article_count.saturating_sub(1);
        totals.deleted_count += 1;
        totals.text_bytes = totals.text_bytes.saturating_sub(deleted.text_bytes);
        totals.stored_bytes = totals
            .stored_bytes
            .saturating_sub(deleted.extent.stored_bytes);
        Ok(sequence)
    }

    fn put_record(&mut self, sequence: Sequence, rows: Rows) -> Result<()> {
        for (row, value) in rows.into_values().into_iter().enumerate() {
            let row = u16::try_from(row)
                .map_err(|_| Error::new(Reason::Internal, format!("a record of {row} rows")))?;
            let key = if row == 0 {
                key::log(sequence)
            } else {
                key::log_row(sequence, row)
            };
            self.batch.put(key, value);
        }
        Ok(())
    }

    /// The batch with the figures in it.
    fn finish(mut self) -> Batch {
        for (name, stats) in self.changed_sources {
            if stats.article_count == 0 {
                self.batch.remove(meta::source(&name));
            } else {
                self.batch.put(meta::source(&name), stats.encode());
            }
        }
        put_figures(&mut self.batch, self.figures.next, self.figures.totals);
        self.batch
    }
}

/// Takes further puts from the queue, without waiting, until the group is full or a delete comes,
/// which is returned to be done next.
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
            Ok(delete @ Job::Delete(_)) => return (group, Some(delete)),
            Err(_) => break,
        }
    }
    (group, None)
}
