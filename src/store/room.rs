//! The room that a disk has left, so that an engine is not given what it could not write: sled takes
//! no reads either after a write of its own has failed.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::process::{Resource, getrlimit};

use crate::error::{Error, Reason, Result};

/// Bytes that stay free for what an engine writes by itself: the segments that it is filling, and
/// those that it clears up.
const RESERVE_BYTES: u64 = 32 * 1024 * 1024;

/// What a batch may take, as a multiple of its own bytes: pages are written as a whole.
const BATCH_FACTOR: u64 = 4;

/// Fails if there is not enough room for a batch.
pub(super) fn check(folder: &Path, data: &File, batch_bytes: usize) -> Result<()> {
    let batch_bytes = u64::try_from(batch_bytes).unwrap_or(u64::MAX);
    let needed = batch_bytes
        .saturating_mul(BATCH_FACTOR)
        .saturating_add(RESERVE_BYTES);
    let free = free_bytes(folder, data).map_err(|error| {
        let what = format!("cannot tell how much room {} has", folder.display());
        Error::new(Reason::StoreFailed, what).with_source(error)
    })?;
    if free >= needed {
        return Ok(());
    }
    let folder = folder.display().to_string();
    let what = format!(
        "the disk of {folder} has {free} bytes left, and a write needs {needed} with its reserve; \
         make room, nothing has to be restarted"
    );
    Err(Error::new(Reason::DiskFull, what).with_resource(folder))
}

/// Bytes by which a file in a folder can grow.
fn free_bytes(folder: &Path, data: &File) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(folder)?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    Ok(match getrlimit(Resource::Fsize).current {
        Some(limit) => free.min(limit.saturating_sub(data.metadata()?.len())),
        None => free,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_beyond_every_disk_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let data = File::create(folder.path().join("db")).unwrap();
        check(folder.path(), &data, 0).unwrap();
        let error = check(folder.path(), &data, usize::MAX).unwrap_err();
        assert_eq!(error.reason(), Reason::DiskFull);
        let path = folder.path().to_str().unwrap();
        assert!(error.message().contains(path), "{error}");
    }
}
