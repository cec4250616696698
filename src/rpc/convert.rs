//! Conversions between messages and the archive's types, and between errors and statuses.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::limits::ServiceLimits;
use super::proto;
use crate::archive::{
    Delete, DeleteOutcome, Direction, Limits, Order, Put, PutOutcome, Query, Requests, Selector,
    SelectorFields, Source, StoredArticle, View,
};
use crate::article::{Article, ArticleFields, ContentHash, Timestamp};
use crate::error::{Error, Kind, Reason, Result};

/// The domain of every `ErrorInfo`.
const ERROR_DOMAIN: &str = "pressmark";

/// The type of a `ResourceInfo`.
const RESOURCE_TYPE: &str = "pressmark.v1.Article";

/// The type where a server is named.
const SERVER_TYPE: &str = "server";

/// How long a client should wait before it sends again what was answered with UNAVAILABLE, unless
/// the error knows better.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Details go into headers, which clients cap at 8 or 16 KiB; a message of ours is far shorter.
const MESSAGE_CHARS_MAX: usize = 2000;

/// Turns an error into a status with its details.
#[must_use]
pub fn status_of(error: &Error) -> Status {
    let code = match error.kind() {
        Kind::InvalidArgument => Code::InvalidArgument,
        Kind::NotFound => Code::NotFound,
        Kind::FailedPrecondition => Code::FailedPrecondition,
        Kind::ResourceExhausted => Code::ResourceExhausted,
        Kind::Unavailable => Code::Unavailable,
        Kind::DataLoss => Code::DataLoss,
        Kind::Unauthenticated => Code::Unauthenticated,
        Kind::PermissionDenied => Code::PermissionDenied,
        Kind::DeadlineExceeded => Code::DeadlineExceeded,
        Kind::Internal => Code::Internal,
    };
    let message: String = error.to_string().chars().take(MESSAGE_CHARS_MAX).collect();
    let mut details =
        ErrorDetails::with_error_info(error.reason().as_str(), ERROR_DOMAIN, HashMap::new());
    if let Some(field) = error.field_name() {
        details.add_bad_request_violation(field, message.as_str());
    }
    if let Some(resource) = error.resource() {
        let is_server = error.reason() == Reason::NotTheWriter;
        let kind = if is_server {
            SERVER_TYPE
        } else {
            RESOURCE_TYPE
        };
        details.set_resource_info(kind, resource, "", message.as_str());
    }
    let pause = error.retry_after();
    let pause = pause.or((code == Code::Unavailable).then_some(RETRY_DELAY));
    if pause.is_some() {
        details.set_retry_info(pause);
    }
    Status::with_error_details(code, message, details)
}

/// The error of what is cut off by the stop of the server.
pub(super) fn shutting_down() -> Error {
    Error::new(Reason::ShuttingDown, "the server is shutting down")
}

pub(super) fn stopping() -> Status {
    status_of(&shutting_down())
}

/// Turns a status that a server answered with into an error, for the client side.
#[must_use]
pub fn error_of(status: &Status) -> Error {
    let details = status.get_error_details();
    let reason = details
        .error_info()
        .and_then(|info| Reason::parse(&info.reason));
    let reason = reason.unwrap_or(match status.code() {
        Code::InvalidArgument => Reason::ArgumentInvalid,
        Code::NotFound => Reason::ArticleNotFound,
        Code::ResourceExhausted | Code::OutOfRange => Reason::MessageTooLarge,
        Code::DataLoss => Reason::RecordDamaged,
        Code::Unavailable | Code::Cancelled | Code::Unknown => Reason::ServerUnreachable,
        Code::DeadlineExceeded => Reason::DeadlineExceeded,
        Code::PermissionDenied => Reason::RoleInsufficient,
        Code::Unauthenticated => Reason::CredentialsUnknown,
        Code::Ok
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::Unimplemented
        | Code::Internal => Reason::Internal,
    });
    Error::new(reason, status.message())
}

/// The time of the clock, for what is archived now.
pub(super) fn now() -> Result<Timestamp> {
    Timestamp::from_clock(SystemTime::now())
}

/// Turns a time into a message.
#[must_use]
pub fn timestamp_of(time: Timestamp) -> prost_types::Timestamp {
    let nanos = i32::try_from(time.nanos()).unwrap_or_default();
    prost_types::Timestamp {
        seconds: time.seconds(),
        nanos,
    }
}

fn time_of(field: &str, time: Option<prost_types::Timestamp>) -> Result<Option<Timestamp>> {
    time.map(|time| Timestamp::new(field, time.seconds, i64::from(time.nanos)))
        .transpose()
}

/// Validates an article, and the id that was sent with it if there is one.
///
/// # Errors
/// `ArticleInvalid`, or `ArgumentInvalid` for id and date, naming the field.
pub fn article_of(message: proto::Article) -> Result<(Article, Option<ContentHash>)> {
    let claimed = match message.id.as_str() {
        "" => None,
        id => Some(ContentHash::parse("id", id)?),
    };
    let fields = ArticleFields {
        title: message.title,
        published_at: time_of("published_at", message.published_at)?,
        author: message.author,
        source: message.source,
        url: message.url,
        body: message.body,
    };
    Ok((Article::new(fields)?, claimed))
}

/// Turns an article into a message, with or without its body.
pub(super) fn message_of(stored: StoredArticle, view: View) -> proto::Article {
    let StoredArticle {
        id,
        sequence,
        archived_at,
        article,
    } = stored;
    let body_hash = article.body_hash().to_string();
    let text_bytes = count(article.text_bytes());
    let mut message = fields_message(article);
    if view == View::Head {
        message.body = String::new();
    }
    proto::Article {
        id: id.to_string(),
        body_hash,
        sequence,
        archived_at: Some(timestamp_of(archived_at)),
        text_bytes,
        ..message
    }
}

/// Turns the six fields of an article into a message.
#[must_use]
pub fn fields_message(article: Article) -> proto::Article {
    let fields = article.into_fields();
    proto::Article {
        title: fields.title,
        published_at: fields.published_at.map(timestamp_of),
        author: fields.author,
        source: fields.source,
        url: fields.url,
        body: fields.body,
        ..proto::Article::default()
    }
}

pub(super) fn view_of(view: i32, default: View) -> Result<View> {
    match proto::ArticleView::try_from(view) {
        Ok(proto::ArticleView::Unspecified) => Ok(default),
        Ok(proto::ArticleView::Head) => Ok(View::Head),
        Ok(proto::ArticleView::Full) => Ok(View::Full),
        Err(_) => Err(unknown_value("view", view, "0 to 2")),
    }
}

fn order_of(order: i32, default: Order) -> Result<Order> {
    match proto::ArticleOrder::try_from(order) {
        Ok(proto::ArticleOrder::Unspecified) => Ok(default),
        Ok(proto::ArticleOrder::PublishedDesc) => Ok(Order::Published(Direction::Descending)),
        Ok(proto::ArticleOrder::PublishedAsc) => Ok(Order::Published(Direction::Ascending)),
        Ok(proto::ArticleOrder::ArrivalDesc) => Ok(Order::Arrival(Direction::Descending)),
        Ok(proto::ArticleOrder::ArrivalAsc) => Ok(Order::Arrival(Direction::Ascending)),
        Err(_) => Err(unknown_value("order", order, "0 to 4")),
    }
}

pub(super) fn unknown_value(field: &str, value: i32, known: &str) -> Error {
    Error::field(
        Reason::ArgumentInvalid,
        field,
        format!("{value} is none of the values {known}"),
    )
}

pub(super) fn selector_of(
    selector: Option<proto::ArticleSelector>,
    limits: &Limits,
) -> Result<Selector> {
    let selector = selector.unwrap_or_default();
    let fields = SelectorFields {
        sources: selector.sources,
        published_after: time_of("selector.published_after", selector.published_after)?,
        published_before: time_of("selector.published_before", selector.published_before)?,
        url: selector.url,
        body_hash: selector.body_hash,
        min_sequence: selector.min_sequence,
        max_sequence: selector.max_sequence,
    };
    Selector::new(fields, limits)
}

pub(super) fn query_of(
    selector: Option<proto::ArticleSelector>,
    order: i32,
    default: Order,
    limits: &Limits,
) -> Result<Query> {
    Ok(Query {
        selector: selector_of(selector, limits)?,
        order: order_of(order, default)?,
    })
}

/// Reads full ids.
pub(super) fn ids_of(ids: &[String]) -> Result<Vec<ContentHash>> {
    let parse =
        |(position, id): (usize, &String)| ContentHash::parse(&format!("ids[{position}]"), id);
    ids.iter().enumerate().map(parse).collect()
}

/// Writes ids.
pub(super) fn texts_of(ids: &[ContentHash]) -> Vec<String> {
    ids.iter().map(ContentHash::to_string).collect()
}

/// The outcome of a put and the id of the revision before.
fn outcome_of(outcome: PutOutcome) -> (proto::PutOutcome, String) {
    match outcome {
        PutOutcome::Created => (proto::PutOutcome::Created, String::new()),
        PutOutcome::Duplicate => (proto::PutOutcome::Duplicate, String::new()),
        PutOutcome::Revision { previous } => (proto::PutOutcome::Revision, previous.to_string()),
        PutOutcome::Deleted => (proto::PutOutcome::Deleted, String::new()),
    }
}

pub(super) fn put_message(put: Put) -> proto::PutArticleResponse {
    let (outcome, previous_id) = outcome_of(put.outcome);
    proto::PutArticleResponse {
        outcome: outcome.into(),
        id: put.id.to_string(),
        sequence: put.sequence,
        previous_id,
    }
}

/// The result of one article of a stream.
pub(super) fn import_result(index: u64, result: Result<Put>) -> proto::ImportResult {
    match result {
        Ok(put) => {
            let put = put_message(put);
            proto::ImportResult {
                index: Some(index),
                outcome: put.outcome,
                id: put.id,
                sequence: put.sequence,
                previous_id: put.previous_id,
                error: None,
            }
        }
        Err(error) => {
            let error = proto::ImportError {
                code: i32::from(status_of(&error).code()),
                reason: error.reason().as_str().to_owned(),
                field: error.field_name().unwrap_or_default().to_owned(),
                message: error.to_string(),
            };
            proto::ImportResult {
                index: Some(index),
                error: Some(error),
                ..Default::default()
            }
        }
    }
}

pub(super) fn delete_message(delete: Delete) -> proto::DeleteArticleResponse {
    let outcome = match delete.outcome {
        DeleteOutcome::Deleted => proto::DeleteOutcome::Deleted,
        DeleteOutcome::AlreadyDeleted => proto::DeleteOutcome::AlreadyDeleted,
    };
    proto::DeleteArticleResponse {
        outcome: outcome.into(),
        id: delete.id.to_string(),
        sequence: delete.sequence,
        deleted_at: Some(timestamp_of(delete.deleted_at)),
        reason: delete.reason,
    }
}

pub(super) fn source_message(source: Source) -> proto::Source {
    proto::Source {
        name: source.name,
        article_count: source.article_count,
        first_published_at: source.first_published_at.map(timestamp_of),
        last_published_at: source.last_published_at.map(timestamp_of),
    }
}

pub(super) fn limits_message(limits: &Limits, service: &ServiceLimits) -> proto::Limits {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    proto::Limits {
        text_bytes_max: count(limits.text_bytes_max),
        title_bytes_max: count(limits.title_bytes_max),
        author_bytes_max: count(limits.author_bytes_max),
        source_bytes_max: count(limits.source_bytes_max),
        url_bytes_max: count(limits.url_bytes_max),
        reason_bytes_max: count(limits.reason_bytes_max),
        article_message_bytes_max: count(limits.article_message_bytes_max),
        message_bytes_max: count(limits.message_bytes_max),
        response_bytes_max: count(limits.response_bytes_max),
        find_missing_ids_max: count(limits.find_missing_ids_max),
        lookup_ids_max: count(limits.lookup_ids_max),
        prefix_digits_min: count(limits.prefix_digits_min),
        selector_sources_max: count(limits.selector_sources_max),
        page_articles_default: count(limits.page_articles_default),
        page_articles_max: count(limits.page_articles_max),
        page_examined_max: count(limits.page_examined_max),
        scan_chunk_bytes: count(limits.scan_chunk_bytes),
        sorted_articles_max: count(limits.sorted_articles_max),
        group_articles_max: count(limits.group_articles_max),
        group_bytes_max: count(limits.group_bytes_max),
        queue_articles_max: count(limits.queue_articles_max),
        queue_bytes_max: count(limits.queue_bytes_max),
        import_results_max: count(limits.import_results_max),
        connection_streams_max: u64::from(limits.connection_streams_max),
        timeline_buckets_max: count(limits.timeline_buckets_max),
        search_query_bytes_max: count(limits.search_query_bytes_max),
        search_hits_max: count(limits.search_hits_max),
        connections_max: service.connections_max.into(),
        requests_max: service.requests_max.into(),
        streams_max: service.streams_max.into(),
        request_bytes_in_flight_max: service.request_bytes_in_flight_max.into(),
        requests_per_second_max: Some(service.requests_per_second_max.into()),
        request_deadline_ms: millis(service.request_deadline),
        stream_idle_ms_max: Some(millis(service.stream_idle_max)),
        connection_age_ms_max: Some(millis(service.connection_age_max)),
        keepalive_interval_ms: Some(millis(service.keepalive_interval)),
        header_bytes_max: service.header_bytes_max.into(),
        queue_wait_ms_max: millis(service.queue_wait_max),
        staleness_ms_max: millis(service.staleness_max),
    }
}

/// What was asked of object storage, and how much of it for each 1,000 articles stored.
pub(super) fn requests_message(requests: Requests, stored_count: u64) -> proto::StorageRequests {
    let float = |count: u64| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    let each_1000 = |count: u64| {
        let of_none = stored_count == 0;
        (!of_none).then(|| float(count) * 1000.0 / float(stored_count))
    };
    proto::StorageRequests {
        put_count: Some(requests.put_count),
        get_count: Some(requests.get_count),
        list_count: Some(requests.list_count),
        delete_count: Some(requests.delete_count),
        puts_per_1000_articles: each_1000(requests.put_count + requests.list_count),
        gets_per_1000_articles: each_1000(requests.get_count),
    }
}

/// Widens a size for the wire.
pub(super) fn count(size: usize) -> u64 {
    u64::try_from(size).unwrap_or(u64::MAX)
}
