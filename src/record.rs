//! The value of a log row: one article or one deletion, in a form that can prove itself intact.
//! Pure: no I/O, no clock. The values of the other tables are in `record/index.rs`, and those of
//! dictionaries in `record/dictionary.rs`.
//!
//! ```text
//!  0   1  format    1
//!  1   1  kind      1 article, 2 deletion, 3 tombstone, 4 quarantine
//!  2   1  codec     0 stored, 1 zstd (its frame names the dictionary, if it needs one)
//!  3   8  checksum  first 8 bytes of BLAKE3 over all other bytes of the record
//! 11   8  archived  seconds since 1970, i64: when the server took it in, or deleted it
//! 19   4  archived  nanoseconds, u32
//! 23  32  id        of the article; zeros in a quarantine whose article nobody knows
//! 55   4  text      bytes of the payload before compression, u32
//! 59   4  payload   bytes of the payload over all rows, u32
//! 63   .  payload   article: its canonical text
//!                   deletion and tombstone: sequence of the counterpart (8), reason (UTF-8)
//!                   quarantine: state that table h had (1), what was wrong (UTF-8)
//! ```
//!
//! A record above [`ROW_BYTES_MAX`] is cut: the first row is full, the others hold only payload.
//!
//! A delete is itself a record of the log (kind 2, at a sequence of its own, so that a reader who
//! follows the log learns of it), and the article's record becomes a tombstone (kind 3) that holds
//! no text. Each names the other's sequence.
//!
//! A record that cannot prove itself any more is set aside by a repair: its bytes move to table `q`,
//! and a quarantine (kind 4) keeps its place in the log. The article is stored again, at a new
//! sequence, by the next put of the same text.

mod codec;
mod content;
mod dictionary;
mod index;

use bytes::Bytes;

use self::codec::Refusal;
pub use self::content::Content;
use self::content::KIND_ARTICLE;
pub use self::dictionary::{Dictionaries, Dictionary, DictionaryId};
pub use self::index::{
    ARCHIVE_FORMAT, ARCHIVE_FORMAT_PLAIN, Digest, EntryState, HashEntry, ScrubResult, SourceMark,
    SourceStats, Totals, decode_format, decode_near_copies, decode_sequence, encode_near_copies,
    index_rows,
};
use crate::article::{Article, ContentHash, HASH_BYTES, TEXT_BYTES_MAX, Timestamp};
use crate::error::{Error, Reason, Result};
use crate::key::Sequence;

/// The format of records.
pub const FORMAT: u8 = 1;

/// The largest row value: the engine keeps larger ones in files of their own, which it never syncs.
pub const ROW_BYTES_MAX: usize = 64 * 1024;

/// The longest reason of a deletion.
pub const REASON_BYTES_MAX: usize = 1024;

/// The id in the quarantine of a record that has lost its own. No text is known to have this hash.
pub const UNKNOWN_ID: ContentHash = ContentHash::from_bytes([0; HASH_BYTES]);

const KIND_AT: usize = 1;
const CODEC_AT: usize = KIND_AT + 1;
const CHECKSUM_AT: usize = CODEC_AT + 1;
const CHECKSUM_BYTES: usize = 8;
const SECONDS_AT: usize = CHECKSUM_AT + CHECKSUM_BYTES;
const NANOS_AT: usize = SECONDS_AT + 8;
const ID_AT: usize = NANOS_AT + 4;
const TEXT_BYTES_AT: usize = ID_AT + HASH_BYTES;
const PAYLOAD_BYTES_AT: usize = TEXT_BYTES_AT + 4;
const HEADER_BYTES: usize = PAYLOAD_BYTES_AT + 4;
const _: () = assert!(HEADER_BYTES == 63 && HEADER_BYTES < ROW_BYTES_MAX);

const CODEC_STORED: u8 = 0;
const CODEC_ZSTD: u8 = 1;

/// One record of the log, verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The id of the article that it holds, deletes or held; [`UNKNOWN_ID`] if nobody knows.
    pub id: ContentHash,
    /// When the server took the article in, or deleted it.
    pub archived_at: Timestamp,
    /// What it says.
    pub content: Content,
}

/// The rows of one record, ready to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows(Vec<Vec<u8>>);

impl Rows {
    /// The values: the first row, then the further ones, which count from 1.
    #[must_use]
    pub fn into_values(self) -> Vec<Vec<u8>> {
        self.0
    }

    /// The dictionary that the record was made with, if there is one.
    #[must_use]
    pub fn dictionary(&self) -> Option<DictionaryId> {
        self.0.first().and_then(|first| peek_dictionary(first))
    }

    /// Bytes of all values.
    #[must_use]
    pub fn stored_bytes(&self) -> usize {
        self.0.iter().map(Vec::len).sum()
    }
}

/// Encodes an article whose id and canonical text are known, with the current dictionary of those
/// that its archive has.
///
/// # Errors
/// `Internal` if the compressor fails or the text is longer than any article's.
pub fn encode_article(
    id: ContentHash,
    archived_at: Timestamp,
    text: &str,
    dictionaries: &Dictionaries,
) -> Result<Rows> {
    let compressed = codec::compress(text.as_bytes(), dictionaries)?;
    let (codec, payload) = if compressed.len() < text.len() {
        (CODEC_ZSTD, compressed.as_slice())
    } else {
        (CODEC_STORED, text.as_bytes())
    };
    encode(KIND_ARTICLE, codec, id, archived_at, text.len(), payload)
}

/// Encodes the two records of a delete: the deletion and the tombstone, in this order.
///
/// # Errors
/// `Internal` if the reason is longer than any reason.
pub fn encode_delete(
    id: ContentHash,
    deleted_at: Timestamp,
    reason: &str,
    article: Sequence,
    deletion: Sequence,
) -> Result<[Rows; 2]> {
    let reason = reason.to_owned();
    let tombstone = Content::Tombstone {
        deletion,
        reason: reason.clone(),
    };
    Ok([
        encode_stored(id, deleted_at, &Content::Deletion { article, reason })?,
        encode_stored(id, deleted_at, &tombstone)?,
    ])
}

/// Encodes what keeps the place of a damaged record. A longer text of what was wrong is cut.
///
/// # Errors
/// None that a caller could cause.
pub fn encode_quarantine(
    id: ContentHash,
    noticed_at: Timestamp,
    state: EntryState,
    reason: &str,
) -> Result<Rows> {
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let reason = reason.get(..end).unwrap_or_default().to_owned();
    encode_stored(id, noticed_at, &Content::Quarantine { state, reason })
}

/// Encodes what is too short to be compressed.
fn encode_stored(id: ContentHash, archived_at: Timestamp, content: &Content) -> Result<Rows> {
    let (kind, payload) = content.encode();
    encode(kind, CODEC_STORED, id, archived_at, payload.len(), &payload)
}

fn encode(
    kind: u8,
    codec: u8,
    id: ContentHash,
    archived_at: Timestamp,
    text_bytes: usize,
    payload: &[u8],
) -> Result<Rows> {
    let length = |bytes: usize| {
        u32::try_from(bytes)
            .ok()
            .filter(|_| bytes <= TEXT_BYTES_MAX)
            .ok_or_else(|| Error::new(Reason::Internal, format!("a record of {bytes} bytes")))
    };
    let mut record = Vec::with_capacity(HEADER_BYTES + payload.len());
    record.extend_from_slice(&[FORMAT, kind, codec]);
    record.extend_from_slice(&[0; CHECKSUM_BYTES]);
    record.extend_from_slice(&archived_at.seconds().to_be_bytes());
    record.extend_from_slice(&archived_at.nanos().to_be_bytes());
    record.extend_from_slice(id.as_bytes());
    record.extend_from_slice(&length(text_bytes)?.to_be_bytes());
    record.extend_from_slice(&length(payload.len())?.to_be_bytes());
    record.extend_from_slice(payload);
    let checksum = checksum(&record);
    if let Some(place) = record.get_mut(CHECKSUM_AT..SECONDS_AT) {
        place.copy_from_slice(&checksum);
    }
    Ok(Rows(
        record.chunks(ROW_BYTES_MAX).map(<[u8]>::to_vec).collect(),
    ))
}

/// How much of the log a record takes up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its rows.
    pub row_count: u16,
    /// Bytes of all of them.
    pub stored_bytes: u64,
}

/// How much of the log a record takes up, which its first row tells.
///
/// # Errors
/// `RecordDamaged` if the row cannot be the first of a record.
pub fn extent(sequence: Sequence, first_row: &[u8]) -> Result<Extent> {
    let header = Header::parse(sequence, first_row)?;
    let stored_bytes = HEADER_BYTES + header.payload_bytes;
    let row_count = u16::try_from(stored_bytes.div_ceil(ROW_BYTES_MAX))
        .map_err(|_| header.damaged(sequence, "names too many rows"))?;
    Ok(Extent {
        row_count,
        stored_bytes: u64::try_from(stored_bytes).unwrap_or(u64::MAX),
    })
}

/// The id that the first row of a record names. Unproven: only the whole record can prove it.
///
/// # Errors
/// `RecordDamaged` if the row cannot be the first of a record.
pub fn peek_id(sequence: Sequence, first_row: &[u8]) -> Result<ContentHash> {
    Header::parse(sequence, first_row).map(|header| header.id)
}

/// The dictionary that the first row of a record names, if it names one.
#[must_use]
pub fn peek_dictionary(first_row: &[u8]) -> Option<DictionaryId> {
    if first_row.get(CODEC_AT) != Some(&CODEC_ZSTD) {
        return None;
    }
    codec::named(first_row.get(HEADER_BYTES..)?)
}

/// Decodes a record from all its rows and proves it: the checksum, and for an article the hash.
///
/// # Errors
/// `RecordDamaged`, naming the sequence and as far as it can be read the id; `DictionaryLost` if the
/// record is as it was written and the dictionary that it names is none of these.
pub fn decode(sequence: Sequence, rows: &[Bytes], dictionaries: &Dictionaries) -> Result<Record> {
    let (first, further) = rows
        .split_first()
        .ok_or_else(|| damaged(sequence, "has no rows"))?;
    let header = Header::parse(sequence, first)?;
    let fail = |what: &str| header.damaged(sequence, what);

    let joined;
    let record: &[u8] = if further.is_empty() {
        first
    } else {
        joined = rows.concat();
        &joined
    };
    let payload = record.get(HEADER_BYTES..).unwrap_or_default();
    if payload.len() != header.payload_bytes {
        return Err(fail(&format!(
            "has a payload of {} bytes instead of {}",
            payload.len(),
            header.payload_bytes
        )));
    }
    if checksum(record) != header.checksum {
        return Err(fail("does not match its checksum"));
    }
    let text = match header.codec {
        CODEC_STORED => payload.to_vec(),
        CODEC_ZSTD => codec::decompress(payload, header.text_bytes, dictionaries)
            .map_err(|refusal| header.refused(sequence, &refusal))?,
        other => return Err(fail(&format!("has the unknown codec {other}"))),
    };
    if text.len() != header.text_bytes {
        return Err(fail("has not the length that it names"));
    }
    let content = Content::decode(header.kind, &header.id, &text, Article::parse_trusted);
    let content = content.map_err(|what| fail(&what))?;
    Ok(Record {
        id: header.id,
        archived_at: header.archived_at,
        content,
    })
}

struct Header {
    kind: u8,
    codec: u8,
    checksum: [u8; CHECKSUM_BYTES],
    archived_at: Timestamp,
    id: ContentHash,
    text_bytes: usize,
    payload_bytes: usize,
}

impl Header {
    fn parse(sequence: Sequence, row: &[u8]) -> Result<Self> {
        match row.first() {
            Some(&FORMAT) => {}
            // The archive as a whole has this format, so another byte here is damage.
            Some(other) => {
                return Err(damaged(
                    sequence,
                    &format!("has the unknown format {other}"),
                ));
            }
            None => return Err(damaged(sequence, "is empty")),
        }
        Self::read(row)
            .filter(|header| {
                header.text_bytes <= TEXT_BYTES_MAX && header.payload_bytes <= TEXT_BYTES_MAX
            })
            .ok_or_else(|| damaged(sequence, "has no valid header"))
    }

    fn read(row: &[u8]) -> Option<Self> {
        let length = |bytes: [u8; 4]| usize::try_from(u32::from_be_bytes(bytes)).ok();
        let seconds = i64::from_be_bytes(array_at(row, SECONDS_AT)?);
        let nanos = u32::from_be_bytes(array_at(row, NANOS_AT)?);
        Some(Self {
            kind: *row.get(KIND_AT)?,
            codec: *row.get(CODEC_AT)?,
            checksum: array_at(row, CHECKSUM_AT)?,
            archived_at: Timestamp::new("archived_at", seconds, i64::from(nanos)).ok()?,
            id: ContentHash::from_bytes(array_at(row, ID_AT)?),
            text_bytes: length(array_at(row, TEXT_BYTES_AT)?)?,
            payload_bytes: length(array_at(row, PAYLOAD_BYTES_AT)?)?,
        })
    }

    fn damaged(&self, sequence: Sequence, what: &str) -> Error {
        self.error(Reason::RecordDamaged, sequence, what)
    }

    fn refused(&self, sequence: Sequence, refusal: &Refusal) -> Error {
        let reason = match refusal {
            Refusal::Lost(_) => Reason::DictionaryLost,
            Refusal::Broken(_) => Reason::RecordDamaged,
        };
        self.error(reason, sequence, &refusal.to_string())
    }

    fn error(&self, reason: Reason, sequence: Sequence, what: &str) -> Error {
        let id = self.id.to_string();
        Error::new(
            reason,
            format!("article {id}: log record {sequence} {what}"),
        )
        .with_resource(id)
    }
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn damaged(sequence: Sequence, what: &str) -> Error {
    Error::new(
        Reason::RecordDamaged,
        format!("log record {sequence} {what}"),
    )
    .with_resource(format!("sequence {sequence}"))
}

/// Hashes everything but the place of the checksum itself.
fn checksum(record: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(record.get(..CHECKSUM_AT).unwrap_or_default());
    hasher.update(record.get(SECONDS_AT..).unwrap_or_default());
    let mut short = [0; CHECKSUM_BYTES];
    hasher.finalize_xof().fill(&mut short);
    short
}

#[cfg(test)]
mod tests;
