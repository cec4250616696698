//! Random sequences of all operations of an archive, restarts among them, against a naive model:
//! every answer is the one that a list of facts gives. And many clients at once, whose work must
//! add up.
//!
//! `PRESSMARK_TEST_OPERATIONS` says how many operations each engine gets.

use std::collections::{BTreeMap, BTreeSet};

use pressmark::archive::{
    Archive, Delete, DeleteOutcome, Limits, Lookup, Missing, Order, Prepared, Put, PutOutcome,
    Query, Source, StoredArticle,
};
use pressmark::article::{Article, ContentHash, Timestamp};
use pressmark::error::Reason;
use pressmark::key::Sequence;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};

use crate::facts::{BODY_COUNT, Known, URL_COUNT, Wanted, budget, url_text};
use crate::load::{rounds, seed};
use crate::paging::ORDERS;
use crate::support::{
    Engine, FIRST_DATE, SOURCES, TestArchive, TestResult, articles_max, check_error, prepared, time,
};

on_each_engine!(
    every_operation_equals_the_model,
    clients_at_once_add_up_to_the_union,
);

/// Operations on one archive before the next one is begun: with more, the walks of the model would
/// take most of the time.
const OPERATIONS_PER_ARCHIVE: usize = 500;

/// What can be done, and how often it is, in parts of the sum.
const OPERATIONS: [(Operation, u32); 16] = [
    (Operation::Put, 24),
    (Operation::PutLong, 1),
    (Operation::PutGroup, 6),
    (Operation::PutAgain, 5),
    (Operation::PutDeleted, 4),
    (Operation::Delete, 8),
    (Operation::DeleteAgain, 4),
    (Operation::Get, 12),
    (Operation::GetByPrefix, 12),
    (Operation::GetByUrl, 6),
    (Operation::Lookup, 5),
    (Operation::FindMissing, 5),
    (Operation::Page, 20),
    (Operation::Count, 10),
    (Operation::Figures, 5),
    (Operation::Reopen, 1),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Operation {
    Put,
    PutLong,
    PutGroup,
    PutAgain,
    PutDeleted,
    Delete,
    DeleteAgain,
    Get,
    GetByPrefix,
    GetByUrl,
    Lookup,
    FindMissing,
    Page,
    Count,
    Figures,
    Reopen,
}

/// An article that was stored, and its delete if it was deleted.
struct Fact {
    known: Known,
    id: ContentHash,
    archived_at: Timestamp,
    article: Article,
    deletion: Option<Delete>,
}

impl Fact {
    fn is_stored(&self) -> bool {
        self.deletion.is_none()
    }

    fn as_stored(&self) -> StoredArticle {
        StoredArticle {
            id: self.id,
            sequence: self.known.sequence,
            archived_at: self.archived_at,
            article: self.article.clone(),
        }
    }
}

/// Pages that somebody reads one by one while other things happen.
struct Walk {
    wanted: Wanted,
    order: Order,
    as_of: Sequence,
    token: String,
    last: Option<Known>,
}

/// The articles in the order of their arrival, and the last sequence. Nothing else is known.
struct Model {
    random: StdRng,
    facts: Vec<Fact>,
    last: Sequence,
    /// Numbers made articles and the moments at which something is done.
    clock: u32,
    walks: Vec<Walk>,
}

impl Model {
    fn new(seed: u64) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
            facts: Vec::new(),
            last: 0,
            clock: 0,
            walks: Vec::new(),
        }
    }

    fn now(&mut self) -> Timestamp {
        self.clock += 1;
        time(FIRST_DATE + i64::from(self.clock))
    }

    fn stored(&self) -> impl Iterator<Item = &Fact> {
        self.facts.iter().filter(|fact| fact.is_stored())
    }

    fn known(&self) -> impl Iterator<Item = &Known> {
        self.stored().map(|fact| &fact.known)
    }

    fn find(&self, id: &ContentHash) -> Option<&Fact> {
        self.facts.iter().find(|fact| fact.id == *id)
    }

    /// An article that is stored or one that is deleted, if there is one.
    fn pick(&mut self, is_stored: bool) -> Option<usize> {
        let facts = self.facts.iter().enumerate();
        let fit = facts.filter(|(_, fact)| fact.is_stored() == is_stored);
        let fit: Vec<usize> = fit.map(|(at, _)| at).collect();
        fit.choose(&mut self.random).copied()
    }

    /// Mostly the id of an article that was stored once, else one that never was.
    fn any_id(&mut self) -> ContentHash {
        let absent = ContentHash::of(&self.random.random::<[u8; 8]>());
        let some = self.facts.choose(&mut self.random);
        some.filter(|_| self.random.random_bool(0.9))
            .map_or(absent, |fact| fact.id)
    }

    fn any_ids(&mut self) -> Vec<ContentHash> {
        let count = self.random.random_range(1..40);
        (0..count).map(|_| self.any_id()).collect()
    }

    fn new_article(&mut self) -> (Known, Article) {
        let known = Known::random(&mut self.random);
        self.make(known)
    }

    fn new_long_article(&mut self) -> (Known, Article) {
        let known = Known::random(&mut self.random);
        let body = BODY_COUNT + self.random.random_range(0..1000);
        self.make(Known { body, ..known })
    }

    fn make(&mut self, known: Known) -> (Known, Article) {
        self.clock += 1;
        let fields = known.fields(format!("Article {}", self.clock), &mut self.random);
        (known, Article::new(fields).unwrap())
    }

    fn again(&self, at: usize) -> (Known, Article) {
        (self.facts[at].known.clone(), self.facts[at].article.clone())
    }

    /// What a put has to answer, after which the model has the article.
    fn expect_put(&mut self, known: Known, article: Article, now: Timestamp) -> Put {
        let id = article.id();
        if let Some(fact) = self.find(&id) {
            let outcome = if fact.is_stored() {
                PutOutcome::Duplicate
            } else {
                PutOutcome::Deleted
            };
            let sequence = fact.known.sequence;
            return Put {
                id,
                sequence,
                outcome,
            };
        }
        let outcome = match self.latest_at(known.url) {
            None => PutOutcome::Created,
            Some(fact) => PutOutcome::Revision { previous: fact.id },
        };
        self.last += 1;
        let sequence = self.last;
        self.facts.push(Fact {
            known: Known { sequence, ..known },
            id,
            archived_at: now,
            article,
            deletion: None,
        });
        Put {
            id,
            sequence,
            outcome,
        }
    }

    fn latest_at(&self, url: Option<usize>) -> Option<&Fact> {
        let url = url?;
        self.stored()
            .filter(|fact| fact.known.url == Some(url))
            .last()
    }

    async fn put(&mut self, archive: &Archive, all: Vec<(Known, Article)>) -> TestResult {
        let now = self.now();
        let mut pending = Vec::new();
        let mut expected = Vec::new();
        for (known, article) in all {
            let prepared = Prepared::new(article.clone(), now, None)?;
            pending.push(archive.enqueue(prepared).await?);
            expected.push(self.expect_put(known, article, now));
        }
        for (put, expected) in pending.into_iter().zip(expected) {
            assert_eq!(put.result().await?, expected);
        }
        assert_eq!(archive.committed(), self.last);
        Ok(())
    }

    /// New articles among old, deleted and repeated ones.
    async fn put_group(&mut self, archive: &Archive) -> TestResult {
        let mut group: Vec<(Known, Article)> = Vec::new();
        for _ in 0..self.random.random_range(2..12) {
            let old = match self.random.random_range(0..10) {
                0 => self.pick(true).map(|at| self.again(at)),
                1 => self.pick(false).map(|at| self.again(at)),
                2 => group.choose(&mut self.random).cloned(),
                _ => None,
            };
            let article = old.unwrap_or_else(|| self.new_article());
            group.push(article);
        }
        self.put(archive, group).await
    }

    async fn delete(&mut self, archive: &Archive, at: Option<usize>) -> TestResult {
        let now = self.now();
        let reason = format!("reason {}", self.clock);
        let Some(fact) = at.map(|at| &mut self.facts[at]) else {
            let absent = archive.delete(ContentHash::of(b"absent"), &reason, now);
            check_error(absent.await, Reason::ArticleNotFound, &[]);
            return Ok(());
        };
        let expected = match &fact.deletion {
            Some(first) => Delete {
                outcome: DeleteOutcome::AlreadyDeleted,
                ..first.clone()
            },
            None => {
                self.last += 1;
                let first = Delete {
                    id: fact.id,
                    outcome: DeleteOutcome::Deleted,
                    sequence: self.last,
                    deleted_at: now,
                    reason: reason.clone(),
                };
                fact.deletion.insert(first).clone()
            }
        };
        assert_eq!(archive.delete(fact.id, &reason, now).await?, expected);
        assert_eq!(archive.committed(), self.last);
        Ok(())
    }

    async fn get(&mut self, archive: &Archive) {
        let id = self.any_id();
        check_one(archive.get(&id).await, self.find(&id));
    }

    async fn get_by_prefix(&mut self, archive: &Archive) {
        let digits = self.any_id().to_string();
        let length = match self.random.random_range(0..3) {
            0 => self.random.random_range(1..4),
            _ => self.random.random_range(4..=digits.len()),
        };
        let prefix = &digits[..length];
        let read = archive.get_by_prefix(prefix).await;
        let mut fit: Vec<&Fact> = self.facts.iter().collect();
        fit.retain(|fact| fact.id.to_string().starts_with(prefix));
        if fit.len() < 2 {
            return check_one(read, fit.first().copied());
        }
        let mut ids: Vec<String> = fit.iter().map(|fact| fact.id.to_string()).collect();
        ids.sort();
        ids.truncate(5);
        check_error(read, Reason::PrefixAmbiguous, &[&ids.join(", ")]);
    }

    async fn get_by_url(&mut self, archive: &Archive) {
        // One more URL than there are.
        let url = self.random.random_range(0..=URL_COUNT);
        let text = url_text(url, &mut self.random);
        check_one(archive.get_by_url(&text).await, self.latest_at(Some(url)));
    }

    async fn lookup(&mut self, archive: &Archive) -> TestResult {
        let ids = self.any_ids();
        let count_max = self.random.random_range(1..40);
        let mut expected = Lookup::default();
        for id in once_each(&ids) {
            match self.find(&id) {
                None => expected.missing.push(id),
                Some(fact) if !fact.is_stored() => expected.deleted.push(id),
                Some(_) if expected.found.len() == count_max => expected.deferred.push(id),
                Some(fact) => expected.found.push(fact.as_stored()),
            }
        }
        let found = archive.lookup(&ids, &articles_max(count_max)).await?;
        let summary = |lookup: &Lookup| {
            let found = lookup.found.iter().map(|stored| stored.id);
            let ids = found.collect::<Vec<_>>();
            let others = [&lookup.missing, &lookup.deleted, &lookup.deferred];
            (ids, others.map(Clone::clone))
        };
        assert_eq!(summary(&found), summary(&expected));
        assert!(found == expected, "a text differs");
        Ok(())
    }

    async fn find_missing(&mut self, archive: &Archive) -> TestResult {
        let ids = self.any_ids();
        let mut expected = Missing::default();
        for id in once_each(&ids) {
            match self.find(&id) {
                None => expected.missing.push(id),
                Some(fact) if !fact.is_stored() => expected.deleted.push(id),
                Some(_) => expected.stored_count += 1,
            }
        }
        assert_eq!(archive.find_missing(&ids).await?, expected);
        Ok(())
    }

    /// Reads some pages of a new walk, or goes on with one that was left a while ago.
    async fn page(&mut self, archive: &Archive) -> TestResult {
        let at = self.random.random_range(0..4);
        let mut walk = if at < self.walks.len() {
            self.walks.swap_remove(at)
        } else {
            Walk {
                wanted: Wanted::random(&mut self.random),
                order: *ORDERS.choose(&mut self.random).unwrap(),
                as_of: self.last,
                token: String::new(),
                last: None,
            }
        };
        for _ in 0..self.random.random_range(1..50) {
            let query = Query {
                selector: walk.wanted.selector(&mut self.random),
                order: walk.order,
            };
            let page_budget = budget(&mut self.random);
            let page = archive.page(&query, &walk.token, &page_budget).await?;
            assert_eq!(page.as_of, walk.as_of);
            let mut expected = walk.wanted.expected(self.known(), walk.order);
            expected.retain(|known| {
                let last = walk.last.as_ref();
                let is_behind = last.is_none_or(|last| known.compare(last, walk.order).is_gt());
                is_behind && known.sequence <= walk.as_of
            });
            if page.next_token.is_some() {
                assert!(!page.articles.is_empty(), "{query:?} makes progress");
                expected.truncate(page.articles.len());
            }
            let last = expected.last().map(|known| (*known).clone());
            let expected = expected.iter().map(|known| known.sequence);
            let expected: Vec<Sequence> = expected.collect();
            let found = page.articles.iter().map(|stored| stored.sequence);
            assert_eq!(found.collect::<Vec<_>>(), expected, "{query:?}");
            for stored in &page.articles {
                check_text(stored, self.at(stored.sequence));
            }
            walk.last = last.or(walk.last);
            match page.next_token {
                Some(token) => walk.token = token,
                None => return Ok(()),
            }
        }
        self.walks.push(walk);
        Ok(())
    }

    fn at(&self, sequence: Sequence) -> &Fact {
        let found = self.facts.iter().find(|f| f.known.sequence == sequence);
        found.expect("the model knows it")
    }

    async fn count(&mut self, archive: &Archive) -> TestResult {
        let wanted = Wanted::random(&mut self.random);
        let selector = wanted.selector(&mut self.random);
        let expected = wanted.expected(self.known(), ORDERS[0]).len() as u64;
        let counted = archive.count(&selector).await?;
        assert_eq!(counted, (expected, self.last), "{wanted:?}");
        Ok(())
    }

    /// Compares the sources, the totals and the outcome of the full check.
    async fn figures(&mut self, archive: &Archive) -> TestResult {
        let mut expected = Vec::new();
        for (source, name) in SOURCES.iter().enumerate() {
            let all: Vec<&Known> = self.known().filter(|k| k.source == source).collect();
            let dates = all.iter().filter_map(|known| known.published_at);
            if !all.is_empty() {
                expected.push(Source {
                    name: (*name).to_owned(),
                    article_count: all.len() as u64,
                    first_published_at: dates.clone().min(),
                    last_published_at: dates.max(),
                });
            }
        }
        let (mut found, mut token) = (Vec::new(), String::new());
        loop {
            let count_max = self.random.random_range(1..6);
            let page = archive.list_sources(count_max, &token).await?;
            found.extend(page.sources);
            match page.next_token {
                Some(next) => token = next,
                None => break,
            }
        }
        assert_eq!(found, expected);

        let stored_count = self.stored().count() as u64;
        let deleted_count = self.facts.len() as u64 - stored_count;
        let text_bytes = self.stored().map(|fact| fact.article.render().len() as u64);
        let stats = archive.stats().await?;
        let totals = stats.totals;
        assert_eq!(
            (
                totals.article_count,
                totals.deleted_count,
                totals.text_bytes
            ),
            (stored_count, deleted_count, text_bytes.sum())
        );
        assert_eq!((stats.last_sequence, stats.queued_count), (self.last, 0));

        let report = archive.verify().await?;
        assert_eq!(report.findings, []);
        assert_eq!(
            (report.article_count, report.deletion_count),
            (stored_count, deleted_count)
        );
        Ok(())
    }

    async fn run(&mut self, archive: TestArchive, operation: Operation) -> TestArchive {
        let done = match operation {
            Operation::Reopen => {
                let archive = archive.reopen().await;
                assert_eq!(archive.committed(), self.last);
                return archive;
            }
            Operation::Put => {
                let article = self.new_article();
                self.put(&archive, vec![article]).await
            }
            Operation::PutLong => {
                let article = self.new_long_article();
                self.put(&archive, vec![article]).await
            }
            Operation::PutGroup => self.put_group(&archive).await,
            Operation::PutAgain | Operation::PutDeleted => {
                let old = self.pick(operation == Operation::PutAgain);
                let old = old.map(|at| self.again(at));
                self.put(&archive, old.into_iter().collect()).await
            }
            Operation::Delete | Operation::DeleteAgain => {
                let at = self.pick(operation == Operation::Delete);
                self.delete(&archive, at).await
            }
            Operation::Get => {
                self.get(&archive).await;
                Ok(())
            }
            Operation::GetByPrefix => {
                self.get_by_prefix(&archive).await;
                Ok(())
            }
            Operation::GetByUrl => {
                self.get_by_url(&archive).await;
                Ok(())
            }
            Operation::Lookup => self.lookup(&archive).await,
            Operation::FindMissing => self.find_missing(&archive).await,
            Operation::Page => self.page(&archive).await,
            Operation::Count => self.count(&archive).await,
            Operation::Figures => self.figures(&archive).await,
        };
        done.unwrap();
        archive
    }
}

/// Compares whole articles. Long bodies would drown the message of a failure.
fn check_text(stored: &StoredArticle, fact: &Fact) {
    let is_same = *stored == fact.as_stored();
    assert!(is_same, "{} at {}", fact.id, fact.known.sequence);
}

/// Compares the read of one article with what the model knows of it.
fn check_one(read: Result<StoredArticle, pressmark::error::Error>, fact: Option<&Fact>) {
    match fact {
        None => {
            check_error(read, Reason::ArticleNotFound, &[]);
        }
        Some(fact) => match &fact.deletion {
            None => check_text(&read.unwrap(), fact),
            Some(deletion) => {
                let parts = [&*fact.id.to_string(), &*deletion.reason];
                check_error(read, Reason::ArticleDeleted, &parts);
            }
        },
    }
}

fn once_each(ids: &[ContentHash]) -> Vec<ContentHash> {
    let mut seen = BTreeSet::new();
    let ids = ids.iter().copied();
    ids.filter(|id| seen.insert(id.to_string())).collect()
}

pub async fn every_operation_equals_the_model(engine: Engine) -> TestResult {
    let mut seeds = StdRng::seed_from_u64(seed());
    let total = rounds("PRESSMARK_TEST_OPERATIONS", 5200);
    // Short prefixes are allowed, so that some are ambiguous.
    let limits = Limits {
        prefix_digits_min: 1,
        ..Limits::default()
    };
    let mut counts: BTreeMap<Operation, usize> = BTreeMap::new();
    let (mut article_count, mut deleted_count) = (0, 0);
    for first in (0..total).step_by(OPERATIONS_PER_ARCHIVE) {
        let mut model = Model::new(seeds.random());
        let mut archive = TestArchive::with_limits(engine, limits).await;
        for _ in first..total.min(first + OPERATIONS_PER_ARCHIVE) {
            let choice = OPERATIONS.choose_weighted(&mut model.random, |(_, weight)| *weight);
            let operation = choice?.0;
            *counts.entry(operation).or_default() += 1;
            archive = model.run(archive, operation).await;
        }
        model.figures(&archive).await?;
        article_count += model.facts.len();
        deleted_count += model.facts.len() - model.stored().count();
        archive.finish().await?;
    }
    println!("{engine:?}: {total} operations, {article_count} articles, {deleted_count} deleted");
    println!("{engine:?}: {counts:?}");
    Ok(())
}

/// Clients that work on the same articles at once, and the articles that they work on.
const CLIENTS: u64 = 6;
const SHARED_ARTICLES: u32 = 150;

/// What one client was told.
#[derive(Default)]
struct Told {
    created: Vec<ContentHash>,
    refused: Vec<ContentHash>,
    deleted: Vec<ContentHash>,
    deleted_before: Vec<ContentHash>,
}

/// Puts most of the articles and deletes every tenth, in an order of its own.
async fn put_and_delete(archive: Archive, seed: u64) -> Result<Told, pressmark::error::Error> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut numbers: Vec<u32> = (0..SHARED_ARTICLES).collect();
    numbers.shuffle(&mut random);
    let mut told = Told::default();
    let mut pending = Vec::new();
    for number in numbers {
        let article = crate::support::article(number);
        if number % 10 == 0 && random.random_bool(0.5) {
            match archive.delete(article.id(), "unwanted", time(0)).await {
                Ok(delete) if delete.outcome == DeleteOutcome::Deleted => {
                    told.deleted.push(delete.id);
                }
                Ok(delete) => told.deleted_before.push(delete.id),
                // Nobody has put it yet.
                Err(error) => assert_eq!(error.reason(), Reason::ArticleNotFound, "{error}"),
            }
        }
        if random.random_bool(0.8) {
            pending.push(archive.enqueue(prepared(&article)).await?);
        }
    }
    for put in pending {
        let put = put.result().await?;
        match put.outcome {
            PutOutcome::Created => told.created.push(put.id),
            PutOutcome::Duplicate => {}
            PutOutcome::Deleted => told.refused.push(put.id),
            PutOutcome::Revision { .. } => panic!("each article has a URL of its own"),
        }
    }
    Ok(told)
}

pub async fn clients_at_once_add_up_to_the_union(engine: Engine) -> TestResult {
    let seed = seed();
    let archive = TestArchive::open(engine).await;
    let clients: Vec<_> = (1..=CLIENTS)
        .map(|client| tokio::spawn(put_and_delete(archive.handle(), seed ^ client)))
        .collect();
    let mut all = Told::default();
    for client in clients {
        let told = client.await??;
        all.created.extend(told.created);
        all.refused.extend(told.refused);
        all.deleted.extend(told.deleted);
        all.deleted_before.extend(told.deleted_before);
    }
    let archive = archive.reopen().await;
    assert_eq!(once_each(&all.created), all.created, "each was new once");
    assert_eq!(once_each(&all.deleted), all.deleted, "each went once");
    for id in all.refused.iter().chain(&all.deleted_before) {
        assert!(all.deleted.contains(id), "{id} was called deleted");
    }
    for number in 0..SHARED_ARTICLES {
        let article = crate::support::article(number);
        let id = article.id();
        let read = archive.get(&id).await;
        if all.deleted.contains(&id) {
            check_error(read, Reason::ArticleDeleted, &["unwanted"]);
        } else if all.created.contains(&id) {
            assert_eq!(read?.article, article);
        } else {
            check_error(read, Reason::ArticleNotFound, &[]);
        }
    }
    let (created, deleted) = (all.created.len(), all.deleted.len());
    assert_eq!(archive.committed(), (created + deleted) as u64);
    println!("{engine:?}: {CLIENTS} clients at once, {created} articles, {deleted} deleted");
    archive.finish().await
}
