//! The limit of a unary call: a server that does nothing but answer `GetArticle` with one article
//! from memory. What it reaches is what gRPC and the client leave to any server on this machine.

use std::convert::Infallible;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use pressmark::rpc::{CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES, proto};
use tokio::net::TcpListener;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

#[derive(Clone)]
struct Answer(proto::GetArticleResponse);

impl NamedService for Answer {
    const NAME: &'static str = "pressmark.v1.ArticleService";
}

impl UnaryService<proto::GetArticleRequest> for Answer {
    type Response = proto::GetArticleResponse;
    type Future = std::future::Ready<Result<Response<Self::Response>, Status>>;

    fn call(&mut self, _: Request<proto::GetArticleRequest>) -> Self::Future {
        std::future::ready(Ok(Response::new(self.0.clone())))
    }
}

impl tower::Service<http::Request<Body>> for Answer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let answer = self.clone();
        let codec = ProstCodec::<proto::GetArticleResponse, proto::GetArticleRequest>::default();
        Box::pin(async move { Ok(Grpc::new(codec).unary(answer, request).await) })
    }
}

/// Serves an article with a body of so many bytes until the process is killed.
pub async fn serve(body_bytes: usize) {
    let article = proto::Article {
        id: "0".repeat(64),
        title: "An article from memory".into(),
        source: "Outlet 001".into(),
        url: "https://news.example/1/23456789".into(),
        body: "x".repeat(body_bytes),
        ..proto::Article::default()
    };
    let answer = proto::GetArticleResponse {
        article: Some(article),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("bare answers on http://{}", listener.local_addr().unwrap());
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .add_service(Answer(answer))
        .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)))
        .await
        .unwrap();
}
