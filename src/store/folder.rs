//! The folder of an archive: its lock, its leftovers, and what makes it durable.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;
use std::time::Duration;

use crate::error::{Error, Reason, Result};

/// Held by the process that has the archive open.
const LOCK_FILE: &str = "LOCK";

/// Checks that a folder is an archive's, empty, or not there.
pub(super) fn check_place(folder: &Path) -> Result<()> {
    let is_free = match fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    if is_free || folder.join(LOCK_FILE).exists() {
        return Ok(());
    }
    let what = format!("{} is there, and is no archive", folder.display());
    Err(Error::new(Reason::FileFailed, what).with_resource(folder.display().to_string()))
}

pub(super) fn lock(folder: &Path) -> Result<File> {
    let path = folder.join(LOCK_FILE);
    let failed = |error: io::Error| {
        Error::new(
            Reason::FileFailed,
            format!("cannot lock {}", path.display()),
        )
        .with_source(error)
    };
    let mut options = OpenOptions::new();
    let file = options
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::new(
            Reason::ArchiveLocked,
            format!(
                "the archive {} is open in another process; if that is a server, talk to it with \
                 --server, or stop it first",
                folder.display()
            ),
        )
        .with_resource(folder.display().to_string())),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// Waits until nobody holds a file: threads of the engine's own may, for a moment after its last
/// handle is gone, and would make the next open fail.
pub(super) fn wait_for_release(path: &Path) {
    const ROUNDS_MAX: u32 = 1000;
    const PAUSE: Duration = Duration::from_millis(5);
    for _ in 0..ROUNDS_MAX {
        match File::open(path).map(|data| data.try_lock()) {
            Ok(Err(TryLockError::WouldBlock)) => std::thread::sleep(PAUSE),
            _ => return,
        }
    }
    tracing::warn!(file = %path.display(), "the engine has not let go of its file");
}

/// Removes what a kill during open left of a snapshot.
pub(super) fn remove_unfinished_snapshots(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            tracing::info!(file = %entry.path().display(), "removing an unfinished snapshot");
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Makes the folder itself durable: a synced file is lost if its name is not.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        // Folders in it as well: a file of theirs is lost if its name is not durable.
        File::open(entry?.path())?.sync_all()?;
    }
    let folder = folder.canonicalize()?;
    File::open(&folder)?.sync_all()?;
    match folder.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Complains about files in a folder that should stay empty, because the engine does not sync them.
pub(super) fn warn_of_blobs(folder: &Path) {
    let blobs = fs::read_dir(folder).map_or(0, Iterator::count);
    if blobs > 0 {
        tracing::warn!(
            blobs,
            "the engine keeps values in files that it does not sync; report this"
        );
    }
}
