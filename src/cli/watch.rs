//! `pressmark watch`.

use std::io::Write;
use std::time::Duration;

use serde_json::json;

use super::output::{article_json, head_line, json_line, time_of};
use super::select::{RESUME_DELAY, RESUMES_MAX, SelectorArgs};
use super::{CommandResult, Failure, Outcome};
use crate::client::Client;
use crate::error::Kind;
use crate::rpc::{error_of, proto};

/// How often the server tells that nothing has happened, so that a connection that died is noticed.
const HEARTBEAT_SECONDS: i64 = 10;

/// How long a server may be silent.
const SILENCE_MAX: Duration = Duration::from_secs(30);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    selector: SelectorArgs,
    /// The first sequence to print; 0 for what comes next. To go on, name the last one printed plus 1
    #[arg(long, value_name = "N", default_value_t = 0)]
    from: u64,
}

/// Prints changes until it is interrupted, or until the selector's last sequence; takes up again
/// what breaks off.
pub(super) async fn run(
    args: Args,
    client: &Client,
    json: bool,
    out: &mut (dyn Write + Send),
) -> CommandResult {
    let view = if json {
        proto::ArticleView::Full
    } else {
        proto::ArticleView::Head
    };
    let mut request = proto::WatchArticlesRequest {
        selector: Some(args.selector.message()),
        from_sequence: args.from,
        view: view.into(),
        heartbeat_interval: Some(prost_types::Duration {
            seconds: HEARTBEAT_SECONDS,
            nanos: 0,
        }),
    };
    let mut breaks = 0;
    loop {
        let broke = match client.articles().watch_articles(request.clone()).await {
            Err(status) => error_of(&status),
            Ok(stream) => {
                let mut stream = stream.into_inner();
                loop {
                    let message = tokio::time::timeout(SILENCE_MAX, stream.message()).await;
                    match message {
                        Ok(Ok(None)) => return Ok(Outcome::Done),
                        Ok(Ok(Some(message))) => {
                            breaks = 0;
                            for change in &message.changes {
                                print(change, json, out)?;
                            }
                            out.flush()?;
                            request.from_sequence = message.sequence() + 1;
                        }
                        Ok(Err(status)) => break error_of(&status),
                        Err(_) => break silent(),
                    }
                }
            }
        };
        breaks += 1;
        if broke.kind() != Kind::Unavailable || breaks > RESUMES_MAX {
            return Err(broke.into());
        }
        tracing::warn!(error = %broke, "the stream broke off and is taken up behind the last change");
        tokio::time::sleep(RESUME_DELAY).await;
    }
}

fn silent() -> crate::error::Error {
    let what = format!("the server has been silent for {SILENCE_MAX:?}");
    crate::error::Error::new(crate::error::Reason::ServerUnreachable, what)
}

fn print(change: &proto::Change, json: bool, out: &mut (dyn Write + Send)) -> Result<(), Failure> {
    match &change.kind {
        Some(proto::change::Kind::Stored(article)) if json => {
            let (sequence, article) = (article.sequence, article_json(article, true));
            json_line(
                out,
                &json!({"change": "stored", "sequence": sequence, "article": article}),
            )?;
        }
        Some(proto::change::Kind::Stored(article)) => {
            write!(out, "{:>10}  + ", article.sequence)?;
            head_line(out, article)?;
        }
        Some(proto::change::Kind::Deleted(deletion)) => {
            let time = time_of(deletion.deleted_at).map(|time| time.to_string());
            if json {
                let line = json!({
                    "change": "deleted", "sequence": deletion.sequence, "id": deletion.id,
                    "article_sequence": deletion.article_sequence, "deleted_at": time,
                    "reason": deletion.reason,
                });
                json_line(out, &line)?;
            } else {
                let (sequence, id) = (deletion.sequence, &deletion.id);
                writeln!(out, "{sequence:>10}  - {id}  {}", deletion.reason)?;
            }
        }
        None => {}
    }
    Ok(())
}
