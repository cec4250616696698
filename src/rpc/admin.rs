//! `AdminService`.

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tracing::Instrument;

use super::audit;
use super::convert::{count, limits_message, requests_message, status_of, stopping, timestamp_of};
use super::limits::ServiceLimits;
use super::proto::admin_service_server::AdminService;
use super::questions::search_of;
use super::verify::Verify;
use super::{ResponseStream, proto};
use crate::archive::backup::Backup;
use crate::archive::{Archive, NearCopies, Role, ScrubResult};
use crate::search::Search;

/// Answers questions about the server and the archive.
#[derive(Debug)]
pub(super) struct Admin {
    pub(super) archive: Archive,
    /// Full-text search, if the server has it.
    pub(super) search: Option<Search>,
    /// What is taken from clients.
    pub(super) service_limits: ServiceLimits,
    /// Ends open streams.
    pub(super) stop: CancellationToken,
}

#[tonic::async_trait]
impl AdminService for Admin {
    type BackupArchiveStream = ResponseStream<proto::BackupArchiveResponse>;
    type VerifyArchiveStream = ResponseStream<proto::VerifyArchiveResponse>;

    async fn verify_archive(
        &self,
        request: Request<proto::VerifyArchiveRequest>,
    ) -> Result<Response<Self::VerifyArchiveStream>, Status> {
        if request.get_ref().repair {
            let writes = self.archive.check_writer().await;
            writes.map_err(|error| status_of(&error))?;
            audit::repairs(audit::caller(&request).as_ref());
        }
        let (events, stream) = mpsc::channel(1);
        let verify = Verify {
            archive: self.archive.clone(),
            stop: self.stop.clone(),
            events,
        };
        tokio::spawn(verify.run(request.into_inner()).in_current_span());
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn backup_archive(
        &self,
        request: Request<proto::BackupArchiveRequest>,
    ) -> Result<Response<Self::BackupArchiveStream>, Status> {
        let first = request.into_inner().from_sequence;
        let backup = self.archive.backup(first).await;
        let backup = backup.map_err(|error| status_of(&error))?;
        let (pieces, stream) = mpsc::channel(1);
        let bytes_max = self.archive.limits().response_bytes_max;
        let sending = send_backup(backup, bytes_max, self.stop.clone(), pieces);
        tokio::spawn(sending.in_current_span());
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn get_server_info(
        &self,
        _request: Request<proto::GetServerInfoRequest>,
    ) -> Result<Response<proto::GetServerInfoResponse>, Status> {
        let staleness = self.archive.staleness();
        let (role, writer) = match self.archive.role() {
            Role::Writer => (proto::ServerRole::Writer, None),
            Role::Replica => {
                // Whether the storage can be reached is what staleness tells.
                let writer = self.archive.writer().await.unwrap_or_default();
                (proto::ServerRole::Replica, writer)
            }
        };
        Ok(Response::new(proto::GetServerInfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            format: u32::from(self.archive.format()),
            engine: self.archive.engine().to_owned(),
            role: role.into(),
            limits: Some(limits_message(self.archive.limits(), &self.service_limits)),
            near_copies: Some(self.archive.near_copies() == NearCopies::On),
            search: Some(self.search.is_some()),
            staleness: staleness.and_then(|staleness| staleness.try_into().ok()),
            writer: writer.unwrap_or_default(),
        }))
    }

    async fn get_stats(
        &self,
        _request: Request<proto::GetStatsRequest>,
    ) -> Result<Response<proto::GetStatsResponse>, Status> {
        let stats = self
            .archive
            .stats()
            .await
            .map_err(|error| status_of(&error))?;
        let metrics = self.archive.metrics();
        let backup = self.archive.backup_status();
        let search = self.search.as_ref().map(Search::status);
        Ok(Response::new(proto::GetStatsResponse {
            article_count: Some(stats.totals.article_count),
            deleted_count: Some(stats.totals.deleted_count),
            text_bytes: Some(stats.totals.text_bytes),
            stored_bytes: Some(stats.totals.stored_bytes),
            last_sequence: Some(stats.last_sequence),
            disk_bytes: Some(stats.store.disk_bytes),
            open_ms: Some(stats.store.open_micros / 1000),
            queued_count: Some(count(stats.queued_count)),
            created_count: Some(metrics.created.get()),
            revision_count: Some(metrics.revised.get()),
            duplicate_count: Some(metrics.duplicate.get()),
            put_deleted_count: Some(metrics.put_deleted.get()),
            deletion_count: Some(metrics.deleted.get()),
            commit_count: Some(metrics.commits.get()),
            commit_us: Some(metrics.commit_micros.get()),
            read_count: Some(metrics.read.get()),
            damaged_count: Some(metrics.damaged.get()),
            last_scrub: stats.last_scrub.map(scrub_message),
            backup_sequence: backup.as_ref().map(|backup| backup.sequence),
            backup_behind_ms: backup
                .as_ref()
                .and_then(|backup| u64::try_from(backup.behind.as_millis()).ok()),
            backup_error: backup.and_then(|backup| backup.error).unwrap_or_default(),
            search_sequence: search.as_ref().map(|search| search.sequence),
            search_disk_bytes: self.search.as_ref().map(Search::disk_bytes),
            search_error: search.and_then(|search| search.error).unwrap_or_default(),
            storage_requests: stats.store.requests.map(|requests| {
                let stored_count = metrics.created.get() + metrics.revised.get();
                requests_message(requests, stored_count)
            }),
        }))
    }

    async fn move_archive(
        &self,
        request: Request<proto::MoveArchiveRequest>,
    ) -> Result<Response<proto::MoveArchiveResponse>, Status> {
        let caller = audit::caller(&request);
        let to = request.into_inner().to;
        let moved = match to.as_str() {
            "" => self
                .archive
                .release()
                .await
                .map(|()| self.archive.committed()),
            to => self.archive.move_to(to).await,
        };
        let last = moved.map_err(|error| status_of(&error))?;
        audit::moved(caller.as_ref(), &to);
        tracing::info!(to, last, "the archive was moved");
        Ok(Response::new(proto::MoveArchiveResponse {
            last_sequence: Some(last),
        }))
    }

    async fn rebuild_search_index(
        &self,
        request: Request<proto::RebuildSearchIndexRequest>,
    ) -> Result<Response<proto::RebuildSearchIndexResponse>, Status> {
        let search = search_of(self.search.as_ref()).map_err(|error| status_of(&error))?;
        let last = self.archive.committed();
        audit::rebuilds(audit::caller(&request).as_ref());
        search.rebuild();
        Ok(Response::new(proto::RebuildSearchIndexResponse {
            last_sequence: Some(last),
        }))
    }
}

/// Sends a backup piece by piece, no faster than the client takes them.
async fn send_backup(
    mut backup: Backup,
    bytes_max: usize,
    stop: CancellationToken,
    pieces: mpsc::Sender<Result<proto::BackupArchiveResponse, Status>>,
) {
    loop {
        let next = tokio::select! {
            next = backup.next() => next.map_err(|error| status_of(&error)),
            () = stop.cancelled() => Err(stopping()),
            () = pieces.closed() => return,
        };
        let bytes = match next {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return,
            Err(status) => {
                // A client that has gone needs no answer.
                let _ = pieces.send(Err(status)).await;
                return;
            }
        };
        for piece in bytes.chunks(bytes_max.max(1)) {
            let data = piece.to_vec();
            let piece = proto::BackupArchiveResponse { data };
            if pieces.send(Ok(piece)).await.is_err() {
                return;
            }
        }
    }
}

fn scrub_message(scrub: ScrubResult) -> proto::ScrubResult {
    proto::ScrubResult {
        finished_at: Some(timestamp_of(scrub.finished_at)),
        duration_ms: Some(scrub.duration_ms),
        record_count: Some(scrub.record_count),
        finding_count: Some(scrub.finding_count),
    }
}
