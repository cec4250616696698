//! Who may call what: tokens and certificates, each with a name and a role, in a file of TOML. The
//! file holds hashes of tokens, never a token.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::article::Timestamp;
use crate::error::{Error, Reason, Result};

/// What every token begins with, so that one is recognized where it should not be.
const TOKEN_PREFIX: &str = "pm_";

/// Random bytes of a token. With so many, a plain hash of it is safe in a file.
const TOKEN_BYTES: usize = 32;

/// Bytes of a name, which stands in every line that tells what its owner did.
const NAME_BYTES_MAX: usize = 100;

/// What an identity may do; each role may do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads, scans, searches and watches.
    Reader,
    /// Stores articles.
    Writer,
    /// Deletes, checks, repairs, backs up and rebuilds.
    Admin,
}

impl Role {
    const ALL: [Self; 3] = [Self::Reader, Self::Writer, Self::Admin];
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Reader => "reader",
            Self::Writer => "writer",
            Self::Admin => "admin",
        })
    }
}

impl FromStr for Role {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let role = Self::ALL.into_iter().find(|role| role.to_string() == text);
        role.ok_or_else(|| {
            let what = format!("{text:?} is none of reader, writer and admin");
            Error::field(Reason::ArgumentInvalid, "role", what)
        })
    }
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The name in the file.
    pub name: String,
    /// What it may do.
    pub role: Role,
}

/// The identities that a server knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    #[serde(default, rename = "token", skip_serializing_if = "Vec::is_empty")]
    tokens: Vec<Token>,
    #[serde(default, rename = "certificate", skip_serializing_if = "Vec::is_empty")]
    certificates: Vec<Certificate>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Token {
    name: String,
    role: Role,
    /// BLAKE3 of the token, in hex.
    hash: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    created_at: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Certificate {
    name: String,
    role: Role,
    /// The subject as RFC 4514 writes it.
    subject: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    created_at: String,
}

/// One line of a list of identities.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// The name.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// What proves it: "token" or "certificate".
    pub kind: &'static str,
    /// The subject of the certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// When it was added, as it stands in the file.
    pub created_at: String,
}

impl Credentials {
    /// Reads the file.
    ///
    /// # Errors
    /// `ArgumentInvalid` naming what is wrong: no TOML, an unknown key or role, a name that stands
    /// twice, a hash that is none.
    pub fn parse(text: &str) -> Result<Self> {
        let credentials: Self = toml::from_str(text).map_err(|error| {
            Error::field(Reason::ArgumentInvalid, "tokens", error.message()).with_source(error)
        })?;
        let mut names: Vec<&str> = credentials.names().collect();
        for name in &names {
            check_name(name)?;
        }
        names.sort_unstable();
        let twice = names.windows(2).find(|pair| pair.first() == pair.last());
        if let Some([name, ..]) = twice {
            return Err(taken(name));
        }
        for token in &credentials.tokens {
            if blake3::Hash::from_hex(&token.hash).is_err() {
                let what = format!("the hash of {:?} is not 64 hex digits", token.name);
                return Err(Error::field(Reason::ArgumentInvalid, "hash", what));
            }
        }
        Ok(credentials)
    }

    /// Writes the file.
    ///
    /// # Errors
    /// `Internal`.
    pub fn to_text(&self) -> Result<String> {
        toml::to_string(self).map_err(|error| {
            Error::new(Reason::Internal, "the tokens cannot be written").with_source(error)
        })
    }

    /// Adds an identity that a new token proves, and returns the token, which is kept nowhere.
    ///
    /// # Errors
    /// `ArgumentInvalid` if the name is taken, empty or too long.
    pub fn add_token(&mut self, name: &str, role: Role, now: Timestamp) -> Result<String> {
        self.check_new(name)?;
        let mut secret = [0; TOKEN_BYTES];
        getrandom::fill(&mut secret).map_err(|error| {
            Error::new(Reason::Internal, "the system gives no random bytes").with_source(error)
        })?;
        let digits = blake3::Hash::from_bytes(secret).to_hex();
        let token = format!("{TOKEN_PREFIX}{digits}");
        self.tokens.push(Token {
            name: name.to_owned(),
            role,
            hash: blake3::hash(token.as_bytes()).to_hex().to_string(),
            created_at: now.to_string(),
        });
        Ok(token)
    }

    /// Adds an identity that a certificate with this subject proves.
    ///
    /// # Errors
    /// `ArgumentInvalid` if the name or the subject is taken or empty.
    pub fn add_certificate(
        &mut self,
        name: &str,
        role: Role,
        subject: &str,
        now: Timestamp,
    ) -> Result<()> {
        self.check_new(name)?;
        let is_taken = |known: &Certificate| known.subject == subject;
        if subject.is_empty() || self.certificates.iter().any(is_taken) {
            let what = format!("{subject:?} is empty or taken");
            return Err(Error::field(Reason::ArgumentInvalid, "certificate", what));
        }
        self.certificates.push(Certificate {
            name: name.to_owned(),
            role,
            subject: subject.to_owned(),
            created_at: now.to_string(),
        });
        Ok(())
    }

    /// Removes an identity.
    ///
    /// # Errors
    /// `ArgumentInvalid` if there is none of that name.
    pub fn revoke(&mut self, name: &str) -> Result<()> {
        let before = self.names().count();
        self.tokens.retain(|token| token.name != name);
        self.certificates.retain(|known| known.name != name);
        if self.names().count() == before {
            let what = format!("nobody is called {name:?}");
            return Err(Error::field(Reason::ArgumentInvalid, "name", what));
        }
        Ok(())
    }

    /// All identities, in the order of the file.
    #[must_use]
    pub fn list(&self) -> Vec<Listed> {
        let tokens = self.tokens.iter().map(|token| Listed {
            name: token.name.clone(),
            role: token.role,
            kind: "token",
            subject: None,
            created_at: token.created_at.clone(),
        });
        let certificates = self.certificates.iter().map(|known| Listed {
            name: known.name.clone(),
            role: known.role,
            kind: "certificate",
            subject: Some(known.subject.clone()),
            created_at: known.created_at.clone(),
        });
        tokens.chain(certificates).collect()
    }

    /// Whom a token proves. Takes the same time whichever it is: every hash is compared, and each
    /// comparison looks at every bit.
    #[must_use]
    pub fn of_token(&self, token: &str) -> Option<Arc<Identity>> {
        let hash = blake3::hash(token.as_bytes());
        let mut found = None;
        for known in &self.tokens {
            let is_it = blake3::Hash::from_hex(&known.hash).is_ok_and(|known| known == hash);
            found = if is_it { Some(known) } else { found };
        }
        found.map(|known| identity(&known.name, known.role))
    }

    /// Whom a certificate proves.
    #[must_use]
    pub fn of_subject(&self, subject: &str) -> Option<Arc<Identity>> {
        let mut known = self.certificates.iter();
        let known = known.find(|known| known.subject == subject)?;
        Some(identity(&known.name, known.role))
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        let tokens = self.tokens.iter().map(|token| token.name.as_str());
        tokens.chain(self.certificates.iter().map(|known| known.name.as_str()))
    }

    fn check_new(&self, name: &str) -> Result<()> {
        check_name(name)?;
        if self.names().any(|known| known == name) {
            return Err(taken(name));
        }
        Ok(())
    }
}

fn identity(name: &str, role: Role) -> Arc<Identity> {
    let name = name.to_owned();
    Arc::new(Identity { name, role })
}

fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
        let what = format!(
            "{name:?} has {} bytes, it needs 1 to {NAME_BYTES_MAX} without control characters",
            name.len()
        );
        return Err(Error::field(Reason::ArgumentInvalid, "name", what));
    }
    Ok(())
}

fn taken(name: &str) -> Error {
    Error::field(
        Reason::ArgumentInvalid,
        "name",
        format!("{name:?} is taken"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_proves_its_owner_until_it_is_revoked() -> Result<()> {
        let mut known = Credentials::default();
        let reader = known.add_token("desk", Role::Reader, Timestamp::EPOCH)?;
        let admin = known.add_token("chief", Role::Admin, Timestamp::EPOCH)?;
        known.add_certificate("importer", Role::Writer, "CN=importer", Timestamp::EPOCH)?;
        let text = known.to_text()?;
        assert!(!text.contains(&reader) && !text.contains(&admin));
        let mut read = Credentials::parse(&text)?;
        assert_eq!(read, known);
        assert_eq!(read.of_token(&admin), Some(identity("chief", Role::Admin)));
        assert_eq!(read.of_token(&reader), Some(identity("desk", Role::Reader)));
        assert_eq!(read.of_token("pm_"), None);
        let importer = Some(identity("importer", Role::Writer));
        assert_eq!(read.of_subject("CN=importer"), importer);
        assert_eq!(read.of_subject("CN=other"), None);
        read.revoke("desk")?;
        assert_eq!(read.of_token(&reader), None);
        assert!(read.revoke("desk").is_err());
        assert!(
            read.add_token("chief", Role::Reader, Timestamp::EPOCH)
                .is_err()
        );
        Ok(())
    }

    #[test]
    fn a_file_with_a_mistake_is_refused() {
        let hash = "0".repeat(64);
        let token = |name: &str, role: &str, hash: &str| {
            format!("[[token]]\nname = {name:?}\nrole = {role:?}\nhash = {hash:?}\n")
        };
        let twice = token("a", "reader", &hash).repeat(2);
        for (text, part) in [
            (token("a", "owner", &hash), "owner"),
            (token("a", "reader", "12"), "64 hex digits"),
            (token("", "reader", &hash), "1 to 100"),
            (twice, "taken"),
            ("[[tokens]]\n".to_owned(), "tokens"),
            ("key".to_owned(), "tokens"),
        ] {
            let error = Credentials::parse(&text).expect_err(&text).to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
