//! Takes compression off a file, by its first bytes: gzip (RFC 1952), also of several members, and
//! Zstandard (RFC 8878), also of several frames.

use std::io::{self, BufRead, BufReader, Cursor, ErrorKind, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::GzDecoder;
use zstd::stream::read::Decoder;

const BUFFER_BYTES: usize = 256 * 1024;

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// A Zstandard frame that holds no data; the first byte counts up to 0x5f.
const ZSTD_SKIPPABLE: &[u8] = &[0x2a, 0x4d, 0x18];

/// How a member of a gzip file begins: the magic, and deflate, the only method there is.
const MEMBER: [u8; 3] = [0x1f, 0x8b, 8];

/// How far behind the start of the next member damage is noticed at most, if nothing is to be lost.
const RECENT_BYTES: usize = 64 * 1024;

/// A file from which bytes are read as they are needed.
pub(super) type Input = Box<dyn BufRead + Send>;

/// Counts the bytes that are read of files, as they are on disk.
#[derive(Clone, Debug, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// The bytes read until now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, count: usize) {
        self.0
            .fetch_add(super::pieces::limit(count), Ordering::Relaxed);
    }

    /// A file whose bytes are counted.
    pub(super) fn counting<R>(&self, file: R) -> Counted<R> {
        let counter = self.clone();
        Counted { file, counter }
    }
}

/// A file whose bytes are counted.
pub(super) struct Counted<R> {
    file: R,
    counter: Counter,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.counter.add(count);
        Ok(count)
    }
}

/// How many bytes tell what a file is.
const START_BYTES: u64 = 1024;

/// The bytes of a file without compression, and whether there was any.
pub(super) fn decompressed(file: impl Read + Send + 'static) -> io::Result<(Input, bool)> {
    let (start, whole) = with_start(buffered(file))?;
    let is_skippable =
        matches!(start.as_slice(), [0x50..=0x5f, rest @ ..] if rest.starts_with(ZSTD_SKIPPABLE));
    Ok(if start.starts_with(GZIP) {
        (buffered(Members::new(whole)), true)
    } else if start.starts_with(ZSTD) || is_skippable {
        (buffered(Decoder::with_buffer(whole)?), true)
    } else {
        (whole, false)
    })
}

fn buffered(file: impl Read + Send + 'static) -> Input {
    Box::new(BufReader::with_capacity(BUFFER_BYTES, file))
}

/// The first bytes of a file, and the file with them.
pub(super) fn with_start(mut file: Input) -> io::Result<(Vec<u8>, Input)> {
    let mut start = Vec::new();
    let damage = match file.by_ref().take(START_BYTES).read_to_end(&mut start) {
        Err(error) if goes_on(&error) => Some(error),
        read => {
            read?;
            None
        }
    };
    let whole = Cursor::new(start.clone()).chain(Damage(damage));
    Ok((start, Box::new(whole.chain(file))))
}

/// An error that was met ahead of its turn, and then nothing.
struct Damage(Option<io::Error>);

impl Read for Damage {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        self.0.take().map_or(Ok(0), Err)
    }
}

impl BufRead for Damage {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.0.take().map_or(Ok(&[]), Err)
    }

    fn consume(&mut self, _: usize) {}
}

/// Whether reading can go on behind an error, at the next member of a gzip file.
pub(super) fn goes_on(error: &io::Error) -> bool {
    error.kind() == ErrorKind::InvalidData
}

/// Reads the members of a gzip file one behind the other. One that is damaged is an error of the kind
/// `InvalidData`; the reads behind it go on with the next.
struct Members<R> {
    place: Place<R>,
}

enum Place<R> {
    Between(Ahead<R>),
    Inside(GzDecoder<Ahead<R>>),
    /// Behind damage: the next member has to be found.
    Lost(Ahead<R>),
    /// At what looks like a member.
    Guessed(GzDecoder<Ahead<R>>),
    End,
}

impl<R: BufRead> Members<R> {
    fn new(file: R) -> Self {
        let place = Place::Between(Ahead::new(file));
        Self { place }
    }
}

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let (mut member, is_guessed) = match std::mem::replace(&mut self.place, Place::End) {
                Place::End => return Ok(0),
                Place::Between(mut file) => {
                    match file.fill_buf()? {
                        [] => return Ok(0),
                        // Tapes and some tools fill the end up with zeros.
                        [0, ..] => {
                            file.consume(1);
                            self.place = Place::Between(file);
                        }
                        _ => {
                            file.recent.clear();
                            self.place = Place::Inside(GzDecoder::new(file));
                        }
                    }
                    continue;
                }
                Place::Lost(mut file) => {
                    if !file.skip_to_member()? {
                        return Ok(0);
                    }
                    self.place = Place::Guessed(GzDecoder::new(file));
                    continue;
                }
                Place::Inside(member) => (member, false),
                Place::Guessed(member) => (member, true),
            };
            match member.read(buffer) {
                Ok(0) if !buffer.is_empty() => self.place = Place::Between(member.into_inner()),
                Ok(count) => {
                    self.place = Place::Inside(member);
                    return Ok(count);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {
                    self.place = Place::Inside(member);
                }
                Err(error) => {
                    let is_damage = matches!(
                        error.kind(),
                        ErrorKind::InvalidInput | ErrorKind::InvalidData | ErrorKind::UnexpectedEof
                    );
                    if !is_damage {
                        return Err(error);
                    }
                    self.place = Place::Lost(member.into_inner());
                    if !is_guessed {
                        return Err(io::Error::new(ErrorKind::InvalidData, error));
                    }
                }
            }
        }
    }
}

/// A file of which the last bytes can be read again: damage is often noticed only inside of the next
/// member.
struct Ahead<R> {
    /// What is read again; it was given up to `at`.
    again: Vec<u8>,
    at: usize,
    /// The last bytes of the member, up to twice `RECENT_BYTES`.
    recent: Vec<u8>,
    file: R,
}

impl<R: BufRead> Ahead<R> {
    fn new(file: R) -> Self {
        Self {
            again: Vec::new(),
            at: 0,
            recent: Vec::new(),
            file,
        }
    }

    /// Goes to what looks like the start of a member, behind that of the one that is read. Returns
    /// whether there is one.
    fn skip_to_member(&mut self) -> io::Result<bool> {
        let mut again = std::mem::take(&mut self.recent);
        again.drain(..again.len().min(1));
        again.extend_from_slice(self.again.get(self.at..).unwrap_or_default());
        self.again = again;
        self.at = 0;
        let mut found = 0;
        loop {
            let held = self.fill_buf()?;
            if held.is_empty() {
                return Ok(false);
            }
            let mut count = 0;
            for byte in held {
                count += 1;
                found = match MEMBER.get(found) {
                    Some(wanted) if wanted == byte => found + 1,
                    _ => usize::from(*byte == MEMBER[0]),
                };
                if found == MEMBER.len() {
                    break;
                }
            }
            self.advance(count);
            if found == MEMBER.len() {
                let rest = self.again.get(self.at..).unwrap_or_default();
                self.again = [&MEMBER, rest].concat();
                self.at = 0;
                return Ok(true);
            }
        }
    }

    fn advance(&mut self, count: usize) {
        if self.at < self.again.len() {
            self.at += count;
        } else {
            self.file.consume(count);
        }
    }
}

impl<R: BufRead> Read for Ahead<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

impl<R: BufRead> BufRead for Ahead<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        match self.again.get(self.at..) {
            Some([]) | None => self.file.fill_buf(),
            Some(rest) => Ok(rest),
        }
    }

    fn consume(&mut self, count: usize) {
        let mut recent = std::mem::take(&mut self.recent);
        // What is held is there without reading.
        if let Some(taken) = self.fill_buf().ok().and_then(|held| held.get(..count)) {
            recent.extend_from_slice(taken);
        }
        if recent.len() > 2 * RECENT_BYTES {
            recent.drain(..recent.len() - RECENT_BYTES);
        }
        self.recent = recent;
        self.advance(count);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn member(text: &str) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    }

    /// What is read, with `!` for each error behind which reading goes on.
    fn read(bytes: Vec<u8>) -> String {
        // Small reads, so that a magic is cut everywhere.
        let file = BufReader::with_capacity(2, Cursor::new(bytes));
        let (mut input, is_compressed) = decompressed(file).unwrap();
        assert!(is_compressed);
        let mut all = Vec::new();
        loop {
            match input.fill_buf() {
                Ok([]) => return String::from_utf8(all).unwrap(),
                Ok(held) => {
                    let count = held.len();
                    all.extend_from_slice(held);
                    input.consume(count);
                }
                Err(error) => {
                    assert!(goes_on(&error), "{error:?}");
                    all.push(b'!');
                }
            }
        }
    }

    #[test]
    fn damage_costs_only_its_member() {
        let [a, b, c] = ["first ", "second ", "third"].map(member);
        assert_eq!(
            read([a.clone(), b.clone(), c.clone()].concat()),
            "first second third"
        );
        assert_eq!(
            read([a.clone(), vec![0; 9], b.clone()].concat()),
            "first second "
        );
        let mut broken = b.clone();
        // In the checksum, which is seen when the text was already read.
        let checksum = broken.len() - 6;
        broken[checksum] ^= 1;
        assert_eq!(
            read([a.clone(), broken, c.clone()].concat()),
            "first second !third"
        );
        let cut = b[..b.len() / 2].to_vec();
        let text = read([a.clone(), cut.clone(), c.clone()].concat());
        assert!(
            text.starts_with("first ") && text.ends_with("!third"),
            "{text}"
        );
        assert!(read([a.clone(), cut].concat()).ends_with('!'));
        assert_eq!(
            read([a, b"garbage \x1f\x8b \x1f\x8b\x08".to_vec(), c].concat()),
            "first !third"
        );
    }
}
