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
        &["src/rpc/", "src/client"],
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
            "src/archive/replica.rs",
            "src/rpc/article.rs",
            "src/rpc/admin.rs",
            "src/client",
            "src/cli/",
            "src/store/slate/lease.rs",
            "src/store/slate/replica.rs",
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
            } else if path.extension().is_some_and(|ending| ending == "rs") {
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

/// The rules that buf calls STANDARD, and a comment on everything.
#[test]
fn protos_are_tidy() {
    use prost::Message;
    let descriptors = prost_types::FileDescriptorSet::decode(pressmark::rpc::DESCRIPTORS).unwrap();
    let ours = descriptors
        .file
        .iter()
        .filter(|file| file.name().starts_with("pressmark/"));
    let mut complaints = Vec::new();
    let mut names = std::collections::BTreeSet::new();
    for file in ours {
        let mut complain = |what: String| complaints.push(format!("{}: {what}", file.name()));
        if !file.name().starts_with("pressmark/v1/") || file.package() != "pressmark.v1" {
            complain(format!(
                "the package {} is not that of the folder",
                file.package()
            ));
        }
        if !is_snake_case(file.name().trim_end_matches(".proto")) {
            complain("the name has upper case".to_owned());
        }
        check_comments(file, &mut complain);
        for message in &file.message_type {
            check_message(message, &mut complain);
        }
        for kind in &file.enum_type {
            check_enum(kind, &mut complain);
        }
        for service in &file.service {
            if !is_pascal_case(service.name()) || !service.name().ends_with("Service") {
                complain(format!("{} is not called a Service", service.name()));
            }
            for method in &service.method {
                let name = method.name();
                for (used, suffix) in [
                    (method.input_type(), "Request"),
                    (method.output_type(), "Response"),
                ] {
                    if used != format!(".pressmark.v1.{name}{suffix}")
                        || !names.insert(used.to_owned())
                    {
                        complain(format!("{name} has {used}, which is not its own {suffix}"));
                    }
                }
                if !is_pascal_case(name) {
                    complain(format!("{name} is not in PascalCase"));
                }
            }
        }
    }
    assert!(names.len() >= 40, "the methods were found: {names:?}");
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

fn is_snake_case(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_/".contains(c);
    name.chars().all(is_plain) && !name.contains("__") && !name.ends_with('_')
}

fn is_pascal_case(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_uppercase())
        && name.chars().all(|c| c.is_ascii_alphanumeric())
}

fn check_message(message: &prost_types::DescriptorProto, complain: &mut impl FnMut(String)) {
    if !is_pascal_case(message.name()) {
        complain(format!(
            "the message {} is not in PascalCase",
            message.name()
        ));
    }
    let fields = message.field.iter().map(|field| field.name());
    let oneofs = message.oneof_decl.iter().map(|oneof| oneof.name());
    for name in fields.chain(oneofs.filter(|name| !name.starts_with('_'))) {
        if !is_snake_case(name) {
            complain(format!("{}.{name} is not in snake_case", message.name()));
        }
    }
    message
        .enum_type
        .iter()
        .for_each(|kind| check_enum(kind, complain));
    for nested in &message.nested_type {
        check_message(nested, complain);
    }
}

fn check_enum(kind: &prost_types::EnumDescriptorProto, complain: &mut impl FnMut(String)) {
    let mut prefix = String::new();
    for c in kind.name().chars() {
        if c.is_ascii_uppercase() && !prefix.is_empty() {
            prefix.push('_');
        }
        prefix.push(c.to_ascii_uppercase());
    }
    if kind.value[0].name() != format!("{prefix}_UNSPECIFIED") || kind.value[0].number() != 0 {
        complain(format!("the zero of {} has a meaning", kind.name()));
    }
    for value in &kind.value {
        let is_plain = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        let rest = value.name().strip_prefix(&format!("{prefix}_"));
        if !rest.is_some_and(|rest| !rest.is_empty() && rest.chars().all(is_plain)) {
            complain(format!("{} does not begin with {prefix}_", value.name()));
        }
    }
}

fn check_comments(file: &prost_types::FileDescriptorProto, complain: &mut impl FnMut(String)) {
    let comments = file.source_code_info.as_ref().unwrap();
    let mut element_count = 0;
    for location in &comments.location {
        // Numbers alternate with places: 4 are messages, 5 enums, 6 services; within a message 2 are
        // fields, 3 messages, 4 enums and 8 groups of which one is set; within the others 2 are values
        // and methods.
        let is_element = match location.path.as_slice() {
            [4..=6, _] | [5..=6, _, 2, _] => true,
            [4, _, rest @ ..] => {
                let nested = rest
                    .chunks(2)
                    .all(|step| step.len() == 2 && [2, 3, 4, 8].contains(&step[0]));
                nested && !rest.is_empty()
            }
            _ => false,
        };
        element_count += usize::from(is_element);
        if is_element && location.leading_comments().trim().is_empty() {
            complain(format!("{:?} has no comment", location.span));
        }
    }
    if element_count < 50 {
        complain(format!(
            "{element_count} elements, the others were not found"
        ));
    }
}
