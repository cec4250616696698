//! The copies of dictionaries as they are kept in table `m`: read when an archive is opened, looked
//! at by a check, mended by a repair.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::reader::{Reader, advance, short_answer};
use crate::error::Result;
use crate::key::meta::{self, DICTIONARY_COPIES};
use crate::record::{Dictionaries, Dictionary, DictionaryId};
use crate::store::{Direction, Scan, Store};

/// Copies that are read at a time, and their bytes.
const COPIES_MAX: usize = 16;
const BYTES_MAX: usize = 1024 * 1024;

/// What is kept of a dictionary.
#[derive(Clone, Debug, Default)]
pub(super) struct Kept {
    /// Which of its copies are intact.
    intact: [bool; DICTIONARY_COPIES],
    /// The dictionary, if anything of it is.
    pub(super) dictionary: Option<Arc<Dictionary>>,
}

impl Kept {
    /// The numbers of the copies that are lost or damaged.
    pub(super) fn broken_copies(&self) -> impl Iterator<Item = usize> {
        let numbered = self.intact.into_iter().enumerate();
        numbered.filter_map(|(copy, is_intact)| (!is_intact).then_some(copy))
    }
}

/// Reads all copies of all dictionaries.
pub(super) async fn kept(store: &dyn Store) -> Result<BTreeMap<DictionaryId, Kept>> {
    let mut all: BTreeMap<DictionaryId, Kept> = BTreeMap::new();
    let mut range = meta::dictionaries();
    loop {
        let scan = Scan {
            range: range.clone(),
            direction: Direction::Ascending,
            rows_max: COPIES_MAX,
            bytes_max: BYTES_MAX,
        };
        let chunk = store.scan_many(vec![scan]).await?.pop();
        let chunk = chunk.ok_or_else(short_answer)?;
        for row in &chunk.rows {
            // A key that is none of ours stands for no copy, which is then missing.
            let Some((id, copy)) = meta::parse_dictionary(&row.key) else {
                continue;
            };
            let kept = all.entry(id).or_default();
            match Dictionary::decode(id, &row.value) {
                Ok(dictionary) => {
                    if let Some(is_intact) = kept.intact.get_mut(copy) {
                        *is_intact = true;
                    }
                    kept.dictionary.get_or_insert_with(|| Arc::new(dictionary));
                }
                Err(error) => tracing::error!(%error, copy, "damage found while reading"),
            }
        }
        if !advance(&mut range, &chunk) {
            return Ok(all);
        }
    }
}

/// All that there is of dictionaries, with what only the memory of this process has any more.
pub(super) async fn survey(reader: Reader<'_>) -> Result<BTreeMap<DictionaryId, Kept>> {
    let mut all = kept(reader.store()).await?;
    for dictionary in reader.dictionaries().all() {
        let kept = all.entry(dictionary.id()).or_default();
        kept.dictionary.get_or_insert(dictionary);
    }
    Ok(all)
}

/// Those dictionaries of which a copy is left, ready to be used.
pub(super) fn usable(kept: &BTreeMap<DictionaryId, Kept>) -> Dictionaries {
    let dictionaries = Dictionaries::default();
    for (id, kept) in kept {
        if let Some(dictionary) = &kept.dictionary {
            dictionaries.add(Arc::clone(dictionary));
        } else {
            tracing::error!(id, "both copies of a dictionary are damaged");
        }
    }
    dictionaries
}
