//! The stream of `VerifyArchive`: runs a check, and a repair if asked to, and tells the client of it.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::convert::{now, status_of, stopping};
use super::proto;
use super::proto::verify_archive_response::Event;
use crate::archive::{
    Archive, Finding, FindingKind, Observer, RepairCounts, Stage, VerifyOptions, VerifyProgress,
    VerifyReport,
};
use crate::error::{Error, Reason};

/// How often a check tells where it is.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// The slowest that a check can be asked to read.
const BYTES_PER_SECOND_MIN: u64 = 1024 * 1024;

/// A check whose news go to a client.
pub(super) struct Verify {
    pub(super) archive: Archive,
    /// Ends it.
    pub(super) stop: CancellationToken,
    pub(super) events: mpsc::Sender<Result<proto::VerifyArchiveResponse, Status>>,
}

impl Verify {
    pub(super) async fn run(self, request: proto::VerifyArchiveRequest) {
        let status = match self.check(request).await {
            Ok(()) | Err(Ended::ClientGone) => return,
            Err(Ended::Stopping) => stopping(),
            Err(Ended::Failed(error)) => status_of(&error),
        };
        // If the client has gone, nobody is left to be told.
        let _ = self.events.send(Err(status)).await;
    }

    async fn check(&self, request: proto::VerifyArchiveRequest) -> Result<(), Ended> {
        let pace = request.bytes_per_second_max;
        if (1..BYTES_PER_SECOND_MIN).contains(&pace) {
            // A number that was meant as MiB would keep the check going for years.
            let wrong = format!(
                "{pace} is less than the limit of {BYTES_PER_SECOND_MIN}; 0 is for no limit"
            );
            let field = "bytes_per_second_max";
            return Err(Error::field(Reason::ArgumentInvalid, field, wrong).into());
        }
        let before = self.verify(request.bytes_per_second_max).await?;
        if !request.repair || before.finding_count == 0 {
            return Ok(());
        }
        self.send(Event::Progress(repair_progress())).await?;
        let counts = tokio::select! {
            counts = self.archive.mend(now()?) => counts?,
            () = self.stop.cancelled() => return Err(Ended::Stopping),
            () = self.events.closed() => return Err(Ended::ClientGone),
        };
        self.send(Event::Repair(repair_message(counts))).await?;
        self.verify(request.bytes_per_second_max).await?;
        Ok(())
    }

    /// Checks the archive and tells progress, findings and summary. A client that does not read
    /// holds the check up, and nothing else.
    async fn verify(&self, bytes_per_second_max: u64) -> Result<VerifyReport, Ended> {
        let (progress, watched) = watch::channel(VerifyProgress::default());
        let room = self.archive.limits().verify_findings_max.max(1);
        let (findings, mut found) = mpsc::channel(room);
        let options = VerifyOptions {
            bytes_per_second_max,
            observer: Some(Observer { progress, findings }),
        };
        let checking = self.archive.verify_with(&options);
        tokio::pin!(checking);
        let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
        let report = loop {
            tokio::select! {
                report = &mut checking => break report?,
                Some(finding) = found.recv() => self.finding(finding).await?,
                _ = ticks.tick() => {
                    let progress = *watched.borrow();
                    self.send(Event::Progress(progress_message(progress))).await?;
                }
                () = self.stop.cancelled() => return Err(Ended::Stopping),
                () = self.events.closed() => return Err(Ended::ClientGone),
            }
        };
        while let Ok(finding) = found.try_recv() {
            self.finding(finding).await?;
        }
        self.send(Event::Summary(summary_message(&report))).await?;
        Ok(report)
    }

    async fn finding(&self, finding: Finding) -> Result<(), Ended> {
        self.send(Event::Finding(finding_message(finding))).await
    }

    async fn send(&self, event: Event) -> Result<(), Ended> {
        let message = proto::VerifyArchiveResponse { event: Some(event) };
        let sent = self.events.send(Ok(message)).await;
        sent.map_err(|_| Ended::ClientGone)
    }
}

/// Why a check ends early.
enum Ended {
    ClientGone,
    Stopping,
    Failed(Error),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

fn progress_message(progress: VerifyProgress) -> proto::VerifyProgress {
    let stage = match progress.stage {
        Stage::Log => proto::VerifyStage::Log,
        Stage::Index => proto::VerifyStage::Index,
        Stage::Locate => proto::VerifyStage::Locate,
    };
    let nanos = progress.elapsed.as_nanos().max(1);
    let rate = u128::from(progress.bytes) * Duration::from_secs(1).as_nanos() / nanos;
    proto::VerifyProgress {
        stage: stage.into(),
        article_count: Some(progress.article_count),
        bytes: Some(progress.bytes),
        bytes_per_second: u64::try_from(rate).ok(),
        finding_count: Some(progress.finding_count),
    }
}

fn repair_progress() -> proto::VerifyProgress {
    proto::VerifyProgress {
        stage: proto::VerifyStage::Repair.into(),
        ..proto::VerifyProgress::default()
    }
}

fn finding_message(finding: Finding) -> proto::VerifyFinding {
    let kind = match finding.kind {
        FindingKind::RecordDamaged => proto::VerifyFindingKind::RecordDamaged,
        FindingKind::RecordMissing => proto::VerifyFindingKind::RecordMissing,
        FindingKind::RecordQuarantined => proto::VerifyFindingKind::RecordQuarantined,
        FindingKind::ArticleRepeated => proto::VerifyFindingKind::ArticleRepeated,
        FindingKind::DeleteBroken => proto::VerifyFindingKind::DeleteBroken,
        FindingKind::RowMissing => proto::VerifyFindingKind::RowMissing,
        FindingKind::RowStray => proto::VerifyFindingKind::RowStray,
        FindingKind::FiguresWrong => proto::VerifyFindingKind::FiguresWrong,
        FindingKind::DictionaryDamaged => proto::VerifyFindingKind::DictionaryDamaged,
        FindingKind::DictionaryLost => proto::VerifyFindingKind::DictionaryLost,
        FindingKind::StoreDamaged => proto::VerifyFindingKind::StoreDamaged,
    };
    proto::VerifyFinding {
        kind: kind.into(),
        sequence: finding.sequence,
        id: finding.id.map(|id| id.to_string()).unwrap_or_default(),
        message: finding.message,
        advice: finding.kind.advice().to_owned(),
    }
}

fn summary_message(report: &VerifyReport) -> proto::VerifySummary {
    proto::VerifySummary {
        article_count: Some(report.article_count),
        deletion_count: Some(report.deletion_count),
        index_row_count: Some(report.index_row_count),
        bytes: Some(report.bytes),
        elapsed_ms: u64::try_from(report.elapsed.as_millis()).ok(),
        as_of_sequence: Some(report.as_of),
        finding_count: Some(report.finding_count),
        figures_checked: Some(report.figures_checked),
    }
}

fn repair_message(counts: RepairCounts) -> proto::VerifyRepair {
    proto::VerifyRepair {
        quarantined_count: Some(counts.quarantined_count),
        rebuilt_count: Some(counts.rebuilt_count),
        added_count: Some(counts.added_count),
        removed_count: Some(counts.removed_count),
    }
}
