//! What an operator sees of a server: its health, its figures, its log and its audit lines.

use std::collections::BTreeSet;
use std::io::Read;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pressmark::archive::{Archive, Limits};
use pressmark::error::{Error, Reason};
use pressmark::rpc::{ServeOptions, proto};
use pressmark::store::{
    Batch, Chunk, Durability, Look, MemoryStore, Scan, Store, StoreStats, open_replica,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::cli::program;
use crate::desk::{Desk, signed};
use crate::faulty::{Fails, Fault, FaultyStore};
use crate::guard::get;
use crate::limits::within;
use crate::server::{ServerProcess, TestServer, check, check_folder, import_request, message};
use crate::support::{Engine, bucket_in, small_cache};

/// Every service that tells how it is, the whole server first.
const SERVICES: [&str; 3] = [
    "",
    "pressmark.v1.ArticleService",
    "pressmark.v1.AdminService",
];

fn put(number: usize) -> proto::PutArticleRequest {
    proto::PutArticleRequest {
        article: Some(message(number)),
    }
}

pub async fn health(address: &str) -> HealthClient<Channel> {
    let channel = Channel::from_shared(address.to_owned()).unwrap();
    HealthClient::new(channel.connect().await.unwrap())
}

pub fn of_service(service: &str) -> HealthCheckRequest {
    HealthCheckRequest {
        service: service.to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_turns_before_the_stop_and_its_watchers_do_not_hold_it_up() {
    let folder = tempfile::TempDir::new().unwrap();
    let archive = folder.path().join("archive");
    let server = ServerProcess::start_with(&archive, &["--drain-seconds", "60"]);
    let mut health = health(&server.address).await;
    let mut watches = Vec::new();
    for service in SERVICES {
        let watch = health.watch(of_service(service)).await.unwrap();
        let mut watch = watch.into_inner();
        let first = within(watch.message()).await.unwrap().unwrap();
        assert_eq!(first.status(), ServingStatus::Serving);
        watches.push(watch);
    }
    let begun = Instant::now();
    let stopping = tokio::task::spawn_blocking(|| server.terminate());
    for mut watch in watches {
        let next = within(watch.message()).await.unwrap().unwrap();
        assert_eq!(next.status(), ServingStatus::NotServing);
        let end = within(watch.message()).await.unwrap_err();
        assert_eq!(end.code(), Code::Unavailable, "{end:?}");
    }
    assert!(stopping.await.unwrap());
    // The time that open requests get is a minute.
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(50), "{took:?}");
    check_folder(&archive, async |_| ()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_write_is_told_by_health_readiness_and_figures() {
    let empty = MemoryStore::new();
    // The first write begins the archive.
    let store = FaultyStore::on(&empty, Fails::Write(2, Fault::Lost)).await;
    let options = ServeOptions::default();
    let server = TestServer::serve_on(store, Limits::default(), false, options).await;
    let mut articles = server.articles().await;
    articles.put_article(put(1)).await.unwrap();
    assert!(
        get(&server.http_address, "/readyz")
            .await
            .starts_with("HTTP/1.1 200")
    );
    let status = articles.put_article(put(2)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    let ready = get(&server.http_address, "/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 503"), "{ready}");
    assert!(ready.contains("on purpose"), "{ready}");
    assert!(
        get(&server.http_address, "/healthz")
            .await
            .starts_with("HTTP/1.1 200")
    );
    turns(&server.address).await;
    let figures = get(&server.http_address, "/metrics").await;
    assert!(
        figures.contains("\npressmark_takes_writes 0\n"),
        "{figures}"
    );
    drop(articles);
    // An archive that cannot write cannot be closed in good order.
    server.end().await.unwrap_err();
}

/// Waits until each service of a server says that it does not serve.
async fn turns(address: &str) {
    let mut health = health(address).await;
    for service in SERVICES {
        let watch = health.watch(of_service(service)).await.unwrap();
        let mut watch = watch.into_inner();
        let turned = async {
            while watch.message().await.unwrap().unwrap().status() != ServingStatus::NotServing {}
        };
        within(turned).await;
    }
}

/// Checks that a server is as ready as a status says, with a text that has a part.
async fn check_ready(http: &str, status: u16, part: &str) {
    let answer = get(http, "/readyz").await;
    let line = format!("HTTP/1.1 {status} ");
    assert!(
        answer.starts_with(&line) && answer.contains(part),
        "{answer}"
    );
}

/// One that is used in a program of its own, which does not end it for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_replaced_does_not_serve() {
    let folder = tempfile::TempDir::new().unwrap();
    let store = Engine::Slate.open(folder.path()).await.unwrap();
    let options = ServeOptions::default();
    let server = TestServer::serve_on(store, Limits::default(), false, options).await;
    let mut articles = server.articles().await;
    articles.put_article(put(1)).await.unwrap();
    check_ready(&server.http_address, 200, "serves").await;
    // As if it had not given a sign of life for a while.
    std::fs::remove_file(folder.path().join("bucket/writer")).unwrap();
    let next = Engine::Slate.open(folder.path()).await.unwrap();
    let (next, guard) = Archive::open(next, Limits::default()).await.unwrap();
    turns(&server.address).await;
    check_ready(&server.http_address, 503, "taken the archive over").await;
    let status = articles.put_article(put(2)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    drop(articles);
    // It wrote nothing that could be lost.
    server.end().await.unwrap();
    assert_eq!(next.committed(), 1);
    check(&next).await;
    guard.close().await.unwrap();
}

/// A replica, and whether it can follow no more.
#[derive(Debug)]
struct Leaving {
    replica: Arc<dyn Store>,
    has_left: watch::Sender<bool>,
}

impl Leaving {
    fn error() -> Error {
        Error::new(Reason::StoreFailed, "it is not followed any more")
    }
}

#[async_trait::async_trait]
impl Store for Leaving {
    fn engine(&self) -> &'static str {
        self.replica.engine()
    }

    async fn get_many(&self, keys: Vec<Vec<u8>>) -> Result<Vec<Option<Bytes>>, Error> {
        self.replica.get_many(keys).await
    }

    async fn scan_many(&self, scans: Vec<Scan>) -> Result<Vec<Chunk>, Error> {
        self.replica.scan_many(scans).await
    }

    async fn write(&self, batch: Batch, durability: Durability) -> Result<(), Error> {
        self.replica.write(batch, durability).await
    }

    fn looks(&self) -> Option<watch::Receiver<Look>> {
        self.replica.looks()
    }

    fn check_not_replaced(&self) -> Result<(), Error> {
        if *self.has_left.borrow() {
            return Err(Self::error());
        }
        Ok(())
    }

    async fn replaced(&self) -> Error {
        let mut has_left = self.has_left.subscribe();
        has_left.wait_for(|has_left| *has_left).await.unwrap();
        Self::error()
    }

    async fn stats(&self) -> Result<StoreStats, Error> {
        self.replica.stats().await
    }

    async fn close(&self) -> Result<(), Error> {
        self.replica.close().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_can_follow_no_more_does_not_serve() {
    let folder = tempfile::TempDir::new().unwrap();
    let writer = Engine::Slate.open(folder.path()).await.unwrap();
    let (writer, writer_guard) = Archive::open(writer, Limits::default()).await.unwrap();
    let place = bucket_in(folder.path());
    let replica = open_replica(&place, &small_cache()).await.unwrap();
    let (has_left, _) = watch::channel(false);
    let store = Arc::new(Leaving {
        replica,
        has_left: has_left.clone(),
    });
    let opened = Archive::open_replica(store, Limits::default()).await;
    let mut options = ServeOptions::default();
    // That it is behind is told as well, and is not what is meant here.
    options.limits.staleness_max = Duration::from_secs(3600);
    let server = TestServer::serve_archive(opened.unwrap(), false, options).await;
    check_ready(&server.http_address, 200, "serves").await;
    has_left.send_replace(true);
    check_ready(&server.http_address, 503, "not followed any more").await;
    turns(&server.address).await;
    // What it has is read all the same.
    server.finish().await;
    check(&writer).await;
    writer_guard.close().await.unwrap();
}

/// The names of all figures that a server prints, as queries call them.
fn names(figures: &str) -> BTreeSet<String> {
    let lines = figures
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "));
    let names = lines.map(|line| match line.split_once(' ').unwrap() {
        (name, "counter") => format!("{name}_total"),
        (name, _) => name.to_owned(),
    });
    names.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_readme_tells_of_every_figure() {
    let folder = tempfile::TempDir::new().unwrap();
    let archive = folder.path().join("archive");
    let backup = folder.path().join("backup");
    let backup = backup.to_str().unwrap();
    let flags = ["--http-listen", "127.0.0.1:0", "--backup-to", backup];
    let mut server = ServerProcess::start_with(&archive, &flags);
    let address = &server.figures_address();
    let mut articles = crate::server::articles(&server.address).await;
    articles.put_article(put(1)).await.unwrap();
    get(address, "/api/sources").await;
    let figures = async {
        loop {
            let figures = get(address, "/metrics").await;
            // A new archive is scrubbed at once; its figures come after that.
            if figures.contains("pressmark_scrub_findings 0") {
                return figures;
            }
            tokio::task::yield_now().await;
        }
    };
    let printed = names(&within(figures).await);
    let readme = include_str!("../../README.md");
    let (_, table) = readme.split_once("| metric |").unwrap();
    let table = table.split("\n\n").next().unwrap();
    let words = table.split('`').skip(1).step_by(2);
    let is_figure =
        |word: &&str| word.starts_with("pressmark_") || word.starts_with("grpc_server_");
    let told: BTreeSet<String> = words.filter(is_figure).map(str::to_owned).collect();
    let missing: Vec<_> = printed.difference(&told).collect();
    assert!(
        missing.is_empty(),
        "the README does not tell of {missing:?}"
    );
    // Replicas alone print it, and their own tests look for it.
    let is_of_writers = |name: &&String| *name != "pressmark_staleness_seconds";
    let gone = told.difference(&printed).filter(is_of_writers);
    let gone: Vec<_> = gone.collect();
    assert!(gone.is_empty(), "nobody prints {gone:?}");
    assert!(printed.len() > 30, "{printed:?}");
    drop(articles);
    assert!(server.terminate());
    check_folder(&archive, async |_| ()).await;
}

/// A server that logs objects, and a thread that reads them.
fn logged(desk: &Desk, level: &str) -> (ServerProcess, std::thread::JoinHandle<String>) {
    let mut command = program();
    command.args(["serve", "--listen", "127.0.0.1:0", "--log-format", "json"]);
    command.args(["--tokens", &desk.text("tokens.toml")]);
    command.args(["--archive", &desk.text("archive")]);
    command.stderr(Stdio::piped()).env("PRESSMARK_LOG", level);
    let mut server = ServerProcess::of(command);
    let mut log = server.take_stderr();
    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        log.read_to_string(&mut text).map(|_| text).unwrap()
    });
    (server, reading)
}

fn objects(log: &str) -> Vec<serde_json::Value> {
    let object = |line| serde_json::from_str(line).unwrap();
    log.lines().map(object).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_nobody_waits_for_leaves_its_line_too() {
    let desk = Desk::new();
    let writer = desk.add("importer", "writer");
    let (server, reading) = logged(&desk, "info");
    let mut articles = crate::server::articles(&server.address).await;
    for number in 0..200 {
        let mut request = signed(put(number), &writer);
        request.set_timeout(Duration::from_millis(1 + number as u64 % 8));
        // Most are given up, of which some are stored.
        let _ = articles.put_article(request).await;
    }
    for import in 0..10 {
        let (send, receive) = mpsc::channel(1);
        let first = 1000 + import * 100;
        let some: Vec<_> = (first..first + 100).map(message).collect();
        send.send(import_request(&some)).await.unwrap();
        let requests = signed(ReceiverStream::new(receive), &writer);
        let mut answers = articles
            .import_articles(requests)
            .await
            .unwrap()
            .into_inner();
        within(answers.message()).await.unwrap();
        // It goes while results are on their way.
    }
    drop(articles);
    assert!(server.terminate());
    let lines = objects(&reading.join().unwrap());
    let lines = lines.iter().filter(|line| line["target"] == "audit");
    let mut told: Vec<_> = lines
        .map(|line| line["sequence"].as_u64().unwrap())
        .collect();
    told.sort_unstable();
    let last = check_folder(&desk.path("archive"), async |archive| archive.committed()).await;
    let expected: Vec<_> = (1..=last).collect();
    assert_eq!(told, expected);
    assert!(last >= 1000, "{last}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_line_of_a_request_has_its_name_and_none_has_an_article() {
    let desk = Desk::new();
    let writer = desk.add("importer", "writer");
    let (server, reading) = logged(&desk, "debug");
    let mut articles = crate::server::articles(&server.address).await;
    let named = |name: &str, mut request: Request<proto::ScanArticlesRequest>| {
        let name = name.parse().unwrap();
        request.metadata_mut().insert("x-request-id", name);
        request
    };
    articles.put_article(signed(put(1), &writer)).await.unwrap();
    let scan = signed(proto::ScanArticlesRequest::default(), &writer);
    let mut scan = articles
        .scan_articles(named("scan-1", scan))
        .await
        .unwrap()
        .into_inner();
    while scan.message().await.unwrap().is_some() {}
    let bad = proto::PutArticleRequest {
        article: Some(proto::Article {
            url: "no url".into(),
            ..message(2)
        }),
    };
    articles
        .put_article(signed(bad, &writer))
        .await
        .unwrap_err();
    drop((articles, scan));
    assert!(server.terminate());
    let log = reading.join().unwrap();
    let answered: Vec<_> = objects(&log)
        .into_iter()
        .filter(|line| line["message"] == "answered")
        .collect();
    let told: Vec<_> = answered
        .iter()
        .map(|line| {
            let span = &line["span"];
            let id = span["id"].as_str().unwrap().to_owned();
            assert_eq!(span["identity"], "importer", "{line}");
            (
                line["method"].as_str().unwrap(),
                line["code"].as_str().unwrap(),
                id,
            )
        })
        .collect();
    let methods: Vec<_> = told
        .iter()
        .map(|(method, code, _)| (*method, *code))
        .collect();
    let expected = [
        ("PutArticle", "OK"),
        ("ScanArticles", "OK"),
        ("PutArticle", "InvalidArgument"),
    ];
    assert_eq!(methods, expected, "{log}");
    assert_eq!(told[1].2, "scan-1");
    for text in ["Body of number", "Title 1", "example.com"] {
        assert!(!log.contains(text), "{text} is in the log");
    }
    desk.finish().await;
}
