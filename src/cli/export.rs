//! `pressmark export`.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::output::{article_of, cannot_write, json_line};
use super::select::{SelectorArgs, scan_selected};
use super::{CommandResult, Failure, Outcome};
use crate::client::Client;
use crate::format::markdown;
use crate::rpc::proto;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The folder; articles go into a folder per day below it, under their ids
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    #[command(flatten)]
    selector: SelectorArgs,
}

pub(super) async fn run(
    args: Args,
    client: &Client,
    json: bool,
    out: &mut (dyn Write + Send),
) -> CommandResult {
    let (mut written, mut present) = (0_u64, 0_u64);
    let order = proto::ArticleOrder::ArrivalAsc.into();
    let view = proto::ArticleView::Full;
    scan_selected(&args.selector, order, view, client, |articles| {
        for article in articles {
            if write_article(&args.folder, article)? {
                written += 1;
            } else {
                present += 1;
            }
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
fn write_article(folder: &Path, message: proto::Article) -> Result<bool, Failure> {
    let article = article_of(message)?;
    let path = folder.join(markdown::path(&article.id(), article.published_at()));
    let text = article.render();
    let failed = |error: io::Error| Failure::Error(cannot_write(&path, error));
    if fs::read(&path).is_ok_and(|found| found == text.as_bytes()) {
        return Ok(false);
    }
    // Under its own name a file is always whole, even if the export is interrupted.
    let unfinished = path.with_extension("unfinished");
    if let Some(day) = path.parent() {
        fs::create_dir_all(day).map_err(failed)?;
    }
    fs::write(&unfinished, text).map_err(failed)?;
    fs::rename(&unfinished, &path).map_err(failed)?;
    Ok(true)
}
