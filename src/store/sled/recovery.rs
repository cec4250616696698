//! What is done before an archive is read: sled is given the batches that the frames have and it has not,
//! because of a crash or because it forgot them, and it is looked whether any are missing.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::super::StoreOptions;
use super::super::folder::sync_folder;
use super::super::overlay::Layer;
use super::super::watermark::Watermark;
use super::handle::{Handle, Layout};
use super::writer::{Applier, LAYER_BYTES, Progress};
use crate::error::{Error, Reason, Result};

const WATERMARK_FILE: &str = "SYNCED";

/// Brings sled to where the frames are.
///
/// # Errors
/// `ArchiveDamaged` if acknowledged batches are missing; `FileFailed`.
pub(super) fn recover(
    folder: &Path,
    handle: Handle,
    data: File,
    options: &StoreOptions,
) -> Result<(Applier, Watermark)> {
    let failed = |error: io::Error| {
        let what = format!("cannot read or write the files of {}", folder.display());
        Error::new(Reason::FileFailed, what).with_source(error)
    };
    let watermark = Watermark::open(&folder.join(WATERMARK_FILE));
    let (watermark, synced) = watermark.map_err(failed)?;
    sync_folder(folder).map_err(failed)?;

    let mut applier = Applier {
        progress: Progress::of(&handle.db)?,
        handle,
        data,
        row_count: 0,
    };
    let frames = Arc::clone(&applier.handle.frames);
    let (bytes, begun) = (frames.bytes().map_err(failed)?, applier.progress);
    if bytes < begun.end {
        accept(options, lost_values(folder, begun.end - bytes))?;
    }
    let mut layer = Layer::default();
    let mut read = begun;
    loop {
        let is_synced = read.count < synced;
        let frame = frames.frame(read.end, read.count + 1, is_synced);
        let frame = frame.map_err(failed)?;
        if let Some(frame) = &frame {
            read = Progress {
                count: frame.number,
                end: frame.end,
            };
        }
        let is_last = frame.is_none();
        if let Some(frame) = frame {
            layer.add(frame);
        }
        if (is_last && layer.batch_count() > 0) || layer.bytes() >= LAYER_BYTES {
            applier.apply(&std::mem::take(&mut layer))?;
        }
        if is_last {
            break;
        }
    }
    if read.count > begun.count {
        let batches = read.count - begun.count;
        tracing::info!(
            batches,
            "brought into sled what a crash had left in the frames"
        );
    }
    if synced > read.count {
        accept(options, lost_batches(folder, synced - read.count))?;
        // What follows the damage may be read by its places, so it stays, and the next frame is
        // behind it.
        read.end = read.end.max(frames.bytes().map_err(failed)?);
        applier.note(read)?;
    } else {
        frames.cut(read.end).map_err(failed)?;
    }
    if applier.handle.layout == Layout::Inline {
        // sled has all values, so the frames start anew; in this order, as a kill may come between.
        let end = 0;
        applier.note(Progress { end, ..read })?;
        frames.cut(end).map_err(failed)?;
    }
    watermark.set(read.count).map_err(failed)?;
    watermark.sync().map_err(failed)?;
    Ok((applier, watermark))
}

/// Goes on in spite of a loss if that was asked for.
fn accept(options: &StoreOptions, loss: Error) -> Result<()> {
    if !options.accept_loss {
        return Err(loss);
    }
    tracing::warn!(error = %loss, "going on with what is left");
    Ok(())
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
