//! Storage engines behind one small trait: ordered rows of bytes, written in batches.
//!
//! This module knows no article, no record and no proto. Only `store/sled.rs` names sled, and only
//! `store/slate.rs` names SlateDB. What an engine must do beyond what its library does is told at the
//! top of its file.

mod folder;
mod frames;
mod locator;
mod memory;
mod order;
mod overlay;
mod reads;
mod replica;
mod room;
mod slate;
mod sled;
mod watermark;

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

pub use self::locator::{Locator, Objects, Provider};
pub use self::memory::MemoryStore;
pub use self::replica::{Look, open_replica};
pub use self::slate::{SlateReplica, SlateStore};
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
        let mut filling = Filling::of(scan);
        for row in rows {
            if !filling.takes(row?) {
                return Ok(filling.chunk);
            }
        }
        Ok(filling.exhausted())
    }
}

/// A chunk in the making.
#[derive(Debug)]
struct Filling<'a> {
    scan: &'a Scan,
    chunk: Chunk,
    bytes: usize,
}

impl<'a> Filling<'a> {
    fn of(scan: &'a Scan) -> Self {
        Self {
            scan,
            chunk: Chunk::default(),
            bytes: 0,
        }
    }

    /// Takes the next row, or says that the chunk is full.
    fn takes(&mut self, row: Row) -> bool {
        let rows = &mut self.chunk.rows;
        let row_bytes = row.key.len() + row.value.len();
        let full = !rows.is_empty() && self.bytes + row_bytes > self.scan.bytes_max;
        if full || rows.len() == self.scan.rows_max {
            return false;
        }
        self.bytes += row_bytes;
        rows.push(row);
        true
    }

    /// The chunk, behind which there are no rows.
    fn exhausted(mut self) -> Chunk {
        self.chunk.exhausted = true;
        self.chunk
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
    /// Requests to object storage since it was opened; none where there is no object storage.
    pub requests: Option<Requests>,
}

/// Requests to object storage, by what they cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// Objects written, each part of a large one on its own.
    pub put_count: u64,
    /// Objects read, whole, in part or only their heads.
    pub get_count: u64,
    /// Pages of lists.
    pub list_count: u64,
    /// Objects removed.
    pub delete_count: u64,
}

/// A write that later reads see and that later writes follow. It completes when it would survive a
/// power cut, in the order of all writes, or with why it may not.
pub struct Commit(Option<Pin<Box<dyn Future<Output = Result<()>> + Send>>>);

impl Commit {
    /// A write that is durable already.
    #[must_use]
    pub fn durable() -> Self {
        Self(None)
    }

    /// A write that is durable when a future completes.
    pub fn pending(durable: impl Future<Output = Result<()>> + Send + 'static) -> Self {
        Self(Some(Box::pin(durable)))
    }
}

impl Future for Commit {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            None => Poll::Ready(Ok(())),
            Some(durable) => durable.as_mut().poll(context),
        }
    }
}

impl fmt::Debug for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.0.is_none() {
            "durable"
        } else {
            "pending"
        };
        f.debug_tuple("Commit").field(&state).finish()
    }
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

    /// Applies a batch as [`write`](Self::write) does, and returns what to wait for until it is
    /// durable. An engine that takes long to make a batch durable takes further ones meanwhile; for
    /// one that does not, this is a synced write.
    async fn submit(&self, batch: Batch) -> Result<Commit> {
        self.write(batch, Durability::Synced).await?;
        Ok(Commit::durable())
    }

    /// How a replica follows what another process writes; nothing for who writes itself.
    fn looks(&self) -> Option<watch::Receiver<Look>> {
        None
    }

    /// What the process calls itself that writes what a replica follows; nothing if there is none.
    async fn writer(&self) -> Result<Option<String>> {
        Ok(None)
    }

    /// Whether this process may go on using what it has open.
    ///
    /// # Errors
    /// That of [`replaced`](Self::replaced) from the moment on at which that completes; `StoreFailed` if
    /// the engine broke down.
    fn check_not_replaced(&self) -> Result<()> {
        Ok(())
    }

    /// Completes when another process has taken the archive over, or a replica can follow it no more,
    /// with what to tell of it; never for an engine that this cannot happen to.
    async fn replaced(&self) -> Error {
        std::future::pending().await
    }

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

/// Settings of the engines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreOptions {
    /// Bytes of pages that the engine keeps in memory, as they are on disk.
    pub cache_bytes: u64,
    /// Whether to open an archive that has lost acknowledged writes.
    pub accept_loss: bool,
    /// Settings of archives in object storage.
    pub objects: ObjectOptions,
}

/// Settings of archives in object storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectOptions {
    /// The URL of the storage, if it is not the provider's own.
    pub endpoint: Option<String>,
    /// The region of the bucket.
    pub region: Option<String>,
    /// Who asks, for S3, instead of what the variables of the system say.
    pub credentials: Option<Credentials>,
    /// How long writes are gathered before they are sent off together: less is sooner, and dearer.
    pub flush_interval: Duration,
    /// How long a writer has to be silent until another process may take over from it.
    pub lease: Duration,
    /// How often a replica looks what the writer did: more often is fresher, and dearer.
    pub poll_interval: Duration,
    /// What other processes are told of this one while it has the archive open.
    pub name: String,
    /// A folder for copies of what is read, and how many bytes they may take.
    pub cache: Option<(PathBuf, u64)>,
}

/// A key of object storage.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Its public part.
    pub key_id: String,
    /// Its secret part.
    pub secret: String,
}

impl fmt::Debug for Credentials {
    /// Tells no secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}

impl Default for ObjectOptions {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: None,
            credentials: None,
            flush_interval: Duration::from_millis(50),
            lease: Duration::from_secs(3),
            poll_interval: Duration::from_millis(500),
            name: format!("process {}", std::process::id()),
            cache: None,
        }
    }
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 32 * 1024 * 1024,
            accept_loss: false,
            objects: ObjectOptions::default(),
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
        Locator::Objects(objects) => Ok(Arc::new(SlateStore::open(objects, &options).await?)),
        Locator::Folder(path) => {
            let folder = path.clone();
            let opening = move || panic::caught(|| SledStore::open(&folder, &options));
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

/// Checks that a folder holds an archive, or nothing that one would be mixed up with. What is in object
/// storage is looked at whenever it is opened.
///
/// # Errors
/// `FileFailed` if it holds something else.
pub fn check_place(locator: &Locator) -> Result<()> {
    match locator {
        Locator::Folder(path) => folder::check_place(path),
        Locator::Objects(_) | Locator::Memory => Ok(()),
    }
}

/// Waits until no other process has an archive open, and whoever opens it now need not ask again.
///
/// # Errors
/// `ArgumentInvalid` if it is not in object storage, where alone an archive is taken over.
pub async fn wait_for_turn(locator: &Locator, options: &StoreOptions) -> Result<()> {
    match locator {
        Locator::Objects(objects) => SlateStore::wait_for_turn(objects, options).await,
        Locator::Folder(_) | Locator::Memory => {
            let what =
                format!("cannot wait for {locator}: only object storage is shared by servers");
            Err(Error::field(Reason::ArgumentInvalid, "standby", what))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
