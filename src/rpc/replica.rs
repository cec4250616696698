//! What there is to say of a server that follows another one: whether it is fresh enough to serve, and
//! waiting until it has what a client knows of.

use std::time::Duration;

use tokio::time::Instant;

use super::convert::shutting_down;
use super::gate::Shared;
use super::headers::MIN_SEQUENCE;
use crate::archive::Archive;
use crate::error::{Error, Reason, Result};

/// The share of a request's time that is kept for its answer: a client whose time is over hears nothing.
const SHARE_KEPT: u32 = 10;

/// Waits until the archive has come to a sequence, for most of the time that the request has.
///
/// # Errors
/// `SequenceAhead` if it has not; `ShuttingDown`.
pub(super) async fn reach(asked: u64, deadline: Option<Instant>, shared: &Shared) -> Result<()> {
    let archive = &shared.archive;
    let most = shared.limits.request_deadline;
    let left = deadline.map_or(most, |deadline| {
        deadline.saturating_duration_since(Instant::now()).min(most)
    });
    let wait = left.saturating_sub(left / SHARE_KEPT);
    let reached = tokio::select! {
        reached = tokio::time::timeout(wait, archive.committed_to(asked)) => reached,
        () = shared.stop.cancelled() => return Err(shutting_down()),
    };
    reached.unwrap_or_else(|_| {
        let last = archive.committed();
        let what = format!(
            "{MIN_SEQUENCE} asks for sequence {asked}, and after {wait:.1?} the archive has come to \
             {last} here"
        );
        Err(Error::new(Reason::SequenceAhead, what))
    })
}

/// Whether a server should get requests: one that writes if it takes writes, a replica if it is not
/// too far behind. One whose archive was moved does: it answers all reads.
///
/// # Errors
/// `WriterReplaced`, `StoreFailed`, `WritesStopped`, `ShuttingDown`; `ReplicaBehind` with how far.
pub(super) fn check_serves(archive: &Archive, staleness_max: Duration) -> Result<()> {
    let Some(staleness) = archive.staleness() else {
        return archive.check_writes();
    };
    archive.check_not_replaced()?;
    if staleness <= staleness_max {
        return Ok(());
    }
    let what = format!(
        "this replica may lack what was written in the last {staleness:.1?}, the limit is \
         {staleness_max:?}"
    );
    Err(Error::new(Reason::ReplicaBehind, what))
}
