//! What a record says, and the bytes of that: a kind, and a payload that is not yet compressed. Records
//! of the log and entries of backups hold the same.

use crate::article::{Article, ContentHash};
use crate::error::Result;
use crate::key::Sequence;

use super::{EntryState, REASON_BYTES_MAX};

pub(super) const KIND_ARTICLE: u8 = 1;
const KIND_DELETION: u8 = 2;
const KIND_TOMBSTONE: u8 = 3;
const KIND_QUARANTINE: u8 = 4;

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// An article.
    Article(Article),
    /// The deletion of the article that was archived at `article`.
    Deletion {
        /// The sequence of the article, whose record is a tombstone now.
        article: Sequence,
        /// Why it was deleted.
        reason: String,
    },
    /// What is left of an article that was deleted at `deletion`.
    Tombstone {
        /// The sequence of the deletion.
        deletion: Sequence,
        /// Why it was deleted.
        reason: String,
    },
    /// What keeps the place of a record that was damaged and is set aside.
    Quarantine {
        /// The state that the id had in table `h`, and keeps until the article is stored again.
        state: EntryState,
        /// What was wrong with the record.
        reason: String,
    },
}

impl Content {
    /// The kind and the payload.
    #[must_use]
    pub fn encode(&self) -> (u8, Vec<u8>) {
        let named = |sequence: &Sequence, reason: &str| {
            [sequence.to_be_bytes().as_slice(), reason.as_bytes()].concat()
        };
        match self {
            Self::Article(article) => (KIND_ARTICLE, article.render().into_bytes()),
            Self::Deletion { article, reason } => (KIND_DELETION, named(article, reason)),
            Self::Tombstone { deletion, reason } => (KIND_TOMBSTONE, named(deletion, reason)),
            Self::Quarantine { state, reason } => (
                KIND_QUARANTINE,
                [&[state.as_byte()], reason.as_bytes()].concat(),
            ),
        }
    }

    /// Reads a payload. That of an article must have the id as its hash, and is parsed as the caller
    /// trusts it to be.
    ///
    /// # Errors
    /// What is wrong, in words that go on behind the record's name.
    pub fn decode(
        kind: u8,
        id: &ContentHash,
        payload: &[u8],
        parse: impl FnOnce(&str) -> Result<Article>,
    ) -> Result<Self, String> {
        if kind == KIND_ARTICLE {
            let found = ContentHash::of(payload);
            if found != *id {
                return Err(format!("holds a text whose hash is {found}"));
            }
            let text = std::str::from_utf8(payload).map_err(|error| error.to_string())?;
            let article = parse(text).map_err(|error| error.to_string())?;
            return Ok(Self::Article(article));
        }
        if kind == KIND_QUARANTINE {
            let (state, reason) = payload.split_first().ok_or("is too short")?;
            let state = EntryState::from_byte(*state).filter(|state| *state != EntryState::Stored);
            return Ok(Self::Quarantine {
                state: state.ok_or("has an unknown state")?,
                reason: decode_reason(reason)?,
            });
        }
        let (counterpart, reason) = payload.split_first_chunk().ok_or("is too short")?;
        let counterpart = Sequence::from_be_bytes(*counterpart);
        let reason = decode_reason(reason)?;
        match kind {
            KIND_DELETION => Ok(Self::Deletion {
                article: counterpart,
                reason,
            }),
            KIND_TOMBSTONE => Ok(Self::Tombstone {
                deletion: counterpart,
                reason,
            }),
            other => Err(format!("has the unknown kind {other}")),
        }
    }
}

fn decode_reason(reason: &[u8]) -> Result<String, String> {
    if reason.len() > REASON_BYTES_MAX {
        let bytes = reason.len();
        return Err(format!(
            "has a reason of {bytes} bytes, the limit is {REASON_BYTES_MAX}"
        ));
    }
    String::from_utf8(reason.to_vec()).map_err(|error| error.to_string())
}
