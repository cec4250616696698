//! Where an archive is, and so which engine keeps it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::error::{Error, Reason, Result};

/// Where an archive is, and so which engine keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Locator {
    /// A folder: sled.
    Folder(PathBuf),
    /// `memory:`: nothing outlives the process.
    Memory,
    /// A bucket of object storage: SlateDB.
    Objects(Objects),
}

/// A place in object storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Objects {
    /// Whose storage it is.
    pub provider: Provider,
    /// The bucket, which Azure calls a container; for `file:` the folder that stands for it.
    pub bucket: String,
    /// What the names of all objects of the archive begin with; empty for the whole bucket.
    pub prefix: String,
}

/// Whose object storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// `s3://bucket/prefix`: Amazon, or anything that speaks its protocol.
    S3,
    /// `gs://bucket/prefix`.
    Google,
    /// `az://container/prefix`.
    Azure,
    /// `file:///folder`: a folder that stands for a bucket, to try things out.
    Folder,
}

impl Provider {
    const ALL: [Self; 4] = [Self::S3, Self::Google, Self::Azure, Self::Folder];

    fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Google => "gs",
            Self::Azure => "az",
            Self::Folder => "file",
        }
    }
}

impl FromStr for Locator {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = |what: &str| {
            Error::field(
                Reason::ArgumentInvalid,
                "archive",
                format!(
                    "{text:?} {what}; an archive is a folder such as ./pressmark-data, a place in \
                     object storage such as s3://bucket/prefix, or memory:"
                ),
            )
        };
        match text.split_once("://") {
            _ if text.is_empty() => Err(invalid("is empty")),
            _ if text == "memory:" => Ok(Self::Memory),
            Some((scheme, rest)) if scheme.chars().all(|c| c.is_ascii_alphanumeric()) => {
                let mut providers = Provider::ALL.into_iter();
                let provider = providers.find(|provider| provider.scheme() == scheme);
                let provider =
                    provider.ok_or_else(|| invalid("names an engine that there is not"))?;
                objects(provider, rest).map(Self::Objects).map_err(invalid)
            }
            _ => Ok(Self::Folder(text.into())),
        }
    }
}

/// Takes apart what follows the scheme.
fn objects(provider: Provider, rest: &str) -> Result<Objects, &'static str> {
    if provider == Provider::Folder {
        if !rest.starts_with('/') {
            return Err("does not name a folder from / on");
        }
        return Ok(Objects {
            provider,
            bucket: rest.to_owned(),
            prefix: String::new(),
        });
    }
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err("names no bucket");
    }
    let prefix = prefix.trim_end_matches('/');
    if rest.contains(['?', '#', '%']) || prefix.split('/').any(|part| [".", ".."].contains(&part)) {
        return Err("has a prefix that is no plain path");
    }
    if !prefix.is_empty() && prefix.split('/').any(str::is_empty) {
        return Err("has a prefix with an empty part");
    }
    Ok(Objects {
        provider,
        bucket: bucket.to_owned(),
        prefix: prefix.to_owned(),
    })
}

impl fmt::Display for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.provider.scheme(), self.bucket)?;
        if !self.prefix.is_empty() {
            write!(f, "/{}", self.prefix)?;
        }
        Ok(())
    }
}

impl fmt::Display for Locator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => path.display().fmt(f),
            Self::Memory => f.write_str("memory:"),
            Self::Objects(objects) => objects.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locators_name_engines() {
        assert_eq!("memory:".parse::<Locator>().unwrap(), Locator::Memory);
        assert_eq!(
            "./a b".parse::<Locator>().unwrap(),
            Locator::Folder("./a b".into())
        );
        let objects = |provider, bucket: &str, prefix: &str| {
            Locator::Objects(Objects {
                provider,
                bucket: bucket.into(),
                prefix: prefix.into(),
            })
        };
        let right = [
            ("s3://news/a/b", objects(Provider::S3, "news", "a/b")),
            ("s3://news", objects(Provider::S3, "news", "")),
            ("gs://news/a", objects(Provider::Google, "news", "a")),
            ("az://news/a", objects(Provider::Azure, "news", "a")),
            ("file:///tmp/a b", objects(Provider::Folder, "/tmp/a b", "")),
        ];
        for (text, expected) in right {
            let locator = text.parse::<Locator>().unwrap();
            assert_eq!(locator, expected, "{text}");
            assert_eq!(locator.to_string(), text);
        }
        assert_eq!(
            "s3://news/a/".parse::<Locator>().unwrap(),
            objects(Provider::S3, "news", "a")
        );
    }

    #[test]
    fn what_is_no_locator_is_refused() {
        let wrong = [
            "",
            "postgres://x",
            "s3://",
            "s3:///prefix",
            "s3://news/a//b",
            "s3://news/../b",
            "s3://news/a?versionId=1",
            "file://relative",
        ];
        for wrong in wrong {
            let error = wrong.parse::<Locator>().unwrap_err();
            assert_eq!(error.field_name(), Some("archive"), "{wrong}");
        }
    }
}
