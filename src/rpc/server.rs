//! Starts the services on a listener or a pipe and stops them in good order. Reads no flags, no
//! environment and no signals.

use std::time::Duration;

use futures_util::{Stream, stream};
use tokio::io::DuplexStream;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::{Router, TcpIncoming};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::DESCRIPTORS;
use super::admin::Admin;
use super::article::Articles;
use super::layer::Mended;
use super::proto::admin_service_server::{AdminServiceServer, SERVICE_NAME as ADMIN_SERVICE};
use super::proto::article_service_server::{ArticleServiceServer, SERVICE_NAME as ARTICLE_SERVICE};
use crate::archive::Archive;
use crate::error::{Error, Reason, Result};
use crate::search::Search;

/// Bytes in flight per request, in either direction.
pub const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;

/// Bytes in flight per connection, in either direction: enough for a message of articles.
pub const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// How long a silent connection is trusted to be alive.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(60);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Clients that cancel a lot are no attackers.
const PENDING_RESETS_MAX: usize = 200;

/// The name under which health is asked for the whole server.
const WHOLE_SERVER: &str = "";

/// What is served.
#[derive(Clone, Debug)]
pub struct Services {
    /// The archive.
    pub archive: Archive,
    /// Full-text search of it, unless the server does without.
    pub search: Option<Search>,
}

impl From<Archive> for Services {
    /// An archive without search.
    fn from(archive: Archive) -> Self {
        let search = None;
        Self { archive, search }
    }
}

/// How to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServeOptions {
    /// How long open requests may take to end after the stop. Then connections are cut.
    pub drain: Duration,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            drain: Duration::from_secs(10),
        }
    }
}

/// Serves an archive until `stop`, then lets requests end: new ones are refused, unary ones finish,
/// open streams end with UNAVAILABLE after the results of what they had queued.
///
/// # Errors
/// `ServerUnreachable` if the listener fails.
pub async fn serve(
    services: impl Into<Services>,
    listener: TcpListener,
    stop: impl Future<Output = ()> + Send,
    options: ServeOptions,
) -> Result<()> {
    let incoming = TcpIncoming::from(listener)
        .with_nodelay(Some(true))
        .with_keepalive(Some(KEEPALIVE_INTERVAL));
    let stopping = CancellationToken::new();
    let (router, health) = router(services.into(), &stopping).await?;
    let closing = stopping.clone();
    let serving = router.serve_with_incoming_shutdown(incoming, closing.cancelled_owned());
    tokio::pin!(serving);
    tokio::select! {
        result = &mut serving => return result.map_err(failed),
        () = stop => {}
    }
    set_health(&health, ServingStatus::NotServing).await;
    stopping.cancel();
    if let Ok(result) = tokio::time::timeout(options.drain, serving).await {
        return result.map_err(failed);
    }
    tracing::warn!(drain = ?options.drain, "requests were still open and are cut off");
    Ok(())
}

/// Serves an archive to one client in this process, until `stop`.
///
/// # Errors
/// `ServerUnreachable` if the pipe breaks.
pub async fn serve_pipe(
    services: Services,
    pipe: DuplexStream,
    stop: CancellationToken,
) -> Result<()> {
    let (router, _health) = router(services, &stop).await?;
    // The pipe is the only connection; the stream behind it never ends, the stop does.
    let incoming = pipe_stream(pipe);
    router
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await
        .map_err(failed)
}

fn pipe_stream(pipe: DuplexStream) -> impl Stream<Item = std::io::Result<DuplexStream>> {
    use futures_util::StreamExt;
    stream::once(std::future::ready(Ok(pipe))).chain(stream::pending())
}

/// All services, and the handle that tells whether they serve.
async fn router(services: Services, stop: &CancellationToken) -> Result<(Router, HealthReporter)> {
    let Services { archive, search } = services;
    let limits = *archive.limits();
    let (health, health_service) = tonic_health::server::health_reporter();
    set_health(&health, ServingStatus::Serving).await;
    let articles = Articles {
        archive: archive.clone(),
        search: search.clone(),
        stop: stop.clone(),
    };
    let articles = ArticleServiceServer::new(articles)
        .max_decoding_message_size(limits.article_message_bytes_max)
        .max_encoding_message_size(usize::MAX);
    let admin = AdminServiceServer::new(Admin {
        archive,
        search,
        stop: stop.clone(),
    })
    .max_decoding_message_size(limits.message_bytes_max);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    let wrong = |error: tonic_reflection::server::Error| {
        Error::new(Reason::Internal, "the descriptors cannot be served").with_source(error)
    };
    let router = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(limits.connection_streams_max)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS_MAX))
        .add_service(Mended(articles))
        .add_service(Mended(admin))
        .add_service(health_service)
        .add_service(reflection().build_v1().map_err(wrong)?)
        .add_service(reflection().build_v1alpha().map_err(wrong)?);
    Ok((router, health))
}

async fn set_health(health: &HealthReporter, status: ServingStatus) {
    for service in [WHOLE_SERVER, ARTICLE_SERVICE, ADMIN_SERVICE] {
        health.set_service_status(service, status).await;
    }
}

fn failed(error: tonic::transport::Error) -> Error {
    Error::new(Reason::ServerUnreachable, "the server failed").with_source(error)
}
