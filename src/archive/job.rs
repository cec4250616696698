//! Work for the writer and its answers: what callers prepare, queue and wait for.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::backup::RestoreStep;
use super::verify::{RepairCounts, Snapshot};
use super::writer_ended;
use crate::article::{Article, ContentHash, Timestamp};
use crate::error::{Error, Reason, Result};
use crate::key::{IndexFacts, NearCopies, Sequence};
use crate::record::{self, Dictionaries, Dictionary, Rows, ScrubResult};

/// An article whose canonical text was hashed, so that it can be asked for before more is done.
#[derive(Clone, Debug)]
pub struct Hashed {
    article: Article,
    text: String,
    id: ContentHash,
    archived_at: Timestamp,
}

impl Hashed {
    /// Hashes an article that arrived at `archived_at`. If the sender named an id, it must be the
    /// hash of the canonical text.
    ///
    /// # Errors
    /// `IdMismatch` if it is not.
    pub fn new(
        article: Article,
        archived_at: Timestamp,
        claimed: Option<ContentHash>,
    ) -> Result<Self> {
        let text = article.render();
        let id = ContentHash::of(text.as_bytes());
        if let Some(claimed) = claimed.filter(|claimed| *claimed != id) {
            let what =
                format!("{claimed} is not the hash of the article's canonical text, which is {id}");
            return Err(Error::field(Reason::IdMismatch, "id", what));
        }
        Ok(Self {
            article,
            text,
            id,
            archived_at,
        })
    }

    /// The article's id.
    #[must_use]
    pub fn id(&self) -> ContentHash {
        self.id
    }

    /// Compresses the article and takes it apart for the indexes of an archive that can be asked for
    /// near copies, or cannot, and has dictionaries. One that cannot drops what it has no use for.
    ///
    /// # Errors
    /// `Internal` if the compressor fails.
    pub(super) fn prepare(self, near: NearCopies, dictionaries: &Dictionaries) -> Result<Prepared> {
        Ok(Prepared {
            facts: IndexFacts::of(&self.article, self.id, near),
            rows: record::encode_article(self.id, self.archived_at, &self.text, dictionaries)?,
            text_bytes: u64::try_from(self.text.len()).unwrap_or(u64::MAX),
        })
    }
}

/// An article ready to be written: hashed, compressed and taken apart for the indexes, which all
/// happens on the caller's task so that the writer only orders and writes.
#[derive(Clone, Debug)]
pub struct Prepared {
    pub(super) facts: IndexFacts,
    pub(super) rows: Rows,
    pub(super) text_bytes: u64,
}

impl Prepared {
    /// Prepares an article that arrived at `archived_at`, for any archive. If the sender named an id,
    /// it must be the hash of the canonical text. What [`prepare`](super::Archive::prepare) of an
    /// archive makes is smaller once that archive has a dictionary.
    ///
    /// # Errors
    /// `IdMismatch` if it is not.
    pub fn new(
        article: Article,
        archived_at: Timestamp,
        claimed: Option<ContentHash>,
    ) -> Result<Self> {
        Hashed::new(article, archived_at, claimed)?
            .prepare(NearCopies::On, &Dictionaries::default())
    }

    /// The article's id.
    #[must_use]
    pub fn id(&self) -> ContentHash {
        self.facts.id
    }

    /// Bytes that the record takes, compressed.
    #[must_use]
    pub fn stored_bytes(&self) -> usize {
        self.rows.stored_bytes()
    }
}

/// What a put did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutOutcome {
    /// A new article at a new URL, or without one.
    Created,
    /// Stored already: nothing was written.
    Duplicate,
    /// A new article at a URL that has others.
    Revision {
        /// The latest of them.
        previous: ContentHash,
    },
    /// The id has a tombstone: nothing was written.
    Deleted,
}

/// The answer to a put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Put {
    /// The article's id.
    pub id: ContentHash,
    /// Where the article stands in the log; for a duplicate, where it already stood.
    pub sequence: Sequence,
    /// What happened.
    pub outcome: PutOutcome,
}

/// Whether a delete found something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeleteOutcome {
    /// The article is deleted now.
    Deleted,
    /// It was before; the answer is that of the first time.
    AlreadyDeleted,
}

/// The answer to a delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delete {
    /// The article's id.
    pub id: ContentHash,
    /// What happened.
    pub outcome: DeleteOutcome,
    /// Where the deletion stands in the log.
    pub sequence: Sequence,
    /// When it was deleted.
    pub deleted_at: Timestamp,
    /// Why.
    pub reason: String,
}

/// A queued put.
#[derive(Debug)]
pub struct PendingPut(oneshot::Receiver<Result<Put>>);

impl PendingPut {
    pub(super) fn new(result: oneshot::Receiver<Result<Put>>) -> Self {
        Self(result)
    }

    /// Waits until the article is durable.
    ///
    /// # Errors
    /// `WritesStopped` if the group could not be written; `StoreFailed` if it could not be checked
    /// against the archive.
    pub async fn result(self) -> Result<Put> {
        self.0.await.map_err(|_| writer_ended())?
    }
}

/// Work for the writer.
#[derive(Debug)]
pub(super) enum Job {
    Put(Box<PutJob>),
    Delete(Box<DeleteJob>),
    Repair(Timestamp, oneshot::Sender<Result<RepairCounts>>),
    Snapshot(oneshot::Sender<Result<Snapshot>>),
    Restore(RestoreStep, oneshot::Sender<Result<()>>),
    Scrubbed(ScrubResult, oneshot::Sender<Result<()>>),
    Dictionary(Arc<Dictionary>, oneshot::Sender<Result<()>>),
}

#[derive(Debug)]
pub(super) struct PutJob {
    pub(super) prepared: Prepared,
    pub(super) done: oneshot::Sender<Result<Put>>,
    /// The article's share of the queue, given back when the job is done.
    pub(super) room: OwnedSemaphorePermit,
}

#[derive(Debug)]
pub(super) struct DeleteJob {
    pub(super) id: ContentHash,
    pub(super) reason: String,
    pub(super) now: Timestamp,
    pub(super) done: oneshot::Sender<Result<Delete>>,
}
