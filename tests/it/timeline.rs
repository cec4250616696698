//! Timelines, against a naive count.

use std::collections::BTreeMap;

use chrono::{DateTime, Datelike, Timelike};
use pressmark::archive::{
    Archive, Bucket, Limits, Selector, SelectorFields, Timeline, TimelineQuery,
};
use pressmark::article::{ArticleFields, Timestamp};
use pressmark::error::Reason;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use crate::support::{
    Engine, FIRST_DATE, SOURCES, TestArchive, TestResult, check_error, fields, time,
};

on_each_engine!(
    timelines_are_those_of_a_naive_count,
    timelines_follow_the_archive,
    a_timeline_has_a_limit,
);

const BUCKETS: [Bucket; 5] = [
    Bucket::Hour,
    Bucket::Day,
    Bucket::Week,
    Bucket::Month,
    Bucket::Year,
];

fn query(fields: SelectorFields, bucket: Bucket, by_source: bool) -> TimelineQuery {
    TimelineQuery {
        selector: Selector::new(fields, &Limits::default()).unwrap(),
        bucket,
        by_source,
    }
}

async fn timeline(archive: &Archive, bucket: Bucket) -> Timeline {
    let query = query(SelectorFields::default(), bucket, false);
    archive.timeline(&query).await.unwrap()
}

/// The start of the bucket of a second, as text.
fn start(bucket: Bucket, seconds: i64) -> String {
    let time = DateTime::from_timestamp(seconds, 0).unwrap();
    match bucket {
        Bucket::Hour => format!("{}T{:02}:00:00+00:00", time.format("%Y-%m-%d"), time.hour()),
        Bucket::Day => time.format("%Y-%m-%dT00:00:00+00:00").to_string(),
        Bucket::Week => {
            let week = time.iso_week();
            let monday =
                chrono::NaiveDate::from_isoywd_opt(week.year(), week.week(), chrono::Weekday::Mon);
            format!(
                "{:04}-{:02}-{:02}T00:00:00+00:00",
                monday.unwrap().year(),
                monday.unwrap().month(),
                monday.unwrap().day()
            )
        }
        Bucket::Month => time.format("%Y-%m-01T00:00:00+00:00").to_string(),
        Bucket::Year => time.format("%Y-01-01T00:00:00+00:00").to_string(),
    }
}

/// Dates that are hard: at both ends of all time, around the turns of years, with fractions, none.
fn random_date(random: &mut StdRng) -> Option<Timestamp> {
    let seconds = match random.random_range(0..6) {
        0 => return None,
        1 => -62_135_596_800 + random.random_range(0..1_000_000),
        2 => 253_402_300_799 - random.random_range(0..1_000_000),
        3 => random.random_range(-100_000..100_000),
        _ => FIRST_DATE + random.random_range(0..40_000_000),
    };
    let nanos = i64::from(random.random_range(0..2) * random.random_range(0..1_000_000_000));
    Some(Timestamp::new("time", seconds, nanos).unwrap())
}

type Counts = BTreeMap<String, (BTreeMap<String, u64>, u64)>;

fn counts_of(timeline: Timeline) -> Counts {
    let series = timeline.series.into_iter().map(|series| {
        let counts = series.counts.into_iter();
        let counts = counts
            .map(|(start, count)| (start.to_string(), count))
            .collect();
        (series.source, (counts, series.undated_count))
    });
    series.collect()
}

fn naive(articles: &[ArticleFields], query: &TimelineQuery) -> Counts {
    let mut counts = Counts::new();
    for (fields, sequence) in articles.iter().zip(1..) {
        let article = pressmark::article::Article::new(fields.clone()).unwrap();
        if !query.selector.matches(sequence, &article) {
            continue;
        }
        let source = if query.by_source {
            fields.source.clone()
        } else {
            String::new()
        };
        let (dated, undated) = counts.entry(source).or_default();
        match fields.published_at {
            Some(time) => {
                *dated
                    .entry(start(query.bucket, time.seconds()))
                    .or_default() += 1
            }
            None => *undated += 1,
        }
    }
    counts
}

async fn timelines_are_those_of_a_naive_count(engine: Engine) -> TestResult {
    let seed = std::env::var("PRESSMARK_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| rand::rng().next_u64());
    println!("PRESSMARK_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let articles: Vec<ArticleFields> = (0..300)
        .map(|n| ArticleFields {
            published_at: random_date(&mut random),
            source: SOURCES[random.random_range(0..SOURCES.len())].into(),
            url: format!("https://news.example/{}", n % 40),
            ..fields(n)
        })
        .collect();
    let archive = TestArchive::open(engine).await;
    archive.put_all(articles.clone()).await;
    for round in 0..60 {
        let mut selector = SelectorFields::default();
        if random.random_range(0..3) == 0 {
            selector.sources = SOURCES[..random.random_range(1..3)]
                .iter()
                .map(|s| (*s).into())
                .collect();
        }
        let (mut after, mut before) = (random_date(&mut random), random_date(&mut random));
        if after.is_some() && before.is_some() && after > before {
            std::mem::swap(&mut after, &mut before);
        }
        if round % 2 == 0 {
            (selector.published_after, selector.published_before) = (after, before);
        }
        if random.random_range(0..4) == 0 {
            selector.url = format!("https://news.example/{}", random.random_range(0..45));
        }
        if random.random_range(0..4) == 0 {
            selector.min_sequence = random.random_range(1..300);
        }
        let query = query(selector, BUCKETS[round % 5], random.random_range(0..2) == 0);
        let found = counts_of(archive.timeline(&query).await?);
        assert_eq!(found, naive(&articles, &query), "{query:?}");
    }
    archive.finish().await
}

async fn timelines_follow_the_archive(engine: Engine) -> TestResult {
    let archive = TestArchive::open(engine).await;
    assert_eq!(timeline(&archive, Bucket::Year).await.series, []);
    let put = archive.put_fields(fields(1)).await;
    let counts = |timeline: &Timeline| {
        timeline
            .series
            .iter()
            .flat_map(|series| &series.counts)
            .map(|(_, count)| *count)
            .sum::<u64>()
    };
    assert_eq!(counts(&timeline(&archive, Bucket::Year).await), 1);
    archive.put_all((2..=40_000 / 1000).map(fields)).await;
    assert_eq!(counts(&timeline(&archive, Bucket::Year).await), 40);
    archive.delete(put.id, "unwanted", time(0)).await?;
    let after = timeline(&archive, Bucket::Year).await;
    assert_eq!((counts(&after), after.as_of), (39, 41));
    let archive = archive.reopen().await;
    assert_eq!(timeline(&archive, Bucket::Year).await, after);
    archive.finish().await
}

async fn a_timeline_has_a_limit(engine: Engine) -> TestResult {
    let limits = Limits {
        timeline_buckets_max: 3,
        ..Limits::default()
    };
    let archive = TestArchive::with_limits(engine, limits).await;
    archive.put_all((0..4).map(|n| fields(n * 60 * 24))).await;
    let selector = SelectorFields::default();
    let found = archive
        .timeline(&query(selector.clone(), Bucket::Day, false))
        .await;
    let error = check_error(
        found,
        Reason::TooManyBuckets,
        &["more than 3", "larger buckets"],
    );
    assert_eq!(error.field_name(), Some("bucket"));
    let found = archive
        .timeline(&query(selector, Bucket::Year, false))
        .await?;
    assert_eq!(found.series[0].counts.len(), 1);
    archive.finish().await
}
