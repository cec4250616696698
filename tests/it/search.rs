//! Full-text search: what is found, in what order, and that the index is never in the way.

use std::path::Path;

use pressmark::archive::{Direction, Limits, Selector};
use pressmark::key;
use pressmark::rpc::proto;
use pressmark::search::{HitOrder, Place, Search, SearchQuery};
use pressmark::store::Change;
use tonic::{Code, Status};

use crate::server::TestServer;
use crate::support::{Engine, TestArchive, TestResult, article, articles_max, prepared, time};
use crate::verify::write;

fn news(number: usize, title: &str, body: &str) -> proto::Article {
    proto::Article {
        title: title.into(),
        body: body.into(),
        ..crate::server::message(number)
    }
}

/// Six articles, of the Herald, Post and Gazette in turn, a thousand seconds apart.
fn articles() -> Vec<proto::Article> {
    vec![
        news(
            1,
            "Rates held",
            "The central bank left its rate where it was.\nMarkets were calm.",
        ),
        news(
            2,
            "Markets calm",
            "After the decision of the bank, shares hardly moved; the rate stays.",
        ),
        news(
            3,
            "Café opens in Zürich",
            "A coffee house for everyone. No bank was involved.",
        ),
        news(4, "Bank, bank, bank", "Nothing else is in this one."),
        news(
            5,
            "日銀は金利を据え置いた",
            "日本銀行は政策金利を据え置いた。",
        ),
        proto::Article {
            published_at: None,
            ..news(
                6,
                "Undated rate",
                "A rate of no date, of the central committee of a bank.",
            )
        },
    ]
}

async fn put(server: &TestServer, article: proto::Article) -> proto::PutArticleResponse {
    let request = proto::PutArticleRequest {
        article: Some(article),
    };
    let put = server.articles().await.put_article(request).await;
    put.unwrap().into_inner()
}

/// A server with search, and the articles in it.
async fn filled() -> TestServer {
    let server = TestServer::start_searched(Limits::default()).await;
    for article in articles() {
        put(&server, article).await;
    }
    server
}

async fn search(
    server: &TestServer,
    request: proto::SearchArticlesRequest,
) -> Result<proto::SearchArticlesResponse, Status> {
    let request = proto::SearchArticlesRequest {
        min_index_sequence: server.archive.committed(),
        ..request
    };
    let found = server.articles().await.search_articles(request).await?;
    Ok(found.into_inner())
}

fn for_text(query: &str) -> proto::SearchArticlesRequest {
    proto::SearchArticlesRequest {
        query: query.into(),
        ..Default::default()
    }
}

fn sequences(found: &proto::SearchArticlesResponse) -> Vec<u64> {
    let hits = found.hits.iter();
    hits.map(|hit| hit.article.as_ref().unwrap().sequence)
        .collect()
}

/// What a query finds, in the order of arrival.
async fn found(server: &TestServer, query: &str) -> Vec<u64> {
    let found = search(server, for_text(query)).await.unwrap();
    assert_eq!(found.hit_count(), found.hits.len() as u64, "{query}");
    let mut sequences = sequences(&found);
    sequences.sort_unstable();
    sequences
}

#[tokio::test]
async fn queries_find_what_they_say() {
    let server = filled().await;
    let expected: [(&str, &[u64]); 20] = [
        ("bank", &[1, 2, 3, 4, 6]),
        ("BANK rate", &[1, 2, 6]),
        ("bank OR markets", &[1, 2, 3, 4, 6]),
        ("bank AND (calm OR coffee)", &[1, 2, 3]),
        ("bank -rate", &[3, 4]),
        ("\"central bank\"", &[1]),
        ("\"central bank\" OR \"central committee\"", &[1, 6]),
        ("\"central b\"*", &[1]),
        ("title:bank", &[4]),
        ("title:rate body:bank", &[6]),
        ("body:calm", &[1]),
        ("author:uthor", &[1, 2, 3, 4, 5, 6]),
        ("source:Herald bank", &[1, 4]),
        ("cafe", &[3]),
        ("CAFÉ zurich", &[3]),
        ("金利", &[5]),
        ("日本銀行", &[5]),
        ("本金", &[]),
        ("nowhere", &[]),
        ("rates", &[1]),
    ];
    for (query, expected) in expected {
        assert_eq!(found(&server, query).await, expected, "{query}");
    }
    server.finish().await;
}

#[tokio::test]
async fn the_best_hit_is_first_and_shows_why() {
    let server = filled().await;
    let found = search(&server, for_text("bank")).await.unwrap();
    assert_eq!(sequences(&found)[0], 4, "a title counts more than a body");
    assert!(found.hits.is_sorted_by(|a, b| a.score >= b.score));
    let text = |parts: &[proto::TextPart]| {
        parts
            .iter()
            .map(|part| part.text.as_str())
            .collect::<String>()
    };
    let matches = |parts: &[proto::TextPart]| {
        let matches = parts.iter().filter(|part| part.is_match);
        matches.map(|part| part.text.clone()).collect::<Vec<_>>()
    };
    for hit in &found.hits {
        let article = hit.article.clone().unwrap();
        assert_eq!(article.body, "", "heads are the default");
        assert_eq!(text(&hit.title), article.title);
        let body = &articles()[article.sequence as usize - 1].body;
        assert!(body.contains(&text(&hit.snippet)), "{hit:?}");
    }
    assert_eq!(matches(&found.hits[0].title), ["Bank", "bank", "bank"]);
    let first = found
        .hits
        .iter()
        .find(|hit| hit.article.as_ref().unwrap().sequence == 1)
        .unwrap();
    assert_eq!(matches(&first.snippet), ["bank"]);
    let full = proto::SearchArticlesRequest {
        view: proto::ArticleView::Full.into(),
        ..for_text("cafe")
    };
    let found = search(&server, full).await.unwrap();
    assert_eq!(
        found.hits[0].article.as_ref().unwrap().body,
        articles()[2].body
    );
    assert_eq!(matches(&found.hits[0].title), ["Café"]);
    server.finish().await;
}

#[tokio::test]
async fn searches_take_a_selector_and_an_order() {
    let server = filled().await;
    let ordered = |order: proto::SearchOrder| proto::SearchArticlesRequest {
        order: order.into(),
        ..for_text("bank")
    };
    let found = search(&server, ordered(proto::SearchOrder::PublishedDesc))
        .await
        .unwrap();
    assert_eq!(sequences(&found), [4, 3, 2, 1, 6]);
    let found = search(&server, ordered(proto::SearchOrder::PublishedAsc))
        .await
        .unwrap();
    assert_eq!(sequences(&found), [6, 1, 2, 3, 4]);
    let at = |seconds, nanos| Some(prost_types::Timestamp { seconds, nanos });
    let none = proto::ArticleSelector::default();
    let selectors: [(proto::ArticleSelector, &[u64]); 8] = [
        (
            proto::ArticleSelector {
                sources: vec!["Herald".into()],
                ..none.clone()
            },
            &[4, 1],
        ),
        (
            proto::ArticleSelector {
                sources: vec!["Herald".into(), "Post".into()],
                ..none.clone()
            },
            &[4, 2, 1],
        ),
        (
            proto::ArticleSelector {
                published_after: at(2000, 0),
                ..none.clone()
            },
            &[4, 3, 2],
        ),
        (
            proto::ArticleSelector {
                published_after: at(2000, 1),
                ..none.clone()
            },
            &[4, 3],
        ),
        (
            proto::ArticleSelector {
                published_before: at(3000, 0),
                ..none.clone()
            },
            &[2, 1],
        ),
        (
            proto::ArticleSelector {
                url: "https://example.com/3#top".into(),
                ..none.clone()
            },
            &[3],
        ),
        (
            proto::ArticleSelector {
                min_sequence: 2,
                max_sequence: 3,
                ..none.clone()
            },
            &[3, 2],
        ),
        (
            proto::ArticleSelector {
                body_hash: blake3::hash(b"other").to_string(),
                ..none
            },
            &[],
        ),
    ];
    for (selector, expected) in selectors {
        let request = proto::SearchArticlesRequest {
            selector: Some(selector.clone()),
            ..ordered(proto::SearchOrder::PublishedDesc)
        };
        assert_eq!(
            sequences(&search(&server, request).await.unwrap()),
            expected,
            "{selector:?}"
        );
    }
    server.finish().await;
}

#[tokio::test]
async fn pages_are_one_list() {
    let server = TestServer::start_searched(Limits {
        search_hits_max: 40,
        ..Limits::default()
    })
    .await;
    for number in 0..50 {
        put(
            &server,
            news(number, &format!("Number {number}"), "All of them alike."),
        )
        .await;
    }
    for order in [
        proto::SearchOrder::Relevance,
        proto::SearchOrder::PublishedAsc,
    ] {
        let mut request = proto::SearchArticlesRequest {
            order: order.into(),
            page_size: 7,
            ..for_text("alike")
        };
        let mut all = Vec::new();
        let status = loop {
            let page = match search(&server, request.clone()).await {
                Ok(page) => page,
                Err(status) => break status,
            };
            assert_eq!(page.hit_count(), 50);
            all.extend(sequences(&page));
            request.page_token = page.next_page_token;
        };
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        assert!(status.message().contains("first 40 hits"), "{status:?}");
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 40);
        request.page_size = 40;
        request.page_token = String::new();
        let page = search(&server, request.clone()).await.unwrap();
        request.page_token = page.next_page_token;
        request.query = "alike all".into();
        let status = search(&server, request).await.unwrap_err();
        assert!(status.message().contains("another"), "{status:?}");
    }
    let last = proto::SearchArticlesRequest {
        page_size: 50,
        ..for_text("\"number 7\"")
    };
    assert_eq!(search(&server, last).await.unwrap().next_page_token, "");
    server.finish().await;
}

#[tokio::test]
async fn what_cannot_be_searched_is_refused() {
    let server = filled().await;
    let wrong = [
        (String::new(), "0 bytes"),
        ("  ".into(), "needs words"),
        ("x".repeat(1025), "1025 bytes"),
        ("-bank".into(), "only words to leave out"),
        ("place:town".into(), "\"place\", which is none of title"),
        ("\"open".into(), "cannot be read"),
        ("published:5".into(), ""),
        ("title:*".into(), ""),
        ("nosuch:*".into(), ""),
        (
            format!("{}bank{}", "(".repeat(33), ")".repeat(33)),
            "33 opening parentheses",
        ),
        ("(".repeat(1024), "1024 opening parentheses"),
    ];
    for (query, expected) in wrong {
        let status = search(&server, for_text(&query)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().starts_with("query: "), "{status:?}");
        assert!(status.message().contains(expected), "{query}: {status:?}");
    }
    // Deep, but not too deep for the stack.
    for query in [
        format!("{}bank{}", "(".repeat(32), ")".repeat(32)),
        "NOT ".repeat(250) + "bank",
        "-".repeat(1000) + "bank",
        "+".repeat(1000) + "bank",
    ] {
        let answer = search(&server, for_text(&query)).await;
        let code = answer.map_or_else(|status| status.code(), |_| Code::Ok);
        assert!(
            matches!(code, Code::Ok | Code::InvalidArgument),
            "{query}: {code}"
        );
    }
    // None of that is taken for damage of the index.
    let stats = proto::GetStatsRequest {};
    let stats = server
        .admin()
        .await
        .get_stats(stats)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (stats.search_sequence, stats.search_error.as_str()),
        (Some(6), "")
    );
    let ahead = proto::SearchArticlesRequest {
        min_index_sequence: 7,
        ..for_text("bank")
    };
    let status = server
        .articles()
        .await
        .search_articles(ahead)
        .await
        .unwrap_err();
    assert!(
        status
            .message()
            .contains("min_index_sequence: 7 is behind 6"),
        "{status:?}"
    );
    server.finish().await;

    let without = TestServer::start().await;
    let status = search(&without, for_text("bank")).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    let rebuild = proto::RebuildSearchIndexRequest {};
    let status = without
        .admin()
        .await
        .rebuild_search_index(rebuild)
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    without.finish().await;
}

#[tokio::test]
async fn deletes_and_rebuilds_are_followed() {
    let server = filled().await;
    let id = search(&server, for_text("title:bank")).await.unwrap();
    let id = id.hits[0].article.clone().unwrap().id;
    server
        .archive
        .delete(id.parse().unwrap(), "unwanted", time(0))
        .await
        .unwrap();
    assert_eq!(found(&server, "bank").await, [1, 2, 3, 6]);
    let rebuild = proto::RebuildSearchIndexRequest {};
    let rebuilt = server
        .admin()
        .await
        .rebuild_search_index(rebuild)
        .await
        .unwrap();
    assert_eq!(rebuilt.into_inner().last_sequence, Some(7));
    // The empty index may be seen first, and then it fills.
    put(&server, news(7, "Another bank", "More.")).await;
    assert_eq!(found(&server, "bank").await, [1, 2, 3, 6, 8]);
    let stats = server
        .admin()
        .await
        .get_stats(proto::GetStatsRequest {})
        .await
        .unwrap();
    let stats = stats.into_inner();
    assert_eq!(
        (stats.search_sequence, stats.search_error.as_str()),
        (Some(8), "")
    );
    server.finish().await;
}

fn for_everything(text: &str) -> SearchQuery {
    SearchQuery {
        text: text.into(),
        selector: Selector::everything(),
        order: HitOrder::Published(Direction::Ascending),
    }
}

/// The sequences that a search of an archive finds, once its index is as far as the archive.
async fn searched(archive: &TestArchive, folder: &Path, query: &str) -> Vec<u64> {
    let place = Place::Folder(folder.join("search"));
    let (search, guard) = Search::open(archive.handle(), place).unwrap();
    search.wait_for(archive.committed()).await.unwrap();
    let query = for_everything(query);
    let hits = search
        .search(&query, "", &articles_max(1000))
        .await
        .unwrap();
    assert!(search.disk_bytes() > 0);
    guard.close().await.unwrap();
    hits.hits.iter().map(|hit| hit.article.sequence).collect()
}

/// Whatever becomes of the index, the next start mends it, and the archive does not notice.
#[tokio::test]
async fn an_index_that_is_lost_damaged_or_anothers_is_built_anew() -> TestResult {
    let archive = TestArchive::open(Engine::Sled).await;
    archive.put_all((0..300).map(crate::support::fields)).await;
    let folder = archive.folder().to_owned();
    let index = folder.join("search");
    let all: Vec<u64> = (1..=300).collect();
    assert_eq!(searched(&archive, &folder, "article").await, all);
    // It goes on from where it was.
    archive.put_fields(crate::support::fields(300)).await;
    let all: Vec<u64> = (1..=301).collect();
    assert_eq!(searched(&archive, &folder, "article").await, all);

    let place = Place::Folder(index.clone());
    let (search, guard) = Search::open(archive.handle(), place)?;
    search.wait_for(301).await?;
    std::fs::write(index.join("left over"), "")?;
    search.rebuild();
    search.wait_for(301).await?;
    assert!(!index.join("left over").exists());
    guard.close().await?;
    assert_eq!(searched(&archive, &folder, "article").await, all);

    std::fs::remove_dir_all(&index)?;
    assert_eq!(searched(&archive, &folder, "article").await, all);

    std::fs::write(index.join("meta.json"), "no index")?;
    assert_eq!(searched(&archive, &folder, "article").await, all);

    for file in std::fs::read_dir(&index)? {
        let path = file?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "term")
        {
            std::fs::remove_file(path)?;
        }
    }
    assert_eq!(searched(&archive, &folder, "article").await, all);

    let other = TestArchive::open(Engine::Sled).await;
    other.put_all((500..900).map(crate::support::fields)).await;
    assert_eq!(searched(&other, &folder, "article").await.len(), 400);
    assert_eq!(searched(&archive, &folder, "article").await, all);
    other.finish().await?;
    archive.finish().await
}

/// A record that cannot be read is left out, and comes when it is healed.
#[tokio::test]
async fn damage_does_not_end_the_index() -> TestResult {
    let archive = TestArchive::open(Engine::Sled).await;
    archive.put_all((0..10).map(crate::support::fields)).await;
    write(&archive, [Change::Put(key::log(4), b"damaged".to_vec())]).await;
    let folder = archive.folder().to_owned();
    assert_eq!(
        searched(&archive, &folder, "article").await,
        [1, 2, 3, 5, 6, 7, 8, 9, 10]
    );
    archive.repair(time(1)).await?;
    let healed = archive.put(prepared(&article(3))).await?;
    assert_eq!(
        searched(&archive, &folder, "article").await,
        [1, 2, 3, 11, 5, 6, 7, 8, 9, 10]
    );
    // A delete takes what was indexed before the damage as well.
    assert_eq!(searched(&archive, &folder, "title:3").await, [11]);
    archive.delete(healed.id, "unwanted", time(2)).await?;
    let place = Place::Folder(folder.join("search"));
    let (search, guard) = Search::open(archive.handle(), place)?;
    search.wait_for(archive.committed()).await?;
    let query = for_everything("title:3");
    let found = search.search(&query, "", &articles_max(9)).await?;
    assert_eq!((found.hits.len(), found.hit_count), (0, 0));
    guard.close().await?;
    archive.finish().await
}
