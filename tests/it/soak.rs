//! A server in use for a long time: mixed load over TLS with tokens, while it is stopped, killed, started
//! again and given other certificates and tokens. Requests fail only around a restart, memory does not
//! grow, nothing acknowledged is lost, and a watch across all of it has every change once.
//!
//! `PRESSMARK_TEST_SOAK_SECONDS` says how long; 1,800 are a run by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pressmark::article::ContentHash;
use pressmark::rpc::proto;
use pressmark::rpc::proto::admin_service_client::AdminServiceClient;
use pressmark::rpc::proto::article_service_client::ArticleServiceClient;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};

use crate::cli::program;
use crate::load::{rounds, seed};
use crate::security::{Desk, signed};
use crate::server::{ServerProcess, check_folder, import_request, message};
use crate::victim::memory_kb;

/// How long the test is, in seconds, unless somebody says otherwise.
const SECONDS: usize = 8;

/// Between two things that happen to the server.
const CHAOS: std::ops::Range<Duration> = Duration::from_millis(800)..Duration::from_millis(3000);

/// After a restart clients may still find the connection of before.
const GRACE: Duration = Duration::from_secs(3);

/// Longer than any request may take, restarts or not.
const PATIENCE: Duration = Duration::from_secs(60);

/// The pause of a worker between two requests: the load is to last, not to be the most.
const PAUSE: Duration = Duration::from_millis(20);

/// Memory is judged by what a process has when it is so old, if there are so many figures.
const GROWN_UP: Duration = Duration::from_secs(8);
const FIGURES_MIN: usize = 20;

/// How much more memory there may be in the last third of the time than in the first, in percent, and
/// for each article stored in between: the engine keeps a table of all its pages.
const GROWTH_MAX: u64 = 30;
const ARTICLE_KB: u64 = 1;

/// What workers and chaos share.
struct Soak {
    desk: Desk,
    address: String,
    /// Tokens of a writer and of an admin.
    writer: String,
    admin: String,
    is_over: AtomicBool,
    /// When the last restart began and ended.
    restart: Mutex<(Instant, Option<Instant>)>,
    acknowledged: Mutex<BTreeMap<u64, ContentHash>>,
    /// Deletes that were acknowledged, and those whose answer was lost.
    deleted: Mutex<BTreeSet<ContentHash>>,
    maybe_deleted: Mutex<BTreeSet<ContentHash>>,
    /// What the watch saw: the id of each sequence, none for a delete.
    seen: Mutex<BTreeMap<u64, Option<ContentHash>>>,
    requests: AtomicU64,
    failures: Mutex<BTreeMap<String, u64>>,
    /// Memory of servers: seconds since the start, kilobytes, articles so far.
    memory: Mutex<Vec<(u64, u64, u64)>>,
    numbers: AtomicU64,
}

impl Soak {
    fn goes_on(&self) -> bool {
        !self.is_over.load(Ordering::Relaxed)
    }

    fn channel(&self) -> Channel {
        let root = std::fs::read(self.desk.path("ca.pem")).unwrap();
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(root));
        let endpoint = Endpoint::from_shared(self.address.clone()).unwrap();
        let endpoint = endpoint.connect_timeout(Duration::from_secs(5));
        endpoint.tls_config(tls).unwrap().connect_lazy()
    }

    fn articles(&self) -> ArticleServiceClient<Channel> {
        ArticleServiceClient::new(self.channel())
    }

    fn write<T>(&self, request: T) -> Request<T> {
        signed(request, &self.writer)
    }

    /// Counts an answer, and fails if it is an error that nothing explains.
    fn judge<T>(&self, what: &str, begun: Instant, answer: Result<T, Status>) -> Option<T> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let status = match answer {
            Ok(answer) => return Some(answer),
            Err(status) => status,
        };
        let (from, to) = *self.restart.lock().unwrap();
        let is_around = to.is_none_or(|to| begun <= to + GRACE) && from <= Instant::now();
        // A connection that breaks within an answer is told by the client's library in several ways.
        let may_be = [Code::Unknown, Code::Internal, Code::Cancelled].contains(&status.code());
        let is_told =
            || std::error::Error::source(&status).is_some() || status.message().contains("h2 ");
        let is_break = status.code() == Code::Unavailable || (may_be && is_told());
        assert!(
            is_around && is_break,
            "{what}, with no restart around: {status:?}"
        );
        let key = format!("{what} {:?}", status.code());
        *self.failures.lock().unwrap().entry(key).or_default() += 1;
        None
    }

    /// An article that was not there before, of some kilobytes at times.
    fn article(&self, random: &mut StdRng) -> proto::Article {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed) as usize;
        let mut article = message(number);
        article.body = article.body.repeat(random.random_range(1..200));
        article
    }

    fn note(&self, sequence: u64, id: &str) {
        let id = id.parse().unwrap();
        let known = self.acknowledged.lock().unwrap().insert(sequence, id);
        assert!(
            known.is_none_or(|known| known == id),
            "{sequence} was given twice"
        );
    }
}

async fn within<T>(what: &str, call: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(PATIENCE, call).await;
    done.unwrap_or_else(|_| panic!("{what} hangs"))
}

/// Puts articles and reads them back.
async fn put(soak: Arc<Soak>, mut random: StdRng) {
    let mut calls = soak.articles();
    while soak.goes_on() {
        let article = soak.article(&mut random);
        let request = proto::PutArticleRequest {
            article: Some(article.clone()),
        };
        let begun = Instant::now();
        let answer = within("put", calls.put_article(soak.write(request))).await;
        if let Some(put) = soak.judge("put", begun, answer) {
            let put = put.into_inner();
            soak.note(put.sequence, &put.id);
            let name = proto::get_article_request::Name::Id(put.id);
            let get = proto::GetArticleRequest {
                name: Some(name),
                ..Default::default()
            };
            let begun = Instant::now();
            let answer = within("get", calls.get_article(soak.write(get))).await;
            // Somebody may have deleted it by now.
            let is_deleted = matches!(&answer, Err(status) if status.code() == Code::NotFound);
            if !is_deleted && let Some(got) = soak.judge("get", begun, answer) {
                assert_eq!(got.into_inner().article.unwrap().body, article.body);
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Imports articles, some of them twice and some of them bad, over streams of some messages.
async fn import(soak: Arc<Soak>, mut random: StdRng) {
    let mut calls = soak.articles();
    while soak.goes_on() {
        let (send, receive) = mpsc::channel(1);
        let messages: Vec<_> = (0..random.random_range(1..10))
            .map(|_| {
                let mut some: Vec<_> = (0..random.random_range(1..40))
                    .map(|_| soak.article(&mut random))
                    .collect();
                some.push(some[0].clone());
                some.push(proto::Article::default());
                import_request(&some)
            })
            .collect();
        let sending = tokio::spawn(async move {
            for message in messages {
                if send.send(message).await.is_err() {
                    return;
                }
                tokio::time::sleep(PAUSE * 5).await;
            }
        });
        let begun = Instant::now();
        let requests = soak.write(ReceiverStream::new(receive));
        let answer = within("import", calls.import_articles(requests)).await;
        if let Some(answers) = soak.judge("import", begun, answer) {
            let mut answers = answers.into_inner();
            loop {
                let answer = within("import", answers.message()).await;
                let Some(Some(answer)) = soak.judge("import", begun, answer) else {
                    break;
                };
                for result in answer.results {
                    match result.error {
                        None => soak.note(result.sequence, &result.id),
                        Some(error) if error.reason == "ARTICLE_INVALID" => {}
                        Some(error) => {
                            let status = Status::new(Code::from(error.code), error.reason);
                            soak.judge::<()>("import result", begun, Err(status));
                        }
                    }
                }
            }
        }
        sending.abort();
        tokio::time::sleep(PAUSE).await;
    }
}

/// Deletes some of what was stored.
async fn delete(soak: Arc<Soak>, mut random: StdRng) {
    let mut calls = soak.articles();
    while soak.goes_on() {
        tokio::time::sleep(PAUSE * 10).await;
        let id = {
            let known = soak.acknowledged.lock().unwrap();
            let Some((last, _)) = known.last_key_value() else {
                continue;
            };
            let from = random.random_range(0..=*last);
            known.range(from..).next().map(|(_, id)| *id)
        };
        let Some(id) = id else { continue };
        let request = proto::DeleteArticleRequest {
            id: id.to_string(),
            reason: "a test".into(),
        };
        soak.maybe_deleted.lock().unwrap().insert(id);
        let begun = Instant::now();
        let request = signed(request, &soak.admin);
        let answer = within("delete", calls.delete_article(request)).await;
        if soak.judge("delete", begun, answer).is_some() {
            soak.deleted.lock().unwrap().insert(id);
        }
    }
}

/// Asks what readers ask. A page never has an article twice.
async fn read(soak: Arc<Soak>, mut random: StdRng) {
    let mut calls = soak.articles();
    while soak.goes_on() {
        let begun = Instant::now();
        match random.random_range(0..4) {
            0 => {
                let mut ids = BTreeSet::new();
                let mut page_token = String::new();
                for _ in 0..5 {
                    let request = proto::ListArticlesRequest {
                        page_size: 200,
                        page_token,
                        ..Default::default()
                    };
                    let begun = Instant::now();
                    let answer = within("list", calls.list_articles(soak.write(request))).await;
                    let Some(page) = soak.judge("list", begun, answer) else {
                        break;
                    };
                    let page = page.into_inner();
                    for article in page.articles {
                        assert!(ids.insert(article.id), "a page repeats an article");
                    }
                    page_token = page.next_page_token;
                    if page_token.is_empty() {
                        break;
                    }
                }
            }
            1 => {
                let request = soak.write(proto::ScanArticlesRequest::default());
                let answer = within("scan", calls.scan_articles(request)).await;
                let Some(scan) = soak.judge("scan", begun, answer) else {
                    continue;
                };
                let mut scan = scan.into_inner();
                // Some are read to the end, of others no more is wanted.
                for _ in 0..random.random_range(1..20) {
                    let answer = within("scan", scan.message()).await;
                    let Some(Some(_)) = soak.judge("scan", begun, answer) else {
                        break;
                    };
                }
            }
            2 => {
                let request = proto::SearchArticlesRequest {
                    query: "body number".into(),
                    ..Default::default()
                };
                let answer = within("search", calls.search_articles(soak.write(request))).await;
                soak.judge("search", begun, answer);
            }
            _ => {
                let request = soak.write(proto::GetTimelineRequest::default());
                let answer = within("timeline", calls.get_timeline(request)).await;
                soak.judge("timeline", begun, answer);
            }
        }
        tokio::time::sleep(PAUSE * 5).await;
    }
}

/// Connects anew each time, so that every certificate is seen.
async fn visit(soak: Arc<Soak>) {
    while soak.goes_on() {
        let mut admin = AdminServiceClient::new(soak.channel());
        let request = soak.write(proto::GetServerInfoRequest {});
        let begun = Instant::now();
        let answer = within("visit", admin.get_server_info(request)).await;
        soak.judge("visit", begun, answer);
        tokio::time::sleep(PAUSE * 5).await;
    }
}

/// Watches every change from the first one on, over all restarts.
async fn watch(soak: Arc<Soak>, until: impl Fn(u64) -> bool) {
    let mut calls = soak.articles();
    let mut next = 1;
    while !until(next - 1) {
        let request = proto::WatchArticlesRequest {
            from_sequence: next,
            heartbeat_interval: Some(prost_types::Duration {
                seconds: 1,
                nanos: 0,
            }),
            view: proto::ArticleView::Head.into(),
            ..Default::default()
        };
        let begun = Instant::now();
        let answer = within("watch", calls.watch_articles(soak.write(request))).await;
        let Some(news) = soak.judge("watch", begun, answer) else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let mut news = news.into_inner();
        while !until(next - 1) {
            let answer = within("watch", news.message()).await;
            let Some(Some(news)) = soak.judge("watch", Instant::now(), answer) else {
                break;
            };
            for change in news.changes {
                let (sequence, id) = match change.kind.unwrap() {
                    proto::change::Kind::Stored(article) => (article.sequence, Some(article.id)),
                    proto::change::Kind::Deleted(deletion) => (deletion.sequence, None),
                };
                let mut seen = soak.seen.lock().unwrap();
                let id = id.map(|id| id.parse().unwrap());
                // What was stored and deleted before it was looked at is told by its deletion alone.
                assert!(sequence >= next, "{sequence} comes again, {next} is next");
                assert_eq!(seen.insert(sequence, id), None);
                next = sequence + 1;
            }
            next = next.max(news.sequence.unwrap() + 1);
        }
    }
}

/// A server, and what reads its log.
struct Running {
    server: ServerProcess,
    log: JoinHandle<Vec<String>>,
    begun: Instant,
}

/// Starts the server, and keeps the lines of its log that tell of errors.
fn start(desk: &Desk, address: &str) -> Running {
    let mut command = program();
    command.args(["serve", "--listen", address, "--log-format", "json"]);
    for (flag, name) in [
        ("--tls-cert", "cert.pem"),
        ("--tls-key", "key.pem"),
        ("--tokens", "tokens.toml"),
        ("--archive", "archive"),
    ] {
        command.args([flag, &desk.text(name)]);
    }
    command.stderr(Stdio::piped()).env("PRESSMARK_LOG", "warn");
    let mut server = ServerProcess::of(command);
    let lines = BufReader::new(server.take_stderr()).lines();
    let is_error = |line: &String| line.contains("\"level\":\"ERROR\"");
    let log = std::thread::spawn(move || lines.map_while(Result::ok).filter(is_error).collect());
    let begun = Instant::now();
    Running { server, log, begun }
}

/// Does to the server what may happen to it, and looks at its memory.
async fn chaos(soak: Arc<Soak>, mut running: Running, end: Instant, mut random: StdRng) -> Running {
    let begun = Instant::now();
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    let (mut stop_max, mut start_max) = (Duration::ZERO, Duration::ZERO);
    // The longer the test, the longer servers live: memory shows in those that do.
    let rarely = ((end - begun).as_secs() / 60).clamp(1, 8) as u32;
    while Instant::now() < end {
        tokio::time::sleep(random.random_range(CHAOS)).await;
        if running.begun.elapsed() > GROWN_UP {
            let memory = memory_kb(running.server.id(), "VmRSS");
            let articles = soak.numbers.load(Ordering::Relaxed);
            let figure = (begun.elapsed().as_secs(), memory, articles);
            soak.memory.lock().unwrap().push(figure);
        }
        let what = match random.random_range(0..4) {
            0 => {
                soak.desk.renew();
                "certificates renewed"
            }
            1 => {
                let (name, tokens) = ("guest", soak.desk.text("tokens.toml"));
                soak.desk.add(name, "reader");
                soak.desk
                    .run(&["token", "revoke", name, "--tokens", &tokens])
                    .exits(0);
                "tokens added and revoked"
            }
            _ if !random.random_ratio(1, rarely) => "nothing",
            restart => {
                *soak.restart.lock().unwrap() = (Instant::now(), None);
                let Running { server, log, .. } = running;
                let is_kill = restart == 2;
                let ending = tokio::task::spawn_blocking(move || {
                    if is_kill {
                        server.kill();
                    } else {
                        assert!(server.terminate(), "it stops in good order");
                    }
                });
                let ended = Instant::now();
                ending.await.unwrap();
                stop_max = stop_max.max(ended.elapsed());
                let errors = log.join().unwrap();
                assert!(errors.is_empty(), "{errors:#?}");
                let started = Instant::now();
                running = start(&soak.desk, soak.address.trim_start_matches("https://"));
                start_max = start_max.max(started.elapsed());
                soak.restart.lock().unwrap().1 = Some(Instant::now());
                if is_kill { "killed" } else { "stopped" }
            }
        };
        *counts.entry(what).or_default() += 1;
    }
    println!("{counts:?}, a stop took {stop_max:?} at most, a start {start_max:?}");
    running
}

/// Compares the memory of the first third with that of the last.
fn check_memory(figures: &[(u64, u64, u64)]) {
    let third = figures.len() / 3;
    if figures.len() < FIGURES_MIN {
        println!("{} figures of memory are too few to judge", figures.len());
        return;
    }
    let middle = |some: &[(u64, u64, u64)]| {
        let mut memory: Vec<_> = some.iter().map(|(_, memory, _)| *memory).collect();
        memory.sort_unstable();
        (memory[memory.len() / 2], some[some.len() / 2].2)
    };
    let (early, articles_early) = middle(&figures[..third]);
    let (late, articles_late) = middle(&figures[figures.len() - third..]);
    println!(
        "RSS in MB, the median of {third} figures: {} in the first third, {} in the last, with {} \
         articles more",
        early / 1024,
        late / 1024,
        articles_late - articles_early
    );
    let most = early * (100 + GROWTH_MAX) / 100 + ARTICLE_KB * (articles_late - articles_early);
    assert!(late <= most, "{figures:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_time_with_everything() {
    let seconds = rounds("PRESSMARK_TEST_SOAK_SECONDS", SECONDS);
    let seed = seed();
    let random = |stream: u64| StdRng::seed_from_u64(seed ^ stream);
    let desk = Desk::new();
    let writer = desk.add("importer", "writer");
    let admin = desk.add("chief", "admin");
    let running = start(&desk, "127.0.0.1:0");
    let now = Instant::now();
    let soak = Arc::new(Soak {
        address: running.server.address.clone(),
        desk,
        writer,
        admin,
        is_over: AtomicBool::new(false),
        restart: Mutex::new((now, Some(now))),
        acknowledged: Mutex::default(),
        deleted: Mutex::default(),
        maybe_deleted: Mutex::default(),
        seen: Mutex::default(),
        requests: AtomicU64::new(0),
        failures: Mutex::default(),
        memory: Mutex::default(),
        numbers: AtomicU64::new(0),
    });
    let mut workers = JoinSet::new();
    for stream in 0..2 {
        workers.spawn(put(Arc::clone(&soak), random(10 + stream)));
        workers.spawn(import(Arc::clone(&soak), random(20 + stream)));
        workers.spawn(read(Arc::clone(&soak), random(30 + stream)));
    }
    workers.spawn(delete(Arc::clone(&soak), random(40)));
    workers.spawn(visit(Arc::clone(&soak)));
    // The watch goes on until it has seen all that the others did.
    let last = Arc::new(AtomicU64::new(u64::MAX));
    let until = Arc::clone(&last);
    let watching = tokio::spawn(watch(Arc::clone(&soak), move |seen| {
        seen >= until.load(Ordering::Relaxed)
    }));
    let end = now + Duration::from_secs(seconds as u64);
    let chaos = tokio::spawn(chaos(Arc::clone(&soak), running, end, random(50)));
    let running = tokio::select! {
        running = chaos => running.unwrap(),
        // Only a failure ends a worker before that.
        worker = workers.join_next() => panic!("{worker:?}"),
    };
    soak.is_over.store(true, Ordering::Relaxed);
    while let Some(worker) = workers.join_next().await {
        worker.unwrap();
    }
    let mut calls = soak.articles();
    let count = proto::CountArticlesRequest::default();
    let counted = calls
        .count_articles(soak.write(count))
        .await
        .unwrap()
        .into_inner();
    last.store(counted.as_of_sequence.unwrap(), Ordering::Relaxed);
    within("the watch", watching).await.unwrap();
    drop(calls);
    let Running { server, log, .. } = running;
    assert!(server.terminate());
    let errors = log.join().unwrap();
    assert!(errors.is_empty(), "{errors:#?}");
    println!(
        "{seconds} s, {} requests, failed around restarts: {:?}",
        soak.requests.load(Ordering::Relaxed),
        soak.failures.lock().unwrap()
    );
    check_memory(&soak.memory.lock().unwrap());
    check_folder(&soak.desk.path("archive"), async |archive| {
        check_archive(&soak, archive).await;
    })
    .await;
}

/// Nothing acknowledged is lost, and the watch saw all of it.
async fn check_archive(soak: &Soak, archive: &pressmark::archive::Archive) {
    let acknowledged = soak.acknowledged.lock().unwrap().clone();
    let deleted = soak.deleted.lock().unwrap().clone();
    let maybe_deleted = soak.maybe_deleted.lock().unwrap().clone();
    let seen = soak.seen.lock().unwrap().clone();
    let ids: Vec<_> = acknowledged.values().copied().collect();
    for some in ids.chunks(1000) {
        let missing = archive.find_missing(some).await.unwrap();
        assert!(missing.missing.is_empty(), "lost: {:?}", missing.missing);
        for id in missing.deleted {
            assert!(maybe_deleted.contains(&id), "{id} was deleted by nobody");
        }
    }
    for id in &deleted {
        let missing = archive.find_missing(&[*id]).await.unwrap();
        assert_eq!(missing.deleted, [*id], "a delete was lost");
    }
    let last = archive.committed();
    let mut skipped = 0;
    for sequence in 1..=last {
        match seen.get(&sequence) {
            Some(Some(id)) => assert_eq!(archive.id_at(sequence).await.unwrap(), *id),
            Some(None) => {}
            // It was deleted before the watch came by.
            None => {
                let id = archive.id_at(sequence).await.unwrap();
                assert!(maybe_deleted.contains(&id), "the watch missed {sequence}");
                skipped += 1;
            }
        }
    }
    println!(
        "{} articles acknowledged, {} deletes, {last} changes, of which the watch saw {} and {skipped} \
         were deleted before it came: 0 lost",
        acknowledged.len(),
        deleted.len(),
        seen.len()
    );
    assert!(!acknowledged.is_empty() && !seen.is_empty());
}
