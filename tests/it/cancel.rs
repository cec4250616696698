//! Requests that nobody waits for any more: what is done for them stops at once, whether the client
//! went away or its time is over.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use pressmark::archive::{Archive, Limits};
use pressmark::article::Article;
use pressmark::error::Error;
use pressmark::rpc::proto::admin_service_client::AdminServiceClient;
use pressmark::rpc::proto::article_service_client::ArticleServiceClient;
use pressmark::rpc::{ServeOptions, ServiceLimits, proto};
use pressmark::store::{Batch, Chunk, Durability, MemoryStore, Scan, Store, StoreStats};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

use crate::server::{TestServer, message};
use crate::support::{fields, prepared};

/// Articles in the archive: more than are read at a time, many times over.
const ARTICLES: usize = 600;

/// Longer than anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a request gets that has a deadline, long enough to get to its work.
const DEADLINE: Duration = Duration::from_secs(1);

/// How often a request is begun that is over too early.
const TRIES_MAX: usize = 20;

/// A store that counts reads, holds them up, and notices when nobody waits for one any more.
#[derive(Debug)]
struct GatedStore {
    inner: MemoryStore,
    is_closed: AtomicBool,
    /// Reads that may still pass the closed gate.
    permits: Semaphore,
    passed_count: AtomicUsize,
    /// Reads that came to the closed gate, and those that were dropped there.
    came_count: watch::Sender<usize>,
    dropped_count: watch::Sender<usize>,
}

impl GatedStore {
    fn new() -> Self {
        Self {
            inner: MemoryStore::new(),
            is_closed: AtomicBool::new(false),
            permits: Semaphore::new(0),
            passed_count: AtomicUsize::new(0),
            came_count: watch::Sender::new(0),
            dropped_count: watch::Sender::new(0),
        }
    }

    /// Lets so many reads pass, and holds the next one.
    fn close_after(&self, reads: usize) {
        self.came_count.send_replace(0);
        self.dropped_count.send_replace(0);
        self.permits.forget_permits(Semaphore::MAX_PERMITS);
        self.permits.add_permits(reads);
        self.is_closed.store(true, Ordering::SeqCst);
    }

    /// Lets all reads pass, also those that wait.
    fn open(&self) {
        self.is_closed.store(false, Ordering::SeqCst);
        self.permits.add_permits(10_000);
    }

    async fn pass(&self) {
        if self.is_closed.load(Ordering::SeqCst) {
            let mut waiting = Waiting(Some(&self.dropped_count));
            self.came_count.send_modify(|count| *count += 1);
            self.permits.acquire().await.unwrap().forget();
            waiting.0 = None;
        }
        self.passed_count.fetch_add(1, Ordering::SeqCst);
    }

    fn passed(&self) -> usize {
        self.passed_count.load(Ordering::SeqCst)
    }
}

/// A read at the gate.
struct Waiting<'a>(Option<&'a watch::Sender<usize>>);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(dropped) = self.0 {
            dropped.send_modify(|count| *count += 1);
        }
    }
}

#[async_trait]
impl Store for GatedStore {
    fn engine(&self) -> &'static str {
        "gated"
    }

    async fn get_many(&self, keys: Vec<Vec<u8>>) -> Result<Vec<Option<Bytes>>, Error> {
        self.pass().await;
        self.inner.get_many(keys).await
    }

    async fn scan_many(&self, scans: Vec<Scan>) -> Result<Vec<Chunk>, Error> {
        self.pass().await;
        self.inner.scan_many(scans).await
    }

    async fn write(&self, batch: Batch, durability: Durability) -> Result<(), Error> {
        self.inner.write(batch, durability).await
    }

    async fn stats(&self) -> Result<StoreStats, Error> {
        self.inner.stats().await
    }

    async fn close(&self) -> Result<(), Error> {
        self.inner.close().await
    }
}

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    List,
    Count,
    Lookup,
    Copies,
    Search,
    Scan,
    Watch,
    Verify,
    Backup,
}

impl Work {
    const ALL: [Self; 9] = [
        Self::List,
        Self::Count,
        Self::Lookup,
        Self::Copies,
        Self::Search,
        Self::Scan,
        Self::Watch,
        Self::Verify,
        Self::Backup,
    ];

    /// Reads that it makes before it is held, at a point where more would follow.
    fn reads(self) -> usize {
        match self {
            // It reads all rows in one.
            Self::Count => 0,
            Self::Lookup | Self::Search => 1,
            Self::Copies | Self::List | Self::Scan | Self::Watch | Self::Backup => 3,
            // The figures are read by the writer first, which nobody stops.
            Self::Verify => 8,
        }
    }
}

struct Clients {
    articles: ArticleServiceClient<Channel>,
    admin: AdminServiceClient<Channel>,
    ids: Vec<String>,
}

async fn drain<T: Debug>(stream: Result<tonic::Response<Streaming<T>>, Status>) -> Status {
    let mut stream = match stream {
        Ok(stream) => stream.into_inner(),
        Err(status) => return status,
    };
    loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => return Status::ok("done"),
            Err(status) => return status,
        }
    }
}

fn ended<T>(answer: Result<T, Status>) -> Status {
    answer.err().unwrap_or_else(|| Status::ok("done"))
}

/// A request with a time that the client itself does not keep: for streams it cannot.
fn timed<T>(message: T, timeout: Option<Duration>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(timeout) = timeout {
        request.set_timeout(timeout);
    }
    request
}

/// Asks, and waits for the end.
async fn ask(work: Work, clients: &Clients, timeout: Option<Duration>) -> Status {
    let (mut articles, mut admin) = (clients.articles.clone(), clients.admin.clone());
    match work {
        Work::List => {
            let page_size = 1000;
            let request = proto::ListArticlesRequest {
                page_size,
                ..Default::default()
            };
            ended(articles.list_articles(request).await)
        }
        Work::Count => {
            let selector = proto::ArticleSelector {
                published_after: Some(prost_types::Timestamp::default()),
                ..Default::default()
            };
            let selector = Some(selector);
            let request = proto::CountArticlesRequest { selector };
            ended(articles.count_articles(request).await)
        }
        Work::Lookup => {
            let request = proto::LookupArticlesRequest {
                ids: clients.ids.clone(),
                ..Default::default()
            };
            ended(articles.lookup_articles(request).await)
        }
        Work::Copies => {
            let request = proto::ListCopiesRequest {
                id: clients.ids[0].clone(),
                page_size: 1000,
                ..Default::default()
            };
            ended(articles.list_copies(request).await)
        }
        Work::Search => {
            let request = proto::SearchArticlesRequest {
                query: "body".into(),
                page_size: 1000,
                ..Default::default()
            };
            ended(articles.search_articles(request).await)
        }
        Work::Scan => {
            let request = timed(proto::ScanArticlesRequest::default(), timeout);
            drain(articles.scan_articles(request).await).await
        }
        Work::Watch => {
            let request = proto::WatchArticlesRequest {
                from_sequence: 1,
                ..Default::default()
            };
            drain(articles.watch_articles(timed(request, timeout)).await).await
        }
        Work::Verify => {
            let request = timed(proto::VerifyArchiveRequest::default(), timeout);
            drain(admin.verify_archive(request).await).await
        }
        Work::Backup => {
            let request = timed(proto::BackupArchiveRequest::default(), timeout);
            drain(admin.backup_archive(request).await).await
        }
    }
}

async fn reached(count: &watch::Sender<usize>, wanted: usize, what: &str, work: Work) {
    let mut count = count.subscribe();
    let reaching = count.wait_for(|count| *count >= wanted);
    let reached = tokio::time::timeout(PATIENCE, reaching).await;
    assert!(reached.is_ok(), "{work:?}: {what}");
}

/// An archive with articles, behind a gate, and a server of it.
async fn served(options: ServeOptions) -> (Arc<GatedStore>, TestServer, Clients) {
    let store = Arc::new(GatedStore::new());
    let same: Arc<dyn Store> = Arc::clone(&store) as Arc<dyn Store>;
    // Pages and chunks of some articles each, so that there is always a next one.
    let limits = Limits {
        scan_chunk_bytes: 16 * 1024,
        ..Limits::default()
    };
    let server = TestServer::serve_on(same, limits, true, options).await;
    let ids = fill(&server.archive).await;
    let mut articles = server.articles().await;
    let request = proto::SearchArticlesRequest {
        query: "body".into(),
        min_index_sequence: ARTICLES as u64,
        ..Default::default()
    };
    articles.search_articles(request).await.unwrap();
    // What is read once and then kept is read before the gate is closed.
    server.archive.load_digests().await.unwrap();
    let admin = server.admin().await;
    let clients = Clients {
        articles,
        admin,
        ids,
    };
    (store, server, clients)
}

async fn fill(archive: &Archive) -> Vec<String> {
    let mut ids = Vec::new();
    for number in 0..ARTICLES {
        let mut article = fields(number as u32);
        // All bodies are alike, so that each article is a near copy of the others.
        article.body = format!("{} number {number}\n", message(0).body.repeat(20));
        let article = Article::new(article).unwrap();
        let put = archive.put(prepared(&article)).await.unwrap();
        ids.push(put.id.to_string());
    }
    ids
}

/// Asks for something until it is held in its middle. Returns how many reads there were before.
async fn begin(
    store: &GatedStore,
    clients: &Arc<Clients>,
    work: Work,
    timeout: Option<Duration>,
) -> (usize, JoinHandle<Status>) {
    for _ in 0..TRIES_MAX {
        let before = store.passed();
        store.close_after(work.reads());
        let same = Arc::clone(clients);
        let mut asking = tokio::spawn(async move { ask(work, &same, timeout).await });
        let wanted = work.reads() + 1;
        tokio::select! {
            () = reached(&store.came_count, wanted, "it does not begin", work) => {
                return (before, asking);
            }
            // The machine was so busy that the time was over before.
            _ = &mut asking, if timeout.is_some() => store.open(),
        }
    }
    panic!("{work:?} does not begin within {timeout:?}");
}

/// Asks for something, stops it in the middle, and checks that no more is read.
async fn check_stops(options: ServeOptions, timeout: Option<Duration>) {
    let (store, server, clients) = served(options).await;
    let clients = Arc::new(clients);
    for work in Work::ALL {
        let (before, asking) = begin(&store, &clients, work, timeout).await;
        if timeout.is_some() {
            let status = tokio::time::timeout(PATIENCE, asking).await.unwrap();
            let status = status.unwrap();
            assert_eq!(
                status.code(),
                Code::DeadlineExceeded,
                "{work:?}: {status:?}"
            );
        } else {
            asking.abort();
        }
        reached(&store.dropped_count, 1, "it goes on", work).await;
        store.open();
        // Another request is served, and nothing was read but what it needs.
        let name = proto::get_article_request::Name::Id(clients.ids[0].clone());
        let get = proto::GetArticleRequest {
            name: Some(name),
            ..Default::default()
        };
        let held = store.passed();
        assert_eq!(held - before, work.reads(), "{work:?}");
        clients.articles.clone().get_article(get).await.unwrap();
        assert!(store.passed() - held <= 3, "{work:?} went on");
    }
    drop(clients);
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_went_away_from_is_not_gone_on_with() {
    check_stops(ServeOptions::default(), None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_late_is_not_gone_on_with() {
    let options = ServeOptions {
        limits: ServiceLimits {
            request_deadline: DEADLINE,
            ..ServiceLimits::default()
        },
        ..ServeOptions::default()
    };
    check_stops(options, Some(DEADLINE)).await;
}
