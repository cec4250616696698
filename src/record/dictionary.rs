//! Dictionaries: what the articles of an archive have in common, so that a record need not hold it.
//! A record that was made with a dictionary cannot be read without it, so each is kept twice. Pure:
//! where the copies are kept is for the archive to know.
//!
//! ```text
//!  0  16  checksum    first 16 bytes of BLAKE3 over the id (u32) and the dictionary
//! 16   .  dictionary  as zstd makes it; the id that it holds is in the frame of every record that
//!                     was made with it
//! ```
//!
//! The id is made from all of the dictionary. So two do not share one by chance, and no number that
//! was lost is given again. The one that zstd would make itself leaves out the tables with which a
//! dictionary begins, and those of two dictionaries can differ in nothing else.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

use zstd::dict::{DecoderDictionary, EncoderDictionary};
use zstd::zstd_safe;

use super::ROW_BYTES_MAX;
use super::codec::ZSTD_LEVEL;
use crate::error::{Error, Reason, Result};

/// Bytes of a dictionary that is trained. With 16 KiB articles of 4.2 kB took 1,916 bytes instead of
/// 2,260; with 64 KiB they took 1,888, and more of every cache.
const DICTIONARY_BYTES: usize = 16 * 1024;

/// Where zstd has the id of a dictionary, little-endian, and which ids it leaves to everybody.
const ID_AT: Range<usize> = 4..8;
const ID_MIN: DictionaryId = 1 << 15;
const ID_END: DictionaryId = 1 << 31;

const CHECKSUM_BYTES: usize = 16;
const _: () = assert!(CHECKSUM_BYTES + DICTIONARY_BYTES < ROW_BYTES_MAX);

/// What a dictionary is named by: the number that zstd writes into frames.
pub type DictionaryId = u32;

/// A dictionary, ready to be used.
pub struct Dictionary {
    id: DictionaryId,
    bytes: Vec<u8>,
    encoder: EncoderDictionary<'static>,
    decoder: DecoderDictionary<'static>,
}

impl fmt::Debug for Dictionary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Dictionary({})", self.id)
    }
}

impl Dictionary {
    /// Trains a dictionary on samples, which stand one after the other. Takes a second of CPU for
    /// some MiB.
    ///
    /// # Errors
    /// `Internal` if the samples are too few or have too little in common.
    pub fn train(samples: &[u8], sample_bytes: &[usize]) -> Result<Self> {
        let trained = zstd::dict::from_continuous(samples, sample_bytes, DICTIONARY_BYTES);
        let mut bytes = trained.map_err(|error| {
            let what = format!("no dictionary came of {} samples", sample_bytes.len());
            Error::new(Reason::Internal, what).with_source(error)
        })?;
        if let Some(place) = bytes.get_mut(ID_AT) {
            place.fill(0);
        }
        let id = made_id(&bytes);
        if let Some(place) = bytes.get_mut(ID_AT) {
            place.copy_from_slice(&id.to_le_bytes());
        }
        Self::load(bytes).ok_or_else(|| {
            let what = "zstd trained a dictionary that it cannot load";
            Error::new(Reason::Internal, what)
        })
    }

    fn load(bytes: Vec<u8>) -> Option<Self> {
        let id = zstd_safe::get_dict_id_from_dict(&bytes)?.get();
        let encoder = EncoderDictionary::try_copy(&bytes, ZSTD_LEVEL).ok()?;
        let decoder = DecoderDictionary::try_copy(&bytes).ok()?;
        Some(Self {
            id,
            bytes,
            encoder,
            decoder,
        })
    }

    /// What it is named by.
    #[must_use]
    pub fn id(&self) -> DictionaryId {
        self.id
    }

    /// Its bytes, without the checksum.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Writes the value of each of its copies.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        [checksum(self.id, &self.bytes).as_slice(), &self.bytes].concat()
    }

    /// Reads the value of a copy that stands where one of this dictionary should.
    ///
    /// # Errors
    /// `IndexDamaged` if it is none.
    pub fn decode(id: DictionaryId, value: &[u8]) -> Result<Self> {
        let read = || {
            let (stored, bytes) = value.split_first_chunk::<CHECKSUM_BYTES>()?;
            // zstd is given nothing that was not proven.
            let is_intact = *stored == checksum(id, bytes);
            let dictionary = is_intact.then(|| Self::load(bytes.to_vec()))??;
            (dictionary.id == id).then_some(dictionary)
        };
        read().ok_or_else(|| {
            let what = format!("a copy of dictionary {id} cannot be read");
            Error::new(Reason::IndexDamaged, what)
        })
    }

    pub(super) fn encoder(&self) -> &EncoderDictionary<'static> {
        &self.encoder
    }

    pub(super) fn decoder(&self) -> &DecoderDictionary<'static> {
        &self.decoder
    }
}

/// The id of a dictionary that has none yet.
fn made_id(bytes: &[u8]) -> DictionaryId {
    let mut number = [0; size_of::<DictionaryId>()];
    let mut hasher = blake3::Hasher::new();
    hasher.update(bytes).finalize_xof().fill(&mut number);
    DictionaryId::from_be_bytes(number) % (ID_END - ID_MIN) + ID_MIN
}

fn checksum(id: DictionaryId, bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&id.to_be_bytes());
    hasher.update(bytes);
    let mut short = [0; CHECKSUM_BYTES];
    hasher.finalize_xof().fill(&mut short);
    short
}

/// The dictionaries of an archive. Clones are cheap and all mean the same.
#[derive(Clone, Debug, Default)]
pub struct Dictionaries {
    /// Held for moments, and never across an await.
    by_id: Arc<RwLock<BTreeMap<DictionaryId, Arc<Dictionary>>>>,
}

impl Dictionaries {
    /// Adds a dictionary, which must be durable before: from now on records are made with it.
    pub fn add(&self, dictionary: Arc<Dictionary>) {
        let mut by_id = self.by_id.write().unwrap_or_else(PoisonError::into_inner);
        by_id.entry(dictionary.id).or_insert(dictionary);
    }

    /// A dictionary that a record names.
    #[must_use]
    pub fn get(&self, id: DictionaryId) -> Option<Arc<Dictionary>> {
        self.read().get(&id).cloned()
    }

    /// The dictionary that records are made with, if there is one. An archive has more than one only
    /// if it lost one and found it again, and then any of them is as good.
    #[must_use]
    pub fn current(&self) -> Option<Arc<Dictionary>> {
        self.read().values().next().cloned()
    }

    /// All of them, in the order of their ids.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Dictionary>> {
        self.read().values().cloned().collect()
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<DictionaryId, Arc<Dictionary>>> {
        self.by_id.read().unwrap_or_else(PoisonError::into_inner)
    }
}
