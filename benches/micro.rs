//! The parts of a put and a read, one by one: `cargo bench --bench micro`.
//!
//! Every part works on an article of 4,000 bytes, which is what they have on average in the load
//! tool's corpus; commits and scans work on a fresh archive on disk.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a benchmark stops at the first thing that is wrong"
)]

use std::fmt::Write;
use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use pressmark::archive::{
    Archive, Guard, Limits, Order, PageBudget, Prepared, Query, Selector, SelectorFields, View,
};
use pressmark::article::{Article, ArticleFields, ContentHash, Sketch, Timestamp};
use pressmark::record::{self, Dictionaries, Dictionary};
use pressmark::store::{Direction, Locator, StoreOptions, open};
use tempfile::TempDir;
use tokio::runtime::Runtime;

const BODY_BYTES: usize = 4000;
/// Articles of one commit, the most that the writer takes.
const GROUP: u64 = 256;
/// Articles in the archive that is read.
const STORED: u64 = 20_000;
const SENTENCES: [&str; 6] = [
    "The bank left its rate where it was, as all but two analysts had expected. ",
    "Shipments of wheat fell by 12 per cent in the quarter, the ministry said. ",
    "A spokesman declined to comment on the terms of the agreement. ",
    "The court is to hear the appeal in the second week of March. ",
    "Shares of the company closed 3.4 points lower at 118. ",
    "Officials warned that the river could rise further overnight. ",
];

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn article(number: u64) -> Article {
    let mut body = String::with_capacity(BODY_BYTES + 200);
    let mut pick = number;
    while body.len() < BODY_BYTES {
        pick = pick.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let sentence = usize::try_from(pick >> 33).unwrap() % SENTENCES.len();
        body.push_str(SENTENCES.get(sentence).unwrap());
        write!(body, "{:x} ", pick >> 40).unwrap();
    }
    Article::new(ArticleFields {
        title: format!("Report number {number}"),
        published_at: Some(time(1_600_000_000 + i64::try_from(number).unwrap() * 60)),
        author: "A. Uthor".into(),
        source: format!("Outlet {}", number % 97),
        url: format!("https://news.example/{number}"),
        body,
    })
    .unwrap()
}

fn time(seconds: i64) -> Timestamp {
    Timestamp::new("time", seconds, 0).unwrap()
}

fn prepared(number: u64) -> Prepared {
    Prepared::new(article(number), time(1), None).unwrap()
}

/// A dictionary of the articles behind the first thousand.
fn dictionaries() -> Dictionaries {
    let texts: Vec<String> = (1000..2000)
        .map(|number| article(number).render())
        .collect();
    let lengths: Vec<usize> = texts.iter().map(String::len).collect();
    let dictionary = Dictionary::train(texts.concat().as_bytes(), &lengths).unwrap();
    let dictionaries = Dictionaries::default();
    dictionaries.add(Arc::new(dictionary));
    dictionaries
}

fn text(criterion: &mut Criterion) {
    let article = article(1);
    let text = article.render();
    let mut group = criterion.benchmark_group("article of 4 kB");
    group.throughput(Throughput::Bytes(u64::try_from(text.len()).unwrap()));
    group.bench_function("render the canonical text", |bench| {
        bench.iter(|| black_box(&article).render());
    });
    group.bench_function("parse the canonical text", |bench| {
        bench.iter(|| Article::parse(black_box(&text)).unwrap());
    });
    group.bench_function("hash", |bench| {
        bench.iter(|| ContentHash::of(black_box(text.as_bytes())));
    });
    let id = ContentHash::of(text.as_bytes());
    group.bench_function("sketch the body", |bench| {
        bench.iter(|| Sketch::of(black_box(article.body())));
    });
    for (dictionaries, with) in [
        (Dictionaries::default(), ""),
        (dictionaries(), " with a dictionary"),
    ] {
        let encode = || record::encode_article(id, time(1), black_box(&text), &dictionaries);
        group.bench_function(format!("encode the record{with}"), |bench| {
            bench.iter(|| encode().unwrap());
        });
        let rows = encode().unwrap();
        let rows: Vec<Bytes> = rows.into_values().into_iter().map(Bytes::from).collect();
        group.bench_function(format!("decode and prove the record{with}"), |bench| {
            bench.iter(|| record::decode(1, black_box(&rows), &dictionaries).unwrap());
        });
    }
    group.bench_function("prepare for the writer", |bench| {
        let article = || article.clone();
        let prepare = |article| Prepared::new(article, time(1), None).unwrap();
        bench.iter_batched(article, prepare, BatchSize::SmallInput);
    });
    group.finish();
}

/// An archive on disk, and the folder that goes with it.
async fn archive() -> (Archive, Guard, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let locator = Locator::Folder(folder.path().join("archive"));
    let store = open(&locator, StoreOptions::default()).await.unwrap();
    let (archive, guard) = Archive::open(store, Limits::default()).await.unwrap();
    (archive, guard, folder)
}

async fn put_all(archive: &Archive, articles: Vec<Prepared>) {
    let mut pending = Vec::with_capacity(articles.len());
    for article in articles {
        pending.push(archive.enqueue(article).await.unwrap());
    }
    for put in pending {
        put.result().await.unwrap();
    }
}

fn disk(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let (archive, guard, _folder) = runtime.block_on(archive());
    let archive = Arc::new(archive);
    let mut group = criterion.benchmark_group("archive on disk");
    group.sample_size(20);
    group.throughput(Throughput::Elements(GROUP));
    let mut next = 0;
    group.bench_function("commit 256 new articles", |bench| {
        let fresh = || {
            next += GROUP;
            (next..next + GROUP).map(prepared).collect::<Vec<_>>()
        };
        let put = |articles| runtime.block_on(put_all(&archive, articles));
        bench.iter_batched(fresh, put, BatchSize::PerIteration);
    });
    runtime.block_on(async {
        for first in (next..next + STORED).step_by(1000) {
            let articles = (first..first + 1000).map(|number| prepared(number + GROUP));
            put_all(&archive, articles.collect()).await;
        }
    });
    let id = article(next).id();
    group.throughput(Throughput::Elements(1));
    group.bench_function("get", |bench| {
        bench.iter(|| runtime.block_on(archive.get(black_box(&id))).unwrap());
    });
    let budget = PageBudget {
        view: View::Full,
        articles_max: 1000,
        bytes_max: usize::MAX,
    };
    group.throughput(Throughput::Elements(1000));
    let orders = [
        (
            "scan 1,000 by arrival",
            Order::Arrival(Direction::Ascending),
        ),
        ("scan 1,000 by date", Order::Published(Direction::Ascending)),
    ];
    for (name, order) in orders {
        let query = Query {
            selector: Selector::new(SelectorFields::default(), &Limits::default()).unwrap(),
            order,
        };
        group.bench_function(name, |bench| {
            bench.iter(|| {
                let page = runtime.block_on(archive.page(&query, "", &budget)).unwrap();
                assert_eq!(page.articles.len(), 1000);
            });
        });
    }
    group.finish();
    drop(archive);
    runtime.block_on(guard.close()).unwrap();
}

criterion_group!(benches, text, disk);
criterion_main!(benches);
