//! The scrub of `serve`: a full check now and then, slow enough to run beside load.

use std::time::{Duration, SystemTime};

use crate::archive::{Archive, ScrubResult, VerifyOptions};
use crate::article::Timestamp;
use crate::error::Result;

/// The longest sleep until the clock is read again, which may have been set meanwhile.
const SLEEP_MAX: Duration = Duration::from_secs(3600);

/// Findings of one scrub that are logged one by one.
const FINDINGS_LOGGED_MAX: usize = 20;

/// When to scrub, and how fast.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    pub(super) interval: Duration,
    pub(super) bytes_per_second_max: u64,
}

/// Scrubs an archive for as long as the task lives: at once if it never was, and then an interval
/// after the last one, whatever process that ran in.
pub(super) async fn run(archive: Archive, schedule: Schedule) {
    loop {
        let result = match due_in(&archive, schedule.interval).await {
            Ok(Duration::ZERO) => scrub(&archive, schedule).await,
            Ok(wait) => {
                tokio::time::sleep(wait.min(SLEEP_MAX)).await;
                continue;
            }
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            tracing::error!(%error, "the scrub did not come to its end, it is tried again later");
            tokio::time::sleep(schedule.interval.min(SLEEP_MAX)).await;
        }
    }
}

/// How long it is until the next scrub.
async fn due_in(archive: &Archive, interval: Duration) -> Result<Duration> {
    let Some(last) = archive.stats().await?.last_scrub else {
        return Ok(Duration::ZERO);
    };
    let seconds = now()?.seconds().saturating_sub(last.finished_at.seconds());
    // A clock that was set back must not put the scrub off for ever.
    let passed = u64::try_from(seconds).map_or(interval, Duration::from_secs);
    Ok(interval.saturating_sub(passed))
}

async fn scrub(archive: &Archive, schedule: Schedule) -> Result<()> {
    let options = VerifyOptions {
        bytes_per_second_max: schedule.bytes_per_second_max,
        observer: None,
    };
    let report = archive.verify_with(&options).await?;
    for finding in report.findings.iter().take(FINDINGS_LOGGED_MAX) {
        let (what, advice) = (&finding.message, finding.kind.advice());
        tracing::error!(
            sequence = finding.sequence,
            what,
            advice,
            "the scrub found damage"
        );
    }
    let result = ScrubResult {
        finished_at: now()?,
        duration_ms: u64::try_from(report.elapsed.as_millis()).unwrap_or(u64::MAX),
        record_count: report.as_of,
        finding_count: report.finding_count,
    };
    tracing::info!(
        records = result.record_count,
        findings = result.finding_count,
        ms = result.duration_ms,
        "scrubbed the archive"
    );
    archive.note_scrub(result).await
}

fn now() -> Result<Timestamp> {
    Timestamp::from_clock(SystemTime::now())
}
