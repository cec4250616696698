//! The stream of `ImportArticles`: one task takes articles and queues them, another answers.

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::audit;
use super::caller::Caller;
use super::convert::{article_of, import_result, now, stopping};
use super::layer::mend;
use super::proto;
use super::wire::{self, ImportArticlesRequest};
use crate::archive::{Archive, Hashed, PendingPut, Prepared, Put};
use crate::article::ContentHash;
use crate::error::{Error, Reason, Result};

/// Articles with more text are hashed and compressed on a thread that may take its time.
const INLINE_TEXT_BYTES_MAX: usize = 64 * 1024;

/// Articles of a message that are worked on at a time: an article can be two bytes long, and takes
/// far more as long as it is worked on.
const ARTICLES_AT_A_TIME: usize = 256;

/// Results in one message of an import. Many small messages would make HTTP/2 peers suspicious.
const RESULTS_PER_MESSAGE: usize = 256;

/// Validates, hashes and compresses an article for an archive.
pub(super) async fn prepare(archive: &Archive, message: proto::Article) -> Result<Prepared> {
    let (article, claimed) = article_of(message)?;
    let archived_at = now()?;
    let text_bytes = article.text_bytes();
    let archive = archive.clone();
    work(text_bytes, move || {
        archive.prepare(Hashed::new(article, archived_at, claimed)?)
    })
    .await?
}

/// Does work on text: a lot of it on a thread that may take its time.
async fn work<T: Send + 'static>(
    text_bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    if text_bytes <= INLINE_TEXT_BYTES_MAX {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(|panic| {
        Error::new(Reason::Internal, "preparing articles panicked").with_source(panic)
    })
}

/// What an import stream has to answer next, in the order of the articles.
pub(super) enum Pending {
    Put(PendingPut),
    /// Stored or deleted already.
    Known(Put),
    Refused(Error),
    /// Nothing more: the stream ends with this status.
    End(Status),
}

/// Takes articles from the client and queues them. Waits while the writer's queue is full or the
/// client is behind in reading results, so neither side can grow without bound.
pub(super) async fn read(
    archive: Archive,
    stop: CancellationToken,
    mut requests: Streaming<ImportArticlesRequest>,
    caller: Option<Caller>,
    pending: mpsc::Sender<Pending>,
) {
    let end = loop {
        let message = tokio::select! {
            message = requests.message() => message,
            () = stop.cancelled() => break Some(stopping()),
            // What is queued is stored all the same.
            () = pending.closed() => return,
        };
        let mut articles = match message {
            Ok(None) => break None,
            Ok(Some(message)) => message.articles.into_iter(),
            Err(status) => break Some(mend(&status)),
        };
        while articles.len() > 0 {
            let some = articles.by_ref().take(ARTICLES_AT_A_TIME).collect();
            for next in look_up(&archive, some).await {
                let next = match next {
                    Ok(next) => next.queue(&archive).await,
                    Err(error) => Pending::Refused(error),
                };
                if let Err(unsent) = pending.send(next).await {
                    // The client has gone. What is queued is stored all the same.
                    if let Pending::Put(put) = unsent.0
                        && let Ok(put) = put.result().await
                    {
                        audit::stored(caller.as_ref(), &put);
                    }
                    return;
                }
            }
        }
    };
    if let Some(status) = end {
        // If the client has gone, nobody is left to be told.
        let _ = pending.send(Pending::End(status)).await;
    }
}

/// An article of an import on its way.
enum Incoming {
    /// Stored or deleted already, so that nothing more is done for it.
    Known(Put),
    /// To be written.
    New(Box<Prepared>),
}

impl Incoming {
    async fn queue(self, archive: &Archive) -> Pending {
        match self {
            Self::Known(put) => Pending::Known(put),
            Self::New(prepared) => match archive.enqueue(*prepared).await {
                Ok(put) => Pending::Put(put),
                Err(error) => Pending::Refused(error),
            },
        }
    }
}

/// Decodes and hashes some articles, asks which of them are there already, and prepares
/// the others. Most articles that importers send were sent before, so that what is dear, the
/// compression and the way through the writer, is left for those that are new.
async fn look_up(archive: &Archive, articles: Vec<bytes::Bytes>) -> Vec<Result<Incoming>> {
    let count = articles.len();
    let result = sort_articles(archive, articles).await;
    // What fails for all of them is told of each.
    result.unwrap_or_else(|error| (0..count).map(|_| Err(error.clone())).collect())
}

async fn sort_articles(
    archive: &Archive,
    articles: Vec<bytes::Bytes>,
) -> Result<Vec<Result<Incoming>>> {
    let archived_at = now()?;
    let text_bytes = articles.iter().map(bytes::Bytes::len).sum();
    let hash = move |article| {
        let (article, claimed) = article_of(wire::decode(article)?)?;
        Hashed::new(article, archived_at, claimed)
    };
    let hash_all = move || articles.into_iter().map(hash).collect::<Vec<_>>();
    let hashed: Vec<Result<Hashed>> = work(text_bytes, hash_all).await?;
    let ids: Vec<ContentHash> = hashed.iter().flatten().map(Hashed::id).collect();
    let mut known = archive.known(&ids).await?.into_iter();
    let mut incoming = Vec::with_capacity(hashed.len());
    for article in hashed {
        incoming.push(article.map(|article| (known.next().flatten(), article)));
    }
    let archive = archive.clone();
    let prepare = move |(known, article): (Option<Put>, Hashed)| match known {
        Some(put) => Ok(Incoming::Known(put)),
        None => archive.prepare(article).map(Box::new).map(Incoming::New),
    };
    let prepare_all = move || {
        let incoming = incoming.into_iter();
        incoming.map(|article| article.and_then(&prepare)).collect()
    };
    work(text_bytes, prepare_all).await
}

/// Sends results as the articles become durable, as many in one message as are ready.
pub(super) async fn answer(
    mut pending: mpsc::Receiver<Pending>,
    caller: Option<Caller>,
    answers: mpsc::Sender<Result<proto::ImportArticlesResponse, Status>>,
) {
    let mut index = 0;
    let mut some = Vec::new();
    while pending.recv_many(&mut some, RESULTS_PER_MESSAGE).await > 0 {
        let mut results = Vec::with_capacity(some.len());
        let mut end = None;
        for next in some.drain(..) {
            let result: Result<Put> = match next {
                Pending::Put(put) => put.result().await,
                Pending::Known(put) => Ok(put),
                Pending::Refused(error) => Err(error),
                Pending::End(status) => {
                    end = Some(status);
                    break;
                }
            };
            if let Ok(put) = &result {
                audit::stored(caller.as_ref(), put);
            }
            results.push(import_result(index, result));
            index += 1;
        }
        let message = proto::ImportArticlesResponse { results };
        if !message.results.is_empty() && answers.send(Ok(message)).await.is_err() {
            // The client has gone. Nothing more is queued; what was is stored, and has to be told of.
            pending.close();
        }
        if let Some(status) = end {
            // If the client has gone, nobody is left to be told.
            let _ = answers.send(Err(status)).await;
            return;
        }
    }
}
