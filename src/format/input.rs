//! Takes compression off a file, by its first bytes: gzip (RFC 1952), also of several members, and
//! Zstandard (RFC 8878), also of several frames.

use std::io::{self, BufRead, BufReader, Cursor, Read};

use flate2::bufread::MultiGzDecoder;
use zstd::stream::read::Decoder;

const BUFFER_BYTES: usize = 256 * 1024;

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// A Zstandard frame that holds no data; the first byte counts up to 0x5f.
const ZSTD_SKIPPABLE: &[u8] = &[0x2a, 0x4d, 0x18];

/// The bytes of a file without compression.
pub(super) fn decompressed(
    mut file: impl Read + Send + 'static,
) -> io::Result<Box<dyn BufRead + Send>> {
    let mut start = Vec::new();
    file.by_ref().take(4).read_to_end(&mut start)?;
    let is_gzip = start.starts_with(GZIP);
    let is_skippable =
        matches!(start.as_slice(), [0x50..=0x5f, rest @ ..] if rest == ZSTD_SKIPPABLE);
    let is_zstd = start == ZSTD || is_skippable;
    let whole = BufReader::with_capacity(BUFFER_BYTES, Cursor::new(start).chain(file));
    let plain: Box<dyn Read + Send> = if is_gzip {
        Box::new(MultiGzDecoder::new(whole))
    } else if is_zstd {
        Box::new(Decoder::with_buffer(whole)?)
    } else {
        return Ok(Box::new(whole));
    };
    Ok(Box::new(BufReader::with_capacity(BUFFER_BYTES, plain)))
}

/// How many bytes tell what a file is.
const START_BYTES: u64 = 64;

/// The first bytes of a file, and the file with them.
pub(super) fn with_start(
    mut file: Box<dyn BufRead + Send>,
) -> io::Result<(Vec<u8>, Box<dyn BufRead + Send>)> {
    let mut start = Vec::new();
    file.by_ref().take(START_BYTES).read_to_end(&mut start)?;
    Ok((start.clone(), Box::new(Cursor::new(start).chain(file))))
}
