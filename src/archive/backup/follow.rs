//! A backup that follows the log into a folder, so that a disk that dies costs seconds.
//!
//! The folder holds segments, each of them a backup of its own that goes on where the one before it
//! ends, named by their first sequences. The one that is being written ends in `.part`; it gets its
//! trailer and its name when it is full or the follower stops. What a crash leaves of it is cut to
//! its last whole frame, and written on.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::LogReader;
use super::decode::Decoder;
use super::format::Encoder;
use super::restore::is_empty;
use crate::archive::Archive;
use crate::article::ContentHash;
use crate::error::{Error, Reason, Result};
use crate::key::Sequence;
use crate::record::UNKNOWN_ID;

/// The endings of finished segments and of the one that is written.
pub(super) const SEGMENT_ENDING: &str = "pmb";
pub(super) const PART_ENDING: &str = "part";

/// Bytes after which a segment is finished.
const SEGMENT_BYTES: u64 = 256 * 1024 * 1024;

/// How long records gather before they are written, which keeps frames from being tiny.
const GATHER: Duration = Duration::from_secs(1);

/// How long to wait after a failure.
const RETRY: Duration = Duration::from_secs(5);

/// How far a followed backup is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupStatus {
    /// The last sequence that is on the backup's disk.
    pub sequence: Sequence,
    /// How long records have been waiting to get there.
    pub behind: Duration,
    /// Why it does not go on, if it does not.
    pub error: Option<String>,
}

#[derive(Debug)]
struct State {
    sequence: Sequence,
    behind_since: Option<Instant>,
    error: Option<String>,
}

/// What the archive knows of its follower.
#[derive(Clone, Debug)]
pub(in crate::archive) struct FollowState(Arc<Mutex<State>>);

impl FollowState {
    fn edit(&self, edit: impl FnOnce(&mut State)) {
        edit(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(in crate::archive) fn status(&self) -> BackupStatus {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        BackupStatus {
            sequence: state.sequence,
            behind: state
                .behind_since
                .map_or(Duration::ZERO, |since| since.elapsed()),
            error: state.error.clone(),
        }
    }
}

/// Keeps a backup following an archive.
#[derive(Debug)]
pub struct Follower {
    archive: Archive,
    folder: PathBuf,
    state: FollowState,
    /// The segment being written, if one is.
    segment: Option<Segment>,
    /// The next sequence to write; none if the folder has to be looked at first.
    next: Option<Sequence>,
    /// The unfinished segment, and how much of it was synced.
    synced: Option<(PathBuf, u64)>,
}

/// A segment that is being written.
#[derive(Debug)]
struct Segment {
    file: File,
    path: PathBuf,
    encoder: Encoder,
}

/// What a folder holds.
struct Found {
    /// The unfinished segment at its end, and what goes on with it unless it has its trailer.
    part: Option<(PathBuf, Option<Encoder>)>,
    last: Sequence,
    last_id: ContentHash,
    archive_id: Option<super::ArchiveId>,
}

impl Found {
    /// Makes the unfinished segment one that can be written on.
    fn take_up(self) -> Result<Option<Segment>> {
        let Some((path, encoder)) = self.part else {
            return Ok(None);
        };
        let Some(encoder) = encoder else {
            return name_finished(&path).map(|()| None);
        };
        let file = OpenOptions::new().write(true).open(&path);
        let mut file = file.map_err(|error| failed("open", &path, error))?;
        let cut = file
            .set_len(encoder.bytes())
            .and_then(|()| io::Seek::seek(&mut file, io::SeekFrom::End(0)))
            .and_then(|_| file.sync_data());
        cut.map_err(|error| failed("cut", &path, error))?;
        Ok(Some(Segment {
            file,
            path,
            encoder,
        }))
    }
}

impl Follower {
    /// Begins to follow an archive into a folder, behind what the folder has already.
    ///
    /// # Errors
    /// `BackupMismatch` if the folder holds a backup of another archive, or one that goes beyond
    /// this one; `BackupDamaged`; `FileFailed`.
    pub async fn open(archive: &Archive, folder: &Path) -> Result<Self> {
        let state = FollowState(Arc::new(Mutex::new(State {
            sequence: 0,
            behind_since: None,
            error: None,
        })));
        let mut follower = Self {
            archive: archive.clone(),
            folder: folder.to_owned(),
            state: state.clone(),
            segment: None,
            next: None,
            synced: None,
        };
        match follower.look().await {
            // An archive is not kept from serving by damage to its backup, which is told and looked
            // at again.
            Err(error) if error.reason() == Reason::BackupDamaged => follower.note(&Err(error)),
            looked => drop(looked?),
        }
        // A second follower of one archive would be a mistake of the program; the first is told of.
        let _ = archive.inner.follower.set(state);
        Ok(follower)
    }

    /// Follows until `stop`, then writes what is left and finishes the segment.
    ///
    /// # Errors
    /// Those of writing what is left; until then, failures are logged and tried again.
    pub async fn run(mut self, stop: CancellationToken) -> Result<()> {
        let mut committed = self.archive.inner.committed.clone();
        loop {
            let next = self.next.unwrap_or(1);
            let is_behind = *committed.borrow_and_update() >= next;
            self.state.edit(|state| {
                state.behind_since =
                    is_behind.then(|| state.behind_since.unwrap_or_else(Instant::now));
            });
            if is_behind {
                tokio::select! {
                    () = tokio::time::sleep(GATHER) => {}
                    () = stop.cancelled() => break,
                }
            } else {
                tokio::select! {
                    changed = committed.changed() => if changed.is_err() { break },
                    () = stop.cancelled() => break,
                }
                continue;
            }
            let started = Instant::now();
            let result = self.append().await;
            if result.is_ok() {
                // What was there when it began is written; what came since waits since then.
                self.state.edit(|state| state.behind_since = Some(started));
            }
            self.note(&result);
            if result.is_err() {
                tokio::select! {
                    () = tokio::time::sleep(RETRY) => {}
                    () = stop.cancelled() => break,
                }
            }
        }
        self.append().await?;
        self.finish_segment().await
    }

    /// Logs a failure once, and that it is over.
    fn note(&mut self, result: &Result<()>) {
        let folder = self.folder.display();
        let error = result.as_ref().err().map(Error::to_string);
        self.state.edit(|state| {
            match (&state.error, &error) {
                (None, Some(error)) => {
                    tracing::error!(%folder, error, "the backup does not follow, it is tried again");
                }
                (Some(_), None) => tracing::info!(%folder, "the backup follows again"),
                _ => {}
            }
            state.error = error;
        });
        if result.is_err() {
            // What is in the segment now is not known; the folder is looked at again.
            self.segment = None;
            self.next = None;
        }
    }

    /// Finds out what the folder holds, and whether it fits the archive.
    async fn look(&mut self) -> Result<Sequence> {
        if let Some(next) = self.next {
            return Ok(next);
        }
        let (folder, synced) = (self.folder.clone(), self.synced.clone());
        let found = blocking(move || {
            if let Some((path, bytes)) = synced {
                cut_unsynced(&path, bytes)?;
            }
            look_into(&folder)
        })
        .await?;
        let mismatch = |what: String| {
            let what = format!("the backup in {} {what}", self.folder.display());
            Error::new(Reason::BackupMismatch, what)
                .with_advice("name an empty folder to begin another one")
        };
        let committed = self.archive.committed();
        if let Some(archive_id) = found.archive_id {
            if archive_id != self.archive.archive_id().await? {
                return Err(mismatch("is of another archive".into()));
            }
            if found.last > committed {
                let what = format!(
                    "goes on to sequence {}, the archive ends at {committed}",
                    found.last
                );
                return Err(mismatch(what));
            }
            let id = self.archive.id_at(found.last).await?;
            if id != found.last_id && id != UNKNOWN_ID {
                let what = format!(
                    "has article {} at sequence {}, the archive has {id}",
                    found.last_id, found.last
                );
                return Err(mismatch(what));
            }
        }
        // It is this archive's, so that it may be changed now.
        let last = found.last;
        self.segment = blocking(move || found.take_up()).await?;
        let segment = self.segment.as_ref();
        self.synced = segment.map(|segment| (segment.path.clone(), segment.encoder.bytes()));
        self.next = Some(last + 1);
        self.state.edit(|state| state.sequence = last);
        Ok(last + 1)
    }

    /// Writes everything that is new, and syncs it.
    async fn append(&mut self) -> Result<()> {
        let next = self.look().await?;
        let mut log = LogReader {
            archive: self.archive.clone(),
            next,
            last: self.archive.committed(),
        };
        while let Some(entries) = log.next().await? {
            let segment = if let Some(segment) = self.segment.take() {
                segment
            } else {
                let first = log.next - u64::try_from(entries.len()).unwrap_or(0);
                self.synced = Some((self.part(first), 0));
                self.begin_segment(first).await?
            };
            let Segment {
                mut file,
                path,
                mut encoder,
            } = segment;
            let mut bytes = encoder.add_all(&entries)?;
            // Frames end with what is new, so that it is whole when it is synced.
            let is_full = encoder.bytes() >= SEGMENT_BYTES;
            let is_end = is_full || log.next > log.last;
            if is_end {
                bytes.extend(encoder.flush()?.unwrap_or_default());
            }
            let place = path.clone();
            let file = blocking(move || {
                let failed = |error| failed("write", &place, error);
                file.write_all(&bytes).map_err(failed)?;
                if is_end {
                    file.sync_data().map_err(failed)?;
                }
                Ok(file)
            })
            .await?;
            if is_end {
                self.synced = Some((path.clone(), encoder.bytes()));
                self.next = Some(log.next);
                self.state.edit(|state| state.sequence = log.next - 1);
            }
            self.segment = Some(Segment {
                file,
                path,
                encoder,
            });
            if is_full {
                self.finish_segment().await?;
            }
        }
        Ok(())
    }

    /// The file of the segment that begins at a sequence.
    fn part(&self, first: Sequence) -> PathBuf {
        self.folder.join(format!("{first:020}.{PART_ENDING}"))
    }

    async fn begin_segment(&self, first: Sequence) -> Result<Segment> {
        let (encoder, bytes) = Encoder::new(&self.archive.backup_header(first).await?);
        let path = self.part(first);
        blocking(move || {
            let mut options = OpenOptions::new();
            let file = options.write(true).create_new(true).open(&path);
            let mut file = file.map_err(|error| failed("create", &path, error))?;
            let written = file.write_all(&bytes).and_then(|()| sync_parent(&path));
            written.map_err(|error| failed("write", &path, error))?;
            Ok(Segment {
                file,
                path,
                encoder,
            })
        })
        .await
    }

    /// Gives the segment its trailer and its name.
    async fn finish_segment(&mut self) -> Result<()> {
        let Some(segment) = self.segment.take() else {
            return Ok(());
        };
        let finished = blocking(move || {
            let Segment {
                mut file,
                path,
                encoder,
            } = segment;
            let bytes = encoder.finish()?;
            let written = file.write_all(&bytes).and_then(|()| file.sync_data());
            written.map_err(|error| failed("write", &path, error))?;
            name_finished(&path)
        });
        finished.await?;
        self.synced = None;
        Ok(())
    }
}

/// Cuts what a failed sync has left of a segment behind what was synced before: it can be read, and
/// nobody knows whether it is on the disk.
fn cut_unsynced(path: &Path, bytes: u64) -> Result<()> {
    let cut = |file: File| {
        if file.metadata()?.len() > bytes {
            file.set_len(bytes)?;
        }
        Ok(())
    };
    match OpenOptions::new().write(true).open(path).and_then(cut) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("cut", path, error)),
        _ => Ok(()),
    }
}

/// Looks what a folder holds, and opens the segment that can be written on.
fn look_into(folder: &Path) -> Result<Found> {
    fs::create_dir_all(folder).map_err(|error| failed("create", folder, error))?;
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(folder).map_err(|error| failed("read", folder, error))? {
        let path = entry.map_err(|error| failed("read", folder, error))?.path();
        let ending = path.extension().and_then(|ending| ending.to_str());
        if matches!(ending, Some(SEGMENT_ENDING | PART_ENDING)) {
            files.push(path);
        }
    }
    files.sort();
    while let Some(path) = files.pop() {
        let is_part = path.extension().is_some_and(|ending| ending == PART_ENDING);
        if is_part && is_empty(&path)? {
            // A crash came before its header was on disk.
            fs::remove_file(&path).map_err(|error| failed("remove", &path, error))?;
            continue;
        }
        return look_at(path, is_part);
    }
    Ok(Found {
        part: None,
        last: 0,
        last_id: UNKNOWN_ID,
        archive_id: None,
    })
}

/// Looks at the last segment, and changes nothing.
fn look_at(path: PathBuf, is_part: bool) -> Result<Found> {
    let file = File::open(&path).map_err(|error| failed("open", &path, error))?;
    let mut decoder = Decoder::new(BufReader::new(file), path.display().to_string())?;
    let header = *decoder.header();
    let mut last_id = header.before;
    loop {
        match decoder.next_entries() {
            Ok(Some(entries)) => {
                last_id = entries.last().map_or(last_id, |entry| entry.record.id);
            }
            Ok(None) => break,
            Err(error) if is_part && error.reason() == Reason::BackupDamaged => break,
            Err(error) => return Err(error),
        }
    }
    let last = decoder.trailer().last;
    let part = is_part.then(|| {
        let encoder = (!decoder.is_finished()).then(|| decoder.into_encoder());
        (path, encoder)
    });
    Ok(Found {
        part,
        last,
        last_id,
        archive_id: Some(header.archive_id),
    })
}

/// Renames a segment that has its trailer.
fn name_finished(path: &Path) -> Result<()> {
    let finished = path.with_extension(SEGMENT_ENDING);
    let renamed = fs::rename(path, &finished).and_then(|()| sync_parent(path));
    renamed.map_err(|error| failed("rename", path, error))
}

/// Makes the names in a file's folder durable.
fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

fn failed(what: &str, path: &Path, error: io::Error) -> Error {
    let path = path.display().to_string();
    Error::new(Reason::FileFailed, format!("cannot {what} {path}"))
        .with_source(error)
        .with_resource(path)
}

/// Runs work that waits for a disk.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|panic| {
            Err(Error::new(Reason::Internal, "writing a backup panicked").with_source(panic))
        })
}
