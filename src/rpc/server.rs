//! Starts the services on a listener or a pipe and stops them in good order. Reads no flags, no
//! environment and no signals.

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::DuplexStream;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::rustls::ServerConfig;
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
use super::browser::Origins;
use super::caller::Callers;
use super::connection::{Grpc, Port, Protocols};
use super::gate::{Connection, Shared};
use super::layer::Mended;
use super::limits::ServiceLimits;
use super::observe::RequestMetrics;
use super::pages::Pages;
use super::proto::admin_service_server::{AdminServiceServer, SERVICE_NAME as ADMIN_SERVICE};
use super::proto::article_service_server::{ArticleServiceServer, SERVICE_NAME as ARTICLE_SERVICE};
use super::reload::Reload;
use super::replica::check_serves;
use super::tls::{self, ClientCertificate, TlsFiles};
use super::trace::Traces;
use super::web::{Audience, Web};
use crate::archive::Archive;
use crate::error::{Error, Reason, Result};
use crate::search::Search;

/// Bytes in flight per request, in either direction.
pub const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;

/// Bytes in flight per connection, in either direction: enough for a message of articles.
pub const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// The name under which health is asked for the whole server.
const WHOLE_SERVER: &str = "";

/// How often it is looked whether the archive still takes writes, or follows who does.
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
    /// For HTTP: figures for Prometheus, whether the server lives and serves, and the page.
    pub http: Option<TcpListener>,
}

impl From<TcpListener> for Listeners {
    /// gRPC alone.
    fn from(grpc: TcpListener) -> Self {
        Self { grpc, http: None }
    }
}

/// How to serve.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// How long open requests may take to end after the stop. Then connections are cut.
    pub drain: Duration,
    /// What is taken from clients.
    pub limits: ServiceLimits,
    /// TLS, unless connections are plain.
    pub tls: Option<TlsFiles>,
    /// The file of tokens and certificates' subjects, unless everybody may do everything.
    pub credentials: Option<PathBuf>,
    /// Whether the second port has the page and its data.
    pub page: bool,
    /// Whether the second port speaks TLS as well, with the same files.
    pub http_tls: bool,
    /// The sites whose browsers may call by gRPC-Web, unless it is not spoken. With it the first port
    /// takes HTTP/1.1 as well.
    pub grpc_web: Option<Origins>,
    /// Where spans of requests go, if they go anywhere.
    pub traces: Option<Traces>,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            drain: Duration::from_secs(10),
            limits: ServiceLimits::default(),
            tls: None,
            credentials: None,
            page: true,
            http_tls: false,
            grpc_web: None,
            traces: None,
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
    let files = Files::open(&options).await?;
    let (port, http, health) = ports(services, &files, &options).await?;
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
        tokio::join!(
            follow(files.access),
            follow(files.tls),
            watch_archive(&archive, options.limits.staleness_max, &health)
        );
    };
    tokio::select! {
        () = accepting => {}
        () = following => {}
        () = stop => {}
    }
    set_health(&health, ServingStatus::NotServing).await;
    drain(&port, options.drain).await;
    Ok(())
}

/// Reads the files that a server is to be served with, so that a mistake in them is told before anything
/// is opened.
///
/// # Errors
/// `FileFailed` or `ArgumentInvalid` if certificates or tokens cannot be read.
pub async fn check_files(options: &ServeOptions) -> Result<()> {
    Files::open(options).await.map(drop)
}

/// Stops what is served, and waits until it has ended.
async fn drain<S>(port: &Port<S>, drain: Duration) {
    port.stop.cancel();
    port.tasks.close();
    let ended = tokio::time::timeout(drain, port.tasks.wait()).await;
    if ended.is_ok() {
        return;
    }
    tracing::warn!(?drain, "requests were still open and are cut off");
    port.cut.cancel();
    // Without it the archive could be closed under a request.
    let ended = tokio::time::timeout(CUT_TIMEOUT, port.tasks.wait()).await;
    if ended.is_err() {
        tracing::warn!("connections do not end");
    }
}

/// The files that are read again when they change.
struct Files {
    access: Option<Reload<Credentials>>,
    tls: Option<Reload<ServerConfig>>,
}

impl Files {
    async fn open(options: &ServeOptions) -> Result<Self> {
        if options.http_tls && options.tls.is_none() {
            let what = "the second port has TLS only if the first one has";
            return Err(Error::field(Reason::ArgumentInvalid, "http-tls", what));
        }
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
        Ok(Self { access, tls })
    }
}

/// Both ports, and the handle that tells whether the services serve.
async fn ports(
    services: Services,
    files: &Files,
    options: &ServeOptions,
) -> Result<(Port<Grpc>, Port<Pages>, HealthReporter)> {
    let archive = &services.archive;
    let limits = *archive.limits();
    let stop = CancellationToken::new();
    let metrics = RequestMetrics::default();
    let callers = Callers {
        access: files.access.as_ref().map(Reload::current),
        origins: options.grpc_web.clone(),
        traces: options.traces.clone(),
    };
    let stopping = stop.clone();
    let shared = Shared::new(options.limits, archive, callers, metrics.clone(), stopping);
    let shared = Arc::new(shared);
    let articles = articles(&services, &options.limits, &stop);
    let web = || Web::new(articles.clone(), Arc::clone(&shared), audience(options));
    let pages = Pages {
        archive: services.archive.clone(),
        search: services.search.clone(),
        staleness_max: options.limits.staleness_max,
        metrics,
        web: options.page.then(web),
        stop: stop.clone(),
    };
    let (routes, health) = routes(services, articles, &options.limits).await?;
    let port = Port {
        serve: Grpc {
            shared: Arc::clone(&shared),
            routes,
            origins: options.grpc_web.clone(),
        },
        places: places(&options.limits),
        shared,
        protocols: match options.grpc_web {
            Some(_) => Protocols::Http1And2,
            None => Protocols::Http2,
        },
        streams_max: limits.connection_streams_max,
        tls: files.tls.as_ref().map(Reload::current),
        tasks: TaskTracker::new(),
        stop,
        cut: CancellationToken::new(),
    };
    let http = Port {
        serve: pages,
        protocols: Protocols::Http1And2,
        tls: port.tls.clone().filter(|_| options.http_tls),
        // Whoever watches over the server sees it even when gRPC takes no more connections.
        places: Arc::new(Semaphore::new(HTTP_CONNECTIONS_MAX)),
        shared: Arc::clone(&port.shared),
        tasks: port.tasks.clone(),
        stop: port.stop.clone(),
        cut: port.cut.clone(),
        streams_max: port.streams_max,
    };
    Ok((port, http, health))
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

/// Looks whether the archive takes writes, or is a replica that is fresh enough, and says so to whoever
/// asks for its health. A writer that takes none does not before it is opened again. That another process
/// has taken the archive over is told at once.
async fn watch_archive(archive: &Archive, staleness_max: Duration, health: &HealthReporter) {
    let mut interval = tokio::time::interval(HEALTH_INTERVAL);
    let mut is_serving = true;
    let mut replaced = pin!(archive.replaced());
    let mut is_replaced = false;
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            _ = &mut replaced, if !is_replaced => is_replaced = true,
        }
        let checked = check_serves(archive, staleness_max);
        if checked.is_ok() == is_serving {
            continue;
        }
        is_serving = checked.is_ok();
        let status = match checked {
            Ok(()) => {
                tracing::info!("the archive is served again");
                ServingStatus::Serving
            }
            Err(error) => {
                tracing::error!(%error, "the archive is not served as it should be");
                ServingStatus::NotServing
            }
        };
        set_health(health, status).await;
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
    let archive = services.archive.clone();
    let articles = articles(&services, &limits, &stop);
    let (routes, _health) = routes(services, articles, &limits).await?;
    let metrics = RequestMetrics::default();
    let shared = Shared::new(limits, &archive, Callers::default(), metrics, stop.clone());
    let shared = Arc::new(shared);
    let port = Port {
        serve: Grpc {
            shared: Arc::clone(&shared),
            routes,
            origins: None,
        },
        places: places(&limits),
        shared,
        protocols: Protocols::Http2,
        streams_max: archive.limits().connection_streams_max,
        tls: None,
        tasks: TaskTracker::new(),
        stop,
        cut: CancellationToken::new(),
    };
    port.talk(pipe, Connection::default()).await;
    Ok(())
}

/// The methods of articles, for gRPC and for the page.
fn articles(services: &Services, limits: &ServiceLimits, stop: &CancellationToken) -> Articles {
    Articles {
        archive: services.archive.clone(),
        search: services.search.clone(),
        queue_wait_max: limits.queue_wait_max,
        stop: stop.clone(),
        scans: Arc::new(()),
        reading: Arc::new(Semaphore::new(SCANS_READING_MAX)),
    }
}

/// Who may see the data of the page: those who may see them over gRPC.
fn audience(options: &ServeOptions) -> Audience {
    let tls = options.tls.as_ref();
    let needs_certificate = tls.is_some_and(|files| files.client_roots.is_some());
    match (&options.credentials, options.http_tls) {
        (Some(_), _) | (None, true) => Audience::Known,
        (None, false) if needs_certificate => Audience::Nobody,
        (None, false) => Audience::Everybody,
    }
}

/// All services, and the handle that tells whether they serve.
async fn routes(
    services: Services,
    articles: Articles,
    service_limits: &ServiceLimits,
) -> Result<(Routes, HealthReporter)> {
    let Services { archive, search } = services;
    let limits = *archive.limits();
    let (health, health_service) = tonic_health::server::health_reporter();
    set_health(&health, ServingStatus::Serving).await;
    let stop = articles.stop.clone();
    // An answer is compressed if the client says that it takes that.
    let mut articles = ArticleServiceServer::new(articles)
        .max_decoding_message_size(limits.article_message_bytes_max)
        .max_encoding_message_size(usize::MAX);
    let mut admin = AdminServiceServer::new(Admin {
        archive,
        search,
        service_limits: *service_limits,
        stop,
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
