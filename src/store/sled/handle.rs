//! Reads of sled and of the file of values beside it.

use std::sync::Arc;

use bytes::Bytes;
use sled::{Db, IVec};

use super::super::order::{original_key, stored_key};
use super::super::values::{Place, Stored, Values};
use super::super::{Batch, Change, Chunk, Direction, Row, Scan};
use super::{read_failed, values_failed};
use crate::error::{Error, Reason, Result};

/// What reads need.
#[derive(Clone, Debug)]
pub(super) struct Handle {
    pub(super) db: Db,
    /// None in an archive that has all values in sled.
    pub(super) values: Option<Arc<Values>>,
}

impl Handle {
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        let _reading = self.values.as_ref().map(|values| values.reading());
        let held = self.db.get(stored_key(key)).map_err(read_failed)?;
        held.map(|held| self.value(&held)).transpose()
    }

    /// The value of which sled holds this.
    fn value(&self, held: &[u8]) -> Result<Bytes> {
        let Some(values) = &self.values else {
            return Ok(Bytes::copy_from_slice(held));
        };
        match Stored::decode(held) {
            Some(Stored::Short(value)) => Ok(Bytes::copy_from_slice(value)),
            Some(Stored::Elsewhere(place)) => values.read(place).map_err(values_failed),
            None => Err(Error::new(
                Reason::StoreDamaged,
                "sled holds a value that makes no sense",
            )),
        }
    }

    pub(super) fn scan(&self, scan: &Scan) -> Result<Chunk> {
        if scan.range.is_empty() {
            return Ok(Chunk {
                rows: Vec::new(),
                exhausted: true,
            });
        }
        let _reading = self.values.as_ref().map(|values| values.reading());
        let (start, end) = (stored_key(&scan.range.start), stored_key(&scan.range.end));
        let rows = self.db.range(start..end);
        let row = |row: sled::Result<(IVec, IVec)>| {
            let (key, held) = row.map_err(read_failed)?;
            Ok(Row {
                key: original_key(&key),
                value: self.value(&held)?,
            })
        };
        match scan.direction {
            Direction::Ascending => Chunk::collect(scan, rows.map(row)),
            Direction::Descending => Chunk::collect(scan, rows.rev().map(row)),
        }
    }

    /// The places of the values that a batch removes or writes over. Only a batch that removes
    /// something writes over values that have places; all others add rows.
    pub(super) fn replaced(&self, batch: &Batch) -> Result<Vec<Place>> {
        let changes = batch.changes();
        let is_removal = |change: &Change| matches!(change, Change::Remove(_));
        if self.values.is_none() || !changes.iter().any(is_removal) {
            return Ok(Vec::new());
        }
        let mut places = Vec::new();
        for change in changes {
            let (Change::Put(key, _) | Change::Remove(key)) = change;
            let held = self.db.get(stored_key(key)).map_err(read_failed)?;
            if let Some(Stored::Elsewhere(place)) = held.as_deref().and_then(Stored::decode) {
                places.push(place);
            }
        }
        Ok(places)
    }
}
