//! Messages as JSON, with the field names of the protos: what the command line prints, and what the
//! page reads.

use serde_json::{Value, json};

use super::proto;
use crate::article::Timestamp;

/// The time of a message, or nothing.
#[must_use]
pub fn time_of(time: Option<prost_types::Timestamp>) -> Option<Timestamp> {
    let time = time?;
    Timestamp::new("time", time.seconds, i64::from(time.nanos)).ok()
}

fn time_text(time: Option<prost_types::Timestamp>) -> Option<String> {
    time_of(time).map(|time| time.to_string())
}

/// An article; without its body if `full` is false.
#[must_use]
pub fn article_json(article: &proto::Article, full: bool) -> Value {
    let mut value = json!({
        "id": article.id,
        "title": article.title,
        "published_at": time_text(article.published_at),
        "author": article.author,
        "source": article.source,
        "url": article.url,
        "body_hash": article.body_hash,
        "sequence": article.sequence,
        "archived_at": time_text(article.archived_at),
        "text_bytes": article.text_bytes,
    });
    if let (true, Some(fields)) = (full, value.as_object_mut()) {
        fields.insert("body".into(), article.body.clone().into());
    }
    value
}

/// Articles without their bodies.
pub(super) fn heads_json(articles: &[proto::Article]) -> Value {
    let heads = articles.iter().map(|article| article_json(article, false));
    heads.collect()
}

/// A source with its figures.
#[must_use]
pub fn source_json(source: &proto::Source) -> Value {
    json!({
        "name": source.name,
        "article_count": source.article_count,
        "first_published_at": time_text(source.first_published_at),
        "last_published_at": time_text(source.last_published_at),
    })
}

/// A copy of an article.
#[must_use]
pub fn copy_json(copy: &proto::Copy) -> Value {
    let article = copy.article.clone().unwrap_or_default();
    json!({
        "kind": copy_kind(copy.kind()),
        "similarity": copy.similarity,
        "article": article_json(&article, false),
    })
}

/// The word for a kind of copy.
#[must_use]
pub fn copy_kind(kind: proto::CopyKind) -> &'static str {
    match kind {
        proto::CopyKind::Exact => "exact",
        proto::CopyKind::Near => "near",
        proto::CopyKind::Unspecified => "unknown",
    }
}

/// An article that was found, and where.
#[must_use]
pub fn hit_json(hit: &proto::SearchHit) -> Value {
    let parts = |parts: &[proto::TextPart]| {
        let parts = parts.iter();
        let parts = parts.map(|part| json!({"text": part.text, "is_match": part.is_match}));
        parts.collect::<Vec<_>>()
    };
    let article = hit.article.clone().unwrap_or_default();
    json!({
        "score": hit.score,
        "title": parts(&hit.title),
        "snippet": parts(&hit.snippet),
        "article": article_json(&article, false),
    })
}

/// The numbers of one source, or of all.
pub(super) fn series_json(series: &proto::TimelineSeries) -> Value {
    let counts = series.counts.iter().map(
        |count| json!({"start": time_text(count.start), "article_count": count.article_count}),
    );
    json!({
        "source": series.source,
        "counts": counts.collect::<Vec<_>>(),
        "undated_count": series.undated_count,
    })
}
