//! From a query to hits: its syntax, the selector as filters, pages, and what is shown of each hit.

use std::collections::HashSet;
use std::ops::{Bound, Range};
use std::sync::Arc;

use tantivy::collector::{Count, TopDocs};
use tantivy::query::{
    BooleanQuery, ConstScoreQuery, Occur, Query as IndexQuery, QueryParser, QueryParserError,
    RangeQuery, TermQuery, TermSetQuery,
};
use tantivy::schema::IndexRecordOption;
use tantivy::snippet::SnippetGenerator;
use tantivy::{DocAddress, DocId, Searcher, SegmentReader, TantivyError, Term};

use super::index::{Fields, PUBLISHED, SEQUENCE, Snapshot, UNDATED};
use super::words::places;
use super::{Hit, HitOrder, Hits, SearchQuery, Shared, TextPart, failed};
use crate::archive::token::{self, Fingerprint};
use crate::archive::{Direction, Order as ArticleOrder, PageBudget, Query, Room, StoredArticle};
use crate::article::Timestamp;
use crate::error::{Error, Reason, Result, excerpt};

/// How much more a word in the title counts than one in the body.
const TITLE_BOOST: f32 = 3.0;

/// Characters of a snippet.
const SNIPPET_CHARS: usize = 200;

/// Articles that are read at a time for a page, and bytes of their texts after which it ends: bodies
/// are read for the snippets even if they are not returned.
const READ_ARTICLES: usize = 32;
const READ_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Parentheses in a query. The parser calls itself for each, and the stack has an end.
const PARENTHESES_MAX: usize = 32;

/// What a part of a text takes in a message besides it.
const PART_BYTES: usize = 8;

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
    if cursor.as_of > snapshot.sequence {
        let what = format!(
            "the search index has the log up to sequence {}, and the page before up to {}",
            snapshot.sequence, cursor.as_of
        );
        return Err(Error::new(Reason::SearchBehind, what));
    }
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
    let shown = Arc::new(Shown::new(&snapshot, &*text)?);
    let mut room = Room::new(budget);
    let mut hits = Vec::new();
    let mut looked_at = 0;
    let mut read_bytes = 0;
    'page: for some in found.hits.chunks(READ_ARTICLES) {
        let sequences: Vec<u64> = some.iter().map(|(_, sequence)| *sequence).collect();
        let articles = shared.archive.articles_at(&sequences).await?;
        // What was deleted since is left out, and so is what the filters could not tell.
        let meant = articles.into_iter().map(|article| {
            article.filter(|stored| query.selector.matches(stored.sequence, &stored.article))
        });
        let scored: Vec<_> = some.iter().map(|(score, _)| *score).zip(meant).collect();
        let shown = Arc::clone(&shown);
        let showing = move || Ok(shown.hits(scored));
        for hit in blocking(shared, showing).await? {
            if let Some((hit, text_bytes)) = hit {
                if read_bytes > READ_BYTES_MAX || !room.take(&hit.article.article) {
                    break 'page;
                }
                read_bytes += text_bytes;
                let parts = hit.title.iter().chain(&hit.snippet);
                room.take_bytes(parts.map(|part| part.text.len() + PART_BYTES).sum());
                hits.push(hit);
            }
            looked_at += 1;
        }
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
    let turn = Arc::clone(&shared.searches).acquire_owned().await;
    let turn = turn.map_err(closed)?;
    // A caller who goes away ends nothing, so the turn goes with the work.
    let working = move || {
        let done = work();
        drop(turn);
        done
    };
    let done = tokio::task::spawn_blocking(working).await;
    // The index may be as good as before, and another query will do.
    done.map_err(|panic| Error::new(Reason::Internal, "the search panicked").with_source(panic))?
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
    let depth = text.bytes().filter(|byte| b"([{".contains(byte)).count();
    if depth > PARENTHESES_MAX {
        let what = format!("{depth} opening parentheses, the limit is {PARENTHESES_MAX}");
        return Err(Error::field(Reason::ArgumentInvalid, "query", what));
    }
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
            searcher.search(query, &(top, Count)).map_err(refused)?
        }
        HitOrder::Published(direction) => {
            let top = top.order_by(by_date(direction));
            let (hits, hit_count) = searcher.search(query, &(top, Count)).map_err(refused)?;
            let unscored = |(_, address): ((i64, u64), DocAddress)| (0.0, address);
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

/// An error of a search: that of a query which the index has no answer to, or of the index.
fn refused(error: TantivyError) -> Error {
    let is_of_query = matches!(
        error,
        TantivyError::InvalidArgument(_)
            | TantivyError::SchemaError(_)
            | TantivyError::FieldNotFound(_)
    );
    if is_of_query {
        return Error::field(Reason::ArgumentInvalid, "query", error.to_string());
    }
    failed(error)
}

/// The order of documents by date, the largest first; those of one second by arrival, so that no merge
/// of segments changes a page.
fn by_date(
    direction: Direction,
) -> impl Fn(&SegmentReader) -> Box<dyn Fn(DocId) -> (i64, u64) + Send + Sync> + Send + Sync + Clone
{
    move |segment| {
        let columns = segment.fast_fields();
        let (times, sequences) = (columns.i64(PUBLISHED).ok(), columns.u64(SEQUENCE).ok());
        Box::new(move |document| {
            let time = times.as_ref().and_then(|times| times.first(document));
            let sequence = sequences.as_ref().and_then(|column| column.first(document));
            let (time, sequence) = (time.unwrap_or(UNDATED), sequence.unwrap_or_default());
            match direction {
                Direction::Descending => (time, sequence),
                // The complement turns an order round.
                Direction::Ascending => (!time, !sequence),
            }
        })
    }
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
        let mut snippets = snippets.map_err(refused)?;
        snippets.set_max_num_chars(SNIPPET_CHARS);
        Ok(Self {
            title_words,
            snippets,
        })
    }

    /// What is shown of some articles, and how long their texts are.
    fn hits(&self, scored: Vec<(f32, Option<StoredArticle>)>) -> Vec<Option<(Hit, usize)>> {
        let hit = |(score, article): (f32, Option<StoredArticle>)| {
            let article = article?;
            let text_bytes = article.article.text_bytes();
            Some((self.hit(article, score), text_bytes))
        };
        scored.into_iter().map(hit).collect()
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
