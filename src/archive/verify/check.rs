//! The check itself: the log, record by record, then the index tables by sums, then the figures.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{
    Finding, FindingKind, Observer, Stage, StoredFigures, VerifyOptions, VerifyProgress,
    VerifyReport, asked_rows,
};
use crate::archive::Limits;
use crate::archive::dictionaries::survey;
use crate::archive::reader::Reader;
use crate::archive::walk::{LogWalk, Pace, RawRecord, TableWalk};
use crate::article::ContentHash;
use crate::error::{Error, Reason, Result};
use crate::key::{self, INDEX_TABLES, IndexFacts, NearCopies, Sequence, TABLE_HASH};
use crate::record::{
    Content, DictionaryId, EntryState, HashEntry, Record, SourceStats, Totals, UNKNOWN_ID,
    peek_dictionary,
};

/// A set of rows, as their number and the sum of their hashes. Sets that differ have the same sum
/// with a chance of 2^-128, whatever the order of their rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    count: u64,
    hash: u128,
}

impl Sum {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        let mut hasher = blake3::Hasher::new();
        // The length keeps a key from running into its value.
        hasher.update(&key.len().to_be_bytes());
        hasher.update(key);
        hasher.update(value);
        let mut short = [0; size_of::<u128>()];
        hasher.finalize_xof().fill(&mut short);
        self.count += 1;
        self.hash = self.hash.wrapping_add(u128::from_be_bytes(short));
    }
}

/// What the log adds up to.
#[derive(Default)]
pub(super) struct LogFacts {
    pub(super) last: Sequence,
    pub(super) totals: Totals,
    pub(super) sources: BTreeMap<String, SourceStats>,
}

impl LogFacts {
    /// Counts a record in.
    pub(super) fn add(&mut self, record: &Record, stored_bytes: u64) {
        match &record.content {
            Content::Article(article) => {
                self.totals.article_count += 1;
                self.totals.text_bytes += u64::try_from(article.text_bytes()).unwrap_or(u64::MAX);
                self.totals.stored_bytes += stored_bytes;
                let facts = IndexFacts::of(article, record.id, NearCopies::Off);
                let stats = self.sources.entry(facts.source);
                stats.or_insert(SourceStats::EMPTY).add(facts.time);
            }
            Content::Tombstone { .. }
            | Content::Quarantine {
                state: EntryState::Deleted,
                ..
            } => self.totals.deleted_count += 1,
            Content::Deletion { .. } | Content::Quarantine { .. } => {}
        }
    }
}

/// One run of the check.
pub(super) struct Check<'a> {
    pub(super) reader: Reader<'a>,
    pub(super) as_of: Sequence,
    pub(super) near: NearCopies,
    pub(super) pace: Pace,
    findings_max: usize,
    observer: Option<&'a Observer>,
    stage: Stage,
    report: VerifyReport,
    facts: LogFacts,
    /// Whether `facts` has everything: not if records are damaged.
    is_complete: bool,
    asked: BTreeMap<u8, Sum>,
    /// Dictionaries that are lost, and the records that need them.
    lost: BTreeMap<DictionaryId, Needed>,
}

/// Records that need a lost dictionary.
#[derive(Default)]
struct Needed {
    first: Option<Sequence>,
    count: u64,
}

impl<'a> Check<'a> {
    pub(super) fn new(
        reader: Reader<'a>,
        limits: &Limits,
        (as_of, near): (Sequence, NearCopies),
        options: &'a VerifyOptions,
    ) -> Self {
        Self {
            reader,
            as_of,
            near,
            pace: Pace::new(options.bytes_per_second_max),
            findings_max: limits.verify_findings_max,
            observer: options.observer.as_ref(),
            stage: Stage::Log,
            report: VerifyReport {
                as_of,
                ..VerifyReport::default()
            },
            facts: LogFacts::default(),
            is_complete: true,
            asked: BTreeMap::new(),
            lost: BTreeMap::new(),
        }
    }

    pub(super) fn find(
        &mut self,
        kind: FindingKind,
        sequence: impl Into<Option<Sequence>>,
        id: impl Into<Option<ContentHash>>,
        message: impl Into<String>,
    ) {
        self.report.finding_count += 1;
        if self.report.findings.len() >= self.findings_max {
            return;
        }
        let finding = Finding {
            kind,
            sequence: sequence.into(),
            id: id.into().filter(|id| *id != UNKNOWN_ID),
            message: message.into(),
        };
        if let Some(observer) = self.observer {
            // Who does not read them gets them with the report.
            let _ = observer.findings.try_send(finding.clone());
        }
        self.report.findings.push(finding);
    }

    /// Tells the observer where the check is.
    pub(super) fn tell(&mut self) {
        self.report.bytes = self.pace.bytes();
        self.report.elapsed = self.pace.elapsed();
        if let Some(observer) = self.observer {
            observer.progress.send_replace(VerifyProgress {
                stage: self.stage,
                as_of: self.as_of,
                article_count: self.report.article_count,
                index_row_count: self.report.index_row_count,
                bytes: self.report.bytes,
                elapsed: self.report.elapsed,
                finding_count: self.report.finding_count,
            });
        }
    }

    /// Walks the log: no sequence is left out, every record is intact, and every delete is whole.
    /// Behind it there is nothing.
    pub(super) async fn log(&mut self, beyond: &[Bytes]) -> Result<()> {
        let mut walk = LogWalk::to(self.reader.store(), self.as_of);
        while let Some(step) = walk.next(&mut self.pace).await? {
            for row in step.strays {
                self.foreign_key(&row.key);
            }
            for raw in step.records {
                self.gap(raw.sequence);
                self.facts.last = raw.sequence;
                if let Some((record, stored_bytes)) = self.prove(&raw).await? {
                    self.facts.add(&record, stored_bytes);
                    self.record(raw.sequence, &record).await?;
                }
            }
            self.tell();
        }
        self.gap(self.as_of + 1);
        for key in beyond {
            self.foreign_key(key);
        }
        Ok(())
    }

    fn foreign_key(&mut self, key: &Bytes) {
        let what = format!("the log has a row with the key {key:?}, which was never given");
        self.find(FindingKind::RowStray, None, None, what);
    }

    /// Reports the sequences that are missing before the next one.
    fn gap(&mut self, next: Sequence) {
        let first = self.facts.last + 1;
        if next > first {
            self.is_complete = false;
            let what = match next - 1 {
                last if last == first => format!("log record {first} is missing"),
                last => format!("log records {first} to {last} are missing"),
            };
            self.find(FindingKind::RecordMissing, first, None, what);
        }
    }

    /// Decodes a record; damage is a finding if it is still there when the record is read again.
    async fn prove(&mut self, raw: &RawRecord) -> Result<Option<(Record, u64)>> {
        let error = match raw.decode(self.reader.dictionaries()) {
            Ok(record) => return Ok(Some((record, raw.stored_bytes()))),
            Err(error) => error,
        };
        if self.changed(raw.sequence, raw.head()).await?
            && let Ok(record) = self.reader.record(raw.sequence).await
        {
            // Only a delete changes a record, and leaves no bytes that count.
            return Ok(Some((record, 0)));
        }
        self.is_complete = false;
        if error.reason() == Reason::DictionaryLost {
            // That is one thing to find, and not one for each of perhaps all records.
            let id = raw.head().and_then(|head| peek_dictionary(head));
            let needed = self.lost.entry(id.unwrap_or_default()).or_default();
            needed.first.get_or_insert(raw.sequence);
            needed.count += 1;
            return Ok(None);
        }
        self.reader.damaged(&error);
        let id = self.named_id(raw).await?;
        self.find(
            FindingKind::RecordDamaged,
            raw.sequence,
            id,
            error.to_string(),
        );
        Ok(None)
    }

    /// Looks at the copies of all dictionaries. What the log needs of them is known by then.
    pub(super) async fn dictionaries(&mut self) -> Result<()> {
        let mut all = survey(self.reader).await?;
        if all.values().any(|kept| kept.broken_copies().count() > 0) {
            // One may just have been on its way in.
            all = survey(self.reader).await?;
        }
        for (id, kept) in &all {
            if kept.dictionary.is_none() {
                self.lost.entry(*id).or_default();
                continue;
            }
            for copy in kept.broken_copies() {
                let what = format!("copy {copy} of dictionary {id} is damaged or missing");
                self.reader
                    .damaged(&Error::new(Reason::IndexDamaged, what.as_str()));
                self.find(FindingKind::DictionaryDamaged, None, None, what);
            }
        }
        for (id, Needed { first, count }) in std::mem::take(&mut self.lost) {
            let needed = first.map_or_else(String::new, |first| {
                format!(", and {count} records, from {first} on, cannot be read without it")
            });
            let what = format!("both copies of dictionary {id} are damaged or missing{needed}");
            self.reader
                .damaged(&Error::new(Reason::DictionaryLost, what.as_str()));
            self.find(FindingKind::DictionaryLost, first, None, what);
        }
        Ok(())
    }

    /// Whether the first row of a record differs from what was read.
    pub(super) async fn changed(&self, sequence: Sequence, head: Option<&Bytes>) -> Result<bool> {
        let now = self.reader.value(key::log(sequence)).await?;
        Ok(now.as_ref() != head)
    }

    /// The id that a damaged record names, if the index agrees.
    async fn named_id(&self, raw: &RawRecord) -> Result<Option<ContentHash>> {
        let Some(Ok(id)) = raw
            .head()
            .map(|head| crate::record::peek_id(raw.sequence, head))
        else {
            return Ok(None);
        };
        let entry = self.reader.value(key::hash(&id)).await?;
        let entry = entry.and_then(|entry| HashEntry::decode(&entry).ok());
        Ok(entry
            .filter(|entry| entry.sequence == raw.sequence)
            .map(|_| id))
    }

    /// Takes an intact record into account.
    async fn record(&mut self, sequence: Sequence, record: &Record) -> Result<()> {
        match &record.content {
            Content::Article(_) => self.report.article_count += 1,
            Content::Tombstone { deletion, .. } => {
                let fits = |content: &Content| matches!(content, Content::Deletion { article, .. } if *article == sequence);
                self.counterpart(sequence, record.id, *deletion, fits)
                    .await?;
            }
            Content::Deletion { article, .. } => {
                self.report.deletion_count += 1;
                let fits = |content: &Content| matches!(content, Content::Tombstone { deletion, .. } if *deletion == sequence);
                self.counterpart(sequence, record.id, *article, fits)
                    .await?;
            }
            Content::Quarantine { state, reason } => {
                if is_superseded(self.reader, sequence, &record.id, &record.content).await? {
                    // The article was stored again, or set aside again, at another sequence.
                    return Ok(());
                }
                if *state != EntryState::Deleted {
                    self.quarantine(sequence, record.id, reason);
                }
            }
        }
        for row in asked_rows(sequence, record, self.near) {
            let sum = self.asked.entry(row.table()).or_default();
            sum.add(&row.key, &row.value);
        }
        Ok(())
    }

    /// Checks that the other half of a delete is there and names this one.
    async fn counterpart(
        &mut self,
        sequence: Sequence,
        id: ContentHash,
        other: Sequence,
        fits: impl FnOnce(&Content) -> bool,
    ) -> Result<()> {
        let what = match self.reader.record(other).await {
            // What is set aside is told at its own place.
            Ok(record)
                if record.id == id && fits(&record.content)
                    || matches!(record.content, Content::Quarantine { .. }) =>
            {
                return Ok(());
            }
            Ok(_) => format!("the delete's other half at {other} differs"),
            Err(error) if error.reason() == Reason::StoreFailed => return Err(error),
            Err(error) => format!("the delete's other half at {other}: {error}"),
        };
        self.find(FindingKind::DeleteBroken, sequence, id, what);
        Ok(())
    }

    /// Reports a quarantine that was not healed.
    fn quarantine(&mut self, sequence: Sequence, id: ContentHash, reason: &str) {
        let what = if id == UNKNOWN_ID {
            format!("log record {sequence} was set aside, its article is unknown: {reason}")
        } else {
            format!("article {id} was set aside: {reason}")
        };
        self.find(FindingKind::RecordQuarantined, sequence, id, what);
    }

    /// Compares the sums of all index tables, and looks closer where they differ.
    pub(super) async fn indexes(&mut self) -> Result<()> {
        self.stage = Stage::Index;
        let mut suspects = Vec::new();
        for table in INDEX_TABLES {
            let mut found = Sum::default();
            let mut walk = TableWalk::new(self.reader.store(), key::prefix_range(&[table]));
            while let Some(rows) = walk.next(&mut self.pace).await? {
                let mut newer = Vec::new();
                for row in rows {
                    if row_sequence(table, &row.key, &row.value) > self.as_of {
                        newer.push(row);
                    } else {
                        found.add(&row.key, &row.value);
                        self.report.index_row_count += 1;
                    }
                }
                if !newer.is_empty() {
                    self.unlogged(table, &newer).await?;
                }
                self.tell();
            }
            if found != self.asked.get(&table).copied().unwrap_or_default() {
                suspects.push(table);
            }
        }
        if !suspects.is_empty() {
            self.stage = Stage::Locate;
            self.locate(&suspects).await?;
        }
        Ok(())
    }

    /// Reports that the engine cannot read its files; any other error stays one.
    pub(super) fn unreadable(&mut self, error: Error) -> Result<()> {
        if error.reason() != Reason::StoreDamaged {
            return Err(error);
        }
        self.is_complete = false;
        self.reader.damaged(&error);
        let what = format!("{error}, so the check ends early");
        self.find(FindingKind::StoreDamaged, None, None, what);
        Ok(())
    }

    /// Compares the figures with what the log adds up to, if they are known, and ends the check.
    pub(super) fn finish(mut self, figures: Option<&StoredFigures>) -> VerifyReport {
        let facts = std::mem::take(&mut self.facts);
        if let Some(figures) = figures.filter(|_| self.is_complete) {
            self.report.figures_checked = true;
            self.figures(&facts, figures);
        }
        self.tell();
        self.report
    }

    fn figures(&mut self, facts: &LogFacts, figures: &StoredFigures) {
        let as_of = self.as_of;
        let mut wrong = |what: String| self.find(FindingKind::FiguresWrong, None, None, what);
        if figures.next != as_of + 1 {
            wrong(format!(
                "the next sequence is stored as {}, the last one given is {as_of}",
                figures.next
            ));
        }
        if figures.totals != facts.totals {
            let (stored, log) = (figures.totals, facts.totals);
            wrong(format!(
                "the totals are {stored:?}, the log adds up to {log:?}"
            ));
        }
        for (name, stats) in &facts.sources {
            let stored = figures.sources.get(name).copied().flatten();
            if stored != Some(*stats) {
                wrong(format!(
                    "source {name:?} has the figures {stored:?}, the log adds up to {stats:?}"
                ));
            }
        }
        let strays = figures.sources.keys();
        for name in strays.filter(|name| !facts.sources.contains_key(*name)) {
            wrong(format!("source {name:?} has figures and no articles"));
        }
    }
}

/// The sequence that a row of an index table names; 0 if it cannot be read.
pub(super) fn row_sequence(table: u8, key: &[u8], value: &[u8]) -> Sequence {
    if table == TABLE_HASH {
        HashEntry::decode(value).map_or(0, |entry| entry.sequence)
    } else {
        key::parse_sequence(key).unwrap_or_default()
    }
}

/// Whether table `h` names, instead of the record at a sequence, another one of the same article that
/// has as good a claim to it: any but a quarantine has a better claim than a quarantine.
pub(super) async fn is_superseded(
    reader: Reader<'_>,
    sequence: Sequence,
    id: &ContentHash,
    content: &Content,
) -> Result<bool> {
    if *id == UNKNOWN_ID {
        return Ok(false);
    }
    let entry = reader.value(key::hash(id)).await?;
    let entry = entry.and_then(|entry| HashEntry::decode(&entry).ok());
    let Some(entry) = entry.filter(|entry| entry.sequence != sequence) else {
        return Ok(false);
    };
    let other = intact(reader.record(entry.sequence).await)?;
    Ok(
        match other
            .filter(|other| other.id == *id)
            .map(|other| other.content)
        {
            Some(Content::Article(_) | Content::Tombstone { .. }) => true,
            Some(Content::Quarantine { .. }) => matches!(content, Content::Quarantine { .. }),
            Some(Content::Deletion { .. }) | None => false,
        },
    )
}

/// A record, or nothing if it is damaged or missing; only a failing store is an error.
pub(super) fn intact(read: Result<Record, Error>) -> Result<Option<Record>> {
    match read {
        Ok(record) => Ok(Some(record)),
        Err(error) if error.reason() == Reason::StoreFailed => Err(error),
        Err(_) => Ok(None),
    }
}
