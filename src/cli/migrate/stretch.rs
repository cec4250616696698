//! One stretch of records on its way from one archive to the other: decoded and proved on a thread of
//! its own, while the pieces behind it come and what is before it is written.

use std::io::{self, Read};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::source::{Fed, Source};
use crate::archive::backup::{Decoder, Entry, Header};
use crate::error::{Error, Reason, Result};

/// Pieces and frames that are read ahead of who takes them.
const PIECES_AHEAD: usize = 2;
const FRAMES_AHEAD: usize = 2;

/// A part of a stretch.
pub(super) enum Part<T> {
    Header(Header),
    /// What was made of the records of a frame.
    Records(T),
}

/// Reads all records from a sequence on, makes something of them frame by frame, and gives that away in
/// order. Returns whether it came to its end, and was not stopped.
pub(super) async fn read<T: Send + 'static>(
    (source, name, first): (&Source, &str, u64),
    stop: &CancellationToken,
    make: impl Fn(Vec<Entry>) -> Result<T> + Send + 'static,
    mut take: impl AsyncFnMut(Part<T>) -> Result<()>,
) -> Result<bool> {
    let (pieces, incoming) = mpsc::channel(PIECES_AHEAD);
    let (parts, mut ready) = mpsc::channel(FRAMES_AHEAD);
    let name = name.to_owned();
    let decoding = tokio::task::spawn_blocking(move || {
        let input = Pieces {
            incoming,
            piece: Vec::new(),
            taken: 0,
        };
        decode(Decoder::new(input, name)?, &parts, make)
    });
    let taking = async move {
        while let Some(part) = ready.recv().await {
            take(part).await?;
        }
        Ok(())
    };
    let (fed, taken) = tokio::join!(source.feed(first, pieces, stop), taking);
    let decoded = decoding.await.map_err(|panic| {
        Error::new(Reason::Internal, "reading records panicked").with_source(panic)
    })?;
    taken?;
    if fed? == Fed::Stopped {
        return Ok(false);
    }
    decoded?;
    Ok(true)
}

/// Ends early if nobody takes the parts.
fn decode<T>(
    mut decoder: Decoder<Pieces>,
    parts: &mpsc::Sender<Part<T>>,
    make: impl Fn(Vec<Entry>) -> Result<T>,
) -> Result<()> {
    if parts
        .blocking_send(Part::Header(*decoder.header()))
        .is_err()
    {
        return Ok(());
    }
    while let Some(entries) = decoder.next_entries()? {
        if parts.blocking_send(Part::Records(make(entries)?)).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Pieces as they come, as one input.
struct Pieces {
    incoming: mpsc::Receiver<Vec<u8>>,
    piece: Vec<u8>,
    taken: usize,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.piece.len() {
            let Some(piece) = self.incoming.blocking_recv() else {
                return Ok(0);
            };
            (self.piece, self.taken) = (piece, 0);
        }
        let mut rest = self.piece.get(self.taken..).unwrap_or_default();
        let read = rest.read(buffer)?;
        self.taken += read;
        Ok(read)
    }
}
