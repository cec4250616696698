//! Full-text search: one more index of the log, kept by tantivy in a folder of its own.
//!
//! It follows the log: a thread of low priority reads what was committed, adds it to the index, and
//! makes it visible within a second unless the machine has no time to spare. The index remembers up
//! to which sequence it has the log; on start it goes on from there. It is never in the way of the
//! archive: nothing waits for it, and whatever is wrong with it, it is thrown away and built anew
//! from the log. What is found is read from the archive, so that no hit is older than the archive.
//!
//! This module knows no store, no key and no record; only its files name tantivy.

mod follow;
mod index;
mod query;
mod words;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use self::index::Snapshot;
use crate::archive::{Archive, Direction, PageBudget, Selector, StoredArticle};
use crate::error::{Error, Reason, Result, excerpt};

/// How long a search waits for the index to be as far as it wants it.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// Searches that run at a time; more of them wait. Each keeps a core busy.
const SEARCHES_MAX: usize = 4;

/// Where the index is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a folder, which is its own.
    Folder(PathBuf),
    /// In memory, for an archive that is there too.
    Memory,
}

/// The order of hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HitOrder {
    /// The most relevant first.
    Relevance,
    /// By date.
    Published(Direction),
}

/// What is searched for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SearchQuery {
    /// The words, in the syntax that the proto describes.
    pub text: String,
    /// Among which articles.
    pub selector: Selector,
    /// In what order.
    pub order: HitOrder,
}

/// A part of a text, and whether it is what was searched for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextPart {
    /// The part.
    pub text: String,
    /// Whether it was searched for.
    pub is_match: bool,
}

/// An article that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Hit {
    /// The article.
    pub article: StoredArticle,
    /// How relevant it is.
    pub score: f32,
    /// Its title, in parts.
    pub title: Vec<TextPart>,
    /// The best place of its body, in parts.
    pub snippet: Vec<TextPart>,
}

/// A page of hits.
#[derive(Clone, Debug, PartialEq)]
pub struct Hits {
    /// The hits.
    pub hits: Vec<Hit>,
    /// Leads to the next page; none after the last.
    pub next_token: Option<String>,
    /// The pages hold no article behind this sequence.
    pub as_of: u64,
    /// Articles found, on all pages.
    pub hit_count: u64,
}

/// How far the index is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SearchStatus {
    /// The last sequence that searches see.
    pub sequence: u64,
    /// Why it does not go on, if it does not.
    pub error: Option<String>,
}

/// The search of an archive. Clones mean the same one.
#[derive(Clone, Debug)]
pub struct Search {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    archive: Archive,
    place: Place,
    /// What searches see; nothing until the index is open.
    snapshot: RwLock<Option<Snapshot>>,
    status: watch::Sender<SearchStatus>,
    /// The largest sequence that somebody waits for.
    wanted: AtomicU64,
    /// Whether the index is to be built anew.
    rebuild: AtomicBool,
    /// Wakes the follower when one of the two above changed.
    wake: Notify,
    searches: Arc<Semaphore>,
}

/// The owner of the follower. Closing it ends it.
#[derive(Debug)]
pub struct SearchGuard {
    stop: CancellationToken,
    thread: JoinHandle<()>,
}

impl Search {
    /// Opens the index of an archive in its place, and starts to follow the log.
    ///
    /// # Errors
    /// `Internal` if no thread can be started. What is wrong with the index is no error: it is told
    /// by [`status`](Self::status), and mended.
    pub fn open(archive: Archive, place: Place) -> Result<(Self, SearchGuard)> {
        let shared = Arc::new(Shared {
            archive,
            place,
            snapshot: RwLock::new(None),
            status: watch::Sender::new(SearchStatus::default()),
            wanted: AtomicU64::new(0),
            rebuild: AtomicBool::new(false),
            wake: Notify::new(),
            searches: Arc::new(Semaphore::new(SEARCHES_MAX)),
        });
        let stop = CancellationToken::new();
        let follower = follow::Follower::new(Arc::clone(&shared), stop.clone());
        let runtime = tokio::runtime::Handle::current();
        let thread = std::thread::Builder::new()
            .name("search".into())
            .spawn(move || follower.run(&runtime))
            .map_err(|error| {
                let what = "cannot start the thread of the search index";
                Error::new(Reason::Internal, what).with_source(error)
            })?;
        Ok((Self { shared }, SearchGuard { stop, thread }))
    }

    /// How far the index is.
    #[must_use]
    pub fn status(&self) -> SearchStatus {
        self.shared.status.borrow().clone()
    }

    /// Bytes of the index on disk.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        match &self.shared.place {
            Place::Folder(folder) => index::disk_bytes(folder),
            Place::Memory => 0,
        }
    }

    /// Drops the index and begins to build it anew, from the log as it is now.
    pub fn rebuild(&self) {
        self.shared.rebuild.store(true, Ordering::Release);
        // It is not complete from this moment on, and nobody is to think that it is.
        let why = Some("it is being built anew".to_owned());
        self.shared.publish(None, why);
        self.shared.wake.notify_one();
    }

    /// Waits until searches see a sequence, at most 10 s.
    ///
    /// # Errors
    /// `ArgumentInvalid` if the archive does not go that far; `SearchBehind`.
    pub async fn wait_for(&self, sequence: u64) -> Result<()> {
        let last = self.shared.archive.committed();
        if sequence > last {
            let what = format!("{sequence} is behind {last}, the last sequence of the archive");
            return Err(Error::field(
                Reason::ArgumentInvalid,
                "min_index_sequence",
                what,
            ));
        }
        self.shared.wanted.fetch_max(sequence, Ordering::AcqRel);
        self.shared.wake.notify_one();
        let mut status = self.shared.status.subscribe();
        let reached = status.wait_for(|status| status.sequence >= sequence);
        let reached = tokio::time::timeout(WAIT_MAX, reached).await;
        if reached.is_ok_and(|reached| reached.is_ok()) {
            return Ok(());
        }
        let status = self.status();
        let what = format!(
            "the search index has the log up to sequence {}, and {sequence} was asked for{}",
            status.sequence,
            status
                .error
                .map_or_else(String::new, |error| format!(": {error}"))
        );
        Err(Error::new(Reason::SearchBehind, what))
    }

    /// Searches, from the place that a token of the same query leads to.
    ///
    /// # Errors
    /// `ArgumentInvalid` if the query cannot be read; `PageTokenInvalid`, `PageTokenMismatch`;
    /// `TooManyToSort` behind the last hit that can be paged through; `SearchFailed`; those of the
    /// archive.
    pub async fn search(
        &self,
        query: &SearchQuery,
        token: &str,
        budget: &PageBudget,
    ) -> Result<Hits> {
        let length = query.text.len();
        let limit = self.shared.archive.limits().search_query_bytes_max;
        if length > limit || query.text.trim().is_empty() {
            let what = format!(
                "{} has {length} bytes, it needs words, and 1 to {limit} bytes",
                excerpt(&query.text)
            );
            return Err(Error::field(Reason::ArgumentInvalid, "query", what));
        }
        let snapshot = self.shared.snapshot();
        let snapshot = snapshot.ok_or_else(|| {
            let error = self
                .status()
                .error
                .unwrap_or_else(|| "it is being opened".into());
            Error::new(
                Reason::SearchFailed,
                format!("the search index cannot be used: {error}"),
            )
        })?;
        let result = query::run(&self.shared, snapshot, query, token, budget).await;
        result.inspect_err(|error| {
            if error.reason() == Reason::SearchFailed {
                tracing::error!(%error, "the search index is thrown away");
                self.rebuild();
            }
        })
    }
}

impl Shared {
    fn snapshot(&self) -> Option<Snapshot> {
        let snapshot = self.snapshot.read();
        snapshot.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Shows searches another state of the index.
    fn publish(&self, snapshot: Option<Snapshot>, error: Option<String>) {
        let sequence = snapshot.as_ref().map_or(0, |snapshot| snapshot.sequence);
        let mut shown = self
            .snapshot
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *shown = snapshot;
        drop(shown);
        self.status.send_replace(SearchStatus { sequence, error });
    }
}

impl SearchGuard {
    /// Ends the follower, after it has made durable what it has.
    ///
    /// # Errors
    /// `Internal` if it panicked.
    pub async fn close(self) -> Result<()> {
        self.stop.cancel();
        let thread = self.thread;
        let joined = tokio::task::spawn_blocking(move || thread.join().is_ok()).await;
        if joined.unwrap_or(false) {
            return Ok(());
        }
        let what = "the thread of the search index panicked";
        Err(Error::new(Reason::Internal, what))
    }
}

/// An error of the index, which is to be built anew, or of the disk that it is on, which may recover.
fn failed(error: tantivy::TantivyError) -> Error {
    let is_of_disk = matches!(
        error,
        tantivy::TantivyError::IoError(_)
            | tantivy::TantivyError::OpenWriteError(_)
            | tantivy::TantivyError::LockFailure(..)
    );
    let reason = if is_of_disk {
        Reason::StoreFailed
    } else {
        Reason::SearchFailed
    };
    Error::new(reason, "the search index failed").with_source(error)
}
