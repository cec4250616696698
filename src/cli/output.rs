//! How results are printed: lines for people, and JSON objects with the field names of the protos.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::article::Article;
use crate::error::{Error, Reason, Result};
use crate::rpc::json::source_json;
pub(super) use crate::rpc::json::{article_json, time_of};
use crate::rpc::{self, proto};

/// Whether what goes to a stream may have colours.
pub(super) fn is_coloured(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// The error of a file that cannot be written.
pub(super) fn cannot_write(file: &Path, error: io::Error) -> Error {
    let what = format!("cannot write {}", file.display());
    Error::new(Reason::FileFailed, what).with_source(error)
}

/// The name of standard output, and of standard input.
pub(super) const STANDARD: &str = "-";

/// A new file that has its name only when it is whole.
pub(super) struct NewFile {
    path: PathBuf,
    pub(super) unfinished: PathBuf,
}

impl NewFile {
    /// Begins a file that must not be there yet.
    pub(super) fn create(path: &Path) -> Result<(Self, File)> {
        if path.exists() {
            let what = format!(
                "{} is there already, and is not overwritten",
                path.display()
            );
            return Err(Error::new(Reason::FileFailed, what));
        }
        let mut unfinished = path.as_os_str().to_owned();
        unfinished.push(".unfinished");
        let unfinished = PathBuf::from(unfinished);
        let file = File::create(&unfinished).map_err(|error| cannot_write(&unfinished, error))?;
        let path = path.to_owned();
        Ok((Self { path, unfinished }, file))
    }

    /// Gives the file its name, for good. What was written has to be synced.
    pub(super) fn finish(self) -> Result<()> {
        let folder = self.path.parent().filter(|folder| *folder != Path::new(""));
        fs::rename(&self.unfinished, &self.path)
            .and_then(|()| File::open(folder.unwrap_or(Path::new(".")))?.sync_all())
            .map_err(|error| cannot_write(&self.path, error))
    }
}

/// Prints an object as one line.
pub(super) fn json_line(out: &mut (dyn Write + Send), value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    writeln!(out)
}

/// A date for people: to the second, and of fixed width.
pub(super) fn date_text(time: Option<prost_types::Timestamp>) -> String {
    const WIDTH: usize = "YYYY-MM-DDTHH:MM:SS".len();
    let text = time_of(time).map_or_else(|| "undated".to_owned(), |time| time.to_string());
    let text: String = text.chars().take(WIDTH).collect();
    format!("{text:WIDTH$}")
}

/// Prints an article as one line: id, date, source and title.
pub(super) fn head_line(out: &mut (dyn Write + Send), article: &proto::Article) -> io::Result<()> {
    let date = date_text(article.published_at);
    writeln!(
        out,
        "{}  {date}  {}  {}",
        article.id, article.source, article.title
    )
}

/// A source as one line or JSON.
pub(super) fn source_line(
    out: &mut (dyn Write + Send),
    source: &proto::Source,
    as_json: bool,
) -> io::Result<()> {
    if as_json {
        return json_line(out, &source_json(source));
    }
    let (first, last) = (
        date_text(source.first_published_at),
        date_text(source.last_published_at),
    );
    writeln!(
        out,
        "{:>10}  {first}  {last}  {}",
        source.article_count, source.name
    )
}

/// The word for an outcome.
pub(super) fn outcome_text(outcome: proto::PutOutcome) -> &'static str {
    match outcome {
        proto::PutOutcome::Unspecified => "unknown",
        proto::PutOutcome::Created => "created",
        proto::PutOutcome::Duplicate => "duplicate",
        proto::PutOutcome::Revision => "revision",
        proto::PutOutcome::Deleted => "deleted",
    }
}

/// Builds the article of a message again and checks that it has the id that the server named.
pub(super) fn article_of(message: proto::Article) -> Result<Article> {
    let id = message.id.clone();
    let (article, claimed) = rpc::article_of(message)?;
    let found = article.id();
    if claimed == Some(found) {
        return Ok(article);
    }
    let message = format!("article {id} arrived with a text whose hash is {found}");
    Err(Error::new(Reason::RecordDamaged, message).with_resource(id))
}

/// An article as the message that stores it, with the id that the server has to find.
pub(super) fn message_of(article: Article) -> proto::Article {
    proto::Article {
        id: article.id().to_string(),
        ..rpc::fields_message(article)
    }
}
