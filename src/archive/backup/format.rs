//! The bytes of a backup: a file or a stream that holds the records of one stretch of the log, each
//! in a form that does not depend on the engine or on how the archive compresses them. Pure.
//!
//! ```text
//! file     magic:8 "PRESSMRK"   version:1   then frames: one header, data, one trailer
//!
//! frame    type:1 length:4 checksum:16 payload:length
//!          checksum = first 16 bytes of BLAKE3 over the frame's number (u64, the header's is 0), type,
//!          length and payload, so that frames cannot change places
//!
//! header   1  archive id:16  first sequence:8  id of the record before it:32 (zeros before the first)
//! data     2  length:4 of what follows when decompressed, then zstd of entries
//! trailer  3  last sequence:8  records:8  BLAKE3 of all bytes of the file before this frame:32
//!
//! entry    sequence:8  kind:1  seconds:8  nanoseconds:4  id:32  length:4  payload:length
//!          sequences are dense; seconds and nanoseconds since 1970 say when the record was made
//! kind     1 article     payload: the canonical text, whose BLAKE3 is the id
//!          2 deletion    payload: sequence of the article:8, reason
//!          3 tombstone   payload: sequence of the deletion:8, reason
//!          4 quarantine  payload: state:1 (1 deleted, 2 quarantined), reason
//! ```
//!
//! Integers are big-endian, texts UTF-8. A backup without its trailer is unfinished.

use crate::article::{Article, ContentHash, HASH_BYTES, TEXT_BYTES_MAX};
use crate::error::{Error, Reason, Result};
use crate::key::Sequence;
use crate::record::{Content, Record};

/// The first bytes of every backup.
pub(super) const MAGIC: &[u8; 8] = b"PRESSMRK";
/// The version of the format that is written and read.
pub(super) const VERSION: u8 = 1;
pub(super) const PREFIX_BYTES: usize = MAGIC.len() + 1;

pub(super) const TYPE_HEADER: u8 = 1;
pub(super) const TYPE_DATA: u8 = 2;
pub(super) const TYPE_TRAILER: u8 = 3;
pub(super) const CHECKSUM_BYTES: usize = 16;
pub(super) const FRAME_HEAD_BYTES: usize = 1 + 4 + CHECKSUM_BYTES;

pub(super) const ARCHIVE_ID_BYTES: usize = 16;
pub(super) const HEADER_BYTES: usize = ARCHIVE_ID_BYTES + 8 + HASH_BYTES;
const TRAILER_BYTES: usize = 8 + 8 + HASH_BYTES;
const ENTRY_HEAD_BYTES: usize = 8 + 1 + 8 + 4 + HASH_BYTES + 4;
const _: () = assert!(ENTRY_HEAD_BYTES == 57 && HEADER_BYTES == 56 && TRAILER_BYTES == 48);

/// Entries gather to this before they are compressed into a frame.
const FRAME_BYTES: usize = 1024 * 1024;
/// The longest frame, decompressed: one that was not full took one more article.
pub(super) const FRAME_BYTES_MAX: usize = FRAME_BYTES + ENTRY_HEAD_BYTES + TEXT_BYTES_MAX;
/// The longest payload: data that could not be compressed, with what zstd adds to it.
pub(super) const PAYLOAD_BYTES_MAX: usize = FRAME_BYTES_MAX + FRAME_BYTES_MAX / 128 + 1024;

/// zstd's own default.
const ZSTD_LEVEL: i32 = 3;

/// The random name of an archive, which its backups carry.
pub type ArchiveId = [u8; ARCHIVE_ID_BYTES];

/// What a backup is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The archive.
    pub archive_id: ArchiveId,
    /// The first sequence in it: 1 for a whole backup, more for an increment.
    pub first: Sequence,
    /// The id of the record before it, by which an increment finds its place; zeros before the first.
    pub before: ContentHash,
}

/// What a backup ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// The last sequence in it; one less than the first if it is empty.
    pub last: Sequence,
    /// How many records it has.
    pub record_count: u64,
}

/// One record of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it stands.
    pub sequence: Sequence,
    /// What it is.
    pub record: Record,
}

impl Entry {
    /// The article, if the record is one.
    #[must_use]
    pub fn into_article(self) -> Option<(ContentHash, Article)> {
        match self.record.content {
            Content::Article(article) => Some((self.record.id, article)),
            Content::Deletion { .. } | Content::Tombstone { .. } | Content::Quarantine { .. } => {
                None
            }
        }
    }
}

/// What writer and reader of a backup both know of the part that they are through with.
#[derive(Clone, Debug)]
pub(super) struct Progress {
    hasher: blake3::Hasher,
    pub(super) bytes: u64,
    pub(super) frame_count: u64,
    pub(super) next: Sequence,
    pub(super) record_count: u64,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self {
            hasher: blake3::Hasher::new(),
            bytes: 0,
            frame_count: 0,
            next: 0,
            record_count: 0,
        }
    }

    pub(super) fn pass(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.bytes += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    }

    pub(super) fn checksum(&self, kind: u8, payload: &[u8]) -> [u8; CHECKSUM_BYTES] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.frame_count.to_be_bytes());
        hasher.update(&[kind]);
        hasher.update(&length_bytes(payload.len()));
        hasher.update(payload);
        let mut short = [0; CHECKSUM_BYTES];
        hasher.finalize_xof().fill(&mut short);
        short
    }

    pub(super) fn trailer(&self) -> Trailer {
        Trailer {
            last: self.next.saturating_sub(1),
            record_count: self.record_count,
        }
    }

    pub(super) fn trailer_payload(&self) -> Vec<u8> {
        let trailer = self.trailer();
        [
            trailer.last.to_be_bytes().as_slice(),
            &trailer.record_count.to_be_bytes(),
            self.hasher.finalize().as_bytes(),
        ]
        .concat()
    }
}

fn length_bytes(length: usize) -> [u8; 4] {
    // No payload comes near the limit of 4 GiB.
    u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes()
}

/// Writes a backup, frame by frame.
#[derive(Debug)]
pub struct Encoder {
    progress: Progress,
    entries: Vec<u8>,
}

impl Encoder {
    /// Goes on behind the frames that were passed.
    pub(super) fn resume(progress: Progress) -> Self {
        Self {
            progress,
            entries: Vec::new(),
        }
    }

    /// Begins a backup. Returns its first bytes as well.
    #[must_use]
    pub fn new(header: &Header) -> (Self, Vec<u8>) {
        let mut encoder = Self {
            progress: Progress::new(),
            entries: Vec::new(),
        };
        encoder.progress.next = header.first;
        let mut bytes = [MAGIC.as_slice(), &[VERSION]].concat();
        encoder.progress.pass(&bytes);
        let payload = [
            header.archive_id.as_slice(),
            &header.first.to_be_bytes(),
            header.before.as_bytes(),
        ]
        .concat();
        bytes.extend(encoder.frame(TYPE_HEADER, &payload));
        (encoder, bytes)
    }

    /// Adds the records at the next sequences. Returns the frames that are full.
    ///
    /// # Errors
    /// Those of [`add`](Self::add).
    pub fn add_all(&mut self, entries: &[Entry]) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for entry in entries {
            bytes.extend(self.add(entry.sequence, &entry.record)?.unwrap_or_default());
        }
        Ok(bytes)
    }

    /// Adds the record at the next sequence. Returns a frame if one is full.
    ///
    /// # Errors
    /// `Internal` if it is another sequence's, or zstd fails.
    pub fn add(&mut self, sequence: Sequence, record: &Record) -> Result<Option<Vec<u8>>> {
        let expected = self.progress.next;
        if sequence != expected {
            let what = format!("a backup was given record {sequence} in the place of {expected}");
            return Err(Error::new(Reason::Internal, what));
        }
        self.progress.next += 1;
        self.progress.record_count += 1;
        let (kind, payload) = record.content.encode();
        let entries = &mut self.entries;
        entries.extend_from_slice(&sequence.to_be_bytes());
        entries.push(kind);
        entries.extend_from_slice(&record.archived_at.seconds().to_be_bytes());
        entries.extend_from_slice(&record.archived_at.nanos().to_be_bytes());
        entries.extend_from_slice(record.id.as_bytes());
        entries.extend_from_slice(&length_bytes(payload.len()));
        entries.extend_from_slice(&payload);
        if self.entries.len() < FRAME_BYTES {
            return Ok(None);
        }
        self.flush()
    }

    /// Returns a frame of what has gathered, if anything has.
    ///
    /// # Errors
    /// `Internal` if zstd fails.
    pub fn flush(&mut self) -> Result<Option<Vec<u8>>> {
        if self.entries.is_empty() {
            return Ok(None);
        }
        let entries = std::mem::take(&mut self.entries);
        let compressed = zstd::bulk::compress(&entries, ZSTD_LEVEL).map_err(|error| {
            Error::new(Reason::Internal, "zstd failed to compress").with_source(error)
        })?;
        let payload = [length_bytes(entries.len()).as_slice(), &compressed].concat();
        Ok(Some(self.frame(TYPE_DATA, &payload)))
    }

    /// Ends the backup. Returns its last bytes.
    ///
    /// # Errors
    /// `Internal` if zstd fails.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        let mut bytes = self.flush()?.unwrap_or_default();
        let payload = self.progress.trailer_payload();
        bytes.extend(self.frame(TYPE_TRAILER, &payload));
        Ok(bytes)
    }

    /// What the backup would end with now.
    #[must_use]
    pub fn trailer(&self) -> Trailer {
        self.progress.trailer()
    }

    /// The bytes of all frames so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.progress.bytes
    }

    fn frame(&mut self, kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![kind];
        frame.extend_from_slice(&length_bytes(payload.len()));
        frame.extend_from_slice(&self.progress.checksum(kind, payload));
        frame.extend_from_slice(payload);
        self.progress.pass(&frame);
        self.progress.frame_count += 1;
        frame
    }
}
