//! The index itself: its fields, what it takes from an article, and how it is opened, written and
//! thrown away. Nothing of an article's text is stored in it; the archive has that.

use std::fs;
use std::path::Path;

use tantivy::directory::{MmapDirectory, RamDirectory};
use tantivy::schema::{
    FAST, Field, INDEXED, IndexRecordOption, STRING, Schema, TextFieldIndexing, TextOptions,
};
use tantivy::{
    Index, IndexReader, IndexSettings, IndexWriter, ReloadPolicy, Searcher, TantivyDocument, Term,
};

use super::words::{ANALYZER, analyzer};
use super::{Place, failed};
use crate::archive::{Change, StoredArticle};
use crate::article::{ContentHash, Timestamp};
use crate::error::{Error, Reason, Result};

/// Changes with whatever makes an older index useless: fields, words, or what is indexed how.
const VERSION: u32 = 1;

/// Memory in which new articles gather before they become a segment.
const ARENA_BYTES: usize = 32 * 1024 * 1024;

/// Bytes that a disk has left at least while the index is written, besides as many as the index has.
const ROOM_BYTES_MIN: u64 = 256 * 1024 * 1024;

/// The date of undated articles, before all others.
pub(super) const UNDATED: i64 = i64::MIN;

/// The names of fields, which queries use as well.
pub(super) const SEQUENCE: &str = "sequence";
pub(super) const PUBLISHED: &str = "published";

/// The fields of a document.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields {
    pub(super) sequence: Field,
    /// The first bytes of the id. An article that was damaged and healed was indexed twice, and a
    /// delete takes both away.
    id: Field,
    /// Seconds since 1970.
    pub(super) published: Field,
    pub(super) source: Field,
    pub(super) author: Field,
    pub(super) title: Field,
    pub(super) body: Field,
}

fn schema() -> (Schema, Fields) {
    let mut schema = Schema::builder();
    let words = TextFieldIndexing::default()
        .set_tokenizer(ANALYZER)
        .set_index_option(IndexRecordOption::WithFreqsAndPositions);
    let text = TextOptions::default().set_indexing_options(words);
    let fields = Fields {
        sequence: schema.add_u64_field(SEQUENCE, INDEXED | FAST),
        id: schema.add_u64_field("id", INDEXED),
        published: schema.add_i64_field(PUBLISHED, FAST),
        source: schema.add_text_field("source", STRING),
        author: schema.add_text_field("author", text.clone()),
        title: schema.add_text_field("title", text.clone()),
        body: schema.add_text_field("body", text),
    };
    (schema.build(), fields)
}

/// What searches see: the articles of the log up to a sequence.
#[derive(Clone)]
pub(super) struct Snapshot {
    pub(super) searcher: Searcher,
    pub(super) fields: Fields,
    pub(super) sequence: u64,
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut snapshot = f.debug_struct("Snapshot");
        snapshot
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

/// Up to where an index has the log of which archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// The archive's random id.
    pub(super) archive: String,
    /// The last sequence.
    pub(super) sequence: u64,
    /// The id that the record at that sequence names.
    pub(super) id: ContentHash,
}

impl Mark {
    fn encode(&self) -> String {
        format!("{VERSION} {} {} {}", self.archive, self.sequence, self.id)
    }

    fn decode(payload: &str) -> Option<Self> {
        let mut parts = payload.split(' ');
        let version: u32 = parts.next()?.parse().ok()?;
        let mark = Self {
            archive: parts.next()?.to_owned(),
            sequence: parts.next()?.parse().ok()?,
            id: parts.next()?.parse().ok()?,
        };
        (version == VERSION && parts.next().is_none()).then_some(mark)
    }
}

/// What an index says of itself when it is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// It has the log up to here.
    Marked(Mark),
    /// It is new.
    Empty,
    /// Something else wrote it.
    Foreign,
}

/// An open index.
pub(super) struct OpenIndex {
    writer: IndexWriter,
    reader: IndexReader,
    fields: Fields,
}

impl OpenIndex {
    /// Opens an index where it is, or an empty one. Also tells up to where it has the log.
    pub(super) fn open(place: &Place) -> Result<(Self, Found)> {
        let (schema, fields) = schema();
        let index = match place {
            Place::Folder(folder) => {
                fs::create_dir_all(folder).map_err(|error| {
                    let what = format!("cannot create {}", folder.display());
                    Error::new(Reason::SearchFailed, what).with_source(error)
                })?;
                let directory = MmapDirectory::open(folder);
                let directory = directory.map_err(|error| failed(error.into()))?;
                Index::open_or_create(directory, schema)
            }
            Place::Memory => {
                Index::create(RamDirectory::create(), schema, IndexSettings::default())
            }
        };
        let index = index.map_err(failed)?;
        index.tokenizers().register(ANALYZER, analyzer());
        let payload = index.load_metas().map_err(failed)?.payload;
        let writer = index.writer_with_num_threads(1, ARENA_BYTES);
        let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual);
        let open = Self {
            writer: writer.map_err(failed)?,
            reader: reader.try_into().map_err(failed)?,
            fields,
        };
        let found = match payload {
            Some(payload) => Mark::decode(&payload).map_or(Found::Foreign, Found::Marked),
            None if index_is_empty(&open.writer)? => Found::Empty,
            None => Found::Foreign,
        };
        Ok((open, found))
    }

    /// What searches see after the last commit, which was at a sequence.
    pub(super) fn snapshot(&self, sequence: u64) -> Result<Snapshot> {
        self.reader.reload().map_err(failed)?;
        Ok(Snapshot {
            searcher: self.reader.searcher(),
            fields: self.fields,
            sequence,
        })
    }

    /// Takes up one change.
    pub(super) fn apply(&mut self, change: &Change) -> Result<()> {
        match change {
            Change::Stored(stored) => {
                let document = self.document(stored);
                self.writer.add_document(document).map_err(failed)?;
            }
            Change::Deleted { id, .. } => {
                let term = Term::from_field_u64(self.fields.id, id_start(id));
                self.writer.delete_term(term);
            }
        }
        Ok(())
    }

    fn document(&self, stored: &StoredArticle) -> TantivyDocument {
        let article = &stored.article;
        let published = article.published_at();
        let mut document = TantivyDocument::new();
        document.add_u64(self.fields.sequence, stored.sequence);
        document.add_u64(self.fields.id, id_start(&stored.id));
        let seconds = published.map_or(UNDATED, Timestamp::seconds);
        document.add_i64(self.fields.published, seconds);
        document.add_text(self.fields.source, article.source());
        document.add_text(self.fields.author, article.author());
        document.add_text(self.fields.title, article.title());
        document.add_text(self.fields.body, article.body());
        document
    }

    /// Makes durable and visible what was taken up.
    pub(super) fn commit(&mut self, mark: &Mark) -> Result<Snapshot> {
        let mut commit = self.writer.prepare_commit().map_err(failed)?;
        commit.set_payload(&mark.encode());
        commit.commit().map_err(failed)?;
        self.snapshot(mark.sequence)
    }

    /// Begins to write segments with deleted articles anew, in the background, and tells whether
    /// there are any. A delete promises that the text goes, and the words of an article with their
    /// places are its text. Whoever asks, asks again until there are none: a segment that is being
    /// merged already cannot be merged now.
    pub(super) fn forget_deleted(&mut self) -> Result<bool> {
        let segments = self.writer.index().searchable_segment_metas();
        let mut has_deleted = false;
        for segment in segments.map_err(failed)? {
            if segment.num_deleted_docs() > 0 {
                has_deleted = true;
                // Nobody waits for it; whether it was done is seen in the segments.
                drop(self.writer.merge(&[segment.id()]));
            }
        }
        Ok(has_deleted)
    }

    /// Waits for what is written in the background, which would otherwise write into what comes next.
    pub(super) fn close(self) -> Result<()> {
        self.writer.wait_merging_threads().map_err(failed)
    }
}

fn id_start(id: &ContentHash) -> u64 {
    let first = id.as_bytes().first_chunk();
    first.map_or(0, |first| u64::from_be_bytes(*first))
}

fn index_is_empty(writer: &IndexWriter) -> Result<bool> {
    let segments = writer.index().searchable_segment_ids();
    Ok(segments.map_err(failed)?.is_empty())
}

/// Fails if the disk has so little room that the archive may soon need it: a merge takes as much again
/// as what it merges, and all of what is left must not go into an index.
pub(super) fn check_room(place: &Place) -> Result<()> {
    let Place::Folder(folder) = place else {
        return Ok(());
    };
    let disk = rustix::fs::statvfs(folder).map_err(|error| {
        let what = format!("cannot tell how much room {} has", folder.display());
        Error::new(Reason::StoreFailed, what).with_source(std::io::Error::from(error))
    })?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let needed = ROOM_BYTES_MIN.saturating_add(disk_bytes(folder));
    if free >= needed {
        return Ok(());
    }
    let what = format!(
        "the disk of {} has {free} bytes left, and the search index goes on from {needed}",
        folder.display()
    );
    Err(Error::new(Reason::DiskFull, what))
}

/// Throws the index away.
pub(super) fn wipe(place: &Place) -> Result<()> {
    let Place::Folder(folder) = place else {
        return Ok(());
    };
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            let what = format!("cannot remove {}", folder.display());
            Err(Error::new(Reason::SearchFailed, what).with_source(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Bytes of all files of the index.
pub(super) fn disk_bytes(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = files.filter_map(|file| Some(file.metadata().ok()?.len()));
    bytes.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_read_back() {
        let mark = Mark {
            archive: "0a0b".into(),
            sequence: 7,
            id: ContentHash::of(b""),
        };
        assert_eq!(Mark::decode(&mark.encode()), Some(mark.clone()));
        let other = mark.encode().replacen('1', "0", 1);
        for wrong in ["", "1", "1 a 2", &other, &(mark.encode() + " x")] {
            assert_eq!(Mark::decode(wrong), None, "{wrong}");
        }
    }
}
