//! Data that earlier versions wrote: it opens, and holds what was put into it.
//!
//! `tests/data/format-1` is a sled archive of format 1, `tests/data/format-1.pmb` a backup of it, and
//! `tests/data/format-2` an archive of format 2, and `tests/data/format-3` one with a dictionary. The
//! backups of all are the same. They are never written again; a new format adds files beside them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pressmark::archive::backup::Chain;
use pressmark::archive::{Archive, Limits, PutOutcome};
use pressmark::article::{ArticleFields, ContentHash};
use pressmark::error::Reason;
use pressmark::key;
use pressmark::store::{Change, MemoryStore};
use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
    FileDescriptorSet,
};

use crate::backup::{check_same_articles, restored};
use crate::dictionary::{put_worded, worded};
use crate::support::{
    Engine, TestArchive, TestResult, article, copy_folder, fields, noise, prepared, time,
};
use crate::verify::write;

/// Set to a folder, it gets what the tests expect: how the data came to be.
const WRITE_TO: &str = "PRESSMARK_TEST_GOLDEN_TO";

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

/// One of everything that a log can hold. Returns the deleted ids.
async fn filled(engine: Engine) -> (TestArchive, Vec<ContentHash>) {
    filled_with(engine, Limits::default()).await
}

/// The same, and articles from before and after it has a dictionary.
async fn trained(engine: Engine) -> (TestArchive, Vec<ContentHash>) {
    let limits = Limits {
        dictionary_records_min: 40,
        ..Limits::default()
    };
    let (archive, deleted) = filled_with(engine, limits).await;
    archive.put_all((100..140).map(worded)).await;
    archive.trained().await.unwrap();
    put_worded(&archive, 140..160).await.unwrap();
    (archive, deleted)
}

async fn filled_with(engine: Engine, limits: Limits) -> (TestArchive, Vec<ContentHash>) {
    let archive = TestArchive::with_limits(engine, limits).await;
    let large = ArticleFields {
        body: noise(1, 150_000),
        ..fields(5)
    };
    let undated = ArticleFields {
        published_at: None,
        url: String::new(),
        author: "\u{c9}. Crivain".into(),
        ..fields(6)
    };
    let revision = ArticleFields {
        url: format!("{}?utm_source=feed", fields(3).url),
        ..fields(7)
    };
    let all = [
        fields(1),
        fields(2),
        fields(3),
        fields(4),
        large,
        undated,
        revision,
    ];
    archive.put_all(all).await;
    let deleted = article(2).id();
    archive.delete(deleted, "unwanted", time(8)).await.unwrap();
    // A record that was set aside, and healed.
    write(&archive, [Change::Remove(key::log(4))]).await;
    archive.repair(time(9)).await.unwrap();
    archive.put_fields(fields(4)).await;
    (archive, vec![deleted])
}

/// Checks that an archive holds what is expected, and takes more.
async fn check(
    archive: &Archive,
    (expected, deleted): (TestArchive, Vec<ContentHash>),
) -> TestResult {
    check_same_articles(&expected, archive, &deleted).await;
    let again = archive.put(prepared(&article(1))).await?;
    assert_eq!((again.outcome, again.sequence), (PutOutcome::Duplicate, 1));
    let next = archive.put(prepared(&article(9))).await?;
    assert_eq!(next.sequence, expected.committed() + 1);
    crate::server::check(archive).await;
    expected.finish().await
}

async fn check_opens(
    format: &str,
    expected: (TestArchive, Vec<ContentHash>),
) -> Result<u8, Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    copy_folder(&data(format), &folder.path().join("archive"))?;
    // It is brought to the newest format, and opens as that the second time.
    for _ in 0..2 {
        let store = Engine::Sled.open(folder.path()).await?;
        let (archive, guard) = Archive::open(store, Limits::default()).await?;
        crate::server::check(&archive).await;
        drop(archive);
        guard.close().await?;
    }
    let store = Engine::Sled.open(folder.path()).await?;
    let (archive, guard) = Archive::open(store, Limits::default()).await?;
    check(&archive, expected).await?;
    let format = archive.format();
    drop(archive);
    guard.close().await?;
    Ok(format)
}

#[tokio::test]
async fn an_archive_of_format_1_opens() -> TestResult {
    let format = check_opens("format-1", filled(Engine::Memory).await).await?;
    assert_eq!(format, 2);
    Ok(())
}

#[tokio::test]
async fn an_archive_of_format_2_opens() -> TestResult {
    keep(filled, "format-2").await?;
    let format = check_opens("format-2", filled(Engine::Memory).await).await?;
    assert_eq!(format, 2);
    Ok(())
}

#[tokio::test]
async fn an_archive_of_format_3_opens() -> TestResult {
    keep(trained, "format-3").await?;
    let format = check_opens("format-3", trained(Engine::Memory).await).await?;
    assert_eq!(format, 3);
    Ok(())
}

/// Writes data where the variable says, if it is set.
async fn keep(
    fill: impl AsyncFn(Engine) -> (TestArchive, Vec<ContentHash>),
    name: &str,
) -> TestResult {
    let Some(folder) = std::env::var_os(WRITE_TO) else {
        return Ok(());
    };
    let (archive, _) = fill(Engine::Sled).await;
    let place = archive.folder().join("archive");
    let kept = archive.close_and_keep().await?;
    copy_folder(&place, &PathBuf::from(folder).join(name))?;
    drop(kept);
    Ok(())
}

#[tokio::test]
async fn a_backup_of_format_1_restores() -> TestResult {
    let chain = Chain::read(&[data("format-1.pmb")])?;
    let (archive, guard) = restored(Arc::new(MemoryStore::new()), &chain).await;
    check(&archive, filled(Engine::Memory).await).await?;
    drop(archive);
    Ok(guard.close().await?)
}

/// Where the API stands as it was released, an element a line.
const API: &str = "tests/data/api-v1";

/// Set to anything, it adds what is new in the API to that file; what is there already stays.
const ADD_TO_API: &str = "PRESSMARK_TEST_ADD_TO_API";

/// Every element of the API that a client or a stored message relies on.
fn api(files: &FileDescriptorSet) -> BTreeSet<String> {
    let mut lines = Vec::new();
    let is_ours = |file: &&FileDescriptorProto| file.package() == "pressmark.v1";
    for file in files.file.iter().filter(is_ours) {
        for message in &file.message_type {
            add_message(&mut lines, "", message);
        }
        for kind in &file.enum_type {
            add_enum(&mut lines, "", kind);
        }
        for service in &file.service {
            for method in &service.method {
                let stream = |streams: bool| if streams { "stream " } else { "" };
                lines.push(format!(
                    "rpc {}.{} {}{} -> {}{}",
                    service.name(),
                    method.name(),
                    stream(method.client_streaming()),
                    method.input_type(),
                    stream(method.server_streaming()),
                    method.output_type()
                ));
            }
        }
    }
    // Programs tell errors apart by these.
    let reasons = Reason::ALL.iter();
    lines.extend(reasons.map(|reason| format!("reason {} {:?}", reason.as_str(), reason.kind())));
    lines.into_iter().collect()
}

fn add_enum(lines: &mut Vec<String>, scope: &str, kind: &EnumDescriptorProto) {
    for value in &kind.value {
        lines.push(format!(
            "enum {scope}{} {} = {}",
            kind.name(),
            value.name(),
            value.number()
        ));
    }
}

fn add_message(lines: &mut Vec<String>, scope: &str, message: &DescriptorProto) {
    let name = format!("{scope}{}", message.name());
    lines.push(format!("message {name}"));
    for field in &message.field {
        let kind = match field.type_name() {
            "" => field.r#type().as_str_name(),
            named => named,
        };
        let oneof = match (field.oneof_index, field.proto3_optional()) {
            (Some(_), true) => " optional".to_owned(),
            (Some(index), false) => {
                format!(" oneof {}", message.oneof_decl[index as usize].name())
            }
            (None, _) => String::new(),
        };
        lines.push(format!(
            "field {name}.{} = {} {kind} {}{oneof}",
            field.name(),
            field.number(),
            field.label().as_str_name()
        ));
    }
    for kind in &message.enum_type {
        add_enum(lines, &format!("{name}."), kind);
    }
    for nested in &message.nested_type {
        add_message(lines, &format!("{name}."), nested);
    }
}

/// What clients of one API rely on, and another one has not.
fn broken(released: &BTreeSet<String>, now: &BTreeSet<String>) -> Vec<String> {
    released.difference(now).cloned().collect()
}

fn descriptors() -> FileDescriptorSet {
    FileDescriptorSet::decode(pressmark::rpc::DESCRIPTORS).unwrap()
}

#[test]
fn the_api_breaks_no_client() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(API);
    let now = api(&descriptors());
    let text = std::fs::read_to_string(&path).unwrap();
    let released: BTreeSet<String> = text.lines().map(str::to_owned).collect();
    let broken = broken(&released, &now);
    assert!(
        broken.is_empty(),
        "clients rely on these, which are gone: {broken:#?}"
    );
    let new: Vec<_> = now.difference(&released).cloned().collect();
    if std::env::var_os(ADD_TO_API).is_some() {
        let lines: Vec<_> = now.into_iter().collect();
        std::fs::write(&path, lines.join("\n") + "\n").unwrap();
        return;
    }
    assert!(
        new.is_empty(),
        "these are new in the API; add them to {API}, after which they stay, by running this test with \
         {ADD_TO_API}=1: {new:#?}"
    );
    assert!(released.len() > 300, "{}", released.len());
}

/// Every change that breaks clients is seen, and one that adds is none of them.
#[test]
fn a_change_that_breaks_clients_is_seen() {
    let released = api(&descriptors());
    let change = |edit: &dyn Fn(&mut FileDescriptorProto)| {
        let mut changed = descriptors();
        let name = "pressmark/v1/article_service.proto";
        let file = changed.file.iter_mut().find(|file| file.name() == name);
        edit(file.unwrap());
        broken(&released, &api(&changed))
    };
    let article = |file: &mut FileDescriptorProto, edit: &dyn Fn(&mut DescriptorProto)| {
        let mut messages = file.message_type.iter_mut();
        edit(
            messages
                .find(|message| message.name() == "Article")
                .unwrap(),
        );
    };
    let field = |edit: &dyn Fn(&mut FieldDescriptorProto)| {
        change(&|file| article(file, &|message| edit(&mut message.field[0])))
    };
    let breaks: [(&str, Vec<String>); 9] = [
        (
            "a field with another number",
            field(&|field| field.number = Some(999)),
        ),
        (
            "a field with another name",
            field(&|field| field.name = Some("other".into())),
        ),
        (
            "a field of another type",
            field(&|field| field.set_type(Type::Bytes)),
        ),
        (
            "a field that repeats",
            field(&|field| field.set_label(Label::Repeated)),
        ),
        (
            "a field less",
            change(&|file| article(file, &|message| message.field.truncate(3))),
        ),
        (
            "a message less",
            change(&|file| file.message_type.truncate(5)),
        ),
        (
            "a value with another number",
            change(&|file| file.enum_type[0].value[1].number = Some(99)),
        ),
        (
            "a method less",
            change(&|file| file.service[0].method.truncate(3)),
        ),
        (
            "a method that streams",
            change(&|file| file.service[0].method[0].server_streaming = Some(true)),
        ),
    ];
    for (what, broken) in breaks {
        assert!(!broken.is_empty(), "{what} is not seen");
    }
    let more = FieldDescriptorProto {
        name: Some("more".into()),
        number: Some(500),
        r#type: Some(Type::String as i32),
        label: Some(Label::Optional as i32),
        ..FieldDescriptorProto::default()
    };
    let added = change(&|file| article(file, &|message| message.field.push(more.clone())));
    assert_eq!(added, [""; 0], "a field more breaks nobody");
}
