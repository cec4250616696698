//! HTTP/2 by hand, for what no library sends: frames, and the headers of a call of gRPC.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// The bytes that every client of HTTP/2 begins with.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// A frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// What a client says first: the preface, settings that give the server room to send, and no limit on
/// the connection.
pub fn hello() -> Vec<u8> {
    let most = 0x7fff_ffff_u32;
    let window = [&[0, 4][..], &most.to_be_bytes()].concat();
    let mut bytes = PREFACE.to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &window));
    let more = most - 65_535;
    bytes.extend(frame(WINDOW_UPDATE, 0, 0, &more.to_be_bytes()));
    bytes
}

/// The headers of a call, in HPACK without compression.
pub fn call(path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let text = |bytes: &mut Vec<u8>, text: &str| {
        bytes.push(u8::try_from(text.len()).unwrap());
        assert!(text.len() < 127, "a longer one needs another form");
        bytes.extend(text.as_bytes());
    };
    // POST and http stand in the table that both sides know; a path and an authority do by their names.
    let mut bytes = vec![0x83, 0x86, 0x04];
    text(&mut bytes, path);
    bytes.push(0x01);
    text(&mut bytes, "localhost");
    for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")]
        .iter()
        .chain(more)
    {
        bytes.push(0x00);
        text(&mut bytes, name);
        text(&mut bytes, value);
    }
    bytes
}

/// A message as gRPC frames it.
pub fn message(is_compressed: bool, bytes: &[u8]) -> Vec<u8> {
    let mut framed = vec![u8::from(is_compressed)];
    framed.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
    framed.extend(bytes);
    framed
}

/// Connects from one of several addresses of this machine, each of which has ports of its own. Once
/// closed it leaves nothing behind.
pub async fn connect(address: &str, number: usize) -> std::io::Result<TcpStream> {
    let address = address
        .trim_start_matches("http://")
        .trim_start_matches("https://");
    let from = format!("127.0.0.{}:0", 2 + number % 8);
    let socket = TcpSocket::new_v4()?;
    socket.set_zero_linger()?;
    socket.bind(from.parse().unwrap())?;
    socket.connect(address.parse().unwrap()).await
}

/// Sends pieces until the server ends the connection, or the time is over. Reads what the server says
/// and looks at none of it. Returns how many pieces were sent, and whether the server ended it.
pub async fn flood(
    stream: TcpStream,
    time: Duration,
    mut next: impl FnMut(u64) -> Vec<u8>,
) -> (u64, bool) {
    let (mut read, mut write) = stream.into_split();
    let mut sent = 0;
    let sending = async {
        loop {
            if write.write_all(&next(sent)).await.is_err() {
                return;
            }
            sent += 1;
        }
    };
    let reading = async {
        let mut buffer = vec![0; 64 * 1024];
        while !matches!(read.read(&mut buffer).await, Ok(0) | Err(_)) {}
    };
    let is_ended = tokio::select! {
        () = sending => true,
        () = reading => true,
        () = tokio::time::sleep(time) => false,
    };
    (sent, is_ended)
}
