//! How messages cross the wire: the codec of every RPC, with a size limit per message, errors that
//! say what is wrong, and an import request whose articles are decoded one by one.

use std::marker::PhantomData;

use bytes::{Buf, Bytes};
use prost::{Message, Name};
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use super::convert::status_of;
use crate::archive::Limits;
use crate::error::{Error, Reason, Result};

/// `pressmark.v1.ImportArticlesRequest` with its articles left undecoded.
///
/// On the wire a message and bytes look alike, so this type reads what clients send as articles. A
/// string that is not UTF-8 then refuses its own article instead of ending the stream.
#[derive(Clone, PartialEq, Message)]
pub struct ImportArticlesRequest {
    /// Encoded `pressmark.v1.Article` messages.
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub articles: Vec<Bytes>,
    /// Ignored.
    #[prost(bytes = "bytes", tag = "2")]
    pub resume_token: Bytes,
}

impl Name for ImportArticlesRequest {
    const NAME: &'static str = "ImportArticlesRequest";
    const PACKAGE: &'static str = "pressmark.v1";
}

/// Decodes a message from bytes, or says why it is none.
///
/// # Errors
/// `MessageMalformed`.
pub(super) fn decode<M: Message + Name + Default>(bytes: impl Buf) -> Result<M> {
    M::decode(bytes).map_err(|error| {
        Error::new(
            Reason::MessageMalformed,
            format!("this is no pressmark.v1.{} message", M::NAME),
        )
        .with_source(error)
    })
}

/// The largest message of a name. Messages that carry no articles to the server are small, so that
/// millions of empty items in one cannot use up memory before they are counted. Those that do have the
/// limit of their service, which an operator can set, and which was looked at before this.
fn message_bytes_max(name: &str) -> usize {
    match name {
        "PutArticleRequest" | "ImportArticlesRequest" => usize::MAX,
        name if name.ends_with("Request") => Limits::default().message_bytes_max,
        _ => usize::MAX,
    }
}

/// The codec of every RPC: protobuf.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WireCodec<E, D>(PhantomData<(E, D)>);

impl<E, D> Default for WireCodec<E, D> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<E, D> Codec for WireCodec<E, D>
where
    E: Message + 'static,
    D: Message + Name + Default + 'static,
{
    type Encode = E;
    type Decode = D;
    type Encoder = WireEncoder<E>;
    type Decoder = WireDecoder<D>;

    fn encoder(&mut self) -> Self::Encoder {
        WireEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        WireDecoder(PhantomData)
    }
}

/// Writes messages.
#[derive(Debug)]
pub(crate) struct WireEncoder<E>(PhantomData<E>);

impl<E: Message> Encoder for WireEncoder<E> {
    type Item = E;
    type Error = Status;

    fn encode(&mut self, item: E, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        // A buffer that grows by itself would be up to twice as large, for as long as a client is slow.
        buffer.reserve(item.encoded_len());
        item.encode(buffer)
            .map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

/// Reads messages.
#[derive(Debug)]
pub(crate) struct WireDecoder<D>(PhantomData<D>);

impl<D: Message + Name + Default> Decoder for WireDecoder<D> {
    type Item = D;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<D>, Status> {
        let bytes_max = message_bytes_max(D::NAME);
        if buffer.remaining() > bytes_max {
            let what = format!(
                "a {} of {} bytes, the limit is {bytes_max}",
                D::NAME,
                buffer.remaining()
            );
            return Err(status_of(&Error::new(Reason::MessageTooLarge, what)));
        }
        decode(buffer).map(Some).map_err(|error| status_of(&error))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}
