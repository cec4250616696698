//! `pressmark export`: a tree of Markdown, or one file in another format.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::output::{NewFile, STANDARD, article_json, article_of, cannot_write, json_line};
use super::select::{SelectorArgs, scan_selected};
use super::{CommandResult, Failure, Outcome};
use crate::article::Article;
use crate::client::Client;
use crate::error::{Error, Reason, Result};
use crate::format::write::{Compression, Writer};
use crate::format::{Format, markdown};
use crate::rpc::proto;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A folder, in which Markdown files go into a folder per day, under their ids; or a file that is
    /// not there yet and whose ending names another format: .jsonl, .csv, .tsv, .parquet, .warc,
    /// .rss, also with .gz or .zst behind; `-` is standard output
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// The format: markdown, jsonl, csv, tsv, parquet, warc or rss [default: as the name says]. All but
    /// rss are imported again to the same ids
    #[arg(long)]
    format: Option<Format>,
    /// The compression: none, gzip or zstd [default: as the name says]
    #[arg(long)]
    compress: Option<Compression>,
    #[command(flatten)]
    selector: SelectorArgs,
}

pub(super) async fn run(
    args: Args,
    client: &Client,
    json: bool,
    out: &mut (dyn Write + Send),
) -> CommandResult {
    let is_stdout = args.path == Path::new(STANDARD);
    let name = args.path.to_string_lossy();
    let named = if is_stdout {
        None
    } else {
        Format::of_name(&name)
    };
    let compression = args.compress.unwrap_or(Compression::of_name(&name).1);
    match args.format.or(named) {
        None if is_stdout => {
            let what = "name the format of standard output with --format";
            Err(Error::field(Reason::ArgumentInvalid, "format", what).into())
        }
        None | Some(Format::Markdown) => tree(&args, compression, client, json, out).await,
        Some(format) if is_stdout => {
            let writer = Writer::new(format, compression, Box::new(&mut *out))?;
            write_all(&args.selector, writer, client, Failure::from).await?;
            Ok(Outcome::Done)
        }
        Some(format) => {
            let (new, file) = NewFile::create(&args.path)?;
            let failed = |error| cannot_write(&new.unfinished, error);
            let output = Box::new(BufWriter::new(file.try_clone().map_err(failed)?));
            let writer = Writer::new(format, compression, output);
            if writer.is_err() {
                // Nothing is in it, and why there will not be is what is told.
                let _ = fs::remove_file(&new.unfinished);
            }
            let writer = writer?;
            let cannot = |error| failed(error).into();
            let count = write_all(&args.selector, writer, client, cannot).await?;
            file.sync_all().map_err(failed)?;
            let bytes = file.metadata().map_err(failed)?.len();
            new.finish()?;
            if json {
                json_line(out, &json!({"written": count, "bytes": bytes}))?;
            } else {
                writeln!(out, "{count} written, {bytes} bytes")?;
            }
            Ok(Outcome::Done)
        }
    }
}

/// Streams the articles of a selector, each proved to have its id.
async fn each(
    selector: &SelectorArgs,
    client: &Client,
    mut take: impl FnMut(Article, &proto::Article) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let order = proto::ArticleOrder::ArrivalAsc.into();
    let view = proto::ArticleView::Full;
    scan_selected(selector, order, view, client, |articles| {
        for message in articles {
            let article = article_of(message.clone())?;
            take(article, &message)?;
        }
        Ok(())
    })
    .await
}

/// Writes one file. Returns how many articles are in it.
async fn write_all(
    selector: &SelectorArgs,
    mut writer: Writer<'_>,
    client: &Client,
    failed: impl Fn(io::Error) -> Failure,
) -> Result<u64, Failure> {
    let mut count = 0;
    each(selector, client, |article, message| {
        if let Value::Object(fields) = article_json(message, true) {
            writer.write(&article, &fields).map_err(&failed)?;
        }
        count += 1;
        Ok(())
    })
    .await?;
    writer.finish().map_err(failed)?;
    Ok(count)
}

/// Writes a tree of files.
async fn tree(
    args: &Args,
    compression: Compression,
    client: &Client,
    json: bool,
    out: &mut (dyn Write + Send),
) -> CommandResult {
    let (mut written, mut present) = (0_u64, 0_u64);
    each(&args.selector, client, |article, _| {
        if write_article(&args.path, &article, compression)? {
            written += 1;
        } else {
            present += 1;
        }
        Ok(())
    })
    .await?;
    if json {
        json_line(out, &json!({"written": written, "already_there": present}))?;
    } else {
        writeln!(out, "{written} written, {present} already there")?;
    }
    Ok(Outcome::Done)
}

/// Writes an article, unless a file with its text is there. Returns whether it wrote.
fn write_article(folder: &Path, article: &Article, compression: Compression) -> Result<bool> {
    let name = markdown::path(&article.id(), article.published_at());
    let path = folder.join(name + &compression.ending());
    let failed = |error: io::Error| cannot_write(&path, error);
    let bytes = compression
        .compressed(article.render().as_bytes())
        .map_err(failed)?;
    if fs::read(&path).is_ok_and(|found| found == bytes) {
        return Ok(false);
    }
    // Under its own name a file is always whole, even if the export is interrupted.
    let unfinished = path.with_extension("unfinished");
    if let Some(day) = path.parent() {
        fs::create_dir_all(day).map_err(failed)?;
    }
    fs::write(&unfinished, bytes).map_err(failed)?;
    fs::rename(&unfinished, &path).map_err(failed)?;
    Ok(true)
}
