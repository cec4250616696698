//! Pages and counts of random articles against a naive model of filter and sort.

use pressmark::archive::{Limits, Query};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::facts::{Known, Wanted, budget};
use crate::load::seed;
use crate::paging::{ORDERS, walk};
use crate::support::{Engine, TestArchive, TestResult, time};

on_each_engine!(
    pages_and_counts_equal_the_model,
    pages_that_examine_little_equal_the_model,
);

/// Fills an archive with random articles, deletes some of them, and tells what is left.
async fn fill(archive: &TestArchive, random: &mut StdRng, count: u32) -> Vec<Known> {
    let facts: Vec<Known> = (0..count).map(|_| Known::random(random)).collect();
    let titled = facts.iter().zip(0..);
    let all: Vec<_> = titled
        .map(|(known, n)| known.fields(format!("Article {n}"), random))
        .collect();
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

pub async fn pages_and_counts_equal_the_model(engine: Engine) -> TestResult {
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
    let mut random = StdRng::seed_from_u64(seed());
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
            let expected: Vec<_> = expected.iter().map(|known| known.sequence).collect();
            let (found, _) = walk(&archive, &query, || budget(&mut random)).await?;
            assert_eq!(found, expected, "{wanted:?} {order:?}");
            let count = archive.count(&query.selector).await?.0;
            assert_eq!(count, expected.len() as u64, "count of {wanted:?}");
        }
    }
    archive.finish().await
}
