//! A replica: an archive that another process writes. There is no writer here; a task looks what that
//! one has written and tells the readers, who then read as they do beside a writer.
//!
//! How stale a replica is: it knows of a moment up to which it shows everything that was durable then.
//! The time since that moment is the most that it can lag behind, whatever the writer did.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::commit::stored_snapshot;
use super::digests::{DigestChange, Digests};
use super::feed::Change;
use super::open::{self, Shape};
use super::reader::{behind, short_answer};
use super::scan::{PageBudget, View};
use super::selector::{Selector, SelectorFields};
use super::verify::Snapshot;
use super::{Archive, Guard, Inner, Limits, dictionaries};
use crate::error::{Error, Reason, Result};
use crate::key::meta::{self, DICTIONARY_COPIES};
use crate::key::{self, IndexFacts, Sequence};
use crate::metrics::Metrics;
use crate::record::{self, Dictionaries, Digest};
use crate::store::{Direction, Look, Poison, Scan, Store};

/// How often figures that fit each other are looked for, while the archive moves on.
const SNAPSHOT_TRIES_MAX: u32 = 8;

/// What this process does with an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It reads and writes.
    Writer,
    /// It reads what another process writes.
    Replica,
}

impl Archive {
    /// Opens an archive that another process writes, to read it. The store has to be a replica.
    ///
    /// # Errors
    /// `FileFailed` if it is not begun yet; `FormatUnsupported` if another version of pressmark wrote
    /// it; `RestoreUnfinished`; `IndexDamaged` if its figures cannot be read; `Internal` if the store
    /// follows nobody.
    pub async fn open_replica(store: Arc<dyn Store>, limits: Limits) -> Result<(Self, Guard)> {
        let mut looks = store.looks().ok_or_else(|| {
            let what = "the store follows nobody, so nobody would tell of what is new";
            Error::new(Reason::Internal, what)
        })?;
        open::check_whole(&*store).await?;
        let look = *looks.borrow_and_update();
        let found = open::look(&*store).await?;
        let (committed, published) = watch::channel(found.last);
        let (shape, shape_seen) = watch::channel(found.shape);
        let (complete, complete_to) = watch::channel(look.complete_to);
        let mut follower = Follower {
            store: Arc::clone(&store),
            looks,
            committed,
            shape,
            complete,
            mends: found.mends,
            digests: Arc::new(Digests::default()),
            dictionaries: Dictionaries::default(),
            known: BTreeSet::new(),
        };
        // Before anything reads a record.
        follower.take_dictionaries().await?;
        let (digests, dictionaries) =
            (Arc::clone(&follower.digests), follower.dictionaries.clone());
        let stop = CancellationToken::new();
        let guard = Guard {
            store: Arc::clone(&store),
            stop: stop.clone(),
            writer: tokio::spawn(follower.run(stop)),
            training: CancellationToken::new(),
            trainer: None,
        };
        let inner = Inner {
            store,
            limits,
            metrics: Arc::new(Metrics::default()),
            // Nobody takes what would come into it.
            queue: mpsc::channel(1).0,
            queue_bytes: Arc::new(Semaphore::new(0)),
            committed: published,
            digests,
            dictionaries,
            is_trained: watch::channel(false).1,
            shape: shape_seen,
            complete_to: Some(complete_to),
            follower: OnceLock::new(),
            poison: Arc::new(Poison::default()),
        };
        Ok((
            Self {
                inner: Arc::new(inner),
            },
            guard,
        ))
    }

    /// What this process does with the archive.
    #[must_use]
    pub fn role(&self) -> Role {
        match self.inner.complete_to {
            Some(_) => Role::Replica,
            None => Role::Writer,
        }
    }

    /// The most that a replica can lag behind its writer: the time since the last moment of which it
    /// knows that it shows everything that was durable then. Nothing for the writer.
    #[must_use]
    pub fn staleness(&self) -> Option<Duration> {
        let complete_to = self.inner.complete_to.as_ref()?;
        Some(complete_to.borrow().elapsed())
    }

    /// What the process calls itself that writes the archive which a replica follows; nothing if none
    /// does, or if this is the writer.
    ///
    /// # Errors
    /// `StoreFailed`.
    pub async fn writer(&self) -> Result<Option<String>> {
        self.inner.store.writer().await
    }

    /// Makes sure that this process writes the archive.
    ///
    /// # Errors
    /// `NotTheWriter` on a replica, naming the process that does.
    pub async fn check_writer(&self) -> Result<()> {
        if self.role() == Role::Writer {
            return Ok(());
        }
        // Whoever cannot be told who writes is told at least that it is not this one.
        let writer = self.writer().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot tell who writes the archive");
            None
        });
        Err(not_the_writer(writer))
    }

    /// Takes up what the log says of the articles between two sequences.
    pub(super) async fn follow_digests(&self, from: Sequence, to: Sequence) -> Result<()> {
        let limits = &self.inner.limits;
        let everything = Selector::new(SelectorFields::default(), limits)?;
        let budget = PageBudget {
            view: View::Full,
            articles_max: usize::MAX,
            bytes_max: limits.scan_chunk_bytes,
        };
        let near = self.near_copies();
        let (mut changes, mut at) = (Vec::new(), from);
        while at < to {
            let read = self.readable_changes(at + 1, &everything, &budget).await?;
            for change in read.changes {
                match change {
                    Change::Stored(stored) => {
                        let facts = IndexFacts::of(&stored.article, stored.id, near);
                        let rows = record::index_rows(&facts, stored.sequence);
                        let digest = rows.iter().find_map(|(key, value)| digest_of(key, value));
                        changes.extend(digest);
                    }
                    Change::Deleted { article, .. } => changes.push(DigestChange::Remove(article)),
                }
            }
            at = read.sequence.max(at + 1);
        }
        self.inner.digests.catch_up(changes, at);
        Ok(())
    }

    /// The figures of one state of the archive; none if it moves on for as long as they are looked for.
    pub(super) async fn followed_snapshot(&self) -> Result<Snapshot> {
        let (store, limits) = (&*self.inner.store, &self.inner.limits);
        for _ in 0..SNAPSHOT_TRIES_MAX {
            let (next, totals) = self.figures().await?;
            let as_of = next.saturating_sub(1);
            let snapshot = stored_snapshot(store, limits, as_of).await?;
            if self.figures().await? == (next, totals) {
                // Until then the dictionaries of its records may not be here.
                self.committed_to(as_of).await?;
                return Ok(snapshot);
            }
        }
        Ok(Snapshot {
            as_of: self.committed(),
            figures: None,
            beyond: Vec::new(),
        })
    }
}

/// The row of table `d`, if it is one.
fn digest_of(key: &[u8], value: &[u8]) -> Option<DigestChange> {
    if key.first() != Some(&key::TABLE_DATE) {
        return None;
    }
    let (time, sequence) = key::parse_dated(key)?;
    let digest = Digest::decode(value).ok()?;
    Some(DigestChange::Add(sequence, time, digest))
}

/// The error of a write that comes to a replica.
pub(super) fn not_the_writer(writer: Option<String>) -> Error {
    let error = |who: &str| {
        let what = format!("this server is a replica, which only reads; {who}");
        Error::new(Reason::NotTheWriter, what)
    };
    match writer {
        Some(name) => error(&format!("{name} writes the archive")).with_resource(name),
        None => error("another one writes the archive"),
    }
}

/// Looks what the writer has written, and tells the readers.
struct Follower {
    store: Arc<dyn Store>,
    looks: watch::Receiver<Look>,
    committed: watch::Sender<Sequence>,
    shape: watch::Sender<Shape>,
    /// Everything that was durable at this moment can be read.
    complete: watch::Sender<Instant>,
    /// How many batches repairs had written.
    mends: Option<u64>,
    digests: Arc<Digests>,
    dictionaries: Dictionaries,
    /// The rows of dictionaries that were read.
    known: BTreeSet<Vec<u8>>,
}

impl Follower {
    /// Follows until `stop`, or until the store is closed.
    async fn run(mut self, stop: CancellationToken) {
        let mut is_failing = false;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                look = self.looks.changed() => if look.is_err() { return },
            }
            let looked = self.look().await;
            if let Err(error) = &looked
                && !is_failing
            {
                tracing::warn!(%error, "cannot follow the archive now");
            }
            is_failing = looked.is_err();
        }
    }

    async fn look(&mut self) -> Result<()> {
        let look = *self.looks.borrow_and_update();
        let found = open::look(&*self.store).await?;
        // They are there before the records that need them.
        self.take_dictionaries().await?;
        let is_other = |shape: &mut Shape| std::mem::replace(shape, found.shape) != found.shape;
        let has_changed = self.shape.send_if_modified(is_other);
        let is_mended = std::mem::replace(&mut self.mends, found.mends) != found.mends;
        if has_changed || is_mended {
            // Table `d` was changed by more than what the log tells of.
            self.digests.forget();
        }
        self.committed
            .send_if_modified(|last| std::mem::replace(last, found.last.max(*last)) < found.last);
        self.complete.send_replace(look.complete_to);
        Ok(())
    }

    /// Reads the dictionaries that are new.
    async fn take_dictionaries(&mut self) -> Result<()> {
        let all = meta::dictionaries();
        let mut start = all.start;
        let mut scans = Vec::with_capacity(self.known.len() + 1);
        let mut between = |start: Vec<u8>, end: Vec<u8>| {
            scans.push(Scan {
                range: start..end,
                direction: Direction::Ascending,
                rows_max: 1,
                bytes_max: 1,
            });
        };
        for key in &self.known {
            between(std::mem::replace(&mut start, behind(key)), key.clone());
        }
        between(start, all.end);
        let scan_count = scans.len();
        let chunks = self.store.scan_many(scans).await?;
        if chunks.len() != scan_count {
            return Err(short_answer());
        }
        let new: Vec<_> = chunks.into_iter().flat_map(|chunk| chunk.rows).collect();
        if new.is_empty() {
            return Ok(());
        }
        let kept = dictionaries::kept(&*self.store).await?;
        for dictionary in dictionaries::usable(&kept).all() {
            self.dictionaries.add(dictionary);
        }
        let rows = |id| (0..DICTIONARY_COPIES).map(move |copy| meta::dictionary(id, copy));
        self.known.extend(kept.keys().flat_map(|id| rows(*id)));
        // One with a name that is none of ours is not looked at again.
        self.known
            .extend(new.into_iter().map(|row| row.key.to_vec()));
        Ok(())
    }
}
