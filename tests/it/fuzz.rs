//! Untrusted bytes: what a stranger may send, or a disk may rot into, never ends the process, is never
//! taken for something else, and never makes a decoder allocate beyond its limits.
//!
//! Every target mutates valid input, so that it comes deep, for two seconds, or for as many as
//! `PRESSMARK_TEST_FUZZ_SECONDS` says. What fails is printed as the input that bolero shrank.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use futures_util::stream;
use pressmark::archive::backup::{self, Entry};
use pressmark::archive::{Direction, Limits, Order, Query, Selector, SelectorFields};
use pressmark::article::{Article, ContentHash};
use pressmark::error::{Kind, Reason};
use pressmark::format::write::{Compression, Writer};
use pressmark::format::{self, Counter, Format, Mapping, markdown};
use pressmark::record::{
    self, Dictionaries, Dictionary, EntryState, HashEntry, ScrubResult, SourceStats, Totals,
};
use pressmark::rpc::{DESCRIPTORS, proto};
use prost::Message;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Request, Status};

use crate::backup::bytes_from;
use crate::server::{TestServer, import_request, message};
use crate::support::{Engine, TestArchive, article, articles_max, fields, noise, prepared, time};

/// What a decoder of articles may allocate besides a few copies of its input and its output.
const SLACK_BYTES: u64 = 1024 * 1024;

/// What one request may make a server and its client allocate together.
const REQUEST_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Runs a target on generated input for the time that is set, and prints how often.
fn fuzz(name: &str, mut target: impl FnMut(&[u8]) -> bool) {
    let seconds = std::env::var("PRESSMARK_TEST_FUZZ_SECONDS");
    let seconds = seconds.map_or(2, |seconds| seconds.parse().unwrap());
    let (tried, accepted) = (AtomicU64::new(0), AtomicU64::new(0));
    let target = Mutex::new(&mut target);
    bolero::check!()
        .with_type::<Vec<u8>>()
        .with_test_time(Duration::from_secs(seconds))
        .with_iterations(usize::MAX)
        .for_each(|input: &Vec<u8>| {
            tried.fetch_add(1, Relaxed);
            // A failed input is tried again, smaller.
            let mut target = target.lock().unwrap_or_else(PoisonError::into_inner);
            accepted.fetch_add(u64::from(target(input)), Relaxed);
        });
    let (tried, accepted) = (tried.into_inner(), accepted.into_inner());
    println!("{name}: {tried} inputs in {seconds} s, {accepted} of them valid, 0 failed");
    assert!(tried > 0, "{name} was tried");
}

/// Numbers taken from fuzzed bytes; zeros when they are used up.
struct Source<'a>(&'a [u8]);

impl Source<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn below(&mut self, end: usize) -> usize {
        let number = [self.byte(), self.byte(), self.byte()];
        let number = number
            .iter()
            .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
        number % end.max(1)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Changes one of some valid inputs a few times: bits, lengths, pieces moved, doubled and cut.
fn mutate(valid: &[Vec<u8>], source: &mut Source<'_>) -> Vec<u8> {
    let mut bytes = valid[source.below(valid.len())].clone();
    for _ in 0..source.below(6) {
        let at = source.below(bytes.len() + 1);
        let end = (at + source.below(40)).min(bytes.len());
        match source.byte() % 7 {
            0 if at < bytes.len() => bytes[at] ^= 1 << (source.byte() % 8),
            1 if at < bytes.len() => bytes[at] = source.byte(),
            2 => bytes.insert(at, source.byte()),
            3 => drop(bytes.drain(at..end)),
            4 => bytes.truncate(at),
            5 => {
                let piece = bytes[at..end].to_vec();
                let to = source.below(bytes.len() + 1);
                bytes.splice(to..to, piece);
            }
            _ => {
                let other = &valid[source.below(valid.len())];
                let from = source.below(other.len() + 1);
                bytes.splice(at.., other[from..].iter().copied());
            }
        }
        if source.is_empty() {
            break;
        }
    }
    bytes
}

/// Runs something and fails if it holds more memory at a time than it may.
fn bounded<T>(bytes_max: u64, what: impl FnOnce() -> T) -> T {
    let mut result = None;
    let used = allocation_counter::measure(|| result = Some(what()));
    assert!(
        used.bytes_max <= bytes_max,
        "{} bytes allocated, {bytes_max} allowed",
        used.bytes_max
    );
    result.expect("it ran")
}

fn times(count: u64, bytes: usize) -> u64 {
    count * u64::try_from(bytes).unwrap() + SLACK_BYTES
}

#[test]
fn canonical_text() {
    let mut valid: Vec<Vec<u8>> = (1..5).map(|n| article(n).render().into_bytes()).collect();
    valid.push(std::fs::read("tests/data/rates-held.md").unwrap());
    let undated = pressmark::article::ArticleFields {
        published_at: None,
        author: "Ann \u{e9}".into(),
        url: String::new(),
        ..fields(9)
    };
    valid.push(Article::new(undated).unwrap().render().into_bytes());
    fuzz("canonical text", |input| {
        let bytes = mutate(&valid, &mut Source(input));
        let read = bounded(times(8, bytes.len()), || markdown::read(&*bytes));
        let Ok(article) = read else { return false };
        assert_eq!(article.render().as_bytes(), bytes, "it says what it read");
        assert_eq!(article.id(), ContentHash::of(&bytes));
        true
    });
}

/// A file of each format, as it is written or as others write it.
fn files_of_every_format() -> Vec<(Format, Vec<u8>)> {
    let mut files = Vec::new();
    for format in ["jsonl", "csv", "tsv", "parquet", "warc", "rss"] {
        let format: Format = format.parse().unwrap();
        let path = tempfile::NamedTempFile::new().unwrap();
        let output = Box::new(path.reopen().unwrap());
        let mut writer = Writer::new(format, Compression::None, output).unwrap();
        for article in (1..4).map(article) {
            let fields = serde_json::json!({"id": article.id().to_string(), "title": article.title(),
                "published_at": article.published_at().map(|time| time.to_string()),
                "source": article.source(), "url": article.url(), "body": article.body(),
                "body_hash": article.body_hash().to_string(), "sequence": 1});
            writer.write(&article, fields.as_object().unwrap()).unwrap();
        }
        writer.finish().unwrap();
        files.push((format, std::fs::read(path.path()).unwrap()));
    }
    let json: &[u8] =
        br#"[{"title": "T", "body": "B", "source": "S", "date": "2 January 2020"}, {}]"#;
    let feed: &[u8] = br#"{"version": "https://jsonfeed.org/version/1.1", "title": "S", "items":
        [{"title": "T", "content_html": "<p>B<ul><li>x", "authors": [{"name": "A"}]}]}"#;
    let atom: &[u8] =
        br#"<feed xmlns="http://www.w3.org/2005/Atom"><title>S</title><!-- <entry> -->
        <entry><title>T</title><updated>2020-01-02T03:04:05Z</updated>
        <content type="html"><![CDATA[<b>B</b>]]></content></entry></feed>"#;
    let html: &[u8] = br#"<html><head><title>T</title><script type="application/ld+json">{"@type":
        "NewsArticle", "headline": "T", "articleBody": "B"}</script></head><body><p>B<table><tr><td>c
        <pre>x</pre></table><article><p>One, two, three, four, and more words that are long enough.
        </article></body></html>"#;
    let front: &[u8] = b"---\ntitle: T\nsource: S\ndate: 2020-01-02\nlist: [a, &b c, *b]\n---\n\nB";
    for (format, bytes) in [
        ("json", json),
        ("json-feed", feed),
        ("rss", atom),
        ("html", html),
        ("markdown", front),
    ] {
        files.push((format.parse().unwrap(), bytes.to_vec()));
    }
    files
}

/// Files to import: whatever is in them, they come to an end, and what is made of them is an article.
#[test]
fn imported_files() {
    let files = files_of_every_format();
    let all: Vec<Vec<u8>> = files.iter().map(|(_, bytes)| bytes.clone()).collect();
    let mapping = Mapping::new(&[], None, false);
    fuzz("imported files", |input| {
        let mut source = Source(input);
        let (format, valid) = &files[source.below(files.len())];
        let valid = [vec![valid.clone(); 3], all.clone()].concat();
        let mut bytes = mutate(&valid, &mut source);
        if source.byte() % 8 == 0 {
            bytes = Compression::Gzip.compressed(&bytes).unwrap();
            bytes = mutate(&[bytes], &mut source);
        }
        let pieces_max = bytes.len() + 2;
        let stream = format::Source::Stream(Box::new(std::io::Cursor::new(bytes)));
        let Ok((parser, pieces)) = format::open(stream, &Counter::default(), "", Some(*format))
        else {
            return false;
        };
        let mut is_any = false;
        for (count, piece) in pieces.enumerate() {
            // A gzip file has more bytes inside than outside.
            assert!(
                count < pieces_max.max(64 * 1024),
                "{format:?} comes to an end"
            );
            let found = piece
                .content
                .and_then(|content| parser.parse(&content, &mapping));
            match found {
                Ok(found) => {
                    let text = found.article.render();
                    assert_eq!(Article::parse(&text).unwrap(), found.article);
                    is_any = true;
                }
                Err(error) => assert!(
                    matches!(
                        error.reason(),
                        Reason::ArticleInvalid
                            | Reason::IdMismatch
                            | Reason::FileFailed
                            | Reason::ArgumentInvalid
                    ),
                    "{error:?}"
                ),
            }
        }
        is_any
    });
}

/// The place of the checksum in a record, as its byte map tells.
const CHECKSUM: std::ops::Range<usize> = 3..11;

#[test]
fn record_of_the_log() {
    let dictionaries = crate::dictionary::dictionaries();
    let mut valid = Vec::new();
    for n in 1..5 {
        let article = Article::new(crate::dictionary::worded(n)).unwrap();
        let (id, text) = (article.id(), article.render());
        for dictionaries in [&Dictionaries::default(), &dictionaries] {
            let rows = record::encode_article(id, time(1), &text, dictionaries).unwrap();
            valid.push(rows.into_values().concat());
        }
    }
    let text = noise(1, 2000);
    let id = ContentHash::of(text.as_bytes());
    let rows = record::encode_article(id, time(2), &text, &dictionaries).unwrap();
    valid.push(rows.into_values().concat());
    for rows in record::encode_delete(article(1).id(), time(3), "unwanted", 1, 9).unwrap() {
        valid.push(rows.into_values().concat());
    }
    let state = EntryState::Quarantined;
    let rows = record::encode_quarantine(article(1).id(), time(4), state, "damaged").unwrap();
    valid.push(rows.into_values().concat());
    let text_bytes_max = Limits::default().text_bytes_max;
    fuzz("record of the log", |input| {
        let mut source = Source(input);
        let mut bytes = mutate(&valid, &mut source);
        if source.byte() % 4 > 0 && bytes.len() > CHECKSUM.end {
            // Rot would stop at the checksum; with a right one it comes as far as it can.
            let rest = [&bytes[..CHECKSUM.start], &bytes[CHECKSUM.end..]].concat();
            let hash = ContentHash::of(&rest);
            bytes[CHECKSUM].copy_from_slice(&hash.as_bytes()[..CHECKSUM.len()]);
        }
        let rows = bytes
            .chunks(1 + source.below(70_000))
            .map(Bytes::copy_from_slice);
        let rows: Vec<Bytes> = rows.collect();
        // The text, the article of it, and what the decompressor needs.
        let bytes_max = times(8, bytes.len()) + times(4, text_bytes_max);
        let decoded = bounded(bytes_max, || record::decode(7, &rows, &dictionaries));
        if let Some(first) = rows.first() {
            let head = (record::extent(7, first), record::peek_id(7, first));
            assert!(decoded.is_err() || head.0.is_ok() && head.1.is_ok());
        }
        let values = [
            HashEntry::decode(&bytes).is_ok(),
            Totals::decode(&bytes).is_ok(),
            SourceStats::decode(&bytes).is_ok(),
            ScrubResult::decode(&bytes).is_ok(),
        ];
        assert!(values.iter().filter(|is_one| **is_one).count() <= 2);
        match decoded {
            Ok(record) => {
                if let record::Content::Article(article) = record.content {
                    assert_eq!(article.id(), record.id, "what is served has its id");
                }
                true
            }
            Err(error) => {
                let reasons = [Reason::RecordDamaged, Reason::DictionaryLost];
                assert!(reasons.contains(&error.reason()), "{error}");
                false
            }
        }
    });
}

#[test]
fn copy_of_a_dictionary() {
    let dictionary = crate::dictionary::dictionaries().current().unwrap();
    let valid = vec![dictionary.encode()];
    fuzz("copy of a dictionary", |input| {
        let mut source = Source(input);
        let bytes = mutate(&valid, &mut source);
        // The copy itself, and what zstd prepares from it.
        let bytes_max = times(8, bytes.len()) + 1024 * 1024;
        match bounded(bytes_max, || Dictionary::decode(dictionary.id(), &bytes)) {
            Ok(read) => {
                assert_eq!(read.bytes(), dictionary.bytes());
                true
            }
            Err(error) => {
                assert_eq!(error.reason(), Reason::IndexDamaged, "{error}");
                false
            }
        }
    });
}

#[test]
fn backup_file() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let valid = runtime.block_on(async {
        let archive = TestArchive::open(Engine::Memory).await;
        let puts = archive.put_all((1..9).map(fields)).await;
        archive
            .delete(puts[2].id, "unwanted", time(1))
            .await
            .unwrap();
        let whole = bytes_from(&archive, 1).await.unwrap();
        let increment = bytes_from(&archive, 5).await.unwrap();
        archive.finish().await.unwrap();
        vec![whole, increment]
    });
    fuzz("backup", |input| {
        let mut source = Source(input);
        let mut bytes = mutate(&valid, &mut source);
        if source.byte() % 4 > 0 {
            mend_checksums(&mut bytes);
        }
        // Of every frame its payload, what is in it, and the articles of that.
        let frame_bytes_max = 4 * Limits::default().text_bytes_max;
        let bytes_max = times(8, bytes.len()) + times(4, frame_bytes_max);
        let read = bounded(bytes_max, || {
            let mut decoder = backup::Decoder::new(&*bytes, "fuzz")?;
            while let Some(entries) = decoder.next_entries()? {
                for (id, article) in entries.into_iter().filter_map(Entry::into_article) {
                    assert_eq!(article.id(), id, "what is restored has its id");
                }
            }
            Ok(())
        });
        let read: pressmark::error::Result<()> = read;
        if let Err(error) = &read {
            let reason = error.reason();
            let allowed = [Reason::BackupDamaged, Reason::FormatUnsupported];
            assert!(allowed.contains(&reason), "{error}");
        }
        read.is_ok()
    });
}

/// Gives every frame the checksum that it should have, so that what is in it is read.
fn mend_checksums(bytes: &mut [u8]) {
    const PREFIX: usize = 9;
    const HEAD: usize = 1 + 4 + 16;
    let mut at = PREFIX;
    for number in 0_u64.. {
        let Some(head) = bytes.get(at..at + HEAD) else {
            return;
        };
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let Some(end) = (at + HEAD).checked_add(length as usize) else {
            return;
        };
        let Some(frame) = bytes.get(at..end) else {
            return;
        };
        let covered = [&number.to_be_bytes(), &frame[..5], &frame[HEAD..]].concat();
        let checksum = ContentHash::of(&covered);
        bytes[at + 5..at + HEAD].copy_from_slice(&checksum.as_bytes()[..16]);
        at = end;
    }
}

#[test]
fn page_token() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let archive = runtime.block_on(async {
        let archive = TestArchive::open(Engine::Memory).await;
        archive.put_all((1..50).map(fields)).await;
        archive
    });
    let query = |order| Query {
        selector: Selector::new(SelectorFields::default(), &Limits::default()).unwrap(),
        order,
    };
    let queries = [
        query(Order::Published(Direction::Descending)),
        query(Order::Arrival(Direction::Ascending)),
    ];
    let first = |query| {
        let page = runtime.block_on(archive.page(query, "", &articles_max(5)));
        page.unwrap().next_token.unwrap().into_bytes()
    };
    let valid: Vec<Vec<u8>> = queries.iter().map(first).collect();
    fuzz("page token", |input| {
        let bytes = mutate(&valid, &mut Source(input));
        let Ok(token) = String::from_utf8(bytes) else {
            return false;
        };
        let budget = articles_max(5);
        let page = archive.page(&queries[0], &token, &budget);
        match bounded(SLACK_BYTES, || runtime.block_on(page)) {
            Ok(page) => {
                assert!(page.articles.len() <= 5);
                true
            }
            Err(error) => {
                assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
                false
            }
        }
    });
    runtime.block_on(archive.finish()).unwrap();
}

/// Sends and takes messages as the bytes that they are.
#[derive(Clone, Copy, Debug)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// The paths of all methods, so that a new one is tried without being named here.
fn methods() -> Vec<String> {
    let descriptors = prost_types::FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let ours = descriptors
        .file
        .iter()
        .filter(|file| file.package() == "pressmark.v1");
    let services = ours.flat_map(|file| &file.service);
    let methods = services.flat_map(|service| {
        let path = |method: &str| format!("/pressmark.v1.{}/{method}", service.name());
        service.method.iter().map(move |method| path(method.name()))
    });
    methods.collect()
}

/// Valid messages of several kinds; which method gets which is left to chance.
fn valid_requests() -> Vec<Vec<u8>> {
    let selector = proto::ArticleSelector {
        sources: vec!["Gazette".into()],
        published_after: Some(prost_types::Timestamp::default()),
        url: "https://example.com/1".into(),
        min_sequence: 1,
        max_sequence: 9,
        ..Default::default()
    };
    let id = article(1).id().to_string();
    vec![
        proto::PutArticleRequest {
            article: Some(message(1)),
        }
        .encode_to_vec(),
        import_request(&[message(1), message(2)]).encode_to_vec(),
        proto::FindMissingArticlesRequest {
            ids: vec![id.clone(); 3],
        }
        .encode_to_vec(),
        proto::ListArticlesRequest {
            selector: Some(selector),
            page_size: 3,
            ..Default::default()
        }
        .encode_to_vec(),
        proto::DeleteArticleRequest {
            id: id.clone(),
            reason: "unwanted".into(),
        }
        .encode_to_vec(),
        proto::GetArticleRequest {
            name: Some(proto::get_article_request::Name::Id(id.clone())),
            ..Default::default()
        }
        .encode_to_vec(),
        proto::ListCopiesRequest {
            id,
            similarity_min: Some(0.7),
            ..Default::default()
        }
        .encode_to_vec(),
        proto::SearchArticlesRequest {
            query: "body:number -title:\"a b\"* OR (x AND [a TO b])".into(),
            page_size: 2,
            ..Default::default()
        }
        .encode_to_vec(),
        proto::GetTimelineRequest {
            bucket: proto::TimelineBucket::Day.into(),
            by_source: true,
            ..Default::default()
        }
        .encode_to_vec(),
        proto::VerifyArchiveRequest {
            repair: true,
            bytes_per_second_max: 0,
        }
        .encode_to_vec(),
        Vec::new(),
    ]
}

type RawClient = tonic::client::Grpc<tonic::transport::Channel>;

/// A server with some articles, and a client of it that sends bytes.
async fn raw_server() -> (TestServer, RawClient) {
    let server = TestServer::start_searched(Limits::default()).await;
    for n in 1..20 {
        server.archive.put(prepared(&article(n))).await.unwrap();
    }
    let endpoint = tonic::transport::Endpoint::from_shared(server.address.clone());
    let channel = endpoint.unwrap().connect().await.unwrap();
    let client = tonic::client::Grpc::new(channel).max_decoding_message_size(usize::MAX);
    (server, client)
}

/// Sends bytes to a method and reads the answer to its end, if it has one.
async fn call(client: &mut RawClient, path: &str, bytes: Bytes) -> Result<usize, Status> {
    client.ready().await.expect("the server takes requests");
    let is_endless = path.ends_with("/WatchArticles");
    let request = Request::new(stream::iter([bytes]));
    let path = path.parse().unwrap();
    let answer = client.streaming(request, path, Raw).await?;
    let mut answer = answer.into_inner();
    let mut count = 0;
    if is_endless {
        return Ok(count);
    }
    while answer.message().await?.is_some() {
        count += 1;
    }
    Ok(count)
}

#[test]
fn requests_of_every_method() {
    // One thread does everything, so that what the server allocates is seen.
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().unwrap();
    let (server, mut client) = runtime.block_on(raw_server());
    let methods = methods();
    let valid = valid_requests();
    fuzz("requests of every method", |input| {
        let mut source = Source(input);
        let method = &methods[source.below(methods.len())];
        let bytes = Bytes::from(mutate(&valid, &mut source));
        let answer = bounded(REQUEST_BYTES_MAX, || {
            runtime.block_on(call(&mut client, method, bytes))
        });
        if let Err(status) = &answer {
            let is_right = matches!(
                status.code(),
                Code::InvalidArgument | Code::NotFound | Code::ResourceExhausted
            ) || (status.code() == Code::Unavailable
                && method.ends_with("/SearchArticles"));
            // A search index that is being built anew is told to be.
            assert!(is_right, "{method}: {status:?}");
        }
        if method.ends_with("/MoveArchive") {
            // What comes next is to be written again.
            runtime.block_on(server.archive.release()).unwrap();
        }
        answer.is_ok()
    });
    drop(client);
    runtime.block_on(server.finish());
}

/// Empty items by the hundred thousand, in a message that is just small enough to be decoded.
#[test]
fn a_message_of_empty_items_is_bounded() {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().unwrap();
    let (server, mut client) = runtime.block_on(raw_server());
    for method in methods() {
        // Field 1 with a length of 0: in most requests an empty string or message.
        let items = [0x0a, 0x00].repeat(Limits::default().message_bytes_max / 2);
        let answer = bounded(REQUEST_BYTES_MAX, || {
            runtime.block_on(call(&mut client, &method, items.into()))
        });
        if let Err(status) = answer {
            assert_ne!(status.code(), Code::Internal, "{method}: {status:?}");
        }
    }
    drop(client);
    runtime.block_on(server.finish());
}
