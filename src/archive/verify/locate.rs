//! Finds the rows by which an index table differs from what the log asks for.

use bytes::Bytes;

use super::check::{Check, intact, is_superseded, row_sequence};
use super::{FindingKind, IndexRow, asked_rows};
use crate::archive::reader::Reader;
use crate::archive::walk::{LogWalk, RawRecord, TableWalk};
use crate::error::Result;
use crate::key::{self, NearCopies, Sequence, TABLE_HASH};
use crate::record::{self, Content, Record};
use crate::store::Row;

/// Records that rows are compared with at a time.
const RECORDS_MAX: usize = 64;

/// A row that a record asks for, and what is there instead.
pub(super) struct Missing {
    pub(super) sequence: Sequence,
    pub(super) record: Record,
    pub(super) row: IndexRow,
}

impl Missing {
    /// Whether another record has the article.
    pub(super) async fn is_superseded(&self, reader: Reader<'_>) -> Result<bool> {
        let Record { id, content, .. } = &self.record;
        is_superseded(reader, self.sequence, id, content).await
    }
}

impl Check<'_> {
    /// Reports every missing and every stray row of some index tables.
    pub(super) async fn locate(&mut self, suspects: &[u8]) -> Result<()> {
        let reader = self.reader;
        let mut walk = LogWalk::to(reader.store(), self.as_of);
        while let Some(step) = walk.next(&mut self.pace).await? {
            for missing in missing_rows(reader, suspects, &step.records, self.near).await? {
                self.missing(&missing).await?;
            }
            self.tell();
        }
        for table in suspects.iter().copied() {
            let mut walk = TableWalk::new(reader.store(), key::prefix_range(&[table]));
            while let Some(rows) = walk.next(&mut self.pace).await? {
                let named = |row: &Row| row_sequence(table, &row.key, &row.value);
                let rows = rows.into_iter().filter(|row| named(row) <= self.as_of);
                for row in
                    stray_rows(reader, table, (self.as_of, self.near), rows.collect()).await?
                {
                    self.stray(table, named(&row));
                }
                self.tell();
            }
        }
        Ok(())
    }

    async fn missing(&mut self, missing: &Missing) -> Result<()> {
        let id = missing.record.id;
        let table = char::from(missing.row.table());
        let is_repeated = matches!(missing.record.content, Content::Article(_))
            && missing.row.table() == TABLE_HASH
            && missing.is_superseded(self.reader).await?;
        let (kind, what) = if is_repeated {
            let what = format!("article {id} has another record, which table h names");
            (FindingKind::ArticleRepeated, what)
        } else {
            let what = format!("article {id} has no row in table {table}, or a wrong one");
            (FindingKind::RowMissing, what)
        };
        self.find(kind, missing.sequence, id, what);
        Ok(())
    }

    /// Reports rows that name records which the log does not have yet, though it would have them if
    /// the rows were on their way in.
    pub(super) async fn unlogged(&mut self, table: u8, rows: &[Row]) -> Result<()> {
        let named = |row: &Row| row_sequence(table, &row.key, &row.value);
        let keys = rows.iter().map(|row| key::log(named(row))).collect();
        let records = self.reader.get_many(keys).await?;
        for (row, record) in rows.iter().zip(records) {
            if record.is_none()
                && self.reader.value(row.key.to_vec()).await?.as_ref() == Some(&row.value)
            {
                self.stray(table, named(row));
            }
        }
        Ok(())
    }

    fn stray(&mut self, table: u8, sequence: Sequence) {
        let table = char::from(table);
        let what = format!("table {table} has a row that its record does not ask for");
        self.find(FindingKind::RowStray, sequence, None, what);
    }
}

/// The rows of some index tables that records ask for and that are not there, or are different.
pub(super) async fn missing_rows(
    reader: Reader<'_>,
    tables: &[u8],
    records: &[RawRecord],
    near: NearCopies,
) -> Result<Vec<Missing>> {
    let mut missing = Vec::new();
    for some in records.chunks(RECORDS_MAX) {
        let mut asked = Vec::new();
        for raw in some {
            // What is damaged has its own finding.
            let Ok(record) = raw.decode(reader.dictionaries()) else {
                continue;
            };
            for row in asked_rows(raw.sequence, &record, near) {
                if tables.contains(&row.table()) {
                    let record = record.clone();
                    let sequence = raw.sequence;
                    asked.push((
                        raw.head(),
                        Missing {
                            sequence,
                            record,
                            row,
                        },
                    ));
                }
            }
        }
        let keys = asked
            .iter()
            .map(|(_, asked)| asked.row.key.clone())
            .collect();
        let values = reader.get_many(keys).await?;
        for ((head, asked), value) in asked.into_iter().zip(values) {
            let is_there = value.is_some_and(|value| value == asked.row.value);
            if !is_there && needs(reader, head, &asked).await? {
                missing.push(asked);
            }
        }
    }
    Ok(missing)
}

/// Whether a record still needs a row that it asked for.
async fn needs(reader: Reader<'_>, head: Option<&Bytes>, asked: &Missing) -> Result<bool> {
    let now = reader.value(key::log(asked.sequence)).await?;
    if now.as_ref() != head {
        return Ok(false);
    }
    let is_healed = matches!(asked.record.content, Content::Quarantine { .. })
        && asked.is_superseded(reader).await?;
    Ok(!is_healed)
}

/// Those of some rows of an index table that the records which they name do not ask for. What names
/// a record of the log that is damaged or missing is none of them.
pub(super) async fn stray_rows(
    reader: Reader<'_>,
    table: u8,
    (as_of, near): (Sequence, NearCopies),
    rows: Vec<Row>,
) -> Result<Vec<Row>> {
    let named = |row: &Row| row_sequence(table, &row.key, &row.value);
    let mut strays = Vec::new();
    for some in rows.chunks(RECORDS_MAX) {
        let keys = some.iter().map(|row| key::log(named(row))).collect();
        let heads = reader.get_many(keys).await?;
        for (row, head) in some.iter().zip(heads) {
            let sequence = named(row);
            let record = match head {
                Some(head) => intact(read(reader, sequence, head).await)?,
                None => None,
            };
            let is_asked = match record {
                Some(record) => asked_rows(sequence, &record, near)
                    .iter()
                    .any(|asked| row.key == asked.key && row.value == asked.value),
                // Nobody knows what a damaged record asks for; it has a finding of its own.
                None => (1..=as_of).contains(&sequence),
            };
            // A delete may have taken both away since the row was read.
            if !is_asked && reader.value(row.key.to_vec()).await?.as_ref() == Some(&row.value) {
                strays.push(row.clone());
            }
        }
    }
    Ok(strays)
}

/// Decodes a record from its first row if it has no more.
async fn read(reader: Reader<'_>, sequence: Sequence, head: Bytes) -> Result<Record> {
    if record::extent(sequence, &head)?.row_count <= 1 {
        return record::decode(sequence, &[head], reader.dictionaries());
    }
    reader.record(sequence).await
}
