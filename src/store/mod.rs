//! Storage engines behind one small trait: ordered rows of bytes, written in batches.
//!
//! This module knows no article, no record and no proto. Only `store/sled.rs` names sled. What an
//! engine must do beyond what its library does is told at the top of its file.

mod folder;
mod frames;
mod memory;
mod order;
mod overlay;
mod reads;
mod room;
mod sled;
mod watermark;

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;

pub use self::memory::MemoryStore;
pub use self::sled::SledStore;
use crate::error::{Error, Reason, Result, panic};

/// One row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
}

/// The direction of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the first key on.
    Ascending,
    /// From the last key back.
    Descending,
}

/// A request for one chunk of rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan {
    /// Keys from `start` (inclusive) to `end` (exclusive).
    pub range: Range<Vec<u8>>,
    /// The end to begin at.
    pub direction: Direction,
    /// At most so many rows.
    pub rows_max: usize,
    /// No further row once keys and values have so many bytes; the first row comes whatever its size.
    pub bytes_max: usize,
}

/// The rows of one chunk, in the order of the scan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    /// The rows.
    pub rows: Vec<Row>,
    /// Whether the range holds no rows behind these.
    pub exhausted: bool,
}

impl Chunk {
    /// Takes rows in scan order until a limit of the scan is reached.
    fn collect(scan: &Scan, rows: impl Iterator<Item = Result<Row>>) -> Result<Self> {
        let mut chunk = Self::default();
        let mut bytes = 0;
        for row in rows {
            let row = row?;
            let row_bytes = row.key.len() + row.value.len();
            let full = !chunk.rows.is_empty() && bytes + row_bytes > scan.bytes_max;
            if full || chunk.rows.len() == scan.rows_max {
                return Ok(chunk);
            }
            bytes += row_bytes;
            chunk.rows.push(row);
        }
        chunk.exhausted = true;
        Ok(chunk)
    }
}

/// One change of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Writes a row, over the old one if there is one.
    Put(Vec<u8>, Vec<u8>),
    /// Removes a row, if it is there.
    Remove(Vec<u8>),
}

impl Change {
    /// Bytes of the key, and of the value if there is one.
    fn bytes(&self) -> usize {
        match self {
            Self::Put(key, value) => key.len() + value.len(),
            Self::Remove(key) => key.len(),
        }
    }

    fn is_removal(&self) -> bool {
        matches!(self, Self::Remove(_))
    }
}

/// Changes that are made together or not at all. Of two changes of one key the later one holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    changes: Vec<Change>,
}

impl Batch {
    /// A batch without changes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a row.
    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.changes.push(Change::Put(key, value));
    }

    /// Adds a removal.
    pub fn remove(&mut self, key: Vec<u8>) {
        self.changes.push(Change::Remove(key));
    }

    /// The changes in order.
    #[must_use]
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Gives the changes away, in order.
    #[must_use]
    pub fn into_changes(self) -> Vec<Change> {
        self.changes
    }
}

/// What a write has to survive before it returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Nothing yet: a later synced write, or closing, makes it durable.
    Buffered,
    /// A power cut.
    Synced,
}

/// What an engine tells of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Bytes on disk, 0 for memory.
    pub disk_bytes: u64,
    /// How long opening took, in microseconds.
    pub open_micros: u64,
    /// Bytes that its cache may take, 0 if it has none.
    pub cache_bytes: u64,
    /// Small reads that were as fast as memory is.
    pub reads_fast_count: u64,
    /// Small reads that were not: they waited for the disk, or for a batch that was being applied.
    pub reads_slow_count: u64,
}

/// An ordered map of byte strings, with atomic batches.
///
/// Writes are applied in the order in which they are made. A reader sees all of a batch or nothing
/// of it, but not necessarily only what is durable. A scan is not a snapshot: rows written while
/// it runs may or may not be in it, all others are.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync {
    /// The engine's name.
    fn engine(&self) -> &'static str;

    /// Reads the values of keys, in the order of the keys. Fails as a whole.
    async fn get_many(&self, keys: Vec<Vec<u8>>) -> Result<Vec<Option<Bytes>>>;

    /// Reads one chunk per scan, in the order of the scans. Fails as a whole. No iterator is held
    /// between calls: the caller goes on from the last key it got.
    async fn scan_many(&self, scans: Vec<Scan>) -> Result<Vec<Chunk>>;

    /// Applies a batch, all or nothing. After a failure it is not known whether the batch was
    /// applied, so every later write fails with the first cause; reads go on. `DiskFull` alone says
    /// that nothing was written, and that a later write may succeed.
    async fn write(&self, batch: Batch, durability: Durability) -> Result<()>;

    /// Reports figures.
    async fn stats(&self) -> Result<StoreStats>;

    /// Makes everything durable and lets go of the files. Afterwards every call fails. A second
    /// close does nothing.
    async fn close(&self) -> Result<()>;
}

/// The memory of the first failed write, which stops all later ones.
///
/// After a failed sync nobody knows what is on disk; going on would acknowledge articles behind a
/// hole in the log.
#[derive(Debug, Default)]
pub struct Poison(OnceLock<Error>);

impl Poison {
    /// Remembers a failure. Only the first one counts.
    pub fn set(&self, cause: &Error) {
        if cause.reason() == Reason::DiskFull {
            // That was noticed before anything was written, and is over when there is room again.
            return;
        }
        // A second failure is a consequence of the first, which is the one to report.
        let _ = self.0.set(cause.clone());
    }

    /// Fails if a write failed before.
    ///
    /// # Errors
    /// `WritesStopped` with the first cause.
    pub fn check(&self) -> Result<()> {
        match self.0.get() {
            None => Ok(()),
            Some(cause) => Err(Error::new(
                Reason::WritesStopped,
                "an earlier write failed, so the archive takes no more until the server is restarted",
            )
            .with_source(cause.clone())),
        }
    }
}

/// The error of every call after close.
fn closed() -> Error {
    Error::new(Reason::ShuttingDown, "the archive is closed")
}

/// Where an archive is, and so which engine keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Locator {
    /// A folder: sled.
    Folder(PathBuf),
    /// `memory:`: nothing outlives the process.
    Memory,
}

impl FromStr for Locator {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = |what: &str| {
            Error::field(
                Reason::ArgumentInvalid,
                "archive",
                format!(
                    "{text:?} {what}; an archive is a folder such as ./pressmark-data, or memory:"
                ),
            )
        };
        match text.split_once("://") {
            _ if text.is_empty() => Err(invalid("is empty")),
            _ if text == "memory:" => Ok(Self::Memory),
            Some((scheme, _)) if scheme.chars().all(|c| c.is_ascii_alphanumeric()) => {
                Err(invalid("names an engine that this build does not have"))
            }
            _ => Ok(Self::Folder(text.into())),
        }
    }
}

impl fmt::Display for Locator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => path.display().fmt(f),
            Self::Memory => f.write_str("memory:"),
        }
    }
}

/// Settings of the engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreOptions {
    /// Bytes of pages that the engine keeps in memory, as they are on disk.
    pub cache_bytes: u64,
    /// Whether to open an archive that has lost acknowledged writes.
    pub accept_loss: bool,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 32 * 1024 * 1024,
            accept_loss: false,
        }
    }
}

/// Opens an archive's store, creating it if there is none.
///
/// # Errors
/// `ArchiveLocked` if another process has it open, `ArchiveDamaged` if its files cannot be read.
pub async fn open(locator: &Locator, options: StoreOptions) -> Result<Arc<dyn Store>> {
    match locator {
        Locator::Memory => Ok(Arc::new(MemoryStore::new())),
        Locator::Folder(path) => {
            let folder = path.clone();
            let opening = move || panic::caught(|| SledStore::open(&folder, options));
            match tokio::task::spawn_blocking(opening).await {
                Ok(Ok(store)) => Ok(Arc::new(store?)),
                Ok(Err(_)) | Err(_) => Err(Error::new(
                    Reason::StoreFailed,
                    format!(
                        "the engine broke down while it opened the archive {}; if it does again, \
                         restore a backup into a new folder",
                        path.display()
                    ),
                )),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locators_name_engines() {
        assert_eq!("memory:".parse::<Locator>().unwrap(), Locator::Memory);
        assert_eq!(
            "./a b".parse::<Locator>().unwrap(),
            Locator::Folder("./a b".into())
        );
        for wrong in ["", "s3://bucket/prefix", "postgres://x"] {
            let error = wrong.parse::<Locator>().unwrap_err();
            assert_eq!(error.field_name(), Some("archive"), "{wrong}");
        }
    }

    #[test]
    fn the_first_cause_stays() {
        let poison = Poison::default();
        poison.check().unwrap();
        poison.set(&Error::new(Reason::StoreFailed, "first"));
        poison.set(&Error::new(Reason::StoreFailed, "second"));
        let error = poison.check().unwrap_err();
        assert!(error.to_string().ends_with("first"), "{error}");
        assert_eq!(error.reason(), Reason::WritesStopped);
    }
}
