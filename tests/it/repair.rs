//! Repair: damage is written past the archive, mended, and what cannot be mended is set aside until
//! it is healed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pressmark::archive::{
    Archive, FindingKind, Limits, Order, PutOutcome, Query, RepairCounts, Selector, SelectorFields,
    VerifyOptions,
};
use pressmark::article::{ArticleFields, ContentHash};
use pressmark::error::Reason;
use pressmark::key::{self, IndexFacts, NearCopies, SortTime, meta};
use pressmark::record::{EntryState, HashEntry, Totals};
use pressmark::store::{Batch, Change, Direction, Durability, MemoryStore, Scan, Store};

use crate::support::{
    Engine, TestArchive, TestResult, article, articles_max, check_error, fields, noise, prepared,
    time,
};
use crate::verify::{DELETED, DELETION, LARGE, LARGE_LAST_ROW, LAST, SMALL, filled, read, write};

on_each_engine!(
    lost_and_stray_rows_are_mended,
    a_lost_table_is_rebuilt,
    figures_are_added_up_again,
    a_damaged_record_is_set_aside_and_healed,
    a_delete_drops_what_was_set_aside,
    records_that_lost_rows_are_set_aside,
    half_of_a_delete_is_rebuilt,
    a_delete_that_lost_both_halves_stays_a_delete,
    a_repeated_article_is_set_aside,
    a_quarantined_article_can_be_deleted,
    an_article_is_set_aside_and_healed_twice,
    a_row_that_names_a_quarantine_gives_way,
    rows_with_foreign_keys_leave_the_log,
    a_check_beside_writers_finds_nothing,
    a_repair_beside_writers_loses_nothing,
);

/// The articles of the fixture that are stored.
const STORED: [u32; 5] = [1, 2, 4, 6, 8];

/// Makes changes, repairs, and checks that nothing is left to find and every article is there.
async fn check(archive: &TestArchive, changes: Vec<Change>) -> RepairCounts {
    write(archive, changes.clone()).await;
    let report = archive.repair(time(5)).await.unwrap();
    assert!(report.before.finding_count > 0, "{changes:?} are found");
    assert_eq!(
        report.after.finding_count, 0,
        "after {changes:?}: {report:#?}"
    );
    for n in STORED {
        let found = archive.get(&article(n).id()).await.unwrap();
        assert_eq!(found.article, article(n));
    }
    assert_eq!(scanned(archive).await.len(), 6, "after {changes:?}");
    report.counts.unwrap()
}

/// The sequences that a scan in order of arrival finds.
async fn scanned(archive: &TestArchive) -> Vec<u64> {
    let query = Query {
        selector: Selector::new(SelectorFields::default(), archive.limits()).unwrap(),
        order: Order::Arrival(Direction::Ascending),
    };
    let page = archive.page(&query, "", &articles_max(100)).await.unwrap();
    page.articles
        .iter()
        .map(|article| article.sequence)
        .collect()
}

fn remove(key: Vec<u8>) -> Vec<Change> {
    vec![Change::Remove(key)]
}

async fn lost_and_stray_rows_are_mended(engine: Engine) -> TestResult {
    let archive = filled(engine).await;
    let id = article(2).id();
    let mut rows = IndexFacts::of(&article(2), id, NearCopies::On).rows(SMALL);
    rows.extend([key::hash(&id), key::hash(&article(3).id())]);
    for row in rows {
        let counts = check(&archive, remove(row)).await;
        assert_eq!((counts.added_count, counts.removed_count), (1, 0));
    }
    let entry = |sequence, state| HashEntry { sequence, state }.encode();
    let (stored, deleted) = (EntryState::Stored, EntryState::Deleted);
    let wrong = [
        (key::date(SortTime::UNDATED, 99), vec![]),
        (key::date(SortTime::of(Some(time(1))), SMALL), vec![]),
        (vec![key::TABLE_URL, 1, 2, 3], vec![]),
        (key::hash(&ContentHash::of(b"nobody")), entry(SMALL, stored)),
        (key::hash(&id), entry(SMALL + 2, stored)),
        (key::hash(&id), entry(SMALL, deleted)),
        (key::hash(&id), entry(99, stored)),
        (key::hash(&id), b"short".to_vec()),
        (key::hash(&article(3).id()), entry(DELETED, stored)),
        (
            IndexFacts::of(&article(2), id, NearCopies::On)
                .rows(SMALL)
                .remove(0),
            vec![1],
        ),
    ];
    for (key, value) in wrong {
        check(&archive, vec![Change::Put(key, value)]).await;
    }
    let put = archive.put_fields(fields(3)).await;
    assert_eq!(put.outcome, PutOutcome::Deleted, "it stays deleted");
    archive.finish().await
}

async fn all_rows(archive: &TestArchive, prefix: &[u8]) -> Vec<Vec<u8>> {
    let scan = Scan {
        range: key::prefix_range(prefix),
        direction: Direction::Ascending,
        rows_max: usize::MAX,
        bytes_max: usize::MAX,
    };
    let chunk = archive.store().scan_many(vec![scan]).await.unwrap();
    chunk[0].rows.iter().map(|row| row.key.to_vec()).collect()
}

async fn a_lost_table_is_rebuilt(engine: Engine) -> TestResult {
    let archive = filled(engine).await;
    let mut everything = Vec::new();
    for table in key::INDEX_TABLES {
        let rows = all_rows(&archive, &[table]).await;
        let lost: Vec<Change> = rows.iter().cloned().map(Change::Remove).collect();
        let counts = check(&archive, lost.clone()).await;
        assert_eq!(counts.added_count, rows.len() as u64);
        everything.extend(lost);
    }
    let counts = check(&archive, everything).await;
    assert_eq!(counts.added_count, 6 * 5 + 1);
    assert_eq!(
        archive.put_fields(fields(2)).await.outcome,
        PutOutcome::Duplicate
    );
    archive.reopen().await.finish().await
}

async fn figures_are_added_up_again(engine: Engine) -> TestResult {
    let archive = filled(engine).await;
    let totals = Totals::decode(&read(&archive, &meta::totals()).await)?;
    let wrong = Totals {
        article_count: 77,
        ..totals
    };
    check(&archive, vec![Change::Put(meta::totals(), wrong.encode())]).await;
    assert_eq!(archive.stats().await?.totals, totals);
    check(&archive, remove(meta::totals())).await;
    assert_eq!(archive.stats().await?.totals, totals);
    check(&archive, remove(meta::source(&fields(1).source))).await;
    let nobody = read(&archive, &meta::source(&fields(1).source)).await;
    check(&archive, vec![Change::Put(meta::source("Nobody"), nobody)]).await;
    let next = 100_u64.to_be_bytes().to_vec();
    check(&archive, vec![Change::Put(meta::next_sequence(), next)]).await;
    assert_eq!(archive.put_fields(fields(20)).await.sequence, LAST + 1);
    archive.finish().await
}

async fn a_damaged_record_is_set_aside_and_healed(engine: Engine) -> TestResult {
    let archive = filled(engine).await;
    let id = article(2).id();
    let mut value = read(&archive, &key::log(SMALL)).await;
    *value.last_mut().unwrap() ^= 1;
    write(&archive, [Change::Put(key::log(SMALL), value.clone())]).await;

    let report = archive.repair(time(5)).await?;
    let [before] = report.before.findings.as_slice() else {
        panic!("{report:#?}");
    };
    assert_eq!(
        (before.kind, before.sequence, before.id),
        (FindingKind::RecordDamaged, Some(SMALL), Some(id))
    );
    assert_eq!(report.counts.unwrap().quarantined_count, 1);
    let [after] = report.after.findings.as_slice() else {
        panic!("{report:#?}");
    };
    assert_eq!(
        (after.kind, after.sequence, after.id),
        (FindingKind::RecordQuarantined, Some(SMALL), Some(id))
    );
    assert!(after.message.contains("checksum"), "{after:?}");
    assert_eq!(
        read(&archive, &key::quarantine(SMALL, 0)).await,
        value,
        "kept"
    );

    // It is named, not served, and in nobody's way.
    let quarantined = Reason::ArticleQuarantined;
    let digits = id.to_string();
    check_error(archive.get(&id).await, quarantined, &[&digits, "checksum"]);
    check_error(archive.get_by_prefix(&digits[..8]).await, quarantined, &[]);
    assert_eq!(scanned(&archive).await, [1, 4, 5, 6, LAST]);
    let lookup = archive
        .lookup(&[id, article(1).id()], &articles_max(9))
        .await?;
    assert_eq!((lookup.quarantined, lookup.found.len()), (vec![id], 1));
    let missing = archive.find_missing(&[id, article(1).id()]).await?;
    assert_eq!((missing.missing, missing.quarantined), (vec![id], vec![id]));
    assert_eq!(archive.stats().await?.totals.article_count, 5);
    check_error(
        archive.get_by_url(&fields(2).url).await,
        Reason::ArticleNotFound,
        &[],
    );

    // A repair that has nothing left to do does nothing.
    let counts = archive.repair(time(6)).await?.counts;
    assert_eq!(counts, Some(RepairCounts::default()));

    let newer = archive.put_fields(ArticleFields {
        url: fields(2).url,
        ..fields(20)
    });
    let newer = newer.await.id;
    let put = archive.put_fields(fields(2)).await;
    // It is a revision of what came to its URL meanwhile.
    let revision = PutOutcome::Revision { previous: newer };
    assert_eq!((put.outcome, put.sequence), (revision, LAST + 2));
    assert_eq!(archive.get(&id).await?.article, article(2));
    let kept = archive
        .store()
        .get_many(vec![key::quarantine(SMALL, 0)])
        .await?;
    assert_eq!(kept, [None], "what was kept is not needed any more");
    let put = archive.put_fields(fields(2)).await;
    assert_eq!(put.outcome, PutOutcome::Duplicate);
    archive.delete(id, "unwanted", time(7)).await?;
    archive.reopen().await.finish().await
}

/// The text of a deleted article is nowhere, also if a bit of it was wrong.
async fn a_delete_drops_what_was_set_aside(engine: Engine) -> TestResult {
    let archive = filled(engine).await;
    let mut value = read(&archive, &key::log(SMALL)).await;
    *value.last_mut().unwrap() ^= 1;
    write(&archive, [Change::Put(key::log(SMALL), value)]).await;
    archive.repair(time(5)).await?;
    let kept = async || {
        let rows = archive.store().get_many(vec![key::quarantine(SMALL, 0)]);
        rows.await.unwrap().remove(0)
    };
    assert!(kept().await.is_some());
    archive.delete(article(2).id(), "unwanted", time(6)).await?;
    assert_eq!(kept().await, None);
    archive.finish().await
}

async fn records_that_lost_rows_are_set_aside(engine: Engine) -> TestResult {
    let large = ArticleFields {
        body: noise(1, 400_000),
        ..fields(5)
    };
    let mut records = vec![
        (SMALL, vec![key::log(SMALL)], fields(2)),
        (LAST, vec![key::log(LAST)], fields(8)),
    ];
    for row in 0..=LARGE_LAST_ROW {
        records.push((LARGE, vec![key::log_row(LARGE, row)], large.clone()));
    }
    let all = (0..=LARGE_LAST_ROW).map(|row| key::log_row(LARGE, row));
    records.push((LARGE, all.collect(), large));
    for (sequence, lost, fields) in records {
        let archive = filled(engine).await;
        write(&archive, lost.iter().cloned().map(Change::Remove)).await;
        let report = archive.repair(time(5)).await?;
        let [after] = report.after.findings.as_slice() else {
            panic!("{lost:?}: {report:#?}");
        };
        let id = pressmark::article::Article::new(fields.clone())?.id();
        assert_eq!(
            (after.kind, after.sequence, after.id),
            (FindingKind::RecordQuarantined, Some(sequence), Some(id))
        );
        assert_eq!(scanned(&archive).await.len(), 5);
        assert_eq!(archive.put_fields(fields).await.sequence, LAST + 1);
        archive.finish().await?;
    }
    Ok(())
}

async fn half_of_a_delete_is_rebuilt(engine: Engine) -> TestResult {
    let archive = filled(engine).await;
    for sequence in [DELETED, DELETION] {
        let intact = read(&archive, &key::log(sequence)).await;
        let mut flipped = intact.clone();
        flipped[30] ^= 1;
        let flip = vec![Change::Put(key::log(sequence), flipped)];
        for damage in [flip, remove(key::log(sequence))] {
            let counts = check(&archive, damage).await;
            assert_eq!((counts.rebuilt_count, counts.quarantined_count), (1, 0));
            assert_eq!(read(&archive, &key::log(sequence)).await, intact);
        }
    }
    archive.finish().await
}

async fn a_delete_that_lost_both_halves_stays_a_delete(engine: Engine) -> TestResult {
    let archive = filled(engine).await;
    let lost = [remove(key::log(DELETED)), remove(key::log(DELETION))].concat();
    write(&archive, lost).await;
    let report = archive.repair(time(5)).await?;
    assert_eq!(report.counts.unwrap().quarantined_count, 2);
    let put = archive.put_fields(fields(3)).await;
    assert_eq!(put.outcome, PutOutcome::Deleted);
    assert_eq!(archive.stats().await?.totals.deleted_count, 1);
    // Nobody knows any more which article the deletion was about.
    let report = archive.verify().await?;
    let [finding] = report.findings.as_slice() else {
        panic!("{report:#?}");
    };
    assert_eq!((finding.sequence, finding.id), (Some(DELETION), None));
    // Deleted once more it has a reason again, and is counted once.
    let id = article(3).id();
    archive.delete(id, "once more", time(6)).await?;
    check_error(
        archive.get(&id).await,
        Reason::ArticleDeleted,
        &["once more"],
    );
    assert_eq!(archive.stats().await?.totals.deleted_count, 1);
    assert_eq!(archive.verify().await?.finding_count, 1);
    archive.close().await
}

async fn a_repeated_article_is_set_aside(engine: Engine) -> TestResult {
    let archive = filled(engine).await;
    write(&archive, remove(key::hash(&article(2).id()))).await;
    let put = archive.put_fields(fields(2)).await;
    assert_eq!(put.sequence, LAST + 1, "the archive has forgotten it");
    let report = archive.repair(time(5)).await?;
    let kinds: Vec<FindingKind> = report.before.findings.iter().map(|f| f.kind).collect();
    assert_eq!(kinds, [FindingKind::ArticleRepeated]);
    assert_eq!(report.after.finding_count, 0, "{report:#?}");
    assert_eq!(scanned(&archive).await, [1, 4, 5, 6, LAST, LAST + 1]);
    archive.finish().await
}

async fn a_quarantined_article_can_be_deleted(engine: Engine) -> TestResult {
    let archive = filled(engine).await;
    let id = article(2).id();
    write(&archive, remove(key::log(SMALL))).await;
    archive.repair(time(5)).await?;
    let delete = archive.delete(id, "gone anyway", time(6)).await?;
    assert_eq!(delete.sequence, LAST + 1);
    check_error(
        archive.get(&id).await,
        Reason::ArticleDeleted,
        &["gone anyway"],
    );
    archive.finish().await
}

async fn an_article_is_set_aside_and_healed_twice(engine: Engine) -> TestResult {
    let archive = filled(engine).await;
    let id = article(2).id();
    for sequence in [SMALL, LAST + 1] {
        write(&archive, remove(key::log(sequence))).await;
        let after = archive.repair(time(5)).await?.after;
        let [finding] = after.findings.as_slice() else {
            panic!("{after:#?}");
        };
        assert_eq!((finding.sequence, finding.id), (Some(sequence), Some(id)));
        archive.put_fields(fields(2)).await;
        assert_eq!(archive.verify().await?.finding_count, 0);
    }
    assert_eq!(archive.get(&id).await?.sequence, LAST + 2);
    archive.finish().await
}

/// A quarantine never takes an article from the record that has its text.
async fn a_row_that_names_a_quarantine_gives_way(engine: Engine) -> TestResult {
    let archive = filled(engine).await;
    let id = article(2).id();
    write(&archive, remove(key::log(SMALL))).await;
    archive.repair(time(5)).await?;
    let before = read(&archive, &key::hash(&id)).await;
    archive.put_fields(fields(2)).await;
    write(&archive, [Change::Put(key::hash(&id), before)]).await;
    let report = archive.repair(time(6)).await?;
    assert!(report.before.finding_count > 0, "{report:#?}");
    assert_eq!(report.after.finding_count, 0, "{report:#?}");
    assert_eq!(archive.get(&id).await?.sequence, LAST + 1);
    archive.finish().await
}

async fn rows_with_foreign_keys_leave_the_log(engine: Engine) -> TestResult {
    let archive = filled(engine).await;
    check(&archive, vec![Change::Put(b"l odd".to_vec(), vec![7])]).await;
    assert_eq!(read(&archive, b"ql odd").await, [7], "kept");
    check(&archive, vec![Change::Put(key::log(1 << 40), vec![8])]).await;
    check(&archive, vec![Change::Put(b"l".to_vec(), vec![9])]).await;
    assert_eq!(archive.put_fields(fields(20)).await.sequence, LAST + 1);
    archive.finish().await
}

/// Puts and deletes until told to stop.
async fn keep_writing(archive: Archive, first: u32, stop: Arc<AtomicBool>) -> Vec<ContentHash> {
    let mut stored = Vec::new();
    for n in first.. {
        let put = archive.put(prepared(&article(n))).await.unwrap();
        if n % 3 == 0 {
            archive.delete(put.id, "a third", time(0)).await.unwrap();
        } else {
            stored.push(put.id);
        }
        if stop.load(Ordering::Relaxed) && stored.len() > 20 {
            break;
        }
    }
    stored
}

async fn a_check_beside_writers_finds_nothing(engine: Engine) -> TestResult {
    let archive = filled(engine).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = [1000, 200_000]
        .map(|first| tokio::spawn(keep_writing(archive.handle(), first, Arc::clone(&stop))))
        .into();
    for _ in 0..10 {
        let report = archive.verify().await?;
        assert_eq!(report.finding_count, 0, "{report:#?}");
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await?;
    }
    archive.finish().await
}

async fn a_repair_beside_writers_loses_nothing(engine: Engine) -> TestResult {
    let archive = filled(engine).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writing = tokio::spawn(keep_writing(archive.handle(), 1000, Arc::clone(&stop)));
    for _ in 0..5 {
        write(&archive, remove(key::hash(&article(1).id()))).await;
        let table = all_rows(&archive, &[key::TABLE_DATE]).await;
        write(&archive, table.into_iter().take(5).map(Change::Remove)).await;
        let report = archive.repair(time(5)).await?;
        assert_eq!(report.after.finding_count, 0, "{report:#?}");
    }
    stop.store(true, Ordering::Relaxed);
    let ids = writing.await?;
    for some in ids.chunks(archive.limits().find_missing_ids_max) {
        assert_eq!(archive.find_missing(some).await?.missing, []);
    }
    archive.finish().await
}

/// A check takes at least as long as its pace says.
#[tokio::test]
async fn a_check_keeps_its_pace() -> TestResult {
    let archive = filled(Engine::Memory).await;
    let bytes = archive.verify().await?.bytes;
    let options = VerifyOptions {
        bytes_per_second_max: bytes * 4,
        observer: None,
    };
    let report = archive.verify_with(&options).await?;
    assert_eq!((report.finding_count, report.bytes), (0, bytes));
    assert!(report.elapsed.as_millis() >= 249, "{report:?}");
    archive.finish().await
}

/// Rows of `m` that an archive cannot be opened without.
#[tokio::test]
async fn lost_figures_keep_an_archive_closed_until_it_is_repaired() -> TestResult {
    for lost in [meta::format(), meta::next_sequence(), meta::totals()] {
        let store = Arc::new(MemoryStore::new());
        let (archive, guard) = Archive::open(store.clone(), Limits::default()).await?;
        for n in 1..=10 {
            archive.put(prepared(&article(n))).await?;
        }
        // Only the archive ends; the store would forget its rows.
        drop((archive, guard));
        let mut batch = Batch::new();
        batch.remove(lost.clone());
        store.write(batch, Durability::Synced).await?;
        let refused = Archive::open(store.clone(), Limits::default()).await;
        check_error(refused.map(|_| ()), Reason::IndexDamaged, &["--repair"]);

        let (archive, guard) = Archive::open_to_repair(store, Limits::default()).await?;
        assert_eq!(archive.repair(time(5)).await?.after.finding_count, 0);
        let put = archive.put(prepared(&article(11))).await?;
        assert_eq!(put.sequence, 11, "after losing {lost:?}");
        assert_eq!(archive.verify().await?.finding_count, 0);
        guard.close().await?;
    }
    Ok(())
}

/// Archives were begun without an id once.
#[tokio::test]
async fn an_archive_without_an_id_gets_one() -> TestResult {
    let archive = filled(Engine::Sled).await;
    let store = archive.store();
    let key = || vec![meta::archive_id()];
    let before = store.get_many(key()).await?;
    let mut batch = Batch::new();
    batch.remove(meta::archive_id());
    store.write(batch, Durability::Synced).await?;
    let archive = archive.reopen().await;
    let id = archive.store().get_many(key()).await?;
    assert!(id[0].is_some() && id != before, "{id:?}");
    let archive = archive.reopen().await;
    assert_eq!(archive.store().get_many(key()).await?, id);
    archive.finish().await
}

/// To go on from a sequence that has a record would write over it.
#[tokio::test]
async fn a_next_sequence_within_the_log_keeps_an_archive_closed() -> TestResult {
    let store = Arc::new(MemoryStore::new());
    let (archive, guard) = Archive::open(store.clone(), Limits::default()).await?;
    for n in 1..=10 {
        archive.put(prepared(&article(n))).await?;
    }
    drop((archive, guard));
    let mut batch = Batch::new();
    batch.put(meta::next_sequence(), 10_u64.to_be_bytes().to_vec());
    store.write(batch, Durability::Synced).await?;
    let refused = Archive::open(store.clone(), Limits::default()).await;
    let parts = ["next sequence is 10", "goes on to 10"];
    check_error(refused.map(|_| ()), Reason::IndexDamaged, &parts);
    let (archive, guard) = Archive::open_to_repair(store, Limits::default()).await?;
    assert_eq!(archive.repair(time(5)).await?.after.finding_count, 0);
    guard.close().await?;
    Ok(())
}
