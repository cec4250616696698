//! `pressmark import`: files and folders of the canonical layout, streamed to the archive.
//!
//! One thread reads and checks files, one task sends them in messages, and the results are matched
//! to their files in order. The channels between them are bounded, so memory does not grow with the
//! number of files.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use prost::Message;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use walkdir::WalkDir;

use super::output::{json_line, message_of};
use super::{CommandResult, Failure, Outcome, complain};
use crate::client::{Client, message};
use crate::error::{Error, Kind, Reason, Result};
use crate::format::markdown;
use crate::rpc::{ImportArticlesRequest, error_of, proto};

/// Articles and bytes in one message.
const MESSAGE_ARTICLES_MAX: usize = 256;
const MESSAGE_BYTES_MAX: usize = 512 * 1024;

/// Files read ahead of the sender.
const FILES_AHEAD: usize = 64;

/// Articles sent and not yet answered whose file names are kept.
const UNANSWERED_MAX: usize = 4096;

/// Messages ready ahead of the network.
const MESSAGES_AHEAD: usize = 2;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Files, and folders in which all *.md, *.markdown and *.txt files are read
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
}

/// What the reader found: an article to send, or why there is none.
struct Item {
    path: PathBuf,
    article: Result<proto::Article>,
}

#[derive(Default)]
struct Summary {
    new: u64,
    duplicate: u64,
    revision: u64,
    deleted: u64,
    refused: u64,
}

impl Summary {
    fn count(&mut self, outcome: proto::PutOutcome) {
        match outcome {
            proto::PutOutcome::Created => self.new += 1,
            proto::PutOutcome::Duplicate => self.duplicate += 1,
            proto::PutOutcome::Revision => self.revision += 1,
            proto::PutOutcome::Deleted => self.deleted += 1,
            proto::PutOutcome::Unspecified => self.refused += 1,
        }
    }

    fn print(&self, json: bool, out: &mut (dyn Write + Send)) -> Result<(), Failure> {
        let Self {
            new,
            duplicate,
            revision,
            deleted,
            refused,
        } = self;
        if json {
            let line = json!({
                "new": new, "duplicate": duplicate, "revision": revision,
                "deleted": deleted, "refused": refused,
            });
            json_line(out, &line)?;
        } else {
            writeln!(
                out,
                "{new} new, {duplicate} duplicate, {revision} revision, {deleted} deleted before, \
                 {refused} refused"
            )?;
        }
        Ok(())
    }
}

pub(super) async fn run(
    args: Args,
    client: &Client,
    json: bool,
    out: &mut (dyn Write + Send),
) -> CommandResult {
    let (items, read) = mpsc::channel(FILES_AHEAD);
    let reader = tokio::task::spawn_blocking(move || read_files(&args.paths, &items));
    let (sent, unanswered) = mpsc::channel(UNANSWERED_MAX);
    let (messages, stream) = mpsc::channel(MESSAGES_AHEAD);
    let sender = tokio::spawn(send_articles(read, sent, messages));

    let mut progress = Progress::new();
    let mut summary = Summary::default();
    let result = answer_files(
        client,
        ReceiverStream::new(stream),
        unanswered,
        |path, refused| {
            progress.step();
            match refused {
                Ok(outcome) => summary.count(outcome),
                Err(why) => {
                    summary.refused += 1;
                    progress.refuse(&path, &why);
                    if json {
                        json_line(
                            out,
                            &json!({"file": path.display().to_string(), "error": why}),
                        )?;
                    }
                }
            }
            Ok(())
        },
    )
    .await;
    progress.finish();
    // The sender ends when the stream is gone, and the reader when the sender is.
    sender.abort();
    let _ = sender.await;
    let _ = reader.await;
    summary.print(json, out)?;
    if let Err(Failure::Error(error)) = &result {
        complain(
            "the import broke off; the articles counted above are safe, run it again for the rest",
        );
        return Err(Failure::Error(error.clone()));
    }
    result?;
    Ok(if summary.refused == 0 {
        Outcome::Done
    } else {
        Outcome::Found
    })
}

/// Reads files in the order of their names and checks them, until nobody takes them.
fn read_files(paths: &[PathBuf], items: &mpsc::Sender<Item>) {
    for path in paths {
        for entry in WalkDir::new(path)
            .sort_by_file_name()
            .into_iter()
            .filter_entry(is_visible)
        {
            let item = match entry {
                Ok(entry) if entry.depth() > 0 && !is_article(entry.path()) => continue,
                // A link to a folder is not followed, so that a tree cannot be endless.
                Ok(entry) if entry.path().is_dir() => continue,
                Ok(entry) => {
                    let path = entry.into_path();
                    Item {
                        article: read_file(&path),
                        path,
                    }
                }
                Err(error) => {
                    let path = error.path().unwrap_or(path).to_owned();
                    let what = Error::new(Reason::FileFailed, "cannot be read").with_source(error);
                    Item {
                        path,
                        article: Err(what),
                    }
                }
            };
            if items.blocking_send(item).is_err() {
                return;
            }
        }
    }
}

/// Hidden files and folders are skipped, unless they were named.
fn is_visible(entry: &walkdir::DirEntry) -> bool {
    entry.depth() == 0 || !entry.file_name().to_string_lossy().starts_with('.')
}

/// In a folder, only files with a known ending are articles; folders are looked into.
fn is_article(path: &Path) -> bool {
    path.is_dir()
        || path.extension().is_some_and(|ending| {
            markdown::ENDINGS
                .iter()
                .any(|known| ending.eq_ignore_ascii_case(known))
        })
}

fn read_file(path: &Path) -> Result<proto::Article> {
    let file = File::open(path).map_err(markdown::unreadable)?;
    markdown::read(file).map(message_of)
}

/// A file that was sent, or refused before: the results come in this order.
type Sent = (PathBuf, Option<Error>);

/// Puts articles into messages and remembers which file is which.
async fn send_articles(
    mut items: mpsc::Receiver<Item>,
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
        if let Some(Item { path, article }) = item {
            match article {
                Ok(article) => {
                    let article = article.encode_to_vec();
                    bytes += article.len();
                    message.articles.push(article.into());
                    waiting.push_back((path, None));
                }
                Err(error) => waiting.push_back((path, Some(error))),
            }
        }
        let is_full = message.articles.len() >= MESSAGE_ARTICLES_MAX || bytes >= MESSAGE_BYTES_MAX;
        if is_full || is_idle || message.articles.is_empty() {
            for file in waiting.drain(..) {
                if sent.send(file).await.is_err() {
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

/// Matches results to files, in the order in which they were read.
async fn answer_files(
    client: &Client,
    stream: ReceiverStream<ImportArticlesRequest>,
    mut sent: mpsc::Receiver<Sent>,
    mut tell: impl FnMut(PathBuf, Result<proto::PutOutcome, String>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let answers = client.articles().import_articles(stream).await;
    let mut answers = message(answers)?;
    let mut results = VecDeque::new();
    while let Some((path, refused)) = sent.recv().await {
        if let Some(error) = refused {
            tell(path, Err(error.to_string()))?;
            continue;
        }
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
        tell(
            path,
            result.error.map_or(Ok(outcome), |error| Err(error.message)),
        )?;
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

    fn refuse(&mut self, path: &Path, why: &str) {
        self.bar
            .suspend(|| complain(&format!("{}: {why}", path.display())));
    }

    fn finish(&mut self) {
        self.bar.finish_and_clear();
    }
}
