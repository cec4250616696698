//! `ArticleService`: each method converts, calls the archive and converts back. The scan has a part
//! of its own below, the import a file.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument;

use super::ResponseStream;
use super::audit;
use super::caller::Caller;
use super::convert::{
    delete_message, ids_of, message_of, now, put_message, query_of, selector_of, shutting_down,
    source_message, status_of, stopping, texts_of, view_of,
};
use super::import;
use super::proto;
use super::proto::article_service_server::ArticleService;
use super::watch::Watch;
use super::wire::ImportArticlesRequest;
use crate::archive::{
    Archive, Direction, Order, Page, PageBudget, Put, Query, StoredArticle, View,
};
use crate::article::ContentHash;
use crate::error::{Error, Reason, Result};
use crate::search::Search;

/// Chunks of a scan that may wait for a slow reader.
const SCAN_CHUNKS_AHEAD: usize = 1;

/// Bytes of the chunks that all scans together have ahead. Many scans have smaller ones, as far as that
/// goes: one article is always in a chunk.
const SCAN_BYTES_AHEAD: usize = 64 * 1024 * 1024;

/// Scans that read a chunk at a time: a chunk in the making takes several times what it has in the end.
pub(super) const SCANS_READING_MAX: usize = 16;

/// The smallest chunk, so that a scan gets on.
const SCAN_CHUNK_BYTES_MIN: usize = 64 * 1024;

/// Serves articles.
#[derive(Clone, Debug)]
pub(super) struct Articles {
    pub(super) archive: Archive,
    /// Full-text search, if the server has it.
    pub(super) search: Option<Search>,
    /// How long a put may wait for a place in the writer's queue.
    pub(super) queue_wait_max: Duration,
    /// Ends open streams.
    pub(super) stop: CancellationToken,
    /// A clone for every open scan, and one more.
    pub(super) scans: Arc<()>,
    /// Places of those that read a chunk.
    pub(super) reading: Arc<Semaphore>,
}

#[tonic::async_trait]
impl ArticleService for Articles {
    type ImportArticlesStream = ResponseStream<proto::ImportArticlesResponse>;
    type ScanArticlesStream = ResponseStream<proto::ScanArticlesResponse>;
    type WatchArticlesStream = ResponseStream<proto::WatchArticlesResponse>;

    async fn put_article(
        &self,
        request: Request<proto::PutArticleRequest>,
    ) -> Result<Response<proto::PutArticleResponse>, Status> {
        let caller = audit::caller(&request);
        let put = self.put(request.into_inner(), caller).await;
        answer(put.map(put_message))
    }

    async fn import_articles(
        &self,
        request: Request<Streaming<ImportArticlesRequest>>,
    ) -> Result<Response<Self::ImportArticlesStream>, Status> {
        let writes = self.archive.check_writer().await;
        writes.map_err(|error| status_of(&error))?;
        let (pending, results) = mpsc::channel(self.archive.limits().import_results_max);
        let (answers, stream) = mpsc::channel(1);
        let (archive, stop) = (self.archive.clone(), self.stop.clone());
        let caller = audit::caller(&request);
        let requests = request.into_inner();
        let reading = import::read(archive, stop, requests, caller.clone(), pending);
        tokio::spawn(reading.in_current_span());
        tokio::spawn(import::answer(results, caller, answers).in_current_span());
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn find_missing_articles(
        &self,
        request: Request<proto::FindMissingArticlesRequest>,
    ) -> Result<Response<proto::FindMissingArticlesResponse>, Status> {
        answer(self.find_missing(request.into_inner()).await)
    }

    async fn get_article(
        &self,
        request: Request<proto::GetArticleRequest>,
    ) -> Result<Response<proto::GetArticleResponse>, Status> {
        answer(self.get(request.into_inner()).await)
    }

    async fn lookup_articles(
        &self,
        request: Request<proto::LookupArticlesRequest>,
    ) -> Result<Response<proto::LookupArticlesResponse>, Status> {
        answer(self.lookup(request.into_inner()).await)
    }

    async fn list_articles(
        &self,
        request: Request<proto::ListArticlesRequest>,
    ) -> Result<Response<proto::ListArticlesResponse>, Status> {
        answer(self.list(request.into_inner()).await)
    }

    async fn scan_articles(
        &self,
        request: Request<proto::ScanArticlesRequest>,
    ) -> Result<Response<Self::ScanArticlesStream>, Status> {
        let request = request.into_inner();
        let limits = self.archive.limits();
        let order = Order::Arrival(Direction::Ascending);
        let query = query_of(request.selector, request.order, order, limits);
        let query = query.map_err(|error| status_of(&error))?;
        let view = view_of(request.view, View::Full).map_err(|error| status_of(&error))?;
        let (chunks, stream) = mpsc::channel(SCAN_CHUNKS_AHEAD);
        let scan = scan(self.clone(), query, view, request.resume_token, chunks);
        tokio::spawn(scan.in_current_span());
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn delete_article(
        &self,
        request: Request<proto::DeleteArticleRequest>,
    ) -> Result<Response<proto::DeleteArticleResponse>, Status> {
        let caller = audit::caller(&request);
        answer(self.delete(request.into_inner(), caller).await)
    }

    async fn count_articles(
        &self,
        request: Request<proto::CountArticlesRequest>,
    ) -> Result<Response<proto::CountArticlesResponse>, Status> {
        answer(self.count(request.into_inner()).await)
    }

    async fn list_sources(
        &self,
        request: Request<proto::ListSourcesRequest>,
    ) -> Result<Response<proto::ListSourcesResponse>, Status> {
        answer(self.sources(request.into_inner()).await)
    }

    async fn list_revisions(
        &self,
        request: Request<proto::ListRevisionsRequest>,
    ) -> Result<Response<proto::ListRevisionsResponse>, Status> {
        answer(self.revisions(request.into_inner()).await)
    }

    async fn list_copies(
        &self,
        request: Request<proto::ListCopiesRequest>,
    ) -> Result<Response<proto::ListCopiesResponse>, Status> {
        answer(self.copies(request.into_inner()).await)
    }

    async fn watch_articles(
        &self,
        request: Request<proto::WatchArticlesRequest>,
    ) -> Result<Response<Self::WatchArticlesStream>, Status> {
        let (archive, stop) = (self.archive.clone(), self.stop.clone());
        let watch = Watch::new(archive, stop, request.into_inner());
        let watch = watch.map_err(|error| status_of(&error))?;
        let (messages, stream) = mpsc::channel(1);
        tokio::spawn(watch.run(messages).in_current_span());
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn get_timeline(
        &self,
        request: Request<proto::GetTimelineRequest>,
    ) -> Result<Response<proto::GetTimelineResponse>, Status> {
        answer(self.timeline(request.into_inner()).await)
    }

    async fn search_articles(
        &self,
        request: Request<proto::SearchArticlesRequest>,
    ) -> Result<Response<proto::SearchArticlesResponse>, Status> {
        answer(self.search(request.into_inner()).await)
    }
}

fn answer<T>(result: Result<T>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|error| status_of(&error))
}

/// Does what goes on when nobody waits for it any more.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let done = tokio::spawn(work.in_current_span()).await;
    done.unwrap_or_else(|panic| {
        Err(Error::new(Reason::Internal, "a write panicked").with_source(panic))
    })
}

impl Articles {
    async fn put(&self, request: proto::PutArticleRequest, caller: Option<Caller>) -> Result<Put> {
        self.archive.check_writer().await?;
        let article = request
            .article
            .ok_or_else(|| Error::field(Reason::ArgumentInvalid, "article", "is missing"))?;
        let prepared = import::prepare(&self.archive, article)
            .await
            .map_err(|error| error.within("article"))?;
        let queued = tokio::time::timeout(self.queue_wait_max, self.archive.enqueue(prepared));
        let pending = queued.await.map_err(|_| {
            let what = format!(
                "the writer's queue had no place for {:?}; nothing was stored",
                self.queue_wait_max
            );
            Error::new(Reason::QueueFull, what)
        })??;
        if !audit::is_known(caller.as_ref()) {
            return pending.result().await;
        }
        // It is stored whether or not somebody waits for the answer, and the line has to be written.
        to_its_end(async move {
            let put = pending.result().await?;
            audit::stored(caller.as_ref(), &put);
            Ok(put)
        })
        .await
    }

    async fn find_missing(
        &self,
        request: proto::FindMissingArticlesRequest,
    ) -> Result<proto::FindMissingArticlesResponse> {
        let missing = self.archive.find_missing(&ids_of(&request.ids)?).await?;
        Ok(proto::FindMissingArticlesResponse {
            missing_ids: texts_of(&missing.missing),
            deleted_ids: texts_of(&missing.deleted),
            quarantined_ids: texts_of(&missing.quarantined),
            stored_count: Some(missing.stored_count),
        })
    }

    pub(super) async fn get(
        &self,
        request: proto::GetArticleRequest,
    ) -> Result<proto::GetArticleResponse> {
        let view = view_of(request.view, View::Full)?;
        let stored = match request.name {
            Some(proto::get_article_request::Name::Url(url)) => {
                self.archive.get_by_url(&url).await?
            }
            Some(proto::get_article_request::Name::Id(id)) => match id.parse::<ContentHash>() {
                Ok(id) => self.archive.get(&id).await?,
                Err(_) => self.archive.get_by_prefix(&id).await?,
            },
            None => {
                let what = "is missing; send an id, a prefix of one, or a url";
                return Err(Error::field(Reason::ArgumentInvalid, "name", what));
            }
        };
        Ok(proto::GetArticleResponse {
            article: Some(message_of(stored, view)),
        })
    }

    async fn lookup(
        &self,
        request: proto::LookupArticlesRequest,
    ) -> Result<proto::LookupArticlesResponse> {
        let ids = ids_of(&request.ids)?;
        let view = view_of(request.view, View::Full)?;
        // The ids that are not found take room in the message too.
        let ids_bytes = ids.len() * (crate::article::HASH_HEX_DIGITS + 2);
        let bytes_max = self
            .archive
            .limits()
            .response_bytes_max
            .saturating_sub(ids_bytes);
        let budget = PageBudget {
            view,
            articles_max: ids.len(),
            bytes_max,
        };
        let lookup = self.archive.lookup(&ids, &budget).await?;
        Ok(proto::LookupArticlesResponse {
            articles: messages_of(lookup.found, view),
            missing_ids: texts_of(&lookup.missing),
            deleted_ids: texts_of(&lookup.deleted),
            deferred_ids: texts_of(&lookup.deferred),
            quarantined_ids: texts_of(&lookup.quarantined),
        })
    }

    pub(super) async fn list(
        &self,
        request: proto::ListArticlesRequest,
    ) -> Result<proto::ListArticlesResponse> {
        let limits = self.archive.limits();
        let order = Order::Published(Direction::Descending);
        let query = query_of(request.selector, request.order, order, limits)?;
        let view = view_of(request.view, View::Head)?;
        let budget = self.page_budget(view, request.page_size)?;
        let page = self
            .archive
            .page(&query, &request.page_token, &budget)
            .await?;
        Ok(proto::ListArticlesResponse {
            articles: messages_of(page.articles, view),
            next_page_token: page.next_token.unwrap_or_default(),
            as_of_sequence: Some(page.as_of),
        })
    }

    /// Reads the next chunk of a scan, when it is its turn.
    async fn chunk(&self, query: &Query, token: &str, budget: &PageBudget) -> Result<Page> {
        let turn = self.reading.acquire().await;
        let _turn = turn.map_err(|_| shutting_down())?;
        self.archive.page(query, token, budget).await
    }

    async fn delete(
        &self,
        request: proto::DeleteArticleRequest,
        caller: Option<Caller>,
    ) -> Result<proto::DeleteArticleResponse> {
        let id = ContentHash::parse("id", &request.id)?;
        let (archive, now) = (self.archive.clone(), now()?);
        to_its_end(async move {
            let deleted = archive.delete(id, &request.reason, now).await?;
            let deleted = delete_message(deleted);
            audit::deleted(caller.as_ref(), &deleted);
            Ok(deleted)
        })
        .await
    }

    async fn count(
        &self,
        request: proto::CountArticlesRequest,
    ) -> Result<proto::CountArticlesResponse> {
        let selector = selector_of(request.selector, self.archive.limits())?;
        let (article_count, as_of) = self.archive.count(&selector).await?;
        Ok(proto::CountArticlesResponse {
            article_count: Some(article_count),
            as_of_sequence: Some(as_of),
        })
    }

    pub(super) async fn sources(
        &self,
        request: proto::ListSourcesRequest,
    ) -> Result<proto::ListSourcesResponse> {
        let count_max = self.archive.limits().page_size(request.page_size)?;
        let page = self
            .archive
            .list_sources(count_max, &request.page_token)
            .await?;
        Ok(proto::ListSourcesResponse {
            sources: page.sources.into_iter().map(source_message).collect(),
            next_page_token: page.next_token.unwrap_or_default(),
        })
    }
}

pub(super) fn messages_of(articles: Vec<StoredArticle>, view: View) -> Vec<proto::Article> {
    articles
        .into_iter()
        .map(|article| message_of(article, view))
        .collect()
}

/// Reads chunk after chunk, no faster than the client takes them. Nothing is held in between.
async fn scan(
    service: Articles,
    query: Query,
    view: View,
    mut token: String,
    chunks: mpsc::Sender<Result<proto::ScanArticlesResponse, Status>>,
) {
    let open = Arc::clone(&service.scans);
    let most = service.archive.limits().scan_chunk_bytes;
    loop {
        let share = SCAN_BYTES_AHEAD / Arc::strong_count(&open);
        let budget = PageBudget {
            view,
            articles_max: usize::MAX,
            bytes_max: share.max(SCAN_CHUNK_BYTES_MIN).min(most),
        };
        // First a place for the chunk, then what is in it: a slow reader holds one less.
        let place = tokio::select! {
            place = chunks.reserve() => place,
            () = service.stop.cancelled() => {
                // Waits for the reader; the server's drain puts a bound on that.
                let _ = chunks.send(Err(stopping())).await;
                return;
            }
        };
        let Ok(place) = place else { return };
        let page = tokio::select! {
            page = service.chunk(&query, &token, &budget) => page,
            () = service.stop.cancelled() => Err(shutting_down()),
            () = chunks.closed() => return,
        };
        let page = match page {
            Ok(page) => page,
            Err(error) => {
                place.send(Err(status_of(&resume_error(error))));
                return;
            }
        };
        token = page.next_token.unwrap_or_default();
        let articles = messages_of(page.articles, view);
        let chunk = proto::ScanArticlesResponse {
            articles,
            resume_token: token.clone(),
        };
        place.send(Ok(chunk));
        if token.is_empty() {
            return;
        }
    }
}

/// A scan's token is named `resume_token`, the list's `page_token`.
fn resume_error(error: Error) -> Error {
    match error.message().strip_prefix("page_token: ") {
        Some(message) => Error::field(error.reason(), "resume_token", message),
        None => error,
    }
}
