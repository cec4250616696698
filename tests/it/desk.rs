//! What an operator has: certificates, a file of identities, and the server that they run.

use std::fs;
use std::path::PathBuf;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use tempfile::TempDir;
use tonic::{Request, Status};
use tonic_types::StatusExt;

use crate::cli::{Ran, program};
use crate::server::{ServerProcess, check_folder};

/// A root that signs certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "root");
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self { issuer, pem }
    }

    /// A certificate and its key, for a server on this machine or a client.
    pub fn sign(
        &self,
        organization: &str,
        name: &str,
        purpose: ExtendedKeyUsagePurpose,
    ) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, organization);
        if !name.is_empty() {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        params.extended_key_usages = vec![purpose];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    pub fn server(&self) -> (String, String) {
        self.sign("Gazette", "server", ExtendedKeyUsagePurpose::ServerAuth)
    }

    pub fn client(&self, name: &str) -> (String, String) {
        self.sign("Gazette", name, ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// A client that says it is of another organization.
    pub fn client_of(&self, organization: &str, name: &str) -> (String, String) {
        self.sign(organization, name, ExtendedKeyUsagePurpose::ClientAuth)
    }
}

/// The files of an operator.
pub struct Desk {
    folder: TempDir,
    pub authority: Authority,
}

impl Desk {
    pub fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let authority = Authority::new();
        let desk = Self { folder, authority };
        desk.write("ca.pem", &desk.authority.pem);
        desk.renew();
        desk
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub fn write(&self, name: &str, content: &str) -> String {
        let whole = self.path(&format!("{name}.new"));
        fs::write(&whole, content).unwrap();
        fs::rename(whole, self.path(name)).unwrap();
        self.text(name)
    }

    /// Gives the server another certificate.
    pub fn renew(&self) {
        let (certificate, key) = self.authority.server();
        self.write("key.pem", &key);
        self.write("cert.pem", &certificate);
    }

    pub fn run(&self, arguments: &[&str]) -> Ran {
        Ran::of(program().args(arguments))
    }

    /// Adds an identity and returns the file of its token.
    pub fn add(&self, name: &str, role: &str) -> String {
        let tokens = self.text("tokens.toml");
        let ran = self.run(&["token", "add", name, "--role", role, "--tokens", &tokens]);
        let token = ran.exits(0).out;
        self.write(&format!("{name}.token"), &token)
    }

    pub fn serve(&self, flags: &[&str]) -> ServerProcess {
        ServerProcess::start_with(&self.path("archive"), flags)
    }

    pub fn serve_tls(&self, flags: &[&str]) -> ServerProcess {
        let (certificate, key) = (self.text("cert.pem"), self.text("key.pem"));
        let tls = ["--tls-cert", &certificate, "--tls-key", &key];
        self.serve(&[&tls, flags].concat())
    }

    pub async fn finish(&self) {
        check_folder(&self.path("archive"), async |_| ()).await;
    }
}

/// A request that says who asks.
pub fn signed<T>(request: T, token_file: &str) -> Request<T> {
    let mut request = Request::new(request);
    let token = fs::read_to_string(token_file).unwrap();
    let value = format!("Bearer {}", token.trim()).parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

pub fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    details.error_info().unwrap().reason.clone()
}
