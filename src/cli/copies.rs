//! `pressmark copies`.

use std::io::Write;

use serde_json::json;

use super::output::{article_json, head_line, json_line};
use super::select::PAGE_SIZE;
use super::{CommandResult, Outcome, complain};
use crate::client::{Client, message};
use crate::rpc::proto;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The article's full id
    id: String,
    /// How alike copies have to be, from 0.5 to 1: the share of the three-word sequences of both
    /// bodies that both have [default: 0.6]
    #[arg(long, value_name = "SHARE", conflicts_with = "exact")]
    similarity: Option<f64>,
    /// Only articles with the same body, byte for byte
    #[arg(long)]
    exact: bool,
}

pub(super) async fn run(
    args: Args,
    client: &Client,
    json: bool,
    out: &mut (dyn Write + Send),
) -> CommandResult {
    let mut request = proto::ListCopiesRequest {
        id: args.id,
        similarity_min: if args.exact {
            Some(1.0)
        } else {
            args.similarity
        },
        page_size: PAGE_SIZE,
        ..Default::default()
    };
    loop {
        let page = message(client.articles().list_copies(request.clone()).await)?;
        for copy in &page.copies {
            print(copy, json, out)?;
        }
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            let is_exact = request.similarity_min == Some(1.0);
            if !is_exact && page.with_near_copies == Some(false) {
                complain("near copies are switched off in this archive");
            }
            return Ok(Outcome::Done);
        }
    }
}

fn print(copy: &proto::Copy, json: bool, out: &mut (dyn Write + Send)) -> std::io::Result<()> {
    let kind = match copy.kind() {
        proto::CopyKind::Exact => "exact",
        proto::CopyKind::Near => "near",
        proto::CopyKind::Unspecified => "unknown",
    };
    let article = copy.article.clone().unwrap_or_default();
    if json {
        let article = article_json(&article, false);
        return json_line(
            out,
            &json!({"kind": kind, "similarity": copy.similarity, "article": article}),
        );
    }
    write!(out, "{kind:5}  {:.3}  ", copy.similarity)?;
    head_line(out, &article)
}
