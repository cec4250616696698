//! The questions of a news desk on one archive, and what the indexes behind them cost an import.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pressmark::rpc::proto;
use pressmark::rpc::proto::admin_service_client::AdminServiceClient;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::corpus::Workload;
use crate::measure::{Limit, closed_loop, histogram, round};
use crate::process::disk_bytes;
use crate::subject::{Pressmark, Running, hex};
use crate::{Bench, report, workload};

const SEED: u64 = 13;
/// Requests of each kind, one after the other.
const REQUESTS: u64 = 300;
/// How often the search index is asked how far it is.
const POLL: Duration = Duration::from_millis(50);

async fn start(bench: &Bench, flags: &[&str]) -> (Arc<Pressmark>, Running) {
    Pressmark::start_with(&bench.program, &bench.archive(), flags).await
}

/// Waits until searches see everything.
async fn caught_up(client: &Pressmark) -> proto::GetStatsResponse {
    loop {
        let stats = client.stats().await;
        if stats.search_sequence == stats.last_sequence {
            return stats;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Imports, asks everything, and imports again.
pub async fn run(bench: &Bench, work: &Workload) {
    let (client, mut running) = start(bench, &[]).await;
    let started = Instant::now();
    let imported = workload::import(&running, work, false).await;
    report("import_with_search", imported);
    let stats = caught_up(&client).await;
    let seconds = started.elapsed().as_secs_f64();
    report(
        "search_index",
        json!({
            "articles": stats.article_count, "seconds": round(seconds),
            "articles_per_s": (stats.article_count() as f64 / seconds).round(),
            "disk_bytes": stats.search_disk_bytes,
            "disk_to_text": round(stats.search_disk_bytes() as f64 / work.text_bytes as f64),
            "archive_disk_bytes": disk_bytes(&bench.archive()) - stats.search_disk_bytes(),
        }),
    );
    let again = workload::import(&running, work, true).await;
    let after = caught_up(&client).await;
    report("import_again_with_search", again);
    assert_eq!(
        after.search_sequence, stats.search_sequence,
        "there was nothing to index"
    );
    rebuild(&client).await;
    running.process.stop(Signal::TERM);

    let (client, mut running) = start(bench, &[]).await;
    caught_up(&client).await;
    report(
        "memory_before",
        json!({ "rss_bytes": running.process.memory_bytes() }),
    );
    timelines(&client).await;
    copies(&client, work).await;
    searches(bench, &client, work).await;
    report(
        "memory_after",
        json!({ "rss_bytes": running.process.memory_bytes() }),
    );
    running.process.stop(Signal::TERM);
}

async fn rebuild(client: &Pressmark) {
    let started = Instant::now();
    let mut admin = AdminServiceClient::new(client.channel());
    let request = proto::RebuildSearchIndexRequest {};
    admin.rebuild_search_index(request).await.unwrap();
    // Until the old index is gone, it seems to be complete.
    while client.stats().await.search_sequence == client.stats().await.last_sequence {
        tokio::time::sleep(POLL).await;
    }
    let stats = caught_up(client).await;
    let seconds = started.elapsed().as_secs_f64();
    report(
        "search_rebuild",
        json!({
            "seconds": round(seconds),
            "articles_per_s": (stats.article_count() as f64 / seconds).round(),
        }),
    );
}

async fn timelines(client: &Pressmark) {
    for (name, bucket, by_source) in [
        ("timeline_first", proto::TimelineBucket::Day, false),
        ("timeline_day", proto::TimelineBucket::Day, false),
        (
            "timeline_hour_of_one_year",
            proto::TimelineBucket::Hour,
            false,
        ),
        ("timeline_year_by_source", proto::TimelineBucket::Year, true),
    ] {
        let mut micros = histogram();
        let requests = if name == "timeline_first" { 1 } else { 20 };
        for _ in 0..requests {
            let mut request = proto::GetTimelineRequest {
                bucket: bucket.into(),
                by_source,
                ..Default::default()
            };
            if name == "timeline_hour_of_one_year" {
                let selector = proto::ArticleSelector {
                    published_after: Some("2018-01-01T00:00:00Z".parse().unwrap()),
                    published_before: Some("2019-01-01T00:00:00Z".parse().unwrap()),
                    ..Default::default()
                };
                request.selector = Some(selector);
            }
            let started = Instant::now();
            client.client().get_timeline(request).await.unwrap();
            micros.record(started.elapsed().as_micros() as u64).unwrap();
        }
        report(
            name,
            json!({
                "count": requests, "p50_ms": round(micros.value_at_quantile(0.5) as f64 / 1e3),
                "max_ms": round(micros.max() as f64 / 1e3),
            }),
        );
    }
}

async fn copies(client: &Arc<Pressmark>, work: &Workload) {
    let mut random = StdRng::seed_from_u64(SEED);
    let ids: Vec<String> = (0..REQUESTS)
        .map(|_| hex(&work.ids[random.random_range(0..work.ids.len())]))
        .collect();
    let client = Arc::clone(client);
    let request = Arc::new(move |number: u64| {
        let (client, id) = (Arc::clone(&client), ids[number as usize].clone());
        Box::pin(async move {
            let request = proto::ListCopiesRequest {
                id,
                ..Default::default()
            };
            client.client().list_copies(request).await.unwrap();
        }) as futures_util::future::BoxFuture<'static, ()>
    });
    let measured = closed_loop(1, Limit::count(REQUESTS), request).await;
    report("copies", measured.figures());
}

/// Words in a row from the middle of a sentence of the corpus.
fn words(bench: &Bench, random: &mut StdRng, count: usize) -> String {
    loop {
        let sentence = bench.corpus.sentence(random);
        let words: Vec<&str> = sentence
            .split(|character: char| !character.is_ascii_alphabetic())
            .filter(|word| word.len() > 3 && !["AND", "NOT"].contains(word))
            .collect();
        if words.len() > count {
            let first = random.random_range(0..words.len() - count);
            return words[first..first + count].join(" ");
        }
    }
}

/// Makes a request from random words.
type MakeRequest = fn(&Bench, &mut StdRng) -> proto::SearchArticlesRequest;

async fn searches(bench: &Bench, client: &Arc<Pressmark>, work: &Workload) {
    let kinds: [(&str, MakeRequest); 5] = [
        ("search_one_word", |bench, random| {
            asked(words(bench, random, 1))
        }),
        ("search_two_words", |bench, random| {
            asked(words(bench, random, 2))
        }),
        ("search_phrase", |bench, random| {
            asked(format!("\"{}\"", words(bench, random, 2)))
        }),
        ("search_by_date", |bench, random| {
            proto::SearchArticlesRequest {
                order: proto::SearchOrder::PublishedDesc.into(),
                ..asked(words(bench, random, 1))
            }
        }),
        ("search_in_one_year_of_a_source", |bench, random| {
            let selector = proto::ArticleSelector {
                sources: vec![format!("Outlet {:03}", random.random_range(1..20))],
                published_after: Some("2018-01-01T00:00:00Z".parse().unwrap()),
                published_before: Some("2019-01-01T00:00:00Z".parse().unwrap()),
                ..Default::default()
            };
            proto::SearchArticlesRequest {
                selector: Some(selector),
                ..asked(words(bench, random, 1))
            }
        }),
    ];
    for (name, make) in kinds {
        let mut random = StdRng::seed_from_u64(SEED);
        let requests: Vec<_> = (0..REQUESTS).map(|_| make(bench, &mut random)).collect();
        let client = Arc::clone(client);
        let request = Arc::new(move |number: u64| {
            let (client, request) = (Arc::clone(&client), requests[number as usize].clone());
            Box::pin(async move {
                client.client().search_articles(request).await.unwrap();
            }) as futures_util::future::BoxFuture<'static, ()>
        });
        let measured = closed_loop(1, Limit::count(REQUESTS), request).await;
        let mut figures = measured.figures();
        figures["articles"] = json!(work.article_count);
        report(name, figures);
    }
}

fn asked(query: String) -> proto::SearchArticlesRequest {
    proto::SearchArticlesRequest {
        query,
        page_size: 10,
        ..Default::default()
    }
}

/// The same import with the switches in each position, in turn.
pub async fn switches(bench: &Bench, work: &Workload, rounds: usize) {
    let settings = [
        ("neither", ["--near-copies", "off", "--search", "off"]),
        ("near_copies", ["--near-copies", "on", "--search", "off"]),
        (
            "near_copies_and_search",
            ["--near-copies", "on", "--search", "on"],
        ),
    ];
    let mut rates = vec![Vec::new(); settings.len()];
    for _ in 0..rounds {
        for ((name, flags), rates) in settings.iter().zip(&mut rates) {
            let (_, mut running) = start(bench, flags).await;
            let figures = workload::import(&running, work, false).await;
            running.process.stop(Signal::TERM);
            rates.push(figures["per_s"].as_f64().unwrap());
            report(&format!("import_{name}"), figures);
            std::fs::remove_dir_all(bench.archive()).unwrap();
        }
    }
    let medians: Vec<f64> = rates.into_iter().map(median).collect();
    let ratio = |setting: usize| round(medians[setting] / medians[0]);
    let medians: Value = json!({
        "neither_per_s": medians[0], "near_copies_per_s": medians[1],
        "near_copies_ratio": ratio(1), "near_copies_and_search_per_s": medians[2],
        "near_copies_and_search_ratio": ratio(2),
    });
    report("switches", medians);
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
