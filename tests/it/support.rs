//! What the tests share: makers of articles, and archives on every engine.

use std::fmt::Debug;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pressmark::archive::{Archive, Guard, Limits, NearCopies, PageBudget, Prepared, Put, View};
use pressmark::article::{Article, ArticleFields, ContentHash, Timestamp};
use pressmark::error::{Error, Reason};
use pressmark::store::{self, Locator, ObjectOptions, Objects, Provider, Store, StoreOptions};
use tempfile::TempDir;

pub type TestResult = Result<(), Box<dyn std::error::Error>>;

/// The sources that made articles take in turn.
pub const SOURCES: [&str; 4] = ["Aljazeera", "Beacon", "Courier", "Dispatch"];

/// A date in 2020, by which made articles are apart a minute each.
pub const FIRST_DATE: i64 = 1_577_836_800;

/// Runs suites of the form `async fn name(engine: Engine) -> TestResult` on every engine. A new
/// engine is one line here and its arm in [`Engine::open`].
macro_rules! on_each_engine {
    ($($suite:ident),+ $(,)?) => {
        on_engine!(memory, Memory, $($suite),+);
        on_engine!(sled, Sled, $($suite),+);
        on_engine!(slate, Slate, $($suite),+);
    };
}

macro_rules! on_engine {
    ($module:ident, $engine:ident, $($suite:ident),+) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $suite() -> crate::support::TestResult {
                    super::$suite(crate::support::Engine::$engine).await
                }
            )+
        }
    };
}

/// A storage engine under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Memory,
    Sled,
    /// SlateDB, with a folder for object storage.
    Slate,
    /// What a replica of that reads.
    Replica,
    /// SlateDB on a Ceph of three OSDs.
    Ceph,
}

impl Engine {
    /// Opens the store of this engine that has its place in a folder.
    pub async fn open(self, folder: &Path) -> Result<Arc<dyn Store>, Error> {
        let mut options = small_cache();
        let locator = match self {
            Self::Memory => Locator::Memory,
            Self::Sled => Locator::Folder(folder.join("archive")),
            Self::Slate => bucket_in(folder),
            Self::Replica => {
                let place = bucket_in(folder);
                return Ok(Arc::new(crate::replica::Followed::open(&place).await?));
            }
            Self::Ceph => {
                options = crate::ceph::options();
                crate::ceph::place_for(folder)
            }
        };
        store::open(&locator, options).await
    }
}

/// A folder in a folder that stands for a bucket of object storage.
pub fn bucket_in(folder: &Path) -> Locator {
    let bucket = folder.join("bucket").display().to_string();
    Locator::Objects(Objects {
        provider: Provider::Folder,
        bucket,
        prefix: String::new(),
    })
}

/// A cache far below the default, so that many archives fit beside each other, and no waiting for
/// others that could share a request.
pub fn small_cache() -> StoreOptions {
    StoreOptions {
        cache_bytes: 4 * 1024 * 1024,
        objects: ObjectOptions {
            flush_interval: Duration::from_millis(1),
            lease: Duration::from_millis(300),
            poll_interval: Duration::from_millis(20),
            ..ObjectOptions::default()
        },
        ..StoreOptions::default()
    }
}

/// An archive in a folder of its own. Stands for its [`Archive`].
pub struct TestArchive {
    engine: Engine,
    limits: Limits,
    store: Arc<dyn Store>,
    archive: Archive,
    guard: Guard,
    folder: TempDir,
}

impl Deref for TestArchive {
    type Target = Archive;

    fn deref(&self) -> &Archive {
        &self.archive
    }
}

impl TestArchive {
    pub async fn open(engine: Engine) -> Self {
        Self::with_limits(engine, Limits::default()).await
    }

    pub async fn with_limits(engine: Engine, limits: Limits) -> Self {
        let folder = TempDir::new().unwrap();
        let store = engine.open(folder.path()).await.unwrap();
        Self::on(engine, limits, store, folder).await
    }

    async fn on(engine: Engine, limits: Limits, store: Arc<dyn Store>, folder: TempDir) -> Self {
        let (archive, guard) = Archive::open(Arc::clone(&store), limits).await.unwrap();
        Self::of(engine, limits, store, folder, (archive, guard))
    }

    fn of(
        engine: Engine,
        limits: Limits,
        store: Arc<dyn Store>,
        folder: TempDir,
        (archive, guard): (Archive, Guard),
    ) -> Self {
        Self {
            engine,
            limits,
            store,
            archive,
            guard,
            folder,
        }
    }

    /// Closes the archive and opens it again. The rows of a memory store would be gone after its
    /// close, so there only the archive is opened anew, on the same store.
    pub async fn reopen(self) -> Self {
        let (engine, limits, store, folder) = self.reopened_store().await;
        Self::on(engine, limits, store, folder).await
    }

    /// The same, with other limits.
    pub async fn reopen_limited(self, limits: Limits) -> Self {
        let (engine, _, store, folder) = self.reopened_store().await;
        Self::on(engine, limits, store, folder).await
    }

    /// The same, with near copies or without.
    pub async fn reopen_with(self, near: NearCopies) -> Self {
        let (engine, limits, store, folder) = self.reopened_store().await;
        let opened = Archive::open_with(Arc::clone(&store), limits, near).await;
        Self::of(engine, limits, store, folder, opened.unwrap())
    }

    async fn reopened_store(self) -> (Engine, Limits, Arc<dyn Store>, TempDir) {
        let Self {
            engine,
            limits,
            store,
            archive,
            guard,
            folder,
        } = self;
        drop(archive);
        let store = match engine {
            Engine::Memory => store,
            Engine::Sled | Engine::Slate | Engine::Replica | Engine::Ceph => {
                guard.close().await.unwrap();
                engine.open(folder.path()).await.unwrap()
            }
        };
        (engine, limits, store, folder)
    }

    /// Ends a test: nothing may be wrong with the archive that it leaves behind.
    #[track_caller]
    pub fn finish(self) -> impl Future<Output = TestResult> {
        let caller = std::panic::Location::caller();
        async move {
            let report = self.archive.verify().await?;
            assert_eq!(
                report.finding_count, 0,
                "the archive of {caller} has findings: {:#?}",
                report.findings
            );
            self.close().await
        }
    }

    /// Ends a test that damaged the archive.
    pub async fn close(self) -> TestResult {
        Ok(self.guard.close().await?)
    }

    /// Closes the archive and returns its folder, which is removed when it is dropped.
    pub async fn close_and_keep(self) -> Result<TempDir, Error> {
        self.guard.close().await?;
        Ok(self.folder)
    }

    /// The folder that a sled archive has its own folder in.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// A handle that outlives the fixture.
    pub fn handle(&self) -> Archive {
        self.archive.clone()
    }

    pub async fn put_fields(&self, fields: ArticleFields) -> Put {
        let article = Article::new(fields).unwrap();
        self.archive.put(prepared(&article)).await.unwrap()
    }

    /// Queues all articles before it waits for the first, so that they share groups.
    pub async fn put_all(&self, all: impl IntoIterator<Item = ArticleFields>) -> Vec<Put> {
        let mut pending = Vec::new();
        for fields in all {
            let article = Article::new(fields).unwrap();
            pending.push(self.archive.enqueue(prepared(&article)).await.unwrap());
        }
        let mut puts = Vec::new();
        for put in pending {
            puts.push(put.result().await.unwrap());
        }
        puts
    }
}

/// The fields of the n-th article, which differs from all others in title, date, URL and body.
pub fn fields(n: u32) -> ArticleFields {
    ArticleFields {
        title: format!("Article {n}"),
        published_at: Some(time(FIRST_DATE + 60 * i64::from(n))),
        author: String::new(),
        source: SOURCES[n as usize % SOURCES.len()].to_owned(),
        url: format!("https://news.example/{n}"),
        body: format!("This is what article {n} tells.\n"),
    }
}

pub fn article(n: u32) -> Article {
    Article::new(fields(n)).unwrap()
}

pub fn time(seconds: i64) -> Timestamp {
    Timestamp::new("time", seconds, 0).unwrap()
}

/// An article that arrives a day after the first date.
pub fn prepared(article: &Article) -> Prepared {
    Prepared::new(article.clone(), time(FIRST_DATE + 86_400), None).unwrap()
}

/// Hex digits without a pattern, which zstd can only halve.
pub fn noise(seed: u32, bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + 64);
    let mut block = 0_u32;
    while text.len() < bytes {
        let source = [seed.to_be_bytes(), block.to_be_bytes()].concat();
        text.push_str(&ContentHash::of(&source).to_string());
        block += 1;
    }
    text.truncate(bytes);
    text
}

/// A page of so many articles, whatever their bytes.
pub fn articles_max(count: usize) -> PageBudget {
    PageBudget {
        view: View::Full,
        articles_max: count,
        bytes_max: usize::MAX,
    }
}

/// Checks that something failed for a reason, with a message that holds all parts.
#[track_caller]
pub fn check_error<T: Debug>(result: Result<T, Error>, reason: Reason, parts: &[&str]) -> Error {
    let error = result.expect_err("must fail");
    assert_eq!(error.reason(), reason, "{error}");
    for part in parts {
        let text = error.to_string();
        assert!(text.contains(part), "{text:?} does not contain {part:?}");
    }
    error
}

/// Copies a folder and all that is in it to a place where nothing is yet.
pub fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let place = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &place)?;
        } else {
            std::fs::copy(entry.path(), place)?;
        }
    }
    Ok(())
}
