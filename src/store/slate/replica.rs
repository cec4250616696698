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
//! - It tells how fresh it is (see `sight.rs`).

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::ObjectStore;
use object_store::path::Path;
use slatedb::manifest::SsTableView;
use slatedb::wal::SlateDbWalReaderBuilder;
use slatedb::{CloseReason, DbReader, DbReaderMode, DbStatus};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::super::{
    Batch, Chunk, Durability, Look, Objects, Scan, Store, StoreOptions, StoreStats, closed,
};
use super::lease::Lease;
use super::requests::{Counted, Counts};
use super::sight::{Looks, Sight};
use super::{CACHE_ID, get_all, open_failed, place, scan, scan_all, settings};
use crate::error::{Error, Reason, Result};

/// How often a call is read at most.
const TRIES_MAX: u32 = 4;

/// How long a read that failed waits for the next look.
const LOOK_WAIT_MAX: Duration = Duration::from_secs(2);

/// An archive in object storage that another process writes.
pub struct SlateReplica {
    place: String,
    open_micros: u64,
    counts: Arc<Counts>,
    /// Read for the moment of a clone only; empty after close.
    reader: RwLock<Option<Arc<DbReader>>>,
    /// Says who writes. It is only read here.
    lease: Lease,
    looks: Arc<Looks>,
    /// The task that tells of new rows.
    telling: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for SlateReplica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlateReplica")
            .field("place", &self.place)
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
        let started = Instant::now();
        let name = place.to_string();
        let storage = place::open(place, &options.objects)?;
        let (storage, counts) = Counted::new(storage);
        let prefix = Path::from(place.prefix.as_str());
        let lease = Lease::new(storage.clone(), &prefix, name.clone(), &options.objects)?;
        let database = prefix.join("db");
        let manifests = database.clone().join("manifest");
        let first = storage.list(Some(&manifests)).try_next().await;
        let first = first.map_err(|error| {
            Error::new(Reason::StoreFailed, format!("cannot read from {name}")).with_source(error)
        })?;
        if first.is_none() {
            let what = format!("no archive is at {name}; start the server that writes it first");
            return Err(Error::new(Reason::FileFailed, what).with_resource(name));
        }
        let looks = Arc::new(Looks::new());
        let log = SlateDbWalReaderBuilder::new()
            .with_path(database.clone())
            .with_object_store(storage.clone());
        let log = log.build().map_err(|error| open_failed(&name, error))?;
        let reader = DbReader::builder(database, storage)
            .with_reader_mode(DbReaderMode::FollowLatest)
            .with_options(settings::of_replica(&options.objects))
            .with_filter_policies(scan::filters())
            .with_db_cache(settings::memory(options.cache_bytes), CACHE_ID)
            .with_wal_reader(Arc::new(Sight::new(log, Arc::clone(&looks))))
            .build()
            .await
            .map_err(|error| open_failed(&name, error))?;
        looks.ended();
        let telling = tokio::spawn(tell(reader.subscribe(), Arc::clone(&looks)));
        Ok(Self {
            place: name,
            open_micros: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
            counts,
            reader: RwLock::new(Some(Arc::new(reader))),
            lease,
            looks,
            telling: Mutex::new(Some(telling)),
        })
    }

    fn reader(&self) -> Result<Arc<DbReader>> {
        let reader = self.reader.read().unwrap_or_else(PoisonError::into_inner);
        reader.clone().ok_or_else(closed)
    }

    async fn refuse<T>(&self) -> Result<T> {
        let what = format!("{} is only read here", self.place);
        Err(Error::new(Reason::NotTheWriter, what))
    }
}

/// Tells of new rows until the reader is closed.
async fn tell(mut status: watch::Receiver<DbStatus>, looks: Arc<Looks>) {
    while status.changed().await.is_ok() {
        if status.borrow_and_update().close_reason.is_some() {
            return;
        }
        looks.moved();
    }
}

#[async_trait]
impl Store for SlateReplica {
    fn engine(&self) -> &'static str {
        "slatedb"
    }

    async fn get_many(&self, keys: Vec<Vec<u8>>) -> Result<Vec<Option<Bytes>>> {
        let reader = self.reader()?;
        let mut tries = Tries::new(&reader, &self.looks);
        loop {
            let values = get_all(&*reader, keys.clone()).await;
            if let Some(values) = tries.judge(values).await {
                return values;
            }
        }
    }

    async fn scan_many(&self, scans: Vec<Scan>) -> Result<Vec<Chunk>> {
        let reader = self.reader()?;
        let mut tries = Tries::new(&reader, &self.looks);
        loop {
            let chunks = scan_all(&*reader, scans.clone()).await;
            if let Some(chunks) = tries.judge(chunks).await {
                return chunks;
            }
        }
    }

    async fn write(&self, _batch: Batch, _durability: Durability) -> Result<()> {
        self.reader()?;
        self.refuse().await
    }

    fn looks(&self) -> Option<watch::Receiver<Look>> {
        Some(self.looks.subscribe())
    }

    async fn writer(&self) -> Result<Option<String>> {
        self.lease.holder().await
    }

    async fn replaced(&self) -> Error {
        if let Ok(reader) = self.reader() {
            let mut status = reader.subscribe();
            let has_failed = |reason| !matches!(reason, None | Some(CloseReason::Clean));
            let failed = status.wait_for(|status| has_failed(status.close_reason));
            if failed.await.is_ok() {
                let what = format!("{} cannot be followed any more", self.place);
                return Error::new(Reason::StoreFailed, what).with_resource(&self.place);
            }
        }
        // It is closed.
        std::future::pending().await
    }

    async fn stats(&self) -> Result<StoreStats> {
        let manifest = self.reader()?.manifest();
        let tables = manifest.all_sst_views().map(SsTableView::estimate_size);
        Ok(StoreStats {
            disk_bytes: tables.sum(),
            open_micros: self.open_micros,
            requests: Some(self.counts.so_far()),
            ..StoreStats::default()
        })
    }

    async fn close(&self) -> Result<()> {
        let reader = {
            let mut reader = self.reader.write().unwrap_or_else(PoisonError::into_inner);
            reader.take()
        };
        let Some(reader) = reader else {
            return Ok(());
        };
        let closed = reader.close().await;
        let telling = {
            let mut telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
            telling.take()
        };
        if let Some(telling) = telling {
            telling.abort();
        }
        closed.map_err(super::read_failed)
    }
}

/// The reads of one call.
struct Tries {
    left: u32,
    status: watch::Receiver<DbStatus>,
    looks: watch::Receiver<Look>,
    /// What was durable when the read began.
    began_at: u64,
}

impl Tries {
    fn new(reader: &DbReader, looks: &Looks) -> Self {
        let status = reader.subscribe();
        let began_at = status.borrow().durable_seq;
        Self {
            left: TRIES_MAX,
            status,
            looks: looks.subscribe(),
            began_at,
        }
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
            }
        }
        self.began_at = self.status.borrow().durable_seq;
        None
    }
}
