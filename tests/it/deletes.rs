//! Deletes: what goes, what stays, and that nothing half-gone is ever seen.

use pressmark::archive::{
    Archive, DeleteOutcome, Limits, Order, Query, Selector, SelectorFields, Source,
};
use pressmark::article::{ArticleFields, ContentHash, Timestamp};
use pressmark::error::{Kind, Reason};
use pressmark::key;
use pressmark::store::{Direction, Scan};

use crate::support::{
    Engine, FIRST_DATE, TestArchive, TestResult, articles_max, check_error, fields, noise, time,
};

on_each_engine!(
    reasons_are_one_line,
    a_second_delete_answers_with_the_first,
    a_deleted_article_is_in_no_list,
    dates_of_a_source_shrink,
    every_row_of_a_large_article_goes,
    a_read_never_sees_half_a_delete,
);

async fn reasons_are_one_line(engine: Engine) -> TestResult {
    let archive = TestArchive::open(engine).await;
    let put = archive.put_fields(fields(0)).await;
    let long = "x".repeat(1025);
    for wrong in ["", "two\nlines", "a\ttab", "nul\0", &long] {
        let error = check_error(
            archive.delete(put.id, wrong, time(0)).await,
            Reason::ArgumentInvalid,
            &["1 to 1024 bytes"],
        );
        assert_eq!(error.field_name(), Some("reason"), "{wrong:?}");
    }
    assert_eq!(
        archive.get(&put.id).await?.id,
        put.id,
        "a refused delete changes nothing"
    );
    let absent = ContentHash::of(b"absent");
    let refused = archive.delete(absent, "x", time(0)).await;
    check_error(refused, Reason::ArticleNotFound, &[&absent.to_string()]);
    assert_eq!(archive.committed(), 1);
    let longest = "ä".repeat(512);
    let delete = archive.delete(put.id, &longest, time(0)).await?;
    assert_eq!(delete.reason, longest);
    check_error(
        archive.get(&put.id).await,
        Reason::ArticleDeleted,
        &[&longest],
    );
    archive.finish().await
}

async fn a_second_delete_answers_with_the_first(engine: Engine) -> TestResult {
    let archive = TestArchive::open(engine).await;
    let id = archive.put_fields(fields(0)).await.id;
    let first = archive.delete(id, "court order", time(1000)).await?;
    assert_eq!(first.outcome, DeleteOutcome::Deleted);
    assert_eq!((first.sequence, first.deleted_at), (2, time(1000)));
    for _ in 0..2 {
        let second = archive.delete(id, "another reason", time(2000)).await?;
        assert_eq!(second.outcome, DeleteOutcome::AlreadyDeleted);
        assert_eq!((second.id, second.sequence), (id, first.sequence));
        assert_eq!(
            (second.deleted_at, &*second.reason),
            (time(1000), "court order")
        );
    }
    let error = check_error(
        archive.get(&id).await,
        Reason::ArticleDeleted,
        &["court order", "1970-01-01T00:16:40+00:00"],
    );
    assert_eq!(error.kind(), Kind::NotFound);
    assert_eq!(error.resource(), Some(&*id.to_string()));
    assert_eq!(archive.stats().await?.totals.deleted_count, 1);
    archive.finish().await
}

async fn a_deleted_article_is_in_no_list(engine: Engine) -> TestResult {
    let archive = TestArchive::open(engine).await;
    // All share URL, body, source and date, so that every index has a row of each.
    let shared = |n| ArticleFields {
        title: format!("Title {n}"),
        ..fields(0)
    };
    let puts = archive.put_all((0..5).map(shared)).await;
    let everywhere = [
        SelectorFields::default(),
        SelectorFields {
            sources: vec![fields(0).source],
            ..SelectorFields::default()
        },
        SelectorFields {
            url: fields(0).url,
            ..SelectorFields::default()
        },
        SelectorFields {
            body_hash: ContentHash::of(fields(0).body.as_bytes()).to_string(),
            ..SelectorFields::default()
        },
        SelectorFields {
            published_after: fields(0).published_at,
            ..SelectorFields::default()
        },
        SelectorFields {
            min_sequence: 1,
            max_sequence: 5,
            ..SelectorFields::default()
        },
    ];
    for (left, put) in (0..5).rev().zip(&puts) {
        archive.delete(put.id, "x", time(0)).await?;
        let expected: Vec<_> = puts[5 - left..].iter().map(|put| put.id).collect();
        for selector in &everywhere {
            let listed = list(&archive, selector).await;
            assert_eq!(listed, (expected.clone(), left as u64), "{selector:?}");
        }
        let sources = archive.list_sources(10, "").await?.sources;
        let counts: Vec<_> = sources.iter().map(|source| source.article_count).collect();
        // A source without articles is none.
        assert_eq!(counts, if left == 0 { vec![] } else { vec![left as u64] });
    }
    archive.finish().await
}

/// What a list and a count of a selector give.
async fn list(archive: &Archive, fields: &SelectorFields) -> (Vec<ContentHash>, u64) {
    let selector = Selector::new(fields.clone(), &Limits::default()).unwrap();
    let count = archive.count(&selector).await.unwrap().0;
    let order = Order::Published(Direction::Ascending);
    let page = archive
        .page(&Query { selector, order }, "", &articles_max(100))
        .await
        .unwrap();
    assert_eq!(page.next_token, None);
    (
        page.articles.iter().map(|stored| stored.id).collect(),
        count,
    )
}

async fn dates_of_a_source_shrink(engine: Engine) -> TestResult {
    let archive = TestArchive::open(engine).await;
    // Two articles have the first date, and one has none.
    let dates = [Some(50), Some(10), Some(90), None, Some(10), Some(70)];
    let with_date = |(n, date): (u32, Option<i64>)| ArticleFields {
        source: "Beacon".into(),
        published_at: date.map(time),
        ..fields(n)
    };
    let puts = archive.put_all((0..).zip(dates).map(with_date)).await;
    // The next source in byte order must not lend its dates.
    let other = ArticleFields {
        source: "Beacon!".into(),
        published_at: Some(time(5)),
        ..fields(9)
    };
    archive.put_fields(other).await;
    assert_eq!(figures(&archive).await, (6, Some(time(10)), Some(time(90))));
    let steps = [
        (1, (5, Some(10), Some(90))), // another one has the first date
        (2, (4, Some(10), Some(70))), // the last date goes
        (4, (3, Some(50), Some(70))), // the first date goes
        (5, (2, Some(50), Some(50))), // one date is left, first and last
        (0, (1, None, None)),         // only the undated one is left
    ];
    for (n, (count, first, last)) in steps {
        archive.delete(puts[n].id, "x", time(0)).await?;
        let expected = (count, first.map(time), last.map(time));
        assert_eq!(figures(&archive).await, expected, "after article {n}");
    }
    archive.delete(puts[3].id, "x", time(0)).await?;
    let sources = archive.list_sources(10, "").await?.sources;
    assert_eq!(
        sources
            .iter()
            .map(|source| &*source.name)
            .collect::<Vec<_>>(),
        ["Beacon!"]
    );
    archive.finish().await
}

/// Article count, first and last date of the source `Beacon`.
async fn figures(archive: &Archive) -> (u64, Option<Timestamp>, Option<Timestamp>) {
    let sources = archive.list_sources(10, "").await.unwrap().sources;
    let source: Source = sources
        .into_iter()
        .find(|source| source.name == "Beacon")
        .unwrap();
    (
        source.article_count,
        source.first_published_at,
        source.last_published_at,
    )
}

async fn every_row_of_a_large_article_goes(engine: Engine) -> TestResult {
    let archive = TestArchive::open(engine).await;
    let large = |n| ArticleFields {
        body: noise(n, 700_000),
        ..fields(n)
    };
    let puts = archive
        .put_all([large(0), fields(1), large(2), fields(3)])
        .await;
    let small = log_rows(&archive).await;
    assert!(
        small.len() > 4 + 2 * 4,
        "the large ones have several rows: {small:?}"
    );
    let archive = archive.reopen().await;
    assert_eq!(
        archive.get(&puts[0].id).await?.article.body(),
        noise(0, 700_000)
    );
    assert_eq!(
        archive.get(&puts[2].id).await?.article.body(),
        noise(2, 700_000)
    );
    for put in [puts[0], puts[2]] {
        archive.delete(put.id, "too large", time(0)).await?;
        check_error(
            archive.get(&put.id).await,
            Reason::ArticleDeleted,
            &["too large"],
        );
    }
    let expected: Vec<_> = (1..=6).map(|sequence| (sequence, 0)).collect();
    assert_eq!(
        log_rows(&archive).await,
        expected,
        "one row a record is left"
    );
    let archive = archive.reopen().await;
    check_error(
        archive.get(&puts[0].id).await,
        Reason::ArticleDeleted,
        &["too large"],
    );
    archive.finish().await
}

/// The keys of the log: sequences and rows.
async fn log_rows(archive: &TestArchive) -> Vec<(u64, u16)> {
    let range = key::prefix_range(&[key::TABLE_LOG]);
    let direction = Direction::Ascending;
    let scan = Scan {
        range,
        direction,
        rows_max: 1000,
        bytes_max: usize::MAX,
    };
    let chunks = archive.store().scan_many(vec![scan]).await.unwrap();
    let keys = chunks[0]
        .rows
        .iter()
        .map(|row| key::parse_log(&row.key).unwrap());
    keys.collect()
}

/// A read that runs beside the delete of a record of many rows answers with the article or with
/// its tombstone, never with damage; a list has the article or not.
async fn a_read_never_sees_half_a_delete(engine: Engine) -> TestResult {
    const ARTICLES: u32 = 15;
    let archive = TestArchive::open(engine).await;
    let large = |n| ArticleFields {
        body: noise(n, 300_000),
        source: "Beacon".into(),
        published_at: Some(time(FIRST_DATE)),
        ..fields(n)
    };
    let puts = archive.put_all((0..ARTICLES).map(large)).await;
    let selector = Selector::new(SelectorFields::default(), archive.limits())?;
    let order = Order::Arrival(Direction::Ascending);
    let query = Query { selector, order };
    let lister = {
        let archive = archive.handle();
        tokio::spawn(async move {
            loop {
                // One place after the other, as far as the deletes have come.
                let page = archive.page(&query, "", &articles_max(3)).await;
                let page = page.unwrap_or_else(|error| panic!("a list fails: {error}"));
                if page.articles.is_empty() {
                    return;
                }
                // A read of memory never waits, so it would keep the writer from its thread.
                tokio::task::yield_now().await;
            }
        })
    };
    for put in &puts {
        let (handle, id) = (archive.handle(), put.id);
        let reader = tokio::spawn(async move {
            let mut reads = 0;
            loop {
                reads += 1;
                match handle.get(&id).await {
                    Ok(stored) => assert_eq!(stored.id, id),
                    Err(error) if error.reason() == Reason::ArticleDeleted => return reads,
                    Err(error) => panic!("read {reads} fails: {error}"),
                }
                tokio::task::yield_now().await;
            }
        });
        archive.delete(put.id, "x", time(0)).await?;
        reader.await?;
    }
    lister.await?;
    archive.finish().await
}
