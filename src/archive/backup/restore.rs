//! Restores backups: checks a chain of them, then gives its records to the writer, each at the
//! sequence that it had.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::mpsc;

use super::decode::Decoder;
use super::follow::{PART_ENDING, SEGMENT_ENDING};
use super::format::{Entry, FRAME_HEAD_BYTES, HEADER_BYTES, Header, PREFIX_BYTES};
use super::receive::{Receiver, RestoreStep};
use crate::archive::open::Purpose;
use crate::archive::{Archive, Guard, Limits};
use crate::article::ContentHash;
use crate::error::{Error, Reason, Result};
use crate::key::{self, Sequence, meta};
use crate::record;
use crate::store::Store;

/// Frames read ahead of the writer.
const FRAMES_AHEAD: usize = 2;

/// One backup of a chain.
#[derive(Clone, Debug)]
struct Link {
    path: PathBuf,
    header: Header,
    last: Sequence,
    /// The id at its end, or before its beginning if it holds nothing.
    last_id: ContentHash,
    /// Bytes behind the last proved frame of an unfinished backup, if they do not just end early.
    unproved_bytes: u64,
    /// Whether it has its trailer.
    is_finished: bool,
}

/// Backups that follow each other, every one of which was read and proved.
#[derive(Clone, Debug)]
pub struct Chain {
    links: Vec<Link>,
}

impl Chain {
    /// Reads backups in the order given, folders of them in the order of their names, and proves
    /// that each is whole and goes on where the one before it ends. Blocks.
    ///
    /// Only the last file of a folder may be unfinished, which is what `serve --backup-to` writes at
    /// the time; of that, all whole frames count.
    ///
    /// # Errors
    /// `BackupDamaged`, `BackupMismatch`, `FileFailed`, each naming the file.
    pub fn read(paths: &[PathBuf]) -> Result<Self> {
        let mut links: Vec<Link> = Vec::new();
        for path in paths {
            for (path, may_be_unfinished) in files(path)? {
                if may_be_unfinished && is_empty(&path)? {
                    continue;
                }
                let link = Link::read(path, may_be_unfinished)?;
                if let Some(before) = links.last() {
                    link.follows(before)?;
                }
                links.push(link);
            }
        }
        if links.is_empty() {
            return Err(Error::new(Reason::FileFailed, "no backup is there"));
        }
        Ok(Self { links })
    }

    /// The first sequence in it.
    #[must_use]
    pub fn first(&self) -> Sequence {
        self.links.first().map_or(0, |link| link.header.first)
    }

    /// The last sequence in it.
    #[must_use]
    pub fn last(&self) -> Sequence {
        self.links.last().map_or(0, |link| link.last)
    }

    /// The files, in order.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.links.iter().map(|link| link.path.as_path())
    }

    /// The file at the end that has no trailer, if one is so.
    #[must_use]
    pub fn unfinished(&self) -> Option<&Path> {
        let unfinished = self.links.iter().find(|link| !link.is_finished);
        unfinished.map(|link| link.path.as_path())
    }

    /// Bytes of the unfinished file that are behind damage, so that nothing of them can be proved.
    #[must_use]
    pub fn unproved_bytes(&self) -> u64 {
        self.links.iter().map(|link| link.unproved_bytes).sum()
    }

    /// Checks that a backup which begins where this chain ends is of the same archive.
    ///
    /// # Errors
    /// `BackupMismatch`.
    pub fn check_next(&self, file: &Path) -> Result<()> {
        let next = Link::read(file.to_owned(), false)?;
        self.links.last().map_or(Ok(()), |last| next.follows(last))
    }

    /// Gives the records to a function, frame by frame. Blocks. Ends early if the function says so.
    ///
    /// # Errors
    /// `BackupDamaged`, `FileFailed`.
    pub fn for_each(&self, mut take: impl FnMut(Vec<Entry>) -> bool) -> Result<()> {
        for link in &self.links {
            let mut decoder = open(&link.path)?;
            while decoder.trailer().last < link.last {
                let Some(entries) = decoder.next_entries()? else {
                    break;
                };
                if !take(entries) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

impl Link {
    fn read(path: PathBuf, may_be_unfinished: bool) -> Result<Self> {
        let mut decoder = open(&path)?;
        let mut last_id = decoder.header().before;
        let mut unproved_bytes = 0;
        loop {
            match decoder.next_entries() {
                Ok(Some(entries)) => {
                    last_id = entries.last().map_or(last_id, |entry| entry.record.id);
                }
                Ok(None) => break,
                Err(error) if may_be_unfinished && error.reason() == Reason::BackupDamaged => {
                    if !decoder.is_at_end() {
                        let size =
                            fs::metadata(&path).map_err(|error| cannot_read(&path, error))?;
                        unproved_bytes = size.len().saturating_sub(decoder.bytes());
                    }
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Self {
            header: *decoder.header(),
            last: decoder.trailer().last,
            last_id,
            unproved_bytes,
            is_finished: decoder.is_finished(),
            path,
        })
    }

    /// Whether it goes on where another one ends.
    fn follows(&self, before: &Self) -> Result<()> {
        let (file, other) = (self.path.display(), before.path.display());
        let what = if self.header.archive_id != before.header.archive_id {
            format!("{file} is a backup of another archive than {other}")
        } else if self.header.first != before.last + 1 {
            format!(
                "{file} begins at sequence {}, but {other} ends at {}; name the backups in order",
                self.header.first, before.last
            )
        } else if !may_be_same(self.header.before, before.last_id) {
            format!(
                "{file} goes on behind article {}, but {other} ends with {}; their archive has gone \
                 different ways",
                self.header.before, before.last_id
            )
        } else {
            return Ok(());
        };
        Err(Error::new(Reason::BackupMismatch, what).with_resource(file.to_string()))
    }
}

/// Whether an unfinished backup was begun and not even its header has come to the disk.
pub(super) fn is_empty(path: &Path) -> Result<bool> {
    let size = fs::metadata(path).map_err(|error| cannot_read(path, error))?;
    let header_end = PREFIX_BYTES + FRAME_HEAD_BYTES + HEADER_BYTES;
    let is_empty = usize::try_from(size.len()).is_ok_and(|bytes| bytes < header_end);
    if is_empty {
        tracing::warn!(file = %path.display(), "passing by an unfinished backup without a header");
    }
    Ok(is_empty)
}

fn open(path: &Path) -> Result<Decoder<BufReader<File>>> {
    let file = File::open(path).map_err(|error| cannot_read(path, error))?;
    Decoder::new(BufReader::new(file), path.display().to_string())
}

fn cannot_read(path: &Path, error: std::io::Error) -> Error {
    let name = path.display().to_string();
    Error::new(Reason::FileFailed, format!("cannot read {name}"))
        .with_source(error)
        .with_resource(name)
}

/// The backups that a path stands for, and whether each may be unfinished.
fn files(path: &Path) -> Result<Vec<(PathBuf, bool)>> {
    if !path.is_dir() {
        return Ok(vec![(path.to_owned(), false)]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(|error| cannot_read(path, error))? {
        let file = entry.map_err(|error| cannot_read(path, error))?.path();
        let ending = file.extension().and_then(|ending| ending.to_str());
        match ending {
            Some(SEGMENT_ENDING) => found.push((file, false)),
            Some(PART_ENDING) => found.push((file, true)),
            _ => {}
        }
    }
    found.sort();
    let count = found.len();
    for (file, may_be_unfinished) in found.iter().take(count.saturating_sub(1)) {
        if *may_be_unfinished {
            let what = format!("{} is unfinished and not the last", file.display());
            return Err(Error::new(Reason::BackupMismatch, what));
        }
    }
    Ok(found)
}

/// What a restore did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestoreSummary {
    /// Records that were written.
    pub restored_count: u64,
    /// Records that were there already, from an interrupted restore or an earlier one.
    pub present_count: u64,
    /// The last sequence of the archive now.
    pub last: Sequence,
}

impl Archive {
    /// Opens an archive to restore backups into it, also one whose restore was interrupted.
    ///
    /// # Errors
    /// Those of [`open`](Self::open), `RestoreUnfinished` aside.
    pub async fn open_to_restore(store: Arc<dyn Store>, limits: Limits) -> Result<(Self, Guard)> {
        Self::open_for(Purpose::Restore, store, limits, None).await
    }

    /// Restores a chain of backups. A chain that begins at 1 needs an empty archive, or one that has
    /// the first part of it; an increment needs the archive that it was taken of, as it was then.
    /// What is there already is compared and passed by, so an interrupted restore goes on.
    ///
    /// # Errors
    /// `BackupMismatch` if the chain does not go on where the archive ends, or differs from what is
    /// there; `BackupDamaged`; `WritesStopped`.
    pub async fn restore(&self, chain: &Chain) -> Result<RestoreSummary> {
        let header = chain.links.first().map(|link| link.header);
        let header = header.ok_or_else(|| Error::new(Reason::Internal, "an empty chain"))?;
        let last = chain.last();
        self.check_seam(&header).await?;
        self.check_end(last).await?;
        let mut summary = RestoreSummary::default();
        let mut begin = Some(RestoreStep::Begin {
            archive_id: header.archive_id,
            last,
            from: None,
        });
        let mut receiver = Receiver::new(self);
        let (frames, mut read) = mpsc::channel(FRAMES_AHEAD);
        let reading = {
            let chain = chain.clone();
            tokio::task::spawn_blocking(move || {
                chain.for_each(|entries| frames.blocking_send(entries).is_ok())
            })
        };
        while let Some(entries) = read.recv().await {
            self.restore_entries(entries, &mut begin, &mut receiver, &mut summary)
                .await?;
        }
        let reading = reading.await;
        reading.map_err(|panic| {
            Error::new(Reason::Internal, "reading a backup panicked").with_source(panic)
        })??;
        receiver.settle().await?;
        self.step(RestoreStep::End).await?;
        summary.last = self.committed();
        Ok(summary)
    }

    /// Checks that a chain is of this archive and goes on where it ends, or before.
    async fn check_seam(&self, header: &Header) -> Result<()> {
        let mismatch = |what: String| Err(Error::new(Reason::BackupMismatch, what));
        let committed = self.committed();
        if committed == 0 && header.first == 1 {
            return Ok(());
        }
        if header.archive_id != self.archive_id().await? {
            return mismatch("the backup is of another archive, and this one is not empty".into());
        }
        if header.first > committed + 1 {
            return mismatch(format!(
                "the backup begins at sequence {}, and the archive ends at {committed}; restore the \
                 backups between them first",
                header.first
            ));
        }
        let found = self.id_at(header.first - 1).await?;
        if !may_be_same(found, header.before) {
            return mismatch(format!(
                "record {} is of article {found} here, and of {} in the archive that the backup is \
                 of; the two have gone different ways",
                header.first - 1,
                header.before
            ));
        }
        Ok(())
    }

    /// Checks that a chain goes as far as the unfinished restore that it takes up.
    async fn check_end(&self, last: Sequence) -> Result<()> {
        let Some(end) = self.reader().value(meta::restoring()).await? else {
            return Ok(());
        };
        let end = record::decode_sequence(&end)?;
        if last >= end {
            return Ok(());
        }
        let what = format!(
            "an unfinished restore goes on to sequence {end}, and these backups end at {last}; name \
             all those that it was begun with"
        );
        Err(Error::new(Reason::BackupMismatch, what))
    }

    async fn restore_entries(
        &self,
        mut entries: Vec<Entry>,
        begin: &mut Option<RestoreStep>,
        receiver: &mut Receiver,
        summary: &mut RestoreSummary,
    ) -> Result<()> {
        let next = receiver.next();
        let new = entries.split_off(entries.partition_point(|entry| entry.sequence < next));
        self.compare(&entries).await?;
        // All that is there already was compared by now. Until then the archive stays as it is, so
        // that backups of another history do it no harm.
        if let Some(begin) = begin.take_if(|_| !new.is_empty()) {
            self.step(begin).await?;
        }
        summary.present_count += u64::try_from(entries.len()).unwrap_or(u64::MAX);
        summary.restored_count += u64::try_from(new.len()).unwrap_or(u64::MAX);
        for entry in new {
            receiver.take(self.prepare_entry(entry)?).await?;
        }
        Ok(())
    }

    /// Checks that records which are there already are of the same articles.
    async fn compare(&self, entries: &[Entry]) -> Result<()> {
        let keys = entries.iter().map(|entry| key::log(entry.sequence));
        let heads = self.reader().get_many(keys.collect()).await?;
        for (entry, head) in entries.iter().zip(heads) {
            let sequence = entry.sequence;
            let id = head.and_then(|head| record::peek_id(sequence, &head).ok());
            if !id.is_some_and(|id| may_be_same(id, entry.record.id)) {
                let what = format!(
                    "record {sequence} is of article {} in the backup, and of another one here",
                    entry.record.id
                );
                return Err(Error::new(Reason::BackupMismatch, what));
            }
        }
        Ok(())
    }
}

/// Whether two records can be of one article: one that was set aside may have lost its id.
pub(in crate::archive) fn may_be_same(one: ContentHash, other: ContentHash) -> bool {
    one == other || [one, other].contains(&record::UNKNOWN_ID)
}
