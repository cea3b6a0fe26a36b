//! Compiles the `.proto` files with a compiler written in Rust, so that nobody needs `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["rpc.proto", "kv.proto", "auth.proto", "health.proto", "hadron.proto"];
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        // Keys and values are slices of the buffer they arrived in, not copies of it.
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
