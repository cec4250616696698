//! What table `d` says of all articles, kept in memory in the order of their sequences.
//!
//! A count of all articles by date, or a search for what is like one of them, looks at every article.
//! The engine reads about a million small rows a second; the same facts side by side in memory are
//! looked through in milliseconds. They are read when somebody first asks for them, and take 37 bytes
//! an article from then on; the writer tells of every change. On a replica, where it tells nobody, what
//! came since is read from the log when somebody asks again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::candidates::{INDEX_ROWS, index_scan};
use super::commit::ON_THEIR_WAY_MAX;
use super::reader::advance;
use super::{Archive, Role};
use crate::article::Sketch;
use crate::error::{Error, Reason, Result};
use crate::key::{self, Sequence, SortTime, TABLE_DATE};
use crate::record::{Digest, SourceMark};
use crate::store::Direction;

/// Articles that are copied when one of them changes while somebody looks at them.
const SEGMENT_ARTICLES: usize = 1 << 14;

/// Segments that are looked through before other tasks have their turn.
const PART_SEGMENTS: usize = 16;

/// Records that a replica reads to catch up, instead of table `d` anew.
const CATCH_UP_MAX: Sequence = 10_000;

/// What a batch did to table `d`.
#[derive(Clone, Copy, Debug)]
pub(super) enum DigestChange {
    Add(Sequence, SortTime, Digest),
    Remove(Sequence),
}

/// What is known of an article without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) sequence: Sequence,
    pub(super) time: SortTime,
    pub(super) source: SourceMark,
}

/// Some articles in a row, column by column.
#[derive(Clone, Debug)]
struct Segment {
    is_there: Vec<bool>,
    times: Vec<SortTime>,
    sources: Vec<SourceMark>,
    sketches: Vec<Sketch>,
}

impl Segment {
    fn new() -> Self {
        Self {
            is_there: vec![false; SEGMENT_ARTICLES],
            times: vec![SortTime::UNDATED; SEGMENT_ARTICLES],
            sources: vec![SourceMark::default(); SEGMENT_ARTICLES],
            sketches: vec![Sketch::EMPTY; SEGMENT_ARTICLES],
        }
    }

    fn set(&mut self, at: usize, row: Option<(SortTime, Digest)>) {
        let (time, source, sketch) = match &row {
            Some((time, digest)) => (*time, digest.source, digest.sketch.unwrap_or(Sketch::EMPTY)),
            None => (SortTime::UNDATED, SourceMark::default(), Sketch::EMPTY),
        };
        put(&mut self.is_there, at, row.is_some());
        put(&mut self.times, at, time);
        put(&mut self.sources, at, source);
        put(&mut self.sketches, at, sketch);
    }
}

fn put<T>(column: &mut [T], at: usize, value: T) {
    if let Some(place) = column.get_mut(at) {
        *place = value;
    }
}

/// All articles, from sequence 1.
#[derive(Clone, Debug, Default)]
struct Columns(Vec<Arc<Segment>>);

impl Columns {
    fn apply(&mut self, change: DigestChange) {
        let (sequence, row) = match change {
            DigestChange::Add(sequence, time, digest) => (sequence, Some((time, digest))),
            DigestChange::Remove(sequence) => (sequence, None),
        };
        let Some(at) = sequence
            .checked_sub(1)
            .and_then(|at| usize::try_from(at).ok())
        else {
            return;
        };
        let number = at / SEGMENT_ARTICLES;
        while self.0.len() <= number {
            self.0.push(Arc::new(Segment::new()));
        }
        if let Some(segment) = self.0.get_mut(number) {
            Arc::make_mut(segment).set(at % SEGMENT_ARTICLES, row);
        }
    }
}

#[derive(Debug, Default)]
enum State {
    /// Nobody asked yet.
    #[default]
    Cold,
    /// Table `d` is being read; what is written meanwhile is remembered.
    Loading(Vec<DigestChange>),
    /// Everything up to a sequence; with a writer that tells of every change, it has no end.
    Ready(Columns, Sequence),
}

/// The digests of an archive.
#[derive(Debug, Default)]
pub(super) struct Digests {
    /// Held for moments, and never across an await.
    state: Mutex<State>,
    /// One task reads the table, the others wait for it.
    loading: tokio::sync::Mutex<()>,
}

impl Digests {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes up what a batch did, once it is durable and before it is told to readers.
    pub(super) fn apply(&self, changes: Vec<DigestChange>) {
        match &mut *self.state() {
            State::Cold => {}
            State::Loading(pending) => pending.extend(changes),
            State::Ready(columns, _) => {
                for change in changes {
                    columns.apply(change);
                }
            }
        }
    }

    /// Forgets everything, because table `d` was changed otherwise.
    pub(super) fn forget(&self) {
        *self.state() = State::Cold;
    }

    /// What there is, and the sequence up to which it is complete.
    fn ready(&self) -> Option<(Columns, Sequence)> {
        match &*self.state() {
            State::Ready(columns, to) => Some((columns.clone(), *to)),
            State::Cold | State::Loading(_) => None,
        }
    }

    /// Takes up what the log says of all sequences up to one, unless everything was forgotten meanwhile.
    pub(super) fn catch_up(&self, changes: Vec<DigestChange>, read_to: Sequence) {
        if let State::Ready(columns, to) = &mut *self.state() {
            for change in changes {
                columns.apply(change);
            }
            *to = read_to;
        }
    }

    /// Makes what was read the state to go on from, unless it is out of date.
    fn finish(&self, mut columns: Columns, to: Sequence) {
        let mut state = self.state();
        if let State::Loading(pending) = &mut *state {
            for change in std::mem::take(pending) {
                columns.apply(change);
            }
            *state = State::Ready(columns, to);
        }
    }
}

/// The digests of all articles at one moment.
#[derive(Debug)]
pub(super) struct DigestView {
    columns: Columns,
    /// The last durable sequence at that moment.
    pub(super) as_of: Sequence,
}

impl DigestView {
    /// All articles in the order of their arrival.
    pub(super) fn articles(&self) -> impl Iterator<Item = Known> {
        self.segments().flat_map(|(first, segment)| {
            let columns = segment.is_there.iter().zip(&segment.times);
            let columns = columns.zip(&segment.sources).zip(first..);
            columns.filter(|(((is_there, _), _), _)| **is_there).map(
                |(((_, time), source), sequence)| Known {
                    sequence,
                    time: *time,
                    source: *source,
                },
            )
        })
    }

    /// All articles in the order of their arrival, in parts that take a moment to look through.
    pub(super) fn parts(&self) -> impl Iterator<Item = Part<'_>> {
        let firsts = (1..).step_by(PART_SEGMENTS * SEGMENT_ARTICLES);
        let parts = self.columns.0.chunks(PART_SEGMENTS).zip(firsts);
        parts.map(|(segments, first)| Part { first, segments })
    }

    fn segments(&self) -> impl Iterator<Item = (Sequence, &Segment)> {
        let firsts = (1..).step_by(SEGMENT_ARTICLES);
        firsts.zip(self.columns.0.iter().map(|segment| &**segment))
    }
}

/// Some of the articles of a view.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part<'a> {
    first: Sequence,
    segments: &'a [Arc<Segment>],
}

impl<'a> Part<'a> {
    /// The articles whose sketches have so many bits in common with one.
    pub(super) fn alike(
        self,
        sketch: Sketch,
        equal_bits_min: u32,
    ) -> impl Iterator<Item = Sequence> + use<'a> {
        let sketches = self.segments.iter().flat_map(|segment| &segment.sketches);
        let numbered = sketches.zip(self.first..);
        numbered
            .filter(move |(other, _)| sketch.equal_bits(**other) >= equal_bits_min)
            .map(|(_, sequence)| sequence)
    }
}

impl Archive {
    /// Reads into memory what timelines and searches for near copies look through, so that the first
    /// of them need not wait for it.
    ///
    /// # Errors
    /// `StoreFailed`.
    pub async fn load_digests(&self) -> Result<()> {
        self.digests().await.map(drop)
    }

    /// The digests of all articles, read from the table if nobody asked before.
    ///
    /// # Errors
    /// `StoreFailed`.
    pub(super) async fn digests(&self) -> Result<DigestView> {
        let digests = &self.inner.digests;
        loop {
            // In this order: what is committed is in the columns.
            let as_of = self.committed();
            if let Some((columns, to)) = digests.ready()
                && to >= as_of
            {
                return Ok(DigestView { columns, as_of });
            }
            let _alone = digests.loading.lock().await;
            let to = digests.ready().map(|(_, to)| to);
            if let Some(to) = to.filter(|to| as_of.saturating_sub(*to) <= CATCH_UP_MAX) {
                if to < as_of {
                    self.follow_digests(to, as_of).await?;
                }
            } else {
                // A task of its own: a caller who goes away must not end it for all others.
                let archive = self.clone();
                let loading = tokio::spawn(async move {
                    let digests = &archive.inner.digests;
                    *digests.state() = State::Loading(Vec::new());
                    let to = match archive.role() {
                        Role::Writer => Sequence::MAX,
                        Role::Replica => archive.committed(),
                    };
                    let read = archive.read_digests(to).await;
                    let columns = read.inspect_err(|_| digests.forget())?;
                    digests.finish(columns, to);
                    Ok(())
                });
                let loaded = loading.await.map_err(|panic| {
                    digests.forget();
                    Error::new(Reason::Internal, "reading table d panicked").with_source(panic)
                });
                loaded??;
            }
        }
    }

    /// Reads table `d` up to a sequence. Rows that are not durable yet come with it, and are left out by
    /// `as_of`.
    async fn read_digests(&self, to: Sequence) -> Result<Columns> {
        let mut columns = Columns::default();
        let mut range = key::prefix_range(&[TABLE_DATE]);
        loop {
            let scan = index_scan(range.clone(), Direction::Ascending, INDEX_ROWS);
            let chunk = self.scan_one(scan).await?;
            // A row can be there before its batch is durable, but only so many are on their way.
            let ahead = ON_THEIR_WAY_MAX + self.inner.limits.group_articles_max;
            let ahead = u64::try_from(ahead).unwrap_or(u64::MAX);
            let last = self.committed().saturating_add(ahead);
            for row in &chunk.rows {
                match (key::parse_dated(&row.key), Digest::decode(&row.value)) {
                    (Some((_, sequence)), _) if sequence > to => {}
                    (Some((time, sequence)), Ok(digest)) if sequence <= last => {
                        columns.apply(DigestChange::Add(sequence, time, digest));
                    }
                    // A check will tell, and a repair mend it.
                    (_, digest) => {
                        tracing::error!(key = ?row.key, ?digest, "a damaged row in table d");
                    }
                }
            }
            if !advance(&mut range, &chunk) {
                return Ok(columns);
            }
        }
    }
}
