//! Pages and counts of random articles against a naive model of filter and sort.

use pressmark::archive::{Limits, Order, PageBudget, Query, Selector, SelectorFields, View};
use pressmark::article::{ArticleFields, ContentHash, Timestamp};
use pressmark::key::Sequence;
use pressmark::store::Direction::Descending;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::paging::{ORDERS, walk};
use crate::support::{Engine, SOURCES, TestArchive, TestResult, time};

on_each_engine!(
    pages_and_counts_equal_the_model,
    pages_that_examine_little_equal_the_model,
);

/// URLs that the articles of the model share, each written in two ways.
const URL_COUNT: usize = 6;
const BODY_COUNT: usize = 8;

/// What the model knows of an article: facts to filter and sort by, nothing of how they are stored.
#[derive(Clone, Debug)]
struct Known {
    sequence: Sequence,
    source: usize,
    published_at: Option<Timestamp>,
    url: Option<usize>,
    body: usize,
}

#[derive(Clone, Debug, Default)]
struct Wanted {
    sources: Vec<usize>,
    after: Option<Timestamp>,
    before: Option<Timestamp>,
    url: Option<usize>,
    body: Option<usize>,
    min_sequence: Sequence,
    max_sequence: Sequence,
}

impl Wanted {
    fn random(random: &mut StdRng) -> Self {
        let mut wanted = Self::default();
        if random.random_bool(0.5) {
            wanted.sources = (0..SOURCES.len())
                .filter(|_| random.random_bool(0.5))
                .collect();
        }
        let mut dates = [random_date(random), random_date(random)];
        dates.sort_unstable();
        wanted.after = random.random_bool(0.3).then_some(dates[0]);
        wanted.before = random.random_bool(0.3).then_some(dates[1]);
        wanted.url = random
            .random_bool(0.2)
            .then(|| random.random_range(0..URL_COUNT));
        wanted.body = random
            .random_bool(0.2)
            .then(|| random.random_range(0..BODY_COUNT));
        if random.random_bool(0.2) {
            wanted.min_sequence = random.random_range(0..200);
        }
        if random.random_bool(0.2) {
            wanted.max_sequence = wanted.min_sequence + random.random_range(1..200);
        }
        wanted
    }

    fn selector(&self, random: &mut StdRng) -> Selector {
        let fields = SelectorFields {
            sources: self
                .sources
                .iter()
                .map(|source| SOURCES[*source].to_owned())
                .collect(),
            published_after: self.after,
            published_before: self.before,
            url: self
                .url
                .map(|url| url_text(url, random))
                .unwrap_or_default(),
            body_hash: self.body.map(body_hash).unwrap_or_default(),
            min_sequence: self.min_sequence,
            max_sequence: self.max_sequence,
        };
        Selector::new(fields, &Limits::default()).unwrap()
    }

    fn means(&self, known: &Known) -> bool {
        let date = known.published_at;
        (self.sources.is_empty() || self.sources.contains(&known.source))
            && self
                .after
                .is_none_or(|after| date.is_some_and(|date| date >= after))
            && self
                .before
                .is_none_or(|before| date.is_some_and(|date| date < before))
            && (self.url.is_none() || known.url == self.url)
            && self.body.is_none_or(|body| known.body == body)
            && known.sequence >= self.min_sequence
            && (self.max_sequence == 0 || known.sequence <= self.max_sequence)
    }

    fn expected(&self, model: &[Known], order: Order) -> Vec<Sequence> {
        let mut meant: Vec<&Known> = model.iter().filter(|known| self.means(known)).collect();
        // Nothing sorts before something, as undated articles do before dated ones.
        match order {
            Order::Published(_) => meant.sort_by_key(|known| (known.published_at, known.sequence)),
            Order::Arrival(_) => meant.sort_by_key(|known| known.sequence),
        }
        if matches!(
            order,
            Order::Published(Descending) | Order::Arrival(Descending)
        ) {
            meant.reverse();
        }
        meant.iter().map(|known| known.sequence).collect()
    }
}

/// One of few dates, so that many articles share theirs; some differ in nanoseconds only, and some
/// are before 1970.
fn random_date(random: &mut StdRng) -> Timestamp {
    let seconds = i64::from(random.random_range(-3..12)) * 40_000;
    let nanos = random.random_range(0..2);
    Timestamp::new("time", seconds, nanos).unwrap()
}

fn url_text(url: usize, random: &mut StdRng) -> String {
    if random.random_bool(0.5) {
        format!("https://news.example/{url}")
    } else {
        format!("https://NEWS.example/{url}?utm_source=feed#top")
    }
}

fn body_text(body: usize) -> String {
    format!("Body {body}. ").repeat(10 * body)
}

fn body_hash(body: usize) -> String {
    ContentHash::of(body_text(body).as_bytes()).to_string()
}

fn seeded() -> StdRng {
    let seed = std::env::var("PRESSMARK_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(rand::random);
    println!("PRESSMARK_TEST_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// Fills an archive with random articles, deletes some of them, and tells what is left.
async fn fill(archive: &TestArchive, random: &mut StdRng, count: u32) -> Vec<Known> {
    let mut all = Vec::new();
    let mut facts = Vec::new();
    for n in 0..count {
        let known = Known {
            sequence: 0,
            source: random.random_range(0..SOURCES.len()),
            published_at: random.random_bool(0.85).then(|| random_date(random)),
            url: random
                .random_bool(0.8)
                .then(|| random.random_range(0..URL_COUNT)),
            body: random.random_range(0..BODY_COUNT),
        };
        all.push(ArticleFields {
            title: format!("Article {n}"),
            published_at: known.published_at,
            author: String::new(),
            source: SOURCES[known.source].into(),
            url: known
                .url
                .map(|url| url_text(url, random))
                .unwrap_or_default(),
            body: body_text(known.body),
        });
        facts.push(known);
    }
    let puts = archive.put_all(all).await;
    let mut model = Vec::new();
    for (put, known) in puts.iter().zip(facts) {
        if random.random_bool(0.1) {
            archive.delete(put.id, "by chance", time(0)).await.unwrap();
        } else {
            model.push(Known {
                sequence: put.sequence,
                ..known
            });
        }
    }
    model
}

async fn pages_and_counts_equal_the_model(engine: Engine) -> TestResult {
    model_test(engine, Limits::default(), 400, 40).await
}

/// Pages that end early are allowed to be empty, but the whole stays the same.
async fn pages_that_examine_little_equal_the_model(engine: Engine) -> TestResult {
    let limits = Limits {
        page_examined_max: 3,
        ..Limits::default()
    };
    model_test(engine, limits, 120, 30).await
}

async fn model_test(engine: Engine, limits: Limits, articles: u32, selectors: usize) -> TestResult {
    let mut random = seeded();
    let archive = TestArchive::with_limits(engine, limits).await;
    let model = fill(&archive, &mut random, articles).await;
    for round in 0..selectors {
        let wanted = if round == 0 {
            Wanted::default()
        } else {
            Wanted::random(&mut random)
        };
        for order in ORDERS {
            let query = Query {
                selector: wanted.selector(&mut random),
                order,
            };
            let expected = wanted.expected(&model, order);
            let (found, _) = walk(&archive, &query, || budget(&mut random)).await?;
            assert_eq!(found, expected, "{wanted:?} {order:?}");
            let count = archive.count(&query.selector).await?.0;
            assert_eq!(count, expected.len() as u64, "count of {wanted:?}");
        }
    }
    archive.finish().await
}

fn budget(random: &mut StdRng) -> PageBudget {
    let view = if random.random_bool(0.5) {
        View::Head
    } else {
        View::Full
    };
    let bytes_max = if random.random_bool(0.5) {
        usize::MAX
    } else {
        random.random_range(1..6000)
    };
    PageBudget {
        view,
        articles_max: random.random_range(1..20),
        bytes_max,
    }
}
