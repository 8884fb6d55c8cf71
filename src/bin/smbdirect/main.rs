//! The `smbdirect` program.

fn main() {}
