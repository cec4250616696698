//! The embedded engine: one folder, one process, one disk. The only file that names sled.
//!
//! What sled 0.34 does by itself is not enough to be trusted with an archive. Added here:
//!
//! - Its `flush` never syncs the disk (it ends in `sync_file_range`; issues 1351 and 1452 of sled).
//!   A synced write therefore ends in `fdatasync` on a handle of our own for the same file.
//! - A message above a quarter of a segment, a whole leaf of up to 17 values included, goes to a
//!   file of its own that is never synced and whose loss makes every later open panic. Segments
//!   are 8 MiB and values at most 64 KiB, so that none does.
//! - A kill during open can leave `snap.*.generating`, which fails every later open (issues 1527
//!   and 1533). It is removed first, under a lock of our own.
//! - Damaged files can make open panic. The panic is caught and answered with what to do.
//! - Damage in what was written since the last open is taken for the end of the log, and synced
//!   batches are forgotten without a word. Batches are counted, and a count beside the database
//!   tells (see `watermark.rs`).
//! - A descending iterator looks for the leaf before the one that begins at `X c` by the key
//!   `X c-1 ff ff ff ff`, and panics if that leaf begins behind it, as times just before 1970 do.
//!   Keys are stored with a zero byte behind every `ff`, so that none has two of them in a row.
//! - Readers wait while a batch is applied, and `flush_async` can starve its own threads: one
//!   thread of ours applies and syncs all batches.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use sled::{Db, IVec};
use tokio::sync::{mpsc, oneshot};

use super::folder::{
    lock, remove_unfinished_snapshots, sync_folder, wait_for_release, warn_of_blobs,
};
use super::reads::Reads;
use super::watermark::Watermark;
use super::{
    Batch, Change, Chunk, Direction, Durability, Poison, Row, Scan, Store, StoreOptions,
    StoreStats, closed, panic, room,
};
use crate::error::{Error, Reason, Result};

/// Fixed for the life of an archive.
const SEGMENT_BYTES: usize = 8 * 1024 * 1024;

/// The largest value, so that a leaf of 17 stays below a quarter of a segment.
const VALUE_BYTES_MAX: usize = 64 * 1024;
const _: () = assert!(17 * VALUE_BYTES_MAX < SEGMENT_BYTES / 4);

/// Background writes: garbage collection depends on them, durability does not.
const FLUSH_EVERY_MS: u64 = 500;

/// Batches waiting for the writer thread. The archive sends one at a time.
const WRITE_QUEUE_BATCHES: usize = 4;

const DATA_FILE: &str = "db";
const BLOB_FOLDER: &str = "blobs";
const WATERMARK_FILE: &str = "SYNCED";

/// The key of the count of batches. No row has it, nor does any scan come by: a stored key has a
/// zero behind every `ff`.
const COUNT_KEY: [u8; 2] = [0xff, 1];

/// An archive in a folder.
#[derive(Debug)]
pub struct SledStore {
    folder: PathBuf,
    open_micros: u64,
    /// Read for the moment of a clone only; empty after close.
    db: RwLock<Option<Db>>,
    writer: Mutex<Option<Writer>>,
    poison: Arc<Poison>,
    reads: Arc<Reads>,
}

#[derive(Debug)]
struct Writer {
    queue: mpsc::Sender<Write>,
    thread: JoinHandle<Result<()>>,
    /// Held while the archive is open, so that no other process opens it.
    lock: File,
}

struct Write {
    batch: Batch,
    durability: Durability,
    done: oneshot::Sender<Result<()>>,
}

impl SledStore {
    /// Opens the archive in a folder, creating it if there is none. Blocks while the log is read.
    ///
    /// # Errors
    /// `ArchiveLocked` if another process has it open; `FileFailed` if the folder cannot be
    /// written; `ArchiveDamaged` if sled cannot read its files.
    pub fn open(folder: &Path, options: StoreOptions) -> Result<Self> {
        let started = Instant::now();
        let failed = |what: &str, error: io::Error| {
            Error::new(
                Reason::FileFailed,
                format!("cannot {what} {}", folder.display()),
            )
            .with_source(error)
        };
        fs::create_dir_all(folder).map_err(|error| failed("create", error))?;
        let lock = lock(folder)?;
        remove_unfinished_snapshots(folder).map_err(|error| failed("clean up", error))?;
        let db = open_guarded(folder, options)?;
        let data = OpenOptions::new()
            .write(true)
            .open(folder.join(DATA_FILE))
            .map_err(|error| failed("open the data file of", error))?;
        sync_folder(folder).map_err(|error| failed("sync", error))?;
        warn_of_blobs(&folder.join(BLOB_FOLDER));

        let count = stored_count(&db)?;
        let (watermark, synced) = Watermark::open(&folder.join(WATERMARK_FILE))
            .map_err(|error| failed("open the count of batches of", error))?;
        if synced > count {
            let error = lost_batches(folder, synced - count);
            if !options.accept_loss {
                return Err(error);
            }
            tracing::warn!(%error, "going on with what is left");
        }
        watermark
            .set(count)
            .and_then(|()| watermark.sync())
            .map_err(|error| failed("write the count of batches of", error))?;
        let files = Files {
            folder: folder.to_owned(),
            data,
            watermark,
        };

        let poison = Arc::new(Poison::default());
        let reads = Arc::new(Reads::default());
        let (queue, writes) = mpsc::channel(WRITE_QUEUE_BATCHES);
        let thread = {
            let (db, poison) = (db.clone(), Arc::clone(&poison));
            let reads = Arc::clone(&reads);
            std::thread::Builder::new()
                .name("sled-writer".into())
                .spawn(move || {
                    let run = || run_writer(&db, &files, count, writes, &poison, &reads);
                    panic::caught(run).unwrap_or_else(|_| Err(panicked(&files.folder)))
                })
                .map_err(|error| failed("start the writer thread of", error))?
        };
        Ok(Self {
            folder: folder.to_owned(),
            open_micros: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
            db: RwLock::new(Some(db)),
            writer: Mutex::new(Some(Writer {
                queue,
                thread,
                lock,
            })),
            poison,
            reads,
        })
    }

    /// Runs a read of at most so many rows.
    async fn read<T: Send + 'static>(
        &self,
        rows_max: usize,
        read: impl FnOnce(&Db) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let db = self
            .db
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let db = db.ok_or_else(closed)?;
        self.reads.run(rows_max, move || read(&db)).await
    }
}

#[async_trait]
impl Store for SledStore {
    fn engine(&self) -> &'static str {
        "sled"
    }

    async fn get_many(&self, keys: Vec<Vec<u8>>) -> Result<Vec<Option<Bytes>>> {
        self.read(keys.len(), move |db| {
            let get = |key: &Vec<u8>| db.get(stored_key(key)).map_err(read_failed);
            keys.iter()
                .map(|key| Ok(get(key)?.map(|value| bytes(&value))))
                .collect()
        })
        .await
    }

    async fn scan_many(&self, scans: Vec<Scan>) -> Result<Vec<Chunk>> {
        let rows_max = scans.iter().map(|scan| scan.rows_max).sum();
        let scan_all = move |db: &Db| scans.iter().map(|scan| scan_one(db, scan)).collect();
        self.read(rows_max, scan_all).await
    }

    async fn write(&self, batch: Batch, durability: Durability) -> Result<()> {
        self.poison.check()?;
        let largest = batch.changes().iter().map(value_bytes).max().unwrap_or(0);
        if largest > VALUE_BYTES_MAX {
            return Err(Error::new(
                Reason::Internal,
                format!("a row value of {largest} bytes is above the limit of {VALUE_BYTES_MAX}"),
            ));
        }
        let queue = {
            let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
            writer.as_ref().ok_or_else(closed)?.queue.clone()
        };
        let (done, result) = oneshot::channel();
        let write = Write {
            batch,
            durability,
            done,
        };
        queue.send(write).await.map_err(|_| self.writer_gone())?;
        result.await.map_err(|_| self.writer_gone())?
    }

    async fn stats(&self) -> Result<StoreStats> {
        let open_micros = self.open_micros;
        self.read(usize::MAX, move |db| {
            let disk_bytes = db.size_on_disk().map_err(read_failed)?;
            Ok(StoreStats {
                disk_bytes,
                open_micros,
            })
        })
        .await
    }

    async fn close(&self) -> Result<()> {
        let writer = self
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(Writer {
            queue,
            thread,
            lock,
        }) = writer
        else {
            return Ok(());
        };
        drop(queue);
        let db = self
            .db
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let folder = self.folder.clone();
        let closing = tokio::task::spawn_blocking(move || {
            // The thread ends when the last queue handle is gone, and its last act is a sync.
            let result = thread.join().unwrap_or_else(|_| Err(panicked(&folder)));
            // A database that cannot write any more panics when it is dropped.
            let result = result.and(panic::caught(|| drop(db)).map_err(|_| panicked(&folder)));
            wait_for_release(&folder.join(DATA_FILE));
            drop(lock);
            result
        });
        closing
            .await
            .unwrap_or_else(|_| Err(panicked(&self.folder)))
    }
}

impl SledStore {
    fn writer_gone(&self) -> Error {
        let error = panicked(&self.folder);
        self.poison.set(&error);
        self.poison.check().err().unwrap_or(error)
    }
}

fn panicked(folder: &Path) -> Error {
    Error::new(
        Reason::WritesStopped,
        format!("the writer of {} panicked", folder.display()),
    )
}

/// What is written and synced beside sled's own handles.
struct Files {
    folder: PathBuf,
    data: File,
    watermark: Watermark,
}

/// Applies batches in order until the queue closes, then syncs what is left.
fn run_writer(
    db: &Db,
    files: &Files,
    mut count: u64,
    mut writes: mpsc::Receiver<Write>,
    poison: &Poison,
    reads: &Reads,
) -> Result<()> {
    while let Some(Write {
        batch,
        durability,
        done,
    }) = writes.blocking_recv()
    {
        let bytes = batch.changes().iter().map(change_bytes).sum();
        let room = || room::check(&files.folder, &files.data, bytes);
        let result = poison.check().and_then(|()| room()).and_then(|()| {
            count += 1;
            apply(db, files, count, batch, durability, reads).inspect_err(|error| {
                tracing::error!(%error, "a write failed, the archive takes no more");
                poison.set(error);
            })
        });
        // The caller may have gone; the batch is applied all the same.
        let _ = done.send(result);
    }
    poison.check()?;
    sync(db, files, count)?;
    files.watermark.sync().map_err(write_failed)
}

fn apply(
    db: &Db,
    files: &Files,
    count: u64,
    batch: Batch,
    durability: Durability,
    reads: &Reads,
) -> Result<()> {
    let mut changes = sled::Batch::default();
    for change in batch.into_changes() {
        match change {
            Change::Put(key, value) => changes.insert(stored_key(&key), value),
            Change::Remove(key) => changes.remove(stored_key(&key)),
        }
    }
    changes.insert(&COUNT_KEY, &count.to_be_bytes());
    reads
        .applying(|| db.apply_batch(changes))
        .map_err(write_failed)?;
    match durability {
        Durability::Buffered => Ok(()),
        Durability::Synced => sync(db, files, count),
    }
}

/// Hands everything to the operating system and then to the disk, and remembers that.
fn sync(db: &Db, files: &Files, count: u64) -> Result<()> {
    db.flush().map_err(write_failed)?;
    files.data.sync_data().map_err(write_failed)?;
    if let Err(error) = files.watermark.set(count) {
        // The batch is safe; only a later loss would go unnoticed.
        tracing::warn!(%error, "cannot write the count of synced batches");
    }
    Ok(())
}

/// How many batches the database holds.
fn stored_count(db: &Db) -> Result<u64> {
    let count = db.get(COUNT_KEY).map_err(read_failed)?;
    let count = count.and_then(|count| count.as_ref().try_into().ok());
    Ok(count.map_or(0, u64::from_be_bytes))
}

fn lost_batches(folder: &Path, count: u64) -> Error {
    let folder = folder.display().to_string();
    let what = format!(
        "the archive {folder} has lost its last {count} acknowledged writes, because its files were \
         cut or damaged; restore a backup into a new folder, or go on with what is left after \
         `pressmark verify --repair --archive {folder}`"
    );
    Error::new(Reason::ArchiveDamaged, what).with_resource(folder)
}

fn scan_one(db: &Db, scan: &Scan) -> Result<Chunk> {
    if scan.range.is_empty() {
        return Ok(Chunk {
            rows: Vec::new(),
            exhausted: true,
        });
    }
    let rows = db.range(stored_key(&scan.range.start)..stored_key(&scan.range.end));
    let row = |row: sled::Result<(IVec, IVec)>| {
        let (key, value) = row.map_err(read_failed)?;
        Ok(Row {
            key: original_key(&key),
            value: bytes(&value),
        })
    };
    match scan.direction {
        Direction::Ascending => Chunk::collect(scan, rows.map(row)),
        Direction::Descending => Chunk::collect(scan, rows.rev().map(row)),
    }
}

/// The byte that never stands twice in a row in a stored key, and what is put behind it.
const STUFFED: u8 = 0xff;
const STUFFING: u8 = 0;

/// A key as sled holds it. Keeps the order of keys, whole ranges of them included.
fn stored_key(key: &[u8]) -> Vec<u8> {
    let mut stored = Vec::with_capacity(key.len() + 1);
    for byte in key {
        stored.push(*byte);
        if *byte == STUFFED {
            stored.push(STUFFING);
        }
    }
    stored
}

/// The inverse of [`stored_key`].
fn original_key(stored: &[u8]) -> Bytes {
    let mut bytes = stored.iter().copied();
    let mut key = Vec::with_capacity(stored.len());
    while let Some(byte) = bytes.next() {
        key.push(byte);
        if byte == STUFFED {
            bytes.next();
        }
    }
    key.into()
}

fn bytes(value: &IVec) -> Bytes {
    Bytes::copy_from_slice(value)
}

/// Bytes that a change brings.
fn change_bytes(change: &Change) -> usize {
    match change {
        Change::Put(key, value) => key.len() + value.len(),
        Change::Remove(key) => key.len(),
    }
}

fn value_bytes(change: &Change) -> usize {
    match change {
        Change::Put(_, value) => value.len(),
        Change::Remove(_) => 0,
    }
}

fn read_failed(error: sled::Error) -> Error {
    let reason = match &error {
        sled::Error::Io(_) | sled::Error::Unsupported(_) => Reason::StoreFailed,
        sled::Error::Corruption { .. }
        | sled::Error::ReportableBug(_)
        | sled::Error::CollectionNotFound(_) => Reason::StoreDamaged,
    };
    Error::new(reason, "sled cannot read its files").with_source(error)
}

fn write_failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(Reason::StoreFailed, "cannot write to disk").with_source(error)
}

fn open_guarded(folder: &Path, options: StoreOptions) -> Result<Db> {
    let config = sled::Config::new()
        .path(folder)
        .segment_size(SEGMENT_BYTES)
        .cache_capacity(options.cache_bytes)
        .flush_every_ms(Some(FLUSH_EVERY_MS));
    let damaged = || {
        Error::new(
            Reason::ArchiveDamaged,
            format!(
                "the files of the archive {} are damaged; keep a copy of the folder, and restore \
                 a backup into a new one",
                folder.display()
            ),
        )
        .with_resource(folder.display().to_string())
    };
    match panic::caught(|| config.open()) {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(sled::Error::Io(error))) => Err(Error::new(
            Reason::FileFailed,
            format!("cannot open the archive {}", folder.display()),
        )
        .with_source(error)),
        Ok(Err(error)) => Err(damaged().with_source(error)),
        Err(_) => Err(damaged()),
    }
}
