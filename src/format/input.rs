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

/// A file from which bytes are read as they are needed.
type Input = Box<dyn BufRead + Send>;

/// How many bytes tell what a file is.
const START_BYTES: u64 = 64;

/// The bytes of a file without compression.
pub(super) fn decompressed(file: impl Read + Send + 'static) -> io::Result<Input> {
    let (start, whole) = with_start(buffered(file))?;
    let is_skippable =
        matches!(start.as_slice(), [0x50..=0x5f, rest @ ..] if rest.starts_with(ZSTD_SKIPPABLE));
    Ok(if start.starts_with(GZIP) {
        buffered(MultiGzDecoder::new(whole))
    } else if start.starts_with(ZSTD) || is_skippable {
        buffered(Decoder::with_buffer(whole)?)
    } else {
        whole
    })
}

fn buffered(file: impl Read + Send + 'static) -> Input {
    Box::new(BufReader::with_capacity(BUFFER_BYTES, file))
}

/// The first bytes of a file, and the file with them.
pub(super) fn with_start(mut file: Input) -> io::Result<(Vec<u8>, Input)> {
    let mut start = Vec::new();
    file.by_ref().take(START_BYTES).read_to_end(&mut start)?;
    Ok((start.clone(), Box::new(Cursor::new(start).chain(file))))
}
