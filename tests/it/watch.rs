//! The change feed: in order, without gaps, and at nobody's cost.

use pressmark::archive::{Limits, PageBudget, Selector, View};
use pressmark::article::ContentHash;
use pressmark::error::{Kind, Reason};
use pressmark::key;
use pressmark::rpc::proto;
use pressmark::store::Change;
use tonic::{Code, Status, Streaming};

use crate::server::{TestServer, message};
use crate::support::{Engine, TestArchive, TestResult, check_error, fields, noise, prepared, time};
use crate::verify::write;

/// Small enough that every change is a message of its own.
fn one_change_a_message() -> Limits {
    Limits {
        scan_chunk_bytes: 1,
        ..Limits::default()
    }
}

/// A change as a test compares it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Stored(u64, String),
    Deleted(u64, String, u64),
}

fn seen(response: &proto::WatchArticlesResponse) -> Vec<Seen> {
    let changes = response.changes.iter();
    let changes = changes.map(|change| match change.kind.clone().unwrap() {
        proto::change::Kind::Stored(article) => Seen::Stored(article.sequence, article.id),
        proto::change::Kind::Deleted(deletion) => {
            assert_eq!(deletion.reason, "unwanted");
            Seen::Deleted(deletion.sequence, deletion.id, deletion.article_sequence)
        }
    });
    changes.collect()
}

async fn watch(
    server: &TestServer,
    request: proto::WatchArticlesRequest,
) -> Result<Streaming<proto::WatchArticlesResponse>, Status> {
    let stream = server.articles().await.watch_articles(request).await?;
    Ok(stream.into_inner())
}

fn from(sequence: u64) -> proto::WatchArticlesRequest {
    proto::WatchArticlesRequest {
        from_sequence: sequence,
        ..Default::default()
    }
}

/// Stores the article of a number and returns how a watcher sees that.
async fn put(server: &TestServer, number: usize) -> Seen {
    let request = proto::PutArticleRequest {
        article: Some(message(number)),
    };
    let put = server.articles().await.put_article(request).await.unwrap();
    let put = put.into_inner();
    Seen::Stored(put.sequence, put.id)
}

async fn delete(server: &TestServer, stored: &Seen) -> Seen {
    let Seen::Stored(article, id) = stored.clone() else {
        panic!("{stored:?} cannot be deleted");
    };
    let hash: ContentHash = id.parse().unwrap();
    let delete = server
        .archive
        .delete(hash, "unwanted", time(0))
        .await
        .unwrap();
    Seen::Deleted(delete.sequence, id, article)
}

/// The stream is cut after every single message and taken up behind it. The union is exact: what is
/// there, what comes meanwhile, and deletions at places of their own.
#[tokio::test]
async fn a_stream_cut_at_every_message_misses_and_repeats_nothing() {
    let server = TestServer::start_with(one_change_a_message()).await;
    let mut expected = Vec::new();
    for number in 1..=10 {
        expected.push(put(&server, number).await);
    }
    // Deleted before anybody watched: only the deletion is left of it.
    let gone = expected.remove(3);
    expected.push(delete(&server, &gone).await);
    let mut found = Vec::new();
    let mut next = 1;
    let mut number = 10;
    while found.len() < expected.len() {
        let mut stream = watch(&server, from(next)).await.unwrap();
        let response = stream.message().await.unwrap().unwrap();
        drop(stream);
        let changes = seen(&response);
        assert!(changes.len() <= 1, "{changes:?}");
        found.extend(changes);
        next = response.sequence() + 1;
        if number < 20 {
            number += 1;
            expected.push(put(&server, number).await);
        }
        if number == 15 {
            number += 1;
            let stored = put(&server, number).await;
            expected.push(stored.clone());
            // It may have been seen or not; what was not seen is left out.
            let deleted = delete(&server, &stored).await;
            expected.retain(|seen| *seen != stored);
            expected.push(deleted);
        }
    }
    assert_eq!(found, expected);
    server.finish().await;
}

#[tokio::test]
async fn a_watcher_is_told_of_what_comes_and_that_nothing_comes() {
    let server = TestServer::start().await;
    put(&server, 1).await;
    let request = proto::WatchArticlesRequest {
        heartbeat_interval: Some(prost_types::Duration {
            seconds: 1,
            nanos: 0,
        }),
        ..from(0)
    };
    let mut stream = watch(&server, request).await.unwrap();
    // At once where it begins, then that nothing comes.
    for _ in 0..2 {
        let message = stream.message().await.unwrap().unwrap();
        assert_eq!((message.changes.len(), message.sequence), (0, Some(1)));
    }
    let stored = put(&server, 2).await;
    let deleted = delete(&server, &stored).await;
    let mut found = Vec::new();
    while found.len() < 2 {
        let response = stream.message().await.unwrap().unwrap();
        let changes = seen(&response);
        if let Some(Seen::Stored(last, _) | Seen::Deleted(last, _, _)) = changes.last() {
            assert_eq!(response.sequence(), *last);
        }
        found.extend(changes);
        if found == [deleted.clone()] {
            // The delete came before the article was read.
            break;
        }
    }
    assert!(
        found == [stored, deleted.clone()] || found == [deleted],
        "{found:?}"
    );
    // The stop of the server ends the stream with what a client takes up again.
    server.stop.cancel();
    let status = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream must end with a status"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    server.finish().await;
}

#[tokio::test]
async fn a_selector_chooses_articles_and_the_end() {
    let server = TestServer::start().await;
    let mut all = Vec::new();
    for number in 1..=9 {
        all.push(put(&server, number).await);
    }
    let deleted = delete(&server, &all[0]).await;
    all.push(put(&server, 10).await);
    let selected = |selector: proto::ArticleSelector, first| proto::WatchArticlesRequest {
        selector: Some(selector),
        view: proto::ArticleView::Head.into(),
        ..from(first)
    };
    let herald = proto::ArticleSelector {
        sources: vec!["Herald".into()],
        max_sequence: 11,
        ..Default::default()
    };
    let mut stream = watch(&server, selected(herald, 2)).await.unwrap();
    let mut found = Vec::new();
    while let Some(response) = stream.message().await.unwrap() {
        found.extend(seen(&response));
    }
    // Numbers 1, 4, 7 and 10 are the Herald's, of which the first is gone; a deletion is told to all.
    let expected = [all[3].clone(), all[6].clone(), deleted, all[9].clone()];
    assert_eq!(found, expected);
    // Nobody is kept waiting for what cannot come.
    let ended = proto::ArticleSelector {
        max_sequence: 3,
        ..Default::default()
    };
    let mut stream = watch(&server, selected(ended, 5)).await.unwrap();
    assert_eq!(stream.message().await.unwrap(), None);
    server.finish().await;
}

#[tokio::test]
async fn what_cannot_be_watched_is_refused() {
    let server = TestServer::start().await;
    put(&server, 1).await;
    let heartbeat = |seconds, nanos| proto::WatchArticlesRequest {
        heartbeat_interval: Some(prost_types::Duration { seconds, nanos }),
        ..from(1)
    };
    let wrong = [
        (from(3), "from_sequence: 3 is not 1 to 2"),
        (
            heartbeat(0, 999_999_999),
            "heartbeat_interval: 0 s and 999999999 ns",
        ),
        (heartbeat(3600, 1), "3600 s and 1 ns, it needs 1 to 3600 s"),
        (heartbeat(-1, 0), "-1 s"),
        (heartbeat(1, -1), "-1 ns"),
    ];
    for (request, expected) in wrong {
        let status = watch(&server, request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().contains(expected), "{status:?}");
    }
    // The next sequence is a place to begin at, and both ends of the heartbeat are allowed.
    for request in [from(2), heartbeat(1, 0), heartbeat(3600, 0)] {
        drop(watch(&server, request).await.unwrap());
    }
    server.finish().await;
}

/// A client that does not read makes the server read no more than fits between them, and holds up no
/// writer. When it reads at last, it gets everything.
#[tokio::test]
async fn a_slow_reader_holds_nothing_and_blocks_nobody() {
    const BODY_BYTES: usize = 50_000;
    const COUNT: u32 = 1000;
    let server = TestServer::start().await;
    let large = |n| pressmark::article::ArticleFields {
        body: noise(n, BODY_BYTES),
        ..fields(n)
    };
    for n in 0..COUNT {
        let article = pressmark::article::Article::new(large(n)).unwrap();
        server.archive.put(prepared(&article)).await.unwrap();
    }
    let mut stream = watch(&server, from(1)).await.unwrap();
    let first = stream.message().await.unwrap().unwrap();
    let read_before = server.archive.metrics().read.get();
    for n in COUNT..2 * COUNT {
        let article = pressmark::article::Article::new(large(n)).unwrap();
        server.archive.put(prepared(&article)).await.unwrap();
    }
    // Writers read no records, so all that were read were read for the watcher.
    let read = server.archive.metrics().read.get() - read_before;
    let read_bytes = read as usize * BODY_BYTES;
    assert!(
        read_bytes < 8 * 1024 * 1024,
        "{read_bytes} bytes were read ahead"
    );
    let mut sequences: Vec<u64> = Vec::new();
    let mut take = |response: &proto::WatchArticlesResponse| {
        let changes = seen(response).into_iter();
        sequences.extend(changes.map(|seen| match seen {
            Seen::Stored(sequence, _) | Seen::Deleted(sequence, _, _) => sequence,
        }));
        sequences.len()
    };
    let mut count = take(&first);
    while count < 2 * COUNT as usize {
        count = take(&stream.message().await.unwrap().unwrap());
    }
    assert!(sequences.into_iter().eq(1..=u64::from(2 * COUNT)));
    drop(stream);
    server.finish().await;
}

/// What is intact before a damaged record comes before the error, and what is behind it can be had.
#[tokio::test]
async fn damage_holds_back_nothing_but_itself() -> TestResult {
    for lost in [
        Change::Put(key::log(4), b"damaged".to_vec()),
        Change::Remove(key::log(4)),
    ] {
        let archive = TestArchive::open(Engine::Memory).await;
        archive.put_all((0..8).map(fields)).await;
        write(&archive, [lost]).await;
        let everything = Selector::everything();
        let read = |first| archive.changes(first, &everything, &BUDGET);
        let before = read(1).await?;
        assert_eq!((before.changes.len(), before.sequence), (3, 3));
        let error = check_error(read(4).await, Reason::RecordDamaged, &["4"]);
        assert_eq!(error.kind(), Kind::DataLoss);
        let after = read(5).await?;
        assert_eq!((after.changes.len(), after.sequence), (4, 8));
        let readable = archive.readable_changes(1, &everything, &BUDGET).await?;
        assert_eq!((readable.changes.len(), readable.sequence), (7, 8));
        archive.close().await?;
    }
    Ok(())
}

const BUDGET: PageBudget = PageBudget {
    view: View::Full,
    articles_max: 1000,
    bytes_max: usize::MAX,
};
