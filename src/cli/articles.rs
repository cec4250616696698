//! `pressmark put`, `get`, `missing`, `delete` and `stats`.

use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::output::{article_json, article_of, json_line, message_of, outcome_text, time_of};
use super::{CommandResult, Outcome, complain};
use crate::archive::Limits;
use crate::client::{Client, message};
use crate::error::{Error, Kind, Reason, Result};
use crate::format::markdown;
use crate::rpc::proto;

/// The name of standard input.
const STDIN: &str = "-";

#[derive(Debug, clap::Args)]
pub(super) struct PutArgs {
    /// Files in the canonical layout; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

pub(super) async fn put(
    args: PutArgs,
    client: &Client,
    json: bool,
    out: &mut (dyn Write + Send),
) -> CommandResult {
    let mut outcome = Outcome::Done;
    for file in args.files {
        match put_file(&file, client).await {
            Ok(put) => {
                let word = outcome_text(put.outcome());
                let file = file.display().to_string();
                if json {
                    let line = json!({
                        "file": file, "outcome": word, "id": put.id, "sequence": put.sequence,
                        "previous_id": put.previous_id,
                    });
                    json_line(out, &line)?;
                } else {
                    writeln!(out, "{word} {} {file}", put.id)?;
                }
            }
            Err(error) if is_refusal(&error) => {
                complain(&format!("{}: {error}", file.display()));
                outcome = Outcome::Found;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(outcome)
}

/// Whether an error is about one file, so that the others can go on.
fn is_refusal(error: &Error) -> bool {
    match error.kind() {
        Kind::InvalidArgument => true,
        // A full disk takes no other file either, nor does a server that is asked too often.
        Kind::ResourceExhausted => {
            !matches!(error.reason(), Reason::DiskFull | Reason::RateExceeded)
        }
        Kind::FailedPrecondition => error.reason() == Reason::FileFailed,
        Kind::NotFound
        | Kind::Unavailable
        | Kind::DataLoss
        | Kind::Unauthenticated
        | Kind::PermissionDenied
        | Kind::DeadlineExceeded
        | Kind::Internal => false,
    }
}

async fn put_file(file: &Path, client: &Client) -> Result<proto::PutArticleResponse> {
    let input = open_input(file).map_err(markdown::unreadable)?;
    let article = markdown::read(input)?;
    let request = proto::PutArticleRequest {
        article: Some(message_of(article)),
    };
    message(client.articles().put_article(request).await)
}

/// Opens a file, or standard input.
fn open_input(file: &Path) -> io::Result<Box<dyn Read>> {
    Ok(if file == Path::new(STDIN) {
        Box::new(io::stdin().lock())
    } else {
        Box::new(File::open(file)?)
    })
}

/// Reads a file, or standard input.
fn read_input(file: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_input(file)
        .and_then(|mut input| input.read_to_end(&mut bytes))
        .map_err(|error| {
            let message = format!("cannot read {}", file.display());
            Error::new(Reason::FileFailed, message).with_source(error)
        })?;
    Ok(bytes)
}

#[derive(Debug, clap::Args)]
pub(super) struct GetArgs {
    /// The id, a prefix of 8 or more digits of it, or the article's URL
    #[arg(value_name = "ID|URL")]
    name: String,
}

pub(super) async fn get(
    args: GetArgs,
    client: &Client,
    json: bool,
    out: &mut (dyn Write + Send),
) -> CommandResult {
    let name = if args.name.contains(':') {
        proto::get_article_request::Name::Url(args.name)
    } else {
        proto::get_article_request::Name::Id(args.name)
    };
    let view = proto::ArticleView::Full.into();
    let request = proto::GetArticleRequest {
        name: Some(name),
        view,
    };
    let answer = message(client.articles().get_article(request).await)?;
    let article = answer.article.unwrap_or_default();
    if json {
        json_line(out, &article_json(&article, true))?;
    } else {
        out.write_all(article_of(article)?.render().as_bytes())?;
    }
    Ok(Outcome::Done)
}

#[derive(Debug, clap::Args)]
pub(super) struct MissingArgs {
    /// A file with one id a line
    #[arg(value_name = "FILE", default_value = STDIN)]
    file: PathBuf,
}

/// Prints the ids that are not stored; deleted ones are named on stderr. Finds nothing wrong if
/// every id is stored or deleted.
pub(super) async fn missing(
    args: MissingArgs,
    client: &Client,
    json: bool,
    out: &mut (dyn Write + Send),
) -> CommandResult {
    let input = read_input(&args.file)?;
    let lines = input
        .lines()
        .collect::<io::Result<Vec<String>>>()
        .map_err(|error| {
            let message = format!("{} is no text", args.file.display());
            Error::new(Reason::FileFailed, message).with_source(error)
        })?;
    let ids: Vec<String> = lines
        .iter()
        .map(|line| line.trim().to_owned())
        .filter(|line| !line.is_empty())
        .collect();
    let mut outcome = Outcome::Done;
    for some in ids.chunks(Limits::default().find_missing_ids_max) {
        let request = proto::FindMissingArticlesRequest { ids: some.to_vec() };
        let answer = message(client.articles().find_missing_articles(request).await)?;
        for id in &answer.missing_ids {
            outcome = Outcome::Found;
            if json {
                json_line(out, &json!({"id": id, "state": "missing"}))?;
            } else {
                writeln!(out, "{id}")?;
            }
        }
        for id in &answer.deleted_ids {
            if json {
                json_line(out, &json!({"id": id, "state": "deleted"}))?;
            } else {
                complain(&format!("{id} was deleted"));
            }
        }
    }
    Ok(outcome)
}

#[derive(Debug, clap::Args)]
pub(super) struct DeleteArgs {
    /// The full id
    id: String,
    /// Why, in one line; kept in the tombstone
    #[arg(long)]
    reason: String,
}

pub(super) async fn delete(
    args: DeleteArgs,
    client: &Client,
    json: bool,
    out: &mut (dyn Write + Send),
) -> CommandResult {
    let request = proto::DeleteArticleRequest {
        id: args.id,
        reason: args.reason,
    };
    let delete = message(client.articles().delete_article(request).await)?;
    let word = match delete.outcome() {
        proto::DeleteOutcome::AlreadyDeleted => "already deleted",
        proto::DeleteOutcome::Deleted | proto::DeleteOutcome::Unspecified => "deleted",
    };
    let time = time_of(delete.deleted_at).map(|time| time.to_string());
    if json {
        let line = json!({
            "id": delete.id, "outcome": word, "sequence": delete.sequence,
            "deleted_at": time, "reason": delete.reason,
        });
        json_line(out, &line)?;
    } else {
        let time = time.unwrap_or_default();
        writeln!(out, "{word} {} at {time}: {}", delete.id, delete.reason)?;
    }
    Ok(Outcome::Done)
}

pub(super) async fn stats(
    client: &Client,
    json: bool,
    out: &mut (dyn Write + Send),
) -> CommandResult {
    let mut admin = client.admin();
    let info = message(admin.get_server_info(proto::GetServerInfoRequest {}).await)?;
    let stats = message(admin.get_stats(proto::GetStatsRequest {}).await)?;
    let counts = [
        ("article_count", stats.article_count),
        ("deleted_count", stats.deleted_count),
        ("last_sequence", stats.last_sequence),
        ("text_bytes", stats.text_bytes),
        ("stored_bytes", stats.stored_bytes),
        ("disk_bytes", stats.disk_bytes),
        ("open_ms", stats.open_ms),
        ("queued_count", stats.queued_count),
        ("created_count", stats.created_count),
        ("revision_count", stats.revision_count),
        ("duplicate_count", stats.duplicate_count),
        ("put_deleted_count", stats.put_deleted_count),
        ("deletion_count", stats.deletion_count),
        ("commit_count", stats.commit_count),
        ("commit_us", stats.commit_us),
        ("read_count", stats.read_count),
        ("damaged_count", stats.damaged_count),
    ];
    let mut lines = vec![
        ("version", json!(info.version)),
        ("format", json!(info.format)),
        ("engine", json!(info.engine)),
    ];
    lines.extend(counts.map(|(name, count)| (name, json!(count.unwrap_or_default()))));
    if let Some(scrub) = stats.last_scrub {
        let finished_at = time_of(scrub.finished_at).map(|time| time.to_string());
        lines.extend([
            ("scrub_finished_at", json!(finished_at)),
            ("scrub_duration_ms", json!(scrub.duration_ms())),
            ("scrub_record_count", json!(scrub.record_count())),
            ("scrub_finding_count", json!(scrub.finding_count())),
        ]);
    }
    if let Some(sequence) = stats.backup_sequence {
        lines.extend([
            ("backup_sequence", json!(sequence)),
            ("backup_behind_ms", json!(stats.backup_behind_ms())),
            ("backup_error", json!(stats.backup_error)),
        ]);
    }
    if let Some(sequence) = stats.search_sequence {
        lines.extend([
            ("search_sequence", json!(sequence)),
            ("search_disk_bytes", json!(stats.search_disk_bytes())),
            ("search_error", json!(stats.search_error)),
        ]);
    }
    if let Some(requests) = stats.storage_requests {
        lines.extend([
            ("storage_put_count", json!(requests.put_count())),
            ("storage_get_count", json!(requests.get_count())),
            ("storage_list_count", json!(requests.list_count())),
            ("storage_delete_count", json!(requests.delete_count())),
            (
                "puts_per_1000_articles",
                json!(requests.puts_per_1000_articles),
            ),
            (
                "gets_per_1000_articles",
                json!(requests.gets_per_1000_articles),
            ),
        ]);
    }
    if json {
        let object = lines
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value));
        json_line(out, &object.collect::<serde_json::Map<_, _>>())?;
        return Ok(Outcome::Done);
    }
    for (name, value) in lines {
        let value = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        writeln!(out, "{name:22} {value}")?;
    }
    Ok(Outcome::Done)
}
