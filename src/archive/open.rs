//! What has to be right before an archive is opened: its format, its figures, and that no record
//! stands behind the sequence that the next one gets.

use super::backup::ArchiveId;
use super::commit::{self, Figures};
use super::reader::short_answer;
use crate::error::{Error, Reason, Result};
use crate::key::{self, Sequence, meta};
use crate::record::{self, Totals};
use crate::store::{Direction, Durability, Scan, Store};

/// What an archive is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To be used.
    Use,
    /// To be repaired: figures that cannot be read are made up from the end of the log first, and
    /// added up again by the repair.
    Repair,
    /// To be filled from a backup: an unfinished restore is no obstacle.
    Restore,
}

/// Reads the figures of an archive, or begins one in an empty store.
pub(super) async fn open(store: &dyn Store, purpose: Purpose) -> Result<Figures> {
    let (archive_id, next) = match read(store, purpose).await {
        Ok(Some(figures)) => return Ok(figures),
        Ok(None) => (random_id()?, 1),
        Err(error) if purpose == Purpose::Repair && error.reason() == Reason::IndexDamaged => {
            tracing::warn!(%error, "making up figures to repair them");
            let archive_id = read_id(store).await.or_else(|_| random_id())?;
            (archive_id, last_sequence(store).await? + 1)
        }
        Err(error) => return Err(error),
    };
    let figures = Figures {
        next,
        totals: Totals::default(),
    };
    let batch = commit::first_batch(archive_id, figures);
    store.write(batch, Durability::Synced).await?;
    Ok(figures)
}

/// Reads the figures, or nothing if the store is empty.
async fn read(store: &dyn Store, purpose: Purpose) -> Result<Option<Figures>> {
    let keys = vec![
        meta::format(),
        meta::next_sequence(),
        meta::totals(),
        meta::restoring(),
    ];
    let values = store.get_many(keys).await?;
    let [format, next, totals, restoring] = values.as_slice() else {
        return Err(short_answer());
    };
    let last = last_sequence(store).await?;
    let Some(format) = format else {
        if last == 0 && next.is_none() {
            return Ok(None);
        }
        // To begin anew here would write over the log.
        return Err(lost("format"));
    };
    let format = record::decode_format(format)?;
    if format != record::FORMAT {
        return Err(Error::new(
            Reason::FormatUnsupported,
            format!(
                "the archive has format {format}, this version reads {}",
                record::FORMAT
            ),
        ));
    }
    if let (Some(end), Purpose::Use) = (restoring, purpose) {
        let end = record::decode_sequence(end)?;
        return Err(Error::new(
            Reason::RestoreUnfinished,
            format!(
                "a restore of this archive up to sequence {end} was not finished; run it again, it \
                 goes on where it was"
            ),
        ));
    }
    let next = next.as_ref().ok_or_else(|| lost("next sequence"))?;
    let next = record::decode_sequence(next)?;
    if next <= last {
        return Err(Error::new(
            Reason::IndexDamaged,
            format!(
                "the next sequence is {next}, and the log goes on to {last}; run `pressmark verify \
                 --repair` on it"
            ),
        ));
    }
    let totals = Totals::decode(totals.as_ref().ok_or_else(|| lost("totals"))?)?;
    let figures = Figures { next, totals };
    if store.get_many(vec![meta::archive_id()]).await? == [None] {
        // Archives were begun without an id once. One that has lost its own gets a new one too, and
        // its next backup is a whole one.
        tracing::warn!("the archive has no id and gets one");
        let batch = commit::first_batch(random_id()?, figures);
        store.write(batch, Durability::Synced).await?;
    }
    // It is needed by backups only, but one that is damaged should be noticed before the next.
    read_id(store).await?;
    Ok(Some(figures))
}

pub(super) async fn read_id(store: &dyn Store) -> Result<ArchiveId> {
    let value = store.get_many(vec![meta::archive_id()]).await?.pop();
    let value = value.flatten().ok_or_else(|| lost("id"))?;
    let id = value.as_ref().try_into();
    id.map_err(|_| lost("readable id"))
}

fn random_id() -> Result<ArchiveId> {
    let mut id = ArchiveId::default();
    getrandom::fill(&mut id).map_err(|error| {
        Error::new(Reason::Internal, "the system has no random bytes").with_source(error)
    })?;
    Ok(id)
}

/// The last sequence that the log has a row of, 0 for none.
async fn last_sequence(store: &dyn Store) -> Result<Sequence> {
    let scan = Scan {
        range: key::log_range(0, Sequence::MAX),
        direction: Direction::Descending,
        rows_max: 1,
        bytes_max: usize::MAX,
    };
    let chunk = store.scan_many(vec![scan]).await?.pop();
    let chunk = chunk.ok_or_else(short_answer)?;
    let last = chunk.rows.first();
    Ok(last
        .and_then(|row| key::parse_log(&row.key))
        .map_or(0, |(sequence, _)| sequence))
}

fn lost(what: &str) -> Error {
    Error::new(
        Reason::IndexDamaged,
        format!("the archive has lost its {what}; run `pressmark verify --repair` on it"),
    )
}
