//! The engine past one machine: SlateDB, an LSM tree whose files live in object storage. The only
//! files that name SlateDB are this one and those in `slate/`.
//!
//! What it does by itself is not enough to be trusted with an archive. Added here:
//!
//! - It needs storage that creates an object at most once, and not all storage does what it answers.
//!   That is tried out before each open (see `probe.rs`).
//! - Whoever opens it takes it over and ends the one before. A command that looks at an archive must
//!   not end its server, so an object says who has it open (see `lease.rs`).
//! - A write returns before it is durable. A batch is acknowledged once SlateDB says that it is in
//!   object storage; several may be on their way, and they become durable in their order.
//! - A write that fails leaves rows in memory that nobody has on disk. Later writes fail.
//! - Reads see rows that are not durable yet, as the writer has to; the archive shows them to nobody
//!   before they are. All reads of one call are of one snapshot.
//! - Every request has a price, and is counted (see `requests.rs`).
//!
//! Other processes can read while one writes (see `replica.rs`).

mod lease;
mod place;
mod probe;
mod replica;
mod requests;
mod scan;
mod settings;
mod sight;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use slatedb::manifest::SsTableView;
use slatedb::{CloseReason, Db, DbReadOps, DbSnapshot, ErrorKind, WriteBatch, WriteHandle};

use self::lease::Held;
use self::place::Place;
pub use self::replica::SlateReplica;
use self::requests::Counts;
use super::{
    Batch, Change, Chunk, Commit, Durability, Objects, Poison, Scan, Store, StoreOptions,
    StoreStats, closed,
};
use crate::error::{Error, Reason, Result};

/// The longest key that SlateDB takes.
const KEY_BYTES_MAX: usize = 65_535;

/// Reads of one call that wait for object storage at the same time.
const READS_MAX: usize = 32;

/// Names the database in the cache of blocks, which is its own.
const CACHE_ID: u64 = 0;

/// An archive in object storage.
pub struct SlateStore {
    place: String,
    open_micros: u64,
    counts: Arc<Counts>,
    /// Read for the moment of a clone only; empty after close.
    db: RwLock<Option<Db>>,
    /// Tells others that the archive is open; empty after close.
    held: Mutex<Option<Held>>,
    /// The last write that may not be durable yet.
    last: Mutex<Option<WriteHandle>>,
    poison: Arc<Poison>,
}

impl fmt::Debug for SlateStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlateStore")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

impl SlateStore {
    /// Opens the archive at a place in object storage, creating it if there is none.
    ///
    /// # Errors
    /// `StorageUnfit` if the storage would lose articles; `ArchiveLocked` if another process has the
    /// archive open; `FileFailed` if something else is there; `StoreFailed` if the storage cannot be
    /// reached; `ArchiveDamaged`.
    pub async fn open(place: &Objects, options: &StoreOptions) -> Result<Self> {
        let started = Instant::now();
        let place = Place::open(place, &options.objects)?;
        place.lease.check().await?;
        place.check_place().await?;
        let Place {
            name,
            prefix,
            database,
            storage,
            counts,
            lease,
        } = place;
        let probed = probe::run(&*storage, &prefix, &name).await?;
        let db = Db::builder(database, storage)
            .with_settings(settings::settings(&options.objects, probed))
            .with_sst_block_size(settings::BLOCK)
            .with_filter_policies(scan::filters())
            .with_db_cache(settings::memory(options.cache_bytes), CACHE_ID)
            .build()
            .await
            .map_err(|error| open_failed(&name, error))?;
        let mut status = db.subscribe();
        let lost = async move {
            let is_lost = |reason| matches!(reason, Some(CloseReason::Fenced | CloseReason::Panic));
            let lost = status.wait_for(|status| is_lost(status.close_reason));
            // Nobody is left to lose it.
            let _ = lost.await;
        };
        let held = match lease.hold(lost).await {
            Ok(held) => held,
            Err(error) => {
                let closed = db.close().await;
                tracing::debug!(?closed, "closed again");
                return Err(error);
            }
        };
        Ok(Self {
            place: name,
            open_micros: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
            counts,
            db: RwLock::new(Some(db)),
            held: Mutex::new(Some(held)),
            last: Mutex::default(),
            poison: Arc::new(Poison::default()),
        })
    }

    /// Waits until no other process has the archive at a place open.
    ///
    /// # Errors
    /// `StoreFailed` if the storage cannot be reached at first.
    pub async fn wait_for_turn(place: &Objects, options: &StoreOptions) -> Result<()> {
        Place::open(place, &options.objects)?.lease.wait().await
    }

    fn db(&self) -> Result<Db> {
        let db = self.db.read().unwrap_or_else(PoisonError::into_inner);
        db.clone().ok_or_else(closed)
    }

    fn snapshot(&self) -> Result<Arc<DbSnapshot>> {
        self.db()?.snapshot().map_err(read_failed)
    }

    /// Applies a batch, and returns what tells when it and all before it are durable; none if there
    /// is nothing to wait for.
    async fn apply(&self, batch: Batch) -> Result<Option<WriteHandle>> {
        self.poison.check()?;
        let db = self.db()?;
        let Some(rows) = rows_of(batch)? else {
            let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            return Ok(last.clone());
        };
        let written = db.write(rows).await.map_err(write_failed);
        let handle = written.inspect_err(|error| self.poison.set(error))?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Some(handle.clone());
        Ok(Some(handle))
    }
}

#[async_trait]
impl Store for SlateStore {
    fn engine(&self) -> &'static str {
        "slatedb"
    }

    async fn get_many(&self, keys: Vec<Vec<u8>>) -> Result<Vec<Option<Bytes>>> {
        get_all(&*self.snapshot()?, keys).await
    }

    async fn scan_many(&self, scans: Vec<Scan>) -> Result<Vec<Chunk>> {
        scan_all(&*self.snapshot()?, scans).await
    }

    async fn write(&self, batch: Batch, durability: Durability) -> Result<()> {
        match durability {
            Durability::Synced => self.submit(batch).await?.await,
            Durability::Buffered => self.apply(batch).await.map(drop),
        }
    }

    async fn submit(&self, batch: Batch) -> Result<Commit> {
        let Some(handle) = self.apply(batch).await? else {
            return Ok(Commit::durable());
        };
        let poison = Arc::clone(&self.poison);
        Ok(Commit::pending(async move {
            let durable = handle.await_durable().await.map_err(write_failed);
            durable.inspect_err(|error| poison.set(error))
        }))
    }

    fn check_not_replaced(&self) -> Result<()> {
        match self.db()?.status().close_reason {
            None | Some(CloseReason::Clean) => Ok(()),
            Some(CloseReason::Fenced) => Err(replaced_error()),
            Some(_) => {
                let what = "the engine broke down; start this server again";
                Err(Error::new(Reason::StoreFailed, what))
            }
        }
    }

    async fn replaced(&self) -> Error {
        if let Ok(db) = self.db() {
            let mut status = db.subscribe();
            let is_replaced = |reason| matches!(reason, Some(CloseReason::Fenced));
            let replaced = status.wait_for(|status| is_replaced(status.close_reason));
            if replaced.await.is_ok() {
                return replaced_error();
            }
        }
        // It is closed.
        std::future::pending().await
    }

    async fn stats(&self) -> Result<StoreStats> {
        let manifest = self.db()?.manifest();
        let tables = manifest.all_sst_views().map(SsTableView::estimate_size);
        Ok(StoreStats {
            disk_bytes: tables.sum(),
            open_micros: self.open_micros,
            requests: Some(self.counts.so_far()),
            ..StoreStats::default()
        })
    }

    async fn close(&self) -> Result<()> {
        let db = {
            let mut db = self.db.write().unwrap_or_else(PoisonError::into_inner);
            db.take()
        };
        let Some(db) = db else {
            return Ok(());
        };
        let closed = db.close().await.map_err(write_failed);
        let held = {
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            held.take()
        };
        if let Some(held) = held {
            held.release().await;
        }
        self.poison.check().and(closed)
    }
}

async fn get_all<R: DbReadOps + Sync>(
    reader: &R,
    keys: Vec<Vec<u8>>,
) -> Result<Vec<Option<Bytes>>> {
    let reads = scan::together(keys.clone(), READS_MAX)
        .into_iter()
        .map(|keys| scan::values(reader, keys));
    let mut found = HashMap::with_capacity(keys.len());
    let mut parts = stream::iter(reads).buffer_unordered(READS_MAX);
    while let Some(part) = parts.try_next().await? {
        found.extend(part);
    }
    Ok(keys.iter().map(|key| found.get(key).cloned()).collect())
}

async fn scan_all<R: DbReadOps + Sync>(reader: &R, scans: Vec<Scan>) -> Result<Vec<Chunk>> {
    let reads = scans
        .into_iter()
        .map(|scan| async move { scan::chunk(reader, &scan).await });
    stream::iter(reads).buffered(READS_MAX).try_collect().await
}

/// A batch as SlateDB takes it, unless it is empty.
fn rows_of(batch: Batch) -> Result<Option<WriteBatch>> {
    let changes = batch.into_changes();
    if changes.is_empty() {
        return Ok(None);
    }
    let mut rows = WriteBatch::new();
    for change in changes {
        let (Change::Put(key, _) | Change::Remove(key)) = &change;
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            let what = format!("a key has {} bytes, not 1 to {KEY_BYTES_MAX}", key.len());
            return Err(Error::new(Reason::Internal, what));
        }
        match change {
            Change::Put(key, value) => rows.put_bytes(key.into(), value.into()),
            Change::Remove(key) => rows.delete(key),
        }
    }
    Ok(Some(rows))
}

fn open_failed(place: &str, error: slatedb::Error) -> Error {
    let (reason, what) = match error.kind() {
        ErrorKind::Unavailable => (Reason::StoreFailed, "cannot be opened now"),
        ErrorKind::Closed(_) => (Reason::WriterReplaced, "was taken over while it was opened"),
        ErrorKind::Data => (
            Reason::ArchiveDamaged,
            "has damaged or missing files; restore a backup into a new place",
        ),
        ErrorKind::Transaction | ErrorKind::Invalid | ErrorKind::Internal | _ => {
            (Reason::StoreFailed, "cannot be opened")
        }
    };
    Error::new(reason, format!("the archive {place} {what}"))
        .with_resource(place)
        .with_source(error)
}

fn replaced_error() -> Error {
    let what = "another process has taken the archive over, and this one answers no more for it";
    Error::new(Reason::WriterReplaced, what)
}

fn read_failed(error: slatedb::Error) -> Error {
    failed(error, "cannot read from object storage")
}

fn write_failed(error: slatedb::Error) -> Error {
    failed(error, "cannot write to object storage")
}

fn failed(error: slatedb::Error, what: &str) -> Error {
    let reason = match error.kind() {
        ErrorKind::Closed(CloseReason::Clean) => return closed(),
        ErrorKind::Closed(CloseReason::Fenced) => {
            return replaced_error().with_source(error);
        }
        ErrorKind::Data => Reason::StoreDamaged,
        ErrorKind::Closed(_)
        | ErrorKind::Unavailable
        | ErrorKind::Transaction
        | ErrorKind::Invalid
        | ErrorKind::Internal
        | _ => Reason::StoreFailed,
    };
    Error::new(reason, what).with_source(error)
}
