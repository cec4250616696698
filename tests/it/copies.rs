//! Copies: exact and near ones, their pages, the switch, and archives from before there were any.

use pressmark::archive::{Archive, CopiesQuery, CopyOf, Limits, NearCopies, PageBudget, View};
use pressmark::article::{ArticleFields, ContentHash, Shingles};
use pressmark::error::Reason;
use pressmark::key::{self, SortTime, meta};
use pressmark::store::Change;

use crate::support::{
    Engine, SOURCES, TestArchive, TestResult, articles_max, check_error, fields, prepared, time,
};
use crate::verify::write;

on_each_engine!(
    copies_are_found_and_others_are_not,
    pages_of_copies_are_one_list,
    deleted_copies_are_gone,
    the_switch_rewrites_the_index,
    an_interrupted_switch_is_done_again,
);

/// A body of so many words that has little in common with those of other seeds.
pub fn story(seed: u32, word_count: u32) -> String {
    let words: Vec<String> = (0..word_count)
        .map(|n| {
            let hash = ContentHash::of(&[seed.to_be_bytes(), n.to_be_bytes()].concat());
            hash.to_string()[..6].to_owned()
        })
        .collect();
    words.join(" ")
}

fn printed(n: u32, source: &str, body: String) -> ArticleFields {
    ArticleFields {
        source: source.into(),
        body,
        ..fields(n)
    }
}

/// Stories of which the first has copies: an exact one, one with a changed word, one with a lead
/// of its own, and one of which half is new.
fn stories() -> Vec<ArticleFields> {
    let body = story(0, 300);
    let edited = body.replacen(' ', " edited ", 1);
    let led = format!("By our own correspondent in town. {body}");
    let half = format!("{} {}", story(0, 150), story(9, 150));
    vec![
        printed(1, "Aljazeera", body.clone()),
        printed(2, "Beacon", story(2, 300)),
        printed(3, "Courier", body),
        printed(4, "Dispatch", edited),
        printed(5, "Beacon", led),
        printed(6, "Courier", half),
        printed(7, "Dispatch", String::new()),
        printed(8, "Aljazeera", String::new()),
    ]
}

fn query(id: ContentHash, similarity_min: impl Into<Option<f64>>) -> CopiesQuery {
    CopiesQuery {
        id,
        similarity_min: similarity_min.into(),
    }
}

/// All copies, a page of so many at a time.
async fn all(archive: &Archive, query: CopiesQuery, page: usize) -> Vec<CopyOf> {
    let mut copies = Vec::new();
    let mut token = String::new();
    loop {
        let read = archive
            .copies(&query, &token, &articles_max(page))
            .await
            .unwrap();
        copies.extend(read.copies);
        match read.next_token {
            Some(next) => token = next,
            None => return copies,
        }
    }
}

fn sequences(copies: &[CopyOf]) -> Vec<u64> {
    copies.iter().map(|copy| copy.article.sequence).collect()
}

async fn copies_are_found_and_others_are_not(engine: Engine) -> TestResult {
    let archive = TestArchive::open(engine).await;
    let puts = archive.put_all(stories()).await;
    let first = puts[0].id;
    let near = all(&archive, query(first, None), 50).await;
    assert_eq!(sequences(&near), [3, 4, 5]);
    assert_eq!((near[0].similarity, near[0].is_exact), (1.0, true));
    let body = Shingles::of(&stories()[0].body);
    for copy in &near[1..] {
        let expected = body.similarity(&Shingles::of(copy.article.article.body()));
        assert!(!copy.is_exact && copy.similarity == expected && expected < 1.0);
    }
    // What is found from one side is found from the other.
    assert_eq!(
        sequences(&all(&archive, query(puts[3].id, None), 50).await),
        [1, 3, 5]
    );
    let exact = all(&archive, query(first, 1.0), 50).await;
    assert_eq!(sequences(&exact), [3]);
    let strict = all(&archive, query(first, 0.985), 50).await;
    assert_eq!(sequences(&strict), [3, 4]);
    // Bodies without words are like no other, but may be the same.
    let empty = all(&archive, query(puts[6].id, None), 50).await;
    assert_eq!(sequences(&empty), [8]);

    let page = articles_max(50);
    let read = archive.copies(&query(first, 0.4), "", &page).await;
    let error = check_error(read, Reason::ArgumentInvalid, &["0.4 is not 0.5 to 1"]);
    assert_eq!(error.field_name(), Some("similarity_min"));
    let read = archive.copies(&query(first, f64::NAN), "", &page).await;
    check_error(read, Reason::ArgumentInvalid, &["NaN"]);
    let unknown = ContentHash::of(b"unknown");
    let read = archive.copies(&query(unknown, None), "", &page).await;
    check_error(read, Reason::ArticleNotFound, &[&unknown.to_string()]);
    // What is known is kept up with what comes.
    archive
        .put_fields(printed(20, "Aljazeera", stories()[3].body.clone()))
        .await;
    let near = all(&archive, query(first, None), 50).await;
    assert_eq!(sequences(&near), [3, 4, 5, 9]);
    let archive = archive.reopen().await;
    let near = all(&archive, query(first, None), 50).await;
    assert_eq!(sequences(&near), [3, 4, 5, 9]);
    archive.finish().await
}

async fn pages_of_copies_are_one_list(engine: Engine) -> TestResult {
    let archive = TestArchive::open(engine).await;
    let body = story(1, 200);
    let copies = (1..=200).map(|n| {
        let body = if n % 3 == 0 {
            format!("{body} {n}")
        } else {
            body.clone()
        };
        printed(n, SOURCES[n as usize % 4], body)
    });
    let puts = archive.put_all(copies).await;
    let first = puts[0].id;
    let expected: Vec<u64> = (2..=200).collect();
    for page in [1, 7, 64, 1000] {
        assert_eq!(
            sequences(&all(&archive, query(first, None), page).await),
            expected
        );
    }
    let exact: Vec<u64> = (2..=200).filter(|n| n % 3 != 0).collect();
    assert_eq!(sequences(&all(&archive, query(first, 1.0), 7).await), exact);
    // Pages do not see what is stored behind the first one, and a token belongs to its query.
    let page = archive
        .copies(&query(first, None), "", &articles_max(198))
        .await?;
    let token = page.next_token.unwrap();
    archive
        .put_fields(printed(201, "Courier", body.clone()))
        .await;
    let last = archive
        .copies(&query(first, None), &token, &articles_max(50))
        .await?;
    assert_eq!(
        (sequences(&last.copies), last.next_token),
        (vec![200], None)
    );
    for other in [
        query(puts[1].id, None),
        query(first, 0.7),
        query(first, 1.0),
    ] {
        let read = archive.copies(&other, &token, &articles_max(50)).await;
        check_error(read, Reason::PageTokenMismatch, &["page_token"]);
    }
    // A page is cut by bytes as well.
    let small = PageBudget {
        view: View::Full,
        articles_max: 50,
        bytes_max: 10_000,
    };
    let page = archive.copies(&query(first, None), "", &small).await?;
    assert!(
        !page.copies.is_empty() && page.copies.len() < 10,
        "{}",
        page.copies.len()
    );
    archive.finish().await
}

async fn deleted_copies_are_gone(engine: Engine) -> TestResult {
    let archive = TestArchive::open(engine).await;
    let puts = archive.put_all(stories()).await;
    assert_eq!(
        sequences(&all(&archive, query(puts[0].id, None), 50).await),
        [3, 4, 5]
    );
    archive.delete(puts[3].id, "unwanted", time(0)).await?;
    assert_eq!(
        sequences(&all(&archive, query(puts[0].id, None), 50).await),
        [3, 5]
    );
    archive.delete(puts[0].id, "unwanted", time(0)).await?;
    let read = archive
        .copies(&query(puts[0].id, None), "", &articles_max(50))
        .await;
    check_error(read, Reason::ArticleDeleted, &["unwanted"]);
    assert_eq!(
        sequences(&all(&archive, query(puts[2].id, None), 50).await),
        [5]
    );
    archive.repair(time(1)).await?;
    assert_eq!(
        sequences(&all(&archive, query(puts[2].id, None), 50).await),
        [5]
    );
    archive.finish().await
}

async fn the_switch_rewrites_the_index(engine: Engine) -> TestResult {
    let archive = TestArchive::open(engine).await;
    let puts = archive.put_all(stories()).await;
    let archive = archive.reopen_with(NearCopies::Off).await;
    assert_eq!(archive.near_copies(), NearCopies::Off);
    let first = puts[0].id;
    let page = archive
        .copies(&query(first, None), "", &articles_max(50))
        .await?;
    assert_eq!((sequences(&page.copies), page.with_near), (vec![3], false));
    let read = archive
        .copies(&query(first, 0.9), "", &articles_max(50))
        .await;
    check_error(read, Reason::NearCopiesOff, &["--near-copies on"]);
    // What comes while it is off, prepared with a sketch or without, is stored without.
    let copy = printed(20, "Beacon", stories()[3].body.clone());
    archive.put_fields(copy).await;
    crate::server::check(&archive).await;
    // Nobody says: it stays off.
    let archive = archive.reopen().await;
    assert_eq!(archive.near_copies(), NearCopies::Off);
    let archive = archive.reopen_with(NearCopies::On).await;
    assert_eq!(
        sequences(&all(&archive, query(first, None), 50).await),
        [3, 4, 5, 9]
    );
    let again = archive
        .put(prepared(&pressmark::article::Article::new(
            stories().remove(0),
        )?))
        .await?;
    assert_eq!(again.sequence, 1);
    let limits = *archive.limits();
    assert_eq!(limits, Limits::default());
    archive.finish().await
}

/// A kill while the digests are written leaves some without sketches, and no word on what they are.
async fn an_interrupted_switch_is_done_again(engine: Engine) -> TestResult {
    let archive = TestArchive::open(engine).await;
    let puts = archive.put_all(stories()).await;
    let date = SortTime::of(fields(3).published_at);
    let without = vec![0; 8];
    let changes = [
        Change::Remove(meta::near_copies()),
        Change::Put(key::date(date, 3), without),
    ];
    write(&archive, changes).await;
    let archive = archive.reopen().await;
    assert_eq!(archive.near_copies(), NearCopies::On);
    let near = all(&archive, query(puts[0].id, None), 50).await;
    assert_eq!(sequences(&near), [3, 4, 5]);
    archive.finish().await
}
