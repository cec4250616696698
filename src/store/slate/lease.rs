//! An object that says which process has the archive open, so that no other takes it over by mistake.
//!
//! SlateDB itself lets whoever opens last be the writer and refuses the one before: that is what keeps
//! the archive whole, and what would end a server when somebody opens its archive for one question.
//! So the process that has it open writes a number that goes up into an object, and one that finds
//! the object watches for a while: if the number goes up, it leaves the archive alone; if not, the
//! writer is gone. No clock is compared with that of another machine. Two that open at the same moment
//! can both find nobody; then SlateDB refuses all but one of them.
//!
//! ```text
//! {"holder":"0f1e...","name":"127.0.0.1:50051","beat":17}
//! ```

use std::sync::Arc;
use std::time::Duration;

use object_store::path::Path;
use object_store::{Error as StorageError, ObjectStore, ObjectStoreExt};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::super::ObjectOptions;
use crate::error::{Error, Reason, Result};

/// The name of the object.
pub(super) const OBJECT: &str = "writer";

/// How often a writer gives a sign in the time after which it is taken for gone.
const BEATS_PER_LEASE: u32 = 3;

/// How often a standby looks in that time.
const LOOKS_PER_LEASE: u32 = 6;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    holder: String,
    name: String,
    beat: u64,
}

/// The object of one archive.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    store: Arc<dyn ObjectStore>,
    location: Path,
    place: String,
    /// How long a writer may be silent.
    silence_max: Duration,
    note: Note,
}

/// The task that tells others that this process has the archive open.
#[derive(Debug)]
pub(super) struct Held {
    stop: CancellationToken,
    beating: JoinHandle<()>,
}

impl Lease {
    pub(super) fn new(
        store: Arc<dyn ObjectStore>,
        prefix: &Path,
        place: String,
        options: &ObjectOptions,
    ) -> Result<Self> {
        let mut holder = [0; 16];
        getrandom::fill(&mut holder).map_err(|error| {
            Error::new(Reason::Internal, "the system has no random bytes").with_source(error)
        })?;
        Ok(Self {
            store,
            location: prefix.clone().join(OBJECT),
            place,
            silence_max: options.lease,
            note: Note {
                holder: format!("{:032x}", u128::from_be_bytes(holder)),
                name: options.name.clone(),
                beat: 0,
            },
        })
    }

    /// Makes sure that no other process has the archive open. Takes as long as the lease if one
    /// ended without saying so, and twice as long if one has it open.
    ///
    /// # Errors
    /// `ArchiveLocked` if one has.
    pub(super) async fn check(&self) -> Result<()> {
        let Some(mut seen) = self.read().await? else {
            return Ok(());
        };
        tracing::info!(
            writer = seen.name,
            seconds = self.silence_max.as_secs_f64(),
            "waiting whether the writer of {} is gone",
            self.place
        );
        // What was told once may have been on its way when a process was killed. Who is there tells
        // again.
        for _ in 0..2 {
            tokio::time::sleep(self.silence_max).await;
            match self.read().await? {
                Some(now) if now != seen => seen = now,
                Some(_) | None => return Ok(()),
            }
        }
        let what = format!(
            "the archive {} is open in another process, {}; if that is a server, talk to it with \
             --server, or stop it first",
            self.place, seen.name
        );
        Err(Error::new(Reason::ArchiveLocked, what).with_resource(&self.place))
    }

    /// Waits until no other process has the archive open, and removes what one left that ended without
    /// saying so.
    ///
    /// # Errors
    /// `StoreFailed` if the storage cannot be reached at first.
    pub(super) async fn wait(&self) -> Result<()> {
        let mut seen = self.read().await?;
        let mut since = Instant::now();
        while let Some(note) = &seen {
            if since.elapsed() >= self.silence_max {
                tracing::info!(writer = note.name, "the writer of {} is gone", self.place);
                let removed = self.store.delete(&self.location).await;
                return removed.map_err(|error| self.failed("remove an object from", error));
            }
            tokio::time::sleep(self.silence_max / LOOKS_PER_LEASE).await;
            match self.read().await {
                Ok(now) if now == seen => {}
                Ok(now) => (seen, since) = (now, Instant::now()),
                Err(error) => {
                    // The writer cannot reach the storage either.
                    tracing::warn!(%error, "cannot tell whether the writer is there");
                    since = Instant::now();
                }
            }
        }
        Ok(())
    }

    /// Begins to tell others, and goes on until it is released, or until the archive is `lost` to
    /// another process.
    pub(super) async fn hold(
        self,
        lost: impl Future<Output = ()> + Send + 'static,
    ) -> Result<Held> {
        self.write()
            .await
            .map_err(|error| self.failed("write to", error))?;
        let stop = CancellationToken::new();
        let beating = tokio::spawn(self.beat(stop.clone(), lost));
        Ok(Held { stop, beating })
    }

    async fn beat(mut self, stop: CancellationToken, lost: impl Future<Output = ()>) {
        let mut lost = std::pin::pin!(lost);
        let mut ticks = tokio::time::interval(self.silence_max / BEATS_PER_LEASE);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // The first tick comes at once, for what is written already.
        ticks.tick().await;
        let mut told_at = Instant::now();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = stop.cancelled() => return self.remove().await,
                () = &mut lost => return,
            }
            // Whoever was stopped for long may have lost the archive and not know it yet.
            if told_at.elapsed() >= self.silence_max && self.is_anothers().await {
                tracing::warn!("another process says that it has {} open", self.place);
                return;
            }
            told_at = Instant::now();
            self.note.beat += 1;
            if let Err(error) = self.write().await {
                tracing::warn!(%error, "cannot tell others that {} is open here", self.place);
            }
        }
    }

    /// Removes the object, unless it is another's by now.
    async fn remove(self) {
        let ours = match self.read().await {
            Ok(note) => note.is_some_and(|note| note.holder == self.note.holder),
            Err(_) => false,
        };
        if ours && let Err(error) = self.store.delete(&self.location).await {
            tracing::warn!(%error, "cannot tell others that {} is closed", self.place);
        }
    }

    /// What the process calls itself that has the archive open, or had and ended without saying so.
    pub(super) async fn holder(&self) -> Result<Option<String>> {
        Ok(self.read().await?.map(|note| note.name))
    }

    /// Whether another process says that it has the archive open.
    async fn is_anothers(&self) -> bool {
        let note = self.read().await.ok().flatten();
        note.is_some_and(|note| note.holder != self.note.holder)
    }

    async fn read(&self) -> Result<Option<Note>> {
        let read = async { self.store.get(&self.location).await?.bytes().await };
        match read.await {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).unwrap_or(Note {
                holder: String::new(),
                name: "which says nothing of itself".into(),
                beat: 0,
            }))),
            Err(StorageError::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed("read from", error)),
        }
    }

    async fn write(&self) -> object_store::Result<()> {
        let text = serde_json::to_vec(&self.note).unwrap_or_default();
        self.store.put(&self.location, text.into()).await?;
        Ok(())
    }

    fn failed(&self, what: &str, error: StorageError) -> Error {
        let what = format!("cannot {what} {}", self.place);
        Error::new(Reason::StoreFailed, what).with_source(error)
    }
}

impl Held {
    /// Tells others that the archive is closed.
    pub(super) async fn release(mut self) {
        self.stop.cancel();
        if (&mut self.beating).await.is_err() {
            tracing::warn!("the task that tells others of an open archive panicked");
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Whoever drops it did not close the archive, and others are to find that out by waiting.
        if !self.stop.is_cancelled() {
            self.beating.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use object_store::memory::InMemory;

    use super::*;

    fn lease(store: &Arc<InMemory>, name: &str) -> Lease {
        let options = ObjectOptions {
            lease: Duration::from_secs(3),
            name: name.into(),
            ..ObjectOptions::default()
        };
        let store: Arc<dyn ObjectStore> = store.clone();
        Lease::new(
            store,
            &Path::from("news"),
            "s3://test/news".into(),
            &options,
        )
        .unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn one_process_at_a_time() {
        let store = Arc::new(InMemory::new());
        let first = lease(&store, "first");
        first.check().await.unwrap();
        let held = first.hold(pending()).await.unwrap();
        let error = lease(&store, "second").check().await.unwrap_err();
        assert_eq!(error.reason(), Reason::ArchiveLocked);
        for part in ["s3://test/news", "first"] {
            assert!(error.message().contains(part), "{error}");
        }
        held.release().await;
        let started = tokio::time::Instant::now();
        lease(&store, "second").check().await.unwrap();
        assert_eq!(started.elapsed(), Duration::ZERO, "nothing to wait for");
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_is_gone_is_noticed() {
        let store = Arc::new(InMemory::new());
        drop(lease(&store, "first").hold(pending()).await.unwrap());
        let started = tokio::time::Instant::now();
        let second = lease(&store, "second");
        second.check().await.unwrap();
        assert_eq!(started.elapsed(), Duration::from_secs(3));
        let held = second.hold(pending()).await.unwrap();
        assert!(lease(&store, "third").check().await.is_err());
        held.release().await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_word_of_a_killed_process_may_come_late() {
        let store = Arc::new(InMemory::new());
        let mut killed = lease(&store, "killed");
        killed.write().await.unwrap();
        killed.note.beat += 1;
        let next = lease(&store, "next");
        let (checked, ()) = tokio::join!(next.check(), async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            killed.write().await.unwrap();
        });
        checked.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_standby_waits_for_its_turn() {
        let store = Arc::new(InMemory::new());
        lease(&store, "nobody was here").wait().await.unwrap();
        let held = lease(&store, "first").hold(pending()).await.unwrap();
        let standby = lease(&store, "standby");
        let waiting = tokio::time::timeout(Duration::from_secs(60), standby.wait());
        assert!(waiting.await.is_err(), "the writer is there");
        let ended = Instant::now();
        drop(held);
        standby.wait().await.unwrap();
        let seconds = ended.elapsed().as_secs();
        assert!((3..=4).contains(&seconds), "after {seconds} s");
        standby.check().await.unwrap();
        assert!(ended.elapsed().as_secs() <= seconds, "once is enough");
    }

    #[tokio::test(start_paused = true)]
    async fn who_lost_the_archive_says_no_more() {
        let store = Arc::new(InMemory::new());
        let held = lease(&store, "first").hold(ready(())).await.unwrap();
        let second = lease(&store, "second");
        second.check().await.unwrap();
        held.release().await;
        assert!(second.read().await.unwrap().is_some(), "it is left alone");
    }

    /// As a process finds out that was stopped for longer than its lease.
    #[tokio::test(start_paused = true)]
    async fn who_was_stopped_does_not_write_over_anothers_object() {
        let store = Arc::new(InMemory::new());
        let old = lease(&store, "old").hold(pending()).await.unwrap();
        // It has given a sign before.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let new = lease(&store, "new");
        new.write().await.unwrap();
        tokio::time::advance(Duration::from_secs(60)).await;
        // Longer than some of its signs.
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert_eq!(new.read().await.unwrap(), Some(new.note.clone()));
        old.release().await;
        assert_eq!(new.read().await.unwrap(), Some(new.note.clone()));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_removes_what_is_anothers() {
        let store = Arc::new(InMemory::new());
        let old = lease(&store, "old").hold(pending()).await.unwrap();
        let new = lease(&store, "new");
        new.write().await.unwrap();
        old.release().await;
        assert_eq!(new.read().await.unwrap(), Some(new.note.clone()));
    }
}
