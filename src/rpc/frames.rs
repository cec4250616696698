//! Where messages begin in a gRPC stream of bytes: a flag of one byte, the length in four, then the
//! message (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>).

/// Bytes before each message.
const PREFIX_BYTES: usize = 5;

/// The beginning of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Prefix {
    pub(super) is_compressed: bool,
    pub(super) bytes: u32,
}

/// Follows a stream of bytes from message to message.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// The part of the next prefix that has come.
    prefix: Vec<u8>,
    /// Bytes of the current message that are still to come.
    left: usize,
}

impl Frames {
    /// Whether a message was begun and is not complete.
    pub(super) fn is_within(&self) -> bool {
        self.left > 0 || !self.prefix.is_empty()
    }

    /// Tells of every message that begins, prefix and all, within the next bytes.
    pub(super) fn feed(&mut self, mut bytes: &[u8], mut begins: impl FnMut(Prefix)) {
        while !bytes.is_empty() {
            let passed = self.left.min(bytes.len());
            self.left -= passed;
            bytes = bytes.get(passed..).unwrap_or_default();
            let missing = PREFIX_BYTES - self.prefix.len();
            let taken = missing.min(bytes.len());
            let (part, rest) = bytes.split_at_checked(taken).unwrap_or_default();
            self.prefix.extend_from_slice(part);
            bytes = rest;
            if let [flag, a, b, c, d] = *self.prefix.as_slice() {
                let length = u32::from_be_bytes([a, b, c, d]);
                begins(Prefix {
                    is_compressed: flag != 0,
                    bytes: length,
                });
                self.left = usize::try_from(length).unwrap_or(usize::MAX);
                self.prefix.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_however_the_bytes_are_cut() {
        let mut stream = Vec::new();
        let messages = [(0_u8, 3_u32), (1, 0), (0, 300), (1, 1)];
        for (flag, bytes) in messages {
            stream.push(flag);
            stream.extend(bytes.to_be_bytes());
            stream.extend(vec![7; usize::try_from(bytes).unwrap()]);
        }
        let expected: Vec<Prefix> = messages
            .map(|(flag, bytes)| Prefix {
                is_compressed: flag == 1,
                bytes,
            })
            .to_vec();
        for size in 1..stream.len() {
            let mut frames = Frames::default();
            let mut found = Vec::new();
            for piece in stream.chunks(size) {
                frames.feed(piece, |prefix| found.push(prefix));
            }
            assert_eq!(found, expected, "in pieces of {size}");
        }
    }
}
