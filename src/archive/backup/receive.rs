//! Takes records of another archive, one sequence after the other, and gives them to the writer in
//! groups, several of which are on their way at a time.

use std::collections::VecDeque;

use tokio::sync::oneshot;

use super::format::{ArchiveId, Entry};
use crate::archive::commit::ON_THEIR_WAY_MAX;
use crate::archive::job::{Hashed, Job, Prepared};
use crate::archive::{Archive, writer_ended};
use crate::error::{Error, Reason, Result};
use crate::key::Sequence;
use crate::record::{Content, Record};

/// Work of a restore or a migration for the writer.
#[derive(Debug)]
pub(in crate::archive) enum RestoreStep {
    /// Marks the archive as unfinished, and gives it the name of the one that its records are of.
    Begin {
        archive_id: ArchiveId,
        last: Sequence,
        /// The archive that a migration takes them from.
        from: Option<String>,
    },
    /// Writes records at the sequences that follow.
    Records(Vec<Restored>),
    /// Takes the mark away.
    End,
    /// Marks the archive as moved to a place. It takes no more writes.
    Move(String),
    /// Takes all marks away.
    Release,
}

/// A record as the writer wants it.
#[derive(Debug)]
pub(in crate::archive) enum Restored {
    Article(Box<Prepared>),
    Other(Box<Record>),
}

impl Restored {
    /// Bytes that it takes, about.
    fn bytes(&self) -> usize {
        const OTHER_BYTES: usize = 256;
        match self {
            Self::Article(prepared) => prepared.stored_bytes(),
            Self::Other(_) => OTHER_BYTES,
        }
    }
}

/// A record of another archive, ready to be written into this one.
#[derive(Debug)]
pub struct Incoming {
    sequence: Sequence,
    restored: Restored,
}

/// Takes records into an archive, in order and in bounded memory.
#[derive(Debug)]
pub struct Receiver {
    archive: Archive,
    next: Sequence,
    group: Vec<Restored>,
    group_bytes: usize,
    on_their_way: VecDeque<OnItsWay>,
    record_count: usize,
    bytes: usize,
}

/// A group that the writer has.
#[derive(Debug)]
struct OnItsWay {
    done: oneshot::Receiver<Result<()>>,
    record_count: usize,
    bytes: usize,
}

impl Receiver {
    /// Takes what comes behind the last record of an archive.
    #[must_use]
    pub fn new(archive: &Archive) -> Self {
        Self {
            archive: archive.clone(),
            next: archive.committed() + 1,
            group: Vec::new(),
            group_bytes: 0,
            on_their_way: VecDeque::new(),
            record_count: 0,
            bytes: 0,
        }
    }

    /// The sequence of the record that is taken next.
    #[must_use]
    pub fn next(&self) -> Sequence {
        self.next
    }

    /// Takes the next record. Waits while too much is on its way.
    ///
    /// # Errors
    /// `Internal` if it is another sequence's; those of writing it or one before it.
    pub async fn take(&mut self, record: Incoming) -> Result<()> {
        let Incoming { sequence, restored } = record;
        if sequence != self.next {
            let what = format!("record {sequence} came in the place of {}", self.next);
            return Err(Error::new(Reason::Internal, what));
        }
        self.next += 1;
        self.group_bytes += restored.bytes();
        self.group.push(restored);
        let limits = self.archive.limits();
        let (count_max, bytes_max) = (limits.group_articles_max, limits.group_bytes_max);
        if self.group.len() >= count_max || self.group_bytes >= bytes_max {
            self.send().await?;
        }
        Ok(())
    }

    /// Waits until everything that was taken is durable.
    ///
    /// # Errors
    /// Those of writing it.
    pub async fn settle(&mut self) -> Result<()> {
        self.send().await?;
        while self.land().await? {}
        Ok(())
    }

    /// Gives the group to the writer, once there is room for it.
    async fn send(&mut self) -> Result<()> {
        if self.group.is_empty() {
            return Ok(());
        }
        let bytes_max = self.archive.limits().queue_bytes_max;
        while self.record_count + self.group.len() > ON_THEIR_WAY_MAX
            || self.bytes + self.group_bytes > bytes_max
        {
            if !self.land().await? {
                break;
            }
        }
        let records = std::mem::take(&mut self.group);
        let record_count = records.len();
        let bytes = std::mem::take(&mut self.group_bytes);
        let (sender, done) = oneshot::channel();
        let step = RestoreStep::Records(records);
        self.archive.send(Job::Restore(step, sender)).await?;
        self.record_count += record_count;
        self.bytes += bytes;
        self.on_their_way.push_back(OnItsWay {
            done,
            record_count,
            bytes,
        });
        Ok(())
    }

    /// Waits for the first group on its way. Returns whether there was one.
    async fn land(&mut self) -> Result<bool> {
        let Some(first) = self.on_their_way.pop_front() else {
            return Ok(false);
        };
        self.record_count -= first.record_count;
        self.bytes -= first.bytes;
        first.done.await.map_err(|_| writer_ended())??;
        Ok(true)
    }
}

impl Archive {
    /// Makes a record of another archive ready to be written into this one: proves its id, compresses
    /// it, and takes it apart for the indexes.
    ///
    /// # Errors
    /// `IdMismatch` if the text of an article is not what its id says.
    pub fn prepare_entry(&self, entry: Entry) -> Result<Incoming> {
        let Entry { sequence, record } = entry;
        let Record {
            id,
            archived_at,
            content,
        } = record;
        let restored = match content {
            Content::Article(article) => {
                let prepared = self.prepare(Hashed::new(article, archived_at, Some(id))?)?;
                Restored::Article(Box::new(prepared))
            }
            content @ (Content::Deletion { .. }
            | Content::Tombstone { .. }
            | Content::Quarantine { .. }) => Restored::Other(Box::new(Record {
                id,
                archived_at,
                content,
            })),
        };
        Ok(Incoming { sequence, restored })
    }

    pub(in crate::archive) async fn step(&self, step: RestoreStep) -> Result<()> {
        let (done, result) = oneshot::channel();
        self.send(Job::Restore(step, done)).await?;
        result.await.map_err(|_| writer_ended())?
    }
}
