//! Rows that are durable in frames and not yet in the engine, as readers find them: two layers in
//! memory, the newest, which commits add to, and an older one, which is being brought into the engine.
//!
//! A reader looks here first and then in the engine. No row may come into the engine in between, or it
//! would see half of a batch, or the place of a value that is gone. So whoever reads says so, and a
//! layer is brought into the engine only when everybody who may not have seen it here has ended.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::iter::Peekable;
use std::ops::{Bound, Range};
use std::sync::atomic::{AtomicUsize, Ordering as AtomicOrdering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;

use super::Direction;
use super::frames::{Frame, Place, Placed};

/// What a row takes in memory besides its bytes, about.
const ROW_BYTES: usize = 96;

/// What became of a row: its value, or none if it was removed.
pub(super) type Entry = (Bytes, Option<Bytes>);

/// A row that the layers know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Known {
    Value(Bytes),
    Removed,
}

impl Known {
    #[expect(clippy::ref_option, reason = "that is what a layer has")]
    fn of(row: &Option<Placed>) -> Self {
        row.as_ref()
            .map_or(Self::Removed, |placed| Self::Value(placed.value.clone()))
    }

    pub(super) fn into_value(self) -> Option<Bytes> {
        match self {
            Self::Value(value) => Some(value),
            Self::Removed => None,
        }
    }
}

/// The rows of some batches, of each the last change.
#[derive(Debug, Default)]
pub(super) struct Layer {
    rows: BTreeMap<Bytes, Option<Placed>>,
    replacing: Vec<Bytes>,
    replaced: Vec<Place>,
    bytes: usize,
    batch_count: u64,
    end: u64,
}

impl Layer {
    /// Takes the changes of the next batch.
    pub(super) fn add(&mut self, frame: Frame) {
        // Only a batch that removes something writes over values that have places; all others add
        // rows, and write over short ones.
        let replaces = frame.changes.iter().any(|(_, value)| value.is_none());
        self.batch_count += 1;
        self.end = frame.end;
        for (key, value) in frame.changes {
            let value_bytes = value.as_ref().map_or(0, |placed| placed.value.len());
            self.bytes += key.len() + value_bytes + ROW_BYTES;
            if replaces {
                self.replacing.push(key.clone());
            }
            let before = self.rows.insert(key, value).flatten();
            if replaces {
                self.replaced.extend(before.and_then(|placed| placed.place));
            }
        }
    }

    /// The rows in the order of their keys.
    pub(super) fn rows(&self) -> &BTreeMap<Bytes, Option<Placed>> {
        &self.rows
    }

    /// The keys whose values in the engine have to be erased.
    pub(super) fn replacing(&self) -> &[Bytes] {
        &self.replacing
    }

    /// Values of this layer that were removed or written over in it, and have to be erased.
    pub(super) fn replaced(&self) -> &[Place] {
        &self.replaced
    }

    /// How much memory it takes, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many batches are in it.
    pub(super) fn batch_count(&self) -> u64 {
        self.batch_count
    }

    /// Where the frame of its last batch ends.
    pub(super) fn end(&self) -> u64 {
        self.end
    }
}

/// Both layers.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    /// A std lock, because it is held for map operations only and never across an await.
    layers: RwLock<Layers>,
    /// Counts the turns.
    turns: AtomicUsize,
    /// Held shared by readers: the first by those who began at an even count, the second by the others.
    readers: [RwLock<()>; 2],
}

#[derive(Debug, Default)]
struct Layers {
    newest: Layer,
    older: Option<Arc<Layer>>,
}

impl Overlay {
    fn read(&self) -> RwLockReadGuard<'_, Layers> {
        self.layers.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Layers> {
        self.layers.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Announces a reader, before it looks here, until it has looked in the engine.
    pub(super) fn reading(&self) -> RwLockReadGuard<'_, ()> {
        loop {
            let turns = self.turns.load(AtomicOrdering::SeqCst);
            let readers = self.readers(turns).read();
            let readers = readers.unwrap_or_else(PoisonError::into_inner);
            if self.turns.load(AtomicOrdering::SeqCst) == turns {
                return readers;
            }
        }
    }

    /// Waits for the readers that began before the last turn. Others are not held up.
    pub(super) fn wait_for_readers(&self) {
        let turns = self.turns.fetch_add(1, AtomicOrdering::SeqCst);
        let readers = self.readers(turns).write();
        drop(readers.unwrap_or_else(PoisonError::into_inner));
    }

    fn readers(&self, turns: usize) -> &RwLock<()> {
        let [even, odd] = &self.readers;
        if turns.is_multiple_of(2) { even } else { odd }
    }

    /// Shows a batch to readers, all of it at once. Returns how much memory the newest layer takes then,
    /// about.
    pub(super) fn add(&self, frame: Frame) -> usize {
        let newest = &mut self.write().newest;
        newest.add(frame);
        newest.bytes
    }

    /// How much memory the newest layer takes, about.
    pub(super) fn newest_bytes(&self) -> usize {
        self.read().newest.bytes
    }

    /// How much memory both layers take, about.
    pub(super) fn bytes(&self) -> usize {
        let layers = self.read();
        layers.newest.bytes + layers.older.as_ref().map_or(0, |older| older.bytes)
    }

    /// Makes the newest layer the older one, unless it is empty. There must be no older one. Call
    /// [`Overlay::wait_for_readers`] before its rows go into the engine.
    pub(super) fn turn(&self) -> Option<Arc<Layer>> {
        let mut layers = self.write();
        if layers.newest.batch_count == 0 {
            return None;
        }
        let layer = Arc::new(std::mem::take(&mut layers.newest));
        layers.older = Some(Arc::clone(&layer));
        Some(layer)
    }

    /// Lets go of the older layer, whose rows are in the engine.
    pub(super) fn forget_older(&self) {
        let older = self.write().older.take();
        // Freeing thousands of rows is nothing to hold the lock for.
        drop(older);
    }

    /// What became of some rows, in the order of their keys; none where the engine has to be asked.
    pub(super) fn get_many(&self, keys: &[Vec<u8>]) -> Vec<Option<Known>> {
        let layers = self.read();
        let layers: Vec<&BTreeMap<Bytes, Option<Placed>>> = layers.maps().collect();
        let get = |key: &Vec<u8>| layers.iter().find_map(|rows| rows.get(key.as_slice()));
        keys.iter().map(|key| get(key).map(Known::of)).collect()
    }

    /// The first rows of a range in a direction, at most so many, and what is left of the range behind
    /// them.
    pub(super) fn part(
        &self,
        range: Range<Vec<u8>>,
        direction: Direction,
        rows_max: usize,
    ) -> Part {
        let layers = self.read();
        let mut entries: Vec<Entry> = Vec::new();
        if range.is_empty() || layers.is_empty() {
            return Part::last(entries, range);
        }
        let bounds = || {
            let (start, end) = (range.start.as_slice(), range.end.as_slice());
            (Bound::Included(start), Bound::Excluded(end))
        };
        let clone =
            |(key, row): (&Bytes, &Option<Placed>)| (key.clone(), Known::of(row).into_value());
        let newest = layers.newest.rows.range::<[u8], _>(bounds());
        let older = layers.older.iter();
        let older = older.flat_map(|older| older.rows.range::<[u8], _>(bounds()));
        let mut rows: Box<dyn Iterator<Item = Entry>> = match direction {
            Direction::Ascending => Box::new(Merged {
                newer: newest.map(clone).peekable(),
                older: older.map(clone).peekable(),
                direction,
            }),
            Direction::Descending => Box::new(Merged {
                newer: newest.rev().map(clone).peekable(),
                older: older.rev().map(clone).peekable(),
                direction,
            }),
        };
        entries.extend(rows.by_ref().take(rows_max));
        let is_last = rows.next().is_none();
        drop(rows);
        drop(layers);
        match entries.last() {
            Some((last, _)) if !is_last => {
                let last = last.to_vec();
                Part::before(entries, range, last, direction)
            }
            _ => Part::last(entries, range),
        }
    }
}

impl Layers {
    fn is_empty(&self) -> bool {
        self.maps().all(BTreeMap::is_empty)
    }

    /// The rows of the layers, the newest first.
    fn maps(&self) -> impl Iterator<Item = &BTreeMap<Bytes, Option<Placed>>> {
        let older = self.older.iter().map(|older| &older.rows);
        std::iter::once(&self.newest.rows).chain(older)
    }
}

/// Rows of the layers in a part of a range.
#[derive(Debug)]
pub(super) struct Part {
    /// All that the layers have in this part, in the order of the scan.
    pub(super) entries: Vec<Entry>,
    /// The part.
    pub(super) range: Range<Vec<u8>>,
    /// What is behind it, if anything.
    pub(super) rest: Option<Range<Vec<u8>>>,
}

impl Part {
    fn last(entries: Vec<Entry>, range: Range<Vec<u8>>) -> Self {
        let rest = None;
        Self {
            entries,
            range,
            rest,
        }
    }

    /// The part of a range that ends with a key.
    fn before(
        entries: Vec<Entry>,
        range: Range<Vec<u8>>,
        mut last: Vec<u8>,
        direction: Direction,
    ) -> Self {
        let (range, rest) = match direction {
            Direction::Ascending => {
                last.push(0);
                (range.start..last.clone(), last..range.end)
            }
            Direction::Descending => (last.clone()..range.end, range.start..last),
        };
        let rest = Some(rest);
        Self {
            entries,
            range,
            rest,
        }
    }
}

/// Two runs of rows in one order, of which the newer one wins.
pub(super) struct Merged<N: Iterator, O: Iterator> {
    pub(super) newer: Peekable<N>,
    pub(super) older: Peekable<O>,
    pub(super) direction: Direction,
}

/// A row of a run.
pub(super) trait Keyed {
    /// Its key, unless it could not be read.
    fn key(&self) -> Option<&[u8]>;
}

impl Keyed for Entry {
    fn key(&self) -> Option<&[u8]> {
        Some(&self.0)
    }
}

impl<N, O> Iterator for Merged<N, O>
where
    N: Iterator,
    N::Item: Keyed,
    O: Iterator<Item = N::Item>,
{
    type Item = N::Item;

    fn next(&mut self) -> Option<N::Item> {
        let (Some(newer), Some(older)) = (self.newer.peek(), self.older.peek()) else {
            return self.newer.next().or_else(|| self.older.next());
        };
        let (Some(newer), Some(older)) = (newer.key(), older.key()) else {
            // What could not be read comes out at once.
            return self.older.next();
        };
        let ordering = match self.direction {
            Direction::Ascending => newer.cmp(older),
            Direction::Descending => older.cmp(newer),
        };
        match ordering {
            Ordering::Less => self.newer.next(),
            Ordering::Greater => self.older.next(),
            Ordering::Equal => {
                self.older.next();
                self.newer.next()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::frames::Frames;
    use super::*;

    fn frame(number: u64, changes: &[(&str, Option<&str>)]) -> Frame {
        let row = |(key, value): &(&str, Option<&str>)| {
            let placed = value.map(|value| Placed {
                value: Bytes::copy_from_slice(value.as_bytes()),
                place: None,
            });
            (Bytes::copy_from_slice(key.as_bytes()), placed)
        };
        Frame {
            number,
            changes: changes.iter().map(row).collect(),
            end: 100 * number,
        }
    }

    fn overlay() -> Overlay {
        let overlay = Overlay::default();
        let first = [("a", Some("1")), ("b", Some("1")), ("d", Some("1"))];
        overlay.add(frame(1, &first));
        let layer = overlay.turn().unwrap();
        assert_eq!((layer.batch_count(), layer.end()), (1, 100));
        let second = [("b", None), ("c", Some("2")), ("d", Some("2")), ("e", None)];
        overlay.add(frame(2, &second));
        overlay
    }

    fn text(entries: &[Entry]) -> String {
        let word = |(key, value): &Entry| {
            let value = value.as_deref().unwrap_or(b"-");
            String::from_utf8([key, value].concat()).unwrap()
        };
        entries.iter().map(word).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_newest_change_holds() {
        let overlay = overlay();
        let keys: Vec<Vec<u8>> = "abcdef".bytes().map(|byte| vec![byte]).collect();
        let value = |text: &'static str| Some(Known::Value(text.into()));
        let removed = || Some(Known::Removed);
        let expected = [
            value("1"),
            removed(),
            value("2"),
            value("2"),
            removed(),
            None,
        ];
        assert_eq!(overlay.get_many(&keys), expected);
        overlay.forget_older();
        assert_eq!(overlay.get_many(&keys[..1]), [None]);
        assert!(
            overlay
                .turn()
                .is_some_and(|layer| layer.replacing().len() == 4)
        );
        assert!(overlay.turn().is_none());
    }

    #[test]
    fn values_that_a_layer_itself_replaces_are_known() {
        let folder = tempfile::tempdir().unwrap();
        let frames = Frames::open(&folder.path().join("values")).unwrap();
        let mut put = crate::store::Batch::new();
        put.put(vec![1], vec![1; 100]);
        put.put(vec![2], vec![2; 100]);
        let mut remove = crate::store::Batch::new();
        remove.remove(vec![1]);
        let first = frames.append(0, 1, put).unwrap();
        let second = frames.append(first.end, 2, remove).unwrap();
        let place = first.changes[0].1.as_ref().unwrap().place.unwrap();
        let mut layer = Layer::default();
        layer.add(first);
        assert_eq!((layer.replaced(), layer.replacing().len()), (&[][..], 0));
        layer.add(second);
        assert_eq!(layer.replaced(), [place]);
        assert_eq!(layer.replacing(), [Bytes::from_static(&[1])]);
    }

    #[test]
    fn a_turn_waits_for_those_who_read_and_for_nobody_else() {
        let overlay = overlay();
        for _ in 0..4 {
            let early = overlay.reading();
            std::thread::scope(|scope| {
                let waiting = scope.spawn(|| overlay.wait_for_readers());
                while overlay
                    .readers
                    .iter()
                    .all(|readers| readers.try_read().is_ok())
                {
                    std::thread::yield_now();
                }
                // Who comes now reads beside the one that is waited for.
                drop(overlay.reading());
                assert!(!waiting.is_finished());
                drop(early);
            });
        }
    }

    #[test]
    fn parts_make_up_the_range_in_both_directions() {
        let overlay = overlay();
        let all = b"a".to_vec()..b"z".to_vec();
        let expected = [
            (Direction::Ascending, "a1 b- c2 d2 e-"),
            (Direction::Descending, "e- d2 c2 b- a1"),
        ];
        for (direction, expected) in expected {
            for rows_max in 1..7 {
                let mut found = Vec::new();
                let mut rest = Some(all.clone());
                while let Some(range) = rest {
                    let part = overlay.part(range, direction, rows_max);
                    assert!(part.entries.len() <= rows_max);
                    for (key, _) in &part.entries {
                        assert!(part.range.contains(&key.to_vec()));
                    }
                    found.extend(part.entries);
                    rest = part.rest;
                }
                assert_eq!(text(&found), expected, "{direction:?} by {rows_max}");
            }
        }
        let part = overlay.part(b"b".to_vec()..b"d".to_vec(), Direction::Ascending, 9);
        assert_eq!(text(&part.entries), "b- c2");
        let part = overlay.part(b"d".to_vec()..b"b".to_vec(), Direction::Ascending, 9);
        assert!(part.entries.is_empty() && part.rest.is_none());
    }
}
