//! Object storage with the flaws that were seen in the field.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    PutMultipartOptions, PutPayload, Result as StorageResult,
};

use super::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    /// Every put writes, whatever its condition.
    IgnoresConditions,
    /// Looks whether there is an object, and then writes, as if nobody else could have meanwhile.
    LosesRaces,
    /// Refuses updates under a condition.
    RefusesUpdates,
    /// Takes an update for an object that has changed.
    IgnoresVersions,
    /// Lists nothing that is new.
    ListsLate,
    /// Answers a part of an object with its beginning.
    IgnoresRanges,
    /// Knows no creation under a condition.
    KnowsNoCreation,
    /// Cannot be reached.
    Gone,
}

#[derive(Debug)]
struct Flawed {
    inner: Arc<InMemory>,
    flaw: Flaw,
}

impl fmt::Display for Flawed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.flaw)
    }
}

fn generic() -> StorageError {
    StorageError::Generic {
        store: "flawed",
        source: "on purpose".into(),
    }
}

#[async_trait]
impl ObjectStore for Flawed {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> StorageResult<PutResult> {
        let overwrite = PutOptions::from(PutMode::Overwrite);
        let options = match (self.flaw, &options.mode) {
            (Flaw::Gone, _) | (Flaw::RefusesUpdates, PutMode::Update(_)) => return Err(generic()),
            (Flaw::IgnoresConditions, _) | (Flaw::IgnoresVersions, PutMode::Update(_)) => overwrite,
            (Flaw::KnowsNoCreation, PutMode::Create) => {
                return Err(StorageError::NotImplemented {
                    operation: "create".into(),
                    implementer: "flawed".into(),
                });
            }
            (Flaw::LosesRaces, PutMode::Create) if self.inner.head(location).await.is_err() => {
                tokio::task::yield_now().await;
                overwrite
            }
            _ => options,
        };
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> StorageResult<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> StorageResult<GetResult> {
        let mut options = options;
        if self.flaw == Flaw::IgnoresRanges && options.range.is_some() {
            options.range = Some((0..4).into());
        }
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, StorageResult<Path>>,
    ) -> BoxStream<'static, StorageResult<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StorageResult<ObjectMeta>> {
        if self.flaw == Flaw::ListsLate {
            return stream::empty().boxed();
        }
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> StorageResult<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> StorageResult<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

async fn probe(flaw: Flaw) -> Result<Probed> {
    let inner = Arc::new(InMemory::new());
    let store = Flawed {
        inner: Arc::clone(&inner),
        flaw,
    };
    let probed = run(&store, &Path::from("news"), "s3://test/news").await;
    if flaw != Flaw::ListsLate {
        let left: Vec<_> = inner.list(None).try_collect().await.unwrap();
        assert_eq!(left, [], "{flaw:?} leaves nothing");
    }
    probed
}

#[tokio::test]
async fn good_storage_is_used() {
    let probed = probe(Flaw::None).await.unwrap();
    assert!(probed.updates_conditionally);
}

#[tokio::test]
async fn storage_without_updates_under_a_condition_is_used() {
    for flaw in [Flaw::RefusesUpdates, Flaw::IgnoresVersions] {
        let probed = probe(flaw).await.unwrap();
        assert!(!probed.updates_conditionally, "{flaw:?}");
    }
}

#[tokio::test]
async fn storage_that_would_lose_data_is_refused_with_the_reason() {
    let cases = [
        (Flaw::IgnoresConditions, "If-None-Match"),
        (Flaw::LosesRaces, "8 of 8 requests at once"),
        (Flaw::KnowsNoCreation, "no creation under a condition"),
        (Flaw::ListsLate, "does not list"),
        (Flaw::IgnoresRanges, "another part"),
    ];
    for (flaw, reason) in cases {
        let error = probe(flaw).await.unwrap_err();
        assert_eq!(error.reason(), Reason::StorageUnfit, "{flaw:?}: {error}");
        for part in [reason, "s3://test/news"] {
            assert!(error.message().contains(part), "{flaw:?}: {error}");
        }
    }
}

#[tokio::test]
async fn storage_that_fails_is_not_called_unfit() {
    let error = probe(Flaw::Gone).await.unwrap_err();
    assert_eq!(error.reason(), Reason::StoreFailed, "{error}");
    assert!(error.to_string().contains("on purpose"), "{error}");
}
