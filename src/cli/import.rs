//! `pressmark import`: files and folders of many formats, streamed to the archive.
//!
//! One thread reads and checks records, one task sends them in messages, and the results are matched
//! to their records in order. The channels between them are bounded, so memory does not grow with
//! the number of files or their size.

mod read;
mod summary;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use self::read::{Origin, Parsed, read_all};
use self::summary::{Refusal, Summary};
use super::output::{article_json, article_of, cannot_write, json_line};
use super::{CommandResult, Failure, Outcome, complain};
use crate::client::{Client, message};
use crate::error::{Error, Kind, Reason, Result};
use crate::format::{DateNote, FieldName, Format, Mapping, Profile};
use crate::rpc::{ImportArticlesRequest, error_of, proto};

/// Articles and bytes in one message.
const MESSAGE_ARTICLES_MAX: usize = 256;
const MESSAGE_BYTES_MAX: usize = 512 * 1024;

/// Articles read ahead of the sender.
const ARTICLES_AHEAD: usize = 64;

/// Articles sent and not yet answered whose origins are kept.
const UNANSWERED_MAX: usize = 4096;

/// Messages ready ahead of the network.
const MESSAGES_AHEAD: usize = 2;

const EXAMPLES: &str = "\
Examples:
  pressmark import articles/                       a tree of files, each as its name says
  pressmark import 2019.jsonl.gz 2020.json.zst     compressed files
  zcat dump.gz | pressmark import --format jsonl   standard input
  pressmark import --dry-run --profile newsapi a.json
  pressmark import --map title=kop,body=tekst --rejects refused.jsonl a.jsonl";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Files, and folders in which all files of known endings are read: *.md, *.markdown, *.txt,
    /// *.jsonl, *.ndjson and *.json, also with .gz or .zst behind; `-` is standard input
    #[arg(value_name = "PATH", default_value = "-")]
    paths: Vec<PathBuf>,
    /// What the files are: markdown, jsonl or json [default: as their names or first bytes say]
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

    /// Reads everything on a thread of its own, until nobody takes it.
    fn read(&self, ahead: usize) -> (mpsc::Receiver<Parsed>, tokio::task::JoinHandle<()>) {
        let (parsed, read) = mpsc::channel(ahead);
        let mapping = Mapping::new(&self.map, self.profile, self.strict);
        let (paths, format) = (self.paths.clone(), self.format);
        let reader =
            tokio::task::spawn_blocking(move || read_all(&paths, format, &mapping, &parsed));
        (read, reader)
    }
}

/// Shows the first articles as they would be stored.
pub(super) async fn dry_run(
    args: &Args,
    json: bool,
    out: &mut (dyn Write + Send),
) -> CommandResult {
    let mut left = args.dry_run.unwrap_or_default();
    // The reader is not waited for: it may wait for standard input.
    let (mut read, _) = args.read(1);
    let mut outcome = Outcome::Done;
    while left > 0
        && let Some(Parsed { origin, article }) = read.recv().await
    {
        match article {
            Ok((message, date)) => {
                left -= 1;
                if let Some(warning) = date.warning() {
                    complain(&format!("{origin}: {warning}"));
                }
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
    let (read, reader) = args.read(ARTICLES_AHEAD);
    let (sent, unanswered) = mpsc::channel(UNANSWERED_MAX);
    let (messages, stream) = mpsc::channel(MESSAGES_AHEAD);
    let sender = tokio::spawn(send_articles(read, sent, messages));

    let mut progress = Progress::new();
    let mut summary = Summary::default();
    let result = answer_all(
        client,
        ReceiverStream::new(stream),
        unanswered,
        |origin, answer| {
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
        },
    )
    .await;
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
    if let Err(Failure::Error(error)) = &result {
        complain(
            "the import broke off; the articles counted above are safe, run it again for the rest",
        );
        return Err(Failure::Error(error.clone()));
    }
    result?;
    rejects?;
    Ok(if summary.refused == 0 {
        Outcome::Done
    } else {
        Outcome::Found
    })
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

/// A record that was sent, or refused before: the results come in this order.
type Sent = (Origin, Result<DateNote>);

/// What became of a record.
enum Answer {
    Stored(proto::PutOutcome, DateNote),
    Refused(Refusal),
}

/// Puts articles into messages and remembers which record is which.
async fn send_articles(
    mut items: mpsc::Receiver<Parsed>,
    sent: mpsc::Sender<Sent>,
    messages: mpsc::Sender<ImportArticlesRequest>,
) {
    let mut message = ImportArticlesRequest::default();
    let mut bytes = 0;
    let mut waiting = VecDeque::new();
    loop {
        // A message that is not full goes off as soon as the reader has nothing more ready.
        let item = match items.try_recv() {
            Ok(item) => Some(item),
            Err(_) if message.articles.is_empty() => match items.recv().await {
                Some(item) => Some(item),
                None => return,
            },
            Err(_) => None,
        };
        let is_idle = item.is_none();
        if let Some(Parsed { origin, article }) = item {
            let date = article.map(|(article, date)| {
                let article = article.encode_to_vec();
                bytes += article.len();
                message.articles.push(article.into());
                date
            });
            waiting.push_back((origin, date));
        }
        let is_full = message.articles.len() >= MESSAGE_ARTICLES_MAX || bytes >= MESSAGE_BYTES_MAX;
        if is_full || is_idle || message.articles.is_empty() {
            for record in waiting.drain(..) {
                if sent.send(record).await.is_err() {
                    return;
                }
            }
            if !message.articles.is_empty()
                && messages.send(std::mem::take(&mut message)).await.is_err()
            {
                return;
            }
            bytes = 0;
        }
    }
}

/// Matches results to records, in the order in which they were read.
async fn answer_all(
    client: &Client,
    stream: ReceiverStream<ImportArticlesRequest>,
    mut sent: mpsc::Receiver<Sent>,
    mut tell: impl FnMut(Origin, Answer) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let answers = client.articles().import_articles(stream).await;
    let mut answers = message(answers)?;
    let mut results = VecDeque::new();
    while let Some((origin, date)) = sent.recv().await {
        let date = match date {
            Ok(date) => date,
            Err(error) => {
                tell(origin, Answer::Refused(Refusal::of(&error)))?;
                continue;
            }
        };
        while results.is_empty() {
            let answer = answers
                .message()
                .await
                .map_err(|status| error_of(&status))?;
            let answer = answer.ok_or_else(|| {
                Error::new(
                    Reason::ServerUnreachable,
                    "the server ended the import too early",
                )
            })?;
            results.extend(answer.results);
        }
        let result: proto::ImportResult = results.pop_front().unwrap_or_default();
        // An article that may be sent again was not refused: the archive takes nothing now.
        if let Some(error) = &result.error
            && let Some(reason) = Reason::parse(&error.reason)
            && (reason.kind() == Kind::Unavailable || reason == Reason::DiskFull)
        {
            return Err(Error::new(reason, error.message.as_str()).into());
        }
        let outcome = result.outcome();
        let answer = match result.error {
            None => Answer::Stored(outcome, date),
            Some(error) => Answer::Refused(Refusal::answered(error)),
        };
        tell(origin, answer)?;
    }
    Ok(())
}

/// A bar on a terminal, nothing elsewhere.
struct Progress {
    bar: ProgressBar,
}

impl Progress {
    fn new() -> Self {
        let is_terminal = io::stderr().is_terminal();
        let bar = if is_terminal {
            ProgressBar::new_spinner()
        } else {
            ProgressBar::hidden()
        };
        if is_terminal {
            bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        let template = "{spinner} {human_pos} articles  {per_sec}  {elapsed}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self { bar }
    }

    fn step(&mut self) {
        self.bar.inc(1);
    }

    fn tell(&mut self, line: &str) {
        self.bar.suspend(|| complain(line));
    }

    fn finish(&mut self) {
        self.bar.finish_and_clear();
    }
}
