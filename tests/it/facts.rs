//! What a naive model of an archive knows: facts about articles, and filter and sort over them. It
//! knows nothing of how they are stored.

use std::cmp::Ordering;

use pressmark::archive::{Limits, Order, PageBudget, Selector, SelectorFields, View};
use pressmark::article::{ArticleFields, ContentHash, Timestamp};
use pressmark::key::Sequence;
use pressmark::store::Direction;
use rand::RngExt;
use rand::rngs::StdRng;

use crate::support::{SOURCES, noise};

/// URLs that the articles of the model share, each written in two ways.
pub const URL_COUNT: usize = 6;
/// Short bodies that the articles of the model share. Numbers from here on are long bodies.
pub const BODY_COUNT: usize = 8;

/// Bytes of a long body: several rows of the log, whatever compression makes of it.
const LONG_BODY_BYTES: usize = 200_000;

/// What the model knows of an article: facts to filter and sort by, nothing of how they are stored.
#[derive(Clone, Debug)]
pub struct Known {
    pub sequence: Sequence,
    pub source: usize,
    pub published_at: Option<Timestamp>,
    pub url: Option<usize>,
    pub body: usize,
}

impl Known {
    /// An article that is not stored yet.
    pub fn random(random: &mut StdRng) -> Self {
        Self {
            sequence: 0,
            source: random.random_range(0..SOURCES.len()),
            published_at: random.random_bool(0.85).then(|| random_date(random)),
            url: random
                .random_bool(0.8)
                .then(|| random.random_range(0..URL_COUNT)),
            body: random.random_range(0..BODY_COUNT),
        }
    }

    /// Makes the article; its title tells it from others with the same facts.
    pub fn fields(&self, title: String, random: &mut StdRng) -> ArticleFields {
        let url = self.url.map(|url| url_text(url, random));
        ArticleFields {
            title,
            published_at: self.published_at,
            author: String::new(),
            source: SOURCES[self.source].into(),
            url: url.unwrap_or_default(),
            body: body_text(self.body),
        }
    }

    /// Where it stands beside another one in an order.
    pub fn compare(&self, other: &Self, order: Order) -> Ordering {
        let by_sequence = self.sequence.cmp(&other.sequence);
        // Nothing sorts before something, as undated articles do before dated ones.
        let by_date = self.published_at.cmp(&other.published_at).then(by_sequence);
        match order {
            Order::Published(Direction::Ascending) => by_date,
            Order::Published(Direction::Descending) => by_date.reverse(),
            Order::Arrival(Direction::Ascending) => by_sequence,
            Order::Arrival(Direction::Descending) => by_sequence.reverse(),
        }
    }
}

/// A selector in the words of the model.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    sources: Vec<usize>,
    after: Option<Timestamp>,
    before: Option<Timestamp>,
    url: Option<usize>,
    body: Option<usize>,
    min_sequence: Sequence,
    max_sequence: Sequence,
}

impl Wanted {
    pub fn random(random: &mut StdRng) -> Self {
        let mut wanted = Self::default();
        if random.random_bool(0.5) {
            wanted.sources = (0..SOURCES.len())
                .filter(|_| random.random_bool(0.5))
                .collect();
        }
        let mut dates = [random_date(random), random_date(random)];
        dates.sort_unstable();
        wanted.after = random.random_bool(0.3).then_some(dates[0]);
        wanted.before = random.random_bool(0.3).then_some(dates[1]);
        wanted.url = random
            .random_bool(0.2)
            .then(|| random.random_range(0..URL_COUNT));
        wanted.body = random
            .random_bool(0.2)
            .then(|| random.random_range(0..BODY_COUNT));
        if random.random_bool(0.2) {
            wanted.min_sequence = random.random_range(0..200);
        }
        if random.random_bool(0.2) {
            wanted.max_sequence = wanted.min_sequence + random.random_range(1..200);
        }
        wanted
    }

    pub fn selector(&self, random: &mut StdRng) -> Selector {
        let fields = SelectorFields {
            sources: self
                .sources
                .iter()
                .map(|source| SOURCES[*source].to_owned())
                .collect(),
            published_after: self.after,
            published_before: self.before,
            url: self
                .url
                .map(|url| url_text(url, random))
                .unwrap_or_default(),
            body_hash: self.body.map(body_hash).unwrap_or_default(),
            min_sequence: self.min_sequence,
            max_sequence: self.max_sequence,
        };
        Selector::new(fields, &Limits::default()).unwrap()
    }

    fn means(&self, known: &Known) -> bool {
        let date = known.published_at;
        (self.sources.is_empty() || self.sources.contains(&known.source))
            && self
                .after
                .is_none_or(|after| date.is_some_and(|date| date >= after))
            && self
                .before
                .is_none_or(|before| date.is_some_and(|date| date < before))
            && (self.url.is_none() || known.url == self.url)
            && self.body.is_none_or(|body| known.body == body)
            && known.sequence >= self.min_sequence
            && (self.max_sequence == 0 || known.sequence <= self.max_sequence)
    }

    /// The articles that are meant, in their order.
    pub fn expected<'a>(
        &self,
        model: impl IntoIterator<Item = &'a Known>,
        order: Order,
    ) -> Vec<&'a Known> {
        let meant = model.into_iter().filter(|known| self.means(known));
        let mut meant: Vec<&Known> = meant.collect();
        meant.sort_by(|a, b| a.compare(b, order));
        meant
    }
}

/// One of few dates, so that many articles share theirs; some differ in nanoseconds only, and some
/// are before 1970.
fn random_date(random: &mut StdRng) -> Timestamp {
    let seconds = i64::from(random.random_range(-3..12)) * 40_000;
    let nanos = random.random_range(0..2);
    Timestamp::new("time", seconds, nanos).unwrap()
}

pub fn url_text(url: usize, random: &mut StdRng) -> String {
    if random.random_bool(0.5) {
        format!("https://news.example/{url}")
    } else {
        format!("https://NEWS.example/{url}?utm_source=feed#top")
    }
}

fn body_text(body: usize) -> String {
    if body >= BODY_COUNT {
        return noise(body as u32, LONG_BODY_BYTES);
    }
    format!("Body {body}. ").repeat(10 * body)
}

fn body_hash(body: usize) -> String {
    ContentHash::of(body_text(body).as_bytes()).to_string()
}

/// Pages of few articles, many of them also of few bytes.
pub fn budget(random: &mut StdRng) -> PageBudget {
    let view = if random.random_bool(0.5) {
        View::Head
    } else {
        View::Full
    };
    let bytes_max = if random.random_bool(0.5) {
        usize::MAX
    } else {
        random.random_range(1..6000)
    };
    PageBudget {
        view,
        articles_max: random.random_range(1..20),
        bytes_max,
    }
}
