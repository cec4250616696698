//! `pressmark search` and `reindex`.

use std::io::{self, Write};

use clap::ValueEnum;
use serde_json::json;

use super::output::{date_text, is_coloured, json_line};
use super::select::{PAGE_SIZE, SelectorArgs};
use super::{CommandResult, Outcome};
use crate::client::{Client, message};
use crate::error::{Reason, Result};
use crate::rpc::json::hit_json;
use crate::rpc::proto;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What to look for: words that must all be there, "phrases", -words that must not be there, OR,
    /// and title:, body:, author: or source: before a word to look in one field. Put -- before the first
    /// word if one begins with -
    #[arg(required = true, value_name = "QUERY")]
    query: Vec<String>,
    #[command(flatten)]
    selector: SelectorArgs,
    /// The order
    #[arg(long, value_enum, default_value_t = OrderArg::Relevance)]
    order: OrderArg,
    /// At most so many hits
    #[arg(long, value_name = "N", default_value_t = 10)]
    limit: usize,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OrderArg {
    Relevance,
    PublishedDesc,
    PublishedAsc,
}

impl OrderArg {
    fn message(self) -> proto::SearchOrder {
        match self {
            Self::Relevance => proto::SearchOrder::Relevance,
            Self::PublishedDesc => proto::SearchOrder::PublishedDesc,
            Self::PublishedAsc => proto::SearchOrder::PublishedAsc,
        }
    }
}

pub(super) async fn search(
    args: Args,
    client: &Client,
    json: bool,
    out: &mut (dyn Write + Send),
) -> CommandResult {
    let mut left = args.limit;
    let mut request = proto::SearchArticlesRequest {
        query: args.query.join(" "),
        selector: Some(args.selector.message()),
        order: args.order.message().into(),
        min_index_sequence: last_sequence(client).await?,
        ..Default::default()
    };
    let colours = is_coloured(&io::stdout());
    let mut shown = 0_usize;
    while left > 0 {
        request.page_size = i32::try_from(left).unwrap_or(PAGE_SIZE).min(PAGE_SIZE);
        let page = page(&mut request, client).await?;
        if shown == 0 && !json {
            super::complain(&format!("{} found", page.hit_count()));
        }
        shown += page.hits.len();
        left = left.saturating_sub(page.hits.len());
        for hit in &page.hits {
            if json {
                json_line(out, &hit_json(hit))?;
            } else {
                print_hit(hit, colours, out)?;
            }
        }
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    Ok(Outcome::Done)
}

/// What was stored before the search is to be found.
async fn last_sequence(client: &Client) -> Result<u64> {
    let stats = message(client.admin().get_stats(proto::GetStatsRequest {}).await)?;
    Ok(stats.last_sequence())
}

/// Asks for a page. An index in this process has to catch up first, however long that takes; that of
/// a server answers with what it has if it is far behind.
async fn page(
    request: &mut proto::SearchArticlesRequest,
    client: &Client,
) -> Result<proto::SearchArticlesResponse> {
    let mut reached = None;
    loop {
        let answer = message(client.articles().search_articles(request.clone()).await);
        let error = match answer {
            // Only what asked to wait can be asked for without.
            Err(error)
                if error.reason() == Reason::SearchBehind && request.min_index_sequence > 0 =>
            {
                error
            }
            answer => return answer,
        };
        if !client.is_local() {
            super::complain(&format!("{error}; what is newer is not searched"));
            request.min_index_sequence = 0;
            continue;
        }
        let stats = message(client.admin().get_stats(proto::GetStatsRequest {}).await)?;
        if reached == stats.search_sequence {
            return Err(error);
        }
        tracing::warn!(%error, "waiting for the search index");
        reached = stats.search_sequence;
    }
}

/// Prints a hit as two lines: the article, and the place in its body.
fn print_hit(
    hit: &proto::SearchHit,
    colours: bool,
    out: &mut (dyn Write + Send),
) -> io::Result<()> {
    let article = hit.article.clone().unwrap_or_default();
    let (id, date) = (&article.id, date_text(article.published_at));
    write!(out, "{id}  {date}  {}  ", article.source)?;
    print_parts(&hit.title, colours, out)?;
    writeln!(out)?;
    if !hit.snippet.is_empty() {
        write!(out, "    ")?;
        print_parts(&hit.snippet, colours, out)?;
        writeln!(out)?;
    }
    Ok(())
}

/// Prints parts of a text in one line; matches stand out in bold, or between asterisks.
fn print_parts(
    parts: &[proto::TextPart],
    colours: bool,
    out: &mut (dyn Write + Send),
) -> io::Result<()> {
    let (on, off) = if colours {
        ("\x1b[1m", "\x1b[0m")
    } else {
        ("*", "*")
    };
    for part in parts {
        let text: String = part
            .text
            .chars()
            .map(|character| {
                if character.is_control() {
                    ' '
                } else {
                    character
                }
            })
            .collect();
        if part.is_match {
            write!(out, "{on}{text}{off}")?;
        } else {
            write!(out, "{text}")?;
        }
    }
    Ok(())
}

pub(super) async fn reindex(
    client: &Client,
    json: bool,
    out: &mut (dyn Write + Send),
) -> CommandResult {
    let request = proto::RebuildSearchIndexRequest {};
    let answer = message(client.admin().rebuild_search_index(request).await)?;
    let last = answer.last_sequence();
    if client.is_local() {
        // Here it is built as long as this process runs: until a search sees everything.
        let mut request = proto::SearchArticlesRequest {
            query: "a".into(),
            min_index_sequence: last,
            ..Default::default()
        };
        page(&mut request, client).await?;
    }
    if json {
        json_line(out, &json!({"last_sequence": last}))?;
    } else {
        writeln!(
            out,
            "the search index is built anew, up to sequence {last}; `pressmark stats` tells how far it is"
        )?;
    }
    Ok(Outcome::Done)
}
