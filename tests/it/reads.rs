//! Reads of single articles, look-ups of many, sources and figures.

use std::collections::BTreeSet;

use pressmark::archive::{Limits, PageBudget, View};
use pressmark::article::{Article, ArticleFields, ContentHash};
use pressmark::error::Reason;

use crate::archive::{OTHER_URLS, SAME_URLS, at_url};
use crate::support::{
    Engine, TestArchive, TestResult, article, articles_max, check_error, fields, noise, prepared,
    time,
};

on_each_engine!(
    prefixes_find_articles,
    ambiguous_prefixes_name_ids,
    a_url_finds_its_latest_article,
    look_ups_sort_every_id_into_one_list,
    look_ups_defer_what_does_not_fit,
    missing_ids_are_found,
    sources_are_listed_in_pages,
    figures_follow_the_articles,
);

async fn prefixes_find_articles(engine: Engine) -> TestResult {
    let archive = TestArchive::open(engine).await;
    archive.put_all((0..50).map(fields)).await;
    let id = article(7).id();
    let digits = id.to_string();
    for length in 8..=64 {
        assert_eq!(
            archive.get_by_prefix(&digits[..length]).await?.id,
            id,
            "{length}"
        );
    }
    let long = format!("{digits}0");
    for wrong in [
        "",
        &digits[..7],
        &digits.to_uppercase()[..16],
        "0123456g",
        "0123456 ",
        &long,
        "ääää",
    ] {
        let error = check_error(
            archive.get_by_prefix(wrong).await,
            Reason::ArgumentInvalid,
            &["8 to 64"],
        );
        assert_eq!(error.field_name(), Some("id"), "{wrong:?}");
    }
    let mut absent = digits.clone();
    absent.replace_range(63.., if digits.ends_with('0') { "1" } else { "0" });
    check_error(
        archive.get_by_prefix(&absent).await,
        Reason::ArticleNotFound,
        &[&absent],
    );
    archive.delete(id, "for a reason", time(0)).await?;
    check_error(
        archive.get_by_prefix(&digits[..8]).await,
        Reason::ArticleDeleted,
        &["for a reason"],
    );
    archive.finish().await
}

async fn ambiguous_prefixes_name_ids(engine: Engine) -> TestResult {
    let limits = Limits {
        prefix_digits_min: 1,
        ..Limits::default()
    };
    let archive = TestArchive::with_limits(engine, limits).await;
    let puts = archive.put_all((0..200).map(fields)).await;
    let ids: BTreeSet<String> = puts.iter().map(|put| put.id.to_string()).collect();
    for length in 1..=4 {
        for id in &ids {
            let prefix = &id[..length];
            let fitting: Vec<&String> = ids.iter().filter(|id| id.starts_with(prefix)).collect();
            let found = archive.get_by_prefix(prefix).await;
            if let [only] = fitting.as_slice() {
                assert_eq!(found?.id.to_string(), **only);
            } else {
                let named: Vec<&str> = fitting.iter().take(2).map(|id| id.as_str()).collect();
                let error = check_error(found, Reason::PrefixAmbiguous, &named);
                assert_eq!(error.field_name(), Some("id"));
            }
        }
    }
    assert!(
        ids.iter()
            .any(|id| ids.iter().filter(|other| other[..1] == id[..1]).count() > 6)
    );
    archive.finish().await
}

async fn a_url_finds_its_latest_article(engine: Engine) -> TestResult {
    let archive = TestArchive::open(engine).await;
    let all = SAME_URLS.iter().zip(0..).map(|(url, n)| at_url(n, url));
    let mut puts = archive.put_all(all).await;
    archive
        .put_all(OTHER_URLS.iter().zip(10..).map(|(url, n)| at_url(n, url)))
        .await;
    while let Some(latest) = puts.pop() {
        for url in SAME_URLS {
            let found = archive.get_by_url(url).await?;
            assert_eq!(
                (found.id, found.sequence),
                (latest.id, latest.sequence),
                "{url}"
            );
        }
        archive
            .delete(latest.id, "back to the one before", time(0))
            .await?;
    }
    check_error(
        archive.get_by_url(SAME_URLS[1]).await,
        Reason::ArticleNotFound,
        &[SAME_URLS[1]],
    );
    for wrong in [
        String::new(),
        format!("https://a.example/{}", "x".repeat(8192)),
    ] {
        let error = check_error(
            archive.get_by_url(&wrong).await,
            Reason::ArgumentInvalid,
            &["8192"],
        );
        assert_eq!(error.field_name(), Some("url"));
    }
    archive.finish().await
}

async fn look_ups_sort_every_id_into_one_list(engine: Engine) -> TestResult {
    let limits = Limits {
        lookup_ids_max: 12,
        ..Limits::default()
    };
    let archive = TestArchive::with_limits(engine, limits).await;
    let ids: Vec<ContentHash> = archive
        .put_all((0..6).map(fields))
        .await
        .iter()
        .map(|put| put.id)
        .collect();
    archive.delete(ids[2], "x", time(0)).await?;
    let absent = article(99).id();
    let asked = [
        ids[4], absent, ids[2], ids[0], ids[4], absent, ids[2], ids[5],
    ];
    let answer = archive.lookup(&asked, &articles_max(100)).await?;
    let found: Vec<_> = answer.found.iter().map(|stored| stored.id).collect();
    assert_eq!(found, [ids[4], ids[0], ids[5]], "in the order asked for");
    assert_eq!(answer.found[0].article, article(4));
    assert_eq!(answer.missing, [absent]);
    assert_eq!(answer.deleted, [ids[2]]);
    assert_eq!(answer.deferred, []);

    for count in [0, 13] {
        let error = check_error(
            archive.lookup(&vec![absent; count], &articles_max(1)).await,
            Reason::ArgumentInvalid,
            &["1 to 12"],
        );
        assert_eq!(error.field_name(), Some("ids"));
    }
    assert_eq!(
        archive
            .lookup(&[absent; 12], &articles_max(1))
            .await?
            .missing,
        [absent]
    );
    archive.finish().await
}

async fn look_ups_defer_what_does_not_fit(engine: Engine) -> TestResult {
    let archive = TestArchive::open(engine).await;
    // More than are fetched at a time, so that whole fetches are deferred too.
    let all = (0..150).map(|n| ArticleFields {
        body: noise(n, 1000),
        ..fields(n)
    });
    let ids: Vec<ContentHash> = archive
        .put_all(all)
        .await
        .iter()
        .map(|put| put.id)
        .collect();
    let budgets = [
        (View::Full, 10, usize::MAX, 10), // as many as asked for
        (View::Full, 1000, 1, 1),         // one always comes
        (View::Full, 1000, 20_000, 13),   // 1,000 of body and some 400 besides
        (View::Head, 1000, 20_000, 40),   // the bodies do not count
        (View::Full, 1000, usize::MAX, 150),
    ];
    for (view, articles_max, bytes_max, found_min) in budgets {
        let budget = PageBudget {
            view,
            articles_max,
            bytes_max,
        };
        let mut left = ids.clone();
        let mut seen = Vec::new();
        let mut first = None;
        while !left.is_empty() {
            let answer = archive.lookup(&left, &budget).await?;
            assert!(!answer.found.is_empty(), "{budget:?} makes no progress");
            assert!(answer.found.len() <= articles_max);
            assert_eq!(answer.found.len() + answer.deferred.len(), left.len());
            first.get_or_insert(answer.found.len());
            seen.extend(answer.found.iter().map(|stored| stored.id));
            left = answer.deferred;
        }
        assert_eq!(seen, ids, "{budget:?}");
        let first = first.unwrap();
        assert!(
            (found_min..=found_min + found_min / 2).contains(&first),
            "{budget:?} gives {first}"
        );
    }
    archive.finish().await
}

async fn missing_ids_are_found(engine: Engine) -> TestResult {
    let limits = Limits {
        find_missing_ids_max: 9,
        ..Limits::default()
    };
    let archive = TestArchive::with_limits(engine, limits).await;
    let ids: Vec<ContentHash> = archive
        .put_all((0..4).map(fields))
        .await
        .iter()
        .map(|put| put.id)
        .collect();
    archive.delete(ids[1], "x", time(0)).await?;
    let (one, two) = (article(50).id(), article(51).id());
    let answer = archive
        .find_missing(&[two, ids[0], one, ids[1], two, ids[0], ids[3], ids[1]])
        .await?;
    assert_eq!(
        answer.missing,
        [two, one],
        "each once, in the order of first mention"
    );
    assert_eq!(answer.deleted, [ids[1]]);
    assert_eq!(answer.stored_count, 2);
    for count in [0, 10] {
        let error = check_error(
            archive.find_missing(&vec![one; count]).await,
            Reason::ArgumentInvalid,
            &["1 to 9"],
        );
        assert_eq!(error.field_name(), Some("ids"));
    }
    assert_eq!(archive.find_missing(&[one; 9]).await?.missing, [one]);
    archive.finish().await
}

async fn sources_are_listed_in_pages(engine: Engine) -> TestResult {
    let archive = TestArchive::open(engine).await;
    let empty = archive.list_sources(10, "").await?;
    assert_eq!((empty.sources.len(), empty.next_token), (0, None));
    // One name is the beginning of another, and byte order is not that of a dictionary.
    let mut names = [
        "A",
        "Ab",
        "A b",
        "a",
        "Z",
        "Ärzteblatt",
        "Le Monde",
        "Le Mond",
        &"x".repeat(256),
    ]
    .map(str::to_owned);
    archive
        .put_all(names.iter().zip(0..).map(|(name, n)| ArticleFields {
            source: name.clone(),
            ..fields(n)
        }))
        .await;
    names.sort_unstable();
    for page_size in 1..=names.len() + 1 {
        let mut found = Vec::new();
        let mut token = String::new();
        loop {
            let page = archive.list_sources(page_size, &token).await?;
            assert!((1..=page_size).contains(&page.sources.len()));
            found.extend(page.sources.into_iter().map(|source| source.name));
            match page.next_token {
                Some(next) => token = next,
                None => break,
            }
        }
        assert_eq!(found, names, "in pages of {page_size}");
    }
    let token = archive.list_sources(1, "").await?.next_token.unwrap();
    let damaged = archive.list_sources(1, &token[1..]).await;
    let error = check_error(damaged, Reason::PageTokenInvalid, &[]);
    assert_eq!(error.field_name(), Some("page_token"));
    archive.finish().await
}

async fn figures_follow_the_articles(engine: Engine) -> TestResult {
    let archive = TestArchive::open(engine).await;
    let articles: Vec<Article> = (0..20).map(article).collect();
    let puts = archive.put_all((0..20).map(fields)).await;
    archive.put_all((0..20).map(fields)).await;
    let text_bytes = |articles: &[Article]| {
        articles
            .iter()
            .map(|article| article.render().len() as u64)
            .sum::<u64>()
    };
    let stats = archive.stats().await?;
    assert_eq!(stats.totals.article_count, 20);
    assert_eq!(stats.totals.deleted_count, 0);
    assert_eq!(stats.totals.text_bytes, text_bytes(&articles));
    let stored_bytes: usize = articles
        .iter()
        .map(|article| prepared(article).stored_bytes())
        .sum();
    assert_eq!(stats.totals.stored_bytes, stored_bytes as u64);
    assert_eq!((stats.last_sequence, stats.queued_count), (20, 0));

    for put in &puts[..5] {
        archive.delete(put.id, "x", time(0)).await?;
    }
    let stats = archive.stats().await?;
    assert_eq!(stats.totals.article_count, 15);
    assert_eq!(stats.totals.deleted_count, 5);
    assert_eq!(stats.totals.text_bytes, text_bytes(&articles[5..]));
    assert_eq!(stats.last_sequence, 25);
    for put in &puts[5..] {
        archive.delete(put.id, "x", time(0)).await?;
    }
    let totals = archive.stats().await?.totals;
    assert_eq!((totals.article_count, totals.deleted_count), (0, 20));
    assert_eq!((totals.text_bytes, totals.stored_bytes), (0, 0));
    archive.finish().await
}
