//! gRPC-Web: what browsers send, from which sites, and that the limits hold for it.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use pressmark::archive::Limits;
use pressmark::rpc::{Credentials, Origins, Role, ServeOptions, proto};
use prost::Message;
use tonic::Code;

use crate::server::{TestServer, message};
use crate::support::time;
use crate::web::{Answer, exchange};

const SITE: &str = "https://desk.example";
const BINARY: &str = "application/grpc-web+proto";
const TEXT: &str = "application/grpc-web-text";

fn options() -> ServeOptions {
    ServeOptions {
        grpc_web: Some(Origins::parse(&[SITE.to_owned()]).unwrap()),
        ..ServeOptions::default()
    }
}

async fn start(options: ServeOptions) -> TestServer {
    TestServer::serve_with(Limits::default(), false, options).await
}

fn frame(message: &impl Message) -> Vec<u8> {
    let bytes = message.encode_to_vec();
    let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
    [&[0][..], &length, &bytes].concat()
}

/// Calls a method as a browser does.
async fn call(
    server: &TestServer,
    method: &str,
    kind: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    let address = server.address.trim_start_matches("http://");
    let path = format!("/pressmark.v1.ArticleService/{method}");
    let known = [
        ("content-type", kind),
        ("accept", kind),
        ("x-grpc-web", "1"),
    ];
    let headers = [&known[..], headers].concat();
    exchange(address, "POST", &path, &headers, body).await
}

/// What an answer says: its messages, and its trailers, which stand in the last frame, or in the
/// headers if there is no message.
fn read(answer: &Answer) -> (Vec<Vec<u8>>, HashMap<String, String>) {
    assert_eq!(answer.status, 200, "{answer:?}");
    let mut trailers = answer.headers.clone();
    let mut messages = Vec::new();
    let mut rest = answer.body.as_slice();
    while let [flag, a, b, c, d, tail @ ..] = rest {
        let (payload, tail) = tail.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
        rest = tail;
        if flag & 0x80 == 0 {
            messages.push(payload.to_vec());
            continue;
        }
        for line in std::str::from_utf8(payload).unwrap().lines() {
            let (name, value) = line.split_once(':').unwrap();
            trailers.insert(name.to_lowercase(), value.trim().to_owned());
        }
    }
    assert!(rest.is_empty(), "a frame is cut");
    (messages, trailers)
}

#[track_caller]
fn check_code(answer: &Answer, code: Code) -> HashMap<String, String> {
    let (_, trailers) = read(answer);
    assert_eq!(
        trailers["grpc-status"],
        (code as i32).to_string(),
        "{trailers:?}"
    );
    trailers
}

fn reason(trailers: &HashMap<String, String>) -> String {
    let details = trailers["grpc-status-details-bin"].trim_end_matches('=');
    let details = STANDARD_NO_PAD.decode(details).unwrap();
    let status = tonic_types::pb::Status::decode(details.as_slice()).unwrap();
    let info = status
        .details
        .iter()
        .find(|any| any.type_url.ends_with("ErrorInfo"));
    tonic_types::pb::ErrorInfo::decode(info.unwrap().value.as_slice())
        .unwrap()
        .reason
}

fn put(number: usize) -> proto::PutArticleRequest {
    proto::PutArticleRequest {
        article: Some(message(number)),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn browsers_call_in_binary_and_in_text_and_clients_as_before() {
    let server = start(options()).await;
    let from = [("origin", SITE), ("x-request-id", "web-1")];
    let answer = call(&server, "PutArticle", BINARY, &from, &frame(&put(1))).await;
    let (messages, trailers) = read(&answer);
    let stored = proto::PutArticleResponse::decode(messages[0].as_slice()).unwrap();
    assert_eq!(stored.outcome(), proto::PutOutcome::Created);
    assert_eq!((messages.len(), trailers["grpc-status"].as_str()), (1, "0"));
    assert_eq!(answer.headers["content-type"], BINARY);
    assert_eq!(answer.headers["access-control-allow-origin"], SITE);
    assert!(answer.headers["access-control-expose-headers"].contains("grpc-status-details-bin"));
    assert_eq!(answer.headers["x-request-id"], "web-1");

    // In text every piece is base64 of its own; this client sends no origin, as it is no browser.
    let text = STANDARD.encode(frame(&put(2)));
    let mut answer = call(&server, "PutArticle", TEXT, &[], text.as_bytes()).await;
    assert!(answer.headers["content-type"].starts_with(TEXT));
    answer.body = answer
        .body
        .split_inclusive(|byte| *byte == b'=')
        .flat_map(|piece| STANDARD.decode(piece).unwrap_or_default())
        .collect();
    let (messages, _) = read(&answer);
    let stored = proto::PutArticleResponse::decode(messages[0].as_slice()).unwrap();
    assert_eq!(stored.sequence, 2);

    // A stream has a message for every chunk, and its status behind the last.
    let scan = frame(&proto::ScanArticlesRequest::default());
    let (chunks, trailers) = read(&call(&server, "ScanArticles", BINARY, &from, &scan).await);
    let chunks = chunks
        .iter()
        .map(|chunk| proto::ScanArticlesResponse::decode(chunk.as_slice()));
    let articles: Vec<_> = chunks.flat_map(|chunk| chunk.unwrap().articles).collect();
    assert_eq!((articles.len(), trailers["grpc-status"].as_str()), (2, "0"));

    let list = proto::ListArticlesRequest::default();
    let listed = server.articles().await.list_articles(list).await.unwrap();
    assert_eq!(listed.into_inner().articles.len(), 2);
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_and_limits_are_those_of_every_client() {
    let folder = tempfile::TempDir::new().unwrap();
    let file = folder.path().join("tokens.toml");
    let mut known = Credentials::default();
    let token = known.add_token("desk", Role::Reader, time(0)).unwrap();
    let writer = known.add_token("importer", Role::Writer, time(0)).unwrap();
    std::fs::write(&file, known.to_text().unwrap()).unwrap();
    let server = start(ServeOptions {
        credentials: Some(file),
        ..options()
    })
    .await;
    let count = frame(&proto::CountArticlesRequest::default());
    let reader = format!("Bearer {token}");
    let reader = [("origin", SITE), ("authorization", reader.as_str())];
    let writer = format!("Bearer {writer}");
    let writer = [("origin", SITE), ("authorization", writer.as_str())];

    let answer = call(&server, "CountArticles", BINARY, &reader[..1], &count).await;
    let trailers = check_code(&answer, Code::Unauthenticated);
    assert_eq!(reason(&trailers), "CREDENTIALS_MISSING");
    check_code(
        &call(&server, "CountArticles", BINARY, &reader, &count).await,
        Code::Ok,
    );
    let answer = call(&server, "PutArticle", BINARY, &reader, &frame(&put(1))).await;
    assert_eq!(
        reason(&check_code(&answer, Code::PermissionDenied)),
        "ROLE_INSUFFICIENT"
    );
    let wrong = proto::PutArticleRequest {
        article: Some(proto::Article {
            title: "two\nlines".into(),
            ..message(1)
        }),
    };
    let answer = call(&server, "PutArticle", BINARY, &writer, &frame(&wrong)).await;
    assert_eq!(
        reason(&check_code(&answer, Code::InvalidArgument)),
        "ARTICLE_INVALID"
    );

    let answer = call(&server, "PutArticle", TEXT, &writer, b"no base64!").await;
    let trailers = check_code(&answer, Code::InvalidArgument);
    assert_eq!(reason(&trailers), "MESSAGE_MALFORMED");

    // A message that claims too much, and one that becomes too much.
    let claims = [&[0][..], &u32::MAX.to_be_bytes(), b"rest"].concat();
    let answer = call(&server, "PutArticle", BINARY, &writer, &claims).await;
    assert_eq!(
        reason(&check_code(&answer, Code::ResourceExhausted)),
        "MESSAGE_TOO_LARGE"
    );
    let mut zeros = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut zeros, &vec![0; 60_000_000]).unwrap();
    let zeros = zeros.finish().unwrap();
    let length = u32::try_from(zeros.len()).unwrap().to_be_bytes();
    let bomb = [&[1][..], &length, &zeros].concat();
    let packed = [&writer[..], &[("grpc-encoding", "gzip")]].concat();
    let answer = call(&server, "PutArticle", BINARY, &packed, &bomb).await;
    check_code(&answer, Code::ResourceExhausted);

    // The deadline of the client, for a body that does not come.
    let slow = [
        &writer[..],
        &[("content-length", "100000"), ("grpc-timeout", "200m")],
    ]
    .concat();
    let answer = call(&server, "PutArticle", BINARY, &slow, &frame(&put(1))[..20]).await;
    let trailers = check_code(&answer, Code::DeadlineExceeded);
    assert_eq!(reason(&trailers), "DEADLINE_EXCEEDED");
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_sites_that_are_named_are_answered() {
    let server = start(options()).await;
    let address = server.address.trim_start_matches("http://");
    let path = "/pressmark.v1.ArticleService/CountArticles";
    let ask = async |origin: &str| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "content-type,x-grpc-web"),
        ];
        exchange(address, "OPTIONS", path, &headers, b"").await
    };
    let allowed = ask(SITE).await;
    assert_eq!(allowed.status, 200, "{allowed:?}");
    assert_eq!(allowed.headers["access-control-allow-origin"], SITE);
    assert_eq!(allowed.headers["access-control-allow-methods"], "POST");
    for name in [
        "authorization",
        "content-type",
        "grpc-timeout",
        "traceparent",
        "x-grpc-web",
    ] {
        assert!(
            allowed.headers["access-control-allow-headers"].contains(name),
            "{allowed:?}"
        );
    }
    assert!(
        !allowed
            .headers
            .contains_key("access-control-allow-credentials")
    );
    let refused = ask("https://evil.example").await;
    assert!(
        !refused.headers.contains_key("access-control-allow-origin"),
        "{refused:?}"
    );

    // Nor is what a browser sends without asking first, as from a site whose name leads here.
    let count = frame(&proto::CountArticlesRequest::default());
    for origin in ["https://evil.example", "http://desk.example", "null"] {
        let answer = call(
            &server,
            "CountArticles",
            BINARY,
            &[("origin", origin)],
            &count,
        )
        .await;
        assert_eq!(
            reason(&check_code(&answer, Code::PermissionDenied)),
            "ORIGIN_REFUSED"
        );
        assert!(
            !answer.headers.contains_key("access-control-allow-origin"),
            "{answer:?}"
        );
    }
    // HTTP/1.1 is for gRPC-Web alone.
    let other = exchange(address, "GET", "/", &[], b"").await;
    assert_eq!(other.status, 400);
    server.finish().await;

    let all = Some(Origins::parse(&["*".to_owned()]).unwrap());
    let server = start(ServeOptions {
        grpc_web: all,
        ..ServeOptions::default()
    })
    .await;
    let origin = [("origin", "https://any.example")];
    let answer = call(&server, "CountArticles", BINARY, &origin, &count).await;
    check_code(&answer, Code::Ok);
    assert_eq!(answer.headers["access-control-allow-origin"], "*");
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_flag_nothing_speaks_http_1() {
    let server = TestServer::start().await;
    let address = server.address.trim_start_matches("http://");
    let head = format!("GET / HTTP/1.1\r\nhost: {address}\r\n\r\n");
    let answer = crate::web::raw(address, head.as_bytes()).await;
    assert!(!answer.starts_with(b"HTTP/1.1 "), "{answer:?}");
    server.finish().await;
}

#[test]
fn the_flags_name_what_is_wrong() {
    let serve = |flags: &[&str]| {
        let mut command = crate::cli::program();
        command.args(["serve", "--archive", "memory:", "--listen", "127.0.0.1:0"]);
        crate::cli::Ran::of(command.args(flags)).exits(2)
    };
    let ran = serve(&["--cors-origin", SITE]);
    assert!(ran.err.contains("--grpc-web on"), "{}", ran.err);
    let ran = serve(&["--grpc-web", "on", "--cors-origin", "desk.example"]);
    assert!(ran.err.contains("no origin"), "{}", ran.err);
    let ran = serve(&[
        "--grpc-web",
        "on",
        "--cors-origin",
        "*",
        "--cors-origin",
        SITE,
    ]);
    assert!(ran.err.contains("no origin"), "{}", ran.err);
}
