//! A file of values beside an engine that is better at keys.
//!
//! sled writes a row with its change, again with its page after ten changes, and again when the page
//! is split, and it keeps pages in memory as a whole. With articles as values that was 12.7 KB
//! written for each of 1.7 KB. So values from [`VALUE_BYTES_MIN`] on are appended to this file, once,
//! and sled holds their places.
//!
//! ```text
//! a value in sled:  00 value           short
//!                   01 at:8 bytes:4    a place in this file
//! ```
//!
//! A batch's values are synced before sled is given their places, so that no place that survives a
//! crash leads to a value that does not. sled holds the end of the file with each batch: what is
//! behind it was never acknowledged, and a file that is shorter has lost values. Nothing here proves
//! a value; its reader does.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use bytes::{Bytes, BytesMut};
use rustix::fs::FallocateFlags;

/// The shortest value that is worth its place: sled's pages stay small, and reading costs one more
/// call to the system.
pub(super) const VALUE_BYTES_MIN: usize = 512;

const SHORT: u8 = 0;
const ELSEWHERE: u8 = 1;
const AT_BYTES: usize = 8;

/// Where a value stands in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    at: u64,
    bytes: u32,
}

impl Place {
    fn encode(self) -> Vec<u8> {
        [
            [ELSEWHERE].as_slice(),
            &self.at.to_be_bytes(),
            &self.bytes.to_be_bytes(),
        ]
        .concat()
    }
}

/// A value as sled holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored<'a> {
    Short(&'a [u8]),
    Elsewhere(Place),
}

impl<'a> Stored<'a> {
    /// Reads what sled holds, unless it makes no sense.
    pub(super) fn decode(held: &'a [u8]) -> Option<Self> {
        match held.split_first()? {
            (&SHORT, value) => Some(Self::Short(value)),
            (&ELSEWHERE, place) => {
                let (at, bytes) = place.split_first_chunk::<AT_BYTES>()?;
                Some(Self::Elsewhere(Place {
                    at: u64::from_be_bytes(*at),
                    bytes: u32::from_be_bytes(bytes.try_into().ok()?),
                }))
            }
            _ => None,
        }
    }
}

/// The values of a batch, on their way to the file.
#[derive(Debug)]
pub(super) struct Batched {
    at: u64,
    values: Vec<u8>,
}

impl Batched {
    /// Begins a batch whose values follow the end of the file.
    pub(super) fn new(end: u64) -> Self {
        Self {
            at: end,
            values: Vec::new(),
        }
    }

    /// Takes a value and tells what sled is to hold of it.
    pub(super) fn add(&mut self, value: &[u8]) -> Vec<u8> {
        match u32::try_from(value.len()) {
            Ok(bytes) if value.len() >= VALUE_BYTES_MIN => {
                let at = self.end();
                self.values.extend_from_slice(value);
                Place { at, bytes }.encode()
            }
            _ => [&[SHORT], value].concat(),
        }
    }

    /// The end of the file once the batch is written.
    pub(super) fn end(&self) -> u64 {
        let bytes = u64::try_from(self.values.len()).unwrap_or(u64::MAX);
        self.at.saturating_add(bytes)
    }
}

/// The file.
#[derive(Debug)]
pub(super) struct Values {
    file: File,
    /// Held shared by whoever looks up a place and reads it, and alone while values are erased, so
    /// that nobody reads a hole.
    erasing: RwLock<()>,
}

impl Values {
    /// Opens the file, or makes an empty one.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        let file = options.open(path)?;
        let erasing = RwLock::default();
        Ok(Self { file, erasing })
    }

    /// Keeps all values as they are until it is dropped. Take it before a place is looked up.
    pub(super) fn reading(&self) -> RwLockReadGuard<'_, ()> {
        self.erasing.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file itself, to be asked for its size.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Drops what is behind the end: values of a batch that did not come about.
    pub(super) fn cut(&self, end: u64) -> io::Result<()> {
        if self.file.metadata()?.len() > end {
            self.file.set_len(end)?;
        }
        Ok(())
    }

    /// Writes the values of a batch, and returns when they would survive a power cut.
    pub(super) fn write(&self, batched: &Batched) -> io::Result<()> {
        if batched.values.is_empty() {
            return Ok(());
        }
        self.file.write_all_at(&batched.values, batched.at)?;
        self.file.sync_data()
    }

    pub(super) fn read(&self, place: Place) -> io::Result<Bytes> {
        let length = usize::try_from(place.bytes).map_err(io::Error::other)?;
        let mut value = BytesMut::zeroed(length);
        self.file.read_exact_at(&mut value, place.at)?;
        Ok(value.freeze())
    }

    /// Makes values unreadable for good, and gives their room back where the file system can. Their
    /// places must not be found any more.
    pub(super) fn erase(&self, places: &[Place]) -> io::Result<()> {
        if places.is_empty() {
            return Ok(());
        }
        let _alone = self.erasing.write().unwrap_or_else(PoisonError::into_inner);
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place_of(held: &[u8]) -> Place {
        match Stored::decode(held).unwrap() {
            Stored::Elsewhere(place) => place,
            Stored::Short(_) => panic!("a short value"),
        }
    }

    #[test]
    fn long_values_are_read_back_until_they_are_erased() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("values");
        let values = Values::open(&path).unwrap();
        let long = |byte: u8, more: usize| vec![byte; VALUE_BYTES_MIN + more];
        let mut end = 0;
        let mut places = Vec::new();
        for (byte, more) in [(1, 0), (2, 70_000), (3, 1)] {
            let mut batched = Batched::new(end);
            let short = batched.add(&vec![byte; VALUE_BYTES_MIN - 1]);
            assert_eq!(
                Stored::decode(&short),
                Some(Stored::Short(&vec![byte; VALUE_BYTES_MIN - 1]))
            );
            places.push(place_of(&batched.add(&long(byte, more))));
            values.write(&batched).unwrap();
            end = batched.end();
        }
        assert_eq!(values.read(places[1]).unwrap(), long(2, 70_000));
        values.erase(&[places[1]]).unwrap();
        assert_eq!(
            values.read(places[1]).unwrap(),
            vec![0; VALUE_BYTES_MIN + 70_000]
        );
        let others = [(places[0], long(1, 0)), (places[2], long(3, 1))];
        for (place, value) in &others {
            assert_eq!(values.read(*place).unwrap(), value);
        }
        assert_eq!(values.file().metadata().unwrap().len(), end);
        values.cut(places[2].at).unwrap();
        assert!(values.read(places[2]).is_err());
        assert_eq!(
            Values::open(&path).unwrap().read(places[0]).unwrap(),
            long(1, 0)
        );
    }

    #[test]
    fn what_makes_no_sense_is_no_value() {
        let place = Place { at: 7, bytes: 9 }.encode();
        assert_eq!(place_of(&place), Place { at: 7, bytes: 9 });
        for wrong in [&[][..], &[2, 3], &place[..12], &[&place[..], &[0]].concat()] {
            assert_eq!(Stored::decode(wrong), None, "{wrong:?}");
        }
    }
}
