//! The data of the page, as JSON. A question stands in the path and the query of a URL, and goes to the
//! same method that gRPC calls, with the same limits and the same role.

use serde_json::{Value, json};
use url::form_urlencoded;

use super::super::article::Articles;
use super::super::convert::timestamp_of;
use super::super::json::{article_json, copy_json, heads_json, hit_json, series_json, source_json};
use super::super::methods::Method;
use super::super::proto;
use crate::article::Timestamp;
use crate::error::{Error, Reason, Result, excerpt};

/// The folder of all data.
pub(super) const FOLDER: &str = "/api/";

/// Characters of a parameter's name that an error repeats.
const NAME_CHARS_MAX: usize = 60;

/// What a path asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question<'a> {
    Articles,
    Article(&'a str),
    Revisions(&'a str),
    Copies(&'a str),
    Timeline,
    Sources,
    Search,
}

impl<'a> Question<'a> {
    /// The question of a path, if it is one.
    pub(super) fn of_path(path: &'a str) -> Option<Self> {
        let mut parts = path.strip_prefix(FOLDER)?.split('/');
        let question = match (parts.next()?, parts.next(), parts.next()) {
            ("articles", None, None) => Self::Articles,
            ("articles", Some(id), None) => Self::Article(id),
            ("articles", Some(id), Some("revisions")) => Self::Revisions(id),
            ("articles", Some(id), Some("copies")) => Self::Copies(id),
            ("timeline", None, None) => Self::Timeline,
            ("sources", None, None) => Self::Sources,
            ("search", None, None) => Self::Search,
            _ => return None,
        };
        parts.next().is_none().then_some(question)
    }

    /// The method of gRPC that answers it.
    pub(super) fn method(self) -> &'static Method {
        Method::of_path(match self {
            Self::Articles => "/pressmark.v1.ArticleService/ListArticles",
            Self::Article(_) => "/pressmark.v1.ArticleService/GetArticle",
            Self::Revisions(_) => "/pressmark.v1.ArticleService/ListRevisions",
            Self::Copies(_) => "/pressmark.v1.ArticleService/ListCopies",
            Self::Timeline => "/pressmark.v1.ArticleService/GetTimeline",
            Self::Sources => "/pressmark.v1.ArticleService/ListSources",
            Self::Search => "/pressmark.v1.ArticleService/SearchArticles",
        })
    }

    /// Asks it.
    pub(super) async fn ask(self, articles: &Articles, query: &str) -> Result<Value> {
        let mut given = Parameters::of(query);
        match self {
            Self::Articles => list(articles, given).await,
            Self::Article(id) => {
                given.end()?;
                let article = get(articles, id, proto::ArticleView::Full).await?;
                Ok(json!({"article": article_json(&article, true)}))
            }
            Self::Revisions(id) => revisions(articles, id, given).await,
            Self::Copies(id) => copies(articles, id, given).await,
            Self::Timeline => timeline(articles, given).await,
            Self::Sources => {
                let (page_size, page_token) = given.page()?;
                given.end()?;
                let request = proto::ListSourcesRequest {
                    page_size,
                    page_token,
                };
                let page = articles.sources(request).await?;
                let sources: Value = page.sources.iter().map(source_json).collect();
                Ok(json!({"sources": sources, "next_page_token": page.next_page_token}))
            }
            Self::Search => search(articles, given).await,
        }
    }
}

async fn list(articles: &Articles, mut given: Parameters) -> Result<Value> {
    let selector = given.selector()?;
    let order = given.take("order")?;
    let order = match order.as_deref() {
        None => proto::ArticleOrder::Unspecified,
        Some("published-desc") => proto::ArticleOrder::PublishedDesc,
        Some("published-asc") => proto::ArticleOrder::PublishedAsc,
        Some("arrival-desc") => proto::ArticleOrder::ArrivalDesc,
        Some("arrival-asc") => proto::ArticleOrder::ArrivalAsc,
        Some(other) => {
            let known = "published-desc, published-asc, arrival-desc and arrival-asc";
            return Err(none_of("order", other, known));
        }
    };
    let (page_size, page_token) = given.page()?;
    given.end()?;
    let request = proto::ListArticlesRequest {
        selector: Some(selector),
        order: order.into(),
        page_size,
        page_token,
        view: proto::ArticleView::Head.into(),
    };
    let page = articles.list(request).await?;
    Ok(json!({
        "articles": heads_json(&page.articles),
        "next_page_token": page.next_page_token,
        "as_of_sequence": page.as_of_sequence,
    }))
}

async fn get(articles: &Articles, id: &str, view: proto::ArticleView) -> Result<proto::Article> {
    let request = proto::GetArticleRequest {
        name: Some(proto::get_article_request::Name::Id(id.to_owned())),
        view: view.into(),
    };
    Ok(articles.get(request).await?.article.unwrap_or_default())
}

/// The articles at the URL of one; none but itself can be known if it has no URL.
async fn revisions(articles: &Articles, id: &str, mut given: Parameters) -> Result<Value> {
    let (page_size, page_token) = given.page()?;
    given.end()?;
    let article = get(articles, id, proto::ArticleView::Head).await?;
    if article.url.is_empty() {
        return Ok(json!({"articles": heads_json(&[article]), "next_page_token": ""}));
    }
    let request = proto::ListRevisionsRequest {
        url: article.url,
        page_size,
        page_token,
        view: proto::ArticleView::Head.into(),
    };
    let page = articles.revisions(request).await?;
    Ok(json!({
        "articles": heads_json(&page.articles),
        "next_page_token": page.next_page_token,
        "as_of_sequence": page.as_of_sequence,
    }))
}

async fn copies(articles: &Articles, id: &str, mut given: Parameters) -> Result<Value> {
    let similarity_min = given.number("similarity")?;
    let (page_size, page_token) = given.page()?;
    given.end()?;
    let request = proto::ListCopiesRequest {
        id: id.to_owned(),
        similarity_min,
        page_size,
        page_token,
        view: proto::ArticleView::Head.into(),
    };
    let page = articles.copies(request).await?;
    let copies: Value = page.copies.iter().map(copy_json).collect();
    Ok(json!({
        "copies": copies,
        "next_page_token": page.next_page_token,
        "as_of_sequence": page.as_of_sequence,
        "with_near_copies": page.with_near_copies,
    }))
}

async fn timeline(articles: &Articles, mut given: Parameters) -> Result<Value> {
    let selector = given.selector()?;
    let bucket = given.take("bucket")?;
    let bucket = match bucket.as_deref() {
        None => proto::TimelineBucket::Unspecified,
        Some("hour") => proto::TimelineBucket::Hour,
        Some("day") => proto::TimelineBucket::Day,
        Some("week") => proto::TimelineBucket::Week,
        Some("month") => proto::TimelineBucket::Month,
        Some("year") => proto::TimelineBucket::Year,
        Some(other) => {
            return Err(none_of("bucket", other, "hour, day, week, month and year"));
        }
    };
    let by_source = given.take("by_source")?;
    let by_source = match by_source.as_deref() {
        None | Some("false") => false,
        Some("true") => true,
        Some(other) => return Err(none_of("by_source", other, "true and false")),
    };
    given.end()?;
    let request = proto::GetTimelineRequest {
        selector: Some(selector),
        bucket: bucket.into(),
        by_source,
    };
    let timeline = articles.timeline(request).await?;
    let series: Value = timeline.series.iter().map(series_json).collect();
    Ok(json!({"series": series, "as_of_sequence": timeline.as_of_sequence}))
}

async fn search(articles: &Articles, mut given: Parameters) -> Result<Value> {
    let query = given.take("q")?.unwrap_or_default();
    let selector = given.selector()?;
    let order = given.take("order")?;
    let order = match order.as_deref() {
        None => proto::SearchOrder::Unspecified,
        Some("relevance") => proto::SearchOrder::Relevance,
        Some("published-desc") => proto::SearchOrder::PublishedDesc,
        Some("published-asc") => proto::SearchOrder::PublishedAsc,
        Some(other) => {
            let known = "relevance, published-desc and published-asc";
            return Err(none_of("order", other, known));
        }
    };
    let (page_size, page_token) = given.page()?;
    given.end()?;
    let request = proto::SearchArticlesRequest {
        query,
        selector: Some(selector),
        order: order.into(),
        page_size,
        page_token,
        view: proto::ArticleView::Head.into(),
        min_index_sequence: 0,
    };
    let page = articles.search(request).await?;
    let hits: Value = page.hits.iter().map(hit_json).collect();
    Ok(json!({
        "hits": hits,
        "hit_count": page.hit_count,
        "next_page_token": page.next_page_token,
        "as_of_sequence": page.as_of_sequence,
    }))
}

/// What stands behind the question mark. Whatever nobody takes is an error.
struct Parameters(Vec<(String, String)>);

impl Parameters {
    fn of(query: &str) -> Self {
        Self(
            form_urlencoded::parse(query.as_bytes())
                .into_owned()
                .collect(),
        )
    }

    fn take_all(&mut self, name: &str) -> Vec<String> {
        let given = std::mem::take(&mut self.0).into_iter();
        let (taken, left): (Vec<_>, Vec<_>) = given.partition(|(given, _)| given == name);
        self.0 = left;
        taken.into_iter().map(|(_, value)| value).collect()
    }

    fn take(&mut self, name: &str) -> Result<Option<String>> {
        let mut values = self.take_all(name);
        let value = values.pop();
        if values.is_empty() {
            return Ok(value);
        }
        Err(Error::field(
            Reason::ArgumentInvalid,
            name,
            "is there twice",
        ))
    }

    fn number<T: std::str::FromStr>(&mut self, name: &str) -> Result<Option<T>> {
        let Some(text) = self.take(name)? else {
            return Ok(None);
        };
        text.parse().map(Some).map_err(|_| {
            let what = format!("{} is not such a number", excerpt(&text));
            Error::field(Reason::ArgumentInvalid, name, what)
        })
    }

    fn time(&mut self, name: &str) -> Result<Option<prost_types::Timestamp>> {
        let Some(text) = self.take(name)? else {
            return Ok(None);
        };
        let time = Timestamp::parse_short(&text).ok_or_else(|| {
            let what = format!(
                "{} is not YYYY-MM-DD or YYYY-MM-DDTHH:MM:SS[.fraction] in UTC",
                excerpt(&text)
            );
            Error::field(Reason::ArgumentInvalid, name, what)
        })?;
        Ok(Some(timestamp_of(time)))
    }

    fn page(&mut self) -> Result<(i32, String)> {
        let page_size = self.number("page_size")?.unwrap_or_default();
        Ok((page_size, self.take("page_token")?.unwrap_or_default()))
    }

    fn selector(&mut self) -> Result<proto::ArticleSelector> {
        Ok(proto::ArticleSelector {
            sources: self.take_all("source"),
            published_after: self.time("after")?,
            published_before: self.time("before")?,
            ..proto::ArticleSelector::default()
        })
    }

    fn end(self) -> Result<()> {
        let Some((name, _)) = self.0.first() else {
            return Ok(());
        };
        let what = "this question has no such parameter";
        let name: String = name.chars().take(NAME_CHARS_MAX).collect();
        Err(Error::field(Reason::ArgumentInvalid, name, what))
    }
}

fn none_of(name: &str, value: &str, known: &str) -> Error {
    let what = format!("{} is none of {known}", excerpt(value));
    Error::field(Reason::ArgumentInvalid, name, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_mean_questions() {
        for (path, expected) in [
            ("/api/articles", Some(Question::Articles)),
            ("/api/articles/12", Some(Question::Article("12"))),
            (
                "/api/articles/12/revisions",
                Some(Question::Revisions("12")),
            ),
            ("/api/articles/12/copies", Some(Question::Copies("12"))),
            ("/api/timeline", Some(Question::Timeline)),
            ("/api/sources", Some(Question::Sources)),
            ("/api/search", Some(Question::Search)),
            ("/api/", None),
            ("/api/articles/12/other", None),
            ("/api/articles/12/copies/3", None),
            ("/api/sources/", None),
            ("/articles", None),
        ] {
            assert_eq!(Question::of_path(path), expected, "{path}");
            if let Some(question) = expected {
                assert_ne!(question.method(), Method::of_path("/"), "{path}");
            }
        }
    }

    #[test]
    fn parameters_are_taken_once_and_completely() -> Result<()> {
        let mut given = Parameters::of("source=A+B&source=%C3%A9&after=2020-01-02&page_size=3");
        let selector = given.selector()?;
        assert_eq!(selector.sources, ["A B", "\u{e9}"]);
        assert_eq!(
            selector.published_after.map(|t| t.seconds),
            Some(1_577_923_200)
        );
        assert_eq!(given.page()?, (3, String::new()));
        given.end()?;
        for (query, field) in [
            ("after=now", "after"),
            ("before=2020-13-01", "before"),
            ("page_size=many", "page_size"),
            ("page_token=a&page_token=b", "page_token"),
            ("evil=1", "evil"),
        ] {
            let mut given = Parameters::of(query);
            let read = given
                .selector()
                .and_then(|_| given.page())
                .and_then(|_| given.end());
            let error = read.expect_err(query);
            assert_eq!(error.field_name(), Some(field), "{query}");
        }
        Ok(())
    }
}
