//! `pressmark verify`.

use std::io::{self, IsTerminal, Write};

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget};
use serde_json::{Value, json};

use super::output::json_line;
use super::{CommandResult, Outcome, complain};
use crate::client::{Client, message};
use crate::rpc::proto;
use crate::rpc::proto::verify_archive_response::Event;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Set damaged records aside and bring index rows and figures into line with the log; puts and
    /// deletes wait meanwhile
    #[arg(long)]
    pub(super) repair: bool,
    /// Open an archive that has lost acknowledged writes, and go on with what is left; only with
    /// --repair and --archive
    #[arg(long, requires = "repair")]
    pub(super) accept_loss: bool,
    /// MiB that the check may read in a second; 0 for no limit
    #[arg(long, value_name = "MIB", default_value_t = 0)]
    rate_mib: u32,
}

pub(super) async fn run(
    args: Args,
    client: &Client,
    json: bool,
    out: &mut (dyn Write + Send),
) -> CommandResult {
    let request = proto::VerifyArchiveRequest {
        repair: args.repair,
        bytes_per_second_max: u64::from(args.rate_mib) * 1024 * 1024,
    };
    let mut events = message(client.admin().verify_archive(request).await)?;
    let progress = progress_bar();
    let mut outcome = Outcome::Done;
    while let Some(news) = events
        .message()
        .await
        .map_err(|status| crate::rpc::error_of(&status))?
    {
        let Some(event) = news.event else { continue };
        if let Event::Progress(now) = &event {
            progress.set_message(progress_text(now));
            progress.tick();
        }
        if let Event::Summary(summary) = &event {
            // After a repair the last summary decides.
            outcome = match summary.finding_count() {
                0 => Outcome::Done,
                _ => Outcome::Found,
            };
        }
        if json {
            if !matches!(event, Event::Progress(_)) {
                json_line(out, &event_json(&event))?;
            }
            continue;
        }
        match event {
            Event::Progress(_) => {}
            Event::Finding(finding) => {
                progress.suspend(|| writeln!(out, "{}", finding_text(&finding)))?;
            }
            Event::Summary(summary) => {
                progress.suspend(|| writeln!(out, "{}", summary_text(&summary)))?;
            }
            Event::Repair(repair) => {
                progress.suspend(|| writeln!(out, "{}", repair_text(&repair)))?;
            }
        }
    }
    progress.finish_and_clear();
    Ok(outcome)
}

/// A line on stderr that tells where the check is; nothing if nobody sees it.
fn progress_bar() -> ProgressBar {
    if io::stderr().is_terminal() {
        ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr())
    } else {
        ProgressBar::hidden()
    }
}

fn progress_text(progress: &proto::VerifyProgress) -> String {
    format!(
        "{}: {} articles, {} at {}/s, {} findings",
        stage_word(progress.stage()),
        progress.article_count(),
        HumanBytes(progress.bytes()),
        HumanBytes(progress.bytes_per_second()),
        progress.finding_count()
    )
}

fn stage_word(stage: proto::VerifyStage) -> &'static str {
    match stage {
        proto::VerifyStage::Unspecified | proto::VerifyStage::Log => "log",
        proto::VerifyStage::Index => "index",
        proto::VerifyStage::Locate => "locate",
        proto::VerifyStage::Repair => "repair",
    }
}

fn kind_word(kind: proto::VerifyFindingKind) -> &'static str {
    match kind {
        proto::VerifyFindingKind::Unspecified => "unknown",
        proto::VerifyFindingKind::RecordDamaged => "record damaged",
        proto::VerifyFindingKind::RecordMissing => "record missing",
        proto::VerifyFindingKind::RecordQuarantined => "record quarantined",
        proto::VerifyFindingKind::ArticleRepeated => "article repeated",
        proto::VerifyFindingKind::DeleteBroken => "delete broken",
        proto::VerifyFindingKind::RowMissing => "row missing",
        proto::VerifyFindingKind::RowStray => "row stray",
        proto::VerifyFindingKind::FiguresWrong => "figures wrong",
        proto::VerifyFindingKind::DictionaryDamaged => "dictionary damaged",
        proto::VerifyFindingKind::DictionaryLost => "dictionary lost",
        proto::VerifyFindingKind::StoreDamaged => "store damaged",
    }
}

fn finding_text(finding: &proto::VerifyFinding) -> String {
    let place = match finding.sequence {
        Some(sequence) => format!(" at sequence {sequence}"),
        None => String::new(),
    };
    let kind = kind_word(finding.kind());
    format!("{kind}{place}: {}; {}", finding.message, finding.advice)
}

fn summary_text(summary: &proto::VerifySummary) -> String {
    if summary.figures_checked == Some(false) && summary.finding_count() == 0 {
        complain(
            "the figures were not compared: articles were deleted meanwhile, or a write failed",
        );
    }
    let verdict = match summary.finding_count() {
        0 => "OK".to_owned(),
        1 => "1 finding".to_owned(),
        count => format!("{count} findings"),
    };
    format!(
        "{verdict}: {} articles, {} deletions, {} index rows, {} in {} ms",
        summary.article_count(),
        summary.deletion_count(),
        summary.index_row_count(),
        HumanBytes(summary.bytes()),
        summary.elapsed_ms()
    )
}

fn repair_text(repair: &proto::VerifyRepair) -> String {
    format!(
        "repaired: {} records set aside, {} halves of deletes and copies of dictionaries rebuilt, {} rows added, {} rows removed",
        repair.quarantined_count(),
        repair.rebuilt_count(),
        repair.added_count(),
        repair.removed_count()
    )
}

fn event_json(event: &Event) -> Value {
    match event {
        Event::Progress(progress) => json!({
            "event": "progress",
            "stage": stage_word(progress.stage()),
            "article_count": progress.article_count(),
            "bytes": progress.bytes(),
        }),
        Event::Finding(finding) => json!({
            "event": "finding",
            "kind": kind_word(finding.kind()).replace(' ', "_"),
            "sequence": finding.sequence,
            "id": Some(&finding.id).filter(|id| !id.is_empty()),
            "message": finding.message,
            "advice": finding.advice,
        }),
        Event::Summary(summary) => json!({
            "event": "summary",
            "finding_count": summary.finding_count(),
            "article_count": summary.article_count(),
            "deletion_count": summary.deletion_count(),
            "index_row_count": summary.index_row_count(),
            "bytes": summary.bytes(),
            "elapsed_ms": summary.elapsed_ms(),
            "as_of_sequence": summary.as_of_sequence(),
            "figures_checked": summary.figures_checked(),
        }),
        Event::Repair(repair) => json!({
            "event": "repair",
            "quarantined_count": repair.quarantined_count(),
            "rebuilt_count": repair.rebuilt_count(),
            "added_count": repair.added_count(),
            "removed_count": repair.removed_count(),
        }),
    }
}
