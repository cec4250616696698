//! The questions of a news desk: revisions, copies, timelines and searches. Each method converts,
//! asks, and converts back.

use super::article::{Articles, messages_of};
use super::convert::{message_of, selector_of, timestamp_of, unknown_value, view_of};
use super::proto;
use crate::archive::{
    Bucket, CopiesQuery, CopyOf, Direction, Order, PageBudget, Query, Selector, TimelineQuery,
    TimelineSeries, View,
};
use crate::article::ContentHash;
use crate::error::{Error, Reason, Result};
use crate::search::{Hit, HitOrder, Search, SearchQuery, TextPart};

impl Articles {
    pub(super) async fn revisions(
        &self,
        request: proto::ListRevisionsRequest,
    ) -> Result<proto::ListRevisionsResponse> {
        let limits = self.archive.limits();
        let query = Query {
            selector: Selector::of_url(request.url, limits)?,
            order: Order::Arrival(Direction::Ascending),
        };
        let view = view_of(request.view, View::Head)?;
        let budget = self.page_budget(view, request.page_size)?;
        let page = self
            .archive
            .page(&query, &request.page_token, &budget)
            .await?;
        Ok(proto::ListRevisionsResponse {
            articles: messages_of(page.articles, view),
            next_page_token: page.next_token.unwrap_or_default(),
            as_of_sequence: Some(page.as_of),
        })
    }

    pub(super) async fn copies(
        &self,
        request: proto::ListCopiesRequest,
    ) -> Result<proto::ListCopiesResponse> {
        let query = CopiesQuery {
            id: ContentHash::parse("id", &request.id)?,
            similarity_min: request.similarity_min,
        };
        let view = view_of(request.view, View::Head)?;
        let budget = self.page_budget(view, request.page_size)?;
        let page = self
            .archive
            .copies(&query, &request.page_token, &budget)
            .await?;
        let copies = page.copies.into_iter();
        Ok(proto::ListCopiesResponse {
            copies: copies.map(|copy| copy_message(copy, view)).collect(),
            next_page_token: page.next_token.unwrap_or_default(),
            as_of_sequence: Some(page.as_of),
            with_near_copies: Some(page.with_near),
        })
    }

    pub(super) async fn timeline(
        &self,
        request: proto::GetTimelineRequest,
    ) -> Result<proto::GetTimelineResponse> {
        let query = TimelineQuery {
            selector: selector_of(request.selector, self.archive.limits())?,
            bucket: bucket_of(request.bucket)?,
            by_source: request.by_source,
        };
        let timeline = self.archive.timeline(&query).await?;
        Ok(proto::GetTimelineResponse {
            series: timeline.series.into_iter().map(series_message).collect(),
            as_of_sequence: Some(timeline.as_of),
        })
    }

    pub(super) async fn search(
        &self,
        request: proto::SearchArticlesRequest,
    ) -> Result<proto::SearchArticlesResponse> {
        let search = search_of(self.search.as_ref())?;
        let query = SearchQuery {
            text: request.query,
            selector: selector_of(request.selector, self.archive.limits())?,
            order: hit_order_of(request.order)?,
        };
        let view = view_of(request.view, View::Head)?;
        let budget = self.page_budget(view, request.page_size)?;
        if request.min_index_sequence > 0 {
            search.wait_for(request.min_index_sequence).await?;
        }
        let page = search.search(&query, &request.page_token, &budget).await?;
        let hits = page.hits.into_iter();
        Ok(proto::SearchArticlesResponse {
            hits: hits.map(|hit| hit_message(hit, view)).collect(),
            next_page_token: page.next_token.unwrap_or_default(),
            as_of_sequence: Some(page.as_of),
            hit_count: Some(page.hit_count),
        })
    }

    /// What a page of articles may hold.
    pub(super) fn page_budget(&self, view: View, page_size: i32) -> Result<PageBudget> {
        let limits = self.archive.limits();
        Ok(PageBudget {
            view,
            articles_max: limits.page_size(page_size)?,
            bytes_max: limits.response_bytes_max,
        })
    }
}

/// The search, if the server has one.
pub(super) fn search_of(search: Option<&Search>) -> Result<&Search> {
    search.ok_or_else(|| {
        let what = "this server was started without search; start it with --search on";
        Error::new(Reason::SearchOff, what)
    })
}

fn copy_message(copy: CopyOf, view: View) -> proto::Copy {
    let kind = if copy.is_exact {
        proto::CopyKind::Exact
    } else {
        proto::CopyKind::Near
    };
    proto::Copy {
        kind: kind.into(),
        similarity: copy.similarity,
        article: Some(message_of(copy.article, view)),
    }
}

fn bucket_of(bucket: i32) -> Result<Bucket> {
    match proto::TimelineBucket::try_from(bucket) {
        Ok(proto::TimelineBucket::Unspecified | proto::TimelineBucket::Day) => Ok(Bucket::Day),
        Ok(proto::TimelineBucket::Hour) => Ok(Bucket::Hour),
        Ok(proto::TimelineBucket::Week) => Ok(Bucket::Week),
        Ok(proto::TimelineBucket::Month) => Ok(Bucket::Month),
        Ok(proto::TimelineBucket::Year) => Ok(Bucket::Year),
        Err(_) => Err(unknown_value("bucket", bucket, "0 to 5")),
    }
}

fn series_message(series: TimelineSeries) -> proto::TimelineSeries {
    let counts = series.counts.into_iter();
    let counts = counts.map(|(start, article_count)| proto::TimelineCount {
        start: Some(timestamp_of(start)),
        article_count,
    });
    proto::TimelineSeries {
        source: series.source,
        counts: counts.collect(),
        undated_count: Some(series.undated_count),
    }
}

fn hit_order_of(order: i32) -> Result<HitOrder> {
    match proto::SearchOrder::try_from(order) {
        Ok(proto::SearchOrder::Unspecified | proto::SearchOrder::Relevance) => {
            Ok(HitOrder::Relevance)
        }
        Ok(proto::SearchOrder::PublishedDesc) => Ok(HitOrder::Published(Direction::Descending)),
        Ok(proto::SearchOrder::PublishedAsc) => Ok(HitOrder::Published(Direction::Ascending)),
        Err(_) => Err(unknown_value("order", order, "0 to 3")),
    }
}

fn hit_message(hit: Hit, view: View) -> proto::SearchHit {
    let parts = |parts: Vec<TextPart>| {
        let parts = parts.into_iter();
        parts
            .map(|part| proto::TextPart {
                text: part.text,
                is_match: part.is_match,
            })
            .collect()
    };
    proto::SearchHit {
        score: hit.score,
        title: parts(hit.title),
        snippet: parts(hit.snippet),
        article: Some(message_of(hit.article, view)),
    }
}
