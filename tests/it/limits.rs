//! Limits against clients that mean harm: what they hold is taken from them, and others are served.
//! Also that every limit has a flag and is told.

use std::future::Future;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::SendStream;
use h2::client::{ResponseFuture, SendRequest};
use http::Response;
use pressmark::rpc::{ServiceLimits, proto};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tonic::codec::CompressionEncoding;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

use crate::desk::{Desk, reason, signed};
use crate::server::{ServerProcess, TestServer, check_folder, import_request, message};
use crate::support::noise;

/// Longer than anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long an attacker waits between two bytes.
const DRIP: Duration = Duration::from_millis(50);

const ARTICLES: &str = "/pressmark.v1.ArticleService";

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(PATIENCE, future).await;
    done.expect("it hangs")
}

fn put(number: usize) -> proto::PutArticleRequest {
    proto::PutArticleRequest {
        article: Some(message(number)),
    }
}

/// A client that speaks HTTP/2 by hand.
pub struct ByHand {
    address: String,
    client: SendRequest<Bytes>,
    connection: JoinHandle<Result<(), h2::Error>>,
}

impl ByHand {
    pub async fn connect(address: &str, builder: &h2::client::Builder) -> Self {
        let socket = TcpStream::connect(address.trim_start_matches("http://")).await;
        let (client, connection) = builder.handshake(socket.unwrap()).await.unwrap();
        Self {
            address: address.to_owned(),
            client,
            connection: tokio::spawn(connection),
        }
    }

    /// Begins a request of a method, whose message is still to come.
    pub fn begin(&mut self, method: &str) -> (ResponseFuture, SendStream<Bytes>) {
        self.begin_encoded(method, None)
    }

    /// The same, with messages in an encoding.
    pub fn begin_encoded(
        &mut self,
        method: &str,
        encoding: Option<&str>,
    ) -> (ResponseFuture, SendStream<Bytes>) {
        let mut request = http::Request::post(format!("{}{method}", self.address))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some(encoding) = encoding {
            request = request.header("grpc-encoding", encoding);
        }
        let request = request.body(()).unwrap();
        self.client.send_request(request, false).unwrap()
    }

    /// Waits until the server takes one more request.
    pub async fn ready(&mut self) {
        self.client = within(self.client.clone().ready()).await.unwrap();
    }
}

/// The code that an answer ends with, in its headers or behind its messages; that of a connection that
/// breaks if there is none.
pub async fn final_code(response: ResponseFuture) -> i32 {
    let Ok(response) = response.await else {
        return Code::Unavailable as i32;
    };
    if response.headers().contains_key("grpc-status") {
        return code_of(&response);
    }
    let mut body = response.into_body();
    while let Some(Ok(bytes)) = body.data().await {
        body.flow_control().release_capacity(bytes.len()).unwrap();
    }
    let Ok(Some(trailers)) = body.trailers().await else {
        return Code::Unavailable as i32;
    };
    trailers["grpc-status"].to_str().unwrap().parse().unwrap()
}

fn code_of<T>(response: &Response<T>) -> i32 {
    let value = response.headers().get("grpc-status").unwrap();
    value.to_str().unwrap().parse().unwrap()
}

/// Does it again and again until it works.
async fn until_it_works<T, F: Future<Output = Result<T, Status>>>(
    mut call: impl FnMut() -> F,
) -> T {
    within(async {
        loop {
            if let Ok(answer) = call().await {
                return answer;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_whose_request_does_not_end_is_ended() {
    let limits = ServiceLimits {
        stream_idle_max: Duration::from_millis(300),
        request_deadline: Duration::from_millis(300),
        ..ServiceLimits::default()
    };
    let server = TestServer::start_limited(limits).await;
    let mut attacker = ByHand::connect(&server.address, &h2::client::Builder::new()).await;
    for first in [&[][..], &[0, 0][..], &[0, 0, 0, 0, 9, 1][..]] {
        let (response, mut body) = attacker.begin(&format!("{ARTICLES}/ScanArticles"));
        body.send_data(Bytes::copy_from_slice(first), false)
            .unwrap();
        let response = within(response).await.unwrap();
        assert_eq!(code_of(&response), Code::Unavailable as i32, "{response:?}");
    }
    attacker.connection.abort();
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_drips_gives_its_room_back() {
    // There is room for one large message.
    let limits = ServiceLimits {
        request_bytes_in_flight_max: 8 * 1024 * 1024,
        request_deadline: Duration::from_millis(700),
        stream_idle_max: Duration::ZERO,
        ..ServiceLimits::default()
    };
    let server = TestServer::start_limited(limits).await;
    let mut attacker = ByHand::connect(&server.address, &h2::client::Builder::new()).await;
    let (response, mut body) = attacker.begin(&format!("{ARTICLES}/ImportArticles"));
    body.send_data(Bytes::from_static(&[0, 0, 0x80, 0, 0]), false)
        .unwrap();
    let dripping = tokio::spawn(async move {
        while body.send_data(Bytes::from_static(&[0]), false).is_ok() {
            tokio::time::sleep(DRIP).await;
        }
    });
    within(response).await.unwrap();
    let articles = server.articles().await;
    let large = proto::Article {
        body: noise(1, 1_000_000),
        ..message(1)
    };
    let article = Some(large);
    until_it_works(|| {
        let mut articles = articles.clone();
        let put = proto::PutArticleRequest {
            article: article.clone(),
        };
        async move { articles.put_article(put).await }
    })
    .await;
    within(dripping).await.unwrap();
    attacker.connection.abort();
    drop(articles);
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_wait_keep_no_room_by_what_was_dealt_with() {
    // There is room for one large message, and what is compressed is taken for the largest.
    let limits = ServiceLimits {
        request_bytes_in_flight_max: 8 * 1024 * 1024,
        ..ServiceLimits::default()
    };
    let server = TestServer::start_limited(limits).await;
    let packed = server.articles().await;
    let packed = packed.send_compressed(CompressionEncoding::Gzip);
    let (mut importing, mut watching, mut putting) = (packed.clone(), packed.clone(), packed);
    let (send, receive) = tokio::sync::mpsc::channel(1);
    send.send(import_request(&[message(1)])).await.unwrap();
    let requests = tokio_stream::wrappers::ReceiverStream::new(receive);
    let answers = within(importing.import_articles(requests)).await.unwrap();
    let mut answers = answers.into_inner();
    let first = within(answers.message()).await.unwrap().unwrap();
    assert_eq!(first.results.len(), 1);
    let watch = proto::WatchArticlesRequest {
        from_sequence: 1,
        ..Default::default()
    };
    let news = within(watching.watch_articles(watch)).await.unwrap();
    let mut news = news.into_inner();
    within(news.message()).await.unwrap().unwrap();
    // Both are open and wait for their clients, and nobody waits for them.
    within(putting.put_article(put(2))).await.unwrap();
    drop((send, answers, news, importing, watching, putting));
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_nobody_takes_do_not_keep_their_places() {
    // Long enough to ask while the place is taken, however busy the machine is.
    let patience = Duration::from_secs(3);
    let limits = ServiceLimits {
        requests_max: 1,
        streams_max: 1,
        request_deadline: patience,
        stream_idle_max: patience,
        ..ServiceLimits::default()
    };
    let server = TestServer::start_limited(limits).await;
    let mut articles = server.articles().await;
    articles.put_article(put(1)).await.unwrap();
    for method in ["ListArticles", "ScanArticles"] {
        // It leaves the server no room to send anything.
        let mut closed = h2::client::Builder::new();
        closed.initial_window_size(0);
        let mut attacker = ByHand::connect(&server.address, &closed).await;
        let (response, mut body) = attacker.begin(&format!("{ARTICLES}/{method}"));
        body.send_data(Bytes::from_static(&[0; 5]), true).unwrap();
        let held = within(response).await.unwrap();
        assert_eq!(held.status(), 200);
        let (call, other) = (articles.clone(), articles.clone());
        if method == "ListArticles" {
            let status = articles.count_articles(proto::CountArticlesRequest::default());
            assert_eq!(reason(&status.await.unwrap_err()), "TOO_MANY_REQUESTS");
            until_it_works(|| {
                let mut call = call.clone();
                async move {
                    call.count_articles(proto::CountArticlesRequest::default())
                        .await
                }
            })
            .await;
        } else {
            let status = articles.scan_articles(proto::ScanArticlesRequest::default());
            assert_eq!(reason(&status.await.unwrap_err()), "TOO_MANY_REQUESTS");
            until_it_works(|| {
                let mut other = other.clone();
                async move {
                    other
                        .scan_articles(proto::ScanArticlesRequest::default())
                        .await
                }
            })
            .await;
        }
        // The connection of the attacker is gone.
        let _ = within(attacker.connection).await.unwrap();
    }
    drop(articles);
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_watches_the_health_takes_no_place_of_a_scan() {
    let limits = ServiceLimits {
        streams_max: 1,
        ..ServiceLimits::default()
    };
    let server = TestServer::start_limited(limits).await;
    let channel = Channel::from_shared(server.address.clone()).unwrap();
    let mut health = HealthClient::new(channel.connect().await.unwrap());
    let watch = health.watch(HealthCheckRequest::default()).await.unwrap();
    let mut articles = server.articles().await;
    let scan = articles.scan_articles(proto::ScanArticlesRequest::default());
    scan.await.unwrap();
    let status = health
        .watch(HealthCheckRequest::default())
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(reason(&status), "TOO_MANY_REQUESTS");
    drop((watch, health, articles));
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_held_by_the_rate_as_well() {
    let desk = Desk::new();
    let reader = desk.add("desk", "reader");
    let tokens = desk.text("tokens.toml");
    let flags = ["--tokens", &tokens, "--requests-per-second-max", "3"];
    let server = desk.serve(&flags);
    let mut articles = crate::server::articles(&server.address).await;
    let mut reasons = Vec::new();
    let begun = Instant::now();
    for _ in 0..30 {
        let count = articles.count_articles(proto::CountArticlesRequest::default());
        let status = count.await.unwrap_err();
        let text = reason(&status);
        if text == "RATE_EXCEEDED" {
            let details = status.get_error_details();
            let pause = details.retry_info().unwrap().retry_delay.unwrap();
            // As many as fit into a second are a third of a second apart.
            assert!(pause <= Duration::from_millis(334), "{pause:?}");
        }
        reasons.push(text);
    }
    assert_eq!(reasons[0], "CREDENTIALS_MISSING");
    let allowed = 3 * (begun.elapsed().as_secs() as usize + 1) + 1;
    let refused = reasons
        .iter()
        .filter(|text| *text == "RATE_EXCEEDED")
        .count();
    assert!(refused >= 30 - allowed.min(29), "{reasons:?}");
    // Whoever is known has a rate of its own.
    let count = signed(proto::CountArticlesRequest::default(), &reader);
    articles.count_articles(count).await.unwrap();
    drop(articles);
    assert!(server.terminate());
    desk.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_above_the_limit_are_told() {
    let server = TestServer::start().await;
    let mut articles = server.articles().await;
    let with_header = |bytes: usize| {
        let mut request = Request::new(proto::CountArticlesRequest::default());
        let value = "a".repeat(bytes).parse().unwrap();
        request.metadata_mut().insert("x-large", value);
        request
    };
    articles.count_articles(with_header(15_000)).await.unwrap();
    let status = articles
        .count_articles(with_header(20_000))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert_eq!(reason(&status), "HEADERS_TOO_LARGE");
    assert!(status.message().contains("16384"), "{status:?}");
    // Far more is refused by HTTP/2 itself.
    within(articles.count_articles(with_header(64_000)))
        .await
        .unwrap_err();
    let mut other = server.articles().await;
    other.put_article(put(1)).await.unwrap();
    drop((articles, other));
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_answer_pings_is_gone_and_who_does_stays() {
    let limits = ServiceLimits {
        // Who means well has as long to answer, on a busy machine too.
        keepalive_interval: Duration::from_secs(3),
        ..ServiceLimits::default()
    };
    let server = TestServer::start_limited(limits).await;
    let mut articles = server.articles().await;
    articles.put_article(put(1)).await.unwrap();
    let address = server.address.trim_start_matches("http://");
    let mut deaf = TcpStream::connect(address).await.unwrap();
    deaf.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .unwrap();
    let mut read = Vec::new();
    within(deaf.read_to_end(&mut read)).await.unwrap();
    // A ping is a frame of type 6.
    assert!(
        read.windows(5).any(|head| head == [0, 0, 8, 6, 0]),
        "{read:?}"
    );
    articles.put_article(put(2)).await.unwrap();
    drop(articles);
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_raised_limit_of_messages_holds() {
    let folder = tempfile::TempDir::new().unwrap();
    let archive = folder.path().join("archive");
    let server = ServerProcess::start_with(&archive, &["--message-mib-max", "12"]);
    let mut articles = crate::server::articles(&server.address).await;
    let large = |number: usize| proto::Article {
        body: noise(number as u32, 2_000_000),
        ..message(number)
    };
    let mut import = async |count: usize| {
        let some: Vec<_> = (0..count).map(large).collect();
        let request = tokio_stream::iter([import_request(&some)]);
        let mut answers = articles
            .import_articles(request)
            .await
            .unwrap()
            .into_inner();
        let mut stored = 0;
        loop {
            match within(answers.message()).await {
                Ok(Some(answer)) => stored += answer.results.len(),
                Ok(None) => return Ok(stored),
                Err(status) => return Err(status),
            }
        }
    };
    assert_eq!(import(5).await.unwrap(), 5, "10 MB are below it");
    let status = import(7).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(reason(&status), "MESSAGE_TOO_LARGE");
    drop(articles);
    assert!(server.terminate());
    check_folder(&archive, async |_| ()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_limit_has_a_flag_and_is_told() {
    let folder = tempfile::TempDir::new().unwrap();
    let archive = folder.path().join("archive");
    let flags = [
        ("--connections-max", "101"),
        ("--connection-streams-max", "102"),
        ("--requests-max", "103"),
        ("--streams-max", "104"),
        ("--message-mib-max", "5"),
        ("--request-mib-in-flight-max", "9"),
        ("--requests-per-second-max", "1005"),
        ("--request-deadline", "31s"),
        ("--stream-idle-max", "32s"),
        ("--connection-age-max", "33m"),
        ("--keepalive-interval", "34s"),
        ("--header-kib-max", "18"),
        ("--queue-articles-max", "106"),
        ("--queue-wait-max", "7s"),
        ("--staleness-max", "8s"),
    ];
    let given: Vec<&str> = flags
        .iter()
        .flat_map(|(flag, value)| [*flag, *value])
        .collect();
    let server = ServerProcess::start_with(&archive, &given);
    let mut admin = crate::server::admin(&server.address).await;
    let info = admin.get_server_info(proto::GetServerInfoRequest {}).await;
    let told = info.unwrap().into_inner().limits.unwrap();
    let mib = 1024 * 1024;
    assert_eq!(told.connections_max, 101);
    assert_eq!(told.connection_streams_max, 102);
    assert_eq!(told.requests_max, 103);
    assert_eq!(told.streams_max, 104);
    assert_eq!(told.article_message_bytes_max, 5 * mib);
    assert_eq!(told.request_bytes_in_flight_max, 9 * mib);
    assert_eq!(told.requests_per_second_max, Some(1005));
    assert_eq!(told.request_deadline_ms, 31_000);
    assert_eq!(told.stream_idle_ms_max, Some(32_000));
    assert_eq!(told.connection_age_ms_max, Some(33 * 60_000));
    assert_eq!(told.keepalive_interval_ms, Some(34_000));
    assert_eq!(told.header_bytes_max, 18 * 1024);
    assert_eq!(told.queue_articles_max, 106);
    assert_eq!(told.queue_wait_ms_max, 7000);
    assert_eq!(told.staleness_ms_max, 8000);
    drop(admin);
    assert!(server.terminate());
    // The help has no other ones, and the README tells of each.
    let help = crate::cli::Ran::of(crate::cli::program().args(["serve", "--help"])).exits(0);
    let (_, limits) = help.out.split_once("\nLimits:").unwrap();
    let limits = limits.split("\nFlags of every command:").next().unwrap();
    let words = limits
        .lines()
        .filter_map(|line| line.trim().split(' ').next());
    let mut in_help: Vec<_> = words.filter(|word| word.starts_with("--")).collect();
    let mut known: Vec<_> = flags.iter().map(|(flag, _)| *flag).collect();
    in_help.sort_unstable();
    known.sort_unstable();
    assert_eq!(in_help, known);
    let readme = include_str!("../../README.md");
    let (_, table) = readme
        .split_once("| flag | default | what is above |")
        .unwrap();
    let table = table.split("\n\n").next().unwrap();
    for flag in known {
        assert!(
            table.contains(&format!("`{flag}`")),
            "{flag} is not in the README"
        );
    }
    check_folder(&archive, async |_| ()).await;
}
