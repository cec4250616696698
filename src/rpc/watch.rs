//! The change feed as a stream: reads what is there, then waits for more. Nothing is held while a
//! slow client makes it wait.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::convert::{message_of, selector_of, shutting_down, status_of, timestamp_of, view_of};
use super::proto;
use crate::archive::{Archive, Change, FeedStart, PageBudget, Selector, View};
use crate::error::{Error, Reason, Result};

/// How often a client is told that nothing has happened, unless it says.
const HEARTBEAT: Duration = Duration::from_secs(10);
const HEARTBEAT_SECONDS_MIN: i64 = 1;
const HEARTBEAT_SECONDS_MAX: i64 = 3600;

/// A client's wish to be told of changes.
pub(super) struct Watch {
    archive: Archive,
    stop: CancellationToken,
    selector: Selector,
    budget: PageBudget,
    heartbeat: Duration,
    /// The next sequence to look at.
    next: u64,
    /// Whether the client knows where it begins.
    has_begun: bool,
}

impl Watch {
    /// Validates a request.
    pub(super) fn new(
        archive: Archive,
        stop: CancellationToken,
        request: proto::WatchArticlesRequest,
    ) -> Result<Self> {
        let limits = archive.limits();
        let selector = selector_of(request.selector, limits)?;
        let budget = PageBudget {
            view: view_of(request.view, View::Full)?,
            articles_max: usize::MAX,
            bytes_max: limits.scan_chunk_bytes,
        };
        let heartbeat = heartbeat_of(request.heartbeat_interval)?;
        let next = archive.feed_start(match request.from_sequence {
            0 => FeedStart::Now,
            sequence => FeedStart::At(sequence),
        })?;
        Ok(Self {
            archive,
            stop,
            selector,
            budget,
            heartbeat,
            next,
            has_begun: request.from_sequence != 0,
        })
    }

    /// Sends changes until the client goes away, the server stops, or no more can come.
    pub(super) async fn run(
        mut self,
        messages: mpsc::Sender<Result<proto::WatchArticlesResponse, Status>>,
    ) {
        let stop = self.stop.clone();
        loop {
            // First a place for the message, then what is in it: it is never older than it must be.
            let place = tokio::select! {
                place = messages.reserve() => place,
                () = stop.cancelled() => {
                    // Waits for the reader; the server's drain puts a bound on that.
                    let _ = messages.send(Err(status_of(&shutting_down()))).await;
                    return;
                }
            };
            let Ok(place) = place else { return };
            let message = tokio::select! {
                message = self.next_message() => message,
                () = stop.cancelled() => Err(shutting_down()),
                () = messages.closed() => return,
            };
            match message {
                Ok(Some(message)) => place.send(Ok(message)),
                Ok(None) => return,
                Err(error) => {
                    place.send(Err(status_of(&error)));
                    return;
                }
            }
        }
    }

    /// The next changes, or a heartbeat; none behind the last sequence that the selector means.
    async fn next_message(&mut self) -> Result<Option<proto::WatchArticlesResponse>> {
        let heartbeat = tokio::time::sleep(self.heartbeat);
        tokio::pin!(heartbeat);
        loop {
            if self.next > self.selector.max_sequence() {
                return Ok(None);
            }
            if !std::mem::replace(&mut self.has_begun, true) {
                // From here on the client can resume, whatever happens before the first change.
                return Ok(Some(self.message(Vec::new())));
            }
            let read = self
                .archive
                .changes(self.next, &self.selector, &self.budget)
                .await?;
            self.next = read.sequence + 1;
            let is_over = self.next > self.selector.max_sequence();
            if !read.changes.is_empty() || is_over {
                return Ok(Some(self.message(read.changes)));
            }
            tokio::select! {
                biased;
                () = &mut heartbeat => return Ok(Some(self.message(Vec::new()))),
                committed = self.archive.committed_to(self.next) => committed?,
            }
        }
    }

    fn message(&self, changes: Vec<Change>) -> proto::WatchArticlesResponse {
        let changes = changes.into_iter();
        proto::WatchArticlesResponse {
            changes: changes
                .map(|change| change_message(change, self.budget.view))
                .collect(),
            sequence: Some(self.next - 1),
        }
    }
}

fn heartbeat_of(interval: Option<prost_types::Duration>) -> Result<Duration> {
    let Some(interval) = interval else {
        return Ok(HEARTBEAT);
    };
    let (seconds, nanos) = (interval.seconds, interval.nanos);
    let is_whole = (HEARTBEAT_SECONDS_MIN..HEARTBEAT_SECONDS_MAX).contains(&seconds) && nanos >= 0
        || (seconds, nanos) == (HEARTBEAT_SECONDS_MAX, 0);
    match (u64::try_from(seconds), u32::try_from(nanos)) {
        (Ok(seconds), Ok(nanos)) if is_whole && nanos < 1_000_000_000 => {
            Ok(Duration::new(seconds, nanos))
        }
        _ => {
            let what = format!(
                "{seconds} s and {nanos} ns, it needs {HEARTBEAT_SECONDS_MIN} to \
                 {HEARTBEAT_SECONDS_MAX} s"
            );
            Err(Error::field(
                Reason::ArgumentInvalid,
                "heartbeat_interval",
                what,
            ))
        }
    }
}

fn change_message(change: Change, view: View) -> proto::Change {
    let kind = match change {
        Change::Stored(stored) => proto::change::Kind::Stored(message_of(stored, view)),
        Change::Deleted {
            sequence,
            id,
            article,
            deleted_at,
            reason,
        } => proto::change::Kind::Deleted(proto::Deletion {
            sequence,
            id: id.to_string(),
            article_sequence: article,
            deleted_at: Some(timestamp_of(deleted_at)),
            reason,
        }),
    };
    proto::Change { kind: Some(kind) }
}
