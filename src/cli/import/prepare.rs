//! Makes records articles, on all cores, and finds out which ones the archive has.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::read::{Origin, Record};
use crate::cli::output::message_of;
use crate::client::{ArticleCalls, message};
use crate::error::{Error, Reason, Result};
use crate::format::{DateNote, Mapping};
use crate::rpc::proto;

/// The most records that are parsed and asked for at a time.
const RECORDS_MAX: usize = 256;

/// A record that is ready to be sent, or need not be.
pub(super) struct Prepared {
    pub(super) origin: Origin,
    pub(super) state: State,
    /// Its share of the memory that records may have, to be kept until it is sent.
    pub(super) room: Option<OwnedSemaphorePermit>,
}

pub(super) enum State {
    /// To be sent, as these bytes of a message.
    Article(Vec<u8>, DateNote),
    /// The archive has it, or its tombstone.
    Known(proto::PutOutcome, DateNote),
    Refused(Error),
}

/// What records are prepared with.
#[derive(Clone)]
pub(super) struct Preparing {
    pub(super) mapping: Arc<Mapping>,
    pub(super) articles: ArticleCalls,
    /// Whether articles may be known. An archive that knows none of some records is not asked for
    /// the next ones, until it answers that it has one that was sent.
    pub(super) asks: Arc<AtomicBool>,
}

/// Prepares records in the order in which they were read. As many are prepared at a time as there are
/// cores.
pub(super) fn prepare_all(
    mut records: mpsc::Receiver<Record>,
    preparing: Preparing,
    stop: CancellationToken,
) -> mpsc::Receiver<JoinHandle<Result<Vec<Prepared>>>> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let (tasks, prepared) = mpsc::channel(cores);
    tokio::spawn(async move {
        loop {
            let mut some = Vec::with_capacity(RECORDS_MAX);
            let count = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                count = records.recv_many(&mut some, RECORDS_MAX) => count,
            };
            if count == 0 {
                return;
            }
            let task = tokio::spawn(prepare(some, preparing.clone()));
            if tasks.send(task).await.is_err() {
                return;
            }
        }
    });
    prepared
}

/// Parses records and asks for those that may be known.
async fn prepare(records: Vec<Record>, preparing: Preparing) -> Result<Vec<Prepared>> {
    let mapping = Arc::clone(&preparing.mapping);
    let parsing = tokio::task::spawn_blocking(move || parse_all(records, &mapping));
    let (mut prepared, ids) = parsing
        .await
        .map_err(|error| Error::new(Reason::Internal, "a reader panicked").with_source(error))?;
    if ids.is_empty() || !preparing.asks.load(Ordering::Relaxed) {
        return Ok(prepared);
    }
    let known = known(preparing.articles, &ids).await?;
    preparing.asks.store(!known.is_empty(), Ordering::Relaxed);
    for (index, id) in ids {
        if let (Some(outcome), Some(record)) = (known.get(&id), prepared.get_mut(index))
            && let State::Article(_, date) = &mut record.state
        {
            let date = std::mem::replace(date, DateNote::Fine);
            record.state = State::Known(*outcome, date);
            record.room = None;
        }
    }
    Ok(prepared)
}

/// Makes articles of records. Returns them, and the ids of those that there are, with their indexes.
fn parse_all(records: Vec<Record>, mapping: &Mapping) -> (Vec<Prepared>, Vec<(usize, String)>) {
    let mut ids = Vec::with_capacity(records.len());
    let mut prepared = Vec::with_capacity(records.len());
    for Record {
        origin,
        content,
        room,
    } in records
    {
        let found = content.and_then(|(parser, content)| parser.parse(&content, mapping));
        let state = match found {
            Ok(found) => {
                let article = message_of(found.article);
                ids.push((prepared.len(), article.id.clone()));
                State::Article(article.encode_to_vec(), found.date)
            }
            Err(error) => State::Refused(error),
        };
        prepared.push(Prepared {
            origin,
            state,
            room,
        });
    }
    (prepared, ids)
}

/// Which articles the archive has, and which were deleted from it.
async fn known(
    mut articles: ArticleCalls,
    ids: &[(usize, String)],
) -> Result<HashMap<String, proto::PutOutcome>> {
    let ids: Vec<String> = ids.iter().map(|(_, id)| id.clone()).collect();
    let request = proto::FindMissingArticlesRequest { ids: ids.clone() };
    let answer = message(articles.find_missing_articles(request).await)?;
    let missing: HashSet<String> = answer.missing_ids.into_iter().collect();
    let deleted: HashSet<String> = answer.deleted_ids.into_iter().collect();
    let known = ids
        .into_iter()
        .filter(|id| !missing.contains(id))
        .map(|id| {
            let outcome = if deleted.contains(&id) {
                proto::PutOutcome::Deleted
            } else {
                proto::PutOutcome::Duplicate
            };
            (id, outcome)
        });
    Ok(known.collect())
}
