//! What no compiler checks: who may use whom, where words may stand, and how long files are.

use std::fs;
use std::path::{Path, PathBuf};

/// The longest file without its tests. A file on the list below has a reason to be longer.
const LINES_MAX: usize = 500;

/// Which modules a module may use: the table of the design.
const EDGES: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("metrics", &[]),
    ("article", &["error"]),
    ("key", &["article", "error"]),
    ("record", &["article", "error", "key"]),
    ("store", &["error"]),
    (
        "archive",
        &["store", "key", "record", "article", "metrics", "error"],
    ),
    ("format", &["article", "error"]),
    ("search", &["archive", "article", "error"]),
    ("rpc", &["archive", "search", "article", "metrics", "error"]),
    ("client", &["rpc", "archive", "search", "store", "error"]),
    (
        "cli",
        &[
            "rpc", "client", "format", "archive", "search", "store", "article", "metrics", "error",
        ],
    ),
    ("main", &["cli"]),
    ("lib", &[]),
];

/// Words that may stand only in some files, and what to do instead.
const BANNED: &[(&str, &[&str], &str)] = &[
    (
        "Batch::new(",
        &["src/archive/commit", "src/store/"],
        "only the writer builds batches",
    ),
    (
        "sled::",
        &["src/store/sled", "src/store/mod.rs"],
        "only the engine file names its engine",
    ),
    (
        "slatedb::",
        &["src/store/slate"],
        "only the engine files name their engine",
    ),
    (
        "object_store::",
        &["src/store/slate"],
        "only the engine files name their engine",
    ),
    (
        "tonic::",
        &["src/rpc/", "src/client.rs"],
        "only rpc and client name tonic",
    ),
    (
        "tantivy::",
        &["src/search/"],
        "only search names its engine",
    ),
    (
        "SystemTime::now",
        &["src/rpc/", "src/cli/"],
        "take a Timestamp as an argument",
    ),
    (
        "tokio::spawn",
        &[
            "src/archive/mod.rs",
            "src/archive/digests.rs",
            "src/rpc/article.rs",
            "src/rpc/admin.rs",
            "src/client.rs",
            "src/cli/",
            "src/store/slate/lease.rs",
        ],
        "give the task to an owner",
    ),
    ("dbg!", &[], "remove it"),
    ("FIXME", &[], "mend it"),
    ("\t", &[], "indent with spaces"),
];

fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.join("src")];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let text = fs::read_to_string(&path).unwrap();
                files.push((path.strip_prefix(root).unwrap().to_owned(), text));
            }
        }
    }
    assert!(files.len() > 20, "the sources were found");
    files
}

/// The text before the tests of a file.
fn product(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap()
}

#[test]
fn sources_are_tidy() {
    let mut complaints = Vec::new();
    for (path, text) in sources() {
        let name = path.to_str().unwrap();
        if !text.starts_with("//!") {
            complaints.push(format!("{name}:1: say with //! what the file is for"));
        }
        if name.ends_with("/tests.rs") {
            continue;
        }
        let lines = product(&text).lines().count();
        if lines > LINES_MAX {
            complaints.push(format!("{name}: {lines} lines, split it at {LINES_MAX}"));
        }
        for (number, line) in product(&text).lines().enumerate() {
            let code = line.split("//").next().unwrap();
            for (word, allowed, instead) in BANNED {
                if code.contains(word) && !allowed.iter().any(|place| name.starts_with(place)) {
                    complaints.push(format!("{name}:{}: {word}: {instead}", number + 1));
                }
            }
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn modules_use_only_their_neighbours() {
    let mut complaints = Vec::new();
    for (path, text) in sources() {
        let module = path
            .components()
            .nth(1)
            .unwrap()
            .as_os_str()
            .to_str()
            .unwrap();
        let module = module.trim_end_matches(".rs");
        let (_, allowed) = EDGES
            .iter()
            .find(|(name, _)| *name == module)
            .unwrap_or_else(|| {
                panic!("{module} is not in the table of modules");
            });
        for (number, line) in product(&text).lines().enumerate() {
            for used in line.split("crate::").skip(1) {
                let used: String = used
                    .chars()
                    .take_while(|c| c.is_ascii_lowercase() || *c == '_')
                    .collect();
                let known = EDGES.iter().any(|(name, _)| *name == used);
                if known && used != module && !allowed.contains(&used.as_str()) {
                    complaints.push(format!(
                        "{}:{}: {module} must not use {used}",
                        path.display(),
                        number + 1
                    ));
                }
            }
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// The rules that buf calls STANDARD, as far as they are about text, and a comment on everything.
#[test]
fn protos_are_tidy() {
    use prost::Message;
    let descriptors = prost_types::FileDescriptorSet::decode(pressmark::rpc::DESCRIPTORS).unwrap();
    let ours = descriptors
        .file
        .iter()
        .filter(|file| file.package() == "pressmark.v1");
    let mut complaints = Vec::new();
    let mut element_count = 0;
    for file in ours {
        let comments = file.source_code_info.as_ref().unwrap();
        for location in &comments.location {
            // Paths of 2 are messages, enums and services; of 4 their fields, values and methods.
            let is_element = matches!(
                location.path.as_slice(),
                [4..=6, _] | [4, _, 2, _] | [5..=6, _, 2, _]
            );
            element_count += usize::from(is_element);
            if is_element && location.leading_comments().trim().is_empty() {
                complaints.push(format!(
                    "{}: {:?} has no comment",
                    file.name(),
                    location.span
                ));
            }
        }
        for kind in &file.enum_type {
            if !kind.value[0].name().ends_with("_UNSPECIFIED") {
                complaints.push(format!(
                    "{}: the zero of {} has a meaning",
                    file.name(),
                    kind.name()
                ));
            }
        }
        for method in file.service.iter().flat_map(|service| &service.method) {
            let expected = |suffix: &str| format!(".pressmark.v1.{}{suffix}", method.name());
            if method.input_type() != expected("Request")
                || method.output_type() != expected("Response")
            {
                complaints.push(format!(
                    "{}: {} has other messages",
                    file.name(),
                    method.name()
                ));
            }
        }
    }
    assert!(element_count > 100, "the elements were found");
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}
