//! A connection to an archive: to a server, or to an archive opened in this process, which is then
//! served over a pipe by the very same service. Every command is written once, against gRPC.

mod endpoints;

use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Response, Status, Streaming};

pub use self::endpoints::{Routes, SERVERS_MAX};
use crate::archive::{Archive, Guard, Limits};
use crate::error::{Error, Reason, Result};
use crate::rpc::proto::BackupArchiveResponse;
use crate::rpc::proto::admin_service_client::AdminServiceClient;
use crate::rpc::proto::article_service_client::ArticleServiceClient;
use crate::rpc::{self, CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES, Services, error_of};
use crate::search::{Place, Search, SearchGuard};
use crate::store::{self, Locator, StoreOptions};

/// The largest message taken from a server, whose own limit is below that.
const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How long a server may take to answer at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a server may be silent while it is waited for, and then how long its answer to a ping may
/// take.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(60);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Bytes that the pipe to an archive in this process holds.
const PIPE_BYTES: usize = 1024 * 1024;

/// A server, or all servers of one archive, and what proves to them who asks.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Server {
    /// Their URLs, of the scheme http or https: at least one. Of several the client finds out which
    /// is the writer and which are replicas.
    pub urls: Vec<String>,
    /// A token that they know.
    pub token: Option<String>,
    /// Roots of their certificates in PEM, instead of those of the system.
    pub roots: Option<String>,
    /// A certificate that they know, and its private key, in PEM.
    pub identity: Option<(String, String)>,
    /// The sequence that its archive has to have come to before it answers.
    pub min_sequence: Option<u64>,
}

impl fmt::Debug for Server {
    /// Tells no secret.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Server")
            .field("urls", &self.urls)
            .finish_non_exhaustive()
    }
}

impl Server {
    fn endpoint(&self, url: &str) -> Result<Endpoint> {
        let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|error| {
            let what = format!("{url:?} is not a URL such as http://127.0.0.1:50051");
            Error::field(Reason::ArgumentInvalid, "server", what).with_source(error)
        })?;
        let endpoint = configure(endpoint);
        if endpoint.uri().scheme_str() != Some("https") {
            return Ok(endpoint);
        }
        let mut tls = ClientTlsConfig::new();
        tls = match &self.roots {
            Some(roots) => tls.ca_certificate(Certificate::from_pem(roots)),
            None => tls.with_native_roots(),
        };
        if let Some((certificate, key)) = &self.identity {
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        endpoint.tls_config(tls).map_err(|error| {
            let what = "the roots, the certificate or the key cannot be used";
            Error::field(Reason::ArgumentInvalid, "ca", what).with_source(error)
        })
    }
}

/// Where a client finds its archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A server, or several.
    Server(Server),
    /// An archive that no server has open.
    Archive(Locator, StoreOptions),
    /// The same, with full-text search, which catches up first.
    SearchedArchive(Locator, StoreOptions),
    /// The same, to be repaired: its figures may be damaged, and acknowledged writes lost.
    DamagedArchive(Locator, StoreOptions),
}

/// Calls of the article service. Clones share the connection.
pub type ArticleCalls = ArticleServiceClient<Signed>;

/// Calls of the admin service. Clones share the connection.
pub type AdminCalls = AdminServiceClient<Signed>;

/// A backup that a server sends, piece by piece.
pub type Backup = Streaming<BackupArchiveResponse>;

/// A connection whose requests say who asks, and for what state of the archive.
pub type Signed = InterceptedService<Routes, Token>;

/// Puts the token into each request, and the sequence that it waits for.
#[derive(Clone, Debug, Default)]
pub struct Token {
    token: Option<MetadataValue<Ascii>>,
    min_sequence: Option<u64>,
}

impl Token {
    fn new(token: Option<&str>, min_sequence: Option<u64>) -> Result<Self> {
        let value = token.map(|token| {
            let mut value: MetadataValue<Ascii> =
                format!("Bearer {token}").parse().map_err(|error| {
                    let what = "the token has characters that no token has";
                    Error::field(Reason::ArgumentInvalid, "token", what).with_source(error)
                })?;
            value.set_sensitive(true);
            Ok::<_, Error>(value)
        });
        Ok(Self {
            token: value.transpose()?,
            min_sequence,
        })
    }

    /// The same for requests that need no state of the archive.
    fn in_any_state(&self) -> Self {
        Self {
            token: self.token.clone(),
            min_sequence: None,
        }
    }
}

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(sequence) = self.min_sequence {
            request
                .metadata_mut()
                .insert(rpc::MIN_SEQUENCE, sequence.into());
        }
        if let Some(token) = &self.token {
            request
                .metadata_mut()
                .insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// A connection.
#[derive(Debug)]
pub struct Client {
    routes: Routes,
    token: Token,
    local: Option<Local>,
}

/// The archive behind the pipe.
#[derive(Debug)]
struct Local {
    stop: CancellationToken,
    serving: JoinHandle<Result<()>>,
    guard: Guard,
    search_guard: Option<SearchGuard>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// `ServerUnreachable` naming the URL; those of opening an archive.
    pub async fn connect(target: &Target) -> Result<Self> {
        match target {
            Target::Server(server) => Self::connect_server(server).await,
            Target::Archive(locator, options) => {
                let store = store::open(locator, options.clone()).await?;
                Self::serve(Archive::open(store, Limits::default()).await?, None).await
            }
            Target::SearchedArchive(locator, options) => {
                let place = search_place(locator, options).ok_or_else(no_search_place)?;
                let store = store::open(locator, options.clone()).await?;
                let (archive, guard) = Archive::open(store, Limits::default()).await?;
                let search = Search::open(archive.clone(), place)?;
                Self::serve((archive, guard), Some(search)).await
            }
            Target::DamagedArchive(locator, options) => {
                let store = store::open(locator, options.clone()).await?;
                let opened = Archive::open_to_repair(store, Limits::default()).await?;
                Self::serve(opened, None).await
            }
        }
    }

    async fn connect_server(server: &Server) -> Result<Self> {
        let token = Token::new(server.token.as_deref(), server.min_sequence)?;
        let routes = match server.urls.as_slice() {
            [url] => {
                let channel = server.endpoint(url)?.connect().await;
                Routes::one(channel.map_err(|error| unreachable(url).with_source(error))?)
            }
            urls => {
                let endpoints = urls
                    .iter()
                    .map(|url| Ok((url.clone(), server.endpoint(url)?)));
                Routes::many(endpoints.collect::<Result<_>>()?, &token.in_any_state()).await?
            }
        };
        Ok(Self {
            routes,
            token,
            local: None,
        })
    }

    /// Serves an archive to itself, over a pipe.
    async fn serve(
        (archive, guard): (Archive, Guard),
        search: Option<(Search, SearchGuard)>,
    ) -> Result<Self> {
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        let stop = CancellationToken::new();
        let (search, search_guard) = search.unzip();
        let services = Services { archive, search };
        let serving = tokio::spawn(rpc::serve_pipe(services, far, stop.clone()));
        let near = Mutex::new(Some(near));
        // There is one pipe, so there is one connection.
        let connector = tower::service_fn(move |_| {
            let pipe = near.lock().ok().and_then(|mut near| near.take());
            let pipe = pipe.ok_or_else(|| std::io::Error::other("the pipe is in use"));
            std::future::ready(pipe.map(TokioIo::new))
        });
        let endpoint = configure(Endpoint::from_static("http://in-process"));
        let channel = endpoint
            .connect_with_connector(connector)
            .await
            .map_err(|error| {
                Error::new(Reason::Internal, "the archive's own pipe fails").with_source(error)
            })?;
        Ok(Self {
            routes: Routes::one(channel),
            token: Token::default(),
            local: Some(Local {
                stop,
                serving,
                guard,
                search_guard,
            }),
        })
    }

    /// Whether the archive is in this process.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.local.is_some()
    }

    /// A client of the article service.
    #[must_use]
    pub fn articles(&self) -> ArticleCalls {
        ArticleServiceClient::with_interceptor(self.routes.clone(), self.token.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// A client of the admin service.
    #[must_use]
    pub fn admin(&self) -> AdminCalls {
        AdminServiceClient::with_interceptor(self.routes.clone(), self.token.clone())
    }

    /// Ends the connection, and the archive if it is in this process.
    ///
    /// # Errors
    /// The first cause if a write failed before.
    pub async fn close(self) -> Result<()> {
        let Some(Local {
            stop,
            serving,
            guard,
            search_guard,
        }) = self.local
        else {
            return Ok(());
        };
        drop(self.routes);
        stop.cancel();
        let served = serving.await.map_err(|panic| {
            Error::new(Reason::Internal, "serving the pipe panicked").with_source(panic)
        });
        if let Some(search) = search_guard {
            search.close().await?;
        }
        guard.close().await?;
        served?
    }
}

/// Takes the message from an answer, or the error that a server answered with.
///
/// # Errors
/// The error that the status tells.
pub fn message<T>(answer: Result<Response<T>, Status>) -> Result<T> {
    answer
        .map(Response::into_inner)
        .map_err(|status| error_of(&status))
}

/// Where the search index of an archive is kept: in its folder. One in object storage needs a folder
/// on this machine, and has no search without.
#[must_use]
pub fn search_place(locator: &Locator, options: &StoreOptions) -> Option<Place> {
    match locator {
        Locator::Folder(folder) => Some(Place::Folder(folder.join("search"))),
        Locator::Memory => Some(Place::Memory),
        Locator::Objects(_) => {
            let (folder, _) = options.objects.cache.as_ref()?;
            Some(Place::Folder(folder.join("search")))
        }
    }
}

fn unreachable(url: &str) -> Error {
    let what = format!(
        "no server answers at {url}; start one with `pressmark serve`, or name an archive with \
         --archive"
    );
    Error::new(Reason::ServerUnreachable, what)
}

fn no_search_place() -> Error {
    let what = "an archive in object storage is searched with an index on this machine, for which \
                --local-dir names a folder";
    Error::new(Reason::SearchOff, what)
}

fn configure(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
}
