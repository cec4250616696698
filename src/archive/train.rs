//! Trains the dictionary of an archive, once there are enough articles, beside readers and writers.
//!
//! One dictionary serves for good: what it holds is what a canonical text and its language are made
//! of, and that changes slowly. A second one would have to be shown to pay; `Dictionaries` and the
//! keys have room for it.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::job::Job;
use super::reader::FETCH_RECORDS;
use crate::error::{Error, Reason, Result};
use crate::key::{self, Sequence};
use crate::record::{self, Content, Dictionaries, Dictionary};
use crate::store::{Poison, Store};

/// Articles that a dictionary is trained on, and bytes that are taken of each: 4 MiB in all, which
/// train a dictionary in about a second.
const SAMPLES_MAX: u64 = 1024;
const SAMPLE_BYTES_MAX: usize = 4096;

/// How often it is tried, each time with twice the articles.
const ATTEMPTS_MAX: u32 = 10;

/// How much other threads go before the one that trains.
const NICE: i32 = 10;

/// Canonical texts, one after the other, and their lengths.
#[derive(Default)]
struct Samples {
    texts: Vec<u8>,
    lengths: Vec<usize>,
}

/// Waits for enough articles and trains a dictionary on them.
pub(super) struct Trainer {
    pub(super) store: Arc<dyn Store>,
    pub(super) dictionaries: Dictionaries,
    /// Records from which on it is worth while.
    pub(super) records_min: Sequence,
    /// Moves on with every commit. An archive that is only read gets no dictionary.
    pub(super) committed: watch::Receiver<Sequence>,
    /// Does not keep the writer from ending.
    pub(super) queue: mpsc::WeakSender<Job>,
    pub(super) poison: Arc<Poison>,
    pub(super) is_ready: watch::Sender<bool>,
}

impl Trainer {
    /// Works until there is a dictionary, or until `stop`; what was begun with samples is finished.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut records_min = self.records_min;
        for _ in 0..ATTEMPTS_MAX {
            let enough = async {
                while self.committed.changed().await.is_ok() {
                    if *self.committed.borrow_and_update() >= records_min {
                        return true;
                    }
                }
                false
            };
            tokio::select! {
                is_enough = enough => if !is_enough { return },
                () = stop.cancelled() => return,
            }
            match self.train(&stop).await {
                Ok(Some(dictionary)) => {
                    let (id, bytes) = (dictionary.id(), dictionary.bytes().len());
                    tracing::info!(id, bytes, "trained a dictionary for what comes now");
                    self.is_ready.send_replace(true);
                    return;
                }
                Ok(None) => return,
                Err(error) => {
                    if self.poison.check().is_err() {
                        // Nothing will be written any more.
                        return;
                    }
                    records_min = self.committed.borrow().saturating_mul(2);
                    tracing::warn!(%error, records_min, "no dictionary yet");
                }
            }
        }
    }

    /// Trains a dictionary and has it kept; none if the archive is closed before.
    async fn train(&self, stop: &CancellationToken) -> Result<Option<Arc<Dictionary>>> {
        let Some(samples) = self.samples(stop).await? else {
            return Ok(None);
        };
        let (done, trained) = oneshot::channel();
        // A thread of its own, because a priority cannot be raised again.
        let thread = std::thread::Builder::new().name("train".to_owned());
        let spawned = thread.spawn(move || {
            if let Err(error) = rustix::process::setpriority_process(None, NICE) {
                tracing::warn!(%error, "a dictionary is trained at the priority of everything else");
            }
            // Who waits for it waits to the end.
            let _ = done.send(Dictionary::train(&samples.texts, &samples.lengths));
        });
        spawned.map_err(|error| {
            Error::new(Reason::Internal, "no thread to train a dictionary in").with_source(error)
        })?;
        let dictionary = trained.await.map_err(|_| {
            Error::new(
                Reason::Internal,
                "the thread that trains a dictionary panicked",
            )
        })??;
        let dictionary = Arc::new(dictionary);
        let Some(queue) = self.queue.upgrade() else {
            return Ok(None);
        };
        let (done, kept) = oneshot::channel();
        let job = Job::Dictionary(Arc::clone(&dictionary), done);
        if queue.send(job).await.is_err() {
            return Ok(None);
        }
        drop(queue);
        match kept.await {
            Ok(kept) => kept.map(|()| Some(dictionary)),
            Err(_) => Ok(None),
        }
    }

    /// Articles from all over the log; none if the archive is closed before. What is damaged, or has
    /// several rows, is passed by.
    async fn samples(&self, stop: &CancellationToken) -> Result<Option<Samples>> {
        let last = *self.committed.borrow();
        let apart = last.div_ceil(SAMPLES_MAX).max(1);
        let apart = usize::try_from(apart).unwrap_or(usize::MAX);
        let sequences: Vec<Sequence> = (1..=last).step_by(apart).collect();
        let mut samples = Samples::default();
        for some in sequences.chunks(FETCH_RECORDS) {
            if stop.is_cancelled() {
                return Ok(None);
            }
            let keys = some.iter().map(|sequence| key::log(*sequence)).collect();
            let heads = self.store.get_many(keys).await?;
            for (sequence, head) in some.iter().zip(heads) {
                let record =
                    head.map(|head| record::decode(*sequence, &[head], &self.dictionaries));
                if let Some(Ok(record)) = record
                    && let Content::Article(article) = record.content
                {
                    let text = article.render();
                    let sample = text.as_bytes();
                    let sample = sample.get(..SAMPLE_BYTES_MAX).unwrap_or(sample);
                    samples.texts.extend_from_slice(sample);
                    samples.lengths.push(sample.len());
                }
            }
            tokio::task::yield_now().await;
        }
        Ok(Some(samples))
    }
}
