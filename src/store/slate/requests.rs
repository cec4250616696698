//! Counts what is asked of object storage, because every request there has a price.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};

use super::super::Requests;

/// Objects that a store lists in one answer.
const PAGE_OBJECTS: u64 = 1000;

/// The counts, shared with whoever reports them.
#[derive(Debug, Default)]
pub(super) struct Counts {
    puts: AtomicU64,
    gets: AtomicU64,
    lists: AtomicU64,
    deletes: AtomicU64,
}

impl Counts {
    pub(super) fn so_far(&self) -> Requests {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Requests {
            put_count: count(&self.puts),
            get_count: count(&self.gets),
            list_count: count(&self.lists),
            delete_count: count(&self.deletes),
        }
    }
}

fn one_more(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Object storage whose requests are counted. What the client of a provider sends again after a
/// failure counts once.
#[derive(Debug)]
pub(super) struct Counted {
    inner: Arc<dyn ObjectStore>,
    counts: Arc<Counts>,
}

impl Counted {
    pub(super) fn new(inner: Arc<dyn ObjectStore>) -> (Arc<Self>, Arc<Counts>) {
        let counts = Arc::new(Counts::default());
        let counted = Self {
            inner,
            counts: Arc::clone(&counts),
        };
        (Arc::new(counted), counts)
    }

    /// Counts the pages of a list while it is read.
    fn paged(
        &self,
        list: BoxStream<'static, Result<ObjectMeta>>,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let counts = Arc::clone(&self.counts);
        one_more(&counts.lists);
        let mut objects = 0;
        list.inspect(move |_| {
            objects += 1;
            if objects % PAGE_OBJECTS == 0 {
                one_more(&counts.lists);
            }
        })
        .boxed()
    }
}

impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for Counted {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        one_more(&self.counts.puts);
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        one_more(&self.counts.puts);
        let inner = self.inner.put_multipart_opts(location, options).await?;
        let counts = Arc::clone(&self.counts);
        Ok(Box::new(CountedUpload { inner, counts }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        one_more(&self.counts.gets);
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        one_more(&self.counts.gets);
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let counts = Arc::clone(&self.counts);
        let counted = locations.inspect(move |_| one_more(&counts.deletes));
        self.inner.delete_stream(counted.boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.paged(self.inner.list(prefix))
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.paged(self.inner.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        one_more(&self.counts.lists);
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        one_more(&self.counts.puts);
        self.inner.copy_opts(from, to, options).await
    }
}

/// A large object on its way.
#[derive(Debug)]
struct CountedUpload {
    inner: Box<dyn MultipartUpload>,
    counts: Arc<Counts>,
}

#[async_trait]
impl MultipartUpload for CountedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        one_more(&self.counts.puts);
        self.inner.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        one_more(&self.counts.puts);
        self.inner.complete().await
    }

    async fn abort(&mut self) -> Result<()> {
        one_more(&self.counts.deletes);
        self.inner.abort().await
    }
}

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt;
    use object_store::ObjectStoreExt;
    use object_store::memory::InMemory;

    use super::*;

    #[tokio::test]
    async fn every_request_counts() {
        let (store, counts) = Counted::new(Arc::new(InMemory::new()));
        let path = Path::from("a");
        store.put(&path, "1".into()).await.unwrap();
        store.get(&path).await.unwrap();
        store.head(&path).await.unwrap();
        store.get_range(&path, 0..1).await.unwrap();
        let mut upload = store.put_multipart(&Path::from("b")).await.unwrap();
        upload.put_part("1".into()).await.unwrap();
        upload.put_part("2".into()).await.unwrap();
        upload.complete().await.unwrap();
        let objects: Vec<_> = store.list(None).try_collect().await.unwrap();
        assert_eq!(objects.len(), 2);
        store.delete(&path).await.unwrap();
        let expected = Requests {
            put_count: 1 + 4,
            get_count: 3,
            list_count: 1,
            delete_count: 1,
        };
        assert_eq!(counts.so_far(), expected);
    }
}
