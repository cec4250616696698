//! A file of batches beside an engine that takes its time. A batch is durable once it is here; the engine
//! gets it later, and what the engine forgets or loses is read from here again.
//!
//! It also keeps the longer values, of which the engine only holds places. sled writes a row with its
//! change, again with its page after ten changes, and again when the page is split, and it keeps pages
//! in memory as a whole. With articles as values that was 12.7 KB written for each of 1.7 KB.
//!
//! ```text
//! frame   0   4  bytes of the changes as they stand here, u32
//!         4   4  bytes of the changes before compression, u32
//!         8   4  bytes of the values, u32
//!        12   8  number of the batch, u64, counts from 1 over the life of the archive
//!        20  16  first bytes of BLAKE3 over the twenty before and the changes
//!        36  16  first bytes of BLAKE3 over the values
//!        52   .  changes, with zstd if that makes them shorter
//!         .   .  values, one behind the other
//! change  kind:1  key bytes:2  key, then by kind
//!         0 remove   nothing
//!         1 put      value bytes:1  value
//!         2 put      value bytes:4  (the value stands among the values)
//!
//! what the engine holds of a value   00 value          short
//!                                    01 at:8 bytes:4   a place in this file
//! ```
//!
//! Integers are big-endian. The file is only ever appended to, but that the values of deleted articles
//! are erased; so a frame is believed by its changes, and its values only need to match while nobody
//! knows that it was synced. Nothing else proves a value; its reader does. Archives that were begun
//! before there were frames have values at the beginning of the file that are in none.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::{Bytes, BytesMut};
use rustix::fs::FallocateFlags;

use super::{Batch, Change};

/// The shortest value that stands among the values. Records of articles are longer, whatever their
/// text, so that they can be erased; rows of indexes are shorter.
pub(super) const VALUE_BYTES_MIN: usize = 64;
const _: () = assert!(VALUE_BYTES_MIN <= 255);

const STORED_AT: usize = 0;
const CHANGES_BYTES_AT: usize = STORED_AT + 4;
const VALUES_BYTES_AT: usize = CHANGES_BYTES_AT + 4;
const NUMBER_AT: usize = VALUES_BYTES_AT + 4;
const CHANGES_SUM_AT: usize = NUMBER_AT + 8;
const VALUES_SUM_AT: usize = CHANGES_SUM_AT + SUM_BYTES;
const HEADER_BYTES: usize = VALUES_SUM_AT + SUM_BYTES;
const SUM_BYTES: usize = 16;
const _: () = assert!(HEADER_BYTES == 52);

const REMOVE: u8 = 0;
const PUT_SHORT: u8 = 1;
const PUT_LONG: u8 = 2;

const SHORT: u8 = 0;
const ELSEWHERE: u8 = 1;

/// The fastest level: most of the changes are hashes, which no level makes shorter.
const ZSTD_LEVEL: i32 = 1;

/// Where a value stands in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    at: u64,
    bytes: u32,
}

impl Place {
    /// Whether the value stands before a place.
    pub(super) fn is_before(self, at: u64) -> bool {
        self.at < at
    }
}

/// A value as an engine holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held<'a> {
    Short(&'a [u8]),
    Elsewhere(Place),
}

impl<'a> Held<'a> {
    /// Writes what the engine holds.
    pub(super) fn encode(self) -> Vec<u8> {
        match self {
            Self::Short(value) => [&[SHORT], value].concat(),
            Self::Elsewhere(Place { at, bytes }) => [
                [ELSEWHERE].as_slice(),
                &at.to_be_bytes(),
                &bytes.to_be_bytes(),
            ]
            .concat(),
        }
    }

    /// Reads what the engine holds, unless it makes no sense.
    pub(super) fn decode(held: &'a [u8]) -> Option<Self> {
        match held.split_first()? {
            (&SHORT, value) => Some(Self::Short(value)),
            (&ELSEWHERE, place) => {
                let (at, bytes) = place.split_first_chunk()?;
                Some(Self::Elsewhere(Place {
                    at: u64::from_be_bytes(*at),
                    bytes: u32::from_be_bytes(bytes.try_into().ok()?),
                }))
            }
            _ => None,
        }
    }
}

/// A value on its way to the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) value: Bytes,
    /// Where it stands, if it stands among the values.
    pub(super) place: Option<Place>,
}

/// A batch as it stands in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) number: u64,
    /// Keys with their values, or none where a row is removed.
    pub(super) changes: Vec<(Bytes, Option<Placed>)>,
    /// Where the next frame begins.
    pub(super) end: u64,
}

/// The file.
#[derive(Debug)]
pub(super) struct Frames {
    file: File,
}

impl Frames {
    /// Opens the file, or makes an empty one.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        let file = options.open(path)?;
        Ok(Self { file })
    }

    /// The file itself, to be asked for its size.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// How long the file is.
    pub(super) fn bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Writes a batch at the end of the file, which the caller knows. [`Frames::sync`] makes it durable.
    pub(super) fn append(&self, at: u64, number: u64, batch: Batch) -> io::Result<Frame> {
        let (bytes, frame) = encode(at, number, batch)?;
        self.file.write_all_at(&bytes, at)?;
        Ok(frame)
    }

    /// Makes everything durable that was written.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Drops what is behind the end, durably.
    pub(super) fn cut(&self, end: u64) -> io::Result<()> {
        if self.bytes()? > end {
            self.file.set_len(end)?;
            self.file.sync_all()?;
        }
        Ok(())
    }

    /// Reads a value.
    pub(super) fn read(&self, place: Place) -> io::Result<Bytes> {
        let length = usize::try_from(place.bytes).map_err(io::Error::other)?;
        self.read_at(place.at, length)
    }

    fn read_at(&self, at: u64, length: usize) -> io::Result<Bytes> {
        let mut bytes = BytesMut::zeroed(length);
        self.file.read_exact_at(&mut bytes, at)?;
        Ok(bytes.freeze())
    }

    /// Makes values unreadable for good, and gives their room back where the file system can. No reader
    /// may still have their places.
    pub(super) fn erase(&self, places: &[Place]) -> io::Result<()> {
        if places.is_empty() {
            return Ok(());
        }
        for place in places {
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let length = u64::from(place.bytes);
            if rustix::fs::fallocate(&self.file, hole, place.at, length).is_err() {
                let zeros = vec![0; usize::try_from(place.bytes).map_err(io::Error::other)?];
                self.file.write_all_at(&zeros, place.at)?;
            }
        }
        self.file.sync_data()
    }

    /// Reads the frame at a place, if it is whole and has this number. `is_synced` says that it was
    /// acknowledged, so that values that do not match are damaged or erased, and not torn.
    pub(super) fn frame(&self, at: u64, number: u64, is_synced: bool) -> io::Result<Option<Frame>> {
        let left = self.bytes()?.saturating_sub(at);
        let header_bytes = u64::try_from(HEADER_BYTES).map_err(io::Error::other)?;
        if left < header_bytes {
            return Ok(None);
        }
        let header = self.read_at(at, HEADER_BYTES)?;
        let Some(header) = Header::decode(&header).filter(|header| header.number == number) else {
            return Ok(None);
        };
        let (stored, values) = (header.stored_bytes, header.values_bytes);
        let body_bytes = u64::from(stored) + u64::from(values);
        if left - header_bytes < body_bytes {
            return Ok(None);
        }
        let body = self.read_at(
            at + header_bytes,
            usize::try_from(body_bytes).map_err(io::Error::other)?,
        )?;
        let values_at = at + header_bytes + u64::from(stored);
        Ok(header.read(&body, values_at, is_synced))
    }
}

struct Header {
    stored_bytes: u32,
    changes_bytes: u32,
    values_bytes: u32,
    number: u64,
    /// What the sum of the changes is over, besides them.
    head: [u8; CHANGES_SUM_AT],
    changes_sum: [u8; SUM_BYTES],
    values_sum: [u8; SUM_BYTES],
}

impl Header {
    fn encode(&self) -> Vec<u8> {
        [self.head.as_slice(), &self.changes_sum, &self.values_sum].concat()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            stored_bytes: u32::from_be_bytes(array_at(bytes, STORED_AT)?),
            changes_bytes: u32::from_be_bytes(array_at(bytes, CHANGES_BYTES_AT)?),
            values_bytes: u32::from_be_bytes(array_at(bytes, VALUES_BYTES_AT)?),
            number: u64::from_be_bytes(array_at(bytes, NUMBER_AT)?),
            head: array_at(bytes, 0)?,
            changes_sum: array_at(bytes, CHANGES_SUM_AT)?,
            values_sum: array_at(bytes, VALUES_SUM_AT)?,
        })
    }

    /// Reads the changes and values, if they are what was written.
    fn read(&self, body: &[u8], values_at: u64, is_synced: bool) -> Option<Frame> {
        let (stored, values) = body.split_at_checked(usize::try_from(self.stored_bytes).ok()?)?;
        if sum(&[&self.head, stored]) != self.changes_sum {
            return None;
        }
        if !is_synced && sum(&[values]) != self.values_sum {
            return None;
        }
        let changes_bytes = usize::try_from(self.changes_bytes).ok()?;
        let decompressed;
        let changes = if self.stored_bytes == self.changes_bytes {
            stored
        } else {
            decompressed = zstd::bulk::decompress(stored, changes_bytes).ok()?;
            decompressed.as_slice()
        };
        let changes = decode_changes(changes, values, values_at)?;
        Some(Frame {
            number: self.number,
            changes,
            end: values_at + u64::from(self.values_bytes),
        })
    }
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn sum(parts: &[&[u8]]) -> [u8; SUM_BYTES] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    let mut short = [0; SUM_BYTES];
    hasher.finalize_xof().fill(&mut short);
    short
}

fn too_long(_: impl std::error::Error) -> io::Error {
    io::Error::other("a batch is too long for a frame")
}

/// The bytes of a batch at a place of the file, and where its values stand then.
fn encode(at: u64, number: u64, batch: Batch) -> io::Result<(Vec<u8>, Frame)> {
    let mut changes = Vec::new();
    let mut values = Vec::new();
    let mut placed = Vec::with_capacity(batch.changes().len());
    for change in batch.into_changes() {
        let (kind, key, value) = match change {
            Change::Remove(key) => (REMOVE, key, None),
            Change::Put(key, value) if value.len() < VALUE_BYTES_MIN => {
                (PUT_SHORT, key, Some(value))
            }
            Change::Put(key, value) => (PUT_LONG, key, Some(value)),
        };
        changes.push(kind);
        let key_bytes = u16::try_from(key.len()).map_err(too_long)?;
        changes.extend_from_slice(&key_bytes.to_be_bytes());
        changes.extend_from_slice(&key);
        let value = match value {
            None => None,
            Some(value) if kind == PUT_SHORT => {
                changes.push(u8::try_from(value.len()).map_err(too_long)?);
                changes.extend_from_slice(&value);
                let value = value.into();
                Some(Placed { value, place: None })
            }
            Some(value) => {
                let bytes = u32::try_from(value.len()).map_err(too_long)?;
                changes.extend_from_slice(&bytes.to_be_bytes());
                // Relative to the values; where those stand is known when the changes are compressed.
                let at = u64::try_from(values.len()).map_err(too_long)?;
                values.extend_from_slice(&value);
                let (value, place) = (value.into(), Some(Place { at, bytes }));
                Some(Placed { value, place })
            }
        };
        placed.push((Bytes::from(key), value));
    }
    let compressed = zstd::bulk::compress(&changes, ZSTD_LEVEL)?;
    let changes_bytes = u32::try_from(changes.len()).map_err(too_long)?;
    let stored = if compressed.len() < changes.len() {
        &compressed
    } else {
        &changes
    };
    let header = header(number, stored, changes_bytes, &values)?;
    let bytes = [&header.encode(), stored.as_slice(), &values].concat();
    let values_at = at + u64::try_from(HEADER_BYTES + stored.len()).map_err(too_long)?;
    for (_, value) in &mut placed {
        if let Some(place) = value.as_mut().and_then(|value| value.place.as_mut()) {
            place.at += values_at;
        }
    }
    let frame = Frame {
        number,
        changes: placed,
        end: at + u64::try_from(bytes.len()).map_err(too_long)?,
    };
    Ok((bytes, frame))
}

fn header(number: u64, stored: &[u8], changes_bytes: u32, values: &[u8]) -> io::Result<Header> {
    let stored_bytes = u32::try_from(stored.len()).map_err(too_long)?;
    let values_bytes = u32::try_from(values.len()).map_err(too_long)?;
    let head = [
        stored_bytes.to_be_bytes().as_slice(),
        &changes_bytes.to_be_bytes(),
        &values_bytes.to_be_bytes(),
        &number.to_be_bytes(),
    ]
    .concat();
    let head: [u8; CHANGES_SUM_AT] = array_at(&head, 0).unwrap_or([0; CHANGES_SUM_AT]);
    Ok(Header {
        stored_bytes,
        changes_bytes,
        values_bytes,
        number,
        changes_sum: sum(&[&head, stored]),
        values_sum: sum(&[values]),
        head,
    })
}

fn decode_changes(
    mut changes: &[u8],
    values: &[u8],
    values_at: u64,
) -> Option<Vec<(Bytes, Option<Placed>)>> {
    let mut placed = Vec::new();
    let mut used = 0;
    while let Some((kind, left)) = changes.split_first() {
        let (key_bytes, left) = left.split_first_chunk()?;
        let (key, left) = left.split_at_checked(u16::from_be_bytes(*key_bytes).into())?;
        changes = left;
        let value = match *kind {
            REMOVE => None,
            PUT_SHORT => {
                let (bytes, left) = changes.split_first()?;
                let (value, left) = left.split_at_checked(usize::from(*bytes))?;
                changes = left;
                let value = Bytes::copy_from_slice(value);
                Some(Placed { value, place: None })
            }
            PUT_LONG => {
                let (bytes, left) = changes.split_first_chunk()?;
                changes = left;
                let bytes = u32::from_be_bytes(*bytes);
                let end = usize::try_from(bytes).ok()?.checked_add(used)?;
                let value = Bytes::copy_from_slice(values.get(used..end)?);
                let at = values_at + u64::try_from(used).ok()?;
                used = end;
                let place = Some(Place { at, bytes });
                Some(Placed { value, place })
            }
            _ => return None,
        };
        placed.push((Bytes::copy_from_slice(key), value));
    }
    Some(placed)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn batch(number: u8) -> Batch {
        let mut batch = Batch::new();
        batch.put(vec![number, 0xff], vec![number; 300 * usize::from(number)]);
        batch.remove(vec![number - 1; 3]);
        batch.put(vec![], vec![]);
        batch.put(vec![number; 9], vec![number; VALUE_BYTES_MIN - 1]);
        batch.put(vec![number; 8], vec![number; VALUE_BYTES_MIN]);
        batch
    }

    fn opened(folder: &TempDir) -> Frames {
        Frames::open(&folder.path().join("values")).unwrap()
    }

    /// Frames behind 5 bytes that are in none.
    fn written(frames: &Frames, count: u8) -> Vec<Frame> {
        frames.file.write_all_at(b"older", 0).unwrap();
        let mut at = 5;
        let mut written = Vec::new();
        for number in 1..=count {
            let frame = frames.append(at, number.into(), batch(number)).unwrap();
            at = frame.end;
            written.push(frame);
        }
        frames.sync().unwrap();
        assert_eq!(frames.bytes().unwrap(), at);
        written
    }

    fn read(frames: &Frames, is_synced: bool) -> Vec<Frame> {
        let mut found: Vec<Frame> = Vec::new();
        loop {
            let at = found.last().map_or(5, |frame| frame.end);
            let number = found.last().map_or(1, |frame| frame.number + 1);
            match frames.frame(at, number, is_synced).unwrap() {
                Some(frame) => found.push(frame),
                None => return found,
            }
        }
    }

    fn places(frame: &Frame) -> Vec<(Place, Bytes)> {
        let values = frame.changes.iter().filter_map(|(_, value)| value.clone());
        let places = values.filter_map(|placed| Some((placed.place?, placed.value)));
        places.collect()
    }

    #[test]
    fn a_frame_has_its_bytes() {
        let mut batch = Batch::new();
        batch.put(vec![0xaa, 0xbb], vec![0xcc]);
        batch.remove(vec![0xdd]);
        batch.put(vec![0xee], vec![0x11; VALUE_BYTES_MIN]);
        let (bytes, _) = encode(0, 7, batch).unwrap();
        let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let hex = hex.concat();
        assert_eq!(&hex[..40], "0000001300000013000000400000000000000007");
        let values = "11".repeat(VALUE_BYTES_MIN);
        let changes = "010002aabb01cc000001dd020001ee00000040";
        assert_eq!(hex[104..], format!("{changes}{values}"));
    }

    #[test]
    fn frames_are_read_back_and_so_are_their_values() {
        let folder = TempDir::new().unwrap();
        let frames = opened(&folder);
        let written = written(&frames, 3);
        let again = opened(&folder);
        assert_eq!(read(&again, false), written);
        for (place, value) in written.iter().flat_map(places) {
            assert_eq!(again.read(place).unwrap(), value);
            let held = Held::Elsewhere(place).encode();
            assert_eq!(Held::decode(&held), Some(Held::Elsewhere(place)));
        }
        assert_eq!(again.frame(5, 2, false).unwrap(), None, "another number");
    }

    #[test]
    fn what_is_torn_or_rots_ends_the_frames() {
        let folder = TempDir::new().unwrap();
        let frames = opened(&folder);
        let first_end = usize::try_from(written(&frames, 2)[0].end).unwrap();
        let path = folder.path().join("values");
        let whole = std::fs::read(&path).unwrap();
        for at in 5..whole.len() {
            let expected = usize::from(at >= first_end);
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            std::fs::write(&path, &flipped).unwrap();
            assert_eq!(
                read(&opened(&folder), false).len(),
                expected,
                "bit of byte {at}"
            );
            std::fs::write(&path, &whole[..at]).unwrap();
            for is_synced in [false, true] {
                let found = read(&opened(&folder), is_synced).len();
                assert_eq!(found, expected, "cut at {at}");
            }
        }
    }

    #[test]
    fn erased_values_take_no_frame_with_them() {
        let folder = TempDir::new().unwrap();
        let frames = opened(&folder);
        let written = written(&frames, 3);
        let (place, value) = places(&written[1]).remove(0);
        frames.erase(&[place]).unwrap();
        assert_eq!(frames.read(place).unwrap(), vec![0; value.len()]);
        assert_eq!(read(&frames, true).len(), 3);
        assert_eq!(read(&frames, false).len(), 1);
        let others = written.iter().flat_map(places);
        for (other, value) in others.filter(|(other, _)| *other != place) {
            assert_eq!(frames.read(other).unwrap(), value);
        }
        frames.cut(written[0].end).unwrap();
        assert_eq!(read(&frames, true), written[..1]);
    }

    #[test]
    fn what_makes_no_sense_is_no_value() {
        let place = Held::Elsewhere(Place { at: 7, bytes: 9 }).encode();
        for wrong in [&[][..], &[2, 3], &place[..12], &[&place[..], &[0]].concat()] {
            assert_eq!(Held::decode(wrong), None, "{wrong:?}");
        }
    }
}
