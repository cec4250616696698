//! Reads: rows that are still on their way to sled first, then sled and the file of values beside it.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use sled::{Db, IVec};

use super::super::frames::{Frames, Held, Place};
use super::super::order::{original_key, stored_key};
use super::super::overlay::{Entry, Keyed, Merged, Overlay};
use super::super::{Chunk, Direction, Row, Scan};
use super::{read_failed, values_failed};
use crate::error::{Error, Reason, Result};

/// Rows of the overlay that a scan takes at a time.
const PART_ROWS_MAX: usize = 4096;

/// Where the values of an archive are, which is fixed when it is begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// The longer ones in frames, and sled holds their places.
    Placed,
    /// All in sled, as they are. No new archive is begun so.
    Inline,
}

/// What reads need.
#[derive(Clone, Debug)]
pub(super) struct Handle {
    pub(super) db: Db,
    pub(super) frames: Arc<Frames>,
    pub(super) layout: Layout,
    pub(super) overlay: Arc<Overlay>,
}

impl Handle {
    pub(super) fn get_many(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Bytes>>> {
        let _reading = self.overlay.reading();
        let found = self.overlay.get_many(keys);
        let rows = keys.iter().zip(found);
        rows.map(|(key, found)| match found {
            Some(known) => Ok(known.into_value()),
            None => self.stored(key),
        })
        .collect()
    }

    /// The value that sled has.
    fn stored(&self, key: &[u8]) -> Result<Option<Bytes>> {
        let held = self.db.get(stored_key(key)).map_err(read_failed)?;
        held.map(|held| self.value(&held)).transpose()
    }

    /// The value of which sled holds this.
    fn value(&self, held: &[u8]) -> Result<Bytes> {
        if self.layout == Layout::Inline {
            return Ok(Bytes::copy_from_slice(held));
        }
        match Held::decode(held) {
            Some(Held::Short(value)) => Ok(Bytes::copy_from_slice(value)),
            Some(Held::Elsewhere(place)) => self.frames.read(place).map_err(values_failed),
            None => Err(Error::new(
                Reason::StoreDamaged,
                "sled holds a value that makes no sense",
            )),
        }
    }

    pub(super) fn scan(&self, scan: &Scan) -> Result<Chunk> {
        let _reading = self.overlay.reading();
        Chunk::collect(scan, self.rows(scan).filter_map(Result::transpose))
    }

    /// The rows of a scan, and nothing for those that were removed.
    fn rows(&self, scan: &Scan) -> impl Iterator<Item = Result<Option<Row>>> {
        let rows_max = scan.rows_max.clamp(1, PART_ROWS_MAX);
        let direction = scan.direction;
        let mut rest = Some(scan.range.clone());
        let parts = std::iter::from_fn(move || {
            let part = self.overlay.part(rest.take()?, direction, rows_max);
            rest = part.rest;
            Some(Merged {
                newer: entries(part.entries).peekable(),
                older: self.stored_rows(part.range, direction).peekable(),
                direction,
            })
        });
        parts.flatten().map(|entry| {
            let row = |(key, value): Entry| value.map(|value| Row { key, value });
            entry.map(row)
        })
    }

    /// The rows of a range that sled has.
    fn stored_rows(
        &self,
        range: Range<Vec<u8>>,
        direction: Direction,
    ) -> Box<dyn Iterator<Item = Result<Entry>> + '_> {
        if range.is_empty() {
            return Box::new(std::iter::empty());
        }
        let rows = self
            .db
            .range(stored_key(&range.start)..stored_key(&range.end));
        let entry = |row: sled::Result<(IVec, IVec)>| {
            let (key, held) = row.map_err(read_failed)?;
            Ok((original_key(&key), Some(self.value(&held)?)))
        };
        match direction {
            Direction::Ascending => Box::new(rows.map(entry)),
            Direction::Descending => Box::new(rows.rev().map(entry)),
        }
    }

    /// Where the values of some rows stand that are to be removed or written over.
    pub(super) fn places(&self, keys: &[Bytes]) -> Result<Vec<Place>> {
        let mut places = Vec::new();
        if self.layout == Layout::Inline {
            return Ok(places);
        }
        for key in keys {
            let held = self.db.get(stored_key(key)).map_err(read_failed)?;
            if let Some(Held::Elsewhere(place)) = held.as_deref().and_then(Held::decode) {
                places.push(place);
            }
        }
        Ok(places)
    }
}

fn entries(entries: Vec<Entry>) -> impl Iterator<Item = Result<Entry>> {
    entries.into_iter().map(Ok)
}

impl Keyed for Result<Entry> {
    fn key(&self) -> Option<&[u8]> {
        self.as_ref().ok().map(|(key, _)| key.as_ref())
    }
}
