//! The course of a migration: attempts, each of which opens both archives, copies what is there,
//! follows, and finishes. What breaks off is taken up behind the last record that is durable.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::report::Report;
use super::source::{Source, closed_if_refused};
use super::stretch::{self, Part};
use crate::archive::backup::{ArchiveId, Entry, Incoming, Receiver};
use crate::archive::migrate::{Difference, Holdings};
use crate::archive::{Archive, Limits};
use crate::cli::Failure;
use crate::client::Target;
use crate::error::{Error, Kind, Reason, Result};
use crate::store::{self, Locator, StoreOptions};

/// How long new records gather while a migration follows, so that they share batches.
const GATHER: Duration = Duration::from_millis(200);

/// How long to wait after a failure.
const RETRY: Duration = Duration::from_millis(500);

/// Stretches after which writes are ended even if it has not quite caught up: under load it never does.
const STRETCHES_BEFORE_SWITCH: u32 = 4;

/// Differences that are collected. Those beyond are not needed to say that something lacks.
const DIFFERENCES_MAX: usize = 1000;

/// What is to be moved, and how.
pub(super) struct Migration {
    pub(super) from: Target,
    pub(super) from_name: String,
    pub(super) to: Locator,
    pub(super) to_name: String,
    pub(super) options: StoreOptions,
    pub(super) switches: bool,
    pub(super) patience: Duration,
    pub(super) stop: CancellationToken,
}

/// How a migration ended.
pub(super) enum End {
    /// The new place holds everything and may be used, the old one not any more. So many records are
    /// intact that were set aside where they come from since.
    Complete(Holdings, u64),
    /// The new place does not hold what the old one does.
    Lacking(Vec<Difference>),
    /// It was stopped, or one of the two is gone.
    Stopped,
}

/// The result of a part of it, which may find that nobody reads what is printed.
type Step<T> = std::result::Result<T, Failure>;

impl Migration {
    /// Runs until the end, or until it was stopped.
    pub(super) async fn run(&self, report: &mut Report, out: &mut (dyn Write + Send)) -> Step<End> {
        let mut is_told = None;
        loop {
            let error = match self.attempt(report, out).await {
                Ok(end) => return Ok(end),
                Err(Failure::Error(error)) => error,
                Err(other) => return Err(other),
            };
            let Some(alive) = report.alive.filter(|_| is_passing(&error)) else {
                self.tell_moved(report);
                return Err(error.into());
            };
            if alive.elapsed() >= self.patience || self.stop.is_cancelled() {
                report.tell(&format!("broke off: {error}"));
                self.tell_moved(report);
                return Ok(End::Stopped);
            }
            if is_told.replace(alive) != Some(alive) {
                report.tell(&format!("broke off, trying again: {error}"));
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    fn tell_moved(&self, report: &Report) {
        if report.has_moved {
            let from = &self.from_name;
            report.tell(&format!(
                "{from} takes no more writes; run the same again to finish, or `pressmark migrate \
                 --release {from}` to stay there"
            ));
        }
    }

    async fn attempt(&self, report: &mut Report, out: &mut (dyn Write + Send)) -> Step<End> {
        let source = Source::open(&self.from).await?;
        let result = self.attempt_from(&source, report, out).await;
        let closed = source.close().await;
        let end = result?;
        closed?;
        Ok(end)
    }

    async fn attempt_from(
        &self,
        source: &Source,
        report: &mut Report,
        out: &mut (dyn Write + Send),
    ) -> Step<End> {
        source.check_not_elsewhere(&self.to_name).await?;
        let near = source.near_copies().await?;
        store::check_place(&self.to)?;
        let store = store::open(&self.to, self.options.clone()).await?;
        let opened = Archive::open_to_receive(Arc::clone(&store), Limits::default(), near).await;
        let (archive, guard) = closed_if_refused(opened, &*store).await?;
        let mut copying = Copying {
            migration: self,
            source,
            archive,
            report,
            out,
        };
        let result = copying.run().await;
        drop(copying);
        let closed = guard.close().await;
        let end = result?;
        closed?;
        Ok(end)
    }
}

/// Whether an error may be over in a while.
fn is_passing(error: &Error) -> bool {
    // The one that has it open may be this process, before it lost the storage.
    let is_locked = error.reason() == Reason::ArchiveLocked;
    let is_moved = error.reason() == Reason::ArchiveMoved;
    let may_be_over = [Kind::Unavailable, Kind::DeadlineExceeded].contains(&error.kind());
    is_locked || may_be_over && !is_moved
}

/// Says which place an error is about.
fn at_place(place: &str, error: Error) -> Error {
    Error::new(error.reason(), format!("cannot migrate to {place}")).with_source(error)
}

/// A migration with both archives open.
struct Copying<'a> {
    migration: &'a Migration,
    source: &'a Source,
    archive: Archive,
    report: &'a mut Report,
    out: &'a mut (dyn Write + Send),
}

impl Copying<'_> {
    async fn run(&mut self) -> Step<End> {
        let stop = &self.migration.stop;
        let mut holdings = self.source.holdings().await?;
        let mut stretches = 0;
        loop {
            let is_behind = self.archive.committed() < holdings.last_sequence;
            // The first one also finds out whether the two belong together.
            if stretches == 0 || is_behind {
                self.copy(&holdings, stretches == 0).await?;
                stretches += 1;
            }
            if stop.is_cancelled() {
                return Ok(End::Stopped);
            }
            self.report.follow();
            holdings = self.source.holdings().await?;
            let committed = self.archive.committed();
            self.tell(holdings.last_sequence)?;
            let has_caught_up = committed >= holdings.last_sequence;
            if !self.source.is_live() {
                if has_caught_up {
                    return self.finish(holdings).await;
                }
                continue;
            }
            if self.migration.switches && (has_caught_up || stretches >= STRETCHES_BEFORE_SWITCH) {
                return self.switch().await;
            }
            tokio::select! {
                () = tokio::time::sleep(GATHER) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    fn tell(&mut self, last: u64) -> Step<()> {
        let committed = self.archive.committed();
        Ok(self.report.progress(committed, last, self.out)?)
    }

    /// Copies what comes behind the last record. Before the first, it checks that this may be done, and
    /// marks the archive as unfinished.
    async fn copy(&mut self, holdings: &Holdings, begins: bool) -> Step<()> {
        let last = holdings.last_sequence;
        let present = self.archive.committed();
        let first = if begins {
            self.archive.first_to_compare(last).await?
        } else {
            present + 1
        };
        let (from_name, to_name) = (&self.migration.from_name, &self.migration.to_name);
        let making = self.archive.clone();
        let make = move |mut entries: Vec<Entry>| {
            let split = entries.partition_point(|entry| entry.sequence <= present);
            let new = entries.split_off(split).into_iter();
            let new: Result<Vec<_>> = new.map(|entry| making.prepare_entry(entry)).collect();
            Ok((entries, new?))
        };
        let mut receiver = Receiver::new(&self.archive);
        let (archive, report, out) = (&self.archive, &mut *self.report, &mut *self.out);
        let (mut begins, mut closed_pipe) = (begins.then_some(()), None);
        let mut archive_id = ArchiveId::default();
        let take = async |part: Part<(Vec<Entry>, Vec<Incoming>)>| {
            match part {
                Part::Header(header) => {
                    let checked = archive.check_origin(&header, last).await;
                    checked.map_err(|error| at_place(to_name, error))?;
                    archive_id = header.archive_id;
                }
                Part::Records((old, new)) => {
                    let checked = archive.check_present(&old).await;
                    checked.map_err(|error| at_place(to_name, error))?;
                    // Nothing is changed before everything was compared.
                    if begins.take_if(|()| !new.is_empty()).is_some() {
                        archive.begin_migration(archive_id, last, from_name).await?;
                    }
                    for record in new {
                        receiver.take(record).await?;
                    }
                    let told = report.progress(archive.committed(), last, out);
                    closed_pipe = closed_pipe.take().or(told.err());
                }
            }
            Ok(())
        };
        let stretch = (self.source, from_name.as_str(), first);
        let copied = stretch::read(stretch, &self.migration.stop, make, take).await;
        // What came is kept, however it ended.
        let settled = receiver.settle().await;
        self.report.sequence = self.archive.committed();
        let is_whole = copied.map_err(|error| self.with_advice(error))?;
        settled?;
        if is_whole && begins.is_some() {
            self.archive
                .begin_migration(archive_id, last, from_name)
                .await?;
        }
        closed_pipe.map_or(Ok(()), |error| Err(error.into()))
    }

    fn with_advice(&self, error: Error) -> Error {
        let is_damaged = [Reason::RecordDamaged, Reason::DictionaryLost].contains(&error.reason());
        if !is_damaged {
            return error;
        }
        let (from, committed) = (&self.migration.from_name, self.archive.committed());
        let what = format!(
            "{from} has a damaged record, and everything up to sequence {committed} is copied; once \
             `pressmark verify --repair` has set it aside there, run the migration again"
        );
        Error::new(error.reason(), what).with_source(error)
    }

    /// Ends writes at the server, and takes the rest.
    async fn switch(&mut self) -> Step<End> {
        let moved = self.source.move_to(&self.migration.to_name).await;
        // If the answer is lost, writes may have ended all the same.
        self.report.has_moved |= moved.as_ref().err().is_none_or(is_passing);
        let last = moved?;
        let holdings = self.source.holdings().await?;
        if self.archive.committed() < last {
            self.copy(&holdings, false).await?;
        }
        if self.archive.committed() < last {
            self.migration.tell_moved(self.report);
            return Ok(End::Stopped);
        }
        self.tell(last)?;
        self.finish(holdings).await
    }

    /// Checks that everything is there, leaves the old archive and lets the new one be used.
    async fn finish(&mut self, holdings: Holdings) -> Step<End> {
        let here = self.archive.holdings().await?;
        let mut better_count = 0;
        if here != holdings {
            let (lacking, count) = self.compare().await?;
            better_count = count;
            if self.migration.stop.is_cancelled() {
                self.migration.tell_moved(self.report);
                return Ok(End::Stopped);
            }
            if !lacking.is_empty() {
                if self.report.has_moved {
                    // What it has more than here must not be lost.
                    self.source.release().await?;
                }
                return Ok(End::Lacking(lacking));
            }
        }
        if !self.report.has_moved {
            self.leave().await?;
        }
        self.archive.end_migration().await?;
        Ok(End::Complete(here, better_count))
    }

    /// Marks the old archive as moved. That it has no room for the mark is no reason to stay there.
    async fn leave(&mut self) -> Result<()> {
        match self.source.move_to(&self.migration.to_name).await {
            Err(error) if error.reason() == Reason::DiskFull => {
                let from = &self.migration.from_name;
                self.report.tell(&format!(
                    "{from} cannot be marked as moved ({error}); let no server open it any more"
                ));
                Ok(())
            }
            left => left.map(drop),
        }
    }

    /// Compares all records of both archives. Returns the first of those that lack something here, and
    /// how many lack something there.
    async fn compare(&mut self) -> Result<(Vec<Difference>, u64)> {
        let (from, to) = (&self.migration.from_name, &self.migration.to_name);
        self.report.tell(&format!(
            "the figures of {from} and {to} differ, so all their records are compared"
        ));
        let (mut lacking, mut better_count) = (Vec::new(), 0);
        let archive = &self.archive;
        let take = async |part: Part<Vec<Entry>>| {
            if let Part::Records(entries) = part {
                for difference in archive.differences(&entries).await? {
                    if difference.is_better {
                        better_count += 1;
                    } else if lacking.len() < DIFFERENCES_MAX {
                        lacking.push(difference);
                    }
                }
            }
            Ok(())
        };
        let stretch = (self.source, from.as_str(), 1);
        stretch::read(stretch, &self.migration.stop, Ok, take).await?;
        Ok((lacking, better_count))
    }
}
