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
//!   tells which (see `watermark.rs`).
//! - A descending iterator looks for the leaf before the one that begins at `X c` by the key
//!   `X c-1 ff ff ff ff`, and panics if that leaf begins behind it, as times just before 1970 do.
//!   Keys are stored with a zero byte behind every `ff`, so that none has two of them in a row.
//! - A commit of a hundred articles is hundreds of rows all over its tree. And as it never syncs, it
//!   moves pages and gives their old room away before the new ones are safe, so that a power cut may take
//!   what was synced before. So a batch is durable once it is in a file of our own, from which sled is
//!   told again whatever it does not know (see `frames.rs` and `sled/recovery.rs`). Readers find it in
//!   memory (see `overlay.rs`), and sled is given thousands of articles at a time (see
//!   `sled/writer.rs`).
//! - It writes every value several times. So the longer ones stay in that file alone; only archives
//!   begun before there was it have all values in sled.
//! - Readers wait while one of its batches is applied, and `flush_async` can starve its own threads:
//!   one thread of ours inserts row by row and flushes.

mod handle;
mod recovery;
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

use self::handle::{Handle, Layout};
use self::writer::{Shared, Write};
use super::folder::{
    lock, remove_unfinished_snapshots, sync_folder, wait_for_release, warn_of_blobs,
};
use super::frames::{Frames, VALUE_BYTES_MIN};
use super::reads::Reads;
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

/// Rows since the last open from which on a close opens sled once more: only an open writes the snapshot
/// that spares the next one to read all that was written since. After an import nobody waits for it,
/// and after a start somebody does.
const REOPEN_ROWS_MIN: usize = 200_000;

const DATA_FILE: &str = "db";
/// The frames, which the values are in.
const VALUES_FILE: &str = "values";
/// The frames of an archive that has all values in sled.
const INLINE_FILE: &str = "frames";
const BLOB_FOLDER: &str = "blobs";

/// An archive in a folder.
#[derive(Debug)]
pub struct SledStore {
    folder: PathBuf,
    options: StoreOptions,
    segment_bytes: usize,
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
    thread: JoinHandle<Result<usize>>,
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
        let (frames, layout) =
            open_frames(folder).map_err(|error| failed("open the frames of", error))?;
        let segment_bytes = match layout {
            Layout::Placed => SEGMENT_BYTES,
            Layout::Inline => SEGMENT_BYTES_OF_VALUES,
        };
        let db = open_guarded(folder, options, segment_bytes)?;
        let data = OpenOptions::new()
            .write(true)
            .open(folder.join(DATA_FILE))
            .map_err(|error| failed("open the data file of", error))?;
        sync_folder(folder).map_err(|error| failed("sync", error))?;
        warn_of_blobs(&folder.join(BLOB_FOLDER));

        let handle = Handle {
            db,
            frames: Arc::new(frames),
            layout,
            overlay: Arc::default(),
        };
        let (applier, watermark) = recovery::recover(folder, handle.clone(), data, options)?;

        let poison = Arc::new(Poison::default());
        let (queue, writes) = mpsc::channel(WRITE_QUEUE_BATCHES);
        let shared = Shared::new(folder, &applier, watermark, Arc::clone(&poison))
            .map_err(|error| failed("open files of", error))?;
        let thread = std::thread::Builder::new()
            .name("sled-writer".into())
            .spawn(move || {
                let run = || writer::run(&shared, applier, writes);
                panic::caught(run).unwrap_or_else(|_| Err(panicked(shared.folder())))
            })
            .map_err(|error| failed("start the writer thread of", error))?;
        Ok(Self {
            folder: folder.to_owned(),
            options: options.clone(),
            segment_bytes,
            open_micros: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
            db: RwLock::new(Some(handle)),
            writer: Mutex::new(Some(Writer {
                queue,
                thread,
                lock,
            })),
            poison,
            reads: Arc::default(),
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
        self.read(rows_max, move |handle| handle.get_many(&keys))
            .await
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
        let (open_micros, cache_bytes) = (self.open_micros, self.options.cache_bytes);
        let (reads_fast_count, reads_slow_count) = self.reads.counts();
        self.read(usize::MAX, move |handle| {
            let mut disk_bytes = handle.db.size_on_disk().map_err(read_failed)?;
            let frames = handle.frames.file().metadata().map_err(values_failed)?;
            disk_bytes += frames.blocks() * BLOCK_BYTES;
            Ok(StoreStats {
                disk_bytes,
                open_micros,
                cache_bytes,
                reads_fast_count,
                reads_slow_count,
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
        let (options, segment_bytes) = (self.options.clone(), self.segment_bytes);
        let closing = tokio::task::spawn_blocking(move || {
            // The thread ends when the last queue handle is gone, and its last act is a sync.
            let written = thread.join().unwrap_or_else(|_| Err(panicked(&folder)));
            // A database that cannot write any more panics when it is dropped.
            let dropped = panic::caught(|| drop(handle)).map_err(|_| panicked(&folder));
            wait_for_release(&folder.join(DATA_FILE));
            if matches!((&written, &dropped), (Ok(rows), Ok(())) if *rows >= REOPEN_ROWS_MIN) {
                // What fails here fails again, and is told, when the archive is opened.
                drop(open_guarded(&folder, &options, segment_bytes));
                wait_for_release(&folder.join(DATA_FILE));
            }
            let result = written.map(drop).and(dropped);
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

/// Opens the file of frames, and tells where the archive has its values.
fn open_frames(folder: &Path) -> io::Result<(Frames, Layout)> {
    let (data, values) = (folder.join(DATA_FILE), folder.join(VALUES_FILE));
    if data.exists() && !values.exists() {
        return Ok((Frames::open(&folder.join(INLINE_FILE))?, Layout::Inline));
    }
    Ok((Frames::open(&values)?, Layout::Placed))
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
