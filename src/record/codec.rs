//! zstd, with a dictionary or without one.

use std::cell::RefCell;
use std::fmt;

use zstd::zstd_safe::{self, CCtx, CParameter, DCtx};

use super::dictionary::{Dictionaries, DictionaryId};
use crate::error::{Error, Reason, Result};

/// zstd's default, level 3, makes an archive a fiftieth smaller and its import an eighth slower.
pub(super) const ZSTD_LEVEL: i32 = 1;

// A context costs more to make than a typical article costs to compress, so every thread keeps one of
// each. A dictionary is handed in with each call and never becomes part of a context, so that none is
// used for what was made with another or with none.
thread_local! {
    static COMPRESSOR: RefCell<Option<CCtx<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<DCtx<'static>>> = const { RefCell::new(None) };
}

/// Why a payload cannot be decompressed.
pub(super) enum Refusal {
    /// Nobody has the dictionary that it names.
    Lost(DictionaryId),
    /// zstd says so.
    Broken(&'static str),
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(id) => write!(formatter, "needs dictionary {id}, which is lost"),
            Self::Broken(what) => write!(formatter, "cannot be decompressed: {what}"),
        }
    }
}

const NO_CONTEXT: &str = "no memory for a context";

pub(super) fn compress(text: &[u8], dictionaries: &Dictionaries) -> Result<Vec<u8>> {
    let mut compressed = Vec::with_capacity(zstd_safe::compress_bound(text.len()));
    let dictionary = dictionaries.current();
    let result = COMPRESSOR.with_borrow_mut(|slot| {
        if slot.is_none() {
            let mut context = CCtx::try_create().ok_or(NO_CONTEXT)?;
            let level = CParameter::CompressionLevel(ZSTD_LEVEL);
            context
                .set_parameter(level)
                .map_err(zstd_safe::get_error_name)?;
            *slot = Some(context);
        }
        let context = slot.as_mut().ok_or(NO_CONTEXT)?;
        let result = match &dictionary {
            Some(dictionary) => {
                let prepared = dictionary.encoder().as_cdict();
                context.compress_using_cdict(&mut compressed, text, prepared)
            }
            None => context.compress2(&mut compressed, text),
        };
        result.map_err(zstd_safe::get_error_name)
    });
    result.map_err(|what| {
        Error::new(
            Reason::Internal,
            format!("zstd failed to compress an article: {what}"),
        )
    })?;
    Ok(compressed)
}

pub(super) fn decompress(
    payload: &[u8],
    text_bytes: usize,
    dictionaries: &Dictionaries,
) -> Result<Vec<u8>, Refusal> {
    let dictionary = match named(payload) {
        Some(id) => Some(dictionaries.get(id).ok_or(Refusal::Lost(id))?),
        None => None,
    };
    let mut text = Vec::with_capacity(text_bytes);
    let result = DECOMPRESSOR.with_borrow_mut(|slot| {
        if slot.is_none() {
            *slot = DCtx::try_create();
        }
        let context = slot.as_mut().ok_or(NO_CONTEXT)?;
        let result = match &dictionary {
            Some(dictionary) => {
                let prepared = dictionary.decoder().as_ddict();
                context.decompress_using_ddict(&mut text, payload, prepared)
            }
            None => context.decompress(&mut text, payload),
        };
        result.map_err(zstd_safe::get_error_name)
    });
    result.map_err(Refusal::Broken)?;
    Ok(text)
}

/// The dictionary that a frame names.
pub(super) fn named(payload: &[u8]) -> Option<DictionaryId> {
    zstd_safe::get_dict_id_from_frame(payload).map(std::num::NonZero::get)
}
