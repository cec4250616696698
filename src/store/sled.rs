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
//! - It writes every value several times. Values of some length go to a file of our own (see
//!   `values.rs`); only archives begun before there was that file have all values in sled.
//! - Readers wait while a batch is applied, and `flush_async` can starve its own threads: one
//!   thread of ours applies and syncs all batches.

mod handle;
mod writer;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use sled::Db;
use tokio::sync::{mpsc, oneshot};

use self::handle::Handle;
use self::writer::{Files, Progress, Write};
use super::folder::{
    lock, remove_unfinished_snapshots, sync_folder, wait_for_release, warn_of_blobs,
};
use super::reads::Reads;
use super::values::{VALUE_BYTES_MIN, Values};
use super::watermark::Watermark;
use super::{
    Batch, Change, Chunk, Durability, Poison, Scan, Store, StoreOptions, StoreStats, closed,
};
use crate::error::{Error, Reason, Result, panic};

/// The largest value.
const VALUE_BYTES_MAX: usize = 64 * 1024;

/// Fixed for the life of an archive, so that a leaf of 17 rows stays below a quarter of a segment.
const SEGMENT_BYTES: usize = 2 * 1024 * 1024;
const _: () = assert!(17 * (KEY_BYTES_MAX + VALUE_BYTES_MIN) < SEGMENT_BYTES / 4);

/// The same for archives that have all values in sled.
const SEGMENT_BYTES_OF_VALUES: usize = 8 * 1024 * 1024;
const _: () = assert!(17 * (KEY_BYTES_MAX + VALUE_BYTES_MAX) < SEGMENT_BYTES_OF_VALUES / 4);

/// No key is longer, stored.
const KEY_BYTES_MAX: usize = 4096;

/// What a block of a file's metadata counts.
const BLOCK_BYTES: u64 = 512;

/// Background writes: garbage collection depends on them, durability does not.
const FLUSH_EVERY_MS: u64 = 500;

/// Batches waiting for the writer thread. The archive sends one at a time.
const WRITE_QUEUE_BATCHES: usize = 4;

const DATA_FILE: &str = "db";
const VALUES_FILE: &str = "values";
const BLOB_FOLDER: &str = "blobs";
const WATERMARK_FILE: &str = "SYNCED";

/// An archive in a folder.
#[derive(Debug)]
pub struct SledStore {
    folder: PathBuf,
    open_micros: u64,
    /// Read for the moment of a clone only; empty after close.
    db: RwLock<Option<Handle>>,
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

impl SledStore {
    /// Opens the archive in a folder, creating it if there is none. Blocks while the log is read.
    ///
    /// # Errors
    /// `ArchiveLocked` if another process has it open; `FileFailed` if the folder cannot be
    /// written; `ArchiveDamaged` if sled cannot read its files.
    pub fn open(folder: &Path, options: &StoreOptions) -> Result<Self> {
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
        let (values, segment_bytes) =
            open_values(folder).map_err(|error| failed("open the file of values of", error))?;
        let db = open_guarded(folder, options, segment_bytes)?;
        let data = OpenOptions::new()
            .write(true)
            .open(folder.join(DATA_FILE))
            .map_err(|error| failed("open the data file of", error))?;
        sync_folder(folder).map_err(|error| failed("sync", error))?;
        warn_of_blobs(&folder.join(BLOB_FOLDER));

        let Progress { count, end } = Progress::of(&db)?;
        let (watermark, synced) = Watermark::open(&folder.join(WATERMARK_FILE))
            .map_err(|error| failed("open the count of batches of", error))?;
        if synced > count {
            let error = lost_batches(folder, synced - count);
            if !options.accept_loss {
                return Err(error);
            }
            tracing::warn!(%error, "going on with what is left");
        }
        if let Some(values) = &values {
            let bytes = values.file().metadata();
            let bytes = bytes.map_err(|error| failed("open the file of values of", error))?;
            if bytes.len() < end && !options.accept_loss {
                return Err(lost_values(folder, end - bytes.len()));
            }
            values
                .cut(end)
                .map_err(|error| failed("clean up the file of values of", error))?;
        }
        watermark
            .set(count)
            .and_then(|()| watermark.sync())
            .map_err(|error| failed("write the count of batches of", error))?;
        let files = Files {
            folder: folder.to_owned(),
            data,
            values: values.clone(),
            watermark,
        };
        let progress = Progress { count, end };
        let handle = Handle { db, values };

        let poison = Arc::new(Poison::default());
        let reads = Arc::new(Reads::default());
        let (queue, writes) = mpsc::channel(WRITE_QUEUE_BATCHES);
        let thread = {
            let (handle, poison) = (handle.clone(), Arc::clone(&poison));
            let reads = Arc::clone(&reads);
            std::thread::Builder::new()
                .name("sled-writer".into())
                .spawn(move || {
                    let run = || writer::run(&handle, &files, progress, writes, &poison, &reads);
                    panic::caught(run).unwrap_or_else(|_| Err(panicked(&files.folder)))
                })
                .map_err(|error| failed("start the writer thread of", error))?
        };
        Ok(Self {
            folder: folder.to_owned(),
            open_micros: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
            db: RwLock::new(Some(handle)),
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
        read: impl FnOnce(&Handle) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let handle = self
            .db
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let handle = handle.ok_or_else(closed)?;
        self.reads.run(rows_max, move || read(&handle)).await
    }
}

#[async_trait]
impl Store for SledStore {
    fn engine(&self) -> &'static str {
        "sled"
    }

    async fn get_many(&self, keys: Vec<Vec<u8>>) -> Result<Vec<Option<Bytes>>> {
        let rows_max = keys.len();
        let get_all = move |handle: &Handle| keys.iter().map(|key| handle.get(key)).collect();
        self.read(rows_max, get_all).await
    }

    async fn scan_many(&self, scans: Vec<Scan>) -> Result<Vec<Chunk>> {
        let rows_max = scans.iter().map(|scan| scan.rows_max).sum();
        let scan_all = move |handle: &Handle| scans.iter().map(|scan| handle.scan(scan)).collect();
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
        self.read(usize::MAX, move |handle| {
            let mut disk_bytes = handle.db.size_on_disk().map_err(read_failed)?;
            if let Some(values) = &handle.values {
                let values = values.file().metadata().map_err(values_failed)?;
                disk_bytes += values.blocks() * BLOCK_BYTES;
            }
            Ok(StoreStats {
                disk_bytes,
                open_micros,
                requests: None,
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
        let handle = self
            .db
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let folder = self.folder.clone();
        let closing = tokio::task::spawn_blocking(move || {
            // The thread ends when the last queue handle is gone, and its last act is a sync.
            let result = thread.join().unwrap_or_else(|_| Err(panicked(&folder)));
            // A database that cannot write any more panics when it is dropped.
            let result = result.and(panic::caught(|| drop(handle)).map_err(|_| panicked(&folder)));
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

fn lost_batches(folder: &Path, count: u64) -> Error {
    let folder = folder.display().to_string();
    let what = format!(
        "the archive {folder} has lost its last {count} acknowledged writes, because its files were \
         cut or damaged; restore a backup into a new folder, or go on with what is left after \
         `pressmark verify --repair --accept-loss --archive {folder}`"
    );
    Error::new(Reason::ArchiveDamaged, what).with_resource(folder)
}

fn lost_values(folder: &Path, bytes: u64) -> Error {
    let folder = folder.display().to_string();
    let what = format!(
        "the archive {folder} has lost the last {bytes} bytes of its values, because its file was \
         cut; restore a backup into a new folder, or go on with what is left after `pressmark \
         verify --repair --accept-loss --archive {folder}`"
    );
    Error::new(Reason::ArchiveDamaged, what).with_resource(folder)
}

/// Opens the file of values, unless the archive has them all in sled, and tells the size of sled's
/// segments.
fn open_values(folder: &Path) -> io::Result<(Option<Arc<Values>>, usize)> {
    let path = folder.join(VALUES_FILE);
    if folder.join(DATA_FILE).exists() && !path.exists() {
        return Ok((None, SEGMENT_BYTES_OF_VALUES));
    }
    Ok((Some(Arc::new(Values::open(&path)?)), SEGMENT_BYTES))
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

fn values_failed(error: io::Error) -> Error {
    let is_cut = error.kind() == io::ErrorKind::UnexpectedEof;
    let reason = if is_cut {
        Reason::StoreDamaged
    } else {
        Reason::StoreFailed
    };
    Error::new(reason, "cannot read the file of values").with_source(error)
}

fn write_failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    let any: &dyn std::error::Error = &error;
    let kind = match (any.downcast_ref(), any.downcast_ref()) {
        (Some(sled::Error::Io(error)), _) | (_, Some(error)) => Some(io::Error::kind(error)),
        (Some(_) | None, None) => None,
    };
    let full = [
        io::ErrorKind::StorageFull,
        io::ErrorKind::QuotaExceeded,
        io::ErrorKind::FileTooLarge,
    ];
    let what = if kind.is_some_and(|kind| full.contains(&kind)) {
        "the disk became full during a write; make room and start the server again"
    } else {
        "cannot write to disk"
    };
    Error::new(Reason::StoreFailed, what).with_source(error)
}

fn open_guarded(folder: &Path, options: &StoreOptions, segment_bytes: usize) -> Result<Db> {
    let config = sled::Config::new()
        .path(folder)
        .segment_size(segment_bytes)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_becomes_full_is_told_from_a_bad_one() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        for error in [write_failed(full()), write_failed(sled::Error::Io(full()))] {
            assert!(error.message().contains("make room"), "{error}");
        }
        let other = io::Error::from(io::ErrorKind::Other);
        let errors = [
            write_failed(other),
            write_failed(sled::Error::Unsupported("no".into())),
        ];
        for error in errors {
            assert_eq!(error.message(), "cannot write to disk");
        }
    }
}
