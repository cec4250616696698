//! Damage, written past the archive: verify finds and names it, and reads of everything else go on.

use pressmark::archive::{Order, Query, Selector, SelectorFields, VerifyReport};
use pressmark::article::{ArticleFields, ContentHash};
use pressmark::error::{Error, Kind, Reason};
use pressmark::key::{self, IndexFacts, NearCopies, ShortHash, SortTime, meta};
use pressmark::record::{EntryState, HashEntry, SourceStats, Totals};
use pressmark::store::{Batch, Change, Direction, Durability, Store};

use crate::support::{
    Engine, SOURCES, TestArchive, TestResult, article, articles_max, fields, noise, time,
};

on_each_engine!(
    a_whole_archive_has_no_findings,
    lost_index_rows_are_found,
    stray_index_rows_are_found,
    wrong_entries_of_ids_are_found,
    a_flipped_byte_is_found,
    lost_rows_of_a_record_are_found,
    lost_records_are_found,
    wrong_figures_are_found,
    findings_are_counted_beyond_the_limit,
    reads_of_other_articles_go_on,
);

/// The sequences of the fixture: small articles, one of several rows, a deleted one.
pub const SMALL: u64 = 2;
pub const LARGE: u64 = 5;
pub const LARGE_LAST_ROW: u16 = 3;
pub const DELETED: u64 = 3;
pub const DELETION: u64 = 7;
pub const LAST: u64 = 8;

pub async fn filled(engine: Engine) -> TestArchive {
    let archive = TestArchive::open(engine).await;
    let large = ArticleFields {
        body: noise(1, 400_000),
        ..fields(5)
    };
    let puts = archive
        .put_all([fields(1), fields(2), fields(3), fields(4), large, fields(6)])
        .await;
    archive
        .delete(puts[2].id, "unwanted", time(0))
        .await
        .unwrap();
    archive.put_fields(fields(8)).await;
    archive
}

pub async fn read(archive: &TestArchive, key: &[u8]) -> Vec<u8> {
    let value = archive
        .store()
        .get_many(vec![key.to_vec()])
        .await
        .unwrap()
        .remove(0);
    value.unwrap_or_else(|| panic!("no row {key:?}")).to_vec()
}

pub async fn write(archive: &TestArchive, changes: impl IntoIterator<Item = Change>) {
    write_to(archive.store(), changes).await;
}

/// The same, while no archive is open on the store.
pub async fn write_to(store: &dyn Store, changes: impl IntoIterator<Item = Change>) {
    let mut batch = Batch::new();
    for change in changes {
        match change {
            Change::Put(key, value) => batch.put(key, value),
            Change::Remove(key) => batch.remove(key),
        }
    }
    store.write(batch, Durability::Buffered).await.unwrap();
}

/// Makes changes, checks that verify has findings, one of which holds all parts and names the
/// sequence, and takes the changes back, after which nothing may be found any more.
async fn check(archive: &TestArchive, changes: Vec<Change>, sequence: Option<u64>, parts: &[&str]) {
    let mut undo = Vec::new();
    for change in &changes {
        let (Change::Put(key, _) | Change::Remove(key)) = change;
        let before = archive
            .store()
            .get_many(vec![key.clone()])
            .await
            .unwrap()
            .remove(0);
        undo.push(match before {
            Some(value) => Change::Put(key.clone(), value.to_vec()),
            None => Change::Remove(key.clone()),
        });
    }
    write(archive, changes.clone()).await;
    let report = archive.verify().await.unwrap();
    let fits = report.findings.iter().any(|finding| {
        finding.sequence == sequence && parts.iter().all(|part| finding.message.contains(part))
    });
    assert!(
        fits,
        "{changes:?}: nothing about {sequence:?} and {parts:?} in {report:#?}"
    );
    write(archive, undo).await;
    let VerifyReport { findings, .. } = archive.verify().await.unwrap();
    assert!(findings.is_empty(), "{findings:#?}");
}

async fn a_whole_archive_has_no_findings(engine: Engine) -> TestResult {
    let archive = filled(engine).await;
    let report = archive.verify().await?;
    assert_eq!((report.article_count, report.deletion_count), (6, 1));
    // Five rows of each article, and the one of the tombstone.
    assert_eq!(report.index_row_count, 6 * 5 + 1);
    assert_eq!((report.finding_count, report.findings), (0, vec![]));
    let archive = archive.reopen().await;
    archive.finish().await
}

async fn lost_index_rows_are_found(engine: Engine) -> TestResult {
    let archive = filled(engine).await;
    let id = article(2).id();
    let mut rows = IndexFacts::of(&article(2), id, NearCopies::On).rows(SMALL);
    rows.push(key::hash(&id));
    assert_eq!(rows.len(), 5, "one row in each index table");
    for row in rows {
        let table = format!("table {}", char::from(row[0]));
        check(
            &archive,
            vec![Change::Remove(row)],
            Some(SMALL),
            &[&id.to_string(), &table],
        )
        .await;
    }
    // Without this row a deleted article could be stored again.
    let deleted = article(3).id();
    let lost = vec![Change::Remove(key::hash(&deleted))];
    check(
        &archive,
        lost,
        Some(DELETED),
        &[&deleted.to_string(), "table h"],
    )
    .await;
    archive.finish().await
}

async fn stray_index_rows_are_found(engine: Engine) -> TestResult {
    let archive = filled(engine).await;
    let url = ShortHash::of_url("https://other.example/").unwrap();
    let body = ShortHash::of(&ContentHash::of(b"other"));
    let with = |prefix: Vec<u8>| [prefix, SMALL.to_be_bytes().to_vec()].concat();
    let strays = [
        key::date(SortTime::of(Some(time(1))), SMALL),
        key::date(SortTime::UNDATED, 99),
        key::dated(key::source_prefix("Nobody"), SortTime::UNDATED, SMALL),
        with(key::url_prefix(url)),
        with(key::body_prefix(body)),
        IndexFacts::of(&article(3), article(3).id(), NearCopies::On)
            .rows(DELETED)
            .remove(0),
        vec![key::TABLE_URL, 1, 2, 3],
    ];
    for stray in strays {
        let table = format!("table {}", char::from(stray[0]));
        let sequence = key::parse_sequence(&stray).unwrap_or_default();
        check(
            &archive,
            vec![Change::Put(stray, vec![])],
            Some(sequence),
            &[&table],
        )
        .await;
    }
    // A row with another value than its record asks for.
    let row = IndexFacts::of(&article(2), article(2).id(), NearCopies::On)
        .rows(SMALL)
        .remove(0);
    check(
        &archive,
        vec![Change::Put(row, vec![1])],
        Some(SMALL),
        &["table d"],
    )
    .await;
    archive.finish().await
}

async fn wrong_entries_of_ids_are_found(engine: Engine) -> TestResult {
    let archive = filled(engine).await;
    let entry = |sequence, state| HashEntry { sequence, state }.encode();
    let (stored, deleted) = (EntryState::Stored, EntryState::Deleted);
    let cases = [
        (article(2).id(), entry(SMALL + 2, stored), SMALL + 2), // another's record
        (article(2).id(), entry(99, stored), 99),               // no record
        (article(2).id(), entry(SMALL, deleted), SMALL),        // not deleted
        (article(3).id(), entry(DELETED, stored), DELETED),     // deleted
        (article(3).id(), entry(DELETION, deleted), DELETION),  // the deletion, not the tombstone
        (ContentHash::of(b"nobody"), entry(SMALL, stored), SMALL),
        (article(2).id(), b"short".to_vec(), 0),
    ];
    for (id, value, sequence) in cases {
        let change = vec![Change::Put(key::hash(&id), value)];
        check(&archive, change, Some(sequence), &["table h"]).await;
    }
    archive.finish().await
}

async fn a_flipped_byte_is_found(engine: Engine) -> TestResult {
    let archive = filled(engine).await;
    for sequence in [SMALL, DELETED, DELETION] {
        let value = read(&archive, &key::log(sequence)).await;
        // Each field of the header is hit; every byte would take too long.
        for at in (0..value.len()).step_by(3) {
            let mut flipped = value.clone();
            flipped[at] ^= 1 << (at % 8);
            let place = format!("log record {sequence}");
            let change = vec![Change::Put(key::log(sequence), flipped)];
            check(&archive, change, Some(sequence), &[&place]).await;
        }
    }
    archive.finish().await
}

async fn lost_rows_of_a_record_are_found(engine: Engine) -> TestResult {
    let archive = filled(engine).await;
    let middle = vec![Change::Remove(key::log_row(LARGE, 1))];
    check(&archive, middle, Some(LARGE), &["row 1 is missing"]).await;
    let first = vec![Change::Remove(key::log(LARGE))];
    check(&archive, first, Some(LARGE), &["row 0 is missing"]).await;
    // Nothing stands behind the last row to show that it is missing, but the record's length.
    let end = vec![Change::Remove(key::log_row(LARGE, LARGE_LAST_ROW))];
    check(&archive, end, Some(LARGE), &["log record 5", "payload"]).await;
    let mut second = read(&archive, &key::log_row(LARGE, 1)).await;
    second[1000] ^= 1;
    let flipped = vec![Change::Put(key::log_row(LARGE, 1), second)];
    check(
        &archive,
        flipped,
        Some(LARGE),
        &["log record 5", "checksum"],
    )
    .await;
    let stray = vec![Change::Put(key::log_row(SMALL, 1), vec![7; 10])];
    check(&archive, stray, Some(SMALL), &["log record 2", "payload"]).await;
    archive.finish().await
}

async fn lost_records_are_found(engine: Engine) -> TestResult {
    let archive = filled(engine).await;
    let lose = |sequence| vec![Change::Remove(key::log(sequence))];
    let missing = |sequence| format!("log record {sequence} is missing");
    check(&archive, lose(SMALL), Some(SMALL), &[&missing(SMALL)]).await;
    check(&archive, lose(LAST), Some(LAST), &[&missing(LAST)]).await;
    let two = [lose(SMALL), lose(SMALL + 2), lose(DELETED)].concat();
    check(&archive, two, Some(SMALL), &["log records 2 to 4"]).await;
    check(
        &archive,
        lose(DELETION),
        Some(DELETED),
        &["other half at 7"],
    )
    .await;
    check(
        &archive,
        lose(DELETED),
        Some(DELETION),
        &["other half at 3"],
    )
    .await;
    let unknown = vec![Change::Put(b"l odd".to_vec(), vec![])];
    check(&archive, unknown, None, &["l odd"]).await;
    archive.finish().await
}

async fn wrong_figures_are_found(engine: Engine) -> TestResult {
    let archive = filled(engine).await;
    let totals = Totals::decode(&read(&archive, &meta::totals()).await)?;
    let wrong = [
        Totals {
            article_count: 7,
            ..totals
        },
        Totals {
            deleted_count: 0,
            ..totals
        },
        Totals {
            text_bytes: totals.text_bytes + 1,
            ..totals
        },
        Totals {
            stored_bytes: 0,
            ..totals
        },
    ];
    for totals in wrong {
        let change = vec![Change::Put(meta::totals(), totals.encode())];
        check(&archive, change, None, &["totals", "adds up"]).await;
    }
    let next = vec![Change::Put(
        meta::next_sequence(),
        12_u64.to_be_bytes().to_vec(),
    )];
    check(&archive, next, None, &["next sequence is stored as 12"]).await;

    let source = SOURCES[2];
    let stats = SourceStats::decode(&read(&archive, &meta::source(source)).await)?;
    let wrong = [
        SourceStats {
            article_count: stats.article_count + 1,
            ..stats
        },
        SourceStats {
            first: SortTime::UNDATED,
            ..stats
        },
        SourceStats {
            last: SortTime::of(Some(time(1))),
            ..stats
        },
    ];
    for stats in wrong {
        let change = vec![Change::Put(meta::source(source), stats.encode())];
        check(&archive, change, None, &[source, "adds up"]).await;
    }
    check(
        &archive,
        vec![Change::Remove(meta::source(source))],
        None,
        &[source, "None"],
    )
    .await;
    let nobody = vec![Change::Put(meta::source("Nobody"), stats.encode())];
    check(&archive, nobody, None, &["Nobody", "no articles"]).await;
    archive.finish().await
}

async fn findings_are_counted_beyond_the_limit(engine: Engine) -> TestResult {
    let limits = pressmark::archive::Limits {
        verify_findings_max: 3,
        ..Default::default()
    };
    let archive = TestArchive::with_limits(engine, limits).await;
    let strays = (1..=10).map(|n| Change::Put(key::date(SortTime::UNDATED, n), vec![]));
    write(&archive, strays).await;
    let report = archive.verify().await?;
    assert_eq!((report.finding_count, report.findings.len()), (10, 3));
    archive.close().await
}

async fn reads_of_other_articles_go_on(engine: Engine) -> TestResult {
    let archive = filled(engine).await;
    let (small, id) = (article(2).id(), article(2).id().to_string());
    let mut value = read(&archive, &key::log(SMALL)).await;
    *value.last_mut().unwrap() ^= 1;
    write(&archive, [Change::Put(key::log(SMALL), value)]).await;
    let damaged = |error: Error| {
        assert_eq!(
            (error.reason(), error.kind()),
            (Reason::RecordDamaged, Kind::DataLoss),
            "{error}"
        );
        assert!(error.message().contains(&id), "{error}");
        assert_eq!(error.resource(), Some(&*id));
    };
    damaged(archive.get(&small).await.unwrap_err());
    damaged(archive.get_by_prefix(&id[..8]).await.unwrap_err());
    damaged(archive.get_by_url(&fields(2).url).await.unwrap_err());
    damaged(
        archive
            .lookup(&[article(1).id(), small], &articles_max(10))
            .await
            .unwrap_err(),
    );
    damaged(archive.delete(small, "x", time(0)).await.unwrap_err());
    assert!(archive.metrics().damaged.get() >= 5);

    for n in [1, 4, 6, 8] {
        assert_eq!(archive.get(&article(n).id()).await?.article, article(n));
    }
    let by_source = SelectorFields {
        sources: vec![fields(1).source],
        ..SelectorFields::default()
    };
    let selector = Selector::new(by_source, archive.limits())?;
    let query = Query {
        selector,
        order: Order::Published(Direction::Ascending),
    };
    assert_eq!(
        archive.page(&query, "", &articles_max(10)).await?.articles[0].article,
        article(1)
    );
    assert_eq!(archive.put_fields(fields(20)).await.sequence, LAST + 1);
    let report = archive.verify().await?;
    assert!(
        report
            .findings
            .iter()
            .any(|finding| finding.message.contains(&id)),
        "{report:#?}"
    );
    archive.close().await
}
