//! A replica: reads what another process writes to object storage, and follows it.
//!
//! - It writes nothing. SlateDB's reader could keep a note of the files that it reads, so that the
//!   writer leaves them; but then every replica changes what the writer changes, and a stopped one holds
//!   files for as long as its note is good. Without, a file can go away between the moment at which a
//!   replica learned of it and the moment at which it reads it. Then the read fails, the replica looks
//!   again, and finds what has the rows now.
//! - The reader has no snapshots: it goes on between two reads of a call. A call in which it did reads
//!   again. If it does so each time, what was read is as good as a read of any other store: in the order
//!   of the keys nothing is older than what is before it.
//! - It tells how fresh it is, and is renewed before it has too many tables in memory (see `sight.rs`).

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use object_store::ObjectStore;
use object_store::path::Path;
use slatedb::db_cache::DbCache;
use slatedb::manifest::SsTableView;
use slatedb::wal::SlateDbWalReaderBuilder;
use slatedb::{CloseReason, DbReader, DbReaderMode, DbStatus};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::super::{
    Batch, Chunk, Durability, Look, ObjectOptions, Objects, Scan, Store, StoreOptions, StoreStats,
    closed,
};
use super::lease::Lease;
use super::place::Place;
use super::requests::Counts;
use super::sight::{Looks, Sight, Tail};
use super::{CACHE_ID, get_all, open_failed, scan, scan_all, settings};
use crate::error::{Error, Reason, Result};

/// How often a call is read at most.
const TRIES_MAX: u32 = 4;

/// How long a read that failed waits for the next look.
const LOOK_WAIT_MAX: Duration = Duration::from_secs(2);

/// Looks that found something, after which a reader is renewed.
const TABLES_MAX: u32 = 128;

/// How often it is looked whether the calls of the reader before have ended.
const CALLS_PAUSE: Duration = Duration::from_millis(100);

/// An archive in object storage that another process writes.
pub struct SlateReplica {
    source: Arc<Source>,
    open_micros: u64,
    counts: Arc<Counts>,
    /// Says who writes. It is only read here.
    lease: Lease,
    /// The task that tells of new rows and renews the reader.
    keeper: Mutex<Option<JoinHandle<()>>>,
}

/// Where the readers of a replica come from, one after the other.
struct Source {
    place: String,
    database: Path,
    storage: Arc<dyn ObjectStore>,
    options: ObjectOptions,
    memory: Arc<dyn DbCache>,
    tail: Arc<Tail>,
    told: watch::Sender<Look>,
    /// Read for the moment of a clone only; empty after close.
    current: RwLock<Option<Arc<Current>>>,
    has_failed: watch::Sender<bool>,
}

/// A reader and its looks.
struct Current {
    reader: DbReader,
    looks: Arc<Looks>,
}

impl fmt::Debug for SlateReplica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlateReplica")
            .field("place", &self.source.place)
            .finish_non_exhaustive()
    }
}

impl SlateReplica {
    /// Opens the archive at a place in object storage, which has to be there.
    ///
    /// # Errors
    /// `FileFailed` if there is no archive; `StoreFailed` if the storage cannot be reached;
    /// `ArchiveDamaged`.
    pub async fn open(place: &Objects, options: &StoreOptions) -> Result<Self> {
        Self::at(Place::open(place, &options.objects)?, options).await
    }

    async fn at(place: Place, options: &StoreOptions) -> Result<Self> {
        let started = Instant::now();
        if !place.has_archive().await? {
            let what = format!(
                "no archive is at {}; start the server that writes it first",
                place.name
            );
            return Err(Error::new(Reason::FileFailed, what).with_resource(place.name));
        }
        let Place {
            name,
            database,
            storage,
            counts,
            lease,
            ..
        } = place;
        let storage = settings::with_copies(storage, &options.objects).await;
        let source = Arc::new(Source {
            storage: storage.map_err(|error| open_failed(&name, error))?,
            place: name,
            database,
            options: options.objects.clone(),
            memory: settings::memory(options.cache_bytes),
            tail: Arc::default(),
            told: watch::Sender::new(Look {
                number: 0,
                complete_to: started,
            }),
            current: RwLock::default(),
            has_failed: watch::Sender::new(false),
        });
        let current = source.open().await?;
        source.begin(&current);
        let keeper = tokio::spawn(Arc::clone(&source).keep(current));
        Ok(Self {
            source,
            open_micros: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
            counts,
            lease,
            keeper: Mutex::new(Some(keeper)),
        })
    }
}

impl Drop for SlateReplica {
    fn drop(&mut self) {
        // Whoever drops it did not close it, and nobody hears of new rows any more.
        let keeper = self.keeper.get_mut();
        if let Some(keeper) = keeper.unwrap_or_else(PoisonError::into_inner) {
            keeper.abort();
        }
    }
}

impl Source {
    /// Opens a reader.
    async fn open(&self) -> Result<Arc<Current>> {
        let failed = |error| open_failed(&self.place, error);
        let looks = Arc::new(Looks::new(self.told.clone()));
        let log = SlateDbWalReaderBuilder::new()
            .with_path(self.database.clone())
            .with_object_store(self.storage.clone());
        let log = log.build().map_err(failed)?;
        let sight = Sight::new(log, Arc::clone(&looks), Arc::clone(&self.tail));
        let reader = DbReader::builder(self.database.clone(), self.storage.clone())
            .with_reader_mode(DbReaderMode::FollowLatest)
            .with_options(settings::of_replica(&self.options))
            .with_filter_policies(scan::filters())
            .with_db_cache(Arc::clone(&self.memory), CACHE_ID)
            .with_wal_reader(Arc::new(sight))
            .build();
        let reader = reader.await.map_err(failed)?;
        Ok(Arc::new(Current { reader, looks }))
    }

    /// Reads from a reader from now on. Returns the one before.
    fn begin(&self, next: &Arc<Current>) -> Option<Arc<Current>> {
        let before = {
            let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
            current.replace(Arc::clone(next))
        };
        next.looks.ended();
        before
    }

    fn current(&self) -> Result<Arc<Current>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.clone().ok_or_else(closed)
    }

    /// Tells of new rows, and renews the reader when it has found some often enough.
    async fn keep(self: Arc<Self>, mut current: Arc<Current>) {
        let mut status = current.reader.subscribe();
        let mut tables = 0;
        let mut ending = JoinSet::new();
        while status.changed().await.is_ok() {
            if let Some(reason) = status.borrow_and_update().close_reason {
                self.has_failed.send_replace(reason != CloseReason::Clean);
                return;
            }
            current.looks.moved();
            tables += 1;
            if tables < TABLES_MAX {
                continue;
            }
            tables = 0;
            let ended = status.wait_for(|status| status.close_reason.is_some());
            tokio::select! {
                () = current.looks.hold() => {}
                // Its looks are over before the next one.
                _ = ended => {
                    self.has_failed.send_replace(true);
                    return;
                }
            }
            current.looks.moved();
            match self.next_after(&current).await {
                Ok(next) => {
                    status = next.reader.subscribe();
                    if let Some(before) = self.begin(&next) {
                        ending.spawn(end(before));
                    }
                    current = next;
                }
                Err(error) => {
                    tracing::warn!(%error, "the reader of {} is not renewed", self.place);
                    current.looks.go_on();
                }
            }
            while ending.try_join_next().is_some() {}
        }
    }

    /// Opens the next reader, which knows of everything that this one does.
    async fn next_after(&self, current: &Current) -> Result<Arc<Current>> {
        let next = self.open().await?;
        let durable = |current: &Current| current.reader.subscribe().borrow().durable_seq;
        if durable(&next) >= durable(current) {
            return Ok(next);
        }
        end(next).await;
        let what = "files of the log were removed while they were read again";
        Err(Error::new(Reason::StoreFailed, what))
    }

    fn lost(&self) -> Error {
        let place = &self.place;
        let what = format!("{place} cannot be followed any more; start this server again");
        Error::new(Reason::StoreFailed, what).with_resource(place)
    }

    fn refuse<T>(&self) -> Result<T> {
        let what = format!("{} is only read here", self.place);
        Err(Error::new(Reason::NotTheWriter, what))
    }
}

/// Closes a reader when all calls that read from it have ended.
async fn end(before: Arc<Current>) {
    before.looks.end();
    while Arc::strong_count(&before) > 1 {
        tokio::time::sleep(CALLS_PAUSE).await;
    }
    if let Err(error) = before.reader.close().await {
        tracing::debug!(%error, "a reader ended badly");
    }
}

#[async_trait]
impl Store for SlateReplica {
    fn engine(&self) -> &'static str {
        "slatedb"
    }

    async fn get_many(&self, keys: Vec<Vec<u8>>) -> Result<Vec<Option<Bytes>>> {
        let mut tries = Tries::new(&self.source)?;
        loop {
            let values = get_all(&tries.current.reader, keys.clone()).await;
            if let Some(values) = tries.judge(values).await {
                return values;
            }
        }
    }

    async fn scan_many(&self, scans: Vec<Scan>) -> Result<Vec<Chunk>> {
        let mut tries = Tries::new(&self.source)?;
        loop {
            let chunks = scan_all(&tries.current.reader, scans.clone()).await;
            if let Some(chunks) = tries.judge(chunks).await {
                return chunks;
            }
        }
    }

    async fn write(&self, _batch: Batch, _durability: Durability) -> Result<()> {
        self.source.current()?;
        self.source.refuse()
    }

    fn looks(&self) -> Option<watch::Receiver<Look>> {
        Some(self.source.told.subscribe())
    }

    async fn writer(&self) -> Result<Option<String>> {
        self.lease.holder().await
    }

    fn check_not_replaced(&self) -> Result<()> {
        if *self.source.has_failed.borrow() {
            return Err(self.source.lost());
        }
        Ok(())
    }

    async fn replaced(&self) -> Error {
        let mut has_failed = self.source.has_failed.subscribe();
        // It cannot end while this is asked.
        let _ = has_failed.wait_for(|has_failed| *has_failed).await;
        self.source.lost()
    }

    async fn stats(&self) -> Result<StoreStats> {
        let manifest = self.source.current()?.reader.manifest();
        let tables = manifest.all_sst_views().map(SsTableView::estimate_size);
        Ok(StoreStats {
            disk_bytes: tables.sum(),
            open_micros: self.open_micros,
            requests: Some(self.counts.so_far()),
            ..StoreStats::default()
        })
    }

    async fn close(&self) -> Result<()> {
        let keeper = {
            let mut keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner);
            keeper.take()
        };
        if let Some(keeper) = keeper {
            keeper.abort();
            // Whatever it was at, it is at nothing now.
            let _ = keeper.await;
        }
        let current = {
            let current = self.source.current.write();
            current.unwrap_or_else(PoisonError::into_inner).take()
        };
        let Some(current) = current else {
            return Ok(());
        };
        current.looks.end();
        current.reader.close().await.map_err(super::read_failed)
    }
}

/// The reads of one call.
struct Tries<'a> {
    source: &'a Source,
    left: u32,
    current: Arc<Current>,
    status: watch::Receiver<DbStatus>,
    looks: watch::Receiver<Look>,
    /// What was durable when the read began.
    began_at: u64,
}

impl<'a> Tries<'a> {
    fn new(source: &'a Source) -> Result<Self> {
        let current = source.current()?;
        let status = current.reader.subscribe();
        let began_at = status.borrow().durable_seq;
        Ok(Self {
            source,
            left: TRIES_MAX,
            current,
            status,
            looks: source.told.subscribe(),
            began_at,
        })
    }

    /// What the call is answered with, unless it has to be read again.
    async fn judge<T>(&mut self, read: Result<T>) -> Option<Result<T>> {
        self.left -= 1;
        let durable = self.status.borrow().durable_seq;
        match &read {
            Ok(_) if durable == self.began_at => return Some(read),
            Err(error) if error.reason() == Reason::ShuttingDown => return Some(read),
            _ if self.left == 0 => return Some(read),
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "looking again before the next try");
                let look = tokio::time::timeout(LOOK_WAIT_MAX, self.looks.changed());
                // Late or never: the next try will tell.
                let _ = look.await;
                // There may be another reader by now, and this one looks no more.
                if let Ok(current) = self.source.current() {
                    self.status = current.reader.subscribe();
                    self.current = current;
                }
            }
        }
        self.began_at = self.status.borrow().durable_seq;
        None
    }
}

#[cfg(test)]
mod tests;
