//! What only object storage can do wrong: who has an archive open, what is asked of the storage, and
//! what a kill leaves there. A folder stands for the bucket here; `ceph.rs` does the same on Ceph.

use std::path::Path;
use std::time::Duration;

use pressmark::archive::{Archive, Limits};
use pressmark::article::ContentHash;
use pressmark::error::{Error, Reason};
use pressmark::rpc::proto;
use pressmark::store::{self, Locator, Objects, Provider, StoreOptions};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;

use crate::cli::{Ran, program};
use crate::endpoints::check_is_passing;
use crate::load::{break_under_load, rounds, seed};
use crate::server::{ServerProcess, articles, check, message};
use crate::store::{batch, get};
use crate::support::{
    Engine, TestArchive, TestResult, bucket_in, check_error, fields, small_cache,
};

use pressmark::store::Durability::Synced;

/// Flags of a server on object storage that answers soon and is taken over soon.
const SOON: [&str; 4] = ["--flush-interval", "5ms", "--writer-lease", "300ms"];

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_is_open_in_one_process() -> TestResult {
    let folder = TempDir::new()?;
    let locator = bucket_in(folder.path());
    let mut options = small_cache();
    options.objects.name = "the first".into();
    let first = store::open(&locator, options).await?;
    let second = Engine::Slate.open(folder.path()).await;
    let parts = ["bucket", "the first", "--server"];
    check_error(second.map(drop), Reason::ArchiveLocked, &parts);
    // It was left alone.
    first.write(batch(&[("a", Some("1"))]), Synced).await?;
    first.close().await?;
    let second = Engine::Slate.open(folder.path()).await?;
    assert_eq!(get(&*second, "a").await?.as_deref(), Some("1"));
    Ok(second.close().await?)
}

/// A writer that was silent for as long as its lease, and is not dead.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_was_replaced_acknowledges_nothing() -> TestResult {
    let folder = TempDir::new()?;
    let first = Engine::Slate.open(folder.path()).await?;
    first.write(batch(&[("a", Some("1"))]), Synced).await?;
    // As if it had not given a sign of life for a while.
    std::fs::remove_file(folder.path().join("bucket/writer"))?;
    let second = Engine::Slate.open(folder.path()).await?;
    assert_eq!(get(&*second, "a").await?.as_deref(), Some("1"));
    second.write(batch(&[("b", Some("2"))]), Synced).await?;
    let late = first.write(batch(&[("a", Some("0"))]), Synced).await;
    check_error(late, Reason::WriterReplaced, &["taken the archive over"]);
    let later = first.write(batch(&[("c", Some("0"))]), Synced).await;
    check_error(later, Reason::WritesStopped, &["taken the archive over"]);
    check_error(first.close().await, Reason::WritesStopped, &[]);
    assert_eq!(get(&*second, "a").await?.as_deref(), Some("1"));
    assert_eq!(get(&*second, "c").await?, None);
    second.close().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_to_object_storage_are_counted() -> TestResult {
    let archive = TestArchive::open(Engine::Slate).await;
    let before = archive.stats().await?.store.requests.unwrap();
    assert!(before.put_count > 0 && before.list_count > 0, "{before:?}");
    for n in 0..10 {
        // One by one, so that each needs a request of its own.
        archive.put_fields(fields(n)).await;
    }
    let after = archive.stats().await?.store.requests.unwrap();
    assert!(after.put_count >= before.put_count + 10, "{after:?}");
    archive.finish().await?;

    let archive = TestArchive::open(Engine::Sled).await;
    assert_eq!(archive.stats().await?.store.requests, None);
    archive.finish().await
}

/// A place that holds something else is left as it is.
#[tokio::test(flavor = "multi_thread")]
async fn an_archive_is_begun_at_an_empty_place() -> TestResult {
    let folder = TempDir::new()?;
    let place = Objects {
        provider: Provider::Folder,
        bucket: folder.path().display().to_string(),
        prefix: "news".into(),
    };
    let locator = Locator::Objects(place);
    let put = |name: &str| -> TestResult {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap())?;
        Ok(std::fs::write(path, "something")?)
    };
    for foreign in [
        "news/holiday.jpg",
        "news/probe",
        "news/writer/note",
        // What is left of an archive that was removed in part.
        "news/db/wal/00000000000000000001.sst",
        // An archive that has its place in this one.
        "news/sport/db/manifest/00000000000000000001.manifest",
    ] {
        put(foreign)?;
        let opened = store::open(&locator, small_cache()).await.map(drop);
        let parts = [&locator.to_string(), foreign, "name an empty place"];
        let error = check_error(opened, Reason::FileFailed, &parts);
        assert_eq!(error.resource(), Some(locator.to_string().as_str()));
        let names = ["news/db/manifest", "news/probe/"];
        assert!(names.iter().all(|name| !folder.path().join(name).exists()));
        std::fs::remove_dir_all(folder.path().join("news"))?;
    }
    // What begins alike is beside it, and some is left of processes that ended badly.
    put("newspaper/holiday.jpg")?;
    put("news/writer")?;
    put("news/probe/1/once")?;
    let store = store::open(&locator, small_cache()).await?;
    store.write(batch(&[("a", Some("1"))]), Synced).await?;
    store.close().await?;
    // An archive that is there is opened, whatever else is.
    put("news/holiday.jpg")?;
    let store = store::open(&locator, small_cache()).await?;
    assert_eq!(get(&*store, "a").await?.as_deref(), Some("1"));
    store.close().await?;

    let bucket = folder.path().join("newspaper").display().to_string();
    let mut serve = program();
    serve.args(["serve", "--listen", "127.0.0.1:0", "--archive"]);
    let refused = Ran::of(serve.arg(format!("file://{bucket}"))).exits(2);
    for part in [bucket.as_str(), "such as holiday.jpg", "no archive"] {
        assert!(refused.err.contains(part), "{}", refused.err);
    }
    Ok(())
}

/// What is read again comes from a folder of this machine, if there is one.
#[tokio::test(flavor = "multi_thread")]
async fn copies_on_this_machine_save_requests() -> TestResult {
    let folder = TempDir::new()?;
    let local = folder.path().join("local");
    let mut options = small_cache();
    // Too little memory to keep anything of a table.
    options.cache_bytes = 1;
    let locator = bucket_in(folder.path());
    let (archive, guard) = open_with(&locator, options.clone()).await?;
    for n in 0..200 {
        let article = crate::support::article(n);
        archive.enqueue(crate::support::prepared(&article)).await?;
    }
    drop(archive);
    guard.close().await?;
    let mut gets = Vec::new();
    for cache in [
        None,
        Some((local.clone(), 64 << 20)),
        Some((local.clone(), 64 << 20)),
    ] {
        options.objects.cache = cache;
        let (archive, guard) = open_with(&locator, options.clone()).await?;
        let before = archive.stats().await?.store.requests.unwrap();
        for n in 0..200 {
            archive.get(&crate::support::article(n).id()).await?;
        }
        let after = archive.stats().await?.store.requests.unwrap();
        gets.push(after.get_count - before.get_count);
        drop(archive);
        guard.close().await?;
    }
    println!("gets without copies, with new ones, and with old ones: {gets:?}");
    assert!(gets[1] < gets[0] / 2 && gets[2] < gets[0] / 2, "{gets:?}");
    Ok(())
}

#[tokio::test]
async fn only_object_storage_has_standbys() {
    let waited = store::wait_for_turn(&Locator::Memory, &small_cache()).await;
    let error = check_error(waited, Reason::ArgumentInvalid, &["memory:"]);
    assert_eq!(error.field_name(), Some("standby"));
}

/// Articles that come together share a request.
#[tokio::test(flavor = "multi_thread")]
async fn articles_that_come_together_share_requests() -> TestResult {
    const ARTICLES: u32 = 2000;
    let folder = TempDir::new()?;
    let mut options = small_cache();
    // Long, so that groups come together on a slow machine, too.
    options.objects.flush_interval = Duration::from_secs(1);
    // The sign that the writer is there is a request of its own.
    options.objects.lease = Duration::from_secs(600);
    let store = store::open(&bucket_in(folder.path()), options).await?;
    let (archive, guard) = Archive::open(store, Limits::default()).await?;
    let all = (0..ARTICLES).map(|n| crate::support::prepared(&crate::support::article(n)));
    let all: Vec<_> = all.collect();
    let before = archive.stats().await?.store.requests.unwrap();
    let mut pending = Vec::new();
    for prepared in all {
        pending.push(archive.enqueue(prepared).await?);
    }
    for put in pending {
        put.result().await?;
    }
    let after = archive.stats().await?.store.requests.unwrap();
    let puts = after.put_count - before.put_count;
    let groups = archive.metrics().commits.get();
    println!("{ARTICLES} articles in {groups} groups took {puts} puts");
    assert!(puts < groups, "groups share requests");
    check(&archive).await;
    Ok(guard.close().await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_tells_its_engine_and_requests() -> TestResult {
    let folder = TempDir::new()?;
    let locator = bucket_in(folder.path()).to_string();
    let server = ServerProcess::start_with(Path::new(&locator), &SOON);
    let mut client = articles(&server.address).await;
    let request = proto::PutArticleRequest {
        article: Some(message(1)),
    };
    client.put_article(request).await?;
    let mut admin = crate::server::admin(&server.address).await;
    let info = admin
        .get_server_info(proto::GetServerInfoRequest {})
        .await?;
    let info = info.into_inner();
    assert_eq!(info.engine, "slatedb");
    assert_eq!(info.search, Some(false), "its index has no place");
    let stats = admin.get_stats(proto::GetStatsRequest {}).await?;
    let requests = stats.into_inner().storage_requests.unwrap();
    assert!(requests.put_count() > 0, "{requests:?}");
    let puts = (requests.put_count() + requests.list_count()) as f64;
    assert!(
        requests.puts_per_1000_articles() >= puts * 1000.0,
        "{requests:?}"
    );
    drop((client, admin));
    assert!(server.terminate());
    let archive = open(&locator.parse()?).await?;
    assert_eq!(archive.0.committed(), 1);
    Ok(archive.1.close().await?)
}

async fn open(locator: &Locator) -> Result<(Archive, pressmark::archive::Guard), Error> {
    open_with(locator, small_cache()).await
}

async fn open_with(
    locator: &Locator,
    options: StoreOptions,
) -> Result<(Archive, pressmark::archive::Guard), Error> {
    let store = store::open(locator, options).await?;
    Archive::open(store, Limits::default()).await
}

/// Proves the archive at a place, and that all articles are in it.
pub async fn check_place(
    locator: &Locator,
    options: StoreOptions,
    acknowledged: &[ContentHash],
) -> TestResult {
    let (archive, guard) = open_with(locator, options).await?;
    check(&archive).await;
    for some in acknowledged.chunks(1000) {
        let missing = archive.find_missing(some).await?;
        assert_eq!(missing.missing, [], "of {}", acknowledged.len());
    }
    Ok(guard.close().await?)
}

/// Kills of one archive before it is proved.
const KILLS_PER_ARCHIVE: usize = 4;

/// `kill -9` of servers, under load and while they start. Each next one starts on what the kill left.
pub async fn kill_servers(
    places: impl Fn(usize) -> Locator,
    options: StoreOptions,
    flags: &[&str],
    kills: usize,
) -> TestResult {
    let mut random = StdRng::seed_from_u64(seed());
    let mut acknowledged_count = 0;
    let mut longest_start = Duration::ZERO;
    for first in (0..kills).step_by(KILLS_PER_ARCHIVE) {
        let locator = places(first);
        let text = locator.to_string();
        let place = Path::new(&text);
        let mut acknowledged = Vec::new();
        for kill in first..kills.min(first + KILLS_PER_ARCHIVE) {
            if kill % 2 == 1 {
                // How far a start has come cannot be seen from outside, and is what varies here.
                let after = random.random_range(Duration::ZERO..longest_start);
                let server = ServerProcess::spawn_with(place, flags);
                tokio::time::sleep(after).await;
                server.kill_starting();
            }
            let started = std::time::Instant::now();
            let server = ServerProcess::start_with(place, flags);
            longest_start = longest_start.max(started.elapsed());
            let target = random.random_range(1..300);
            let load = random.random();
            let (more, ()) = break_under_load(server, load, target, ServerProcess::kill).await;
            acknowledged.extend(more);
        }
        check_place(&locator, options.clone(), &acknowledged).await?;
        acknowledged_count += acknowledged.len();
    }
    println!(
        "{kills} kills, {acknowledged_count} articles acknowledged, 0 lost; the longest start took \
         {longest_start:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_loses_nothing_acknowledged() -> TestResult {
    let folder = TempDir::new()?;
    let flags: Vec<_> = SOON.into_iter().chain(["--scrub-interval", "0"]).collect();
    let place = |round: usize| bucket_in(&folder.path().join(round.to_string()));
    kill_servers(
        place,
        small_cache(),
        &flags,
        rounds("PRESSMARK_TEST_KILLS", 8),
    )
    .await
}

/// A server dies under load while another waits for that.
pub async fn take_over(locator: &Locator, options: StoreOptions, flags: &[&str]) -> TestResult {
    let text = locator.to_string();
    let place = Path::new(&text);
    let old = ServerProcess::start_with(place, flags);
    let flags: Vec<&str> = flags.iter().copied().chain(["--standby"]).collect();
    let standby = ServerProcess::spawn_with(place, &flags);
    let die = |old: ServerProcess| {
        old.kill();
        std::time::Instant::now()
    };
    let (mut acknowledged, died) = break_under_load(old, seed(), 500, die).await;
    let new = tokio::task::block_in_place(|| standby.ready());
    let mut client = articles(&new.address).await;
    let request = proto::PutArticleRequest {
        article: Some(message(2_000_000)),
    };
    client.put_article(request).await?;
    let elapsed = died.elapsed();
    acknowledged.push(crate::server::id_of(2_000_000));
    println!(
        "the first write {elapsed:?} after the kill; {} articles acknowledged, 0 lost",
        acknowledged.len()
    );
    drop(client);
    assert!(new.terminate());
    check_place(locator, options, &acknowledged).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_takes_over_from_a_killed_server() -> TestResult {
    let folder = TempDir::new()?;
    take_over(&bucket_in(folder.path()), small_cache(), &SOON).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_takes_over_from_a_server_that_stops() -> TestResult {
    let folder = TempDir::new()?;
    let text = bucket_in(folder.path()).to_string();
    let old = ServerProcess::start_with(Path::new(&text), &SOON);
    let flags: Vec<&str> = SOON.into_iter().chain(["--standby"]).collect();
    let standby = ServerProcess::spawn_with(Path::new(&text), &flags);
    assert!(old.terminate());
    let new = tokio::task::block_in_place(|| standby.ready());
    assert!(new.terminate());
    check_place(&text.parse()?, small_cache(), &[]).await
}

/// The old writer is stopped, another takes over, and the old one goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_server_that_goes_on_never_acknowledges_again() -> TestResult {
    let folder = TempDir::new()?;
    let locator = bucket_in(folder.path());
    let text = locator.to_string();
    let old = ServerProcess::start_with(Path::new(&text), &SOON);
    let put = |number| proto::PutArticleRequest {
        article: Some(message(number)),
    };
    let mut client = articles(&old.address).await;
    client.put_article(put(1)).await?;
    old.pause();
    let new = ServerProcess::start_with(Path::new(&text), &SOON);
    let mut new_client = articles(&new.address).await;
    new_client.put_article(put(2)).await?;
    old.go_on();
    let late = client.put_article(put(3)).await.unwrap_err();
    assert_eq!(late.code(), tonic::Code::Unavailable, "{late:?}");
    // It is at its end by then.
    let again = client.put_article(put(3)).await.unwrap_err();
    check_is_passing(&again);
    let put = new_client.put_article(put(4)).await?.into_inner();
    assert_eq!(put.sequence, 3);
    drop((client, new_client));
    assert_eq!(old.exit_code(), Some(2), "it ends by itself, and says why");
    assert!(new.terminate());
    let ids: Vec<_> = [1, 2, 4].map(crate::server::id_of).into();
    check_place(&locator, small_cache(), &ids).await
}
