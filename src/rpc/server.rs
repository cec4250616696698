//! Starts the services on a listener or a pipe and stops them in good order. Reads no flags, no
//! environment and no signals.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::DuplexStream;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::codec::CompressionEncoding;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::DESCRIPTORS;
use super::admin::Admin;
use super::article::{Articles, SCANS_READING_MAX};
use super::auth::Credentials;
use super::connection::{Grpc, Port, Protocols};
use super::gate::{Connection, Shared};
use super::layer::Mended;
use super::limits::ServiceLimits;
use super::observe::RequestMetrics;
use super::pages::Pages;
use super::proto::admin_service_server::{AdminServiceServer, SERVICE_NAME as ADMIN_SERVICE};
use super::proto::article_service_server::{ArticleServiceServer, SERVICE_NAME as ARTICLE_SERVICE};
use super::reload::Reload;
use super::tls::{self, ClientCertificate, TlsFiles};
use crate::archive::Archive;
use crate::error::{Error, Reason, Result};
use crate::search::Search;

/// Bytes in flight per request, in either direction.
pub const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;

/// Bytes in flight per connection, in either direction: enough for a message of articles.
pub const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// The name under which health is asked for the whole server.
const WHOLE_SERVER: &str = "";

/// How often it is looked whether the archive still takes writes.
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);

/// Connections of the second port.
const HTTP_CONNECTIONS_MAX: usize = 64;

/// How long connections may take to end once they are cut.
const CUT_TIMEOUT: Duration = Duration::from_secs(5);

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

/// Where to listen.
#[derive(Debug)]
pub struct Listeners {
    /// For gRPC.
    pub grpc: TcpListener,
    /// For HTTP without encryption: figures for Prometheus, and whether the server lives and serves.
    pub http: Option<TcpListener>,
}

impl From<TcpListener> for Listeners {
    /// gRPC alone.
    fn from(grpc: TcpListener) -> Self {
        Self { grpc, http: None }
    }
}

/// How to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServeOptions {
    /// How long open requests may take to end after the stop. Then connections are cut.
    pub drain: Duration,
    /// What is taken from clients.
    pub limits: ServiceLimits,
    /// TLS, unless connections are plain.
    pub tls: Option<TlsFiles>,
    /// The file of tokens and certificates' subjects, unless everybody may do everything.
    pub credentials: Option<PathBuf>,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            drain: Duration::from_secs(10),
            limits: ServiceLimits::default(),
            tls: None,
            credentials: None,
        }
    }
}

/// Serves an archive until `stop`, then lets requests end: new ones are refused, unary ones finish,
/// open streams end with UNAVAILABLE after the results of what they had queued. Certificates and
/// tokens are read again when their files change, for connections and requests that come then.
///
/// # Errors
/// `FileFailed` or `ArgumentInvalid` if certificates or tokens cannot be read.
pub async fn serve(
    services: impl Into<Services>,
    listeners: impl Into<Listeners>,
    stop: impl Future<Output = ()> + Send,
    options: ServeOptions,
) -> Result<()> {
    let (services, listeners) = (services.into(), listeners.into());
    let archive = services.archive.clone();
    let limits = *archive.limits();
    let access = match &options.credentials {
        Some(file) => Some(Reload::open(vec![file.clone()], credentials).await?),
        None => None,
    };
    let clients = match access {
        Some(_) => ClientCertificate::Optional,
        None => ClientCertificate::Required,
    };
    let tls = match &options.tls {
        Some(files) => Some(tls::open(files, clients).await?),
        None => None,
    };
    let stopping = CancellationToken::new();
    let metrics = RequestMetrics::default();
    let pages = Pages {
        archive: archive.clone(),
        search: services.search.clone(),
        metrics: metrics.clone(),
        stop: stopping.clone(),
    };
    let (routes, health) = routes(services, &options.limits, &stopping).await?;
    let known = access.as_ref().map(Reload::current);
    let stop_all = stopping.clone();
    let shared = Shared::new(options.limits, &limits, known, metrics, stop_all);
    let shared = Arc::new(shared);
    let port = Port {
        serve: Grpc {
            shared: Arc::clone(&shared),
            routes,
        },
        places: places(&options.limits),
        shared,
        protocols: Protocols::Http2,
        streams_max: limits.connection_streams_max,
        tls: tls.as_ref().map(Reload::current),
        tasks: TaskTracker::new(),
        stop: stopping.clone(),
        cut: CancellationToken::new(),
    };
    let http = Port {
        serve: pages,
        protocols: Protocols::Http1And2,
        tls: None,
        // Whoever watches over the server sees it even when gRPC takes no more connections.
        places: Arc::new(Semaphore::new(HTTP_CONNECTIONS_MAX)),
        shared: Arc::clone(&port.shared),
        tasks: port.tasks.clone(),
        stop: stopping.clone(),
        cut: port.cut.clone(),
        streams_max: port.streams_max,
    };
    let accepting = async {
        let http = async {
            match listeners.http {
                Some(listener) => http.accept(listener).await,
                None => std::future::pending().await,
            }
        };
        tokio::join!(port.clone().accept(listeners.grpc), http);
    };
    let following = async {
        tokio::join!(follow(access), follow(tls), watch_writes(&archive, &health));
    };
    tokio::select! {
        () = accepting => {}
        () = following => {}
        () = stop => {}
    }
    set_health(&health, ServingStatus::NotServing).await;
    stopping.cancel();
    port.tasks.close();
    if tokio::time::timeout(options.drain, port.tasks.wait())
        .await
        .is_err()
    {
        tracing::warn!(drain = ?options.drain, "requests were still open and are cut off");
        port.cut.cancel();
        // Without it the archive could be closed under a request.
        if tokio::time::timeout(CUT_TIMEOUT, port.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!("connections do not end");
        }
    }
    Ok(())
}

fn places(limits: &ServiceLimits) -> Arc<Semaphore> {
    let most = usize::try_from(limits.connections_max).unwrap_or(usize::MAX);
    Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)))
}

/// Reads the file of tokens.
fn credentials(contents: &[Vec<u8>]) -> Result<Credentials> {
    let bytes = contents.first().map(Vec::as_slice).unwrap_or_default();
    let text = std::str::from_utf8(bytes).map_err(|error| {
        Error::field(Reason::ArgumentInvalid, "tokens", "the file is not UTF-8").with_source(error)
    })?;
    Credentials::parse(text)
}

async fn follow<T>(reload: Option<Reload<T>>) {
    match reload {
        Some(reload) => reload.follow().await,
        None => std::future::pending().await,
    }
}

/// Waits until the archive takes no writes any more, and says so to whoever asks for its health.
async fn watch_writes(archive: &Archive, health: &HealthReporter) {
    let mut interval = tokio::time::interval(HEALTH_INTERVAL);
    loop {
        interval.tick().await;
        if let Err(error) = archive.check_writes() {
            tracing::error!(%error, "the archive takes no writes until it is opened again");
            set_health(health, ServingStatus::NotServing).await;
            return std::future::pending().await;
        }
    }
}

/// Serves an archive to one client in this process, until `stop`.
///
/// # Errors
/// `Internal` if the services cannot be built.
pub async fn serve_pipe(
    services: Services,
    pipe: DuplexStream,
    stop: CancellationToken,
) -> Result<()> {
    // The client is the process itself, which waits for as long as it takes.
    let limits = ServiceLimits {
        request_deadline: Duration::from_secs(24 * 3600),
        queue_wait_max: Duration::from_secs(24 * 3600),
        stream_idle_max: Duration::ZERO,
        ..ServiceLimits::default()
    };
    let archive_limits = *services.archive.limits();
    let (routes, _health) = routes(services, &limits, &stop).await?;
    let metrics = RequestMetrics::default();
    let shared = Shared::new(limits, &archive_limits, None, metrics, stop.clone());
    let shared = Arc::new(shared);
    let port = Port {
        serve: Grpc {
            shared: Arc::clone(&shared),
            routes,
        },
        places: places(&limits),
        shared,
        protocols: Protocols::Http2,
        streams_max: archive_limits.connection_streams_max,
        tls: None,
        tasks: TaskTracker::new(),
        stop,
        cut: CancellationToken::new(),
    };
    port.talk(pipe, Connection::default()).await;
    Ok(())
}

/// All services, and the handle that tells whether they serve.
async fn routes(
    services: Services,
    service_limits: &ServiceLimits,
    stop: &CancellationToken,
) -> Result<(Routes, HealthReporter)> {
    let Services { archive, search } = services;
    let limits = *archive.limits();
    let (health, health_service) = tonic_health::server::health_reporter();
    set_health(&health, ServingStatus::Serving).await;
    let articles = Articles {
        archive: archive.clone(),
        search: search.clone(),
        queue_wait_max: service_limits.queue_wait_max,
        stop: stop.clone(),
        scans: Arc::new(()),
        reading: Arc::new(Semaphore::new(SCANS_READING_MAX)),
    };
    // An answer is compressed if the client says that it takes that.
    let mut articles = ArticleServiceServer::new(articles)
        .max_decoding_message_size(limits.article_message_bytes_max)
        .max_encoding_message_size(usize::MAX);
    let mut admin = AdminServiceServer::new(Admin {
        archive,
        search,
        service_limits: *service_limits,
        stop: stop.clone(),
    })
    .max_decoding_message_size(limits.message_bytes_max);
    for encoding in [CompressionEncoding::Zstd, CompressionEncoding::Gzip] {
        articles = articles
            .accept_compressed(encoding)
            .send_compressed(encoding);
        admin = admin.accept_compressed(encoding).send_compressed(encoding);
    }
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    let wrong = |error: tonic_reflection::server::Error| {
        Error::new(Reason::Internal, "the descriptors cannot be served").with_source(error)
    };
    let routes = Routes::new(Mended(articles))
        .add_service(Mended(admin))
        .add_service(health_service)
        .add_service(reflection().build_v1().map_err(wrong)?)
        .add_service(reflection().build_v1alpha().map_err(wrong)?);
    Ok((routes.prepare(), health))
}

async fn set_health(health: &HealthReporter, status: ServingStatus) {
    for service in [WHOLE_SERVER, ARTICLE_SERVICE, ADMIN_SERVICE] {
        health.set_service_status(service, status).await;
    }
}
