//! Spans of requests, as a collector gets them.

use std::collections::HashMap;
use std::io::Read;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use pressmark::rpc::proto;
use tempfile::TempDir;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

use crate::desk::Desk;
use crate::server::{ServerProcess, check_folder, message};

/// A caller's trace, its span in it, and whether the caller records it.
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// Keeps what it is sent.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Starts it and returns where it is.
    async fn start(&self) -> String {
        self.start_on(Server::builder(), "http").await
    }

    async fn start_on(&self, mut server: Server, scheme: &str) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("{scheme}://{}", listener.local_addr().unwrap());
        let server = server.add_service(TraceServiceServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        address
    }

    fn spans(&self) -> Vec<Span> {
        let requests = self.0.lock().unwrap();
        let resources = requests.iter().flat_map(|request| &request.resource_spans);
        let scopes = resources.flat_map(|resource| &resource.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attributes(span: &Span) -> HashMap<&str, &str> {
    let attributes = span.attributes.iter().map(|attribute| {
        let value = attribute.value.as_ref().unwrap().value.as_ref().unwrap();
        let Value::StringValue(text) = value else {
            panic!("{value:?} is no text");
        };
        (attribute.key.as_str(), text.as_str())
    });
    attributes.collect()
}

fn put(number: usize, traceparent: Option<&str>) -> Request<proto::PutArticleRequest> {
    let mut request = Request::new(proto::PutArticleRequest {
        article: Some(message(number)),
    });
    let metadata = request.metadata_mut();
    metadata.insert("x-request-id", format!("put-{number}").parse().unwrap());
    if let Some(traceparent) = traceparent {
        metadata.insert("traceparent", traceparent.parse().unwrap());
    }
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_gets_a_span_for_every_request() {
    let folder = TempDir::new().unwrap();
    let archive = folder.path().join("archive");
    let collector = Collector::default();
    let endpoint = collector.start().await;
    let server = ServerProcess::start_with(&archive, &["--otlp-endpoint", &endpoint]);
    let mut articles = crate::server::articles(&server.address).await;
    let recorded = format!("00-{TRACE}-{PARENT}-01");
    articles.put_article(put(1, Some(&recorded))).await.unwrap();
    let unrecorded = format!("00-{TRACE}-{PARENT}-00");
    articles
        .put_article(put(2, Some(&unrecorded)))
        .await
        .unwrap();
    articles.put_article(put(3, None)).await.unwrap();
    articles
        .get_article(proto::GetArticleRequest::default())
        .await
        .unwrap_err();
    let scan = articles
        .scan_articles(proto::ScanArticlesRequest::default())
        .await;
    let mut scan = scan.unwrap().into_inner();
    while scan.message().await.unwrap().is_some() {}
    // Whether it lives is asked all the time, and is in no trace.
    let channel = tonic::transport::Channel::from_shared(server.address.clone()).unwrap();
    let channel = channel.connect().await.unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    let check = tonic_health::pb::HealthCheckRequest::default();
    health.check(check).await.unwrap();
    drop((articles, scan, health));
    // What was not sent yet is sent before the end.
    assert!(server.terminate());

    let spans = collector.spans();
    let named = |name: &str| {
        let name = format!("pressmark.v1.ArticleService/{name}");
        let spans = spans.iter().filter(move |span| span.name == name);
        spans.collect::<Vec<_>>()
    };
    assert_eq!(spans.len(), 4, "{spans:#?}");
    let puts = named("PutArticle");
    let followed = puts
        .iter()
        .find(|span| !span.parent_span_id.is_empty())
        .unwrap();
    assert_eq!(
        (hex(&followed.trace_id), hex(&followed.parent_span_id)),
        (TRACE.into(), PARENT.into())
    );
    assert_eq!(followed.kind, 2, "that of a server");
    assert!(followed.end_time_unix_nano > followed.start_time_unix_nano);
    let told = attributes(followed);
    assert_eq!(told["rpc.system.name"], "grpc");
    assert_eq!(told["rpc.method"], "pressmark.v1.ArticleService/PutArticle");
    assert_eq!(told["rpc.response.status_code"], "OK");
    assert_eq!(told["pressmark.request_id"], "put-1");
    let begun = puts
        .iter()
        .find(|span| span.parent_span_id.is_empty())
        .unwrap();
    assert_ne!(hex(&begun.trace_id), TRACE);
    assert_eq!(attributes(begun)["pressmark.request_id"], "put-3");
    let refused = named("GetArticle")[0];
    assert_eq!(
        attributes(refused)["rpc.response.status_code"],
        "INVALID_ARGUMENT"
    );
    assert_eq!(attributes(refused)["error.type"], "INVALID_ARGUMENT");
    assert_eq!(
        refused.status.as_ref().map_or(0, |status| status.code),
        0,
        "no fault of the server"
    );
    assert_eq!(
        attributes(named("ScanArticles")[0])["rpc.response.status_code"],
        "OK"
    );
    let everything = format!("{:?}", collector.0.lock().unwrap());
    assert!(everything.contains("pressmark") && everything.contains("service.name"));
    for word in ["Title", "Body of", "Gazette", "example.com"] {
        assert!(
            !everything.contains(word),
            "{word} of an article is in a span"
        );
    }
    check_folder(&archive, async |_| ()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_share_that_is_asked_for_is_traced() {
    let folder = TempDir::new().unwrap();
    let archive = folder.path().join("archive");
    let collector = Collector::default();
    let endpoint = collector.start().await;
    let flags = ["--otlp-endpoint", &endpoint, "--otlp-ratio", "0"];
    let server = ServerProcess::start_with(&archive, &flags);
    let mut articles = crate::server::articles(&server.address).await;
    for number in 0..20 {
        articles.put_article(put(number, None)).await.unwrap();
    }
    let recorded = format!("00-{TRACE}-{PARENT}-01");
    articles
        .put_article(put(20, Some(&recorded)))
        .await
        .unwrap();
    drop(articles);
    assert!(server.terminate());
    let traces: Vec<_> = collector
        .spans()
        .iter()
        .map(|span| hex(&span.trace_id))
        .collect();
    assert_eq!(traces, [TRACE]);
    check_folder(&archive, async |_| ()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_is_reached_over_tls() {
    let desk = Desk::new();
    let pem = |name: &str| std::fs::read_to_string(desk.path(name)).unwrap();
    let tls = ServerTlsConfig::new().identity(Identity::from_pem(pem("cert.pem"), pem("key.pem")));
    let collector = Collector::default();
    let server = Server::builder().tls_config(tls).unwrap();
    let endpoint = collector.start_on(server, "https").await;
    for (roots, count) in [("ca.pem", 1), ("tokens.toml", 0)] {
        let mut command = crate::cli::program();
        command.args(["serve", "--listen", "127.0.0.1:0", "--otlp-endpoint"]);
        command
            .arg(&endpoint)
            .arg("--archive")
            .arg(desk.path("archive"));
        // The roots of the system, which the collector's certificate has to come from.
        command
            .env("SSL_CERT_FILE", desk.path(roots))
            .env("PRESSMARK_LOG", "error");
        let server = ServerProcess::of(command);
        let mut articles = crate::server::articles(&server.address).await;
        let counting = articles.count_articles(proto::CountArticlesRequest::default());
        counting.await.unwrap();
        drop(articles);
        assert!(server.terminate());
        let taken = std::mem::take(&mut *collector.0.lock().unwrap());
        assert_eq!(taken.len(), count, "with the roots in {roots}");
    }
    desk.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_away_is_in_nobodys_way() {
    let folder = TempDir::new().unwrap();
    let archive = folder.path().join("archive");
    // Takes connections and never answers, which is worse than to refuse them.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let mut command = crate::cli::program();
    command.args([
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--otlp-endpoint",
        &endpoint,
        "--archive",
    ]);
    command
        .arg(&archive)
        .env("PRESSMARK_LOG", "warn")
        .stderr(Stdio::piped());
    let mut server = ServerProcess::of(command);
    let mut log = server.take_stderr();
    let mut articles = crate::server::articles(&server.address).await;
    // More spans than may wait.
    let begun = Instant::now();
    let asking = (0..6000).map(|_| {
        let mut articles = articles.clone();
        async move {
            articles
                .count_articles(proto::CountArticlesRequest::default())
                .await
        }
    });
    let asked = futures_util::StreamExt::buffer_unordered(tokio_stream::iter(asking), 64);
    let asked: Vec<_> = futures_util::StreamExt::collect(asked).await;
    assert!(asked.iter().all(Result::is_ok));
    articles.put_article(put(1, None)).await.unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(60),
        "{:?}",
        begun.elapsed()
    );
    drop(articles);
    let stopped = Instant::now();
    assert!(server.terminate());
    assert!(
        stopped.elapsed() < Duration::from_secs(30),
        "{:?}",
        stopped.elapsed()
    );
    let mut text = String::new();
    log.read_to_string(&mut text).unwrap();
    assert!(text.contains("spans"), "{text}");
    assert!(text.lines().count() < 10, "it is told once: {text}");
    check_folder(&archive, async |archive| {
        assert_eq!(archive.stats().await.unwrap().totals.article_count, 1);
    })
    .await;
}

#[test]
fn an_endpoint_and_a_share_are_checked() {
    for (flags, part) in [
        (["--otlp-endpoint", "localhost:4317"], "otlp-endpoint"),
        (["--otlp-endpoint", "ftp://localhost"], "otlp-endpoint"),
        (["--otlp-ratio", "2"], "otlp-ratio"),
    ] {
        let mut command = crate::cli::program();
        command.args(["serve", "--archive", "memory:", "--listen", "127.0.0.1:0"]);
        let ran = crate::cli::Ran::of(command.args(flags)).exits(2);
        assert!(ran.err.contains(part), "{}", ran.err);
    }
}
