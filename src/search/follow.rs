//! The thread that keeps the index up with the log.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::index::{Found, Mark, OpenIndex, check_room, wipe};
use crate::archive::{PageBudget, Selector, View};
use crate::article::ContentHash;
use crate::error::{Error, Kind, Reason, Result};

/// How long articles gather before they are made visible. With the commit itself, a search is at
/// most a second behind on a machine that has time to spare.
const GATHER: Duration = Duration::from_millis(500);

/// How long to wait after a failure, and how often that is doubled while nothing gets better.
const RETRY: Duration = Duration::from_secs(5);
const RETRY_DOUBLINGS: u32 = 7;

/// How long a round has to last for earlier failures to be forgotten.
const HEALTHY: Duration = Duration::from_secs(600);

/// How often in a row an index is thrown away: if that does not help, it is not the index.
const WIPES_MAX: u32 = 3;

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

    /// Follows until it is stopped. After a failure it starts again with the index as it is, and with
    /// an empty one if the index itself is what fails.
    pub(super) fn run(self, runtime: &Handle) {
        if let Err(error) = rustix::process::setpriority_process(None, NICE) {
            tracing::warn!(%error, "the search index is built at the priority of everything else");
        }
        let mut failures = 0;
        loop {
            let started = Instant::now();
            // What parses files that may be damaged may panic over them.
            let round = std::panic::AssertUnwindSafe(|| self.round(runtime));
            let followed = std::panic::catch_unwind(round).unwrap_or_else(|_| {
                let what = "the search index is damaged, or pressmark is";
                Err(Error::new(Reason::SearchFailed, what))
            });
            if started.elapsed() > HEALTHY {
                failures = 0;
            }
            let error = match followed {
                Ok(End::Stop) => return,
                Ok(End::Rebuild) => match self.start_anew("it is being built anew") {
                    Ok(()) => continue,
                    Err(error) => error,
                },
                Err(error) => error,
            };
            tracing::error!(%error, "the search index does not go on");
            self.shared
                .publish(self.shared.snapshot(), Some(error.to_string()));
            if error.reason() == Reason::SearchFailed
                && failures < WIPES_MAX
                && let Err(error) = self.start_anew(&error.to_string())
            {
                tracing::error!(%error, "the search index cannot be thrown away");
            }
            if failures > 0 && self.pause(runtime, failures) {
                return;
            }
            failures += 1;
        }
    }

    /// Opens the index and follows.
    fn round(&self, runtime: &Handle) -> Result<End> {
        let (mut index, found) = OpenIndex::open(&self.shared.place)?;
        let end = self.follow(runtime, &mut index, found);
        if !matches!(end, Ok(End::Stop))
            && let Err(error) = index.close()
        {
            tracing::warn!(%error, "the search index ends badly");
        }
        end
    }

    /// Waits after a failure, the longer the more there were, or until the index is to be built anew.
    /// Returns whether to stop.
    fn pause(&self, runtime: &Handle, failures: u32) -> bool {
        let pause = RETRY * 2_u32.pow(failures.min(RETRY_DOUBLINGS));
        runtime.block_on(async {
            tokio::select! {
                () = self.stop.cancelled() => true,
                () = self.shared.wake.notified() => false,
                () = tokio::time::sleep(pause) => false,
            }
        })
    }

    /// Throws the index away.
    fn start_anew(&self, why: &str) -> Result<()> {
        self.shared.rebuild.store(false, Ordering::Release);
        self.shared.publish(None, Some(why.to_owned()));
        wipe(&self.shared.place)
    }

    /// The mark of an index that has the log up to a sequence. Of a record that cannot be read
    /// nobody knows the id.
    fn mark(&self, runtime: &Handle, archive_id: &str, sequence: u64) -> Result<Mark> {
        let id = match runtime.block_on(self.shared.archive.id_at(sequence)) {
            Err(error) if error.kind() == Kind::DataLoss => runtime.block_on(self.unknown_id())?,
            id => id?,
        };
        Ok(Mark {
            archive: archive_id.to_owned(),
            sequence,
            id,
        })
    }

    /// What stands for the id of a record that cannot be read.
    async fn unknown_id(&self) -> Result<ContentHash> {
        self.shared.archive.id_at(0).await
    }

    /// Follows the log from where an index is.
    fn follow(&self, runtime: &Handle, index: &mut OpenIndex, found: Found) -> Result<End> {
        let archive = &self.shared.archive;
        let id = runtime.block_on(archive.archive_id())?;
        let archive_id = format!("{:032x}", u128::from_be_bytes(id));
        let mut mark = self.mark(runtime, &archive_id, 0)?;
        match found {
            Found::Empty => {}
            Found::Marked(found) if found.sequence <= archive.committed() => {
                mark = self.mark(runtime, &archive_id, found.sequence)?;
                let unknown = runtime.block_on(self.unknown_id())?;
                // A record that was or is damaged may have had any id.
                let is_same = found.id == mark.id || [found.id, mark.id].contains(&unknown);
                if found.archive != mark.archive || !is_same {
                    return Ok(End::Rebuild);
                }
            }
            Found::Marked(_) | Found::Foreign => return Ok(End::Rebuild),
        }
        self.shared
            .publish(Some(index.snapshot(mark.sequence)?), None);
        let mut read = mark.sequence;
        let mut first_change: Option<Instant> = None;
        let mut has_deleted = index.forget_deleted()?;
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
            if read < archive.committed() {
                check_room(&self.shared.place)?;
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
                mark = self.mark(runtime, &archive_id, read)?;
                let snapshot = index.commit(&mark)?;
                self.shared.publish(Some(snapshot), None);
                first_change = None;
                has_deleted = index.forget_deleted()?;
            }
            if is_stopped {
                return Ok(End::Stop);
            }
            if read >= archive.committed() {
                let mut wait = first_change.map(|first| GATHER.saturating_sub(first.elapsed()));
                if has_deleted && wait.is_none() {
                    wait = Some(RETRY);
                }
                self.wait(runtime, read, wait);
                if has_deleted && first_change.is_none() {
                    has_deleted = index.forget_deleted()?;
                }
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
