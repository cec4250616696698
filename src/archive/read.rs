//! Reads of single articles: by id, prefix and URL, look-ups of many, sources and figures.

use bytes::Bytes;

use super::reader::{
    FETCH_RECORDS, Reader, advance, behind, not_found, short_answer, wrong_record,
};
use super::scan::{PageBudget, Room};
use super::selector::url_key;
use super::token::{self, Fingerprint};
use super::{Archive, Put, PutOutcome};
use crate::article::{Article, ContentHash, HASH_HEX_DIGITS, Timestamp};
use crate::error::{Error, Kind, Reason, Result, excerpt};
use crate::key::{self, Sequence, meta};
use crate::metrics::Metrics;
use crate::record::{
    self, Content, EntryState, HashEntry, Record, ScrubResult, SourceStats, Totals,
};
use crate::store::{Chunk, Direction, Scan, StoreStats};

/// How many ids an ambiguous prefix is answered with.
const AMBIGUOUS_IDS_SHOWN: usize = 5;

/// An article as it is archived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredArticle {
    /// Its id.
    pub id: ContentHash,
    /// Where it stands in the log.
    pub sequence: Sequence,
    /// When it was archived.
    pub archived_at: Timestamp,
    /// The article.
    pub article: Article,
}

impl StoredArticle {
    /// Takes the article from a record, if it holds one.
    pub(super) fn of(sequence: Sequence, record: Record) -> Option<Self> {
        let Record {
            id,
            archived_at,
            content,
        } = record;
        match content {
            Content::Article(article) => Some(Self {
                id,
                sequence,
                archived_at,
                article,
            }),
            Content::Deletion { .. } | Content::Tombstone { .. } | Content::Quarantine { .. } => {
                None
            }
        }
    }
}

/// What became of the ids of a look-up. Every id asked for is in one list, once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lookup {
    /// Those stored, in the order asked for.
    pub found: Vec<StoredArticle>,
    /// Those never stored.
    pub missing: Vec<ContentHash>,
    /// Those deleted.
    pub deleted: Vec<ContentHash>,
    /// Those whose record was damaged and set aside; storing them again heals them.
    pub quarantined: Vec<ContentHash>,
    /// Those stored that did not fit; ask again for them.
    pub deferred: Vec<ContentHash>,
}

/// Which of many ids are not stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Those never stored, and those quarantined.
    pub missing: Vec<ContentHash>,
    /// Those deleted: storing them again is refused.
    pub deleted: Vec<ContentHash>,
    /// Those of the missing whose record was damaged and set aside; storing them again heals them.
    pub quarantined: Vec<ContentHash>,
    /// How many of the different ids are stored.
    pub stored_count: u64,
}

/// A source and its figures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its name.
    pub name: String,
    /// How many articles it has.
    pub article_count: u64,
    /// The first date of one.
    pub first_published_at: Option<Timestamp>,
    /// The last date of one.
    pub last_published_at: Option<Timestamp>,
}

/// A page of sources, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourcePage {
    /// The sources.
    pub sources: Vec<Source>,
    /// Leads to the next page; none after the last.
    pub next_token: Option<String>,
}

/// Figures about the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Figures kept with the articles.
    pub totals: Totals,
    /// The last sequence given.
    pub last_sequence: Sequence,
    /// What the engine tells.
    pub store: StoreStats,
    /// Articles waiting for the writer.
    pub queued_count: usize,
    /// How the last scrub went, if there was one.
    pub last_scrub: Option<ScrubResult>,
}

impl Archive {
    /// Reads an article.
    ///
    /// # Errors
    /// `ArticleNotFound`; `ArticleDeleted` with the reason; `RecordDamaged`.
    pub async fn get(&self, id: &ContentHash) -> Result<StoredArticle> {
        let entry = self.entry(id).await.map_err(|error| about(id, error))?;
        self.get_at(id, entry.ok_or_else(|| not_found(id))?).await
    }

    /// Reads the article whose id starts with these hex digits, 8 or more, if there is just one.
    /// Deleted articles count.
    ///
    /// # Errors
    /// Those of [`get`](Self::get); `ArgumentInvalid` if these are no hex digits or too few;
    /// `PrefixAmbiguous` naming some of the ids.
    pub async fn get_by_prefix(&self, digits: &str) -> Result<StoredArticle> {
        let digits_min = self.inner.limits.prefix_digits_min;
        let range = key::hash_prefix_range(digits).filter(|_| digits.len() >= digits_min);
        let range = range.ok_or_else(|| {
            let what = format!(
                "{} is not {digits_min} to {HASH_HEX_DIGITS} lower-case hex digits",
                excerpt(digits)
            );
            Error::field(Reason::ArgumentInvalid, "id", what)
        })?;
        let mut found = Vec::new();
        let mut scan = Scan {
            range,
            direction: Direction::Ascending,
            rows_max: AMBIGUOUS_IDS_SHOWN + 1,
            bytes_max: self.inner.limits.group_bytes_max,
        };
        // Rows that are not durable yet do not count, so one chunk may hold too few.
        loop {
            let chunk = self.scan_one(scan.clone()).await?;
            for row in &chunk.rows {
                let entry = HashEntry::decode(&row.value)?;
                let id = key::parse_hash(&row.key).filter(|_| entry.sequence <= self.committed());
                found.extend(id.map(|id| (id, entry)));
            }
            if found.len() > 1 || !advance(&mut scan.range, &chunk) {
                break;
            }
        }
        match found.as_slice() {
            [] => Err(not_found(digits)),
            [(id, entry)] => self.get_at(id, *entry).await,
            several => {
                let ids: Vec<String> = several
                    .iter()
                    .take(AMBIGUOUS_IDS_SHOWN)
                    .map(|(id, _)| id.to_string())
                    .collect();
                let what = format!("{digits} is the prefix of several ids: {}", ids.join(", "));
                Err(Error::field(Reason::PrefixAmbiguous, "id", what))
            }
        }
    }

    /// Reads the latest revision of a URL, which is compared in canonical form.
    ///
    /// # Errors
    /// `ArticleNotFound`; `ArgumentInvalid` if the URL is empty or too long; `RecordDamaged`.
    pub async fn get_by_url(&self, url: &str) -> Result<StoredArticle> {
        let prefix = key::url_prefix(url_key(url)?);
        let mut end = [prefix.as_slice(), &(self.committed() + 1).to_be_bytes()].concat();
        loop {
            let scan = Scan {
                range: prefix.clone()..end,
                direction: Direction::Descending,
                rows_max: 1,
                bytes_max: self.inner.limits.group_bytes_max,
            };
            let chunk = self.scan_one(scan).await?;
            let Some(row) = chunk.rows.first() else {
                return Err(Error::new(
                    Reason::ArticleNotFound,
                    format!("no article has the URL {}", excerpt(url)),
                )
                .with_resource(url));
            };
            let sequence = key::parse_sequence(&row.key).unwrap_or_default();
            let record = self.reader().record(sequence).await?;
            if let Some(stored) = StoredArticle::of(sequence, record) {
                return Ok(stored);
            }
            // Deleted since the index row was read: the revision before it is the latest.
            end = row.key.to_vec();
        }
    }

    /// Reads many articles, until they have `bytes_max` bytes of text.
    ///
    /// # Errors
    /// `ArgumentInvalid` above the limit of ids; `RecordDamaged`.
    pub async fn lookup(&self, ids: &[ContentHash], budget: &PageBudget) -> Result<Lookup> {
        check_count("ids", ids.len(), self.inner.limits.lookup_ids_max)?;
        let mut lookup = Lookup::default();
        let mut stored = Vec::new();
        for (id, entry) in self.entries(ids).await? {
            match entry.map(|entry| (entry.state, entry.sequence)) {
                None => lookup.missing.push(id),
                Some((EntryState::Deleted, _)) => lookup.deleted.push(id),
                Some((EntryState::Quarantined, _)) => lookup.quarantined.push(id),
                Some((EntryState::Stored, sequence)) => stored.push((id, sequence)),
            }
        }
        let reader = self.reader();
        let mut room = Room::new(budget);
        for some in stored.chunks(FETCH_RECORDS) {
            if room.is_full() {
                lookup.deferred.extend(some.iter().map(|(id, _)| *id));
                continue;
            }
            let sequences: Vec<Sequence> = some.iter().map(|(_, sequence)| *sequence).collect();
            let heads = reader.heads(&sequences).await?;
            for ((id, sequence), head) in some.iter().zip(heads) {
                if room.is_full() {
                    lookup.deferred.push(*id);
                    continue;
                }
                let record = reader.complete(*sequence, head).await?;
                match stored_article(id, *sequence, record) {
                    Ok(article) if room.take(&article.article) => lookup.found.push(article),
                    Ok(_) => lookup.deferred.push(*id),
                    Err(error) if error.kind() == Kind::NotFound => lookup.deleted.push(*id),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(lookup)
    }

    /// What putting articles of these ids would be answered with if they are stored or deleted
    /// already, in the order of the ids. Asking spares them their way to the writer; what comes in
    /// meanwhile is found there.
    ///
    /// # Errors
    /// `StoreFailed`, `IndexDamaged`.
    pub async fn known(&self, ids: &[ContentHash]) -> Result<Vec<Option<Put>>> {
        let keys = ids.iter().map(key::hash).collect();
        let committed = self.committed();
        let values = self.reader().get_many(keys).await?;
        let answer = |(id, value): (&ContentHash, Option<Bytes>)| {
            let entry = value.map(|value| HashEntry::decode(&value)).transpose()?;
            // What is not durable yet is not acknowledged; the writer waits until it is.
            let entry = entry.filter(|entry| entry.sequence <= committed);
            let metrics = self.metrics();
            let outcome = match entry.map(|entry| entry.state) {
                Some(EntryState::Stored) => {
                    metrics.duplicate.inc();
                    PutOutcome::Duplicate
                }
                Some(EntryState::Deleted) => {
                    metrics.put_deleted.inc();
                    PutOutcome::Deleted
                }
                Some(EntryState::Quarantined) | None => return Ok(None),
            };
            Ok(entry.map(|entry| Put {
                id: *id,
                sequence: entry.sequence,
                outcome,
            }))
        };
        ids.iter().zip(values).map(answer).collect()
    }

    /// Tells which of many ids are not stored, from the index alone.
    ///
    /// # Errors
    /// `ArgumentInvalid` above the limit of ids.
    pub async fn find_missing(&self, ids: &[ContentHash]) -> Result<Missing> {
        check_count("ids", ids.len(), self.inner.limits.find_missing_ids_max)?;
        let mut answer = Missing::default();
        for (id, entry) in self.entries(ids).await? {
            match entry.map(|entry| entry.state) {
                None => answer.missing.push(id),
                Some(EntryState::Deleted) => answer.deleted.push(id),
                Some(EntryState::Quarantined) => {
                    answer.missing.push(id);
                    answer.quarantined.push(id);
                }
                Some(EntryState::Stored) => answer.stored_count += 1,
            }
        }
        Ok(answer)
    }

    /// Lists sources by name, in byte order.
    ///
    /// # Errors
    /// `PageTokenInvalid`, `PageTokenMismatch`.
    pub async fn list_sources(&self, count_max: usize, token: &str) -> Result<SourcePage> {
        let fingerprint = Fingerprint::of(b"sources");
        let mut range = meta::sources();
        if !token.is_empty() {
            let last = token::decode(token, fingerprint)?;
            range.start = behind(&[meta::source("").as_slice(), &last].concat());
        }
        let scan = Scan {
            range,
            direction: Direction::Ascending,
            rows_max: count_max,
            bytes_max: self.inner.limits.response_bytes_max,
        };
        let chunk = self.scan_one(scan).await?;
        let sources = chunk.rows.iter().map(|row| {
            let name = meta::parse_source(&row.key).ok_or_else(|| {
                Error::new(
                    Reason::IndexDamaged,
                    "a source has a name that cannot be read",
                )
            })?;
            let stats = SourceStats::decode(&row.value)?;
            Ok(Source {
                name: name.to_owned(),
                article_count: stats.article_count,
                first_published_at: stats.first_published_at(),
                last_published_at: stats.last_published_at(),
            })
        });
        let sources = sources.collect::<Result<Vec<_>>>()?;
        let last = sources.last().filter(|_| !chunk.exhausted);
        let next_token = last.map(|last| token::encode(fingerprint, last.name.as_bytes()));
        Ok(SourcePage {
            sources,
            next_token,
        })
    }

    /// Reports figures.
    ///
    /// # Errors
    /// `StoreFailed`, `IndexDamaged`.
    pub async fn stats(&self) -> Result<Stats> {
        let (_, totals) = self.figures().await?;
        let scrub = self.reader().value(meta::scrub()).await?;
        let queue = &self.inner.queue;
        Ok(Stats {
            last_scrub: scrub.and_then(|scrub| readable_scrub(&scrub)),
            totals,
            last_sequence: self.committed(),
            store: self.inner.store.stats().await?,
            queued_count: queue.max_capacity() - queue.capacity(),
        })
    }

    /// What this archive did since it was opened.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// The next sequence and the totals, as they are stored.
    pub(super) async fn figures(&self) -> Result<(Sequence, Totals)> {
        let keys = vec![meta::next_sequence(), meta::totals()];
        let values = self.reader().get_many(keys).await?;
        let [Some(next), Some(totals)] = values.as_slice() else {
            let what = "the archive has lost its figures; run `pressmark verify --repair` on it";
            return Err(Error::new(Reason::IndexDamaged, what));
        };
        Ok((record::decode_sequence(next)?, Totals::decode(totals)?))
    }

    pub(super) fn reader(&self) -> Reader<'_> {
        let inner = &self.inner;
        Reader::new(&*inner.store, &inner.metrics, &inner.dictionaries)
    }

    /// Reads one chunk.
    pub(super) async fn scan_one(&self, scan: Scan) -> Result<Chunk> {
        let chunks = self.reader().scan_many(vec![scan]).await?;
        chunks.into_iter().next().ok_or_else(short_answer)
    }

    async fn entry(&self, id: &ContentHash) -> Result<Option<HashEntry>> {
        let entry = self.reader().entry(id).await?;
        Ok(entry.filter(|entry| entry.sequence <= self.committed()))
    }

    /// The entries of ids that are durable, each id once, in the order of their first mention.
    async fn entries(&self, ids: &[ContentHash]) -> Result<Vec<(ContentHash, Option<HashEntry>)>> {
        let mut seen = std::collections::HashSet::with_capacity(ids.len());
        let ids: Vec<ContentHash> = ids.iter().filter(|id| seen.insert(**id)).copied().collect();
        let keys = ids.iter().map(key::hash).collect();
        let committed = self.committed();
        let values = self.reader().get_many(keys).await?;
        let entry = |(id, value): (ContentHash, Option<Bytes>)| {
            let entry = value.map(|value| HashEntry::decode(&value)).transpose()?;
            Ok((id, entry.filter(|entry| entry.sequence <= committed)))
        };
        ids.into_iter().zip(values).map(entry).collect()
    }

    async fn get_at(&self, id: &ContentHash, entry: HashEntry) -> Result<StoredArticle> {
        let record = self.reader().record(entry.sequence).await;
        let record = record.map_err(|error| about(id, error))?;
        stored_article(id, entry.sequence, record)
    }
}

/// Takes the article from a record that an index named; a tombstone says why it is gone.
fn stored_article(id: &ContentHash, sequence: Sequence, record: Record) -> Result<StoredArticle> {
    let archived_at = record.archived_at;
    match record.content {
        Content::Article(article) if record.id == *id => Ok(StoredArticle {
            id: *id,
            sequence,
            archived_at,
            article,
        }),
        Content::Tombstone { reason, .. } if record.id == *id => Err(Error::new(
            Reason::ArticleDeleted,
            format!("article {id} was deleted at {archived_at}: {reason}"),
        )
        .with_resource(id.to_string())),
        Content::Quarantine { reason, .. } if record.id == *id => {
            Err(quarantined(id, archived_at, &reason))
        }
        Content::Article(_)
        | Content::Tombstone { .. }
        | Content::Deletion { .. }
        | Content::Quarantine { .. } => Err(wrong_record(id, sequence)),
    }
}

/// How the last scrub went, unless that cannot be read: then it is as if there was none, and the
/// next one writes it anew.
fn readable_scrub(value: &[u8]) -> Option<ScrubResult> {
    let result = ScrubResult::decode(value);
    result
        .inspect_err(|error| tracing::warn!(%error, "the result of the last scrub is damaged"))
        .ok()
}

/// Damage that an article was read by, with the article named.
fn about(id: &ContentHash, error: Error) -> Error {
    let id = id.to_string();
    if error.kind() != Kind::DataLoss || error.resource() == Some(&id) {
        return error;
    }
    Error::new(error.reason(), format!("article {id} cannot be read"))
        .with_source(error)
        .with_resource(id)
}

/// The article is known and its text is not: its record was damaged and set aside.
fn quarantined(id: &ContentHash, noticed_at: Timestamp, reason: &str) -> Error {
    let what = format!(
        "article {id} was set aside at {noticed_at}, because its {reason}; store it again, or heal \
         it from a backup"
    );
    Error::new(Reason::ArticleQuarantined, what).with_resource(id.to_string())
}

fn check_count(field: &str, count: usize, count_max: usize) -> Result<()> {
    if (1..=count_max).contains(&count) {
        return Ok(());
    }
    let what = format!("{count} ids, a call needs 1 to {count_max}");
    Err(Error::field(Reason::ArgumentInvalid, field, what))
}
