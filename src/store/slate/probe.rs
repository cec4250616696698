//! Tries out object storage before it is trusted with an archive.
//!
//! All that keeps two writers from destroying each other's data is that an object is created at most
//! once (`If-None-Match: *`). Storage that speaks the protocol and ignores that header answers 200
//! and writes over what was there: nothing would be noticed until data is gone. So it is tried, alone
//! and by several at once, with what else SlateDB relies on: that what was written is listed and read
//! back at once, in part too. Updates under a condition (`If-Match`) only make the cleaning up of old
//! files safer, and some storage refuses them, so their lack is told and lived with.

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, future, stream};
use object_store::path::Path;
use object_store::{
    Error as StorageError, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutResult,
    UpdateVersion,
};

use crate::error::{Error, Reason, Result};

/// What the names of all objects that are tried have behind the prefix.
pub(super) const FOLDER: &str = "probe";

/// How many create one object at once.
const RACERS: u8 = 8;

/// Races, because one can end well by chance.
const RACES: u8 = 3;

/// What was found out about object storage that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Probed {
    /// Whether it updates an object only if nobody else has meanwhile.
    pub(super) updates_conditionally: bool,
}

/// Tries out object storage under a prefix, and leaves nothing behind. `place` is its name in errors.
pub(super) async fn run(store: &dyn ObjectStore, prefix: &Path, place: &str) -> Result<Probed> {
    let probe = Probe {
        store,
        folder: prefix.clone().join(FOLDER).join(random_name()?),
        place,
    };
    let result = probe.all().await;
    let cleaned = probe.clean_up().await;
    let probed = result?;
    if let Err(error) = cleaned {
        tracing::warn!(%error, folder = %probe.folder, "objects of the start-up probe are left");
    }
    if !probed.updates_conditionally {
        tracing::warn!(
            "{place} refuses updates under a condition (If-Match), so old files are kept longer \
             before they are removed"
        );
    }
    Ok(probed)
}

/// A name that no other probe has.
fn random_name() -> Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| {
        Error::new(Reason::Internal, "the system has no random bytes").with_source(error)
    })?;
    Ok(u128::from_be_bytes(bytes).to_string())
}

struct Probe<'a> {
    store: &'a dyn ObjectStore,
    folder: Path,
    place: &'a str,
}

impl Probe<'_> {
    async fn all(&self) -> Result<Probed> {
        // The first tells what is wrong with storage that cannot be used at all.
        self.creates_once().await?;
        let races = future::try_join_all((0..RACES).map(|race| self.one_of_many_creates(race)));
        let others = future::try_join(self.lists_and_reads(), self.updates_conditionally());
        let (_, ((), updates_conditionally)) = future::try_join(races, others).await?;
        Ok(Probed {
            updates_conditionally,
        })
    }

    async fn create(&self, name: &str, text: Bytes) -> object_store::Result<PutResult> {
        self.put(name, text, PutMode::Create).await
    }

    async fn put(&self, name: &str, text: Bytes, mode: PutMode) -> object_store::Result<PutResult> {
        let location = self.folder.clone().join(name);
        let options = PutOptions::from(mode);
        self.store.put_opts(&location, text.into(), options).await
    }

    async fn read(&self, name: &str) -> Result<Bytes> {
        let location = self.folder.clone().join(name);
        let read = async { self.store.get(&location).await?.bytes().await };
        read.await.map_err(|error| self.failed("read from", error))
    }

    async fn creates_once(&self) -> Result<()> {
        match self.create("once", Bytes::from_static(b"first")).await {
            Ok(_) => {}
            Err(StorageError::NotImplemented { .. } | StorageError::NotSupported { .. }) => {
                return Err(self.loses_data("it knows no creation under a condition"));
            }
            Err(error) => return Err(self.failed("write to", error)),
        }
        match self.create("once", Bytes::from_static(b"second")).await {
            Err(StorageError::AlreadyExists { .. } | StorageError::Precondition { .. }) => {}
            Ok(_) => {
                let why = "it writes over an object that a request with If-None-Match: * names";
                return Err(self.loses_data(why));
            }
            Err(error) => return Err(self.failed("write to", error)),
        }
        if self.read("once").await? != "first" {
            return Err(self.loses_data("an object changed though its second creation was refused"));
        }
        Ok(())
    }

    async fn one_of_many_creates(&self, race: u8) -> Result<()> {
        let name = format!("race-{race}");
        let racers = (0..RACERS).map(|racer| {
            let name = &name;
            async move {
                let created = self.create(name, Bytes::from(vec![racer])).await;
                (racer, created)
            }
        });
        let mut winners = Vec::new();
        let mut refused = None;
        for (racer, created) in future::join_all(racers).await {
            match created {
                Ok(_) => winners.push(racer),
                Err(StorageError::AlreadyExists { .. } | StorageError::Precondition { .. }) => {}
                Err(error) => refused = Some(error),
            }
        }
        match (winners.as_slice(), refused) {
            ([winner], _) if self.read(&name).await? == vec![*winner] => Ok(()),
            ([_], _) => Err(self.loses_data("an object is not what its only creator wrote")),
            ([], Some(error)) => Err(self.failed("write to", error)),
            (winners, _) => {
                let count = winners.len();
                let why = format!("{count} of {RACERS} requests at once created the same object");
                Err(self.loses_data(&why))
            }
        }
    }

    async fn lists_and_reads(&self) -> Result<()> {
        const NAMES: [&str; 3] = ["list-1", "list-2", "list-3"];
        for name in NAMES {
            let created = self.create(name, Bytes::from_static(b"0123456789")).await;
            created.map_err(|error| self.failed("write to", error))?;
        }
        let mut listed = self.names().await?;
        if listed.is_sorted() {
            tracing::debug!("{} lists in order", self.place);
        }
        listed.sort();
        let there = |name: &&str| {
            listed
                .binary_search(&self.folder.clone().join(*name))
                .is_ok()
        };
        if !NAMES.iter().all(there) {
            return Err(self.loses_data("it does not list what was just written"));
        }
        let location = self.folder.clone().join(NAMES[0]);
        let part = self.store.get_range(&location, 3..7).await;
        if part.map_err(|error| self.failed("read from", error))? != "3456" {
            return Err(self.loses_data("it answers with another part of an object than was asked"));
        }
        Ok(())
    }

    /// Whether an update needs the object to be the one it was made for.
    async fn updates_conditionally(&self) -> Result<bool> {
        let first = self.create("update", Bytes::from_static(b"1")).await;
        let first = UpdateVersion::from(first.map_err(|error| self.failed("write to", error))?);
        let update =
            |text, version| self.put("update", Bytes::from_static(text), PutMode::Update(version));
        if let Err(error) = update(b"2", first.clone()).await {
            tracing::debug!(%error, "an update under a condition is refused");
            return Ok(false);
        }
        // One that was made for what is there no more has to fail.
        Ok(update(b"3", first).await.is_err() && self.read("update").await? == "2")
    }

    async fn names(&self) -> Result<Vec<Path>> {
        let objects: Vec<_> = self
            .store
            .list(Some(&self.folder))
            .try_collect()
            .await
            .map_err(|error| self.failed("list", error))?;
        Ok(objects.into_iter().map(|object| object.location).collect())
    }

    async fn clean_up(&self) -> Result<()> {
        let names = self.names().await?;
        let names = stream::iter(names.into_iter().map(Ok)).boxed();
        let deleted: Vec<_> = self
            .store
            .delete_stream(names)
            .try_collect()
            .await
            .map_err(|error| self.failed("remove objects from", error))?;
        tracing::debug!(objects = deleted.len(), "the start-up probe is cleaned up");
        Ok(())
    }

    fn failed(&self, what: &str, error: StorageError) -> Error {
        let what = format!("cannot {what} {}", self.place);
        Error::new(Reason::StoreFailed, what).with_source(error)
    }

    fn loses_data(&self, why: &str) -> Error {
        let what = format!("{} would lose articles, and is not used: {why}", self.place);
        Error::new(Reason::StorageUnfit, what).with_resource(self.place)
    }
}

#[cfg(test)]
mod tests;
