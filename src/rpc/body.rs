//! The bodies of requests and answers on their way through the limits.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::body::Body;
use tonic::{Code, Status};

use super::convert::{status_of, stopping};
use super::frames::{Frames, Prefix};
use super::observe::Call;
use crate::error::{Error, Reason};

/// Messages of so many bytes need no room of their own: all requests that are let in may have one.
const SMALL_MESSAGE_BYTES: u32 = 64 * 1024;

/// The unit in which room is counted.
pub(super) const ROOM_UNIT_BYTES: u32 = 1024;

/// The room that the current message of a request takes, kept until its answer is sent.
#[derive(Clone, Debug, Default)]
pub(super) struct Claim(Arc<Mutex<Option<OwnedSemaphorePermit>>>);

impl Claim {
    fn set(&self, permit: Option<OwnedSemaphorePermit>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = permit;
    }

    /// The message was dealt with, though the answer goes on.
    pub(super) fn give_back(&self) {
        self.set(None);
    }
}

/// As good as never.
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);

type Waiting = Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send>>;

/// A request's body, whose messages wait until there is room for them.
pub(super) struct RequestBody {
    pub(super) inner: Body,
    pub(super) frames: Frames,
    pub(super) call: Arc<Call>,
    /// Room for large messages, in units.
    pub(super) room: Arc<Semaphore>,
    /// Bytes of a message that is still taken; also what a compressed one is taken for.
    pub(super) message_bytes_max: u32,
    pub(super) claim: Claim,
    /// Whether messages follow each other, each asked for when the one before it was dealt with.
    pub(super) is_many: bool,
    /// The frame that waits for room.
    pub(super) held: Option<(Frame<Bytes>, Waiting)>,
    /// How long the client may keep the stream waiting.
    pub(super) idle: Option<Idle>,
}

/// What a client keeps a stream waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaited {
    /// The next message.
    Message,
    /// The rest of one, which takes room that others wait for.
    Rest,
}

/// A timer that runs while a client keeps a stream waiting.
pub(super) struct Idle {
    timer: Pin<Box<Sleep>>,
    /// How long it may be until the next message. Zero for ever.
    between: Duration,
    /// How long a message may take from its first byte to its last.
    within: Duration,
    running: Option<Awaited>,
}

impl Idle {
    pub(super) fn new(between: Duration, within: Duration) -> Self {
        Self {
            timer: Box::pin(tokio::time::sleep(within)),
            between,
            within,
            running: None,
        }
    }

    /// Something came. A message that goes on does not get more time by that.
    fn came(&mut self, has_begun: bool, is_within: bool) {
        if has_begun || !is_within {
            self.running = None;
        }
    }

    /// Ready with what to tell the client if it kept the stream waiting for too long.
    fn poll(&mut self, is_within: bool, context: &mut Context<'_>) -> Poll<String> {
        let (awaited, limit) = if is_within {
            (Awaited::Rest, self.within)
        } else {
            (Awaited::Message, self.between)
        };
        if limit.is_zero() {
            return Poll::Pending;
        }
        if self.running.replace(awaited) != Some(awaited) {
            // So far away that nobody will see it is as good as never.
            let now = Instant::now();
            let at = now.checked_add(limit).unwrap_or(now + FAR);
            self.timer.as_mut().reset(at);
        }
        ready!(self.timer.as_mut().poll(context));
        Poll::Ready(match awaited {
            Awaited::Message => format!("the client sent nothing for {limit:?}"),
            Awaited::Rest => format!("a message was not complete after {limit:?}"),
        })
    }
}

impl RequestBody {
    /// The units that a message needs.
    fn units(&self, prefix: Prefix) -> u32 {
        let bytes = if prefix.is_compressed {
            self.message_bytes_max
        } else {
            prefix.bytes.min(self.message_bytes_max)
        };
        if bytes <= SMALL_MESSAGE_BYTES {
            return 0;
        }
        bytes.div_ceil(ROOM_UNIT_BYTES)
    }

    /// Whether a frame may pass, or has to wait.
    fn admit(&mut self, frame: Frame<Bytes>) -> Option<Frame<Bytes>> {
        let Some(bytes) = frame.data_ref() else {
            return Some(frame);
        };
        let mut begun = None;
        let mut count = 0;
        self.frames.feed(bytes, |prefix| {
            begun = Some(prefix);
            count += 1;
        });
        self.call.received(count);
        if let Some(idle) = &mut self.idle {
            idle.came(begun.is_some(), self.frames.is_within());
        }
        let Some(prefix) = begun else {
            return Some(frame);
        };
        // The message before it is complete, and is no longer this body's.
        self.claim.set(None);
        let units = self.units(prefix);
        if units == 0 {
            return Some(frame);
        }
        let room = Arc::clone(&self.room);
        let waiting = async move { room.acquire_many_owned(units).await.ok() };
        self.held = Some((frame, Box::pin(waiting)));
        None
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        loop {
            if let Some((_, waiting)) = &mut this.held {
                let permit = ready!(waiting.as_mut().poll(context));
                this.claim.set(permit);
                let held = this.held.take();
                return Poll::Ready(held.map(|(frame, _)| Ok(frame)));
            }
            match Pin::new(&mut this.inner).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => {
                    if let Some(frame) = this.admit(frame) {
                        return Poll::Ready(Some(Ok(frame)));
                    }
                }
                Poll::Ready(Some(Err(status))) => return Poll::Ready(Some(Err(mended(status)))),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => {
                    // A client that is slow with the next message keeps no room by the last one.
                    if this.is_many && !this.frames.is_within() {
                        this.claim.give_back();
                    }
                    let Some(idle) = &mut this.idle else {
                        return Poll::Pending;
                    };
                    let what = ready!(idle.poll(this.frames.is_within(), context));
                    let error = Error::new(Reason::StreamIdle, what);
                    return Poll::Ready(Some(Err(status_of(&error))));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Whoever sends gRPC-Web that is no base64 made the mistake, not the server.
fn mended(status: Status) -> Status {
    if status.code() == Code::Internal && status.message().starts_with("tonic-web: ") {
        return status_of(&Error::new(Reason::MessageMalformed, status.message()));
    }
    status
}

/// Since when a client has not taken what a request has for it.
#[derive(Debug)]
pub(super) struct Progress {
    /// Milliseconds after the start of the server, plus one; 0 while there is nothing to take.
    since: AtomicU64,
    /// How long that may be. Zero for ever.
    limit: Duration,
}

impl Progress {
    /// An answer that is there now. A client that gives it no room at all is never asked for more.
    pub(super) fn new(limit: Duration, now_ms: u64) -> Self {
        let since = AtomicU64::new(now_ms.saturating_add(1));
        Self { since, limit }
    }

    /// Whether a client is behind for too long.
    pub(super) fn is_stalled(&self, now_ms: u64) -> bool {
        let since = self.since.load(Ordering::Relaxed);
        let limit = u64::try_from(self.limit.as_millis()).unwrap_or(u64::MAX);
        limit != 0 && since != 0 && now_ms.saturating_sub(since - 1) > limit
    }

    fn set(&self, since: u64) {
        self.since.store(since, Ordering::Relaxed);
    }

    /// The client has something to take from now on.
    fn begin(&self, origin: Instant) {
        let now = origin.elapsed().as_millis();
        self.set(u64::try_from(now).unwrap_or(u64::MAX).saturating_add(1));
    }
}

/// An answer's body: counts what is sent, and ends at the deadline, or at the stop. All that a request holds is let
/// go with it.
pub(super) struct AnswerBody {
    pub(super) inner: Body,
    pub(super) frames: Frames,
    pub(super) call: Arc<Call>,
    pub(super) deadline: Option<Pin<Box<Sleep>>>,
    pub(super) progress: Arc<Progress>,
    /// Ends it when it has nothing more to say, if it would not end by itself.
    pub(super) stop: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    /// When the server started, from which progress is counted.
    pub(super) origin: Instant,
    /// Set when the body has said its last.
    pub(super) is_over: bool,
    /// The places that the request takes.
    pub(super) _held: (Option<OwnedSemaphorePermit>, Claim),
}

impl AnswerBody {
    /// The last frame, whatever was still to come.
    fn end(&mut self, status: &Status) -> Result<Frame<Bytes>, Status> {
        self.is_over = true;
        // What is still being read for it is read for nobody.
        self.inner = Body::empty();
        self.call.ended(status);
        let mut trailers = HeaderMap::new();
        status.add_header(&mut trailers)?;
        Ok(Frame::trailers(trailers))
    }
}

impl http_body::Body for AnswerBody {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.is_over {
            return Poll::Ready(None);
        }
        this.progress.set(0);
        if let Some(deadline) = &mut this.deadline
            && deadline.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Some(this.end(&deadline_exceeded())));
        }
        let frame = match Pin::new(&mut this.inner).poll_frame(context) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                let stop = this.stop.as_mut();
                ready!(stop.map_or(Poll::Pending, |stop| stop.as_mut().poll(context)));
                return Poll::Ready(Some(this.end(&stopping())));
            }
        };
        match &frame {
            Some(Ok(frame)) => {
                if let Some(bytes) = frame.data_ref() {
                    let mut count = 0;
                    this.frames.feed(bytes, |_| count += 1);
                    this.call.sent(count);
                    this.progress.begin(this.origin);
                } else if let Some(trailers) = frame.trailers_ref() {
                    let status = Status::from_header_map(trailers);
                    let status = status.unwrap_or_else(|| Status::unknown("no status"));
                    this.call.ended(&status);
                }
            }
            Some(Err(status)) => this.call.ended(status),
            None => this.is_over = true,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.is_over || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Bytes of an answer that are handed over at a time.
const PIECE_BYTES: usize = 64 * 1024;

/// An answer that is in memory whole. It goes out in pieces, so that its place is free when the client
/// has taken nearly all of it and not before, and a client that takes nothing is noticed.
pub(super) struct Pieces {
    rest: Bytes,
    progress: Arc<Progress>,
    /// When the server started, from which progress is counted.
    origin: Instant,
    _held: OwnedSemaphorePermit,
}

impl Pieces {
    pub(super) fn new(
        bytes: Bytes,
        progress: Arc<Progress>,
        origin: Instant,
        held: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            rest: bytes,
            progress,
            origin,
            _held: held,
        }
    }
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        this.progress.set(0);
        if this.rest.is_empty() {
            return Poll::Ready(None);
        }
        let piece = this.rest.split_to(PIECE_BYTES.min(this.rest.len()));
        this.progress.begin(this.origin);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(u64::try_from(self.rest.len()).unwrap_or(u64::MAX))
    }
}

/// What is answered when a request took too long.
pub(super) fn deadline_exceeded() -> Status {
    let what = "the time for this request is over; a write may have been done";
    status_of(&Error::new(Reason::DeadlineExceeded, what))
}
