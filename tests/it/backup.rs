//! Backups: what they hold, that damage is refused, restores into every engine, and followers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pressmark::archive::backup::{Chain, Decoder, RestoreSummary};
use pressmark::archive::{
    Archive, Guard, Limits, Order, Query, Selector, SelectorFields, StoredArticle,
};
use pressmark::article::{ArticleFields, ContentHash};
use pressmark::error::{Error, Reason, Result};
use pressmark::key;
use pressmark::record::Totals;
use pressmark::rpc::proto;
use pressmark::store::{Change, Direction, MemoryStore, Store};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;

use crate::cli::{Scratch, id};
use crate::faulty::{Fails, Fault, FaultyStore};
use crate::load::{break_under_load, check_acknowledged, rounds, seed};
use crate::server::{ServerProcess, admin, check, check_folder};
use crate::support::{
    Engine, TestArchive, TestResult, article, articles_max, check_error, fields, noise, prepared,
    time,
};
use crate::verify::write;

on_each_engine!(
    a_backup_restores_on_every_engine,
    increments_restore_in_order,
    a_backup_beside_writers_is_of_one_moment,
    a_quarantine_is_carried_along,
);

/// Takes the bytes of a backup.
pub async fn bytes_from(archive: &Archive, first: u64) -> Result<Vec<u8>> {
    let mut backup = archive.backup(first).await?;
    let mut bytes = Vec::new();
    while let Some(piece) = backup.next().await? {
        bytes.extend(piece);
    }
    Ok(bytes)
}

/// Backups in files of a folder of their own.
pub struct Files {
    /// Removed when this is dropped.
    _folder: TempDir,
    paths: Vec<PathBuf>,
}

impl Files {
    pub fn of(backups: &[Vec<u8>]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut paths = Vec::new();
        for (n, bytes) in backups.iter().enumerate() {
            let path = folder.path().join(format!("{n}.pmb"));
            std::fs::write(&path, bytes).unwrap();
            paths.push(path);
        }
        Self {
            _folder: folder,
            paths,
        }
    }

    pub fn chain(&self) -> Result<Chain> {
        Chain::read(&self.paths)
    }
}

/// Restores into a new store, and proves what came of it.
pub async fn restored(store: Arc<dyn Store>, chain: &Chain) -> (Archive, Guard) {
    let (archive, guard) = Archive::open_to_restore(store, Limits::default())
        .await
        .unwrap();
    let summary = archive.restore(chain).await.unwrap();
    assert_eq!(summary.last, chain.last());
    check(&archive).await;
    (archive, guard)
}

/// Everything that is stored, in order of arrival.
pub async fn everything(archive: &Archive) -> Vec<StoredArticle> {
    let query = Query {
        selector: Selector::new(SelectorFields::default(), archive.limits()).unwrap(),
        order: Order::Arrival(Direction::Ascending),
    };
    let mut all = Vec::new();
    let mut token = String::new();
    loop {
        let page = archive.page(&query, &token, &articles_max(100)).await;
        let page = page.unwrap();
        all.extend(page.articles);
        match page.next_token {
            Some(next) => token = next,
            None => return all,
        }
    }
}

/// Checks that two archives hold the same: articles, sequences, times, figures, sources, deletes.
pub async fn check_equal(archive: &Archive, other: &Archive, deleted: &[ContentHash]) {
    check_same_articles(archive, other, deleted).await;
    let totals = async |archive: &Archive| archive.stats().await.unwrap().totals;
    assert_eq!(totals(archive).await, totals(other).await);
}

/// The same but for what records take up, which is the compressor's business.
pub async fn check_same_articles(archive: &Archive, other: &Archive, deleted: &[ContentHash]) {
    assert_eq!(everything(archive).await, everything(other).await);
    let figures = async |archive: &Archive| {
        let stats = archive.stats().await.unwrap();
        let sources = archive.list_sources(1000, "").await.unwrap();
        let totals = Totals {
            stored_bytes: 0,
            ..stats.totals
        };
        (totals, stats.last_sequence, sources)
    };
    assert_eq!(figures(archive).await, figures(other).await);
    for id in deleted {
        let error = archive.get(id).await.unwrap_err();
        assert_eq!(error.reason(), Reason::ArticleDeleted);
        let same = other.get(id).await.unwrap_err();
        assert_eq!(error.to_string(), same.to_string(), "when and why");
    }
}

/// Small and large articles, revisions, undated ones, and deletes.
async fn filled(engine: Engine) -> (TestArchive, Vec<ContentHash>) {
    let archive = TestArchive::open(engine).await;
    let large = ArticleFields {
        body: noise(1, 400_000),
        ..fields(50)
    };
    let undated = ArticleFields {
        published_at: None,
        ..fields(51)
    };
    let revision = ArticleFields {
        url: fields(3).url,
        ..fields(52)
    };
    let more = [large.clone(), undated, revision];
    let puts = archive.put_all((1..40).map(fields).chain(more)).await;
    let mut deleted = Vec::new();
    for put in [&puts[2], &puts[39]] {
        archive.delete(put.id, "unwanted", time(9)).await.unwrap();
        deleted.push(put.id);
    }
    archive.put_fields(fields(60)).await;
    (archive, deleted)
}

async fn a_backup_restores_on_every_engine(engine: Engine) -> TestResult {
    let (archive, deleted) = filled(engine).await;
    let files = Files::of(&[bytes_from(&archive, 1).await?]);
    let chain = files.chain()?;
    assert_eq!((chain.first(), chain.last()), (1, archive.committed()));
    assert_eq!(chain.unfinished(), None);
    for other in [Engine::Memory, Engine::Sled, Engine::Slate] {
        let folder = TempDir::new()?;
        let (copy, guard) = restored(other.open(folder.path()).await?, &chain).await;
        check_equal(&archive, &copy, &deleted).await;
        // The copy takes up where the original was.
        let put = copy.put(prepared(&article(70))).await?;
        assert_eq!(put.sequence, chain.last() + 1);
        drop(copy);
        guard.close().await?;
    }
    archive.finish().await
}

async fn increments_restore_in_order(engine: Engine) -> TestResult {
    let (archive, mut deleted) = filled(engine).await;
    let mut backups = vec![bytes_from(&archive, 1).await?];
    let mut sequences = vec![1, archive.committed() + 1];
    // Nothing new is a backup as well.
    backups.push(bytes_from(&archive, archive.committed() + 1).await?);
    for round in 0..3_u32 {
        sequences.push(archive.committed() + 1);
        // An article of the first backup goes, and one of this increment.
        let first = article(10 + round).id();
        archive.delete(first, "later", time(round.into())).await?;
        let puts = archive
            .put_all((0..5).map(|n| fields(100 + 10 * round + n)))
            .await;
        archive.delete(puts[0].id, "soon", time(1)).await?;
        deleted.extend([first, puts[0].id]);
        backups.push(bytes_from(&archive, sequences[sequences.len() - 1]).await?);
    }
    let files = Files::of(&backups);
    let chain = files.chain()?;
    assert_eq!((chain.first(), chain.last()), (1, archive.committed()));
    let (copy, guard) = restored(Arc::new(MemoryStore::new()), &chain).await;
    check_equal(&archive, &copy, &deleted).await;
    guard.close().await?;

    // One after the other is the same as all at once, and once more is nothing.
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let (copy, _guard) = Archive::open_to_restore(store, Limits::default()).await?;
    for path in &files.paths {
        let chain = Chain::read(std::slice::from_ref(path))?;
        copy.restore(&chain).await?;
        let again = copy.restore(&chain).await?;
        assert_eq!(again.restored_count, 0);
    }
    check(&copy).await;
    check_equal(&archive, &copy, &deleted).await;

    // Other orders and gaps are refused before anything is written.
    let (empty, _guard) =
        Archive::open_to_restore(Arc::new(MemoryStore::new()), Limits::default()).await?;
    for order in [vec![0, 3], vec![2, 0], vec![0, 2, 2], vec![0, 3, 2]] {
        let paths: Vec<PathBuf> = order.iter().map(|n| files.paths[*n].clone()).collect();
        check_error(Chain::read(&paths), Reason::BackupMismatch, &["ends at"]);
    }
    let late = Chain::read(&files.paths[2..])?;
    let refused = empty.restore(&late).await;
    check_error(refused, Reason::BackupMismatch, &["another archive"]);
    assert_eq!(empty.committed(), 0);
    archive.finish().await
}

async fn a_backup_beside_writers_is_of_one_moment(engine: Engine) -> TestResult {
    let archive = TestArchive::open(engine).await;
    archive.put_all((1..300).map(fields)).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writing = tokio::spawn({
        let (archive, stop) = (archive.handle(), Arc::clone(&stop));
        async move {
            // Deletes run ahead of the backup, and articles are added behind it.
            for n in (1..300).rev() {
                archive.put(prepared(&article(1000 + n))).await.unwrap();
                let id = article(n).id();
                archive.delete(id, "meanwhile", time(0)).await.unwrap();
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        }
    });
    for _ in 0..3 {
        let files = Files::of(&[bytes_from(&archive, 1).await?]);
        let (copy, guard) = restored(Arc::new(MemoryStore::new()), &files.chain()?).await;
        assert!(copy.committed() >= 299);
        guard.close().await?;
    }
    stop.store(true, Ordering::Relaxed);
    writing.await?;
    archive.finish().await
}

async fn a_quarantine_is_carried_along(engine: Engine) -> TestResult {
    let (archive, _) = filled(engine).await;
    let lost = article(5).id();
    write(&archive, [Change::Remove(key::log(5))]).await;
    let refused = bytes_from(&archive, 1).await;
    let parts = ["log record 5 is missing", "verify --repair"];
    check_error(refused, Reason::RecordDamaged, &parts);
    archive.repair(time(1)).await?;
    let before = Files::of(&[bytes_from(&archive, 1).await?]);
    let next = archive.committed() + 1;
    archive.put_fields(fields(5)).await;
    let healed = Files::of(&[bytes_from(&archive, next).await?]);

    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let (copy, _guard) = Archive::open_to_restore(store, Limits::default()).await?;
    copy.restore(&before.chain()?).await?;
    let report = copy.verify().await?;
    assert_eq!(report.finding_count, 1, "{report:#?}");
    assert_eq!(report.findings[0].id, Some(lost));
    check_error(copy.get(&lost).await, Reason::ArticleQuarantined, &[]);
    copy.restore(&healed.chain()?).await?;
    check(&copy).await;
    assert_eq!(copy.get(&lost).await?.article, article(5));
    check_equal(&archive, &copy, &[]).await;
    archive.finish().await
}

/// Reads a backup to its end.
fn read_all(bytes: &[u8]) -> Result<u64> {
    let mut decoder = Decoder::new(bytes, "test")?;
    while decoder.next_entries()?.is_some() {}
    Ok(decoder.trailer().record_count)
}

/// A small backup of several frames.
async fn small_backup() -> Vec<u8> {
    let archive = TestArchive::open(Engine::Memory).await;
    archive.put_all((1..4).map(fields)).await;
    archive
        .delete(article(2).id(), "unwanted", time(1))
        .await
        .unwrap();
    let bytes = bytes_from(&archive, 1).await.unwrap();
    archive.finish().await.unwrap();
    bytes
}

#[tokio::test]
async fn every_flipped_bit_and_every_cut_is_refused() {
    let bytes = small_backup().await;
    assert_eq!(read_all(&bytes).unwrap(), 4);
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            let reason = read_all(&flipped).unwrap_err().reason();
            let allowed = [Reason::BackupDamaged, Reason::FormatUnsupported];
            assert!(allowed.contains(&reason), "bit {bit} of byte {at}");
        }
        check_error(read_all(&bytes[..at]), Reason::BackupDamaged, &["test"]);
    }
    let longer = [bytes.as_slice(), &[0]].concat();
    check_error(read_all(&longer), Reason::BackupDamaged, &["behind"]);
    let twice = [bytes.as_slice(), &bytes].concat();
    check_error(read_all(&twice), Reason::BackupDamaged, &[]);
    println!(
        "{} bits flipped, {} cuts, 0 accepted",
        bytes.len() * 8,
        bytes.len()
    );
}

/// The frames of a backup, by the layout that the README draws.
fn frames(bytes: &[u8]) -> Vec<&[u8]> {
    const PREFIX: usize = 9;
    const HEAD: usize = 1 + 4 + 16;
    let mut frames = vec![&bytes[..PREFIX]];
    let mut at = PREFIX;
    while at < bytes.len() {
        let length = u32::from_be_bytes(bytes[at + 1..at + 5].try_into().unwrap());
        let end = at + HEAD + usize::try_from(length).unwrap();
        frames.push(&bytes[at..end]);
        at = end;
    }
    frames
}

#[tokio::test]
async fn frames_out_of_place_are_refused() {
    let archive = TestArchive::open(Engine::Memory).await;
    let long = |n| ArticleFields {
        body: noise(n, 300_000),
        ..fields(n)
    };
    archive.put_all((1..20).map(long)).await;
    let bytes = bytes_from(&archive, 1).await.unwrap();
    let frames = frames(&bytes);
    assert!(
        frames.len() >= 6,
        "prefix, header, several of data, trailer"
    );
    assert_eq!(read_all(&frames.concat()).unwrap(), 19);
    for first in 1..frames.len() {
        let mut without = frames.clone();
        without.remove(first);
        check_error(read_all(&without.concat()), Reason::BackupDamaged, &[]);
        let mut doubled = frames.clone();
        doubled.insert(first, frames[first]);
        check_error(read_all(&doubled.concat()), Reason::BackupDamaged, &[]);
        for second in first + 1..frames.len() {
            let mut swapped = frames.clone();
            swapped.swap(first, second);
            check_error(read_all(&swapped.concat()), Reason::BackupDamaged, &[]);
        }
    }
    archive.finish().await.unwrap();
}

/// The process dies at every write of a restore; each time it goes on and ends as it should.
#[tokio::test]
async fn an_interrupted_restore_goes_on() -> TestResult {
    let limits = Limits {
        group_articles_max: 5,
        ..Limits::default()
    };
    let (archive, deleted) = filled(Engine::Memory).await;
    let middle = archive.committed() + 1;
    let base = bytes_from(&archive, 1).await?;
    archive.delete(article(20).id(), "later", time(3)).await?;
    archive.put_fields(fields(80)).await;
    let files = Files::of(&[base, bytes_from(&archive, middle).await?]);
    let chain = files.chain()?;
    let mut crashes = 0;
    for number in 1.. {
        let store = FaultyStore::empty(Fails::Write(number, Fault::NotSynced)).await;
        let (copy, _guard) = Archive::open_to_restore(store.clone(), limits).await?;
        let Err(error) = copy.restore(&chain).await else {
            break;
        };
        crashes += 1;
        assert_eq!(error.reason(), Reason::StoreFailed, "{error}");
        let disk = FaultyStore::on(&store.durable, Fails::Never).await;
        // Until it is whole it is not opened as an archive, nor ended by less than it was begun with.
        let used = Archive::open(disk.clone(), limits).await;
        if number > 1 {
            check_error(
                used.map(|_| ()),
                Reason::RestoreUnfinished,
                &["run it again"],
            );
            let (copy, _guard) = Archive::open_to_restore(disk.clone(), limits).await?;
            let less = copy.restore(&Chain::read(&files.paths[..1])?).await;
            check_error(less, Reason::BackupMismatch, &["unfinished restore"]);
        }
        let (copy, _guard) = Archive::open_to_restore(disk.clone(), limits).await?;
        let RestoreSummary {
            restored_count,
            present_count,
            ..
        } = copy.restore(&chain).await?;
        assert_eq!(restored_count + present_count, chain.last());
        let (copy, _guard) = Archive::open(disk, limits).await?;
        check(&copy).await;
        check_equal(&archive, &copy, &deleted).await;
    }
    assert!(crashes > 10, "{crashes}");
    println!("{crashes} crashes of a restore, 0 that did not go on");
    archive.finish().await
}

#[tokio::test]
async fn backups_of_another_history_are_refused() -> TestResult {
    let (archive, _) = filled(Engine::Memory).await;
    let base = Files::of(&[bytes_from(&archive, 1).await?]);
    let next = archive.committed() + 1;

    // The same archive went two ways.
    let store = Arc::new(MemoryStore::new());
    let (copy, _guard) = restored(store.clone(), &base.chain()?).await;
    copy.put(prepared(&article(90))).await?;
    archive.put_fields(fields(91)).await;
    archive.put_fields(fields(92)).await;
    let later = Files::of(&[bytes_from(&archive, next + 1).await?]);
    let refused = copy.restore(&later.chain()?).await;
    check_error(refused, Reason::BackupMismatch, &["different ways"]);
    let whole = Files::of(&[bytes_from(&archive, 1).await?]);
    let refused = copy.restore(&whole.chain()?).await;
    check_error(refused, Reason::BackupMismatch, &["another one here"]);
    // They have done it no harm.
    Archive::open(store, Limits::default()).await?;
    let increment = &Files::of(&[bytes_from(&copy, next).await?]);
    let both = [base.paths.clone(), later.paths.clone()].concat();
    check_error(Chain::read(&both), Reason::BackupMismatch, &["begins at"]);
    let other_way = &Files::of(&[bytes_from(&archive, next + 1).await?]);
    let both = [
        base.paths.clone(),
        increment.paths.clone(),
        other_way.paths.clone(),
    ]
    .concat();
    check_error(
        Chain::read(&both),
        Reason::BackupMismatch,
        &["different ways"],
    );

    // Another archive.
    let (other, _) = filled(Engine::Memory).await;
    let refused = other.restore(&base.chain()?).await;
    check_error(refused, Reason::BackupMismatch, &["of another archive"]);
    let mixed = Files::of(&[
        bytes_from(&archive, 1).await?,
        bytes_from(&other, other.committed() + 1).await?,
    ]);
    check_error(mixed.chain(), Reason::BackupMismatch, &["another archive"]);
    check_error(
        bytes_from(&archive, archive.committed() + 2).await,
        Reason::ArgumentInvalid,
        &["from_sequence"],
    );
    other.finish().await?;
    archive.finish().await
}

/// A record rots after a backup, is set aside, healed and deleted: the chain restores to the same.
#[tokio::test]
async fn a_chain_across_a_heal_restores_each_article_once() -> TestResult {
    let archive = TestArchive::open(Engine::Memory).await;
    archive.put_all((1..=6).map(fields)).await;
    let base = bytes_from(&archive, 1).await?;
    for n in [2_u64, 4] {
        write(&archive, [Change::Remove(key::log(n))]).await;
    }
    archive.repair(time(5)).await?;
    archive.put_all([fields(2), fields(4)]).await;
    let healed = bytes_from(&archive, 7).await?;
    let after_heal = archive.committed();
    let deleted = article(4).id();
    archive.delete(deleted, "unwanted", time(6)).await?;
    let last = bytes_from(&archive, after_heal + 1).await?;
    let late = bytes_from(&archive, 7).await?;
    for chain in [vec![base.clone(), healed, last], vec![base, late]] {
        let files = Files::of(&chain);
        let (copy, guard) = restored(Arc::new(MemoryStore::new()), &files.chain()?).await;
        check_same_articles(&archive, &copy, &[deleted]).await;
        let found: Vec<String> = everything(&copy)
            .await
            .iter()
            .map(|a| a.article.title().to_owned())
            .collect();
        assert_eq!(found.len(), 5, "{found:?}");
        crate::server::check(&copy).await;
        drop(copy);
        guard.close().await?;
    }
    archive.finish().await
}

/// What a follower has not finished: damage in the middle is told, and a file without a header is
/// in nobody's way.
#[tokio::test]
async fn an_unfinished_backup_counts_up_to_its_first_damage() -> TestResult {
    let archive = TestArchive::open(Engine::Memory).await;
    archive.put_all((1..=400).map(fields)).await;
    let whole = bytes_from(&archive, 1).await?;
    let folder = tempfile::tempdir()?;
    let part = folder.path().join("1.part");
    let trailer_bytes = 80;
    std::fs::write(&part, &whole[..whole.len() - trailer_bytes])?;
    let paths = [folder.path().to_owned()];
    assert_eq!(
        Chain::read(&paths)?.unproved_bytes(),
        0,
        "it just ends early"
    );
    let mut damaged = whole.clone();
    damaged[whole.len() / 3] ^= 1;
    std::fs::write(&part, &damaged)?;
    let chain = Chain::read(&paths)?;
    assert!(chain.last() < 400);
    assert!(chain.unproved_bytes() > 0, "something follows the damage");
    std::fs::write(folder.path().join("1.pmb"), &whole)?;
    std::fs::remove_file(&part)?;
    std::fs::write(folder.path().join("2.part"), &whole[..20])?;
    assert_eq!(Chain::read(&paths)?.last(), 400);
    archive.finish().await
}

/// `serve --backup-to` is killed under load and its disk is lost: what the follower wrote restores,
/// and it goes on where it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_followed_backup_survives_the_archive() {
    let mut random = StdRng::seed_from_u64(seed());
    let scratch = tempfile::tempdir().unwrap();
    let (folder, backup) = (
        scratch.path().join("archive"),
        scratch.path().join("backup"),
    );
    let flags = ["--backup-to", backup.to_str().unwrap()];
    let kills = rounds("PRESSMARK_TEST_BACKUP_KILLS", 4);
    let mut acknowledged = Vec::new();
    for _ in 0..kills {
        let server = ServerProcess::start_with(&folder, &flags);
        let target = random.random_range(200..2000);
        let kill = move |server: ServerProcess| server.kill();
        let (more, ()) = break_under_load(server, random.random(), target, kill).await;
        acknowledged.extend(more);
    }
    // Started once more it catches up, and stopped in good order it has everything.
    let server = ServerProcess::start_with(&folder, &flags);
    assert!(server.terminate());
    std::fs::remove_dir_all(&folder).unwrap();
    let names = file_names(&backup);
    assert!(names.iter().all(|name| name.ends_with(".pmb")), "{names:?}");

    let copy = scratch.path().join("copy");
    restore(&backup, &copy);
    check_acknowledged(&copy, &acknowledged).await;
    println!(
        "{kills} kills, {} articles acknowledged, 0 lost with the archive",
        acknowledged.len()
    );
}

/// A follower is never more than a few seconds behind, and tells so.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_disk_costs_seconds() -> TestResult {
    let (scratch, backup) = (Scratch::new(), tempfile::tempdir()?);
    let tree = scratch.write_tree(200);
    let folder = scratch.path("archive");
    let server = ServerProcess::start_with(&folder, &["--backup-to", path_text(backup.path())]);
    let import = ["--server", &server.address, "import", &tree];
    assert!(
        crate::cli::program()
            .args(import)
            .output()?
            .status
            .success()
    );
    let imported = std::time::Instant::now();
    loop {
        let stats = proto::GetStatsRequest {};
        let stats = admin(&server.address).await.get_stats(stats).await?;
        let stats = stats.into_inner();
        assert_eq!(stats.backup_error, "");
        assert!(stats.backup_behind_ms() < 10_000, "{stats:?}");
        if stats.backup_sequence == Some(200) {
            break;
        }
        assert!(
            imported.elapsed().as_secs() < 10,
            "it takes at most so long"
        );
    }
    println!(
        "200 articles were in the backup after {:?}",
        imported.elapsed()
    );
    server.kill();
    // The segment is not finished, and what it has is used.
    assert_eq!(file_names(backup.path()), ["00000000000000000001.part"]);
    let copy = scratch.path("copy");
    let output = restore(backup.path(), &copy);
    assert!(
        output.contains("has no end yet, it is used up to sequence 200"),
        "{output}"
    );
    let count = check_folder(&copy, async |archive| archive.committed()).await;
    assert_eq!(count, 200);

    // Torn in its last frame, it is cut there, and written on.
    let part = backup.path().join("00000000000000000001.part");
    let mut bytes = std::fs::read(&part)?;
    bytes.extend([2, 0, 0, 1]);
    std::fs::write(&part, &bytes)?;
    // Another archive leaves it as it is.
    let stranger = ["serve", "--backup-to", path_text(backup.path())];
    let refused = scratch.run_on("stranger", &stranger).exits(2);
    assert!(
        refused.err.contains("of another archive"),
        "{}",
        refused.err
    );
    assert_eq!(std::fs::read(&part)?, bytes);
    let server = ServerProcess::start_with(&folder, &["--backup-to", path_text(backup.path())]);
    assert!(server.terminate());
    let copy = scratch.path("copy 2");
    let output = restore(backup.path(), &copy);
    assert!(output.contains("200 records restored"), "{output}");

    // Another archive does not follow into this folder, and one that is behind it neither.
    for (archive, parts) in [
        ("other", "of another archive"),
        ("copy 3", "goes on to sequence 200"),
    ] {
        if archive == "copy 3" {
            copy_first_articles(
                &backup.path().join("00000000000000000001.pmb"),
                &scratch,
                archive,
            )
            .await?;
        }
        let serve = [
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--backup-to",
            path_text(backup.path()),
        ];
        let refused = scratch.run_on(archive, &serve).exits(2);
        assert!(refused.err.contains(parts), "{}", refused.err);
    }
    Ok(())
}

/// Restores the first half of a backup, as an older state of the archive would be.
async fn copy_first_articles(backup: &Path, scratch: &Scratch, archive: &str) -> TestResult {
    let mut decoder = Decoder::new(std::fs::File::open(backup)?, "backup")?;
    let header = *decoder.header();
    let (mut encoder, mut bytes) = pressmark::archive::backup::Encoder::new(&header);
    let entries = decoder.next_entries()?.expect("a frame");
    for entry in entries.iter().take(100) {
        bytes.extend(
            encoder
                .add(entry.sequence, &entry.record)?
                .unwrap_or_default(),
        );
    }
    bytes.extend(encoder.finish()?);
    let half = scratch.path("half.pmb");
    std::fs::write(&half, bytes)?;
    scratch
        .run_on(archive, &["restore", path_text(&half)])
        .exits(0);
    Ok(())
}

pub fn path_text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn file_names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Runs `pressmark restore` and returns what it prints.
pub fn restore(backup: &Path, archive: &Path) -> String {
    let mut command = crate::cli::program();
    let command = command.arg("--archive").arg(archive);
    let output = command.arg("restore").arg(backup).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let printed = [output.stdout, output.stderr].concat();
    String::from_utf8(printed).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_restore_and_heal_work_from_the_command_line() -> TestResult {
    let scratch = Scratch::new();
    let tree = scratch.write_tree(30);
    scratch.run(&["import", &tree]).exits(0);
    let (whole, more, none) = (
        scratch.text("whole.pmb"),
        scratch.text("more.pmb"),
        scratch.text("none.pmb"),
    );
    let made = scratch.run(&["backup", &whole]).exits(0);
    assert!(
        made.out.starts_with("30 records, sequences 1 to 30, "),
        "{}",
        made.out
    );
    let again = scratch.run(&["backup", &whole]).exits(2);
    assert!(again.err.contains("is there already"), "{}", again.err);

    scratch
        .run(&["delete", &id(3), "--reason", "unwanted"])
        .exits(0);
    // From a server, and as JSON.
    let server = ServerProcess::start(&scratch.path("archive"));
    let run = |arguments: &[&str]| {
        let mut command = crate::cli::program();
        command.args(["--server", &server.address]).args(arguments);
        command.output().unwrap()
    };
    let made = run(&["backup", &more, "--after", &whole, "--json"]);
    let made: serde_json::Value = serde_json::from_slice(&made.stdout)?;
    assert_eq!(
        (
            &made["record_count"],
            &made["first_sequence"],
            &made["last_sequence"]
        ),
        (&1.into(), &31.into(), &31.into())
    );
    let made = run(&["backup", &none, "--from-sequence", "32"]);
    let made = String::from_utf8(made.stdout)?;
    assert!(
        made.starts_with("0 records, nothing came after sequence 31"),
        "{made}"
    );
    let piped = run(&["backup", "-"]);
    assert_eq!(read_all(&piped.stdout)?, 31);
    let late = run(&["backup", &scratch.text("late"), "--from-sequence", "40"]);
    assert_eq!(late.status.code(), Some(2));
    let complaint = String::from_utf8(late.stderr)?;
    assert!(
        complaint.contains("from_sequence: 40 is behind"),
        "{complaint}"
    );
    let restored = run(&["restore", &whole]);
    assert_eq!(restored.status.code(), Some(2), "not through a server");
    assert!(server.terminate());

    let restored = scratch
        .run_on("copy", &["restore", &whole, &more, &none])
        .exits(0);
    assert_eq!(
        restored.out,
        "31 records restored, 0 already there, the archive ends at sequence 31\n"
    );
    scratch.run_on("copy", &["verify"]).exits(0);
    let gone = scratch.run_on("copy", &["get", &id(3)]).exits(2);
    assert!(gone.err.contains("unwanted"), "{}", gone.err);
    let again = scratch
        .run_on("copy", &["restore", "--json", &whole, &more])
        .exits(0);
    assert_eq!(again.objects()[0]["already_there"], 31);
    let wrong = scratch.run_on("other", &["restore", &more]).exits(2);
    assert!(wrong.err.contains("another archive"), "{}", wrong.err);
    let reversed = scratch
        .run_on("other", &["restore", &more, &whole])
        .exits(2);
    assert!(
        reversed.err.contains("begins at sequence 1"),
        "{}",
        reversed.err
    );
    std::fs::write(scratch.path("cut.pmb"), &std::fs::read(&whole)?[..1000])?;
    let cut = scratch
        .run_on("other", &["restore", &scratch.text("cut.pmb")])
        .exits(2);
    assert!(cut.err.contains("is damaged from byte"), "{}", cut.err);

    // What was set aside is healed from a backup.
    let damaged = remove_record(&scratch.path("copy"), 8).await?;
    scratch.run_on("copy", &["verify", "--repair"]).exits(1);
    let healed = scratch.run_on("copy", &["heal", &whole, &more]).exits(0);
    assert_eq!(healed.out, "1 healed, 0 refused\n");
    scratch.run_on("copy", &["get", &damaged]).exits(0);
    scratch.run_on("copy", &["verify"]).exits(0);
    let healed = scratch.run_on("copy", &["heal", &whole, "--json"]).exits(0);
    assert_eq!(healed.objects()[0]["healed"], 0);
    Ok(())
}

/// Takes a record out of a closed archive, and tells its id.
pub async fn remove_record(archive: &Path, sequence: u64) -> Result<String, Error> {
    use pressmark::store::{self, Batch, Durability, Locator, StoreOptions};
    let locator = Locator::Folder(archive.to_owned());
    let store = store::open(&locator, StoreOptions::default()).await?;
    let head = store.get_many(vec![key::log(sequence)]).await?.remove(0);
    let id = pressmark::record::peek_id(sequence, &head.expect("a record"))?;
    let mut batch = Batch::new();
    batch.remove(key::log(sequence));
    store.write(batch, Durability::Synced).await?;
    store.close().await?;
    Ok(id.to_string())
}
