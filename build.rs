//! Compiles the protos with protox, so that building pressmark needs no `protoc`.

use std::error::Error;
use std::{env, fs, path::Path};

const PROTO_FOLDER: &str = "proto";
const PROTOS: [&str; 2] = [
    "pressmark/v1/article_service.proto",
    "pressmark/v1/admin_service.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={PROTO_FOLDER}");
    let mut compiler = protox::Compiler::new([PROTO_FOLDER])?;
    compiler
        .include_imports(true)
        .include_source_info(true)
        .open_files(PROTOS)?;
    let descriptors = Path::new(&env::var("OUT_DIR")?).join("pressmark.descriptors.bin");
    fs::write(descriptors, compiler.encode_file_descriptor_set())?;

    let mut config = prost_build::Config::new();
    config.enable_type_names();
    tonic_prost_build::configure()
        .codec_path("crate::rpc::wire::WireCodec")
        // Its Rust type keeps the articles undecoded, so that one bad article refuses only itself.
        .extern_path(
            ".pressmark.v1.ImportArticlesRequest",
            "crate::rpc::wire::ImportArticlesRequest",
        )
        .compile_fds_with_config(compiler.file_descriptor_set(), config)?;
    Ok(())
}
