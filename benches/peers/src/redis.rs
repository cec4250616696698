//! Redis with an append-only file that is synced before every answer: a string per article, sorted
//! sets by date and by source, a set per URL, all in one MULTI. All of it stays in memory. An import
//! pipelines 100 articles per file; again, it asks first which articles are there.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pressmark::article::ContentHash;
use pressmark::rpc::proto;
use prost::Message;
use redis::aio::MultiplexedConnection;
use redis::{Pipeline, pipe};

use crate::corpus::Reading;
use crate::process::Process;
use crate::subject::{BATCH_ARTICLES, Running, Subject};

const CONNECTIONS: usize = 4;
const SCAN_ARTICLES: isize = 500;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);

struct Redis {
    connections: Vec<MultiplexedConnection>,
    next: AtomicUsize,
}

pub async fn start(folder: &Path) -> Running {
    std::fs::create_dir_all(folder).unwrap();
    let port = crate::free_port();
    let started = Instant::now();
    let child = Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--dir"])
        .arg(folder)
        .args([
            "--appendonly",
            "yes",
            "--appendfsync",
            "always",
            "--save",
            "",
        ])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let process = Process::watch(child);
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
    let config = || redis::AsyncConnectionConfig::new().set_response_timeout(Some(ANSWER_TIMEOUT));
    let mut connections = Vec::new();
    while connections.len() < CONNECTIONS {
        let connection = client
            .get_multiplexed_async_connection_with_config(&config())
            .await;
        let answers = match connection {
            Ok(mut connection) => {
                // It refuses everything while it loads its file.
                let size = redis::cmd("DBSIZE")
                    .query_async::<u64>(&mut connection)
                    .await;
                size.is_ok().then_some(connection)
            }
            Err(_) => None,
        };
        match answers {
            Some(connection) => connections.push(connection),
            None => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    }
    let open = started.elapsed();
    let subject = Redis {
        connections,
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

fn add(pipeline: &mut Pipeline, article: &proto::Article) {
    let id = *article.id.parse::<ContentHash>().unwrap().as_bytes();
    let seconds = article.published_at.as_ref().unwrap().seconds;
    pipeline.set_nx(key(&id), article.encode_to_vec()).ignore();
    pipeline.zadd("d", &id, seconds).ignore();
    pipeline
        .zadd(format!("s{}", article.source), &id, seconds)
        .ignore();
    pipeline.sadd(format!("u{}", article.url), &id).ignore();
}

impl Redis {
    fn connection(&self) -> MultiplexedConnection {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        self.connections[next % self.connections.len()].clone()
    }

    /// Whether each of some ids is stored.
    async fn stored(&self, ids: &[[u8; 32]]) -> Vec<bool> {
        let mut pipeline = pipe();
        for id in ids {
            pipeline.exists(key(id));
        }
        pipeline.query_async(&mut self.connection()).await.unwrap()
    }
}

#[async_trait]
impl Subject for Redis {
    async fn put(&self, article: proto::Article) {
        let mut pipeline = pipe();
        add(pipeline.atomic(), &article);
        pipeline
            .query_async::<()>(&mut self.connection())
            .await
            .unwrap();
    }

    async fn import(&self, file: PathBuf, again: bool) -> u64 {
        let mut connection = self.connection();
        let mut reading = Reading::open(&file);
        let mut count = 0;
        loop {
            let batch = reading.batch(BATCH_ARTICLES);
            if batch.is_empty() {
                return count;
            }
            count += batch.len() as u64;
            let decode = |article| proto::Article::decode(article).unwrap();
            let mut articles: Vec<proto::Article> = batch.into_iter().map(decode).collect();
            if again {
                let id = |article: &proto::Article| {
                    *article.id.parse::<ContentHash>().unwrap().as_bytes()
                };
                let ids: Vec<[u8; 32]> = articles.iter().map(id).collect();
                let mut stored = self.stored(&ids).await.into_iter();
                articles.retain(|_| !stored.next().unwrap());
            }
            let mut pipeline = pipe();
            pipeline.atomic();
            for article in &articles {
                add(&mut pipeline, article);
            }
            if !articles.is_empty() {
                pipeline.query_async::<()>(&mut connection).await.unwrap();
            }
        }
    }

    async fn missing(&self, ids: &[[u8; 32]]) -> usize {
        self.stored(ids)
            .await
            .into_iter()
            .filter(|stored| !stored)
            .count()
    }

    async fn get(&self, id: &[u8; 32]) -> usize {
        let mut get = redis::cmd("GET");
        let value: Vec<u8> = get
            .arg(key(id))
            .query_async(&mut self.connection())
            .await
            .unwrap();
        proto::Article::decode(value.as_slice()).unwrap().body.len()
    }

    async fn scan(&self) -> (u64, u64) {
        let mut connection = self.connection();
        let (mut count, mut bytes, mut first) = (0, 0, 0);
        loop {
            let mut range = redis::cmd("ZRANGE");
            let range = range.arg("d").arg(first).arg(first + SCAN_ARTICLES - 1);
            let ids: Vec<Vec<u8>> = range.query_async(&mut connection).await.unwrap();
            if ids.is_empty() {
                return (count, bytes);
            }
            let mut get = redis::cmd("MGET");
            for id in &ids {
                get.arg([b"a".as_slice(), id].concat());
            }
            let values: Vec<Vec<u8>> = get.query_async(&mut connection).await.unwrap();
            for value in values {
                count += 1;
                bytes += proto::Article::decode(value.as_slice()).unwrap().body.len() as u64;
            }
            first += SCAN_ARTICLES;
        }
    }
}
