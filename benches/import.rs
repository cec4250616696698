//! Imports generated articles into a server over four streams, twice, and prints what it cost.
//!
//! `cargo bench --bench import`. The number of articles is taken from `PRESSMARK_BENCH_ARTICLES`,
//! sentences from the unpacked npm package that `PRESSMARK_TEST_REUTERS` names, or from a short
//! list of words. They are made and kept in files before the clock starts; reading them is timed.

#![allow(
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::as_conversions,
    clippy::print_stdout,
    missing_docs,
    reason = "a benchmark stops at the first thing that is wrong, and prints"
)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pressmark::rpc::proto::admin_service_client::AdminServiceClient;
use pressmark::rpc::proto::article_service_client::ArticleServiceClient;
use pressmark::rpc::{ImportArticlesRequest, proto};
use prost::Message;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

const SEED: u64 = 7;
const ARTICLES: u64 = 200_000;
const STREAMS: u64 = 4;
const MESSAGE_ARTICLES: u64 = 100;
/// Messages that a stream has read ahead of the server.
const MESSAGES_AHEAD: usize = 4;
const SOURCES: u64 = 500;
/// Log-normal sizes: the median, and the deviation that puts the 95th percentile at 12 KB.
const BODY_BYTES_MEDIAN: f64 = 2500.0;
const BODY_SIZE_DEVIATION: f64 = 0.9536;
const BODY_BYTES_MAX: f64 = 1_000_000.0;
const DUPLICATES: f64 = 0.015;
const REVISIONS: f64 = 0.01;
const SYNDICATED: f64 = 0.01;
const SCATTERED: f64 = 0.1;
const FIRST_DAY_SECONDS: i64 = 1_471_996_800;
const TEN_YEARS_SECONDS: i64 = 315_576_000;
const WORDS: &str = "rate bank trade court vote water price storm school train health budget";
/// Clock ticks in a second of `/proc/<pid>/stat`, the same on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// Makes any article from its number alone, so that none needs to be kept.
struct Generator {
    sentences: Vec<String>,
    count: u64,
}

impl Generator {
    fn sentence(&self, random: &mut StdRng) -> &str {
        &self.sentences[random.random_range(0..self.sentences.len())]
    }

    /// The article of a number, and what it is to the ones before it.
    fn article(&self, number: u64) -> (&'static str, proto::Article) {
        let mut random = StdRng::seed_from_u64(SEED ^ (number << 8));
        let dice = random.random::<f64>();
        if number == 0 || dice >= DUPLICATES + REVISIONS + SYNDICATED {
            return ("original", self.original(number, &mut random));
        }
        let (_, earlier) = self.article(random.random_range(0..number));
        if dice < DUPLICATES {
            return ("duplicate", earlier);
        }
        let mut article = self.original(number, &mut random);
        if dice < DUPLICATES + REVISIONS {
            article.source = earlier.source;
            article.url = earlier.url;
            return ("revision", article);
        }
        while article.source == earlier.source {
            article.source = source(&mut random);
        }
        article.body = earlier.body;
        ("syndicated", article)
    }

    fn original(&self, number: u64, random: &mut StdRng) -> proto::Article {
        let size = BODY_BYTES_MEDIAN * (normal(random) * BODY_SIZE_DEVIATION).exp();
        let size = size.min(BODY_BYTES_MAX) as usize;
        let mut body = String::with_capacity(size + 1000);
        while body.len() < size {
            body.push_str(self.sentence(random));
            body.push(if random.random_ratio(1, 4) { '\n' } else { ' ' });
        }
        // The corpus is ASCII, so that any place is the end of a character.
        body.truncate(size);
        let offset = if random.random_bool(SCATTERED) {
            random.random_range(0..TEN_YEARS_SECONDS)
        } else {
            (TEN_YEARS_SECONDS as f64 * number as f64 / self.count as f64) as i64
        };
        proto::Article {
            title: self.sentence(random).chars().take(80).collect(),
            published_at: Some(prost_types::Timestamp {
                seconds: FIRST_DAY_SECONDS + offset,
                nanos: 0,
            }),
            author: format!("Author {}", random.random_range(0..2000)),
            source: source(random),
            url: format!("https://news.example/{number}/{:x}", random.random::<u64>()),
            body,
            ..proto::Article::default()
        }
    }

    /// Writes a file per stream, the messages in turn, so that all streams together arrive in the
    /// order of the dates.
    fn write(&self, files: &[PathBuf]) -> Workload {
        let create = |path| BufWriter::new(File::create(path).unwrap());
        let mut writers: Vec<_> = files.iter().map(create).collect();
        let mut work = Workload::default();
        for number in 0..self.count {
            let (kind, article) = self.article(number);
            *work.kinds.entry(kind).or_default() += 1;
            work.text_bytes += (article.title.len() + article.body.len()) as u64;
            work.body_bytes.push(article.body.len());
            let encoded = article.encode_to_vec();
            let length = u32::try_from(encoded.len()).unwrap();
            let writer = &mut writers[(number / MESSAGE_ARTICLES % STREAMS) as usize];
            writer.write_all(&length.to_le_bytes()).unwrap();
            writer.write_all(&encoded).unwrap();
        }
        for writer in writers {
            // Else the kernel would write it back while the server is measured.
            writer.into_inner().unwrap().sync_all().unwrap();
        }
        work.body_bytes.sort_unstable();
        work
    }
}

/// What was generated.
#[derive(Default)]
struct Workload {
    kinds: BTreeMap<&'static str, u64>,
    /// Bytes of titles and bodies.
    text_bytes: u64,
    body_bytes: Vec<usize>,
}

/// Sentences, and where they come from.
fn sentences() -> (&'static str, Vec<String>) {
    if let Ok(package) = std::env::var("PRESSMARK_TEST_REUTERS") {
        return ("the Reuters corpus", reuters(Path::new(&package)));
    }
    let words: Vec<&str> = WORDS.split(' ').collect();
    let mut random = StdRng::seed_from_u64(SEED);
    let mut word = || words[random.random_range(0..words.len())];
    let mut sentence = || (0..12).map(|_| word()).collect::<Vec<_>>().join(" ") + ".";
    let sentences = (0..5000).map(|_| sentence()).collect();
    ("12 words, which compress better than real text", sentences)
}

fn reuters(package: &Path) -> Vec<String> {
    let folder = std::fs::read_dir(package.join("data/full")).unwrap();
    let mut files: Vec<_> = folder.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut sentences = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file).unwrap();
        let entries: Vec<Value> = serde_json::from_str(&text).unwrap();
        for entry in entries {
            let body = entry["body"].as_str().unwrap_or_default();
            let body = body.split_whitespace().collect::<Vec<_>>().join(" ");
            let parts = body.split(". ").filter(|part| {
                part.len() > 30 && part.bytes().all(|byte| matches!(byte, b' '..=b'~'))
            });
            sentences.extend(parts.map(|part| format!("{}.", part.trim_end_matches('.'))));
        }
    }
    sentences
}

/// Normally distributed, by the sum of uniform numbers.
fn normal(random: &mut StdRng) -> f64 {
    (0..12).map(|_| random.random::<f64>()).sum::<f64>() - 6.0
}

/// By Zipf: the chance of rank n is about 1 / n.
fn source(random: &mut StdRng) -> String {
    let rank = (SOURCES as f64 + 1.0).powf(random.random::<f64>()) as u64;
    format!("Outlet {rank:03}")
}

/// `pressmark serve` in a process of its own. Dropping it kills it.
struct Server {
    child: Child,
    address: String,
    /// From the start of the process to the line that says where it listens.
    open: Duration,
}

impl Server {
    fn start(archive: &Path) -> Self {
        let started = Instant::now();
        let mut child = Command::new(env!("CARGO_BIN_EXE_pressmark"))
            .args(["serve", "--listen", "127.0.0.1:0", "--archive"])
            .arg(archive)
            .env("PRESSMARK_LOG", "warn")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        let (_, address) = line.trim().rsplit_once(' ').unwrap();
        Self {
            address: address.to_owned(),
            child,
            open: started.elapsed(),
        }
    }

    fn memory_bytes(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib * 1024
    }

    fn cpu_seconds(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // The second field, the program's name in brackets, may hold spaces.
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        let times = fields.split(' ').skip(11).take(2);
        let ticks: f64 = times.map(|ticks| ticks.parse::<f64>().unwrap()).sum();
        ticks / TICKS_PER_SECOND
    }

    /// Checks the archive, which must be whole, and tells how fast that was.
    async fn verify(&self) -> Value {
        let client = AdminServiceClient::connect(self.address.clone());
        let request = proto::VerifyArchiveRequest::default();
        let mut events = client
            .await
            .unwrap()
            .verify_archive(request)
            .await
            .unwrap()
            .into_inner();
        let mut summary = proto::VerifySummary::default();
        while let Some(message) = events.message().await.unwrap() {
            if let Some(proto::verify_archive_response::Event::Summary(last)) = message.event {
                summary = last;
            }
        }
        assert_eq!(summary.finding_count, Some(0), "{summary:?}");
        let seconds = summary.elapsed_ms() as f64 / 1e3;
        json!({
            "seconds": round(seconds),
            "articles_per_s": (summary.article_count() as f64 / seconds).round(),
            "read_bytes": summary.bytes(),
        })
    }

    async fn stats(&self) -> proto::GetStatsResponse {
        let client = AdminServiceClient::connect(self.address.clone()).await;
        let stats = client.unwrap().get_stats(proto::GetStatsRequest {}).await;
        stats.unwrap().into_inner()
    }

    fn stop(mut self) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already unless the benchmark failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads the next message of a file: `None` at its end.
fn read_message(file: &mut impl BufRead) -> Option<ImportArticlesRequest> {
    let mut request = ImportArticlesRequest::default();
    for _ in 0..MESSAGE_ARTICLES {
        if file.fill_buf().unwrap().is_empty() {
            break;
        }
        let mut length = [0; 4];
        file.read_exact(&mut length).unwrap();
        let mut article = vec![0; u32::from_le_bytes(length) as usize];
        file.read_exact(&mut article).unwrap();
        request.articles.push(Bytes::from(article));
    }
    (!request.articles.is_empty()).then_some(request)
}

async fn import_file(address: String, path: PathBuf) -> usize {
    let (sender, requests) = mpsc::channel(MESSAGES_AHEAD);
    let reading = tokio::task::spawn_blocking(move || {
        let mut file = BufReader::with_capacity(1 << 18, File::open(path).unwrap());
        while let Some(request) = read_message(&mut file) {
            sender.blocking_send(request).unwrap();
        }
    });
    let mut client = ArticleServiceClient::connect(address).await.unwrap();
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let mut answers = client.import_articles(requests).await.unwrap().into_inner();
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

/// Imports all files at the same time and tells what it cost. Counts are since the server's start.
async fn import(server: &Server, files: &[PathBuf], work: &Workload) -> Value {
    let (started, cpu_before) = (Instant::now(), server.cpu_seconds());
    let start = |path: &PathBuf| tokio::spawn(import_file(server.address.clone(), path.clone()));
    let streams: Vec<_> = files.iter().map(start).collect();
    let mut count = 0;
    for stream in streams {
        count += stream.await.unwrap();
    }
    let seconds = started.elapsed().as_secs_f64();
    let cpu = server.cpu_seconds() - cpu_before;
    assert_eq!(count, work.body_bytes.len(), "every article is answered");
    let stats = server.stats().await;
    let written = stats.created_count() + stats.revision_count();
    let commits = stats.commit_count() as f64;
    json!({
        "articles_per_s": (count as f64 / seconds).round(), "seconds": round(seconds),
        "text_mb_per_s": round(work.text_bytes as f64 / 1e6 / seconds),
        "server_cpu_seconds": round(cpu), "server_cpu_us_per_article": round(cpu * 1e6 / count as f64),
        "server_rss_bytes": server.memory_bytes("VmRSS"),
        "server_rss_peak_bytes": server.memory_bytes("VmHWM"),
        "created_count": stats.created_count(), "revision_count": stats.revision_count(),
        "duplicate_count": stats.duplicate_count(), "commit_count": stats.commit_count(),
        "articles_per_commit": round(written as f64 / commits),
        "ms_per_commit": round(stats.commit_us() as f64 / 1e3 / commits),
    })
}

/// Bytes that the files of the archive take, as `du` counts them.
fn disk(archive: &Path, stats: &proto::GetStatsResponse) -> Value {
    let files = walkdir::WalkDir::new(archive).into_iter();
    let blocks = files.map(|file| file.unwrap().metadata().unwrap().blocks());
    let disk = blocks.sum::<u64>() * 512;
    json!({
        "disk_bytes": disk, "disk_bytes_per_article": disk / stats.article_count(),
        "raw_text_bytes": stats.text_bytes(), "record_bytes": stats.stored_bytes(),
        "disk_to_raw_text": round(disk as f64 / stats.text_bytes() as f64),
    })
}

fn round(figure: f64) -> f64 {
    (figure * 1000.0).round() / 1000.0
}

/// Prints one part of the figures and keeps it for the last line.
fn report(summary: &mut Map<String, Value>, name: &str, figures: Value) {
    println!("{name}");
    for (figure, value) in figures.as_object().unwrap() {
        println!("  {figure}: {value}");
    }
    summary.insert(name.to_owned(), figures);
}

#[tokio::main]
async fn main() {
    let count = std::env::var("PRESSMARK_BENCH_ARTICLES");
    let count = count.map_or(ARTICLES, |count| count.parse().unwrap());
    let mut summary = Map::new();
    let load = || std::fs::read_to_string("/proc/loadavg").unwrap();
    let conditions = json!({
        "articles": count, "seed": SEED, "streams": STREAMS, "sources": SOURCES,
        "message_articles": MESSAGE_ARTICLES, "load": load().trim(),
        "cores": std::thread::available_parallelism().unwrap(),
    });
    report(&mut summary, "conditions", conditions);
    let (origin, sentences) = sentences();
    let generator = Generator { sentences, count };
    let folder = tempfile::tempdir().unwrap();
    let file = |stream| folder.path().join(format!("stream-{stream}"));
    let files: Vec<PathBuf> = (0..STREAMS).map(file).collect();
    let started = Instant::now();
    let work = generator.write(&files);
    let percentile = |percent| work.body_bytes[(work.body_bytes.len() - 1) * percent / 100];
    let generated = json!({
        "untimed_seconds": round(started.elapsed().as_secs_f64()),
        "sentences": generator.sentences.len(), "sentences_of": origin, "title_and_body_bytes": work.text_bytes,
        "body_bytes_median": percentile(50), "body_bytes_p95": percentile(95),
        "kinds": work.kinds,
    });
    report(&mut summary, "generated", generated);

    let archive = folder.path().join("archive");
    let server = Server::start(&archive);
    for pass in ["import", "import_again"] {
        report(&mut summary, pass, import(&server, &files, &work).await);
    }
    let stats = server.stats().await;
    server.stop();
    report(&mut summary, "disk_after_stop", disk(&archive, &stats));
    let server = Server::start(&archive);
    let open_ms = round(server.open.as_secs_f64() * 1e3);
    report(&mut summary, "verify", server.verify().await);
    server.stop();
    let restart = json!({ "open_ms": open_ms, "load": load().trim() });
    report(&mut summary, "restart", restart);
    println!("{}", Value::Object(summary));
}
