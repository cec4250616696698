//! What the archive knows of a group of articles before they are written.

use std::collections::HashMap;

use super::super::job::Prepared;
use super::super::reader;
use super::Writer;
use crate::article::ContentHash;
use crate::error::Result;
use crate::key::{self, ShortHash, meta};
use crate::record::{self, EntryState, HashEntry, SourceStats};
use crate::store::{Direction, Scan};

/// What the archive already knows of a group of articles.
pub(super) struct Known {
    pub(super) entries: Vec<Option<HashEntry>>,
    pub(super) sources: HashMap<String, SourceStats>,
    pub(super) latest: HashMap<ShortHash, ContentHash>,
}

impl Writer {
    /// Reads, in two rounds for the whole group, all that decides what becomes of its articles.
    pub(super) async fn known(&self, articles: &[Prepared]) -> Result<Known> {
        let ids = articles.iter().map(|article| article.facts.id);
        let names = articles.iter().map(|article| article.facts.source.as_str());
        let (entries, sources) = self.entries_and_sources(ids, names).await?;
        // A quarantined article is stored anew, and is a revision like any other.
        let is_new = |entry: &Option<HashEntry>| {
            entry.is_none_or(|entry| entry.state == EntryState::Quarantined)
        };
        let new = articles
            .iter()
            .zip(&entries)
            .filter(|(_, entry)| is_new(entry));
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

    /// What stands in table `h` for ids, and the figures of sources.
    pub(super) async fn entries_and_sources(
        &self,
        ids: impl Iterator<Item = ContentHash>,
        names: impl Iterator<Item = &str>,
    ) -> Result<(Vec<Option<HashEntry>>, HashMap<String, SourceStats>)> {
        let mut keys: Vec<Vec<u8>> = ids.map(|id| key::hash(&id)).collect();
        let id_count = keys.len();
        let mut names: Vec<&str> = names.collect();
        names.sort_unstable();
        names.dedup();
        keys.extend(names.iter().map(|name| meta::source(name)));
        let mut values = self.store.get_many(keys).await?;
        let stats = values.split_off(id_count);
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
        Ok((entries, sources))
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
}
