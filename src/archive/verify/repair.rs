//! The repair: what the check finds is mended from the log, which is the archive.
//!
//! It runs in the writer, in rounds, each of which leaves an archive that is no worse than before if
//! the process dies in it:
//!
//! 0. A lost copy of a dictionary is written again from the other one. If both are lost and records
//!    need them, the repair ends there: what is set aside is to be healed one by one, and these
//!    would be most of the archive. No dictionary is ever removed, nor an intact copy written over.
//! 1. Records that cannot prove themselves are set aside: their rows move to table `q`, and a
//!    quarantine keeps their place. Half of a delete is written again from its other half.
//! 2. Index rows that records ask for are added. Of two records of one article, the one that table
//!    `h` does not name is set aside.
//! 3. Index rows that no record asks for are removed.
//! 4. The figures are added up again.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::RepairCounts;
use super::check::{LogFacts, intact, is_superseded};
use super::locate::{missing_rows, stray_rows};
use crate::archive::commit::Figures;
use crate::archive::dictionaries::survey;
use crate::archive::reader::{RESTORE, Reader};
use crate::archive::walk::{LogStep, LogWalk, Pace, RawRecord, TableWalk};
use crate::article::{ContentHash, Timestamp};
use crate::error::{Error, Reason, Result};
use crate::key::{self, INDEX_TABLES, NearCopies, Sequence, TABLE_HASH, meta};
use crate::record::{self, Content, EntryState, HashEntry, Record, Rows, SourceStats, UNKNOWN_ID};

/// Records that one repair sets aside. An archive with more damage than that is better restored.
const DAMAGED_RECORDS_MAX: usize = 100_000;

/// Changes in one batch.
const BATCH_MENDS: usize = 64;

/// One change of a repair, for the writer to make.
#[derive(Clone, Debug)]
pub(in crate::archive) enum Mend {
    /// Puts a record in the place of whatever rows are there.
    Replace {
        sequence: Sequence,
        rows: Rows,
        /// The numbers of the rows that are there now.
        old: Vec<u16>,
    },
    Put(Vec<u8>, Vec<u8>),
    Remove(Vec<u8>),
    Figures(Figures),
}

/// Where the mends of a repair go.
pub(in crate::archive) trait Apply: Send {
    /// Makes changes, all of them or none, and durable.
    fn apply(&mut self, mends: Vec<Mend>) -> impl Future<Output = Result<()>> + Send;
}

/// A repair at work.
pub(in crate::archive) struct Repair<'a, A> {
    pub(in crate::archive) reader: Reader<'a>,
    /// The last sequence that was given.
    pub(in crate::archive) last: Sequence,
    /// Whether the archive can be asked for near copies.
    pub(in crate::archive) near: NearCopies,
    pub(in crate::archive) now: Timestamp,
    pub(in crate::archive) apply: A,
    pub(in crate::archive) counts: RepairCounts,
}

/// What the first walk of the log found.
#[derive(Default)]
struct Damage {
    /// What is wrong with which record.
    records: BTreeMap<Sequence, String>,
    /// The deletion of each deleted article, and the other way round.
    deletions: HashMap<Sequence, Sequence>,
    tombstones: HashMap<Sequence, Sequence>,
}

impl Damage {
    fn add(&mut self, sequence: Sequence, what: String) -> Result<()> {
        if self.records.len() == DAMAGED_RECORDS_MAX {
            let what = format!(
                "more than {DAMAGED_RECORDS_MAX} log records are damaged or missing; restore the \
                 archive from a backup"
            );
            return Err(Error::new(Reason::ArchiveDamaged, what));
        }
        self.records.insert(sequence, what);
        Ok(())
    }

    fn add_missing(&mut self, first: Sequence, next: Sequence) -> Result<()> {
        (first..next).try_for_each(|sequence| self.add(sequence, "log record is missing".into()))
    }
}

impl<A: Apply> Repair<'_, A> {
    /// Mends the archive. Returns the figures that are right now.
    pub(in crate::archive) async fn run(&mut self) -> Result<Figures> {
        self.dictionaries().await?;
        let damage = self.damage().await?;
        if !damage.records.is_empty() {
            self.set_aside(&damage).await?;
        }
        self.add_rows().await?;
        self.remove_rows().await?;
        self.figures().await
    }

    /// Makes changes, and counts that in the same batch.
    async fn apply(&mut self, mut mends: Vec<Mend>) -> Result<()> {
        if mends.is_empty() {
            return Ok(());
        }
        let before = self.reader.value(meta::mends()).await?;
        let before = before.and_then(|before| record::decode_sequence(&before).ok());
        let count = before.unwrap_or_default().wrapping_add(1);
        mends.push(Mend::Put(meta::mends(), count.to_be_bytes().to_vec()));
        self.apply.apply(mends).await
    }

    /// Writes lost copies of dictionaries again.
    async fn dictionaries(&mut self) -> Result<()> {
        let mut mends = Vec::new();
        for (id, kept) in survey(self.reader).await? {
            let copies = kept.broken_copies();
            // Without an intact copy, what is left of one stays where it is.
            let Some(dictionary) = kept.dictionary.as_ref() else {
                continue;
            };
            mends.extend(
                copies.map(|copy| Mend::Put(meta::dictionary(id, copy), dictionary.encode())),
            );
        }
        self.counts.rebuilt_count += u64::try_from(mends.len()).unwrap_or(u64::MAX);
        self.apply(mends).await
    }

    /// Finds what has to be set aside. Moves rows whose keys were never given out of the log.
    async fn damage(&mut self) -> Result<Damage> {
        let mut damage = Damage::default();
        let mut expected = 1;
        let mut pace = Pace::new(0);
        let mut walk = LogWalk::to(self.reader.store(), Sequence::MAX);
        while let Some(LogStep { records, strays }) = walk.next(&mut pace).await? {
            let mut mends = Vec::new();
            let (records, beyond): (Vec<RawRecord>, Vec<RawRecord>) = records
                .into_iter()
                .partition(|raw| raw.sequence <= self.last);
            let beyond = beyond.into_iter().flat_map(RawRecord::into_rows);
            for row in strays.into_iter().chain(beyond) {
                let kept = [&[key::TABLE_QUARANTINE], row.key.as_ref()].concat();
                mends.push(Mend::Put(kept, row.value.to_vec()));
                mends.push(Mend::Remove(row.key.to_vec()));
                self.counts.removed_count += 1;
            }
            self.apply(mends).await?;
            for raw in records {
                damage.add_missing(expected, raw.sequence)?;
                expected = raw.sequence + 1;
                match raw.decode(self.reader.dictionaries()) {
                    Ok(Record {
                        content: Content::Deletion { article, .. },
                        ..
                    }) => {
                        damage.deletions.insert(article, raw.sequence);
                    }
                    Ok(Record {
                        content: Content::Tombstone { deletion, .. },
                        ..
                    }) => {
                        damage.tombstones.insert(deletion, raw.sequence);
                    }
                    Ok(_) => {}
                    Err(error) if error.reason() == Reason::DictionaryLost => {
                        return Err(Error::new(Reason::ArchiveDamaged, error.to_string())
                            .with_advice(RESTORE));
                    }
                    Err(error) => damage.add(raw.sequence, error.to_string())?,
                }
            }
        }
        damage.add_missing(expected, self.last + 1)?;
        Ok(damage)
    }

    /// Sets damaged records aside.
    async fn set_aside(&mut self, damage: &Damage) -> Result<()> {
        let named = self.named(damage).await?;
        for (sequence, what) in &damage.records {
            let raw = self.raw(*sequence).await?;
            if let Some(rows) = self.half_of_delete(damage, *sequence).await? {
                let mend = Mend::Replace {
                    sequence: *sequence,
                    rows,
                    old: raw.rows.iter().map(|(row, _)| *row).collect(),
                };
                self.apply(vec![mend]).await?;
                self.counts.rebuilt_count += 1;
                continue;
            }
            let (id, state) = match named.get(sequence) {
                Some((id, state)) => (*id, *state),
                None => self.own_name(&raw).await?,
            };
            self.quarantine(&raw, id, state, what).await?;
        }
        Ok(())
    }

    /// The ids whose rows in table `h` name damaged records, and their states.
    async fn named(&self, damage: &Damage) -> Result<HashMap<Sequence, (ContentHash, EntryState)>> {
        let mut named = HashMap::new();
        let mut pace = Pace::new(0);
        let range = key::prefix_range(&[TABLE_HASH]);
        let mut walk = TableWalk::new(self.reader.store(), range);
        while let Some(rows) = walk.next(&mut pace).await? {
            for row in rows {
                let entry = HashEntry::decode(&row.value).ok();
                let entry = entry.filter(|entry| damage.records.contains_key(&entry.sequence));
                if let (Some(id), Some(entry)) = (key::parse_hash(&row.key), entry) {
                    let state = match entry.state {
                        EntryState::Deleted => EntryState::Deleted,
                        EntryState::Stored | EntryState::Quarantined => EntryState::Quarantined,
                    };
                    named.insert(entry.sequence, (id, state));
                }
            }
        }
        Ok(named)
    }

    /// The id that the first row of a record names, if table `h` knows nothing else of it.
    async fn own_name(&self, raw: &RawRecord) -> Result<(ContentHash, EntryState)> {
        let unknown = (UNKNOWN_ID, EntryState::Quarantined);
        let id = raw.head().map(|head| record::peek_id(raw.sequence, head));
        let Some(Ok(id)) = id else {
            return Ok(unknown);
        };
        // An id that was hit itself names nothing; one that was not names an article that `h` lost.
        let is_known = self.reader.value(key::hash(&id)).await?.is_some();
        Ok(if is_known {
            unknown
        } else {
            (id, EntryState::Quarantined)
        })
    }

    async fn raw(&self, sequence: Sequence) -> Result<RawRecord> {
        let mut rows = Vec::new();
        let mut pace = Pace::new(0);
        let range = key::log_range(sequence, sequence);
        let mut walk = TableWalk::new(self.reader.store(), range);
        while let Some(some) = walk.next(&mut pace).await? {
            let numbered = some.into_iter();
            rows.extend(
                numbered.filter_map(|row| {
                    key::parse_log(&row.key).map(|(_, number)| (number, row.value))
                }),
            );
        }
        Ok(RawRecord { sequence, rows })
    }

    /// Writes half of a delete again, if the damaged record was one and the other half is intact.
    async fn half_of_delete(&self, damage: &Damage, sequence: Sequence) -> Result<Option<Rows>> {
        let (article, deletion, other) = match (
            damage.deletions.get(&sequence),
            damage.tombstones.get(&sequence),
        ) {
            (Some(deletion), _) => (sequence, *deletion, *deletion),
            (None, Some(article)) => (*article, sequence, *article),
            (None, None) => return Ok(None),
        };
        let Some(Record {
            id,
            archived_at,
            content: Content::Deletion { reason, .. } | Content::Tombstone { reason, .. },
        }) = intact(self.reader.record(other).await)?
        else {
            return Ok(None);
        };
        let [deletion_rows, tombstone_rows] =
            record::encode_delete(id, archived_at, &reason, article, deletion)?;
        Ok(Some(if sequence == article {
            tombstone_rows
        } else {
            deletion_rows
        }))
    }

    /// Moves the rows of a record to table `q` and leaves a quarantine.
    async fn quarantine(
        &mut self,
        raw: &RawRecord,
        id: ContentHash,
        state: EntryState,
        what: &str,
    ) -> Result<()> {
        let sequence = raw.sequence;
        let content = Content::Quarantine {
            state,
            reason: what.to_owned(),
        };
        let mut mends = vec![Mend::Replace {
            sequence,
            rows: record::encode_quarantine(id, self.now, state, what)?,
            old: raw.rows.iter().map(|(row, _)| *row).collect(),
        }];
        let kept = raw.rows.iter();
        mends.extend(
            kept.map(|(row, value)| Mend::Put(key::quarantine(sequence, *row), value.to_vec())),
        );
        let is_superseded = is_superseded(self.reader, sequence, &id, &content).await?;
        if id != UNKNOWN_ID && !is_superseded {
            let entry = HashEntry { sequence, state };
            mends.push(Mend::Put(key::hash(&id), entry.encode()));
        }
        tracing::warn!(sequence, %id, what, "set a damaged record aside");
        self.counts.quarantined_count += 1;
        self.apply(mends).await
    }

    /// Adds the index rows that records ask for.
    async fn add_rows(&mut self) -> Result<()> {
        let mut pace = Pace::new(0);
        let mut walk = LogWalk::to(self.reader.store(), self.last);
        while let Some(step) = walk.next(&mut pace).await? {
            let mut repeated = BTreeSet::new();
            let mut mends = Vec::new();
            for missing in
                missing_rows(self.reader, &INDEX_TABLES, &step.records, self.near).await?
            {
                let is_article = matches!(missing.record.content, Content::Article(_));
                if missing.row.table() == TABLE_HASH
                    && is_article
                    && missing.is_superseded(self.reader).await?
                {
                    repeated.insert(missing.sequence);
                    continue;
                }
                let row = missing.row;
                mends.push(Mend::Put(row.key, row.value));
                if mends.len() == BATCH_MENDS {
                    self.add(std::mem::take(&mut mends)).await?;
                }
            }
            self.add(mends).await?;
            for raw in step.records {
                if repeated.contains(&raw.sequence) {
                    let id = raw.decode(self.reader.dictionaries())?.id;
                    let what = "log record repeats an article that has another one";
                    self.quarantine(&raw, id, EntryState::Quarantined, what)
                        .await?;
                }
            }
        }
        Ok(())
    }

    async fn add(&mut self, mends: Vec<Mend>) -> Result<()> {
        self.counts.added_count += u64::try_from(mends.len()).unwrap_or(u64::MAX);
        self.apply(mends).await
    }

    /// Removes the index rows that no record asks for.
    async fn remove_rows(&mut self) -> Result<()> {
        for table in INDEX_TABLES {
            let mut pace = Pace::new(0);
            let range = key::prefix_range(&[table]);
            let mut walk = TableWalk::new(self.reader.store(), range);
            while let Some(rows) = walk.next(&mut pace).await? {
                let strays = stray_rows(self.reader, table, (self.last, self.near), rows).await?;
                self.counts.removed_count += u64::try_from(strays.len()).unwrap_or(u64::MAX);
                let mends = strays.into_iter().map(|row| Mend::Remove(row.key.to_vec()));
                self.apply(mends.collect()).await?;
            }
        }
        Ok(())
    }

    /// Adds the figures up again.
    async fn figures(&mut self) -> Result<Figures> {
        let mut facts = LogFacts::default();
        let mut pace = Pace::new(0);
        let mut walk = LogWalk::to(self.reader.store(), self.last);
        while let Some(step) = walk.next(&mut pace).await? {
            for raw in step.records {
                let record = raw.decode(self.reader.dictionaries())?;
                facts.add(&record, raw.stored_bytes());
            }
        }
        let mut walk = TableWalk::new(self.reader.store(), meta::sources());
        while let Some(rows) = walk.next(&mut pace).await? {
            let mut mends = Vec::new();
            for row in rows {
                let name = meta::parse_source(&row.key).unwrap_or_default();
                match facts.sources.get(name) {
                    Some(stats) if SourceStats::decode(&row.value).ok() == Some(*stats) => {
                        facts.sources.remove(name);
                    }
                    Some(_) => {}
                    None => mends.push(Mend::Remove(row.key.to_vec())),
                }
            }
            self.apply(mends).await?;
        }
        let figures = Figures {
            next: self.last + 1,
            totals: facts.totals,
        };
        let mut mends = vec![Mend::Figures(figures)];
        for (name, stats) in facts.sources {
            mends.push(Mend::Put(meta::source(&name), stats.encode()));
            if mends.len() == BATCH_MENDS {
                self.apply(std::mem::take(&mut mends)).await?;
            }
        }
        self.apply(mends).await?;
        Ok(figures)
    }
}
