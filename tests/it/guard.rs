//! The limits of the service: what is refused, what is cut, and that everybody else is served.

use std::future::Future;
use std::time::{Duration, Instant};

use pressmark::rpc::{ServiceLimits, proto};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::codec::CompressionEncoding;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use crate::desk::reason;
use crate::server::{ServerProcess, TestServer, check_folder, import_request, message};
use crate::support::noise;

/// Longer than anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn may_be_retried(status: &Status) -> bool {
    status.get_error_details().retry_info().is_some()
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("it hangs")
}

fn watch() -> proto::WatchArticlesRequest {
    proto::WatchArticlesRequest {
        from_sequence: 1,
        ..Default::default()
    }
}

#[tokio::test]
async fn a_stream_too_many_is_refused_until_one_ends() {
    let limits = ServiceLimits {
        streams_max: 2,
        ..ServiceLimits::default()
    };
    let server = TestServer::start_limited(limits).await;
    let mut articles = server.articles().await;
    let first = articles.watch_articles(watch()).await.unwrap();
    let _second = articles.watch_articles(watch()).await.unwrap();
    let status = articles.watch_articles(watch()).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::Unavailable, "TOO_MANY_REQUESTS")
    );
    assert!(
        may_be_retried(&status) && status.message().contains('2'),
        "{status:?}"
    );
    // Other requests have places of their own.
    articles
        .count_articles(proto::CountArticlesRequest::default())
        .await
        .unwrap();
    drop(first);
    let again = async {
        while articles.watch_articles(watch()).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    within(again).await;
    drop(articles);
    server.finish().await;
}

#[tokio::test]
async fn a_rate_is_kept_by_telling_how_long_to_wait() {
    let limits = ServiceLimits {
        requests_per_second_max: 5,
        ..ServiceLimits::default()
    };
    let server = TestServer::start_limited(limits).await;
    let articles = server.articles().await;
    let mut refused = 0;
    let began = Instant::now();
    // All at once, so that a slow machine is not within the rate.
    let asking = (0..20).map(|_| {
        let mut articles = articles.clone();
        async move {
            let count = proto::CountArticlesRequest::default();
            articles.count_articles(count).await
        }
    });
    for answer in futures_util::future::join_all(asking).await {
        match answer {
            Ok(_) => {}
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted);
                assert_eq!(reason(&status), "RATE_EXCEEDED");
                assert!(may_be_retried(&status));
                refused += 1;
            }
        }
    }
    let allowed = 5 + began.elapsed().as_secs() as u32 * 5 + 5;
    assert!(
        refused >= 20_u32.saturating_sub(allowed) && refused > 0,
        "{refused}"
    );
    drop(articles);
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_of_a_millisecond_on_everything_is_told_and_harms_nothing() {
    let server = TestServer::start().await;
    let mut articles = server.articles().await;
    let mut over = 0;
    for number in 0..200 {
        let mut put = Request::new(proto::PutArticleRequest {
            article: Some(message(number)),
        });
        put.set_timeout(Duration::from_millis(1));
        let mut scan = Request::new(proto::ScanArticlesRequest::default());
        scan.set_timeout(Duration::from_millis(1));
        let scanned = async {
            let mut stream = articles.clone().scan_articles(scan).await?.into_inner();
            while stream.message().await?.is_some() {}
            Ok::<_, Status>(())
        };
        let scanned = within(scanned).await;
        let put = within(articles.put_article(put)).await.map(|_| ());
        for status in [put, scanned].into_iter().filter_map(Result::err) {
            // The client's own clock answers CANCELLED with the same meaning.
            let codes = [Code::DeadlineExceeded, Code::Cancelled];
            assert!(codes.contains(&status.code()), "{status:?}");
            over += 1;
        }
    }
    println!("{over} of 400 were over");
    let count = articles.count_articles(proto::CountArticlesRequest::default());
    within(count).await.unwrap();
    drop(articles);
    server.finish().await;
}

#[tokio::test]
async fn the_server_itself_ends_what_takes_too_long() {
    let limits = ServiceLimits {
        request_deadline: Duration::from_millis(200),
        ..ServiceLimits::default()
    };
    let server = TestServer::start_limited(limits).await;
    // A request whose message never comes to its end.
    let (status, _) = half_a_put(&server.address).await;
    assert_eq!(status, "4", "DEADLINE_EXCEEDED");
    server.finish().await;
}

/// Sends the beginning of a put, by hand, and returns the status and the message.
async fn half_a_put(address: &str) -> (String, String) {
    let socket = TcpStream::connect(address.trim_start_matches("http://"))
        .await
        .unwrap();
    let (mut client, connection) = h2::client::handshake(socket).await.unwrap();
    let talking = tokio::spawn(connection);
    let request = http::Request::post(format!("{address}/pressmark.v1.ArticleService/PutArticle"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (response, mut body) = client.send_request(request, false).unwrap();
    // It claims a message that never comes.
    let prefix = [0, 0, 0, 255, 255];
    body.send_data(bytes::Bytes::copy_from_slice(&prefix), false)
        .unwrap();
    let response = within(response).await.unwrap();
    let text = |name: &str| {
        let value = response.headers().get(name);
        value
            .map(|value| value.to_str().unwrap().to_owned())
            .unwrap_or_default()
    };
    let told = (text("grpc-status"), text("grpc-message"));
    drop((client, body));
    talking.abort();
    told
}

#[tokio::test]
async fn an_import_without_articles_does_not_stay_for_ever() {
    let limits = ServiceLimits {
        stream_idle_max: Duration::from_millis(300),
        ..ServiceLimits::default()
    };
    let server = TestServer::start_limited(limits).await;
    let mut articles = server.articles().await;
    let (send, receive) = tokio::sync::mpsc::channel(4);
    let requests = tokio_stream::wrappers::ReceiverStream::new(receive);
    send.send(import_request(&[message(1)])).await.unwrap();
    let mut results = articles
        .import_articles(requests)
        .await
        .unwrap()
        .into_inner();
    let first = within(results.message()).await.unwrap().unwrap();
    assert_eq!(first.results.len(), 1);
    let status = within(results.message()).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::Unavailable, "STREAM_IDLE")
    );
    drop((articles, results, send));
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_nothing_loses_the_connection_and_nobody_else_does() {
    let limits = ServiceLimits {
        stream_idle_max: Duration::from_millis(500),
        ..ServiceLimits::default()
    };
    let server = TestServer::start_limited(limits).await;
    let mut patient = server.articles().await;
    for number in 0..12 {
        let mut article = message(number);
        article.body = noise(number as u32, 1_000_000);
        let put = proto::PutArticleRequest {
            article: Some(article),
        };
        patient.put_article(put).await.unwrap();
    }
    // A watch that waits for what does not come is not behind.
    let next = proto::WatchArticlesRequest {
        from_sequence: 13,
        ..Default::default()
    };
    let mut waiting = patient.watch_articles(next).await.unwrap().into_inner();
    assert!(within(waiting.message()).await.is_ok());
    let mut slow = server.articles().await;
    let mut scan = slow
        .scan_articles(proto::ScanArticlesRequest::default())
        .await
        .unwrap()
        .into_inner();
    within(scan.message()).await.unwrap();
    // The connection ends while nobody reads; what had come before can still be read.
    let mut cut = server.articles().await;
    let gone = async {
        // Those of the two that read are left, and the one that asks.
        let left = "\npressmark_connections 3\n";
        while !get(&server.http_address, "/metrics").await.contains(left) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    within(gone).await;
    let rest = async {
        loop {
            match scan.message().await {
                Ok(Some(_)) => {}
                Ok(None) => break Ok(()),
                Err(status) => break Err(status),
            }
        }
    };
    assert!(
        within(rest).await.is_err(),
        "12 MB were not taken and still came"
    );
    cut.count_articles(proto::CountArticlesRequest::default())
        .await
        .unwrap();
    let put = proto::PutArticleRequest {
        article: Some(message(100)),
    };
    patient.put_article(put).await.unwrap();
    let news = within(waiting.message()).await.unwrap().unwrap();
    assert_eq!(news.changes.len(), 1);
    drop((patient, slow, cut, scan, waiting));
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_above_the_limit_are_closed_and_the_others_served() {
    let limits = ServiceLimits {
        connections_max: 3,
        ..ServiceLimits::default()
    };
    let server = TestServer::start_limited(limits).await;
    let mut articles = server.articles().await;
    articles
        .count_articles(proto::CountArticlesRequest::default())
        .await
        .unwrap();
    let address = server.address.trim_start_matches("http://").to_owned();
    let mut open = Vec::new();
    for _ in 0..50 {
        open.push(TcpStream::connect(&address).await.unwrap());
    }
    let mut closed = 0;
    for socket in &mut open {
        let mut byte = [0];
        // A server of HTTP/2 speaks first, so whoever is let in reads a byte.
        let read = within(socket.read(&mut byte)).await;
        closed += usize::from(matches!(read, Ok(0) | Err(_)));
    }
    assert_eq!(closed, 48);
    articles
        .count_articles(proto::CountArticlesRequest::default())
        .await
        .unwrap();
    drop((open, articles));
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_nothing_is_sent_away() {
    let server = TestServer::start().await;
    let address = server.address.trim_start_matches("http://").to_owned();
    let mut silent = TcpStream::connect(&address).await.unwrap();
    let mut slow = TcpStream::connect(&address).await.unwrap();
    slow.write_all(b"PRI * HT").await.unwrap();
    let mut brief = TcpStream::connect(&address).await.unwrap();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    brief.write_all(preface).await.unwrap();
    let mut rest = Vec::new();
    within(silent.read_to_end(&mut rest)).await.unwrap();
    within(slow.read_to_end(&mut rest)).await.unwrap();
    within(brief.read_to_end(&mut rest)).await.unwrap();
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_connection_is_asked_to_end_and_its_stream_goes_on() {
    let limits = ServiceLimits {
        connection_age_max: Duration::from_secs(1),
        ..ServiceLimits::default()
    };
    let server = TestServer::start_limited(limits).await;
    let socket = TcpStream::connect(server.address.trim_start_matches("http://"))
        .await
        .unwrap();
    let (client, connection) = h2::client::handshake(socket).await.unwrap();
    let talking = tokio::spawn(connection);
    let path = format!(
        "{}/pressmark.v1.ArticleService/WatchArticles",
        server.address
    );
    let request = http::Request::post(path)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let mut client = client.ready().await.unwrap();
    let (response, mut body) = client.send_request(request, false).unwrap();
    // from_sequence 1, heartbeat as it is.
    body.send_data(bytes::Bytes::from_static(&[0, 0, 0, 0, 2, 16, 1]), true)
        .unwrap();
    let mut stream = within(response).await.unwrap().into_body();
    let asked = async {
        let mut client = client;
        loop {
            match client.ready().await {
                Ok(ready) => client = ready,
                Err(_) => break,
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(asked).await;
    let put = proto::PutArticleRequest {
        article: Some(message(1)),
    };
    server.articles().await.put_article(put).await.unwrap();
    within(stream.data()).await.unwrap().unwrap();
    drop(stream);
    talking.abort();
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_are_compressed_if_the_client_asks_and_bombs_are_refused() {
    let server = TestServer::start().await;
    for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Zstd] {
        let mut articles = server
            .articles()
            .await
            .send_compressed(encoding)
            .accept_compressed(encoding);
        let put = proto::PutArticleRequest {
            article: Some(message(1)),
        };
        articles.put_article(put).await.unwrap();
        let list = articles.list_articles(proto::ListArticlesRequest::default());
        let list = list.await.unwrap();
        let header = list
            .metadata()
            .get("grpc-encoding")
            .unwrap()
            .to_str()
            .unwrap();
        assert_eq!(header, encoding.to_string());
        assert_eq!(list.into_inner().articles.len(), 1);
        // 60 MB of zeros are some kilobytes on the wire.
        let bomb = proto::PutArticleRequest {
            article: Some(proto::Article {
                body: "0".repeat(60_000_000),
                ..message(2)
            }),
        };
        let status = within(articles.put_article(bomb)).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    }
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_are_told_and_health_and_figures_are_on_the_second_port() {
    let folder = tempfile::TempDir::new().unwrap();
    let archive = folder.path().join("archive");
    let flags = [
        "--http-listen",
        "127.0.0.1:0",
        "--streams-max",
        "7",
        "--stream-idle-max",
        "0",
    ];
    let mut server = ServerProcess::start_with(&archive, &flags);
    let http = server.figures_address();
    let mut admin = crate::server::admin(&server.address).await;
    let info = admin
        .get_server_info(proto::GetServerInfoRequest {})
        .await
        .unwrap();
    let limits = info.into_inner().limits.unwrap();
    assert_eq!(limits.streams_max, 7);
    assert_eq!(limits.stream_idle_ms_max, Some(0));
    assert_eq!(limits.request_deadline_ms, 60_000);
    let mut articles = crate::server::articles(&server.address).await;
    let put = proto::PutArticleRequest {
        article: Some(message(1)),
    };
    articles.put_article(put).await.unwrap();
    articles
        .get_article(proto::GetArticleRequest::default())
        .await
        .unwrap_err();
    assert!(get(&http, "/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(get(&http, "/readyz").await.starts_with("HTTP/1.1 200"));
    assert!(get(&http, "/other").await.starts_with("HTTP/1.1 404"));
    let text = get(&http, "/metrics").await;
    let service = "grpc_service=\"pressmark.v1.ArticleService\"";
    for line in [
        format!(
            "grpc_server_handled_total{{grpc_type=\"unary\",{service},grpc_method=\"PutArticle\",\
             grpc_code=\"OK\"}} 1"
        ),
        format!(
            "grpc_server_handled_total{{grpc_type=\"unary\",{service},grpc_method=\"GetArticle\",\
             grpc_code=\"InvalidArgument\"}} 1"
        ),
        format!(
            "grpc_server_msg_received_total{{grpc_type=\"unary\",{service},\
             grpc_method=\"PutArticle\"}} 1"
        ),
        format!(
            "grpc_server_handling_seconds_count{{grpc_type=\"unary\",{service},\
             grpc_method=\"PutArticle\"}} 1"
        ),
        "pressmark_puts_created_total 1".to_owned(),
        "pressmark_articles 1".to_owned(),
        "pressmark_takes_writes 1".to_owned(),
        "pressmark_group_articles_count 1".to_owned(),
        "pressmark_commit_seconds_count 1".to_owned(),
        "# EOF".to_owned(),
    ] {
        assert!(text.contains(&line), "{line} is not in {text}");
    }
    drop((admin, articles));
    assert!(server.terminate());
    check_folder(&archive, async |_| ()).await;
}

pub async fn get(address: &str, path: &str) -> String {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within(socket.read_to_string(&mut answer)).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn systemd_is_told_when_the_server_serves_and_stops() {
    let folder = tempfile::TempDir::new().unwrap();
    let archive = folder.path().join("archive");
    let socket = folder.path().join("notify");
    let news = tokio::net::UnixDatagram::bind(&socket).unwrap();
    let mut command = crate::cli::program();
    command.args(["serve", "--listen", "127.0.0.1:0", "--archive"]);
    command.arg(&archive).env("NOTIFY_SOCKET", &socket);
    let server = ServerProcess::of(command);
    let mut bytes = [0; 256];
    let length = within(news.recv(&mut bytes)).await.unwrap();
    assert_eq!(&bytes[..length], b"READY=1\n");
    assert!(server.terminate());
    let length = within(news.recv(&mut bytes)).await.unwrap();
    assert_eq!(&bytes[..length], b"STOPPING=1\n");
    check_folder(&archive, async |_| ()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_that_systemd_opened_are_served() {
    let folder = tempfile::TempDir::new().unwrap();
    let archive = folder.path().join("archive");
    let socket = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (grpc, http) = (socket(), socket());
    let expected = format!("http://{}", grpc.local_addr().unwrap());
    // The shell gives them the numbers that systemd gives.
    let script = "export LISTEN_FDS=2 LISTEN_PID=$$; exec \"$@\" 3<&0 4<&2 0</dev/null 2>/dev/null";
    let mut command = std::process::Command::new("sh");
    command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_pressmark"), "serve"]);
    command
        .args(["--listen", "127.0.0.1:1", "--archive"])
        .arg(&archive)
        .stdin(std::os::fd::OwnedFd::from(grpc))
        .stderr(std::os::fd::OwnedFd::from(http));
    let mut server = ServerProcess::of(command);
    assert_eq!(server.address, expected);
    let http = &server.figures_address();
    assert!(get(http, "/readyz").await.starts_with("HTTP/1.1 200"));
    let mut articles = crate::server::articles(&server.address).await;
    articles
        .count_articles(proto::CountArticlesRequest::default())
        .await
        .unwrap();
    drop(articles);
    assert!(server.terminate());
    check_folder(&archive, async |_| ()).await;
}
