//! Dictionaries: that an archive trains one and uses it, that both copies are looked after, and what
//! is told when both are lost.

use std::sync::{Arc, OnceLock};

use pressmark::archive::backup::Chain;
use pressmark::archive::{Archive, Finding, FindingKind, Guard, Hashed, Limits, PutOutcome};
use pressmark::article::{Article, ArticleFields, ContentHash};
use pressmark::error::{Error, Kind, Reason};
use pressmark::key::{self, meta};
use pressmark::record::{self, Dictionaries, Dictionary};
use pressmark::store::{Change, MemoryStore, Store};

use crate::backup::{Files, bytes_from, check_same_articles};
use crate::cli::Scratch;
use crate::faulty::{FAULTS, Fails, FaultyStore};
use crate::support::{Engine, TestArchive, TestResult, check_error, fields, noise, prepared, time};
use crate::verify::{read, write};

on_each_engine!(
    an_archive_trains_a_dictionary_and_uses_it,
    an_archive_that_is_only_read_trains_none,
    a_broken_copy_is_found_and_healed,
    copies_are_healed_from_memory,
    a_lost_dictionary_is_told,
    a_new_dictionary_does_not_take_the_place_of_a_lost_one,
    a_restored_archive_trains_its_own,
);

/// Records from which on the archives of these tests train.
const RECORDS_MIN: u32 = 64;

/// Articles that come before the dictionary, and with it.
const PLAIN: u32 = 80;
const ALL: u32 = 120;

pub fn limits() -> Limits {
    Limits {
        dictionary_records_min: RECORDS_MIN.into(),
        ..Limits::default()
    }
}

/// The n-th article of a paper that has its phrases.
pub fn worded(n: u32) -> ArticleFields {
    const PHRASES: [&str; 16] = [
        "the ministry of transport said on Monday",
        "a spokesman declined to comment on the matter",
        "according to people who know of the talks",
        "shares of the company fell in early trade",
        "the harvest is expected to be larger than last year",
        "officials in the capital confirmed the report",
        "it was not clear when the talks would go on",
        "the central bank left its rates as they were",
        "analysts had expected a smaller rise of prices",
        "the opposition asked for an inquiry",
        "no one was hurt, the police said",
        "exports of wheat and barley were up",
        "the court is to decide in the coming week",
        "the union called its members to stop work",
        "more than a hundred people were on board",
        "the two sides agreed to meet again",
    ];
    let mut body = String::new();
    for byte in &ContentHash::of(&n.to_be_bytes()).as_bytes()[..16] {
        let phrase = PHRASES[usize::from(byte % 16)];
        body += &format!("In {byte} of {n} cases {phrase}.\n");
    }
    ArticleFields { body, ..fields(n) }
}

fn article(n: u32) -> Article {
    Article::new(worded(n)).unwrap()
}

/// A dictionary of such articles, and a set of it alone.
pub fn dictionaries() -> Dictionaries {
    static TRAINED: OnceLock<Dictionaries> = OnceLock::new();
    let trained = TRAINED.get_or_init(|| {
        let texts: Vec<String> = (0..200).map(|n| article(n).render()).collect();
        let lengths: Vec<usize> = texts.iter().map(String::len).collect();
        let dictionary = Dictionary::train(texts.concat().as_bytes(), &lengths).unwrap();
        let dictionaries = Dictionaries::default();
        dictionaries.add(Arc::new(dictionary));
        dictionaries
    });
    trained.clone()
}

/// Puts articles as a server does, with the dictionary that there is.
pub async fn put_worded(archive: &Archive, numbers: std::ops::Range<u32>) -> Result<(), Error> {
    let mut pending = Vec::new();
    for n in numbers {
        let prepared = archive.prepare(Hashed::new(article(n), time(1), None)?)?;
        pending.push(archive.enqueue(prepared).await?);
    }
    for put in pending {
        assert_eq!(put.result().await?.outcome, PutOutcome::Created);
    }
    Ok(())
}

/// An archive with articles from before its dictionary and from after.
async fn trained(engine: Engine) -> TestArchive {
    let archive = TestArchive::with_limits(engine, limits()).await;
    archive.put_all((0..PLAIN).map(worded)).await;
    archive.trained().await.unwrap();
    put_worded(&archive, PLAIN..ALL).await.unwrap();
    archive
}

/// The dictionary that a record names.
async fn named(archive: &TestArchive, sequence: u32) -> Option<u32> {
    record::peek_dictionary(&read(archive, &key::log(sequence.into())).await)
}

/// Reads all articles. Those that need a lost dictionary say so; returns how many.
async fn check_articles(archive: &Archive) -> u32 {
    let mut lost_count = 0;
    for n in 0..ALL {
        match archive.get(&article(n).id()).await {
            Ok(stored) => assert_eq!(stored.article, article(n)),
            Err(error) => {
                assert_eq!(error.reason(), Reason::DictionaryLost, "{error}");
                assert_eq!(error.kind(), Kind::DataLoss);
                assert!(error.to_string().contains("from a backup"), "{error}");
                lost_count += 1;
            }
        }
    }
    lost_count
}

async fn findings(archive: &Archive) -> Vec<Finding> {
    let report = archive.verify().await.unwrap();
    assert_eq!(report.finding_count, report.findings.len() as u64);
    report.findings
}

async fn kinds(archive: &Archive) -> Vec<FindingKind> {
    let findings = findings(archive).await;
    findings.iter().map(|finding| finding.kind).collect()
}

async fn an_archive_trains_a_dictionary_and_uses_it(engine: Engine) -> TestResult {
    let archive = TestArchive::with_limits(engine, limits()).await;
    archive.put_all((0..RECORDS_MIN - 1).map(worded)).await;
    assert_eq!(archive.format(), 2, "older versions still read it");
    archive.put_all((RECORDS_MIN - 1..PLAIN).map(worded)).await;
    archive.trained().await?;
    assert_eq!(archive.format(), 3);
    let before = archive.stats().await?.totals;
    put_worded(&archive, PLAIN..ALL).await?;
    let after = archive.stats().await?.totals;

    let id = named(&archive, PLAIN + 1).await.expect("a dictionary");
    assert_eq!(named(&archive, PLAIN).await, None);
    assert_eq!(named(&archive, ALL).await, Some(id));
    let mean = before.stored_bytes / before.article_count;
    let with = (after.stored_bytes - before.stored_bytes) / u64::from(ALL - PLAIN);
    println!("{mean} bytes an article without a dictionary, {with} with one");
    assert!(with * 4 < mean * 3, "{with} bytes instead of {mean}");

    let [one, two] = [0, 1].map(|copy| meta::dictionary(id, copy));
    assert_eq!(read(&archive, &one).await, read(&archive, &two).await);
    assert_eq!(check_articles(&archive).await, 0);
    assert!(findings(&archive).await.is_empty());

    // What another archive prepared would be lost in this one.
    let other = TestArchive::open(engine).await;
    let foreign = archive.prepare(Hashed::new(article(ALL), time(1), None)?)?;
    check_error(
        other.put(foreign).await,
        Reason::Internal,
        &[&id.to_string()],
    );
    other.finish().await?;

    let archive = archive.reopen().await;
    assert_eq!(archive.format(), 3);
    archive.trained().await?;
    assert_eq!(check_articles(&archive).await, 0);
    let again = archive.put(prepared(&article(PLAIN))).await?;
    assert_eq!(again.outcome, PutOutcome::Duplicate);
    put_worded(&archive, ALL..ALL + 1).await?;
    assert_eq!(named(&archive, ALL + 1).await, Some(id));
    archive
        .delete(article(ALL).id(), "unwanted", time(2))
        .await?;
    archive.finish().await
}

async fn an_archive_that_is_only_read_trains_none(engine: Engine) -> TestResult {
    let archive = TestArchive::open(engine).await;
    archive.put_all((0..PLAIN).map(worded)).await;
    let folder = archive.close_and_keep().await?;
    if engine == Engine::Memory {
        return Ok(());
    }
    let store = engine.open(folder.path()).await?;
    let (archive, guard) = Archive::open(store, limits()).await?;
    archive.get(&article(1).id()).await?;
    guard.close().await?;
    check_error(archive.trained().await, Reason::ShuttingDown, &[]);
    drop(archive);

    // The first put brings it about.
    let store = engine.open(folder.path()).await?;
    let (archive, guard) = Archive::open(store, limits()).await?;
    put_worded(&archive, PLAIN..PLAIN + 1).await?;
    archive.trained().await?;
    assert_eq!(archive.format(), 3);
    crate::server::check(&archive).await;
    Ok(guard.close().await?)
}

/// What may become of a row.
fn broken(key: &[u8], value: &[u8]) -> Vec<Change> {
    let mut flipped = value.to_vec();
    flipped[value.len() / 2] ^= 1;
    let mut checksum = value.to_vec();
    checksum[3] ^= 0x80;
    let cut = value[..value.len() - 1].to_vec();
    let values = [flipped, checksum, cut, value[..9].to_vec(), Vec::new()];
    let puts = values.map(|value| Change::Put(key.to_vec(), value));
    puts.into_iter()
        .chain([Change::Remove(key.to_vec())])
        .collect()
}

async fn a_broken_copy_is_found_and_healed(engine: Engine) -> TestResult {
    let mut archive = trained(engine).await;
    let id = named(&archive, ALL).await.expect("a dictionary");
    for copy in [0, 1] {
        let row = meta::dictionary(id, copy);
        let good = read(&archive, &row).await;
        for change in broken(&row, &good) {
            write(&archive, [change.clone()]).await;
            archive = archive.reopen().await;
            assert_eq!(check_articles(&archive).await, 0, "after {change:?}");
            let report = archive.repair(time(5)).await?;
            let [found] = report.before.findings.as_slice() else {
                panic!("after {change:?}: {:#?}", report.before.findings);
            };
            assert_eq!(found.kind, FindingKind::DictionaryDamaged);
            let what = format!("copy {copy} of dictionary {id}");
            assert!(found.message.contains(&what), "{found:?}");
            assert_eq!(report.counts.expect("a repair").rebuilt_count, 1);
            assert_eq!(report.after.finding_count, 0, "{report:#?}");
            for copy in [0, 1] {
                assert_eq!(read(&archive, &meta::dictionary(id, copy)).await, good);
            }
        }
    }
    archive.finish().await
}

async fn copies_are_healed_from_memory(engine: Engine) -> TestResult {
    let archive = trained(engine).await;
    let id = named(&archive, ALL).await.expect("a dictionary");
    let rows = [0, 1].map(|copy| meta::dictionary(id, copy));
    let good = read(&archive, &rows[0]).await;
    write(&archive, rows.clone().map(Change::Remove)).await;
    let damaged = FindingKind::DictionaryDamaged;
    assert_eq!(kinds(&archive).await, [damaged, damaged]);
    let report = archive.repair(time(5)).await?;
    assert_eq!(report.counts.expect("a repair").rebuilt_count, 2);
    for row in &rows {
        assert_eq!(read(&archive, row).await, good);
    }
    archive.finish().await
}

async fn a_lost_dictionary_is_told(engine: Engine) -> TestResult {
    let archive = trained(engine).await;
    let id = named(&archive, ALL).await.expect("a dictionary");
    let rows = [0, 1].map(|copy| meta::dictionary(id, copy));
    let good = read(&archive, &rows[0]).await;
    let mut bad = good.clone();
    bad[100] ^= 1;
    write(
        &archive,
        rows.clone().map(|row| Change::Put(row, bad.clone())),
    )
    .await;

    let archive = archive.reopen().await;
    assert_eq!(archive.format(), 3);
    assert_eq!(check_articles(&archive).await, ALL - PLAIN);
    let found = findings(&archive).await;
    let [found] = found.as_slice() else {
        panic!("one thing is wrong, not {found:#?}");
    };
    assert_eq!(found.kind, FindingKind::DictionaryLost);
    assert_eq!(found.sequence, Some(u64::from(PLAIN) + 1));
    assert!(found.message.contains(&id.to_string()), "{found:?}");
    assert!(found.message.contains("40 records"), "{found:?}");

    // A repair would have to set most of an archive aside.
    let parts = [id.to_string(), "from a backup".to_owned()];
    let parts = parts.each_ref().map(String::as_str);
    check_error(
        archive.repair(time(5)).await,
        Reason::ArchiveDamaged,
        &parts,
    );
    for row in &rows {
        assert_eq!(read(&archive, row).await, bad, "what is left stays");
    }
    assert_eq!(check_articles(&archive).await, ALL - PLAIN);
    // It takes articles, and trains no other dictionary while there is something to rescue.
    put_worded(&archive, ALL..ALL + 1).await?;
    assert_eq!(named(&archive, ALL + 1).await, None);
    check_error(archive.trained().await, Reason::ShuttingDown, &[]);

    // One copy from an older folder makes it whole.
    write(&archive, [Change::Put(rows[1].clone(), good.clone())]).await;
    let archive = archive.reopen().await;
    assert_eq!(check_articles(&archive).await, 0);
    let report = archive.repair(time(6)).await?;
    assert_eq!(report.after.finding_count, 0, "{report:#?}");
    assert_eq!(read(&archive, &rows[0]).await, good);
    archive.finish().await
}

async fn a_new_dictionary_does_not_take_the_place_of_a_lost_one(engine: Engine) -> TestResult {
    let archive = trained(engine).await;
    let id = named(&archive, ALL).await.expect("a dictionary");
    let rows = [0, 1].map(|copy| meta::dictionary(id, copy));
    let good = read(&archive, &rows[0]).await;
    write(&archive, rows.clone().map(Change::Remove)).await;

    // The same samples would make the same dictionary again, so there are others as well.
    let more = Limits {
        dictionary_records_min: 3 * u64::from(ALL),
        ..limits()
    };
    let archive = archive.reopen_limited(more).await;
    assert_eq!(check_articles(&archive).await, ALL - PLAIN);
    assert_eq!(kinds(&archive).await, [FindingKind::DictionaryLost]);
    archive.put_all((ALL..3 * ALL).map(worded)).await;
    archive.trained().await?;
    put_worded(&archive, 3 * ALL..3 * ALL + 1).await?;
    let other = named(&archive, 3 * ALL + 1).await.expect("a dictionary");
    assert_ne!(other, id);
    assert_eq!(kinds(&archive).await, [FindingKind::DictionaryLost]);

    write(&archive, rows.map(|row| Change::Put(row, good.clone()))).await;
    let archive = archive.reopen().await;
    assert_eq!(check_articles(&archive).await, 0);
    archive.finish().await
}

async fn a_restored_archive_trains_its_own(engine: Engine) -> TestResult {
    let archive = trained(engine).await;
    archive
        .delete(article(PLAIN).id(), "unwanted", time(2))
        .await?;
    let files = Files::of(&[bytes_from(&archive, 1).await?]);
    let chain: Chain = files.chain()?;
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let (restored, guard) = Archive::open_to_restore(Arc::clone(&store), limits()).await?;
    restored.restore(&chain).await?;
    put_worded(&restored, ALL..ALL + 1).await?;
    restored.trained().await?;
    put_worded(&restored, ALL + 1..ALL + 2).await?;
    put_worded(&archive, ALL..ALL + 2).await?;
    check_same_articles(&archive, &restored, &[article(PLAIN).id()]).await;
    crate::server::check(&restored).await;
    let last = store.get_many(vec![key::log(restored.committed())]).await?;
    let last = last[0].as_ref().expect("a record");
    assert!(record::peek_dictionary(last).is_some());
    guard.close().await?;
    archive.finish().await
}

/// What has nothing in common makes no dictionary, and puts go on.
#[tokio::test]
async fn an_archive_without_a_dictionary_goes_on() -> TestResult {
    let few = Limits {
        dictionary_records_min: 1,
        ..Limits::default()
    };
    let archive = TestArchive::with_limits(Engine::Memory, few).await;
    for n in 0..8 {
        let large = ArticleFields {
            // Of several rows, which are no samples.
            body: noise(n, 200_000),
            ..fields(n)
        };
        archive.put_fields(large).await;
    }
    assert_eq!(archive.format(), 2);
    archive.finish().await
}

/// Puts and trains until something fails. Returns the articles that were acknowledged.
async fn run(archive: &Archive) -> (u32, Option<Error>) {
    let mut acknowledged = 0;
    for first in (0..ALL).step_by(20) {
        if let Err(error) = put_worded(archive, first..first + 20).await {
            return (acknowledged, Some(error));
        }
        acknowledged = first + 20;
        if acknowledged == PLAIN
            && let Err(error) = archive.trained().await
        {
            return (acknowledged, Some(error));
        }
    }
    (acknowledged, None)
}

/// Whatever write fails, the one with the dictionary among them: what was acknowledged is there.
#[tokio::test]
async fn a_crash_at_any_write_loses_no_dictionary() -> TestResult {
    for fault in FAULTS {
        let (mut write, mut with_count, mut acknowledged_count) = (1, 0, 0);
        loop {
            let store = FaultyStore::empty(Fails::Write(write, fault)).await;
            let (archive, guard): (Archive, Guard) =
                Archive::open(Arc::clone(&store) as Arc<dyn Store>, limits()).await?;
            let (acknowledged, failure) = run(&archive).await;
            let closed = guard.close().await;
            assert_eq!(closed.is_err(), failure.is_some(), "{failure:?}");

            let disk = FaultyStore::on(&store.durable, Fails::Never).await;
            let (archive, guard) = Archive::open(disk, limits()).await?;
            crate::server::check(&archive).await;
            for n in 0..acknowledged {
                let stored = archive.get(&article(n).id()).await?;
                assert_eq!(stored.article, article(n));
            }
            with_count += u32::from(archive.format() == 3);
            acknowledged_count += acknowledged;
            guard.close().await?;
            if failure.is_none() {
                break;
            }
            write += 1;
        }
        println!(
            "{fault:?}: {write} crashes, {with_count} with a dictionary, {acknowledged_count} \
             articles acknowledged, 0 lost"
        );
        assert!(write > 6 && with_count > 1, "{write}, {with_count}");
    }
    Ok(())
}

/// What operators see of damage.
#[tokio::test(flavor = "multi_thread")]
async fn verify_tells_operators_of_dictionaries() -> TestResult {
    let archive = trained(Engine::Sled).await;
    let id = named(&archive, ALL).await.expect("a dictionary");
    let rows = [0, 1].map(|copy| meta::dictionary(id, copy));
    let good = read(&archive, &rows[0]).await;
    let keep = async |archive: TestArchive, changes: Vec<Change>| {
        write(&archive, changes).await;
        archive.close_and_keep().await
    };
    let folder = keep(archive, vec![Change::Remove(rows[1].clone())]).await?;
    let place = folder.path().join("archive");
    let scratch = Scratch::new();
    let verify = |arguments: &[&str]| scratch.run_on(place.to_str().unwrap(), arguments);
    let found = verify(&["verify"]).exits(1).out;
    let line = format!("dictionary damaged: copy 1 of dictionary {id} is damaged or missing");
    assert!(found.starts_with(&line), "{found}");
    assert!(found.contains("; run verify --repair\n"), "{found}");
    let repaired = verify(&["verify", "--repair"]).exits(0).out;
    let line = "0 records set aside, 1 halves of deletes and copies of dictionaries rebuilt";
    assert!(repaired.contains(line), "{repaired}");
    verify(&["verify"]).exits(0);

    // Both are lost, and a get, a check and a repair say so.
    let store = Engine::Sled.open(folder.path()).await?;
    let changes = rows.clone().map(|row| Change::Put(row, b"rot".to_vec()));
    crate::verify::write_to(&*store, changes).await;
    store.close().await?;
    let lost = verify(&["get", &article(PLAIN).id().to_string()]).exits(2);
    assert!(
        lost.err
            .contains(&format!("needs dictionary {id}, which is lost"))
    );
    let found = verify(&["verify", "--json"]).exits(1).objects();
    assert_eq!(found[0]["kind"], "dictionary_lost");
    assert_eq!(found[0]["sequence"], PLAIN + 1);
    let refused = verify(&["verify", "--repair"]).exits(2);
    assert!(refused.err.contains("from a backup"), "{}", refused.err);

    let store = Engine::Sled.open(folder.path()).await?;
    let changes = rows.map(|row| Change::Put(row, good.clone()));
    crate::verify::write_to(&*store, changes).await;
    store.close().await?;
    verify(&["verify"]).exits(0);
    Ok(())
}
