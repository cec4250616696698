//! Pages: their tokens, what they may see, and that writers never shift them.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pressmark::archive::{Archive, Limits, Order, PageBudget, Query, Selector, SelectorFields};
use pressmark::article::{Article, ArticleFields};
use pressmark::error::{Kind, Reason};
use pressmark::key::Sequence;
use pressmark::store::Direction::{Ascending, Descending};

use crate::support::{
    Engine, FIRST_DATE, SOURCES, TestArchive, TestResult, article, articles_max, check_error,
    fields, prepared, time,
};

on_each_engine!(
    tokens_belong_to_their_query,
    later_articles_never_show_up,
    too_many_articles_to_sort_are_refused,
    pages_hold_while_others_write,
);

pub const ORDERS: [Order; 4] = [
    Order::Published(Ascending),
    Order::Published(Descending),
    Order::Arrival(Ascending),
    Order::Arrival(Descending),
];

/// Walks all pages of a query; gives the sequences in the order found, and up to where it saw.
pub async fn walk(
    archive: &Archive,
    query: &Query,
    mut budget: impl FnMut() -> PageBudget,
) -> Result<(Vec<Sequence>, Sequence), pressmark::error::Error> {
    let mut found = Vec::new();
    let mut token = String::new();
    let mut first_as_of = None;
    for _ in 0..10_000 {
        let budget = budget();
        let page = archive.page(query, &token, &budget).await?;
        assert!(page.articles.len() <= budget.articles_max);
        assert_eq!(
            *first_as_of.get_or_insert(page.as_of),
            page.as_of,
            "all pages see alike"
        );
        found.extend(page.articles.iter().map(|stored| stored.sequence));
        match page.next_token {
            Some(next) => token = next,
            None => return Ok((found, page.as_of)),
        }
    }
    panic!("the pages of {query:?} never end")
}

fn everything(order: Order) -> Query {
    let selector = Selector::new(SelectorFields::default(), &Limits::default()).unwrap();
    Query { selector, order }
}

async fn tokens_belong_to_their_query(engine: Engine) -> TestResult {
    let archive = TestArchive::open(engine).await;
    archive.put_all((0..10).map(fields)).await;
    let query = everything(ORDERS[0]);
    let token = archive
        .page(&query, "", &articles_max(3))
        .await?
        .next_token
        .unwrap();

    let source = SelectorFields {
        sources: vec![SOURCES[0].into()],
        ..SelectorFields::default()
    };
    let url = SelectorFields {
        url: "https://news.example/1".into(),
        ..SelectorFields::default()
    };
    let bound = SelectorFields {
        max_sequence: 10,
        ..SelectorFields::default()
    };
    let mut others: Vec<Query> = ORDERS[1..].iter().map(|order| everything(*order)).collect();
    for fields in [source, url, bound] {
        let selector = Selector::new(fields, archive.limits())?;
        others.push(Query {
            selector,
            order: ORDERS[0],
        });
    }
    for other in &others {
        let refused = archive.page(other, &token, &articles_max(3)).await;
        let error = check_error(
            refused,
            Reason::PageTokenMismatch,
            &["another selector or order"],
        );
        assert_eq!(error.field_name(), Some("page_token"), "{other:?}");
    }
    // The token of another kind of list is a token, but not of this query.
    let of_sources = archive.list_sources(1, "").await?.next_token.unwrap();
    let refused = archive.page(&query, &of_sources, &articles_max(3)).await;
    check_error(refused, Reason::PageTokenMismatch, &[]);

    let flipped = format!(
        "{}{}",
        if token.starts_with('A') { "B" } else { "A" },
        &token[1..]
    );
    let longer = format!("{token}AAAA");
    let padded = format!("{token}=");
    for damaged in [
        &token[1..],
        &token[..token.len() - 1],
        &flipped,
        &longer,
        &padded,
        "x",
        "no token",
    ] {
        let refused = archive.page(&query, damaged, &articles_max(3)).await;
        let error = check_error(refused, Reason::PageTokenInvalid, &["page_token"]);
        assert_eq!(error.kind(), Kind::InvalidArgument);
    }
    // A token outlives the process that made it, and can be used again.
    let archive = archive.reopen().await;
    for _ in 0..2 {
        let page = archive.page(&query, &token, &articles_max(3)).await?;
        let sequences: Vec<_> = page.articles.iter().map(|stored| stored.sequence).collect();
        assert_eq!(sequences, [4, 5, 6]);
    }
    archive.finish().await
}

async fn later_articles_never_show_up(engine: Engine) -> TestResult {
    for order in ORDERS {
        let archive = TestArchive::open(engine).await;
        let date = |n: u32| ArticleFields {
            published_at: Some(time(FIRST_DATE + i64::from(n))),
            ..fields(n)
        };
        archive.put_all((100..120).map(date)).await;
        let query = everything(order);
        let mut page = archive.page(&query, "", &articles_max(4)).await?;
        let mut found = Vec::new();
        let mut next = 0;
        loop {
            assert_eq!(page.as_of, 20);
            found.extend(page.articles.iter().map(|stored| stored.sequence));
            // Dates before, among and behind those of the first articles, and none.
            let undated = ArticleFields {
                published_at: None,
                ..fields(1000 + next)
            };
            archive
                .put_all([
                    date(next),
                    date(200 + next),
                    date(110 + next * 1000),
                    undated,
                ])
                .await;
            next += 1;
            let Some(token) = page.next_token else { break };
            page = archive.page(&query, &token, &articles_max(4)).await?;
        }
        let mut expected: Vec<Sequence> = (1..=20).collect();
        if matches!(
            order,
            Order::Published(Descending) | Order::Arrival(Descending)
        ) {
            expected.reverse();
        }
        assert_eq!(found, expected, "{order:?}");
        let (all, as_of) = walk(&archive, &query, || articles_max(50)).await?;
        assert_eq!(all.len() as u64, as_of, "a new walk sees all");
        archive.finish().await?;
    }
    Ok(())
}

async fn too_many_articles_to_sort_are_refused(engine: Engine) -> TestResult {
    let limits = Limits {
        sorted_articles_max: 5,
        ..Limits::default()
    };
    let archive = TestArchive::with_limits(engine, limits).await;
    let same = |n| ArticleFields {
        title: format!("Title {n}"),
        ..fields(0)
    };
    archive.put_all((0..5).map(same)).await;
    let by_url = SelectorFields {
        url: fields(0).url,
        ..SelectorFields::default()
    };
    let body_hash = article(0).body_hash().to_string();
    let by_body = SelectorFields {
        body_hash,
        ..SelectorFields::default()
    };
    let selectors =
        [by_url, by_body].map(|fields| Selector::new(fields, archive.limits()).unwrap());
    for selector in &selectors {
        let query = Query {
            selector: selector.clone(),
            order: ORDERS[1],
        };
        let (found, _) = walk(&archive, &query, || articles_max(2)).await?;
        assert_eq!(found, [5, 4, 3, 2, 1], "as many as the limit");
    }
    archive.put_fields(same(5)).await;
    for selector in selectors {
        for order in ORDERS {
            let query = Query {
                selector: selector.clone(),
                order,
            };
            let walked = walk(&archive, &query, || articles_max(4)).await;
            if matches!(order, Order::Published(_)) {
                let error = check_error(walked, Reason::TooManyToSort, &["5", "arrival"]);
                assert_eq!(error.field_name(), Some("order"));
            } else {
                assert_eq!(walked?.0.len(), 6, "an order by arrival sorts nothing");
            }
        }
    }
    archive.finish().await
}

/// While 8 tasks write, every walk gives just the articles that were there when it began: none of
/// them twice, none missing, none younger.
async fn pages_hold_while_others_write(engine: Engine) -> TestResult {
    const WRITERS: u32 = 8;
    const ARTICLES: u32 = 60;
    let archive = TestArchive::open(engine).await;
    // Dates scattered over the order, so that new rows come before and behind every page.
    let scattered = |n: u32| {
        let published_at = (!n.is_multiple_of(7)).then(|| time(i64::from(n * 7919 % 1000)));
        Article::new(ArticleFields {
            published_at,
            ..fields(n)
        })
        .unwrap()
    };
    archive
        .put_all((0..100).map(|n| scattered(n).into_fields()))
        .await;
    let done = Arc::new(AtomicUsize::new(0));
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let (archive, done) = (archive.handle(), Arc::clone(&done));
        writers.push(tokio::spawn(async move {
            for n in 0..ARTICLES {
                let article = scattered(1000 * (writer + 1) + n);
                archive.put(prepared(&article)).await.unwrap();
            }
            done.fetch_add(1, Ordering::Release);
        }));
    }
    let some = SelectorFields {
        sources: SOURCES[1..].iter().map(|&name| name.into()).collect(),
        ..SelectorFields::default()
    };
    let some = Selector::new(some, archive.limits())?;
    let mut walks = Vec::new();
    let mut under_writers = 0;
    while done.load(Ordering::Acquire) < WRITERS as usize {
        for order in ORDERS {
            for selector in [everything(order).selector, some.clone()] {
                let query = Query { selector, order };
                let is_whole = query.selector != some;
                let committed = archive.committed();
                let (found, as_of) = walk(&archive, &query, || articles_max(17)).await?;
                assert!(as_of >= committed);
                under_writers += usize::from(archive.committed() > as_of);
                walks.push((order, is_whole, as_of, found));
                tokio::task::yield_now().await;
            }
        }
    }
    for writer in writers {
        writer.await?;
    }
    assert!(under_writers > 0, "no article was written during a walk");
    let (all, _) = walk(&archive, &everything(ORDERS[2]), || articles_max(1000)).await?;
    assert_eq!(all.len() as u32, 100 + WRITERS * ARTICLES);
    let (some, _) = walk(
        &archive,
        &Query {
            selector: some,
            order: ORDERS[2],
        },
        || articles_max(1000),
    )
    .await?;
    let (by_date, _) = walk(&archive, &everything(ORDERS[0]), || articles_max(1000)).await?;
    let rank: BTreeMap<Sequence, usize> = by_date.into_iter().zip(0..).collect();
    for (order, is_whole, as_of, found) in walks {
        let expected: HashSet<Sequence> = if is_whole { &all } else { &some }
            .iter()
            .copied()
            .filter(|sequence| *sequence <= as_of)
            .collect();
        assert_eq!(
            found.len(),
            expected.len(),
            "{order:?} up to {as_of}: {found:?}"
        );
        assert_eq!(
            found.iter().copied().collect::<HashSet<_>>(),
            expected,
            "{order:?} up to {as_of}"
        );
        let place = |sequence: &Sequence| match order {
            Order::Published(_) => rank[sequence],
            Order::Arrival(_) => *sequence as usize,
        };
        let is_down = matches!(
            order,
            Order::Published(Descending) | Order::Arrival(Descending)
        );
        let sorted = if is_down {
            found.is_sorted_by(|a, b| place(a) > place(b))
        } else {
            found.is_sorted_by_key(place)
        };
        assert!(sorted, "{order:?} up to {as_of}: {found:?}");
    }
    archive.finish().await
}
