//! A small file beside an engine's own that remembers how many batches were synced.
//!
//! sled ends its log where a message does not match its checksum, which is right after a crash. But
//! where a bit rots or a file is cut in the part that was written since the last open, it ends there
//! too, and forgets synced batches without a word (measured: one flipped bit, 201 of 400 articles
//! gone, no error). The engine therefore counts its batches in each batch, and after each sync the
//! count is written here. A database that knows of fewer batches than this file has lost some.
//!
//! ```text
//! 0  8  batches that were synced, u64
//! 8  8  first 8 bytes of BLAKE3 over them
//! ```
//!
//! The file is written without a sync of its own: after a kill it is as it was written, and after a
//! power cut it may know of fewer batches, which only makes it notice less.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

const COUNT_BYTES: usize = 8;
const CHECKSUM_BYTES: usize = 8;

/// The file, open to be written.
#[derive(Debug)]
pub(super) struct Watermark {
    file: File,
}

impl Watermark {
    /// Opens the file, and tells how many batches it knows of: none if it is new or unreadable.
    pub(super) fn open(path: &Path) -> io::Result<(Self, u64)> {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let count = parse(&bytes);
        if count.is_none() && !bytes.is_empty() {
            tracing::warn!(file = %path.display(), "the count of synced batches cannot be read");
        }
        Ok((Self { file }, count.unwrap_or(0)))
    }

    /// Writes how many batches are synced.
    pub(super) fn set(&self, count: u64) -> io::Result<()> {
        let count = count.to_be_bytes();
        let bytes = [count.as_slice(), &checksum(&count)].concat();
        self.file.write_all_at(&bytes, 0)
    }

    /// Makes what was written durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

fn parse(bytes: &[u8]) -> Option<u64> {
    let (count, rest) = bytes.split_first_chunk::<COUNT_BYTES>()?;
    (rest == checksum(count)).then(|| u64::from_be_bytes(*count))
}

fn checksum(count: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut short = [0; CHECKSUM_BYTES];
    let mut hasher = blake3::Hasher::new();
    hasher.update(count);
    hasher.finalize_xof().fill(&mut short);
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_kept_and_damage_is_no_count() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("synced");
        let (watermark, count) = Watermark::open(&path).unwrap();
        assert_eq!(count, 0);
        for count in [1, 300, u64::MAX] {
            watermark.set(count).unwrap();
            watermark.sync().unwrap();
            assert_eq!(Watermark::open(&path).unwrap().1, count);
        }
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            assert_eq!((parse(&flipped), parse(&whole[..at])), (None, None));
        }
    }
}
