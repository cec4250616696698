//! What a replica has seen for certain.
//!
//! SlateDB's reader looks at intervals for newer tables and newer files of its log, and tells nobody
//! whether it could. So its reader of the log is wrapped: a look began when the last file was asked
//! for, and is complete once all files up to that one were read to their end. The rows are to be
//! read a moment later, and certainly when the next look begins, because one follows the other; so
//! that is when the look before is told of.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use slatedb::wal::{SlateDbWalReader, WalError, WalFileRange, WalIterator, WalReader, WalRows};
use tokio::sync::watch;

use super::super::Look;

/// A look in the making.
#[derive(Clone, Copy, Debug)]
struct Begun {
    at: Instant,
    is_complete: bool,
}

/// The looks of one replica.
#[derive(Debug)]
pub(super) struct Looks {
    /// Held for moments, and never across an await.
    begun: Mutex<Begun>,
    looks: watch::Sender<Look>,
}

impl Looks {
    /// None so far.
    pub(super) fn new() -> Self {
        let now = Instant::now();
        let (looks, _) = watch::channel(Look {
            number: 0,
            complete_to: now,
        });
        Self {
            begun: Mutex::new(Begun {
                at: now,
                is_complete: false,
            }),
            looks,
        }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Look> {
        self.looks.subscribe()
    }

    /// There may be more to read.
    pub(super) fn moved(&self) {
        self.looks.send_modify(|look| look.number += 1);
    }

    fn begun(&self) -> MutexGuard<'_, Begun> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was looked at can be read, if it was complete.
    pub(super) fn ended(&self) {
        let begun = *self.begun();
        if begun.is_complete {
            self.looks.send_modify(|look| {
                look.number += 1;
                look.complete_to = look.complete_to.max(begun.at);
            });
        }
    }

    fn begin(&self) {
        self.ended();
        *self.begun() = Begun {
            at: Instant::now(),
            is_complete: false,
        };
    }

    fn complete(&self) {
        self.begun().is_complete = true;
    }
}

/// The reader of the log.
pub(super) struct Sight {
    log: SlateDbWalReader,
    looks: Arc<Looks>,
}

impl Sight {
    pub(super) fn new(log: SlateDbWalReader, looks: Arc<Looks>) -> Self {
        Self { log, looks }
    }
}

impl fmt::Debug for Sight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sight")
            .field("looks", &self.looks)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl WalReader for Sight {
    async fn iterator(&self, files: WalFileRange) -> Result<Box<dyn WalIterator>, WalError> {
        Ok(Box::new(Reading {
            rows: self.log.iterator(files).await?,
            looks: Arc::clone(&self.looks),
        }))
    }

    async fn last_wal_file_id(&self, read_to: u64) -> Result<u64, WalError> {
        self.looks.begin();
        let last = self.log.last_wal_file_id(read_to).await?;
        if last <= read_to {
            self.looks.complete();
        }
        Ok(last)
    }
}

/// Files of the log that are being read.
struct Reading {
    rows: Box<dyn WalIterator>,
    looks: Arc<Looks>,
}

#[async_trait]
impl WalIterator for Reading {
    async fn next(&mut self) -> Result<Option<WalRows>, WalError> {
        let rows = self.rows.next().await?;
        if rows.is_none() {
            self.looks.complete();
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_read_to_its_end_is_told() {
        let looks = Looks::new();
        let seen = looks.subscribe();
        let first = seen.borrow().complete_to;
        looks.begin();
        looks.begin();
        assert_eq!(seen.borrow().complete_to, first, "the first one failed");
        looks.complete();
        assert_eq!(seen.borrow().complete_to, first, "it may not be read yet");
        looks.moved();
        assert_eq!(seen.borrow().complete_to, first);
        looks.begin();
        let second = seen.borrow().complete_to;
        assert!(second > first);
        looks.begin();
        assert_eq!(seen.borrow().complete_to, second);
    }
}
