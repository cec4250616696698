//! Copies of an article: the same body printed elsewhere, and bodies with small edits.
//!
//! Exact copies are the rows of one body in table `b`. Near copies are found in two steps: the
//! sketches of all articles are compared, which leaves the few that may be alike enough, and those
//! are read and compared word by word, so that no answer is a guess.

use super::Archive;
use super::digests::DigestView;
use super::read::StoredArticle;
use super::reader::FETCH_RECORDS;
use super::scan::{PageBudget, Room};
use super::selector::{Order, Query, Selector, SelectorFields};
use super::token::{self, Fingerprint};
use crate::article::{ContentHash, Shingles, Sketch, equal_bits_min};
use crate::error::{Error, Reason, Result};
use crate::key::{NearCopies, Sequence};
use crate::record::Record;
use crate::store::Direction;

/// How alike near copies are at least if nobody says.
pub const SIMILARITY_DEFAULT: f64 = 0.6;

/// The least similarity that may be asked for. Below it, sketches tell too little.
pub const SIMILARITY_MIN: f64 = 0.5;

/// Of which article copies are wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CopiesQuery {
    /// Its id.
    pub id: ContentHash,
    /// How alike they have to be, from 0.5 to 1, where 1 is the same body. If nobody says, near copies
    /// are as alike as [`SIMILARITY_DEFAULT`], and an archive without sketches answers with exact
    /// ones.
    pub similarity_min: Option<f64>,
}

/// A copy of an article.
#[derive(Clone, Debug, PartialEq)]
pub struct CopyOf {
    /// The share of the three-word sequences of both bodies that both have; 1 for the same body.
    pub similarity: f64,
    /// Whether it has the same body, byte for byte.
    pub is_exact: bool,
    /// The copy.
    pub article: StoredArticle,
}

/// A page of copies.
#[derive(Clone, Debug, PartialEq)]
pub struct Copies {
    /// The copies, in the order of their arrival; not the article itself.
    pub copies: Vec<CopyOf>,
    /// Leads to the next page; none after the last.
    pub next_token: Option<String>,
    /// The pages hold no article behind this sequence.
    pub as_of: Sequence,
    /// Whether near copies were looked for.
    pub with_near: bool,
}

/// Where a page of near copies begins.
#[derive(Clone, Copy, Debug)]
struct Cursor {
    as_of: Sequence,
    after: Sequence,
}

impl Cursor {
    fn encode(self) -> Vec<u8> {
        [self.as_of.to_be_bytes(), self.after.to_be_bytes()].concat()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (as_of, after) = bytes.split_first_chunk()?;
        Some(Self {
            as_of: Sequence::from_be_bytes(*as_of),
            after: Sequence::from_be_bytes(after.try_into().ok()?),
        })
    }
}

impl Archive {
    /// Reads the copies of an article, from the place that a token of the same query leads to.
    ///
    /// # Errors
    /// Those of [`get`](Self::get) for the article itself; `ArgumentInvalid` if the similarity is
    /// none; `NearCopiesOff` if the archive has no sketches and the similarity is below 1;
    /// `PageTokenInvalid`, `PageTokenMismatch`.
    pub async fn copies(
        &self,
        query: &CopiesQuery,
        token: &str,
        budget: &PageBudget,
    ) -> Result<Copies> {
        let similarity_min = self.similarity_min(query.similarity_min)?;
        let original = self.get(&query.id).await?;
        let sketch = Sketch::of(original.article.body());
        match similarity_min {
            Some(least) if sketch != Sketch::EMPTY => {
                let original = (&original, sketch);
                self.near_copies_of(original, least, token, budget).await
            }
            with_near => {
                let copies = self.exact_copies_of(&original, token, budget).await?;
                Ok(Copies {
                    with_near: with_near.is_some(),
                    ..copies
                })
            }
        }
    }

    /// The least similarity of near copies; none if only exact ones are wanted.
    fn similarity_min(&self, asked: Option<f64>) -> Result<Option<f64>> {
        let is_on = self.near_copies() == NearCopies::On;
        match asked {
            None => Ok(is_on.then_some(SIMILARITY_DEFAULT)),
            Some(asked) if !(SIMILARITY_MIN..=1.0).contains(&asked) => {
                let what = format!("{asked} is not {SIMILARITY_MIN} to 1");
                Err(Error::field(
                    Reason::ArgumentInvalid,
                    "similarity_min",
                    what,
                ))
            }
            Some(asked) if asked < 1.0 => {
                if is_on {
                    return Ok(Some(asked));
                }
                let what = "near copies are switched off in this archive; start its server with \
                            --near-copies on, or ask for a similarity of 1";
                Err(Error::new(Reason::NearCopiesOff, what))
            }
            Some(_) => Ok(None),
        }
    }

    async fn exact_copies_of(
        &self,
        original: &StoredArticle,
        token: &str,
        budget: &PageBudget,
    ) -> Result<Copies> {
        let fields = SelectorFields {
            body_hash: original.article.body_hash().to_string(),
            ..SelectorFields::default()
        };
        let query = Query {
            selector: Selector::new(fields, &self.inner.limits)?,
            order: Order::Arrival(Direction::Ascending),
        };
        let page = self.page(&query, token, budget).await?;
        let others = page.articles.into_iter();
        let others = others.filter(|article| article.id != original.id);
        Ok(Copies {
            copies: others
                .map(|article| CopyOf {
                    similarity: 1.0,
                    is_exact: true,
                    article,
                })
                .collect(),
            next_token: page.next_token,
            as_of: page.as_of,
            with_near: false,
        })
    }

    async fn near_copies_of(
        &self,
        (original, sketch): (&StoredArticle, Sketch),
        least: f64,
        token: &str,
        budget: &PageBudget,
    ) -> Result<Copies> {
        let fingerprint = fingerprint(&original.id, least);
        let view = self.digests().await?;
        let mut cursor = Cursor {
            as_of: view.as_of,
            after: 0,
        };
        if !token.is_empty() {
            let position = token::decode(token, fingerprint)?;
            cursor = Cursor::decode(&position).ok_or_else(|| {
                Error::field(Reason::PageTokenInvalid, "page_token", "holds no position")
            })?;
        }
        let candidates = candidates(&view, sketch, least, cursor).await;
        let others = candidates.into_iter();
        let others: Vec<Sequence> = others
            .filter(|sequence| *sequence != original.sequence)
            .collect();
        let shingles = Shingles::of(original.article.body());
        let mut room = Room::new(budget);
        let mut copies = Vec::new();
        let mut next = None;
        'page: for (some, examined) in others.chunks(FETCH_RECORDS).zip(1..) {
            let heads = self.reader().heads(some).await?;
            for (sequence, head) in some.iter().zip(heads) {
                let is_enough = examined * FETCH_RECORDS > self.inner.limits.page_examined_max;
                if room.is_full() || is_enough {
                    next = Some(cursor);
                    break 'page;
                }
                let record = self.reader().complete(*sequence, head).await?;
                if let Some(copy) = copy_of(original, &shingles, least, *sequence, record) {
                    if !room.take(&copy.article.article) {
                        next = Some(cursor);
                        break 'page;
                    }
                    copies.push(copy);
                }
                cursor.after = *sequence;
            }
        }
        Ok(Copies {
            copies,
            next_token: next.map(|cursor| token::encode(fingerprint, &cursor.encode())),
            as_of: cursor.as_of,
            with_near: true,
        })
    }
}

/// The sequences of articles that may be alike enough, behind a cursor.
async fn candidates(
    view: &DigestView,
    sketch: Sketch,
    least: f64,
    cursor: Cursor,
) -> Vec<Sequence> {
    let bits = equal_bits_min(least);
    let mut found = Vec::new();
    for segments in view.parts() {
        let alike = segments.alike(sketch, bits);
        found.extend(alike.filter(|sequence| {
            *sequence > cursor.after && *sequence <= cursor.as_of.min(view.as_of)
        }));
        tokio::task::yield_now().await;
    }
    found
}

/// The copy that a record is, if it is one.
fn copy_of(
    original: &StoredArticle,
    shingles: &Shingles,
    least: f64,
    sequence: Sequence,
    record: Record,
) -> Option<CopyOf> {
    let article = StoredArticle::of(sequence, record)?;
    let is_exact = article.article.body() == original.article.body();
    let similarity = if is_exact {
        1.0
    } else {
        shingles.similarity(&Shingles::of(article.article.body()))
    };
    (similarity >= least).then_some(CopyOf {
        similarity,
        is_exact,
        article,
    })
}

fn fingerprint(id: &ContentHash, least: f64) -> Fingerprint {
    let query = [
        b"near copies".as_slice(),
        id.as_bytes(),
        &least.to_bits().to_be_bytes(),
    ];
    Fingerprint::of(&query.concat())
}
