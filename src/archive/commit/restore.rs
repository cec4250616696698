//! The writer's part in a restore and in a migration: records are written at the sequences that they
//! had, and marks say that an archive is not whole yet, or that it was moved.

use std::collections::{HashMap, HashSet};

use tokio::sync::oneshot;

use super::super::backup::{RestoreStep, Restored, may_be_same};
use super::Writer;
use super::flight::{Flight, Flights, Waiting};
use super::plan::{Plan, put_rows};
use crate::article::ContentHash;
use crate::error::{Error, Reason, Result};
use crate::key::{self, IndexFacts, NearCopies, Sequence, meta};
use crate::record::{self, Content, EntryState, HashEntry, Record, SourceStats, UNKNOWN_ID};
use crate::store::{Batch, Durability};

/// Why an article is not at the place that an older backup had it at.
const SET_ASIDE_SINCE: &str =
    "record was set aside after a backup was taken, and stored again later";

impl Writer {
    /// Sets or takes away the marks of a restore or a migration.
    pub(super) async fn mark(&mut self, step: RestoreStep) -> Result<()> {
        self.poison.check()?;
        let mut batch = Batch::new();
        match step {
            RestoreStep::Begin {
                archive_id,
                last,
                from,
            } => {
                batch.put(meta::archive_id(), archive_id.to_vec());
                batch.put(meta::restoring(), last.to_be_bytes().to_vec());
                if let Some(from) = from {
                    batch.put(meta::migrating(), from.into_bytes());
                    batch.remove(meta::moved());
                }
                self.write_marks(batch).await
            }
            RestoreStep::End => {
                batch.remove(meta::restoring());
                batch.remove(meta::migrating());
                self.write_marks(batch).await
            }
            RestoreStep::Move(to) => {
                batch.put(meta::moved(), to.clone().into_bytes());
                self.write_marks(batch).await?;
                self.moved = Some(to);
                Ok(())
            }
            RestoreStep::Release => {
                batch.remove(meta::restoring());
                batch.remove(meta::migrating());
                batch.remove(meta::moved());
                self.write_marks(batch).await?;
                self.moved = None;
                Ok(())
            }
            RestoreStep::Records(_) => {
                let what = "records are not written as a mark";
                Err(Error::new(Reason::Internal, what))
            }
        }
    }

    async fn write_marks(&self, batch: Batch) -> Result<()> {
        let written = self.store.write(batch, Durability::Synced).await;
        written.inspect_err(|error| self.poison.set(error))
    }

    /// Writes records at the next sequences, and answers when they and all before them are durable.
    pub(super) async fn copy_records(
        &mut self,
        records: Vec<Restored>,
        done: oneshot::Sender<Result<()>>,
        flights: &mut Flights,
    ) {
        match self.submit_records(records, flights).await {
            Ok(()) => flights.push(Flight {
                written: None,
                record_count: 0,
                waiting: Waiting::Copy(Some(done)),
            }),
            // Who copies may have gone.
            Err(error) => drop(done.send(Err(error))),
        }
    }

    async fn submit_records(
        &mut self,
        records: Vec<Restored>,
        flights: &mut Flights,
    ) -> Result<()> {
        self.check_writable()?;
        if let Some(sources) = self.shared_batch(&records).await? {
            let record_count = records.len();
            let mut plan = self.plan(sources);
            for record in records {
                match record {
                    Restored::Article(article) => drop(plan.add(*article)?),
                    Restored::Other(record) => add_mark(&mut plan, *record)?,
                }
            }
            return self.launch(plan, record_count, flights).await;
        }
        for record in records {
            self.submit_record(record, flights).await?;
            while !flights.has_room() {
                self.land_one(flights).await;
            }
        }
        Ok(())
    }

    /// What the sources of some records had before, if all of them can go into one batch: none takes
    /// the place of what is stored, and none changes what the batch itself writes.
    async fn shared_batch(
        &self,
        records: &[Restored],
    ) -> Result<Option<HashMap<String, SourceStats>>> {
        let first = self.figures.next;
        let mut ids = HashSet::new();
        let mut tombstones = HashSet::new();
        let mut deletions = Vec::new();
        for (sequence, restored) in (first..).zip(records) {
            let is_simple = match restored {
                Restored::Article(article) => ids.insert(article.id()),
                Restored::Other(record) => match &record.content {
                    Content::Tombstone { .. } => {
                        tombstones.insert((sequence, record.id));
                        ids.insert(record.id)
                    }
                    Content::Deletion { article, .. } if *article < first => {
                        deletions.push((*article, record.id));
                        true
                    }
                    Content::Deletion { article, .. } => {
                        tombstones.contains(&(*article, record.id))
                    }
                    Content::Quarantine { .. } | Content::Article(_) => false,
                },
            };
            if !is_simple {
                return Ok(None);
            }
        }
        let names = records.iter().filter_map(|restored| match restored {
            Restored::Article(article) => Some(article.facts.source.as_str()),
            Restored::Other(_) => None,
        });
        let (entries, sources) = self.entries_and_sources(ids.into_iter(), names).await?;
        let mut entries = entries.into_iter().flatten();
        if entries.any(|entry| entry.state == EntryState::Stored) {
            return Ok(None);
        }
        Ok(self.are_tombstones(&deletions).await?.then_some(sources))
    }

    /// Whether what some deletions mean has its tombstones already.
    async fn are_tombstones(&self, deletions: &[(Sequence, ContentHash)]) -> Result<bool> {
        let keys = deletions.iter().map(|(article, _)| key::log(*article));
        let heads = self.reader().get_many(keys.collect()).await?;
        Ok(deletions.iter().zip(heads).all(|((article, id), head)| {
            let record = head.map(|head| record::decode(*article, &[head], &self.dictionaries));
            record.is_some_and(|record| {
                record.is_ok_and(|record| {
                    record.id == *id && matches!(record.content, Content::Tombstone { .. })
                })
            })
        }))
    }

    /// Writes a record in a batch of its own, behind one that makes room for it if that is needed.
    async fn submit_record(&mut self, record: Restored, flights: &mut Flights) -> Result<()> {
        let plan = match record {
            Restored::Article(article) => {
                self.displace(article.id(), flights).await?;
                let source = std::iter::once(article.facts.source.as_str());
                let (_, sources) = self.entries_and_sources(std::iter::empty(), source).await?;
                let mut plan = self.plan(sources);
                plan.add(*article)?;
                plan
            }
            Restored::Other(record) => {
                if matches!(record.content, Content::Tombstone { .. }) {
                    self.displace(record.id, flights).await?;
                }
                self.plan_other(*record).await?
            }
        };
        self.launch(plan, 1, flights).await
    }

    async fn launch(
        &mut self,
        plan: Plan,
        record_count: usize,
        flights: &mut Flights,
    ) -> Result<()> {
        let written = self.submit(plan).await?;
        flights.push(Flight {
            written,
            record_count,
            waiting: Waiting::Copy(None),
        });
        Ok(())
    }

    /// A batch with a record that is no article, and with what it changes.
    async fn plan_other(&self, record: Record) -> Result<Plan> {
        let mut plan = self.plan(HashMap::new());
        let Record {
            id,
            archived_at,
            content,
        } = record;
        match content {
            Content::Deletion { article, reason } => {
                self.check_deleted(article, id).await?;
                let sequence = plan.take_sequence()?;
                let [deletion, tombstone] =
                    record::encode_delete(id, archived_at, &reason, article, sequence)?;
                put_rows(&mut plan.batch, sequence, deletion)?;
                if self.unwrite(&mut plan, article).await? {
                    put_rows(&mut plan.batch, article, tombstone)?;
                    put_entry(&mut plan, &id, article, EntryState::Deleted);
                    plan.figures.totals.deleted_count += 1;
                }
            }
            Content::Quarantine { state, reason } => {
                let sequence = plan.take_sequence()?;
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
            content @ (Content::Tombstone { .. } | Content::Article(_)) => {
                let record = Record {
                    id,
                    archived_at,
                    content,
                };
                add_mark(&mut plan, record)?;
            }
        }
        Ok(plan)
    }

    /// Sets aside what is stored of an article that comes again at a later sequence, or was deleted at
    /// one: in the archive that it comes from, its record was damaged, set aside and healed since.
    async fn displace(&mut self, id: ContentHash, flights: &mut Flights) -> Result<()> {
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
        self.launch(plan, 0, flights).await
    }

    /// Checks that a deletion means the article that is at its place.
    async fn check_deleted(&self, article: Sequence, id: ContentHash) -> Result<()> {
        let reader = self.reader();
        let found = record::peek_id(article, &reader.head(article).await?)?;
        if may_be_same(found, id) {
            return Ok(());
        }
        let what = format!(
            "article {id} at sequence {article} was deleted, and {found} is there here; the two \
             archives have gone different ways"
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

/// Adds a tombstone, or the deletion of what is a tombstone already.
fn add_mark(plan: &mut Plan, record: Record) -> Result<()> {
    let sequence = plan.take_sequence()?;
    let (id, time) = (record.id, record.archived_at);
    match record.content {
        Content::Tombstone { deletion, reason } => {
            let [_, tombstone] = record::encode_delete(id, time, &reason, sequence, deletion)?;
            put_rows(&mut plan.batch, sequence, tombstone)?;
            put_entry(plan, &id, sequence, EntryState::Deleted);
            plan.figures.totals.deleted_count += 1;
            Ok(())
        }
        Content::Deletion { article, reason } => {
            let [deletion, _] = record::encode_delete(id, time, &reason, article, sequence)?;
            put_rows(&mut plan.batch, sequence, deletion)
        }
        Content::Article(_) | Content::Quarantine { .. } => {
            let what = "a record of a delete was expected";
            Err(Error::new(Reason::Internal, what))
        }
    }
}

fn put_entry(plan: &mut Plan, id: &ContentHash, sequence: Sequence, state: EntryState) {
    let entry = HashEntry { sequence, state };
    plan.batch.put(key::hash(id), entry.encode());
}
