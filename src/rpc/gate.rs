//! What every request passes before it is served: who asks, whether it may, and the limits.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service;
use tracing::Instrument;

use super::auth::{Credentials, Identity};
use super::body::deadline_exceeded;
use super::body::{AnswerBody, Claim, Idle, Progress, ROOM_UNIT_BYTES, RequestBody};
use super::browser::Origins;
use super::caller::{Caller, Callers, REQUEST_ID, request_id};
use super::convert::status_of;
use super::frames::Frames;
use super::headers::{bearer, check_headers, min_sequence_of, timeout_of};
use super::limits::ServiceLimits;
use super::methods::{Method, Shape};
use super::observe::{Call, RequestMetrics};
use super::replica;
use super::trace::Traces;
use crate::archive::Archive;
use crate::error::{Error, Reason, Result};

/// Keys of the rate limiter above which those that are at rest are forgotten, and how often at most:
/// it looks at all of them.
const RATE_KEYS_MAX: usize = 10_000;
const RATE_KEYS_PAUSE_MS: u64 = 1000;

/// What all connections share.
pub(super) struct Shared {
    pub(super) archive: Archive,
    pub(super) limits: ServiceLimits,
    message_bytes_max: u32,
    article_message_bytes_max: u32,
    access: Option<watch::Receiver<Arc<Credentials>>>,
    /// The sites that browsers may come from, if any may.
    origins: Option<Origins>,
    traces: Option<Traces>,
    rate: Option<DefaultKeyedRateLimiter<String>>,
    /// When keys at rest were forgotten last.
    rate_cleaned_ms: AtomicU64,
    requests: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    /// Streams of those who need not say who they are: they take no place of the others.
    open_streams: Arc<Semaphore>,
    room: Arc<Semaphore>,
    pub(super) metrics: RequestMetrics,
    pub(super) origin: Instant,
    pub(super) stop: CancellationToken,
}

impl Shared {
    pub(super) fn new(
        limits: ServiceLimits,
        archive: &Archive,
        callers: Callers,
        metrics: RequestMetrics,
        stop: CancellationToken,
    ) -> Self {
        let permits = |count: u32| {
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS)))
        };
        let narrow = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let article_message_bytes_max = narrow(archive.limits().article_message_bytes_max);
        // A message that fits its own limit has to fit this one.
        let room = limits
            .request_bytes_in_flight_max
            .max(article_message_bytes_max);
        Self {
            archive: archive.clone(),
            limits,
            message_bytes_max: narrow(archive.limits().message_bytes_max),
            article_message_bytes_max,
            access: callers.access,
            origins: callers.origins,
            traces: callers.traces,
            rate: NonZeroU32::new(limits.requests_per_second_max)
                .map(|rate| RateLimiter::keyed(Quota::per_second(rate))),
            rate_cleaned_ms: AtomicU64::new(0),
            requests: permits(limits.requests_max),
            streams: permits(limits.streams_max),
            open_streams: permits(limits.streams_max),
            room: permits(room.div_ceil(ROOM_UNIT_BYTES)),
            metrics,
            origin: Instant::now(),
            stop,
        }
    }

    /// Milliseconds since the start.
    pub(super) fn now_ms(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// One connection.
#[derive(Debug, Default)]
pub(super) struct Connection {
    pub(super) peer: Option<SocketAddr>,
    /// The subject of the client's certificate.
    pub(super) subject: Option<String>,
    answers: Mutex<Vec<Weak<Progress>>>,
}

impl Connection {
    pub(super) fn new(peer: Option<SocketAddr>, subject: Option<String>) -> Self {
        Self {
            peer,
            subject,
            answers: Mutex::default(),
        }
    }

    /// Whether the client does not take what one of its requests has for it.
    pub(super) fn is_stalled(&self, shared: &Shared) -> bool {
        let now = shared.now_ms();
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.retain(|answer| answer.strong_count() > 0);
        let mut open = answers.iter().filter_map(Weak::upgrade);
        open.any(|answer| answer.is_stalled(now))
    }

    pub(super) fn follow(&self, progress: &Arc<Progress>) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.push(Arc::downgrade(progress));
    }
}

/// Where the requests of one connection are let in.
#[derive(Clone)]
pub(super) struct Door {
    pub(super) shared: Arc<Shared>,
    pub(super) connection: Arc<Connection>,
}

/// The services of one connection, behind their limits.
#[derive(Clone)]
pub(super) struct Gate {
    pub(super) door: Door,
    pub(super) routes: Routes,
}

/// What a request was let in with.
pub(super) struct Admission {
    identity: Option<Arc<Identity>>,
    /// The place that it takes while it is worked on.
    pub(super) permit: Option<OwnedSemaphorePermit>,
    pub(super) deadline: Option<Instant>,
    /// The sequence that the archive has to have come to.
    min_sequence: Option<u64>,
}

impl Service<Request<Body>> for Gate {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let gate = self.clone();
        let method = Method::of_path(request.uri().path());
        let id = request_id(request.headers());
        // Of the highest level, so that lines of every level say which request they are about.
        let span = tracing::error_span!(
            "request",
            otel.name = method.name,
            method = method.name,
            id = &*id,
            identity = tracing::field::Empty,
            trace = tracing::field::Empty
        );
        Box::pin(async move { Ok(gate.answer(method, id, request).await) }.instrument(span))
    }
}

impl Gate {
    async fn answer(
        mut self,
        method: &'static Method,
        id: Arc<str>,
        mut request: Request<Body>,
    ) -> Response<Body> {
        let shared = &self.door.shared;
        let traced = shared.traces.as_ref();
        let traced = traced.and_then(|traces| traces.begin(method, &id, request.headers()));
        if let Some(traced) = &traced {
            tracing::Span::current().record("trace", traced.trace_id());
        }
        let call = Arc::new(Call::begin(&shared.metrics, method, traced));
        let admitted = self.door.admit(method, request.headers());
        let mut response = match admitted {
            Err(error) => {
                let status = status_of(&error);
                call.ended(&status);
                status.into_http()
            }
            Ok(Admission {
                identity,
                permit,
                deadline,
                min_sequence,
            }) => {
                if let Some(identity) = &identity {
                    tracing::Span::current().record("identity", identity.name.as_str());
                }
                let request_id = Arc::clone(&id);
                request.extensions_mut().insert(Caller {
                    identity,
                    request_id,
                });
                let claim = Claim::default();
                let request = request.map(|body| self.request_body(body, method, &call, &claim));
                let reached = match min_sequence {
                    None => Ok(()),
                    Some(asked) => replica::reach(asked, deadline, shared).await,
                };
                let served = async {
                    match reached {
                        Ok(()) => self.routes.call(request).await,
                        Err(error) => Ok(status_of(&error).into_http()),
                    }
                };
                let response = match deadline {
                    None => served.await,
                    Some(deadline) => tokio::time::timeout_at(deadline, served)
                        .await
                        .unwrap_or_else(|_| Ok(deadline_exceeded().into_http())),
                };
                let response = response.unwrap_or_else(|never| match never {});
                self.answered(response, method, call, deadline, (permit, claim))
            }
        };
        if let Ok(value) = HeaderValue::from_str(&id) {
            response.headers_mut().insert(REQUEST_ID, value);
        }
        response
    }

    fn request_body(&self, inner: Body, method: &Method, call: &Arc<Call>, claim: &Claim) -> Body {
        let shared = &self.door.shared;
        let limits = &shared.limits;
        // A request with one answer has its deadline.
        let waits = method.shape != Shape::Unary;
        Body::new(RequestBody {
            inner,
            frames: Frames::default(),
            call: Arc::clone(call),
            room: Arc::clone(&shared.room),
            message_bytes_max: if method.takes_articles {
                shared.article_message_bytes_max
            } else {
                shared.message_bytes_max
            },
            claim: claim.clone(),
            is_many: method.shape == Shape::BidiStream,
            held: None,
            idle: waits.then(|| Idle::new(limits.stream_idle_max, limits.request_deadline)),
        })
    }

    fn answered(
        &self,
        response: Response<Body>,
        method: &Method,
        call: Arc<Call>,
        deadline: Option<Instant>,
        held: (Option<OwnedSemaphorePermit>, Claim),
    ) -> Response<Body> {
        if let Some(status) = Status::from_header_map(response.headers()) {
            call.ended(&status);
        } else if !response.status().is_success() {
            call.ended(&Status::unknown("no status"));
        }
        let shared = &self.door.shared;
        let patience = match method.shape {
            Shape::Unary => shared.limits.request_deadline,
            Shape::ServerStream | Shape::BidiStream => shared.limits.stream_idle_max,
        };
        let progress = Arc::new(Progress::new(patience, shared.now_ms()));
        self.door.connection.follow(&progress);
        if method.shape == Shape::ServerStream {
            // What was asked is known by now, and the answer may last for days.
            held.1.give_back();
        }
        // The streams of our own services end by themselves.
        let is_foreign = method.shape != Shape::Unary && !method.is_ours();
        let stop = is_foreign.then(|| Box::pin(shared.stop.clone().cancelled_owned()));
        let origin = shared.origin;
        response.map(|inner| {
            Body::new(AnswerBody {
                inner,
                frames: Frames::default(),
                call,
                deadline: deadline.map(|at| Box::pin(tokio::time::sleep_until(at))),
                progress,
                stop,
                origin,
                is_over: false,
                _held: held,
            })
        })
    }
}

impl Door {
    /// Lets a request in, or says why not.
    pub(super) fn admit(&self, method: &Method, headers: &HeaderMap) -> Result<Admission> {
        check_headers(headers, self.shared.limits.header_bytes_max)?;
        if let Some(origins) = &self.shared.origins {
            origins.check(headers)?;
        }
        let identity = match self.identity(method, headers) {
            Ok(identity) => identity,
            // Nobody gets around the rate by saying that he is somebody else.
            Err(error) => return Err(self.check_rate(None).err().unwrap_or(error)),
        };
        let asked = timeout_of(headers)?;
        let min_sequence = min_sequence_of(headers)?.filter(|_| method.is_ours());
        if method.role.is_some() {
            self.check_rate(identity.as_deref())?;
        }
        let shared = &self.shared;
        let permit = match (method.shape, method.role) {
            // Whoever asks whether the server lives gets an answer however much it has to do.
            (Shape::Unary, None) => None,
            (Shape::Unary, Some(_)) => Some(place(
                &shared.requests,
                "requests",
                shared.limits.requests_max,
            )?),
            (Shape::ServerStream | Shape::BidiStream, None) => Some(place(
                &shared.open_streams,
                "streams of health",
                shared.limits.streams_max,
            )?),
            (Shape::ServerStream | Shape::BidiStream, Some(_)) => Some(place(
                &shared.streams,
                "streams",
                shared.limits.streams_max,
            )?),
        };
        let most = (method.shape == Shape::Unary).then_some(shared.limits.request_deadline);
        let timeout = match (asked, most) {
            (Some(asked), Some(most)) => Some(asked.min(most)),
            (asked, most) => asked.or(most),
        };
        Ok(Admission {
            identity,
            permit,
            deadline: timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
            min_sequence,
        })
    }

    /// Finds out who asks, and whether he may.
    fn identity(&self, method: &Method, headers: &HeaderMap) -> Result<Option<Arc<Identity>>> {
        let (Some(access), Some(role)) = (&self.shared.access, method.role) else {
            return Ok(None);
        };
        let known = Arc::clone(&access.borrow());
        let identity = match (bearer(headers)?, &self.connection.subject) {
            (Some(token), _) => known.of_token(token).ok_or_else(|| {
                let what = "the token in the header `authorization` is not known, or was revoked";
                Error::new(Reason::CredentialsUnknown, what)
            }),
            (None, Some(subject)) => known.of_subject(subject).ok_or_else(|| {
                let what = format!("no identity has a certificate with the subject {subject:?}");
                Error::new(Reason::CredentialsUnknown, what)
            }),
            (None, None) => {
                let what = "this server wants to know who asks; send the header \
                            `authorization: Bearer TOKEN`, or a certificate";
                Err(Error::new(Reason::CredentialsMissing, what))
            }
        }?;
        if identity.role < role {
            let what = format!(
                "{} is for the role {role}, and {:?} has the role {}",
                method.name, identity.name, identity.role
            );
            return Err(Error::new(Reason::RoleInsufficient, what));
        }
        Ok(Some(identity))
    }

    fn check_rate(&self, identity: Option<&Identity>) -> Result<()> {
        let Some(rate) = &self.shared.rate else {
            return Ok(());
        };
        let key = match (identity, self.connection.peer) {
            (Some(identity), _) => identity.name.clone(),
            (None, Some(peer)) => address(peer.ip()),
            (None, None) => String::new(),
        };
        let now = self.shared.now_ms();
        let cleaned = &self.shared.rate_cleaned_ms;
        if now.saturating_sub(cleaned.load(Ordering::Relaxed)) > RATE_KEYS_PAUSE_MS
            && rate.len() > RATE_KEYS_MAX
        {
            cleaned.store(now, Ordering::Relaxed);
            rate.retain_recent();
        }
        rate.check_key(&key).map_err(|early| {
            let wait = early.wait_time_from(DefaultClock::default().now());
            let what = format!(
                "{key:?} sends more than {} requests in a second; wait {wait:?}",
                self.shared.limits.requests_per_second_max
            );
            Error::new(Reason::RateExceeded, what).with_retry_after(wait)
        })
    }
}

/// Who has a part of the IPv6 address space has 2^64 addresses of it.
fn address(ip: IpAddr) -> String {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")
        }
    }
}

fn place(places: &Arc<Semaphore>, what: &str, most: u32) -> Result<OwnedSemaphorePermit> {
    Arc::clone(places).try_acquire_owned().map_err(|_| {
        let what = format!("the server has {most} {what} open, which is as many as it takes");
        Error::new(Reason::TooManyRequests, what)
    })
}
