//! The two threads that write. One makes batches durable in frames and shows them to readers; the other
//! brings them into sled behind it, thousands at a time and in the order of their keys, which costs
//! sled a third less of work and disk than batch by batch.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

use sled::Db;
use tokio::sync::{mpsc, oneshot};

use super::super::frames::{Frames, Held, Placed};
use super::super::order::stored_key;
use super::super::overlay::{Layer, Overlay};
use super::super::watermark::Watermark;
use super::super::{Batch, Change, Durability, Poison, room};
use super::handle::{Handle, Layout};
use super::{panicked, read_failed, write_failed};
use crate::error::{Error, Result, panic};

/// The key of the writer's progress. No row has it, nor does any scan come by: a stored key has a
/// zero behind every `ff`.
const PROGRESS_KEY: [u8; 2] = [0xff, 1];

/// Memory of a layer from which on it is brought into sled at once.
pub(super) const LAYER_BYTES: usize = 16 * 1024 * 1024;

/// Memory of the newest layer at which commits wait for the older one.
const LAYER_BYTES_MAX: usize = 2 * LAYER_BYTES;

/// How long a row stays out of sled while not much is written. What is not in sled has to be read from
/// the frames after a crash.
const LAYER_AGE: Duration = Duration::from_secs(1);

/// A batch, and who waits for it.
pub(super) struct Write {
    pub(super) batch: Batch,
    pub(super) durability: Durability,
    pub(super) done: oneshot::Sender<Result<()>>,
}

/// How far sled is, which stands behind the rows of each layer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// Batches that were applied.
    pub(super) count: u64,
    /// Where the frame of the next batch begins.
    pub(super) end: u64,
}

impl Progress {
    pub(super) fn of(db: &Db) -> Result<Self> {
        let held = db.get(PROGRESS_KEY).map_err(read_failed)?;
        let mut numbers = held.iter().flat_map(|held| held.chunks(8)).map(|number| {
            let number = number.try_into().map(u64::from_be_bytes);
            number.unwrap_or_default()
        });
        Ok(Self {
            count: numbers.next().unwrap_or_default(),
            end: numbers.next().unwrap_or_default(),
        })
    }

    fn encode(self) -> Vec<u8> {
        [self.count.to_be_bytes(), self.end.to_be_bytes()].concat()
    }
}

/// Brings layers into sled.
pub(super) struct Applier {
    pub(super) handle: Handle,
    /// A handle of our own for sled's file, because sled's flush syncs nothing.
    pub(super) data: File,
    pub(super) progress: Progress,
    /// Rows that sled was given since it was opened.
    pub(super) row_count: usize,
}

impl Applier {
    /// Erases what a layer replaces and brings it into sled, durably. Until it has returned, readers
    /// need the layer; if it fails or the power does, the same layer can be applied again.
    pub(super) fn apply(&mut self, layer: &Layer) -> Result<()> {
        let handle = &self.handle;
        // Before a crash sled may have been given this layer, and later ones, already. What it holds
        // of those is not replaced by this one.
        let begin = self.progress.end;
        let mut replaced = handle.places(layer.replacing())?;
        replaced.retain(|place| place.is_before(begin));
        replaced.extend_from_slice(layer.replaced());
        // First, because sled is asked for it: after a crash it may not know any more what to erase.
        handle.frames.erase(&replaced).map_err(write_failed)?;
        for (key, row) in layer.rows() {
            let key = stored_key(key);
            // Row by row: a batch of sled's would make its readers wait.
            match row {
                Some(placed) => handle.db.insert(key, held(handle.layout, placed)),
                None => handle.db.remove(key),
            }
            .map_err(write_failed)?;
        }
        self.row_count += layer.rows().len();
        let count = self.progress.count + layer.batch_count();
        let end = layer.end();
        self.note(Progress { count, end })
    }

    /// Makes everything durable that sled has, and that it is so far.
    pub(super) fn note(&mut self, progress: Progress) -> Result<()> {
        let db = &self.handle.db;
        // sled's log is read back in its order, so that whoever finds this finds the rows as well.
        db.insert(PROGRESS_KEY, progress.encode())
            .map_err(write_failed)?;
        db.flush().map_err(write_failed)?;
        self.data.sync_data().map_err(write_failed)?;
        self.progress = progress;
        Ok(())
    }
}

/// What sled is to hold of a value.
fn held(layout: Layout, placed: &Placed) -> Vec<u8> {
    match (layout, placed.place) {
        (Layout::Inline, _) => placed.value.to_vec(),
        (Layout::Placed, None) => Held::Short(&placed.value).encode(),
        (Layout::Placed, Some(place)) => Held::Elsewhere(place).encode(),
    }
}

/// What both threads share.
pub(super) struct Shared {
    folder: PathBuf,
    frames: Arc<Frames>,
    /// sled's file, to be asked for its size.
    data: File,
    watermark: Watermark,
    overlay: Arc<Overlay>,
    poison: Arc<Poison>,
    state: Mutex<State>,
    changed: Condvar,
}

/// Held while a batch is appended and synced, and when a layer is taken for sled.
struct State {
    /// Batches that are in frames, and where those end.
    written: Progress,
    /// Whether any of them may not be durable.
    is_dirty: bool,
    /// Batches that are in sled.
    applied: u64,
    /// When the first batch of the newest layer came.
    since: Option<Instant>,
    /// Whether somebody waits for sled to have everything.
    is_urgent: bool,
    is_closing: bool,
    /// Why nothing more is brought into sled.
    failure: Option<Error>,
}

impl Shared {
    /// # Errors
    /// If the process may open no more files.
    pub(super) fn new(
        folder: &Path,
        applier: &Applier,
        watermark: Watermark,
        poison: Arc<Poison>,
    ) -> io::Result<Self> {
        let written = applier.progress;
        Ok(Self {
            folder: folder.to_owned(),
            frames: Arc::clone(&applier.handle.frames),
            data: applier.data.try_clone()?,
            watermark,
            overlay: Arc::clone(&applier.handle.overlay),
            poison,
            state: Mutex::new(State {
                written,
                is_dirty: false,
                applied: written.count,
                since: None,
                is_urgent: false,
                is_closing: false,
                failure: None,
            }),
            changed: Condvar::new(),
        })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, timeout: Duration) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_timeout(state, timeout);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Makes a batch durable and visible, in this order.
    fn commit(&self, batch: Batch, durability: Durability) -> Result<()> {
        let bytes = batch.changes().iter().map(Change::bytes).sum();
        self.check_room(bytes)?;
        let removes = batch.changes().iter().any(Change::is_removal);
        let mut state = self.state();
        while self.overlay.newest_bytes() >= LAYER_BYTES_MAX {
            state.check()?;
            state = self.wait(state, LAYER_AGE);
        }
        state.check()?;
        let Progress { count, end } = state.written;
        let frame = self.frames.append(end, count + 1, batch);
        let frame = frame.map_err(write_failed)?;
        state.written = Progress {
            count: frame.number,
            end: frame.end,
        };
        state.is_dirty = true;
        if durability == Durability::Synced {
            self.sync(&mut state)?;
        }
        state.since.get_or_insert_with(Instant::now);
        if self.overlay.add(frame) >= LAYER_BYTES {
            self.changed.notify_all();
        }
        drop(state);
        if removes {
            // What was removed has to be gone from the disk before that is acknowledged.
            self.drain()?;
        }
        Ok(())
    }

    /// Makes all frames durable.
    fn sync(&self, state: &mut State) -> Result<()> {
        if !state.is_dirty {
            return Ok(());
        }
        self.frames.sync().map_err(write_failed)?;
        state.is_dirty = false;
        if let Err(error) = self.watermark.set(state.written.count) {
            // The batch is safe; only a later loss would go unnoticed.
            tracing::warn!(%error, "cannot write the count of synced batches");
        }
        Ok(())
    }

    /// Fails if there is not enough room for a batch, and for what is still to be brought into sled.
    fn check_room(&self, batch_bytes: usize) -> Result<()> {
        let check = |bytes| {
            let mut files = [&self.data, self.frames.file()].into_iter();
            files.try_for_each(|file| room::check(&self.folder, file, bytes))
        };
        if check(batch_bytes + self.overlay.bytes()).is_ok() {
            return Ok(());
        }
        self.drain()?;
        check(batch_bytes)
    }

    /// Waits until sled has everything.
    fn drain(&self) -> Result<()> {
        let mut state = self.state();
        let count = state.written.count;
        while state.applied < count {
            state.check()?;
            state.is_urgent = true;
            self.changed.notify_all();
            state = self.wait(state, LAYER_AGE);
        }
        Ok(())
    }

    /// Takes the next layer for sled once there is enough in it, or it has waited long enough. None at
    /// the end.
    fn next_layer(&self) -> Result<Option<Arc<Layer>>> {
        let mut state = self.state();
        loop {
            let waited = state.since.map(|since| since.elapsed());
            let is_due = state.is_urgent
                || state.is_closing
                || waited.is_some_and(|waited| waited >= LAYER_AGE)
                || self.overlay.newest_bytes() >= LAYER_BYTES;
            if is_due {
                state.is_urgent = false;
                if let Some(layer) = self.overlay.turn() {
                    state.since = None;
                    self.changed.notify_all();
                    // sled must not know of more than the frames do. Values may be erased with this
                    // layer, and the frames that have them must be known to be no torn ones.
                    self.sync(&mut state)?;
                    self.watermark.sync().map_err(write_failed)?;
                    return Ok(Some(layer));
                }
            }
            if state.is_closing {
                return Ok(None);
            }
            let timeout = LAYER_AGE.saturating_sub(waited.unwrap_or_default());
            state = self.wait(state, timeout);
        }
    }

    /// Lets go of a layer that is in sled.
    fn applied(&self, layer: &Layer) {
        let mut state = self.state();
        self.overlay.forget_older();
        state.applied += layer.batch_count();
        self.changed.notify_all();
    }

    /// Brings layers into sled until the end.
    fn apply_all(&self, applier: &mut Applier) -> Result<()> {
        while let Some(layer) = self.next_layer()? {
            self.overlay.wait_for_readers();
            applier.apply(&layer)?;
            self.applied(&layer);
        }
        Ok(())
    }

    /// The same; a failure stops all writes.
    fn run_applier(&self, applier: &mut Applier) -> Result<()> {
        let result = panic::caught(|| self.apply_all(applier));
        let result = result.unwrap_or_else(|_| Err(panicked(&self.folder)));
        result.inspect_err(|error| {
            tracing::error!(%error, "a write of sled failed, the archive takes no more");
            self.poison.set(error);
            self.state().failure = Some(error.clone());
            self.changed.notify_all();
        })
    }
}

impl State {
    /// Fails if nothing is brought into sled any more.
    fn check(&self) -> Result<()> {
        self.failure.clone().map_or(Ok(()), Err)
    }
}

/// Commits batches in order until the queue closes, then sees that sled has them all. Returns how many
/// rows sled was given.
pub(super) fn run(
    shared: &Shared,
    mut applier: Applier,
    mut writes: mpsc::Receiver<Write>,
) -> Result<usize> {
    std::thread::scope(|scope| -> Result<()> {
        let applying = Builder::new()
            .name("sled-applier".into())
            .spawn_scoped(scope, || shared.run_applier(&mut applier))
            .map_err(write_failed)?;
        while let Some(write) = writes.blocking_recv() {
            let commit = || shared.commit(write.batch, write.durability);
            let result = shared.poison.check().and_then(|()| {
                panic::caught(commit).unwrap_or_else(|_| Err(panicked(&shared.folder)))
            });
            let result = result.inspect_err(|error| {
                tracing::error!(%error, "a write failed");
                shared.poison.set(error);
            });
            // The caller may have gone; the batch is written all the same.
            let _ = write.done.send(result);
        }
        shared.state().is_closing = true;
        shared.changed.notify_all();
        let result = applying.join();
        result.unwrap_or_else(|_| Err(panicked(&shared.folder)))?;
        shared.poison.check()
    })?;
    Ok(applier.row_count)
}
