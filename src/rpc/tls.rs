//! TLS of connections: the files that an operator names, and whom a client's certificate proves.

use std::path::PathBuf;
use std::sync::Arc;

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use x509_parser::objects::{oid_registry, oid2abbrev};
use x509_parser::prelude::{AttributeTypeAndValue, FromDer, X509Certificate};

use super::reload::Reload;
use crate::error::{Error, Reason, Result};

/// The files of a server's TLS, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, followed by those between it and the root.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The roots of clients' certificates. With them, a client may prove who it is by one.
    pub client_roots: Option<PathBuf>,
}

/// What a client has to do about its certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientCertificate {
    /// Every connection needs one.
    Required,
    /// Whoever has none may send a token.
    Optional,
}

/// Reads the files, now and when they change.
pub(super) async fn open(
    files: &TlsFiles,
    clients: ClientCertificate,
) -> Result<Reload<ServerConfig>> {
    let mut paths = vec![files.certificate.clone(), files.key.clone()];
    paths.extend(files.client_roots.clone());
    Reload::open(paths, move |contents| config(contents, clients)).await
}

fn config(contents: &[Vec<u8>], clients: ClientCertificate) -> Result<ServerConfig> {
    let [certificate, key, roots @ ..] = contents else {
        return Err(Error::new(Reason::Internal, "TLS needs two files"));
    };
    let provider = Arc::new(ring::default_provider());
    let chain = certificates("tls-cert", certificate)?;
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|error| invalid("tls-key", "holds no private key", error))?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| invalid("tls-cert", "TLS cannot be set up", error))?;
    let builder = match roots {
        [] => builder.with_no_client_auth(),
        [roots, ..] => {
            let mut store = RootCertStore::empty();
            for root in certificates("tls-client-ca", roots)? {
                store
                    .add(root)
                    .map_err(|error| invalid("tls-client-ca", "is no root", error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider);
            let verifier = match clients {
                ClientCertificate::Required => verifier,
                ClientCertificate::Optional => verifier.allow_unauthenticated(),
            };
            let verifier = verifier
                .build()
                .map_err(|error| invalid("tls-client-ca", "cannot be used", error))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|error| invalid("tls-cert", "does not fit the key", error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(field: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let chain = chain.map_err(|error| invalid(field, "is no PEM", error))?;
    if chain.is_empty() {
        let what = "holds no certificate in PEM";
        return Err(Error::field(Reason::ArgumentInvalid, field, what));
    }
    Ok(chain)
}

fn invalid(
    field: &str,
    what: &str,
    error: impl std::error::Error + Send + Sync + 'static,
) -> Error {
    let what = format!("{what}: {error}");
    Error::field(Reason::ArgumentInvalid, field, what).with_source(error)
}

/// The subject of a certificate, as RFC 4514 writes it but in the order of the certificate, such as
/// `C=NL, O=Gazette, CN=importer`. What divides the parts is escaped within them, so that no two
/// subjects are written alike; none if a part is no text.
pub(super) fn subject(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let parts = certificate.subject().iter_rdn().map(|part| {
        let values: Option<Vec<String>> = part.iter().map(attribute).collect();
        Some(values?.join(" + "))
    });
    Some(parts.collect::<Option<Vec<String>>>()?.join(", "))
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> Option<String> {
    let kind = attribute.attr_type();
    let name = oid2abbrev(kind, oid_registry()).map_or_else(|_| kind.to_id_string(), str::to_owned);
    let mut text = format!("{name}=");
    for character in attribute.as_str().ok()?.chars() {
        if ",+\"\\<>;".contains(character) {
            text.push('\\');
        }
        text.push(character);
    }
    Some(text)
}
