//! `pressmark migrate`: everything arrives as it was, of an archive at rest and of one in use; a kill
//! at any moment is taken up; and no archive is used at two places.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pressmark::archive::{
    Archive, CopiesQuery, Direction, Guard, Limits, Order, Page, Query, Selector, SelectorFields,
};
use pressmark::article::{ArticleFields, ContentHash};
use pressmark::error::{Error, Reason};
use pressmark::rpc::proto;
use pressmark::store::{self, Locator, StoreOptions};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;

use crate::backup::{bytes_from, check_same_articles, remove_record};
use crate::cli::{Ran, Scratch, program};
use crate::dictionary::{limits, put_worded};
use crate::guard::get;
use crate::load::{rounds, seed};
use crate::operator::{health, of_service};
use crate::server::{ServerProcess, articles, check, check_folder, message};
use crate::support::{
    Engine, TestArchive, TestResult, articles_max, bucket_in, fields, noise, small_cache, time,
};

/// Flags of a migration to object storage that answers soon, and is left soon.
const SOON: [&str; 4] = ["--flush-interval", "5ms", "--writer-lease", "300ms"];

/// `pressmark migrate` with further arguments.
pub fn migrate(arguments: &[&str]) -> Command {
    let mut command = program();
    command.arg("migrate").args(SOON).args(arguments);
    command
}

/// A migration that runs beside the test. Dropping it kills it.
pub struct Running {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Running {
    pub fn start(mut command: Command) -> Self {
        command.arg("--json").stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output }
    }

    /// The next thing that it tells.
    fn event(&mut self) -> Value {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "the migration has ended");
        serde_json::from_str(&line).unwrap()
    }

    /// Waits until it tells that it follows, at a sequence or beyond.
    pub fn follows(&mut self, sequence: u64) {
        loop {
            let event = self.event();
            if event["event"] == "following" && event["sequence"].as_u64() >= Some(sequence) {
                return;
            }
        }
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, signal).unwrap();
    }

    /// The last thing that it tells, and the exit code.
    pub fn end(self) -> (Value, i32) {
        let (last, code) = self.try_end();
        (last.expect("it tells its end"), code)
    }

    /// The same of one that may have been refused.
    pub fn try_end(mut self) -> (Option<Value>, i32) {
        let last = (&mut self.output).lines().last();
        let code = self.child.wait().unwrap().code().unwrap();
        (
            last.map(|last| serde_json::from_str(&last.unwrap()).unwrap()),
            code,
        )
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already, as the test wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Opens what is not in use, also an archive that was moved, without changing its marks.
pub async fn open_left(
    locator: &Locator,
    options: StoreOptions,
) -> Result<(Archive, Guard), Error> {
    let store = store::open(locator, options).await?;
    Archive::open_to_leave(store, Limits::default()).await
}

/// Everything that the log of an archive says, of which nothing may change on the way. Proves it, too.
pub async fn log_at(locator: &Locator, options: StoreOptions) -> Result<Vec<u8>, Error> {
    let (archive, guard) = open_left(locator, options).await?;
    check(&archive).await;
    let log = bytes_from(&archive, 1).await?;
    drop(archive);
    guard.close().await?;
    Ok(log)
}

/// Articles of all kinds and deletes of some: with a dictionary and without, revisions, copies, an
/// undated and a large one, which is deleted in part.
async fn fill(archive: &Archive) -> Result<Vec<ContentHash>, Error> {
    let more = [
        ArticleFields {
            body: noise(1, 400_000),
            ..fields(5000)
        },
        ArticleFields {
            body: noise(2, 2_500_000),
            ..fields(5001)
        },
        ArticleFields {
            published_at: None,
            ..fields(5002)
        },
        ArticleFields {
            url: fields(3).url,
            ..fields(5003)
        },
        ArticleFields {
            body: fields(3).body,
            ..fields(5004)
        },
        fields(3),
    ];
    for fields in more {
        let article = pressmark::article::Article::new(fields).unwrap();
        archive.put(crate::support::prepared(&article)).await?;
    }
    put_worded(archive, 100..180).await?;
    archive.trained().await?;
    put_worded(archive, 180..2600).await?;
    let mut deleted = Vec::new();
    let large = ArticleFields {
        body: noise(1, 400_000),
        ..fields(5000)
    };
    let mut some = vec![pressmark::article::Article::new(large).unwrap().id()];
    some.extend((0..40).map(|n| {
        let fields = crate::dictionary::worded(110 + 50 * n);
        pressmark::article::Article::new(fields).unwrap().id()
    }));
    for (n, id) in some.into_iter().enumerate() {
        archive.delete(id, &format!("reason {n}"), time(9)).await?;
        deleted.push(id);
    }
    put_worded(archive, 2600..2620).await?;
    Ok(deleted)
}

fn by_date(archive: &Archive) -> Query {
    Query {
        selector: Selector::new(SelectorFields::default(), archive.limits()).unwrap(),
        order: Order::Published(Direction::Descending),
    }
}

/// The page behind a token, and the answers to other questions that go through other indexes.
async fn questions(archive: &Archive, token: &str) -> Result<(Page, String), Error> {
    let page = archive
        .page(&by_date(archive), token, &articles_max(50))
        .await?;
    let id = pressmark::article::Article::new(fields(3)).unwrap().id();
    let query = CopiesQuery {
        id,
        similarity_min: None,
    };
    let copies = archive.copies(&query, "", &articles_max(50)).await?;
    let selector = SelectorFields {
        url: fields(3).url,
        ..SelectorFields::default()
    };
    let query = Query {
        selector: Selector::new(selector, archive.limits())?,
        order: Order::Arrival(Direction::Ascending),
    };
    let revisions = archive.page(&query, "", &articles_max(50)).await?;
    assert_eq!((copies.copies.len(), revisions.articles.len()), (1, 2));
    Ok((page, format!("{copies:?} {revisions:?}")))
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_the_same_at_the_other_place_and_back() -> TestResult {
    let scratch = Scratch::new();
    let (first, second) = (scratch.path("archive"), bucket_in(&scratch.path("")));
    let first = Locator::Folder(first);
    let store = store::open(&first, small_cache()).await?;
    let (archive, guard) = Archive::open(store, limits()).await?;
    let deleted = fill(&archive).await?;
    let token = archive
        .page(&by_date(&archive), "", &articles_max(50))
        .await?;
    let token = token.next_token.expect("there is more");
    let before = questions(&archive, &token).await?;
    drop(archive);
    guard.close().await?;
    let log = log_at(&first, small_cache()).await?;

    let (from, to) = (first.to_string(), second.to_string());
    let ran = Ran::of(&mut migrate(&[&from, &to])).exits(0);
    let all = "holds all 2567 records";
    assert!(
        ran.out.contains(all) && ran.out.contains("41 deleted"),
        "{}",
        ran.out
    );
    assert!(ran.err.contains("takes no more writes"), "{}", ran.err);
    assert!(
        log_at(&second, small_cache()).await? == log,
        "the logs differ"
    );
    let (archive, guard) = open_left(&first, small_cache()).await?;
    let (copy, copy_guard) = open_left(&second, small_cache()).await?;
    check_same_articles(&archive, &copy, &deleted).await;
    assert_eq!(questions(&copy, &token).await?, before);
    drop((archive, copy));
    guard.close().await?;
    copy_guard.close().await?;

    // The same again changes nothing.
    Ran::of(&mut migrate(&[&from, &to])).exits(0);
    // Nobody uses the one that was left, which is not lost for that.
    let refused = scratch.run(&["put", "-"]).exits(2);
    assert!(
        refused.err.contains(&format!("moved to {to}")),
        "{}",
        refused.err
    );
    let other = scratch.text("third");
    let refused = Ran::of(&mut migrate(&[&from, &other])).exits(2);
    assert!(
        refused.err.contains(&format!("moved to {to}")),
        "{}",
        refused.err
    );

    // What came at the new place goes back to the old one.
    let file = scratch.write(
        "new.md",
        pressmark::article::Article::new(fields(1))?.render(),
    );
    let put = program().args(["put", &file, "--archive", &to]).output()?;
    Ran::of_output(put).exits(0);
    let ran = Ran::of(&mut migrate(&[&to, &from, "--json"])).exits(0);
    let end = ran.objects().pop().unwrap();
    assert_eq!(
        (&end["event"], &end["copied_count"]),
        (&"complete".into(), &1.into())
    );
    assert!(log_at(&first, small_cache()).await? == log_at(&second, small_cache()).await?);
    let counted = scratch.run(&["stats", "--json"]).exits(0);
    assert_eq!(counted.objects()[0]["last_sequence"], 2568);
    let refused = program().args(["list", "--archive", &to]).output()?;
    assert!(
        Ran::of_output(refused)
            .exits(2)
            .err
            .contains(&format!("moved to {from}"))
    );
    Ok(())
}

/// Clients that put articles one by one and delete some of them, each again until it is acknowledged,
/// at the server that is told them, and what came of it.
pub struct Load {
    clients: Vec<JoinHandle<()>>,
    stop: watch::Sender<bool>,
    pub address: watch::Sender<String>,
    outcome: Arc<Mutex<Outcome>>,
}

#[derive(Default)]
pub struct Outcome {
    pub stored: Vec<ContentHash>,
    pub deleted: Vec<ContentHash>,
    /// The last sequence that was acknowledged.
    pub last: u64,
}

impl Load {
    pub fn start(address: &str, client_count: usize) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (address, addresses) = watch::channel(address.to_owned());
        let outcome = Arc::new(Mutex::new(Outcome::default()));
        let client = |first: usize| {
            let outcome = Arc::clone(&outcome);
            let (stopped, addresses) = (stopped.clone(), addresses.clone());
            tokio::spawn(async move {
                let mut number = first;
                while !*stopped.borrow() {
                    // Until it is acknowledged, the same again.
                    if put_and_delete(&addresses, number, &outcome).await.is_ok() {
                        number += client_count;
                    } else {
                        tokio::task::yield_now().await;
                    }
                }
            })
        };
        Self {
            clients: (0..client_count).map(client).collect(),
            stop,
            address,
            outcome,
        }
    }

    /// Waits until so many more are acknowledged. Returns the last sequence.
    pub async fn more(&self, count: usize) -> u64 {
        let goal = self.outcome.lock().unwrap().stored.len() + count;
        let started = Instant::now();
        loop {
            {
                let outcome = self.outcome.lock().unwrap();
                if outcome.stored.len() >= goal {
                    return outcome.last;
                }
            }
            assert!(started.elapsed() < Duration::from_secs(120), "writes go on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends the clients and returns what was acknowledged.
    pub async fn finish(self) -> Outcome {
        self.stop.send(true).unwrap();
        for client in self.clients {
            client.await.unwrap();
        }
        std::mem::take(&mut *self.outcome.lock().unwrap())
    }
}

/// Stores an article, and deletes every fifth. Any error may be because the server is gone.
async fn put_and_delete(
    addresses: &watch::Receiver<String>,
    number: usize,
    outcome: &Mutex<Outcome>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let address = addresses.borrow().clone();
    let endpoint = tonic::transport::Endpoint::from_shared(address)?;
    let channel = endpoint.connect().await?;
    let mut client = proto::article_service_client::ArticleServiceClient::new(channel);
    // Several over one connection, which may end between any two.
    let article = Some(message(number));
    let put = client
        .put_article(proto::PutArticleRequest { article })
        .await?;
    let put = put.into_inner();
    let id: ContentHash = put.id.parse()?;
    let was_deleted = put.outcome() == proto::PutOutcome::Deleted;
    let mut last = put.sequence;
    let deletes = number.is_multiple_of(5);
    if deletes && !was_deleted {
        let request = proto::DeleteArticleRequest {
            id: put.id,
            reason: "a test".into(),
        };
        last = client.delete_article(request).await?.into_inner().sequence;
    }
    let mut outcome = outcome.lock().unwrap();
    if deletes {
        outcome.deleted.push(id);
    }
    outcome.stored.push(id);
    outcome.last = outcome.last.max(last);
    Ok(())
}

/// Proves the archive at a place, and that all that was acknowledged is in it.
pub async fn check_outcome(
    place: &Locator,
    options: StoreOptions,
    outcome: &Outcome,
) -> TestResult {
    let (archive, guard) = open_left(place, options).await?;
    check(&archive).await;
    assert!(archive.committed() >= outcome.last);
    for some in outcome.stored.chunks(1000) {
        let missing = archive.find_missing(some).await?;
        assert_eq!(missing.missing, [], "of {}", outcome.stored.len());
    }
    for id in &outcome.deleted {
        let error = archive.get(id).await.unwrap_err();
        assert_eq!(error.reason(), Reason::ArticleDeleted, "{error}");
    }
    drop(archive);
    Ok(guard.close().await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_followed_until_it_stops_and_no_put_is_lost() -> TestResult {
    let scratch = Scratch::new();
    let (folder, to) = (scratch.path("archive"), bucket_in(&scratch.path("")));
    let to_text = to.to_string();
    let server = ServerProcess::start_with(&folder, &["--search", "off"]);
    let load = Load::start(&server.address, 4);
    load.more(300).await;
    let arguments = [&*server.address, &to_text, "--patience", "0s"];
    let mut running = Running::start(migrate(&arguments));
    running.follows(300);
    let last = load.more(300).await;
    running.follows(last);
    // Half of it is no archive to be used.
    let refused = migrate(&[&to_text, &scratch.text("third")]).output()?;
    assert!(Ran::of_output(refused).exits(2).err.contains("open in"));
    load.more(100).await;
    let stopping = tokio::task::spawn_blocking(|| assert!(server.terminate()));
    stopping.await?;
    let outcome = load.finish().await;
    let (end, code) = running.end();
    assert_eq!((&end["event"], code), (&"stopped".into(), 1));
    let mut serve = program();
    let serve = serve.args(["serve", "--listen", "127.0.0.1:0", "--archive", &to_text]);
    let refused = Ran::of(serve).exits(2);
    assert!(
        refused.err.contains("run `pressmark migrate` again"),
        "{}",
        refused.err
    );

    let from = folder.to_str().unwrap();
    let ran = Ran::of(&mut migrate(&[from, &to_text])).exits(0);
    assert!(ran.out.contains("holds all"), "{}", ran.out);
    check_outcome(&to, small_cache(), &outcome).await?;
    let from = Locator::Folder(folder);
    let (log, copy) = (log_at(&from, small_cache()), log_at(&to, small_cache()));
    assert!(log.await? == copy.await?, "the logs differ");
    println!(
        "{} puts and {} deletes acknowledged, 0 lost",
        outcome.stored.len(),
        outcome.deleted.len()
    );
    Ok(())
}

/// Clients go on at the new place, having been refused at the old one for a moment.
#[tokio::test(flavor = "multi_thread")]
async fn a_switch_under_load_loses_no_put() -> TestResult {
    let scratch = Scratch::new();
    let (folder, to) = (scratch.path("archive"), bucket_in(&scratch.path("")));
    let flags = ["--search", "off", "--http-listen", "127.0.0.1:0"];
    let mut server = ServerProcess::start_with(&folder, &flags);
    let http = server.figures_address();
    let load = Load::start(&server.address, 4);
    load.more(300).await;
    let running = Running::start(migrate(&["--switch", &server.address, &to.to_string()]));
    let (end, code) = tokio::task::spawn_blocking(|| running.end()).await?;
    assert_eq!((&end["event"], code), (&"complete".into(), 0));

    // The old server still answers, and takes nothing.
    let mut client = articles(&server.address).await;
    let request = proto::PutArticleRequest {
        article: Some(message(9_999_999)),
    };
    let refused = client.put_article(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(
        refused.message().contains(&format!("moved to {to}")),
        "{refused:?}"
    );
    let request = proto::DeleteArticleRequest {
        id: message_id(1),
        reason: "late".into(),
    };
    let refused = client.delete_article(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    let request = proto::GetArticleRequest {
        name: Some(proto::get_article_request::Name::Id(message_id(1))),
        ..proto::GetArticleRequest::default()
    };
    client.get_article(request).await?;
    // So it is as well as before.
    let mut health = health(&server.address).await;
    let told = health.check(of_service("")).await?.into_inner();
    assert_eq!(told.status(), ServingStatus::Serving);
    let ready = get(&http, "/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
    drop((client, health));

    let place = to.to_string();
    let flags = [SOON.as_slice(), &["--search", "off"]].concat();
    let next = ServerProcess::start_with(Path::new(&place), &flags);
    load.address.send(next.address.clone())?;
    load.more(200).await;
    let outcome = load.finish().await;
    assert!(server.terminate() && next.terminate());
    check_outcome(&to, small_cache(), &outcome).await?;
    let old = Locator::Folder(folder);
    let (archive, guard) = open_left(&old, small_cache()).await?;
    assert_eq!(Some(archive.committed()), end["last_sequence"].as_u64());
    check(&archive).await;
    drop(archive);
    Ok(guard.close().await?)
}

/// The id of an article that no client deletes.
fn message_id(number: usize) -> String {
    crate::server::id_of(number).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_migration_goes_on_where_it_was() -> TestResult {
    let scratch = Scratch::new();
    let mut random = StdRng::seed_from_u64(seed());
    let from = Locator::Folder(scratch.path("archive"));
    let store = store::open(&from, small_cache()).await?;
    let (archive, guard) = Archive::open(store, limits()).await?;
    fill(&archive).await?;
    drop(archive);
    guard.close().await?;
    let log = log_at(&from, small_cache()).await?;
    let from_text = from.to_string();
    let places = [
        bucket_in(&scratch.path("")),
        Locator::Folder(scratch.path("copy")),
    ];
    // How long all of it takes.
    let started = Instant::now();
    Ran::of(&mut migrate(&[&from_text, &scratch.text("whole")])).exits(0);
    let longest = started.elapsed();
    Ran::of(&mut migrate(&["--release", &from_text])).exits(0);
    for to in places {
        let to_text = to.to_string();
        let mut killed_count = 0;
        for _ in 0..rounds("PRESSMARK_TEST_KILLS", 6) {
            // How far it has come cannot be seen from outside, and is what varies here.
            let running = Running::start(migrate(&[&from_text, &to_text]));
            let after = random.random_range(Duration::ZERO..longest);
            tokio::time::sleep(after).await;
            let mut running = running;
            killed_count += usize::from(running.child.try_wait()?.is_none());
            drop(running);
        }
        println!("{to}: {killed_count} killed before the end");
        let mut command = migrate(&[&from_text, &to_text]);
        let ran = loop {
            let ran = Ran::of(&mut command);
            // The one that was killed has its lease for a moment.
            if ran.code != 2 || !ran.err.contains("open in") {
                break ran.exits(0);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        assert!(ran.out.contains("holds all 2567 records"), "{}", ran.out);
        assert!(log_at(&to, small_cache()).await? == log, "the logs differ");
        Ran::of(&mut migrate(&["--release", &from_text])).exits(0);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_told_and_what_is_set_aside_or_healed_arrives() -> TestResult {
    let scratch = Scratch::new();
    let (folder, to) = (scratch.path("archive"), bucket_in(&scratch.path("")));
    let (from, to_text) = (scratch.text("archive"), to.to_string());
    for number in 0..10 {
        put(&scratch, number);
    }
    let second = remove_record(&folder, 2).await?;
    let ninth = remove_record(&folder, 9).await?;
    let failed = Ran::of(&mut migrate(&[&from, &to_text])).exits(2);
    let parts = ["record 2 ", "verify --repair", "up to sequence 1 is"];
    let parts = parts.iter().filter(|part| !failed.err.contains(**part));
    assert_eq!(
        parts.collect::<Vec<_>>(),
        Vec::<&&str>::new(),
        "{}",
        failed.err
    );
    scratch.run(&["verify", "--repair"]).exits(1);

    // From here on a server is followed, so that both are open in turn.
    let follow = |at_least: u64| {
        let server = ServerProcess::start_with(&folder, &["--search", "off"]);
        let arguments = [&*server.address, &to_text, "--patience", "0s"];
        let mut running = Running::start(migrate(&arguments));
        running.follows(at_least);
        running.signal(rustix::process::Signal::TERM);
        let (end, code) = running.end();
        assert_eq!((&end["event"], code), (&"stopped".into(), 1));
        assert!(server.terminate());
    };
    follow(10);
    // Damage behind what was copied: one record is healed and deleted then, one is healed, and one
    // stays set aside. What is deleted of those that were set aside before is here as it was.
    for sequence in [3, 4, 5] {
        remove_record(&folder, sequence).await?;
    }
    scratch.run(&["verify", "--repair"]).exits(1);
    assert_eq!(put(&scratch, 2), "created");
    assert_eq!(put(&scratch, 3), "created");
    let third = crate::cli::id(2);
    for id in [&third, &ninth] {
        scratch.run(&["delete", "--reason", "gone", id]).exits(0);
    }
    let ran = Ran::of(&mut migrate(&[&from, &to_text])).exits(0);
    assert!(
        ran.err.contains("1 records that were set aside"),
        "{}",
        ran.err
    );
    let get = |id: &str| {
        let output = program().args(["get", id, "--archive", &to_text]).output();
        Ran::of_output(output.unwrap())
    };
    get(&crate::cli::id(4)).exits(0);
    get(&crate::cli::id(3)).exits(0);
    assert!(get(&third).exits(2).err.contains("deleted"));
    assert!(get(&ninth).exits(2).err.contains("deleted"));
    assert!(get(&second).exits(2).err.contains("set aside"));
    let (archive, guard) = open_left(&to, small_cache()).await?;
    let found = archive.verify().await?.findings;
    assert_eq!(
        found
            .iter()
            .filter_map(|finding| finding.sequence)
            .collect::<Vec<_>>(),
        [2]
    );
    drop(archive);
    Ok(guard.close().await?)
}

/// Puts an article into the archive of a scratch folder, and tells the outcome.
fn put(scratch: &Scratch, number: usize) -> String {
    let file = scratch.write(
        &format!("{number}.md"),
        crate::cli::article(number).render(),
    );
    let put = scratch.run(&["put", &file]).exits(0);
    put.out.split(' ').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_belong_together_is_refused() -> TestResult {
    let scratch = Scratch::new();
    let from = scratch.text("archive");
    for number in 0..3 {
        put(&scratch, number);
    }
    let file = scratch.text("0.md");
    scratch.run_on("other", &["put", &file]).exits(0);
    scratch.write("files/notes.txt", "mine");
    let fails = |arguments: &[&str], parts: &[&str]| {
        let ran = Ran::of(&mut migrate(arguments)).exits(2);
        for part in parts {
            assert!(ran.err.contains(part), "{} has no {part:?}", ran.err);
        }
    };
    let other = scratch.text("other");
    fails(&[&from, &other], &[&other, "another archive", "1 records"]);
    scratch.run_on("other", &["list"]).exits(0);
    fails(&[&from, &scratch.text("files")], &["files", "no archive"]);
    let objects = bucket_in(&scratch.path("files")).to_string();
    std::fs::create_dir(scratch.path("files/bucket"))?;
    scratch.write("files/bucket/holiday.jpg", "");
    let parts = [&objects, "holiday.jpg", "no archive", "name an empty place"];
    fails(&[&from, &objects], &parts);
    fails(&[&from, &from], &["is where the archive is"]);
    fails(&[&from, "http://127.0.0.1:1"], &["is a server"]);
    fails(&[&from, "memory:"], &["memory:"]);
    fails(&[&scratch.text("nowhere"), &other], &["no archive is at"]);
    fails(
        &[&scratch.text("files"), &scratch.text("new")],
        &["no archive is there"],
    );
    fails(&["http://127.0.0.1:1", &other], &["no server answers"]);
    fails(&[&from, &other, "--archive", &other], &["without flags"]);
    // A backup cannot stand in for the rest.
    let backup = scratch.text("all.pmb");
    scratch.run(&["backup", &backup]).exits(0);

    // The same archive that went on at the other place.
    let to = scratch.text("to");
    Ran::of(&mut migrate(&[&from, &to])).exits(0);
    let file = scratch.text("2.md");
    let more = scratch.write("more.md", crate::cli::article(7).render());
    scratch.run_on("to", &["put", &file, &more]).exits(0);
    fails(&[&from, &to], &["sequence 4, behind 3", "written to since"]);
    // One that has another record of the same place: it has not got what the first one has.
    Ran::of(&mut migrate(&["--release", &from])).exits(0);
    let more = scratch.write("more.md", crate::cli::article(8).render());
    scratch.run(&["put", &more]).exits(0);
    fails(&[&from, &to], &["gone different ways"]);
    let last = scratch.write("last.md", crate::cli::article(9).render());
    scratch.run(&["put", &last]).exits(0);
    scratch.run_on("to", &["put", &last]).exits(0);
    let longer = scratch.write("longer.md", crate::cli::article(10_000).render());
    scratch.run(&["put", &longer]).exits(0);
    scratch.run_on("to", &["put", &longer]).exits(0);
    fails(
        &[&from, &to],
        &["record 4 of it is article", "gone different ways"],
    );
    // Nothing was left, and nothing begun.
    scratch.run(&["list"]).exits(0);
    scratch.run_on("to", &["list"]).exits(0);

    // One that a migration has begun to fill.
    let started = scratch.text("started");
    begin(&scratch.path("archive"), &scratch.path("started")).await?;
    let refused = scratch.run_on("started", &["list"]).exits(2);
    assert!(refused.err.contains("not finished"), "{}", refused.err);
    let restored = scratch.run_on("started", &["restore", &backup]).exits(2);
    let advice = "pressmark migrate";
    assert!(restored.err.contains(advice), "{}", restored.err);
    fails(&[&started, &scratch.text("new")], &["not finished"]);
    Ran::of(&mut migrate(&["--release", &started])).exits(0);
    scratch.run_on("started", &["list"]).exits(0);
    check_folder(&scratch.path("to"), async |_| ()).await;
    check_folder(&scratch.path("archive"), async |_| ()).await;
    Ok(())
}

/// Begins a migration of an archive.
async fn begin(from: &Path, to: &Path) -> TestResult {
    let (from, guard) = open_left(&Locator::Folder(from.to_owned()), small_cache()).await?;
    let store = store::open(&Locator::Folder(to.to_owned()), small_cache()).await?;
    let near = from.near_copies();
    let (to, to_guard) = Archive::open_to_receive(store, Limits::default(), near).await?;
    let id = from.archive_id().await?;
    to.begin_migration(id, 1, "there").await?;
    drop((from, to));
    guard.close().await?;
    Ok(to_guard.close().await?)
}

/// A record that is gone from what was copied, too far back to be compared when the copy goes on: the
/// figures tell, and the place is not released for use.
#[tokio::test(flavor = "multi_thread")]
async fn what_lacks_is_told() -> TestResult {
    let scratch = Scratch::new();
    let folder = scratch.path("archive");
    for number in 0..600 {
        let article = crate::cli::article(number).render();
        scratch.write(&format!("tree/{number}.md"), article);
    }
    scratch.run(&["import", &scratch.text("tree")]).exits(0);
    let to = scratch.path("to");
    let to_text = scratch.text("to");
    let server = ServerProcess::start_with(&folder, &["--search", "off"]);
    let mut running = Running::start(migrate(&[&server.address, &to_text]));
    running.follows(600);
    running.signal(rustix::process::Signal::INT);
    assert_eq!(running.end().1, 1);
    assert!(server.terminate());
    remove_record(&to, 7).await?;
    let store = store::open(&Locator::Folder(to.clone()), small_cache()).await?;
    let (archive, guard) = Archive::open_to_repair(store, Limits::default()).await?;
    archive.repair(time(5)).await?;
    drop(archive);
    guard.close().await?;

    let from = scratch.text("archive");
    let ran = Ran::of(&mut migrate(&[&from, &to_text])).exits(1);
    let parts = ["record 7 is article", "1 records are not the same"];
    assert!(
        parts.iter().all(|part| ran.out.contains(part)),
        "{}",
        ran.out
    );
    scratch.run_on("to", &["list"]).exits(2);
    // Nothing was left for it.
    scratch.run(&["list"]).exits(0);
    let ran = Ran::of(&mut migrate(&[&from, &to_text, "--json"])).exits(1);
    let end = ran.objects().pop().unwrap();
    assert_eq!(end["event"], "lacking");
    assert_eq!(end["difference_count"], 1);
    assert_eq!(end["differences"][0]["sequence"], 7);
    check_folder(&folder, async |_| ()).await;
    Ok(())
}

/// A server that was left takes writes again when the migration is given up.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_left_can_be_taken_back() -> TestResult {
    let scratch = Scratch::new();
    let server = ServerProcess::start(&scratch.path("archive"));
    let mut admin = crate::server::admin(&server.address).await;
    let move_to = |to: &str| proto::MoveArchiveRequest { to: to.to_owned() };
    let moved = admin
        .move_archive(move_to("s3://there"))
        .await?
        .into_inner();
    assert_eq!(moved.last_sequence, Some(0));
    // The same again is no error, another place is.
    admin.move_archive(move_to("s3://there")).await?;
    let refused = admin
        .move_archive(move_to("s3://elsewhere"))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("s3://there"), "{refused:?}");
    let refused = admin.move_archive(move_to("a\nb")).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let mut client = articles(&server.address).await;
    let put = proto::PutArticleRequest {
        article: Some(message(1)),
    };
    let refused = client.put_article(put.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    Ran::of(&mut migrate(&["--release", &server.address])).exits(0);
    client.put_article(put).await?;
    drop((client, admin));
    assert!(server.terminate());
    check_folder(&scratch.path("archive"), async |_| ()).await;
    Ok(())
}

/// On every engine as the place to go to, with the archive in memory as well.
#[tokio::test(flavor = "multi_thread")]
async fn records_are_taken_on_every_engine() -> TestResult {
    let archive = TestArchive::with_limits(Engine::Memory, limits()).await;
    let deleted = fill(&archive).await?;
    for engine in [Engine::Memory, Engine::Sled, Engine::Slate] {
        let folder = tempfile::TempDir::new()?;
        let store = engine.open(folder.path()).await?;
        let near = archive.near_copies();
        let (copy, guard) = Archive::open_to_receive(store, Limits::default(), near).await?;
        let bytes = bytes_from(&archive, 1).await?;
        let mut decoder = pressmark::archive::backup::Decoder::new(&*bytes, "memory")?;
        let last = archive.committed();
        copy.check_origin(decoder.header(), last).await?;
        copy.begin_migration(decoder.header().archive_id, last, "memory")
            .await?;
        let mut receiver = pressmark::archive::backup::Receiver::new(&copy);
        while let Some(entries) = decoder.next_entries()? {
            for entry in entries {
                receiver.take(copy.prepare_entry(entry)?).await?;
            }
        }
        receiver.settle().await?;
        copy.end_migration().await?;
        assert_eq!(copy.holdings().await?, archive.holdings().await?);
        check_same_articles(&archive, &copy, &deleted).await;
        check(&copy).await;
        drop(copy);
        guard.close().await?;
    }
    archive.finish().await
}
