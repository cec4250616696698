//! Replicas and their writer as processes: what clients of them see, also when the writer dies or is
//! stopped. A folder stands for the bucket here; `ceph_replicas.rs` does the same on Ceph.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use pressmark::article::ContentHash;
use pressmark::rpc::proto;
use pressmark::rpc::proto::article_service_client::ArticleServiceClient;
use pressmark::store::{Locator, StoreOptions};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_types::StatusExt;

use crate::backup::restore;
use crate::cli::{Ran, program};
use crate::desk::reason;
use crate::guard::get;
use crate::limits::within;
use crate::migrate::log_at;
use crate::operator::{health, of_service};
use crate::server::{ServerProcess, admin, articles, id_of, import_request, message};
use crate::slate::check_place;
use crate::support::{TestResult, bucket_in, small_cache};

/// Flags of servers that answer soon, look often, and are taken over soon.
pub const SOON: [&str; 8] = [
    "--flush-interval",
    "5ms",
    "--writer-lease",
    "300ms",
    "--scrub-interval",
    "0",
    "--poll-interval",
    "20ms",
];

/// Starts a server with further flags.
pub fn start(place: &str, flags: &[&str], more: &[&str]) -> ServerProcess {
    let flags: Vec<&str> = flags.iter().chain(more).copied().collect();
    ServerProcess::start_with(Path::new(place), &flags)
}

/// A request that is answered once the archive has come to a sequence.
pub fn at_least<T>(sequence: u64, request: T) -> Request<T> {
    let mut request = Request::new(request);
    let value = sequence.to_string().parse().unwrap();
    request
        .metadata_mut()
        .insert("pressmark-min-sequence", value);
    request
}

pub fn put(number: usize) -> proto::PutArticleRequest {
    proto::PutArticleRequest {
        article: Some(message(number)),
    }
}

pub fn get_by_id(id: ContentHash) -> proto::GetArticleRequest {
    proto::GetArticleRequest {
        name: Some(proto::get_article_request::Name::Id(id.to_string())),
        ..proto::GetArticleRequest::default()
    }
}

async fn info(server: &ServerProcess) -> proto::GetServerInfoResponse {
    let mut admin = admin(&server.address).await;
    let info = admin.get_server_info(proto::GetServerInfoRequest {}).await;
    info.unwrap().into_inner()
}

/// How stale a replica says that it is.
pub async fn staleness(server: &ServerProcess) -> Option<Duration> {
    let staleness = info(server).await.staleness?;
    Some(staleness.try_into().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_to_a_replica_is_refused_and_names_the_writer() -> TestResult {
    let folder = TempDir::new()?;
    let place = bucket_in(folder.path());
    let text = place.to_string();
    let writer = start(&text, &SOON, &[]);
    let replica = start(&text, &SOON, &["--replica"]);
    let mut calls = articles(&writer.address).await;
    let stored = calls.put_article(put(1)).await?.into_inner();

    let mut calls = articles(&replica.address).await;
    let requests = tokio_stream::once(import_request(&[message(2)]));
    let delete = proto::DeleteArticleRequest {
        id: stored.id.clone(),
        reason: "unwanted".into(),
    };
    let repair = proto::VerifyArchiveRequest {
        repair: true,
        ..proto::VerifyArchiveRequest::default()
    };
    let mut admin = admin(&replica.address).await;
    let refusals = [
        calls.put_article(put(2)).await.map(drop).unwrap_err(),
        calls.import_articles(requests).await.map(drop).unwrap_err(),
        calls.delete_article(delete).await.map(drop).unwrap_err(),
        admin.verify_archive(repair).await.map(drop).unwrap_err(),
    ];
    for status in refusals {
        assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
        assert_eq!(reason(&status), "NOT_THE_WRITER");
        let named = status.get_error_details();
        let named = named.resource_info().unwrap();
        assert_eq!(named.resource_name, writer.host_and_port());
        assert_eq!(named.resource_type, "server");
    }
    // All that reads is there.
    let verified = admin.verify_archive(proto::VerifyArchiveRequest::default());
    let mut verified = verified.await?.into_inner();
    let mut summary = None;
    while let Some(event) = verified.message().await? {
        if let Some(proto::verify_archive_response::Event::Summary(last)) = event.event {
            summary = Some(last);
        }
    }
    let summary = summary.unwrap();
    assert_eq!(
        (summary.finding_count(), summary.figures_checked()),
        (0, true)
    );

    let told = info(&replica).await;
    assert_eq!(told.role(), proto::ServerRole::Replica);
    assert_eq!(told.writer, writer.host_and_port());
    assert!(told.staleness.is_some());
    let told = info(&writer).await;
    assert_eq!(told.role(), proto::ServerRole::Writer);
    assert_eq!((told.writer.as_str(), told.staleness), ("", None));
    drop((calls, admin));
    // The writer's end disturbs no replica, nor the other way round.
    assert!(writer.terminate());
    let mut calls = articles(&replica.address).await;
    calls.get_article(get_by_id(id_of(1))).await?;
    let status = calls.put_article(put(2)).await.unwrap_err();
    assert_eq!(reason(&status), "NOT_THE_WRITER");
    drop(calls);
    let writer = start(&text, &SOON, &[]);
    assert!(replica.terminate());
    assert!(writer.terminate());
    check_place(&place, small_cache(), &[id_of(1)]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_reads_its_own_write_from_a_replica() -> TestResult {
    let folder = TempDir::new()?;
    let place = bucket_in(folder.path());
    let text = place.to_string();
    let writer = start(&text, &SOON, &[]);
    // One that looks so seldom that it has not seen what was just written.
    let seldom = ["--replica", "--poll-interval", "400ms"];
    let replica = start(&text, &SOON[..6], &seldom);
    let mut there = articles(&writer.address).await;
    let mut here = articles(&replica.address).await;
    let mut waited = 0;
    for number in 1..=5 {
        let sequence = there.put_article(put(number)).await?.into_inner().sequence;
        let at_once = here.get_article(get_by_id(id_of(number))).await;
        waited += usize::from(at_once.is_err());
        let request = at_least(sequence, get_by_id(id_of(number)));
        here.get_article(request).await?;
        // The writer has it anyway, and streams wait like calls.
        there
            .get_article(at_least(sequence, get_by_id(id_of(number))))
            .await?;
        let scan = at_least(sequence, proto::ScanArticlesRequest::default());
        let mut scan = here.scan_articles(scan).await?.into_inner();
        let mut count = 0;
        while let Some(chunk) = scan.message().await? {
            count += chunk.articles.len();
        }
        assert_eq!(count, number);
    }
    assert!(waited > 0, "the replica was never behind");
    for calls in [&mut here, &mut there] {
        let mut request = at_least(7, proto::CountArticlesRequest::default());
        request.set_timeout(Duration::from_millis(800));
        let status = within(calls.count_articles(request)).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert_eq!(reason(&status), "SEQUENCE_AHEAD");
        assert!(status.get_error_details().retry_info().is_some());
        for part in ["sequence 7", "come to 5"] {
            assert!(status.message().contains(part), "{status:?}");
        }
        let mut request = Request::new(proto::CountArticlesRequest::default());
        let wrong = "seven".parse()?;
        request
            .metadata_mut()
            .insert("pressmark-min-sequence", wrong);
        let status = calls.count_articles(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        let details = status.get_error_details();
        let violation = &details.bad_request().unwrap().field_violations[0];
        assert_eq!(violation.field, "pressmark-min-sequence");
    }
    // A request that comes before the write waits for it.
    let waiting = tokio::spawn(async move {
        let request = at_least(6, get_by_id(id_of(6)));
        (here.get_article(request).await, here)
    });
    there.put_article(put(6)).await?;
    let (read, here) = within(waiting).await?;
    read?;
    let waits = |sequence: &str, arguments: &[&str]| {
        let mut command = program();
        command.args(arguments).args(["--wait-for", sequence]);
        Ran::of(&mut command)
    };
    let at = ["get", &id_of(6).to_string(), "--server", &replica.address];
    waits("6", &at).exits(0);
    let ran = waits("6", &["list", "--archive", &text]).exits(2);
    assert!(ran.err.contains("wait-for"), "{}", ran.err);
    drop((here, there));
    assert!(replica.terminate());
    assert!(writer.terminate());
    let ids: Vec<_> = (1..=6).map(id_of).collect();
    check_place(&place, small_cache(), &ids).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_hears_nothing_says_so() -> TestResult {
    let folder = TempDir::new()?;
    let place = bucket_in(folder.path());
    let text = place.to_string();
    let writer = start(&text, &SOON, &[]);
    articles(&writer.address).await.put_article(put(1)).await?;
    assert!(writer.terminate());
    let more = [
        "--replica",
        "--staleness-max",
        "500ms",
        "--http-listen",
        "127.0.0.1:0",
    ];
    let mut replica = start(&text, &SOON, &more);
    let http = &replica.figures_address();
    let ready = async |status: &str| loop {
        let answer = get(http, "/readyz").await;
        if answer.starts_with(status) {
            break answer;
        }
    };
    within(ready("HTTP/1.1 200")).await;
    let figures = get(http, "/metrics").await;
    assert!(figures.contains("\npressmark_is_replica 1\n"), "{figures}");
    assert!(
        figures.contains("\npressmark_staleness_seconds "),
        "{figures}"
    );
    assert!(!figures.contains("pressmark_takes_writes"), "{figures}");
    // A file in the place of the folder fails all requests.
    let (bucket, away) = (folder.path().join("bucket"), folder.path().join("away"));
    std::fs::rename(&bucket, &away)?;
    std::fs::write(&bucket, "")?;
    let answer = within(ready("HTTP/1.1 503")).await;
    assert!(answer.contains("limit is 500ms"), "{answer}");
    // What is in memory is read all the same, and says how old it may be.
    let mut calls = articles(&replica.address).await;
    calls.get_article(get_by_id(id_of(1))).await?;
    assert!(staleness(&replica).await.unwrap() >= Duration::from_millis(500));
    std::fs::remove_file(&bucket)?;
    std::fs::rename(&away, &bucket)?;
    within(ready("HTTP/1.1 200")).await;
    drop(calls);
    assert!(replica.terminate());
    check_place(&place, small_cache(), &[id_of(1)]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn flags_of_replicas_are_checked() -> TestResult {
    let folder = TempDir::new()?;
    let serve = |arguments: &[&str]| {
        let mut command = program();
        command.args(["serve", "--listen", "127.0.0.1:0", "--replica"]);
        Ran::of(command.args(arguments)).exits(2).err
    };
    let sled = folder.path().join("sled");
    let sled = sled.to_str().unwrap();
    let bucket = bucket_in(folder.path()).to_string();
    for (arguments, part) in [
        (["--archive", sled].as_slice(), "only object storage"),
        (&["--archive", &bucket], "no archive is at"),
        (&["--archive", &bucket, "--standby"], "--standby"),
        (
            &["--archive", &bucket, "--near-copies", "on"],
            "--near-copies",
        ),
        (&["--archive", &bucket, "--poll-interval", "1ms"], "10ms"),
    ] {
        let err = serve(arguments);
        assert!(err.contains(part), "{arguments:?}: {err}");
    }
    assert!(!folder.path().join("sled").exists());
    Ok(())
}

/// With a folder on its machine, a replica also has what needs one.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_searches_with_an_index_of_its_own() -> TestResult {
    let folder = TempDir::new()?;
    let place = bucket_in(folder.path());
    let text = place.to_string();
    let writer = start(&text, &SOON, &[]);
    let mut there = articles(&writer.address).await;
    there.put_article(put(1)).await?;
    let local = folder.path().join("local");
    let more = ["--replica", "--local-dir", local.to_str().unwrap()];
    let replica = start(&text, &SOON, &more);
    let mut here = articles(&replica.address).await;
    for number in 2..=150 {
        there.put_article(put(number)).await?;
    }
    let search = at_least(
        150,
        proto::SearchArticlesRequest {
            query: "\"number 150\"".into(),
            min_index_sequence: 150,
            ..proto::SearchArticlesRequest::default()
        },
    );
    let found = here.search_articles(search).await?.into_inner();
    let id = &found.hits[0].article.as_ref().unwrap().id;
    assert_eq!((found.hits.len(), id), (1, &id_of(150).to_string()));
    for number in 1..=150 {
        here.get_article(get_by_id(id_of(number))).await?;
    }
    drop((here, there));
    assert!(replica.terminate());
    assert!(writer.terminate());
    let ids: Vec<_> = (1..=150).map(id_of).collect();
    check_place(&place, small_cache(), &ids).await
}

/// A backup can follow a replica, which spares the server that writes the reading.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_follows_a_replica() -> TestResult {
    let folder = TempDir::new()?;
    let place = bucket_in(folder.path());
    let text = place.to_string();
    let backup = folder.path().join("backup");
    let flags = ["--replica", "--backup-to", backup.to_str().unwrap()];
    let writer = start(&text, &SOON, &[]);
    let mut calls = articles(&writer.address).await;
    let mut ids = Vec::new();
    // The second one goes on where the first one was.
    for numbers in [1..=40, 41..=60] {
        let replica = start(&text, &SOON, &flags);
        for number in numbers {
            calls.put_article(put(number)).await?;
            ids.push(id_of(number));
        }
        let delete = proto::DeleteArticleRequest {
            id: ids.pop().unwrap().to_string(),
            reason: "unwanted".into(),
        };
        let deleted = calls.delete_article(delete).await?.into_inner();
        let last = deleted.sequence;
        let mut admin = admin(&replica.address).await;
        let arrived = async {
            loop {
                let stats = admin.get_stats(proto::GetStatsRequest {}).await.unwrap();
                let stats = stats.into_inner();
                assert_eq!(stats.backup_error, "");
                if stats.backup_sequence >= Some(last) {
                    break;
                }
                tokio::task::yield_now().await;
            }
        };
        within(arrived).await;
        drop(admin);
        assert!(replica.terminate());
    }
    drop(calls);
    assert!(writer.terminate());
    let restored = folder.path().join("restored");
    restore(&backup, &restored);
    let restored = Locator::Folder(restored);
    check_place(&restored, small_cache(), &ids).await?;
    let log = log_at(&restored, small_cache()).await?;
    assert!(log == log_at(&place, small_cache()).await?, "all of it");
    Ok(())
}

/// Puts articles one by one, each again until it is acknowledged, to whoever writes just now.
pub struct Writing {
    task: JoinHandle<BTreeMap<u64, ContentHash>>,
    stop: watch::Sender<bool>,
    address: watch::Sender<String>,
    count: watch::Receiver<u64>,
}

impl Writing {
    /// Begins with the article of a number.
    pub fn start(address: &str, first: usize) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (address, mut addresses) = watch::channel(address.to_owned());
        let (counter, count) = watch::channel(0);
        let task = tokio::spawn(async move {
            let mut acknowledged = BTreeMap::new();
            let mut number = first;
            while !*stopped.borrow() {
                let address = addresses.borrow_and_update().clone();
                let mut calls = articles(&address).await;
                while !*stopped.borrow() {
                    let Ok(put) = calls.put_article(put(number)).await else {
                        // Whoever writes next says where.
                        if addresses.changed().await.is_err() {
                            return acknowledged;
                        }
                        break;
                    };
                    acknowledged.insert(put.into_inner().sequence, id_of(number));
                    counter.send_modify(|count| *count += 1);
                    number += 1;
                }
            }
            acknowledged
        });
        Self {
            task,
            stop,
            address,
            count,
        }
    }

    pub async fn more(&mut self, count: u64) {
        let goal = *self.count.borrow() + count;
        within(self.count.wait_for(|count| *count >= goal))
            .await
            .unwrap();
    }

    pub fn go_on_at(&self, address: &str) {
        self.address.send_replace(address.to_owned());
    }

    /// What was acknowledged, by its sequence.
    pub async fn finish(self) -> BTreeMap<u64, ContentHash> {
        self.stop.send_replace(true);
        within(self.task).await.unwrap()
    }
}

/// Watches from a sequence on until one has come, or the server is gone. Adds what it is told of.
async fn watch_to(
    mut calls: ArticleServiceClient<Channel>,
    seen: &mut Vec<(u64, ContentHash)>,
    last: u64,
) -> Result<(), Status> {
    let next = seen.last().map_or(1, |(sequence, _)| sequence + 1);
    let request = proto::WatchArticlesRequest {
        from_sequence: next,
        ..proto::WatchArticlesRequest::default()
    };
    // Whoever is asked may be behind who was asked before.
    let request = at_least(next - 1, request);
    let mut changes = calls.watch_articles(request).await?.into_inner();
    while seen.last().is_none_or(|(sequence, _)| *sequence < last) {
        let Some(message) = changes.message().await? else {
            return Ok(());
        };
        for change in message.changes {
            let Some(proto::change::Kind::Stored(article)) = change.kind else {
                panic!("nothing is deleted");
            };
            seen.push((article.sequence, article.id.parse().unwrap()));
        }
    }
    Ok(())
}

/// The writer dies under load and a standby takes over. One client watches a replica all the time, one
/// the writer and then the new one, and one goes on at the replica where the writer left it.
pub async fn watch_across_a_failover(
    place: &Locator,
    options: StoreOptions,
    flags: &[&str],
) -> TestResult {
    let text = place.to_string();
    let old = start(&text, flags, &[]);
    let mut writing = Writing::start(&old.address, 1);
    writing.more(1).await;
    let replica = start(&text, flags, &["--replica"]);
    let standby: Vec<&str> = flags.iter().copied().chain(["--standby"]).collect();
    let standby = ServerProcess::spawn_with(Path::new(&text), &standby);
    let at_replica = articles(&replica.address).await;
    let (goal, mut goals) = watch::channel(None);
    let watching = tokio::spawn(async move {
        let mut seen = Vec::new();
        loop {
            // The goal is not known before all is written.
            let last = goals.borrow_and_update().unwrap_or(u64::MAX);
            tokio::select! {
                watched = watch_to(at_replica.clone(), &mut seen, last) => return watched.map(|()| seen),
                _ = goals.changed() => {}
            }
        }
    });
    let mut from_writers = Vec::new();
    let at_old = articles(&old.address).await;
    writing.more(200).await;
    // It is cut off in the middle, at a sequence that nobody knows beforehand.
    let (cut, ()) = tokio::join!(watch_to(at_old, &mut from_writers, u64::MAX), async {
        writing.more(50).await;
        old.kill();
    });
    let killed = std::time::Instant::now();
    cut.unwrap_err();
    assert!(!from_writers.is_empty());
    let mut resumed = from_writers.clone();
    let new = tokio::task::block_in_place(|| standby.ready());
    writing.go_on_at(&new.address);
    writing.more(1).await;
    println!("the first write {:?} after the kill", killed.elapsed());
    writing.more(100).await;
    let acknowledged = writing.finish().await;
    let last = *acknowledged.keys().last().unwrap();
    goal.send_replace(Some(last));
    within(watch_to(
        articles(&new.address).await,
        &mut from_writers,
        last,
    ))
    .await?;
    within(watch_to(
        articles(&replica.address).await,
        &mut resumed,
        last,
    ))
    .await?;
    let from_replica = within(watching).await??;
    for (who, seen) in [
        ("the replica", &from_replica),
        ("the writers", &from_writers),
        ("the writer, then the replica", &resumed),
    ] {
        let sequences: Vec<u64> = seen.iter().map(|(sequence, _)| *sequence).collect();
        assert_eq!(sequences, (1..=last).collect::<Vec<_>>(), "{who}");
        let seen: BTreeMap<_, _> = seen.iter().copied().collect();
        for (sequence, id) in &acknowledged {
            assert_eq!(seen.get(sequence), Some(id), "{who} tells of {sequence}");
        }
    }
    println!("{last} sequences, each once, for three watchers");
    assert!(replica.terminate());
    assert!(new.terminate());
    let ids: Vec<_> = acknowledged.into_values().collect();
    check_place(place, options, &ids).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_goes_on_across_a_failover() -> TestResult {
    let folder = TempDir::new()?;
    watch_across_a_failover(&bucket_in(folder.path()), small_cache(), &SOON).await
}

/// The writer is stopped, a standby takes over, and the writer goes on.
pub async fn stop_the_writer(place: &Locator, options: StoreOptions, flags: &[&str]) -> TestResult {
    let text = place.to_string();
    let mut command = program();
    command.args(["serve", "--listen", "127.0.0.1:0", "--archive", &text]);
    command.args(flags).stderr(Stdio::piped());
    let mut old = ServerProcess::of(command);
    let mut log = old.take_stderr();
    let standby: Vec<&str> = flags.iter().copied().chain(["--standby"]).collect();
    let standby = ServerProcess::spawn_with(Path::new(&text), &standby);
    let replica = start(&text, flags, &["--replica"]);
    let mut calls = articles(&old.address).await;
    calls.put_article(put(1)).await?;
    let mut health = health(&old.address).await;
    let mut watch = health.watch(of_service("")).await?.into_inner();
    let told = within(watch.message()).await?.unwrap();
    assert_eq!(told.status(), ServingStatus::Serving);
    old.pause();
    // It is on its way while nobody works on it.
    let mut stopped = calls.clone();
    let in_between = tokio::spawn(async move { stopped.put_article(put(2)).await });
    let new = tokio::task::block_in_place(|| standby.ready());
    let mut new_calls = articles(&new.address).await;
    let third = new_calls.put_article(put(3)).await?.into_inner();
    old.go_on();
    let told = within(watch.message()).await?.unwrap();
    assert_eq!(told.status(), ServingStatus::NotServing, "before it ends");
    let refused = within(in_between).await?;
    refused.unwrap_err();
    for number in 4..8 {
        // That it is gone by then is as good.
        calls.put_article(put(number)).await.unwrap_err();
    }
    let fourth = new_calls.put_article(put(8)).await?.into_inner();
    assert_eq!((third.sequence, fourth.sequence), (2, 3));
    let request = at_least(3, proto::CountArticlesRequest::default());
    let mut here = articles(&replica.address).await;
    let count = here.count_articles(request).await?.into_inner();
    assert_eq!(count.article_count(), 3);
    assert_eq!(info(&replica).await.writer, new.host_and_port());
    drop((calls, new_calls, here, health, watch));
    assert_eq!(old.exit_code(), Some(2), "it ends by itself");
    let mut text = String::new();
    log.read_to_string(&mut text)?;
    let why = "another process has taken the archive over";
    assert!(text.contains(why), "{text}");
    assert!(replica.terminate());
    assert!(new.terminate());
    let ids: Vec<_> = [1, 3, 8].map(id_of).into();
    check_place(place, options, &ids).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_writer_never_acknowledges_again() -> TestResult {
    let folder = TempDir::new()?;
    stop_the_writer(&bucket_in(folder.path()), small_cache(), &SOON).await
}
