//! The binary `hadron`.
fn main() {}
