//! Backups: a stretch of the log in one file or stream, taken while writes go on, restored into an
//! archive on any engine, and followed continuously into a folder.
//!
//! A backup holds the log as of one sequence. A delete that comes while it is taken turns a record
//! that it has yet to read into a tombstone, which names a deletion behind that sequence; the backup
//! then goes on to that deletion, so that it never names a record that it does not hold.

mod decode;
mod follow;
mod format;
mod receive;
mod restore;

use std::time::Duration;

pub use self::decode::Decoder;
pub(super) use self::follow::FollowState;
pub use self::follow::{BackupStatus, Follower};
pub use self::format::{ArchiveId, Encoder, Entry, Header, Trailer};
pub use self::receive::{Incoming, Receiver};
pub(super) use self::receive::{RestoreStep, Restored};
pub(super) use self::restore::may_be_same;
pub use self::restore::{Chain, RestoreSummary};
use super::Archive;
use super::walk::{LogWalk, Pace, RawRecord};
use crate::article::ContentHash;
use crate::error::{Error, Reason, Result};
use crate::key::Sequence;
use crate::record::{Content, Record, UNKNOWN_ID};

/// How long a backup waits for a delete that it came by to be durable.
const COMMIT_WAIT_MAX: Duration = Duration::from_secs(30);

/// A backup in the making, which is pulled piece by piece.
#[derive(Debug)]
pub struct Backup {
    log: LogReader,
    state: State,
}

#[derive(Debug)]
enum State {
    New(Header),
    Going(Box<Encoder>),
    /// What is intact before it was given away.
    Failed(Error),
    Done,
}

impl Backup {
    /// The next bytes of the backup; none at its end.
    ///
    /// # Errors
    /// `RecordDamaged` if a record cannot prove itself, `StoreFailed`, `StoreDamaged`. All records
    /// before were given away then, and there is no end to them, so that it is no backup.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            match std::mem::replace(&mut self.state, State::Done) {
                State::New(header) => {
                    let (encoder, bytes) = Encoder::new(&header);
                    self.state = State::Going(Box::new(encoder));
                    return Ok(Some(bytes));
                }
                State::Going(mut encoder) => {
                    let entries = match self.log.next().await {
                        Ok(Some(entries)) => entries,
                        Ok(None) => return Ok(Some(encoder.finish()?)),
                        Err(error) => {
                            self.state = State::Failed(error);
                            match encoder.flush()? {
                                Some(bytes) => return Ok(Some(bytes)),
                                None => continue,
                            }
                        }
                    };
                    let bytes = encoder.add_all(&entries)?;
                    self.state = State::Going(encoder);
                    if !bytes.is_empty() {
                        return Ok(Some(bytes));
                    }
                }
                State::Failed(error) => return Err(error),
                State::Done => return Ok(None),
            }
        }
    }
}

/// Reads the log in order, every record proved, up to a sequence or a little further.
#[derive(Debug)]
struct LogReader {
    archive: Archive,
    /// The next sequence to read.
    next: Sequence,
    /// The last one; grows if a tombstone names a later deletion.
    last: Sequence,
}

impl LogReader {
    /// The next records in order; none at the end. What is intact goes before what is not.
    async fn next(&mut self) -> Result<Option<Vec<Entry>>> {
        if self.next > self.last {
            return Ok(None);
        }
        self.wait_for_last().await?;
        let store = &*self.archive.inner.store;
        // One step of a walk that is begun anew each time, so that nothing of it is held meanwhile.
        let mut walk = LogWalk::between(store, self.next, self.last);
        let mut pace = Pace::new(0);
        let mut entries = Vec::new();
        while entries.is_empty() {
            let Some(step) = walk.next(&mut pace).await? else {
                let what = format!("log record {} is missing", self.next);
                return Err(damaged(what));
            };
            for raw in step.records {
                let record = match self.prove(&raw).await {
                    Err(_) if !entries.is_empty() => return Ok(Some(entries)),
                    record => record?,
                };
                if let Content::Tombstone { deletion, .. } = &record.content {
                    self.last = self.last.max(*deletion);
                }
                entries.push(Entry {
                    sequence: raw.sequence,
                    record,
                });
                self.next += 1;
            }
        }
        Ok(Some(entries))
    }

    /// Waits until the last record is durable: a tombstone may be seen before it is.
    async fn wait_for_last(&self) -> Result<()> {
        let mut committed = self.archive.inner.committed.clone();
        let waiting = committed.wait_for(|committed| *committed >= self.last);
        match tokio::time::timeout(COMMIT_WAIT_MAX, waiting).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(super::writer_ended()),
            Err(_) => Err(Error::new(
                Reason::StoreFailed,
                format!("record {} does not become durable", self.last),
            )),
        }
    }

    async fn prove(&self, raw: &RawRecord) -> Result<Record> {
        if raw.sequence != self.next {
            return Err(damaged(format!("log record {} is missing", self.next)));
        }
        match raw.decode(&self.archive.inner.dictionaries) {
            Ok(record) => Ok(record),
            // A delete may have come between the rows of a large record.
            Err(_) => self.archive.reader().record(raw.sequence).await,
        }
    }
}

fn damaged(what: String) -> Error {
    Error::new(Reason::RecordDamaged, what)
        .with_advice("run `pressmark verify --repair`, which sets it aside, and back up again")
}

impl Archive {
    /// Begins a backup of the log from a sequence on, as of now.
    ///
    /// # Errors
    /// `ArgumentInvalid` if the sequence is more than one behind the last one given.
    pub async fn backup(&self, first: Sequence) -> Result<Backup> {
        let last = self.committed();
        let first = first.max(1);
        if first > last + 1 {
            let what = format!(
                "{first} is behind the end of the log, the next record will be {}",
                last + 1
            );
            return Err(Error::field(Reason::ArgumentInvalid, "from_sequence", what));
        }
        let header = self.backup_header(first).await?;
        Ok(Backup {
            log: LogReader {
                archive: self.clone(),
                next: first,
                last,
            },
            state: State::New(header),
        })
    }

    /// The header of a backup that begins at a sequence.
    async fn backup_header(&self, first: Sequence) -> Result<Header> {
        Ok(Header {
            archive_id: self.archive_id().await?,
            first,
            before: self.id_at(first - 1).await?,
        })
    }

    /// The random name of the archive.
    ///
    /// # Errors
    /// `IndexDamaged` if it is lost.
    pub async fn archive_id(&self) -> Result<ArchiveId> {
        super::open::read_id(&*self.inner.store).await
    }

    /// The id that the record at a sequence names; the unknown one before the first.
    ///
    /// # Errors
    /// `RecordDamaged` if there is none.
    pub async fn id_at(&self, sequence: Sequence) -> Result<ContentHash> {
        if sequence == 0 {
            return Ok(UNKNOWN_ID);
        }
        let head = self.reader().head(sequence).await?;
        crate::record::peek_id(sequence, &head)
    }
}
