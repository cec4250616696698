//! Groups of puts, and of records that are copied, on their way to being durable, in the order in
//! which they were written.
//!
//! An engine on a disk is done with a group before the next one is gathered. One in object storage
//! takes as long as some requests over a network, but takes further groups meanwhile; each is
//! acknowledged when it and all before it are durable.

use std::collections::VecDeque;
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::super::digests::DigestChange;
use super::super::job::Put;
use crate::error::{Error, Result};
use crate::key::Sequence;
use crate::store::Commit;

/// Records on their way, after which no further group is begun. What bounds their bytes is the room
/// that they hold in the queue.
pub(in crate::archive) const ON_THEIR_WAY_MAX: usize = 8192;

/// A batch that was written, and what becomes known once it is durable.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) commit: Commit,
    pub(super) started: Instant,
    pub(super) last: Sequence,
    pub(super) digests: Vec<DigestChange>,
}

/// Who waits for an article, and its share of the queue.
pub(super) type Caller = (oneshot::Sender<Result<Put>>, OwnedSemaphorePermit);

/// A group and its answers.
#[derive(Debug)]
pub(super) struct Flight {
    /// Nothing if the group was of duplicates, which are as durable as what is before them.
    pub(super) written: Option<Written>,
    pub(super) record_count: usize,
    pub(super) waiting: Waiting,
}

/// Who waits for a group.
#[derive(Debug)]
pub(super) enum Waiting {
    /// Those who sent its articles, and what they are told.
    Puts(Vec<Put>, Vec<Caller>),
    /// The one who copies records, if this is the last batch of what was given.
    Copy(Option<oneshot::Sender<Result<()>>>),
}

/// All groups on their way.
#[derive(Debug, Default)]
pub(super) struct Flights {
    groups: VecDeque<Flight>,
    record_count: usize,
    /// Why a group did not become durable: what is behind it is not acknowledged either.
    broken: Option<Error>,
}

impl Flights {
    pub(super) fn has_room(&self) -> bool {
        self.record_count < ON_THEIR_WAY_MAX
    }

    pub(super) fn push(&mut self, flight: Flight) {
        self.record_count += flight.record_count;
        self.groups.push_back(flight);
    }

    /// The first group once it is durable or has failed, and how it went; none if there is none.
    /// Nothing is lost if nobody waits to the end.
    pub(super) async fn next(&mut self) -> Option<(Flight, Result<()>)> {
        let written = self.groups.front_mut()?.written.as_mut();
        let result = match (written, &self.broken) {
            (_, Some(cause)) => Err(cause.clone()),
            (Some(written), None) => (&mut written.commit).await,
            (None, None) => Ok(()),
        };
        if let Err(error) = &result {
            self.broken.get_or_insert_with(|| error.clone());
        }
        let flight = self.groups.pop_front()?;
        self.record_count -= flight.record_count;
        Some((flight, result))
    }
}

/// Tells the callers of a group.
pub(super) fn answer(callers: Vec<Caller>, answers: impl Iterator<Item = Result<Put>>) {
    for ((done, _room), answer) in callers.into_iter().zip(answers) {
        // The caller may have gone; the article is stored all the same.
        let _ = done.send(answer);
    }
}
