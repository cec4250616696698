//! Puts: what becomes of an article, what is stored of it, and what is left after close.

use pressmark::archive::{DeleteOutcome, Prepared, Put, PutOutcome};
use pressmark::article::{Article, ArticleFields, ContentHash, TEXT_BYTES_MAX};
use pressmark::error::{Kind, Reason};

use crate::support::{
    Engine, FIRST_DATE, TestArchive, TestResult, article, check_error, fields, noise, prepared,
    time,
};

on_each_engine!(
    an_article_is_stored_once,
    duplicates_within_a_group_are_stored_once,
    a_url_has_revisions,
    a_url_has_revisions_within_a_group,
    a_claimed_id_must_be_right,
    sequences_are_dense,
    bodies_of_every_size_come_back,
    everything_is_there_after_reopening,
    puts_fail_after_close,
);

async fn an_article_is_stored_once(engine: Engine) -> TestResult {
    let archive = TestArchive::open(engine).await;
    let created = archive.put_fields(fields(1)).await;
    let id = article(1).id();
    assert_eq!(
        created,
        Put {
            id,
            sequence: 1,
            outcome: PutOutcome::Created
        }
    );
    let again = archive.put_fields(fields(1)).await;
    assert_eq!(
        again,
        Put {
            id,
            sequence: 1,
            outcome: PutOutcome::Duplicate
        }
    );
    assert_eq!(archive.committed(), 1);

    // What arrives later is the same article: the time of arrival is not part of it.
    let later = Prepared::new(article(1), time(FIRST_DATE * 2), Some(id))?;
    assert_eq!(archive.put(later).await?.outcome, PutOutcome::Duplicate);
    let stored = archive.get(&id).await?;
    assert_eq!(stored.article, article(1));
    assert_eq!((stored.id, stored.sequence), (id, 1));
    assert_eq!(stored.archived_at, time(FIRST_DATE + 86_400));

    archive.delete(id, "unwanted", time(0)).await?;
    let refused = archive.put_fields(fields(1)).await;
    assert_eq!(
        refused,
        Put {
            id,
            sequence: 1,
            outcome: PutOutcome::Deleted
        }
    );
    archive.finish().await
}

async fn duplicates_within_a_group_are_stored_once(engine: Engine) -> TestResult {
    let archive = TestArchive::open(engine).await;
    let deleted = archive.put_fields(fields(9)).await;
    archive.delete(deleted.id, "unwanted", time(0)).await?;
    let puts = archive.put_all([1, 2, 1, 9, 3, 2, 1, 9].map(fields)).await;
    let expected = [
        (3, PutOutcome::Created),
        (4, PutOutcome::Created),
        (3, PutOutcome::Duplicate),
        (1, PutOutcome::Deleted),
        (5, PutOutcome::Created),
        (4, PutOutcome::Duplicate),
        (3, PutOutcome::Duplicate),
        (1, PutOutcome::Deleted),
    ];
    let found: Vec<_> = puts.iter().map(|put| (put.sequence, put.outcome)).collect();
    assert_eq!(found, expected);
    assert_eq!(archive.stats().await?.totals.article_count, 3);
    // More than one full group of articles, each of them twice.
    let limits = archive.limits().group_articles_max as u32;
    let many = (100..100 + 2 * limits).flat_map(|n| [fields(n), fields(n)]);
    let puts = archive.put_all(many).await;
    for (pair, sequence) in puts.chunks(2).zip(6..) {
        assert_eq!(pair[0].outcome, PutOutcome::Created);
        assert_eq!(
            pair[1],
            Put {
                outcome: PutOutcome::Duplicate,
                ..pair[0]
            }
        );
        assert_eq!(pair[0].sequence, sequence);
    }
    archive.finish().await
}

/// The n-th text at a URL.
pub fn at_url(n: u32, url: &str) -> ArticleFields {
    ArticleFields {
        url: url.into(),
        ..fields(n)
    }
}

/// One URL written in different ways, and two that are not the same.
pub const SAME_URLS: [&str; 5] = [
    "https://news.example/story?id=7",
    "HTTPS://NEWS.example/story?id=7",
    "https://news.example:443/story?id=7#comments",
    "https://news.example/story?utm_source=mail&id=7&utm_campaign=x",
    "https://news.example/story?id=7&fbclid=abc",
];
pub const OTHER_URLS: [&str; 3] = [
    "https://news.example/story?id=8",
    "https://news.example/Story?id=7",
    "http://news.example/story?id=7",
];

async fn a_url_has_revisions(engine: Engine) -> TestResult {
    let archive = TestArchive::open(engine).await;
    let mut previous = archive.put_fields(at_url(0, SAME_URLS[0])).await;
    assert_eq!(previous.outcome, PutOutcome::Created);
    for (n, url) in (1..).zip(SAME_URLS) {
        let put = archive.put_fields(at_url(n, url)).await;
        assert_eq!(
            put.outcome,
            PutOutcome::Revision {
                previous: previous.id
            },
            "{url}"
        );
        previous = put;
    }
    for (n, url) in (10..).zip(OTHER_URLS) {
        assert_eq!(
            archive.put_fields(at_url(n, url)).await.outcome,
            PutOutcome::Created,
            "{url}"
        );
    }
    for n in 20..23 {
        let outcome = archive.put_fields(at_url(n, "")).await.outcome;
        assert_eq!(
            outcome,
            PutOutcome::Created,
            "articles without a url are no revisions"
        );
    }
    // Once the latest is deleted, the one before it is the previous one again.
    let before = article_id(at_url(4, SAME_URLS[3]));
    archive.delete(previous.id, "wrong", time(0)).await?;
    let put = archive.put_fields(at_url(30, SAME_URLS[0])).await;
    assert_eq!(put.outcome, PutOutcome::Revision { previous: before });
    archive.finish().await
}

async fn a_url_has_revisions_within_a_group(engine: Engine) -> TestResult {
    let archive = TestArchive::open(engine).await;
    let stored = archive.put_fields(at_url(0, SAME_URLS[0])).await;
    let group = [
        at_url(1, SAME_URLS[1]),
        at_url(0, SAME_URLS[0]), // stored before: does not become the latest again
        at_url(2, OTHER_URLS[0]),
        at_url(3, SAME_URLS[2]),
        at_url(4, ""),
        at_url(5, ""),
        at_url(6, OTHER_URLS[0]),
    ];
    let puts = archive.put_all(group).await;
    let outcomes: Vec<_> = puts.iter().map(|put| put.outcome).collect();
    let expected = [
        PutOutcome::Revision {
            previous: stored.id,
        },
        PutOutcome::Duplicate,
        PutOutcome::Created,
        PutOutcome::Revision {
            previous: puts[0].id,
        },
        PutOutcome::Created,
        PutOutcome::Created,
        PutOutcome::Revision {
            previous: puts[2].id,
        },
    ];
    assert_eq!(outcomes, expected);
    archive.finish().await
}

async fn a_claimed_id_must_be_right(engine: Engine) -> TestResult {
    let archive = TestArchive::open(engine).await;
    let (right, wrong) = (article(1).id(), article(2).id());
    let refused = Prepared::new(article(1), time(0), Some(wrong));
    let error = check_error(
        refused,
        Reason::IdMismatch,
        &[&right.to_string(), &wrong.to_string()],
    );
    assert_eq!(error.field_name(), Some("id"));
    assert_eq!(error.kind(), Kind::InvalidArgument);
    let put = archive
        .put(Prepared::new(article(1), time(0), Some(right))?)
        .await?;
    assert_eq!(put.id, right);
    archive.finish().await
}

async fn sequences_are_dense(engine: Engine) -> TestResult {
    let archive = TestArchive::open(engine).await;
    assert_eq!(archive.committed(), 0);
    let first = archive.put_all((0..3).map(fields)).await;
    let sequences: Vec<_> = first.iter().map(|put| put.sequence).collect();
    assert_eq!(sequences, [1, 2, 3]);
    // A duplicate takes no sequence, a delete does, a second delete does not.
    archive.put_fields(fields(0)).await;
    assert_eq!(archive.delete(first[1].id, "x", time(0)).await?.sequence, 4);
    assert_eq!(archive.delete(first[1].id, "x", time(0)).await?.sequence, 4);
    let archive = archive.reopen().await;
    assert_eq!(archive.committed(), 4);
    assert_eq!(archive.put_fields(fields(3)).await.sequence, 5);
    assert_eq!(archive.committed(), 5);
    archive.finish().await
}

/// Bytes of bodies, each at or beside an edge.
const BODY_BYTES: [usize; 13] = [
    0,                // no body at all
    1,                // the shortest
    1023,             // before a chunk of BLAKE3
    1024,             // one chunk of BLAKE3
    1025,             // one chunk and a byte
    65_000,           // a canonical text just below one row
    65_536 - 63 - 83, // a record of about one row, if stored without compression
    65_536,           // the size of a row
    65_537,           // a byte more than a row
    131_071,          // before two rows
    131_073,          // behind two rows
    262_144,          // sled by itself would begin files of their own in this region
    1_048_577,        // behind a megabyte: many rows
];

async fn bodies_of_every_size_come_back(engine: Engine) -> TestResult {
    let archive = TestArchive::open(engine).await;
    // The largest article there is; a byte more is none.
    let frame = Article::new(ArticleFields {
        body: String::new(),
        ..fields(0)
    })?
    .text_bytes();
    let sizes = BODY_BYTES.into_iter().chain([TEXT_BYTES_MAX - frame]);
    let mut stored = Vec::new();
    for size in sizes {
        // Compressed and not, and with what could be taken for a part of the layout.
        for (n, body) in [
            (0, noise(size as u32, size)),
            (1, "\n\n# x\n".repeat(size / 6 + 1)[..size].to_owned()),
        ] {
            let article = Article::new(ArticleFields {
                title: format!("{n}{size:8}"),
                body,
                ..fields(0)
            });
            let article = article?;
            assert_eq!(article.body().len(), size);
            archive.put(prepared(&article)).await?;
            stored.push(article);
        }
    }
    assert!(stored.len() > 2 * BODY_BYTES.len());
    let archive = archive.reopen().await;
    for article in stored {
        assert_eq!(archive.get(&article.id()).await?.article, article);
    }
    let error = check_error(
        Article::new(ArticleFields {
            body: noise(0, TEXT_BYTES_MAX - frame + 1),
            ..fields(0)
        }),
        Reason::ArticleInvalid,
        &["3145728"],
    );
    assert_eq!(error.field_name(), Some("body"));
    archive.finish().await
}

async fn everything_is_there_after_reopening(engine: Engine) -> TestResult {
    let archive = TestArchive::open(engine).await;
    let puts = archive.put_all((0..40).map(fields)).await;
    let deletion = archive.delete(puts[3].id, "the reason", time(77)).await?;
    let (stats, sources) = (archive.stats().await?, archive.list_sources(10, "").await?);
    let archive = archive.reopen().await;
    for (put, n) in puts.iter().zip(0..).filter(|(_, n)| *n != 3) {
        let stored = archive.get(&put.id).await?;
        assert_eq!(
            (stored.sequence, stored.article),
            (put.sequence, article(n))
        );
        assert_eq!(archive.get_by_url(&fields(n).url).await?.id, put.id);
        assert_eq!(
            archive.get_by_prefix(&put.id.to_string()[..16]).await?.id,
            put.id
        );
    }
    check_error(
        archive.get(&puts[3].id).await,
        Reason::ArticleDeleted,
        &["the reason"],
    );
    let again = archive.delete(puts[3].id, "another", time(78)).await?;
    assert_eq!(again.outcome, DeleteOutcome::AlreadyDeleted);
    assert_eq!(
        (again.sequence, again.deleted_at, again.reason),
        (deletion.sequence, time(77), "the reason".into())
    );
    assert_eq!(archive.stats().await?.totals, stats.totals);
    assert_eq!(archive.list_sources(10, "").await?, sources);
    assert_eq!(
        archive.put_fields(fields(0)).await.outcome,
        PutOutcome::Duplicate
    );
    assert_eq!(
        archive.put_fields(fields(3)).await.outcome,
        PutOutcome::Deleted
    );
    let revision = archive.put_fields(at_url(50, &fields(5).url)).await;
    assert_eq!(
        revision.outcome,
        PutOutcome::Revision {
            previous: puts[5].id
        }
    );
    assert_eq!(revision.sequence, deletion.sequence + 1);
    archive.finish().await
}

async fn puts_fail_after_close(engine: Engine) -> TestResult {
    let archive = TestArchive::open(engine).await;
    let stored = archive.put_fields(fields(0)).await;
    // What is queued when the archive closes is stored and answered.
    let mut pending = Vec::new();
    for n in 1..20 {
        pending.push(archive.enqueue(prepared(&article(n))).await?);
    }
    let handle = archive.handle();
    archive.close().await?;
    for put in pending {
        assert_eq!(put.result().await?.outcome, PutOutcome::Created);
    }
    let put = handle.put(prepared(&article(30))).await;
    let error = check_error(put, Reason::ShuttingDown, &["closed"]);
    assert_eq!(error.kind(), Kind::Unavailable);
    check_error(
        handle.delete(stored.id, "x", time(0)).await,
        Reason::ShuttingDown,
        &["closed"],
    );
    check_error(
        handle.get(&stored.id).await,
        Reason::ShuttingDown,
        &["closed"],
    );
    Ok(())
}

fn article_id(fields: ArticleFields) -> ContentHash {
    Article::new(fields).unwrap().id()
}
