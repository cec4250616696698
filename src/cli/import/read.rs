//! Reads what an import was given: files, folders and standard input, record by record.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::mpsc;
use walkdir::WalkDir;

use crate::cli::output::message_of;
use crate::error::{Error, Reason, Result};
use crate::format::{self, DateNote, Format, Found, Mapping, Place};
use crate::rpc::proto;

/// Where a record came from.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub(super) path: Arc<Path>,
    pub(super) place: Place,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.path.display(), self.place)
    }
}

/// An article that was read, or why there is none.
pub(super) struct Parsed {
    pub(super) origin: Origin,
    /// As it is sent, and what became of its date.
    pub(super) article: Result<(proto::Article, DateNote)>,
}

/// Reads files in the order of their names and checks their records, until nobody takes them.
pub(super) fn read_all(
    paths: &[PathBuf],
    format: Option<Format>,
    mapping: &Mapping,
    parsed: &mpsc::Sender<Parsed>,
) {
    let reading = Reading {
        format,
        mapping,
        parsed,
    };
    for path in paths {
        let is_wanted = if path.as_os_str() == "-" {
            reading.file(path, || Ok(Box::new(io::stdin())))
        } else {
            reading.tree(path)
        };
        if !is_wanted {
            return;
        }
    }
}

struct Reading<'a> {
    format: Option<Format>,
    mapping: &'a Mapping,
    parsed: &'a mpsc::Sender<Parsed>,
}

impl Reading<'_> {
    /// Returns whether what is read is still taken.
    fn tree(&self, root: &Path) -> bool {
        let entries = WalkDir::new(root).sort_by_file_name().into_iter();
        for entry in entries.filter_entry(is_visible) {
            let is_wanted = match entry {
                Ok(entry) if entry.depth() > 0 && !is_known(entry.path()) => continue,
                // A link to a folder is not followed, so that a tree cannot be endless.
                Ok(entry) if entry.path().is_dir() => continue,
                Ok(entry) => self.file(entry.path(), || Ok(Box::new(File::open(entry.path())?))),
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

    fn file(&self, path: &Path, open: impl FnOnce() -> io::Result<Box<dyn Read + Send>>) -> bool {
        let shared = Arc::from(path);
        let opened = open().map_err(format::markdown::unreadable);
        let name = path.to_string_lossy();
        let (format, pieces) = match opened.and_then(|file| format::open(file, &name, self.format))
        {
            Ok(opened) => opened,
            Err(error) => return self.send(&shared, Place::File, Err(error)),
        };
        for piece in pieces {
            let article = piece
                .bytes
                .and_then(|bytes| format.parse(&bytes, self.mapping));
            if !self.send(&shared, piece.place, article) {
                return false;
            }
        }
        true
    }

    fn send(&self, path: &Arc<Path>, place: Place, article: Result<Found>) -> bool {
        let path = Arc::clone(path);
        let origin = Origin { path, place };
        let article = article.map(|found| (message_of(found.article), found.date));
        self.parsed
            .blocking_send(Parsed { origin, article })
            .is_ok()
    }
}

/// Hidden files and folders are skipped, unless they were named.
fn is_visible(entry: &walkdir::DirEntry) -> bool {
    entry.depth() == 0 || !entry.file_name().to_string_lossy().starts_with('.')
}

/// In a folder, only files with a known ending are read; folders are looked into.
fn is_known(path: &Path) -> bool {
    path.is_dir() || Format::of_name(&path.to_string_lossy()).is_some()
}
