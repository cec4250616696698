//! Check, repair and scrub as operators meet them: the command, the RPC, and the server's own check.

use std::path::Path;

use pressmark::key;
use pressmark::rpc::proto;
use pressmark::rpc::proto::verify_archive_response::Event;
use pressmark::store::{self, Batch, Durability, Locator, StoreOptions};
use serde_json::{Value, json};

use crate::cli::{Scratch, id};
use crate::server::{ServerProcess, admin, articles};
use crate::support::TestResult;

/// The articles of the fixture, and the sequence of the damaged one.
const ARTICLES: usize = 10;
const DAMAGED: u64 = 4;

/// An archive of ten articles.
fn filled() -> (Scratch, String) {
    let scratch = Scratch::new();
    let tree = scratch.write_tree(ARTICLES);
    scratch.run(&["import", &tree]).exits(0);
    (scratch, tree)
}

/// Flips a bit in a record of a closed archive, and takes one row of an index away.
async fn damage(archive: &Path) -> TestResult {
    let locator = Locator::Folder(archive.to_owned());
    let store = store::open(&locator, StoreOptions::default()).await?;
    let key = key::log(DAMAGED);
    let value = store.get_many(vec![key.clone()]).await?.remove(0);
    let mut value = value.expect("the record is there").to_vec();
    *value.last_mut().unwrap() ^= 1;
    let mut batch = Batch::new();
    batch.put(key, value);
    let first = store::Scan {
        range: key::prefix_range(&[key::TABLE_DATE]),
        direction: store::Direction::Ascending,
        rows_max: 1,
        bytes_max: usize::MAX,
    };
    let row = store.scan_many(vec![first]).await?.remove(0).rows.remove(0);
    batch.remove(row.key.to_vec());
    store.write(batch, Durability::Synced).await?;
    Ok(store.close().await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_finds_repairs_and_exits_accordingly() -> TestResult {
    let (scratch, tree) = filled();
    let whole = scratch.run(&["verify"]).exits(0).out;
    assert!(
        whole.starts_with("OK: 10 articles, 0 deletions, 50 index rows, "),
        "{whole}"
    );
    damage(&scratch.path("archive")).await?;

    let found = scratch.run(&["verify", "--rate-mib", "500"]).exits(1);
    let lines: Vec<&str> = found.out.lines().collect();
    let [record, row, summary] = lines.as_slice() else {
        panic!("{lines:#?}");
    };
    assert!(
        record.starts_with("record damaged at sequence 4: article "),
        "{record}"
    );
    assert!(
        record.contains("heal the article from a backup"),
        "{record}"
    );
    assert!(row.starts_with("row missing at sequence "), "{row}");
    assert!(
        row.contains("table d") && row.ends_with("; run verify --repair"),
        "{row}"
    );
    assert!(summary.starts_with("2 findings: 9 articles, "), "{summary}");
    assert!(!found.err.contains("panicked"), "{}", found.err);

    // What is set aside stays a finding until it is healed, here by the next import.
    let repaired = scratch.run(&["verify", "--repair", "--json"]).exits(1);
    let events: Vec<Value> = repaired.objects();
    let kinds: Vec<&str> = events
        .iter()
        .map(|e| e["event"].as_str().unwrap())
        .collect();
    let (finding, summary) = ("finding", "summary");
    assert_eq!(
        kinds,
        [finding, finding, summary, "repair", finding, summary],
        "{events:#?}"
    );
    assert_eq!(events[0]["kind"], "record_damaged");
    assert_eq!(events[0]["sequence"], DAMAGED);
    let quarantined = events[0]["id"].as_str().unwrap().to_owned();
    assert!((0..ARTICLES).any(|number| id(number) == quarantined));
    let repair = json!({
        "event": "repair", "quarantined_count": 1, "rebuilt_count": 0, "added_count": 1,
        "removed_count": 4,
    });
    assert_eq!(events[3], repair);
    assert_eq!(events[4]["kind"], "record_quarantined");
    assert_eq!(events[4]["id"], quarantined);
    assert_eq!(events[5]["finding_count"], 1);

    let refused = scratch.run(&["get", &quarantined]).exits(2);
    assert!(refused.err.contains("was set aside"), "{}", refused.err);
    let healed = scratch.run(&["import", &tree]).exits(0).out;
    assert_eq!(
        healed,
        "1 new, 9 duplicate, 0 revision, 0 deleted before, 0 refused\n"
    );
    scratch.run(&["get", &quarantined]).exits(0);
    scratch.run(&["verify"]).exits(0);
    Ok(())
}

/// The events of one call, progress aside.
async fn events(address: &str, repair: bool) -> Result<Vec<Event>, tonic::Status> {
    let request = proto::VerifyArchiveRequest {
        repair,
        bytes_per_second_max: 0,
    };
    let stream = admin(address).await.verify_archive(request).await?;
    let mut stream = stream.into_inner();
    let mut events = Vec::new();
    while let Some(message) = stream.message().await? {
        events.push(message.event.expect("every message tells something"));
    }
    events.retain(|event| match event {
        Event::Progress(progress) => {
            assert_ne!(progress.stage(), proto::VerifyStage::Unspecified);
            false
        }
        Event::Finding(_) | Event::Summary(_) | Event::Repair(_) => true,
    });
    Ok(events)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_served_archive_is_checked_repaired_and_healed() -> TestResult {
    let (scratch, _) = filled();
    let folder = scratch.path("archive");
    damage(&folder).await?;
    let server = ServerProcess::start(&folder);

    let found = events(&server.address, false).await?;
    let [
        Event::Finding(record),
        Event::Finding(row),
        Event::Summary(summary),
    ] = found.as_slice()
    else {
        panic!("{found:#?}");
    };
    assert_eq!(record.kind(), proto::VerifyFindingKind::RecordDamaged);
    assert_eq!(record.sequence, Some(DAMAGED));
    assert_eq!(row.kind(), proto::VerifyFindingKind::RowMissing);
    assert!(!record.advice.is_empty() && !record.message.is_empty());
    assert_eq!(summary.finding_count, Some(2));
    assert_eq!(summary.figures_checked, Some(false));

    let request = proto::VerifyArchiveRequest {
        repair: true,
        bytes_per_second_max: 20,
    };
    let stream = admin(&server.address).await.verify_archive(request).await?;
    let slow = stream.into_inner().message().await.expect_err("years");
    assert_eq!(slow.code(), tonic::Code::InvalidArgument);
    assert!(
        slow.message()
            .contains("20 is less than the limit of 1048576")
    );

    // A damaged article is DATA_LOSS naming the id; the others are served.
    let get = |id: &str| proto::GetArticleRequest {
        name: Some(proto::get_article_request::Name::Id(id.to_owned())),
        ..Default::default()
    };
    let mut client = articles(&server.address).await;
    let lost = client.get_article(get(&record.id)).await.unwrap_err();
    assert_eq!(lost.code(), tonic::Code::DataLoss);
    assert!(lost.message().contains(&record.id), "{lost:?}");
    for number in (0..ARTICLES).filter(|number| id(*number) != record.id) {
        client.get_article(get(&id(number))).await?;
    }
    let stats = proto::GetStatsRequest {};
    let stats = admin(&server.address).await.get_stats(stats).await?;
    assert!(stats.into_inner().damaged_count() >= 2, "it was counted");

    let repaired = events(&server.address, true).await?;
    let [
        ..,
        Event::Repair(repair),
        Event::Finding(left),
        Event::Summary(summary),
    ] = repaired.as_slice()
    else {
        panic!("{repaired:#?}");
    };
    assert_eq!(repair.quarantined_count, Some(1));
    assert_eq!(left.kind(), proto::VerifyFindingKind::RecordQuarantined);
    assert_eq!(left.id, record.id);
    assert_eq!(summary.finding_count, Some(1));
    let missing = proto::FindMissingArticlesRequest {
        ids: (0..ARTICLES).map(id).collect(),
    };
    let missing = client.find_missing_articles(missing).await?.into_inner();
    assert_eq!(missing.quarantined_ids, std::slice::from_ref(&record.id));
    assert_eq!(missing.missing_ids, std::slice::from_ref(&record.id));
    drop(client);

    let tree = scratch.text("tree");
    let import = ["--server", &server.address, "import", &tree];
    let output = crate::cli::program().args(import).output()?;
    assert!(output.status.success(), "{output:?}");
    let whole = events(&server.address, false).await?;
    assert!(
        matches!(whole.as_slice(), [Event::Summary(summary)] if summary.finding_count == Some(0)),
        "{whole:#?}"
    );
    assert!(server.terminate());
    Ok(())
}

/// A new server scrubs at once, and again when the interval has passed.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_scrubs_by_itself() -> TestResult {
    let (scratch, _) = filled();
    let folder = scratch.path("archive");
    let server = ServerProcess::start_with(&folder, &["--scrub-interval", "1s"]);
    let first = last_scrub(&server.address, |_| true).await;
    assert_eq!((first.record_count(), first.finding_count()), (10, 0));
    let before = first.finished_at;
    last_scrub(&server.address, |scrub| scrub.finished_at != before).await;
    assert!(server.terminate());

    damage(&folder).await?;
    let server = ServerProcess::start_with(&folder, &["--scrub-interval", "1s"]);
    let found = last_scrub(&server.address, |scrub| scrub.finding_count() > 0).await;
    assert_eq!(found.finding_count(), 2);
    let stats = crate::cli::program()
        .args(["--server", &server.address, "stats", "--json"])
        .output()?;
    let stats: Value = serde_json::from_slice(&stats.stdout)?;
    assert_eq!(stats["scrub_finding_count"], 2, "{stats:#}");
    assert!(server.terminate());

    // The result outlives the server, and 0 turns the scrub off.
    let stats = scratch.run(&["stats", "--json"]).exits(0).objects();
    assert_eq!(stats[0]["scrub_finding_count"], 2);
    scratch.run(&["verify", "--repair"]).exits(1);
    let refused = ["serve", "--scrub-interval", "soon"];
    scratch.run(&refused).exits(2);
    Ok(())
}

/// Asks a server until its last scrub is one that is waited for.
async fn last_scrub(
    address: &str,
    is_it: impl Fn(&proto::ScrubResult) -> bool,
) -> proto::ScrubResult {
    let mut client = admin(address).await;
    loop {
        let stats = client.get_stats(proto::GetStatsRequest {}).await.unwrap();
        let scrub = stats.into_inner().last_scrub;
        if let Some(scrub) = scrub.filter(&is_it) {
            return scrub;
        }
        tokio::task::yield_now().await;
    }
}
