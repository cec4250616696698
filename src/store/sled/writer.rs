//! The one thread that applies batches to sled and syncs them.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use sled::Db;
use tokio::sync::{mpsc, oneshot};

use super::super::order::stored_key;
use super::super::reads::Reads;
use super::super::values::{Batched, Values};
use super::super::watermark::Watermark;
use super::super::{Batch, Change, Durability, Poison, room};
use super::handle::Handle;
use super::{read_failed, write_failed};
use crate::error::Result;

/// The key of the writer's progress. No row has it, nor does any scan come by: a stored key has a
/// zero behind every `ff`.
const PROGRESS_KEY: [u8; 2] = [0xff, 1];

/// A batch, and who waits for it.
pub(super) struct Write {
    pub(super) batch: Batch,
    pub(super) durability: Durability,
    pub(super) done: oneshot::Sender<Result<()>>,
}

/// What is written and synced beside sled's own handles.
pub(super) struct Files {
    pub(super) folder: PathBuf,
    pub(super) data: File,
    pub(super) values: Option<Arc<Values>>,
    pub(super) watermark: Watermark,
}

impl Files {
    /// Fails if there is not enough room for a batch.
    fn check_room(&self, batch_bytes: usize) -> Result<()> {
        let values = self.values.iter().map(|values| values.file());
        for file in std::iter::once(&self.data).chain(values) {
            room::check(&self.folder, file, batch_bytes)?;
        }
        Ok(())
    }
}

/// How far the writer is, which is in every batch.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// Batches that were applied.
    pub(super) count: u64,
    /// The end of the file of values.
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

/// Applies batches in order until the queue closes, then syncs what is left.
pub(super) fn run(
    handle: &Handle,
    files: &Files,
    mut progress: Progress,
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
        let room = || files.check_room(bytes);
        let result = poison.check().and_then(|()| room()).and_then(|()| {
            apply(handle, files, &mut progress, batch, durability, reads).inspect_err(|error| {
                tracing::error!(%error, "a write failed, the archive takes no more");
                poison.set(error);
            })
        });
        // The caller may have gone; the batch is applied all the same.
        let _ = done.send(result);
    }
    poison.check()?;
    sync(&handle.db, files, progress)?;
    files.watermark.sync().map_err(write_failed)
}

fn apply(
    handle: &Handle,
    files: &Files,
    progress: &mut Progress,
    batch: Batch,
    durability: Durability,
    reads: &Reads,
) -> Result<()> {
    let replaced = handle.replaced(&batch)?;
    let mut batched = Batched::new(progress.end);
    let mut changes = sled::Batch::default();
    for change in batch.into_changes() {
        match change {
            Change::Put(key, value) if handle.values.is_none() => {
                changes.insert(stored_key(&key), value);
            }
            Change::Put(key, value) => changes.insert(stored_key(&key), batched.add(&value)),
            Change::Remove(key) => changes.remove(stored_key(&key)),
        }
    }
    *progress = Progress {
        count: progress.count + 1,
        end: batched.end(),
    };
    changes.insert(&PROGRESS_KEY, progress.encode());
    if let Some(values) = &handle.values {
        values.write(&batched).map_err(write_failed)?;
    }
    let applied = reads.applying(|| handle.db.apply_batch(changes));
    applied.map_err(write_failed)?;
    if durability == Durability::Synced || !replaced.is_empty() {
        sync(&handle.db, files, *progress)?;
    }
    if let Some(values) = &handle.values {
        values.erase(&replaced).map_err(write_failed)?;
    }
    Ok(())
}

/// Hands everything to the operating system and then to the disk, and remembers that.
fn sync(db: &Db, files: &Files, progress: Progress) -> Result<()> {
    db.flush().map_err(write_failed)?;
    files.data.sync_data().map_err(write_failed)?;
    if let Err(error) = files.watermark.set(progress.count) {
        // The batch is safe; only a later loss would go unnoticed.
        tracing::warn!(%error, "cannot write the count of synced batches");
    }
    Ok(())
}

/// Bytes that a change brings.
fn change_bytes(change: &Change) -> usize {
    match change {
        Change::Put(key, value) => key.len() + value.len(),
        Change::Remove(key) => key.len(),
    }
}
