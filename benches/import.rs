//! Imports generated articles into a server over four streams, twice, and prints what it cost.
//!
//! `cargo bench --bench import`. The number of articles is taken from `PRESSMARK_BENCH_ARTICLES`,
//! sentences from the unpacked npm package that `PRESSMARK_TEST_REUTERS` names, or from a short
//! list of words. Articles are made before the clock starts; client and server share the machine.

#![allow(
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::as_conversions,
    clippy::print_stdout,
    missing_docs,
    reason = "a benchmark stops at the first thing that is wrong, and prints"
)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pressmark::rpc::proto::admin_service_client::AdminServiceClient;
use pressmark::rpc::proto::article_service_client::ArticleServiceClient;
use pressmark::rpc::{ImportArticlesRequest, proto};
use prost::Message;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const SEED: u64 = 7;
const ARTICLES: usize = 200_000;
const STREAMS: usize = 4;
const MESSAGE_ARTICLES: usize = 100;
const SOURCES: usize = 500;
/// Log-normal sizes: the median, and the deviation that puts the 95th percentile at 12 KB.
const BODY_BYTES_MEDIAN: f64 = 2500.0;
const BODY_SIZE_DEVIATION: f64 = 0.95;
const FIRST_DAY_SECONDS: i64 = 1_471_996_800;
const TEN_YEARS_SECONDS: i64 = 315_576_000;

fn sentences() -> Vec<String> {
    let Ok(folder) = std::env::var("PRESSMARK_TEST_REUTERS") else {
        println!("sentences: made of a few words, which compress better than real ones");
        let words =
            "rate bank trade court vote water price storm school train health budget".split(' ');
        let words: Vec<&str> = words.collect();
        let mut random = StdRng::seed_from_u64(SEED);
        let mut sentence = || {
            (0..12)
                .map(|_| words[random.random_range(0..words.len())])
                .collect::<Vec<_>>()
                .join(" ")
        };
        return (0..5000).map(|_| sentence() + ".").collect();
    };
    let mut sentences = Vec::new();
    for file in std::fs::read_dir(Path::new(&folder).join("data/full")).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let entries: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        for entry in entries {
            let body = entry["body"]
                .as_str()
                .unwrap_or_default()
                .replace(char::is_control, " ");
            let parts = body
                .split(". ")
                .filter(|part| part.len() > 30 && !part.contains('\0'));
            sentences.extend(parts.map(|part| format!("{}.", part.trim())));
        }
    }
    println!("sentences: {} of the Reuters corpus", sentences.len());
    sentences
}

/// Normally distributed, by the sum of uniform numbers.
fn normal(random: &mut StdRng) -> f64 {
    (0..12).map(|_| random.random::<f64>()).sum::<f64>() - 6.0
}

fn source(random: &mut StdRng) -> String {
    // Zipf: the chance of rank n is about 1 / n.
    let rank = (SOURCES as f64).powf(random.random::<f64>()) as usize;
    format!("Outlet {rank:03}")
}

fn generate(count: usize) -> Vec<proto::Article> {
    let sentences = sentences();
    let mut random = StdRng::seed_from_u64(SEED);
    let mut articles: Vec<proto::Article> = Vec::with_capacity(count);
    for number in 0..count {
        let earlier = (number > 0).then(|| random.random_range(0..number));
        let kind = random.random::<f64>();
        if let (Some(earlier), true) = (earlier, kind < 0.015) {
            articles.push(articles[earlier].clone());
            continue;
        }
        let size = BODY_BYTES_MEDIAN * (normal(&mut random) * BODY_SIZE_DEVIATION).exp();
        let mut body = String::new();
        while (body.len() as f64) < size.min(1_000_000.0) {
            body.push_str(&sentences[random.random_range(0..sentences.len())]);
            body.push(if random.random_ratio(1, 4) { '\n' } else { ' ' });
        }
        let in_order = TEN_YEARS_SECONDS * number as i64 / count as i64;
        let scattered = random.random_range(0..TEN_YEARS_SECONDS);
        let offset = if random.random_ratio(1, 10) {
            scattered
        } else {
            in_order
        };
        let mut article = proto::Article {
            title: sentences[random.random_range(0..sentences.len())]
                .chars()
                .take(80)
                .collect(),
            published_at: Some(prost_types::Timestamp {
                seconds: FIRST_DAY_SECONDS + offset,
                nanos: 0,
            }),
            author: format!("Author {}", random.random_range(0..2000)),
            source: source(&mut random),
            url: format!("https://news.example/{number}/{:x}", random.random::<u64>()),
            body,
            ..proto::Article::default()
        };
        if let (Some(earlier), true) = (earlier, kind < 0.025) {
            article.url.clone_from(&articles[earlier].url);
        } else if let (Some(earlier), true) = (earlier, kind < 0.035) {
            article.body.clone_from(&articles[earlier].body);
        }
        articles.push(article);
    }
    articles
}

struct Server {
    child: Child,
    address: String,
    open: Duration,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already, as it should.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
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
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address = line.trim().rsplit_once(' ').unwrap().1.to_owned();
        Self {
            child,
            address,
            open: started.elapsed(),
        }
    }

    fn memory_mib(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
            / 1024
    }

    fn stop(mut self) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

async fn import(address: &str, articles: &[Bytes]) -> (Duration, BTreeMap<i32, u64>) {
    let started = Instant::now();
    let share = articles.len().div_ceil(STREAMS);
    let mut streams = Vec::new();
    for some in articles.chunks(share) {
        let (address, some) = (address.to_owned(), some.to_vec());
        streams.push(tokio::spawn(async move {
            let messages: Vec<_> = some
                .chunks(MESSAGE_ARTICLES)
                .map(|some| ImportArticlesRequest {
                    articles: some.to_vec(),
                    resume_token: Bytes::new(),
                })
                .collect();
            let mut client = ArticleServiceClient::connect(address).await.unwrap();
            let answers = client
                .import_articles(tokio_stream::iter(messages))
                .await
                .unwrap();
            let mut answers = answers.into_inner();
            let mut outcomes = BTreeMap::new();
            while let Some(answer) = answers.message().await.unwrap() {
                for result in answer.results {
                    assert!(result.error.is_none(), "{result:?}");
                    *outcomes.entry(result.outcome).or_insert(0) += 1;
                }
            }
            outcomes
        }));
    }
    let mut outcomes = BTreeMap::new();
    for stream in streams {
        for (outcome, count) in stream.await.unwrap() {
            *outcomes.entry(outcome).or_insert(0) += count;
        }
    }
    (started.elapsed(), outcomes)
}

fn disk_bytes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap());
    entries.map(|metadata| metadata.blocks() * 512).sum()
}

#[tokio::main]
async fn main() {
    let count =
        std::env::var("PRESSMARK_BENCH_ARTICLES").map_or(ARTICLES, |count| count.parse().unwrap());
    println!(
        "{count} articles, seed {SEED}, {STREAMS} streams, {MESSAGE_ARTICLES} articles a message"
    );
    let articles = generate(count);
    let text_bytes: usize = articles
        .iter()
        .map(|article| article.body.len() + article.title.len())
        .sum();
    let articles: Vec<Bytes> = articles
        .iter()
        .map(|article| article.encode_to_vec().into())
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    for round in ["import", "import again"] {
        let (took, outcomes) = import(&server.address, &articles).await;
        let rate = count as f64 / took.as_secs_f64();
        let megabytes = text_bytes as f64 / 1e6 / took.as_secs_f64();
        println!(
            "{round}: {rate:.0} articles/s, {megabytes:.1} MB/s of text, outcomes {outcomes:?}"
        );
        let (peak, now) = (server.memory_mib("VmHWM"), server.memory_mib("VmRSS"));
        println!("  server memory: {peak} MiB at most, {now} MiB now");
    }
    let mut admin = AdminServiceClient::connect(server.address.clone())
        .await
        .unwrap();
    let stats = admin
        .get_stats(proto::GetStatsRequest {})
        .await
        .unwrap()
        .into_inner();
    let (commits, stored) = (stats.commit_count.unwrap(), stats.article_count.unwrap());
    println!(
        "commits: {commits}, {:.0} articles and {:.2} ms each",
        stored as f64 / commits as f64,
        stats.commit_us.unwrap() as f64 / 1000.0 / commits as f64
    );
    drop(admin);
    server.stop();
    let (disk, text) = (disk_bytes(folder.path()), stats.text_bytes.unwrap());
    println!(
        "disk: {disk} bytes, {} an article, {:.2} of the {text} bytes of canonical text, records {} bytes",
        disk / stored,
        disk as f64 / text as f64,
        stats.stored_bytes.unwrap()
    );
    let server = Server::start(folder.path());
    println!("open after a clean close: {} ms", server.open.as_millis());
    server.stop();
}
