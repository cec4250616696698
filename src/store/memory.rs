//! The engine in memory: the executable specification of [`Store`], and what tests run on.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Batch, Change, Chunk, Direction, Durability, Row, Scan, Store, StoreStats, closed};
use crate::error::Result;

/// Rows in a sorted map. Everything is lost when it is dropped.
#[derive(Debug)]
pub struct MemoryStore {
    /// A std lock, because it is held for map operations only and never across an await.
    rows: RwLock<Option<BTreeMap<Bytes, Bytes>>>,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self {
            rows: RwLock::new(Some(BTreeMap::new())),
        }
    }

    fn read<T>(&self, read: impl FnOnce(&BTreeMap<Bytes, Bytes>) -> Result<T>) -> Result<T> {
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        read(rows.as_ref().ok_or_else(closed)?)
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn engine(&self) -> &'static str {
        "memory"
    }

    async fn get_many(&self, keys: Vec<Vec<u8>>) -> Result<Vec<Option<Bytes>>> {
        self.read(|rows| {
            Ok(keys
                .iter()
                .map(|key| rows.get(key.as_slice()).cloned())
                .collect())
        })
    }

    async fn scan_many(&self, scans: Vec<Scan>) -> Result<Vec<Chunk>> {
        self.read(|rows| scans.iter().map(|scan| scan_one(rows, scan)).collect())
    }

    async fn write(&self, batch: Batch, _durability: Durability) -> Result<()> {
        let mut rows = self.rows.write().unwrap_or_else(PoisonError::into_inner);
        let rows = rows.as_mut().ok_or_else(closed)?;
        for change in batch.into_changes() {
            match change {
                Change::Put(key, value) => rows.insert(key.into(), value.into()),
                Change::Remove(key) => rows.remove(key.as_slice()),
            };
        }
        Ok(())
    }

    async fn stats(&self) -> Result<StoreStats> {
        self.read(|_| {
            Ok(StoreStats {
                disk_bytes: 0,
                open_micros: 0,
                requests: None,
            })
        })
    }

    async fn close(&self) -> Result<()> {
        self.rows
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        Ok(())
    }
}

fn scan_one(rows: &BTreeMap<Bytes, Bytes>, scan: &Scan) -> Result<Chunk> {
    if scan.range.is_empty() {
        return Ok(Chunk {
            rows: Vec::new(),
            exhausted: true,
        });
    }
    let (start, end) = (scan.range.start.as_slice(), scan.range.end.as_slice());
    let range = rows.range::<[u8], _>((
        std::ops::Bound::Included(start),
        std::ops::Bound::Excluded(end),
    ));
    let row = |(key, value): (&Bytes, &Bytes)| {
        Ok(Row {
            key: key.clone(),
            value: value.clone(),
        })
    };
    match scan.direction {
        Direction::Ascending => Chunk::collect(scan, range.map(row)),
        Direction::Descending => Chunk::collect(scan, range.rev().map(row)),
    }
}
