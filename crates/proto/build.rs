//! Compiles the `.proto` files with a compiler written in Rust, so that nobody needs `protoc`.

use std::path::PathBuf;

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "rpc.proto",
        "kv.proto",
        "auth.proto",
        "lock.proto",
        "election.proto",
        "health.proto",
        "hadron.proto",
    ];
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    let mut published = descriptors.clone();
    // Comments and positions: most of the bytes, and of no use at run time.
    published.file.iter_mut().for_each(|file| file.source_code_info = None);
    let directory = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(directory.join("descriptors.bin"), published.encode_to_vec())?;
    tonic_prost_build::configure()
        // Keys and values are slices of the buffer they arrived in, not copies of it.
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
