//! `pressmark copies`.

use std::io::Write;

use super::output::{head_line, json_line};
use super::select::PAGE_SIZE;
use super::{CommandResult, Outcome, complain};
use crate::client::{Client, message};
use crate::rpc::json::{copy_json, copy_kind};
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
        for copy in page.copies {
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

fn print(copy: proto::Copy, json: bool, out: &mut (dyn Write + Send)) -> std::io::Result<()> {
    if json {
        return json_line(out, &copy_json(&copy));
    }
    let kind = copy_kind(copy.kind());
    let article = copy.article.unwrap_or_default();
    write!(out, "{kind:5}  {:.3}  ", copy.similarity)?;
    head_line(out, &article)
}
