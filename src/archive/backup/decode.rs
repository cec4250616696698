//! Reads the bytes of a backup; `format.rs` draws them. Proves every frame, every id and the whole,
//! and allocates no more than the format's limits whatever it is given.

use std::io::{self, Read};

use super::format::{
    ARCHIVE_ID_BYTES, Encoder, Entry, FRAME_BYTES_MAX, FRAME_HEAD_BYTES, Header, MAGIC,
    PAYLOAD_BYTES_MAX, PREFIX_BYTES, Progress, TYPE_DATA, TYPE_HEADER, TYPE_TRAILER, Trailer,
    VERSION,
};
use crate::article::{Article, ContentHash, HASH_BYTES, Timestamp};
use crate::error::{Error, Reason, Result};
use crate::key::Sequence;
use crate::record::{Content, Record};

/// Reads a backup, frame by frame, and believes nothing of it.
#[derive(Debug)]
pub struct Decoder<R> {
    input: R,
    name: String,
    header: Header,
    progress: Progress,
    is_finished: bool,
}

impl<R: Read> Decoder<R> {
    /// Begins to read a backup, which is named in errors.
    ///
    /// # Errors
    /// `BackupDamaged` if it does not begin as one; `FormatUnsupported`; `FileFailed`.
    pub fn new(mut input: R, name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let mut prefix = [0; PREFIX_BYTES];
        let mut progress = Progress::new();
        let read = read_full(&mut input, &mut prefix).map_err(|error| unreadable(&name, error))?;
        let version = prefix.strip_prefix(MAGIC.as_slice());
        let (Some(&[version]), PREFIX_BYTES) = (version, read) else {
            return Err(damaged(&name, 0, "it is no backup of pressmark"));
        };
        if version != VERSION {
            let what = format!("{name} has version {version}, this program reads {VERSION}");
            return Err(Error::new(Reason::FormatUnsupported, what).with_resource(name));
        }
        progress.pass(&prefix);
        let mut decoder = Self {
            input,
            name,
            header: Header {
                archive_id: [0; ARCHIVE_ID_BYTES],
                first: 0,
                before: ContentHash::from_bytes([0; HASH_BYTES]),
            },
            progress,
            is_finished: false,
        };
        let header = match decoder.frame()? {
            Some((TYPE_HEADER, payload)) => parse_header(&payload),
            _ => None,
        };
        decoder.header = header.ok_or_else(|| decoder.damaged("it has no valid header"))?;
        decoder.progress.next = decoder.header.first;
        Ok(decoder)
    }

    /// What the backup is of.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The entries of the next frame; none after the trailer.
    ///
    /// # Errors
    /// `BackupDamaged`, naming the file and the byte from which on it is; also if it ends without a
    /// trailer. `FileFailed`.
    pub fn next_entries(&mut self) -> Result<Option<Vec<Entry>>> {
        if self.is_finished {
            return Ok(None);
        }
        let before = self.progress.clone();
        let result = match self.frame()? {
            Some((TYPE_DATA, payload)) => self.entries(&payload).map(Some),
            Some((TYPE_TRAILER, payload)) if payload == before.trailer_payload() => self.end(),
            Some((TYPE_TRAILER, _)) => Err("the trailer does not match what is before it".into()),
            Some(_) => Err("it has a frame of an unknown type".into()),
            None => Err("it ends without its trailer".into()),
        };
        result.map_err(|what: String| {
            // What is wrong stays behind the part that can be relied upon.
            self.progress = before;
            self.damaged(&what)
        })
    }

    fn end(&mut self) -> Result<Option<Vec<Entry>>, String> {
        let mut more = [0];
        let read = read_full(&mut self.input, &mut more).map_err(|error| error.to_string())?;
        if read > 0 {
            return Err("it goes on behind its trailer".into());
        }
        self.is_finished = true;
        Ok(None)
    }

    /// What the part that was read ends with.
    #[must_use]
    pub fn trailer(&self) -> Trailer {
        self.progress.trailer()
    }

    /// The bytes of the frames that were read.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.progress.bytes
    }

    /// Whether nothing follows what was read, be it whole or not. Uses up the input.
    pub(super) fn is_at_end(&mut self) -> bool {
        let mut more = [0];
        matches!(read_full(&mut self.input, &mut more), Ok(0))
    }

    /// Whether the trailer was read.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.is_finished
    }

    /// An encoder that goes on behind the frames that were read.
    #[must_use]
    pub fn into_encoder(self) -> Encoder {
        Encoder::resume(self.progress)
    }

    /// Reads one frame and checks it; none at the end of the input.
    fn frame(&mut self) -> Result<Option<(u8, Vec<u8>)>> {
        let mut head = [0; FRAME_HEAD_BYTES];
        let failed = |error| unreadable(&self.name, error);
        let read = read_full(&mut self.input, &mut head).map_err(failed)?;
        if read == 0 {
            return Ok(None);
        }
        let parts = head.split_first().and_then(|(kind, rest)| {
            let (length, checksum) = rest.split_first_chunk()?;
            let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
            Some((*kind, length, checksum))
        });
        let (kind, length, checksum) = parts
            .filter(|(_, length, _)| read == FRAME_HEAD_BYTES && *length <= PAYLOAD_BYTES_MAX)
            .ok_or_else(|| self.damaged("a frame is cut or too long"))?;
        let mut payload = Vec::new();
        let limit = u64::try_from(length).unwrap_or(u64::MAX);
        let mut input = (&mut self.input).take(limit);
        input.read_to_end(&mut payload).map_err(failed)?;
        if payload.len() != length {
            return Err(self.damaged("a frame is cut"));
        }
        if self.progress.checksum(kind, &payload) != checksum {
            return Err(self.damaged("a frame does not match its checksum, or is not in its place"));
        }
        self.progress.pass(&head);
        self.progress.pass(&payload);
        self.progress.frame_count += 1;
        Ok(Some((kind, payload)))
    }

    fn entries(&mut self, payload: &[u8]) -> Result<Vec<Entry>, String> {
        let (length, compressed) = payload.split_first_chunk().ok_or("a frame is too short")?;
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if length > FRAME_BYTES_MAX {
            return Err(format!(
                "a frame of {length} bytes, the limit is {FRAME_BYTES_MAX}"
            ));
        }
        let bytes = zstd::bulk::decompress(compressed, length)
            .map_err(|error| format!("a frame cannot be decompressed: {error}"))?;
        if bytes.len() != length {
            return Err("a frame has not the length that it names".into());
        }
        let mut rest = bytes.as_slice();
        let mut entries = Vec::new();
        while !rest.is_empty() {
            let entry;
            (entry, rest) = parse_entry(rest)?;
            let expected = self.progress.next;
            if entry.sequence != expected {
                let found = entry.sequence;
                return Err(format!("record {found} stands in the place of {expected}"));
            }
            self.progress.next = expected.checked_add(1).ok_or("it has too many records")?;
            self.progress.record_count += 1;
            entries.push(entry);
        }
        Ok(entries)
    }

    fn damaged(&self, what: &str) -> Error {
        damaged(&self.name, self.progress.bytes, what)
    }
}

fn parse_header(payload: &[u8]) -> Option<Header> {
    let (archive_id, rest) = payload.split_first_chunk()?;
    let (first, before) = rest.split_first_chunk()?;
    let first = Sequence::from_be_bytes(*first);
    let before = ContentHash::from_bytes(before.try_into().ok()?);
    (first > 0).then_some(Header {
        archive_id: *archive_id,
        first,
        before,
    })
}

/// Reads one entry, proves it, and returns what is behind it.
fn parse_entry(bytes: &[u8]) -> Result<(Entry, &[u8]), String> {
    let cut = || "an entry is cut".to_owned();
    let (sequence, rest) = bytes.split_first_chunk().ok_or_else(cut)?;
    let (kind, rest) = rest.split_first().ok_or_else(cut)?;
    let (seconds, rest) = rest.split_first_chunk().ok_or_else(cut)?;
    let (nanos, rest) = rest.split_first_chunk().ok_or_else(cut)?;
    let (id, rest) = rest.split_first_chunk().ok_or_else(cut)?;
    let (length, rest) = rest.split_first_chunk().ok_or_else(cut)?;
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    let (payload, rest) = rest.split_at_checked(length).ok_or_else(cut)?;
    let sequence = Sequence::from_be_bytes(*sequence);
    let id = ContentHash::from_bytes(*id);
    let wrong = |what: String| format!("record {sequence}, of article {id}, {what}");
    let archived_at = Timestamp::new(
        "archived_at",
        i64::from_be_bytes(*seconds),
        i64::from(u32::from_be_bytes(*nanos)),
    )
    .map_err(|error| wrong(format!("has no valid time: {error}")))?;
    let content = Content::decode(*kind, &id, payload, Article::parse).map_err(wrong)?;
    let record = Record {
        id,
        archived_at,
        content,
    };
    Ok((Entry { sequence, record }, rest))
}

/// Fills a buffer as far as the input goes, and returns how far.
fn read_full(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match input.read(rest) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn unreadable(name: &str, error: io::Error) -> Error {
    Error::new(Reason::FileFailed, format!("cannot read {name}"))
        .with_source(error)
        .with_resource(name)
}

fn damaged(name: &str, at: u64, what: &str) -> Error {
    let what = format!("the backup {name} is damaged from byte {at} on: {what}");
    Error::new(Reason::BackupDamaged, what).with_resource(name)
}
