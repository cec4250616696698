//! From a query to hits: its syntax, the selector as filters, pages, and what is shown of each hit.

use std::collections::HashSet;
use std::ops::{Bound, Range};

use tantivy::collector::{Count, TopDocs};
use tantivy::query::{
    BooleanQuery, ConstScoreQuery, Occur, Query as IndexQuery, QueryParser, QueryParserError,
    RangeQuery, TermQuery, TermSetQuery,
};
use tantivy::schema::IndexRecordOption;
use tantivy::snippet::SnippetGenerator;
use tantivy::{DocAddress, Order, Searcher, TantivyError, Term};

use super::index::{Fields, PUBLISHED, SEQUENCE, Snapshot, UNDATED};
use super::words::places;
use super::{Hit, HitOrder, Hits, SearchQuery, Shared, TextPart, failed};
use crate::archive::token::{self, Fingerprint};
use crate::archive::{Direction, Order as ArticleOrder, PageBudget, Query, StoredArticle};
use crate::article::Timestamp;
use crate::error::{Error, Reason, Result, excerpt};

/// How much more a word in the title counts than one in the body.
const TITLE_BOOST: f32 = 3.0;

/// Characters of a snippet.
const SNIPPET_CHARS: usize = 200;

/// Where a page begins.
#[derive(Clone, Copy, Debug)]
struct Cursor {
    as_of: u64,
    /// Hits before it.
    offset: usize,
}

impl Cursor {
    fn encode(self) -> Vec<u8> {
        let offset = u64::try_from(self.offset).unwrap_or(u64::MAX);
        [self.as_of.to_be_bytes(), offset.to_be_bytes()].concat()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (as_of, offset) = bytes.split_first_chunk()?;
        let offset = u64::from_be_bytes(offset.try_into().ok()?);
        Some(Self {
            as_of: u64::from_be_bytes(*as_of),
            offset: usize::try_from(offset).ok()?,
        })
    }
}

/// What the index answers: sequences with their scores, and how many there are in all.
struct Found {
    hits: Vec<(f32, u64)>,
    hit_count: u64,
}

/// Runs a query.
pub(super) async fn run(
    shared: &Shared,
    snapshot: Snapshot,
    query: &SearchQuery,
    token: &str,
    budget: &PageBudget,
) -> Result<Hits> {
    let fingerprint = fingerprint(query);
    let mut cursor = Cursor {
        as_of: snapshot.sequence,
        offset: 0,
    };
    if !token.is_empty() {
        let position = token::decode(token, fingerprint)?;
        cursor = Cursor::decode(&position).ok_or_else(|| {
            Error::field(Reason::PageTokenInvalid, "page_token", "holds no position")
        })?;
    }
    let hits_max = shared.archive.limits().search_hits_max;
    if cursor.offset >= hits_max {
        let what = format!(
            "only the first {hits_max} hits can be paged through; use more words, or bounds of dates"
        );
        return Err(Error::field(Reason::TooManyToSort, "page_token", what));
    }
    let text = parse(&snapshot, &query.text)?;
    let sequences = shared.archive.sequences_of(&query.selector).await?;
    let filtered = filtered(&snapshot, query, text.box_clone(), sequences, cursor.as_of);
    let limit = budget.articles_max.clamp(1, hits_max - cursor.offset);
    let (searcher, order) = (snapshot.searcher.clone(), query.order);
    let found = blocking(shared, move || {
        find(&searcher, &*filtered, order, cursor.offset, limit)
    })
    .await?;
    let page: Vec<u64> = found.hits.iter().map(|(_, sequence)| *sequence).collect();
    let articles = shared.archive.articles_at(&page).await?;
    let shown = Shown::new(&snapshot, &*text)?;
    let mut room = crate::archive::Room::new(budget);
    let mut hits = Vec::new();
    let mut looked_at = 0;
    for ((score, _), article) in found.hits.iter().zip(articles) {
        // What was deleted since is left out, and so is what the filters could not tell.
        let article =
            article.filter(|stored| query.selector.matches(stored.sequence, &stored.article));
        if let Some(article) = article {
            if !room.take(&article.article) {
                break;
            }
            hits.push(shown.hit(article, *score));
        }
        looked_at += 1;
    }
    cursor.offset += looked_at;
    let is_last = u64::try_from(cursor.offset).is_ok_and(|offset| offset >= found.hit_count)
        || found.hits.is_empty();
    let next_token = (!is_last).then(|| token::encode(fingerprint, &cursor.encode()));
    Ok(Hits {
        hits,
        next_token,
        as_of: cursor.as_of,
        hit_count: found.hit_count,
    })
}

/// Runs work that keeps a core busy on a thread that may take its time.
async fn blocking<T: Send + 'static>(
    shared: &Shared,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let closed = |_| Error::new(Reason::ShuttingDown, "the search is closed");
    let _turn = shared.searches.acquire().await.map_err(closed)?;
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|panic| {
        Error::new(Reason::SearchFailed, "the search panicked").with_source(panic)
    })?
}

fn fingerprint(query: &SearchQuery) -> Fingerprint {
    let (kind, direction) = match query.order {
        HitOrder::Relevance => (b"search by relevance ".as_slice(), Direction::Descending),
        HitOrder::Published(direction) => (b"search by date ".as_slice(), direction),
    };
    let articles = Query {
        selector: query.selector.clone(),
        order: ArticleOrder::Published(direction),
    };
    Fingerprint::of(&articles.description(&[kind, query.text.as_bytes()].concat()))
}

/// Reads the text of a query.
fn parse(snapshot: &Snapshot, text: &str) -> Result<Box<dyn IndexQuery>> {
    let Fields { title, body, .. } = snapshot.fields;
    let mut parser = QueryParser::for_index(snapshot.searcher.index(), vec![title, body]);
    parser.set_conjunction_by_default();
    parser.set_field_boost(title, TITLE_BOOST);
    parser.parse_query(text).map_err(|error| {
        let text = excerpt(text);
        let what = if let QueryParserError::FieldDoesNotExist(field) = &error {
            format!(
                "{text} looks in {field:?}, which is none of title, body, author and source; put in \
                 quotes what has a colon"
            )
        } else if error == QueryParserError::AllButQueryForbidden {
            format!("{text} has only words to leave out, and none to look for")
        } else {
            format!("{text} cannot be read: {error}")
        };
        Error::field(Reason::ArgumentInvalid, "query", what)
    })
}

/// A query among the articles of a selector, up to a sequence.
fn filtered(
    snapshot: &Snapshot,
    query: &SearchQuery,
    text: Box<dyn IndexQuery>,
    sequences: Option<Vec<u64>>,
    as_of: u64,
) -> Box<dyn IndexQuery> {
    let fields = snapshot.fields;
    let selector = &query.selector;
    let mut filters: Vec<Box<dyn IndexQuery>> = Vec::new();
    let sources = selector.sources().iter();
    let mut sources: Vec<Term> = sources
        .map(|source| Term::from_field_text(fields.source, source))
        .collect();
    match (sources.pop(), sources.is_empty()) {
        (None, _) => {}
        (Some(source), true) => {
            filters.push(Box::new(TermQuery::new(source, IndexRecordOption::Basic)));
        }
        (Some(source), false) => {
            sources.push(source);
            filters.push(Box::new(TermSetQuery::new(sources)));
        }
    }
    // A fraction of a second is left to the article itself.
    let second = |second: i64| Term::from_field_i64(fields.published, second);
    let after = selector.published_after().map(Timestamp::seconds);
    let before = selector.published_before().map(Timestamp::seconds);
    if after.is_some() || before.is_some() {
        let lower = after.map_or(Bound::Excluded(second(UNDATED)), |after| {
            Bound::Included(second(after))
        });
        let upper = before.map_or(Bound::Unbounded, |before| Bound::Included(second(before)));
        filters.push(Box::new(RangeQuery::new(lower, upper)));
    }
    let last = selector.max_sequence().min(as_of);
    if selector.min_sequence() > 1 || last < snapshot.sequence {
        let number = |sequence| Bound::Included(Term::from_field_u64(fields.sequence, sequence));
        let range = RangeQuery::new(number(selector.min_sequence()), number(last));
        filters.push(Box::new(range));
    }
    if let Some(sequences) = sequences {
        let terms = sequences.into_iter();
        let terms = terms.map(|sequence| Term::from_field_u64(fields.sequence, sequence));
        filters.push(Box::new(TermSetQuery::new(terms)));
    }
    if filters.is_empty() {
        return text;
    }
    let unscored = |filter| -> (Occur, Box<dyn IndexQuery>) {
        (Occur::Must, Box::new(ConstScoreQuery::new(filter, 0.0)))
    };
    let clauses = filters.into_iter().map(unscored);
    let clauses = [(Occur::Must, text)].into_iter().chain(clauses);
    Box::new(BooleanQuery::new(clauses.collect()))
}

/// Asks the index.
fn find(
    searcher: &Searcher,
    query: &dyn IndexQuery,
    order: HitOrder,
    offset: usize,
    limit: usize,
) -> Result<Found> {
    let top = TopDocs::with_limit(limit).and_offset(offset);
    let (hits, hit_count) = match order {
        HitOrder::Relevance => {
            let top = top.order_by_score();
            searcher.search(query, &(top, Count)).map_err(failed)?
        }
        HitOrder::Published(direction) => {
            let order = match direction {
                Direction::Ascending => Order::Asc,
                Direction::Descending => Order::Desc,
            };
            let top = top.order_by_fast_field::<i64>(PUBLISHED, order);
            let (hits, hit_count) = searcher.search(query, &(top, Count)).map_err(failed)?;
            let unscored = |(_, address): (Option<i64>, DocAddress)| (0.0, address);
            (hits.into_iter().map(unscored).collect(), hit_count)
        }
    };
    let numbered = hits.into_iter().map(|(score, address)| {
        let sequence = sequence_of(searcher, address)?;
        Ok((score, sequence))
    });
    Ok(Found {
        hits: numbered.collect::<Result<_>>()?,
        hit_count: u64::try_from(hit_count).unwrap_or(u64::MAX),
    })
}

fn sequence_of(searcher: &Searcher, address: DocAddress) -> Result<u64> {
    let segment = searcher.segment_reader(address.segment_ord);
    let column = segment.fast_fields().u64(SEQUENCE).map_err(failed)?;
    column.first(address.doc_id).ok_or_else(|| {
        failed(TantivyError::DataCorruption(
            tantivy::error::DataCorruption::comment_only("a document without a sequence"),
        ))
    })
}

/// What is shown of hits.
struct Shown {
    title_words: HashSet<String>,
    snippets: SnippetGenerator,
}

impl Shown {
    fn new(snapshot: &Snapshot, query: &dyn IndexQuery) -> Result<Self> {
        let Fields { title, body, .. } = snapshot.fields;
        let mut title_words = HashSet::new();
        query.query_terms(&mut |term, _| {
            if term.field() == title {
                title_words.extend(term.value().as_str().map(str::to_owned));
            }
        });
        let snippets = SnippetGenerator::create(&snapshot.searcher, query, body);
        let mut snippets = snippets.map_err(failed)?;
        snippets.set_max_num_chars(SNIPPET_CHARS);
        Ok(Self {
            title_words,
            snippets,
        })
    }

    fn hit(&self, article: StoredArticle, score: f32) -> Hit {
        let title = article.article.title();
        let in_title = places(title, |word| self.title_words.contains(word));
        let snippet = self.snippets.snippet(article.article.body());
        Hit {
            score,
            title: parts(title, &in_title),
            snippet: parts(snippet.fragment(), snippet.highlighted()),
            article,
        }
    }
}

/// Cuts a text at the places of what was searched for.
fn parts(text: &str, places: &[Range<usize>]) -> Vec<TextPart> {
    let mut parts = Vec::new();
    let mut add = |range: Range<usize>, is_match| {
        let part = text.get(range).filter(|part| !part.is_empty());
        parts.extend(part.map(|part| TextPart {
            text: part.to_owned(),
            is_match,
        }));
    };
    let mut end = 0;
    for place in places {
        add(end..place.start, false);
        add(place.clone(), true);
        end = place.end;
    }
    add(end..text.len(), false);
    parts
}
