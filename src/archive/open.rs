//! What has to be right before an archive is opened: its format, its figures, and that no record
//! stands behind the sequence that the next one gets. Archives of an older format, and those that
//! are to answer other questions than before, get the digests in table `d` that they lack.

use super::backup::ArchiveId;
use super::commit::{self, Figures};
use super::dictionaries;
use super::reader::short_answer;
use super::walk::{LogWalk, Pace};
use crate::error::{Error, Reason, Result};
use crate::key::{self, IndexFacts, NearCopies, Sequence, meta};
use crate::record::{self, ARCHIVE_FORMAT, ARCHIVE_FORMAT_PLAIN, Content, Dictionaries, Totals};
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
    /// To be filled from another archive: neither is an unfinished migration, or that it was moved
    /// away from here before.
    Receive,
    /// To be moved to another place, also once more. It is not begun if nothing is there.
    Leave,
    /// To have all marks taken away. It is not begun if nothing is there.
    Release,
}

/// What the rows of an archive are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Whether it can be asked for near copies.
    pub(super) near: NearCopies,
    pub(super) format: u8,
}

/// What a replica finds in an archive that another process writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// The last sequence given.
    pub(super) last: Sequence,
    pub(super) shape: Shape,
    /// How many batches repairs have written; none if there was no repair, or the count was damaged.
    pub(super) mends: Option<u64>,
}

/// An archive that was found as it has to be.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) figures: Figures,
    pub(super) shape: Shape,
    pub(super) dictionaries: Dictionaries,
    /// Whether it has no dictionary, not even a damaged one, and may get one.
    pub(super) is_untrained: bool,
}

/// Opens an archive, or begins one in an empty store. It can be asked for near copies as `near` says,
/// or as it was.
pub(super) async fn open(
    store: &dyn Store,
    purpose: Purpose,
    near: Option<NearCopies>,
) -> Result<Opened> {
    // Before anything reads a record.
    let kept = dictionaries::kept(store).await?;
    let dictionaries = dictionaries::usable(&kept);
    let of_new = if kept.is_empty() {
        ARCHIVE_FORMAT_PLAIN
    } else {
        ARCHIVE_FORMAT
    };
    let of_new = (of_new, near.unwrap_or(NearCopies::On));
    let figures = figures(store, purpose, of_new).await?;
    let keys = vec![meta::format(), meta::near_copies()];
    let values = store.get_many(keys).await?;
    let [Some(format), switch] = values.as_slice() else {
        return Err(lost("format"));
    };
    let had = switch
        .as_ref()
        .map(|switch| record::decode_near_copies(switch))
        .transpose();
    let had = match had {
        Err(error) if purpose != Purpose::Repair => return Err(error),
        had => had.unwrap_or_default(),
    };
    let near = near.or(had).unwrap_or(NearCopies::On);
    let mut format = record::decode_format(format)?;
    if format < ARCHIVE_FORMAT_PLAIN || had != Some(near) {
        format = format.max(ARCHIVE_FORMAT_PLAIN);
        write_digests(store, figures.next - 1, (format, near), &dictionaries).await?;
    }
    Ok(Opened {
        figures,
        shape: Shape { near, format },
        dictionaries,
        is_untrained: kept.is_empty(),
    })
}

/// Looks what an archive is like that another process writes, and changes nothing.
pub(super) async fn look(store: &dyn Store) -> Result<Found> {
    let keys = vec![
        meta::format(),
        meta::next_sequence(),
        meta::totals(),
        meta::near_copies(),
        meta::mends(),
    ];
    let values = store.get_many(keys).await?;
    let [format, next, totals, near, mends] = values.as_slice() else {
        return Err(short_answer());
    };
    let Some(format) = format else {
        let what = "the archive is not begun yet; start the server that writes it first";
        return Err(Error::new(Reason::FileFailed, what));
    };
    let format = known_format(format)?;
    let next = next.as_ref().ok_or_else(|| lost("next sequence"))?;
    let near = near.as_ref().map(|near| record::decode_near_copies(near));
    // Whoever asks for them reads them again.
    Totals::decode(totals.as_ref().ok_or_else(|| lost("totals"))?)?;
    Ok(Found {
        last: record::decode_sequence(next)?.saturating_sub(1),
        // Without a word on it they are just being written.
        shape: Shape {
            near: near.transpose()?.unwrap_or(NearCopies::Off),
            format,
        },
        mends: mends
            .as_ref()
            .and_then(|mends| record::decode_sequence(mends).ok()),
    })
}

/// Refuses an archive that is not whole yet, or was moved, to a replica.
pub(super) async fn check_whole(store: &dyn Store) -> Result<()> {
    let keys = vec![meta::restoring(), meta::migrating(), meta::moved()];
    let values = store.get_many(keys).await?;
    let [restoring, migrating, moved] = values.as_slice() else {
        return Err(short_answer());
    };
    check_marks(Purpose::Use, [restoring, migrating, moved])
}

/// Writes the values of table `d` anew, from the log. Until that is done the archive has no word on
/// whether it can be asked for near copies, so that after an interruption the next open does it again.
async fn write_digests(
    store: &dyn Store,
    last: Sequence,
    (format, near): (u8, NearCopies),
    dictionaries: &Dictionaries,
) -> Result<()> {
    if last > 0 {
        tracing::info!(articles = last, "writing the digests of all articles anew");
    }
    let batch = commit::unknown_digests_batch();
    store.write(batch, Durability::Synced).await?;
    let mut walk = LogWalk::to(store, last);
    let mut pace = Pace::new(0);
    while let Some(step) = walk.next(&mut pace).await? {
        let mut rows = Vec::new();
        for raw in step.records {
            match raw.decode(dictionaries) {
                Ok(record) => {
                    if let Content::Article(article) = &record.content {
                        let facts = IndexFacts::of(article, record.id, near);
                        rows.extend(record::index_rows(&facts, raw.sequence));
                    }
                }
                // A check will tell, and a repair make up for it.
                Err(error) => tracing::error!(%error, "a record without a digest"),
            }
        }
        let batch = commit::digests_batch(rows);
        store.write(batch, Durability::Buffered).await?;
    }
    let batch = commit::format_batch(format, near);
    store.write(batch, Durability::Synced).await
}

/// Reads the figures of an archive, or begins one in an empty store.
async fn figures(
    store: &dyn Store,
    purpose: Purpose,
    (format, of_new): (u8, NearCopies),
) -> Result<Figures> {
    let (archive_id, next, near) = match read(store, purpose).await {
        Ok(Some(figures)) => return Ok(figures),
        Ok(None) if matches!(purpose, Purpose::Leave | Purpose::Release) => {
            return Err(Error::new(Reason::FileFailed, "no archive is there"));
        }
        Ok(None) => (random_id()?, 1, Some(of_new)),
        Err(error) if purpose == Purpose::Repair && error.reason() == Reason::IndexDamaged => {
            tracing::warn!(%error, "making up figures to repair them");
            let archive_id = read_id(store).await.or_else(|_| random_id())?;
            // Whatever stands in table `d` is written anew before the archive is used.
            (archive_id, last_sequence(store).await? + 1, None)
        }
        Err(error) => return Err(error),
    };
    let figures = Figures {
        next,
        totals: Totals::default(),
    };
    let batch = commit::first_batch(archive_id, figures, (format, near));
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
        meta::migrating(),
        meta::moved(),
    ];
    let values = store.get_many(keys).await?;
    let [format, next, totals, restoring, migrating, moved] = values.as_slice() else {
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
    known_format(format)?;
    check_marks(purpose, [restoring, migrating, moved])?;
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
        let batch = commit::id_batch(random_id()?);
        store.write(batch, Durability::Synced).await?;
    }
    // It is needed by backups only, but one that is damaged should be noticed before the next.
    read_id(store).await?;
    Ok(Some(figures))
}

/// A format that this version reads.
fn known_format(value: &[u8]) -> Result<u8> {
    let format = record::decode_format(value)?;
    if (1..=ARCHIVE_FORMAT).contains(&format) {
        return Ok(format);
    }
    let what = format!("the archive has format {format}, this version reads 1 to {ARCHIVE_FORMAT}");
    Err(Error::new(Reason::FormatUnsupported, what))
}

/// Refuses an archive that is not whole yet, or was moved, to those who need it whole and in use.
fn check_marks(
    purpose: Purpose,
    [restoring, migrating, moved]: [&Option<bytes::Bytes>; 3],
) -> Result<()> {
    if matches!(purpose, Purpose::Repair | Purpose::Release) {
        return Ok(());
    }
    let may_be_moved = matches!(purpose, Purpose::Receive | Purpose::Leave);
    if let (Some(to), false) = (moved, may_be_moved) {
        return Err(commit::moved(&String::from_utf8_lossy(to)));
    }
    if let Some(from) = migrating {
        if purpose == Purpose::Receive {
            return Ok(());
        }
        let from = String::from_utf8_lossy(from);
        let what = format!(
            "the migration of {from} to here was not finished; run `pressmark migrate` again, it goes \
             on where it was"
        );
        return Err(Error::new(Reason::MigrationUnfinished, what));
    }
    if let Some(end) = restoring {
        if purpose == Purpose::Restore {
            return Ok(());
        }
        let end = record::decode_sequence(end)?;
        let what = format!(
            "a restore of this archive up to sequence {end} was not finished; run it again, it goes on \
             where it was"
        );
        return Err(Error::new(Reason::RestoreUnfinished, what));
    }
    Ok(())
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
