//! Fixtures: a server in this process, and one in a process of its own that can be killed.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use pressmark::archive::{Archive, Guard, Limits};
use pressmark::error::Error;
use pressmark::rpc::proto::admin_service_client::AdminServiceClient;
use pressmark::rpc::proto::article_service_client::ArticleServiceClient;
use pressmark::rpc::{self, Listeners, ServeOptions, ServiceLimits, Services, proto};
use pressmark::search::{Place, Search, SearchGuard};
use pressmark::store::{Locator, MemoryStore, Store, StoreOptions};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

/// The largest message that the clients of tests take.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A server on an archive in memory.
pub struct TestServer {
    pub archive: Archive,
    pub address: String,
    /// Where its pages are.
    pub http_address: String,
    pub stop: CancellationToken,
    guard: Guard,
    search_guard: Option<SearchGuard>,
    serving: JoinHandle<Result<(), Error>>,
}

impl TestServer {
    pub async fn start() -> Self {
        Self::start_with(Limits::default()).await
    }

    pub async fn start_with(limits: Limits) -> Self {
        Self::serve(limits, false).await
    }

    /// With full-text search, whose index is in memory too.
    pub async fn start_searched(limits: Limits) -> Self {
        Self::serve(limits, true).await
    }

    async fn serve(limits: Limits, is_searched: bool) -> Self {
        Self::serve_with(limits, is_searched, ServeOptions::default()).await
    }

    /// With other limits of the service.
    pub async fn start_limited(limits: ServiceLimits) -> Self {
        let options = ServeOptions {
            limits,
            ..ServeOptions::default()
        };
        Self::serve_with(Limits::default(), false, options).await
    }

    /// With other options.
    pub async fn serve_with(limits: Limits, is_searched: bool, options: ServeOptions) -> Self {
        Self::serve_on(Arc::new(MemoryStore::new()), limits, is_searched, options).await
    }

    /// On a store of the test's own.
    pub async fn serve_on(
        store: Arc<dyn Store>,
        limits: Limits,
        is_searched: bool,
        options: ServeOptions,
    ) -> Self {
        let opened = Archive::open(store, limits).await.unwrap();
        Self::serve_archive(opened, is_searched, options).await
    }

    /// An archive that was opened otherwise.
    pub async fn serve_archive(
        (archive, guard): (Archive, Guard),
        is_searched: bool,
        options: ServeOptions,
    ) -> Self {
        let search = is_searched.then(|| Search::open(archive.clone(), Place::Memory).unwrap());
        let (search, search_guard) = search.unzip();
        let services = Services {
            archive: archive.clone(),
            search,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let http_address = http.local_addr().unwrap().to_string();
        let listeners = Listeners {
            grpc: listener,
            http: Some(http),
        };
        let serving = tokio::spawn(rpc::serve(services, listeners, stopped, options));
        Self {
            archive,
            address,
            http_address,
            stop,
            guard,
            search_guard,
            serving,
        }
    }

    pub async fn articles(&self) -> ArticleServiceClient<Channel> {
        articles(&self.address).await
    }

    pub async fn admin(&self) -> AdminServiceClient<Channel> {
        admin(&self.address).await
    }

    /// Stops the server and closes the archive, however it is.
    pub async fn end(self) -> Result<(), Error> {
        self.stop.cancel();
        self.serving.await.unwrap()?;
        if let Some(search) = self.search_guard {
            search.close().await?;
        }
        self.guard.close().await
    }

    /// Stops the server and proves the archive.
    pub async fn finish(self) {
        self.stop.cancel();
        self.serving.await.unwrap().unwrap();
        check(&self.archive).await;
        if let Some(search) = self.search_guard {
            search.close().await.unwrap();
        }
        self.guard.close().await.unwrap();
    }
}

/// A client of the admin service at an address.
pub async fn admin(address: &str) -> AdminServiceClient<Channel> {
    AdminServiceClient::new(channel(address).await)
}

async fn channel(address: &str) -> Channel {
    Endpoint::from_shared(address.to_owned())
        .unwrap()
        .connect()
        .await
        .unwrap()
}

/// A client of the server at an address.
pub async fn articles(address: &str) -> ArticleServiceClient<Channel> {
    ArticleServiceClient::new(channel(address).await)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// Fails if the full check of an archive finds anything.
pub async fn check(archive: &Archive) {
    let report = archive.verify().await.unwrap();
    assert_eq!(report.finding_count, 0, "{:#?}", report.findings);
}

/// Opens the archive that a process left behind.
pub async fn open_folder(folder: &Path) -> Result<(Archive, Guard), Error> {
    let locator = Locator::Folder(folder.to_owned());
    let store = pressmark::store::open(&locator, StoreOptions::default()).await?;
    Archive::open(store, Limits::default()).await
}

/// Opens the archive that a process left behind, proves it and lets `read` look at it.
pub async fn check_folder<T>(folder: &Path, read: impl AsyncFnOnce(&Archive) -> T) -> T {
    let (archive, guard) = open_folder(folder).await.unwrap();
    check(&archive).await;
    let result = read(&archive).await;
    guard.close().await.unwrap();
    result
}

/// Takes a free port.
const ANY_PORT: &str = "127.0.0.1:0";

/// The program under test.
const PROGRAM: &str = env!("CARGO_BIN_EXE_pressmark");

/// `pressmark serve` in a process of its own. Dropping it kills it.
pub struct ServerProcess {
    child: Child,
    output: Option<BufReader<ChildStdout>>,
    /// Empty until it takes requests.
    pub address: String,
}

impl ServerProcess {
    /// Starts the server and returns when it takes requests.
    pub fn start(archive: &Path) -> Self {
        Self::start_with(archive, &[])
    }

    /// Starts it with further flags.
    pub fn start_with(archive: &Path, flags: &[&str]) -> Self {
        Self::run(Command::new(PROGRAM), archive, ANY_PORT, flags).ready()
    }

    /// Starts it where another one was before.
    pub fn start_at(archive: &Path, address: &str) -> Self {
        Self::run(Command::new(PROGRAM), archive, address, &[]).ready()
    }

    /// Starts the server and returns at once.
    pub fn spawn(archive: &Path) -> Self {
        Self::spawn_with(archive, &[])
    }

    /// The same, with further flags.
    pub fn spawn_with(archive: &Path, flags: &[&str]) -> Self {
        Self::run(Command::new(PROGRAM), archive, ANY_PORT, flags)
    }

    /// The same, at an address.
    pub fn spawn_at(archive: &Path, address: &str, flags: &[&str]) -> Self {
        Self::run(Command::new(PROGRAM), archive, address, flags)
    }

    /// Starts the server through another program and its arguments, which puts the server in its own
    /// place.
    pub fn spawn_under(program: &[&str], archive: &Path) -> Self {
        let mut command = Command::new(program[0]);
        command.args(&program[1..]).arg(PROGRAM);
        // A scrub and the search index would write when nobody waits for it.
        let quiet = ["--scrub-interval", "0", "--search", "off"];
        Self::run(command, archive, ANY_PORT, &quiet)
    }

    fn run(mut command: Command, archive: &Path, address: &str, flags: &[&str]) -> Self {
        let child = command
            .args(["serve", "--listen", address, "--archive"])
            .arg(archive)
            .args(flags)
            .env("PRESSMARK_LOG", "warn")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} cannot be run: {error}"));
        Self {
            child,
            output: None,
            address: String::new(),
        }
    }

    /// Starts a server by a command line of its own.
    pub fn of(mut command: Command) -> Self {
        let child = command.stdout(Stdio::piped()).spawn().unwrap();
        let address = String::new();
        let output = None;
        Self {
            child,
            output,
            address,
        }
        .ready()
    }

    /// What it logs.
    pub fn take_stderr(&mut self) -> std::process::ChildStderr {
        self.child.stderr.take().unwrap()
    }

    /// The next line that it prints.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.as_mut().unwrap().read_line(&mut line).unwrap();
        line
    }

    /// Where its figures are, without the scheme, which is the next line that it prints.
    pub fn figures_address(&mut self) -> String {
        let line = self.line();
        let (_, url) = line.trim().rsplit_once(' ').unwrap();
        let (_, address) = url.trim_end_matches("/metrics").split_once("://").unwrap();
        address.to_owned()
    }

    /// Waits until it takes requests.
    pub fn ready(mut self) -> Self {
        self.output = self.child.stdout.take().map(BufReader::new);
        let line = self.line();
        let (_, address) = line
            .trim()
            .rsplit_once(' ')
            .expect("the server says where it listens");
        self.address = address.to_owned();
        self
    }

    /// The number of its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The address without its scheme, as grpcurl wants it.
    pub fn host_and_port(&self) -> &str {
        self.address.trim_start_matches("http://")
    }

    /// Asks it to stop, and returns whether it exited with 0.
    pub fn terminate(mut self) -> bool {
        self.ask_to_stop();
        self.child.wait().unwrap().success()
    }

    /// Asks it to stop and kills it a moment later, which the caller varies: how far it has come
    /// cannot be seen from outside. Returns whether it had ended by then.
    pub fn terminate_and_kill(mut self, moment: Duration) -> bool {
        self.ask_to_stop();
        std::thread::sleep(moment);
        let ended = self.child.try_wait().unwrap();
        assert!(ended.is_none_or(|status| status.success()), "{ended:?}");
        self.kill();
        ended.is_some()
    }

    fn ask_to_stop(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, signal).unwrap();
    }

    /// Stops it where it is.
    pub fn pause(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    /// Lets it go on where it was.
    pub fn go_on(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    /// Waits until it ends by itself.
    pub fn exit_code(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }

    /// Kills it as `kill -9` does, and returns whether it said before that it takes requests.
    pub fn kill_starting(mut self) -> bool {
        self.child.kill().unwrap();
        let mut said = String::new();
        let mut stdout = self.child.stdout.take().unwrap();
        stdout.read_to_string(&mut said).unwrap();
        !said.is_empty()
    }

    /// Stops all that it does, as the end of its power would; then it can only be killed. Without that
    /// it could be told by a disk whose power is cut that a sync succeeded, as ext4 does at times.
    pub fn freeze(&self) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, rustix::process::Signal::STOP).unwrap();
    }

    /// Kills it as `kill -9` does.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // It may have ended already, as the test wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The id of such an article.
pub fn id_of(number: usize) -> pressmark::article::ContentHash {
    let message = message(number);
    let seconds = message.published_at.map(|time| time.seconds);
    let fields = pressmark::article::ArticleFields {
        title: message.title,
        published_at: seconds.map(crate::support::time),
        author: message.author,
        source: message.source,
        url: message.url,
        body: message.body,
    };
    pressmark::article::Article::new(fields).unwrap().id()
}

/// A valid article message that differs from those of other numbers.
pub fn message(number: usize) -> proto::Article {
    proto::Article {
        title: format!("Title {number}"),
        published_at: Some(prost_types::Timestamp {
            seconds: 1_000 * number as i64,
            nanos: 0,
        }),
        author: "A. Uthor".into(),
        source: ["Gazette", "Herald", "Post"][number % 3].into(),
        url: format!("https://example.com/{number}"),
        body: format!("Body of number {number}.\n"),
        ..proto::Article::default()
    }
}

/// Encodes articles for an import.
pub fn import_request(articles: &[proto::Article]) -> pressmark::rpc::ImportArticlesRequest {
    use prost::Message;
    pressmark::rpc::ImportArticlesRequest {
        articles: articles
            .iter()
            .map(|article| article.encode_to_vec().into())
            .collect(),
        resume_token: bytes::Bytes::new(),
    }
}
