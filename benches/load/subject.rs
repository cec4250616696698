//! What is measured: a server that keeps articles, whoever wrote it. And pressmark as one of them.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pressmark::rpc::proto;
use pressmark::rpc::proto::admin_service_client::AdminServiceClient;
use pressmark::rpc::proto::article_service_client::ArticleServiceClient;
use pressmark::rpc::{CONNECTION_WINDOW_BYTES, ImportArticlesRequest, STREAM_WINDOW_BYTES};
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};

use crate::corpus::Reading;
use crate::process::Process;

/// Articles in one message of an import.
pub const BATCH_ARTICLES: usize = 100;
/// Messages that a stream has read ahead of the server.
const MESSAGES_AHEAD: usize = 4;
const CONNECTIONS: usize = 4;
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A client of a running server. A write has returned when it would survive a power cut.
#[async_trait]
pub trait Subject: Send + Sync {
    /// Stores one article, which carries its id.
    async fn put(&self, article: proto::Article);

    /// Stores the articles of a file in the fastest way that the server has, and tells how many
    /// were answered. `again` says that they may be there already.
    async fn import(&self, file: PathBuf, again: bool) -> u64;

    /// Tells how many of these ids are not stored.
    async fn missing(&self, ids: &[[u8; 32]]) -> usize;

    /// Reads one article and tells the length of its body.
    async fn get(&self, id: &[u8; 32]) -> usize;

    /// Reads all articles in the order of their dates, and tells their number and the bytes of
    /// their bodies.
    async fn scan(&self) -> (u64, u64);
}

/// A server with its client.
pub struct Running {
    pub subject: Arc<dyn Subject>,
    pub process: Process,
    /// From the start of the process until it answers.
    pub open: Duration,
}

/// pressmark over gRPC.
pub struct Pressmark {
    channels: Vec<Channel>,
    next: AtomicUsize,
}

impl Pressmark {
    /// Starts a server without full-text search, which none of the others has, and with some flags.
    pub async fn start(program: &Path, archive: &Path, flags: &[String]) -> (Arc<Self>, Running) {
        let mut all = vec!["--search", "off"];
        all.extend(flags.iter().map(String::as_str));
        Self::start_with(program, archive, &all).await
    }

    /// Starts a server with some flags, and also gives the client that knows more than others.
    pub async fn start_with(
        program: &Path,
        archive: &Path,
        flags: &[&str],
    ) -> (Arc<Self>, Running) {
        let mut command = Command::new(program);
        command.args(["serve", "--listen", "127.0.0.1:0", "--archive"]);
        command
            .arg(archive)
            .args(flags)
            .env("PRESSMARK_LOG", "warn");
        Self::launch(command).await
    }

    /// Starts a server that prints its address at the end of its first line.
    pub async fn run(command: Command) -> Running {
        Self::launch(command).await.1
    }

    async fn launch(mut command: Command) -> (Arc<Self>, Running) {
        let started = Instant::now();
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let (_, address) = line.trim().rsplit_once(' ').unwrap();
        let open = started.elapsed();
        let endpoint = Endpoint::from_shared(address.to_owned()).unwrap();
        let endpoint = endpoint
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .tcp_nodelay(true);
        let mut channels = Vec::new();
        for _ in 0..CONNECTIONS {
            channels.push(endpoint.connect().await.unwrap());
        }
        let client = Arc::new(Self {
            channels,
            next: AtomicUsize::new(0),
        });
        let running = Running {
            subject: Arc::clone(&client) as Arc<dyn Subject>,
            process: Process::watch(child),
            open,
        };
        (client, running)
    }

    pub fn channel(&self) -> Channel {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        self.channels[next % self.channels.len()].clone()
    }

    /// Reads articles with their text by date, all of them unless the time is over before. Returns how
    /// many and the bytes of their bodies.
    pub async fn scan_for(&self, time: Duration) -> (u64, u64) {
        let started = Instant::now();
        let request = proto::ScanArticlesRequest {
            order: proto::ArticleOrder::PublishedAsc.into(),
            ..proto::ScanArticlesRequest::default()
        };
        let answers = self.client().scan_articles(request).await.unwrap();
        let mut answers = answers.into_inner();
        let (mut count, mut bytes) = (0, 0);
        while started.elapsed() < time
            && let Some(answer) = answers.message().await.unwrap()
        {
            for article in answer.articles {
                count += 1;
                bytes += article.body.len() as u64;
            }
        }
        (count, bytes)
    }

    /// What the server tells of its archive.
    pub async fn stats(&self) -> proto::GetStatsResponse {
        let mut admin = AdminServiceClient::new(self.channel());
        let stats = admin.get_stats(proto::GetStatsRequest {}).await;
        stats.unwrap().into_inner()
    }

    pub fn client(&self) -> ArticleServiceClient<Channel> {
        ArticleServiceClient::new(self.channel()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }
}

pub fn hex(id: &[u8; 32]) -> String {
    pressmark::article::ContentHash::from_bytes(*id).to_string()
}

#[async_trait]
impl Subject for Pressmark {
    async fn put(&self, article: proto::Article) {
        let request = proto::PutArticleRequest {
            article: Some(article),
        };
        self.client().put_article(request).await.unwrap();
    }

    async fn import(&self, file: PathBuf, _again: bool) -> u64 {
        let (sender, requests) = mpsc::channel(MESSAGES_AHEAD);
        let reading = tokio::task::spawn_blocking(move || {
            let mut file = Reading::open(&file);
            loop {
                let articles = file.batch(BATCH_ARTICLES);
                if articles.is_empty() {
                    return;
                }
                let request = ImportArticlesRequest {
                    articles,
                    ..ImportArticlesRequest::default()
                };
                sender.blocking_send(request).unwrap();
            }
        });
        let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
        let answers = self.client().import_articles(requests).await;
        let mut answers = answers.unwrap().into_inner();
        let mut count = 0;
        while let Some(answer) = answers.message().await.unwrap() {
            for result in answer.results {
                assert!(result.error.is_none(), "{result:?}");
                count += 1;
            }
        }
        reading.await.unwrap();
        count
    }

    async fn missing(&self, ids: &[[u8; 32]]) -> usize {
        let request = proto::FindMissingArticlesRequest {
            ids: ids.iter().map(hex).collect(),
        };
        let answer = self.client().find_missing_articles(request).await.unwrap();
        answer.into_inner().missing_ids.len()
    }

    async fn get(&self, id: &[u8; 32]) -> usize {
        let request = proto::GetArticleRequest {
            name: Some(proto::get_article_request::Name::Id(hex(id))),
            ..proto::GetArticleRequest::default()
        };
        let answer = self.client().get_article(request).await.unwrap();
        answer.into_inner().article.unwrap().body.len()
    }

    async fn scan(&self) -> (u64, u64) {
        self.scan_for(Duration::MAX).await
    }
}
