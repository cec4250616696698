//! A store that fails on purpose, at every write and at every read of a workload.
//!
//! The fault that it models is the one that databases lose data by: `fsync` fails, or the machine
//! stops, at some moment between two syncs. What was synced before is on disk. What was written
//! since is in the page cache of a kernel that may have dropped it (Linux marks the pages of a
//! failed `fsync` clean, so a second `fsync` succeeds without having written them), and a disk may
//! have kept what it reported as failed. So a failed write tells nothing about what is on disk, and
//! what the process goes on to read tells nothing either. Torn sectors and disks that lie about a
//! sync that succeeded are not modelled: they are left to the checksums.
//!
//! A crash is dropping the archive and opening another one on what was durable by then.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use pressmark::archive::{
    Archive, Delete, Guard, Limits, Prepared, Put, PutOutcome, Query, Selector, SelectorFields,
};
use pressmark::article::{Article, ArticleFields, ContentHash};
use pressmark::error::{Error, Kind, Reason};
use pressmark::store::{
    Batch, Chunk, Direction, Durability, MemoryStore, Poison, Scan, Store, StoreStats,
};
use tokio::sync::Mutex;

use crate::paging::ORDERS;
use crate::server::check;
use crate::support::{
    SOURCES, TestResult, articles_max, check_error, fields, noise, prepared, time,
};

/// What happens to the batch of the write that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is not applied at all.
    Lost,
    /// The process reads it from now on, and the disk does not have it.
    NotSynced,
    /// It is applied and on disk, only the answer says otherwise.
    Synced,
}

pub const FAULTS: [Fault; 3] = [Fault::Lost, Fault::NotSynced, Fault::Synced];

/// A store in memory with a second image of what is durable.
#[derive(Debug)]
pub struct FaultyStore {
    live: MemoryStore,
    pub durable: MemoryStore,
    /// What is applied and not durable. Held through a write, so that writes are in order.
    unsynced: Mutex<Vec<Batch>>,
    poison: Poison,
    fails: Fails,
    write_count: AtomicUsize,
    read_count: AtomicUsize,
}

/// Which call fails, counted from 0. Writes fail from then on, a read fails once.
#[derive(Clone, Copy, Debug)]
pub enum Fails {
    Never,
    Write(usize, Fault),
    Read(usize),
}

impl FaultyStore {
    /// A store whose disk holds what another one left behind.
    pub async fn on(disk: &MemoryStore, fails: Fails) -> Arc<Self> {
        let scan = Scan {
            range: vec![]..vec![0xff; 64],
            direction: Direction::Ascending,
            rows_max: usize::MAX,
            bytes_max: usize::MAX,
        };
        let rows = disk.scan_many(vec![scan]).await.unwrap().remove(0).rows;
        let mut batch = Batch::new();
        for row in rows {
            batch.put(row.key.to_vec(), row.value.to_vec());
        }
        let (live, durable) = (MemoryStore::new(), MemoryStore::new());
        for image in [&live, &durable] {
            image
                .write(batch.clone(), Durability::Synced)
                .await
                .unwrap();
        }
        Arc::new(Self {
            live,
            durable,
            unsynced: Mutex::default(),
            poison: Poison::default(),
            fails,
            write_count: AtomicUsize::new(0),
            read_count: AtomicUsize::new(0),
        })
    }

    pub async fn empty(fails: Fails) -> Arc<Self> {
        Self::on(&MemoryStore::new(), fails).await
    }

    /// Brings what was applied to the disk.
    async fn promote(&self, unsynced: &mut Vec<Batch>) -> Result<(), Error> {
        for batch in unsynced.drain(..) {
            self.durable.write(batch, Durability::Synced).await?;
        }
        Ok(())
    }

    fn count_read(&self) -> Result<(), Error> {
        let number = self.read_count.fetch_add(1, Ordering::Relaxed);
        match self.fails {
            Fails::Read(failing) if failing == number => {
                Err(Error::new(Reason::StoreFailed, "a read fails on purpose"))
            }
            Fails::Never | Fails::Read(_) | Fails::Write(..) => Ok(()),
        }
    }
}

#[async_trait]
impl Store for FaultyStore {
    fn engine(&self) -> &'static str {
        "faulty"
    }

    async fn get_many(&self, keys: Vec<Vec<u8>>) -> Result<Vec<Option<Bytes>>, Error> {
        self.count_read()?;
        self.live.get_many(keys).await
    }

    async fn scan_many(&self, scans: Vec<Scan>) -> Result<Vec<Chunk>, Error> {
        self.count_read()?;
        self.live.scan_many(scans).await
    }

    async fn write(&self, batch: Batch, durability: Durability) -> Result<(), Error> {
        let mut unsynced = self.unsynced.lock().await;
        self.poison.check()?;
        let number = self.write_count.fetch_add(1, Ordering::Relaxed);
        let fault = match self.fails {
            Fails::Write(failing, fault) if failing == number => Some(fault),
            Fails::Never | Fails::Read(_) | Fails::Write(..) => None,
        };
        if fault != Some(Fault::Lost) {
            self.live.write(batch.clone(), durability).await?;
            unsynced.push(batch);
        }
        if durability == Durability::Synced && matches!(fault, None | Some(Fault::Synced)) {
            self.promote(&mut unsynced).await?;
        }
        match fault {
            None => Ok(()),
            Some(fault) => {
                let what = format!("write {number} fails on purpose: {fault:?}");
                let error = Error::new(Reason::StoreFailed, what);
                self.poison.set(&error);
                Err(error)
            }
        }
    }

    async fn stats(&self) -> Result<StoreStats, Error> {
        self.live.stats().await
    }

    async fn close(&self) -> Result<(), Error> {
        let mut unsynced = self.unsynced.lock().await;
        self.poison.check()?;
        self.promote(&mut unsynced).await?;
        self.live.close().await
    }
}

/// One call of a client.
#[derive(Clone, Debug)]
enum Step {
    /// Puts that are queued together, so that they are one group and one write.
    Put(Vec<u32>),
    /// The delete of one article.
    Delete(u32),
}

/// The answer to a step.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Put(Vec<Put>),
    Deleted(Delete),
}

/// Articles of several rows each.
const LARGE: [u32; 2] = [20, 21];

/// The article that is a revision of the second one, and comes in a group with others.
const REVISION: u32 = 10;

/// Everything that a writer does: new articles alone and in groups, duplicates of the archive and
/// of the group, revisions, articles of several rows, deletes of all of them, deletes again, and
/// puts of what is deleted.
fn workload() -> Vec<Step> {
    vec![
        Step::Put(vec![1]),
        Step::Put(vec![2, 3, 4, 3]),
        Step::Put(vec![1]),
        Step::Put(vec![5, REVISION, 2]),
        Step::Put(vec![LARGE[0]]),
        Step::Delete(3),
        Step::Put(vec![3]),
        Step::Put(vec![6, LARGE[1], 7, 3, 1]),
        Step::Delete(LARGE[0]),
        Step::Delete(3),
        Step::Put(vec![LARGE[0], 8]),
        Step::Delete(REVISION),
        Step::Put(vec![9, REVISION]),
        Step::Delete(8),
        Step::Put(vec![11, 12, 13]),
    ]
}

/// Writes that the workload makes: one at the beginning of the archive, and one for each step but
/// the two that only repeat a put and the one that only repeats a delete.
const WRITES: usize = 1 + 15 - 3;

/// The numbers of the articles that are deleted at the end.
const DELETED: [u32; 4] = [3, LARGE[0], REVISION, 8];

/// The articles of the workload by their numbers, made once: compressing takes most of the time.
struct Articles(BTreeMap<u32, (Article, Prepared)>);

impl Articles {
    fn of(steps: &[Step]) -> Self {
        let numbers = steps.iter().flat_map(|step| match step {
            Step::Put(numbers) => numbers.clone(),
            Step::Delete(number) => vec![*number],
        });
        let make = |number: u32| {
            let fields = match number {
                REVISION => ArticleFields {
                    url: fields(2).url,
                    ..fields(number)
                },
                _ if LARGE.contains(&number) => ArticleFields {
                    body: noise(number, 300_000),
                    ..fields(number)
                },
                _ => fields(number),
            };
            let article = Article::new(fields).unwrap();
            let prepared = prepared(&article);
            (article, prepared)
        };
        Self(numbers.map(|number| (number, make(number))).collect())
    }

    fn id(&self, number: u32) -> ContentHash {
        self.0[&number].1.id()
    }

    async fn run(&self, archive: &Archive, step: &Step) -> Result<Answer, Error> {
        match step {
            Step::Delete(number) => {
                let delete = archive
                    .delete(self.id(*number), "unwanted", time(0))
                    .await?;
                Ok(Answer::Deleted(delete))
            }
            Step::Put(numbers) => {
                let mut pending = Vec::new();
                for number in numbers {
                    pending.push(archive.enqueue(self.0[number].1.clone()).await?);
                }
                let mut puts = Vec::new();
                for put in pending {
                    puts.push(put.result().await?);
                }
                Ok(Answer::Put(puts))
            }
        }
    }
}

/// What clients know of the articles: what was acknowledged, and what was tried and failed.
#[derive(Default)]
struct Clients {
    stored: BTreeSet<u32>,
    deleted: BTreeSet<u32>,
    put_failed: BTreeSet<u32>,
    delete_failed: BTreeSet<u32>,
}

impl Clients {
    fn learn(&mut self, step: &Step, answer: &Result<Answer, Error>) {
        match (step, answer) {
            (Step::Put(numbers), Ok(Answer::Put(puts))) => {
                for (number, put) in numbers.iter().zip(puts) {
                    if put.outcome == PutOutcome::Deleted {
                        self.deleted.insert(*number);
                    } else {
                        self.stored.insert(*number);
                    }
                }
            }
            (Step::Delete(number), Ok(Answer::Deleted(_))) => {
                self.deleted.insert(*number);
            }
            (Step::Put(numbers), Err(_)) => self.put_failed.extend(numbers),
            (Step::Delete(number), Err(_)) => {
                self.delete_failed.insert(*number);
            }
            (step, answer) => panic!("{step:?} was answered with {answer:?}"),
        }
    }
}

/// What an archive says of an article.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Stored,
    Deleted,
    Absent,
}

/// Reads an article in every way there is. All must say the same, and the text must be its own.
async fn find(archive: &Archive, article: &Article) -> Found {
    let id = article.id();
    let missing = archive.find_missing(&[id]).await.unwrap();
    let lookup = archive.lookup(&[id], &articles_max(1)).await.unwrap();
    let by_prefix = archive.get_by_prefix(&id.to_string()[..16]).await;
    match archive.get(&id).await {
        Ok(stored) => {
            assert_eq!(stored.article.render(), article.render());
            assert_eq!(by_prefix.unwrap(), stored);
            assert_eq!(lookup.found, [stored]);
            assert_eq!(missing.stored_count, 1);
            Found::Stored
        }
        Err(error) if error.reason() == Reason::ArticleDeleted => {
            check_error(by_prefix, Reason::ArticleDeleted, &["unwanted"]);
            assert_eq!((lookup.deleted, missing.deleted), (vec![id], vec![id]));
            Found::Deleted
        }
        result => {
            check_error(result, Reason::ArticleNotFound, &[]);
            check_error(by_prefix, Reason::ArticleNotFound, &[]);
            assert_eq!((lookup.missing, missing.missing), (vec![id], vec![id]));
            Found::Absent
        }
    }
}

async fn open(store: &Arc<FaultyStore>) -> Result<(Archive, Guard), Error> {
    Archive::open(Arc::clone(store) as Arc<dyn Store>, Limits::default()).await
}

/// Runs all steps on an archive that does not fail, and proves what is there at the end.
async fn run_to_the_end(articles: &Articles, disk: &MemoryStore, steps: &[Step]) -> Vec<Answer> {
    let store = FaultyStore::on(disk, Fails::Never).await;
    let (archive, guard) = open(&store).await.unwrap();
    let mut answers = Vec::new();
    for step in steps {
        answers.push(articles.run(&archive, step).await.unwrap());
    }
    check_end(&archive, articles).await;
    guard.close().await.unwrap();
    answers
}

/// Proves that an archive holds what the whole workload leaves.
async fn check_end(archive: &Archive, articles: &Articles) {
    check(archive).await;
    for (number, (article, _)) in &articles.0 {
        let expected = if DELETED.contains(number) {
            Found::Deleted
        } else {
            Found::Stored
        };
        assert_eq!(find(archive, article).await, expected, "article {number}");
    }
    let stored_count = articles.0.len() - DELETED.len();
    let totals = archive.stats().await.unwrap().totals;
    assert_eq!(totals.article_count, stored_count as u64);
}

/// What the runs of one fault came to.
#[derive(Debug, Default)]
struct Counts {
    crashes: usize,
    refused: usize,
    acknowledged: usize,
    unacknowledged_there: usize,
    unacknowledged_absent: usize,
}

/// Runs the workload into a fault, crashes, and proves what is left.
async fn crash_at(articles: &Articles, write: usize, fault: Fault, counts: &mut Counts) {
    let steps = workload();
    let store = FaultyStore::empty(Fails::Write(write, fault)).await;
    let mut clients = Clients::default();
    let mut failed_at = 0;
    match open(&store).await {
        Err(error) => assert_eq!((write, error.kind()), (0, Kind::Unavailable), "{error}"),
        Ok((archive, guard)) => {
            let mut failures = 0;
            for (at, step) in steps.iter().enumerate() {
                // The client of a failed call sends it again, and others go on with theirs: an
                // answer that then says the work is done has to be as true as any other.
                let mut answer = articles.run(&archive, step).await;
                clients.learn(step, &answer);
                if let Err(error) = &answer {
                    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
                    if failures == 0 {
                        failed_at = at;
                    }
                    failures += 1;
                    answer = articles.run(&archive, step).await;
                    clients.learn(step, &answer);
                }
            }
            assert!(failures > 0, "write {write} failed");
            // Nobody reads an article that may be gone tomorrow.
            for number in clients.put_failed.difference(&clients.stored) {
                let (article, _) = &articles.0[number];
                let found = find(&archive, article).await;
                assert_eq!(found, Found::Absent, "article {number} before the crash");
            }
            counts.refused += failures;
            check_error(guard.close().await, Reason::WritesStopped, &["on purpose"]);
        }
    }
    counts.crashes += 1;

    let (archive, guard) = open(&FaultyStore::on(&store.durable, Fails::Never).await)
        .await
        .unwrap();
    check(&archive).await;
    for (number, (article, _)) in &articles.0 {
        let found = find(&archive, article).await;
        let context = format!("article {number} after {fault:?} at write {write}");
        let tried_delete = clients.delete_failed.contains(number);
        if clients.deleted.contains(number) {
            counts.acknowledged += 1;
            assert_eq!(found, Found::Deleted, "{context}");
        } else if clients.stored.contains(number) {
            counts.acknowledged += 1;
            let may_be_deleted = tried_delete && found == Found::Deleted;
            assert!(
                found == Found::Stored || may_be_deleted,
                "{context}: {found:?}"
            );
            counts.unacknowledged_there += usize::from(may_be_deleted);
            counts.unacknowledged_absent += usize::from(tried_delete && !may_be_deleted);
        } else if clients.put_failed.contains(number) {
            assert_ne!(found, Found::Deleted, "{context}");
            counts.unacknowledged_there += usize::from(found == Found::Stored);
            counts.unacknowledged_absent += usize::from(found == Found::Absent);
        } else {
            assert_eq!(found, Found::Absent, "{context}");
        }
    }
    guard.close().await.unwrap();
    run_to_the_end(articles, &store.durable, &steps[failed_at..]).await;
}

#[tokio::test]
async fn a_crash_at_any_write_loses_nothing_acknowledged() -> TestResult {
    let articles = Articles::of(&workload());
    let store = FaultyStore::empty(Fails::Never).await;
    let (archive, _guard) = open(&store).await?;
    for step in workload() {
        articles.run(&archive, &step).await?;
    }
    assert_eq!(store.write_count.load(Ordering::Relaxed), WRITES);
    check_end(&archive, &articles).await;
    for fault in FAULTS {
        let mut counts = Counts::default();
        for write in 0..WRITES {
            crash_at(&articles, write, fault, &mut counts).await;
        }
        println!("{fault:?}: {counts:?}, 0 lost");
        // Otherwise the three faults would be one.
        assert_eq!(counts.unacknowledged_there > 0, fault == Fault::Synced);
    }
    Ok(())
}

/// A read that fails says nothing about the archive: the call that needed it fails, nothing is
/// written, and the same call succeeds afterwards with the answer that it would have had.
#[tokio::test]
async fn a_failed_read_of_the_writer_changes_nothing() -> TestResult {
    let (steps, articles) = (workload(), Articles::of(&workload()));
    let expected = run_to_the_end(&articles, &MemoryStore::new(), &steps).await;
    let mut read = 0;
    loop {
        let store = FaultyStore::empty(Fails::Read(read)).await;
        let mut failures = Vec::new();
        let opened = match open(&store).await {
            Ok(opened) => opened,
            Err(error) => {
                failures.push(error);
                open(&store).await?
            }
        };
        let (archive, guard) = opened;
        for (step, expected) in steps.iter().zip(&expected) {
            let answer = match articles.run(&archive, step).await {
                Ok(answer) => answer,
                Err(error) => {
                    failures.push(error);
                    articles.run(&archive, step).await?
                }
            };
            assert_eq!(answer, *expected, "{step:?} after read {read} failed");
        }
        if failures.is_empty() {
            // The workload has no read of this number: all of them had their turn.
            break;
        }
        assert_eq!(
            failures.len(),
            1,
            "read {read} fails one call: {failures:?}"
        );
        assert_eq!(failures[0].reason(), Reason::StoreFailed, "{failures:?}");
        assert_eq!(archive.metrics().damaged.get(), 0, "read {read}");
        check_end(&archive, &articles).await;
        guard.close().await?;
        let (archive, _guard) = open(&FaultyStore::on(&store.durable, Fails::Never).await).await?;
        check_end(&archive, &articles).await;
        read += 1;
    }
    println!("{read} reads of the writer failed, 0 answers wrong");
    assert!(read > steps.len(), "the writer reads before each step");
    Ok(())
}

/// The text of an answer, to compare with that of another archive.
fn shown<T: Debug>(answer: Result<T, Error>) -> Result<String, Error> {
    answer.map(|answer| format!("{answer:?}"))
}

/// Calls everything that reads.
async fn read_everything(archive: &Archive, articles: &Articles) -> Vec<Result<String, Error>> {
    let mut answers = Vec::new();
    let mut ids = vec![ContentHash::of(b"absent")];
    for (article, _) in articles.0.values() {
        let id = article.id();
        answers.push(shown(archive.get(&id).await));
        answers.push(shown(archive.get_by_prefix(&id.to_string()[..16]).await));
        answers.push(shown(archive.get_by_url(article.url()).await));
        ids.push(id);
    }
    answers.push(shown(archive.find_missing(&ids).await));
    answers.push(shown(archive.lookup(&ids, &articles_max(9)).await));
    let by_url = SelectorFields {
        url: fields(2).url,
        ..SelectorFields::default()
    };
    let by_sources = SelectorFields {
        sources: SOURCES[..2].iter().map(|name| (*name).to_owned()).collect(),
        ..SelectorFields::default()
    };
    let by_url_and_source = SelectorFields {
        sources: vec![fields(2).source],
        ..by_url.clone()
    };
    for fields in [
        SelectorFields::default(),
        by_url,
        by_sources,
        by_url_and_source,
    ] {
        let selector = Selector::new(fields, archive.limits()).unwrap();
        answers.push(shown(archive.count(&selector).await));
        for order in ORDERS {
            let selector = selector.clone();
            let query = Query { selector, order };
            answers.push(shown(archive.page(&query, "", &articles_max(9)).await));
        }
    }
    answers.push(shown(archive.list_sources(3, "").await));
    answers.push(shown(archive.stats().await));
    let report = archive.verify().await.map(|mut report| {
        // How long it took is no answer.
        report.elapsed = std::time::Duration::ZERO;
        report
    });
    answers.push(shown(report));
    answers
}

/// Above all, verify must not take a store that cannot be read for a damaged archive.
#[tokio::test]
async fn a_failed_read_is_never_a_wrong_answer() -> TestResult {
    let articles = Articles::of(&workload());
    let disk = FaultyStore::empty(Fails::Never).await;
    let (archive, guard) = open(&disk).await?;
    for step in workload() {
        articles.run(&archive, &step).await?;
    }
    let expected = read_everything(&archive, &articles).await;
    guard.close().await?;

    let mut read = 0;
    loop {
        let store = FaultyStore::on(&disk.durable, Fails::Read(read)).await;
        let (archive, _guard) = match open(&store).await {
            Ok(opened) => opened,
            Err(error) => {
                // The first reads are those of opening.
                assert_eq!(error.reason(), Reason::StoreFailed, "{error}");
                read += 1;
                continue;
            }
        };
        let mut failure_count = 0;
        for (answer, expected) in read_everything(&archive, &articles)
            .await
            .iter()
            .zip(&expected)
        {
            match (answer, expected) {
                (Ok(answer), Ok(expected)) => assert_eq!(answer, expected, "read {read}"),
                (Err(error), _) if error.reason() == Reason::StoreFailed => failure_count += 1,
                (Err(error), Err(expected)) => assert_eq!(error.to_string(), expected.to_string()),
                (answer, expected) => panic!("{answer:?} is not {expected:?}, read {read}"),
            }
        }
        assert_eq!(archive.metrics().damaged.get(), 0, "read {read}");
        if failure_count == 0 {
            break;
        }
        assert_eq!(failure_count, 1, "read {read} fails one call");
        read += 1;
    }
    let calls = expected.len();
    println!(
        "{} reads of {calls} calls failed, 0 answers wrong",
        read - 1
    );
    assert!(read > calls, "every call reads");
    Ok(())
}
