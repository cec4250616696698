//! Corpora whose names for fields clash with those of others.

use std::str::FromStr;

use super::date::DayOrder;
use super::fields::Field;
use super::one_of;
use crate::error::{Error, Result};

/// A corpus whose names clash with those of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    name: &'static str,
    pub(super) names: &'static [(Field, &'static str)],
    pub(super) day_order: DayOrder,
}

const fn profile(name: &'static str, names: &'static [(Field, &'static str)]) -> Profile {
    Profile {
        name,
        names,
        day_order: DayOrder::Unknown,
    }
}

const PROFILES: [Profile; 9] = [
    profile(
        "news-please",
        &[
            (Field::Body, "maintext"),
            (Field::PublishedAt, "date_publish"),
            (Field::Author, "authors"),
            (Field::Source, "source_domain"),
        ],
    ),
    // Its `source` is the URL.
    profile(
        "trafilatura",
        &[
            (Field::Body, "text"),
            (Field::PublishedAt, "date"),
            (Field::Source, "sitename"),
            (Field::Source, "hostname"),
            (Field::Url, "source"),
            (Field::Url, "url"),
        ],
    ),
    profile(
        "newsapi",
        &[
            (Field::Body, "content"),
            (Field::PublishedAt, "publishedAt"),
            (Field::Source, "source.name"),
        ],
    ),
    // Its `published` is the text that the site had, in any notation.
    profile(
        "nela-gt",
        &[
            (Field::Body, "content"),
            (Field::PublishedAt, "published_utc"),
            (Field::PublishedAt, "date"),
            (Field::Source, "source"),
        ],
    ),
    Profile {
        name: "realnews",
        names: &[
            (Field::Body, "text"),
            (Field::PublishedAt, "publish_date"),
            (Field::Author, "authors"),
            (Field::Source, "domain"),
        ],
        day_order: DayOrder::MonthFirst,
    },
    profile(
        "all-the-news",
        &[
            (Field::Body, "article"),
            (Field::Body, "content"),
            (Field::PublishedAt, "date"),
            (Field::Source, "publication"),
        ],
    ),
    profile(
        "cc_news",
        &[
            (Field::Body, "text"),
            (Field::PublishedAt, "date"),
            (Field::Source, "domain"),
        ],
    ),
    profile(
        "webhose",
        &[
            (Field::Body, "text"),
            (Field::PublishedAt, "published"),
            (Field::Source, "thread.site"),
        ],
    ),
    // The only dates that it has are those of its crawler.
    profile(
        "fakenewscorpus",
        &[
            (Field::Body, "content"),
            (Field::PublishedAt, ""),
            (Field::Author, "authors"),
            (Field::Source, "domain"),
        ],
    ),
];

impl FromStr for Profile {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        one_of(
            "profile",
            text,
            &PROFILES.map(|profile| (profile.name, profile)),
        )
    }
}
