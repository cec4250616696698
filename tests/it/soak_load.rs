//! The load of the soak: clients of every kind, each of which knows what it may be told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pressmark::article::ContentHash;
use pressmark::rpc::proto;
use pressmark::rpc::proto::admin_service_client::AdminServiceClient;
use pressmark::rpc::proto::article_service_client::ArticleServiceClient;
use rand::RngExt;
use rand::rngs::StdRng;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};

use crate::desk::{Desk, signed};
use crate::server::{import_request, message};

/// After a restart clients may still find the connection of before.
const GRACE: Duration = Duration::from_secs(3);

/// Longer than any request may take, restarts or not.
const PATIENCE: Duration = Duration::from_secs(60);

/// The pause of a worker between two requests: the load is to last, not to be the most.
const PAUSE: Duration = Duration::from_millis(20);

/// What workers and chaos share.
pub struct Soak {
    pub desk: Desk,
    pub address: String,
    /// Tokens of a writer and of an admin.
    pub writer: String,
    pub admin: String,
    pub is_over: AtomicBool,
    /// When the last restart began and ended.
    pub restart: Mutex<(Instant, Option<Instant>)>,
    pub acknowledged: Mutex<BTreeMap<u64, ContentHash>>,
    /// Deletes that were acknowledged, and those whose answer was lost.
    pub deleted: Mutex<BTreeSet<ContentHash>>,
    pub maybe_deleted: Mutex<BTreeSet<ContentHash>>,
    /// What the watch saw: the id of each sequence, none for a delete.
    pub seen: Mutex<BTreeMap<u64, Option<ContentHash>>>,
    pub requests: AtomicU64,
    pub failures: Mutex<BTreeMap<String, u64>>,
    /// Memory of servers: seconds since the start, kilobytes, articles so far.
    pub memory: Mutex<Vec<(u64, u64, u64)>>,
    pub numbers: AtomicU64,
}

impl Soak {
    fn goes_on(&self) -> bool {
        !self.is_over.load(Ordering::Relaxed)
    }

    fn channel(&self) -> Channel {
        let root = std::fs::read(self.desk.path("ca.pem")).unwrap();
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(root));
        let endpoint = Endpoint::from_shared(self.address.clone()).unwrap();
        let endpoint = endpoint.connect_timeout(PATIENCE / 2);
        endpoint.tls_config(tls).unwrap().connect_lazy()
    }

    pub fn articles(&self) -> ArticleServiceClient<Channel> {
        ArticleServiceClient::new(self.channel())
    }

    pub fn write<T>(&self, request: T) -> Request<T> {
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

pub async fn within<T>(what: &str, call: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(PATIENCE, call).await;
    done.unwrap_or_else(|_| panic!("{what} hangs"))
}

/// Puts articles and reads them back.
pub async fn put(soak: Arc<Soak>, mut random: StdRng) {
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
pub async fn import(soak: Arc<Soak>, mut random: StdRng) {
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
pub async fn delete(soak: Arc<Soak>, mut random: StdRng) {
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
pub async fn read(soak: Arc<Soak>, mut random: StdRng) {
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
pub async fn visit(soak: Arc<Soak>) {
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
pub async fn watch(soak: Arc<Soak>, until: impl Fn(u64) -> bool) {
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
