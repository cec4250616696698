//! The commands that take a selector: `pressmark list`, `scan`, `count`; and `sources`.

use std::io::Write;
use std::time::Duration;

use clap::ValueEnum;
use serde_json::json;

use super::output::{article_json, head_line, json_line, source_line};
use super::{CommandResult, Failure, Outcome};
use crate::article::Timestamp;
use crate::client::{Client, message};
use crate::error::{Error, Kind, Reason, Result, excerpt};
use crate::rpc::{error_of, proto, timestamp_of};

/// Articles or sources asked for at a time.
pub(super) const PAGE_SIZE: i32 = 1000;

/// How often a stream that broke off without any progress is taken up again.
pub(super) const RESUMES_MAX: usize = 5;

/// The pause before that, in which a server can be restarted.
pub(super) const RESUME_DELAY: Duration = Duration::from_secs(1);

/// Which articles.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct SelectorArgs {
    /// Only articles of this source; may be given several times
    #[arg(long = "source", value_name = "NAME")]
    sources: Vec<String>,
    /// Only articles published at this time or later: YYYY-MM-DD or YYYY-MM-DDTHH:MM:SS, in UTC
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    after: Option<Timestamp>,
    /// Only articles published before this time
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    before: Option<Timestamp>,
    /// Only articles at this URL, compared in canonical form
    #[arg(long, default_value = "", hide_default_value = true)]
    url: String,
    /// Only articles with this body
    #[arg(
        long,
        value_name = "HASH",
        default_value = "",
        hide_default_value = true
    )]
    body_hash: String,
    /// Only articles with this sequence or a later one
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    min_sequence: u64,
    /// Only articles with this sequence or an earlier one
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    max_sequence: u64,
}

impl SelectorArgs {
    pub(super) fn message(&self) -> proto::ArticleSelector {
        proto::ArticleSelector {
            sources: self.sources.clone(),
            published_after: self.after.map(timestamp_of),
            published_before: self.before.map(timestamp_of),
            url: self.url.clone(),
            body_hash: self.body_hash.clone(),
            min_sequence: self.min_sequence,
            max_sequence: self.max_sequence,
        }
    }
}

/// Reads a day, or a time with or without the zone, which can only be UTC.
fn parse_time(text: &str) -> Result<Timestamp> {
    Timestamp::parse_short(text).ok_or_else(|| {
        let what = format!(
            "{} is not YYYY-MM-DD or YYYY-MM-DDTHH:MM:SS[.fraction] in UTC",
            excerpt(text)
        );
        Error::new(Reason::ArgumentInvalid, what)
    })
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OrderArg {
    PublishedDesc,
    PublishedAsc,
    ArrivalDesc,
    ArrivalAsc,
}

impl OrderArg {
    fn message(order: Option<Self>) -> i32 {
        let order = match order {
            None => proto::ArticleOrder::Unspecified,
            Some(Self::PublishedDesc) => proto::ArticleOrder::PublishedDesc,
            Some(Self::PublishedAsc) => proto::ArticleOrder::PublishedAsc,
            Some(Self::ArrivalDesc) => proto::ArticleOrder::ArrivalDesc,
            Some(Self::ArrivalAsc) => proto::ArticleOrder::ArrivalAsc,
        };
        order.into()
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    selector: SelectorArgs,
    /// The order [default: published-desc]
    #[arg(long)]
    order: Option<OrderArg>,
    /// At most so many articles
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
    /// All articles, whatever the limit
    #[arg(long, conflicts_with = "limit")]
    all: bool,
}

pub(super) async fn list(
    args: ListArgs,
    client: &Client,
    json: bool,
    out: &mut (dyn Write + Send),
) -> CommandResult {
    let mut left = if args.all { usize::MAX } else { args.limit };
    let mut request = proto::ListArticlesRequest {
        selector: Some(args.selector.message()),
        order: OrderArg::message(args.order),
        ..Default::default()
    };
    while left > 0 {
        request.page_size = i32::try_from(left).unwrap_or(PAGE_SIZE).min(PAGE_SIZE);
        let page = message(client.articles().list_articles(request.clone()).await)?;
        left = left.saturating_sub(page.articles.len());
        print_articles(&page.articles, json, false, out)?;
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    Ok(Outcome::Done)
}

#[derive(Debug, clap::Args)]
pub(super) struct ScanArgs {
    #[command(flatten)]
    selector: SelectorArgs,
    /// The order [default: arrival-asc]
    #[arg(long)]
    order: Option<OrderArg>,
}

pub(super) async fn scan(
    args: ScanArgs,
    client: &Client,
    json: bool,
    out: &mut (dyn Write + Send),
) -> CommandResult {
    let view = if json {
        proto::ArticleView::Full
    } else {
        proto::ArticleView::Head
    };
    let order = OrderArg::message(args.order);
    scan_selected(&args.selector, order, view, client, |articles| {
        print_articles(&articles, json, true, out)
    })
    .await?;
    Ok(Outcome::Done)
}

/// Streams all articles of a selector, and takes up again what broke off.
pub(super) async fn scan_selected(
    selector: &SelectorArgs,
    order: i32,
    view: proto::ArticleView,
    client: &Client,
    mut take: impl FnMut(Vec<proto::Article>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut request = proto::ScanArticlesRequest {
        selector: Some(selector.message()),
        order,
        view: view.into(),
        resume_token: String::new(),
    };
    let mut breaks = 0;
    loop {
        let broke = match client.articles().scan_articles(request.clone()).await {
            Err(status) => status,
            Ok(stream) => {
                let mut stream = stream.into_inner();
                loop {
                    match stream.message().await {
                        Ok(None) => return Ok(()),
                        Ok(Some(chunk)) => {
                            breaks = 0;
                            take(chunk.articles)?;
                            if chunk.resume_token.is_empty() {
                                return Ok(());
                            }
                            request.resume_token = chunk.resume_token;
                        }
                        Err(status) => break status,
                    }
                }
            }
        };
        let error = error_of(&broke);
        breaks += 1;
        if error.kind() != Kind::Unavailable || breaks > RESUMES_MAX {
            return Err(error.into());
        }
        tracing::warn!(%error, "the scan broke off and is taken up behind its last chunk");
        tokio::time::sleep(RESUME_DELAY).await;
    }
}

fn print_articles(
    articles: &[proto::Article],
    json: bool,
    full: bool,
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    for article in articles {
        if json {
            json_line(out, &article_json(article, full))?;
        } else {
            head_line(out, article)?;
        }
    }
    Ok(())
}

#[derive(Debug, clap::Args)]
pub(super) struct CountArgs {
    #[command(flatten)]
    selector: SelectorArgs,
}

pub(super) async fn count(
    args: CountArgs,
    client: &Client,
    json: bool,
    out: &mut (dyn Write + Send),
) -> CommandResult {
    let request = proto::CountArticlesRequest {
        selector: Some(args.selector.message()),
    };
    let answer = message(client.articles().count_articles(request).await)?;
    let count = answer.article_count.unwrap_or_default();
    if json {
        json_line(
            out,
            &json!({"article_count": count, "as_of_sequence": answer.as_of_sequence}),
        )?;
    } else {
        writeln!(out, "{count}")?;
    }
    Ok(Outcome::Done)
}

pub(super) async fn sources(
    client: &Client,
    json: bool,
    out: &mut (dyn Write + Send),
) -> CommandResult {
    let mut request = proto::ListSourcesRequest {
        page_size: PAGE_SIZE,
        page_token: String::new(),
    };
    loop {
        let page = message(client.articles().list_sources(request.clone()).await)?;
        for source in &page.sources {
            source_line(out, source, json)?;
        }
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return Ok(Outcome::Done);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_days_or_instants_in_utc() {
        let day = parse_time("2026-01-02").unwrap();
        for same in [
            "2026-01-02T00:00:00",
            "2026-01-02T00:00:00Z",
            "2026-01-02T00:00:00+00:00",
        ] {
            assert_eq!(parse_time(same).unwrap(), day, "{same}");
        }
        for wrong in ["", "2026", "2026-13-01", "2026-01-02T00:00:00+02:00"] {
            assert!(
                parse_time(wrong)
                    .unwrap_err()
                    .message()
                    .contains("YYYY-MM-DD"),
                "{wrong}"
            );
        }
    }
}
