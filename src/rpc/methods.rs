//! Every method that the server has: who may call it, and what the limits have to know of it.

use super::auth::Role;

/// How requests and answers of a method go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Unary,
    ServerStream,
    BidiStream,
}

impl Shape {
    /// The value of the label `grpc_type`.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Unary => "unary",
            Self::ServerStream => "server_stream",
            Self::BidiStream => "bidi_stream",
        }
    }
}

/// A method.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Method {
    pub(super) service: &'static str,
    pub(super) name: &'static str,
    pub(super) shape: Shape,
    /// Who may call it; nobody has to say who he is if there is none.
    pub(super) role: Option<Role>,
    /// Whether its requests carry articles.
    pub(super) takes_articles: bool,
}

impl Method {
    /// Whether it is of a service of pressmark, and no part of gRPC itself.
    pub(super) fn is_ours(&self) -> bool {
        [ARTICLES, ADMIN].contains(&self.service)
    }

    /// The method that a path means, or what stands for all that are not known.
    pub(super) fn of_path(path: &str) -> &'static Self {
        let mut parts = path.trim_start_matches('/').splitn(2, '/');
        let (service, name) = (parts.next(), parts.next());
        let mut all = METHODS.iter();
        all.find(|method| Some(method.service) == service && Some(method.name) == name)
            .unwrap_or(&UNKNOWN)
    }

    /// The service and the name, or what OpenTelemetry calls all methods that are not known.
    pub(super) fn full_name(&self) -> String {
        if self == &UNKNOWN {
            return "_OTHER".to_owned();
        }
        format!("{}/{}", self.service, self.name)
    }
}

/// Whether a path is that of a method that reads articles, which a replica answers as the writer does.
#[must_use]
pub fn is_read(path: &str) -> bool {
    let method = Method::of_path(path);
    method.service == ARTICLES && method.role == Some(Role::Reader)
}

const ARTICLES: &str = "pressmark.v1.ArticleService";
const ADMIN: &str = "pressmark.v1.AdminService";
const HEALTH: &str = "grpc.health.v1.Health";

const fn method(service: &'static str, name: &'static str, shape: Shape, role: Role) -> Method {
    Method {
        service,
        name,
        shape,
        role: Some(role),
        takes_articles: false,
    }
}

const fn storing(name: &'static str, shape: Shape) -> Method {
    Method {
        takes_articles: true,
        ..method(ARTICLES, name, shape, Role::Writer)
    }
}

const fn open(service: &'static str, name: &'static str, shape: Shape) -> Method {
    Method {
        role: None,
        ..method(service, name, shape, Role::Reader)
    }
}

/// What is answered with UNIMPLEMENTED, if the caller may know even that.
static UNKNOWN: Method = method("unknown", "unknown", Shape::Unary, Role::Reader);

/// The methods. A delete is for good, so that whoever stores articles may not.
static METHODS: [Method; 26] = [
    storing("PutArticle", Shape::Unary),
    storing("ImportArticles", Shape::BidiStream),
    method(ARTICLES, "FindMissingArticles", Shape::Unary, Role::Reader),
    method(ARTICLES, "GetArticle", Shape::Unary, Role::Reader),
    method(ARTICLES, "LookupArticles", Shape::Unary, Role::Reader),
    method(ARTICLES, "ListArticles", Shape::Unary, Role::Reader),
    method(ARTICLES, "ScanArticles", Shape::ServerStream, Role::Reader),
    method(ARTICLES, "ListRevisions", Shape::Unary, Role::Reader),
    method(ARTICLES, "ListCopies", Shape::Unary, Role::Reader),
    method(ARTICLES, "WatchArticles", Shape::ServerStream, Role::Reader),
    method(ARTICLES, "CountArticles", Shape::Unary, Role::Reader),
    method(ARTICLES, "GetTimeline", Shape::Unary, Role::Reader),
    method(ARTICLES, "ListSources", Shape::Unary, Role::Reader),
    method(ARTICLES, "SearchArticles", Shape::Unary, Role::Reader),
    method(ARTICLES, "DeleteArticle", Shape::Unary, Role::Admin),
    method(ADMIN, "GetServerInfo", Shape::Unary, Role::Reader),
    method(ADMIN, "GetStats", Shape::Unary, Role::Reader),
    method(ADMIN, "VerifyArchive", Shape::ServerStream, Role::Admin),
    method(ADMIN, "BackupArchive", Shape::ServerStream, Role::Admin),
    method(ADMIN, "MoveArchive", Shape::Unary, Role::Admin),
    method(ADMIN, "RebuildSearchIndex", Shape::Unary, Role::Admin),
    open(HEALTH, "Check", Shape::Unary),
    open(HEALTH, "List", Shape::Unary),
    open(HEALTH, "Watch", Shape::ServerStream),
    method(
        "grpc.reflection.v1.ServerReflection",
        "ServerReflectionInfo",
        Shape::BidiStream,
        Role::Reader,
    ),
    method(
        "grpc.reflection.v1alpha.ServerReflection",
        "ServerReflectionInfo",
        Shape::BidiStream,
        Role::Reader,
    ),
];

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn every_method_of_the_protos_is_known() -> Result<(), prost::DecodeError> {
        let files = prost_types::FileDescriptorSet::decode(crate::rpc::DESCRIPTORS)?;
        let mut count = 0;
        for file in files.file {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    let known = Method::of_path(&path);
                    let shape = match (method.client_streaming(), method.server_streaming()) {
                        (false, false) => Shape::Unary,
                        (false, true) => Shape::ServerStream,
                        (true, _) => Shape::BidiStream,
                    };
                    assert_eq!((known.name, known.shape), (method.name(), shape), "{path}");
                    count += 1;
                }
            }
        }
        assert_eq!(count, 21);
        assert_eq!(
            Method::of_path("/pressmark.v1.ArticleService/Other"),
            &UNKNOWN
        );
        assert_eq!(Method::of_path("/"), &UNKNOWN);
        Ok(())
    }
}
