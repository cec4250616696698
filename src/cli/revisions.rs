//! `pressmark revisions`.

use std::io::{self, Write};
use std::str::FromStr;

use serde_json::json;
use similar::{ChangeTag, TextDiff};

use super::output::{article_json, article_of, head_line, is_coloured, json_line};
use super::select::PAGE_SIZE;
use super::{CommandResult, Outcome};
use crate::client::{Client, message};
use crate::error::{Error, Reason, Result, excerpt};
use crate::rpc::proto;

/// Lines around a change that are shown with it.
const CONTEXT_LINES: usize = 3;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The URL, compared in canonical form
    url: String,
    /// Show what changed between two revisions, as a unified diff of their canonical texts: the last
    /// two, or those with these numbers, counted from 1 for the first stored
    #[arg(
        long,
        value_name = "FROM..TO",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "",
    )]
    diff: Option<Between>,
}

/// Between which revisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Between {
    LastTwo,
    Numbers(usize, usize),
}

impl FromStr for Between {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Ok(Self::LastTwo);
        }
        let number = |text: &str| text.parse().ok().filter(|number| *number > 0);
        let numbers = text.split_once("..");
        let numbers = numbers.and_then(|(from, to)| Some((number(from)?, number(to)?)));
        let (from, to) = numbers.ok_or_else(|| {
            let what = format!("{} is not two numbers from 1, as in 1..3", excerpt(text));
            Error::new(Reason::ArgumentInvalid, what)
        })?;
        Ok(Self::Numbers(from, to))
    }
}

pub(super) async fn run(
    args: Args,
    client: &Client,
    json: bool,
    out: &mut (dyn Write + Send),
) -> CommandResult {
    let revisions = revisions(&args.url, client).await?;
    if let Some(between) = args.diff {
        let count = revisions.len();
        let chosen = match between {
            Between::LastTwo => count.checked_sub(2).map(|first| (first, first + 1)),
            Between::Numbers(from, to) => Some((from - 1, to - 1)),
        };
        let chosen = chosen.and_then(|(from, to)| Some((revisions.get(from)?, revisions.get(to)?)));
        let (from, to) = chosen.ok_or_else(|| {
            let what = format!("the URL has {count} revisions");
            Error::field(Reason::ArgumentInvalid, "diff", what)
        })?;
        let (from, to) = (
            text_of(&from.id, client).await?,
            text_of(&to.id, client).await?,
        );
        return diff(&from, &to, json, out);
    }
    for (article, number) in revisions.iter().zip(1_u64..) {
        if json {
            json_line(out, &article_json(article, false))?;
        } else {
            write!(out, "{number:>4}  ")?;
            head_line(out, article)?;
        }
    }
    Ok(Outcome::Done)
}

/// All articles at a URL, without their bodies.
async fn revisions(url: &str, client: &Client) -> Result<Vec<proto::Article>> {
    let mut request = proto::ListRevisionsRequest {
        url: url.to_owned(),
        page_size: PAGE_SIZE,
        ..Default::default()
    };
    let mut articles = Vec::new();
    loop {
        let page = message(client.articles().list_revisions(request.clone()).await)?;
        articles.extend(page.articles);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return Ok(articles);
        }
    }
}

/// The id and the canonical text of an article.
async fn text_of(id: &str, client: &Client) -> Result<(String, String)> {
    let request = proto::GetArticleRequest {
        name: Some(proto::get_article_request::Name::Id(id.to_owned())),
        view: proto::ArticleView::Full.into(),
    };
    let answer = message(client.articles().get_article(request).await)?;
    let article = article_of(answer.article.unwrap_or_default())?;
    Ok((id.to_owned(), article.render()))
}

fn diff(
    (from_id, from): &(String, String),
    (to_id, to): &(String, String),
    json: bool,
    out: &mut (dyn Write + Send),
) -> CommandResult {
    let diff = TextDiff::from_lines(from.as_str(), to.as_str());
    if json {
        let changes = diff.iter_all_changes().map(|change| {
            let what = match change.tag() {
                ChangeTag::Equal => "equal",
                ChangeTag::Delete => "delete",
                ChangeTag::Insert => "insert",
            };
            json!({"change": what, "text": change.value()})
        });
        let changes: Vec<_> = changes.collect();
        json_line(
            out,
            &json!({"from": from_id, "to": to_id, "changes": changes}),
        )?;
        return Ok(Outcome::Done);
    }
    let mut unified = diff.unified_diff();
    let unified = unified.context_radius(CONTEXT_LINES).header(from_id, to_id);
    let text = unified.to_string();
    if is_coloured(&io::stdout()) {
        for line in text.split_inclusive('\n') {
            let colour = match line.as_bytes().first() {
                Some(b'+') => "\x1b[32m",
                Some(b'-') => "\x1b[31m",
                Some(b'@') => "\x1b[36m",
                _ => "",
            };
            let end = if colour.is_empty() { "" } else { "\x1b[0m" };
            let (line, newline) = line
                .strip_suffix('\n')
                .map_or((line, ""), |line| (line, "\n"));
            write!(out, "{colour}{line}{end}{newline}")?;
        }
    } else {
        out.write_all(text.as_bytes())?;
    }
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_numbers_name_two_revisions() {
        assert_eq!("".parse::<Between>().unwrap(), Between::LastTwo);
        assert_eq!("1..3".parse::<Between>().unwrap(), Between::Numbers(1, 3));
        for wrong in ["1", "1..", "..2", "0..1", "1..2..3", "a..b", "-1..2"] {
            assert!(wrong.parse::<Between>().is_err(), "{wrong}");
        }
    }
}
