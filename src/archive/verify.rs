//! The full check: every record against its checksum and id, every record against its index rows,
//! every index row against its record, and the figures against what was counted.
//!
//! It reads and never writes. Run it on an archive that nobody writes to: rows that come and go
//! while it runs would look like findings.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use super::Archive;
use super::reader::{FETCH_RECORDS, advance};
use crate::error::{Reason, Result};
use crate::key::{self, INDEX_TABLES, IndexFacts, Sequence, TABLE_HASH, meta};
use crate::record::{self, Content, EntryState, HashEntry, SourceStats, Totals};
use crate::store::{Chunk, Direction, Scan};

/// Something wrong with the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Where: the sequence of the record concerned, if one is.
    pub sequence: Option<Sequence>,
    /// What.
    pub message: String,
}

/// The outcome of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Articles found intact.
    pub article_count: u64,
    /// Deletions found intact.
    pub deletion_count: u64,
    /// Index rows looked at.
    pub index_row_count: u64,
    /// All findings counted.
    pub finding_count: u64,
    /// The first of them.
    pub findings: Vec<Finding>,
}

impl Archive {
    /// Checks the whole archive.
    ///
    /// # Errors
    /// `StoreFailed` if the store cannot be read; damage is no error but a finding.
    pub async fn verify(&self) -> Result<VerifyReport> {
        let mut check = Check {
            archive: self,
            report: VerifyReport::default(),
            facts: Facts::default(),
        };
        check.log().await?;
        for table in INDEX_TABLES {
            check.index(table).await?;
        }
        check.figures().await?;
        Ok(check.report)
    }
}

/// What the log says, to compare the figures with.
#[derive(Default)]
struct Facts {
    last: Sequence,
    totals: Totals,
    sources: BTreeMap<String, SourceStats>,
}

struct Check<'a> {
    archive: &'a Archive,
    report: VerifyReport,
    facts: Facts,
}

/// What the rows of an index should be for one record.
enum Expected {
    Article(IndexFacts),
    Tombstone(crate::article::ContentHash),
    Nothing,
}

impl Check<'_> {
    fn find(&mut self, sequence: impl Into<Option<Sequence>>, message: impl Into<String>) {
        self.report.finding_count += 1;
        if self.report.findings.len() < self.archive.limits().verify_findings_max {
            let finding = Finding {
                sequence: sequence.into(),
                message: message.into(),
            };
            self.report.findings.push(finding);
        }
    }

    async fn chunk(&self, range: std::ops::Range<Vec<u8>>, rows_max: usize) -> Result<Chunk> {
        let scan = Scan {
            range,
            direction: Direction::Ascending,
            rows_max,
            bytes_max: self.archive.limits().group_bytes_max,
        };
        self.archive.scan_one(scan).await
    }

    /// Walks the log: no sequence is left out, every record is intact and has its index rows.
    async fn log(&mut self) -> Result<()> {
        let mut range = key::log_range(0, Sequence::MAX);
        let mut rows: Vec<(Sequence, Bytes)> = Vec::new();
        loop {
            let chunk = self.chunk(range.clone(), FETCH_RECORDS).await?;
            let has_more = advance(&mut range, &chunk);
            for row in chunk.rows {
                match key::parse_log(&row.key) {
                    None => self.find(
                        None,
                        format!("the log has a row with the key {:?}", row.key),
                    ),
                    Some((sequence, number)) => {
                        if rows.first().is_some_and(|(open, _)| *open != sequence) {
                            self.record(std::mem::take(&mut rows)).await?;
                        }
                        if usize::from(number) != rows.len() {
                            self.find(sequence, format!("row {} is missing", rows.len()));
                        }
                        rows.push((sequence, row.value));
                    }
                }
            }
            if !has_more {
                break;
            }
        }
        self.record(rows).await
    }

    async fn record(&mut self, rows: Vec<(Sequence, Bytes)>) -> Result<()> {
        let Some((sequence, _)) = rows.first() else {
            return Ok(());
        };
        let sequence = *sequence;
        if sequence != self.facts.last + 1 {
            self.find(
                sequence,
                format!("the log jumps here from {}", self.facts.last),
            );
        }
        self.facts.last = sequence;
        let rows: Vec<Bytes> = rows.into_iter().map(|(_, row)| row).collect();
        let stored_bytes: usize = rows.iter().map(Bytes::len).sum();
        let record = match record::decode(sequence, &rows) {
            Ok(record) => record,
            Err(error) => {
                self.find(sequence, error.to_string());
                return Ok(());
            }
        };
        match record.content {
            Content::Article(article) => {
                self.report.article_count += 1;
                let facts = IndexFacts::of(&article, record.id);
                let totals = &mut self.facts.totals;
                totals.article_count += 1;
                totals.text_bytes += u64::try_from(article.text_bytes()).unwrap_or(u64::MAX);
                totals.stored_bytes += u64::try_from(stored_bytes).unwrap_or(u64::MAX);
                let stats = self.facts.sources.entry(facts.source.clone());
                stats.or_insert(SourceStats::EMPTY).add(facts.time);
                let mut keys = facts.rows(sequence);
                keys.push(key::hash(&record.id));
                let names: Vec<char> = keys
                    .iter()
                    .filter_map(|key| Some(char::from(*key.first()?)))
                    .collect();
                let values = self.archive.inner.store.get_many(keys).await?;
                for (table, value) in names.into_iter().zip(values) {
                    if value.is_none() {
                        self.find(
                            sequence,
                            format!("article {} has no row in table {table}", record.id),
                        );
                    }
                }
            }
            Content::Tombstone { deletion, .. } => {
                self.facts.totals.deleted_count += 1;
                // Without it the article could be stored again.
                let entry = vec![key::hash(&record.id)];
                let entry = self.archive.inner.store.get_many(entry).await?;
                if entry.iter().all(Option::is_none) {
                    let what = format!("deleted article {} has no row in table h", record.id);
                    self.find(sequence, what);
                }
                self.counterpart(sequence, deletion, |content| {
                    matches!(content, Content::Deletion { article, .. } if *article == sequence)
                })
                .await?;
            }
            Content::Quarantine { reason, .. } => {
                self.find(sequence, reason);
            }
            Content::Deletion { article, .. } => {
                self.report.deletion_count += 1;
                self.counterpart(sequence, article, |content| {
                    matches!(content, Content::Tombstone { deletion, .. } if *deletion == sequence)
                })
                .await?;
            }
        }
        Ok(())
    }

    /// Checks that the other half of a delete is there and names this one.
    async fn counterpart(
        &mut self,
        sequence: Sequence,
        other: Sequence,
        fits: impl FnOnce(&Content) -> bool,
    ) -> Result<()> {
        match self.archive.reader().record(other).await {
            Ok(record) if fits(&record.content) => {}
            Ok(_) => self.find(
                sequence,
                format!("the delete's other half at {other} differs"),
            ),
            Err(error) if error.reason() == Reason::StoreFailed => return Err(error),
            Err(error) => self.find(
                sequence,
                format!("the delete's other half at {other}: {error}"),
            ),
        }
        Ok(())
    }

    /// Walks an index table: every row is one that its record asks for.
    async fn index(&mut self, table: u8) -> Result<()> {
        let mut range = key::prefix_range(&[table]);
        loop {
            let chunk = self.chunk(range.clone(), FETCH_RECORDS).await?;
            let expected = self.expected(table, &chunk).await?;
            for (row, (sequence, expected)) in chunk.rows.iter().zip(expected) {
                self.report.index_row_count += 1;
                let right = match &expected {
                    Expected::Article(facts) if table == TABLE_HASH => {
                        let entry = HashEntry {
                            sequence,
                            state: EntryState::Stored,
                        };
                        row.key == key::hash(&facts.id) && row.value == entry.encode()
                    }
                    Expected::Article(facts) => {
                        row.value.is_empty()
                            && facts.rows(sequence).iter().any(|key| row.key == *key)
                    }
                    Expected::Tombstone(id) => {
                        let entry = HashEntry {
                            sequence,
                            state: EntryState::Deleted,
                        };
                        table == TABLE_HASH
                            && row.key == key::hash(id)
                            && row.value == entry.encode()
                    }
                    Expected::Nothing => false,
                };
                if !right {
                    let table = char::from(table);
                    self.find(
                        sequence,
                        format!("table {table} has a row that its record does not ask for"),
                    );
                }
            }
            if !advance(&mut range, &chunk) {
                return Ok(());
            }
        }
    }

    /// Reads the records that the rows of an index name.
    async fn expected(&self, table: u8, chunk: &Chunk) -> Result<Vec<(Sequence, Expected)>> {
        let mut expected = Vec::with_capacity(chunk.rows.len());
        for row in &chunk.rows {
            let sequence = if table == TABLE_HASH {
                HashEntry::decode(&row.value)
                    .map(|entry| entry.sequence)
                    .unwrap_or_default()
            } else {
                key::parse_sequence(&row.key).unwrap_or_default()
            };
            let content = match self.archive.reader().record(sequence).await {
                Ok(record) => match record.content {
                    Content::Article(article) => {
                        Expected::Article(IndexFacts::of(&article, record.id))
                    }
                    Content::Tombstone { .. } => Expected::Tombstone(record.id),
                    Content::Deletion { .. } | Content::Quarantine { .. } => Expected::Nothing,
                },
                Err(error) if error.reason() == Reason::StoreFailed => return Err(error),
                Err(_) => Expected::Nothing,
            };
            expected.push((sequence, content));
        }
        Ok(expected)
    }

    /// Compares the figures with what the log adds up to.
    async fn figures(&mut self) -> Result<()> {
        let (next, totals) = self.archive.figures().await?;
        if next != self.facts.last + 1 {
            self.find(
                None,
                format!(
                    "the next sequence is {next}, the log ends at {}",
                    self.facts.last
                ),
            );
        }
        if totals != self.facts.totals {
            self.find(
                None,
                format!(
                    "the totals are {totals:?}, the log adds up to {:?}",
                    self.facts.totals
                ),
            );
        }
        let mut found = HashMap::new();
        let mut range = meta::sources();
        loop {
            let chunk = self.chunk(range.clone(), FETCH_RECORDS).await?;
            for row in &chunk.rows {
                let name = meta::parse_source(&row.key).unwrap_or_default().to_owned();
                found.insert(name, SourceStats::decode(&row.value).ok());
            }
            if !advance(&mut range, &chunk) {
                break;
            }
        }
        let expected = std::mem::take(&mut self.facts.sources);
        for (name, stats) in &expected {
            let stored = found.remove(name).flatten();
            if stored != Some(*stats) {
                self.find(
                    None,
                    format!(
                        "source {name:?} has the figures {stored:?}, the log adds up to {stats:?}"
                    ),
                );
            }
        }
        for name in found.keys() {
            self.find(None, format!("source {name:?} has figures and no articles"));
        }
        Ok(())
    }
}
