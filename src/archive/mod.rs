//! The archive: one log of articles, its indexes, one writer and any number of readers.
//!
//! What is on disk when: [`Archive::put`] and [`Archive::delete`] return after the rows of their
//! whole group were written in one batch and the disk was told to sync it. From then on a kill of
//! the process loses nothing, and a power cut loses nothing as long as the disk does what `fsync`
//! asks of it. What was not acknowledged may be there or not, but never half. [`Guard::close`] adds
//! nothing to that; it lets the writer finish what is queued and releases the files. In object storage
//! the same holds once the storage has answered that it has the batch.
//!
//! Readers see articles only once they are durable: the writer publishes the last committed
//! sequence after the sync, and reads skip what is behind it. A replica has no writer; what publishes
//! the sequence there is a task that looks what the writer's process has written.

pub mod backup;
mod candidates;
mod commit;
mod copies;
mod dictionaries;
mod digests;
mod feed;
mod job;
mod limits;
pub mod migrate;
mod open;
mod read;
mod reader;
mod replica;
mod scan;
mod selector;
mod timeline;
pub mod token;
mod train;
mod verify;
mod walk;

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use self::backup::BackupStatus;
use self::backup::FollowState;
pub use self::copies::{Copies, CopiesQuery, CopyOf, SIMILARITY_DEFAULT, SIMILARITY_MIN};
use self::digests::Digests;
pub use self::feed::{Change, Changes, FeedStart};
pub use self::job::{Delete, DeleteOutcome, Hashed, PendingPut, Prepared, Put, PutOutcome};
pub use self::limits::Limits;
use self::open::{Opened, Purpose, Shape};
pub use self::read::{Lookup, Missing, Source, SourcePage, Stats, StoredArticle};
pub use self::replica::Role;
pub use self::scan::{Page, PageBudget, Room, View};
pub use self::selector::{Order, Query, Selector, SelectorFields};
pub use self::timeline::{Bucket, Timeline, TimelineQuery, TimelineSeries};
use self::train::Trainer;
pub use self::verify::{
    Finding, FindingKind, Observer, RepairCounts, RepairReport, Stage, VerifyOptions,
    VerifyProgress, VerifyReport,
};
use crate::article::{ContentHash, Timestamp};
use crate::error::{Error, Reason, Result};
pub use crate::key::NearCopies;
use crate::key::Sequence;
use crate::metrics::Metrics;
pub use crate::record::ScrubResult;
use crate::record::{self, Dictionaries};
pub use crate::store::Direction;
pub use crate::store::Requests;
use crate::store::{Poison, Store};

/// A handle on an open archive. Clones are cheap and all mean the same archive.
#[derive(Clone, Debug)]
pub struct Archive {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Arc<dyn Store>,
    limits: Limits,
    metrics: Arc<Metrics>,
    queue: mpsc::Sender<job::Job>,
    queue_bytes: Arc<Semaphore>,
    committed: watch::Receiver<Sequence>,
    digests: Arc<Digests>,
    dictionaries: Dictionaries,
    /// Whether articles that come are compressed with a dictionary.
    is_trained: watch::Receiver<bool>,
    shape: watch::Receiver<Shape>,
    /// The moment up to which a replica shows everything; nothing for the writer.
    complete_to: Option<watch::Receiver<Instant>>,
    follower: OnceLock<FollowState>,
    poison: Arc<Poison>,
}

/// The owner of the writer, or of the task of a replica that follows one, and of the task that trains a
/// dictionary. Dropping it leaves them running until all handles are gone; closing it ends the archive in
/// good order.
#[derive(Debug)]
pub struct Guard {
    store: Arc<dyn Store>,
    stop: CancellationToken,
    writer: JoinHandle<()>,
    training: CancellationToken,
    trainer: Option<JoinHandle<()>>,
}

impl Archive {
    /// Opens the archive in a store, beginning it if the store is empty, and starts its writer.
    ///
    /// # Errors
    /// `FormatUnsupported` if another version of pressmark wrote it; `IndexDamaged` if its figures
    /// cannot be read; `RestoreUnfinished`, `MigrationUnfinished`; `ArchiveMoved`.
    pub async fn open(store: Arc<dyn Store>, limits: Limits) -> Result<(Self, Guard)> {
        Self::open_for(Purpose::Use, store, limits, None).await
    }

    /// Opens an archive that can be asked for near copies from now on, or cannot. A change of that
    /// reads the whole archive.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub async fn open_with(
        store: Arc<dyn Store>,
        limits: Limits,
        near: NearCopies,
    ) -> Result<(Self, Guard)> {
        Self::open_for(Purpose::Use, store, limits, Some(near)).await
    }

    /// Opens an archive whose figures may be damaged, so that a repair can mend them.
    ///
    /// # Errors
    /// Those of [`open`](Self::open), but for `IndexDamaged`.
    pub async fn open_to_repair(store: Arc<dyn Store>, limits: Limits) -> Result<(Self, Guard)> {
        Self::open_for(Purpose::Repair, store, limits, None).await
    }

    async fn open_for(
        purpose: Purpose,
        store: Arc<dyn Store>,
        limits: Limits,
        near: Option<NearCopies>,
    ) -> Result<(Self, Guard)> {
        let Opened {
            figures,
            shape,
            dictionaries,
            is_untrained,
        } = open::open(&*store, purpose, near).await?;
        let digests = Arc::new(Digests::default());
        let metrics = Arc::new(Metrics::default());
        let (queue, jobs) = mpsc::channel(limits.queue_articles_max);
        let (publish, committed) = watch::channel(figures.next - 1);
        let stop = CancellationToken::new();
        let poison = Arc::new(Poison::default());
        let writer = commit::Writer::new(
            Arc::clone(&store),
            limits,
            Arc::clone(&metrics),
            (publish, Arc::clone(&digests), dictionaries.clone()),
            (figures, shape.near),
            Arc::clone(&poison),
        );
        let writer = tokio::spawn(writer.run(jobs, stop.clone()));
        let (is_ready, is_trained) = watch::channel(dictionaries.current().is_some());
        let trainer = Trainer {
            store: Arc::clone(&store),
            dictionaries: dictionaries.clone(),
            records_min: limits.dictionary_records_min,
            committed: committed.clone(),
            queue: queue.downgrade(),
            poison: Arc::clone(&poison),
            is_ready,
        };
        let training = CancellationToken::new();
        let may_train =
            is_untrained && matches!(purpose, Purpose::Use | Purpose::Restore | Purpose::Receive);
        let trainer = may_train.then(|| tokio::spawn(trainer.run(training.clone())));
        let guard = Guard {
            store: Arc::clone(&store),
            stop,
            writer,
            training,
            trainer,
        };
        let queue_bytes = Arc::new(Semaphore::new(limits.queue_bytes_max));
        let inner = Inner {
            store,
            limits,
            metrics,
            queue,
            queue_bytes,
            committed,
            digests,
            dictionaries,
            is_trained,
            shape: watch::channel(shape).1,
            complete_to: None,
            follower: OnceLock::new(),
            poison,
        };
        Ok((
            Self {
                inner: Arc::new(inner),
            },
            guard,
        ))
    }

    /// Whether the archive still takes writes.
    ///
    /// # Errors
    /// `WriterReplaced` if another process has taken the archive over, `WritesStopped` after a failed
    /// write, `ShuttingDown` after close, `NotTheWriter` on a replica.
    pub fn check_writes(&self) -> Result<()> {
        self.check_not_replaced()?;
        self.inner.poison.check()?;
        if self.role() == Role::Replica {
            return Err(replica::not_the_writer(None));
        }
        if self.inner.queue.is_closed() {
            return Err(writer_ended());
        }
        Ok(())
    }

    /// Compresses an article and takes it apart for the indexes of this archive. It can be stored in
    /// no other one.
    ///
    /// # Errors
    /// `Internal` if the compressor fails.
    pub fn prepare(&self, article: Hashed) -> Result<Prepared> {
        article.prepare(self.near_copies(), &self.inner.dictionaries)
    }

    /// Stores one article, and returns when it would survive a power cut.
    ///
    /// Cancel safe in this sense: once the article is queued it is stored whether or not somebody
    /// waits for the answer.
    ///
    /// # Errors
    /// `WritesStopped` after a failed write; `ShuttingDown` after close; `NotTheWriter` on a replica.
    pub async fn put(&self, prepared: Prepared) -> Result<Put> {
        self.enqueue(prepared).await?.result().await
    }

    /// Queues one article and returns what to wait for. Waits while the queue is full. Articles
    /// are stored in the order in which they are queued.
    ///
    /// # Errors
    /// `WritesStopped` or `ShuttingDown` if the writer has ended; `Internal` if another archive
    /// prepared the article.
    pub async fn enqueue(&self, prepared: Prepared) -> Result<PendingPut> {
        self.check_writer().await?;
        let dictionary = prepared.rows.dictionary();
        if let Some(id) = dictionary.filter(|id| self.inner.dictionaries.get(*id).is_none()) {
            let what = format!("dictionary {id}, which an article needs, is another archive's");
            return Err(Error::new(Reason::Internal, what));
        }
        let bytes = prepared
            .stored_bytes()
            .min(self.inner.limits.queue_bytes_max);
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.inner.queue_bytes)
            .acquire_many_owned(bytes)
            .await
            .map_err(|_| writer_ended())?;
        let (done, result) = oneshot::channel();
        let job = job::PutJob {
            prepared,
            done,
            room,
        };
        self.send(job::Job::Put(Box::new(job))).await?;
        Ok(PendingPut::new(result))
    }

    /// Deletes an article: its text goes, a tombstone with the reason stays, and the id cannot be
    /// stored again. Deleting it again changes nothing and answers with the first tombstone.
    ///
    /// # Errors
    /// `ArticleNotFound`; `ArgumentInvalid` if the reason is not one line of 1 to 1024 bytes;
    /// `RecordDamaged` if the article cannot be read, `WritesStopped`, `ShuttingDown`.
    pub async fn delete(&self, id: ContentHash, reason: &str, now: Timestamp) -> Result<Delete> {
        let limit = self.inner.limits.reason_bytes_max;
        if !(1..=limit).contains(&reason.len()) || reason.chars().any(char::is_control) {
            let what = format!(
                "{} is not one line of 1 to {limit} bytes",
                crate::error::excerpt(reason)
            );
            return Err(Error::field(Reason::ArgumentInvalid, "reason", what));
        }
        let (done, result) = oneshot::channel();
        let job = job::DeleteJob {
            id,
            reason: reason.to_owned(),
            now,
            done,
        };
        self.send(job::Job::Delete(Box::new(job))).await?;
        result.await.map_err(|_| writer_ended())?
    }

    /// Remembers how a scrub went, for [`stats`](Self::stats) and for the next start.
    ///
    /// # Errors
    /// `WritesStopped` after a failed write; `ShuttingDown` after close.
    pub async fn note_scrub(&self, result: ScrubResult) -> Result<()> {
        let (done, noted) = oneshot::channel();
        self.send(job::Job::Scrubbed(result, done)).await?;
        noted.await.map_err(|_| writer_ended())?
    }

    /// Gives the writer something to do.
    async fn send(&self, job: job::Job) -> Result<()> {
        self.check_writer().await?;
        let sent = self.inner.queue.send(job).await;
        sent.map_err(|_| writer_ended())
    }

    /// Whether this process may go on using the archive.
    ///
    /// # Errors
    /// `WriterReplaced` if another process has taken it over; `StoreFailed` if a replica can follow it
    /// no more, or the engine broke down; `ShuttingDown` after close.
    pub fn check_not_replaced(&self) -> Result<()> {
        self.inner.store.check_not_replaced()
    }

    /// Completes when another process has taken the archive over, or a replica can follow it no more,
    /// which ends this one's use of it.
    pub async fn replaced(&self) -> Error {
        self.inner.store.replaced().await
    }

    /// How far the backup is that follows this archive, if one does.
    #[must_use]
    pub fn backup_status(&self) -> Option<BackupStatus> {
        self.inner.follower.get().map(FollowState::status)
    }

    /// The limits that this archive was opened with.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.inner.limits
    }

    /// The sequence of the last durable record, 0 for none.
    #[must_use]
    pub fn committed(&self) -> Sequence {
        *self.inner.committed.borrow()
    }

    /// The engine's name.
    #[must_use]
    pub fn engine(&self) -> &'static str {
        self.inner.store.engine()
    }

    /// Whether the archive can be asked for near copies.
    #[must_use]
    pub fn near_copies(&self) -> NearCopies {
        self.inner.shape.borrow().near
    }

    /// The format of the archive: the oldest one that says all that is in it.
    #[must_use]
    pub fn format(&self) -> u8 {
        match self.inner.dictionaries.current() {
            Some(_) => record::ARCHIVE_FORMAT,
            None => self.inner.shape.borrow().format,
        }
    }

    /// Waits until what [`prepare`](Self::prepare) makes is compressed with a dictionary, which takes
    /// as many records as the limit says, and a second.
    ///
    /// # Errors
    /// `ShuttingDown` if the archive was closed, or gave it up, before.
    pub async fn trained(&self) -> Result<()> {
        let mut is_trained = self.inner.is_trained.clone();
        let trained = is_trained.wait_for(|is_trained| *is_trained).await;
        trained.map(drop).map_err(|_| {
            let what = "no dictionary will be trained before the archive is opened again";
            Error::new(Reason::ShuttingDown, what)
        })
    }
}

impl Guard {
    /// Ends the archive: what is queued is written, later puts fail, the files are released.
    ///
    /// # Errors
    /// The first cause if a write failed before, or if the last sync fails.
    pub async fn close(self) -> Result<()> {
        self.training.cancel();
        if let Some(trainer) = self.trainer
            && let Err(error) = trainer.await
        {
            // The archive is as good without a dictionary.
            tracing::error!(%error, "the task that trains a dictionary panicked");
        }
        self.stop.cancel();
        let writer = self.writer.await.map_err(|panic| {
            Error::new(Reason::Internal, "the writer task panicked").with_source(panic)
        });
        self.store.close().await.and(writer)
    }
}

/// The answer to a put that finds no writer: it was closed, or it panicked.
fn writer_ended() -> Error {
    Error::new(
        Reason::ShuttingDown,
        "the archive takes no more writes, it is closed or closing",
    )
}
