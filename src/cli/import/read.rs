//! Reads what an import was given: files, folders, patterns and standard input, record by record.

use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use walkdir::WalkDir;

use crate::cli::output::STANDARD;
use crate::error::{Error, Reason, Result};
use crate::format::{self, Content, Counter, Format, Parser, Place, Source};

/// KiB of records that are read and not yet sent. One record may have as much.
const AHEAD_KIB_MAX: u32 = 64 * 1024;

/// Records that are read and not yet sent.
const RECORDS_AHEAD: usize = 1024;

/// Where a record came from.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub(super) path: Arc<Path>,
    pub(super) place: Place,
}

impl Origin {
    /// That of what is no record.
    pub(super) fn none() -> Self {
        let path = Path::new("").into();
        let place = Place::File;
        Self { path, place }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.path.display(), self.place)
    }
}

/// A record that was read, or why there is none.
pub(super) struct Record {
    pub(super) origin: Origin,
    pub(super) content: Result<(Parser, Content)>,
    /// Its share of the memory that records may have, to be kept until it is sent.
    pub(super) room: Option<OwnedSemaphorePermit>,
}

/// How far the files are read.
#[derive(Debug, Default)]
pub(super) struct Position {
    pub(super) bytes: Counter,
    /// The bytes of all files; 0 while it is not known.
    total: AtomicU64,
}

impl Position {
    pub(super) fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
}

/// What is read, and how.
#[derive(Clone, Debug)]
pub(super) struct Input {
    pub(super) paths: Vec<PathBuf>,
    pub(super) format: Option<Format>,
    pub(super) position: Arc<Position>,
    pub(super) stop: CancellationToken,
}

impl Input {
    /// Reads everything on a thread of its own, in the order of the arguments and of the names in
    /// folders, until it is told to stop or nobody takes it.
    pub(super) fn read(self) -> (mpsc::Receiver<Record>, tokio::task::JoinHandle<()>) {
        let (records, read) = mpsc::channel(RECORDS_AHEAD);
        let room = usize::try_from(AHEAD_KIB_MAX).unwrap_or(usize::MAX);
        let room = Arc::new(Semaphore::new(room));
        let runtime = Handle::current();
        let reader = tokio::task::spawn_blocking(move || {
            let reading = Reading {
                input: &self,
                records,
                room,
                runtime,
            };
            reading.all();
        });
        (read, reader)
    }

    /// Adds up the sizes of all files, if they are files and somebody looks.
    pub(super) fn measure(&self) {
        if !io::stderr().is_terminal() {
            return;
        }
        let input = self.clone();
        tokio::task::spawn_blocking(move || {
            let mut total = 0;
            for path in input.paths.iter().flat_map(|path| roots(path)) {
                for entry in files(&path).filter_map(Result::ok) {
                    if input.stop.is_cancelled() {
                        return;
                    }
                    total += entry.metadata().map_or(0, |metadata| metadata.len());
                }
            }
            let has_stdin = input.paths.iter().any(|path| path.as_os_str() == STANDARD);
            if !has_stdin {
                input.position.total.store(total, Ordering::Relaxed);
            }
        });
    }
}

struct Reading<'a> {
    input: &'a Input,
    records: mpsc::Sender<Record>,
    room: Arc<Semaphore>,
    runtime: Handle,
}

impl Reading<'_> {
    fn all(&self) {
        for path in &self.input.paths {
            let is_wanted = if path.as_os_str() == STANDARD {
                self.file(path, Ok(Source::Stream(Box::new(io::stdin()))))
            } else {
                roots(path).iter().all(|root| self.tree(root))
            };
            if !is_wanted {
                return;
            }
        }
    }

    /// Returns whether what is read is still taken.
    fn tree(&self, root: &Path) -> bool {
        for entry in files(root) {
            let is_wanted = match entry {
                Ok(entry) => self.file(entry.path(), File::open(entry.path()).map(Source::File)),
                Err(error) => {
                    let path = error.path().unwrap_or(root).to_owned();
                    let what = Error::new(Reason::FileFailed, "cannot be read").with_source(error);
                    self.send(&path.into(), Place::File, Err(what))
                }
            };
            if !is_wanted {
                return false;
            }
        }
        true
    }

    fn file(&self, path: &Path, source: io::Result<Source>) -> bool {
        let shared = Arc::from(path);
        let source = source.map_err(format::markdown::unreadable);
        let name = path.to_string_lossy();
        let (format, bytes) = (self.input.format, &self.input.position.bytes);
        let opened = source.and_then(|source| format::open(source, bytes, &name, format));
        let (parser, pieces) = match opened {
            Ok(opened) => opened,
            Err(error) => return self.send(&shared, Place::File, Err(error)),
        };
        for piece in pieces {
            let content = piece.content.map(|content| (parser.clone(), content));
            if !self.send(&shared, piece.place, content) {
                return false;
            }
        }
        true
    }

    fn send(&self, path: &Arc<Path>, place: Place, content: Result<(Parser, Content)>) -> bool {
        if self.input.stop.is_cancelled() {
            return false;
        }
        let path = Arc::clone(path);
        let origin = Origin { path, place };
        let room = content.as_ref().ok().and_then(|(_, content)| {
            let kib = u32::try_from(content.bytes() / 1024).unwrap_or(u32::MAX);
            let room = Arc::clone(&self.room).acquire_many_owned((kib + 1).min(AHEAD_KIB_MAX));
            self.runtime.block_on(room).ok()
        });
        let record = Record {
            origin,
            content,
            room,
        };
        self.records.blocking_send(record).is_ok()
    }
}

/// What an argument names: itself, or if it is not there, what fits it as a pattern.
fn roots(path: &Path) -> Vec<PathBuf> {
    let itself = vec![path.to_owned()];
    let Some(pattern) = path.to_str().filter(|text| text.contains(['*', '?', '['])) else {
        return itself;
    };
    if path.exists() {
        return itself;
    }
    let found = glob::glob(pattern).map(|found| found.filter_map(Result::ok).collect());
    match found {
        Ok(found) if !Vec::is_empty(&found) => found,
        Ok(_) | Err(_) => itself,
    }
}

/// The files of a folder that are read, or the file.
fn files(root: &Path) -> impl Iterator<Item = Result<walkdir::DirEntry, walkdir::Error>> {
    let entries = WalkDir::new(root).sort_by_file_name().into_iter();
    entries
        .filter_entry(is_visible)
        .filter(|entry| match entry {
            // A link to a folder is not followed, so that a tree cannot be endless.
            Ok(entry) => !entry.path().is_dir() && (entry.depth() == 0 || is_known(entry.path())),
            Err(_) => true,
        })
}

/// Hidden files and folders are skipped, unless they were named.
fn is_visible(entry: &walkdir::DirEntry) -> bool {
    entry.depth() == 0 || !entry.file_name().to_string_lossy().starts_with('.')
}

/// In a folder, only files with a known ending are read.
fn is_known(path: &Path) -> bool {
    Format::of_name(&path.to_string_lossy()).is_some()
}
