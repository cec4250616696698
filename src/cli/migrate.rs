//! `pressmark migrate`: copies an archive to another place while it is in use, follows it there, and
//! switches over. How an archive is kept from being used at both places is told in `archive/migrate.rs`.

mod report;
mod run;
mod source;
mod stretch;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio_util::sync::CancellationToken;

use self::report::Report;
use self::run::{End, Migration};
use self::source::{Source, closed_if_refused};
use super::output::json_line;
use super::serve::stop_signal;
use super::{CommandResult, Outcome, Shared};
use crate::archive::migrate::{Difference, Holdings};
use crate::archive::{Archive, Limits};
use crate::client::Target;
use crate::error::{Error, Reason, Result};
use crate::store::{self, Locator};

/// Differences that are told.
const DIFFERENCES_TOLD_MAX: usize = 10;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The archive to move: the URL of the server that has it open, which goes on serving it, or a
    /// folder or a place in object storage that no server has open
    #[arg(value_name = "FROM", required_unless_present = "release")]
    from: Option<String>,
    /// Where to: a folder or a place in object storage, empty or with what an earlier migration of the
    /// same archive has copied there
    #[arg(value_name = "TO", required_unless_present = "release")]
    to: Option<String>,
    /// Having caught up with a server, end its writes, take the rest and finish
    #[arg(long)]
    switch: bool,
    /// How long to wait for a server or a storage that does not answer any more
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "30s",
        value_parser = humantime::parse_duration
    )]
    patience: Duration,
    /// Let an archive be used that was moved, or that a migration has not finished, with what it has:
    /// the migration is given up, or the other archive is gone for good
    #[arg(long, value_name = "PLACE", conflicts_with_all = ["from", "to", "switch"])]
    release: Option<String>,
}

pub(super) async fn run(
    args: Args,
    shared: &Shared,
    out: &mut (dyn Write + Send),
) -> CommandResult {
    if shared.names_archive() {
        let what = "a migration names its archives without flags: `pressmark migrate FROM TO`";
        return Err(Error::field(Reason::ArgumentInvalid, "archive", what).into());
    }
    if let Some(place) = &args.release {
        return release(place, shared, out).await;
    }
    let (from, to) = (args.from.unwrap_or_default(), args.to.unwrap_or_default());
    let from = shared.target_at(&from)?;
    let Target::Archive(to, options) = shared.target_at(&to)? else {
        let what = "is a server; name the place of an archive that no server has open";
        return Err(Error::field(Reason::ArgumentInvalid, "to", what).into());
    };
    if to == Locator::Memory {
        let what = "memory: is gone when the migration ends";
        return Err(Error::field(Reason::ArgumentInvalid, "to", what).into());
    }
    let (from_name, to_name) = (name_of(&from)?, name_of_place(&to)?);
    if from_name == to_name {
        let what = format!("{to_name} is where the archive is");
        return Err(Error::field(Reason::ArgumentInvalid, "to", what).into());
    }
    let stop = CancellationToken::new();
    let stopped = stop_signal()?;
    let stopping = stop.clone();
    tokio::spawn(async move {
        stopped.await;
        stopping.cancel();
    });
    let migration = Migration {
        from,
        from_name,
        to,
        to_name,
        options,
        switches: args.switch,
        patience: args.patience,
        stop,
    };
    let mut report = Report::new(shared.json);
    let end = migration.run(&mut report, out).await;
    report.finish();
    let end = end?;
    if let (Locator::Folder(_), End::Complete(..)) = (&migration.to, &end) {
        // sled reads at open all that was written since the last one; better now than at the start
        // of the server.
        let store = store::open(&migration.to, migration.options.clone()).await?;
        store.close().await?;
    }
    tell_end(&migration, &end, &report, shared.json, out)
}

/// The name by which others find an archive, from whatever folder they look.
fn name_of(target: &Target) -> Result<String> {
    match target {
        Target::Server(server) => Ok(server.urls.join(",")),
        Target::Archive(locator, _)
        | Target::SearchedArchive(locator, _)
        | Target::DamagedArchive(locator, _) => name_of_place(locator),
    }
}

fn name_of_place(locator: &Locator) -> Result<String> {
    let Locator::Folder(folder) = locator else {
        return Ok(locator.to_string());
    };
    let absolute: std::io::Result<PathBuf> = std::path::absolute(folder);
    let absolute = absolute.map_err(|error| {
        let what = format!("{} is no folder", folder.display());
        Error::new(Reason::FileFailed, what).with_source(error)
    })?;
    Ok(absolute.display().to_string())
}

fn tell_end(
    migration: &Migration,
    end: &End,
    report: &Report,
    json: bool,
    out: &mut (dyn Write + Send),
) -> CommandResult {
    let Migration {
        from_name, to_name, ..
    } = migration;
    match end {
        End::Complete(holdings, better_count) => {
            tell_complete(migration, (holdings, *better_count), report, json, out)?;
            return Ok(Outcome::Done);
        }
        End::Lacking(differences) if json => {
            let told = differences.iter().take(DIFFERENCES_TOLD_MAX);
            let told: Vec<_> = told
                .map(|difference| json!({"sequence": difference.sequence, "from": difference.there, "to": difference.here}))
                .collect();
            let count = differences.len();
            json_line(
                out,
                &json!({"event": "lacking", "difference_count": count, "differences": told}),
            )?;
        }
        End::Lacking(differences) => {
            for difference in differences.iter().take(DIFFERENCES_TOLD_MAX) {
                let Difference {
                    sequence,
                    there,
                    here,
                    ..
                } = difference;
                writeln!(
                    out,
                    "record {sequence} is {there} in {from_name}, and {here} in {to_name}"
                )?;
            }
            let count = differences.len();
            writeln!(
                out,
                "{count} records are not the same in {from_name} and {to_name}, which is not released \
                 for use"
            )?;
        }
        End::Stopped => {
            let sequence = report.sequence;
            if json {
                let copied = report.copied_count();
                let line =
                    json!({"event": "stopped", "sequence": sequence, "copied_count": copied});
                json_line(out, &line)?;
            } else {
                writeln!(
                    out,
                    "{to_name} has the records up to sequence {sequence} and is not complete; run the \
                     same again to go on, or, when no server has it open any more, `pressmark migrate` \
                     with the place of the archive to finish"
                )?;
            }
        }
    }
    Ok(Outcome::Found)
}

fn tell_complete(
    migration: &Migration,
    (holdings, better_count): (&Holdings, u64),
    report: &Report,
    json: bool,
    out: &mut (dyn Write + Send),
) -> std::io::Result<()> {
    let Holdings {
        last_sequence,
        article_count,
        deleted_count,
        ..
    } = holdings;
    if json {
        let line = json!({
            "event": "complete", "copied_count": report.copied_count(),
            "last_sequence": last_sequence, "article_count": article_count,
            "deleted_count": deleted_count, "healed_count": better_count,
        });
        return json_line(out, &line);
    }
    let (from, to) = (&migration.from_name, &migration.to_name);
    if better_count > 0 {
        report.tell(&format!(
            "{better_count} records that were set aside in {from} since they were copied are intact in {to}"
        ));
    }
    writeln!(
        out,
        "{to} holds all {last_sequence} records of {from}: {article_count} articles, {deleted_count} \
         deleted"
    )?;
    report.tell(&format!(
        "{from} takes no more writes; serve the archive with `pressmark serve --archive {to}`"
    ));
    Ok(())
}

/// Takes the marks of migrations away.
async fn release(place: &str, shared: &Shared, out: &mut (dyn Write + Send)) -> CommandResult {
    let last = match shared.target_at(place)? {
        Target::Archive(locator, options) => {
            if let Locator::Folder(folder) = &locator
                && !folder.exists()
            {
                let what = format!("no archive is at {locator}");
                return Err(Error::new(Reason::FileFailed, what).into());
            }
            let store = store::open(&locator, options).await?;
            let opened = Archive::open_to_release(Arc::clone(&store), Limits::default()).await;
            let (archive, guard) = closed_if_refused(opened, &*store).await?;
            let released = archive.release().await;
            let last = archive.committed();
            drop(archive);
            let closed = guard.close().await;
            released?;
            closed?;
            last
        }
        target @ (Target::Server(_) | Target::SearchedArchive(..) | Target::DamagedArchive(..)) => {
            let source = Source::open(&target).await?;
            let released = source.release().await;
            let holdings = source.holdings().await;
            let closed = source.close().await;
            released?;
            closed?;
            holdings?.last_sequence
        }
    };
    if shared.json {
        json_line(out, &json!({"event": "released", "last_sequence": last}))?;
    } else {
        writeln!(out, "{place} may be used, up to sequence {last}")?;
    }
    Ok(Outcome::Done)
}
