//! The writer's part in check and repair: the figures at one moment, and the batches of a repair.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::super::dictionaries;
use super::super::limits::Limits;
use super::super::reader::{Reader, advance, short_answer};
use super::super::verify::{Apply, Mend, Repair, RepairCounts, Snapshot, StoredFigures};
use super::plan::put_rows;
use super::{Figures, Writer};
use crate::article::Timestamp;
use crate::error::{Error, Reason, Result};
use crate::key::meta::{self, DICTIONARY_COPIES};
use crate::key::{self, Sequence};
use crate::record::{self, Dictionary, ScrubResult, SourceStats, Totals};
use crate::store::{Batch, Direction, Durability, Poison, Scan, Store};

/// Sources that are read at a time.
const SOURCES_MAX: usize = 1024;

impl Writer {
    /// The figures as they are stored, which nothing changes while they are read here.
    pub(super) async fn snapshot(&self) -> Result<Snapshot> {
        let as_of = self.figures.next - 1;
        if self.poison.check().is_err() {
            // The batch that failed may be there or not.
            return Ok(Snapshot {
                as_of,
                figures: None,
                beyond: Vec::new(),
            });
        }
        stored_snapshot(&*self.store, &self.limits, as_of).await
    }

    /// Repairs the archive; everything else that wants to write waits.
    pub(super) async fn repair(&mut self, now: Timestamp) -> Result<RepairCounts> {
        self.check_not_moved()?;
        let store = Arc::clone(&self.store);
        let metrics = Arc::clone(&self.metrics);
        let dictionaries = self.dictionaries.clone();
        let mut repair = Repair {
            reader: Reader::new(&*store, &metrics, &dictionaries),
            last: self.figures.next - 1,
            near: self.near,
            now,
            apply: Batches {
                store: &*store,
                poison: &self.poison,
            },
            counts: RepairCounts::default(),
        };
        let figures = repair.run().await;
        let counts = repair.counts;
        // One that failed half-way has changed rows as well.
        self.digests.forget();
        let figures = figures?;
        self.figures = figures;
        self.committed.send_replace(figures.next - 1);
        Ok(counts)
    }

    /// Keeps a new dictionary, and only then gives it out. From now on older versions would take
    /// records for damaged, so the format says so from the same moment on.
    pub(super) async fn keep_dictionary(&mut self, dictionary: Arc<Dictionary>) -> Result<()> {
        self.poison.check()?;
        let id = dictionary.id();
        if dictionaries::kept(&*self.store).await?.contains_key(&id) {
            let what = format!("dictionary {id} is there already, and none is written twice");
            return Err(Error::new(Reason::Internal, what));
        }
        let mut batch = Batch::new();
        for copy in 0..DICTIONARY_COPIES {
            batch.put(meta::dictionary(id, copy), dictionary.encode());
        }
        batch.put(meta::format(), vec![record::ARCHIVE_FORMAT]);
        let written = self.store.write(batch, Durability::Synced).await;
        written.inspect_err(|error| self.poison.set(error))?;
        self.dictionaries.add(dictionary);
        Ok(())
    }

    /// Remembers how the last scrub went.
    pub(super) async fn note_scrub(&mut self, result: ScrubResult) -> Result<()> {
        let mut batch = Batch::new();
        batch.put(meta::scrub(), result.encode());
        let written = self.store.write(batch, Durability::Synced).await;
        written.inspect_err(|error| self.poison.set(error))
    }
}

/// The figures as they are stored, and what is behind a sequence. They fit each other if nothing is
/// written meanwhile.
pub(in crate::archive) async fn stored_snapshot(
    store: &dyn Store,
    limits: &Limits,
    as_of: Sequence,
) -> Result<Snapshot> {
    let keys = vec![meta::next_sequence(), meta::totals()];
    let values = store.get_many(keys).await?;
    let [next, totals] = values.as_slice() else {
        return Err(short_answer());
    };
    // What cannot be read is as wrong as a wrong number.
    let next = next
        .as_ref()
        .and_then(|next| record::decode_sequence(next).ok());
    let totals = totals
        .as_ref()
        .and_then(|totals| Totals::decode(totals).ok());
    let figures = StoredFigures {
        next: next.unwrap_or_default(),
        totals: totals.unwrap_or_default(),
        sources: stored_sources(store, limits).await?,
    };
    Ok(Snapshot {
        as_of,
        figures: Some(figures),
        beyond: rows_beyond(store, limits, as_of).await?,
    })
}

/// Keys of the log behind a sequence, at most as many as a check lists.
async fn rows_beyond(store: &dyn Store, limits: &Limits, last: Sequence) -> Result<Vec<Bytes>> {
    let scan = Scan {
        range: key::log(last + 1)..key::prefix_end(&[key::TABLE_LOG]),
        direction: Direction::Ascending,
        rows_max: limits.verify_findings_max.max(1),
        bytes_max: limits.group_bytes_max,
    };
    let chunk = store.scan_many(vec![scan]).await?.pop();
    let rows = chunk.ok_or_else(short_answer)?.rows;
    Ok(rows.into_iter().map(|row| row.key).collect())
}

async fn stored_sources(
    store: &dyn Store,
    limits: &Limits,
) -> Result<BTreeMap<String, Option<SourceStats>>> {
    let mut sources = BTreeMap::new();
    let mut range = meta::sources();
    loop {
        let scan = Scan {
            range: range.clone(),
            direction: Direction::Ascending,
            rows_max: SOURCES_MAX,
            bytes_max: limits.group_bytes_max,
        };
        let chunk = store.scan_many(vec![scan]).await?.pop();
        let chunk = chunk.ok_or_else(short_answer)?;
        for row in &chunk.rows {
            let name = meta::parse_source(&row.key).unwrap_or_default();
            sources.insert(name.to_owned(), SourceStats::decode(&row.value).ok());
        }
        if !advance(&mut range, &chunk) {
            return Ok(sources);
        }
    }
}

/// Turns mends into batches.
struct Batches<'a> {
    store: &'a dyn Store,
    poison: &'a Poison,
}

impl Apply for Batches<'_> {
    async fn apply(&mut self, mends: Vec<Mend>) -> Result<()> {
        let mut batch = Batch::new();
        for mend in mends {
            match mend {
                Mend::Put(key, value) => batch.put(key, value),
                Mend::Remove(key) => batch.remove(key),
                Mend::Figures(figures) => Figures::put(figures, &mut batch),
                Mend::Replace {
                    sequence,
                    rows,
                    old,
                } => {
                    for row in old {
                        batch.remove(key::log_row(sequence, row));
                    }
                    put_rows(&mut batch, sequence, rows)?;
                }
            }
        }
        let written = self.store.write(batch, Durability::Synced).await;
        written.inspect_err(|error| self.poison.set(error))
    }
}
