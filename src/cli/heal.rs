//! `pressmark heal`: stores articles again, from backups, whose records were set aside.

use std::collections::HashSet;
use std::io::Write;
use std::path::PathBuf;

use serde_json::json;
use tokio::sync::mpsc;

use super::output::{json_line, message_of};
use super::{CommandResult, Outcome, complain};
use crate::archive::Limits;
use crate::archive::backup::{Chain, Entry};
use crate::article::{Article, ContentHash};
use crate::client::{Client, message};
use crate::error::{Error, Reason, Result};
use crate::rpc::proto;

/// Frames read ahead of the server.
const FRAMES_AHEAD: usize = 2;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Backup files in order, or folders that `serve --backup-to` wrote
    #[arg(required = true, value_name = "BACKUP")]
    backups: Vec<PathBuf>,
}

pub(super) async fn run(
    args: Args,
    client: &Client,
    json: bool,
    out: &mut (dyn Write + Send),
) -> CommandResult {
    let (frames, mut read) = mpsc::channel(FRAMES_AHEAD);
    let reading = tokio::task::spawn_blocking(move || {
        let chain = Chain::read(&args.backups)?;
        chain.for_each(|entries| frames.blocking_send(entries).is_ok())
    });
    let mut heal = Heal {
        client,
        articles: Vec::new(),
        healed_count: 0,
        refused_count: 0,
    };
    while let Some(entries) = read.recv().await {
        heal.take(entries).await?;
    }
    heal.ask().await?;
    reading.await.map_err(|panic| {
        Error::new(Reason::Internal, "reading backups panicked").with_source(panic)
    })??;
    let Heal {
        healed_count,
        refused_count,
        ..
    } = heal;
    if json {
        json_line(
            out,
            &json!({"healed": healed_count, "refused": refused_count}),
        )?;
    } else {
        writeln!(out, "{healed_count} healed, {refused_count} refused")?;
    }
    Ok(match refused_count {
        0 => Outcome::Done,
        _ => Outcome::Found,
    })
}

/// Articles of a backup on their way to the archive, as many as one frame has.
struct Heal<'a> {
    client: &'a Client,
    articles: Vec<(ContentHash, Article)>,
    healed_count: u64,
    refused_count: u64,
}

impl Heal<'_> {
    async fn take(&mut self, entries: Vec<Entry>) -> Result<()> {
        for entry in entries {
            self.articles.extend(entry.into_article());
            if self.articles.len() == Limits::default().find_missing_ids_max {
                self.ask().await?;
            }
        }
        // One frame at a time, so that memory is bounded by bytes as well.
        self.ask().await
    }

    /// Asks which of the articles are set aside, and stores those again.
    async fn ask(&mut self) -> Result<()> {
        let articles = std::mem::take(&mut self.articles);
        if articles.is_empty() {
            return Ok(());
        }
        let ids = articles.iter().map(|(id, _)| id.to_string()).collect();
        let request = proto::FindMissingArticlesRequest { ids };
        let mut client = self.client.articles();
        let answer = message(client.find_missing_articles(request).await)?;
        let wanted: HashSet<&str> = answer.quarantined_ids.iter().map(String::as_str).collect();
        for (id, article) in articles {
            let id = id.to_string();
            if !wanted.contains(id.as_str()) {
                continue;
            }
            let article = Some(message_of(article));
            let put = client
                .put_article(proto::PutArticleRequest { article })
                .await;
            match message(put) {
                Ok(_) => self.healed_count += 1,
                Err(error) => {
                    complain(&format!("{id}: {error}"));
                    self.refused_count += 1;
                }
            }
        }
        Ok(())
    }
}
