//! Sends articles in messages and matches the answers to their records, in the order of both.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

use super::prepare::{Prepared, State};
use super::read::Origin;
use super::summary::Refusal;
use crate::cli::Failure;
use crate::client::{Client, message};
use crate::error::{Error, Kind, Reason, Result};
use crate::format::DateNote;
use crate::rpc::{ImportArticlesRequest, error_of, proto};

/// Articles and bytes in one message.
const MESSAGE_ARTICLES_MAX: usize = 256;
const MESSAGE_BYTES_MAX: usize = 512 * 1024;

/// Articles sent and not yet answered whose origins are kept.
pub(super) const UNANSWERED_MAX: usize = 4096;

/// Messages ready ahead of the network.
pub(super) const MESSAGES_AHEAD: usize = 2;

/// A record whose answer is to come, or came without being sent. The answers come in this order.
pub(super) struct Sent {
    origin: Origin,
    state: SentState,
}

enum SentState {
    Article(DateNote),
    Known(proto::PutOutcome, DateNote),
    Refused(Error),
    /// Nothing more can be prepared: the archive does not answer.
    Broken(Error),
}

/// What became of a record.
pub(super) enum Answer {
    Stored(proto::PutOutcome, DateNote),
    Refused(Refusal),
}

/// Puts articles into messages and remembers which record is which.
pub(super) async fn send_articles(
    mut prepared: mpsc::Receiver<JoinHandle<Result<Vec<Prepared>>>>,
    sent: mpsc::Sender<Sent>,
    messages: mpsc::Sender<ImportArticlesRequest>,
) {
    let mut sender = Sender {
        sent,
        messages,
        message: ImportArticlesRequest::default(),
        bytes: 0,
        waiting: Vec::new(),
    };
    loop {
        // A message that is not full goes off as soon as nothing more is ready.
        let next = if let Ok(task) = prepared.try_recv() {
            Some(task)
        } else {
            if sender.flush().await.is_none() {
                return;
            }
            prepared.recv().await
        };
        let Some(task) = next else {
            return;
        };
        let some = match task.await {
            Ok(some) => some,
            Err(error) => {
                let what = "the import was stopped";
                Err(Error::new(Reason::Internal, what).with_source(error))
            }
        };
        let some = match some {
            Ok(some) => some,
            Err(error) => {
                sender.end(error).await;
                return;
            }
        };
        for record in some {
            if sender.add(record).await.is_none() {
                return;
            }
        }
    }
}

struct Sender {
    sent: mpsc::Sender<Sent>,
    messages: mpsc::Sender<ImportArticlesRequest>,
    message: ImportArticlesRequest,
    bytes: usize,
    /// The records of the message, and those between them that are not in it.
    waiting: Vec<Sent>,
}

impl Sender {
    /// Returns nothing if nobody takes it any more.
    async fn add(
        &mut self,
        Prepared {
            origin,
            state,
            room: _room,
        }: Prepared,
    ) -> Option<()> {
        let state = match state {
            State::Article(article, date) => {
                self.bytes += article.len();
                self.message.articles.push(article.into());
                SentState::Article(date)
            }
            State::Known(outcome, date) => SentState::Known(outcome, date),
            State::Refused(error) => SentState::Refused(error),
        };
        self.waiting.push(Sent { origin, state });
        let is_full = self.message.articles.len() >= MESSAGE_ARTICLES_MAX
            || self.bytes >= MESSAGE_BYTES_MAX
            || self.waiting.len() >= UNANSWERED_MAX;
        if is_full {
            self.flush().await
        } else {
            Some(())
        }
    }

    async fn flush(&mut self) -> Option<()> {
        for record in self.waiting.drain(..) {
            self.sent.send(record).await.ok()?;
        }
        self.bytes = 0;
        if self.message.articles.is_empty() {
            return Some(());
        }
        self.messages
            .send(std::mem::take(&mut self.message))
            .await
            .ok()
    }

    /// Sends what is there, and tells why there is nothing more.
    async fn end(&mut self, error: Error) {
        if self.flush().await.is_some() {
            let origin = Origin::none();
            let state = SentState::Broken(error);
            // If nobody takes it, the import has failed already.
            let _ = self.sent.send(Sent { origin, state }).await;
        }
    }
}

/// Matches results to records, in the order in which they were read.
pub(super) async fn answer_all(
    client: &Client,
    asks: &AtomicBool,
    stream: ReceiverStream<ImportArticlesRequest>,
    mut sent: mpsc::Receiver<Sent>,
    mut tell: impl FnMut(Origin, Answer) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let answers = client.articles().import_articles(stream).await;
    let mut answers = message(answers)?;
    let mut results = VecDeque::new();
    while let Some(Sent { origin, state }) = sent.recv().await {
        let date = match state {
            SentState::Article(date) => date,
            SentState::Known(outcome, date) => {
                tell(origin, Answer::Stored(outcome, date))?;
                continue;
            }
            SentState::Refused(error) => {
                tell(origin, Answer::Refused(Refusal::of(&error)))?;
                continue;
            }
            SentState::Broken(error) => return Err(error.into()),
        };
        while results.is_empty() {
            let answer = answers
                .message()
                .await
                .map_err(|status| error_of(&status))?;
            let answer = answer.ok_or_else(|| {
                Error::new(
                    Reason::ServerUnreachable,
                    "the server ended the import too early",
                )
            })?;
            results.extend(answer.results);
        }
        let result: proto::ImportResult = results.pop_front().unwrap_or_default();
        // An article that may be sent again was not refused: the archive takes nothing now.
        if let Some(error) = &result.error
            && let Some(reason) = Reason::parse(&error.reason)
            && (reason.kind() == Kind::Unavailable || reason == Reason::DiskFull)
        {
            return Err(Error::new(reason, error.message.as_str()).into());
        }
        let outcome = result.outcome();
        if outcome == proto::PutOutcome::Duplicate {
            asks.store(true, Ordering::Relaxed);
        }
        let answer = match result.error {
            None => Answer::Stored(outcome, date),
            Some(error) => Answer::Refused(Refusal::answered(error)),
        };
        tell(origin, answer)?;
    }
    Ok(())
}
