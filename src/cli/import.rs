//! `pressmark import`: files and folders of many formats, streamed to the archive.
//!
//! One thread reads records, all cores make them articles and ask which are new, one task sends those
//! in messages, and the results are matched to their records in order. What is between them is
//! bounded in records and bytes, so memory does not grow with the number of files or their size.

mod prepare;
mod progress;
mod read;
mod send;
mod summary;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use self::prepare::{Preparing, prepare_all};
use self::progress::Progress;
use self::read::{Input, Position, Record};
use self::send::{Answer, MESSAGES_AHEAD, UNANSWERED_MAX, answer_all, send_articles};
use self::summary::Summary;
use super::output::{article_json, article_of, cannot_write, json_line, message_of};
use super::{CommandResult, Failure, Outcome, complain};
use crate::client::Client;
use crate::error::Result;
use crate::format::{FieldName, Format, Mapping, Profile};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Files, patterns with *, ** and ?, and folders in which all files of known endings are read:
    /// .md, .markdown, .txt; .jsonl, .ndjson; .json; .csv; .tsv, .tab; .parquet; .rss, .atom, .xml;
    /// .html, .htm, .xhtml; .warc; also with .gz or .zst behind; `-` is standard input
    #[arg(value_name = "PATH", default_value = "-")]
    paths: Vec<PathBuf>,
    /// What the files are: markdown, jsonl, json, json-feed, csv, tsv, parquet, rss (Atom too), html
    /// or warc [default: as their names or first bytes say]
    #[arg(long)]
    format: Option<Format>,
    /// The corpus that the files are of, if its field names mean something else than elsewhere:
    /// news-please, trafilatura, newsapi, nela-gt, realnews, all-the-news, `cc_news`, webhose or
    /// fakenewscorpus
    #[arg(long)]
    profile: Option<Profile>,
    /// What names the fields have: FIELD=NAME, where FIELD is title, body, `published_at`, author,
    /// source or url; a dot in NAME leads into an object
    #[arg(long, value_name = "FIELD=NAME", value_delimiter = ',')]
    map: Vec<FieldName>,
    /// The source of records that have none [default: the host of their URL]
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    source: String,
    /// Refuse a record whose date cannot be read, which else is an undated article
    #[arg(long)]
    strict: bool,
    /// Write a JSON line into this file for every record that is refused: its file, line or byte,
    /// the reason and the field
    #[arg(long, value_name = "FILE")]
    rejects: Option<PathBuf>,
    /// Show the first articles as they would be stored, and store nothing
    #[arg(long, value_name = "ARTICLES", num_args = 0..=1, default_missing_value = "5")]
    dry_run: Option<usize>,
}

impl Args {
    /// Whether the command needs no archive.
    pub(super) fn is_dry(&self) -> bool {
        self.dry_run.is_some()
    }

    fn input(&self) -> Input {
        Input {
            paths: self.paths.clone(),
            format: self.format,
            position: Arc::new(Position::default()),
            stop: CancellationToken::new(),
        }
    }

    fn mapping(&self) -> Mapping {
        Mapping::new(&self.map, self.profile, self.strict).with_source(self.source.clone())
    }
}

/// Shows the first articles as they would be stored.
pub(super) async fn dry_run(
    args: &Args,
    json: bool,
    out: &mut (dyn Write + Send),
) -> CommandResult {
    let mut left = args.dry_run.unwrap_or_default();
    let mapping = args.mapping();
    // The reader is not waited for: it may wait for standard input.
    let (mut records, _) = args.input().read();
    let mut outcome = Outcome::Done;
    while left > 0
        && let Some(Record {
            origin, content, ..
        }) = records.recv().await
    {
        match content.and_then(|(parser, content)| parser.parse(&content, &mapping)) {
            Ok(found) => {
                left -= 1;
                if let Some(warning) = found.date.warning() {
                    complain(&format!("{origin}: {warning}"));
                }
                let message = message_of(found.article);
                if json {
                    json_line(out, &article_json(&message, true))?;
                } else {
                    let id = message.id.clone();
                    let text = article_of(message)?.render();
                    writeln!(out, "{origin} would be {id}:\n{text}\n")?;
                }
            }
            Err(error) => {
                outcome = Outcome::Found;
                complain(&format!("{origin}: {error}"));
            }
        }
    }
    Ok(outcome)
}

pub(super) async fn run(
    args: Args,
    client: &Client,
    json: bool,
    out: &mut (dyn Write + Send),
) -> CommandResult {
    let mut rejects = args.rejects.as_deref().map(Rejects::create).transpose()?;
    let input = args.input();
    let stop = input.stop.clone();
    input.measure();
    let mut progress = Progress::new(Arc::clone(&input.position));
    let (records, reader) = input.read();
    let asks = Arc::new(AtomicBool::new(true));
    let preparing = Preparing {
        mapping: Arc::new(args.mapping()),
        articles: client.articles(),
        asks: Arc::clone(&asks),
    };
    let prepared = prepare_all(records, preparing, stop.clone());
    let (sent, unanswered) = mpsc::channel(UNANSWERED_MAX);
    let (messages, stream) = mpsc::channel(MESSAGES_AHEAD);
    let sender = tokio::spawn(send_articles(prepared, sent, messages));

    let mut summary = Summary::default();
    let tell = |origin, answer| {
        progress.step();
        match answer {
            Answer::Stored(outcome, date) => {
                summary.count(outcome);
                if let Some(warning) = summary.count_date(&date) {
                    progress.tell(&format!("{origin}: {warning}"));
                }
            }
            Answer::Refused(refusal) => {
                summary.refused += 1;
                progress.tell(&format!("{origin}: {}", refusal.message));
                let line = refusal.json(&origin);
                if let Some(rejects) = &mut rejects {
                    rejects.write(&line)?;
                }
                if json {
                    json_line(out, &line)?;
                }
            }
        }
        Ok(())
    };
    let stream = ReceiverStream::new(stream);
    let answering = answer_all(client, &asks, stream, unanswered, tell);
    let result = unless_interrupted(&stop, answering).await;
    progress.finish();
    // The sender ends when the stream is gone, and the reader when the sender is, unless it waits
    // for standard input.
    sender.abort();
    let _ = sender.await;
    if result.is_ok() {
        let _ = reader.await;
    }
    let rejects = rejects.map_or(Ok(()), Rejects::finish);
    summary.print(json, out)?;
    if matches!(result, Err(Failure::Error(_) | Failure::Interrupted)) {
        complain(
            "the import broke off; the articles counted above are safe, run it again for the rest",
        );
    }
    result?;
    rejects?;
    Ok(if summary.refused == 0 {
        Outcome::Done
    } else {
        Outcome::Found
    })
}

/// Runs an import to its end. Interrupted once, it reads no more and waits for the answers of what was
/// sent; interrupted again, it does not wait.
async fn unless_interrupted(
    stop: &CancellationToken,
    answering: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    tokio::pin!(answering);
    loop {
        tokio::select! {
            result = &mut answering => {
                result?;
                break;
            }
            signal = tokio::signal::ctrl_c() => {
                if signal.is_err() || stop.is_cancelled() {
                    return Err(Failure::Interrupted);
                }
                stop.cancel();
            }
        }
    }
    if stop.is_cancelled() {
        return Err(Failure::Interrupted);
    }
    Ok(())
}

/// The file of what was refused.
struct Rejects {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Rejects {
    fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(|error| cannot_write(path, error))?;
        Ok(Self {
            path: path.to_owned(),
            file: BufWriter::new(file),
        })
    }

    fn write(&mut self, line: &serde_json::Value) -> Result<()> {
        json_line(&mut self.file, line).map_err(|error| cannot_write(&self.path, error))
    }

    fn finish(mut self) -> Result<()> {
        let flushed = self.file.flush();
        flushed.map_err(|error| cannot_write(&self.path, error))
    }
}
