//! The archive that a migration moves: a server, or an archive that is opened in this process and
//! that nobody else has open then.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::archive::migrate::Holdings;
use crate::archive::{Archive, Guard, Limits, NearCopies};
use crate::client::{Client, Target, message};
use crate::error::{Error, Reason, Result};
use crate::rpc::{error_of, proto};
use crate::store::{self, Locator, Store};

/// Where records come from.
pub(super) enum Source {
    Server(Client),
    Archive(Archive, Guard),
}

/// How a stretch of records came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fed {
    /// All of it was sent.
    Whole,
    /// Whoever started the program stops it.
    Stopped,
    /// Nobody takes it any more.
    Unread,
}

impl Source {
    pub(super) async fn open(target: &Target) -> Result<Self> {
        match target {
            Target::Archive(locator, options) => {
                if let Locator::Folder(folder) = locator
                    && !folder.exists()
                {
                    let what = format!("no archive is at {locator}");
                    return Err(Error::new(Reason::FileFailed, what));
                }
                let store = store::open(locator, options.clone()).await?;
                let opened = Archive::open_to_leave(Arc::clone(&store), Limits::default()).await;
                let (archive, guard) = closed_if_refused(opened, &*store).await?;
                Ok(Self::Archive(archive, guard))
            }
            Target::Server(_) | Target::SearchedArchive(..) | Target::DamagedArchive(..) => {
                Client::connect(target).await.map(Self::Server)
            }
        }
    }

    /// Whether it is written to while it is copied.
    pub(super) fn is_live(&self) -> bool {
        matches!(self, Self::Server(_))
    }

    pub(super) async fn near_copies(&self) -> Result<NearCopies> {
        match self {
            Self::Archive(archive, _) => Ok(archive.near_copies()),
            Self::Server(client) => {
                let request = proto::GetServerInfoRequest {};
                let info = message(client.admin().get_server_info(request).await)?;
                Ok(match info.near_copies {
                    Some(false) => NearCopies::Off,
                    Some(true) | None => NearCopies::On,
                })
            }
        }
    }

    pub(super) async fn holdings(&self) -> Result<Holdings> {
        match self {
            Self::Archive(archive, _) => archive.holdings().await,
            Self::Server(client) => {
                let request = proto::GetStatsRequest {};
                let stats = message(client.admin().get_stats(request).await)?;
                Ok(Holdings {
                    last_sequence: stats.last_sequence(),
                    article_count: stats.article_count(),
                    deleted_count: stats.deleted_count(),
                    text_bytes: stats.text_bytes(),
                })
            }
        }
    }

    /// Sends a backup of all records from a sequence on, piece by piece.
    pub(super) async fn feed(
        &self,
        first: u64,
        pieces: mpsc::Sender<Vec<u8>>,
        stop: &CancellationToken,
    ) -> Result<Fed> {
        let mut reading = match self {
            Self::Archive(archive, _) => Reading::Archive(archive.backup(first).await?),
            Self::Server(client) => {
                let request = proto::BackupArchiveRequest {
                    from_sequence: first,
                };
                Reading::Server(message(client.admin().backup_archive(request).await)?)
            }
        };
        loop {
            let piece = tokio::select! {
                piece = reading.next() => piece?,
                () = stop.cancelled() => return Ok(Fed::Stopped),
            };
            let Some(piece) = piece else {
                return Ok(Fed::Whole);
            };
            if pieces.send(piece).await.is_err() {
                return Ok(Fed::Unread);
            }
        }
    }

    /// Checks that it was not moved to another place before. A server tells when its writes are ended.
    pub(super) async fn check_not_elsewhere(&self, place: &str) -> Result<()> {
        match self {
            Self::Archive(archive, _) => archive.check_not_elsewhere(place).await,
            Self::Server(_) => Ok(()),
        }
    }

    /// Ends writes there, and returns the last sequence.
    pub(super) async fn move_to(&self, place: &str) -> Result<u64> {
        match self {
            Self::Archive(archive, _) => archive.move_to(place).await,
            Self::Server(client) => {
                let to = place.to_owned();
                let request = proto::MoveArchiveRequest { to };
                let moved = message(client.admin().move_archive(request).await)?;
                Ok(moved.last_sequence())
            }
        }
    }

    /// Lets it take writes again.
    pub(super) async fn release(&self) -> Result<()> {
        match self {
            Self::Archive(archive, _) => archive.release().await,
            Self::Server(client) => {
                let request = proto::MoveArchiveRequest { to: String::new() };
                message(client.admin().move_archive(request).await).map(drop)
            }
        }
    }

    pub(super) async fn close(self) -> Result<()> {
        match self {
            Self::Server(client) => client.close().await,
            Self::Archive(archive, guard) => {
                drop(archive);
                guard.close().await
            }
        }
    }
}

/// A backup that is being read.
enum Reading {
    Archive(crate::archive::backup::Backup),
    Server(crate::client::Backup),
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Vec<u8>>> {
        match self {
            Self::Archive(backup) => backup.next().await,
            Self::Server(stream) => {
                let piece = stream.message().await;
                let piece = piece.map_err(|status| error_of(&status))?;
                Ok(piece.map(|piece| piece.data))
            }
        }
    }
}

/// Lets go of a store whose archive cannot be opened, so that others need not wait for it.
pub(super) async fn closed_if_refused<T>(opened: Result<T>, store: &dyn Store) -> Result<T> {
    if opened.is_err()
        && let Err(error) = store.close().await
    {
        tracing::warn!(%error, "the archive that was refused ends badly");
    }
    opened
}
