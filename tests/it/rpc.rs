//! The service as a client sees it: outcomes, errors with details, limits, streams and stopping.

use pressmark::article::{SECONDS_MAX, SECONDS_MIN, TEXT_BYTES_MAX};
use pressmark::rpc::proto;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::server::{TestServer, import_request, message};

async fn put(
    server: &TestServer,
    article: proto::Article,
) -> Result<proto::PutArticleResponse, Status> {
    let request = proto::PutArticleRequest {
        article: Some(article),
    };
    Ok(server
        .articles()
        .await
        .put_article(request)
        .await?
        .into_inner())
}

async fn get(server: &TestServer, id: &str) -> Result<proto::Article, Status> {
    let name = proto::get_article_request::Name::Id(id.into());
    let request = proto::GetArticleRequest {
        name: Some(name),
        view: 0,
    };
    Ok(server
        .articles()
        .await
        .get_article(request)
        .await?
        .into_inner()
        .article
        .unwrap())
}

#[track_caller]
fn check_status(status: &Status, code: Code, reason: &str, field: Option<&str>, text: &str) {
    assert_eq!(status.code(), code, "{status:?}");
    assert!(
        status.message().contains(text),
        "{:?} has no {text:?}",
        status.message()
    );
    let details = status.get_error_details();
    let info = details.error_info().unwrap();
    assert_eq!(
        (info.reason.as_str(), info.domain.as_str()),
        (reason, "pressmark")
    );
    let named = details
        .bad_request()
        .map(|bad| bad.field_violations[0].field.as_str());
    assert_eq!(named, field, "{status:?}");
}

#[tokio::test]
async fn what_is_put_is_got_with_all_its_facts() {
    let server = TestServer::start().await;
    let stored = put(&server, message(1)).await.unwrap();
    assert_eq!(stored.outcome(), proto::PutOutcome::Created);
    assert_eq!((stored.id.len(), stored.sequence), (64, 1));
    let again = put(&server, message(1)).await.unwrap();
    assert_eq!(
        (again.outcome(), again.sequence),
        (proto::PutOutcome::Duplicate, 1)
    );

    let revision = proto::Article {
        body: "Corrected.".into(),
        ..message(1)
    };
    let revision = put(&server, revision).await.unwrap();
    assert_eq!(revision.outcome(), proto::PutOutcome::Revision);
    assert_eq!(revision.previous_id, stored.id);

    let got = get(&server, &stored.id).await.unwrap();
    assert_eq!(got.id, stored.id);
    assert_eq!(
        got.body_hash,
        pressmark::article::ContentHash::of(got.body.as_bytes()).to_string()
    );
    assert!(got.archived_at.is_some() && got.text_bytes > 0 && got.sequence == 1);
    let bare = proto::Article {
        id: String::new(),
        body_hash: String::new(),
        sequence: 0,
        archived_at: None,
        text_bytes: 0,
        ..got.clone()
    };
    assert_eq!(bare, message(1));
    assert_eq!(get(&server, &stored.id[..8]).await.unwrap(), got);
    server.finish().await;
}

#[tokio::test]
async fn bodies_of_every_size_up_to_the_limit_are_kept() {
    let server = TestServer::start().await;
    let empty = proto::Article {
        body: String::new(),
        ..message(1)
    };
    let stored = put(&server, empty).await.unwrap();
    assert_eq!(get(&server, &stored.id).await.unwrap().body, "");
    let head_bytes = get(&server, &stored.id).await.unwrap().text_bytes as usize;

    let largest = "x".repeat(TEXT_BYTES_MAX - head_bytes);
    let stored = put(
        &server,
        proto::Article {
            body: largest.clone(),
            ..message(1)
        },
    )
    .await
    .unwrap();
    assert_eq!(get(&server, &stored.id).await.unwrap().body, largest);

    for body in [largest + "x", "x".repeat(3 * 1024 * 1024)] {
        let status = put(&server, proto::Article { body, ..message(1) })
            .await
            .unwrap_err();
        let limit = "the limit is 3145728";
        check_status(
            &status,
            Code::InvalidArgument,
            "ARTICLE_INVALID",
            Some("article.body"),
            limit,
        );
    }
    server.finish().await;
}

#[tokio::test]
async fn each_bad_field_has_its_error() {
    let server = TestServer::start().await;
    let year = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
    let cases = [
        (
            proto::Article {
                title: "two\nlines".into(),
                ..message(1)
            },
            "ARTICLE_INVALID",
            "title",
            "U+000A at byte 3",
        ),
        (
            proto::Article {
                title: String::new(),
                ..message(1)
            },
            "ARTICLE_INVALID",
            "title",
            "1 to 4096 bytes",
        ),
        (
            proto::Article {
                source: String::new(),
                ..message(1)
            },
            "ARTICLE_INVALID",
            "source",
            "1 to 256 bytes",
        ),
        (
            proto::Article {
                url: "no url".into(),
                ..message(1)
            },
            "ARTICLE_INVALID",
            "url",
            "white space",
        ),
        (
            proto::Article {
                body: "a\0b".into(),
                ..message(1)
            },
            "ARTICLE_INVALID",
            "body",
            "NUL byte at byte 1",
        ),
        (
            proto::Article {
                published_at: year(SECONDS_MIN - 1),
                ..message(1)
            },
            "ARGUMENT_INVALID",
            "published_at",
            "years 0001 to 9999",
        ),
        (
            proto::Article {
                published_at: year(SECONDS_MAX + 1),
                ..message(1)
            },
            "ARGUMENT_INVALID",
            "published_at",
            "years 0001 to 9999",
        ),
        (
            proto::Article {
                id: "ab".into(),
                ..message(1)
            },
            "ARGUMENT_INVALID",
            "id",
            "64 lower-case hex digits",
        ),
        (
            proto::Article {
                id: "0".repeat(64),
                ..message(1)
            },
            "ID_MISMATCH",
            "id",
            "is not the hash",
        ),
    ];
    for (article, reason, field, text) in cases {
        let status = put(&server, article).await.unwrap_err();
        let field = format!("article.{field}");
        check_status(&status, Code::InvalidArgument, reason, Some(&field), text);
    }
    for seconds in [SECONDS_MIN, SECONDS_MAX] {
        let article = proto::Article {
            published_at: year(seconds),
            ..message(1)
        };
        let stored = put(&server, article).await.unwrap();
        let got = get(&server, &stored.id).await.unwrap();
        assert_eq!(got.published_at, year(seconds));
    }
    let nothing = proto::PutArticleRequest { article: None };
    let status = server
        .articles()
        .await
        .put_article(nothing)
        .await
        .unwrap_err();
    check_status(
        &status,
        Code::InvalidArgument,
        "ARGUMENT_INVALID",
        Some("article"),
        "is missing",
    );
    server.finish().await;
}

/// What a client sends that lets through a title that is not UTF-8.
#[derive(Clone, PartialEq, prost::Message)]
struct RawArticle {
    #[prost(bytes = "vec", tag = "2")]
    title: Vec<u8>,
    #[prost(string, tag = "5")]
    source: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RawPut {
    #[prost(message, optional, tag = "1")]
    article: Option<RawArticle>,
}

async fn put_raw(server: &TestServer, title: Vec<u8>) -> Status {
    let article = Some(RawArticle {
        title,
        source: "s".into(),
    });
    let channel = tonic::transport::Endpoint::from_shared(server.address.clone()).unwrap();
    let mut grpc = tonic::client::Grpc::new(channel.connect().await.unwrap());
    grpc.ready().await.unwrap();
    let path = "/pressmark.v1.ArticleService/PutArticle".parse().unwrap();
    let codec = tonic_prost::ProstCodec::<RawPut, proto::PutArticleResponse>::default();
    grpc.unary(tonic::Request::new(RawPut { article }), path, codec)
        .await
        .unwrap_err()
}

#[tokio::test]
async fn what_is_no_message_is_refused_with_details() {
    let server = TestServer::start().await;
    let status = put_raw(&server, vec![0xff, 0xfe]).await;
    check_status(
        &status,
        Code::InvalidArgument,
        "MESSAGE_MALFORMED",
        None,
        "PutArticleRequest",
    );
    let status = put_raw(&server, vec![b'x'; 9 * 1024 * 1024]).await;
    check_status(
        &status,
        Code::ResourceExhausted,
        "MESSAGE_TOO_LARGE",
        None,
        "8388608",
    );
    let ids = vec!["0".repeat(64); 20_000];
    let request = proto::FindMissingArticlesRequest { ids };
    let status = server
        .articles()
        .await
        .find_missing_articles(request)
        .await
        .unwrap_err();
    check_status(
        &status,
        Code::ResourceExhausted,
        "MESSAGE_TOO_LARGE",
        None,
        "1048576",
    );
    server.finish().await;
}

#[tokio::test]
async fn a_bad_article_never_ends_the_stream() {
    use prost::Message;
    let server = TestServer::start().await;
    let mut first = import_request(&[
        message(1),
        proto::Article {
            title: "a\nb".into(),
            ..message(2)
        },
    ]);
    let raw = RawArticle {
        title: vec![0xff],
        source: "s".into(),
    };
    first.articles.push(raw.encode_to_vec().into());
    first
        .articles
        .push(bytes::Bytes::from_static(b"\xff\xff\xff"));
    let huge = proto::Article {
        body: "x".repeat(5 * 1024 * 1024),
        ..message(3)
    };
    let requests = vec![
        first,
        import_request(&[huge]),
        import_request(&[message(1), message(4)]),
    ];
    let mut results = Vec::new();
    let stream = tokio_stream::iter(requests);
    let mut answers = server
        .articles()
        .await
        .import_articles(stream)
        .await
        .unwrap()
        .into_inner();
    while let Some(answer) = answers.message().await.unwrap() {
        results.extend(answer.results);
    }
    let indexes: Vec<u64> = results.iter().map(|result| result.index.unwrap()).collect();
    assert_eq!(indexes, [0, 1, 2, 3, 4, 5, 6]);
    let reasons: Vec<&str> = results
        .iter()
        .map(|result| {
            result
                .error
                .as_ref()
                .map_or("", |error| error.reason.as_str())
        })
        .collect();
    let malformed = "MESSAGE_MALFORMED";
    assert_eq!(
        reasons,
        [
            "",
            "ARTICLE_INVALID",
            malformed,
            malformed,
            "ARTICLE_INVALID",
            "",
            ""
        ]
    );
    assert_eq!(results[1].error.as_ref().unwrap().field, "title");
    assert_eq!(results[4].error.as_ref().unwrap().field, "body");
    assert_eq!(results[1].error.as_ref().unwrap().code, 3);
    assert_eq!(results[0].outcome(), proto::PutOutcome::Created);
    assert_eq!(results[5].outcome(), proto::PutOutcome::Duplicate);
    assert_eq!(results[6].outcome(), proto::PutOutcome::Created);
    assert_eq!(
        server.archive.stats().await.unwrap().totals.article_count,
        2
    );
    server.finish().await;
}

async fn import(server: &TestServer, count: usize) {
    let messages: Vec<_> = (0..count).map(message).collect();
    let requests: Vec<_> = messages.chunks(100).map(import_request).collect();
    let stream = tokio_stream::iter(requests);
    let mut answers = server
        .articles()
        .await
        .import_articles(stream)
        .await
        .unwrap()
        .into_inner();
    let mut results = 0;
    while let Some(answer) = answers.message().await.unwrap() {
        assert!(answer.results.iter().all(|result| result.error.is_none()));
        results += answer.results.len();
    }
    assert_eq!(results, count);
}

#[tokio::test]
async fn lists_page_and_scans_resume() {
    let server = TestServer::start().await;
    import(&server, 120).await;
    let mut client = server.articles().await;
    let selector = Some(proto::ArticleSelector {
        sources: vec!["Post".into()],
        ..Default::default()
    });
    let order = proto::ArticleOrder::PublishedAsc.into();
    let mut request = proto::ListArticlesRequest {
        selector,
        order,
        page_size: 7,
        ..Default::default()
    };
    let mut titles = Vec::new();
    loop {
        let page = client
            .list_articles(request.clone())
            .await
            .unwrap()
            .into_inner();
        assert!(
            page.articles
                .iter()
                .all(|article| article.body.is_empty() && article.source == "Post")
        );
        titles.extend(page.articles.into_iter().map(|article| article.title));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    let expected: Vec<String> = (0..120)
        .filter(|n| n % 3 == 2)
        .map(|n| format!("Title {n}"))
        .collect();
    assert_eq!(titles, expected);
    request.order = proto::ArticleOrder::PublishedDesc.into();
    let status = client.list_articles(request.clone()).await.unwrap_err();
    check_status(
        &status,
        Code::InvalidArgument,
        "PAGE_TOKEN_MISMATCH",
        Some("page_token"),
        "another selector",
    );
    request.page_size = -1;
    let status = client.list_articles(request).await.unwrap_err();
    check_status(
        &status,
        Code::InvalidArgument,
        "ARGUMENT_INVALID",
        Some("page_size"),
        "-1 is negative",
    );

    let request = proto::ScanArticlesRequest {
        resume_token: "x".into(),
        ..Default::default()
    };
    let mut stream = client.scan_articles(request).await.unwrap().into_inner();
    let status = stream.message().await.unwrap_err();
    check_status(
        &status,
        Code::InvalidArgument,
        "PAGE_TOKEN_INVALID",
        Some("resume_token"),
        "not a token",
    );
    server.finish().await;
}

#[tokio::test]
async fn a_scan_resumed_at_every_chunk_is_exact() {
    let limits = pressmark::archive::Limits {
        scan_chunk_bytes: 2000,
        ..Default::default()
    };
    let server = TestServer::start_with(limits).await;
    import(&server, 60).await;
    let mut request = proto::ScanArticlesRequest::default();
    let mut titles = Vec::new();
    let mut scans = 0;
    loop {
        let mut stream = server
            .articles()
            .await
            .scan_articles(request.clone())
            .await
            .unwrap()
            .into_inner();
        let chunk = stream.message().await.unwrap().unwrap();
        scans += 1;
        titles.extend(chunk.articles.into_iter().map(|article| article.title));
        request.resume_token = chunk.resume_token;
        if request.resume_token.is_empty() {
            assert!(stream.message().await.unwrap().is_none());
            break;
        }
    }
    assert!(scans > 5, "{scans} chunks");
    assert_eq!(
        titles,
        (0..60).map(|n| format!("Title {n}")).collect::<Vec<_>>()
    );
    server.finish().await;
}

#[tokio::test]
async fn answers_name_what_is_there_and_what_is_not() {
    let server = TestServer::start().await;
    import(&server, 9).await;
    let mut client = server.articles().await;
    let id = put(&server, message(1)).await.unwrap().id;
    let gone = put(&server, message(2)).await.unwrap().id;
    let unknown = "0".repeat(64);
    let request = proto::DeleteArticleRequest {
        id: gone.clone(),
        reason: "withdrawn".into(),
    };
    let deleted = client
        .delete_article(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(deleted.outcome(), proto::DeleteOutcome::Deleted);
    let again = client.delete_article(request).await.unwrap().into_inner();
    assert_eq!(again.outcome(), proto::DeleteOutcome::AlreadyDeleted);
    assert_eq!(
        (again.sequence, again.deleted_at, again.reason),
        (10, deleted.deleted_at, "withdrawn".into())
    );
    assert_eq!(
        put(&server, message(2)).await.unwrap().outcome(),
        proto::PutOutcome::Deleted
    );

    let status = get(&server, &gone).await.unwrap_err();
    check_status(
        &status,
        Code::NotFound,
        "ARTICLE_DELETED",
        None,
        "withdrawn",
    );
    assert_eq!(
        status
            .get_error_details()
            .resource_info()
            .unwrap()
            .resource_name,
        gone
    );
    let status = get(&server, &unknown).await.unwrap_err();
    check_status(&status, Code::NotFound, "ARTICLE_NOT_FOUND", None, &unknown);
    let status = get(&server, "abc").await.unwrap_err();
    check_status(
        &status,
        Code::InvalidArgument,
        "ARGUMENT_INVALID",
        Some("id"),
        "8 to 64",
    );

    let ids = vec![id.clone(), gone.clone(), unknown.clone(), id.clone()];
    let request = proto::FindMissingArticlesRequest { ids: ids.clone() };
    let missing = client
        .find_missing_articles(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(missing.missing_ids, [unknown.as_str()]);
    assert_eq!(missing.deleted_ids, [gone.as_str()]);
    assert_eq!(missing.stored_count, Some(1));
    let request = proto::LookupArticlesRequest { ids, view: 0 };
    let found = client.lookup_articles(request).await.unwrap().into_inner();
    assert_eq!(
        found
            .articles
            .iter()
            .map(|article| article.id.as_str())
            .collect::<Vec<_>>(),
        [id.as_str()]
    );
    assert_eq!(
        (found.missing_ids, found.deleted_ids),
        (vec![unknown], vec![gone])
    );

    let name = Some(proto::get_article_request::Name::Url(
        "HTTPS://Example.com/1?utm_source=x".into(),
    ));
    let by_url = client
        .get_article(proto::GetArticleRequest { name, view: 1 })
        .await
        .unwrap();
    let by_url = by_url.into_inner().article.unwrap();
    assert_eq!((by_url.id, by_url.body), (id, String::new()));

    let sources = client
        .list_sources(proto::ListSourcesRequest::default())
        .await
        .unwrap()
        .into_inner()
        .sources;
    let counts: Vec<_> = sources
        .iter()
        .map(|source| (source.name.as_str(), source.article_count))
        .collect();
    assert_eq!(counts, [("Gazette", 3), ("Herald", 3), ("Post", 2)]);
    let count = client
        .count_articles(proto::CountArticlesRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (count.article_count, count.as_of_sequence),
        (Some(8), Some(10))
    );
    let mut admin = server.admin().await;
    let info = admin
        .get_server_info(proto::GetServerInfoRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!((info.engine.as_str(), info.format), ("memory", 2));
    assert_eq!(info.limits.unwrap().text_bytes_max, 3_145_728);
    let stats = admin
        .get_stats(proto::GetStatsRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (stats.article_count, stats.deleted_count),
        (Some(8), Some(1))
    );
    server.finish().await;
}

#[tokio::test]
async fn stopping_ends_open_streams_and_keeps_what_was_acknowledged() {
    let server = TestServer::start().await;
    let (requests, stream) = tokio::sync::mpsc::channel(1);
    let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
    let mut client = server.articles().await;
    requests
        .send(import_request(&[message(1), message(2)]))
        .await
        .unwrap();
    let mut answers = client.import_articles(stream).await.unwrap().into_inner();
    let mut acknowledged = 0;
    while acknowledged < 2 {
        acknowledged += answers.message().await.unwrap().unwrap().results.len();
    }
    server.stop.cancel();
    let status = answers.message().await.unwrap_err();
    check_status(
        &status,
        Code::Unavailable,
        "SHUTTING_DOWN",
        None,
        "shutting down",
    );
    assert!(status.get_error_details().retry_info().is_some());
    assert_eq!(
        server.archive.stats().await.unwrap().totals.article_count,
        2
    );
    server.finish().await;
}
