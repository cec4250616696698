//! etcd: a key per article, and keys for date, source and URL in the same transaction. An import has
//! several transactions of 32 articles in flight per file; again, it asks first which articles are
//! there. It takes at most 128 operations in a transaction.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use etcd_client::{Client, Compare, CompareOp, GetOptions, Txn, TxnOp, TxnOpResponse};
use futures_util::{StreamExt, stream};
use pressmark::article::ContentHash;
use pressmark::rpc::proto;
use prost::Message;

use crate::corpus::Reading;
use crate::process::Process;
use crate::subject::{Running, Subject};

const CONNECTIONS: usize = 4;
const TXN_OPERATIONS: usize = 128;
const KEYS_PER_ARTICLE: usize = 4;
const IN_FLIGHT: usize = 8;
const RANGE_KEYS: i64 = 1000;
const QUOTA_BYTES: &str = "8589934592";

struct Etcd {
    clients: Vec<Client>,
    next: AtomicUsize,
}

pub async fn start(folder: &Path) -> Running {
    let client_url = format!("http://127.0.0.1:{}", crate::free_port());
    let peer_url = format!("http://127.0.0.1:{}", crate::free_port());
    let started = Instant::now();
    let child = Command::new("etcd")
        .args(["--name", "one", "--quota-backend-bytes", QUOTA_BYTES])
        .args([
            "--listen-client-urls",
            &client_url,
            "--advertise-client-urls",
            &client_url,
        ])
        .args([
            "--listen-peer-urls",
            &peer_url,
            "--initial-advertise-peer-urls",
            &peer_url,
        ])
        .args([
            "--initial-cluster",
            &format!("one={peer_url}"),
            "--data-dir",
        ])
        .arg(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let process = Process::watch(child);
    let mut clients = Vec::new();
    while clients.len() < CONNECTIONS {
        let client = Client::connect([&client_url], None).await;
        let answers = match client {
            Ok(mut client) => client.get("-", None).await.is_ok().then_some(client),
            Err(_) => None,
        };
        match answers {
            Some(client) => clients.push(client),
            None => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    }
    let open = started.elapsed();
    let subject = Etcd {
        clients,
        next: AtomicUsize::new(0),
    };
    Running {
        subject: Arc::new(subject),
        process,
        open,
    }
}

fn key(id: &[u8; 32]) -> Vec<u8> {
    [b"a".as_slice(), id].concat()
}

/// The keys and the value of an article.
fn puts(article: &proto::Article) -> [TxnOp; KEYS_PER_ARTICLE] {
    let id: ContentHash = article.id.parse().unwrap();
    let time = article.published_at.as_ref().unwrap().seconds.to_be_bytes();
    let put = |key: &[&[u8]], value: Vec<u8>| TxnOp::put(key.concat(), value, None);
    [
        put(&[b"a", id.as_bytes()], article.encode_to_vec()),
        put(&[b"d", &time, id.as_bytes()], Vec::new()),
        put(
            &[b"s", article.source.as_bytes(), &time, id.as_bytes()],
            Vec::new(),
        ),
        put(&[b"u", article.url.as_bytes(), id.as_bytes()], Vec::new()),
    ]
}

impl Etcd {
    fn client(&self) -> Client {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        self.clients[next % self.clients.len()].clone()
    }

    async fn put_all(&self, articles: &[proto::Article]) {
        let operations: Vec<TxnOp> = articles.iter().flat_map(puts).collect();
        self.client()
            .txn(Txn::new().and_then(operations))
            .await
            .unwrap();
    }

    /// Which of some ids, at most as many as a transaction has operations, are not stored.
    async fn absent(&self, ids: &[[u8; 32]]) -> Vec<usize> {
        let count = |id| TxnOp::get(key(id), Some(GetOptions::new().with_count_only()));
        let counts: Vec<TxnOp> = ids.iter().map(count).collect();
        let answer = self
            .client()
            .txn(Txn::new().and_then(counts))
            .await
            .unwrap();
        let answers = answer.op_responses().into_iter().enumerate();
        let absent = answers.filter_map(|(index, answer)| match answer {
            TxnOpResponse::Get(answer) => (answer.count() == 0).then_some(index),
            _ => None,
        });
        absent.collect()
    }

    /// Reads some articles, and tells their number and the bytes of their bodies.
    async fn read(&self, ids: &[[u8; 32]]) -> (u64, u64) {
        let gets: Vec<TxnOp> = ids.iter().map(|id| TxnOp::get(key(id), None)).collect();
        let answer = self.client().txn(Txn::new().and_then(gets)).await.unwrap();
        let mut sum = (0, 0);
        for answer in answer.op_responses() {
            if let TxnOpResponse::Get(answer) = answer {
                let article = proto::Article::decode(answer.kvs()[0].value()).unwrap();
                sum = (sum.0 + 1, sum.1 + article.body.len() as u64);
            }
        }
        sum
    }

    async fn put_absent(&self, articles: Vec<proto::Article>) {
        let id = |article: &proto::Article| *article.id.parse::<ContentHash>().unwrap().as_bytes();
        let ids: Vec<[u8; 32]> = articles.iter().map(id).collect();
        let absent = self.absent(&ids).await;
        let absent: Vec<proto::Article> = absent
            .into_iter()
            .map(|index| articles[index].clone())
            .collect();
        for some in absent.chunks(TXN_OPERATIONS / KEYS_PER_ARTICLE) {
            self.put_all(some).await;
        }
    }
}

#[async_trait]
impl Subject for Etcd {
    async fn put(&self, article: proto::Article) {
        let id: ContentHash = article.id.parse().unwrap();
        let new = Compare::version(key(id.as_bytes()), CompareOp::Equal, 0);
        let txn = Txn::new().when([new]).and_then(puts(&article));
        self.client().txn(txn).await.unwrap();
    }

    async fn import(&self, file: PathBuf, again: bool) -> u64 {
        let batch = if again {
            TXN_OPERATIONS
        } else {
            TXN_OPERATIONS / KEYS_PER_ARTICLE
        };
        let mut reading = Reading::open(&file);
        let batches = std::iter::from_fn(move || {
            let articles = reading.batch(batch);
            (!articles.is_empty()).then_some(articles)
        });
        let done = stream::iter(batches).map(async |batch| {
            let decode = |article| proto::Article::decode(article).unwrap();
            let articles: Vec<proto::Article> = batch.into_iter().map(decode).collect();
            let count = articles.len() as u64;
            if again {
                self.put_absent(articles).await;
            } else {
                self.put_all(&articles).await;
            }
            count
        });
        let counts = done.buffer_unordered(IN_FLIGHT);
        counts.fold(0, async |sum, count| sum + count).await
    }

    async fn missing(&self, ids: &[[u8; 32]]) -> usize {
        let some: Vec<_> = ids
            .chunks(TXN_OPERATIONS)
            .map(|ids| self.absent(ids))
            .collect();
        let counts = stream::iter(some).buffer_unordered(IN_FLIGHT);
        counts.fold(0, async |sum, absent| sum + absent.len()).await
    }

    async fn get(&self, id: &[u8; 32]) -> usize {
        let answer = self.client().get(key(id), None).await.unwrap();
        let article = proto::Article::decode(answer.kvs()[0].value()).unwrap();
        article.body.len()
    }

    async fn scan(&self) -> (u64, u64) {
        let mut client = self.client();
        let (mut start, end) = (b"d".to_vec(), b"e".to_vec());
        let (mut count, mut bytes) = (0, 0);
        loop {
            let range = GetOptions::new()
                .with_range(end.clone())
                .with_limit(RANGE_KEYS)
                .with_keys_only();
            let page = client.get(start, Some(range)).await.unwrap();
            let id = |row: &etcd_client::KeyValue| row.key()[9..].try_into().unwrap();
            let ids: Vec<[u8; 32]> = page.kvs().iter().map(id).collect();
            let gets: Vec<_> = ids
                .chunks(TXN_OPERATIONS)
                .map(|ids| self.read(ids))
                .collect();
            let sums = stream::iter(gets)
                .buffered(IN_FLIGHT)
                .collect::<Vec<(u64, u64)>>();
            let sums = sums.await;
            for (some, size) in sums {
                count += some;
                bytes += size;
            }
            match page.kvs().last().filter(|_| page.more()) {
                Some(last) => start = [last.key(), &[0]].concat(),
                None => return (count, bytes),
            }
        }
    }
}
