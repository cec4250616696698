//! The page and its data, over HTTP and in Chromium.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pressmark::rpc::proto;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::cli::{Ran, program};
use crate::desk::{Desk, signed};
use crate::server::{ServerProcess, check_folder, message};

/// Longer than anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What came back over HTTP/1.1.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl Answer {
    fn of(bytes: &[u8]) -> Self {
        let end = bytes
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .unwrap();
        let head = std::str::from_utf8(&bytes[..end]).unwrap();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap();
        let headers = lines.map(|line| line.split_once(": ").unwrap());
        let headers: HashMap<_, _> = headers
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect();
        let rest = &bytes[end + 4..];
        let body = match headers.get("transfer-encoding") {
            Some(_) => unchunked(rest),
            None => rest.to_vec(),
        };
        Self {
            status: status.parse().unwrap(),
            headers,
            body,
        }
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    #[track_caller]
    fn json(&self) -> Value {
        assert_eq!(
            self.headers["content-type"],
            "application/json; charset=utf-8"
        );
        serde_json::from_slice(&self.body).unwrap()
    }

    #[track_caller]
    fn refused(&self, status: u16, reason: &str) -> Value {
        let value = self.json();
        assert_eq!(
            (self.status, &value["error"]["reason"]),
            (status, &reason.into()),
            "{value}"
        );
        value
    }
}

fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|two| two == b"\r\n").unwrap();
        let length = std::str::from_utf8(&rest[..end]).unwrap();
        let length = usize::from_str_radix(length, 16).unwrap();
        if length == 0 {
            return body;
        }
        body.extend_from_slice(&rest[end + 2..end + 2 + length]);
        rest = &rest[end + 4 + length..];
    }
}

/// Sends bytes and returns all that comes until the server closes the connection.
pub async fn raw(address: &str, bytes: &[u8]) -> Vec<u8> {
    talk(TcpStream::connect(address).await.unwrap(), bytes).await
}

async fn talk(mut socket: impl AsyncRead + AsyncWrite + Unpin, bytes: &[u8]) -> Vec<u8> {
    let mut answer = Vec::new();
    let talking = async {
        // A server that refuses the request may close before it has read all of it.
        let _ = socket.write_all(bytes).await;
        let _ = socket.read_to_end(&mut answer).await;
    };
    tokio::time::timeout(PATIENCE, talking)
        .await
        .expect("it hangs");
    answer
}

fn request(host: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
    let is_given = |name: &str| headers.iter().any(|(given, _)| *given == name);
    let length = body.len().to_string();
    for (name, value) in [("host", host), ("content-length", length.as_str())] {
        if !is_given(name) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    [head.as_bytes(), b"\r\n", body].concat()
}

/// One request and its answer, over HTTP/1.1.
pub async fn exchange(
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    Answer::of(&raw(address, &request(address, method, path, headers, body)).await)
}

async fn get(address: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    exchange(address, "GET", path, headers, b"").await
}

/// A server with a page, and the address of that.
struct Site {
    server: ServerProcess,
    http: String,
}

impl Site {
    fn start(archive: &Path, flags: &[&str]) -> Self {
        let flags = [&["--http-listen", "127.0.0.1:0"], flags].concat();
        Self::of(ServerProcess::start_with(archive, &flags))
    }

    fn of(mut server: ServerProcess) -> Self {
        let http = server.figures_address();
        Self { server, http }
    }

    async fn get(&self, path: &str) -> Answer {
        get(&self.http, path, &[]).await
    }

    async fn data(&self, path: &str) -> Value {
        let answer = self.get(path).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.json()
    }

    async fn put(&self, article: proto::Article) -> String {
        let mut articles = crate::server::articles(&self.server.address).await;
        let request = proto::PutArticleRequest {
            article: Some(article),
        };
        articles.put_article(request).await.unwrap().into_inner().id
    }

    /// Waits until a search finds so many articles.
    async fn searchable(&self, query: &str, count: u64) -> Value {
        let mut looks = tokio::time::interval(Duration::from_millis(50));
        for _ in 0..600 {
            looks.tick().await;
            let answer = self.get(&format!("/api/search?q={query}")).await;
            if answer.status == 200 && answer.json()["hit_count"] == count {
                return answer.json();
            }
        }
        panic!("{query} is not found {count} times");
    }
}

fn titles(list: &Value) -> Vec<&str> {
    let list = list.as_array().unwrap().iter();
    list.map(|article| article["title"].as_str().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_answer_what_grpc_answers() {
    let folder = TempDir::new().unwrap();
    let archive = folder.path().join("archive");
    let site = Site::start(&archive, &[]);
    let mut ids = Vec::new();
    for number in 1..=5 {
        ids.push(site.put(message(number)).await);
    }
    let revision = proto::Article {
        body: "Corrected.\n".into(),
        ..message(1)
    };
    let revision = site.put(revision).await;
    let copy = proto::Article {
        source: "Other".into(),
        url: String::new(),
        ..message(2)
    };
    let copy = site.put(copy).await;

    let list = site.data("/api/articles").await;
    let newest = ["Title 5", "Title 4", "Title 3"];
    assert_eq!(titles(&list["articles"])[..3], newest);
    assert_eq!(list["as_of_sequence"], 7);
    assert!(list["articles"][0].get("body").is_none(), "{list}");
    // The shape is that of the command line.
    let mut printed = program();
    printed.args(["list", "--json", "--server", &site.server.address]);
    assert_eq!(
        list["articles"],
        Value::Array(Ran::of(&mut printed).exits(0).objects())
    );
    let mut paged = Vec::new();
    let mut token = String::new();
    loop {
        let path = format!("/api/articles?order=arrival-asc&page_size=2&page_token={token}");
        let page = site.data(&path).await;
        paged.extend(titles(&page["articles"]).into_iter().map(str::to_owned));
        match page["next_page_token"].as_str().unwrap() {
            "" => break,
            next => token = next.to_owned(),
        }
    }
    let stored = [
        "Title 1", "Title 2", "Title 3", "Title 4", "Title 5", "Title 1", "Title 2",
    ];
    assert_eq!(paged, stored);
    let some = site
        .data("/api/articles?source=Gazette&source=Other&order=arrival-asc")
        .await;
    assert_eq!(titles(&some["articles"]), ["Title 3", "Title 2"]);
    let some = "/api/articles?after=1970-01-01T00:50:00&before=1970-01-01T01:10:00Z";
    assert_eq!(
        titles(&site.data(some).await["articles"]),
        ["Title 4", "Title 3"]
    );

    let path = format!("/api/articles/{}", ids[0]);
    let article = site.data(&path).await;
    assert_eq!(article["article"]["body"], "Body of number 1.\n");
    let prefix = site.data(&path[.."/api/articles/".len() + 12]).await;
    assert_eq!(article, prefix);
    let revisions = site.data(&format!("{path}/revisions")).await;
    let found: Vec<_> = revisions["articles"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| &a["id"])
        .collect();
    assert_eq!(
        found,
        [&Value::from(ids[0].clone()), &Value::from(revision)]
    );
    let copies = site.data(&format!("/api/articles/{}/copies", ids[1])).await;
    assert_eq!(copies["copies"][0]["article"]["id"], copy.as_str());
    assert_eq!(copies["copies"][0]["kind"], "exact");
    let alone = site.data(&format!("/api/articles/{copy}/revisions")).await;
    assert_eq!(titles(&alone["articles"]), ["Title 2"]);

    let timeline = site
        .data("/api/timeline?bucket=year&by_source=true&source=Herald")
        .await;
    let counts = &timeline["series"][0]["counts"];
    assert_eq!(timeline["series"][0]["source"], "Herald");
    assert_eq!(counts[0]["start"], "1970-01-01T00:00:00+00:00");
    assert_eq!(counts[0]["article_count"], 3);
    let sources = site.data("/api/sources").await;
    assert_eq!(sources["sources"][0]["name"], "Gazette");
    let found = site.searchable("corrected", 1).await;
    let snippet = found["hits"][0]["snippet"].as_array().unwrap();
    assert!(
        snippet
            .iter()
            .any(|part| part["is_match"] == true && part["text"] == "Corrected")
    );

    for (path, field) in [
        ("/api/articles?evil=1", "evil"),
        ("/api/articles?order=best", "order"),
        ("/api/articles?after=today", "after"),
        ("/api/articles?page_size=-1", "page_size"),
        ("/api/articles?page_token=x", "page_token"),
        ("/api/timeline?bucket=second", "bucket"),
        ("/api/sources?source=a", "source"),
    ] {
        let answer = site.get(path).await;
        assert_eq!(answer.status, 400, "{path}: {answer:?}");
        assert_eq!(answer.json()["error"]["field"], field, "{path}");
    }
    let none = format!("/api/articles/{}", "0".repeat(64));
    site.get(&none).await.refused(404, "ARTICLE_NOT_FOUND");
    site.get("/api/other")
        .await
        .refused(404, "ARGUMENT_INVALID");
    let post = exchange(&site.http, "POST", "/api/articles", &[], b"{}").await;
    assert_eq!(
        (post.status, post.headers["allow"].as_str()),
        (405, "GET, HEAD")
    );
    let figures = site.get("/metrics").await;
    let line = "pressmark_page_questions_total{question=\"GetTimeline\",status=\"200\"} 1";
    assert!(figures.text().contains(line), "{}", figures.text());
    assert!(site.server.terminate());
    check_folder(&archive, async |_| ()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_files_and_the_data_are_for_this_page_alone() {
    let folder = TempDir::new().unwrap();
    let archive = folder.path().join("archive");
    let site = Site::start(&archive, &["--requests-per-second-max", "5"]);
    for (path, kind) in [
        ("/", "text/html"),
        ("/style.css", "text/css"),
        ("/script.js", "text/javascript"),
        ("/icon.svg", "image/svg+xml"),
        ("/api/articles", "application/json"),
        ("/healthz", "text/plain"),
        ("/nowhere", "text/plain"),
    ] {
        let answer = site.get(path).await;
        assert!(answer.headers["content-type"].starts_with(kind), "{path}");
        let policy = &answer.headers["content-security-policy"];
        for part in [
            "default-src 'none'",
            "script-src 'self'",
            "frame-ancestors 'none'",
        ] {
            assert!(policy.contains(part), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
            ("cross-origin-resource-policy", "same-origin"),
            ("cache-control", "no-store"),
        ] {
            assert_eq!(answer.headers[name], value, "{path}");
        }
        assert!(
            !answer.headers.contains_key("access-control-allow-origin"),
            "{path}"
        );
    }
    // A site of somebody else: by its name, which it may let lead here, and as what a browser says.
    let (_, port) = site.http.rsplit_once(':').unwrap();
    let evil = format!("evil.example:{port}");
    let local = format!("localhost:{port}");
    let data = "/api/articles";
    get(&site.http, data, &[("host", &evil)])
        .await
        .refused(403, "ORIGIN_REFUSED");
    get(&site.http, data, &[("host", "")])
        .await
        .refused(403, "ORIGIN_REFUSED");
    assert_eq!(get(&site.http, data, &[("host", &local)]).await.status, 200);
    for site_of_browser in ["cross-site", "same-site"] {
        let headers = [("sec-fetch-site", site_of_browser)];
        get(&site.http, data, &headers)
            .await
            .refused(403, "ORIGIN_REFUSED");
    }
    let own = [("sec-fetch-site", "same-origin")];
    assert_eq!(get(&site.http, data, &own).await.status, 200);
    // The page's questions count for the limits.
    let asked = futures_util::future::join_all((0..60).map(|_| site.get(data))).await;
    let refused = asked.iter().find(|answer| answer.status == 429).unwrap();
    refused.refused(429, "RATE_EXCEEDED");
    assert_eq!(refused.headers["retry-after"], "1");
    let large = format!("/api/articles?page_token={}", "a".repeat(40_000));
    let answer = site.get(&large).await;
    assert!(matches!(answer.status, 414 | 431), "{answer:?}");
    assert!(site.server.terminate());
    check_folder(&archive, async |_| ()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_need_the_token_that_grpc_needs() {
    let desk = Desk::new();
    let reader = desk.add("desk", "reader");
    let writer = desk.add("importer", "writer");
    let tokens = desk.text("tokens.toml");
    let site = Site::start(&desk.path("archive"), &["--tokens", &tokens]);
    let mut articles = crate::server::articles(&site.server.address).await;
    let put = proto::PutArticleRequest {
        article: Some(message(1)),
    };
    articles.put_article(signed(put, &writer)).await.unwrap();
    let bearer = |file: &str| format!("Bearer {}", std::fs::read_to_string(file).unwrap().trim());
    for path in [
        "/api/articles",
        "/api/sources",
        "/api/timeline",
        "/api/search?q=a",
        "/api/articles/00000000",
    ] {
        let answer = site.get(path).await;
        answer.refused(401, "CREDENTIALS_MISSING");
        assert!(answer.headers["www-authenticate"].starts_with("Bearer"));
        assert!(!answer.text().contains("Title 1"));
        for wrong in ["Bearer pm_00", "Basic YTpi", "pm_00"] {
            let answer = get(&site.http, path, &[("authorization", wrong)]).await;
            answer.refused(401, "CREDENTIALS_UNKNOWN");
        }
    }
    // With a token a name will do: whoever brings one to another site has none from this one.
    let headers = [
        ("authorization", bearer(&reader)),
        ("host", "archive.example".to_owned()),
    ];
    let headers = headers
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    let list = get(&site.http, "/api/articles", &headers).await;
    assert_eq!(titles(&list.json()["articles"]), ["Title 1"]);
    for open in ["/", "/script.js", "/metrics", "/healthz", "/readyz"] {
        assert_eq!(site.get(open).await.status, 200, "{open}");
    }
    drop(articles);
    assert!(site.server.terminate());
    desk.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_no_answer_loses_the_connection() {
    let folder = TempDir::new().unwrap();
    let archive = folder.path().join("archive");
    let site = Site::start(&archive, &["--request-deadline", "1s", "--search", "off"]);
    // JSON makes six bytes of each, more than the system keeps for a reader.
    let body = "\u{1}".repeat(3_000_000);
    let article = proto::Article { body, ..message(1) };
    let id = site.put(article).await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut slow = socket.connect(site.http.parse().unwrap()).await.unwrap();
    let path = format!("/api/articles/{id}");
    let request = request(&site.http, "GET", &path, &[], b"");
    slow.write_all(&request).await.unwrap();
    let mut looks = tokio::time::interval(Duration::from_millis(50));
    for look in 0.. {
        assert!(look < 600, "it is still connected");
        looks.tick().await;
        // The one that asks is the last that is connected.
        let figures = site.get("/metrics").await;
        if figures.text().contains("\npressmark_connections 1\n") {
            break;
        }
    }
    let mut taken = Vec::new();
    // It may end with a reset.
    let _ = slow.read_to_end(&mut taken).await;
    assert!(taken.len() < 18_000_000, "{} bytes", taken.len());
    let whole = site.get(&path).await;
    assert!(whole.body.len() > 18_000_000, "{}", whole.body.len());
    assert!(site.server.terminate());
    check_folder(&archive, async |_| ()).await;
}

/// Asks over TLS, with a client's certificate or without.
async fn get_tls(
    desk: &Desk,
    address: &str,
    path: &str,
    client: Option<(String, String)>,
    headers: &[(&str, &str)],
) -> Vec<u8> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(desk.authority.pem.as_bytes()).unwrap())
        .unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match client {
        None => config.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            config.with_client_auth_cert(chain, key).unwrap()
        }
    };
    let socket = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let socket = TlsConnector::from(Arc::new(config))
        .connect(name, socket)
        .await
        .unwrap();
    talk(socket, &request("localhost", "GET", path, headers, b"")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_open_the_data_where_the_port_sees_them() {
    let desk = Desk::new();
    let ca = desk.text("ca.pem");
    let (certificate, key) = (desk.text("cert.pem"), desk.text("key.pem"));
    let tls = [
        "--tls-cert",
        certificate.as_str(),
        "--tls-key",
        &key,
        "--tls-client-ca",
        &ca,
    ];
    // Plain HTTP shows no certificate, and nobody has a token.
    let site = Site::start(&desk.path("archive"), &tls);
    site.get("/api/articles")
        .await
        .refused(403, "ROLE_INSUFFICIENT");
    assert_eq!(site.get("/metrics").await.status, 200);
    assert!(site.server.terminate());

    let site = Site::start(&desk.path("archive"), &[&tls[..], &["--http-tls"]].concat());
    let known = Some(desk.authority.client("desk"));
    let answer = get_tls(&desk, &site.http, "/api/articles", known, &[]).await;
    assert_eq!(Answer::of(&answer).status, 200);
    let answer = get_tls(&desk, &site.http, "/api/articles", None, &[]).await;
    assert!(
        answer.is_empty(),
        "without a certificate there is no connection"
    );
    assert!(
        raw(&site.http, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            .await
            .first()
            != Some(&b'H')
    );
    assert!(site.server.terminate());

    // With a file of identities a token does as well.
    let reader = desk.add("desk", "reader");
    let tokens = desk.text("tokens.toml");
    let flags = [&tls[..], &["--http-tls", "--tokens", &tokens]].concat();
    let site = Site::start(&desk.path("archive"), &flags);
    let token = format!("Bearer {}", std::fs::read_to_string(reader).unwrap().trim());
    let headers = [("authorization", token.as_str())];
    let answer = get_tls(&desk, &site.http, "/api/articles", None, &headers).await;
    assert_eq!(Answer::of(&answer).status, 200);
    let unknown = Some(desk.authority.client("other"));
    let answer = get_tls(&desk, &site.http, "/api/articles", unknown, &[]).await;
    Answer::of(&answer).refused(401, "CREDENTIALS_UNKNOWN");
    assert!(site.server.terminate());
    desk.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_gets_a_page_only_with_tls_and_identities() {
    let desk = Desk::new();
    desk.add("desk", "reader");
    let archive = desk.path("archive");
    let (certificate, key) = (desk.text("cert.pem"), desk.text("key.pem"));
    let tokens = desk.text("tokens.toml");
    let refused = |flags: &[&str]| {
        let serve = ["serve", "--archive", "memory:", "--listen", "127.0.0.1:0"];
        Ran::of(program().args(serve).args(flags)).exits(2).err
    };
    let all = ["--http-listen", "0.0.0.0:0"];
    assert!(refused(&all).contains("--http-tls and --tokens"));
    let known = ["--tokens", tokens.as_str()];
    assert!(refused(&[&all[..], &known].concat()).contains("tokens can be read"));
    assert!(refused(&["--http-tls"]).contains("http-tls"));
    let tls = [
        "--tls-cert",
        certificate.as_str(),
        "--tls-key",
        &key,
        "--http-tls",
    ];
    assert!(refused(&[&all[..], &tls].concat()).contains("everybody may do everything"));

    for (flags, page) in [
        (&["--http-listen", "127.0.0.1:0", "--web", "off"][..], 404),
        (&[&all[..], &["--insecure"]].concat(), 200),
        (&["--http-listen", "127.0.0.1:0"], 200),
    ] {
        let site = Site::of(ServerProcess::start_with(&archive, flags));
        let address = site.http.replace("0.0.0.0", "127.0.0.1");
        for path in ["/", "/script.js", "/api/articles"] {
            assert_eq!(
                get(&address, path, &[]).await.status,
                page,
                "{flags:?} {path}"
            );
        }
        assert_eq!(
            get(&address, "/metrics", &[]).await.status,
            200,
            "{flags:?}"
        );
        assert!(site.server.terminate());
    }
    let flags = [&all[..], &tls, &known].concat();
    let site = Site::of(ServerProcess::start_with(&archive, &flags));
    let address = site.http.replace("0.0.0.0", "127.0.0.1");
    let answer = get_tls(&desk, &address, "/", None, &[]).await;
    assert_eq!(Answer::of(&answer).status, 200);
    assert!(site.server.terminate());
    desk.finish().await;
}

/// Articles of 40 days and seven sources, some that would be HTML if they could, one with an author,
/// one in Arabic, a revision and copies.
async fn fill(site: &Site) {
    let names = [
        "Gazette",
        "Herald",
        "Post",
        "Courier",
        "Beacon",
        "Dispatch",
        "Al Jazeera",
    ];
    let day = |number: i64| prost_types::Timestamp {
        seconds: 1_767_225_600 + number * 43_200,
        nanos: 0,
    };
    for number in 0..80_i64 {
        let place = [0, 0, 0, 1, 1, 2, 2, 3, 4, 5, 6][number as usize % 11];
        let article = proto::Article {
            title: format!("Rates of the {number}. day are held while markets wait"),
            published_at: Some(day(number)),
            author: if number % 3 == 0 {
                "A. Uthor".into()
            } else {
                String::new()
            },
            source: names[place].into(),
            url: format!("https://gazette.example/{number}"),
            body: format!(
                "The bank left its rate where it was.\n\n\"We see no reason to move,\" said governor {number}.\n"
            ),
            ..proto::Article::default()
        };
        site.put(article).await;
    }
    let evil = proto::Article {
        title: "<script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\">".into(),
        published_at: Some(day(81)),
        author: "<b>bold</b>".into(),
        source: "<i>Evil</i>".into(),
        url: "javascript:document.title='run'".into(),
        body: "</div><img src=x onerror=\"document.title = 'run'\"><script>document.title = 'run'</script>\n\nZebra crossing.\n".into(),
        ..proto::Article::default()
    };
    site.put(evil).await;
    let first = proto::Article {
        title: "A budget".into(),
        published_at: Some(day(82)),
        source: "Gazette".into(),
        url: "https://gazette.example/budget".into(),
        body: "Parliament passed it after a night of talks, by three votes.\n".into(),
        ..proto::Article::default()
    };
    site.put(first.clone()).await;
    let corrected = "Parliament passed it after a night of talks, by four votes.\n";
    site.put(proto::Article {
        title: "A budget, corrected".into(),
        body: corrected.into(),
        ..first.clone()
    })
    .await;
    site.put(proto::Article {
        source: "Wire".into(),
        url: "https://wire.example/1".into(),
        ..first
    })
    .await;
    let undated = proto::Article {
        title:
            "\u{642}\u{631}\u{627}\u{631} \u{628}\u{644}\u{627} \u{62a}\u{627}\u{631}\u{64a}\u{62e}"
                .into(),
        source: "Al Jazeera".into(),
        body: "\u{646}\u{635} \u{628}\u{644}\u{627} \u{62a}\u{627}\u{631}\u{64a}\u{62e}.\n".into(),
        ..proto::Article::default()
    };
    site.put(undated).await;
    site.searchable("zebra", 1).await;
    site.searchable("budget", 3).await;
}

/// Another site, on this machine: one page without anything, and the site's origin.
async fn another_site() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut request = [0; 4096];
            // Chromium opens connections that it does not use.
            if socket.read(&mut request).await.is_ok_and(|count| count > 0) {
                let answer = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 20\r\n\
                    connection: close\r\n\r\n<title>site</title>\n";
                let _ = socket.write_all(answer.as_bytes()).await;
            }
        }
    });
    origin
}

/// Runs the script that drives Chromium.
async fn drive(mode: &'static str, arguments: &[&str]) {
    let arguments: Vec<String> = arguments.iter().map(|text| (*text).to_owned()).collect();
    let modules = std::env::var("NODE_PATH").expect("NODE_PATH names the folder of its packages");
    assert!(
        Path::new(&modules).join("playwright-core").exists(),
        "{modules}"
    );
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/web.js");
    let running = move || {
        let mut command = std::process::Command::new("node");
        Ran::of(command.args([script, mode]).args(arguments))
    };
    let ran = tokio::task::spawn_blocking(running).await.unwrap().exits(0);
    assert!(ran.out.ends_with("the browser is content\n"), "{}", ran.out);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs chromium from Debian, and node with playwright-core from npm"]
async fn the_page_works_in_chromium() {
    let folder = TempDir::new().unwrap();
    let archive = folder.path().join("archive");
    let other = another_site().await;
    let flags = ["--grpc-web", "on", "--cors-origin", &other];
    let site = Site::start(&archive, &flags);
    let page = format!("http://{}", site.http);
    drive("empty", &[&page]).await;
    fill(&site).await;
    drive("page", &[&page]).await;
    drive("grpc-web", &[&site.server.address, &other]).await;
    assert!(site.server.terminate());
    check_folder(&archive, async |_| ()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs chromium from Debian, and node with playwright-core from npm"]
async fn the_page_asks_for_a_token_in_chromium() {
    let desk = Desk::new();
    let reader = desk.add("desk", "reader");
    let tokens = desk.text("tokens.toml");
    let (certificate, key) = (desk.text("cert.pem"), desk.text("key.pem"));
    let mut flags = vec!["--tokens", &tokens, "--http-tls"];
    flags.extend(["--tls-cert", &certificate, "--tls-key", &key]);
    // Over TLS, where Chromium speaks HTTP/2.
    let site = Site::start(&desk.path("archive"), &flags);
    drive("token", &[&format!("https://{}", site.http), &reader]).await;
    assert!(site.server.terminate());
    desk.finish().await;
}
