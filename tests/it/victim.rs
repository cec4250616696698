//! A server under abuse, in a process of its own: what memory it takes, and how long a client that
//! means well has to wait meanwhile.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pressmark::rpc::proto;
use pressmark::rpc::proto::article_service_client::ArticleServiceClient;
use tempfile::TempDir;
use tokio::task::{JoinHandle, JoinSet};
use tonic::Status;
use tonic::transport::Channel;

use crate::server::{ServerProcess, articles, check_folder, import_request, message};
use crate::support::noise;

/// Articles that are there before, of some kilobytes each, and large ones that make scans slow.
const ARTICLES: usize = 1000;
const LARGE_ARTICLES: usize = 300;
const LARGE_BYTES: usize = 100_000;

/// How long the client works before anything is measured, and before and after each abuse.
const WARM_UP: Duration = Duration::from_secs(2);
const CALM: Duration = Duration::from_millis(500);

/// How many scans are read to their ends before anything is measured.
const WARM_SCANS: usize = 20;

/// The client's pause between two articles: it is to be served, and not to be a load itself, whose
/// articles would be most of what there is to measure.
const PAUSE: Duration = Duration::from_millis(5);

/// How often memory is looked at.
const SAMPLE: Duration = Duration::from_millis(20);

/// How long memory may take to be given back.
const RETURN_MAX: Duration = Duration::from_secs(120);

/// Memory may have grown by so much, in percent.
const GROWTH_MAX: u64 = 20;

/// Longer than a request of the client may take, however the server is abused.
const LATENCY_MAX: Duration = Duration::from_secs(30);

/// The server, and the client.
pub struct Victim {
    folder: TempDir,
    server: ServerProcess,
    /// How many articles the client has put.
    number: Arc<AtomicU64>,
}

/// How long requests took.
#[derive(Default)]
struct Latencies(Vec<Duration>);

impl Latencies {
    fn part(&self, share: f64) -> Duration {
        let mut all = self.0.clone();
        all.sort_unstable();
        let index = (all.len() as f64 * share) as usize;
        all[index.min(all.len() - 1)]
    }

    fn most(&self) -> Duration {
        self.part(1.0)
    }

    fn text(&self) -> String {
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        format!(
            "{:.1} / {:.1} / {:.0}",
            ms(self.part(0.5)),
            ms(self.part(0.99)),
            ms(self.most())
        )
    }
}

/// A client that puts an article and gets it back, again and again.
struct Client {
    stop: Arc<AtomicBool>,
    working: JoinHandle<Result<Latencies, Status>>,
}

impl Client {
    fn begin(calls: ArticleServiceClient<Channel>, number: Arc<AtomicU64>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let working = tokio::spawn(async move {
            let mut latencies = Latencies::default();
            while !stopped.load(Ordering::Relaxed) {
                let next = number.fetch_add(1, Ordering::Relaxed);
                latencies.0.push(put_and_get(calls.clone(), next).await?);
                tokio::time::sleep(PAUSE).await;
            }
            Ok(latencies)
        });
        Self { stop, working }
    }

    async fn end(self) -> Latencies {
        self.stop.store(true, Ordering::Relaxed);
        let latencies = self.working.await.unwrap();
        latencies.expect("whoever means well is served")
    }
}

async fn put_and_get(
    mut calls: ArticleServiceClient<Channel>,
    number: u64,
) -> Result<Duration, Status> {
    let begun = Instant::now();
    let mut article = message(number as usize + 10_000);
    // Some large ones, whose messages need room of their own.
    if number.is_multiple_of(10) {
        article.body = noise(number as u32, 100_000);
    }
    let article = Some(article);
    let put = calls
        .put_article(proto::PutArticleRequest { article })
        .await?;
    let name = proto::get_article_request::Name::Id(put.into_inner().id);
    let get = proto::GetArticleRequest {
        name: Some(name),
        ..Default::default()
    };
    calls.get_article(get).await?;
    Ok(begun.elapsed())
}

/// Keeps the most memory that a process has.
async fn sample(process: u32, peak: Arc<AtomicU64>) {
    let mut ticks = tokio::time::interval(SAMPLE);
    loop {
        ticks.tick().await;
        peak.fetch_max(memory_kb(process, "VmRSS"), Ordering::Relaxed);
    }
}

/// A figure of a process in kilobytes, such as `VmRSS`.
pub fn memory_kb(process: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    let number = line.split_whitespace().nth(1).unwrap();
    number.parse().unwrap()
}

/// The time that a process has computed so far.
pub fn cpu_time(process: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks = |index: usize| {
        fields
            .split(' ')
            .nth(index)
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    // Of user and system, in hundredths of a second.
    Duration::from_millis(10 * (ticks(11) + ticks(12)))
}

impl Victim {
    pub async fn start(flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let archive = folder.path().join("archive");
        // What works in the background by itself is not what is measured.
        let quiet = ["--search", "off", "--scrub-interval", "0"];
        let server = ServerProcess::start_with(&archive, &[&quiet, flags].concat());
        Self::of(folder, server).await
    }

    /// A server that was started already, whose archive is in a folder of that name.
    pub async fn of(folder: TempDir, server: ServerProcess) -> Self {
        // This process holds as many connections as it attacks with.
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let raised = rustix::process::Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
        let victim = Self {
            folder,
            server,
            number: Arc::default(),
        };
        victim.fill().await;
        let client = victim.client().await;
        tokio::time::sleep(WARM_UP).await;
        client.end().await;
        victim
    }

    async fn fill(&self) {
        let mut some = Vec::new();
        let mut requests = Vec::new();
        for number in 0..ARTICLES {
            let mut article = message(number);
            let bytes = if number < LARGE_ARTICLES {
                LARGE_BYTES
            } else {
                3000
            };
            article.body = noise(number as u32, bytes);
            some.push(article);
            if some.len() == 100 || (number < LARGE_ARTICLES && some.len() == 30) {
                requests.push(import_request(&some));
                some.clear();
            }
        }
        requests.push(import_request(&some));
        let mut calls = articles(self.address()).await;
        let answers = calls.import_articles(tokio_stream::iter(requests)).await;
        let mut answers = answers.unwrap().into_inner();
        let mut count = 0;
        while let Some(answer) = answers.message().await.unwrap() {
            count += answer
                .results
                .iter()
                .filter(|result| result.error.is_none())
                .count();
        }
        assert_eq!(count, ARTICLES);
        // Some scans at a time, so that the threads that read have taken what they keep for reading.
        let mut scans = JoinSet::new();
        for _ in 0..WARM_SCANS {
            let mut calls = calls.clone();
            scans.spawn(async move {
                let scan = calls.scan_articles(proto::ScanArticlesRequest::default());
                let mut scan = scan.await.unwrap().into_inner();
                while scan.message().await.unwrap().is_some() {}
            });
        }
        scans.join_all().await;
    }

    async fn client(&self) -> Client {
        Client::begin(articles(self.address()).await, Arc::clone(&self.number))
    }

    pub fn address(&self) -> &str {
        &self.server.address
    }

    pub fn process(&self) -> u32 {
        self.server.id()
    }

    pub fn archive(&self) -> PathBuf {
        self.folder.path().join("archive")
    }

    fn memory(&self) -> u64 {
        memory_kb(self.process(), "VmRSS")
    }

    /// Abuses the server beside a client that means well, prints what that did to both, and checks that
    /// the client was served and that the memory comes back.
    pub async fn abused<T>(&self, name: &str, abuse: impl AsyncFnOnce() -> T) -> T {
        self.abused_within(name, 0, abuse).await
    }

    /// The same, where the allocator may keep some kilobytes more for the next time.
    pub async fn abused_within<T>(
        &self,
        name: &str,
        kept_kb: u64,
        abuse: impl AsyncFnOnce() -> T,
    ) -> T {
        let client = self.client().await;
        tokio::time::sleep(CALM).await;
        let calm = client.end().await;
        let before = self.memory();
        let client = self.client().await;
        let process = self.process();
        let peak = Arc::new(AtomicU64::new(before));
        let sampling = tokio::spawn(sample(process, Arc::clone(&peak)));
        let begun = Instant::now();
        let result = abuse().await;
        let took = begun.elapsed();
        let abused = client.end().await;
        sampling.abort();
        let after = self.returned(before, kept_kb).await;
        println!(
            "{name} ({:.1} s): ms of a put and a get, p50 / p99 / max: {} before, {} meanwhile; RSS in \
             MB: {} before, {} at most, {} after",
            took.as_secs_f64(),
            calm.text(),
            abused.text(),
            before / 1024,
            peak.load(Ordering::Relaxed) / 1024,
            after / 1024
        );
        assert!(abused.most() < LATENCY_MAX, "{name}: {}", abused.text());
        result
    }

    /// Waits until the memory is what it was, about.
    async fn returned(&self, before: u64, kept_kb: u64) -> u64 {
        let begun = Instant::now();
        loop {
            let now = self.memory();
            if now <= before * (100 + GROWTH_MAX) / 100 + kept_kb {
                return now;
            }
            let waited = begun.elapsed();
            assert!(
                waited < RETURN_MAX,
                "{before} kB before, {now} kB after {waited:?}, {} threads",
                memory_kb(self.process(), "Threads")
            );
            // Whoever has memory to give back does so when something is done.
            let mut calls = articles(self.address()).await;
            let count = proto::CountArticlesRequest::default();
            calls.count_articles(count).await.unwrap();
            tokio::time::sleep(CALM).await;
        }
    }

    /// A client that comes now is served, and everything is in order.
    pub async fn finish(self) {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let calls = articles(self.address()).await;
        put_and_get(calls, number).await.unwrap();
        let archive = self.archive();
        let count = ARTICLES as u64 + number + 1;
        let Self { folder, server, .. } = self;
        assert!(server.terminate());
        check(&archive, count).await;
        drop(folder);
    }
}

async fn check(archive: &Path, count: u64) {
    let last = check_folder(archive, async |archive| archive.committed()).await;
    assert_eq!(
        last, count,
        "every put was acknowledged, and nothing else was stored"
    );
}
