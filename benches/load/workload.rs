//! The work that every server is given, and the figures of each.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use crate::corpus::{Corpus, Reading, Workload};
use crate::measure::{self, Limit, Measured, Request, round};
use crate::process::own_cpu_seconds;
use crate::subject::{Pressmark, Running, Subject};
use pressmark::rpc::proto;

/// Streams or connections of an import.
pub const STREAMS: u64 = 4;
/// Ids in one call that asks which are missing, unless there are fewer articles; half of them are.
const MISSING_IDS: usize = 10_000;
const MISSING_IN_FLIGHT: u64 = 4;
const GETS_IN_FLIGHT: u64 = 64;
/// Articles that are read again and again, so that they are in every cache.
const HOT_ARTICLES: usize = 2000;
/// How long a loop that has no end of its own runs.
const LOOP_TIME: Duration = Duration::from_secs(5);
/// How long a large archive is read.
const SCAN_TIME: Duration = Duration::from_secs(60);
const SEED: u64 = 11;

/// Runs one piece of work and adds what it cost on both sides.
pub async fn costed(
    running: &Running,
    unit: &str,
    work: impl Future<Output = (u64, Value)>,
) -> Value {
    let (server, client) = (running.process.cpu_seconds(), own_cpu_seconds());
    let written = running.process.written_bytes();
    running.process.take_peak();
    let (count, mut figures) = work.await;
    let per = |seconds: f64| round(seconds * 1e6 / count as f64);
    let cost = figures.as_object_mut().unwrap();
    cost.insert(
        format!("server_cpu_us_per_{unit}"),
        json!(per(running.process.cpu_seconds() - server)),
    );
    cost.insert(
        format!("client_cpu_us_per_{unit}"),
        json!(per(own_cpu_seconds() - client)),
    );
    let written = running.process.written_bytes() - written;
    cost.insert("written_bytes".into(), json!(written));
    cost.insert("rss_peak_bytes".into(), json!(running.process.take_peak()));
    figures
}

/// Imports files, one stream each. `again` says that the articles may be there already.
pub async fn import(running: &Running, work: &Workload, again: bool) -> Value {
    let task = async {
        let started = Instant::now();
        let start = |path: &std::path::PathBuf| {
            let (subject, path) = (Arc::clone(&running.subject), path.clone());
            tokio::spawn(async move { subject.import(path, again).await })
        };
        let streams: Vec<_> = work.files.iter().map(start).collect();
        let mut count = 0;
        for stream in streams {
            count += stream.await.unwrap();
        }
        assert_eq!(count, work.article_count, "every article is answered");
        let seconds = started.elapsed().as_secs_f64();
        let figures = json!({
            "count": count, "seconds": round(seconds), "per_s": (count as f64 / seconds).round(),
            "text_mb_per_s": round(work.text_bytes as f64 / 1e6 / seconds),
        });
        (count, figures)
    };
    costed(running, "article", task).await
}

/// New articles, decoded, to be put one by one.
pub fn new_articles(
    corpus: &Corpus,
    numbers: std::ops::Range<u64>,
    folder: &Path,
) -> Vec<proto::Article> {
    let work = corpus.write_new(numbers, folder, 1, 1);
    let articles = Reading::open(&work.files[0]);
    articles
        .map(|article| proto::Article::decode(article).unwrap())
        .collect()
}

fn putting(subject: &Arc<dyn Subject>, articles: Vec<proto::Article>) -> Request {
    let (subject, articles) = (Arc::clone(subject), Arc::new(articles));
    Arc::new(move |number| {
        let subject = Arc::clone(&subject);
        let article = articles[usize::try_from(number).unwrap()].clone();
        Box::pin(async move { subject.put(article).await })
    })
}

/// Puts articles one by one, so many at a time.
pub async fn put(running: &Running, articles: Vec<proto::Article>, in_flight: u64) -> Value {
    let limit = Limit::count(articles.len() as u64);
    let request = putting(&running.subject, articles);
    looped(
        running,
        "put",
        measure::closed_loop(in_flight, limit, request),
    )
    .await
}

/// Puts articles one by one at a rate, whatever the server does.
pub async fn put_at(running: &Running, articles: Vec<proto::Article>, per_second: f64) -> Value {
    let count = articles.len() as u64;
    let request = putting(&running.subject, articles);
    looped(
        running,
        "put",
        measure::open_loop(per_second, count, request),
    )
    .await
}

async fn looped(running: &Running, unit: &str, work: impl Future<Output = Measured>) -> Value {
    let task = async {
        let measured = work.await;
        (measured.count, measured.figures())
    };
    costed(running, unit, task).await
}

/// Reads articles that are in the cache by their ids.
pub async fn get(running: &Running, ids: &[[u8; 32]]) -> Value {
    let mut random = StdRng::seed_from_u64(SEED);
    let mut pick = || ids[random.random_range(0..ids.len())];
    let hot: Vec<[u8; 32]> = (0..HOT_ARTICLES).map(|_| pick()).collect();
    for id in &hot {
        running.subject.get(id).await;
    }
    let request = getting(&running.subject, hot);
    looped(
        running,
        "get",
        measure::closed_loop(GETS_IN_FLIGHT, Limit::time(LOOP_TIME), request),
    )
    .await
}

/// Reads articles from anywhere in the archive.
pub async fn get_any(running: &Running, ids: &[[u8; 32]]) -> Value {
    let request = getting(&running.subject, ids.to_vec());
    looped(
        running,
        "get",
        measure::closed_loop(GETS_IN_FLIGHT, Limit::time(LOOP_TIME), request),
    )
    .await
}

/// Reads articles at a rate, whatever the server does.
pub async fn get_at(running: &Running, ids: &[[u8; 32]], count: u64, per_second: f64) -> Value {
    let request = getting(&running.subject, ids.to_vec());
    looped(
        running,
        "get",
        measure::open_loop(per_second, count, request),
    )
    .await
}

/// Reads in an order that has nothing to do with the order of arrival.
fn getting(subject: &Arc<dyn Subject>, ids: Vec<[u8; 32]>) -> Request {
    const STRIDE: u64 = 2_654_435_761;
    let (subject, ids) = (Arc::clone(subject), Arc::new(ids));
    Arc::new(move |number| {
        let subject = Arc::clone(&subject);
        let at = number.wrapping_mul(STRIDE) % ids.len() as u64;
        let id = ids[usize::try_from(at).unwrap()];
        Box::pin(async move {
            subject.get(&id).await;
        })
    })
}

/// Asks which ids are missing; half of them are.
pub async fn missing(running: &Running, ids: &[[u8; 32]]) -> Value {
    let mut random = StdRng::seed_from_u64(SEED);
    let half = ids.len().min(MISSING_IDS / 2);
    let mut asked: Vec<[u8; 32]> = Vec::with_capacity(MISSING_IDS);
    let first = random.random_range(0..=ids.len() - half);
    asked.extend(&ids[first..first + half]);
    asked.extend((0..half).map(|_| random.random::<[u8; 32]>()));
    let (subject, asked) = (Arc::clone(&running.subject), Arc::new(asked));
    let request: Request = Arc::new(move |_| {
        let (subject, asked) = (Arc::clone(&subject), Arc::clone(&asked));
        Box::pin(async move { assert_eq!(subject.missing(&asked).await, half) })
    });
    let task = async {
        let measured =
            measure::closed_loop(MISSING_IN_FLIGHT, Limit::time(LOOP_TIME), request).await;
        let mut figures = measured.figures();
        let asked = 2 * half;
        let ids = measured.per_second() * asked as f64;
        figures["calls_per_s"] = json!(round(measured.per_second()));
        figures["per_s"] = json!(ids.round());
        (measured.count * asked as u64, figures)
    };
    costed(running, "id", task).await
}

/// Reads all articles by date.
pub async fn scan(running: &Running) -> Value {
    scanned(running, running.subject.scan()).await
}

/// Reads as many articles by date as there is time for. The first of them are mostly in the order of
/// their arrival; behind the last that was imported so, all dates are scattered.
pub async fn scan_first(running: &Running, client: &Pressmark) -> Value {
    scanned(running, client.scan_for(SCAN_TIME)).await
}

async fn scanned(running: &Running, scan: impl Future<Output = (u64, u64)>) -> Value {
    let task = async {
        let started = Instant::now();
        let (count, bytes) = scan.await;
        let seconds = started.elapsed().as_secs_f64();
        let figures = json!({
            "count": count, "seconds": round(seconds), "per_s": (count as f64 / seconds).round(),
            "text_mb_per_s": round(bytes as f64 / 1e6 / seconds),
        });
        (count, figures)
    };
    costed(running, "article", task).await
}

/// Bytes on disk, and what they are to the titles and bodies in it.
pub fn disk(bytes: u64, text_bytes: u64, article_count: u64) -> Value {
    json!({
        "disk_bytes": bytes, "disk_bytes_per_article": bytes / article_count,
        "disk_to_text": round(bytes as f64 / text_bytes as f64),
    })
}
