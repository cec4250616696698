//! Keys as sled is given them: without two `ff` in a row, at which its descending iterator panics.

use bytes::Bytes;

/// The byte that never stands twice in a row in a stored key, and what is put behind it.
const STUFFED: u8 = 0xff;
const STUFFING: u8 = 0;

/// A key as sled holds it. Keeps the order of keys, whole ranges of them included.
pub(super) fn stored_key(key: &[u8]) -> Vec<u8> {
    let mut stored = Vec::with_capacity(key.len() + 1);
    for byte in key {
        stored.push(*byte);
        if *byte == STUFFED {
            stored.push(STUFFING);
        }
    }
    stored
}

/// The inverse of [`stored_key`].
pub(super) fn original_key(stored: &[u8]) -> Bytes {
    let mut bytes = stored.iter().copied();
    let mut key = Vec::with_capacity(stored.len());
    while let Some(byte) = bytes.next() {
        key.push(byte);
        if byte == STUFFED {
            bytes.next();
        }
    }
    key.into()
}
