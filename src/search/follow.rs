//! The thread that keeps the index up with the log.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::index::{Mark, OpenIndex, wipe};
use crate::archive::{PageBudget, Selector, View};
use crate::error::{Reason, Result};

/// How long articles gather before they are made visible. With the commit itself, a search is at
/// most a second behind on a machine that has time to spare.
const GATHER: Duration = Duration::from_millis(500);

/// How long to wait after a failure, and how often that is doubled while nothing gets better.
const RETRY: Duration = Duration::from_secs(5);
const RETRY_DOUBLINGS: u32 = 7;

/// The nice value of the thread and of those that tantivy starts from it: building the index takes
/// about as much as everything else about an article, and is to take only what is left over.
const NICE: i32 = 10;

/// Articles and bytes that are read at a time.
const READ_ARTICLES: usize = 1000;
const READ_BYTES: usize = 2 * 1024 * 1024;

/// Why the follower stopped following.
enum End {
    /// It was asked to end.
    Stop,
    /// The index is to be built anew.
    Rebuild,
}

/// Keeps the index up with the log.
pub(super) struct Follower {
    shared: Arc<Shared>,
    stop: CancellationToken,
}

impl Follower {
    pub(super) fn new(shared: Arc<Shared>, stop: CancellationToken) -> Self {
        Self { shared, stop }
    }

    /// Follows until it is stopped, and starts again after a failure: first with the index as it is,
    /// then, if that does not work, with an empty one.
    pub(super) fn run(self, runtime: &Handle) {
        if let Err(error) = rustix::process::setpriority_process(None, NICE) {
            tracing::warn!(%error, "the search index is built at the priority of everything else");
        }
        let mut failures = 0;
        loop {
            let before = self.shared.status.borrow().sequence;
            let (index, mark) = match OpenIndex::open(&self.shared.place) {
                Ok(opened) => opened,
                Err(error) => {
                    tracing::error!(%error, "the search index cannot be opened");
                    self.start_anew(&error.to_string());
                    if failures > 0 && self.pause(runtime, failures) {
                        return;
                    }
                    failures += 1;
                    continue;
                }
            };
            let error = match self.follow(runtime, index, mark) {
                Ok(End::Stop) => return,
                Ok(End::Rebuild) => {
                    self.start_anew("it is being built anew");
                    continue;
                }
                Err(error) => error,
            };
            tracing::error!(%error, "the search index does not go on");
            if self.shared.status.borrow().sequence > before {
                failures = 0;
            }
            let why = error.to_string();
            self.shared
                .publish(self.shared.snapshot(), Some(why.clone()));
            if failures > 0 && error.reason() == Reason::SearchFailed {
                self.start_anew(&why);
            }
            if self.pause(runtime, failures) {
                return;
            }
            failures += 1;
        }
    }

    /// Waits after a failure, the longer the more there were. Returns whether to stop.
    fn pause(&self, runtime: &Handle, failures: u32) -> bool {
        let pause = RETRY * 2_u32.pow(failures.min(RETRY_DOUBLINGS));
        runtime.block_on(async {
            let stopped = tokio::time::timeout(pause, self.stop.cancelled());
            stopped.await.is_ok()
        })
    }

    /// Throws the index away.
    fn start_anew(&self, why: &str) {
        self.shared.rebuild.store(false, Ordering::Release);
        self.shared.publish(None, Some(why.to_owned()));
        if let Err(error) = wipe(&self.shared.place) {
            tracing::error!(%error, "the search index cannot be thrown away");
        }
    }

    /// Follows the log from where an index is.
    fn follow(&self, runtime: &Handle, mut index: OpenIndex, found: Option<Mark>) -> Result<End> {
        let archive = &self.shared.archive;
        let id = runtime.block_on(archive.archive_id())?;
        let id = format!("{:032x}", u128::from_be_bytes(id));
        let mut mark = Mark {
            archive: id,
            sequence: 0,
            id: runtime.block_on(archive.id_at(0))?,
        };
        if let Some(found) = found {
            let is_ours = found.archive == mark.archive
                && found.sequence <= archive.committed()
                && runtime.block_on(archive.id_at(found.sequence))? == found.id;
            if !is_ours {
                tracing::warn!(?found, "the search index is of another archive");
                return Ok(End::Rebuild);
            }
            mark = found;
        }
        self.shared
            .publish(Some(index.snapshot(mark.sequence)?), None);
        let mut read = mark.sequence;
        let mut first_change: Option<Instant> = None;
        let everything = Selector::everything();
        let budget = PageBudget {
            view: View::Full,
            articles_max: READ_ARTICLES,
            bytes_max: READ_BYTES,
        };
        loop {
            if self.shared.rebuild.load(Ordering::Acquire) {
                return Ok(End::Rebuild);
            }
            let next = archive.readable_changes(read + 1, &everything, &budget);
            let changes = runtime.block_on(next)?;
            for change in &changes.changes {
                index.apply(change)?;
            }
            if changes.sequence > read {
                read = changes.sequence;
                first_change.get_or_insert_with(Instant::now);
            }
            let is_stopped = self.stop.is_cancelled();
            let gathered = first_change.map(|first| first.elapsed());
            let is_due = gathered.is_some_and(|gathered| gathered >= GATHER)
                || (mark.sequence + 1..=read).contains(&self.shared.wanted.load(Ordering::Acquire))
                || (is_stopped && gathered.is_some());
            if is_due {
                mark.sequence = read;
                mark.id = runtime.block_on(archive.id_at(read))?;
                let snapshot = index.commit(&mark)?;
                self.shared.publish(Some(snapshot), None);
                first_change = None;
            }
            if is_stopped {
                return Ok(End::Stop);
            }
            if read >= archive.committed() {
                let wait = first_change.map(|first| GATHER.saturating_sub(first.elapsed()));
                self.wait(runtime, read, wait);
            }
        }
    }

    /// Waits until there is something to do: the log goes on, somebody wants something, what was
    /// read is due, or the end has come.
    fn wait(&self, runtime: &Handle, read: u64, due: Option<Duration>) {
        let due = async {
            match due {
                Some(due) => tokio::time::sleep(due).await,
                None => std::future::pending().await,
            }
        };
        runtime.block_on(async {
            tokio::select! {
                // An archive that is closed has no more.
                goes_on = self.shared.archive.committed_to(read + 1) => {
                    if goes_on.is_err() {
                        self.stop.cancelled().await;
                    }
                }
                () = self.shared.wake.notified() => {}
                () = due => {}
                () = self.stop.cancelled() => {}
            }
        });
    }
}
