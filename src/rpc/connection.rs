//! Connections: how many there are, how they begin, how old they get, and how they end.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tonic::service::Routes;
use tower::{Service, ServiceExt};

use super::browser::{Front, Origins};
use super::gate::{Connection, Door, Gate, Shared};
use super::tls;
use super::{CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES};

/// How long a client may take from the first byte to the end of the handshakes of TLS and HTTP/2.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The bytes with which every client of HTTP/2 begins: 24 that never change, and the head of a frame.
const PREFACE_BYTES: usize = 24 + 9;

/// The least that hyper takes for a buffer.
const HTTP1_BUFFER_BYTES_MIN: usize = 8 * 1024;

/// How long the answer to a ping may take, unless pings come more often.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// How many times the limit of headers HTTP/2 takes. Between the limit and this, whoever sends too
/// much is told so in the form of all errors; above it HTTP/2 refuses, in its own.
const HEADERS_TIMES: u32 = 2;

/// How often a connection is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Pause after the system refused a connection, mostly for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Clients that cancel a lot are no attackers.
const PENDING_RESETS_MAX: usize = 200;

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocols {
    /// HTTP/2 alone.
    Http2,
    /// HTTP/1.1 as well, for browsers.
    Http1And2,
}

/// Makes the service of a connection.
pub(super) trait Serve: Clone + Send + Sync + 'static {
    /// The service.
    type Service: Service<
            Request<Body>,
            Response = Response<Body>,
            Error = std::convert::Infallible,
            Future: Send,
        > + Clone
        + Send
        + 'static;

    /// Makes it.
    fn serve(&self, connection: Arc<Connection>) -> Self::Service;
}

/// The services of gRPC behind their limits.
#[derive(Clone)]
pub(super) struct Grpc {
    pub(super) shared: Arc<Shared>,
    pub(super) routes: Routes,
    /// The sites whose browsers are answered, if gRPC-Web is.
    pub(super) origins: Option<Origins>,
}

impl Serve for Grpc {
    type Service = Front;

    fn serve(&self, connection: Arc<Connection>) -> Front {
        let shared = Arc::clone(&self.shared);
        let gate = Gate {
            door: Door { shared, connection },
            routes: self.routes.clone(),
        };
        Front::new(gate, self.origins.as_ref())
    }
}

/// A port.
#[derive(Clone)]
pub(super) struct Port<S> {
    pub(super) serve: S,
    pub(super) shared: Arc<Shared>,
    pub(super) protocols: Protocols,
    pub(super) streams_max: u32,
    pub(super) tls: Option<watch::Receiver<Arc<ServerConfig>>>,
    /// Places of connections, which all ports share.
    pub(super) places: Arc<Semaphore>,
    pub(super) tasks: TaskTracker,
    /// Ends connections in good order.
    pub(super) stop: CancellationToken,
    /// Ends them at once.
    pub(super) cut: CancellationToken,
}

impl<S: Serve> Port<S> {
    /// Takes connections until the stop.
    pub(super) async fn accept(self, listener: TcpListener) {
        let mut is_refused = false;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.stop.cancelled() => return,
            };
            let socket = match accepted {
                Ok((socket, _)) => socket,
                Err(error) if is_of_one(&error) => continue,
                Err(error) => {
                    if !std::mem::replace(&mut is_refused, true) {
                        tracing::error!(%error, "the system refuses connections");
                    }
                    tokio::select! {
                        () = tokio::time::sleep(ACCEPT_PAUSE) => continue,
                        () = self.stop.cancelled() => return,
                    }
                }
            };
            is_refused = false;
            let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
                self.shared.metrics.connections_refused.inc();
                continue;
            };
            let port = self.clone();
            self.tasks.spawn(async move {
                port.shared.metrics.connections.inc();
                port.connect(socket).await;
                port.shared.metrics.connections.dec();
                drop(place);
            });
        }
    }

    async fn connect(&self, socket: TcpStream) {
        let peer = socket.peer_addr().ok();
        // Without it a small answer may wait for the acknowledgement of the one before.
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%error, "a connection is gone before it began");
            return;
        }
        let Some(tls) = &self.tls else {
            return self.talk(socket, Connection::new(peer, None)).await;
        };
        let config = Arc::clone(&tls.borrow());
        let handshake = TlsAcceptor::from(config).accept(socket);
        let stream = tokio::select! {
            result = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake) => match result {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => {
                    tracing::debug!(%error, ?peer, "a handshake of TLS failed");
                    return;
                }
                Err(_) => return,
            },
            () = self.stop.cancelled() => return,
        };
        let certificates = stream.get_ref().1.peer_certificates();
        let subject = certificates.and_then(<[_]>::first).and_then(tls::subject);
        self.talk(stream, Connection::new(peer, subject)).await;
    }

    /// Serves a connection until its end.
    pub(super) async fn talk<I>(&self, io: I, connection: Connection)
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let read = Arc::new(AtomicUsize::new(0));
        let io = TokioIo::new(Counted {
            inner: io,
            read: Arc::clone(&read),
        });
        let connection = Arc::new(connection);
        let service = self.serve.serve(Arc::clone(&connection));
        let service =
            service.map_request(|request: Request<hyper::body::Incoming>| request.map(Body::new));
        let builder = self.builder();
        let talk = builder.serve_connection(io, TowerToHyperService::new(service));
        tokio::pin!(talk);
        let limits = &self.shared.limits;
        let begun = Instant::now();
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_closing = false;
        loop {
            tokio::select! {
                result = talk.as_mut() => {
                    if let Err(error) = result {
                        tracing::debug!(%error, peer = ?connection.peer, "a connection broke");
                    }
                    return;
                }
                () = self.stop.cancelled(), if !is_closing => {
                    is_closing = true;
                    talk.as_mut().graceful_shutdown();
                }
                () = self.cut.cancelled() => return,
                _ = looks.tick() => {
                    let age = begun.elapsed();
                    if age > HANDSHAKE_TIMEOUT && read.load(Ordering::Relaxed) < PREFACE_BYTES {
                        return;
                    }
                    if connection.is_stalled(&self.shared) {
                        tracing::warn!(
                            peer = ?connection.peer,
                            "a client takes nothing of its stream, its connection is cut"
                        );
                        return;
                    }
                    let most = limits.connection_age_max;
                    if !is_closing && !most.is_zero() && age > most {
                        is_closing = true;
                        talk.as_mut().graceful_shutdown();
                    }
                }
            }
        }
    }

    /// What is read of a request of HTTP/1 at a time. All its headers have to fit.
    fn http1_buffer_bytes(&self) -> usize {
        let headers = self.shared.limits.header_bytes_max;
        usize::try_from(headers)
            .unwrap_or(usize::MAX)
            .max(HTTP1_BUFFER_BYTES_MIN)
    }

    fn builder(&self) -> Builder<TokioExecutor> {
        let limits = &self.shared.limits;
        let mut builder = Builder::new(TokioExecutor::new());
        if self.protocols == Protocols::Http2 {
            builder = builder.http2_only();
        }
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HANDSHAKE_TIMEOUT)
            .max_buf_size(self.http1_buffer_bytes());
        builder
            .http2()
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_concurrent_streams(self.streams_max)
            .max_header_list_size(limits.header_bytes_max.saturating_mul(HEADERS_TIMES))
            .max_pending_accept_reset_streams(PENDING_RESETS_MAX);
        let keepalive = limits.keepalive_interval;
        if !keepalive.is_zero() {
            builder
                .http2()
                .keep_alive_interval(keepalive)
                .keep_alive_timeout(keepalive.min(KEEPALIVE_TIMEOUT));
        }
        builder
    }
}

/// Whether an error of accepting is that of the one connection, so that the next may be fine.
fn is_of_one(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted
    )
}

/// Counts what is read.
struct Counted<I> {
    inner: I,
    read: Arc<AtomicUsize>,
}

impl<I: AsyncRead + Unpin> AsyncRead for Counted<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.inner).poll_read(context, buffer);
        let count = buffer.filled().len() - before;
        self.read.fetch_add(count, Ordering::Relaxed);
        result
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Counted<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
